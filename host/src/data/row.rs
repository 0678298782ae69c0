//! Rows: numbers in fixed places, and the checksum behind them.
//!
//! The sum is a short BLAKE3 over where a row belongs and what it holds, each part with its length, so that a row that was
//! moved, cut or changed is told from one that was written. BLAKE3, though xxh3 is faster by 0.2 us on a small row: the bytes are
//! a tenant's, who could make two rows of one xxh3, and it is a dependency already.
//!
//! Owns the spelling. Knows nothing about what rows mean. Invariant: what [`Numbers::open`] returns is what was sealed.

/// Length of a checksum in bytes.
pub(super) const SUM_LEN: usize = 8;

/// Checksum over `parts`.
pub(super) fn sum(parts: &[&[u8]]) -> [u8; SUM_LEN] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut out = [0; SUM_LEN];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..SUM_LEN]);
    out
}

/// A row of `N` numbers, each 8 bytes in little-endian order, and their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers<const N: usize>(pub(super) [u64; N]);

impl<const N: usize> Numbers<N> {
    /// The bytes of the row. `place`: where it belongs, as unambiguous bytes.
    pub(super) fn seal(&self, place: &[&[u8]]) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        let sum = Self::sum(place, &bytes);
        bytes.extend(sum);
        bytes
    }

    /// The numbers of a row; `None` if it is not what was sealed for this place.
    pub(super) fn open(place: &[&[u8]], row: &[u8]) -> Option<Self> {
        let (bytes, found) = row.split_last_chunk::<SUM_LEN>()?;
        if bytes.len() != N * 8 || Self::sum(place, bytes) != *found {
            return None;
        }
        let mut numbers = [0; N];
        for (number, bytes) in numbers.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *number = u64::from_le_bytes(*bytes);
        }
        Some(Self(numbers))
    }

    fn sum(place: &[&[u8]], bytes: &[u8]) -> [u8; SUM_LEN] {
        let mut parts = place.to_vec();
        parts.push(bytes);
        sum(&parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_changed_moved_or_cut_is_none() {
        let row = Numbers([1, u64::MAX, 3]).seal(&[b"a", b"bc"]);
        assert_eq!(Numbers::open(&[b"a", b"bc"], &row), Some(Numbers([1, u64::MAX, 3])));
        assert_eq!(Numbers::<3>::open(&[b"ab", b"c"], &row), None);
        assert_eq!(Numbers::<2>::open(&[b"a", b"bc"], &row), None);
        assert_eq!(Numbers::<3>::open(&[b"a", b"bc"], &row[..31]), None);
        for bit in 0..row.len() * 8 {
            let mut bad = row.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Numbers::<3>::open(&[b"a", b"bc"], &bad), None, "bit {bit}");
        }
    }
}
