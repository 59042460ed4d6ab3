//! The place of libFuzzer in a test: it runs a fuzz target on its corpus, which is kept beside it, and on inputs that are made
//! of that, the same ones every time. To find new ones there is `tests/fuzz`.
//!
//! A test program includes this file and the targets as modules, and calls itself by libFuzzer's name:
//! `extern crate self as libfuzzer_sys`.

use std::fs;
use std::path::Path;

/// As libFuzzer's, but the target is called by a test.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: $type:ty| $body:block) => {
        pub(crate) fn run(bytes: &[u8]) {
            let unstructured = arbitrary::Unstructured::new(bytes);
            if let Ok($input) = <$type as arbitrary::Arbitrary>::arbitrary_take_rest(unstructured) {
                $body
            }
        }
    };
}

/// The longest input.
const LENGTH: u64 = 4096;

/// Runs a target on its corpus in `directory`, then on `count` inputs.
pub(crate) fn check(directory: &str, count: u64, run: fn(&[u8])) {
    let mut corpus: Vec<_> = fs::read_dir(Path::new(directory))
        .expect("the target has a corpus")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    // The order in which a directory has them is not the same everywhere.
    corpus.sort();
    let corpus: Vec<_> = corpus
        .iter()
        .map(|path| {
            let bytes = fs::read(path).expect("an input");
            attempt(&path.display().to_string(), &bytes, run);
            bytes
        })
        .collect();
    for number in 0..count {
        attempt(&format!("input {number}"), &input(&corpus, number), run);
    }
}

/// Says which input it was that a target did not survive.
fn attempt(name: &str, bytes: &[u8], run: fn(&[u8])) {
    let outcome = std::panic::catch_unwind(|| run(bytes));
    if let Err(panic) = outcome {
        let bytes = bytes.escape_ascii();
        eprintln!("{name}: b\"{bytes}\"");
        std::panic::resume_unwind(panic);
    }
}

/// One of the corpus with some bytes changed, or one by chance.
fn input(corpus: &[Vec<u8>], number: u64) -> Vec<u8> {
    let mut random = Random(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    if !number.is_multiple_of(4) && !corpus.is_empty() {
        let mut bytes = random.choice(corpus).clone();
        // Half of this one, and half of another.
        if number % 4 == 3 {
            bytes.truncate(bytes.len() / 2);
            let other = random.choice(corpus);
            bytes.extend(other.iter().skip(other.len() / 2));
        }
        for _ in 0..=random.below(8) {
            let at = random.below(bytes.len().max(1) as u64);
            let value = random.byte();
            if let Some(byte) = usize::try_from(at).ok().and_then(|at| bytes.get_mut(at)) {
                *byte = value;
            }
        }
        return bytes;
    }
    // Lists go on for as long as there is an odd number before an item: let there be enough of them.
    let odd = 2 << random.below(6);
    (0..random.below(LENGTH))
        .map(|_| match random.below(odd) {
            0 => random.byte(),
            _ => random.byte() | 1,
        })
        .collect()
}

/// A generator of numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn byte(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn choice<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        let at = usize::try_from(self.below(all.len() as u64)).unwrap_or_default();
        &all[at]
    }
}
