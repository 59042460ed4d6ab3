use serde_json::{Value, json};

use super::*;

fn base() -> Value {
    serde_json::from_str(default_spec()).unwrap()
}

fn set(document: &mut Value, pointer: &str, value: Value) {
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    let mut at = document;
    for part in parent.split('/').skip(1) {
        at = match at {
            Value::Array(list) => &mut list[part.parse::<usize>().unwrap()],
            Value::Object(map) => map.entry(part).or_insert_with(|| json!({})),
            _ => panic!("{pointer}: not a container"),
        };
    }
    match at {
        Value::Array(list) => list[name.parse::<usize>().unwrap()] = value,
        _ => at[name] = value,
    }
}

fn verdict(document: &Value) -> String {
    match check(document.to_string().as_bytes(), "config.json", Side::Guest) {
        Ok(_) => "accepted".into(),
        Err(error) => error.to_string(),
    }
}

fn with(pointer: &str, value: Value) -> String {
    let mut document = base();
    set(&mut document, pointer, value);
    verdict(&document)
}

#[test]
fn the_default_specification_is_accepted_without_warnings() {
    let spec = Spec::parse(default_spec().as_bytes(), "config.json").unwrap();
    assert_eq!(spec.warnings(), &[] as &[String]);
    assert_eq!(spec.oci().hostname().as_deref(), Some("cloister"));
    assert_eq!(spec.oci().mounts().as_ref().unwrap().len(), 7);
}

#[test]
fn malformed_json_names_line_and_column() {
    let error = check(b"{\n  \"a\": 1,\n  \"b\": x\n}", "config.json", Side::Host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: line 3, column 8: expected value"
    );
    let error = check(b"", "config.json", Side::Host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: line 1, column 0: EOF while parsing a value"
    );
    let error = check(b"[]", "config.json", Side::Host).unwrap_err();
    assert_eq!(
        error.to_string(),
        "config.json: the document is not an object"
    );
}

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

#[test]
fn what_is_refused_names_its_field() {
    for (pointer, value, expected) in [
        (
            "/windows",
            json!({"layerFolders": ["x"]}),
            "windows: refused: it belongs to another platform; Cloister runs Linux containers",
        ),
        (
            "/vm",
            json!({"kernel": {"path": "/k"}}),
            "vm: refused: kernel, image and hypervisor are chosen by Cloister's configuration",
        ),
        (
            "/process/apparmorProfile",
            json!("x"),
            "process.apparmorProfile: \"x\" is refused: the guest kernel has no AppArmor",
        ),
        (
            "/linux/resources/rdma",
            json!({"mlx": {"hcaHandles": 1}}),
            "linux.resources.rdma: refused: the virtual machine has no RDMA devices",
        ),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTIFY"}),
            "linux.seccomp.defaultAction: \"SCMP_ACT_NOTIFY\" is refused: a seccomp agent on the host cannot act inside the virtual machine",
        ),
        (
            "/linux/sysctl",
            json!({"kernel.panic": "1"}),
            "linux.sysctl[\"kernel.panic\"]: refused: it does not belong to a namespace of the container",
        ),
        (
            "/linux/sysctl",
            json!({"kernel/hostname": "x"}),
            "linux.sysctl[\"kernel/hostname\"]: refused: hostname sets it",
        ),
        (
            "/mounts/0/options",
            json!(["bind", "size=1m"]),
            "mounts[0].options[1]: \"size=1m\" is refused: not a mount option that Cloister knows for bind mounts",
        ),
        (
            "/mounts/0/options",
            json!(["bind", "sync"]),
            "mounts[0].options[1]: \"sync\" is refused: it is a property of the file system, which a bind mount does not change",
        ),
        (
            "/mounts/0/options",
            json!(["tmpcopyup"]),
            "mounts[0].options[0]: \"tmpcopyup\" is refused: only tmpfs has it",
        ),
        (
            "/mounts/0/options",
            json!(["rbind", "idmap"]),
            "mounts[0].options[1]: \"idmap\" needs uidMappings and gidMappings, of the mount or of the container",
        ),
        (
            "/mounts/0/type",
            json!("nfs"),
            "mounts[0].type: refused: file system \"nfs\" cannot be mounted inside the virtual machine, only binfmt_misc, bpf, cgroup, cgroup2, devpts, hugetlbfs, mqueue, proc, ramfs, securityfs, sysfs, tmpfs can",
        ),
        (
            "/linux/namespaces/1/type",
            json!("user"),
            "linux.uidMappings: is required with a user namespace; linux.gidMappings: is required with a user namespace",
        ),
    ] {
        assert_eq!(
            with(pointer, value),
            format!("config.json: {expected}"),
            "{pointer}"
        );
    }
    let mut document = base();
    document["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "network");
    assert!(verdict(&document).contains("would join the host's network"));
}

