//! Durable objects: rows in the store, bytes in immutable files.
//!
//! A put writes and syncs its file in staging, renames it, syncs the folder, and then commits the row, which makes it visible. A kill
//! in between leaves a file without a row, which is garbage; a row without its file was damaged by somebody else.
//!
//! Owns the order of a put, and has more than 500 lines so that all of its steps stand together. `table.rs` keeps the rows, `files.rs`
//! the files. Invariant at every commit: the bucket's account is the sum of what its records take.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use redb::{ReadTransaction, WriteTransaction};
use sha2::Digest as _;

use super::super::account::{Kind, State, Usage};
use super::super::bucket::{self, Bucket, BucketId};
use super::super::error::{DataError, io_error, storage};
use super::super::events::{self, Emitter, Events};
use super::super::store::{Ack, Commit, Store};
use super::files::{Charge, FileId, Files, Held, StagedPath, full};
use super::pieces::Pieces;
use super::references::References;
use super::table::{FILES, OBJECTS, Row, Tables, corrupt, damaged_count, read_count};
use super::{
    Content, Head, Objects, OpenNow, Opened, PAGE_LEN_MAX, Page, Place, PutOptions, Upload, Verified, When, check_digest,
    check_key, check_object_len, check_options, record,
};
use crate::crash;
use crate::id::Digest;
use crate::storage::disk::{create_dirs, sync_dir};
use crate::storage::log::Room;

/// Roughly what a row costs besides its key and text.
const COST_BYTES: usize = 256;

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
    pub(super) store: Arc<Store>,
    pub(super) files: Arc<Files>,
    events: Arc<Events>,
    collector: Option<JoinHandle<()>>,
}

impl Durable {
    /// `store` has the tables, and the sweeps of the same `files`. Releases every file without a row, and starts the collector.
    ///
    /// # Cost
    /// A look into the store for each file; in a bucket with files that nothing refers to, for each of its objects too.
    pub(in crate::data) fn open(store: Arc<Store>, files: Arc<Files>, events: Arc<Events>) -> Result<Self, DataError> {
        let found = files.all()?;
        for id in &found {
            files.release(*id);
        }
        let mut references = References::new(found);
        let (of_thread, files_of_thread) = (Arc::clone(&store), Arc::clone(&files));
        let run = move || {
            // Jobs run in order, so what was begun before this one is committed or undone when it is answered.
            let commit = || of_thread.remove(0, |_, _| Ok(((), Commit::No))).wait();
            files_of_thread.collect(commit, |id| references.are_there(&of_thread, id));
        };
        let collector = std::thread::Builder::new().name("hob-objects".into()).spawn(run);
        let collector = Some(collector.map_err(io_error("start the thread that removes objects"))?);
        Ok(Self { store, files, events, collector })
    }

