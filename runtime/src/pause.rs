//! `cloister-pause`: holds the namespaces of a pod, reaps what the pod's processes leave behind, and
//! ends when it is asked to.
//!
//! It runs in a guest, as the first process of a sandbox without a container of its caller.

use std::process::ExitCode;

use cloister::signal::Signal;
use cloister::sys::SignalFd;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cloister-pause: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> std::io::Result<()> {
    let signals = SignalFd::block_all()?;
    loop {
        match signals.next()? {
            Some(Signal::INT | Signal::TERM) => return Ok(()),
            // An error means that there are no children.
            Some(_) => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
            None => {
                poll(&mut [PollFd::new(&signals, PollFlags::IN)], None)?;
            }
        }
    }
}
