//! Bundles: the files that a deploy brings, from a tar archive to a folder that never changes.
//!
//! Owns the unpacking, its bounds, the digest and the way into place. Knows nothing about grants. Invariants: whatever the archive says,
//! nothing is written but regular files and folders below a new folder in staging; under its final name a bundle is whole and durable.
//!
//! The digest is of names and bytes, in the order of the names. Times, owners and modes of the archive are dropped: all files have the same
//! times, so that what a guest sees depends on the digest alone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sha2::Digest as _;
use tar::EntryType;

use super::error::{full, io_error};
use super::{ArtifactError, Artifacts, Charge, FileId, StagedPath};
use crate::crash;
use crate::fault::{Code, Fault};
use crate::id::{Digest, TenantId};
use crate::manifest::{BUNDLE_ENTRIES_MAX, BUNDLE_PATH_LEN_MAX, check_path};
use crate::storage::disk::{create_dirs, sync_dir};

/// Longest extended header of an entry, in bytes: it holds a path and a few numbers.
const EXTENSION_LEN_MAX: u64 = 8 << 10;
/// What a file takes besides its bytes, and what a folder takes, in bytes: about a block.
const ENTRY_BYTES: u64 = 4096;
/// The time of every file and folder: 1 January 1980, before which some formats have none.
const TIME: Duration = Duration::from_secs(315_532_800);
/// When every file and folder was last read: 1 January 2100. Of a time to come Linux keeps no newer one (`relatime`, the usual), so that no
/// invocation sees what another has read.
const ACCESSED: Duration = Duration::from_secs(4_102_444_800);

/// How much a deploy may bring.
#[derive(Debug, Clone, Copy)]
pub struct BundleLimits {
    /// Sum of the lengths of all files, in bytes.
    pub bytes_max: u64,
    /// Files and folders.
    pub entries_max: usize,
}

impl BundleLimits {
    /// The usual number of files, and at most `bytes_max` bytes in them.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, entries_max: BUNDLE_ENTRIES_MAX }
    }

    /// Longest archive of so much: its headers too.
    #[must_use]
    pub fn archive_bytes_max(&self) -> u64 {
        // A header, the header of its name, the name, and what fills the last block; and the end, to which some programs add zeros.
        let each = 512 * 3 + 1024;
        self.bytes_max.saturating_add(self.entries_max as u64 * each).saturating_add(64 << 10)
    }
}

/// An archive that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is none, or has what a bundle may not have.
    #[error("the archive of files cannot be used: {0}")]
    Bad(String),
    /// It has too many files and folders; as many as there may be.
    #[error("the folders of the deploy have more than {0} files and folders")]
    TooMany(usize),
    /// It has too much; as many bytes as there may be.
    #[error("the folders of the deploy have more than {0} bytes of files")]
    TooLarge(u64),
    /// It cannot be kept.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl BundleError {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Bad(_) => Fault::new(Code::BadRequest, self.to_string())
                .hint("send an uncompressed tar archive of regular files and folders, as 'hob deploy' does"),
            Self::TooMany(_) => Fault::new(Code::BodyTooLarge, self.to_string())
                .hint("leave out what the function does not read, or use a bucket"),
            Self::TooLarge(_) => Fault::new(Code::BodyTooLarge, self.to_string())
                .hint("leave out what the function does not read, use a bucket, or raise data.bundle_bytes_max"),
            Self::Artifact(error) => error.fault(),
        }
    }
}

/// What stands under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Folder,
    File { len: u64, digest: [u8; 32] },
}

type Entries = BTreeMap<String, Entry>;

/// The files of a deploy, durable in staging; gone on drop unless they were put in place.
#[derive(Debug)]
pub struct Bundle {
    digest: Digest,
    entries: Entries,
    charge: Charge,
    staged: StagedPath,
}

impl Bundle {
    /// Digest of names and bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of files, and the sum of their lengths in bytes.
    #[must_use]
    pub fn size(&self) -> (u64, u64) {
        let files = self.entries.values().filter_map(|entry| if let Entry::File { len, .. } = entry { Some(*len) } else { None });
        files.fold((0, 0), |(count, bytes), len| (count + 1, bytes + len))
    }

