//! What a driver asks for, and what it is answered: virtio-v1.3 §5.15.6.

use super::blocks::Mixture;

/// The length of `struct virtio_mem_req`.
pub const REQUEST_LEN: usize = 24;
/// The length of `struct virtio_mem_resp`.
pub const RESPONSE_LEN: usize = 10;

/// A range of blocks as a driver names it: nothing about it is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) addr: u64,
    pub(super) nb_blocks: u16,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// VIRTIO_MEM_REQ_PLUG
    Plug(Extent),
    /// VIRTIO_MEM_REQ_UNPLUG
    Unplug(Extent),
    /// VIRTIO_MEM_REQ_UNPLUG_ALL
    UnplugAll,
    /// VIRTIO_MEM_REQ_STATE
    State(Extent),
}

impl Request {
    /// Reads one; `None` if there is no such request.
    pub(super) fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        // le16 type, 6 bytes of padding, le64 addr, le16 nb_blocks, 6 bytes of padding.
        let [a, b, _, _, _, _, _, _, rest @ ..] = bytes;
        let [addr @ .., c, d, _, _, _, _, _, _] = rest;
        let extent = Extent {
            addr: u64::from_le_bytes(*addr),
            nb_blocks: u16::from_le_bytes([*c, *d]),
        };
        match u16::from_le_bytes([*a, *b]) {
            0 => Some(Self::Plug(extent)),
            1 => Some(Self::Unplug(extent)),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State(extent)),
            _ => None,
        }
    }
}

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Response {
    /// VIRTIO_MEM_RESP_ACK
    Ack,
    /// VIRTIO_MEM_RESP_ACK to a question about a state.
    State(Mixture),
    /// VIRTIO_MEM_RESP_NACK: not now.
    Nack,
    /// VIRTIO_MEM_RESP_ERROR: never.
    Error,
}

impl Response {
    /// As it is written.
    pub(super) fn bytes(self) -> [u8; RESPONSE_LEN] {
        let (kind, state) = match self {
            Self::Ack => (0, 0),
            Self::State(Mixture::All) => (0, 0),
            Self::State(Mixture::None) => (0, 1),
            Self::State(Mixture::Some) => (0, 2),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
        };
        // le16 type, 6 bytes of padding, le16 state; all values are below 256.
        [kind, 0, 0, 0, 0, 0, 0, 0, state, 0]
    }
}
