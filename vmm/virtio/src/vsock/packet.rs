//! The packet header: virtio-v1.3 §5.10.6, `struct virtio_vsock_hdr`.
//!
//! A header is read out of guest memory once, as bytes, and decoded from the copy, so that nothing
//! the guest does to its memory afterwards changes what has been checked.

/// virtio-v1.3 §5.10.6.2: the host's context id.
pub(super) const HOST_CID: u64 = 2;
/// virtio-v1.3 §5.10.6.2: the socket type of a byte stream.
pub(super) const TYPE_STREAM: u16 = 1;

/// virtio-v1.3 §5.10.6: the operations.
pub(super) mod op {
    /// Asks for a connection.
    pub(crate) const REQUEST: u16 = 1;
    /// Grants one.
    pub(crate) const RESPONSE: u16 = 2;
    /// Ends or refuses one.
    pub(crate) const RST: u16 = 3;
    /// Says in which directions no more bytes will flow.
    pub(crate) const SHUTDOWN: u16 = 4;
    /// Carries bytes of the stream.
    pub(crate) const RW: u16 = 5;
    /// Carries nothing but the sender's buffer space.
    pub(crate) const CREDIT_UPDATE: u16 = 6;
    /// Asks the other side for a credit update.
    pub(crate) const CREDIT_REQUEST: u16 = 7;
}

/// virtio-v1.3 §5.10.6.5: the flags of a SHUTDOWN.
pub(super) mod shutdown {
    /// The sender of the packet receives no more.
    pub(crate) const RCV: u32 = 1;
    /// The sender of the packet sends no more.
    pub(crate) const SEND: u32 = 2;
}

/// The length of a header in bytes.
pub(super) const HEADER_LEN: usize = 44;

/// A decoded header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) type_: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        // Fields are evaluated in the order they are written, which is their order in the packet.
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            type_: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields = self
            .src_cid
            .to_le_bytes()
            .into_iter()
            .chain(self.dst_cid.to_le_bytes())
            .chain(self.src_port.to_le_bytes())
            .chain(self.dst_port.to_le_bytes())
            .chain(self.len.to_le_bytes())
            .chain(self.type_.to_le_bytes())
            .chain(self.op.to_le_bytes())
            .chain(self.flags.to_le_bytes())
            .chain(self.buf_alloc.to_le_bytes())
            .chain(self.fwd_cnt.to_le_bytes());
        for (byte, value) in bytes.iter_mut().zip(fields) {
            *byte = value;
        }
        bytes
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    match bytes.split_first_chunk() {
        Some((head, rest)) => {
            *bytes = rest;
            *head
        }
        None => [0; N],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_specification() {
        let header = Header {
            src_cid: 0x0102_0304_0506_0708,
            dst_cid: 2,
            src_port: 0x1112_1314,
            dst_port: 0x2122_2324,
            len: 0x3132_3334,
            type_: TYPE_STREAM,
            op: op::RW,
            flags: 0x4142_4344,
            buf_alloc: 0x5152_5354,
            fwd_cnt: 0x6162_6364,
        };
        let bytes = header.to_bytes();
        assert_eq!(
            bytes,
            [
                8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0x14, 0x13, 0x12, 0x11, 0x24, 0x23,
                0x22, 0x21, 0x34, 0x33, 0x32, 0x31, 1, 0, 5, 0, 0x44, 0x43, 0x42, 0x41, 0x54, 0x53,
                0x52, 0x51, 0x64, 0x63, 0x62, 0x61,
            ]
        );
        assert_eq!(Header::from_bytes(&bytes), header);
    }
}
