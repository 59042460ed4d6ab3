//! How large a virtual machine is: as the configuration says, or as the container's limits allow if
//! that is more. It stays so; what `update` allows beyond that can only be told.

use cloister_vmm_api::MAX_VCPUS;
use oci_spec::runtime::LinuxResources;

use crate::annotations::PodLimits;
use crate::config::Config;
use crate::launch::Container;
use crate::state::VmSize;

/// What the guest needs for itself when its memory is measured by the container's limit, in MiB:
/// its kernel, the agent, and what they cache.
const GUEST_MIB: u64 = 64;
/// The kernel's default period of a CPU quota, in microseconds.
const DEFAULT_PERIOD_US: u64 = 100_000;
pub(super) const MIB: u64 = 1 << 20;

/// The size for a container with its limits, or for the pod that it is the sandbox of.
pub(super) fn of(config: &Config, container: &Container) -> VmSize {
    let resources = container.resources.as_ref();
    // A container that has come this far has annotations that can be read.
    let pod = PodLimits::of(&container.annotations).unwrap_or_default();
    let memory = resources.and_then(memory_limit).max(pod.memory);
    let paid = resources.and_then(processors).max(pod_processors(pod));
    VmSize {
        memory_mib: memory_mib(config, memory),
        vcpus: vcpus(config, paid),
    }
}

fn pod_processors(pod: PodLimits) -> Option<u64> {
    let quota = pod.cpu_quota?;
    Some(quota.div_ceil(pod.cpu_period.unwrap_or(DEFAULT_PERIOD_US)))
}

/// A limit of memory, in bytes, if there is one.
pub(super) fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = resources.memory().as_ref()?.limit()?;
    u64::try_from(limit).ok().filter(|&limit| limit > 0)
}

/// How many processors a quota pays for, if there is one.
fn processors(resources: &LinuxResources) -> Option<u64> {
    let cpu = resources.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok();
    let quota = quota.filter(|&quota| quota > 0)?;
    let period = cpu.period().filter(|&period| period > 0);
    Some(quota.div_ceil(period.unwrap_or(DEFAULT_PERIOD_US)))
}

fn memory_mib(config: &Config, limit: Option<u64>) -> u32 {
    let Some(limit) = limit else {
        return config.memory_mib;
    };
    // More than the machine has is of no use to a guest.
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(info.mem_unit.into()) / MIB;
    let wanted = (limit.div_ceil(MIB) + GUEST_MIB).min(machine);
    u32::try_from(wanted)
        .unwrap_or(u32::MAX)
        .max(config.memory_mib)
}

/// As many processors as the quota pays for, as far as the machine has them.
fn vcpus(config: &Config, paid: Option<u64>) -> u8 {
    let Some(paid) = paid else {
        return config.vcpus;
    };
    let machine = std::thread::available_parallelism().map_or(1, usize::from);
    let wanted = paid.min(machine as u64);
    u8::try_from(wanted)
        .unwrap_or(u8::MAX)
        .min(MAX_VCPUS)
        .max(config.vcpus)
}

/// The limits that allow more than a virtual machine of this size has, and what it has.
#[must_use]
pub fn beyond(size: VmSize, resources: &LinuxResources) -> Vec<String> {
    let VmSize { memory_mib, vcpus } = size;
    let memory = memory_limit(resources)
        .filter(|&limit| limit > u64::from(memory_mib) * MIB)
        .map(|limit| {
            format!(
                "memory.limit: {limit} bytes are more than the virtual machine was made with and \
                 keeps: {memory_mib} MiB"
            )
        });
    let cpu = processors(resources)
        .filter(|&paid| paid > vcpus.into())
        .map(|paid| {
            format!(
                "cpu.quota: time of {paid} processors is more than the virtual machine was made \
                 with and keeps: {vcpus}"
            )
        });
    memory.into_iter().chain(cpu).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_gets_what_its_caller_tells_or_its_own_limits_if_they_are_more() {
        let config = Config::load(None, std::path::Path::new("/nonexistent"), |_| None).unwrap();
        let size = |memory: &str, resources: serde_json::Value| {
            let mut container = Container::default();
            let name = "io.kubernetes.cri.sandbox-memory".to_owned();
            container.annotations.insert(name, memory.to_owned());
            container.resources = serde_json::from_value(resources).unwrap();
            of(&config, &container).memory_mib
        };
        assert_eq!(size("0", json!({})), 128);
        assert_eq!(size(&(200 * MIB).to_string(), json!({})), 264);
        let own = json!({"memory": {"limit": 300 * MIB}});
        assert_eq!(size(&(200 * MIB).to_string(), own), 364);
    }

    #[test]
    fn limits_beyond_the_size_are_told_with_what_there_is() {
        let size = VmSize {
            memory_mib: 192,
            vcpus: 2,
        };
        let told = |resources: serde_json::Value| {
            beyond(size, &serde_json::from_value(resources).unwrap())
        };
        for within in [
            json!({}),
            json!({"memory": {"limit": -1}, "cpu": {"quota": -1}}),
            json!({"memory": {"limit": 192 << 20}, "cpu": {"quota": 200_000}}),
            json!({"cpu": {"quota": 20_000, "period": 10_000}}),
        ] {
            assert_eq!(told(within.clone()), [] as [String; 0], "{within}");
        }
        assert_eq!(
            told(json!({
                "memory": {"limit": (192 << 20) + 1}, "cpu": {"quota": 200_001, "period": 100_000},
            })),
            [
                "memory.limit: 201326593 bytes are more than the virtual machine was made with and \
                 keeps: 192 MiB",
                "cpu.quota: time of 3 processors is more than the virtual machine was made with and \
                 keeps: 2",
            ]
        );
    }
}
