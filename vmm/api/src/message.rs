//! What the two sides say to each other.

use serde::{Deserialize, Serialize};

use crate::VmConfig;

/// From the owner to the VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Create the VM and run it. The first request, and only the first.
    Boot {
        /// The machine.
        config: VmConfig,
        /// What each descriptor beside this packet is for, in order.
        fds: Vec<FdRole>,
    },
    /// Stop every vCPU and quiesce the devices; answered by [`Event::Paused`].
    Pause,
    /// Run again; answered by [`Event::Resumed`].
    Resume,
    /// End the VM at once; answered by [`Event::Exited`] with [`ExitReason::Stopped`].
    Stop,
}

/// What a descriptor that comes with [`Request::Boot`] is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FdRole {
    /// `/dev/kvm`. Required.
    Kvm,
    /// The guest kernel: an ELF `vmlinux`, readable. Required.
    Kernel,
    /// The initramfs: a newc cpio archive, readable. Required.
    Initramfs,
    /// A regular file, readable and writable, that receives the guest's console. The VMM keeps it
    /// bounded by dropping the older half whenever it has grown to its limit. Required.
    Console,
    /// A listening `AF_UNIX` stream socket. A host process that connects to it and writes
    /// `CONNECT <port>\n` reaches that vsock port of the guest, after `OK <host port>\n` came
    /// back; any failure closes the connection. Required.
    VsockListener,
    /// A connected `AF_UNIX` stream socket to the vhost-user file server. Required if and only if
    /// [`VmConfig::fs`] is set.
    FsBackend,
}

/// From the VMM to its owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// The vCPUs are about to run.
    Booted {
        /// What happened when, so far.
        timeline: Timeline,
    },
    /// A guest process connected to a host port. The one descriptor beside this packet is the host
    /// end of the stream.
    GuestConnect {
        /// One of [`VsockConfig::host_ports`](crate::VsockConfig::host_ports).
        port: u32,
    },
    /// Every vCPU stands still.
    Paused,
    /// The vCPUs run again.
    Resumed,
    /// The VM has ended. The last packet.
    Exited {
        /// Why.
        reason: ExitReason,
        /// What happened when.
        timeline: Timeline,
    },
}

/// Why a VM ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest asked for it, in order.
    Shutdown,
    /// The guest reset the machine without having asked for an orderly shutdown: its kernel
    /// panicked. The console has the details.
    GuestPanic,
    /// A vCPU triple-faulted.
    TripleFault,
    /// The owner asked for it, or went away.
    Stopped,
    /// The VMM could not go on.
    HostError {
        /// What failed, with its causes.
        message: String,
    },
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown => f.write_str("guest shut down"),
            Self::GuestPanic => f.write_str("guest kernel panicked"),
            Self::TripleFault => f.write_str("guest triple-faulted"),
            Self::Stopped => f.write_str("stopped by its owner"),
            Self::HostError { message } => write!(f, "VMM failed: {message}"),
        }
    }
}

/// When the phases of a VM's start were reached, in nanoseconds of the host's `CLOCK_MONOTONIC`;
/// 0 for a phase that was not reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeline {
    /// `main` of the VMM was entered.
    pub main: u64,
    /// The boot request was read.
    pub configured: u64,
    /// The VM, its memory and its devices exist.
    pub created: u64,
    /// The kernel and the initramfs are in guest memory.
    pub loaded: u64,
    /// The process is jailed and the first vCPU enters the guest.
    pub entered: u64,
    /// The guest's first process says that it runs.
    pub init: u64,
}

/// What `cloister-vmm --check` prints: whether this machine's KVM can run guests at speed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Whether a VM can be run here.
    pub usable: bool,
    /// Each thing that was tried, in order: a name, whether it held, and what was seen.
    pub checks: Vec<Check>,
}

/// One line of a [`CheckReport`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was tried, in a few words.
    pub name: String,
    /// Whether it held.
    pub ok: bool,
    /// What was seen, or why it matters if it failed.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_wire() {
        let events = [
            Event::GuestConnect { port: 1024 },
            Event::Paused,
            Event::Exited {
                reason: ExitReason::HostError {
                    message: "no memory".into(),
                },
                timeline: Timeline {
                    main: 1,
                    ..Timeline::default()
                },
            },
        ];
        for event in events {
            let json = serde_json::to_string(&event).unwrap();
            assert_eq!(
                serde_json::from_str::<Event>(&json).unwrap(),
                event,
                "{json}"
            );
        }
    }
}