    /// What is to be called with the number of a bucket that is gone.
    pub(in crate::data) fn ends(&self) -> impl Fn(BucketId) + Send + 'static {
        let files = Arc::clone(&self.files);
        move |id| files.mounts.end(id)
    }

    /// Bytes of all files, those included that are being written or are still open though no key has them.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.files.space.used()
    }

    /// Reads every object of a bucket and holds it against its ETag, whatever was found before.
    ///
    /// # Errors
    /// Those of storage; an object that cannot be read for another reason than damage or a failing disk ends it.
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
                        let is_whole = match self.files.scrub(id, head.len) {
                            // What the disk does not give is lost, and no reason not to look at the rest.
                            Err(error) if error.is_disk_failure() => false,
                            read => read?,
                        };
                        if is_whole {
                            scrubbed.bytes += head.len;
                            good.insert(head.etag);
                        }
                        // It may have been deleted or replaced before it was held.
                        let is_good = is_whole || self.find(bucket.id, &key)?.is_none_or(|now| now.version != head.version);
                        if !is_good {
                            self.files.note_damaged(id);
                        }
                        is_good
                    }
                    Row::Damaged | Row::None => false,
                };
                let is_good = is_good && self.is_found(bucket.id, &key)?;
                if !is_good {
                    self.relink(bucket.id, &key)?;
                    scrubbed.corrupt.push((bucket.id, key));
                }
            }
        }
    }

    /// Whether a key that a list has leads to its row: a page that leads to others may be damaged. One that was deleted meanwhile is found too.
    fn is_found(&self, bucket: BucketId, key: &[u8]) -> Result<bool, DataError> {
        if !matches!(self.row(bucket, key)?, Row::None) {
            return Ok(true);
        }
        Ok(self.rows(bucket, key, None, 1)?.first().is_none_or(|(listed, _)| listed != key))
    }

    /// Counts again what a bucket's objects take; it must agree with [`Bucket::objects`] if nothing is written meanwhile.
    ///
    /// # Errors
    /// [`DataError::Damaged`] if the count of what refers to a file is wrong, and those of storage.
    ///
    /// # Cost
    /// Reads all rows of the bucket in one transaction.
    pub fn recount(&self, bucket: &Bucket) -> Result<Recount, DataError> {
        self.store.read(|txn| recount_in(txn, bucket.id))
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

    pub(super) fn find(&self, bucket: BucketId, key: &[u8]) -> Result<Option<Head>, DataError> {
        match self.row(bucket, key)? {
            Row::None => Ok(None),
            Row::Good(head) => Ok((!head.is_gone(self.store.clock().now_ms())).then_some(head)),
            Row::Damaged => Err(corrupt(bucket, key)),
        }
    }

    /// Rows in order, expired ones too.
    pub(super) fn rows(
        &self,
        bucket: BucketId,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, DataError> {
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

/// As [`Durable::recount`], in a transaction.
pub(super) fn recount_in(txn: &ReadTransaction, id: BucketId) -> Result<Recount, DataError> {
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
}

impl Objects for Durable {
    fn put(&self, bucket: &Bucket, key: &[u8], options: PutOptions) -> Result<Box<dyn Upload>, DataError> {
        check_key(key)?;
        check_options(&options)?;
        if let Some(why) = self.store.read_only() {
            return Err(DataError::ReadOnly { why: why.into() });
        }
        if options.when != When::Always {
            self.row(bucket.id, key)?.check(options.when, self.store.clock().now_ms(), bucket.id, key)?;
        }
        let staged = self.files.stage();
        let charge = Charge::new(&self.files.space, 0).map_err(full)?;
        let mut open = OpenOptions::new();
        let file = open.write(true).create_new(true).mode(0o400).open(staged.path()).map_err(io_error("create an object"))?;
        crash::point("object-created");
        let (store, files, events) = (Arc::clone(&self.store), Arc::clone(&self.files), Arc::clone(&self.events));
        let (bucket, key, hasher) = (bucket.clone(), key.into(), sha2::Sha256::new());
        let file = Pieces::new(file, &files.gathering);
        Ok(Box::new(Putting { store, files, events, bucket, key, options, file, hasher, charge, staged }))
    }

    fn head(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Head>, DataError> {
        self.find(bucket.id, key)
    }

    fn is_known_damaged(&self, bucket: &Bucket, head: &Head) -> bool {
        self.files.is_damaged(FileId { bucket: bucket.id, digest: head.etag })
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
                self.files.note_damaged(id);
                // Who has it as a file in a folder is not to read it either.
                self.files.mounts.touch(bucket.id, key);
                return Err(corrupt(bucket.id, key));
            }
            last = Some(head.version);
        }
    }

    fn open_now(&self, bucket: &Bucket, key: &[u8]) -> Result<OpenNow, DataError> {
        let Some(head) = self.find(bucket.id, key)? else { return Ok(OpenNow::Absent) };
        let id = FileId { bucket: bucket.id, digest: head.etag };
        let held = self.files.hold(id);
        Ok(match self.files.open_checked(id, head.len) {
            Some(file) => OpenNow::Opened(Opened { head, verified: Verified::Before, content: Content::File(file, held) }),
            // Or it is lost, or was just deleted: who may block finds out.
            None => OpenNow::Unchecked,
        })
    }

    fn place(&self, _bucket: &Bucket) -> Place {
        Place::Disk
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
                Row::Good(head) if !head.is_gone(now_ms) => objects.push((key, Ok(head))),
                Row::Good(_) | Row::None => {}
                Row::Damaged => {
                    let damaged = corrupt(bucket.id, &key);
                    objects.push((key, Err(damaged)));
                }
            }
        }
        Ok(Page { objects, next })
    }

    fn delete(&self, bucket: &Bucket, key: &[u8], when: When) -> Ack<Option<Head>> {
        if let Err(error) = check_key(key) {
            return Ack::ready(Err(error));
        }
        let (bucket, key, files) = (bucket.id, key.to_vec(), Arc::clone(&self.files));
        let (key_after, files_after) = (key.clone(), Arc::clone(&files));
        let op = move |txn: &WriteTransaction, now_ms: u64| {
            let mut state = State::read(txn, bucket)?;
            let mut tables = Tables::open(txn)?;
            let row = tables.read(bucket, &key)?;
            row.check(when, now_ms, bucket, &key)?;
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
        };
        self.store.queue(Room::Reserve, COST_BYTES + key_after.len(), op, move |result| {
            if result.is_ok() {
                files_after.unlink(bucket, &key_after);
            }
        })
    }
}

