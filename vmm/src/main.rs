//! One KVM virtual machine in one jailed process: see the library's documentation.

#![allow(unsafe_code)] // The control socket comes as a descriptor number.

use std::os::fd::{FromRawFd, OwnedFd};
use std::process::ExitCode;

use cloister_vmm::{chain, clock, jail, logger, session};
use cloister_vmm_api::{CONTROL_FD, Channel};

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

fn main() -> ExitCode {
    let entered = clock::now();
    ExitCode::from(match std::env::args().nth(1).as_deref() {
        None => run(entered),
        Some(_) => usage("unknown argument"),
    })
}

fn run(entered: u64) -> u8 {
    match logger::level_from_environment() {
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
