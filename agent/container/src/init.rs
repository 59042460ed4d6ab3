//! The init stage: the caller's executable, executed again inside the new namespaces.

use std::process::ExitCode;

/// Whether this process was started as the init stage of a container.
pub fn is_init_stage() -> bool {
    std::env::args_os().next().is_some_and(|name| name == "cloister-init")
}

/// Builds the container around this process and executes its program; returns only on failure.
pub fn main() -> ExitCode {
    unimplemented!()
}
