//! Routes about buckets: list, make, look, delete, scrub. And what all routes about data share.
//!
//! Owns the way from a name in a path to a [`Bucket`]. Every call of `data` may block on the disk, so it happens off this port's thread.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Query, State};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::request::Parts;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Control;
use super::access::Caller;
use super::answer::{Refusal, body_fault, query_fault};
use super::keys;
use super::once::{self, Found, Once, respond};
use super::wire::{BucketInfo, BucketList, BucketRequest, CorruptInfo, Problem, ScrubInfo, SizeInfo, object, split};
use crate::data::{Bucket, BucketId, BucketSpec, Data, DataError, Durability, OriginUrl, Shares, Turn, Usage};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::BucketName;
use crate::idempotency::Keep;
use crate::limits::BLOCKING_THREADS_MAX;
use crate::registry::TenantError;

/// Where the name stands in a path, from 0: `/v1/buckets/NAME`.
const NAME_SEGMENT: usize = 3;
/// Longest definition of a bucket, in bytes.
const DEFINITION_LEN_MAX: usize = 4 << 10;
/// Damaged keys that the answer of a scrub names.
const CORRUPT_MAX: usize = 1000;
/// How often the account is counted again if somebody writes meanwhile.
const COUNTS_MAX: usize = 3;

/// Places for what holds a thread, or much memory, while it lasts. A runtime has [`BLOCKING_THREADS_MAX`] for blocking work, and
/// some must be left for what is short. Of what lasts as long as a client likes, or as another machine, no tenant gets all.
#[derive(Debug)]
pub struct Places {
    /// Uploads of functions.
    pub(super) uploads: Shares,
    /// Uploads of objects. Each holds a thread.
    pub(super) objects: Shares,
    /// Objects that are being opened: the first time in a process the whole object is read.
    pub(super) opening: Shares,
    /// Batches, each of which may be [`super::kv::BATCH_LEN_MAX`] long.
    pub(super) batches: Shares,
    /// Readings of many entries, until their clients have taken them. Each may take some 100 MiB as JSON.
    pub(super) readings: Shares,
    /// Scrubs, and looks at which secrets cannot be read.
    pub(super) scrubs: Arc<Semaphore>,
    /// Whatever is done with objects that are at an origin.
    pub(super) elsewhere: Shares,
}

/// Uploads of objects at once; as with all of these, more wait for [`OPEN_WAIT`].
pub(super) const OBJECT_PUTS_MAX: usize = 8;
/// Objects that are being opened at once.
pub(super) const OPENING_MAX: usize = 4;
/// How long a request waits for a place.
pub(super) const OPEN_WAIT: Duration = Duration::from_secs(10);
/// Requests at once that may wait for an origin.
pub(super) const ELSEWHERE_MAX: usize = 4;
/// Batches at once.
pub(super) const BATCHES_MAX: usize = 4;
/// Readings of many entries at once.
pub(super) const READINGS_MAX: usize = 4;

// All that may hold a thread for long, at once, and the scrub.
const _: () = assert!(super::upload::UPLOADS_MAX + OBJECT_PUTS_MAX + OPENING_MAX + ELSEWHERE_MAX + 1 < BLOCKING_THREADS_MAX);

impl Default for Places {
    fn default() -> Self {
        Self {
            uploads: Shares::new(super::upload::UPLOADS_MAX),
            objects: Shares::new(OBJECT_PUTS_MAX),
            opening: Shares::new(OPENING_MAX),
            batches: Shares::new(BATCHES_MAX),
            readings: Shares::new(READINGS_MAX),
            scrubs: Arc::new(Semaphore::new(1)),
            elsewhere: Shares::new(ELSEWHERE_MAX),
        }
    }
}

