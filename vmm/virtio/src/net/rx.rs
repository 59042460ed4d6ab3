//! Packets to the guest.
//!
//! The kernel writes a packet straight into the guest's buffers. How many of them it needs is known
//! only afterwards: with VIRTIO_NET_F_MRG_RXBUF it may be one or fifty. As many are laid out as the
//! packets of late would have needed, and behind them a buffer of the device's own. What ends there
//! is copied on into more of the guest's buffers, and if there are none the packet is held until
//! there are. So a small packet does not pay for the layout of a large one, a stream of large ones is
//! not copied, and a wrong guess costs a copy, but no packet.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use virtio_queue::Error as QueueError;

use super::ring::{Ring, Used};
use super::session::{Flow, Stop};
use super::tap::{MAX_PIECES, Pieces, Tap};
use super::{HEADER_LEN, MAX_PACKET};
use crate::chain::{ChainError, Direction, MAX_SEGMENTS, Segment, collect, window};
use crate::device::GuestRam;
use crate::warn_guest;

/// Packets before others have their turn.
const BUDGET: usize = 64;
/// What is laid out at least: a packet of the usual MTU.
const LEAST: usize = HEADER_LEN + 1514;
/// virtio-v1.3 §5.1.6: where `num_buffers` is in the header. The kernel leaves it out.
const NUM_BUFFERS: usize = 10;

/// The state of one receive queue.
#[derive(Debug)]
pub(super) struct Receiver {
    /// VIRTIO_NET_F_MRG_RXBUF: a packet may have several buffers.
    mergeable: bool,
    /// The tap may have packets.
    pub(super) readable: bool,
    /// A packet waits until the driver adds buffers.
    pub(super) blocked: bool,
    /// A packet waits for the rate limit.
    pub(super) waiting: bool,
    /// How long packets have been of late.
    expected: usize,
    /// A packet that there was no room for; empty if there is none.
    held: Vec<u8>,
}

impl Receiver {
    pub(super) fn new(mergeable: bool) -> Self {
        Self {
            mergeable,
            readable: true,
            blocked: false,
            waiting: false,
            expected: LEAST,
            held: Vec::new(),
        }
    }

    /// Gives packets to the driver until there are none, or it has no buffers.
    pub(super) fn run(
        &mut self,
        ring: &mut Ring,
        memory: &GuestRam,
        tap: &Tap,
        flow: &mut Flow,
        now: Instant,
    ) -> Result<Stop, QueueError> {
        if self.blocked || (!self.readable && self.held.is_empty()) {
            return Ok(Stop::Idle);
        }
        ring.disable_notification(memory)?;
        let mut hand = Hand::default();
        let mut pieces = Pieces::new();
        let mut stop = Stop::More;
        for _ in 0..BUDGET {
            let step = self.step(&mut hand, &mut pieces, ring, memory, tap, flow, now)?;
            if let Some(end) = step {
                stop = end;
                break;
            }
        }
        ring.put_back(hand.chains.len());
        Ok(stop)
    }

