//! Packets from the guest.
//!
//! The kernel reads a packet straight from the guest's memory, checks its header, and takes all of it
//! or nothing. Nothing of a packet is looked at here, so nothing can change between a look and its
//! use.

use std::io;
use std::time::Instant;

use virtio_queue::Error as QueueError;

use super::ring::{Ring, Used};
use super::session::{Flow, Stop};
use super::tap::{Pieces, Tap};
use super::{HEADER_LEN, MAX_PACKET};
use crate::chain::{ChainError, Direction, Segment, collect};
use crate::device::GuestRam;
use crate::warn_guest;

/// Packets before others have their turn.
const BUDGET: usize = 64;

/// The state of one transmit queue.
#[derive(Debug)]
pub(super) struct Transmitter {
    /// The driver may have packets.
    pub(super) ready: bool,
    /// The tap may take packets.
    pub(super) writable: bool,
    /// A packet waits for the rate limit.
    waiting: bool,
}

impl Transmitter {
    pub(super) fn new() -> Self {
        Self {
            ready: true,
            writable: true,
            waiting: false,
        }
    }

    /// Takes packets from the driver until there are none, or the tap takes none.
    pub(super) fn run(
        &mut self,
        ring: &mut Ring,
        memory: &GuestRam,
        tap: &Tap,
        flow: &mut Flow,
        now: Instant,
    ) -> Result<Stop, QueueError> {
        if !self.ready || !self.writable {
            return Ok(Stop::Idle);
        }
        ring.disable_notification(memory)?;
        let mut segments = Vec::new();
        let mut pieces = Pieces::new();
        let mut used = Vec::new();
        let mut stop = Stop::More;
        for _ in 0..BUDGET {
            if let Some(bucket) = &mut flow.tx_bucket {
                if !bucket.ready(now) {
                    flow.metrics.tx_waits += u64::from(!self.waiting);
                    self.waiting = true;
                    stop = Stop::Limited(bucket.wait());
                    break;
                }
                self.waiting = false;
            }
            let Some(chain) = ring.pop(memory)? else {
                if !ring.enable_notification(memory)? {
                    self.ready = false;
                    stop = Stop::Idle;
                    break;
                }
                ring.disable_notification(memory)?;
                continue;
            };
            let head = chain.head_index();
            segments.clear();
            match collect(chain, memory, Direction::FromDriver, &mut segments).and_then(bounded) {
                Ok(length) => {
                    if !send(length, &segments, &mut pieces, tap, flow) {
                        ring.put_back(1);
                        flow.metrics.tx_full += 1;
                        self.writable = false;
                        stop = Stop::Idle;
                        break;
                    }
                }
                Err(error) => {
                    warn_guest!("net: transmit queue: {error}");
                    flow.metrics.tx_malformed += 1;
                }
            }
            used.push(Used { head, len: 0 });
        }
        ring.add_used(memory, &used)?;
        Ok(stop)
    }
}

fn bounded(length: usize) -> Result<usize, ChainError> {
    match length {
        0..=HEADER_LEN => Err(ChainError::TooShort),
        _ if length > MAX_PACKET => Err(ChainError::TooLong),
        _ => Ok(length),
    }
}

/// Sends or drops a packet; `false` if it has to wait.
fn send<'m>(
    length: usize,
    segments: &[Segment<'m>],
    pieces: &mut Pieces<'m>,
    tap: &Tap,
    flow: &mut Flow,
) -> bool {
    if !flow.link_up {
        flow.metrics.tx_dropped += 1;
        return true;
    }
    pieces.set(segments.iter());
    match tap.send(pieces) {
        Ok(_) => {
            let bytes = length.saturating_sub(HEADER_LEN);
            flow.metrics.tx_packets += 1;
            flow.metrics.tx_bytes += bytes as u64;
            if let Some(bucket) = &mut flow.tx_bucket {
                bucket.spend(bytes);
            }
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
        // A header that makes no sense, a frame that is none, an interface that is down or gone.
        Err(error) => {
            warn_guest!("net: the tap refuses a packet: {error}");
            flow.metrics.tx_dropped += 1;
        }
    }
    true
}
