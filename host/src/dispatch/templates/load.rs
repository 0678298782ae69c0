//! Loading a template: from its artifact, or by compiling it again.
//!
//! Owns what is tried in which order, and what happens when the process is out of descriptors or mappings. Knows nothing about
//! what is resident but that half of it can be given up. Invariant: `init` runs again only if the snapshot is lost too.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::catalog::Function;
use super::{Found, Keep, Key, Loaded, Templates, blocking, blocking_if, let_go, lock};
use crate::artifacts::{ArtifactError, Contents, FileId, Pin, StagedBuild, VerifiedSnapshot};
use crate::engine::build::{Built, Job, Outputs};
use crate::engine::{Shape, Template, UnknownKind};
use crate::fault::{Code, Fault};
use crate::id::{Digest, FunctionName, InvocationId, TenantId};
use crate::invocation::Start;
use crate::registry::{FunctionRecord, Recompiled, RevisionRecord};
use crate::telemetry::logs::{FunctionLog, Level, LogSink};

/// Artifacts up to this many bytes are verified where they are needed; reading a larger one would hold up a data thread's other
/// connections, so it goes to a thread for blocking work.
const INLINE_LOAD_BYTES: u64 = 1 << 20;

/// A compilation that failed so late has kept a processor busy, whatever the reason.
const ATTEMPT: Duration = Duration::from_secs(1);

/// What the author of a function is told whose snapshot cannot be used any more.
const LOST: &str = "the snapshot is lost, and each invocation starts from the module as it was uploaded: deploy it again";

/// What is to be loaded.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) tenant: TenantId,
    pub(super) name: FunctionName,
    pub(super) shape: Shape,
    pub(super) revision: RevisionRecord,
    /// Of the function, if somebody asked for it.
    log: Option<Arc<FunctionLog>>,
}

impl Subject {
    pub(super) fn of(function: &Function) -> Self {
        let Function { tenant, name, shape, revision, log, .. } = function;
        let log = Some(log.clone());
        Self { tenant: tenant.clone(), name: name.clone(), shape: *shape, revision: revision.clone(), log }
    }

    /// # Errors
    /// When a newer version of hob stored a kind that this one does not know.
    pub(super) fn of_record(record: FunctionRecord) -> Result<Self, UnknownKind> {
        let FunctionRecord { tenant, name, live: revision, .. } = record;
        Ok(Self { tenant, name, shape: revision.kind.parse()?, revision, log: None })
    }

    fn artifact(&self, key: Digest) -> FileId {
        FileId::artifact(&self.tenant, key)
    }

    /// Tells the operator, and the function's author, who alone can do something about it.
    fn tell_of_lost_snapshot(&self, error: &ArtifactError) {
        tracing::warn!(function = %self.name, %error, "a snapshot cannot be used; building its module anew");
        if let Some(log) = &self.log {
            // No invocation's: all who wait share this one load.
            let log = LogSink::new(log.clone(), InvocationId::new(0, 0), self.revision.number, 0);
            log.host(Level::Warn, LOST);
        }
    }
}

/// What native code is made of.
#[derive(Debug)]
pub(super) enum Source {
    /// The module as it was deployed, at position 0.
    Module(File),
    /// The module after its initialisation, compressed, at position 0; a trailer follows, whose meta is what the build said.
    Snapshot(VerifiedSnapshot),
}

impl Templates {
    /// Key of the artifact that this engine would make of it.
    pub(super) fn key(&self, subject: &Subject) -> Digest {
        self.key_of(&subject.tenant, &subject.revision)
    }

