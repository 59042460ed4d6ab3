//! The quota of processor time while a guest boots.
//!
//! A boot is work that the workload has not asked for, and that takes as much as it takes: with a
//! twentieth of a processor it would outlast every caller's patience. So the quota is set with all
//! other limits, which finds out whether it can be, lifted for as long as nothing of the workload
//! runs, and put back before anything of it does.

use std::path::PathBuf;

use super::file;
use super::{CgroupError, Hierarchies, SandboxCgroup, Version};

/// A quota that was lifted. Dropping it leaves it so.
#[derive(Debug)]
#[must_use = "the quota holds again only when it is put back"]
pub struct LiftedQuota {
    path: PathBuf,
    /// What the file said.
    value: String,
}

impl SandboxCgroup {
    /// Lifts the quota, if there is one. That of a cgroup that was there before stays: others may
    /// be in it.
    ///
    /// # Errors
    /// If it cannot be told or lifted.
    pub fn lift_quota(&self) -> Result<Option<LiftedQuota>, CgroupError> {
        let (controller, name, none) = match self.version {
            Version::V1 => ("cpu", "cpu.cfs_quota_us", "-1"),
            Version::V2 => (Hierarchies::UNIFIED, "cpu.max", "max"),
        };
        let Some(dir) = self.paths.get(controller) else {
            return Ok(None);
        };
        if !self.created.contains(dir) {
            return Ok(None);
        }
        let path = dir.join(name);
        // Without the controller there is no file.
        let Some(text) = file::read(&path)? else {
            return Ok(None);
        };
        let value = text.trim();
        if value.split_whitespace().next() == Some(none) {
            return Ok(None);
        }
        let lifted = LiftedQuota {
            value: value.to_owned(),
            path,
        };
        lifted.write(none)?;
        Ok(Some(lifted))
    }
}

impl LiftedQuota {
    /// Puts it back.
    ///
    /// # Errors
    /// If the cgroup is gone, or is below one whose quota has become smaller meanwhile.
    pub fn restore(self) -> Result<(), CgroupError> {
        self.write(&self.value)
    }

    fn write(&self, value: &str) -> Result<(), CgroupError> {
        file::write(&self.path, value).map_err(|error| CgroupError::Set {
            field: "linux.resources.cpu.quota".to_owned(),
            value: value.to_owned(),
            path: self.path.clone(),
            error,
        })
    }
}
