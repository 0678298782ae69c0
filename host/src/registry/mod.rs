//! The registry: which functions are deployed, their revisions, and which revision is live. Durable.
//!
//! ```text
//! table      key                        value
//! functions  (tenant, name)             live and last number, times      (`record.rs`)
//! revisions  (tenant, name, number)     one revision                     (`record.rs`)
//! routes     (tenant, route as text)    name of the function that has it
//! triggers   (tenant, bucket, name)     nothing: the bucket triggers the function
//! references (tenant, kind, digest)     number of kept revisions that need this file  (`references.rs`)
//! tenants    tenant                     number of its functions                       (`references.rs`)
//! ```
//!
//! Besides: who may do something, in the tables of `tenants.rs` and `signed.rs`; and what changes answered, in those of
//! `storage/answers.rs`.
//!
//! Whatever grows with the number of functions is read a function or a page at a time: nothing but routes and triggers is read whole
//! at start.
//!
//! Owns the file `registry.redb`. Knows nothing about Wasm, native code or where their files lie: it keeps digests. Every call
//! blocks. Invariant: a change that returned `Ok` survives `kill -9` and power loss; one that was cut off left all or nothing.
//!
//! The file may be damaged by others. It is checked whole when it is opened (`verify.rs`), and records carry a hash (`record.rs`).
//! Where damage that came later makes redb itself panic, the panic ends here as [`RegistryError::Damaged`]. After an I/O error redb refuses everything until it is opened again, which the next call
//! does, so that a disk that was full for a while does not cost a restart.

mod answers;
mod change;
mod error;
mod migrate;
mod record;
mod references;
mod signed;
mod tenants;
mod verify;

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};

use self::error::{io_error, storage};
use self::record::{FunctionRow, Place, decode};
use self::verify::{Verdict, verify};
use crate::id::{FunctionName, RevisionNumber, TenantId};
use crate::manifest::Trigger;
use crate::route::Route;
use crate::storage::caught;

pub use self::answers::Terms;
pub use self::change::{Precondition, TRIGGERED_MAX};
pub use self::error::{PublishError, RegistryError};
pub use self::record::{BundleRecord, FunctionRecord, NewRevision, Recompiled, Retaken, RevisionRecord, SnapshotRecord};
pub use self::references::Reference;
pub use self::tenants::{HOSTS_MAX, KEYS_MAX, QuotaChanges, TENANTS_MAX, TOKENS_MAX, TenantError, TenantRecord, TokenRecord};

const FUNCTIONS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("functions");
const REVISIONS: TableDefinition<'_, (&str, &str, u64), &[u8]> = TableDefinition::new("revisions");
const ROUTES: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("routes");
const TRIGGERS: TableDefinition<'_, (&str, &str, &str), ()> = TableDefinition::new("triggers");

/// Memory for pages of the file, in bytes; redb's own default is 1 GiB. The catalog keeps the functions that are in use, so this
/// serves deploys, lists and the first requests of functions; behind it is the system's page cache. It holds all inner pages of a
/// registry of 100,000 functions, and costs each of them 84 bytes.
const PAGE_CACHE_BYTES: usize = 8 << 20;

/// Whether a transaction that went well is to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Commit {
    Yes,
    /// It changed nothing.
    No,
}

/// The registry of one data directory.
#[derive(Debug)]
pub struct Registry {
    path: PathBuf,
    open: fn(&Path) -> Result<Database, DatabaseError>,
    /// `None` after a reopening that failed.
    db: RwLock<Option<Database>>,
    /// Whether `db` must be opened again before its next use.
    failed: AtomicBool,
    /// Writers queue here and not inside redb, so that none waits there while another opens the file again.
    writing: Mutex<()>,
    /// What changes released; see [`Registry::take_released`].
    released: Mutex<Vec<(TenantId, Reference)>>,
}

