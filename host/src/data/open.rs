//! The buckets that are in use: who watches one or writes to it has the same handle as everybody else.
//!
//! Owns the handles. Knows nothing about what is in a bucket. Invariant: a bucket that is deleted ends for whoever has its handle, and a
//! handle that is made meanwhile does not outlive it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bucket::{self, Bucket, BucketId};
use super::error::DataError;
use super::events::Emitter;
use super::kv::durable::Durable;
use super::kv::volatile::Volatile;
use super::{Data, Durability};

/// The buckets that are in use. One bucket has one handle, so that its end reaches whoever uses it.
#[derive(Debug, Default)]
pub(super) struct Open {
    handles: Mutex<HashMap<BucketId, Handle>>,
    /// Rises with every change of a bucket.
    changes: AtomicU64,
}

#[derive(Debug, Clone)]
pub(super) enum Handle {
    Durable(Arc<Durable>),
    Volatile(Arc<Volatile>),
}

impl Open {
    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<BucketId, Handle>> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rises with every change of a bucket.
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn resize(&self, bucket: &Bucket) {
        self.changes.fetch_add(1, Ordering::Release);
        if let Some(Handle::Volatile(volatile)) = self.lock().get(&bucket.id) {
            volatile.resize(bucket.spec);
        }
    }

    pub(super) fn end(&self, id: BucketId) {
        self.changes.fetch_add(1, Ordering::Release);
        match self.lock().remove(&id) {
            Some(Handle::Durable(durable)) => durable.end(),
            Some(Handle::Volatile(volatile)) => volatile.end(),
            None => {}
        }
    }
}

impl Data {
    pub(super) fn handle(&self, bucket: &Bucket) -> Result<Handle, DataError> {
        let id = bucket.id;
        // Held while the store is asked: a deletion that the store does not show yet finds the handle in here afterwards.
        let mut open = self.open.lock();
        if let Some(handle) = open.get(&id) {
            return Ok(handle.clone());
        }
        let spec = self.store.read(|txn| bucket::spec(txn, id))?;
        let handle = match spec.durability {
            Durability::Durable => {
                let (store, cache, events) = (Arc::clone(&self.store), Arc::clone(&self.cache), Arc::clone(&self.events));
                Handle::Durable(Arc::new(Durable::new(Emitter::of(bucket), store, cache, events)))
            }
            Durability::Volatile => Handle::Volatile(Arc::new(Volatile::new(id, spec, self.store.clock().clone()))),
        };
        open.insert(id, handle.clone());
        Ok(handle)
    }
}
