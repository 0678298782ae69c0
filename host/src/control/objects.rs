//! Routes about objects: list, get, ranges, head, delete. Putting is in `receive.rs`.
//!
//! Owns the way between HTTP and [`Objects`](crate::data::objects::Objects): the ETag is the digest, or stands for a version of an origin.
//! Knows nothing about where objects lie. An object is sent piece by piece as its reader takes it. Invariant: an answer that ends in order
//! has the bytes of one object.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};

use super::Control;
use super::access::Caller;
use super::answer::Refusal;
use super::buckets::{InBucket, holding, turn};
use super::conditions::{self, Part, Read};
use super::keys::{self, Key, NoQuery, Wanted};
use super::kv::{EXPIRES, HARMLESS};
use super::wire::{DamagedInfo, NO_OBJECT, ObjectInfo, ObjectItem, ObjectList, Problem, split};
use crate::data::objects::{Head, Opened, When, parse_tag};
use crate::data::{Bucket, Data, DataError};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::Digest;

/// Bytes that are read and sent at once.
const PIECE_BYTES: u64 = 256 << 10;
/// What headers with metadata begin with.
pub(super) const META: &str = "hob-meta-";
/// How many pairs of metadata cannot be headers.
const META_MISSING: HeaderName = HeaderName::from_static("hob-missing-meta");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const VERSION: HeaderName = HeaderName::from_static("hob-version");

pub(super) fn info(key: &[u8], head: &Head) -> ObjectInfo {
    let (key, key_base64) = split(key);
    ObjectInfo {
        key,
        key_base64,
        etag: head.tag(),
        digest: head.digest.map(|digest| digest.to_string()),
        bytes: head.len,
        version: head.version,
        modified_ms: head.modified_ms,
        expires_ms: head.expires_ms,
        content_type: head.content_type.clone(),
        metadata: head.metadata.clone(),
    }
}

/// What a list has of an object; `None` if that is damaged.
fn item(key: &[u8], head: Option<&Head>) -> ObjectItem {
    match head {
        Some(head) => ObjectItem::Object(Box::new(info(key, head))),
        None => {
            let (key, key_base64) = split(key);
            ObjectItem::Damaged(DamagedInfo { key, key_base64, damaged: true })
        }
    }
}

fn no_object() -> Fault {
    Fault::new(Code::NotFound, NO_OBJECT)
}

/// The condition of a write, by what a look has found. If another object is there by the time of the write, that is refused, too.
///
/// # Errors
/// [`DataError::ObjectConflict`], and why nothing was found out where a condition needs it.
pub(super) fn settled(
    when: conditions::When,
    bucket: &Bucket,
    found: Result<Option<Head>, DataError>,
) -> Result<When, DataError> {
    let etag = |found: &Option<Head>| found.as_ref().map(|head| head.etag);
    match when {
        conditions::When::Always => Ok(When::Always),
        conditions::When::Absent => Ok(When::Absent),
        conditions::When::Present => Ok(When::Present),
        conditions::When::Tags(tags) => {
            let tags: Vec<Digest> = tags.iter().filter_map(|tag| parse_tag(bucket, tag)).collect();
            if let [tag] = tags[..] {
                return Ok(When::Etag(tag));
            }
            let found = etag(&found?);
            found.filter(|found| tags.contains(found)).map(When::Etag).ok_or(DataError::ObjectConflict { found })
        }
        conditions::When::Unmodified(since) => match found {
            Ok(Some(head)) if conditions::is_unmodified(head.modified_ms, since) => Ok(When::Etag(head.etag)),
            Ok(Some(head)) => Err(DataError::ObjectConflict { found: Some(head.etag) }),
            // Without a date there is no condition (RFC 9110, 13.1.4).
            Ok(None) => Ok(When::Absent),
            Err(DataError::Corrupt { .. }) => Ok(When::Always),
            Err(error) => Err(error),
        },
    }
}

/// A header's value; one that cannot be is left empty, and never is of what is passed here: digits, digests and dates.
fn value(text: String) -> HeaderValue {
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static(""))
}

/// What is said of an object in headers.
pub(super) fn described(head: &Head) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ETAG, value(format!("\"{}\"", head.tag())));
    headers.insert(LAST_MODIFIED, value(conditions::date(head.modified_ms)));
    headers.insert(VERSION, head.version.into());
    if let Some(expires_ms) = head.expires_ms {
        headers.insert(EXPIRES, expires_ms.into());
    }
    headers
}

