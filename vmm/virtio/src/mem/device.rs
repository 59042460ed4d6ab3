//! The device.

use std::io::{Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, RawFd};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::fs::{FallocateFlags, fallocate};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::blocks::{Blocks, Mixture};
use super::request::{Extent, REQUEST_LEN, Request, Response};
use super::{BLOCK, Config, Error, Metrics, State};
use crate::device::{ActivateError, Activation, GuestRam, Interrupt, SavedQueue, VirtioDevice};
use crate::poll::Poller;
use crate::warn_guest;

/// virtio-v1.3 §5: the memory device.
const VIRTIO_ID_MEM: u32 = 24;
/// virtio-v1.3 §5.15.3: the driver must not touch what is not plugged.
const VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE: u32 = 1;
const QUEUE_SIZES: [u16; 1] = [64];
/// Requests before others on the event thread have their turn.
const AT_ONCE: usize = 16;

/// What is watched.
const WAKE: u64 = 0;
const QUEUE: u64 = 1;

/// The device.
#[derive(Debug)]
pub struct Mem {
    config: Config,
    requested_size: u64,
    blocks: Blocks,
    poller: Poller<u64>,
    /// Tells the event thread that there may be something to do.
    wake: EventFd,
    active: Option<Active>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Active {
    queue: Queue,
    kick: EventFd,
    memory: GuestRam,
    interrupt: Interrupt,
}

impl Mem {
    /// A device with nothing in its region.
    ///
    /// # Errors
    /// If `config` does not hold or the process is out of descriptors.
    pub fn new(config: Config) -> Result<Self, Error> {
        Self::restore(State {
            config,
            requested_size: 0,
            plugged: Vec::new(),
        })
    }

    /// A device that goes on from `state`. The memory behind the usable part holds what it held.
    ///
    /// # Errors
    /// As for [`Mem::new`], or if no device has had such a state.
    pub fn restore(state: State) -> Result<Self, Error> {
        let State {
            config,
            requested_size,
            plugged,
        } = state;
        config.validate()?;
        let mut blocks = Blocks::new(config.region_size / BLOCK);
        let usable = config.usable(requested_size) / BLOCK;
        for (first, length) in plugged {
            let end = first.checked_add(length).ok_or(Error::State)?;
            if length == 0 || end > usable {
                return Err(Error::State);
            }
            blocks.set(first..end, true);
        }
        if requested_size > config.region_size || !requested_size.is_multiple_of(BLOCK) {
            return Err(Error::State);
        }
        let poller = Poller::new().map_err(Error::Events)?;
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Events)?;
        (poller.add(&wake, WAKE, EventSet::IN)).map_err(Error::Events)?;
        Ok(Self {
            config,
            requested_size,
            blocks,
            poller,
            wake,
            active: None,
            metrics: Metrics::default(),
        })
    }

    /// What outlives the device.
    #[must_use]
    pub fn state(&self) -> State {
        State {
            config: self.config,
            requested_size: self.requested_size,
            plugged: self.blocks.runs(),
        }
    }

