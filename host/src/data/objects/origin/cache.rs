//! Copies of objects from origins: their files, the index of them, and which goes when room is needed.
//!
//! ```text
//! DIR/cache/objects/BUCKET/SHA256   bytes, as `files.rs` keeps them
//! DIR/cache/staging/object-N        being fetched or put; emptied at start
//! table cached: bucket, key         record (`record.rs`), the origin's ETag as a pair of metadata without a name in front
//! ```
//!
//! Nothing of it is needed: a copy that is lost or damaged is fetched again. So files are not synced and rows are written without
//! waiting. A restart reads the rows, drops those without a file, and checks each file against its digest when it is first opened.
//!
//! Small ones that were used lately are in memory too (`recent.rs`), and only as long as they are here.
//!
//! Owns the index. Knows nothing about the network. Invariant: bytes of copies, those included that are being written, stay within
//! `data.cache_bytes_max`, and at the end of each insertion those of a bucket within its quota unless what passes it is open.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use lru::LruCache;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::super::super::account::State;
use super::super::super::bucket::{self, Bucket, BucketId};
use super::super::super::error::{DataError, io_error, storage};
use super::super::super::store::{Commit, Store};
use super::super::durable::Scrubbed;
use super::super::files::{Charge, FileId, Files, Held, full};
use super::super::{Head, ObjectLimits, Opened, Verified, record};
use super::recent::Recent;
use super::remote::Version;
use crate::id::Digest;

const CACHED: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("cached");

/// Most copies; each takes some 500 bytes of memory.
pub(super) const COPIES_MAX: usize = 200_000;

/// Roughly what a row costs besides its key and text.
const COST_BYTES: usize = 256;

/// Makes the table, so that readers find it.
pub(in crate::data) fn prepare(txn: &WriteTransaction) -> Result<(), DataError> {
    txn.open_table(CACHED).map_err(storage("make the table of copies"))?;
    Ok(())
}

/// One copy.
#[derive(Debug)]
pub(super) struct Copy {
    /// What it is a copy of.
    pub(super) version: Version,
    /// SHA-256 of its bytes.
    pub(super) digest: Digest,
}

impl Copy {
    /// As it is written: what is in the place of the ETag is the digest, the version is when it was fetched.
    fn record(&self, fetched_ms: u64) -> Head {
        let Version { etag, len, modified_ms, content_type, metadata } = self.version.clone();
        let mut pairs = vec![(String::new(), etag)];
        pairs.extend(metadata);
        Head {
            etag: self.digest,
            digest: None,
            len,
            version: fetched_ms,
            modified_ms,
            expires_ms: None,
            content_type,
            metadata: pairs,
        }
    }

    /// The copy of a record, and when it was fetched.
    fn of_record(head: Head) -> Option<(Self, u64)> {
        let Head { etag: digest, len, version: fetched_ms, modified_ms, content_type, mut metadata, .. } = head;
        if metadata.first().is_none_or(|(name, _)| !name.is_empty()) {
            return None;
        }
        let (_, etag) = metadata.remove(0);
        Some((Self { version: Version { etag, len, modified_ms, content_type, metadata }, digest }, fetched_ms))
    }
}

/// A copy, and when it was last known to be the origin's version.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) copy: Arc<Copy>,
    /// 0 after a restart.
    pub(super) checked_ms: u64,
}

#[derive(Debug)]
struct Kept {
    known: Known,
    /// Turn in which it was used last.
    used: u64,
}

#[derive(Debug)]
struct Shelf {
    copies: LruCache<Bytes, Kept>,
    bytes: u64,
}

