//! What the specification asks for, seen from inside the container.

use std::fs;

use serde_json::{Value, json};

use super::harness::Bundle;

/// Runs a script in a container whose specification was changed; gives its output's lines.
fn see(script: &str, change: impl FnOnce(&mut Value)) -> Vec<String> {
    let finished = Bundle::sh(script).with(change).run();
    let out = finished.ok();
    out.lines().map(str::to_owned).collect()
}

#[test]
fn environment_and_directory() {
    let lines = see("echo $COLOUR; pwd; echo $HOME", |spec| {
        spec["process"]["env"] = json!(["PATH=/bin", "COLOUR=blue green"]);
        spec["process"]["cwd"] = "/tmp".into();
    });
    assert_eq!(lines, ["blue green", "/tmp", "/root"]);
}

/// KVM remembers how fast the counter ran when it was loaded. Here it may tolerate no other speed, which the kernel has measured
/// since: where it runs faster than was thought, a guest that keeps what KVM remembers has no timers.
#[test]
fn timers_end_whatever_kvm_remembers() {
    const TOLERANCE: &str = "/sys/module/kvm/parameters/tsc_tolerance_ppm";
    struct Restored(String);
    impl Drop for Restored {
        fn drop(&mut self) {
            fs::write(TOLERANCE, &self.0).expect(TOLERANCE);
        }
    }
    let _before = Restored(fs::read_to_string(TOLERANCE).expect(TOLERANCE));
    fs::write(TOLERANCE, "0").expect(TOLERANCE);
    assert_eq!(see("sleep 1; echo awake", |_| ()), ["awake"]);
}

#[test]
fn user_groups_and_umask() {
    let lines = see("id -u; id -g; id -G; umask", |spec| {
        spec["process"]["user"] =
            json!({"uid": 1000, "gid": 1000, "additionalGids": [10, 20], "umask": 0o077});
    });
    assert_eq!(lines, ["1000", "1000", "1000 10 20", "0077"]);
}

#[test]
fn capabilities_are_the_five_sets() {
    let lines = see("grep Cap /proc/self/status | cut -f2", |spec| {
        spec["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "permitted": ["CAP_CHOWN", "CAP_KILL"],
            "effective": ["CAP_CHOWN"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        });
        // A user that keeps what is ambient: root would get everything back at exec.
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000});
    });
    let [inheritable, permitted, effective, bounding, ambient] = lines.as_slice() else {
        panic!("five lines: {lines:?}");
    };
    assert_eq!(inheritable, "0000000000000020");
    assert_eq!(permitted, "0000000000000020");
    assert_eq!(effective, "0000000000000020");
    assert_eq!(bounding, "0000000000002021");
    assert_eq!(ambient, "0000000000000020");
}

#[test]
fn resource_limits() {
    let lines = see("ulimit -Sn; ulimit -Hn; ulimit -Sc", |spec| {
        spec["process"]["rlimits"] = json!([
            {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        ]);
    });
    assert_eq!(lines, ["100", "200", "0"]);
}

#[test]
fn no_new_privileges_and_oom_score() {
    let lines = see(
        "grep NoNewPrivs /proc/self/status; cat /proc/self/oom_score_adj",
        |spec| {
            spec["process"]["noNewPrivileges"] = true.into();
            spec["process"]["oomScoreAdj"] = 500.into();
        },
    );
    assert_eq!(lines, ["NoNewPrivs:\t1", "500"]);
}

#[test]
fn host_name_and_domain_name() {
    let lines = see("hostname; cat /proc/sys/kernel/domainname", |spec| {
        spec["hostname"] = "abbey".into();
        spec["domainname"] = "example".into();
    });
    assert_eq!(lines, ["abbey", "example"]);
}

#[test]
fn it_is_pid_one_among_its_own() {
    let lines = see(
        "echo $$; ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; :",
        |_| {},
    );
    assert_eq!(lines.first().map(String::as_str), Some("1"));
    assert_eq!(lines.last().map(String::as_str), Some("sh"));
}

#[test]
fn masked_and_read_only_paths() {
    let script = "stat -c %t:%T /proc/keys; ls /sys/firmware | wc -l; echo x 2>/dev/null >/proc/sys/kernel/panic || echo refused";
    let lines = see(script, |spec| {
        spec["linux"]["maskedPaths"] = json!(["/proc/keys", "/sys/firmware", "/nonexistent"]);
        spec["linux"]["readonlyPaths"] = json!(["/proc/sys", "/nonexistent"]);
    });
    assert_eq!(lines, ["1:3", "0", "refused"]);
}

#[test]
fn system_controls() {
    let lines = see(
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni",
        |spec| {
            spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "1234"});
        },
    );
    assert_eq!(lines, ["1", "1234"]);
}

#[test]
fn the_seccomp_profile_is_in_force() {
    let lines = see(
        "mkdir /tmp/x 2>/dev/null; echo $?; grep Seccomp: /proc/self/status",
        |spec| {
            spec["linux"]["seccomp"] = json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
            });
        },
    );
    assert_eq!(lines, ["1", "Seccomp:\t2"]);
}

