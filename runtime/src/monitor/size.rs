//! How large a virtual machine is: as the configuration says, or as the container's limits allow if
//! that is more. It can grow up to a maximum; what is allowed beyond that can only be told.

use cloister_vmm_api::{MAX_MEMORY_MIB, MAX_VCPUS};
use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

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
/// Up to how many processors a machine can grow at least, if its workload has a limit of processor time.
/// Each that it could have costs the guest its per-processor area, some 0.2 MiB.
const SPARE_VCPUS: u8 = 4;

/// What a container may use, as far as it decides the size of its virtual machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowance {
    /// Memory, in bytes, if there is a limit.
    pub memory: Option<u64>,
    /// The time of how many processors, in thousandths, if there is a quota.
    pub processors: Option<u64>,
}

impl Allowance {
    /// What limits allow.
    #[must_use]
    pub fn of(resources: &LinuxResources) -> Self {
        Self {
            memory: memory_limit(resources),
            processors: processor_time(resources),
        }
    }

    /// Whether there is no limit.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// With the limits of `later`, where it has any.
    pub(super) fn changed_by(self, later: Self) -> Self {
        Self {
            memory: later.memory.or(self.memory),
            processors: later.processors.or(self.processors),
        }
    }

    /// What both may use together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            memory: sum(self.memory, other.memory),
            processors: sum(self.processors, other.processors),
        }
    }
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.saturating_add(other)),
        (one, other) => one.or(other),
    }
}

/// The size for a container with its limits, or for the pod that it is the sandbox of, and as large as it
/// can become.
pub(super) fn of(config: &Config, container: &Container) -> (VmSize, VmSize) {
    let resources = container.resources.as_ref();
    // A container that has come this far has annotations that can be read.
    let pod = PodLimits::of(&container.annotations).unwrap_or_default();
    let memory = resources.and_then(memory_limit).max(pod.memory);
    let time = resources.and_then(processor_time).max(pod_time(pod));
    let size = VmSize {
        memory_mib: memory_mib(config, memory),
        vcpus: vcpus(config, time),
    };
    let max = VmSize {
        memory_mib: max_memory_mib(config, size.memory_mib),
        vcpus: max_vcpus(config, size.vcpus, time.is_some()),
    };
    (size, max)
}

/// The size of a machine of `size` that can become as large as `max`, when it has to be enough for
/// `allowance`.
pub(super) fn grown(size: VmSize, max: VmSize, allowance: Allowance) -> VmSize {
    let vcpus = allowance.processors.map_or(0, whole).min(max.vcpus.into());
    let memory = allowance.memory.map_or(0, with_guest);
    let memory = memory.min(max.memory_mib.into());
    VmSize {
        memory_mib: u32::try_from(memory)
            .unwrap_or(max.memory_mib)
            .max(size.memory_mib),
        vcpus: u8::try_from(vcpus).unwrap_or(max.vcpus).max(size.vcpus),
    }
}

/// A limit of memory, in bytes, if there is one.
pub(super) fn memory_limit(resources: &LinuxResources) -> Option<u64> {
    let limit = resources.memory().as_ref()?.limit()?;
    u64::try_from(limit).ok().filter(|&limit| limit > 0)
}

/// How many processors' time a quota pays for, in thousandths, if there is one.
fn processor_time(resources: &LinuxResources) -> Option<u64> {
    let cpu = resources.cpu().as_ref()?;
    let quota = u64::try_from(cpu.quota()?).ok();
    let quota = quota.filter(|&quota| quota > 0)?;
    let period = cpu.period().filter(|&period| period > 0);
    Some(thousandths(quota, period))
}

fn pod_time(pod: PodLimits) -> Option<u64> {
    Some(thousandths(pod.cpu_quota?, pod.cpu_period))
}

fn thousandths(quota: u64, period: Option<u64>) -> u64 {
    let period = period.unwrap_or(DEFAULT_PERIOD_US);
    quota.saturating_mul(1000).div_ceil(period)
}

/// As many processors as can spend so many thousandths of one's time.
fn whole(time: u64) -> u64 {
    time.div_ceil(1000)
}

/// What a guest needs that lets its containers use `limit` bytes, in MiB.
fn with_guest(limit: u64) -> u64 {
    limit.div_ceil(MIB) + GUEST_MIB
}

