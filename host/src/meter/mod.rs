//! What an invocation may use, what it used, and what that adds up to for its function.
//!
//! Owns budgets and totals. Knows nothing about who spends them: the engine charges, the control port reads.
//! Invariant: charged memory never passes its limit; totals only grow.

mod admission;
pub mod crowd;

pub use admission::{Admission, AdmissionError, Permit};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::fault::Code;
use crate::histogram::StartTimes;
use crate::invocation::{Phases, Start};

/// Memory of one instance: the sum over all its memories and tables, not one of them.
///
/// wasmtime asks for each memory and table alone (`ResourceLimiter`), which is why the sum is kept here.
#[derive(Debug)]
pub struct MemoryBudget {
    used: usize,
    /// What was written to where objects are mapped: no growth, but memory that nobody else has.
    written: usize,
    peak: usize,
    limit: usize,
    refused: bool,
    /// Whether a growth was refused for want of room in the node, and not by the limit.
    crowded: bool,
    exempt: bool,
}

impl MemoryBudget {
    /// A budget of `limit` bytes, nothing used.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { used: 0, written: 0, peak: 0, limit, refused: false, crowded: false, exempt: false }
    }

    /// Charges the growth of one memory or table from `current` to `desired` bytes. `false`, and nothing charged, when the sum
    /// would pass the limit.
    pub fn grow(&mut self, current: usize, desired: usize) -> bool {
        let wanted = self.used.saturating_add(desired.saturating_sub(current));
        if wanted.saturating_add(self.written) > self.limit {
            self.refused = true;
            return false;
        }
        if wanted > self.used && !crowd::charge(wanted - self.used) {
            self.crowded = true;
            return false;
        }
        self.used = wanted;
        self.peak = self.peak.max(wanted + self.written);
        true
    }

    /// Begins or ends a growth that the host makes for its own ends.
    pub fn exempt(&mut self, exempt: bool) {
        self.exempt = exempt;
    }

    /// Whether what grows now is not to be charged.
    #[must_use]
    pub fn is_exempt(&self) -> bool {
        self.exempt
    }

    /// Charges what the instance has written so far to where objects are mapped. `false` when that passes the limit.
    pub fn write(&mut self, bytes: usize) -> bool {
        // It is written already.
        crowd::note(bytes);
        crowd::release(std::mem::replace(&mut self.written, bytes));
        let sum = self.used.saturating_add(bytes);
        self.peak = self.peak.max(sum);
        self.refused |= sum > self.limit;
        sum <= self.limit
    }

    /// What was charged by [`MemoryBudget::write`], in bytes.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// The most that may be written to where objects are mapped, in bytes.
    #[must_use]
    pub fn allowance(&self) -> usize {
        self.limit.saturating_sub(self.used)
    }

    /// Gives back the last charge, when the growth it paid for failed.
    pub fn undo(&mut self, bytes: usize) {
        let given_back = bytes.min(self.used);
        crowd::release(given_back);
        self.used -= given_back;
    }

    /// Takes over what `earlier` has used, when an instance passes from one budget to another.
    pub fn inherit(&mut self, earlier: &mut Self) {
        crowd::release(self.used);
        (self.used, self.peak) = (std::mem::take(&mut earlier.used), earlier.peak);
    }

    /// Whether a growth was refused because the node had no room: a trap after that is the node's doing.
    #[must_use]
    pub fn was_crowded(&self) -> bool {
        self.crowded
    }

    /// Whether any growth was refused: a trap after that is "out of memory" to its author.
    #[must_use]
    pub fn was_refused(&self) -> bool {
        self.refused
    }

    /// The most that was charged at once, in bytes.
    #[must_use]
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// The limit, in bytes.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }
}

impl Drop for MemoryBudget {
    fn drop(&mut self) {
        crowd::release(self.used + self.written);
    }
}

/// What one invocation used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on the processor, start included; the teardown is added when it is over.
    pub cpu: Duration,
    /// From the start of the instance to its end.
    pub wall: Duration,
    /// Most memory at once, in bytes; see [`MemoryBudget`].
    pub memory_bytes: u64,
}

