//! Running: one invocation from its store to the head of its response, and the rest behind it.
//!
//! Owns the driving of a guest in slices, its wall deadline, and what happens when it is done, cut or given up. A guest whose
//! response is whole when it ends is driven by whoever asked, with no task and no timer; only one that goes on after its head
//! was sent gets a task of its own. Invariant: the places an invocation takes are given back only after its instance is gone, and
//! after a large response that was whole has left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Response;
use tokio::time::{Sleep, sleep_until};

use super::body;
use super::call::{self, Ended, Guest, Input};
use super::schedule::{self, Turn, Whose};
use super::store::{self, Blueprint, Streams};
use super::{Engine, Kind, clock};
use crate::capability::handler::Exchange;
use crate::capability::reply::{self, Reply};
use crate::capability::{Environment, http as wasi_http};
use crate::crash::PanicAtDrop;
use crate::fault::{Code, Executed, Fault};
use crate::id::{InvocationId, RevisionNumber, TenantId};
use crate::invocation::{BodyError, Hops, Payload, Phases};
use crate::limits::{Limit, Limits};
use crate::meter::{FunctionMeter, Permit, Running as Place, Usage};
use crate::net::{afterwards, panic_text};
use crate::telemetry::logs::{FunctionLog, Level, LogSink};
use crate::telemetry::metrics::Metrics;

use super::opening::Opening;
use super::ready::Waiting;
use super::template::{Resolved, Template};

/// How long the head of a response is held back while the guest goes on computing: what most guests have left to do between head and
/// body. A guest that waits for anything sends its head at once.
const HEAD_HOLD: Duration = Duration::from_millis(5);

/// One call of a template.
#[derive(Debug)]
pub struct Call {
    /// Identifies it.
    pub id: InvocationId,
    /// Whose function: who is charged with its time.
    pub tenant: TenantId,
    /// Of which revision.
    pub revision: RevisionNumber,
    /// What is asked.
    pub request: http::Request<Payload>,
    /// Bytes of the path that the guest does not see.
    pub prefix_len: usize,
    /// Its ceilings.
    pub limits: Arc<Limits>,
    /// Arguments, variables and grants.
    pub environment: Arc<Environment>,
    /// The function's log.
    pub log: Arc<FunctionLog>,
    /// The function's totals.
    pub meter: Arc<FunctionMeter>,
    /// Its places among the function's `concurrency` and the tenant's.
    pub permit: Option<(Permit, Place)>,
    /// Its wall deadline counts from here: when it was asked for, or, if its function had no place for it, when it had one.
    pub counts_from: Instant,
    /// Whether an instance that waits may serve it.
    pub may_be_ready: bool,
}

/// A response that has begun.
#[derive(Debug)]
pub struct Began {
    /// Head and body; the body streams as the guest writes it.
    pub response: Response<Payload>,
    /// Whether the instance had waited for it.
    pub ready: bool,
    /// How long it waited for an instance of the node, and for its thread to have time.
    pub queue: Duration,
    /// From `Store::new` to a live instance.
    pub instantiate: Duration,
    /// From there to the guest's first host call; nothing for kinds that are not watched so closely.
    pub enter: Duration,
    /// From there to the head.
    pub run: Duration,
}

impl Engine {
    /// Runs one invocation in a fresh instance until its response begins.
    ///
    /// # Errors
    /// A [`Fault`] of the guest (trap, exit, deadline, malformed response), or `overloaded` when no instance is free in time.
    /// # Cancellation
    /// Dropping the future ends the guest, as does dropping the body of the response.
    pub async fn run(&self, template: &Arc<Template>, call: Call) -> Result<Began, Fault> {
        // The clock is read only by who waits.
        let mut waited = Duration::ZERO;
        let waiting = if call.may_be_ready { template.ready.take(call.limits.size(Limit::Memory)) } else { None };
        let vessel = match waiting {
            Some(waiting) => Vessel::Waiting(waiting),
            None => {
                let (place, code) = self.admit(template, &mut waited).await?;
                Vessel::Fresh(place, code)
            }
        };
        let limits = call.limits.clone();
        // The totals are the function's, whatever revision of it this is.
        let whose = Whose { tenant: call.tenant.clone(), function: Arc::as_ptr(&call.meter).addr() };
        let mut turn = Turn::new(whose.clone()).until(call.counts_from + limits.duration(Limit::Wall));
        if !turn.begin() {
            let from = Instant::now();
            its_turn(&mut turn, call.counts_from, limits.duration(Limit::Wall)).await?;
            waited += from.elapsed();
        }
        let began = self.run_in(vessel, template, call, turn, waited).await;
        // What the guest still has to do comes first.
        self.keep_ready(template, &limits, &whose);
        began
    }

