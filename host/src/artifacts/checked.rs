//! Which images were checked: reading a gigabyte at each load would make a snapshot slower than what it saves.
//!
//! Owns what this process remembers. Knows nothing about how an image is checked. Invariant: what is remembered was true of the
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
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// The stamp of an open file, whatever its path now leads to.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|meta| Self::of_metadata(&meta))
    }

    fn of_metadata(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The images that were found good.
#[derive(Debug)]
pub(super) struct Checked(Mutex<LruCache<Stamp, blake3::Hash>>);

impl Checked {
    pub(super) fn new() -> Self {
        // A bounded one would take all of its memory at once.
        Self(Mutex::new(LruCache::unbounded()))
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, LruCache<Stamp, blake3::Hash>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file was found to hold the image with this MAC.
    pub(super) fn contains(&self, stamp: Stamp, mac: blake3::Hash) -> bool {
        self.lock().get(&stamp) == Some(&mac)
    }

    /// Remembers that a file holds the image with this MAC. `stamp`: taken before the image was read, and still the same.
    pub(super) fn remember(&self, stamp: Stamp, mac: blake3::Hash) {
        let mut images = self.lock();
        images.put(stamp, mac);
        if images.len() > REMEMBERED_MAX {
            images.pop_lru();
        }
    }
}
