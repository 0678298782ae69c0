//! `Idempotency-Key`: a change that is asked for again is answered again, and not made again.
//!
//! ```text
//! key in use by another request      409 idempotency-key-running
//! key unknown                        the change is made; its answer is kept with it
//! key known, same request            the kept answer, with hob-replayed: 1
//! key known, another request         422 idempotency-key-reused
//! ```
//!
//! A request is the same if method, target, what it sends and the headers that say what is to be done are. Only what was done is kept: a
//! refusal changed nothing, and asking again is trying again. Which routes take keys is in their descriptions.
//!
//! Owns these rules. Knows nothing about what routes change, or where answers are kept. Invariant: whoever has a [`Ticket`] has the key to
//! itself, and nothing was kept under it before.

use std::time::Duration;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;

use super::Control;
use super::access::Caller;
use super::answer::Refusal;
use super::audited::Detail;
use crate::config;
use crate::dispatch::templates::blocking;
use crate::fault::{Code, Fault};
use crate::id::Digest;
use crate::idempotency::{Answer, Begun, KEY_LEN_MAX, KeptAnswer, Running, Ticket};

/// Names a change that may be asked for again.
pub(super) const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Marks an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("hob-replayed");
/// Headers that say what is to be done.
static SAYING: [HeaderName; 4] =
    [IF_MATCH, IF_NONE_MATCH, HeaderName::from_static("hob-signature"), HeaderName::from_static("hob-signed-version")];

/// What is kept of changes, and which of them are under way.
#[derive(Debug, Clone)]
pub struct Answers {
    running: Running,
    time: Duration,
    max: u64,
}

impl Answers {
    /// As the node is configured.
    #[must_use]
    pub fn new(config: &config::Data) -> Self {
        Self { running: Running::default(), time: config.answers_time.0, max: config.answers_max }
    }
}

/// The key of a request.
///
/// # Errors
/// `bad-request` for what is no key.
pub(super) fn key(headers: &HeaderMap) -> Result<Option<&str>, Fault> {
    let mut values = headers.get_all(KEY).iter();
    let (Some(value), more) = (values.next(), values.next()) else { return Ok(None) };
    let is_key = |text: &&str| (1..=KEY_LEN_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    let key = std::str::from_utf8(value.as_bytes()).ok().filter(is_key).filter(|_| more.is_none());
    key.map(Some).ok_or_else(|| {
        let detail = format!("'{KEY}' is malformed: expected one header with 1 to {KEY_LEN_MAX} visible ASCII characters");
        Fault::new(Code::BadRequest, detail).hint("use a new UUID for each change, and the same one when you ask again")
    })
}

/// A key where none is taken.
pub(super) fn not_here() -> Fault {
    let detail = format!("this route keeps no answers, so it takes no '{KEY}'");
    Fault::new(Code::BadRequest, detail).hint("leave the header out; docs/control-api.md says which routes take it")
}

/// The request's key, which is in use as long as this lives; nothing if it has none.
#[derive(Debug)]
pub(super) struct Once(Option<Asked>);

#[derive(Debug)]
struct Asked {
    begun: Begun,
    /// Digest of all that is asked but for what is sent.
    head: Digest,
}

impl FromRequestParts<Control> for Once {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, control: &Control) -> Result<Self, Refusal> {
        let caller = Caller::from_request_parts(parts, control).await?;
        let Some(key) = key(&parts.headers)? else { return Ok(Self(None)) };
        let id = of_caller(&caller, key);
        let begun = control.answers.running.begin(&caller.tenant, id).map_err(|error| error.fault())?;
        Ok(Self(Some(Asked { begun, head: head(parts) })))
    }
}

/// Digest of a key and of who uses it: a token that is made anew under an old name is another caller.
fn of_caller(caller: &Caller, key: &str) -> Digest {
    match &caller.token {
        None => Digest::of_parts(&[key.as_bytes()]),
        Some(token) => {
            let made = token.created_ms.to_le_bytes();
            Digest::of_parts(&[key.as_bytes(), token.tenant.as_str().as_bytes(), token.name.as_str().as_bytes(), &made])
        }
    }
}

fn head(parts: &Parts) -> Digest {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let mut all = vec![parts.method.as_str().as_bytes(), target.as_bytes()];
    for name in &SAYING {
        // Named before its values, so that one header is not taken for another.
        all.push(name.as_str().as_bytes());
        all.extend(parts.headers.get_all(name).iter().map(HeaderValue::as_bytes));
    }
    Digest::of_parts(&all)
}

/// What was found under a key.
#[derive(Debug)]
pub(super) enum Found {
    /// What the same request was answered with.
    Answer(Response),
    /// Nothing, so it is to be done; the ticket is missing if there is no key.
    Nothing(Option<Ticket>),
}

