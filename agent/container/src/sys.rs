//! System calls that rustix does not offer: clone3, execveat, mount_setattr, seccomp, bpf, keyctl, and
//! what a process needs between clone and exec.
#![allow(
    unsafe_code,
    reason = "raw system calls; everything exported here is safe to call"
)]

pub(crate) mod attributes;

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_long};

fn check(result: c_long) -> io::Result<c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// The file descriptor under which the init stage finds its channel.
pub(crate) const CHANNEL_FD: RawFd = 3;

/// What the child of [`spawn`] becomes.
pub(crate) struct Spawn<'a> {
    /// Namespaces to create (CLONE_NEW*).
    pub(crate) namespaces: u64,
    /// A process whose pid namespace the child starts in.
    pub(crate) pid_namespace_of: Option<&'a OwnedFd>,
    /// The cgroup directory to start in.
    pub(crate) cgroup: &'a OwnedFd,
    /// The executable.
    pub(crate) exe: &'a OwnedFd,
    /// Its argv[0].
    pub(crate) name: &'a CStr,
    /// Descriptors 0, 1 and 2.
    pub(crate) stdio: [&'a OwnedFd; 3],
    /// Becomes [`CHANNEL_FD`].
    pub(crate) channel: &'a OwnedFd,
    /// Whether the child waits for one byte on the channel, and then becomes user and group 0. That is
    /// for a new user namespace, whose mappings the parent writes first.
    pub(crate) wait_for_mappings: bool,
}

/// Duplicates a descriptor to a number above those that the child gives a meaning.
pub(crate) fn above_stdio(fd: &impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, CHANNEL_FD + 1)?)
}

/// Starts a process in new namespaces and in a cgroup; gives its pid and pidfd.
///
/// The descriptors in `spawn` must come from [`above_stdio`] or be as high. A child that cannot
/// execute writes its error number to the channel as [`EXEC_FAILED`] and four bytes, and exits.
pub(crate) fn spawn(spawn: &Spawn<'_>) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: c_int = -1;
    // SAFETY: clone_args is plain data for which zero is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = spawn.namespaces | libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    args.cgroup = u64::from(spawn.cgroup.as_raw_fd().cast_unsigned());
    // Handlers of the parent must not run in the child; what arrives meanwhile stays pending.
    let mask = block_signals()?;
    let own = match spawn.pid_namespace_of.map(lend_pid_namespace).transpose() {
        Ok(own) => own,
        Err(error) => {
            restore_signals(&mask)?;
            return Err(error);
        }
    };
    // SAFETY: `args` is a valid clone_args of the given size, without CLONE_VM: the child gets a copy
    // of this address space, as after fork, and its only thread calls `child`, which makes nothing
    // but system calls.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of_val(&args)) };
    if pid == 0 {
        child(spawn);
    }
    let error = io::Error::last_os_error();
    if let Some(own) = own
        && let Err(error) = setns(&own, libc::CLONE_NEWPID)
    {
        // The next child of this process would be born in a container.
        log::error!("cannot return to the pid namespace: {error}");
        std::process::abort();
    }
    restore_signals(&mask)?;
    if pid < 0 {
        return Err(error);
    }
    // SAFETY: clone3 succeeded with CLONE_PIDFD, so `pidfd` is an open descriptor nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((i32::try_from(pid).map_err(io::Error::other)?, pidfd))
}

/// Lets this process's next children be born in the pid namespace of another process; gives the
/// namespace that they were born in before.
fn lend_pid_namespace(pidfd: &OwnedFd) -> io::Result<OwnedFd> {
    let own = std::fs::File::open("/proc/self/ns/pid")?;
    setns(pidfd, libc::CLONE_NEWPID)?;
    Ok(own.into())
}

/// Moves this process into the namespace that a descriptor stands for, or into namespaces
/// (CLONE_NEW*) of the process that a pidfd stands for.
pub(crate) fn setns(fd: &impl AsFd, namespaces: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(c_long::from(unsafe {
        libc::setns(fd.as_fd().as_raw_fd(), namespaces)
    }))?;
    Ok(())
}

/// Becomes user and group 0 of a user namespace that was joined.
pub(crate) fn become_root() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(c_long::from(unsafe { libc::setresgid(0, 0, 0) }))?;
    // SAFETY: as above.
    check(c_long::from(unsafe { libc::setresuid(0, 0, 0) }))?;
    Ok(())
}

/// libc's constant overflows its own type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Precedes an error number on the channel, where the length of a message is expected.
pub(crate) const EXEC_FAILED: u32 = u32::MAX;

