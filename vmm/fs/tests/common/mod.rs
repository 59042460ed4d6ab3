//! A server process, and a guest without a VM: the device of `cloister-virtio`, guest memory in a
//! memfd, and a driver that puts FUSE requests into the rings by hand.
#![allow(dead_code, unreachable_pub)] // Each test file is a crate of its own and uses a part.
#![allow(clippy::unwrap_used, clippy::panic)] // What fails here fails the test.

pub mod fuse;
pub mod guest;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use cloister_vmm_api::fs::{Export, Reply, Request, ServeConfig};
use cloister_vmm_api::{API_VERSION, Channel};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A `cloister-fs` process.
pub struct Server {
    pub process: Child,
    pub control: Option<Channel>,
}

impl Server {
    /// A process that has been told nothing.
    pub fn spawn() -> Self {
        let (ours, theirs) = Channel::pair().unwrap();
        // The shell moves the socket to descriptor 3, and leaves another for the server to close.
        let process = Command::new("/bin/sh")
            .arg("-c")
            .arg("exec \"$0\" 3<&0 7</ 0</dev/null")
            .arg(env!("CARGO_BIN_EXE_cloister-fs"))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            process,
            control: Some(ours),
        }
    }

    pub fn control(&self) -> &Channel {
        self.control.as_ref().unwrap()
    }

    pub fn reply(&self) -> Option<Reply> {
        self.control().recv().unwrap().map(|(reply, _)| reply)
    }

    /// Sends a request with a fresh socket for the VMM, whose other end it returns.
    pub fn ask(&self, config: ServeConfig, exports: &[BorrowedFd<'_>]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let fds: Vec<_> = [theirs.as_fd()].iter().chain(exports).copied().collect();
        self.control()
            .send(&Request::Serve { config }, &fds)
            .unwrap();
        ours
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the server does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the process has written to standard error. Only for one that has ended.
    pub fn messages(&mut self) -> String {
        use std::io::Read;

        let mut text = String::new();
        let stream = self.process.stderr.as_mut().unwrap();
        stream.read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.try_wait().unwrap().is_none() {
            self.process.kill().unwrap();
            self.process.wait().unwrap();
        }
        if std::thread::panicking() {
            eprintln!("{}", self.messages());
        }
    }
}

pub fn export(name: &str, readonly: bool) -> Export {
    Export {
        name: name.into(),
        readonly,
        detached: false,
    }
}

pub fn config(exports: Vec<Export>) -> ServeConfig {
    ServeConfig {
        api_version: API_VERSION,
        exports,
        threads: 4,
    }
}

/// An `O_PATH` descriptor.
pub fn path_fd(path: &Path) -> OwnedFd {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(
        path,
        flags | rustix::fs::OFlags::NOFOLLOW,
        rustix::fs::Mode::empty(),
    )
    .unwrap()
}

/// A server of `shares`, and a guest that has mounted it.
pub fn share(shares: &[(&str, &Path, bool)]) -> (Server, guest::Guest) {
    let server = Server::spawn();
    let fds: Vec<_> = shares.iter().map(|(_, path, _)| path_fd(path)).collect();
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let exports = shares
        .iter()
        .map(|(name, _, readonly)| export(name, *readonly))
        .collect();
    let socket = server.ask(config(exports), &fds);
    assert_eq!(server.reply(), Some(Reply::Ready));
    let mut guest = guest::Guest::new(socket);
    guest.init();
    (server, guest)
}
