//! Virtio devices for a virtual machine monitor.
//!
//! This crate knows virtio (queues, feature bits, configuration spaces) and guest memory. It does
//! not know KVM, containers or the process it runs in: an interrupt is an event descriptor that
//! somebody has wired to the guest, a notification is an event descriptor that somebody signals.
//! The rules are those of the *Virtual I/O Device (VIRTIO) Version 1.3* specification, cited as
//! `virtio-v1.3 §…` where they are enforced.

mod chain;
pub mod device;
pub mod fs;
pub mod kicks;
pub mod mem;
pub mod mmio;
pub mod net;
mod poll;
pub mod rng;
pub mod throttle;
pub mod vsock;
