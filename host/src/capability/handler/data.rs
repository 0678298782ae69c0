//! What the calls of `hob1` for data have in common: handles of buckets, answers that are fetched, and errors.
//!
//! ```text
//! bucket_open(name) ──> handle ──> kv_*, object_* ──> a number: done, or the length of an answer, or below 0 an error
//! answer_read(buf, cap)                            ──> that answer; after an error, its text
//! answer_wait(buf, cap)                            ──> what kv_write comes to, if it waits for the disk
//! ```
//!
//! Owns [`DataState`], what an instance holds of its data between two calls. Knows nothing about keys, values or objects (`kv.rs`,
//! `objects.rs`, `mapping.rs`). Invariant: the host keeps at most one answer for a guest, of at most
//! [`BATCH_BYTES_MAX`](crate::data::kv::BATCH_BYTES_MAX) bytes and what frames them, and one write that it has not waited for.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::{Caller, Linker, Result};

use super::objects::ObjectState;
use super::{MODULE, Writer, kv, span};
use crate::capability::data::{AccessError, OpenBucket};
use crate::capability::{Host, Refusal};
use crate::data::kv::Done;
use crate::data::{Ack, DataError};
use crate::grants::Access;
use crate::id::NAME_LEN_MAX;

/// Buckets that one instance may open. Opening one again gives a handle that it has.
const BUCKETS_MAX: usize = crate::manifest::BUCKETS_MAX;

/// What a call answers below 0. `guest-sdk/abi.md` has the same numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// There is no such entry or object. Not an error: no text follows.
    None = -1,
    /// The manifest does not grant it.
    Denied = -2,
    /// There is no such bucket.
    NoBucket = -3,
    /// An argument that no bucket takes.
    Invalid = -4,
    /// Something is longer than its limit.
    TooLarge = -5,
    /// A condition does not hold.
    Conflict = -6,
    /// The disk is full.
    Full = -7,
    /// Too much waits: try again.
    Busy = -8,
    /// It is not what was written.
    Corrupt = -9,
    /// The data cannot be reached or written at present.
    Unavailable = -10,
    /// The instance holds as much as it may: buckets, open objects, uploads, mappings.
    Limit = -11,
    /// The write waits for the disk: `answer_wait`.
    Waits = -12,
    /// The bucket is full.
    Quota = -13,
    /// The operator does not let functions reach this address.
    Prohibited = -14,
    /// Another server did not answer in time.
    Timeout = -15,
    /// There is no such secret.
    NoSecret = -16,
}

impl From<&AccessError> for Errno {
    fn from(error: &AccessError) -> Self {
        let error = match error {
            AccessError::Denied(_) => return Self::Denied,
            AccessError::Absent => return Self::Unavailable,
            AccessError::Data(error) => error,
        };
        match error {
            DataError::NoSuchBucket { .. } => Self::NoBucket,
            DataError::Invalid { .. } | DataError::WrongDigest { .. } | DataError::NotANumber { .. } => Self::Invalid,
            DataError::TooLarge { .. } => Self::TooLarge,
            DataError::Conflict { .. } | DataError::ObjectConflict { .. } => Self::Conflict,
            DataError::Quota { .. } => Self::Quota,
            DataError::StorageFull { .. } | DataError::VolatileFull { .. } => Self::Full,
            DataError::Busy => Self::Busy,
            DataError::Corrupt { .. } | DataError::DamagedRow { .. } | DataError::Damaged { .. } => Self::Corrupt,
            // No guest has a key.
            DataError::NotKept(_)
            | DataError::BucketExists { .. }
            | DataError::ReadOnly { .. }
            | DataError::Storage { .. }
            | DataError::Origin { .. }
            | DataError::Closed => Self::Unavailable,
        }
    }
}

/// What an instance holds of its data.
#[derive(Debug, Default)]
pub struct DataState {
    buckets: Vec<Arc<OpenBucket>>,
    pub(super) objects: ObjectState,
    answer: Bytes,
    write: Option<Ack<Vec<Done>>>,
    has_asked: bool,
}

impl DataState {
    /// Whether the guest has asked for data at all.
    #[must_use]
    pub fn has_asked(&self) -> bool {
        self.has_asked
    }

    /// The bucket of a handle, if the guest may do this with it.
    ///
    /// # Errors
    /// [`Refusal`] for a handle that the host gave nobody; inside, [`AccessError::Denied`].
    pub(super) fn bucket(&self, handle: u32, need: Access) -> Result<Result<&Arc<OpenBucket>, AccessError>> {
        match self.buckets.get(handle as usize) {
            Some(bucket) => Ok(bucket.allow(need).map(|()| bucket)),
            None => Err(Refusal::bad_call(format!("{handle} is the handle of no bucket: call bucket_open first")).into()),
        }
    }

    /// Whether another write may begin: one guest has one in the queue.
    ///
    /// # Errors
    /// [`Refusal`] if there is one that was not waited for.
    pub(super) fn check_idle(&self) -> Result<(), Refusal> {
        match self.write {
            None => Ok(()),
            Some(_) => Err(Refusal::bad_call("the last kv_write still waits: call answer_wait first")),
        }
    }

    /// Keeps a write that waits for the disk.
    pub(super) fn wait(&mut self, write: Ack<Vec<Done>>) -> i32 {
        self.write = Some(write);
        Errno::Waits as i32
    }
}

