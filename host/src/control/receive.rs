//! Putting an object: from the network to where it is kept, piece by piece.
//!
//! Owns the bounds on it while it streams. Writing blocks, so it happens on a thread of its own, a few pieces behind the network. Knows
//! nothing about where objects lie. Invariant: whatever ends an upload early leaves nothing.

use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::Control;
use super::access::Caller;
use super::answer::{Refusal, body_fault};
use super::buckets::{InBucket, holding, turn};
use super::conditions;
use super::keys::{Key, Wanted};
use super::objects::{META, described, info, settled};
use super::wire::{DESCRIBED, DescribedRequest, ObjectInfo, Problem, object};
use crate::data::objects::{Head, PutOptions, Upload};
use crate::data::{AT_ONCE, Ack, DataError, Turn};
use crate::fault::{Code, Fault};

/// Pieces that wait between network and disk.
const PIECES: usize = 4;
/// How much of an object each `data.upload_timeout` is for.
const TIMEOUT_BYTES: u64 = 1 << 30;

/// Puts an object in place of whatever was there. It is visible once it is whole.
#[utoipa::path(put, path = "/v1/buckets/{name}/objects/{key}", operation_id = "object_put", security(("token" = ["deploy"])),
    params(("name" = String, Path), ("key" = String, Path, description = "1 to 512 bytes, percent-encoded"),
        ("ttl" = Option<String>, Query, description = "how long it stays, such as `10s`; for ever when absent"),
        ("content-type" = Option<String>, Header), ("content-digest" = Option<String>, Header, description = "`sha-256=:BASE64:` of the bytes (RFC 9530)"),
        ("repr-digest" = Option<String>, Header, description = "the same: a body has no content coding here"),
        ("hob-meta-NAME" = Option<String>, Header, description = "one for each pair of the metadata"),
        ("hob-described" = Option<String>, Header, description = "in place of those: `{\"content_type\": …, \"metadata\": [[NAME, VALUE], …]}` in Base64, for what no header can say"),
        ("if-match" = Option<String>, Header, description = "only over an object with one of these ETags; `*`: only over one"),
        ("if-unmodified-since" = Option<String>, Header, description = "only if there is none that was put after this date"),
        ("if-none-match" = Option<String>, Header, description = "`*`: only if there is no object")),
    request_body(content = Vec<u8>, content_type = "*/*", description = "the bytes; headers `hob-meta-NAME` are its metadata"),
    responses((status = 201, description = "a new object", body = ObjectInfo, headers(("etag" = String), ("last-modified" = String), ("hob-version" = u64), ("hob-expires-ms" = Option<u64>))),
        (status = 200, description = "in place of another", body = ObjectInfo, headers(("etag" = String), ("last-modified" = String), ("hob-version" = u64), ("hob-expires-ms" = Option<u64>))),
        (status = 400, description = "the digest is another", body = Problem), (status = 404, body = Problem), (status = 408, body = Problem),
        (status = 412, body = Problem), (status = 413, body = Problem), (status = 415, body = Problem), (status = 429, description = "a quota is used up", body = Problem), (status = 503, body = Problem), (status = 507, body = Problem),
        (status = 502, description = "the origin failed", body = Problem), (status = 504, description = "the origin took too long", body = Problem)))]
pub(super) async fn put(
    State(control): State<Control>,
    caller: Caller,
    InBucket(name): InBucket,
    Key(key): Key,
    request: Request,
) -> Result<Response, Refusal> {
    let place = turn(&control.places.objects, &caller, "uploads of objects").await?;
    let mut options = options(&request)?;
    let when = conditions::of_write(request.headers())?;
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let at = key.clone();
    let begun = control.in_objects(&caller, name, move |data, bucket| {
        check_len(announced.unwrap_or_default(), data.object_bytes_max(), bucket.spec.bytes_max)?;
        let objects = data.objects(bucket.spec.durability);
        let found = objects.head(&bucket, &at);
        // What is damaged is something, too.
        let is_new = matches!(found, Ok(None));
        options.when = settled(when, &bucket, found)?;
        Ok((objects.put(&bucket, &at, options)?, is_new))
    });
    let (upload, is_new) = begun.await?;
    let head = receive(upload, request, control.deployer.upload_timeout(), place).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, described(&head), Json(info(&key, &head))).into_response())
}

