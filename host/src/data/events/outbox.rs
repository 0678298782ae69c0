//! Rows of events that wait.
//!
//! ```text
//! table     key                                                              value (with a checksum, `row.rs`)
//! events    tenant, function, bucket, number of the bucket, number           `encode`
//! outboxes  number of the bucket                                             last number given, rows that wait
//! ```
//!
//! Owns these tables. Knows nothing about who wants what. Invariant at every commit: an `outboxes` row counts the rows of its bucket.

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::{Change, Event, Lane, Waiting};
use crate::data::account::State;
use crate::data::bucket::BucketId;
use crate::data::error::{DataError, storage};
use crate::data::row::{Numbers, SUM_LEN, sum};
use crate::id::{Digest, FunctionName, TenantId};

type Key = (&'static str, &'static str, &'static str, u64, u64);

const EVENTS: TableDefinition<'_, Key, &[u8]> = TableDefinition::new("events");
pub(super) const OUTBOXES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("outboxes");

const PUT: u8 = 1;
const SET: u8 = 2;
const DELETED: u8 = 3;

/// Makes the tables, so that readers find them.
pub(in crate::data) fn prepare(txn: &WriteTransaction) -> Result<(), DataError> {
    let doing = "make the tables of events";
    txn.open_table(EVENTS).map_err(storage(doing))?;
    txn.open_table(OUTBOXES).map_err(storage(doing))?;
    Ok(())
}

/// What is known of the events of one bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counter {
    /// Highest number ever given.
    pub(super) last: u64,
    /// Rows that wait.
    pub(super) waiting: u64,
}

impl Counter {
    fn from_row(id: BucketId, row: &[u8]) -> Result<Self, DataError> {
        match Numbers::open(&[&id.0.to_le_bytes()], row) {
            Some(Numbers([last, waiting])) => Ok(Self { last, waiting }),
            None => Err(DataError::DamagedRow { what: format!("the count of events of bucket {id} is not what was written") }),
        }
    }

    pub(super) fn read(txn: &WriteTransaction, id: BucketId) -> Result<Self, DataError> {
        let doing = "count events";
        let table = txn.open_table(OUTBOXES).map_err(storage(doing))?;
        let row = table.get(id.0).map_err(storage(doing))?;
        row.map_or(Ok(Self::default()), |row| Self::from_row(id, row.value()))
    }

    pub(super) fn write(self, txn: &WriteTransaction, id: BucketId) -> Result<(), DataError> {
        let doing = "count events";
        let row = Numbers([self.last, self.waiting]).seal(&[&id.0.to_le_bytes()]);
        txn.open_table(OUTBOXES).map_err(storage(doing))?.insert(id.0, row.as_slice()).map_err(storage(doing))?;
        Ok(())
    }
}

/// Writes rows that have been counted.
pub(super) fn insert(txn: &WriteTransaction, rows: &[(Lane, Event)]) -> Result<(), DataError> {
    let doing = "write an event";
    let mut table = txn.open_table(EVENTS).map_err(storage(doing))?;
    for (lane, event) in rows {
        let row = encode(lane, event);
        table.insert(key(lane, event.number), row.as_slice()).map_err(storage(doing))?;
    }
    Ok(())
}

/// Removes rows, and counts them out. Answers how many there were.
pub(super) fn remove(txn: &WriteTransaction, lane: &Lane, numbers: &[u64]) -> Result<u64, DataError> {
    let doing = "remove an event";
    let counter = match Counter::read(txn, lane.id) {
        Ok(counter) => Some(counter),
        // What is told must be removed all the same, or it is told without end.
        Err(DataError::DamagedRow { .. }) => None,
        Err(error) => return Err(error),
    };
    let mut table = txn.open_table(EVENTS).map_err(storage(doing))?;
    let mut removed = 0;
    for number in numbers {
        removed += u64::from(table.remove(key(lane, *number)).map_err(storage(doing))?.is_some());
    }
    if removed == 0 {
        return Ok(0);
    }
    drop(table);
    let counter = match counter {
        Some(counter) => Counter { waiting: counter.waiting.saturating_sub(removed), ..counter },
        None => recount(txn, lane.id, numbers.iter().max().copied().unwrap_or(0))?,
    };
    let is_gone = || matches!(State::read(txn, lane.id), Err(DataError::NoSuchBucket { .. }));
    if counter.waiting == 0 && is_gone() {
        // Its number is never given again, so nothing needs to be remembered of it.
        txn.open_table(OUTBOXES).map_err(storage(doing))?.remove(lane.id.0).map_err(storage(doing))?;
    } else {
        counter.write(txn, lane.id)?;
    }
    Ok(removed)
}

