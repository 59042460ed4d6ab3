//! Namespaces and what is set in them.

use std::fs;

use serde_json::json;

use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    ("all_namespaces_are_new", all_namespaces_are_new),
    (
        "namespaces_that_are_not_listed_are_inherited",
        namespaces_that_are_not_listed_are_inherited,
    ),
    ("the_program_is_process_1", the_program_is_process_1),
    ("host_and_domain_name", host_and_domain_name),
    ("loopback_is_up", loopback_is_up),
    ("sysctl", sysctl),
    ("time_offsets", time_offsets),
    (
        "time_namespace_without_offsets",
        time_namespace_without_offsets,
    ),
    ("user_namespace", user_namespace),
    (
        "user_namespace_with_another_user",
        user_namespace_with_another_user,
    ),
    (
        "user_namespace_owns_its_cgroup",
        user_namespace_owns_its_cgroup,
    ),
    (
        "the_programs_user_owns_the_cgroup",
        the_programs_user_owns_the_cgroup,
    ),
    (
        "every_kind_of_kernel_parameter",
        every_kind_of_kernel_parameter,
    ),
    ("several_mappings", several_mappings),
];

const ALL: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

fn all_namespaces_are_new() {
    let script =
        "for n in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$n; done";
    let bundle = with_user_namespace(Bundle::script(script).namespace("time"));
    for (name, inside) in ALL.iter().zip(bundle.run().lines()) {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_ne!(outside.to_str(), Some(inside), "{name}");
        assert!(inside.starts_with(&format!("{name}:")), "{inside}");
    }
}

fn namespaces_that_are_not_listed_are_inherited() {
    let script = "for n in cgroup ipc net pid time user uts; do readlink /proc/self/ns/$n; done";
    let outcome = Bundle::script(script)
        .set(
            "/linux/namespaces",
            json!([{"type": "mount"}, {"type": "network"}]),
        )
        .set("/hostname", json!(null))
        .run();
    for (name, inside) in ["cgroup", "ipc", "net", "pid", "time", "user", "uts"]
        .iter()
        .zip(outcome.lines())
    {
        let outside = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(outside.to_str() == Some(inside), *name != "net", "{name}");
    }
}

fn the_program_is_process_1() {
    assert_eq!(
        Bundle::script("echo $$; ls -d /proc/[0-9]* | wc -l; true")
            .run()
            .lines()[0],
        "1"
    );
}

fn host_and_domain_name() {
    let outcome = Bundle::script("hostname; cat /proc/sys/kernel/domainname")
        .set("/hostname", json!("inside"))
        .set("/domainname", json!("example.org"))
        .run();
    assert_eq!(outcome.lines(), ["inside", "example.org"]);
    assert_ne!(rustix::system::uname().nodename(), c"inside");
}

fn loopback_is_up() {
    let outcome = Bundle::script("cat /sys/class/net/lo/flags; ls /sys/class/net").run();
    assert_eq!(outcome.lines(), ["0x9", "lo"]);
}

fn sysctl() {
    let outcome = Bundle::script(
        "cd /proc/sys; cat net/ipv4/ip_forward fs/mqueue/msg_max kernel/shmmni",
    )
    .set(
        "/linux/sysctl",
        json!({"net.ipv4.ip_forward": "1", "fs/mqueue/msg_max": "17", "kernel.shmmni": "321"}),
    )
    .run();
    assert_eq!(outcome.lines(), ["1", "17", "321"]);
    let error = Bundle::script("true")
        .set("/linux/sysctl", json!({"net.no.such": "1"}))
        .error();
    assert_eq!(
        error,
        "linux.sysctl[\"net.no.such\"]: set to \"1\": no such file or directory"
    );
    let error = Bundle::script("true")
        .set("/linux/sysctl", json!({"kernel.shmmni": "many"}))
        .error();
    assert_eq!(
        error,
        "linux.sysctl[\"kernel.shmmni\"]: set to \"many\": invalid argument"
    );
}

fn time_offsets() {
    let outcome = Bundle::script("cat /proc/uptime; cat /proc/self/timens_offsets")
        .namespace("time")
        .set(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1_000_000}, "monotonic": {"secs": 5, "nanosecs": 7}}),
        )
        .run();
    let lines = outcome.lines();
    let uptime: f64 = lines[0].split(' ').next().unwrap().parse().unwrap();
    assert!(uptime > 1_000_000.0, "{lines:?}");
    let words = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(lines[1]), ["monotonic", "5", "7"]);
    assert_eq!(words(lines[2]), ["boottime", "1000000", "0"]);
    let error = Bundle::script("true")
        .namespace("time")
        .set(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": -1_000_000_000}}),
        )
        .error();
    assert!(error.starts_with("linux.timeOffsets.boottime: "), "{error}");
}

fn time_namespace_without_offsets() {
    let outcome = Bundle::script("readlink /proc/self/ns/time")
        .namespace("time")
        .run();
    let outside = fs::read_link("/proc/self/ns/time").unwrap();
    assert_ne!(outside.to_str().unwrap(), outcome.lines()[0]);
}

/// Root inside is 100000 outside. The root file system is made readable for that.
fn with_user_namespace(bundle: Bundle) -> Bundle {
    let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let bundle = bundle
        .namespace("user")
        .set("/linux/uidMappings", map.clone())
        .set("/linux/gidMappings", map);
    chown_all(&bundle.rootfs());
    bundle
}

fn chown_all(path: &std::path::Path) {
    std::os::unix::fs::lchown(path, Some(100_000), Some(100_000)).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            chown_all(&entry.unwrap().path());
        }
    }
}

