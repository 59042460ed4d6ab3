//! Cgroups that systemd makes: a transient scope for each sandbox.
//!
//! ```text
//!   StartTransientUnit("…scope", PIDs, Slice, Delegate, limits) ─▶ job ─▶ JobRemoved("done")
//!   SetUnitProperties("…scope", limits)
//!   StopUnit("…scope") ─▶ job ─▶ JobRemoved      ResetFailedUnit("…scope")
//! ```
//!
//! That is all that is said to systemd, in a form that has not changed for a decade. The libraries
//! for D-Bus are made for whole object trees and bring an executor and a serialisation of their own
//! along; of these few messages the monitor would use next to nothing and keep all of it in memory.

mod annotations;
mod bus;
mod properties;
mod wire;

use std::io;
use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;

pub(super) use self::annotations::properties as from_annotations;
use self::bus::{Connection, Socket};
pub(super) use self::properties::Properties;
use self::wire::{Value, Writer};
use super::{Overhead, Unit, Version};

const DONE: &str = "done";

/// Why systemd has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// There is nobody at its socket.
    #[error("cannot connect to systemd at {}", .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// It does not believe that this is who it says.
    #[error("systemd has rejected the connection: {0:?}")]
    Rejected(String),
    /// The connection is broken.
    #[error("the connection to systemd is lost")]
    Lost(#[source] io::Error),
    /// It does not answer.
    #[error("systemd does not answer in time")]
    TimedOut,
    /// What comes over the connection is not D-Bus.
    #[error("cannot speak to systemd: {0}")]
    Protocol(&'static str),
    /// It has said no.
    #[error("systemd has refused: {text} ({name})")]
    Refused {
        /// The error's name.
        name: String,
        /// What it says of it.
        text: String,
    },
    /// It has tried, and failed.
    #[error("the job of systemd has ended with {0:?}")]
    Job(String),
    /// A value cannot be said in its terms.
    #[error("{0}: {1:?} is not understood")]
    Value(String, String),
}

impl SystemdError {
    fn is(&self, error: &str) -> bool {
        let name = match self {
            Self::Refused { name, .. } => name,
            _ => return false,
        };
        name.strip_prefix("org.freedesktop.systemd1.") == Some(error)
    }
}

/// Makes a unit with process `pid` in it, with its limits and the properties `asked` for. Returns the
/// limits as systemd has set them.
pub(super) fn start(
    unit: &Unit,
    version: Version,
    resources: &LinuxResources,
    overhead: Overhead,
    asked: &Properties,
    pid: u32,
) -> Result<LinuxResources, SystemdError> {
    Manager::open(&Socket::all())?.start(unit, version, resources, overhead, asked, pid)
}

/// Changes a unit's limits. Returns them as systemd has set them.
pub(super) fn update(
    unit: &Unit,
    version: Version,
    resources: &LinuxResources,
    overhead: Overhead,
) -> Result<LinuxResources, SystemdError> {
    Manager::open(&Socket::all())?.update(unit, version, resources, overhead)
}

/// Ends a unit, and what is in it. One that is not there is no error.
pub(super) fn stop(name: &str) -> Result<(), SystemdError> {
    Manager::open(&Socket::all())?.stop(name)
}

/// systemd's manager of units.
struct Manager {
    connection: Connection,
}

impl Manager {
    fn open(sockets: &[Socket]) -> Result<Self, SystemdError> {
        let connection = Connection::open(sockets)?;
        Ok(Self { connection })
    }

    fn start(
        &mut self,
        unit: &Unit,
        version: Version,
        resources: &LinuxResources,
        overhead: Overhead,
        asked: &Properties,
        pid: u32,
    ) -> Result<LinuxResources, SystemdError> {
        let systemd = self.version(resources);
        let mut all = basic(unit, version, pid);
        for (name, value) in asked {
            properties::set(&mut all, name, value.clone());
        }
        let (limits, rounded) = properties::of(version, resources, overhead, systemd)?;
        all.extend(limits);
        all.extend(properties::at_creation(resources, systemd));
        match self.start_with(&unit.name, &all) {
            Err(e) if e.is("UnitExists") => {
                // It may be what is left of one that has failed: that goes when it is reset.
                let _ = self.reset_failed(&unit.name);
                self.start_with(&unit.name, &all)?;
            }
            result => result?,
        }
        Ok(rounded)
    }

    fn start_with(&mut self, name: &str, all: &Properties) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.text(name);
        body.text("replace");
        body.properties(all);
        body.no_units();
        let reply = self
            .connection
            .call("StartTransientUnit", "ssa(sv)a(sa(sv))", body)?;
        let job = reply.body().text()?;
        let result = self.connection.wait(&job);
        if result.as_ref().is_ok_and(|result| result == DONE) {
            return Ok(());
        }
        let _ = self.reset_failed(name);
        Err(SystemdError::Job(result?))
    }

    fn update(
        &mut self,
        unit: &Unit,
        version: Version,
        resources: &LinuxResources,
        overhead: Overhead,
    ) -> Result<LinuxResources, SystemdError> {
        let systemd = self.version(resources);
        let (all, rounded) = properties::of(version, resources, overhead, systemd)?;
        if !all.is_empty() {
            let mut body = Writer::default();
            body.text(&unit.name);
            // Until the next boot, as the unit itself.
            body.bool(true);
            body.properties(&all);
            self.connection.call("SetUnitProperties", "sba(sv)", body)?;
        }
        Ok(rounded)
    }

    fn stop(&mut self, name: &str) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.text(name);
        body.text("replace");
        let result = match self.connection.call("StopUnit", "ss", body) {
            Ok(reply) => {
                let job = reply.body().text()?;
                self.connection.wait(&job).map(|result| {
                    if result != DONE {
                        log::warn!("the job that stops {name} has ended with {result:?}");
                    }
                })
            }
            // It went with its last process.
            Err(e) if e.is("NoSuchUnit") => Ok(()),
            Err(e) => Err(e),
        };
        // One that has failed stays until it is reset; any other is gone by now.
        let _ = self.reset_failed(name);
        result
    }

    fn reset_failed(&mut self, name: &str) -> Result<(), SystemdError> {
        let mut body = Writer::default();
        body.text(name);
        let result = self.connection.call("ResetFailedUnit", "s", body);
        result.map(drop)
    }

    /// systemd's version if it matters; 0 if it cannot be told.
    fn version(&mut self, resources: &LinuxResources) -> u32 {
        if !properties::depend_on_version(resources) {
            return 0;
        }
        self.ask_version().unwrap_or_else(|e| {
            log::warn!(
                "systemd does not tell its version: {}",
                crate::text::chain(&e)
            );
            0
        })
    }

    fn ask_version(&mut self) -> Result<u32, SystemdError> {
        let mut body = Writer::default();
        body.text("org.freedesktop.systemd1.Manager");
        body.text("Version");
        let interface = "org.freedesktop.DBus.Properties";
        let reply = self.connection.call_on(interface, "Get", "ss", body)?;
        let mut body = reply.body();
        if body.signature()? != "s" {
            return Err(SystemdError::Protocol("its version is no text"));
        }
        let text = body.text()?;
        parse_version(&text).ok_or(SystemdError::Value("Version".to_owned(), text))
    }
}

