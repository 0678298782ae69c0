//! A log before a file: redb's commits become durable by one flush of bytes that lie side by side, in place of two of pages that lie apart.
//!
//! ```text
//! write  ──> the file (only the system's cache), and a copy in memory; the file's first page only in memory
//! flush  ──> the copies as one record, behind the last one in the log; fdatasync of the log; then the first page goes to the file
//! half of the log is full ──> records go to the other half, and a thread makes the file durable meanwhile
//! open   ──> records are written into the file again, in their order; then the log begins anew, with another key
//! ```
//!
//! redb never writes over what its last commit needs, but for its first page, which says where that is. So pages may reach the disk at any
//! time, and the first one must not before its record has. A commit of redb in two phases flushes twice; the first of the two only keeps
//! an order, which a record keeps too, so [`Commits`] says when that one need not wait for the disk.
//!
//! A record is known by a hash with the log's key, which nobody outside knows: what lies behind the last record are bytes of earlier ones,
//! and tenants chose those. A record that is not whole is the end of the log, as its flush never ended; unless a later one was begun, which is
//! an error: then it was whole once (`log/record.rs`).
//!
//! What the log takes is also the reserve of a full disk (`log/room.rs`).
//!
//! Owns both files while they are open. Knows nothing of what pages hold. Invariants: what a flush acknowledged is in the log or durable in
//! the file; whoever reads the file without the log while nobody has it open may see something else, and uses [`replay`].

mod record;
mod room;

use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use redb::{BackendError, StorageBackend};

use super::disk::is_full;
use record::{BEFORE, BLOCK, FIRST, Header, first_page, put, seal};

pub(crate) use record::replay;
pub(crate) use room::Room;

/// Bytes of each half. The larger, the more often a page is overwritten before it must be durable itself; what a start after a crash reads.
pub(crate) const HALF: u64 = 64 << 20;
/// The log grows by as much at once, so that its length, which is a flush of its own, seldom changes.
const STEP: u64 = 1 << 20;
/// Memory for a body that is kept from one record to the next.
const BODY_KEPT: usize = 1 << 20;

/// How redb's commits tell the log what they are about to do.
pub(crate) trait Commits: Send + Sync {
    /// What is written from now on may take so much.
    fn may_take(&self, room: Room);
    /// Whether the reserve was given up, or could not be had.
    fn is_short(&self) -> bool;
    /// Makes the reserve whole again. False if the disk has no room for it.
    ///
    /// # Errors
    /// What else the disk says.
    fn regain(&self) -> io::Result<bool>;
    /// Gives the disk what the log has beyond the reserve. The file is made durable before. False if it has no more.
    ///
    /// # Errors
    /// What the disk says. Nothing is written after that.
    fn give_back(&self) -> io::Result<bool>;
    /// Nothing more is written: what redb holds of it in memory cannot be trusted. What was made durable stays as it is for whoever opens the files
    /// next.
    fn fail(&self);
    /// A commit in two phases begins: the first flush that follows need not be durable, if another one follows.
    fn begin(&self);
    /// It has ended, and went well or not.
    ///
    /// # Errors
    /// What the disk says, if something of one that went well was still to be made durable.
    fn end(&self, went_well: bool) -> io::Result<()>;
}

/// A file and the log before it.
#[derive(Debug)]
pub(crate) struct Logged<D>(Arc<Inner<D>>);

