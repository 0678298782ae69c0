//! Dispatch: from a request to the function it is for, a place to run, a template, and the engine.
//!
//! Owns the order of these steps, and that registry and catalog change in the same order. Knows no HTTP connection and no wasmtime.
//! Invariant: an invocation holds its place among the function's `concurrency` from when there is something to run there until its instance is
//! gone, and until a client took a large response.

pub mod catalog;
mod current;
pub mod files;
mod buckets;
mod functions;
mod looked;
mod place;
pub mod templates;
pub mod used;
mod wanted;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};
use http_body::Body as _;

use catalog::{Base, Function, Resolved};
pub use current::Retake;
use current::Retakes;
use functions::Functions;
pub use functions::Metered;
use place::{Placed, Seat};
use templates::{Loaded, Templates};
use used::UseOrder;
pub use wanted::Unreadable;

use crate::data::Data;
use crate::engine::{Call, Engine, UnknownKind};
use crate::fault::{Code, Executed, Fault};
use crate::id::{Digest, FunctionName, InvocationId, TenantId};
use crate::identity::Identity;
use crate::invocation::{BodyError, Invocation, Invoke, Invoked, Outcome, Payload, Phases, Start, Target, bounded};
use crate::limits::Limit;
use crate::manifest::{Auth, Trigger};
use crate::meter::series::minute;
use crate::meter::{FunctionMeter, TenantMeter, Way, counted};
use crate::net::panic_text;
use crate::registry::{FunctionRecord, Registry, RegistryError};
use crate::telemetry::logs::unix_ms;
use crate::telemetry::metrics::Delivery;

/// Tells a function how it was reached, so that it can make links to itself.
const PATH_PREFIX: HeaderName = HeaderName::from_static("hob-path-prefix");

/// Runs invocations of deployed functions on the calling thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    functions: Functions,
    registry: Arc<Registry>,
    /// Held over every change of registry and catalog, so that both change in the same order.
    changes: Mutex<()>,
    engine: Engine,
    templates: Templates,
    /// Told what functions want to be told.
    data: Option<Arc<Data>>,
    /// What is initialised again because a secret has changed.
    retakes: Retakes,
    /// Knows who may invoke functions that ask for a token.
    identity: Option<Arc<Identity>>,
    /// Held while the quotas of a tenant's buckets are added up and one more is made.
    making: Mutex<()>,
    ids: Ids,
}

/// Makes identifiers of invocations.
#[derive(Debug)]
struct Ids {
    node: u64,
    next: AtomicU64,
}

impl Ids {
    fn next(&self) -> InvocationId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        InvocationId::new(unix_ms(), u128::from(self.node) << 48 | u128::from(count))
    }
}

