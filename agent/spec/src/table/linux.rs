//! The `linux` section (config-linux.md).

use super::{
    Field, I64, ID, ID_MAPPING, STRING_MAP, STRINGS, Shape, U16, U32, U64, both, guest, host,
    names, text,
};

const LABEL_REASON: &str = "the guest kernel has no SELinux";
const V1_MEMORY: &str = "cgroup v2 has no such control";
const NO_REALTIME: &str = "cgroup v2 has no realtime scheduling control";
const NO_LEAF_WEIGHT: &str = "cgroup v2 has no leaf weights";

pub(super) const LINUX: &[Field] = &[
    guest("devices", Shape::List(&Shape::Object(DEVICE))).note(
        "numbers name devices of the virtual machine; a node that leads nowhere is made with a warning",
    ),
    host("netDevices", Shape::Map(&Shape::Object(NET_DEVICES))).note(
        "moved into the sandbox's network namespace, whose devices the virtual machine has all; refused in a pod's virtual machine that there is already",
    ),
    guest("uidMappings", Shape::List(&Shape::Object(ID_MAPPING))),
    guest("gidMappings", Shape::List(&Shape::Object(ID_MAPPING))),
    guest("sysctl", STRING_MAP),
    both("resources", Shape::Object(RESOURCES)),
    host("cgroupsPath", Shape::Str)
        .note("where the processes of the sandbox are on the host; inside there is a cgroup of its own"),
    both("namespaces", Shape::List(&Shape::Object(NAMESPACES))),
    guest("seccomp", Shape::Object(SECCOMP)),
    guest("rootfsPropagation", Shape::Name(&names::PROPAGATIONS)),
    guest(
        "maskedPaths",
        Shape::List(&Shape::Text(text::absolute_path)),
    ),
    guest(
        "readonlyPaths",
        Shape::List(&Shape::Text(text::absolute_path)),
    ),
    Field::refused("mountLabel", Shape::Str, LABEL_REASON),
    Field::refused(
        "intelRdt",
        Shape::Object(INTEL_RDT),
        "the virtual machine has no resource director",
    ),
    Field::no_effect(
        "memoryPolicy",
        Shape::Object(MEMORY_POLICY),
        "the virtual machine has one memory node, from which all memory comes",
    ),
    guest("personality", Shape::Object(PERSONALITY)),
    guest("timeOffsets", Shape::Object(TIME_OFFSETS)),
];

const TIME_OFFSET: &[Field] = &[
    guest("secs", I64),
    guest("nanosecs", Shape::Int(0, 999_999_999)),
];

/// The properties of a resources object.
pub(crate) const RESOURCES: &[Field] = &[
    guest("devices", Shape::List(&Shape::Object(DEVICE_RULE))),
    both("memory", Shape::Object(MEMORY)),
    both("cpu", Shape::Object(CPU)),
    both("pids", Shape::Object(PIDS)),
    both("blockIO", Shape::Object(BLOCK_IO)),
    both(
        "hugepageLimits",
        Shape::List(&Shape::Object(HUGEPAGE_LIMITS)),
    )
    .note("a limit of 0 holds for a page size that the virtual machine does not have"),
    Field::refused(
        "network",
        Shape::Object(NETWORK),
        "cgroup v2 has no network controllers",
    ),
    Field::refused(
        "rdma",
        Shape::Map(&Shape::Object(RDMA)),
        "the virtual machine has no RDMA devices",
    ),
    both("unified", STRING_MAP)
        .note("`cpuset.` and `io.` name processors and devices of the host and apply there alone"),
];

const THROTTLE: Shape = Shape::List(&Shape::Object(THROTTLE_DEVICE));

const ARCH: Shape = Shape::Name(&names::SECCOMP_ARCHS);
const FLAG: Shape = Shape::Name(&names::SECCOMP_FLAGS);
const ACTION: Shape = Shape::Name(&names::SECCOMP_ACTIONS);
/// SECCOMP_RET_DATA is 16 bits wide.
const ERRNO: Shape = U16;

const SECCOMP: &[Field] = &[
    guest("defaultAction", ACTION).required(),
    guest("defaultErrnoRet", ERRNO),
    guest("architectures", Shape::List(&ARCH)),
    guest("flags", Shape::List(&FLAG)),
    Field::refused("listenerPath", Shape::Str, NOTIFY_REASON),
    Field::refused("listenerMetadata", Shape::Str, NOTIFY_REASON),
    guest("syscalls", Shape::List(&Shape::Object(SYSCALLS))),
];

const NOTIFY_REASON: &str = "a seccomp agent on the host cannot act inside the virtual machine";

const DEVICE: &[Field] = &[
    guest("type", Shape::Name(&names::DEVICE_TYPES)).required(),
    guest("path", Shape::Text(text::absolute_path)).required(),
    guest("major", I64),
    guest("minor", I64),
    guest("fileMode", U32),
    guest("uid", ID),
    guest("gid", ID),
];

const NET_DEVICES: &[Field] = &[host("name", Shape::Text(text::optional_interface))
    .note("`%d` in it stands for the first number that is free")];

const NAMESPACES: &[Field] = &[
    both("type", Shape::Name(&names::NAMESPACES)).required(),
    both("path", Shape::Text(text::optional_path)).note(
        "only namespaces of containers in the same virtual machine can be shared, a network namespace of the host's, and what CRI-O makes for a pod's sandbox",
    ),
];