#[derive(Debug)]
struct Inner<D> {
    file: Arc<D>,
    log: D,
    /// Bytes of each half of the log, a multiple of [`BLOCK`].
    half: u64,
    /// Whether the next flush is the first of two.
    first_of_two: AtomicBool,
    /// Whether `first` holds something.
    hides_first: AtomicBool,
    /// Whether what is written may take the reserve, and whether that is not whole.
    takes_reserve: AtomicBool,
    is_short: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    key: [u8; 32],
    /// Where the next record goes, and in which half that is.
    at: u64,
    half: u64,
    /// Of the next record, and of the first one in this half.
    number: u64,
    half_first: u64,
    /// The first record that the file does not have for good, and what the last record said of it.
    needs: u64,
    said: u64,
    /// Bytes of the log that were written at least once.
    len: u64,
    /// A record's body: what was written since the last one. The first [`BLOCK`] bytes are its head.
    body: Vec<u8>,
    /// More was written than a record holds: the file itself must be made durable.
    too_large: bool,
    /// What was written to the first page since then.
    first: Vec<(u64, Vec<u8>)>,
    /// The first page and the length of the file at the last flush.
    page: Vec<u8>,
    file_len: u64,
    /// Makes the file durable, with all records of the other half.
    syncing: Option<JoinHandle<io::Result<()>>>,
    /// Something failed: nothing more is written, and the log stays for the next start.
    failed: bool,
}

impl State {
    fn must_be_good(&self) -> io::Result<()> {
        match self.failed {
            true => Err(io::Error::other("the log of the data failed before")),
            false => Ok(()),
        }
    }
}

impl<D: StorageBackend> Logged<D> {
    /// Over `file`, whatever state it is in, and its `log`, which may be empty. `half`: bytes of each half of the log from now on.
    ///
    /// # Errors
    /// What the disk says. `InvalidData` if records are missing in the middle.
    ///
    /// # Cost
    /// Reads the log, which has at most two halves, and writes what it holds into the file. Blocks.
    pub(crate) fn open(file: D, log: D, half: u64) -> io::Result<Self> {
        if replay(&log, &file)? > 0 {
            file.sync_data()?;
        }
        let (page, file_len, len) = (first_page(&file)?, file.len()?, log.len()?);
        let state = State {
            key: [0; 32],
            at: 0,
            half: 0,
            number: 0,
            half_first: 0,
            needs: 0,
            said: 0,
            len,
            body: vec![0; BLOCK],
            too_large: false,
            first: Vec::new(),
            page,
            file_len,
            syncing: None,
            failed: false,
        };
        let inner = Inner {
            file: Arc::new(file),
            log,
            half,
            first_of_two: AtomicBool::new(false),
            hides_first: AtomicBool::new(false),
            // What redb writes when it opens must find room too.
            takes_reserve: AtomicBool::new(true),
            is_short: AtomicBool::new(false),
            state: Mutex::new(state),
        };
        let mut state = inner.lock();
        inner.begin_anew(&mut state)?;
        inner.cut(&mut state, inner.floor()?)?;
        inner.fill(&mut state)?;
        drop(state);
        Ok(Self(Arc::new(inner)))
    }

    /// Who tells it of commits.
    pub(crate) fn commits(&self) -> Arc<dyn Commits> {
        Arc::<Inner<D>>::clone(&self.0)
    }
}

