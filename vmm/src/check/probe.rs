//! Guests of a few instructions: 64-bit mode, ring 0, the result to a port.

use std::os::unix::thread::JoinHandleExt;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};

use crate::boot;
use crate::layout::{EXTENDED_RAM_START, port};
use crate::machine;
use crate::memory;
use crate::vcpu::{self, Topology, gate};

/// RAM of a probe: tables, program and scratch space.
const RAM: u64 = 4 << 20;
/// How long a vCPU may take to leave the guest once it is told to.
const GRACE: Duration = Duration::from_secs(2);

/// A program and what it has to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Program {
    code: Vec<u8>,
    pub(super) expected: u8,
}

/// How a probe has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The program gave `value`.
    Done { value: u8, elapsed: Duration },
    /// It did not end in time.
    TimedOut,
    /// It ended otherwise.
    Failed(String),
}

/// Why a probe could not be run.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    #[error("cannot handle the kick signal")]
    Signal(#[source] std::io::Error),
}

impl Program {
    /// `body`, then AL to the port.
    fn new(body: &[&[u8]], expected: u8) -> Self {
        let [low, high] = port::CONTROL.to_le_bytes();
        let mut code = body.concat();
        // mov dx, port; out dx, al; hlt
        code.extend_from_slice(&[0x66, 0xba, low, high, 0xee, 0xf4]);
        Self { code, expected }
    }

    /// Counts down from `iterations`.
    pub(super) fn count_down(iterations: u32) -> Self {
        Self::new(
            &[
                &[0xb9],
                &iterations.to_le_bytes(), // mov ecx, iterations
                &[0xff, 0xc9],             // 1: dec ecx
                &[0x75, 0xfc],             // jnz 1b
                &[0xb0, 1],                // mov al, 1
            ],
            1,
        )
    }

    /// Saves and restores the x87 and SSE state.
    pub(super) fn xsave() -> Self {
        Self::new(
            &[
                &[0x0f, 0x20, 0xe0],             // mov rax, cr4
                &[0x0d, 0x00, 0x02, 0x04, 0x00], // or eax, OSXSAVE | OSFXSR
                &[0x0f, 0x22, 0xe0],             // mov cr4, rax
                &[0x31, 0xc9],                   // xor ecx, ecx
                &[0x31, 0xd2],                   // xor edx, edx
                &[0xb8, 3, 0, 0, 0],             // mov eax, x87 | SSE
                &[0x0f, 0x01, 0xd1],             // xsetbv
                &[0xbf, 0, 0, 0x20, 0],          // mov edi, 2 MiB
                &[0x0f, 0xae, 0x27],             // xsave [rdi]
                &[0x0f, 0xae, 0x2f],             // xrstor [rdi]
                &[0xb0, 2],                      // mov al, 2
            ],
            2,
        )
    }

    /// Counts the bits of a number with sixteen of them.
    pub(super) fn popcnt() -> Self {
        Self::new(
            &[
                &[0xb8, 0xff, 0, 0xff, 0], // mov eax, 0x00ff00ff
                &[0xf3, 0x0f, 0xb8, 0xc0], // popcnt eax, eax
            ],
            16,
        )
    }
}

/// Runs `program` in a VM of its own, for at most `patience` and some grace.
pub(super) fn run(kvm: &Kvm, program: &Program, patience: Duration) -> Result<Outcome, Error> {
    let (vm, mut vcpu, memory) = assemble(kvm, program)?;
    gate::install_handler().map_err(Error::Signal)?;
    let (sender, receiver) = channel();
    let thread = std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || {
            gate::arm_vcpu(&mut vcpu);
            // Whoever waited has gone if this cannot be sent.
            let _ = sender.send(enter(&mut vcpu));
            // The VM and its memory stay until the guest is out for good.
            drop((vcpu, vm, memory));
        })
        .map_err(Error::Thread)?;
    match receiver.recv_timeout(patience) {
        Ok(outcome) => return Ok(outcome),
        Err(RecvTimeoutError::Disconnected) => {
            return Ok(Outcome::Failed("the vCPU thread died".into()));
        }
        Err(RecvTimeoutError::Timeout) => {}
    }
    gate::kick(thread.as_pthread_t());
    // A KVM that does not even stop keeps its thread; the process ends without it.
    let _ = receiver.recv_timeout(GRACE);
    Ok(Outcome::TimedOut)
}

type Assembled = (VmFd, VcpuFd, cloister_virtio::device::GuestRam);

fn assemble(kvm: &Kvm, program: &Program) -> Result<Assembled, machine::Error> {
    let vm = machine::create_vm(kvm)?;
    let memory = memory::create(RAM)?;
    memory::attach(&vm, &memory)?;
    machine::prepare_vm(&vm)?;
    let supported = machine::supported_cpuid(kvm)?;
    let topology = Topology {
        vcpus: 1,
        tsc_deadline: false,
    };
    let vcpu = vcpu::create(&vm, &supported, topology, 0)?;
    boot::write_tables(&memory)?;
    memory
        .write_slice(&program.code, GuestAddress(EXTENDED_RAM_START))
        .map_err(|source| boot::Error::Write {
            structure: "probe",
            source,
        })?;
    vcpu::enter(&vcpu, boot::entry_state(EXTENDED_RAM_START))?;
    Ok((vm, vcpu, memory))
}

fn enter(vcpu: &mut VcpuFd) -> Outcome {
    let start = Instant::now();
    match vcpu.run() {
        Ok(VcpuExit::IoOut(port::CONTROL, &[value, ..])) => Outcome::Done {
            value,
            elapsed: start.elapsed(),
        },
        Ok(VcpuExit::Shutdown) => Outcome::Failed("triple fault".into()),
        Ok(exit) => Outcome::Failed(format!("{exit:?}")),
        Err(error) => Outcome::Failed(format!("KVM_RUN failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_end_at_the_port() {
        for program in [Program::count_down(5), Program::xsave(), Program::popcnt()] {
            assert!(
                program
                    .code
                    .ends_with(&[0x66, 0xba, 0xe0, 0x05, 0xee, 0xf4])
            );
        }
        assert!(
            Program::count_down(0x0102_0304)
                .code
                .starts_with(&[0xb9, 4, 3, 2, 1])
        );
    }
}
