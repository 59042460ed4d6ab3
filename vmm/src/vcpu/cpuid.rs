//! What a guest's CPUID instruction answers.
//!
//! Everything that KVM supports is passed through, but: the topology is that of a package with as
//! many single-threaded cores as the VM can have vCPUs; the performance counters are left out; the
//! paravirtual features of KVM are announced except those that would let the host interrupt the
//! guest for its own page faults. Leaves: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E;
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

mod leaf {
    pub(super) const FEATURES: u32 = 0x1;
    pub(super) const CACHES: u32 = 0x4;
    pub(super) const PERFORMANCE: u32 = 0xa;
    pub(super) const TOPOLOGY: u32 = 0xb;
    pub(super) const TOPOLOGY_V2: u32 = 0x1f;
    pub(super) const KVM_FEATURES: u32 = 0x4000_0001;
    pub(super) const AMD_FEATURES: u32 = 0x8000_0001;
    pub(super) const AMD_SIZES: u32 = 0x8000_0008;
    pub(super) const AMD_CACHES: u32 = 0x8000_001d;
    pub(super) const AMD_TOPOLOGY: u32 = 0x8000_001e;
}

/// Leaf 1, ECX: x2APIC, TSC deadline timer, running under a hypervisor.
const ECX_X2APIC: u32 = 1 << 21;
const ECX_TSC_DEADLINE: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has room for more than one logical processor.
const EDX_HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX: the package has more than one core.
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x4000_0001, EAX: asynchronous page faults in their three forms.
const KVM_ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;

/// Topology level types of leaves 0xb and 0x1f.
const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// A VM's CPUs as CPUID sees them.
#[derive(Debug, Clone, Copy)]
pub struct Topology {
    /// The vCPUs that there can be, all in one package.
    pub vcpus: u8,
    /// Whether KVM can raise timer interrupts at a TSC value.
    pub tsc_deadline: bool,
}

impl Topology {
    /// Bits of an APIC id that number the cores of the package.
    fn id_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().trailing_zeros()
    }

    fn last_vcpu(self) -> u32 {
        u32::from(self.vcpus.saturating_sub(1))
    }
}

/// Replaces the bits of `mask`, which must be in one piece, by `value`.
fn set(register: &mut u32, mask: u32, value: u32) {
    *register = *register & !mask | value << mask.trailing_zeros() & mask;
}

/// The answers for the vCPU with APIC id `id`, from what KVM supports.
///
/// # Errors
/// The entries do not fit: KVM supports more leaves than the table has.
pub fn for_vcpu(
    supported: &CpuId,
    topology: Topology,
    id: u8,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let mut entries: Vec<kvm_cpuid_entry2> = Vec::with_capacity(supported.as_slice().len() + 4);
    for entry in supported.as_slice() {
        match entry.function {
            // Rebuilt below, if they are there at all.
            leaf::TOPOLOGY | leaf::TOPOLOGY_V2 => {
                if entry.index == 0 {
                    entries.extend(topology_leaf(entry.function, topology, id));
                }
            }
            // A leaf that is not there reads as zero, and every one less is one less to search.
            leaf::PERFORMANCE => {}
            _ => {
                let mut entry = *entry;
                adapt(&mut entry, topology, id);
                if entry.eax | entry.ebx | entry.ecx | entry.edx != 0 {
                    entries.push(entry);
                }
            }
        }
    }
    CpuId::from_entries(&entries)
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, id: u8) {
    let id = u32::from(id);
    match entry.function {
        leaf::FEATURES => {
            set(&mut entry.ebx, 0xff00_0000, id);
            set(&mut entry.ebx, 0x00ff_0000, 1 << topology.id_bits());
            entry.ecx |= ECX_HYPERVISOR | ECX_X2APIC;
            let deadline = if topology.tsc_deadline {
                ECX_TSC_DEADLINE
            } else {
                0
            };
            entry.ecx = entry.ecx & !ECX_TSC_DEADLINE | deadline;
            let several = if topology.vcpus > 1 { EDX_HTT } else { 0 };
            entry.edx = entry.edx & !EDX_HTT | several;
        }
        // A type of zero ends the list of caches.
        leaf::CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            set(&mut entry.eax, 0xfc00_0000, (1 << topology.id_bits()) - 1);
            set(&mut entry.eax, 0x03ff_c000, sharing(level, topology));
        }
        leaf::KVM_FEATURES => entry.eax &= !KVM_ASYNC_PF,
        leaf::AMD_FEATURES => {
            let several = if topology.vcpus > 1 {
                ECX_CMP_LEGACY
            } else {
                0
            };
            entry.ecx = entry.ecx & !ECX_CMP_LEGACY | several;
        }
        leaf::AMD_SIZES => {
            set(&mut entry.ecx, 0x0000_00ff, topology.last_vcpu());
            set(&mut entry.ecx, 0x0000_f000, topology.id_bits());
        }
        leaf::AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = entry.eax >> 5 & 7;
            set(&mut entry.eax, 0x03ff_c000, sharing(level, topology));
        }
        leaf::AMD_TOPOLOGY => {
            entry.eax = id;
            // Core id; one thread a core.
            set(&mut entry.ebx, 0x0000_00ff, id);
            set(&mut entry.ebx, 0x0000_ff00, 0);
            // Node 0 of one.
            set(&mut entry.ecx, 0x0000_07ff, 0);
        }
        _ => {}
    }
}

