//! The store's file and the log before it: opened, opened again after errors, and for reading alone once they cannot be written.
//!
//! Owns the handle of redb. Knows nothing about jobs. Invariant: after an error of the disk other than a full one nothing is written
//! to it again.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageBackend, WriteTransaction};

use super::error::{DataError, io_error, storage};
use super::store::{Commit, Prepare};
use crate::storage::disk::sync_dir;
use crate::storage::log::{self, Commits, Logged, Room};
use crate::storage::overlay::Overlay;
use crate::storage::{abandon, caught};

/// How the file is opened; tests put a failing disk in between.
pub(super) type Open = Box<dyn Fn(&Path) -> Result<Opened, DatabaseError> + Send + Sync>;

/// An open file.
pub(super) struct Opened {
    pub(super) db: Database,
    /// Who is told of commits; `None` if nothing becomes durable.
    commits: Option<Arc<dyn Commits>>,
}

impl Opened {
    /// The file at `path`, which is there, and its log, which is made if it is missing.
    pub(super) fn at(path: &Path, builder: &mut Builder) -> Result<Self, DatabaseError> {
        let disk = |path: &Path| {
            let mut options = OpenOptions::new();
            FileBackend::new(options.read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?)
        };
        Self::over(Logged::open(disk(path)?, disk(&log_path(path))?, log::HALF)?, builder)
    }

    pub(super) fn over<D: StorageBackend>(logged: Logged<D>, builder: &mut Builder) -> Result<Self, DatabaseError> {
        let commits = Some(logged.commits());
        Ok(Self { db: builder.create_with_backend(logged)?, commits })
    }
}

/// Length of a file that is compacted when its disk is full: reading waits as long as it takes, which is a second or two then.
const COMPACT_BYTES_MAX: u64 = 256 << 20;

