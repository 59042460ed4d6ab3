//! Rules that concern more than one value.

mod scheduler;

use serde_json::Value;

use crate::mount::{MountKind, MountOption, mount_kind, mount_option, refusal};
use crate::text::{NEWEST, parse_version};
use crate::walk::Findings;

/// Checks a document whose single values have been checked.
pub(crate) fn apply(document: &Value, findings: &mut Findings) {
    version(document, findings);
    process(document, findings);
    namespaces(document, findings);
    mounts(document, findings);
    devices(document, findings);
    seccomp(document, findings);
    sysctl(document, findings);
    resources(document, findings);
}

fn list<'a>(document: &'a Value, pointer: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    document
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .enumerate()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn strings<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a str> + Clone {
    value
        .get(name)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
}

fn version(document: &Value, findings: &mut Findings) {
    let version = text(document, "ociVersion");
    if parse_version(version).is_some_and(|version| version > NEWEST) {
        findings.warnings.push(format!(
            "ociVersion: {version} is newer than {}.{}; properties it adds are unknown here",
            NEWEST.0, NEWEST.1
        ));
    }
}

fn process(document: &Value, findings: &mut Findings) {
    if let Some(process) = document.get("process") {
        process_at(process, "process.", findings);
    }
}

/// Checks a process object that stands for itself.
pub(crate) fn apply_to_process(process: &Value, findings: &mut Findings) {
    process_at(process, "", findings);
}

fn process_at(process: &Value, prefix: &str, findings: &mut Findings) {
    scheduler::check(process, prefix, findings);
    if process
        .get("args")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty)
    {
        findings.invalid(format_args!("{prefix}args"), "must not be empty");
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, limit) in list(process, "/rlimits") {
        let name = text(limit, "type");
        if seen.contains(&name) {
            // config.md#posix-process
            findings.invalid(
                format_args!("{prefix}rlimits[{index}].type"),
                format!("{name} is listed twice"),
            );
        }
        seen.push(name);
        let bound = |name| limit.get(name).and_then(Value::as_u64);
        if bound("soft") > bound("hard") {
            findings.invalid(
                format_args!("{prefix}rlimits[{index}].soft"),
                "exceeds the hard limit",
            );
        }
    }
}

fn has_namespace(document: &Value, name: &str) -> bool {
    list(document, "/linux/namespaces").any(|(_, namespace)| text(namespace, "type") == name)
}

fn joins_namespace(document: &Value, name: &str) -> bool {
    list(document, "/linux/namespaces").any(|(_, namespace)| {
        text(namespace, "type") == name && !text(namespace, "path").is_empty()
    })
}

fn namespaces(document: &Value, findings: &mut Findings) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, namespace) in list(document, "/linux/namespaces") {
        let name = text(namespace, "type");
        if seen.contains(&name) {
            findings.invalid(
                format_args!("linux.namespaces[{index}].type"),
                format!("{name:?} is listed twice"),
            );
        }
        seen.push(name);
    }
    if document.get("linux").is_some_and(Value::is_object) {
        // A type that is not listed is inherited (config-linux.md#namespaces). What there is to
        // inherit is the sandbox's, not the host's.
        if !has_namespace(document, "network") {
            findings.refused(
                "linux.namespaces",
                "refused: without a network namespace the container would join the host's network",
            );
        }
        if !has_namespace(document, "mount") {
            findings.refused(
                "linux.namespaces",
                "refused: without a mount namespace the container would join the sandbox's mounts",
            );
        }
    }
    for name in ["hostname", "domainname"] {
        let linux = document.get("linux").is_some();
        if linux && !text(document, name).is_empty() && !has_namespace(document, "uts") {
            findings.invalid(name, "cannot be set without a uts namespace");
        }
    }
    for kind in ["uidMappings", "gidMappings"] {
        let mapped = list(document, &format!("/linux/{kind}")).next().is_some();
        let user = has_namespace(document, "user");
        // Callers give the mappings of a namespace beside its path: they describe it.
        let joined = joins_namespace(document, "user");
        let path = format_args!("linux.{kind}");
        if mapped && !user {
            findings.invalid(path, "is set without a user namespace");
        } else if user && !mapped && !joined {
            findings.invalid(path, "is required with a user namespace");
        }
    }
    let offsets = document
        .pointer("/linux/timeOffsets")
        .and_then(Value::as_object);
    if offsets.is_some_and(|offsets| !offsets.is_empty()) && !has_namespace(document, "time") {
        findings.invalid("linux.timeOffsets", "is set without a time namespace");
    } else if offsets.is_some_and(|offsets| !offsets.is_empty())
        && joins_namespace(document, "time")
    {
        findings.invalid(
            "linux.timeOffsets",
            "cannot be set in a time namespace that exists",
        );
    }
}

