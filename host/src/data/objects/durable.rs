//! Durable objects: rows in the store, bytes in immutable files.
//!
//! ```text
//! table          key                         value
//! objects        bucket, key                 record (`record.rs`)
//! object-files   bucket, SHA-256             number of records that refer to the file
//! object-expiry  expires_ms, bucket, key     nothing
//! ```
//!
//! A put writes and syncs its file in staging, renames it, syncs the folder, and then commits the row, which makes it visible. A kill
//! in between leaves a file without a row, which is garbage; a row without its file was damaged by somebody else.
//!
//! Owns these tables and the order of a put. `files.rs` keeps the files. Invariant at every commit: an `object-files` row counts the
//! records that refer to the file, and the bucket's account is the sum of what its records take.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};
use sha2::Digest as _;

use super::super::bucket::{self, Bucket, BucketId, Kind, State, Usage};
use super::super::error::{DataError, io_error, storage};
use super::super::row::Numbers;
use super::super::store::{Ack, Commit, Store, Sweep, Swept};
use super::files::{Charge, FileId, Files, Held, StagedPath, full};
use super::{
    Content, Head, Objects, Opened, PAGE_LEN_MAX, Page, PutOptions, Upload, When, check_digest, check_key, check_object_len,
    check_options, record,
};
use crate::crash;
use crate::id::Digest;
use crate::storage::disk::{create_dirs, sync_dir};

const OBJECTS: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("objects");
const FILES: TableDefinition<'_, (u64, &[u8; 32]), &[u8]> = TableDefinition::new("object-files");
const EXPIRY: TableDefinition<'_, (u64, u64, &[u8]), ()> = TableDefinition::new("object-expiry");

/// Roughly what a row costs besides its key and text.
const COST_BYTES: usize = 256;
/// Objects removed by one sweep.
const SWEEP_MAX: usize = 256;

/// Makes the tables, so that readers find them.
pub(in crate::data) fn prepare(txn: &WriteTransaction) -> Result<(), DataError> {
    let doing = "make the tables of objects";
    txn.open_table(OBJECTS).map_err(storage(doing))?;
    txn.open_table(FILES).map_err(storage(doing))?;
    txn.open_table(EXPIRY).map_err(storage(doing))?;
    Ok(())
}

/// The sweep that removes what has expired.
pub(in crate::data) fn sweep(files: Arc<Files>) -> Sweep {
    Box::new(move |txn, now_ms| {
        let doing = "sweep expired objects";
        let mut due = Vec::new();
        let mut next_ms = None;
        for entry in txn.open_table(EXPIRY).map_err(storage(doing))?.iter().map_err(storage(doing))? {
            let (key, ()) = entry.map(|(key, value)| (key, value.value())).map_err(storage(doing))?;
            let (expires_ms, bucket, key) = key.value();
            if expires_ms > now_ms || due.len() == SWEEP_MAX {
                next_ms = Some(expires_ms);
                break;
            }
            due.push((expires_ms, BucketId(bucket), key.to_vec()));
        }
        if due.is_empty() {
            return Ok(Swept { commit: Commit::No, next_ms });
        }
        let mut tables = Tables::open(txn)?;
        for (expires_ms, bucket, key) in due {
            tables.expiry.remove((expires_ms, bucket.0, key.as_slice())).map_err(storage(doing))?;
            match State::read(txn, bucket) {
                // Its content is swept apart.
                Err(DataError::NoSuchBucket { .. }) => continue,
                Err(error) => tracing::error!(%error, "an expired object stays"),
                Ok(mut state) => {
                    // A damaged row stays until somebody writes or deletes it.
                    if let Row::Good(head) = tables.read(bucket, &key)?
                        && head.expires_ms == Some(expires_ms)
                    {
                        state.charge(Kind::Objects, head.usage(&key), Usage::default())?;
                        tables.replace(bucket, &key, &Row::Good(head), None, &files)?;
                        state.write(txn, bucket)?;
                    }
                }
            }
        }
        Ok(Swept { commit: Commit::Yes, next_ms })
    })
}

