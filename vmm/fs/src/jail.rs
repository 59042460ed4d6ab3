//! What the process gives up once the shared tree is built.
//!
//! It stays root, because it acts for every user of the guest, but of root's powers it keeps those
//! that concern files in the tree: see [`CAPABILITIES`]. `CAP_SYS_ADMIN` is not among them, so it
//! can neither mount nor set `trusted.*` attributes. The bounding set is left alone: nothing can be
//! executed any more, and with it no capability gained.
//!
//! The system calls are an allow list; anything else ends the process.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

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
    /// The filter is wrong.
    #[error("jail: cannot make the system call filter")]
    Filter(#[source] seccompiler::BackendError),
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
    for filter in [without_clone3(), filter()] {
        let filter = filter.map_err(JailError::Filter)?;
        apply_filter(&filter).map_err(JailError::Install)?;
    }
    Ok(())
}

/// Makes the C library start threads by `clone`, whose flags are a plain argument that
/// [`filter`] can judge.
fn without_clone3() -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.unsigned_abs()),
        TargetArch::x86_64,
    )?
    .try_into()
}

/// The system calls of a server that serves.
fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|&call| (call, Vec::new())).collect();
    let rule = |argument, operator, value: i32| {
        // Flags and options are 32 bits wide.
        let value = u64::from(value.cast_unsigned());
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        SeccompRule::new(vec![condition])
    };
    let equals = |argument, value| rule(argument, SeccompCmpOp::Eq, value);
    let lacks = |argument, bit: i32| {
        let mask = u64::from(bit.cast_unsigned());
        rule(argument, SeccompCmpOp::MaskedEq(mask), 0)
    };
    rules.insert(libc::SYS_clone, vec![equals(0, THREAD_FLAGS)?]);
    // Each worker has a working directory and a umask of its own.
    rules.insert(libc::SYS_unshare, vec![equals(0, libc::CLONE_FS)?]);
    // Memory is never executable.
    rules.insert(libc::SYS_mmap, vec![lacks(2, libc::PROT_EXEC)?]);
    rules.insert(libc::SYS_mprotect, vec![lacks(2, libc::PROT_EXEC)?]);
    // Thread names, and what libcap-ng wants to know.
    let options = [
        libc::PR_SET_NAME,
        libc::PR_CAPBSET_READ,
        libc::PR_CAP_AMBIENT,
    ];
    let options = options.map(|option| equals(0, option));
    rules.insert(
        libc::SYS_prctl,
        options.into_iter().collect::<Result<_, _>>()?,
    );
    SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )?
    .try_into()
}

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
    libc::SYS_read,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory, threads and the end, for the C library.
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    // Answered by `without_clone3`: the stricter of two filters wins, and this one's is to kill.
    libc::SYS_clone3,
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
