//! Connections to the namespace's own addresses, which are meant for the guest.
//!
//! Kubernetes forwards a port by dialling `localhost` in the sandbox's namespace, and a person does
//! it with `nsenter`. Nothing listens there but the socket here, to which a small program
//! (Documentation/bpf/prog_sk_lookup.rst) leads every TCP connection to an address of the namespace,
//! whatever its port; the socket's own address then says which port was dialled. There is no rule in
//! a table of the namespace, and all of it goes away with the descriptors.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::{Namespace, NetworkError};
use crate::sys::bpf::{self, Instruction};

/// linux/bpf.h.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;
const SK_PASS: i32 = 1;
/// Where `struct bpf_sk_lookup` has the protocol, and the local IPv4 address, which is 0 for IPv6.
const PROTOCOL_AT: i16 = 12;
const LOCAL_IP4_AT: i16 = 40;
/// 127.0.0.1 in network byte order, as a number of this machine.
const LOCALHOST: i32 = i32::from_ne_bytes(Ipv4Addr::LOCALHOST.octets());

/// Takes the connections. Dropping it leaves the namespace as it was.
#[derive(Debug)]
pub(crate) struct ForwardListener {
    listener: tokio::net::TcpListener,
    _link: OwnedFd,
}

/// A connection and what it was made to.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) stream: tokio::net::TcpStream,
    pub(crate) port: u16,
    pub(crate) ipv6: bool,
}

impl ForwardListener {
    /// Takes the connections of a namespace. To be called within a runtime.
    pub(crate) fn new(namespace: &Namespace) -> Result<Self, NetworkError> {
        let error = |step| move |source| NetworkError::Forward { step, source };
        let listener = namespace.within(listen)?.map_err(error("listen"))?;
        let map = bpf::socket_map().map_err(error("make a map of sockets"))?;
        bpf::put_socket(&map, listener.as_fd()).map_err(error("fill the map of sockets"))?;
        let program = bpf::load_socket_lookup(&program(map.as_fd()));
        let program = program.map_err(error("load a program"))?;
        let link = bpf::link_socket_lookup(&program, namespace.as_fd());
        let link = link.map_err(error("attach a program"))?;
        listener
            .set_nonblocking(true)
            .map_err(error("listen without waiting"))?;
        Ok(Self {
            listener: tokio::net::TcpListener::from_std(listener).map_err(error("wait"))?,
            _link: link,
        })
    }

    /// Takes the next one.
    pub(crate) async fn accept(&self) -> io::Result<Forwarded> {
        let (stream, _) = self.listener.accept().await?;
        let address = stream.local_addr()?;
        let ipv6 = match address.ip() {
            IpAddr::V4(_) => false,
            IpAddr::V6(address) => address.to_ipv4_mapped().is_none(),
        };
        Ok(Forwarded {
            port: address.port(),
            ipv6,
            stream,
        })
    }
}

fn listen() -> io::Result<TcpListener> {
    // Of both families, unless the system has only one.
    TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)))
        .or_else(|_| TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))))
}

/// If it is TCP and there is a socket in the map, that is the one. The other addresses of 127.0.0.0/8
/// are left alone: a caller may have a service of its own there, as Docker's name server is.
fn program(map: BorrowedFd<'_>) -> Vec<Instruction> {
    let map = map.as_raw_fd();
    // Code, destination, source, offset, number.
    [
        (0xbf, 6, 1, 0, 0),                  // r6 = r1: the context
        (0x61, 2, 1, PROTOCOL_AT, 0),        // r2 = protocol
        (0x55, 2, 0, 18, libc::IPPROTO_TCP), // if r2 != TCP: pass
        (0x61, 2, 1, LOCAL_IP4_AT, 0),       // r2 = local address
        (0x15, 2, 0, 2, LOCALHOST),          // if r2 != 127.0.0.1:
        (0x57, 2, 0, 0, 0xff),               //   r2 = its first byte
        (0x15, 2, 0, 14, 127),               //   if r2 == 127: pass
        (0x62, 10, 0, -4, 0),                // key = 0
        (0xbf, 2, 10, 0, 0),                 // r2 = stack
        (0x07, 2, 0, 0, -4),                 // r2 = &key
        (0x18, 1, 1, 0, map),                // r1 = map
        (0x00, 0, 0, 0, 0),                  //
        (0x85, 0, 0, 0, MAP_LOOKUP_ELEM),    // r0 = lookup(r1, r2)
        (0x15, 0, 0, 7, 0),                  // if r0 == 0: pass
        (0xbf, 7, 0, 0, 0),                  // r7 = r0: the socket
        (0xbf, 1, 6, 0, 0),                  // r1 = context
        (0xbf, 2, 7, 0, 0),                  // r2 = socket
        (0xb7, 3, 0, 0, 0),                  // r3 = 0
        (0x85, 0, 0, 0, SK_ASSIGN),          // assign(r1, r2, r3)
        (0xbf, 1, 7, 0, 0),                  // r1 = socket
        (0x85, 0, 0, 0, SK_RELEASE),         // release(r1)
        (0xb7, 0, 0, 0, SK_PASS),            // pass: r0 = SK_PASS
        (0x95, 0, 0, 0, 0),                  // return r0
    ]
    .map(|(code, destination, source, offset, number)| {
        Instruction::new(code, destination, source, offset, number)
    })
    .to_vec()
}
