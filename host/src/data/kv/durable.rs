//! Durable entries: rows of the store.
//!
//! ```text
//! table    key                             value
//! entries  (number of the bucket, key)     version u64 | expiry in ms u64, 0 for never | value | sum over bucket, key and these
//! expiry   (expiry, number, key)           nothing
//! ```
//!
//! Owns these tables. Knows nothing about names of buckets. Invariant: an entry with an expiry has its row in `expiry` and no other
//! row there; the account of the bucket is changed in the transaction that changes its entries.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::cache::Cache;
use super::plan::{self, Old, plan};
use super::{
    Done, Entry, KeyValue, Op, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, Page, Scrubbed, When, check_key, check_keys, check_ops,
    check_sum,
};
use crate::data::account::{Kind, State, Usage};
use crate::data::answers::once;
use crate::data::bucket::{BucketId, Graves};
use crate::data::error::{DataError, storage};
use crate::data::events::{self, Emitter, Events, Lane};
use crate::data::feed::Feed;
use crate::data::row::{SUM_LEN, sum};
use crate::data::store::{Ack, Commit, Store, Sweep, Swept};
use crate::idempotency::Keep;
use crate::storage::log::Room;

const ENTRIES: TableDefinition<'_, (u64, &[u8]), &[u8]> = TableDefinition::new("entries");
const EXPIRY: TableDefinition<'_, (u64, u64, &[u8]), ()> = TableDefinition::new("expiry");

const HEAD_LEN: usize = 16;
/// Entries that one group sweeps of each kind: those that expired, and those of deleted buckets.
const SWEEP_MAX: usize = 256;
/// What a row costs besides key and value, roughly.
const ROW_BYTES: usize = 64;

/// The entries of one durable bucket.
pub(in crate::data) struct Durable {
    id: BucketId,
    emitter: Emitter,
    store: Arc<Store>,
    cache: Arc<Cache>,
    /// Who watches.
    pub(in crate::data) feed: Arc<Feed>,
    events: Arc<Events>,
    /// Whether the bucket was deleted.
    gone: AtomicBool,
}

impl Durable {
    pub(in crate::data) fn new(emitter: Emitter, store: Arc<Store>, cache: Arc<Cache>, events: Arc<Events>) -> Self {
        Self { id: emitter.id, emitter, store, cache, feed: Arc::default(), events, gone: AtomicBool::new(false) }
    }

    /// The bucket was deleted.
    pub(in crate::data) fn end(&self) {
        self.gone.store(true, Ordering::Release);
        self.feed.end();
    }

    fn check(&self) -> Result<(), DataError> {
        if self.gone.load(Ordering::Acquire) {
            return Err(DataError::NoSuchBucket { name: format!("number {}", self.id) });
        }
        Ok(())
    }

    /// Queues a batch that was checked. `tell`: where its events are written down, `None` for nowhere. `keep`: what keeps its answer, `more`:
    /// what else is done, in the same transaction.
    fn queue(
        &self,
        ops: Vec<Op>,
        bytes: usize,
        tell: Option<Arc<Events>>,
        keep: Option<Keep<Vec<Done>>>,
        more: impl FnOnce(&WriteTransaction) -> Result<(), DataError> + Send + 'static,
    ) -> Ack<Vec<Done>> {
        let (id, emitter) = (self.id, self.emitter.clone());
        let keys: Vec<Bytes> = ops.iter().map(|op| op.key().clone()).collect();
        let cost_bytes = bytes + ops.len() * ROW_BYTES;
        let only_removes = ops.iter().all(|op| matches!(op, Op::Delete { .. }));
        let room = if only_removes { Room::Reserve } else { Room::Free };
        self.cache.begin(id, &keys);
        let (cache, feed, events) = (Arc::clone(&self.cache), Arc::clone(&self.feed), Arc::clone(&self.events));
        let op = move |txn: &WriteTransaction, now_ms| {
            let done = apply(txn, now_ms, &emitter, ops, tell.as_deref())?;
            more(txn)?;
            Ok(done)
        };
        let (op, in_use) = once(keep, op);
        self.store.queue(room, cost_bytes, op, move |result| {
            drop(in_use);
            cache.end(id, &keys);
            events.flush();
            if let Ok(done) = result {
                feed.tell(&keys, done);
            }
        })
    }

