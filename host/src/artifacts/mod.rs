//! Files of deployed functions, addressed by content: the Wasm as it came, and the native code made of it.
//!
//! ```text
//! DIR/staging/KIND-N                    being written; emptied at start
//! DIR/wasm/TENANT/SHA256.wasm           an upload, byte for byte
//! DIR/artifacts/TENANT/KEY.cwasm        native code and its trailer (layout in `seal.rs`)
//! ```
//!
//! Owns these files, their durability, their MAC, and the count of bytes. Knows nothing about which of them are needed (the
//! registry does), nor about what native code is. Every call blocks. Invariant: under its final name a file is whole and durable,
//! or damaged by somebody else, which [`Artifacts::verify_artifact`] and [`Artifacts::open_wasm`] find. They prove what the file
//! held when it was read: whoever can write to the data directory later can change it, and is not defended against.

mod collect;
mod dir;
mod disk;
mod seal;
mod space;
mod staging;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use sha2::Digest as _;

use self::disk::{create_dirs, is_full, sync_dir};
use self::seal::{SealError, TRAILER_LEN};
use self::space::{Charge, Full, Space};
use crate::crash;
use crate::fault::{Code, Fault};
use crate::id::{Digest, TenantId};

pub use self::collect::Collected;
pub use self::dir::{DataDir, DataDirError, FORMAT, FORMAT_MIN};
pub use self::seal::MacKey;
pub use self::space::{Pin, StagedPath};
pub use self::staging::{Upload, Uploaded};

/// Names one file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileId {
    /// An upload.
    Wasm {
        /// Whose.
        tenant: TenantId,
        /// SHA-256 of its bytes.
        digest: Digest,
    },
    /// Native code.
    Artifact {
        /// Whose.
        tenant: TenantId,
        /// Digest of all that went into it, not of its bytes.
        key: Digest,
    },
}

impl FileId {
    /// The upload of `tenant` with this SHA-256.
    #[must_use]
    pub fn wasm(tenant: &TenantId, digest: Digest) -> Self {
        Self::Wasm { tenant: tenant.clone(), digest }
    }

    /// The native code of `tenant` with this key.
    #[must_use]
    pub fn artifact(tenant: &TenantId, key: Digest) -> Self {
        Self::Artifact { tenant: tenant.clone(), key }
    }
}

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wasm { tenant, digest } => write!(f, "module {digest} of tenant {tenant}"),
            Self::Artifact { tenant, key } => write!(f, "artifact {key} of tenant {tenant}"),
        }
    }
}

/// A file that could not be stored or used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is no such file.
    #[error("{id} is not on disk: an artifact is compiled anew from its module, a module must be deployed again")]
    Missing {
        /// Which.
        id: FileId,
    },
    /// The file is not what was written.
    #[error("{id} is damaged, {what}: an artifact is compiled anew from its module, a module must be deployed again")]
    Corrupt {
        /// Which.
        id: FileId,
        /// What does not fit.
        what: &'static str,
    },
    /// The build left a file that cannot be native code.
    #[error("the build left no native code for {id}: expected a file that is not empty")]
    Empty {
        /// Which.
        id: FileId,
    },
    /// The disk is full, or the share of it that this node may use.
    #[error("no room: {detail}; remove functions or old revisions, or raise data.bytes_max")]
    StorageFull {
        /// Numbers, or the system's words.
        detail: String,
    },
    /// Any other failure of the file system.
    #[error("failed to {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl ArtifactError {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::StorageFull { .. } => {
                Fault::new(Code::StorageFull, "there is no room to store this").hint("remove functions that are not needed")
            }
            Self::Missing { .. } | Self::Corrupt { .. } | Self::Empty { .. } | Self::Io { .. } => Fault::internal(self),
        }
    }
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ArtifactError + 'a {
    move |source| match is_full(&source) {
        true => ArtifactError::StorageFull { detail: format!("failed to {doing}: {source}") },
        false => ArtifactError::Io { doing, path: path.into(), source },
    }
}

fn full(full: Full) -> ArtifactError {
    let Full { used, wanted, bytes_max } = full;
    ArtifactError::StorageFull { detail: format!("{used} bytes are used and {wanted} more do not fit in {bytes_max}") }
}

