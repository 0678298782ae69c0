//! Dispatch: from a request to the function it is for, a place to run, a template, and the engine.
//!
//! Owns the catalog of live functions and the order of these steps. Knows no HTTP connection and no wasmtime. Invariant: an
//! invocation holds its place among the function's `concurrency` from admission until its instance is gone, and until a client took
//! a large response.

pub mod catalog;
pub mod templates;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderName;
use http_body::Body as _;

use catalog::{Base, Catalog, Function, Resolved};
use templates::{Loaded, Templates};

use crate::engine::{Call, Engine, UnknownKind};
use crate::fault::{Code, Fault};
use crate::grants::Grants;
use crate::id::{FunctionName, InvocationId, TenantId};
use crate::invocation::{BodyError, Invocation, Invoke, Invoked, Outcome, Payload, Phases, Start, Target, bounded};
use crate::limits::Limit;
use crate::meter::AdmissionError;
use crate::registry::FunctionRecord;
use crate::telemetry::logs::{LogSpace, unix_ms};

/// Tells a function how it was reached, so that it can make links to itself.
const PATH_PREFIX: HeaderName = HeaderName::from_static("hob-path-prefix");

/// Runs invocations of deployed functions on the calling thread. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Dispatcher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    catalog: ArcSwap<Catalog>,
    /// Held over every change of registry and catalog, so that both change in the same order.
    changes: Mutex<()>,
    engine: Engine,
    templates: Templates,
    base: Base,
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
    /// A dispatcher of the functions in `records`. `grants`: of every function. `node`: a random number that tells this start of
    /// the node from any other.
    ///
    /// # Errors
    /// [`UnknownKind`] when a newer version of hob wrote one of the records.
    pub fn new(
        engine: Engine,
        templates: Templates,
        logs: Arc<LogSpace>,
        grants: Grants,
        records: Vec<FunctionRecord>,
        node: u64,
    ) -> Result<Self, UnknownKind> {
        let base = Base { logs, grants };
        let functions = records.into_iter().map(|record| Function::new(record, None, &base));
        let mut catalog = Catalog::default();
        catalog.extend(functions.collect::<Result<Vec<_>, _>>()?);
        engine.metrics().functions.set(i64::try_from(catalog.len()).unwrap_or(i64::MAX));
        let ids = Ids { node, next: AtomicU64::new(0) };
        Ok(Self(Arc::new(Inner {
            catalog: ArcSwap::from_pointee(catalog),
            changes: Mutex::new(()),
            engine,
            templates,
            base,
            ids,
        })))
    }

    /// The functions as they are now.
    #[must_use]
    pub fn catalog(&self) -> arc_swap::Guard<Arc<Catalog>> {
        self.0.catalog.load()
    }

    /// Where templates come from.
    #[must_use]
    pub fn templates(&self) -> &Templates {
        &self.0.templates
    }

    /// To be held while the registry is changed and until the catalog is.
    pub fn begin_change(&self) -> Change<'_> {
        Change { inner: &self.0, _turn: self.0.changes.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    /// An identifier for an invocation.
    #[must_use]
    pub fn next_id(&self) -> InvocationId {
        self.0.ids.next()
    }

    /// [`Invoke::invoke`] under an identifier that was given out before, so that it is known even if the invocation is lost.
    pub fn invoke_as(&self, id: InvocationId, invocation: Invocation) -> BoxFuture<'static, Invoked> {
        let this = self.clone();
        async move { Invoked { id, result: this.run(id, invocation).await } }.boxed()
    }

    async fn run(&self, id: InvocationId, invocation: Invocation) -> Result<Outcome, Fault> {
        // `Templates::get` is to take the rung that was asked for as its second argument.
        let Invocation { tenant, target, request, received, start: asked } = invocation;
        let (mut head, body) = request.into_parts();
        let resolved = self.resolve(&tenant, &target, &head);
        let Resolved { function, prefix_len } = resolved.inspect_err(|fault| self.0.engine.metrics().faulted(fault.code))?;
        let outcome = async {
            let body = limit_body(body, function.limits.get(Limit::RequestBody))?;
            if prefix_len > 0 {
                head.headers.insert(PATH_PREFIX, function.prefix.clone());
            }
            let permit = match function.admission.try_admit() {
                Some(permit) => permit,
                None => function.admission.admit().await.map_err(|error| no_place(&function, error))?,
            };
            let admitted = Instant::now();
            let Loaded { template, start, verify } = match self.0.templates.get(&function, asked).await {
                // Its files go when it is deleted, which may have happened while this waited its turn.
                Err(_) if !self.is_live(&function) => return Err(no_such_function(&function.name)),
                got => got?,
            };
            let load = if start == Start::Resident { Duration::ZERO } else { admitted.elapsed().saturating_sub(verify) };
            let call = Call {
                id,
                revision: function.revision.number,
                request: http::Request::from_parts(head, body),
                prefix_len,
                limits: function.limits.clone(),
                environment: function.environment.clone(),
                log: function.log.clone(),
                meter: function.meter.clone(),
                permit: Some(permit),
                admitted,
                may_be_ready: asked.is_none_or(|asked| asked == Start::Ready),
            };
            let began = self.0.engine.run(&template, call).await?;
            let start = if began.ready { Start::Ready } else { start };
            let phases = Phases {
                queue: admitted - received,
                load,
                verify,
                instantiate: began.instantiate,
                enter: began.enter,
                run: began.run,
            };
            function.meter.started(start, phases.start());
            self.0.engine.metrics().started(start, &phases);
            Ok(Outcome { response: began.response, revision: function.revision.number, start, phases })
        };
        let outcome: Result<Outcome, Fault> = outcome.await;
        if let Err(fault) = &outcome
            && fault.executed == crate::fault::Executed::No
        {
            // Faults of a guest that ran were counted where it ran.
            function.meter.faulted(fault.code);
            self.0.engine.metrics().faulted(fault.code);
        }
        outcome
    }

    /// Whether any revision of a function is still deployed.
    fn is_live(&self, function: &Function) -> bool {
        self.0.catalog.load().get(&function.tenant, &function.name).is_some()
    }

    fn resolve(&self, tenant: &TenantId, target: &Target, head: &http::request::Parts) -> Result<Resolved, Fault> {
        let catalog = self.0.catalog.load();
        match target {
            Target::Request => catalog.resolve(tenant, head),
            Target::Function(name) => match catalog.get(tenant, name) {
                Some(function) => Ok(Resolved { function: function.clone(), prefix_len: 0 }),
                None => Err(no_such_function(name)),
            },
        }
    }
}