/// The child between clone and exec: system calls only, since any lock may be held by a thread that
/// does not exist here.
fn child(spawn: &Spawn<'_>) -> ! {
    let channel = spawn.channel.as_raw_fd();
    let code = match become_init_stage(spawn, channel) {
        // execveat does not return on success.
        Ok(never) => never,
        Err(code) => code,
    };
    let mut report = [0xff_u8; 8];
    let (_, number) = report.split_at_mut(4);
    number.copy_from_slice(&code.to_le_bytes());
    // SAFETY: `report` is readable for its length.
    unsafe { libc::write(channel, report.as_ptr().cast(), report.len()) };
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(1) }
}

fn last_errno() -> c_int {
    // Neither allocates nor locks.
    io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

fn become_init_stage(spawn: &Spawn<'_>, channel: RawFd) -> Result<c_int, c_int> {
    let ok = |result: c_long| {
        if result < 0 {
            Err(last_errno())
        } else {
            Ok(result)
        }
    };
    if spawn.wait_for_mappings {
        let mut byte = 0_u8;
        // SAFETY: `byte` is writable for its length.
        let read = ok(unsafe { libc::read(channel, (&raw mut byte).cast(), 1) } as c_long)?;
        if read != 1 {
            return Err(libc::EPIPE);
        }
        // glibc's wrappers would signal the parent's threads, so: raw calls. The program executed
        // next keeps its capabilities only as user 0 of its namespace.
        // SAFETY: no memory is passed.
        ok(unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) })?;
        // SAFETY: no memory is passed.
        ok(unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) })?;
    }
    for (number, fd) in spawn.stdio.iter().enumerate() {
        // SAFETY: no memory is passed; the sources are above the targets.
        ok(unsafe { libc::syscall(libc::SYS_dup3, fd.as_raw_fd(), number, 0) })?;
    }
    // SAFETY: as above.
    ok(unsafe { libc::syscall(libc::SYS_dup3, channel, CHANNEL_FD, 0) })?;
    // SAFETY: no memory is passed; descriptors stay valid until exec.
    ok(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            CHANNEL_FD + 1,
            c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    let argv = [spawn.name.as_ptr(), std::ptr::null()];
    let envp: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: path, argv and envp are NUL-terminated and outlive the call.
    ok(unsafe {
        libc::syscall(
            libc::SYS_execveat,
            spawn.exe.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            envp.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    })?;
    Ok(0)
}

fn block_signals() -> io::Result<libc::sigset_t> {
    // SAFETY: sigset_t is plain data for which zero is valid.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut old = all;
    // SAFETY: `all` is a writable signal set.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: both are valid signal sets.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old) } {
        0 => Ok(old),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

fn restore_signals(mask: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `mask` is a valid signal set.
    match unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// struct sigaction of the kernel, zero: the default action, no flags, no mask.
#[derive(Default)]
#[repr(C)]
struct DefaultAction {
    handler: usize,
    flags: libc::c_ulong,
    restorer: usize,
    mask: u64,
}

/// Gives every signal its default action and unblocks all: exec keeps what is ignored or blocked.
pub(crate) fn reset_signals() -> io::Result<()> {
    let default = DefaultAction::default();
    for signal in 1..=64 {
        if matches!(signal, libc::SIGKILL | libc::SIGSTOP) {
            continue;
        }
        let old: *const DefaultAction = std::ptr::null();
        // glibc's wrapper refuses the two signals it keeps to itself, so: a raw call.
        // SAFETY: `default` is a kernel sigaction for a mask of the given size, and runs no handler.
        check(unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                &raw const default,
                old,
                size_of::<u64>(),
            )
        })?;
    }
    // SAFETY: sigset_t is plain data for which zero is valid: the empty set.
    let empty: libc::sigset_t = unsafe { std::mem::zeroed() };
    restore_signals(&empty)
}

/// Takes the channel that [`spawn`] has left to the init stage.
pub(crate) fn take_channel() -> io::Result<OwnedFd> {
    // SAFETY: fcntl does not touch memory; it fails if the number is not open.
    check(c_long::from(unsafe {
        libc::fcntl(CHANNEL_FD, libc::F_SETFD, libc::FD_CLOEXEC)
    }))?;
    // SAFETY: the descriptor is open, and the init stage, which calls this once, is its only owner.
    Ok(unsafe { OwnedFd::from_raw_fd(CHANNEL_FD) })
}

/// Puts descriptors at the numbers from 3 on, and the channel, which has one of them, elsewhere. For
/// an init stage that has nothing else open.
pub(crate) fn place(channel: &mut OwnedFd, fds: Vec<OwnedFd>) -> io::Result<()> {
    let end = c_int::try_from(fds.len()).map_err(io::Error::other)? + CHANNEL_FD;
    let above = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, end);
    let copies = fds.iter().map(above).collect::<Result<Vec<_>, _>>()?;
    *channel = above(channel)?;
    drop(fds);
    for (number, fd) in (CHANNEL_FD..).zip(&copies) {
        // SAFETY: no memory is passed, and nobody owns the number: the channel and the descriptors
        // that were there have been moved away. From here on it is the program's.
        check(c_long::from(unsafe {
            libc::dup3(fd.as_raw_fd(), number, libc::O_CLOEXEC)
        }))?;
    }
    Ok(())
}

