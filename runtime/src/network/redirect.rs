//! Two interfaces joined: what arrives at one leaves through the other (tc-mirred(8)).
//!
//! The filters carry a mark in their action's cookie: whose they are. The queueing discipline that they hang from carries
//! one if it was made for them, from its first moment on. So both can be undone by whoever finds them, and what a caller
//! has made stays.

use std::path::Path;

use cloister_netlink::uapi::{
    INGRESS_HANDLE, INGRESS_HOOK, TC_ACT_STOLEN, TC_H_INGRESS, TCA_ACT_COOKIE, TCA_ACT_KIND,
    TCA_ACT_OPTIONS, TCA_EGRESS_REDIR, TCA_MATCHALL_ACT, TCA_MIRRED_PARMS,
};
use cloister_netlink::{
    Attributes, Error as NetlinkError, Message, Socket, attributes, link_header, link_index,
    link_name, text, traffic_header,
};

use super::NetworkError;
use super::scan::Interface;

/// The priority of our filters among those of an interface.
const PRIORITY: u32 = 0xc105;
/// `struct tcmsg`.
const HEADER: usize = 20;
/// The mark of our queueing disciplines: the overhead that their size table adds to a packet's length (tc-stab(8)). It counts
/// for what is sent alone, and nothing is sent through such a discipline, but the kernel keeps it and lists it.
const OVERHEAD: i32 = 0xc105;
/// linux/rtnetlink.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_STAB: u16 = 8;
/// linux/pkt_sched.h.
const TCA_STAB_BASE: u16 = 1;
/// `struct tc_sizespec`: where in it the overhead is, and its size.
const SIZE_OVERHEAD: usize = 4;
const SIZE: usize = 24;
/// `struct tc_mirred`: where in it the other interface is, and its size.
const MIRRED_INDEX: usize = 24;
const MIRRED: usize = 28;

/// Whose filters are whose: the container that made them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    /// That of a container.
    pub(crate) fn new(root: &Path, id: &str) -> Self {
        // FNV-1a: the same in every build.
        let path = root.join(id);
        let hash = path.as_os_str().as_encoded_bytes().iter();
        Self(hash.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        }))
    }

    /// At most 16 bytes (TC_COOKIE_MAX_SIZE).
    fn cookie(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }
}

/// What arrives, of every protocol, at our priority: `tcm_info`.
fn info() -> u32 {
    let protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default();
    PRIORITY << 16 | u32::from(protocol.to_be())
}

/// What came of an attempt to do something to an interface.
fn failed(interface: &Interface, verb: &'static str, source: NetlinkError) -> NetworkError {
    let name = interface.name.clone();
    match source.errno() {
        Some(libc::ENODEV) => NetworkError::Gone { name },
        _ => NetworkError::Change { name, verb, source },
    }
}

/// Makes sure that an interface leads into no virtual machine yet, also not into one of somebody else.
pub(crate) fn release(
    socket: &Socket,
    mark: Mark,
    interface: &Interface,
) -> Result<(), NetworkError> {
    let error = |verb| move |source| failed(interface, verb, source);
    let Some(found) = find(socket, interface.index).map_err(error("look for redirections"))? else {
        return Ok(());
    };
    if found.target != 0 && found.mark != Some(mark) && exists(socket, found.target) {
        return Err(NetworkError::Taken {
            name: interface.name.clone(),
        });
    }
    // Of a sandbox that was killed.
    own_qdiscs(socket)
        .and_then(|own| undo(socket, interface.index, true, &own))
        .map_err(error("remove an old redirection"))
}

/// Joins an interface that was released with the tap `tap`, both ways.
pub(crate) fn join(
    socket: &Socket,
    mark: Mark,
    interface: &Interface,
    tap: u32,
) -> Result<(), NetworkError> {
    let error = |verb| move |source| failed(interface, verb, source);
    redirect(socket, mark, tap, interface.index).map_err(error("redirect its tap"))?;
    redirect(socket, mark, interface.index, tap).map_err(error("redirect it to its tap"))
}

/// Whether there is an interface of that index.
fn exists(socket: &Socket, index: u32) -> bool {
    // Nothing is changed.
    let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0));
    socket.request(&request).is_ok()
}

