//! Values that no specification may have.

use serde_json::{Value, json};

use super::{Side, check_resources, with};

#[test]
fn wrong_values_name_their_field() {
    for (pointer, value, expected) in [
        (
            "/process/args",
            json!("sh"),
            "process.args: expected an array of strings, found a string",
        ),
        (
            "/process/args",
            json!([]),
            "process.args: must not be empty",
        ),
        ("/process/args", json!(null), "process.args: is required"),
        (
            "/process/args/0",
            json!(7),
            "process.args[0]: expected a string, found the number 7",
        ),
        (
            "/process/args/0",
            json!("a\0b"),
            "process.args[0]: contains a NUL character",
        ),
        (
            "/process/cwd",
            json!("tmp"),
            "process.cwd: \"tmp\" is not an absolute path",
        ),
        (
            "/linux/netDevices",
            json!({"eth0": {"name": "a/b"}}),
            "linux.netDevices[\"eth0\"].name: \"a/b\" is not the name of a network device",
        ),
        (
            "/process/env/0",
            json!("PATH"),
            "process.env[0]: \"PATH\" is not of the form NAME=value",
        ),
        (
            "/process/user/uid",
            json!(-1),
            "process.user.uid: expected an integer from 0 to 4294967294, found the number -1",
        ),
        (
            "/process/user/uid",
            json!(1.5),
            "process.user.uid: expected an integer from 0 to 4294967294, found the number 1.5",
        ),
        (
            "/process/terminal",
            json!("yes"),
            "process.terminal: expected true or false, found a string",
        ),
        (
            "/process/rlimits/0/type",
            json!("RLIMIT_LUNCH"),
            "process.rlimits[0].type: unknown resource limit \"RLIMIT_LUNCH\"",
        ),
        (
            "/process/rlimits/0/soft",
            json!(2048),
            "process.rlimits[0].soft: exceeds the hard limit",
        ),
        (
            "/ociVersion",
            json!("latest"),
            "ociVersion: \"latest\" is not a version of the form MAJOR.MINOR.PATCH",
        ),
        (
            "/ociVersion",
            json!("2.0.0"),
            "ociVersion: version 2.0.0 of the specification is not supported, only 1.x is",
        ),
        ("/root/path", json!(""), "root.path: must not be empty"),
        ("/root", json!(null), "root: is required"),
        ("/process", json!(null), "process: is required"),
        ("/linux", json!(null), "linux: is required"),
        (
            "/linux/namespaces/0/type",
            json!("planet"),
            "linux.namespaces[0].type: unknown namespace type \"planet\"",
        ),
        (
            "/linux/namespaces/0/type",
            json!("uts"),
            "linux.namespaces[3].type: \"uts\" is listed twice",
        ),
        (
            "/linux/rootfsPropagation",
            json!("viral"),
            "linux.rootfsPropagation: unknown propagation \"viral\"",
        ),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": 1}),
            "linux.sysctl[\"net.ipv4.ip_forward\"]: expected a string, found the number 1",
        ),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 0, "size": 1}]),
            "linux.uidMappings: is set without a user namespace",
        ),
        (
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1}}),
            "linux.timeOffsets: is set without a time namespace",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_SMILE"}),
            "linux.seccomp.defaultAction: unknown seccomp action \"SCMP_ACT_SMILE\"",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW does not take an errno",
        ),
        (
            "/linux/seccomp",
            json!({}),
            "linux.seccomp.defaultAction: is required",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c"}]),
            "linux.devices[0].major: is required unless the type is p; linux.devices[0].minor: is required unless the type is p",
        ),
        (
            "/linux/resources/memory",
            json!({"swap": 5}),
            "linux.resources.memory.swap: is set without memory.limit",
        ),
        (
            "/linux/resources/unified",
            json!({"../x.y": "1"}),
            "linux.resources.unified[\"../x.y\"]: the specified key has not the form CONTROLLER.VALUE `../x.y`",
        ),
        (
            "/mounts/0/destination",
            json!(null),
            "mounts[0].destination: is required",
        ),
        (
            "/mounts/0/type",
            json!(null),
            "mounts[0].type: is required unless the options contain bind or rbind",
        ),
    ] {
        assert_eq!(
            with(pointer, value),
            format!("config.json: {expected}"),
            "{pointer}"
        );
    }
}

#[test]
fn schedulers_that_cannot_be() {
    for (scheduler, expected) in [
        (json!({"nice": 1}), "policy: is required"),
        (
            json!({"policy": "SCHED_OTHER", "nice": 20}),
            "nice: 20 is not between -20 and 19",
        ),
        (
            json!({"policy": "SCHED_FIFO", "priority": 1, "nice": 1}),
            "nice: SCHED_FIFO has none",
        ),
        (
            json!({"policy": "SCHED_IDLE", "nice": 19}),
            "nice: SCHED_IDLE has none",
        ),
        (
            json!({"policy": "SCHED_RR"}),
            "priority: 0 is not between 1 and 99, which SCHED_RR requires",
        ),
        (
            json!({"policy": "SCHED_FIFO", "priority": 100}),
            "priority: 100 is not between 1 and 99, which SCHED_FIFO requires",
        ),
        (
            json!({"policy": "SCHED_BATCH", "priority": 1}),
            "priority: SCHED_BATCH has none",
        ),
        (
            json!({"policy": "SCHED_OTHER", "runtime": 5000}),
            "runtime: SCHED_OTHER has none",
        ),
        (
            json!({"policy": "SCHED_DEADLINE", "runtime": 10, "deadline": 5000}),
            "runtime: is less than 1024 nanoseconds",
        ),
        (
            json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 4000}),
            "deadline: is shorter than the runtime",
        ),
        (
            json!({"policy": "SCHED_DEADLINE", "runtime": 5000, "deadline": 9000, "period": 8000}),
            "period: is shorter than the deadline",
        ),
        (
            json!({"policy": "SCHED_IDLE", "flags": ["SCHED_FLAG_RECLAIM"]}),
            "flags[0]: SCHED_FLAG_RECLAIM belongs to SCHED_DEADLINE",
        ),
    ] {
        assert_eq!(
            with("/process/scheduler", scheduler.clone()),
            format!("config.json: process.scheduler.{expected}"),
            "{scheduler}"
        );
        // A process object alone is checked by the same rules.
        let process = json!({"args": ["x"], "cwd": "/", "scheduler": scheduler});
        let error = crate::check_process(
            process.to_string().as_bytes(),
            "process",
            crate::Side::Guest,
        )
        .unwrap_err();
        assert_eq!(error.to_string(), format!("process: scheduler.{expected}"));
    }
}

