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

/// An error with its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
