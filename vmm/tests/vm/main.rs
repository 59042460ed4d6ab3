//! Whole VMs, run by the program itself. They need a KVM that runs guests and a guest kernel; see
//! `harness::kvm_expected` and `harness::kernel`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects"
)]
#![expect(
    unsafe_code,
    reason = "a descriptor is put in place between fork and exec, and taps are made"
)]

mod boot;
mod control;
mod cost;
mod grow;
mod harness;
mod jail;
mod net;
mod state;
mod tap;
mod vhost;
