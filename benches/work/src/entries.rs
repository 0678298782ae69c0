//! Entries of a key-value store, and in which order they are asked for.

use crate::Dice;

/// Bytes of a key.
pub const KEY_LEN: usize = 16;
/// Bytes of a value.
pub const VALUE_LEN: usize = 100;

/// The key of an entry: `key:` and its number in 12 digits.
#[must_use]
pub fn key(number: u32) -> [u8; KEY_LEN] {
    let mut key = *b"key:000000000000";
    let mut left = number;
    for digit in key.iter_mut().rev() {
        if left == 0 {
            break;
        }
        *digit = b'0' + (left % 10) as u8;
        left /= 10;
    }
    key
}

/// The value of an entry; no two entries have the same.
#[must_use]
pub fn value(number: u32) -> [u8; VALUE_LEN] {
    let mut value = [0; VALUE_LEN];
    let mut dice = Dice(u64::from(number) << 32);
    for piece in value.chunks_mut(8) {
        piece.copy_from_slice(&dice.next().to_le_bytes()[..piece.len()]);
    }
    value
}

/// How often which key is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spread {
    /// All alike.
    Uniform,
    /// The key of rank `n` in proportion to `n^-0.99`, as YCSB has it; ranks are strewn over the keys.
    Zipf,
}

impl Spread {
    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Zipf => "zipf",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Uniform, Self::Zipf].into_iter().find(|spread| spread.as_str() == name)
    }

    /// `count` of the entries from 0 to `entries`, which is not 0, in the order in which they are asked for.
    #[must_use]
    pub fn picks(self, entries: u32, count: usize, seed: u64) -> Vec<u32> {
        let mut dice = Dice(seed);
        match self {
            Self::Uniform => (0..count).map(|_| dice.below(entries)).collect(),
            Self::Zipf => {
                let zipf = Zipf::new(entries);
                (0..count).map(|_| strew(zipf.rank(dice.unit()), entries)).collect()
            }
        }
    }
}

/// Neighbours in rank are no neighbours as keys: a prime that divides no round number of entries makes a permutation.
fn strew(rank: u32, entries: u32) -> u32 {
    let place = u64::from(rank) * 611_953 % u64::from(entries);
    u32::try_from(place).unwrap_or_default()
}

const THETA: f64 = 0.99;

/// Source: Gray and others, "Quickly generating billion-record synthetic databases", 1994, which YCSB uses.
struct Zipf {
    entries: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    fn new(entries: u32) -> Self {
        let count = f64::from(entries);
        let zeta = zeta(entries);
        let eta = (1.0 - (2.0 / count).powf(1.0 - THETA)) / (1.0 - zeta_exact(2) / zeta);
        Self { entries: count, zeta, eta }
    }

    fn rank(&self, unit: f64) -> u32 {
        let scaled = unit * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5f64.powf(THETA) {
            return 1;
        }
        let rank = self.entries * (self.eta * unit - self.eta + 1.0).powf(1.0 / (1.0 - THETA));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank below the number of entries, which is a u32"
        )]
        let rank = rank.clamp(0.0, self.entries - 1.0) as u32;
        rank
    }
}

fn zeta_exact(count: u32) -> f64 {
    (1..=count).map(|n| f64::from(n).powf(-THETA)).sum()
}

/// The sum of the first terms, and the integral of the others (Euler and Maclaurin): right to nine digits, in a thousandth of the time.
fn zeta(count: u32) -> f64 {
    const FIRST: u32 = 1000;
    if count <= FIRST {
        return zeta_exact(count);
    }
    let (from, to) = (f64::from(FIRST), f64::from(count));
    let integral = (to.powf(1.0 - THETA) - from.powf(1.0 - THETA)) / (1.0 - THETA);
    zeta_exact(FIRST) + integral + (to.powf(-THETA) - from.powf(-THETA)) / 2.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn keys_and_values_differ() {
        assert_eq!((&key(0), &key(42), &key(u32::MAX)), (b"key:000000000000", b"key:000000000042", b"key:004294967295"));
        assert!(value(1) != value(2) && value(1) == value(1));
    }

    #[test]
    fn zeta_is_what_the_sum_is() {
        assert!((zeta(100_000) - zeta_exact(100_000)).abs() < 1e-6);
    }

    #[test]
    fn zipf_asks_for_few_keys_most_of_the_time_and_for_all_keys_sometimes() {
        const ENTRIES: u32 = 10_000;
        let mut counts = vec![0u32; ENTRIES as usize];
        for pick in Spread::Zipf.picks(ENTRIES, 200_000, 7) {
            counts[pick as usize] += 1;
        }
        counts.sort_unstable_by(|a, b| b.cmp(a));
        // A share of 1/zeta(10,000) for the first.
        let first = f64::from(counts[0]) / 200_000.0;
        assert!((0.08..0.13).contains(&first), "{first}");
        let distinct = counts.iter().filter(|count| **count > 0).count();
        assert!(distinct > 5_000, "{distinct}");
        let uniform = Spread::Uniform.picks(10, 1000, 1);
        assert!((0..10).all(|key| uniform.contains(&key)));
    }

    #[test]
    fn ranks_are_strewn_without_collisions() {
        for entries in [1_000, 20_000, 1_000_000] {
            let mut places: Vec<_> = (0..entries).map(|rank| strew(rank, entries)).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), entries as usize);
        }
    }
}
