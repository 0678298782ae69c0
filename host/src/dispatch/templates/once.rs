//! Work that all who want it share while it is under way.
//!
//! Owns that it is begun once, and that it goes on without whoever began it. Knows nothing about what the work is. Invariant: however it
//! ends, it is forgotten then, so that somebody can try again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::Key;
use crate::fault::{Code, Fault};

/// Work that is under way. Dropping it does not end it.
pub(super) type Shares<T> = Shared<BoxFuture<'static, Result<T, Fault>>>;

type UnderWay<T> = Arc<Mutex<HashMap<Key, Shares<T>>>>;

/// The work of one kind that is under way.
pub(super) struct Once<T>(UnderWay<T>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Clone + Send + Sync + 'static> Once<T> {
    /// What is under way for a key.
    pub(super) fn under_way(&self, key: &Key) -> Option<Shares<T>> {
        lock(&self.0).get(key).cloned()
    }

    /// What is under way for a key, or `work`, which begins now; and whether it does.
    ///
    /// # Errors
    /// Of the result: those of the work; `draining` when the node stopped before its end; `internal` when it panicked.
    pub(super) fn begin<W>(&self, key: &Key, work: impl FnOnce() -> W) -> (Shares<T>, bool)
    where
        W: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let mut under_way = lock(&self.0);
        if let Some(running) = under_way.get(key) {
            return (running.clone(), false);
        }
        let (work, all, mine) = (work(), self.0.clone(), key.clone());
        let task = tokio::spawn(async move {
            // Made here: a runtime that is closing drops what is spawned at once, and the lock is held.
            let _ends = Ends(all, mine);
            work.await
        });
        let ended = |error: tokio::task::JoinError| match error.is_cancelled() {
            true => Fault::new(Code::Draining, "the node is shutting down"),
            false => Fault::internal(error),
        };
        let shares = async move { task.await.unwrap_or_else(|error| Err(ended(error))) }.boxed().shared();
        under_way.insert(key.clone(), shares.clone());
        (shares, true)
    }
}

fn lock<T>(under_way: &UnderWay<T>) -> MutexGuard<'_, HashMap<Key, Shares<T>>> {
    // Whole after every statement that changes it.
    under_way.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Ends<T>(UnderWay<T>, Key);

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        lock(&self.0).remove(&self.1);
    }
}