/// An artifact whose MAC was found right.
#[derive(Debug)]
pub struct VerifiedArtifact {
    /// The open file, at position 0: map this one, not the path, which may name another file by then.
    pub file: File,
    /// Where it lies.
    pub path: PathBuf,
    /// Bytes of native code at the beginning of the file; a trailer follows.
    pub payload_len: u64,
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
    /// Held for a whole collection, so that there is one at a time.
    collecting: Mutex<()>,
}

impl Artifacts {
    /// Opens the files of `dir`, empties staging, and counts what is there. `dir` must outlive the result: it holds the lock.
    /// `bytes_max`: ceiling for the sum of all files' lengths.
    ///
    /// # Errors
    /// [`ArtifactError::Io`] if a folder cannot be made or read.
    ///
    /// # Cost
    /// One `stat` a file: about 1 us each when cached.
    pub fn open(dir: &DataDir, key: MacKey, bytes_max: u64) -> Result<Self, ArtifactError> {
        let root = dir.path().to_path_buf();
        let mut used = 0;
        for folder in ["staging", "wasm", "artifacts"] {
            let path = root.join(folder);
            create_dirs(&path).map_err(io_error("create", &path))?;
            // A folder of a tenant that was made just before a kill is not durable yet.
            sync_dir(&path).map_err(io_error("sync", &path))?;
        }
        collect::empty(&root.join("staging"))?;
        collect::walk(&root, &mut |_id, _path, len| {
            used += len;
            Ok(())
        })?;
        let space = Space::new(used, bytes_max);
        Ok(Self { shared: Arc::new(Shared { root, key, space, collecting: Mutex::new(()) }) })
    }

    /// Bytes of all files in place and of all uploads under way.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shared.space.used()
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

    /// A path to which a build may write native code. Its bytes are counted only when they are put in place.
    #[must_use]
    pub fn staging_path(&self) -> StagedPath {
        self.shared.space.stage(&self.staging(), "native")
    }

    fn staging(&self) -> PathBuf {
        self.shared.root.join("staging")
    }

    /// Protects files from the collector. Take it before the files are put in place, and keep it until the registry has
    /// committed the revision that names them; `space.rs` says why that suffices.
    pub fn pin(&self, ids: impl IntoIterator<Item = FileId>) -> Pin {
        self.shared.space.pin(ids.into_iter().collect())
    }

    /// Where a file lies, whether it exists or not.
    #[must_use]
    pub fn path(&self, id: &FileId) -> PathBuf {
        match id {
            FileId::Wasm { tenant, digest } => self.wasm_path(tenant, *digest),
            FileId::Artifact { tenant, key } => {
                self.shared.root.join("artifacts").join(tenant.as_str()).join(format!("{}.cwasm", key.hex()))
            }
        }
    }

