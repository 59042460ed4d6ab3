//! A transport in a form that can be stored.

use std::io;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::registers::status;
use super::{Registers, SharedDevice, Transport, lock};
use crate::device::{GuestRam, SavedQueue};

/// Everything a driver has told a transport, and what it has not been told yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// DeviceFeaturesSel.
    pub device_features_sel: u32,
    /// DriverFeaturesSel.
    pub driver_features_sel: u32,
    /// The features that the driver has accepted.
    pub driver_features: u64,
    /// QueueSel.
    pub queue_sel: u32,
    /// Status, without DEVICE_NEEDS_RESET.
    pub status: u32,
    /// Whether DEVICE_NEEDS_RESET is set.
    pub needs_reset: bool,
    /// InterruptStatus.
    pub interrupt_status: u32,
    /// ConfigGeneration.
    pub config_generation: u32,
    /// The queues, with the positions of the device if it is active.
    pub queues: Vec<SavedQueue>,
}

/// Why a transport cannot be made of what was stored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The state belongs to another kind of device.
    #[error("the state has {saved} queues, the device {device}")]
    Queues {
        /// Queues in the state.
        saved: usize,
        /// Queues of the device.
        device: usize,
    },
    /// The process is out of descriptors.
    #[error("cannot make an event descriptor")]
    Event(#[source] io::Error),
}

impl Transport {
    /// What would make an equal transport. The device must stand still: no vCPU runs, and the
    /// event loop is not in it.
    #[must_use]
    pub fn state(&self) -> TransportState {
        let registers = lock(&self.registers);
        let positions = lock(&self.device).queue_states();
        let queues = if positions.len() == registers.queues.len() {
            positions
        } else {
            registers.queues.clone()
        };
        TransportState {
            device_features_sel: registers.device_features_sel,
            driver_features_sel: registers.driver_features_sel,
            driver_features: registers.driver_features,
            queue_sel: registers.queue_sel,
            status: registers.status,
            needs_reset: self.interrupt.broken().load(Ordering::SeqCst),
            interrupt_status: self.interrupt.status().load(Ordering::SeqCst),
            config_generation: self.interrupt.generation().load(Ordering::SeqCst),
            queues,
        }
    }

    /// The page of `device` as it was when `state` was taken; a device that was active is
    /// activated with the positions its queues had.
    ///
    /// # Errors
    /// If the state is not one of such a device, or the process is out of descriptors. Queues
    /// that are not in `memory` end in DEVICE_NEEDS_RESET, as if the driver had set them so.
    pub fn restore(
        device: SharedDevice,
        memory: GuestRam,
        state: &TransportState,
    ) -> Result<Self, RestoreError> {
        let transport = Self::new(device, memory).map_err(RestoreError::Event)?;
        {
            let mut registers = lock(&transport.registers);
            let fits = registers.queues.len() == state.queues.len()
                && (registers.queues.iter().zip(&state.queues))
                    .all(|(own, saved)| own.max_size == saved.max_size);
            if !fits {
                return Err(RestoreError::Queues {
                    saved: state.queues.len(),
                    device: registers.queues.len(),
                });
            }
            *registers = Registers {
                device_features_sel: state.device_features_sel,
                driver_features_sel: state.driver_features_sel,
                driver_features: state.driver_features,
                queue_sel: state.queue_sel,
                status: state.status,
                queues: state.queues.clone(),
            };
            let interrupt = &transport.interrupt;
            interrupt
                .status()
                .store(state.interrupt_status, Ordering::SeqCst);
            interrupt
                .generation()
                .store(state.config_generation, Ordering::SeqCst);
            interrupt
                .broken()
                .store(state.needs_reset, Ordering::SeqCst);
            if state.status & status::DRIVER_OK != 0 && !state.needs_reset {
                transport.activate(&mut registers);
            }
        }
        Ok(transport)
    }
}
