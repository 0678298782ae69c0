//! The store: one redb file for all data of a node. Everyone reads; one thread writes, many writes with one commit.
//!
//! ```text
//! write ──> queue (bounded by number and bytes; full = Busy) ──> thread "hob-store": takes what waits, up to a group
//!            one transaction: sweeps, then each job in order ──> one commit on disk ──> each job's `after`, its Ack
//! ```
//!
//! A job that is refused changes nothing and costs the others of its group nothing. An I/O error undoes the whole group, and each
//! job in it gets that error. Commits are two-phase: with one phase, an open after a crash would trust checksums that are no match
//! for bytes that a tenant chose. They also keep redb's account of free space (`quick_repair`), so that this open is fast whatever
//! the size.
//!
//! After an I/O error redb refuses everything until it is opened again. A full disk heals by that. After any other error the
//! kernel may have forgotten what it did not write, so nothing is written until the daemon was started again
//! ([`DataError::ReadOnly`]). Meanwhile reading goes on, from the file as it is, through an `Overlay` that writes nothing.
//!
//! Owns the file and the thread. Knows nothing about buckets: it runs closures. Invariant: what was acknowledged is on disk. A read
//! sees whole commits only, and all that were acknowledged before it began.

use std::collections::VecDeque;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

use super::clock::Clock;
use super::error::{DataError, io_error, storage};
use super::row::Numbers;
use crate::storage::caught;
use crate::storage::disk::sync_dir;
use crate::storage::overlay::Overlay;

/// Jobs that wait at most; one more is [`DataError::Busy`].
pub const QUEUE_JOBS_MAX: usize = 4096;
/// Bytes that wait at most, as the jobs say; one more is [`DataError::Busy`]. A job alone may pass it.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
/// Jobs in one commit.
const GROUP_JOBS_MAX: usize = 256;
/// Bytes in one commit, as the jobs say; a job alone may pass it.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// How often the clock is looked at while something is to be swept later.
const TICK: Duration = Duration::from_secs(1);
/// How long a sweep that found damage rests.
const SWEEP_REST_MS: u64 = 60_000;

/// Small numbers of the whole store, each under its name.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const CLOCK: &str = "clock";

/// Whether a transaction that went well is to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// It changed something.
    Yes,
    /// It changed nothing.
    No,
}

/// What a write will answer: a future, ready at once or when the write is on disk. Dropping it does not undo or cancel the write.
pub struct Ack<T>(State<T>);

enum State<T> {
    Ready(Option<Result<T, DataError>>),
    Waiting(oneshot::Receiver<Result<T, DataError>>),
}

impl<T> Ack<T> {
    /// One that is ready.
    pub fn ready(result: Result<T, DataError>) -> Self {
        Self(State::Ready(Some(result)))
    }

    /// Blocks the thread until the answer is there. Not for threads that run futures.
    ///
    /// # Errors
    /// Those of the write.
    pub fn wait(self) -> Result<T, DataError> {
        match self.0 {
            State::Ready(result) => result.unwrap_or(Err(DataError::Closed)),
            State::Waiting(receiver) => receiver.blocking_recv().unwrap_or(Err(DataError::Closed)),
        }
    }
}

/// Nothing in it is pinned.
impl<T> Unpin for Ack<T> {}

impl<T> Future for Ack<T> {
    type Output = Result<T, DataError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.get_mut().0 {
            State::Ready(result) => Poll::Ready(result.take().unwrap_or(Err(DataError::Closed))),
            // The sender goes without an answer only if the thread is gone.
            State::Waiting(receiver) => Poll::Ready(ready!(Pin::new(receiver).poll(cx)).unwrap_or(Err(DataError::Closed))),
        }
    }
}

impl<T> fmt::Debug for Ack<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            State::Ready(_) => "Ack(ready)",
            State::Waiting(_) => "Ack(waiting)",
        })
    }
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// Whether it changed anything.
    pub commit: Commit,
    /// When it has something to do again, as [`Clock::now_ms`] tells time; `None` if nothing is known of. What a later job adds
    /// need not be foreseen.
    pub next_ms: Option<u64>,
}

/// Work that the store does by itself, at the beginning of each group and when it is due: removing what expired or was deleted.
/// It must be bounded. It gets the time.
pub type Sweep = Box<dyn FnMut(&WriteTransaction, u64) -> Result<Swept, DataError> + Send>;

/// Makes tables.
pub type Prepare = fn(&WriteTransaction) -> Result<(), DataError>;

