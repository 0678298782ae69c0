//! Shares: places for work that may wait for a disk or for another machine, of which no tenant gets all.
//!
//! Owns who has how many. Knows nothing about the work. Invariant: at most [`Shares::max`] have a place at once, and at most
//! [`Shares::each_max`] of one tenant. Who waits comes to its place in the order of coming, of those of its tenant that wait for one of theirs;
//! so before a tenant's first there are never more than a share of each other tenant.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::id::TenantId;

/// See the module.
#[derive(Debug)]
pub struct Shares {
    max: usize,
    all: Arc<Semaphore>,
    /// Of tenants that have or wait for a place.
    tenants: Mutex<HashMap<TenantId, Weak<Semaphore>>>,
}

/// What one tenant may have of the places.
#[derive(Debug, Clone)]
pub struct Share {
    own: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Shares {
    /// So many places.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { max, all: Arc::new(Semaphore::new(max)), tenants: Mutex::default() }
    }

    /// Places in all.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max
    }

    /// Places of one tenant at once: three of four.
    #[must_use]
    pub fn each_max(&self) -> usize {
        self.max - self.max.div_ceil(4)
    }

    /// The share of a tenant.
    ///
    /// # Cost
    /// A lock; a look at each tenant that is known here if this one is not.
    pub fn of(&self, tenant: &TenantId) -> Share {
        // No code panics while it holds the lock.
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let own = tenants.get(tenant).and_then(Weak::upgrade).unwrap_or_else(|| {
            tenants.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Semaphore::new(self.each_max()));
            tenants.insert(tenant.clone(), Arc::downgrade(&own));
            own
        });
        Share { own, all: Arc::clone(&self.all) }
    }
}

impl Share {
    /// Waits for a place: first among those of the tenant, then among all.
    ///
    /// # Errors
    /// None in practice: nobody closes the places.
    ///
    /// # Cancellation
    /// Dropping it gives back what it has.
    pub async fn take(&self) -> Result<Turn, AcquireError> {
        let own = Arc::clone(&self.own).acquire_owned().await?;
        let all = Arc::clone(&self.all).acquire_owned().await?;
        Ok(Turn { _own: own, _all: all })
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    #[test]
    fn a_flood_of_one_tenant_leaves_places_for_others() {
        let shares = Shares::new(8);
        let flood = shares.of(&tenant("flood"));
        let held: Vec<Turn> = (0..6).map(|_| flood.take().now_or_never().unwrap().unwrap()).collect();
        // A share is of the tenant, not of whoever asks for it.
        let again = shares.of(&tenant("flood"));
        let mut waiting: Vec<_> = (0..1000).map(|_| Box::pin(again.take())).collect();
        assert!(waiting.iter_mut().all(|waiting| waiting.now_or_never().is_none()), "6 of 8 are all that it gets");
        let other = shares.of(&tenant("other"));
        let two: Vec<Turn> = (0..2).map(|_| other.take().now_or_never().unwrap().unwrap()).collect();
        assert!(other.take().now_or_never().is_none(), "8 are all that there are");
        drop(two);
        drop(held);
        assert!(other.take().now_or_never().is_some());
    }

    #[test]
    fn between_tenants_places_go_in_the_order_of_coming() {
        let shares = Shares::new(4);
        let (a, b) = (shares.of(&tenant("a")), shares.of(&tenant("b")));
        let mut held: Vec<Turn> = (0..3).map(|_| a.take().now_or_never().unwrap().unwrap()).collect();
        let last = b.take().now_or_never().unwrap().unwrap();
        // A thousand of the first wait for places of their own, so the second is the next.
        let mut flood: Vec<_> = (0..1000).map(|_| Box::pin(a.take())).collect();
        assert!(flood.iter_mut().all(|waiting| waiting.now_or_never().is_none()));
        let mut next = Box::pin(b.take());
        assert!(next.as_mut().now_or_never().is_none());
        held.pop();
        assert!(next.now_or_never().is_some());
        drop((last, flood));
    }

    #[test]
    fn nothing_is_kept_of_tenants_that_are_done() {
        let shares = Shares::new(4);
        for number in 0..1000 {
            drop(shares.of(&tenant(&format!("t{number}"))));
        }
        assert_eq!(shares.tenants.lock().unwrap().len(), 1);
        assert_eq!((Shares::new(4).each_max(), Shares::new(8).each_max(), Shares::new(16).each_max()), (3, 6, 12));
    }
}
