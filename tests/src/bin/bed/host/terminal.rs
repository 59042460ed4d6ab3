//! The user's own terminal, while a shell runs inside.

use crate::protocol::WindowSize;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;

/// The size of the terminal on standard input, if it is one.
pub(super) fn window_size() -> Option<WindowSize> {
    let size = tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(WindowSize {
        rows: size.ws_row,
        columns: size.ws_col,
    })
}

/// Whether standard input is a terminal.
pub(super) fn stdin_is_terminal() -> bool {
    isatty(rustix::stdio::stdin())
}

/// The terminal's settings before it was made raw.
#[derive(Debug, Clone)]
pub(super) struct Settings(Termios);

impl Settings {
    /// Passes every key on as it is typed.
    pub(super) fn make_raw() -> io::Result<Self> {
        let before = tcgetattr(rustix::stdio::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }

    /// Gives the user the terminal back.
    pub(super) fn restore(&self) -> io::Result<()> {
        Ok(tcsetattr(
            rustix::stdio::stdin(),
            OptionalActions::Drain,
            &self.0,
        )?)
    }
}