/// How the file is opened; tests put a failing disk in between.
pub(super) type Open = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// See the module.
pub struct Store {
    file: Arc<Shared>,
    clock: Clock,
    /// `None` only while it is dropped.
    queue: Option<SyncSender<Queued>>,
    queued_bytes: Arc<AtomicUsize>,
    writer: Option<JoinHandle<()>>,
}

impl Store {
    /// Opens the store in the file `path`; makes it if it is missing. `page_cache_bytes`: memory for pages of the file, besides
    /// which there is the system's own cache. One process may have it open at a time. `prepare` makes the tables, so that readers
    /// find them. `sweeps` run on the writer's thread.
    ///
    /// # Errors
    /// [`DataError::Damaged`] if the file is no store, else what the file system says.
    ///
    /// # Cost
    /// A few ms, whatever the size and however it was closed; a new one a few fsyncs. Blocks.
    pub fn open(
        path: &Path,
        page_cache_bytes: usize,
        clock: Clock,
        prepare: Prepare,
        sweeps: Vec<Sweep>,
    ) -> Result<Self, DataError> {
        let open = move |path: &Path| Database::builder().set_cache_size(page_cache_bytes).open(path);
        Self::open_with(path, Box::new(open), clock, prepare, sweeps)
    }

    pub(super) fn open_with(
        path: &Path,
        open: Open,
        clock: Clock,
        prepare: Prepare,
        sweeps: Vec<Sweep>,
    ) -> Result<Self, DataError> {
        if !path.exists() {
            create_file(path)?;
        }
        let db = contained(|| open(path).map_err(storage("open the data")))?;
        let (stale, shadow, lost) = (AtomicBool::new(false), AtomicBool::new(false), OnceLock::new());
        let file = Arc::new(Shared { path: path.into(), open, db: RwLock::new(Some(db)), stale, shadow, lost });
        let begin = |txn: &WriteTransaction| prepare(txn).and_then(|()| Ok((read_mark(txn)?, Commit::Yes)));
        let mark = file.with_db(Use::Write, |db| transact(db, begin))?;
        clock.raise(mark.unwrap_or(0));

        let (queue, waiting) = sync_channel(QUEUE_JOBS_MAX);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let sweeps = sweeps.into_iter().map(|sweep| Resting { sweep, until_ms: 0 }).collect();
        let writer = Writer {
            file: Arc::clone(&file),
            clock: clock.clone(),
            waiting,
            queued_bytes: Arc::clone(&queued_bytes),
            sweeps,
            // What waits from before is found by the first sweep.
            due_ms: Some(0),
        };
        let writer = std::thread::Builder::new().name("hob-store".into()).spawn(|| writer.run());
        let writer = Some(writer.map_err(io_error("start the thread that writes data"))?);
        Ok(Self { file, clock, queue: Some(queue), queued_bytes, writer })
    }

    /// The clock that data lives by.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Runs `op` in a fresh transaction, which sees the newest commit and no later one. `op` runs twice if the file had to be opened
    /// again. Keep it short: the file grows while others write.
    ///
    /// # Errors
    /// Those of `op`, and of the disk.
    ///
    /// # Cost
    /// Some 0.4 us besides `op`. May block on the disk.
    pub fn read<T>(&self, op: impl Fn(&ReadTransaction) -> Result<T, DataError>) -> Result<T, DataError> {
        let attempt = || self.file.with_db(Use::Read, |db| op(&db.begin_read().map_err(storage("begin to read"))?));
        match attempt() {
            // Somebody else met the error before; the file is opened again by now.
            Err(error) if is_latched(&error) => attempt(),
            result => result,
        }
    }