/// Gives the guest an answer of `len` bytes, which `write` writes: in its buffer if it fits there, else it is kept. Its length.
pub(super) fn deliver(
    caller: &mut Caller<'_, Host>,
    buf: u32,
    cap: u32,
    len: usize,
    write: impl FnOnce(&mut Writer<'_>),
) -> Result<i32> {
    let (buffer, host) = span(caller, buf, cap)?;
    if let Some(buffer) = buffer.get_mut(..len) {
        write(&mut Writer(buffer));
        return Ok(i32::try_from(len).unwrap_or(i32::MAX));
    }
    let mut answer = vec![0; len];
    write(&mut Writer(&mut answer));
    Ok(host.answer(answer))
}

/// As [`deliver`], with an answer that is there: `keep` makes what is kept of it.
pub(super) fn deliver_or(
    caller: &mut Caller<'_, Host>,
    buf: u32,
    cap: u32,
    answer: &[u8],
    keep: impl FnOnce() -> Bytes,
) -> Result<i32> {
    let (buffer, host) = span(caller, buf, cap)?;
    match buffer.get_mut(..answer.len()) {
        Some(buffer) => {
            buffer.copy_from_slice(answer);
            Ok(i32::try_from(answer.len()).unwrap_or(i32::MAX))
        }
        None => Ok(host.answer(keep())),
    }
}

impl Host {
    /// Keeps an answer for the guest to fetch; its length.
    fn answer(&mut self, answer: impl Into<Bytes>) -> i32 {
        self.data.answer = answer.into();
        // Far below 2 GiB: pages and batches are bounded.
        i32::try_from(self.data.answer.len()).unwrap_or(i32::MAX)
    }

    /// Keeps the text of an error for the guest to fetch; its number. Says in the function's log what would have allowed what was
    /// denied.
    pub(super) fn refuse(&mut self, error: &AccessError) -> i32 {
        self.explain_data(error);
        self.data.answer = Bytes::from(error.text().into_bytes());
        Errno::from(error) as i32
    }

    /// As [`Host::refuse`], for a limit of the instance's own.
    pub(super) fn refuse_limit(&mut self, text: String) -> i32 {
        self.refuse_as(Errno::Limit, text)
    }

    /// As [`Host::refuse`], with words for what is no error of data.
    pub(super) fn refuse_as(&mut self, errno: Errno, text: String) -> i32 {
        self.data.answer = Bytes::from(text.into_bytes());
        errno as i32
    }
}

/// Links the calls of this file.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "bucket_open", bucket_open)?;
    linker.func_wrap(MODULE, "answer_read", answer_read)?;
    linker.func_wrap_async(MODULE, "answer_wait", |caller: Caller<'_, Host>, (buf, cap): (u32, u32)| {
        Box::new(answer_wait(caller, buf, cap))
    })?;
    Ok(())
}

fn bucket_open(mut caller: Caller<'_, Host>, name: u32, name_len: u32) -> Result<i32> {
    let (name, host) = span(&mut caller, name, name_len)?;
    host.data.has_asked = true;
    // Copied before it is looked at: the memory may be an object that is mapped, and is taken away from a guest that wrote too much to it.
    // Of a longer name the beginning is one that no bucket has either.
    let name = name.get(..=NAME_LEN_MAX).unwrap_or(name).to_vec();
    // No bucket has a name that is not text, so none is granted.
    let opened = host.environment.data.open(&String::from_utf8_lossy(&name));
    let bucket = match opened {
        Ok(bucket) => bucket,
        Err(error) => return Ok(host.refuse(&error)),
    };
    let buckets = &mut host.data.buckets;
    let handle = match buckets.iter().position(|open| Arc::ptr_eq(open, &bucket)) {
        Some(handle) => handle,
        None if buckets.len() == BUCKETS_MAX => {
            return Ok(host.refuse_limit(format!("an instance opens at most {BUCKETS_MAX} buckets")));
        }
        None => {
            buckets.push(bucket);
            buckets.len() - 1
        }
    };
    Ok(i32::try_from(handle).unwrap_or(i32::MAX))
}

/// Copies the answer that waits, or its beginning, and lets go of it. Returns its whole length.
fn answer_read(mut caller: Caller<'_, Host>, buf: u32, cap: u32) -> Result<i32> {
    let (buffer, host) = span(&mut caller, buf, cap)?;
    let answer = std::mem::take(&mut host.data.answer);
    let count = buffer.len().min(answer.len());
    buffer[..count].copy_from_slice(&answer[..count]);
    Ok(i32::try_from(answer.len()).unwrap_or(i32::MAX))
}

/// Waits for the write that was begun. A guest that ends meanwhile does not undo it.
async fn answer_wait(mut caller: Caller<'_, Host>, buf: u32, cap: u32) -> Result<i32> {
    let (_, host) = span(&mut caller, buf, cap)?;
    let Some(write) = host.data.write.take() else {
        return Err(Refusal::bad_call("there is nothing to wait for: answer_wait follows a kv_write that returned -12").into());
    };
    match write.await {
        Ok(done) => kv::answer_done(&mut caller, buf, cap, &done),
        Err(error) => Ok(caller.data_mut().refuse(&error.into())),
    }
}
