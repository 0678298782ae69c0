//! What a batch comes to, found out before anything is changed.
//!
//! Owns the meaning of operations and conditions. Knows nothing about where entries lie. Invariant: a batch that is refused has
//! changed nothing but numbers of versions, which may be skipped.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Done, Entry, Op, When};
use crate::data::account::Usage;
use crate::data::bucket::BucketId;
use crate::data::error::DataError;

/// What lies under a key, whether it is expired or damaged or not.
#[derive(Debug, Clone)]
pub(super) struct Old {
    /// Length of the key and the value.
    pub(super) bytes: u64,
    /// `None` if it is damaged.
    pub(super) entry: Option<Entry>,
}

/// What becomes of one key.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) before: Option<Old>,
    pub(super) after: Option<Entry>,
}

/// What becomes of a bucket.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) changes: BTreeMap<Bytes, Change>,
    pub(super) done: Vec<Done>,
}

impl Plan {
    /// What the keys took, and what they will take.
    pub(super) fn usage(&self) -> (Usage, Usage) {
        let (mut before, mut after) = (Usage::default(), Usage::default());
        for (key, change) in &self.changes {
            if let Some(old) = &change.before {
                before = before.plus(Usage { bytes: old.bytes, keys: 1 });
            }
            if let Some(entry) = &change.after {
                after = after.plus(Usage { bytes: (key.len() + entry.value.len()) as u64, keys: 1 });
            }
        }
        (before, after)
    }
}

/// Plans a batch that was checked against the limits. `version` gives the next one; `find` what lies under a key.
///
/// # Errors
/// [`DataError::Conflict`], [`DataError::NotANumber`], [`DataError::Corrupt`] for an operation that depends on a damaged entry, and
/// those of `find`.
pub(super) fn plan(
    ops: Vec<Op>,
    bucket: BucketId,
    now_ms: u64,
    mut version: impl FnMut() -> u64,
    mut find: impl FnMut(&[u8]) -> Result<Option<Old>, DataError>,
) -> Result<Plan, DataError> {
    let mut changes = BTreeMap::<Bytes, Change>::new();
    let mut done = Vec::with_capacity(ops.len());
    let is_batch = ops.len() > 1;
    for (index, op) in ops.into_iter().enumerate() {
        let index = is_batch.then_some(index);
        let key = op.key().clone();
        let seen = changes.contains_key(&key);
        if !seen {
            let before = find(&key)?;
            let after = before.as_ref().and_then(|old| old.entry.clone()).filter(|entry| !entry.is_expired(now_ms));
            changes.insert(key.clone(), Change { before, after });
        }
        let Some(change) = changes.get_mut(&key) else { continue };
        let damaged = !seen && change.before.as_ref().is_some_and(|old| old.entry.is_none());
        let when = match &op {
            Op::Set { when, .. } | Op::Delete { when, .. } => *when,
            Op::Increment { .. } => When::Always,
        };
        if damaged && (when != When::Always || matches!(op, Op::Increment { .. })) {
            return Err(DataError::Corrupt { bucket, key });
        }
        let found = change.after.as_ref().map(|entry| entry.version);
        let holds = match when {
            When::Always => true,
            When::Absent => found.is_none(),
            When::Present => found.is_some(),
            When::Version(wanted) => found == Some(wanted),
        };
        if !holds {
            return Err(DataError::Conflict { index, found });
        }
        done.push(apply(op, index, now_ms, &mut change.after, damaged, &mut version)?);
    }
    Ok(Plan { changes, done })
}

fn apply(
    op: Op,
    index: Option<usize>,
    now_ms: u64,
    entry: &mut Option<Entry>,
    damaged: bool,
    version: &mut impl FnMut() -> u64,
) -> Result<Done, DataError> {
    match op {
        Op::Set { value, ttl, .. } => {
            let end = |ttl: std::time::Duration| now_ms.saturating_add(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
            let version = version();
            *entry = Some(Entry { value, version, expires_ms: ttl.map(end) });
            Ok(Done::Set { version })
        }
        Op::Delete { .. } => Ok(Done::Deleted { found: entry.take().is_some() || damaged }),
        Op::Increment { by, .. } => {
            let old = entry.as_ref().map_or(Ok(0), |entry| number(&entry.value, index))?;
            let why = "the sum is no i64";
            let value = old.checked_add(by).ok_or(DataError::NotANumber { index, why })?;
            let expires_ms = entry.as_ref().and_then(|entry| entry.expires_ms);
            let version = version();
            *entry = Some(Entry { value: value.to_string().into(), version, expires_ms });
            Ok(Done::Incremented { value, version })
        }
    }
}

fn number(value: &[u8], index: Option<usize>) -> Result<i64, DataError> {
    let text = std::str::from_utf8(value).ok();
    let why = "its value is no decimal number that an i64 holds";
    // It writes none with a plus, and others would not read one.
    text.filter(|text| !text.starts_with('+')).and_then(|text| text.parse().ok()).ok_or(DataError::NotANumber { index, why })
}