#[test]
fn hooks_that_cannot_be() {
    for (hook, expected) in [
        (json!({}), "path: is required"),
        (
            json!({"path": "bin/x"}),
            "path: \"bin/x\" is not an absolute path",
        ),
        (
            json!({"path": "/bin/x", "timeout": 0}),
            "timeout: expected an integer from 1 to 9223372036854775807, found the number 0",
        ),
        (
            json!({"path": "/bin/x", "env": ["PATH"]}),
            "env[0]: \"PATH\" is not of the form NAME=value",
        ),
    ] {
        for kind in [
            "prestart",
            "createRuntime",
            "createContainer",
            "startContainer",
            "poststart",
            "poststop",
        ] {
            assert_eq!(
                with("/hooks", json!({kind: [hook]})),
                format!("config.json: hooks.{kind}[0].{expected}")
            );
        }
    }
}

#[test]
fn mappings_that_cannot_be() {
    let map = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    for (mount, expected) in [
        (
            json!({"uidMappings": map}),
            "mounts[0].gidMappings: is required with its twin",
        ),
        (
            json!({"gidMappings": map}),
            "mounts[0].uidMappings: is required with its twin",
        ),
        (
            json!({"uidMappings": [{"containerID": 0, "hostID": 1, "size": 0}], "gidMappings": map}),
            "mounts[0].uidMappings[0].size: expected an integer from 1 to 4294967295, found the number 0",
        ),
        (
            json!({"options": ["bind", "ridmap"]}),
            "mounts[0].options[1]: \"ridmap\" needs uidMappings and gidMappings, of the mount or of the container",
        ),
        (
            json!({"options": ["remount", "idmap"], "uidMappings": map, "gidMappings": map}),
            "mounts[0].options[1]: \"idmap\" is refused: a remount cannot change it",
        ),
    ] {
        let mut all = json!({"destination": "/x", "source": "/y", "options": ["bind"]});
        for (name, value) in mount.as_object().unwrap() {
            all[name] = value.clone();
        }
        assert_eq!(
            with("/mounts", json!([all])),
            format!("config.json: {expected}")
        );
    }
}

#[test]
fn what_belongs_to_namespaces() {
    let joined = |namespaces: serde_json::Value, rest: serde_json::Value| {
        let mut document = super::base();
        document["linux"]["namespaces"] = namespaces;
        for (name, value) in rest.as_object().unwrap() {
            document["linux"][name] = value.clone();
        }
        super::verdict(&document)
    };
    let with_path = |kind: &str| {
        json!([
            {"type": "mount"}, {"type": "network"}, {"type": "uts"},
            {"type": kind, "path": "/proc/1/ns/x"},
        ])
    };
    let map = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
    // The mappings of a namespace that is joined are known where it was made.
    assert_eq!(joined(with_path("user"), json!({})), "accepted");
    let mapped = json!({"uidMappings": map, "gidMappings": map});
    assert_eq!(joined(with_path("user"), mapped), "accepted");
    let offsets = json!({"timeOffsets": {"boottime": {"secs": 1}}});
    assert_eq!(
        joined(with_path("time"), offsets),
        "config.json: linux.timeOffsets: cannot be set in a time namespace that exists"
    );
    let relative = json!([{"type": "mount"}, {"type": "network", "path": "x"}, {"type": "uts"}]);
    assert_eq!(
        joined(relative, json!({})),
        "config.json: linux.namespaces[1].path: \"x\" is not an absolute path"
    );
}

#[test]
fn lists_of_processors() {
    for list in ["", "0", "0-3,7", "1023", "0, 2"] {
        assert_eq!(
            with(
                "/process/execCPUAffinity",
                json!({"initial": list, "final": list})
            ),
            "accepted",
            "{list}"
        );
    }
    for list in ["a", "0-", "3-1", "1024", "0,,1", "-1"] {
        assert_eq!(
            with("/process/execCPUAffinity", json!({"initial": list})),
            format!(
                "config.json: process.execCPUAffinity.initial: {list:?} is not a list of processors like 0-3,7"
            )
        );
    }
}

#[test]
fn a_change_of_resources_is_held_against_the_same_limits() {
    let verdict = |resources: Value| {
        let bytes = resources.to_string();
        match check_resources(bytes.as_bytes(), "resources", Side::Host) {
            Ok(_) => "accepted".into(),
            Err(error) => error.to_string(),
        }
    };
    let text = verdict(json!({"blockIO": {"weight": 5}}));
    assert!(
        text.contains("blockIO.weight: 5 is not between 10 and 1000"),
        "{text}"
    );
    let text = verdict(json!({"unified": {"memory": "1"}}));
    assert!(text.contains("CONTROLLER.VALUE"), "{text}");
    assert_eq!(verdict(json!({"memory": {"swap": 4096}})), "accepted");
}