/// A place, unless all are taken.
///
/// # Errors
/// `overloaded`, which names what the places are for.
pub(super) fn place(places: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Fault> {
    Arc::clone(places).try_acquire_owned().map_err(|_| busy(what))
}

/// A place among those of the caller's tenant, waited for no longer than [`OPEN_WAIT`].
///
/// # Errors
/// `overloaded`, which names what the places are for.
pub(super) async fn turn(shares: &Shares, caller: &Caller, what: &str) -> Result<Turn, Fault> {
    let taken = timeout(OPEN_WAIT, shares.of(&caller.tenant).take()).await;
    taken.map_err(|_| busy(what))?.map_err(Fault::internal)
}

/// Work that keeps its place until it is done. A client that leaves ends the request, and not a thread that works for it.
pub(super) fn holding<T, P>(place: P, work: impl FnOnce() -> T) -> impl FnOnce() -> T {
    move || {
        let done = work();
        drop(place);
        done
    }
}

/// Too many of something are under way.
fn busy(what: &str) -> Fault {
    Fault::new(Code::Overloaded, format!("too many {what} are under way")).hint("try again").retry_after(Duration::from_secs(1))
}

/// The bucket named in the path.
#[derive(Debug)]
pub(super) struct InBucket(pub BucketName);

impl<S: Send + Sync> FromRequestParts<S> for InBucket {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        // Not by axum's own extractor, which refuses the whole path if a key in it is no text.
        let name = parts.uri.path().split('/').nth(NAME_SEGMENT).unwrap_or_default();
        let name = String::from_utf8_lossy(&keys::decode(name, b'+')?).into_owned();
        Ok(Self(name.parse().map_err(|error: crate::id::NameError| Fault::new(Code::BadRequest, error.to_string()))?))
    }
}

impl Control {
    /// Does something with what this node keeps of a bucket, off this thread.
    ///
    /// # Errors
    /// `not-found`, and those of `work`.
    pub(super) async fn in_bucket<T: Send + 'static>(
        &self,
        caller: &Caller,
        name: BucketName,
        work: impl FnOnce(&Data, Bucket) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, Fault> {
        let (data, tenant) = (self.data.clone(), caller.tenant.clone());
        let done = blocking(move || match data.bucket(&tenant, &name)? {
            Some(bucket) => work(&data, bucket),
            None => Err(DataError::NoSuchBucket { name: name.to_string() }),
        });
        done.await?.map_err(|error| error.fault())
    }

    /// Does something with the objects of a bucket, which may be at an origin, off this thread.
    ///
    /// # Errors
    /// `not-found`, `overloaded`, and those of `work`.
    pub(super) async fn in_objects<T: Send + 'static>(
        &self,
        caller: &Caller,
        name: BucketName,
        work: impl FnOnce(&Data, Bucket) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, Fault> {
        let (data, tenant) = (self.data.clone(), caller.tenant.clone());
        let first = blocking(move || match data.bucket(&tenant, &name)? {
            Some(bucket) if bucket.origin.is_none() => Ok(Err(work(&data, bucket)?)),
            Some(bucket) => Ok(Ok(move || work(&data, bucket))),
            None => Err(DataError::NoSuchBucket { name: name.to_string() }),
        });
        let work = match first.await?.map_err(|error: DataError| error.fault())? {
            Err(done) => return Ok(done),
            Ok(work) => work,
        };
        // What may wait for another machine takes a few of this port's threads, and never all.
        let place = turn(&self.places.elsewhere, caller, "requests to origins").await?;
        blocking(holding(place, work)).await?.map_err(|error| error.fault())
    }
}

fn size(usage: Usage) -> SizeInfo {
    SizeInfo { bytes: usage.bytes, keys: usage.keys }
}

