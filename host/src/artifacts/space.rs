//! What is used, what is pinned, and what is being written: the state that writers and the collector share.
//!
//! **Why the collector never takes what a deploy needs.** A deploy pins its files *before* it renames them into place and
//! unpins *after* the registry committed the revision that names them. A collection first opens a round, then reads the set of
//! referenced files, then removes each file that is not in that set and that [`Space::remove`] finds unprotected under the lock.
//! A file is protected while it is pinned, and until the end of the round if it was pinned at any moment of the round. So for a
//! deploy that unpinned before the round began, the commit lies before the reading of the set, which holds its files; and a
//! deploy that unpinned later, or not yet, is protected. A pin taken for a file that exists already keeps it from then on,
//! because a removal looks at the pins and unlinks under the same lock.
//!
//! Owns the numbers and the lock. Knows nothing about formats. Invariant: `used` is the sum of what the files in place take
//! ([`FileId::disk_bytes`]) and of the uploads in staging; it never passes `bytes_max` by what a caller adds.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::FileId;

#[derive(Debug, Default)]
struct State {
    used: u64,
    pins: HashMap<FileId, usize>,
    /// Ids whose last pin went during the round that is on; `None` between rounds.
    released: Option<HashSet<FileId>>,
    /// Files in staging that somebody owns.
    staged: HashSet<PathBuf>,
    next: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Space {
    bytes_max: u64,
    state: Mutex<State>,
}

/// No room: the node's own ceiling would be passed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) used: u64,
    pub(super) wanted: u64,
    pub(super) bytes_max: u64,
}

impl Space {
    pub(super) fn new(used: u64, bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, state: Mutex::new(State { used, ..State::default() }) })
    }

    /// No code panics while it holds the lock, so a poisoned one still holds what it should.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn used(&self) -> u64 {
        self.lock().used
    }

    fn charge(&self, wanted: u64) -> Result<(), Full> {
        let mut state = self.lock();
        match state.used.checked_add(wanted) {
            Some(sum) if sum <= self.bytes_max => {
                state.used = sum;
                Ok(())
            }
            _ => Err(Full { used: state.used, wanted, bytes_max: self.bytes_max }),
        }
    }

    fn release(&self, bytes: u64) {
        let mut state = self.lock();
        debug_assert!(bytes <= state.used, "{bytes} bytes were charged before they are released");
        state.used = state.used.saturating_sub(bytes);
    }

    pub(super) fn is_pinned(&self, id: &FileId) -> bool {
        self.lock().pins.contains_key(id)
    }

    /// Renames a staged file into place; what was charged is the file's then, and what it replaces is no longer counted.
    /// `charge` is borrowed because it takes the lock when it is dropped.
    pub(super) fn place(&self, id: &FileId, staged: &StagedPath, target: &Path, charge: &mut Charge) -> io::Result<()> {
        let mut state = self.lock();
        let old = match fs::symlink_metadata(target) {
            Ok(meta) => Some(id.disk_bytes(&meta)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        fs::rename(&staged.path, target)?;
        state.staged.remove(&staged.path);
        state.used = state.used.saturating_sub(old.unwrap_or(0));
        charge.bytes = 0;
        Ok(())
    }

    /// Unlinks a file unless it is protected. Returns the bytes that it had, `None` if it stays or was gone.
    ///
    /// Instances that have the file mapped keep their pages: Linux frees an unlinked file with its last mapping.
    pub(super) fn remove(&self, id: &FileId, path: &Path) -> io::Result<Option<u64>> {
        let mut state = self.lock();
        let released = state.released.as_ref().is_some_and(|released| released.contains(id));
        if released || state.pins.contains_key(id) {
            return Ok(None);
        }
        let bytes = match fs::symlink_metadata(path).and_then(|meta| fs::remove_file(path).map(|()| id.disk_bytes(&meta))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        state.used = state.used.saturating_sub(bytes);
        Ok(Some(bytes))
    }

    /// Unlinks a file in staging that nobody owns. Returns its bytes, `None` if it stays or was gone.
    pub(super) fn remove_stale(&self, path: &Path) -> io::Result<Option<u64>> {
        // The lock spans the unlink: no guard can take this name in between. Such bytes are not counted as used.
        let state = self.lock();
        if state.staged.contains(path) {
            return Ok(None);
        }
        match fs::symlink_metadata(path).and_then(|meta| fs::remove_file(path).map(|()| meta.len())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }

    pub(super) fn stage(self: &Arc<Self>, dir: &Path, kind: &str) -> StagedPath {
        let mut state = self.lock();
        // Numbers suffice: the directory is locked by this process, and staging was emptied when it was opened.
        let path = dir.join(format!("{kind}-{}", state.next));
        state.next += 1;
        state.staged.insert(path.clone());
        StagedPath { path, space: Arc::clone(self) }
    }

    pub(super) fn pin(self: &Arc<Self>, ids: Vec<FileId>) -> Pin {
        let mut state = self.lock();
        for id in &ids {
            *state.pins.entry(id.clone()).or_default() += 1;
        }
        drop(state);
        Pin { ids, space: Arc::clone(self) }
    }

    pub(super) fn round(&self) -> Round<'_> {
        let mut state = self.lock();
        assert!(state.released.is_none(), "the collector's own lock admits one round at a time");
        state.released = Some(HashSet::new());
        Round(self)
    }
}

/// Time in which a collection runs; its end forgets which pins went meanwhile.
#[derive(Debug)]
pub(super) struct Round<'a>(&'a Space);

impl Drop for Round<'_> {
    fn drop(&mut self) {
        self.0.lock().released = None;
    }
}

/// Bytes counted as used, given back on drop unless they became a file's.
#[derive(Debug)]
pub(super) struct Charge {
    bytes: u64,
    space: Arc<Space>,
}

impl Charge {
    /// A charge of `bytes`.
    pub(super) fn new(space: &Arc<Space>, bytes: u64) -> Result<Self, Full> {
        let mut charge = Self { bytes: 0, space: Arc::clone(space) };
        charge.grow(bytes)?;
        Ok(charge)
    }

    pub(super) fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        self.space.charge(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Changes it to `bytes`, up or down.
    pub(super) fn settle(&mut self, bytes: u64) -> Result<(), Full> {
        if bytes < self.bytes {
            self.space.release(self.bytes - bytes);
            self.bytes = bytes;
            return Ok(());
        }
        self.grow(bytes - self.bytes)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.space.release(self.bytes);
        }
    }
}

/// Keeps files from the collector while it lives. The files need not exist.
#[derive(Debug)]
#[must_use = "files are protected only while the pin lives"]
pub struct Pin {
    ids: Vec<FileId>,
    space: Arc<Space>,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        for id in self.ids.drain(..) {
            let Some(count) = state.pins.get_mut(&id) else { continue };
            *count -= 1;
            if *count == 0 {
                state.pins.remove(&id);
                if let Some(released) = &mut state.released {
                    released.insert(id);
                }
            }
        }
    }
}

/// A path in staging that belongs to its holder: unlinked on drop. The file itself is made by whoever writes it.
#[derive(Debug)]
pub struct StagedPath {
    path: PathBuf,
    space: Arc<Space>,
}

impl StagedPath {
    /// The path; absolute if the data directory's is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for StagedPath {
    fn drop(&mut self) {
        let mut state = self.space.lock();
        // Gone from the set means renamed into place; what is left behind here, the next collection takes.
        if state.staged.remove(&self.path) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}
