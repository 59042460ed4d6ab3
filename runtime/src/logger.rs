//! The log of the command line, in the two forms that callers of runc read.
//!
//! containerd and Podman give `--log FILE --log-format json` and take the last line of level
//! `error` for the reason of a failure; people read the text form on standard error.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use serde::{Deserialize, Serialize};

use crate::time::rfc3339_now;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// `time="…" level=… msg="…"`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the lines go.
enum Sink {
    Stderr,
    File(File),
    Nowhere,
}

/// What the targets of our own lines begin with: the names of our crates and programs.
const OURS: [&str; 2] = ["cloister", "containerd_shim_cloister"];

struct Logger {
    format: LogFormat,
}

static SINK: Mutex<Sink> = Mutex::new(Sink::Nowhere);

fn sink() -> MutexGuard<'static, Sink> {
    // A thread that panicked while it wrote a line has left a sink that can be written to.
    SINK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens a log file for appending.
///
/// # Errors
/// If it cannot be opened or made.
pub fn open(path: &Path) -> io::Result<File> {
    // The form and the mode are runc's: a log is also a place for others to write to.
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
}

/// Sends this process' log to `file`, or to standard error if there is none.
///
/// Only the first call of a process has an effect.
pub fn start(file: Option<File>, format: LogFormat, level: LevelFilter) {
    if log::set_boxed_logger(Box::new(Logger { format })).is_ok() {
        *sink() = file.map_or(Sink::Stderr, Sink::File);
        log::set_max_level(level);
    }
}

/// Sends what is logged from now on to a file, or nowhere if it could not be opened.
pub fn move_to(file: io::Result<File>) {
    *sink() = file.map_or(Sink::Nowhere, Sink::File);
}

/// Closes the log: whoever waits for the end of what is written to it waits no longer.
pub fn stop() {
    *sink() = Sink::Nowhere;
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries report as errors what callers here handle.
        let is_own = |name: &str| metadata.target().starts_with(name);
        OURS.into_iter().any(is_own) || log::max_level() >= LevelFilter::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format_line(
            self.format,
            &rfc3339_now(),
            record.level(),
            &record.args().to_string(),
        );
        // A log that cannot be written has nowhere to say so.
        let _ = match &mut *sink() {
            Sink::Stderr => io::stderr().write_all(line.as_bytes()),
            Sink::File(file) => file.write_all(line.as_bytes()),
            Sink::Nowhere => Ok(()),
        };
    }

    fn flush(&self) {}
}

/// One line of the log.
#[must_use]
pub fn format_line(format: LogFormat, time: &str, level: Level, message: &str) -> String {
    let level = match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    };
    match format {
        LogFormat::Text => format!(
            "time=\"{time}\" level={level} msg={}\n",
            quote_if_needed(message)
        ),
        LogFormat::Json => {
            #[derive(Serialize)]
            struct Line<'a> {
                level: &'a str,
                msg: &'a str,
                time: &'a str,
            }
            let line = Line {
                level,
                msg: message,
                time,
            };
            // Three strings always have a JSON form.
            let mut line = serde_json::to_string(&line).unwrap_or_default();
            line.push('\n');
            line
        }
    }
}

/// logrus' rule: a value of these characters alone stands bare, any other is a Go string literal.
fn quote_if_needed(text: &str) -> String {
    let bare = |b: u8| {
        b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'/' | b'@' | b'^' | b'+')
    };
    if !text.is_empty() && text.bytes().all(bare) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_look_like_runcs() {
        assert_eq!(
            format_line(
                LogFormat::Text,
                "T",
                Level::Error,
                "container does not exist"
            ),
            "time=\"T\" level=error msg=\"container does not exist\"\n"
        );
        assert_eq!(
            format_line(LogFormat::Text, "T", Level::Warn, "a\"b\\c\nd\u{1b}"),
            "time=\"T\" level=warning msg=\"a\\\"b\\\\c\\nd\\u001b\"\n"
        );
        assert_eq!(
            format_line(LogFormat::Text, "T", Level::Info, "plain"),
            "time=\"T\" level=info msg=plain\n"
        );
        assert_eq!(
            format_line(LogFormat::Json, "T", Level::Error, "a \"b\"\n"),
            "{\"level\":\"error\",\"msg\":\"a \\\"b\\\"\\n\",\"time\":\"T\"}\n"
        );
    }
}