fn mounts(document: &Value, findings: &mut Findings) {
    for (index, mount) in list(document, "/mounts") {
        let path = format_args!("mounts[{index}]");
        let destination = text(mount, "destination");
        if !destination.starts_with('/') {
            findings.warnings.push(format!(
                "{path}.destination: {destination:?} is relative, taken from /"
            ));
        }
        let options = strings(mount, "options");
        match mount_kind(text(mount, "type"), options.clone()) {
            Err(reason) if reason.starts_with("refused") => {
                findings.refused(format_args!("{path}.type"), reason);
            }
            Err(reason) => findings.invalid(format_args!("{path}.type"), reason),
            Ok(kind) => {
                for (option_index, option) in options.enumerate() {
                    if let Some(reason) = refusal(kind, option) {
                        findings.refused(format_args!("{path}.options[{option_index}]"), reason);
                    }
                }
                id_mappings(document, mount, &path, findings);
                if matches!(kind, MountKind::Bind(_)) && text(mount, "source").is_empty() {
                    findings.invalid(
                        format_args!("{path}.source"),
                        "is required for a bind mount",
                    );
                }
            }
        }
    }
}

/// "If specified, it MUST be specified along with gidMappings", and the two options without either
/// mean the mappings of the container (config.md#posix-platform-mounts, #linux-mount-options).
fn id_mappings(
    document: &Value,
    mount: &Value,
    path: &std::fmt::Arguments<'_>,
    findings: &mut Findings,
) {
    let mapped = |name| list(mount, &format!("/{name}")).next().is_some();
    let [uids, gids] = ["uidMappings", "gidMappings"].map(mapped);
    for (one, other, name) in [(uids, gids, "gidMappings"), (gids, uids, "uidMappings")] {
        if one && !other {
            findings.invalid(format_args!("{path}.{name}"), "is required with its twin");
        }
    }
    let options = strings(mount, "options").enumerate();
    let asked = options
        .filter(|(_, option)| matches!(mount_option(option), Some(MountOption::IdMap { .. })))
        .last();
    let container = list(document, "/linux/uidMappings").next().is_some();
    if let Some((index, option)) = asked
        && !uids
        && !gids
        && !container
    {
        findings.invalid(
            format_args!("{path}.options[{index}]"),
            format!(
                "{option:?} needs uidMappings and gidMappings, of the mount or of the container"
            ),
        );
    }
}

fn devices(document: &Value, findings: &mut Findings) {
    for (index, device) in list(document, "/linux/devices") {
        if text(device, "type") == "p" {
            continue;
        }
        for (name, limit) in [("major", 0xfff), ("minor", 0xf_ffff)] {
            let path = format_args!("linux.devices[{index}].{name}");
            match device.get(name).and_then(Value::as_i64) {
                None => findings.invalid(path, "is required unless the type is p"),
                Some(number) if !(0..=limit).contains(&number) => {
                    findings.invalid(path, format!("{number} is not between 0 and {limit}"));
                }
                Some(_) => {}
            }
        }
    }
}

fn seccomp(document: &Value, findings: &mut Findings) {
    let Some(profile) = document.pointer("/linux/seccomp") else {
        return;
    };
    if profile.get("defaultErrnoRet").is_some() {
        takes_errno(
            profile,
            "defaultAction",
            "linux.seccomp.defaultErrnoRet",
            findings,
        );
    }
    for (index, syscall) in list(document, "/linux/seccomp/syscalls") {
        let path = format_args!("linux.seccomp.syscalls[{index}]");
        if strings(syscall, "names").next().is_none() {
            findings.invalid(format_args!("{path}.names"), "must not be empty");
        }
        if syscall.get("errnoRet").is_some() {
            takes_errno(syscall, "action", format_args!("{path}.errnoRet"), findings);
        }
    }
}

