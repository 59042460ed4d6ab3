//! The figures of cgroup v1 (Linux Documentation/admin-guide/cgroup-v1).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{
    Blkio, BlkioEntry, Cpu, CpuSet, CpuUsage, Hugetlb, Memory, MemoryEntry, Stats, Throttling,
    page_sizes, pids,
};
use crate::cgroup::file::{number, number_of, pairs, parse_list};
use crate::cgroup::{CgroupError, file};

/// Nanoseconds in a clock tick: USER_HZ is 100 on every machine with KVM.
const TICK: u64 = 10_000_000;

pub(super) fn read(paths: &BTreeMap<String, PathBuf>) -> Result<Stats, CgroupError> {
    let dir = |name: &str| paths.get(name).map(|path| &**path);
    let mut all = Stats::default();
    if let Some(dir) = dir("cpuacct") {
        all.cpu.usage = cpu_usage(dir)?;
    }
    if let Some(dir) = dir("cpu") {
        all.cpu = Cpu {
            throttling: throttling(dir)?,
            ..all.cpu
        };
    }
    if let Some(dir) = dir("cpuset") {
        all.cpuset = cpuset(dir)?;
    }
    if let Some(dir) = dir("memory") {
        all.memory = memory(dir)?;
    }
    if let Some(dir) = dir("pids") {
        all.pids = pids(dir)?;
    }
    if let Some(dir) = dir("blkio") {
        all.blkio = blkio(dir)?;
    }
    if let Some(dir) = dir("hugetlb") {
        all.hugetlb = hugetlb(dir)?;
    }
    Ok(all)
}

fn cpu_usage(dir: &Path) -> Result<CpuUsage, CgroupError> {
    let ticks = |name| -> Result<u64, CgroupError> {
        let ticks = number_of(&dir.join("cpuacct.stat"), name)?.unwrap_or(0);
        Ok(ticks.saturating_mul(TICK))
    };
    let each = file::read(&dir.join("cpuacct.usage_percpu"))?.unwrap_or_default();
    let mut usage = CpuUsage {
        total: number(&dir.join("cpuacct.usage"))?.unwrap_or(0),
        percpu: each
            .split_whitespace()
            .filter_map(|n| n.parse().ok())
            .collect(),
        kernel: ticks("system")?,
        user: ticks("user")?,
        ..CpuUsage::default()
    };
    // `cpu user system`, then a line for each.
    let text = file::read(&dir.join("cpuacct.usage_all"))?.unwrap_or_default();
    for line in text.lines().skip(1) {
        let mut fields = line.split_whitespace().skip(1).map(str::parse);
        if let (Some(Ok(user)), Some(Ok(kernel))) = (fields.next(), fields.next()) {
            usage.percpu_user.push(user);
            usage.percpu_kernel.push(kernel);
        }
    }
    Ok(usage)
}

fn throttling(dir: &Path) -> Result<Throttling, CgroupError> {
    let path = dir.join("cpu.stat");
    let get = |name| Ok(number_of(&path, name)?.unwrap_or(0));
    Ok(Throttling {
        periods: get("nr_periods")?,
        throttled_periods: get("nr_throttled")?,
        throttled_time: get("throttled_time")?,
    })
}

fn cpuset(dir: &Path) -> Result<CpuSet, CgroupError> {
    let path = |name: &str| dir.join(format!("cpuset.{name}"));
    let list = |name: &str| -> Result<Vec<u32>, CgroupError> {
        let path = path(name);
        let text = file::read(&path)?.unwrap_or_default();
        parse_list(&text).ok_or(CgroupError::Parse { path, text })
    };
    let get = |name: &str| Ok(number(&path(name))?.unwrap_or(0));
    let level = file::read(&path("sched_relax_domain_level"))?.unwrap_or_default();
    Ok(CpuSet {
        cpus: list("cpus")?,
        cpu_exclusive: get("cpu_exclusive")?,
        mems: list("mems")?,
        mem_hardwall: get("mem_hardwall")?,
        mem_exclusive: get("mem_exclusive")?,
        memory_migrate: get("memory_migrate")?,
        memory_spread_page: get("memory_spread_page")?,
        memory_spread_slab: get("memory_spread_slab")?,
        memory_pressure: get("memory_pressure")?,
        sched_load_balance: get("sched_load_balance")?,
        sched_relax_domain_level: level.trim().parse().unwrap_or(0),
    })
}

