//! The cgroup of a sandbox on the host: what limits, counts and stops the processes of a virtual
//! machine together (runtime-spec config-linux.md#control-groups, cgroups(7)).
//!
//! ```text
//!   cgroupsPath ──▶ Plan ──Prepared::new──▶ Prepared ──make──▶ SandboxCgroup ──remove──▶ gone
//!                                                       │ directories made, limits set,
//!                                                       ▼ first process moved in
//!                                               undone if any of it fails
//! ```
//!
//! It is kept in state.json between commands, from before it is made: what a process that is killed
//! on the way has made of it is removed by others.
//!
//! Whether the machine has cgroup v1, v2 or both is looked up; a cgroup is a directory in each
//! hierarchy, and everything below treats it as one thing. With the systemd driver the directory is
//! that of a scope which systemd is asked for.
//!
//! Nothing here is shared between threads, and nothing is kept open.

mod error;
mod file;
mod freezer;
mod hierarchy;
mod limits;
mod plan;
mod quota;
pub mod stats;
pub mod systemd;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

pub use self::error::CgroupError;
pub use self::hierarchy::{Hierarchies, Version};
pub use self::limits::{NO_CGROUP, Overhead, of_this_machine, refuse_of_this_machine};
pub use self::plan::{Driver, Plan, Unit};
pub use self::quota::LiftedQuota;
use self::stats::Stats;
use self::systemd::SystemdError;
use self::tree::Made;

/// The cgroup of a sandbox. Serialised, it is what a later command needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxCgroup {
    version: Version,
    /// By controller; by the empty name that of cgroup v2.
    paths: BTreeMap<String, PathBuf>,
    /// Which of the paths were not there before.
    created: BTreeSet<PathBuf>,
    /// What systemd knows it as, if it was asked.
    unit: Option<Unit>,
    overhead: Overhead,
    /// Where its first process was before; known to its creator alone.
    #[serde(skip)]
    origin: BTreeMap<String, PathBuf>,
}

impl SandboxCgroup {
    /// Makes the cgroup, sets its limits, and moves process `first` into it, whose children will be
    /// in it, too. With cgroupfs a cgroup that has processes already is joined, with a warning.
    ///
    /// Without `first` the cgroup is empty, so that a process can be born in it: moving one has it
    /// wait until every processor was idle or in user mode, for some milliseconds. systemd makes no
    /// empty scope.
    ///
    /// # Errors
    /// If the cgroup is frozen, or with systemd not empty; if a limit cannot be set. Nothing is
    /// left then.
    pub fn create(
        plan: &Plan,
        resources: &LinuxResources,
        overhead: Overhead,
        first: Option<u32>,
    ) -> Result<Self, CgroupError> {
        Prepared::new(plan, resources, overhead, first)?.make()
    }

    /// One of which nothing is made yet.
    fn planned(plan: &Plan, overhead: Overhead, first: Option<u32>) -> Result<Self, CgroupError> {
        let version = plan.hierarchies.version();
        let mut this = Self {
            version,
            paths: plan.paths.clone(),
            created: BTreeSet::new(),
            unit: plan.unit.clone(),
            overhead,
            origin: match first {
                Some(pid) => plan.hierarchies.places(pid)?,
                None => BTreeMap::new(),
            },
        };
        this.check_unused()?;
        let ours = this.paths.values();
        // What systemd makes goes with the unit.
        let ours = ours.filter(|path| this.unit.is_some() || !path.exists());
        this.created = ours.cloned().collect();
        Ok(this)
    }

    /// Does what systemd does not: it does not know every limit, nor every hierarchy.
    fn complete_unit(
        &mut self,
        plan: &Plan,
        resources: &LinuxResources,
        pid: u32,
    ) -> Result<(), CgroupError> {
        let made = self.make_directories(plan, resources)?;
        let settings = limits::settings(self.version, resources, self.overhead)?;
        limits::apply(&settings, &self.paths)?;
        tree::join_all(&self.paths, &plan.hierarchies, pid)?;
        self.keep(made);
        // What systemd has made goes with the unit.
        self.created.extend(self.paths.values().cloned());
        Ok(())
    }

