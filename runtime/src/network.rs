//! The network namespace of a sandbox on the host, and its ways into the virtual machine.
//!
//! ```text
//!                    the sandbox's network namespace             the guest
//!   eth0 (veth, …) ──ingress──▶ redirect ──▶ cloister0 (tap) ══▶ virtio-net: eth0
//!                  ◀─egress──── redirect ◀──ingress──
//! ```
//!
//! The interface on the host keeps its addresses, for whoever looks there, and gets nothing any
//! more: what arrives at it goes to a tap, and what leaves the tap leaves through it. The guest's
//! interface has the same name, index, MAC, MTU, addresses, neighbours and routes.
//!
//! Everything here is done with route netlink in the namespace (`Namespace::within`), and undone
//! by [`restore`], which finds by itself what is to be undone: after a crash there is nobody to ask.

mod devices;
mod forward;
mod limits;
mod redirect;
mod scan;
mod sysctls;
mod tap;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use cloister_netlink::{Error as NetlinkError, Events, Socket};

pub(crate) use self::devices::move_in;
pub(crate) use self::forward::{ForwardListener, Forwarded};
pub(crate) use self::limits::{Limits, bandwidth};
pub(crate) use self::redirect::{Mark, join, part, release, undo_all};
pub(crate) use self::scan::{Interface, Scan};
pub(crate) use self::sysctls::{interface_sysctls, sysctls};
pub(crate) use self::tap::{Tap, Traffic, open_vhost};
use crate::{namespaces, sys};

/// The groups (RTNLGRP_*) that tell of what a guest's network is made of.
const GROUPS: [u32; 8] = [
    1,  // LINK
    5,  // IPV4_IFADDR
    7,  // IPV4_ROUTE
    8,  // IPV4_RULE
    9,  // IPV6_IFADDR
    11, // IPV6_ROUTE
    19, // IPV6_RULE
    3,  // NEIGH
];

