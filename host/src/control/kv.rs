//! Routes about entries: list, get one or many, set, delete, increment, batch, and a feed of changes.
//!
//! Owns the way between HTTP and [`KeyValue`]: an entry's version is its ETag. Knows nothing about where entries lie.

use std::convert::Infallible;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::sse::Event;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::Control;
use super::access::Caller;
use super::answer::{Refusal, body_fault};
use super::buckets::{InBucket, turn};
use super::conditions::{self, Read};
use super::keys::{self, Key, NoQuery, Wanted};
use super::once::{self, Found, Once, respond};
use super::wire::{
    BatchInfo, BatchKind, BatchOp, BatchRequest, ChangeInfo, DoneInfo, EntryInfo, EntryKey, EntryList, GetManyInfo,
    GetManyRequest, IncrementInfo, NO_ENTRY, Problem, join, object, split,
};
use crate::data::kv::{Done, Entry, Op, VALUE_LEN_MAX, When, check_count};
use crate::data::{Bucket, Changed, Data, DataError};
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::{BucketName, Digest};
use crate::idempotency::{Answer, Keep, Ticket};
use crate::net::drain::Stop;

/// Longest body of a batch, in bytes: what a batch may hold, in Base64, and room for its words.
pub(crate) const BATCH_LEN_MAX: usize = 32 << 20;
/// Longest body of a reading of many, in bytes: as many keys as it may name, each byte of them escaped, and room for its words.
pub(super) const GET_LEN_MAX: usize = 4 << 20;
/// Bytes of an answer to a reading of many that are sent at once.
const PIECE_BYTES: usize = 256 << 10;

/// When what was answered is gone, in milliseconds since 1970.
pub(super) const EXPIRES: HeaderName = HeaderName::from_static("hob-expires-ms");

/// What a browser may make of a tenant's bytes: nothing that could speak to this port, and nothing at all in a page of another site,
/// which sends no `Origin` with what it embeds.
pub(super) const HARMLESS: [(HeaderName, HeaderValue); 3] = [
    (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("same-origin")),
    (http::header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (http::header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox")),
];

/// What is told of an entry; `None` if it is damaged.
fn info(key: &[u8], entry: Option<&Entry>, with_value: bool) -> EntryInfo {
    let (key, key_base64) = split(key);
    let (value, value_base64) = entry.filter(|_| with_value).map_or((None, None), |entry| split(&entry.value));
    let (bytes, version) = entry.map(|entry| (entry.value.len() as u64, entry.version)).unzip();
    let expires_ms = entry.and_then(|entry| entry.expires_ms);
    EntryInfo { key, key_base64, value, value_base64, bytes, version, expires_ms, damaged: entry.is_none() }
}

/// An entity tag is digits and quotes.
fn etag(version: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{version}\"")).unwrap_or(HeaderValue::from_static("\"\""))
}

fn no_entry() -> Fault {
    Fault::new(Code::NotFound, NO_ENTRY)
}

/// The conditions of a write, of which one must hold.
fn when(headers: &HeaderMap) -> Result<Vec<When>, Fault> {
    Ok(match conditions::of_write(headers)? {
        conditions::When::Always => vec![When::Always],
        conditions::When::Absent => vec![When::Absent],
        conditions::When::Present => vec![When::Present],
        // Only what `etag` makes is a tag of an entry.
        conditions::When::Tags(tags) => {
            let version = |tag: &String| tag.parse::<u64>().ok().filter(|version| version.to_string() == *tag);
            let versions: Vec<_> = tags.iter().filter_map(version).map(When::Version).collect();
            if versions.is_empty() {
                return Err(conditions::failed());
            }
            versions
        }
        conditions::When::Unmodified(_) => return Err(conditions::undated()),
    })
}

/// What is answered to what was done; `None` for nothing that would be done again.
type Make = fn(&[Done]) -> Option<Answer>;

impl Control {
    /// Of several versions the one that the entry has; if it has another by the time of the write, that is refused, too.
    async fn settled(&self, caller: &Caller, name: &BucketName, key: &[u8], any: Vec<When>) -> Result<When, Fault> {
        if let [when] = any[..] {
            return Ok(when);
        }
        let key = key.to_vec();
        let found = self.in_bucket(caller, name.clone(), move |data, bucket| data.kv(&bucket)?.get(&key)).await?;
        let found = found.map(|entry| When::Version(entry.version));
        found.filter(|found| any.contains(found)).ok_or_else(conditions::failed)
    }

