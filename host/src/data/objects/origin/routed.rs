//! The objects of durable buckets: those that are kept here, and those that are copies.
//!
//! Owns which of the two a bucket's are. Knows nothing else. Invariant: a bucket with an origin never has objects of its own.

use std::sync::Arc;

use super::super::super::bucket::Bucket;
use super::super::super::error::DataError;
use super::super::super::store::Ack;
use super::super::durable::Scrubbed;
use super::super::{Durable, Head, Objects, OpenNow, Opened, Page, Place, PutOptions, Upload, When};
use super::{Origin, not_open};

/// See the module.
#[derive(Debug)]
pub(in crate::data) struct Routed {
    durable: Arc<Durable>,
    origin: Option<Arc<Origin>>,
}

impl Routed {
    pub(in crate::data) fn new(durable: Arc<Durable>, origin: Option<Arc<Origin>>) -> Self {
        Self { durable, origin }
    }

    /// Reads every object of a bucket that this node has, and holds it against its digest.
    ///
    /// # Errors
    /// As of [`Durable::scrub`].
    pub(in crate::data) fn scrub(&self, bucket: &Bucket) -> Result<Scrubbed, DataError> {
        match (&bucket.origin, &self.origin) {
            (Some(_), Some(origin)) => origin.scrub(bucket.id),
            // What is not opened now gives nothing to anybody.
            (Some(_), None) => Ok(Scrubbed::default()),
            (None, _) => self.durable.scrub(bucket),
        }
    }

    fn of(&self, bucket: &Bucket) -> Result<&dyn Objects, DataError> {
        match (&bucket.origin, &self.origin) {
            (None, _) => Ok(&*self.durable),
            (Some(_), Some(origin)) => Ok(&**origin),
            (Some(url), None) => Err(not_open(url)),
        }
    }
}

impl Objects for Routed {
    fn put(&self, bucket: &Bucket, key: &[u8], options: PutOptions) -> Result<Box<dyn Upload>, DataError> {
        self.of(bucket)?.put(bucket, key, options)
    }

    fn head(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Head>, DataError> {
        self.of(bucket)?.head(bucket, key)
    }

    fn is_known_damaged(&self, bucket: &Bucket, head: &Head) -> bool {
        self.of(bucket).is_ok_and(|objects| objects.is_known_damaged(bucket, head))
    }

    fn open(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Opened>, DataError> {
        self.of(bucket)?.open(bucket, key)
    }

    fn open_now(&self, bucket: &Bucket, key: &[u8]) -> Result<OpenNow, DataError> {
        self.of(bucket)?.open_now(bucket, key)
    }

    fn place(&self, bucket: &Bucket) -> Place {
        // What is refused is refused at once.
        self.of(bucket).map_or(Place::Memory, |objects| objects.place(bucket))
    }

    fn list(&self, bucket: &Bucket, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError> {
        self.of(bucket)?.list(bucket, prefix, after, limit)
    }

    fn delete(&self, bucket: &Bucket, key: &[u8], when: When) -> Ack<Option<Head>> {
        match self.of(bucket) {
            Ok(objects) => objects.delete(bucket, key, when),
            Err(error) => Ack::ready(Err(error)),
        }
    }
}
