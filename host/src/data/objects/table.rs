//! Rows of durable objects: their tables, what refers to which file, and the sweeps over them.
//!
//! ```text
//! table          key                         value
//! objects        bucket, key                 record (`record.rs`)
//! object-files   bucket, SHA-256             number of records that refer to the file
//! object-expiry  expires_ms, bucket, key     nothing
//! ```
//!
//! Owns these tables. Knows nothing about bytes of objects: it says which files lost a row. Invariant at every commit: an `object-files`
//! row counts the records that refer to the file, and `object-expiry` has every record that expires.

use std::sync::Arc;

use bytes::Bytes;
use redb::{ReadableTable, Table, TableDefinition, WriteTransaction};

use super::super::account::{Kind, State, Usage};
use super::super::bucket::{BucketId, Graves};
use super::super::error::{DataError, storage};
use super::super::row::Numbers;
use super::super::store::{Commit, Sweep, Swept};
use super::files::{FileId, Files};
use super::{Head, When, record};
use crate::id::Digest;

pub(super) const OBJECTS: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("objects");
pub(super) const FILES: TableDefinition<'_, (u64, &[u8; 32]), &[u8]> = TableDefinition::new("object-files");
const EXPIRY: TableDefinition<'_, (u64, u64, &[u8]), ()> = TableDefinition::new("object-expiry");

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
                        files.mounts.touch(bucket, &key);
                    }
                }
            }
        }
        Ok(Swept { commit: Commit::Yes, next_ms })
    })
}

/// The sweep that removes the objects of deleted buckets, bit by bit.
pub(in crate::data) fn sweep_graves(files: Arc<Files>) -> Sweep {
    let mut graves = Graves::new(Kind::Objects);
    Box::new(move |txn, now_ms| graves.sweep(txn, now_ms, |id| purge(txn, id, SWEEP_MAX, &files)))
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
pub(super) enum Row {
    None,
    Good(Head),
    /// It is not what was written; what its object took is not known.
    Damaged,
}

impl Row {
    pub(super) fn of(bucket: BucketId, key: &[u8], row: Option<redb::AccessGuard<'_, &'static [u8]>>) -> Self {
        match row {
            None => Self::None,
            Some(row) => record::decode(bucket, key, row.value()).map_or(Self::Damaged, Self::Good),
        }
    }

    pub(super) fn usage(&self, key: &[u8]) -> Usage {
        match self {
            Self::None => Usage::default(),
            Self::Good(head) => head.usage(key),
            Self::Damaged => Usage { bytes: 0, keys: 1 },
        }
    }

    /// Whether `when` holds.
    ///
    /// # Errors
    /// [`DataError::ObjectConflict`] if not, and [`DataError::Corrupt`] for any condition on a row that is damaged.
    pub(super) fn check(&self, when: When, now_ms: u64, bucket: BucketId, key: &[u8]) -> Result<(), DataError> {
        match self {
            Self::Damaged if when != When::Always => Err(corrupt(bucket, key)),
            Self::Good(head) if !head.is_gone(now_ms) => when.check(Some(head.etag)),
            Self::None | Self::Good(_) | Self::Damaged => when.check(None),
        }
    }
}

/// The tables in a transaction that writes.
pub(super) struct Tables<'t> {
    objects: Table<'t, (u64, &'static [u8]), &'static [u8]>,
    files: Table<'t, (u64, &'static [u8; 32]), &'static [u8]>,
    expiry: Table<'t, (u64, u64, &'static [u8]), ()>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, DataError> {
        let doing = "open the objects";
        let objects = txn.open_table(OBJECTS).map_err(storage(doing))?;
        let files = txn.open_table(FILES).map_err(storage(doing))?;
        let expiry = txn.open_table(EXPIRY).map_err(storage(doing))?;
        Ok(Self { objects, files, expiry })
    }

    pub(super) fn read(&self, bucket: BucketId, key: &[u8]) -> Result<Row, DataError> {
        let row = self.objects.get((bucket.0, key)).map_err(storage("read an object's row"))?;
        Ok(Row::of(bucket, key, row))
    }

    /// Puts `new` in place of `old`, everything but the account. Everything has been checked.
    pub(super) fn replace(
        &mut self,
        bucket: BucketId,
        key: &[u8],
        old: &Row,
        new: Option<&Head>,
        files: &Files,
    ) -> Result<(), DataError> {
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
            None if is_more => 0,
            // Nor when the count itself is lost.
            None => return Ok(()),
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

pub(super) fn read_count(bucket: BucketId, digest: Digest, row: &[u8]) -> Option<u64> {
    Numbers::open(&[&bucket.0.to_le_bytes(), digest.bytes()], row).map(|Numbers([count])| count)
}

pub(super) fn damaged_count(bucket: BucketId, digest: Digest) -> DataError {
    DataError::Damaged { what: format!("the count of what refers to {digest} in bucket {bucket} is not what was written") }
}

pub(super) fn corrupt(bucket: BucketId, key: &[u8]) -> DataError {
    DataError::Corrupt { bucket, key: Bytes::copy_from_slice(key) }
}
