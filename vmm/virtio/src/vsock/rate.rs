//! A bound on how often the guest may make the host open a stream.

use std::time::{Duration, Instant};

/// A bucket of permits that fills with time.
#[derive(Debug)]
pub(super) struct RateLimit {
    burst: u32,
    /// The time that brings one permit.
    interval: Duration,
    /// The time until which permits have been given out; it runs ahead of the clock by at most
    /// `burst` intervals.
    spent_until: Option<Instant>,
}

impl RateLimit {
    pub(super) fn new(burst: u32, per_second: u32) -> Self {
        Self {
            burst,
            interval: Duration::from_secs(1) / per_second.max(1),
            spent_until: None,
        }
    }

    /// Takes a permit, if there is one at `now`.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let start = self.spent_until.map_or(now, |until| until.max(now));
        let until = start + self.interval;
        let granted = until.saturating_duration_since(now) <= self.interval * self.burst;
        if granted {
            self.spent_until = Some(until);
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_granted_and_comes_back_with_time() {
        let mut limit = RateLimit::new(3, 10);
        let start = Instant::now();
        let grants = |limit: &mut RateLimit, now| (0..10).filter(|_| limit.take(now)).count();
        assert_eq!(grants(&mut limit, start), 3);
        assert_eq!(grants(&mut limit, start + Duration::from_millis(99)), 0);
        assert_eq!(grants(&mut limit, start + Duration::from_millis(100)), 1);
        assert_eq!(grants(&mut limit, start + Duration::from_secs(60)), 3);
    }
}
