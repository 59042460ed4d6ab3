//! What a sandbox has of its network: the interfaces and the slots that they take, and what its guest
//! was told.

use std::net::Ipv4Addr;

use cloister_netlink::Socket;
use cloister_protocol::agent::SetNetworkRequest;
use cloister_vmm_api::NET_SLOTS;

use super::ConnectError;
use crate::network::{Interface, NetworkError, Scan};
use crate::text::chain;

/// An interface that the guest has.
pub(super) struct Plugged {
    pub(super) slot: u8,
    pub(super) interface: Interface,
    pub(super) tap: u32,
}

/// What has been done so far.
#[derive(Default)]
pub(super) struct Links {
    pub(super) plugged: Vec<Plugged>,
    /// What the guest has no longer, while the VMM may have its device still.
    pub(super) leaving: Vec<Plugged>,
    pub(super) told: SetNetworkRequest,
    /// The name servers of the namespace that are stood in for.
    pub(super) resolvers: Vec<Ipv4Addr>,
    /// What was warned of when the namespace was last looked at.
    warnings: Vec<String>,
}

impl Links {
    /// A slot that surely has no device.
    pub(super) fn free_slot(&self) -> Option<u8> {
        let taken = self.plugged.iter().chain(&self.leaving).map(|p| p.slot);
        (0..NET_SLOTS).find(|slot| taken.clone().all(|taken| taken != *slot))
    }

    /// What there is about the interfaces that the guest has.
    pub(super) fn scan(&self, socket: &Socket) -> Result<Scan, NetworkError> {
        let has = |index| self.plugged.iter().any(|p| p.interface.index == index);
        Scan::read(socket, |interface| has(interface.index))
    }

    /// Gives the first failure. The others, and what was left out, are told in the log, once until it is over.
    pub(super) fn first(
        &mut self,
        failures: Vec<ConnectError>,
        left_out: Vec<String>,
    ) -> Result<(), ConnectError> {
        let mut failures = failures.into_iter();
        let first = failures.next();
        let warnings = failures.map(|e| chain(&e)).chain(left_out);
        let warnings: Vec<_> = warnings.collect();
        for warning in warnings.iter().filter(|w| !self.warnings.contains(w)) {
            log::warn!("{warning}");
        }
        self.warnings = warnings;
        first.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plugged(slot: u8) -> Plugged {
        Plugged {
            slot,
            interface: Interface::example(7),
            tap: 8,
        }
    }

    #[test]
    fn a_slot_that_may_have_a_device_still_is_not_free() {
        let mut links = Links::default();
        assert_eq!(links.free_slot(), Some(0));
        links.plugged.push(plugged(0));
        links.leaving.push(plugged(1));
        assert_eq!(links.free_slot(), Some(2));
        links.leaving.push(plugged(2));
        links.plugged.push(plugged(3));
        assert_eq!(links.free_slot(), None);
        links.leaving.clear();
        assert_eq!(links.free_slot(), Some(1));
    }
}
