//! Limits as properties of a unit (systemd.resource-control(5), org.freedesktop.systemd1(5)).
//!
//! Whatever has no property here is written to the cgroup's files alone. The others are, too: a
//! property keeps systemd from undoing what the files say when it next writes them.

use std::collections::BTreeMap;

use cloister_spec::cpu_weight;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::SystemdError;
use super::wire::Value;
use crate::cgroup::file::{parse_list, parse_number};
use crate::cgroup::limits::{PERIOD, swap_alone, with_overhead};
use crate::cgroup::{Overhead, Version};

/// From these versions on systemd knows the property in question.
const QUOTA_PERIOD_SINCE: u32 = 242;
const CPUSET_SINCE: u32 = 244;
const IDLE_SINCE: u32 = 252;
const OOM_POLICY_SINCE: u32 = 253;

/// What stands for no limit.
const INFINITY: u64 = u64::MAX;
/// systemd counts processor time in hundredths of a second's.
const QUOTA_STEP: u64 = 10_000;
const SECOND: u64 = 1_000_000;

/// Properties of a unit.
pub(in crate::cgroup) type Properties = Vec<(String, Value)>;

/// Whether [`of`] needs to know systemd's version.
pub(super) fn depend_on_version(resources: &LinuxResources) -> bool {
    resources.cpu().is_some() || resources.unified().is_some()
}

/// The properties for limits, and these limits as systemd will write them.
pub(super) fn of(
    version: Version,
    resources: &LinuxResources,
    overhead: Overhead,
    systemd: u32,
) -> Result<(Properties, LinuxResources), SystemdError> {
    let mut all = Properties::new();
    let mut rounded = resources.clone();
    if let Some(value) = resources.memory() {
        memory(version, value, overhead, &mut all);
    }
    if let Some(value) = resources.cpu() {
        let value = cpu(version, value, systemd, &mut all)?;
        rounded.set_cpu(Some(value));
    }
    if let Some(pids) = resources.pids() {
        let limit = u64::try_from(overhead.tasks(pids.limit()));
        set(&mut all, "TasksMax", Value::U64(limit.unwrap_or(INFINITY)));
    }
    let weight = resources.block_io().as_ref().and_then(|io| io.weight());
    if let (Version::V1, Some(weight)) = (version, weight.filter(|&weight| weight != 0)) {
        set(&mut all, "BlockIOWeight", Value::U64(weight.into()));
    }
    let files: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, text) in files {
        unified(file, text, overhead, systemd, &mut all)?;
    }
    Ok((all, rounded))
}

/// What a unit can be told only when it is made.
pub(super) fn at_creation(resources: &LinuxResources, systemd: u32) -> Properties {
    let mut all = Properties::new();
    let unified = resources.unified().as_ref();
    let group = unified.and_then(|files| files.get("memory.oom.group"));
    let policy = match group.map(|value| value.trim()) {
        Some("0") => "continue",
        Some("1") => "kill",
        _ => return all,
    };
    if systemd >= OOM_POLICY_SINCE {
        set(&mut all, "OOMPolicy", Value::Text(policy.to_owned()));
    }
    all
}

/// Sets a property; the last one counts, as with the files.
pub(super) fn set(all: &mut Properties, name: &str, value: Value) {
    all.retain(|(set, _)| set != name);
    all.push((name.to_owned(), value));
}

fn memory(version: Version, memory: &LinuxMemory, overhead: Overhead, all: &mut Properties) {
    let mut bytes = |name: &str, limit: Option<i64>| {
        if let Some(limit) = limit.filter(|&limit| limit != 0) {
            let limit = u64::try_from(overhead.memory(limit)).unwrap_or(INFINITY);
            set(all, name, Value::U64(limit));
        }
    };
    match version {
        Version::V1 => bytes("MemoryLimit", memory.limit()),
        Version::V2 => {
            bytes("MemoryMax", memory.limit());
            bytes("MemoryLow", memory.reservation());
            // What is wrong with it has been said before.
            if let Ok(Some(swap)) = swap_alone(memory) {
                let swap = u64::try_from(swap).unwrap_or(INFINITY);
                set(all, "MemorySwapMax", Value::U64(swap));
            }
        }
    }
}

