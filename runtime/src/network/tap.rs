//! Taps: an interface of the namespace whose other end is a descriptor.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use cloister_netlink::{Message, Socket, link_header};

use super::scan::{Interface, TAP_PREFIX};
use super::{Namespace, NetworkError};
use crate::sys;

/// The device that makes taps.
const TUN: &str = "/dev/net/tun";

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

#[cfg(test)]
mod tests {
    use super::*;

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
