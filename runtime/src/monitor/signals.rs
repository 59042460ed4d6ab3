//! Signals to the monitor are signals to the workload.

use std::io;

use tokio::io::unix::AsyncFd;

use crate::signal::Signal;
use crate::sys::{SignalFd, Watched};

/// What a signal to the monitor means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is the workload's.
    Forward(Signal),
    /// The monitor's terminal has another size.
    Resized,
    /// It is the system's word to the monitor itself.
    Own,
}

/// Says what `signal` means to a monitor that `owns_terminal` or not.
pub(crate) fn meaning(signal: Signal, owns_terminal: bool) -> Meaning {
    match signal {
        Signal::CHLD => Meaning::Own,
        Signal::WINCH if owns_terminal => Meaning::Resized,
        _ => Meaning::Forward(signal),
    }
}

/// Whether a signal asks a process that has no use for it to end.
pub(crate) fn asks_to_end(signal: Signal) -> bool {
    matches!(
        signal,
        Signal::HUP | Signal::INT | Signal::QUIT | Signal::TERM
    )
}

/// Waits for the next signal.
pub(crate) async fn next(signals: &AsyncFd<Watched<SignalFd>>) -> io::Result<Signal> {
    loop {
        let mut ready = signals.readable().await?;
        match signals.get_ref().inner().next()? {
            Some(signal) => return Ok(signal),
            None => ready.clear_ready(),
        }
    }
}
