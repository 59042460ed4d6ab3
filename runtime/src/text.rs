//! Text for a terminal and a log: errors, and what a guest has said.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// The last part of a guest's log that is looked at, in bytes.
const TAIL_BYTES: u64 = 8 * 1024;
/// The most lines of it that are shown.
const TAIL_LINES: usize = 20;
/// The longest line that is shown whole, in bytes.
const LINE_MAX: usize = 240;

/// Cuts a text to `max` bytes and replaces what could steer a terminal or break a line.
#[must_use]
pub fn printable(text: &str, max: usize) -> String {
    let mut clean = String::with_capacity(text.len().min(max));
    for c in text.chars() {
        let c = if is_safe(c) { c } else { ' ' };
        if clean.len() + c.len_utf8() > max {
            clean.push('…');
            break;
        }
        clean.push(c);
    }
    clean
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Whether a character neither moves the cursor nor turns the writing direction around.
fn is_safe(c: char) -> bool {
    !c.is_control()
        && !matches!(
            c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

/// The last lines of a log that a guest has written; empty if there are none.
///
/// # Errors
/// If the file is there but cannot be read.
pub fn last_lines(path: &Path) -> io::Result<Vec<String>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let len = file.metadata()?.len();
    let start = len.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<_> = text
        .lines()
        // The first line may have lost its beginning.
        .skip(usize::from(start > 0))
        .map(|line| without_escapes(line).trim_end().to_owned())
        .filter(|line| !line.is_empty())
        .map(|line| printable(&line, LINE_MAX))
        .collect();
    lines.drain(..lines.len().saturating_sub(TAIL_LINES));
    Ok(lines)
}

/// Leaves out terminal control sequences (ECMA-48 §5.4): escape, `[`, parameters, a final byte.
fn without_escapes(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            text.push(c);
        } else if chars.next_if_eq(&'[').is_some() {
            for c in chars.by_ref() {
                if ('\u{40}'..='\u{7e}').contains(&c) {
                    break;
                }
            }
        }
    }
    text
}

/// A truth value, in the words of Go's strconv.ParseBool.
#[must_use]
pub fn truth(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_gone() {
        assert_eq!(
            printable("a\u{1b}[31mb\n\r\u{202e}c\u{9b}d", 100),
            "a [31mb   c d"
        );
        assert_eq!(printable("grün 日本", 100), "grün 日本");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("日本", 4), "日…");
    }

    #[test]
    fn the_last_lines_are_short_few_and_clean() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(last_lines(&path).unwrap().is_empty());
        let mut text = String::new();
        for n in 0..1000 {
            text.push_str(&format!("line {n}\r\n\r\n"));
        }
        text.push_str("\u{1b}[1;31mpanic\u{1b}[0m: no init\n");
        text.push_str(&"x".repeat(1000));
        std::fs::write(&path, &text).unwrap();
        let lines = last_lines(&path).unwrap();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[0], "line 982");
        assert_eq!(lines[TAIL_LINES - 2], "panic: no init");
        assert_eq!(lines[TAIL_LINES - 1].len(), LINE_MAX + '…'.len_utf8());
    }

    #[test]
    fn bytes_that_are_no_text_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, [0xff, 0, b'a', 0x1b, b'[', b'\n', 0x1b]).unwrap();
        assert_eq!(last_lines(&path).unwrap(), ["\u{fffd} a"]);
    }
}
