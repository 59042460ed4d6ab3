//! `linux.resources` as files of the sandbox's cgroup (config-linux.md#control-groups).
//!
//! The specification limits a workload; on the host the same limits hold for the processes of its
//! virtual machine: monitor, VMM and file server. [`Overhead`] is what these need for themselves.
//!
//! Each value becomes a [`Setting`]. [`apply`] writes them all and then once more those that the
//! kernel has refused as invalid: several depend on one another (a quota and its burst, a limit of
//! memory and one of memory and swap), and which order is right depends on what was set before.

mod pairs;
mod v1;
mod v2;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use serde::{Deserialize, Serialize};

pub(super) use self::pairs::{complete, of_memory};
pub(super) use self::v2::{PERIOD, with_overhead};
use super::file::{self, is_gone, parse_list};
use super::{CgroupError, Hierarchies, Version};

/// What the host's processes of a sandbox need beyond what its workload may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overhead {
    /// Added to every limit of memory, in bytes: monitor, VMM, file server, the guest's kernel and
    /// its agent.
    pub memory_bytes: u64,
    /// The limit of tasks on the host, if the specification has any: threads of the monitor, of the
    /// VMM and of the file server, and the monitors of `exec`.
    ///
    /// The specification's own number is not in it. It counts the workload's tasks, none of which
    /// is a task of the host; it is enforced in the guest.
    pub pids: u64,
}

impl Overhead {
    /// A limit of memory: negative ones stand for none.
    pub(super) fn memory(self, limit: i64) -> i64 {
        match u64::try_from(limit) {
            Ok(bytes) => {
                let bytes = bytes.saturating_add(self.memory_bytes);
                i64::try_from(bytes).unwrap_or(i64::MAX)
            }
            Err(_) => limit,
        }
    }

    /// The limit of tasks that stands for one of the specification; -1 is none.
    pub(super) fn tasks(self, limit: i64) -> i64 {
        if limit < 0 {
            return -1;
        }
        // systemd does not take 0, and 1 is as good: the first process needs more.
        i64::try_from(self.pids).unwrap_or(i64::MAX).max(1)
    }
}

/// Why a limit of this machine does not hold.
pub const NO_CGROUP: &str =
    "limits this machine's processes alone, and the container has no cgroup here";

/// A value for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    /// The field that it comes from.
    pub(super) field: String,
    pub(super) controller: String,
    /// The file and the value, or several of which the first counts that is there.
    pub(super) choices: Vec<(String, String)>,
    /// Whether it is as good if none of the files is there.
    pub(super) optional: bool,
}

impl Setting {
    fn new(field: &str, controller: &str, file: impl Into<String>, value: impl ToString) -> Self {
        Self {
            field: resource(field),
            controller: controller.to_owned(),
            choices: vec![(file.into(), value.to_string())],
            optional: false,
        }
    }

    fn or(mut self, file: impl Into<String>, value: impl ToString) -> Self {
        self.choices.push((file.into(), value.to_string()));
        self
    }

    fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    fn write(&self, dir: &Path) -> Result<(), CgroupError> {
        for (file, value) in &self.choices {
            let path = dir.join(file);
            match file::write(&path, value) {
                Ok(()) => return Ok(()),
                Err(e) if is_gone(&e) => {}
                Err(error) => {
                    return Err(CgroupError::Set {
                        field: self.field.clone(),
                        value: value.clone(),
                        path,
                        error,
                    });
                }
            }
        }
        self.missing(dir)
    }

    /// What to say of a setting for which there is no file.
    fn missing(&self, dir: &Path) -> Result<(), CgroupError> {
        if self.optional {
            return Ok(());
        }
        let file = self.choices.first().map_or("", |(file, _)| file);
        Err(CgroupError::Missing {
            field: self.field.clone(),
            path: dir.join(file),
            controller: self.controller.clone(),
        })
    }
}

fn resource(field: &str) -> String {
    format!("linux.resources.{field}")
}