/// Refuses an announced length before anything of it was sent.
fn check_len(len: u64, object_max: u64, bucket_max: u64) -> Result<(), DataError> {
    if len > object_max {
        return Err(DataError::TooLarge { what: "an object", found: len, max: object_max });
    }
    match len > bucket_max {
        true => Err(DataError::Quota { unit: AT_ONCE, wanted: len, max: bucket_max }),
        false => Ok(()),
    }
}

fn options(request: &Request) -> Result<PutOptions, Fault> {
    let headers = request.headers();
    conditions::whole_and_plain(headers)?;
    let ttl = Wanted::read(request.uri(), &["ttl"])?.ttl;
    let content_type = headers.get(CONTENT_TYPE).map(|kind| kind.to_str().map(ToOwned::to_owned)).transpose();
    let content_type = content_type.map_err(|_| Fault::new(Code::BadRequest, "'content-type' is no text"))?.unwrap_or_default();
    let metadata = metadata(headers)?;
    let (content_type, metadata) = match described_in_json(headers)? {
        None => (content_type, metadata),
        Some(_) if !metadata.is_empty() => {
            return Err(Fault::new(
                Code::BadRequest,
                format!("there are both '{DESCRIBED}' and '{META}…': expected one of them"),
            ));
        }
        Some(described) => (described.content_type.unwrap_or(content_type), described.metadata),
    };
    Ok(PutOptions {
        content_type,
        metadata,
        ttl_ms: ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
        digest: conditions::announced_digest(headers)?,
        ..PutOptions::default()
    })
}

fn metadata(headers: &HeaderMap) -> Result<Vec<(String, String)>, Fault> {
    let mut metadata: Vec<(String, String)> = Vec::new();
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix(META) else { continue };
        let bad = |what: &str| Fault::new(Code::BadRequest, format!("'{header}' {what}"));
        if name.is_empty() {
            return Err(bad("names nothing: expected a name after the last '-'"));
        }
        if metadata.iter().any(|(other, _)| other == name) {
            return Err(bad("is there twice"));
        }
        let value = std::str::from_utf8(value.as_bytes()).map_err(|_| bad("is not UTF-8 text"))?;
        metadata.push((name.into(), value.into()));
    }
    Ok(metadata)
}

/// What is known of an object besides its bytes, for what no header can say as it is: capitals, control characters, spaces at an end.
fn described_in_json(headers: &HeaderMap) -> Result<Option<DescribedRequest>, Fault> {
    let bad = |what: &str| Fault::new(Code::BadRequest, format!("'{DESCRIBED}' {what}: expected JSON in Base64"));
    let mut values = headers.get_all(DESCRIBED).iter();
    let value = match (values.next(), values.next()) {
        (None, _) => return Ok(None),
        (Some(value), None) => value,
        (Some(_), Some(_)) => return Err(bad("is there twice")),
    };
    let json = STANDARD.decode(value).map_err(|_| bad("is no Base64"))?;
    object(&json).map(Some).map_err(|error| bad(&format!("cannot be read ({error})")))
}

/// Takes the body. Each `data.upload_timeout` is for so many bytes, however steadily they come.
async fn receive(upload: Box<dyn Upload>, request: Request, time: Duration, place: Turn) -> Result<Head, Fault> {
    let began = Instant::now();
    let (mut body, mut writer, mut len) = (request.into_body(), Writer::new(upload, place), 0_u64);
    loop {
        let turns = u32::try_from(len / TIMEOUT_BYTES + 1).unwrap_or(u32::MAX);
        let deadline = began + time.saturating_mul(turns);
        let frame = tokio::select! {
            // It ends before the body only if something is wrong, which a client that waits should hear at once.
            ended = writer.end() => return Err(ended.err().unwrap_or_else(unfinished)),
            frame = timeout_at(deadline, body.frame()) => frame,
        };
        let Ok(frame) = frame else {
            let fault = Fault::new(Code::ClientTimeout, format!("the upload came more slowly than a GiB in {time:?}"));
            return Err(fault.hint("send it from nearer by, or raise data.upload_timeout"));
        };
        let Some(frame) = frame else { return writer.finish().await };
        let frame = frame.map_err(|error| body_fault(&error))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            len += data.len() as u64;
            writer.write(data).await?;
        }
    }
}

