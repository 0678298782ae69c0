//! Data: what functions keep beside themselves, in buckets, on this node.
//!
//! ```text
//! DATA_DIR/data/data.redb   buckets, entries, and what is known of objects (`store.rs`, `bucket.rs`)
//! DATA_DIR/data/data.log    commits that the file before does not have for good yet (`storage/log.rs`)
//! DATA_DIR/data/objects/    bytes of durable objects (`objects/files.rs`)
//! DATA_DIR/data/mounts/     links to those, for buckets that are mounted as folders; made anew after a start (`objects/mounts.rs`)
//! DATA_DIR/data/staging/    objects that are not whole yet; emptied at start
//! DATA_DIR/data/cache/      copies of objects whose bucket has an origin (`objects/origin/`)
//! ```
//!
//! Owns the folder. Knows neither functions nor who may do what: whoever has a [`Bucket`] may use it. Every read may block on the
//! disk; writes are queued and answer through an [`Ack`]. Invariant: what was acknowledged of a durable bucket survives `kill -9`
//! and power loss; what is read is what was written, or an error.

mod account;
mod answers;
mod audit;
mod bucket;
mod clock;
mod error;
pub mod events;
mod feed;
mod file;
pub mod kv;
pub mod objects;
mod open;
mod row;
mod shares;
mod store;
mod writer;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::broadcast::Receiver;

pub use self::account::Usage;
pub use self::audit::Audited;
pub use self::bucket::{BUCKETS_MAX, Bucket, BucketId, Each, without_files};
pub use self::clock::{Clock, Reading, TTL_MAX};
pub use self::error::{AT_ONCE, DataError, OriginFault};
pub use self::feed::{Changed, FEED_LEN};
pub use self::shares::{Share, Shares, Turn};
pub use self::store::{Ack, Commit, Prepare, QUEUE_BYTES_MAX, QUEUE_JOBS_MAX, Store, Sweep, Swept};

use self::error::io_error;
use self::events::{Events, Lane, Outbox};
use self::kv::cache::Cache;
use self::kv::durable;
use self::kv::{Done, KeyValue, Scrubbed};
pub use self::objects::CacheCounts;
use self::objects::{Files, ObjectLimits, Objects, Origin, Origins};
use self::open::{Handle, Open};
use crate::bucket::BucketDeclaration;
pub use crate::bucket::{BucketSpec, Durability, OriginUrl};
use crate::id::{BucketName, TenantId};
use crate::idempotency::Keep;
use crate::manifest::{On, Trigger};
use crate::storage::disk::create_dirs;

const FILE: &str = "data.redb";
const CACHE: &str = "cache";

/// What a node gives its data.
#[derive(Debug, Clone, Copy)]
pub struct DataConfig {
    /// Bounds of durable objects.
    pub durable_objects: ObjectLimits,
    /// Bounds of volatile objects.
    pub volatile_objects: ObjectLimits,
    /// Memory for pages of the file, in bytes.
    pub page_cache_bytes: usize,
    /// Memory for decoded entries that were read lately, in bytes; 0 for none.
    pub kv_cache_bytes: usize,
    /// Memory that all volatile buckets may take together, in bytes.
    pub volatile_bytes_max: u64,
    /// Most events of one bucket that wait for functions.
    pub events_max: u64,
}

#[cfg(test)]
impl Default for DataConfig {
    fn default() -> Self {
        let objects = |bytes_max| ObjectLimits { object_bytes_max: objects::OBJECT_BYTES_MAX, bytes_max };
        Self {
            page_cache_bytes: 64 << 20,
            kv_cache_bytes: 64 << 20,
            volatile_bytes_max: 256 << 20,
            events_max: 100_000,
            durable_objects: objects(64 << 30),
            volatile_objects: objects(256 << 20),
        }
    }
}

/// All data of one node.
#[derive(Debug)]
pub struct Data {
    store: Arc<Store>,
    cache: Arc<Cache>,
    volatile_bytes_max: u64,
    object_bytes_max: u64,
    open: Arc<Open>,
    events: Arc<Events>,
    durable_objects: Arc<objects::Durable>,
    /// `None` if the operator opened none.
    origin: Option<Arc<Origin>>,
    routed: Arc<objects::Routed>,
    volatile_objects: Arc<objects::Volatile>,
}