    /// Where an upload lies once it is in place.
    #[must_use]
    pub fn wasm_path(&self, tenant: &TenantId, digest: Digest) -> PathBuf {
        self.shared.root.join("wasm").join(tenant.as_str()).join(format!("{}.wasm", digest.hex()))
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
    /// the length of the file in bytes.
    ///
    /// # Errors
    /// [`ArtifactError::Empty`] if the build left nothing, [`ArtifactError::StorageFull`] or [`ArtifactError::Io`].
    ///
    /// # Cost
    /// Reads the code once for the MAC (about 0.3 ms per MiB); two fsyncs.
    pub fn put_artifact(&self, tenant: &TenantId, key: Digest, staged: StagedPath) -> Result<u64, ArtifactError> {
        let id = FileId::artifact(tenant, key);
        let path = staged.path();
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ArtifactError::Empty { id }),
            other => other.map_err(io_error("open native code", path))?,
        };
        let payload_len = file.metadata().map_err(io_error("look at native code", path))?.len();
        if payload_len == 0 {
            return Err(ArtifactError::Empty { id });
        }
        let mut charge = Charge::new(&self.shared.space, payload_len.saturating_add(TRAILER_LEN)).map_err(full)?;
        let len = seal::append(&mut file, &self.shared.key, tenant, key).map_err(io_error("seal native code", path))?;
        crash::point("artifact-written");
        file.sync_all().map_err(io_error("sync native code", path))?;
        crash::point("artifact-synced");
        self.place(&id, &staged, &mut charge, "artifact-renamed")?;
        crash::point("artifact-dir-synced");
        Ok(len)
    }

    fn place(&self, id: &FileId, staged: &StagedPath, charge: &mut Charge, renamed: &'static str) -> Result<(), ArtifactError> {
        let space = &self.shared.space;
        debug_assert!(space.is_pinned(id), "{id} must be pinned, or the collector may take it before its revision is committed");
        let target = self.path(id);
        let folder = target.parent().expect("`path` joins a folder and a name");
        create_dirs(folder).map_err(io_error("create", folder))?;
        space.place(staged, &target, charge).map_err(io_error("rename into place", &target))?;
        crash::point(renamed);
        sync_dir(folder).map_err(io_error("sync", folder))
    }

    /// Opens native code after checking its MAC over every byte, its tenant and its key.
    ///
    /// # Errors
    /// [`ArtifactError::Missing`] and [`ArtifactError::Corrupt`] (compile anew then), or [`ArtifactError::Io`].
    ///
    /// # Cost
    /// Reads the whole file: about 0.3 ms per MiB when it is in the page cache.
    pub fn verify_artifact(&self, tenant: &TenantId, key: Digest) -> Result<VerifiedArtifact, ArtifactError> {
        let id = FileId::artifact(tenant, key);
        let (mut file, path) = self.open_file(&id)?;
        match seal::check(&mut file, &self.shared.key, tenant, key) {
            Ok(payload_len) => Ok(VerifiedArtifact { file, path, payload_len }),
            Err(SealError::Corrupt(what)) => Err(ArtifactError::Corrupt { id, what }),
            Err(SealError::Io(error)) => Err(io_error("read", &path)(error)),
        }
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

    fn open_file(&self, id: &FileId) -> Result<(File, PathBuf), ArtifactError> {
        let path = self.path(id);
        match File::open(&path) {
            Ok(file) if file.metadata().is_ok_and(|meta| meta.is_file()) => Ok((file, path)),
            Ok(_) => Err(ArtifactError::Corrupt { id: id.clone(), what: "it is not a regular file" }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ArtifactError::Missing { id: id.clone() }),
            Err(error) => Err(io_error("open", &path)(error)),
        }
    }
}

