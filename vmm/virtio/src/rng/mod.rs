//! The entropy device: virtio-v1.3 §5.4.
//!
//! The one queue carries buffers for the device to fill. They are filled from the host kernel's
//! generator on the event thread, at most [`REQUEST_LIMIT`] bytes a buffer, and at most
//! [`RATE`] bytes a second with bursts of [`BURST`]: a guest cannot keep the event thread busy
//! with it. When the allowance is used up, a timer continues later.

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vmm_sys_util::timerfd::TimerFd;

use crate::device::{ActivateError, Activation, GuestRam, Interrupt, SavedQueue, VirtioDevice};
use crate::kicks::{Kicked, Kicks};
use crate::warn_guest;

/// The most bytes one buffer is filled with.
pub const REQUEST_LIMIT: usize = 4096;
/// Bytes a second.
pub const RATE: u64 = 1 << 20;
/// Bytes that may be taken at once after a quiet time.
pub const BURST: u64 = 64 * 1024;

/// The system calls that the device needs once it has been made, beyond memory allocation and the
/// clock.
pub const SYSCALLS: &[libc::c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_getrandom,
    libc::SYS_read,
    libc::SYS_timerfd_settime,
    libc::SYS_write,
];

const QUEUE_SIZES: [u16; 1] = [64];
/// How long the queue rests once the allowance is used up; at [`RATE`] this brings 10 KiB.
const REST: Duration = Duration::from_millis(10);

/// An entropy device. It has nothing to configure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {}

/// What outlives the device: nothing but its queue, which the transport's state holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {}

/// Why the device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process is out of descriptors.
    #[error("rng: cannot make an event descriptor")]
    Event(#[source] io::Error),
}

/// The device.
#[derive(Debug)]
pub struct Rng {
    kicks: Kicks,
    timer: TimerFd,
    allowance: Allowance,
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    queue: Queue,
    memory: GuestRam,
    interrupt: Interrupt,
}

/// A bucket that fills at [`RATE`] up to [`BURST`].
#[derive(Debug)]
struct Allowance {
    bytes: u64,
    filled: Instant,
}

impl Allowance {
    fn refill(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.filled);
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let gained = micros.saturating_mul(RATE) / 1_000_000;
        if gained > 0 {
            self.bytes = self.bytes.saturating_add(gained).min(BURST);
            self.filled = now;
        }
    }
}

impl Rng {
    /// A device that waits for its driver.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn new(Config {}: Config) -> Result<Self, Error> {
        let timer = TimerFd::new().map_err(|errno| Error::Event(errno.into()))?;
        Ok(Self {
            kicks: Kicks::new().map_err(Error::Event)?,
            timer,
            allowance: Allowance {
                bytes: BURST,
                filled: Instant::now(),
            },
            active: None,
        })
    }

    /// What outlives the device.
    #[must_use]
    pub fn state(&self) -> State {
        State {}
    }

    /// Fills what the driver has made available, as far as the allowance goes.
    fn serve(&mut self) {
        let Some(active) = self.active.as_mut() else {
            return;
        };
        self.allowance.refill(Instant::now());
        match active.fill(&mut self.allowance.bytes) {
            Ok(true) => {}
            Ok(false) => {
                if let Err(error) = self.timer.reset(REST, None) {
                    log::error!("rng: cannot set the timer: {error}");
                }
            }
            Err(error) => {
                warn_guest!("rng: queue 0: {error}");
                if let Err(error) = active.interrupt.needs_reset() {
                    log::error!("rng: cannot raise an interrupt: {error}");
                }
                self.active = None;
            }
        }
    }
}

impl Active {
    /// Fills buffers until there are none (`true`) or the allowance is used up (`false`).
    fn fill(&mut self, allowance: &mut u64) -> Result<bool, QueueError> {
        let mut bytes = [0; REQUEST_LIMIT];
        let mut done = true;
        loop {
            self.queue.disable_notification(&self.memory)?;
            loop {
                if *allowance == 0 {
                    done = false;
                    break;
                }
                let Some(chain) = self.queue.iter(&self.memory)?.next() else {
                    break;
                };
                let head = chain.head_index();
                let mut writer = chain.writer(&self.memory)?;
                let limit = usize::try_from(*allowance).unwrap_or(REQUEST_LIMIT);
                let wanted = writer.available_bytes().min(REQUEST_LIMIT).min(limit);
                let part = bytes.get_mut(..wanted).unwrap_or_default();
                let written = random(part)
                    .and_then(|()| io::Write::write(&mut writer, part))
                    .unwrap_or_else(|error| {
                        warn_guest!("rng: cannot fill a buffer: {error}");
                        0
                    });
                *allowance = allowance.saturating_sub(written as u64);
                // At most REQUEST_LIMIT.
                let written = u32::try_from(written).unwrap_or_default();
                self.queue.add_used(&self.memory, head, written)?;
            }
            if self.queue.needs_notification(&self.memory)?
                && let Err(error) = self.interrupt.used_buffer()
            {
                log::error!("rng: cannot raise an interrupt: {error}");
            }
            if !done || !self.queue.enable_notification(&self.memory)? {
                return Ok(done);
            }
        }
    }
}

/// Fills `bytes` from the host kernel's generator.
fn random(mut bytes: &mut [u8]) -> io::Result<()> {
    use rustix::rand::{GetRandomFlags, getrandom};

    while !bytes.is_empty() {
        let filled = getrandom(&mut *bytes, GetRandomFlags::empty())?;
        bytes = bytes.get_mut(filled..).unwrap_or_default();
    }
    Ok(())
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues.into_iter();
        let Some(requests) = queues.next().filter(|q| q.queue.ready()) else {
            return Err(ActivateError::Queue { index: 0 });
        };
        self.kicks.activate([(0, requests.kick)])?;
        self.active = Some(Active {
            queue: requests.queue,
            memory: activation.memory,
            interrupt: activation.interrupt,
        });
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
        self.kicks.reset();
    }

    fn set_memory(&mut self, memory: GuestRam) {
        if let Some(active) = &mut self.active {
            active.memory = memory;
        }
    }

    fn queue_states(&self) -> Vec<SavedQueue> {
        self.active
            .iter()
            .map(|active| active.queue.state().into())
            .collect()
    }
}

impl MutEventSubscriber for Rng {
    fn init(&mut self, ops: &mut EventOps) {
        self.kicks.init(ops);
        if let Err(error) = ops.add(Events::new(&self.timer, EventSet::IN)) {
            log::error!("rng: cannot watch the timer: {error}");
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match self.kicks.process(events, ops) {
            Kicked::Changed | Kicked::Queue(_) => self.serve(),
            Kicked::Nothing => {}
            Kicked::Foreign if events.fd() == self.timer.as_raw_fd() => {
                if let Err(error) = self.timer.wait() {
                    log::error!("rng: cannot read the timer: {error}");
                }
                self.serve();
            }
            Kicked::Foreign => log::error!("rng: event of an unknown descriptor"),
        }
    }
}
