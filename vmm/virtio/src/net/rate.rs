//! A bound on what passes in one direction.

use std::time::{Duration, Instant};

use super::RateLimit;

/// The shortest time to wait: a timer for less costs more than it brings.
const SHORTEST: Duration = Duration::from_millis(1);

/// A bucket of bytes, or of whatever else is counted, that fills with time. It may hold less than nothing: what is left of a packet that
/// was larger than what was in it.
#[derive(Debug)]
pub(super) struct Bucket {
    limit: RateLimit,
    bytes: i128,
    filled: Instant,
}

impl Bucket {
    pub(super) fn new(limit: RateLimit, now: Instant) -> Self {
        Self {
            limit,
            bytes: limit.burst.into(),
            filled: now,
        }
    }

    /// Whether a packet may pass at `now`.
    pub(super) fn ready(&mut self, now: Instant) -> bool {
        let nanos = now.saturating_duration_since(self.filled).as_nanos();
        // Nothing that can be multiplied here overflows 128 bits before the machine is 500 years up.
        let gained = nanos.saturating_mul(self.limit.bytes_per_second.into()) / 1_000_000_000;
        if gained > 0 {
            let gained = i128::try_from(gained).unwrap_or(i128::MAX);
            self.bytes = (self.bytes.saturating_add(gained)).min(self.limit.burst.into());
            self.filled = now;
        }
        self.bytes > 0
    }

    /// Takes what a packet has.
    pub(super) fn spend(&mut self, bytes: usize) {
        // No packet is that long.
        self.bytes -= i128::try_from(bytes).unwrap_or_default();
    }

    /// How long it takes until a packet may pass.
    pub(super) fn wait(&self) -> Duration {
        let missing = u128::try_from(1 - self.bytes).unwrap_or_default();
        let rate = u128::from(self.limit.bytes_per_second.max(1));
        let millis = (missing.saturating_mul(1000)).div_ceil(rate);
        Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX)).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: RateLimit = RateLimit {
        bytes_per_second: 1000,
        burst: 500,
    };

    #[test]
    fn a_packet_larger_than_the_bucket_passes_and_is_paid_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(LIMIT, start);
        assert!(bucket.ready(start));
        bucket.spend(1500);
        assert!(!bucket.ready(start));
        let wait = bucket.wait();
        assert_eq!(wait, Duration::from_millis(1001));
        assert!(!bucket.ready(start + Duration::from_millis(1000)));
        assert!(bucket.ready(start + wait));
    }

    #[test]
    fn it_fills_up_to_its_burst_and_no_further() {
        let start = Instant::now();
        let mut bucket = Bucket::new(LIMIT, start);
        bucket.spend(500);
        assert!(bucket.ready(start + Duration::from_secs(1_000_000)));
        assert_eq!(bucket.bytes, 500);
    }

    #[test]
    fn small_steps_of_time_add_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(LIMIT, start);
        bucket.spend(500);
        for step in 1..=1000 {
            bucket.ready(start + Duration::from_micros(100) * step);
        }
        assert_eq!(bucket.bytes, 100);
    }

    #[test]
    fn extremes_do_not_overflow() {
        let limit = RateLimit {
            bytes_per_second: u64::MAX,
            burst: u64::MAX,
        };
        let start = Instant::now();
        let mut bucket = Bucket::new(limit, start);
        bucket.spend(usize::MAX);
        bucket.spend(usize::MAX);
        assert!(bucket.wait() >= Duration::from_millis(1000));
        assert!(bucket.ready(start + Duration::from_secs(1 << 30)));
    }
}
