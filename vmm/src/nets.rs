//! The network devices, which come and go while the VM runs.
//!
//! ```text
//!            AttachNet: taps, device, transport ▸ KVM's wires ▸ event loop ▸ bus
//!   empty ──────────────────────────────────────────────────────────────────────▶ occupied
//!     ▲                                                                              │
//!     └──────────────────────────────────────────────────────────────────────────────┘
//!            DetachNet: bus (no vCPU is inside any more) ▸ wires ▸ event loop ▸ reset, taps closed
//! ```
//!
//! Everything happens on the event thread. A slot costs nothing before it is filled: no descriptor, no
//! wire, three exits of a guest that looks for its device. A guest is told neither of a device that
//! has come nor of one that has gone. It looks again when its driver is bound to the slot anew; a driver
//! that is still there when the device goes reads zeros and is heard no more.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_virtio::device::{GuestRam, VirtioDevice as _};
use cloister_virtio::mmio::{RestoreError, Transport, TransportState};
use cloister_virtio::net::{self, Net, Tap, Vhost, VhostError};
use cloister_vmm_api::{Event, NET_SLOTS, NetConfig, NetConfigError, NetCounters, Request};
use event_manager::{EventOps, Events, MutEventSubscriber as _};
use kvm_ioctls::VmFd;

use crate::bus::Bus;
use crate::kvm::KvmError;
use crate::layout::Slot;
use crate::plug;

