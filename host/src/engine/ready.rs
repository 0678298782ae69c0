//! Ready instances: made ahead of the requests they will serve, where making one is expensive.
//!
//! Owns the instances of one template that wait, and when another is made: on the thread that will use it, when no request waits
//! for it. What is expensive was measured, not declared. Knows nothing about requests. Invariant: an instance leaves here once, to
//! serve one invocation; nothing ran in it but its own start, which asked WASI for nothing, so that it has no clock, no random
//! number and no environment of an earlier time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::Store;

use super::call::{self, Live};
use super::store::{self, Blueprint, Streams};
use super::template::Template;
use super::{Engine, deadline};
use crate::capability::handler::Exchange;
use crate::capability::reply::Reply;
use crate::capability::{Environment, Host};
use crate::limits::{Limit, Limits};
use crate::meter::Permit;
use crate::telemetry::logs::LogSink;

/// An instantiation that takes longer than this is worth doing ahead. Handing over one that waits costs about 1 us.
const WORTH: Duration = Duration::from_micros(50);
/// How long an instance waits that nobody asks for.
const IDLE: Duration = Duration::from_secs(10);
/// Longest time that making one may take, on the clock and on the processor.
const MAKING_MAX: Duration = Duration::from_secs(1);

/// A live instance that no invocation has seen.
pub(super) struct Waiting {
    pub(super) live: Live,
    pub(super) store: Store<Host>,
    pub(super) place: Permit,
    /// Whether it is of the pool for large guests.
    pub(super) in_large: bool,
    thread: usize,
    _charge: Charge,
}

/// The instances of one template that wait.
#[derive(Default)]
pub(super) struct Ready {
    /// How many; looked at before the lock is taken.
    count: AtomicUsize,
    /// Mean time of an instantiation in nanoseconds.
    cost_ns: AtomicU64,
    /// Threads that look after theirs, a bit each.
    attended: AtomicU64,
    /// Whether making one ahead was found to be no use.
    useless: AtomicBool,
    taken: Arc<Notify>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    retired: bool,
    waiting: VecDeque<Waiting>,
    last_taken: Option<Instant>,
}

/// What all waiting instances of the node may hold.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
    each_max: usize,
}

impl Budget {
    /// `bytes_max`: guest memory of all that wait; `each_max`: instances of one template that wait on one thread.
    pub(super) fn new(bytes_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max, each_max })
    }

    fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Charge { budget: Arc::clone(self), bytes })
    }
}

/// Bytes of a [`Budget`], given back when dropped.
struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

thread_local! {
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the calling thread among those that run guests.
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    THREAD.get().unwrap_or_else(|| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        THREAD.set(Some(number));
        number
    })
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole after every statement that changes it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes how long an instantiation took.
    pub(super) fn measured(&self, took: Duration) {
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean = self.cost_ns.load(Ordering::Relaxed);
        // The first counts whole, later ones an eighth: one slow start on a busy machine decides nothing.
        let mean = if mean == 0 { took } else { mean - mean / 8 + took / 8 };
        self.cost_ns.store(mean, Ordering::Relaxed);
    }

    /// Whether making an instance takes so long that it is done ahead.
    pub(super) fn is_worth_it(&self) -> bool {
        Duration::from_nanos(self.cost_ns.load(Ordering::Relaxed)) > WORTH && !self.useless.load(Ordering::Relaxed)
    }

    /// An instance that waits on the calling thread.
    pub(super) fn take(&self) -> Option<Waiting> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let thread = thread();
        let mut inner = self.lock();
        let at = inner.waiting.iter().position(|waiting| waiting.thread == thread)?;
        let waiting = inner.waiting.remove(at);
        inner.last_taken = Some(Instant::now());
        self.count.store(inner.waiting.len(), Ordering::Relaxed);
        waiting
    }

    /// Lets an instance wait, unless none may any more; it is dropped then.
    fn put(&self, waiting: Waiting) {
        let mut inner = self.lock();
        if !inner.retired {
            inner.waiting.push_back(waiting);
            self.count.store(inner.waiting.len(), Ordering::Relaxed);
        }
    }

    fn count_on(&self, thread: usize) -> usize {
        self.lock().waiting.iter().filter(|waiting| waiting.thread == thread).count()
    }

    /// Drops what waits on `thread` if nobody has taken one for a while. Whether it did.
    fn sweep(&self, thread: usize) -> bool {
        let mut inner = self.lock();
        let idle = inner.retired || inner.last_taken.is_none_or(|taken| taken.elapsed() >= IDLE);
        let mut gone = VecDeque::new();
        if idle {
            let (mine, others) = std::mem::take(&mut inner.waiting).into_iter().partition(|waiting| waiting.thread == thread);
            (gone, inner.waiting) = (mine, others);
            self.count.store(inner.waiting.len(), Ordering::Relaxed);
        }
        drop(inner);
        drop::<VecDeque<Waiting>>(gone);
        idle
    }

    /// Drops what waits, and lets no more wait.
    pub(super) fn retire(&self) {
        self.lock().retired = true;
        self.clear();
    }

    /// Drops what waits.
    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        let gone = std::mem::take(&mut inner.waiting);
        self.count.store(0, Ordering::Relaxed);
        drop(inner);
        drop(gone);
        self.taken.notify_waiters();
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