    /// From disk, or by the one compilation there is of it, which begins now if nothing is there.
    ///
    /// # Errors
    /// `overloaded` when descriptors or mappings are short, or the revision is not kept any more.
    pub(super) async fn load(&self, of: &Key, subject: &Subject, keep: Keep) -> Result<Found, Fault> {
        let key = self.key(subject);
        // Before it is looked whether they are there: from here on no collection takes them.
        let _pin = self.pin(subject, key);
        // Who asks for this rung may do so beside one that is there, which says nothing about the file.
        let before = lock(&self.0.resident).peek(of);
        let stored = |(template, verify)| Ok(Found::Loaded(Loaded { template, start: Start::Stored, verify }));
        let error = match self.map(subject, key).await? {
            Ok(mapped) => return stored(mapped),
            Err(error) => error,
        };
        if let Some(compilation) = self.0.compilations.under_way(of) {
            return Ok(Found::Module(compilation));
        }
        if let Some(fault) = self.0.failed.recent(of, Instant::now()) {
            return Err(fault);
        }
        self.must_be_kept(subject).await?;
        // Somebody may have compiled it while that was looked up.
        if let Ok(mapped) = self.map(subject, key).await? {
            return stored(mapped);
        }
        // Or has, and what was opened here is the file that lay there before.
        let there = lock(&self.0.resident).peek(of);
        let is_new = |there: &Arc<Template>| !before.as_ref().is_some_and(|before| Arc::ptr_eq(before, there));
        if let Some(template) = there.filter(is_new) {
            return stored((template, Duration::ZERO));
        }
        let (compilation, begins) = self.compile_once(of, || subject.clone(), keep);
        match error {
            // Another engine made the last one: nothing is wrong.
            LoadError::Artifact(ArtifactError::Missing { .. }) if key != subject.revision.artifact => {}
            error if begins => {
                self.0.metrics.artifacts_corrupt.inc();
                tracing::warn!(function = %subject.name, %error, "an artifact cannot be used; compiling it again");
            }
            _ => {}
        }
        Ok(Found::Module(compilation))
    }

    /// By compiling what is left on disk, whatever native code there is.
    ///
    /// # Errors
    /// `overloaded` and `storage-full` when there is no room for it now, or the revision is not kept any more; `damaged` when nothing is left
    /// that it could be made of.
    pub(super) async fn load_compiled(&self, of: &Key, subject: &Subject) -> Result<Loaded, Fault> {
        if let Some(fault) = self.0.failed.recent(of, Instant::now()) {
            return Err(fault);
        }
        let key = self.key(subject);
        let _pin = self.pin(subject, key);
        self.must_be_kept(subject).await?;
        let began = Instant::now();
        self.compile(subject, key).await.inspect_err(|fault| {
            // Who was sent away without an attempt may come at once again.
            let now = Instant::now();
            if !matches!(fault.code, Code::Overloaded | Code::Draining) || now - began > ATTEMPT {
                self.0.failed.insert(of.clone(), fault.clone(), now);
            }
        })?;
        let (template, verify) = self.map(subject, key).await?.map_err(|error| match error {
            // Somebody else did that, since it was put there.
            LoadError::Artifact(error @ (ArtifactError::Missing { .. } | ArtifactError::Corrupt { .. })) => {
                tracing::error!(%error, "native code that was compiled just now is gone or damaged");
                let fault = Fault::new(Code::Overloaded, "the function's native code was removed or changed while it was loaded");
                fault.retry_after(Duration::from_secs(1)).hint("try again; if it stays so, look who changes files of the node")
            }
            error => error.fault(),
        })?;
        Ok(Loaded { template, start: Start::Compiled, verify })
    }

    /// Keeps the files of a revision where they are, as far as they are there.
    fn pin(&self, subject: &Subject, key: Digest) -> Pin {
        let Subject { tenant, revision, .. } = subject;
        let snapshot = revision.snapshot.as_ref().map(|snapshot| FileId::snapshot(tenant, snapshot.key));
        let files = [FileId::wasm(tenant, revision.wasm), subject.artifact(key)];
        self.0.artifacts.pin(files.into_iter().chain(snapshot))
    }

    /// What a revision that is not kept any more was made of is not to be made anew: its snapshot may be gone, and its number another's.
    ///
    /// # Errors
    /// `overloaded` if it is not one of those that are kept.
    async fn must_be_kept(&self, subject: &Subject) -> Result<(), Fault> {
        let (registry, subject) = (self.0.registry.clone(), subject.clone());
        blocking(move || {
            let Subject { tenant, name, revision, .. } = &subject;
            let kept = registry.revisions(tenant, name).map_err(|error| error.fault())?;
            let snapshot = |revision: &RevisionRecord| revision.snapshot.as_ref().map(|snapshot| snapshot.key);
            let is_it = |kept: &RevisionRecord| {
                (kept.number, kept.wasm, snapshot(kept)) == (revision.number, revision.wasm, snapshot(revision))
            };
            if kept.iter().any(is_it) {
                return Ok(());
            }
            let fault = Fault::new(Code::Overloaded, "the revision was replaced while it was loaded, and is not kept");
            Err(fault.retry_after(Duration::from_secs(1)))
        })
        .await?
    }

