//! The collector: removes files that no revision needs any more.
//!
//! Owns when it looks and at which files. Knows nothing about why a file is not needed: changes release it, or a deploy that failed left
//! it behind. Invariant: a file goes only when the registry refers to it no more and nobody has it pinned (`storage/space.rs`).

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use super::{Deployer, Inner};
use crate::artifacts::{ArtifactError, FileId};
use crate::dispatch::templates::blocking;
use crate::fault::Fault;
use crate::id::TenantId;
use crate::registry::Reference;

/// How often the collector looks at every file. In between it looks at those that changes released; what that leaves behind (by a
/// disk that failed, say) is rare and may wait.
const COLLECT_ALL_EVERY: Duration = Duration::from_secs(60 * 60);

impl Deployer {
    /// Says that there may be files that nothing needs any more.
    pub fn collect_soon(&self) {
        self.0.settle();
    }

    /// Removes files that nothing needs any more, each time there may be some, and never ends by itself. Looks at every file at
    /// first, because a kill may have left some, and then at what each change released.
    ///
    /// # Cancellation
    /// A collection that began goes on to its end.
    pub async fn collect_forever(&self) {
        let mut all_due = tokio::time::interval(COLLECT_ALL_EVERY);
        let mut failed = false;
        loop {
            let all = tokio::select! {
                biased;
                _ = all_due.tick() => true,
                () = self.0.collect.notified() => failed,
            };
            let inner = self.0.clone();
            let collected = blocking(move || if all { inner.collect_all() } else { inner.collect_released() }).await;
            failed = match collected {
                Ok(Ok(files)) => {
                    self.0.engine.metrics().collected.inc_by(files);
                    self.0.settle_metrics();
                    false
                }
                Ok(Err(fault)) | Err(fault) => {
                    tracing::error!(%fault, "files that nothing needs could not be removed; the next deploy tries again");
                    true
                }
            };
        }
    }
}

impl Inner {
    pub(super) fn settle(&self) {
        self.settle_metrics();
        self.collect.notify_one();
    }

    fn settle_metrics(&self) {
        self.engine.metrics().data_bytes.set(self.artifacts.used_bytes());
    }

    pub(super) fn candidates(&self) -> MutexGuard<'_, Vec<FileId>> {
        self.candidates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at every file.
    fn collect_all(&self) -> Result<u64, Fault> {
        self.candidates().clear();
        drop(self.registry.take_released());
        self.registry.sweep_answers().map_err(|error| error.fault())?;
        let referenced = || {
            let references = self.registry.references().map_err(|error| CollectError(error.fault()))?;
            Ok(references.into_iter().filter_map(file).collect())
        };
        self.artifacts.collect(referenced).map(|collected| collected.files).map_err(|CollectError(fault)| fault)
    }

    /// Looks at what changes released.
    fn collect_released(&self) -> Result<u64, Fault> {
        let mut candidates: HashSet<FileId> = self.candidates().drain(..).collect();
        candidates.extend(self.registry.take_released().into_iter().filter_map(file));
        let references: Vec<_> = candidates.iter().map(reference).collect();
        let referenced = || {
            let referenced = self.registry.referenced(&references).map_err(|error| CollectError(error.fault()))?;
            Ok(referenced.into_iter().filter_map(file).collect())
        };
        let (collected, stayed) = self.artifacts.collect_among(&candidates, referenced).map_err(|CollectError(fault)| fault)?;
        self.candidates().extend(stayed);
        Ok(collected.files)
    }
}

/// The file that a revision refers to.
fn file((tenant, reference): (TenantId, Reference)) -> Option<FileId> {
    match reference {
        Reference::Wasm(digest) => Some(FileId::wasm(&tenant, digest)),
        Reference::Artifact(key) => Some(FileId::artifact(&tenant, key)),
        Reference::Snapshot(key) => Some(FileId::snapshot(&tenant, key)),
        Reference::Bundle(digest) => Some(FileId::bundle(&tenant, digest)),
    }
}

/// The inverse of [`file`].
fn reference(file: &FileId) -> (TenantId, Reference) {
    match file {
        FileId::Wasm { tenant, digest } => (tenant.clone(), Reference::Wasm(*digest)),
        FileId::Artifact { tenant, key } => (tenant.clone(), Reference::Artifact(*key)),
        FileId::Snapshot { tenant, key } => (tenant.clone(), Reference::Snapshot(*key)),
        FileId::Bundle { tenant, digest } => (tenant.clone(), Reference::Bundle(*digest)),
    }
}

/// Either part's error on the way out of a collection.
struct CollectError(Fault);

impl From<ArtifactError> for CollectError {
    fn from(error: ArtifactError) -> Self {
        Self(error.fault())
    }
}