impl Data {
    /// Opens the data in the folder `dir`; makes it if it is missing. One process at a time.
    ///
    /// # Errors
    /// [`DataError::Damaged`] if the file is no store, else what the file system says.
    ///
    /// # Cost
    /// As [`Store::open`]. Blocks.
    pub fn open(dir: &Path, config: DataConfig, clock: Clock) -> Result<Self, DataError> {
        create_dirs(dir).map_err(io_error("make the folder of the data"))?;
        let files = Files::open(dir, config.durable_objects)?;
        let store = Store::open(&dir.join(FILE), config.page_cache_bytes, clock, prepare, sweeps(&files))?;
        Self::over(store, files, config)
    }

    /// As [`Data::open`], with what the operator opened for buckets that are caches.
    ///
    /// # Errors
    /// As [`Data::open`], and [`DataError::Invalid`] for an origin that cannot be used.
    pub fn open_with(dir: &Path, config: DataConfig, origins: &Origins, clock: Clock) -> Result<Self, DataError> {
        let mut data = Self::open(dir, config, clock)?;
        if !origins.opened.is_empty() {
            let origin = Arc::new(Origin::open(&dir.join(CACHE), origins, Arc::clone(&data.store))?);
            data.routed = Arc::new(objects::Routed::new(Arc::clone(&data.durable_objects), Some(Arc::clone(&origin))));
            data.origin = Some(origin);
        }
        Ok(data)
    }

    fn over(store: Store, files: Arc<Files>, config: DataConfig) -> Result<Self, DataError> {
        let cache = Arc::new(Cache::new(config.kv_cache_bytes));
        let volatile_bytes_max = config.volatile_bytes_max;
        let volatile_objects = Arc::new(objects::Volatile::new(config.volatile_objects, store.clock().clone()));
        let store = Arc::new(store);
        let object_bytes_max = config.durable_objects.object_bytes_max;
        let events = Arc::new(Events::new(config.events_max));
        let durable_objects = Arc::new(objects::Durable::open(Arc::clone(&store), files, Arc::clone(&events))?);
        let routed = Arc::new(objects::Routed::new(Arc::clone(&durable_objects), None));
        Ok(Self {
            store,
            cache,
            volatile_bytes_max,
            object_bytes_max,
            open: Arc::default(),
            events,
            durable_objects,
            origin: None,
            routed,
            volatile_objects,
        })
    }

    /// The objects of buckets of this durability.
    #[must_use]
    pub fn objects(&self, durability: Durability) -> Arc<dyn Objects> {
        match durability {
            Durability::Durable => Arc::<objects::Routed>::clone(&self.routed),
            Durability::Volatile => Arc::<objects::Volatile>::clone(&self.volatile_objects),
        }
    }

    /// The durable objects, for what only they have: scrubbing and counting again.
    #[must_use]
    pub fn durable_objects(&self) -> &objects::Durable {
        &self.durable_objects
    }

    /// The volatile objects, for what only they have: what a bucket takes.
    #[must_use]
    pub fn volatile_objects(&self) -> &objects::Volatile {
        &self.volatile_objects
    }

    /// Checks the whole file of the folder `dir`, page by page, without changing a byte. Not while it is open.
    ///
    /// The checksum of an entry finds every value that is not what was written. That a key is missing because its own bytes rotted
    /// only this finds.
    ///
    /// # Errors
    /// [`DataError::Damaged`] if a page is not what was written, and those of storage.
    ///
    /// # Cost
    /// Reads the whole file.
    pub fn verify(dir: &Path) -> Result<(), DataError> {
        let path = dir.join(FILE);
        file::verify(&path)?;
        file::look(&path, |txn| check_tables(&store::tables(txn.list_tables())?))
    }

    /// Makes a bucket, durably, whatever its content is; changes the quotas of one that exists. The answer's second part tells
    /// whether it was made. A quota below what is in a durable bucket refuses what would add to it, and removes nothing; a
    /// volatile bucket loses what does not fit any more.
    ///
    /// # Errors
    /// [`DataError::BucketExists`] if one of the other durability exists; [`DataError::Invalid`] for a volatile one that is to trigger
    /// a function; [`DataError::Quota`] if the tenant has [`BUCKETS_MAX`], or
    /// if the quotas of all volatile buckets together pass [`DataConfig::volatile_bytes_max`]; and those of storage.
    pub fn put_bucket(&self, tenant: &TenantId, name: &BucketName, spec: BucketSpec) -> Ack<(Bucket, bool)> {
        self.put_bucket_of(tenant, name, spec, None)
    }