    /// What the device has counted so far.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        self.metrics
    }

    /// How much of the region is plugged, in bytes.
    #[must_use]
    pub fn plugged_size(&self) -> u64 {
        self.blocks.plugged() * BLOCK
    }

    /// How much is requested, in bytes.
    #[must_use]
    pub fn requested_size(&self) -> u64 {
        self.requested_size
    }

    /// Asks the driver to have `size` bytes plugged, rounded up to a block, and no less than it was asked
    /// for before. There must be memory behind the [usable](Config::usable) part for it.
    ///
    /// # Errors
    /// If the region cannot hold so much, or `size` is less than before.
    pub fn request(&mut self, size: u64) -> Result<(), Error> {
        let (least, most) = (self.requested_size, self.config.region_size);
        let rounded = size.checked_next_multiple_of(BLOCK);
        let Some(rounded) = rounded.filter(|size| (least..=most).contains(size)) else {
            return Err(Error::Request {
                got: size,
                least,
                most,
            });
        };
        if rounded != self.requested_size {
            self.requested_size = rounded;
            if let Some(active) = &self.active
                && let Err(error) = active.interrupt.config_change()
            {
                log::error!("mem: cannot raise an interrupt: {error}");
            }
        }
        Ok(())
    }

    /// The descriptor that becomes readable when there is something to do.
    #[must_use]
    pub fn event_source(&self) -> RawFd {
        use std::os::fd::AsRawFd;
        self.poller.as_raw_fd()
    }

    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("mem: cannot signal the event thread: {error}");
        }
    }

    /// Answers what the driver has asked for.
    fn serve(&mut self) {
        if let Err(error) = self.poller.take() {
            log::error!("mem: cannot take events: {error}");
        }
        let Some(mut active) = self.active.take() else {
            return;
        };
        match self.answer(&mut active) {
            Ok(done) => {
                self.active = Some(active);
                if !done {
                    self.wake();
                }
            }
            Err(error) => {
                warn_guest!("mem: queue 0: {error}");
                self.metrics.queue_errors += 1;
                if let Err(error) = active.interrupt.needs_reset() {
                    log::error!("mem: cannot raise an interrupt: {error}");
                }
                self.unwatch(&active);
            }
        }
    }

    /// Answers requests until there are none (`true`), or enough for a turn.
    fn answer(&mut self, active: &mut Active) -> Result<bool, QueueError> {
        let Active {
            queue,
            memory,
            interrupt,
            ..
        } = active;
        let mut left = AT_ONCE;
        loop {
            queue.disable_notification(&*memory)?;
            while left > 0 {
                let Some(chain) = queue.iter(&*memory)?.next() else {
                    break;
                };
                left -= 1;
                let head = chain.head_index();
                let mut request = [0; REQUEST_LEN];
                let read = (chain.clone().reader(&*memory)?).read_exact(&mut request);
                let mut written = 0;
                // A request without room for its answer is not carried out.
                let mut writer = chain.writer(&*memory)?;
                let response = match read {
                    Ok(()) if writer.available_bytes() >= super::RESPONSE_LEN => {
                        self.carry_out(Request::parse(&request), memory)
                    }
                    _ => {
                        warn_guest!("mem: a buffer holds no request");
                        self.metrics.malformed += 1;
                        Response::Error
                    }
                };
                if writer.write_all(&response.bytes()).is_ok() {
                    written = super::RESPONSE_LEN;
                }
                // At most RESPONSE_LEN.
                let written = u32::try_from(written).unwrap_or_default();
                queue.add_used(&*memory, head, written)?;
            }
            if queue.needs_notification(&*memory)?
                && let Err(error) = interrupt.used_buffer()
            {
                log::error!("mem: cannot raise an interrupt: {error}");
            }
            if left == 0 {
                return Ok(false);
            }
            if !queue.enable_notification(&*memory)? {
                return Ok(true);
            }
        }
    }

    fn carry_out(&mut self, request: Option<Request>, memory: &GuestRam) -> Response {
        let response = match request {
            Some(Request::Plug(extent)) => self.plug(extent),
            Some(Request::Unplug(extent)) => self.unplug(extent, memory),
            Some(Request::UnplugAll) => self.unplug_all(memory),
            Some(Request::State(extent)) => match self.usable_blocks(extent) {
                Some(blocks) => Response::State(self.blocks.mixture(blocks)),
                None => Response::Error,
            },
            None => Response::Error,
        };
        match response {
            Response::Ack | Response::State(_) => self.metrics.acknowledged += 1,
            Response::Nack => self.metrics.refused += 1,
            Response::Error => {
                self.metrics.errors += 1;
                warn_guest!("mem: a request that cannot be: {request:?}");
            }
        }
        response
    }

    /// The blocks that a driver means, if it may. virtio-v1.3 §5.15.6.1: aligned, at least one, all of them
    /// in the usable part.
    fn usable_blocks(&self, extent: Extent) -> Option<Range<u64>> {
        let offset = extent.addr.checked_sub(self.config.addr)?;
        let first = offset / BLOCK;
        let end = first.checked_add(extent.nb_blocks.into())?;
        let usable = self.config.usable(self.requested_size) / BLOCK;
        let is_fine = offset.is_multiple_of(BLOCK) && first < end && end <= usable;
        is_fine.then_some(first..end)
    }

    fn plug(&mut self, extent: Extent) -> Response {
        let Some(blocks) = self.usable_blocks(extent) else {
            return Response::Error;
        };
        if self.blocks.mixture(blocks.clone()) != Mixture::None {
            return Response::Error;
        }
        let plugged = self.blocks.plugged() + u64::from(extent.nb_blocks);
        // virtio-v1.3 §5.15.6.2: no more than requested.
        if plugged * BLOCK > self.requested_size {
            return Response::Nack;
        }
        self.blocks.set(blocks, true);
        Response::Ack
    }

    fn unplug(&mut self, extent: Extent, memory: &GuestRam) -> Response {
        let Some(blocks) = self.usable_blocks(extent) else {
            return Response::Error;
        };
        if self.blocks.mixture(blocks.clone()) != Mixture::All {
            return Response::Error;
        }
        self.discard(blocks.clone(), memory);
        self.blocks.set(blocks, false);
        Response::Ack
    }

    fn unplug_all(&mut self, memory: &GuestRam) -> Response {
        // Also what was used without being plugged.
        let usable = self.config.usable(self.requested_size) / BLOCK;
        self.discard(0..usable, memory);
        self.blocks.set(0..self.blocks.count(), false);
        Response::Ack
    }

    /// Takes blocks out of the memory file. What stays in it is the host's loss alone.
    fn discard(&mut self, blocks: Range<u64>, memory: &GuestRam) {
        if blocks.is_empty() {
            return;
        }
        let start = self.config.addr + blocks.start * BLOCK;
        let length = (blocks.end - blocks.start) * BLOCK;
        let region = memory.find_region(GuestAddress(start));
        let place = region.and_then(|region| Some((region.file_offset()?, region)));
        let Some((file, region)) = place else {
            self.metrics.kept += 1;
            return;
        };
        let offset = start - region.start_addr().0;
        let length = length.min(region.len().saturating_sub(offset));
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = fallocate(file.file().as_fd(), flags, file.start() + offset, length) {
            self.metrics.kept += 1;
            log::warn!("mem: cannot give {length} bytes back: {error}");
        }
    }

    fn unwatch(&self, active: &Active) {
        // The transport has a twin of it, so closing would leave it watched.
        if let Err(error) = self.poller.remove(&active.kick) {
            log::error!("mem: cannot stop to watch the queue: {error}");
        }
    }
}

