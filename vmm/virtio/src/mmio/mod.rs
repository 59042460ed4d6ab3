//! The virtio-mmio transport: virtio-v1.3 §4.2, version 2 only.
//!
//! A [`Transport`] is the register page through which a driver finds, configures and resets one
//! device. It owns what the two sides share: the pending interrupt causes, one `kick` descriptor a
//! queue, and the interrupt line's descriptor. Who maps the page into a guest wires these:
//!
//! - a write of `n` to [`QUEUE_NOTIFY`] may signal [`Transport::kicks`]`[n]` without coming here;
//! - a signal on [`Transport::line`] raises the device's interrupt.
//!
//! ```text
//!   status written   0 ──▶ ACKNOWLEDGE ──▶ DRIVER ──▶ FEATURES_OK ──▶ DRIVER_OK
//!   what happens     │                                │ features       │ queues checked,
//!                    │                                │ checked        │ device activated
//!                    ◀──────────── 0: reset, from anywhere ────────────┘
//! ```
//!
//! Registers are reached from every vCPU thread. What an interrupt handler and a notification
//! need is atomic; the rest is behind one mutex, always taken before the device's own.
//!
//! Whatever a driver does out of order is ignored with a log line; what leaves the device unusable
//! (queues that are not in guest memory, features that were never agreed) sets DEVICE_NEEDS_RESET.

mod registers;
mod state;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

pub use self::registers::QUEUE_NOTIFY;
use self::registers::*;
pub use self::state::{RestoreError, TransportState};
use crate::device::{Activation, ActiveQueue, GuestRam, Interrupt, SavedQueue, VirtioDevice};
use crate::{chain, warn_guest};

/// The size of a register page in bytes; what lies past the configuration space reads as zero.
pub const PAGE_SIZE: u64 = 0x1000;

/// A device that the transport and the event loop share.
pub type SharedDevice = Arc<Mutex<dyn VirtioDevice>>;

/// The register page of one device.
pub struct Transport {
    device: SharedDevice,
    device_type: u32,
    /// Taken after `registers`, before the device.
    memory: Mutex<GuestRam>,
    interrupt: Interrupt,
    kicks: Vec<EventFd>,
    registers: Mutex<Registers>,
}

/// What the driver has written so far.
#[derive(Debug, Default)]
struct Registers {
    device_features_sel: u32,
    driver_features_sel: u32,
    driver_features: u64,
    queue_sel: u32,
    status: u32,
    queues: Vec<SavedQueue>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport")
            .field("device_type", &self.device_type)
            .field("registers", &self.registers)
            .finish_non_exhaustive()
    }
}

