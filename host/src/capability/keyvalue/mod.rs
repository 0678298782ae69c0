//! `wasi:keyvalue`: the entries of granted buckets, for components.
//!
//! Owns what the two versions have in common: `draft.rs` is 0.2.0-draft, as wasmCloud and `wasmtime serve` have it, `draft2.rs` is
//! 0.2.0-draft2, as Spin has it. Each translates its interface to the calls here. Knows nothing about grants (`capability/data.rs`) and
//! how entries are kept (`data`). Invariant: a handle holds a bucket and at most a key, never a value, so that what the host
//! keeps for a guest is bounded by the number of its handles.
//!
//! A bucket is opened by its name. Keys are text here: entries whose keys are none are there, and are not listed.

mod draft;
mod draft2;

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use wasmtime::Result;
use wasmtime::component::{Linker, Resource, ResourceTableError};

use super::data::{AccessError, OpenBucket};
use super::{HANDLES_MAX, Host};
use crate::data::kv::{Done, Entry, KeyValue, Op, PAGE_ENTRIES_MAX, When};
use crate::data::{BucketId, DataError};
use crate::grants::Access;

/// Cursors of 0.2.0-draft that an instance may go on from; the oldest is forgotten. Its cursors are numbers, so the host has to
/// keep what they stand for.
pub const CURSORS_MAX: usize = 256;

/// Links both versions.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    draft::link(linker)?;
    draft2::link(linker)
}

/// A bucket that a guest has a handle of.
#[derive(Debug)]
pub struct Bucket(Arc<OpenBucket>);

/// A read that a swap builds on.
#[derive(Debug)]
pub struct Cas {
    bucket: Arc<OpenBucket>,
    key: Bytes,
    /// Version of the entry when it was last read through this handle; `None` if there was none.
    version: Option<u64>,
}

/// What the interface answers instead of a value.
#[derive(Debug)]
pub enum Failure {
    /// There is no such bucket.
    NoSuchStore,
    /// The manifest does not grant it.
    AccessDenied,
    /// All else, in words for the guest.
    Other(String),
    /// The guest broke the rules of handles.
    Trap(wasmtime::Error),
}

impl From<AccessError> for Failure {
    fn from(error: AccessError) -> Self {
        match &error {
            AccessError::Denied(_) => Self::AccessDenied,
            AccessError::Data(DataError::NoSuchBucket { .. }) => Self::NoSuchStore,
            AccessError::Absent | AccessError::Data(_) => Self::Other(error.text()),
        }
    }
}

impl From<DataError> for Failure {
    fn from(error: DataError) -> Self {
        AccessError::from(error).into()
    }
}

impl From<ResourceTableError> for Failure {
    fn from(error: ResourceTableError) -> Self {
        match error {
            ResourceTableError::Full => Self::Other(format!("a function holds at most {HANDLES_MAX} handles: drop some first")),
            error => Self::Trap(error.into()),
        }
    }
}

/// Where lists of one instance may go on, by number.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    kept: VecDeque<(BucketId, Bytes)>,
    /// Number of the first that is kept.
    first: u64,
}

impl Cursors {
    fn keep(&mut self, bucket: BucketId, after: Bytes) -> u64 {
        if self.kept.len() == CURSORS_MAX {
            self.kept.pop_front();
            self.first += 1;
        }
        self.kept.push_back((bucket, after));
        self.first + self.kept.len() as u64 - 1
    }

    fn find(&self, bucket: BucketId, number: u64) -> Result<Bytes, Failure> {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let found = at.and_then(|at| self.kept.get(at)).filter(|(of, _)| *of == bucket);
        let unknown = || {
            let text = "is not known: a cursor is good for its bucket, in the invocation that got it, until 256 later ones";
            Failure::Other(format!("the cursor {number} {text}"))
        };
        const { assert!(CURSORS_MAX == 256, "the text says so") };
        found.map(|(_, after)| after.clone()).ok_or_else(unknown)
    }
}

/// Keys of one page, and where the next one begins.
struct Keys {
    keys: Vec<String>,
    next: Option<Bytes>,
}

impl Host {
    fn kv_open(&mut self, name: &str) -> Result<Resource<Bucket>, Failure> {
        let bucket = self.open_bucket(name)?;
        Ok(self.table.push(Bucket(bucket))?)
    }

