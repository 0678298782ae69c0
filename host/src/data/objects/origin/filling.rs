//! Bytes on their way into the cache: fetched, or put and then sent.
//!
//! Owns the file that they are written to, and the room that they take. Knows nothing about where they come from. Invariant: bytes are
//! charged before they are written, and dropping it leaves nothing.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use sha2::Digest as _;

use super::super::super::bucket::{Bucket, BucketId};
use super::super::super::error::{DataError, io_error};
use super::super::check_object_len;
use super::super::files::{Charge, FileId, Held, StagedPath, full};
use super::cache::Cache;
use crate::id::Digest;
use crate::storage::disk::create_dirs;

/// Bytes on their way into the cache. Dropping it leaves nothing.
pub(super) struct Filling {
    cache: Arc<Cache>,
    file: File,
    hasher: sha2::Sha256,
    written: u64,
    charge: Charge,
    staged: StagedPath,
}

impl Filling {
    /// Makes a place for bytes to come.
    pub(super) fn begin(cache: &Arc<Cache>) -> Result<Self, DataError> {
        let staged = cache.files.stage();
        let charge = Charge::new(&cache.files.space, 0).map_err(full)?;
        let mut open = OpenOptions::new();
        let open = open.read(true).write(true).create_new(true).mode(0o400).open(staged.path());
        let file = open.map_err(io_error("create a copy of an object"))?;
        Ok(Self { cache: Arc::clone(cache), file, hasher: sha2::Sha256::new(), written: 0, charge, staged })
    }

    /// Takes room for so many bytes.
    pub(super) fn reserve(&mut self, bucket: &Bucket, len: u64) -> Result<(), DataError> {
        check_object_len(bucket, &self.cache.files.limits, len)?;
        match len.saturating_sub(self.charge.bytes()) {
            0 => Ok(()),
            more => self.cache.charge(&mut self.charge, more),
        }
    }

    /// Appends bytes that [`Filling::reserve`] took room for.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), DataError> {
        debug_assert!(self.written + piece.len() as u64 <= self.charge.bytes(), "bytes are charged before they are written");
        self.file.write_all(piece).map_err(io_error("write a copy of an object"))?;
        self.hasher.update(piece);
        self.written += piece.len() as u64;
        Ok(())
    }

    /// Bytes that were written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// The bytes again, to be sent.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// SHA-256 of the bytes.
    pub(super) fn digest(&self) -> Digest {
        Digest::from_bytes(self.hasher.clone().finalize().into())
    }

    /// Puts the file in place, held.
    pub(super) fn place(self, bucket: BucketId) -> Result<Held, DataError> {
        let digest = self.digest();
        let Self { cache, file, mut charge, staged, .. } = self;
        let files = &cache.files;
        let held = files.hold(FileId { bucket, digest });
        let id = held.id();
        create_dirs(&files.folder(bucket)).map_err(io_error("make a folder of copies"))?;
        // One that is there and good stays, so that who has it mapped and who maps it now share its pages.
        if !files.is_good(id) {
            let placed = files.space.place(&id, &staged, &files.path(id), &mut charge);
            let placed = placed.map_err(io_error("put a copy in place")).and_then(|()| files.remember(id, &file));
            placed.inspect_err(|_| files.release(id))?;
        }
        Ok(held)
    }
}