#[derive(Debug, Default)]
struct Index {
    shelves: HashMap<BucketId, Shelf>,
    /// How many copies have a file.
    references: HashMap<FileId, usize>,
    turns: u64,
    count: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Cache {
    pub(super) files: Arc<Files>,
    store: Arc<Store>,
    index: Arc<Mutex<Index>>,
    evicted: AtomicU64,
    pub(super) recent: Recent,
    collector: Option<JoinHandle<()>>,
}

/// No code panics while it holds the lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cache {
    /// Opens the copies in the folder `dir`.
    ///
    /// # Cost
    /// One `stat` for each file, and the reading of all rows.
    pub(super) fn open(dir: &Path, limits: ObjectLimits, memory_bytes_max: u64, store: Arc<Store>) -> Result<Self, DataError> {
        let files = Files::open(dir, limits)?;
        let present = files.all()?;
        let (rows, stale) = store.read(|txn| rows(txn, &present))?;
        let mut index = Index::default();
        for (bucket, key, copy, _) in rows {
            index.put(bucket, key, Known { copy: Arc::new(copy), checked_ms: 0 });
        }
        for id in present.iter().filter(|id| !index.references.contains_key(id)) {
            files.release(*id);
        }
        let index = Arc::new(Mutex::new(index));
        let (of_thread, files_of_thread) = (Arc::clone(&index), Arc::clone(&files));
        let run = move || files_of_thread.collect(|| Ok(()), |id| Ok(lock(&of_thread).references.contains_key(&id)));
        let collector = std::thread::Builder::new().name("hob-copies".into()).spawn(run);
        let collector = Some(collector.map_err(io_error("start the thread that removes copies"))?);
        let recent = Recent::new(memory_bytes_max);
        let cache = Self { files, store, index, evicted: AtomicU64::new(0), recent, collector };
        cache.unwrite(stale);
        Ok(cache)
    }

    /// The copy under a key, if there is one; it counts as used.
    pub(super) fn get(&self, bucket: BucketId, key: &[u8]) -> Option<Known> {
        let mut index = lock(&self.index);
        index.turns += 1;
        let used = index.turns;
        let kept = index.shelves.get_mut(&bucket)?.copies.get_mut(key)?;
        kept.used = used;
        Some(kept.known.clone())
    }

    /// The copy under a key, which does not count as used by that.
    pub(super) fn peek(&self, bucket: BucketId, key: &[u8]) -> Option<Arc<Copy>> {
        let index = lock(&self.index);
        index.shelves.get(&bucket)?.copies.peek(key).map(|kept| Arc::clone(&kept.known.copy))
    }

    /// Says that a copy was the origin's version at `now_ms`.
    pub(super) fn touch(&self, bucket: BucketId, key: &[u8], copy: &Arc<Copy>, now_ms: u64) {
        let mut index = lock(&self.index);
        let kept = index.shelves.get_mut(&bucket).and_then(|shelf| shelf.copies.peek_mut(key));
        if let Some(kept) = kept.filter(|kept| Arc::ptr_eq(&kept.known.copy, copy)) {
            kept.known.checked_ms = now_ms;
        }
    }

    /// Keeps a copy whose file is in place and held. What does not fit beside it goes.
    pub(super) fn insert(&self, bucket: &Bucket, key: &Bytes, copy: Arc<Copy>, now_ms: u64) {
        self.write(bucket.id, key, &copy, now_ms);
        let mut gone = Vec::new();
        let mut index = lock(&self.index);
        self.drop_copy(&mut index, bucket.id, key);
        index.put(bucket.id, key.clone(), Known { copy, checked_ms: now_ms });
        while index.shelves.get(&bucket.id).is_some_and(|shelf| shelf.bytes > bucket.spec.bytes_max) {
            let Some(key) = index.oldest(bucket.id, &self.files).map(|(key, _)| key.clone()) else { break };
            self.evict(&mut index, bucket.id, key, &mut gone);
        }
        while index.count > COPIES_MAX && self.evict_oldest(&mut index, &mut gone) {}
        drop(index);
        self.unwrite(gone);
    }

    /// Drops the copy under a key; only `copy` if it is given.
    pub(super) fn remove(&self, bucket: BucketId, key: &Bytes, only: Option<&Arc<Copy>>) {
        let mut index = lock(&self.index);
        let found = index.shelves.get(&bucket).and_then(|shelf| shelf.copies.peek(key)).map(|kept| &kept.known.copy);
        let is_meant = found.is_some_and(|found| only.is_none_or(|only| Arc::ptr_eq(only, found)));
        if is_meant {
            self.drop_copy(&mut index, bucket, key);
            drop(index);
            self.unwrite(vec![(bucket, key.clone())]);
        }
    }

