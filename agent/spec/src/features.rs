//! The features structure (runtime-spec features.md), from the tables that the checks use.

use serde_json::{Value, json};

use crate::mount::{MOUNT_OPTIONS, MountOption};
use crate::names::{
    CAPABILITIES, MEMORY_POLICY_MODES, NAMESPACES, SECCOMP_ACTIONS, SECCOMP_ARCHS, SECCOMP_FLAGS,
    SECCOMP_OPERATORS,
};
use crate::shape::{Field, Shape, Verdict};
use crate::table::ROOT;
use crate::text::NEWEST;

/// Annotations of a specification that change what the runtime does: those by which a container finds
/// the virtual machine of its pod, and those that say how large that is, and properties of a unit of
/// systemd. One that ends with a dot is a prefix (features.md#unsafe-annotations-in-configjson).
const UNSAFE_ANNOTATIONS: [&str; 9] = [
    "io.cloister.",
    "io.kubernetes.cri-o.ContainerType",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri.sandbox-cpu-period",
    "io.kubernetes.cri.sandbox-cpu-quota",
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri.sandbox-memory",
    "org.systemd.property.",
];

/// The features structure of `cloister features`, in its JSON form.
pub fn features() -> Value {
    let mount_options: Vec<&str> = MOUNT_OPTIONS
        .iter()
        .filter(|(_, option)| !matches!(option, MountOption::Refused(_)))
        .map(|(name, _)| *name)
        .collect();
    let hooks: Vec<&str> = match find(&["hooks"]) {
        Some(Field {
            verdict: Verdict::Enforced(_),
            shape: Shape::Object(hooks),
            ..
        }) => hooks.iter().map(|hook| hook.name).collect(),
        _ => Vec::new(),
    };
    let known_flags: Vec<&str> = SECCOMP_FLAGS
        .supported
        .iter()
        .copied()
        .chain(SECCOMP_FLAGS.refused.iter().map(|(name, _)| *name))
        .collect();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": format!("{}.{}.0", NEWEST.0, NEWEST.1),
        "hooks": hooks,
        "mountOptions": mount_options,
        "linux": {
            "namespaces": NAMESPACES.supported,
            "capabilities": CAPABILITIES.supported,
            // What the host may have. The guest has version 2.
            "cgroup": {
                "v1": true,
                "v2": true,
                "systemd": true,
                "systemdUser": false,
                "rdma": enforced(&["linux", "resources", "rdma"]),
            },
            "seccomp": {
                "enabled": enforced(&["linux", "seccomp"]),
                "actions": SECCOMP_ACTIONS.supported,
                "operators": SECCOMP_OPERATORS.supported,
                "archs": SECCOMP_ARCHS.supported,
                "knownFlags": known_flags,
                "supportedFlags": SECCOMP_FLAGS.supported,
            },
            "apparmor": { "enabled": enforced(&["process", "apparmorProfile"]) },
            "selinux": { "enabled": enforced(&["process", "selinuxLabel"]) },
            "intelRdt": {
                "enabled": enforced(&["linux", "intelRdt"]),
                "schemata": enforced(&["linux", "intelRdt"]),
                "monitoring": enforced(&["linux", "intelRdt"]),
            },
            "memoryPolicy": { "modes": MEMORY_POLICY_MODES.supported, "flags": [] },
            "mountExtensions": {
                "idmap": { "enabled": enforced(&["mounts", "uidMappings"]) },
            },
            "netDevices": { "enabled": enforced(&["linux", "netDevices"]) },
        },
        "annotations": {
            "org.cloister.version": env!("CARGO_PKG_VERSION"),
        },
        "potentiallyUnsafeConfigAnnotations": UNSAFE_ANNOTATIONS,
    })
}

fn enforced(path: &[&str]) -> bool {
    find(path).is_some_and(|field| matches!(field.verdict, Verdict::Enforced(_)))
}

/// The field at a path of names; arrays are passed through.
pub(crate) fn find(path: &[&str]) -> Option<&'static Field> {
    let mut fields: &'static [Field] = ROOT;
    let mut found = None;
    for name in path {
        let field = fields.iter().find(|field| field.name == *name)?;
        fields = match field.shape {
            Shape::Object(fields) => fields,
            Shape::List(Shape::Object(fields)) => fields,
            _ => &[],
        };
        found = Some(field);
    }
    found
}
