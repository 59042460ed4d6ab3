mod callers;
mod documentation;
mod every_field;
mod refused;
mod schema;
mod wrong;

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
fn profiles_that_callers_choose_by_themselves_are_listed() {
    for (profile, is_default) in [
        ("docker-default", true),
        ("containers-default-0.57.4", true),
        ("containers-default-0.58.0-dev", true),
        ("cri-containerd.apparmor.d", true),
        ("nerdctl-default", true),
        ("crio-default", true),
        ("crio-default-1.31.0", true),
        ("containers-default-", false),
        ("containers-default-mine", false),
        ("containers-default-1 //x", false),
        ("docker-default-1", false),
        ("my-docker-default", false),
    ] {
        let mut document = base();
        set(&mut document, "/process/apparmorProfile", json!(profile));
        let bytes = document.to_string();
        match check(bytes.as_bytes(), "config.json", Side::Guest) {
            Ok(checked) => {
                assert!(is_default, "{profile}");
                assert_eq!(checked.warnings, [] as [String; 0]);
                assert_eq!(
                    checked.defaults,
                    [Problem {
                        path: "process.apparmorProfile".into(),
                        reason: format!(
                            "{profile:?} is a caller's default AppArmor profile: the guest kernel has no AppArmor"
                        ),
                    }]
                );
                assert_eq!(checked.value["process"].get("apparmorProfile"), None);
            }
            Err(error) => assert!(!is_default, "{profile}: {error}"),
        }
        let process = json!({"args": ["a"], "cwd": "/", "apparmorProfile": profile});
        let checked = check_process(process.to_string().as_bytes(), "process", Side::Host);
        assert_eq!(checked.is_ok(), is_default, "{profile}");
    }
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
    assert_eq!(
        features["linux"]["mountExtensions"]["idmap"]["enabled"],
        json!(true)
    );
    assert_eq!(
        features["linux"]["memoryPolicy"],
        json!({"modes": ["MPOL_DEFAULT", "MPOL_LOCAL"], "flags": []})
    );
    assert_eq!(
        features["linux"]["intelRdt"],
        json!({"enabled": false, "schemata": false, "monitoring": false})
    );
    assert!(features["annotations"]["org.cloister.version"].is_string());
    let unsafe_ones = features["potentiallyUnsafeConfigAnnotations"].as_array();
    assert!(
        unsafe_ones
            .unwrap()
            .contains(&json!("org.systemd.property."))
    );
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
