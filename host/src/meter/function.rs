//! What one function used and how it began.
//!
//! Owns its totals. What is counted while an invocation runs (bytes, requests, operations) waits until one ends or somebody looks, so that it
//! needs no clock. Invariant: what is added here is added to the function's tenant as well.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bodies::Way;
use super::series::{self, Series, Used};
use super::{TenantMeter, Usage};
use crate::fault::Code;
use crate::histogram::StartTimes;
use crate::invocation::{Phases, Start};

/// Totals of one function since the node started. Small, because it outlives the rest of a function that is not used any more.
#[derive(Debug)]
pub struct FunctionMeter {
    starts: StartTimes,
    /// Those that occurred: few of all codes, and seldom.
    faults: Mutex<Vec<(Code, u64)>>,
    series: Series,
    waiting: Waiting,
    tenant: Arc<TenantMeter>,
}

/// What was counted and is in no minute yet.
#[derive(Debug, Default)]
struct Waiting {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    requests: AtomicU64,
    data_operations: AtomicU64,
    cpu_ns: AtomicU64,
    memory_bytes_max: AtomicU64,
}

impl Waiting {
    fn take(&self) -> Used {
        let take = |counter: &AtomicU64| match counter.load(Ordering::Relaxed) {
            0 => 0,
            _ => counter.swap(0, Ordering::Relaxed),
        };
        Used {
            bytes_in: take(&self.bytes_in),
            bytes_out: take(&self.bytes_out),
            requests: take(&self.requests),
            data_operations: take(&self.data_operations),
            cpu: Duration::from_nanos(take(&self.cpu_ns)),
            memory_bytes_max: take(&self.memory_bytes_max),
            ..Used::default()
        }
    }
}

impl Default for FunctionMeter {
    fn default() -> Self {
        Self::new(Arc::default())
    }
}

impl FunctionMeter {
    /// Of a function of this tenant, nothing used.
    #[must_use]
    pub fn new(tenant: Arc<TenantMeter>) -> Self {
        Self {
            starts: StartTimes::default(),
            faults: Mutex::default(),
            series: Series::new(&series::FUNCTIONS),
            waiting: Waiting::default(),
            tenant,
        }
    }

    /// That of its tenant.
    #[must_use]
    pub fn tenant(&self) -> &Arc<TenantMeter> {
        &self.tenant
    }

    /// Counts an invocation whose response began at `now`.
    ///
    /// # Cost
    /// That of [`StartTimes::observe`], and two relaxed additions for each phase that it had to the function's counters and as many to its tenant's.
    pub fn started(&self, start: Start, phases: &Phases, now: Instant) {
        self.starts.observe(start, phases);
        self.spent(phases, now);
    }

    /// Counts where the time of an invocation went that ends without a response, or a part of it.
    ///
    /// # Cost
    /// As that of [`Self::started`], without the start.
    pub fn spent(&self, phases: &Phases, now: Instant) {
        self.add(&Used { phases: *phases, ..Used::default() }, now);
    }

    /// Invocations by the rung of their start, and how long their starts took.
    #[must_use]
    pub fn starts(&self) -> &StartTimes {
        &self.starts
    }

    /// Counts a fault, whether a status showed it or a cut connection.
    pub fn faulted(&self, code: Code) {
        let mut faults = self.lock_faults();
        match faults.binary_search_by_key(&(code as usize), |(code, _)| *code as usize) {
            Ok(at) => faults[at].1 += 1,
            Err(at) => {
                faults.reserve_exact(1);
                faults.insert(at, (code, 1));
            }
        }
    }

    /// A list of counts is whole after every statement that changes it.
    fn lock_faults(&self) -> std::sync::MutexGuard<'_, Vec<(Code, u64)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Faults by code, those of the guest and of the host; codes that never occurred are left out.
    #[must_use]
    pub fn faults(&self) -> Vec<(Code, u64)> {
        self.lock_faults().clone()
    }