    async fn write(
        &self,
        caller: &Caller,
        name: BucketName,
        ops: Vec<Op>,
        ticket: Option<Ticket>,
        make: Make,
    ) -> Result<Option<Response>, Fault> {
        let queue = move |data: &Data, bucket: Bucket| match ticket {
            None => Ok(data.kv(&bucket)?.write(ops)),
            Some(ticket) => Ok(data.write_once(&bucket, ops, Keep::new(ticket, move |done: &Vec<Done>| make(done)))),
        };
        let done = self.in_bucket(caller, name, queue).await?.await.map_err(|error| error.fault())?;
        Ok(make(&done).map(respond))
    }
}

fn was_set(done: &[Done]) -> Option<Answer> {
    let version = done.first().and_then(|done| done_info(done).version)?;
    Some(once::bare(StatusCode::NO_CONTENT, Some(etag(version))))
}

fn was_deleted(done: &[Done]) -> Option<Answer> {
    let found = done.first().and_then(|done| done_info(done).found)?;
    found.then(|| once::bare(StatusCode::NO_CONTENT, None))
}

fn was_incremented(done: &[Done]) -> Option<Answer> {
    let Some(Done::Incremented { value, version }) = done.first() else { return None };
    Some(once::json(StatusCode::OK, Some(etag(*version)), &IncrementInfo { value: *value, version: *version }))
}

#[expect(clippy::unnecessary_wraps, reason = "the type of all of them")]
fn was_batched(done: &[Done]) -> Option<Answer> {
    Some(once::json(StatusCode::OK, None, &BatchInfo { done: done.iter().map(done_info).collect() }))
}

/// The store did something else than it was told.
fn not_done() -> Fault {
    Fault::internal("a write did something else than was asked")
}

/// Lists entries by key; one that is not what was written is `damaged`. With `watch=true` tells what is changed from now on, as server-sent events, each a ChangeInfo.
#[utoipa::path(get, path = "/v1/buckets/{name}/kv", operation_id = "kv_list", security(("token" = ["read"])),
    params(("name" = String, Path), ("prefix" = Option<String>, Query, description = "only keys that begin with this; percent-encoded bytes"),
        ("cursor" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<usize>, Query, description = "at most 1000"),
        ("values" = Option<bool>, Query, description = "with the values; a page ends with the one that takes it to 4 MiB"),
        ("watch" = Option<bool>, Query, description = "tell changes from now on")),
    responses((status = 200, description = "with `watch=true` events without end", content((EntryList = "application/json"), (String = "text/event-stream"))),
        (status = 400, body = Problem), (status = 404, body = Problem), (status = 503, body = Problem)))]
pub(super) async fn list(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
    uri: Uri,
) -> Result<Response, Refusal> {
    let wanted = Wanted::read(&uri, &["prefix", "cursor", "limit", "values", "watch"])?;
    if wanted.watch {
        let feed = control.in_bucket(&caller, name, |data, bucket| data.watch(&bucket)).await?;
        let events = stream::unfold(Follow { feed, prefix: wanted.prefix, stop: control.stop.clone() }, next);
        return Ok(control.feed(caller, events));
    }
    let list = control.in_bucket(&caller, name, move |data, bucket| {
        let page = data.kv(&bucket)?.scan(&wanted.prefix, wanted.after.as_deref(), wanted.limit())?;
        let items = page.entries.iter().map(|(key, entry)| info(key, entry.as_ref().ok(), wanted.values)).collect();
        Ok(EntryList { items, next: page.next.map(|key| keys::cursor(&key)) })
    });
    Ok(Json(list.await?).into_response())
}

/// Reads the value of an entry. HEAD answers the same without it.
#[utoipa::path(get, path = "/v1/buckets/{name}/kv/{key}", operation_id = "kv_get", security(("token" = ["read"])),
    params(("name" = String, Path), ("key" = String, Path, description = "1 to 512 bytes, percent-encoded"),
        ("if-none-match" = Option<String>, Header), ("if-match" = Option<String>, Header)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream", headers(("etag" = String), ("hob-expires-ms" = Option<u64>))),
        (status = 304, description = "the client has it"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 412, body = Problem), (status = 503, description = "it is damaged", body = Problem)))]