    /// Whether there is such a folder.
    #[must_use]
    pub fn has_folder(&self, path: &str) -> bool {
        self.entries.get(path) == Some(&Entry::Folder)
    }

    /// The first file that is in none of `folders`.
    pub fn outside<'a>(&'a self, folders: &[&str]) -> Option<&'a str> {
        let is_below = |path: &str, folder: &str| path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        let files = self.entries.iter().filter(|(_, entry)| **entry != Entry::Folder);
        files.map(|(path, _)| path.as_str()).find(|path| !folders.iter().any(|folder| is_below(path, folder)))
    }

    /// Where the files are until they are put in place.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staged.path()
    }
}

impl Artifacts {
    /// Unpacks an archive into staging, durably. Blocks.
    ///
    /// # Errors
    /// [`BundleError`]; nothing is left then.
    ///
    /// # Cost
    /// A few system calls and one fsync for each file and folder.
    pub fn unpack(&self, archive: impl Read, limits: BundleLimits) -> Result<Bundle, BundleError> {
        let space = &self.shared.space;
        let staged = space.stage_folder(&self.staging(), "bundle");
        let mut charge = Charge::new(space, 0).map_err(full)?;
        let entries =
            Unpacking { root: staged.path(), limits, charge: &mut charge, entries: Entries::new(), bytes: 0 }.run(archive)?;
        crash::point("bundle-unpacked");
        Ok(Bundle { digest: digest(&entries), entries, charge, staged })
    }

    /// Puts a bundle in place, durably. It must be pinned. One that is there already stays, unless it is damaged.
    ///
    /// # Errors
    /// [`ArtifactError`]. The bundle may be in place then; the collector will take it.
    ///
    /// # Cost
    /// One rename and one fsync; if it is there, that is read whole.
    pub fn put_bundle(&self, tenant: &TenantId, bundle: Bundle) -> Result<(), ArtifactError> {
        let id = FileId::bundle(tenant, bundle.digest);
        let Bundle { digest: wanted, staged, mut charge, .. } = bundle;
        let (space, target) = (&self.shared.space, self.path(&id));
        debug_assert!(space.is_pinned(&id), "{id} must be pinned, or the collector may take it before its revision is committed");
        let folder = target.parent().expect("`path` joins a folder and a name");
        create_dirs(folder).map_err(io_error("create", folder))?;
        let place =
            |charge: &mut Charge| space.place_folder(&staged, &target, charge).map_err(io_error("rename into place", &target));
        if !place(&mut charge)? {
            if read(&target).is_ok_and(|found| digest(&found) == wanted) {
                return Ok(());
            }
            tracing::warn!(%id, "files are damaged, and are put there anew");
            let away = space.stage_folder(&self.staging(), "removed");
            // One of this digest was charged as much, whatever became of it.
            space.replace_folder(&target, charge.bytes(), &away).map_err(io_error("replace", &target))?;
            // Nobody else puts one there but another deploy of the same.
            place(&mut charge)?;
        }
        crash::point("bundle-renamed");
        sync_dir(folder).map_err(io_error("sync", folder))?;
        crash::point("bundle-dir-synced");
        Ok(())
    }
}

struct Unpacking<'a> {
    root: &'a Path,
    limits: BundleLimits,
    charge: &'a mut Charge,
    entries: Entries,
    bytes: u64,
}

fn bad(what: impl Into<String>) -> BundleError {
    BundleError::Bad(what.into())
}

/// What the archive's reader says: the archive is broken, or did not come whole.
fn broken(error: &io::Error) -> BundleError {
    bad(error.to_string().chars().take(200).collect::<String>())
}

