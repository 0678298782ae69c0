//! What the client asks about buckets, entries and objects.
//!
//! Owns these requests. Knows nothing about what is printed. Keys are bytes, and every one of them that a path could misread is encoded.

use std::collections::HashSet;
use std::io::{BufReader, Read};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::{Body, SendBody};

use super::super::failure::{Exit, Failure};
use super::{Client, EXPECT_ABOVE, Feed, accept, read};
use crate::control::wire::{
    BatchInfo, BatchOp, BatchRequest, BucketInfo, BucketList, BucketRequest, ChangeInfo, DESCRIBED, DescribedRequest, EntryInfo,
    EntryKey, EntryList, GetManyInfo, GetManyRequest, IncrementInfo, NO_ENTRY, NO_OBJECT, ObjectInfo, ObjectItem, ObjectList,
    ScrubInfo, split,
};
use crate::id::BucketName;

/// On which condition something is written.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Condition {
    /// Only if what is there has this ETag, without its quotes.
    pub(in crate::cli) if_match: Option<String>,
    /// Only if nothing is there.
    pub(in crate::cli) if_absent: bool,
}

impl Condition {
    fn apply(&self, mut request: http::request::Builder) -> http::request::Builder {
        if let Some(tag) = &self.if_match {
            request = request.header("if-match", format!("\"{}\"", tag.trim_matches('"')));
        }
        if self.if_absent {
            request = request.header("if-none-match", "*");
        }
        request
    }
}

/// An object to be put.
#[derive(Debug, Default)]
pub(in crate::cli) struct Put<'a> {
    /// Where.
    pub(in crate::cli) key: &'a [u8],
    /// Its length, if it is known.
    pub(in crate::cli) len: Option<u64>,
    /// Media type.
    pub(in crate::cli) content_type: Option<&'a str>,
    /// Names and values.
    pub(in crate::cli) metadata: &'a [(String, String)],
    /// How long it stays.
    pub(in crate::cli) ttl: Option<String>,
    /// Its digest as `content-digest` has it, if it is known.
    pub(in crate::cli) digest: Option<String>,
}

impl Put<'_> {
    /// The headers that say content type and metadata: readable ones if they can.
    fn described(&self) -> Vec<(HeaderName, HeaderValue)> {
        let is_value = |text: &str| text.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) && text.trim() == text;
        let kind = self.content_type.map(|kind| {
            let value = HeaderValue::try_from(kind).ok().filter(|_| is_value(kind) && !kind.is_empty());
            Some((CONTENT_TYPE, value?))
        });
        let pair = |(name, value): &(String, String)| {
            let header = HeaderName::try_from(format!("hob-meta-{name}")).ok();
            // Another case would be another name.
            let header = header.filter(|header| !name.is_empty() && header.as_str().strip_prefix("hob-meta-") == Some(name));
            let value = HeaderValue::try_from(value).ok().filter(|_| is_value(value));
            Some((header?, value?))
        };
        let plain: Option<Vec<_>> = kind.into_iter().chain(self.metadata.iter().map(pair)).collect();
        let is_once = |headers: &Vec<(HeaderName, HeaderValue)>| {
            headers.iter().map(|(name, _)| name).collect::<HashSet<_>>().len() == headers.len()
        };
        if let Some(plain) = plain.filter(is_once) {
            return plain;
        }
        let (content_type, metadata) = (self.content_type.map(Into::into), self.metadata.to_vec());
        // Text alone: it is legal JSON, and Base64 a legal header.
        let json = serde_json::to_vec(&DescribedRequest { content_type, metadata }).unwrap_or_default();
        HeaderValue::try_from(STANDARD.encode(json))
            .map(|value| (HeaderName::from_static(DESCRIBED), value))
            .into_iter()
            .collect()
    }
}

impl Client {
    /// All buckets, by name.
    pub(in crate::cli) fn buckets(&self) -> Result<Vec<BucketInfo>, Failure> {
        self.all("/v1/buckets", "", |list: BucketList| (list.items, list.next))
    }

    /// Buckets whose accounts are damaged.
    pub(in crate::cli) fn damaged_buckets(&self) -> Result<Vec<String>, Failure> {
        let mut damaged = Vec::new();
        // Each page has all of them.
        self.pages("/v1/buckets", "", |list: BucketList| {
            damaged = list.damaged;
            Ok(None)
        })?;
        Ok(damaged)
    }

    /// One bucket.
    pub(in crate::cli) fn bucket(&self, name: &BucketName) -> Result<BucketInfo, Failure> {
        self.ask(Request::get(self.url(name, "")), SendBody::none())
    }

