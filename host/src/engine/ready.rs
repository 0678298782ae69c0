//! Ready instances: made ahead of the requests they will serve, where making one is expensive.
//!
//! Owns the instances of one template that wait, and when another is made: on the thread that will use it, when no request waits
//! for it. What is expensive was measured, not declared. Knows nothing about requests. Invariant: an instance leaves here once, to
//! serve one invocation; nothing ran in it but its own start, which asked for nothing outside of its memory and was refused none. So
//! it has no clock, no random number, no environment and no limit of an earlier time, and is as good for one function of its template
//! as for another.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::Store;

use super::call::{self, Live};
use super::store::{self, Blueprint, Streams};
use super::template::{Resolved, Template};
use super::trap::is_shortage;
use super::{Engine, deadline, schedule};
use crate::capability::handler::Exchange;
use crate::capability::reply::Reply;
use crate::capability::{Environment, Host};
use crate::id::{InvocationId, RevisionNumber};
use crate::invocation::Hops;
use crate::limits::{Limit, Limits};
use crate::meter::Permit;
use crate::telemetry::logs::{FunctionLog, LogSink, LogSpace};
use crate::telemetry::metrics::Metrics;

/// An instantiation that takes longer than this is worth doing ahead. Handing over one that waits costs about 1 us.
const WORTH: Duration = Duration::from_micros(50);
/// Where instances wait already, others are made ahead unless it takes less than this: a thread with nothing else to do makes them faster than
/// a request would, and they are not to come and go with that.
const STILL_WORTH: Duration = Duration::from_micros(25);
/// Longest time that making one may take, on the clock and on the processor.
const MAKING_MAX: Duration = Duration::from_secs(1);

/// Most data threads of a node (`engine.threads`).
const THREADS_MAX: usize = 1024;

/// A live instance that no invocation has seen.
pub(super) struct Waiting {
    pub(super) live: Live,
    pub(super) store: Store<Host>,
    pub(super) place: Permit,
    /// What it was made of, in one of the template's pools.
    pub(super) code: Arc<Resolved>,
    thread: usize,
    charge: Charge,
    _counted: Counted,
}

/// One that waits or was just taken, as the node's metrics count it.
struct Counted(Arc<Metrics>);

impl Counted {
    fn new(metrics: &Arc<Metrics>) -> Self {
        metrics.ready.inc();
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.ready.dec();
    }
}

/// The instances of one template that wait.
#[derive(Default)]
pub(super) struct Ready {
    /// How many; looked at before the lock is taken.
    count: AtomicUsize,
    /// Mean time of an instantiation in nanoseconds.
    cost_ns: AtomicU64,
    /// Guest memory of the one that was made last, in bytes.
    bytes: AtomicUsize,
    /// Threads that look after theirs, a bit each.
    attended: [AtomicU64; THREADS_MAX / 64],
    /// Whether making one ahead was found to be no use.
    useless: AtomicBool,
    taken: Notify,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    retired: bool,
    waiting: VecDeque<Waiting>,
    last_taken: Option<Instant>,
}

/// What all waiting instances of the node may hold.
pub(super) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
    each_max: usize,
    idle: Duration,
    /// A log that keeps nothing.
    nowhere: Arc<FunctionLog>,
    /// Those that may have instances waiting.
    known: Mutex<Vec<Weak<Ready>>>,
}

impl Budget {
    /// `bytes_max`: guest memory of all that wait; `each_max`: instances of one template that wait on one thread; `idle`: how long,
    /// when nobody asks for one.
    pub(super) fn new(bytes_max: usize, each_max: usize, idle: Duration) -> Arc<Self> {
        let nowhere = Arc::new(FunctionLog::new(LogSpace::new(0, 0)));
        Arc::new(Self { used: AtomicUsize::new(0), bytes_max, each_max, idle, nowhere, known: Mutex::default() })
    }

    fn charge(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let mut charge = Charge { budget: Arc::clone(self), bytes: 0 };
        charge.set(bytes).then_some(charge)
    }

    fn known(&self) -> MutexGuard<'_, Vec<Weak<Ready>>> {
        // Whole after every statement that changes it.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enrol(&self, ready: &Arc<Ready>) {
        let mut known = self.known();
        known.retain(|one| one.strong_count() > 0 && !std::ptr::eq(one.as_ptr(), Arc::as_ptr(ready)));
        known.push(Arc::downgrade(ready));
    }

    /// An instance that waits in the pool `place`, to be dropped for somebody who has a request.
    pub(super) fn give_up(&self, place: usize) -> Option<Waiting> {
        self.known().iter().filter_map(Weak::upgrade).find_map(|ready| ready.remove(|waiting| waiting.code.place == place))
    }
}

