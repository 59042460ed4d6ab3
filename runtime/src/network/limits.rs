//! How fast a sandbox may send and receive.

use std::collections::HashMap;

use cloister_vmm_api::RateLimit;

use super::NetworkError;
use crate::config::Config;

/// The annotations of Kubernetes for a pod's bandwidth, in bits a second
/// (<https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/>).
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";

/// The least and the most that Kubernetes accepts, in bits a second.
const RANGE: std::ops::RangeInclusive<u64> = 1_000..=1_000_000_000_000_000;

/// What a bucket holds: what a tenth of a second brings, and a packet of the largest size at least.
const BURST_PER_SECOND: u64 = 10;
const MIN_BURST: u64 = 64 * 1024;

/// How fast the interfaces of a sandbox may be, each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// To the sandbox.
    pub(crate) receive: Option<RateLimit>,
    /// From the sandbox.
    pub(crate) send: Option<RateLimit>,
}

impl Limits {
    /// Those that a pod's annotations ask for, and those of the configuration where they do not.
    pub(crate) fn new(
        annotations: &HashMap<String, String>,
        config: &Config,
    ) -> Result<Self, NetworkError> {
        let limit = |annotation: &'static str, default: Option<u64>| {
            let bits = match annotations.get(annotation) {
                None => default,
                Some(value) => Some(bandwidth(value).ok_or_else(|| NetworkError::Bandwidth {
                    annotation,
                    value: value.clone(),
                })?),
            };
            Ok(bits.map(|bits| {
                let bytes_per_second = bits / 8;
                RateLimit {
                    bytes_per_second,
                    burst: (bytes_per_second / BURST_PER_SECOND).max(MIN_BURST),
                }
            }))
        };
        Ok(Self {
            receive: limit(INGRESS, config.network_receive_limit)?,
            send: limit(EGRESS, config.network_send_limit)?,
        })
    }
}

/// Bits a second, as Kubernetes writes them.
pub(crate) fn bandwidth(text: &str) -> Option<u64> {
    quantity(text).filter(|bits| RANGE.contains(bits))
}

/// A quantity of Kubernetes: a decimal number and a suffix or an exponent, as a whole number, rounded up
/// (<https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>).
fn quantity(text: &str) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = text.split_at(end.unwrap_or(text.len()));
    let (factor, exponent): (u128, i32) = match suffix {
        "" => (1, 0),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        other => (1, other.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits: u128 = [whole, part].concat().parse().ok()?;
    let exponent = exponent.checked_sub(i32::try_from(part.len()).ok()?)?;
    let value = digits.checked_mul(factor)?;
    let power = 10_u128.checked_pow(exponent.unsigned_abs());
    let value = match power {
        Some(power) if exponent < 0 => value.div_ceil(power),
        Some(power) => value.checked_mul(power)?,
        None => return None,
    };
    value.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, value) in [
            ("1M", 1_000_000),
            ("10k", 10_000),
            ("1.5M", 1_500_000),
            ("4Ki", 4096),
            (".5k", 500),
            ("123", 123),
            ("1e6", 1_000_000),
            ("1.5E+3", 1_500),
            ("12345e-2", 124),
            ("0.0001E", 100_000_000_000_000),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for text in [
            "",
            "M",
            "1X",
            "1m",
            "-1",
            "1.2.3",
            "99999999999P",
            "1e",
            "1e6M",
            "1e99",
            "1e-99",
        ] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn a_bandwidth_becomes_bytes_and_a_wrong_one_is_named() {
        let mut config = Config::load(None, Path::new("/nonexistent"), |_| None).unwrap();
        let annotations = HashMap::from([(INGRESS.to_owned(), "80M".to_owned())]);
        let limits = Limits::new(&annotations, &config).unwrap();
        let receive = limits.receive.unwrap();
        assert_eq!(receive.bytes_per_second, 10_000_000);
        assert_eq!(receive.burst, 1_000_000);
        assert_eq!(limits.send, None);

        config.network_receive_limit = Some(8_000);
        config.network_send_limit = Some(8_000);
        let limits = Limits::new(&annotations, &config).unwrap();
        assert_eq!(limits.receive, Some(receive), "the pod's goes first");
        assert_eq!(limits.send.unwrap().bytes_per_second, 1_000);

        let annotations = HashMap::from([(EGRESS.to_owned(), "fast".to_owned())]);
        let error = Limits::new(&annotations, &config).unwrap_err().to_string();
        assert_eq!(
            error,
            "config.json: annotations[\"kubernetes.io/egress-bandwidth\"]: \"fast\" is no bandwidth"
        );
    }
}
