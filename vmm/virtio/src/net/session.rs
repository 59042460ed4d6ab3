//! What exists while a driver uses the device: its queues, and how far each has come.
//!
//! * Transmit: the driver notifies when it has added packets and the device has run out of them.
//! * Receive: the driver notifies only while a packet waits for a buffer. As long as one does, or the
//!   rate limit is used up, the tap is not watched.
//! * Neither, for a pair that the kernel moves the packets of.
//! * All queues: one interrupt for everything that a turn has done.

mod handover;

use std::time::{Duration, Instant};

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};
use virtio_queue::Error as QueueError;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::EventFd;

use super::control::{Command, Request};
use super::rate::Bucket;
use super::ring::{Ring, Used};
use super::rx::Receiver;
use super::tap::Tap;
use super::tx::Transmitter;
use super::vhost::Vhost;
use super::{DriverState, Metrics, offload};
use crate::device::{ActivateError, Activation, ActiveQueue, GuestRam, Interrupt, SavedQueue};
use crate::poll::Poller;
use crate::warn_guest;

/// What the device's epoll set watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The device's own event: look at everything.
    Wake,
    /// The time that a rate limit takes.
    Timer,
    /// The kick of the queue with this index.
    Queue(u16),
    /// The tap of the pair with this index.
    Tap(u16),
    /// The kernel has found a queue broken.
    Broken,
}

impl From<Token> for u64 {
    fn from(token: Token) -> Self {
        let (kind, index) = match token {
            Token::Wake => (0, 0),
            Token::Timer => (1, 0),
            Token::Queue(index) => (2, index),
            Token::Tap(index) => (3, index),
            Token::Broken => (4, 0),
        };
        kind << 16 | Self::from(index)
    }
}

impl From<u64> for Token {
    fn from(data: u64) -> Self {
        let index = u16::try_from(data & 0xffff).unwrap_or_default();
        match data >> 16 {
            1 => Self::Timer,
            2 => Self::Queue(index),
            3 => Self::Tap(index),
            4 => Self::Broken,
            _ => Self::Wake,
        }
    }
}

/// The host's side of the device.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) poller: Poller<Token>,
    pub(super) taps: Vec<Tap>,
    /// One a pair, or none.
    pub(super) vhosts: Vec<Vhost>,
    /// Signalled by the kernel if it finds a queue broken.
    pub(super) broken: EventFd,
    pub(super) flow: Flow,
}

/// What all queues have in common.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) link_up: bool,
    /// The virtual machine stands still.
    pub(super) paused: bool,
    pub(super) rx_bucket: Option<Bucket>,
    pub(super) tx_bucket: Option<Bucket>,
    /// Commands that change something.
    pub(super) commands: Bucket,
    pub(super) metrics: Metrics,
    /// Where packets end that are longer than expected.
    pub(super) scratch: Vec<u8>,
}

/// Why a queue has stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// There is nothing to do until something is announced.
    Idle,
    /// There is something to do in this time.
    Limited(Duration),
    /// There may be something to do at once.
    More,
}

/// What is left after a turn.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Something that nobody will announce.
    pub(super) more: bool,
    /// Something that may be done in this time.
    pub(super) wait: Option<Duration>,
}

impl Left {
    fn add(&mut self, stop: Stop) {
        match stop {
            Stop::Idle => {}
            Stop::More => self.more = true,
            Stop::Limited(wait) => {
                self.wait = Some(self.wait.map_or(wait, |other| other.min(wait)));
            }
        }
    }
}

/// A driver's use of the device.
#[derive(Debug)]
pub(super) struct Session {
    memory: GuestRam,
    interrupt: Interrupt,
    features: u64,
    rings: Vec<Ring>,
    kicks: Vec<EventFd>,
    /// The control queue's index, if there is one in use.
    control: Option<usize>,
    /// There may be commands in it.
    commanded: bool,
    /// Those that the driver has set up.
    pairs: Vec<Pair>,
    /// How many of them the driver uses.
    in_use: usize,
    offloads: u64,
    /// How far the kernel had come with a queue is not known.
    lost: bool,
}

