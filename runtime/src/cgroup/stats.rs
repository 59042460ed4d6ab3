//! What the processes of a sandbox use, in the form in which runc's `events --stats` tells it.
//!
//! These are figures of the host: they count the whole virtual machine, and what is inside it as
//! far as the host has to give something for it. Numbers that are zero are left out where runc
//! leaves them out.

mod v1;
mod v2;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::{CgroupError, Version, file};

/// Everything.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Stats {
    /// Processor time.
    pub cpu: Cpu,
    /// Which processors and memory nodes are used; cgroup v1 alone.
    pub cpuset: CpuSet,
    /// Memory.
    pub memory: Memory,
    /// Tasks on the host.
    pub pids: Pids,
    /// Reading and writing of block devices.
    pub blkio: Blkio,
    /// Huge pages, by size.
    pub hugetlb: BTreeMap<String, Hugetlb>,
}

/// Processor time.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Cpu {
    /// How much was used.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: CpuUsage,
    /// How often and for how long the processes had to wait.
    #[serde(skip_serializing_if = "is_default")]
    pub throttling: Throttling,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Processor time used, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct CpuUsage {
    /// On all processors.
    #[serde(skip_serializing_if = "is_default")]
    pub total: u64,
    /// On each processor; cgroup v1 alone.
    #[serde(skip_serializing_if = "is_default")]
    pub percpu: Vec<u64>,
    /// The kernel's part of it on each processor; cgroup v1 alone.
    #[serde(skip_serializing_if = "is_default")]
    pub percpu_kernel: Vec<u64>,
    /// The user's part of it on each processor; cgroup v1 alone.
    #[serde(skip_serializing_if = "is_default")]
    pub percpu_user: Vec<u64>,
    /// The kernel's part.
    pub kernel: u64,
    /// The user's part.
    pub user: u64,
}

/// What a quota has cost.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods that have passed.
    #[serde(skip_serializing_if = "is_default")]
    pub periods: u64,
    /// Periods in which the quota was used up.
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_periods: u64,
    /// Time waited, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub throttled_time: u64,
}

/// Which processors and memory nodes are used, and the flags of a cpuset (cpuset(7)).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[expect(missing_docs, reason = "the names are those of the files")]
pub struct CpuSet {
    #[serde(skip_serializing_if = "is_default")]
    pub cpus: Vec<u32>,
    pub cpu_exclusive: u64,
    #[serde(skip_serializing_if = "is_default")]
    pub mems: Vec<u32>,
    pub mem_hardwall: u64,
    pub mem_exclusive: u64,
    pub memory_migrate: u64,
    pub memory_spread_page: u64,
    pub memory_spread_slab: u64,
    pub memory_pressure: u64,
    pub sched_load_balance: u64,
    pub sched_relax_domain_level: i64,
}

/// Memory.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Memory {
    /// The part that holds pages of files, in bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub cache: u64,
    /// Memory.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: MemoryEntry,
    /// Memory and swap.
    #[serde(skip_serializing_if = "is_default")]
    pub swap: MemoryEntry,
    /// Memory of the kernel; cgroup v1 alone.
    #[serde(skip_serializing_if = "is_default")]
    pub kernel: MemoryEntry,
    /// Memory of the kernel's TCP buffers; cgroup v1 alone.
    #[serde(rename = "kernelTCP", skip_serializing_if = "is_default")]
    pub kernel_tcp: MemoryEntry,
    /// The whole of `memory.stat`.
    #[serde(skip_serializing_if = "is_default")]
    pub raw: BTreeMap<String, u64>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// A kind of memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct MemoryEntry {
    /// How much may be used; the largest number if there is no limit.
    pub limit: u64,
    /// How much is used.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// How much was ever used.
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    /// How often the limit was met; cgroup v1 alone.
    pub failcnt: u64,
}

/// Tasks on the host: those of the monitor, the VMM and the file server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pids {
    /// How many there are.
    #[serde(skip_serializing_if = "is_default")]
    pub current: u64,
    /// How many there may be; 0 if there is no limit.
    #[serde(skip_serializing_if = "is_default")]
    pub limit: u64,
}

