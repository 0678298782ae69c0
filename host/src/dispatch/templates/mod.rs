//! Templates in memory, and the way there: from disk, or from Wasm.
//!
//! Owns what a request gets, and what it waits for. What is resident is in `resident.rs`, how much may be in `bounds.rs`, how a template
//! is loaded and made again in `load.rs`, that concurrent first requests load once in `once.rs`, and that another engine's code is replaced
//! in `refresh.rs`, and that what failed is not tried at once again in `failed.rs`. Invariant: a template is only
//! ever made of an artifact whose MACs matched; a lost or damaged one is compiled again, of the snapshot if there is one.

pub mod bounds;
mod failed;
mod load;
mod once;
mod refresh;
mod resident;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use self::bounds::Bounds;
use self::failed::Failed;
use self::load::Subject;
pub use self::load::lost;
use self::once::{Once, Shares};
use self::resident::Resident;
use super::catalog::Function;
use crate::artifacts::Artifacts;
use crate::engine::build::Builder;
use crate::engine::{Engine, Template};
use crate::fault::Fault;
use crate::id::{Digest, FunctionName, TenantId};
use crate::invocation::Start;
use crate::manifest::Manifest;
use crate::registry::{Registry, RevisionRecord};
use crate::telemetry::metrics::Metrics;

/// How long a request waits for a compilation that it did not ask for; after that it gets 503 while the compilation goes on.
pub const COMPILE_WAIT: Duration = Duration::from_secs(2);
/// How long those who are short of descriptors wait for what giving templates up brought, before more are.
const RELIEF_PAUSE: Duration = Duration::from_millis(500);
/// So many stay: a flood of connections must not take from functions that are in use what they would need a descriptor to load again.
const RELIEF_LEAVES: usize = 4;
/// A template of more bytes than this is let go of on a thread that may block.
const INLINE_DROP_BYTES: usize = 1 << 20;

type Key = (TenantId, Digest);
/// What there was on disk.
#[derive(Debug, Clone)]
enum Found {
    Loaded(Loaded),
    /// Nothing to load. It is being compiled.
    Module(Shares<Loaded>),
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

/// How far a request comes at once, or after a load.
#[derive(Debug)]
pub enum Reached {
    /// There is a template.
    Loaded(Loaded),
    /// There will be one when this is over.
    Compiles(Compilation),
}

/// A compilation that is under way, and how long its caller waits for it.
#[derive(Debug)]
pub struct Compilation {
    templates: Templates,
    key: Key,
    compiling: Shares<Loaded>,
    wait: Duration,
}

impl Compilation {
    /// Waits for its end.
    ///
    /// # Errors
    /// `overloaded` when it takes longer than its caller waits; `damaged` when there is nothing left to make it of; those of a build.
    /// # Cancellation
    /// It goes on without whoever waited.
    pub async fn end(self) -> Result<Loaded, Fault> {
        let Self { templates, key, compiling, wait } = self;
        match tokio::time::timeout(wait, compiling).await {
            Ok(loaded) => loaded.map(|loaded| templates.kept(key, loaded)),
            Err(_) => Err(Fault::compiling(COMPILE_WAIT)),
        }
    }
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
    /// Loads from disk under way.
    loads: Once<Found>,
    /// Compilations under way.
    compilations: Once<Loaded>,
    /// Compilations that failed a moment ago.
    failed: Failed,
    /// When [`Templates::relieve`] last did something.
    relieved: Mutex<Option<Instant>>,
    /// Deploys under way.
    deploys: watch::Sender<usize>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Templates").field("artifacts", &self.artifacts).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whole after every statement that changes them.
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
        let resident = Mutex::new(Resident::new(bounds));
        let (loads, compilations, failed) = (Once::default(), Once::default(), Failed::default());
        let (relieved, deploys) = (Mutex::new(None), watch::Sender::new(0));
        let inner = Inner {
            engine,
            artifacts,
            registry,
            builder,
            metrics,
            fingerprint,
            resident,
            loads,
            compilations,
            failed,
            relieved,
            deploys,
        };
        Self(Arc::new(inner))
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

    /// The template of a function's live revision, or the compilation that will give it. `from`: the rung to begin with, for whoever
    /// measures it: `Stored` passes over the resident template, `Compiled` over the artifact too, and what comes of it takes their place;
    /// everything else is the best there is. Who asks for `Compiled` wants to know what it takes, and waits for as long as a build may
    /// take; everybody else for [`COMPILE_WAIT`].
    ///
    /// # Errors
    /// `overloaded` when descriptors or mappings are short although half of the resident templates were given up, or when the revision was
    /// replaced meanwhile.
    /// # Cancellation
    /// A load that began goes on without whoever asked for it.
    pub async fn reach(&self, function: &Arc<Function>, from: Option<Start>) -> Result<Reached, Fault> {
        let key = (function.tenant.clone(), function.revision.artifact);
        let subject = || Subject::of(function);
        let (compiling, wait) = match from {
            Some(Start::Compiled) => (self.compile_once(&key, subject, Keep::Resident).0, self.0.builder.wall()),
            _ => {
                if from != Some(Start::Stored)
                    && let Some(template) = lock(&self.0.resident).get(&key)
                {
                    return Ok(Reached::Loaded(Loaded { template, start: Start::Resident, verify: Duration::ZERO }));
                }
                match self.load_once(&key, subject, Keep::Resident).await? {
                    Found::Loaded(loaded) => return Ok(Reached::Loaded(self.kept(key, loaded))),
                    Found::Module(compiling) => (compiling, COMPILE_WAIT),
                }
            }
        };
        Ok(Reached::Compiles(Compilation { templates: self.clone(), key, compiling, wait }))
    }

