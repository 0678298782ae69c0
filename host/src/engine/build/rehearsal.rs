//! Rehearsals: a function run in the build, before anybody else may call it.
//!
//! Owns a guest on the child's own engine and the requests made of it. The store is the one that serves requests, the grants are
//! none but of files, for reading, and of secrets that the manifest lets it read: no network, no data. Knows nothing about snapshots.
//! Invariant: whatever the guest does, a rehearsal ends within its time.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use http_body::Body as _;
use wasmtime::component::Instance as ComponentInstance;
use wasmtime::{Result, Store};
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p3::bindings::Service;

use super::job::Job;
use crate::capability::explain::Explained;
use crate::capability::files::FileAccess;
use crate::capability::handler::{Exchange, WIZER_INIT};
use crate::capability::reply::Reply;
use crate::capability::secrets::SecretAccess;
use crate::capability::{Environment, Host, http as wasi_http};
use crate::engine::artifact::Code;
use crate::engine::body::passed;
use crate::engine::call::{self, Input, Live};
use crate::engine::store::{self, Blueprint, Streams};
use crate::engine::template::Entry;
use crate::engine::{Engine, Kind, Lane, Shape, deadline, schedule, settings};
use crate::fault::{Code as FaultCode, Fault};
use crate::id::{InvocationId, RevisionNumber};
use crate::invocation::{Hops, Payload};
use crate::limits::{Limit, Limits};
use crate::manifest::WarmupRequest;
use crate::telemetry::logs::{FunctionLog, LogSink, LogSpace};

/// Bytes that all rehearsals of one build may log.
const LOG_BYTES_MAX: usize = 64 << 10;

/// What all rehearsals of one build have in common.
pub(super) struct Stage<'a> {
    pub(super) job: &'a Job,
    pub(super) shape: Shape,
    pub(super) log: Arc<FunctionLog>,
    /// Compiles what is published, and runs it for the first time.
    pub(super) engine: wasmtime::Engine,
    /// Whether the system refused a guest memory that its limits allow: what it did then is not what it does elsewhere.
    pub(super) is_short: Arc<AtomicBool>,
}

impl<'a> Stage<'a> {
    pub(super) fn new(job: &'a Job, shape: Shape) -> Result<Self> {
        let log = Arc::new(FunctionLog::new(LogSpace::new(LOG_BYTES_MAX, LOG_BYTES_MAX)));
        Ok(Self { job, shape, log, engine: settings::compiling(shape.lane)?, is_short: Arc::default() })
    }
}

/// Times of one rehearsal.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

impl Times {
    /// Those of an invocation.
    pub(super) fn of(limits: &Limits) -> Self {
        Self { cpu: limits.duration(Limit::Cpu), wall: limits.duration(Limit::Wall) }
    }
}

/// A guest that has started.
pub(super) struct Rehearsal {
    pub(super) store: Store<Host>,
    pub(super) instance: Instance,
    entry: Entry,
    live: Live,
    kind: Kind,
    lane: Lane,
    times: Times,
    /// Most bytes of an answer's body.
    response_body: u64,
    /// That of the stage.
    is_short: Arc<AtomicBool>,
}

/// The instance as the engine has it.
#[derive(Clone, Copy)]
pub(super) enum Instance {
    Module(wasmtime::Instance),
    Component(ComponentInstance),
}

/// What a guest runs before its first request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// What is there to be kept: also the [`WIZER_INIT`] of a component.
    Initialising,
    /// What it runs in every invocation, up to where it is asked.
    Serving,
    /// The same, and the `hob_restored` of a handler, which otherwise runs when it is asked: for one that is not going to be.
    Bare,
}

