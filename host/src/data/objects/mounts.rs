//! Trees of hard links to the files of durable objects: a bucket as a folder, for programs that know files and nothing else.
//!
//! ```text
//! DIR/mounts/BUCKET/KEY…       a link to objects/BUCKET/SHA256
//! DIR/mounts-trash/N           trees that nobody wants any more; the collector removes them
//! ```
//!
//! A tree is made when a bucket is first mounted, and a start throws all of them away: nothing on disk has to be believed. From
//! then on each put and delete changes its link once it is committed and before it is answered ([`Files::link`], [`Files::unlink`]). What
//! cannot be done there is noted ([`Mounts::touch`]), and done by whoever mounts the bucket next ([`Durable::mount`]), from the row as it
//! is by then: an object that expired, a file that must be read first, a key that was a folder.
//!
//! A key has a link if it is a relative path (`path`) and no other key lies below it: where `a` and `a/b` are both keys, `a` is the
//! folder. What has no link is counted ([`Mounted::left_out`]). A link is made only of a file that was held against its digest, and
//! goes when the scrubber finds that it rotted.
//!
//! Owns the trees. Knows nothing about who mounts them. Invariant: a link leads to bytes that were found good, and whoever opens a
//! name finds one whole object or none, because links are replaced by renaming.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::super::bucket::{self, Bucket, BucketId};
use super::super::error::{DataError, io_error};
use super::super::store::Commit;
use super::durable::Durable;
use super::files::{FileId, Files};
use super::{Head, PAGE_LEN_MAX};
use crate::storage::disk::create_dirs;

/// Files and folders in one tree.
pub const MOUNT_ENTRIES_MAX: u64 = 100_000;
/// Longest part of a path, as file systems have it.
pub const SEGMENT_BYTES_MAX: usize = 255;
/// Parts of a path.
pub const SEGMENTS_MAX: usize = 32;

/// A bucket that is a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Where it is. Nobody writes there but this module.
    pub path: PathBuf,
    /// Objects that are not in it.
    pub left_out: u64,
    /// How many of them only because they are damaged.
    pub damaged: u64,
}

/// The trees of a node.
#[derive(Debug)]
pub(super) struct Mounts {
    root: PathBuf,
    trash: PathBuf,
    trash_number: AtomicU64,
    trees: Mutex<HashMap<BucketId, Arc<Tree>>>,
}

#[derive(Debug)]
struct Tree {
    bucket: BucketId,
    path: PathBuf,
    /// Where a link is made before it is renamed: beside the trees, so that no guest sees it.
    next: PathBuf,
    /// Keys whose links must be looked at.
    touched: Mutex<BTreeSet<Bytes>>,
    links: Mutex<Links>,
    /// Taken by whoever makes the tree, and by who waits for that.
    made: Mutex<bool>,
}

#[derive(Debug)]
struct Links {
    files: u64,
    folders: u64,
    /// Keys that would have a link if their objects were whole.
    damaged: BTreeSet<Bytes>,
    /// [`MOUNT_ENTRIES_MAX`].
    entries_max: u64,
    /// Never again: the bucket is gone.
    has_ended: bool,
}

impl Default for Links {
    fn default() -> Self {
        Self { files: 0, folders: 0, damaged: BTreeSet::new(), entries_max: MOUNT_ENTRIES_MAX, has_ended: false }
    }
}

/// No code leaves half changed what these locks guard.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key as a path below a tree; `None` if it is none.
fn path(key: &[u8]) -> Option<&Path> {
    let text = std::str::from_utf8(key).ok()?;
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= SEGMENT_BYTES_MAX && !part.contains('\0');
    let is_path = text.split('/').count() <= SEGMENTS_MAX && text.split('/').all(is_part);
    is_path.then(|| Path::new(OsStr::from_bytes(key)))
}

impl Mounts {
    /// Begins without trees; those of an earlier process are for [`Mounts::empty_trash`].
    pub(super) fn open(dir: &Path) -> Result<Self, DataError> {
        let (root, trash) = (dir.join("mounts"), dir.join("mounts-trash"));
        create_dirs(&trash).map_err(io_error("make a folder for mounts"))?;
        let mut number = 0;
        for entry in fs::read_dir(&trash).map_err(io_error("list old mounts"))? {
            let name = entry.map_err(io_error("list old mounts"))?.file_name();
            number = number.max(name.to_str().and_then(|name| name.parse::<u64>().ok()).unwrap_or_default());
        }
        let mounts = Self { root, trash, trash_number: AtomicU64::new(number + 1), trees: Mutex::default() };
        mounts.discard(&mounts.root).map_err(io_error("remove old mounts"))?;
        create_dirs(&mounts.root).map_err(io_error("make a folder for mounts"))?;
        Ok(mounts)
    }

