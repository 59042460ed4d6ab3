//! Fields of the specification that depend on the guest's kernel or on both sides, in a real guest.
//! What the guest does alone has its tests in `agent/container`, on any kernel.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::Instant;

use serde_json::{Value, json};

use super::harness::{Bundle, Cmd};

/// Runs a script in a container whose specification was changed; gives its output's lines.
fn see(script: &str, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let finished = Bundle::sh(script).with(change).run();
    let out = finished.ok();
    out.lines().map(str::to_owned).collect()
}

#[test]
fn scheduling_and_personality() {
    let script = "cut -d' ' -f40,41 /proc/self/stat; ionice; uname -m";
    let lines = see(script, |spec| {
        spec["process"]["scheduler"] = json!({"policy": "SCHED_RR", "priority": 7});
        spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 2});
        spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    assert_eq!(lines, ["7 2", "best-effort: prio 2", "i686"]);
    let lines = see("cut -d' ' -f41 /proc/self/stat", |spec| {
        spec["process"]["scheduler"] = json!({
            "policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 100_000_000,
            // Without it nothing could be started.
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
        });
    });
    // The shell executes its last command in its own place.
    assert_eq!(lines, ["6"]);
}

#[test]
fn ids_of_mounts() {
    let mapping = |from: u32, to: u32| json!([{"containerID": from, "hostID": to, "size": 1}]);
    let lines = see("stat -c '%u %g' /t", |spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": "/t", "type": "tmpfs", "source": "tmpfs",
            "options": ["idmap", "uid=1000", "gid=1001"],
            "uidMappings": mapping(1000, 2000), "gidMappings": mapping(1001, 2001),
        }));
    });
    assert_eq!(lines, ["2000 2001"]);
}

/// A file system whose ids the host's kernel can map.
fn tmpfs(at: &Path) {
    let mount =
        Cmd::new("mount").args(["-t", "tmpfs", "-o", "mode=777,uid=1000,gid=1000", "tmpfs"]);
    mount.args([at]).run().ok();
}

/// Those of a directory of the host are mapped there, before it is shared.
#[test]
fn ids_of_bind_mounts() {
    let mapping = |from: u32, to: u32| json!([{"containerID": from, "hostID": to, "size": 10}]);
    let bundle = Bundle::new(&["sleep", "1000"]);
    // Not every file system can be mapped.
    let data = bundle.scratch("data");
    fs::create_dir(&data).expect("data");
    tmpfs(&data);
    fs::write(data.join("file"), "").expect("file");
    chown(data.join("file"), Some(1000), Some(1001)).expect("chown");
    let ids = |file: &str| {
        let metadata = fs::metadata(data.join(file)).expect("the file");
        (metadata.uid(), metadata.gid())
    };
    let bundle = bundle.with(|spec| {
        spec["process"]["user"] = json!({"uid": 2003, "gid": 2004});
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        mounts.push(json!({
            "destination": "/data", "source": data, "options": ["bind", "idmap"],
            "uidMappings": mapping(1000, 2000), "gidMappings": mapping(1000, 2000),
        }));
        mounts.push(json!({"destination": "/plain", "source": data, "options": ["bind", "ro"]}));
    });
    bundle.command("run", &["--detach"], "test").run().ok();
    let script =
        "stat -c '%u %g' /data/file /plain/file; echo text >/data/new; stat -c '%u %g' /data/new";
    let seen = bundle.cloister(["exec", "test", "sh", "-c", script]).run();
    assert_eq!(seen.ok(), "2000 2001\n1000 1001\n2003 2004\n");
    assert_eq!(ids("new"), (1003, 1004));
    // And so are they for those who look from outside.
    let pid = bundle.state("test")["pid"].to_string();
    let outside = fs::metadata(format!("/proc/{pid}/root/data/file")).expect("the file");
    assert_eq!((outside.uid(), outside.gid()), (2000, 2001));
    bundle.cloister(["delete", "--force", "test"]).run().ok();
    // By the container's mappings, for which its option asks.
    let mapped = Bundle::sh("stat -c '%u %g' /data/root").with(|spec| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut();
        namespaces
            .expect("namespaces")
            .push(json!({"type": "user"}));
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 5000}]);
        spec["linux"]["uidMappings"] = mapping.clone();
        spec["linux"]["gidMappings"] = mapping;
        spec["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/data", "source": data, "options": ["rbind", "ridmap"],
        }));
    });
    fs::write(data.join("root"), "").expect("file");
    Cmd::new("chown")
        .args(["-R", "100000:100000"])
        .args([&mapped.rootfs()])
        .run()
        .ok();
    assert_eq!(mapped.run().ok(), "0 0\n");
    Cmd::new("umount").args([&data]).run().ok();

    let bundle = Bundle::sh("true").with(|spec| {
        spec["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/data", "source": "/proc", "options": ["bind", "idmap"],
            "uidMappings": mapping(1000, 2000), "gidMappings": mapping(1001, 2001),
        }));
    });
    let reason = "mounts[7]: /proc: its file system cannot be id-mapped on this machine";
    bundle.run().fails(1, &[reason]);
}