impl<D: StorageBackend> Inner<D> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets all records. The file is durable as it is.
    fn begin_anew(&self, state: &mut State) -> io::Result<()> {
        getrandom::fill(&mut state.key).map_err(io::Error::other)?;
        Header { key: state.key, half: self.half }.write(&self.log)?;
        (state.at, state.half, state.number) = (BLOCK as u64, 0, 0);
        (state.half_first, state.needs, state.said) = (0, 0, 0);
        state.len = state.len.max(BLOCK as u64);
        Ok(())
    }

    /// Makes durable what was written since the last time.
    ///
    /// # Errors
    /// What the disk says. Nothing is written after that: the log stays as it is for the next start.
    fn flush(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.must_be_good()?;
        self.try_flush(&mut state).inspect_err(|_| state.failed = true)
    }

    fn try_flush(&self, state: &mut State) -> io::Result<()> {
        // Found out soon, though it is not needed before the half is.
        if state.syncing.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait(state)?;
        }
        let file_len = self.file.len()?;
        if state.body.len() == BLOCK && state.first.is_empty() && !state.too_large && file_len == state.file_len {
            return Ok(());
        }
        state.file_len = file_len;
        for (offset, bytes) in &state.first {
            let before = usize::try_from(*offset).ok().and_then(|at| state.page.get(at..at + bytes.len()));
            put(&mut state.body, offset | BEFORE, before.unwrap_or_default());
            put(&mut state.body, *offset, bytes);
        }
        let logged = !state.too_large && state.body.len() as u64 <= self.record_max() && self.append(state)?;
        if !logged {
            self.flush_file(state)?;
        }
        for (offset, bytes) in &state.first {
            self.file.write(*offset, bytes)?;
            if let Some(place) = usize::try_from(*offset).ok().and_then(|at| state.page.get_mut(at..at + bytes.len())) {
                place.copy_from_slice(bytes);
            }
        }
        if !logged {
            self.file.sync_data()?;
        }
        self.hides_first.store(false, Ordering::Release);
        state.first.clear();
        state.body.truncate(BLOCK);
        state.body.shrink_to(BODY_KEPT);
        state.too_large = false;
        Ok(())
    }

    /// Where a half of the log ends.
    fn end(&self, half: u64) -> u64 {
        BLOCK as u64 + (half + 1) * self.half
    }

    /// Bytes of a record at most: each half keeps a block for what [`Inner::turn`] writes.
    fn record_max(&self) -> u64 {
        self.half - BLOCK as u64
    }

    /// Writes a record and makes it durable. False if it finds no room on the disk.
    fn append(&self, state: &mut State) -> io::Result<bool> {
        if self.is_short.load(Ordering::Acquire) {
            return Ok(false);
        }
        let len = (state.body.len() as u64).next_multiple_of(BLOCK as u64);
        if state.at + len + BLOCK as u64 > self.end(state.half) && !self.turn(state)? {
            return Ok(false);
        }
        seal(&state.key, &mut state.body, state.number, state.file_len, state.needs);
        let mut until = state.at + len;
        if until > state.len {
            until = until.next_multiple_of(STEP).min(self.end(state.half));
        }
        state.body.resize(usize::try_from(until - state.at).unwrap_or(usize::MAX), 0);
        match self.log.write(state.at, &state.body) {
            Err(error) if is_full(&error) => return Ok(false),
            written => written?,
        }
        self.log.sync_data()?;
        (state.at, state.number, state.len) = (state.at + len, state.number + 1, state.len.max(until));
        state.said = state.needs;
        Ok(true)
    }

    /// Goes on at the beginning of the other half, once the file has all that is there. What is in this one it gets meanwhile. False if
    /// there is no room on the disk.
    fn turn(&self, state: &mut State) -> io::Result<bool> {
        self.wait(state)?;
        if state.said != state.needs {
            // Without this record, a first one there that is cut short would look like one that the file still needs and that has rotted.
            let mut mark = vec![0; BLOCK];
            seal(&state.key, &mut mark, state.number, state.file_len, state.needs);
            match self.log.write(state.at, &mark) {
                Err(error) if is_full(&error) => return Ok(false),
                written => written?,
            }
            self.log.sync_data()?;
            state.len = state.len.max(state.at + BLOCK as u64);
            (state.number, state.said) = (state.number + 1, state.needs);
        }
        state.half = 1 - state.half;
        state.half_first = state.number;
        state.at = BLOCK as u64 + state.half * self.half;
        let file = Arc::clone(&self.file);
        match std::thread::Builder::new().name("hob-store-sync".into()).spawn(move || file.sync_data()) {
            Ok(syncing) => state.syncing = Some(syncing),
            // No thread for it: then the writer waits.
            Err(_) => {
                self.file.sync_data()?;
                state.needs = state.half_first;
            }
        }
        Ok(true)
    }

    fn wait(&self, state: &mut State) -> io::Result<()> {
        let Some(syncing) = state.syncing.take() else { return Ok(()) };
        syncing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that makes the data durable panicked")))?;
        state.needs = state.half_first;
        Ok(())
    }

    /// Makes the file durable, all but its first page, and forgets the log.
    fn flush_file(&self, state: &mut State) -> io::Result<()> {
        self.wait(state)?;
        self.file.sync_data()?;
        self.begin_anew(state)
    }
}

