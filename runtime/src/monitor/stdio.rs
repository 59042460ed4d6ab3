//! The standard streams of a workload: bytes between the caller's descriptors and vsock streams.
//!
//! One thread a direction. The caller's descriptors may be anything: a regular file is always
//! ready for epoll and blocks all the same, and making an inherited descriptor non-blocking would
//! change it for every process that shares it. So a thread waits with poll(2) and then reads or
//! writes, and what blocks there blocks nothing else.
//!
//! ```text
//!   caller's stdin  ──▶ feed ──▶ stream       end-of-file ──▶ half close
//!   caller's stdout ◀── drain ◀── stream      half close  ──▶ descriptor closed, a socket half
//! ```
//!
//! When the workload has ended, [`Ended`] is raised: feeding stops, and draining goes on until the
//! guest has closed its side, which a guest in its right mind does at once; [`QUIET`] bounds the
//! wait for one that is not. Waiting for a caller that does not read has no bound, as a process
//! that writes to a full pipe waits as well.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use tokio::sync::oneshot;

/// How much is moved at once, in bytes.
const BLOCK: usize = 64 * 1024;

/// How long a guest may be silent on a stream that it should have closed.
pub(crate) const QUIET: Duration = Duration::from_secs(5);

/// The threads hold a block on the heap and next to nothing on their stacks.
const STACK: usize = 64 * 1024;

/// Tells the threads that the workload has ended.
#[derive(Debug, Clone)]
pub(crate) struct Ended(Arc<OwnedFd>);

impl Ended {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Raises it; it stays raised.
    pub(crate) fn raise(&self) -> io::Result<()> {
        rustix::io::write(&*self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }
}

/// Moves what is read from `source` into `stream`, whose writing side is closed at the end of it.
///
/// # Errors
/// If there can be no further thread.
pub(crate) fn feed(
    source: OwnedFd,
    stream: UnixStream,
    ended: Ended,
) -> io::Result<oneshot::Receiver<()>> {
    let block = vec![0; BLOCK];
    spawn("stdin", move || {
        if let Err(e) = feed_all(&source, &stream, &ended, block) {
            log::debug!("standard input: {e}");
        }
        // The guest may have closed the stream already.
        let _ = stream.shutdown(Shutdown::Write);
    })
}

fn feed_all(
    source: &OwnedFd,
    mut stream: &UnixStream,
    ended: &Ended,
    mut block: Vec<u8>,
) -> io::Result<()> {
    loop {
        let mut fds = [
            PollFd::new(source, PollFlags::IN),
            PollFd::new(&*ended.0, PollFlags::IN),
            // No events asked for: only that the guest has closed the stream altogether.
            PollFd::new(stream, PollFlags::empty()),
        ];
        retry(|| poll(&mut fds, None))?;
        let [source_fd, ended_fd, stream_fd] = &fds;
        if !ended_fd.revents().is_empty() {
            return Ok(());
        }
        if stream_fd
            .revents()
            .intersects(PollFlags::HUP | PollFlags::ERR)
        {
            return Ok(());
        }
        if source_fd.revents().is_empty() {
            continue;
        }
        let count = match retry(|| rustix::io::read(source, &mut block)) {
            Ok(count) => count,
            // Another process that shares the descriptor was faster.
            Err(Errno::AGAIN) => continue,
            // A terminal whose other side is gone.
            Err(Errno::IO) => 0,
            Err(errno) => return Err(errno.into()),
        };
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        stream.write_all(bytes)?;
    }
}

/// Moves what is read from `stream` into `sink`, which is closed at the end of it.
///
/// # Errors
/// If there can be no further thread.
pub(crate) fn drain(
    stream: UnixStream,
    sink: OwnedFd,
    ended: Ended,
) -> io::Result<oneshot::Receiver<()>> {
    let block = vec![0; BLOCK];
    spawn("stdout", move || {
        if let Err(e) = drain_all(&stream, &sink, &ended, block) {
            log::debug!("standard output: {e}");
        }
        // Nobody reads any more: the workload's next write must fail.
        let _ = stream.shutdown(Shutdown::Both);
    })
}

/// As [`drain`] into a socket, of which only this direction is closed at the end: the other one may go
/// on.
///
/// # Errors
/// If there can be no further thread.
pub(crate) fn drain_socket(
    stream: UnixStream,
    sink: OwnedFd,
    ended: Ended,
) -> io::Result<oneshot::Receiver<()>> {
    let block = vec![0; BLOCK];
    spawn("socket", move || {
        let result = drain_all(&stream, &sink, &ended, block);
        // Either may be gone altogether.
        let _ = rustix::net::shutdown(&sink, rustix::net::Shutdown::Write);
        if let Err(e) = result {
            log::debug!("a socket: {e}");
            let _ = stream.shutdown(Shutdown::Both);
        }
    })
}

fn drain_all(
    mut stream: &UnixStream,
    sink: &OwnedFd,
    ended: &Ended,
    mut block: Vec<u8>,
) -> io::Result<()> {
    let mut has_ended = false;
    loop {
        let mut fds = [
            PollFd::new(stream, PollFlags::IN),
            PollFd::new(&*ended.0, PollFlags::IN),
        ];
        let quiet = Timespec::try_from(QUIET).ok().filter(|_| has_ended);
        // Once it is raised, the descriptor stays ready and would make every wait a short one.
        let watched = if has_ended { 1 } else { 2 };
        let ready = retry(|| poll(fds.get_mut(..watched).unwrap_or_default(), quiet.as_ref()))?;
        if ready == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the guest did not close the stream of a process that has ended",
            ));
        }
        let [stream_fd, ended_fd] = &fds;
        has_ended |= !ended_fd.revents().is_empty();
        if stream_fd.revents().is_empty() {
            continue;
        }
        let count = match stream.read(&mut block) {
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            return Ok(());
        }
        write_all(sink, bytes)?;
    }
}

/// Writes to a descriptor that others may have made non-blocking.
fn write_all(sink: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(&sink, bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                retry(|| poll(&mut [PollFd::new(&sink, PollFlags::OUT)], None))?;
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<oneshot::Receiver<()>> {
    let (done, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(STACK)
        .spawn(move || {
            work();
            // Whoever waited may have given up.
            let _ = done.send(());
        })?;
    Ok(receiver)
}

#[cfg(test)]
mod tests;
