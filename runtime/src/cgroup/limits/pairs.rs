//! Limits that come in pairs. Of a pair an update may give one half, and means that the other stays
//! as it is; but the kernel, or systemd, takes a quota and its period together, and the specification
//! limits memory and swap together where the kernel limits swap alone.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::{Overhead, place};
use crate::cgroup::file;
use crate::cgroup::{CgroupError, Version};

/// The limits with the halves that are missing, as the cgroup has them.
pub(in crate::cgroup) fn complete(
    version: Version,
    resources: &LinuxResources,
    overhead: Overhead,
    paths: &BTreeMap<String, PathBuf>,
) -> Result<LinuxResources, CgroupError> {
    let mut whole = resources.clone();
    if let Some(cpu) = resources.cpu() {
        let quota = cpu.quota().filter(|&quota| quota != 0);
        let period = cpu.period().filter(|&period| period != 0);
        if quota.is_some() != period.is_some()
            && let Some(current) = bandwidth(version, paths)?
        {
            let mut cpu = cpu.clone();
            cpu.set_quota(quota.or(Some(current.0)));
            cpu.set_period(period.or(Some(current.1)));
            whole.set_cpu(Some(cpu));
        }
    }
    if let Some(memory) = resources.memory()
        && memory.swap().is_some_and(|swap| swap > 0)
        && memory.limit().is_none_or(|limit| limit == 0)
        && let Some(current) = memory_limit(version, overhead, paths)?
    {
        let mut memory = *memory;
        memory.set_limit(Some(current));
        whole.set_memory(Some(memory));
    }
    Ok(whole)
}

/// Quota, -1 for none, and period.
fn bandwidth(
    version: Version,
    paths: &BTreeMap<String, PathBuf>,
) -> Result<Option<(i64, u64)>, CgroupError> {
    let Some(dir) = place(paths, "cpu") else {
        return Ok(None);
    };
    let files: &[&str] = match version {
        Version::V1 => &["cpu.cfs_quota_us", "cpu.cfs_period_us"],
        Version::V2 => &["cpu.max"],
    };
    let mut text = String::new();
    for name in files {
        // Without the file it is said where it is to be written.
        let Some(part) = file::read(&dir.join(name))? else {
            return Ok(None);
        };
        text.push_str(&part);
    }
    let mut fields = text.split_whitespace();
    let quota = fields.next().and_then(|quota| match quota {
        "max" => Some(-1),
        quota => quota.parse().ok(),
    });
    let period = fields.next().and_then(|period| period.parse().ok());
    match quota.zip(period) {
        None => Err(CgroupError::Parse {
            path: dir.join(files.first().copied().unwrap_or_default()),
            text: text.trim().to_owned(),
        }),
        both => Ok(both),
    }
}

/// The workload's limit of memory, -1 for none.
fn memory_limit(
    version: Version,
    overhead: Overhead,
    paths: &BTreeMap<String, PathBuf>,
) -> Result<Option<i64>, CgroupError> {
    let name = match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    workload_limit(name, overhead, paths)
}

/// What a file limits the workload to, -1 for no limit.
fn workload_limit(
    name: &str,
    overhead: Overhead,
    paths: &BTreeMap<String, PathBuf>,
) -> Result<Option<i64>, CgroupError> {
    /// Cgroup v1 shows no limit as the largest number of whole pages.
    const LARGEST_PAGE: u64 = 1 << 16;
    let Some(dir) = place(paths, "memory") else {
        return Ok(None);
    };
    let Some(limit) = file::number(&dir.join(name))? else {
        return Ok(None);
    };
    let limit = i64::try_from(limit.saturating_add(LARGEST_PAGE)).map_or(-1, |_| {
        limit.saturating_sub(overhead.memory_bytes).cast_signed()
    });
    Ok(Some(limit))
}

/// The limits that keep the workload and the overhead from memory, as the cgroup has them; `None` if it has
/// none.
pub(in crate::cgroup) fn of_memory(
    version: Version,
    overhead: Overhead,
    paths: &BTreeMap<String, PathBuf>,
) -> Result<Option<LinuxResources>, CgroupError> {
    let limit = |name| {
        let limit = workload_limit(name, overhead, paths)?;
        Ok(limit.filter(|&limit| limit > 0))
    };
    let most = memory_limit(version, overhead, paths)?.filter(|&limit| limit > 0);
    let (swap, high) = match version {
        Version::V1 => (limit("memory.memsw.limit_in_bytes")?, None),
        // Swap is limited alone.
        Version::V2 => (None, limit("memory.high")?),
    };
    if most.or(swap).or(high).is_none() {
        return Ok(None);
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(most);
    memory.set_swap(swap);
    let mut resources = LinuxResources::default();
    resources.set_memory(Some(memory));
    let files = high.map(|high| HashMap::from([("memory.high".to_owned(), high.to_string())]));
    resources.set_unified(files);
    Ok(Some(resources))
}
