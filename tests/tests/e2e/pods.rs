//! Several containers in one virtual machine.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::harness::{Bundle, Cmd, Residue, eventually};

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

/// A pod's sandbox, running, with the name `pod`.
pub(super) fn sandbox(bundle: Bundle) -> Bundle {
    sandbox_with(bundle, &[])
}

fn sandbox_with(bundle: Bundle, settings: &[(&str, &str)]) -> Bundle {
    let bundle = bundle.with(|spec| {
        spec["annotations"] = json!({TYPE: "sandbox", SANDBOX: "pod"});
        spec["hostname"] = "the-pod".into();
    });
    let mut run = bundle.command("run", &["--detach"], "pod");
    for (key, value) in settings {
        run = run.env(key, value);
    }
    run.run().ok();
    bundle
}

/// Runs a script in a container of the pod, from a second specification in the same directory.
pub(super) struct Member<'a> {
    pod: &'a Bundle,
    name: &'static str,
}

impl<'a> Member<'a> {
    pub(super) fn new(
        pod: &'a Bundle,
        name: &'static str,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Self {
        let text = fs::read(pod.config()).unwrap();
        let mut spec: Value = serde_json::from_slice(&text).unwrap();
        spec["annotations"] = json!({TYPE: "container", SANDBOX: "pod"});
        spec["process"]["args"] = args.into();
        spec["hostname"] = Value::Null;
        let pid = pod.state("pod")["pid"].clone();
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            let link = match namespace["type"].as_str().unwrap() {
                "network" => "net",
                "ipc" => "ipc",
                "uts" => "uts",
                _ => continue,
            };
            namespace["path"] = format!("/proc/{pid}/ns/{link}").into();
        }
        change(&mut spec);
        let dir = pod.scratch(name);
        fs::create_dir_all(&dir).unwrap();
        super::harness::busybox_rootfs(&dir.join("rootfs"));
        fs::write(dir.join("config.json"), spec.to_string()).unwrap();
        Self { pod, name }
    }

    pub(super) fn command(&self, command: &str, options: &[&str]) -> super::harness::Cmd {
        let dir = self.pod.scratch(self.name);
        let command_line = self.pod.cloister([command]).args(options).args([
            "--bundle",
            dir.to_str().unwrap(),
            self.name,
        ]);
        if command == "create" || options.contains(&"--detach") {
            command_line.outlived()
        } else {
            command_line
        }
    }
}

#[test]
fn a_member_is_told_of_limits_that_only_its_sandbox_can_have() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let member = Member::new(&pod, "member", &["sleep", "1000"], |spec| {
        spec["linux"]["resources"]["cpu"] = json!({"cpus": "0", "shares": 512});
    });
    let text = "linux.resources.cpu.cpus: limits this machine's processes alone, and those of its \
                virtual machine are in the cgroup of container pod";
    let run = member.command("run", &["--detach"]).run();
    assert_eq!(run.fails(0, &[text]).err().lines().count(), 1);
    let update = pod.cloister(["update", "--cpuset-cpus", "0", "member"]);
    assert_eq!(update.run().fails(0, &[text]).err().lines().count(), 1);
    pod.cloister(["update", "--cpuset-cpus", "0", "pod"])
        .run()
        .fails(1, &["linux.resources.cpu.cpus", "has no cgroup here"]);
    pod.cloister(["delete", "--force", "member"]).run().ok();
}

#[test]
fn a_member_has_its_bind_mounts_id_mapped() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let data = pod.scratch("data");
    fs::create_dir(&data).unwrap();
    let mount = Cmd::new("mount").args(["-t", "tmpfs", "-o", "uid=1000", "tmpfs"]);
    mount.args([&data]).run().ok();
    let map = json!([{"containerID": 1000, "hostID": 2000, "size": 1}, {"containerID": 0, "hostID": 0, "size": 1}]);
    let member = Member::new(&pod, "mapped", &["stat", "-c", "%u %g", "/data"], |spec| {
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "source": data, "options": ["bind", "ro", "idmap"],
            "uidMappings": map, "gidMappings": map,
        }));
    });
    assert_eq!(member.command("run", &[]).run().ok(), "2000 0\n");
    Cmd::new("umount").args([&data]).run().ok();
}