    fn kv_bucket(&self, handle: &Resource<Bucket>) -> Result<&Arc<OpenBucket>, Failure> {
        Ok(&self.table.get(handle)?.0)
    }

    /// The entries behind a handle, for this use.
    fn kv(&self, handle: &Resource<Bucket>, need: Access) -> Result<&dyn KeyValue, Failure> {
        let bucket = self.kv_bucket(handle)?;
        self.allow(bucket, need)?;
        Ok(&*bucket.kv)
    }

    fn kv_get(&self, handle: &Resource<Bucket>, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        Ok(self.kv(handle, Access::Read)?.get(key.as_bytes())?.map(value))
    }

    fn kv_exists(&self, handle: &Resource<Bucket>, key: &str) -> Result<bool, Failure> {
        Ok(self.kv(handle, Access::Read)?.exists(key.as_bytes())?)
    }

    /// In the order of the keys, each as it was given.
    fn kv_get_many(&self, handle: &Resource<Bucket>, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        let keys: Vec<_> = keys.iter().map(String::as_bytes).collect();
        let found = self.kv(handle, Access::Read)?.get_many(&keys)?;
        found.into_iter().map(|entry| Ok(entry?.map(value))).collect()
    }

    /// All of it happens, or nothing.
    async fn kv_write(&mut self, handle: &Resource<Bucket>, ops: Vec<Op>) -> Result<Vec<Done>, Failure> {
        let ack = self.kv(handle, Access::ReadWrite)?.write(ops);
        Ok(ack.await?)
    }

    async fn kv_increment(&mut self, handle: &Resource<Bucket>, key: String, by: i64) -> Result<i64, Failure> {
        let done = self.kv_write(handle, vec![Op::Increment { key: key.into(), by }]).await?;
        match done.first() {
            Some(Done::Incremented { value, .. }) => Ok(*value),
            _ => Err(Failure::Trap(wasmtime::format_err!("an increment was answered with {done:?}"))),
        }
    }

    fn kv_list(&self, handle: &Resource<Bucket>, after: Option<&[u8]>) -> Result<Keys, Failure> {
        let page = self.kv(handle, Access::Read)?.scan(b"", after, PAGE_ENTRIES_MAX)?;
        let keys = page.entries.iter().filter_map(|(key, _)| std::str::from_utf8(key).ok()).map(str::to_owned).collect();
        Ok(Keys { keys, next: page.next })
    }

    fn cas_new(&mut self, handle: &Resource<Bucket>, key: String) -> Result<Resource<Cas>, Failure> {
        let version = self.kv(handle, Access::Read)?.get(key.as_bytes())?.map(|entry| entry.version);
        let bucket = self.kv_bucket(handle)?.clone();
        Ok(self.table.push(Cas { bucket, key: key.into(), version })?)
    }

    /// Reads anew: the swap then builds on what this answered.
    fn cas_current(&mut self, handle: &Resource<Cas>) -> Result<Option<Vec<u8>>, Failure> {
        let cas = self.table.get_mut(handle)?;
        let found = cas.bucket.kv.get(&cas.key)?;
        cas.version = found.as_ref().map(|entry| entry.version);
        Ok(found.map(value))
    }

    /// `Ok(Some)`: it was too late, and this is a handle to try again with.
    async fn cas_swap(&mut self, handle: Resource<Cas>, value: Vec<u8>) -> Result<Option<Resource<Cas>>, Failure> {
        let mut cas = self.table.delete(handle)?;
        self.allow(&cas.bucket, Access::ReadWrite)?;
        let when = cas.version.map_or(When::Absent, When::Version);
        let ack = cas.bucket.kv.write(vec![Op::Set { key: cas.key.clone(), value: value.into(), ttl: None, when }]);
        match ack.await {
            Ok(_) => Ok(None),
            Err(DataError::Conflict { found, .. }) => {
                cas.version = found;
                Ok(Some(self.table.push(cas)?))
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn value(entry: Entry) -> Vec<u8> {
    entry.value.into()
}

fn set(key: String, value: Vec<u8>) -> Op {
    Op::Set { key: key.into(), value: value.into(), ttl: None, when: When::Always }
}

fn delete(key: String) -> Op {
    Op::Delete { key: key.into(), when: When::Always }
}
