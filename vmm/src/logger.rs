//! The log of a VMM process: one line a record on standard error.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

/// The environment variable that sets the level.
pub const LEVEL_VARIABLE: &str = "CLOISTER_LOG";

struct Stderr;

static STDERR: Stderr = Stderr;

impl Log for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            // One write a line, so that lines of several processes do not mix.
            let line = format!("cloister-vmm: {}: {}\n", record.level(), record.args());
            // There is nowhere to report that the log cannot be written.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Starts logging at `level`.
pub fn init(level: LevelFilter) {
    if log::set_logger(&STDERR).is_ok() {
        log::set_max_level(level);
    }
}

/// The level that the environment asks for; warnings if it does not say.
///
/// # Errors
/// The value, if it is not a level.
pub fn level_from_environment() -> Result<LevelFilter, String> {
    match std::env::var_os(LEVEL_VARIABLE) {
        None => Ok(LevelFilter::Warn),
        Some(value) => {
            let value = value.to_string_lossy();
            value.parse().map_err(|_| value.into_owned())
        }
    }
}
