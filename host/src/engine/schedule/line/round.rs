//! Deficit round robin, by processor time: each has an account, gets a quantum when its turn comes, and has its turn as long as there is
//! credit. What a slice will take is not known before, so it may end in debt; that is paid back by later quanta.
//!
//! Owns the accounts and whose turn it is. Knows no clock and no guest: it is told what was used. Invariants: whoever has a queue that is
//! not empty has an account, and one without anybody waiting is forgotten once it has no debt; none has more credit than a quantum.
//!
//! Source: Shreedhar and Varghese, "Efficient Fair Queuing using Deficit Round Robin", 1995; with debt, as "surplus round robin".

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// What each gets in a round: about a slice.
const QUANTUM: i64 = 1_000_000;

/// What waits for the turns of one account.
pub(super) trait Waits: Default {
    /// Whether anybody does.
    fn is_empty(&self) -> bool;
}

impl<T> Waits for VecDeque<T> {
    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}

/// Accounts by `K`, each with its own `Q` of those who wait.
#[derive(Debug)]
pub(super) struct Round<K, Q> {
    accounts: HashMap<K, Account<Q>>,
    /// The keys of `accounts`; the first is the one whose turn it is.
    ring: VecDeque<K>,
}

#[derive(Debug)]
struct Account<Q> {
    /// In nanoseconds; debt if below 0.
    credit: i64,
    queue: Q,
}

impl<Q> Account<Q> {
    /// In how many rounds from now it has credit.
    fn rounds(&self) -> i64 {
        if self.credit > 0 { 0 } else { self.credit.saturating_neg() / QUANTUM + 1 }
    }
}

impl<K, Q> Default for Round<K, Q> {
    fn default() -> Self {
        Self { accounts: HashMap::new(), ring: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, Q: Waits> Round<K, Q> {
    fn account(&mut self, key: &K) -> &mut Account<Q> {
        if !self.accounts.contains_key(key) {
            self.ring.push_back(key.clone());
        }
        self.accounts.entry(key.clone()).or_insert_with(|| Account { credit: QUANTUM, queue: Q::default() })
    }

    /// Whether anybody waits. Cost: a look at each account.
    pub(super) fn is_empty(&self) -> bool {
        self.accounts.values().all(|account| account.queue.is_empty())
    }

    /// Where somebody may be put.
    pub(super) fn queue(&mut self, key: &K) -> &mut Q {
        &mut self.account(key).queue
    }

    /// Who waits there; `None` if there is no account.
    pub(super) fn get(&self, key: &K) -> Option<&Q> {
        self.accounts.get(key).map(|account| &account.queue)
    }

    /// The same, to be changed.
    pub(super) fn known(&mut self, key: &K) -> Option<&mut Q> {
        self.accounts.get_mut(key).map(|account| &mut account.queue)
    }

    /// All queues.
    pub(super) fn queues(&self) -> impl Iterator<Item = &Q> {
        self.accounts.values().map(|account| &account.queue)
    }

    /// Takes from an account what was used. Returns its queue.
    pub(super) fn charge(&mut self, key: &K, nanos: i64) -> &mut Q {
        let account = self.account(key);
        account.credit = account.credit.saturating_sub(nanos);
        &mut account.queue
    }

    /// The same, if there is an account.
    pub(super) fn charge_known(&mut self, key: &K, nanos: i64) {
        if let Some(account) = self.accounts.get_mut(key) {
            account.credit = account.credit.saturating_sub(nanos);
        }
    }

    /// Whether one has not used up its share.
    pub(super) fn has_credit(&self, key: &K) -> bool {
        self.accounts.get(key).is_none_or(|account| account.credit > 0)
    }

    /// The queue whose turn it is; not an empty one. `None` if nobody waits.
    pub(super) fn turn(&mut self) -> Option<&mut Q> {
        self.skip_rounds()?;
        loop {
            let account = self.accounts.get_mut(self.ring.front()?)?;
            if account.credit > 0 && !account.queue.is_empty() {
                break;
            }
            let was_in_debt = account.credit < 0;
            account.credit = account.credit.saturating_add(QUANTUM).min(QUANTUM);
            let is_done = account.queue.is_empty() && !was_in_debt;
            let key = self.ring.pop_front()?;
            match is_done {
                true => drop(self.accounts.remove(&key)),
                false => self.ring.push_back(key),
            }
        }
        self.known(&self.ring.front()?.clone())
    }

    /// Rounds in which nobody would have credit are made at once: one bulk operation may leave a debt of thousands. `None` if nobody waits.
    fn skip_rounds(&mut self) -> Option<()> {
        let waiting = self.accounts.values().filter(|account| !account.queue.is_empty());
        let skipped = waiting.map(Account::rounds).min()? - 1;
        if skipped > 0 {
            for account in self.accounts.values_mut() {
                account.credit = account.credit.saturating_add(skipped.saturating_mul(QUANTUM)).min(QUANTUM);
            }
        }
        Some(())
    }

    /// How many accounts there are.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        debug_assert_eq!(self.accounts.len(), self.ring.len());
        self.ring.len()
    }

    /// Forgets all accounts.
    pub(super) fn clear(&mut self) {
        self.accounts.clear();
        self.ring.clear();
    }
}
