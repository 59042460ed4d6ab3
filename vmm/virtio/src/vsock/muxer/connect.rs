//! How streams begin, from either side.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use vmm_sys_util::epoll::EventSet;

use super::{
    BUF_ALLOC, FIRST_HOST_PORT, LARGE_CONNECTIONS, LAST_HOST_PORT, MAX_ACCEPTS, MAX_CONNECTIONS,
    Muxer, SMALL_BUF_ALLOC,
};
use crate::vsock::connection::{Connection, Key};
use crate::vsock::packet::Header;
use crate::vsock::poll::Token;
use crate::vsock::unix::{HostStream, Line, read_line};
use crate::warn_guest;

impl Muxer {
    /// Accepts host processes. Returns whether more may be waiting.
    pub(in crate::vsock) fn accept(&mut self) -> bool {
        for _ in 0..MAX_ACCEPTS {
            if !self.acceptable {
                return false;
            }
            match self.listener.accept() {
                Ok((socket, _)) => self.start_handshake(socket),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.acceptable = false,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => {
                    // Out of descriptors or memory. It is tried again at the next occasion.
                    self.metrics.accept_errors += 1;
                    warn_guest!("vsock: cannot accept a host process: {error}");
                    return false;
                }
            }
        }
        true
    }

    fn start_handshake(&mut self, socket: UnixStream) {
        let number = self.handshakes.number();
        if let Err(error) = HostStream::watch(&self.poller, &socket, Token::Handshake(number)) {
            self.metrics.failed_handshakes += 1;
            log::error!("vsock: cannot watch a host process: {error}");
            return;
        }
        // The line is often there already; then there is no need to make room for a wait.
        match read_line(&socket) {
            Line::Connect(port) => self.host_connect(socket, port),
            Line::Incomplete => {
                if self.handshakes.insert(number, socket) {
                    self.metrics.failed_handshakes += 1;
                }
            }
            Line::Invalid => self.metrics.failed_handshakes += 1,
        }
    }

    pub(super) fn continue_handshake(&mut self, number: u32, events: EventSet) {
        let Some(socket) = self.handshakes.get(number) else {
            return;
        };
        let ended = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
        let line = match read_line(socket) {
            Line::Incomplete if events.intersects(ended) => Line::Invalid,
            line => line,
        };
        if line == Line::Incomplete {
            return;
        }
        let Some(socket) = self.handshakes.remove(number) else {
            return;
        };
        match line {
            Line::Connect(port) => self.host_connect(socket, port),
            _ => self.metrics.failed_handshakes += 1,
        }
    }

    fn host_connect(&mut self, socket: UnixStream, guest_port: u32) {
        if self.streams.len() >= MAX_CONNECTIONS {
            self.metrics.failed_handshakes += 1;
            log::warn!("vsock: no room for a stream to guest port {guest_port}");
            return;
        }
        let key = Key {
            host_port: self.allocate_host_port(),
            guest_port,
        };
        let token = Token::Stream(key);
        if let Err(error) = HostStream::rename(&self.poller, &socket, token) {
            self.metrics.failed_handshakes += 1;
            log::error!("vsock: cannot watch a stream to guest port {guest_port}: {error}");
            return;
        }
        self.metrics.host_connects += 1;
        let connection = Connection::from_host(self.buf_alloc());
        self.insert(key, connection, HostStream::watched(socket, token));
    }

    /// A port that no stream uses and the guest cannot ask for. There are far more than streams.
    fn allocate_host_port(&mut self) -> u32 {
        loop {
            let port = self.next_host_port;
            self.next_host_port = match port {
                FIRST_HOST_PORT..LAST_HOST_PORT => port + 1,
                _ => FIRST_HOST_PORT,
            };
            let used = self.streams.keys().any(|key| key.host_port == port);
            if !used && !self.host_ports.contains(&port) {
                return port;
            }
        }
    }

    pub(super) fn guest_connect(&mut self, key: Key, header: &Header) {
        if !self.host_ports.contains(&key.host_port) || self.streams.len() >= MAX_CONNECTIONS {
            self.metrics.refused_connects += 1;
            return self.reset(key, header);
        }
        if !self.connects.take(Instant::now()) {
            self.metrics.throttled_connects += 1;
            return self.reset(key, header);
        }
        let socket = match self.connector.connect(key.host_port) {
            Ok(socket) => socket,
            Err(error) => {
                self.metrics.refused_connects += 1;
                warn_guest!("vsock: {error}");
                return self.reset(key, header);
            }
        };
        let token = Token::Stream(key);
        if let Err(error) = HostStream::watch(&self.poller, &socket, token) {
            self.metrics.refused_connects += 1;
            log::error!("vsock: cannot watch a stream of the guest: {error}");
            return self.reset(key, header);
        }
        self.metrics.guest_connects += 1;
        let connection = Connection::from_guest(self.buf_alloc(), header);
        self.insert(key, connection, HostStream::watched(socket, token));
    }

    fn buf_alloc(&self) -> u32 {
        if self.streams.len() < LARGE_CONNECTIONS {
            BUF_ALLOC
        } else {
            SMALL_BUF_ALLOC
        }
    }
}