/// Where the log of the file at `path` is.
pub(super) fn log_path(path: &Path) -> PathBuf {
    path.with_extension("log")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

/// The file and how it is opened again.
pub(super) struct Shared {
    pub(super) path: PathBuf,
    open: Open,
    /// `None` after an opening that failed.
    db: RwLock<Option<Opened>>,
    /// Whether `db` must be opened again before its next use.
    stale: AtomicBool,
    /// Whether `db` writes nothing to the disk, so that a write must open it again.
    shadow: AtomicBool,
    /// Whether a page was found that is not what was written.
    damaged: AtomicBool,
    /// Why nothing is written until the next start.
    pub(super) lost: OnceLock<Arc<str>>,
}

impl Shared {
    /// Opens the file at `path`; makes it if it is missing, with the tables that `prepare` makes.
    pub(super) fn open(path: &Path, open: Open, prepare: Prepare) -> Result<Self, DataError> {
        if !path.exists() {
            create_file(path, prepare)?;
        }
        let db = contained(|| open(path).map_err(storage("open the data")))?;
        let [stale, shadow, damaged] = [const { AtomicBool::new(false) }; 3];
        Ok(Self { path: path.into(), open, db: RwLock::new(Some(db)), stale, shadow, damaged, lost: OnceLock::new() })
    }

    /// Runs `op` on the open file, which is opened again first if need be.
    pub(super) fn with_db<T>(&self, how: Use, op: impl FnOnce(&Opened) -> Result<T, DataError>) -> Result<T, DataError> {
        if how == Use::Write
            && let Some(why) = self.lost.get()
        {
            return Err(DataError::ReadOnly { why: Arc::clone(why) });
        }
        if self.must_open(how) {
            self.open_again(&mut self.db.write().unwrap_or_else(PoisonError::into_inner), how)?;
        }
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else { return Err(storage("use the data")(redb::Error::DatabaseClosed)) };
        let result = caught(|| op(db)).unwrap_or_else(|what| Err(DataError::Damaged { what }));
        if matches!(result, Err(DataError::Damaged { .. })) {
            self.met_damage(db.commits.as_ref().filter(|_| how == Use::Write));
        }
        result.inspect_err(|error| self.note(error))
    }

    /// What redb holds in memory is thrown away. `commits`: of what was being written. What redb would write when it closes would be the last commit, and
    /// would lack what lets the file be opened without a look at every page: it is left as the last commit made it.
    fn met_damage(&self, commits: Option<&Arc<dyn Commits>>) {
        if let Some(commits) = commits {
            commits.fail();
        }
        self.stale.store(true, Ordering::Release);
        self.damaged.store(true, Ordering::Release);
    }

    /// Whether a page was found, since the start, that is not what was written.
    pub(super) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Acquire)
    }

    /// Whether the disk was found so full that who adds must [`Shared::regain`] its reserve first.
    pub(super) fn is_short(&self) -> bool {
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        db.as_ref().and_then(|db| db.commits.as_ref()).is_some_and(|commits| commits.is_short())
    }

    /// Makes the reserve whole again, of what is free on the disk. False if that is not enough.
    pub(super) fn regain(&self) -> Result<bool, DataError> {
        self.with_db(Use::Write, |opened| match &opened.commits {
            Some(commits) => commits.regain().map_err(io_error("keep a reserve of the disk")),
            None => Ok(false),
        })
    }

    /// Gives the disk what the log has beyond its reserve. False if it has no more.
    pub(super) fn give_back(&self) -> Result<bool, DataError> {
        self.with_db(Use::Write, |opened| match &opened.commits {
            Some(commits) => commits.give_back().map_err(io_error("give back what the log has")),
            None => Ok(false),
        })
    }

    /// Gives the system what is free in the file. Nobody reads meanwhile. False if the file is too large for that, or damaged: whoever walks through
    /// all of it would meet that half-way, between two commits of which the first cannot be opened without a look at every page.
    pub(super) fn compact(&self) -> Result<bool, DataError> {
        let doing = "compact the data";
        if fs::metadata(&self.path).map_err(io_error(doing))?.len() > COMPACT_BYTES_MAX {
            return Ok(false);
        }
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        // Whoever found no room for a write left redb refusing everything.
        self.open_again(&mut db, Use::Write)?;
        let Some(opened) = db.as_mut() else { return Ok(false) };
        let Some(commits) = &opened.commits else { return Ok(false) };
        if self.is_damaged() {
            return Ok(false);
        }
        match verify(&self.path) {
            Err(DataError::Damaged { .. }) => {
                self.damaged.store(true, Ordering::Release);
                return Ok(false);
            }
            looked => looked?,
        }
        commits.may_take(Room::Reserve);
        let compacted = contained(|| opened.db.compact().map_err(storage(doing)));
        if matches!(compacted, Err(DataError::Damaged { .. })) {
            self.met_damage(Some(commits));
        }
        drop(db);
        compacted.map(|_| true).inspect_err(|error| self.note(error))
    }

    /// Closes what was open. redb writes when it closes; where a page is damaged the files stay as the last commit left them.
    fn close(&self, db: Option<Opened>) {
        let Some(Opened { db, commits }) = db else { return };
        match commits {
            Some(commits) if self.is_damaged() => {
                commits.fail();
                abandon(db);
            }
            Some(_) => {
                if let Err(what) = caught(|| drop(db)) {
                    tracing::error!(what, "the data could not be closed in order");
                }
            }
            None => abandon(db),
        }
    }

    fn must_open(&self, how: Use) -> bool {
        self.stale.load(Ordering::Acquire) || (how == Use::Write && self.shadow.load(Ordering::Acquire))
    }

    /// What follows from an error.
    pub(super) fn note(&self, error: &DataError) {
        match error {
            DataError::Storage { source, .. } => {
                if matches!(**source, redb::Error::Io(_)) {
                    let why: Arc<str> = error.to_string().into();
                    if self.lost.set(why).is_ok() {
                        tracing::error!(%error, "data can only be read until hob is started again");
                    }
                }
                self.stale.store(true, Ordering::Release);
            }
            DataError::StorageFull { .. } => self.stale.store(true, Ordering::Release),
            _ => {}
        }
    }

    /// Opens the file again if it must be; for reading alone if it cannot be written.
    fn open_again(&self, db: &mut Option<Opened>, how: Use) -> Result<(), DataError> {
        if !self.must_open(how) {
            return Ok(());
        }
        let old = db.take();
        // Until one of the two below went well.
        self.stale.store(true, Ordering::Release);
        // First, because two in one process would lock each other out.
        self.close(old);
        let refused = match self.lost.get() {
            Some(why) => DataError::ReadOnly { why: Arc::clone(why) },
            None => match contained(|| (self.open)(&self.path).map_err(storage("open the data again"))) {
                Ok(new) => {
                    *db = Some(new);
                    self.stale.store(false, Ordering::Release);
                    self.shadow.store(false, Ordering::Release);
                    tracing::debug!("opened the data again after an error");
                    return Ok(());
                }
                Err(error) => error,
            },
        };
        *db = Some(contained(|| open_shadow(&self.path))?);
        self.stale.store(false, Ordering::Release);
        self.shadow.store(true, Ordering::Release);
        match how {
            Use::Read => Ok(()),
            Use::Write => Err(refused),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let db = self.db.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        self.close(db);
    }
}

