//! The host's end of a stream: an AF_UNIX socket and what it has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, send, sendmsg};
use vmm_sys_util::epoll::EventSet;

use super::chain::Payload;
use super::iovec::IoVecs;
use super::poll::{Poller, Token};

/// The most bytes that are read from a socket at once.
pub(super) const MAX_READ: usize = 64 * 1024;
/// The least room that a read is given.
const MIN_READ: usize = 4 * 1024;
/// The longest first line: `CONNECT ` and ten digits fit easily.
pub(super) const MAX_LINE: usize = 32;

/// A socket to a host process.
#[derive(Debug)]
pub(super) struct HostStream {
    socket: UnixStream,
    token: Token,
    /// There may be bytes to read, or the end of the stream.
    readable: bool,
    /// The host process sends no more; there may still be bytes before that end.
    ended: bool,
    /// Both directions are closed.
    hung_up: bool,
    /// The socket is watched for space.
    watched_for_space: bool,
    /// What the socket had no space for.
    unsent: VecDeque<u8>,
    /// How much room the next read is worth: twice what the last one brought, since giving room
    /// that is not needed costs a look at the guest's buffers.
    read_size: usize,
    read_shut: bool,
    write_shut: bool,
}

/// What a read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// Bytes, at least one.
    Bytes(usize),
    /// Nothing, for now.
    Nothing,
    /// The stream has ended.
    End,
}

impl HostStream {
    const EVENTS: EventSet = EventSet::IN.union(EventSet::READ_HANG_UP);

    /// A socket that is watched already, under `token`.
    pub(super) fn watched(socket: UnixStream, token: Token) -> Self {
        Self {
            socket,
            token,
            readable: false,
            ended: false,
            hung_up: false,
            watched_for_space: false,
            unsent: VecDeque::new(),
            read_size: MIN_READ,
            read_shut: false,
            write_shut: false,
        }
    }

    /// Watches `socket`, as `token`.
    pub(super) fn watch(poller: &Poller, socket: &UnixStream, token: Token) -> io::Result<()> {
        poller.add(socket, token, Self::EVENTS)
    }

    /// Watches `socket` as `token` from now on.
    pub(super) fn rename(poller: &Poller, socket: &UnixStream, token: Token) -> io::Result<()> {
        poller.modify(socket, token, Self::EVENTS)
    }

    /// Remembers what an event said. True, if there may be space for unsent bytes.
    pub(super) fn note(&mut self, events: EventSet) -> bool {
        let both = EventSet::HANG_UP | EventSet::ERROR;
        self.readable |= events.intersects(Self::EVENTS | both);
        self.ended |= events.intersects(EventSet::READ_HANG_UP | both);
        self.hung_up |= events.intersects(both);
        events.contains(EventSet::OUT)
    }

    pub(super) fn is_readable(&self) -> bool {
        self.readable && !self.read_shut
    }

    pub(super) fn has_hung_up(&self) -> bool {
        self.hung_up
    }

    /// Whether the socket has taken everything.
    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    pub(super) fn read_size(&self) -> usize {
        self.read_size
    }

