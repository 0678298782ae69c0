//! Volatile entries: in memory, bounded, gone after a restart.
//!
//! What would pass the bucket's quota takes the place of what was used longest ago; only what could never fit is refused. Versions
//! begin where no earlier run of the process has come to, because who compares versions may have kept one from then.
//!
//! Owns the entries of one bucket. Knows nothing about the store. Invariant: the bucket is within its quota after every write, and
//! `usage` is the sum over its entries.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use lru::LruCache;

use super::plan::{Old, plan};
use super::{Done, Entry, KeyValue, Op, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, Page, check_key, check_keys, check_ops, check_sum};
use crate::bucket::BucketSpec;
use crate::data::account::Usage;
use crate::data::bucket::BucketId;
use crate::data::clock::Clock;
use crate::data::error::{AT_ONCE, DataError};
use crate::data::feed::Feed;
use crate::data::store::Ack;

/// Memory that an entry takes besides its key and value, roughly: three indexes.
pub(in crate::data) const ENTRY_BYTES: u64 = 256;
/// Expired entries that are removed at once.
const SWEEP_MAX: usize = 64;

/// The entries of one volatile bucket.
pub(in crate::data) struct Volatile {
    id: BucketId,
    clock: Clock,
    /// Who watches.
    pub(in crate::data) feed: Feed,
    state: Mutex<State>,
}

struct State {
    bytes_max: u64,
    keys_max: u64,
    /// The one that was used longest ago goes first.
    entries: LruCache<Bytes, Entry>,
    /// The same keys in their order.
    keys: BTreeSet<Bytes>,
    expiry: BTreeSet<(u64, Bytes)>,
    usage: Usage,
    version: u64,
    gone: bool,
}

impl Volatile {
    pub(in crate::data) fn new(id: BucketId, spec: BucketSpec, clock: Clock) -> Self {
        let version = clock.first_version();
        let state = State {
            bytes_max: spec.bytes_max,
            keys_max: spec.keys_max,
            entries: LruCache::unbounded(),
            keys: BTreeSet::new(),
            expiry: BTreeSet::new(),
            usage: Usage::default(),
            version,
            gone: false,
        };
        Self { id, clock, feed: Feed::default(), state: Mutex::new(state) }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, DataError> {
        let state = self.lock();
        if state.gone {
            return Err(DataError::NoSuchBucket { name: format!("number {}", self.id) });
        }
        Ok(state)
    }

    /// What is in it now. What has expired goes before, a few at a time, so that nobody waits for all of it.
    pub(in crate::data) fn usage(&self) -> Usage {
        loop {
            let mut state = self.lock();
            if state.sweep(self.clock.now_ms()) {
                return state.usage;
            }
        }
    }

    /// Changes the quotas; what does not fit any more goes.
    pub(in crate::data) fn resize(&self, spec: BucketSpec) {
        let mut state = self.lock();
        (state.bytes_max, state.keys_max) = (spec.bytes_max, spec.keys_max);
        state.evict();
    }

    /// The bucket was deleted.
    pub(in crate::data) fn end(&self) {
        let mut state = self.lock();
        state.gone = true;
        (state.bytes_max, state.keys_max) = (0, 0);
        state.evict();
        self.feed.end();
    }
}

impl State {
    fn remove(&mut self, key: &Bytes) {
        if let Some(old) = self.entries.pop(key) {
            self.taken(key, &old);
        }
    }

    fn taken(&mut self, key: &Bytes, old: &Entry) {
        self.keys.remove(key);
        if let Some(ms) = old.expires_ms {
            self.expiry.remove(&(ms, key.clone()));
        }
        self.usage.bytes -= size(key, old);
        self.usage.keys -= 1;
    }

    fn insert(&mut self, key: &Bytes, entry: Entry) {
        let (bytes, expires_ms) = (size(key, &entry), entry.expires_ms);
        // In place: looking a key up in `keys` is most of what a write to a large bucket costs.
        let old_ms = match self.entries.get_mut(key) {
            Some(there) => {
                let old = std::mem::replace(there, entry);
                self.usage.bytes -= size(key, &old);
                old.expires_ms
            }
            None => {
                let key = own(key);
                self.usage.keys += 1;
                self.keys.insert(key.clone());
                self.entries.put(key, entry);
                None
            }
        };
        self.usage.bytes += bytes;
        if old_ms != expires_ms {
            if let Some(ms) = old_ms {
                self.expiry.remove(&(ms, key.clone()));
            }
            if let Some(ms) = expires_ms {
                self.expiry.insert((ms, own(key)));
            }
        }
    }