    /// As runc: a cgroup that others have left frozen would stop the new one without a word.
    fn check_unused(&self) -> Result<(), CgroupError> {
        if let Some(dir) = self.freezer()
            && self.is_frozen_at(dir)?
        {
            return Err(CgroupError::Frozen(dir.to_owned()));
        }
        let Some(dir) = self.any_path() else {
            return Ok(());
        };
        let count = tree::processes(dir)?.len();
        if count == 0 {
            return Ok(());
        }
        let error = CgroupError::NotEmpty {
            path: dir.to_owned(),
            count,
        };
        if self.unit.is_some() {
            // systemd adds no process to a unit that is there.
            return Err(error);
        }
        log::warn!("{error}");
        Ok(())
    }

    fn make_directories(
        &mut self,
        plan: &Plan,
        resources: &LinuxResources,
    ) -> Result<Made, CgroupError> {
        let mut made = Made::default();
        let whole_processes = resources.memory().is_some()
            || resources.block_io().is_some()
            || resources.hugepage_limits().is_some();
        let mut unreachable = Vec::new();
        for controller in plan.hierarchies.controllers() {
            let mount = plan.hierarchies.mount_point(controller);
            let (Some(mount), Some(path)) = (mount, self.paths.get(controller)) else {
                continue;
            };
            let result = match self.version {
                Version::V2 => tree::make_v2(mount, path, whole_processes, &mut made),
                Version::V1 => tree::make_v1(controller, mount, path, &mut made),
            };
            match result {
                Err(e) if tree::is_optional(controller, self.version) => {
                    log::debug!("{}", crate::text::chain(&e));
                    unreachable.push(controller);
                }
                result => result?,
            }
        }
        for controller in unreachable {
            self.paths.remove(controller);
        }
        Ok(made)
    }

    fn keep(&mut self, made: Made) {
        let ours = self.paths.values().filter(|path| made.has(path));
        self.created = ours.cloned().collect();
        made.keep();
    }

    /// The cgroup's directory by controller; by the empty name that of cgroup v2. As runc keeps
    /// them in its `state.json`.
    #[must_use]
    pub fn paths(&self) -> &BTreeMap<String, PathBuf> {
        &self.paths
    }

    /// Which generation of cgroups it is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The unit of systemd, if there is one.
    #[must_use]
    pub fn unit(&self) -> Option<&Unit> {
        self.unit.as_ref()
    }

    /// Moves a process into the cgroup. If that fails in one hierarchy, it is as before in all.
    ///
    /// # Errors
    /// If there is no such process, or the cgroup is gone.
    pub fn add_process(&self, pid: u32) -> Result<(), CgroupError> {
        tree::join_all(&self.paths, &Hierarchies::detect()?, pid)
    }

    /// Changes limits; those that `resources` does not name stay as they are.
    ///
    /// # Errors
    /// If one of them cannot be set. Others may be set then.
    pub fn update(&self, resources: &LinuxResources) -> Result<(), CgroupError> {
        self.check_update(resources)?.apply()
    }