    /// [`Templates::reach`], and to the end.
    ///
    /// # Errors
    /// Of both.
    pub async fn get(&self, function: &Arc<Function>, from: Option<Start>) -> Result<Loaded, Fault> {
        match self.reach(function, from).await? {
            Reached::Loaded(loaded) => Ok(loaded),
            Reached::Compiles(compilation) => compilation.end().await,
        }
    }

    /// Puts a template there that a deploy has just made. May block for as long as it takes to undo mappings.
    pub fn insert(&self, tenant: &TenantId, artifact: Digest, template: Arc<Template>) {
        let key = (tenant.clone(), artifact);
        self.0.failed.forget(&key);
        let_go(self.keep(key, template));
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

    /// Descriptors or mappings are short somewhere else: half of the templates go, at most once in [`RELIEF_PAUSE`], unless few are left. Inside a tokio runtime.
    pub fn relieve(&self) {
        {
            let mut last = lock(&self.0.relieved);
            if last.is_some_and(|last| last.elapsed() < RELIEF_PAUSE) || lock(&self.0.resident).len() <= RELIEF_LEAVES {
                return;
            }
            *last = Some(Instant::now());
        }
        discard(self.give_up_half());
    }

    fn give_up_half(&self) -> Vec<Arc<Template>> {
        tracing::warn!("descriptors or mappings are short; giving up half of the templates in memory");
        self.change(|resident| resident.remove_half())
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

    /// What a request has shared with one that loaded it for later, as after an upgrade, who has not kept it in memory.
    fn kept(&self, key: Key, loaded: Loaded) -> Loaded {
        if !self.is_resident(&key.0, key.1) {
            discard(self.keep(key, loaded.template.clone()));
        }
        loaded
    }

    /// The one load of a template that all who want it share.
    fn load_once(&self, key: &Key, subject: impl FnOnce() -> Subject, keep: Keep) -> Shares<Found> {
        let (load, _) = self.0.loads.begin(key, || {
            let (this, key, subject) = (self.clone(), key.clone(), subject());
            async move {
                let found = this.load(&key, &subject, keep).await;
                if let Ok(Found::Loaded(loaded)) = &found {
                    this.settle(key, loaded, keep);
                }
                found
            }
        });
        load
    }

    /// The one compilation of a template that all who want it share, whatever rung they asked for; and whether it begins now.
    fn compile_once(&self, key: &Key, subject: impl FnOnce() -> Subject, keep: Keep) -> (Shares<Loaded>, bool) {
        self.0.compilations.begin(key, || {
            let (this, key, subject) = (self.clone(), key.clone(), subject());
            async move {
                let loaded = this.load_compiled(&key, &subject).await;
                if let Ok(loaded) = &loaded {
                    this.settle(key, loaded, keep);
                }
                loaded
            }
        })
    }

    fn settle(&self, key: Key, loaded: &Loaded, keep: Keep) {
        if keep == Keep::Resident {
            discard(self.keep(key, loaded.template.clone()));
        }
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
        tokio::spawn(async move {
            if let Err(fault) = blocking(|| let_go(left)).await {
                tracing::error!(%fault, "a template cannot be let go of");
            }
        });
    } else if !left.is_empty() {
        tokio::spawn(async move {
            // After those for whom it had to leave, which this load wakes.
            tokio::task::yield_now().await;
            let_go(left);
        });
    }
}

/// Runs blocking work on a thread that may block; on the calling one where the system has none to give: what gives templates up is such work, and
/// may be what helps.
///
/// # Errors
/// `internal` when the work panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    let here = Arc::new(Mutex::new(Some(work)));
    let there = here.clone();
    // tokio panics where it has no thread and gets none, and keeps what it was given.
    let task = catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(move || run(&there))));
    let done = match task {
        Ok(task) => task.await.map_err(Fault::internal)?,
        Err(_) => run(&here),
    };
    done.ok_or_else(|| Fault::internal("work that blocks was taken twice"))
}

/// Runs work that nobody has taken yet, without the lock.
fn run<T>(work: &Mutex<Option<impl FnOnce() -> T>>) -> Option<T> {
    let work = lock(work).take();
    work.map(|work| work())
}

async fn blocking_if<T: Send + 'static>(long: bool, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    if long { blocking(work).await } else { Ok(work()) }
}