    /// Removes some of what has expired. Answers whether that was all.
    fn sweep(&mut self, now_ms: u64) -> bool {
        for _ in 0..SWEEP_MAX {
            let Some((_, key)) = self.expiry.first().filter(|(ms, _)| *ms <= now_ms).cloned() else { return true };
            self.remove(&key);
        }
        false
    }

    fn evict(&mut self) {
        while self.usage.bytes > self.bytes_max || self.usage.keys > self.keys_max {
            let Some((key, old)) = self.entries.pop_lru() else { return };
            self.taken(&key, &old);
        }
    }

    /// Whether what a batch leaves could fit at all.
    fn check(&self, after: Usage) -> Result<(), DataError> {
        if after.bytes > self.bytes_max {
            return Err(DataError::Quota { unit: AT_ONCE, wanted: after.bytes, max: self.bytes_max });
        }
        if after.keys > self.keys_max {
            return Err(DataError::Quota { unit: "keys", wanted: after.keys, max: self.keys_max });
        }
        Ok(())
    }
}

fn size(key: &[u8], entry: &Entry) -> u64 {
    (key.len() + entry.value.len()) as u64
}

/// A copy that holds on to nothing else: the caller's buffer may be much larger than the piece of it.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

impl KeyValue for Volatile {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, DataError> {
        check_key(key)?;
        let entry = self.open()?.entries.get(key).cloned();
        // Most entries do not expire, and the clock has its price.
        Ok(entry.filter(|entry| entry.expires_ms.is_none() || !entry.is_expired(self.clock.now_ms())))
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Result<Option<Entry>, DataError>>, DataError> {
        check_keys(keys)?;
        let mut state = self.open()?;
        let now_ms = self.clock.now_ms();
        let mut bytes = 0;
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            let entry = state.entries.get(*key).filter(|entry| !entry.is_expired(now_ms)).cloned();
            bytes += entry.as_ref().map_or(0, |entry| entry.value.len());
            check_sum(bytes)?;
            entries.push(Ok(entry));
        }
        Ok(entries)
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError> {
        let limit = limit.min(PAGE_ENTRIES_MAX);
        let state = self.open()?;
        let now_ms = self.clock.now_ms();
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut page = Page::default();
        let mut bytes = 0;
        for key in state.keys.range::<[u8], _>((from, Bound::Unbounded)).take_while(|key| key.starts_with(prefix)) {
            // A scan is no use of an entry: it would push out what is used.
            let Some(entry) = state.entries.peek(key).filter(|entry| !entry.is_expired(now_ms)) else { continue };
            if page.entries.len() >= limit || bytes >= PAGE_BYTES_MAX {
                page.next = page.entries.last().map(|(key, _)| key.clone());
                break;
            }
            bytes += key.len() + entry.value.len();
            page.entries.push((key.clone(), Ok(entry.clone())));
        }
        Ok(page)
    }

    fn write(&self, ops: Vec<Op>) -> Ack<Vec<Done>> {
        Ack::ready(self.apply(ops))
    }
}

impl Volatile {
    fn apply(&self, ops: Vec<Op>) -> Result<Vec<Done>, DataError> {
        check_ops(&ops)?;
        let mut state = self.open()?;
        let now_ms = self.clock.now_ms();
        state.sweep(now_ms);
        let keys: Option<Vec<_>> = self.feed.is_watched().then(|| ops.iter().map(|op| op.key().clone()).collect());
        let mut version = state.version;
        let next = || {
            version += 1;
            version
        };
        let find = |key: &[u8]| {
            let entry = state.entries.peek(key);
            Ok(entry.map(|entry| Old { bytes: size(key, entry), entry: Some(entry.clone()) }))
        };
        let plan = plan(ops, self.id, now_ms, next, find)?;
        state.check(plan.usage().1)?;
        state.version = version;
        for (key, change) in plan.changes {
            match change.after {
                Some(entry) => state.insert(&key, Entry { value: own(&entry.value), ..entry }),
                None => state.remove(&key),
            }
        }
        // What this batch wrote was used last, and fits, so it stays.
        state.evict();
        if let Some(keys) = keys {
            // Under the lock, so that changes are told in their order.
            self.feed.tell(&keys, &plan.done);
        }
        Ok(plan.done)
    }
}

impl fmt::Debug for Volatile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volatile").field("id", &self.id).finish_non_exhaustive()
    }
}