impl Registry {
    /// Opens the registry's file; makes it if it is missing. `format`: the data directory's. A file of an older format is
    /// migrated in one durable transaction; migrating again changes nothing. One process may have the file open at a time.
    ///
    /// # Errors
    /// [`RegistryError::Damaged`] if the file is not a whole registry (it is left as it was then), else what the file system says.
    ///
    /// # Cost
    /// Reads the whole file: about 2 ms for 1,000 functions. A migration reads every revision besides.
    pub fn open(path: &Path, format: u32) -> Result<Self, RegistryError> {
        Self::open_with(path, format, open_file)
    }

    fn open_with(path: &Path, format: u32, open: fn(&Path) -> Result<Database, DatabaseError>) -> Result<Self, RegistryError> {
        if !path.exists() {
            create_file(path)?;
        }
        let verdict = verify(path)?;
        let db = contained(|| {
            let mut db = open(path).map_err(storage("open the registry"))?;
            if verdict == Verdict::Mendable {
                tracing::warn!(path = %path.display(), "the registry's account of free space was wrong; mending it");
                db.check_integrity().map_err(storage("mend the registry"))?;
            }
            Ok(db)
        })?;
        let failed = AtomicBool::new(false);
        let (writing, released) = (Mutex::new(()), Mutex::default());
        let registry = Self { path: path.into(), open, db: RwLock::new(Some(db)), failed, writing, released };
        registry.write(|txn| migrate::prepare(txn, format)).map_err(|error| match error {
            PublishError::Registry(error) => error,
            other => RegistryError::Damaged { what: other.to_string() },
        })?;
        Ok(registry)
    }

    /// Number of functions of all tenants. Cost: O(1).
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn count(&self) -> Result<u64, RegistryError> {
        let doing = "count functions";
        self.read(|txn| txn.open_table(FUNCTIONS).map_err(storage(doing))?.len().map_err(storage(doing)))
    }

    /// The routes of all live revisions, each with the function that has it.
    ///
    /// # Errors
    /// [`RegistryError`]; one damaged row fails the whole list, so that nobody takes a part for the whole.
    ///
    /// # Cost
    /// About 1 us a route; nothing for functions without.
    pub fn routes(&self) -> Result<Vec<(TenantId, Route, FunctionName)>, RegistryError> {
        let doing = "read the routes";
        self.read(|txn| {
            let table = txn.open_table(ROUTES).map_err(storage(doing))?;
            let mut routes = Vec::new();
            for entry in table.iter().map_err(storage(doing))? {
                let (key, name) = entry.map_err(storage(doing))?;
                let (tenant, route) = key.value();
                let place = Place { tenant, name: name.value(), number: 0 };
                let parsed = route.parse().map_err(|error| place.damaged(&format!("a route is malformed, {error}")))?;
                let (tenant, name) = parse_key(place)?;
                routes.push((tenant, parsed, name));
            }
            Ok(routes)
        })
    }

