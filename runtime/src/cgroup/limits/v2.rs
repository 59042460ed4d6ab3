//! The files of cgroup v2 (Linux Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeMap;

use cloister_spec::{cpu_weight, io_weight};
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources};

use super::v1::{rdma, throttles};
use super::{Overhead, Setting, invalid, resource, swap_alone};
use crate::cgroup::CgroupError;

/// The kernel's default for the period of a quota, in microseconds.
pub(crate) const PERIOD: u64 = 100_000;

const NO_CONTROL: &str = "cgroup v2 has no such control";

/// The files of `unified` that limit memory of workload and overhead together.
const MEMORY_FILES: [&str; 4] = ["memory.min", "memory.low", "memory.high", "memory.max"];

pub(super) fn settings(
    resources: &LinuxResources,
    overhead: Overhead,
) -> Result<Vec<Setting>, CgroupError> {
    let mut all = Vec::new();
    if let Some(pids) = resources.pids() {
        let limit = limit_text(overhead.tasks(pids.limit()));
        all.push(Setting::new("pids.limit", "pids", "pids.max", limit));
    }
    if let Some(value) = resources.memory() {
        memory(value, overhead, &mut all)?;
    }
    if let Some(value) = resources.block_io() {
        block_io(value, &mut all)?;
    }
    if let Some(value) = resources.cpu() {
        cpu(value, &mut all)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let (size, value) = (limit.page_size(), limit.limit());
        let set = |file| Setting::new("hugepageLimits", "hugetlb", file, value);
        all.push(set(format!("hugetlb.{size}.max")));
        all.push(set(format!("hugetlb.{size}.rsvd.max")).optional());
    }
    if let Some(network) = resources.network() {
        let class = network.class_id().is_some_and(|class| class != 0);
        if class || network.priorities().as_ref().is_some_and(|p| !p.is_empty()) {
            return Err(invalid("network", "cgroup v2 has no network controllers"));
        }
    }
    rdma(resources, &mut all);
    unified(resources, overhead, &mut all)?;
    Ok(all)
}

fn limit_text(limit: i64) -> String {
    if limit < 0 {
        "max".to_owned()
    } else {
        limit.to_string()
    }
}

fn memory(
    memory: &LinuxMemory,
    overhead: Overhead,
    all: &mut Vec<Setting>,
) -> Result<(), CgroupError> {
    if memory.disable_oom_killer() == Some(true) {
        return Err(invalid("memory.disableOOMKiller", NO_CONTROL));
    }
    if memory.swappiness().is_some() {
        return Err(invalid("memory.swappiness", NO_CONTROL));
    }
    let set = |field, file, value: i64| Setting::new(field, "memory", file, limit_text(value));
    if let Some(swap) = swap_alone(memory)? {
        let setting = set("memory.swap", "memory.swap.max", swap);
        // Where there is no swap there is nothing to be forbidden or allowed.
        all.push(if swap <= 0 {
            setting.optional()
        } else {
            setting
        });
    }
    if let Some(limit) = memory.limit().filter(|&limit| limit != 0) {
        all.push(set("memory.limit", "memory.max", overhead.memory(limit)));
    }
    if let Some(reservation) = memory.reservation().filter(|&value| value != 0) {
        let value = overhead.memory(reservation);
        all.push(set("memory.reservation", "memory.low", value));
    }
    Ok(())
}

fn cpu(cpu: &LinuxCpu, all: &mut Vec<Setting>) -> Result<(), CgroupError> {
    let realtime = [
        (
            "cpu.realtimeRuntime",
            cpu.realtime_runtime().is_some_and(|value| value != 0),
        ),
        (
            "cpu.realtimePeriod",
            cpu.realtime_period().is_some_and(|value| value != 0),
        ),
    ];
    if let Some((field, _)) = realtime.iter().find(|(_, is_set)| *is_set) {
        return Err(invalid(field, NO_CONTROL));
    }
    if let Some(idle) = cpu.idle() {
        all.push(Setting::new("cpu.idle", "cpu", "cpu.idle", idle));
    }
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        let weight = cpu_weight(shares);
        all.push(Setting::new("cpu.shares", "cpu", "cpu.weight", weight));
    }
    if let Some(burst) = cpu.burst() {
        all.push(Setting::new("cpu.burst", "cpu", "cpu.max.burst", burst));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let field = match quota {
            Some(_) => "cpu.quota",
            None => "cpu.period",
        };
        let quota = limit_text(quota.unwrap_or(-1));
        let value = format!("{quota} {}", period.unwrap_or(PERIOD));
        all.push(Setting::new(field, "cpu", "cpu.max", value));
    }
    cpuset(cpu, all);
    Ok(())
}