    /// Makes a bucket or changes its quotas; whether it was made.
    pub(in crate::cli) fn put_bucket(&self, name: &BucketName, wanted: &BucketRequest) -> Result<(BucketInfo, bool), Failure> {
        let response = self.send_json(Request::put(self.url(name, "")), wanted)?;
        let is_new = response.status() == StatusCode::CREATED;
        Ok((read(response)?, is_new))
    }

    /// Deletes a bucket with all that is in it.
    pub(in crate::cli) fn delete_bucket(&self, name: &BucketName) -> Result<(), Failure> {
        self.done(Request::delete(self.url(name, "")))
    }

    /// Reads everything in a bucket and holds it against its checksums.
    pub(in crate::cli) fn scrub(&self, name: &BucketName) -> Result<ScrubInfo, Failure> {
        self.ask(Request::post(self.url(name, "/scrub")), SendBody::none())
    }

    /// The entries under a prefix: each page goes to `each`.
    pub(in crate::cli) fn entries(
        &self,
        name: &BucketName,
        prefix: &[u8],
        values: bool,
        mut each: impl FnMut(Vec<EntryInfo>) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        let path = format!("/v1/buckets/{name}/kv");
        let query = format!("values={values}&prefix={}", encode(prefix));
        self.pages(&path, &query, |list: EntryList| each(list.items).map(|()| list.next))
    }

    /// The value of an entry, with its version and its end.
    pub(in crate::cli) fn entry(&self, name: &BucketName, key: &[u8]) -> Result<(Vec<u8>, u64, Option<u64>), Failure> {
        let response = self.good(Request::get(self.key_url(name, "kv", key)), SendBody::none())?;
        let version = version(response.headers())?;
        let expires_ms = response.headers().get("hob-expires-ms").and_then(|value| value.to_str().ok()?.parse().ok());
        let mut value = Vec::new();
        body(response).read_to_end(&mut value).context("the value broke off")?;
        Ok((value, version, expires_ms))
    }

    /// Several entries as they were at one moment, in the order of their keys; `None` where there is none.
    pub(in crate::cli) fn get_many(&self, name: &BucketName, keys: &[Vec<u8>]) -> Result<Vec<Option<EntryInfo>>, Failure> {
        let key = |key: &Vec<u8>| {
            let (key, key_base64) = split(key);
            EntryKey { key, key_base64 }
        };
        let request = GetManyRequest { keys: keys.iter().map(key).collect() };
        let list: GetManyInfo = read(self.send_json(Request::post(self.url(name, "/kv-get")), &request)?)?;
        match list.items.len() == keys.len() {
            true => Ok(list.items),
            false => Err(Failure::new(Exit::Failure, "the daemon's answer has not one entry for each key")),
        }
    }

    /// Writes an entry; its version.
    pub(in crate::cli) fn set(
        &self,
        name: &BucketName,
        key: &[u8],
        value: &[u8],
        ttl: Option<&str>,
        condition: &Condition,
    ) -> Result<u64, Failure> {
        let ttl = ttl.map(|ttl| format!("?ttl={}", encode(ttl.as_bytes()))).unwrap_or_default();
        let request = Request::put(format!("{}{ttl}", self.key_url(name, "kv", key))).header("content-length", value.len());
        let response = self.good(condition.apply(request), SendBody::from_reader(&mut &*value))?;
        version(response.headers())
    }

    /// Deletes an entry or an object; `kind` is `kv` or `objects`.
    pub(in crate::cli) fn delete(&self, name: &BucketName, kind: &str, key: &[u8], condition: &Condition) -> Result<(), Failure> {
        self.done(condition.apply(Request::delete(self.key_url(name, kind, key))))
    }

    /// Adds to a number.
    pub(in crate::cli) fn increment(&self, name: &BucketName, key: &[u8], by: i64) -> Result<IncrementInfo, Failure> {
        self.ask(Request::post(format!("{}?increment={by}", self.key_url(name, "kv", key))), SendBody::none())
    }

    /// Makes changes, all or none.
    pub(in crate::cli) fn batch(&self, name: &BucketName, ops: Vec<BatchOp>) -> Result<BatchInfo, Failure> {
        read(self.send_json(Request::post(self.url(name, "/kv")), &BatchRequest { ops })?)
    }

    /// What is changed from now on under a prefix, until the daemon ends the stream.
    pub(in crate::cli) fn watch(&self, name: &BucketName, prefix: &[u8]) -> Result<Feed<ChangeInfo>, Failure> {
        let request = Request::get(self.url(name, &format!("/kv?watch=true&prefix={}", encode(prefix))));
        Ok(Feed::new(self.good(request.header("accept", "text/event-stream"), SendBody::none())?))
    }

