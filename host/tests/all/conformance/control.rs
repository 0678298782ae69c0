//! The control port as a door.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use hob::data::kv::{Done, Entry, Op, When};
use hob::data::objects::{self, PutOptions};
use hob::id::Digest;
use serde_json::{Value, json};

use crate::harness::Node;
use crate::harness::doors::{Entries, Files, Known, Said};
use crate::harness::http::Reply;

/// One bucket as its routes have it.
pub(crate) struct Control<'a> {
    pub(crate) node: &'a Node,
    pub(crate) bucket: &'a str,
    pub(crate) is_of_origin: bool,
}

/// Every byte that could mean something is written as digits, slashes too.
fn encoded(bytes: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    bytes.iter().map(|byte| if plain(*byte) { char::from(*byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// A refusal, as its reader has it.
fn refusal(reply: &Reply) -> String {
    let code = reply.header("hob-error").unwrap_or_else(|| panic!("{} {}", reply.status(), reply.text())).to_owned();
    reply.problem(reply.status(), &code)["detail"].as_str().unwrap().to_owned()
}

/// Whether it says that there is nothing under the key, and not that there is no bucket.
fn is_nothing(reply: &Reply) -> bool {
    reply.status() == 404 && (reply.body.is_empty() || reply.text().contains("under this key"))
}

/// Bytes of JSON that are text under one name, or Base64 under another.
fn joined(item: &Value, name: &str) -> Vec<u8> {
    match item[name].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => STANDARD.decode(item[format!("{name}_base64")].as_str().unwrap()).unwrap(),
    }
}

fn etag(reply: &Reply) -> &str {
    reply.header("etag").unwrap().trim_matches('"')
}

/// The same of an object, whichever it is of: its bytes or a version of an origin.
fn tag(reply: &Reply) -> Digest {
    let (_, digits) = etag(reply).split_once(':').unwrap();
    Digest::from_hex(digits).unwrap()
}

fn expires(reply: &Reply) -> Option<u64> {
    reply.header("hob-expires-ms").map(|text| text.parse().unwrap())
}

impl<'a> Control<'a> {
    pub(crate) fn new(node: &'a Node, bucket: &'a str) -> Self {
        Self { node, bucket, is_of_origin: false }
    }

    /// As a condition has it.
    fn quoted(&self, etag: Digest) -> String {
        format!("\"{}:{}\"", if self.is_of_origin { "origin" } else { "sha256" }, etag.hex())
    }

    fn ask(&self, method: &str, kind: &str, key: &[u8], query: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let target = format!("/v1/buckets/{}/{kind}/{}{query}", self.bucket, encoded(key));
        self.node.control.request(method, &target, headers, body)
    }

    /// All keys by pages.
    fn pages(&self, kind: &str, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        let (mut keys, mut cursor) = (Vec::new(), after.map(|after| URL_SAFE_NO_PAD.encode(after)));
        loop {
            let after = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
            let target = format!("/v1/buckets/{}/{kind}?prefix={}&limit={by}{after}", self.bucket, encoded(prefix));
            let reply = self.node.control.get(&target);
            if reply.status() != 200 {
                return Err(refusal(&reply));
            }
            let page = reply.json();
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= by);
            keys.extend(items.iter().map(|item| joined(item, "key")));
            match page["next"].as_str() {
                Some(next) => cursor = Some(next.to_owned()),
                None => return Ok(keys),
            }
        }
    }
}

/// A query for a time to live.
fn ttl(ms: Option<u128>) -> String {
    ms.map(|ms| format!("?ttl={ms}ms")).unwrap_or_default()
}

fn json_of(op: &Op) -> Value {
    let (Op::Set { when, .. } | Op::Delete { when, .. }) = op else {
        let Op::Increment { key, by } = op else { unreachable!() };
        return json!({ "op": "increment", "key_base64": STANDARD.encode(key), "by": by });
    };
    let mut json = match op {
        Op::Set { value, ttl, .. } => {
            let ttl = ttl.map(|ttl| format!("{}ms", ttl.as_millis()));
            json!({ "op": "set", "value_base64": STANDARD.encode(value), "ttl": ttl })
        }
        _ => json!({ "op": "delete" }),
    };
    json["key_base64"] = STANDARD.encode(op.key()).into();
    match when {
        When::Always => {}
        When::Absent => json["if_absent"] = true.into(),
        When::Present => panic!("a batch has no word for it"),
        When::Version(version) => json["if_version"] = (*version).into(),
    }
    json
}

fn done(json: &Value) -> Done {
    let number = |name: &str| json[name].as_u64();
    match (json["found"].as_bool(), json["value"].as_i64(), number("version")) {
        (Some(found), None, None) => Done::Deleted { found },
        (None, Some(value), Some(version)) => Done::Incremented { value, version },
        (None, None, Some(version)) => Done::Set { version },
        _ => panic!("{json}"),
    }
}

impl Entries for Control<'_> {
    fn entry(&self, key: &[u8]) -> Said<Option<Entry>> {
        let reply = self.ask("GET", "kv", key, "", &[], b"");
        match reply.status() {
            200 => {
                let (version, expires_ms) = (etag(&reply).parse().unwrap(), expires(&reply));
                Ok(Some(Entry { value: Bytes::from(reply.body), version, expires_ms }))
            }
            _ if is_nothing(&reply) => Ok(None),
            _ => Err(refusal(&reply)),
        }
    }
    fn has(&self, key: &[u8]) -> Said<bool> {
        match self.ask("HEAD", "kv", key, "", &[], b"").status() {
            200 => Ok(true),
            // The answer to HEAD has no words.
            _ => Ok(self.entry(key)?.is_some()),
        }
    }
    fn values(&self, keys: &[&[u8]]) -> Said<Vec<Option<Vec<u8>>>> {
        let keys: Vec<_> = keys.iter().map(|key| json!({ "key_base64": STANDARD.encode(key) })).collect();
        let body = json!({ "keys": keys }).to_string();
        let reply = self.node.control.post(&format!("/v1/buckets/{}/kv-get", self.bucket), body.as_bytes());
        if reply.status() != 200 {
            return Err(refusal(&reply));
        }
        let items = reply.json()["items"].as_array().unwrap().clone();
        Ok(items.iter().map(|item| (!item.is_null()).then(|| joined(item, "value"))).collect())
    }
    fn put(&self, key: &[u8], value: &[u8], time: Option<Duration>, when: When) -> Said<u64> {
        let tag = if let When::Version(version) = when { format!("\"{version}\"") } else { "*".into() };
        let condition = match when {
            When::Always => None,
            When::Absent => Some(("if-none-match", tag.as_str())),
            When::Present | When::Version(_) => Some(("if-match", tag.as_str())),
        };
        let query = ttl(time.map(|time| time.as_millis()));
        let reply = self.ask("PUT", "kv", key, &query, condition.as_slice(), value);
        if reply.status() == 204 { Ok(etag(&reply).parse().unwrap()) } else { Err(refusal(&reply)) }
    }
    fn remove(&self, key: &[u8]) -> Said<bool> {
        let reply = self.ask("DELETE", "kv", key, "", &[], b"");
        match reply.status() {
            204 => Ok(true),
            _ if is_nothing(&reply) => Ok(false),
            _ => Err(refusal(&reply)),
        }
    }
    fn add(&self, key: &[u8], by: i64) -> Said<i64> {
        let reply = self.ask("POST", "kv", key, &format!("?increment={by}"), &[], b"");
        if reply.status() == 200 { Ok(reply.json()["value"].as_i64().unwrap()) } else { Err(refusal(&reply)) }
    }
    fn batch(&self, ops: &[Op]) -> Said<Vec<Done>> {
        let body = json!({ "ops": ops.iter().map(json_of).collect::<Vec<_>>() }).to_string();
        let reply = self.node.control.post(&format!("/v1/buckets/{}/kv", self.bucket), body.as_bytes());
        match reply.status() {
            200 => Ok(reply.json()["done"].as_array().unwrap().iter().map(done).collect()),
            _ => Err(refusal(&reply)),
        }
    }
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        self.pages("kv", prefix, after, by)
    }
}

