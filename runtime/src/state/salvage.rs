//! What can still be known of a container whose state file is damaged or of another version: enough
//! to end it, which is all that is left to do with it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Phase, STATE_VERSION, State, StateDir, StateError};
use crate::process::{self, ProcessId};

impl StateDir {
    /// What of the state file has the form that this version knows; the rest is as if it were not
    /// there. A process in it is one only if it was born when the file says.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn salvage(&self) -> Result<State, StateError> {
        let path = self.paths.state();
        let text = fs::read(&path).map_err(|e| StateError::Access(path, e))?;
        let fields: Value = serde_json::from_slice(&text).unwrap_or_default();
        let cgroup = field(&fields, "cgroup");
        if let Some(unknown) = fields.get("cgroup").filter(|cgroup| !cgroup.is_null())
            && cgroup.is_none()
        {
            log::warn!(
                "container {}: its cgroup is not understood and stays: {unknown}",
                self.id
            );
        }
        let boot = || process::boot_id().map_err(|e| StateError::Access("/proc".into(), e));
        let state = State {
            version: STATE_VERSION,
            id: self.id.to_string(),
            oci_version: field(&fields, "oci_version").unwrap_or_default(),
            bundle: field(&fields, "bundle").unwrap_or_default(),
            rootfs: field(&fields, "rootfs").unwrap_or_default(),
            created: field(&fields, "created").unwrap_or_default(),
            annotations: field(&fields, "annotations").unwrap_or_default(),
            // Earlier versions did not tell.
            boot_id: field(&fields, "boot_id").map_or_else(boot, Ok)?,
            monitor: born(&fields, "monitor").unwrap_or(ProcessId::NOBODY),
            sandbox: field(&fields, "sandbox"),
            vmm: born(&fields, "vmm"),
            fs: born(&fields, "fs"),
            vm: field(&fields, "vm"),
            cgroup,
            network: field(&fields, "network"),
            hooks: field(&fields, "hooks"),
            phase: field(&fields, "phase").unwrap_or(Phase::Creating),
        };
        state.without_the_dead()
    }

    /// The monitors and the VMM that have files of the container open, whatever its state file says.
    /// The file server needs no look: it ends with the monitor's socket.
    ///
    /// # Errors
    /// If the processes of this machine cannot be listed.
    pub fn holders(&self) -> Result<Vec<ProcessId>, StateError> {
        let own = fs::metadata(self.paths.dir());
        let files: Vec<_> = [own, fs::metadata(self.paths.console_log())]
            .into_iter()
            .flatten()
            .map(|file| (file.dev(), file.ino()))
            .collect();
        let list = |e| StateError::Access("/proc".into(), e);
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").map_err(list)? {
            let entry = entry.map_err(list)?;
            let name = entry.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            // Named first: whoever has the pid after this is born later.
            let Ok(process) = ProcessId::of(pid) else {
                continue;
            };
            if is_worker(pid, self.id.as_str()) && has_open(pid, &files).unwrap_or(false) {
                found.push(process);
            }
        }
        Ok(found)
    }
}

fn field<T: DeserializeOwned>(fields: &Value, name: &str) -> Option<T> {
    serde_json::from_value(fields.get(name)?.clone()).ok()
}

/// A process, whatever else another version says of it.
fn born(fields: &Value, name: &str) -> Option<ProcessId> {
    let process = fields.get(name)?;
    let pid = process.get("pid")?.as_i64()?;
    Some(ProcessId {
        pid: i32::try_from(pid).ok().filter(|&pid| pid > 0)?,
        start_time: process.get("start_time")?.as_u64()?,
    })
}

/// Whether a process is a monitor of container `id`, or a VMM.
fn is_worker(pid: i32, id: &str) -> bool {
    let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    if read("comm").trim_ascii_end() == b"cloister-vmm" {
        return true;
    }
    let command = read("cmdline");
    let mut words = command.split(|&byte| byte == 0);
    words.next() == Some(b"cloister")
        && words.next() == Some(b"monitor")
        && words.nth(1) == Some(id.as_bytes())
}

fn has_open(pid: i32, files: &[(u64, u64)]) -> io::Result<bool> {
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // It may be closed meanwhile.
        let file = entry.and_then(|entry| fs::metadata(entry.path()));
        if file.is_ok_and(|file| files.contains(&(file.dev(), file.ino()))) {
            return Ok(true);
        }
    }
    Ok(false)
}