/// What an instance is made with.
#[derive(Clone)]
pub(super) struct Recipe {
    pub(super) limits: Arc<Limits>,
    pub(super) environment: Arc<Environment>,
    pub(super) log: Arc<LogSink>,
}

impl Engine {
    /// Sees to it that instances of `template` wait on this thread, if making one is expensive. Returns at once: they are made by a
    /// task of this thread, after whatever runs now.
    pub(super) fn keep_ready(&self, template: &Arc<Template>, recipe: Recipe) {
        let ready = &template.ready;
        if !ready.is_worth_it() {
            return;
        }
        let thread = thread();
        let bit = 1 << (thread % 64);
        if ready.attended.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            ready.taken.notify_waiters();
            return;
        }
        ready.lock().last_taken = Some(Instant::now());
        let (engine, taken) = (self.clone(), Arc::clone(&ready.taken));
        let template = Arc::downgrade(template);
        tokio::spawn(async move {
            attend(&engine, &template, &recipe, &taken, thread).await;
            if let Some(template) = template.upgrade() {
                template.ready.attended.fetch_and(!bit, Ordering::Relaxed);
            }
        });
    }

    /// Fills up what waits on this thread.
    async fn fill(&self, template: &Arc<Template>, recipe: &Recipe, thread: usize) {
        let budget = &self.0.ready;
        while template.ready.count_on(thread) < budget.each_max && !template.ready.lock().retired {
            let Some(waiting) = self.make(template, recipe, thread).await else { return };
            template.ready.put(waiting);
            // Requests that came meanwhile go first.
            tokio::task::yield_now().await;
        }
    }

    async fn make(&self, template: &Arc<Template>, recipe: &Recipe, thread: usize) -> Option<Waiting> {
        let in_large = template.is_in_large();
        let resolved = template.resolved(in_large);
        let lane = self.place(resolved.place);
        // Instances that wait never take a place that an invocation could need.
        let (used, _waiting) = lane.instances.occupancy();
        let place = lane.instances.try_admit().filter(|_| used < lane.instances_max / 2)?;
        let blueprint = Blueprint {
            kind: template.shape.kind,
            limits: &recipe.limits,
            environment: recipe.environment.clone(),
            log: recipe.log.clone(),
            reply: Arc::new(Reply::default()),
            streams: Streams::Served { input: None },
            exchange: Exchange::default(),
        };
        let (mut store, _output) = store::build(&lane.engine, blueprint);
        deadline::arm(&mut store, MAKING_MAX.min(recipe.limits.duration(Limit::Cpu)));
        let made = {
            let mut making = std::pin::pin!(call::instantiate(&resolved.entry, &mut store));
            let mut used = Duration::ZERO;
            let making = std::future::poll_fn(|cx| deadline::slice(&mut used, Instant::now(), || making.as_mut().poll(cx)).0);
            tokio::time::timeout(MAKING_MAX, making).await
        };
        let bytes = store.data().memory.peak();
        match made {
            Ok(Ok(live)) if !store.data().has_touched_wasi() && !store.data().holds_handles() => {
                let charge = self.0.ready.charge(bytes)?;
                Some(Waiting { live, store, place, in_large, thread, _charge: charge })
            }
            // It read a clock or its environment while it started, or it does not start: invocations will see for themselves.
            _ => {
                template.ready.useless.store(true, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Looks after the waiting instances of one template on one thread until nobody has asked for one in a while.
async fn attend(engine: &Engine, template: &Weak<Template>, recipe: &Recipe, taken: &Notify, thread: usize) {
    loop {
        let asked = taken.notified();
        match template.upgrade() {
            Some(template) if template.ready.is_worth_it() => engine.fill(&template, recipe, thread).await,
            _ => return,
        }
        tokio::select! {
            () = asked => {}
            () = tokio::time::sleep(IDLE) => {
                if template.upgrade().is_none_or(|template| template.ready.sweep(thread)) {
                    return;
                }
            }
        }
    }
}
