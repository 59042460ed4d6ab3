//! Packets in descriptor chains.

use std::ops::Range;

use virtio_queue::DescriptorChain;

use super::iovec::IoVecs;
use super::packet::{HEADER_LEN, Header};
use crate::chain::{ChainError, Direction, Segment, collect, window};
use crate::device::GuestRam;

/// The most bytes in one packet to the guest.
const MAX_PAYLOAD: usize = 64 * 1024;

/// A packet from the driver.
#[derive(Debug)]
pub(super) struct TxPacket<'a, 'm> {
    pub(super) header: Header,
    segments: &'a [Segment<'m>],
}

impl<'a, 'm> TxPacket<'a, 'm> {
    /// Reads the header of the packet in `chain`. `segments` is the memory that this needs.
    pub(super) fn parse(
        chain: DescriptorChain<&'m GuestRam>,
        memory: &'m GuestRam,
        segments: &'a mut Vec<Segment<'m>>,
    ) -> Result<Self, ChainError> {
        segments.clear();
        let len = collect(chain, memory, Direction::FromDriver, segments)?;
        let segments = segments.as_slice();
        let mut bytes = [0; HEADER_LEN];
        let mut rest = bytes.as_mut_slice();
        for segment in window(segments, 0, HEADER_LEN) {
            let copied = segment.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
        let header = Header::from_bytes(&bytes);
        if len < HEADER_LEN || len - HEADER_LEN < header.len as usize {
            return Err(ChainError::TooShort);
        }
        Ok(Self { header, segments })
    }

    /// The `len` bytes behind the header.
    pub(super) fn payload(&self) -> Payload<'a, 'm> {
        Payload {
            segments: self.segments,
            skip: HEADER_LEN,
            len: self.header.len,
        }
    }
}

/// The payload of a packet from the driver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Payload<'a, 'm> {
    segments: &'a [Segment<'m>],
    skip: usize,
    len: u32,
}

impl<'a, 'm> Payload<'a, 'm> {
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The memory from byte `offset` to the end.
    pub(super) fn from(&self, offset: usize) -> impl Iterator<Item = Segment<'m>> + use<'a, 'm> {
        let len = self.len as usize;
        window(
            self.segments,
            self.skip + offset,
            len.saturating_sub(offset),
        )
    }
}

/// Buffers that the driver has given for packets to it, all of one operation.
#[derive(Debug, Default)]
pub(super) struct RxBuffers<'m> {
    segments: Vec<Segment<'m>>,
    buffers: Vec<RxBuffer>,
}

/// One of [`RxBuffers`].
#[derive(Debug, Clone)]
pub(super) struct RxBuffer {
    /// The head of the chain.
    pub(super) head: u16,
    /// Room for payload, in bytes; once it has been offered, what of it was.
    pub(super) room: usize,
    segments: Range<usize>,
}

impl<'m> RxBuffers<'m> {
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.buffers.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    pub(super) fn as_slice(&self) -> &[RxBuffer] {
        &self.buffers
    }

    /// Takes the buffer in `chain`. One without room for a header and a byte can carry nothing.
    pub(super) fn add(
        &mut self,
        chain: DescriptorChain<&'m GuestRam>,
        memory: &'m GuestRam,
    ) -> Result<(), ChainError> {
        let head = chain.head_index();
        let start = self.segments.len();
        let room = collect(chain, memory, Direction::ToDriver, &mut self.segments)
            .map(|len| len.saturating_sub(HEADER_LEN));
        match room {
            Ok(0) | Err(_) => {
                self.segments.truncate(start);
                Err(room.err().unwrap_or(ChainError::TooShort))
            }
            Ok(room) => {
                self.buffers.push(RxBuffer {
                    head,
                    room,
                    segments: start..self.segments.len(),
                });
                Ok(())
            }
        }
    }

    /// Adds the payload part of the buffer taken last to `pieces`, which shall hold at most `limit`
    /// bytes. Returns whether the whole of it was added, so that another buffer may follow.
    pub(super) fn offer_last(&mut self, pieces: &mut IoVecs<'m>, limit: usize) -> bool {
        let Some(buffer) = self.buffers.last_mut() else {
            return false;
        };
        let segments = self
            .segments
            .get(buffer.segments.clone())
            .unwrap_or_default();
        let whole = buffer.room.min(MAX_PAYLOAD);
        let len = whole.min(limit.saturating_sub(pieces.bytes()));
        buffer.room = pieces.extend(window(segments, HEADER_LEN, len));
        buffer.room == whole
    }

    /// Writes the header of a buffer.
    pub(super) fn write_header(&self, buffer: &RxBuffer, header: Header) {
        let bytes = header.to_bytes();
        let mut rest = bytes.as_slice();
        for segment in window(self.segments_of(buffer), 0, HEADER_LEN) {
            segment.copy_from(rest);
            rest = rest.get(segment.len()..).unwrap_or_default();
        }
    }

    fn segments_of(&self, buffer: &RxBuffer) -> &[Segment<'m>] {
        self.segments
            .get(buffer.segments.clone())
            .unwrap_or_default()
    }
}
