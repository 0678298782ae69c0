//! The engine: templates, instances, and the running of guests.
//!
//! Owns all wasmtime engines, their pools and linkers. With `capability` the only module that names wasmtime. Knows nothing
//! about names, routes, registries or HTTP connections. Invariant: every guest runs in a store from `store.rs`, in an instance that
//! nothing ran in before.

mod artifact;
mod body;
pub mod build;
mod call;
mod cgi;
mod clock;
mod deadline;
mod kind;
mod large;
mod limiter;
mod opening;
mod ready;
mod run;
mod schedule;
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
use std::time::{Duration, Instant};

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::error::Context as _;
use wasmtime::{Linker as ModuleLinker, Result};

use crate::artifacts::VerifiedArtifact;
use crate::capability::{self, Host};
use crate::config;
use crate::fault::{Code, Fault};
use crate::meter::{Admission, Permit, crowd};
use crate::telemetry::metrics::Metrics;

use large::Large;
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
        crowd::set_most(config.memory_max.map_or_else(|| build::memory_bytes() / 4 * 3, |most| most.0));
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

    /// The engine of a build: one lane without a pool, which notes what guests draw and read that would be frozen.
    ///
    /// # Errors
    /// When no thread can be started.
    fn for_build(lane: Lane, engine: wasmtime::Engine) -> Result<Self> {
        let mut lane_engine = LaneEngine::new(lane, false, engine, 1, Duration::ZERO)?;
        lane_engine.components.allow_shadowing(true);
        capability::wasi::watch_components(&mut lane_engine.components, lane == Lane::Concurrent)?;
        if let Some(modules) = &mut lane_engine.modules {
            modules.allow_shadowing(true);
            capability::wasi::watch_preview1(modules)?;
        }
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
            let (code, resolved) = self.resolve(shape.lane, false, shape.kind, artifact)?;
            let large = self.pool(shape.lane, true).ok().and_then(|_| Large::of(&code, artifact));
            let image_bytes = code.image_bytes() * if large.is_some() { 2 } else { 1 };
            Ok(Template::new(shape, resolved, large, image_bytes))
        };
        load().map_err(LoadError)
    }

    /// Loads a verified artifact into one of the pools.
    fn resolve(&self, lane: Lane, large: bool, kind: Kind, artifact: &VerifiedArtifact) -> Result<(artifact::Code, Resolved)> {
        let (place, lane) = self.pool(lane, large)?;
        let code = artifact::Code::load(&lane.engine, kind, artifact)?;
        let entry = Entry::new(kind, &code, lane.modules.as_ref(), &lane.components)?;
        Ok((code, Resolved { entry, place }))
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

    /// To be called before a thread that runs guests sleeps, so that their processor time can be told from that of others.
    pub fn thread_sleeps() {
        clock::sleeps();
    }

    /// To be called when it has slept.
    pub fn thread_woke() {
        clock::woke();
    }

    /// The node's metrics.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    fn place(&self, place: usize) -> &LaneEngine {
        // Only `pool` makes these numbers, of a list that never changes.
        &self.0.lanes[place]
    }

    fn pool(&self, lane: Lane, large: bool) -> Result<(usize, &LaneEngine)> {
        let mut places = self.0.lanes.iter().enumerate();
        places.find(|(_, place)| place.lane == lane && place.large == large).context("this engine has no such pool")
    }

    /// What to make an instance of, and its place: in the best pool that has one free, else in the usual one, as soon as it has. One that
    /// waits there for a request gives way to one that has it. `waited` grows by how long that took, if it waited.
    async fn admit(&self, template: &Arc<Template>, waited: &mut Duration) -> Result<(Permit, Arc<Resolved>), Fault> {
        if crowd::is_crowded() {
            // Those that only wait for a request have memory too.
            drop(self.0.ready.give_up(template.code.place));
            if crowd::is_crowded() {
                let fault = Fault::new(Code::Overloaded, "the guests of this node have most of the memory that they may have");
                return Err(fault.hint("try again, or raise engine.memory_max").retry_after(Duration::from_secs(1)));
            }
        }
        let free = |code: &Arc<Resolved>| Some((self.place(code.place).instances.try_admit()?, code.clone()));
        if let Some(admitted) = self.codes(template).find_map(free) {
            return Ok(admitted);
        }
        let code = &template.code;
        drop(self.0.ready.give_up(code.place));
        let from = Instant::now();
        let permit = self.place(code.place).instances.admit().await.map_err(|_| {
            let fault = Fault::new(Code::Overloaded, "all instances of this node are taken").retry_after(Duration::from_secs(1));
            fault.hint("try again, or raise engine.instances_max")
        })?;
        *waited += from.elapsed();
        Ok((permit, code.clone()))
    }
}
