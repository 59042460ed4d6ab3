//! One KVM virtual machine in one jailed process.
