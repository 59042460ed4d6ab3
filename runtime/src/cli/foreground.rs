//! A container in the foreground: signals go to it, its end comes from it.

use anyhow::anyhow;
use cloister::launch::{Order, Report};
use cloister::monitor::EXIT_LOST;
use cloister::signal::Signal;
use cloister::sys::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Fatal;
use super::spawn::Monitor;
use super::terminal::RawTerminal;

/// Follows a container to its end.
pub(crate) fn follow(
    monitor: Monitor,
    signals: &SignalFd,
    terminal: Option<RawTerminal>,
) -> Result<u8, Fatal> {
    let result = end(&monitor, signals, terminal.as_ref());
    // Before anything is printed.
    drop(terminal);
    match result {
        Ok(Some(Report::Exited { code, signal: 0 })) => Ok(u8::try_from(code).unwrap_or(u8::MAX)),
        Ok(Some(Report::Exited { signal, .. })) => {
            // A shell's rule, and runc's.
            Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX))
        }
        Ok(Some(Report::Lost { message })) => {
            monitor.wait()?;
            Err(Fatal::new(EXIT_LOST, anyhow!(message)))
        }
        Ok(Some(Report::Failed { message })) => {
            monitor.wait()?;
            Err(anyhow!(message).into())
        }
        Ok(Some(Report::Created | Report::Started) | None) => {
            let cause = anyhow!("the container is gone with it");
            Err(monitor.clean_up(cause))
        }
        Err(e) => Err(monitor.clean_up(e)),
    }
}

/// Waits for the monitor's last word.
fn end(
    monitor: &Monitor,
    signals: &SignalFd,
    terminal: Option<&RawTerminal>,
) -> anyhow::Result<Option<Report>> {
    loop {
        let mut fds = [
            PollFd::new(monitor.channel(), PollFlags::IN),
            PollFd::new(signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [channel, signal] = &fds;
        if !channel.revents().is_empty() {
            match monitor.report()? {
                Some(Report::Created) => {}
                // Others may work on it from now on.
                Some(Report::Started) => monitor.dir().unlock()?,
                last => return Ok(last),
            }
        }
        if !signal.revents().is_empty()
            && let Some(signal) = signals.next()?
        {
            pass_on(monitor, signal, terminal)?;
        }
    }
}

fn pass_on(
    monitor: &Monitor,
    signal: Signal,
    terminal: Option<&RawTerminal>,
) -> anyhow::Result<()> {
    match terminal {
        // The monitor's end is noticed by its socket.
        _ if signal == Signal::CHLD => {}
        Some(terminal) if signal == Signal::WINCH => {
            let (columns, rows) = terminal.size()?;
            monitor.order(Order::Resize { columns, rows });
        }
        _ => monitor.signal(signal)?,
    }
    Ok(())
}
