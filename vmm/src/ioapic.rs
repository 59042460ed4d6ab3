//! The IOAPIC: 24 pins whose interrupts become messages to the local APICs.
//!
//! KVM keeps the local APICs (split irqchip); this is the rest. A pin is an event descriptor that
//! KVM watches (irqfd); what the guest writes into a pin's redirection entry becomes the message
//! that KVM sends for it (a GSI routing entry). A masked pin has no routing entry, so a signal on it
//! is lost, as an edge on a masked pin is. Every pin is edge-triggered: the MP table says so, and
//! what a guest writes to the contrary is stored but has no effect.
//!
//! Registers: Intel 82093AA I/O Advanced Programmable Interrupt Controller, chapter 3.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::kvm::{KvmError, Operation as _};

/// Pins of the IOAPIC.
pub const PINS: u32 = 24;
/// Its identification in the MP table and in its own register.
pub const ID: u8 = 0;

const REGISTER_SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

const INDEX_ID: u8 = 0x00;
const INDEX_VERSION: u8 = 0x01;
const INDEX_ARBITRATION: u8 = 0x02;
const INDEX_REDIRECTION: u8 = 0x10;

/// Version 0x11: the first with 24 pins; no EOI register.
const VERSION: u32 = 0x11 | (PINS - 1) << 16;

const MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the device's to set.
const READ_ONLY: u64 = 1 << 12 | 1 << 14;

/// What a guest has written into the IOAPIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The selected register.
    pub select: u8,
    /// The identification register.
    pub id: u32,
    /// The redirection table.
    pub redirection: Vec<u64>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            select: 0,
            id: u32::from(ID) << 24,
            redirection: vec![MASKED; PINS as usize],
        }
    }
}

/// The IOAPIC of a VM.
#[derive(Debug)]
pub struct Ioapic {
    vm: Arc<VmFd>,
    state: Mutex<State>,
}

impl Ioapic {
    /// An IOAPIC after reset.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self {
            vm,
            state: Mutex::default(),
        }
    }

    /// An IOAPIC as it was when `state` was taken, and its routes.
    ///
    /// # Errors
    /// If KVM refuses the routes.
    pub fn restore(vm: Arc<VmFd>, mut state: State) -> Result<Self, KvmError> {
        state.redirection.resize(PINS as usize, MASKED);
        let ioapic = Self {
            vm,
            state: Mutex::new(state),
        };
        ioapic.route(&ioapic.lock())?;
        Ok(ioapic)
    }

    /// What would make an equal IOAPIC.
    #[must_use]
    pub fn state(&self) -> State {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A read at `offset` of the register page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match offset {
            REGISTER_SELECT => state.select.into(),
            WINDOW => state.read_selected(),
            _ => 0,
        };
        for (to, from) in data
            .iter_mut()
            .zip(value.to_le_bytes().into_iter().chain([0; 4]))
        {
            *to = from;
        }
    }

    /// A write at `offset` of the register page.
    ///
    /// # Errors
    /// If KVM refuses the routes that follow from it.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), KvmError> {
        let mut word = [0; 4];
        for (to, from) in word.iter_mut().zip(data) {
            *to = *from;
        }
        let mut state = self.lock();
        match offset {
            REGISTER_SELECT => state.select = word[0],
            WINDOW if state.write_selected(u32::from_le_bytes(word)) => self.route(&state)?,
            _ => {}
        }
        Ok(())
    }

    fn route(&self, state: &State) -> Result<(), KvmError> {
        let entries: Vec<_> = (0..)
            .zip(&state.redirection)
            .filter(|(_, entry)| *entry & MASKED == 0)
            .map(|(pin, entry)| routing_entry(pin, *entry))
            .collect();
        let operation = "KVM_SET_GSI_ROUTING";
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| KvmError::new(operation, libc::E2BIG))?;
        self.vm.set_gsi_routing(&routing).during(operation)
    }
}

