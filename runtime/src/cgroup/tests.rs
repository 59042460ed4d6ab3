//! On the machine's own cgroups: as root, and where they can be written.

mod units;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

use super::*;
use crate::text::chain;

const OVERHEAD: Overhead = Overhead {
    memory_bytes: 16 << 20,
    pids: 20,
};

fn resources(value: Value) -> LinuxResources {
    serde_json::from_value(value).unwrap()
}

fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("cloister-test-{}-{count}", std::process::id())
}

/// A place for a cgroup that can be made here, or `None`, which is said.
fn plan(path: &str) -> Option<Plan> {
    let plan = Plan::new(Driver::Cgroupfs, path, &unique()).unwrap();
    let probe = plan.hierarchies.controllers().find_map(|controller| {
        let mount = plan.hierarchies.mount_point(controller)?;
        let probe = mount.join(unique());
        let result = fs::create_dir(&probe);
        let _ = fs::remove_dir(&probe);
        result.err()
    });
    if let Some(e) = probe {
        eprintln!("SKIPPED: cgroups cannot be made here: {e}");
        return None;
    }
    Some(plan)
}

/// A process that waits, and is killed in the end.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        command
            .arg("1000")
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn state(&self) -> char {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, rest) = stat.rsplit_once(')').unwrap();
        rest.trim().chars().next().unwrap()
    }

    fn places(&self) -> BTreeMap<String, PathBuf> {
        Hierarchies::detect().unwrap().places(self.pid()).unwrap()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pause() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

fn assert_gone(cgroup: &SandboxCgroup) {
    for path in cgroup.paths().values() {
        assert!(!path.exists(), "{} is left", path.display());
    }
}

fn controllers(plan: &Plan) -> Vec<String> {
    let Some(mount) = plan.hierarchies.mount_point(Hierarchies::UNIFIED) else {
        return plan.paths.keys().cloned().collect();
    };
    match plan.hierarchies.version() {
        Version::V1 => plan.paths.keys().cloned().collect(),
        Version::V2 => fs::read_to_string(mount.join("cgroup.controllers"))
            .unwrap()
            .split_whitespace()
            .map(str::to_owned)
            .collect(),
    }
}

#[test]
fn a_cgroup_holds_its_processes_and_goes_without_a_trace() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let first = Sleeper::new();
    let before = first.places();
    let none = LinuxResources::default();
    let cgroup = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(first.pid())).unwrap();
    assert!(!cgroup.paths().is_empty());
    for (controller, place) in first.places() {
        if let Some(path) = cgroup.paths().get(&controller) {
            assert_eq!(&place, path, "{controller}");
        }
    }
    let second = Sleeper::new();
    cgroup.add_process(second.pid()).unwrap();
    let mut all = cgroup.processes().unwrap();
    all.sort_unstable();
    let mut expected = [first.pid(), second.pid()];
    expected.sort_unstable();
    assert_eq!(all, expected);
    let stats = cgroup.stats().unwrap();
    if controllers(&plan).iter().any(|name| name == "pids") {
        assert_eq!(stats.pids.current, 2);
    }
    assert_eq!(cgroup.oom_kills().unwrap(), 0);

    // What a later command does.
    let text = serde_json::to_string(&cgroup).unwrap();
    let later: SandboxCgroup = serde_json::from_str(&text).unwrap();
    assert_eq!(later.paths(), cgroup.paths());
    let error = later.remove().unwrap_err();
    assert!(chain(&error).contains("cannot remove cgroup"), "{error}");
    later.kill().unwrap();
    later.remove().unwrap();
    assert_gone(&later);
    later.remove().unwrap();
    assert_ne!(before, BTreeMap::new());
}

#[test]
fn a_process_that_has_made_its_cgroup_can_abandon_it() {
    let Some(plan) = plan(&format!("/{}/inner", unique())) else {
        return;
    };
    let process = Sleeper::new();
    let before = process.places();
    let none = LinuxResources::default();
    let cgroup = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(process.pid())).unwrap();
    cgroup.abandon(process.pid()).unwrap();
    assert_eq!(process.places(), before);
    assert_gone(&cgroup);
    // As with runc, what is above a cgroup stays. Not here.
    let parents: BTreeSet<_> = cgroup.paths().values().map(|path| path.parent()).collect();
    for parent in parents {
        fs::remove_dir(parent.unwrap()).unwrap();
    }
}

