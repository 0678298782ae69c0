//! Objects of buckets that are caches of an S3-compatible store.
//!
//! ```text
//! open ──> copy, seen lately? ──> its file
//!            │ no: one request for all who ask
//!            ├── copy, seen long ago ──> HEAD: the same ETag? ──> its file
//!            └── GET ──> staging, hashed, as long as announced ──> renamed ──> index ──> its file
//! put  ──> staging, hashed ──> PUT or parts ──> renamed ──> index ──> Ack
//! ```
//!
//! The ETag of such an object is made of the origin's, for it must be the same in a list, before and after a fetch; SHA-256 of the bytes
//! is in the index, and the files are held against it.
//!
//! Owns the order of things and the threads that ask. `remote.rs` is the store (`client.rs` and `key.rs` what it needs), `cache.rs` the
//! copies (`filling.rs` those on their way, `heads.rs` what is said of them, `recent.rs` those in memory), `flights.rs` who waits for whom,
//! `upload.rs` writing. Knows nothing about who asks. Invariant: a copy that can be opened has the length and the bytes of one version
//! of the origin's object.

mod cache;
mod client;
mod filling;
mod flights;
mod heads;
mod key;
mod list;
mod recent;
mod remote;
mod routed;
mod upload;

use std::fmt;
use std::future::Future;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use object_store::path::Path;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(in crate::data) use self::cache::prepare;
pub(super) use self::recent::Small;
pub(in crate::data) use self::routed::Routed;

use self::cache::{Cache, Copy};
use self::filling::Filling;
use self::flights::Flights;
use self::heads::{copy_head, head};
use self::remote::{Pause, Pieces, Remote, Version};
use super::super::bucket::{self, Bucket, BucketId};
use super::super::error::{DataError, OriginFault, io_error};
use super::super::store::{Ack, Store};
use super::durable::Scrubbed;
use super::files::{FileId, Held};
use super::{
    Content, Head, ObjectLimits, Objects, OpenNow, Opened, PAGE_LEN_MAX, Page, PutOptions, Upload, Verified, When, check_key,
};
use crate::bucket::OriginUrl;
use crate::config;
use crate::id::Digest;

/// Threads that ask origins and write copies.
const THREADS: usize = 2;

/// What the operator opened.
#[derive(Debug, Clone)]
pub struct Origins {
    /// Which stores.
    pub opened: Vec<config::Origin>,
    /// Bounds of the copies of their objects.
    pub cache: ObjectLimits,
    /// Memory for small copies that were used lately, in bytes; 0 for none.
    pub memory_bytes_max: u64,
    /// Most requests at once.
    pub requests_max: usize,
}

/// What became of reads of buckets that are caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CacheCounts {
    /// Objects opened of a copy that was there, and questions whether a copy still holds that were answered with yes.
    pub hits: u64,
    /// Objects that were fetched.
    pub misses: u64,
    /// Bytes that were fetched.
    pub fetched_bytes: u64,
    /// Copies that went for want of room.
    pub evicted: u64,
    /// Copies that are there.
    pub copies: usize,
    /// Bytes of them, and of what is being fetched or put.
    pub bytes: u64,
    /// Bytes of memory that small ones take.
    pub memory_bytes: u64,
}

/// A copy that was fetched or found good just now. Its file stays for as long as this does.
type Found = Option<(Arc<Copy>, Arc<Held>)>;

/// See the module.
pub struct Origin {
    inner: Arc<Inner>,
    /// `None` only while it is dropped.
    runtime: Option<Runtime>,
}

#[derive(Debug)]
struct Inner {
    remotes: Vec<Arc<Remote>>,
    cache: Arc<Cache>,
    flights: Arc<Flights<Found>>,
    requests: Semaphore,
    store: Arc<Store>,
    hits: AtomicU64,
    misses: AtomicU64,
    fetched_bytes: AtomicU64,
}

