//! Volatile objects: in memory, bounded, and removed from where they were used longest ago when room is needed.
//!
//! An object of more than 64 KiB is a memfd that is sealed when it is whole: nobody can write to it, grow or shrink it, this process
//! included, so a mapping of it never changes and never faults. Its length is padded with zeros to a page, and it lies in huge pages as far
//! as it fills such and the system has them. Smaller ones are on the
//! heap, because each memfd costs a descriptor and a page.
//!
//! An upload takes room as it grows. Room is made first in the bucket itself if its quota is reached, then, if the node's bound is, in
//! the bucket that has most: so one that fills the memory evicts its own. An object that is open is not evicted, and what it takes is
//! counted until it is closed.
//!
//! Owns the memory. Knows nothing about the store. Invariant: `used` is the sum over all [`Memory`] that lives, uploads included, and
//! never passes [`ObjectLimits::bytes_max`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fs::File;
use std::io::Write;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Resource, getrlimit};
use sha2::Digest as _;

use super::super::account::Usage;
use super::super::bucket::{Bucket, BucketId};
use super::super::clock::Clock;
use super::super::error::{AT_ONCE, DataError, io_error};
use super::super::store::Ack;
use super::{
    Content as OpenContent, Head, ObjectLimits, Objects, OpenNow, Opened, PAGE_LEN_MAX, Page, Place, PutOptions, Upload,
    Verified, When, check_digest, check_key, check_object_len, check_options,
};
use crate::bucket::BucketSpec;
use crate::id::Digest;
use crate::storage::huge;

/// Objects up to this many bytes have no descriptor: see [`Opened::fd`].
pub const HEAP_BYTES_MAX: usize = 64 << 10;

/// Of the descriptors that the process may have, counted up to this many, one in so many is for volatile objects.
const SHARE: u64 = 8;
const DESCRIPTORS_MAX: u64 = 65_536;
/// Buckets that were deleted, and are remembered for that.
const GONE_MAX: usize = 1024;

/// Bytes of an object.
#[derive(Debug)]
pub(super) enum Content {
    Heap(Bytes),
    Sealed(File),
}

/// Bytes of an object and the room that they take.
#[derive(Debug)]
pub(super) struct Memory {
    content: Content,
    #[expect(dead_code, reason = "it is held, not read")]
    room: Room,
    #[expect(dead_code, reason = "it is held, not read")]
    slot: Option<Slot>,
}

impl Memory {
    pub(super) fn bytes(&self) -> &Content {
        &self.content
    }

    fn is_sealed(&self) -> bool {
        matches!(self.content, Content::Sealed(_))
    }
}

/// Bytes counted as used until it is dropped.
#[derive(Debug)]
struct Room {
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[derive(Debug)]
struct Object {
    head: Head,
    memory: Arc<Memory>,
    /// Its place in `by_use`.
    used_at: u64,
}

#[derive(Debug, Default)]
struct Held {
    objects: BTreeMap<Bytes, Object>,
    /// The one that was used longest ago first.
    by_use: BTreeMap<u64, Bytes>,
    /// Those with a time to live, the one that ends first first.
    by_end: BTreeSet<(u64, Bytes)>,
    usage: Usage,
    /// Objects that have a descriptor.
    sealed: usize,
}

impl Held {
    fn remove(&mut self, key: &[u8]) -> Option<Object> {
        let object = self.objects.remove(key)?;
        self.by_use.remove(&object.used_at);
        if let Some(end_ms) = object.head.expires_ms {
            self.by_end.remove(&(end_ms, Bytes::copy_from_slice(key)));
        }
        self.sealed -= usize::from(object.memory.is_sealed());
        let usage = object.head.usage(key);
        self.usage.bytes -= usage.bytes;
        self.usage.keys -= usage.keys;
        Some(object)
    }