fn info(data: &Data, bucket: &Bucket) -> Result<BucketInfo, DataError> {
    let (entries, objects) = match bucket.spec.durability {
        Durability::Durable => (bucket.entries, bucket.objects),
        Durability::Volatile => (data.usage(bucket)?, data.volatile_objects().usage(bucket.id)),
    };
    Ok(BucketInfo {
        name: bucket.name.to_string(),
        durability: bucket.spec.durability.as_str().into(),
        bytes_max: bucket.spec.bytes_max,
        keys_max: bucket.spec.keys_max,
        origin: bucket.origin.as_ref().map(ToString::to_string),
        created_ms: bucket.created_ms,
        entries: size(entries),
        objects: size(objects),
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct Page {
    cursor: Option<String>,
    limit: Option<usize>,
}

/// Lists buckets by name.
#[utoipa::path(get, path = "/v1/buckets", operation_id = "bucket_list", security(("token" = ["read"])),
    params(("cursor" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<usize>, Query, description = "at most 1000")),
    responses((status = 200, body = BucketList), (status = 400, body = Problem)))]
pub(super) async fn list(
    State(control): State<Control>,
    caller: Caller,
    page: Result<Query<Page>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<BucketList>, Refusal> {
    let Query(page) = page.map_err(|error| query_fault(&error))?;
    let after = page.cursor.map(|cursor| cursor.parse::<BucketName>()).transpose();
    let after = after.map_err(|_| Fault::new(Code::BadRequest, "the cursor is none that this host gave out"))?;
    let limit = keys::page(page.limit)?;
    let list = blocking(move || {
        let mut buckets = control.data.buckets(&caller.tenant, after.as_ref(), limit + 1)?;
        let more = buckets.len() > limit;
        buckets.truncate(limit);
        let next = buckets.last().filter(|_| more).map(|bucket| bucket.name.to_string());
        // One may have been deleted since the list was read.
        let infos = buckets.iter().filter_map(|bucket| match info(&control.data, bucket) {
            Err(DataError::NoSuchBucket { .. }) => None,
            other => Some(other),
        });
        let damaged = control.data.damaged_buckets(&caller.tenant)?.iter().map(ToString::to_string).collect();
        Ok(BucketList { items: infos.collect::<Result<_, DataError>>()?, damaged, next })
    });
    Ok(Json(list.await?.map_err(|error: DataError| error.fault())?))
}

/// Makes a bucket, or changes the quotas of one. Its durability and its origin cannot be changed. The body may be empty.
#[utoipa::path(put, path = "/v1/buckets/{name}", operation_id = "bucket_put", security(("token" = ["deploy"])),
    params(("name" = String, Path, description = "1 to 63 of a-z, 0-9 and '-'")), request_body = Option<BucketRequest>,
    responses((status = 201, description = "a new bucket", body = BucketInfo), (status = 200, description = "it was there", body = BucketInfo),
        (status = 400, body = Problem), (status = 409, description = "it has the other durability or another origin", body = Problem),
        (status = 413, description = "the definition is too long", body = Problem), (status = 429, description = "a quota is used up", body = Problem), (status = 507, body = Problem)))]
pub(super) async fn put(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
    body: Body,
) -> Result<Response, Refusal> {
    let body = axum::body::to_bytes(body, DEFINITION_LEN_MAX).await.map_err(|error| body_fault(&error))?;
    let bad = |what: String| Fault::new(Code::BadRequest, format!("the body defines no bucket: {what}"));
    let wanted: BucketRequest = match body.as_ref() {
        b"" => BucketRequest::default(),
        text => object(text).map_err(|error| bad(error.to_string()))?,
    };
    let durability = match wanted.durability.as_deref() {
        None => None,
        Some("durable") => Some(Durability::Durable),
        Some("volatile") => Some(Durability::Volatile),
        Some(_) => return Err(bad("'durability' is 'durable' or 'volatile'".into()).into()),
    };
    let origin = wanted.origin.as_deref().map(str::parse::<OriginUrl>).transpose().map_err(|error| bad(error.to_string()))?;
    let (data, tenant) = (control.data.clone(), caller.tenant.clone());
    let (dispatcher, identity) = (control.dispatcher.clone(), control.identity.clone());
    let made = blocking(move || {
        // It may have been removed while the body came.
        if !identity.has_tenant(&tenant) {
            return Err(TenantError::NoSuchTenant(tenant.clone()).fault());
        }
        let found = data.bucket(&tenant, &name).map_err(|error| error.fault())?.map(|bucket| bucket.spec);
        let mut spec = match (found, durability) {
            (Some(found), durability) => BucketSpec { durability: durability.unwrap_or(found.durability), ..found },
            (None, durability) => BucketSpec::new(durability.unwrap_or(Durability::Durable)),
        };
        spec.bytes_max = wanted.bytes_max.unwrap_or(spec.bytes_max);
        spec.keys_max = wanted.keys_max.unwrap_or(spec.keys_max);
        dispatcher.put_bucket(&data, &tenant, &name, spec, origin.as_ref())
    });
    let (bucket, is_new) = made.await??;
    let name = bucket.name.clone();
    let info = control.in_bucket(&caller, name, |data, bucket| info(data, &bucket)).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(info)).into_response())
}

/// Shows a bucket: its definition and what is in it.
#[utoipa::path(get, path = "/v1/buckets/{name}", operation_id = "bucket_get", security(("token" = ["read"])), params(("name" = String, Path)),
    responses((status = 200, body = BucketInfo), (status = 400, body = Problem), (status = 404, body = Problem)))]
pub(super) async fn get(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
) -> Result<Json<BucketInfo>, Refusal> {
    Ok(Json(control.in_bucket(&caller, name, |data, bucket| info(data, &bucket)).await?))
}