    /// Moves one packet; `Some` if that cannot be done now.
    #[expect(clippy::too_many_arguments, reason = "the parts of one turn")]
    fn step<'m>(
        &mut self,
        hand: &mut Hand<'m>,
        pieces: &mut Pieces<'m>,
        ring: &mut Ring,
        memory: &'m GuestRam,
        tap: &Tap,
        flow: &mut Flow,
        now: Instant,
    ) -> Result<Option<Stop>, QueueError> {
        if !self.held.is_empty() {
            return self.deliver_held(hand, ring, memory, flow);
        }
        if !self.readable {
            return Ok(Some(Stop::Idle));
        }
        if let Some(bucket) = &mut flow.rx_bucket {
            if !bucket.ready(now) {
                flow.metrics.rx_waits += u64::from(!self.waiting);
                self.waiting = true;
                return Ok(Some(Stop::Limited(bucket.wait())));
            }
            self.waiting = false;
        }
        let wanted = if self.mergeable { self.expected } else { 1 };
        let gathered = hand.gather(ring, memory, wanted, flow)?;
        let Some(first) = hand.chains.front() else {
            return Ok(Some(self.without_buffers(gathered, flow)));
        };
        let (room, segments) = if self.mergeable {
            (hand.room, hand.segments.len())
        } else {
            (first.room, first.segments)
        };
        pieces.set(hand.segments.iter().take(segments));
        let received = tap.receive(pieces, &mut flow.scratch);
        let Some(length) = self.note(received, flow) else {
            return Ok((!self.readable).then_some(Stop::Idle));
        };
        if let Some(bucket) = &mut flow.rx_bucket {
            bucket.spend(length.saturating_sub(HEADER_LEN));
        }
        let too_long = length > MAX_PACKET || (length > room && !self.mergeable);
        if length < HEADER_LEN || too_long {
            flow.metrics.rx_dropped += 1;
            return Ok(None);
        }
        self.expected = length.max(self.expected - self.expected / 16).max(LEAST);
        let surplus = length.saturating_sub(room);
        if surplus > 0 {
            hand.gather(ring, memory, length, flow)?;
            let surplus = flow.scratch.get(..surplus).unwrap_or_default();
            if hand.room < length {
                self.held = hand.read(room);
                self.held.extend_from_slice(surplus);
                return Ok(None);
            }
            hand.write(room, surplus);
        }
        hand.deliver(length, ring, memory, flow)?;
        Ok(None)
    }

    /// Drops what has come: a link that is down carries nothing, and what it would carry later is old.
    pub(super) fn discard(&mut self, tap: &Tap, flow: &mut Flow) -> Stop {
        (self.blocked, self.waiting) = (false, false);
        if !self.held.is_empty() {
            self.held = Vec::new();
            flow.metrics.rx_dropped += 1;
        }
        let mut nowhere = Pieces::new();
        for _ in 0..BUDGET {
            if !self.readable {
                return Stop::Idle;
            }
            let received = tap.receive(&mut nowhere, &mut flow.scratch);
            if self.note(received, flow).is_some() {
                flow.metrics.rx_dropped += 1;
            }
        }
        Stop::More
    }

    /// The length of the packet that was received, if one was. If none may follow at once, the tap is not readable
    /// from now on.
    fn note(&mut self, received: io::Result<usize>, flow: &mut Flow) -> Option<usize> {
        match received {
            // The end of what stands in for a tap.
            Ok(0) => self.readable = false,
            Ok(length) => return Some(length),
            // A packet that the kernel cannot describe in a header: it is gone, the next may follow.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                flow.metrics.rx_errors += 1;
            }
            Err(error) => {
                self.readable = false;
                if error.kind() != io::ErrorKind::WouldBlock {
                    // The interface is gone; should it come back, the descriptor becomes ready.
                    flow.metrics.rx_errors += 1;
                    warn_guest!("net: cannot receive: {error}");
                }
            }
        }
        None
    }

    fn deliver_held<'m>(
        &mut self,
        hand: &mut Hand<'m>,
        ring: &mut Ring,
        memory: &'m GuestRam,
        flow: &mut Flow,
    ) -> Result<Option<Stop>, QueueError> {
        let gathered = hand.gather(ring, memory, self.held.len(), flow)?;
        if hand.room >= self.held.len() {
            hand.write(0, &self.held);
            hand.deliver(self.held.len(), ring, memory, flow)?;
        } else if gathered == Gathered::Stuck {
            flow.metrics.rx_dropped += 1;
        } else {
            return Ok(Some(self.without_buffers(gathered, flow)));
        }
        self.held = Vec::new();
        Ok(None)
    }

    fn without_buffers(&mut self, gathered: Gathered, flow: &mut Flow) -> Stop {
        if gathered != Gathered::Dry {
            return Stop::More;
        }
        flow.metrics.rx_no_buffers += 1;
        self.blocked = true;
        Stop::Idle
    }
}

/// How a search for buffers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gathered {
    /// There is the room that was wanted.
    Enough,
    /// There are no more; the driver notifies when there are.
    Dry,
    /// There will be no more until some of these are used.
    Stuck,
    /// The driver brings bad ones as fast as they are looked at.
    Later,
}