/// Sends what arrives at one interface out through another.
fn redirect(socket: &Socket, mark: Mark, from: u32, to: u32) -> Result<(), NetlinkError> {
    let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let header = traffic_header(from, INGRESS_HANDLE, TC_H_INGRESS, 0);
    let mut size = [0; SIZE];
    if let Some(place) = size.get_mut(SIZE_OVERHEAD..SIZE_OVERHEAD + 4) {
        place.copy_from_slice(&OVERHEAD.to_ne_bytes());
    }
    let qdisc = Message::new(libc::RTM_NEWQDISC, new, &header)
        .text(TCA_KIND, "ingress")
        .nest(TCA_STAB, |m| m.attribute(TCA_STAB_BASE, &size));
    let owns_qdisc = match socket.request(&qdisc) {
        Ok(()) => true,
        // The caller's, or of a sandbox that was killed before it came to the filter.
        Err(e) if e.errno() == Some(libc::EEXIST) => own_qdiscs(socket)?.contains(&from),
        Err(e) => return Err(e),
    };
    let mut mirred = [0; MIRRED];
    for (at, value) in [(8, TC_ACT_STOLEN), (20, TCA_EGRESS_REDIR)] {
        if let Some(place) = mirred.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }
    if let Some(place) = mirred.get_mut(MIRRED_INDEX..) {
        place.copy_from_slice(&to.to_ne_bytes());
    }
    let header = traffic_header(from, 0, INGRESS_HOOK, info());
    let filter = Message::new(libc::RTM_NEWTFILTER, new, &header)
        .text(TCA_KIND, "matchall")
        .nest(TCA_OPTIONS, |m| {
            m.nest(TCA_MATCHALL_ACT, |m| {
                m.nest(1, |m| {
                    m.text(TCA_ACT_KIND, "mirred")
                        .attribute(TCA_ACT_COOKIE, &mark.cookie())
                        .nest(TCA_ACT_OPTIONS, |m| m.attribute(TCA_MIRRED_PARMS, &mirred))
                })
            })
        });
    let added = socket.request(&filter);
    if added.is_err() && owns_qdisc {
        // The error that is told is the first one.
        let _ = remove_qdisc(socket, from);
    }
    added
}

/// The interfaces whose ingress qdisc was made here.
fn own_qdiscs(socket: &Socket) -> Result<Vec<u32>, NetlinkError> {
    let qdiscs = socket.dump(libc::RTM_GETQDISC, &traffic_header(0, 0, 0, 0))?;
    let own = qdiscs.iter().filter(|qdisc| {
        let all = attributes(qdisc.payload.get(HEADER..).unwrap_or_default());
        let is_ingress = all.find(TCA_KIND).map(text).as_deref() == Some("ingress");
        is_ingress && all.find(TCA_STAB).and_then(overhead) == Some(OVERHEAD)
    });
    Ok(own.filter_map(|qdisc| link_index(&qdisc.payload)).collect())
}

/// What a size table adds to a packet's length.
fn overhead(table: &[u8]) -> Option<i32> {
    let size = attributes(table).find(TCA_STAB_BASE)?;
    let overhead = size.get(SIZE_OVERHEAD..)?.first_chunk()?;
    Some(i32::from_ne_bytes(*overhead))
}

fn remove_qdisc(socket: &Socket, index: u32) -> Result<(), NetlinkError> {
    let header = traffic_header(index, INGRESS_HANDLE, TC_H_INGRESS, 0);
    socket.request(&Message::new(libc::RTM_DELQDISC, 0, &header))
}

/// A filter of this runtime.
#[derive(Debug)]
struct Found {
    /// Whose it is.
    mark: Option<Mark>,
    /// Where it leads; 0 if that is gone.
    target: u32,
}