    /// Sets an entry and removes an event, both or neither.
    pub(in crate::data) fn bury(&self, lane: Lane, number: u64, key: Bytes, value: Bytes) -> Ack<Vec<Done>> {
        let ops = vec![Op::Set { key, value, ttl: None, when: When::Always }];
        match check_ops(&ops).and_then(|bytes| self.check().map(|()| bytes)) {
            Ok(bytes) => self.queue(ops, bytes, None, None, move |txn| events::remove(txn, &lane, number).map(drop)),
            Err(error) => Ack::ready(Err(error)),
        }
    }

    /// As [`KeyValue::write`], with the answer in the same commit.
    pub(in crate::data) fn write_once(&self, ops: Vec<Op>, keep: Keep<Vec<Done>>) -> Ack<Vec<Done>> {
        self.write_with(ops, Some(keep))
    }

    fn write_with(&self, ops: Vec<Op>, keep: Option<Keep<Vec<Done>>>) -> Ack<Vec<Done>> {
        match check_ops(&ops).and_then(|bytes| self.check().map(|()| bytes)) {
            Ok(bytes) => self.queue(ops, bytes, Some(Arc::clone(&self.events)), keep, |_| Ok(())),
            Err(error) => Ack::ready(Err(error)),
        }
    }

    /// Without what has expired.
    fn live(&self, entry: Entry) -> Option<Entry> {
        // Most entries do not expire, and the clock has its price.
        (entry.expires_ms.is_none() || !entry.is_expired(self.store.clock().now_ms())).then_some(entry)
    }

    fn find(
        &self,
        table: &impl ReadableTable<(u64, &'static [u8]), &'static [u8]>,
        key: &[u8],
    ) -> Result<Option<Entry>, DataError> {
        let row = table.get((self.id.0, key)).map_err(storage("read an entry"))?;
        row.map(|row| decode(self.id, key, row.value())).transpose()
    }
}

impl fmt::Debug for Durable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Durable").field("id", &self.id).finish_non_exhaustive()
    }
}

impl KeyValue for Durable {
    fn get(&self, key: &[u8]) -> Result<Option<Entry>, DataError> {
        check_key(key)?;
        self.check()?;
        let ticket = match self.cache.get(self.id, key) {
            Ok(entry) => return Ok(self.live(entry)),
            Err(ticket) => ticket,
        };
        let found = self.store.read(|txn| self.find(&txn.open_table(ENTRIES).map_err(storage("open the entries"))?, key))?;
        let Some(entry) = found else { return Ok(None) };
        self.cache.put(ticket, self.id, key, &entry);
        Ok(self.live(entry))
    }

    fn get_many(&self, keys: &[&[u8]]) -> Result<Vec<Result<Option<Entry>, DataError>>, DataError> {
        check_keys(keys)?;
        self.check()?;
        self.store.read(|txn| {
            let table = txn.open_table(ENTRIES).map_err(storage("open the entries"))?;
            let mut bytes = 0;
            let mut entries = Vec::with_capacity(keys.len());
            for key in keys {
                let entry = match self.find(&table, key) {
                    Ok(found) => Ok(found.and_then(|entry| self.live(entry))),
                    Err(damaged @ DataError::Corrupt { .. }) => Err(damaged),
                    Err(error) => return Err(error),
                };
                bytes += entry.as_ref().ok().and_then(Option::as_ref).map_or(0, |entry| entry.value.len());
                check_sum(bytes)?;
                entries.push(entry);
            }
            Ok(entries)
        })
    }

    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError> {
        self.check()?;
        let limit = limit.min(PAGE_ENTRIES_MAX);
        self.store.read(|txn| {
            let doing = "scan entries";
            let table = txn.open_table(ENTRIES).map_err(storage(doing))?;
            let from = after.map_or(prefix, |after| after.max(prefix));
            let mut page = Page::default();
            let mut bytes = 0;
            for found in table.range((self.id.0, from)..).map_err(storage(doing))? {
                let (key, row) = found.map_err(storage(doing))?;
                let (id, key) = key.value();
                if id != self.id.0 || !key.starts_with(prefix) {
                    break;
                }
                if after.is_some_and(|after| key <= after) {
                    continue;
                }
                // Whether a damaged one has expired nobody knows, so it is there.
                let Some(entry) = decode(self.id, key, row.value()).map(|entry| self.live(entry)).transpose() else { continue };
                if page.entries.len() >= limit || bytes >= PAGE_BYTES_MAX {
                    page.next = page.entries.last().map(|(key, _)| key.clone());
                    break;
                }
                bytes += key.len() + entry.as_ref().map_or(0, |entry| entry.value.len());
                page.entries.push((Bytes::copy_from_slice(key), entry));
            }
            Ok(page)
        })
    }