impl Rehearsal {
    /// Makes an instance of `code` and runs what it runs at its start.
    ///
    /// # Errors
    /// A fault of the guest, as an invocation would have it.
    pub(super) async fn start(stage: &Stage<'_>, engine: &Engine, code: &Code, times: Times, how: Start) -> Result<Self, Fault> {
        let (_, lane) = engine.pool(stage.shape.lane, false).map_err(Fault::internal)?;
        let kind = stage.shape.kind;
        let entry = Entry::new(kind, code, lane.modules.as_ref(), &lane.components).map_err(Fault::internal)?;
        let log = LogSink::new(stage.log.clone(), InvocationId::new(0, 0), RevisionNumber::FIRST, LOG_BYTES_MAX as u64);
        // No grants but of files, and of secrets that may be read here, which are frozen in a snapshot; and no data: what is there at deploy is
        // not what will be there later.
        let secrets = &stage.job.secrets;
        let values = secrets.values.iter().map(|secret| (secret.name.clone(), secret.value.clone())).collect();
        let environment = Environment {
            args: stage.job.args.clone(),
            env: stage.job.env.clone(),
            files: Arc::new(FileAccess::new(stage.job.folders.clone(), None)),
            clock: stage.job.clock,
            secrets: Arc::new(SecretAccess::of_build(&secrets.grants, values)),
            explained: Arc::new(Explained::of_build()),
            ..Environment::default()
        };
        let blueprint = Blueprint {
            kind,
            limits: &stage.job.limits,
            environment: Arc::new(environment).with_secrets(&log)?,
            log: Arc::new(log),
            reply: Arc::new(Reply::default()),
            streams: match how {
                Start::Initialising => Streams::Initialising,
                Start::Serving | Start::Bare => Streams::Served { input: None },
            },
            exchange: Exchange::default(),
            ticks: 1,
            hops: Hops::default(),
            account: None,
        };
        let (mut store, _output) = store::build(&lane.engine, blueprint);
        // A snapshot of a component is read through its own host calls, all of its memory in one.
        store.set_hostcall_fuel(usize::MAX);
        let started = within(times, &mut store, async |store: &mut Store<Host>| start(&entry, store, kind, how).await).await;
        note_shortage(&store, &stage.is_short);
        let (instance, live) = match started? {
            Ok(started) => started,
            Err(error) => return Err(call::fault(&error, &store)),
        };
        let response_body = stage.job.limits.get(Limit::ResponseBody);
        Ok(Self {
            store,
            instance,
            entry,
            live,
            kind,
            lane: stage.shape.lane,
            times,
            response_body,
            is_short: stage.is_short.clone(),
        })
    }

    /// Makes the requests in their order; the status of each.
    ///
    /// # Errors
    /// The first fault, with the request it is of.
    pub(super) async fn ask_all(&mut self, requests: &[WarmupRequest]) -> Result<Vec<u16>, Fault> {
        let mut statuses = Vec::new();
        for request in requests {
            let status = self.ask(request).await.map_err(|fault| {
                let detail = format!("the warm-up request {} {}: {}", request.method, request.path, fault.detail);
                Fault { detail: detail.into(), ..fault }
            })?;
            statuses.push(status);
        }
        Ok(statuses)
    }

    async fn ask(&mut self, request: &WarmupRequest) -> Result<u16, Fault> {
        let status = self.ask_once(request).await;
        note_shortage(&self.store, &self.is_short);
        status
    }

    /// Whether the guest holds what only WASI 0.3 has: a stream, a future, a task under way.
    pub(super) fn holds_streams(&mut self) -> bool {
        // On the other lane there is no such table.
        self.lane == Lane::Concurrent && self.store.concurrent_state_table_size() > 0
    }

    async fn ask_once(&mut self, request: &WarmupRequest) -> Result<u16, Fault> {
        let Self { store, entry, live, kind, times, response_body, .. } = self;
        let parts = request.head().map_err(Fault::internal)?;
        let body = Payload::Whole(request.body.clone().into());
        let reply = Arc::new(Reply::default());
        store.data_mut().reply = reply.clone();
        let mut input = Input { request: None, output: None, reply: reply.clone() };
        match kind {
            Kind::Handler => store.data_mut().exchange = Exchange::new(parts, 0, body, *response_body),
            _ => input.request = Some(wasi_http::request(parts, 0, body, reply.clone())?),
        }
        let (mut status, mut payload, mut left, mut broken) = (None, None, *response_body, None);
        // What a client would hold it against.
        let mut announced = None;
        let ended = within(*times, store, async |store: &mut Store<Host>| {
            let mut guest = std::pin::pin!(call::serve(entry, store, live, input));
            let mut ended = None;
            std::future::poll_fn(|cx| {
                if ended.is_none()
                    && let Poll::Ready(result) = guest.as_mut().poll(cx)
                {
                    ended = Some(result);
                }
                if let Some(head) = reply.take() {
                    status = Some(head.map(|response| {
                        let (parts, body) = response.into_parts();
                        announced = announced_len(&parts, &request.method, &body);
                        payload = Some(body);
                        parts.status.as_u16()
                    }));
                }
                // The guest may wait until its body is read.
                while let Some(body) = &mut payload {
                    match Pin::new(body).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            let len = frame.data_ref().map_or(0, |data| data.len() as u64);
                            let Some(rest) = left.checked_sub(len) else { return Poll::Ready(Err(passed(*response_body))) };
                            left = rest;
                        }
                        Poll::Ready(Some(Err(error))) => (payload, broken) = (None, Some(error)),
                        Poll::Ready(None) => payload = None,
                        // A guest that has failed writes no more of it, and what would end it is still in the store.
                        Poll::Pending if matches!(&ended, Some(Err(_) | Ok(Err(_)))) => break,
                        Poll::Pending => return Poll::Pending,
                    }
                }
                match ended.take() {
                    Some(result) => Poll::Ready(Ok(result)),
                    None => Poll::Pending,
                }
            })
            .await
        })
        .await??;
        match ended {
            Ok(result) => result?,
            Err(error) => return Err(call::fault(&error, store)),
        }
        if let Some(error) = broken {
            return Err(Fault::executed(FaultCode::GuestBadResponse, format!("the answer broke off: {error}")));
        }
        let len = *response_body - left;
        if let Some(announced) = announced.filter(|announced| *announced != len) {
            let detail = format!("the answer broke off: its content-length is {announced}, and its body has {len} bytes");
            return Err(Fault::executed(FaultCode::GuestBadResponse, detail));
        }
        status.unwrap_or_else(|| Err(Fault::executed(FaultCode::GuestNoResponse, "the function ended without a response")))
    }
}