/// Totals of one function since the node started. Small, because it outlives the rest of a function that is not used any more.
#[derive(Debug, Default)]
pub struct FunctionMeter {
    starts: StartTimes,
    /// Those that occurred: few of all codes, and seldom.
    faults: Mutex<Vec<(Code, u64)>>,
    cpu_ns: AtomicU64,
    wall_ns: AtomicU64,
    memory_bytes_max: AtomicU64,
}

/// A reading of a [`FunctionMeter`].
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Faults by code, those of the guest and of the host; codes that never occurred are left out.
    pub faults: Vec<(Code, u64)>,
    /// Processor time of all invocations.
    pub cpu: Duration,
    /// Time of all invocations.
    pub wall: Duration,
    /// Most memory that one invocation had, in bytes.
    pub memory_bytes_max: u64,
}

impl FunctionMeter {
    /// Counts an invocation whose response began.
    pub fn started(&self, start: Start, phases: &Phases) {
        self.starts.observe(start, phases);
    }

    /// Invocations by the rung of their start, and how long their starts took.
    #[must_use]
    pub fn starts(&self) -> &StartTimes {
        &self.starts
    }

    /// Counts a fault, whether a status showed it or a cut connection.
    pub fn faulted(&self, code: Code) {
        let mut faults = self.faults();
        match faults.binary_search_by_key(&(code as usize), |(code, _)| *code as usize) {
            Ok(at) => faults[at].1 += 1,
            Err(at) => {
                faults.reserve_exact(1);
                faults.insert(at, (code, 1));
            }
        }
    }

    /// A list of counts is whole after every statement that changes it.
    fn faults(&self) -> std::sync::MutexGuard<'_, Vec<(Code, u64)>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing was counted yet.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.starts.total() == 0 && self.faults().is_empty()
    }

    /// Adds what an invocation used, once it ended.
    pub fn used(&self, usage: Usage) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.cpu_ns.fetch_add(nanos(usage.cpu), Ordering::Relaxed);
        self.wall_ns.fetch_add(nanos(usage.wall), Ordering::Relaxed);
        self.memory_bytes_max.fetch_max(usage.memory_bytes, Ordering::Relaxed);
    }

    /// Adds processor time that was used after an invocation had ended: its teardown.
    pub fn used_besides(&self, cpu: Duration) {
        self.cpu_ns.fetch_add(u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Reads all totals; not one moment's when invocations end meanwhile.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            faults: self.faults().clone(),
            cpu: Duration::from_nanos(load(&self.cpu_ns)),
            wall: Duration::from_nanos(load(&self.wall_ns)),
            memory_bytes_max: load(&self.memory_bytes_max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_a_sum_and_refusals_charge_nothing() {
        let mut budget = MemoryBudget::new(100);
        assert!(budget.grow(0, 60) && budget.grow(0, 40));
        assert!(!budget.was_refused());
        assert!(!budget.grow(40, 41) && budget.was_refused());
        budget.undo(40);
        assert!(budget.grow(60, 100) && !budget.grow(0, 1));
        assert_eq!(budget.peak(), 100);
        let mut budget = MemoryBudget::new(100);
        assert!(budget.grow(0, 60) && budget.write(40) && budget.allowance() == 40 && !budget.was_refused());
        assert!(!budget.grow(60, 61), "what was written counts");
        assert!(budget.write(30) && budget.grow(60, 70) && budget.peak() == 100);
        assert!(!budget.write(31) && budget.was_refused() && budget.peak() == 101);
    }

    #[test]
    fn codes_and_starts_index_their_counters() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(*code as usize, index);
        }
        let meter = FunctionMeter::default();
        meter.started(Start::Compiled, &Phases::default());
        meter.faulted(Code::StorageFull);
        assert_eq!(meter.starts().count(Start::Compiled), 1);
        assert_eq!(meter.totals().faults, [(Code::StorageFull, 1)]);
        meter.faulted(Code::ALL[0]);
        meter.faulted(Code::StorageFull);
        assert_eq!(meter.totals().faults, [(Code::ALL[0], 1), (Code::StorageFull, 2)], "in the order of the codes");
        assert!(!meter.is_untouched() && FunctionMeter::default().is_untouched());
    }
}