/// The filter of this runtime at an interface.
fn find(socket: &Socket, index: u32) -> Result<Option<Found>, NetlinkError> {
    let header = traffic_header(index, 0, INGRESS_HOOK, 0);
    let filters = match socket.dump(libc::RTM_GETTFILTER, &header) {
        // There is no queueing discipline to have filters.
        Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::ENOENT)) => return Ok(None),
        filters => filters?,
    };
    let found = filters.iter().find_map(|filter| {
        let info = filter.payload.get(16..)?.first_chunk()?;
        let is_ours = u32::from_ne_bytes(*info) >> 16 == PRIORITY;
        let action = is_ours.then(|| action(&filter.payload)).flatten()?;
        let cookie = action.find(TCA_ACT_COOKIE)?;
        let options = attributes(action.find(TCA_ACT_OPTIONS)?);
        let mirred = options.find(TCA_MIRRED_PARMS)?;
        let target = mirred.get(MIRRED_INDEX..)?.first_chunk()?;
        Some(Found {
            mark: cookie
                .first_chunk()
                .map(|mark| Mark(u64::from_be_bytes(*mark))),
            target: u32::from_ne_bytes(*target),
        })
    });
    Ok(found)
}

/// The one action of a filter, if that is a redirection.
fn action(payload: &[u8]) -> Option<Attributes<'_>> {
    let filter = attributes(payload.get(HEADER..)?);
    let options = attributes(filter.find(TCA_OPTIONS)?);
    let actions = attributes(options.find(TCA_MATCHALL_ACT)?);
    let action = attributes(actions.find(1)?);
    let kind = action.find(TCA_ACT_KIND).map(text)?;
    (kind == "mirred").then_some(action)
}

/// Takes away what is ours at an interface: the qdisc, if it is one of `own`, or else the filter, if there is one.
fn undo(socket: &Socket, index: u32, has_filter: bool, own: &[u32]) -> Result<(), NetlinkError> {
    if own.contains(&index) {
        // Its filters go with it.
        return remove_qdisc(socket, index);
    }
    if !has_filter {
        return Ok(());
    }
    let header = traffic_header(index, 0, INGRESS_HOOK, info());
    let request = Message::new(libc::RTM_DELTFILTER, 0, &header).text(TCA_KIND, "matchall");
    socket.request(&request)
}

/// Takes away the redirection of an interface.
pub(crate) fn part(socket: &Socket, mark: Mark, index: u32) -> Result<(), NetlinkError> {
    match find(socket, index)? {
        Some(found) if found.mark == Some(mark) => undo(socket, index, true, &own_qdiscs(socket)?),
        _ => Ok(()),
    }
}

/// Takes away every redirection that a container has made in the namespace of `socket`, and those that were begun only: a
/// sandbox was killed before it came to the filter.
pub(crate) fn undo_all(socket: &Socket, mark: Mark) -> Result<(), NetworkError> {
    let links = socket.links().map_err(|source| NetworkError::List {
        what: "interfaces",
        source,
    })?;
    let own = own_qdiscs(socket).map_err(|source| NetworkError::List {
        what: "queueing disciplines",
        source,
    })?;
    for link in links {
        let Some(index) = link_index(&link.payload) else {
            continue;
        };
        let undone = find(socket, index).and_then(|found| match found {
            Some(found) if found.mark != Some(mark) => Ok(()),
            found => undo(socket, index, found.is_some(), &own),
        });
        match undone {
            Ok(()) => {}
            Err(e) if e.errno() == Some(libc::ENODEV) => {}
            Err(source) => {
                return Err(NetworkError::Change {
                    name: link_name(&link.payload).unwrap_or_default(),
                    verb: "remove its redirection",
                    source,
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    #[test]
    fn an_interface_that_has_gone_meanwhile_is_named() {
        let interface = Interface {
            index: 998,
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            carrier: true,
        };
        let tested = std::thread::spawn(move || {
            if sys::new_namespaces(libc::CLONE_NEWNET).is_err() {
                // Not for everybody.
                return;
            }
            let socket = Socket::open().unwrap();
            let mark = Mark::new(Path::new("/run/cloister"), "a");
            release(&socket, mark, &interface).unwrap();
            let error = join(&socket, mark, &interface, 999).unwrap_err();
            assert!(
                matches!(&error, NetworkError::Gone { name } if name == "eth0"),
                "{error:?}"
            );
        });
        tested.join().unwrap();
    }

    #[test]
    fn a_mark_is_the_containers_and_lasts() {
        let mark = Mark::new(Path::new("/run/cloister"), "a");
        assert_eq!(mark, Mark::new(Path::new("/run/cloister"), "a"));
        assert_ne!(mark, Mark::new(Path::new("/run/cloister"), "b"));
        assert_ne!(mark, Mark::new(Path::new("/run/other"), "a"));
    }
}
