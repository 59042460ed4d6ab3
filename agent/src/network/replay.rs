//! What the host's kernel lists, said again to this one.

use std::collections::HashMap;

use cloister_netlink::{Error as NetlinkError, Message, Socket};
use cloister_protocol::agent::SetNetworkRequest;

use super::NetworkError;

/// linux/net.h: the loopback interface of every namespace.
const LOOPBACK: u32 = 1;

/// The indices of interfaces on the host, and here.
#[derive(Debug)]
pub(super) struct Indices(HashMap<u32, u32>);

impl Indices {
    pub(super) fn new(pairs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut map: HashMap<_, _> = pairs.into_iter().collect();
        map.insert(LOOPBACK, LOOPBACK);
        Self(map)
    }

    /// Puts this side's index in the place of the host's.
    fn translate(&self, place: &mut [u8]) -> Option<()> {
        let bytes: &mut [u8; 4] = place.first_chunk_mut()?;
        let here = self.0.get(&u32::from_ne_bytes(*bytes))?;
        *bytes = here.to_ne_bytes();
        Some(())
    }
}

/// A kind of thing that is listed, in the order in which they can be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Address,
    Neighbour,
    Route,
    Rule,
}

const KINDS: [Kind; 4] = [Kind::Address, Kind::Neighbour, Kind::Route, Kind::Rule];

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Neighbour => "neighbour",
            Self::Route => "route",
            Self::Rule => "rule",
        }
    }

    /// RTM_NEW* and RTM_DEL*.
    fn requests(self) -> (u16, u16) {
        match self {
            Self::Address => (libc::RTM_NEWADDR, libc::RTM_DELADDR),
            Self::Neighbour => (libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH),
            Self::Route => (libc::RTM_NEWROUTE, libc::RTM_DELROUTE),
            Self::Rule => (libc::RTM_NEWRULE, libc::RTM_DELRULE),
        }
    }

    fn flags(self, message: &[u8]) -> i32 {
        let is_ipv4 = message.first().map(|family| i32::from(*family)) == Some(libc::AF_INET);
        match self {
            // They may have changed in what does not name them.
            Self::Address | Self::Neighbour => libc::NLM_F_CREATE | libc::NLM_F_REPLACE,
            // There may be several to one network, of the same metric: the first one is used. Those of IPv6 are one
            // route of several hops, of which a route that the container has put there must not become one.
            Self::Route if is_ipv4 => libc::NLM_F_CREATE | libc::NLM_F_APPEND,
            Self::Route | Self::Rule => libc::NLM_F_CREATE | libc::NLM_F_EXCL,
        }
    }

    fn of(self, request: &SetNetworkRequest) -> &[Vec<u8>] {
        match self {
            Self::Address => &request.addresses,
            Self::Neighbour => &request.neighbours,
            Self::Route => &request.routes,
            Self::Rule => &request.rules,
        }
    }

    /// The size of its fixed header: `ifaddrmsg`, `ndmsg`, `rtmsg`, `fib_rule_hdr`.
    fn header(self) -> usize {
        match self {
            Self::Address => 8,
            Self::Neighbour | Self::Route | Self::Rule => 12,
        }
    }

    /// Writes a message of the host's as one of this side's; `None` if it is malformed or names an
    /// interface that is not here.
    fn translate(self, indices: &Indices, message: &[u8]) -> Option<Vec<u8>> {
        let mut message = message.to_vec();
        match self {
            Self::Address | Self::Neighbour => indices.translate(message.get_mut(4..)?)?,
            Self::Route | Self::Rule => {}
        }
        let attributes = message.get_mut(self.header()..)?;
        each_attribute(attributes, |kind, content| match (self, kind) {
            (Self::Route, libc::RTA_OIF | libc::RTA_IIF) => indices.translate(content),
            (Self::Route, libc::RTA_MULTIPATH) => next_hops(indices, content),
            _ => Some(()),
        })?;
        Some(message)
    }
}

/// Calls `change` with the type and the content of each attribute.
fn each_attribute(
    mut rest: &mut [u8],
    mut change: impl FnMut(u16, &mut [u8]) -> Option<()>,
) -> Option<()> {
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?);
        change(kind & 0x3fff, rest.get_mut(4..length)?)?;
        let next = length.next_multiple_of(4).min(rest.len());
        rest = rest.get_mut(next..)?;
    }
    Some(())
}

/// `struct rtnexthop`, any number: length, flags, hops, index, attributes.
fn next_hops(indices: &Indices, mut rest: &mut [u8]) -> Option<()> {
    while !rest.is_empty() {
        let length = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        indices.translate(rest.get_mut(4..8)?)?;
        let next = length.max(8).next_multiple_of(4).min(rest.len());
        rest = rest.get_mut(next..)?;
    }
    Some(())
}

/// What was said to this side's kernel, in the host's words.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    lists: [Vec<Vec<u8>>; KINDS.len()],
}

impl Replayed {
    /// Takes away what `request` does not list, and takes over its lists.
    pub(super) fn remove_others(
        &mut self,
        socket: &Socket,
        indices: &Indices,
        request: &SetNetworkRequest,
    ) {
        for (kind, list) in KINDS.into_iter().zip(&mut self.lists).rev() {
            let wanted = kind.of(request);
            for old in list.iter().filter(|old| !wanted.contains(old)) {
                // Its interface has gone, and it with it.
                let Some(message) = kind.translate(indices, old) else {
                    continue;
                };
                let (_, remove) = kind.requests();
                if let Err(e) = socket.request(&request_of(remove, 0, kind, &message)) {
                    // The container may have done it itself, or an address that went before.
                    log::debug!("cannot remove a {}: {e}", kind.name());
                }
            }
            *list = wanted.to_vec();
        }
    }

