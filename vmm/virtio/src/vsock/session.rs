//! The virtqueues of a driver: packets in and out, and when who is notified.
//!
//! * tx: the driver notifies when it has added packets and the device has run out of them.
//! * rx: the driver notifies only while a packet waits for a buffer.
//! * Both, and the event queue: one interrupt for everything that a wake-up has done.

use std::io;

use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::chain::{RxBuffer, RxBuffers, TxPacket};
use super::iovec::IoVecs;
use super::muxer::{Muxer, Packet};
use super::packet::{HEADER_LEN, Header};
use super::poll::{Poller, Token};
use crate::chain::{ChainError, Direction, collect, window};
use crate::device::{ActivateError, Activation, ActiveQueue, GuestRam, Interrupt, SavedQueue};

/// Rounds over the queues before others on the event thread have their turn.
const MAX_ROUNDS: usize = 4;

/// The length of a header, in the type of the used ring.
#[expect(clippy::cast_possible_truncation, reason = "it is 44")]
const HEADER_BYTES: u32 = HEADER_LEN as u32;

/// virtio-v1.3 §5.10.6.7: the id of the only event, `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// What a driver has set up.
#[derive(Debug)]
pub(super) struct Session {
    memory: GuestRam,
    interrupt: Interrupt,
    rx: UsedQueue,
    tx: UsedQueue,
    event: UsedQueue,
    kicks: Vec<EventFd>,
    watched: bool,
    broken: bool,
}

/// A queue and whether the driver may have to hear of it.
#[derive(Debug)]
struct UsedQueue {
    queue: Queue,
    used: bool,
}

impl UsedQueue {
    fn add_used(&mut self, memory: &GuestRam, head: u16, len: u32) -> Result<(), QueueError> {
        self.used = true;
        self.queue.add_used(memory, head, len)
    }

    /// Takes back the last `count` chains that were taken.
    fn put_back(&mut self, count: usize) {
        for _ in 0..count {
            self.queue.go_to_previous_position();
        }
    }

    fn needs_notification(&mut self, memory: &GuestRam) -> Result<bool, QueueError> {
        Ok(std::mem::take(&mut self.used) && self.queue.needs_notification(memory)?)
    }
}

impl Session {
    pub(super) fn new(activation: Activation) -> Result<Self, ActivateError> {
        let Activation {
            memory,
            queues,
            interrupt,
            ..
        } = activation;
        let mut kicks = Vec::with_capacity(queues.len());
        let mut queues = queues.into_iter();
        let mut next = |wanted| match queues.next() {
            Some(ActiveQueue { queue, kick }) if queue.is_valid(&memory) => {
                kicks.push(kick);
                Ok(UsedQueue { queue, used: false })
            }
            _ => Err(ActivateError::Queue { index: wanted }),
        };
        let (rx, tx, event) = (next(0)?, next(1)?, next(2)?);
        Ok(Self {
            memory,
            interrupt,
            rx,
            tx,
            event,
            kicks,
            watched: false,
            broken: false,
        })
    }

    /// Starts to watch the kicks, if that has not been done.
    pub(super) fn watch(&mut self, poller: &Poller) -> io::Result<()> {
        if !self.watched {
            self.watched = true;
            for (kick, index) in self.kicks.iter().zip(0..) {
                poller.add(kick, Token::Queue(index), EventSet::IN)?;
            }
        }
        Ok(())
    }

    /// The kicks that are watched.
    pub(super) fn into_watched_kicks(self) -> Vec<EventFd> {
        if self.watched { self.kicks } else { Vec::new() }
    }

    /// Takes guest memory that has become larger.
    pub(super) fn set_memory(&mut self, memory: GuestRam) {
        self.memory = memory;
    }

    pub(super) fn queue_states(&self) -> Vec<SavedQueue> {
        [&self.rx, &self.tx, &self.event]
            .map(|used| SavedQueue::from(used.queue.state()))
            .to_vec()
    }

