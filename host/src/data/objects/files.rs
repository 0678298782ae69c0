//! Files of durable objects: their places, the room they take, who has them open, and the collector.
//!
//! ```text
//! DIR/staging/object-N         being written; emptied at start
//! DIR/objects/BUCKET/SHA256    bytes of objects, BUCKET as 16 hexadecimal digits; read-only, never changed
//! ```
//!
//! Equal bytes are one file within a bucket and never across buckets: whoever may use one bucket must not learn by time or room what
//! another holds, and a bucket's number cannot be spelled wrongly.
//!
//! A file is needed as long as a row refers to it or somebody has it pinned: an upload from before its rename until its commit was
//! answered, an open object until it is dropped. Rows that go say so ([`Files::release`]), and the thread "hob-objects" unlinks what
//! nobody needs; `storage/space.rs` says why it never takes what is needed. A kill leaves files without a row, which the next start
//! finds.
//!
//! Owns the files and that thread's list. Knows rows only by asking. Invariant: no file with a row or a pin is unlinked.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::Digest as _;
use tokio::sync::Semaphore;

use super::super::bucket::BucketId;
use super::super::error::{DataError, io_error};
use super::mounts::Mounts;
use super::open_files::OpenFiles;
use super::pieces::GATHERING_MAX;
use super::{ObjectLimits, Verified};
use crate::id::Digest;
use crate::storage::checked::{Checked, Stamp};
use crate::storage::disk::{create_dirs, sync_dir};
use crate::storage::space::{self, Full, Placed};

pub(super) type Charge = space::Charge<FileId>;
pub(super) type StagedPath = space::StagedPath<FileId>;

/// How long the collector rests after a failure.
const RETRY: Duration = Duration::from_secs(5);
const READ_BYTES: usize = 1 << 20;
/// Damaged files that are remembered, of 40 bytes each.
const DAMAGED_MAX: usize = 16_384;
/// Name of the folder with the files in place.
pub(in crate::data) const FOLDER: &str = "objects";

/// Names one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::data) struct FileId {
    pub(super) bucket: BucketId,
    pub(super) digest: Digest,
}

impl Placed for FileId {
    fn disk_bytes(&self, meta: &fs::Metadata) -> u64 {
        meta.len()
    }
}

/// See the module.
#[derive(Debug)]
pub(in crate::data) struct Files {
    objects: PathBuf,
    staging: PathBuf,
    pub(super) limits: ObjectLimits,
    pub(super) space: Arc<space::Space<FileId>>,
    pub(super) mounts: Mounts,
    /// Places of puts that gather what they write.
    pub(super) gathering: Arc<Semaphore>,
    checked: Checked<Digest>,
    open: OpenFiles,
    /// Files that were found damaged or lost, and not good since.
    damaged: Mutex<HashSet<FileId>>,
    /// Files that are being read to be checked, so that one thread does it.
    checking: Mutex<HashSet<Stamp>>,
    checking_ended: Condvar,
    list: Mutex<List>,
    list_changed: Condvar,
}

#[derive(Debug, Default)]
struct List {
    /// To be looked at.
    released: HashSet<FileId>,
    /// No row refers to them, but they were pinned when they were looked at.
    pinned: HashSet<FileId>,
    is_collecting: bool,
    is_stopping: bool,
}

/// Lock of something that no code leaves half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Mounts give objects names, and take them away.
fn stamp_of(file: &File) -> io::Result<Stamp> {
    file.metadata().map(|meta| Stamp::of_bytes(&meta))
}

