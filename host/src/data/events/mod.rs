//! Events: changes of durable buckets that functions want to be told of, from the commit until somebody has told them.
//!
//! ```text
//! write ──> who wants it? (`Wanted`, memory) ──> rows of the outbox, in the transaction of the change ──> commit ──> changed()
//!                                                        read ──> tell the function ──> settle (rows go, durably)
//! ```
//!
//! Owns the outbox: which events wait, in order, for each function and bucket (a [`Lane`]). Knows nothing about how a function is told:
//! it is given who wants what. Invariants: an event is on disk if and only if its change is; it stays until it was settled, its
//! function or its bucket is gone, or the function wants it no more; a change whose events have no room is not made.

mod outbox;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use redb::WriteTransaction;
use tokio::sync::Notify;

use self::outbox::Counter;
pub(super) use self::outbox::prepare;
use self::wanted::Wanted;
use super::bucket::{Bucket, BucketId};
use super::error::DataError;
use super::store::{Ack, Commit, Store};
use crate::bucket::Durability;
use crate::id::{BucketName, Digest, FunctionName, TenantId};
use crate::manifest::{On, Trigger};

/// Rows that one transaction removes when a function is gone.
const PURGE_MAX: usize = 1000;
/// What the removal of a row costs, roughly.
const ROW_BYTES: usize = 64;
/// What is counted when the outbox of a bucket is full.
pub(super) const UNIT: &str = "events that wait for a function";

/// The events of one bucket that wait for one function.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane {
    /// Whose.
    pub tenant: TenantId,
    /// Who is to be told.
    pub function: FunctionName,
    /// Of which bucket.
    pub bucket: BucketName,
    /// The bucket's number: another one of the same name is another lane.
    pub id: BucketId,
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// An object was put.
    Put {
        /// Version of the object.
        version: u64,
        /// SHA-256 of its bytes.
        etag: Digest,
        /// Number of its bytes.
        len: u64,
        /// As it was put.
        content_type: String,
    },
    /// An entry was set or incremented.
    Set {
        /// Version of the entry.
        version: u64,
    },
    /// An entry was deleted.
    Deleted,
}

impl Change {
    /// Which triggers it is for.
    #[must_use]
    pub fn on(&self) -> On {
        match self {
            Self::Put { .. } => On::ObjectPut,
            Self::Set { .. } | Self::Deleted => On::KeyChange,
        }
    }
}

/// One change, as it waits for one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Rises within the bucket; never given twice.
    pub number: u64,
    /// Whose change it was.
    pub key: Bytes,
    /// What it was.
    pub change: Change,
    /// When it was committed, in milliseconds since 1970.
    pub time_ms: u64,
}

/// Whose events are written: a bucket by its name and number.
#[derive(Debug, Clone)]
pub(super) struct Emitter {
    pub(super) tenant: TenantId,
    pub(super) name: BucketName,
    pub(super) id: BucketId,
}