/// A put under way.
struct Putting {
    store: Arc<Store>,
    files: Arc<Files>,
    events: Arc<Events>,
    bucket: Bucket,
    key: Vec<u8>,
    options: PutOptions,
    file: Pieces,
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
        let written = self.file.write(piece).map_err(io_error("write an object"));
        written.inspect_err(|error| self.store.note(error))?;
        self.hasher.update(piece);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Ack<Head> {
        let store = Arc::clone(&self.store);
        match self.place() {
            Ok((held, len, job)) => commit(held, len, job),
            Err(error) => {
                store.note(&error);
                Ack::ready(Err(error))
            }
        }
    }
}

/// What is left of a put when its file is in place.
struct Placed {
    store: Arc<Store>,
    files: Arc<Files>,
    events: Arc<Events>,
    emitter: Emitter,
    key: Vec<u8>,
    options: PutOptions,
}

impl Putting {
    /// Makes the file durable under its name. It is held from before that.
    fn place(self) -> Result<(Held, u64, Placed), DataError> {
        let Self { store, files, events, bucket, key, options, file, hasher, mut charge, staged } = self;
        let digest = Digest::from_bytes(hasher.finalize().into());
        check_digest(options.digest, digest)?;
        let file = file.end().map_err(io_error("write an object"))?;
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
        Ok((held, len, Placed { store, files, events, emitter: Emitter::of(&bucket), key, options }))
    }
}

/// What is told of an object that was put.
fn told(head: &Head) -> events::Change {
    events::Change::Put { version: head.version, etag: head.etag, len: head.len, content_type: head.content_type.clone() }
}

/// Commits the row. `held` goes when the answer is there.
fn commit(held: Held, len: u64, placed: Placed) -> Ack<Head> {
    let Placed { store, files, events, emitter, key, options } = placed;
    let (id, bucket) = (held.id(), emitter.id);
    let cost = COST_BYTES + key.len() + options.content_type.len() + super::metadata_bytes(&options.metadata);
    let (files_after, events_after, key_after) = (Arc::clone(&files), Arc::clone(&events), key.clone());
    let op = move |txn: &WriteTransaction, now_ms: u64| {
        let mut state = State::read(txn, bucket)?;
        let mut tables = Tables::open(txn)?;
        let old = tables.read(bucket, &key)?;
        old.check(options.when, now_ms, bucket, &key)?;
        let head = Head {
            etag: id.digest,
            digest: Some(id.digest),
            len,
            version: state.next_version(),
            modified_ms: now_ms,
            expires_ms: options.ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms)),
            content_type: options.content_type,
            metadata: options.metadata,
        };
        state.charge(Kind::Objects, old.usage(&key), head.usage(&key))?;
        events.write(txn, &emitter, now_ms, std::iter::once((Bytes::copy_from_slice(&key), told(&head))))?;
        tables.replace(bucket, &key, &old, Some(&head), &files)?;
        state.write(txn, bucket)?;
        crash::point("object-row-written");
        Ok((head, Commit::Yes))
    };
    store.write_then(cost, op, move |result| {
        crash::point("object-committed");
        if result.is_ok() {
            files_after.link(id, &key_after);
        }
        events_after.flush();
        drop(held);
        if result.is_err() {
            files_after.release(id);
        }
    })
}
