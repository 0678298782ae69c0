//! What a deploy builds: the names that its files have, whether an earlier build will do, and the files' way into place.
//!
//! Owns these names. Knows nothing about when a build is due, and makes nothing live. Invariant: a file has its name from all that went
//! into it, so what is found under a name need not be built.

use std::fs::File;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Inner;
use crate::artifacts::{Contents, FileId, StagedBuild, StagedPath, VerifiedArtifact, VerifiedSnapshot};
use crate::crash;
use crate::dispatch::templates::{Templates, blocking};
use crate::engine::build::{Built, Job, Kept, Outputs};
use crate::engine::{Shape, Template};
use crate::fault::{Code, Fault};
use crate::id::{Digest, FunctionName, TenantId};
use crate::manifest::{Manifest, SnapshotMode};
use crate::registry::SnapshotRecord;

/// Digests of what a guest may read during its initialisation besides its manifest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frozen {
    /// The files that the deploy brought.
    pub(super) bundle: Option<Digest>,
    /// Its secrets.
    pub(super) secrets: Option<Digest>,
}

/// Under which names the files of a deploy may come to lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    wasm: Digest,
    snapshot: Digest,
    frozen: Frozen,
    /// Native code with the snapshot.
    restored: Digest,
    /// Native code without one.
    plain: Digest,
}

impl Keys {
    pub(super) fn of(
        templates: &Templates,
        tenant: &TenantId,
        name: &FunctionName,
        wasm: Digest,
        frozen: Frozen,
        manifest: &Manifest,
    ) -> Self {
        let read = [frozen.bundle.as_ref(), frozen.secrets.as_ref()];
        let snapshot = Templates::snapshot_key(tenant, name, &wasm, read, manifest);
        let restored = templates.artifact_key(tenant, &wasm, Some(&snapshot));
        Self { wasm, snapshot, frozen, restored, plain: templates.artifact_key(tenant, &wasm, None) }
    }

    pub(super) fn files(&self, tenant: &TenantId) -> Vec<FileId> {
        let files = [
            FileId::wasm(tenant, self.wasm),
            FileId::snapshot(tenant, self.snapshot),
            FileId::artifact(tenant, self.restored),
            FileId::artifact(tenant, self.plain),
        ];
        files.into_iter().chain(self.frozen.bundle.map(|bundle| FileId::bundle(tenant, bundle))).collect()
    }
}

/// What is to be published.
pub(super) struct Made {
    pub(super) built: Built,
    pub(super) key: Digest,
    /// Its files, unless they are in place already.
    pub(super) staged: Option<Staged>,
}

/// Files that are not in place yet.
pub(super) enum Staged {
    /// Of a build.
    Build(StagedBuild),
    /// Native code alone, of a snapshot that is in place.
    Native(StagedPath, VerifiedSnapshot),
}

impl Inner {
    /// What a job comes to: what an earlier deploy left, else its snapshot, compiled by this engine, else what is built of the module.
    ///
    /// # Errors
    /// Those of the build, and of `wasm`, which opens the module.
    pub(super) async fn find_or_make(
        self: &Arc<Self>,
        tenant: &TenantId,
        keys: Keys,
        job: Job,
        wasm: impl Future<Output = Result<File, Fault>>,
    ) -> Result<Made, Fault> {
        if let Some(found) = self.find(tenant, keys, job.clone()).await? {
            return Ok(found);
        }
        if let Some((snapshot, kept)) = self.find_snapshot(tenant, keys, job.clone()).await? {
            match self.compile(tenant, keys, snapshot, kept, job.clone()).await {
                Err(fault) if !passes(&fault) => {
                    tracing::warn!(%fault, "a snapshot cannot be compiled; its module is built anew");
                }
                compiled => return compiled,
            }
        }
        self.make(tenant, keys, wasm.await?, job).await
    }

    /// What an earlier deploy left that would come out again: another name for the same module need not be built.
    async fn find(self: &Arc<Self>, tenant: &TenantId, keys: Keys, job: Job) -> Result<Option<Made>, Fault> {
        let (inner, tenant) = (self.clone(), tenant.clone());
        blocking(move || {
            let is_wanted = |key: Digest| job.snapshot.mode != SnapshotMode::Off || key == keys.plain;
            [keys.restored, keys.plain].into_iter().filter(|key| is_wanted(*key)).find_map(|key| {
                // Whatever is wrong with it, building anew heals it.
                let meta = inner.artifacts.verify_artifact(&tenant, key).ok()?.meta;
                let mut built: Built = serde_json::from_slice(&meta).ok()?;
                let has_files = || built.snapshot.is_none() || inner.artifacts.open_snapshot(&tenant, keys.snapshot).is_ok();
                if !built.serves(&job) || !has_files() {
                    return None;
                }
                if job.snapshot.mode == SnapshotMode::Off {
                    // They say why another function has no snapshot.
                    built.notes.clear();
                }
                Some(Made { built, key, staged: None })
            })
        })
        .await
    }

    /// A snapshot that would come out again, whose native code is another engine's: initialisation does not run again for that.
    async fn find_snapshot(
        self: &Arc<Self>,
        tenant: &TenantId,
        keys: Keys,
        job: Job,
    ) -> Result<Option<(VerifiedSnapshot, Built)>, Fault> {
        if job.snapshot.mode == SnapshotMode::Off {
            return Ok(None);
        }
        let (inner, tenant) = (self.clone(), tenant.clone());
        blocking(move || {
            // As above: a snapshot that cannot be read is taken again.
            let snapshot = inner.artifacts.open_snapshot(&tenant, keys.snapshot).ok()?;
            let kept: Built = serde_json::from_slice(&snapshot.meta).ok()?;
            kept.serves(&job).then_some((snapshot, kept))
        })
        .await
    }

