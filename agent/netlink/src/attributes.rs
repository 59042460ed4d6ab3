//! What follows the fixed header of a message: attributes, each a type, a length and bytes, padded
//! to four (`struct nlattr`, netlink(7)).

/// The upper two bits of an attribute's type are flags: NLA_F_NESTED, NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;

/// The size of an attribute's own header.
pub(crate) const HEADER: usize = 4;

/// The next multiple of NLA_ALIGNTO, which is also NLMSG_ALIGNTO.
pub(crate) const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

/// The attributes in `bytes`, each as its type and its content.
#[must_use]
pub fn attributes(bytes: &[u8]) -> Attributes<'_> {
    Attributes(bytes)
}

/// See [`attributes`]. Ends at the first one that is malformed.
#[derive(Debug, Clone)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The content of the first attribute of a type.
    #[must_use]
    pub fn find(&self, kind: u16) -> Option<&'a [u8]> {
        let mut all = self.clone();
        all.find_map(|(k, content)| (k == kind).then_some(content))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<2>()?;
        let (kind, _) = rest.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_ne_bytes(*length));
        let content = self.0.get(HEADER..length)?;
        self.0 = self.0.get(align(length)..).unwrap_or_default();
        Some((u16::from_ne_bytes(*kind) & TYPE_MASK, content))
    }
}

/// The content of an attribute that is a 32-bit number.
#[must_use]
pub fn number(content: &[u8]) -> Option<u32> {
    content
        .first_chunk()
        .map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The content of an attribute that is a string.
#[must_use]
pub fn text(content: &[u8]) -> String {
    let end = content.iter().position(|&byte| byte == 0);
    let text = content.get(..end.unwrap_or(content.len()));
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}