#[test]
fn containers_of_a_pod_share_what_it_says_and_nothing_else() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let script = "hostname; for ns in net ipc uts pid mnt; do readlink /proc/self/ns/$ns; done; echo own >/mine; cat /proc/1/cmdline";
    let first = Member::new(&pod, "first", &["sh", "-c", script], |_| {});
    let out = first.command("run", &[]).run().ok();
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(lines[0], "the-pod");
    let script = "for ns in net ipc uts pid mnt; do readlink /proc/self/ns/$ns; done";
    let in_pod = pod.cloister(["exec", "pod", "sh", "-c", script]).run().ok();
    let in_pod: Vec<_> = in_pod.lines().collect();
    assert_eq!(lines[1..4], in_pod[..3], "net, ipc and uts are the pod's");
    assert_ne!(lines[4], in_pod[3], "the pid namespace is its own");
    assert_ne!(lines[5], in_pod[4], "so are its mounts");
    assert_eq!(
        fs::read_to_string(pod.scratch("first/rootfs/mine")).unwrap(),
        "own\n"
    );
    assert!(!pod.rootfs().join("mine").exists());
    // One virtual machine.
    let machines = || {
        let processes = fs::read_dir("/proc").unwrap();
        processes
            .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("comm")).ok())
            .filter(|name| name.trim() == "cloister-vmm")
            .count()
    };
    let second = Member::new(&pod, "second", &["sleep", "1000"], |_| {});
    let before = machines();
    second.command("run", &["--detach"]).run().ok();
    assert!(machines() <= before, "no machine was added");
    assert_eq!(pod.status("second"), "running");
    assert_eq!(
        pod.cloister(["exec", "second", "cat", "/proc/1/cmdline"])
            .run()
            .ok(),
        "sleep\x001000\0"
    );
    pod.cloister(["kill", "second", "TERM"]).run().ok();
    // Nothing handles it in a pid namespace's first process.
    pod.cloister(["kill", "second", "KILL"]).run().ok();
    eventually("it has ended", || pod.status("second") == "stopped");
    pod.cloister(["delete", "second"]).run().ok();
    assert_eq!(pod.status("pod"), "running");
}

#[test]
fn each_container_has_its_own_exit_code_streams_mounts_and_limits() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let source = pod.scratch("volume");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "shared\n").unwrap();
    let script = "cat; cat /data/file; echo new >/data/other; cat /sys/fs/cgroup/pids.max; exit 9";
    let member = Member::new(&pod, "member", &["sh", "-c", script], |spec| {
        let mounts = spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/sys/fs/cgroup");
        mounts.push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
        mounts.push(json!({
            "destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rw"],
        }));
        spec["linux"]["resources"]["pids"] = json!({"limit": 33});
    });
    let done = member.command("run", &[]).input("typed\n").run();
    assert_eq!(done.code(), 9, "{done}");
    assert_eq!(done.out(), "typed\nshared\n33\n", "{done}");
    assert_eq!(fs::read_to_string(source.join("other")).unwrap(), "new\n");
    // The name is free again, in the guest too.
    let done = member.command("run", &[]).input("again\n").run();
    assert_eq!(done.code(), 9, "{done}");
}

#[test]
fn members_with_limits_make_the_pod_grow() {
    let pod = sandbox_with(
        Bundle::new(&["sleep", "1000"]),
        &[("CLOISTER_MAX_VCPUS", "4")],
    );
    let member = |name, args: &[&str]| {
        Member::new(&pod, name, args, |spec| {
            let resources = &mut spec["linux"]["resources"];
            resources["cpu"] = json!({"quota": 120_000, "period": 100_000});
            resources["memory"] = json!({"limit": 100 << 20});
        })
    };
    // 1.2 processors, and as many again beside them.
    let first = member("first", &["sleep", "1000"]);
    first.command("run", &["--detach"]).run().ok();
    let nproc = |id| pod.cloister(["exec", id, "nproc"]).run().ok();
    assert_eq!(nproc("first"), "2\n");
    // 100 MiB for each, and what the guest needs.
    let memory = |mib: u64| {
        let script = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
        let command = ["exec", "pod", "sh", "-c", script];
        eventually("the memory is there", || {
            let total = pod.cloister(command).run().ok();
            total
                .trim()
                .parse()
                .is_ok_and(|total: u64| (mib - 40..mib).contains(&total))
        });
    };
    memory(164);
    let second = member("second", &["nproc"]);
    assert_eq!(second.command("run", &[]).run().ok(), "3\n");
    memory(264);
    // It has gone, and what it used is there for the next.
    let third = member("third", &["nproc"]);
    assert_eq!(third.command("run", &[]).run().ok(), "3\n");
    let options = ["--cpu-period", "100000", "--cpu-quota", "350000", "first"];
    let raised = pod.cloister(["update"]).args(options).run();
    assert_eq!(raised.err(), "", "{raised}");
    assert_eq!(nproc("pod"), "4\n");
}

