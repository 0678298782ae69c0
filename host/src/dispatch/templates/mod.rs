//! Templates in memory, and the way there: from disk, or from Wasm.
//!
//! Owns that concurrent first requests load once. What is resident is in `resident.rs`, how much may be in `bounds.rs`, how a template
//! is loaded and made again in `load.rs`, and that another engine's code is replaced in `refresh.rs`. Invariant: a template is only
//! ever made of an artifact whose MACs matched; a lost or damaged one is compiled again, of the snapshot if there is one.

pub mod bounds;
mod load;
mod refresh;
mod resident;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use tokio::sync::watch;

use self::bounds::Bounds;
use self::load::Subject;
use self::resident::Resident;
use super::catalog::Function;
use crate::artifacts::Artifacts;
use crate::engine::build::Builder;
use crate::engine::{Engine, Template};
use crate::fault::{Code, Fault};
use crate::id::{Digest, FunctionName, TenantId};
use crate::invocation::Start;
use crate::manifest::Manifest;
use crate::registry::{Registry, RevisionRecord};
use crate::telemetry::metrics::Metrics;

/// How long a request waits for a compilation that it did not ask for; after that it gets 503 while the compilation goes on.
pub const COMPILE_WAIT: Duration = Duration::from_secs(2);
/// A template of more bytes than this is let go of on a thread that may block.
const INLINE_DROP_BYTES: usize = 1 << 20;

type Key = (TenantId, Digest);
type Loading = Shared<BoxFuture<'static, Result<Loaded, Fault>>>;

/// A load that is under way, for all who want it.
#[derive(Debug, Clone)]
struct Begun {
    loading: Loading,
    /// Whether it found nothing to load, and compiles.
    compiles: Arc<AtomicBool>,
}

/// A template and what it took to get it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// It.
    pub template: Arc<Template>,
    /// Rung of the start ladder.
    pub start: Start,
    /// How much of the time went into checking that the artifact is what this node put there.
    pub verify: Duration,
}

/// Where a template may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Origin {
    /// Memory, else as below.
    Memory,
    /// The artifact on disk, else as below.
    Disk,
    /// The module, whatever else there is.
    Module,
}

/// Whether a template stays in memory once it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// As the one that was used last.
    Resident,
    /// Nobody asked for it yet.
    No,
}

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
    resident: Mutex<Resident<Arc<Template>>>,
    loading: Mutex<HashMap<(Key, Origin), Begun>>,
    /// Deploys under way.
    deploys: watch::Sender<usize>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Templates").field("artifacts", &self.artifacts).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Both are whole after every statement that changes them.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the engine is, for the key of what it compiles. A debug build can be told that it is another one, so that a test can see
/// what an upgrade does; no release build reads it.
fn fingerprint(engine: &Engine) -> Vec<u8> {
    let mut fingerprint = engine.fingerprint();
    if cfg!(debug_assertions) {
        #[expect(clippy::disallowed_methods, reason = "a test tells the real binary that it is another version")]
        let other = std::env::var("HOB_TEST_ENGINE").unwrap_or_default();
        fingerprint.extend(other.into_bytes());
    }
    fingerprint
}

impl Templates {
    /// An empty set.
    #[must_use]
    pub fn new(engine: Engine, artifacts: Artifacts, registry: Arc<Registry>, builder: Arc<Builder>, bounds: Bounds) -> Self {
        let (fingerprint, metrics) = (fingerprint(&engine), engine.metrics().clone());
        let (resident, loading) = (Mutex::new(Resident::new(bounds)), Mutex::default());
        let deploys = watch::Sender::new(0);
        Self(Arc::new(Inner { engine, artifacts, registry, builder, metrics, fingerprint, resident, loading, deploys }))
    }

    /// Key of the artifact that this engine would make of a module: tenant, module, version and settings of the engine; and for one
    /// with a snapshot, the key of that.
    #[must_use]
    pub fn artifact_key(&self, tenant: &TenantId, wasm: &Digest, snapshot: Option<&Digest>) -> Digest {
        let snapshot = snapshot.map_or(&[][..], |key| &key.bytes()[..]);
        Digest::of_parts(&[tenant.as_str().as_bytes(), wasm.bytes(), snapshot, &self.0.fingerprint])
    }