/// SHA-256 of a whole file, which is left at position 0.
fn sha256(file: &mut File) -> io::Result<[u8; 32]> {
    let mut hasher = sha2::Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            len => hasher.update(&buffer[..len]),
        }
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::fs;
    use std::io::Write;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Node {
        artifacts: Artifacts,
        dir: DataDir,
        _temp: tempfile::TempDir,
    }

    fn node(bytes_max: u64) -> Node {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let artifacts = Artifacts::open(&dir, dir.mac_key(None).unwrap(), bytes_max).unwrap();
        Node { artifacts, dir, _temp: temp }
    }

    impl Node {
        fn reopen(&self, key: MacKey) -> Artifacts {
            Artifacts::open(&self.dir, key, u64::MAX).unwrap()
        }

        fn staging_len(&self) -> usize {
            fs::read_dir(self.dir.path().join("staging")).unwrap().count()
        }
    }

    fn tenant() -> TenantId {
        TenantId::default()
    }

    fn key(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn put_wasm(artifacts: &Artifacts, bytes: &[u8]) -> Result<(FileId, Pin), ArtifactError> {
        let mut upload = artifacts.create_upload()?;
        for chunk in bytes.chunks(7) {
            upload.write(chunk)?;
        }
        let uploaded = upload.finish()?;
        assert_eq!((uploaded.digest(), uploaded.bytes()), (Digest::of(bytes), bytes.len() as u64));
        assert_eq!(fs::read(uploaded.path()).unwrap(), bytes);
        let id = FileId::wasm(&tenant(), uploaded.digest());
        let pin = artifacts.pin([id.clone()]);
        artifacts.put_wasm(&tenant(), uploaded)?;
        Ok((id, pin))
    }

    fn put_artifact(artifacts: &Artifacts, name: &str, code: &[u8]) -> Result<(FileId, Pin), ArtifactError> {
        let staged = artifacts.staging_path();
        fs::write(staged.path(), code).unwrap();
        let id = FileId::artifact(&tenant(), key(name));
        let pin = artifacts.pin([id.clone()]);
        let len = artifacts.put_artifact(&tenant(), key(name), staged)?;
        assert_eq!(len, code.len() as u64 + TRAILER_LEN);
        Ok((id, pin))
    }

    fn collect(artifacts: &Artifacts, referenced: &[&FileId]) -> Collected {
        let set: HashSet<FileId> = referenced.iter().map(|id| (*id).clone()).collect();
        artifacts.collect::<ArtifactError>(|| Ok(set)).unwrap()
    }

    #[test]
    fn missing_and_damaged_files_are_told_apart() {
        let node = node(u64::MAX);
        let artifacts = &node.artifacts;
        let verify = || artifacts.verify_artifact(&tenant(), key("a"));
        assert!(matches!(verify(), Err(ArtifactError::Missing { .. })));
        assert!(matches!(artifacts.open_wasm(&tenant(), Digest::of(b"w")), Err(ArtifactError::Missing { .. })));

        let (artifact, _pin) = put_artifact(artifacts, "a", b"code").unwrap();
        let (wasm, _pin) = put_wasm(artifacts, b"w").unwrap();
        for id in [&artifact, &wasm] {
            let mut file = OpenOptions::new().append(true).open(artifacts.path(id)).unwrap();
            file.write_all(b"!").unwrap();
        }
        assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
        assert!(matches!(artifacts.open_wasm(&tenant(), Digest::of(b"w")), Err(ArtifactError::Corrupt { .. })));
        for id in [&artifact, &wasm] {
            fs::write(artifacts.path(id), b"").unwrap();
        }
        assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
        assert!(matches!(artifacts.open_wasm(&tenant(), Digest::of(b"w")), Err(ArtifactError::Corrupt { .. })));

        // Storing again heals both.
        let _pins = (put_artifact(artifacts, "a", b"code").unwrap(), put_wasm(artifacts, b"w").unwrap());
        assert!(verify().is_ok() && artifacts.open_wasm(&tenant(), Digest::of(b"w")).is_ok());
        fs::remove_file(artifacts.path(&artifact)).unwrap();
        fs::create_dir(artifacts.path(&artifact)).unwrap();
        assert!(matches!(verify(), Err(ArtifactError::Corrupt { .. })));
    }

    #[test]
    fn another_tenants_or_another_keys_file_under_the_name_is_found() {
        let node = node(u64::MAX);
        let (id, _pin) = put_artifact(&node.artifacts, "a", b"code").unwrap();
        let evil: TenantId = "evil".parse().unwrap();
        let copy = |tenant: &TenantId, name: &str| {
            let path = node.artifacts.path(&FileId::artifact(tenant, key(name)));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(node.artifacts.path(&id), path).unwrap();
            node.artifacts.verify_artifact(tenant, key(name)).unwrap_err()
        };
        assert!(matches!(copy(&evil, "a"), ArtifactError::Corrupt { .. }));
        assert!(matches!(copy(&tenant(), "b"), ArtifactError::Corrupt { .. }));
        let other = node.reopen(MacKey::new([1; 32]));
        assert!(matches!(other.verify_artifact(&tenant(), key("a")), Err(ArtifactError::Corrupt { .. })));
        assert!(node.artifacts.verify_artifact(&tenant(), key("a")).is_ok());
    }

    #[test]
    fn a_verified_artifact_is_open_at_its_code() {
        let node = node(u64::MAX);
        let code = vec![0x7f; 200_000];
        let _pin = put_artifact(&node.artifacts, "a", &code).unwrap();
        let mut verified = node.artifacts.verify_artifact(&tenant(), key("a")).unwrap();
        let mut found = Vec::new();
        verified.file.read_to_end(&mut found).unwrap();
        assert_eq!(verified.payload_len, 200_000);
        assert_eq!(&found[..200_000], &code);
        let _pin = put_wasm(&node.artifacts, b"module").unwrap();
        let mut found = Vec::new();
        node.artifacts.open_wasm(&tenant(), Digest::of(b"module")).unwrap().read_to_end(&mut found).unwrap();
        assert_eq!(found, b"module");
    }

    #[test]
    fn a_build_that_left_nothing_is_refused() {
        let node = node(u64::MAX);
        assert!(matches!(put_artifact(&node.artifacts, "a", b""), Err(ArtifactError::Empty { .. })));
        let staged = node.artifacts.staging_path();
        let _pin = node.artifacts.pin([FileId::artifact(&tenant(), key("a"))]);
        assert!(matches!(node.artifacts.put_artifact(&tenant(), key("a"), staged), Err(ArtifactError::Empty { .. })));
        assert_eq!((node.artifacts.used_bytes(), node.staging_len()), (0, 0));
    }

    #[test]
    fn the_ceiling_on_both_sides() {
        let node = node(100);
        let artifacts = &node.artifacts;
        let full = |result: Result<(FileId, Pin), ArtifactError>| matches!(result, Err(ArtifactError::StorageFull { .. }));
        assert!(full(put_wasm(artifacts, &[1; 101])));
        assert_eq!((artifacts.used_bytes(), node.staging_len()), (0, 0), "a refused upload leaves nothing");
        let _first = put_wasm(artifacts, &[1; 100]).unwrap();
        assert_eq!(artifacts.used_bytes(), 100);
        assert!(matches!(artifacts.create_upload(), Err(ArtifactError::StorageFull { .. })));
        assert!(full(put_artifact(artifacts, "a", b"x")));
        drop(_first);
        collect(artifacts, &[]);
        let room = 100 - usize::try_from(TRAILER_LEN).unwrap();
        assert!(full(put_artifact(artifacts, "a", &vec![1; room + 1])));
        assert!(put_artifact(artifacts, "a", &vec![1; room]).is_ok());
        assert_eq!((artifacts.used_bytes(), node.staging_len()), (100, 0));
        let fault = artifacts.create_upload().unwrap_err().fault();
        assert_eq!(fault.code, Code::StorageFull);
    }

    #[test]
    fn used_bytes_stay_exact() {
        let node = node(u64::MAX);
        let artifacts = &node.artifacts;
        let mut upload = artifacts.create_upload().unwrap();
        upload.write(b"12345").unwrap();
        assert_eq!((artifacts.used_bytes(), upload.bytes()), (5, 5));
        drop(upload.finish().unwrap());
        assert_eq!((artifacts.used_bytes(), node.staging_len()), (0, 0));
        let (a, _a) = put_wasm(artifacts, b"12345").unwrap();
        let _same = put_wasm(artifacts, b"12345").unwrap();
        assert_eq!(artifacts.used_bytes(), 5);
        let (b, _b) = put_artifact(artifacts, "a", b"long code").unwrap();
        let _shorter = put_artifact(artifacts, "a", b"code").unwrap();
        let expected = 5 + 4 + TRAILER_LEN;
        assert_eq!(artifacts.used_bytes(), expected);
        fs::write(node.dir.path().join("wasm/default/README"), "not ours").unwrap();
        fs::write(node.dir.path().join("staging/left"), "over").unwrap();
        assert_eq!(node.reopen(MacKey::new([0; 32])).used_bytes(), expected);
        assert_eq!(node.staging_len(), 0, "staging is emptied at start");
        drop((_a, _same, _b, _shorter));
        assert_eq!(collect(artifacts, &[&a, &b]), Collected::default());
        assert_eq!(collect(artifacts, &[]), Collected { files: 2, bytes: expected });
        assert_eq!(artifacts.used_bytes(), 0);
        assert!(node.dir.path().join("wasm/default/README").exists());
    }

    #[test]
    fn the_collector_takes_only_what_is_neither_referenced_nor_pinned() {
        let node = node(u64::MAX);
        let artifacts = &node.artifacts;
        let (kept, _) = put_wasm(artifacts, b"kept").unwrap();
        let (pinned, pin) = put_artifact(artifacts, "pinned", b"code").unwrap();
        let second_pin = artifacts.pin([pinned.clone()]);
        let (lost, _) = put_artifact(artifacts, "lost", b"code").unwrap();
        let upload = artifacts.create_upload().unwrap();
        let staged = artifacts.staging_path();
        fs::write(staged.path(), "half").unwrap();
        fs::write(node.dir.path().join("staging/upload-999"), "stale").unwrap();
        let mapped = node.artifacts.verify_artifact(&tenant(), key("lost")).unwrap();

        assert_eq!(collect(artifacts, &[&kept]), Collected { files: 2, bytes: 4 + TRAILER_LEN + 5 });
        assert!(artifacts.path(&kept).exists() && artifacts.path(&pinned).exists() && !artifacts.path(&lost).exists());
        assert!(staged.path().exists());
        assert_eq!(node.staging_len(), 2);
        assert_eq!(mapped.file.metadata().unwrap().len(), 4 + TRAILER_LEN, "an open file outlives its name");
        drop(pin);
        assert_eq!(collect(artifacts, &[&kept]).files, 0, "the second pin still holds");
        drop((second_pin, upload, staged));
        assert_eq!(collect(artifacts, &[&kept]).files, 1);
    }

    #[test]
    fn a_deploy_that_commits_while_a_collection_runs_keeps_its_files() {
        let node = node(u64::MAX);
        let artifacts = &node.artifacts;
        let (id, pin) = put_wasm(artifacts, b"new").unwrap();
        let collected = artifacts.collect::<ArtifactError>(|| {
            // The registry is read just before the deploy commits; then the deploy ends and unpins.
            let before_commit = HashSet::new();
            drop(pin);
            Ok(before_commit)
        });
        assert_eq!(collected.unwrap().files, 0);
        assert!(artifacts.path(&id).exists());
        assert_eq!(collect(artifacts, &[]).files, 1, "the next round no longer remembers");
    }

    #[test]
    fn a_collection_of_candidates_leaves_the_rest_and_tells_what_is_pinned() {
        let node = node(u64::MAX);
        let artifacts = &node.artifacts;
        let [(kept, _), (lost, _), (other, _)] = [b"kept", b"lost", b"rest"].map(|bytes| put_wasm(artifacts, bytes).unwrap());
        let (pinned, pin) = put_artifact(artifacts, "pinned", b"code").unwrap();
        let (late, late_pin) = put_artifact(artifacts, "late", b"code").unwrap();
        let gone = FileId::artifact(&tenant(), key("gone"));
        let candidates: HashSet<FileId> = [&kept, &lost, &pinned, &late, &gone].map(Clone::clone).into();
        let collected = artifacts.collect_among::<ArtifactError>(&candidates, || {
            drop(late_pin);
            Ok([kept.clone()].into())
        });
        let (collected, mut stayed) = collected.unwrap();
        stayed.sort();
        let mut expected = [pinned.clone(), late.clone()];
        expected.sort();
        assert_eq!((collected, stayed.as_slice()), (Collected { files: 1, bytes: 4 }, expected.as_slice()));
        assert!(artifacts.path(&kept).exists() && artifacts.path(&other).exists() && !artifacts.path(&lost).exists());
        drop(pin);
        let again = artifacts.collect_among::<ArtifactError>(&stayed.into_iter().collect(), || Ok(HashSet::new()));
        assert_eq!(again.unwrap().0.files, 2);
    }

    #[test]
    fn a_collection_whose_registry_fails_removes_nothing() {
        let node = node(u64::MAX);
        let (id, pin) = put_wasm(&node.artifacts, b"new").unwrap();
        drop(pin);
        let error = || ArtifactError::StorageFull { detail: String::new() };
        assert!(node.artifacts.collect::<ArtifactError>(|| Err(error())).is_err());
        assert!(node.artifacts.path(&id).exists());
        assert_eq!(collect(&node.artifacts, &[]).files, 1, "and the next one can run");
    }

    #[test]
    fn deploys_and_collections_side_by_side_lose_nothing() {
        let node = node(u64::MAX);
        let registry: Mutex<HashSet<FileId>> = Mutex::default();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let deploys: Vec<_> = (0..2u8)
                .map(|worker| {
                    let (node, registry) = (&node, &registry);
                    scope.spawn(move || {
                        for n in 0..60u8 {
                            // The same few files again and again, committed and removed, so that both sides collide.
                            let (id, pin) = put_wasm(&node.artifacts, &[n % 3]).unwrap();
                            registry.lock().unwrap().insert(id.clone());
                            drop(pin);
                            let mut committed = registry.lock().unwrap();
                            assert!(node.artifacts.path(&id).exists() || !committed.contains(&id));
                            if (n + worker) % 4 == 0 {
                                committed.remove(&id);
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    node.artifacts.collect::<ArtifactError>(|| Ok(registry.lock().unwrap().clone())).unwrap();
                }
            });
            deploys.into_iter().for_each(|deploy| deploy.join().unwrap());
            done.store(true, Ordering::Relaxed);
        });
        let registry = registry.into_inner().unwrap();
        assert!(registry.iter().all(|id| node.artifacts.path(id).exists()));
        node.artifacts.collect::<ArtifactError>(|| Ok(registry.clone())).unwrap();
        assert_eq!(node.artifacts.used_bytes(), registry.len() as u64);
    }

    #[test]
    fn uploads_can_move_between_threads() {
        fn send<T: Send>() {}
        send::<Upload>();
        send::<Uploaded>();
        send::<StagedPath>();
        send::<Pin>();
    }
}
