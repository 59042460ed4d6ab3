//! The network device: virtio-v1.3 §5.1.
//!
//! Packets are Ethernet frames behind a header of [`HEADER_LEN`] bytes, which tells the other side what
//! is left to do on a frame: a checksum to fill in, a large segment to cut. The host's side is a
//! tap interface whose descriptors somebody else has opened. The kernel behind it speaks the same
//! header, so that a packet passes here without being looked at, and without being copied where it
//! can be avoided: the kernel reads and writes guest memory itself.
//!
//! ```text
//!   receiveq1 ◀──┐                                   ┌── transmitq1
//!                ├── pair 1 ── descriptor 1 ─────────┤
//!   receiveq2 ◀──┤                                   ├── transmitq2
//!                ├── pair 2 ── descriptor 2 ─────────┤        one tap
//!   …            ┘                                   └──
//!   controlq: how many pairs are in use, which offloads the guest takes
//! ```
//!
//! - `rx` gives packets to the guest. A packet that is larger than expected ends in a buffer of the
//!   device's own and is copied from there, so that no packet is lost for want of room.
//! - `tx` takes packets from the guest. A tap that is full makes them wait.
//! - `control` parses and answers commands.
//! - `vhost` is the kernel, where it does the work of `rx` and `tx`.
//! - `session` is what exists while a driver uses the device; `device` is the rest.
//!
//! What the kernel does not move is moved on the event thread. A turn is bounded, then others have theirs.

mod control;
mod device;
mod metrics;
mod offload;
mod rate;
mod ring;
mod rx;
mod session;
mod tap;
mod tx;
mod vhost;

#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

pub use device::Net;
pub use metrics::Metrics;
pub use tap::{Tap, TapError};
pub use vhost::{Vhost, VhostError};

/// virtio-v1.3 §5.1.6: the length of the header with VIRTIO_F_VERSION_1.
pub const HEADER_LEN: usize = 12;
/// virtio-v1.3 §5.1.2: the most pairs that this device offers.
pub const MAX_QUEUE_PAIRS: u8 = 8;

/// The longest frame: a packet of IP's greatest length behind an Ethernet header with two VLAN tags.
const MAX_FRAME: usize = 65_535 + 14 + 2 * 4;
/// The longest packet.
const MAX_PACKET: usize = HEADER_LEN + MAX_FRAME;

/// The operations on descriptors that a running device needs, beside FIONBIO when it is made: on taps, and where the kernel moves
/// the packets. None of them needs a privilege on what somebody has set up.
pub const IOCTLS: &[&[u32]] = &[tap::IOCTLS, vhost::IOCTLS];

/// The system calls that the device needs, beyond memory allocation and the clock. Since it can be
/// made while the process is confined already, those that make it are here too. `ioctl` is needed
/// for [`IOCTLS`].
pub const SYSCALLS: &[libc::c_long] = &[
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_readv,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
    libc::SYS_writev,
];

/// What a network device is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The address that the guest uses.
    pub mac: [u8; 6],
    /// The largest MTU that the guest may use, if it is to be told one.
    pub mtu: Option<u16>,
    /// Queue pairs, 1 to [`MAX_QUEUE_PAIRS`].
    pub queue_pairs: u8,
    /// How fast the guest may receive, over all queues.
    pub rx_limit: Option<RateLimit>,
    /// How fast the guest may send, over all queues.
    pub tx_limit: Option<RateLimit>,
}

/// How much may pass. A packet passes if anything is left, and takes what it has from what is left
/// then, so that no packet is too large to pass at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// Bytes of frames a second.
    pub bytes_per_second: u64,
    /// Bytes that may pass at once after a quiet time.
    pub burst: u64,
}

/// The device in a form that can be stored. Its queues are in the transport's state. A packet that
/// waits for a buffer of the guest is not: it is lost, as packets may be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// What the device was made of.
    pub config: Config,
    /// Whether the guest is told that the link is up.
    pub link_up: bool,
    /// What the driver has commanded, if there is one.
    pub driver: Option<DriverState>,
}

/// What a driver has commanded over the control queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriverState {
    /// The pairs in use.
    pub pairs: u16,
    /// The offloads of packets to the guest, as feature bits.
    pub offloads: u64,
}

/// Why a network device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of pairs is out of range.
    #[error("net: {0} queue pairs, 1 to {MAX_QUEUE_PAIRS} possible")]
    QueuePairs(u8),
    /// There is not one descriptor a pair.
    #[error("net: {pairs} queue pairs, {taps} taps")]
    Taps {
        /// Pairs configured.
        pairs: u8,
        /// Descriptors given.
        taps: usize,
    },
    /// There is not one descriptor of vhost-net a pair, nor none.
    #[error("net: {pairs} queue pairs, {vhosts} descriptors of vhost-net")]
    Vhosts {
        /// Pairs configured.
        pairs: u8,
        /// Descriptors given.
        vhosts: usize,
    },
    /// The kernel cannot keep to a rate.
    #[error("net: a rate limit and vhost-net exclude each other")]
    Limits,
    /// The descriptors belong to different interfaces.
    #[error("net: the taps are not of one interface")]
    Interfaces,
    /// A tap cannot be used.
    #[error("net: tap {index}")]
    Tap {
        /// Which of the descriptors, from 0 on.
        index: usize,
        /// Why not.
        #[source]
        source: TapError,
    },
    /// The process is out of descriptors.
    #[error("net: cannot make an epoll set and its events")]
    Events(#[source] io::Error),
}
