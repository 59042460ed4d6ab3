//! The system calls that a running VM needs. Any other ends the process at once.
//!
//! One filter for every thread: vCPU threads run what the event thread's devices do when a guest
//! activates or resets them, so that two filters would hardly differ. What can be narrowed by
//! arguments is: `ioctl` to the operations below, memory to mappings that are never executable,
//! signals to threads of the process itself, sockets to unnamed pairs.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Error;

/// Allowed whatever their arguments are, beside those of the devices.
const PLAIN: &[libc::c_long] = &[
    // Event loop and control socket.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    // Event descriptors, log, console file.
    libc::SYS_close,
    libc::SYS_ftruncate,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_read,
    libc::SYS_write,
    // Threads, and the allocator's share of memory.
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_sigaltstack,
    // Where the vDSO cannot read the clock.
    libc::SYS_clock_gettime,
    // The end, and what follows a stop signal.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
];

/// The operations on descriptors that KVM and the sockets need while the VM runs. KVM's are those
/// of a vCPU that runs or is looked at, and the routes that follow the IOAPIC.
mod ioctl {
    /// `_IO(KVMIO, nr)` and its relatives: include/uapi/asm-generic/ioctl.h.
    const fn kvm(direction: u32, number: u32, size: usize) -> u32 {
        const KVMIO: u32 = 0xae;
        #[expect(clippy::cast_possible_truncation, reason = "structures are small")]
        let size = size as u32;
        direction << 30 | size << 16 | KVMIO << 8 | number
    }

    const NONE: u32 = 0;
    const WRITE: u32 = 1;
    const READ: u32 = 2;

    pub(super) const ALLOWED: &[u32] = &[
        // KVM_RUN
        kvm(NONE, 0x80, 0),
        // KVM_SET_GSI_ROUTING
        kvm(WRITE, 0x6a, size_of::<kvm_bindings::kvm_irq_routing>()),
        // KVM_GET_REGS, KVM_GET_SREGS: to say where a vCPU failed.
        kvm(READ, 0x81, size_of::<kvm_bindings::kvm_regs>()),
        kvm(READ, 0x83, size_of::<kvm_bindings::kvm_sregs>()),
        // FIONBIO, of accepted sockets.
        0x5421,
    ];
}

/// A filter that is ready to be installed.
#[derive(Debug)]
pub struct Confinement {
    program: BpfProgram,
}

impl Confinement {
    /// The filter of a VMM with these devices' system calls in addition.
    ///
    /// # Errors
    /// If the rules cannot be made into a filter.
    pub fn new(devices: &[&[libc::c_long]]) -> Result<Self, Error> {
        let program = rules(devices)
            .and_then(|rules| {
                SeccompFilter::new(
                    rules,
                    SeccompAction::KillProcess,
                    SeccompAction::Allow,
                    TargetArch::x86_64,
                )
            })
            .and_then(BpfProgram::try_from)
            .map_err(|error| Error::Filter(Box::new(error)))?;
        Ok(Self { program })
    }

    /// Installs the filter on every thread of the process.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn confine(&self) -> Result<(), Error> {
        seccompiler::apply_filter_all_threads(&self.program)
            .map_err(|error| Error::Filter(Box::new(error)))
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(devices: &[&[libc::c_long]]) -> Result<Rules, seccompiler::BackendError> {
    use SeccompCmpArgLen::Dword;
    use SeccompCmpOp::{Eq, MaskedEq};

    let one = |argument, operation, value| {
        let condition = SeccompCondition::new(argument, Dword, operation, value)?;
        SeccompRule::new(vec![condition])
    };
    let any_of = |argument, values: &[u32]| {
        (values.iter())
            .map(|value| one(argument, Eq, u64::from(*value)))
            .collect::<Result<Vec<_>, _>>()
    };
    let constant = |value: libc::c_int| u64::from(value.unsigned_abs());

    let mut rules: Rules = PLAIN.iter().map(|call| (*call, Vec::new())).collect();
    for call in devices.iter().copied().flatten() {
        rules.insert(*call, Vec::new());
    }
    rules.insert(libc::SYS_ioctl, any_of(1, ioctl::ALLOWED)?);
    let not_executable = || one(2, MaskedEq(constant(libc::PROT_EXEC)), 0);
    rules.insert(libc::SYS_mmap, vec![not_executable()?]);
    rules.insert(libc::SYS_mprotect, vec![not_executable()?]);
    // Duplicates of kick descriptors when a device is activated; and what the standard library
    // asserts before it closes a descriptor, in builds with assertions.
    let commands = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD].map(libc::c_int::unsigned_abs);
    rules.insert(libc::SYS_fcntl, any_of(1, &commands)?);
    // The kick of a vCPU thread of this process.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![one(0, Eq, own)?]);
    let unix = constant(libc::AF_UNIX);
    rules.insert(libc::SYS_socketpair, vec![one(0, Eq, unix)?]);
    Ok(rules)
}
