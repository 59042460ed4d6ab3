//! PID 1 of the guest: builds containers inside the virtual machine.

fn main() {}
