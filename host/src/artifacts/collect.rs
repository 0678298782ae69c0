//! The collector: removes files that no kept revision names and nobody is about to name.
//!
//! Owns the walk over the folders and the order of a collection; `storage/space.rs` says why it is free of races. Knows nothing about
//! revisions: it is told which files are referenced. Invariant: it removes only files whose names this module itself would give.
//! Removals are not synced: a file that a power cut brings back is removed by the next collection.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::PoisonError;

use super::error::io_error;
use super::file::{BUNDLES, FOLDERS};
use super::{ArtifactError, Artifacts, FileId, bundle};
use crate::id::TenantId;

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Number of files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Collected {
    fn add(&mut self, bytes: Option<u64>) {
        self.files += u64::from(bytes.is_some());
        self.bytes += bytes.unwrap_or(0);
    }
}

impl Artifacts {
    /// Removes every file that is neither referenced nor pinned, and files in staging that nobody owns. Safe beside deploys, and
    /// to kill at any moment. Running instances that mapped a removed file keep it: Linux frees the bytes with the last mapping.
    ///
    /// `referenced` must read the files of *all* kept revisions from the registry when it is called, not before: that is why it
    /// is a function.
    ///
    /// # Errors
    /// What `referenced` returns, before anything was removed; [`ArtifactError::Io`] at the first file that cannot be removed.
    ///
    /// # Cost
    /// Reads all folders; one `stat` and `unlink` for each file removed. A second collection waits for the first.
    pub fn collect<E: From<ArtifactError>>(
        &self,
        referenced: impl FnOnce() -> Result<HashSet<FileId>, E>,
    ) -> Result<Collected, E> {
        let shared = &self.shared;
        let _one = shared.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let _round = shared.space.round();
        // After the round began: see `storage/space.rs`.
        let referenced = referenced()?;
        let mut collected = Collected::default();
        walk(&shared.root, &mut |id, path| {
            if !referenced.contains(&id) {
                collected.add(self.remove(&id, path)?);
            }
            Ok(())
        })?;
        each(&self.staging(), Kind::File, &mut |path| {
            collected.add(shared.space.remove_stale(path).map_err(io_error("remove", path))?);
            Ok(())
        })?;
        Ok(collected)
    }

    /// As [`Artifacts::collect`], but looks at `candidates` alone: what a change released. `referenced` must say, when it is
    /// called, which of them any kept revision names. Returns besides those that are needed by nobody and yet had to stay,
    /// because a deploy or a build has them pinned: look at them again later.
    ///
    /// # Errors
    /// As [`Artifacts::collect`].
    ///
    /// # Cost
    /// A few system calls for each candidate, however many files there are.
    pub fn collect_among<E: From<ArtifactError>>(
        &self,
        candidates: &HashSet<FileId>,
        referenced: impl FnOnce() -> Result<HashSet<FileId>, E>,
    ) -> Result<(Collected, Vec<FileId>), E> {
        let shared = &self.shared;
        let _one = shared.collecting.lock().unwrap_or_else(PoisonError::into_inner);
        let _round = shared.space.round();
        // After the round began: see `storage/space.rs`.
        let referenced = referenced()?;
        let (mut collected, mut stayed) = (Collected::default(), Vec::new());
        for id in candidates.difference(&referenced) {
            let path = self.path(id);
            match self.remove(id, &path)? {
                Some(bytes) => collected.add(Some(bytes)),
                None if path.exists() => stayed.push(id.clone()),
                None => {}
            }
        }
        Ok((collected, stayed))
    }
}

impl Artifacts {
    /// Removes a file unless it is protected. Returns the bytes that it took, `None` if it stays or was gone.
    fn remove(&self, id: &FileId, path: &Path) -> Result<Option<u64>, ArtifactError> {
        let space = &self.shared.space;
        if !matches!(id, FileId::Bundle { .. }) {
            return space.remove(id, path).map_err(io_error("remove", path));
        }
        let bytes = match bundle::disk_bytes(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io_error("look at", path))?,
        };
        let away = space.stage_folder(&self.staging(), "removed");
        let went = space.remove_folder(id, path, bytes, &away).map_err(io_error("remove", path))?;
        Ok(went.then_some(bytes))
    }
}

/// Removes everything in a folder, at start, when nobody owns any of it.
pub(super) fn empty(folder: &Path) -> Result<(), ArtifactError> {
    each(folder, Kind::File, &mut |path| fs::remove_file(path).map_err(io_error("remove", path)))?;
    each(folder, Kind::Folder, &mut |path| fs::remove_dir_all(path).map_err(io_error("remove", path)))
}

/// Calls `visit` for each file in place under `root`. Files with other names are not ours: left alone, not counted.
pub(super) fn walk(root: &Path, visit: &mut dyn FnMut(FileId, &Path) -> Result<(), ArtifactError>) -> Result<(), ArtifactError> {
    for kind in FOLDERS {
        let folder = root.join(kind.0);
        for tenant in fs::read_dir(&folder).map_err(io_error("list", &folder))? {
            let tenant = tenant.map_err(io_error("list", &folder))?;
            let is_dir = tenant.file_type().is_ok_and(|kind| kind.is_dir());
            let Some(name) = tenant.file_name().to_str().and_then(|name| name.parse::<TenantId>().ok()) else { continue };
            if !is_dir {
                continue;
            }
            // A folder where files are due is nobody's file, and the other way round.
            let wanted = if kind.0 == BUNDLES { Kind::Folder } else { Kind::File };
            each(&tenant.path(), wanted, &mut |path| match path.file_name().and_then(|file| FileId::parse(kind, &name, file)) {
                Some(id) => visit(id, path),
                None => Ok(()),
            })?;
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    File,
    Folder,
}

fn each(folder: &Path, wanted: Kind, visit: &mut dyn FnMut(&Path) -> Result<(), ArtifactError>) -> Result<(), ArtifactError> {
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let entry = entry.map_err(io_error("list", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir() == (wanted == Kind::Folder)) {
            visit(&entry.path())?;
        }
    }
    Ok(())
}
