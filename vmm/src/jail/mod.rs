//! What is left of the process before the guest runs its first instruction: nearly nothing.
//!
//! ```text
//!   start      every inherited descriptor but the control socket and the log is closed
//!   enter()    empty root ▸ limits ▸ capability bounds ▸ identity ▸ capabilities ▸ no new privileges
//!   (the vCPU threads start: they inherit all of it)
//!   confine()  system call filter, on every thread
//! ```
//!
//! A guest that takes over the process finds no files, no network but the sockets it was given, no
//! privileges, no way to gain any, and no system call beyond those that a VM needs. Nothing here
//! degrades to a warning: a step that fails ends the process before the guest starts.

mod filter;
mod identity;
mod root;
mod seccomp;

use std::io;
use std::os::fd::AsFd;

use cloister_vmm_api::JailConfig;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};

pub use self::seccomp::Confinement;

/// Descriptors that a VMM may have open: as many streams as the socket device allows, and what the
/// machine itself needs. Four network devices of eight queue pairs have 220, and each virtual CPU one.
const MAX_DESCRIPTORS: u64 = cloister_virtio::vsock::MAX_CONNECTIONS as u64 + 512;

/// A step of the confinement that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("jail: {step} failed")]
    Step {
        /// What it was for.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The filter cannot be made or installed.
    #[error("jail: system call filter")]
    Filter(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Names the step that a result belongs to.
fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, Error> {
    result.map_err(|errno| Error::Step {
        step,
        source: errno.into(),
    })
}

/// Closes every inherited descriptor past the control socket, and puts the log in the place of
/// standard input and output.
///
/// # Errors
/// If the kernel refuses.
pub fn close_inherited() -> Result<(), Error> {
    let log = std::io::stderr();
    step("dup2 of stdin", rustix::stdio::dup2_stdin(log.as_fd()))?;
    step("dup2 of stdout", rustix::stdio::dup2_stdout(log.as_fd()))?;
    identity::close_from(cloister_vmm_api::CONTROL_FD + 1)
}

/// Confines the calling thread and all that it starts later. The process must have no other.
///
/// # Errors
/// The step that failed.
pub fn enter(config: &JailConfig) -> Result<(), Error> {
    root::empty()?;
    let limit = |maximum| Rlimit {
        current: Some(maximum),
        maximum: Some(maximum),
    };
    // No core: it would hold the guest's memory.
    step("RLIMIT_CORE", setrlimit(Resource::Core, limit(0)))?;
    step(
        "RLIMIT_NOFILE",
        setrlimit(Resource::Nofile, limit(MAX_DESCRIPTORS)),
    )?;
    identity::drop_privileges(config)
}