/// The sweep that removes the objects of deleted buckets, bit by bit.
pub(in crate::data) fn sweep_graves(files: Arc<Files>) -> Sweep {
    Box::new(move |txn, now_ms| {
        let Some(id) = bucket::grave(txn, Kind::Objects)? else { return Ok(Swept { commit: Commit::No, next_ms: None }) };
        if purge(txn, id, SWEEP_MAX, &files)? {
            bucket::forget(txn, Kind::Objects, id)?;
        }
        Ok(Swept { commit: Commit::Yes, next_ms: Some(now_ms) })
    })
}

/// Removes at most `count` objects of a deleted bucket. Answers whether nothing of it is left.
fn purge(txn: &WriteTransaction, bucket: BucketId, count: usize, files: &Files) -> Result<bool, DataError> {
    let doing = "remove objects of a deleted bucket";
    let mut tables = Tables::open(txn)?;
    let first = (bucket.0, &[][..]);
    let range = tables.objects.range(first..).map_err(storage(doing))?;
    let mut keys = Vec::new();
    for entry in range.take(count) {
        let (key, row) = entry.map_err(storage(doing))?;
        let (of, key) = key.value();
        if of != bucket.0 {
            break;
        }
        let expires_ms = record::decode(bucket, key, row.value()).and_then(|head| head.expires_ms);
        keys.push((key.to_vec(), expires_ms));
    }
    for (key, expires_ms) in &keys {
        tables.objects.remove((bucket.0, key.as_slice())).map_err(storage(doing))?;
        if let Some(expires_ms) = expires_ms {
            tables.expiry.remove((*expires_ms, bucket.0, key.as_slice())).map_err(storage(doing))?;
        }
    }
    if !keys.is_empty() {
        return Ok(false);
    }
    let range = (bucket.0, &[0; 32])..=(bucket.0, &[0xff; 32]);
    let mut digests = Vec::new();
    for entry in tables.files.range(range).map_err(storage(doing))?.take(count) {
        digests.push(*entry.map_err(storage(doing))?.0.value().1);
    }
    for digest in &digests {
        tables.files.remove((bucket.0, digest)).map_err(storage(doing))?;
        files.release(FileId { bucket, digest: Digest::from_bytes(*digest) });
    }
    Ok(digests.is_empty())
}

/// What lies under a key.
#[derive(Debug)]
enum Row {
    None,
    Good(Head),
    /// It is not what was written; what its object took is not known.
    Damaged,
}

impl Row {
    fn of(bucket: BucketId, key: &[u8], row: Option<redb::AccessGuard<'_, &'static [u8]>>) -> Self {
        match row {
            None => Self::None,
            Some(row) => record::decode(bucket, key, row.value()).map_or(Self::Damaged, Self::Good),
        }
    }

    fn usage(&self, key: &[u8]) -> Usage {
        match self {
            Self::None => Usage::default(),
            Self::Good(head) => head.usage(key),
            Self::Damaged => Usage { bytes: 0, keys: 1 },
        }
    }

    fn etag(&self, now_ms: u64) -> Option<Digest> {
        match self {
            Self::Good(head) if !head.is_gone(now_ms) => Some(head.etag),
            Self::None | Self::Good(_) | Self::Damaged => None,
        }
    }
}

/// The tables in a transaction that writes.
struct Tables<'t> {
    objects: Table<'t, (u64, &'static [u8]), &'static [u8]>,
    files: Table<'t, (u64, &'static [u8; 32]), &'static [u8]>,
    expiry: Table<'t, (u64, u64, &'static [u8]), ()>,
}

