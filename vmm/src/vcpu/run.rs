//! The loop of a vCPU thread: into the guest, and back out for what KVM does not do itself.

#![allow(unsafe_code)] // Reads a union of the KVM interface.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::gate::{self, Gate};
use crate::bus::{Bus, Effect};
use crate::kvm::KvmError;

/// Why a vCPU will not run again.
#[derive(Debug)]
pub enum Ending {
    /// The guest asked for it in order.
    Shutdown,
    /// The guest reset the machine.
    Reset,
    /// The vCPU triple-faulted.
    TripleFault,
    /// It cannot go on.
    Failure(Failure),
}

/// Why a vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// KVM refused to run it.
    #[error("vCPU {vcpu}: KVM_RUN failed")]
    Run {
        /// Which vCPU.
        vcpu: u8,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// An exit that nothing can follow.
    #[error("vCPU {vcpu}: {exit}; {registers}")]
    Exit {
        /// Which vCPU.
        vcpu: u8,
        /// The exit, with what KVM says about it.
        exit: String,
        /// The registers that tell where the guest was.
        registers: String,
    },
    /// What the guest asked for could not be done.
    #[error("vCPU {vcpu}")]
    Kvm {
        /// Which vCPU.
        vcpu: u8,
        /// What and why.
        #[source]
        source: KvmError,
    },
}

/// What a vCPU thread tells the rest of the process.
pub trait Outside: Send {
    /// The guest's init says that it runs.
    fn init(&self);
    /// The vCPU has come to its end.
    fn ended(&self, ending: Ending);
}

/// A vCPU with all its thread needs.
pub struct Runner<O> {
    /// Its number.
    pub id: u8,
    /// The vCPU. Its thread holds the lock but for the time it stands at the gate.
    pub vcpu: Arc<Mutex<VcpuFd>>,
    /// What is around it.
    pub bus: Arc<Bus>,
    /// What stops it.
    pub gate: Arc<Gate>,
    /// Whom it reports to.
    pub outside: O,
}

enum Next {
    Enter,
    Wait,
    End(Ending),
}

impl<O: Outside> Runner<O> {
    /// Runs until the vCPU comes to its end, and never returns: the process ends without its vCPU
    /// threads.
    pub fn run(self) {
        gate::arm_vcpu(&mut self.lock());
        self.gate.enrol();
        loop {
            self.gate.pass();
            if let Some(ending) = self.run_until_kicked() {
                self.outside.ended(ending);
                self.gate.retire();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VcpuFd> {
        self.vcpu.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run_until_kicked(&self) -> Option<Ending> {
        let mut vcpu = self.lock();
        loop {
            match self.enter(&mut vcpu) {
                Next::Enter => {}
                Next::Wait => {
                    vcpu.set_kvm_immediate_exit(0);
                    return None;
                }
                Next::End(ending) => return Some(ending),
            }
        }
    }

    fn enter(&self, vcpu: &mut VcpuFd) -> Next {
        let exit = match vcpu.run() {
            Ok(exit) => exit,
            Err(error) => return self.interrupted(error),
        };
        let failed = match exit {
            VcpuExit::IoIn(port, data) => {
                self.bus.port_read(port, data);
                return Next::Enter;
            }
            VcpuExit::IoOut(port, data) => return self.port_write(port, data),
            VcpuExit::MmioRead(address, data) => {
                self.bus.memory_read(address, data);
                return Next::Enter;
            }
            VcpuExit::MmioWrite(address, data) => {
                return match self.bus.memory_write(address, data) {
                    Ok(()) => Next::Enter,
                    Err(source) => Next::End(Ending::Failure(Failure::Kvm {
                        vcpu: self.id,
                        source,
                    })),
                };
            }
            VcpuExit::Shutdown => return Next::End(Ending::TripleFault),
            VcpuExit::Intr => return Next::Wait,
            // Every pin is edge-triggered: nothing waits for its end.
            VcpuExit::IoapicEoi(_) => return Next::Enter,
            VcpuExit::FailEntry(reason, cpu) => {
                format!("entry failed on CPU {cpu}, hardware reason {reason:#x}")
            }
            VcpuExit::InternalError => internal_error(vcpu),
            other => format!("unexpected exit {other:?}"),
        };
        Next::End(Ending::Failure(Failure::Exit {
            vcpu: self.id,
            exit: failed,
            registers: registers(vcpu),
        }))
    }

    fn port_write(&self, port: u16, data: &[u8]) -> Next {
        match self.bus.port_write(port, data) {
            Effect::None => Next::Enter,
            Effect::Init => {
                self.outside.init();
                Next::Enter
            }
            Effect::Shutdown => Next::End(Ending::Shutdown),
            Effect::Reset => Next::End(Ending::Reset),
        }
    }

    fn interrupted(&self, error: kvm_ioctls::Error) -> Next {
        match error.errno() {
            libc::EINTR => Next::Wait,
            libc::EAGAIN => Next::Enter,
            _ => Next::End(Ending::Failure(Failure::Run {
                vcpu: self.id,
                source: error,
            })),
        }
    }
}

/// What KVM says about an internal error.
fn internal_error(vcpu: &mut VcpuFd) -> String {
    let run = vcpu.get_kvm_run();
    // SAFETY: the exit reason says that this is the member in use; every bit pattern is valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata).unwrap_or_default();
    let data = internal.data.get(..count).unwrap_or(&internal.data);
    let kind = match internal.suberror {
        kvm_bindings::KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate an instruction",
        kvm_bindings::KVM_INTERNAL_ERROR_SIMUL_EX => "simultaneous exceptions",
        kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
        _ => "KVM internal error",
    };
    format!("{kind}, suberror {}, data {data:x?}", internal.suberror)
}

/// The registers that tell where a guest was.
fn registers(vcpu: &VcpuFd) -> String {
    match (vcpu.get_regs(), vcpu.get_sregs()) {
        (Ok(regs), Ok(sregs)) => format!(
            "rip={:#x} rsp={:#x} rflags={:#x} cr0={:#x} cr2={:#x} cr3={:#x} cr4={:#x} efer={:#x}",
            regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.efer
        ),
        (Err(error), _) | (_, Err(error)) => format!("registers unknown: {error}"),
    }
}
