//! What the two sides say to each other.

use serde::{Deserialize, Serialize};

use crate::{NetConfig, VmConfig};

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
    /// Put a network device into an empty slot. Beside this packet travel its taps, one descriptor
    /// a queue pair, in order, each opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and
    /// `IFF_MULTI_QUEUE` if there are several. Behind them may come as many descriptors of `/dev/vhost-net`, which nobody
    /// owns yet, for a device without limits: then the kernel moves its packets if it can, and the device does not count
    /// those. Answered by [`Event::NetAttached`] or
    /// [`Event::NetRefused`], as all requests about one slot are, also while the VM is paused.
    ///
    /// The guest is not told: it finds the device when it binds its driver to the slot anew
    /// ([`NET_PLATFORM_ID`](crate::NET_PLATFORM_ID)), or while it boots if the device is there by
    /// then; its driver is bound in that case.
    AttachNet {
        /// Which slot, below [`NET_SLOTS`](crate::NET_SLOTS).
        slot: u8,
        /// The device.
        config: NetConfig,
    },
    /// Take the device out of a slot and close its taps; answered by [`Event::NetDetached`]. The
    /// guest should have unbound its driver: a driver that is still there finds no device.
    DetachNet {
        /// Which slot.
        slot: u8,
    },
    /// Tell the guest that a device's link is there or not; answered by [`Event::LinkSet`]. No
    /// packet passes while it is not.
    SetLink {
        /// Which slot.
        slot: u8,
        /// Whether it is.
        up: bool,
    },
    /// What the network devices have counted; answered by [`Event::NetCounters`].
    NetCounters,
    /// Have at least so many vCPUs; answered by [`Event::VcpusAdded`] or [`Event::GrowthRefused`],
    /// also while the VM is paused. The guest is not told: a new vCPU waits until the guest's kernel
    /// starts it.
    AddVcpus {
        /// At most [`VmConfig::max_vcpus`].
        vcpus: u8,
    },
    /// Have at least so much guest RAM; answered by [`Event::Memory`] or [`Event::GrowthRefused`], also
    /// while the VM is paused. The guest finds the first of it when it binds its driver to the memory
    /// device ([`MEM_PLATFORM_ID`](crate::MEM_PLATFORM_ID)), and is told of what follows.
    AddMemory {
        /// In MiB, at most [`VmConfig::max_memory_mib`].
        memory_mib: u32,
    },
    /// How much RAM the guest has taken; answered by [`Event::Memory`].
    Memory,
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
    /// The slot has a device. It has no descriptors beside it, as none of the answers have.
    NetAttached {
        /// The slot of the request.
        slot: u8,
    },
    /// The slot is empty and the taps are closed.
    NetDetached {
        /// The slot of the request.
        slot: u8,
    },
    /// The link is as requested.
    LinkSet {
        /// The slot of the request.
        slot: u8,
    },
    /// A request about a slot cannot be followed. Nothing has changed, and the VM goes on.
    NetRefused {
        /// The slot of the request.
        slot: u8,
        /// What is wrong, with its causes.
        message: String,
    },
    /// What the devices of all occupied slots have counted since they were attached.
    NetCounters {
        /// By slot, in order.
        nets: Vec<NetCounters>,
    },
    /// There are as many vCPUs as requested, or more.
    VcpusAdded {
        /// All that there are.
        vcpus: u8,
    },
    /// The guest's RAM.
    Memory {
        /// What it may use, in MiB.
        granted_mib: u32,
        /// What it uses, by its own word, in MiB.
        plugged_mib: u32,
    },
    /// A request for more of something cannot be followed, or not to its end. The VM goes on.
    GrowthRefused {
        /// What is wrong, with its causes.
        message: String,
    },
    /// The VM has ended. The last packet.
    Exited {
        /// Why.
        reason: ExitReason,
        /// What happened when.
        timeline: Timeline,
    },
}

/// What a network device has counted since it was attached. Receiving and transmitting are the
/// guest's: what it receives comes out of a tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Its slot.
    pub slot: u8,
    /// Packets to the guest.
    pub rx_packets: u64,
    /// Bytes of frames to the guest.
    pub rx_bytes: u64,
    /// Packets to the guest that were dropped: too large for its buffers, or the link was down.
    pub rx_dropped: u64,
    /// Buffers for packets that were unusable, and failed reads of a tap.
    pub rx_errors: u64,
    /// Packets from the guest.
    pub tx_packets: u64,
    /// Bytes of frames from the guest.
    pub tx_bytes: u64,
    /// Packets from the guest that were dropped: a tap refused them, or the link was down.
    pub tx_dropped: u64,
    /// Buffers that held no packet.
    pub tx_errors: u64,
    /// Times that packets to the guest had to wait for the rate limit.
    pub rx_waits: u64,
    /// Times that packets from the guest had to wait for the rate limit.
    pub tx_waits: u64,
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
    use crate::RateLimit;

    #[test]
    fn requests_about_nets_survive_the_wire() {
        let limit = RateLimit {
            bytes_per_second: 1 << 20,
            burst: 1 << 16,
        };
        let config = NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(1400),
            queue_pairs: 2,
            rx_limit: Some(limit),
            tx_limit: None,
        };
        let requests = [
            Request::AttachNet { slot: 1, config },
            Request::DetachNet { slot: 1 },
            Request::SetLink { slot: 1, up: true },
            Request::NetCounters,
        ];
        for request in requests {
            let json = serde_json::to_string(&request).unwrap();
            let read: Request = serde_json::from_str(&json).unwrap();
            assert_eq!(read, request, "{json}");
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let events = [
            Event::GuestConnect { port: 1024 },
            Event::Paused,
            Event::NetRefused {
                slot: 9,
                message: "slot: 9 given, 0 to 3 possible".into(),
            },
            Event::NetCounters {
                nets: vec![NetCounters {
                    slot: 3,
                    rx_packets: u64::MAX,
                    ..NetCounters::default()
                }],
            },
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
