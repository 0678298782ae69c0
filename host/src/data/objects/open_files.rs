//! Files of objects that are open now: whoever opens one again has the descriptor of those who have it open. A thousand instances that map
//! one object take one descriptor, and no path is looked up for them.
//!
//! Owns which files are open, and none of them: a file is closed with the last [`Arc`] of it. Knows nothing about paths, rows and pins.
//! Invariant: nothing here keeps a file open.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::files::FileId;

/// Files that are remembered before those that were closed are forgotten for the first time; 60 bytes each.
const FORGET_FROM: usize = 64;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    files: HashMap<FileId, Weak<File>>,
    /// That many are left after the closed ones were last forgotten.
    left: usize,
}

impl OpenFiles {
    fn lock(&self) -> MutexGuard<'_, Known> {
        // No code panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, if somebody has it open.
    pub(super) fn get(&self, id: FileId) -> Option<Arc<File>> {
        self.lock().files.get(&id).and_then(Weak::upgrade)
    }

    /// Whoever opens the file from now on has this one.
    ///
    /// # Cost
    /// Under a microsecond; in the mean too, as closed ones are forgotten when there are twice as many as were left.
    pub(super) fn share(&self, id: FileId, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let mut known = self.lock();
        known.files.insert(id, Arc::downgrade(&file));
        if known.files.len() >= FORGET_FROM.max(2 * known.left) {
            known.files.retain(|_, file| file.strong_count() > 0);
            known.left = known.files.len();
        }
        file
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::bucket::BucketId;
    use super::*;
    use crate::id::Digest;

    fn id(number: u64) -> FileId {
        FileId { bucket: BucketId(number), digest: Digest::of(b"") }
    }

    fn file() -> File {
        File::open("/dev/null").unwrap()
    }

    #[test]
    fn a_file_is_shared_as_long_as_somebody_has_it_open() {
        let open = OpenFiles::default();
        let first = open.share(id(1), file());
        let second = open.get(id(1)).unwrap();
        assert!(Arc::ptr_eq(&first, &second) && open.get(id(2)).is_none());
        drop(first);
        assert!(open.get(id(1)).is_some());
        drop(second);
        assert!(open.get(id(1)).is_none());
    }

    #[test]
    fn files_that_were_closed_are_forgotten_and_others_are_not() {
        let open = OpenFiles::default();
        let held: Vec<_> = (0..100).map(|number| open.share(id(number), file())).collect();
        for number in 100..10_000 {
            drop(open.share(id(number), file()));
        }
        assert!(open.lock().files.len() <= 2 * held.len() + FORGET_FROM, "{}", open.lock().files.len());
        assert!((0..100).all(|number| open.get(id(number)).is_some()));
    }
}
