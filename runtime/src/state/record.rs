//! What a monitor says of its container, in the form in which `state.json` has it, and what of that
//! others are told.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::runtime::Hooks;
use serde::{Deserialize, Serialize};

use super::StateError;
use crate::cgroup::SandboxCgroup;
use crate::process::{self, ProcessId};

/// The version of [`State`]'s form.
pub const STATE_VERSION: u32 = 4;

/// What the monitor says of its container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`STATE_VERSION`].
    pub version: u32,
    /// The container's id.
    pub id: String,
    /// `ociVersion` of its specification.
    pub oci_version: String,
    /// The bundle, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339.
    pub created: String,
    /// The specification's annotations.
    pub annotations: HashMap<String, String>,
    /// The boot of this machine in which its processes were born.
    pub boot_id: String,
    /// The container's process on the host.
    pub monitor: ProcessId,
    /// The container whose virtual machine it is in, if that is not its own.
    pub sandbox: Option<String>,
    /// The process of its own virtual machine.
    pub vmm: Option<ProcessId>,
    /// The process of its own file server.
    pub fs: Option<ProcessId>,
    /// The size of its own virtual machine.
    pub vm: Option<VmSize>,
    /// Its cgroup on this machine, if it has one.
    pub cgroup: Option<SandboxCgroup>,
    /// Its network namespace, if its own virtual machine is connected to one.
    pub network: Option<NetworkPlace>,
    /// The hooks that other commands run.
    pub hooks: Option<Hooks>,
    /// How far it is.
    pub phase: Phase,
}

/// Where the network of a sandbox is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkPlace {
    /// The namespace's path, absolute; `None` if it is the monitor's own and ends with it.
    pub path: Option<PathBuf>,
}

/// What a virtual machine has. It may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSize {
    /// The guest's memory, in MiB.
    pub memory_mib: u32,
    /// Its processors.
    pub vcpus: u8,
}

/// What hooks are told of a container (runtime.md#state).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookState {
    /// `ociVersion` of its specification.
    pub oci_version: String,
    /// The container.
    pub id: String,
    /// The bundle.
    pub bundle: PathBuf,
    /// The annotations.
    pub annotations: HashMap<String, String>,
}

impl HookState {
    /// The document; a container that has ended has no pid.
    #[must_use]
    pub fn json(&self, status: Status, pid: i32) -> Vec<u8> {
        let mut document = serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": status.as_str(),
            "bundle": self.bundle,
            "annotations": self.annotations,
        });
        if status != Status::Stopped {
            document["pid"] = pid.into();
        }
        document.to_string().into_bytes()
    }
}

impl State {
    /// What hooks are told.
    #[must_use]
    pub fn for_hooks(&self) -> HookState {
        HookState {
            oci_version: self.oci_version.clone(),
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            annotations: self.annotations.clone(),
        }
    }

    /// Whether its processes were born since this machine was booted.
    ///
    /// # Errors
    /// If the boot cannot be told.
    pub fn is_of_this_boot(&self) -> Result<bool, StateError> {
        let current = process::boot_id().map_err(|e| StateError::Access("/proc".into(), e))?;
        Ok(self.boot_id == current)
    }

    /// With nobody in the place of processes of another boot, whose pids and times of birth may be
    /// those of others by now.
    pub(super) fn without_the_dead(mut self) -> Result<Self, StateError> {
        if !self.is_of_this_boot()? {
            self.monitor = ProcessId::NOBODY;
            self.vmm = None;
            self.fs = None;
        }
        Ok(self)
    }

    /// The processes that are the container's own.
    pub fn processes(&self) -> impl Iterator<Item = ProcessId> {
        [Some(self.monitor), self.vmm, self.fs]
            .into_iter()
            .flatten()
    }
}

/// How far a container is, as its monitor sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum Phase {
    /// The virtual machine boots.
    Creating,
    /// The container stands in its virtual machine.
    Created,
    /// The workload has ended.
    Exited {
        /// Its exit code, if it exited.
        code: u32,
        /// The signal that ended it, or 0.
        signal: u32,
        /// Why, if it was not the workload's own doing.
        error: Option<String>,
        /// Whether the guest's OOM killer has ended it, or another process of its container.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        oom_killed: bool,
    },
}

/// The status of a container as the OCI runtime specification names it (runtime.md#state).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Being created.
    Creating,
    /// Created, the user's program not started.
    Created,
    /// The user's program was started and has not ended.
    Running,
    /// The container's processes are stopped where they are.
    Paused,
    /// The user's program has ended.
    Stopped,
}

impl Status {
    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}