impl<'t> Tables<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, DataError> {
        let doing = "open the objects";
        let objects = txn.open_table(OBJECTS).map_err(storage(doing))?;
        let files = txn.open_table(FILES).map_err(storage(doing))?;
        let expiry = txn.open_table(EXPIRY).map_err(storage(doing))?;
        Ok(Self { objects, files, expiry })
    }

    fn read(&self, bucket: BucketId, key: &[u8]) -> Result<Row, DataError> {
        let row = self.objects.get((bucket.0, key)).map_err(storage("read an object's row"))?;
        Ok(Row::of(bucket, key, row))
    }

    /// Puts `new` in place of `old`, everything but the account. Everything has been checked.
    fn replace(&mut self, bucket: BucketId, key: &[u8], old: &Row, new: Option<&Head>, files: &Files) -> Result<(), DataError> {
        let doing = "write an object's row";
        if let Row::Good(old) = old {
            self.count(bucket, old.etag, false, files)?;
            if let Some(expires_ms) = old.expires_ms {
                self.expiry.remove((expires_ms, bucket.0, key)).map_err(storage(doing))?;
            }
        }
        let Some(new) = new else {
            self.objects.remove((bucket.0, key)).map_err(storage(doing))?;
            return Ok(());
        };
        self.count(bucket, new.etag, true, files)?;
        if let Some(expires_ms) = new.expires_ms {
            self.expiry.insert((expires_ms, bucket.0, key), ()).map_err(storage(doing))?;
        }
        let row = record::encode(bucket, key, new);
        self.objects.insert((bucket.0, key), row.as_slice()).map_err(storage(doing))?;
        Ok(())
    }

    /// Counts one record more or less that refers to a file.
    fn count(&mut self, bucket: BucketId, digest: Digest, is_more: bool, files: &Files) -> Result<(), DataError> {
        let doing = "count what refers to a file";
        let place = (bucket.0, digest.bytes());
        let count = match self.files.get(place).map_err(storage(doing))? {
            None => 0,
            Some(row) => match read_count(bucket, digest, row.value()) {
                Some(count) => count,
                // Then nobody knows when it ends: the file stays, and a recount tells.
                None => return Ok(()),
            },
        };
        let count = if is_more { count + 1 } else { count.saturating_sub(1) };
        if count == 0 {
            self.files.remove(place).map_err(storage(doing))?;
            files.release(FileId { bucket, digest });
            return Ok(());
        }
        let row = Numbers([count]).seal(&[&bucket.0.to_le_bytes(), digest.bytes()]);
        self.files.insert(place, row.as_slice()).map_err(storage(doing))?;
        Ok(())
    }
}

fn read_count(bucket: BucketId, digest: Digest, row: &[u8]) -> Option<u64> {
    Numbers::open(&[&bucket.0.to_le_bytes(), digest.bytes()], row).map(|Numbers([count])| count)
}

fn damaged_count(bucket: BucketId, digest: Digest) -> DataError {
    DataError::Damaged { what: format!("the count of what refers to {digest} in bucket {bucket} is not what was written") }
}

fn corrupt(bucket: BucketId, key: &[u8]) -> DataError {
    DataError::Corrupt { bucket, key: Bytes::copy_from_slice(key) }
}

/// What a scrub found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scrubbed {
    /// Objects whose bytes were read, or found good before as the same file.
    pub objects: u64,
    /// Bytes read.
    pub bytes: u64,
    /// Objects that are damaged or lost, by bucket and key.
    pub corrupt: Vec<(BucketId, Bytes)>,
}

/// What counting again found of one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recount {
    /// What its objects take.
    pub objects: Usage,
    /// Rows that are damaged, and not in that.
    pub damaged: u64,
}

/// The durable objects of a node.
#[derive(Debug)]
pub struct Durable {
    store: Arc<Store>,
    files: Arc<Files>,
    collector: Option<JoinHandle<()>>,
}

impl Durable {
    /// `store` has the tables, and [`sweep`] of the same `files`. Releases every file without a row, and starts the collector.
    ///
    /// # Cost
    /// A look into the store for each file.
    pub(in crate::data) fn open(store: Arc<Store>, files: Arc<Files>) -> Result<Self, DataError> {
        for id in files.all()? {
            files.release(id);
        }
        let (of_thread, files_of_thread) = (Arc::clone(&store), Arc::clone(&files));
        let run = move || {
            // Jobs run in order, so what was begun before this one is committed or undone when it is answered.
            let commit = || of_thread.write(0, |_, _| Ok(((), Commit::No))).wait();
            files_of_thread.collect(commit, |id| is_referenced(&of_thread, id));
        };
        let collector = std::thread::Builder::new().name("hob-objects".into()).spawn(run);
        let collector = Some(collector.map_err(io_error("start the thread that removes objects"))?);
        Ok(Self { store, files, collector })
    }

