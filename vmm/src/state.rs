//! A whole VM, without its memory, in a form that can be stored.
//!
//! What the guest's memory holds is not here: it is the memory file's, except for the pages that
//! the guest has written to where a file was mapped
//! ([`memory::map_file`](crate::memory::map_file)), which have to be read through the mapping.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cloister_virtio::mmio::TransportState;
use cloister_virtio::{fs, mem, net, rng, vsock};
use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};
use vm_superio::SerialState;

use crate::ioapic;
use crate::kvm::{KvmError, Operation as _};
use crate::machine::Machine;
use crate::vcpu;
use crate::vcpu::state::VcpuState;

/// A VM that stood still.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmState {
    /// The vCPUs that there were, by number.
    pub vcpus: Vec<VcpuState>,
    /// The clock that the guest reads through KVM.
    pub clock: kvm_clock_data,
    /// The IOAPIC.
    pub ioapic: ioapic::State,
    /// The serial port.
    pub serial: Serial,
    /// The transports, by slot; none where nothing is plugged in.
    pub slots: Vec<Option<TransportState>>,
    /// The socket device.
    pub vsock: vsock::State,
    /// The entropy device.
    pub rng: rng::State,
    /// The file system device, if there is one.
    pub fs: Option<fs::State>,
    /// The memory device, if memory has been added. The file of that memory is the owner's.
    pub mem: Option<mem::State>,
    /// The network devices, by slot; none where there is none.
    pub nets: Vec<Option<net::State>>,
}

/// Why a VM cannot be saved.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// A vCPU is not at the gate.
    #[error("vCPU {0} is running")]
    Running(usize),
    /// KVM refuses to tell.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

impl Machine {
    /// The state of the VM, which must stand still: its vCPUs at the gate, its event loop not in
    /// any device.
    ///
    /// # Errors
    /// If a vCPU runs, or KVM refuses to tell.
    pub fn save(&self) -> Result<VmState, SaveError> {
        let vcpus = (lock(&self.vcpus).made().iter().enumerate())
            .map(|(id, vcpu)| {
                // A vCPU's thread holds the lock whenever it is not at the gate.
                let vcpu = vcpu.try_lock().map_err(|_| SaveError::Running(id))?;
                Ok(vcpu::state::save(&vcpu)?)
            })
            .collect::<Result<_, SaveError>>()?;
        let clock = self.vm.get_clock().during("KVM_GET_CLOCK")?;
        Ok(VmState {
            vcpus,
            clock,
            ioapic: self.bus.ioapic().state(),
            serial: self.bus.with_serial(|serial| serial.state().into()),
            slots: (self.bus.slots())
                .map(|slot| slot.map(|transport| transport.state()))
                .collect(),
            vsock: lock(&self.vsock).state(),
            rng: lock(&self.rng).state(),
            fs: self.fs.as_ref().map(|fs| lock(fs).state()),
            mem: lock(&self.ram).state(),
            nets: lock(&self.nets).states(),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The registers of the serial port. Nothing is ever waiting to be read: nobody writes to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serial {
    /// Divisor latch, low byte.
    pub baud_divisor_low: u8,
    /// Divisor latch, high byte.
    pub baud_divisor_high: u8,
    /// Interrupt enable register.
    pub interrupt_enable: u8,
    /// Interrupt identification register.
    pub interrupt_identification: u8,
    /// Line control register.
    pub line_control: u8,
    /// Line status register.
    pub line_status: u8,
    /// Modem control register.
    pub modem_control: u8,
    /// Modem status register.
    pub modem_status: u8,
    /// Scratch register.
    pub scratch: u8,
}

impl From<SerialState> for Serial {
    fn from(state: SerialState) -> Self {
        Self {
            baud_divisor_low: state.baud_divisor_low,
            baud_divisor_high: state.baud_divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
        }
    }
}

impl From<Serial> for SerialState {
    fn from(saved: Serial) -> Self {
        Self {
            baud_divisor_low: saved.baud_divisor_low,
            baud_divisor_high: saved.baud_divisor_high,
            interrupt_enable: saved.interrupt_enable,
            interrupt_identification: saved.interrupt_identification,
            line_control: saved.line_control,
            line_status: saved.line_status,
            modem_control: saved.modem_control,
            modem_status: saved.modem_status,
            scratch: saved.scratch,
            in_buffer: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serial_port_survives() {
        let state = SerialState {
            interrupt_enable: 2,
            line_control: 0x83,
            scratch: 9,
            ..SerialState::default()
        };
        let saved = Serial::from(state.clone());
        let json = serde_json::to_string(&saved).unwrap();
        let read: Serial = serde_json::from_str(&json).unwrap();
        assert_eq!(SerialState::from(read), state);
    }
}
