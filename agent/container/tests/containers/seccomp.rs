//! System call filters at work.

use serde_json::{Value, json};

use crate::support::{Bundle, Tests};

pub(crate) const TESTS: Tests = &[
    ("a_call_fails_with_its_errno", a_call_fails_with_its_errno),
    ("a_call_kills", a_call_kills),
    ("every_action", every_action),
    ("every_default_action", every_default_action),
    ("architectures_and_flags", architectures_and_flags),
    ("a_list_of_allowed_calls", a_list_of_allowed_calls),
    (
        "with_and_without_new_privileges",
        with_and_without_new_privileges,
    ),
    ("arguments_count", arguments_count),
    (
        "capabilities_go_after_the_filter",
        capabilities_go_after_the_filter,
    ),
    (
        "filters_older_than_the_runtime",
        filters_older_than_the_runtime,
    ),
];

/// Profiles from before these calls refuse them, and with them what the init stage itself does.
fn filters_older_than_the_runtime() {
    let mut profile = deny("close_range", 1);
    for name in ["faccessat2", "openat2", "mount_setattr", "clone3"] {
        let names = profile["syscalls"][0]["names"].as_array_mut().unwrap();
        names.push(json!(name));
    }
    for no_new_privileges in [true, false] {
        let outcome = Bundle::script("echo works")
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/linux/seccomp", profile.clone())
            .run();
        assert_eq!(outcome.lines(), ["works"]);
    }
    let error = Bundle::with_args(&["/etc/passwd"])
        .set("/process/noNewPrivileges", json!(false))
        .set("/linux/seccomp", profile)
        .error();
    assert_eq!(error, "exec: \"/etc/passwd\": permission denied");
}

fn deny(name: &str, errno: u16) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": [name], "action": "SCMP_ACT_ERRNO", "errnoRet": errno}],
    })
}

fn a_call_fails_with_its_errno() {
    let outcome = Bundle::script("mkdir /tmp/x 2>&1; grep ^Seccomp: /proc/self/status")
        .set("/linux/seccomp", deny("mkdir", 28))
        .run();
    let expected = [
        "mkdir: can't create directory '/tmp/x': No space left on device",
        "Seccomp:\t2",
    ];
    assert_eq!(outcome.lines(), expected);
}

/// What becomes of a process that makes a system call with each action.
fn every_action() {
    for (action, expected) in [
        ("SCMP_ACT_ALLOW", "0"),
        ("SCMP_ACT_LOG", "0"),
        // Nobody traces: ENOSYS.
        (
            "SCMP_ACT_TRACE",
            "1 mkdir: can't create directory '/tmp/x': Function not implemented",
        ),
        (
            "SCMP_ACT_ERRNO",
            "1 mkdir: can't create directory '/tmp/x': Operation not permitted",
        ),
        // 128 + SIGSYS
        ("SCMP_ACT_TRAP", "159"),
        ("SCMP_ACT_KILL", "159"),
        ("SCMP_ACT_KILL_THREAD", "159"),
        ("SCMP_ACT_KILL_PROCESS", "159"),
    ] {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": action}],
        });
        let outcome = Bundle::script("out=$(mkdir /tmp/x 2>&1); echo $? $out")
            .set("/linux/seccomp", profile)
            .run();
        assert_eq!(outcome.lines()[0].trim_end(), expected, "{action}");
    }
}

/// Each as the default for what no rule names.
fn every_default_action() {
    for (profile, expected) in [
        (json!({"defaultAction": "SCMP_ACT_ALLOW"}), "0"),
        (json!({"defaultAction": "SCMP_ACT_LOG"}), "0"),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 28}),
            "1 mkdir: can't create directory '/tmp/x': No space left on device",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_TRACE", "defaultErrnoRet": 5}),
            "1 mkdir: can't create directory '/tmp/x': Function not implemented",
        ),
        (json!({"defaultAction": "SCMP_ACT_KILL_PROCESS"}), "159"),
        (json!({"defaultAction": "SCMP_ACT_TRAP"}), "159"),
    ] {
        let mut full = profile.clone();
        full["syscalls"] = json!([{"names": NEEDED, "action": "SCMP_ACT_ALLOW"}]);
        let outcome = Bundle::script("out=$(mkdir /tmp/x 2>&1); echo $? $out")
            .set("/linux/seccomp", full)
            .run();
        assert_eq!(outcome.lines()[0].trim_end(), expected, "{profile}");
    }
}