#[derive(Debug)]
struct Pair {
    rx: Receiver,
    tx: Transmitter,
    /// What the tap is watched for, if it is.
    watched: Option<EventSet>,
    mover: Mover,
    /// The kernel has refused to be it.
    refused: bool,
}

/// Who moves the packets of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mover {
    Nobody,
    Session,
    Kernel,
}

impl Session {
    /// Takes the queues. Nothing is watched yet.
    pub(super) fn new(activation: Activation) -> Result<Self, ActivateError> {
        let Activation {
            memory,
            features,
            queues,
            interrupt,
        } = activation;
        let has = |bit: u32| features & 1 << bit != 0;
        let (rings, kicks): (Vec<_>, Vec<_>) = queues
            .into_iter()
            .map(|ActiveQueue { queue, kick }| (Ring::new(queue), kick))
            .unzip();
        // virtio-v1.3 §5.1.2: without VIRTIO_NET_F_MQ there is one pair, and the control queue
        // follows it, however many the device has.
        let offered = rings.len() / 2;
        let pairs = if has(VIRTIO_NET_F_MQ) { offered } else { 1 };
        let usable = rings
            .chunks_exact(2)
            .take(pairs)
            .take_while(|pair| pair.iter().all(Ring::ready))
            .count();
        if usable == 0 {
            let index = rings.iter().take_while(|ring| ring.ready()).count();
            return Err(ActivateError::Queue { index });
        }
        let control = (has(VIRTIO_NET_F_CTRL_VQ))
            .then_some(2 * pairs)
            .filter(|index| rings.get(*index).is_some_and(Ring::ready));
        let mergeable = has(VIRTIO_NET_F_MRG_RXBUF);
        Ok(Self {
            memory,
            interrupt,
            features,
            rings,
            kicks,
            control,
            commanded: false,
            pairs: (0..usable)
                .map(|_| Pair {
                    rx: Receiver::new(mergeable),
                    tx: Transmitter::new(),
                    watched: None,
                    mover: Mover::Nobody,
                    refused: false,
                })
                .collect(),
            in_use: 0,
            offloads: 0,
            lost: false,
        })
    }

    /// Starts work with what the driver has commanded before, or with what it begins with.
    pub(super) fn start(
        &mut self,
        host: &mut Host,
        resumed: Option<DriverState>,
    ) -> Result<(), ActivateError> {
        // virtio-v1.3 §5.1.6.5.5, §5.1.6.5.6.1: one pair, and every offload that was agreed on.
        let offloads = resumed.map_or(self.features, |state| state.offloads);
        let pairs = resumed.map_or(1, |state| state.pairs);
        if !self.set_offloads(host, offload::of_guest(offloads)) {
            return Err(refused("TUNSETOFFLOAD"));
        }
        if !self.set_pairs(host, pairs.into()) && !self.set_pairs(host, 1) {
            return Err(refused("TUNSETQUEUE"));
        }
        if let Some(index) = self.control
            && let Some(kick) = self.kicks.get(index)
        {
            let token = Token::Queue(u16::try_from(index).unwrap_or_default());
            (host.poller.add(kick, token, EventSet::IN)).map_err(ActivateError::Signal)?;
        }
        Ok(())
    }

    /// Stops work: nothing is watched any more. The taps are as before the first session.
    pub(super) fn stop(&mut self, host: &mut Host) {
        if let Some(kick) = self.control.and_then(|index| self.kicks.get(index)) {
            // One that was never watched is no error: the start has failed before.
            let _ = host.poller.remove(kick);
        }
        self.leave_pairs(host, 0);
        self.set_offloads(host, 0);
        // What this driver has broken is not the next one's fault; there may be nothing to read.
        let _ = host.broken.read();
    }

    pub(super) fn state(&self) -> DriverState {
        DriverState {
            pairs: u16::try_from(self.in_use).unwrap_or(u16::MAX),
            offloads: self.offloads,
        }
    }

    /// Takes guest memory that has become larger.
    pub(super) fn set_memory(&mut self, host: &mut Host, memory: GuestRam) {
        self.memory = memory;
        self.share_memory(host);
    }

    /// How far the queues have come: exact but for those that the kernel has been given.
    pub(super) fn queue_states(&self) -> Vec<SavedQueue> {
        self.rings.iter().map(Ring::state).collect()
    }

