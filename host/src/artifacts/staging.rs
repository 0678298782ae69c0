//! Uploads: bytes of a deploy on their way to disk, hashed and counted as they pass.
//!
//! Owns the file until it is whole. Knows nothing about tenants or where the bytes go then.
//! Invariant: what an [`Uploaded`] says of its digest and length is true of a file that is durable; dropping either leaves nothing.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::Digest as _;

use super::error::{full, io_error};
use super::{ArtifactError, Charge, StagedPath};
use crate::crash;
use crate::id::Digest;

/// A file that is being written. `Send`, and every call blocks: call from a thread that may block, with chunks of 16 KiB or more.
#[derive(Debug)]
pub struct Upload {
    file: File,
    hasher: sha2::Sha256,
    charge: Charge,
    staged: StagedPath,
}

impl Upload {
    pub(super) fn create(staged: StagedPath, charge: Charge) -> Result<Self, ArtifactError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(staged.path());
        let file = file.map_err(io_error("create an upload", staged.path()))?;
        crash::point("upload-created");
        Ok(Self { file, hasher: sha2::Sha256::new(), charge, staged })
    }

    /// Appends `chunk`.
    ///
    /// # Errors
    /// [`ArtifactError::StorageFull`] past the node's ceiling or on a full disk, else [`ArtifactError::Io`]. The upload is of no
    /// use then: drop it.
    ///
    /// # Cost
    /// One write, and about 0.5 ns a byte for the digest.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), ArtifactError> {
        self.charge.grow(chunk.len() as u64).map_err(full)?;
        self.file.write_all(chunk).map_err(io_error("write an upload", self.staged.path()))?;
        self.hasher.update(chunk);
        Ok(())
    }

    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// Makes the bytes durable.
    ///
    /// # Errors
    /// As [`Upload::write`]; the file is gone then.
    ///
    /// # Cost
    /// One fsync.
    pub fn finish(self) -> Result<Uploaded, ArtifactError> {
        crash::point("upload-written");
        self.file.sync_all().map_err(io_error("sync an upload", self.staged.path()))?;
        crash::point("upload-synced");
        let hex: String = self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let digest = Digest::from_hex(&hex).expect("32 bytes are 64 hexadecimal digits");
        Ok(Uploaded { digest, charge: self.charge, staged: self.staged })
    }
}

/// A whole, durable file in staging; unlinked on drop unless it was put in place.
#[derive(Debug)]
pub struct Uploaded {
    digest: Digest,
    pub(super) charge: Charge,
    pub(super) staged: StagedPath,
}

impl Uploaded {
    /// SHA-256 of the bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Number of bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.charge.bytes()
    }

    /// Where the file is until it is put in place.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.staged.path()
    }
}