/// What waits of a bucket whose count is damaged; `last`: the highest number that is known to have been given. Looks at all events of the node.
fn recount(txn: &WriteTransaction, id: BucketId, last: u64) -> Result<Counter, DataError> {
    let doing = "count events anew";
    let mut counter = Counter { last, waiting: 0 };
    for entry in txn.open_table(EVENTS).map_err(storage(doing))?.iter().map_err(storage(doing))? {
        let (place, _) = entry.map_err(storage(doing))?;
        let (_, _, _, of, number) = place.value();
        if of == id.0 {
            counter = Counter { last: counter.last.max(number), waiting: counter.waiting + 1 };
        }
    }
    Ok(counter)
}

/// Removes the oldest rows of a lane, at most `count`. Answers how many there were.
pub(super) fn purge(txn: &WriteTransaction, lane: &Lane, count: usize) -> Result<u64, DataError> {
    let doing = "remove events";
    let table = txn.open_table(EVENTS).map_err(storage(doing))?;
    let mut numbers = Vec::new();
    for entry in table.range(key(lane, 0)..=key(lane, u64::MAX)).map_err(storage(doing))?.take(count) {
        numbers.push(entry.map_err(storage(doing))?.0.value().4);
    }
    drop(table);
    remove(txn, lane, &numbers)
}

/// Rows of a lane in order, from the one after number `after`.
pub(super) fn read(txn: &ReadTransaction, lane: &Lane, after: u64, count: usize) -> Result<Vec<Waiting>, DataError> {
    let doing = "read events";
    let Some(first) = after.checked_add(1) else { return Ok(Vec::new()) };
    let table = txn.open_table(EVENTS).map_err(storage(doing))?;
    let mut found = Vec::new();
    for entry in table.range(key(lane, first)..=key(lane, u64::MAX)).map_err(storage(doing))?.take(count) {
        let (place, row) = entry.map_err(storage(doing))?;
        let number = place.value().4;
        found.push(Waiting { number, event: decode(lane, number, row.value()) });
    }
    Ok(found)
}

/// All lanes in which something waits, or those of one function.
pub(super) fn lanes(txn: &ReadTransaction, of: Option<(&TenantId, &FunctionName)>) -> Result<Vec<Lane>, DataError> {
    let doing = "look for events";
    let table = txn.open_table(EVENTS).map_err(storage(doing))?;
    let mut lanes = Vec::<Lane>::new();
    loop {
        let last = lanes.last().map(|lane| key(lane, u64::MAX));
        let first =
            last.unwrap_or_else(|| of.map_or(("", "", "", 0, 0), |(tenant, name)| (tenant.as_str(), name.as_str(), "", 0, 0)));
        let Some(entry) = table.range(first..).map_err(storage(doing))?.next() else { return Ok(lanes) };
        let (place, _) = entry.map_err(storage(doing))?;
        let (tenant, function, bucket, id, _) = place.value();
        if of.is_some_and(|(of, name)| (of.as_str(), name.as_str()) != (tenant, function)) {
            return Ok(lanes);
        }
        let (Ok(tenant), Ok(function), Ok(bucket)) = (tenant.parse(), function.parse(), bucket.parse()) else {
            return Err(DataError::Damaged { what: "the place of an event is not what was written".into() });
        };
        let lane = Lane { tenant, function, bucket, id: BucketId(id) };
        if lanes.last() == Some(&lane) {
            // Numbers rise from 1 by 1.
            return Err(DataError::Damaged { what: format!("an event of bucket {id} has the greatest number there is") });
        }
        lanes.push(lane);
    }
}

/// How many rows wait in all.
pub(super) fn waiting(txn: &ReadTransaction) -> Result<u64, DataError> {
    let doing = "count events";
    let mut sum = 0_u64;
    for entry in txn.open_table(OUTBOXES).map_err(storage(doing))?.iter().map_err(storage(doing))? {
        let (id, row) = entry.map_err(storage(doing))?;
        // One that is damaged is told to who writes to its bucket.
        let waiting = Counter::from_row(BucketId(id.value()), row.value()).map_or(0, |counter| counter.waiting);
        sum = sum.saturating_add(waiting);
    }
    Ok(sum)
}

