//! The vCPUs, some of which may come while the VM runs.
//!
//! ```text
//!            AddVcpus: KVM's vCPU ▸ its thread, at the gate        the guest's kernel: INIT, SIPI
//!   listed ──────────────────────────────────────────────▶ waiting ─────────────────────────────▶ running
//! ```
//!
//! The MP table and CPUID tell the guest of all that there can be. Those beyond the first ones cost the
//! host nothing before they are asked for. None is ever taken away.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use cloister_vmm_api::{Event, Request};
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::kvm::KvmError;
use crate::vcpu::{self, Topology};

/// Why there are not as many vCPUs as requested.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// More than there can be.
    #[error("vcpus: {got} given, at most {max} possible")]
    TooMany {
        /// The number that was given.
        got: u8,
        /// The number that there can be.
        max: u8,
    },
    /// KVM does not make one.
    #[error("cannot make vCPU {0}")]
    Create(u8, #[source] KvmError),
    /// Its thread cannot be started.
    #[error("cannot start the thread of vCPU {0}")]
    Thread(u8, #[source] io::Error),
}

/// A VM's vCPUs, by number.
pub struct Vcpus {
    vm: Arc<VmFd>,
    supported: CpuId,
    topology: Topology,
    made: Vec<Arc<Mutex<VcpuFd>>>,
    /// How many of them have a thread.
    started: u8,
}

/// Starts the thread of the vCPU with this number.
pub type Start = Box<dyn Fn(u8, Arc<Mutex<VcpuFd>>) -> io::Result<()>>;

impl Vcpus {
    /// The first `count` of as many as `topology` has, without threads.
    ///
    /// # Errors
    /// If KVM does not make them.
    pub fn new(
        vm: Arc<VmFd>,
        supported: CpuId,
        topology: Topology,
        count: u8,
    ) -> Result<Self, KvmError> {
        let mut this = Self {
            vm,
            supported,
            topology,
            made: Vec::with_capacity(count.into()),
            started: 0,
        };
        for id in 0..count {
            this.create(id)?;
        }
        Ok(this)
    }

    /// Those that there are.
    #[must_use]
    pub fn made(&self) -> &[Arc<Mutex<VcpuFd>>] {
        &self.made
    }

    /// How many there can be.
    #[must_use]
    pub fn max(&self) -> u8 {
        self.topology.vcpus
    }

    /// Starts the threads of those that there are.
    ///
    /// # Errors
    /// If one cannot be started.
    pub fn start(&mut self, start: &Start) -> Result<(), Refusal> {
        let count = u8::try_from(self.made.len()).unwrap_or(u8::MAX);
        self.grow(count, start)
    }

    /// Follows a request for more of them, and returns the answer.
    ///
    /// # Errors
    /// A request that is about something else is given back.
    pub fn follow(&mut self, request: Request, start: &Start) -> Result<Event, Box<Request>> {
        let Request::AddVcpus { vcpus } = request else {
            return Err(Box::new(request));
        };
        Ok(match self.grow(vcpus, start) {
            Ok(()) => Event::VcpusAdded {
                vcpus: self.started,
            },
            Err(refusal) => Event::GrowthRefused {
                message: crate::chain(&refusal),
            },
        })
    }

    fn grow(&mut self, count: u8, start: &Start) -> Result<(), Refusal> {
        let max = self.max();
        if count > max {
            return Err(Refusal::TooMany { got: count, max });
        }
        for id in self.started..count {
            // One whose thread could not be started is there already: KVM does not make it anew.
            let vcpu = match self.made.get(usize::from(id)) {
                Some(vcpu) => vcpu.clone(),
                None => self.add(id).map_err(|e| Refusal::Create(id, e))?,
            };
            start(id, vcpu).map_err(|e| Refusal::Thread(id, e))?;
            self.started = id + 1;
        }
        Ok(())
    }

    /// One more, beside those that run.
    fn add(&mut self, id: u8) -> Result<Arc<Mutex<VcpuFd>>, KvmError> {
        let vcpu = self.create(id)?;
        vcpu::announce(&vcpu.lock().unwrap_or_else(PoisonError::into_inner))?;
        Ok(vcpu)
    }

    fn create(&mut self, id: u8) -> Result<Arc<Mutex<VcpuFd>>, KvmError> {
        let vcpu = vcpu::create(&self.vm, &self.supported, self.topology, id)?;
        let vcpu = Arc::new(Mutex::new(vcpu));
        self.made.push(vcpu.clone());
        Ok(vcpu)
    }
}