    /// The functions that buckets trigger, each with the triggers of its live revision.
    ///
    /// # Errors
    /// As [`Registry::routes`].
    ///
    /// # Cost
    /// About 5 us for each; nothing for functions without.
    pub fn triggers(&self) -> Result<Vec<(TenantId, FunctionName, Vec<Trigger>)>, RegistryError> {
        let doing = "read what triggers functions";
        self.read(|txn| {
            let functions = txn.open_table(FUNCTIONS).map_err(storage("open the functions"))?;
            let revisions = txn.open_table(REVISIONS).map_err(storage("open the revisions"))?;
            let mut triggered = BTreeSet::new();
            for entry in txn.open_table(TRIGGERS).map_err(storage(doing))?.iter().map_err(storage(doing))? {
                let (key, _) = entry.map_err(storage(doing))?;
                let (tenant, _, name) = key.value();
                triggered.insert(parse_key(Place { tenant, name, number: 0 })?);
            }
            let mut found = Vec::new();
            for (tenant, name) in triggered {
                let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: 0 };
                let row = read_function(&functions, &tenant, &name)?;
                let row = row.ok_or_else(|| place.damaged("a trigger is of no function"))?;
                let live = with_live(&revisions, (tenant.clone(), name.clone()), row)?.live;
                found.push((tenant, name, live.manifest.trigger));
            }
            Ok(found)
        })
    }

    /// The functions of a tenant in the order of their names, from the one after `after`, at most `count`.
    ///
    /// # Errors
    /// [`RegistryError`]; one damaged record fails the whole list, so that nobody takes a part for the whole.
    ///
    /// # Cost
    /// About 5 us for each that is returned, however many there are.
    pub fn list(
        &self,
        tenant: &TenantId,
        after: Option<&FunctionName>,
        count: usize,
    ) -> Result<Vec<FunctionRecord>, RegistryError> {
        let doing = "list the functions";
        self.read(|txn| {
            let functions = txn.open_table(FUNCTIONS).map_err(storage("open the functions"))?;
            let revisions = txn.open_table(REVISIONS).map_err(storage("open the revisions"))?;
            // No name is empty, so the first key excludes none.
            let first = Bound::Excluded((tenant.as_str(), after.map_or("", FunctionName::as_str)));
            let mut records = Vec::new();
            for entry in functions.range((first, Bound::Unbounded)).map_err(storage(doing))?.take(count) {
                let (key, value) = entry.map_err(storage(doing))?;
                let (of, name) = key.value();
                if of != tenant.as_str() {
                    break;
                }
                let place = Place { tenant: of, name, number: 0 };
                let row: FunctionRow = decode(place, value.value())?;
                records.push(with_live(&revisions, parse_key(place)?, row)?);
            }
            Ok(records)
        })
    }

    /// One function, `None` if it is not deployed.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn function(&self, tenant: &TenantId, name: &FunctionName) -> Result<Option<FunctionRecord>, RegistryError> {
        self.read(|txn| {
            let functions = txn.open_table(FUNCTIONS).map_err(storage("open the functions"))?;
            let revisions = txn.open_table(REVISIONS).map_err(storage("open the revisions"))?;
            let row = read_function(&functions, tenant, name)?;
            row.map(|row| with_live(&revisions, (tenant.clone(), name.clone()), row)).transpose()
        })
    }

    /// The kept revisions of a function, newest first; empty if it is not deployed. The live one need not be the newest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn revisions(&self, tenant: &TenantId, name: &FunctionName) -> Result<Vec<RevisionRecord>, RegistryError> {
        self.read(|txn| {
            let table = txn.open_table(REVISIONS).map_err(storage("open the revisions"))?;
            let mut records = Vec::new();
            for number in read_numbers(&table, tenant, name)? {
                records.extend(read_revision(&table, tenant, name, number)?);
            }
            Ok(records)
        })
    }

    fn read<T>(&self, op: impl FnOnce(&ReadTransaction) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
        let result = self.with_db(|db| op(&db.begin_read().map_err(storage("begin to read"))?));
        result.inspect_err(|error| self.note(error))
    }

    fn write<T>(&self, op: impl FnOnce(&WriteTransaction) -> Result<(T, Commit), PublishError>) -> Result<T, PublishError> {
        let _turn = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.with_db(|db| {
            let mut txn = db.begin_write().map_err(storage("begin to write"))?;
            // Two-phase commit: without it, an open after a crash would trust checksums that are no match for bytes that a
            // tenant chose. It also makes that open fast, whatever the size.
            txn.set_quick_repair(true);
            // An error drops the transaction, which undoes it.
            let (value, commit) = op(&txn)?;
            match commit {
                Commit::Yes => txn.commit().map_err(storage("commit to the registry"))?,
                Commit::No => txn.abort().map_err(storage("end a transaction"))?,
            }
            Ok(value)
        });
        result.inspect_err(|error: &PublishError| {
            if let PublishError::Registry(error) = error {
                self.note(error);
            }
        })
    }

    fn note(&self, error: &RegistryError) {
        if error.latches() {
            self.failed.store(true, Ordering::Release);
        }
    }

    fn with_db<T, E: From<RegistryError>>(&self, op: impl FnOnce(&Database) -> Result<T, E>) -> Result<T, E> {
        if self.failed.load(Ordering::Acquire) {
            self.reopen()?;
        }
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else {
            return Err(storage("use the registry")(redb::Error::DatabaseClosed).into());
        };
        // A panic inside redb means that its file is not what it wrote; what it holds in memory is thrown away.
        caught(|| op(db)).unwrap_or_else(|what| {
            self.failed.store(true, Ordering::Release);
            Err(RegistryError::Damaged { what }.into())
        })
    }

    fn reopen(&self) -> Result<(), RegistryError> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let old = db.take();
        contained(|| {
            // First, because two in one process would lock each other out.
            drop(old);
            (self.open)(&self.path).map_err(storage("open the registry again"))
        })
        .map(|new| {
            *db = Some(new);
            self.failed.store(false, Ordering::Release);
            tracing::warn!("opened the registry again after an error");
        })
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let db = self.db.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // redb writes once more when it closes, and panics there if it did so before.
        if let Err(what) = caught(|| drop(db)) {
            tracing::error!(what, "the registry could not be closed in order");
        }
    }
}

