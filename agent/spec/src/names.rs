//! The names that values of the specification are chosen from.

use crate::shape::{Names, Unknown};

/// Namespace types (config-linux.md#namespaces).
pub(crate) static NAMESPACES: Names = Names {
    what: "namespace type",
    supported: &[
        "cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts",
    ],
    refused: &[],
    unknown: Unknown::Invalid,
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
    unknown: Unknown::Warning,
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
    unknown: Unknown::Invalid,
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
    unknown: Unknown::Invalid,
};

/// Types of device nodes (config-linux.md#devices).
pub(crate) static DEVICE_TYPES: Names = Names {
    what: "device type",
    supported: &["b", "c", "p", "u"],
    refused: &[],
    unknown: Unknown::Invalid,
};

/// Types of devices in the allow-list (config-linux.md#allowed-device-list).
pub(crate) static DEVICE_RULE_TYPES: Names = Names {
    what: "device rule type",
    supported: &["a", "b", "c"],
    refused: &[],
    unknown: Unknown::Invalid,
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
    unknown: Unknown::Invalid,
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
    unknown: Unknown::Invalid,
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
    unknown: Unknown::Invalid,
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
    unknown: Unknown::Invalid,
};

/// AppArmor profiles. The supported one is the absence of a profile.
pub(crate) static APPARMOR_PROFILES: Names = Names {
    what: "AppArmor profile",
    supported: &["unconfined"],
    refused: &[],
    unknown: Unknown::RefusedUnlessDefault {
        // Docker; Podman and Buildah; containerd; CRI-O; nerdctl.
        defaults: &[
            "docker-default",
            "containers-default-*",
            "cri-containerd.apparmor.d",
            "crio-default",
            "crio-default-*",
            "nerdctl-default",
        ],
        reason: "the guest kernel has no AppArmor",
    },
};

/// Policies of the scheduler (config.md#linux-process).
pub static SCHEDULER_POLICIES: Names = Names {
    what: "scheduling policy",
    supported: &[
        "SCHED_BATCH",
        "SCHED_DEADLINE",
        "SCHED_FIFO",
        "SCHED_IDLE",
        "SCHED_OTHER",
        "SCHED_RR",
    ],
    refused: &[("SCHED_ISO", "Linux has a number for it, but no such policy")],
    unknown: Unknown::Invalid,
};

/// Flags of the scheduler (config.md#linux-process).
pub static SCHEDULER_FLAGS: Names = Names {
    what: "scheduling flag",
    supported: &[
        "SCHED_FLAG_DL_OVERRUN",
        "SCHED_FLAG_KEEP_PARAMS",
        "SCHED_FLAG_KEEP_POLICY",
        "SCHED_FLAG_RECLAIM",
        "SCHED_FLAG_RESET_ON_FORK",
    ],
    refused: &[
        ("SCHED_FLAG_UTIL_CLAMP_MAX", NO_UCLAMP),
        ("SCHED_FLAG_UTIL_CLAMP_MIN", NO_UCLAMP),
    ],
    unknown: Unknown::Invalid,
};

const NO_UCLAMP: &str = "the guest kernel does not clamp utilisation, which is the host's to know";

/// Classes of I/O priority (config.md#linux-process).
pub static IO_PRIORITY_CLASSES: Names = Names {
    what: "I/O priority class",
    supported: &["IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE", "IOPRIO_CLASS_RT"],
    refused: &[],
    unknown: Unknown::Invalid,
};

/// Execution domains (config-linux.md#personality).
pub static PERSONALITIES: Names = Names {
    what: "execution domain",
    supported: &["LINUX", "LINUX32"],
    refused: &[],
    unknown: Unknown::Invalid,
};

/// Modes of a memory policy (config-linux.md#memory-policy). What is accepted is how it is anyway.
pub(crate) static MEMORY_POLICY_MODES: Names = Names {
    what: "memory policy",
    supported: &["MPOL_DEFAULT", "MPOL_LOCAL"],
    refused: &[
        ("MPOL_BIND", ONE_NODE),
        ("MPOL_INTERLEAVE", ONE_NODE),
        ("MPOL_PREFERRED", ONE_NODE),
        ("MPOL_PREFERRED_MANY", ONE_NODE),
        ("MPOL_WEIGHTED_INTERLEAVE", ONE_NODE),
    ],
    unknown: Unknown::Invalid,
};

pub(crate) const ONE_NODE: &str = "the virtual machine has one memory node";