fn memory_mib(config: &Config, limit: Option<u64>) -> u32 {
    let Some(limit) = limit else {
        return config.memory_mib;
    };
    let most = config.max_memory_mib.unwrap_or(u32::MAX).min(machine_mib());
    let wanted = with_guest(limit).min(most.into());
    u32::try_from(wanted).unwrap_or(most).max(config.memory_mib)
}

fn max_memory_mib(config: &Config, memory_mib: u32) -> u32 {
    match config.max_memory_mib {
        Some(max) => max,
        None => machine_mib().min(MAX_MEMORY_MIB).max(memory_mib),
    }
}

/// This machine's memory: more is of no use to a guest.
fn machine_mib() -> u32 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(info.mem_unit.into()) / MIB;
    u32::try_from(machine).unwrap_or(u32::MAX)
}

/// As many processors as the quota pays for, as far as the machine has them.
fn vcpus(config: &Config, time: Option<u64>) -> u8 {
    let Some(time) = time else {
        return config.vcpus;
    };
    let most = config.max_vcpus.unwrap_or(MAX_VCPUS).min(processors());
    let wanted = whole(time).min(most.into());
    u8::try_from(wanted).unwrap_or(most).max(config.vcpus)
}

/// How many processors there can be at most, of which `vcpus` are there from the start. A workload
/// without a limit of processor time has none that could be raised.
fn max_vcpus(config: &Config, vcpus: u8, is_limited: bool) -> u8 {
    match config.max_vcpus {
        Some(max) => max,
        None if is_limited => {
            let most = SPARE_VCPUS.max(vcpus.saturating_mul(2));
            most.min(processors()).max(vcpus)
        }
        None => vcpus,
    }
}

/// The processors of this machine, as far as a virtual machine can have as many.
fn processors() -> u8 {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    u8::try_from(processors).unwrap_or(MAX_VCPUS).min(MAX_VCPUS)
}

/// The limits that allow more than a virtual machine of this size has, and what it has.
#[must_use]
pub fn beyond(size: VmSize, resources: &LinuxResources) -> Vec<String> {
    let VmSize { memory_mib, vcpus } = size;
    let memory = memory_limit(resources)
        .filter(|&limit| limit > u64::from(memory_mib) * MIB)
        .map(|limit| {
            format!(
                "memory.limit: {limit} bytes are more than the virtual machine has and can grow to: \
                 {memory_mib} MiB"
            )
        });
    let cpu = (processor_time(resources).map(whole))
        .filter(|&paid| paid > vcpus.into())
        .map(|paid| {
            format!(
                "cpu.quota: time of {paid} processors is more than the virtual machine has and can \
                 grow to: {vcpus}"
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
            of(&config, &container).0.memory_mib
        };
        assert_eq!(size("0", json!({})), 128);
        assert_eq!(size(&(200 * MIB).to_string(), json!({})), 264);
        let own = json!({"memory": {"limit": 300 * MIB}});
        assert_eq!(size(&(200 * MIB).to_string(), own), 364);
    }

    #[test]
    fn a_machine_can_grow_if_its_processor_time_is_limited_or_the_configuration_says_so() {
        let mut config =
            Config::load(None, std::path::Path::new("/nonexistent"), |_| None).unwrap();
        let vcpus = |config: &Config, resources: serde_json::Value| {
            let container = Container {
                resources: serde_json::from_value(resources).unwrap(),
                ..Container::default()
            };
            let (size, max) = of(config, &container);
            (size.vcpus, max.vcpus)
        };
        let here = processors();
        let half = json!({"cpu": {"quota": 50_000}});
        assert_eq!(vcpus(&config, json!({})), (1, 1));
        assert_eq!(vcpus(&config, half.clone()), (1, here.min(4)));
        let all = json!({"cpu": {"quota": 100_000 * u64::from(here)}});
        assert_eq!(vcpus(&config, all.clone()), (here, here));
        config.max_vcpus = Some(9);
        assert_eq!(vcpus(&config, json!({})), (1, 9));
        assert_eq!(vcpus(&config, half), (1, 9));
        config.max_vcpus = Some(1);
        assert_eq!(vcpus(&config, all), (1, 1));
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
                "memory.limit: 201326593 bytes are more than the virtual machine has and can grow to: \
                 192 MiB",
                "cpu.quota: time of 3 processors is more than the virtual machine has and can grow to: \
                 2",
            ]
        );
    }
}