/// The message of a redirection entry: Intel SDM volume 3, "Message Signalled Interrupts".
fn routing_entry(gsi: u32, entry: u64) -> kvm_irq_routing_entry {
    let byte = |shift: u64| u32::from((entry >> shift).to_le_bytes()[0]);
    let (vector, mode, destination) = (byte(0), byte(8) & 7, byte(56));
    let logical = byte(11) & 1;
    let msi = kvm_irq_routing_msi {
        address_lo: 0xfee0_0000 | destination << 12 | logical << 2,
        address_hi: 0,
        // Always edge, bit 15 clear.
        data: mode << 8 | vector,
        ..Default::default()
    };
    let mut routing = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    routing.u.msi = msi;
    routing
}

impl State {
    /// The pin and whether its upper half is meant, if the selected register is one of those.
    fn selected_half(&self) -> Option<(usize, bool)> {
        let index = self.select.checked_sub(INDEX_REDIRECTION)?;
        let pin = usize::from(index / 2);
        (pin < self.redirection.len()).then_some((pin, index % 2 == 1))
    }

    fn read_selected(&self) -> u32 {
        if let Some((pin, upper)) = self.selected_half() {
            let entry = self.redirection.get(pin).copied().unwrap_or(MASKED);
            let half = if upper { entry >> 32 } else { entry };
            return u32::try_from(half & u64::from(u32::MAX)).unwrap_or_default();
        }
        match self.select {
            INDEX_ID | INDEX_ARBITRATION => self.id,
            INDEX_VERSION => VERSION,
            _ => 0,
        }
    }

    /// Returns whether the routes have changed.
    fn write_selected(&mut self, value: u32) -> bool {
        if let Some((pin, upper)) = self.selected_half()
            && let Some(entry) = self.redirection.get_mut(pin)
        {
            let old = *entry;
            let value = u64::from(value);
            *entry = if upper {
                old & u64::from(u32::MAX) | value << 32
            } else {
                old >> 32 << 32 | value & !READ_ONLY
            };
            let unmasked = |entry: u64| entry & MASKED == 0;
            return *entry != old && (unmasked(*entry) || unmasked(old));
        }
        if self.select == INDEX_ID {
            self.id = value & 0x0f00_0000;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(state: &mut State, index: u8, value: u32) -> bool {
        state.select = index;
        state.write_selected(value)
    }

    #[test]
    fn a_fresh_table_is_masked() {
        let mut state = State {
            select: INDEX_VERSION,
            ..State::default()
        };
        assert_eq!(state.read_selected(), 0x0017_0011);
        for index in 0x10..0x40 {
            state.select = index;
            let expected = if index % 2 == 0 { 0x1_0000 } else { 0 };
            assert_eq!(state.read_selected(), expected);
        }
        state.select = 0x40;
        assert_eq!(state.read_selected(), 0);
        assert!(!state.write_selected(0));
    }

    #[test]
    fn only_a_change_of_an_unmasked_entry_changes_routes() {
        let mut state = State::default();
        assert!(!write(&mut state, 0x1b, 3 << 24));
        assert!(!write(&mut state, 0x1a, 0x1_0031));
        assert!(write(&mut state, 0x1a, 0x0031));
        assert!(!write(&mut state, 0x1a, 0x0031));
        assert!(write(&mut state, 0x1b, 1 << 24));
        assert!(write(&mut state, 0x1a, 0x1_0031));
    }

    #[test]
    fn an_entry_becomes_a_message() {
        // Logical destination 5, lowest priority, level-triggered, vector 0x31.
        let entry = 5 << 56 | 1 << 15 | 1 << 11 | 1 << 8 | 0x31;
        let routing = routing_entry(9, entry);
        assert_eq!(routing.gsi, 9);
        // SAFETY: `routing_entry` makes message entries only.
        #[expect(unsafe_code, reason = "a union of the KVM interface")]
        let msi = unsafe { routing.u.msi };
        assert_eq!(msi.address_lo, 0xfee0_5004);
        assert_eq!(msi.data, 0x131);
    }

    #[test]
    fn the_devices_bits_cannot_be_written() {
        let mut state = State::default();
        write(&mut state, 0x10, u32::MAX);
        assert_eq!(state.read_selected(), !(1 << 12 | 1 << 14));
    }
}