fn invalid(field: &str, reason: impl Into<String>) -> CgroupError {
    CgroupError::Invalid {
        field: resource(field),
        reason: reason.into(),
    }
}

/// What is to be written, in this order.
pub(super) fn settings(
    version: Version,
    resources: &LinuxResources,
    overhead: Overhead,
) -> Result<Vec<Setting>, CgroupError> {
    match version {
        Version::V1 => v1::settings(resources, overhead),
        Version::V2 => v2::settings(resources, overhead),
    }
}

/// Checks what the kernel would not, and tells what is passed over.
pub(super) fn check(
    version: Version,
    resources: &LinuxResources,
) -> Result<Vec<String>, CgroupError> {
    let mut warnings = Vec::new();
    if let Some(memory) = resources.memory() {
        let kernel = [
            ("kernel", memory.kernel()),
            ("kernelTCP", memory.kernel_tcp()),
        ];
        for (name, value) in kernel {
            if value.is_some_and(|value| value > 0) {
                let field = resource(&format!("memory.{name}"));
                warnings.push(format!(
                    "{field} is ignored: the kernel has no such limit since version 5.4"
                ));
            }
        }
        if memory.swappiness().is_some_and(|value| value > 100) {
            return Err(invalid("memory.swappiness", "is not between 0 and 100"));
        }
        swap_alone(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        for (field, list, what, online) in [
            (
                "cpu.cpus",
                cpu.cpus(),
                "CPU",
                "/sys/devices/system/cpu/online",
            ),
            (
                "cpu.mems",
                cpu.mems(),
                "memory node",
                "/sys/devices/system/node/online",
            ),
        ] {
            if let Some(list) = list.as_ref().filter(|list| !list.is_empty()) {
                // A kernel without NUMA has one node.
                let online = fs::read_to_string(online).unwrap_or_else(|_| "0".to_owned());
                check_list(field, list, what, online.trim())?;
            }
        }
        check_bandwidth(cpu)?;
    }
    if version == Version::V1 && resources.unified().as_ref().is_some_and(|u| !u.is_empty()) {
        return Err(invalid("unified", "this machine limits with cgroup v1"));
    }
    Ok(warnings)
}

/// The fields that limit nothing but on this machine, since they name processors, memory nodes or
/// devices of it.
///
/// # Errors
/// If one of them is none that could be had.
pub fn of_this_machine(resources: &LinuxResources) -> Result<Vec<String>, CgroupError> {
    let settings = v2::of_this_machine(resources)?;
    let mut fields: Vec<_> = settings.into_iter().map(|setting| setting.field).collect();
    // A file of `unified` may have several lines.
    fields.dedup();
    Ok(fields)
}

/// Refuses fields that limit nothing but on this machine, for want of a cgroup on it.
///
/// # Errors
/// If there is such a field.
pub fn refuse_of_this_machine(resources: &LinuxResources) -> Result<(), CgroupError> {
    match of_this_machine(resources)?.into_iter().next() {
        Some(field) => Err(CgroupError::Invalid {
            field,
            reason: NO_CGROUP.to_owned(),
        }),
        None => Ok(()),
    }
}

/// The kernel takes processors that are not there, and then uses all.
fn check_list(field: &str, list: &str, what: &str, online: &str) -> Result<(), CgroupError> {
    let wanted = parse_list(list).ok_or_else(|| invalid(field, format!("{list:?} is no list")))?;
    let there = parse_list(online).unwrap_or_default();
    match wanted.iter().find(|number| !there.contains(number)) {
        Some(number) => Err(invalid(
            field,
            format!("{what} {number} does not exist on this machine, which has {online}"),
        )),
        None => Ok(()),
    }
}

/// config-linux.md#cpu: a burst is no larger than a positive quota.
fn check_bandwidth(cpu: &LinuxCpu) -> Result<(), CgroupError> {
    let quota = cpu.quota().and_then(|quota| u64::try_from(quota).ok());
    match (cpu.burst(), quota.filter(|&quota| quota > 0)) {
        (Some(burst), Some(quota)) if burst > quota => Err(invalid(
            "cpu.burst",
            format!("{burst} is larger than the quota {quota}"),
        )),
        _ => Ok(()),
    }
}

/// The limit of swap alone: -1 for none, `None` for what is not to be touched. The specification
/// limits memory and swap together.
pub(super) fn swap_alone(memory: &LinuxMemory) -> Result<Option<i64>, CgroupError> {
    const FIELD: &str = "memory.swap";
    let limit = memory.limit().unwrap_or(0);
    match memory.swap().unwrap_or(0) {
        // Whoever lifts the limit of memory means that of swap, too.
        0 => Ok((limit < 0).then_some(-1)),
        swap if swap < 0 => Ok(Some(-1)),
        swap if limit < 0 => Ok(Some(swap)),
        _ if limit == 0 => Err(invalid(FIELD, "cannot be set without memory.limit")),
        swap if swap < limit => Err(invalid(
            FIELD,
            format!("{swap} is less than memory.limit, {limit}"),
        )),
        swap => Ok(Some(swap - limit)),
    }
}

/// Refuses a limit that is below what is used, if the specification asks for that. Cgroup v1 does
/// so by itself.
pub(super) fn check_usage(
    dir: &Path,
    resources: &LinuxResources,
    overhead: Overhead,
) -> Result<(), CgroupError> {
    let Some(memory) = resources.memory() else {
        return Ok(());
    };
    if memory.check_before_update() != Some(true) {
        return Ok(());
    }
    let Some(used) = file::number(&dir.join("memory.current"))? else {
        return Ok(());
    };
    for (name, limit) in [("limit", memory.limit()), ("swap", memory.swap())] {
        let limit = limit.filter(|&limit| limit > 0);
        let limit = limit.and_then(|limit| u64::try_from(overhead.memory(limit)).ok());
        if let Some(limit) = limit.filter(|&limit| limit <= used) {
            return Err(invalid(
                &format!("memory.{name}"),
                format!("{limit} with overhead is not above what is used, {used}"),
            ));
        }
    }
    Ok(())
}

/// Looks whether there are the files of settings.
pub(super) fn check_files(
    settings: &[Setting],
    paths: &BTreeMap<String, PathBuf>,
) -> Result<(), CgroupError> {
    for setting in settings {
        let Some(dir) = place(paths, &setting.controller) else {
            setting.missing(Path::new(""))?;
            continue;
        };
        if !setting
            .choices
            .iter()
            .any(|(file, _)| dir.join(file).exists())
        {
            setting.missing(dir)?;
        }
    }
    Ok(())
}

/// Writes settings. Those of a controller without a hierarchy are errors.
pub(super) fn apply(
    settings: &[Setting],
    paths: &BTreeMap<String, PathBuf>,
) -> Result<(), CgroupError> {
    let mut again = Vec::new();
    for setting in settings {
        let Some(path) = place(paths, &setting.controller) else {
            setting.missing(Path::new(""))?;
            continue;
        };
        match setting.write(path) {
            Err(CgroupError::Set { error, .. }) if error.kind() == io::ErrorKind::InvalidInput => {
                again.push((setting, path));
            }
            result => result?,
        }
    }
    again
        .into_iter()
        .try_for_each(|(setting, path)| setting.write(path))
}

/// Where the files of a controller are.
fn place<'a>(paths: &'a BTreeMap<String, PathBuf>, controller: &str) -> Option<&'a PathBuf> {
    paths.get(controller).or_else(|| unified_only(paths))
}

/// The path for all controllers with cgroup v2. In a hybrid the unified hierarchy has none.
fn unified_only(paths: &BTreeMap<String, PathBuf>) -> Option<&PathBuf> {
    match paths.len() {
        1 => paths.get(Hierarchies::UNIFIED),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
