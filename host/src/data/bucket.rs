//! Buckets: what tenants keep their data in. A name, how durable it is, how much it may hold, and how much it does.
//!
//! ```text
//! table    key             value (each with a checksum, `row.rs`)
//! buckets  (tenant, name)  number of the bucket
//! states   number          durability, quotas, time made, last version, usage        (`State`)
//! origins  number          text of the origin, and a checksum; no row for most
//! graves   (kind, number)  nothing: deleted, and its content of this kind is still to be swept
//! meta     "buckets"       highest number ever given
//! ```
//!
//! What buckets hold lies in other tables, under the bucket's number as a fixed-width integer and never under its name: no key of
//! one bucket can be spelled so that it is found in another.
//!
//! Owns names and numbers; the accounts are in `account.rs`. Knows nothing about keys, values or objects. Invariant: a number is
//! never given twice.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound;

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use super::account::{Kind, STATES, State, Usage, find_state, reserve};
use super::answers::once;
use super::error::{DataError, storage};
use super::row::{Numbers, SUM_LEN, sum};
use super::store::{Ack, Commit, Store, Swept};
use crate::bucket::{BucketSpec, Durability, OriginUrl};
use crate::id::{BucketName, TenantId};
use crate::idempotency::Keep;
use crate::storage::log::Room;

const BUCKETS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("buckets");
const ORIGINS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("origins");
/// Deleted buckets whose content is still to be swept.
const GRAVES: TableDefinition<'_, (u8, u64), ()> = TableDefinition::new("graves");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LAST: &str = "buckets";

/// Buckets that a tenant may have.
pub const BUCKETS_MAX: u64 = 1000;

/// Roughly what a change of a bucket writes.
const COST_BYTES: usize = 512;

/// Number of a bucket; never given to another one, of whichever tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketId(pub(super) u64);

impl fmt::Display for BucketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One bucket as it was when it was looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its number.
    pub id: BucketId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name.
    pub name: BucketName,
    /// What it was made with, or changed to.
    pub spec: BucketSpec,
    /// Where its objects come from, if they are somewhere else. Cannot be changed.
    pub origin: Option<OriginUrl>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// What its entries take. Of a volatile bucket: see [`super::Data::usage`].
    pub entries: Usage,
    /// What its objects take. Of a volatile bucket: see [`super::Data::usage`].
    pub objects: Usage,
}

impl Bucket {
    /// Why its objects are not files that stay, if so: then it is no folder either.
    #[must_use]
    pub fn without_files(&self) -> Option<&'static str> {
        without_files(self.spec.durability, self.origin.as_ref())
    }
}

/// As [`Bucket::without_files`], of one that is not there yet.
#[must_use]
pub fn without_files(durability: Durability, origin: Option<&OriginUrl>) -> Option<&'static str> {
    match (durability, origin) {
        (Durability::Volatile, _) => Some("it is volatile, and only a durable bucket has files"),
        (Durability::Durable, Some(_)) => Some("it has an origin, and only what is kept here has files"),
        (Durability::Durable, None) => None,
    }
}

fn parse_id(tenant: &str, name: &str, row: &[u8]) -> Result<BucketId, DataError> {
    match Numbers::open(&[tenant.as_bytes(), name.as_bytes()], row) {
        Some(Numbers([id])) => Ok(BucketId(id)),
        None => Err(DataError::Damaged { what: format!("the number of bucket '{name}' is not what was written") }),
    }
}

/// Makes the tables, so that readers find them.
pub(super) fn prepare(txn: &WriteTransaction) -> Result<(), DataError> {
    let doing = "make the tables of buckets";
    txn.open_table(BUCKETS).map_err(storage(doing))?;
    txn.open_table(STATES).map_err(storage(doing))?;
    txn.open_table(ORIGINS).map_err(storage(doing))?;
    txn.open_table(GRAVES).map_err(storage(doing))?;
    txn.open_table(META).map_err(storage(doing))?;
    Ok(())
}