    /// As [`Data::put_bucket`], of a bucket whose objects are those of an origin. `None` is no origin for a new bucket, and whatever it
    /// has for one that exists.
    ///
    /// # Errors
    /// As [`Data::put_bucket`]; [`DataError::BucketExists`] too if one with another origin or without exists; [`DataError::Invalid`] if the
    /// operator did not open the origin, or the bucket would be volatile.
    pub fn put_bucket_of(
        &self,
        tenant: &TenantId,
        name: &BucketName,
        spec: BucketSpec,
        origin: Option<&OriginUrl>,
    ) -> Ack<(Bucket, bool)> {
        if let Err(error) = self.check_new(tenant, name, spec, origin) {
            return Ack::ready(Err(error));
        }
        let (open, objects) = (Arc::clone(&self.open), Arc::clone(&self.volatile_objects));
        bucket::put(&self.store, tenant, name, spec, origin.cloned(), self.volatile_bytes_max, move |bucket| {
            open.resize(bucket);
            objects.resize(bucket.id, bucket.spec);
        })
    }

    /// The bucket that a manifest declares, if it is there. Makes nothing.
    ///
    /// # Errors
    /// As [`Data::put_bucket_of`] for what it is to be; whether there is room is not looked at.
    pub fn check_bucket(&self, tenant: &TenantId, declared: &BucketDeclaration) -> Result<Option<Bucket>, DataError> {
        let BucketDeclaration { name, spec, origin } = declared;
        let found = self.bucket(tenant, name)?;
        match &found {
            Some(found) => {
                let is = (found.spec.durability, found.origin.as_ref());
                bucket::check_kind(name, (spec.durability, origin.as_ref()), is)?;
            }
            None => self.check_new(tenant, name, *spec, origin.as_ref())?,
        }
        Ok(found)
    }

    fn check_new(
        &self,
        tenant: &TenantId,
        name: &BucketName,
        spec: BucketSpec,
        origin: Option<&OriginUrl>,
    ) -> Result<(), DataError> {
        if let Some(expected) = self.events.refuses(tenant, name, spec.durability, origin.is_some()) {
            let what = format!("bucket '{name}' is to trigger a function, or to take what it fails at");
            return Err(DataError::Invalid { what, expected: expected.into() });
        }
        let Some(url) = origin else { return Ok(()) };
        if spec.durability == Durability::Volatile {
            let expected = "a durable bucket, or none".into();
            return Err(DataError::Invalid { what: "an origin of a volatile bucket".into(), expected });
        }
        match &self.origin {
            Some(origin) => origin.check(url),
            None => Err(objects::not_open(url)),
        }
    }

    /// What became of reads of buckets that are caches, since the node started.
    #[must_use]
    pub fn cache_counts(&self) -> CacheCounts {
        self.origin.as_ref().map(|origin| origin.counts()).unwrap_or_default()
    }

    /// The entries of a bucket. Keep it as long as it is used: finding it costs a lock and, the first time, a read.
    ///
    /// # Errors
    /// [`DataError::NoSuchBucket`] if it was deleted, and those of storage.
    pub fn kv(&self, bucket: &Bucket) -> Result<Arc<dyn KeyValue>, DataError> {
        Ok(match self.handle(bucket)? {
            Handle::Durable(durable) => durable,
            Handle::Volatile(volatile) => volatile,
        })
    }

    /// Every change of a bucket's entries that is committed from now on, in order; ends with the bucket. A reader that falls behind by
    /// more than [`FEED_LEN`] changes is told how many it missed. What expires or is evicted is not told.
    ///
    /// # Errors
    /// As [`Data::kv`].
    pub fn watch(&self, bucket: &Bucket) -> Result<Receiver<Changed>, DataError> {
        Ok(match self.handle(bucket)? {
            Handle::Durable(durable) => durable.feed.watch(),
            Handle::Volatile(volatile) => volatile.feed.watch(),
        })
    }

    /// Says that somebody found no room, on the disk or in what may be taken of it: what the store's file and its log have free goes back to the disk, soon. It does so at most a part
    /// of the time, whoever asks how often.
    pub fn make_room(&self) {
        self.store.make_room();
    }

