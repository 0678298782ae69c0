//! Writing through: an object goes to its origin first, and what was acknowledged is there.
//!
//! Owns the order of a put and of a delete, and which conditions an origin can keep. Invariant: a put that is refused before it is sent
//! leaves nothing; after an answer that was late or lost nobody knows what the origin has, so the copy goes.

use std::fmt;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::super::super::error::{DataError, OriginFault, io_error};
use super::super::super::store::Ack;
use super::super::{Head, PutOptions, Upload, When, check_digest, check_options};
use super::cache::Copy;
use super::filling::Filling;
use super::heads::{copy_head, head};
use super::remote::{Expect, Version};
use super::{Inner, Origin, Target};
use crate::id::Digest;

/// Longest object that is put in one piece, and so on a condition.
pub(super) const PIECE_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a part; with the 10,000 that S3 allows, 78 GiB.
const PART_BYTES: u64 = 8 << 20;

/// A put under way.
struct Writing {
    inner: Arc<Inner>,
    spawn: tokio::runtime::Handle,
    target: Target,
    options: PutOptions,
    filling: Filling,
}

impl fmt::Debug for Writing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writing").field("target", &self.target).field("bytes", &self.filling.written()).finish_non_exhaustive()
    }
}

/// Begins to put an object.
pub(super) fn begin(origin: &Origin, target: Target, options: PutOptions) -> Result<Box<dyn Upload>, DataError> {
    check_options(&options)?;
    if options.ttl_ms.is_some() {
        let expected = "none: objects of an origin live until somebody deletes them".into();
        return Err(DataError::Invalid { what: "a time to live in a bucket with an origin".into(), expected });
    }
    check_headers(&options)?;
    let inner = Arc::clone(&origin.inner);
    if options.when != When::Always {
        // It is checked again, which decides, by the origin.
        let (inner, target, when) = (Arc::clone(&inner), target.clone(), options.when);
        origin.run(async move {
            let _place = inner.admit(&target.remote).await?;
            when.check(inner.version(&target).await?.map(|version| head(&version).etag))
        })?;
    }
    let spawn = origin.runtime.as_ref().ok_or(DataError::Closed)?.handle().clone();
    let filling = Filling::begin(&inner.cache)?;
    Ok(Box::new(Writing { inner, spawn, target, options, filling }))
}

/// Metadata and the content type become headers, so they must be such.
fn check_headers(options: &PutOptions) -> Result<(), DataError> {
    let refuse = |what: &str, found: &str, expected: &str| {
        Err(DataError::Invalid {
            what: format!("{what} '{}' in a bucket with an origin", found.escape_debug()),
            expected: expected.into(),
        })
    };
    let is_text = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && text.trim() == text;
    if !is_text(&options.content_type) {
        return refuse("the content type", &options.content_type, "printable ASCII");
    }
    for (place, (name, value)) in options.metadata.iter().enumerate() {
        let is_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        let is_new = options.metadata[..place].iter().all(|(other, _)| other != name);
        if name.is_empty() || !name.bytes().all(is_name) || !is_new {
            return refuse("the name of metadata", name, "a-z, 0-9, '-', '_' and '.', each name once");
        }
        if !is_text(value) {
            return refuse("the metadata", value, "printable ASCII");
        }
    }
    Ok(())
}

impl Upload for Writing {
    fn write(&mut self, piece: &[u8]) -> Result<(), DataError> {
        let len = self.filling.written().saturating_add(piece.len() as u64);
        self.filling.reserve(&self.target.bucket, len)?;
        self.filling.write(piece)
    }

    fn finish(self: Box<Self>) -> Ack<Head> {
        let (sender, ack) = Ack::pending();
        let Self { inner, spawn, target, options, filling } = *self;
        let put = async move { put(&inner, &target, options, filling).await };
        spawn.spawn(async move {
            // Who asked may have gone; the put goes on.
            let _gone = sender.send(put.await);
        });
        ack
    }
}