    /// Queues a job. `op` gets the transaction of its group and the time, and decides in there; it must check everything before it
    /// changes anything, because an error that is a refusal leaves the group's other changes in place. `cost_bytes`: roughly what
    /// it writes. The answer is there when the change is on disk.
    ///
    /// # Errors
    /// Through the [`Ack`]: [`DataError::Busy`] if too much waits, those of `op`, and those of the disk.
    pub fn write<T, F>(&self, cost_bytes: usize, op: F) -> Ack<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction, u64) -> Result<(T, Commit), DataError> + Send + 'static,
    {
        self.write_then(cost_bytes, op, |_| {})
    }

    /// As [`Store::write`]; `after` runs on the writer's thread once readers see what was committed and before the answer goes
    /// out, also when the write failed, and also (with [`DataError::Busy`] or [`DataError::Closed`]) if it was never begun. It must
    /// not block or panic.
    pub fn write_then<T, F, A>(&self, cost_bytes: usize, op: F, after: A) -> Ack<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction, u64) -> Result<(T, Commit), DataError> + Send + 'static,
        A: FnOnce(&Result<T, DataError>) + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(Pending { op: Some(op), result: None, end: Some((after, sender)) });
        let before = self.queued_bytes.fetch_add(cost_bytes, Ordering::AcqRel);
        let queued = Queued { cost_bytes, job };
        let Some(queue) = self.queue.as_ref() else { return Ack::ready(Err(DataError::Closed)) };
        let refused = match () {
            () if before > 0 && before.saturating_add(cost_bytes) > QUEUE_BYTES_MAX => Some((queued, DataError::Busy)),
            () => match queue.try_send(queued) {
                Ok(()) => None,
                Err(TrySendError::Full(queued)) => Some((queued, DataError::Busy)),
                Err(TrySendError::Disconnected(queued)) => Some((queued, DataError::Closed)),
            },
        };
        if let Some((queued, error)) = refused {
            self.queued_bytes.fetch_sub(cost_bytes, Ordering::AcqRel);
            queued.job.finish(Some(&error));
        }
        Ack(State::Waiting(receiver))
    }

    /// Why nothing is written any more, if so.
    #[must_use]
    pub fn read_only(&self) -> Option<&str> {
        self.file.lost.get().map(AsRef::as_ref)
    }
}

impl Drop for Store {
    /// Writes what waits, then closes the file.
    fn drop(&mut self) {
        drop(self.queue.take());
        if self.writer.take().is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the thread that writes data ended with a panic");
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.file.path).field("read_only", &self.read_only()).finish_non_exhaustive()
    }
}

struct Queued {
    cost_bytes: usize,
    job: Box<dyn Job>,
}

trait Job: Send {
    /// Runs it once, within a transaction. An error ends the group.
    fn run(&mut self, txn: &WriteTransaction, now_ms: u64) -> Result<Commit, DataError>;
    /// Answers. `failed`: why its group came to nothing.
    fn finish(self: Box<Self>, failed: Option<&DataError>);
}

struct Pending<T, F, A> {
    op: Option<F>,
    result: Option<Result<T, DataError>>,
    end: Option<(A, oneshot::Sender<Result<T, DataError>>)>,
}

impl<T, F, A> Job for Pending<T, F, A>
where
    T: Send,
    F: FnOnce(&WriteTransaction, u64) -> Result<(T, Commit), DataError> + Send,
    A: FnOnce(&Result<T, DataError>) + Send,
{
    fn run(&mut self, txn: &WriteTransaction, now_ms: u64) -> Result<Commit, DataError> {
        let Some(op) = self.op.take() else { return Ok(Commit::No) };
        match op(txn, now_ms) {
            Ok((value, commit)) => {
                self.result = Some(Ok(value));
                Ok(commit)
            }
            Err(error) if error.is_refusal() => {
                self.result = Some(Err(error));
                Ok(Commit::No)
            }
            Err(error) => Err(error),
        }
    }

    fn finish(mut self: Box<Self>, failed: Option<&DataError>) {
        let result = match (failed, self.result.take()) {
            // A refusal stands whatever became of the others, except that what it saw may be gone with them.
            (Some(error), _) => Err(error.clone()),
            (None, Some(result)) => result,
            (None, None) => Err(DataError::Closed),
        };
        if let Some((after, sender)) = self.end.take() {
            after(&result);
            // Who asked may have gone.
            let _gone = sender.send(result);
        }
    }
}

struct Resting {
    sweep: Sweep,
    /// Not run before.
    until_ms: u64,
}

/// The thread that writes.
struct Writer {
    file: Arc<Shared>,
    clock: Clock,
    waiting: Receiver<Queued>,
    queued_bytes: Arc<AtomicUsize>,
    sweeps: Vec<Resting>,
    /// When to sweep though nothing is to be written.
    due_ms: Option<u64>,
}

