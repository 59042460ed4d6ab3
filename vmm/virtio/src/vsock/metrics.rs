//! What the device counts.

use serde::Serialize;

/// Counters since the device was made. They wrap only in theory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Packets from the guest.
    pub tx_packets: u64,
    /// Bytes of streams from the guest.
    pub tx_bytes: u64,
    /// Packets to the guest.
    pub rx_packets: u64,
    /// Bytes of streams to the guest.
    pub rx_bytes: u64,
    /// Streams that host processes asked for.
    pub host_connects: u64,
    /// Streams that the guest asked for.
    pub guest_connects: u64,
    /// Streams of the guest that were refused: no such port, too many, or the host said no.
    pub refused_connects: u64,
    /// Streams of the guest that were refused since it asked too often.
    pub throttled_connects: u64,
    /// Host processes that were turned away: no proper first line, or too many streams.
    pub failed_handshakes: u64,
    /// Times that accepting a host process failed.
    pub accept_errors: u64,
    /// RST packets to the guest.
    pub resets_sent: u64,
    /// RST packets from the guest.
    pub resets_received: u64,
    /// Descriptor chains that held no packet.
    pub malformed_chains: u64,
    /// Packets dropped since they were not from this guest to the host.
    pub misaddressed_packets: u64,
    /// Streams ended since the guest broke the protocol.
    pub violations: u64,
    /// Virtqueues that were broken.
    pub queue_errors: u64,
}
