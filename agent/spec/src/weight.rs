//! Weights of cgroup v1, which the specification has, as those of cgroup v2.
//!
//! The host limits the virtual machine and the guest the container: both have to find the same.

/// `cpu.shares` as `cpu.weight`: from 2..=262144 to 1..=10000 such that the defaults, 1024 and 100, go
/// with each other. The formula is that of runc since 1.3.2 and of crun since 1.23.
#[must_use]
pub fn cpu_weight(shares: u64) -> u64 {
    const WEIGHTS: std::ops::RangeInclusive<f64> = 1.0..=10_000.0;
    #[expect(clippy::cast_precision_loss, reason = "at most 2 to the 18th")]
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10_f64.powf(exponent).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a whole number within the range"
    )]
    let weight = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end()) as u64;
    weight
}

/// `blockIO.weight` as `io.weight`: from 10..=1000 to 1..=10000, linearly, as runc and crun do.
#[must_use]
pub fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights_as_with_others() {
        for (shares, weight) in [
            (0, 1),
            (1, 1),
            (2, 1),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
    }

    #[test]
    fn weights_of_block_devices_cover_the_range() {
        assert_eq!([0, 10, 500, 1000].map(io_weight), [1, 1, 4950, 10_000]);
    }
}