fn find_origin(table: &impl ReadableTable<u64, &'static [u8]>, id: BucketId) -> Result<Option<OriginUrl>, DataError> {
    let Some(row) = table.get(id.0).map_err(storage("read the origin of a bucket"))? else { return Ok(None) };
    let text = row.value().split_last_chunk::<SUM_LEN>().filter(|(text, found)| sum(&[&id.0.to_le_bytes(), text]) == **found);
    let url = text.and_then(|(text, _)| std::str::from_utf8(text).ok()?.parse().ok());
    let damaged = || DataError::Damaged { what: format!("the origin of bucket {id} is not what was written") };
    url.map(Some).ok_or_else(damaged)
}

/// As [`find_origin`], also in a file that nobody opened for writing since there are origins.
fn read_origin(txn: &ReadTransaction, id: BucketId) -> Result<Option<OriginUrl>, DataError> {
    match txn.open_table(ORIGINS) {
        Ok(table) => find_origin(&table, id),
        Err(redb::TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(storage("open the origins of buckets")(error)),
    }
}

fn write_origin(txn: &WriteTransaction, id: BucketId, url: &OriginUrl) -> Result<(), DataError> {
    let doing = "write the origin of a bucket";
    let mut row = url.as_str().as_bytes().to_vec();
    let check = sum(&[&id.0.to_le_bytes(), &row]);
    row.extend(check);
    txn.open_table(ORIGINS).map_err(storage(doing))?.insert(id.0, row.as_slice()).map_err(storage(doing))?;
    Ok(())
}

/// Whether a bucket with `found` is what somebody wants who says `wanted`, which may be nothing.
/// Refuses to make of a bucket that exists one of another durability or origin.
pub(super) fn check_kind(
    name: &BucketName,
    (durability, origin): (Durability, Option<&OriginUrl>),
    (is, has): (Durability, Option<&OriginUrl>),
) -> Result<(), DataError> {
    let found = match (origin, has) {
        (Some(wanted), Some(found)) if wanted != found => "a cache of another origin",
        (Some(_), None) => "without an origin",
        _ if durability != is => is.as_str(),
        _ => return Ok(()),
    };
    Err(DataError::BucketExists { name: name.clone(), found })
}

/// Makes a bucket, durably; changes the quotas of one that exists. The answer's second part: whether it was made.
///
/// # Errors
/// [`DataError::BucketExists`] if one of the other durability exists, [`DataError::Quota`] if the tenant has [`BUCKETS_MAX`], and
/// those of storage.
/// `origin`: where its objects come from; `None`: nowhere, or whatever one that exists has.
/// `volatile_bytes_max`: memory that all volatile buckets may take together. `after` gets the bucket before anyone else does.
pub(super) fn put(
    store: &Store,
    tenant: &TenantId,
    name: &BucketName,
    spec: BucketSpec,
    origin: Option<OriginUrl>,
    volatile_bytes_max: u64,
    after: impl FnOnce(&Bucket) + Send + 'static,
) -> Ack<(Bucket, bool)> {
    let (tenant, name) = (tenant.clone(), name.clone());
    let op = move |txn: &WriteTransaction, now_ms| {
        let doing = "make a bucket";
        let mut buckets = txn.open_table(BUCKETS).map_err(storage(doing))?;
        let key = (tenant.as_str(), name.as_str());
        let found = match buckets.get(key).map_err(storage(doing))? {
            Some(row) => Some(parse_id(key.0, key.1, row.value())?),
            None => None,
        };
        if let Some(id) = found {
            let mut state = State::read(txn, id)?;
            let has = find_origin(&txn.open_table(ORIGINS).map_err(storage(doing))?, id)?;
            check_kind(&name, (spec.durability, origin.as_ref()), (state.spec.durability, has.as_ref()))?;
            if state.spec == spec {
                return Ok(((bucket(id, tenant, name, has, &state), false), Commit::No));
            }
            reserve(txn, Some(id), spec, volatile_bytes_max)?;
            state.spec = spec;
            state.write(txn, id)?;
            return Ok(((bucket(id, tenant, name, has, &state), false), Commit::Yes));
        }
        let count = of_tenant(&buckets, &tenant, None)?.take(usize::try_from(BUCKETS_MAX).unwrap_or(usize::MAX)).count() as u64;
        if count >= BUCKETS_MAX {
            return Err(DataError::Quota { unit: "buckets", wanted: count + 1, max: BUCKETS_MAX });
        }
        reserve(txn, None, spec, volatile_bytes_max)?;
        let id = next_id(txn)?;
        let state = State { spec, created_ms: now_ms, version: 0, entries: Usage::default(), objects: Usage::default() };
        state.write(txn, id)?;
        if let Some(url) = &origin {
            write_origin(txn, id, url)?;
        }
        let row = Numbers([id.0]).seal(&[key.0.as_bytes(), key.1.as_bytes()]);
        buckets.insert(key, row.as_slice()).map_err(storage(doing))?;
        drop(buckets);
        Ok(((bucket(id, tenant, name, origin, &state), true), Commit::Yes))
    };
    let after = move |result: &Result<(Bucket, bool), DataError>| {
        if let Ok((bucket, _)) = result {
            after(bucket);
        }
    };
    store.write_then(COST_BYTES, op, after)
}

fn next_id(txn: &WriteTransaction) -> Result<BucketId, DataError> {
    let doing = "number a bucket";
    let mut meta = txn.open_table(META).map_err(storage(doing))?;
    let last = match meta.get(LAST).map_err(storage(doing))? {
        None => 0,
        Some(row) => match Numbers::open(&[LAST.as_bytes()], row.value()) {
            Some(Numbers([last])) => last,
            None => return Err(DataError::Damaged { what: "the last number of a bucket is not what was written".into() }),
        },
    };
    let row = Numbers([last + 1]).seal(&[LAST.as_bytes()]);
    meta.insert(LAST, row.as_slice()).map_err(storage(doing))?;
    Ok(BucketId(last + 1))
}

/// Deletes a bucket with all that is in it, durably. From then on nothing in it can be reached; sweeps remove it bit by bit.
/// Answers the bucket that was, `None` if there was none.
/// `keep`: what keeps its answer. `after` gets its number before the answer goes out.
pub(super) fn delete(
    store: &Store,
    tenant: &TenantId,
    name: &BucketName,
    keep: Option<Keep<Option<BucketId>>>,
    after: impl FnOnce(BucketId) + Send + 'static,
) -> Ack<Option<BucketId>> {
    let (tenant, name) = (tenant.clone(), name.clone());
    let op = move |txn: &WriteTransaction, _now_ms| {
        let doing = "delete a bucket";
        let mut buckets = txn.open_table(BUCKETS).map_err(storage(doing))?;
        let key = (tenant.as_str(), name.as_str());
        let id = match buckets.get(key).map_err(storage(doing))? {
            Some(row) => parse_id(key.0, key.1, row.value())?,
            None => return Ok((None, Commit::No)),
        };
        buckets.remove(key).map_err(storage(doing))?;
        txn.open_table(STATES).map_err(storage(doing))?.remove(id.0).map_err(storage(doing))?;
        txn.open_table(ORIGINS).map_err(storage(doing))?.remove(id.0).map_err(storage(doing))?;
        let mut graves = txn.open_table(GRAVES).map_err(storage(doing))?;
        for kind in [Kind::Entries, Kind::Objects] {
            graves.insert((kind as u8, id.0), ()).map_err(storage(doing))?;
        }
        drop((buckets, graves));
        Ok((Some(id), Commit::Yes))
    };
    let (op, in_use) = once(keep, op);
    let after = move |result: &Result<Option<BucketId>, DataError>| {
        drop(in_use);
        if let Ok(Some(id)) = result {
            after(*id);
        }
    };
    store.queue(Room::Reserve, COST_BYTES, op, after)
}

/// Sweeps what deleted buckets held of one kind. A bucket of which something is damaged stays until the next start, and holds up none of the others.
pub(super) struct Graves {
    kind: Kind,
    /// What it is at; still here afterwards if redb panicked.
    at: Option<BucketId>,
    damaged: BTreeSet<BucketId>,
}

impl Graves {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, at: None, damaged: BTreeSet::new() }
    }

    /// Removes a part of one of them with `purge`, which says whether nothing is left.
    pub(super) fn sweep(
        &mut self,
        txn: &WriteTransaction,
        now_ms: u64,
        purge: impl FnOnce(BucketId) -> Result<bool, DataError>,
    ) -> Result<Swept, DataError> {
        self.damaged.extend(self.at.take());
        let Some(id) = self.next(txn)? else { return Ok(Swept { commit: Commit::No, next_ms: None }) };
        self.at = Some(id);
        let purged = purge(id);
        self.at = None;
        if purged.as_ref().is_err_and(DataError::is_damage) {
            self.damaged.insert(id);
        }
        if purged? {
            let doing = "forget a deleted bucket";
            txn.open_table(GRAVES).map_err(storage(doing))?.remove((self.kind as u8, id.0)).map_err(storage(doing))?;
        }
        Ok(Swept { commit: Commit::Yes, next_ms: Some(now_ms) })
    }

    /// The lowest number. One that still has its account was not deleted: the row is damaged, and what it names is not to be swept.
    fn next(&self, txn: &WriteTransaction) -> Result<Option<BucketId>, DataError> {
        let doing = "read the deleted buckets";
        let table = txn.open_table(GRAVES).map_err(storage(doing))?;
        let states = txn.open_table(STATES).map_err(storage(doing))?;
        for entry in table.range((self.kind as u8, 0)..=(self.kind as u8, u64::MAX)).map_err(storage(doing))? {
            let (key, _) = entry.map_err(storage(doing))?;
            let id = BucketId(key.value().1);
            if !self.damaged.contains(&id) && states.get(id.0).map_err(storage(doing))?.is_none() {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }
}

/// A bucket by its name, `None` if there is none.
pub(super) fn get(txn: &ReadTransaction, tenant: &TenantId, name: &BucketName) -> Result<Option<Bucket>, DataError> {
    let doing = "read a bucket";
    let buckets = txn.open_table(BUCKETS).map_err(storage(doing))?;
    let key = (tenant.as_str(), name.as_str());
    let Some(row) = buckets.get(key).map_err(storage(doing))? else { return Ok(None) };
    let id = parse_id(key.0, key.1, row.value())?;
    let state = find_state(&txn.open_table(STATES).map_err(storage(doing))?, id)?;
    let origin = read_origin(txn, id)?;
    Ok(Some(bucket(id, tenant.clone(), name.clone(), origin, &state)))
}

/// Buckets by their names, each with its own error.
pub type Each<T> = Vec<(String, Result<T, DataError>)>;

/// Every bucket of every tenant, by its name; an error in place of one whose rows are damaged.
pub(super) fn all(txn: &ReadTransaction) -> Result<Each<Bucket>, DataError> {
    let doing = "list all buckets";
    let buckets = txn.open_table(BUCKETS).map_err(storage(doing))?;
    let states = txn.open_table(STATES).map_err(storage(doing))?;
    let mut all = Vec::new();
    for entry in buckets.iter().map_err(storage(doing))? {
        let (key, row) = entry.map_err(storage(doing))?;
        let (tenant, name) = key.value();
        let read = || {
            let id = parse_id(tenant, name, row.value())?;
            let damaged = |error: crate::id::NameError| DataError::Damaged { what: format!("a bucket's name: {error}") };
            let (tenant, name) = (tenant.parse().map_err(damaged)?, name.parse().map_err(damaged)?);
            Ok(bucket(id, tenant, name, read_origin(txn, id)?, &find_state(&states, id)?))
        };
        all.push((name.to_owned(), read()));
    }
    Ok(all)
}

/// Whether a bucket still exists, and with which quotas.
pub(super) fn spec(txn: &ReadTransaction, id: BucketId) -> Result<BucketSpec, DataError> {
    let states = txn.open_table(STATES).map_err(storage("open the buckets"))?;
    find_state(&states, id).map(|state| state.spec)
}

/// The buckets of a tenant in the order of their names, from the one after `after`, at most `count`.
pub(super) fn list(
    txn: &ReadTransaction,
    tenant: &TenantId,
    after: Option<&BucketName>,
    count: usize,
) -> Result<Vec<Bucket>, DataError> {
    let sound = |(_, found)| match found {
        Err(DataError::DamagedRow { .. }) => None,
        found => Some(found),
    };
    each(txn, tenant, after)?.filter_map(sound).take(count).collect()
}

/// Those of a tenant whose accounts are damaged.
pub(super) fn damaged(txn: &ReadTransaction, tenant: &TenantId) -> Result<Vec<BucketName>, DataError> {
    let damaged = |(name, found)| match found {
        Err(DataError::DamagedRow { .. }) => Some(Ok(name)),
        Err(error) => Some(Err(error)),
        Ok(_) => None,
    };
    each(txn, tenant, None)?.filter_map(damaged).collect()
}

/// Every bucket of a tenant from the one after `after`, with its own error.
fn each(
    txn: &ReadTransaction,
    tenant: &TenantId,
    after: Option<&BucketName>,
) -> Result<impl Iterator<Item = (BucketName, Result<Bucket, DataError>)>, DataError> {
    let doing = "list the buckets";
    let buckets = txn.open_table(BUCKETS).map_err(storage(doing))?;
    let states = txn.open_table(STATES).map_err(storage(doing))?;
    let found: Vec<_> = of_tenant(&buckets, tenant, after)?.collect::<Result<_, _>>()?;
    Ok(found.into_iter().map(move |(name, id)| {
        let state = find_state(&states, id).and_then(|state| Ok((state, read_origin(txn, id)?)));
        let found = state.map(|(state, origin)| bucket(id, tenant.clone(), name.clone(), origin, &state));
        (name, found)
    }))
}

type Found = Result<(BucketName, BucketId), DataError>;

/// Names and numbers of a tenant's buckets from the one after `after`.
fn of_tenant<'t>(
    buckets: &'t impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    tenant: &'t TenantId,
    after: Option<&BucketName>,
) -> Result<impl Iterator<Item = Found> + 't, DataError> {
    let doing = "list the buckets";
    // No name is empty, so the first key excludes none.
    let first = Bound::Excluded((tenant.as_str(), after.map_or("", BucketName::as_str)));
    let range = buckets.range((first, Bound::Unbounded)).map_err(storage(doing))?;
    let found = range.map(move |entry| {
        let (key, row) = entry.map_err(storage(doing))?;
        let (of, name) = key.value();
        if of != tenant.as_str() {
            return Ok(None);
        }
        let id = parse_id(of, name, row.value())?;
        let name = name.parse().map_err(|error| DataError::Damaged { what: format!("a bucket's name: {error}") })?;
        Ok(Some((name, id)))
    });
    Ok(found.map_while(Result::transpose))
}

fn bucket(id: BucketId, tenant: TenantId, name: BucketName, origin: Option<OriginUrl>, state: &State) -> Bucket {
    let State { spec, created_ms, entries, objects, .. } = *state;
    Bucket { id, tenant, name, spec, origin, created_ms, entries, objects }
}
