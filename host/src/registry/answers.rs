//! Answers that are kept with changes of the registry.
//!
//! Owns when they are swept: with the next change that keeps one, and when the collector looks at every file. Knows nothing about how
//! they lie in the file (`storage/answers.rs`). Invariant: a change that keeps its answer is there with it, or neither is.

use redb::WriteTransaction;

use super::change::Precondition;
use super::error::{PublishError, RegistryError, storage};
use super::{Commit, Registry, now_ms};
use crate::id::{Digest, TenantId};
use crate::idempotency::{Answer, Keep, KeptAnswer, Ticket};
use crate::storage::answers::{self, AnswerError};

/// On which terms a change is made.
#[derive(Debug)]
pub struct Terms<T> {
    /// What must hold for it.
    pub precondition: Precondition,
    /// What keeps its answer, if that is wanted.
    pub keep: Option<Keep<T>>,
}

impl<T> From<Precondition> for Terms<T> {
    fn from(precondition: Precondition) -> Self {
        Self { precondition, keep: None }
    }
}

impl<T> From<&Precondition> for Terms<T> {
    fn from(precondition: &Precondition) -> Self {
        precondition.clone().into()
    }
}

impl From<AnswerError> for PublishError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::NotKept(error) => Self::NotKept(error),
            other => Self::Registry(other.into()),
        }
    }
}

impl From<AnswerError> for RegistryError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Storage(error) => storage("look after kept answers")(error),
            // The last one is none of reading or making tables, whose errors these are.
            damaged @ (AnswerError::Damaged(_) | AnswerError::NotKept(_)) => Self::Damaged { what: damaged.to_string() },
        }
    }
}

/// Removes some whose time is up.
pub(super) fn sweep(txn: &WriteTransaction) -> Result<(), PublishError> {
    Ok(answers::sweep(txn, now_ms()).map(drop)?)
}

/// Whether a change may be made with this ticket.
pub(super) fn admit(txn: &WriteTransaction, ticket: &Ticket) -> Result<(), PublishError> {
    Ok(answers::admit(txn, ticket, now_ms())?)
}

/// Keeps what it is answered with.
pub(super) fn keep(txn: &WriteTransaction, ticket: &Ticket, answer: &Answer) -> Result<(), PublishError> {
    Ok(answers::keep(txn, ticket, now_ms(), answer)?)
}

impl Registry {
    /// The kept answer to a key, `None` if there is none or its time is up.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn answer(&self, tenant: &TenantId, id: &Digest) -> Result<Option<KeptAnswer>, RegistryError> {
        self.read(|txn| Ok(answers::find(txn, tenant, id, now_ms())?))
    }

    /// Removes the kept answers whose time is up.
    ///
    /// # Errors
    /// Those of storage.
    ///
    /// # Cost
    /// A reading, and a transaction for each 256 that are due.
    pub fn sweep_answers(&self) -> Result<(), PublishError> {
        let now_ms = now_ms();
        while self.read(|txn| Ok(answers::is_due(txn, now_ms)?))? {
            self.write(|txn| Ok((answers::sweep(txn, now_ms)?, Commit::Yes)))?;
        }
        Ok(())
    }
}
