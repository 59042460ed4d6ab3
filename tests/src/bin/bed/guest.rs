//! Inside the bed: PID 1 and the server that runs commands.

mod boot;
mod install;
mod port;
mod process;
mod server;
mod session;
mod smp;
mod sys;
mod threads;

use std::process::ExitCode;

/// What the kernel calls PID 1.
pub(crate) const INIT_NAME: &str = "/init";

/// What PID 1 calls the server.
pub(crate) const SERVER_NAME: &str = "bed-server";

/// Where the machine's root can be seen as it is, without the layer above it.
const MACHINE_ROOT: &str = "/run/bed/machine";

/// PID 1: mounts everything, starts the server, reaps orphans. Returns never: the bed powers off instead.
pub(crate) fn init() -> ExitCode {
    if let Err(error) = boot::boot().and_then(|()| boot::supervise()) {
        eprintln!("bed: {error:#}");
    }
    boot::power_off();
    ExitCode::FAILURE
}

/// The server: one thread a port, each running one command after the other.
pub(crate) fn serve() -> ExitCode {
    match server::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bed-server: {error:#}");
            ExitCode::FAILURE
        }
    }
}
