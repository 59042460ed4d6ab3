//! `cloister state`, and a container's state as callers read it.

use std::collections::HashMap;
use std::io::Write;

use cloister::id::ContainerId;
use cloister::state::{StateDir, StateError, Status};
use serde::Serialize;

use super::{Fatal, Globals};

/// runtime.md#state, with runc's additions, in runc's order.
#[derive(Debug, Serialize)]
pub(crate) struct View {
    #[serde(rename = "ociVersion")]
    oci_version: String,
    pub(crate) id: String,
    pub(crate) pid: i32,
    pub(crate) status: &'static str,
    pub(crate) bundle: String,
    rootfs: String,
    pub(crate) created: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    pub(crate) owner: String,
}

impl View {
    /// Reads the state of a container that has one.
    pub(crate) fn of(dir: &StateDir) -> Result<Self, StateError> {
        let state = dir.load()?;
        let status = dir.status(&state);
        Ok(Self {
            oci_version: state.oci_version,
            id: state.id,
            // runc: nobody has the pid of a container that has ended.
            pid: match status {
                Status::Stopped => 0,
                _ => state.monitor.pid,
            },
            status: status.as_str(),
            bundle: state.bundle.display().to_string(),
            rootfs: state.rootfs.display().to_string(),
            created: state.created,
            annotations: state.annotations,
            owner: String::new(),
        })
    }
}

pub(crate) fn state(globals: &Globals, id: &str) -> Result<u8, Fatal> {
    let dir = StateDir::open(&globals.root, &ContainerId::new(id)?)?;
    let view = View::of(&dir)?;
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &view)?;
    writeln!(out)?;
    Ok(0)
}
