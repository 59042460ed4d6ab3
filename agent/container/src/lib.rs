//! From an OCI runtime specification to a running process.
//!
//! This crate builds containers on the machine it runs on: inside a Cloister guest that is the
//! virtual machine, in tests it is whatever machine the tests run on. It knows nothing of vsock, of
//! RPC or of an asynchronous runtime, needs root, and supports cgroup v2 only.
//!
//! # How a container comes to be
//!
//! ```text
//!  caller (agent)                           init stage = the container's process
//!  ──────────────                           ───────────────────────────────────
//!  Container::create(options)
//!    check the specification
//!    make the cgroup, its limits, its device filter
//!    open_tree() rootfs and bind sources
//!    clone3(all namespaces, CLONE_INTO_CGROUP) ──▶ (async-signal-safe code only)
//!    write uid_map, gid_map, oom_score_adj         execveat(init_exe, argv[0] = "cloister-init")
//!    Setup + mount fds ──────────────────────────▶ init::main():
//!                                                   mounts, devices, pivot_root, terminal,
//!                                                   hostname, sysctl, credentials, program lookup
//!    ◀───────────────────────── Created [+ pty], or Failed(error)
//!  container.start()
//!    Start ──────────────────────────────────────▶ hooks.startContainer, execve(process.args)
//!    ◀───────────────────────── end of file, or Failed(error)
//! ```
//!
//! # What the caller has to do
//!
//! - **First thing in `main`**, before any thread: `if init::is_init_stage() { return init::main(); }`.
//!   The stage is the caller's own executable, re-executed through [`CreateOptions::init_exe`].
//! - **Reap.** There are no intermediate processes. The process of a container is a direct child of the
//!   caller, raises SIGCHLD, and a [`Container`] never waits for it: the caller's reaper
//!   (`waitpid(-1)`) gets its exit status, exactly once, under [`Container::pid`]. When
//!   [`Container::create`] fails, its child has been killed and reaped before it returns (through a
//!   pidfd, so it does not matter if the caller's reaper was faster); a reaper must pass over
//!   statuses of pids it does not know. A reaper on another thread may see a pid before
//!   `create` has returned it, so it has to keep statuses of unknown pids until `create` is over, or
//!   reap on the thread that creates.
//! - **Give pipes, not sockets, as standard streams** ([`Stdio`]): a program that opens
//!   `/dev/stdout` or `/proc/self/fd/1` fails with ENXIO on a socket.
//! - **Be pivotable.** `pivot_root` is impossible while `/` is the kernel's initial ramfs. An
//!   initramfs init calls [`make_root_pivotable`] before it mounts anything.
//!
//! [`Container::create`] and [`Container::start`] block for as long as the work takes (normally about
//! a millisecond, and the time of its `startContainer` hooks) and never on anything the container's
//! program does.
//!
//! # Errors
//!
//! Every error says which step failed, on which field of the specification or file, and why; see
//! [`Error::kind`] for the class. A failed `create` leaves no process, no mount and no cgroup behind.

mod cgroup;
mod channel;
mod config;
mod container;
mod error;
mod exec;
mod idmap;
pub mod init;
mod seccomp;
mod sys;

pub use container::{
    Container, CreateOptions, Starting, Stdio, WindowSize, make_root_pivotable, resize,
};
pub use error::{Error, ErrorKind, Failure, Result};
pub use exec::{Exec, ExecOptions, Executing};