    /// A number that rises when a bucket is made, deleted or given other quotas: who keeps a [`Bucket`] looks it up again then.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.open.changes()
    }

    /// What a bucket's entries take now.
    ///
    /// # Errors
    /// As [`Data::kv`].
    pub fn usage(&self, bucket: &Bucket) -> Result<Usage, DataError> {
        match self.handle(bucket)? {
            Handle::Durable(_) => Ok(self.bucket(&bucket.tenant, &bucket.name)?.map(|bucket| bucket.entries).unwrap_or_default()),
            Handle::Volatile(volatile) => Ok(volatile.usage()),
        }
    }

    /// Counts the entries of a durable bucket, row by row. [`Bucket::entries`] must agree, unless somebody writes meanwhile.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// Reads the whole bucket in one transaction.
    pub fn recount(&self, bucket: &Bucket) -> Result<Usage, DataError> {
        durable::recount(&self.store, bucket.id)
    }

    /// Reads every entry of a durable bucket and holds it against its checksum.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// Reads the whole bucket, a page at a time.
    pub fn scrub_entries(&self, bucket: &Bucket) -> Result<Scrubbed, DataError> {
        durable::scrub(&self.store, bucket.id)
    }

    /// Reads every object of a durable bucket and holds it against its digest. A copy of an origin's that is damaged goes, and is fetched
    /// again when it is asked for.
    ///
    /// # Errors
    /// As of [`objects::Durable::scrub`].
    ///
    /// # Cost
    /// Reads all files once. Blocks.
    pub fn scrub_objects(&self, bucket: &Bucket) -> Result<objects::Scrubbed, DataError> {
        self.routed.scrub(bucket)
    }

    /// Largest object, in bytes.
    #[must_use]
    pub fn object_bytes_max(&self) -> u64 {
        self.object_bytes_max
    }

    /// A bucket by its name, `None` if there is none.
    ///
    /// # Errors
    /// Those of storage.
    pub fn bucket(&self, tenant: &TenantId, name: &BucketName) -> Result<Option<Bucket>, DataError> {
        self.store.read(|txn| bucket::get(txn, tenant, name))
    }

    /// The buckets of a tenant in the order of their names, from the one after `after`, at most `count`.
    ///
    /// # Errors
    /// Those of storage. Buckets whose accounts are damaged are left out: [`Data::damaged_buckets`] has them.
    pub fn buckets(&self, tenant: &TenantId, after: Option<&BucketName>, count: usize) -> Result<Vec<Bucket>, DataError> {
        self.store.read(|txn| bucket::list(txn, tenant, after, count))
    }

    /// Buckets of a tenant whose accounts are damaged: they can be deleted, and nothing else.
    ///
    /// # Errors
    /// Those of storage.
    pub fn damaged_buckets(&self, tenant: &TenantId) -> Result<Vec<BucketName>, DataError> {
        self.store.read(|txn| bucket::damaged(txn, tenant))
    }

    /// Deletes a bucket with all that is in it, durably. Answers whether there was one. Whoever still holds it gets
    /// [`DataError::NoSuchBucket`] from writes.
    ///
    /// # Errors
    /// Those of storage.
    pub fn delete_bucket(&self, tenant: &TenantId, name: &BucketName) -> Ack<Option<BucketId>> {
        self.delete_bucket_once(tenant, name, None)
    }

    /// As [`Data::delete_bucket`], with the answer in the same commit if it is to be kept.
    ///
    /// # Errors
    /// As there, and [`DataError::NotKept`].
    pub fn delete_bucket_once(
        &self,
        tenant: &TenantId,
        name: &BucketName,
        keep: Option<Keep<Option<BucketId>>>,
    ) -> Ack<Option<BucketId>> {
        let open = Arc::clone(&self.open);
        let (objects, origin) = (Arc::clone(&self.volatile_objects), self.origin.clone());
        let end_mount = self.durable_objects.ends();
        let after = move |id| {
            open.end(id);
            objects.forget(id);
            end_mount(id);
            if let Some(origin) = origin {
                origin.forget(id);
            }
        };
        bucket::delete(&self.store, tenant, name, keep, after)
    }

    /// Who wants to be told of which changes.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.events
    }

    /// The events that wait.
    #[must_use]
    pub fn outbox(&self) -> Outbox<'_> {
        Outbox { events: &self.events, store: &self.store }
    }

    /// Refuses triggers that would never do anything: each needs its bucket, and its bucket for what is given up, to be there or among the
    /// `declared`, and durable.
    ///
    /// # Errors
    /// [`DataError::NoSuchBucket`], [`DataError::Invalid`], and those of storage.
    pub fn check_triggers(
        &self,
        tenant: &TenantId,
        triggers: &[Trigger],
        declared: &[BucketDeclaration],
    ) -> Result<(), DataError> {
        let kind = |name: &BucketName| -> Result<Option<(Durability, bool)>, DataError> {
            let found = self.bucket(tenant, name)?.map(|found| (found.spec.durability, found.origin.is_some()));
            let declared = declared.iter().find(|declared| declared.name == *name);
            Ok(found.or_else(|| declared.map(|declared| (declared.spec.durability, declared.origin.is_some()))))
        };
        for name in triggers.iter().flat_map(|trigger| std::iter::once(&trigger.bucket).chain(&trigger.dead_letter)) {
            let (durability, _) = kind(name)?.ok_or_else(|| DataError::NoSuchBucket { name: name.to_string() })?;
            if durability == Durability::Volatile {
                let what = format!("bucket '{name}' is volatile");
                return Err(DataError::Invalid { what, expected: "a durable one for a trigger".into() });
            }
        }
        // What others put at an origin no event tells of, and half of the puts would be worse than none.
        for Trigger { bucket: name, .. } in triggers.iter().filter(|trigger| trigger.on == On::ObjectPut) {
            if kind(name)?.is_some_and(|(_, has_origin)| has_origin) {
                let what = format!("the objects of bucket '{name}' are those of an origin");
                return Err(DataError::Invalid { what, expected: "a bucket without one for object-put".into() });
            }
        }
        Ok(())
    }

    /// Removes an event that is given up and writes the entry of a durable bucket that tells of it, both or neither. This triggers
    /// nothing.
    ///
    /// # Errors
    /// As [`KeyValue::write`]; [`DataError::Invalid`] for a volatile bucket.
    pub fn bury(&self, lane: &Lane, number: u64, bucket: &Bucket, key: Bytes, value: Bytes) -> Ack<Vec<Done>> {
        match self.handle(bucket) {
            Ok(Handle::Durable(durable)) => durable.bury(lane.clone(), number, key, value),
            Ok(Handle::Volatile(_)) => {
                let what = format!("bucket '{}' is volatile", bucket.name);
                Ack::ready(Err(DataError::Invalid { what, expected: "a durable one for events that are given up".into() }))
            }
            Err(error) => Ack::ready(Err(error)),
        }
    }

    /// Why nothing is written any more, if so.
    #[must_use]
    pub fn read_only(&self) -> Option<&str> {
        self.store.read_only()
    }
}

