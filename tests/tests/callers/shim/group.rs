//! Containers that an annotation puts into one group: they share a shim, and nothing else.

use super::daemon::Version;
use super::{Case, kill, pids_of, shim};

/// The annotation of runc's shim, which containerd's callers set for what belongs together.
const GROUP: &str = "io.containerd.runc.v2.group=pair";

fn address(name: &str) -> String {
    let file = super::bundle(name).join("address");
    std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

pub(super) fn one_shim(version: Version) {
    let case = Case::new(version);
    let script = "cat /proc/sys/kernel/random/boot_id >/boot; exec sleep 600";
    // `ctr` would remove FIFOs with the task, which it is not to do at the end.
    let options = ["--null-io", "--annotation", GROUP];
    for name in ["one", "two"] {
        case.detached(&options, name, script);
        case.await_file(name, "/boot");
    }
    case.detached(&[], "apart", script);
    assert_eq!(address("one"), address("two"));
    assert_ne!(address("one"), address("apart"));
    // Its name is cut off after 15 bytes.
    let comm = format!("containerd-shim-{}", shim());
    let shims = pids_of(comm.get(..15).expect("a name"));
    assert_eq!(shims.len(), 2, "{shims:?}");
    let pid = case.shim_pid("one");
    let boot = |name: &str| case.exec(name, "look", "cat /boot").run().ok();
    assert_ne!(boot("one"), boot("two"), "they share a virtual machine");
    // One goes, the other one stays, and can still be asked.
    case.ctr(["task", "delete", "--force", "one"]).run();
    assert_eq!(case.status("one"), "gone");
    assert_eq!(case.status("two"), "RUNNING");
    boot("two");
    // A third comes to the same shim, which the second has kept.
    case.detached(&options, "three", script);
    assert_eq!(address("three"), address("two"));
    // Its end is that of all that it had, and of nobody else's.
    kill(pid);
    for name in ["two", "three"] {
        case.await_status(name, "gone");
    }
    assert_eq!(case.status("apart"), "RUNNING");
}
