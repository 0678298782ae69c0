//! The line: who waits on a thread, and who of them is next.
//!
//! Deficit round robin over tenants, by processor time: each has an account, gets a quantum when its turn comes, and has its turn as long
//! as there is credit. What a slice will take is not known before, so it may end in debt; that is paid back by later quanta. Within a
//! tenant the young and the old share by time, and each kind is served in the order of its coming.
//!
//! Owns places in line and accounts. Knows no clock and no guest: it is told what was used. Invariants: a place is left once, by being
//! next or by [`Line::leave`]; a tenant without anybody in line is forgotten once it has no debt; none has more credit than a quantum.
//!
//! Source: Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995; with debt, as "surplus round robin".

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::id::TenantId;

/// What a tenant gets in each round: about a slice.
const QUANTUM: i64 = 1_000_000;

/// How much a guest has used already. One that soon ends need not wait for all that do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// Not more than what its first slice may take.
    Young,
    /// More.
    Old,
}

/// Where a guest stands. No two are the same, on all threads together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) number: u64,
    pub(super) age: Age,
}

/// Those who wait; each has a `W` that tells it when it is next.
#[derive(Debug)]
pub(super) struct Line<W> {
    accounts: HashMap<TenantId, Account<W>>,
    /// The keys of `accounts`; the first is the one whose turn it is.
    ring: VecDeque<TenantId>,
    waiting: usize,
    /// How many of those are old.
    old: usize,
}

#[derive(Debug)]
struct Account<W> {
    /// In nanoseconds; debt if below 0.
    credit: i64,
    young: VecDeque<(u64, W)>,
    old: VecDeque<(u64, W)>,
    /// By how many nanoseconds the young had more than the old, while both waited.
    lead: i64,
}

impl<W> Account<W> {
    fn new() -> Self {
        Self { credit: QUANTUM, young: VecDeque::new(), old: VecDeque::new(), lead: 0 }
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    fn of(&mut self, age: Age) -> &mut VecDeque<(u64, W)> {
        match age {
            Age::Young => &mut self.young,
            Age::Old => &mut self.old,
        }
    }

    fn find(&mut self, place: Place) -> Option<(usize, &mut VecDeque<(u64, W)>)> {
        let those = self.of(place.age);
        // Numbers rise, so they are in order.
        let at = those.binary_search_by_key(&place.number, |(number, _)| *number).ok()?;
        Some((at, those))
    }

    fn take(&mut self) -> Option<(Age, (u64, W))> {
        if self.young.is_empty() || self.old.is_empty() {
            self.lead = 0;
        }
        let age = match () {
            () if self.young.is_empty() => Age::Old,
            () if self.old.is_empty() || self.lead <= 0 => Age::Young,
            () => Age::Old,
        };
        Some((age, self.of(age).pop_front()?))
    }

    /// In how many rounds from now it has credit.
    fn rounds(&self) -> i64 {
        if self.credit > 0 { 0 } else { self.credit.saturating_neg() / QUANTUM + 1 }
    }
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self { accounts: HashMap::new(), ring: VecDeque::new(), waiting: 0, old: 0 }
    }
}

impl<W> Line<W> {
    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    fn account(&mut self, tenant: &TenantId) -> &mut Account<W> {
        if !self.accounts.contains_key(tenant) {
            self.ring.push_back(tenant.clone());
        }
        self.accounts.entry(tenant.clone()).or_insert_with(Account::new)
    }

    /// Puts somebody at the end of its tenant's. `place`: its number is above all before it.
    pub(super) fn join(&mut self, tenant: &TenantId, place: Place, waker: W) {
        self.account(tenant).of(place.age).push_back((place.number, waker));
        self.waiting += 1;
        self.old += usize::from(place.age == Age::Old);
    }

    /// What would tell whoever has `place`, if it is still in line.
    pub(super) fn waiter(&mut self, tenant: &TenantId, place: Place) -> Option<&mut W> {
        let (at, those) = self.accounts.get_mut(tenant)?.find(place)?;
        those.get_mut(at).map(|(_, waker)| waker)
    }

    /// Gives up a place, if it is still there.
    pub(super) fn leave(&mut self, tenant: &TenantId, place: Place) -> Option<W> {
        let (at, those) = self.accounts.get_mut(tenant)?.find(place)?;
        let (_, waker) = those.remove(at)?;
        self.waiting -= 1;
        self.old -= usize::from(place.age == Age::Old);
        Some(waker)
    }

    /// Charges a tenant with what one of its guests used.
    pub(super) fn charge(&mut self, tenant: &TenantId, age: Age, took: Duration) {
        let took = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX);
        let account = self.account(tenant);
        account.credit = account.credit.saturating_sub(took);
        account.lead = match age {
            Age::Young => account.lead.saturating_add(took),
            Age::Old => account.lead.saturating_sub(took),
        };
    }

    /// Whether a tenant has not used up its share.
    pub(super) fn has_credit(&self, tenant: &TenantId) -> bool {
        self.accounts.get(tenant).is_none_or(|account| account.credit > 0)
    }

    /// Whether anybody waits for whom a tenant would have to make room.
    pub(super) fn others_wait(&self, tenant: &TenantId) -> bool {
        self.waiting > self.accounts.get(tenant).map_or(0, Account::len)
    }

    /// All who wait.
    pub(super) fn iter(&self) -> impl Iterator<Item = &W> {
        self.accounts.values().flat_map(|account| account.young.iter().chain(&account.old)).map(|(_, waits)| waits)
    }

    /// Whether anybody waits who is old.
    pub(super) fn old_wait(&self) -> bool {
        self.old > 0
    }

    /// Whoever is next leaves the line: its number, and what tells it.
    pub(super) fn next(&mut self) -> Option<(u64, W)> {
        if self.waiting == 0 {
            return None;
        }
        self.skip_rounds();
        loop {
            let account = self.accounts.get_mut(self.ring.front()?)?;
            if account.credit > 0 && account.len() > 0 {
                let (age, next) = account.take()?;
                self.waiting -= 1;
                self.old -= usize::from(age == Age::Old);
                return Some(next);
            }
            let was_in_debt = account.credit < 0;
            account.credit = account.credit.saturating_add(QUANTUM).min(QUANTUM);
            let is_done = account.len() == 0 && !was_in_debt;
            let tenant = self.ring.pop_front()?;
            match is_done {
                true => drop(self.accounts.remove(&tenant)),
                false => self.ring.push_back(tenant),
            }
        }
    }

    /// Rounds in which nobody would have credit are made at once: one bulk operation may leave a debt of thousands.
    fn skip_rounds(&mut self) {
        let rounds = self.accounts.values().filter(|account| account.len() > 0).map(Account::rounds).min();
        let Some(skipped @ 1..) = rounds.map(|rounds| rounds - 1) else { return };
        for account in self.accounts.values_mut() {
            account.credit = account.credit.saturating_add(skipped.saturating_mul(QUANTUM)).min(QUANTUM);
        }
    }

    /// Forgets all accounts. Nobody waits.
    pub(super) fn settle(&mut self) {
        debug_assert_eq!(self.waiting, 0, "whoever waits has an account");
        self.accounts.clear();
        self.ring.clear();
    }
}

#[cfg(test)]
mod tests;
