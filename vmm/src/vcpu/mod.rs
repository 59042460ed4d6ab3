//! One virtual CPU: its set-up and the thread that runs it.

pub mod cpuid;
pub mod gate;
mod run;
pub mod state;

pub use self::cpuid::Topology;
pub use self::run::{Ending, Failure, Outside, Runner};

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::boot::EntryState;
use crate::kvm::{KvmError, Operation as _};

/// Intel SDM volume 4: IA32_MTRR_DEF_TYPE.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled, write-back: what firmware leaves behind, and without which a kernel thinks that
/// all of its memory is uncached.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// To KVM_SET_TSC_KHZ, as many as the host's own.
const HOST_TSC_KHZ: u32 = 0;

/// Makes a vCPU of `vm`.
///
/// What a reset leaves behind is kept wherever it is what a kernel expects: FPU, control
/// registers, and the local APIC, whose LINT pins the kernel sets up after the MP table.
///
/// # Errors
/// If KVM refuses.
pub fn create(
    vm: &VmFd,
    supported: &CpuId,
    topology: Topology,
    id: u8,
) -> Result<VcpuFd, KvmError> {
    let vcpu = vm.create_vcpu(id.into()).during("KVM_CREATE_VCPU")?;
    // A new one counts at the frequency that the host had measured when KVM was loaded. If that was measured better since,
    // and this processor scales no counter, KVM takes the guest's for one that stands at zero, and none of its timers ends
    // in time (arch/x86/kvm/x86.c: set_tsc_khz).
    vcpu.set_tsc_khz(HOST_TSC_KHZ).during("KVM_SET_TSC_KHZ")?;
    let operation = "KVM_SET_CPUID2";
    let cpuid = cpuid::for_vcpu(supported, topology, id)
        .map_err(|_| KvmError::new(operation, libc::E2BIG))?;
    vcpu.set_cpuid2(&cpuid).during(operation)?;
    set_msrs(
        &vcpu,
        &[kvm_msr_entry {
            index: MSR_MTRR_DEF_TYPE,
            data: MTRR_WRITE_BACK,
            ..Default::default()
        }],
    )?;
    Ok(vcpu)
}

/// Makes a vCPU that has just been made known to the others, which run already: KVM sends interrupts by a
/// map of local APICs that it draws before it counts the new one, and draws anew only when one changes.
///
/// # Errors
/// If KVM refuses.
pub fn announce(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let lapic = vcpu.get_lapic().during("KVM_GET_LAPIC")?;
    vcpu.set_lapic(&lapic).during("KVM_SET_LAPIC")
}

/// Puts the first vCPU at the kernel's entry. The others wait for the kernel to start them.
///
/// # Errors
/// If KVM refuses.
pub fn enter(vcpu: &VcpuFd, entry: EntryState) -> Result<(), KvmError> {
    let mut sregs = vcpu.get_sregs().during("KVM_GET_SREGS")?;
    entry.apply(&mut sregs);
    vcpu.set_sregs(&sregs).during("KVM_SET_SREGS")?;
    vcpu.set_regs(&entry.regs()).during("KVM_SET_REGS")
}

/// Sets all of `entries`; KVM stops at the first that it does not take.
fn set_msrs(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), KvmError> {
    let operation = "KVM_SET_MSRS";
    let msrs = Msrs::from_entries(entries).map_err(|_| KvmError::new(operation, libc::E2BIG))?;
    let set = vcpu.set_msrs(&msrs).during(operation)?;
    match entries.get(set) {
        None => Ok(()),
        Some(refused) => {
            log::error!("KVM does not take MSR {:#x}", refused.index);
            Err(KvmError::new(operation, libc::EINVAL))
        }
    }
}
