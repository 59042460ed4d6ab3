//! A vCPU in a form that can be stored.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::set_msrs;
use crate::kvm::{KvmError, Operation as _};

/// Everything that makes a vCPU what it is, in the order in which it is restored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// What CPUID answers.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Whether it runs, waits for its start, or is halted.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub regs: kvm_regs,
    /// Segments, control registers, the local APIC's base.
    pub sregs: kvm_sregs,
    /// FPU and vector registers: the XSAVE area in words.
    pub xsave: Vec<u32>,
    /// Which of them are enabled.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug_regs: kvm_debugregs,
    /// The local APIC.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers: index and value.
    pub msrs: Vec<(u32, u64)>,
    /// Exceptions and interrupts on their way.
    pub events: kvm_vcpu_events,
}

/// Intel SDM volume 4 and Documentation/virt/kvm/x86/msr.rst. In an order in which they can be
/// set: the deadline last, since it is a value of the time stamp counter.
const MSRS: &[u32] = &[
    0x10,        // IA32_TIME_STAMP_COUNTER
    0x3b,        // IA32_TSC_ADJUST
    0x48,        // IA32_SPEC_CTRL
    0x174,       // IA32_SYSENTER_CS
    0x175,       // IA32_SYSENTER_ESP
    0x176,       // IA32_SYSENTER_EIP
    0x1a0,       // IA32_MISC_ENABLE
    0x277,       // IA32_PAT
    0x2ff,       // IA32_MTRR_DEF_TYPE
    0xc000_0081, // IA32_STAR
    0xc000_0082, // IA32_LSTAR
    0xc000_0083, // IA32_CSTAR
    0xc000_0084, // IA32_FMASK
    0xc000_0102, // IA32_KERNEL_GS_BASE
    0xc000_0103, // IA32_TSC_AUX
    0x4b56_4d00, // KVM_WALL_CLOCK_NEW
    0x4b56_4d01, // KVM_SYSTEM_TIME_NEW
    0x4b56_4d03, // KVM_STEAL_TIME
    0x4b56_4d04, // KVM_PV_EOI_EN
    0x4b56_4d05, // KVM_POLL_CONTROL
    0x6e0,       // IA32_TSC_DEADLINE
];

/// The state of `vcpu`, which must not be running.
///
/// # Errors
/// If KVM refuses to tell.
pub fn save(vcpu: &VcpuFd) -> Result<VcpuState, KvmError> {
    // First: it makes KVM settle what is pending in the local APIC.
    let mp_state = vcpu.get_mp_state().during("KVM_GET_MP_STATE")?;
    Ok(VcpuState {
        cpuid: (vcpu.get_cpuid2(KVM_MAX_CPUID_ENTRIES))
            .during("KVM_GET_CPUID2")?
            .as_slice()
            .to_vec(),
        mp_state,
        regs: vcpu.get_regs().during("KVM_GET_REGS")?,
        sregs: vcpu.get_sregs().during("KVM_GET_SREGS")?,
        xsave: vcpu.get_xsave().during("KVM_GET_XSAVE")?.region.to_vec(),
        xcrs: vcpu.get_xcrs().during("KVM_GET_XCRS")?,
        debug_regs: vcpu.get_debug_regs().during("KVM_GET_DEBUGREGS")?,
        lapic: vcpu.get_lapic().during("KVM_GET_LAPIC")?,
        msrs: save_msrs(vcpu)?,
        events: vcpu.get_vcpu_events().during("KVM_GET_VCPU_EVENTS")?,
    })
}

/// Makes `vcpu`, which has not run yet, what it was when `state` was taken.
///
/// # Errors
/// If KVM refuses a part of the state.
pub fn restore(vcpu: &VcpuFd, state: &VcpuState) -> Result<(), KvmError> {
    let operation = "KVM_SET_CPUID2";
    let cpuid =
        CpuId::from_entries(&state.cpuid).map_err(|_| KvmError::new(operation, libc::E2BIG))?;
    vcpu.set_cpuid2(&cpuid).during(operation)?;
    vcpu.set_mp_state(state.mp_state)
        .during("KVM_SET_MP_STATE")?;
    vcpu.set_regs(&state.regs).during("KVM_SET_REGS")?;
    vcpu.set_sregs(&state.sregs).during("KVM_SET_SREGS")?;
    set_xsave(vcpu, &state.xsave)?;
    vcpu.set_xcrs(&state.xcrs).during("KVM_SET_XCRS")?;
    vcpu.set_debug_regs(&state.debug_regs)
        .during("KVM_SET_DEBUGREGS")?;
    vcpu.set_lapic(&state.lapic).during("KVM_SET_LAPIC")?;
    let msrs: Vec<_> = (state.msrs.iter())
        .map(|&(index, data)| entry(index, data))
        .collect();
    set_msrs(vcpu, &msrs)?;
    vcpu.set_vcpu_events(&state.events)
        .during("KVM_SET_VCPU_EVENTS")
}

#[expect(unsafe_code, reason = "KVM takes a size that only the caller knows")]
fn set_xsave(vcpu: &VcpuFd, words: &[u32]) -> Result<(), KvmError> {
    let mut xsave = kvm_xsave::default();
    for (to, from) in xsave.region.iter_mut().zip(words) {
        *to = *from;
    }
    // SAFETY: without AMX, which a process has to ask its kernel for and this one does not, the
    // whole of it is the 4096 bytes of the structure.
    unsafe { vcpu.set_xsave(&xsave) }.during("KVM_SET_XSAVE")
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }
}

/// The registers of [`MSRS`] that this vCPU has.
fn save_msrs(vcpu: &VcpuFd) -> Result<Vec<(u32, u64)>, KvmError> {
    let operation = "KVM_GET_MSRS";
    let mut saved = Vec::with_capacity(MSRS.len());
    for &index in MSRS {
        // One by one: KVM stops at the first that it does not know.
        let mut msrs = Msrs::from_entries(&[entry(index, 0)])
            .map_err(|_| KvmError::new(operation, libc::E2BIG))?;
        if vcpu.get_msrs(&mut msrs).during(operation)? == 1
            && let [known] = msrs.as_slice()
        {
            saved.push((index, known.data));
        }
    }
    Ok(saved)
}