fn key(lane: &Lane, number: u64) -> (&str, &str, &str, u64, u64) {
    (lane.tenant.as_str(), lane.function.as_str(), lane.bucket.as_str(), lane.id.0, number)
}

/// ```text
/// offset  bytes
/// 0           1   what happened
/// 1           8   version, 0 for a deletion
/// 9           8   time in milliseconds since 1970
/// 17          8   length of the object
/// 25         32   ETag of the object
/// 57          2   length of the key
/// 59        ...   key, content type of the object
/// ...         8   sum over place and all that
/// ```
fn encode(lane: &Lane, event: &Event) -> Vec<u8> {
    const NONE: [u8; 32] = [0; 32];
    let (kind, version, len, etag, content_type) = match &event.change {
        Change::Put { version, etag, len, content_type } => (PUT, *version, *len, etag.bytes(), content_type.as_str()),
        Change::Set { version } => (SET, *version, 0, &NONE, ""),
        Change::Deleted => (DELETED, 0, 0, &NONE, ""),
    };
    let mut row = Vec::with_capacity(59 + event.key.len() + content_type.len() + SUM_LEN);
    row.push(kind);
    row.extend(version.to_le_bytes());
    row.extend(event.time_ms.to_le_bytes());
    row.extend(len.to_le_bytes());
    row.extend_from_slice(etag);
    // Keys have at most 512 bytes.
    row.extend(u16::try_from(event.key.len()).unwrap_or(u16::MAX).to_le_bytes());
    row.extend_from_slice(&event.key);
    row.extend_from_slice(content_type.as_bytes());
    let sum = place_sum(lane, event.number, &row);
    row.extend(sum);
    row
}

/// The inverse of [`encode`]; `None` if it is not what was written there.
fn decode(lane: &Lane, number: u64, row: &[u8]) -> Option<Event> {
    let (body, _) = row.split_last_chunk::<SUM_LEN>().filter(|(body, found)| place_sum(lane, number, body) == **found)?;
    let ([kind], rest) = body.split_first_chunk()?;
    let (version, rest) = rest.split_first_chunk()?;
    let (time_ms, rest) = rest.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let (etag, rest) = rest.split_first_chunk::<32>()?;
    let (key_len, rest) = rest.split_first_chunk()?;
    let (key, content_type) = rest.split_at_checked(usize::from(u16::from_le_bytes(*key_len)))?;
    let version = u64::from_le_bytes(*version);
    let change = match *kind {
        PUT => {
            let (etag, content_type) = (Digest::from_bytes(*etag), String::from_utf8(content_type.to_vec()).ok()?);
            Change::Put { version, etag, len: u64::from_le_bytes(*len), content_type }
        }
        SET => Change::Set { version },
        DELETED => Change::Deleted,
        _ => return None,
    };
    Some(Event { number, key: Bytes::copy_from_slice(key), change, time_ms: u64::from_le_bytes(*time_ms) })
}

fn place_sum(lane: &Lane, number: u64, body: &[u8]) -> [u8; SUM_LEN] {
    let (tenant, function, bucket, id, number) = key(lane, number);
    sum(&[tenant.as_bytes(), function.as_bytes(), bucket.as_bytes(), &id.to_le_bytes(), &number.to_le_bytes(), body])
}

#[cfg(test)]
mod tests {
    use super::super::testing::lane;
    use super::*;

    #[test]
    fn a_row_that_was_changed_moved_or_cut_is_none() {
        let put = Change::Put { version: 7, etag: Digest::of(b"x"), len: 9, content_type: "text/plain".into() };
        for change in [put, Change::Set { version: u64::MAX }, Change::Deleted] {
            let event = Event { number: 3, key: Bytes::from_static(b"k\xff"), change, time_ms: 5 };
            let at = lane("f", "b");
            let row = encode(&at, &event);
            assert_eq!(decode(&at, 3, &row), Some(event));
            assert_eq!((decode(&at, 4, &row), decode(&lane("fb", "b"), 3, &row)), (None, None));
            for bit in 0..row.len() * 8 {
                let mut bad = row.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(decode(&at, 3, &bad), None, "bit {bit}");
            }
            assert!((0..row.len()).all(|len| decode(&at, 3, &row[..len]).is_none()));
        }
    }
}
