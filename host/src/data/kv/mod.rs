//! Key-value: the entries of a bucket, from opaque keys to opaque values.
//!
//! Owns the words that both implementations share, and the limits. Knows nothing about where entries lie: `durable.rs` keeps them
//! in the store, `volatile.rs` in memory, and `conformance.rs` holds both to the same rules. Invariant: operations on one key are
//! linearizable, a batch happens whole or not at all, and versions rise within a bucket and are never given twice, whatever is
//! deleted in between.

pub(super) mod cache;
#[cfg(test)]
mod conformance;
pub(super) mod durable;
mod plan;
pub(super) mod volatile;

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::clock::check_ttl;
use super::error::DataError;
use super::store::Ack;

/// Longest key in bytes; the shortest has one.
pub const KEY_LEN_MAX: usize = 512;
/// Longest value in bytes.
pub const VALUE_LEN_MAX: usize = 1 << 20;
/// Operations in a batch, and keys in one reading of many.
pub const BATCH_OPS_MAX: usize = 1000;
/// Bytes of keys and values in a batch, and of values in one reading of many.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Entries in a page of a scan.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// A page ends with the entry that takes it to this many bytes.
pub const PAGE_BYTES_MAX: usize = 4 << 20;

/// One entry as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was written.
    pub value: Bytes,
    /// Number of the write; rises within the bucket.
    pub version: u64,
    /// When it ends, in milliseconds since 1970; from then on there is no such entry.
    pub expires_ms: Option<u64>,
}

impl Entry {
    fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }
}

/// What must hold of an entry for an operation on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// Nothing.
    #[default]
    Always,
    /// There is none.
    Absent,
    /// There is one.
    Present,
    /// It has this version.
    Version(u64),
}

/// A change of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a value in place of whatever was there.
    Set {
        /// The key.
        key: Bytes,
        /// The value.
        value: Bytes,
        /// How long it stays, in whole milliseconds, at least one and at most [`TTL_MAX`](super::TTL_MAX); `None` for ever, also if what was
        /// there had an end.
        ttl: Option<Duration>,
        /// Condition.
        when: When,
    },
    /// Removes an entry; fine if there is none.
    Delete {
        /// The key.
        key: Bytes,
        /// Condition.
        when: When,
    },
    /// Adds to a number: a value that is a decimal `i64` in ASCII, as Redis (`INCRBY`) and the hosts of `wasi:keyvalue/atomics`
    /// have it. No entry counts as 0. The entry keeps its time to live.
    Increment {
        /// The key.
        key: Bytes,
        /// What is added.
        by: i64,
    },
}

impl Op {
    /// The key.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Set { key, .. } | Self::Delete { key, .. } | Self::Increment { key, .. } => key,
        }
    }

    fn len(&self) -> usize {
        let value = match self {
            Self::Set { value, .. } => value.len(),
            Self::Delete { .. } | Self::Increment { .. } => 0,
        };
        self.key().len() + value
    }
}

/// What an operation did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Of [`Op::Set`].
    Set {
        /// The entry's version now.
        version: u64,
    },
    /// Of [`Op::Delete`].
    Deleted {
        /// Whether there was an entry.
        found: bool,
    },
    /// Of [`Op::Increment`].
    Incremented {
        /// The number now.
        value: i64,
        /// The entry's version now.
        version: u64,
    },
}

/// Part of a scan.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Keys in the order of their bytes, each with its entry, or [`DataError::Corrupt`] in its place.
    pub entries: Vec<(Bytes, Result<Entry, DataError>)>,
    /// Where the next page begins (the `after` of its scan); `None` when there is nothing more.
    pub next: Option<Bytes>,
}

/// What a scrub of a bucket's entries found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scrubbed {
    /// Entries that were read, damaged ones and those that have expired among them.
    pub entries: u64,
    /// Keys of those that are not what was written.
    pub corrupt: Vec<Bytes>,
}