impl Writer {
    fn run(mut self) {
        let mut carried = None;
        loop {
            let first = match (carried.take(), self.due_ms) {
                (Some(queued), _) => Some(queued),
                (None, None) => match self.waiting.recv() {
                    Ok(queued) => Some(queued),
                    Err(_) => return,
                },
                (None, Some(due_ms)) => {
                    let left = Duration::from_millis(due_ms.saturating_sub(self.clock.now_ms()));
                    match self.waiting.recv_timeout(left.min(TICK)) {
                        Ok(queued) => Some(queued),
                        Err(RecvTimeoutError::Timeout) if due_ms > self.clock.now_ms() => continue,
                        Err(RecvTimeoutError::Timeout) => None,
                        Err(RecvTimeoutError::Disconnected) => return,
                    }
                }
            };
            let mut group = VecDeque::new();
            let mut bytes = 0;
            let mut next = first;
            while let Some(queued) = next.take() {
                if bytes > 0 && bytes + queued.cost_bytes > GROUP_BYTES_MAX {
                    carried = Some(queued);
                    break;
                }
                bytes += queued.cost_bytes;
                group.push_back(queued);
                if group.len() < GROUP_JOBS_MAX {
                    next = self.waiting.try_recv().ok();
                }
            }
            let failed = self.commit(&mut group).err();
            if let Some(error) = &failed {
                tracing::warn!(%error, writes = group.len(), "data was not written");
                // Sweeping alone must not try at once again.
                self.due_ms = Some(self.clock.now_ms().saturating_add(SWEEP_REST_MS));
            }
            // Before the answers, which may be what others wait for to send more.
            self.queued_bytes.fetch_sub(group.iter().map(|queued| queued.cost_bytes).sum(), Ordering::AcqRel);
            for queued in group {
                queued.job.finish(failed.as_ref());
            }
        }
    }

    /// One transaction.
    fn commit(&mut self, group: &mut VecDeque<Queued>) -> Result<(), DataError> {
        let (file, clock) = (Arc::clone(&self.file), self.clock.clone());
        let now_ms = clock.now_ms();
        let mut due_ms = None::<u64>;
        let sweeps = &mut self.sweeps;
        let committed = file.with_db(Use::Write, |db| {
            transact(db, |txn| {
                let mut commit = sweep(txn, sweeps, now_ms, &mut due_ms)?;
                for queued in &mut *group {
                    if queued.job.run(txn, now_ms)? == Commit::Yes {
                        commit = Commit::Yes;
                    }
                }
                if commit == Commit::Yes {
                    write_mark(txn, now_ms)?;
                }
                Ok((commit, commit))
            })
        })?;
        // What was written may expire soon.
        let soon = (committed == Commit::Yes).then(|| now_ms.saturating_add(1000));
        self.due_ms = due_ms.into_iter().chain(soon).min();
        Ok(())
    }
}

/// Runs the sweeps. One that finds damage rests, so that it keeps nobody from writing: it must find it before it changes anything.
fn sweep(txn: &WriteTransaction, sweeps: &mut [Resting], now_ms: u64, due_ms: &mut Option<u64>) -> Result<Commit, DataError> {
    let mut commit = Commit::No;
    for resting in sweeps {
        let next_ms = if resting.until_ms > now_ms {
            Some(resting.until_ms)
        } else {
            match (resting.sweep)(txn, now_ms) {
                Ok(swept) => {
                    if swept.commit == Commit::Yes {
                        commit = Commit::Yes;
                    }
                    swept.next_ms
                }
                Err(error @ (DataError::Damaged { .. } | DataError::Corrupt { .. })) => {
                    tracing::error!(%error, "what has expired or was deleted cannot be swept");
                    resting.until_ms = now_ms.saturating_add(SWEEP_REST_MS);
                    Some(resting.until_ms)
                }
                Err(error) => return Err(error),
            }
        };
        *due_ms = (*due_ms).into_iter().chain(next_ms).min();
    }
    Ok(commit)
}

fn transact<T>(db: &Database, op: impl FnOnce(&WriteTransaction) -> Result<(T, Commit), DataError>) -> Result<T, DataError> {
    let mut txn = db.begin_write().map_err(storage("begin to write"))?;
    // Two phases are part of it.
    txn.set_quick_repair(true);
    // An error drops the transaction, which undoes it.
    let (value, commit) = op(&txn)?;
    match commit {
        Commit::Yes => txn.commit().map_err(storage("write to the disk"))?,
        Commit::No => txn.abort().map_err(storage("end a transaction"))?,
    }
    Ok(value)
}

fn read_mark(txn: &WriteTransaction) -> Result<Option<u64>, DataError> {
    let doing = "read the mark of the clock";
    let table = txn.open_table(META).map_err(storage(doing))?;
    let Some(row) = table.get(CLOCK).map_err(storage(doing))? else { return Ok(None) };
    let Some(Numbers([mark])) = Numbers::open(&[CLOCK.as_bytes()], row.value()) else {
        return Err(DataError::Damaged { what: "the mark of the clock is not what was written".into() });
    };
    Ok(Some(mark))
}