    /// Bytes of all files, those included that are being written or are still open though no key has them.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.files.space.used()
    }

    /// Reads every object of a bucket and holds it against its ETag, whatever was found before.
    ///
    /// # Errors
    /// Those of storage; an object that cannot be read for another reason than damage ends it.
    ///
    /// # Cost
    /// Reads all files once, about 0.5 ns a byte besides the disk; objects that come meanwhile may be left out. Blocks.
    pub fn scrub(&self, bucket: &Bucket) -> Result<Scrubbed, DataError> {
        let mut scrubbed = Scrubbed::default();
        let mut good = HashSet::new();
        let mut after = None::<Bytes>;
        loop {
            let rows = self.rows(bucket.id, &[], after.as_deref(), PAGE_LEN_MAX)?;
            let Some((last, _)) = rows.last() else { return Ok(scrubbed) };
            after = Some(last.clone());
            for (key, row) in rows {
                scrubbed.objects += 1;
                let is_good = match row {
                    Row::Good(head) if good.contains(&head.etag) => true,
                    Row::Good(head) => {
                        let id = FileId { bucket: bucket.id, digest: head.etag };
                        let _held = self.files.hold(id);
                        let is_good = self.files.scrub(id, head.len)?;
                        if is_good {
                            scrubbed.bytes += head.len;
                            good.insert(head.etag);
                        }
                        // It may have been deleted or replaced before it was held.
                        is_good || self.find(bucket.id, &key)?.is_none_or(|now| now.version != head.version)
                    }
                    Row::Damaged | Row::None => false,
                };
                if !is_good {
                    scrubbed.corrupt.push((bucket.id, key));
                }
            }
        }
    }

    /// Counts again what a bucket's objects take; it must agree with [`Bucket::objects`] if nothing is written meanwhile.
    ///
    /// # Errors
    /// [`DataError::Damaged`] if the count of what refers to a file is wrong, and those of storage.
    ///
    /// # Cost
    /// Reads all rows of the bucket in one transaction.
    pub fn recount(&self, bucket: &Bucket) -> Result<Recount, DataError> {
        let id = bucket.id;
        self.store.read(|txn| {
            let doing = "count objects again";
            let mut recount = Recount::default();
            let mut references = BTreeMap::<Digest, u64>::new();
            let objects = txn.open_table(OBJECTS).map_err(storage(doing))?;
            for entry in objects.range((id.0, &[][..])..).map_err(storage(doing))? {
                let (place, row) = entry.map_err(storage(doing))?;
                let (of, key) = place.value();
                if of != id.0 {
                    break;
                }
                match record::decode(id, key, row.value()) {
                    None => recount.damaged += 1,
                    Some(head) => {
                        recount.objects = recount.objects.plus(head.usage(key));
                        *references.entry(head.etag).or_default() += 1;
                    }
                }
            }
            let files = txn.open_table(FILES).map_err(storage(doing))?;
            let range = (id.0, &[0; 32])..=(id.0, &[0xff; 32]);
            for entry in files.range(range).map_err(storage(doing))? {
                let (place, row) = entry.map_err(storage(doing))?;
                let digest = Digest::from_bytes(*place.value().1);
                let count = read_count(id, digest, row.value());
                // Of damaged rows it is not known what they referred to.
                let expected = references.remove(&digest);
                if count != expected && recount.damaged == 0 {
                    return Err(damaged_count(id, digest));
                }
            }
            match references.pop_first() {
                Some((digest, _)) => Err(damaged_count(id, digest)),
                None => Ok(recount),
            }
        })
    }

    fn row(&self, bucket: BucketId, key: &[u8]) -> Result<Row, DataError> {
        check_key(key)?;
        self.store.read(|txn| {
            let doing = "read an object's row";
            bucket::spec(txn, bucket)?;
            let row = txn.open_table(OBJECTS).map_err(storage(doing))?.get((bucket.0, key)).map_err(storage(doing))?;
            Ok(Row::of(bucket, key, row))
        })
    }

    fn find(&self, bucket: BucketId, key: &[u8]) -> Result<Option<Head>, DataError> {
        match self.row(bucket, key)? {
            Row::None => Ok(None),
            Row::Good(head) => Ok((!head.is_gone(self.store.clock().now_ms())).then_some(head)),
            Row::Damaged => Err(corrupt(bucket, key)),
        }
    }

    /// Rows in order, expired ones too.
    fn rows(&self, bucket: BucketId, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Vec<(Bytes, Row)>, DataError> {
        use std::ops::Bound;
        let first = match after {
            Some(after) if after >= prefix => Bound::Excluded((bucket.0, after)),
            _ => Bound::Included((bucket.0, prefix)),
        };
        self.store.read(|txn| {
            let doing = "list objects";
            bucket::spec(txn, bucket)?;
            let table = txn.open_table(OBJECTS).map_err(storage(doing))?;
            let mut rows = Vec::new();
            for entry in table.range((first, Bound::Unbounded)).map_err(storage(doing))?.take(limit) {
                let (place, row) = entry.map_err(storage(doing))?;
                let (of, key) = place.value();
                if of != bucket.0 || !key.starts_with(prefix) {
                    break;
                }
                rows.push((Bytes::copy_from_slice(key), Row::of(bucket, key, Some(row))));
            }
            Ok(rows)
        })
    }
}