    /// Stops all work until the driver resets the device, and tells it so.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
        if let Err(error) = self.interrupt.needs_reset() {
            log::error!("vsock: cannot raise an interrupt: {error}");
        }
    }

    /// Moves what can be moved. Returns whether something is left that nobody will announce.
    pub(super) fn run(
        &mut self,
        muxer: &mut Muxer,
        transport_reset: &mut bool,
    ) -> Result<bool, QueueError> {
        if self.broken {
            return Ok(false);
        }
        if *transport_reset {
            *transport_reset = !self.send_transport_reset(muxer)?;
        }
        let mut more = true;
        for _ in 0..MAX_ROUNDS {
            let tx_more = self.transmit(muxer)?;
            let congested = muxer.is_congested();
            let rx_more = self.receive(muxer)?;
            more = tx_more || rx_more || (congested && !muxer.is_congested());
            if !more {
                break;
            }
        }
        self.notify()?;
        Ok(more)
    }

    /// Takes packets from the driver. Returns whether it stopped although there may be more, and
    /// no notification comes for them.
    fn transmit(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        let memory = &self.memory;
        let tx = &mut self.tx;
        let mut segments = Vec::new();
        tx.queue.disable_notification(memory)?;
        for _ in 0..tx.queue.size() {
            if muxer.is_congested() {
                // It goes on when the driver has given buffers for the packets that wait.
                return Ok(false);
            }
            let Some(chain) = tx.queue.iter(memory)?.next() else {
                if !tx.queue.enable_notification(memory)? {
                    return Ok(false);
                }
                tx.queue.disable_notification(memory)?;
                continue;
            };
            let head = chain.head_index();
            match TxPacket::parse(chain, memory, &mut segments) {
                Ok(packet) => muxer.receive(&packet),
                Err(error) => muxer.malformed("tx", error),
            }
            tx.add_used(memory, head, 0)?;
        }
        Ok(true)
    }

    /// Gives packets to the driver. Returns whether it stopped although it could go on.
    fn receive(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        let memory = &self.memory;
        let rx = &mut self.rx;
        let mut buffers = RxBuffers::default();
        rx.queue.disable_notification(memory)?;
        for _ in 0..rx.queue.size() {
            if !muxer.has_packets() {
                return Ok(false);
            }
            buffers.clear();
            if !take_buffer(rx, memory, &mut buffers, muxer)? {
                if !rx.queue.enable_notification(memory)? {
                    return Ok(false);
                }
                rx.queue.disable_notification(memory)?;
                continue;
            }
            match muxer.next_packet() {
                Some(Packet::Control(header)) => {
                    for buffer in buffers.as_slice() {
                        give(rx, memory, &buffers, buffer, header)?;
                    }
                }
                Some(Packet::Payload { key, limit }) => {
                    let mut pieces = IoVecs::new();
                    while buffers.offer_last(&mut pieces, limit)
                        && pieces.bytes() < limit
                        && take_buffer(rx, memory, &mut buffers, muxer)?
                    {}
                    let count = muxer.read(key, pieces);
                    finish(rx, memory, &buffers, count, |len| {
                        muxer.payload_header(key, len)
                    })?;
                }
                None => rx.put_back(1),
            }
        }
        Ok(true)
    }

    /// Tells the driver that its streams are gone. Returns whether it had a buffer for that.
    fn send_transport_reset(&mut self, muxer: &mut Muxer) -> Result<bool, QueueError> {
        let memory = &self.memory;
        let event = &mut self.event;
        for _ in 0..event.queue.size() {
            let Some(chain) = event.queue.iter(memory)?.next() else {
                if !event.queue.enable_notification(memory)? {
                    break;
                }
                continue;
            };
            let head = chain.head_index();
            let mut segments = Vec::new();
            match collect(chain, memory, Direction::ToDriver, &mut segments) {
                Ok(len) if len >= TRANSPORT_RESET.len() => {
                    for segment in window(&segments, 0, TRANSPORT_RESET.len()) {
                        // Every byte of it is the same.
                        segment.copy_from(&TRANSPORT_RESET);
                    }
                    event.add_used(memory, head, 4)?;
                    return Ok(true);
                }
                other => {
                    muxer.malformed("event", other.err().unwrap_or(ChainError::TooShort));
                    event.add_used(memory, head, 0)?;
                }
            }
        }
        Ok(false)
    }

    fn notify(&mut self) -> Result<(), QueueError> {
        let mut needed = false;
        for used in [&mut self.rx, &mut self.tx, &mut self.event] {
            needed |= used.needs_notification(&self.memory)?;
        }
        if needed && let Err(error) = self.interrupt.used_buffer() {
            log::error!("vsock: cannot raise an interrupt: {error}");
        }
        Ok(())
    }
}

/// Takes a buffer of the driver into `buffers`, if there is one. A bad one is given back at once,
/// but not before those taken earlier: they go back in order.
fn take_buffer<'m>(
    rx: &mut UsedQueue,
    memory: &'m GuestRam,
    buffers: &mut RxBuffers<'m>,
    muxer: &mut Muxer,
) -> Result<bool, QueueError> {
    let Some(chain) = rx.queue.iter(memory)?.next() else {
        return Ok(false);
    };
    let head = chain.head_index();
    match buffers.add(chain, memory) {
        Ok(()) => return Ok(true),
        Err(_) if !buffers.is_empty() => rx.put_back(1),
        Err(error) => {
            muxer.malformed("rx", error);
            rx.add_used(memory, head, 0)?;
        }
    }
    Ok(false)
}

/// Gives the driver the buffers that `count` bytes of a stream have filled and takes the others
/// back.
fn finish(
    rx: &mut UsedQueue,
    memory: &GuestRam,
    buffers: &RxBuffers<'_>,
    mut count: usize,
    mut header: impl FnMut(u32) -> Header,
) -> Result<(), QueueError> {
    let mut unused = 0;
    for buffer in buffers.as_slice() {
        let len = count.min(buffer.room);
        count -= len;
        match u32::try_from(len) {
            Ok(len) if len > 0 => give(rx, memory, buffers, buffer, header(len))?,
            _ => unused += 1,
        }
    }
    rx.put_back(unused);
    Ok(())
}

/// Gives the driver a buffer with a packet.
fn give(
    rx: &mut UsedQueue,
    memory: &GuestRam,
    buffers: &RxBuffers<'_>,
    buffer: &RxBuffer,
    header: Header,
) -> Result<(), QueueError> {
    buffers.write_header(buffer, header);
    rx.add_used(memory, buffer.head, HEADER_BYTES + header.len)
}
