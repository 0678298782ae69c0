//! Decoded entries that were read lately: what a hot key costs is a lookup in memory, and neither a transaction nor a checksum.
//!
//! **Why no old value is put back.** A write *begins* before it is queued: its keys leave the cache and are pending. It *ends* after
//! its commit is visible and before it is acknowledged: its keys are pending no more and the shard's epoch rises. A reader that
//! misses takes the epoch as its ticket before it reads, and what it read is kept only if the epoch is the same and the key is not
//! pending. So what is kept was read with no write of it in between, and a key that is being written is read from the store.
//!
//! Owns these entries. Knows nothing about the store. Invariant: an entry in the cache is the committed one.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use super::{Entry, KEY_LEN_MAX};
use crate::data::bucket::BucketId;

const SHARDS: usize = 64;
/// What an entry takes besides key and value, roughly.
const ENTRY_BYTES: usize = 200;
const ID_LEN: usize = 8;

/// A look at a shard before the store was read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticket {
    epoch: u64,
}

#[derive(Debug)]
struct Shard {
    entries: LruCache<Bytes, Entry>,
    bytes: usize,
    /// How many writes of a key have begun and not ended.
    pending: HashMap<Bytes, u32>,
    epoch: u64,
}

/// See the module.
pub(in crate::data) struct Cache {
    shards: Vec<Mutex<Shard>>,
    hasher: RandomState,
    shard_bytes_max: usize,
}

/// A bucket and a key as one string of bytes, without allocating.
struct Key {
    bytes: [u8; ID_LEN + KEY_LEN_MAX],
    len: usize,
}

impl Key {
    /// `key` was checked.
    fn new(id: BucketId, key: &[u8]) -> Self {
        debug_assert!(key.len() <= KEY_LEN_MAX);
        let mut bytes = [0; ID_LEN + KEY_LEN_MAX];
        bytes[..ID_LEN].copy_from_slice(&id.0.to_le_bytes());
        bytes[ID_LEN..ID_LEN + key.len()].copy_from_slice(key);
        Self { bytes, len: ID_LEN + key.len() }
    }

    fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Cache {
    /// One of at most `bytes_max`, roughly.
    pub(in crate::data) fn new(bytes_max: usize) -> Self {
        let shard = || Mutex::new(Shard { entries: LruCache::unbounded(), bytes: 0, pending: HashMap::new(), epoch: 0 });
        let shards = (0..SHARDS).map(|_| shard()).collect();
        Self { shards, hasher: RandomState::new(), shard_bytes_max: bytes_max / SHARDS }
    }

    /// No code panics while it holds the lock.
    fn shard(&self, key: &[u8]) -> MutexGuard<'_, Shard> {
        let index = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64).unwrap_or_default();
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry, or the ticket with which to put it. `key` was checked.
    pub(super) fn get(&self, id: BucketId, key: &[u8]) -> Result<Entry, Ticket> {
        let key = Key::new(id, key);
        let mut shard = self.shard(key.as_slice());
        let epoch = shard.epoch;
        shard.entries.get(key.as_slice()).cloned().ok_or(Ticket { epoch })
    }

    /// Keeps what was read from the store after `ticket` was taken, unless a write came between.
    pub(super) fn put(&self, ticket: Ticket, id: BucketId, key: &[u8], entry: &Entry) {
        let bytes = size(key.len() + ID_LEN, entry);
        if bytes > self.shard_bytes_max {
            return;
        }
        let key = Key::new(id, key);
        let mut shard = self.shard(key.as_slice());
        if shard.epoch != ticket.epoch || shard.pending.contains_key(key.as_slice()) {
            return;
        }
        shard.bytes += bytes;
        if let Some((key, old)) = shard.entries.push(Bytes::copy_from_slice(key.as_slice()), entry.clone()) {
            shard.bytes -= size(key.len(), &old);
        }
        while shard.bytes > self.shard_bytes_max {
            let Some((key, old)) = shard.entries.pop_lru() else { break };
            shard.bytes -= size(key.len(), &old);
        }
    }

