//! What is behind a guest's I/O ports and device addresses.
//!
//! Reached from every vCPU thread. Each device locks itself; nothing here waits for anything but a
//! device that another thread is using. What is not there reads as all ones, and writes to it
//! are lost, as on a PC.
//!
//! A slot is locked for reading while a guest is in its device, and for writing when the device is
//! put in or taken out. So once it is out, no vCPU is inside. Whoever changes a slot must thus hold
//! nothing that a device's transport may wait for.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use cloister_virtio::mmio::{self, Transport};
use cloister_virtio::warn_guest;
use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::console::Console;
use crate::ioapic::Ioapic;
use crate::kvm::KvmError;
use crate::layout::{IOAPIC, IOAPIC_SIZE, SLOTS, Slot, port, slot_at};

/// The keyboard controller's command that pulses the reset line.
const I8042_RESET: u8 = 0xfe;
/// The guest's init runs.
const CONTROL_INIT: u8 = 1;
/// The guest has shut down.
const CONTROL_SHUTDOWN: u8 = 2;

/// The serial port of a VM.
pub type SerialPort = Serial<Line, NoEvents, Console>;

/// The interrupt line of a device that is not a virtio device.
#[derive(Debug)]
pub struct Line(pub EventFd);

impl Trigger for Line {
    type E = std::io::Error;

    fn trigger(&self) -> std::io::Result<()> {
        self.0.write(1)
    }
}

/// What an access means beyond the device it went to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The guest's init says that it runs.
    Init,
    /// The guest's init says that it has shut down.
    Shutdown,
    /// The guest resets the machine.
    Reset,
}

/// Everything a guest can address that is not memory.
#[derive(Debug)]
pub struct Bus {
    /// The transports, by slot.
    slots: [RwLock<Option<Arc<Transport>>>; SLOTS],
    ioapic: Ioapic,
    serial: Mutex<SerialPort>,
}

impl Bus {
    /// A bus with these on it.
    #[must_use]
    pub fn new(slots: [Option<Arc<Transport>>; SLOTS], ioapic: Ioapic, serial: SerialPort) -> Self {
        Self {
            slots: slots.map(RwLock::new),
            ioapic,
            serial: Mutex::new(serial),
        }
    }

    /// The transports, by slot.
    pub fn slots(&self) -> impl Iterator<Item = Option<Arc<Transport>>> {
        self.slots.iter().map(|slot| read(slot).clone())
    }

    /// Puts `transport` into `slot`, or takes out what is there; returns what was there.
    pub fn set_slot(
        &self,
        slot: Slot,
        transport: Option<Arc<Transport>>,
    ) -> Option<Arc<Transport>> {
        let place = self.slots.get(slot.index())?;
        let mut place = place.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *place, transport)
    }

    /// The IOAPIC.
    #[must_use]
    pub fn ioapic(&self) -> &Ioapic {
        &self.ioapic
    }

    /// Works with the serial port.
    pub fn with_serial<T>(&self, work: impl FnOnce(&mut SerialPort) -> T) -> T {
        work(&mut self.serial.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes an unfinished line of the console to its file.
    pub fn finish_console(&self) {
        if let Err(error) = self.with_serial(|serial| serial.writer_mut().finish()) {
            log::error!("console: {error}");
        }
    }

    /// The guest reads from I/O port `port`.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(first) = data.first_mut() else {
            return;
        };
        match port {
            port::SERIAL..=port::SERIAL_END => {
                *first = self.with_serial(|serial| serial.read(serial_offset(port)));
            }
            // The status register: both buffers empty, so that a reset is not waited for.
            port::I8042 => *first = 0,
            _ => {}
        }
    }

    /// The guest writes to I/O port `port`.
    pub fn port_write(&self, port: u16, data: &[u8]) -> Effect {
        let &[first, ..] = data else {
            return Effect::None;
        };
        match (port, first) {
            (port::SERIAL..=port::SERIAL_END, _) => {
                // A string instruction brings several bytes at once.
                for byte in data {
                    let written =
                        self.with_serial(|serial| serial.write(serial_offset(port), *byte));
                    if let Err(error) = written {
                        warn_guest!("serial port: {error}");
                    }
                }
                Effect::None
            }
            (port::I8042, I8042_RESET) => Effect::Reset,
            (port::CONTROL, CONTROL_INIT) => Effect::Init,
            (port::CONTROL, CONTROL_SHUTDOWN) => Effect::Shutdown,
            (port::CONTROL, code) => {
                warn_guest!("control port: unknown code {code:#x}");
                Effect::None
            }
            _ => Effect::None,
        }
    }

    /// The guest reads from address `address`, which is not memory.
    pub fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((index, offset)) = slot_at(address) {
            match self.slots.get(index).map(read).as_deref() {
                Some(Some(transport)) => transport.read(offset, data),
                _ if may_be_empty(index) => mmio::read_empty(offset, data),
                _ => {}
            }
        } else if let Some(offset) = ioapic_offset(address) {
            self.ioapic.read(offset, data);
        } else {
            warn_guest!(
                "read of {} bytes at {address:#x}, where nothing is",
                data.len()
            );
        }
    }

    /// The guest writes to address `address`, which is not memory.
    ///
    /// # Errors
    /// If KVM refuses what follows from it.
    pub fn memory_write(&self, address: u64, data: &[u8]) -> Result<(), KvmError> {
        if let Some((index, offset)) = slot_at(address) {
            if let Some(Some(transport)) = self.slots.get(index).map(read).as_deref() {
                transport.write(offset, data);
            }
        } else if let Some(offset) = ioapic_offset(address) {
            self.ioapic.write(offset, data)?;
        } else {
            warn_guest!(
                "write of {} bytes at {address:#x}, where nothing is",
                data.len()
            );
        }
        Ok(())
    }
}

fn read(slot: &RwLock<Option<Arc<Transport>>>) -> RwLockReadGuard<'_, Option<Arc<Transport>>> {
    slot.read().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the slot may be announced to the guest while it is empty.
fn may_be_empty(index: usize) -> bool {
    (Slot::nets().chain([Slot::Mem])).any(|slot| slot.index() == index)
}

fn serial_offset(port: u16) -> u8 {
    // Eight ports.
    (port - port::SERIAL).to_le_bytes()[0]
}

fn ioapic_offset(address: u64) -> Option<u64> {
    address
        .checked_sub(IOAPIC)
        .filter(|offset| *offset < IOAPIC_SIZE)
}
