//! Configuration, commands, several queues, and what outlives the device.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::guest::{NEXT, WRITE, packet};
use super::*;
use crate::device::INTERRUPT_CONFIG_CHANGE;
use crate::net::{DriverState, Error};
use virtio_queue::desc::split::Descriptor;

const OFFLOADS: u64 = 1 << 2;
const GUEST_CSUM: u64 = 1 << 1;
const GUEST_TSO4: u64 = 1 << 7;
const LINUX: &[u32] = &[1536];

fn two_pairs() -> Rig {
    let mut rig = Rig::with(
        config(2),
        MULTI | CONTROL | MERGEABLE,
        &[256, 256, 256, 256, 64],
        false,
    );
    for queue in [0, 2] {
        for head in 0..16 {
            rig.guest.give(queue, head, LINUX);
        }
        rig.guest.kick(queue);
    }
    rig.run();
    rig
}

fn command(rig: &mut Rig, queue: usize, bytes: &[u8]) -> u8 {
    let answer = rig.guest.command(queue, bytes);
    rig.run();
    assert_eq!(rig.guest.take_used(queue), Some((0, 1)));
    rig.guest.byte(answer)
}

#[test]
fn the_configuration_is_told() {
    let (taps, _peers) = taps(3);
    let config = Config {
        mtu: Some(0x1234),
        ..config(3)
    };
    let device = Net::new(config, taps).unwrap();
    let mut bytes = [0xff; 14];
    device.read_config(0, &mut bytes);
    assert_eq!(bytes, [2, 0, 0, 0, 0, 7, 1, 0, 3, 0, 0x34, 0x12, 0, 0]);
    let mut byte = [0xff];
    device.read_config(10, &mut byte);
    assert_eq!(byte, [0x34]);
    device.read_config(u64::MAX, &mut byte);
    assert_eq!(byte, [0]);
    let offered = device.offered_features();
    for bit in [0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 22, 28, 29] {
        assert_ne!(offered & 1 << bit, 0, "{bit}");
    }
    assert_eq!(device.queue_sizes().len(), 7);
    assert_eq!(device.device_type(), 1);
}

#[test]
fn what_does_not_fit_is_refused() {
    let error = Net::new(config(0), Vec::new()).unwrap_err();
    assert!(matches!(error, Error::QueuePairs(0)));
    let error = Net::new(config(9), taps(9).0).unwrap_err();
    assert!(matches!(error, Error::QueuePairs(9)));
    let error = Net::new(config(2), taps(3).0).unwrap_err();
    assert!(matches!(error, Error::Taps { pairs: 2, taps: 3 }));
}

