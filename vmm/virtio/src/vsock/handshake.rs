//! Host processes that have connected and not yet said which port they want.

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;

/// How many there may be. The oldest gives way to a new one.
pub const MAX_HANDSHAKES: usize = 256;

/// The sockets of these processes, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    waiting: VecDeque<(u32, UnixStream)>,
    next: u32,
}

impl Handshakes {
    /// A number for the next socket, unlike that of any other.
    pub(super) fn number(&mut self) -> u32 {
        // Far fewer wait than there are numbers, and they wait in order.
        self.next = self.next.wrapping_add(1) & (u32::MAX >> 1);
        self.next
    }

    /// Keeps a socket. Returns whether another had to give way.
    pub(super) fn insert(&mut self, number: u32, socket: UnixStream) -> bool {
        let full = self.waiting.len() >= MAX_HANDSHAKES;
        if full {
            self.waiting.pop_front();
        }
        self.waiting.push_back((number, socket));
        full
    }

    pub(super) fn get(&self, number: u32) -> Option<&UnixStream> {
        self.waiting
            .iter()
            .find(|(other, _)| *other == number)
            .map(|(_, socket)| socket)
    }

    pub(super) fn remove(&mut self, number: u32) -> Option<UnixStream> {
        let index = self
            .waiting
            .iter()
            .position(|(other, _)| *other == number)?;
        self.waiting.remove(index).map(|(_, socket)| socket)
    }
}
