//! Answers that are kept with writes.
//!
//! Owns how a job of the store becomes one that keeps its answer. Knows nothing about how they lie in the file (`storage/answers.rs`).
//! Invariant: a write that keeps its answer is there with it, or neither is.

use std::sync::Arc;

use redb::WriteTransaction;

use super::kv::{Done, Op};
use super::store::{Ack, Commit, Swept};
use super::{Bucket, Data, DataError, Handle};
use crate::id::{Digest, TenantId};
use crate::idempotency::{Keep, KeptAnswer, Ticket};
use crate::storage::answers;

/// Removes what has expired; see [`super::Sweep`].
pub(super) fn sweep(txn: &WriteTransaction, now_ms: u64) -> Result<Swept, DataError> {
    let swept = answers::sweep(txn, now_ms)?;
    Ok(Swept { commit: if swept.count > 0 { Commit::Yes } else { Commit::No }, next_ms: swept.next_ms })
}

/// What a job did.
type Did<T> = Result<(T, Commit), DataError>;

/// A job of the store that keeps its answer, if that is wanted; and what must live until the job's answer goes out: the key is in use until
/// what is kept under it can be read.
pub(super) fn once<T>(
    keep: Option<Keep<T>>,
    op: impl FnOnce(&WriteTransaction, u64) -> Did<T>,
) -> (impl FnOnce(&WriteTransaction, u64) -> Did<T>, Option<Arc<Ticket>>) {
    let (ticket, make) = keep.map(|keep| (Arc::new(keep.ticket), keep.make)).unzip();
    let in_use = ticket.clone();
    let op = move |txn: &WriteTransaction, now_ms| {
        let Some((ticket, make)) = ticket.zip(make) else { return op(txn, now_ms) };
        // First, because what is refused must have changed nothing.
        answers::admit(txn, &ticket, now_ms)?;
        let (done, commit) = op(txn, now_ms)?;
        let Some(answer) = make(&done) else { return Ok((done, commit)) };
        answers::keep(txn, &ticket, now_ms, &answer)?;
        Ok((done, Commit::Yes))
    };
    (op, in_use)
}

impl Data {
    /// The kept answer to a key, `None` if there is none or its time is up.
    ///
    /// # Errors
    /// Those of storage.
    pub fn answer(&self, tenant: &TenantId, id: &Digest) -> Result<Option<KeptAnswer>, DataError> {
        self.store.read(|txn| Ok(answers::find(txn, tenant, id, self.store.clock().now_ms())?))
    }

    /// Forgets all kept answers of a tenant; where there are none, also if nothing can be written. Blocks.
    ///
    /// # Errors
    /// Those of storage.
    pub fn forget_answers(&self, tenant: &TenantId) -> Result<(), DataError> {
        if !self.store.read(|txn| Ok(answers::has_any(txn, tenant)?))? {
            return Ok(());
        }
        let tenant = tenant.clone();
        let op = move |txn: &WriteTransaction, _now_ms| match answers::forget(txn, &tenant)? {
            0 => Ok(((), Commit::No)),
            _ => Ok(((), Commit::Yes)),
        };
        self.store.remove(0, op).wait()
    }

    /// As [`super::kv::KeyValue::write`], with the answer in the same commit.
    ///
    /// # Errors
    /// As there, [`DataError::NotKept`], and [`DataError::Invalid`] for a volatile bucket, which forgets what an answer would speak of.
    pub fn write_once(&self, bucket: &Bucket, ops: Vec<Op>, keep: Keep<Vec<Done>>) -> Ack<Vec<Done>> {
        match self.handle(bucket) {
            Ok(Handle::Durable(durable)) => durable.write_once(ops, keep),
            Ok(Handle::Volatile(_)) => {
                let what = format!("bucket '{}' is volatile, and an 'idempotency-key' was sent", bucket.name);
                let expected = "a durable bucket, or no key: what a kept answer speaks of must outlive the node".into();
                Ack::ready(Err(DataError::Invalid { what, expected }))
            }
            Err(error) => Ack::ready(Err(error)),
        }
    }
}
