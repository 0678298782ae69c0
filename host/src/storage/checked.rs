//! Which files were checked: reading a gigabyte at each use would make it slower than what it saves.
//!
//! Owns what this process remembers. Knows nothing about how a file is checked. Invariant: what is remembered was true of the
//! file with that identity and those times when it was checked; whoever changes a file changes its times. Bytes that rot on the
//! disk without a write are found by the next process, or once the file was forgotten.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// Files remembered; beyond it the one that was loaded longest ago is checked again. Some 150 bytes each.
const REMEMBERED_MAX: usize = 16_384;

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of an open file, whatever its path now leads to.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|meta| Self::of_metadata(&meta))
    }

    /// The stamp that these metadata give.
    #[must_use]
    pub(crate) fn of_metadata(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// The same of a file that gets names and loses some: that is a change of the file to the system, and none of its bytes.
    #[must_use]
    pub(crate) fn of_bytes(meta: &Metadata) -> Self {
        Self { changed: (0, 0), ..Self::of_metadata(meta) }
    }
}

/// The files that were found good, each with the mark that it was held against.
#[derive(Debug)]
pub(crate) struct Checked<Mark>(Mutex<LruCache<Stamp, Mark>>);

impl<Mark: PartialEq> Default for Checked<Mark> {
    fn default() -> Self {
        Self::new()
    }
}

impl<Mark: PartialEq> Checked<Mark> {
    /// Remembers nothing yet.
    #[must_use]
    pub(crate) fn new() -> Self {
        // A bounded one would take all of its memory at once.
        Self(Mutex::new(LruCache::unbounded()))
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, LruCache<Stamp, Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file was found to have this mark.
    pub(crate) fn contains(&self, stamp: Stamp, mark: &Mark) -> bool {
        self.lock().get(&stamp) == Some(mark)
    }

    /// Remembers that a file has this mark. `stamp`: taken before the file was read, and still the same.
    pub(crate) fn remember(&self, stamp: Stamp, mark: Mark) {
        let mut files = self.lock();
        files.put(stamp, mark);
        if files.len() > REMEMBERED_MAX {
            files.pop_lru();
        }
    }

    /// Forgets what was found: the file is checked again at its next use.
    pub(crate) fn forget(&self, stamp: Stamp) {
        self.lock().pop(&stamp);
    }
}
