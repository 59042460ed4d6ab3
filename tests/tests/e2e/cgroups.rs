//! The cgroup of a pod's sandbox on this machine, of either version and made by either driver.
//!
//! The other version, and systemd, are in beds of their own: `tests/run cgroups`.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::harness::{Bundle, Cmd};
use super::pods::{Member, sandbox};

const MIB: u64 = 1 << 20;

/// The file with the limit of memory of the cgroup that a process is in.
fn memory_limit(pid: &serde_json::Value) -> PathBuf {
    let path = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let of = |controller: &str| {
        text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            (fields.next()? == controller)
                .then(|| fields.next())
                .flatten()
        })
    };
    match of("memory") {
        Some(cgroup) => format!("/sys/fs/cgroup/memory{cgroup}/memory.limit_in_bytes").into(),
        None => {
            let cgroup = of("").expect("a cgroup");
            format!("/sys/fs/cgroup{cgroup}/memory.max").into()
        }
    }
}

/// The pod's machine grows for a container beside its own, whose limits on this machine are the pod's. `driver` are
/// options of every command, `looked_at` is done whenever the limit has changed.
fn assert_room_is_made(path: &str, driver: &[&str], looked_at: impl Fn(u64)) {
    let mut limited = Bundle::new(&["sleep", "1000"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = path.into();
        spec["linux"]["resources"]["memory"] = json!({"limit": 50 * MIB});
    });
    limited.use_options(driver);
    let pod = sandbox(limited);
    let file = memory_limit(&pod.state("pod")["pid"]);
    let limit = || {
        let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let limit = text
            .trim()
            .parse()
            .unwrap_or_else(|e| panic!("{text}: {e}"));
        looked_at(limit);
        limit
    };
    let of_pod = limit();
    assert!(of_pod > 50 * MIB, "{of_pod}");
    let member = Member::new(&pod, "member", &["sleep", "1000"], |spec| {
        spec["linux"]["cgroupsPath"] = serde_json::Value::Null;
        spec["linux"]["resources"]["memory"] = json!({"limit": 100 * MIB});
    });
    member.command("run", &["--detach"]).run().ok();
    let of_both: u64 = limit();
    assert!(of_both > of_pod, "{of_both} is no more than {of_pod}");
    let raise = |limit, id| {
        let raised = pod.cloister(["update", "--memory", limit, id]).run();
        assert_eq!(raised.err(), "", "{raised}");
        // More than the limit of the pod's container and what the first virtual machine needed.
        let script = "dd if=/dev/zero of=/dev/null bs=250M count=1";
        pod.cloister(["exec", "member", "sh", "-c", script])
            .run()
            .ok();
    };
    raise("280m", "member");
    let raised = limit();
    assert_eq!(raised, of_both + 180 * MIB);
    // The sandbox's own limit is counted from there.
    raise("60m", "pod");
    assert!(limit() >= raised + 10 * MIB, "{} after {raised}", limit());
    assert_eq!(pod.status("pod"), "running");
}

#[test]
fn the_pods_limit_grows_with_it() {
    let path = format!("/cloister-room-{}", std::process::id());
    assert_room_is_made(&path, &[], |_| ());
}

#[test]
#[ignore = "beside a systemd: tests/run cgroups"]
fn the_limit_of_the_pods_scope_grows_with_it() {
    let name = format!("room-{}", std::process::id());
    // systemd has it as a property: it would set it again.
    let property = |limit| {
        let unit = format!("cloister-{name}.scope");
        let words = ["show", "--property=MemoryMax,MemoryLimit", &unit];
        let shown = Cmd::new("systemctl").args(words).run().ok();
        assert!(shown.contains(&format!("={limit}\n")), "{limit}: {shown}");
    };
    let path = format!("system.slice:cloister:{name}");
    assert_room_is_made(&path, &["--systemd-cgroup"], property);
}