    /// The objects under a prefix.
    pub(in crate::cli) fn objects(&self, name: &BucketName, prefix: &[u8]) -> Result<Vec<ObjectItem>, Failure> {
        let query = format!("prefix={}", encode(prefix));
        self.all(&format!("/v1/buckets/{name}/objects"), &query, |list: ObjectList| (list.items, list.next))
    }

    /// An object: its length and its bytes.
    pub(in crate::cli) fn object(&self, name: &BucketName, key: &[u8]) -> Result<(u64, Box<dyn Read>), Failure> {
        let response = self.good(Request::get(self.key_url(name, "objects", key)), SendBody::none())?;
        let len = response.headers().get("content-length").and_then(|len| len.to_str().ok()?.parse().ok());
        let len = len.context("the daemon did not say how long the object is")?;
        Ok((len, Box::new(body(response))))
    }

    /// Puts an object.
    pub(in crate::cli) fn put_object(
        &self,
        name: &BucketName,
        put: &Put<'_>,
        condition: &Condition,
        bytes: &mut dyn Read,
    ) -> Result<ObjectInfo, Failure> {
        let ttl = put.ttl.as_ref().map(|ttl| format!("?ttl={}", encode(ttl.as_bytes()))).unwrap_or_default();
        let mut request = Request::put(format!("{}{ttl}", self.key_url(name, "objects", put.key)));
        if let Some(len) = put.len {
            request = request.header("content-length", len);
        }
        if put.len.is_none_or(|len| len > EXPECT_ABOVE) {
            request = request.header("expect", "100-continue");
        }
        if let Some(digest) = &put.digest {
            request = request.header("content-digest", digest);
        }
        request = put.described().into_iter().fold(request, |request, (name, value)| request.header(name, value));
        self.ask(condition.apply(request), SendBody::from_reader(bytes))
    }

    fn url(&self, name: &BucketName, rest: &str) -> String {
        format!("{}/v1/buckets/{name}{rest}", self.base)
    }

    fn key_url(&self, name: &BucketName, kind: &str, key: &[u8]) -> String {
        self.url(name, &format!("/{kind}/{}", encode(key)))
    }

    /// Sends a request whose answer must be good.
    fn good(&self, request: http::request::Builder, body: SendBody<'_>) -> Result<Response<Body>, Failure> {
        let path = request.uri_ref().map(|uri| uri.path().to_owned()).unwrap_or_default();
        accept_data(self.send(request, body)?, &path)
    }

    fn ask<T: DeserializeOwned>(&self, request: http::request::Builder, body: SendBody<'_>) -> Result<T, Failure> {
        read(self.good(request, body)?)
    }

    fn done(&self, request: http::request::Builder) -> Result<(), Failure> {
        self.good(request, SendBody::none()).map(drop)
    }

    fn send_json(&self, request: http::request::Builder, value: &impl Serialize) -> Result<Response<Body>, Failure> {
        let body = serde_json::to_vec(value).context("the request cannot be written as JSON")?;
        let request = request.header("content-type", "application/json").header("content-length", body.len());
        self.good(request, SendBody::from_reader(&mut body.as_slice()))
    }

    /// Asks for page after page; `each` takes one and answers the cursor of the next.
    fn pages<L: DeserializeOwned>(
        &self,
        path: &str,
        query: &str,
        mut each: impl FnMut(L) -> Result<Option<String>, Failure>,
    ) -> Result<(), Failure> {
        let mut cursor = String::new();
        loop {
            let url = format!("{}{path}?{query}{cursor}", self.base);
            let list = self.ask(Request::builder().method(Method::GET).uri(url), SendBody::none())?;
            match each(list)? {
                Some(next) => cursor = format!("&cursor={}", encode(next.as_bytes())),
                None => return Ok(()),
            }
        }
    }

    fn all<L: DeserializeOwned, T>(
        &self,
        path: &str,
        query: &str,
        parts: impl Fn(L) -> (Vec<T>, Option<String>),
    ) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        self.pages(path, query, |list: L| {
            let (items, next) = parts(list);
            all.extend(items);
            Ok(next)
        })?;
        Ok(all)
    }
}

fn version(headers: &HeaderMap) -> Result<u64, Failure> {
    let tag = headers.get("etag").and_then(|tag| tag.to_str().ok()?.trim_matches('"').parse().ok());
    Ok(tag.context("the daemon did not say the entry's version")?)
}

