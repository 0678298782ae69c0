//! Files of deployed functions, addressed by content: the Wasm as it came, and what was made of it.
//!
//! ```text
//! DIR/staging/KIND-N                    being written; each N once; emptied at start
//! DIR/wasm/TENANT/SHA256.wasm           an upload, byte for byte
//! DIR/artifacts/TENANT/KEY.cwasm        native code with its memory image, and a trailer (layout in `seal.rs`)
//! DIR/snapshots/TENANT/KEY.wasm.zst     a module after its initialisation, compressed, and a trailer
//! DIR/bundles/TENANT/DIGEST/            the files that a deploy brought (`bundle.rs`)
//! DIR/engine                            digest of the engine that all live functions have native code for, if there is one
//! ```
//!
//! Owns these files, their durability, their MACs, and the count of bytes. Knows nothing about which of them are needed (the
//! registry does), nor about what native code is. Every call blocks. Invariant: under its final name a file is whole and durable,
//! or damaged by somebody else, which [`Artifacts::verify_artifact`], [`Artifacts::open_snapshot`] and [`Artifacts::open_wasm`]
//! find. They prove what the file held when it was read: whoever can write to the data directory later can change it, and is not
//! defended against.

mod bundle;
mod collect;
mod dir;
mod error;
mod file;
mod seal;
mod staging;

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use self::error::{full, io_error};
use self::file::FOLDERS;
use self::seal::{CODE, Label, META_LEN_MAX, SNAPSHOT, SealError, Sealed, TRAILER_LEN};
use crate::crash;
use crate::id::{Digest, TenantId};
use crate::storage::checked::{Checked, Stamp};
use crate::storage::disk::{create_dirs, sync_dir, write_durably};
use crate::storage::space::{self, Placed};

pub use self::bundle::{Bundle, BundleError, BundleLimits};
pub use self::collect::Collected;
pub use self::dir::{DataDir, DataDirError, FORMAT, FORMAT_MIN};
pub use self::error::ArtifactError;
pub use self::file::FileId;
pub use self::seal::MacKey;
pub use self::staging::{Upload, Uploaded};
pub use crate::storage::disk::is_full;

type Space = space::Space<FileId>;
type Charge = space::Charge<FileId>;
/// Keeps files from the collector while it lives.
pub type Pin = space::Pin<FileId>;
/// A path in staging that belongs to its holder.
pub type StagedPath = space::StagedPath<FileId>;

/// Images up to this many bytes are checked at every load, larger ones once in a process (`checked.rs`).
const IMAGE_CHECKED_ALWAYS_BYTES: u64 = 1 << 20;
const ENGINE_FILE: &str = "engine";

/// What a build says of the native code that it left.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contents {
    /// Where in the file the memory image lies; empty when there is none.
    pub image: Range<u64>,
    /// Bytes to keep in the file, at most 64 KiB; they come back in [`VerifiedArtifact::meta`].
    pub meta: Vec<u8>,
}

/// Native code that is what this node put there.
#[derive(Debug)]
pub struct VerifiedArtifact {
    /// The open file, at position 0: map this one, not the path, which may name another file by then.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes of native code at the beginning of the file; a trailer follows.
    pub payload_len: u64,
    /// What was put there with it.
    pub meta: Vec<u8>,
    stamp: Stamp,
}

impl VerifiedArtifact {
    /// Which file it is, for whoever may want to open it again later.
    #[must_use]
    pub fn remember(&self) -> ClosedArtifact {
        ClosedArtifact { path: self.path.clone(), payload_len: self.payload_len, stamp: self.stamp }
    }
}

/// Native code that was what this node put there, without the open file.
#[derive(Debug, Clone)]
pub struct ClosedArtifact {
    path: PathBuf,
    payload_len: u64,
    stamp: Stamp,
}

impl ClosedArtifact {
    /// Opens the file that was verified; without [`VerifiedArtifact::meta`].
    ///
    /// # Errors
    /// When it is gone, or was changed or replaced since.
    pub fn open(&self) -> io::Result<VerifiedArtifact> {
        let Self { path, payload_len, stamp } = self.clone();
        let file = File::open(&path)?;
        if Stamp::of(&file)? != stamp {
            return Err(io::Error::other("another file lies there now"));
        }
        Ok(VerifiedArtifact { file, path, payload_len, meta: Vec::new(), stamp })
    }
}

