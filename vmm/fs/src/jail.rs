//! What the process gives up once the shared tree is built.
//!
//! It stays root, because it acts for every user of the guest, but of root's powers it keeps those
//! that concern files in the tree: see [`CAPABILITIES`]. `CAP_SYS_ADMIN` is not among them, so it
//! can neither mount nor set `trusted.*` attributes. The bounding set is left alone: nothing can be
//! executed any more, and with it no capability gained.
//!
//! The system calls are an allow list; anything else ends the process.

use std::os::fd::AsFd;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::apply_filter;

use crate::filter::{self, Rule, TooLong};

/// What acting for any user of the guest takes: files of any owner ([`CapabilitySet::CHOWN`],
/// [`CapabilitySet::DAC_OVERRIDE`], [`CapabilitySet::FOWNER`]), setuid and setgid bits
/// ([`CapabilitySet::FSETID`]), file capabilities ([`CapabilitySet::SETFCAP`]), device nodes
/// ([`CapabilitySet::MKNOD`]), and becoming that user while a file is made
/// ([`CapabilitySet::SETUID`], [`CapabilitySet::SETGID`]).
pub const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// Descriptors that the guest cannot take: queues, sockets, files that are open for the length of
/// a request.
const RESERVED_DESCRIPTORS: u64 = 512;
/// The kernel's default for the most descriptors of a process (`fs.nr_open`).
const MAX_DESCRIPTORS: u64 = 1 << 20;
/// A descriptor table of this size is made before there is a second thread: growing it later waits
/// for an RCU grace period at every doubling.
const FIRST_TABLE: i32 = 4096;

/// Why the process cannot be jailed.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// A system call failed.
    #[error("jail: cannot {operation}")]
    Step {
        /// What failed.
        operation: &'static str,
        /// Why.
        #[source]
        source: Errno,
    },
    /// The filter cannot be made.
    #[error("jail: cannot make the system call filter")]
    Filter(#[source] TooLong),
    /// The filter was not taken.
    #[error("jail: cannot install the system call filter")]
    Install(#[source] seccompiler::Error),
}

fn step(operation: &'static str) -> impl FnOnce(Errno) -> JailError {
    move |source| JailError::Step { operation, source }
}

/// Raises the number of descriptors as far as it goes and returns how many the guest may use. A
/// guest takes one for every file that it remembers.
///
/// # Errors
/// If the table of descriptors cannot be made.
pub fn raise_descriptor_limit(any: impl AsFd) -> Result<u64, JailError> {
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: Some(MAX_DESCRIPTORS),
        maximum: Some(MAX_DESCRIPTORS.max(limit.maximum.unwrap_or(MAX_DESCRIPTORS))),
    };
    if setrlimit(Resource::Nofile, wanted).is_ok() {
        limit = wanted;
    } else {
        // Without CAP_SYS_RESOURCE, or with a smaller fs.nr_open.
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).map_err(step("raise RLIMIT_NOFILE"))?;
    }
    let current = limit.current.unwrap_or(MAX_DESCRIPTORS);
    if i64::try_from(current).is_ok_and(|current| current > FIRST_TABLE.into()) {
        // Made and closed at once: the table stays.
        fcntl_dupfd_cloexec(any, FIRST_TABLE - 1).map_err(step("make a descriptor table"))?;
    }
    Ok(current.saturating_sub(RESERVED_DESCRIPTORS))
}

/// Gives up what is not needed to serve. Threads that are started later inherit it.
///
/// # Errors
/// If the kernel refuses; the process must not serve then.
pub fn enter() -> Result<(), JailError> {
    let sets = CapabilitySets {
        effective: CAPABILITIES,
        permitted: CAPABILITIES,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).map_err(step("drop capabilities"))?;
    set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let filter = filter::compile(rules()).map_err(JailError::Filter)?;
    apply_filter(&filter).map_err(JailError::Install)
}

/// The system calls of a server that serves.
fn rules() -> Vec<(u32, Rule)> {
    let one = |argument, value: i32| Rule::OneOf {
        argument,
        values: vec![value.cast_unsigned()],
    };
    let never_executable = || Rule::Without {
        argument: 2,
        bits: libc::PROT_EXEC.cast_unsigned(),
    };
    let restricted = [
        // Threads, and nothing else that clone can make. clone3 has its flags in memory, where a
        // filter cannot see them; the C library goes by clone if it is not there.
        (libc::SYS_clone, one(0, THREAD_FLAGS)),
        (libc::SYS_clone3, Rule::Fail(ENOSYS)),
        (libc::SYS_mmap, never_executable()),
        (libc::SYS_mprotect, never_executable()),
        (libc::SYS_prctl, one(0, libc::PR_SET_NAME)),
        // Each worker has a working directory and a umask of its own.
        (libc::SYS_unshare, one(0, libc::CLONE_FS)),
    ];
    let allowed = ALLOWED.iter().map(|&call| (call, Rule::Allow));
    // The numbers of system calls are small.
    let number = |call| u32::try_from(call).unwrap_or(u32::MAX);
    allowed
        .chain(restricted)
        .map(|(call, rule)| (number(call), rule))
        .collect()
}

#[expect(clippy::cast_possible_truncation, reason = "an errno is small")]
const ENOSYS: u16 = libc::ENOSYS as u16;

/// What the C library starts a thread with.
const THREAD_FLAGS: i32 = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// System calls that are allowed whatever their arguments.
const ALLOWED: &[i64] = &[
    // Files of the guest.
    libc::SYS_close,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchownat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flistxattr,
    libc::SYS_fremovexattr,
    libc::SYS_fsetxattr,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_linkat,
    libc::SYS_listxattr,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_readlinkat,
    libc::SYS_removexattr,
    libc::SYS_renameat2,
    libc::SYS_setxattr,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_syncfs,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    // On behalf of its users.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_setgroups,
    libc::SYS_setresgid,
    libc::SYS_setresuid,
    // Queues and sockets.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    libc::SYS_read,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory, threads and the end, for the C library.
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
];