    async fn run_in(
        &self,
        vessel: Vessel,
        template: &Template,
        call: Call,
        turn: Turn,
        waited: Duration,
    ) -> Result<Began, Fault> {
        let ready = matches!(vessel, Vessel::Waiting(_));
        let (began, wall) = (Instant::now(), call.limits.duration(Limit::Wall));
        if began >= call.counts_from + wall {
            return Err(too_late(wall));
        }
        let mut running = Running::start(self, template.shape.kind, call, vessel, turn, began)?;
        let reply = running.reply.clone();
        let Driven { ended, head, put } = running.until_it_begins().await;
        if let Some(instantiated) = reply.instantiated() {
            template.ready.measured(instantiated - began);
        }
        // One that waited was there from the beginning.
        let instantiated = reply.instantiated().unwrap_or(began);
        let done = ended.is_some();
        let answered = put.unwrap_or(running.looked);
        let kept = match &head {
            Some(Ok(response)) if done && reply::is_large(response.body()) => running.places.take().map(Arc::new),
            _ => None,
        };
        let entered = reply.entered().unwrap_or(instantiated);
        let until = |end: Instant| Phases {
            queue: waited,
            instantiate: instantiated - began,
            enter: entered - instantiated,
            run: end.saturating_duration_since(entered),
            ..Phases::default()
        };
        let fault = ended.and_then(|ended| running.finish(ended, kept.clone()));
        let response = match (fault, head) {
            // The head is still ours, so the status can tell what went wrong.
            (_, Some(Err(fault))) | (Some(fault), _) => return Err(running.fail(&until(running.looked), fault)),
            (None, Some(Ok(response))) => response,
            (None, None) => {
                let fault = Fault::executed(Code::GuestNoResponse, "the function ended without a response");
                return Err(running.fail(&until(running.looked), fault));
            }
        };
        let fail = || {
            let books = running.books.clone();
            move |fault| books.fail(fault)
        };
        let response = body::bound(response, running.response_limit, fail);
        let response = response.map_err(|fault| running.fail(&until(answered), fault))?;
        let response = match kept {
            Some(places) => running.keep(response, places),
            None if done => response,
            None => running.detach(response),
        };
        let Phases { queue, instantiate, enter, run, .. } = until(answered);
        Ok(Began { response, ready, queue, instantiate, enter, run })
    }
}

/// Until its thread has time for a guest that could not begin at once. It holds its places meanwhile, and no memory.
///
/// # Errors
/// `wall-deadline` when its time was over before; then it was not executed.
pub(super) async fn its_turn(turn: &mut Turn, counts_from: Instant, wall: Duration) -> Result<(), Fault> {
    let its_turn = std::future::poll_fn(|cx| turn.poll(cx, Duration::ZERO));
    tokio::time::timeout_at((counts_from + wall).into(), its_turn).await.map_err(|_| too_late(wall))
}

/// The fault for a time that was over before its guest began.
fn too_late(wall: Duration) -> Fault {
    let detail = format!("the function's time of {wall:?} passed before the node had time to begin it");
    Fault::new(Code::WallDeadline, detail).hint("raise 'wall' in [limits] of hob.toml, or give the node less to do")
}

