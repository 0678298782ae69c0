//! Compilations that failed a moment ago.
//!
//! Owns for how long nobody tries again: each attempt takes as long as the compilation, and clients that ask again and again would keep a
//! processor busy with it. Knows nothing about why it failed. Invariant: no more entries than compilations that ended within [`PAUSE`]
//! of the last one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Key;
use crate::fault::Fault;

/// How long what could not be compiled is not compiled again, from its end on.
pub(super) const PAUSE: Duration = Duration::from_secs(10);

/// The faults of those that failed.
#[derive(Default)]
pub(super) struct Failed(Mutex<HashMap<Key, (Instant, Fault)>>);

impl Failed {
    pub(super) fn insert(&self, key: Key, fault: Fault, now: Instant) {
        // Whole after every statement that changes it.
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (at, _)| now.duration_since(*at) < PAUSE);
        failed.insert(key, (now, fault));
    }

    /// There is a reason to try again.
    pub(super) fn forget(&self, key: &Key) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    /// The fault of the last attempt, if it is too early for another one, and when it is not.
    pub(super) fn recent(&self, key: &Key, now: Instant) -> Option<Fault> {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, fault) = failed.get(key)?;
        let left = PAUSE.checked_sub(now.duration_since(*at)).filter(|left| !left.is_zero())?;
        Some(fault.clone().retry_after(left))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Code;
    use crate::id::{Digest, TenantId};

    #[test]
    fn it_is_told_for_a_while_and_then_forgotten() {
        let (failed, now) = (Failed::default(), Instant::now());
        let key = |name: &[u8]| (TenantId::default(), Digest::of(name));
        failed.insert(key(b"a"), Fault::new(Code::StorageFull, "no room"), now);
        let told = failed.recent(&key(b"a"), now + PAUSE - Duration::from_secs(1)).unwrap();
        assert_eq!((told.code, told.retry_after), (Code::StorageFull, Some(Duration::from_secs(1))));
        assert!(failed.recent(&key(b"b"), now).is_none() && failed.recent(&key(b"a"), now + PAUSE).is_none());
        failed.insert(key(b"b"), Fault::new(Code::Damaged, "lost"), now + PAUSE);
        assert_eq!(failed.0.lock().unwrap().len(), 1);
        failed.forget(&key(b"b"));
        assert!(failed.recent(&key(b"b"), now + PAUSE).is_none());
    }
}