#[test]
fn further_pairs_are_used_once_the_driver_asks() {
    let mut rig = two_pairs();
    rig.arrive(1, &packet(60, 1));
    rig.guest.send(3, 0, &packet(60, 2), &[]);
    rig.run();
    assert_eq!(rig.guest.receive(2), None);
    assert_eq!(rig.leave(1), None);

    assert_eq!(command(&mut rig, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(
        rig.guest.receive(2),
        Some((1, in_buffers(1, &packet(60, 1))))
    );
    assert_eq!(rig.leave(1), Some(packet(60, 2)));
    rig.arrive(0, &packet(60, 3));
    rig.arrive(1, &packet(60, 4));
    rig.run();
    assert!(rig.guest.receive(0).is_some());
    assert!(rig.guest.receive(2).is_some());
    assert_eq!(rig.device().state().driver.unwrap().pairs, 2);

    assert_eq!(command(&mut rig, 4, &[4, 0, 1, 0]), 0);
    rig.arrive(1, &packet(60, 5));
    rig.guest.send(3, 1, &packet(60, 6), &[]);
    rig.run();
    assert_eq!(rig.guest.receive(2), None);
    assert_eq!(rig.leave(1), None);
    // Nothing of the pair is lost, should it be used again.
    assert_eq!(command(&mut rig, 4, &[4, 0, 2, 0]), 0);
    assert_eq!(
        rig.guest.receive(2),
        Some((1, in_buffers(1, &packet(60, 5))))
    );
    assert_eq!(rig.leave(1), Some(packet(60, 6)));
}

#[test]
fn a_driver_without_multiqueue_has_its_control_queue_third() {
    let mut rig = Rig::with(config(2), CONTROL, &[256, 256, 64, 0, 0], false);
    assert_eq!(command(&mut rig, 2, &[4, 0, 1, 0]), 0);
    assert_eq!(command(&mut rig, 2, &[4, 0, 2, 0]), 1);
    rig.guest.send(TX, 0, &packet(60, 2), &[]);
    rig.run();
    assert_eq!(rig.leave(0), Some(packet(60, 2)));
}

#[test]
fn commands_that_make_no_sense_are_refused() {
    let mut rig = two_pairs();
    let commands: [&[u8]; 7] = [
        &[4, 0, 0, 0], // No pairs.
        &[4, 0, 3, 0], // More than there are.
        &[4, 0, 0xff, 0xff],
        &[4, 0, 1],    // Too short.
        &[4, 1, 2, 0], // Unknown.
        &[0, 0, 1],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0], // Not agreed on.
    ];
    for (count, bytes) in (1..).zip(commands) {
        assert_eq!(command(&mut rig, 4, bytes), 1, "{bytes:?}");
        assert_eq!(rig.metrics().refused_commands, count);
    }
    assert_eq!(rig.device().state().driver.unwrap().pairs, 1);
}

#[test]
fn commands_without_end_are_refused() {
    let mut rig = two_pairs();
    let pairs = |rig: &Rig| rig.device().state().driver.unwrap().pairs;
    let start = Instant::now();
    let mut followed = 0;
    for _ in 0..1000 {
        let other = 3 - pairs(&rig);
        followed += u64::from(command(&mut rig, 4, &[4, 0, low(other), 0]) == 0);
    }
    // One was the start of the device.
    let most = 63 + 20 * (start.elapsed().as_secs() + 1);
    assert!(
        (63..=most).contains(&followed),
        "{followed} of 1000, {most} allowed"
    );
    // What changes nothing is no matter.
    let same = low(pairs(&rig));
    for _ in 0..1000 {
        assert_eq!(command(&mut rig, 4, &[4, 0, same, 0]), 0);
    }
}

fn low(pairs: u16) -> u8 {
    pairs.to_le_bytes()[0]
}

#[test]
fn commands_without_a_place_for_the_answer_are_returned() {
    let mut rig = two_pairs();
    let at = rig.guest.rings[4].buffer(0);
    let cases = [
        [(at, 4, 0), (0, 0, 0)],
        [(at, 2, NEXT), (1 << 40, 1, WRITE)],
        [(1 << 40, 2, NEXT), (at, 1, WRITE)],
        [(at, 2, NEXT), (at, 0, WRITE)],
        [(at, 2, NEXT), (at, 2, NEXT)],
    ];
    for (index, descriptors) in (0..).zip(cases) {
        for (number, (address, len, flags)) in (0..).zip(descriptors) {
            // The second, if it has a successor, leads back to the first.
            let next = (number + 1) % 2;
            let descriptor = Descriptor::new(address, len, flags, next);
            rig.guest.put_descriptor(4, number, descriptor);
        }
        rig.guest.make_available(4, 0);
        rig.guest.kick(4);
        rig.run();
        assert_eq!(rig.guest.take_used(4), Some((0, 0)), "{index}");
    }
    assert_eq!(command(&mut rig, 4, &[4, 0, 2, 0]), 0);
}

#[test]
fn offloads_can_be_changed_within_what_was_agreed_on() {
    let features = CONTROL | OFFLOADS | GUEST_CSUM | GUEST_TSO4;
    let mut rig = Rig::new(features);
    let set = |bits: u64| [&[5, 0][..], &bits.to_le_bytes()].concat();
    let current = |rig: &Rig| rig.device().state().driver.unwrap().offloads;
    assert_eq!(current(&rig), GUEST_CSUM | GUEST_TSO4);
    assert_eq!(command(&mut rig, 2, &set(GUEST_CSUM)), 0);
    assert_eq!(current(&rig), GUEST_CSUM);
    assert_eq!(command(&mut rig, 2, &set(GUEST_CSUM | 1 << 8)), 1);
    assert_eq!(command(&mut rig, 2, &set(1 << 63)), 1);
    assert_eq!(current(&rig), GUEST_CSUM);
}

/// A packet that comes now is given to the driver, and nothing before it.
fn assert_passes(rig: &mut Rig, packet: &[u8]) {
    rig.arrive(0, packet);
    rig.run();
    assert_eq!(rig.guest.receive(RX), Some((1, in_buffers(1, packet))));
}

#[test]
fn a_link_that_goes_down_is_told_and_nothing_passes() {
    let mut rig = Rig::new(MERGEABLE);
    rig.guest.give(RX, 0, LINUX);
    let status = |rig: &Rig| {
        let mut bytes = [0; 2];
        rig.device().read_config(6, &mut bytes);
        u16::from_le_bytes(bytes)
    };
    assert_eq!(status(&rig), 1);
    rig.device().set_link(true);
    assert!(!rig.interrupted());
    rig.device().set_link(false);
    assert!(rig.interrupted());
    let pending = rig.guest.interrupt.status().swap(0, Ordering::SeqCst);
    assert_eq!(pending, INTERRUPT_CONFIG_CHANGE);
    assert_eq!(rig.guest.interrupt.generation().load(Ordering::SeqCst), 1);
    assert_eq!(status(&rig), 0);
    rig.run();
    rig.guest.send(TX, 0, &packet(60, 0), &[]);
    rig.arrive(0, &packet(60, 1));
    rig.run();
    assert_eq!(rig.leave(0), None);
    assert_eq!(rig.guest.take_used(TX), Some((0, 0)));
    assert_eq!(rig.guest.receive(RX), None);
    assert_eq!(rig.metrics().tx_dropped, 1);
    assert_eq!(rig.metrics().rx_dropped, 1);
    rig.device().set_link(true);
    rig.run();
    assert_eq!(rig.guest.receive(RX), None, "what is old is not delivered");
    assert_passes(&mut rig, &packet(60, 2));
}

#[test]
fn what_waits_when_a_link_goes_down_is_dropped() {
    let mut rig = Rig::new(MERGEABLE);
    // There is no buffer for the first, and no reason to read the others.
    for number in 0..100 {
        rig.arrive(0, &packet(60, number));
    }
    rig.run();
    rig.device().set_link(false);
    rig.run();
    assert_eq!(rig.metrics().rx_dropped, 100);
    rig.guest.give(RX, 0, LINUX);
    rig.device().set_link(true);
    rig.run();
    assert_eq!(rig.guest.receive(RX), None);
    assert_passes(&mut rig, &packet(60, 100));
}

#[test]
fn a_restored_device_goes_on() {
    let mut rig = two_pairs();
    assert_eq!(command(&mut rig, 4, &[4, 0, 2, 0]), 0);
    rig.device().set_link(false);
    let saved = rig.device().state();
    let json = serde_json::to_string(&saved).unwrap();
    assert_eq!(
        serde_json::from_str::<crate::net::State>(&json).unwrap(),
        saved
    );
    let driver = DriverState {
        pairs: 2,
        offloads: 0,
    };
    assert_eq!(saved.driver, Some(driver));

    let (taps, peers) = taps(2);
    let device = Net::restore(saved.clone(), taps).unwrap();
    // It is saved again before its driver is there.
    assert_eq!(device.state(), saved);
    let sizes = [256, 256, 256, 256, 64];
    let mut rig = Rig::around(device, peers, MULTI | CONTROL | MERGEABLE, &sizes, false);
    assert_eq!(rig.device().state(), saved);
    rig.device().set_link(true);
    rig.guest.send(3, 0, &packet(60, 6), &[]);
    rig.run();
    assert_eq!(rig.leave(1), Some(packet(60, 6)));
    // What it was is forgotten with the driver.
    rig.device().reset();
    assert_eq!(rig.device().state().driver, None);
}
