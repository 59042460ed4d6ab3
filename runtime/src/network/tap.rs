//! Taps: an interface of the namespace whose other end is a descriptor.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cloister_netlink::{Message, Received, Socket, link_attributes, link_header, link_index};

use super::scan::{Interface, TAP_PREFIX};
use super::{Namespace, NetworkError};
use crate::sys;

/// The device that makes taps.
const TUN: &str = "/dev/net/tun";
/// The device by which the kernel moves their packets.
const VHOST: &str = "/dev/vhost-net";

/// The first kernel whose workers are threads of the process that they work for. Before, they are the kernel's own: a cgroup
/// that has one is never frozen.
const WORKERS_ARE_THREADS: (u32, u32) = (6, 4);

/// A descriptor for each of so many queues by which the kernel can be brought to move their packets; none if this machine has
/// no such thing, or not for us.
pub(crate) fn open_vhost(queues: u8) -> Vec<OwnedFd> {
    let kernel = rustix::system::uname();
    if version(&kernel.release().to_string_lossy()) < Some(WORKERS_ARE_THREADS) {
        return Vec::new();
    }
    let open = |_| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK);
        options.open(VHOST).map(OwnedFd::from)
    };
    let opened = (0..queues).map(open).collect::<io::Result<_>>();
    opened.unwrap_or_else(|e| {
        log::info!("{VHOST}: {e}: the virtual machine's process moves its packets itself");
        Vec::new()
    })
}

/// The first two numbers of a kernel's release.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A tap, which is there for as long as a descriptor of it is open.
#[derive(Debug)]
pub(crate) struct Tap {
    /// One a queue.
    pub(crate) queues: Vec<OwnedFd>,
    /// Its index.
    pub(crate) index: u32,
}

impl Tap {
    /// Makes the tap of a slot for an interface, with as many queues.
    pub(crate) fn new(
        namespace: &Namespace,
        socket: &Socket,
        slot: u8,
        interface: &Interface,
        queues: u8,
    ) -> Result<Self, NetworkError> {
        let name = format!("{TAP_PREFIX}{slot}");
        let error = |source| NetworkError::Tap {
            name: name.clone(),
            interface: interface.name.clone(),
            source,
        };
        let queues = namespace.within(|| {
            (0..queues)
                .map(|queue| {
                    let tun = OpenOptions::new()
                        .read(true)
                        .write(true)
                        .custom_flags(libc::O_NONBLOCK)
                        .open(TUN)
                        .map_err(|e| NetworkError::Tun(Path::new(TUN).to_owned(), e))?;
                    sys::make_tap(&tun, &name, queues > 1, queue == 0).map_err(error)?;
                    Ok(OwnedFd::from(tun))
                })
                .collect::<Result<Vec<_>, _>>()
        })??;
        let index = socket
            .find_link(&name)
            .map_err(|source| NetworkError::List {
                what: "interfaces",
                source,
            })?;
        let index = index.ok_or_else(|| NetworkError::Gone { name: name.clone() })?;
        let up = libc::IFF_UP.unsigned_abs();
        let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, up, up))
            .number(libc::IFLA_MTU, interface.mtu);
        socket
            .request(&request)
            .map_err(|source| NetworkError::Change {
                name: name.clone(),
                verb: "bring it up",
                source,
            })?;
        Ok(Self { queues, index })
    }

    /// Follows a change of the interface's MTU.
    pub(crate) fn set_mtu(
        socket: &Socket,
        index: u32,
        interface: &Interface,
    ) -> Result<(), NetworkError> {
        let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0))
            .number(libc::IFLA_MTU, interface.mtu);
        socket
            .request(&request)
            .map_err(|source| NetworkError::Change {
                name: interface.name.clone(),
                verb: "give its MTU to its tap",
                source,
            })
    }
}

/// What has passed through a tap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

impl Traffic {
    /// To the guest and from it, by the index of a tap that is among `links`.
    pub(crate) fn of(links: &[Received], index: u32) -> Option<[Self; 2]> {
        let link = links
            .iter()
            .find(|link| link_index(&link.payload) == Some(index))?;
        let statistics = link_attributes(&link.payload).find(libc::IFLA_STATS64)?;
        // include/uapi/linux/if_link.h: `struct rtnl_link_stats64` begins with what was received and what was transmitted, in
        // turn. The tap transmits what the guest receives.
        let (numbers, _) = statistics.as_chunks::<8>();
        let mut numbers = numbers.iter().copied().map(u64::from_ne_bytes);
        let (mut to, mut from) = (Self::default(), Self::default());
        for (received, transmitted) in [
            (&mut from.packets, &mut to.packets),
            (&mut from.bytes, &mut to.bytes),
            (&mut from.errors, &mut to.errors),
            (&mut from.dropped, &mut to.dropped),
        ] {
            *received = numbers.next()?;
            *transmitted = numbers.next()?;
        }
        Some([to, from])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_have_versions() {
        assert_eq!(version("6.12.38+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("6.4.0-rc1"), Some((6, 4)));
        assert_eq!(version("5.15-something"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
        assert!(version("6.1.0-37") < Some(WORKERS_ARE_THREADS));
        assert!(version("") < Some(WORKERS_ARE_THREADS));
    }

    #[test]
    fn what_a_tap_transmits_the_guest_receives() {
        let numbers: Vec<u8> = (1..=25_u64).flat_map(u64::to_ne_bytes).collect();
        let link = |index| {
            let message = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0));
            Received {
                kind: libc::RTM_NEWLINK,
                payload: message
                    .attribute(libc::IFLA_STATS64, &numbers)
                    .payload()
                    .to_vec(),
            }
        };
        let [to, from] = Traffic::of(&[link(3), link(7)], 7).unwrap();
        let traffic = |packets, bytes, errors, dropped| Traffic {
            packets,
            bytes,
            errors,
            dropped,
        };
        assert_eq!(from, traffic(1, 3, 5, 7));
        assert_eq!(to, traffic(2, 4, 6, 8));
        assert_eq!(Traffic::of(&[link(3)], 7), None);
    }

    #[test]
    fn a_tap_of_somebody_else_is_not_taken_over() {
        let interface = Interface::example(7);
        let tested = std::thread::spawn(move || {
            if sys::new_namespaces(libc::CLONE_NEWNET).is_err() {
                // Not for everybody.
                return;
            }
            let namespace = Namespace::open(Path::new("/proc/thread-self/ns/net")).unwrap();
            let socket = namespace.socket().unwrap();
            let make = |queues| Tap::new(&namespace, &socket, 0, &interface, queues);
            let first = match make(2) {
                Err(NetworkError::Tun(..)) => return,
                made => made.unwrap(),
            };
            assert_eq!(first.queues.len(), 2);
            // With one queue, and as another of its queues.
            for queues in [1, 2] {
                let error = make(queues).unwrap_err();
                let NetworkError::Tap { name, source, .. } = &error else {
                    panic!("{error:?}");
                };
                assert_eq!(name, "cloister0");
                assert_eq!(source.raw_os_error(), Some(libc::EBUSY));
            }
            drop(first);
            make(1).unwrap();
        });
        tested.join().unwrap();
    }
}
