//! A virtual machine, assembled from its configuration.
//!
//! The order of calls matters to their cost. KVM waits for a grace period whenever it replaces
//! a table that a vCPU might be using: the memory slots, the I/O buses (ioeventfds), the interrupt
//! routes. The memory slots are therefore set first and once; the IOAPIC is ours (split irqchip), so
//! that KVM puts no devices on its buses; and there are no routes before the guest asks for one.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cloister_virtio::device::GuestRam;
use cloister_virtio::fs::{self, Fs};
use cloister_virtio::mem;
use cloister_virtio::mmio::{self, SharedDevice, Transport, TransportState};
use cloister_virtio::net;
use cloister_virtio::rng::{self, Rng};
use cloister_virtio::vsock::{self, Connector, Vsock};
use cloister_vmm_api::VmConfig;
use kvm_bindings::{CpuId, KVM_CAP_SPLIT_IRQCHIP, kvm_clock_data, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_superio::Serial;
use vm_superio::serial::NoEvents;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::boot::{self, Cmdline};
use crate::bus::{Bus, Line};
use crate::console::Console;
use crate::ioapic::{self, Ioapic};
use crate::kvm::{KvmError, Operation as _};
use crate::layout::{KVM_TSS, SERIAL_LINE, SLOTS, Slot};
use crate::memory;
use crate::nets::Nets;
use crate::plug;
use crate::ram::{self, Ram};
use crate::state::VmState;
use crate::vcpu::{self, Topology};
use crate::vcpus::Vcpus;

/// The version of the KVM interface; the only one there has been since 2007.
pub const KVM_API_VERSION: i32 = 12;

/// The system calls that the devices of a running machine need beside those of any VM.
pub const DEVICE_SYSCALLS: &[&[libc::c_long]] = &[
    rng::SYSCALLS,
    vsock::SYSCALLS,
    net::SYSCALLS,
    mem::SYSCALLS,
    FS_SYSCALLS,
];
/// The `ioctl` operations that they need.
pub const DEVICE_IOCTLS: &[&[u32]] = net::IOCTLS;

/// Those of the file system device, which makes event descriptors when it is activated and talks
/// to its server with a deadline.
const FS_SYSCALLS: &[libc::c_long] = &[
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
];

/// Why a machine cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor given as KVM is not one.
    #[error("/dev/kvm is no KVM device: it gives {0} as its API version, not {KVM_API_VERSION}")]
    Version(i32),
    /// A KVM operation failed.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// There is no guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// The guest cannot be loaded.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The console file cannot be used.
    #[error("console file")]
    Console(#[source] io::Error),
    /// The process is out of descriptors.
    #[error("cannot make an event descriptor for {0}")]
    Event(&'static str, #[source] io::Error),
    /// The entropy device cannot be made.
    #[error(transparent)]
    Rng(#[from] rng::Error),
    /// The socket device cannot be made.
    #[error(transparent)]
    Vsock(#[from] vsock::Error),
    /// The file system device cannot be made.
    #[error(transparent)]
    Fs(#[from] fs::Error),
    /// A device's transport cannot be what it was.
    #[error(transparent)]
    Transport(#[from] mmio::RestoreError),
    /// The memory that may come, or has come, cannot be had.
    #[error(transparent)]
    Ram(#[from] ram::Refusal),
    /// A network device cannot be what it was.
    #[error(transparent)]
    Net(#[from] crate::nets::Refusal),
    /// The state is that of another machine.
    #[error("saved state: {0} does not match the configuration")]
    State(&'static str),
}

/// The host's sides of a machine's devices.
pub struct Backends {
    /// The guest's console.
    pub console: File,
    /// Where host processes connect to the socket device.
    pub vsock_listener: UnixListener,
    /// Where streams go that the guest asks for.
    pub vsock_connector: Box<dyn Connector + Send>,
    /// The file server, if the machine has a file system device.
    pub fs: Option<UnixStream>,
    /// The file of the memory that had been added to a restored machine, if any had. A new machine has none.
    pub added_memory: Option<File>,
    /// The taps of the network devices that a restored machine had, by slot. A new machine has none.
    pub nets: Vec<(u8, Vec<OwnedFd>)>,
}

/// A virtual machine that has not run yet or stands still.
pub struct Machine {
    /// The VM.
    pub vm: Arc<VmFd>,
    /// The memory that it has from the start.
    pub memory: GuestRam,
    /// All of its memory, some of which may come later.
    pub ram: Arc<Mutex<Ram>>,
    /// What is around its vCPUs.
    pub bus: Arc<Bus>,
    /// Its vCPUs, some of which may come later.
    pub vcpus: Arc<Mutex<Vcpus>>,
    /// The socket device.
    pub vsock: Arc<Mutex<Vsock>>,
    /// The entropy device.
    pub rng: Arc<Mutex<Rng>>,
    /// The file system device, if there is one.
    pub fs: Option<Arc<Mutex<Fs>>>,
    /// The network devices, which come and go.
    pub nets: Arc<Mutex<Nets>>,
    /// What the kernel is told.
    cmdline: Cmdline,
}

impl Machine {
    /// Makes the VM, its memory, its vCPUs and its devices.
    ///
    /// # Errors
    /// If anything cannot be made.
    pub fn assemble(config: &VmConfig, kvm: &Kvm, backends: Backends) -> Result<Self, Error> {
        let memory = memory::create(u64::from(config.memory_mib) << 20)?;
        Self::build(config, kvm, backends, memory, None)
    }

    /// Makes a VM that goes on where `state` was taken. `memory`, and the file of what had been added to it,
    /// hold what they held then, and `config` is the one that the VM was made with.
    ///
    /// # Errors
    /// If anything cannot be made, or the state does not belong to such a VM.
    pub fn restore(
        config: &VmConfig,
        kvm: &Kvm,
        backends: Backends,
        memory: GuestRam,
        state: VmState,
    ) -> Result<Self, Error> {
        let possible = usize::from(config.vcpus)..=usize::from(config.max_vcpus);
        if !possible.contains(&state.vcpus.len()) {
            return Err(Error::State("the number of vCPUs"));
        }
        if state.slots.len() != SLOTS {
            return Err(Error::State("the number of device slots"));
        }
        Self::build(config, kvm, backends, memory, Some(state))
    }

    fn build(
        config: &VmConfig,
        kvm: &Kvm,
        backends: Backends,
        memory: GuestRam,
        mut state: Option<VmState>,
    ) -> Result<Self, Error> {
        let version = kvm.get_api_version();
        if version != KVM_API_VERSION {
            return Err(Error::Version(version));
        }
        let console = Console::new(backends.console).map_err(Error::Console)?;
        let vm = Arc::new(create_vm(kvm)?);
        let saved_ram = state.as_mut().and_then(|state| state.mem.take());
        let (boot, max) = (config.memory_mib, config.max_memory_mib);
        let mut plan = ram::Plan::new(boot, max, saved_ram, backends.added_memory)?;
        let memory = plan.memory(&memory)?;
        memory::attach(&vm, &memory)?;
        prepare_vm(&vm)?;
        let count = match &state {
            None => config.vcpus,
            // Checked against the configuration.
            Some(state) => u8::try_from(state.vcpus.len()).unwrap_or(config.max_vcpus),
        };
        let vcpus = create_vcpus(kvm, vm.clone(), count, config.max_vcpus)?;

        let mut assembly = Assembly {
            vm: &vm,
            memory: &memory,
            slots: [const { None }; SLOTS],
            saved: (state.as_mut()).map_or_else(Vec::new, |s| std::mem::take(&mut s.slots)),
            cmdline: Cmdline::default(),
        };
        let serial_line = event("the serial port")?;
        assembly.connect_line(&serial_line, SERIAL_LINE)?;
        let vsock = Arc::new(Mutex::new(match &state {
            None => Vsock::new(
                vsock::Config {
                    guest_cid: config.vsock.guest_cid,
                    host_ports: config.vsock.host_ports.clone(),
                },
                backends.vsock_listener,
                backends.vsock_connector,
            )?,
            Some(state) => Vsock::restore(
                state.vsock.clone(),
                backends.vsock_listener,
                backends.vsock_connector,
            )?,
        }));
        assembly.plug(Slot::Vsock, vsock.clone())?;
        let rng = Arc::new(Mutex::new(Rng::new(rng::Config::default())?));
        assembly.plug(Slot::Rng, rng.clone())?;
        let mut fs = None;
        if let (Some(config), Some(backend)) = (&config.fs, backends.fs) {
            let device = Arc::new(Mutex::new(Fs::new(fs::Config::new(&config.tag), backend)?));
            assembly.plug(Slot::Fs, device.clone())?;
            fs = Some(device);
        }
        if plan.grows() {
            assembly.cmdline.announce(Slot::Mem);
        }
        Slot::nets().for_each(|slot| assembly.cmdline.announce(slot));
        if config.max_vcpus > config.vcpus {
            assembly.cmdline.start_only(config.vcpus.into());
        }
        assembly.cmdline.append(&config.cmdline);
        let Assembly {
            slots,
            saved,
            cmdline,
            ..
        } = assembly;
        let saved_nets = (state.as_mut()).map_or_else(Vec::new, |s| std::mem::take(&mut s.nets));

        let line = Line(serial_line);
        let (ioapic, serial) = match state {
            None => (Ioapic::new(vm.clone()), Serial::new(line, console)),
            Some(state) => {
                for (vcpu, state) in vcpus.made().iter().zip(&state.vcpus) {
                    vcpu::state::restore(&lock(vcpu), state)?;
                }
                let clock = kvm_clock_data {
                    clock: state.clock.clock,
                    ..Default::default()
                };
                vm.set_clock(&clock).during("KVM_SET_CLOCK")?;
                let ioapic = Ioapic::restore(vm.clone(), state.ioapic)?;
                let serial = state.serial.into();
                let serial = Serial::from_state(&serial, line, NoEvents, console)
                    .map_err(|_| Error::State("the serial port"))?;
                (ioapic, serial)
            }
        };
        let bus = Arc::new(Bus::new(slots, ioapic, serial));
        let mut nets = Nets::new(vm.clone(), memory.clone(), bus.clone());
        nets.restore(saved_nets, &saved, backends.nets)?;
        let ram = Ram::new(vm.clone(), bus.clone(), memory.clone(), plan, &saved)?;
        Ok(Self {
            vm,
            memory,
            ram: Arc::new(Mutex::new(ram)),
            bus,
            vcpus: Arc::new(Mutex::new(vcpus)),
            vsock,
            rng,
            fs,
            nets: Arc::new(Mutex::new(nets)),
            cmdline,
        })
    }

    /// The devices that are always there, for the event loop.
    #[must_use]
    pub fn devices(&self) -> Vec<SharedDevice> {
        let mut devices: Vec<SharedDevice> = vec![self.vsock.clone(), self.rng.clone()];
        if let Some(fs) = &self.fs {
            devices.push(fs.clone());
        }
        devices
    }

    /// Loads a guest and puts the first vCPU at its entry. Returns where the initramfs is.
    ///
    /// # Errors
    /// If the guest cannot be loaded.
    pub fn load(&self, kernel: &File, initramfs: &File) -> Result<Range<u64>, Error> {
        let vcpus = lock(&self.vcpus);
        let loaded = boot::load(&self.memory, kernel, initramfs, &self.cmdline, vcpus.max())?;
        if let Some(first) = vcpus.made().first() {
            vcpu::enter(&lock(first), boot::entry_state(loaded.entry))?;
        }
        Ok(loaded.initramfs)
    }
}

/// A machine whose devices are being plugged in.
struct Assembly<'a> {
    vm: &'a VmFd,
    memory: &'a GuestRam,
    slots: [Option<Arc<Transport>>; SLOTS],
    /// What the transports were, by slot; empty for a new machine.
    saved: Vec<Option<TransportState>>,
    cmdline: Cmdline,
}

impl Assembly<'_> {
    /// Puts `device` into `slot`, wires it and announces it.
    fn plug(&mut self, slot: Slot, device: SharedDevice) -> Result<(), Error> {
        let memory = self.memory.clone();
        let transport = if self.saved.is_empty() {
            Transport::new(device, memory)
                .map_err(|source| Error::Event("a virtio device", source))?
        } else {
            let saved = self.saved.get(slot.index()).and_then(Option::as_ref);
            let saved = saved.ok_or(Error::State("the devices"))?;
            Transport::restore(device, memory, saved)?
        };
        plug::connect(self.vm, slot, &transport)?;
        if let Some(place) = self.slots.get_mut(slot.index()) {
            *place = Some(Arc::new(transport));
        }
        self.cmdline.announce(slot);
        Ok(())
    }

    fn connect_line(&self, line: &EventFd, pin: u32) -> Result<(), Error> {
        Ok(self.vm.register_irqfd(line, pin).during("KVM_IRQFD")?)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn event(what: &'static str) -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| Error::Event(what, source))
}

/// Makes a VM with nothing in it.
///
/// # Errors
/// If KVM refuses.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            // A signal during the creation; nothing was created.
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.during("KVM_CREATE_VM"),
        }
    }
}

/// What every VM needs before its first vCPU: the IOAPIC kept out of KVM, and a place for what
/// Intel processors need.
///
/// # Errors
/// If KVM refuses.
pub fn prepare_vm(vm: &VmFd) -> Result<(), KvmError> {
    let mut cap = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    cap.args[0] = ioapic::PINS.into();
    vm.enable_cap(&cap)
        .during("KVM_ENABLE_CAP(SPLIT_IRQCHIP)")?;
    vm.set_tss_address(KVM_TSS).during("KVM_SET_TSS_ADDR")
}

/// What KVM can show a guest of the host's processor.
///
/// # Errors
/// If KVM refuses.
pub fn supported_cpuid(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .during("KVM_GET_SUPPORTED_CPUID")
}

/// The first `count` vCPUs of at most `max`.
fn create_vcpus(kvm: &Kvm, vm: Arc<VmFd>, count: u8, max: u8) -> Result<Vcpus, KvmError> {
    let supported = supported_cpuid(kvm)?;
    let topology = Topology {
        vcpus: max,
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
    };
    Vcpus::new(vm, supported, topology, count)
}
