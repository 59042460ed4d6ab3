//! Commands of the driver: virtio-v1.3 §5.1.6.5.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MQ,
    VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};
use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, Permissions};

use crate::chain::{ChainError, MAX_SEGMENTS, Segment};
use crate::device::GuestRam;

/// The longest command that is understood: a class, a command, and 64 bits.
const LONGEST: usize = 10;

/// What a driver can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// virtio-v1.3 §5.1.6.5.5: use this many queue pairs.
    Pairs(u16),
    /// virtio-v1.3 §5.1.6.5.6: give packets with these offloads, as feature bits.
    Offloads(u64),
}

/// A command and the place for the answer.
#[derive(Debug)]
pub(super) struct Request<'m> {
    /// `None` if it is unknown or too short.
    pub(super) command: Option<Command>,
    answer: Segment<'m>,
}

impl<'m> Request<'m> {
    /// Reads the command in `chain`: the driver's part, of which no more is read than is understood,
    /// and then a byte for the device.
    pub(super) fn parse(
        chain: DescriptorChain<&'m GuestRam>,
        memory: &'m GuestRam,
    ) -> Result<Self, ChainError> {
        let mut bytes = [0; LONGEST];
        let mut length = 0;
        // An indirect table could bring more than any command needs.
        for descriptor in chain.take(MAX_SEGMENTS) {
            let rest = bytes.get_mut(length..).unwrap_or_default();
            let (wanted, permissions) = if descriptor.is_write_only() {
                (1, Permissions::Write)
            } else {
                (rest.len(), Permissions::Read)
            };
            let wanted = wanted.min(descriptor.len() as usize);
            if wanted == 0 {
                continue;
            }
            let slices = memory
                .get_slices(descriptor.addr(), wanted, permissions)
                .map_err(|_| ChainError::Memory)?;
            let mut rest = rest;
            for slice in slices {
                let slice = slice.map_err(|_| ChainError::Memory)?;
                if descriptor.is_write_only() {
                    return Ok(Self {
                        command: decode(bytes.get(..length).unwrap_or_default()),
                        answer: slice,
                    });
                }
                let copied = slice.copy_to(rest);
                rest = rest.get_mut(copied..).unwrap_or_default();
                length += copied;
            }
        }
        Err(ChainError::TooShort)
    }

    /// Writes the answer; returns its length.
    pub(super) fn answer(&self, accepted: bool) -> u32 {
        let answer = low(if accepted {
            VIRTIO_NET_OK
        } else {
            VIRTIO_NET_ERR
        });
        self.answer.copy_from(&[answer]);
        1
    }
}

fn decode(bytes: &[u8]) -> Option<Command> {
    const MQ: u8 = low(VIRTIO_NET_CTRL_MQ);
    const PAIRS_SET: u8 = low(VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
    const OFFLOADS: u8 = low(VIRTIO_NET_CTRL_GUEST_OFFLOADS);
    const OFFLOADS_SET: u8 = low(VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET);

    match bytes {
        [MQ, PAIRS_SET, data @ ..] => Some(Command::Pairs(u16::from_le_bytes(
            data.first_chunk().copied()?,
        ))),
        [OFFLOADS, OFFLOADS_SET, data @ ..] => Some(Command::Offloads(u64::from_le_bytes(
            data.first_chunk().copied()?,
        ))),
        _ => None,
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "classes and commands are bytes"
)]
const fn low(value: u32) -> u8 {
    value as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_understood_and_what_is_not() {
        assert_eq!(decode(&[4, 0, 3, 0]), Some(Command::Pairs(3)));
        assert_eq!(decode(&[4, 0, 3, 1, 9]), Some(Command::Pairs(0x103)));
        let offloads = [5, 0, 0x82, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(decode(&offloads), Some(Command::Offloads(0x182)));
        for bytes in [
            &[][..],
            &[4],
            &[4, 0, 3],
            &[4, 1, 3, 0],
            &offloads[..9],
            &[0, 0, 1],
        ] {
            assert_eq!(decode(bytes), None, "{bytes:?}");
        }
    }
}