const INTEL_RDT: &[Field] = &[
    guest("closID", Shape::Str),
    guest("schemata", STRINGS),
    guest("l3CacheSchema", Shape::Str),
    guest("memBwSchema", Shape::Str),
    guest("enableMonitoring", Shape::Bool),
    // 1.1 and 1.2 had these two in place of enableMonitoring.
    guest("enableCMT", Shape::Bool),
    guest("enableMBM", Shape::Bool),
];

const MEMORY_POLICY: &[Field] = &[
    Field::no_effect(
        "mode",
        Shape::Name(&names::MEMORY_POLICY_MODES),
        "what is accepted is how it is",
    )
    .required(),
    Field::refused("nodes", Shape::Str, names::ONE_NODE),
    Field::refused("flags", STRINGS, names::ONE_NODE),
];

const PERSONALITY: &[Field] = &[
    guest("domain", Shape::Name(&names::PERSONALITIES)).required(),
    Field::refused("flags", STRINGS, "the specification defines no flag"),
];

const TIME_OFFSETS: &[Field] = &[
    guest("boottime", Shape::Object(TIME_OFFSET)),
    guest("monotonic", Shape::Object(TIME_OFFSET)),
];

const DEVICE_RULE: &[Field] = &[
    guest("allow", Shape::Bool).required(),
    guest("type", Shape::Name(&names::DEVICE_RULE_TYPES)),
    guest("major", Shape::Int(-1, 0xfff)),
    guest("minor", Shape::Int(-1, 0xf_ffff)),
    guest("access", Shape::Text(text::device_access)),
];

const MEMORY: &[Field] = &[
    both("limit", I64),
    both("reservation", I64),
    both("swap", I64),
    Field::refused("kernel", I64, V1_MEMORY),
    Field::refused("kernelTCP", I64, V1_MEMORY),
    Field::refused("swappiness", U64, V1_MEMORY),
    Field::refused("disableOOMKiller", Shape::Bool, V1_MEMORY),
    Field::no_effect(
        "useHierarchy",
        Shape::Bool,
        "a cgroup v2 is always accounted with those below it",
    ),
    guest("checkBeforeUpdate", Shape::Bool).note("of updates: a new cgroup uses no memory"),
];

const CPU: &[Field] = &[
    both("shares", U64),
    both("quota", I64),
    both("burst", U64),
    both("period", U64),
    Field::refused("realtimeRuntime", I64, NO_REALTIME),
    Field::refused("realtimePeriod", U64, NO_REALTIME),
    host("cpus", Shape::Text(text::cpu_list))
        .note("processors of the host, which the virtual machine does not number"),
    host("mems", Shape::Text(text::cpu_list)).note("memory nodes of the host"),
    both("idle", Shape::Int(0, 1)),
];

const PIDS: &[Field] = &[both("limit", I64).note("0: no process but the first; -1: no limit")];

const WEIGHT_DEVICE: &[Field] = &[
    host("major", DEVICE_MAJOR).required(),
    host("minor", DEVICE_MINOR).required(),
    host("weight", U16),
    Field::refused("leafWeight", U16, NO_LEAF_WEIGHT),
];

const BLOCK_IO: &[Field] = &[
    both("weight", U16),
    Field::refused("leafWeight", U16, NO_LEAF_WEIGHT),
    host("weightDevice", Shape::List(&Shape::Object(WEIGHT_DEVICE))).note(
        "as the next four: devices of the host, which reads and writes for the virtual machine",
    ),
    host("throttleReadBpsDevice", THROTTLE),
    host("throttleWriteBpsDevice", THROTTLE),
    host("throttleReadIOPSDevice", THROTTLE),
    host("throttleWriteIOPSDevice", THROTTLE),
];

const HUGEPAGE_LIMITS: &[Field] = &[
    both("pageSize", Shape::Text(text::page_size)).required(),
    both("limit", U64).required(),
];

const PRIORITIES: &[Field] = &[guest("name", Shape::Str), guest("priority", U32)];

const NETWORK: &[Field] = &[
    guest("classID", U32),
    guest("priorities", Shape::List(&Shape::Object(PRIORITIES))),
];

const RDMA: &[Field] = &[guest("hcaHandles", U32), guest("hcaObjects", U32)];

const THROTTLE_DEVICE: &[Field] = &[
    host("major", DEVICE_MAJOR).required(),
    host("minor", DEVICE_MINOR).required(),
    host("rate", U64),
];

/// 12 and 20 bits (linux/kdev_t.h).
const DEVICE_MAJOR: Shape = Shape::Int(0, 0xfff);
const DEVICE_MINOR: Shape = Shape::Int(0, 0xf_ffff);

const ARGS: &[Field] = &[
    guest("index", Shape::Int(0, 5)).required(),
    guest("value", U64).required(),
    guest("valueTwo", U64),
    guest("op", Shape::Name(&names::SECCOMP_OPERATORS)).required(),
];

const SYSCALLS: &[Field] = &[
    guest("names", STRINGS).required(),
    guest("action", ACTION).required(),
    guest("errnoRet", ERRNO),
    guest("args", Shape::List(&Shape::Object(ARGS))),
];