#[test]
fn hooks_of_the_start_run_inside() {
    let bundle = Bundle::sh("cat /tmp/state");
    let directory = bundle.path().to_owned();
    let bundle = bundle.with(|spec| {
        spec["annotations"] = json!({"org.example.key": "value"});
        spec["hooks"] = json!({"startContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state"], "timeout": 60,
        }]});
    });
    let state: Value = serde_json::from_str(&bundle.run().ok()).expect("the state");
    assert_eq!(state["pid"], 1);
    assert_eq!(state["status"], "created");
    assert_eq!(state["bundle"], json!(directory));
    assert_eq!(state["annotations"]["org.example.key"], "value");
    let bundle = Bundle::sh("echo never").with(|spec| {
        spec["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]});
    });
    let finished = bundle.run();
    assert_eq!(finished.out(), "");
    finished.fails(1, &["error running startContainer hook #0: exit status 1"]);
}

/// The first hook of the program takes longer than any other request may.
#[test]
fn hooks_of_the_start_have_their_own_time() {
    let bundle = Bundle::sh("cat /tmp/after").with(|spec| {
        spec["hooks"] = json!({"startContainer": [{
            "path": "/bin/sh", "args": ["sh", "-c", "sleep 22; echo late > /tmp/after"], "timeout": 300,
        }]});
    });
    let finished = bundle
        .command("run", &[], "test")
        .env("CLOISTER_REQUEST_TIMEOUT_S", "20")
        .run();
    assert_eq!(finished.ok(), "late\n");
}

#[test]
fn devices_of_the_guest() {
    let script = "for d in null fuse tun kvm sda; do stat -c '%n %F %t:%T' /dev/$d; done; true </dev/fuse && echo open; true </dev/sda || echo none";
    let lines = see(script, |spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229},
            {"path": "/dev/tun", "type": "c", "major": 10, "minor": 200},
            {"path": "/dev/kvm", "type": "c", "major": 10, "minor": 232},
            {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0},
        ]);
        spec["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
    });
    assert_eq!(
        lines,
        [
            "/dev/null character special file 1:3",
            "/dev/fuse character special file a:e5",
            "/dev/tun character special file a:c8",
            "/dev/kvm character special file a:e8",
            "/dev/sda block special file 8:0",
            "open",
            "none",
        ]
    );
}

