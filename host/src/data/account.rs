//! Accounts: what a bucket may hold and does hold, and the last version given in it.
//!
//! Owns the table `states` and the arithmetic of quotas. Knows nothing about names. Invariant: a state's usage is the sum over what
//! is in the bucket at every commit.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::Serialize;

use super::bucket::BucketId;
use super::error::{DataError, storage};
use super::kv::volatile::ENTRY_BYTES;
use super::row::Numbers;
use crate::bucket::{BucketSpec, Durability};

pub(super) const STATES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("states");

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Usage {
    /// Bytes, as [`BucketSpec::bytes_max`] counts them.
    pub bytes: u64,
    /// Keys.
    pub keys: u64,
}

impl Usage {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes.saturating_add(other.bytes), keys: self.keys.saturating_add(other.keys) }
    }
}

/// The account of a bucket. A writer reads it, changes it with what it writes, and writes it in the same transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) spec: BucketSpec,
    pub(super) created_ms: u64,
    /// Highest version ever given in the bucket.
    pub(super) version: u64,
    pub(super) entries: Usage,
    pub(super) objects: Usage,
}

/// Which of the two accounts of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Entries = 1,
    Objects = 2,
}

impl State {
    /// The next version.
    pub(super) fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Takes `before` out of an account and puts `after` in.
    ///
    /// # Errors
    /// [`DataError::Quota`] if the bucket would hold more than it may *and* more than it did; the state is unchanged then.
    pub(super) fn charge(&mut self, kind: Kind, before: Usage, after: Usage) -> Result<(), DataError> {
        let mut new = *self;
        let account = match kind {
            Kind::Entries => &mut new.entries,
            Kind::Objects => &mut new.objects,
        };
        debug_assert!(account.bytes >= before.bytes && account.keys >= before.keys, "{account:?} holds {before:?}");
        account.bytes = account.bytes.saturating_sub(before.bytes).saturating_add(after.bytes);
        account.keys = account.keys.saturating_sub(before.keys).saturating_add(after.keys);
        let (old, sum) = (self.usage(), new.usage());
        if sum.bytes > self.spec.bytes_max && sum.bytes > old.bytes {
            return Err(DataError::Quota { unit: "bytes", wanted: sum.bytes, max: self.spec.bytes_max });
        }
        if sum.keys > self.spec.keys_max && sum.keys > old.keys {
            return Err(DataError::Quota { unit: "keys", wanted: sum.keys, max: self.spec.keys_max });
        }
        *self = new;
        Ok(())
    }

    /// Everything in the bucket.
    pub(super) fn usage(&self) -> Usage {
        self.entries.plus(self.objects)
    }

    fn numbers(&self) -> Numbers<9> {
        let Self { spec: BucketSpec { durability, bytes_max, keys_max }, created_ms, version, entries, objects } = *self;
        let durability = match durability {
            Durability::Durable => 1,
            Durability::Volatile => 2,
        };
        let (e, o) = (entries, objects);
        Numbers([durability, bytes_max, keys_max, created_ms, version, e.bytes, e.keys, o.bytes, o.keys])
    }

    pub(super) fn from_row(id: BucketId, row: &[u8]) -> Result<Self, DataError> {
        let damaged = || DataError::DamagedRow { what: format!("the account of bucket {id} is not what was written") };
        let Numbers([durability, bytes_max, keys_max, created_ms, version, eb, ek, ob, ok]) =
            Numbers::open(&[&id.0.to_le_bytes()], row).ok_or_else(damaged)?;
        let durability = match durability {
            1 => Durability::Durable,
            2 => Durability::Volatile,
            _ => return Err(damaged()),
        };
        let spec = BucketSpec { durability, bytes_max, keys_max };
        let (entries, objects) = (Usage { bytes: eb, keys: ek }, Usage { bytes: ob, keys: ok });
        Ok(Self { spec, created_ms, version, entries, objects })
    }

    /// Of a bucket, in a transaction that writes.
    ///
    /// # Errors
    /// [`DataError::NoSuchBucket`] if it was deleted, else those of storage.
    pub(super) fn read(txn: &WriteTransaction, id: BucketId) -> Result<Self, DataError> {
        find_state(&txn.open_table(STATES).map_err(storage("open the buckets"))?, id)
    }

    /// Keeps it.
    pub(super) fn write(&self, txn: &WriteTransaction, id: BucketId) -> Result<(), DataError> {
        let row = self.numbers().seal(&[&id.0.to_le_bytes()]);
        let doing = "write the account of a bucket";
        txn.open_table(STATES).map_err(storage(doing))?.insert(id.0, row.as_slice()).map_err(storage(doing))?;
        Ok(())
    }
}

/// Of a bucket; [`DataError::NoSuchBucket`] if it was deleted.
pub(super) fn find_state(table: &impl ReadableTable<u64, &'static [u8]>, id: BucketId) -> Result<State, DataError> {
    let row = table.get(id.0).map_err(storage("read the account of a bucket"))?;
    let row = row.ok_or_else(|| DataError::NoSuchBucket { name: format!("number {id}") })?;
    State::from_row(id, row.value())
}

/// Refuses a volatile bucket whose quota the node could not keep. Counted are quotas and not what is used, so that no bucket takes
/// memory that was promised to another. `own`: the bucket if it exists.
pub(super) fn reserve(txn: &WriteTransaction, own: Option<BucketId>, spec: BucketSpec, max: u64) -> Result<(), DataError> {
    if spec.durability == Durability::Durable {
        return Ok(());
    }
    let doing = "count what volatile buckets may take";
    let mut wanted = memory(spec);
    for entry in txn.open_table(STATES).map_err(storage(doing))?.iter().map_err(storage(doing))? {
        let (id, row) = entry.map_err(storage(doing))?;
        let id = BucketId(id.value());
        // One that is damaged takes no writes, and so no memory.
        let Ok(State { spec: other, .. }) = State::from_row(id, row.value()) else { continue };
        if other.durability == Durability::Volatile && Some(id) != own {
            wanted = wanted.saturating_add(memory(other));
        }
    }
    if wanted > max {
        return Err(DataError::VolatileFull { wanted, max });
    }
    Ok(())
}

/// Memory that a full volatile bucket takes.
fn memory(spec: BucketSpec) -> u64 {
    spec.bytes_max.saturating_add(spec.keys_max.saturating_mul(ENTRY_BYTES))
}
