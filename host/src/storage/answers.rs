//! Kept answers: what changes answered that may be asked for again, in the file that the change itself is in.
//!
//! ```text
//! table          key                                  value
//! answers        (tenant, digest of key and caller)   half of a BLAKE3 over tenant, digest and the rest | digest of the request |
//!                                                     until in ms u64 | status u16 | number of headers u8 | each: length u16, name,
//!                                                     length u16, value | body
//! answers-until  (until in ms, tenant, digest)        nothing
//! answers-of     tenant                               answers that it has; one for each KiB that one begins
//! ```
//!
//! Owns these tables, which the registry and the data each have. Knows nothing about what was changed. Invariant: an answer is written in the
//! transaction of its change and read as it was written; one whose time is up is not found, and sweeping removes it.

use http::{HeaderName, HeaderValue, StatusCode};
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

use crate::id::{Digest, TenantId};
use crate::idempotency::{Answer, KeptAnswer, NotKept, Ticket};

type Id<'a> = (&'a str, &'a [u8]);

const ANSWERS: TableDefinition<'_, Id<'_>, &[u8]> = TableDefinition::new("answers");
const UNTIL: TableDefinition<'_, (u64, &str, &[u8]), ()> = TableDefinition::new("answers-until");
const COUNTS: TableDefinition<'_, &str, u64> = TableDefinition::new("answers-of");

/// Bytes of a row that count as one answer.
const UNIT_BYTES: usize = 1 << 10;
/// Answers that one sweep removes.
const SWEEP_MAX: usize = 256;

const HASH_LEN: usize = 16;
const DIGEST_LEN: usize = 32;

