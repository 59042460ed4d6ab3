//! A limit on what a guest can make its VMM write to the log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Lines in a window before the rest of the window is only counted.
const BURST: u32 = 10;
/// The length of a window.
const WINDOW: Duration = Duration::from_secs(5);

/// Counts log lines that a guest has caused and says which of them to write.
#[derive(Debug)]
pub struct Throttle {
    window: Mutex<Option<Window>>,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    lines: u32,
}

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Write it, after saying that `dropped` lines before it were not written.
    Write {
        /// Lines that were left out since the last one that was written.
        dropped: u32,
    },
    /// Leave it out.
    Drop,
}

/// The throttle behind [`warn_guest!`](crate::warn_guest), one for the whole process: a guest that
/// breaks the rules of every device in turn gets no more lines than one that breaks a single rule.
pub static GUEST: Throttle = Throttle::new();

impl Throttle {
    /// A throttle that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            window: Mutex::new(None),
        }
    }

    /// Counts a line at `now` and decides about it.
    pub fn admit(&self, now: Instant) -> Verdict {
        let Ok(mut guard) = self.window.lock() else {
            return Verdict::Drop;
        };
        let mut dropped = 0;
        let window = match guard.as_mut() {
            Some(window) if now.duration_since(window.start) < WINDOW => window,
            stale => {
                dropped = stale.map_or(0, |w| w.lines.saturating_sub(BURST));
                guard.insert(Window {
                    start: now,
                    lines: 0,
                })
            }
        };
        window.lines = window.lines.saturating_add(1);
        if window.lines > BURST {
            Verdict::Drop
        } else {
            Verdict::Write { dropped }
        }
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new()
    }
}

/// Logs a warning that the guest has caused, unless it has caused too many of late.
#[macro_export]
macro_rules! warn_guest {
    ($($argument:tt)+) => {
        if let $crate::throttle::Verdict::Write { dropped } =
            $crate::throttle::GUEST.admit(::std::time::Instant::now())
        {
            if dropped > 0 {
                ::log::warn!("{dropped} lines caused by the guest were left out");
            }
            ::log::warn!($($argument)+);
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_and_counted() {
        let throttle = Throttle::new();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(throttle.admit(start), Verdict::Write { dropped: 0 });
        }
        for _ in 0..7 {
            assert_eq!(throttle.admit(start), Verdict::Drop);
        }
        assert_eq!(
            throttle.admit(start + WINDOW),
            Verdict::Write { dropped: 7 }
        );
        assert_eq!(
            throttle.admit(start + WINDOW),
            Verdict::Write { dropped: 0 }
        );
    }
}
