//! Templates in memory, and the way there: from disk, or from Wasm.
//!
//! Owns which templates are resident (an LRU by number), and that concurrent first requests load once. Invariant: a template is
//! only ever made of an artifact whose MAC matched; a lost or damaged one is compiled again from its module.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use lru::LruCache;

use super::catalog::Function;
use crate::artifacts::{ArtifactError, Artifacts, Contents, FileId};
use crate::engine::build::Builder;
use crate::engine::{Engine, Template};
use crate::fault::{Code, Fault};
use crate::id::{Digest, TenantId};
use crate::invocation::Start;
use crate::manifest::Manifest;
use crate::registry::Registry;
use crate::telemetry::metrics::Metrics;

/// Artifacts up to this many bytes are verified where they are needed; reading a larger one would hold up a data thread's other
/// connections, so it goes to a thread for blocking work.
const INLINE_LOAD_BYTES: u64 = 1 << 20;
/// How long a request waits for a compilation; after that it gets 503 while the compilation goes on.
pub const COMPILE_WAIT: Duration = Duration::from_secs(2);

/// A template and what it took to get it.
type Loaded = (Arc<Template>, Start);
type Loading = Shared<BoxFuture<'static, Result<Loaded, Fault>>>;
type Key = (TenantId, Digest);

/// Where templates come from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Templates(Arc<Inner>);

struct Inner {
    engine: Engine,
    artifacts: Artifacts,
    registry: Arc<Registry>,
    builder: Arc<Builder>,
    metrics: Arc<Metrics>,
    fingerprint: Vec<u8>,
    resident: Mutex<LruCache<Key, Arc<Template>>>,
    loading: Mutex<HashMap<Key, Loading>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Templates").field("artifacts", &self.artifacts).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Both maps are whole after every statement that changes them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Templates {
    /// An empty set. `templates_max`: most templates in memory, at least 1.
    #[must_use]
    pub fn new(
        engine: Engine,
        artifacts: Artifacts,
        registry: Arc<Registry>,
        builder: Arc<Builder>,
        templates_max: usize,
    ) -> Self {
        let templates_max = NonZeroUsize::new(templates_max).unwrap_or(NonZeroUsize::MIN);
        let (fingerprint, metrics) = (engine.fingerprint(), engine.metrics().clone());
        let resident = Mutex::new(LruCache::new(templates_max));
        Self(Arc::new(Inner { engine, artifacts, registry, builder, metrics, fingerprint, resident, loading: Mutex::default() }))
    }

    /// Key of the artifact that this engine would make of a module: tenant, module, the parts of the manifest that matter, version
    /// and settings of the engine.
    #[must_use]
    pub fn artifact_key(&self, tenant: &TenantId, wasm: &Digest, manifest: &Manifest) -> Digest {
        Digest::of_parts(&[tenant.as_str().as_bytes(), wasm.bytes(), &manifest.artifact_inputs(), &self.0.fingerprint])
    }

    /// The template of a function's live revision.
    ///
    /// # Errors
    /// `overloaded` when only Wasm is there and compiling it takes longer than [`COMPILE_WAIT`]; a fault of the build.
    /// # Cancellation
    /// A load that began goes on without whoever asked for it.
    pub async fn get(&self, function: &Arc<Function>) -> Result<Loaded, Fault> {
        let key = (function.tenant.clone(), function.revision.artifact);
        if let Some(template) = lock(&self.0.resident).get(&key) {
            return Ok((template.clone(), Start::Resident));
        }
        let loading = self.load_once(key, function);
        match tokio::time::timeout(COMPILE_WAIT, loading).await {
            Ok(loaded) => loaded,
            Err(_) => {
                let fault = Fault::new(Code::Overloaded, "the function is being compiled, which takes a while");
                Err(fault.retry_after(COMPILE_WAIT).hint("try again; the compilation goes on"))
            }
        }
    }

    /// Puts a template there that a deploy has just made.
    pub fn insert(&self, tenant: &TenantId, artifact: Digest, template: Arc<Template>) {
        let mut resident = lock(&self.0.resident);
        resident.put((tenant.clone(), artifact), template);
        self.0.metrics.templates.set(i64::try_from(resident.len()).unwrap_or(i64::MAX));
    }

    /// Lets go of a template that no live revision needs. Invocations that run keep it until they end.
    pub fn forget(&self, tenant: &TenantId, artifact: Digest) {
        let mut resident = lock(&self.0.resident);
        resident.pop(&(tenant.clone(), artifact));
        self.0.metrics.templates.set(i64::try_from(resident.len()).unwrap_or(i64::MAX));
    }

    /// Whether a template is in memory.
    #[must_use]
    pub fn is_resident(&self, tenant: &TenantId, artifact: Digest) -> bool {
        lock(&self.0.resident).contains(&(tenant.clone(), artifact))
    }