/// Where an invocation runs.
enum Vessel {
    /// In an instance to be made of this code, whose place this is.
    Fresh(Permit, Arc<Resolved>),
    /// In one that waited.
    Waiting(Waiting),
}

/// A guest that is being driven.
struct Running {
    /// `None` once it has ended.
    guest: Option<Guest>,
    reply: Arc<Reply>,
    cpu: Duration,
    turn: Turn,
    began: Instant,
    /// When the last slice ended.
    looked: Instant,
    deadline: tokio::time::Instant,
    wall: Duration,
    /// Armed only when the guest waits for something: most never do.
    timer: Option<Pin<Box<Sleep>>>,
    response_limit: u64,
    books: Books,
    /// Given back after the guest's store is gone: fields drop in this order, and `guest` is first. A store that outlives its
    /// guest takes them along.
    places: Option<Places>,
}

/// Places among the node's instances and among the function's `concurrency`.
type Places = (Permit, Option<(Permit, Place)>);

/// What is left of a guest: the store of one that has ended, or one that was given up. Its teardown is charged to its function and its
/// tenant.
struct Remains<T> {
    /// `Some` until it is dropped.
    instance: Option<T>,
    whose: Whose,
    meter: Arc<FunctionMeter>,
    /// Given back after the instance is gone.
    _places: (Option<Places>, Option<Arc<Places>>),
    /// Where a test plants a panic.
    _planted: PanicAtDrop,
}

impl<T> Drop for Remains<T> {
    fn drop(&mut self) {
        let took = clock::measure(|| drop(self.instance.take()));
        schedule::charge(&self.whose, took);
        self.meter.used_besides(took);
    }
}

/// Where what happens to an invocation is written down.
#[derive(Clone)]
struct Books {
    log: Arc<LogSink>,
    meter: Arc<FunctionMeter>,
    metrics: Arc<Metrics>,
}

impl Books {
    /// Counts and logs a fault.
    fn fail(&self, fault: Fault) -> Fault {
        self.meter.faulted(fault.code);
        self.metrics.faulted(fault.code);
        self.log.host(Level::Error, format!("{}: {}", fault.code, fault.detail));
        fault
    }
}

impl Running {
    fn start(engine: &Engine, kind: Kind, call: Call, vessel: Vessel, turn: Turn, began: Instant) -> Result<Self, Fault> {
        let reply = Arc::new(Reply::default());
        let log = Arc::new(LogSink::new(call.log, call.id, call.revision, call.limits.get(Limit::Log)));
        let (mut exchange, mut request, mut input, mut environment) =
            (Exchange::default(), None, None, call.environment.with_secrets(&log)?);
        let (parts, body) = call.request.into_parts();
        let hops = parts.extensions.get::<Hops>().copied().unwrap_or_default();
        match kind {
            Kind::Handler => exchange = Exchange::new(parts, call.prefix_len, body, call.limits.get(Limit::ResponseBody)),
            Kind::Http02 | Kind::Http03 => request = Some(wasi_http::request(parts, call.prefix_len, body, reply.clone())?),
            Kind::Command | Kind::Command02 | Kind::Command03 => {
                environment = Arc::new(super::cgi::environment(&environment, &parts, call.prefix_len, &body));
                input = Some(body);
            }
        }
        let blueprint = Blueprint {
            kind,
            limits: &call.limits,
            environment,
            log: log.clone(),
            reply: reply.clone(),
            streams: Streams::Served { input },
            exchange,
            ticks: turn.first_ticks(),
            hops,
            account: Some(call.meter.clone()),
        };
        let (store, output, live, place, code) = match vessel {
            Vessel::Fresh(place, code) => {
                let (store, output) = store::build(&engine.place(code.place).engine, blueprint);
                (store, output, None, place, code)
            }
            Vessel::Waiting(Waiting { live, mut store, place, code, .. }) => {
                let output = store::dedicate(&mut store, blueprint)?;
                (store, output, Some(live), place, code)
            }
        };
        if engine.place(code.place).large {
            engine.metrics().large.inc();
        }
        let guest = call::start(code, store, live, Input { request, output, reply: reply.clone() });
        engine.metrics().instances.inc();
        let wall = call.limits.duration(Limit::Wall);
        Ok(Self {
            guest: Some(guest),
            reply,
            cpu: Duration::ZERO,
            turn,
            began,
            looked: began,
            deadline: (call.counts_from + wall).into(),
            wall,
            timer: None,
            response_limit: call.limits.get(Limit::ResponseBody),
            books: Books { log, meter: call.meter, metrics: engine.metrics().clone() },
            places: Some((place, call.permit)),
        })
    }

