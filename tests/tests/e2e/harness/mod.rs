//! What every test needs: bundles, commands with limits, and a look at what is left behind.

mod bundle;
mod command;
mod program;
mod residue;

pub(crate) use bundle::{Bundle, busybox_rootfs};
pub(crate) use command::{Cmd, Finished, Running};
pub(crate) use program::add_program;
pub(crate) use residue::Residue;

use std::time::{Duration, Instant};

/// How long anything may take. Generous, since the bed emulates every instruction of host and
/// guest, and a hang must still end.
pub(crate) const LIMIT: Duration = Duration::from_secs(180);

/// Polls until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
