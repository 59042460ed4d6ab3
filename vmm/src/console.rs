//! The guest's console: a file that is kept bounded.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

/// The file never grows beyond this many bytes.
pub const LIMIT: u64 = 256 * 1024;
/// A line longer than this is written in pieces.
const LINE: usize = 1024;

/// Collects what the guest prints and writes it to a file line by line. When the file would grow
/// past [`LIMIT`], its older half is dropped.
#[derive(Debug)]
pub struct Console {
    file: File,
    length: u64,
    line: Vec<u8>,
}

impl Console {
    /// Starts at the end of `file`.
    ///
    /// # Errors
    /// If `file` is not a regular file or has no length.
    pub fn new(file: File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        Ok(Self {
            file,
            length: metadata.len(),
            line: Vec::with_capacity(LINE),
        })
    }

    /// Writes what has been collected of an unfinished line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        let added = self.line.len() as u64;
        if self.length + added > LIMIT {
            self.drop_older_half()?;
        }
        let written = self.file.write_all_at(&self.line, self.length);
        // What could not be written is lost, not collected without bound.
        self.line.clear();
        written?;
        self.length += added;
        Ok(())
    }

    /// Moves the newer half, from its first whole line on, to the front.
    fn drop_older_half(&mut self) -> io::Result<()> {
        let kept = self.length.min(LIMIT / 2);
        let mut newer = vec![0; usize::try_from(kept).unwrap_or_default()];
        self.file.read_exact_at(&mut newer, self.length - kept)?;
        let start = newer
            .iter()
            .position(|b| *b == b'\n')
            .map_or(0, |at| at + 1);
        let newer = newer.get(start..).unwrap_or_default();
        self.file.write_all_at(newer, 0)?;
        self.length = newer.len() as u64;
        self.file.set_len(self.length)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.line.push(*byte);
            if *byte == b'\n' || self.line.len() >= LINE {
                self.finish()?;
            }
        }
        Ok(bytes.len())
    }

    /// Nothing: the serial port asks for it after every byte.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(file: &File) -> String {
        let length = file.metadata().unwrap().len();
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_appear_when_they_are_whole() {
        let file = tempfile::tempfile().unwrap();
        let mut console = Console::new(file.try_clone().unwrap()).unwrap();
        console.write_all(b"one\ntw").unwrap();
        assert_eq!(text(&file), "one\n");
        console.finish().unwrap();
        assert_eq!(text(&file), "one\ntw");
    }

    #[test]
    fn the_file_is_bounded_and_keeps_the_newest() {
        let file = tempfile::tempfile().unwrap();
        let mut console = Console::new(file.try_clone().unwrap()).unwrap();
        for n in 0..60_000 {
            writeln!(console, "line {n}").unwrap();
            assert!(console.length <= LIMIT);
        }
        let text = text(&file);
        assert!(text.len() as u64 >= LIMIT / 2 - 16, "{}", text.len());
        assert!(text.ends_with("line 59999\n"));
        assert!(text.starts_with("line "));
        let first: u32 = text.lines().next().unwrap()[5..].parse().unwrap();
        assert_eq!(text.lines().count(), 60_000 - first as usize);
    }

    #[test]
    fn a_pipe_is_no_console() {
        let (_reader, writer) = std::io::pipe().unwrap();
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        assert!(Console::new(file).is_err());
    }
}
