//! The guest's RAM, some of which may come while the VM runs.
//!
//! ```text
//!   AddMemory: memory file ▸ file server, devices ▸ KVM's slot ▸ memory device: requested_size
//!                                                                      │
//!   guest: driver ◀──────────── configuration change ──────────────────┘
//!             ╰── plugs blocks, and has its kernel take them
//! ```
//!
//! Everything happens on the event thread. In this order nobody can come upon an address that others do
//! not know: the guest reaches for what KVM has, and asks devices for what it has taken. The memory device is
//! made with the first request; before that its place is empty, which costs a guest three exits, and the
//! memory a descriptor of a file without contents.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_virtio::device::GuestRam;
use cloister_virtio::mem::{self, Mem};
use cloister_virtio::mmio::{RestoreError, Transport, TransportState};
use cloister_vmm_api::{Event, Request};
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber as _};
use kvm_ioctls::VmFd;
use vm_memory::GuestMemoryBackend as _;

use crate::bus::Bus;
use crate::kvm::KvmError;
use crate::layout::{self, Slot};
use crate::memory::{self, Extension};
use crate::nets::Nets;
use crate::plug;

const MIB: u64 = 1 << 20;

/// Why there is not as much memory as requested.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// More than there can be.
    #[error("memory_mib: {got} given, at most {max} possible")]
    TooMuch {
        /// The size that was given.
        got: u32,
        /// The size that there can be.
        max: u32,
    },
    /// It cannot be had, or KVM does not take it.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The device cannot be made, or does not take it.
    #[error("cannot make the device")]
    Device(#[from] mem::Error),
    /// The process is out of descriptors.
    #[error("cannot make event descriptors")]
    Event(#[source] io::Error),
    /// KVM refuses to wire the device.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// It cannot be watched.
    #[error("cannot watch the device")]
    Watch(#[source] event_manager::Error),
    /// Its transport cannot be what it was.
    #[error(transparent)]
    Transport(#[from] RestoreError),
    /// The saved device is not one of such a machine, or its memory was not given.
    #[error("saved state: the memory device does not match the configuration and the memory")]
    State,
}

/// The RAM of a VM before it has a bus.
#[derive(Debug)]
pub struct Plan {
    boot_mib: u32,
    max_mib: u32,
    config: Option<mem::Config>,
    extension: Option<Extension>,
    saved: Option<mem::State>,
}

impl Plan {
    /// That of a machine that has `boot_mib` and can have `max_mib`. `saved` and the file of the memory
    /// that had been added are of the machine that it goes on from.
    ///
    /// # Errors
    /// If there is no room for what may come, or the state is not one of such a machine.
    pub fn new(
        boot_mib: u32,
        max_mib: u32,
        saved: Option<mem::State>,
        added: Option<File>,
    ) -> Result<Self, Refusal> {
        let config = layout::added_ram(u64::from(boot_mib) * MIB, u64::from(max_mib) * MIB);
        let matches = saved
            .as_ref()
            .is_none_or(|saved| Some(saved.config) == config);
        if !matches || saved.is_some() != added.is_some() {
            return Err(Refusal::State);
        }
        let extension = match (&config, added) {
            (None, _) => None,
            (Some(config), None) => Some(Extension::new(config.addr, config.region_size)?),
            (Some(config), Some(file)) => {
                Some(Extension::restore(file, config.addr, config.region_size)?)
            }
        };
        Ok(Self {
            boot_mib,
            max_mib,
            config,
            extension,
            saved,
        })
    }

    /// Whether more memory may come.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.config.is_some()
    }

    /// All memory that the machine has, of which `boot` is the first.
    ///
    /// # Errors
    /// If what had been added cannot be mapped.
    pub fn memory(&mut self, boot: &GuestRam) -> Result<GuestRam, Refusal> {
        match (&mut self.extension, &self.saved) {
            (Some(extension), Some(saved)) => {
                let usable = saved.config.usable(saved.requested_size);
                Ok(extension.grow(boot, usable)?)
            }
            _ => Ok(boot.clone()),
        }
    }
}

/// The RAM of a VM.
pub struct Ram {
    vm: Arc<VmFd>,
    bus: Arc<Bus>,
    memory: GuestRam,
    boot_mib: u32,
    max_mib: u32,
    config: Option<mem::Config>,
    extension: Option<Extension>,
    /// How much of the extension KVM has, in bytes, and its next slot.
    attached: u64,
    next_slot: u32,
    device: Option<Arc<Mutex<Mem>>>,
}

impl Ram {
    /// What `plan` has, of which KVM has all; `transports` are those of all slots of the saved machine.
    ///
    /// # Errors
    /// If the saved device cannot be made.
    pub fn new(
        vm: Arc<VmFd>,
        bus: Arc<Bus>,
        memory: GuestRam,
        plan: Plan,
        transports: &[Option<TransportState>],
    ) -> Result<Self, Refusal> {
        let Plan {
            boot_mib,
            max_mib,
            config,
            extension,
            saved,
        } = plan;
        let mut this = Self {
            vm,
            bus,
            boot_mib,
            max_mib,
            config,
            attached: extension.as_ref().map_or(0, Extension::length),
            // A few.
            next_slot: u32::try_from(memory.num_regions()).unwrap_or(u32::MAX),
            extension,
            memory,
            device: None,
        };
        if let Some(saved) = saved {
            let transport = transports.get(Slot::Mem.index()).and_then(Option::as_ref);
            let transport = transport.ok_or(Refusal::State)?;
            let device = Arc::new(Mutex::new(Mem::restore(saved)?));
            let transport = Transport::restore(device.clone(), this.memory.clone(), transport)?;
            plug::connect(&this.vm, Slot::Mem, &transport)?;
            this.occupy(device, transport);
        }
        Ok(this)
    }

    /// The device's state, if there is one.
    #[must_use]
    pub fn state(&self) -> Option<mem::State> {
        self.device.as_ref().map(|device| lock(device).state())
    }

    /// Watches the device if it is there.
    pub fn init(&self, ops: &mut EventOps) {
        if let Some(device) = &self.device {
            lock(device).init(ops);
        }
    }

    /// Hands an event to the device, if it is its own.
    pub fn process(&self, events: Events, ops: &mut EventOps) -> bool {
        let Some(device) = &self.device else {
            return false;
        };
        let mut device = lock(device);
        let is_own = device.event_source() == events.fd();
        if is_own {
            device.process(events, ops);
        }
        is_own
    }

    /// Follows a request about memory, and returns the answer. `nets` are given what there is then.
    ///
    /// # Errors
    /// A request that is about something else is given back.
    pub fn follow(
        &mut self,
        request: Request,
        nets: &mut Nets,
        ops: &mut EventOps,
    ) -> Result<Event, Box<Request>> {
        let grown = match request {
            Request::AddMemory { memory_mib } => self.grow(memory_mib, nets, ops),
            Request::Memory => Ok(()),
            other => return Err(Box::new(other)),
        };
        Ok(match grown {
            Ok(()) => self.told(),
            Err(refusal) => Event::GrowthRefused {
                message: crate::chain(&refusal),
            },
        })
    }

    fn told(&self) -> Event {
        let total = |bytes: u64| {
            // At most the configuration's maximum.
            let added = u32::try_from(bytes / MIB).unwrap_or(u32::MAX);
            self.boot_mib.saturating_add(added)
        };
        let (granted, plugged) = self.device.as_ref().map_or((0, 0), |device| {
            let device = lock(device);
            (device.requested_size(), device.plugged_size())
        });
        Event::Memory {
            granted_mib: total(granted),
            plugged_mib: total(plugged),
        }
    }

    fn grow(
        &mut self,
        memory_mib: u32,
        nets: &mut Nets,
        ops: &mut EventOps,
    ) -> Result<(), Refusal> {
        let max = self.max_mib;
        if memory_mib > max {
            let got = memory_mib;
            return Err(Refusal::TooMuch { got, max });
        }
        let more = u64::from(memory_mib.saturating_sub(self.boot_mib)) * MIB;
        let (Some(config), Some(extension)) = (self.config, &mut self.extension) else {
            return Ok(());
        };
        if more == 0 {
            return Ok(());
        }
        let memory = extension.grow(&self.memory, config.usable(more))?;
        if memory.num_regions() != self.memory.num_regions() || extension.length() > self.attached {
            for transport in self.bus.slots().flatten() {
                transport.set_memory(memory.clone());
            }
            nets.set_memory(memory.clone());
            self.memory = memory;
        }
        if extension.length() > self.attached
            && let Some(region) = extension.region(&self.memory)
        {
            memory::attach_part(&self.vm, self.next_slot, region, self.attached)?;
            self.next_slot += 1;
            self.attached = extension.length();
        }
        match &self.device {
            Some(device) => {
                let mut device = lock(device);
                if more > device.requested_size() {
                    device.request(more)?;
                }
                Ok(())
            }
            None => self.plug(config, more, ops),
        }
    }

    /// Puts the device into its slot.
    fn plug(&mut self, config: mem::Config, more: u64, ops: &mut EventOps) -> Result<(), Refusal> {
        let mut device = Mem::new(config)?;
        device.request(more)?;
        let device = Arc::new(Mutex::new(device));
        let transport = Transport::new(device.clone(), self.memory.clone());
        let transport = transport.map_err(Refusal::Event)?;
        plug::connect(&self.vm, Slot::Mem, &transport)?;
        let events = Events::new_raw(lock(&device).event_source(), EventSet::IN);
        if let Err(error) = ops.add(events) {
            plug::disconnect(&self.vm, Slot::Mem, &transport);
            return Err(Refusal::Watch(error));
        }
        self.occupy(device, transport);
        Ok(())
    }

    fn occupy(&mut self, device: Arc<Mutex<Mem>>, transport: Transport) {
        self.bus.set_slot(Slot::Mem, Some(Arc::new(transport)));
        self.device = Some(device);
    }
}

fn lock(device: &Mutex<Mem>) -> MutexGuard<'_, Mem> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
