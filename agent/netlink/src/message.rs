//! Requests.

use crate::attributes::{Attributes, HEADER, align, attributes, text};

/// `struct nlmsghdr`.
pub(crate) const MESSAGE_HEADER: usize = 16;
/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// `struct ifinfomsg`, `struct ifaddrmsg` and `struct ndmsg` have an index behind their first four
/// bytes.
const INDEX_AT: usize = 4;

/// A request that is being written: a fixed header, then attributes.
#[derive(Debug, Clone)]
pub struct Message {
    pub(crate) bytes: Vec<u8>,
}

impl Message {
    /// A request of a type (RTM_*) with flags (NLM_F_*) beside `NLM_F_REQUEST`, and a fixed header.
    #[must_use]
    pub fn new(kind: u16, flags: i32, header: &[u8]) -> Self {
        // The flags of a message are 16 bits.
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // Sequence number and port: set when it is sent.
        bytes.extend([0; 8]);
        bytes.extend(header);
        bytes.resize(align(bytes.len()), 0);
        Self { bytes }
    }

    /// Appends an attribute.
    #[must_use]
    pub fn attribute(mut self, kind: u16, content: &[u8]) -> Self {
        self.push(kind, content);
        self
    }

    /// Appends an attribute that is a 32-bit number.
    #[must_use]
    pub fn number(self, kind: u16, number: u32) -> Self {
        self.attribute(kind, &number.to_ne_bytes())
    }

    /// Appends an attribute that is a string.
    #[must_use]
    pub fn text(self, kind: u16, text: &str) -> Self {
        let mut content = text.as_bytes().to_vec();
        content.push(0);
        self.attribute(kind, &content)
    }

    /// Appends an attribute that holds those that `fill` appends.
    #[must_use]
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.push(kind, &[]);
        let mut this = fill(self);
        let length = u16::try_from(this.bytes.len() - start).unwrap_or(u16::MAX);
        if let Some(place) = this.bytes.get_mut(start..start + 2) {
            place.copy_from_slice(&length.to_ne_bytes());
        }
        this
    }

    /// What has been written so far, without the message's own header.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(MESSAGE_HEADER..).unwrap_or_default()
    }

    fn push(&mut self, kind: u16, content: &[u8]) {
        // A longer one is cut by the kernel's own reader: nothing here is near 64 KiB.
        let length = u16::try_from(HEADER + content.len()).unwrap_or(u16::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(content);
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// `struct ifinfomsg`, for the interface of an index, with flags (IFF_*) and which of them count.
#[must_use]
pub fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    for (at, value) in [(4, index), (8, flags), (12, change)] {
        if let Some(place) = header.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }
    header
}

/// `struct tcmsg`.
#[must_use]
pub fn traffic_header(index: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (at, value) in [(4, index), (8, handle), (12, parent), (16, info)] {
        if let Some(place) = header.get_mut(at..at + 4) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
    }
    header
}

/// What is behind a `struct ifinfomsg`.
#[must_use]
pub fn link_attributes(payload: &[u8]) -> Attributes<'_> {
    attributes(payload.get(LINK_HEADER..).unwrap_or_default())
}

/// The name of the interface that a message is about.
#[must_use]
pub fn link_name(payload: &[u8]) -> Option<String> {
    link_attributes(payload).find(libc::IFLA_IFNAME).map(text)
}

/// The index in a `struct ifinfomsg`.
#[must_use]
pub fn link_index(payload: &[u8]) -> Option<u32> {
    address_index(payload)
}

/// The index in a `struct ifaddrmsg` or a `struct ndmsg`.
#[must_use]
pub fn address_index(payload: &[u8]) -> Option<u32> {
    let index = payload.get(INDEX_AT..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*index))
}
