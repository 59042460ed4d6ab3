//! The system calls that a running VM needs. Any other ends the process at once.
//!
//! One filter for every thread: vCPU threads run what the event thread's devices do when a guest
//! activates or resets them, so that two filters would hardly differ. What can be narrowed by
//! arguments is: `ioctl` to the operations below, memory to mappings that are never executable,
//! signals to threads of the process itself, `clone` to threads (those of vCPUs that are added), sockets
//! to unnamed pairs.

use std::collections::BTreeMap;

use seccompiler::BpfProgram;

use super::Error;
use super::filter::{self, Rule};

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
    libc::SYS_rseq,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Where the vDSO cannot read the clock.
    libc::SYS_clock_gettime,
    // The end, and what follows a stop signal.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
];

/// The operations on descriptors that KVM and the sockets need while the VM runs, beside those of the
/// devices. KVM's are those of a vCPU that is made, runs or is looked at, of memory that is added, the
/// routes that follow the IOAPIC, and what wires a device that comes or goes.
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
        // KVM_CREATE_VCPU, KVM_SET_TSC_KHZ, KVM_SET_CPUID2, KVM_SET_MSRS, KVM_GET_LAPIC, KVM_SET_LAPIC
        kvm(NONE, 0x41, 0),
        kvm(NONE, 0xa2, 0),
        kvm(WRITE, 0x90, size_of::<kvm_bindings::kvm_cpuid2>()),
        kvm(WRITE, 0x89, size_of::<kvm_bindings::kvm_msrs>()),
        kvm(READ, 0x8e, size_of::<kvm_bindings::kvm_lapic_state>()),
        kvm(WRITE, 0x8f, size_of::<kvm_bindings::kvm_lapic_state>()),
        // KVM_SET_USER_MEMORY_REGION: of memory that is added.
        kvm(
            WRITE,
            0x46,
            size_of::<kvm_bindings::kvm_userspace_memory_region>(),
        ),
        // KVM_SET_GSI_ROUTING
        kvm(WRITE, 0x6a, size_of::<kvm_bindings::kvm_irq_routing>()),
        // KVM_IRQFD, KVM_IOEVENTFD
        kvm(WRITE, 0x76, size_of::<kvm_bindings::kvm_irqfd>()),
        kvm(WRITE, 0x79, size_of::<kvm_bindings::kvm_ioeventfd>()),
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
    /// The filter of a VMM with these devices' system calls and `ioctl` operations in addition.
    ///
    /// # Errors
    /// If there are more rules than a filter can hold.
    pub fn new(devices: &[&[libc::c_long]], ioctls: &[&[u32]]) -> Result<Self, Error> {
        let rules: Vec<_> = rules(devices, ioctls).into_iter().collect();
        let program = filter::compile(&rules).map_err(|error| Error::Filter(Box::new(error)))?;
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

fn rules(devices: &[&[libc::c_long]], ioctls: &[&[u32]]) -> BTreeMap<u32, Rule> {
    let number = |call: libc::c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let argument = |argument, values: &[u32]| Rule::Argument {
        argument,
        mask: u32::MAX,
        values: values.to_vec(),
    };
    let not_executable = || Rule::Argument {
        argument: 2,
        mask: libc::PROT_EXEC.unsigned_abs(),
        values: vec![0],
    };
    let devices = devices.iter().copied().flatten();
    let mut rules: BTreeMap<_, _> = (PLAIN.iter().chain(devices))
        .map(|call| (number(*call), Rule::Always))
        .collect();
    // clone3 has its flags in memory, where a filter cannot see them; the C library goes by clone if
    // it is not there.
    let missing = Rule::Fail(ENOSYS);
    let name = [libc::PR_SET_NAME.unsigned_abs()];
    // Duplicates of kick descriptors when a device is activated; and what the standard library
    // asserts before it closes a descriptor, in builds with assertions.
    let duplicate = [libc::F_DUPFD_CLOEXEC, libc::F_GETFD].map(libc::c_int::unsigned_abs);
    // The kick of a vCPU thread of this process.
    let own = [std::process::id()];
    let unix = [libc::AF_UNIX.unsigned_abs()];
    let mut operations = ioctl::ALLOWED.to_vec();
    operations.extend(ioctls.iter().copied().flatten());
    rules.extend([
        (number(libc::SYS_ioctl), argument(1, &operations)),
        (number(libc::SYS_mmap), not_executable()),
        (number(libc::SYS_mprotect), not_executable()),
        (number(libc::SYS_fcntl), argument(1, &duplicate)),
        (number(libc::SYS_tgkill), argument(0, &own)),
        (number(libc::SYS_socketpair), argument(0, &unix)),
        (number(libc::SYS_clone), argument(0, &[THREAD_FLAGS])),
        (number(libc::SYS_clone3), missing),
        (number(libc::SYS_prctl), argument(0, &name)),
    ]);
    rules
}

#[expect(clippy::cast_possible_truncation, reason = "an errno is small")]
const ENOSYS: u16 = libc::ENOSYS as u16;

/// What the C library starts a thread with.
const THREAD_FLAGS: u32 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID)
    .cast_unsigned();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{DEVICE_IOCTLS, DEVICE_SYSCALLS};

    #[test]
    fn what_would_lead_out_is_not_allowed() {
        let rules = rules(DEVICE_SYSCALLS, DEVICE_IOCTLS);
        let forbidden = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_process_vm_writev,
            libc::SYS_memfd_create,
        ];
        for call in forbidden {
            assert!(!rules.contains_key(&u32::try_from(call).unwrap()), "{call}");
        }
    }

    #[test]
    fn threads_are_all_that_can_be_made() {
        let rules = rules(DEVICE_SYSCALLS, DEVICE_IOCTLS);
        let rule = |call: libc::c_long| rules.get(&u32::try_from(call).unwrap()).unwrap();
        let flags = libc::CLONE_THREAD.cast_unsigned() | libc::CLONE_VM.cast_unsigned();
        assert!(matches!(rule(libc::SYS_clone),
            Rule::Argument { argument: 0, mask: u32::MAX, values }
                if matches!(values[..], [only] if only & flags == flags)));
        assert_eq!(rule(libc::SYS_clone3), &Rule::Fail(38));
        assert!(matches!(rule(libc::SYS_prctl),
            Rule::Argument { argument: 0, values, .. } if values[..] == [15]));
    }

    #[test]
    fn the_operations_of_kvm_have_their_numbers() {
        // include/uapi/linux/kvm.h, as strace(1) prints them.
        assert!(ioctl::ALLOWED.contains(&0xae80), "KVM_RUN");
        assert!(ioctl::ALLOWED.contains(&0x8090_ae81), "KVM_GET_REGS");
        assert!(ioctl::ALLOWED.contains(&0x8138_ae83), "KVM_GET_SREGS");
        assert!(ioctl::ALLOWED.contains(&0x4020_ae76), "KVM_IRQFD");
        assert!(ioctl::ALLOWED.contains(&0xae41), "KVM_CREATE_VCPU");
        assert!(ioctl::ALLOWED.contains(&0xaea2), "KVM_SET_TSC_KHZ");
        assert!(ioctl::ALLOWED.contains(&0x8400_ae8e), "KVM_GET_LAPIC");
        assert!(ioctl::ALLOWED.contains(&0x4400_ae8f), "KVM_SET_LAPIC");
        let set_memory = 0x4020_ae46;
        assert!(
            ioctl::ALLOWED.contains(&set_memory),
            "KVM_SET_USER_MEMORY_REGION"
        );
        assert!(ioctl::ALLOWED.contains(&0x4008_ae90), "KVM_SET_CPUID2");
        assert!(ioctl::ALLOWED.contains(&0x4008_ae89), "KVM_SET_MSRS");
        assert!(ioctl::ALLOWED.contains(&0x4040_ae79), "KVM_IOEVENTFD");
    }

    #[test]
    fn a_filter_holds_all_rules() {
        Confinement::new(DEVICE_SYSCALLS, DEVICE_IOCTLS).unwrap();
    }
}