    fn insert(&mut self, key: Bytes, object: Object) {
        self.usage = self.usage.plus(object.head.usage(&key));
        self.by_use.insert(object.used_at, key.clone());
        self.sealed += usize::from(object.memory.is_sealed());
        if let Some(end_ms) = object.head.expires_ms {
            self.by_end.insert((end_ms, key.clone()));
        }
        self.objects.insert(key, object);
    }

    /// Removes what has expired.
    fn sweep(&mut self, now_ms: u64) {
        while let Some((end_ms, key)) = self.by_end.first().cloned()
            && end_ms <= now_ms
        {
            self.remove(&key);
        }
    }

    /// Removes the object that was used longest ago, of those that are not open and not under `spared`, and have a descriptor if it is that
    /// which is wanted.
    fn evict(&mut self, spared: &[u8], wanted: Wanted) -> bool {
        let is_free = |key: &&Bytes| {
            let object = self.objects.get(&***key);
            let is_it = |object: &Object| wanted == Wanted::Bytes || object.memory.is_sealed();
            &***key != spared && object.is_some_and(|object| is_it(object) && Arc::strong_count(&object.memory) == 1)
        };
        let Some(key) = self.by_use.values().find(is_free).cloned() else { return false };
        self.remove(&key).is_some()
    }
}

/// What room is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Bytes,
    Descriptors,
}

#[derive(Debug)]
struct Inner {
    buckets: HashMap<BucketId, Held>,
    /// Buckets that were deleted last: who still has one open puts nothing into it, and is told so.
    gone: VecDeque<BucketId>,
    /// Highest version given, in whichever bucket.
    version: u64,
    uses: u64,
}

impl Inner {
    /// Whether the bucket is not among those that were deleted last.
    fn check(&self, bucket: &Bucket) -> Result<(), DataError> {
        match self.gone.contains(&bucket.id) {
            true => Err(DataError::NoSuchBucket { name: bucket.name.to_string() }),
            false => Ok(()),
        }
    }

    /// An object that is there, as used just now.
    fn find(&mut self, bucket: BucketId, key: &[u8], now_ms: u64) -> Option<&Object> {
        let held = self.buckets.get_mut(&bucket)?;
        if held.objects.get(key)?.head.is_gone(now_ms) {
            held.remove(key);
            return None;
        }
        self.uses += 1;
        let object = held.objects.get_mut(key)?;
        if let Some(key) = held.by_use.remove(&object.used_at) {
            held.by_use.insert(self.uses, key);
        }
        object.used_at = self.uses;
        Some(object)
    }

    /// Makes room on the node: of what has expired, else evicts where most is.
    fn evict(&mut self, now_ms: u64, wanted: Wanted) -> bool {
        let ended = |held: &Held| held.by_end.first().is_some_and(|(end_ms, _)| *end_ms <= now_ms);
        if let Some(held) = self.buckets.values_mut().find(|held| ended(held)) {
            held.sweep(now_ms);
            return true;
        }
        let takes = |held: &Held| match wanted {
            // A key has bytes too, so what has objects has some.
            Wanted::Bytes => held.usage.bytes,
            Wanted::Descriptors => held.sealed as u64,
        };
        let mut by_size: Vec<_> = self.buckets.values_mut().filter(|held| takes(held) > 0).collect();
        by_size.sort_unstable_by_key(|held| std::cmp::Reverse(takes(held)));
        by_size.into_iter().any(|held| held.evict(&[], wanted))
    }
}

#[derive(Debug)]
struct Shared {
    limits: ObjectLimits,
    clock: Clock,
    used: Arc<AtomicU64>,
    descriptors: Arc<AtomicUsize>,
    descriptors_max: usize,
    inner: Mutex<Inner>,
}

