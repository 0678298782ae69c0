//! What a function is told of an event, and what is left of one that was given up.
//!
//! Owns the request, its headers and its JSON (`docs/data.md` describes them). Knows nothing about when it is sent. Invariant: whatever a
//! key is, the headers are legal.

use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri};
use serde_json::{Value, json};

use super::delivery::Failure;
use crate::data::events::{Change, Event, Lane};
use crate::invocation::{Invocation, Payload, Target};

const TRIGGER: HeaderName = HeaderName::from_static("hob-trigger");
const EVENT: HeaderName = HeaderName::from_static("hob-event");
const BUCKET: HeaderName = HeaderName::from_static("hob-bucket");
const KEY: HeaderName = HeaderName::from_static("hob-key");
const VERSION: HeaderName = HeaderName::from_static("hob-version");
const ETAG: HeaderName = HeaderName::from_static("hob-etag");
const ATTEMPT: HeaderName = HeaderName::from_static("hob-attempt");

/// The request that tells of an event. A client cannot make one like it: its `hob-*` headers do not reach a function.
pub(super) fn invocation(lane: &Lane, event: &Event, attempt: u32) -> Invocation {
    let mut body = describe(lane, event);
    body["attempt"] = attempt.into();
    let body = Bytes::from(body.to_string());
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value: &str| {
        // Names, numbers, digests and what was percent-encoded are legal in a header.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    add(CONTENT_TYPE, "application/json");
    add(CONTENT_LENGTH, &body.len().to_string());
    add(TRIGGER, event.change.on().as_str());
    add(EVENT, &id(lane, event));
    add(BUCKET, lane.bucket.as_str());
    add(KEY, &percent_encoded(&event.key));
    add(ATTEMPT, &attempt.to_string());
    match &event.change {
        Change::Put { version, etag, .. } => {
            add(VERSION, &version.to_string());
            add(ETAG, &etag.to_string());
        }
        Change::Set { version } => add(VERSION, &version.to_string()),
        Change::Deleted => {}
    }
    let mut request = Request::new(Payload::Whole(body));
    (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (Method::POST, Uri::from_static("/"), headers);
    let (tenant, target) = (lane.tenant.clone(), Target::Function(lane.function.clone()));
    Invocation { tenant, target, request, received: Instant::now(), start: None }
}

/// Key of the entry that tells of an event that was given up.
pub(super) fn grave(lane: &Lane, event: &Event) -> String {
    format!("{}/{}", lane.function, id(lane, event))
}

/// Value of that entry.
pub(super) fn letter(lane: &Lane, event: &Event, attempts: u32, failure: &Failure) -> Bytes {
    let mut letter = describe(lane, event);
    letter["function"] = lane.function.as_str().into();
    letter["attempts"] = attempts.into();
    letter["failure"] = json!({ "status": failure.status, "code": failure.code.map(|code| code.as_str()) });
    Bytes::from(letter.to_string())
}

/// The same for each attempt and function, and for no other event of the node.
fn id(lane: &Lane, event: &Event) -> String {
    format!("{}-{}", lane.id, event.number)
}

fn describe(lane: &Lane, event: &Event) -> Value {
    let mut body = json!({
        "event": id(lane, event),
        "trigger": event.change.on().as_str(),
        "bucket": lane.bucket.as_str(),
        "key": std::str::from_utf8(&event.key).ok(),
        "key_encoded": percent_encoded(&event.key),
        "time_ms": event.time_ms,
    });
    match &event.change {
        Change::Put { version, etag, len, content_type } => {
            body["change"] = "put".into();
            body["version"] = (*version).into();
            body["etag"] = etag.to_string().into();
            body["bytes"] = (*len).into();
            body["content_type"] = content_type.as_str().into();
        }
        Change::Set { version } => {
            body["change"] = "set".into();
            body["version"] = (*version).into();
        }
        Change::Deleted => body["change"] = "deleted".into(),
    }
    body
}

/// As in a path of a URL (RFC 3986): all but `A-Z a-z 0-9 - . _ ~ /` becomes `%XX`.
fn percent_encoded(key: &[u8]) -> String {
    let mut text = String::with_capacity(key.len());
    for byte in key {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => text.push(char::from(*byte)),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::events::testing::lane;
    use crate::fault::Code;

    fn event(key: &'static [u8]) -> Event {
        let change = Change::Put { version: 7, etag: crate::id::Digest::of(b"x"), len: 1, content_type: "text/plain".into() };
        Event { number: 3, key: Bytes::from_static(key), change, time_ms: 5 }
    }

    #[test]
    fn any_key_is_told_in_legal_headers() {
        for (key, header, text) in [
            (&b"in/a.txt"[..], "in/a.txt", json!("in/a.txt")),
            (b"a b\r\nhob-x: 1", "a%20b%0D%0Ahob-x%3A%201", json!("a b\r\nhob-x: 1")),
            (b"\xff\x00", "%FF%00", Value::Null),
        ] {
            let request = invocation(&lane("f", "b"), &event(key), 2).request;
            let of = |name: &str| request.headers()[name].to_str().unwrap();
            assert_eq!(
                (of("hob-key"), of("hob-trigger"), of("hob-version"), of("hob-attempt")),
                (header, "object-put", "7", "2")
            );
            assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/"));
            let Payload::Whole(body) = request.body() else { panic!() };
            let body: Value = serde_json::from_slice(body).unwrap();
            assert_eq!((&body["key"], &body["bytes"], &body["attempt"]), (&text, &json!(1), &json!(2)));
        }
    }

    #[test]
    fn a_letter_says_why() {
        let failure = Failure { status: None, code: Some(Code::GuestTrap) };
        let letter: Value = serde_json::from_slice(&letter(&lane("f", "b"), &event(b"k"), 4, &failure)).unwrap();
        assert_eq!((&letter["function"], &letter["attempts"], &letter["key"]), (&json!("f"), &json!(4), &json!("k")));
        assert_eq!(letter["failure"], json!({ "status": null, "code": "guest-trap" }));
    }
}
