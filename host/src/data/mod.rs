//! Data: what functions keep beside themselves, in buckets, on this node.
//!
//! ```text
//! DATA_DIR/data/data.redb   buckets, entries, and what is known of objects (`store.rs`, `bucket.rs`)
//! ```
//!
//! Owns the folder. Knows neither functions nor who may do what: whoever has a [`Bucket`] may use it. Every read may block on the
//! disk; writes are queued and answer through an [`Ack`]. Invariant: what was acknowledged of a durable bucket survives `kill -9`
//! and power loss; what is read is what was written, or an error.

#[allow(dead_code, reason = "accounts are kept by entries and objects, which come next")]
mod bucket;
mod clock;
mod error;
mod row;
mod store;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

pub use self::bucket::{BUCKETS_MAX, Bucket, BucketId, BucketSpec, Durability, Usage};
pub use self::clock::{Clock, Reading};
pub use self::error::DataError;
pub use self::store::{Ack, Commit, QUEUE_BYTES_MAX, QUEUE_JOBS_MAX, Store, Sweep, Swept};

use self::error::io_error;
use crate::id::{BucketName, TenantId};
use crate::storage::disk::create_dirs;

const FILE: &str = "data.redb";

/// What a node gives its data.
#[derive(Debug, Clone, Copy)]
pub struct DataConfig {
    /// Memory for pages of the file, in bytes.
    pub page_cache_bytes: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { page_cache_bytes: 64 << 20 }
    }
}

/// All data of one node.
#[derive(Debug)]
pub struct Data {
    store: Arc<Store>,
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
        let sweeps: Vec<Sweep> = vec![];
        let store = Store::open(&dir.join(FILE), config.page_cache_bytes, clock, sweeps)?;
        store.write(0, |txn, _| bucket::prepare(txn).map(|()| ((), Commit::Yes))).wait()?;
        Ok(Self { store: Arc::new(store) })
    }

    /// Makes a bucket, durably, whatever its content is; changes the quotas of one that exists. The answer's second part tells
    /// whether it was made. A quota below what is in the bucket refuses what would add to it, and removes nothing.
    ///
    /// # Errors
    /// [`DataError::BucketExists`] if one of the other durability exists, [`DataError::Quota`] if the tenant has [`BUCKETS_MAX`],
    /// and those of storage.
    pub fn put_bucket(&self, tenant: &TenantId, name: &BucketName, spec: BucketSpec) -> Ack<(Bucket, bool)> {
        bucket::put(&self.store, tenant, name, spec)
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
    /// Those of storage; one damaged account fails the whole list.
    pub fn buckets(&self, tenant: &TenantId, after: Option<&BucketName>, count: usize) -> Result<Vec<Bucket>, DataError> {
        self.store.read(|txn| bucket::list(txn, tenant, after, count))
    }

    /// Deletes a bucket with all that is in it, durably. Answers whether there was one. Whoever still holds it gets
    /// [`DataError::NoSuchBucket`] from writes.
    ///
    /// # Errors
    /// Those of storage.
    pub fn delete_bucket(&self, tenant: &TenantId, name: &BucketName) -> Ack<Option<BucketId>> {
        bucket::delete(&self.store, tenant, name)
    }

    /// Why nothing is written any more, if so.
    #[must_use]
    pub fn read_only(&self) -> Option<&str> {
        self.store.read_only()
    }
}