impl Drop for Durable {
    fn drop(&mut self) {
        self.files.stop();
        if self.collector.take().is_some_and(|collector| collector.join().is_err()) {
            tracing::error!("the thread that removes objects ended with a panic");
        }
    }
}

fn is_referenced(store: &Store, id: FileId) -> Result<bool, DataError> {
    let doing = "look for what refers to a file";
    store.read(|txn| {
        let table = txn.open_table(FILES).map_err(storage(doing))?;
        // A damaged count is one too.
        Ok(table.get((id.bucket.0, id.digest.bytes())).map_err(storage(doing))?.is_some())
    })
}

impl Objects for Durable {
    fn put(&self, bucket: &Bucket, key: &[u8], options: PutOptions) -> Result<Box<dyn Upload>, DataError> {
        check_key(key)?;
        check_options(&options)?;
        if let Some(why) = self.store.read_only() {
            return Err(DataError::ReadOnly { why: why.into() });
        }
        if options.when != When::Always {
            options.when.check(self.row(bucket.id, key)?.etag(self.store.clock().now_ms()))?;
        }
        let staged = self.files.stage();
        let charge = Charge::new(&self.files.space, 0).map_err(full)?;
        let mut open = OpenOptions::new();
        let file = open.write(true).create_new(true).mode(0o400).open(staged.path()).map_err(io_error("create an object"))?;
        crash::point("object-created");
        let (store, files) = (Arc::clone(&self.store), Arc::clone(&self.files));
        let hasher = sha2::Sha256::new();
        Ok(Box::new(Putting { store, files, bucket: bucket.clone(), key: key.into(), options, file, hasher, charge, staged }))
    }

    fn head(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Head>, DataError> {
        self.find(bucket.id, key)
    }

    fn open(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Opened>, DataError> {
        let mut last = None;
        loop {
            let Some(head) = self.find(bucket.id, key)? else { return Ok(None) };
            let id = FileId { bucket: bucket.id, digest: head.etag };
            let held = self.files.hold(id);
            if let Some((file, verified)) = self.files.open_file(id, head.len)? {
                return Ok(Some(Opened { head, verified, content: Content::File(file, held) }));
            }
            // Before it was held the object may have been deleted or replaced, and its file removed. Versions rise, so this ends.
            if last == Some(head.version) {
                return Err(corrupt(bucket.id, key));
            }
            last = Some(head.version);
        }
    }

    fn list(&self, bucket: &Bucket, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError> {
        let limit = limit.clamp(1, PAGE_LEN_MAX);
        let now_ms = self.store.clock().now_ms();
        let mut rows = self.rows(bucket.id, prefix, after, limit + 1)?;
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| has_more).map(|(key, _)| key.clone());
        let mut objects = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            match row {
                Row::Good(head) if !head.is_gone(now_ms) => objects.push((key, head)),
                Row::Good(_) | Row::None => {}
                Row::Damaged => return Err(corrupt(bucket.id, &key)),
            }
        }
        Ok(Page { objects, next })
    }

    fn delete(&self, bucket: &Bucket, key: &[u8], when: When) -> Ack<Option<Head>> {
        if let Err(error) = check_key(key) {
            return Ack::ready(Err(error));
        }
        let (bucket, key, files) = (bucket.id, key.to_vec(), Arc::clone(&self.files));
        self.store.write(COST_BYTES + key.len(), move |txn, now_ms| {
            let mut state = State::read(txn, bucket)?;
            let mut tables = Tables::open(txn)?;
            let row = tables.read(bucket, &key)?;
            when.check(row.etag(now_ms))?;
            if matches!(row, Row::None) {
                return Ok((None, Commit::No));
            }
            state.charge(Kind::Objects, row.usage(&key), Usage::default())?;
            tables.replace(bucket, &key, &row, None, &files)?;
            state.next_version();
            state.write(txn, bucket)?;
            let head = match row {
                Row::Good(head) if !head.is_gone(now_ms) => Some(head),
                Row::Good(_) | Row::None | Row::Damaged => None,
            };
            Ok((head, Commit::Yes))
        })
    }
}

/// A put under way.
struct Putting {
    store: Arc<Store>,
    files: Arc<Files>,
    bucket: Bucket,
    key: Vec<u8>,
    options: PutOptions,
    file: File,
    hasher: sha2::Sha256,
    charge: Charge,
    staged: StagedPath,
}

impl std::fmt::Debug for Putting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Putting").field("bucket", &self.bucket.id).field("bytes", &self.charge.bytes()).finish_non_exhaustive()
    }
}

