//! From descriptor chains to segments of guest memory.
//!
//! virtio-v1.3 §2.7.4.1: a device must not rely on how a driver cuts a buffer into descriptors. A
//! header may thus be spread over descriptors and share one with the payload, and the payload may
//! have many.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestMemory, Permissions, VolatileSlice};

use crate::device::GuestRam;

/// A piece of guest memory that is contiguous for the host.
pub(crate) type Segment<'m> = VolatileSlice<'m, ()>;

/// The most segments a chain may have: twice as many as the largest queue has descriptors, since
/// one may lie across two regions of memory. Only an indirect table could bring more.
pub(crate) const MAX_SEGMENTS: usize = 512;

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("a descriptor has the wrong direction")]
    Direction,
    #[error("the chain is too short for its packet")]
    TooShort,
    #[error("the chain is too long for a packet")]
    TooLong,
    #[error("the chain has no end")]
    Endless,
    #[error("a descriptor is outside of memory")]
    Memory,
}

/// Which side writes to a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The driver has filled it, the device reads it.
    FromDriver,
    /// The device fills it.
    ToDriver,
}

/// Appends the memory behind a chain to `segments` and returns its length in bytes.
pub(crate) fn collect<'m>(
    mut chain: DescriptorChain<&'m GuestRam>,
    memory: &'m GuestRam,
    direction: Direction,
    segments: &mut Vec<Segment<'m>>,
) -> Result<usize, ChainError> {
    let permissions = match direction {
        Direction::FromDriver => Permissions::Read,
        Direction::ToDriver => Permissions::Write,
    };
    let first = segments.len();
    let mut total = 0;
    // The iterator stops at what it cannot follow: a loop, an index out of range, a bad indirect
    // table. It stops in the same way at a proper end, which alone lacks a successor.
    let mut ended = false;
    for descriptor in chain.by_ref() {
        if descriptor.is_write_only() != (direction == Direction::ToDriver) {
            return Err(ChainError::Direction);
        }
        let len = descriptor.len() as usize;
        let slices = memory
            .get_slices(descriptor.addr(), len, permissions)
            .map_err(|_| ChainError::Memory)?;
        for slice in slices {
            if segments.len() - first == MAX_SEGMENTS {
                return Err(ChainError::Endless);
            }
            segments.push(slice.map_err(|_| ChainError::Memory)?);
        }
        total += len;
        ended = !descriptor.has_next();
    }
    if ended {
        Ok(total)
    } else {
        Err(ChainError::Endless)
    }
}

/// Cuts the bytes from `skip` to `skip + take` out of `segments`.
pub(crate) fn window<'a, 'm: 'a, I: IntoIterator<Item = &'a Segment<'m>>>(
    segments: I,
    mut skip: usize,
    mut take: usize,
) -> impl Iterator<Item = Segment<'m>> + use<'a, 'm, I> {
    segments.into_iter().filter_map(move |segment| {
        let start = skip.min(segment.len());
        skip -= start;
        let len = (segment.len() - start).min(take);
        take -= len;
        if len == 0 {
            return None;
        }
        segment.subslice(start, len).ok()
    })
}