/// An object at its origin.
#[derive(Debug, Clone)]
struct Target {
    remote: Arc<Remote>,
    path: Path,
    bucket: Bucket,
    key: Bytes,
}

impl Origin {
    /// `dir`: where copies are kept. Connects to nothing yet.
    ///
    /// # Errors
    /// [`DataError::Invalid`] for an origin that cannot be used, and those of storage.
    pub(in crate::data) fn open(dir: &FilePath, origins: &Origins, store: Arc<Store>) -> Result<Self, DataError> {
        let remotes = origins.opened.iter().map(|origin| Remote::new(origin).map(Arc::new)).collect::<Result<_, _>>()?;
        let cache = Arc::new(Cache::open(dir, origins.cache, origins.memory_bytes_max, Arc::clone(&store))?);
        let runtime = Builder::new_multi_thread().worker_threads(THREADS).thread_name("hob-origins").enable_all().build();
        let runtime = Some(runtime.map_err(io_error("start the threads that ask origins"))?);
        let inner = Inner {
            remotes,
            cache,
            flights: Arc::default(),
            requests: Semaphore::new(origins.requests_max),
            store,
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            fetched_bytes: AtomicU64::new(0),
        };
        Ok(Self { inner: Arc::new(inner), runtime })
    }

    /// Whether the operator opened this, or what it is in.
    ///
    /// # Errors
    /// [`DataError::Invalid`], which says who can open it.
    pub(in crate::data) fn check(&self, url: &OriginUrl) -> Result<(), DataError> {
        self.inner.remote(url).map(drop)
    }

    /// Reads every copy of a bucket; see [`Cache::scrub`].
    ///
    /// # Errors
    /// As there.
    pub(in crate::data) fn scrub(&self, bucket: BucketId) -> Result<Scrubbed, DataError> {
        self.inner.cache.scrub(bucket)
    }

    /// Drops all copies of a bucket.
    pub(in crate::data) fn forget(&self, bucket: BucketId) {
        self.inner.cache.forget(bucket);
    }

    /// What became of reads since the node started.
    pub(in crate::data) fn counts(&self) -> CacheCounts {
        let (copies, evicted) = self.inner.cache.counts();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let Inner { hits, misses, fetched_bytes, cache, .. } = &*self.inner;
        let (hits, misses, fetched_bytes) = (count(hits), count(misses), count(fetched_bytes));
        let (bytes, memory_bytes) = (cache.used_bytes(), cache.recent.used_bytes());
        CacheCounts { hits, misses, fetched_bytes, evicted, copies, bytes, memory_bytes }
    }

    /// Runs a future on the threads of this. The caller's own may be one that runs futures, and must not run another.
    fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(future);
        }
    }

    /// Blocks until a future is done.
    fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = Result<T, DataError>> + Send + 'static,
    ) -> Result<T, DataError> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            // Who asked may have gone.
            let _gone = sender.send(future.await);
        });
        receiver.recv().unwrap_or(Err(DataError::Closed))
    }

    fn ack<T: Send + 'static>(&self, future: impl Future<Output = Result<T, DataError>> + Send + 'static) -> Ack<T> {
        let (sender, ack) = Ack::pending();
        self.spawn(async move {
            let _gone = sender.send(future.await);
        });
        ack
    }

    /// What is there now, by one request for all who ask at the same time.
    fn refresh(&self, target: &Target) -> Result<Found, DataError> {
        let flight = self.inner.flights.join(&(target.bucket.id, target.key.clone()), |landing| {
            let (inner, target) = (Arc::clone(&self.inner), target.clone());
            self.spawn(async move {
                let answer = inner.refresh(&target).await;
                let discard = |found: &Found| inner.disown(&target, found.as_ref());
                landing.land(answer, |found| inner.keep(&target, found.as_ref()), discard);
                // Who has the answer may close the data: nothing of it is held here then.
                drop((inner, target));
                drop(landing);
            });
        });
        flight.wait()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Whoever waits is told that the node stops; copies that are not whole are nobody's.
            runtime.shutdown_background();
        }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("remotes", &self.inner.remotes).finish_non_exhaustive()
    }
}

