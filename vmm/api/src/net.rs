//! What a network device is made of.

use serde::{Deserialize, Serialize};

/// The slots for network devices that every VM has.
pub const NET_SLOTS: u8 = 4;
/// What stands for N in `virtio-mmio.N`, the name that the guest's kernel gives to the platform
/// device of network slot 0; those of the other slots follow. A driver that is bound to the name
/// (`/sys/bus/platform/drivers/virtio-mmio/bind`) looks into the slot anew.
pub const NET_PLATFORM_ID: u8 = 5;
/// The most queue pairs of a network device.
pub const MAX_QUEUE_PAIRS: u8 = 8;
/// The least MTU that a device may announce: what IPv4 asks of every link (RFC 791).
const MIN_MTU: u16 = 68;
/// The least burst of a rate limit, in bytes: a packet of the largest size, so that none has to wait
/// for more than a bucket can hold.
const MIN_BURST: u64 = 64 * 1024;

/// A virtio network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The address that the guest uses; not a group address.
    pub mac: [u8; 6],
    /// The largest MTU that the guest may use, if it is to be told one.
    pub mtu: Option<u16>,
    /// Receive and transmit queue pairs, 1 to [`MAX_QUEUE_PAIRS`]; each has a descriptor of the tap.
    pub queue_pairs: u8,
    /// How fast the guest may receive, over all queues.
    pub rx_limit: Option<RateLimit>,
    /// How fast the guest may send, over all queues.
    pub tx_limit: Option<RateLimit>,
}

/// A bucket of bytes that fills with time. What exceeds it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// How fast it fills.
    pub bytes_per_second: u64,
    /// What it holds, at least 64 KiB.
    pub burst: u64,
}

/// Why a [`NetConfig`] makes no device.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NetConfigError {
    /// `mac` is all zeros or a group address.
    #[error("mac: must be the address of one interface")]
    Mac,
    /// `mtu` is out of range.
    #[error("mtu: {got} given, at least {MIN_MTU} possible")]
    Mtu {
        /// The size that was given.
        got: u16,
    },
    /// `queue_pairs` is out of range.
    #[error("queue_pairs: {got} given, 1 to {MAX_QUEUE_PAIRS} possible")]
    QueuePairs {
        /// The number that was given.
        got: u8,
    },
    /// A rate is zero.
    #[error("{field}.bytes_per_second: must not be 0")]
    Rate {
        /// Which limit.
        field: &'static str,
    },
    /// A burst is too small.
    #[error("{field}.burst: {got} given, at least {MIN_BURST} possible")]
    Burst {
        /// Which limit.
        field: &'static str,
        /// The burst that was given.
        got: u64,
    },
}

impl NetConfig {
    /// Checks every field against what a device can be.
    ///
    /// # Errors
    /// The first field that does not hold, by name.
    pub fn validate(&self) -> Result<(), NetConfigError> {
        // IEEE 802: the lowest bit of the first byte marks a group.
        if self.mac == [0; 6] || self.mac.first().is_none_or(|byte| byte & 1 != 0) {
            return Err(NetConfigError::Mac);
        }
        if let Some(got) = self.mtu.filter(|mtu| *mtu < MIN_MTU) {
            return Err(NetConfigError::Mtu { got });
        }
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queue_pairs) {
            let got = self.queue_pairs;
            return Err(NetConfigError::QueuePairs { got });
        }
        for (field, limit) in [("rx_limit", self.rx_limit), ("tx_limit", self.tx_limit)] {
            let Some(limit) = limit else { continue };
            if limit.bytes_per_second == 0 {
                return Err(NetConfigError::Rate { field });
            }
            if limit.burst < MIN_BURST {
                let got = limit.burst;
                return Err(NetConfigError::Burst { field, got });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> NetConfig {
        NetConfig {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(1500),
            queue_pairs: 1,
            rx_limit: None,
            tx_limit: Some(RateLimit {
                bytes_per_second: 1,
                burst: MIN_BURST,
            }),
        }
    }

    #[test]
    fn a_plain_config_holds() {
        assert_eq!(config().validate(), Ok(()));
    }

    #[test]
    fn each_field_is_checked_and_named() {
        type Change = fn(&mut NetConfig);
        let limit = |bytes_per_second, burst| RateLimit {
            bytes_per_second,
            burst,
        };
        let no_rate = limit(0, MIN_BURST);
        let no_burst = limit(1, 10);
        let cases: [(Change, &str); 5] = [
            (|c| c.mac = [0; 6], "mac:"),
            (|c| c.mac[0] = 1, "mac:"),
            (|c| c.mtu = Some(67), "mtu: 67"),
            (|c| c.queue_pairs = 0, "queue_pairs: 0"),
            (|c| c.queue_pairs = 9, "queue_pairs: 9"),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
        for (limit, expected) in [
            (no_rate, "rx_limit.bytes_per_second:"),
            (no_burst, "rx_limit.burst: 10"),
        ] {
            let mut config = config();
            config.rx_limit = Some(limit);
            let message = config.validate().unwrap_err().to_string();
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