/// "When the action doesn't support an errno, the runtime MUST print and error and fail"
/// (config-linux.md#seccomp).
fn takes_errno(rule: &Value, name: &str, path: impl std::fmt::Display, findings: &mut Findings) {
    let action = text(rule, name);
    if !matches!(action, "SCMP_ACT_ERRNO" | "SCMP_ACT_TRACE") {
        findings.invalid(path, format!("{action} does not take an errno"));
    }
}

fn sysctl(document: &Value, findings: &mut Findings) {
    let settings = document.pointer("/linux/sysctl").and_then(Value::as_object);
    for (key, _) in settings.into_iter().flatten() {
        let path = format!("linux.sysctl[{key:?}]");
        // sysctl(8) takes both separators; the one that comes first is the separator.
        let key = match key.find(['.', '/']).map(|at| key.as_bytes().get(at)) {
            Some(Some(b'/')) => key.replace('.', "\0").replace('/', ".").replace('\0', "/"),
            _ => key.clone(),
        };
        if key
            .split(['.', '/'])
            .any(|part| part.is_empty() || part == "..")
        {
            findings.invalid(path, "is not the name of a kernel parameter");
            continue;
        }
        match sysctl_namespace(&key) {
            Err(reason) => findings.refused(path, format!("refused: {reason}")),
            Ok(namespace) if !has_namespace(document, namespace) => {
                findings.invalid(
                    &path,
                    format!("cannot be set without a {namespace} namespace"),
                );
            }
            Ok(_) => {}
        }
    }
}

/// The namespace that a kernel parameter belongs to.
fn sysctl_namespace(key: &str) -> Result<&'static str, &'static str> {
    match key {
        "kernel.msgmax"
        | "kernel.msgmnb"
        | "kernel.msgmni"
        | "kernel.sem"
        | "kernel.shmall"
        | "kernel.shmmax"
        | "kernel.shmmni"
        | "kernel.shm_rmid_forced" => Ok("ipc"),
        "kernel.domainname" => Ok("uts"),
        "kernel.hostname" => Err("hostname sets it"),
        _ if key.starts_with("fs.mqueue.") => Ok("ipc"),
        _ if key.starts_with("net.") => Ok("network"),
        _ if key.starts_with("user.") => Ok("user"),
        _ => Err("it does not belong to a namespace of the container"),
    }
}

fn resources(document: &Value, findings: &mut Findings) {
    let number = |pointer: &str| document.pointer(pointer).and_then(Value::as_i64);
    let limit = number("/linux/resources/memory/limit").unwrap_or(0);
    let swap = number("/linux/resources/memory/swap").unwrap_or(0);
    // `swap` is memory and swap together (config-linux.md#memory).
    if swap > 0 && limit <= 0 {
        findings.invalid("linux.resources.memory.swap", "is set without memory.limit");
    } else if swap > 0 && swap < limit {
        findings.invalid(
            "linux.resources.memory.swap",
            "is smaller than memory.limit",
        );
    }
    if let Some(resources) = document.pointer("/linux/resources") {
        changeable(resources, "linux.resources.", findings);
    }
}

/// What holds of a resources object at any time; `place` is what its fields' names begin with. A
/// change of swap may mean the limit that there is.
pub(crate) fn changeable(resources: &Value, place: &str, findings: &mut Findings) {
    let weight = resources.pointer("/blockIO/weight").and_then(Value::as_i64);
    if let Some(weight) = weight.filter(|weight| *weight != 0 && !(10..=1000).contains(weight)) {
        findings.invalid(
            format_args!("{place}blockIO.weight"),
            format!("{weight} is not between 10 and 1000"),
        );
    }
    let unified = resources.get("unified").and_then(Value::as_object);
    for (file, _) in unified.into_iter().flatten() {
        if file.contains('/') || !file.contains('.') {
            findings.invalid(
                format_args!("{place}unified[{file:?}]"),
                format!("the specified key has not the form CONTROLLER.VALUE `{file}`"),
            );
        }
    }
}