/// Deletes a bucket with all that is in it.
#[utoipa::path(delete, path = "/v1/buckets/{name}", operation_id = "bucket_delete", security(("token" = ["deploy"])), params(("name" = String, Path),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn delete(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    InBucket(name): InBucket,
) -> Result<Response, Refusal> {
    let ticket = match once.look(&control, Vec::new()).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    let gone = || once::bare(StatusCode::NO_CONTENT, None);
    let keep = ticket.map(|ticket| Keep::new(ticket, move |deleted: &Option<BucketId>| deleted.map(|_| gone())));
    match control.data.delete_bucket_once(&caller.tenant, &name, keep).await.map_err(|error| error.fault())? {
        Some(_) => Ok(respond(gone())),
        None => Err(DataError::NoSuchBucket { name: name.to_string() }.fault().into()),
    }
}

/// Reads everything in a durable bucket and holds it against its checksums. Of a volatile one there is nothing to read.
#[utoipa::path(post, path = "/v1/buckets/{name}/scrub", operation_id = "bucket_scrub", security(("token" = ["deploy"])), params(("name" = String, Path)),
    responses((status = 200, body = ScrubInfo), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, description = "another scrub, or a look at unreadable secrets, is under way", body = Problem)))]
pub(super) async fn scrub(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
) -> Result<Json<ScrubInfo>, Refusal> {
    let place = place(&control.places.scrubs, "scrubs and looks at unreadable secrets")?;
    Ok(Json(control.in_bucket(&caller, name, |data, bucket| holding(place, || scrubbed(data, &bucket))()).await?))
}

fn scrubbed(data: &Data, bucket: &Bucket) -> Result<ScrubInfo, DataError> {
    let mut info = ScrubInfo {
        bucket: bucket.name.to_string(),
        entries: 0,
        objects: 0,
        bytes: 0,
        corrupt_count: 0,
        corrupt: Vec::new(),
        usage_exact: None,
    };
    if bucket.spec.durability == Durability::Volatile {
        return Ok(info);
    }
    let entries = data.scrub_entries(bucket)?;
    let objects = data.scrub_objects(bucket)?;
    (info.entries, info.objects, info.bytes) = (entries.entries, objects.objects, objects.bytes);
    info.corrupt_count = (entries.corrupt.len() + objects.corrupt.len()) as u64;
    let entries = entries.corrupt.iter().map(|key| ("entry", key));
    let all = entries.chain(objects.corrupt.iter().map(|(_, key)| ("object", key)));
    info.corrupt = all.take(CORRUPT_MAX).map(|(kind, key)| corrupt(kind, key)).collect();
    info.usage_exact = is_exact(data, bucket)?;
    Ok(info)
}

fn corrupt(kind: &str, key: &[u8]) -> CorruptInfo {
    let (key, key_base64) = split(key);
    CorruptInfo { kind: kind.into(), key, key_base64 }
}

/// Whether what is in a bucket is what its account says; `None` if that cannot be told.
fn is_exact(data: &Data, bucket: &Bucket) -> Result<Option<bool>, DataError> {
    for _ in 0..COUNTS_MAX {
        let account = || data.bucket(&bucket.tenant, &bucket.name).map(|now| now.map(|now| (now.id, now.entries, now.objects)));
        let before = account()?;
        let entries = data.recount(bucket)?;
        let objects = match data.durable_objects().recount(bucket) {
            Ok(recount) if recount.damaged == 0 => recount.objects,
            // What damaged rows take is not known.
            Ok(_) => return Ok(None),
            Err(DataError::Damaged { .. } | DataError::DamagedRow { .. }) => return Ok(Some(false)),
            Err(error) => return Err(error),
        };
        if before == account()? {
            return Ok(Some(before == Some((bucket.id, entries, objects))));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_taken_until_its_work_is_done_whoever_waits_for_it() {
        let places = Arc::new(Semaphore::new(1));
        let (go, wait) = std::sync::mpsc::sync_channel::<()>(1);
        let taken = place(&places, "tests").unwrap();
        let request = tokio::spawn(blocking(holding(taken, move || wait.recv())));
        // The client leaves.
        tokio::task::yield_now().await;
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(place(&places, "tests").map_err(|fault| fault.code).unwrap_err(), Code::Overloaded);
        go.send(()).unwrap();
        let _place = places.acquire().await.unwrap();
    }
}