impl Emitter {
    pub(super) fn of(bucket: &Bucket) -> Self {
        Self { tenant: bucket.tenant.clone(), name: bucket.name.clone(), id: bucket.id }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Events {
    wanted: Wanted,
    /// Most rows that wait in one bucket.
    max: u64,
    lanes: Mutex<Lanes>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Lanes {
    /// Written in a transaction that is not committed yet.
    written: Vec<Lane>,
    /// To be looked at.
    due: HashSet<Lane>,
}

impl Events {
    pub(super) fn new(max: u64) -> Self {
        Self { wanted: Wanted::default(), max, lanes: Mutex::default(), changed: Notify::new() }
    }

    /// No code panics while it holds the lock.
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a bucket of this kind would break a trigger of some function, if so. As [`super::Data::check_triggers`], from the other side.
    pub(super) fn refuses(
        &self,
        tenant: &TenantId,
        bucket: &BucketName,
        durability: Durability,
        has_origin: bool,
    ) -> Option<&'static str> {
        let is_used = |trigger: &Trigger| trigger.bucket == *bucket || trigger.dead_letter.as_ref() == Some(bucket);
        let is_put = |trigger: &Trigger| trigger.bucket == *bucket && trigger.on == On::ObjectPut;
        if durability == Durability::Volatile && self.wanted.has(tenant, is_used) {
            return Some("a durable bucket");
        }
        (has_origin && self.wanted.has(tenant, is_put)).then_some("a bucket without an origin")
    }

    /// The trigger of a function that an event is for, the first of its manifest; `None` if it wants such events no more.
    #[must_use]
    pub fn trigger(&self, lane: &Lane, event: &Event) -> Option<Trigger> {
        self.wanted.trigger(&lane.tenant, &lane.function, &lane.bucket, event.change.on(), &event.key)
    }

    /// Writes down the events of changes that `txn` makes, before it makes them: if they have no room it must make none.
    ///
    /// # Errors
    /// [`DataError::Quota`] if too many wait, and those of storage. Nothing was written in the first case.
    pub(super) fn write(
        &self,
        txn: &WriteTransaction,
        emitter: &Emitter,
        now_ms: u64,
        changes: impl Iterator<Item = (Bytes, Change)>,
    ) -> Result<(), DataError> {
        let Some(takers) = self.wanted.of(&emitter.tenant, &emitter.name) else { return Ok(()) };
        let mut rows = Vec::new();
        let mut counter = None;
        for (key, change) in changes {
            let wanting: Vec<_> = takers.iter().filter(|taker| taker.wants(&emitter.name, change.on(), &key)).collect();
            if wanting.is_empty() {
                continue;
            }
            let counter = match &mut counter {
                Some(counter) => counter,
                None => counter.insert(Counter::read(txn, emitter.id)?),
            };
            counter.last += 1;
            counter.waiting += wanting.len() as u64;
            let event = Event { number: counter.last, key, change, time_ms: now_ms };
            rows.extend(wanting.into_iter().map(|taker| (taker.function.clone(), event.clone())));
        }
        let Some(counter) = counter else { return Ok(()) };
        if counter.waiting > self.max {
            return Err(DataError::Quota { unit: UNIT, wanted: counter.waiting, max: self.max });
        }
        let lane = |function| Lane { tenant: emitter.tenant.clone(), function, bucket: emitter.name.clone(), id: emitter.id };
        let rows: Vec<_> = rows.into_iter().map(|(function, event)| (lane(function), event)).collect();
        outbox::insert(txn, &rows)?;
        counter.write(txn, emitter.id)?;
        self.lanes().written.extend(rows.into_iter().map(|(lane, _)| lane));
        Ok(())
    }

    /// After the end of a transaction that may have written some. Of one that failed this leads to a look for nothing.
    pub(super) fn flush(&self) {
        let mut lanes = self.lanes();
        if lanes.written.is_empty() {
            return;
        }
        let written = std::mem::take(&mut lanes.written);
        lanes.due.extend(written);
        drop(lanes);
        self.changed.notify_one();
    }

    /// Waits until [`Events::take_due`] has something. For one listener.
    ///
    /// # Cancellation
    /// Nothing is lost.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Lanes in which events were written since this was last called; after a start, all that have some.
    #[must_use]
    pub fn take_due(&self) -> HashSet<Lane> {
        std::mem::take(&mut self.lanes().due)
    }
}

/// What is done with events by those who have the store too; reached through [`super::Data`].
#[derive(Debug, Clone, Copy)]
pub struct Outbox<'a> {
    pub(super) events: &'a Arc<Events>,
    pub(super) store: &'a Store,
}

impl Outbox<'_> {
    /// Says what a function wants from now on: the triggers of its live revision, none when it is gone. What waits for it of buckets
    /// that it wants nothing of any more is removed. Answers how many that were.
    ///
    /// # Errors
    /// Those of storage. From now on it is wanted all the same, and what could not be removed is not delivered.
    ///
    /// # Cost
    /// A write for each 1,000 events that are removed. Blocks.
    pub fn want(&self, tenant: &TenantId, function: &FunctionName, triggers: &[Trigger]) -> Result<u64, DataError> {
        let had_any = self.events.wanted.set(tenant, function, triggers);
        if !had_any {
            return Ok(0);
        }
        // Jobs run in order: what was written before this swap is found by the first removal, and nothing is written after it.
        let lanes = self.store.read(|txn| outbox::lanes(txn, Some((tenant, function))))?;
        let mut removed = 0;
        for lane in lanes {
            if !triggers.iter().any(|trigger| trigger.bucket == lane.bucket) {
                removed += self.purge(&lane)?;
            }
        }
        Ok(removed)
    }

    /// As [`Outbox::want`] for all functions of a node that starts; what waits for others is removed. Makes all lanes due.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// A look-up for each lane. Blocks.
    pub fn begin(&self, triggered: &[(TenantId, FunctionName, Vec<Trigger>)]) -> Result<(), DataError> {
        for (tenant, function, triggers) in triggered {
            self.events.wanted.set(tenant, function, triggers);
        }
        for lane in self.store.read(|txn| outbox::lanes(txn, None))? {
            let takers = self.events.wanted.of(&lane.tenant, &lane.bucket);
            if takers.is_some_and(|takers| takers.iter().any(|taker| taker.function == lane.function)) {
                self.events.lanes().due.insert(lane);
            } else {
                self.purge(&lane)?;
            }
        }
        self.events.changed.notify_one();
        Ok(())
    }

    fn purge(&self, lane: &Lane) -> Result<u64, DataError> {
        let mut removed = 0;
        loop {
            let lane = lane.clone();
            let op = move |txn: &WriteTransaction, _now_ms| {
                let count = outbox::purge(txn, &lane, PURGE_MAX)?;
                Ok((count, if count > 0 { Commit::Yes } else { Commit::No }))
            };
            match self.store.remove(PURGE_MAX * ROW_BYTES, op).wait()? {
                0 => return Ok(removed),
                count => removed += count,
            }
        }
    }

    /// What waits in a lane, the oldest first, from the one after number `after`; at most `count`. A damaged row is an error that
    /// names its number.
    ///
    /// # Errors
    /// Those of storage. May block on the disk.
    pub fn read(&self, lane: &Lane, after: u64, count: usize) -> Result<Vec<Waiting>, DataError> {
        self.store.read(|txn| outbox::read(txn, lane, after, count))
    }

    /// How many events wait, of all buckets; each counts once for every function that it waits for.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// A look at each bucket that ever triggered something.
    pub fn waiting(&self) -> Result<u64, DataError> {
        self.store.read(outbox::waiting)
    }

    /// Removes an event that was delivered, or given up, durably. Answers whether it was there still.
    ///
    /// # Errors
    /// Through the [`Ack`]: those of storage.
    pub fn settle(&self, lane: &Lane, number: u64) -> Ack<bool> {
        let lane = lane.clone();
        self.store.remove(ROW_BYTES, move |txn, _| {
            let commit = remove(txn, &lane, number)?;
            Ok((commit == Commit::Yes, commit))
        })
    }
}

/// One row of a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Its number.
    pub number: u64,
    /// What it says; `None` if it is not what was written.
    pub event: Option<Event>,
}

pub(super) fn remove(txn: &WriteTransaction, lane: &Lane, number: u64) -> Result<Commit, DataError> {
    Ok(if outbox::remove(txn, lane, &[number])? > 0 { Commit::Yes } else { Commit::No })
}