/// Hands pieces to the thread that writes them.
struct Writer {
    pieces: mpsc::Sender<Bytes>,
    task: JoinHandle<Result<Option<Ack<Head>>, DataError>>,
}

impl Writer {
    fn new(mut upload: Box<dyn Upload>, place: Turn) -> Self {
        let (pieces, mut receiver) = mpsc::channel::<Bytes>(PIECES);
        let task = tokio::task::spawn_blocking(holding(place, move || {
            while let Some(piece) = receiver.blocking_recv() {
                if piece.is_empty() {
                    // What `finish` sends; without it the sender just went away, and what was written goes with `upload`.
                    return Ok(Some(upload.finish()));
                }
                upload.write(&piece)?;
            }
            Ok(None)
        }));
        Self { pieces, task }
    }

    async fn write(&mut self, piece: Bytes) -> Result<(), Fault> {
        match self.pieces.send(piece).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.end().await.err().unwrap_or_else(unfinished)),
        }
    }

    async fn finish(mut self) -> Result<Head, Fault> {
        // If the thread has ended, it says why.
        let _gone = self.pieces.send(Bytes::new()).await;
        match self.end().await? {
            Some(ack) => ack.await.map_err(|error| error.fault()),
            None => Err(unfinished()),
        }
    }

    async fn end(&mut self) -> Result<Option<Ack<Head>>, Fault> {
        (&mut self.task).await.map_err(Fault::internal)?.map_err(|error| error.fault())
    }
}

fn unfinished() -> Fault {
    Fault::internal("an upload ended before it was finished")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_header_can_say_is_said_in_json() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(DESCRIBED, value.parse().unwrap());
            }
            described_in_json(&headers).map_err(|fault| fault.code)
        };
        let good =
            read(&[&STANDARD.encode(r#"{"content_type": "a\n", "metadata": [["A", " \u0000"], ["", ""]]}"#)]).unwrap().unwrap();
        assert_eq!((good.content_type.as_deref(), good.metadata[0].1.as_str(), good.metadata.len()), (Some("a\n"), " \0", 2));
        assert!(read(&[]).unwrap().is_none() && read(&[&STANDARD.encode("{}")]).unwrap().unwrap().metadata.is_empty());
        let (list, unknown, half) =
            (STANDARD.encode(r#"["a/b", []]"#), STANDARD.encode(r#"{"meta": []}"#), STANDARD.encode(r#"{"metadata": [["a"]]}"#));
        for bad in [&["?"][..], &["e30", "e30="], &["e30=", "e30="], &[&list], &[&unknown], &[&half], &["//4="]] {
            assert_eq!(read(bad).unwrap_err(), Code::BadRequest, "{bad:?}");
        }
    }

    #[test]
    fn metadata_are_headers_with_a_name() {
        let read = |pairs: &[(&'static str, &[u8])]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.append(*name, http::HeaderValue::from_bytes(value).unwrap());
            }
            metadata(&headers).map_err(|fault| fault.code)
        };
        let good = read(&[("hob-meta-a", b"1"), ("x-other", b"2"), ("hob-meta-b", "ä".as_bytes())]).unwrap();
        assert_eq!(good, [("a".to_owned(), "1".to_owned()), ("b".to_owned(), "ä".to_owned())]);
        for bad in
            [&[("hob-meta-", b"1".as_slice())][..], &[("hob-meta-a", b"1"), ("hob-meta-a", b"2")], &[("hob-meta-a", b"\xff")]]
        {
            assert_eq!(read(bad), Err(Code::BadRequest), "{bad:?}");
        }
    }
}