impl Files {
    /// Opens the files in the folder `dir`; makes the folders, empties staging, and counts.
    ///
    /// # Cost
    /// One `stat` a file.
    pub(in crate::data) fn open(dir: &Path, limits: ObjectLimits) -> Result<Arc<Self>, DataError> {
        let (objects, staging) = (dir.join(FOLDER), dir.join("staging"));
        for folder in [&objects, &staging] {
            create_dirs(folder).map_err(io_error("make a folder of objects"))?;
            // What was made just before a kill is not durable yet.
            sync_dir(folder).map_err(io_error("sync a folder of objects"))?;
        }
        for entry in fs::read_dir(&staging).map_err(io_error("list unfinished objects"))? {
            let path = entry.map_err(io_error("list unfinished objects"))?.path();
            fs::remove_file(path).map_err(io_error("remove an unfinished object"))?;
        }
        let mut used = 0;
        walk(&objects, |_, meta| used += meta.len())?;
        Ok(Arc::new(Self {
            objects,
            staging,
            limits,
            space: space::Space::new(used, limits.bytes_max),
            mounts: Mounts::open(dir)?,
            gathering: Arc::new(Semaphore::new(GATHERING_MAX)),
            checked: Checked::new(),
            open: OpenFiles::default(),
            damaged: Mutex::default(),
            checking: Mutex::default(),
            checking_ended: Condvar::new(),
            list: Mutex::default(),
            list_changed: Condvar::new(),
        }))
    }

    pub(super) fn path(&self, id: FileId) -> PathBuf {
        self.folder(id.bucket).join(id.digest.hex())
    }

    pub(super) fn folder(&self, bucket: BucketId) -> PathBuf {
        self.objects.join(format!("{:016x}", bucket.0))
    }

    /// A path to write to; the file is gone when it is dropped, unless it was put in place.
    pub(super) fn stage(&self) -> StagedPath {
        self.space.stage(&self.staging, "object")
    }

    /// Keeps a file, which need not exist.
    pub(super) fn hold(self: &Arc<Self>, id: FileId) -> Held {
        Held { id, pin: Some(self.space.pin(vec![id])), files: Arc::clone(self) }
    }

    /// Every file in place.
    pub(super) fn all(&self) -> Result<HashSet<FileId>, DataError> {
        let mut found = HashSet::new();
        walk(&self.objects, |id, _| {
            found.insert(id);
        })?;
        Ok(found)
    }