    async fn compile(
        &self,
        tenant: &TenantId,
        keys: Keys,
        snapshot: VerifiedSnapshot,
        kept: Built,
        job: Job,
    ) -> Result<Made, Fault> {
        let StagedBuild { native, snapshot: unused } = self.artifacts.stage_build();
        let outputs = Outputs { native: native.path().into(), snapshot: unused.path().into() };
        let wasm = snapshot.file.try_clone().map_err(Fault::internal)?;
        let code = || (FileId::artifact(tenant, keys.restored), &native);
        let meta = kept.to_keep().map_or(0, |kept| kept.len());
        let fits = |_: &Built| self.artifacts.fit(std::iter::once(code()), meta);
        let built = self.builder.build(tenant, wasm, job.of_snapshot(), &outputs, fits).await?;
        self.engine.metrics().builds.inc();
        let built = Built { image: built.image, ..kept };
        Ok(Made { built, key: keys.restored, staged: Some(Staged::Native(native, snapshot)) })
    }

    async fn make(&self, tenant: &TenantId, keys: Keys, wasm: File, job: Job) -> Result<Made, Fault> {
        let staged = self.artifacts.stage_build();
        let (native, snapshot) = (staged.native.path().into(), staged.snapshot.path().into());
        let outputs = Outputs { native, snapshot };
        let fits = |built: &Built| {
            let code = (FileId::artifact(tenant, keys.restored), &staged.native);
            let snapshot = built.snapshot.as_ref().map(|_| (FileId::snapshot(tenant, keys.snapshot), &staged.snapshot));
            // What cannot be written down is told when it is kept.
            let kept = built.to_keep().map_or(0, |kept| kept.len() * if built.snapshot.is_some() { 2 } else { 1 });
            self.artifacts.fit(std::iter::once(code).chain(snapshot), kept)
        };
        let built = self.builder.build(tenant, wasm, job, &outputs, fits).await?;
        self.engine.metrics().builds.inc();
        crash::point("build-done");
        let key = if built.snapshot.is_some() { keys.restored } else { keys.plain };
        Ok(Made { built, key, staged: Some(Staged::Build(staged)) })
    }

    /// Puts the files of a build in place; what the revision is to say about its snapshot.
    pub(super) fn keep(
        &self,
        tenant: &TenantId,
        keys: Keys,
        built: &Built,
        key: Digest,
        staged: Option<Staged>,
    ) -> Result<Option<SnapshotRecord>, Fault> {
        if let Some(staged) = staged {
            // Two builds of the same are not alike in every byte: native code and snapshot are both of this one, or both of the other.
            let _turn = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
            let meta = built.to_keep().map_err(Fault::internal)?;
            let native = match staged {
                Staged::Build(StagedBuild { native, snapshot }) => {
                    if built.snapshot.is_some() {
                        let put = self.artifacts.put_snapshot(tenant, keys.snapshot, snapshot, meta.clone());
                        put.map_err(|error| error.fault())?;
                    }
                    Some(native)
                }
                Staged::Native(native, of) if self.artifacts.is_in_place(tenant, keys.snapshot, &of) => Some(native),
                // Another build has put its own there meanwhile, and brought its native code too.
                Staged::Native(..) if self.is_restored(tenant, key) => None,
                Staged::Native(..) => {
                    let fault = Fault::new(Code::Overloaded, "the snapshot was removed while it was compiled");
                    return Err(fault.retry_after(Duration::from_secs(1)).hint("try again"));
                }
            };
            if let Some(native) = native {
                let contents = Contents { image: built.image.clone(), meta };
                self.artifacts.put_artifact(tenant, key, native, contents).map_err(|error| error.fault())?;
            }
        }
        let bytes = || self.artifacts.file_len(&FileId::snapshot(tenant, keys.snapshot)).unwrap_or_default();
        let record = |kept: &Kept| SnapshotRecord {
            key: keys.snapshot,
            bytes: bytes(),
            memory_bytes: kept.memory_bytes,
            secrets: keys.frozen.secrets,
        };
        Ok(built.snapshot.as_ref().map(record))
    }

    /// Whether whole native code of a snapshot lies there.
    fn is_restored(&self, tenant: &TenantId, key: Digest) -> bool {
        let found = self.artifacts.verify_artifact(tenant, key).ok();
        let built = found.and_then(|found| serde_json::from_slice::<Built>(&found.meta).ok());
        built.is_some_and(|built| built.snapshot.is_some())
    }

    /// Loads what a build made, as the first request would.
    pub(super) fn load(&self, shape: Shape, artifact: &VerifiedArtifact) -> Result<Template, Fault> {
        self.engine.load(shape, artifact).map_err(|error| {
            if error.is_exhausted() {
                return Fault::exhausted();
            }
            // What the build process cannot see: whether the node's pool takes the whole of a component.
            tracing::warn!(%error, "a module that was built cannot be loaded");
            Fault::new(Code::ModuleOverCap, "the component has more instances, memories or tables than one function may have")
        })
    }
}

/// Whether the same may go well in a moment: then nothing need be initialised again.
fn passes(fault: &Fault) -> bool {
    matches!(fault.code, Code::Overloaded | Code::Draining)
}