fn cpu(
    version: Version,
    cpu: &LinuxCpu,
    systemd: u32,
    all: &mut Properties,
) -> Result<LinuxCpu, SystemdError> {
    let mut rounded = cpu.clone();
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        match version {
            Version::V1 => set(all, "CPUShares", Value::U64(shares)),
            Version::V2 => {
                let weight = cpu_weight(shares);
                set(all, "CPUWeight", Value::U64(weight));
            }
        }
    }
    if version == Version::V2 && cpu.idle() == Some(1) && systemd >= IDLE_SINCE {
        // Weight 0 is what systemd calls it.
        set(all, "CPUWeight", Value::U64(0));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let quota = quota.and_then(|quota| u64::try_from(quota).ok());
        if let Some(quota) = bandwidth(quota, period, systemd, all) {
            rounded.set_quota(Some(quota));
        }
    }
    if let Some(list) = cpu.cpus().as_ref().filter(|list| !list.is_empty()) {
        cpuset("AllowedCPUs", list, systemd, all)?;
    }
    if let Some(list) = cpu.mems().as_ref().filter(|list| !list.is_empty()) {
        cpuset("AllowedMemoryNodes", list, systemd, all)?;
    }
    Ok(rounded)
}

/// Returns the quota that systemd makes of it. It is rounded up, so that it suffices.
fn bandwidth(
    quota: Option<u64>,
    period: Option<u64>,
    systemd: u32,
    all: &mut Properties,
) -> Option<i64> {
    if let Some(period) = period
        && systemd >= QUOTA_PERIOD_SINCE
    {
        set(all, "CPUQuotaPeriodUSec", Value::U64(period));
    }
    let Some(quota) = quota else {
        set(all, "CPUQuotaPerSecUSec", Value::U64(INFINITY));
        return None;
    };
    let period = period.unwrap_or(PERIOD).max(1);
    let a_second = quota.saturating_mul(SECOND) / period;
    let rounded = a_second
        .checked_next_multiple_of(QUOTA_STEP)
        .unwrap_or(INFINITY);
    set(all, "CPUQuotaPerSecUSec", Value::U64(rounded));
    if rounded == a_second {
        return None;
    }
    i64::try_from(rounded.saturating_mul(period) / SECOND).ok()
}

/// A bit for each processor or node.
fn cpuset(name: &str, list: &str, systemd: u32, all: &mut Properties) -> Result<(), SystemdError> {
    if systemd < CPUSET_SINCE {
        return Ok(());
    }
    let numbers = parse_list(list).filter(|numbers| !numbers.is_empty());
    let numbers = numbers.ok_or_else(|| SystemdError::Value(name.to_owned(), list.to_owned()))?;
    let mut bits = Vec::new();
    for number in numbers {
        let byte = usize::try_from(number / 8).unwrap_or_default();
        if bits.len() <= byte {
            bits.resize(byte + 1, 0);
        }
        if let Some(byte) = bits.get_mut(byte) {
            *byte |= 1 << (number % 8);
        }
    }
    set(all, name, Value::Bytes(bits));
    Ok(())
}

/// The files of cgroup v2 that systemd has a property for.
fn unified(
    file: &str,
    text: &str,
    overhead: Overhead,
    systemd: u32,
    all: &mut Properties,
) -> Result<(), SystemdError> {
    let value = with_overhead(file, text, overhead);
    let invalid = || SystemdError::Value(file.to_owned(), text.to_owned());
    let number = || parse_number(&value).ok_or_else(invalid);
    match file {
        "cpu.idle" if value == "1" && systemd >= IDLE_SINCE => {
            set(all, "CPUWeight", Value::U64(0));
        }
        "cpu.weight" => {
            // The files come in alphabetical order, and idle goes before weight.
            let idle =
                |(name, value): &(String, Value)| name == "CPUWeight" && *value == Value::U64(0);
            if !all.iter().any(idle) {
                set(all, "CPUWeight", Value::U64(number()?));
            }
        }
        "cpu.max" => {
            let mut fields = value.split_whitespace();
            let quota = fields.next().and_then(parse_number).ok_or_else(invalid)?;
            let period = match fields.next() {
                Some(period) => Some(parse_number(period).ok_or_else(invalid)?),
                None => None,
            };
            let quota = (quota != INFINITY).then_some(quota);
            bandwidth(quota, period, systemd, all);
        }
        "cpuset.cpus" => cpuset("AllowedCPUs", &value, systemd, all)?,
        "cpuset.mems" => cpuset("AllowedMemoryNodes", &value, systemd, all)?,
        "memory.min" => set(all, "MemoryMin", Value::U64(number()?)),
        "memory.low" => set(all, "MemoryLow", Value::U64(number()?)),
        "memory.high" => set(all, "MemoryHigh", Value::U64(number()?)),
        "memory.max" => set(all, "MemoryMax", Value::U64(number()?)),
        "memory.swap.max" => set(all, "MemorySwapMax", Value::U64(number()?)),
        "pids.max" => set(all, "TasksMax", Value::U64(number()?)),
        _ => {}
    }
    Ok(())
}
