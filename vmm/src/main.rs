//! One KVM virtual machine in one jailed process: see the library's documentation.

#![allow(unsafe_code)] // The control socket comes as a descriptor number.

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

use cloister_vmm::{chain, clock, jail, logger, session};
use cloister_vmm_api::{CONTROL_FD, Channel};
use log::LevelFilter;

const USAGE: &str = "\
usage: cloister-vmm [--log-level LEVEL]   run one VM; the control socket is descriptor 3
       cloister-vmm --check               say whether this machine's KVM can run guests, as JSON
       cloister-vmm --version
       cloister-vmm --help

LEVEL is off, error, warn (the default), info, debug or trace, and may also be given as CLOISTER_LOG.
";

/// The VM ran to its end, whatever that was, or what was asked for was printed.
const EXIT_OK: u8 = 0;
/// The VM could not be run to its end, or KVM cannot be used.
const EXIT_FAILED: u8 = 1;
/// The command line is wrong.
const EXIT_USAGE: u8 = 2;

enum Command {
    Run { level: Option<LevelFilter> },
    Check,
    Version,
    Help,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut command = Command::Run { level: None };
    while let Some(argument) = arguments.next() {
        command = match argument.as_str() {
            "--log-level" => {
                let value = arguments.next().ok_or("--log-level needs a level")?;
                let level = (value.parse()).map_err(|_| format!("no such level: {value}"))?;
                Command::Run { level: Some(level) }
            }
            "--check" => Command::Check,
            "--version" | "-V" => Command::Version,
            "--help" | "-h" => Command::Help,
            other => return Err(format!("unknown argument: {other}")),
        };
    }
    Ok(command)
}

fn main() -> ExitCode {
    let entered = clock::now();
    let code = match parse(std::env::args().skip(1)) {
        Ok(Command::Run { level }) => run(entered, level),
        Ok(Command::Check) => check(),
        Ok(Command::Version) => print(concat!("cloister-vmm ", env!("CARGO_PKG_VERSION"), "\n")),
        Ok(Command::Help) => print(USAGE),
        Err(problem) => usage(&problem),
    };
    ExitCode::from(code)
}

fn print(text: &str) -> u8 {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            eprintln!("cloister-vmm: cannot write to standard output: {error}");
            EXIT_FAILED
        }
    }
}

fn check() -> u8 {
    let report = cloister_vmm::check::run();
    let json = match serde_json::to_string(&report) {
        Ok(json) => json,
        Err(error) => {
            eprintln!("cloister-vmm: cannot write the report: {error}");
            return EXIT_FAILED;
        }
    };
    match print(&format!("{json}\n")) {
        EXIT_OK if report.usable => EXIT_OK,
        _ => EXIT_FAILED,
    }
}

fn run(entered: u64, level: Option<LevelFilter>) -> u8 {
    match level.map_or_else(logger::level_from_environment, Ok) {
        Ok(level) => logger::init(level),
        Err(value) => {
            return usage(&format!(
                "{}: no such level: {value}",
                logger::LEVEL_VARIABLE
            ));
        }
    }
    if rustix::io::fcntl_getfd(
        // SAFETY: only asked whether it is open.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(CONTROL_FD) },
    )
    .is_err()
    {
        return usage("there is no control socket: this program is started by cloister");
    }
    if let Err(error) = jail::close_inherited() {
        log::error!("{}", chain(&error));
        return EXIT_FAILED;
    }
    // SAFETY: the descriptor is open, and by contract it is ours alone.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    match session::run(Channel::new(control), entered) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            log::error!("{}", chain(&error));
            EXIT_FAILED
        }
    }
}

fn usage(problem: &str) -> u8 {
    eprint!("cloister-vmm: {problem}\n{USAGE}");
    EXIT_USAGE
}