    fn load_once(&self, key: Key, function: &Arc<Function>) -> Loading {
        let mut loading = lock(&self.0.loading);
        if let Some(running) = loading.get(&key) {
            return running.clone();
        }
        let (this, function, entry) = (self.clone(), function.clone(), key.clone());
        let task = tokio::spawn(async move {
            let _under_way = UnderWay(&this, &entry);
            let loaded = this.load(&function).await;
            if let Ok((template, _)) = &loaded {
                this.insert(&entry.0, entry.1, template.clone());
            }
            loaded
        });
        let ended = |error: tokio::task::JoinError| match error.is_cancelled() {
            true => Fault::new(Code::Draining, "the node is shutting down"),
            false => Fault::internal(error),
        };
        let shared = async move { task.await.unwrap_or_else(|error| Err(ended(error))) }.boxed().shared();
        loading.insert(key, shared.clone());
        shared
    }

    async fn load(&self, function: &Arc<Function>) -> Result<Loaded, Fault> {
        let revision = &function.revision;
        let key = self.artifact_key(&function.tenant, &revision.wasm, &revision.manifest);
        let (this, of) = (self.clone(), function.clone());
        let stored = blocking_if(revision.artifact_bytes > INLINE_LOAD_BYTES, move || this.load_stored(&of, key)).await?;
        match stored {
            Ok(template) => return Ok((template, Start::Stored)),
            // Another engine made the last one: nothing is wrong.
            Err(LoadError::Artifact(ArtifactError::Missing { .. })) if key != revision.artifact => {}
            Err(error) => {
                self.0.metrics.artifacts_corrupt.inc();
                tracing::warn!(function = %function.name, %error, "an artifact cannot be used; compiling it again");
            }
        }
        self.compile(function, key).await.map(|template| (template, Start::Compiled))
    }

    /// Maps the artifact from disk.
    fn load_stored(&self, function: &Function, key: Digest) -> Result<Arc<Template>, LoadError> {
        let artifact = self.0.artifacts.verify_artifact(&function.tenant, key)?;
        Ok(Arc::new(self.0.engine.load(function.shape, &artifact)?))
    }

    /// Compiles from the module on disk, which is all that is left, and keeps the result.
    async fn compile(&self, function: &Arc<Function>, key: Digest) -> Result<Arc<Template>, Fault> {
        let (artifacts, tenant, wasm) = (self.0.artifacts.clone(), function.tenant.clone(), function.revision.wasm);
        let pin = artifacts.pin([FileId::wasm(&tenant, wasm), FileId::artifact(&tenant, key)]);
        let module = blocking(move || artifacts.open_wasm(&tenant, wasm)).await?.map_err(|error| lost(&error))?;
        let staged = self.0.artifacts.stage_build();
        self.0.builder.build(module, staged.native.path()).await.map_err(|fault| match fault.code {
            Code::Overloaded => fault,
            // It was built once: what ails it now is this node's, not that of whoever calls the function.
            _ => {
                tracing::error!(%fault, function = %function.name, "a function cannot be compiled again");
                Fault::new(Code::Damaged, "the function's native code is lost, and cannot be made again").hint("deploy it again")
            }
        })?;
        self.0.metrics.builds.inc();
        let (this, function) = (self.clone(), function.clone());
        blocking(move || {
            let _pin = pin;
            let inner = &this.0;
            let bytes = inner
                .artifacts
                .put_artifact(&function.tenant, key, staged.native, Contents::default())
                .map_err(|error| error.fault())?;
            // A revision that was removed meanwhile needs no artifact; its file goes with the next collection.
            inner
                .registry
                .set_artifact(&function.tenant, &function.name, function.revision.number, key, bytes)
                .map_err(|error| error.fault())?;
            let artifact = inner.artifacts.verify_artifact(&function.tenant, key).map_err(|error| error.fault())?;
            Ok(Arc::new(inner.engine.load(function.shape, &artifact).map_err(Fault::internal)?))
        })
        .await?
    }
}

/// A load under way; forgotten however it ends, or nobody could try again.
struct UnderWay<'a>(&'a Templates, &'a Key);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.0.loading).remove(self.1);
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

/// The fault for a function whose module is gone too: nothing is left to make it from.
fn lost(error: &ArtifactError) -> Fault {
    match error {
        ArtifactError::Missing { .. } | ArtifactError::Corrupt { .. } => {
            tracing::error!(%error, "a function cannot be started");
            Fault::new(Code::Damaged, "the function's module and native code on this node are lost or damaged")
                .hint("deploy it again")
        }
        _ => error.fault(),
    }
}

/// Runs blocking work on a thread that may block.
///
/// # Errors
/// `internal` when the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    tokio::task::spawn_blocking(work).await.map_err(Fault::internal)
}

async fn blocking_if<T: Send + 'static>(long: bool, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    if long { blocking(work).await } else { Ok(work()) }
}