async fn put(inner: &Arc<Inner>, target: &Target, options: PutOptions, filling: Filling) -> Result<Head, DataError> {
    let (digest, len) = (filling.digest(), filling.written());
    check_digest(options.digest, digest)?;
    if options.when != When::Always && len > PIECE_BYTES_MAX {
        let expected = format!("none: an origin keeps conditions of objects up to {PIECE_BYTES_MAX} bytes only");
        return Err(DataError::Invalid { what: format!("a condition on an object of {len} bytes"), expected });
    }
    let _place = inner.admit(&target.remote).await?;
    let expect = match options.when {
        When::Always => Expect::Anything,
        When::Absent => Expect::Nothing,
        // Origins know no other way to say it: whoever puts another one meanwhile wins.
        When::Present => Expect::Etag(inner.version(target).await?.ok_or(DataError::ObjectConflict { found: None })?.etag),
        When::Etag(wanted) => Expect::Etag(inner.match_etag(target, wanted).await?),
    };
    let place = (target.bucket.id, target.key.clone());
    let write = inner.flights.begin_write(place);
    let sent = send(target, &options, expect, &filling).await;
    let discard = || inner.cache.remove(target.bucket.id, &target.key, None);
    let etag = match sent {
        Ok(Some(etag)) => etag,
        Ok(None) => {
            drop(write);
            let found = inner.version(target).await?.map(|version| head(&version).etag);
            return Err(DataError::ObjectConflict { found });
        }
        Err(error) => {
            write.settle(discard, discard);
            return Err(error);
        }
    };
    let PutOptions { content_type, mut metadata, .. } = options;
    metadata.sort();
    // The origin's clock is its own: what it says of the time is known with the next question.
    let version = Version { etag, len, modified_ms: inner.now_ms() / 1000 * 1000, content_type, metadata };
    let copy = Arc::new(Copy { version, digest });
    let head = copy_head(&copy);
    match filling.place(target.bucket.id) {
        Ok(held) => {
            let of_both = Arc::clone(&copy);
            let neither = || {
                discard();
                inner.cache.disown(target.bucket.id, &of_both);
            };
            write.settle(|| inner.cache.insert(&target.bucket, &target.key, copy, inner.now_ms()), neither);
            drop(held);
        }
        Err(error) => {
            // It is at the origin, and that was the promise.
            tracing::warn!(%error, "an object that was put to its origin is not cached");
            write.settle(discard, discard);
        }
    }
    Ok(head)
}

/// Sends the bytes. Answers the origin's ETag; `None` if the condition does not hold.
async fn send(target: &Target, options: &PutOptions, expect: Expect, filling: &Filling) -> Result<Option<String>, DataError> {
    let len = filling.written();
    if len <= PIECE_BYTES_MAX {
        let bytes = read(filling, 0, len)?;
        return Ok(target.remote.put(&target.path, bytes, options, expect).await?);
    }
    let mut parts = target.remote.put_parts(&target.path, options).await?;
    let mut at = 0;
    let sent = loop {
        if at == len {
            break parts.finish().await.map_err(DataError::from);
        }
        let end = (at + PART_BYTES).min(len);
        let part = match read(filling, at, end) {
            Ok(bytes) => parts.put(bytes).await.map_err(DataError::from),
            Err(error) => Err(error),
        };
        if let Err(error) = part {
            break Err(error);
        }
        at = end;
    };
    if sent.is_err() {
        parts.abort().await;
    }
    sent.map(Some)
}

fn read(filling: &Filling, from: u64, to: u64) -> Result<Bytes, DataError> {
    let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(usize::MAX)];
    filling.file().read_exact_at(&mut bytes, from).map_err(io_error("read what is to be sent to an origin"))?;
    Ok(bytes.into())
}

/// Deletes an object at its origin, and its copy.
pub(super) async fn delete(inner: &Arc<Inner>, target: &Target, when: When) -> Result<Option<Head>, DataError> {
    if let When::Etag(_) = when {
        let expected = "none: an S3-compatible store deletes whatever is there".into();
        return Err(DataError::Invalid { what: "a condition on a delete in a bucket with an origin".into(), expected });
    }
    let _place = inner.admit(&target.remote).await?;
    let found: Option<Head> = inner.version(target).await?.as_ref().map(head);
    when.check(found.as_ref().map(|head: &Head| -> Digest { head.etag }))?;
    let write = inner.flights.begin_write((target.bucket.id, target.key.clone()));
    let deleted: Result<(), OriginFault> = match found {
        Some(_) => target.remote.delete(&target.path).await,
        None => Ok(()),
    };
    let discard = || inner.cache.remove(target.bucket.id, &target.key, None);
    write.settle(discard, discard);
    deleted?;
    Ok(found)
}
