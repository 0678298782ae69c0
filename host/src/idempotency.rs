//! Changes that may be asked for again: with one `Idempotency-Key` one change is made, however often its request comes.
//!
//! ```text
//! Running::begin ──> Begun    while it lives, the same key is refused: `idempotency-key-running`
//! Ticket = Begun + what was asked ──> with it a change keeps its answer, in the transaction that makes the change
//! ```
//!
//! Owns these words and the places of what runs. Knows neither requests nor where answers lie (`storage/answers.rs`). Invariant: of two
//! changes with one key at most one runs at a time, so that the second finds what the first kept.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::fault::{Code, Fault};
use crate::id::{Digest, TenantId};

/// Longest key in bytes; the shortest has one.
pub const KEY_LEN_MAX: usize = 255;

/// When a client may ask again whose first request still runs.
const RUNNING_RETRY: Duration = Duration::from_secs(1);

/// What a change was answered with.
pub type Answer = http::Response<Bytes>;

/// An answer as it is found again.
#[derive(Debug)]
pub struct KeptAnswer {
    /// Digest of the request that it answers.
    pub request: Digest,
    /// The answer.
    pub answer: Answer,
}

/// Why a change is not made that would have to keep its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// Another one with the same key got there first.
    #[error("the first request with this key is still under way: ask again in a moment, and it is answered as the first one was")]
    Running,
    /// The tenant has as many kept answers as it may.
    #[error("the tenant has {max} kept answers, and no more are allowed: nothing was changed")]
    Full {
        /// How many it may have.
        max: u64,
    },
}

impl NotKept {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Running => Fault::new(Code::IdempotencyKeyRunning, self.to_string()).retry_after(RUNNING_RETRY),
            Self::Full { .. } => Fault::new(Code::QuotaExceeded, self.to_string()).hint(
                "wait until the oldest is older than data.answers_time, leave the header 'idempotency-key' out, or raise data.answers_max",
            ),
        }
    }
}

/// Which keys are in use now, by tenant. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Running(Arc<Mutex<HashSet<(TenantId, Digest)>>>);

/// A key in use; not any more when this is dropped.
#[derive(Debug)]
pub struct Begun {
    running: Running,
    key: (TenantId, Digest),
}

impl Running {
    /// Takes a key into use. `id`: digest of the key and of who uses it.
    ///
    /// # Errors
    /// [`NotKept::Running`] if it is in use.
    pub fn begin(&self, tenant: &TenantId, id: Digest) -> Result<Begun, NotKept> {
        let key = (tenant.clone(), id);
        match self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone()) {
            true => Ok(Begun { running: self.clone(), key }),
            false => Err(NotKept::Running),
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.running.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

impl Begun {
    /// Whose it is.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.key.0
    }

    /// Digest of the key and of who uses it.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.key.1
    }
}

/// Entitles to one change that keeps its answer. It must live until the change is durable.
#[derive(Debug)]
pub struct Ticket {
    /// The key.
    pub begun: Begun,
    /// Digest of what was asked.
    pub request: Digest,
    /// How long the answer is kept.
    pub time: Duration,
    /// Kept answers that the tenant may have; see `data.answers_max`.
    pub answers_max: u64,
}

/// What makes the answer of what was done; `None`: nothing was done that would be done again.
pub type Make<T> = Box<dyn FnOnce(&T) -> Option<Answer> + Send>;

/// A ticket, and what makes the answer of what was done.
pub struct Keep<T> {
    /// The ticket.
    pub ticket: Ticket,
    /// Makes the answer.
    pub make: Make<T>,
}

impl<T> Keep<T> {
    /// Both together.
    pub fn new(ticket: Ticket, make: impl FnOnce(&T) -> Option<Answer> + Send + 'static) -> Self {
        Self { ticket, make: Box::new(make) }
    }
}

impl<T> fmt::Debug for Keep<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keep").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_use_until_its_place_is_dropped_and_only_for_its_tenant() {
        let running = Running::default();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let id = Digest::of(b"k");
        let begun = running.begin(&a, id).unwrap();
        assert_eq!(running.begin(&a, id).unwrap_err(), NotKept::Running);
        let _other_tenant = running.begin(&b, id).unwrap();
        let _other_key = running.begin(&a, Digest::of(b"l")).unwrap();
        drop(begun);
        running.begin(&a, id).unwrap();
    }
}