/// What goes with its bytes besides.
fn content(head: &Head) -> HeaderMap {
    let mut headers = HeaderMap::from_iter(HARMLESS);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Some(digest) = &head.digest {
        headers.insert(REPR_DIGEST, value(conditions::repr_digest(digest)));
    }
    let kind = HeaderValue::try_from(&head.content_type).ok().filter(|kind| !kind.is_empty());
    headers.insert(CONTENT_TYPE, kind.unwrap_or(HeaderValue::from_static("application/octet-stream")));
    let mut missing = 0_u64;
    for (name, text) in &head.metadata {
        let name = HeaderName::try_from(format!("{META}{name}")).ok().filter(|header| header.as_str()[META.len()..] == **name);
        // Who reads a header takes no space at its ends for a part of it.
        match (name, HeaderValue::from_bytes(text.as_bytes())) {
            (Some(name), Ok(value)) if text.trim_matches([' ', '\t']) == text => {
                headers.append(name, value);
            }
            _ => missing += 1,
        }
    }
    if missing > 0 {
        headers.insert(META_MISSING, missing.into());
    }
    headers
}

/// Lists objects by key; of one whose description is not what was written there is the key, and `damaged`.
#[utoipa::path(get, path = "/v1/buckets/{name}/objects", operation_id = "object_list", security(("token" = ["read"])),
    params(("name" = String, Path), ("prefix" = Option<String>, Query, description = "only keys that begin with this; percent-encoded bytes"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<usize>, Query, description = "at most 1000")),
    responses((status = 200, body = ObjectList), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 503, body = Problem),
        (status = 502, description = "the origin failed", body = Problem), (status = 504, description = "the origin took too long", body = Problem)))]
pub(super) async fn list(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
    uri: Uri,
) -> Result<Json<ObjectList>, Refusal> {
    let wanted = Wanted::read(&uri, &["prefix", "cursor", "limit"])?;
    let list = control.in_objects(&caller, name, move |data, bucket| {
        let objects = data.objects(bucket.spec.durability);
        let page = objects.list(&bucket, &wanted.prefix, wanted.after.as_deref(), wanted.limit())?;
        let items = page.objects.iter().map(|(key, head)| item(key, head.as_ref().ok())).collect();
        Ok(ObjectList { items, next: page.next.map(|key| keys::cursor(&key)) })
    });
    Ok(Json(list.await?))
}

/// Says what is known of an object: also that it is damaged, if anybody found out since the node started.
#[utoipa::path(head, path = "/v1/buckets/{name}/objects/{key}", operation_id = "object_head", security(("token" = ["read"])),
    params(("name" = String, Path), ("key" = String, Path), ("if-none-match" = Option<String>, Header), ("if-match" = Option<String>, Header),
        ("if-modified-since" = Option<String>, Header), ("if-unmodified-since" = Option<String>, Header)),
    responses((status = 200, description = "the headers of a GET", headers(("etag" = String), ("last-modified" = String), ("content-length" = u64),
            ("repr-digest" = Option<String>), ("hob-version" = u64), ("hob-expires-ms" = Option<u64>),
            ("hob-meta-NAME" = Option<String>, description = "one for each pair of its metadata"), ("hob-missing-meta" = Option<u64>, description = "pairs that are no headers"))),
        (status = 304, description = "the client has it"),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem), (status = 503, body = Problem),
        (status = 502, description = "the origin failed", body = Problem), (status = 504, description = "the origin took too long", body = Problem)))]
pub(super) async fn head(
    State(control): State<Control>,
    caller: Caller,
    _: NoQuery,
    InBucket(name): InBucket,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let head = control.in_objects(&caller, name, move |data, bucket| {
        let objects = data.objects(bucket.spec.durability);
        match objects.head(&bucket, &key)? {
            // As a GET would be answered.
            Some(head) if objects.is_known_damaged(&bucket, &head) => {
                Err(DataError::Corrupt { bucket: bucket.id, key: key.into() })
            }
            head => Ok(head),
        }
    });
    let head = head.await?.ok_or_else(no_object)?;
    let read = conditions::of_read(&headers, &head.tag(), Some(head.modified_ms))?;
    let mut response = StatusCode::NOT_MODIFIED.into_response();
    if read == Read::Send {
        response = StatusCode::OK.into_response();
        response.headers_mut().insert(CONTENT_LENGTH, head.len.into());
        response.headers_mut().extend(content(&head));
    }
    response.headers_mut().extend(described(&head));
    Ok(response)
}

/// Reads an object, or one range of it.
#[utoipa::path(get, path = "/v1/buckets/{name}/objects/{key}", operation_id = "object_get", security(("token" = ["read"])),
    params(("name" = String, Path), ("key" = String, Path, description = "1 to 512 bytes, percent-encoded"),
        ("range" = Option<String>, Header, description = "one range of bytes"), ("if-range" = Option<String>, Header),
        ("if-none-match" = Option<String>, Header), ("if-match" = Option<String>, Header),
        ("if-modified-since" = Option<String>, Header), ("if-unmodified-since" = Option<String>, Header)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream", headers(("etag" = String), ("last-modified" = String),
            ("repr-digest" = Option<String>), ("hob-version" = u64), ("hob-expires-ms" = Option<u64>),
            ("hob-meta-NAME" = Option<String>, description = "one for each pair of its metadata"), ("hob-missing-meta" = Option<u64>, description = "pairs that are no headers"))),
        (status = 206, description = "the range", body = Vec<u8>, content_type = "application/octet-stream", headers(("content-range" = String), ("etag" = String),
            ("last-modified" = String), ("hob-version" = u64))),
        (status = 304, description = "the client has it"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 412, body = Problem), (status = 416, body = Problem), (status = 503, description = "it is damaged", body = Problem),
        (status = 502, description = "the origin failed", body = Problem), (status = 504, description = "the origin took too long", body = Problem)))]
