//! The end of what a machine wrote to its console.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// How much is kept: about two hundred lines.
const KEPT: usize = 16 << 10;

/// Collects streams on threads of its own and keeps the end of what they said together.
#[derive(Debug, Default)]
pub(super) struct Tail {
    kept: Arc<Mutex<VecDeque<u8>>>,
    readers: Vec<JoinHandle<io::Result<()>>>,
}

impl Tail {
    /// Reads `stream` until it ends.
    pub(super) fn follow(&mut self, stream: impl Read + Send + 'static) -> io::Result<()> {
        let kept = Arc::clone(&self.kept);
        let reader = thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || read_all(stream, &kept))?;
        self.readers.push(reader);
        Ok(())
    }

    /// Waits until every stream has ended, and gives the text.
    pub(super) fn finish(self) -> String {
        let mut text = String::new();
        for reader in self.readers {
            if let Ok(Err(error)) = reader.join() {
                text = format!("(console lost: {error})\n");
            }
        }
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        text + &last_lines(kept.make_contiguous())
    }
}

fn read_all(mut stream: impl Read, kept: &Mutex<VecDeque<u8>>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // How a socket says that a killed machine left bytes unread.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(buffer.get(..count).unwrap_or_default());
        let surplus = kept.len().saturating_sub(KEPT);
        kept.drain(..surplus);
    }
}

/// The last whole lines of a console's output, as text.
pub(super) fn last_lines(bytes: &[u8]) -> String {
    let start = bytes.len().saturating_sub(KEPT);
    let mut text =
        String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).replace('\r', "");
    if start > 0
        && let Some(end_of_partial_line) = text.find('\n')
    {
        text.drain(..=end_of_partial_line);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_is_kept() {
        let mut tail = Tail::default();
        let long: String = (0..10_000).map(|line| format!("line {line}\r\n")).collect();
        tail.follow(io::Cursor::new(long)).unwrap();
        let text = tail.finish();
        assert!(text.len() <= KEPT);
        assert!(text.ends_with("line 9998\nline 9999\n"));
    }

    #[test]
    fn several_streams_are_kept_together() {
        let mut tail = Tail::default();
        tail.follow(io::Cursor::new("console\n")).unwrap();
        tail.follow(io::Cursor::new("complaint")).unwrap();
        let text = tail.finish();
        assert!(
            text.contains("console\n") && text.contains("complaint"),
            "{text}"
        );
    }

    #[test]
    fn a_line_that_is_cut_is_left_out() {
        let mut bytes = vec![b'x'; KEPT];
        bytes.extend(b"\nwhole\n");
        assert_eq!(last_lines(&bytes), "whole\n");
        assert_eq!(last_lines(b"short"), "short\n");
        assert_eq!(last_lines(b""), "");
    }
}
