//! What the device counts.

use serde::Serialize;

/// Counters since the device was made. They wrap only in theory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// Requests that were carried out.
    pub acknowledged: u64,
    /// Requests to plug more than is requested.
    pub refused: u64,
    /// Requests that no driver should make.
    pub errors: u64,
    /// Buffers that held no request, or had no room for its answer.
    pub malformed: u64,
    /// Pieces of memory that could not be taken out of the memory file.
    pub kept: u64,
    /// Failures of the queue that took the device out of service.
    pub queue_errors: u64,
}
