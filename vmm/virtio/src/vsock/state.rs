//! What outlives the device.

use serde::{Deserialize, Serialize};

use super::{Config, muxer};

/// The device in a form that can be stored. Its queues are in the transport's state.
///
/// Streams are not carried over: their host ends belong to processes that may not exist any more.
/// A driver that was there is told by a transport reset event, upon which it reads the context id
/// anew; `guest_cid` may thus be changed in between.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// The guest's context id.
    pub guest_cid: u32,
    /// The host ports that a guest process may connect to.
    pub host_ports: Vec<u32>,
    /// Where the search for a free host port goes on, so that a port is not used again soon.
    pub next_host_port: u32,
    /// Whether a driver was using the device.
    pub driver_active: bool,
}

impl State {
    pub(super) fn first(config: Config) -> Self {
        Self {
            guest_cid: config.guest_cid,
            host_ports: config.host_ports,
            next_host_port: muxer::FIRST_HOST_PORT,
            driver_active: false,
        }
    }
}
