//! The thread that writes: it takes what waits, and makes one commit of it.
//!
//! Owns groups, sweeps and the mark of the clock. Knows nothing about what jobs write. Invariant: a job is answered once, after the
//! commit that it is part of.

use std::cell::Cell;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use redb::{ReadableTable, TableDefinition, WriteTransaction};

use super::clock::Clock;
use super::error::{DataError, storage};
use super::file::{Shared, Use, transact};
use super::row::Numbers;
use super::store::{Commit, Sweep};
use crate::storage::log::Room;

/// Jobs in one commit.
const GROUP_JOBS_MAX: usize = 256;
/// Bytes in one commit, as the jobs say; a job alone may pass it.
const GROUP_BYTES_MAX: usize = 16 << 20;
/// A group waits for those who were just answered, and are likely to write again, this part of what the last commit took: with 32
/// writers half of them came too late for each commit without that. Source: docs/decisions/0014-data-store.md.
const GATHER_PART: u32 = 4;
/// And never longer than this.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// How often the clock is looked at while something is to be swept later.
const TICK: Duration = Duration::from_secs(1);
/// How long a sweep that found damage rests.
const SWEEP_REST_MS: u64 = 60_000;

/// Small numbers of the whole store, each under its name.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const CLOCK: &str = "clock";

/// A job that waits.
pub(super) struct Queued {
    /// What it may take of a full disk.
    pub(super) room: Room,
    pub(super) cost_bytes: usize,
    pub(super) job: Box<dyn Job>,
}

/// What waits or is being written.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) jobs: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    /// Whether somebody beside the store found the disk full.
    pub(super) wants_room: AtomicBool,
}

/// What a group runs.
pub(super) trait Job: Send {
    /// Runs it once, within a transaction. An error ends the group.
    fn run(&mut self, txn: &WriteTransaction, now_ms: u64) -> Result<Commit, DataError>;
    /// Answers. `failed`: why its group came to nothing.
    fn finish(self: Box<Self>, failed: Option<&DataError>);
}

/// A sweep and its rest.
pub(super) struct Resting {
    pub(super) sweep: Sweep,
    /// Not run before.
    pub(super) until_ms: u64,
}

/// The thread that writes.
pub(super) struct Writer {
    pub(super) file: Arc<Shared>,
    pub(super) clock: Clock,
    pub(super) waiting: Receiver<Queued>,
    pub(super) load: Arc<Load>,
    pub(super) sweeps: Vec<Resting>,
    /// When to sweep though nothing is to be written.
    pub(super) due_ms: Option<u64>,
    /// Whether the last group came to nothing, which is logged once and not for each group.
    pub(super) failing: bool,
    pub(super) compact: Compact,
}

/// When the file is compacted because nothing else makes room on its disk.
#[derive(Debug, Default)]
pub(super) struct Compact {
    /// Something was removed since it was the last time.
    is_worth: bool,
    /// Not before.
    after: Option<Instant>,
}

impl Compact {
    /// After one that began then. `failed`: what was removed is still to be given back.
    fn done(begun: Instant, failed: bool) -> Self {
        Self { is_worth: failed, after: Some(Instant::now() + begun.elapsed() * COMPACT_REST) }
    }

    fn rests(&self) -> bool {
        self.after.is_some_and(|after| Instant::now() < after)
    }
}