/// Bytes of a [`Budget`], given back when dropped.
struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Makes it a charge of `bytes`, unless that is more than the budget has.
    fn set(&mut self, bytes: usize) -> bool {
        let budget = &self.budget;
        let fits = |used: usize| used.checked_sub(self.bytes)?.checked_add(bytes).filter(|sum| *sum <= budget.bytes_max);
        let done = budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok();
        if done {
            self.bytes = bytes;
        }
        done
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// For whom instances are made, and where.
struct Maker {
    limits: Arc<Limits>,
    whose: schedule::Whose,
    thread: usize,
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

    /// Notes how long an instantiation took. What the first one took says nothing: its code and its memory were mapped a moment ago, and
    /// many a template is evicted before it has a second.
    pub(super) fn measured(&self, took: Duration) {
        const UNKNOWN: u64 = 0;
        const FIRST: u64 = 1;
        let took = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean = match self.cost_ns.load(Ordering::Relaxed) {
            UNKNOWN => FIRST,
            FIRST => took.max(FIRST + 1),
            // Later ones count an eighth: one slow start on a busy machine decides nothing.
            mean => (mean - mean / 8 + took / 8).max(FIRST + 1),
        };
        self.cost_ns.store(mean, Ordering::Relaxed);
    }

    /// Whether making one ahead is worth it, if it has to take more than `least` for that.
    fn is_worth_it(&self, least: Duration) -> bool {
        Duration::from_nanos(self.cost_ns.load(Ordering::Relaxed)) > least && !self.useless.load(Ordering::Relaxed)
    }

    /// Whether those that wait are to be followed by others.
    fn is_wanted(&self) -> bool {
        self.is_worth_it(STILL_WORTH) && !self.lock().retired
    }

    /// An instance that waits on the calling thread, of at most `bytes_max` of memory.
    pub(super) fn take(&self, bytes_max: usize) -> Option<Waiting> {
        if self.len() == 0 {
            return None;
        }
        let thread = thread();
        let waiting = self.remove(|waiting| waiting.thread == thread && waiting.charge.bytes <= bytes_max)?;
        self.lock().last_taken = Some(Instant::now());
        Some(waiting)
    }

    fn remove(&self, is_it: impl Fn(&Waiting) -> bool) -> Option<Waiting> {
        let mut inner = self.lock();
        let at = inner.waiting.iter().position(is_it)?;
        let waiting = inner.waiting.remove(at);
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

    /// How much longer instances wait for somebody to ask for one: `idle` from the last who did.
    fn patience(&self, idle: Duration) -> Duration {
        self.lock().last_taken.map_or(Duration::ZERO, |taken| idle.saturating_sub(taken.elapsed()))
    }

    /// Drops what waits on `thread`.
    fn leave(&self, thread: usize) {
        let mut inner = self.lock();
        let (mine, others): (VecDeque<_>, _) =
            std::mem::take(&mut inner.waiting).into_iter().partition(|waiting| waiting.thread == thread);
        inner.waiting = others;
        self.count.store(inner.waiting.len(), Ordering::Relaxed);
        drop(inner);
        drop(mine);
    }

    /// Drops all that wait.
    pub(super) fn clear(&self) {
        let mut inner = self.lock();
        let gone = std::mem::take(&mut inner.waiting);
        self.count.store(0, Ordering::Relaxed);
        drop(inner);
        drop(gone);
    }

    /// Drops all that wait, and lets no more wait.
    pub(super) fn retire(&self) {
        self.lock().retired = true;
        self.clear();
        self.taken.notify_waiters();
    }

    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Engine {
    /// Sees to it that instances of `template` wait on this thread, if making one is expensive. Returns at once: they are made by a
    /// task of this thread, after whatever runs now, under `limits`, and what they take is charged to `whose`.
    pub(super) fn keep_ready(&self, template: &Arc<Template>, limits: &Arc<Limits>, whose: &schedule::Whose) {
        let ready = &template.ready;
        if self.0.ready.each_max == 0 || !ready.is_worth_it(STILL_WORTH) {
            return;
        }
        let thread = thread();
        let (at, bit) = (thread / 64 % (THREADS_MAX / 64), 1 << (thread % 64));
        if ready.attended[at].load(Ordering::Relaxed) & bit != 0 {
            ready.taken.notify_waiters();
            return;
        }
        if !ready.is_worth_it(WORTH) {
            return;
        }
        {
            let mut inner = ready.lock();
            if inner.retired {
                return;
            }
            inner.last_taken = Some(Instant::now());
        }
        ready.attended[at].fetch_or(bit, Ordering::Relaxed);
        self.0.ready.enrol(ready);
        let (engine, ready, template) = (self.clone(), ready.clone(), Arc::downgrade(template));
        let maker = Maker { limits: limits.clone(), whose: whose.ahead(), thread };
        tokio::spawn(async move {
            attend(&engine, &ready, &template, &maker).await;
            ready.attended[at].fetch_and(!bit, Ordering::Relaxed);
            ready.leave(thread);
        });
    }

    /// Fills up what waits on this thread. Making one takes turns as a guest of the tenant does.
    async fn fill(&self, template: &Arc<Template>, maker: &Maker) {
        let ready = &template.ready;
        while ready.count_on(maker.thread) < self.0.ready.each_max && ready.is_wanted() {
            let Some(waiting) = self.make(template, maker).await else { return };
            ready.put(waiting);
            // Requests that came meanwhile go first.
            tokio::task::yield_now().await;
        }
    }

    /// A place for an instance that nobody has asked for yet: one of at most half. Of the usual pool those too are given up for an
    /// invocation that finds no other (`Engine::admit`).
    fn spare(&self, place: usize) -> Option<Permit> {
        let lane = self.place(place);
        let (used, _waiting) = lane.instances.occupancy();
        lane.instances.try_admit().filter(|_| used < lane.instances_max / 2)
    }

    async fn make(&self, template: &Arc<Template>, maker: &Maker) -> Option<Waiting> {
        let (ready, limits, thread) = (&template.ready, &*maker.limits, maker.thread);
        let (place, code) = self.codes(template).find_map(|code| Some((self.spare(code.place)?, code.clone())))?;
        let mut charge = self.0.ready.charge(ready.bytes.load(Ordering::Relaxed))?;
        // Whose it will be is not known yet: what it says goes nowhere, and makes it useless.
        let log = LogSink::new(self.0.ready.nowhere.clone(), InvocationId::new(0, 0), RevisionNumber::FIRST, 0);
        let blueprint = Blueprint {
            kind: template.shape.kind,
            limits,
            environment: Arc::new(Environment::default()),
            log: Arc::new(log),
            reply: Arc::new(Reply::default()),
            streams: Streams::Served { input: None },
            exchange: Exchange::default(),
            ticks: 1,
            hops: Hops::default(),
            account: None,
        };
        let began = Instant::now();
        let (mut store, _output) = store::build(&self.place(code.place).engine, blueprint);
        deadline::arm(&mut store, MAKING_MAX.min(limits.duration(Limit::Cpu)), 1);
        let making = schedule::in_turns(maker.whose.clone(), call::instantiate(&code.entry, &mut store));
        let made = tokio::time::timeout(MAKING_MAX, making).await;
        if let Ok(Ok(_)) = &made {
            // Where instances wait no request makes one, and the first may have been slow for reasons that are gone.
            ready.measured(began.elapsed());
        }
        let host = store.data();
        let is_pure = !host.has_looked_outside() && !host.holds_handles() && !host.memory.was_refused();
        match made {
            Ok(Ok(live)) if is_pure => {
                let bytes = host.memory.peak();
                ready.bytes.store(bytes, Ordering::Relaxed);
                let counted = Counted::new(&self.0.metrics);
                charge.set(bytes).then_some(Waiting { live, store, place, code, thread, charge, _counted: counted })
            }
            // The node has no room, which passes.
            Ok(Err(error)) if is_shortage(&error) => None,
            // It has looked at something of its invocation while it started, or it does not start: invocations will see for themselves.
            _ => {
                ready.useless.store(true, Ordering::Relaxed);
                None
            }
        }
    }
}

/// Looks after the waiting instances of one template on one thread until nobody has asked for one in a while, or none may wait.
async fn attend(engine: &Engine, ready: &Ready, template: &Weak<Template>, maker: &Maker) {
    let idle = engine.0.ready.idle;
    // Set anew only once it has passed: whoever sets a timer wakes the thread of the runtime, and each request would.
    let mut sleep = std::pin::pin!(tokio::time::sleep(idle));
    while ready.is_wanted() {
        let taken = ready.taken.notified();
        match template.upgrade() {
            Some(template) => engine.fill(&template, maker).await,
            None => return,
        }
        tokio::select! {
            () = taken => {}
            () = &mut sleep => match ready.patience(idle) {
                Duration::ZERO => return,
                left => sleep.as_mut().reset(tokio::time::Instant::now() + left),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_making_takes_decides_and_one_slow_start_is_forgotten() {
        let ready = Ready::default();
        assert!(!ready.is_worth_it(WORTH), "nothing was measured");
        ready.measured(Duration::from_micros(400));
        assert!(!ready.is_worth_it(WORTH), "the first one right after a load");
        ready.measured(Duration::from_micros(400));
        assert!(ready.is_worth_it(WORTH) && ready.is_wanted());
        // Between the two, those that wait are followed by others, and none begins.
        (0..30).for_each(|_| ready.measured(Duration::from_micros(40)));
        assert!(!ready.is_worth_it(WORTH) && ready.is_wanted());
        (0..30).for_each(|_| ready.measured(Duration::from_micros(2)));
        assert!(!ready.is_wanted());
    }
}
