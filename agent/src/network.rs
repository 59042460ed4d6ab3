//! A container's network namespace, made what the host says it is.
//!
//! The host tells the whole of it each time: its devices, and what its own kernel lists of
//! addresses, neighbours, routes and rules, and its parameters. Here that is compared with what was made before; what
//! has gone is taken away, and everything else is asked for again, because an interface that went
//! down and an address that was taken away have taken routes with them.
//!
//! ```text
//!   empty slot ──bind──▶ interface in the agent's namespace ──move, name──▶ in the container's
//!        ▲                                                                       │
//!        ╰───────────────────────────────── unbind ──────────────────────────────╯
//! ```

mod device;
mod replay;
mod sysctls;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cloister_netlink::{Error as NetlinkError, Message, Socket, link_header, uapi};
use cloister_protocol::agent::{Interface, SetNetworkRequest};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space, move_into_thread_name_spaces,
};

use self::device::Device;
use self::replay::{Indices, Replayed};
use self::sysctls::Sysctls;

/// The namespaces of the calling thread.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// netdevice(7).
const IFF_UP: u32 = libc::IFF_UP.unsigned_abs();

/// Why a network is not what it should be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The request is at fault.
    #[error("interfaces[{index}].name: {name:?} is no name of an interface")]
    Name {
        /// Which interface.
        index: usize,
        /// What was given.
        name: String,
    },
    /// The machine's device does not become an interface.
    #[error("network device {name}: {problem}")]
    Device {
        /// The device.
        name: String,
        /// What is wrong.
        problem: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespace cannot be entered.
    #[error("cannot enter the container's network namespace")]
    Namespace(#[source] io::Error),
    /// The kernel refuses an interface.
    #[error("interface {name}: cannot {verb} it")]
    Interface {
        /// The interface.
        name: String,
        /// What was to be done.
        verb: &'static str,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The kernel refuses an address, a neighbour, a route or a rule.
    #[error("{kind} {number}: cannot add it")]
    Add {
        /// What it is.
        kind: &'static str,
        /// Which of its kind, as the host listed them.
        number: usize,
        /// Why.
        #[source]
        source: NetlinkError,
    },
    /// The kernel refuses a parameter.
    #[error("sysctl {path:?}: cannot set it to {value:?}")]
    Sysctl {
        /// Its path below /proc/sys.
        path: String,
        /// What it should be.
        value: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The interfaces cannot be listed.
    #[error("cannot list the interfaces")]
    List(#[source] NetlinkError),
    /// No socket.
    #[error("cannot speak to the kernel's network service")]
    Socket(#[source] NetlinkError),
}

/// What the host has made of a container's network so far.
#[derive(Debug, Default)]
pub(crate) struct Network {
    interfaces: Vec<Plugged>,
    replayed: Replayed,
    sysctls: Sysctls,
}

/// An interface that stands for a device.
#[derive(Debug)]
struct Plugged {
    device: Device,
    /// As the host has asked for it.
    interface: Interface,
    /// Its index here.
    index: u32,
}

impl Network {
    /// Makes the network of the namespace that `process` is in what `request` says.
    pub(crate) fn set(
        &mut self,
        process: BorrowedFd<'_>,
        mut request: SetNetworkRequest,
    ) -> Result<(), NetworkError> {
        for (index, interface) in request.interfaces.iter().enumerate() {
            check_name(index, &interface.name)?;
        }
        let inside = within(process, Socket::open)?.map_err(NetworkError::Socket)?;
        let namespace = namespace_of(process)?;
        // First: some of them hold for interfaces that come later only.
        let sysctls = std::mem::take(&mut request.sysctls);
        self.sysctls.set(process, sysctls)?;
        // Before anything is added: a name or an address may go from one interface to another.
        self.unplug_others(&request.interfaces)?;
        self.replayed
            .remove_others(&inside, &self.indices(), &request);
        for interface in request.interfaces {
            self.plug(process, &inside, namespace.as_fd(), interface)?;
        }
        self.replayed.add_all(&inside, &self.indices())
    }

    /// The host's indices of interfaces, and those here.
    fn indices(&self) -> Indices {
        let plugged = self.interfaces.iter();
        Indices::new(plugged.map(|plugged| (plugged.interface.index, plugged.index)))
    }

    /// Takes away the interfaces that are not among `wanted`.
    fn unplug_others(&mut self, wanted: &[Interface]) -> Result<(), NetworkError> {
        let gone = |plugged: &Plugged| {
            let same = |w: &Interface| {
                w.device == plugged.interface.device && w.index == plugged.interface.index
            };
            !wanted.iter().any(same)
        };
        while let Some(at) = self.interfaces.iter().position(gone) {
            self.interfaces.swap_remove(at).device.unbind()?;
        }
        Ok(())
    }

    /// Makes sure that an interface is there and as it should be.
    fn plug(
        &mut self,
        process: BorrowedFd<'_>,
        inside: &Socket,
        namespace: BorrowedFd<'_>,
        interface: Interface,
    ) -> Result<(), NetworkError> {
        let known = |plugged: &&mut Plugged| plugged.interface.device == interface.device;
        if let Some(plugged) = self.interfaces.iter_mut().find(known) {
            if plugged.interface != interface {
                adjust(inside, plugged.index, &interface)?;
                sysctls::set_others(process, &plugged.interface.sysctls, &interface.sysctls)?;
                plugged.interface = interface;
            }
            return Ok(());
        }
        let device = Device::bind(interface.device)?;
        let index = bring_in(&device, inside, namespace, &interface).and_then(|index| {
            // An interface that comes up without them is heard, and hears.
            sysctls::set_others(process, &[], &interface.sysctls)?;
            adjust(inside, index, &interface)?;
            Ok(index)
        });
        match index {
            Ok(index) => {
                self.interfaces.push(Plugged {
                    device,
                    interface,
                    index,
                });
                Ok(())
            }
            Err(e) => {
                device.unbind()?;
                Err(e)
            }
        }
    }
}

/// Moves a new interface into the container's namespace; gives its index there.
fn bring_in(
    device: &Device,
    inside: &Socket,
    namespace: BorrowedFd<'_>,
    interface: &Interface,
) -> Result<u32, NetworkError> {
    let error = |source| NetworkError::Interface {
        name: interface.name.clone(),
        verb: "move",
        source,
    };
    let index = device.interface_index()?;
    let own = Socket::open().map_err(NetworkError::Socket)?;
    // The number of an open descriptor is not negative.
    let namespace = namespace.as_raw_fd().unsigned_abs();
    let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0))
        .number(libc::IFLA_NET_NS_FD, namespace)
        .text(libc::IFLA_IFNAME, &interface.name);
    let as_outside = request
        .clone()
        .number(uapi::IFLA_NEW_IFINDEX, interface.index);
    match own.request(&as_outside) {
        Ok(()) => return Ok(interface.index),
        // The container has made an interface of that index.
        Err(e) if matches!(e.errno(), Some(libc::EBUSY | libc::EEXIST)) => {}
        Err(e) => return Err(error(e)),
    }
    own.request(&request).map_err(error)?;
    let found = inside.find_link(&interface.name);
    let index = found.map_err(NetworkError::List)?;
    index.ok_or(NetworkError::List(NetlinkError::Malformed))
}

/// Makes an interface in the container's namespace what it should be.
fn adjust(inside: &Socket, index: u32, interface: &Interface) -> Result<(), NetworkError> {
    let flags = if interface.up { IFF_UP } else { 0 };
    // Its addresses are those of the host's interface, the link-local one as well.
    let by_itself = u16::try_from(libc::AF_INET6).unwrap_or_default();
    let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, flags, IFF_UP))
        .text(libc::IFLA_IFNAME, &interface.name)
        .number(libc::IFLA_MTU, interface.mtu)
        .nest(libc::IFLA_AF_SPEC, |m| {
            m.nest(by_itself, |m| {
                m.attribute(
                    uapi::IFLA_INET6_ADDR_GEN_MODE,
                    &[uapi::IN6_ADDR_GEN_MODE_NONE],
                )
            })
        });
    inside
        .request(&request)
        .map_err(|source| NetworkError::Interface {
            name: interface.name.clone(),
            verb: "configure",
            source,
        })
}

fn check_name(index: usize, name: &str) -> Result<(), NetworkError> {
    let is_name = !name.is_empty()
        && name.len() < libc::IFNAMSIZ
        && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
        && name != "."
        && name != "..";
    if is_name {
        return Ok(());
    }
    Err(NetworkError::Name {
        index,
        name: name.into(),
    })
}

/// The network namespace that a process is in.
fn namespace_of(process: BorrowedFd<'_>) -> Result<OwnedFd, NetworkError> {
    within(process, own_namespace)?.map_err(NetworkError::Namespace)
}

fn own_namespace() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(OWN_NAMESPACE, flags, Mode::empty())?)
}

/// Does something in the network namespace that a process is in: what is opened there belongs to
/// it. Nothing may be awaited meanwhile.
pub(crate) fn within<T>(
    process: BorrowedFd<'_>,
    work: impl FnOnce() -> T,
) -> Result<T, NetworkError> {
    let error = |e: rustix::io::Errno| NetworkError::Namespace(e.into());
    let own = own_namespace().map_err(NetworkError::Namespace)?;
    move_into_thread_name_spaces(process, ThreadNameSpaceType::NETWORK).map_err(error)?;
    let result = work();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network)).map_err(error)?;
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for name in ["eth0", "a", "eth0.100", "abcdefghijklmno"] {
            check_name(0, name).unwrap();
        }
        for name in ["", ".", "..", "a/b", "a b", "a:1", "abcdefghijklmnop"] {
            let error = check_name(3, name).unwrap_err().to_string();
            assert!(error.starts_with("interfaces[3].name: "), "{error}");
        }
    }
}