impl Dispatcher {
    /// A dispatcher of the functions in `registry`. `grants`: of every function. `functions_hot_max`: functions in memory. `node`:
    /// a random number that tells this start of the node from any other.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn new(
        engine: Engine,
        templates: Templates,
        registry: Arc<Registry>,
        base: Base,
        functions_hot_max: usize,
        node: u64,
    ) -> Result<Self, RegistryError> {
        let (data, identity) = (base.data.clone(), base.identity.clone());
        let functions = Functions::new(registry.clone(), base, functions_hot_max)?;
        let ids = Ids { node, next: AtomicU64::new(0) };
        let (changes, making, retakes) = (Mutex::new(()), Mutex::new(()), Retakes::default());
        let inner = Inner { functions, registry, changes, engine, templates, data, retakes, identity, making, ids };
        inner.count();
        Ok(Self(Arc::new(inner)))
    }

    /// A function by its name.
    ///
    /// # Errors
    /// `not-found`; `damaged` or `internal` when its record cannot be read.
    /// # Cost
    /// Two look-ups, or a read of the registry if it is not in use.
    pub fn function(&self, tenant: &TenantId, name: &FunctionName) -> Result<Arc<Function>, Fault> {
        self.0.functions.get(tenant, name)?.ok_or_else(|| no_such_function(name))
    }

    /// What a function used since the node started, and how many of its invocations run and wait. All zero for one that is not
    /// deployed.
    #[must_use]
    pub fn usage(&self, tenant: &TenantId, name: &FunctionName) -> (Arc<FunctionMeter>, (usize, usize)) {
        self.0.functions.usage(tenant, name)
    }

    /// The artifact that requests of a function are answered from while it is in memory: after an upgrade of the engine not yet the record's.
    #[must_use]
    pub fn artifact(&self, tenant: &TenantId, name: &FunctionName) -> Option<Digest> {
        self.0.functions.artifact(tenant, name)
    }

    /// Totals of all functions of a tenant that were invoked since the node started.
    #[must_use]
    pub fn metered(&self, tenant: &TenantId) -> Vec<Metered> {
        self.0.functions.metered(tenant)
    }

    /// Brings `order` up to date with what was used since, and writes it down. Blocks.
    ///
    /// # Errors
    /// When it cannot be written; the next call tries again.
    pub fn remember_use(&self, order: &mut UseOrder) -> std::io::Result<()> {
        order.note(self.0.functions.counts());
        order.save()
    }

    /// Gives back the room for minutes of whoever used nothing for an hour.
    ///
    /// # Cost
    /// A look at each function that was invoked.
    pub fn rest_meters(&self) {
        let now = minute(Instant::now());
        self.0.functions.rest_meters(now);
        if let Some(identity) = &self.0.identity {
            identity.meters().rest(now);
        }
    }

    /// What a tenant uses and may use.
    #[must_use]
    pub fn tenant_meter(&self, tenant: &TenantId) -> Arc<TenantMeter> {
        self.0.identity.as_ref().map(|identity| identity.meters().of(tenant)).unwrap_or_default()
    }

    /// Where templates come from.
    #[must_use]
    pub fn templates(&self) -> &Templates {
        &self.0.templates
    }

    /// To be held while the registry's function is changed and until the catalog's is.
    pub fn begin_change(&self, tenant: &TenantId, name: &FunctionName) -> Change<'_> {
        let turn = self.0.changes.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.functions.set_changing(Some((tenant.clone(), name.clone())));
        // If the registry cannot be read, the change is not going to be made.
        let artifact = self.0.registry.function(tenant, name).ok().flatten().map(|record| record.live.artifact);
        Change { inner: &self.0, artifact, _turn: turn }
    }

    /// An identifier for an invocation.
    #[must_use]
    pub fn next_id(&self) -> InvocationId {
        self.0.ids.next()
    }

    /// [`Invoke::invoke`] under an identifier that was given out before, so that it is known even if the invocation is lost.
    pub fn invoke_as(&self, id: InvocationId, invocation: Invocation) -> BoxFuture<'static, Invoked> {
        let (this, called) = (self.clone(), Instant::now());
        async move {
            // Unwind safety: the future is not used again, and what it shares with others is behind locks and atomics that have their own answer to
            // a panic.
            let run = AssertUnwindSafe(this.run(id, invocation, called)).catch_unwind().await;
            let result = run.unwrap_or_else(|panic| {
                let metrics = this.0.engine.metrics();
                metrics.panics.inc();
                metrics.faulted(Code::Internal);
                Err(Fault::internal(format!("panic around an invocation: {}", panic_text(&*panic))))
            });
            Invoked { id, result }
        }
        .boxed()
    }

    async fn run(&self, id: InvocationId, invocation: Invocation, called: Instant) -> Result<Outcome, Fault> {
        let Invocation { tenant, target, request, received, start: asked } = invocation;
        let (mut head, body) = request.into_parts();
        let resolved = self.resolve(&tenant, &target, &head);
        let Resolved { function, prefix_len } = resolved.inspect_err(|fault| self.0.engine.metrics().faulted(fault.code))?;
        let outcome = async {
            if function.revision.manifest.auth == Auth::Token && matches!(target, Target::Request) {
                self.authorize(&function, &mut head.headers)?;
            }
            function.meter.tenant().admit()?;
            // Apart, so that it makes the future of no other function larger.
            let again = if function.depends_on_secrets() { Some(Box::pin(self.current(&function)).await?) } else { None };
            let function = again.as_ref().unwrap_or(&function);
            let body = counted(limit_body(body, function.limits.get(Limit::RequestBody))?, &function.meter, Way::In);
            if prefix_len > 0 {
                head.headers.insert(PATH_PREFIX, function.prefix.clone());
            }
            let placed = self.place(function, asked).await?;
            let Placed { seat: Seat { permit, running, waited, admitted }, next, loaded, compiling } = placed;
            let (function, Loaded { template, start, verify }) = (next.as_ref().unwrap_or(function), loaded);
            // A thread that is busy with others takes this one's time; a function without a place does not, nor one that is built again, nor what
            // it takes to load or compile it: that is the node's, and a function whose limit is short could not start after it was evicted.
            let counts_from = match start {
                Start::Stored | Start::Compiled => Instant::now(),
                _ if waited || again.is_some() || !compiling.is_zero() => admitted,
                _ => called,
            };
            // Who comes to a load that is under way waits for a part of it.
            let took = compiling + if start == Start::Resident { Duration::ZERO } else { admitted.elapsed() };
            let verify = verify.min(took);
            let load = took - verify;
            let call = Call {
                id,
                tenant,
                revision: function.revision.number,
                request: http::Request::from_parts(head, body),
                prefix_len,
                limits: function.limits.clone(),
                environment: function.environment.clone(),
                log: function.log.clone(),
                meter: function.meter.clone(),
                permit: Some((permit, running)),
                counts_from,
                may_be_ready: asked.is_none_or(|asked| asked == Start::Ready),
            };
            let before = Phases { queue: (admitted - received).saturating_sub(compiling), load, verify, ..Phases::default() };
            let began = self.0.engine.run(&template, call).await.inspect_err(|fault| {
                // The rest was counted where the guest ran.
                if fault.executed == Executed::Yes {
                    function.meter.spent(&before, Instant::now());
                }
            })?;
            // One that waited for a load or a compilation has seen more than an instance that was there.
            let start = if began.ready && start == Start::Resident { Start::Ready } else { start };
            let queue = before.queue + began.queue;
            let phases = Phases { queue, instantiate: began.instantiate, enter: began.enter, run: began.run, ..before };
            // The clock need not be read for the minute that it is.
            function.meter.started(start, &phases, received + phases.total());
            self.0.engine.metrics().started(start, &phases);
            let response = began.response.map(|body| counted(body, &function.meter, Way::Out));
            Ok(Outcome { response, revision: function.revision.number, start, phases })
        };
        let outcome: Result<Outcome, Fault> = outcome.await;
        if let Err(fault) = &outcome
            && fault.executed == Executed::No
        {
            // Faults of a guest that ran were counted where it ran.
            function.meter.faulted(fault.code);
            self.0.engine.metrics().faulted(fault.code);
        }
        outcome
    }

    /// Lets a request of the data port through to a function that asks for a token. The guest does not see it.
    fn authorize(&self, function: &Function, headers: &mut HeaderMap) -> Result<(), Fault> {
        match &self.0.identity {
            Some(identity) => identity.may_invoke(headers, &function.tenant)?,
            None => return Err(Fault::new(Code::Unauthenticated, "the function asks for a token, and nobody here knows any")),
        }
        headers.remove(AUTHORIZATION);
        Ok(())
    }

    fn resolve(&self, tenant: &TenantId, target: &Target, head: &http::request::Parts) -> Result<Resolved, Fault> {
        match target {
            Target::Request => self.0.functions.resolve(tenant, head),
            Target::Function(name) => Ok(Resolved { function: self.function(tenant, name)?, prefix_len: 0 }),
        }
    }
}