/// Reading and writing of block devices. The lists that this kernel does not fill are empty.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    /// Bytes.
    #[serde(skip_serializing_if = "is_default")]
    pub io_service_bytes_recursive: Vec<BlkioEntry>,
    /// Requests.
    #[serde(skip_serializing_if = "is_default")]
    pub io_serviced_recursive: Vec<BlkioEntry>,
    /// Requests waiting.
    #[serde(rename = "ioQueueRecursive", skip_serializing_if = "is_default")]
    pub io_queued_recursive: Vec<BlkioEntry>,
    /// Time that requests were worked on, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub io_service_time_recursive: Vec<BlkioEntry>,
    /// Time that requests have waited, in nanoseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub io_wait_time_recursive: Vec<BlkioEntry>,
    /// Requests merged into others.
    #[serde(skip_serializing_if = "is_default")]
    pub io_merged_recursive: Vec<BlkioEntry>,
    /// Time that the devices were used, in milliseconds.
    #[serde(skip_serializing_if = "is_default")]
    pub io_time_recursive: Vec<BlkioEntry>,
    /// Sectors.
    #[serde(skip_serializing_if = "is_default")]
    pub sectors_recursive: Vec<BlkioEntry>,
    /// Pressure stall information.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// A number of a block device.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct BlkioEntry {
    /// The device's major number.
    #[serde(skip_serializing_if = "is_default")]
    pub major: u64,
    /// The device's minor number.
    #[serde(skip_serializing_if = "is_default")]
    pub minor: u64,
    /// `Read`, `Write` or, with cgroup v1, others.
    #[serde(skip_serializing_if = "is_default")]
    pub op: String,
    /// The number.
    #[serde(skip_serializing_if = "is_default")]
    pub value: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Hugetlb {
    /// How many bytes are used.
    #[serde(skip_serializing_if = "is_default")]
    pub usage: u64,
    /// How many were ever used; cgroup v1 alone.
    #[serde(skip_serializing_if = "is_default")]
    pub max: u64,
    /// How often the limit was met.
    pub failcnt: u64,
}

/// Pressure stall information (Linux Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Psi {
    /// Some processes had to wait.
    #[serde(skip_serializing_if = "is_default")]
    pub some: PsiData,
    /// All processes had to wait.
    #[serde(skip_serializing_if = "is_default")]
    pub full: PsiData,
}

/// For how long.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct PsiData {
    /// Percent of the last 10 seconds.
    pub avg10: f64,
    /// Percent of the last 60 seconds.
    pub avg60: f64,
    /// Percent of the last 300 seconds.
    pub avg300: f64,
    /// In all, in microseconds.
    pub total: u64,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads them from the files.
pub(super) fn read(
    version: Version,
    paths: &BTreeMap<String, PathBuf>,
) -> Result<Stats, CgroupError> {
    match version {
        Version::V1 => v1::read(paths),
        Version::V2 => v2::read(paths),
    }
}

/// The tasks: the files are the same in both versions.
fn pids(dir: &std::path::Path) -> Result<Pids, CgroupError> {
    let limit = file::number(&dir.join("pids.max"))?;
    Ok(Pids {
        current: file::number(&dir.join("pids.current"))?.unwrap_or(0),
        limit: limit.filter(|&limit| limit != u64::MAX).unwrap_or(0),
    })
}

/// The sizes of huge pages as cgroups name them.
fn page_sizes() -> Vec<String> {
    let entries = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter();
    let names = entries.flatten().flatten().map(|entry| entry.file_name());
    let mut sizes: Vec<_> = names.filter_map(|name| page_size(name.to_str()?)).collect();
    sizes.sort();
    sizes
}

/// `hugepages-2048kB` is 2MB.
fn page_size(name: &str) -> Option<String> {
    let kib = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
    let kib: u64 = kib.parse().ok()?;
    Some(match kib {
        0..1024 => format!("{kib}KB"),
        1024..0x10_0000 => format!("{}MB", kib >> 10),
        _ => format!("{}GB", kib >> 20),
    })
}

#[cfg(test)]
mod tests;