pub(super) async fn get(
    State(control): State<Control>,
    caller: Caller,
    _: NoQuery,
    InBucket(name): InBucket,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let opened = {
        let place = turn(&control.places.opening, &caller, "openings of objects").await?;
        let open =
            move |data: &Data, bucket: Bucket| holding(place, || data.objects(bucket.spec.durability).open(&bucket, &key))();
        control.in_objects(&caller, name, open).await?
    };
    let opened = opened.ok_or_else(no_object)?;
    let head = opened.head().clone();
    let tag = head.tag();
    if conditions::of_read(&headers, &tag, Some(head.modified_ms))? == Read::NotModified {
        return Ok((StatusCode::NOT_MODIFIED, described(&head)).into_response());
    }
    let (status, at, end, range) = match conditions::part(&headers, &tag, head.len) {
        Part::Whole => (StatusCode::OK, 0, head.len, None),
        Part::Range(first, last) => {
            (StatusCode::PARTIAL_CONTENT, first, last + 1, Some(value(format!("bytes {first}-{last}/{}", head.len))))
        }
        Part::Nothing => {
            let fault =
                Fault::new(Code::RangeNotSatisfiable, format!("the range begins past the object, which has {} bytes", head.len));
            let mut response = Refusal::from(fault).into_response();
            response.headers_mut().insert(CONTENT_RANGE, value(format!("bytes */{}", head.len)));
            return Ok(response);
        }
    };
    let mut response = (status, described(&head), content(&head)).into_response();
    response.headers_mut().insert(CONTENT_LENGTH, (end - at).into());
    if let Some(range) = range {
        response.headers_mut().insert(CONTENT_RANGE, range);
    }
    *response.body_mut() = Body::from_stream(stream::try_unfold(Sending { opened, at, end }, next));
    Ok(response)
}

struct Sending {
    opened: Opened,
    at: u64,
    end: u64,
}

/// The next piece. An error cuts the connection: the length was announced.
async fn next(sending: Sending) -> Result<Option<(Bytes, Sending)>, io::Error> {
    if sending.at >= sending.end {
        return Ok(None);
    }
    let read = blocking(move || {
        let len = (sending.end - sending.at).min(PIECE_BYTES);
        let mut piece = vec![0; usize::try_from(len).unwrap_or_default()];
        let count = sending.opened.read_at(sending.at, &mut piece)?;
        piece.truncate(count);
        Ok((piece, sending))
    });
    let (piece, mut sending) = match read.await {
        Ok(read) => read.map_err(|error: DataError| {
            tracing::error!(%error, "an object could not be read to its end");
            io::Error::other("the object cannot be read")
        })?,
        Err(fault) => return Err(io::Error::other(fault)),
    };
    sending.at += piece.len() as u64;
    Ok(Some((piece.into(), sending)))
}

/// Deletes an object.
#[utoipa::path(delete, path = "/v1/buckets/{name}/objects/{key}", operation_id = "object_delete", security(("token" = ["deploy"])),
    params(("name" = String, Path), ("key" = String, Path), ("if-match" = Option<String>, Header), ("if-unmodified-since" = Option<String>, Header)),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem),
        (status = 429, description = "a quota is used up", body = Problem), (status = 503, body = Problem), (status = 507, description = "the disk cannot be written", body = Problem),
        (status = 502, description = "the origin failed", body = Problem), (status = 504, description = "the origin took too long", body = Problem)))]
pub(super) async fn delete(
    State(control): State<Control>,
    caller: Caller,
    _: NoQuery,
    InBucket(name): InBucket,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<StatusCode, Refusal> {
    let when = conditions::of_write(&headers)?;
    let done = control.in_objects(&caller, name, move |data, bucket| {
        let objects = data.objects(bucket.spec.durability);
        let found = objects.head(&bucket, &key);
        // Of a damaged one nothing is known, not even afterwards what it was; but there is something to delete.
        let is_damaged = matches!(found, Err(DataError::Corrupt { .. }));
        Ok((objects.delete(&bucket, &key, settled(when, &bucket, found)?), is_damaged))
    });
    let (ack, is_damaged) = done.await?;
    let found = ack.await.map_err(|error| error.fault())?;
    if found.is_some() || is_damaged { Ok(StatusCode::NO_CONTENT) } else { Err(no_object().into()) }
}
