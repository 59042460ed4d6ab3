//! Moves the bytes of the standard streams between a process and its stream sockets.
//!
//! ```text
//!   stdin    socket ── splice ──▶ pipe ──▶ process      end of file closes the pipe's write end
//!   stdout   socket ◀── splice ── pipe ◀── process      end of the pipe half-closes the socket
//!   terminal socket ◀── copy ───▶ pty master            hang-up of the pty half-closes the socket
//!   socket   socket ◀── copy ───▶ socket ◀─▶ process    each direction is half-closed by itself
//! ```
//!
//! A plain stream is spliced: its bytes never enter this process's memory, and the pipe is the
//! only buffer, so a slow reader slows the writer and nothing else. Each side notices when the
//! other goes away, also while no byte flows: the process gets SIGPIPE when the host has closed
//! its stdout, and the host's writes fail when the process has closed its stdin.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::coop::consume_budget;
use tokio::time::{sleep, timeout};

use crate::socket::Socket;
use crate::sys;

/// The most bytes one splice moves: a pipe's default capacity.
const CHUNK: usize = 64 * 1024;

/// The buffer of each direction of a terminal: what a line discipline holds (N_TTY_BUF_SIZE).
const TERMINAL_BUFFER: usize = 4096;

/// How long a terminal whose process has ended may be silent before it is closed.
const SETTLE: Duration = Duration::from_millis(100);

/// How long the host may go on typing into a terminal that is closed.
const LINGER: Duration = Duration::from_secs(10);

/// The read end of a pipe that a process writes its output to.
pub(crate) struct OutputPipe(AsyncFd<OwnedFd>);

impl OutputPipe {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::register(fd, Interest::READABLE).map(Self)
    }
}

/// The write end of a pipe that a process reads its input from.
pub(crate) struct InputPipe(AsyncFd<OwnedFd>);

impl InputPipe {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::register(fd, Interest::WRITABLE | Interest::ERROR).map(Self)
    }
}

/// The master side of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::register(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Sets the window size, which also sends SIGWINCH to the foreground process group.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = rustix::termios::Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(rustix::termios::tcsetwinsize(&self.0, size)?)
    }
}

