//! The door for triggers: tells functions of changes in buckets, each change at least once.
//!
//! ```text
//! Events::changed ─> lanes that are due ─> windows of their oldest events ─> deliveries, bounded ─> Invoke ─> settled, durably
//!                                                  ^                                                  |
//!                                                  └── later, with growing pauses <── it failed <─────┘
//! ```
//!
//! Owns the order of deliveries, their bounds and their repetition. Knows nothing about how functions run, or how events come to be.
//! Invariants: of one lane and key at most one event is being delivered, and it is the oldest; an event leaves the outbox only when the
//! function answered 2xx, or it was given up. How often an event failed is remembered only here: a restart counts from the beginning.

mod delivery;
mod message;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until, timeout};

use self::delivery::{Delivered, deliver};
use self::window::Window;
use crate::data::Data;
use crate::data::events::Lane;
use crate::id::{FunctionName, InvocationId, TenantId};
use crate::invocation::Invoke;
use crate::net::drain::Stop;
use crate::telemetry::metrics::Metrics;

/// Events that are being delivered at once, of all functions.
pub const DELIVERIES_MAX: usize = 64;
/// Events that are being delivered to functions of one tenant at once: three of four, the rest is left to other tenants.
pub const TENANT_DELIVERIES_MAX: usize = DELIVERIES_MAX - DELIVERIES_MAX.div_ceil(4);
/// Events that are being delivered to one function at once, of all its buckets: the rest is left to others.
pub const FUNCTION_DELIVERIES_MAX: usize = 16;
/// Events of one bucket that are being delivered to one function at once.
pub const LANE_DELIVERIES_MAX: usize = 8;
/// Events of a lane that are looked at together: the oldest. When all of them wait to be repeated, younger ones wait too.
pub const WINDOW: usize = 256;
/// When what the store could not do is tried again.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// Writes a line into the log of a lane's function, for an invocation.
pub type Tell = Arc<dyn Fn(&Lane, InvocationId, &str) + Send + Sync>;

/// What the door needs.
#[derive(Clone)]
pub struct Triggers {
    /// Runs functions.
    pub invoke: Arc<dyn Invoke>,
    /// Where events wait.
    pub data: Arc<Data>,
    /// Where authors are told of what failed.
    pub tell: Tell,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for Triggers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Triggers").finish_non_exhaustive()
    }
}

type Running = Pin<Box<dyn Future<Output = (Arc<Lane>, Delivered)> + Send>>;

impl Triggers {
    /// Delivers until `stop`; then what is under way has `drain_timeout` to finish. Returns how many deliveries were cut: they are made
    /// again after the next start. Reads of the store block the thread, so it should have one of its own.
    ///
    /// # Cancellation
    /// As if all were cut: nothing is lost.
    pub async fn run(self, stop: Stop, drain_timeout: Duration) -> usize {
        let data = self.data.clone();
        let mut desk = Desk::new(self);
        while !stop.is_stopped() {
            desk.begin_deliveries();
            let alarm = desk.alarms.first().map(|(at, _)| *at);
            tokio::select! {
                () = stop.stopped() => {}
                Some((lane, delivered)) = desk.running.next() => desk.settle(&lane, delivered),
                () = data.events().changed() => {
                    for lane in data.events().take_due() {
                        desk.note(Arc::new(lane));
                    }
                }
                () = sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => desk.ring(Instant::now()),
            }
        }
        // Waiting for the others must not end with the first that is late.
        let rest = async { while desk.running.next().await.is_some() {} };
        let _late = timeout(drain_timeout, rest).await;
        desk.running.len()
    }
}

/// What is to be done, and what is being done.
struct Desk {
    triggers: Arc<Triggers>,
    lanes: HashMap<Arc<Lane>, Window>,
    /// Lanes that may have something to begin, in their turn; each is in here once.
    turns: VecDeque<Arc<Lane>>,
    /// When a lane has something to begin again.
    alarms: BTreeSet<(Instant, Arc<Lane>)>,
    running: FuturesUnordered<Running>,
    /// Functions that are being told of something.
    busy: HashMap<(TenantId, FunctionName), Busy>,
    /// Tenants whose functions are being told of something, or wait for that.
    tenants: HashMap<TenantId, Busy>,
}

