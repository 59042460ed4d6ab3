//! Receives terminals on a socket, as the program of that name does that runc's tests start: `tests/suites/run runc`.
//!
//! `recvtty [--pid-file FILE] [--mode single|null] [--no-stdin] SOCKET`: in mode `single`, which is the default, the output
//! of the first terminal goes to standard output, and the program ends with it; in mode `null` any number of terminals is
//! read and dropped. Nothing is typed on them either way.
//!
//! Who never connects is not waited for in mode `single`: a test whose runtime fails leaves the program behind, and bats waits
//! for it. In mode `null` the tests end it.
//!
//! The tests do not wait for the socket before a runtime is to connect to it, so it has to be there at once.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Parser, ValueEnum};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// How long nobody may connect in mode `single`.
const LIMIT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

#[derive(Parser)]
struct Options {
    /// Gets the pid of this program, once the socket is there.
    #[arg(long)]
    pid_file: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Mode::Single)]
    mode: Mode,
    /// Accepted and without effect: standard input is never read.
    #[arg(long)]
    no_stdin: bool,
    socket: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Single,
    Null,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let listener = UnixListener::bind(&options.socket)
        .with_context(|| format!("listen on {}", options.socket.display()))?;
    if let Some(file) = &options.pid_file {
        fs::write(file, std::process::id().to_string())
            .with_context(|| format!("write {}", file.display()))?;
    }
    loop {
        if options.mode == Mode::Single {
            let mut ready = [PollFd::new(&listener, PollFlags::IN)];
            let count = poll(&mut ready, Some(&LIMIT)).context("wait for a connection")?;
            ensure!(
                count > 0,
                "{}: no connection within {} s",
                options.socket.display(),
                LIMIT.tv_sec
            );
        }
        let (stream, _) = listener.accept().context("accept a connection")?;
        let Some(mut terminal) = receive(&stream).context("receive a terminal")? else {
            continue;
        };
        // The end of a terminal whose other side is closed is EIO.
        if options.mode == Mode::Single {
            let _ = io::copy(&mut terminal, &mut io::stdout());
            return Ok(());
        }
        std::thread::spawn(move || io::copy(&mut terminal, &mut io::sink()));
    }
}

/// The descriptor that comes with the one message on this connection, which is the terminal's name; none, if none comes.
fn receive(stream: &UnixStream) -> io::Result<Option<File>> {
    let mut name = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(
        stream,
        &mut [io::IoSliceMut::new(&mut name)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next().map(File::from),
        _ => None,
    }))
}