/// Leaves as many descriptors as [`place`] has put there to the program that is executed.
pub(crate) fn keep_on_exec(count: usize) -> io::Result<()> {
    for number in (CHANNEL_FD..).take(count) {
        // SAFETY: this changes no descriptor but in what becomes of it in another program.
        check(c_long::from(unsafe {
            libc::fcntl(number, libc::F_SETFD, 0)
        }))?;
    }
    Ok(())
}

/// Marks every descriptor from 3 on to be closed by exec.
pub(crate) fn close_on_exec() -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3,
            c_int::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Executes a program; returns only the error.
pub(crate) fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: path, argv and envp are NUL-terminated and outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error()
}

/// Moves the process into new namespaces (CLONE_NEW*).
pub(crate) fn unshare(namespaces: c_int) -> io::Result<()> {
    // SAFETY: no memory is passed, and descriptor tables are not among the namespaces.
    check(c_long::from(unsafe { libc::unshare(namespaces) }))?;
    Ok(())
}

/// mount_setattr(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// Attributes to set.
    pub(crate) set: u64,
    /// Attributes to clear.
    pub(crate) clear: u64,
    /// MS_PRIVATE and the like, or 0.
    pub(crate) propagation: u64,
}

impl MountAttr {
    /// Sets and clears attributes.
    pub(crate) fn new(set: u64, clear: u64) -> Self {
        MountAttr {
            set,
            clear,
            ..Self::default()
        }
    }

    /// Changes the propagation.
    pub(crate) fn propagation(propagation: u64) -> Self {
        MountAttr {
            propagation,
            ..Self::default()
        }
    }
}

/// Changes the attributes of a mount, or of a whole tree of mounts.
pub(crate) fn mount_setattr(
    mount: &impl AsFd,
    attr: &MountAttr,
    recursive: bool,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: attr.set,
        attr_clr: attr.clear,
        propagation: attr.propagation,
        userns_fd: 0,
    };
    cloister_idmap::set_attributes(mount, &attributes, recursive)
}

/// Sends a signal to a process; 1 to 64.
pub(crate) fn pidfd_send_signal(pidfd: &impl AsFd, signal: c_int) -> io::Result<()> {
    let info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null siginfo is allowed.
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            info,
            0,
        )
    })?;
    Ok(())
}

/// Joins a new session keyring.
pub(crate) fn new_session_keyring(name: &CStr) -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// IFF_UP | IFF_RUNNING
const IFF_UP_RUNNING: libc::c_short = 0x41;

/// Sets the network interface `lo` up.
pub(crate) fn loopback_up(socket: &impl AsFd) -> io::Result<()> {
    // SAFETY: ifreq is plain data for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    // SAFETY: ifru_flags is the member that SIOCSIFFLAGS reads.
    let flags = unsafe { &mut request.ifr_ifru.ifru_flags };
    *flags = IFF_UP_RUNNING;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `request` is a valid ifreq.
    check(c_long::from(unsafe {
        libc::ioctl(fd, libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}

/// Installs a system call filter on this thread.
pub(crate) fn seccomp(filter: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: `program` describes readable memory; the kernel copies the filter.
    let result = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })?;
    // With TSYNC, a positive result is the thread that could not follow.
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ESRCH))
    }
}

/// An instruction of an eBPF program (struct bpf_insn).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct BpfInstruction {
    /// Operation.
    pub(crate) code: u8,
    /// Destination register, and source register shifted by 4.
    pub(crate) registers: u8,
    /// Offset.
    pub(crate) offset: i16,
    /// Immediate operand.
    pub(crate) immediate: i32,
}

/// The head of union bpf_attr for BPF_PROG_LOAD.
#[derive(Default)]
#[repr(C)]
struct BpfProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// The head of union bpf_attr for BPF_PROG_ATTACH.
#[repr(C)]
struct BpfProgAttach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Loads a device program and attaches it to a cgroup.
pub(crate) fn attach_device_filter(
    cgroup: &impl AsFd,
    program: &[BpfInstruction],
) -> io::Result<()> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_ATTACH: c_int = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let load = BpfProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(io::Error::other)?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..BpfProgLoad::default()
    };
    // SAFETY: `load` is the head of a bpf_attr of the given size; instructions and license are
    // readable, the license is NUL-terminated.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of_val(&load),
        )
    })?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: BPF_PROG_LOAD has returned a new descriptor.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = BpfProgAttach {
        target_fd: cgroup.as_fd().as_raw_fd().cast_unsigned(),
        attach_bpf_fd: loaded.as_raw_fd().cast_unsigned(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` is the head of a bpf_attr of the given size.
    check(unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of_val(&attach),
        )
    })?;
    Ok(())
}