/// Whether a folder is on a file system that is memory. A page of a hole is allocated there when it is first read, also by whoever has
/// the file mapped: without room, that is SIGBUS, and the end of the node.
fn is_in_memory(folder: &Path) -> io::Result<bool> {
    /// `TMPFS_MAGIC` of `linux/magic.h`.
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    Ok(rustix::fs::statfs(folder)?.f_type == TMPFS)
}

/// Allocates the holes of a file.
fn fill(file: &File, len: u64) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len))?)
}

/// A snapshot that is what this node put there.
#[derive(Debug)]
pub struct VerifiedSnapshot {
    /// The open file, at position 0.
    pub file: File,
    /// Bytes of the snapshot at the beginning of the file; a trailer follows, which its reader must not take for a part of it.
    pub payload_len: u64,
    /// What is kept with it.
    pub meta: Vec<u8>,
}

/// Where a build may write. The bytes are counted only when they are put in place.
#[derive(Debug)]
pub struct StagedBuild {
    /// Native code.
    pub native: StagedPath,
    /// The module after its initialisation, compressed; only if there is one.
    pub snapshot: StagedPath,
}

/// The files of one data directory. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Artifacts {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    key: MacKey,
    space: Arc<Space>,
    /// Whether that is on a file system that is memory, where no artifact has holes.
    in_memory: bool,
    /// Held for a whole collection, so that there is one at a time.
    collecting: Mutex<()>,
    checked: Checked<blake3::Hash>,
}

impl Artifacts {
    /// Opens the files of `dir`, empties staging, and counts what is there. `dir` must outlive the result: it holds the lock.
    /// `bytes_max`: ceiling for the sum of what all files take. That is their length; of native code with holes, what is allocated.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] if a folder cannot be made or read.
    ///
    /// # Cost
    /// One `stat` a file: about 1 us each when cached.
    pub fn open(dir: &DataDir, key: MacKey, bytes_max: u64) -> Result<Self, ArtifactError> {
        let root = dir.path().to_path_buf();
        let mut used = 0;
        for folder in FOLDERS.map(|(folder, ..)| folder).into_iter().chain(["staging"]) {
            let path = root.join(folder);
            create_dirs(&path).map_err(io_error("create", &path))?;
            // A folder of a tenant that was made just before a kill is not durable yet.
            sync_dir(&path).map_err(io_error("sync", &path))?;
        }
        collect::empty(&root.join("staging"))?;
        collect::walk(&root, &mut |id, path| {
            let bytes = match id {
                FileId::Bundle { .. } => bundle::disk_bytes(path),
                _ => fs::symlink_metadata(path).map(|meta| id.disk_bytes(&meta)),
            };
            used += match bytes {
                Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
                other => other.map_err(io_error("look at", path))?,
            };
            Ok(())
        })?;
        let space = Space::new(used, bytes_max);
        let in_memory = is_in_memory(&root).map_err(io_error("look at the file system of", &root))?;
        let shared = Shared { root, key, space, in_memory, collecting: Mutex::new(()), checked: Checked::new() };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Bytes of all files in place and of all uploads under way.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.space.used()
    }