    /// Lets go of a file that no copy in the index will have.
    pub(super) fn disown(&self, bucket: BucketId, copy: &Copy) {
        self.files.release(FileId { bucket, digest: copy.digest });
    }

    /// Drops all copies of a bucket.
    pub(super) fn forget(&self, bucket: BucketId) {
        let mut index = lock(&self.index);
        let keys: Vec<_> =
            index.shelves.get(&bucket).into_iter().flat_map(|shelf| shelf.copies.iter()).map(|(key, _)| key.clone()).collect();
        for key in &keys {
            self.drop_copy(&mut index, bucket, key);
        }
        drop(index);
        self.unwrite(keys.into_iter().map(|key| (bucket, key)).collect());
    }

    /// Reads every copy of a bucket and holds it against its digest. One that is damaged or lost goes, so that the next read fetches it
    /// again.
    ///
    /// # Errors
    /// Those of the file system but a failing disk, which is damage.
    /// # Cost
    /// As of [`super::super::Durable::scrub`].
    pub(super) fn scrub(&self, bucket: BucketId) -> Result<Scrubbed, DataError> {
        let all = {
            let index = lock(&self.index);
            let shelf = index.shelves.get(&bucket).into_iter().flat_map(|shelf| shelf.copies.iter());
            shelf.map(|(key, kept)| (key.clone(), Arc::clone(&kept.known.copy))).collect::<Vec<_>>()
        };
        let mut scrubbed = Scrubbed::default();
        for (key, copy) in all {
            let held = self.files.hold(FileId { bucket, digest: copy.digest });
            let is_still_there = || self.peek(bucket, &key).is_some_and(|now| Arc::ptr_eq(&now, &copy));
            let is_good = match self.files.scrub(held.id(), copy.version.len) {
                Err(error) if error.is_disk_failure() => false,
                read => read?,
            };
            // It may have gone before it was held.
            if !is_good && !is_still_there() {
                continue;
            }
            scrubbed.objects += 1;
            if is_good {
                scrubbed.bytes += copy.version.len;
            } else {
                self.remove(bucket, &key, Some(&copy));
                scrubbed.corrupt.push((bucket, key));
            }
        }
        Ok(scrubbed)
    }

    /// Bytes of all copies, those included that are being written or are open though no key has them.
    pub(super) fn used_bytes(&self) -> u64 {
        self.files.space.used()
    }

    /// Number of copies, and of those that went for want of room.
    pub(super) fn counts(&self) -> (usize, u64) {
        (lock(&self.index).count, self.evicted.load(Ordering::Relaxed))
    }

    /// Opens the file of a copy; `None` if it is lost or damaged.
    pub(super) fn open_file(&self, bucket: BucketId, copy: &Copy) -> Result<Option<(Arc<File>, Verified, Held)>, DataError> {
        let held = self.files.hold(FileId { bucket, digest: copy.digest });
        let opened = self.files.open_file(held.id(), copy.version.len)?;
        Ok(opened.map(|(file, verified)| (file, verified, held)))
    }