/// Carries a process's output to the host until the pipe has ended or the host takes no more.
///
/// When the process itself has `ended`, what it has written is carried and no more: whoever else
/// has the pipe open may keep it open forever.
pub(crate) async fn output(
    pipe: OutputPipe,
    socket: Socket,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut ended = std::pin::pin!(ended);
    let mut is_over = false;
    loop {
        let source = tokio::select! {
            biased;
            guard = pipe.0.readable(), if !is_over => Some(guard?),
            gone = socket.refuses_data() => return gone,
            () = &mut ended, if !is_over => {
                is_over = true;
                None
            }
            () = std::future::ready(()), if is_over => None,
        };
        match splice_some(&pipe.0, &socket) {
            Ok(0) => return socket.end(),
            Ok(_) => {}
            Err(Errno::AGAIN) if !is_ready(&pipe.0, PollFlags::IN) => match source {
                Some(mut source) => source.clear_ready(),
                None => return socket.end(),
            },
            Err(Errno::AGAIN) => {
                let mut target = socket.writable().await?;
                if !is_ready(&socket, PollFlags::OUT) {
                    target.clear_ready();
                }
            }
            Err(Errno::PIPE | Errno::NOTCONN | Errno::CONNRESET) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        consume_budget().await;
    }
}

/// Carries the host's bytes to a process until the host has ended the stream or nobody reads the
/// pipe any more.
pub(crate) async fn input(socket: Socket, pipe: InputPipe) -> io::Result<()> {
    loop {
        let mut source = tokio::select! {
            biased;
            _ = pipe.0.ready(Interest::ERROR) => return Ok(()),
            guard = socket.readable() => guard?,
        };
        let mut target = pipe.0.writable().await?;
        match splice_some(&socket, &pipe.0) {
            // The process has to see that what it got was not cut short by a broken connection,
            // but a pipe has no way to tell: end of file is all there is.
            Ok(0) | Err(Errno::PIPE | Errno::NOTCONN | Errno::CONNRESET) => return Ok(()),
            Ok(_) => {}
            Err(Errno::AGAIN) => {
                if !is_ready(&socket, PollFlags::IN) {
                    source.clear_ready();
                }
                if !is_ready(&pipe.0, PollFlags::OUT) {
                    target.clear_ready();
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        consume_budget().await;
    }
}

/// Carries both directions of a terminal until the last process has closed it or the host is gone,
/// or until the process has `ended` and nothing more comes.
///
/// The host may end its direction alone: the terminal stays, as when nobody types. When the host
/// closes the stream, the master is closed with it and the session is hung up.
pub(crate) async fn terminal(
    master: Arc<Terminal>,
    socket: Socket,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut ended = std::pin::pin!(ended);
    let to_host = async {
        let mut buffer = vec![0; TERMINAL_BUFFER];
        let mut is_over = false;
        loop {
            let length = tokio::select! {
                biased;
                length = read_master(&master, &mut buffer) => length?,
                gone = socket.refuses_data() => return gone,
                () = &mut ended, if !is_over => {
                    is_over = true;
                    continue;
                }
                // The kernel moves what was written to the master a little later.
                () = sleep(SETTLE), if is_over => return Ok(()),
            };
            let Some(mut rest) = length.and_then(|length| buffer.get(..length)) else {
                return Ok(());
            };
            while !rest.is_empty() {
                let sent = socket.send(rest).await;
                match sent {
                    Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                    Err(e) if is_gone(&e) => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
            consume_budget().await;
        }
    };
    let from_host = async {
        let mut buffer = vec![0; TERMINAL_BUFFER];
        loop {
            let received = socket.receive(&mut buffer).await;
            let mut rest = match received {
                Ok(0) => break,
                Ok(received) => buffer.get(..received).unwrap_or_default(),
                Err(e) if is_gone(&e) => break,
                Err(e) => return Err(e),
            };
            while !rest.is_empty() {
                let Some(written) = write_master(&master, rest).await? else {
                    // What the terminal still shows is the other direction's to carry.
                    return std::future::pending().await;
                };
                rest = rest.get(written..).unwrap_or_default();
            }
            consume_budget().await;
        }
        std::future::pending().await
    };
    tokio::select! {
        result = to_host => result,
        result = from_host => result,
    }?;
    socket.end()?;
    // Closing a socket with unread input resets it, and the host would see an error, not an end.
    tokio::spawn(timeout(LINGER, discard(socket)));
    Ok(())
}

/// Carries both directions of a stream socket, each until its sender ends it or its receiver takes no
/// more. When the process has `ended`, what it has sent is carried and no more.
pub(crate) async fn both(
    process: Socket,
    host: Socket,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let mut ended = std::pin::pin!(ended);
    let is_over = {
        let to_host = async {
            let mut is_over = false;
            let mut buffer = vec![0; TERMINAL_BUFFER];
            loop {
                let received = if is_over {
                    // The event loop may not have heard yet of what is there.
                    process.try_receive(&mut buffer)
                } else {
                    tokio::select! {
                        biased;
                        received = process.receive(&mut buffer) => received,
                        gone = host.refuses_data() => return gone.map(|()| is_over),
                        () = &mut ended => {
                            is_over = true;
                            continue;
                        }
                    }
                };
                if !pass_on(received, &buffer, &host).await? {
                    host.end()?;
                    return Ok(is_over);
                }
            }
        };
        let from_host = async {
            let mut buffer = vec![0; TERMINAL_BUFFER];
            loop {
                let received = tokio::select! {
                    biased;
                    received = host.receive(&mut buffer) => received,
                    gone = process.refuses_data() => return gone,
                };
                if !pass_on(received, &buffer, &process).await? {
                    return process.end();
                }
            }
        };
        let mut to_host = std::pin::pin!(to_host);
        let mut from_host = std::pin::pin!(from_host);
        tokio::select! {
            is_over = &mut to_host => {
                let is_over = is_over?;
                if !is_over {
                    from_host.await?;
                }
                is_over
            }
            result = &mut from_host => {
                result?;
                to_host.await?
            }
        }
    };
    drop(process);
    if is_over {
        host.end()?;
    }
    // As for a terminal.
    tokio::spawn(timeout(LINGER, discard(host)));
    Ok(())
}

/// Sends on what was received; false at the end of the stream, or if it goes nowhere any more.
async fn pass_on(received: io::Result<usize>, buffer: &[u8], to: &Socket) -> io::Result<bool> {
    let mut rest = match received {
        Ok(0) => return Ok(false),
        Ok(received) => buffer.get(..received).unwrap_or_default(),
        Err(e) if is_gone(&e) => return Ok(false),
        Err(e) => return Err(e),
    };
    while !rest.is_empty() {
        match to.send(rest).await {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(e) if is_gone(&e) => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    consume_budget().await;
    Ok(true)
}

/// Reads until the host has closed its direction.
async fn discard(socket: Socket) {
    let mut buffer = [0; 512];
    while let Ok(1..) = socket.receive(&mut buffer).await {
        consume_budget().await;
    }
}

/// Reads what the terminal shows; `None` when no process has it open any more.
async fn read_master(master: &Terminal, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let mut guard = master.0.readable().await?;
        match rustix::io::read(&master.0, &mut *buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => return Ok(Some(length)),
            // The kernel gives out everything that was written before it reports the hang-up.
            Err(Errno::IO) => return Ok(None),
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Types into the terminal; `None` when no process has it open any more.
async fn write_master(master: &Terminal, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        let mut guard = master.0.writable().await?;
        match rustix::io::write(&master.0, bytes) {
            Ok(written) => return Ok(Some(written)),
            Err(Errno::IO) => return Ok(None),
            Err(Errno::AGAIN) => guard.clear_ready(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn splice_some(from: impl AsFd, to: impl AsFd) -> Result<usize, Errno> {
    loop {
        match splice(&from, None, &to, None, CHUNK, SpliceFlags::NONBLOCK) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Whether a descriptor is ready this very moment. A splice that would block does not say which of
/// its ends made it so. In doubt the answer is yes: the caller tries again.
fn is_ready(fd: impl AsFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(&fd, flags)];
    match poll(&mut fds, Some(&Timespec::default())) {
        Ok(0) => false,
        Ok(_) | Err(_) => true,
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::NotConnected | io::ErrorKind::ConnectionReset
    )
}

#[cfg(test)]
mod tests;