/// What can go wrong with them.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    /// The file failed.
    #[error(transparent)]
    Storage(#[from] redb::Error),
    /// A row is not what was written.
    #[error("a kept answer of tenant '{0}' is not what was written")]
    Damaged(TenantId),
    /// It may not be kept.
    #[error(transparent)]
    NotKept(#[from] NotKept),
}

fn failed(error: impl Into<redb::Error>) -> AnswerError {
    AnswerError::Storage(error.into())
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Swept {
    /// How many it removed.
    pub(crate) count: usize,
    /// When there is something to remove again.
    pub(crate) next_ms: Option<u64>,
}

/// Makes the tables, so that readers find them.
pub(crate) fn prepare(txn: &WriteTransaction) -> Result<(), AnswerError> {
    txn.open_table(ANSWERS).map_err(failed)?;
    txn.open_table(UNTIL).map_err(failed)?;
    txn.open_table(COUNTS).map_err(failed)?;
    Ok(())
}

/// Whether [`prepare`] has been here; `names`: of all tables.
pub(crate) fn are_there(names: &[String]) -> bool {
    ["answers", "answers-until", "answers-of"].iter().all(|wanted| names.iter().any(|name| name == wanted))
}

/// The answer to a key, unless its time is up.
pub(crate) fn find(
    txn: &ReadTransaction,
    tenant: &TenantId,
    id: &Digest,
    now_ms: u64,
) -> Result<Option<KeptAnswer>, AnswerError> {
    let table = txn.open_table(ANSWERS).map_err(failed)?;
    let row = table.get((tenant.as_str(), id.bytes().as_slice())).map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let (until_ms, kept) = decode(tenant, id, row.value()).ok_or_else(|| AnswerError::Damaged(tenant.clone()))?;
    Ok((until_ms > now_ms).then_some(kept))
}

/// Whether a change may be made with this ticket. Asked in the transaction of the change, before it.
pub(crate) fn admit(txn: &WriteTransaction, ticket: &Ticket, now_ms: u64) -> Result<(), AnswerError> {
    let (tenant, id) = (ticket.begun.tenant(), ticket.begun.id());
    let answers = txn.open_table(ANSWERS).map_err(failed)?;
    if let Some(row) = answers.get((tenant.as_str(), id.bytes().as_slice())).map_err(failed)?
        && until(row.value()).is_none_or(|until_ms| until_ms > now_ms)
    {
        return Err(NotKept::Running.into());
    }
    let counts = txn.open_table(COUNTS).map_err(failed)?;
    let count = counts.get(tenant.as_str()).map_err(failed)?.map_or(0, |count| count.value());
    match count < ticket.answers_max {
        true => Ok(()),
        false => Err(NotKept::Full { max: ticket.answers_max }.into()),
    }
}

/// Keeps an answer, after [`admit`].
pub(crate) fn keep(txn: &WriteTransaction, ticket: &Ticket, now_ms: u64, answer: &Answer) -> Result<(), AnswerError> {
    let (tenant, id) = (ticket.begun.tenant(), ticket.begun.id());
    let until_ms = now_ms.saturating_add(u64::try_from(ticket.time.as_millis()).unwrap_or(u64::MAX));
    let row = encode(tenant, &id, &ticket.request, until_ms, answer);
    let key = (tenant.as_str(), id.bytes().as_slice());
    // What is there has expired.
    remove(txn, key)?;
    txn.open_table(ANSWERS).map_err(failed)?.insert(key, row.as_slice()).map_err(failed)?;
    txn.open_table(UNTIL).map_err(failed)?.insert((until_ms, key.0, key.1), ()).map_err(failed)?;
    count(txn, key.0, |count| count.saturating_add(units(&row)))
}

/// Removes some whose time is up, of all tenants, the oldest first.
pub(crate) fn sweep(txn: &WriteTransaction, now_ms: u64) -> Result<Swept, AnswerError> {
    let (mut due, mut next_ms) = (Vec::new(), None);
    {
        let table = txn.open_table(UNTIL).map_err(failed)?;
        for entry in table.iter().map_err(failed)? {
            let (key, _) = entry.map_err(failed)?;
            let (until_ms, tenant, id) = key.value();
            if until_ms > now_ms || due.len() >= SWEEP_MAX {
                next_ms = Some(until_ms);
                break;
            }
            due.push((until_ms, tenant.to_owned(), id.to_vec()));
        }
    }
    for (until_ms, tenant, id) in &due {
        let key = (tenant.as_str(), id.as_slice());
        remove(txn, key)?;
        // Its own row goes with it, unless that was damaged.
        txn.open_table(UNTIL).map_err(failed)?.remove((*until_ms, key.0, key.1)).map_err(failed)?;
    }
    Ok(Swept { count: due.len(), next_ms })
}

/// Removes all answers of a tenant: one that is made anew under its name is another. Returns how many there were.
pub(crate) fn forget(txn: &WriteTransaction, tenant: &TenantId) -> Result<usize, AnswerError> {
    let mut all = Vec::new();
    for entry in txn.open_table(ANSWERS).map_err(failed)?.range((tenant.as_str(), &[][..])..).map_err(failed)? {
        let (key, _) = entry.map_err(failed)?;
        let (of, id) = key.value();
        if of != tenant.as_str() {
            break;
        }
        all.push(id.to_vec());
    }
    for id in &all {
        remove(txn, (tenant.as_str(), id))?;
    }
    Ok(all.len())
}

/// Whether a tenant has any, their time up or not.
pub(crate) fn has_any(txn: &ReadTransaction, tenant: &TenantId) -> Result<bool, AnswerError> {
    let table = txn.open_table(ANSWERS).map_err(failed)?;
    let first = table.range((tenant.as_str(), &[][..])..).map_err(failed)?.next().transpose().map_err(failed)?;
    Ok(first.is_some_and(|(key, _)| key.value().0 == tenant.as_str()))
}

/// Whether there is something to sweep.
pub(crate) fn is_due(txn: &ReadTransaction, now_ms: u64) -> Result<bool, AnswerError> {
    let table = txn.open_table(UNTIL).map_err(failed)?;
    let first = table.first().map_err(failed)?;
    Ok(first.is_some_and(|(key, _)| key.value().0 <= now_ms))
}

fn remove(txn: &WriteTransaction, key: Id<'_>) -> Result<(), AnswerError> {
    let old = txn.open_table(ANSWERS).map_err(failed)?.remove(key).map_err(failed)?.map(|row| row.value().to_vec());
    let Some(old) = old else { return Ok(()) };
    if let Some(until_ms) = until(&old) {
        txn.open_table(UNTIL).map_err(failed)?.remove((until_ms, key.0, key.1)).map_err(failed)?;
    }
    count(txn, key.0, |count| count.saturating_sub(units(&old)))
}

fn count(txn: &WriteTransaction, tenant: &str, change: impl FnOnce(u64) -> u64) -> Result<(), AnswerError> {
    let mut counts = txn.open_table(COUNTS).map_err(failed)?;
    let before = counts.get(tenant).map_err(failed)?.map_or(0, |count| count.value());
    match change(before) {
        0 => counts.remove(tenant).map_err(failed)?,
        after => counts.insert(tenant, after).map_err(failed)?,
    };
    Ok(())
}

/// What a row counts.
fn units(row: &[u8]) -> u64 {
    row.len().div_ceil(UNIT_BYTES) as u64
}

fn hash(tenant: &TenantId, id: &Digest, rest: &[u8]) -> [u8; HASH_LEN] {
    let mut hasher = blake3::Hasher::new();
    for part in [tenant.as_str().as_bytes(), id.bytes(), rest] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    let mut half = [0; HASH_LEN];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..HASH_LEN]);
    half
}

