//! Sockets to the kernel's route service.
#![allow(unsafe_code, reason = "NETLINK_EXT_ACK has no safe wrapper")]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::attributes::{align, attributes, text};
use crate::message::{MESSAGE_HEADER, Message, link_header, link_index, link_name};

/// What the kernel sends at once at most: NLMSG_GOODSIZE, up to 32 KiB for dumps.
const BUFFER: usize = 32 * 1024;
/// How often a list is read anew that changes while it is read.
const DUMP_TRIES: u32 = 5;
/// linux/netlink.h: the kernel's own words are attribute 1 of an error.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The list changed while it was read.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// The error does not repeat the request.
const NLM_F_CAPPED: u16 = 0x100;
/// linux/socket.h: SOL_NETLINK.
const SOL_NETLINK: libc::c_int = 270;
/// The size of a switch.
#[expect(clippy::cast_possible_truncation, reason = "the size is 4")]
const EXT_ACK_SIZE: libc::socklen_t = size_of::<libc::c_int>() as libc::socklen_t;
/// linux/netlink.h: NETLINK_EXT_ACK.
const NETLINK_EXT_ACK: libc::c_int = 11;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket failed.
    #[error("netlink socket")]
    Socket(#[source] io::Error),
    /// The kernel said no.
    #[error("{errno}{words}")]
    Refused {
        /// The kernel's error number.
        errno: io::Error,
        /// Its own words behind a colon, if it had any.
        words: String,
    },
    /// The kernel's answer was not understood.
    #[error("malformed netlink message")]
    Malformed,
    /// The list kept changing.
    #[error("what was listed kept changing")]
    Restless,
}

impl Error {
    /// The kernel's error number, if that is what it was.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => errno.raw_os_error(),
            Self::Socket(_) | Self::Malformed | Self::Restless => None,
        }
    }
}

fn socket_error(errno: Errno) -> Error {
    Error::Socket(errno.into())
}

/// A message of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// RTM_*.
    pub kind: u16,
    /// The fixed header and the attributes.
    pub payload: Vec<u8>,
}

/// A socket for requests. It belongs to the network namespace that the calling thread is in when it
/// is opened, wherever it is used.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// Opens one.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn open() -> Result<Self, Error> {
        let fd = open(SocketFlags::CLOEXEC, 0)?;
        let on: libc::c_int = 1;
        // SAFETY: the value is a live int of the size given. A kernel without it gives errors without
        // words.
        unsafe {
            libc::setsockopt(
                fd.as_raw_fd(),
                SOL_NETLINK,
                NETLINK_EXT_ACK,
                (&raw const on).cast(),
                EXT_ACK_SIZE,
            )
        };
        Ok(Self {
            fd,
            sequence: Cell::new(0),
        })
    }

    /// Sends a request and waits until the kernel has done it.
    ///
    /// # Errors
    /// [`Error::Refused`] if it did not.
    pub fn request(&self, message: &Message) -> Result<(), Error> {
        let sequence = self.send(message, libc::NLM_F_ACK)?;
        let mut found = None;
        self.receive(sequence, |header, payload| {
            if header.kind == ERROR {
                found = Some(answer(header.flags, payload));
            }
            found.is_none()
        })?;
        found.unwrap_or(Err(Error::Malformed))
    }

    /// Lists everything of a type (RTM_GET*).
    ///
    /// # Errors
    /// If the kernel refuses, or if the list does not stand still.
    pub fn dump(&self, kind: u16, header: &[u8]) -> Result<Vec<Received>, Error> {
        for _ in 0..DUMP_TRIES {
            let message = Message::new(kind, 0, header);
            let sequence = self.send(&message, libc::NLM_F_DUMP)?;
            let mut list = Vec::new();
            let mut outcome = Ok(());
            let mut is_whole = true;
            self.receive(sequence, |header, payload| {
                is_whole &= header.flags & NLM_F_DUMP_INTR == 0;
                match header.kind {
                    DONE => return false,
                    ERROR => {
                        outcome = answer(header.flags, payload);
                        return false;
                    }
                    kind => list.push(Received {
                        kind,
                        payload: payload.to_vec(),
                    }),
                }
                true
            })?;
            outcome?;
            if is_whole {
                return Ok(list);
            }
        }
        Err(Error::Restless)
    }

    /// Lists the interfaces: `RTM_NEWLINK` messages.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn links(&self) -> Result<Vec<Received>, Error> {
        self.dump(libc::RTM_GETLINK, &link_header(0, 0, 0))
    }

    /// The index of the interface of a name, if there is one.
    ///
    /// # Errors
    /// As [`Socket::dump`].
    pub fn find_link(&self, name: &str) -> Result<Option<u32>, Error> {
        let links = self.links()?;
        let link = links
            .iter()
            .find(|link| link_name(&link.payload).as_deref() == Some(name));
        Ok(link.and_then(|link| link_index(&link.payload)))
    }

    fn send(&self, message: &Message, flags: i32) -> Result<u32, Error> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let mut bytes = message.bytes.clone();
        let length = u32::try_from(bytes.len()).map_err(|_| Error::Malformed)?;
        let own = bytes.get(6..8).and_then(<[u8]>::first_chunk);
        let own = own.map_or(0, |flags| u16::from_ne_bytes(*flags));
        let flags = own | u16::try_from(flags).unwrap_or_default();
        for (at, value) in [(0, length), (8, sequence)] {
            if let Some(place) = bytes.get_mut(at..at + 4) {
                place.copy_from_slice(&value.to_ne_bytes());
            }
        }
        if let Some(place) = bytes.get_mut(6..8) {
            place.copy_from_slice(&flags.to_ne_bytes());
        }
        rustix::net::send(&self.fd, &bytes, SendFlags::empty()).map_err(socket_error)?;
        Ok(sequence)
    }

    /// Hands the answers to a request to `take` until that wants no more.
    fn receive(
        &self,
        sequence: u32,
        mut take: impl FnMut(&Header, &[u8]) -> bool,
    ) -> Result<(), Error> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let received = match rustix::net::recv(&self.fd, &mut buffer, RecvFlags::empty()) {
                Ok((_, received)) => received,
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(socket_error(errno)),
            };
            let mut rest = buffer.get(..received).ok_or(Error::Malformed)?;
            while !rest.is_empty() {
                let header = Header::parse(rest).ok_or(Error::Malformed)?;
                let payload = rest.get(MESSAGE_HEADER..header.length);
                let payload = payload.ok_or(Error::Malformed)?;
                if header.sequence == sequence && !take(&header, payload) {
                    return Ok(());
                }
                rest = rest.get(align(header.length)..).unwrap_or_default();
            }
        }
    }
}