    /// Checks limits as far as that is possible without setting any, so that whoever has to change
    /// them elsewhere as well need not begin with what would be refused here.
    ///
    /// # Errors
    /// If one of them cannot be set.
    pub fn check_update(&self, resources: &LinuxResources) -> Result<Update<'_>, CgroupError> {
        // Of a pair of limits, the half that is not named stays as well.
        let resources = limits::complete(self.version, resources, self.overhead, &self.paths)?;
        for warning in limits::check(self.version, &resources)? {
            log::warn!("{warning}");
        }
        let settings = limits::settings(self.version, &resources, self.overhead)?;
        // systemd may make those of a controller that the unit has not had before.
        if self.unit.is_none() {
            limits::check_files(&settings, &self.paths)?;
        }
        if let (Version::V2, Some(dir)) = (self.version, self.any_path()) {
            limits::check_usage(dir, &resources, self.overhead)?;
        }
        Ok(Update {
            cgroup: self,
            resources,
        })
    }

    /// Raises the limits of memory as far as the overhead is `memory_bytes` from now on, if that is more than
    /// it was. Limits of a cgroup that was there before are raised by whoever has set them.
    ///
    /// # Errors
    /// If one of them cannot be set. Others may be set then, and the overhead is what it was.
    pub fn make_room(&mut self, memory_bytes: u64) -> Result<(), CgroupError> {
        if memory_bytes <= self.overhead.memory_bytes {
            return Ok(());
        }
        let before = self.overhead;
        let is_own = self
            .any_path()
            .is_some_and(|path| self.created.contains(path));
        let limits = match is_own {
            true => limits::of_memory(self.version, before, &self.paths)?,
            false => None,
        };
        self.overhead.memory_bytes = memory_bytes;
        let raised = limits.map(|limits| self.update(&limits)).transpose();
        if raised.is_err() {
            self.overhead = before;
        }
        raised.map(drop)
    }

    /// Stops every process in the cgroup, and waits until they stand. The caller must not be one
    /// of them.
    ///
    /// # Errors
    /// If there is no freezer, or they do not stop; they go on then.
    pub fn freeze(&self) -> Result<(), CgroupError> {
        let dir = self.freezer().ok_or(CgroupError::NoFreezer("freeze"))?;
        match self.version {
            Version::V1 => freezer::freeze_v1(dir),
            Version::V2 => freezer::freeze_v2(dir),
        }
    }

    /// Lets the processes in the cgroup go on.
    ///
    /// # Errors
    /// If there is no freezer.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        let dir = self.freezer().ok_or(CgroupError::NoFreezer("thaw"))?;
        match self.version {
            Version::V1 => freezer::thaw_v1(dir),
            Version::V2 => freezer::thaw_v2(dir),
        }
    }

    /// Whether the cgroup was frozen.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        match self.freezer() {
            Some(dir) => self.is_frozen_at(dir),
            None => Ok(false),
        }
    }

    fn is_frozen_at(&self, dir: &Path) -> Result<bool, CgroupError> {
        match self.version {
            Version::V1 => freezer::is_frozen_v1(dir),
            Version::V2 => freezer::is_frozen_v2(dir),
        }
    }

    fn freezer(&self) -> Option<&Path> {
        let controller = match self.version {
            Version::V1 => "freezer",
            Version::V2 => Hierarchies::UNIFIED,
        };
        self.paths.get(controller).map(|path| &**path)
    }

    /// What the processes of the sandbox use. What there is no controller for is zero.
    ///
    /// # Errors
    /// If a file cannot be read or is not understood.
    pub fn stats(&self) -> Result<Stats, CgroupError> {
        stats::read(self.version, &self.paths)
    }

    /// How many processes of the cgroup were killed because it was out of memory.
    ///
    /// # Errors
    /// If it cannot be told.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let (controller, file) = match self.version {
            Version::V1 => ("memory", "memory.oom_control"),
            Version::V2 => (Hierarchies::UNIFIED, "memory.events"),
        };
        match self.paths.get(controller) {
            Some(dir) => Ok(file::number_of(&dir.join(file), "oom_kill")?.unwrap_or(0)),
            None => Ok(0),
        }
    }

    /// The processes in the cgroup and below it.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        match self.any_path() {
            Some(dir) => tree::processes(dir),
            None => Ok(Vec::new()),
        }
    }

    /// A path that stands for all. With cgroup v1 each hierarchy has its own, and all are alike
    /// unless somebody has moved processes.
    fn any_path(&self) -> Option<&Path> {
        let preferred = ["devices", "pids", "memory"];
        let preferred = preferred.iter().find_map(|name| self.paths.get(*name));
        let path = preferred.or_else(|| self.paths.values().next())?;
        Some(path)
    }

    /// Kills every process in the cgroup but the calling one, and waits until they are gone.
    ///
    /// # Errors
    /// If one does not end.
    pub fn kill(&self) -> Result<(), CgroupError> {
        match self.any_path() {
            Some(dir) => tree::kill(dir),
            None => Ok(()),
        }
    }

    /// Kills what is left in a cgroup that was made for the sandbox; others are left alone.
    ///
    /// # Errors
    /// If one does not end.
    pub fn kill_own(&self) -> Result<(), CgroupError> {
        if self.created.is_empty() {
            return Ok(());
        }
        self.kill()
    }

    /// Removes the cgroup, with those that were made below it. One that was there before stays, as
    /// do the directories above it. Processes that are about to end are waited for, for a second.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let stopped = match &self.unit {
            Some(unit) => systemd::stop(&unit.name).map_err(failed(unit)),
            None => Ok(()),
        };
        let deadline = Instant::now() + tree::REMOVE_LIMIT;
        let mut result = Ok(());
        for path in &self.created {
            if let Err(e) = tree::remove(path, deadline)
                && result.is_ok()
            {
                result = Err(e);
            }
        }
        stopped.and(result)
    }

    /// Undoes [`create`](Self::create) for a process that is still in the cgroup: moves it back to
    /// where it was before, then removes the cgroup. Of a process that was not the `first` it is not
    /// known where it was: it has to have ended.
    ///
    /// # Errors
    /// If something of it stays.
    pub fn abandon(&self, pid: u32) -> Result<(), CgroupError> {
        // First: stopping a unit ends what is in it.
        tree::move_back(&self.origin, &self.paths, pid);
        self.remove()
    }
}

