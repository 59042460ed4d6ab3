//! The terminal of a process: the shim gets its master side, and copies between it and what
//! containerd reads and writes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cloister::sys::{Watched, watch};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{Winsize, tcsetwinsize};
use tempfile::TempDir;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::command::Streams;

/// How long the terminal of a process that runs may take to arrive.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(10);
/// How long what a process has written last may take to be read.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
/// How much is copied at once, in bytes: what a pipe holds.
const CHUNK: usize = 4096;

/// Where a terminal is sent to.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    dir: TempDir,
}

/// A terminal that is copied.
#[derive(Debug)]
pub(crate) struct Console {
    master: Arc<AsyncFd<Watched<OwnedFd>>>,
    output: JoinHandle<()>,
    input: Option<JoinHandle<()>>,
}

impl ConsoleSocket {
    /// Makes one, with a name that fits into a socket's address.
    pub(crate) fn new() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("cloister-pty").tempdir()?;
        let listener = UnixListener::bind(dir.path().join("pty.sock"))?;
        Ok(Self { listener, dir })
    }

    /// Its path.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("pty.sock")
    }

    /// Takes the terminal that was sent.
    pub(crate) async fn receive(self) -> io::Result<OwnedFd> {
        let receive = async {
            let (stream, _) = self.listener.accept().await?;
            loop {
                stream.readable().await?;
                match stream.try_io(Interest::READABLE, || receive_fd(&stream)) {
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    received => return received,
                }
            }
        };
        match timeout(ARRIVAL_LIMIT, receive).await {
            Ok(received) => received,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

fn receive_fd(stream: impl std::os::fd::AsFd) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut name = [0; 64];
    let mut name = [io::IoSliceMut::new(&mut name)];
    recvmsg(stream, &mut name, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    fd.ok_or_else(|| io::Error::other("the message has no terminal"))
}

impl Console {
    /// Copies between a terminal and streams.
    pub(crate) fn start(master: OwnedFd, streams: Streams) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&master)?;
        rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
        let master = Arc::new(watch(master)?);
        let output = streams.stdout.map(Output::new).transpose()?;
        let output = tokio::spawn(copy_output(Arc::clone(&master), output));
        let input = match streams.stdin {
            Some(stdin) => {
                let stdin = pipe::Receiver::from_owned_fd(stdin)?;
                Some(tokio::spawn(copy_input(stdin, Arc::clone(&master))))
            }
            None => None,
        };
        Ok(Self {
            master,
            output,
            input,
        })
    }

    /// Sets its size.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(self.master.get_ref().inner(), size)?)
    }

    /// Waits until what the process has written last was read.
    pub(crate) async fn drain(mut self) {
        if timeout(DRAIN_LIMIT, &mut self.output).await.is_err() {
            log::warn!("the last output of a terminal is lost: nobody reads it");
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.output.abort();
        if let Some(input) = &self.input {
            input.abort();
        }
    }
}

/// What a terminal's output is written to.
#[derive(Debug)]
enum Output {
    Pipe(pipe::Sender),
    File(std::fs::File),
}

impl Output {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind == rustix::fs::FileType::Fifo {
            return Ok(Self::Pipe(pipe::Sender::from_owned_fd(fd)?));
        }
        Ok(Self::File(fd.into()))
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::File(file) => io::Write::write_all(file, bytes),
        }
    }
}

/// Copies until the terminal has no other side. What nobody takes is read all the same: the
/// process must not wait for it.
async fn copy_output(master: Arc<AsyncFd<Watched<OwnedFd>>>, mut output: Option<Output>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = master
            .async_io(Interest::READABLE, |master| {
                Ok(rustix::io::read(master.inner(), &mut buffer)?)
            })
            .await;
        let bytes = match read {
            Ok(0) => return,
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            // The other side is closed.
            Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()) => return,
            Err(e) => return log::warn!("cannot read a terminal: {e}"),
        };
        if let Some(target) = &mut output
            && let Err(e) = target.write(bytes).await
        {
            log::warn!("cannot write what a terminal says: {e}");
            output = None;
        }
    }
}

/// Copies until standard input ends: the terminal stays, as its end is a character of it.
async fn copy_input(mut stdin: pipe::Receiver, master: Arc<AsyncFd<Watched<OwnedFd>>>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut bytes = match stdin.read(&mut buffer).await {
            Ok(0) => return,
            Ok(n) => buffer.get(..n).unwrap_or_default(),
            Err(e) => return log::warn!("cannot read what a terminal is to get: {e}"),
        };
        while !bytes.is_empty() {
            let written = master
                .async_io(Interest::WRITABLE, |master| {
                    Ok(rustix::io::write(master.inner(), bytes)?)
                })
                .await;
            match written {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                // The process is gone.
                Err(_) => return,
            }
        }
    }
}
