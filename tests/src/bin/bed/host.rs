//! The front: what `tests/bed` does on the machine itself.

mod cli;
mod direct;
mod emulator;
mod initramfs;
mod kernel;
mod machine;
mod outcomes;
mod session;
mod sys;
mod tail;
mod terminal;
mod warm;

use anyhow::Result;
use clap::Parser as _;
use cli::{Action, Bed, MachineOptions};
use machine::Machine;
use session::{Front, Outcome, Request};
use std::process::ExitCode;

/// The exit code when the command took too long, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// The exit code when the bed itself failed.
const BED_FAILED: u8 = 125;

/// The exit code when nobody reads the output any more: that of a command which SIGPIPE ended.
const OUTPUT_CLOSED: u8 = 141;

/// How often a bed is booted before it is given up.
const BOOT_ATTEMPTS: u32 = 3;

pub(crate) fn main() -> ExitCode {
    match run(Bed::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("bed: {error:#}");
            ExitCode::from(BED_FAILED)
        }
    }
}

fn run(bed: Bed) -> Result<u8> {
    match bed.action {
        Action::Run(options) => {
            if !options.needs_bed() && direct::usable() {
                return direct::run(&options);
            }
            execute(&options.machine, &Request::run(&options)?)
        }
        Action::Shell(options) => execute(&options.machine, &Request::shell(&options)?),
        Action::Up(options) => warm::up(&options).map(|()| 0),
        Action::Down => warm::down().map(|()| 0),
    }
}

/// Runs a request in the warm bed that matches, or in a bed of its own.
fn execute(options: &MachineOptions, request: &Request) -> Result<u8> {
    let front = Front::new(options.boot_timeout())?;
    let (outcome, console) = match warm::find(options)? {
        Some(instance) => {
            let connection = instance.connect()?;
            let outcome = front.relay(connection.stream()?, request, session::Bed::Kept);
            (outcome?, instance.console())
        }
        None => execute_alone(options, request, &front)?,
    };
    Ok(report(&outcome, &console))
}

/// Runs a request in a bed of its own, and tells its console's end.
///
/// A kernel that is busy patching itself may die of the emulator (`guest/smp.rs`); a bed that has not answered yet has
/// had no effect, and can be booted again.
fn execute_alone(
    options: &MachineOptions,
    request: &Request,
    front: &Front,
) -> Result<(Outcome, String)> {
    let mut attempt = 1;
    loop {
        let machine = Machine::boot(options.shape()?)?;
        let outcome = front.relay(machine.port()?, request, session::Bed::Own);
        let console = machine.stop();
        let outcome = outcome?;
        if outcome != Outcome::DiedBooting || attempt == BOOT_ATTEMPTS {
            return Ok((outcome, console));
        }
        attempt += 1;
    }
}

/// Tells the user what is not plain from the command's own output.
fn report(outcome: &Outcome, console: &str) -> u8 {
    let (code, message) = match outcome {
        Outcome::Exited(exited) => return exited.shell_code(),
        Outcome::OutputClosed => return OUTPUT_CLOSED,
        Outcome::Failed(failed) => {
            eprintln!("bed: {}", failed.message);
            return failed.code;
        }
        Outcome::TimedOut(limit) => (
            TIMED_OUT,
            format!(
                "the command did not end within {} s and was killed",
                limit.as_secs()
            ),
        ),
        Outcome::Silent(limit) => (
            TIMED_OUT,
            format!(
                "the command printed nothing for {} s and was killed",
                limit.as_secs()
            ),
        ),
        Outcome::Failing(count) => (
            TIMED_OUT,
            format!("{count} tests in a row have failed, and the command was killed"),
        ),
        Outcome::NotUp(limit) => (
            BED_FAILED,
            format!("the bed was not up within {} s", limit.as_secs()),
        ),
        Outcome::DiedBooting => (
            BED_FAILED,
            "the machine stopped before it was up".to_owned(),
        ),
        Outcome::Died => (
            BED_FAILED,
            "the machine stopped before the command ended".to_owned(),
        ),
    };
    let console = if console.is_empty() {
        "(empty)\n"
    } else {
        console
    };
    eprint!("bed: {message}; the end of its console:\n{console}");
    code
}
