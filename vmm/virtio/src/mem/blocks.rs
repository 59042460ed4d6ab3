//! Which blocks are plugged: a bit each.

use std::ops::Range;

/// The blocks of a region, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: u64,
    plugged: u64,
}

/// Whether blocks are plugged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mixture {
    All,
    None,
    Some,
}

const BITS: u64 = u64::BITS as u64;

/// The word and the bit of a block.
fn place(block: u64) -> (usize, u64) {
    // A region has at most 2^19 blocks.
    let word = usize::try_from(block / BITS).unwrap_or(usize::MAX);
    (word, 1 << (block % BITS))
}

impl Blocks {
    /// `count` blocks, none of them plugged.
    pub(super) fn new(count: u64) -> Self {
        let words = usize::try_from(count.div_ceil(BITS)).unwrap_or_default();
        Self {
            words: vec![0; words],
            count,
            plugged: 0,
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// How many are plugged.
    pub(super) fn plugged(&self) -> u64 {
        self.plugged
    }

    fn is_plugged(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.words.get(word).is_some_and(|word| word & bit != 0)
    }

    /// What holds of all `blocks`.
    pub(super) fn mixture(&self, blocks: Range<u64>) -> Mixture {
        let length = blocks.end.saturating_sub(blocks.start);
        let plugged = blocks.filter(|&block| self.is_plugged(block)).count() as u64;
        match plugged {
            0 => Mixture::None,
            all if all == length => Mixture::All,
            _ => Mixture::Some,
        }
    }

    /// Makes `blocks` plugged, or not.
    pub(super) fn set(&mut self, blocks: Range<u64>, plugged: bool) {
        for block in blocks.start..blocks.end.min(self.count) {
            if self.is_plugged(block) == plugged {
                continue;
            }
            let (word, bit) = place(block);
            if let Some(word) = self.words.get_mut(word) {
                *word ^= bit;
            }
            if plugged {
                self.plugged += 1;
            } else {
                self.plugged -= 1;
            }
        }
    }

    /// The runs of plugged blocks: first block and length.
    pub(super) fn runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for block in (0..self.count).filter(|&block| self.is_plugged(block)) {
            match runs.last_mut() {
                Some((first, length)) if *first + *length == block => *length += 1,
                _ => runs.push((block, 1)),
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_and_told_as_runs() {
        let mut blocks = Blocks::new(130);
        assert_eq!(blocks.mixture(0..130), Mixture::None);
        blocks.set(60..70, true);
        blocks.set(65..68, true);
        blocks.set(128..500, true);
        assert_eq!(blocks.plugged(), 12);
        assert_eq!(blocks.runs(), [(60, 10), (128, 2)]);
        assert_eq!(blocks.mixture(60..70), Mixture::All);
        assert_eq!(blocks.mixture(59..61), Mixture::Some);
        blocks.set(0..66, false);
        assert_eq!(blocks.runs(), [(66, 4), (128, 2)]);
        assert_eq!(blocks.plugged(), 6);
    }
}
