//! The files of a cgroup.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use super::CgroupError;

/// Writes a value in one go. A file that is not there is not made.
pub(super) fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).truncate(true).open(path)?;
    file.write_all(value.as_bytes())
}

/// Reads a file; `None` if it is not there, or its cgroup has gone meanwhile.
pub(super) fn read(path: &Path) -> Result<Option<String>, CgroupError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if is_gone(&e) => Ok(None),
        Err(e) => Err(CgroupError::Read(path.to_owned(), e)),
    }
}

/// Whether an error says that a cgroup, or a file of it, is not there.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// Reads a number; `max` is the largest. `None` if the file is not there.
pub(super) fn number(path: &Path) -> Result<Option<u64>, CgroupError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    parse_number(text.trim())
        .map(Some)
        .ok_or_else(|| CgroupError::Parse {
            path: path.to_owned(),
            text: text.trim().to_owned(),
        })
}

/// A number, or `max`. The kernel shows some that are below zero for a moment.
pub(super) fn parse_number(text: &str) -> Option<u64> {
    match text {
        "max" => Some(u64::MAX),
        _ if text.starts_with('-') => text.parse::<i64>().ok().map(|_| 0),
        _ => text.parse().ok(),
    }
}

/// The pairs of a file with a name and a number a line. Lines of another form are left out.
pub(super) fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once([' ', '\t'])?;
        Some((name, parse_number(value.trim())?))
    })
}

/// The number that goes with a name; `None` if the file or the name is not there.
pub(super) fn number_of(path: &Path, name: &str) -> Result<Option<u64>, CgroupError> {
    let text = read(path)?.unwrap_or_default();
    Ok(pairs(&text).find_map(|(found, value)| (found == name).then_some(value)))
}

/// A list of processors or memory nodes, such as `0-3,7`.
pub(super) fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // More than any kernel can have.
        if first > last || last > 0xffff {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_lists_are_read() {
        assert_eq!(parse_number("max"), Some(u64::MAX));
        assert_eq!(parse_number("-4096"), Some(0));
        assert_eq!(parse_number("4096"), Some(4096));
        assert_eq!(parse_number("-x"), None);
        assert_eq!(parse_list("0-2, 7,\n"), Some(vec![0, 1, 2, 7]));
        assert_eq!(parse_list(""), Some(vec![]));
        for bad in ["a", "3-1", "0-99999999", "1-", "-1", "1:2"] {
            assert_eq!(parse_list(bad), None, "{bad}");
        }
        let text = "oom 1\noom_kill 2\nodd\nhalf x\n";
        assert_eq!(
            pairs(text).collect::<Vec<_>>(),
            [("oom", 1), ("oom_kill", 2)]
        );
    }

    #[test]
    fn a_file_that_is_not_there_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory.max");
        assert!(is_gone(&write(&path, "1").unwrap_err()));
        assert!(!path.exists());
        assert_eq!(number(&path).unwrap(), None);
        fs::write(&path, "something\n").unwrap();
        write(&path, "17").unwrap();
        assert_eq!(number(&path).unwrap(), Some(17));
        write(&path, "what").unwrap();
        let error = number(&path).unwrap_err().to_string();
        assert!(
            error.ends_with("memory.max: \"what\" is not understood"),
            "{error}"
        );
    }
}
