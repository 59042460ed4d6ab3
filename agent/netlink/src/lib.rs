//! Route netlink (rtnetlink(7)): messages built, sent, received, and kept as the kernel wrote them.
//!
//! What the host's kernel says of an address, a route or a rule is told to the guest's kernel in the
//! very same bytes, so that nothing is lost that a parser did not know of. That is what this crate
//! is made for, and why it does not turn messages into structures: a message is its type, its fixed
//! header and its attributes, and both sides share one small reader and writer of those.
//!
//! Calls block, for as long as the kernel takes: it answers a route request at once.

mod attributes;
mod message;
mod socket;

pub use attributes::{Attributes, attributes, number, text};
pub use message::{
    Message, address_index, link_attributes, link_header, link_index, link_name, traffic_header,
};
pub use socket::{Error, Events, Received, Socket};

/// Constants of linux/if_link.h, linux/rtnetlink.h, linux/pkt_cls.h and linux/tc_act that the C
/// library's bindings lack.
pub mod uapi {
    /// `IFLA_NEW_IFINDEX`: the index that an interface takes in the namespace it moves to.
    pub const IFLA_NEW_IFINDEX: u16 = 49;
    /// `IFLA_INET6_ADDR_GEN_MODE`.
    pub const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
    /// `IN6_ADDR_GEN_MODE_NONE`: no link-local address by itself.
    pub const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
    /// `TC_H_INGRESS`, the parent of the ingress qdisc.
    pub const TC_H_INGRESS: u32 = 0xffff_fff1;
    /// The handle of the ingress qdisc.
    pub const INGRESS_HANDLE: u32 = 0xffff_0000;
    /// `TC_H_MIN_INGRESS` of an ingress or clsact qdisc: where packets come in.
    pub const INGRESS_HOOK: u32 = 0xffff_fff2;
    /// `TCA_MATCHALL_ACT`.
    pub const TCA_MATCHALL_ACT: u16 = 2;
    /// `TCA_ACT_KIND`.
    pub const TCA_ACT_KIND: u16 = 1;
    /// `TCA_ACT_OPTIONS`.
    pub const TCA_ACT_OPTIONS: u16 = 2;
    /// `TCA_ACT_COOKIE`.
    pub const TCA_ACT_COOKIE: u16 = 6;
    /// `TCA_MIRRED_PARMS`.
    pub const TCA_MIRRED_PARMS: u16 = 2;
    /// `TCA_EGRESS_REDIR`.
    pub const TCA_EGRESS_REDIR: i32 = 1;
    /// `TC_ACT_STOLEN`.
    pub const TC_ACT_STOLEN: i32 = 4;
}