#[test]
fn mounts_and_their_options() {
    let script = "grep ' /scratch ' /proc/self/mounts; grep ' /dev/mqueue ' /proc/self/mounts | cut -d' ' -f3; grep ' /sys/fs/cgroup ' /proc/self/mounts | cut -d' ' -f3; stat -c %a /scratch";
    let lines = see(script, |spec| {
        spec["mounts"].as_array_mut().expect("mounts").push(json!({
            "destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "size=1m", "mode=1750"],
        }));
    });
    assert!(
        lines[0].starts_with("tmpfs /scratch tmpfs rw,nosuid,noexec"),
        "{lines:?}"
    );
    assert!(lines[0].contains("size=1024k"), "{lines:?}");
    assert_eq!(lines[1..], ["mqueue", "cgroup2", "1750"]);
}

#[test]
fn devices() {
    let script = "for d in null zero full random urandom tty; do test -c /dev/$d || echo missing $d; done; test -L /dev/ptmx -o -c /dev/ptmx && echo ptmx; stat -c '%a %u %t %T' /dev/extra; echo x >/dev/null && echo writable; head -c 2 /dev/zero | wc -c";
    let lines = see(script, |spec| {
        spec["linux"]["devices"] = json!([
            {"path": "/dev/extra", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7},
        ]);
    });
    assert_eq!(lines, ["ptmx", "640 7 1 3", "writable", "2"]);
}

#[test]
fn two_processors_are_seen() {
    let bundle = Bundle::new(&["nproc"]);
    let finished = bundle
        .command("run", &[], "smp")
        .env("CLOISTER_VCPUS", "2")
        .run();
    assert_eq!(finished.ok(), "2\n");
}

#[test]
fn the_guest_has_the_memory_it_was_given() {
    let bundle = Bundle::sh("awk '/MemTotal/ {print $2}' /proc/meminfo");
    let memory = |mib: &str| -> u64 {
        let finished = bundle
            .command("run", &[], "mem")
            .env("CLOISTER_MEMORY_MIB", mib)
            .run();
        finished.ok().trim().parse().expect("a number")
    };
    let (small, large) = (memory("256"), memory("512"));
    assert!(
        large - small > 200 << 10,
        "{small} kB with 256 MiB, {large} kB with 512 MiB"
    );
    // Above the hole below 4 GiB.
    assert!(memory("4608") > 4 << 20);
}

#[test]
fn loopback_is_up_and_the_only_interface() {
    let lines = see(
        "ls /sys/class/net; ip -o addr show dev lo | grep -c 'inet 127.0.0.1/8'",
        |_| {},
    );
    assert_eq!(lines, ["lo", "1"]);
}

#[test]
fn user_namespace_mappings() {
    let bundle = Bundle::sh("cat /proc/self/uid_map | tr -s ' '; id -u").with(|spec| {
        let namespaces = spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces");
        namespaces.push(json!({"type": "user"}));
        spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
        spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    });
    let lines = bundle.run().ok();
    let lines: Vec<_> = lines.lines().map(str::trim).collect();
    assert_eq!(lines, ["0 100000 65536", "0"]);
}

#[test]
fn time_namespace_offsets() {
    let lines = see("cut -d. -f1 /proc/uptime", |spec| {
        let namespaces = spec["linux"]["namespaces"]
            .as_array_mut()
            .expect("namespaces");
        namespaces.push(json!({"type": "time"}));
        spec["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1_000_000, "nanosecs": 0}});
    });
    let uptime: u64 = lines[0].parse().expect("a number");
    assert!(uptime >= 1_000_000, "{uptime}");
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change); 7] = [
        ("process.apparmorProfile", |s| {
            s["process"]["apparmorProfile"] = "my-profile".into()
        }),
        ("process.selinuxLabel", |s| {
            s["process"]["selinuxLabel"] = "system_u:system_r".into()
        }),
        ("linux.intelRdt", |s| {
            s["linux"]["intelRdt"] = json!({"closID": "x"})
        }),
        ("linux.resources.rdma", |s| {
            s["linux"]["resources"]["rdma"] = json!({"mlx5_1": {"hcaHandles": 3}});
        }),
        ("linux.namespaces", |s| {
            let namespaces = s["linux"]["namespaces"].as_array_mut().expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "network");
            namespaces.push(json!({"type": "network", "path": "/proc/1/ns/net"}));
        }),
        ("windows", |s| {
            s["windows"] = json!({"layerFolders": ["C:\\x"]})
        }),
        ("mounts[7]", |s| {
            s["mounts"].as_array_mut().expect("mounts").truncate(7);
            s["mounts"].as_array_mut().expect("mounts").push(json!({
                "destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["sparkling"],
            }));
        }),
    ];
    for (field, change) in cases {
        let bundle = Bundle::new(&["true"]).with(change);
        bundle.run().fails(1, &[field]);
    }
}
