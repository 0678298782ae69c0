//! Random numbers that differ in every instance, and a hasher keyed by them.
//!
//! Owns one generator: ChaCha with 12 rounds, as the generator of the crate `rand`, seeded with 256 bits from the host when the
//! first number of an instance is drawn. Knows nothing about snapshots: the exports (`start.rs`) take the seed away.
//!
//! A generator of another crate that was seeded before the snapshot goes on from there in every instance. Seed it under
//! [`restored`](macro@crate::restored), from [`fill`]; or draw from the crate `getrandom`, which asks the host each time.

use std::cell::RefCell;
use std::fmt;
#[expect(deprecated, reason = "it is the hasher of the standard library that takes keys")]
use std::hash::SipHasher;
use std::hash::{BuildHasher, Hasher};

use chacha20::ChaCha12Rng;
use chacha20::rand_core::{Rng as _, SeedableRng as _};

thread_local! {
    /// `None` until the first draw.
    static GENERATOR: RefCell<Option<ChaCha12Rng>> = const { RefCell::new(None) };
}

/// Fills `bytes`. Nobody can predict them, so they are fit for keys and tokens; but what is drawn in
/// [`init`](macro@crate::init) is the same in every instance.
/// # Cost    One host call with the first draw of an instance, none with the others.
/// # Panics
/// When there is no random number to be had from the host. Hob's always has some.
pub fn fill(bytes: &mut [u8]) {
    GENERATOR.with_borrow_mut(|generator| generator.get_or_insert_with(seeded).fill_bytes(bytes));
}

/// A number between 0 and 2^64 - 1, every one as likely; otherwise as [`fill`].
#[must_use]
pub fn u64() -> u64 {
    let mut bytes = [0; 8];
    fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Makes the next draw take a new seed.
pub(crate) fn forget() {
    GENERATOR.set(None);
}

/// Whether the next draw takes a new seed.
#[cfg(test)]
pub(crate) fn is_unseeded() -> bool {
    GENERATOR.with_borrow(Option::is_none)
}

fn seeded() -> ChaCha12Rng {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).unwrap_or_else(|error| panic!("the host gave no random numbers: {error}"));
    ChaCha12Rng::from_seed(seed)
}

/// Keys for the hashes of one map, drawn from [`fill`]: for maps that hold what clients send.
///
/// ```
/// use std::collections::HashMap;
///
/// let mut counts: HashMap<String, u32, hob_sdk::RandomState> = HashMap::default();
/// *counts.entry("a".into()).or_default() += 1;
/// ```
///
/// The `RandomState` of `std` draws its keys once and derives those of each map from them; if that happened before the snapshot,
/// the maps of all instances have the same keys. This one draws new keys for each map. A map keeps its keys, so one that
/// [`init`](macro@crate::init) made has the same in every instance; it matters only if clients choose what goes into it.
#[derive(Clone)]
pub struct RandomState {
    keys: [u64; 2],
}

impl RandomState {
    /// New keys.
    /// # Cost    As two of [`u64()`]. A clone has the same keys.
    #[must_use]
    pub fn new() -> Self {
        Self { keys: [u64(), u64()] }
    }
}

impl Default for RandomState {
    fn default() -> Self {
        Self::new()
    }
}

/// Without the keys.
impl fmt::Debug for RandomState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RandomState").finish_non_exhaustive()
    }
}

impl BuildHasher for RandomState {
    type Hasher = KeyedHasher;

    #[expect(deprecated, reason = "it is the hasher of the standard library that takes keys")]
    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher(SipHasher::new_with_keys(self.keys[0], self.keys[1]))
    }
}

/// The hasher of a [`RandomState`]: SipHash 2-4. Nobody without the keys can choose what collides.
#[derive(Clone)]
#[expect(deprecated, reason = "it is the hasher of the standard library that takes keys")]
pub struct KeyedHasher(SipHasher);

/// Without the state.
impl fmt::Debug for KeyedHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedHasher").finish_non_exhaustive()
    }
}

impl Hasher for KeyedHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.write(bytes);
    }

    fn finish(&self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    #[test]
    fn a_generator_goes_on_until_it_is_forgotten() {
        forget();
        assert!(is_unseeded());
        let drawn: HashSet<u64> = (0..1_000).map(|_| u64()).collect();
        assert_eq!(drawn.len(), 1_000);
        assert!(!is_unseeded());
    }

    #[test]
    fn what_a_restore_brings_back_is_not_drawn_twice() {
        let restore = |kept: &Option<ChaCha12Rng>| {
            GENERATOR.set(kept.as_ref().map(|generator| ChaCha12Rng::deserialize_state(&generator.serialize_state())));
        };
        let _ = u64();
        let kept = GENERATOR.take();
        restore(&kept);
        let first = u64();
        restore(&kept);
        assert_eq!(u64(), first, "the same memory gives the same numbers");
        restore(&kept);
        forget();
        assert_ne!(u64(), first);
    }

    #[test]
    fn every_byte_of_any_length_is_filled() {
        for len in [0, 1, 31, 4096] {
            let (mut a, mut b) = (vec![0; len], vec![0; len]);
            // Bytes are 0 now and then, but never the same one in sixteen draws.
            let mut untouched = vec![true; len];
            for _ in 0..8 {
                fill(&mut a);
                fill(&mut b);
                (0..len).for_each(|at| untouched[at] &= a[at] == 0 && b[at] == 0);
            }
            assert!(!untouched.contains(&true), "{len}");
        }
    }

    #[test]
    fn each_map_has_keys_of_its_own_and_a_clone_the_same() {
        let (a, b) = (RandomState::new(), RandomState::new());
        assert_eq!(a.hash_one("x"), a.clone().hash_one("x"));
        assert_ne!(a.hash_one("x"), b.hash_one("x"));
        assert_ne!(a.hash_one("x"), a.hash_one("y"));
        assert_eq!(format!("{a:?} {:?}", a.build_hasher()), "RandomState { .. } KeyedHasher { .. }");
        let map: HashMap<_, _, RandomState> = (0..100).map(|n| (n, n * n)).collect();
        assert_eq!(map[&9], 81);
    }
}
