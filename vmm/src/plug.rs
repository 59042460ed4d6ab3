//! The wires between KVM and a device's transport.

use cloister_virtio::mmio::{QUEUE_NOTIFY, Transport};
use kvm_ioctls::{IoEventAddress, VmFd};

use crate::kvm::{KvmError, Operation as _};
use crate::layout::Slot;

/// Makes a notification of a queue signal its kick without an exit, and the transport's line raise the
/// slot's interrupt.
///
/// # Errors
/// If KVM refuses; then nothing is wired.
pub fn connect(vm: &VmFd, slot: Slot, transport: &Transport) -> Result<(), KvmError> {
    let wired = wire(vm, slot, transport);
    if wired.is_err() {
        disconnect(vm, slot, transport);
    }
    wired
}

fn wire(vm: &VmFd, slot: Slot, transport: &Transport) -> Result<(), KvmError> {
    for (index, kick) in (0_u32..).zip(transport.kicks()) {
        vm.register_ioevent(kick, &notify(slot), index)
            .during("KVM_IOEVENTFD")?;
    }
    vm.register_irqfd(transport.line(), slot.line())
        .during("KVM_IRQFD")
}

/// Undoes [`connect`], also where it has come half-way only.
pub fn disconnect(vm: &VmFd, slot: Slot, transport: &Transport) {
    // What was never wired is not found. Anything else cannot fail, and could not be helped: KVM
    // keeps a descriptor that nobody signals any more.
    for (index, kick) in (0_u32..).zip(transport.kicks()) {
        let _ = vm.unregister_ioevent(kick, &notify(slot), index);
    }
    let _ = vm.unregister_irqfd(transport.line(), slot.line());
}

fn notify(slot: Slot) -> IoEventAddress {
    IoEventAddress::Mmio(slot.address() + QUEUE_NOTIFY)
}