/// A path of the archive in a message: it may be long, and hold anything.
fn shown(path: &str) -> String {
    path.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl Unpacking<'_> {
    fn run(mut self, archive: impl Read) -> Result<Entries, BundleError> {
        self.make_folder(self.root)?;
        let mut archive = tar::Archive::new(archive);
        // Raw, because the library would read a name of any length into memory.
        let entries = archive.entries().map_err(|error| broken(&error))?.raw(true);
        let mut long = None;
        for entry in entries {
            let mut entry = entry.map_err(|error| broken(&error))?;
            match entry.header().entry_type() {
                EntryType::GNULongName => long = Some(name(&extension(&mut entry)?)),
                EntryType::XHeader => long = path_of(&extension(&mut entry)?)?.or(long),
                EntryType::XGlobalHeader => {}
                kind => {
                    let raw = long.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                    self.entry(kind, &raw, &mut entry)?;
                }
            }
        }
        self.settle()?;
        Ok(self.entries)
    }

    fn entry(&mut self, kind: EntryType, raw: &[u8], body: &mut tar::Entry<'_, impl Read>) -> Result<(), BundleError> {
        let text = std::str::from_utf8(raw).map_err(|_| bad("the name of a file is not UTF-8"))?;
        let path = text.strip_prefix("./").unwrap_or(text);
        let path = if kind == EntryType::Directory { path.strip_suffix('/').unwrap_or(path) } else { path };
        if kind == EntryType::Directory && (path.is_empty() || path == ".") {
            return Ok(());
        }
        check_path(path).map_err(|why| bad(format!("'{}': {why}", shown(text))))?;
        if let Some((parents, _)) = path.rsplit_once('/') {
            self.folders(parents)?;
        }
        match kind {
            EntryType::Directory => self.folders(path),
            EntryType::Regular => self.file(path, body),
            kind => Err(bad(format!("'{}' is neither a file nor a folder, but {kind:?}", shown(path)))),
        }
    }

    /// Makes a folder and those above it.
    fn folders(&mut self, path: &str) -> Result<(), BundleError> {
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for folder in ends.map(|end| &path[..end]) {
            match self.entries.get(folder) {
                Some(Entry::Folder) => {}
                Some(Entry::File { .. }) => return Err(bad(format!("'{}' is a file and a folder", shown(folder)))),
                None => {
                    self.count(folder, Entry::Folder)?;
                    self.make_folder(&self.root.join(folder))?;
                }
            }
        }
        Ok(())
    }

    fn make_folder(&self, path: &Path) -> Result<(), ArtifactError> {
        fs::DirBuilder::new().mode(0o700).create(path).map_err(io_error("create", path))
    }

    fn count(&mut self, path: &str, entry: Entry) -> Result<(), BundleError> {
        if self.entries.len() == self.limits.entries_max {
            return Err(BundleError::TooMany(self.limits.entries_max));
        }
        self.charge.grow(ENTRY_BYTES).map_err(full)?;
        self.entries.insert(path.into(), entry);
        Ok(())
    }

    fn file(&mut self, path: &str, body: &mut tar::Entry<'_, impl Read>) -> Result<(), BundleError> {
        if self.entries.contains_key(path) {
            return Err(bad(format!("'{}' is there twice", shown(path))));
        }
        let expected = body.header().entry_size().map_err(|error| broken(&error))?;
        // Before anything is read or written: what an archive says is believed only within the bounds.
        let sum = self.bytes.saturating_add(expected);
        if sum > self.limits.bytes_max {
            return Err(BundleError::TooLarge(self.limits.bytes_max));
        }
        self.bytes = sum;
        self.charge.grow(expected).map_err(full)?;
        self.count(path, Entry::Folder)?;
        let target = self.root.join(path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&target);
        let mut file = file.map_err(io_error("create a file of a deploy", &target))?;
        let mut hasher = sha2::Sha256::new();
        let (mut buffer, mut len) = (vec![0; 64 << 10], 0);
        loop {
            let count = match body.read(&mut buffer) {
                Err(error) => return Err(broken(&error)),
                Ok(0) => break,
                Ok(count) => count,
            };
            hasher.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(io_error("write a file of a deploy", &target))?;
            len += count as u64;
        }
        if len != expected {
            return Err(bad(format!("it ends in the middle of '{}'", shown(path))));
        }
        finish(&file).map_err(io_error("sync a file of a deploy", &target))?;
        self.entries.insert(path.into(), Entry::File { len, digest: hasher.finalize().into() });
        Ok(())
    }

    /// Makes the folders durable, the inner ones first.
    fn settle(&self) -> Result<(), ArtifactError> {
        let folders = self.entries.iter().rev().filter(|(_, entry)| **entry == Entry::Folder);
        let paths = folders.map(|(path, _)| self.root.join(path)).chain([self.root.to_owned()]);
        for path in paths {
            File::open(&path).and_then(|folder| finish(&folder)).map_err(io_error("sync", &path))?;
        }
        Ok(())
    }
}