impl Once {
    /// Whether this was asked before. `sent`: what came with the request, in parts.
    ///
    /// # Errors
    /// `idempotency-key-reused` if something else was asked with the key, and those of storage.
    pub(super) async fn look(self, control: &Control, sent: Vec<Bytes>) -> Result<Found, Fault> {
        let Some(Asked { begun, head }) = self.0 else { return Ok(Found::Nothing(None)) };
        let Answers { time, max: answers_max, .. } = control.answers;
        let (deployer, data) = (control.deployer.clone(), control.data.clone());
        blocking(move || {
            let parts: Vec<&[u8]> = std::iter::once(head.bytes().as_slice()).chain(sent.iter().map(AsRef::as_ref)).collect();
            let request = Digest::of_parts(&parts);
            let (tenant, id) = (begun.tenant(), begun.id());
            let mut kept = deployer.answer(tenant, &id)?;
            if kept.is_none() {
                kept = data.answer(tenant, &id).map_err(|error| error.fault())?;
            }
            match kept {
                None => Ok(Found::Nothing(Some(Ticket { begun, request, time, answers_max }))),
                Some(KeptAnswer { request: before, answer }) if before == request => Ok(Found::Answer(again(answer))),
                Some(_) => {
                    let detail = "this key was sent before, with another request: nothing was changed";
                    Err(Fault::new(Code::IdempotencyKeyReused, detail).hint("use a new key for each change"))
                }
            }
        })
        .await?
    }
}

fn again(answer: Answer) -> Response {
    let mut response = respond(answer);
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("1"));
    response.extensions_mut().insert(Detail(serde_json::json!({ "replayed": true })));
    response
}

/// An answer on its way.
pub(super) fn respond(answer: Answer) -> Response {
    answer.map(Body::from)
}

/// An answer without a body.
pub(super) fn bare(status: StatusCode, etag: Option<HeaderValue>) -> Answer {
    let mut answer = Answer::default();
    *answer.status_mut() = status;
    answer.headers_mut().extend(etag.map(|etag| (ETAG, etag)));
    answer
}

/// An answer of JSON.
pub(super) fn json(status: StatusCode, etag: Option<HeaderValue>, body: &impl Serialize) -> Answer {
    let mut answer = bare(status, etag);
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    *answer.body_mut() = serde_json::to_vec(body).expect("what wire.rs describes are texts, numbers and lists").into();
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_key() {
        let of = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(KEY, HeaderValue::from_bytes(value).unwrap());
            }
            key(&headers).map(|key| key.map(ToOwned::to_owned)).map_err(|fault| fault.code)
        };
        assert_eq!(of(&[]), Ok(None));
        let longest = "k".repeat(KEY_LEN_MAX);
        for good in ["k", "8e03978e-40d5-43dd-bc93-6894a57f9324", "\"quoted\"", longest.as_str()] {
            assert_eq!(of(&[good.as_bytes()]), Ok(Some(good.to_owned())), "{good}");
        }
        let too_long = "k".repeat(KEY_LEN_MAX + 1);
        for bad in [&b""[..], b"a b", b"a\tb", b"\xc3\xa9", b"\xff", too_long.as_bytes()] {
            assert_eq!(of(&[bad]), Err(Code::BadRequest), "{}", bad.escape_ascii());
        }
        assert_eq!(of(&[b"k", b"k"]), Err(Code::BadRequest));
    }

    #[test]
    fn what_makes_two_requests_the_same() {
        let of = |method: &str, target: &str, headers: &[(&str, &str)]| {
            let mut request = http::Request::builder().method(method).uri(target);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            head(&request.body(()).unwrap().into_parts().0)
        };
        let one = of("PUT", "/a?x=1", &[("if-match", "\"1\"")]);
        assert_eq!(of("PUT", "/a?x=1", &[("if-match", "\"1\""), ("user-agent", "curl"), ("idempotency-key", "k")]), one);
        for other in [
            of("POST", "/a?x=1", &[("if-match", "\"1\"")]),
            of("PUT", "/b?x=1", &[("if-match", "\"1\"")]),
            of("PUT", "/a?x=2", &[("if-match", "\"1\"")]),
            of("PUT", "/a?x=1", &[("if-match", "\"2\"")]),
            of("PUT", "/a?x=1", &[("if-none-match", "\"1\"")]),
            of("PUT", "/a?x=1", &[("if-match", "\"1\""), ("hob-signed-version", "2")]),
            of("PUT", "/a?x=1", &[]),
        ] {
            assert_ne!(other, one);
        }
    }
}
