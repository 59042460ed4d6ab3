//! The container's cgroup.

use std::fs;

use serde_json::json;

use crate::support::{Bundle, Tests, has_controller};

pub(crate) const TESTS: Tests = &[
    (
        "devices_are_allowed_by_the_list",
        devices_are_allowed_by_the_list,
    ),
    ("every_form_of_a_device_rule", every_form_of_a_device_rule),
    ("limits_are_written", limits_are_written),
    (
        "a_process_over_its_memory_limit_is_killed",
        a_process_over_its_memory_limit_is_killed,
    ),
    ("too_many_processes_fail", too_many_processes_fail),
    ("a_limit_of_no_processes", a_limit_of_no_processes),
    ("huge_pages", huge_pages),
    ("processors", processors),
    (
        "a_limit_without_its_controller_is_an_error",
        a_limit_without_its_controller_is_an_error,
    ),
    ("unified_files_are_written", unified_files_are_written),
    (
        "files_of_the_hosts_processors_and_devices_are_left_to_the_host",
        files_of_the_hosts_processors_and_devices_are_left_to_the_host,
    ),
    (
        "cgroups_made_inside_are_removed",
        cgroups_made_inside_are_removed,
    ),
    (
        "a_parent_that_is_no_cgroup_is_an_error",
        a_parent_that_is_no_cgroup_is_an_error,
    ),
];

fn devices_are_allowed_by_the_list() {
    // /dev/kmsg (1:11) is no default device.
    let script = "mknod /dev/mine c 1 11 && echo made; dd if=/dev/mine count=0 2>/dev/null && echo open; echo x > /dev/null && echo null";
    let bundle = || {
        let caps = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_ADMIN"]);
        Bundle::script(script).set(
            "/process/capabilities",
            json!({"bounding": caps, "permitted": caps, "effective": caps}),
        )
    };
    assert_eq!(bundle().run().stdout, "made\nnull\n");
    let allowed = bundle().push(
        "/linux/resources/devices",
        json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}),
    );
    assert_eq!(allowed.run().stdout, "made\nopen\nnull\n");
}

/// The last entry that speaks of an access decides.
fn every_form_of_a_device_rule() {
    // /dev/kmsg (1:11), to read and to write.
    let script = "mknod /dev/mine c 1 11 && echo m; dd if=/dev/mine count=0 2>/dev/null && echo r; dd of=/dev/mine count=0 conv=notrunc </dev/null 2>/dev/null && echo w; true";
    let caps = json!(["CAP_MKNOD", "CAP_SYSLOG", "CAP_SYS_ADMIN"]);
    let all = json!({"allow": true, "access": "rwm"});
    let kmsg = |allow: bool, access: &str| json!({"allow": allow, "type": "c", "major": 1, "minor": 11, "access": access});
    for (rules, expected) in [
        (json!([]), "m"),
        (json!([all]), "m r w"),
        (
            json!([{"allow": true, "type": "a", "major": -1, "minor": -1, "access": "rwm"}]),
            "m r w",
        ),
        (json!([{"allow": true, "type": "c", "access": "r"}]), "m r"),
        (json!([{"allow": true, "type": "b", "access": "rwm"}]), "m"),
        (
            json!([{"allow": true, "type": "c", "major": 1, "access": "rw"}]),
            "m r w",
        ),
        (
            json!([{"allow": true, "type": "c", "minor": 11, "access": "w"}]),
            "m w",
        ),
        (
            json!([{"allow": true, "type": "c", "major": 2, "minor": 11, "access": "rw"}]),
            "m",
        ),
        (json!([kmsg(true, "rwm"), kmsg(false, "w")]), "m r"),
        (json!([all, kmsg(false, "rw"), kmsg(true, "r")]), "m r"),
        (json!([all, {"allow": false, "access": "rwm"}]), "m"),
        // All accesses if none is named.
        (
            json!([{"allow": true, "type": "c", "major": 1, "minor": 11}]),
            "m r w",
        ),
    ] {
        let outcome = Bundle::script(script)
            .set(
                "/process/capabilities",
                json!({"bounding": caps, "permitted": caps, "effective": caps}),
            )
            .set("/linux/resources/devices", rules.clone())
            .run();
        assert_eq!(outcome.lines().join(" "), expected, "{rules}");
    }
}

fn limits_are_written() {
    if !["memory", "cpu", "pids"]
        .iter()
        .all(|name| has_controller(name))
    {
        return;
    }
    let script = "cd /sys/fs/cgroup; cat memory.max memory.low pids.max cpu.max cpu.weight";
    let outcome = Bundle::script(script)
        .set(
            "/linux/resources/memory",
            json!({"limit": 67_108_864, "swap": 134_217_728, "reservation": 1_048_576}),
        )
        .set(
            "/linux/resources/cpu",
            json!({"quota": 50_000, "period": 100_000, "shares": 1024}),
        )
        .set("/linux/resources/pids", json!({"limit": 50}))
        .run();
    assert_eq!(
        outcome.lines(),
        ["67108864", "1048576", "50", "50000 100000", "100"]
    );
}

