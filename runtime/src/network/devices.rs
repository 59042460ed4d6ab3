//! Network devices of the runtime's namespace that are moved into the sandbox's, where they are
//! connected to its virtual machine as all others are (config-linux.md#network-devices).

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use cloister_netlink::{
    Error as NetlinkError, Message, Received, Socket, address_index, link_header, link_index,
    link_name,
};

use super::scan::{ADDRESS, address_flags, byte, rest};
use super::{Namespace, NetworkError};

/// linux/if_link.h.
const IFLA_NET_NS_FD: u16 = 28;
/// linux/if_addr.h: what an address has beside itself and is to keep.
const KEPT: [u16; 5] = [
    libc::IFA_ADDRESS,
    libc::IFA_LOCAL,
    libc::IFA_BROADCAST,
    libc::IFA_FLAGS,
    IFA_RT_PRIORITY,
];
const IFA_RT_PRIORITY: u16 = 9;
/// What the kernel says of an address by itself.
const STATES: u32 = libc::IFA_F_PERMANENT | libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED;

/// Moves devices, by their names here and there, from this thread's namespace. If one cannot be
/// moved, those before it are brought back.
pub(crate) fn move_in(
    namespace: &Namespace,
    devices: &BTreeMap<String, String>,
) -> Result<(), NetworkError> {
    if devices.is_empty() {
        return Ok(());
    }
    let here = Namespace::open(Path::new("/proc/thread-self/ns/net"))?;
    let mut moved = Vec::new();
    for (name, wanted) in devices {
        match move_device(&here, namespace, name, wanted) {
            Ok(found) => moved.push((found, name)),
            Err(e) => {
                for (found, name) in moved.iter().rev() {
                    // The first error is told.
                    if let Err(e) = move_device(namespace, &here, found, name) {
                        log::error!("{}", crate::text::chain(&e));
                    }
                }
                return Err(e);
            }
        }
    }
    Ok(())
}

/// Moves a device with its addresses, and gives the name that it has got.
fn move_device(
    from: &Namespace,
    to: &Namespace,
    name: &str,
    wanted: &str,
) -> Result<String, NetworkError> {
    let error = |verb| {
        move |source| NetworkError::Move {
            name: name.to_owned(),
            verb,
            source,
        }
    };
    let (old, new) = (from.socket()?, to.socket()?);
    let index = old.find_link(name).map_err(error("be looked for"))?;
    let index = index.ok_or_else(|| NetworkError::NoDevice {
        name: name.to_owned(),
    })?;
    let before = new.links().map_err(error("be moved"))?;
    if find(&before, |link| link_name(link).as_deref() == Some(wanted)).is_some() {
        return Err(NetworkError::NameTaken {
            name: name.to_owned(),
            wanted: wanted.to_owned(),
        });
    }
    let addresses = kept(&old, index).map_err(error("be asked for its addresses"))?;
    let number = to.as_fd().as_raw_fd().cast_unsigned();
    let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, 0, 0))
        .number(IFLA_NET_NS_FD, number)
        .text(libc::IFLA_IFNAME, wanted);
    old.request(&request).map_err(error("be moved"))?;

    let after = new.links().map_err(error("be found again"))?;
    let known: BTreeSet<_> = before
        .iter()
        .map(|link| link_index(&link.payload))
        .collect();
    // From a template the kernel makes the name.
    let found = find(&after, |link| {
        !known.contains(&link_index(link))
            && (wanted.contains('%') || link_name(link).as_deref() == Some(wanted))
    });
    let found = found.and_then(|link| Some((link_index(link)?, link_name(link)?)));
    let (index, found) = found.ok_or_else(|| NetworkError::Gone {
        name: wanted.to_owned(),
    })?;
    for address in &addresses {
        let request = address.at(index);
        new.request(&request).map_err(error("keep its addresses"))?;
    }
    let up = libc::IFF_UP.unsigned_abs();
    let request = Message::new(libc::RTM_NEWLINK, 0, &link_header(index, up, up));
    new.request(&request).map_err(error("be brought up"))?;
    Ok(found)
}

fn find(links: &[Received], is_it: impl Fn(&[u8]) -> bool) -> Option<&[u8]> {
    let mut payloads = links.iter().map(|link| &*link.payload);
    payloads.find(|payload| is_it(payload))
}

/// An address as it was.
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// Asks for it at the interface of an index.
    fn at(&self, index: u32) -> Message {
        let mut header = [0; ADDRESS];
        header[0] = self.family;
        header[1] = self.prefix;
        header[4..].copy_from_slice(&index.to_ne_bytes());
        let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let message = Message::new(libc::RTM_NEWADDR, new, &header);
        let attributes = self.attributes.iter();
        attributes.fold(message, |message, (kind, content)| {
            message.attribute(*kind, content)
        })
    }
}

/// The permanent addresses of global scope, which are those to be kept.
fn kept(socket: &Socket, index: u32) -> Result<Vec<Address>, NetlinkError> {
    let all = socket.dump(libc::RTM_GETADDR, &[0; ADDRESS])?;
    let all = all.iter().map(|address| &*address.payload);
    let all = all.filter(|payload| {
        address_index(payload) == Some(index)
            && byte(payload, 3) == libc::RT_SCOPE_UNIVERSE
            && address_flags(payload) & libc::IFA_F_PERMANENT != 0
    });
    let kept = all.map(|payload| Address {
        family: byte(payload, 0),
        prefix: byte(payload, 1),
        attributes: rest(payload, ADDRESS)
            .filter(|(kind, _)| KEPT.contains(kind))
            .map(|(kind, content)| match kind {
                libc::IFA_FLAGS => {
                    let flags = address_flags(payload) & !STATES;
                    (kind, flags.to_ne_bytes().to_vec())
                }
                _ => (kind, content.to_vec()),
            })
            .collect(),
    });
    Ok(kept.collect())
}

#[cfg(test)]
mod tests;