/// Why a request cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// There is no such slot.
    #[error("slot: {got} given, 0 to {last} possible", last = NET_SLOTS - 1)]
    Slot {
        /// The number that was given.
        got: u8,
    },
    /// The slot has a device.
    #[error("slot: {0} is occupied")]
    Occupied(u8),
    /// The slot has no device.
    #[error("slot: {0} is empty")]
    Empty(u8),
    /// The configuration does not hold.
    #[error("config")]
    Config(#[from] NetConfigError),
    /// There is not one descriptor a queue pair, nor two with vhost-net.
    #[error("taps: {fds} descriptors, {pairs} queue pairs")]
    Taps {
        /// Descriptors given.
        fds: usize,
        /// Pairs configured.
        pairs: u8,
    },
    /// The device cannot be made.
    #[error("cannot make the device")]
    Device(#[from] net::Error),
    /// The process is out of descriptors.
    #[error("cannot make event descriptors")]
    Event(#[source] io::Error),
    /// KVM refuses to wire it.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// It cannot be watched.
    #[error("cannot watch the device")]
    Watch(#[source] event_manager::Error),
    /// Its transport cannot be what it was.
    #[error(transparent)]
    Transport(#[from] RestoreError),
    /// The saved devices and the taps given for them differ.
    #[error("saved state: the network devices do not match the taps")]
    State,
}

/// The slots of network devices.
pub struct Nets {
    vm: Arc<VmFd>,
    memory: GuestRam,
    bus: Arc<Bus>,
    devices: [Option<Arc<Mutex<Net>>>; NET_SLOTS as usize],
}

impl Nets {
    /// All of them empty.
    #[must_use]
    pub fn new(vm: Arc<VmFd>, memory: GuestRam, bus: Arc<Bus>) -> Self {
        Self {
            vm,
            memory,
            bus,
            devices: Default::default(),
        }
    }

    /// Fills the slots with what was there when `states` and the transports (of all slots of the
    /// machine) were saved. Done before the event loop runs.
    ///
    /// # Errors
    /// If the taps are not those of these devices, or any device cannot be made.
    pub fn restore(
        &mut self,
        states: Vec<Option<net::State>>,
        transports: &[Option<TransportState>],
        mut taps: Vec<(u8, Vec<OwnedFd>)>,
    ) -> Result<(), Refusal> {
        for (number, state) in (0..NET_SLOTS).zip(states) {
            let Some(state) = state else { continue };
            let at = taps.iter().position(|(slot, _)| *slot == number);
            let (_, fds) = taps.swap_remove(at.ok_or(Refusal::State)?);
            let slot = Slot::Net(number);
            let transport = transports.get(slot.index()).and_then(Option::as_ref);
            let transport = transport.ok_or(Refusal::State)?;
            let (taps, vhosts) = open(state.config.queue_pairs, fds)?;
            let mut device = with_vhost(Net::restore(state, taps)?, vhosts)?;
            // Its driver's queues come back before the machine is whole.
            device.pause();
            let device = Arc::new(Mutex::new(device));
            let transport = Transport::restore(device.clone(), self.memory.clone(), transport)?;
            plug::connect(&self.vm, slot, &transport)?;
            self.occupy(number, device, transport);
        }
        if taps.is_empty() {
            Ok(())
        } else {
            Err(Refusal::State)
        }
    }

    /// Stands still with the virtual machine.
    pub fn pause(&self) {
        for device in self.devices.iter().flatten() {
            lock(device).pause();
        }
    }

    /// Goes on.
    pub fn resume(&self) {
        for device in self.devices.iter().flatten() {
            lock(device).resume();
        }
    }

    /// What devices that come from now on are given.
    pub fn set_memory(&mut self, memory: GuestRam) {
        self.memory = memory;
    }

    /// The devices' states, by slot.
    #[must_use]
    pub fn states(&self) -> Vec<Option<net::State>> {
        let devices = self.devices.iter();
        let state = |device: &Arc<Mutex<Net>>| lock(device).state();
        devices.map(|device| device.as_ref().map(state)).collect()
    }

    /// Watches the devices that are there.
    pub fn init(&self, ops: &mut EventOps) {
        for device in self.devices.iter().flatten() {
            let mut device = lock(device);
            device.init(ops);
            device.resume();
        }
    }

    /// Hands an event to the device it belongs to.
    pub fn process(&self, events: Events, ops: &mut EventOps) {
        for device in self.devices.iter().flatten() {
            let mut device = lock(device);
            if device.event_source() == events.fd() {
                device.process(events, ops);
                return;
            }
        }
        log::error!("event of an unknown descriptor");
    }

    /// Follows a request about network devices, with the descriptors beside it, and returns the
    /// answer.
    ///
    /// # Errors
    /// A request that is about something else is given back.
    pub fn follow(
        &mut self,
        request: Request,
        fds: Vec<OwnedFd>,
        ops: &mut EventOps,
    ) -> Result<Event, Box<Request>> {
        let (slot, outcome) = match request {
            Request::AttachNet { slot, config } => {
                let attached = self.attach(slot, &config, fds, ops);
                (slot, attached.map(|()| Event::NetAttached { slot }))
            }
            Request::DetachNet { slot } => {
                let detached = self.detach(slot, ops);
                (slot, detached.map(|()| Event::NetDetached { slot }))
            }
            Request::SetLink { slot, up } => {
                let set = self.device(slot).map(|device| lock(device).set_link(up));
                (slot, set.map(|()| Event::LinkSet { slot }))
            }
            Request::NetCounters => {
                let nets = self.counters();
                return Ok(Event::NetCounters { nets });
            }
            other => return Err(Box::new(other)),
        };
        Ok(outcome.unwrap_or_else(|refusal| Event::NetRefused {
            slot,
            message: crate::chain(&refusal),
        }))
    }

    fn attach(
        &mut self,
        number: u8,
        config: &NetConfig,
        fds: Vec<OwnedFd>,
        ops: &mut EventOps,
    ) -> Result<(), Refusal> {
        match self.devices.get(usize::from(number)) {
            None => return Err(Refusal::Slot { got: number }),
            Some(Some(_)) => return Err(Refusal::Occupied(number)),
            Some(None) => {}
        }
        config.validate()?;
        let (taps, vhosts) = open(config.queue_pairs, fds)?;
        let device = with_vhost(Net::new(device_config(config), taps)?, vhosts)?;
        let device = Arc::new(Mutex::new(device));
        let transport = Transport::new(device.clone(), self.memory.clone());
        let transport = transport.map_err(Refusal::Event)?;
        let slot = Slot::Net(number);
        plug::connect(&self.vm, slot, &transport)?;
        let events = Events::new_raw(lock(&device).event_source(), event_manager::EventSet::IN);
        if let Err(error) = ops.add(events) {
            plug::disconnect(&self.vm, slot, &transport);
            return Err(Refusal::Watch(error));
        }
        self.occupy(number, device, transport);
        Ok(())
    }

    fn occupy(&mut self, number: u8, device: Arc<Mutex<Net>>, transport: Transport) {
        let slot = Slot::Net(number);
        self.bus.set_slot(slot, Some(Arc::new(transport)));
        if let Some(place) = self.devices.get_mut(usize::from(number)) {
            *place = Some(device);
        }
    }

    fn detach(&mut self, number: u8, ops: &mut EventOps) -> Result<(), Refusal> {
        let place = self.devices.get_mut(usize::from(number));
        let place = place.ok_or(Refusal::Slot { got: number })?;
        let device = place.take().ok_or(Refusal::Empty(number))?;
        let slot = Slot::Net(number);
        // No lock of the device's is held here: a vCPU that is inside may wait for it.
        if let Some(transport) = self.bus.set_slot(slot, None) {
            plug::disconnect(&self.vm, slot, &transport);
        }
        let mut device = lock(&device);
        if let Err(error) = ops.remove(Events::empty_raw(device.event_source())) {
            log::error!("cannot stop watching network device {number}: {error}");
        }
        device.reset();
        Ok(())
    }

    fn device(&self, number: u8) -> Result<&Arc<Mutex<Net>>, Refusal> {
        let place = self.devices.get(usize::from(number));
        let place = place.ok_or(Refusal::Slot { got: number })?;
        place.as_ref().ok_or(Refusal::Empty(number))
    }

    fn counters(&self) -> Vec<NetCounters> {
        (0..)
            .zip(&self.devices)
            .filter_map(|(slot, device)| Some((slot, lock(device.as_ref()?).metrics())))
            .map(|(slot, metrics)| NetCounters {
                slot,
                rx_packets: metrics.rx_packets,
                rx_bytes: metrics.rx_bytes,
                rx_dropped: metrics.rx_dropped,
                rx_errors: metrics.rx_errors + metrics.rx_malformed,
                tx_packets: metrics.tx_packets,
                tx_bytes: metrics.tx_bytes,
                tx_dropped: metrics.tx_dropped,
                tx_errors: metrics.tx_malformed,
                rx_waits: metrics.rx_waits,
                tx_waits: metrics.tx_waits,
            })
            .collect()
    }
}

/// Takes the descriptors over: of taps, one a pair, and behind them of vhost-net, as many or none.
fn open(pairs: u8, mut fds: Vec<OwnedFd>) -> Result<(Vec<Tap>, Vec<Vhost>), Refusal> {
    let each = usize::from(pairs);
    if fds.len() != each && fds.len() != 2 * each {
        let fds = fds.len();
        return Err(Refusal::Taps { fds, pairs });
    }
    let vhosts = fds.split_off(each);
    let several = pairs > 1;
    let taps = fds.into_iter().enumerate().map(|(index, fd)| {
        Tap::new(fd, several).map_err(|source| net::Error::Tap { index, source })
    });
    let taps = taps.collect::<Result<_, _>>()?;
    let vhosts: Result<_, _> = vhosts.into_iter().map(Vhost::new).collect();
    // The packets pass without it as well.
    let vhosts = vhosts.unwrap_or_else(|error: VhostError| {
        log::warn!("net: no vhost-net: {}", crate::chain(&error));
        Vec::new()
    });
    Ok((taps, vhosts))
}

fn with_vhost(device: Net, vhosts: Vec<Vhost>) -> Result<Net, net::Error> {
    if vhosts.is_empty() {
        return Ok(device);
    }
    device.with_vhost(vhosts)
}

fn device_config(config: &NetConfig) -> net::Config {
    let limit = |limit: cloister_vmm_api::RateLimit| net::RateLimit {
        bytes_per_second: limit.bytes_per_second,
        burst: limit.burst,
    };
    net::Config {
        mac: config.mac,
        mtu: config.mtu,
        queue_pairs: config.queue_pairs,
        rx_limit: config.rx_limit.map(limit),
        tx_limit: config.tx_limit.map(limit),
    }
}

fn lock(device: &Mutex<Net>) -> MutexGuard<'_, Net> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