    /// Keeps the bytes of a copy in memory if it is small, and if reading them does not wait for the disk.
    pub(super) fn keep_small(&self, bucket: BucketId, copy: &Copy, opened: &Opened) {
        let (id, len) = (FileId { bucket, digest: copy.digest }, copy.version.len);
        if !self.recent.takes(len) {
            return;
        }
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()].into_boxed_slice();
        // What cannot be read now is read by who asked, who is told why.
        if !matches!(opened.read_cached(0, &mut bytes), Ok(Some(count)) if count == bytes.len()) {
            return;
        }
        self.recent.put(id, bytes);
        // Afterwards: whoever takes the copy out of the index then finds the bytes.
        if !lock(&self.index).references.contains_key(&id) {
            self.recent.remove(&id);
        }
    }

    /// Charges more bytes; what was used longest ago goes for them.
    pub(super) fn charge(&self, charge: &mut Charge, bytes: u64) -> Result<(), DataError> {
        let mut gone = Vec::new();
        let charged = loop {
            match charge.grow(bytes) {
                Ok(()) => break Ok(()),
                Err(error) if !self.evict_oldest(&mut lock(&self.index), &mut gone) => break Err(full(error)),
                Err(_) => {}
            }
        };
        self.unwrite(gone);
        charged
    }

    /// Drops the copy of all that was used longest ago and is not open; `false` if there is none.
    fn evict_oldest(&self, index: &mut Index, gone: &mut Vec<(BucketId, Bytes)>) -> bool {
        let oldest =
            index.shelves.keys().filter_map(|bucket| index.oldest(*bucket, &self.files).map(|(key, used)| (used, *bucket, key)));
        let Some((_, bucket, key)) = oldest.min().map(|(used, bucket, key)| (used, bucket, key.clone())) else { return false };
        self.evict(index, bucket, key, gone);
        true
    }

    fn evict(&self, index: &mut Index, bucket: BucketId, key: Bytes, gone: &mut Vec<(BucketId, Bytes)>) {
        self.evicted.fetch_add(1, Ordering::Relaxed);
        self.drop_copy(index, bucket, &key);
        gone.push((bucket, key));
    }

    /// Takes a copy out of the index, and removes its file if no other has it and nobody has it open.
    fn drop_copy(&self, index: &mut Index, bucket: BucketId, key: &[u8]) {
        let Some(id) = index.take(bucket, key) else { return };
        self.recent.remove(&id);
        // Under the lock of the index: whoever puts the same bytes again holds the file before, and counts afterwards.
        match self.files.space.remove(&id, &self.files.path(id)) {
            Ok(Some(_)) => {}
            Ok(None) => self.files.release(id),
            Err(error) => {
                tracing::warn!(%error, "a copy of an object that is not needed stays for now");
                self.files.release(id);
            }
        }
    }

    /// Writes the row of a copy, some time. Without it the copy is fetched again after a restart.
    fn write(&self, bucket: BucketId, key: &Bytes, copy: &Copy, now_ms: u64) {
        let row = record::encode(bucket, key, &copy.record(now_ms));
        let key = key.clone();
        let written = self.store.write(COST_BYTES + key.len() + row.len(), move |txn, _| {
            State::read(txn, bucket)?;
            let doing = "write the row of a copy";
            txn.open_table(CACHED).map_err(storage(doing))?.insert((bucket.0, &*key), &*row).map_err(storage(doing))?;
            Ok(((), Commit::Yes))
        });
        // Nobody waits for it.
        drop(written);
    }

    /// Removes the rows of copies, some time. One that stays is dropped by a restart, because its file is gone.
    fn unwrite(&self, keys: Vec<(BucketId, Bytes)>) {
        if keys.is_empty() {
            return;
        }
        let cost = keys.iter().map(|(_, key)| COST_BYTES + key.len()).sum();
        drop(self.store.remove(cost, move |txn, _| {
            let doing = "remove rows of copies";
            let mut table = txn.open_table(CACHED).map_err(storage(doing))?;
            for (bucket, key) in &keys {
                table.remove((bucket.0, &**key)).map_err(storage(doing))?;
            }
            Ok(((), Commit::Yes))
        }));
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.files.stop();
        if self.collector.take().is_some_and(|collector| collector.join().is_err()) {
            tracing::error!("the thread that removes copies ended with a panic");
        }
    }
}

impl Index {
    fn put(&mut self, bucket: BucketId, key: Bytes, known: Known) {
        self.turns += 1;
        let (len, digest) = (known.copy.version.len, known.copy.digest);
        let empty = || Shelf { copies: LruCache::unbounded(), bytes: 0 };
        let shelf = self.shelves.entry(bucket).or_insert_with(empty);
        shelf.bytes = shelf.bytes.saturating_add(len);
        shelf.copies.put(key, Kept { known, used: self.turns });
        *self.references.entry(FileId { bucket, digest }).or_default() += 1;
        self.count += 1;
    }

