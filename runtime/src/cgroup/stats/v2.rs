//! The figures of cgroup v2 (Linux Documentation/admin-guide/cgroup-v2.rst).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{
    Blkio, BlkioEntry, Cpu, CpuUsage, Hugetlb, Memory, MemoryEntry, Psi, PsiData, Stats,
    Throttling, page_sizes, pids,
};
use crate::cgroup::file::{number, number_of, pairs};
use crate::cgroup::{CgroupError, Hierarchies, file};

pub(super) fn read(paths: &BTreeMap<String, PathBuf>) -> Result<Stats, CgroupError> {
    let Some(dir) = paths.get(Hierarchies::UNIFIED) else {
        return Ok(Stats::default());
    };
    Ok(Stats {
        cpu: cpu(dir)?,
        memory: memory(dir)?,
        pids: pids(dir)?,
        blkio: blkio(dir)?,
        hugetlb: hugetlb(dir)?,
        ..Stats::default()
    })
}

fn cpu(dir: &Path) -> Result<Cpu, CgroupError> {
    let text = file::read(&dir.join("cpu.stat"))?.unwrap_or_default();
    let all: BTreeMap<_, _> = pairs(&text).collect();
    let count = |name| all.get(name).copied().unwrap_or(0);
    let time = |name| count(name).saturating_mul(1000);
    Ok(Cpu {
        usage: CpuUsage {
            total: time("usage_usec"),
            kernel: time("system_usec"),
            user: time("user_usec"),
            ..CpuUsage::default()
        },
        throttling: Throttling {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: time("throttled_usec"),
        },
        psi: psi(&dir.join("cpu.pressure"))?,
    })
}

fn memory(dir: &Path) -> Result<Memory, CgroupError> {
    let text = file::read(&dir.join("memory.stat"))?.unwrap_or_default();
    let raw: BTreeMap<_, _> = pairs(&text).map(|(k, v)| (k.to_owned(), v)).collect();
    let entry = |name: &str| -> Result<MemoryEntry, CgroupError> {
        let get = |what| number(&dir.join(format!("{name}.{what}")));
        Ok(MemoryEntry {
            limit: get("max")?.unwrap_or(0),
            usage: get("current")?.unwrap_or(0),
            max: get("peak")?.unwrap_or(0),
            failcnt: 0,
        })
    };
    let usage = entry("memory")?;
    let alone = entry("memory.swap")?;
    // runc: as with cgroup v1, memory and swap together. What was most of both at once is unknown.
    let swap = MemoryEntry {
        limit: alone.limit.saturating_add(match alone.limit {
            u64::MAX => 0,
            _ => usage.limit,
        }),
        usage: alone.usage.saturating_add(usage.usage),
        max: 0,
        failcnt: 0,
    };
    Ok(Memory {
        cache: raw.get("file").copied().unwrap_or(0),
        usage,
        swap,
        raw,
        psi: psi(&dir.join("memory.pressure"))?,
        ..Memory::default()
    })
}

fn blkio(dir: &Path) -> Result<Blkio, CgroupError> {
    let mut all = Blkio {
        psi: psi(&dir.join("io.pressure"))?,
        ..Blkio::default()
    };
    let text = file::read(&dir.join("io.stat"))?.unwrap_or_default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let device = fields.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(a, b)| (a.parse(), b.parse())) else {
            continue;
        };
        for (name, value) in fields.filter_map(|field| field.split_once('=')) {
            let Ok(value) = value.parse() else {
                continue;
            };
            let (list, op) = match name {
                "rbytes" => (&mut all.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut all.io_service_bytes_recursive, "Write"),
                "rios" => (&mut all.io_serviced_recursive, "Read"),
                "wios" => (&mut all.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value,
            });
        }
    }
    Ok(all)
}

fn hugetlb(dir: &Path) -> Result<BTreeMap<String, Hugetlb>, CgroupError> {
    let mut all = BTreeMap::new();
    for size in page_sizes() {
        let reserved = number(&dir.join(format!("hugetlb.{size}.rsvd.current")))?;
        let usage = match reserved {
            Some(usage) => Some(usage),
            None => number(&dir.join(format!("hugetlb.{size}.current")))?,
        };
        let Some(usage) = usage else {
            continue;
        };
        let events = dir.join(format!("hugetlb.{size}.events"));
        let entry = Hugetlb {
            usage,
            max: 0,
            failcnt: number_of(&events, "max")?.unwrap_or(0),
        };
        all.insert(size, entry);
    }
    Ok(all)
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same with `full`.
fn psi(path: &Path) -> Result<Option<Psi>, CgroupError> {
    let text = match file::read(path) {
        Ok(Some(text)) => text,
        Ok(None) => return Ok(None),
        // It may be switched off.
        Err(CgroupError::Read(_, e)) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let mut all = Psi::default();
    for line in text.lines() {
        let mut fields = line.split_whitespace();
        let data = match fields.next() {
            Some("some") => &mut all.some,
            Some("full") => &mut all.full,
            _ => continue,
        };
        *data = psi_data(fields);
    }
    Ok(Some(all))
}

fn psi_data<'a>(fields: impl Iterator<Item = &'a str>) -> PsiData {
    let mut data = PsiData::default();
    for (name, value) in fields.filter_map(|field| field.split_once('=')) {
        let average = || value.parse().unwrap_or(0.0);
        match name {
            "avg10" => data.avg10 = average(),
            "avg60" => data.avg60 = average(),
            "avg300" => data.avg300 = average(),
            "total" => data.total = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    data
}