/// The same for both versions.
pub(super) fn cpuset(cpu: &LinuxCpu, all: &mut Vec<Setting>) {
    for (field, file, list) in [
        ("cpu.cpus", "cpuset.cpus", cpu.cpus()),
        ("cpu.mems", "cpuset.mems", cpu.mems()),
    ] {
        if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
            all.push(Setting::new(field, "cpuset", file, list));
        }
    }
}

/// What names processors, memory nodes or devices of this machine, and so limits nothing in a guest.
pub(super) fn of_this_machine(resources: &LinuxResources) -> Result<Vec<Setting>, CgroupError> {
    let mut all = Vec::new();
    if let Some(value) = resources.cpu() {
        cpuset(value, &mut all);
    }
    if let Some(value) = resources.block_io() {
        block_io(value, &mut all)?;
    }
    // The one of these that names no device: it weighs in the guest.
    all.retain(|setting| setting.field != resource("blockIO.weight"));
    let mut files = Vec::new();
    unified(resources, Overhead::default(), &mut files)?;
    files.retain(|setting| ["cpuset", "io"].contains(&&*setting.controller));
    all.extend(files);
    Ok(all)
}

fn block_io(block_io: &LinuxBlockIo, all: &mut Vec<Setting>) -> Result<(), CgroupError> {
    const NO_LEAVES: &str = "cgroup v2 has no leaf weights";
    let set = |field: &str, file: &str, value: String| Setting::new(field, "io", file, value);
    if block_io.leaf_weight().is_some_and(|weight| weight != 0) {
        return Err(invalid("blockIO.leafWeight", NO_LEAVES));
    }
    if let Some(weight) = block_io.weight().filter(|&weight| weight != 0) {
        let setting = set("blockIO.weight", "io.bfq.weight", weight.to_string());
        all.push(setting.or("io.weight", format!("default {}", io_weight(weight))));
    }
    for (index, device) in block_io.weight_device().iter().flatten().enumerate() {
        let field = format!("blockIO.weightDevice[{index}]");
        if device.leaf_weight().is_some_and(|weight| weight != 0) {
            return Err(invalid(&format!("{field}.leafWeight"), NO_LEAVES));
        }
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            let device = format!("{}:{}", device.major(), device.minor());
            let setting = set(&field, "io.bfq.weight", format!("{device} {weight}"));
            all.push(setting.or("io.weight", format!("{device} {}", io_weight(weight))));
        }
    }
    for (name, file, devices) in throttles(block_io) {
        let key = match file {
            "read_bps" => "rbps",
            "write_bps" => "wbps",
            "read_iops" => "riops",
            _ => "wiops",
        };
        for (index, device) in devices.iter().enumerate() {
            // A rate of 0 is no rate, as with cgroup v1.
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let line = format!("{}:{} {key}={rate}", device.major(), device.minor());
            all.push(set(&format!("blockIO.{name}[{index}]"), "io.max", line));
        }
    }
    Ok(())
}

/// config-linux.md#unified: files by their names.
fn unified(
    resources: &LinuxResources,
    overhead: Overhead,
    all: &mut Vec<Setting>,
) -> Result<(), CgroupError> {
    let files: BTreeMap<_, _> = resources.unified().iter().flatten().collect();
    for (file, value) in files {
        let field = format!("unified[{file:?}]");
        let controller = match file.split_once('.') {
            Some((controller, _)) if !file.contains('/') && !controller.is_empty() => controller,
            _ => return Err(invalid(&field, "is not the name of a cgroup v2 file")),
        };
        // Some files take one line at a time.
        for line in value.lines() {
            let line = with_overhead(file, line, overhead);
            all.push(Setting::new(&field, controller, file, line));
        }
    }
    Ok(())
}

/// A limit of the workload in a file of the cgroup as one of the sandbox.
pub(crate) fn with_overhead(file: &str, value: &str, overhead: Overhead) -> String {
    let value = value.trim();
    match value.parse() {
        Ok(limit) if MEMORY_FILES.contains(&file) => overhead.memory(limit).to_string(),
        Ok(limit) if file == "pids.max" => overhead.tasks(limit).to_string(),
        _ => value.to_owned(),
    }
}