impl Inner {
    /// Events of a bucket reach whoever wants them from now on. Those that a function wants no more are removed.
    fn want(&self, tenant: &TenantId, name: &FunctionName, triggers: &[Trigger]) {
        let Some(data) = &self.data else { return };
        match data.outbox().want(tenant, name, triggers) {
            Ok(removed) => self.engine.metrics().delivery(Delivery::Dropped, removed),
            Err(error) => tracing::error!(%error, function = %name, "events that it wants no more stay, and are not delivered"),
        }
    }

    fn count(&self) {
        match self.registry.count() {
            Ok(count) => _ = self.engine.metrics().functions.set(i64::try_from(count).unwrap_or(i64::MAX)),
            Err(error) => tracing::warn!(%error, "the functions cannot be counted"),
        }
    }
}

/// The fault for a name that nothing is deployed under.
#[must_use]
pub fn no_such_function(name: &FunctionName) -> Fault {
    Fault::new(Code::NotFound, format!("there is no function '{name}'")).hint("list them with: hob ls")
}

/// Refuses a body that is or says that it is larger than `limit`, and watches over one that does not say.
fn limit_body(body: Payload, limit: u64) -> Result<Payload, Fault> {
    if body.size_hint().lower() > limit {
        let detail = format!("the request body has {} bytes, the function takes at most {limit}", body.size_hint().lower());
        return Err(Fault::new(Code::BodyTooLarge, detail).hint("raise 'request_body' in [limits] of hob.toml"));
    }
    Ok(match body {
        Payload::Stream(stream) => Payload::Stream(bounded(stream, limit, move || BodyError::TooLarge { limit })),
        whole => whole,
    })
}