    /// Opens a file of `len` bytes after checking it, if this process did not before; `None` if it is not there or not what it was.
    pub(super) fn open_file(&self, id: FileId, len: u64) -> Result<Option<(Arc<File>, Verified)>, DataError> {
        let file = match File::open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("open an object"))?,
        };
        let meta = file.metadata().map_err(io_error("look at an object"))?;
        if !meta.is_file() || meta.len() != len {
            return Ok(None);
        }
        let stamp = Stamp::of_bytes(&meta);
        let Some(_turn) = self.turn(stamp, &id.digest) else { return Ok(Some((self.open.share(id, file), Verified::Before))) };
        Ok(self.check(&file, stamp, id)?.map(|took| (self.open.share(id, file), Verified::Now(took))))
    }

    /// Opens a file of `len` bytes that this process has checked; who has it pinned. What somebody has open is not opened again, and is as
    /// good if its path leads elsewhere by now.
    pub(super) fn open_checked(&self, id: FileId, len: u64) -> Option<Arc<File>> {
        if let Some(file) = self.open.get(id).filter(|file| self.is_checked(file, id, len)) {
            return Some(file);
        }
        let file = File::open(self.path(id)).ok()?;
        self.is_checked(&file, id, len).then(|| self.open.share(id, file))
    }

    fn is_checked(&self, file: &File, id: FileId, len: u64) -> bool {
        let Ok(meta) = file.metadata() else { return false };
        meta.is_file() && meta.len() == len && self.checked.contains(Stamp::of_bytes(&meta), &id.digest)
    }

    /// Waits until no other thread checks the file; `None` if it was found good.
    fn turn(&self, stamp: Stamp, digest: &Digest) -> Option<Turn<'_>> {
        if self.checked.contains(stamp, digest) {
            return None;
        }
        let mut checking = lock(&self.checking);
        while checking.contains(&stamp) {
            checking = self.checking_ended.wait(checking).unwrap_or_else(PoisonError::into_inner);
        }
        if self.checked.contains(stamp, digest) {
            return None;
        }
        checking.insert(stamp);
        Some(Turn { files: self, stamp })
    }

    /// Reads the file and remembers it if it is good. Answers the time that it took, `None` if it is not.
    fn check(&self, file: &File, stamp: Stamp, id: FileId) -> Result<Option<Duration>, DataError> {
        let started = Instant::now();
        let found = digest_of(file).map_err(io_error("read an object"))?;
        if found != id.digest {
            return Ok(None);
        }
        if stamp_of(file).map_err(io_error("look at an object"))? == stamp {
            self.checked.remember(stamp, id.digest);
        }
        lock(&self.damaged).remove(&id);
        Ok(Some(started.elapsed()))
    }

    /// Reads a file whatever this process remembers of it; `false` if it is lost or not what it was.
    pub(super) fn scrub(&self, id: FileId, len: u64) -> Result<bool, DataError> {
        let file = match File::open(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other.map_err(io_error("open an object"))?,
        };
        let meta = file.metadata().map_err(io_error("look at an object"))?;
        if !meta.is_file() || meta.len() != len {
            return Ok(false);
        }
        let stamp = Stamp::of_bytes(&meta);
        let checked = self.check(&file, stamp, id);
        if !matches!(checked, Ok(Some(_))) {
            self.checked.forget(stamp);
        }
        Ok(checked?.is_some())
    }

    /// Whether the file in place is known to be good.
    pub(super) fn is_good(&self, id: FileId) -> bool {
        File::open(self.path(id)).and_then(|file| stamp_of(&file)).is_ok_and(|stamp| self.checked.contains(stamp, &id.digest))
    }

    /// Whether the file in place is known to be damaged or lost.
    pub(super) fn is_damaged(&self, id: FileId) -> bool {
        lock(&self.damaged).contains(&id)
    }

    /// Remembers that the file in place is damaged or lost.
    pub(super) fn note_damaged(&self, id: FileId) {
        let mut damaged = lock(&self.damaged);
        // Past that it is found anew by whoever opens it.
        if damaged.len() < DAMAGED_MAX {
            damaged.insert(id);
        }
    }

    /// Remembers that this process wrote the file in place.
    pub(super) fn remember(&self, id: FileId, file: &File) -> Result<(), DataError> {
        lock(&self.damaged).remove(&id);
        self.checked.remember(stamp_of(file).map_err(io_error("look at an object"))?, id.digest);
        Ok(())
    }

    /// Says that a row that referred to a file goes, in a transaction that need not be committed yet.
    pub(in crate::data) fn release(&self, id: FileId) {
        lock(&self.damaged).remove(&id);
        lock(&self.list).released.insert(id);
        self.list_changed.notify_one();
    }

    /// Ends [`Files::collect`].
    pub(super) fn stop(&self) {
        lock(&self.list).is_stopping = true;
        self.list_changed.notify_all();
    }

    /// Unlinks released files until it is stopped. `commit` returns when every transaction that was begun is committed or undone;
    /// `is_referenced` then tells whether a row refers to a file.
    pub(super) fn collect(
        &self,
        commit: impl Fn() -> Result<(), DataError>,
        mut is_referenced: impl FnMut(FileId) -> Result<bool, DataError>,
    ) {
        self.mounts.empty_trash();
        while let Some(released) = self.next() {
            // What hangs in the tree of a bucket that is gone takes room as long as its link is there.
            self.mounts.empty_trash();
            let (mut pinned, mut failed) = (HashSet::new(), HashSet::new());
            let committed = commit();
            let round = self.space.round();
            for id in released {
                // After the round began: see `storage/space.rs`.
                let removed =
                    committed.clone().and_then(|()| is_referenced(id)).and_then(|is_referenced| self.remove(id, is_referenced));
                match removed {
                    Ok(true) => {}
                    Ok(false) => {
                        pinned.insert(id);
                    }
                    Err(error @ (DataError::ReadOnly { .. } | DataError::Closed)) => {
                        tracing::debug!(%error, "files of objects that nobody needs stay until the next start");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "a file of an object that nobody needs stays for now");
                        failed.insert(id);
                    }
                }
            }
            drop(round);
            let mut list = lock(&self.list);
            list.is_collecting = false;
            list.pinned.extend(pinned);
            if !failed.is_empty() {
                list.released.extend(failed);
                let _list = self.list_changed.wait_timeout_while(list, RETRY, |list| !list.is_stopping);
            }
        }
    }

    fn next(&self) -> Option<HashSet<FileId>> {
        let mut list = lock(&self.list);
        while list.released.is_empty() && !list.is_stopping {
            list = self.list_changed.wait(list).unwrap_or_else(PoisonError::into_inner);
        }
        if list.is_stopping {
            return None;
        }
        list.is_collecting = true;
        Some(mem::take(&mut list.released))
    }

    /// `false`: it is there, and must stay until a pin goes.
    fn remove(&self, id: FileId, is_referenced: bool) -> Result<bool, DataError> {
        let path = self.path(id);
        let is_removed = is_referenced || self.space.remove(&id, &path).map_err(io_error("remove an object"))?.is_some();
        Ok(is_removed || !path.exists())
    }
}

