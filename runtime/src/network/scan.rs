//! What there is in a network namespace.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use cloister_netlink::{
    Message, Received, Socket, address_index, attributes, link_attributes, link_index, link_name,
    number, text,
};

use super::NetworkError;

/// The index of the loopback interface in every namespace.
const LOOPBACK: u32 = 1;
/// What the names of this runtime's taps begin with.
pub(super) const TAP_PREFIX: &str = "cloister";

/// linux/if_ipvlan: IFLA_IPVLAN_MODE, IPVLAN_MODE_L2.
const IFLA_IPVLAN_MODE: u16 = 1;
const IPVLAN_MODE_L2: u16 = 0;

/// Sizes of fixed headers: `ifaddrmsg`, `rtmsg`, `ndmsg`, `fib_rule_hdr`.
pub(super) const ADDRESS: usize = 8;
const ROUTE: usize = 12;
const NEIGHBOUR: usize = 12;
const RULE: usize = 12;

/// An interface that a guest is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mac: [u8; 6],
    pub(crate) mtu: u32,
    pub(crate) up: bool,
    /// Whether packets pass.
    pub(crate) carrier: bool,
}

#[cfg(test)]
impl Interface {
    /// One that is up, for tests.
    pub(crate) fn example(index: u32) -> Self {
        Self {
            index,
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            carrier: true,
        }
    }
}

/// Everything that a guest's network is made from. What is a list of bytes is as the kernel has
/// said it, less what it would not take back.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) interfaces: Vec<Interface>,
    /// Why there are others that a guest cannot have.
    pub(crate) refused: Vec<NetworkError>,
    /// What a guest is better off without, in words.
    pub(crate) left_out: Vec<String>,
    pub(crate) addresses: Vec<Vec<u8>>,
    pub(crate) neighbours: Vec<Vec<u8>>,
    pub(crate) routes: Vec<Vec<u8>>,
    pub(crate) rules: Vec<Vec<u8>>,
}

impl Scan {
    /// Reads the namespace of `socket`, as far as it is about the interfaces that are `wanted`.
    pub(crate) fn read(
        socket: &Socket,
        wanted: impl Fn(&Interface) -> bool,
    ) -> Result<Self, NetworkError> {
        let list = |what, kind, header: &[u8]| {
            let list = socket.dump(kind, header);
            list.map_err(|source| NetworkError::List { what, source })
        };
        let links = socket.links().map_err(|source| NetworkError::List {
            what: "interfaces",
            source,
        })?;
        let (interfaces, refused) = interfaces(&links);
        let mut this = Self {
            interfaces: interfaces.into_iter().filter(wanted).collect(),
            refused,
            ..Self::default()
        };
        let mut known: BTreeSet<_> = this.interfaces.iter().map(|i| i.index).collect();
        known.insert(LOOPBACK);
        let addresses = list("addresses", libc::RTM_GETADDR, &[0; ADDRESS])?;
        this.addresses = addresses
            .iter()
            .filter_map(|m| address(&known, m))
            .collect();
        this.left_out = (addresses.iter())
            .filter_map(|m| clash(&this.interfaces, m))
            .collect();
        let neighbours = list("neighbours", libc::RTM_GETNEIGH, &[0; NEIGHBOUR])?;
        this.neighbours = (neighbours.iter())
            .filter_map(|m| neighbour(&known, m))
            .collect();
        let routes = list("routes", libc::RTM_GETROUTE, &[0; ROUTE])?;
        this.routes = routes.iter().filter_map(|m| route(&known, m)).collect();
        // A gateway is reached by a route that has none. The order is otherwise the kernel's.
        this.routes.sort_by_key(|route| has_gateway(route));
        let rules = list("rules", libc::RTM_GETRULE, &[0; RULE])?;
        this.rules = rules.iter().filter_map(rule).collect();
        Ok(this)
    }
}

pub(super) fn byte(payload: &[u8], at: usize) -> u8 {
    payload.get(at).copied().unwrap_or_default()
}

fn half(payload: &[u8], at: usize) -> u16 {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u16::from_ne_bytes(*bytes))
}