    /// Maps the artifact from disk; also says how long checking it took. When the process is out of descriptors or mappings, half of
    /// the resident templates make room for a second attempt.
    ///
    /// # Errors
    /// `overloaded` when that does not help. Inside: why the artifact cannot be used.
    async fn map(&self, subject: &Subject, key: Digest) -> Result<Result<(Arc<Template>, Duration), LoadError>, Fault> {
        let attempt = || {
            let (this, of) = (self.clone(), subject.clone());
            blocking_if(subject.revision.artifact_bytes > INLINE_LOAD_BYTES, move || this.load_stored(&of, key))
        };
        match attempt().await? {
            Err(error) if error.is_exhausted() => {
                tracing::warn!(%error, function = %subject.name, "a template cannot be loaded");
                let left = self.give_up_half();
                blocking(|| let_go(left)).await?;
            }
            done => return Ok(done),
        }
        match attempt().await? {
            Err(error) if error.is_exhausted() => {
                tracing::error!(%error, "descriptors or mappings are short");
                Err(Fault::exhausted())
            }
            done => Ok(done),
        }
    }

    fn load_stored(&self, subject: &Subject, key: Digest) -> Result<(Arc<Template>, Duration), LoadError> {
        let began = Instant::now();
        let artifact = self.0.artifacts.verify_artifact(&subject.tenant, key)?;
        let verify = began.elapsed();
        Ok((Arc::new(self.0.engine.load(subject.shape, &artifact)?), verify))
    }

    /// Compiles from what is left on disk, and keeps the result there.
    async fn compile(&self, subject: &Subject, key: Digest) -> Result<(), Fault> {
        let (source, lost) = self.source(subject).await?;
        if let Some(error) = &lost {
            if self.is_whole(subject, key).await? {
                // Somebody wants to know what a compilation takes: who wants an answer had it from there.
                let fault = Fault::new(Code::Damaged, "the snapshot is lost, and without it this rung would be another function");
                return Err(fault.hint("its native code is whole, and kept: ask for another rung, or deploy it again"));
            }
            subject.tell_of_lost_snapshot(error);
        }
        let bytes = self.recompile(subject, key, source).await.map_err(|fault| match fault.code {
            Code::Overloaded | Code::StorageFull => fault,
            // It was built once: what ails it now is this node's, not that of whoever calls the function.
            _ => {
                tracing::error!(%fault, function = %subject.name, "a function cannot be compiled again");
                Fault::new(Code::Damaged, "the function's native code is lost, and cannot be made again").hint("deploy it again")
            }
        })?;
        let (this, subject) = (self.clone(), subject.clone());
        blocking(move || this.set_artifact(&subject, key, bytes, lost.map(|_| LOST.into()))).await?
    }

    /// Whether there is native code that can be used.
    async fn is_whole(&self, subject: &Subject, key: Digest) -> Result<bool, Fault> {
        let (this, subject) = (self.clone(), subject.clone());
        blocking(move || match this.load_stored(&subject, key) {
            Ok(_) => Ok(true),
            Err(error) if error.is_exhausted() => Err(Fault::exhausted()),
            Err(LoadError::Artifact(error @ (ArtifactError::Io { .. } | ArtifactError::StorageFull { .. }))) => {
                Err(error.fault())
            }
            Err(_) => Ok(false),
        })
        .await?
    }

    /// Compiles `source` and puts the native code in place; its length in bytes.
    async fn recompile(&self, subject: &Subject, key: Digest, source: Source) -> Result<u64, Fault> {
        let staged = self.0.artifacts.stage_build();
        let contents = self.rebuild(subject, source, &staged).await?;
        self.0.metrics.builds.inc();
        let (artifacts, tenant) = (self.0.artifacts.clone(), subject.tenant.clone());
        // Whoever pinned them waits for this, however long it takes.
        let put = move || {
            // Room for what takes its place, on a node that has little.
            artifacts.discard_damaged(&tenant, key)?;
            artifacts.put_artifact(&tenant, key, staged.native, contents)
        };
        let put = move || put().map_err(|error| error.fault());
        blocking(put).await?
    }