impl Inner {
    fn remote(&self, url: &OriginUrl) -> Result<&Arc<Remote>, DataError> {
        let open = self.remotes.iter().filter(|remote| url.is_within(&remote.url));
        open.max_by_key(|remote| remote.url.as_str().len()).ok_or_else(|| not_open(url))
    }

    fn check_exists(&self, bucket: &Bucket) -> Result<(), DataError> {
        self.store.read(|txn| bucket::spec(txn, bucket.id)).map(drop)
    }

    fn target(&self, bucket: &Bucket, key: &[u8]) -> Result<Target, DataError> {
        check_key(key)?;
        self.check_exists(bucket)?;
        let url = origin_of(bucket)?;
        let remote = Arc::clone(self.remote(url)?);
        let text = std::str::from_utf8(key).ok();
        let full = text.map(|text| match url.prefix() {
            "" => text.to_owned(),
            prefix => format!("{prefix}/{text}"),
        });
        // It is taken as it is or not at all: a path that reads differently is another object.
        let path = full.and_then(|full| Path::parse(&full).ok().filter(|path| path.as_ref() == full));
        let path = path.ok_or_else(|| DataError::Invalid {
            what: format!("the key '{}' in a bucket with an origin", key.escape_ascii()),
            expected: "text of parts with '/' between, none of them empty, '.' or '..', without control characters".into(),
        })?;
        Ok(Target { remote, path, bucket: bucket.clone(), key: Bytes::copy_from_slice(key) })
    }

