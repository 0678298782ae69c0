//! Turns: which build is next when more are wanted than run at once.
//!
//! A build may take half a minute, so in the order of coming one tenant's deploys would be before everybody else's. Tenants take turns instead, and
//! each one's builds go in the order of their coming. One tenant has at most half of the places to wait. (`data::Shares` keeps places free for
//! others instead: of two builds at once a tenant that is alone would have one.)
//!
//! Owns who waits. Knows nothing about builds. Invariants: a tenant is in the round exactly as long as it has a build that waits; a turn
//! that nobody takes any more goes to the next.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::id::TenantId;

/// See the module.
#[derive(Debug)]
pub(super) struct Turns {
    at_once: usize,
    waiting_max: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    running: usize,
    /// Of each tenant that has any, first the one whose turn is next.
    round: VecDeque<(TenantId, VecDeque<Waiter>)>,
}

/// One that waits.
type Waiter = oneshot::Sender<Turn>;

/// Why there is no turn, not even later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// As many wait as may.
    Queue,
    /// As many of this tenant do, which is so many.
    Tenant(usize),
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Arc<Turns>);

impl Turns {
    /// So many builds at once, and so many that wait.
    pub(super) fn new(at_once: usize, waiting_max: usize) -> Arc<Self> {
        Arc::new(Self { at_once: at_once.max(1), waiting_max, state: Mutex::default() })
    }

    /// Waits until it is the tenant's turn.
    ///
    /// # Errors
    /// [`Full`], at once.
    /// # Cancellation
    /// Dropping the future gives the place up.
    pub(super) async fn take(self: &Arc<Self>, tenant: &TenantId) -> Result<Turn, Full> {
        let receiver = match self.join(tenant)? {
            Ok(turn) => return Ok(turn),
            Err(receiver) => receiver,
        };
        // Whoever has this is in the round, and nobody leaves that without a turn.
        receiver.await.map_err(|_| Full::Queue)
    }

    fn join(self: &Arc<Self>, tenant: &TenantId) -> Result<Result<Turn, oneshot::Receiver<Turn>>, Full> {
        let mut state = self.lock();
        if state.running < self.at_once {
            state.running += 1;
            return Ok(Ok(Turn(Arc::clone(self))));
        }
        for (_, line) in &mut state.round {
            line.retain(|waiter| !waiter.is_closed());
        }
        state.round.retain(|(_, line)| !line.is_empty());
        if state.round.iter().map(|(_, line)| line.len()).sum::<usize>() >= self.waiting_max {
            return Err(Full::Queue);
        }
        let (waiter, receiver) = oneshot::channel();
        let each_max = self.waiting_max.div_ceil(2);
        match state.round.iter_mut().find(|(of, _)| of == tenant) {
            Some((_, line)) if line.len() >= each_max => return Err(Full::Tenant(each_max)),
            Some((_, line)) => line.push_back(waiter),
            None => state.round.push_back((tenant.clone(), VecDeque::from([waiter]))),
        }
        Ok(Err(receiver))
    }

    /// The next one that still waits, which has the place of the one that ended.
    fn next(&self) -> Option<Waiter> {
        let mut state = self.lock();
        while let Some((tenant, mut line)) = state.round.pop_front() {
            let next = std::iter::from_fn(|| line.pop_front()).find(|waiter| !waiter.is_closed());
            if !line.is_empty() {
                state.round.push_back((tenant, line));
            }
            if next.is_some() {
                return next;
            }
        }
        state.running -= 1;
        None
    }

    /// Nothing panics under the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(next) = self.0.next() {
            // One that has just left drops the turn, which then goes on from there.
            let _left = next.send(Self(Arc::clone(&self.0)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures_util::FutureExt as _;

    use super::*;

    type Taking = Pin<Box<dyn Future<Output = Result<Turn, Full>>>>;

    /// One that waits.
    fn waits(turns: &Arc<Turns>, tenant: &str) -> Taking {
        let (turns, tenant) = (turns.clone(), tenant.parse::<TenantId>().unwrap());
        let mut taking: Taking = Box::pin(async move { turns.take(&tenant).await });
        assert!(taking.as_mut().now_or_never().is_none());
        taking
    }

    fn now(taking: &mut Taking) -> Option<Turn> {
        taking.as_mut().now_or_never().map(Result::unwrap)
    }

    fn one(turns: &Arc<Turns>, tenant: &str) -> Result<Turn, Full> {
        turns.take(&tenant.parse().unwrap()).now_or_never().unwrap()
    }

    #[test]
    fn tenants_take_turns_and_each_one_s_come_in_order() {
        let turns = Turns::new(1, 64);
        let running = one(&turns, "a").unwrap();
        let mut first: Vec<_> = (0..3).map(|_| waits(&turns, "a")).collect();
        let mut other = waits(&turns, "b");
        drop(running);
        let running = now(&mut first[0]).unwrap();
        assert!(now(&mut other).is_none());
        drop(running);
        let running = now(&mut other).unwrap();
        assert!(now(&mut first[1]).is_none());
        drop(running);
        let running = now(&mut first[1]).unwrap();
        drop(running);
        drop(now(&mut first[2]).unwrap());
        assert!(one(&turns, "b").is_ok());
    }

    #[test]
    fn places_to_wait_on_both_sides() {
        let turns = Turns::new(2, 4);
        let _running = [one(&turns, "a").unwrap(), one(&turns, "a").unwrap()];
        let _waiting = [waits(&turns, "a"), waits(&turns, "a")];
        assert_eq!(one(&turns, "a").unwrap_err(), Full::Tenant(2));
        let others = [waits(&turns, "b"), waits(&turns, "c")];
        assert_eq!(one(&turns, "d").unwrap_err(), Full::Queue);
        drop(others);
        let _fits = waits(&turns, "d");
        let none = Turns::new(1, 0);
        let _running = one(&none, "a").unwrap();
        assert_eq!(one(&none, "a").unwrap_err(), Full::Queue);
    }

    #[test]
    fn who_leaves_keeps_no_turn() {
        let turns = Turns::new(1, 64);
        let running = one(&turns, "a").unwrap();
        let [left, mut stays] = [waits(&turns, "a"), waits(&turns, "b")];
        drop(left);
        drop(running);
        let running = now(&mut stays).unwrap();
        // One that leaves after its turn was sent.
        let called = waits(&turns, "a");
        let mut after = waits(&turns, "a");
        drop(running);
        drop(called);
        drop(now(&mut after).unwrap());
        assert_eq!(turns.lock().running, 0);
    }
}