    /// Whether nothing was counted yet.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.starts.total() == 0 && self.lock_faults().is_empty()
    }

    /// Adds what an invocation used that ended at `now`.
    ///
    /// # Cost
    /// Some ten relaxed additions to the function's counters and as many to its tenant's; see [`Series::add`].
    pub fn used(&self, usage: Usage, now: Instant) {
        let mut used = self.waiting.take();
        let Usage { cpu, wall, memory_bytes: memory_bytes_max } = usage;
        used.add(&Used { invocations: 1, cpu, wall, memory_bytes_max, ..Used::default() });
        self.add(&used, now);
    }

    /// Adds processor time that was used beside an invocation: its teardown, and what others did for it.
    pub fn used_besides(&self, cpu: Duration) {
        self.waiting.cpu_ns.fetch_add(u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Adds bytes of a body that passed.
    pub fn passed(&self, way: Way, bytes: usize) {
        let counter = match way {
            Way::In => &self.waiting.bytes_in,
            Way::Out => &self.waiting.bytes_out,
        };
        if bytes > 0 {
            counter.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Adds a request to a server elsewhere.
    pub fn requested(&self) {
        self.waiting.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds an operation on a bucket.
    pub fn operated(&self) {
        self.waiting.data_operations.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes how much memory an invocation had that did not come to its own end.
    pub fn had(&self, memory_bytes: usize) {
        self.waiting.memory_bytes_max.fetch_max(memory_bytes as u64, Ordering::Relaxed);
    }

    fn add(&self, used: &Used, now: Instant) {
        let minute = series::minute(now);
        self.series.add(minute, used);
        self.tenant.add(minute, used);
    }

    /// Puts what waits into this minute.
    pub fn settle(&self) {
        let waiting = self.waiting.take();
        if !waiting.is_nothing() {
            self.add(&waiting, Instant::now());
        }
    }

    /// What was used, in all and by minute; not one moment's when invocations end meanwhile.
    #[must_use]
    pub fn series(&self) -> &Series {
        self.settle();
        &self.series
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_starts_index_their_counters() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(*code as usize, index);
        }
        let meter = FunctionMeter::default();
        meter.started(Start::Compiled, &Phases::default(), Instant::now());
        meter.faulted(Code::StorageFull);
        assert_eq!(meter.starts().count(Start::Compiled), 1);
        assert_eq!(meter.faults(), [(Code::StorageFull, 1)]);
        meter.faulted(Code::ALL[0]);
        meter.faulted(Code::StorageFull);
        assert_eq!(meter.faults(), [(Code::ALL[0], 1), (Code::StorageFull, 2)], "in the order of the codes");
        assert!(!meter.is_untouched() && FunctionMeter::default().is_untouched());
    }

    #[test]
    fn what_is_counted_meanwhile_is_there_for_whoever_looks_and_the_tenant_has_the_sum() {
        let tenant = Arc::new(TenantMeter::default());
        let [first, second] = std::array::from_fn(|_| FunctionMeter::new(tenant.clone()));
        let usage = |cpu, memory_bytes| Usage { cpu: Duration::from_nanos(cpu), wall: Duration::from_nanos(9), memory_bytes };
        let phases = Phases::of_times([1, 0, 2, 3, 0, 5].map(Duration::from_nanos));
        first.passed(Way::In, 3);
        first.started(Start::Resident, &phases, Instant::now());
        first.requested();
        first.used(usage(5, 70), Instant::now());
        first.passed(Way::Out, 4);
        first.operated();
        first.used_besides(Duration::from_nanos(2));
        first.had(90);
        let of_first = Used {
            invocations: 1,
            cpu: Duration::from_nanos(7),
            wall: Duration::from_nanos(9),
            phases,
            bytes_in: 3,
            bytes_out: 4,
            requests: 1,
            data_operations: 1,
            memory_bytes_max: 90,
        };
        assert_eq!(first.series().total(), of_first);
        second.used(usage(1, 80), Instant::now());
        let mut both = of_first;
        both.add(&second.series().total());
        assert_eq!(tenant.series().total(), both);
        assert_eq!(both.without(&of_first).invocations, 1);
        // Between two looks at the clock a minute may begin.
        let mut minutes = Used::default();
        tenant.series().minutes(0).iter().for_each(|(_, used)| minutes.add(used));
        assert_eq!(minutes, both);
    }
}
