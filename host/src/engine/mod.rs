//! The engine: templates, instances, and the running of guests.
//!
//! Owns all wasmtime engines, their pools and linkers. With `capability` the only module that names wasmtime. Knows nothing
//! about names, routes, registries or HTTP connections. Invariant: every guest runs in a store from `store.rs`, in an instance that
//! nothing ran in before.

mod artifact;
pub mod build;
mod call;
mod cgi;
mod deadline;
mod kind;
mod large;
mod limiter;
mod opening;
mod ready;
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
use std::time::Duration;

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::error::Context as _;
use wasmtime::{Linker as ModuleLinker, Result};

use crate::artifacts::VerifiedArtifact;
use crate::capability::{self, Host};
use crate::config;
use crate::fault::{Code, Fault};
use crate::meter::{Admission, Permit};
use crate::telemetry::metrics::Metrics;

use large::Trial;
use template::{Entry, Resolved};

/// What runs guests. Cheap to clone.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

/// An artifact that this engine cannot run: it was made for another version or other settings.
#[derive(Debug, thiserror::Error)]
#[error("the engine does not take the artifact: {0:#}")]
pub struct LoadError(wasmtime::Error);

struct Inner {
    lanes: Vec<LaneEngine>,
    ready: Arc<ready::Budget>,
    metrics: Arc<Metrics>,
}

/// One of wasmtime's engines, with its pool, its linkers and the places of its instances.
struct LaneEngine {
    lane: Lane,
    /// Whether its pool is the one for large guests.
    large: bool,
    engine: wasmtime::Engine,
    components: ComponentLinker<Host>,
    /// Only on the plain lane, where core modules run.
    modules: Option<ModuleLinker<Host>>,
    instances: Admission,
    instances_max: usize,
}

impl LaneEngine {
    fn new(lane: Lane, large: bool, engine: wasmtime::Engine, instances: u32, wait: Duration) -> Result<Self> {
        let mut components = ComponentLinker::new(&engine);
        capability::link_components(&mut components, lane == Lane::Concurrent)?;
        let modules = match lane {
            Lane::Plain => {
                let mut modules = ModuleLinker::new(&engine);
                capability::link_modules(&mut modules)?;
                Some(modules)
            }
            Lane::Concurrent => None,
        };
        let places = usize::try_from(instances).unwrap_or(usize::MAX);
        // Those that wait hold a connection each, so connections bound them; here they only must not be unbounded.
        let instances = Admission::new(places, 8 * places, wait);
        Ok(Self { lane, large, engine, components, modules, instances, instances_max: places })
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
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
        let (instances, wait) = (config.instances_max, config.instance_wait.0);
        let mut lanes = Vec::new();
        for lane in [Lane::Plain, Lane::Concurrent] {
            let engine = settings::serving(lane, instances, settings::KEEP_RESIDENT)?;
            lanes.push(LaneEngine::new(lane, false, engine, instances, wait)?);
        }
        if config.large_instances_max > 0 {
            let engine = settings::serving(Lane::Plain, config.large_instances_max, settings::LARGE_KEEP_RESIDENT)?;
            lanes.push(LaneEngine::new(Lane::Plain, true, engine, config.large_instances_max, wait)?);
        }
        let bytes_max = usize::try_from(config.ready_bytes_max.0).unwrap_or(usize::MAX);
        Self::over(lanes, ready::Budget::new(bytes_max, config.ready_max, config.ready_idle.0), metrics)
    }

    /// The engine of a build: one lane without a pool, which counts what random numbers guests draw.
    ///
    /// # Errors
    /// When no thread can be started.
    fn for_build(lane: Lane, engine: wasmtime::Engine) -> Result<Self> {
        let mut lane_engine = LaneEngine::new(lane, false, engine, 1, Duration::ZERO)?;
        lane_engine.components.allow_shadowing(true);
        capability::wasi::count_seeds(&mut lane_engine.components, lane == Lane::Concurrent)?;
        Self::over(vec![lane_engine], ready::Budget::new(0, 0, Duration::ZERO), Arc::new(Metrics::new()))
    }

    fn over(lanes: Vec<LaneEngine>, ready: Arc<ready::Budget>, metrics: Arc<Metrics>) -> Result<Self> {
        deadline::start_ticker(&lanes.iter().map(|lane| lane.engine.clone()).collect::<Vec<_>>())?;
        Ok(Self(Arc::new(Inner { lanes, ready, metrics })))
    }

    /// Loads a verified artifact.
    ///
    /// # Errors
    /// When it was compiled for other settings or by another version of the engine: it must be compiled again.
    /// # Cost
    /// Some 50 us for a small module, 2 ms for an interpreter of 30 MB; no copy.
    pub fn load(&self, shape: Shape, artifact: &VerifiedArtifact) -> Result<Template, LoadError> {
        let load = || {
            let (place, lane) = self.usual_place(shape.lane)?;
            let code = artifact::Code::load(&lane.engine, shape.kind, artifact)?;
            let entry = Entry::new(shape.kind, &code, lane.modules.as_ref(), &lane.components)?;
            let trial =
                self.large_place().filter(|_| shape.lane == Lane::Plain).and_then(|_| Trial::new(artifact, code.memory_bytes()));
            Ok(Template::new(shape, Resolved { entry, place }, trial, code.image_bytes()))
        };
        load().map_err(LoadError)
    }

    /// Bytes that differ whenever artifacts of one engine must not be loaded by the other: full version, and all settings and
    /// processor features that wasmtime holds to matter.
    #[must_use]
    pub fn fingerprint(&self) -> Vec<u8> {
        let mut bytes = ENGINE_VERSION.as_bytes().to_vec();
        // The pool is no part of it: the one for large guests loads what the others load.
        for lane in self.0.lanes.iter().filter(|lane| !lane.large) {
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

    fn place(&self, place: usize) -> &LaneEngine {
        // Only `usual_place` and `large_place` make these numbers, of a list that never changes.
        &self.0.lanes[place]
    }

    fn usual_place(&self, lane: Lane) -> Result<(usize, &LaneEngine)> {
        let mut places = self.0.lanes.iter().enumerate();
        places.find(|(_, place)| place.lane == lane && !place.large).context("this engine has no such lane")
    }

    /// A place among the instances of one of the pools. One that waits for a request gives way to one that has it.
    async fn admit(&self, place: usize) -> Result<Permit, Fault> {
        let lane = self.place(place);
        if let Some(permit) = lane.instances.try_admit() {
            return Ok(permit);
        }
        drop(self.0.ready.give_up(place));
        lane.admit().await
    }

    fn large_place(&self) -> Option<usize> {
        self.0.lanes.iter().position(|place| place.large)
    }
}

impl LaneEngine {
    /// A place among the instances of the pool, as soon as there is one.
    async fn admit(&self) -> Result<Permit, Fault> {
        self.instances.admit().await.map_err(|_| {
            let fault = Fault::new(Code::Overloaded, "all instances of this node are taken").retry_after(Duration::from_secs(1));
            let key = if self.large { "engine.large_instances_max" } else { "engine.instances_max" };
            fault.hint(format!("try again, or raise {key}"))
        })
    }
}