    /// Reads into `room`, which is not empty.
    pub(super) fn read(&mut self, room: IoVecs<'_>) -> io::Result<Read> {
        let size = room.bytes();
        match room.receive(&self.socket) {
            Ok(received) if received.bytes == 0 => {
                self.readable = false;
                Ok(Read::End)
            }
            Ok(received) => {
                // Less than there was room for means that the socket is empty, but for a boundary;
                // what comes next is an event of its own. An end that came before is not.
                if received.bytes < size && !received.cut && !self.ended {
                    self.readable = false;
                }
                self.read_size = (received.bytes * 2).clamp(MIN_READ, MAX_READ);
                Ok(Read::Bytes(received.bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                Ok(Read::Nothing)
            }
            Err(error) => {
                self.readable = false;
                Err(error)
            }
        }
    }

    /// Hands a packet's payload to the socket and keeps the rest. Returns how many bytes the socket
    /// took. The caller has seen to it that what is kept stays within `limit` bytes.
    pub(super) fn send(
        &mut self,
        poller: &Poller,
        payload: Payload<'_, '_>,
        limit: usize,
    ) -> io::Result<u32> {
        let len = payload.len() as usize;
        let mut sent = 0;
        while self.unsent.is_empty() && sent < len {
            let mut pieces = IoVecs::new();
            let size = pieces.extend(payload.from(sent));
            match pieces.send(&self.socket) {
                Ok(count) => {
                    sent += count;
                    if count < size {
                        break;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if sent < len {
            // Whatever fails here fails before anything is kept.
            self.watch_for_space(poller, true)?;
            self.keep(payload, sent, limit);
        }
        Ok(u32::try_from(sent).unwrap_or(u32::MAX))
    }

    fn keep(&mut self, payload: Payload<'_, '_>, offset: usize, limit: usize) {
        if self.unsent.capacity() == 0 {
            self.unsent.reserve_exact(limit);
        }
        let mut copy = [0; 4096];
        for segment in payload.from(offset) {
            let mut start = 0;
            while let Ok(rest) = segment.offset(start)
                && !rest.is_empty()
            {
                let count = rest.copy_to(&mut copy);
                self.unsent.extend(copy.get(..count).unwrap_or_default());
                start += count;
            }
        }
    }

    /// Sends what was kept, as far as there is space. Returns how many bytes the socket took.
    pub(super) fn flush(&mut self, poller: &Poller) -> io::Result<u32> {
        let mut total = 0;
        while !self.unsent.is_empty() {
            let (head, tail) = self.unsent.as_slices();
            let pieces = [IoSlice::new(head), IoSlice::new(tail)];
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut control = SendAncillaryBuffer::default();
            match sendmsg(&self.socket, &pieces, &mut control, flags) {
                Ok(count) => {
                    self.unsent.drain(..count.min(self.unsent.len()));
                    total += count;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.watch_for_space(poller, !self.unsent.is_empty())?;
        Ok(u32::try_from(total).unwrap_or(u32::MAX))
    }

    /// Forgets what was kept, and returns how much that was.
    pub(super) fn discard(&mut self) -> u32 {
        let count = self.unsent.len();
        self.unsent = VecDeque::new();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn watch_for_space(&mut self, poller: &Poller, wanted: bool) -> io::Result<()> {
        if self.watched_for_space != wanted {
            let space = if wanted {
                EventSet::OUT
            } else {
                EventSet::empty()
            };
            poller.modify(&self.socket, self.token, Self::EVENTS | space)?;
            self.watched_for_space = wanted;
        }
        Ok(())
    }

    /// Tells the host that the guest accepted its connection as `host_port`.
    pub(super) fn accepted(&self, host_port: u32) -> io::Result<()> {
        let line = format!("OK {host_port}\n");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = send(&self.socket, line.as_bytes(), flags)?;
        if sent == line.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Tells the host that the guest reads no more.
    pub(super) fn shut_read(&mut self) {
        if !std::mem::replace(&mut self.read_shut, true) {
            // Fails only if the host is gone.
            let _ = self.socket.shutdown(Shutdown::Read);
        }
    }

    /// Tells the host that the guest sends no more.
    pub(super) fn shut_write(&mut self) {
        if !std::mem::replace(&mut self.write_shut, true) {
            // Fails only if the host is gone.
            let _ = self.socket.shutdown(Shutdown::Write);
        }
    }
}

/// The first line of a host process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line {
    /// `CONNECT <port>`; it has been taken out of the socket, and nothing else.
    Connect(u32),
    /// It is not complete.
    Incomplete,
    /// It is something else, or too long, or the process is gone.
    Invalid,
}

/// Reads the first line of a host process. What follows it stays in the socket.
pub(super) fn read_line(socket: &UnixStream) -> Line {
    let mut bytes = [0; MAX_LINE];
    let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let count = match recv(socket, &mut bytes, peek) {
        Ok((count, _)) if count > 0 => count,
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Line::Incomplete,
        _ => return Line::Invalid,
    };
    let seen = bytes.get(..count).unwrap_or_default();
    let Some(end) = seen.iter().position(|&byte| byte == b'\n') else {
        return if count < MAX_LINE {
            Line::Incomplete
        } else {
            Line::Invalid
        };
    };
    let port = seen
        .get(..end)
        .and_then(|line| line.strip_prefix(b"CONNECT "))
        .filter(|digits| digits.iter().all(u8::is_ascii_digit))
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok());
    let Some(port) = port else {
        return Line::Invalid;
    };
    let mut line = [0; MAX_LINE];
    let line = line.get_mut(..=end).unwrap_or_default();
    match recv(socket, line, RecvFlags::DONTWAIT) {
        Ok((count, _)) if count == end + 1 => Line::Connect(port),
        _ => Line::Invalid,
    }
}