    /// Moves a tree out of sight.
    fn discard(&self, path: &Path) -> io::Result<()> {
        let number = self.trash_number.fetch_add(1, Ordering::Relaxed);
        match fs::rename(path, self.trash.join(number.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Removes what was discarded. May take long.
    pub(super) fn empty_trash(&self) {
        let empty = || fs::read_dir(&self.trash)?.try_for_each(|entry| fs::remove_dir_all(entry?.path()));
        if let Err(error) = empty() {
            tracing::warn!(%error, "old mounts stay until the next start");
        }
    }

    /// Notes a key whose link must be looked at. Its transaction need not be committed yet.
    pub(super) fn touch(&self, bucket: BucketId, key: &[u8]) {
        if let Some(tree) = lock(&self.trees).get(&bucket) {
            lock(&tree.touched).insert(Bytes::copy_from_slice(key));
        }
    }

    /// The bucket is gone.
    pub(super) fn end(&self, bucket: BucketId) {
        let Some(tree) = lock(&self.trees).remove(&bucket) else { return };
        // Afterwards nobody makes anything of it again.
        lock(&tree.links).has_ended = true;
        if let Err(error) = self.discard(&tree.path) {
            tracing::warn!(%error, "the mount of a deleted bucket stays until the next start");
        }
    }

    fn tree(&self, bucket: BucketId) -> Arc<Tree> {
        let new = || {
            let name = format!("{:016x}", bucket.0);
            let (path, next) = (self.root.join(&name), self.root.join(format!("{name}-next")));
            let (touched, links, made) = (Mutex::default(), Mutex::default(), Mutex::default());
            Arc::new(Tree { bucket, path, next, touched, links, made })
        };
        lock(&self.trees).entry(bucket).or_insert_with(new).clone()
    }

    fn find(&self, bucket: BucketId) -> Option<Arc<Tree>> {
        lock(&self.trees).get(&bucket).cloned()
    }
}

impl Durable {
    /// The bucket as a folder, with every change that was committed before.
    ///
    /// # Errors
    /// [`DataError::NoSuchBucket`] if it was deleted, and those of storage and the file system.
    ///
    /// # Cost
    /// A few microseconds; the first time in a process a link for each object, and the reading of all objects that this process has
    /// not checked. Blocks.
    pub fn mount(&self, bucket: &Bucket) -> Result<Mounted, DataError> {
        let tree = self.files.mounts.tree(bucket.id);
        // Any other error passes, and whoever has the tree keeps it.
        let is_gone = |error: &DataError| matches!(error, DataError::NoSuchBucket { .. });
        self.bring_up(&tree).inspect_err(|error| {
            if is_gone(error) {
                self.files.mounts.end(bucket.id)
            }
        })?;
        let mounted = self.as_mounted(bucket, &tree)?;
        mounted.ok_or_else(|| {
            self.files.mounts.end(bucket.id);
            DataError::NoSuchBucket { name: bucket.name.to_string() }
        })
    }

    /// The same if there is nothing to wait for; else `None`.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// A read of the store.
    pub fn mounted(&self, bucket: &Bucket) -> Result<Option<Mounted>, DataError> {
        let Some(tree) = self.files.mounts.find(bucket.id) else { return Ok(None) };
        let is_made = tree.made.try_lock().is_ok_and(|made| *made);
        let is_current = is_made && lock(&tree.touched).is_empty();
        if is_current { self.as_mounted(bucket, &tree) } else { Ok(None) }
    }

    /// `None` if the bucket is gone.
    fn as_mounted(&self, bucket: &Bucket, tree: &Tree) -> Result<Option<Mounted>, DataError> {
        let found = self.store.read(|txn| bucket::get(txn, &bucket.tenant, &bucket.name))?.filter(|found| found.id == bucket.id);
        let (files, damaged) = {
            let links = lock(&tree.links);
            (links.files, links.damaged.len() as u64)
        };
        Ok(found.map(|found| {
            let left_out = found.objects.keys.saturating_sub(files);
            Mounted { path: tree.path.clone(), left_out, damaged: damaged.min(left_out) }
        }))
    }

    fn bring_up(&self, tree: &Tree) -> Result<(), DataError> {
        let mut made = lock(&tree.made);
        if *made && lock(&tree.touched).is_empty() {
            return Ok(());
        }
        // What began before the tree was known, or before a key was noted, is committed or undone when this is answered.
        // It adds nothing, so a full disk does not refuse it.
        self.store.remove(0, |_, _| Ok(((), Commit::No))).wait()?;
        if !*made {
            tree.begin().map_err(io_error("make the folder of a mount"))?;
            let mut after = None::<Bytes>;
            loop {
                let page = self.rows(tree.bucket, &[], after.as_deref(), PAGE_LEN_MAX)?;
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                page.into_iter().try_for_each(|(key, _)| self.link(tree, key))?;
            }
            *made = true;
        }
        let mut touched = mem::take(&mut *lock(&tree.touched)).into_iter();
        let done = touched.by_ref().try_for_each(|key| self.link(tree, key));
        lock(&tree.touched).extend(touched);
        done
    }

    /// Makes the link of a key what its row says, and then those of keys that were folders until now.
    /// What could not be done is noted.
    fn link(&self, tree: &Tree, key: Bytes) -> Result<(), DataError> {
        let mut keys = vec![key];
        while let Some(key) = keys.pop() {
            match self.link_one(tree, &key) {
                Ok(below) => keys.extend(below),
                Err(error) => {
                    keys.push(key);
                    lock(&tree.touched).extend(keys);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Answers the keys that were folders until now.
    fn link_one(&self, tree: &Tree, key: &Bytes) -> Result<Vec<Bytes>, DataError> {
        let Some(path) = path(key) else { return Ok(Vec::new()) };
        let seen = self.seen(tree, key)?;
        let mut links = lock(&tree.links);
        // Once more, now that nobody else makes links: whoever changes it from here on comes afterwards.
        let (now, is_row_damaged) = match self.find(tree.bucket, key) {
            Err(DataError::Corrupt { .. }) => (None, true),
            found => (found?, false),
        };
        let is_bad = matches!((&now, seen), (Some(head), Some((version, false))) if head.version == version);
        match is_row_damaged || is_bad {
            true if (links.damaged.len() as u64) < links.entries_max => links.damaged.insert(key.clone()),
            // Past that they count as left out for another reason.
            true => false,
            false => links.damaged.remove(key),
        };
        let done = match (now, seen) {
            (None, _) => tree.remove(path, &mut links),
            (Some(head), Some((version, is_good))) if head.version == version => match is_good {
                true => {
                    let file = self.files.path(FileId { bucket: tree.bucket, digest: head.etag });
                    tree.place(&file, path, &mut links).map(|()| Vec::new())
                }
                false => {
                    self.files.note_damaged(FileId { bucket: tree.bucket, digest: head.etag });
                    tree.remove(path, &mut links)
                }
            },
            // It was put in between, and linked or noted by who put it.
            (Some(_), _) => Ok(Vec::new()),
        };
        done.map_err(io_error("make a link of a mount"))
    }

    /// Makes the link of a key whose object is not what was put, or what took its place, right; if there is a tree.
    pub(super) fn relink(&self, bucket: BucketId, key: &Bytes) -> Result<(), DataError> {
        self.files.mounts.find(bucket).map_or(Ok(()), |tree| self.link(&tree, key.clone()))
    }

    /// The version of a key's object, and whether its file is good. Reads a file that this process has not checked.
    fn seen(&self, tree: &Tree, key: &Bytes) -> Result<Option<(u64, bool)>, DataError> {
        let Some(head) = self.find(tree.bucket, key).or_else(not_damaged)? else { return Ok(None) };
        let id = FileId { bucket: tree.bucket, digest: head.etag };
        let _held = self.files.hold(id);
        let is_good = match self.files.open_file(id, head.len) {
            Err(error) if error.is_disk_failure() => false,
            opened => opened?.is_some(),
        };
        if !is_good {
            tracing::warn!(bucket = %tree.bucket, key = %key.escape_ascii(), "a damaged object is left out of a mount");
        }
        Ok(Some((head.version, is_good)))
    }
}

/// A damaged row is a key without an object.
fn not_damaged(error: DataError) -> Result<Option<Head>, DataError> {
    match error {
        DataError::Corrupt { .. } => Ok(None),
        error => Err(error),
    }
}

impl Files {
    /// An object was committed, and readers see it. On the writer's thread, so the latest is the last.
    pub(super) fn link(&self, id: FileId, key: &[u8]) {
        let Some(tree) = self.mounts.find(id.bucket) else { return };
        let Some(path) = path(key) else { return };
        let placed = match self.is_good(id) {
            true => {
                let mut links = lock(&tree.links);
                links.damaged.remove(key);
                tree.place(&self.path(id), path, &mut links)
            }
            // Whoever mounts the bucket next reads it.
            false => Err(io::ErrorKind::InvalidData.into()),
        };
        if let Err(error) = placed {
            tracing::debug!(bucket = %id.bucket, %error, "a link of a mount waits until it is mounted again");
            self.mounts.touch(id.bucket, key);
        }
    }

    /// An object is gone, or its bytes are not what was put.
    pub(super) fn unlink(&self, bucket: BucketId, key: &[u8]) {
        let Some(tree) = self.mounts.find(bucket) else { return };
        let Some(path) = path(key) else { return };
        let removed = {
            let mut links = lock(&tree.links);
            links.damaged.remove(key);
            tree.remove(path, &mut links)
        };
        match removed {
            // What was a folder may be an object.
            Ok(keys) => keys.iter().for_each(|key| self.mounts.touch(bucket, key)),
            Err(error) => {
                tracing::warn!(%bucket, %error, "the link of an object that is gone stays until it is mounted again");
                self.mounts.touch(bucket, key);
            }
        }
    }
}

impl Tree {
    /// Makes its folder, unless the bucket is gone.
    fn begin(&self) -> io::Result<()> {
        // Under the lock: whose end comes later finds the folder, and moves it away.
        let links = lock(&self.links);
        if links.has_ended { Ok(()) } else { create_dirs(&self.path) }
    }

    /// Links a file, in place of what was there; a folder stays.
    fn place(&self, file: &Path, path: &Path, links: &mut Links) -> io::Result<()> {
        let to = self.path.join(path);
        if links.has_ended {
            return Ok(());
        }
        if fs::symlink_metadata(&to).is_ok_and(|meta| meta.is_dir()) {
            return Ok(());
        }
        let is_new = !to.exists();
        if is_new {
            let missing = path.ancestors().skip(1).filter(|above| !self.path.join(above).is_dir()).count() as u64;
            if links.files + links.folders + missing + 1 > links.entries_max {
                return Ok(());
            }
        }
        self.folders(path, links)?;
        remove_if_there(&self.next)?;
        match fs::hard_link(file, &self.next) {
            // It was deleted or replaced since it was looked at, or as many keys as the file system can link have these bytes.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::TooManyLinks) => {
                return self.remove(path, links).map(drop);
            }
            result => result?,
        }
        fs::rename(&self.next, &to)?;
        // Where it was linked already, renaming does nothing.
        remove_if_there(&self.next)?;
        links.files += u64::from(is_new);
        Ok(())
    }

    /// Makes the folders above a path. A file in their way goes: its key is left out from now on.
    fn folders(&self, path: &Path, links: &mut Links) -> io::Result<()> {
        let mut above: Vec<_> = path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).collect();
        above.reverse();
        for folder in above {
            let folder = self.path.join(folder);
            match fs::symlink_metadata(&folder) {
                Ok(meta) if meta.is_dir() => continue,
                Ok(_) => {
                    fs::remove_file(&folder)?;
                    links.files -= 1;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            fs::create_dir(&folder)?;
            links.folders += 1;
        }
        Ok(())
    }

    /// Removes a link and the folders that are empty without it. Answers those as keys, because they may have links now: the
    /// longest last.
    fn remove(&self, path: &Path, links: &mut Links) -> io::Result<Vec<Bytes>> {
        match fs::remove_file(self.path.join(path)) {
            Ok(()) => links.files -= 1,
            Err(error) if is_none(&error) => {}
            // It is a folder of other keys.
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
        let mut keys = Vec::new();
        for folder in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            match fs::remove_dir(self.path.join(folder)) {
                Ok(()) => links.folders -= 1,
                Err(error) if is_none(&error) => continue,
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                Err(error) => return Err(error),
            }
            keys.push(Bytes::copy_from_slice(folder.as_os_str().as_bytes()));
        }
        keys.reverse();
        Ok(keys)
    }
}

/// Whether there is nothing of that name, or a file where a folder would be.
fn is_none(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests;