/// How long the head of a streamed answer says that its body is, if that is what a client sees: a body that is whole has its own length.
fn announced_len(head: &http::response::Parts, method: &str, body: &Payload) -> Option<u64> {
    let has_none = matches!(head.status, http::StatusCode::NO_CONTENT | http::StatusCode::NOT_MODIFIED);
    let is_streamed = matches!(body, Payload::Stream(_)) && method != "HEAD" && !has_none;
    let said = head.headers.get(http::header::CONTENT_LENGTH).filter(|_| is_streamed)?;
    said.to_str().ok()?.parse().ok()
}

/// Notes whether the guest was refused memory by the system.
fn note_shortage(store: &Store<Host>, is_short: &AtomicBool) {
    if store.data().memory.was_crowded() {
        is_short.store(true, Ordering::Relaxed);
    }
}

async fn start(entry: &Entry, store: &mut Store<Host>, kind: Kind, how: Start) -> Result<(Instance, Live)> {
    let pre = match entry {
        Entry::Handler { .. } | Entry::Command { .. } => {
            let live = call::instantiate(entry, store).await?;
            let Live::Module(instance) = &live else { wasmtime::bail!("a {} is no core module", kind.as_str()) };
            if how == Start::Bare {
                call::restore(entry, store, *instance).await?;
            }
            return Ok((Instance::Module(*instance), live));
        }
        Entry::Http02(pre) => pre.instance_pre(),
        Entry::Http03(pre) => pre.instance_pre(),
        Entry::Command02(pre) => pre.instance_pre(),
        Entry::Command03(pre) => pre.instance_pre(),
    };
    let instance = pre.instantiate_async(&mut *store).await?;
    if how == Start::Initialising
        && let Some(init) = instance.get_func(&mut *store, WIZER_INIT)
    {
        // What the engine says of types that differ is told to nobody: it is about tuples.
        let Ok(init) = init.typed::<(), ()>(&*store) else {
            wasmtime::bail!("'{WIZER_INIT}' must be a function without parameters and results");
        };
        init.call_async(&mut *store, ()).await?;
    }
    let live = match entry {
        Entry::Http02(_) => Live::Http02(Proxy::new(&mut *store, &instance)?),
        Entry::Http03(_) => Live::Http03(Service::new(&mut *store, &instance)?),
        Entry::Command02(_) => Live::Command02(wasmtime_wasi::p2::bindings::Command::new(&mut *store, &instance)?),
        Entry::Command03(_) => Live::Command03(wasmtime_wasi::p3::bindings::Command::new(&mut *store, &instance)?),
        Entry::Handler { .. } | Entry::Command { .. } => wasmtime::bail!("a {} is no component", kind.as_str()),
    };
    Ok((Instance::Component(instance), live))
}

/// Runs `work` in slices, within `times`.
///
/// # Errors
/// `wall-deadline` when the clock ran out. The processor's deadline comes from inside, as an error of the guest.
async fn within<T>(times: Times, store: &mut Store<Host>, work: impl AsyncFnOnce(&mut Store<Host>) -> T) -> Result<T, Fault> {
    deadline::arm(store, times.cpu, 1);
    tokio::time::timeout(times.wall, schedule::in_turns(schedule::Whose::default(), work(store)))
        .await
        .map_err(|_| Fault::executed(FaultCode::WallDeadline, format!("it did not end within {:?}", times.wall)))
}