/// How many CPUs share a cache, less one: the last level is the package's, the others a core's.
fn sharing(level: u32, topology: Topology) -> u32 {
    if level >= 3 {
        (1 << topology.id_bits()) - 1
    } else {
        0
    }
}

fn topology_leaf(function: u32, topology: Topology, id: u8) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, logical: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: logical,
        ecx: kind << 8 | index,
        edx: id.into(),
        ..Default::default()
    };
    [
        level(0, LEVEL_SMT, 0, 1),
        level(1, LEVEL_CORE, topology.id_bits(), topology.vcpus.into()),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn supported() -> CpuId {
        CpuId::from_entries(&[
            entry(0, 0, [0x1f, 1, 2, 3]),
            entry(1, 0, [0, 0xff00_0800, 0, EDX_HTT | 1]),
            entry(4, 0, [0x0400_0121, 1, 1, 0]),
            entry(4, 3, [0x0400_0163, 1, 1, 0]),
            entry(0xa, 0, [7, 7, 7, 7]),
            entry(0xb, 0, [1, 2, 0x100, 9]),
            entry(0xb, 1, [4, 16, 0x201, 9]),
            entry(0x4000_0001, 0, [u32::MAX, 0, 0, 0]),
            entry(0x8000_0008, 0, [0x3030, 0, 0x70ff, 0]),
            entry(0x8000_001e, 0, [5, 0x0105, 0x0700, 0]),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found = (cpuid.as_slice().iter())
            .find(|e| e.function == function && e.index == index)
            .copied();
        found.unwrap_or_default()
    }

    fn answers(vcpus: u8, id: u8) -> CpuId {
        let topology = Topology {
            vcpus,
            tsc_deadline: true,
        };
        for_vcpu(&supported(), topology, id).unwrap()
    }

    #[test]
    fn one_cpu_is_alone() {
        let cpuid = answers(1, 0);
        let features = find(&cpuid, 1, 0);
        assert_eq!(features.ebx, 0x0001_0800);
        assert_eq!(features.edx & EDX_HTT, 0);
        assert_eq!(features.ecx, ECX_HYPERVISOR | ECX_X2APIC | ECX_TSC_DEADLINE);
        let core = find(&cpuid, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (0, 1, 0x201, 0));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx & 0xf0ff, 0);
    }

    #[test]
    fn three_cpus_have_ids_of_two_bits() {
        let cpuid = answers(3, 2);
        let features = find(&cpuid, 1, 0);
        assert_eq!(features.ebx >> 24, 2);
        assert_eq!(features.ebx >> 16 & 0xff, 4);
        assert_ne!(features.edx & EDX_HTT, 0);
        let core = find(&cpuid, 0xb, 1);
        assert_eq!((core.eax, core.ebx, core.edx), (2, 3, 2));
        let l1 = find(&cpuid, 4, 0);
        assert_eq!((l1.eax >> 26, l1.eax >> 14 & 0xfff), (3, 0));
        let l3 = find(&cpuid, 4, 3);
        assert_eq!((l3.eax >> 26, l3.eax >> 14 & 0xfff), (3, 3));
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x2002);
        let amd = find(&cpuid, 0x8000_001e, 0);
        assert_eq!((amd.eax, amd.ebx, amd.ecx), (2, 2, 0));
    }

    #[test]
    fn counters_and_asynchronous_faults_are_left_out() {
        let cpuid = answers(2, 0);
        assert_eq!(find(&cpuid, 0xa, 0).eax, 0);
        assert_eq!(find(&cpuid, 0x4000_0001, 0).eax, !KVM_ASYNC_PF);
    }
}
