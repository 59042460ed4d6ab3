//! Values that no specification may have.

use serde_json::json;

use super::with;

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
            "linux.resources.unified[\"../x.y\"]: is not the name of a cgroup v2 file",
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