    /// A write of these keys begins; [`Cache::end`] must follow.
    pub(super) fn begin(&self, id: BucketId, keys: &[Bytes]) {
        for key in keys {
            let key = Key::new(id, key);
            let mut shard = self.shard(key.as_slice());
            if let Some((key, old)) = shard.entries.pop_entry(key.as_slice()) {
                shard.bytes -= size(key.len(), &old);
            }
            *shard.pending.entry(Bytes::copy_from_slice(key.as_slice())).or_default() += 1;
        }
    }

    /// The write ended, well or not.
    pub(super) fn end(&self, id: BucketId, keys: &[Bytes]) {
        for key in keys {
            let key = Key::new(id, key);
            let mut shard = self.shard(key.as_slice());
            shard.epoch += 1;
            if let Some(count) = shard.pending.get_mut(key.as_slice()) {
                *count -= 1;
                if *count == 0 {
                    shard.pending.remove(key.as_slice());
                }
            }
        }
    }
}

fn size(key_len: usize, entry: &Entry) -> usize {
    key_len + entry.value.len() + ENTRY_BYTES
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("shard_bytes_max", &self.shard_bytes_max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BucketId = BucketId(1);

    fn entry(version: u64, len: usize) -> Entry {
        Entry { value: vec![0; len].into(), version, expires_ms: None }
    }

    fn version(cache: &Cache, key: &[u8]) -> Option<u64> {
        cache.get(ID, key).ok().map(|entry| entry.version)
    }

    #[test]
    fn a_reader_that_raced_with_a_writer_puts_nothing_back() {
        let cache = Cache::new(1 << 20);
        let keys = [Bytes::from_static(b"k")];
        // Read before the write, put after it.
        let ticket = cache.get(ID, b"k").unwrap_err();
        cache.begin(ID, &keys);
        cache.put(ticket, ID, b"k", &entry(1, 1));
        assert_eq!(version(&cache, b"k"), None, "pending");
        let during = cache.get(ID, b"k").unwrap_err();
        cache.begin(ID, &keys);
        cache.end(ID, &keys);
        let between = cache.get(ID, b"k").unwrap_err();
        cache.put(between, ID, b"k", &entry(1, 1));
        cache.end(ID, &keys);
        for late in [ticket, during, between] {
            cache.put(late, ID, b"k", &entry(1, 1));
            assert_eq!(version(&cache, b"k"), None);
        }
        let ticket = cache.get(ID, b"k").unwrap_err();
        cache.put(ticket, ID, b"k", &entry(2, 1));
        assert_eq!(version(&cache, b"k"), Some(2));
        assert!(cache.get(BucketId(2), b"k").is_err(), "another bucket's");
        cache.begin(ID, &keys);
        assert_eq!(version(&cache, b"k"), None);
        cache.end(ID, &keys);
    }

    #[test]
    fn the_cache_keeps_to_its_bytes_and_what_was_used_last() {
        let cache = Cache::new(SHARDS * 10_000);
        for n in 0..10_000_u32 {
            let key = n.to_le_bytes();
            let ticket = cache.get(ID, &key).unwrap_err();
            cache.put(ticket, ID, &key, &entry(1, 300));
        }
        let held = (0..10_000_u32).filter(|n| cache.get(ID, &n.to_le_bytes()).is_ok()).count();
        assert!((500..SHARDS * 20).contains(&held), "{held}");
        assert!(cache.get(ID, &9_999_u32.to_le_bytes()).is_ok());
        for shard in &cache.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.bytes <= 10_000);
            assert_eq!(shard.bytes, shard.entries.iter().map(|(key, entry)| size(key.len(), entry)).sum::<usize>());
        }
        let ticket = cache.get(ID, b"large").unwrap_err();
        cache.put(ticket, ID, b"large", &entry(1, 10_000));
        assert!(cache.get(ID, b"large").is_err());
    }
}
