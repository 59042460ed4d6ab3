//! The outcomes of tests in what a Rust test program prints: a bed in which one after the other fails is likely to be what
//! has failed.

/// A line that is longer has no outcome.
const LONGEST_LINE: usize = 4096;

/// Counts failures in a row.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    line: Vec<u8>,
    /// A test was named, and what it says comes before its outcome.
    running: bool,
    failed_in_a_row: u32,
}

impl Outcomes {
    /// Takes what was printed next; tells how many tests in a row have failed by now.
    pub(super) fn take(&mut self, printed: &[u8]) -> u32 {
        for &byte in printed {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            }
        }
        self.failed_in_a_row
    }

    fn end_line(&mut self) {
        self.running |=
            self.line.starts_with(b"test ") && self.line.windows(5).any(|part| part == b" ... ");
        let line = self.line.trim_ascii_end();
        if self.running {
            let ends =
                |outcome: &[u8]| line == outcome || line.ends_with(&[b" ... ", outcome].concat());
            if ends(b"ok") {
                (self.running, self.failed_in_a_row) = (false, 0);
            } else if ends(b"FAILED") {
                (self.running, self.failed_in_a_row) = (false, self.failed_in_a_row + 1);
            }
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_are_counted() {
        let mut outcomes = Outcomes::default();
        assert_eq!(outcomes.take(b"test a::b ... ok\ntest a::c ... FAI"), 0);
        assert_eq!(outcomes.take(b"LED\ntest a::d ... ignored\n"), 1);
        assert_eq!(
            outcomes.take(b"test a::d ... said\n/ # exit 7\r\n\r\nFAILED\n"),
            2
        );
        // Padded, and followed by what it says.
        assert_eq!(outcomes.take(b"test a::e       ... FAILED\n"), 3);
        assert_eq!(outcomes.take(b"test a::f ... \nsaid\nFAILED\n"), 4);
        assert_eq!(outcomes.take(b"test a::g ... ok\n"), 0);
        assert_eq!(outcomes.take(b"FAILED\nfailures:\nok\n"), 0);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut outcomes = Outcomes::default();
        outcomes.take(&[b'x'; 3 * LONGEST_LINE]);
        assert_eq!(outcomes.line.len(), LONGEST_LINE);
    }
}