impl Shared {
    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `room` have `bytes`, of which it may have some.
    fn grow(&self, room: &mut Room, bytes: u64) -> Result<(), DataError> {
        let more = bytes.saturating_sub(room.bytes);
        // Only under the lock it grows.
        let mut inner = self.lock();
        while self.used.load(Ordering::Acquire).saturating_add(more) > self.limits.bytes_max {
            if !inner.evict(self.clock.now_ms(), Wanted::Bytes) {
                let text = format!("{} bytes of memory are for volatile objects", self.limits.bytes_max);
                return Err(io_error("keep an object")(std::io::Error::new(std::io::ErrorKind::StorageFull, text)));
            }
        }
        self.used.fetch_add(more, Ordering::AcqRel);
        room.bytes += more;
        Ok(())
    }

    /// A place for a descriptor.
    fn descriptor(&self) -> Result<Slot, DataError> {
        let mut inner = self.lock();
        while self.descriptors.load(Ordering::Acquire) >= self.descriptors_max {
            if !inner.evict(self.clock.now_ms(), Wanted::Descriptors) {
                let text =
                    format!("{} descriptors are for volatile objects of more than {HEAP_BYTES_MAX} bytes", self.descriptors_max);
                return Err(io_error("keep an object")(std::io::Error::new(std::io::ErrorKind::StorageFull, text)));
            }
        }
        self.descriptors.fetch_add(1, Ordering::AcqRel);
        Ok(Slot(Arc::clone(&self.descriptors)))
    }
}

/// A descriptor that is counted until it is dropped.
#[derive(Debug)]
struct Slot(Arc<AtomicUsize>);

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The volatile objects of a node.
#[derive(Debug)]
pub struct Volatile {
    shared: Arc<Shared>,
}

impl Volatile {
    /// Without objects.
    #[must_use]
    pub fn new(limits: ObjectLimits, clock: Clock) -> Self {
        let all = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).min(DESCRIPTORS_MAX);
        Self::with(limits, clock, usize::try_from(all / SHARE).unwrap_or(usize::MAX))
    }

    /// The same with so many descriptors.
    pub(super) fn with(limits: ObjectLimits, clock: Clock, descriptors_max: usize) -> Self {
        let version = clock.first_version();
        let inner = Mutex::new(Inner { buckets: HashMap::new(), gone: VecDeque::new(), version, uses: 0 });
        let shared = Shared { limits, clock, used: Arc::default(), descriptors: Arc::default(), descriptors_max, inner };
        Self { shared: Arc::new(shared) }
    }

    /// What the objects of a bucket take.
    #[must_use]
    pub fn usage(&self, bucket: BucketId) -> Usage {
        let now_ms = self.shared.clock.now_ms();
        let mut inner = self.shared.lock();
        let Some(held) = inner.buckets.get_mut(&bucket) else { return Usage::default() };
        held.sweep(now_ms);
        held.usage
    }

    /// Bytes of memory that all take, with those that are being put and those that are open and deleted.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.used.load(Ordering::Acquire)
    }

    /// Forgets all objects of a bucket that was deleted. A put that began before is refused at its end; so is a later one, if there ever was
    /// another.
    pub fn forget(&self, bucket: BucketId) {
        let mut inner = self.shared.lock();
        // One that nothing was ever put into need not be remembered; most are durable.
        if inner.buckets.remove(&bucket).is_some() {
            inner.gone.truncate(GONE_MAX - 1);
            inner.gone.push_front(bucket);
        }
    }

    /// A bucket has other quotas: what does not fit any more goes, but for what is open.
    pub(in crate::data) fn resize(&self, bucket: BucketId, spec: BucketSpec) {
        let now_ms = self.shared.clock.now_ms();
        let mut inner = self.shared.lock();
        let Some(held) = inner.buckets.get_mut(&bucket) else { return };
        held.sweep(now_ms);
        while (held.usage.bytes > spec.bytes_max || held.usage.keys > spec.keys_max) && held.evict(&[], Wanted::Bytes) {}
    }
}