pub(super) async fn get(
    State(control): State<Control>,
    caller: Caller,
    _: NoQuery,
    InBucket(name): InBucket,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let found = control.in_bucket(&caller, name, move |data, bucket| data.kv(&bucket)?.get(&key)).await?;
    let entry = found.ok_or_else(no_entry)?;
    let mut response = match conditions::of_read(&headers, &entry.version.to_string(), None)? {
        Read::NotModified => StatusCode::NOT_MODIFIED.into_response(),
        Read::Send => {
            let kind = (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
            // Said here, because the answer to HEAD has no body that would say it.
            let len = (CONTENT_LENGTH, HeaderValue::from(entry.value.len()));
            ([kind, len], Body::from(entry.value)).into_response()
        }
    };
    response.headers_mut().insert(ETAG, etag(entry.version));
    if let Some(expires_ms) = entry.expires_ms {
        response.headers_mut().insert(EXPIRES, expires_ms.into());
    }
    response.headers_mut().extend(HARMLESS);
    Ok(response)
}

/// Writes the value of an entry, in place of whatever was there.
#[utoipa::path(put, path = "/v1/buckets/{name}/kv/{key}", operation_id = "kv_put", security(("token" = ["deploy"])),
    params(("name" = String, Path), ("key" = String, Path, description = "1 to 512 bytes, percent-encoded"),
        ("ttl" = Option<String>, Query, description = "how long it stays, such as `10s`; for ever when absent"),
        ("if-match" = Option<String>, Header, description = "only if the entry has one of these ETags; `*`: only if there is one"),
        ("if-none-match" = Option<String>, Header, description = "`*`: only if there is no entry"),
        ("content-digest" = Option<String>, Header, description = "`sha-256=:BASE64:` of the value (RFC 9530)"),
        ("repr-digest" = Option<String>, Header, description = "the same: a body has no content coding here"),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream", description = "the value, at most 1 MiB"),
    responses((status = 204, description = "written", headers(("etag" = String))), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 408, body = Problem), (status = 412, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem), (status = 429, description = "a quota is used up", body = Problem), (status = 503, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn put(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    InBucket(name): InBucket,
    Key(key): Key,
    request: Request,
) -> Result<Response, Refusal> {
    let wanted = Wanted::read(request.uri(), &["ttl"])?;
    let when = when(request.headers())?;
    conditions::whole_and_plain(request.headers())?;
    let digest = conditions::announced_digest(request.headers())?;
    let value = axum::body::to_bytes(request.into_body(), VALUE_LEN_MAX).await.map_err(|error| value_fault(&error))?;
    if let Some(wanted) = digest {
        let bytes = value.clone();
        let found = blocking(move || Digest::of(&bytes)).await?;
        if found != wanted {
            return Err(DataError::WrongDigest { wanted, found }.fault().into());
        }
    }
    let ticket = match once.look(&control, vec![value.clone()]).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    let when = control.settled(&caller, &name, &key, when).await?;
    let ops = vec![Op::Set { key: key.into(), value, ttl: wanted.ttl, when }];
    Ok(control.write(&caller, name, ops, ticket, was_set).await?.ok_or_else(not_done)?)
}

/// In the words of the other doors, as far as they can be said of a value whose end nobody saw.
fn value_fault(error: &(dyn std::error::Error + 'static)) -> Fault {
    let fault = body_fault(error);
    match fault.code {
        Code::BodyTooLarge => {
            Fault::new(Code::BodyTooLarge, format!("the value is too long: at most {VALUE_LEN_MAX} bytes are allowed"))
        }
        _ => fault,
    }
}

/// Deletes an entry.
#[utoipa::path(delete, path = "/v1/buckets/{name}/kv/{key}", operation_id = "kv_delete", security(("token" = ["deploy"])),
    params(("name" = String, Path), ("key" = String, Path), ("if-match" = Option<String>, Header),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")),
    responses((status = 204), (status = 400, body = Problem), (status = 404, body = Problem), (status = 412, body = Problem),
        (status = 429, description = "a quota is used up", body = Problem), (status = 503, body = Problem), (status = 507, description = "the disk cannot be written", body = Problem)))]
pub(super) async fn delete(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    _: NoQuery,
    InBucket(name): InBucket,
    Key(key): Key,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let when = when(&headers)?;
    let ticket = match once.look(&control, Vec::new()).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    let when = control.settled(&caller, &name, &key, when).await?;
    let ops = vec![Op::Delete { key: key.into(), when }];
    Ok(control.write(&caller, name, ops, ticket, was_deleted).await?.ok_or_else(no_entry)?)
}

/// Adds to the number in an entry: decimal text that an i64 holds. No entry counts as 0; the time to live stays.
#[utoipa::path(post, path = "/v1/buckets/{name}/kv/{key}", operation_id = "kv_increment", security(("token" = ["deploy"])),
    params(("name" = String, Path), ("key" = String, Path), ("increment" = i64, Query, description = "what is added"),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")),
    responses((status = 200, body = IncrementInfo, headers(("etag" = String))), (status = 400, description = "the value is no number", body = Problem),
        (status = 404, body = Problem), (status = 429, description = "a quota is used up", body = Problem), (status = 503, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn increment(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    InBucket(name): InBucket,
    Key(key): Key,
    request: Request,
) -> Result<Response, Refusal> {
    let by = Wanted::read(request.uri(), &["increment"])?.increment;
    let by = by.ok_or_else(|| Fault::new(Code::BadRequest, "a POST to a key adds to it: expected ?increment=NUMBER"))?;
    conditions::none(request.headers(), "an increment adds to whatever is there; set the value with PUT on a condition")?;
    let no_body = |error: axum::Error| match body_fault(&error) {
        fault if fault.code != Code::BodyTooLarge => fault,
        _ => Fault::new(Code::BadRequest, "an increment has no body: what is added is ?increment=NUMBER"),
    };
    axum::body::to_bytes(request.into_body(), 0).await.map_err(no_body)?;
    let ticket = match once.look(&control, Vec::new()).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    let ops = vec![Op::Increment { key: key.into(), by }];
    Ok(control.write(&caller, name, ops, ticket, was_incremented).await?.ok_or_else(not_done)?)
}

/// Makes several changes, all or none, in order.
#[utoipa::path(post, path = "/v1/buckets/{name}/kv", operation_id = "kv_batch", security(("token" = ["deploy"])),
    params(("name" = String, Path),
        ("idempotency-key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: asked for again with the same key, it is answered again and not done again")), request_body = BatchRequest,
    responses((status = 200, body = BatchInfo), (status = 400, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem),
        (status = 412, description = "a condition does not hold", body = Problem), (status = 413, body = Problem), (status = 429, description = "a quota is used up", body = Problem), (status = 503, body = Problem), (status = 507, body = Problem)))]
pub(super) async fn batch(
    State(control): State<Control>,
    caller: Caller,
    once: Once,
    InBucket(name): InBucket,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    conditions::none(&headers, "each operation of a batch has its own, in its 'if_version' or 'if_absent'")?;
    let place = turn(&control.places.batches, &caller, "batches").await?;
    let body = axum::body::to_bytes(body, BATCH_LEN_MAX).await.map_err(|error| body_fault(&error))?;
    let ticket = match once.look(&control, vec![body.clone()]).await? {
        Found::Answer(answer) => return Ok(answer),
        Found::Nothing(ticket) => ticket,
    };
    // The place comes back from there, to be kept until all is written.
    let read = blocking(move || (read_batch(&body), place));
    let (ops, _place) = read.await?;
    let ops = ops?;
    Ok(control.write(&caller, name, ops, ticket, was_batched).await?.ok_or_else(not_done)?)
}

/// Reads several entries as they were at one moment, in the order of the keys; `null` where there is none, `damaged` where one is not what was
/// written.
#[utoipa::path(post, path = "/v1/buckets/{name}/kv-get", operation_id = "kv_get_many", security(("token" = ["read"])),
    params(("name" = String, Path)), request_body = GetManyRequest,
    responses((status = 200, body = GetManyInfo), (status = 400, body = Problem), (status = 404, body = Problem), (status = 408, body = Problem),
        (status = 413, description = "a key, or all values together, are too long", body = Problem), (status = 503, description = "too many are read", body = Problem)))]
pub(super) async fn get_many(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
    body: Body,
) -> Result<Response, Refusal> {
    let body = axum::body::to_bytes(body, GET_LEN_MAX).await.map_err(|error| body_fault(&error))?;
    // An answer is far larger than its question, so the place is kept until the client has taken it.
    let place = turn(&control.places.readings, &caller, "readings of many entries").await?;
    let (keys, place) = blocking(move || (read_keys(&body), place)).await?;
    let keys = keys?;
    let read = control.in_bucket(&caller, name, move |data, bucket| {
        let asked: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        let found = data.kv(&bucket)?.get_many(&asked)?;
        let item = |(key, found): (&&[u8], Result<Option<Entry>, DataError>)| match found {
            Ok(entry) => entry.map(|entry| info(key, Some(&entry), true)),
            Err(_) => Some(info(key, None, true)),
        };
        let items = asked.iter().zip(found).map(item).collect();
        Ok((serde_json::to_vec(&GetManyInfo { items }), place))
    });
    let (json, place) = read.await?;
    let json = Bytes::from(json.map_err(Fault::internal)?);
    let headers = [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (CONTENT_LENGTH, json.len().into())];
    let pieces = stream::unfold((json, place), async |(mut json, place)| {
        let piece = json.split_to(json.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (json, place)))
    });
    Ok((headers, Body::from_stream(pieces)).into_response())
}

fn read_keys(body: &[u8]) -> Result<Vec<Vec<u8>>, Fault> {
    let bad = |what: String| Fault::new(Code::BadRequest, format!("the body names no keys: {what}"));
    let request: GetManyRequest = object(body).map_err(|error| bad(error.to_string()))?;
    check_count(request.keys.len()).map_err(|error| error.fault())?;
    let read = |(index, key): (usize, EntryKey)| {
        let key = join(key.key, key.key_base64).map_err(|what| bad(format!("key {index}: 'key' {what}")))?;
        key.ok_or_else(|| bad(format!("key {index}: 'key' is missing")))
    };
    request.keys.into_iter().enumerate().map(read).collect()
}

fn read_batch(body: &[u8]) -> Result<Vec<Op>, Fault> {
    let bad = |what: String| Fault::new(Code::BadRequest, format!("the body is no batch: {what}"));
    let request: BatchRequest = object(body).map_err(|error| bad(error.to_string()))?;
    check_count(request.ops.len()).map_err(|error| error.fault())?;
    let read = |(index, op)| read_op(op).map_err(|what| bad(format!("operation {index}: {what}")));
    request.ops.into_iter().enumerate().map(read).collect()
}

fn read_op(op: BatchOp) -> Result<Op, String> {
    let key = join(op.key, op.key_base64).map_err(|what| format!("'key' {what}"))?.ok_or("'key' is missing")?.into();
    let value = join(op.value, op.value_base64).map_err(|what| format!("'value' {what}"))?;
    let ttl = op.ttl.map(|text| keys::ttl(&text).map_err(|fault| fault.detail.into_owned())).transpose()?;
    let when = match (op.if_absent, op.if_version) {
        (false, None) => When::Always,
        (true, None) => When::Absent,
        (false, Some(version)) => When::Version(version),
        (true, Some(_)) => return Err("'if_absent' and 'if_version' contradict each other".into()),
    };
    match op.op {
        BatchKind::Set if op.by.is_none() => {
            let value: Bytes = value.ok_or("'value' is missing")?.into();
            Ok(Op::Set { key, value, ttl, when })
        }
        BatchKind::Delete if value.is_none() && ttl.is_none() && op.by.is_none() => Ok(Op::Delete { key, when }),
        BatchKind::Increment if value.is_none() && ttl.is_none() && when == When::Always => {
            Ok(Op::Increment { key, by: op.by.unwrap_or(1) })
        }
        BatchKind::Set => Err("'by' is of an increment".into()),
        BatchKind::Delete => Err("a delete takes no 'value', 'ttl' or 'by'".into()),
        BatchKind::Increment => Err("an increment takes no 'value', no 'ttl' and no condition".into()),
    }
}

fn done_info(done: &Done) -> DoneInfo {
    match *done {
        Done::Set { version } => DoneInfo { version: Some(version), ..DoneInfo::default() },
        Done::Deleted { found } => DoneInfo { found: Some(found), ..DoneInfo::default() },
        Done::Incremented { value, version } => DoneInfo { version: Some(version), value: Some(value), found: None },
    }
}

struct Follow {
    feed: Receiver<Changed>,
    prefix: Vec<u8>,
    stop: Stop,
}

/// The next change under the prefix; the feed ends when the bucket is gone or the node stops.
async fn next(mut follow: Follow) -> Option<(Result<Event, Infallible>, Follow)> {
    loop {
        let received = tokio::select! {
            () = follow.stop.stopped() => return None,
            received = follow.feed.recv() => received,
        };
        let event = match received {
            Ok(change) if change.key.starts_with(&follow.prefix) => {
                let (key, key_base64) = split(&change.key);
                let info = ChangeInfo { key, key_base64, version: change.version, deleted: change.version.is_none() };
                Event::default().data(serde_json::to_string(&info).unwrap_or_default())
            }
            Ok(_) => continue,
            Err(RecvError::Lagged(count)) => {
                Event::default().comment(format!("{count} changes were lost: this reader is too slow"))
            }
            Err(RecvError::Closed) => return None,
        };
        return Some((Ok(event), follow));
    }
}