fn write_mark(txn: &WriteTransaction, now_ms: u64) -> Result<(), DataError> {
    let doing = "write the mark of the clock";
    let row = Numbers([now_ms]).seal(&[CLOCK.as_bytes()]);
    txn.open_table(META).map_err(storage(doing))?.insert(CLOCK, row.as_slice()).map_err(storage(doing))?;
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
}

/// The file and how it is opened again.
struct Shared {
    path: PathBuf,
    open: Open,
    /// `None` after an opening that failed.
    db: RwLock<Option<Database>>,
    /// Whether `db` must be opened again before its next use.
    stale: AtomicBool,
    /// Whether `db` writes nothing to the disk, so that a write must open it again.
    shadow: AtomicBool,
    /// Why nothing is written until the next start.
    lost: OnceLock<Arc<str>>,
}

impl Shared {
    fn with_db<T>(&self, how: Use, op: impl FnOnce(&Database) -> Result<T, DataError>) -> Result<T, DataError> {
        if how == Use::Write
            && let Some(why) = self.lost.get()
        {
            return Err(DataError::ReadOnly { why: Arc::clone(why) });
        }
        if self.must_open(how) {
            self.reopen(how)?;
        }
        let db = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = db.as_ref() else { return Err(storage("use the data")(redb::Error::DatabaseClosed)) };
        let result = caught(|| op(db)).unwrap_or_else(|what| {
            // What redb holds in memory is thrown away.
            self.stale.store(true, Ordering::Release);
            Err(DataError::Damaged { what })
        });
        result.inspect_err(|error| self.note(error))
    }

    fn must_open(&self, how: Use) -> bool {
        self.stale.load(Ordering::Acquire) || (how == Use::Write && self.shadow.load(Ordering::Acquire))
    }

    fn note(&self, error: &DataError) {
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

    /// Opens the file again; for reading alone if it cannot be written.
    fn reopen(&self, how: Use) -> Result<(), DataError> {
        let mut db = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if !self.must_open(how) {
            return Ok(());
        }
        let old = db.take();
        // Until one of the two below went well.
        self.stale.store(true, Ordering::Release);
        // First, because two in one process would lock each other out. redb writes when it closes.
        if let Err(what) = caught(|| drop(old)) {
            tracing::error!(what, "the data could not be closed in order");
        }
        let refused = match self.lost.get() {
            Some(why) => DataError::ReadOnly { why: Arc::clone(why) },
            None => match contained(|| (self.open)(&self.path).map_err(storage("open the data again"))) {
                Ok(new) => {
                    *db = Some(new);
                    self.stale.store(false, Ordering::Release);
                    self.shadow.store(false, Ordering::Release);
                    tracing::warn!("opened the data again after an error");
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
        // redb writes once more when it closes, and panics there if it did so before.
        if let Err(what) = caught(|| drop(db)) {
            tracing::error!(what, "the data could not be closed in order");
        }
    }
}

fn is_latched(error: &DataError) -> bool {
    matches!(error, DataError::Storage { source, .. } if matches!(**source, redb::Error::PreviousIo))
}

fn contained<T>(op: impl FnOnce() -> Result<T, DataError>) -> Result<T, DataError> {
    caught(op).unwrap_or_else(|what| Err(DataError::Damaged { what }))
}

/// Memory for pages while nothing is written.
const SHADOW_CACHE_BYTES: usize = 8 << 20;

fn open_shadow(path: &Path) -> Result<Database, DataError> {
    let doing = "open the data for reading";
    let file = File::open(path).map_err(io_error(doing))?;
    let len = file.metadata().map_err(io_error(doing))?.len();
    let builder = &mut Database::builder();
    builder.set_cache_size(SHADOW_CACHE_BYTES).create_with_backend(Overlay::new(file, len)).map_err(storage(doing))
}

/// Checks every page of the file at `path`, without changing a byte.
pub(super) fn verify(path: &Path) -> Result<(), DataError> {
    contained(|| {
        let whole = open_shadow(path)?.check_integrity().map_err(storage("check the data"))?;
        let damaged = || DataError::Damaged { what: "a page is not what was written".into() };
        if whole { Ok(()) } else { Err(damaged()) }
    })
}

/// Makes an empty file under another name and renames it: a start that is killed in between leaves no half of a store.
fn create_file(path: &Path) -> Result<(), DataError> {
    let doing = "create the data's file";
    let new = path.with_extension("redb.new");
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let file = options.open(&new).map_err(io_error(doing))?;
    drop(Database::builder().create_file(file).map_err(storage(doing))?);
    fs::rename(&new, path).map_err(io_error(doing))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    sync_dir(dir).map_err(io_error(doing))
}
