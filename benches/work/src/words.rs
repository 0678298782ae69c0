//! Bytes that can be checked, and sums over them.

use crate::Dice;

/// Bytes of a word.
const WORD: usize = 8;

/// `len` bytes that depend on `seed`.
#[must_use]
pub fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut dice = Dice(seed);
    for word in bytes.chunks_mut(WORD) {
        word.copy_from_slice(&dice.next().to_le_bytes()[..word.len()]);
    }
    bytes
}

/// The sum of all whole words: one pass that only reads.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    bytes.as_chunks().0.iter().fold(0, |sum: u64, word| sum.wrapping_add(u64::from_le_bytes(*word)))
}

/// The sum of `count` words, spread evenly over `bytes`; which ones depends on the reader's number.
#[must_use]
pub fn sum_spread(bytes: &[u8], count: usize, reader: usize) -> u64 {
    let words = bytes.as_chunks::<WORD>().0;
    spread(words.len(), count, reader).fold(0, |sum: u64, at| sum.wrapping_add(u64::from_le_bytes(words[at])))
}

/// Where the words of [`sum_spread`] lie among `words`, which is not 0.
pub fn spread(words: usize, count: usize, reader: usize) -> impl Iterator<Item = usize> {
    let step = (words / count.max(1)).max(1);
    // Readers begin at other places, so that all together they touch everything.
    let begin = (reader * 611_953) % step;
    (0..count).map(move |number| (begin + number * step) % words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_words() {
        let bytes = bytes(1, 8 * 100 + 3);
        let words: Vec<u64> =
            bytes.chunks_exact(8).map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte))).collect();
        assert_eq!(sum(&bytes), words.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word)));
        assert_eq!(sum_spread(&bytes, 100, 5), sum(&bytes));
        assert_eq!(sum_spread(&bytes, 2, 0), words[0].wrapping_add(words[50]));
        assert_ne!(sum_spread(&bytes, 2, 0), sum_spread(&bytes, 2, 1));
    }
}
