//! The memory device: virtio-v1.3 §5.15.
//!
//! It has a region of guest addresses behind which there is memory only where the driver has plugged it
//! in, block by block, and how much that may be is for the host to say. The region is far larger than
//! what is in it at first, and costs nothing there.
//!
//! ```text
//!   addr                    addr + usable                         addr + region_size
//!    │ plugged │ unplugged │ │                                      │
//!    ├─────────┼───────────┼─┤      no memory behind it             │
//!              plugged ─▶ requested ─▶ (whole sections)
//! ```
//!
//! The host raises `requested_size` ([`Mem::request`]) once it has put memory behind `usable_region_size`;
//! the driver is told by a configuration change and plugs blocks by requests in its one queue. It gets no
//! more than was requested. What it gives back is taken out of the memory file.
//!
//! A driver that reaches for memory in the usable part that it has not plugged gets it, and uses up what the
//! host has granted by a section at most: the host counts the usable part, not the plugged one.

mod blocks;
mod device;
mod metrics;
mod request;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};

pub use self::device::Mem;
pub use self::metrics::Metrics;
#[doc(hidden)]
pub use self::request::{REQUEST_LEN, RESPONSE_LEN};

/// The size of a block in bytes: what a driver plugs and gives back. That of a huge page, so that none is
/// torn.
pub const BLOCK: u64 = 2 << 20;
/// The largest region, in bytes.
pub const MAX_REGION: u64 = 1 << 40;

/// The system calls that the device needs, to be made as well, beyond memory allocation and the clock.
pub const SYSCALLS: &[libc::c_long] = &[
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fallocate,
    libc::SYS_read,
    libc::SYS_write,
];

/// A memory device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the region begins, a multiple of `section`.
    pub addr: u64,
    /// Its size in bytes, a multiple of `section`, at most [`MAX_REGION`].
    pub region_size: u64,
    /// What the usable part is made of: the size in bytes of the sections in which the guest's kernel takes
    /// memory, a multiple of [`BLOCK`].
    pub section: u64,
}

/// What outlives the device beside its queue, which the transport's state holds. The memory is the
/// owner's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The device.
    pub config: Config,
    /// How much the driver is asked to have plugged, in bytes.
    pub requested_size: u64,
    /// The plugged blocks: runs of them, each with its first block and its length, in order.
    pub plugged: Vec<(u64, u64)>,
}

/// Why the device cannot be made, or cannot have so much memory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not hold.
    #[error("mem: {0}")]
    Config(&'static str),
    /// More was requested than the region can hold, or less than before.
    #[error("mem: {got} bytes requested, {least} to {most} possible")]
    Request {
        /// What was requested.
        got: u64,
        /// What is requested already.
        least: u64,
        /// What the region can hold.
        most: u64,
    },
    /// A saved state that no device has had.
    #[error("mem: the saved blocks do not fit the region")]
    State,
    /// The process is out of descriptors.
    #[error("mem: cannot make event descriptors")]
    Events(#[source] io::Error),
}

impl Config {
    fn validate(&self) -> Result<(), Error> {
        let Self {
            addr,
            region_size,
            section,
        } = *self;
        if section == 0 || !section.is_multiple_of(BLOCK) {
            return Err(Error::Config("section: must be whole blocks"));
        }
        if !addr.is_multiple_of(section) || addr.checked_add(MAX_REGION).is_none() {
            return Err(Error::Config("addr: must be at the start of a section"));
        }
        let is_whole = region_size != 0 && region_size.is_multiple_of(section);
        if !is_whole || region_size > MAX_REGION {
            return Err(Error::Config("region_size: must be whole sections"));
        }
        Ok(())
    }

    /// The size in bytes of the part of the region that has to have memory behind it before `requested`
    /// bytes are requested.
    #[must_use]
    pub fn usable(&self, requested: u64) -> u64 {
        requested
            .checked_next_multiple_of(self.section)
            .unwrap_or(u64::MAX)
            .min(self.region_size)
    }
}