#[test]
fn the_pods_pid_namespace_can_be_shared() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let pid = pod.state("pod")["pid"].clone();
    let member = Member::new(&pod, "member", &["cat", "/proc/1/cmdline"], |spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "pid" {
                namespace["path"] = format!("/proc/{pid}/ns/pid").into();
            }
        }
    });
    assert_eq!(member.command("run", &[]).run().ok(), "sleep\x001000\0");
}

#[test]
fn the_pod_dies_with_its_sandbox() {
    let pod = Bundle::alone(&["sleep", "1000"]);
    fs::create_dir(pod.scratch("member")).unwrap();
    let before = Residue::now();
    let pod = sandbox(pod);
    let member = Member::new(&pod, "member", &["sleep", "1000"], |_| {});
    let running = member.command("run", &[]).spawn();
    eventually("it runs", || {
        let state = pod.cloister(["state", "member"]).run();
        state.code() == 0 && state.out().contains("running")
    });
    pod.cloister(["kill", "pod", "KILL"]).run().ok();
    let done = running.wait();
    assert_eq!(done.code(), 128 + 9, "{done}");
    pod.cloister(["delete", "pod"]).run().ok();
    before.assert_nothing_new();
}

#[test]
fn the_pod_dies_with_the_monitor_of_its_sandbox() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let member = Member::new(&pod, "member", &["sleep", "1000"], |_| {});
    let running = member.command("run", &[]).spawn();
    eventually("it runs", || {
        let state = pod.cloister(["state", "member"]).run();
        state.code() == 0 && state.out().contains("running")
    });
    let monitor = i32::try_from(pod.state("pod")["pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(monitor).unwrap(), Signal::KILL).unwrap();
    let done = running.wait();
    assert_eq!(done.code(), 128 + 9, "{done}");
}

#[test]
fn a_member_whose_monitor_is_killed_is_gone_from_the_pod() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let member = Member::new(&pod, "member", &["sleep", "999"], |spec| {
        // To be seen from the sandbox.
        let pid = pod.state("pod")["pid"].clone();
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "pid" {
                namespace["path"] = format!("/proc/{pid}/ns/pid").into();
            }
        }
    });
    member.command("run", &["--detach"]).run().ok();
    let seen = || {
        pod.cloister(["exec", "pod", "ps"])
            .run()
            .ok()
            .contains("sleep 999")
    };
    assert!(seen());
    let pid = pod.state("member")["pid"].as_i64().unwrap();
    kill_process(
        Pid::from_raw(pid.try_into().unwrap()).unwrap(),
        Signal::KILL,
    )
    .unwrap();
    eventually("the process is gone", || !seen());
    assert_eq!(pod.status("member"), "stopped");
    pod.cloister(["delete", "member"]).run().ok();
    member.command("run", &["--detach"]).run().ok();
    assert_eq!(pod.status("member"), "running");
}

#[test]
fn what_cannot_be_joined_is_refused_by_name() {
    let pod = sandbox(Bundle::new(&["sleep", "1000"]));
    let other = Member::new(&pod, "other", &["true"], |spec| {
        spec["annotations"][SANDBOX] = "nonesuch".into();
    });
    other
        .command("run", &[])
        .run()
        .fails(1, &[SANDBOX, "there is no sandbox"]);
    let pid = pod.state("pod")["pid"].clone();
    let mounts = Member::new(&pod, "mounts", &["true"], |spec| {
        for namespace in spec["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "mount" {
                namespace["path"] = format!("/proc/{pid}/ns/mnt").into();
            }
        }
    });
    mounts
        .command("run", &[])
        .run()
        .fails(1, &["mount namespace cannot be shared"]);
}

#[test]
fn a_namespace_of_a_container_is_enough_to_join_it() {
    let pod = Bundle::new(&["sleep", "1000"]);
    pod.command("run", &["--detach"], "pod").run().ok();
    let member = Member::new(&pod, "member", &["readlink", "/proc/self/ns/net"], |spec| {
        spec["annotations"] = json!({});
    });
    let inside = pod
        .cloister(["exec", "pod", "readlink", "/proc/self/ns/net"])
        .run()
        .ok();
    assert_eq!(member.command("run", &[]).run().ok(), inside);
}
