//! Real callers above the installed `cloister`: Podman, Docker, Buildah and containerd, as Debian packages them.
//!
//! They run as root in the test bed, one boot a caller, each a module here: `tests/suites/run podman`.
//! `CLOISTER_TEST_RUNTIME=/usr/bin/crun` runs the same checks with another runtime, which tells a fault of the runtime
//! from one of the check. Every wait
//! has a limit; a check that fails prints the command, what it said, the containers' logs and the runtime's; one that
//! passes has looked for processes, mounts, cgroups, sockets and files left behind.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test says what it expects"
)]

mod buildah;
mod checks;
mod containerd;
mod cri;
mod docker;
mod harness;
mod podman;
mod shim;