fn word(payload: &[u8], at: usize) -> u32 {
    let bytes = payload.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

pub(super) fn rest(payload: &[u8], header: usize) -> cloister_netlink::Attributes<'_> {
    attributes(payload.get(header..).unwrap_or_default())
}

/// Those that a guest can have, and why it cannot have others.
fn interfaces(links: &[Received]) -> (Vec<Interface>, Vec<NetworkError>) {
    let (mut interfaces, mut refused) = (Vec::new(), Vec::new());
    for link in links {
        match interface(&link.payload) {
            Ok(found) => interfaces.extend(found),
            Err(e) => refused.push(e),
        }
    }
    // In the order in which they came to be, so that the first slots go to the first.
    interfaces.sort_by_key(|interface| interface.index);
    (interfaces, refused)
}

/// What a guest makes of an interface; `None` if it needs not have it.
fn interface(payload: &[u8]) -> Result<Option<Interface>, NetworkError> {
    let all = link_attributes(payload);
    let flags = word(payload, 8);
    let has = |flag: libc::c_int| flags & flag.unsigned_abs() != 0;
    let info = all.find(libc::IFLA_LINKINFO).map(attributes);
    let kind = info
        .clone()
        .and_then(|info| info.find(libc::IFLA_INFO_KIND));
    let kind = kind.map(text).unwrap_or_default();
    let name = link_name(payload).unwrap_or_default();
    let is_own_tap = kind == "tun" && name.starts_with(TAP_PREFIX);
    // A port of a bridge, bond or VRF in the namespace has that one to speak for it.
    let is_port = all.find(libc::IFLA_MASTER).is_some();
    if has(libc::IFF_LOOPBACK) || is_own_tap || is_port {
        return Ok(None);
    }
    let unsupported = |problem: &str| NetworkError::Unsupported {
        name: name.clone(),
        problem: problem.to_owned(),
    };
    if half(payload, 2) != libc::ARPHRD_ETHER {
        // The kernel's tunnel drivers put one into every namespace, which nobody uses.
        if !has(libc::IFF_UP) {
            return Ok(None);
        }
        return Err(unsupported(
            "it is no Ethernet device (a tunnel, or a tun device), and a virtual machine's interfaces are",
        ));
    }
    let data = info.and_then(|info| info.find(libc::IFLA_INFO_DATA));
    let mode = data.and_then(|data| attributes(data).find(IFLA_IPVLAN_MODE));
    if kind == "ipvlan" && mode.is_some_and(|mode| half(mode, 0) != IPVLAN_MODE_L2) {
        return Err(unsupported(
            "it is an ipvlan device in layer 3 mode, which passes no Ethernet frames; use mode l2",
        ));
    }
    let mac = all
        .find(libc::IFLA_ADDRESS)
        .and_then(|mac| mac.try_into().ok());
    let Some(mac) = mac else {
        return Err(unsupported("it has no Ethernet address"));
    };
    let carrier = all
        .find(IFLA_CARRIER)
        .is_none_or(|carrier| byte(carrier, 0) != 0);
    Ok(Some(Interface {
        index: link_index(payload).unwrap_or_default(),
        name,
        mac,
        mtu: all
            .find(libc::IFLA_MTU)
            .and_then(number)
            .unwrap_or_default(),
        up: has(libc::IFF_UP),
        carrier: carrier && has(libc::IFF_UP),
    }))
}

/// linux/if_link.h.
const IFLA_CARRIER: u16 = 33;

/// A message without what the kernel would not take back, and with other flags where it has any.
fn rewritten(
    payload: &[u8],
    header: &[u8],
    size: usize,
    change: impl Fn(u16, &[u8]) -> Option<Vec<u8>>,
) -> Vec<u8> {
    let message = rest(payload, size).fold(
        Message::new(0, 0, header),
        |message, (kind, content)| match change(kind, content) {
            Some(content) => message.attribute(kind, &content),
            None => message,
        },
    );
    message.payload().to_vec()
}