fn a_process_over_its_memory_limit_is_killed() {
    if !has_controller("memory") {
        return;
    }
    let bundle = Bundle::script("head -c 200000000 /dev/zero > /dev/shm/x; echo $?")
        .set(
            "/linux/resources/memory",
            json!({"limit": 33_554_432, "swap": 33_554_432}),
        )
        .set("/mounts/3/options", json!(["size=400m"]));
    let mut oom = false;
    let outcome = bundle
        .run_with(|container| {
            while !fs::read_to_string(bundle.cgroup_parent.join(&bundle.id).join("cgroup.events"))
                .unwrap()
                .contains("populated 0")
            {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            oom = container.oom_killed();
        })
        .unwrap();
    assert!(oom, "{outcome:?}");
    assert_ne!(outcome.stdout, "0\n");
}

fn too_many_processes_fail() {
    if !has_controller("pids") {
        return;
    }
    let outcome = Bundle::script("sleep 1 & sleep 1 & sleep 1 & sleep 1 & wait; echo end")
        .set("/linux/resources/pids", json!({"limit": 3}))
        .run();
    assert!(outcome.stderr.contains("can't fork"), "{outcome:?}");
}

fn a_limit_of_no_processes() {
    if !has_controller("pids") {
        return;
    }
    let outcome = Bundle::script("echo start; (echo below) || echo none")
        .set("/linux/resources/pids", json!({"limit": 0}))
        .run();
    assert!(!outcome.stdout.contains("below"), "{outcome:?}");
    let outcome = Bundle::script("cat /sys/fs/cgroup/pids.max")
        .set("/linux/resources/pids", json!({"limit": -1}));
    let outcome = outcome.run();
    assert_eq!(outcome.lines(), ["max"]);
}

fn huge_pages() {
    // Of a size that no machine has, nothing can be used.
    let limit = |size: &str, limit: u64| {
        Bundle::script("true").set(
            "/linux/resources/hugepageLimits",
            json!([{"pageSize": size, "limit": limit}]),
        )
    };
    limit("3GB", 0).run();
    assert_eq!(
        limit("3GB", 1 << 30).error(),
        "linux.resources.hugepageLimits: the requested cgroup controller `hugetlb` is not available in the virtual machine, or has no hugetlb.3GB.max: no such file or directory"
    );
    if has_controller("hugetlb") {
        let script = "cat /sys/fs/cgroup/hugetlb.2MB.max";
        let outcome = Bundle::script(script)
            .set(
                "/linux/resources/hugepageLimits",
                json!([{"pageSize": "2MB", "limit": 4_194_304}]),
            )
            .run();
        assert_eq!(outcome.lines(), ["4194304"]);
    }
}

fn processors() {
    if !has_controller("cpu") {
        return;
    }
    let script = "cd /sys/fs/cgroup; cat cpu.max cpu.max.burst cpu.idle";
    let outcome = Bundle::script(script)
        .set(
            "/linux/resources/cpu",
            json!({"quota": 50_000, "period": 100_000, "burst": 10_000, "idle": 1}),
        )
        .run();
    assert_eq!(outcome.lines(), ["50000 100000", "10000", "1"]);
}

fn a_limit_without_its_controller_is_an_error() {
    let error = Bundle::script("true")
        .set(
            "/linux/resources/unified",
            json!({"rdma.max": "mlx hca_handle=1"}),
        )
        .error();
    let expected = "linux.resources.unified[\"rdma.max\"]: the requested cgroup controller `rdma` is not available in the virtual machine, or has no rdma.max: no such file or directory";
    assert_eq!(error, expected);
}

fn unified_files_are_written() {
    // A file that every cgroup has.
    let outcome = Bundle::script("cat /sys/fs/cgroup/cgroup.max.depth")
        .set("/linux/resources/unified", json!({"cgroup.max.depth": "3"}))
        .run();
    assert_eq!(outcome.lines(), ["3"]);
}

fn files_of_the_hosts_processors_and_devices_are_left_to_the_host() {
    Bundle::script("true")
        .set(
            "/linux/resources/unified",
            json!({"cpuset.cpus": "1000-1001", "io.max": "259:4000 rbps=1"}),
        )
        .run();
}

fn cgroups_made_inside_are_removed() {
    let outcome = Bundle::script("mkdir -p /sys/fs/cgroup/a/b/c && echo made")
        .set("/mounts/6/options", json!(["nosuid", "noexec", "nodev"]))
        .run();
    assert_eq!(outcome.lines(), ["made"]);
}

fn a_parent_that_is_no_cgroup_is_an_error() {
    let mut bundle = Bundle::script("true");
    bundle.cgroup_parent = bundle.dir.path().join("none");
    assert!(bundle.error().ends_with("is not in a cgroup v2 hierarchy"));
}
