//! Processors that the host has added: the kernel knows them from the start, and starts them when it is
//! told to (Documentation/ABI/testing/sysfs-devices-system-cpu).

use std::fs;
use std::io;
use std::path::Path;

/// The processors' directories.
pub(crate) const PROCESSORS: &str = "/sys/devices/system/cpu";
/// More than any machine has.
const MAX: u32 = 4096;

/// Starts processors until the first `count` run, or one does not start. Tells how many of them run.
pub(crate) fn bring_online(processors: &Path, count: u32) -> io::Result<u32> {
    for number in 0..count.min(MAX) {
        let online = processors.join(format!("cpu{number}/online"));
        let is_online = match fs::read(&online) {
            Ok(text) => text.starts_with(b"1"),
            // The first one cannot be stopped, and has no such file.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                if number != 0 {
                    return Ok(number);
                }
                true
            }
            Err(e) => return Err(e),
        };
        if !is_online && let Err(e) = fs::write(&online, "1") {
            log::warn!("processor {number} does not start: {e}");
            return Ok(number);
        }
    }
    Ok(count.min(MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says what it expects")]
mod tests {
    use super::*;

    #[test]
    fn those_that_stand_still_are_started_up_to_the_first_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let online = |number: u32| dir.path().join(format!("cpu{number}/online"));
        fs::create_dir(dir.path().join("cpu0")).unwrap();
        for (number, text) in [(1, "1\n"), (2, "0\n"), (3, "0\n")] {
            fs::create_dir(dir.path().join(format!("cpu{number}"))).unwrap();
            fs::write(online(number), text).unwrap();
        }
        assert_eq!(bring_online(dir.path(), 3).unwrap(), 3);
        let read = |number| fs::read_to_string(online(number)).unwrap();
        assert_eq!((read(2), read(3)), ("1".into(), "0\n".into()));
        assert_eq!(bring_online(dir.path(), 9).unwrap(), 4);
        assert_eq!(read(3), "1");
    }
}
