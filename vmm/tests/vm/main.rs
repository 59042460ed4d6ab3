//! Whole VMs, run by the program itself. They need a KVM that runs guests and a guest kernel; see
//! `harness::kvm_expected` and `harness::kernel`.
#![expect(
    unsafe_code,
    reason = "a descriptor is put in place between fork and exec"
)]

mod boot;
mod control;
mod cost;
mod harness;
mod jail;
