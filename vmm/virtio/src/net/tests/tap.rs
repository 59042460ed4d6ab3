//! The device on a tap of the kernel's. Without the right to make one there is nothing to test
//! here; the VMs' tests have one in any case.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use super::guest::packet;
use super::*;
use crate::net::{Error, TapError};

const IFF_TUN: u16 = 1;
const IFF_TAP: u16 = 2;
const IFF_MULTI_QUEUE: u16 = 0x100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const GOOD: u16 = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;

/// A descriptor of the interface `name`, whose name is told; `None` if that is not allowed.
fn open(name: &[u8], flags: u16) -> Option<(OwnedFd, Vec<u8>)> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .ok()?;
    let mut request = [0_u8; 40];
    request[..name.len()].copy_from_slice(name);
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the kernel reads and writes a `struct ifreq`, which has 40 bytes.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    let name = request[..16].iter().copied().take_while(|b| *b != 0);
    (result == 0).then(|| (file.into(), name.collect()))
}

#[test]
fn only_taps_that_speak_the_header_are_taken() {
    let Some((fd, name)) = open(b"", GOOD | IFF_MULTI_QUEUE) else {
        eprintln!("skipped: no taps can be made here");
        return;
    };
    let first = Tap::new(fd, true).unwrap();
    let (second, _) = open(&name, GOOD | IFF_MULTI_QUEUE).unwrap();
    let (other, _) = open(b"", GOOD | IFF_MULTI_QUEUE).unwrap();
    let other = Tap::new(other, true).unwrap();
    let error = Net::new(config(2), vec![first, other]).unwrap_err();
    assert!(matches!(error, Error::Interfaces), "{error}");
    drop(second);

    for (flags, several, missing) in [
        (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, false, "IFF_TAP"),
        (IFF_TAP | IFF_NO_PI, false, "IFF_VNET_HDR"),
        (GOOD, true, "IFF_MULTI_QUEUE"),
    ] {
        let (fd, _) = open(b"", flags).unwrap();
        match Tap::new(fd, several) {
            Err(TapError::Flags(_, name)) => assert_eq!(name, missing),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn queues_are_attached_and_offloads_set_as_the_driver_wants() {
    let Some((first, name)) = open(b"", GOOD | IFF_MULTI_QUEUE) else {
        eprintln!("skipped: no taps can be made here");
        return;
    };
    let (second, _) = open(&name, GOOD | IFF_MULTI_QUEUE).unwrap();
    let taps = [first, second].map(|fd| Tap::new(fd, true).unwrap());
    let device = Net::new(config(2), taps.into()).unwrap();
    let path = format!("/sys/class/net/{}/queues", String::from_utf8_lossy(&name));
    let queues = || std::fs::read_dir(&path).map(|entries| entries.count() / 2);
    // The file system may belong to another network namespace.
    let visible = queues().is_ok();
    let offered = device.offered_features();
    let sizes = [256, 256, 256, 256, 64];
    let mut rig = Rig::around(device, Vec::new(), offered, &sizes, true);
    for (pairs, expected) in [(2, 2), (1, 1), (2, 2)] {
        let answer = rig.guest.command(4, &[4, 0, pairs, 0]);
        rig.run();
        assert_eq!(rig.guest.byte(answer), 0);
        if visible {
            assert_eq!(queues().unwrap(), expected);
        }
    }
    for offloads in [0, 1 << 1 | 1 << 7, offered & 0x382] {
        let bytes = [&[5, 0][..], &u64::to_le_bytes(offloads)].concat();
        let answer = rig.guest.command(4, &bytes);
        rig.run();
        assert_eq!(rig.guest.byte(answer), 0, "{offloads:#x}");
    }
    // The interface is down; and a header that makes no sense.
    rig.guest.send(TX, 0, &packet(60, 0), &[]);
    let mut bad = packet(60, 0);
    bad[1] = 0xee;
    rig.guest.send(TX, 1, &bad, &[]);
    rig.run();
    assert_eq!(rig.metrics().tx_dropped, 2);
    rig.device().reset();
    rig.activate(offered);
    if visible {
        assert_eq!(queues().unwrap(), 1);
    }
}
