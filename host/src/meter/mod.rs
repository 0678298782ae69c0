//! What an invocation may use, what it used, and what that adds up to for its function.
//!
//! Owns budgets and totals. Knows nothing about who spends them: the engine charges, the control port reads.
//! Invariant: charged memory never passes its limit; totals only grow.

mod admission;
mod bodies;
pub mod crowd;
mod function;
pub mod series;
mod tenant;

pub use admission::{Admission, AdmissionError, Permit};
pub use bodies::{Way, counted};
pub use function::FunctionMeter;
pub use tenant::{Running, TenantMeter, Tenants, exceeded};

use std::sync::Arc;
use std::time::Duration;

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
    /// Whether a growth was refused for want of room in the node, or by the system, and not by the limit.
    crowded: bool,
    /// Whether one was refused by the tenant's quota.
    over_quota: bool,
    exempt: bool,
    /// Whose function it is; nobody's as long as an instance waits.
    account: Option<Arc<FunctionMeter>>,
}

impl MemoryBudget {
    /// A budget of `limit` bytes, nothing used.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self::of(limit, None)
    }

    /// The same on the account of a function: its tenant is charged too, and what was the most is told when the budget is dropped.
    #[must_use]
    pub fn of(limit: usize, account: Option<Arc<FunctionMeter>>) -> Self {
        Self { used: 0, written: 0, peak: 0, limit, refused: false, crowded: false, over_quota: false, exempt: false, account }
    }

    fn tenant(&self) -> Option<&TenantMeter> {
        self.account.as_deref().map(|function| &**function.tenant())
    }

    fn release(&self, bytes: usize) {
        crowd::release(bytes);
        if let Some(tenant) = self.tenant() {
            tenant.release(bytes);
        }
    }

    fn note(&self, bytes: usize) {
        crowd::note(bytes);
        if let Some(tenant) = self.tenant() {
            tenant.note(bytes);
        }
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
        if wanted > self.used && self.tenant().is_some_and(|tenant| !tenant.charge(wanted - self.used)) {
            crowd::release(wanted - self.used);
            self.over_quota = true;
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
        self.note(bytes);
        let before = std::mem::replace(&mut self.written, bytes);
        self.release(before);
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

    /// Notes that the system did not give what was charged.
    pub fn fail(&mut self) {
        self.crowded = true;
    }

    /// Gives back so much of what was charged: the growth that it paid for failed, or is gone.
    pub fn undo(&mut self, bytes: usize) {
        let given_back = bytes.min(self.used);
        self.release(given_back);
        self.used -= given_back;
    }

    /// Takes over what `earlier` has used, when an instance passes from one budget to another. `false`, and nothing taken, when that passes
    /// the tenant's quota: it is charged to the node already, and to no tenant as long as nobody has the instance.
    pub fn inherit(&mut self, earlier: &mut Self) -> bool {
        if self.tenant().is_some_and(|tenant| !tenant.charge(earlier.used)) {
            self.over_quota = true;
            return false;
        }
        self.release(self.used);
        (self.used, self.peak) = (std::mem::take(&mut earlier.used), earlier.peak);
        true
    }

    /// The most that was charged at once, in bytes; whoever asks tells the account.
    pub fn take_peak(&mut self) -> usize {
        std::mem::take(&mut self.peak)
    }

    /// Whether a growth was refused by the tenant's quota, and which function's.
    #[must_use]
    pub fn was_over_quota(&self) -> Option<&TenantMeter> {
        self.tenant().filter(|_| self.over_quota)
    }

    /// Whether a growth was refused because the node had no room, or the system gave none: a trap after that is the node's doing.
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
        self.release(self.used + self.written);
        if let Some(function) = self.account.as_ref().filter(|_| self.peak > 0) {
            function.had(self.peak);
        }
    }
}

/// What one invocation used, besides what its function's meter is told meanwhile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on the processor, start included; the teardown is added when it is over.
    pub cpu: Duration,
    /// From the start of the instance to its end.
    pub wall: Duration,
    /// Most memory at once, in bytes; see [`MemoryBudget`].
    pub memory_bytes: u64,
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
}