    /// Key of the snapshot that `manifest`, the files that were sent with it, and the secrets that may be read meanwhile make of a module,
    /// whatever the engine. A guest reads its name among its arguments. `frozen`: digests of those files and secrets.
    #[must_use]
    pub fn snapshot_key(
        tenant: &TenantId,
        name: &FunctionName,
        wasm: &Digest,
        frozen: [Option<&Digest>; 2],
        manifest: &Manifest,
    ) -> Digest {
        let [bundle, secrets] = frozen;
        let inputs = manifest.snapshot_inputs(bundle, secrets);
        Digest::of_parts(&[tenant.as_str().as_bytes(), name.as_str().as_bytes(), wasm.bytes(), &inputs])
    }

    /// Key of the artifact that this engine would make of a revision.
    fn key_of(&self, tenant: &TenantId, revision: &RevisionRecord) -> Digest {
        self.artifact_key(tenant, &revision.wasm, revision.snapshot.as_ref().map(|snapshot| &snapshot.key))
    }

    /// The template of a function's live revision. `from`: the rung to begin with, for whoever measures it: `Stored` passes over
    /// the resident template, `Compiled` over the artifact too, and what comes of it takes their place; everything else is the best
    /// there is.
    ///
    /// # Errors
    /// `overloaded` when only Wasm is there and compiling it takes longer than [`COMPILE_WAIT`], or, where `Compiled` was asked for, longer
    /// than a build may; or when descriptors or mappings are short although half of the resident templates were given up; `damaged` when
    /// there is nothing left to make it of.
    /// # Cancellation
    /// A load that began goes on without whoever asked for it.
    pub async fn get(&self, function: &Arc<Function>, from: Option<Start>) -> Result<Loaded, Fault> {
        let key = (function.tenant.clone(), function.revision.artifact);
        let from = match from {
            Some(Start::Stored) => Origin::Disk,
            Some(Start::Compiled) => Origin::Module,
            _ => Origin::Memory,
        };
        if from == Origin::Memory
            && let Some(template) = lock(&self.0.resident).get(&key)
        {
            return Ok(Loaded { template, start: Start::Resident, verify: Duration::ZERO });
        }
        let Begun { loading, compiles } = self.load_once(key.clone(), || Subject::of(function), from, Keep::Resident);
        // Who asks for a compilation wants to know what it takes.
        let wait = if from == Origin::Module { self.0.builder.wall() } else { COMPILE_WAIT };
        let loaded = match tokio::time::timeout(wait, loading.clone()).await {
            Ok(loaded) => loaded?,
            Err(_) if compiles.load(Ordering::Relaxed) => {
                let fault = Fault::new(Code::Overloaded, "the function is being compiled, which takes a while");
                return Err(fault.retry_after(COMPILE_WAIT).hint("try again; the compilation goes on"));
            }
            // A disk that takes so long is waited for.
            Err(_) => loading.await?,
        };
        // Who compiled it for later, as after an upgrade, has not kept it in memory.
        if loaded.start == Start::Compiled && !self.is_resident(&key.0, key.1) {
            discard(self.keep(key, loaded.template.clone()));
        }
        Ok(loaded)
    }

    /// Puts a template there that a deploy has just made. May block for as long as it takes to undo mappings.
    pub fn insert(&self, tenant: &TenantId, artifact: Digest, template: Arc<Template>) {
        let_go(self.keep((tenant.clone(), artifact), template));
    }

    /// Lets go of a template that no live revision needs. Invocations that run keep it until they end.
    pub fn forget(&self, tenant: &TenantId, artifact: Digest) {
        let_go(self.change(|resident| resident.remove(&(tenant.clone(), artifact)).into_iter().collect()));
    }

    /// Drops the instances of a template that wait for an invocation; others are made when there are some.
    pub fn drop_ready(&self, tenant: &TenantId, artifact: Digest) {
        let template = lock(&self.0.resident).peek(&(tenant.clone(), artifact));
        if let Some(template) = template {
            template.drop_ready();
        }
    }

    /// Instances of a template that wait for an invocation.
    #[must_use]
    pub fn ready_instances(&self, tenant: &TenantId, artifact: Digest) -> usize {
        let template = lock(&self.0.resident).peek(&(tenant.clone(), artifact));
        template.map_or(0, |template| template.ready_instances())
    }