fn address(known: &BTreeSet<u32>, message: &Received) -> Option<Vec<u8>> {
    let payload = &message.payload;
    let index = address_index(payload).filter(|index| known.contains(index))?;
    let family = byte(payload, 0);
    let is_ipv6 = i32::from(family) == libc::AF_INET6;
    let flags = address_flags(payload);
    // Temporary addresses are the kernel's to make; every namespace's loopback has those it needs.
    let is_temporary = is_ipv6 && flags & libc::IFA_F_TEMPORARY != 0;
    let content = rest(payload, ADDRESS).find(libc::IFA_ADDRESS)?;
    let is_own_loopback =
        index == LOOPBACK && (content.first() == Some(&127) || content == LOOPBACK_IPV6);
    if is_temporary || is_own_loopback || flags & libc::IFA_F_DADFAILED != 0 {
        return None;
    }
    // The host has proven that it is nobody else's, or has not been asked to.
    let unproven = libc::IFA_F_TENTATIVE | libc::IFA_F_OPTIMISTIC;
    let flags = (flags & !unproven) | if is_ipv6 { libc::IFA_F_NODAD } else { 0 };
    let mut header: [u8; ADDRESS] = payload.get(..ADDRESS)?.try_into().ok()?;
    header[2] = flags.to_ne_bytes()[0];
    Some(rewritten(
        payload,
        &header,
        ADDRESS,
        |kind, content| match kind {
            // It is taken away when the host's ends.
            libc::IFA_CACHEINFO => None,
            libc::IFA_FLAGS => Some(flags.to_ne_bytes().to_vec()),
            _ => Some(content.to_vec()),
        },
    ))
}

/// IFA_F_*: in the header there is room for eight of them.
pub(super) fn address_flags(payload: &[u8]) -> u32 {
    let flags = rest(payload, ADDRESS).find(libc::IFA_FLAGS);
    let flags = flags.and_then(number);
    flags.unwrap_or_else(|| byte(payload, 2).into())
}

/// What is wrong with an address that the host's kernel has found to be somebody else's (RFC 4862, section 5.4).
fn clash(interfaces: &[Interface], message: &Received) -> Option<String> {
    let payload = &message.payload;
    let index = address_index(payload)?;
    let interface = interfaces.iter().find(|i| i.index == index)?;
    if address_flags(payload) & libc::IFA_F_DADFAILED == 0 {
        return None;
    }
    let address = rest(payload, ADDRESS).find(libc::IFA_ADDRESS)?;
    let address = Ipv6Addr::from(*address.first_chunk::<16>()?);
    let name = &interface.name;
    Some(format!(
        "interface {name} of the network namespace: its address {address} is in use elsewhere, and left out"
    ))
}

const LOOPBACK_IPV6: &[u8] = &Ipv6Addr::LOCALHOST.octets();

fn neighbour(known: &BTreeSet<u32>, message: &Received) -> Option<Vec<u8>> {
    let payload = &message.payload;
    address_index(payload).filter(|index| *index != LOOPBACK && known.contains(index))?;
    let is_ip = matches!(i32::from(byte(payload, 0)), libc::AF_INET | libc::AF_INET6);
    let is_permanent = half(payload, 8) & libc::NUD_PERMANENT != 0;
    let is_proxy = byte(payload, 10) & libc::NTF_PROXY != 0;
    if !is_ip || !is_permanent || is_proxy {
        return None;
    }
    let header = payload.get(..NEIGHBOUR)?;
    Some(rewritten(payload, header, NEIGHBOUR, |kind, content| {
        let is_wanted = matches!(kind, libc::NDA_DST | libc::NDA_LLADDR);
        is_wanted.then(|| content.to_vec())
    }))
}