impl Upload for Putting {
    fn write(&mut self, piece: &[u8]) -> Result<(), DataError> {
        let len = self.charge.bytes().saturating_add(piece.len() as u64);
        check_object_len(&self.bucket, &self.files.limits, len)?;
        self.charge.grow(piece.len() as u64).map_err(full)?;
        self.file.write_all(piece).map_err(io_error("write an object"))?;
        self.hasher.update(piece);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Ack<Head> {
        match self.place() {
            Ok((held, len, job)) => commit(held, len, job),
            Err(error) => Ack::ready(Err(error)),
        }
    }
}

/// What is left of a put when its file is in place.
struct Placed {
    store: Arc<Store>,
    files: Arc<Files>,
    bucket: BucketId,
    key: Vec<u8>,
    options: PutOptions,
}

impl Putting {
    /// Makes the file durable under its name. It is held from before that.
    fn place(self) -> Result<(Held, u64, Placed), DataError> {
        let Self { store, files, bucket, key, options, file, hasher, mut charge, staged } = self;
        let digest = Digest::from_bytes(hasher.finalize().into());
        check_digest(options.digest, digest)?;
        crash::point("object-written");
        file.sync_all().map_err(io_error("sync an object"))?;
        crash::point("object-synced");
        let id = FileId { bucket: bucket.id, digest };
        let held = files.hold(id);
        let len = charge.bytes();
        let folder = files.folder(bucket.id);
        create_dirs(&folder).map_err(io_error("make a folder of objects"))?;
        // One that is there and good stays, so that who has it mapped and who maps it now share its pages.
        if !files.is_good(id) {
            let renamed =
                files.space.place(&id, &staged, &files.path(id), &mut charge).map_err(io_error("put an object in place"));
            // From here on it is garbage until its row is committed.
            renamed.and_then(|()| files.remember(id, &file)).inspect_err(|_| files.release(id))?;
        }
        crash::point("object-renamed");
        sync_dir(&folder).map_err(io_error("sync a folder of objects")).inspect_err(|_| files.release(id))?;
        crash::point("object-dir-synced");
        Ok((held, len, Placed { store, files, bucket: bucket.id, key, options }))
    }
}

/// Commits the row. `held` goes when the answer is there.
fn commit(held: Held, len: u64, placed: Placed) -> Ack<Head> {
    let Placed { store, files, bucket, key, options } = placed;
    let id = held.id();
    let cost = COST_BYTES + key.len() + options.content_type.len() + super::metadata_bytes(&options.metadata);
    let files_after = Arc::clone(&files);
    let op = move |txn: &WriteTransaction, now_ms: u64| {
        let mut state = State::read(txn, bucket)?;
        let mut tables = Tables::open(txn)?;
        let old = tables.read(bucket, &key)?;
        options.when.check(old.etag(now_ms))?;
        let head = Head {
            etag: id.digest,
            len,
            version: state.next_version(),
            modified_ms: now_ms,
            expires_ms: options.ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms)),
            content_type: options.content_type,
            metadata: options.metadata,
        };
        state.charge(Kind::Objects, old.usage(&key), head.usage(&key))?;
        tables.replace(bucket, &key, &old, Some(&head), &files)?;
        state.write(txn, bucket)?;
        crash::point("object-row-written");
        Ok((head, Commit::Yes))
    };
    store.write_then(cost, op, move |result| {
        crash::point("object-committed");
        drop(held);
        if result.is_err() {
            files_after.release(id);
        }
    })
}
