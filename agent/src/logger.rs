//! The agent's log: JSON lines to the host's log port.
//!
//! A line is put into a bounded queue and never waits: when the host does not keep up, lines are
//! counted and dropped, and the next line that gets through says how many. The connection is made
//! for the first line, so a start with nothing to say does not pay for it.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cloister_protocol::{LOG_LINE_MAX, LOG_PORT};
use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tokio::sync::Notify;

use crate::socket::Socket;

/// The most lines that wait to be sent.
const QUEUE_MAX: usize = 256;

/// The parameter of the kernel's command line that sets the level.
const PARAMETER: &str = "cloister.log=";

static LOGGER: Logger = Logger {
    queue: Mutex::new(Queue {
        lines: VecDeque::new(),
        dropped: 0,
    }),
    filled: Notify::const_new(),
};

struct Logger {
    queue: Mutex<Queue>,
    filled: Notify,
}

struct Queue {
    lines: VecDeque<Vec<u8>>,
    dropped: u64,
}

/// One line of the log.
#[derive(Serialize)]
struct Line<'a> {
    /// Guest CLOCK_BOOTTIME in nanoseconds.
    boottime_ns: u64,
    level: &'a str,
    target: &'a str,
    message: &'a str,
    /// How many lines before this one were lost.
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

/// Makes this the process's log, at the level that the kernel's command line asks for.
pub(crate) fn install(cmdline: &str) {
    let wanted = cmdline
        .split_ascii_whitespace()
        .filter_map(|parameter| parameter.strip_prefix(PARAMETER))
        .next_back();
    let level = wanted.map_or(Some(LevelFilter::Info), |wanted| wanted.parse().ok());
    // Only a second call could fail, and there is none.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level.unwrap_or(LevelFilter::Info));
    }
    if level.is_none() {
        log::warn!(
            "{PARAMETER}{}: not a level: off, error, warn, info, debug, trace",
            wanted.unwrap_or_default()
        );
    }
}

/// Sends lines to the host, for ever.
pub(crate) async fn forward() {
    loop {
        LOGGER.filled.notified().await;
        if let Err(e) = send_lines().await {
            // There is no other place to say it; the next line tries again.
            LOGGER.lock().lose(&e);
        }
    }
}

/// Sends lines until the connection fails.
async fn send_lines() -> io::Result<()> {
    let socket = Socket::connect_host(LOG_PORT)?;
    socket.connected().await?;
    loop {
        while let Some(line) = LOGGER.next_line() {
            let mut rest = line.as_slice();
            while !rest.is_empty() {
                match socket.send(rest).await {
                    Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                    Err(e) => {
                        LOGGER.lock().dropped += 1;
                        return Err(e);
                    }
                }
            }
        }
        LOGGER.filled.notified().await;
    }
}

impl Logger {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_line(&self) -> Option<Vec<u8>> {
        self.lock().lines.pop_front()
    }
}

impl Queue {
    fn push(&mut self, level: Level, target: &str, message: &str) {
        if self.lines.len() >= QUEUE_MAX {
            self.dropped += 1;
            return;
        }
        let line = encode(Line {
            boottime_ns: boottime_ns(),
            level: level.as_str(),
            target,
            message,
            dropped: self.dropped,
        });
        if let Some(line) = line {
            self.dropped = 0;
            self.lines.push_back(line);
        } else {
            self.dropped += 1;
        }
    }

    /// Counts what a broken connection has lost.
    fn lose(&mut self, error: &io::Error) {
        self.dropped += self.lines.len() as u64;
        self.lines.clear();
        let target = module_path!();
        self.push(
            Level::Warn,
            target,
            &format!("log connection lost: {error}"),
        );
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let message = record.args().to_string();
            self.lock().push(record.level(), record.target(), &message);
            self.filled.notify_one();
        }
    }

    fn flush(&self) {}
}

/// The line as JSON, its message cut so that it fits.
fn encode(mut line: Line<'_>) -> Option<Vec<u8>> {
    let longest = line.message.floor_char_boundary(LOG_LINE_MAX);
    line.message = line.message.get(..longest)?;
    loop {
        let mut bytes = serde_json::to_vec(&line).ok()?;
        bytes.push(b'\n');
        let excess = bytes.len().saturating_sub(LOG_LINE_MAX);
        if excess == 0 {
            return Some(bytes);
        }
        if line.message.is_empty() {
            return None;
        }
        // A character of the message takes at most six bytes of JSON (a \u escape).
        let cut = excess.div_ceil(6);
        let end = line.message.len().saturating_sub(cut);
        line.message = line.message.get(..line.message.floor_char_boundary(end))?;
    }
}

/// Guest CLOCK_BOOTTIME in nanoseconds.
pub(crate) fn boottime_ns() -> u64 {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or_default();
    seconds * 1_000_000_000 + nanoseconds
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue {
        Queue {
            lines: VecDeque::new(),
            dropped: 0,
        }
    }

    fn json(line: &[u8]) -> serde_json::Value {
        assert_eq!(line.last(), Some(&b'\n'));
        assert!(line.len() <= LOG_LINE_MAX);
        serde_json::from_slice(line).unwrap()
    }

    #[test]
    fn a_line_is_one_json_object() {
        let mut queue = queue();
        queue.push(Level::Warn, "agent::x", "two\nlines and a \"quote\"");
        let line = json(&queue.lines.pop_front().unwrap());
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["target"], "agent::x");
        assert_eq!(line["message"], "two\nlines and a \"quote\"");
        assert!(line["boottime_ns"].as_u64().unwrap() > 0);
        assert!(line.get("dropped").is_none());
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        for message in [
            "x".repeat(10_000),
            "\u{1}".repeat(10_000),
            "ä€".repeat(10_000),
        ] {
            let mut queue = queue();
            queue.push(Level::Error, "t", &message);
            let line = queue.lines.pop_front().unwrap();
            let kept = json(&line)["message"].as_str().unwrap().to_owned();
            assert!(message.starts_with(&kept));
            assert!(line.len() > LOG_LINE_MAX - 16, "{} bytes used", line.len());
        }
    }

    #[test]
    fn a_full_queue_counts_what_it_drops_and_says_so_later() {
        let mut queue = queue();
        for _ in 0..QUEUE_MAX + 3 {
            queue.push(Level::Info, "t", "m");
        }
        assert_eq!(queue.lines.len(), QUEUE_MAX);
        queue.lines.clear();
        queue.push(Level::Info, "t", "m");
        assert_eq!(json(&queue.lines.pop_front().unwrap())["dropped"], 3);
        queue.push(Level::Info, "t", "m");
        assert!(
            json(&queue.lines.pop_front().unwrap())
                .get("dropped")
                .is_none()
        );
    }

    #[test]
    fn a_lost_connection_counts_the_lines_it_took_with_it() {
        let mut queue = queue();
        queue.push(Level::Info, "t", "m");
        queue.push(Level::Info, "t", "m");
        queue.lose(&io::ErrorKind::ConnectionReset.into());
        let line = json(&queue.lines.pop_front().unwrap());
        assert_eq!(line["dropped"], 2);
        assert!(queue.lines.is_empty());
    }
}