/// The fault for a name that nothing is deployed under.
#[must_use]
pub fn no_such_function(name: &FunctionName) -> Fault {
    Fault::new(Code::NotFound, format!("there is no function '{name}'")).hint("list them with: hob ls")
}

fn no_place(function: &Function, error: AdmissionError) -> Fault {
    let running = function.limits.get(Limit::Concurrency);
    let detail = match error {
        AdmissionError::QueueFull => {
            format!("{running} invocations of '{}' run and {} wait", function.name, function.limits.get(Limit::Queue))
        }
        AdmissionError::TimedOut => format!("{running} invocations of '{}' run, and none ended in time", function.name),
    };
    Fault::new(Code::Concurrency, detail)
        .hint("raise 'concurrency' or 'queue' in [limits] of hob.toml")
        .retry_after(Duration::from_secs(1))
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
    _turn: MutexGuard<'a, ()>,
}

impl Change<'_> {
    /// Makes a revision live for all invocations that begin from now on.
    ///
    /// # Errors
    /// [`UnknownKind`]: never for a revision that this version built.
    pub fn publish(&self, record: FunctionRecord) -> Result<(), UnknownKind> {
        let catalog = self.inner.catalog.load();
        let before = catalog.get(&record.tenant, &record.name).cloned();
        let function = Arc::new(Function::new(record, before.as_deref(), &self.inner.base)?);
        let mut catalog = Catalog::clone(&catalog);
        catalog.insert(function);
        self.swap(catalog, before);
        Ok(())
    }

    /// Takes a function away from all invocations that begin from now on.
    pub fn remove(&self, tenant: &TenantId, name: &FunctionName) {
        let catalog = self.inner.catalog.load();
        let before = catalog.get(tenant, name).cloned();
        let mut catalog = Catalog::clone(&catalog);
        catalog.remove(tenant, name);
        self.swap(catalog, before);
    }

    fn swap(&self, catalog: Catalog, retired: Option<Arc<Function>>) {
        self.inner.engine.metrics().functions.set(i64::try_from(catalog.len()).unwrap_or(i64::MAX));
        self.inner.catalog.store(Arc::new(catalog));
        if let Some(retired) = retired {
            let (tenant, artifact) = (&retired.tenant, retired.revision.artifact);
            // The next revision may have the same artifact, and so may other functions of the tenant; it then just stays until it is
            // the least used. What waits was not made for this revision alone, but before it ended.
            let shared = self.inner.catalog.load().functions(tenant).any(|function| function.revision.artifact == artifact);
            match shared {
                true => self.inner.templates.drop_ready(tenant, artifact),
                false => self.inner.templates.forget(tenant, artifact),
            }
        }
    }
}