/// Gives a file or folder its time, and makes it durable.
fn finish(file: &File) -> io::Result<()> {
    let (accessed, modified): (SystemTime, SystemTime) = (UNIX_EPOCH + ACCESSED, UNIX_EPOCH + TIME);
    file.set_times(fs::FileTimes::new().set_accessed(accessed).set_modified(modified))?;
    file.sync_all()
}

/// The bytes of an extended header.
fn extension(entry: &mut tar::Entry<'_, impl Read>) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    entry.take(EXTENSION_LEN_MAX + 1).read_to_end(&mut bytes).map_err(|error| broken(&error))?;
    match bytes.len() as u64 > EXTENSION_LEN_MAX {
        true => Err(bad(format!("a header has more than {EXTENSION_LEN_MAX} bytes; a path has at most {BUNDLE_PATH_LEN_MAX}"))),
        false => Ok(bytes),
    }
}

/// A long name of GNU's tar, which ends with NUL.
fn name(bytes: &[u8]) -> Vec<u8> {
    bytes.strip_suffix(&[0]).unwrap_or(bytes).to_vec()
}

/// The path in an extended header of POSIX, if there is one.
fn path_of(bytes: &[u8]) -> Result<Option<Vec<u8>>, BundleError> {
    let mut path = None;
    for pair in tar::PaxExtensions::new(bytes) {
        let pair = pair.map_err(|error| broken(&error))?;
        match pair.key_bytes() {
            b"path" => path = Some(pair.value_bytes().to_vec()),
            key if key == b"size" || key.starts_with(b"GNU.sparse") => {
                return Err(bad("it has a file with holes, or one of more than 8 GiB"));
            }
            _ => {}
        }
    }
    Ok(path)
}

/// The digest of names and bytes.
fn digest(entries: &Entries) -> Digest {
    let mut parts: Vec<&[u8]> = Vec::with_capacity(entries.len() * 2);
    for (path, entry) in entries {
        let content: &[u8] = if let Entry::File { digest, .. } = entry { digest } else { b"" };
        parts.extend([path.as_bytes(), content]);
    }
    Digest::of_parts(&parts)
}

/// Visits all below a folder, without following links; paths are relative to it.
fn walk(root: &Path, below: &str, visit: &mut dyn FnMut(&str, &Path, &fs::Metadata) -> io::Result<()>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| io::Error::other("a name that is not UTF-8"))?;
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        let meta = entry.metadata()?;
        visit(&path, &entry.path(), &meta)?;
        if meta.is_dir() {
            walk(root, &path, visit)?;
        }
    }
    Ok(())
}

/// What is in a folder in place.
fn read(root: &Path) -> io::Result<Entries> {
    let mut entries = Entries::new();
    walk(root, "", &mut |path, full, meta| {
        let entry = if meta.is_dir() {
            Entry::Folder
        } else if meta.is_file() {
            let digest = super::sha256(&mut File::open(full)?)?;
            Entry::File { len: meta.len(), digest }
        } else {
            return Err(io::Error::other("neither a file nor a folder"));
        };
        entries.insert(path.to_owned(), entry);
        Ok(())
    })?;
    Ok(entries)
}

/// What a bundle in place counts for, in bytes: as much as was charged for it.
pub(super) fn disk_bytes(root: &Path) -> io::Result<u64> {
    let mut sum = 0;
    walk(root, "", &mut |_, _, meta| {
        sum += ENTRY_BYTES + if meta.is_dir() { 0 } else { meta.len() };
        Ok(())
    })?;
    Ok(sum)
}

#[cfg(test)]
mod tests;
