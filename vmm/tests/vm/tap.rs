//! Tap interfaces of the host, and frames through them.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::harness::PATIENCE;

const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// IEEE 802 local experimental EtherType 1.
const KIND: [u8; 2] = [0x88, 0xb5];

/// A tap whose descriptors are to be given away, and the host's end of it.
pub(crate) struct TapInterface {
    name: String,
    queues: Vec<OwnedFd>,
    /// Sends and receives frames of [`KIND`] on the interface.
    socket: OwnedFd,
}

/// `struct ifreq`.
fn request(name: &str, value: u16) -> [u8; 40] {
    let mut request = [0; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&value.to_ne_bytes());
    request
}

fn ioctl(fd: &impl AsRawFd, number: libc::c_ulong, request: &mut [u8; 40]) {
    // SAFETY: every operation used here reads and writes a `struct ifreq`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, request.as_mut_ptr()) };
    assert!(result >= 0, "{number:#x}: {}", io::Error::last_os_error());
}

impl TapInterface {
    /// An interface with this many queues, up.
    pub(crate) fn new(queues: u8) -> Self {
        let mut flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if queues > 1 {
            flags |= IFF_MULTI_QUEUE;
        }
        let mut name = String::from("cltest%d");
        let queues = (0..queues)
            .map(|_| {
                let file = File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/net/tun")
                    .unwrap();
                let mut request = request(&name, flags);
                ioctl(&file, TUNSETIFF, &mut request);
                let end = request.iter().position(|byte| *byte == 0).unwrap();
                name = String::from_utf8(request[..end].to_vec()).unwrap();
                file.into()
            })
            .collect();

        let protocol = libc::c_int::from(u16::from_ne_bytes(KIND));
        // SAFETY: takes numbers only.
        let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: it was just made and belongs to nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(socket) };
        let up = u16::try_from(libc::IFF_UP).unwrap();
        ioctl(&socket, libc::SIOCSIFFLAGS, &mut request(&name, up));
        let mut index = request(&name, 0);
        ioctl(&socket, libc::SIOCGIFINDEX, &mut index);
        let address = libc::sockaddr_ll {
            sll_family: u16::try_from(libc::AF_PACKET).unwrap(),
            sll_protocol: u16::from_ne_bytes(KIND),
            sll_ifindex: i32::from_ne_bytes(index[16..20].try_into().unwrap()),
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = u32::try_from(size_of_val(&address)).unwrap();
        // SAFETY: `address` is a `struct sockaddr_ll` of that length.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        assert_eq!(bound, 0, "{}", io::Error::last_os_error());
        Self {
            name,
            queues,
            socket,
        }
    }

    /// The size of its send buffer.
    pub(crate) fn send_buffer(&self) -> i32 {
        const TUNGETSNDBUF: libc::c_ulong = 0x8004_54d3;
        let mut size: libc::c_int = 0;
        // SAFETY: the kernel writes an int.
        let result =
            unsafe { libc::ioctl(self.queues[0].as_raw_fd(), TUNGETSNDBUF, &raw mut size) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        size
    }

    pub(crate) fn queues(&self) -> Vec<BorrowedFd<'_>> {
        self.queues.iter().map(AsFd::as_fd).collect()
    }

    /// Gives the descriptors away.
    pub(crate) fn take_queues(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.queues)
    }

    /// Gives the descriptors up: the interface exists for as long as another process has them.
    pub(crate) fn close(&mut self) {
        self.queues.clear();
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/sys/class/net").join(&self.name)
    }

    pub(crate) fn exists(&self) -> bool {
        self.path().exists()
    }

    /// How many queues the interface uses.
    pub(crate) fn in_use(&self) -> usize {
        let entries = std::fs::read_dir(self.path().join("queues")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("rx-"))
            .count()
    }

    /// The text of the next frame from the guest, if there is one in time.
    pub(crate) fn receive(&self) -> Option<String> {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).unwrap();
        if poll(&mut fds, Some(&patience)).unwrap() == 0 {
            return None;
        }
        let mut frame = [0; 2048];
        let (length, _) =
            rustix::net::recv(&self.socket, &mut frame, rustix::net::RecvFlags::empty()).unwrap();
        Some(String::from_utf8_lossy(&frame[14..length]).into_owned())
    }

    /// Whether there is a frame from the guest within `time`.
    pub(crate) fn is_silent(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::try_from(time).unwrap())).unwrap() == 0
    }

    /// Sends a frame with this text to every station.
    pub(crate) fn send(&self, text: &str) {
        self.send_as(KIND, text);
    }

    /// Sends frames that nobody listens to until the guest has got so many.
    pub(crate) fn flood(&self, count: u64) {
        let passed = || -> u64 {
            let path = self.path().join("statistics/tx_packets");
            let text = std::fs::read_to_string(path).unwrap();
            text.trim().parse().unwrap()
        };
        let (start, before) = (Instant::now(), passed());
        while passed() < before + count {
            assert!(start.elapsed() < PATIENCE, "the guest takes no frames");
            // IEEE 802 local experimental EtherType 2.
            (0..50).for_each(|_| self.send_as([0x88, 0xb6], ""));
            std::thread::yield_now();
        }
    }

    fn send_as(&self, kind: [u8; 2], text: &str) {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 9]);
        frame.extend(kind);
        frame.extend(text.bytes());
        frame.resize(frame.len().max(60), b' ');
        rustix::net::send(&self.socket, &frame, rustix::net::SendFlags::empty()).unwrap();
    }
}
