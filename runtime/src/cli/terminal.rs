//! The terminal of whoever runs a container in the foreground.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};

/// The caller's terminal, raw until this value is dropped.
pub(crate) struct RawTerminal {
    tty: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Finds the terminal and makes it raw: what is typed goes to the container's terminal as it
    /// is, whose own line discipline does the rest.
    pub(crate) fn enter() -> anyhow::Result<Self> {
        let tty = find()?;
        let before = tcgetattr(&tty)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&tty, OptionalActions::Now, &raw)?;
        Ok(Self { tty, before })
    }

    /// Its size: columns and rows.
    pub(crate) fn size(&self) -> io::Result<(u16, u16)> {
        let size = tcgetwinsize(&self.tty)?;
        Ok((size.ws_col, size.ws_row))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(&self.tty, OptionalActions::Drain, &self.before);
    }
}

/// As runc: the first of the standard streams that is a terminal, else the controlling one.
fn find() -> anyhow::Result<OwnedFd> {
    let streams = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    if let Some(tty) = streams.into_iter().find(|fd| isatty(fd)) {
        return Ok(tty.as_fd().try_clone_to_owned()?);
    }
    let tty = OpenOptions::new().read(true).write(true).open("/dev/tty");
    match tty {
        Ok(tty) => Ok(tty.into()),
        Err(e) => Err(anyhow::Error::new(e).context("open /dev/tty")),
    }
}
