//! A dirty-word classifier: finds the words of a list in documents, and blots them out.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::Dice;

/// Words of the language, and how many of them are dirty.
const WORDS: u32 = 20_000;
const DIRTY: u32 = 1_000;
/// Words of a document.
const DOCUMENT_WORDS: usize = 100;

/// FNV-1a: the words are ours, so nobody can choose them to collide, and the table is the same in every process.
#[derive(Debug)]
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The model: the list of words.
#[derive(Debug)]
pub struct Classifier(HashSet<Vec<u8>, BuildHasherDefault<Fnv>>);

impl Classifier {
    /// The list that all systems have.
    #[must_use]
    pub fn load() -> Self {
        Self((0..DIRTY).map(word).collect())
    }

    /// `batch` with every letter of a dirty word as `*`. A document is a line.
    #[must_use]
    pub fn censor(&self, batch: &[u8]) -> Vec<u8> {
        let mut clean = batch.to_vec();
        for word in clean.split_mut(|byte| !byte.is_ascii_lowercase()) {
            if self.0.contains(&*word) {
                word.fill(b'*');
            }
        }
        clean
    }
}

/// The word with this number: 3 to 10 letters.
fn word(number: u32) -> Vec<u8> {
    let mut dice = Dice(u64::from(number));
    let len = 3 + dice.below(8);
    (0..len).map(|_| b'a' + u8::try_from(dice.below(26)).unwrap_or_default()).collect()
}

/// A batch of documents.
#[must_use]
pub fn batch(number: u64, documents: usize) -> Vec<u8> {
    let mut dice = Dice(number << 32);
    let mut batch = Vec::new();
    for _ in 0..documents {
        for _ in 0..DOCUMENT_WORDS {
            batch.extend(word(dice.below(WORDS)));
            batch.push(b' ');
        }
        batch.push(b'\n');
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_words_go_and_clean_ones_stay() {
        let classifier = Classifier::load();
        let (dirty, clean) = (word(7), word(DIRTY + 7));
        let text = [&b"a "[..], &dirty, b" ", &clean, b"\n", &dirty].concat();
        let stars = vec![b'*'; dirty.len()];
        assert_eq!(classifier.censor(&text), [&b"a "[..], &stars, b" ", &clean, b"\n", &stars].concat());
    }

    #[test]
    fn a_batch_has_its_documents_and_some_are_dirty() {
        let batch = batch(3, 10);
        assert_eq!(batch.iter().filter(|byte| **byte == b'\n').count(), 10);
        let censored = Classifier::load().censor(&batch);
        assert!(censored.len() == batch.len() && censored.contains(&b'*'));
    }
}