impl Invoke for Dispatcher {
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'static, Invoked> {
        self.invoke_as(self.next_id(), invocation)
    }
}

/// A change of what is live, in its turn.
#[derive(Debug)]
pub struct Change<'a> {
    inner: &'a Inner,
    /// Of the revision that was live when it began.
    artifact: Option<Digest>,
    _turn: MutexGuard<'a, ()>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.inner.functions.set_changing(None);
    }
}

impl Change<'_> {
    /// Makes a revision live for all invocations that begin from now on.
    ///
    /// # Errors
    /// [`UnknownKind`]: never for a revision that this version built.
    pub fn publish(&self, record: FunctionRecord) -> Result<(), UnknownKind> {
        let (tenant, name, triggers) = (record.tenant.clone(), record.name.clone(), record.live.manifest.trigger.clone());
        let before = self.inner.functions.publish(record)?;
        self.inner.want(&tenant, &name, &triggers);
        self.retire(&tenant, before);
        Ok(())
    }

    /// Takes a function away from all invocations that begin from now on.
    pub fn remove(&self, tenant: &TenantId, name: &FunctionName) {
        let before = self.inner.functions.remove(tenant, name);
        self.inner.want(tenant, name, &[]);
        self.retire(tenant, before);
    }

    /// Shows what the registry holds, after a change of it that failed: it may have been made all the same.
    pub fn resync(&self, tenant: &TenantId, name: &FunctionName) {
        let shown = match self.inner.registry.function(tenant, name) {
            Ok(Some(record)) => self.publish(record).map_err(|error| error.to_string()),
            Ok(None) => {
                self.remove(tenant, name);
                Ok(())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = shown {
            tracing::error!(error, function = %name, "what is live of a function may be older than what the registry holds");
        }
    }

    /// Lets go of what is in memory of the former revision. `before`: the function until now, if it was in memory.
    fn retire(&self, tenant: &TenantId, before: Option<Arc<Function>>) {
        self.inner.count();
        let Some(artifact) = before.map(|before| before.revision.artifact).or(self.artifact) else { return };
        // The next revision may have the same artifact, and so may other functions of the tenant; while one that is in use does, it
        // stays until it is the least used. What waits goes, of whichever function it would have become.
        let shared = self.inner.functions.catalog().functions(tenant).any(|function| function.revision.artifact == artifact);
        match shared {
            true => self.inner.templates.drop_ready(tenant, artifact),
            false => self.inner.templates.forget(tenant, artifact),
        }
    }
}