    fn write(&self, ops: Vec<Op>) -> Ack<Vec<Done>> {
        self.write_with(ops, None)
    }
}

type Entries<'t> = Table<'t, (u64, &'static [u8]), &'static [u8]>;
type Expiry<'t> = Table<'t, (u64, u64, &'static [u8]), ()>;

fn open_tables(txn: &WriteTransaction) -> Result<(Entries<'_>, Expiry<'_>), DataError> {
    let doing = "open the entries";
    Ok((txn.open_table(ENTRIES).map_err(storage(doing))?, txn.open_table(EXPIRY).map_err(storage(doing))?))
}

/// Makes the tables, so that readers find them.
pub(in crate::data) fn prepare(txn: &WriteTransaction) -> Result<(), DataError> {
    open_tables(txn).map(drop)
}

fn apply(
    txn: &WriteTransaction,
    now_ms: u64,
    emitter: &Emitter,
    ops: Vec<Op>,
    tell: Option<&Events>,
) -> Result<(Vec<Done>, Commit), DataError> {
    let id = emitter.id;
    let mut state = State::read(txn, id)?;
    let (mut entries, mut expiry) = open_tables(txn)?;
    let find = |key: &[u8]| {
        let row = entries.get((id.0, key)).map_err(storage("read an entry"))?;
        Ok(row.map(|row| old(id, key, row.value())))
    };
    let plan = plan(ops, id, now_ms, || state.next_version(), find)?;
    let (before, after) = plan.usage();
    // A batch may leave nothing of what it set, and its versions were given all the same.
    let has_given = plan.done.iter().any(|done| matches!(done, Done::Set { .. } | Done::Incremented { .. }));
    if !has_given && before == Usage::default() && after == Usage::default() {
        return Ok((plan.done, Commit::No));
    }
    state.charge(Kind::Entries, before, after)?;
    if let Some(events) = tell {
        let changes = plan.changes.iter().filter_map(|(key, change)| Some((key.clone(), told(change, now_ms)?)));
        events.write(txn, emitter, now_ms, changes)?;
    }
    for (key, change) in &plan.changes {
        put(&mut entries, &mut expiry, id, key, change)?;
    }
    state.write(txn, id)?;
    Ok((plan.done, Commit::Yes))
}

/// What is told of a change; nothing if there was no entry before and is none after.
fn told(change: &plan::Change, now_ms: u64) -> Option<events::Change> {
    match (&change.before, &change.after) {
        (_, Some(entry)) => Some(events::Change::Set { version: entry.version }),
        (Some(old), None) => {
            let was_there = old.entry.as_ref().is_none_or(|entry| !entry.is_expired(now_ms));
            was_there.then_some(events::Change::Deleted)
        }
        (None, None) => None,
    }
}

fn put(
    entries: &mut Entries<'_>,
    expiry: &mut Expiry<'_>,
    id: BucketId,
    key: &[u8],
    change: &plan::Change,
) -> Result<(), DataError> {
    let doing = "write an entry";
    let old = change.before.as_ref().and_then(|old| old.entry.as_ref()).and_then(|entry| entry.expires_ms);
    let new = change.after.as_ref().and_then(|entry| entry.expires_ms);
    if let Some(ms) = old.filter(|_| old != new) {
        expiry.remove((ms, id.0, key)).map_err(storage(doing))?;
    }
    if let Some(ms) = new.filter(|_| old != new) {
        expiry.insert((ms, id.0, key), ()).map_err(storage(doing))?;
    }
    match &change.after {
        Some(entry) => {
            let row = encode(id, key, entry);
            entries.insert((id.0, key), row.as_slice()).map_err(storage(doing))?;
        }
        None => {
            entries.remove((id.0, key)).map_err(storage(doing))?;
        }
    }
    Ok(())
}

fn encode(id: BucketId, key: &[u8], entry: &Entry) -> Vec<u8> {
    let mut row = Vec::with_capacity(HEAD_LEN + entry.value.len() + SUM_LEN);
    row.extend(entry.version.to_le_bytes());
    row.extend(entry.expires_ms.unwrap_or(0).to_le_bytes());
    row.extend_from_slice(&entry.value);
    let sum = sum(&[&id.0.to_le_bytes(), key, &row]);
    row.extend(sum);
    row
}

fn decode(id: BucketId, key: &[u8], row: &[u8]) -> Result<Entry, DataError> {
    let whole = row.split_last_chunk::<SUM_LEN>().filter(|(body, found)| sum(&[&id.0.to_le_bytes(), key, body]) == **found);
    let parts = whole.and_then(|(body, _)| {
        let (version, rest) = body.split_first_chunk::<8>()?;
        let (expires, value) = rest.split_first_chunk::<8>()?;
        Some((u64::from_le_bytes(*version), u64::from_le_bytes(*expires), value))
    });
    let Some((version, expires, value)) = parts else {
        return Err(DataError::Corrupt { bucket: id, key: Bytes::copy_from_slice(key) });
    };
    Ok(Entry { value: Bytes::copy_from_slice(value), version, expires_ms: (expires != 0).then_some(expires) })
}

/// What a row takes is told by its length, also if it is damaged.
fn old(id: BucketId, key: &[u8], row: &[u8]) -> Old {
    let value = row.len().saturating_sub(HEAD_LEN + SUM_LEN);
    Old { bytes: (key.len() + value) as u64, entry: decode(id, key, row).ok() }
}

/// The sweep that removes what has expired.
pub(in crate::data) fn sweep(txn: &WriteTransaction, now_ms: u64) -> Result<Swept, DataError> {
    let doing = "sweep what has expired";
    let (mut entries, mut expiry) = open_tables(txn)?;
    let mut due = Vec::new();
    let mut next_ms = None;
    for found in expiry.iter().map_err(storage(doing))? {
        let (key, _) = found.map_err(storage(doing))?;
        let (ms, id, key) = key.value();
        if ms > now_ms || due.len() >= SWEEP_MAX {
            next_ms = Some(ms);
            break;
        }
        due.push((ms, BucketId(id), key.to_vec()));
    }
    // All accounts before any change. What is in a bucket whose account is damaged stays, and holds up nobody else.
    let mut states = std::collections::BTreeMap::new();
    let mut damaged = std::collections::BTreeSet::new();
    for (_, id, _) in &due {
        if states.contains_key(id) {
            continue;
        }
        match State::read(txn, *id) {
            Ok(state) => states.insert(*id, Some(state)),
            Err(DataError::NoSuchBucket { .. }) => states.insert(*id, None),
            Err(error @ DataError::DamagedRow { .. }) => {
                tracing::error!(%error, "expired entries stay");
                damaged.insert(*id);
                states.insert(*id, None)
            }
            Err(error) => return Err(error),
        };
    }
    for (ms, id, key) in &due {
        expiry.remove((*ms, id.0, key.as_slice())).map_err(storage(doing))?;
        if damaged.contains(id) {
            continue;
        }
        let old = entries.get((id.0, key.as_slice())).map_err(storage(doing))?.map(|row| old(*id, key, row.value()));
        // A damaged one stays, so that it is told of and not taken for absent.
        let Some(old) = old.filter(|old| old.entry.as_ref().is_some_and(|entry| entry.expires_ms == Some(*ms))) else { continue };
        entries.remove((id.0, key.as_slice())).map_err(storage(doing))?;
        if let Some(Some(state)) = states.get_mut(id) {
            state.charge(Kind::Entries, Usage { bytes: old.bytes, keys: 1 }, Usage::default())?;
        }
    }
    for (id, state) in &states {
        if let Some(state) = state {
            state.write(txn, *id)?;
        }
    }
    Ok(Swept { commit: if due.is_empty() { Commit::No } else { Commit::Yes }, next_ms })
}

/// Bit by bit; `next_ms` is `Some` if there is more.
/// The sweep that removes the entries of deleted buckets, bit by bit.
pub(in crate::data) fn sweep_graves() -> Sweep {
    let mut graves = Graves::new(Kind::Entries);
    Box::new(move |txn, now_ms| graves.sweep(txn, now_ms, |id| purge(txn, id)))
}

/// Removes some entries of a deleted bucket. Answers whether nothing of it is left.
fn purge(txn: &WriteTransaction, id: BucketId) -> Result<bool, DataError> {
    let doing = "sweep a deleted bucket";
    let (mut entries, mut expiry) = open_tables(txn)?;
    let mut rows = Vec::new();
    for found in entries.range((id.0, &[][..])..).map_err(storage(doing))?.take(SWEEP_MAX) {
        let (key, row) = found.map_err(storage(doing))?;
        let (of, key) = key.value();
        if of != id.0 {
            break;
        }
        rows.push((key.to_vec(), old(id, key, row.value()).entry.and_then(|entry| entry.expires_ms)));
    }
    let is_empty = rows.is_empty();
    for (key, expires_ms) in rows {
        entries.remove((id.0, key.as_slice())).map_err(storage(doing))?;
        if let Some(ms) = expires_ms {
            expiry.remove((ms, id.0, key.as_slice())).map_err(storage(doing))?;
        }
    }
    Ok(is_empty)
}

/// Reads every entry of a bucket, holds it against its checksum, and looks whether its key leads to it.
///
/// # Errors
/// Those of storage.
///
/// # Cost
/// Reads the whole bucket, a page at a time.
pub(in crate::data) fn scrub(store: &Store, id: BucketId) -> Result<Scrubbed, DataError> {
    let mut all = Scrubbed::default();
    let mut after = None::<Bytes>;
    loop {
        let (page, last) = store.read(|txn| scrub_page(txn, id, after.as_deref(), PAGE_ENTRIES_MAX))?;
        all.entries += page.entries;
        all.corrupt.extend(page.corrupt);
        match last {
            // Where a page that leads to others is damaged it may lead back.
            Some(last) if after.as_ref().is_none_or(|after| *after < last) => after = Some(last),
            _ => return Ok(all),
        }
    }
}

/// As [`scrub`], of at most `limit` entries after `after`; then the last key that was looked at, unless there is no more.
pub(in crate::data) fn scrub_page(
    txn: &ReadTransaction,
    id: BucketId,
    after: Option<&[u8]>,
    limit: usize,
) -> Result<(Scrubbed, Option<Bytes>), DataError> {
    let doing = "scrub entries";
    let table = txn.open_table(ENTRIES).map_err(storage(doing))?;
    let mut page = Scrubbed::default();
    let first = after.map_or(Bound::Included((id.0, &[][..])), |after| Bound::Excluded((id.0, after)));
    let mut looked = 0;
    let mut last = after.map(Bytes::copy_from_slice);
    for found in table.range((first, Bound::Unbounded)).map_err(storage(doing))? {
        let (key, row) = found.map_err(storage(doing))?;
        let (of, key) = key.value();
        if of != id.0 {
            break;
        }
        looked += 1;
        page.entries += 1;
        // A page that leads to others may be damaged too: then what is there is not found by its key, or comes out of order.
        let is_in_order = last.as_deref().is_none_or(|last: &[u8]| last < key);
        let is_found = || table.get((id.0, key)).map(|found| found.is_some()).map_err(storage(doing));
        if decode(id, key, row.value()).is_err() || !is_in_order || !is_found()? {
            page.corrupt.push(Bytes::copy_from_slice(key));
        }
        last = Some(Bytes::copy_from_slice(key));
        if looked == limit {
            return Ok((page, Some(Bytes::copy_from_slice(key))));
        }
    }
    Ok((page, None))
}

/// Counts what is in a bucket, row by row; the account must agree.
///
/// # Errors
/// Those of storage.
///
/// # Cost
/// Reads the whole bucket in one transaction.
pub(in crate::data) fn recount(store: &Store, id: BucketId) -> Result<Usage, DataError> {
    store.read(|txn| recount_in(txn, id))
}

/// As [`recount`], in a transaction.
pub(in crate::data) fn recount_in(txn: &ReadTransaction, id: BucketId) -> Result<Usage, DataError> {
    let doing = "count the entries of a bucket";
    let table = txn.open_table(ENTRIES).map_err(storage(doing))?;
    let mut usage = Usage::default();
    for found in table.range((id.0, &[][..])..).map_err(storage(doing))? {
        let (key, row) = found.map_err(storage(doing))?;
        let (of, key) = key.value();
        if of != id.0 {
            break;
        }
        usage = usage.plus(Usage { bytes: old(id, key, row.value()).bytes, keys: 1 });
    }
    Ok(usage)
}
