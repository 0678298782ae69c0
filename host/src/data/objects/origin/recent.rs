//! Small copies that were used lately, in memory: to give one takes a lock and no system call.
//!
//! Owns the bytes, the order of their use and what they take. Knows nothing about where they come from: whoever puts them has held them
//! against the digest that names them. Invariant: all that are in memory, those included that went and are open still, take at most
//! `data.cache_memory_bytes_max`, with [`COST_BYTES`] for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::super::HEAP_BYTES_MAX;
use super::super::files::FileId;

/// What one takes besides its bytes.
const COST_BYTES: u64 = 128;

/// The bytes of a copy, and their room until they are dropped.
#[derive(Debug)]
pub(in super::super) struct Small {
    bytes: Box<[u8]>,
    used: Arc<AtomicU64>,
}

impl Small {
    pub(in super::super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        self.used.fetch_sub(cost(self.bytes.len() as u64), Ordering::AcqRel);
    }
}

fn cost(len: u64) -> u64 {
    len.saturating_add(COST_BYTES)
}

/// See the module.
#[derive(Debug)]
pub(super) struct Recent {
    bytes_max: u64,
    used: Arc<AtomicU64>,
    copies: Mutex<LruCache<FileId, Arc<Small>>>,
}

impl Recent {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, used: Arc::default(), copies: Mutex::new(LruCache::unbounded()) }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, LruCache<FileId, Arc<Small>>> {
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether copies of this length are kept. A larger one is mapped, and in memory as long as the system's page cache has it.
    pub(super) fn takes(&self, len: u64) -> bool {
        len <= HEAP_BYTES_MAX as u64 && cost(len) <= self.bytes_max
    }

    /// The copy, if it is here; it counts as used.
    pub(super) fn get(&self, id: &FileId) -> Option<Arc<Small>> {
        self.lock().get(id).cloned()
    }

    /// Whether the copy is here.
    pub(super) fn has(&self, id: &FileId) -> bool {
        self.lock().contains(id)
    }

    /// Keeps a copy, in place of those that were used longest ago; not if what is open leaves it no room.
    pub(super) fn put(&self, id: FileId, bytes: Box<[u8]>) {
        let more = cost(bytes.len() as u64);
        let mut copies = self.lock();
        // Only under the lock it grows.
        while self.used.load(Ordering::Acquire).saturating_add(more) > self.bytes_max {
            if copies.pop_lru().is_none() {
                return;
            }
        }
        self.used.fetch_add(more, Ordering::AcqRel);
        copies.put(id, Arc::new(Small { bytes, used: Arc::clone(&self.used) }));
    }

    /// Lets go of a copy.
    pub(super) fn remove(&self, id: &FileId) {
        self.lock().pop(id);
    }

    /// What all take.
    pub(super) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::super::bucket::BucketId;
    use super::*;
    use crate::id::Digest;

    fn id(number: u8) -> FileId {
        FileId { bucket: BucketId(1), digest: Digest::of(&[number]) }
    }

    fn bytes(len: usize) -> Box<[u8]> {
        vec![7; len].into()
    }

    #[test]
    fn what_was_used_longest_ago_goes_and_all_stay_within_the_budget() {
        // Room for three of a thousand bytes, and not for one byte more.
        let recent = Recent::new(3 * 1128);
        for number in 0..3 {
            recent.put(id(number), bytes(1000));
        }
        assert_eq!(recent.used_bytes(), 3 * 1128);
        assert_eq!(recent.get(&id(0)).unwrap().bytes(), &*bytes(1000));
        recent.put(id(3), bytes(1000));
        assert_eq!([0, 1, 2, 3].map(|number| recent.has(&id(number))), [true, false, true, true]);
        assert_eq!(recent.used_bytes(), 3 * 1128);
        // Larger ones take the place of several, and the same again its own.
        recent.put(id(4), bytes(1001));
        recent.put(id(4), bytes(1001));
        assert!(recent.has(&id(4)) && recent.used_bytes() <= 3 * 1128);
        for number in 0..5 {
            recent.remove(&id(number));
        }
        assert_eq!(recent.used_bytes(), 0);
    }

    #[test]
    fn what_is_open_counts_until_it_is_closed() {
        let recent = Recent::new(2 * 1128);
        recent.put(id(0), bytes(1000));
        recent.put(id(1), bytes(1000));
        let open = [recent.get(&id(0)).unwrap(), recent.get(&id(1)).unwrap()];
        recent.put(id(2), bytes(1000));
        assert!(!recent.has(&id(2)) && recent.used_bytes() == 2 * 1128, "there is no room");
        drop(open);
        assert_eq!(recent.used_bytes(), 0);
        recent.put(id(2), bytes(1000));
        assert!(recent.has(&id(2)));
    }

    #[test]
    fn only_small_ones_that_fit_are_taken() {
        let recent = Recent::new(1 << 20);
        assert!(recent.takes(0) && recent.takes(HEAP_BYTES_MAX as u64) && !recent.takes(HEAP_BYTES_MAX as u64 + 1));
        let narrow = Recent::new(1128);
        assert!(narrow.takes(1000) && !narrow.takes(1001));
        assert!(!Recent::new(0).takes(0));
    }
}