fn body(response: Response<Body>) -> impl Read {
    BufReader::with_capacity(64 << 10, response.into_body().into_with_config().limit(u64::MAX).reader())
}

/// A response that is what was asked for. The next command is one about buckets, or about what is in this one.
fn accept_data(response: Response<Body>, path: &str) -> Result<Response<Body>, Failure> {
    // The answer to a request without a path of its own is read as any other.
    let code = response.headers().get("hob-error").and_then(|code| code.to_str().ok()).map(ToOwned::to_owned);
    accept(response, None).map_err(|failure| match code.as_deref() {
        // Only these say that the bucket is there.
        Some("not-found") if failure.sentence() == NO_ENTRY => failure.next(list_command("kv", path)),
        Some("not-found") if failure.sentence() == NO_OBJECT => failure.next(list_command("blob", path)),
        Some("damaged") => failure.next("hob doctor"),
        Some("overloaded" | "draining" | "client-timeout") | None => failure,
        Some(code) => failure.next(next_command(code, path)),
    })
}

/// What lists the keys of the bucket in `/v1/buckets/NAME/KIND/KEY`.
fn list_command(command: &str, path: &str) -> String {
    let scheme = if command == "blob" { "hob:" } else { "" };
    format!("hob {command} ls {scheme}{}", path.split('/').nth(3).unwrap_or_default())
}

/// What to do after a refusal of `/v1/buckets/NAME/KIND/KEY`.
fn next_command(code: &str, path: &str) -> String {
    let mut parts = path.split('/').skip(3);
    let (name, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let command = match kind {
        "kv" | "kv-get" => "kv",
        "objects" => "blob",
        _ => "bucket",
    };
    match code {
        "bad-request" | "body-too-large" | "unsupported-media" => format!("hob {command} --help"),
        // The version or the digest that the condition must name.
        "precondition-failed" if command != "bucket" => format!("hob {command} ls {name} -o json"),
        "quota-exceeded" | "storage-full" if !name.is_empty() && command != "bucket" => format!("hob bucket inspect {name}"),
        _ => "hob bucket ls".into(),
    }
}

/// Percent-encodes all that is not unreserved, slashes too: then no client or proxy takes dots between them for a way.
fn encode(bytes: &[u8]) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    bytes.iter().map(|byte| if keep(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_header_can_say_goes_in_json() {
        let names = |content_type: Option<&str>, pairs: &[(&str, &str)]| {
            let metadata: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let put = Put { content_type, metadata: &metadata, ..Put::default() };
            put.described().iter().map(|(name, _)| name.to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(names(None, &[]), "");
        assert_eq!(names(Some("a/b"), &[("by", "Ana B."), ("of", "")]), "content-type hob-meta-by hob-meta-of");
        for pair in [
            ("By", "x"),
            ("", "x"),
            ("a b", "x"),
            ("é", "x"),
            ("a", "é"),
            ("a", " x"),
            ("a", "x\t"),
            ("a", "x\r\ny: z"),
            ("a", "\0"),
        ] {
            assert_eq!(names(Some("a/b"), &[("by", "x"), pair]), "hob-described", "{pair:?}");
        }
        assert_eq!(names(None, &[("a", "1"), ("a", "2")]), "hob-described");
        assert_eq!((names(Some("é"), &[]), names(Some("a\n"), &[])), ("hob-described".into(), "hob-described".into()));
    }

    #[test]
    fn refusals_lead_on() {
        for (code, path, expected) in [
            ("not-found", "/v1/buckets/b/kv/k", "hob bucket ls"),
            ("bad-request", "/v1/buckets/b/kv/k", "hob kv --help"),
            ("bad-request", "/v1/buckets/b/kv-get", "hob kv --help"),
            ("bad-request", "/v1/buckets/b/objects/k", "hob blob --help"),
            ("bad-request", "/v1/buckets/b", "hob bucket --help"),
            ("precondition-failed", "/v1/buckets/b/objects/k", "hob blob ls b -o json"),
            ("storage-full", "/v1/buckets/b/kv", "hob bucket inspect b"),
            ("storage-full", "/v1/buckets/b", "hob bucket ls"),
            ("quota-exceeded", "/v1/buckets/b/kv/k", "hob bucket inspect b"),
        ] {
            assert_eq!(next_command(code, path), expected, "{code} {path}");
        }
        assert_eq!(list_command("kv", "/v1/buckets/b/kv/k%2Fl"), "hob kv ls b");
        assert_eq!(list_command("blob", "/v1/buckets/b/objects/k"), "hob blob ls hob:b");
    }
}