    /// Whether a template is in memory.
    #[must_use]
    pub fn is_resident(&self, tenant: &TenantId, artifact: Digest) -> bool {
        lock(&self.0.resident).contains(&(tenant.clone(), artifact))
    }

    /// Says that a deploy is under way: until the result is dropped, [`Templates::refresh`] begins no compilation.
    #[must_use = "it holds for as long as it lives"]
    pub fn deploying(&self) -> Deploying {
        self.0.deploys.send_modify(|count| *count += 1);
        Deploying(self.clone())
    }

    /// Changes what is resident, and counts it. What the change returns has left, and is to be dropped without a lock.
    fn change(&self, change: impl FnOnce(&mut Resident<Arc<Template>>) -> Vec<Arc<Template>>) -> Vec<Arc<Template>> {
        let mut resident = lock(&self.0.resident);
        let left = change(&mut resident);
        // Nobody puts one of them back.
        left.iter().for_each(|template| template.leave());
        self.0.metrics.templates.set(i64::try_from(resident.len()).unwrap_or(i64::MAX));
        left
    }

    fn keep(&self, key: Key, template: Arc<Template>) -> Vec<Arc<Template>> {
        let bytes = template.image_bytes() as u64;
        self.change(|resident| match resident.peek(&key) {
            // Of two loads that shared one compilation, the second; or all who waited for it came to run only after it was evicted.
            Some(there) if Arc::ptr_eq(&there, &template) => Vec::new(),
            _ if template.has_left() => Vec::new(),
            _ => resident.insert(key, template, bytes),
        })
    }

    /// The one load of a template that all who want it share.
    fn load_once(&self, key: Key, subject: impl FnOnce() -> Subject, from: Origin, keep: Keep) -> Begun {
        let mut loading = lock(&self.0.loading);
        let entry = (key, from);
        if let Some(running) = loading.get(&entry) {
            return running.clone();
        }
        let (this, subject, mine) = (self.clone(), subject(), entry.clone());
        let compiles = Arc::new(AtomicBool::new(false));
        let tells = compiles.clone();
        let task = tokio::spawn(async move {
            let _under_way = UnderWay(&this, &mine);
            let loaded = this.load(&subject, from, &tells).await;
            if let Ok(Loaded { template, .. }) = &loaded
                && keep == Keep::Resident
            {
                discard(this.keep(mine.0.clone(), template.clone()));
            }
            loaded
        });
        let ended = |error: tokio::task::JoinError| match error.is_cancelled() {
            true => Fault::new(Code::Draining, "the node is shutting down"),
            false => Fault::internal(error),
        };
        let shared = async move { task.await.unwrap_or_else(|error| Err(ended(error))) }.boxed().shared();
        let begun = Begun { loading: shared, compiles };
        loading.insert(entry, begun.clone());
        begun
    }
}

/// A deploy that is under way.
#[derive(Debug)]
pub struct Deploying(Templates);

impl Drop for Deploying {
    fn drop(&mut self) {
        self.0.0.deploys.send_modify(|count| *count -= 1);
    }
}

/// A load under way; forgotten however it ends, or nobody could try again.
struct UnderWay<'a>(&'a Templates, &'a (Key, Origin));

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        lock(&self.0.0.loading).remove(self.1);
    }
}

/// Lets go of templates, and at once of the instances that wait: whoever still runs one keeps its template.
fn let_go(left: impl IntoIterator<Item = Arc<Template>>) {
    for template in left {
        template.retire();
    }
}

/// As [`let_go`], for which nobody waits: undoing mappings takes up to a fifth of a load. Where it takes long, on another thread.
fn discard(left: Vec<Arc<Template>>) {
    let bytes: usize = left.iter().map(|template| template.image_bytes()).sum();
    if bytes > INLINE_DROP_BYTES || left.iter().any(|template| template.ready_instances() > 0) {
        drop(tokio::task::spawn_blocking(|| let_go(left)));
    } else if !left.is_empty() {
        tokio::spawn(async move {
            // After those for whom it had to leave, which this load wakes.
            tokio::task::yield_now().await;
            let_go(left);
        });
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
