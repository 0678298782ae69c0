//! The engine: templates, instances, and the running of guests.
//!
//! Owns both wasmtime engines, their pools and linkers. With `capability` the only module that names wasmtime. Knows nothing
//! about names, routes, registries or HTTP connections. Invariant: every guest runs in a store from `store.rs`, in an instance that
//! nothing ran in before.

mod artifact;
pub mod build;
mod call;
mod cgi;
mod deadline;
mod kind;
mod limiter;
mod run;
mod settings;
mod store;
mod template;
pub mod terminal;
mod trap;

pub use kind::{Kind, Lane, Shape, UnknownKind};
pub use run::{Began, Call};
pub use settings::ENGINE_VERSION;
pub use template::Template;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{Linker as ModuleLinker, Result};

use crate::artifacts::VerifiedArtifact;
use crate::capability::{self, Host};
use crate::config;
use crate::fault::{Code, Fault};
use crate::meter::{Admission, Permit};
use crate::telemetry::metrics::Metrics;

/// What runs guests. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

/// An artifact that this engine cannot run: it was made for another version or other settings.
#[derive(Debug, thiserror::Error)]
#[error("the engine does not take the artifact: {0:#}")]
pub struct LoadError(wasmtime::Error);

struct Inner {
    plain: LaneEngine,
    concurrent: LaneEngine,
    modules: ModuleLinker<Host>,
    instances: Admission,
    metrics: Arc<Metrics>,
}

struct LaneEngine {
    engine: wasmtime::Engine,
    components: ComponentLinker<Host>,
}

impl LaneEngine {
    fn new(lane: Lane, engine: wasmtime::Engine) -> Result<Self> {
        let mut components = ComponentLinker::new(&engine);
        capability::link_components(&mut components, lane == Lane::Concurrent)?;
        Ok(Self { engine, components })
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("instances", &self.0.instances).finish_non_exhaustive()
    }
}

impl Engine {
    /// Makes both lanes with their pools, and starts the thread that ticks.
    ///
    /// # Errors
    /// When the address space of the pools cannot be reserved (lower `engine.instances_max`), or no thread can be started.
    /// # Cost
    /// About 10 ms for 1,000 instances: a guard page for each stack.
    pub fn new(config: &config::Engine, metrics: Arc<Metrics>) -> Result<Self> {
        let instances = config.instances_max;
        let plain = LaneEngine::new(Lane::Plain, settings::serving(Lane::Plain, instances)?)?;
        let concurrent = LaneEngine::new(Lane::Concurrent, settings::serving(Lane::Concurrent, instances)?)?;
        let mut modules = ModuleLinker::new(&plain.engine);
        capability::link_modules(&mut modules)?;
        deadline::start_ticker(&[plain.engine.clone(), concurrent.engine.clone()])?;
        let places = usize::try_from(instances).unwrap_or(usize::MAX);
        // Those that wait hold a connection each, so connections bound them; here they only must not be unbounded.
        let instances = Admission::new(places, 8 * places, config.instance_wait.0);
        Ok(Self(Arc::new(Inner { plain, concurrent, modules, instances, metrics })))
    }

    /// Loads a verified artifact.
    ///
    /// # Errors
    /// When it was compiled for other settings or by another version of the engine: it must be compiled again.
    /// # Cost
    /// Some 50 us for a small module, 2 ms for an interpreter of 30 MB; no copy.
    pub fn load(&self, shape: Shape, artifact: &VerifiedArtifact) -> Result<Template, LoadError> {
        let lane = match shape.lane {
            Lane::Plain => &self.0.plain,
            Lane::Concurrent => &self.0.concurrent,
        };
        let code = artifact::Code::load(&lane.engine, shape.kind, artifact).map_err(LoadError)?;
        Template::new(shape, code, &self.0.modules, &lane.components).map_err(LoadError)
    }

    /// Bytes that differ whenever artifacts of one engine must not be loaded by the other: full version, and all settings and
    /// processor features that wasmtime holds to matter.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = ENGINE_VERSION.as_bytes().to_vec();
        for lane in [&self.0.plain, &self.0.concurrent] {
            let mut hasher = std::hash::DefaultHasher::new();
            lane.engine.precompile_compatibility_hash().hash(&mut hasher);
            bytes.extend(hasher.finish().to_le_bytes());
        }
        bytes
    }

    /// Prepares the calling thread to run guests, so that its first invocation does not pay for it.
    pub fn prepare_thread() {
        wasmtime::Engine::tls_eager_initialize();
    }

    /// The node's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    fn lane(&self, lane: Lane) -> &wasmtime::Engine {
        match lane {
            Lane::Plain => &self.0.plain.engine,
            Lane::Concurrent => &self.0.concurrent.engine,
        }
    }

    /// A place among the node's instances.
    async fn admit(&self) -> Result<Permit, Fault> {
        self.0.instances.admit().await.map_err(|_| {
            let fault = Fault::new(Code::Overloaded, "all instances of this node are taken")
                .retry_after(std::time::Duration::from_secs(1));
            fault.hint("try again, or raise engine.instances_max")
        })
    }
}