fn architectures_and_flags() {
    // Those of other machines have nothing to filter here.
    let mut profile = deny("mkdir", 28);
    profile["architectures"] = json!([
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_PPC64LE",
        "SCMP_ARCH_S390X",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_LOONGARCH64",
        "SCMP_ARCH_MIPSEL64N32",
    ]);
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_LOG"]),
        json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
        json!([
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW"
        ]),
    ] {
        profile["flags"] = flags.clone();
        let outcome = Bundle::script("mkdir /tmp/x 2>&1; true")
            .set("/linux/seccomp", profile.clone())
            .run();
        assert!(
            outcome.stdout.contains("No space left"),
            "{flags}: {outcome:?}"
        );
    }
}

fn a_call_kills() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_KILL_PROCESS"}],
    });
    let outcome = Bundle::script("mkdir /tmp/x; echo $?")
        .set("/linux/seccomp", profile)
        .run();
    // 128 + SIGSYS
    assert_eq!(outcome.lines(), ["159"]);
}

/// What a shell and a static BusyBox need.
const NEEDED: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "capset",
    "chdir",
    "chmod",
    "clone",
    "clone3",
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "execve",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchdir",
    "fcntl",
    "fstat",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getuid",
    "ioctl",
    "lseek",
    "lstat",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "newfstatat",
    "open",
    "openat",
    "pipe",
    "pipe2",
    "poll",
    "prctl",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sendfile",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setpgid",
    "setresgid",
    "setresuid",
    "setuid",
    "sigaltstack",
    "stat",
    "statx",
    "sysinfo",
    "umask",
    "uname",
    "vfork",
    "wait4",
    "write",
    "writev",
];

fn a_list_of_allowed_calls() {
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 13,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": NEEDED, "action": "SCMP_ACT_ALLOW"}],
    });
    let outcome = Bundle::script("echo alive; mkdir /tmp/x 2>&1")
        .set("/linux/seccomp", profile)
        .run();
    assert_eq!(
        outcome.stdout,
        "alive\nmkdir: can't create directory '/tmp/x': Permission denied\n"
    );
}

fn with_and_without_new_privileges() {
    for no_new_privileges in [true, false] {
        let outcome = Bundle::script("mkdir /tmp/x 2>/dev/null || echo denied")
            .set("/process/noNewPrivileges", json!(no_new_privileges))
            .set("/process/user/uid", json!(1000))
            .set("/linux/seccomp", deny("mkdir", 1))
            .run();
        assert_eq!(outcome.lines(), ["denied"], "{no_new_privileges}");
    }
}

fn arguments_count() {
    // kill(2) with signal 12 only.
    let profile = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2,
            "args": [{"index": 1, "value": 12, "op": "SCMP_CMP_EQ"}],
        }],
    });
    let outcome = Bundle::script("kill -0 $$ && echo zero; kill -12 $$ 2>&1")
        .set("/linux/seccomp", profile)
        .run();
    assert_eq!(
        outcome.stdout,
        "zero\nsh: can't kill pid 1: No such file or directory\n"
    );
}

fn capabilities_go_after_the_filter() {
    // Loading without noNewPrivileges takes a capability that the container does not have.
    let outcome = Bundle::script("grep -E '^(CapEff|Seccomp):' /proc/self/status")
        .set("/process/noNewPrivileges", json!(false))
        .set("/process/capabilities", json!({}))
        .set("/linux/seccomp", deny("reboot", 1))
        .run();
    assert_eq!(
        outcome.lines(),
        ["CapEff:\t0000000000000000", "Seccomp:\t2"]
    );
}