fn user_namespace() {
    let script = "id -u; cat /proc/self/uid_map; touch /tmp/mine; stat -c %u /tmp/mine; ls -l /dev/null | cut -c1-10; echo x > /dev/null; hostname";
    let script = script.replace("| cut -c1-10", "| head -c 10; echo");
    let bundle = with_user_namespace(Bundle::script(&script));
    let outcome = bundle.run();
    let lines = outcome.lines();
    assert_eq!(lines[0], "0");
    let map: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(map, ["0", "100000", "65536"]);
    assert_eq!(lines[2..], ["0", "crw-rw-rw-", "cloister"]);
    let outside = rustix::fs::stat(bundle.rootfs().join("tmp/mine")).unwrap();
    assert_eq!(outside.st_uid, 100_000);
}

fn user_namespace_with_another_user() {
    let bundle = with_user_namespace(Bundle::script(
        "id -u; id -g; grep ^Cap[EP] /proc/self/status",
    ))
    .set(
        "/process/user",
        json!({"uid": 1000, "gid": 1000, "additionalGids": [5]}),
    );
    let outcome = bundle.run();
    assert_eq!(
        outcome.lines(),
        [
            "1000",
            "1000",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000"
        ]
    );
    let bundle =
        with_user_namespace(Bundle::script("true")).set("/process/user/uid", json!(70_000));
    assert_eq!(
        bundle.error(),
        "process.user.uid: become user 70000: invalid argument"
    );
}

fn user_namespace_owns_its_cgroup() {
    let script = "mkdir /sys/fs/cgroup/child && echo made; stat -c %u /sys/fs/cgroup/cgroup.procs";
    let bundle = with_user_namespace(Bundle::script(script));
    let bundle = bundle.set("/mounts/6/options", json!(["nosuid", "noexec", "nodev"]));
    assert_eq!(bundle.run().lines(), ["made", "0"]);
}

fn the_programs_user_owns_the_cgroup() {
    let script = "mkdir /sys/fs/cgroup/child && echo made; stat -c %u /sys/fs/cgroup/cgroup.procs";
    let user = json!({"uid": 1000, "gid": 1000});
    let writable = json!(["nosuid", "noexec", "nodev"]);
    let bundle = Bundle::script(script).set("/process/user", user.clone());
    let bundle = bundle.set("/mounts/6/options", writable.clone());
    assert_eq!(bundle.run().lines(), ["made", "1000"]);
    let bundle = with_user_namespace(Bundle::script(script)).set("/process/user", user.clone());
    let bundle = bundle.set("/mounts/6/options", writable);
    assert_eq!(bundle.run().lines(), ["made", "1000"]);
    // Read-only it is the agent's.
    let outcome = Bundle::script("stat -c %u /sys/fs/cgroup/cgroup.procs")
        .set("/process/user", user)
        .run();
    assert_eq!(outcome.lines(), ["0"]);
}

fn every_kind_of_kernel_parameter() {
    let script = "cd /proc/sys; cat kernel/msgmax kernel/msgmnb kernel/msgmni kernel/sem kernel/shmall kernel/shmmax kernel/shm_rmid_forced kernel/domainname net/ipv4/ip_unprivileged_port_start net/core/somaxconn";
    let outcome = Bundle::script(script)
        .set(
            "/linux/sysctl",
            json!({
                "kernel.msgmax": "9000", "kernel.msgmnb": "20000", "kernel.msgmni": "100",
                "kernel.sem": "100\t3000\t30\t50", "kernel.shmall": "5000", "kernel.shmmax": "70000",
                "kernel.shm_rmid_forced": "1", "kernel.domainname": "example.net",
                "net.ipv4.ip_unprivileged_port_start": "80", "net/core/somaxconn": "77",
            }),
        )
        .run();
    let expected = [
        "9000",
        "20000",
        "100",
        "100\t3000\t30\t50",
        "5000",
        "70000",
        "1",
        "example.net",
        "80",
        "77",
    ];
    assert_eq!(outcome.lines(), expected);
    let bundle = with_user_namespace(Bundle::script("cat /proc/sys/user/max_net_namespaces"));
    let bundle = bundle.set("/linux/sysctl", json!({"user.max_net_namespaces": "13"}));
    assert_eq!(bundle.run().lines(), ["13"]);
}

fn several_mappings() {
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g";
    let bundle = with_user_namespace(Bundle::script(script))
        .set(
            "/linux/uidMappings",
            json!([
                {"containerID": 0, "hostID": 100_000, "size": 10},
                {"containerID": 500, "hostID": 7000, "size": 20},
            ]),
        )
        .set(
            "/linux/gidMappings",
            json!([
                {"containerID": 0, "hostID": 100_000, "size": 10},
                {"containerID": 600, "hostID": 8000, "size": 1},
            ]),
        )
        .set("/process/user", json!({"uid": 501, "gid": 600}));
    let outcome = bundle.run();
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    let expected = "0 100000 10 500 7000 20 0 100000 10 600 8000 1 501 600";
    assert_eq!(words.join(" "), expected);
    let bundle = with_user_namespace(Bundle::script("true")).set(
        "/linux/gidMappings",
        json!([
            {"containerID": 0, "hostID": 1, "size": 5},
            {"containerID": 3, "hostID": 10, "size": 5},
        ]),
    );
    assert_eq!(
        bundle.error(),
        "linux.gidMappings: write gid_map: invalid argument"
    );
}