/// Names of all tables.
const TABLES: [&str; 16] = [
    "answers",
    "answers-of",
    "answers-until",
    "buckets",
    "cached",
    "entries",
    "events",
    "expiry",
    "graves",
    "meta",
    "object-expiry",
    "object-files",
    "objects",
    "origins",
    "outboxes",
    "states",
];
/// Those that each file has since its first start; others came later.
const FIRST_TABLES: [&str; 9] =
    ["buckets", "entries", "expiry", "graves", "meta", "object-expiry", "object-files", "objects", "states"];

/// Refuses a file of which a table's name is not what was written: the table would be made anew, and be empty.
fn check_tables(found: &[String]) -> Result<(), DataError> {
    let damaged = |what: String| Err(DataError::Damaged { what });
    if let Some(name) = found.iter().find(|name| !TABLES.contains(&name.as_str())) {
        return damaged(format!("there is a table '{}', which is none of its tables", name.escape_default()));
    }
    let is_missing = |name: &&&str| !found.iter().any(|found| found == **name);
    match FIRST_TABLES.iter().find(is_missing) {
        Some(name) => damaged(format!("its table '{name}' is missing")),
        None => Ok(()),
    }
}

/// Makes all tables, so that readers find them.
fn prepare(txn: &redb::WriteTransaction) -> Result<(), DataError> {
    let found = store::tables(txn.list_tables())?;
    // None at all: it is being made.
    if !found.is_empty() {
        check_tables(&found)?;
    }
    bucket::prepare(txn)?;
    durable::prepare(txn)?;
    objects::prepare_copies(txn)?;
    events::prepare(txn)?;
    crate::storage::answers::prepare(txn)?;
    objects::prepare(txn)
}

/// What the store does by itself.
fn sweeps(files: &Arc<Files>) -> Vec<Sweep> {
    vec![
        Box::new(durable::sweep),
        durable::sweep_graves(),
        Box::new(answers::sweep),
        objects::sweep(Arc::clone(files)),
        objects::sweep_graves(Arc::clone(files)),
    ]
}