    /// Takes a copy out. Answers its file if no other copy has it.
    fn take(&mut self, bucket: BucketId, key: &[u8]) -> Option<FileId> {
        let shelf = self.shelves.get_mut(&bucket)?;
        let kept = shelf.copies.pop(key)?;
        shelf.bytes = shelf.bytes.saturating_sub(kept.known.copy.version.len);
        if shelf.copies.is_empty() {
            self.shelves.remove(&bucket);
        }
        self.count -= 1;
        let id = FileId { bucket, digest: kept.known.copy.digest };
        let references = self.references.get_mut(&id)?;
        *references -= 1;
        if *references > 0 {
            return None;
        }
        self.references.remove(&id);
        Some(id)
    }

    /// The copy in a bucket that was used longest ago and is not open.
    fn oldest(&self, bucket: BucketId, files: &Files) -> Option<(&Bytes, u64)> {
        let is_open = |kept: &Kept| files.space.is_pinned(&FileId { bucket, digest: kept.known.copy.digest });
        let mut copies = self.shelves.get(&bucket)?.copies.iter().rev();
        copies.find(|(_, kept)| !is_open(kept)).map(|(key, kept)| (key, kept.used))
    }
}

type Row = (BucketId, Bytes, Copy, u64);
type Rows = (Vec<Row>, Vec<(BucketId, Bytes)>);

/// The rows of copies whose files are there, those fetched longest ago first, and the keys of all others.
fn rows(txn: &redb::ReadTransaction, present: &HashSet<FileId>) -> Result<Rows, DataError> {
    let doing = "read the rows of copies";
    let (mut rows, mut stale) = (Vec::new(), Vec::new());
    for entry in txn.open_table(CACHED).map_err(storage(doing))?.iter().map_err(storage(doing))? {
        let (place, row) = entry.map_err(storage(doing))?;
        let (id, key) = place.value();
        let (id, key) = (BucketId(id), Bytes::copy_from_slice(key));
        let found = record::decode(id, &key, row.value()).and_then(Copy::of_record);
        let is_there = |copy: &Copy| present.contains(&FileId { bucket: id, digest: copy.digest });
        match found.filter(|(copy, _)| is_there(copy)) {
            Some((copy, fetched_ms)) if rows.len() < COPIES_MAX && bucket::spec(txn, id).is_ok() => {
                rows.push((id, key, copy, fetched_ms));
            }
            _ => stale.push((id, key)),
        }
    }
    rows.sort_by_key(|(_, _, _, fetched_ms)| *fetched_ms);
    Ok((rows, stale))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{BucketSpec, Durability};
    use crate::data::{Clock, Data, DataConfig};
    use crate::id::TenantId;

    fn copy() -> Arc<Copy> {
        let version = Version { etag: "e".into(), len: 0, modified_ms: 1, content_type: String::new(), metadata: Vec::new() };
        Arc::new(Copy { version, digest: Digest::of(b"") })
    }

    fn key(number: usize) -> Bytes {
        number.to_string().into()
    }

    #[test]
    fn so_many_copies_are_kept_and_one_more_is_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(&dir.path().join("data"), DataConfig::default(), Clock::system()).unwrap();
        let made = data.put_bucket(&TenantId::default(), &"b".parse().unwrap(), BucketSpec::new(Durability::Durable));
        let (bucket, _) = made.wait().unwrap();
        let limits = ObjectLimits { object_bytes_max: 1 << 20, bytes_max: 1 << 20 };
        let cache = Cache::open(&dir.path().join("cache"), limits, 0, Arc::clone(&data.store)).unwrap();
        for number in 1..COPIES_MAX {
            lock(&cache.index).put(bucket.id, key(number), Known { copy: copy(), checked_ms: 0 });
        }
        cache.insert(&bucket, &key(0), copy(), 1);
        assert_eq!(cache.counts(), (COPIES_MAX, 0));
        // The first is used, so the second goes.
        assert!(cache.get(bucket.id, &key(1)).is_some());
        cache.insert(&bucket, &key(COPIES_MAX), copy(), 1);
        assert_eq!(cache.counts(), (COPIES_MAX, 1));
        assert!(cache.peek(bucket.id, &key(2)).is_none());
        assert!([0, 1, 3, COPIES_MAX].iter().all(|number| cache.peek(bucket.id, &key(*number)).is_some()));
    }
}