impl VirtioDevice for Mem {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn offered_features(&self) -> u64 {
        1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio-v1.3 §5.15.4: block_size, node_id and padding, addr, region_size, usable_region_size,
        // plugged_size, requested_size; le64 all of them.
        let words = [
            BLOCK,
            0,
            self.config.addr,
            self.config.region_size,
            self.config.usable(self.requested_size),
            self.plugged_size(),
            self.requested_size,
        ];
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut rest = words.into_iter().flat_map(u64::to_le_bytes).skip(offset);
        for byte in data {
            *byte = rest.next().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // virtio-v1.3 §5.15.4: nothing is writable.
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.reset();
        let mut queues = activation.queues.into_iter();
        let Some(requests) = queues.next().filter(|q| q.queue.ready()) else {
            return Err(ActivateError::Queue { index: 0 });
        };
        (self.poller.add(&requests.kick, QUEUE, EventSet::IN)).map_err(ActivateError::Signal)?;
        self.active = Some(Active {
            queue: requests.queue,
            kick: requests.kick,
            memory: activation.memory,
            interrupt: activation.interrupt,
        });
        self.wake.write(1).map_err(ActivateError::Signal)
    }

    /// What is plugged stays plugged: virtio-v1.3 §5.15.5.2.
    fn reset(&mut self) {
        if let Some(active) = self.active.take() {
            self.unwatch(&active);
        }
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

impl MutEventSubscriber for Mem {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new_raw(self.event_source(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            log::error!("mem: cannot watch for events: {error}");
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.fd() == self.event_source() {
            self.serve();
        }
    }
}