    /// Whether the session cannot go on.
    pub(super) fn is_lost(&self) -> bool {
        self.lost
    }

    pub(super) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Remembers what is possible now.
    pub(super) fn note(&mut self, token: Token, events: EventSet) {
        match token {
            // What is broken ends the session.
            Token::Broken => {}
            Token::Wake | Token::Timer => {
                self.commanded = true;
                for pair in &mut self.pairs {
                    pair.rx.blocked = false;
                    pair.tx.ready = true;
                }
            }
            Token::Queue(index) if self.control == Some(index.into()) => self.commanded = true,
            Token::Queue(index) => {
                if let Some(pair) = self.pairs.get_mut(usize::from(index / 2)) {
                    if index % 2 == 0 {
                        pair.rx.blocked = false;
                    } else {
                        pair.tx.ready = true;
                    }
                }
            }
            Token::Tap(index) => {
                if let Some(pair) = self.pairs.get_mut(usize::from(index)) {
                    // What is wrong is told by the next read or write.
                    let wrong = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
                    pair.rx.readable |= wrong || events.contains(EventSet::IN);
                    pair.tx.writable |= wrong || events.contains(EventSet::OUT);
                }
            }
        }
    }

    /// Moves what can be moved.
    pub(super) fn turn(&mut self, host: &mut Host) -> Result<Left, QueueError> {
        let mut left = Left::default();
        let now = Instant::now();
        left.add(self.obey(host, now)?);
        for index in 0..self.in_use {
            self.reconsider(index, host);
            if let Some(pair) = self
                .pairs
                .get_mut(index)
                .filter(|pair| pair.mover == Mover::Session)
                && let Some([rx, tx]) = self.rings.get_mut(2 * index..2 * index + 2)
                && let Some(tap) = host.taps.get(index)
            {
                let flow = &mut host.flow;
                let sent = flow.metrics.tx_packets;
                left.add(pair.tx.run(tx, &self.memory, tap, flow, now)?);
                // Where the peer is on the same machine its answer is often there by now. It shares
                // an interrupt with what has been sent, and needs no event of its own.
                pair.rx.readable |= flow.metrics.tx_packets != sent;
                left.add(if flow.link_up {
                    pair.rx.run(rx, &self.memory, tap, flow, now)?
                } else {
                    pair.rx.discard(tap, flow)
                });
                let hungry = !pair.rx.blocked && !pair.rx.waiting;
                let mut events = EventSet::OUT;
                events.set(EventSet::IN, hungry);
                self.watch(index, host, Some(events));
            }
        }
        let mut needed = false;
        for ring in &mut self.rings {
            needed |= ring.needs_notification(&self.memory)?;
        }
        if needed && let Err(error) = self.interrupt.used_buffer() {
            log::error!("net: cannot raise an interrupt: {error}");
        }
        Ok(left)
    }

    /// Follows the driver's commands.
    fn obey(&mut self, host: &mut Host, now: Instant) -> Result<Stop, QueueError> {
        let Some(index) = self.control.filter(|_| self.commanded) else {
            return Ok(Stop::Idle);
        };
        let memory = self.memory.clone();
        let mut rounds = 0;
        loop {
            let Some(ring) = self.rings.get_mut(index) else {
                return Ok(Stop::Idle);
            };
            if rounds == ring.size() {
                return Ok(Stop::More);
            }
            rounds += 1;
            let Some(chain) = ring.pop(&memory)? else {
                if !ring.enable_notification(&memory)? {
                    self.commanded = false;
                    return Ok(Stop::Idle);
                }
                continue;
            };
            let head = chain.head_index();
            let mut len = 0;
            match Request::parse(chain, &memory) {
                Ok(request) => {
                    let accepted =
                        (request.command).is_some_and(|command| self.follow(host, command, now));
                    host.flow.metrics.refused_commands += u64::from(!accepted);
                    len = request.answer(accepted);
                }
                Err(error) => {
                    warn_guest!("net: control queue: {error}");
                    host.flow.metrics.refused_commands += 1;
                }
            }
            if let Some(ring) = self.rings.get_mut(index) {
                ring.add_used(&memory, &[Used { head, len }])?;
            }
        }
    }