    /// Drives the guest until its response begins, and on while more of it comes at once.
    async fn until_it_begins(&mut self) -> Driven {
        let (mut now, mut head, mut put) = (Some(self.began), None, None);
        let ended = std::future::poll_fn(|cx| {
            loop {
                let polled = self.poll_slice(cx, now.take().unwrap_or_else(Instant::now));
                if head.is_none() {
                    head = self.reply.take().map(|head| head.map(Opening::new));
                    put = head.is_some().then_some(self.looked);
                }
                let came = match &mut head {
                    Some(Ok(opening)) => opening.read(cx),
                    Some(Err(_)) => false,
                    None if polled.is_pending() => return Poll::Pending,
                    None => false,
                };
                match polled {
                    Poll::Ready(ended) => return Poll::Ready(Some(ended)),
                    // It had its slice: now the others of this thread have theirs.
                    Poll::Pending if self.turn.computes() => {
                        let is_early = put.is_some_and(|put| self.looked - put < HEAD_HOLD);
                        return if is_early { Poll::Pending } else { Poll::Ready(None) };
                    }
                    // A guest that waited for its body to be taken goes on, and need not wait for whoever sends it.
                    Poll::Pending if came => self.turn.go_on(),
                    Poll::Pending => return Poll::Ready(None),
                }
            }
        })
        .await;
        Driven { ended, head: head.map(|head| head.and_then(Opening::into_response)), put }
    }

