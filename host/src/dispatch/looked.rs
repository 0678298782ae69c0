//! When somebody last looked whether a snapshot still has the secrets in it that there are.
//!
//! Owns how long such a look is good for. Knows nothing about secrets. Invariant: a look that began before a change of which the node knows is
//! good for nothing, and none is good for longer than [`GOOD_FOR`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::fault::Fault;
use crate::id::Digest;

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
    /// The last look that found something to do: for who waited for it.
    bad: Mutex<Option<Bad>>,
}

/// What a look came to when not all was as it should be: the digest of other secrets, or why they cannot be read.
pub(super) type Found = Result<Option<Digest>, Fault>;

#[derive(Debug)]
struct Bad {
    began: Duration,
    changes: u64,
    found: Found,
}

impl Default for Looked {
    fn default() -> Self {
        Self { last: AtomicU64::new(0), turn: Semaphore::new(1), bad: Mutex::default() }
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

impl Looked {
    /// What a look found that was not as it should be, for whoever came before it began and waited for it.
    pub(super) fn found_bad(&self, began: Duration, changes: u64, found: Found) {
        *self.bad.lock().unwrap_or_else(PoisonError::into_inner) = Some(Bad { began, changes, found });
    }

    /// What such a look found that began after `came`, unless something has changed since.
    pub(super) fn bad_since(&self, came: Duration, changes: u64) -> Option<Found> {
        let bad = self.bad.lock().unwrap_or_else(PoisonError::into_inner);
        bad.as_ref().filter(|bad| bad.began > came && bad.changes == changes).map(|bad| bad.found.clone())
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
    fn who_waited_for_a_look_has_what_it_found() {
        let (looked, ms) = (Looked::default(), Duration::from_millis);
        let other = Digest::of(b"other secrets");
        looked.found_bad(ms(10), 7, Ok(Some(other)));
        let found = |came: u64, changes| looked.bad_since(ms(came), changes).map(|found| found.ok().flatten());
        assert_eq!(found(9, 7), Some(Some(other)));
        assert_eq!((found(10, 7), found(9, 8)), (None, None), "who came later, or after a change, looks again");
    }

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
