//! The files of cgroup v1 (Linux Documentation/admin-guide/cgroup-v1).

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxNetwork, LinuxResources, LinuxThrottleDevice,
};

use super::v2::cpuset;
use super::{Overhead, Setting, invalid, swap_alone};
use crate::cgroup::CgroupError;

pub(super) fn settings(
    resources: &LinuxResources,
    overhead: Overhead,
) -> Result<Vec<Setting>, CgroupError> {
    let mut all = Vec::new();
    if let Some(value) = resources.cpu() {
        cpu(value, &mut all)?;
    }
    if let Some(value) = resources.memory() {
        memory(value, overhead, &mut all)?;
    }
    if let Some(pids) = resources.pids() {
        let limit = match overhead.tasks(pids.limit()) {
            -1 => "max".to_owned(),
            limit => limit.to_string(),
        };
        all.push(Setting::new("pids.limit", "pids", "pids.max", limit));
    }
    if let Some(value) = resources.block_io() {
        block_io(value, &mut all);
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let (size, value) = (limit.page_size(), limit.limit());
        let set = |file| Setting::new("hugepageLimits", "hugetlb", file, value);
        all.push(set(format!("hugetlb.{size}.limit_in_bytes")));
        all.push(set(format!("hugetlb.{size}.rsvd.limit_in_bytes")).optional());
    }
    if let Some(value) = resources.network() {
        network(value, &mut all);
    }
    rdma(resources, &mut all);
    Ok(all)
}

/// The same for both versions.
pub(super) fn rdma(resources: &LinuxResources, all: &mut Vec<Setting>) {
    for (device, limits) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        for (name, value) in [
            ("hca_handle", limits.hca_handles()),
            ("hca_object", limits.hca_objects()),
        ] {
            if let Some(value) = value {
                line.push_str(&format!(" {name}={value}"));
            }
        }
        let field = format!("rdma[{device:?}]");
        all.push(Setting::new(&field, "rdma", "rdma.max", line));
    }
}

fn cpu(cpu: &LinuxCpu, all: &mut Vec<Setting>) -> Result<(), CgroupError> {
    cpuset(cpu, all);
    if let Some(shares) = cpu.shares().filter(|&shares| shares != 0) {
        // The kernel takes others, and sets what is next.
        if !(2..=262_144).contains(&shares) {
            return Err(invalid("cpu.shares", "is not between 2 and 262144"));
        }
        all.push(Setting::new("cpu.shares", "cpu", "cpu.shares", shares));
    }
    let mut set = |field: &str, file: &str, value: Option<String>| {
        if let Some(value) = value {
            all.push(Setting::new(field, "cpu", file, value));
        }
    };
    let period = cpu.period().filter(|&period| period != 0);
    set("cpu.period", "cpu.cfs_period_us", text(period));
    set("cpu.burst", "cpu.cfs_burst_us", text(cpu.burst()));
    let quota = cpu.quota().filter(|&quota| quota != 0);
    set("cpu.quota", "cpu.cfs_quota_us", text(quota));
    set("cpu.idle", "cpu.idle", text(cpu.idle()));
    let period = cpu.realtime_period().filter(|&period| period != 0);
    set("cpu.realtimePeriod", "cpu.rt_period_us", text(period));
    let runtime = cpu.realtime_runtime().filter(|&runtime| runtime != 0);
    set("cpu.realtimeRuntime", "cpu.rt_runtime_us", text(runtime));
    Ok(())
}

