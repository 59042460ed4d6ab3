//! Socket transfers straight from and to guest memory.
//!
//! Unsafe is needed since the kernel has to be given addresses of memory that the guest can change
//! at any moment, of which there can thus be no Rust slice.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crate::chain::Segment;

/// Pieces that one system call transfers. 64 KiB in page-sized pieces take 17 to 32.
pub(super) const MAX_PIECES: usize = 64;

/// Pieces of guest memory in the form the kernel takes them.
pub(super) struct IoVecs<'m> {
    pieces: [libc::iovec; MAX_PIECES],
    count: usize,
    bytes: usize,
    /// The segments that the pieces were made of keep their memory mapped for this long.
    memory: PhantomData<Segment<'m>>,
}

/// What came out of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received {
    /// Bytes; none means that the stream has ended, unless there was no room.
    pub(super) bytes: usize,
    /// The kernel stopped at a message boundary: there may be more although there was room.
    pub(super) cut: bool,
}

impl<'m> IoVecs<'m> {
    pub(super) fn new() -> Self {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            pieces: [empty; MAX_PIECES],
            count: 0,
            bytes: 0,
            memory: PhantomData,
        }
    }

    /// The bytes that the pieces hold.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends as many of `segments` as there is room for and returns how many bytes that are.
    pub(super) fn extend(&mut self, segments: impl Iterator<Item = Segment<'m>>) -> usize {
        let before = self.bytes;
        let free = self.pieces.iter_mut().skip(self.count);
        for (piece, segment) in free.zip(segments) {
            *piece = libc::iovec {
                iov_base: segment.ptr_guard_mut().as_ptr().cast(),
                iov_len: segment.len(),
            };
            self.count += 1;
            self.bytes += segment.len();
        }
        self.bytes - before
    }

    fn message(&mut self) -> libc::msghdr {
        libc::msghdr {
            msg_name: std::ptr::null_mut(),
            msg_namelen: 0,
            msg_iov: self.pieces.as_mut_ptr(),
            msg_iovlen: self.count,
            msg_control: std::ptr::null_mut(),
            msg_controllen: 0,
            msg_flags: 0,
        }
    }

    /// Fills the pieces from `socket`, without waiting.
    pub(super) fn receive(mut self, socket: &UnixStream) -> io::Result<Received> {
        let mut message = self.message();
        loop {
            // SAFETY: `message` names `count` initialised pieces, each inside of guest memory that
            // stays mapped for 'm; writing there is what guest memory is for, no Rust reference
            // to it exists, and neither a name nor control data is asked for.
            let result =
                unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
            match usize::try_from(result) {
                Ok(bytes) => {
                    return Ok(Received {
                        bytes,
                        // Descriptors that a host process attached are dropped by the kernel.
                        cut: message.msg_flags & libc::MSG_CTRUNC != 0,
                    });
                }
                Err(_) => retry(io::Error::last_os_error())?,
            }
        }
    }

    /// Sends the pieces to `socket`, without waiting, and returns how many bytes it took.
    pub(super) fn send(mut self, socket: &UnixStream) -> io::Result<usize> {
        let message = self.message();
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        loop {
            // SAFETY: as for `receive`, but that the pieces are only read.
            let result = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
            match usize::try_from(result) {
                Ok(bytes) => return Ok(bytes),
                Err(_) => retry(io::Error::last_os_error())?,
            }
        }
    }
}

fn retry(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::Interrupted {
        Ok(())
    } else {
        Err(error)
    }
}