/// `v255.4-1ubuntu8`, `252`, `258~rc1` and the like.
fn parse_version(text: &str) -> Option<u32> {
    let text = text.trim_start_matches(['"', 'v']);
    let end = text.find(|c: char| !c.is_ascii_digit());
    text.get(..end.unwrap_or(text.len()))?.parse().ok()
}

/// The properties that do not depend on limits.
fn basic(unit: &Unit, version: Version, pid: u32) -> Properties {
    let description = format!("Cloister sandbox {}", unit.name);
    let mut all = vec![("Description".to_owned(), Value::Text(description))];
    let mut set = |name: &str, value| all.push((name.to_owned(), value));
    if unit.is_slice() {
        // The slice around it follows from its name. It takes no processes by itself.
        set("Wants", Value::Texts(vec![unit.slice.clone()]));
    } else {
        set("Slice", Value::Text(unit.slice.clone()));
        set("Delegate", Value::Bool(true));
        set("PIDs", Value::U32s(vec![pid]));
    }
    let io = match version {
        Version::V1 => "BlockIOAccounting",
        Version::V2 => "IOAccounting",
    };
    for name in ["MemoryAccounting", "CPUAccounting", io, "TasksAccounting"] {
        set(name, Value::Bool(true));
    }
    // Otherwise it would be ended early at shutdown, before those who wait for it.
    set("DefaultDependencies", Value::Bool(false));
    all
}

#[cfg(test)]
mod tests;