    /// Follows one command. Each that changes anything takes a lock which the whole host's network shares: a driver
    /// that sends them without end is refused.
    fn follow(&mut self, host: &mut Host, command: Command, now: Instant) -> bool {
        let is_so = match command {
            Command::Pairs(pairs) => self.in_use == usize::from(pairs),
            Command::Offloads(offloads) => self.offloads == offloads,
        };
        if !is_so {
            if !host.flow.commands.ready(now) {
                return false;
            }
            host.flow.commands.spend(1);
        }
        match command {
            Command::Pairs(pairs) => pairs > 0 && (is_so || self.set_pairs(host, pairs.into())),
            Command::Offloads(offloads) => self.change_offloads(host, offloads),
        }
    }

    fn change_offloads(&mut self, host: &Host, offloads: u64) -> bool {
        // virtio-v1.3 §5.1.6.5.6.2: only what was agreed on can be switched on.
        let possible = offload::of_guest(self.features);
        self.features & 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS != 0
            && offloads & !possible == 0
            && self.set_offloads(host, offloads)
    }

    fn set_offloads(&mut self, host: &Host, offloads: u64) -> bool {
        if self.offloads == offloads {
            return true;
        }
        // The setting is the interface's, by whichever descriptor.
        let set = host
            .taps
            .first()
            .map(|tap| tap.set_offload(offload::to_tap(offloads)));
        match set {
            Some(Err(error)) => {
                warn_guest!("net: {error}");
                false
            }
            _ => {
                self.offloads = offloads;
                true
            }
        }
    }

    /// Uses the first `pairs` pairs and no others; if that is not possible, those it used before.
    fn set_pairs(&mut self, host: &mut Host, pairs: usize) -> bool {
        if pairs > self.pairs.len().min(host.taps.len()) {
            return false;
        }
        let before = self.in_use;
        for index in before..pairs {
            // The first stays attached for as long as the device has it.
            if index > 0 && !attach(host, index, true) {
                self.leave_pairs(host, before);
                return false;
            }
            self.in_use = index + 1;
            self.take_up(index, host);
        }
        self.leave_pairs(host, pairs);
        true
    }

    /// Leaves all but the first `pairs` pairs.
    fn leave_pairs(&mut self, host: &mut Host, pairs: usize) {
        for index in (pairs..self.in_use).rev() {
            self.leave(index, host);
            if index > 0 {
                attach(host, index, false);
            }
            self.in_use = index;
        }
    }

    /// Watches a tap for `events`, or no more.
    fn watch(&mut self, index: usize, host: &Host, events: Option<EventSet>) {
        let (Some(pair), Some(tap)) = (self.pairs.get_mut(index), host.taps.get(index)) else {
            return;
        };
        // At most MAX_QUEUE_PAIRS.
        let token = Token::Tap(u16::try_from(index).unwrap_or_default());
        let changed = match (pair.watched, events) {
            (before, after) if before == after => return,
            (None, Some(events)) => host.poller.add(tap, token, events),
            (Some(_), Some(events)) => host.poller.modify(tap, token, events),
            (_, None) => host.poller.remove(tap),
        };
        match changed {
            Ok(()) => pair.watched = events,
            Err(error) => log::error!("net: cannot watch tap {index}: {error}"),
        }
    }
}

fn attach(host: &Host, index: usize, attached: bool) -> bool {
    match host.taps.get(index).map(|tap| tap.set_attached(attached)) {
        Some(Err(error)) => {
            warn_guest!("net: tap {index}: {error}");
            false
        }
        _ => true,
    }
}

fn refused(operation: &'static str) -> ActivateError {
    ActivateError::Backend {
        operation,
        source: "the tap refuses it; the log tells why".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_told_apart() {
        let tokens = [
            Token::Wake,
            Token::Timer,
            Token::Queue(0),
            Token::Queue(16),
            Token::Tap(0),
            Token::Tap(7),
            Token::Broken,
        ];
        for token in tokens {
            assert_eq!(Token::from(u64::from(token)), token);
        }
    }
}