    /// Runs the guest, if it is its turn, until it waits, yields or ends, and looks at the clock.
    fn poll_slice(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<Stopped> {
        let Some(guest) = &mut self.guest else { return Poll::Pending };
        if now >= self.deadline.into_std() {
            // Whatever stands in line before it: it would only run to be stopped.
            self.looked = now;
            return Poll::Ready(Stopped::Deadline);
        }
        // Unwind safety: what panicked is not polled again, and what it shares with others is behind locks and atomics that have their own answer
        // to a panic.
        let sliced = self.turn.slice(cx, &mut self.cpu, now, |cx| {
            let polled = catch_unwind(AssertUnwindSafe(|| guest.as_mut().poll(cx)));
            polled.map_or_else(|panic| Poll::Ready(Err(panic_text(&*panic).to_owned())), |polled| polled.map(Ok))
        });
        self.looked = sliced.ended;
        match sliced.result {
            Poll::Ready(Ok(ended)) => {
                self.guest = None;
                return Poll::Ready(Stopped::Ended(Box::new(ended)));
            }
            Poll::Ready(Err(text)) => return Poll::Ready(Stopped::Panicked(text)),
            Poll::Pending => {}
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.deadline)));
        if timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Stopped::Deadline);
        }
        Poll::Pending
    }

    /// Takes leave of a guest that has ended or is given up: its instance is dropped after the response has left, on this thread. `kept`:
    /// its places, when somebody else needs them even longer.
    fn finish(&mut self, ended: Stopped, kept: Option<Arc<Places>>) -> Option<Fault> {
        match ended {
            Stopped::Ended(ended) => {
                let Ended { result, mut store } = *ended;
                self.account(store.data_mut().memory.take_peak() as u64);
                if let Err(fault) = &result {
                    self.reply.cut(fault.code);
                }
                self.put_off(store, kept);
                result.err()
            }
            Stopped::Panicked(text) => {
                self.reply.cut(Code::Internal);
                self.books.metrics.panics.inc();
                let fault = Fault { executed: Executed::Yes, ..Fault::internal(format!("panic in a host function: {text}")) };
                self.let_go();
                self.account(0);
                Some(fault)
            }
            Stopped::Deadline => {
                let detail = format!("the function used up its time of {:?}", self.wall);
                self.reply.cut(Code::WallDeadline);
                self.account(0);
                if let Some(guest) = self.guest.take() {
                    self.put_off(guest, kept);
                }
                Some(Fault::executed(Code::WallDeadline, detail).hint("raise 'wall' in [limits] of hob.toml, or do less"))
            }
        }
    }

    fn put_off<T: Send + 'static>(&mut self, instance: T, kept: Option<Arc<Places>>) {
        afterwards::put_off(Remains {
            instance: Some(instance),
            whose: self.turn.whose().clone(),
            meter: self.books.meter.clone(),
            _places: (self.places.take(), kept),
            _planted: PanicAtDrop("host-dropped"),
        });
    }

    /// Ends a guest that has not ended and whose client is gone.
    fn give_up(&mut self) {
        let took = clock::measure(|| self.guest = None);
        schedule::charge(self.turn.whose(), took);
        self.cpu += took;
    }

    /// Drops a guest whose host functions had a bug: its store may have another.
    fn let_go(&mut self) {
        let guest = self.guest.take();
        // Unwind safety: nobody uses it again.
        if catch_unwind(AssertUnwindSafe(|| drop(guest))).is_err() {
            tracing::error!("an instance whose host function panicked could not be dropped in order");
        }
    }

    fn account(&self, memory_bytes: u64) {
        self.books.meter.used(Usage { cpu: self.cpu, wall: self.looked - self.began, memory_bytes }, self.looked);
        self.books.log.finish();
    }

    /// Counts and logs a fault before which no response began, and where the time went until then.
    fn fail(&self, phases: &Phases, fault: Fault) -> Fault {
        self.books.meter.spent(phases, self.looked);
        self.books.fail(fault)
    }

    /// Lets a response keep its places until the client took it, within the time of the invocation.
    fn keep(&self, response: Response<Payload>, places: Arc<Places>) -> Response<Payload> {
        let (books, wall) = (self.books.clone(), self.wall);
        let passed = move || {
            let detail = format!("the client did not take the response within the function's time of {wall:?}");
            let fault = Fault::executed(Code::WallDeadline, detail).hint("raise 'wall' in [limits] of hob.toml");
            BodyError::Cut(books.fail(fault).code)
        };
        response.map(|payload| match payload {
            Payload::Whole(bytes) => reply::keep(bytes, places, self.deadline, passed),
            stream @ Payload::Stream(_) => stream,
        })
    }

    /// Lets the guest go on by itself while its response is sent.
    fn detach(self, response: Response<Payload>) -> Response<Payload> {
        let reply = self.reply.clone();
        let mut running = self;
        let task = tokio::spawn(async move {
            let ended = std::future::poll_fn(|cx| running.poll_slice(cx, Instant::now())).await;
            if let Some(fault) = running.finish(ended, None) {
                // The status is out: what is left is to cut the connection, and to say why where it can be read.
                running.books.fail(fault);
            }
        });
        response.map(|payload| body::attach(payload, task.abort_handle(), reply))
    }
}

/// How far a guest came.
struct Driven {
    /// Why it does not go on, if it does not.
    ended: Option<Stopped>,
    head: Option<Result<Response<Payload>, Fault>>,
    /// When the head was there.
    put: Option<Instant>,
}

/// Why driving stopped.
enum Stopped {
    Ended(Box<Ended>),
    Deadline,
    /// A host function panicked, with these words: a bug of ours.
    Panicked(String),
}

impl Drop for Running {
    fn drop(&mut self) {
        self.books.metrics.instances.dec();
        if self.guest.is_some() {
            // Before its store goes, so that whoever still sends what it wrote does not take the end for a whole answer.
            self.reply.cut(Code::Draining);
            self.give_up();
            // Given up by the client, or by a node that stops.
            self.account(0);
        }
    }
}