fn text<T: ToString>(value: Option<T>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn memory(
    memory: &LinuxMemory,
    overhead: Overhead,
    all: &mut Vec<Setting>,
) -> Result<(), CgroupError> {
    let set = |field, file, value: i64| Setting::new(field, "memory", file, value);
    let limit = memory.limit().filter(|&limit| limit != 0);
    if let Some(limit) = limit {
        let value = overhead.memory(limit);
        all.push(set("memory.limit", "memory.limit_in_bytes", value));
    }
    if let Some(alone) = swap_alone(memory)? {
        const FILE: &str = "memory.memsw.limit_in_bytes";
        let both = match (alone, memory.swap().filter(|&swap| swap != 0)) {
            (-1, _) | (_, None) => -1,
            (_, Some(swap)) => overhead.memory(swap),
        };
        let setting = set("memory.swap", FILE, both);
        // Where swap is not accounted for there is no limit to be lifted.
        all.push(if both < 0 {
            setting.optional()
        } else {
            setting
        });
    }
    if let Some(reservation) = memory.reservation().filter(|&value| value != 0) {
        let value = overhead.memory(reservation);
        all.push(set(
            "memory.reservation",
            "memory.soft_limit_in_bytes",
            value,
        ));
    }
    if memory.disable_oom_killer() == Some(true) {
        all.push(set("memory.disableOOMKiller", "memory.oom_control", 1));
    }
    if let Some(value) = memory.swappiness() {
        let file = "memory.swappiness";
        all.push(Setting::new(file, "memory", file, value));
    }
    Ok(())
}

fn block_io(block_io: &LinuxBlockIo, all: &mut Vec<Setting>) {
    let set = |field: &str, file: &str, value: String| Setting::new(field, "blkio", file, value);
    if let Some(weight) = block_io.weight().filter(|&weight| weight != 0) {
        let setting = set("blockIO.weight", "blkio.weight", weight.to_string());
        all.push(setting.or("blkio.bfq.weight", weight));
    }
    if let Some(weight) = block_io.leaf_weight().filter(|&weight| weight != 0) {
        let weight = weight.to_string();
        all.push(set("blockIO.leafWeight", "blkio.leaf_weight", weight));
    }
    for (index, device) in block_io.weight_device().iter().flatten().enumerate() {
        let line = |weight| format!("{}:{} {weight}", device.major(), device.minor());
        let field = format!("blockIO.weightDevice[{index}]");
        if let Some(weight) = device.weight().filter(|&weight| weight != 0) {
            let setting = set(&field, "blkio.weight_device", line(weight));
            all.push(setting.or("blkio.bfq.weight_device", line(weight)));
        }
        if let Some(weight) = device.leaf_weight().filter(|&weight| weight != 0) {
            all.push(set(&field, "blkio.leaf_weight_device", line(weight)));
        }
    }
    for (name, file, devices) in throttles(block_io) {
        for (index, device) in devices.iter().enumerate() {
            let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
            let field = format!("blockIO.{name}[{index}]");
            all.push(set(&field, &format!("blkio.throttle.{file}_device"), line));
        }
    }
}

/// The lists of throttled devices: name in the specification, name of the file.
pub(super) fn throttles(
    block_io: &LinuxBlockIo,
) -> [(&'static str, &'static str, &[LinuxThrottleDevice]); 4] {
    fn list(devices: &Option<Vec<LinuxThrottleDevice>>) -> &[LinuxThrottleDevice] {
        devices.as_deref().unwrap_or_default()
    }
    let read_iops = list(block_io.throttle_read_iops_device());
    let write_iops = list(block_io.throttle_write_iops_device());
    [
        (
            "throttleReadBpsDevice",
            "read_bps",
            list(block_io.throttle_read_bps_device()),
        ),
        (
            "throttleWriteBpsDevice",
            "write_bps",
            list(block_io.throttle_write_bps_device()),
        ),
        ("throttleReadIOPSDevice", "read_iops", read_iops),
        ("throttleWriteIOPSDevice", "write_iops", write_iops),
    ]
}

fn network(network: &LinuxNetwork, all: &mut Vec<Setting>) {
    if let Some(class) = network.class_id().filter(|&class| class != 0) {
        all.push(Setting::new(
            "network.classID",
            "net_cls",
            "net_cls.classid",
            class,
        ));
    }
    for (index, interface) in network.priorities().iter().flatten().enumerate() {
        let line = format!("{} {}", interface.name(), interface.priority());
        let field = format!("network.priorities[{index}]");
        all.push(Setting::new(&field, "net_prio", "net_prio.ifpriomap", line));
    }
}