fn contained<T>(op: impl FnOnce() -> Result<T, RegistryError>) -> Result<T, RegistryError> {
    caught(op).unwrap_or_else(|what| Err(RegistryError::Damaged { what }))
}

fn open_file(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(PAGE_CACHE_BYTES).open(path)
}

/// Makes an empty database under another name and renames it: a start that is killed in between leaves no half of a registry.
fn create_file(path: &Path) -> Result<(), RegistryError> {
    let doing = "create the registry";
    let new = path.with_extension("redb.new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&new).map_err(io_error(doing))?;
    drop(Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_file(file).map_err(storage(doing))?);
    fs::rename(&new, path).map_err(io_error(doing))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error(doing))
}

fn parse_key(place: Place<'_>) -> Result<(TenantId, FunctionName), RegistryError> {
    match (place.tenant.parse(), place.name.parse()) {
        (Ok(tenant), Ok(name)) => Ok((tenant, name)),
        _ => Err(place.damaged("a name is malformed")),
    }
}

fn read_function(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
    tenant: &TenantId,
    name: &FunctionName,
) -> Result<Option<FunctionRow>, RegistryError> {
    let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: 0 };
    let value = table.get((place.tenant, place.name)).map_err(storage("read a function"))?;
    value.map(|value| decode(place, value.value())).transpose()
}

fn read_revision(
    table: &impl ReadableTable<(&'static str, &'static str, u64), &'static [u8]>,
    tenant: &TenantId,
    name: &FunctionName,
    number: RevisionNumber,
) -> Result<Option<RevisionRecord>, RegistryError> {
    let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: number.0 };
    let value = table.get((place.tenant, place.name, place.number)).map_err(storage("read a revision"))?;
    let record: Option<RevisionRecord> = value.map(|value| decode(place, value.value())).transpose()?;
    if record.as_ref().is_some_and(|record| record.number != number) {
        return Err(place.damaged("a revision lies under another's number"));
    }
    Ok(record)
}

/// Numbers of the kept revisions, newest first.
fn read_numbers(
    table: &impl ReadableTable<(&'static str, &'static str, u64), &'static [u8]>,
    tenant: &TenantId,
    name: &FunctionName,
) -> Result<Vec<RevisionNumber>, RegistryError> {
    let doing = "list revisions";
    let key = |number| (tenant.as_str(), name.as_str(), number);
    let range = table.range(key(0)..=key(u64::MAX)).map_err(storage(doing))?;
    range.rev().map(|entry| entry.map(|(key, _)| RevisionNumber(key.value().2)).map_err(storage(doing))).collect()
}

fn with_live(
    table: &impl ReadableTable<(&'static str, &'static str, u64), &'static [u8]>,
    (tenant, name): (TenantId, FunctionName),
    row: FunctionRow,
) -> Result<FunctionRecord, RegistryError> {
    let live = read_revision(table, &tenant, &name, row.live)?;
    let place = Place { tenant: tenant.as_str(), name: name.as_str(), number: row.live.0 };
    let live = live.ok_or_else(|| place.damaged("the live revision is missing"))?;
    Ok(FunctionRecord { tenant, name, live, created_ms: row.created_ms, updated_ms: row.updated_ms })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