impl Writer {
    pub(super) fn run(mut self) {
        let mut carried = None;
        // Who is likely to write: those answered last, and those who waited by then. And how long is worth waiting for them.
        let (mut likely, mut patience) = (0, Duration::ZERO);
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
            let mut group = Vec::new();
            carried = self.gather(&mut group, first, likely, patience);
            let begun = Instant::now();
            let failed = self.commit(&mut group).err();
            patience = (begun.elapsed() / GATHER_PART).min(GATHER_MAX);
            self.note(failed.as_ref());
            // Before the answers, which may be what others wait for to send more.
            self.load.bytes.fetch_sub(group.iter().map(|queued| queued.cost_bytes).sum(), Ordering::AcqRel);
            likely = self.load.jobs.fetch_sub(group.len(), Ordering::AcqRel);
            for queued in group {
                queued.job.finish(failed.as_ref());
            }
            if self.load.wants_room.swap(false, Ordering::AcqRel) || failed.is_some_and(|error| error.is_full_disk()) {
                self.make_room();
            }
        }
    }

    /// Gives the disk what the file and the log have free, for whoever writes beside them.
    fn make_room(&mut self) {
        if self.file.lost.get().is_some() || self.compact.rests() {
            return;
        }
        let begun = Instant::now();
        let compacted = if self.compact.is_worth { self.file.compact() } else { Ok(false) };
        let made = compacted.and_then(|compacted| Ok(self.file.give_back()? || compacted));
        self.compact = Compact::done(begun, self.compact.is_worth && made.is_err());
        match made {
            Ok(true) => tracing::info!("somebody found no room on the disk: it got what the data had free"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "somebody found no room on the disk, and what the data has free cannot be given back")
            }
        }
    }

    /// Fills a group with `first` and what waits; until there are `likely` jobs, it waits for more for at most `patience`. What is too
    /// large for it is the next one's first.
    fn gather(&self, group: &mut Vec<Queued>, first: Option<Queued>, likely: usize, patience: Duration) -> Option<Queued> {
        let until = Instant::now() + patience;
        // On a full disk what removes must not come to nothing with what adds.
        let apart = self.failing || self.file.is_short();
        let mut bytes = 0;
        let mut next = first;
        if self.file.is_damaged() {
            // Whoever meets the page again is not to take others along.
            group.extend(next);
            return None;
        }
        while let Some(queued) = next.take() {
            if bytes > 0 && bytes + queued.cost_bytes > GROUP_BYTES_MAX {
                return Some(queued);
            }
            if apart && group.first().is_some_and(|first| first.room != queued.room) {
                return Some(queued);
            }
            bytes += queued.cost_bytes;
            group.push(queued);
            if group.len() < GROUP_JOBS_MAX {
                next = self.waiting.try_recv().ok();
            }
            if next.is_none() && group.len() < likely.min(GROUP_JOBS_MAX) {
                next = self.waiting.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
            }
        }
        None
    }

    fn note(&mut self, failed: Option<&DataError>) {
        match (failed, self.failing) {
            (Some(error), false) => tracing::warn!(%error, "data is not written"),
            (None, true) => tracing::info!("data is written again"),
            (Some(_), true) | (None, false) => {}
        }
        self.failing = failed.is_some();
        if failed.is_some() {
            // Sweeping alone must not try at once again, and never again where nothing is written any more.
            let rest_ms = self.clock.now_ms().saturating_add(SWEEP_REST_MS);
            self.due_ms = self.file.lost.get().is_none().then_some(rest_ms);
        }
    }

    /// Makes the reserve of a full disk whole, before something is added.
    fn regain(&mut self) -> Result<(), DataError> {
        if self.file.regain()? {
            return Ok(());
        }
        let full =
            || DataError::StorageFull { doing: "keep a reserve of the disk", source: Arc::new(ErrorKind::StorageFull.into()) };
        if !self.compact.is_worth || self.compact.rests() {
            return Err(full());
        }
        let begun = Instant::now();
        let compacted = self.file.compact();
        self.compact = Compact::done(begun, compacted.is_err());
        match compacted? {
            // Of a large file the pages that were freed are as good.
            false => Ok(()),
            true if self.file.regain()? => Ok(()),
            true => Err(full()),
        }
    }

    /// One transaction.
    fn commit(&mut self, group: &mut [Queued]) -> Result<(), DataError> {
        let (file, clock) = (Arc::clone(&self.file), self.clock.clone());
        let now_ms = clock.now_ms();
        let room = if group.iter().all(|queued| queued.room == Room::Reserve) { Room::Reserve } else { Room::Free };
        if room == Room::Free && file.is_short() {
            self.regain()?;
        }
        let mut due_ms = None::<u64>;
        let (mut rounds, sweeps) = (self.sweeps.len(), &mut self.sweeps);
        let (sweeping, has_swept) = (Cell::new(false), Cell::new(false));
        let mut attempt = || {
            file.with_db(Use::Write, |db| {
                transact(db, room, |txn| {
                    sweeping.set(true);
                    let mut commit = sweep(txn, sweeps, now_ms, &mut due_ms)?;
                    has_swept.set(true);
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
            })
        };
        let committed = loop {
            sweeping.set(false);
            match attempt() {
                // A damaged page met a sweep, which rests now, and no job has run. It may meet the next one too.
                Err(error @ DataError::Damaged { .. }) if sweeping.get() && !has_swept.get() && rounds > 0 => {
                    tracing::error!(%error, "what has expired or was deleted cannot be swept");
                    rounds -= 1;
                }
                committed => break committed?,
            }
        };
        self.compact.is_worth |= room == Room::Reserve && committed == Commit::Yes;
        // What was written may expire soon.
        let soon = (committed == Commit::Yes).then(|| now_ms.saturating_add(1000));
        self.due_ms = due_ms.into_iter().chain(soon).min();
        Ok(())
    }
}

/// So many times as long as a compaction took nothing is compacted again.
const COMPACT_REST: u32 = 10;

/// Runs the sweeps. One that finds damage rests, so that it keeps nobody from writing: it must find it before it changes anything.
fn sweep(txn: &WriteTransaction, sweeps: &mut [Resting], now_ms: u64, due_ms: &mut Option<u64>) -> Result<Commit, DataError> {
    let mut commit = Commit::No;
    for resting in sweeps {
        let next_ms = if resting.until_ms > now_ms {
            Some(resting.until_ms)
        } else {
            // redb panics where a page is damaged, and then there is nothing to go on with: it rests from before.
            let began_ms = std::mem::replace(&mut resting.until_ms, now_ms.saturating_add(SWEEP_REST_MS));
            let swept = (resting.sweep)(txn, now_ms);
            resting.until_ms = began_ms;
            match swept {
                Ok(swept) => {
                    if swept.commit == Commit::Yes {
                        commit = Commit::Yes;
                    }
                    swept.next_ms
                }
                Err(error) if error.is_damage() => {
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

/// The latest time that is on disk.
pub(super) fn read_mark(txn: &WriteTransaction) -> Result<Option<u64>, DataError> {
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
