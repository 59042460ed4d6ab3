//! The contract between a `cloister-vmm` process and whoever runs it.
//!
//! A VMM process is started with one end of a `SOCK_SEQPACKET` socket pair as file descriptor
//! [`CONTROL_FD`] and nothing else. Its owner sends [`Request`]s and receives [`Event`]s over that
//! socket, one JSON document a packet; file descriptors travel beside a packet as `SCM_RIGHTS`.
//! The first packet is always [`Request::Boot`], which carries the whole [`VmConfig`] and every
//! descriptor the VM needs: the process itself opens nothing.
//!
//! ```text
//!   owner                                   cloister-vmm
//!     │ Boot{config, fds: [Kvm, Kernel, …]}      │
//!     │─────────────────────────────────────────▶│  creates the VM, jails itself, runs it
//!     │                      Booted{timeline}    │
//!     │◀─────────────────────────────────────────│
//!     │      GuestConnect{port} + stream fd      │  a guest process connected to the host
//!     │◀─────────────────────────────────────────│
//!     │ Pause / Resume / AttachNet + taps / …    │
//!     │─────────────────────────────────────────▶│  answered by an event each
//!     │ Stop                                     │
//!     │─────────────────────────────────────────▶│
//!     │                 Exited{reason,timeline}  │
//!     │◀─────────────────────────────────────────│  then the process exits
//! ```
//!
//! Liveness is the socket itself: when the owner goes away the VMM reads end-of-file and stops, and
//! an owner that reads end-of-file without an [`Event::Exited`] knows that the process was killed.
//!
//! The VMM is the untrusted side. [`Channel::recv`] bounds what it accepts: a packet of at most
//! [`MAX_PACKET`] bytes with at most [`MAX_FDS`] descriptors; surplus descriptors are closed.
#![forbid(unsafe_code)]

mod channel;
mod config;
pub mod fs;
mod message;
mod net;

pub use channel::{Channel, ChannelError};
pub use config::{
    ConfigError, FsConfig, JailConfig, MAX_MEMORY_MIB, MAX_VCPUS, VmConfig, VsockConfig,
};
pub use message::{Check, CheckReport, Event, ExitReason, FdRole, NetCounters, Request, Timeline};
pub use net::{MAX_QUEUE_PAIRS, NET_PLATFORM_ID, NET_SLOTS, NetConfig, NetConfigError, RateLimit};

/// The version of this contract. Both sides come from one build; a mismatch is a broken install
/// and is refused by [`VmConfig::validate`].
pub const API_VERSION: u32 = 1;

/// The descriptor number at which a VMM process finds its control socket.
pub const CONTROL_FD: i32 = 3;

/// What stands for N in `virtio-mmio.N`, the name of the memory device in a Linux guest.
pub const MEM_PLATFORM_ID: u8 = 3;

/// The largest packet either side sends or accepts, in bytes.
pub const MAX_PACKET: usize = 64 * 1024;

/// The most descriptors one packet may carry: the kernel's own limit (`SCM_MAX_FD`), since a file
/// server gets one for everything it shares.
pub const MAX_FDS: usize = 253;
