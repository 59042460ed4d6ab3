//! What the device counts.

use serde::Serialize;

/// Counters since the device was made. They wrap only in theory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Packets to the guest.
    pub rx_packets: u64,
    /// Bytes of frames to the guest.
    pub rx_bytes: u64,
    /// Packets to the guest that its buffers could not hold.
    pub rx_dropped: u64,
    /// Buffers of the guest for packets that could hold none.
    pub rx_malformed: u64,
    /// Reads of a tap that failed.
    pub rx_errors: u64,
    /// Times that packets to the guest had to wait for the rate limit.
    pub rx_waits: u64,
    /// Times that the driver had no buffer for the next packet, whether there was one already or not.
    pub rx_no_buffers: u64,
    /// Packets from the guest.
    pub tx_packets: u64,
    /// Bytes of frames from the guest.
    pub tx_bytes: u64,
    /// Packets from the guest that the kernel refused, or that came while the link was down.
    pub tx_dropped: u64,
    /// Descriptor chains from the guest that held no packet.
    pub tx_malformed: u64,
    /// Times that packets from the guest had to wait for the rate limit.
    pub tx_waits: u64,
    /// Times that packets from the guest had to wait for the tap.
    pub tx_full: u64,
    /// Commands that were refused.
    pub refused_commands: u64,
    /// Virtqueues that were broken.
    pub queue_errors: u64,
}