/// One transaction, which may take so much of a full disk.
pub(super) fn transact<T>(
    opened: &Opened,
    room: Room,
    op: impl FnOnce(&WriteTransaction) -> Result<(T, Commit), DataError>,
) -> Result<T, DataError> {
    if let Some(commits) = &opened.commits {
        commits.may_take(room);
    }
    let mut txn = opened.db.begin_write().map_err(storage("begin to write"))?;
    // Two phases are part of it.
    txn.set_quick_repair(true);
    // An error drops the transaction, which undoes it. redb may panic there too, where a page is damaged: not while it panics already, which would
    // end the process.
    let (value, commit) = contained(|| op(&txn))?;
    match commit {
        Commit::Yes => {
            let doing = "write to the disk";
            let Some(commits) = &opened.commits else { return Err(storage(doing)(redb::Error::DatabaseClosed)) };
            commits.begin();
            let committed = txn.commit().map_err(storage(doing));
            commits.end(committed.is_ok()).map_err(io_error(doing))?;
            committed?;
        }
        Commit::No => txn.abort().map_err(storage("end a transaction"))?,
    }
    Ok(value)
}

/// Whether redb only repeats that something failed before.
pub(super) fn is_latched(error: &DataError) -> bool {
    matches!(error, DataError::Storage { source, .. } if matches!(**source, redb::Error::PreviousIo))
}

fn contained<T>(op: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    caught(op).unwrap_or_else(|what| Err(DataError::Damaged { what }))
}

/// Memory for pages while nothing is written.
const SHADOW_CACHE_BYTES: usize = 8 << 20;

