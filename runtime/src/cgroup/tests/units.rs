//! Cgroups that are units of systemd: where it runs, and what is said where it does not.

use super::*;

#[test]
fn without_systemd_there_are_no_units() {
    if Path::new("/run/systemd/system").exists() {
        eprintln!("SKIPPED: systemd runs here");
        return;
    }
    assert_eq!(
        Plan::new(Driver::Systemd, "", "a").unwrap_err().to_string(),
        "systemd not running on this host, cannot use systemd cgroups manager"
    );
}

/// A place in a unit, or `None`, which is said.
fn scope() -> Option<Plan> {
    if !Path::new("/run/systemd/system").is_dir() {
        eprintln!("SKIPPED: systemd does not run here");
        return None;
    }
    let path = format!("cloister-test.slice:cloister:{}", unique());
    let plan = Plan::new(Driver::Systemd, &path, "a").unwrap();
    let annotations = [
        ("TimeoutStopSec", "5"),
        ("CollectMode", "'inactive-or-failed'"),
    ];
    let annotations = annotations.map(|(name, value)| {
        let name = format!("org.systemd.property.{name}");
        (name, value.to_owned())
    });
    Some(plan.with_annotations(&annotations.into()).unwrap())
}

#[test]
fn a_scope_holds_its_processes_and_goes_without_a_trace() {
    let Some(plan) = scope() else {
        return;
    };
    let has_memory = controllers(&plan).iter().any(|name| name == "memory");
    let memory = |limit: i64| match has_memory {
        true => json!({"limit": limit}),
        false => json!({}),
    };
    let process = Sleeper::new();
    let limits = resources(json!({
        "memory": memory(64 << 20),
        "pids": {"limit": 1000},
        "cpu": {"shares": 512, "quota": 33_333, "period": 100_000},
    }));
    // The name can be used again.
    for _ in 0..2 {
        let before = process.places();
        let cgroup = SandboxCgroup::create(&plan, &limits, OVERHEAD, Some(process.pid())).unwrap();
        for (controller, place) in process.places() {
            assert_eq!(place, cgroup.paths()[&controller], "{controller}");
        }
        let limit = cgroup.stats().unwrap().memory.usage.limit;
        assert!(limit == 80 << 20 || !has_memory, "{limit}");
        cgroup.abandon(process.pid()).unwrap();
        assert_gone(&cgroup);
        assert_eq!(process.places(), before);
    }
    let cgroup = SandboxCgroup::create(&plan, &limits, OVERHEAD, Some(process.pid())).unwrap();
    let error = SandboxCgroup::create(&plan, &limits, OVERHEAD, Some(process.pid())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("container's cgroup is not empty: 1 process(es)")
    );
    let second = Sleeper::new();
    cgroup.add_process(second.pid()).unwrap();
    assert_eq!(cgroup.processes().unwrap().len(), 2);
    cgroup
        .update(&resources(json!({"memory": memory(128 << 20)})))
        .unwrap();
    cgroup
        .update(&resources(json!({"pids": {"limit": -1}})))
        .unwrap();
    let stats = cgroup.stats().unwrap();
    assert!(stats.memory.usage.limit == 144 << 20 || !has_memory);
    assert_eq!((stats.pids.limit, stats.pids.current), (0, 2));
    cgroup.freeze().unwrap();
    cgroup.thaw().unwrap();
    let text = serde_json::to_string(&cgroup).unwrap();
    let later: SandboxCgroup = serde_json::from_str(&text).unwrap();
    later.kill().unwrap();
    later.remove().unwrap();
    assert_gone(&later);
    later.remove().unwrap();
}

#[test]
fn a_scope_whose_limits_cannot_be_set_lets_its_process_go() {
    let Some(plan) = scope() else {
        return;
    };
    let process = Sleeper::new();
    let before = process.places();
    let limits = resources(json!({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}));
    let error = SandboxCgroup::create(&plan, &limits, OVERHEAD, Some(process.pid())).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("linux.resources.hugepageLimits: no "),
        "{error}"
    );
    assert_eq!(process.places(), before);
    assert!(matches!(process.state(), 'S' | 'R'));
    for path in plan.paths().values() {
        assert!(!path.exists(), "{}", path.display());
    }
}
