//! The field table: every property of the runtime specification 1.0 to 1.3 with its verdict.
//!
//! Source: config.md and the schemas of opencontainers/runtime-spec; `linux` is in [`linux`].

mod linux;

pub(crate) use linux::RESOURCES;

use crate::names;
use crate::shape::Enforcer::{Both, Guest, Host};
use crate::shape::{Field, I32, I64, ID, STRING_MAP, STRINGS, Shape, U16, U32, U64};
use crate::text;

const WINDOWS_REASON: &str = "it belongs to Windows containers";
const OTHER_PLATFORM: &str = "it belongs to another platform; Cloister runs Linux containers";

const fn both(name: &'static str, shape: Shape) -> Field {
    Field::enforced(name, Both, shape)
}

const fn guest(name: &'static str, shape: Shape) -> Field {
    Field::enforced(name, Guest, shape)
}

const fn host(name: &'static str, shape: Shape) -> Field {
    Field::enforced(name, Host, shape)
}

/// The properties of the document's root object.
pub(crate) static ROOT: &[Field] = &[
    both("ociVersion", Shape::Text(text::version)).required(),
    both("process", Shape::Object(PROCESS)).required(),
    both("root", Shape::Object(ROOT_FILE_SYSTEM)).required(),
    guest("hostname", Shape::Text(text::host_name)),
    guest("domainname", Shape::Text(text::host_name)),
    both("mounts", Shape::List(&Shape::Object(MOUNT))),
    both("hooks", Shape::Object(HOOKS)),
    both("annotations", STRING_MAP).note("told to hooks; the sandbox of a pod is found by them"),
    both("linux", Shape::Object(linux::LINUX)).required(),
    Field::refused("solaris", Shape::Object(&[]), OTHER_PLATFORM),
    Field::refused("windows", Shape::Object(&[]), OTHER_PLATFORM),
    Field::refused("zos", Shape::Object(&[]), OTHER_PLATFORM),
    Field::refused("freebsd", Shape::Object(&[]), OTHER_PLATFORM),
    Field::refused(
        "vm",
        Shape::Object(&[]),
        "kernel, image and hypervisor are chosen by Cloister's configuration",
    ),
];

/// The properties of a process object.
pub(crate) const PROCESS: &[Field] = &[
    both("terminal", Shape::Bool),
    both("consoleSize", Shape::Object(CONSOLE_SIZE)),
    guest("user", Shape::Object(USER)),
    guest("args", STRINGS).required(),
    Field::refused("commandLine", Shape::Str, WINDOWS_REASON),
    guest("env", Shape::List(&Shape::Text(text::environment))),
    guest("cwd", Shape::Text(text::absolute_path)).required(),
    guest("capabilities", Shape::Object(CAPABILITIES)),
    guest("rlimits", Shape::List(&Shape::Object(RLIMITS))),
    guest("noNewPrivileges", Shape::Bool),
    Field::no_effect(
        "apparmorProfile",
        Shape::Name(&names::APPARMOR_PROFILES),
        "the guest kernel has no AppArmor: nothing is confined by it",
    ),
    guest("oomScoreAdj", Shape::Int(-1000, 1000)),
    Field::refused(
        "selinuxLabel",
        Shape::Str,
        "the guest kernel has no SELinux",
    ),
    guest("ioPriority", Shape::Object(IO_PRIORITY)),
    guest("scheduler", Shape::Object(SCHEDULER)),
    guest("execCPUAffinity", Shape::Object(EXEC_CPU_AFFINITY))
        .note("processors are those of the virtual machine, numbered from 0"),
];

const CAPABILITY: Shape = Shape::Name(&names::CAPABILITIES);
const CAPABILITY_SET: Shape = Shape::List(&CAPABILITY);

const MOUNT: &[Field] = &[
    both("destination", Shape::Text(text::not_empty)).required(),
    both("source", Shape::Str),
    both("type", Shape::Str).note("file systems that the kernel makes from nothing, see below"),
    both("options", STRINGS).note("each option has a verdict of its own, see below"),
    both("uidMappings", Shape::List(&Shape::Object(ID_MAPPING)))
        .note("of a bind mount on the host, of a new file system in the guest"),
    both("gidMappings", Shape::List(&Shape::Object(ID_MAPPING))),
];

const ID_MAPPING: &[Field] = &[
    both("containerID", ID).required(),
    both("hostID", ID).required(),
    both("size", Shape::Int(1, u32::MAX as i128)).required(),
];

const HOOKS: &[Field] = &[
    host("prestart", HOOK_LIST),
    host("createRuntime", HOOK_LIST),
    host("createContainer", HOOK_LIST).note(
        "runs in the host's mount namespace: that of the container is in the virtual machine",
    ),
    guest("startContainer", HOOK_LIST)
        .note("runs as the container's user; without `env`, with the container's environment"),
    host("poststart", HOOK_LIST),
    host("poststop", HOOK_LIST),
];

const HOOK_LIST: Shape = Shape::List(&Shape::Object(HOOK));

const ROOT_FILE_SYSTEM: &[Field] = &[
    host("path", Shape::Text(text::not_empty)).required(),
    guest("readonly", Shape::Bool),
];

const CONSOLE_SIZE: &[Field] = &[
    both("height", U64).required(),
    both("width", U64).required(),
];

const USER: &[Field] = &[
    guest("uid", ID),
    guest("gid", ID),
    guest("umask", Shape::Int(0, 0o7777)),
    guest("additionalGids", Shape::List(&ID)),
    Field::refused("username", Shape::Str, WINDOWS_REASON),
];

const CAPABILITIES: &[Field] = &[
    guest("bounding", CAPABILITY_SET),
    guest("effective", CAPABILITY_SET),
    guest("inheritable", CAPABILITY_SET),
    guest("permitted", CAPABILITY_SET),
    guest("ambient", CAPABILITY_SET),
];

const RLIMITS: &[Field] = &[
    guest("type", Shape::Name(&names::RLIMITS)).required(),
    guest("hard", U64).required(),
    guest("soft", U64).required(),
];

const IO_PRIORITY: &[Field] = &[
    guest("class", Shape::Name(&names::IO_PRIORITY_CLASSES)).required(),
    guest("priority", Shape::Int(0, 7)).required(),
];

const SCHEDULER_FLAG: Shape = Shape::Name(&names::SCHEDULER_FLAGS);

const SCHEDULER: &[Field] = &[
    guest("policy", Shape::Name(&names::SCHEDULER_POLICIES)).required(),
    guest("nice", I32),
    guest("priority", I32),
    guest("flags", Shape::List(&SCHEDULER_FLAG)),
    guest("runtime", U64),
    guest("deadline", U64),
    guest("period", U64),
];

const EXEC_CPU_AFFINITY: &[Field] = &[
    guest("initial", Shape::Text(text::cpu_list)),
    guest("final", Shape::Text(text::cpu_list)),
];

const HOOK: &[Field] = &[
    both("path", Shape::Text(text::absolute_path)).required(),
    both("args", STRINGS),
    both("env", Shape::List(&Shape::Text(text::environment))),
    both("timeout", Shape::Int(1, i64::MAX as i128)),
];
