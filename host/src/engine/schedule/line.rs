//! The line: who waits on a thread, and who of them is next.
//!
//! Tenants share by processor time ([`round`]). Within a tenant the young and the old do, and within each kind the functions; those of a
//! function are served in the order of their coming. So neither a neighbour's flood nor one of another function of the same tenant is
//! what a request waits for: where there is one tenant, as on most nodes, its functions are all who share.
//!
//! Owns places in line. Invariant: a place is left once, by being next or by [`Line::leave`].

mod round;

use std::collections::VecDeque;
use std::time::Duration;

use crate::id::TenantId;
use round::{Round, Waits};

/// By how much the young, or the old, of a tenant may have had more: what is beyond is forgotten, or a rush would be paid for long after it.
const LEAD_MAX: i64 = 4_000_000;

/// Whose guest it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::engine) struct Whose {
    /// Who is charged.
    pub(in crate::engine) tenant: TenantId,
    /// Tells functions of the tenant apart that are there at the same time; it means nothing else.
    pub(in crate::engine) function: usize,
}

impl Whose {
    /// Of the same tenant, for what is done before anybody asks for it: no request of the function stands behind that.
    pub(in crate::engine) fn ahead(&self) -> Self {
        // Those that are there at the same time are addresses, which are even.
        Self { tenant: self.tenant.clone(), function: self.function | 1 }
    }
}

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
    tenants: Round<TenantId, Tenant<W>>,
    waiting: usize,
    /// How many of those are old.
    old: usize,
}

/// Those of one function, in the order of their numbers.
type Queue<W> = VecDeque<(u64, W)>;

/// Those of one tenant.
#[derive(Debug)]
struct Tenant<W> {
    waiting: usize,
    young: Round<usize, Queue<W>>,
    old: Round<usize, Queue<W>>,
    /// By how many nanoseconds the young had more than the old, while both waited.
    lead: i64,
}

impl<W> Default for Tenant<W> {
    fn default() -> Self {
        Self { waiting: 0, young: Round::default(), old: Round::default(), lead: 0 }
    }
}

impl<W> Waits for Tenant<W> {
    fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}

impl<W> Tenant<W> {
    fn of(&mut self, age: Age) -> &mut Round<usize, Queue<W>> {
        match age {
            Age::Young => &mut self.young,
            Age::Old => &mut self.old,
        }
    }

    fn find(&mut self, function: usize, place: Place) -> Option<(usize, &mut Queue<W>)> {
        let those = self.of(place.age).known(&function)?;
        // Numbers rise, so they are in order.
        let at = those.binary_search_by_key(&place.number, |(number, _)| *number).ok()?;
        Some((at, those))
    }

    fn take(&mut self) -> Option<(Age, (u64, W))> {
        let (no_young, no_old) = (self.young.is_empty(), self.old.is_empty());
        if no_young || no_old {
            self.lead = 0;
        }
        let age = if no_young || (!no_old && self.lead > 0) { Age::Old } else { Age::Young };
        let next = self.of(age).turn()?.pop_front()?;
        self.waiting -= 1;
        Some((age, next))
    }
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self { tenants: Round::default(), waiting: 0, old: 0 }
    }
}

impl<W> Line<W> {
    /// How many wait.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// How many of a tenant wait.
    #[cfg(test)]
    pub(super) fn waiting_of(&self, whose: &Whose) -> usize {
        self.tenants.get(&whose.tenant).map_or(0, |tenant| tenant.waiting)
    }

    /// Puts somebody at the end of its function's. `place`: its number is above all before it.
    pub(super) fn join(&mut self, whose: &Whose, place: Place, waker: W) {
        let tenant = self.tenants.queue(&whose.tenant);
        tenant.of(place.age).queue(&whose.function).push_back((place.number, waker));
        tenant.waiting += 1;
        self.waiting += 1;
        self.old += usize::from(place.age == Age::Old);
    }

    /// What would tell whoever has `place`, if it is still in line.
    pub(super) fn waiter(&mut self, whose: &Whose, place: Place) -> Option<&mut W> {
        let (at, those) = self.tenants.known(&whose.tenant)?.find(whose.function, place)?;
        those.get_mut(at).map(|(_, waker)| waker)
    }

    /// Gives up a place, if it is still there.
    pub(super) fn leave(&mut self, whose: &Whose, place: Place) -> Option<W> {
        let tenant = self.tenants.known(&whose.tenant)?;
        let (at, those) = tenant.find(whose.function, place)?;
        let (_, waker) = those.remove(at)?;
        tenant.waiting -= 1;
        self.waiting -= 1;
        self.old -= usize::from(place.age == Age::Old);
        Some(waker)
    }

    /// Charges a tenant, and its function, with what one of their guests used.
    pub(super) fn charge(&mut self, whose: &Whose, age: Age, took: Duration) {
        let took = i64::try_from(took.as_nanos()).unwrap_or(i64::MAX);
        let tenant = self.tenants.charge(&whose.tenant, took);
        tenant.lead = match age {
            Age::Young => tenant.lead.saturating_add(took),
            Age::Old => tenant.lead.saturating_sub(took),
        };
        tenant.lead = tenant.lead.clamp(-LEAD_MAX, LEAD_MAX);
        // Where nobody else of the tenant waits a function owes nobody anything.
        match tenant.waiting {
            0 => tenant.of(age).charge_known(&whose.function, took),
            _ => _ = tenant.of(age).charge(&whose.function, took),
        }
    }

    /// Whether one who does not stand in line may go before those of its own tenant who do: none of its function and age does, its function has not
    /// used up its share beside them, nor have those of its age.
    pub(super) fn may_overtake(&self, whose: &Whose, age: Age) -> bool {
        let Some(tenant) = self.tenants.get(&whose.tenant).filter(|tenant| tenant.waiting > 0) else { return true };
        let (own, had_more) = match age {
            Age::Young => (&tenant.young, tenant.lead > 0 && !tenant.old.is_empty()),
            Age::Old => (&tenant.old, tenant.lead < 0 && !tenant.young.is_empty()),
        };
        let is_behind = own.get(&whose.function).is_some_and(|those| !those.is_empty());
        !is_behind && own.has_credit(&whose.function) && !had_more
    }

    /// Whether a tenant has not used up its share.
    pub(super) fn has_credit(&self, whose: &Whose) -> bool {
        self.tenants.has_credit(&whose.tenant)
    }

    /// Whether anybody waits for whom a tenant would have to make room.
    pub(super) fn others_wait(&self, whose: &Whose) -> bool {
        self.waiting > self.tenants.get(&whose.tenant).map_or(0, |tenant| tenant.waiting)
    }

    /// All who wait.
    pub(super) fn iter(&self) -> impl Iterator<Item = &W> {
        let functions = self.tenants.queues().flat_map(|tenant| tenant.young.queues().chain(tenant.old.queues()));
        functions.flatten().map(|(_, waits)| waits)
    }

    /// Whether anybody waits who is old.
    pub(super) fn old_wait(&self) -> bool {
        self.old > 0
    }

    /// Whoever is next leaves the line: its number, and what tells it.
    pub(super) fn next(&mut self) -> Option<(u64, W)> {
        let (age, next) = self.tenants.turn()?.take()?;
        self.waiting -= 1;
        self.old -= usize::from(age == Age::Old);
        Some(next)
    }

    /// Forgets all accounts. Nobody waits.
    pub(super) fn settle(&mut self) {
        debug_assert_eq!(self.waiting, 0, "whoever waits has an account");
        self.tenants.clear();
    }
}

#[cfg(test)]
mod tests;
