//! A virtio-serial port, seen from inside.

use super::sys::notify_by_sigio;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Wakes the threads whose ports wait for somebody to connect.
#[derive(Debug, Default)]
pub(super) struct Wakeup {
    generation: Mutex<u64>,
    changed: Condvar,
}

impl Wakeup {
    pub(super) fn notify(&self) {
        *self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    fn generation(&self) -> u64 {
        *self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_past(&self, seen: u64) {
        let mut generation = self
            .generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while *generation == seen {
            generation = self
                .changed
                .wait(generation)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One port, open and non-blocking.
#[derive(Debug)]
pub(super) struct Port {
    file: File,
    wakeup: Arc<Wakeup>,
}

impl Port {
    pub(super) fn open(path: &Path, wakeup: Arc<Wakeup>) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        Ok(Self { file, wakeup })
    }

    /// Waits until somebody is connected on the machine's side.
    pub(super) fn wait_connected(&self) -> io::Result<()> {
        if self.connected()? {
            return Ok(());
        }
        notify_by_sigio(&self.file, true)?;
        loop {
            let seen = self.wakeup.generation();
            if self.connected()? {
                break;
            }
            self.wakeup.wait_past(seen);
        }
        notify_by_sigio(&self.file, false)
    }

    /// Waits until there is something to read, or nobody to read from.
    pub(super) fn wait_readable(&self) -> io::Result<()> {
        poll(&mut [PollFd::new(&self.file, PollFlags::IN)], None)?;
        Ok(())
    }

    fn connected(&self) -> io::Result<bool> {
        let mut fds = [PollFd::new(&self.file, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&now))?;
        Ok(fds.iter().all(|fd| !fd.revents().contains(PollFlags::HUP)))
    }
}

impl Read for &Port {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }
}

impl Write for &Port {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&self.file).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
