//! Virtio transport and devices.