/// Buffers that were taken from the driver and are not used yet, in order.
#[derive(Default)]
struct Hand<'m> {
    chains: VecDeque<Chain>,
    segments: VecDeque<Segment<'m>>,
    /// Bytes in all of them.
    room: usize,
    /// Kept for the memory they have.
    found: Vec<Segment<'m>>,
    used: Vec<Used>,
}

struct Chain {
    head: u16,
    room: usize,
    segments: usize,
}

impl<'m> Hand<'m> {
    /// Takes buffers until there is room for `wanted` bytes.
    fn gather(
        &mut self,
        ring: &mut Ring,
        memory: &'m GuestRam,
        wanted: usize,
        flow: &mut Flow,
    ) -> Result<Gathered, QueueError> {
        // A driver that adds bad buffers on another processor does not keep the device here.
        for _ in 0..2 * u32::from(ring.size()) {
            if self.room >= wanted {
                return Ok(Gathered::Enough);
            }
            if self.segments.len() + MAX_SEGMENTS > MAX_PIECES
                || self.chains.len() >= ring.size().into()
            {
                return Ok(Gathered::Stuck);
            }
            let Some(chain) = ring.pop(memory)? else {
                if !ring.enable_notification(memory)? {
                    return Ok(Gathered::Dry);
                }
                ring.disable_notification(memory)?;
                continue;
            };
            let head = chain.head_index();
            self.found.clear();
            // virtio-v1.3 §5.1.6.3.1: a buffer holds the header at least.
            let room = match collect(chain, memory, Direction::ToDriver, &mut self.found) {
                Ok(room) if room >= HEADER_LEN => room,
                other => {
                    if !self.chains.is_empty() {
                        // It goes back when those before it have gone: what is put back is the last.
                        ring.put_back(1);
                        return Ok(Gathered::Stuck);
                    }
                    let error = other.err().unwrap_or(ChainError::TooShort);
                    warn_guest!("net: receive queue: {error}");
                    flow.metrics.rx_malformed += 1;
                    ring.add_used(memory, &[Used { head, len: 0 }])?;
                    continue;
                }
            };
            self.chains.push_back(Chain {
                head,
                room,
                segments: self.found.len(),
            });
            self.segments.extend(self.found.drain(..));
            self.room += room;
        }
        Ok(Gathered::Later)
    }

    /// Writes `bytes` from byte `offset` on.
    fn write(&self, offset: usize, mut bytes: &[u8]) {
        for segment in window(&self.segments, offset, bytes.len()) {
            segment.copy_from(bytes);
            bytes = bytes.get(segment.len()..).unwrap_or_default();
        }
    }

    /// Reads the first `length` bytes back. That the guest may have changed them since hurts nobody:
    /// they return to it.
    fn read(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let mut rest = bytes.as_mut_slice();
        for segment in window(&self.segments, 0, length) {
            let copied = segment.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
        bytes
    }

    /// Returns the first buffers to the driver, with a packet of `length` bytes in them.
    fn deliver(
        &mut self,
        length: usize,
        ring: &mut Ring,
        memory: &GuestRam,
        flow: &mut Flow,
    ) -> Result<(), QueueError> {
        self.used.clear();
        let (mut left, mut segments) = (length, 0);
        while left > 0
            && let Some(chain) = self.chains.pop_front()
        {
            let part = left.min(chain.room);
            left -= part;
            segments += chain.segments;
            self.used.push(Used {
                head: chain.head,
                // A packet is not that long.
                len: u32::try_from(part).unwrap_or(u32::MAX),
            });
            self.room -= chain.room;
        }
        // At most as many as the ring has entries.
        let count = u16::try_from(self.used.len()).unwrap_or(u16::MAX);
        self.write(NUM_BUFFERS, &count.to_le_bytes());
        self.segments.drain(..segments);
        flow.metrics.rx_packets += 1;
        flow.metrics.rx_bytes += length.saturating_sub(HEADER_LEN) as u64;
        ring.add_used(memory, &self.used)
    }
}
