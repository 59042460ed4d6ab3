//! On a machine with cgroup v1, figures come in the message of that version: in a bed of its own, `tests/run cgroups`.

use std::fs;

use containerd_shim_protos::api;
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::harness::eventually;

use super::control::figure;
use super::daemon::Version;
use super::peer::{ID, Peer, limit};
use super::{Case, kill};

const MIB: u64 = 1 << 20;
/// How much a sandbox's memory may change between two looks.
const JITTER: u64 = 8 * MIB;
/// More than a virtual machine needs beyond its container.
const OVERHEAD_MAX: u64 = 512 * MIB;

/// A figure of a process' cgroup on this machine.
fn machines(pid: u32, controller: &str, file: &str) -> u64 {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut lines = text.lines().map(|line| line.splitn(3, ':'));
    let place = lines.find_map(|mut fields| {
        let names = fields.nth(1)?;
        let is_it = names.split(',').any(|name| name == controller);
        is_it.then(|| fields.next()).flatten()
    });
    let place = place.unwrap_or_else(|| panic!("no {controller} in {text}"));
    let path = format!("/sys/fs/cgroup/{controller}{place}/{file}");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    text.trim()
        .parse()
        .unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
#[ignore = "in a bed with cgroup v1: tests/run cgroups"]
fn figures_are_true() {
    // It works in its only process.
    let script = "i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done; exec sleep 1000";
    let peer = Peer::with(script, |spec| {
        spec["linux"]["cgroupsPath"] = "/shim-tests".into();
        spec["linux"]["resources"] = json!({"memory": {"limit": 96 * MIB}, "pids": {"limit": 77}});
    });
    let creation = peer.creation();
    let pid = peer.tasks.create(limit(), &creation).expect("a task").pid;
    peer.start("").expect("a start");
    let stats = || peer.stats_as::<Metrics>("io.containerd.cgroups.v1.Metrics");
    eventually("it has worked", || stats().cpu.usage.user > 10_000_000);
    // A container that has its virtual machine for itself: together they use what the machine's cgroup counts.
    let time = || machines(pid, "cpuacct", "cpuacct.usage");
    let memory = || machines(pid, "memory", "memory.usage_in_bytes");
    let before = (time(), memory());
    let seen = stats();
    let after = (time(), memory());
    // Of which microseconds are kept.
    let total = seen.cpu.usage.total;
    assert!(
        (before.0 - 1000..=after.0).contains(&total),
        "{total} is not within {before:?} and {after:?}"
    );
    assert!(
        seen.cpu.usage.kernel > 0
            && seen.cpu.usage.kernel + seen.cpu.usage.user <= total + 1_000_000
    );
    let usage = seen.memory.usage.usage;
    assert!(
        (before.1.min(after.1) - JITTER..=before.1.max(after.1) + JITTER).contains(&usage),
        "{usage} is not within {before:?} and {after:?}"
    );
    let allowed = seen.memory.usage.limit;
    assert_eq!(allowed, machines(pid, "memory", "memory.limit_in_bytes"));
    assert!(
        (96 * MIB..96 * MIB + OVERHEAD_MAX).contains(&allowed),
        "{allowed}"
    );
    assert!(seen.memory.usage.max >= usage, "{seen}");
    assert_ne!(seen.memory.total_rss, 0, "{seen}");
    assert_eq!((seen.pids.current, seen.pids.limit), (1, 77));
    // Other limits, in the guest and here.
    let update = api::UpdateTaskRequest {
        id: ID.into(),
        resources: MessageField::some(Any {
            value: json!({"memory": {"limit": 64 * MIB}, "pids": {"limit": 66}})
                .to_string()
                .into_bytes(),
            ..Default::default()
        }),
        ..Default::default()
    };
    peer.tasks.update(limit(), &update).expect("other limits");
    let seen = stats();
    assert_eq!(seen.memory.usage.limit, allowed - 32 * MIB);
    assert_eq!(seen.pids.limit, 66);
    peer.kill(9).expect("a signal");
    eventually("its end", || peer.status("") == api::Status::STOPPED);
    peer.delete("").expect("a deletion");
}

#[test]
#[ignore = "in a bed with cgroup v1: tests/run cgroups"]
fn ctr_shows_them() {
    for version in [Version::V1_6, Version::V1_7, Version::V2] {
        let case = Case::new(version);
        let allowed = (96 * MIB).to_string();
        case.detached(&["--memory-limit", &allowed], "m", "exec sleep 600");
        let shown = case.ctr(["task", "metrics", "m"]).run().ok();
        for name in ["pids.current", "cpuacct.usage", "memory.usage_in_bytes"] {
            assert_ne!(figure(&shown, name), 0, "{name}: {shown}");
        }
        let allowed = figure(&shown, "memory.limit_in_bytes");
        assert!(
            (96 * MIB..96 * MIB + OVERHEAD_MAX).contains(&allowed),
            "{shown}"
        );
        // The cgroups of this version go with it, too.
        kill(case.listed("m").expect("a task").0);
        case.await_status("m", "STOPPED");
    }
}