impl<D: StorageBackend> Commits for Inner<D> {
    fn may_take(&self, room: Room) {
        self.takes_reserve.store(room == Room::Reserve, Ordering::Release);
    }

    fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Acquire)
    }

    fn regain(&self) -> io::Result<bool> {
        let mut state = self.lock();
        if state.failed || !self.is_short() { Ok(!state.failed) } else { self.fill(&mut state) }
    }

    fn give_back(&self) -> io::Result<bool> {
        let (mut state, floor) = (self.lock(), self.floor()?);
        state.must_be_good()?;
        if self.log.len()? <= floor {
            return Ok(false);
        }
        let given = self.flush_file(&mut state).and_then(|()| self.cut(&mut state, floor));
        given.map(|()| true).inspect_err(|_| state.failed = true)
    }

    fn fail(&self) {
        self.lock().failed = true;
    }

    fn begin(&self) {
        self.first_of_two.store(true, Ordering::Release);
    }

    fn end(&self, went_well: bool) -> io::Result<()> {
        self.first_of_two.store(false, Ordering::Release);
        // One that flushed once or not at all: the format of redb has changed.
        if went_well { self.flush() } else { Ok(()) }
    }
}

impl<D: StorageBackend> StorageBackend for Logged<D> {
    fn len(&self) -> io::Result<u64> {
        self.0.file.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.file.read(offset, out)?;
        if offset >= FIRST || !self.0.hides_first.load(Ordering::Acquire) {
            return Ok(());
        }
        for (at, bytes) in &self.0.lock().first {
            let (from, until) = (offset.max(*at), (offset + out.len() as u64).min(at + bytes.len() as u64));
            if from < until {
                let [in_out, in_bytes] = [from - offset, from - at].map(|place| usize::try_from(place).unwrap_or_default());
                let len = usize::try_from(until - from).unwrap_or_default();
                out[in_out..in_out + len].copy_from_slice(&bytes[in_bytes..in_bytes + len]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().must_be_good()?;
        self.0.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.first_of_two.swap(false, Ordering::AcqRel) { Ok(()) } else { self.0.flush() }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().must_be_good()?;
        let within = usize::try_from(FIRST.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let (first, rest) = data.split_at(within);
        let rest_offset = offset + within as u64;
        let written = if rest.is_empty() { Ok(()) } else { self.0.file.write(rest_offset, rest) };
        let mut state = self.0.lock();
        match written {
            Err(error) if is_full(&error) && self.0.make_room(&mut state)? => self.0.file.write(rest_offset, rest)?,
            written => written?,
        }
        if !first.is_empty() {
            match state.first.last_mut() {
                Some((at, bytes)) if *at == offset && bytes.len() == within => bytes.copy_from_slice(first),
                _ => state.first.push((offset, first.to_vec())),
            }
            self.0.hides_first.store(true, Ordering::Release);
        }
        if rest.is_empty() {
            return Ok(());
        }
        // What no half can hold is not copied any further.
        if (state.body.len() + rest.len()) as u64 > self.0.record_max() {
            state.too_large = true;
            state.body.truncate(BLOCK);
        } else if !state.too_large {
            put(&mut state.body, rest_offset, rest);
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        let mut closed = Ok(());
        if !state.failed {
            // Of what was not flushed the file has pages that nothing refers to.
            closed = self.0.flush_file(&mut state);
            state.failed = true;
        }
        closed.and(self.0.file.close()).and(self.0.log.close())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests;