/// The entries of one bucket. Reads answer at once, and block on the disk if what they want is not in memory; writes answer through
/// an [`Ack`]. After the bucket was deleted everything is [`DataError::NoSuchBucket`].
pub trait KeyValue: fmt::Debug + Send + Sync {
    /// The entry of a key.
    ///
    /// # Errors
    /// [`DataError::Invalid`] or [`DataError::TooLarge`] for what is no key, [`DataError::Corrupt`] if the entry is not what was
    /// written, and those of storage.
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, DataError>;

    /// The entries of several keys, all at one moment. Of one that is damaged there is [`DataError::Corrupt`] in its place.
    ///
    /// # Errors
    /// As [`KeyValue::get`], but for a damaged entry, and [`DataError::TooLarge`] past [`BATCH_OPS_MAX`] keys or [`BATCH_BYTES_MAX`] of
    /// values.
    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Result<Option<Entry>, DataError>>, DataError>;

    /// Whether a key has an entry.
    ///
    /// # Errors
    /// As [`KeyValue::get`].
    fn exists(&self, key: &[u8]) -> Result<bool, DataError> {
        self.get(key).map(|entry| entry.is_some())
    }

    /// The entries whose keys begin with `prefix`, from the one after the key `after`, at most `limit` and never more than
    /// [`PAGE_ENTRIES_MAX`] or [`PAGE_BYTES_MAX`]. A page is what was there at one moment; the next page is of another one. A damaged entry
    /// has its place among the others.
    ///
    /// # Errors
    /// As [`KeyValue::get`], but for a damaged entry.
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError>;

    /// Makes changes in order, all or none; a later one sees what an earlier one did. Answers one [`Done`] for each.
    ///
    /// # Errors
    /// [`DataError::Invalid`] and [`DataError::TooLarge`] past the limits, [`DataError::Conflict`] if a condition does not hold,
    /// [`DataError::NotANumber`], [`DataError::Quota`], [`DataError::Busy`], and those of storage.
    fn write(&self, ops: Vec<Op>) -> Ack<Vec<Done>>;
}

fn check_key(key: &[u8]) -> Result<(), DataError> {
    match key.len() {
        0 => Err(DataError::Invalid { what: "the key is empty".into(), expected: format!("1 to {KEY_LEN_MAX} bytes") }),
        1..=KEY_LEN_MAX => Ok(()),
        found => Err(DataError::TooLarge { what: "the key", found: found as u64, max: KEY_LEN_MAX as u64 }),
    }
}

fn check_keys(keys: &[&[u8]]) -> Result<(), DataError> {
    check_count(keys.len())?;
    keys.iter().try_for_each(|key| check_key(key))
}

/// Refuses a batch, or a reading of many, that has too many keys.
///
/// # Errors
/// [`DataError::Invalid`] past [`BATCH_OPS_MAX`].
pub fn check_count(count: usize) -> Result<(), DataError> {
    if count <= BATCH_OPS_MAX {
        return Ok(());
    }
    Err(DataError::Invalid { what: format!("{count} keys at once"), expected: format!("at most {BATCH_OPS_MAX}") })
}

/// Refuses a batch, or a reading of many, that has too many bytes.
///
/// # Errors
/// [`DataError::TooLarge`] past [`BATCH_BYTES_MAX`].
pub fn check_sum(sum: usize) -> Result<(), DataError> {
    if sum <= BATCH_BYTES_MAX {
        return Ok(());
    }
    Err(DataError::TooLarge { what: "the sum of all values", found: sum as u64, max: BATCH_BYTES_MAX as u64 })
}

/// Checks a batch against the limits; its bytes.
fn check_ops(ops: &[Op]) -> Result<usize, DataError> {
    check_count(ops.len())?;
    for op in ops {
        check_key(op.key())?;
        if let Op::Set { value, ttl, .. } = op {
            if value.len() > VALUE_LEN_MAX {
                return Err(DataError::TooLarge { what: "the value", found: value.len() as u64, max: VALUE_LEN_MAX as u64 });
            }
            check_ttl(*ttl)?;
        }
    }
    let bytes = ops.iter().map(Op::len).sum();
    check_sum(bytes)?;
    Ok(bytes)
}
