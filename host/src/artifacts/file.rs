//! Names of files: which there are, and where each lies.
//!
//! Owns the folders and endings. Knows nothing about what the files hold. Invariant: [`FileId::parse`] is the inverse of
//! [`FileId::relative`], so nothing is counted or collected but what this module would name itself.

use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::id::{Digest, TenantId};
use crate::storage::space::Placed;

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
    /// A module as it was after its initialisation, compressed.
    Snapshot {
        /// Whose.
        tenant: TenantId,
        /// Digest of all that went into it, not of its bytes.
        key: Digest,
    },
    /// The files that a deploy brought: a folder.
    Bundle {
        /// Whose.
        tenant: TenantId,
        /// Digest of names and bytes.
        digest: Digest,
    },
}

/// Folder of bundles, each of which is a folder itself.
pub(super) const BUNDLES: &str = "bundles";

/// Folder of a kind of files, ending of their names, and what makes the name of one.
type Folder = (&'static str, &'static str, fn(&TenantId, Digest) -> FileId);

/// Every folder.
pub(super) const FOLDERS: [Folder; 4] = [
    ("wasm", ".wasm", FileId::wasm),
    ("artifacts", ".cwasm", FileId::artifact),
    ("snapshots", ".wasm.zst", FileId::snapshot),
    (BUNDLES, "", FileId::bundle),
];

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

    /// The snapshot of `tenant` with this key.
    #[must_use]
    pub fn snapshot(tenant: &TenantId, key: Digest) -> Self {
        Self::Snapshot { tenant: tenant.clone(), key }
    }

    /// The files of `tenant` with this digest.
    #[must_use]
    pub fn bundle(tenant: &TenantId, digest: Digest) -> Self {
        Self::Bundle { tenant: tenant.clone(), digest }
    }

    /// Where it lies, below the data directory.
    pub(super) fn relative(&self) -> PathBuf {
        let (kind, tenant, digest) = match self {
            Self::Wasm { tenant, digest } => (0, tenant, digest),
            Self::Artifact { tenant, key } => (1, tenant, key),
            Self::Snapshot { tenant, key } => (2, tenant, key),
            Self::Bundle { tenant, digest } => (3, tenant, digest),
        };
        let (folder, ending, _) = FOLDERS[kind];
        PathBuf::from(folder).join(tenant.as_str()).join(format!("{}{ending}", digest.hex()))
    }

    /// The file of this name in a tenant's part of a folder; `None` for a name that this module would not give.
    pub(super) fn parse((_, ending, make): Folder, tenant: &TenantId, name: &OsStr) -> Option<Self> {
        let stem = name.to_str()?.strip_suffix(ending)?;
        Digest::from_hex(stem).ok().map(|digest| make(tenant, digest))
    }
}

impl Placed for FileId {
    /// Bytes that a file takes: its length, or what the file system has allocated for native code with holes.
    ///
    /// Only native code has holes. For the others the length is exact, where a file system that compresses, or is late to
    /// say what it has allocated, would give another number later than at first.
    fn disk_bytes(&self, meta: &Metadata) -> u64 {
        // In units of 512 bytes, whatever the file system's own are.
        match (self, meta.blocks().saturating_mul(512)) {
            // Nothing allocated, although there is a trailer: a file system that does not say.
            (Self::Artifact { .. }, allocated) if allocated > 0 => meta.len().min(allocated),
            _ => meta.len(),
        }
    }
}

impl std::fmt::Display for FileId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wasm { tenant, digest } => write!(f, "module {digest} of tenant {tenant}"),
            Self::Artifact { tenant, key } => write!(f, "artifact {key} of tenant {tenant}"),
            Self::Snapshot { tenant, key } => write!(f, "snapshot {key} of tenant {tenant}"),
            Self::Bundle { tenant, digest } => write!(f, "files {digest} of tenant {tenant}"),
        }
    }
}