#[test]
fn limits_are_set_and_changed() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let there = controllers(&plan);
    let has = |name: &str| there.iter().any(|there| there == name);
    let version = plan.hierarchies.version();
    let mut limits = json!({});
    if has("memory") {
        limits["memory"] = json!({"limit": 64 << 20, "reservation": 32 << 20});
    }
    if has("pids") {
        limits["pids"] = json!({"limit": 1000});
    }
    if has("cpu") {
        limits["cpu"] = json!({"shares": 512, "quota": 50_000, "period": 100_000});
    }
    if has("cpuset") {
        limits["cpu"]["cpus"] = json!("0");
        limits["cpu"]["mems"] = json!("0");
    }
    let process = Sleeper::new();
    let limits = resources(limits);
    let cgroup = SandboxCgroup::create(&plan, &limits, OVERHEAD, Some(process.pid())).unwrap();
    let read = |controller: &str, file: &str| {
        let key = match version {
            Version::V1 => controller,
            Version::V2 => Hierarchies::UNIFIED,
        };
        let text = fs::read_to_string(cgroup.paths()[key].join(file)).unwrap();
        text.trim().to_owned()
    };
    let memory = |v1: &str, v2: &str| match version {
        Version::V1 => read("memory", v1),
        Version::V2 => read("memory", v2),
    };
    if has("memory") {
        let limit = memory("memory.limit_in_bytes", "memory.max");
        assert_eq!(limit, (80_u64 << 20).to_string());
        let low = memory("memory.soft_limit_in_bytes", "memory.low");
        assert_eq!(low, (48_u64 << 20).to_string());
        assert_eq!(cgroup.stats().unwrap().memory.usage.limit, 80 << 20);
    }
    if has("pids") {
        assert_eq!(read("pids", "pids.max"), "20");
    }
    if has("cpuset") {
        assert_eq!(read("cpuset", "cpuset.cpus"), "0");
    }
    if has("cpu") {
        let expected = match version {
            Version::V1 => ["512", "50000"],
            Version::V2 => ["59", "50000 100000"],
        };
        let files = match version {
            Version::V1 => ["cpu.shares", "cpu.cfs_quota_us"],
            Version::V2 => ["cpu.weight", "cpu.max"],
        };
        assert_eq!(files.map(|file| read("cpu", file)), expected);
        let lifted = cgroup.lift_quota().unwrap().unwrap();
        let without = match version {
            Version::V1 => "-1",
            Version::V2 => "max 100000",
        };
        assert_eq!(read("cpu", files[1]), without);
        assert!(cgroup.lift_quota().unwrap().is_none(), "there is none");
        lifted.restore().unwrap();
        assert_eq!(files.map(|file| read("cpu", file)), expected);
        // One that others may be in.
        let joined = SandboxCgroup::create(&plan, &limits, OVERHEAD, None).unwrap();
        assert!(joined.lift_quota().unwrap().is_none());
        assert_eq!(read("cpu", files[1]), expected[1]);
        // Both grow and shrink, whatever the order that needs.
        for (quota, period) in [(400_000, 200_000), (10_000, 10_000), (50_000, 100_000)] {
            let update = json!({"cpu": {"quota": quota, "period": period}});
            cgroup.update(&resources(update)).unwrap();
        }
        // Half of it leaves the other half.
        let bandwidth = || match version {
            Version::V1 => format!(
                "{} {}",
                read("cpu", files[1]),
                read("cpu", "cpu.cfs_period_us")
            ),
            Version::V2 => read("cpu", files[1]),
        };
        for (update, expected) in [
            (json!({"cpu": {"period": 200_000}}), "50000 200000"),
            (json!({"cpu": {"quota": 60_000}}), "60000 200000"),
            (json!({"cpu": {"quota": -1, "period": 100_000}}), without),
        ] {
            cgroup.update(&resources(update)).unwrap();
            assert!(bandwidth().starts_with(expected), "{}", bandwidth());
        }
        let expected = match version {
            Version::V1 => "-1",
            Version::V2 => "max 100000",
        };
        assert_eq!(read("cpu", files[1]), expected);
    }
    if has("memory") {
        for (limit, swap) in [(256, 512), (128, 128), (1024, 2048), (64, 64)] {
            let update = json!({"memory": {"limit": limit << 20, "swap": swap << 20}});
            match cgroup.update(&resources(update)) {
                // The kernel may account for no swap.
                Err(CgroupError::Missing { field, .. }) if field.contains("swap") => {}
                result => result.unwrap(),
            }
        }
        let alone = json!({"memory": {"swap": 96 << 20}});
        match cgroup.update(&resources(alone)) {
            Err(CgroupError::Missing { field, .. }) if field.contains("swap") => {}
            result => {
                result.unwrap();
                let (file, expected) = match version {
                    Version::V1 => ("memory.memsw.limit_in_bytes", 112),
                    Version::V2 => ("memory.swap.max", 32),
                };
                let swap: u64 = read("memory", file).parse().unwrap();
                assert_eq!(swap, expected << 20);
            }
        }
        let limit = memory("memory.limit_in_bytes", "memory.max");
        assert_eq!(limit, (80_u64 << 20).to_string());
        let none = json!({"memory": {"limit": -1}});
        cgroup.update(&resources(none)).unwrap();
        let limit = memory("memory.limit_in_bytes", "memory.max");
        assert!(["max", "9223372036854771712"].contains(&&*limit), "{limit}");
    }
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_gone(&cgroup);
}

