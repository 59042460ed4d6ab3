//! The channel between the caller and the init stage: a stream socket pair.
//!
//! A message is its length in four bytes, little endian, and that much JSON. Descriptors travel before
//! the message that counts them, at most [`MAX_FDS`] with one byte each time. After the seccomp filter
//! is in place only `read` and `write` are used, which any useful filter allows.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::{Config, Personality, Process, Seccomp};
use crate::error::Failure;
use crate::sys::EXEC_FAILED;

/// From the caller: what to become.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task<S, J> {
    /// The first process of a container.
    Create(S),
    /// A further process of a container.
    Exec(J),
}

/// How a terminal begins.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct TerminalModes {
    /// Columns and rows.
    pub(crate) size: Option<(u16, u16)>,
    /// See [`Stdio::Terminal`](crate::Stdio::Terminal).
    pub(crate) plain_line_feeds: bool,
}

/// What to build.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) id: String,
    pub(crate) config: Config,
    /// The container's cgroup directory, seen from the caller's mount namespace.
    pub(crate) cgroup: PathBuf,
    /// Indices of `mounts` by the order of the descriptors that hold their sources. The descriptor
    /// before all others holds the root file system.
    pub(crate) bind_sources: BTreeMap<usize, usize>,
    /// What hooks are told of the bundle.
    pub(crate) bundle: PathBuf,
    /// Namespaces (CLONE_NEW*) to join: each of the process whose pidfd has this place among the
    /// descriptors after the sources.
    pub(crate) joins: Vec<i32>,
    pub(crate) terminal: TerminalModes,
    /// How many descriptors precede all others: those that the program finds from number 3 on.
    pub(crate) descriptors: usize,
}

/// What to join. The descriptors that go with it are the program's from number 3 on, and the pidfd of
/// the container's init process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) id: String,
    pub(crate) process: Process,
    pub(crate) seccomp: Option<Seccomp>,
    pub(crate) personality: Option<Personality>,
    /// The namespaces (CLONE_NEW*) that are not this machine's.
    pub(crate) namespaces: i32,
    pub(crate) terminal: TerminalModes,
    /// As [`Setup::descriptors`].
    pub(crate) descriptors: usize,
}

/// From the init stage.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The container waits for its start.
    Created {
        /// What was passed over.
        warnings: Vec<String>,
    },
    /// The container could not be built, or its program not be executed.
    Failed(Failure),
}

/// The byte that starts the container.
pub(crate) const START: u8 = b'S';

const MAX_FDS: usize = 64;

/// A bound for messages of an init stage that has run wild.
const MAX_MESSAGE: u32 = 16 << 20;

/// Sends a message, without descriptors.
pub(crate) fn send<T: Serialize>(channel: &OwnedFd, message: &T) -> io::Result<()> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let length = u32::try_from(bytes.len() - 4).map_err(io::Error::other)?;
    for (to, from) in bytes.iter_mut().zip(length.to_le_bytes()) {
        *to = from;
    }
    write_all(channel, &bytes)
}

/// Writes all of `bytes`. Nothing here raises SIGPIPE: Rust programs ignore it.
pub(crate) fn write_all(channel: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(channel, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Receives a message; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(channel: &OwnedFd) -> io::Result<Option<T>> {
    receive_after(channel, None)
}

/// Receives a message that a descriptor may precede.
pub(crate) fn receive_with_fd<T: DeserializeOwned>(
    channel: &OwnedFd,
    fd: &mut Option<OwnedFd>,
) -> io::Result<Option<T>> {
    let mut fds = Vec::new();
    let byte = receive_byte(channel, &mut fds)?;
    *fd = fds.pop();
    match byte {
        None => Ok(None),
        // The byte belongs to the descriptor.
        Some(_) if fd.is_some() => receive(channel),
        Some(byte) => receive_after(channel, Some(byte)),
    }
}

fn receive_after<T: DeserializeOwned>(
    channel: &OwnedFd,
    first: Option<u8>,
) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    let given = usize::from(first.is_some());
    if let (Some(byte), [start, ..]) = (first, &mut length) {
        *start = byte;
    }
    let rest = length.get_mut(given..).unwrap_or_default();
    let expected = rest.len();
    match read_full(channel, rest)? {
        0 if given == 0 => return Ok(None),
        read if read < expected => return Err(io::ErrorKind::UnexpectedEof.into()),
        _ => {}
    }
    let length = u32::from_le_bytes(length);
    if length == EXEC_FAILED {
        let mut number = [0; 4];
        read_full(channel, &mut number)?;
        return Err(io::Error::from_raw_os_error(i32::from_le_bytes(number)));
    }
    if length > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length as usize];
    if read_full(channel, &mut bytes)? < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some(serde_json::from_slice(&bytes)?))
}

/// Reads until `buffer` is full or the stream ends; gives how much it read.
pub(crate) fn read_full(channel: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(channel, rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

/// Sends descriptors.
pub(crate) fn send_fds(channel: &OwnedFd, fds: &[impl AsFd]) -> io::Result<()> {
    for chunk in fds.chunks(MAX_FDS) {
        let chunk: Vec<_> = chunk.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&chunk)) {
            return Err(io::Error::other("control message does not fit"));
        }
        let count = [u8::try_from(chunk.len()).map_err(io::Error::other)?];
        rustix::net::sendmsg(
            channel,
            &[IoSlice::new(&count)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
    }
    Ok(())
}

/// Receives as many descriptors as one [`send_fds`] of `count` sent.
pub(crate) fn receive_fds(channel: &OwnedFd, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut fds = Vec::with_capacity(count);
    while fds.len() < count {
        let before = fds.len();
        let byte = receive_byte(channel, &mut fds)?;
        if byte.is_none() || fds.len() == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(fds)
}

/// Receives one byte, and the descriptors that came with it.
fn receive_byte(channel: &OwnedFd, fds: &mut Vec<OwnedFd>) -> io::Result<Option<u8>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = loop {
        let mut into = [IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(channel, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok((received.bytes > 0).then(|| u8::from_le_bytes(byte)))
}