/// What the headers of an answer say.
fn known(reply: &Reply, len: u64) -> Known {
    let metadata = reply.head.headers.iter().filter_map(|(name, value)| Some((name.strip_prefix("hob-meta-")?, value)));
    Known {
        etag: tag(reply),
        len,
        version: reply.header("hob-version").unwrap().parse().unwrap(),
        expires_ms: expires(reply),
        content_type: reply.header("content-type").filter(|kind| *kind != "application/octet-stream").unwrap_or_default().into(),
        metadata: metadata.map(|(name, value)| (name.to_owned(), value.clone())).collect(),
    }
}

impl Files for Control<'_> {
    fn write(&self, key: &[u8], bytes: &[u8], options: &PutOptions) -> Said<Known> {
        let mut headers: Vec<(String, String)> = Vec::new();
        let mut add = |name: &str, value: String| headers.push((name.into(), value));
        if !options.content_type.is_empty() {
            add("content-type", options.content_type.clone());
        }
        let is_plain = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !b.is_ascii_uppercase());
        match options.metadata.iter().all(|(name, _)| is_plain(name)) {
            true => options.metadata.iter().for_each(|(name, value)| add(&format!("hob-meta-{name}"), value.clone())),
            false => add("hob-described", STANDARD.encode(json!({ "metadata": options.metadata }).to_string())),
        }
        if let Some(digest) = options.digest {
            add("content-digest", format!("sha-256=:{}:", STANDARD.encode(digest.bytes())));
        }
        match options.when {
            objects::When::Always => {}
            objects::When::Absent => add("if-none-match", "*".into()),
            objects::When::Present => add("if-match", "*".into()),
            objects::When::Etag(etag) => add("if-match", self.quoted(etag)),
        }
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let reply = self.ask("PUT", "objects", key, &ttl(options.ttl_ms.map(u128::from)), &headers, bytes);
        if !matches!(reply.status(), 200 | 201) {
            return Err(refusal(&reply));
        }
        let info = reply.json();
        assert_eq!(info["etag"].as_str(), Some(etag(&reply)));
        assert!(info["digest"].as_str() == Some(etag(&reply)) || self.is_of_origin);
        Ok(Known {
            etag: tag(&reply),
            len: info["bytes"].as_u64().unwrap(),
            version: info["version"].as_u64().unwrap(),
            expires_ms: info["expires_ms"].as_u64(),
            content_type: info["content_type"].as_str().unwrap().into(),
            metadata: serde_json::from_value(info["metadata"].clone()).unwrap(),
        })
    }
    fn known(&self, key: &[u8]) -> Said<Option<Known>> {
        let reply = self.ask("HEAD", "objects", key, "", &[], b"");
        match reply.status() {
            200 => {
                let mut known = known(&reply, reply.header("content-length").unwrap().parse().unwrap());
                if reply.header("hob-missing-meta").is_some() {
                    let target = format!("/v1/buckets/{}/objects?limit=1&prefix={}", self.bucket, encoded(key));
                    let list = self.node.control.get(&target).ok().json();
                    known.metadata = serde_json::from_value(list["items"][0]["metadata"].clone()).unwrap();
                }
                Ok(Some(known))
            }
            404 => Ok(None),
            // The answer to HEAD has no words, and that to GET the same.
            status => {
                let reply = self.ask("GET", "objects", key, "", &[], b"");
                assert_eq!(reply.status(), status);
                Err(refusal(&reply))
            }
        }
    }
    fn read(&self, key: &[u8], from: u64, to: u64) -> Said<Option<Vec<u8>>> {
        let range = match (from, to) {
            (0, u64::MAX) => None,
            (from, to) => Some(format!("bytes={from}-{}", to - 1)),
        };
        let headers: Vec<_> = range.iter().map(|range| ("range", range.as_str())).collect();
        let reply = self.ask("GET", "objects", key, "", &headers, b"");
        match reply.status() {
            200 | 206 => {
                assert_eq!((reply.status() == 206, reply.whole), (range.is_some(), true));
                Ok(Some(reply.body))
            }
            416 => Ok(Some(Vec::new())),
            _ if is_nothing(&reply) => Ok(None),
            _ => Err(refusal(&reply)),
        }
    }
    fn remove(&self, key: &[u8], when: objects::When) -> Said<bool> {
        let tag = if let objects::When::Etag(etag) = when { self.quoted(etag) } else { String::new() };
        let headers: &[(&str, &str)] = if tag.is_empty() { &[] } else { &[("if-match", &tag)] };
        let reply = self.ask("DELETE", "objects", key, "", headers, b"");
        match reply.status() {
            204 => Ok(true),
            _ if is_nothing(&reply) => Ok(false),
            _ => Err(refusal(&reply)),
        }
    }
    fn list(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        self.pages("objects", prefix, after, by)
    }
    fn is_of_origin(&self) -> bool {
        self.is_of_origin
    }
}