    /// Compiles `source` anew into `staged.native`, and says what to keep with it.
    ///
    /// # Errors
    /// Those of the build.
    async fn rebuild(&self, subject: &Subject, source: Source, staged: &StagedBuild) -> Result<Contents, Fault> {
        let (name, manifest) = (&subject.name, &subject.revision.manifest);
        // A lost snapshot is not taken again: what the function would answer then is not what was deployed, but its own start is.
        let (file, meta) = match source {
            Source::Module(file) => (file, Vec::new()),
            Source::Snapshot(VerifiedSnapshot { file, meta, .. }) => (file, meta),
        };
        let job = Job::deploy(name, manifest).of_snapshot();
        let (native, snapshot) = (staged.native.path().into(), staged.snapshot.path().into());
        let outputs = Outputs { native, snapshot };
        // There is nothing to leave out.
        let built = self.0.builder.build(&subject.tenant, file, job, &outputs, |_| true).await?;
        // What it says of the build that took the snapshot, so that a deploy of the same need not take another.
        let kept = serde_json::from_slice::<Built>(&meta)
            .ok()
            .and_then(|kept| Built { image: built.image.clone(), ..kept }.to_keep().ok());
        Ok(Contents { image: built.image, meta: kept.unwrap_or_default() })
    }

    /// What to compile: the snapshot, so that nothing is initialised twice, else the module; and why not the snapshot, if there was one.
    async fn source(&self, subject: &Subject) -> Result<(Source, Option<ArtifactError>), Fault> {
        let (artifacts, subject) = (self.0.artifacts.clone(), subject.clone());
        blocking(move || {
            let Subject { tenant, revision, .. } = &subject;
            let gone = match revision.snapshot.as_ref().map(|record| artifacts.open_snapshot(tenant, record.key)) {
                Some(Ok(snapshot)) => return Ok((Source::Snapshot(snapshot), None)),
                Some(Err(error)) if error.is_exhausted() => return Err(error.fault()),
                Some(Err(error)) => Some(error),
                None => None,
            };
            let module = artifacts.open_wasm(tenant, revision.wasm).map_err(|error| lost(&error))?;
            Ok((Source::Module(module), gone))
        })
        .await?
    }

    /// Records where a revision's native code lies now, and what its author is told of that. A revision that was removed meanwhile, or has
    /// another snapshot by now, needs none; the file goes with the next collection.
    pub(super) fn set_artifact(&self, subject: &Subject, key: Digest, bytes: u64, note: Option<String>) -> Result<(), Fault> {
        let Subject { tenant, name, revision, .. } = subject;
        let of = revision.snapshot.as_ref().map(|snapshot| snapshot.key);
        let made = Recompiled { of, artifact: key, artifact_bytes: bytes, note };
        let set = self.0.registry.set_artifact(tenant, name, revision.number, made);
        set.map(drop).map_err(|error| error.fault())
    }
}

/// Why an artifact on disk cannot be used.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Engine(#[from] crate::engine::LoadError),
}

impl LoadError {
    /// Whether the process has no descriptors, mappings or memory left, and the artifact is as good as any.
    fn is_exhausted(&self) -> bool {
        match self {
            Self::Artifact(error) => error.is_exhausted(),
            Self::Engine(error) => error.is_exhausted(),
        }
    }

    /// For one that was made just now.
    fn fault(&self) -> Fault {
        match self {
            Self::Artifact(error) => error.fault(),
            Self::Engine(error) => Fault::internal(error),
        }
    }
}

/// The fault for a function whose module cannot be opened: nothing is left to make it from.
#[must_use]
pub fn lost(error: &ArtifactError) -> Fault {
    match error {
        ArtifactError::Missing { .. } | ArtifactError::Corrupt { .. } => {
            tracing::error!(%error, "a function cannot be started");
            Fault::new(Code::Damaged, "what the function is made of is lost or damaged on this node").hint("deploy it again")
        }
        _ => error.fault(),
    }
}