fn route(known: &BTreeSet<u32>, message: &Received) -> Option<Vec<u8>> {
    let payload = &message.payload;
    let family = i32::from(byte(payload, 0));
    let all = rest(payload, ROUTE);
    let table = all.find(libc::RTA_TABLE).and_then(number);
    let table = table.unwrap_or_else(|| byte(payload, 4).into());
    // What follows from addresses, each kernel makes by itself.
    let is_own = byte(payload, 5) == libc::RTPROT_KERNEL
        || table == u32::from(libc::RT_TABLE_LOCAL)
        || word(payload, 8) & libc::RTM_F_CLONED != 0;
    let is_ip = matches!(family, libc::AF_INET | libc::AF_INET6);
    let is_kind = matches!(
        byte(payload, 7),
        libc::RTN_UNICAST
            // Of tables that a rule leads to, for what is taken in transit (ip-rule(8)).
            | libc::RTN_LOCAL
            | libc::RTN_BLACKHOLE
            | libc::RTN_UNREACHABLE
            | libc::RTN_PROHIBIT
            | libc::RTN_THROW
    );
    let through = all.find(libc::RTA_OIF).and_then(number);
    let hops = all.find(libc::RTA_MULTIPATH);
    let leads_nowhere = through.is_some_and(|index| !known.contains(&index))
        || hops.is_some_and(|hops| next_hops(known, hops).is_empty())
        // Of an object of its own (ip-nexthop(8)), whose interface is told beside it unless
        // net.ipv4.nexthop_compat_mode is switched off.
        || all.find(RTA_NH_ID).is_some() && through.is_none() && hops.is_none();
    if is_own || !is_ip || !is_kind || leads_nowhere {
        return None;
    }
    let mut header: [u8; ROUTE] = payload.get(..ROUTE)?.try_into().ok()?;
    // The others tell how it is doing.
    let flags = word(payload, 8) & ONLINK;
    header[8..].copy_from_slice(&flags.to_ne_bytes());
    Some(rewritten(
        payload,
        &header,
        ROUTE,
        |kind, content| match kind {
            libc::RTA_CACHEINFO | RTA_EXPIRES | RTA_NH_ID => None,
            libc::RTA_MULTIPATH => Some(next_hops(known, content)),
            _ => Some(content.to_vec()),
        },
    ))
}

/// linux/rtnetlink.h: RTNH_F_ONLINK.
const ONLINK: u32 = 4;
/// linux/rtnetlink.h.
const RTA_EXPIRES: u16 = 23;
/// linux/rtnetlink.h.
const RTA_NH_ID: u16 = 30;
/// linux/rtnetlink.h.
const RTA_VIA: u16 = 18;
/// The size of a `struct rtnexthop` without attributes.
const NEXT_HOP: usize = 8;

/// `struct rtnexthop`, any number, through the interfaces that are `known`, without what tells how they are doing.
fn next_hops(known: &BTreeSet<u32>, mut rest: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    while rest.len() >= NEXT_HOP {
        let length = usize::from(half(rest, 0)).max(NEXT_HOP);
        let (hop, others) = rest.split_at(length.next_multiple_of(4).min(rest.len()));
        if known.contains(&word(hop, 4)) {
            let start = all.len();
            all.extend(hop);
            if let Some(flags) = all.get_mut(start + 2) {
                *flags &= ONLINK.to_ne_bytes()[0];
            }
        }
        rest = others;
    }
    all
}

fn has_gateway(route: &[u8]) -> bool {
    rest(route, ROUTE)
        .any(|(kind, _)| matches!(kind, libc::RTA_GATEWAY | libc::RTA_MULTIPATH | RTA_VIA))
}

/// linux/fib_rules.h: FRA_PROTOCOL.
const FRA_PROTOCOL: u16 = 21;

fn rule(message: &Received) -> Option<Vec<u8>> {
    let payload = &message.payload;
    let is_ip = matches!(i32::from(byte(payload, 0)), libc::AF_INET | libc::AF_INET6);
    let protocol = rest(payload, RULE).find(FRA_PROTOCOL).map(|p| byte(p, 0));
    // Every namespace has those of the kernel.
    if !is_ip || protocol == Some(libc::RTPROT_KERNEL) {
        return None;
    }
    let header = payload.get(..RULE)?;
    Some(rewritten(payload, header, RULE, |_, content| {
        Some(content.to_vec())
    }))
}

#[cfg(test)]
mod tests;
