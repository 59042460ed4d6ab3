//! The names that values of the specification are chosen from.

use crate::shape::Names;

/// Namespace types (config-linux.md#namespaces).
pub(crate) static NAMESPACES: Names = Names {
    what: "namespace type",
    supported: &[
        "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
    ],
    refused: &[],
    unknown_is_warning: false,
};

/// Capabilities in the order of their numbers (capabilities(7)).
///
/// An unknown one is dropped with a warning (config.md#linux-process, "MUST be logged as a warning").
pub static CAPABILITIES: Names = Names {
    what: "capability",
    supported: &[
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_LINUX_IMMUTABLE",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_BROADCAST",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_IPC_LOCK",
        "CAP_IPC_OWNER",
        "CAP_SYS_MODULE",
        "CAP_SYS_RAWIO",
        "CAP_SYS_CHROOT",
        "CAP_SYS_PTRACE",
        "CAP_SYS_PACCT",
        "CAP_SYS_ADMIN",
        "CAP_SYS_BOOT",
        "CAP_SYS_NICE",
        "CAP_SYS_RESOURCE",
        "CAP_SYS_TIME",
        "CAP_SYS_TTY_CONFIG",
        "CAP_MKNOD",
        "CAP_LEASE",
        "CAP_AUDIT_WRITE",
        "CAP_AUDIT_CONTROL",
        "CAP_SETFCAP",
        "CAP_MAC_OVERRIDE",
        "CAP_MAC_ADMIN",
        "CAP_SYSLOG",
        "CAP_WAKE_ALARM",
        "CAP_BLOCK_SUSPEND",
        "CAP_AUDIT_READ",
        "CAP_PERFMON",
        "CAP_BPF",
        "CAP_CHECKPOINT_RESTORE",
    ],
    refused: &[],
    unknown_is_warning: true,
};

/// Resource limits in the order of their numbers (asm-generic/resource.h).
pub static RLIMITS: Names = Names {
    what: "resource limit",
    supported: &[
        "RLIMIT_CPU",
        "RLIMIT_FSIZE",
        "RLIMIT_DATA",
        "RLIMIT_STACK",
        "RLIMIT_CORE",
        "RLIMIT_RSS",
        "RLIMIT_NPROC",
        "RLIMIT_NOFILE",
        "RLIMIT_MEMLOCK",
        "RLIMIT_AS",
        "RLIMIT_LOCKS",
        "RLIMIT_SIGPENDING",
        "RLIMIT_MSGQUEUE",
        "RLIMIT_NICE",
        "RLIMIT_RTPRIO",
        "RLIMIT_RTTIME",
    ],
    refused: &[],
    unknown_is_warning: false,
};

/// Propagation of the root mount (config-linux.md#rootfs-mount-propagation; the recursive forms as
/// in runc).
pub(crate) static PROPAGATIONS: Names = Names {
    what: "propagation",
    supported: &[
        "private",
        "rprivate",
        "rshared",
        "rslave",
        "runbindable",
        "shared",
        "slave",
        "unbindable",
    ],
    refused: &[],
    unknown_is_warning: false,
};

/// Types of device nodes (config-linux.md#devices).
pub(crate) static DEVICE_TYPES: Names = Names {
    what: "device type",
    supported: &["c", "p", "u"],
    refused: &[(
        "b",
        "block devices of the host do not exist in the virtual machine",
    )],
    unknown_is_warning: false,
};

/// Types of devices in the allow-list (config-linux.md#allowed-device-list).
pub(crate) static DEVICE_RULE_TYPES: Names = Names {
    what: "device type",
    supported: &["a", "b", "c"],
    refused: &[],
    unknown_is_warning: false,
};

/// Actions of system call filters (config-linux.md#seccomp).
pub(crate) static SECCOMP_ACTIONS: Names = Names {
    what: "seccomp action",
    supported: &[
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ],
    refused: &[(
        "SCMP_ACT_NOTIFY",
        "a seccomp agent on the host cannot act inside the virtual machine",
    )],
    unknown_is_warning: false,
};

/// Comparisons of system call filters (config-linux.md#seccomp).
pub(crate) static SECCOMP_OPERATORS: Names = Names {
    what: "seccomp operator",
    supported: &[
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ],
    refused: &[],
    unknown_is_warning: false,
};

/// Architectures of system call filters (config-linux.md#seccomp). Those that an x86-64 kernel
/// never runs are accepted and have nothing to filter.
pub(crate) static SECCOMP_ARCHS: Names = Names {
    what: "seccomp architecture",
    supported: &[
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_LOONGARCH64",
        "SCMP_ARCH_M68K",
        "SCMP_ARCH_MIPS",
        "SCMP_ARCH_MIPS64",
        "SCMP_ARCH_MIPS64N32",
        "SCMP_ARCH_MIPSEL",
        "SCMP_ARCH_MIPSEL64",
        "SCMP_ARCH_MIPSEL64N32",
        "SCMP_ARCH_PARISC",
        "SCMP_ARCH_PARISC64",
        "SCMP_ARCH_PPC",
        "SCMP_ARCH_PPC64",
        "SCMP_ARCH_PPC64LE",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_S390",
        "SCMP_ARCH_S390X",
        "SCMP_ARCH_SH",
        "SCMP_ARCH_SHEB",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X86_64",
    ],
    refused: &[],
    unknown_is_warning: false,
};

/// Flags of system call filters (config-linux.md#seccomp).
pub(crate) static SECCOMP_FLAGS: Names = Names {
    what: "seccomp flag",
    supported: &[
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
    ],
    refused: &[(
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
        "it belongs to SCMP_ACT_NOTIFY, which is refused",
    )],
    unknown_is_warning: false,
};