impl Objects for Volatile {
    fn put(&self, bucket: &Bucket, key: &[u8], options: PutOptions) -> Result<Box<dyn Upload>, DataError> {
        check_key(key)?;
        check_options(&options)?;
        {
            let mut inner = self.shared.lock();
            inner.check(bucket)?;
            inner.buckets.entry(bucket.id).or_default();
        }
        if options.when != When::Always {
            let now_ms = self.shared.clock.now_ms();
            options.when.check(self.shared.lock().find(bucket.id, key, now_ms).map(|object| object.head.etag))?;
        }
        let room = Room { bytes: 0, used: Arc::clone(&self.shared.used) };
        Ok(Box::new(Putting {
            shared: Arc::clone(&self.shared),
            bucket: bucket.clone(),
            key: Bytes::copy_from_slice(key),
            options,
            len: 0,
            growing: Growing::Heap(Vec::new()),
            slot: None,
            hasher: sha2::Sha256::new(),
            room,
        }))
    }

    fn head(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Head>, DataError> {
        check_key(key)?;
        let now_ms = self.shared.clock.now_ms();
        let mut inner = self.shared.lock();
        inner.check(bucket)?;
        Ok(inner.find(bucket.id, key, now_ms).map(|object| object.head.clone()))
    }

    fn open(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Opened>, DataError> {
        check_key(key)?;
        let now_ms = self.shared.clock.now_ms();
        let mut inner = self.shared.lock();
        inner.check(bucket)?;
        let Some(object) = inner.find(bucket.id, key, now_ms) else { return Ok(None) };
        let content = OpenContent::Memory(Arc::clone(&object.memory));
        Ok(Some(Opened { head: object.head.clone(), verified: Verified::Before, content }))
    }

    fn open_now(&self, bucket: &Bucket, key: &[u8]) -> Result<OpenNow, DataError> {
        Ok(self.open(bucket, key)?.map_or(OpenNow::Absent, OpenNow::Opened))
    }

    fn place(&self, _bucket: &Bucket) -> Place {
        Place::Memory
    }

    fn list(&self, bucket: &Bucket, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError> {
        let limit = limit.clamp(1, PAGE_LEN_MAX);
        let now_ms = self.shared.clock.now_ms();
        let inner = self.shared.lock();
        inner.check(bucket)?;
        let Some(held) = inner.buckets.get(&bucket.id) else { return Ok(Page::default()) };
        let first = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = held.objects.range::<[u8], _>((first, Bound::Unbounded));
        let mut found = range.take_while(|(key, _)| key.starts_with(prefix));
        let some = found.by_ref().take(limit);
        let mut last = None;
        let objects = some.inspect(|(key, _)| last = Some((*key).clone())).filter(|(_, object)| !object.head.is_gone(now_ms));
        let objects = objects.map(|(key, object)| (key.clone(), Ok(object.head.clone()))).collect();
        let has_more = found.next().is_some();
        Ok(Page { objects, next: last.filter(|_| has_more) })
    }

    fn delete(&self, bucket: &Bucket, key: &[u8], when: When) -> Ack<Option<Head>> {
        let now_ms = self.shared.clock.now_ms();
        let mut inner = self.shared.lock();
        let found = |inner: &mut Inner| inner.find(bucket.id, key, now_ms).map(|object| object.head.etag);
        let may = check_key(key).and_then(|()| inner.check(bucket)).and_then(|()| when.check(found(&mut inner)));
        let result = may.map(|()| {
            let held = inner.buckets.get_mut(&bucket.id)?;
            held.remove(key).map(|object| object.head)
        });
        Ack::ready(result)
    }
}

#[derive(Debug)]
enum Growing {
    Heap(Vec<u8>),
    Memfd(File),
}

/// A put under way.
struct Putting {
    shared: Arc<Shared>,
    bucket: Bucket,
    key: Bytes,
    options: PutOptions,
    len: u64,
    growing: Growing,
    slot: Option<Slot>,
    hasher: sha2::Sha256,
    room: Room,
}

impl std::fmt::Debug for Putting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Putting").field("bucket", &self.bucket.id).field("bytes", &self.len).finish_non_exhaustive()
    }
}

impl Upload for Putting {
    fn write(&mut self, piece: &[u8]) -> Result<(), DataError> {
        let len = self.len.saturating_add(piece.len() as u64);
        check_object_len(&self.bucket, &self.shared.limits, len)?;
        let is_small = matches!(self.growing, Growing::Heap(_)) && len <= HEAP_BYTES_MAX as u64;
        let taken = if is_small { len } else { padded(len) };
        self.shared.grow(&mut self.room, taken)?;
        if let Growing::Heap(bytes) = &self.growing
            && !is_small
        {
            self.slot = Some(self.shared.descriptor()?);
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let mut file =
                memfd_create("hob-object", flags).map(File::from).map_err(|e| io_error("make memory for an object")(e.into()))?;
            file.write_all(bytes).map_err(io_error("write an object"))?;
            self.growing = Growing::Memfd(file);
        }
        match &mut self.growing {
            Growing::Heap(bytes) => bytes.extend_from_slice(piece),
            Growing::Memfd(file) => file.write_all(piece).map_err(io_error("write an object"))?,
        }
        self.hasher.update(piece);
        self.len = len;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Ack<Head> {
        Ack::ready(self.place())
    }
}

impl Putting {
    fn place(self) -> Result<Head, DataError> {
        let Self { shared, bucket, key, options, len, growing, slot, hasher, room } = self;
        let etag = Digest::from_bytes(hasher.finalize().into());
        check_digest(options.digest, etag)?;
        let content = match growing {
            Growing::Heap(bytes) => Content::Heap(bytes.into()),
            Growing::Memfd(file) => {
                file.set_len(padded(len)).map_err(io_error("pad an object"))?;
                let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
                fcntl_add_seals(&file, seals).map_err(|error| io_error("seal an object")(error.into()))?;
                huge::gather(&file, len);
                Content::Sealed(file)
            }
        };
        let memory = Arc::new(Memory { content, room, slot });
        let now_ms = shared.clock.now_ms();
        let mut inner = shared.lock();
        inner.check(&bucket)?;
        options.when.check(inner.find(bucket.id, &key, now_ms).map(|object| object.head.etag))?;
        inner.uses += 1;
        inner.version += 1;
        let (used_at, version) = (inner.uses, inner.version);
        let held = inner.buckets.entry(bucket.id).or_default();
        held.sweep(now_ms);
        let head = Head {
            etag,
            digest: Some(etag),
            len,
            version,
            modified_ms: now_ms,
            expires_ms: options.ttl_ms.map(|ttl_ms| now_ms.saturating_add(ttl_ms)),
            content_type: options.content_type,
            metadata: options.metadata,
        };
        let wanted = head.usage(&key);
        let replaced = held.objects.get(&key).map(|object| object.head.usage(&key)).unwrap_or_default();
        let spec = bucket.spec;
        let over = |held: &Held| {
            let bytes = held.usage.bytes - replaced.bytes + wanted.bytes;
            let keys = held.usage.keys - replaced.keys + wanted.keys;
            if bytes > spec.bytes_max {
                return Some(DataError::Quota { unit: "bytes", wanted: bytes, max: spec.bytes_max });
            }
            (keys > spec.keys_max).then_some(DataError::Quota { unit: "keys", wanted: keys, max: spec.keys_max })
        };
        let could_fit = wanted.keys <= spec.keys_max;
        if wanted.bytes > spec.bytes_max {
            return Err(DataError::Quota { unit: AT_ONCE, wanted: wanted.bytes, max: spec.bytes_max });
        }
        while let Some(error) = over(held) {
            if !could_fit || !held.evict(&key, Wanted::Bytes) {
                return Err(error);
            }
        }
        held.remove(&key);
        held.insert(key, Object { head: head.clone(), memory, used_at });
        Ok(head)
    }
}

/// Up to the end of the last page.
fn padded(len: u64) -> u64 {
    len.next_multiple_of(rustix::param::page_size() as u64)
}