#[test]
fn limits_of_memory_make_room_for_an_overhead_that_grows() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    if !controllers(&plan).iter().any(|there| there == "memory") {
        return;
    }
    let version = plan.hierarchies.version();
    let (key, file) = match version {
        Version::V1 => ("memory", "memory.limit_in_bytes"),
        Version::V2 => (Hierarchies::UNIFIED, "memory.max"),
    };
    let mut limits = json!({"memory": {"limit": 64 << 20}});
    if version == Version::V2 {
        limits["unified"] = json!({"memory.high": (48 << 20).to_string()});
    }
    let limits = resources(limits);
    let mut cgroup = SandboxCgroup::create(&plan, &limits, OVERHEAD, None).unwrap();
    let read = |cgroup: &SandboxCgroup, file: &str| {
        let text = fs::read_to_string(cgroup.paths()[key].join(file)).unwrap();
        text.trim().parse::<u64>().ok().map(|bytes| bytes >> 20)
    };
    assert_eq!(read(&cgroup, file), Some(80));
    let swap = json!({"memory": {"limit": 64 << 20, "swap": 96 << 20}});
    let swaps = version == Version::V1 && cgroup.update(&resources(swap)).is_ok();
    cgroup.make_room(32 << 20).unwrap();
    assert_eq!(read(&cgroup, file), Some(96));
    if swaps {
        assert_eq!(read(&cgroup, "memory.memsw.limit_in_bytes"), Some(128));
    }
    if version == Version::V2 {
        assert_eq!(read(&cgroup, "memory.high"), Some(80));
    }
    // Less is not taken away, and what comes later is counted from there.
    cgroup.make_room(16 << 20).unwrap();
    assert_eq!(read(&cgroup, file), Some(96));
    cgroup
        .update(&resources(
            json!({"memory": {"limit": 80 << 20, "swap": -1}}),
        ))
        .unwrap();
    assert_eq!(read(&cgroup, file), Some(112));
    // That of somebody else stays.
    let mut joined = SandboxCgroup::create(&plan, &resources(json!({})), OVERHEAD, None).unwrap();
    joined.make_room(64 << 20).unwrap();
    assert_eq!(read(&cgroup, file), Some(112));
    // Without a limit there is none to be raised.
    cgroup
        .update(&resources(json!({"memory": {"limit": -1}})))
        .unwrap();
    cgroup.make_room(128 << 20).unwrap();
    assert!(read(&cgroup, file).is_none_or(|mib| mib > 1 << 40));
    cgroup.remove().unwrap();
    assert_gone(&cgroup);
}

#[test]
fn processes_that_want_too_much_memory_are_counted() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    if !controllers(&plan).iter().any(|name| name == "memory") {
        eprintln!("SKIPPED: there is no memory controller");
        return;
    }
    let mut command = Command::new("sh");
    // The last line of what has no line end is everything.
    command
        .args(["-c", "read go; tail /dev/zero"])
        .stdin(Stdio::piped());
    let mut eater = Sleeper(command.stdout(Stdio::null()).spawn().unwrap());
    let overhead = Overhead {
        memory_bytes: 4 << 20,
        pids: 20,
    };
    let limits = resources(json!({"memory": {"limit": 4 << 20, "swap": 4 << 20}}));
    let created = SandboxCgroup::create(&plan, &limits, overhead, Some(eater.pid()));
    let cgroup = created.unwrap_or_else(|_| {
        // The kernel accounts for no swap.
        let limits = resources(json!({"memory": {"limit": 4 << 20}}));
        SandboxCgroup::create(&plan, &limits, overhead, Some(eater.pid())).unwrap()
    });
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    drop(eater.0.stdin.take());
    eater.0.wait().unwrap();
    assert!(cgroup.oom_kills().unwrap() > 0);
    assert!(cgroup.stats().unwrap().memory.usage.max > 4 << 20);
    cgroup.remove().unwrap();
    assert_gone(&cgroup);
}