fn encode(tenant: &TenantId, id: &Digest, request: &Digest, until_ms: u64, answer: &Answer) -> Vec<u8> {
    let mut rest = Vec::with_capacity(64 + answer.body().len());
    rest.extend(request.bytes());
    rest.extend(until_ms.to_le_bytes());
    rest.extend(answer.status().as_u16().to_le_bytes());
    rest.push(u8::try_from(answer.headers().len()).expect("an answer of the control port has a handful of headers"));
    for (name, value) in answer.headers() {
        for text in [name.as_str().as_bytes(), value.as_bytes()] {
            rest.extend(u16::try_from(text.len()).expect("a header of the control port's own is short").to_le_bytes());
            rest.extend(text);
        }
    }
    rest.extend_from_slice(answer.body());
    [hash(tenant, id, &rest).as_slice(), &rest].concat()
}

/// Until when a row is kept.
fn until(row: &[u8]) -> Option<u64> {
    Some(u64::from_le_bytes(*row.get(HASH_LEN + DIGEST_LEN..)?.first_chunk()?))
}

fn decode(tenant: &TenantId, id: &Digest, row: &[u8]) -> Option<(u64, KeptAnswer)> {
    let (found, rest) = row.split_first_chunk::<HASH_LEN>()?;
    if hash(tenant, id, rest) != *found {
        return None;
    }
    let (request, rest) = rest.split_first_chunk::<DIGEST_LEN>()?;
    let (until_ms, rest) = rest.split_first_chunk::<8>()?;
    let (status, rest) = rest.split_first_chunk::<2>()?;
    let (count, mut rest) = rest.split_first()?;
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::from_u16(u16::from_le_bytes(*status)).ok()?;
    for _ in 0..*count {
        let (name, after) = text(rest)?;
        let (value, after) = text(after)?;
        rest = after;
        answer.headers_mut().append(HeaderName::from_bytes(name).ok()?, HeaderValue::from_bytes(value).ok()?);
    }
    *answer.body_mut() = bytes::Bytes::copy_from_slice(rest);
    Some((u64::from_le_bytes(*until_ms), KeptAnswer { request: Digest::from_bytes(*request), answer }))
}

fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use redb::{Database, ReadableDatabase as _, ReadableTableMetadata as _};

    use super::*;
    use crate::idempotency::Running;

    fn file() -> Database {
        let db = Database::builder().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap();
        let txn = db.begin_write().unwrap();
        prepare(&txn).unwrap();
        txn.commit().unwrap();
        db
    }

    fn answer(body: &[u8]) -> Answer {
        let answer = http::Response::builder().status(201).header("etag", "\"7\"").header("content-type", "application/json");
        answer.body(bytes::Bytes::copy_from_slice(body)).unwrap()
    }

    /// Keeps an answer at `now_ms` for a second.
    fn keep_one(db: &Database, tenant: &str, key: &str, now_ms: u64, body: &[u8]) -> Result<(), AnswerError> {
        let begun = Running::default().begin(&tenant.parse().unwrap(), Digest::of(key.as_bytes())).unwrap();
        let ticket = Ticket { begun, request: Digest::of(b"request"), time: Duration::from_secs(1), answers_max: 3 };
        let txn = db.begin_write().unwrap();
        admit(&txn, &ticket, now_ms)?;
        keep(&txn, &ticket, now_ms, &answer(body))?;
        txn.commit().unwrap();
        Ok(())
    }

    fn found(db: &Database, tenant: &str, key: &str, now_ms: u64) -> Option<KeptAnswer> {
        let txn = db.begin_read().unwrap();
        find(&txn, &tenant.parse().unwrap(), &Digest::of(key.as_bytes()), now_ms).unwrap()
    }

    fn counted(db: &Database, tenant: &str) -> u64 {
        let txn = db.begin_read().unwrap();
        txn.open_table(COUNTS).unwrap().get(tenant).unwrap().map_or(0, |count| count.value())
    }

    #[test]
    fn an_answer_is_found_as_it_was_until_its_time_is_up() {
        let db = file();
        keep_one(&db, "a", "k", 10_000, b"body").unwrap();
        let kept = found(&db, "a", "k", 10_999).unwrap();
        assert_eq!((kept.request, kept.answer.status()), (Digest::of(b"request"), StatusCode::CREATED));
        assert_eq!((kept.answer.headers(), kept.answer.body()), (answer(b"").headers(), &bytes::Bytes::from_static(b"body")));
        assert!(found(&db, "a", "k", 11_000).is_none());
        assert!(found(&db, "b", "k", 10_000).is_none() && found(&db, "a", "l", 10_000).is_none());
        assert!(matches!(keep_one(&db, "a", "k", 10_999, b""), Err(AnswerError::NotKept(NotKept::Running))));
        // In place of what is not swept yet, without being counted twice.
        keep_one(&db, "a", "k", 11_000, b"other").unwrap();
        assert_eq!(found(&db, "a", "k", 11_001).unwrap().answer.body().as_ref(), b"other");
        assert_eq!(counted(&db, "a"), 1);
    }

    #[test]
    fn a_tenant_has_so_many_and_a_long_answer_counts_for_several() {
        let db = file();
        for key in ["1", "2", "3"] {
            keep_one(&db, "a", key, 0, b"").unwrap();
        }
        let full = |tenant: &str, now_ms| {
            matches!(keep_one(&db, tenant, "4", now_ms, b""), Err(AnswerError::NotKept(NotKept::Full { max: 3 })))
        };
        assert!(full("a", 0));
        keep_one(&db, "b", "1", 0, &[b'x'; 3 * UNIT_BYTES]).unwrap();
        assert_eq!((counted(&db, "a"), counted(&db, "b")), (3, 4));
        assert!(full("b", 0));
        // Time alone makes no room, sweeping does.
        assert!(full("a", 1000));
        let txn = db.begin_write().unwrap();
        assert_eq!(sweep(&txn, 999).unwrap(), Swept { count: 0, next_ms: Some(1000) });
        assert_eq!(sweep(&txn, 1000).unwrap(), Swept { count: 4, next_ms: None });
        assert_eq!(txn.open_table(ANSWERS).unwrap().len().unwrap() + txn.open_table(UNTIL).unwrap().len().unwrap(), 0);
        txn.commit().unwrap();
        assert_eq!((counted(&db, "a"), counted(&db, "b")), (0, 0));
        assert!(!full("a", 1000));
    }

    #[test]
    fn those_of_a_tenant_that_goes_go() {
        let db = file();
        for (tenant, key) in [("a", "1"), ("a", "2"), ("aa", "1"), ("b", "1")] {
            keep_one(&db, tenant, key, 0, b"").unwrap();
        }
        let has_any = |tenant: &str| super::has_any(&db.begin_read().unwrap(), &tenant.parse().unwrap()).unwrap();
        assert_eq!(["a", "aa", "b", "c", "0"].map(has_any), [true, true, true, false, false]);
        let txn = db.begin_write().unwrap();
        assert_eq!((forget(&txn, &"a".parse().unwrap()).unwrap(), forget(&txn, &"c".parse().unwrap()).unwrap()), (2, 0));
        assert_eq!(txn.open_table(UNTIL).unwrap().len().unwrap(), 2);
        txn.commit().unwrap();
        assert_eq!(["a", "aa"].map(has_any), [false, true]);
        assert!(found(&db, "a", "1", 0).is_none() && found(&db, "aa", "1", 0).is_some() && found(&db, "b", "1", 0).is_some());
        assert_eq!((counted(&db, "a"), counted(&db, "aa")), (0, 1));
    }

    #[test]
    fn a_row_that_was_changed_is_no_answer() {
        let (tenant, id) = ("a".parse().unwrap(), Digest::of(b"k"));
        let row = encode(&tenant, &id, &Digest::of(b"r"), 7, &answer(b"body"));
        assert_eq!(decode(&tenant, &id, &row).unwrap().0, 7);
        assert!(decode(&"b".parse().unwrap(), &id, &row).is_none() && decode(&tenant, &Digest::of(b"l"), &row).is_none());
        for bit in 0..row.len() * 8 {
            let mut bad = row.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&tenant, &id, &bad).is_none(), "bit {bit}");
        }
        for len in 0..row.len() {
            assert!(decode(&tenant, &id, &row[..len]).is_none(), "{len} bytes");
        }
    }
}