    /// Adds everything that is not there yet.
    pub(super) fn add_all(&self, socket: &Socket, indices: &Indices) -> Result<(), NetworkError> {
        for (kind, list) in KINDS.into_iter().zip(&self.lists) {
            for (number, message) in list.iter().enumerate() {
                let error = |source| NetworkError::Add {
                    kind: kind.name(),
                    number,
                    source,
                };
                let message = kind.translate(indices, message);
                let message = message.ok_or_else(|| error(NetlinkError::Malformed))?;
                let (add, _) = kind.requests();
                match socket.request(&request_of(add, kind.flags(&message), kind, &message)) {
                    Ok(()) => {}
                    Err(e) if e.errno() == Some(libc::EEXIST) => {}
                    Err(e) => return Err(error(e)),
                }
            }
        }
        Ok(())
    }
}

fn request_of(kind: u16, flags: i32, listed: Kind, message: &[u8]) -> Message {
    let (header, attributes) = message.split_at(listed.header().min(message.len()));
    let request = Message::new(kind, flags, header);
    let all = cloister_netlink::attributes(attributes);
    all.fold(request, |request, (kind, content)| {
        request.attribute(kind, content)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + content.len()).unwrap();
        [&length.to_ne_bytes(), &kind.to_ne_bytes(), content].concat()
    }

    #[test]
    fn indices_are_translated_wherever_they_are() {
        let indices = Indices::new([(7, 70), (8, 80)]);
        let address = [&[2, 24, 0, 0][..], &7_u32.to_ne_bytes()].concat();
        let here = Kind::Address.translate(&indices, &address).unwrap();
        assert_eq!(here[4..8], 70_u32.to_ne_bytes());

        let hop = |index: u32| [&[8, 0, 0, 0][..], &index.to_ne_bytes()].concat();
        let route = [
            vec![0; 12],
            attribute(libc::RTA_OIF, &8_u32.to_ne_bytes()),
            attribute(libc::RTA_MULTIPATH, &[hop(7), hop(8)].concat()),
        ]
        .concat();
        let here = Kind::Route.translate(&indices, &route).unwrap();
        assert_eq!(here[16..20], 80_u32.to_ne_bytes());
        assert_eq!(here[28..32], 70_u32.to_ne_bytes());
        assert_eq!(here[36..40], 80_u32.to_ne_bytes());
    }

    #[test]
    fn several_routes_to_one_network_are_added_once_each() {
        let tested = std::thread::spawn(|| {
            #[expect(deprecated, reason = "of this thread alone, which ends with it")]
            let own = rustix::thread::unshare(rustix::thread::UnshareFlags::NEWNET);
            if own.is_err() {
                // Not for everybody.
                return;
            }
            let socket = Socket::open().unwrap();
            let up = libc::IFF_UP.unsigned_abs();
            let header = cloister_netlink::link_header(LOOPBACK, up, up);
            let request = Message::new(libc::RTM_NEWLINK, 0, &header);
            socket.request(&request).unwrap();
            let to_network = attribute(libc::RTA_DST, &[192, 0, 2, 0]);
            let route = |kind: u8, attributes: Vec<u8>| {
                let (table, static_) = (libc::RT_TABLE_MAIN, libc::RTPROT_STATIC);
                let header = [2, 24, 0, 0, table, static_, 0, kind, 0, 0, 0, 0];
                [header.to_vec(), to_network.clone(), attributes].concat()
            };
            let through = attribute(libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
            let mut replayed = Replayed::default();
            replayed.lists[2] = vec![
                route(libc::RTN_BLACKHOLE, Vec::new()),
                route(libc::RTN_UNICAST, through),
            ];
            let indices = Indices::new([]);
            // At the next change, everything is asked for again.
            for _ in 0..2 {
                replayed.add_all(&socket, &indices).unwrap();
            }
            let all = socket.dump(libc::RTM_GETROUTE, &[0; 12]).unwrap();
            let found = (all.iter())
                .filter(|route| route.payload.windows(8).any(|part| part == to_network));
            assert_eq!(found.count(), 2);
        });
        tested.join().unwrap();
    }

    #[test]
    fn what_names_no_interface_here_is_none() {
        let indices = Indices::new([]);
        let address = [&[2, 24, 0, 0][..], &7_u32.to_ne_bytes()].concat();
        assert_eq!(Kind::Address.translate(&indices, &address), None);
        let loopback = [&[2, 8, 0, 0][..], &1_u32.to_ne_bytes()].concat();
        assert!(Kind::Address.translate(&indices, &loopback).is_some());
    }

    #[test]
    fn malformed_messages_are_none() {
        let indices = Indices::new([(7, 7)]);
        for message in [&[][..], &[0; 3], &[0; 15]] {
            assert_eq!(
                Kind::Route.translate(&indices, message),
                None,
                "{message:?}"
            );
        }
        let long = [vec![0; 12], vec![200, 0, 4, 0]].concat();
        assert_eq!(Kind::Route.translate(&indices, &long), None);
        let zero = [vec![0; 12], vec![0; 4]].concat();
        assert_eq!(Kind::Route.translate(&indices, &zero), None);
    }
}
