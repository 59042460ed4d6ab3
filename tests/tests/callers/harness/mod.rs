//! What the callers' tests share with the end-to-end tests, and the machine they need.

#[expect(
    dead_code,
    reason = "shared with the end-to-end tests, which use all of it"
)]
#[path = "../../e2e/harness/command.rs"]
mod command;
mod engine;
mod image;
mod machine;
mod page;
#[path = "../../e2e/harness/program.rs"]
mod program;
#[expect(
    dead_code,
    reason = "shared with the end-to-end tests, which use all of it"
)]
#[path = "../../e2e/harness/residue.rs"]
mod residue;

pub(crate) use command::{Cmd, Finished, Running};
pub(crate) use engine::{Case, Engine};
pub(crate) use image::{
    build as build_rootfs, busybox_rootfs, busybox_tar, directory_archive, image_archive,
    program_archive,
};
pub(crate) use machine::{Machine, afterwards, mount_tmpfs, other_version, report_logs, runtime};
pub(crate) use page::Page;
pub(crate) use program::add_program;
use residue::Residue;
pub(crate) use residue::behind_loop_devices;

use std::time::{Duration, Instant};

/// How long anything may take: the callers are large programs, and the bed emulates every instruction.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

/// Between two looks: each of them starts a program.
const PAUSE: Duration = Duration::from_millis(200);

/// Polls until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(PAUSE);
    }
}
