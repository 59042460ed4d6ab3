//! What one side leaves to the other: from feature bits to the kernel's terms.
//!
//! virtio-v1.3 §5.1.3. `GUEST_*` is what the guest can take, which is what the tap may give; the
//! kernel takes from a tap whatever the header describes, so that `HOST_*` needs no word to it.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

/// include/uapi/linux/if_tun.h: the argument of TUNSETOFFLOAD.
pub(super) mod tun {
    pub(in super::super) const CSUM: u32 = 0x01;
    pub(in super::super) const TSO4: u32 = 0x02;
    pub(in super::super) const TSO6: u32 = 0x04;
    pub(in super::super) const TSO_ECN: u32 = 0x08;
    pub(in super::super) const USO4: u32 = 0x20;
    pub(in super::super) const USO6: u32 = 0x40;

    /// What every tap can.
    pub(in super::super) const BASIC: u32 = CSUM | TSO4 | TSO6 | TSO_ECN;
    /// UDP segments, since Linux 6.2.
    pub(in super::super) const USO: u32 = USO4 | USO6;
}

/// The offloads that every tap can.
const BASIC: u64 = 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN;
/// Those of UDP segments.
const USO: u64 =
    1 << VIRTIO_NET_F_GUEST_USO4 | 1 << VIRTIO_NET_F_GUEST_USO6 | 1 << VIRTIO_NET_F_HOST_USO;
/// Those of packets to the guest, which it can change while it runs.
const GUEST: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN
    | 1 << VIRTIO_NET_F_GUEST_USO4
    | 1 << VIRTIO_NET_F_GUEST_USO6;

/// What to offer over a tap.
pub(super) fn offered(uso: bool) -> u64 {
    if uso { BASIC | USO } else { BASIC }
}

/// The offloads of packets to the guest among `features`.
pub(super) fn of_guest(features: u64) -> u64 {
    features & GUEST
}

/// `offloads` as the tap is told. The kernel refuses what lacks something it depends on; a driver
/// that has left that out gets packets that are finished.
pub(super) fn to_tap(offloads: u64) -> u32 {
    let has = |bit: u32| offloads & 1 << bit != 0;
    // virtio-v1.3 §5.1.3.1: every other offload requires this one.
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let mut flags = tun::CSUM;
    if has(VIRTIO_NET_F_GUEST_TSO4) {
        flags |= tun::TSO4;
    }
    if has(VIRTIO_NET_F_GUEST_TSO6) {
        flags |= tun::TSO6;
    }
    if flags & (tun::TSO4 | tun::TSO6) != 0 && has(VIRTIO_NET_F_GUEST_ECN) {
        flags |= tun::TSO_ECN;
    }
    // The kernel takes them together only.
    if has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6) {
        flags |= tun::USO;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_offered_can_be_asked_of_the_tap() {
        assert_eq!(to_tap(offered(false)), tun::BASIC);
        assert_eq!(to_tap(offered(true)), tun::BASIC | tun::USO);
    }

    #[test]
    fn what_lacks_its_base_is_left_out() {
        let bit = |bit: u32| 1_u64 << bit;
        let csum = bit(VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(to_tap(!csum), 0);
        assert_eq!(to_tap(csum | bit(VIRTIO_NET_F_GUEST_ECN)), tun::CSUM);
        assert_eq!(to_tap(csum | bit(VIRTIO_NET_F_GUEST_USO4)), tun::CSUM);
        assert_eq!(of_guest(u64::MAX) & bit(VIRTIO_NET_F_HOST_TSO4), 0);
    }
}
