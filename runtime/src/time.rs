//! Time stamps: RFC 3339 for what people and callers read, `CLOCK_MONOTONIC` for durations.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
    seconds.saturating_mul(1_000_000_000).saturating_add(nanos)
}

/// The time now, in UTC, to the second.
#[must_use]
pub fn rfc3339_now() -> String {
    let (seconds, _) = since_epoch();
    format!("{}Z", civil(seconds))
}

/// The time now, in UTC, to the nanosecond, without trailing zeros (Go's `RFC3339Nano`).
#[must_use]
pub fn rfc3339_nano_now() -> String {
    let (seconds, nanos) = since_epoch();
    with_nanos(seconds, nanos)
}

fn with_nanos(seconds: u64, nanos: u32) -> String {
    let fraction = format!(".{nanos:09}");
    let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
    format!("{}{fraction}Z", civil(seconds))
}

fn since_epoch() -> (u64, u32) {
    // A clock before 1970 is shown as 1970.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (now.as_secs(), now.subsec_nanos())
}

/// `YYYY-MM-DDThh:mm:ss` of a number of seconds since 1970, in the proleptic Gregorian calendar.
fn civil(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Counted from 1 March 0000, so that a leap day is the last day of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right_around_leap_days_and_year_ends() {
        // Expected values from `date -u -d @N +%FT%T`.
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ] {
            assert_eq!(civil(seconds), expected);
        }
    }

    #[test]
    fn fractions_lose_their_trailing_zeros() {
        assert_eq!(with_nanos(0, 0), "1970-01-01T00:00:00Z");
        assert_eq!(with_nanos(0, 120_000_000), "1970-01-01T00:00:00.12Z");
        assert_eq!(with_nanos(0, 1), "1970-01-01T00:00:00.000000001Z");
    }
}
