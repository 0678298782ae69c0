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
//! the size. They become durable in a log before the file (`storage/log.rs`).
//!
//! After an I/O error redb refuses everything until it is opened again. A full disk heals by that. On one, what only removes may take a
//! reserve ([`Room`]), and nothing adds before that is whole again. After any other error the
//! kernel may have forgotten what it did not write, so nothing is written until the daemon was started again
//! ([`DataError::ReadOnly`]). Meanwhile reading goes on, from the file as it is, through an `Overlay` that writes nothing.
//!
//! Owns the queue; the thread is in `writer.rs`, the file in `file.rs`. Knows nothing about buckets: it runs closures. Invariant: what was acknowledged is on disk. A read
//! sees whole commits only, and all that were acknowledged before it began.

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;

use redb::{Database, ReadTransaction, ReadableDatabase, StorageError, TableHandle, UntypedTableHandle, WriteTransaction};
use tokio::sync::oneshot;

use super::clock::Clock;
use super::error::{DataError, io_error, storage};
use super::file::{Open, Opened, Shared, Use, is_latched, transact};
use super::writer::{Compact, Job, Load, Queued, Resting, Writer, read_mark};
use crate::storage::log::Room;

/// Jobs that wait at most; one more is [`DataError::Busy`].
pub const QUEUE_JOBS_MAX: usize = 4096;
/// Bytes that wait at most, as the jobs say; one more is [`DataError::Busy`]. A job alone may pass it.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;
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

    /// The answer if it is there already; else what waits for it.
    ///
    /// # Errors
    /// The [`Ack`] itself, if it waits. The inner error is that of the write.
    pub fn now(self) -> Result<Result<T, DataError>, Self> {
        match self.0 {
            State::Ready(result) => Ok(result.unwrap_or(Err(DataError::Closed))),
            State::Waiting(mut receiver) => match receiver.try_recv() {
                Ok(result) => Ok(result),
                Err(oneshot::error::TryRecvError::Closed) => Ok(Err(DataError::Closed)),
                Err(oneshot::error::TryRecvError::Empty) => Err(Self(State::Waiting(receiver))),
            },
        }
    }

    /// One that somebody else answers: [`DataError::Closed`] if the sender goes without.
    pub(super) fn pending() -> (oneshot::Sender<Result<T, DataError>>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(State::Waiting(receiver)))
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

/// Makes tables, in a file that is new or older than they are.
pub type Prepare = fn(&WriteTransaction) -> Result<(), DataError>;

/// Names of the tables that a transaction finds.
pub(super) fn tables(listed: Result<impl Iterator<Item = UntypedTableHandle>, StorageError>) -> Result<Vec<String>, DataError> {
    Ok(listed.map_err(storage("list the tables"))?.map(|table| table.name().to_owned()).collect())
}

/// See the module.
pub struct Store {
    file: Arc<Shared>,
    clock: Clock,
    /// `None` only while it is dropped.
    queue: Option<SyncSender<Queued>>,
    load: Arc<Load>,
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
    /// A few ms, whatever the size, and after a crash what it takes to read the log, which has at most 128 MiB; a new one a few
    /// fsyncs. Blocks.
    pub fn open(
        path: &Path,
        page_cache_bytes: usize,
        clock: Clock,
        prepare: Prepare,
        sweeps: Vec<Sweep>,
    ) -> Result<Self, DataError> {
        let open = move |path: &Path| Opened::at(path, Database::builder().set_cache_size(page_cache_bytes));
        Self::open_with(path, Box::new(open), clock, prepare, sweeps)
    }

    pub(super) fn open_with(
        path: &Path,
        open: Open,
        clock: Clock,
        prepare: Prepare,
        sweeps: Vec<Sweep>,
    ) -> Result<Self, DataError> {
        let file = Arc::new(Shared::open(path, open, prepare)?);
        let begin = |txn: &WriteTransaction| {
            let has_tables = !tables(txn.list_tables())?.is_empty();
            prepare(txn)?;
            // A file is made with its tables.
            if !has_tables && !tables(txn.list_tables())?.is_empty() {
                return Err(DataError::Damaged { what: "it has none of its tables".into() });
            }
            Ok((read_mark(txn)?, Commit::Yes))
        };
        let mark = file.with_db(Use::Write, |db| transact(db, Room::Reserve, begin))?;
        clock.raise(mark.unwrap_or(0));

        let (queue, waiting) = sync_channel(QUEUE_JOBS_MAX);
        let load = Arc::new(Load::default());
        let sweeps = sweeps.into_iter().map(|sweep| Resting { sweep, until_ms: 0 }).collect();
        let writer = Writer {
            file: Arc::clone(&file),
            clock: clock.clone(),
            waiting,
            load: Arc::clone(&load),
            sweeps,
            // What waits from before is found by the first sweep.
            due_ms: Some(0),
            failing: false,
            compact: Compact::default(),
        };
        let writer = std::thread::Builder::new().name("hob-store".into()).spawn(|| writer.run());
        let writer = Some(writer.map_err(io_error("start the thread that writes data"))?);
        Ok(Self { file, clock, queue: Some(queue), load, writer })
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
        let attempt = || self.file.with_db(Use::Read, |opened| op(&opened.db.begin_read().map_err(storage("begin to read"))?));
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
        self.queue(Room::Free, cost_bytes, op, after)
    }

    /// As [`Store::write`], for what gives room back: on a full disk it may take the reserve.
    pub(super) fn remove<T, F>(&self, cost_bytes: usize, op: F) -> Ack<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction, u64) -> Result<(T, Commit), DataError> + Send + 'static,
    {
        self.queue(Room::Reserve, cost_bytes, op, |_| {})
    }

    /// As [`Store::write_then`], with what it may take of a full disk.
    pub(super) fn queue<T, F, A>(&self, room: Room, cost_bytes: usize, op: F, after: A) -> Ack<T>
    where
        T: Send + 'static,
        F: FnOnce(&WriteTransaction, u64) -> Result<(T, Commit), DataError> + Send + 'static,
        A: FnOnce(&Result<T, DataError>) + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job = Box::new(Pending { op: Some(op), result: None, end: Some((after, sender)) });
        let before = self.load.bytes.fetch_add(cost_bytes, Ordering::AcqRel);
        self.load.jobs.fetch_add(1, Ordering::AcqRel);
        let queued = Queued { room, cost_bytes, job };
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
            self.load.bytes.fetch_sub(cost_bytes, Ordering::AcqRel);
            self.load.jobs.fetch_sub(1, Ordering::AcqRel);
            queued.job.finish(Some(&error));
        }
        Ack(State::Waiting(receiver))
    }

    /// An error that somebody met who writes files beside the store's. If the disk fails, nothing is written any more; if it is full, it gets what the
    /// store has free.
    pub(super) fn note(&self, error: &DataError) {
        if error.is_disk_failure() {
            self.file.note(error);
        }
        if error.is_full_disk() {
            self.make_room();
        }
    }

    /// See [`super::Data::make_room`].
    pub(super) fn make_room(&self) {
        self.load.wants_room.store(true, Ordering::Release);
        // So that the writer sees it; nobody waits for it.
        drop(self.remove(0, |_, _| Ok(((), Commit::No))));
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