/// Why a sandbox has not the network that it should have.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The namespace cannot be entered.
    #[error("cannot enter the network namespace")]
    Namespace(#[source] io::Error),
    /// The kernel does not answer.
    #[error("cannot list the {what} of the network namespace")]
    List {
        /// What was to be listed.
        what: &'static str,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// A parameter cannot be read.
    #[error("cannot read {path} of the network namespace")]
    Sysctl {
        /// Its path below /proc/sys.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Changes cannot be waited for.
    #[error("cannot wait for changes of the network namespace")]
    Watch(#[source] io::Error),
    /// No socket.
    #[error("cannot speak to the kernel's network service")]
    Socket(#[source] NetlinkError),
    /// An interface of a kind that a virtual machine cannot stand in for.
    #[error("interface {name} of the network namespace: refused: {problem}")]
    Unsupported {
        /// The interface.
        name: String,
        /// What is wrong with it, and what would be right.
        problem: String,
    },
    /// The virtual machine has not enough slots.
    #[error(
        "interface {name} of the network namespace: refused: a virtual machine has {possible} network interfaces at most"
    )]
    TooMany {
        /// The first one too many.
        name: String,
        /// How many there can be.
        possible: u8,
    },
    /// There is no tun device.
    #[error("cannot open {}: taps need the kernel's tun driver", .0.display())]
    Tun(PathBuf, #[source] io::Error),
    /// The kernel makes no tap.
    #[error("cannot make the tap {name} for interface {interface}")]
    Tap {
        /// The tap.
        name: String,
        /// The interface that it is for.
        interface: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// An interface cannot be changed.
    #[error("interface {name} of the network namespace: cannot {verb}")]
    Change {
        /// The interface.
        name: String,
        /// What was to be done.
        verb: &'static str,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// Another sandbox is connected to the interface.
    #[error(
        "interface {name} of the network namespace: another virtual machine is connected to it already; put the container into that one's pod"
    )]
    Taken {
        /// The interface.
        name: String,
    },
    /// An interface went away while it was being connected.
    #[error("interface {name} of the network namespace has gone while it was being connected")]
    Gone {
        /// The interface.
        name: String,
    },
    /// A device that is to be moved in is not there.
    #[error("config.json: linux.netDevices[{name:?}]: there is no such network device")]
    NoDevice {
        /// Its name.
        name: String,
    },
    /// There is a device of the name that it is to have.
    #[error(
        "config.json: linux.netDevices[{name:?}].name: the network namespace has a device {wanted:?} already"
    )]
    NameTaken {
        /// The device.
        name: String,
        /// The name that it is to have.
        wanted: String,
    },
    /// A device that is to be moved in cannot be.
    #[error("config.json: linux.netDevices[{name:?}]: the device cannot {verb}")]
    Move {
        /// The device.
        name: String,
        /// What it cannot.
        verb: &'static str,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// A process of this machine uses the namespace.
    #[error(
        "the network namespace {} is in use by process {pid} ({command}), which is in no virtual machine: its network would go to the virtual machine; give the container a network of its own",
        path.display()
    )]
    Shared {
        /// The namespace.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// Its name.
        command: String,
    },
    /// An annotation makes no sense.
    #[error("config.json: annotations[{annotation:?}]: {value:?} is no bandwidth")]
    Bandwidth {
        /// The annotation.
        annotation: &'static str,
        /// What it says.
        value: String,
    },
    /// Local connections cannot be taken.
    #[error("cannot take connections to the namespace's own addresses: {step}")]
    Forward {
        /// What failed.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A network namespace of this machine.
#[derive(Debug)]
pub(crate) struct Namespace(OwnedFd);

impl Namespace {
    /// Opens the namespace at `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, NetworkError> {
        let file = File::open(path).map_err(NetworkError::Namespace)?;
        Ok(Self(file.into()))
    }

    /// The one that the process's first thread holds.
    pub(crate) fn of_first_thread() -> Result<Self, NetworkError> {
        Self::open(Path::new("/proc/self/ns/net"))
    }

    /// Does something in the namespace: what is opened there belongs to it.
    pub(crate) fn within<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetworkError> {
        let enter = |namespace: BorrowedFd<'_>| {
            sys::join(&namespace, libc::CLONE_NEWNET).map_err(NetworkError::Namespace)
        };
        let own = Self::open(Path::new("/proc/thread-self/ns/net"))?;
        enter(self.0.as_fd())?;
        let result = work();
        enter(own.0.as_fd())?;
        Ok(result)
    }

    /// A socket to the kernel about this namespace.
    pub(crate) fn socket(&self) -> Result<Socket, NetworkError> {
        self.within(Socket::open)?.map_err(NetworkError::Socket)
    }

    /// Hears of every change in this namespace.
    pub(crate) fn events(&self) -> Result<Events, NetworkError> {
        let events = self.within(|| Events::open(&GROUPS))?;
        events.map_err(NetworkError::Socket)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Leaves the namespace at `path` as a sandbox has found it. Does nothing if the namespace is gone,
/// or was left so before.
///
/// # Errors
/// If something of the sandbox stays.
pub fn restore(path: &Path, root: &Path, id: &str) -> Result<(), NetworkError> {
    let namespace = match Namespace::open(path) {
        Ok(namespace) => namespace,
        Err(NetworkError::Namespace(e)) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let socket = match namespace.socket() {
        Ok(socket) => socket,
        // Where a namespace was mounted there may be a plain file now.
        Err(NetworkError::Namespace(e)) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
        Err(e) => return Err(e),
    };
    redirect::undo_all(&socket, Mark::new(root, id))
}

/// Refuses a namespace in which processes of this machine live.
///
/// # Errors
/// [`NetworkError::Shared`] names one of them.
pub fn check_unshared(path: &Path) -> Result<(), NetworkError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).map_err(NetworkError::Namespace)?;
    let inhabitant = namespaces::inhabitant("net", (metadata.dev(), metadata.ino()));
    if let Some(pid) = inhabitant.map_err(NetworkError::Namespace)? {
        let command = std::fs::read_to_string(format!("/proc/{pid}/comm"));
        return Err(NetworkError::Shared {
            path: path.to_owned(),
            pid,
            command: command.unwrap_or_default().trim().to_owned(),
        });
    }
    Ok(())
}
