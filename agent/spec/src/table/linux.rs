//! The `linux` section (config-linux.md).

use super::{
    Field, I64, ID, ID_MAPPING, STRING_MAP, STRINGS, Shape, U16, U32, U64, both, guest, names, text,
};

const LABEL_REASON: &str = "the guest kernel has no SELinux";
const V1_MEMORY: &str = "cgroup v2 has no such control";
const HOST_BLOCK: &str =
    "the device numbers are those of the host, which the virtual machine does not have";

pub(super) const LINUX: &[Field] = &[
    guest("devices", Shape::List(&Shape::Object(DEVICE))),
    Field::refused(
        "netDevices",
        Shape::Map(&Shape::Object(NET_DEVICES)),
        "network devices of the host cannot be moved into the virtual machine",
    ),
    guest("uidMappings", Shape::List(&Shape::Object(ID_MAPPING))),
    guest("gidMappings", Shape::List(&Shape::Object(ID_MAPPING))),
    guest("sysctl", STRING_MAP),
    guest("resources", Shape::Object(RESOURCES)),
    Field::refused(
        "cgroupsPath",
        Shape::Str,
        "placing a sandbox in a cgroup of the host is not supported",
    ),
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
    Field::refused(
        "memoryPolicy",
        Shape::Object(MEMORY_POLICY),
        "NUMA policies are not supported",
    ),
    Field::refused(
        "personality",
        Shape::Object(PERSONALITY),
        "execution domains are not supported",
    ),
    guest("timeOffsets", Shape::Object(TIME_OFFSETS)),
];

const TIME_OFFSET: &[Field] = &[
    guest("secs", I64),
    guest("nanosecs", Shape::Int(0, 999_999_999)),
];

/// The properties of a resources object.
pub(crate) const RESOURCES: &[Field] = &[
    guest("devices", Shape::List(&Shape::Object(DEVICE_RULE))),
    guest("memory", Shape::Object(MEMORY)),
    guest("cpu", Shape::Object(CPU)),
    guest("pids", Shape::Object(PIDS)),
    guest("blockIO", Shape::Object(BLOCK_IO)),
    guest(
        "hugepageLimits",
        Shape::List(&Shape::Object(HUGEPAGE_LIMITS)),
    ),
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
    guest("unified", STRING_MAP),
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

const NET_DEVICES: &[Field] = &[guest("name", Shape::Str)];

const NAMESPACES: &[Field] = &[
    both("type", Shape::Name(&names::NAMESPACES)).required(),
    // The host resolves it: only namespaces of the containers of one virtual machine can be shared.
    both("path", Shape::Str),
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
    guest("mode", Shape::Str),
    guest("nodes", Shape::Str),
    guest("flags", STRINGS),
];

const PERSONALITY: &[Field] = &[guest("domain", Shape::Str), guest("flags", STRINGS)];

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
    guest("limit", I64),
    guest("reservation", I64),
    guest("swap", I64),
    Field::refused("kernel", I64, V1_MEMORY),
    Field::refused("kernelTCP", I64, V1_MEMORY),
    Field::refused("swappiness", U64, V1_MEMORY),
    Field::refused("disableOOMKiller", Shape::Bool, V1_MEMORY),
    // Always so with cgroup v2.
    guest("useHierarchy", Shape::Bool),
    // Concerns updates: a new cgroup uses no memory.
    guest("checkBeforeUpdate", Shape::Bool),
];

const CPU: &[Field] = &[
    guest("shares", U64),
    guest("quota", I64),
    guest("burst", U64),
    guest("period", U64),
    Field::refused(
        "realtimeRuntime",
        I64,
        "cgroup v2 has no realtime scheduling control",
    ),
    Field::refused(
        "realtimePeriod",
        U64,
        "cgroup v2 has no realtime scheduling control",
    ),
    guest("cpus", Shape::Str),
    guest("mems", Shape::Str),
    guest("idle", Shape::Int(0, 1)),
];

const PIDS: &[Field] = &[guest("limit", I64)];

const WEIGHT_DEVICE: &[Field] = &[
    guest("major", I64),
    guest("minor", I64),
    guest("weight", U16),
    guest("leafWeight", U16),
];

const BLOCK_IO: &[Field] = &[
    guest("weight", U16),
    Field::refused("leafWeight", U16, "cgroup v2 has no leaf weights"),
    Field::refused(
        "weightDevice",
        Shape::List(&Shape::Object(WEIGHT_DEVICE)),
        HOST_BLOCK,
    ),
    Field::refused("throttleReadBpsDevice", THROTTLE, HOST_BLOCK),
    Field::refused("throttleWriteBpsDevice", THROTTLE, HOST_BLOCK),
    Field::refused("throttleReadIOPSDevice", THROTTLE, HOST_BLOCK),
    Field::refused("throttleWriteIOPSDevice", THROTTLE, HOST_BLOCK),
];

const HUGEPAGE_LIMITS: &[Field] = &[
    guest("pageSize", Shape::Text(text::page_size)).required(),
    guest("limit", U64).required(),
];

const PRIORITIES: &[Field] = &[guest("name", Shape::Str), guest("priority", U32)];

const NETWORK: &[Field] = &[
    guest("classID", U32),
    guest("priorities", Shape::List(&Shape::Object(PRIORITIES))),
];

const RDMA: &[Field] = &[guest("hcaHandles", U32), guest("hcaObjects", U32)];

const THROTTLE_DEVICE: &[Field] = &[guest("major", I64), guest("minor", I64), guest("rate", U64)];

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