    /// A place among the requests.
    async fn admit(&self, remote: &Remote) -> Result<SemaphorePermit<'_>, DataError> {
        let place = tokio::time::timeout(remote.patience(), self.requests.acquire()).await;
        place.map_err(|_| DataError::Busy)?.map_err(|_| DataError::Closed)
    }

    fn now_ms(&self) -> u64 {
        self.store.clock().now_ms()
    }

    /// The version that is at the origin.
    async fn version(&self, target: &Target) -> Result<Option<Version>, DataError> {
        let mut pause = Pause::default();
        loop {
            match target.remote.head(&target.path).await {
                Ok(version) => return Ok(version),
                Err(why) => pause.after(why.into()).await?,
            }
        }
    }

    /// The copy if it is still what the origin has, else a new one, which is not in the index yet.
    async fn refresh(&self, target: &Target) -> Result<Found, DataError> {
        let _place = self.admit(&target.remote).await?;
        if let Some(known) = self.cache.get(target.bucket.id, &target.key) {
            let held = Arc::new(self.cache.files.hold(FileId { bucket: target.bucket.id, digest: known.copy.digest }));
            match self.version(target).await? {
                None => return Ok(None),
                Some(now) if (&now.etag, now.len) == (&known.copy.version.etag, known.copy.version.len) => {
                    self.hits.fetch_add(1, Ordering::Relaxed);
                    // The same bytes, of which it may say something else by now: their time, after a put through this node, and metadata.
                    let copy = match now == known.copy.version {
                        true => known.copy,
                        false => Arc::new(Copy { version: now, digest: known.copy.digest }),
                    };
                    return Ok(Some((copy, held)));
                }
                Some(_) => {}
            }
        }
        self.fetch(target).await
    }

    /// Fetches an object whole. A connection that is cut is taken up where it was, if the object is still the same.
    async fn fetch(&self, target: &Target) -> Result<Found, DataError> {
        let mut filling = Filling::begin(&self.cache)?;
        let mut begun = None;
        let mut pause = Pause::default();
        let version = loop {
            let from = begun.as_ref().map(|version| (version, filling.written()));
            let got = match target.remote.get(&target.path, from).await {
                Ok(None) => return Ok(None),
                Ok(Some((version, pieces))) => {
                    filling.reserve(&target.bucket, version.len)?;
                    let version = &*begun.insert(version);
                    self.take(target, version, pieces, &mut filling).await?
                }
                Err(why) => Err(why),
            };
            match (got, begun.take()) {
                (Ok(()), Some(version)) => break version,
                (Err(why), version) => {
                    pause.after(why.into()).await?;
                    begun = version;
                }
                (Ok(()), None) => return Err(DataError::Closed),
            }
        };
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.fetched_bytes.fetch_add(version.len, Ordering::Relaxed);
        let digest = filling.digest();
        let held = filling.place(target.bucket.id)?;
        Ok(Some((Arc::new(Copy { version, digest }), Arc::new(held))))
    }

    /// Writes what comes. The inner result is the origin's fault.
    async fn take(
        &self,
        target: &Target,
        version: &Version,
        mut pieces: Pieces,
        filling: &mut Filling,
    ) -> Result<Result<(), OriginFault>, DataError> {
        loop {
            let found = filling.written();
            let piece = match target.remote.next(&mut pieces, found, version.len).await {
                Ok(None) => return Ok(Ok(())),
                Ok(Some(piece)) => piece,
                Err(why) => return Ok(Err(why)),
            };
            let found = found + piece.len() as u64;
            if found > version.len {
                return Ok(Err(OriginFault::Length { len: version.len, found }));
            }
            filling.write(&piece)?;
        }
    }

    /// Lets go of what a request found, if nothing in the index is the same.
    fn disown(&self, target: &Target, found: Option<&(Arc<Copy>, Arc<Held>)>) {
        if let Some((copy, _held)) = found {
            self.cache.disown(target.bucket.id, copy);
        }
    }

    /// Puts what a request found into the index.
    fn keep(&self, target: &Target, found: Option<&(Arc<Copy>, Arc<Held>)>) {
        let (bucket, now_ms) = (&target.bucket, self.now_ms());
        if self.check_exists(bucket).is_err() {
            // Deleted meanwhile: nobody would drop the copy.
            return self.disown(target, found);
        }
        let Some((copy, _held)) = found else { return self.cache.remove(bucket.id, &target.key, None) };
        match self.cache.get(bucket.id, &target.key) {
            Some(known) if Arc::ptr_eq(&known.copy, copy) => self.cache.touch(bucket.id, &target.key, copy, now_ms),
            _ => self.cache.insert(bucket, &target.key, Arc::clone(copy), now_ms),
        }
    }

    /// The copy that needs no question.
    fn fresh(&self, target: &Target) -> Option<Arc<Copy>> {
        let known = self.cache.get(target.bucket.id, &target.key)?;
        let fresh_ms = u64::try_from(target.remote.fresh.as_millis()).unwrap_or(u64::MAX);
        (known.checked_ms > 0 && self.now_ms() < known.checked_ms.saturating_add(fresh_ms)).then_some(known.copy)
    }

    fn opened(&self, target: &Target, copy: &Copy) -> Result<Option<Opened>, DataError> {
        let (bucket, head) = (target.bucket.id, copy_head(copy));
        if let Some(small) = self.cache.recent.get(&FileId { bucket, digest: copy.digest }) {
            return Ok(Some(Opened { head, verified: Verified::Before, content: Content::Small(small) }));
        }
        let file = self.cache.open_file(bucket, copy)?;
        Ok(file.map(|(file, verified, held)| {
            let opened = Opened { head, verified, content: Content::File(file, held) };
            self.cache.keep_small(bucket, copy, &opened);
            opened
        }))
    }

    /// The origin's ETag of an object that has this one; [`DataError::ObjectConflict`] if it has another or is not there.
    async fn match_etag(&self, target: &Target, wanted: Digest) -> Result<String, DataError> {
        let version = self.version(target).await?;
        let found = version.as_ref().map(|version| head(version).etag);
        When::Etag(wanted).check(found)?;
        version.map(|version| version.etag).ok_or(DataError::ObjectConflict { found })
    }
}