#[test]
fn file_systems_of_the_guests_kernel() {
    let script = "cut -d' ' -f2,3 /proc/self/mounts | grep ' /t/\\|^/t/'";
    let kinds = [
        "bpf",
        "binfmt_misc",
        "hugetlbfs",
        "mqueue",
        "ramfs",
        "securityfs",
        "sysfs",
    ];
    let lines = see(script, |spec| {
        let mounts = spec["mounts"].as_array_mut().expect("mounts");
        for kind in kinds {
            mounts.push(json!({"destination": format!("/t/{kind}"), "type": kind, "source": kind}));
        }
    });
    let expected: Vec<_> = kinds
        .iter()
        .map(|kind| format!("/t/{kind} {kind}"))
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn as_many_open_files_as_on_the_host() {
    let lines = see("ulimit -Sn; ulimit -Hn", |spec| {
        spec["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "soft": 2_000_000, "hard": 1_073_741_816}]);
    });
    assert_eq!(lines, ["2000000", "1073741816"]);
}

#[test]
fn a_small_quota_does_not_hold_up_the_boot() {
    const QUOTA: u64 = 10_000;
    const PERIOD: u64 = 100_000;
    let path = format!("/cloister-quota-{}", std::process::id());
    let bundle = Bundle::new(&["true"]).with(|spec| {
        spec["linux"]["cgroupsPath"] = json!(path);
        spec["linux"]["resources"] = json!({"cpu": {"quota": QUOTA, "period": PERIOD}});
    });
    let before = Instant::now();
    bundle.command("create", &[], "test").run().ok();
    let elapsed = before.elapsed().as_micros();
    // With cgroup v2, else with v1.
    let read = |dir: &str, file: &str| {
        let path = format!("/sys/fs/cgroup{dir}{path}/{file}");
        fs::read_to_string(path).ok()
    };
    let (quota, used) = match read("", "cpu.max") {
        Some(quota) => {
            let stat = read("", "cpu.stat").expect("the cgroup's figures");
            let used = stat
                .lines()
                .find_map(|line| line.strip_prefix("usage_usec "));
            let used: u128 = used.expect("usage_usec").parse().expect("a number");
            (quota, used)
        }
        None => {
            let quota = read("/cpu", "cpu.cfs_quota_us").expect("the cgroup's quota");
            let used = read("/cpuacct", "cpuacct.usage").expect("the cgroup's figures");
            let used: u128 = used.trim().parse().expect("a number");
            (quota, used / 1000)
        }
    };
    assert_eq!(quota.split_whitespace().next(), Some("10000"), "{quota}");
    // Twice what it allows, at least: it cannot have held all the time.
    assert!(
        used * u128::from(PERIOD) > 2 * elapsed * u128::from(QUOTA),
        "{used} of {elapsed} µs used"
    );
    bundle.cloister(["delete", "--force", "test"]).run().ok();
}

#[test]
fn a_quota_that_cannot_be_had_is_refused_by_name() {
    Bundle::new(&["true"])
        .with(|spec| {
            spec["linux"]["cgroupsPath"] =
                json!(format!("/cloister-no-quota-{}", std::process::id()));
            spec["linux"]["resources"] = json!({"cpu": {"quota": 1}});
        })
        .run()
        .fails(
            1,
            &[
                "linux.resources.cpu.quota: cannot write ",
                "Invalid argument",
            ],
        );
}

#[test]
fn limits_of_the_guests_cgroup() {
    let script = "cd /sys/fs/cgroup; cat memory.max memory.low pids.max cpu.max cpu.max.burst cpu.weight memory.oom.group";
    let lines = see(script, |spec| {
        spec["linux"]["resources"] = json!({
            "memory": {"limit": 67_108_864, "swap": 67_108_864, "reservation": 1_048_576},
            "cpu": {"quota": 50_000, "period": 100_000, "burst": 10_000, "shares": 1024},
            "pids": {"limit": 50},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}, {"pageSize": "1GB", "limit": 0}],
            "unified": {"memory.oom.group": "1"},
        });
    });
    assert_eq!(
        lines,
        [
            "67108864",
            "1048576",
            "50",
            "50000 100000",
            "10000",
            "100",
            "1"
        ]
    );
}