/// A read at `offset` of a page behind which there is no device; writes to it are lost.
pub fn read_empty(offset: u64, data: &mut [u8]) {
    data.fill(0);
    let word = match offset {
        MAGIC_VALUE => MAGIC,
        VERSION_REGISTER => VERSION,
        // virtio-v1.3 §4.2.3.1.1: the driver ignores a device whose DeviceID is 0.
        _ => 0,
    };
    if let Ok(place) = <&mut [u8; 4]>::try_from(data) {
        *place = word.to_le_bytes();
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked has ended the process: panic is abort in what we ship.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport {
    /// The page of a device that no driver has touched yet.
    ///
    /// # Errors
    /// If the process is out of descriptors.
    pub fn new(device: SharedDevice, memory: GuestRam) -> io::Result<Self> {
        let (device_type, queues) = {
            let device = lock(&device);
            let queues: Vec<_> = device.queue_sizes().iter().map(|&s| fresh(s)).collect();
            (device.device_type(), queues)
        };
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let kicks = queues.iter().map(|_| event()).collect::<io::Result<_>>()?;
        Ok(Self {
            device,
            device_type,
            memory: Mutex::new(memory),
            interrupt: Interrupt::new(Arc::new(AtomicU32::new(0)), Arc::new(event()?)),
            kicks,
            registers: Mutex::new(Registers {
                queues,
                ..Registers::default()
            }),
        })
    }

    /// The device behind the page.
    #[must_use]
    pub fn device(&self) -> &SharedDevice {
        &self.device
    }

    /// The descriptors that stand for writes to [`QUEUE_NOTIFY`], by queue index.
    #[must_use]
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The descriptor that raises the device's interrupt when it is signalled.
    #[must_use]
    pub fn line(&self) -> &EventFd {
        self.interrupt.line()
    }

    /// Takes guest memory that has become larger, for the device too. What was there before is where it
    /// was.
    pub fn set_memory(&self, memory: GuestRam) {
        // A driver that starts the device meanwhile starts it before or after, not with what was.
        let _registers = lock(&self.registers);
        lock(&self.memory).clone_from(&memory);
        lock(&self.device).set_memory(memory);
    }

    /// A read by the driver at `offset` in the page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            lock(&self.device).read_config(offset, data);
            return;
        }
        // virtio-v1.3 §4.2.2.2: the driver uses 32-bit wide and aligned accesses.
        let Ok(word) = <&mut [u8; 4]>::try_from(&mut *data) else {
            warn_guest!("virtio-mmio: read of {} bytes at {offset:#x}", data.len());
            data.fill(0);
            return;
        };
        *word = self.read_register(offset).to_le_bytes();
    }

    /// A write by the driver at `offset` in the page.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            if lock(&self.registers).status & status::DRIVER != 0 {
                lock(&self.device).write_config(offset, data);
            }
            return;
        }
        match <[u8; 4]>::try_from(data) {
            Ok(word) => self.write_register(offset, u32::from_le_bytes(word)),
            Err(_) => warn_guest!("virtio-mmio: write of {} bytes at {offset:#x}", data.len()),
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        match offset {
            INTERRUPT_STATUS => return self.interrupt.pending(),
            MAGIC_VALUE => return MAGIC,
            VERSION_REGISTER => return VERSION,
            DEVICE_ID => return self.device_type,
            VENDOR_ID => return VENDOR,
            CONFIG_GENERATION => return self.interrupt.generation().load(Ordering::SeqCst),
            // virtio-v1.3 §4.2.2.1: a region that does not exist has a length of all ones.
            SHM_LEN_LOW | SHM_LEN_HIGH | SHM_BASE_LOW | SHM_BASE_HIGH => return u32::MAX,
            _ => {}
        }
        let registers = lock(&self.registers);
        let queue = registers.selected();
        match offset {
            DEVICE_FEATURES => half(self.offered(), registers.device_features_sel),
            QUEUE_SIZE_MAX => queue.map_or(0, |q| q.max_size.into()),
            QUEUE_READY => queue.map_or(0, |q| q.ready.into()),
            STATUS => registers.status | self.broken_bit(),
            _ => {
                warn_guest!("virtio-mmio: read of register {offset:#x}");
                0
            }
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            QUEUE_NOTIFY => return self.notify(value),
            INTERRUPT_ACK => {
                self.interrupt.status().fetch_and(!value, Ordering::SeqCst);
                return;
            }
            _ => {}
        }
        let mut registers = lock(&self.registers);
        match offset {
            DEVICE_FEATURES_SEL => registers.device_features_sel = value,
            DRIVER_FEATURES_SEL => registers.driver_features_sel = value,
            DRIVER_FEATURES => registers.accept_features(value),
            QUEUE_SEL => registers.queue_sel = value,
            QUEUE_SIZE | QUEUE_READY | QUEUE_DESC_LOW | QUEUE_DESC_HIGH | QUEUE_DRIVER_LOW
            | QUEUE_DRIVER_HIGH | QUEUE_DEVICE_LOW | QUEUE_DEVICE_HIGH => {
                registers.configure_queue(offset, value);
            }
            STATUS => self.set_status(&mut registers, value),
            SHM_SEL => {}
            _ => warn_guest!("virtio-mmio: write of {value:#x} to register {offset:#x}"),
        }
    }

    /// A notification that came as an access to the page instead of a signal.
    fn notify(&self, index: u32) {
        let kick = usize::try_from(index).ok().and_then(|i| self.kicks.get(i));
        match kick.map(|kick| kick.write(1)) {
            Some(Ok(())) => {}
            Some(Err(error)) => warn_guest!("virtio-mmio: cannot signal queue {index}: {error}"),
            None => warn_guest!("virtio-mmio: notification of queue {index}, which does not exist"),
        }
    }

    /// What the device offers, and what every device behind this transport offers.
    fn offered(&self) -> u64 {
        lock(&self.device).offered_features() | 1 << VIRTIO_F_VERSION_1
    }

    fn broken_bit(&self) -> u32 {
        if self.interrupt.broken().load(Ordering::SeqCst) {
            status::DEVICE_NEEDS_RESET
        } else {
            0
        }
    }

    fn set_status(&self, registers: &mut Registers, value: u32) {
        use status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

        if value == 0 {
            self.reset(registers);
            return;
        }
        let value = value & !DEVICE_NEEDS_RESET;
        let old = registers.status;
        // virtio-v1.3 §2.1.1: the driver must not clear a bit but by a reset.
        if old & !value != 0 {
            warn_guest!("virtio-mmio: status {old:#x} cannot become {value:#x}");
            return;
        }
        let added = value & !old;
        let had = |bits: u32| old & bits == bits;
        // virtio-v1.3 §3.1.1: the order of initialization. The first two steps may come at once.
        let in_order = (added & DRIVER == 0 || value & ACKNOWLEDGE != 0)
            && (added & FEATURES_OK == 0 || had(ACKNOWLEDGE | DRIVER))
            && (added & DRIVER_OK == 0 || had(ACKNOWLEDGE | DRIVER | FEATURES_OK));
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        if !in_order || added & !known != 0 {
            warn_guest!("virtio-mmio: status {old:#x} cannot become {value:#x}");
            return;
        }
        let mut agreed = value;
        if added & FEATURES_OK != 0 && !self.acceptable(registers.driver_features) {
            // virtio-v1.3 §2.2.2: the device leaves FEATURES_OK clear if it refuses.
            agreed &= !FEATURES_OK;
        }
        registers.status = agreed;
        if agreed & !old & DRIVER_OK != 0 {
            self.activate(registers);
        }
    }

    fn acceptable(&self, features: u64) -> bool {
        let offered = self.offered();
        let surplus = features & !offered;
        if surplus != 0 {
            warn_guest!("virtio-mmio: features {surplus:#x} were not offered");
        }
        // virtio-v1.3 §6.1: a driver that does not accept VIRTIO_F_VERSION_1 speaks the legacy
        // interface.
        surplus == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }

    fn activate(&self, registers: &mut Registers) {
        let outcome = self.take_queues(registers).and_then(|queues| {
            let activation = Activation {
                memory: lock(&self.memory).clone(),
                features: registers.driver_features,
                queues,
                interrupt: self.interrupt.clone(),
            };
            let activated = lock(&self.device).activate(activation);
            activated.map_err(|error| io::Error::other(chain(&error)))
        });
        if let Err(error) = outcome {
            warn_guest!(
                "virtio-mmio: device {} cannot start: {error}",
                self.device_type
            );
            lock(&self.device).reset();
            if let Err(error) = self.interrupt.needs_reset() {
                warn_guest!("virtio-mmio: cannot raise an interrupt: {error}");
            }
        }
    }

    /// Makes working queues of what the driver has configured.
    fn take_queues(&self, registers: &mut Registers) -> io::Result<Vec<ActiveQueue>> {
        let memory = lock(&self.memory).clone();
        let event_idx = registers.driver_features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        let mut active = Vec::with_capacity(registers.queues.len());
        for (index, (saved, kick)) in registers.queues.iter_mut().zip(&self.kicks).enumerate() {
            saved.event_idx = event_idx;
            let queue = Queue::try_from(*saved)
                .map_err(|error| io::Error::other(format!("queue {index}: {error}")))?;
            if saved.ready && !queue.is_valid(&memory) {
                return Err(io::Error::other(format!(
                    "queue {index}: not in guest memory"
                )));
            }
            active.push(ActiveQueue {
                queue,
                kick: kick.try_clone()?,
            });
        }
        Ok(active)
    }

    fn reset(&self, registers: &mut Registers) {
        if registers.status & status::DRIVER_OK != 0 {
            lock(&self.device).reset();
        }
        let queues = registers.queues.iter().map(|q| fresh(q.max_size)).collect();
        *registers = Registers {
            queues,
            ..Registers::default()
        };
        // virtio-v1.3 §4.2.2.1: upon reset the device clears InterruptStatus and ready bits.
        self.interrupt.status().store(0, Ordering::SeqCst);
        self.interrupt.broken().store(false, Ordering::SeqCst);
        self.interrupt.used_elsewhere(false);
    }
}