#[test]
fn every_refusal_is_reported_at_once() {
    let mut document = base();
    set(&mut document, "/process/commandLine", json!("cmd.exe"));
    set(&mut document, "/linux/mountLabel", json!("x"));
    let message = verdict(&document);
    for refusal in [
        "process.commandLine: refused",
        "linux.mountLabel: refused",
        "; ",
    ] {
        assert!(message.contains(refusal), "{message}");
    }
}

#[test]
fn empty_values_of_refused_fields_are_no_request() {
    for (pointer, value) in [
        ("/linux/resources/network", json!({"classID": 0})),
        (
            "/linux/resources/memory",
            json!({"kernel": 0, "swappiness": 0}),
        ),
        (
            "/linux/personality",
            json!({"domain": "LINUX", "flags": []}),
        ),
        ("/process/apparmorProfile", json!("")),
        ("/process/apparmorProfile", json!("unconfined")),
        ("/linux/resources/rdma", json!({})),
        (
            "/linux/resources/memory",
            json!({"disableOOMKiller": false}),
        ),
        ("/linux/intelRdt", json!(null)),
        ("/linux/rootfsPropagation", json!("")),
        ("/linux/resources/network", json!({"priorities": []})),
        ("/linux/namespaces/0/path", json!("")),
    ] {
        assert_eq!(
            with(pointer, value.clone()),
            "accepted",
            "{pointer} {value}"
        );
    }
}

#[test]
fn unknown_properties_and_capabilities_are_warnings_and_are_dropped() {
    let mut document = base();
    set(&mut document, "/process/colour", json!("green"));
    set(
        &mut document,
        "/process/capabilities/bounding",
        json!(["CAP_KILL", "CAP_FLY", "kill"]),
    );
    set(&mut document, "/ociVersion", json!("1.9.0"));
    let checked = check(document.to_string().as_bytes(), "config.json", Side::Guest).unwrap();
    let mut warnings = checked.warnings;
    warnings.sort();
    assert_eq!(
        warnings,
        [
            "ociVersion: 1.9.0 is newer than 1.3; properties it adds are unknown here",
            "process.capabilities.bounding[1]: unknown capability \"CAP_FLY\", ignored",
            "process.capabilities.bounding[2]: unknown capability \"kill\", ignored",
            "process.colour: unknown property, ignored",
        ]
    );
    assert_eq!(
        checked.value["process"]["capabilities"]["bounding"],
        json!(["CAP_KILL"])
    );
    assert_eq!(checked.value["process"].get("colour"), None);
    Spec::parse(document.to_string().as_bytes(), "config.json").unwrap();
}

#[test]
fn versions_are_semantic_versions() {
    for good in [
        "1.0.0",
        "1.0.2-dev",
        "1.2.0-rc.1",
        "1.3.0+dev",
        "1.0.0-rc5+a.b",
    ] {
        assert_eq!(text::version(good), Ok(()), "{good}");
    }
    for bad in [
        "",
        "1",
        "1.0",
        "1.0.0.0",
        "01.0.0",
        "1.0.0-",
        "1.0.0-a..b",
        "v1.0.0",
        "0.9.0",
        "1.0.x",
    ] {
        assert!(text::version(bad).is_err(), "{bad}");
    }
}

#[test]
fn tables_that_are_searched_are_sorted() {
    let names: Vec<&str> = mount::MOUNT_OPTIONS.iter().map(|(name, _)| *name).collect();
    assert!(names.is_sorted());
}