/// A cgroup that was checked and is about to be made.
#[derive(Debug)]
#[must_use = "nothing is made yet"]
pub struct Prepared<'a> {
    plan: &'a Plan,
    resources: &'a LinuxResources,
    first: Option<u32>,
    settings: Vec<limits::Setting>,
    cgroup: SandboxCgroup,
}

impl<'a> Prepared<'a> {
    /// Checks what can be checked before anything is made; the arguments are those of
    /// [`SandboxCgroup::create`].
    ///
    /// # Errors
    /// If the cgroup is frozen, or with systemd not empty; if a limit is none.
    pub fn new(
        plan: &'a Plan,
        resources: &'a LinuxResources,
        overhead: Overhead,
        first: Option<u32>,
    ) -> Result<Self, CgroupError> {
        let version = plan.hierarchies.version();
        for warning in limits::check(version, resources)? {
            log::warn!("{warning}");
        }
        let cgroup = SandboxCgroup::planned(plan, overhead, first)?;
        let settings = limits::settings(version, resources, overhead)?;
        Ok(Self {
            plan,
            resources,
            first,
            settings,
            cgroup,
        })
    }

    /// What is about to be made, for whoever has to remove what a process that is killed on the way
    /// has made of it.
    #[must_use]
    pub fn cgroup(&self) -> &SandboxCgroup {
        &self.cgroup
    }

    /// Makes it.
    ///
    /// # Errors
    /// If a limit cannot be set, or the first process not moved. Nothing is left then.
    pub fn make(self) -> Result<SandboxCgroup, CgroupError> {
        let Self {
            plan,
            resources,
            first,
            settings,
            cgroup: mut this,
        } = self;
        match (this.unit.clone(), first) {
            (None, first) => {
                let made = this.make_directories(plan, resources)?;
                limits::apply(&settings, &this.paths)?;
                if let Some(pid) = first {
                    tree::join_all(&this.paths, &plan.hierarchies, pid)?;
                }
                this.keep(made);
            }
            (Some(_), None) => return Err(CgroupError::NoProcess),
            (Some(unit), Some(pid)) => {
                let (version, overhead) = (this.version, this.overhead);
                let rounded =
                    systemd::start(&unit, version, resources, overhead, &plan.properties, pid);
                let rounded = rounded.map_err(failed(&unit))?;
                if let Err(e) = this.complete_unit(plan, &rounded, pid) {
                    // What is wrong is known; what is wrong with undoing it is for the log.
                    this.created.extend(this.paths.values().cloned());
                    if let Err(e) = this.abandon(pid) {
                        log::warn!("{}", crate::text::chain(&e));
                    }
                    return Err(e);
                }
            }
        }
        Ok(this)
    }
}

/// Limits that were checked and are about to be set.
#[derive(Debug)]
#[must_use = "nothing is set yet"]
pub struct Update<'a> {
    cgroup: &'a SandboxCgroup,
    resources: LinuxResources,
}

impl Update<'_> {
    /// The limits, both halves of those that come in pairs.
    #[must_use]
    pub fn resources(&self) -> &LinuxResources {
        &self.resources
    }

    /// Sets them.
    ///
    /// # Errors
    /// If the system takes one of them not. Others may be set then.
    pub fn apply(&self) -> Result<(), CgroupError> {
        let SandboxCgroup {
            version,
            ref paths,
            ref unit,
            overhead,
            ..
        } = *self.cgroup;
        let rounded = match unit {
            Some(unit) => {
                systemd::update(unit, version, &self.resources, overhead).map_err(failed(unit))?
            }
            None => self.resources.clone(),
        };
        let settings = limits::settings(version, &rounded, overhead)?;
        limits::apply(&settings, paths)
    }
}

/// Says of which unit systemd speaks.
fn failed(unit: &Unit) -> impl FnOnce(SystemdError) -> CgroupError + use<> {
    let unit = unit.name.clone();
    move |error| CgroupError::Systemd { unit, error }
}

#[cfg(test)]
mod tests;
