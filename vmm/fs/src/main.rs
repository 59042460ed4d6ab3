//! `cloister-fs`: shares directories and files of the host with one VM.
//!
//! Started by the runtime with a control socket as descriptor 3, never by hand. Everything else
//! that it inherits but its standard streams it closes. Messages go to standard error.
//!
//! Exit codes: 0 when the owner or the VMM has closed its socket; 1 when the server could not
//! start, after telling the owner why; 2 for a wrong command line; 3 when the VMM broke the
//! vhost-user protocol.
#![allow(unsafe_code)] // An inherited descriptor is a number that nothing vouches for; mallopt(3).

use std::io::Write;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::process::ExitCode;

use cloister_fs::run::{RunError, chain, run};
use cloister_vmm_api::{CONTROL_FD, Channel};
use log::{LevelFilter, Log, Metadata, Record};

const HELP: &str = "\
Usage: cloister-fs

A vhost-user virtio-fs server, confined to one shared tree. It is started by the
cloister runtime with a control socket as descriptor 3 and takes no arguments
but these:

  --help     print this text
  --version  print the version
";

const STARTUP_FAILED: u8 = 1;
const USAGE: u8 = 2;
const PROTOCOL_BROKEN: u8 = 3;

/// Standard error, one line a message.
struct StandardError;

impl Log for StandardError {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let line = format!("cloister-fs: {level}: {}\n", record.args());
            // There is nowhere to report that standard error is closed.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

static LOGGER: StandardError = StandardError;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        None => serve(),
        Some(argument) if argument == "--help" => print(HELP),
        Some(argument) if argument == "--version" => {
            print(concat!("cloister-fs ", env!("CARGO_PKG_VERSION"), "\n"))
        }
        Some(argument) => {
            eprintln!("cloister-fs: unknown argument {argument:?}; see --help");
            ExitCode::from(USAGE)
        }
    }
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(STARTUP_FAILED),
    }
}

fn serve() -> ExitCode {
    // One heap for all threads: each further one would cost memory that is never used, and there
    // is little to allocate for a request.
    // SAFETY: no other thread allocates yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
    match control().and_then(|control| run(control, end)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", chain(&error));
            match error {
                RunError::Protocol(_) => ExitCode::from(PROTOCOL_BROKEN),
                _ => ExitCode::from(STARTUP_FAILED),
            }
        }
    }
}

/// Takes over the control socket, after closing whatever else was inherited.
fn control() -> Result<Channel, RunError> {
    // SAFETY: nothing in this process has opened a descriptor yet, so none of them has an owner.
    unsafe { libc::close_range(CONTROL_FD.cast_unsigned() + 1, u32::MAX, 0) };
    // SAFETY: a number that is not open is what the call below finds out.
    let number = unsafe { BorrowedFd::borrow_raw(CONTROL_FD) };
    rustix::io::fcntl_setfd(number, rustix::io::FdFlags::CLOEXEC).map_err(RunError::NoControl)?;
    // SAFETY: it is open, and nothing else in this process owns it.
    Ok(Channel::new(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) }))
}

/// The owner is gone: so is the reason to live. Requests in work are given up, as they would be if
/// the process were killed.
fn end() {
    #[expect(clippy::exit, reason = "the main thread is waiting for the VMM")]
    std::process::exit(0);
}