fn open_shadow(path: &Path) -> Result<Opened, DataError> {
    let doing = "open the data for reading";
    let file = File::open(path).map_err(io_error(doing))?;
    let len = file.metadata().map_err(io_error(doing))?.len();
    let overlay = Overlay::new(file, len);
    match File::open(log_path(path)) {
        Ok(log) => {
            let len = log.metadata().map_err(io_error(doing))?.len();
            log::replay(&Overlay::new(log, len), &overlay).map_err(io_error(doing))?;
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(io_error(doing)(error)),
    }
    let builder = &mut Database::builder();
    let db = builder.set_cache_size(SHADOW_CACHE_BYTES).create_with_backend(overlay).map_err(storage(doing))?;
    Ok(Opened { db, commits: None })
}

/// Checks every page of the file at `path`, without changing a byte.
pub(super) fn verify(path: &Path) -> Result<(), DataError> {
    contained(|| {
        let mut shadow = open_shadow(path)?;
        let checked = shadow.db.check_integrity().map_err(storage("check the data"));
        abandon(shadow.db);
        let whole = checked?;
        let damaged = || DataError::Damaged { what: "a page is not what was written".into() };
        if whole { Ok(()) } else { Err(damaged()) }
    })
}

/// Reads the file at `path` without changing a byte.
pub(super) fn look<T>(path: &Path, op: impl FnOnce(&ReadTransaction) -> Result<T, DataError>) -> Result<T, DataError> {
    contained(|| {
        let shadow = open_shadow(path)?;
        let found = shadow.db.begin_read().map_err(storage("begin to read")).and_then(|txn| op(&txn));
        abandon(shadow.db);
        found
    })
}

/// Makes a file without a row under another name and renames it: a start that is killed in between leaves no half of a store.
fn create_file(path: &Path, prepare: Prepare) -> Result<(), DataError> {
    let doing = "create the data's file";
    // A log that is left belongs to a file that was here before.
    match fs::remove_file(log_path(path)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error(doing)(error)),
        _ => {}
    }
    let new = path.with_extension("redb.new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&new).map_err(io_error(doing))?;
    let db = Database::builder().create_file(file).map_err(storage(doing))?;
    let mut txn = db.begin_write().map_err(storage(doing))?;
    txn.set_quick_repair(true);
    prepare(&txn)?;
    txn.commit().map_err(storage(doing))?;
    drop(db);
    fs::rename(&new, path).map_err(io_error(doing))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(dir).map_err(io_error(doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_compacted_up_to_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let open = |path: &Path| Opened::at(path, Database::builder().set_cache_size(1 << 20));
        let shared = Shared::open(&path, Box::new(open), |_| Ok(())).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let len = file.metadata().unwrap().len();
        // Nothing reads what is behind its end.
        for (len, compacted) in [(COMPACT_BYTES_MAX + 1, false), (COMPACT_BYTES_MAX, true)] {
            file.set_len(len).unwrap();
            assert_eq!(shared.compact().unwrap(), compacted, "{len}");
        }
        assert!(file.metadata().unwrap().len() <= len, "what was free behind its end is given back");
    }

    fn shared(dir: &Path) -> Shared {
        let open = |path: &Path| Opened::at(path, Database::builder().set_cache_size(1 << 20));
        Shared::open(&dir.join("data"), Box::new(open), |_| Ok(())).unwrap()
    }

    const TABLE: redb::TableDefinition<'_, u64, &[u8]> = redb::TableDefinition::new("t");

    fn write(shared: &Shared, key: u64, value: &[u8]) -> Result<(), DataError> {
        let op = |txn: &WriteTransaction| {
            txn.open_table(TABLE).unwrap().insert(key, value).unwrap();
            Ok(((), Commit::Yes))
        };
        shared.with_db(Use::Write, |db| transact(db, Room::Free, op))
    }

    fn read(shared: &Shared, key: u64) -> Vec<u8> {
        let get = |db: &Opened| {
            let table = db.db.begin_read().unwrap().open_table(TABLE).unwrap();
            Ok(redb::ReadableTable::get(&table, key).unwrap().unwrap().value().to_vec())
        };
        shared.with_db(Use::Read, get).unwrap()
    }

    #[test]
    fn a_file_with_damage_that_is_known_or_can_be_seen_is_not_compacted() {
        let dir = tempfile::tempdir().unwrap();
        let known = shared(dir.path());
        write(&known, 1, b"value").unwrap();
        assert!(known.compact().unwrap());
        let met = known.with_db(Use::Read, |_| -> Result<(), DataError> { panic!("a page is not what was written") });
        assert!(matches!(met, Err(DataError::Damaged { .. })) && known.is_damaged());
        assert!(!known.compact().unwrap());
        assert_eq!(read(&known, 1), b"value");

        let dir = tempfile::tempdir().unwrap();
        let seen = shared(dir.path());
        let value = [7; 1000];
        (0..100).for_each(|key| write(&seen, key, &value).unwrap());
        // Before that the log has what it has written too.
        drop(seen);
        let path = dir.path().join("data");
        let bytes = fs::read(&path).unwrap();
        let at = bytes.windows(value.len()).position(|window| window == value).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        // Of the newest version of the page too, wherever it lies.
        for at in (at..bytes.len() - value.len()).filter(|at| bytes[*at..*at + value.len()] == value) {
            std::os::unix::fs::FileExt::write_at(&file, b"x", at as u64 + 500).unwrap();
        }
        let seen = shared(dir.path());
        assert!(!seen.compact().unwrap() && seen.is_damaged());
        write(&seen, 200, b"after").unwrap();
        assert_eq!(read(&seen, 200), b"after");
    }

    #[test]
    fn a_write_that_meets_damage_leaves_the_last_commit() {
        let dir = tempfile::tempdir().unwrap();
        let file = shared(dir.path());
        write(&file, 1, b"first").unwrap();
        for damage in [true, false] {
            let op = |txn: &WriteTransaction| -> Result<((), Commit), DataError> {
                txn.open_table(TABLE).unwrap().insert(1, &b"half"[..]).unwrap();
                match damage {
                    true => panic!("a page is not what was written"),
                    false => Err(DataError::Damaged { what: "a page is not what was written".into() }),
                }
            };
            let met = file.with_db(Use::Write, |db| transact(db, Room::Free, op));
            assert!(matches!(met, Err(DataError::Damaged { .. })));
            assert_eq!(read(&file, 1), b"first");
            write(&file, 2, b"second").unwrap();
        }
        drop(file);
        let file = shared(dir.path());
        assert_eq!((read(&file, 1), read(&file, 2)), (b"first".to_vec(), b"second".to_vec()));
    }
}
