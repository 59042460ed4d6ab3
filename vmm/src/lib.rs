//! One KVM virtual machine in one jailed process.
//!
//! ```text
//!   session   boot request, event loop, exit event          main thread = event thread
//!   machine   the VM put together: memory, vCPUs, devices
//!   boot      kernel, initramfs and what the kernel reads
//!   vcpu      set-up, run loop, gate                        one thread a vCPU
//!   vcpus     those that there are, and those that come
//!   ram       the memory that there is, and what comes
//!   nets      network devices, which come and go
//!   jail      what is left of the process when the guest starts
//!   bus       ports and addresses: ioapic, console, virtio
//!   check     whether this machine's KVM can run guests
//!   state     a VM in a form that can be stored
//!   layout    where everything is
//! ```
//!
//! The process knows nothing of containers. It opens nothing: everything it needs comes as a
//! descriptor over the control socket (`cloister_vmm_api`). A vCPU thread counts as hostile from
//! its first instruction in the guest.

pub mod boot;
pub mod bus;
pub mod check;
pub mod clock;
pub mod connector;
pub mod console;
pub mod ioapic;
pub mod jail;
pub mod kvm;
pub mod layout;
pub mod logger;
pub mod machine;
pub mod memory;
pub mod nets;
pub mod parts;
pub mod plug;
pub mod ram;
pub mod session;
pub mod state;
pub mod vcpu;
pub mod vcpus;

pub use cloister_virtio::chain;