#[test]
fn a_limit_that_cannot_be_set_leaves_nothing() {
    let Some(plan) = plan(&format!("/{}/inner", unique())) else {
        return;
    };
    let process = Sleeper::new();
    let before = process.places();
    let create = |limits| {
        let limits = resources(limits);
        let result = SandboxCgroup::create(&plan, &limits, OVERHEAD, Some(process.pid()));
        let message = chain(&result.unwrap_err());
        assert_eq!(process.places(), before);
        for path in plan.paths().values() {
            assert!(!path.parent().unwrap().exists(), "{}", path.display());
        }
        message
    };
    let message = create(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}));
    assert!(
        message.starts_with("linux.resources.hugepageLimits: no ")
            && message.contains("controller \"hugetlb\" is not available"),
        "{message}"
    );
    if controllers(&plan).iter().any(|name| name == "cpu") {
        let message = create(json!({"cpu": {"quota": 1}}));
        assert!(
            message.starts_with("linux.resources.cpu.quota: cannot write "),
            "{message}"
        );
        assert!(
            message.ends_with("Invalid argument (os error 22)"),
            "{message}"
        );
    }
    let message = create(json!({"cpu": {"cpus": "5000"}}));
    assert!(message.contains("CPU 5000 does not exist"), "{message}");
}

#[test]
fn a_process_that_is_gone_leaves_nothing() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let mut process = Sleeper::new();
    let pid = process.pid();
    process.0.kill().unwrap();
    process.0.wait().unwrap();
    let none = LinuxResources::default();
    SandboxCgroup::create(&plan, &none, OVERHEAD, Some(pid)).unwrap_err();
    for path in plan.paths().values() {
        assert!(!path.exists(), "{}", path.display());
    }
}

#[test]
fn a_cgroup_can_be_empty_at_first() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let none = LinuxResources::default();
    let cgroup = SandboxCgroup::create(&plan, &none, OVERHEAD, None).unwrap();
    assert!(cgroup.processes().unwrap().is_empty());
    let process = Sleeper::new();
    cgroup.add_process(process.pid()).unwrap();
    assert_eq!(cgroup.processes().unwrap(), [process.pid()]);
    drop(process);
    cgroup.abandon(std::process::id()).unwrap();
    assert_gone(&cgroup);
}

#[test]
fn a_cgroup_that_was_there_stays() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let process = Sleeper::new();
    let none = LinuxResources::default();
    let first = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(process.pid())).unwrap();
    let other = Sleeper::new();
    let second = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(other.pid())).unwrap();
    assert_eq!(second.processes().unwrap().len(), 2, "with a warning");
    first.kill().unwrap();
    second.remove().unwrap();
    for path in first.paths().values() {
        assert!(path.is_dir(), "{}", path.display());
    }
    first.remove().unwrap();
    assert_gone(&first);
}

#[test]
fn a_frozen_cgroup_stands_still_and_takes_no_sandbox() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let process = Sleeper::new();
    let none = LinuxResources::default();
    let cgroup = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(process.pid())).unwrap();
    match cgroup.freeze() {
        Err(CgroupError::NoFreezer(_)) => {
            eprintln!("SKIPPED: no freezer is mounted");
        }
        result => {
            result.unwrap();
            assert!(cgroup.is_frozen().unwrap());
            let other = Sleeper::new();
            let error =
                SandboxCgroup::create(&plan, &none, OVERHEAD, Some(other.pid())).unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("container's cgroup unexpectedly frozen: ")
            );
            cgroup.thaw().unwrap();
            assert!(!cgroup.is_frozen().unwrap());
            // It goes on when it is scheduled next.
            let goes_on = || matches!(process.state(), 'S' | 'R');
            assert!((0..500).any(|_| goes_on() || {
                pause();
                false
            }));
        }
    }
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_gone(&cgroup);
}

#[test]
fn children_of_a_cgroup_go_with_it() {
    let Some(plan) = plan(&format!("/{}", unique())) else {
        return;
    };
    let process = Sleeper::new();
    let none = LinuxResources::default();
    let cgroup = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(process.pid())).unwrap();
    for path in cgroup.paths().values() {
        fs::create_dir_all(path.join("a/b")).unwrap();
    }
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_gone(&cgroup);
}

#[test]
fn a_relative_path_is_below_the_own_cgroup() {
    let Some(plan) = plan(&unique()) else {
        return;
    };
    let process = Sleeper::new();
    let none = LinuxResources::default();
    let cgroup = SandboxCgroup::create(&plan, &none, OVERHEAD, Some(process.pid())).unwrap();
    cgroup.kill().unwrap();
    cgroup.remove().unwrap();
    assert_gone(&cgroup);
}