fn memory(dir: &Path) -> Result<Memory, CgroupError> {
    let text = file::read(&dir.join("memory.stat"))?.unwrap_or_default();
    let raw: BTreeMap<_, _> = pairs(&text).map(|(k, v)| (k.to_owned(), v)).collect();
    // What this kernel does not account for is zero.
    let entry = |name: &str| -> Result<MemoryEntry, CgroupError> {
        let get = |what| Ok(number(&dir.join(format!("{name}.{what}")))?.unwrap_or(0));
        Ok(MemoryEntry {
            limit: get("limit_in_bytes")?,
            usage: get("usage_in_bytes")?,
            max: get("max_usage_in_bytes")?,
            failcnt: get("failcnt")?,
        })
    };
    Ok(Memory {
        cache: raw.get("cache").copied().unwrap_or(0),
        usage: entry("memory")?,
        swap: entry("memory.memsw")?,
        kernel: entry("memory.kmem")?,
        kernel_tcp: entry("memory.kmem.tcp")?,
        raw,
        psi: None,
    })
}

fn blkio(dir: &Path) -> Result<Blkio, CgroupError> {
    // Which files there are depends on the scheduler: the first that has anything counts.
    let get = |names: &[&str]| -> Result<Vec<BlkioEntry>, CgroupError> {
        for name in names {
            let text = file::read(&dir.join(format!("blkio.{name}")))?;
            let list = blkio_entries(&text.unwrap_or_default());
            if !list.is_empty() {
                return Ok(list);
            }
        }
        Ok(Vec::new())
    };
    Ok(Blkio {
        io_service_bytes_recursive: get(&[
            "bfq.io_service_bytes_recursive",
            "io_service_bytes_recursive",
            "throttle.io_service_bytes_recursive",
            "throttle.io_service_bytes",
        ])?,
        io_serviced_recursive: get(&[
            "bfq.io_serviced_recursive",
            "io_serviced_recursive",
            "throttle.io_serviced_recursive",
            "throttle.io_serviced",
        ])?,
        io_queued_recursive: get(&["bfq.io_queued_recursive", "io_queued_recursive"])?,
        io_service_time_recursive: get(&[
            "bfq.io_service_time_recursive",
            "io_service_time_recursive",
        ])?,
        io_wait_time_recursive: get(&["bfq.io_wait_time_recursive", "io_wait_time_recursive"])?,
        io_merged_recursive: get(&["bfq.io_merged_recursive", "io_merged_recursive"])?,
        io_time_recursive: get(&["bfq.time_recursive", "time_recursive"])?,
        sectors_recursive: get(&["bfq.sectors_recursive", "sectors_recursive"])?,
        psi: None,
    })
}

/// `8:0 Read 4096`, or `8:0 4096`; the last line is a total.
fn blkio_entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut fields = line.split_whitespace();
        let (major, minor) = fields.next()?.split_once(':')?;
        let (op, value) = match (fields.next()?, fields.next()) {
            (op, Some(value)) => (op, value),
            (value, None) => ("", value),
        };
        Some(BlkioEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: op.to_owned(),
            value: value.parse().ok()?,
        })
    };
    text.lines().filter_map(entry).collect()
}

fn hugetlb(dir: &Path) -> Result<BTreeMap<String, Hugetlb>, CgroupError> {
    let mut all = BTreeMap::new();
    for size in page_sizes() {
        for prefix in [format!("hugetlb.{size}.rsvd"), format!("hugetlb.{size}")] {
            let get = |what| number(&dir.join(format!("{prefix}.{what}")));
            if let Some(usage) = get("usage_in_bytes")? {
                let entry = Hugetlb {
                    usage,
                    max: get("max_usage_in_bytes")?.unwrap_or(0),
                    failcnt: get("failcnt")?.unwrap_or(0),
                };
                all.insert(size, entry);
                break;
            }
        }
    }
    Ok(all)
}
