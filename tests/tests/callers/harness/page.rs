//! Pages of the documentation, whose commands and settings are tried as they are printed.
//!
//! A test takes the fenced blocks of a page one after the other, and has to take all of them: one that is new, and that
//! nobody has decided on, fails it.

use std::collections::VecDeque;
use std::fs;

/// A fenced block, without the indentation of the list that it is in.
struct Block {
    language: String,
    text: String,
}

/// A page, and those of its blocks that were not taken.
pub(crate) struct Page {
    text: String,
    blocks: VecDeque<Block>,
}

impl Page {
    /// Reads `docs/NAME`.
    pub(crate) fn open(name: &str) -> Self {
        let path = format!("{}/../docs/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
        let blocks = blocks(&text);
        Self { text, blocks }
    }

    /// Takes the next block, which has to be of this language.
    pub(crate) fn take(&mut self, language: &str) -> String {
        let block = self.blocks.pop_front();
        let block = block.unwrap_or_else(|| panic!("no block of {language:?} is left"));
        assert_eq!(block.language, language, "{}", block.text);
        block.text
    }

    /// Passes over the next block, which cannot be tried here: it has to be this one.
    pub(crate) fn pass(&mut self, language: &str, text: &str) {
        assert_eq!(self.take(language), text);
    }

    /// Asserts that the page says so, however its lines are broken.
    pub(crate) fn assert_says(&self, words: &str) {
        let text: Vec<_> = self.text.split_whitespace().collect();
        assert!(text.join(" ").contains(words), "{words:?} is not said");
    }

    /// Asserts that every block was taken.
    pub(crate) fn assert_followed(&self) {
        let left: Vec<_> = self.blocks.iter().map(|block| &block.text).collect();
        assert!(left.is_empty(), "nobody has decided on {left:?}");
    }
}

fn blocks(page: &str) -> VecDeque<Block> {
    let mut blocks = VecDeque::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        let Some((indentation, language)) = line.split_once("```") else {
            continue;
        };
        let within = lines.by_ref().take_while(|line| line.trim() != "```");
        let text =
            within.map(|line| format!("{}\n", line.strip_prefix(indentation).unwrap_or(line)));
        blocks.push_back(Block {
            language: language.to_owned(),
            text: text.collect(),
        });
    }
    blocks
}