fn origin_of(bucket: &Bucket) -> Result<&OriginUrl, DataError> {
    // Whoever calls has looked.
    bucket.origin.as_ref().ok_or_else(|| DataError::Damaged { what: format!("bucket {} has no origin", bucket.id) })
}

/// What a client is told that names an origin which no operator opened.
pub(in crate::data) fn not_open(url: &OriginUrl) -> DataError {
    let expected = "one that the operator opened with [[origin]] in the node's configuration, or what lies below it";
    DataError::Invalid { what: format!("the origin '{url}' is not open on this node"), expected: expected.into() }
}

impl Objects for Origin {
    fn put(&self, bucket: &Bucket, key: &[u8], options: PutOptions) -> Result<Box<dyn Upload>, DataError> {
        let target = self.inner.target(bucket, key)?;
        upload::begin(self, target, options)
    }

    fn head(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Head>, DataError> {
        let target = self.inner.target(bucket, key)?;
        if let Some(copy) = self.inner.fresh(&target) {
            return Ok(Some(copy_head(&copy)));
        }
        let inner = Arc::clone(&self.inner);
        self.run(async move {
            let _place = inner.admit(&target.remote).await?;
            let version = inner.version(&target).await?;
            Ok(version.map(|version| inner.described(&target.bucket, &target.key, head(&version))))
        })
    }

    fn open(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Opened>, DataError> {
        let target = self.inner.target(bucket, key)?;
        // A copy that is damaged, or goes just before it is opened, is dropped and fetched again.
        for _ in 0..3 {
            let (copy, held) = match self.inner.fresh(&target) {
                Some(copy) => (copy, None),
                None => match self.refresh(&target)? {
                    Some((copy, held)) => (copy, Some(held)),
                    None => return Ok(None),
                },
            };
            if let Some(opened) = self.inner.opened(&target, &copy)? {
                self.inner.hits.fetch_add(u64::from(held.is_none()), Ordering::Relaxed);
                return Ok(Some(opened));
            }
            self.inner.cache.remove(bucket.id, &target.key, Some(&copy));
        }
        Err(DataError::Corrupt { bucket: bucket.id, key: target.key })
    }

    fn open_now(&self, bucket: &Bucket, key: &[u8]) -> Result<OpenNow, DataError> {
        let target = self.inner.target(bucket, key)?;
        let is_ready = |copy: &Arc<Copy>| {
            let id = FileId { bucket: bucket.id, digest: copy.digest };
            self.inner.cache.recent.has(&id) || self.inner.cache.files.is_good(id)
        };
        let opened = match self.inner.fresh(&target).filter(is_ready) {
            Some(copy) => self.inner.opened(&target, &copy)?,
            None => None,
        };
        self.inner.hits.fetch_add(u64::from(opened.is_some()), Ordering::Relaxed);
        Ok(opened.map_or(OpenNow::Unchecked, OpenNow::Opened))
    }

    fn list(&self, bucket: &Bucket, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError> {
        // No key is anything but text, so none begins with what is not, and none is after it.
        let (Ok(prefix), Ok(after)) = (std::str::from_utf8(prefix), after.map(std::str::from_utf8).transpose()) else {
            return Ok(Page::default());
        };
        let (inner, bucket, limit) = (Arc::clone(&self.inner), bucket.clone(), limit.clamp(1, PAGE_LEN_MAX));
        let (prefix, after) = (prefix.to_owned(), after.map(ToOwned::to_owned));
        self.run(async move { inner.list(&bucket, &prefix, after.as_deref(), limit).await })
    }

    fn delete(&self, bucket: &Bucket, key: &[u8], when: When) -> Ack<Option<Head>> {
        let target = match self.inner.target(bucket, key) {
            Ok(target) => target,
            Err(error) => return Ack::ready(Err(error)),
        };
        let inner = Arc::clone(&self.inner);
        self.ack(async move { upload::delete(&inner, &target, when).await })
    }
}
