//! What is used, what is pinned, and what is being written: the state that writers and a collector share.
//!
//! **Why a collector never takes what a writer needs.** A writer (a deploy, the put of an object) pins its files *before* it renames
//! them into place and unpins *after* the database committed the row that names them. A collection first opens a round, then reads the set of
//! referenced files, then removes each file that is not in that set and that [`Space::remove`] finds unprotected under the lock.
//! A file is protected while it is pinned, and until the end of the round if it was pinned at any moment of the round. So for a
//! writer that unpinned before the round began, the commit lies before the reading of the set, which holds its files; and a
//! writer that unpinned later, or not yet, is protected. A pin taken for a file that exists already keeps it from then on,
//! because a removal looks at the pins and unlinks under the same lock.
//!
//! Owns the numbers and the lock. Knows nothing about formats. Invariant: `used` is the sum of what the files in place take
//! ([`Placed::disk_bytes`]) and of the uploads in staging; it never passes `bytes_max` by what a caller adds.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::fs::{self, Metadata};
use std::hash::{BuildHasher as _, Hash, Hasher as _, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::checked::Stamp;

/// What names one file in place: `artifacts::FileId`, and the files of objects.
pub trait Placed: Clone + Eq + Hash + Debug {
    /// Bytes that the file takes, by what the system says of it.
    fn disk_bytes(&self, meta: &Metadata) -> u64;
}

#[derive(Debug)]
struct State<Id> {
    used: u64,
    pins: HashMap<Id, usize>,
    /// Ids whose last pin went during the round that is on; `None` between rounds.
    released: Option<HashSet<Id>>,
    /// Files in staging that somebody owns.
    staged: HashSet<PathBuf>,
    /// The number of the next one. The first is drawn at random, so that no two processes ever give the same name.
    next: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Space<Id> {
    bytes_max: u64,
    state: Mutex<State<Id>>,
}

/// No room: the node's own ceiling would be passed.
#[derive(Debug, PartialEq, Eq)]
pub struct Full {
    /// Bytes in use.
    pub used: u64,
    /// Bytes that were asked for on top.
    pub wanted: u64,
    /// The ceiling.
    pub bytes_max: u64,
}

impl<Id: Placed> Space<Id> {
    /// `used`: bytes of the files that are there. `bytes_max`: ceiling for those and all that comes.
    #[must_use]
    pub fn new(used: u64, bytes_max: u64) -> Arc<Self> {
        // A build that outlives a node that was killed goes on writing to staging, under the names that it was given.
        let next = RandomState::new().build_hasher().finish();
        let state = State { used, pins: HashMap::new(), released: None, staged: HashSet::new(), next };
        Arc::new(Self { bytes_max, state: Mutex::new(state) })
    }

    /// No code panics while it holds the lock, so a poisoned one still holds what it should.
    fn lock(&self) -> MutexGuard<'_, State<Id>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all files in place and of all that is being written.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.lock().used
    }

    /// Bytes that may still come.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.bytes_max.saturating_sub(self.used())
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

    /// Whether somebody holds a pin of it.
    #[must_use]
    pub fn is_pinned(&self, id: &Id) -> bool {
        self.lock().pins.contains_key(id)
    }

    /// Renames a staged file into place; what was charged is the file's then, and what it replaces is no longer counted.
    /// `charge` is borrowed because it takes the lock when it is dropped.
    ///
    /// # Errors
    /// What the system says.
    pub fn place(&self, id: &Id, staged: &StagedPath<Id>, target: &Path, charge: &mut Charge<Id>) -> io::Result<()> {
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
    ///
    /// # Errors
    /// What the system says.
    pub fn remove(&self, id: &Id, path: &Path) -> io::Result<Option<u64>> {
        let mut state = self.lock();
        let released = state.released.as_ref().is_some_and(|released| released.contains(id));
        if released || state.pins.contains_key(id) {
            return Ok(None);
        }
        Self::unlink(&mut state, id, path)
    }

    /// As [`Space::remove`], pinned or not: for one that is damaged, in whose place its holder puts another. Not if another file than `found` is there by now.
    ///
    /// # Errors
    /// What the system says.
    pub fn discard(&self, id: &Id, path: &Path, found: &Metadata) -> io::Result<()> {
        let mut state = self.lock();
        let is_it = |there: &Metadata| Stamp::of_metadata(there) == Stamp::of_metadata(found);
        match fs::symlink_metadata(path) {
            Ok(there) if is_it(&there) => Self::unlink(&mut state, id, path).map(drop),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn unlink(state: &mut State<Id>, id: &Id, path: &Path) -> io::Result<Option<u64>> {
        let bytes = match fs::symlink_metadata(path).and_then(|meta| fs::remove_file(path).map(|()| id.disk_bytes(&meta))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        state.used = state.used.saturating_sub(bytes);
        Ok(Some(bytes))
    }

    /// As [`Space::place`] for a folder of which what was charged is the size. `false` if one is there already: then nothing was done.
    ///
    /// # Errors
    /// What the system says.
    pub fn place_folder(&self, staged: &StagedPath<Id>, target: &Path, charge: &mut Charge<Id>) -> io::Result<bool> {
        let mut state = self.lock();
        match fs::rename(&staged.path, target) {
            Ok(()) => {}
            Err(error) if [io::ErrorKind::DirectoryNotEmpty, io::ErrorKind::AlreadyExists].contains(&error.kind()) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        state.staged.remove(&staged.path);
        charge.bytes = 0;
        Ok(true)
    }

    /// As [`Space::remove`] for a folder of `bytes`, which goes to `away` and is removed with that: it may hold many files, and the lock
    /// is held no longer than it takes to rename it. Whether it went.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_folder(&self, id: &Id, path: &Path, bytes: u64, away: &StagedPath<Id>) -> io::Result<bool> {
        let mut state = self.lock();
        let released = state.released.as_ref().is_some_and(|released| released.contains(id));
        if released || state.pins.contains_key(id) {
            return Ok(false);
        }
        self.take_away(&mut state, path, bytes, away)
    }

    /// As [`Space::remove_folder`], pinned or not: for one that is damaged, in whose place its holder puts another.
    ///
    /// # Errors
    /// What the system says.
    pub fn replace_folder(&self, path: &Path, bytes: u64, away: &StagedPath<Id>) -> io::Result<bool> {
        self.take_away(&mut self.lock(), path, bytes, away)
    }

    fn take_away(&self, state: &mut State<Id>, path: &Path, bytes: u64, away: &StagedPath<Id>) -> io::Result<bool> {
        match fs::rename(path, &away.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        }
        state.used = state.used.saturating_sub(bytes);
        Ok(true)
    }

    /// Unlinks a file in staging that nobody owns. Returns its bytes, `None` if it stays or was gone.
    ///
    /// # Errors
    /// What the system says.
    pub fn remove_stale(&self, path: &Path) -> io::Result<Option<u64>> {
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

    /// A path in `dir`, which is the staging of this process alone; no file is there yet.
    #[must_use]
    pub fn stage(self: &Arc<Self>, dir: &Path, kind: &str) -> StagedPath<Id> {
        self.stage_as(dir, kind, false)
    }

    /// As [`Space::stage`], for a folder: what is in it goes with it.
    #[must_use]
    pub fn stage_folder(self: &Arc<Self>, dir: &Path, kind: &str) -> StagedPath<Id> {
        self.stage_as(dir, kind, true)
    }

    fn stage_as(self: &Arc<Self>, dir: &Path, kind: &str, is_folder: bool) -> StagedPath<Id> {
        let mut state = self.lock();
        let path = dir.join(format!("{kind}-{:016x}", state.next));
        state.next = state.next.wrapping_add(1);
        state.staged.insert(path.clone());
        StagedPath { path, is_folder, space: Arc::clone(self) }
    }

    /// Protects files from the collector for as long as the result lives.
    pub fn pin(self: &Arc<Self>, ids: Vec<Id>) -> Pin<Id> {
        let mut state = self.lock();
        for id in &ids {
            *state.pins.entry(id.clone()).or_default() += 1;
        }
        drop(state);
        Pin { ids, space: Arc::clone(self) }
    }

    /// Begins a collection.
    ///
    /// # Panics
    /// When another has not ended: the collector has a lock of its own.
    #[must_use = "the round ends with it"]
    pub fn round(&self) -> Round<'_, Id> {
        let mut state = self.lock();
        assert!(state.released.is_none(), "the collector's own lock admits one round at a time");
        state.released = Some(HashSet::new());
        Round(self)
    }
}

/// Time in which a collection runs; its end forgets which pins went meanwhile.
#[derive(Debug)]
pub struct Round<'a, Id: Placed>(&'a Space<Id>);

impl<Id: Placed> Drop for Round<'_, Id> {
    fn drop(&mut self) {
        self.0.lock().released = None;
    }
}

/// Bytes counted as used, given back on drop unless they became a file's.
#[derive(Debug)]
pub struct Charge<Id: Placed> {
    bytes: u64,
    space: Arc<Space<Id>>,
}

impl<Id: Placed> Charge<Id> {
    /// A charge of `bytes`.
    ///
    /// # Errors
    /// [`Full`].
    pub fn new(space: &Arc<Space<Id>>, bytes: u64) -> Result<Self, Full> {
        let mut charge = Self { bytes: 0, space: Arc::clone(space) };
        charge.grow(bytes)?;
        Ok(charge)
    }

    /// Charges so many bytes more.
    ///
    /// # Errors
    /// [`Full`]; nothing is charged then.
    pub fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        self.space.charge(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Changes it to `bytes`, up or down.
    ///
    /// # Errors
    /// [`Full`]; it stays as it was then.
    pub fn settle(&mut self, bytes: u64) -> Result<(), Full> {
        if bytes < self.bytes {
            self.space.release(self.bytes - bytes);
            self.bytes = bytes;
            return Ok(());
        }
        self.grow(bytes - self.bytes)
    }

    /// Bytes charged.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl<Id: Placed> Drop for Charge<Id> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.space.release(self.bytes);
        }
    }
}

/// Keeps files from the collector while it lives. The files need not exist.
#[derive(Debug)]
#[must_use = "files are protected only while the pin lives"]
pub struct Pin<Id: Placed> {
    ids: Vec<Id>,
    space: Arc<Space<Id>>,
}

impl<Id: Placed> Drop for Pin<Id> {
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

/// A path in staging that belongs to its holder: unlinked on drop. The file or folder itself is made by whoever writes it.
#[derive(Debug)]
pub struct StagedPath<Id: Placed> {
    path: PathBuf,
    is_folder: bool,
    space: Arc<Space<Id>>,
}

impl<Id: Placed> StagedPath<Id> {
    /// The path; absolute if the data directory's is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl<Id: Placed> Drop for StagedPath<Id> {
    fn drop(&mut self) {
        if self.is_folder {
            // Without the lock, because it may take long; if it was renamed into place, nothing is there. The name is given to nobody else.
            let _gone = fs::remove_dir_all(&self.path);
            self.space.lock().staged.remove(&self.path);
            return;
        }
        let mut state = self.space.lock();
        // Gone from the set means renamed into place; what is left behind here, the next collection takes.
        if state.staged.remove(&self.path) {
            let _gone = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Hash)]
    struct NoFile;

    impl Placed for NoFile {
        fn disk_bytes(&self, meta: &Metadata) -> u64 {
            meta.len()
        }
    }

    #[test]
    fn no_two_processes_give_a_name_in_staging_twice() {
        let mut names = HashSet::new();
        for _ in 0..100 {
            let space = Space::<NoFile>::new(0, 0);
            for _ in 0..100 {
                let staged = space.stage(Path::new("staging"), "native");
                assert!(names.insert(staged.path().to_owned()), "{staged:?}");
            }
        }
    }
}