/// Ends when the file was checked.
struct Turn<'a> {
    files: &'a Files,
    stamp: Stamp,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.files.checking).remove(&self.stamp);
        self.files.checking_ended.notify_all();
    }
}

/// Keeps a file while it lives.
#[derive(Debug)]
pub(super) struct Held {
    id: FileId,
    pin: Option<space::Pin<FileId>>,
    files: Arc<Files>,
}

impl Held {
    pub(super) fn id(&self) -> FileId {
        self.id
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.pin.take());
        let mut list = lock(&self.files.list);
        // During a collection it may have been looked at while this held it.
        if list.pinned.remove(&self.id) || list.is_collecting {
            list.released.insert(self.id);
            self.files.list_changed.notify_one();
        }
    }
}

pub(super) fn full(full: Full) -> DataError {
    let Full { used, wanted, bytes_max } = full;
    let text = format!("{used} bytes are used and {wanted} more do not fit in {bytes_max}");
    io_error("keep an object")(io::Error::new(io::ErrorKind::StorageFull, text))
}

fn digest_of(file: &File) -> io::Result<Digest> {
    let mut hasher = sha2::Sha256::new();
    let (mut buffer, mut at) = (vec![0; READ_BYTES], 0);
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return Ok(Digest::from_bytes(hasher.finalize().into())),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether a file below the folder `objects` is there and what it was, without anything remembered.
pub(super) fn is_whole(objects: &Path, id: FileId, len: u64) -> Result<bool, DataError> {
    let path = objects.join(format!("{:016x}", id.bucket.0)).join(id.digest.hex());
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(io_error("open an object"))?,
    };
    let meta = file.metadata().map_err(io_error("look at an object"))?;
    Ok(meta.is_file() && meta.len() == len && digest_of(&file).map_err(io_error("read an object"))? == id.digest)
}

/// Calls `visit` for each file in place. Others are not ours: left alone, not counted.
fn walk(objects: &Path, mut visit: impl FnMut(FileId, &fs::Metadata)) -> Result<(), DataError> {
    let list = |path: &Path| fs::read_dir(path).map_err(io_error("list objects"));
    for folder in list(objects)? {
        let folder = folder.map_err(io_error("list objects"))?;
        let name = folder.file_name();
        let number = name.to_str().filter(|name| name.len() == 16).and_then(|name| u64::from_str_radix(name, 16).ok());
        let (Some(number), true) = (number, folder.file_type().is_ok_and(|kind| kind.is_dir())) else { continue };
        for entry in list(&folder.path())? {
            let entry = entry.map_err(io_error("list objects"))?;
            let Some(digest) = entry.file_name().to_str().and_then(|name| Digest::from_hex(name).ok()) else { continue };
            let meta = entry.metadata().map_err(io_error("look at an object"))?;
            if meta.is_file() {
                visit(FileId { bucket: BucketId(number), digest }, &meta);
            }
        }
    }
    Ok(())
}
