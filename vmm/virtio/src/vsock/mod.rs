//! The socket device: virtio-v1.3 §5.10, with AF_UNIX sockets on the host.
//!
//! # The protocol in short
//! Guest and host exchange packets: a header of 44 bytes, and for RW the bytes of a stream. The
//! guest's packets come in the *tx* queue, those for it fill buffers of the *rx* queue, and the
//! *event* queue tells it, after a restore, that all its streams are gone. A stream is named by two
//! ports, one on the host and one in the guest.
//!
//! ```text
//!   REQUEST ──▶          asks for a stream          ◀── RESPONSE grants it, RST refuses it
//!   RW, CREDIT_UPDATE, CREDIT_REQUEST               move bytes and say how many may follow
//!   SHUTDOWN             ends one direction or both RST confirms, or ends a stream at once
//! ```
//!
//! # The host's side
//! * A host process connects to the listening socket, writes `CONNECT <guest port>\n`, and reads
//!   `OK <host port>\n` once the guest has accepted; from then on, and already behind its line, it
//!   reads and writes the stream. If the guest does not accept, the socket is closed.
//! * A guest process that connects to one of [`Config::host_ports`] gets the stream that the
//!   [`Connector`] makes. Any other port is refused.
//!
//! Either end closes its directions one by one with `shutdown(2)`.
//!
//! # How it is made
//! ```text
//!   device        the VirtioDevice: activation, reset, configuration
//!   event_handler the event thread's side
//!   session       the virtqueues of a driver: packets in and out, notifications
//!   muxer         which packet is for which stream, and which stream is served next
//!   stream        a connection and its socket
//!   connection    the state of a stream; knows no socket
//!   unix          a socket; knows no virtqueue
//!   chain, packet, credit, iovec, poll, handshake, rate
//! ```
//! Bytes go from the guest's buffers to a socket and back without a stop in between. Only what a
//! host process does not take at once is kept, and a socket is only read when the guest has given
//! credit and buffers.
//!
//! # The guest is hostile
//! Whatever it does: streams, bytes held per stream, waiting handshakes, waiting resets, streams
//! asked for per second and work per wake-up all have limits (the constants here). A packet
//! that breaks the protocol ends its stream, a chain that holds no packet is dropped, a broken
//! queue stops the device until it is reset, and each is counted in [`Metrics`].
//!
//! Threads: the device is behind a mutex. The vCPU threads activate and reset it, and only signal
//! an event and close descriptors while doing so; all else happens on the event thread.

mod chain;
mod connection;
mod credit;
mod device;
mod event_handler;
mod handshake;
mod iovec;
mod metrics;
mod muxer;
mod packet;
mod poll;
mod rate;
mod session;
mod state;
mod stream;
mod unix;

#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;

pub use device::Vsock;
pub use handshake::MAX_HANDSHAKES;
pub use metrics::Metrics;
pub use muxer::{
    BUF_ALLOC, CONNECT_BURST, CONNECT_RATE, LARGE_CONNECTIONS, MAX_CONNECTIONS, SMALL_BUF_ALLOC,
};
pub use state::State;

/// virtio-v1.3 §5.10.6.2: the first context id that a guest may have.
const FIRST_GUEST_CID: u32 = 3;

/// The system calls that the device needs once it has been made, beyond memory allocation, the
/// clock and what a [`Connector`] needs.
///
/// The vCPU threads, which activate and reset it, need `write` and `close` of these.
pub const SYSCALLS: &[libc::c_long] = &[
    libc::SYS_accept4,
    libc::SYS_close,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_write,
];

/// What a socket device is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The guest's context id, at least 3.
    pub guest_cid: u32,
    /// The host ports that a guest process may connect to.
    pub host_ports: Vec<u32>,
}

impl Config {
    fn validate(&self) -> Result<(), Error> {
        if self.guest_cid < FIRST_GUEST_CID || self.guest_cid == u32::MAX {
            return Err(Error::GuestCid(self.guest_cid));
        }
        if self.host_ports.contains(&poll::NO_PORT) {
            return Err(Error::HostPort(poll::NO_PORT));
        }
        Ok(())
    }
}

/// Makes the host's end of streams that the guest asks for.
pub trait Connector {
    /// A guest process connects to `port`, which is one of [`Config::host_ports`]. Returns the
    /// device's end of a new stream, whose other end somebody on the host has. Called on the event
    /// thread; must not wait.
    ///
    /// # Errors
    /// The guest's connection is refused with a reset.
    fn connect(&mut self, port: u32) -> Result<UnixStream, ConnectorError>;
}

/// Why a stream of the guest has no host end.
#[derive(Debug, thiserror::Error)]
pub enum ConnectorError {
    /// Nobody on the host wants it.
    #[error("host port {port}: refused")]
    Refused {
        /// The port that the guest asked for.
        port: u32,
    },
    /// Making the stream or passing its other end on failed.
    #[error("host port {port}: cannot make a stream: {source}")]
    Stream {
        /// The port that the guest asked for.
        port: u32,
        /// What failed.
        source: io::Error,
    },
}

/// Why a socket device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The context id is reserved.
    #[error("vsock: guest_cid {0} is reserved")]
    GuestCid(u32),
    /// The port is reserved.
    #[error("vsock: host port {0} is reserved")]
    HostPort(u32),
    /// The process is out of descriptors.
    #[error("vsock: cannot make an epoll set and its events")]
    Events(#[source] io::Error),
    /// The listening socket cannot be used.
    #[error("vsock: cannot use the listening socket")]
    Listener(#[source] io::Error),
}