    /// Whether there is room under the ceiling, as it is now, for files that a build left, each with its trailer, and `kept` bytes more. Cost: one `stat`
    /// each.
    pub fn fit<'a>(&self, files: impl IntoIterator<Item = (FileId, &'a StagedPath)>, kept: usize) -> bool {
        // One that is not there is told when it is put in place.
        let bytes = |(id, staged): (FileId, &StagedPath)| {
            fs::metadata(staged.path()).map_or(0, |meta| self.bytes_in_place(&id, &meta) + TRAILER_LEN)
        };
        files.into_iter().map(bytes).sum::<u64>() + kept as u64 <= self.shared.space.room()
    }

    /// Begins to take in a file.
    ///
    /// # Errors
    /// [`ArtifactError::StorageFull`] if not one byte more fits, [`ArtifactError::Io`] if the file cannot be made.
    pub fn create_upload(&self) -> Result<Upload, ArtifactError> {
        let space = &self.shared.space;
        drop(Charge::new(space, 1).map_err(full)?);
        Upload::create(space.stage(&self.staging(), "upload"), Charge::new(space, 0).map_err(full)?)
    }

    /// Paths to which a build may write; nothing is there yet, and what is left there goes with the result.
    #[must_use]
    pub fn stage_build(&self) -> StagedBuild {
        let stage = |kind| self.shared.space.stage(&self.staging(), kind);
        StagedBuild { native: stage("native"), snapshot: stage("snapshot") }
    }

    fn staging(&self) -> PathBuf {
        self.shared.root.join("staging")
    }

    /// Protects files from the collector. Take it before the files are put in place, and keep it until the registry has
    /// committed the revision that names them; `storage/space.rs` says why that suffices.
    pub fn pin(&self, ids: impl IntoIterator<Item = FileId>) -> Pin {
        self.shared.space.pin(ids.into_iter().collect())
    }

    /// Where a file lies, whether it exists or not.
    #[must_use]
    pub fn path(&self, id: &FileId) -> PathBuf {
        self.shared.root.join(id.relative())
    }

    /// Length in bytes of a file that is there, whole or not. Cost: one `stat`.
    #[must_use]
    pub fn file_len(&self, id: &FileId) -> Option<u64> {
        fs::metadata(self.path(id)).ok().filter(Metadata::is_file).map(|meta| meta.len())
    }

    /// Puts an upload in place, durably. The file must be pinned. One that is there already is replaced: it has the same bytes,
    /// unless it is damaged, and then deploying again heals it.
    ///
    /// # Errors
    /// [`ArtifactError::StorageFull`] or [`ArtifactError::Io`]. The file may be in place then; the collector will take it.
    ///
    /// # Cost
    /// One rename, one fsync of a directory.
    pub fn put_wasm(&self, tenant: &TenantId, uploaded: Uploaded) -> Result<(), ArtifactError> {
        let id = FileId::wasm(tenant, uploaded.digest());
        let Uploaded { staged, mut charge, .. } = uploaded;
        self.place(&id, &staged, &mut charge, "wasm-renamed")?;
        crash::point("wasm-dir-synced");
        Ok(())
    }

    /// Seals native code with the trailer and puts it in place, durably, over what was there. The file must be pinned. Returns
    /// the length of the file in bytes. Its image counts as checked from then on: its MAC was made just now.
    ///
    /// # Errors
    /// [`ArtifactError::Unfit`] if the build left nothing, or `contents` cannot be of what it left;
    /// [`ArtifactError::StorageFull`] or [`ArtifactError::Io`].
    ///
    /// # Cost
    /// Reads the code once for the MACs, and no holes of its image (about 0.3 ms per MiB); two fsyncs.
    pub fn put_artifact(
        &self,
        tenant: &TenantId,
        key: Digest,
        staged: StagedPath,
        contents: Contents,
    ) -> Result<u64, ArtifactError> {
        let id = FileId::artifact(tenant, key);
        let label = Label { magic: CODE, tenant, key };
        let steps = ["artifact-written", "artifact-synced", "artifact-renamed", "artifact-dir-synced"];
        let (file, sealed) = self.put_sealed(&id, &staged, label, contents, steps)?;
        if sealed.image_len() > IMAGE_CHECKED_ALWAYS_BYTES {
            // After the rename, which is a change of the file's times.
            let stamp = Stamp::of(&file).map_err(io_error("look at", staged.path()))?;
            self.shared.checked.remember(stamp, sealed.image_mac);
        }
        Ok(sealed.file_len())
    }

    /// Seals a snapshot with the trailer and puts it in place, as [`Artifacts::put_artifact`] does. `meta`: what is to be kept with it. Returns the
    /// length of the file in bytes.
    ///
    /// # Errors
    /// As [`Artifacts::put_artifact`].
    ///
    /// # Cost
    /// Reads the snapshot once; two fsyncs.
    pub fn put_snapshot(&self, tenant: &TenantId, key: Digest, staged: StagedPath, meta: Vec<u8>) -> Result<u64, ArtifactError> {
        let id = FileId::snapshot(tenant, key);
        let label = Label { magic: SNAPSHOT, tenant, key };
        let steps = ["snapshot-written", "snapshot-synced", "snapshot-renamed", "snapshot-dir-synced"];
        let (_file, sealed) = self.put_sealed(&id, &staged, label, Contents { meta, ..Contents::default() }, steps)?;
        Ok(sealed.file_len())
    }

    /// Whether a file has no holes once it is in place.
    fn fills(&self, id: &FileId) -> bool {
        self.shared.in_memory && matches!(id, FileId::Artifact { .. })
    }

    /// What a file that was built will take.
    fn bytes_in_place(&self, id: &FileId, meta: &Metadata) -> u64 {
        if self.fills(id) { meta.len() } else { id.disk_bytes(meta) }
    }

    /// `steps`: crash points after each.
    fn put_sealed(
        &self,
        id: &FileId,
        staged: &StagedPath,
        label: Label<'_>,
        contents: Contents,
        [written, synced, renamed, dir_synced]: [&'static str; 4],
    ) -> Result<(File, Sealed), ArtifactError> {
        let unfit = |what| Err(ArtifactError::Unfit { id: id.clone(), what });
        let path = staged.path();
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return unfit("expected a file"),
            other => other.map_err(io_error("open what was built", path))?,
        };
        let meta = file.metadata().map_err(io_error("look at what was built", path))?;
        if meta.len() == 0 {
            return unfit("expected a file that is not empty");
        }
        let image = &contents.image;
        if image.start > image.end || image.end > meta.len() {
            return unfit("expected a memory image inside of it");
        }
        if contents.meta.len() > META_LEN_MAX {
            return unfit("expected at most 64 KiB to be kept with it");
        }
        let trailer_len = TRAILER_LEN + contents.meta.len() as u64;
        let wanted = self.bytes_in_place(id, &meta).saturating_add(trailer_len);
        let mut charge = Charge::new(&self.shared.space, wanted).map_err(full)?;
        if self.fills(id) {
            fill(&file, meta.len()).map_err(io_error("allocate what was built", path))?;
        }
        let sealed = seal::seal(&mut file, &self.shared.key, label, contents).map_err(io_error("seal", path))?;
        crash::point(written);
        file.sync_all().map_err(io_error("sync", path))?;
        crash::point(synced);
        // Only now is it certain what a file with holes takes.
        let meta = file.metadata().map_err(io_error("look at", path))?;
        charge.settle(id.disk_bytes(&meta)).map_err(full)?;
        self.place(id, staged, &mut charge, renamed)?;
        crash::point(dir_synced);
        Ok((file, sealed))
    }

    fn place(&self, id: &FileId, staged: &StagedPath, charge: &mut Charge, renamed: &'static str) -> Result<(), ArtifactError> {
        let space = &self.shared.space;
        debug_assert!(space.is_pinned(id), "{id} must be pinned, or the collector may take it before its revision is committed");
        let target = self.path(id);
        let folder = target.parent().expect("`path` joins a folder and a name");
        create_dirs(folder).map_err(io_error("create", folder))?;
        if target.is_dir() {
            // Somebody else's, where a file was. What is in it, if anything is, is not ours to remove.
            fs::remove_dir(&target).map_err(io_error("remove a folder in the place of a file:", &target))?;
        }
        space.place(id, staged, &target, charge).map_err(io_error("rename into place", &target))?;
        crash::point(renamed);
        sync_dir(folder).map_err(io_error("sync", folder))
    }

    /// Opens native code after checking that it is what was put there for this tenant and key. An image of more than 1 MiB is
    /// read only the first time that this process meets the file.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`] and [`ArtifactError::Corrupt`] (compile anew then), or [`ArtifactError::Io`].
    ///
    /// # Cost
    /// Reads the file but for a large image that was checked: about 0.3 ms per MiB when it is in the page cache.
    pub fn verify_artifact(&self, tenant: &TenantId, key: Digest) -> Result<VerifiedArtifact, ArtifactError> {
        let id = FileId::artifact(tenant, key);
        let (mut file, path) = self.open_file(&id)?;
        let (Sealed { payload_len, meta, .. }, stamp) =
            self.check(&mut file, Label { magic: CODE, tenant, key }).map_err(|error| seal_error(error, id, &path))?;
        Ok(VerifiedArtifact { file, path, payload_len, meta, stamp })
    }

    /// Removes native code that is not what was put there, pinned or not: its holder is about to put another in its place.
    ///
    /// # Errors
    /// [`ArtifactError::Io`].
    ///
    /// # Cost
    /// As [`Artifacts::verify_artifact`].
    pub fn discard_damaged(&self, tenant: &TenantId, key: Digest) -> Result<(), ArtifactError> {
        let id = FileId::artifact(tenant, key);
        let path = self.path(&id);
        // What is not there needs no removal. A folder is somebody else's; see `place`.
        let Some(found) = fs::symlink_metadata(&path).ok().filter(|found| !found.is_dir()) else { return Ok(()) };
        if !matches!(self.verify_artifact(tenant, key), Err(ArtifactError::Corrupt { .. })) {
            return Ok(());
        }
        self.shared.space.discard(&id, &path, &found).map_err(io_error("remove", &path))
    }

    /// Opens a snapshot after checking that it is what was put there for this tenant and key.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`] and [`ArtifactError::Corrupt`] (build the module anew then), or [`ArtifactError::Io`].
    ///
    /// # Cost
    /// Reads the whole file: about 0.3 ms per MiB when it is in the page cache.
    pub fn open_snapshot(&self, tenant: &TenantId, key: Digest) -> Result<VerifiedSnapshot, ArtifactError> {
        let id = FileId::snapshot(tenant, key);
        let (mut file, path) = self.open_file(&id)?;
        let (sealed, _) =
            self.check(&mut file, Label { magic: SNAPSHOT, tenant, key }).map_err(|error| seal_error(error, id, &path))?;
        Ok(VerifiedSnapshot { file, payload_len: sealed.payload_len, meta: sealed.meta })
    }

    /// Whether `snapshot` is still the one that lies there.
    #[must_use]
    pub fn is_in_place(&self, tenant: &TenantId, key: Digest, snapshot: &VerifiedSnapshot) -> bool {
        let there = fs::metadata(self.path(&FileId::snapshot(tenant, key)));
        matches!((there, Stamp::of(&snapshot.file)), (Ok(there), Ok(open)) if Stamp::of_metadata(&there) == open)
    }

    /// What a file is sealed with, and its stamp from before it was read.
    fn check(&self, file: &mut File, label: Label<'_>) -> Result<(Sealed, Stamp), SealError> {
        let Shared { key, checked, .. } = &*self.shared;
        let stamp = Stamp::of(file)?;
        let sealed = seal::open(file, key, label)?;
        let is_large = sealed.image_len() > IMAGE_CHECKED_ALWAYS_BYTES;
        if !(is_large && checked.contains(stamp, &sealed.image_mac)) {
            sealed.check_image(file, key)?;
            if is_large && Stamp::of(file)? == stamp {
                checked.remember(stamp, sealed.image_mac);
            }
        }
        Ok((sealed, stamp))
    }

    /// Opens an upload after checking its SHA-256; the file is at position 0.
    ///
    /// # Errors
    /// As [`Artifacts::verify_artifact`].
    ///
    /// # Cost
    /// Reads the whole file: about 0.7 ms per MiB when it is in the page cache.
    pub fn open_wasm(&self, tenant: &TenantId, digest: Digest) -> Result<File, ArtifactError> {
        let id = FileId::wasm(tenant, digest);
        let (mut file, path) = self.open_file(&id)?;
        let found = sha256(&mut file).map_err(io_error("read", &path))?;
        if found != *digest.bytes() {
            return Err(ArtifactError::Corrupt { id, what: "its SHA-256 is not its name" });
        }
        Ok(file)
    }

    /// The engine that every live function has native code for, as [`Artifacts::set_engine`] last said; `None` when that is not known.
    #[must_use]
    pub fn engine(&self) -> Option<Digest> {
        let text = fs::read_to_string(self.shared.root.join(ENGINE_FILE)).ok()?;
        Digest::from_hex(text.trim_end()).ok()
    }

    /// Remembers, durably, which engine every live function has native code for. `None`: from now on they may differ.
    ///
    /// # Errors
    /// [`ArtifactError::StorageFull`] or [`ArtifactError::Io`].
    pub fn set_engine(&self, engine: Option<Digest>) -> Result<(), ArtifactError> {
        let folder = &self.shared.root;
        let text = engine.map_or_else(|| "unknown".into(), |engine| engine.hex());
        write_durably(folder, ENGINE_FILE, text.as_bytes()).map_err(io_error("write in", folder))
    }

    fn open_file(&self, id: &FileId) -> Result<(File, PathBuf), ArtifactError> {
        let path = self.path(id);
        // A pipe in its place would be waited for without end.
        match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path) {
            Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => Ok((file, path)),
            Ok(_) => Err(ArtifactError::Corrupt { id: id.clone(), what: "it is not a regular file" }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ArtifactError::Missing { id: id.clone() }),
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }
}

fn seal_error(error: SealError, id: FileId, path: &Path) -> ArtifactError {
    match error {
        SealError::Corrupt(what) => ArtifactError::Corrupt { id, what },
        SealError::Io(error) => io_error("read", path)(error),
    }
}

/// SHA-256 of a whole file, which is left at position 0.
fn sha256(file: &mut File) -> io::Result<[u8; 32]> {
    let digest = Digest::of_reader(&mut *file)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(*digest.bytes())
}

#[cfg(test)]
mod tests;