/// A function, or all of a tenant, that is being told of something.
#[derive(Debug, Default)]
struct Busy {
    running: usize,
    /// Its lanes that came to their turn when it could be told of nothing more, in that order. They count as queued.
    held: VecDeque<Arc<Lane>>,
}

impl Desk {
    fn new(triggers: Triggers) -> Self {
        let (lanes, turns, alarms) = (HashMap::new(), VecDeque::new(), BTreeSet::new());
        let (running, busy, tenants) = (FuturesUnordered::new(), HashMap::new(), HashMap::new());
        Self { triggers: Arc::new(triggers), lanes, turns, alarms, running, busy, tenants }
    }

    /// Something was written in a lane.
    fn note(&mut self, lane: Arc<Lane>) {
        self.lanes.entry(lane.clone()).or_default().has_more = true;
        self.enqueue(lane);
    }

    fn enqueue(&mut self, lane: Arc<Lane>) {
        if let Some(window) = self.lanes.get_mut(&lane)
            && !window.is_queued
        {
            window.is_queued = true;
            self.turns.push_back(lane);
        }
    }

    /// Begins what may begin, an event of each lane in turn.
    fn begin_deliveries(&mut self) {
        while self.running.len() < DELIVERIES_MAX
            && let Some(lane) = self.turns.pop_front()
        {
            if let Some(busy) = self.tenants.get_mut(&lane.tenant)
                && busy.running >= TENANT_DELIVERIES_MAX
            {
                busy.held.push_back(lane);
                continue;
            }
            if !self.begin(&lane) {
                self.next_of(&lane.tenant);
            }
        }
    }

    /// Begins to deliver an event of a lane of whose tenant one more may be; false if it has none, or its function has enough of them.
    fn begin(&mut self, lane: &Arc<Lane>) -> bool {
        let Some(window) = self.lanes.get_mut(lane) else { return false };
        let function = (lane.tenant.clone(), lane.function.clone());
        if let Some(busy) = self.busy.get_mut(&function)
            && busy.running >= FUNCTION_DELIVERIES_MAX
        {
            busy.held.push_back(lane.clone());
            return false;
        }
        window.is_queued = false;
        if window.wants_more() {
            let read = self.triggers.data.outbox().read(lane, window.last(), window.room());
            match read {
                Ok(found) => window.extend(found),
                Err(error) => {
                    tracing::error!(%error, "events cannot be read; trying again");
                    self.alarms.insert((Instant::now() + STORE_RETRY, lane.clone()));
                }
            }
        }
        let Some(task) = window.begin(Instant::now()) else {
            if window.is_done() {
                self.lanes.remove(lane);
            }
            return false;
        };
        self.tenants.entry(lane.tenant.clone()).or_default().running += 1;
        self.busy.entry(function).or_default().running += 1;
        let (triggers, of) = (self.triggers.clone(), lane.clone());
        self.running.push(Box::pin(async move {
            let delivered = deliver(&triggers, &of, task).await;
            (of, delivered)
        }));
        self.enqueue(lane.clone());
        true
    }

    /// A place of a tenant is free: the turn of one of its lanes that are held, and of the next if that one has no use for it.
    fn next_of(&mut self, tenant: &TenantId) {
        let Some(busy) = self.tenants.get_mut(tenant) else { return };
        match busy.held.pop_front() {
            Some(lane) => self.turns.push_back(lane),
            None if busy.running == 0 => drop(self.tenants.remove(tenant)),
            None => {}
        }
    }

    fn settle(&mut self, lane: &Arc<Lane>, delivered: Delivered) {
        let function = (lane.tenant.clone(), lane.function.clone());
        if let Some(busy) = self.busy.get_mut(&function) {
            busy.running -= 1;
            self.turns.extend(busy.held.drain(..));
            if busy.running == 0 {
                self.busy.remove(&function);
            }
        }
        if let Some(busy) = self.tenants.get_mut(&lane.tenant) {
            busy.running -= 1;
            self.next_of(&lane.tenant);
        }
        let Some(window) = self.lanes.get_mut(lane) else { return };
        if let Some(due) = window.end(delivered) {
            self.alarms.insert((due, lane.clone()));
        }
        self.enqueue(lane.clone());
    }

    fn ring(&mut self, now: Instant) {
        while let Some((at, _)) = self.alarms.first()
            && *at <= now
            && let Some((_, lane)) = self.alarms.pop_first()
        {
            self.enqueue(lane);
        }
    }
}