#[test]
fn features_agree_with_the_checks() {
    let features = features();
    assert_eq!(features["hooks"].as_array().unwrap().len(), 6);
    assert_eq!(features["linux"]["apparmor"]["enabled"], json!(false));
    assert_eq!(features["linux"]["seccomp"]["enabled"], json!(true));
    for option in features["mountOptions"].as_array().unwrap() {
        // Everything announced is accepted by some mount.
        let accepted = ["tmpfs", "bind"].iter().any(|fs_type| {
            let mut document = base();
            let mapping = json!([{"containerID": 0, "hostID": 1, "size": 1}]);
            document["mounts"] = json!([{
                "destination": "/x", "source": "/y", "type": fs_type, "options": [option],
                "uidMappings": mapping, "gidMappings": mapping,
            }]);
            verdict(&document) == "accepted"
        });
        assert!(accepted, "{option}");
    }
    let _: oci_spec::runtime::Features = serde_json::from_value(features).unwrap();
}

/// A document in which every property of the specification has a value, written from config.md and
/// its companions. A property that is in a specification and not in the table shows up as unknown.
#[test]
fn every_property_of_the_specification_is_in_the_table() {
    let full: Value = serde_json::from_str(include_str!("full_spec.json")).unwrap();
    let mut findings = walk::Findings::new(Side::Host);
    let Value::Object(mut object) = full.clone() else {
        panic!()
    };
    findings.object(&mut object, table::ROOT, &walk::Path::ROOT);
    assert_eq!(findings.warnings, [] as [String; 0]);
    // And the other way round: a property of the table that the document lacks.
    let mut missing = Vec::new();
    compare(table::ROOT, &full, "", &mut missing);
    assert_eq!(missing, [] as [String; 0]);
}

fn compare(fields: &[Field], value: &Value, path: &str, missing: &mut Vec<String>) {
    for field in fields {
        let path = format!("{path}.{}", field.name);
        let Some(value) = value.get(field.name) else {
            missing.push(path);
            continue;
        };
        let (shape, value) = match (field.shape, value) {
            (Shape::List(item), Value::Array(list)) => {
                (*item, list.first().unwrap_or(&Value::Null))
            }
            (Shape::Map(item), Value::Object(map)) => (*item, map.values().next().unwrap()),
            (shape, value) => (shape, value),
        };
        if let Shape::Object(fields) = shape {
            compare(fields, value, &path, missing);
        }
    }
}

/// oci-spec is another list of all properties, kept by others: whatever its types write must be
/// known here, and whatever is known here must be readable for them.
#[test]
fn the_table_agrees_with_oci_spec() {
    let full: Value = serde_json::from_str(include_str!("full_spec.json")).unwrap();
    let typed: oci_spec::runtime::Spec = serde_json::from_value(full.clone()).unwrap();
    let written = serde_json::to_value(&typed).unwrap();
    let mut lost = Vec::new();
    lost_in(&full, &written, "", &mut lost);
    // oci-spec does not know FreeBSD's section, nor two properties that 1.3 has dropped.
    assert_eq!(
        lost,
        [
            ".freebsd",
            ".linux.intelRdt.enableCMT",
            ".linux.intelRdt.enableMBM"
        ]
    );
    let mut findings = walk::Findings::new(Side::Host);
    let Value::Object(mut object) = written else {
        panic!()
    };
    findings.object(&mut object, table::ROOT, &walk::Path::ROOT);
    assert_eq!(findings.warnings, [] as [String; 0]);
}

fn lost_in(from: &Value, to: &Value, path: &str, lost: &mut Vec<String>) {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) => {
            for (name, value) in from {
                let path = format!("{path}.{name}");
                match to.get(name) {
                    Some(other) => lost_in(value, other, &path, lost),
                    None => lost.push(path),
                }
            }
        }
        (Value::Array(from), Value::Array(to)) if !from.is_empty() && !to.is_empty() => {
            lost_in(&from[0], &to[0], path, lost);
        }
        _ => {}
    }
}
