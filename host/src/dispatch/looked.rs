//! When somebody last looked whether a snapshot still has the secrets in it that there are.
//!
//! Owns how long such a look is good for. Knows nothing about secrets. Invariant: a look that began before a change of which the node knows is
//! good for nothing, and none is good for longer than [`GOOD_FOR`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

/// How long a look is good for: files that others change (a folder of the operator's, credentials) are noticed within it.
const GOOD_FOR: Duration = Duration::from_secs(1);

/// Bits of a look that are the count of changes; the others are milliseconds, which last for 34 years. The count may begin anew: a look is too
/// old long before.
const CHANGES_BITS: u32 = 24;

/// See the module.
#[derive(Debug)]
pub(super) struct Looked {
    /// When, and after how many changes; 0 before the first.
    last: AtomicU64,
    /// Whoever looks holds it, so that a crowd waits for one look.
    pub(super) turn: Semaphore,
}

impl Default for Looked {
    fn default() -> Self {
        Self { last: AtomicU64::new(0), turn: Semaphore::new(1) }
    }
}

impl Looked {
    /// Whether nobody needs to look now. `now`: since the node began. `changes`: that it knows of.
    ///
    /// # Cost
    /// One load.
    pub(super) fn is_good(&self, now: Duration, changes: u64) -> bool {
        let (last, now) = (self.last.load(Ordering::Acquire), moment(now, changes));
        let same_changes = (last ^ now).trailing_zeros() >= CHANGES_BITS;
        let age_ms = (now >> CHANGES_BITS).wrapping_sub(last >> CHANGES_BITS);
        last != 0 && same_changes && u128::from(age_ms) < GOOD_FOR.as_millis()
    }

    /// Somebody looked, and all was as it should be. Both as they were before the look.
    pub(super) fn found_good(&self, began: Duration, changes: u64) {
        self.last.store(moment(began, changes), Ordering::Release);
    }
}

fn moment(at: Duration, changes: u64) -> u64 {
    // One more, so that it is never 0.
    let ms = u64::try_from(at.as_millis()).unwrap_or(0) + 1;
    (ms << CHANGES_BITS) | (changes & ((1 << CHANGES_BITS) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_is_good_until_a_change_or_for_its_time() {
        let looked = Looked::default();
        let ms = Duration::from_millis;
        assert!(!looked.is_good(ms(0), 0), "nobody looked yet");
        looked.found_good(ms(0), 0);
        assert!(looked.is_good(ms(0), 0) && looked.is_good(ms(999), 0));
        assert!(!looked.is_good(ms(1000), 0) && !looked.is_good(ms(1 << 33), 0));
        assert!(!looked.is_good(ms(0), 1));
        looked.found_good(ms(5000), 7);
        assert!(looked.is_good(ms(5999), 7) && !looked.is_good(ms(5500), 6) && !looked.is_good(ms(5500), 8));
        assert!(!looked.is_good(ms(6000), 7));
        // One whose clock was read earlier is not let through by it.
        assert!(!looked.is_good(ms(4999), 7));
        // Counts that do not fit any more differ still, and do not run into the time.
        looked.found_good(ms(9000), u64::MAX);
        assert!(looked.is_good(ms(9000), u64::MAX) && !looked.is_good(ms(9000), 0));
        // A look that began before a change is not good after it, however late it ends.
        looked.found_good(ms(9999), 8);
        assert!(!looked.is_good(ms(9999), 9));
    }
}