/// A socket that hears of changes. As [`Socket`], it belongs to the namespace it was opened in.
#[derive(Debug)]
pub struct Events(OwnedFd);

impl Events {
    /// Opens one for groups (RTNLGRP_*). It does not block.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn open(groups: &[u32]) -> Result<Self, Error> {
        let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        open(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, mask).map(Self)
    }

    /// Forgets everything that was heard; whether that was anything.
    ///
    /// # Errors
    /// If the socket fails.
    pub fn drain(&self) -> Result<bool, Error> {
        let mut buffer = [0; 4096];
        let mut heard = false;
        loop {
            // What does not fit is cut: nobody reads it.
            match rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty()) {
                // So much that some of it was lost is news as well.
                Ok(_) | Err(Errno::NOBUFS) => heard = true,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(heard),
                Err(errno) => return Err(socket_error(errno)),
            }
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn open(flags: SocketFlags, groups: u32) -> Result<OwnedFd, Error> {
    // NETLINK_ROUTE is 0, the default.
    let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)
        .map_err(socket_error)?;
    rustix::net::bind(&fd, &SocketAddrNetlink::new(0, groups)).map_err(socket_error)?;
    Ok(fd)
}

/// linux/netlink.h: NLMSG_ERROR, also the kernel's "done".
const ERROR: u16 = 2;
/// linux/netlink.h: NLMSG_DONE.
const DONE: u16 = 3;

/// `struct nlmsghdr`, but for the port.
struct Header {
    length: usize,
    kind: u16,
    flags: u16,
    sequence: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| {
            let bytes = bytes.get(at..)?.first_chunk()?;
            Some(u16::from_ne_bytes(*bytes))
        };
        let word = |at: usize| {
            let bytes = bytes.get(at..)?.first_chunk()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        Some(Self {
            length: usize::try_from(word(0)?).ok()?,
            kind: half(4)?,
            flags: half(6)?,
            sequence: word(8)?,
        })
        .filter(|header| header.length >= MESSAGE_HEADER)
    }
}

/// What an error message says (`struct nlmsgerr`): an error number, the request, the kernel's words.
fn answer(flags: u16, payload: &[u8]) -> Result<(), Error> {
    let number = payload.first_chunk().ok_or(Error::Malformed)?;
    let number = i32::from_ne_bytes(*number);
    if number == 0 {
        return Ok(());
    }
    let request = payload.get(4..).unwrap_or_default();
    let skip = if flags & NLM_F_CAPPED != 0 {
        MESSAGE_HEADER
    } else {
        Header::parse(request).map_or(MESSAGE_HEADER, |header| align(header.length))
    };
    let words = attributes(request.get(skip..).unwrap_or_default())
        .find(NLMSGERR_ATTR_MSG)
        .map(|words| format!(": {}", text(words)));
    Err(Error::Refused {
        errno: io::Error::from_raw_os_error(number.saturating_neg()),
        words: words.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn the_kernel_lists_its_interfaces() {
        let socket = Socket::open().unwrap();
        assert_eq!(socket.find_link("lo").unwrap(), Some(1));
        assert_eq!(socket.find_link("nonesuch").unwrap(), None);
    }

    #[test]
    fn a_refusal_has_the_kernels_number() {
        let socket = Socket::open().unwrap();
        let message = Message::new(libc::RTM_SETLINK, 0, &link_header(0x7fff_fff0, 0, 0));
        let error = socket.request(&message).unwrap_err();
        // ENODEV, or EPERM for who may not.
        assert!(
            matches!(error.errno(), Some(libc::ENODEV | libc::EPERM)),
            "{error}"
        );
    }

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let message = Message::new(1, 0, &[0; 4])
            .text(3, "ab")
            .nest(5, |m| m.number(6, 7))
            .number(8, 9);
        let all = attributes(&message.bytes[MESSAGE_HEADER + 4..]);
        assert_eq!(all.find(3).map(text).as_deref(), Some("ab"));
        let nested = attributes(all.find(5).unwrap());
        assert_eq!(nested.find(6).and_then(crate::number), Some(7));
        assert_eq!(all.find(8).and_then(crate::number), Some(9));
        assert_eq!(all.count(), 3);
    }

    #[test]
    fn what_is_cut_short_ends_the_list() {
        for bytes in [&[1][..], &[8, 0, 1, 0, 1], &[2, 0, 1, 0], &[0; 4]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }
}