impl Registers {
    fn selected(&self) -> Option<&SavedQueue> {
        self.queues.get(usize::try_from(self.queue_sel).ok()?)
    }

    fn accept_features(&mut self, value: u32) {
        if self.status & status::FEATURES_OK != 0 {
            warn_guest!("virtio-mmio: features written after they were agreed on");
            return;
        }
        match self.driver_features_sel {
            0 => self.driver_features = self.driver_features >> 32 << 32 | u64::from(value),
            1 => {
                self.driver_features =
                    self.driver_features & u64::from(u32::MAX) | u64::from(value) << 32;
            }
            // Features past bit 63 do not exist; a driver may write zeros there.
            _ if value == 0 => {}
            _ => warn_guest!("virtio-mmio: features past bit 63"),
        }
    }

    fn configure_queue(&mut self, offset: u64, value: u32) {
        let configurable = self.status & (status::FEATURES_OK | status::DRIVER_OK);
        let index = self.queue_sel;
        let queue = usize::try_from(index)
            .ok()
            .and_then(|i| self.queues.get_mut(i));
        let Some(queue) = queue else {
            warn_guest!("virtio-mmio: queue {index} does not exist");
            return;
        };
        // A driver that takes its queues down has reset the device before, which made them
        // not ready: to say so again changes nothing.
        if offset == QUEUE_READY && value == 0 && !queue.ready {
            return;
        }
        if configurable != status::FEATURES_OK {
            warn_guest!("virtio-mmio: queue {index} configured out of order");
            return;
        }
        // virtio-v1.3 §4.2.2.2: QueueReady is cleared before anything else is changed.
        if queue.ready && offset != QUEUE_READY {
            warn_guest!("virtio-mmio: queue {index} changed while it is ready");
            return;
        }
        match offset {
            QUEUE_SIZE => match u16::try_from(value) {
                Ok(size) if size.is_power_of_two() && size <= queue.max_size => queue.size = size,
                _ => warn_guest!("virtio-mmio: queue {index} cannot have {value} entries"),
            },
            QUEUE_READY => queue.ready = value & 1 != 0,
            QUEUE_DESC_LOW => set_low(&mut queue.desc_table, value),
            QUEUE_DESC_HIGH => set_high(&mut queue.desc_table, value),
            QUEUE_DRIVER_LOW => set_low(&mut queue.avail_ring, value),
            QUEUE_DRIVER_HIGH => set_high(&mut queue.avail_ring, value),
            QUEUE_DEVICE_LOW => set_low(&mut queue.used_ring, value),
            QUEUE_DEVICE_HIGH => set_high(&mut queue.used_ring, value),
            _ => {}
        }
    }
}

fn fresh(max_size: u16) -> SavedQueue {
    SavedQueue {
        max_size,
        size: max_size,
        ready: false,
        event_idx: false,
        next_avail: 0,
        next_used: 0,
        desc_table: 0,
        avail_ring: 0,
        used_ring: 0,
    }
}

/// The half of `features` that a selector register asks for.
fn half(features: u64, selector: u32) -> u32 {
    let word = match selector {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    // Masked to 32 bits.
    u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default()
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address >> 32 << 32 | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}
