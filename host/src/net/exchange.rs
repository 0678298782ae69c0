//! What both ports do around an invocation: what of a request reaches a guest, and what of its answer reaches the client.
//!
//! Owns which headers cross in either direction (`headers.rs`), and when a body is read before the guest starts. Invariant: no
//! `hob-*` header of a client reaches a guest, and none of a guest reaches a client.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;

use super::headers;
use super::status::{HOB_EXECUTED, HOB_INVOCATION_ID, HOB_START, invocation_id, problem};
use crate::fault::{Code, Executed, Fault};
use crate::id::InvocationId;
use crate::invocation::{BodyError, INLINE_BODY_BYTES, Invoked, Outcome, Payload, Phases};

/// Whether a request asked for `server-timing`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timing {
    /// It did.
    Asked,
    /// It did not.
    Unasked,
}

/// Removes the headers of a request that are not for the guest.
pub fn clean_request(headers: &mut HeaderMap) -> Timing {
    headers::clean_request(headers)
}

/// The body as the guest will get it: whole when it is small. Reading begins here, which is what makes hyper send
/// `100 Continue`.
///
/// # Errors
/// `client-timeout` or `bad-request` when a small body does not come whole.
pub async fn read<B>(mut body: B) -> Result<Payload, Fault>
where
    B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return Ok(Payload::empty());
    }
    let Some(len) = body.size_hint().exact().filter(|len| *len <= INLINE_BODY_BYTES) else {
        return Ok(Payload::Stream(Box::pin(body)));
    };
    let len = usize::try_from(len).unwrap_or_default();
    let mut first = Bytes::new();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|error| broken_body(&error))?.into_data() else { continue };
        if first.is_empty() {
            first = data;
            continue;
        }
        if whole.is_empty() {
            whole.reserve(len);
            whole.extend_from_slice(&first);
        }
        whole.extend_from_slice(&data);
    }
    // Most small bodies come with their head, in one piece that needs no copy.
    Ok(Payload::Whole(if whole.is_empty() { first } else { whole.freeze() }))
}

fn broken_body(error: &BodyError) -> Fault {
    match error {
        BodyError::Idle => Fault::new(Code::ClientTimeout, "the rest of the request's body did not come in time")
            .hint("send the body without pauses, or raise net.body_idle_timeout or lower net.body_rate_min"),
        BodyError::Disconnected => Fault::new(Code::BadRequest, "the request's body ended before its announced length"),
        BodyError::TooLarge { limit } => {
            Fault::new(Code::BodyTooLarge, format!("the request's body is larger than {limit} bytes"))
        }
        BodyError::Cut(code) => Fault::new(*code, "the request's body was cut"),
    }
}

/// The response for the end of an invocation. `method`: the request's; only whether it is `HEAD` matters.
#[must_use]
pub fn answer(invoked: Invoked, method: &Method, timing: Timing) -> Response<Payload> {
    let id = invoked.id;
    let outcome = match invoked.result {
        Ok(outcome) => outcome,
        Err(fault) => return refuse(&fault, Some(id)),
    };
    let Outcome { response, start, phases, .. } = outcome;
    let mut response = frame(response, method);
    let headers = response.headers_mut();
    headers.insert(&HOB_INVOCATION_ID, invocation_id(id));
    headers.insert(&HOB_START, HeaderValue::from_static(start.as_str()));
    headers.insert(&HOB_EXECUTED, HeaderValue::from_static(Executed::Yes.as_str()));
    if timing == Timing::Asked {
        // Several may stand side by side, so the guest's own stays.
        headers.append(headers::SERVER_TIMING.clone(), server_timing(&phases));
    }
    response
}

/// Takes the headers out of a guest's response that are not the guest's to set.
fn frame(mut response: Response<Payload>, method: &Method) -> Response<Payload> {
    headers::clean_response(response.headers_mut());
    if !response.headers().contains_key(CONTENT_LENGTH) {
        return response;
    }
    if *method == Method::HEAD {
        // The length of what `GET` would give. There is no body to hold it against.
        *response.body_mut() = Payload::empty();
    } else if response.status() == StatusCode::NO_CONTENT || response.body().size_hint().exact().is_some() {
        // hyper knows the length and says it; 204 has none (RFC 9110, 8.6).
        response.headers_mut().remove(CONTENT_LENGTH);
    }
    response
}

/// The answer for a fault, on a connection that closes when the rest of the request cannot be told from the next one.
#[must_use]
pub fn refuse(fault: &Fault, id: Option<InvocationId>) -> Response<Payload> {
    let mut response = problem(fault, id);
    if matches!(fault.code, Code::ClientTimeout | Code::BodyTooLarge) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The phases as `Server-Timing`, in milliseconds with six digits after the point: a start may take less than a microsecond.
fn server_timing(phases: &Phases) -> HeaderValue {
    let entry = |(name, time): (&str, Duration)| format!("{name};dur={:.6}", time.as_secs_f64() * 1e3);
    let entries: Vec<_> = Phases::NAMES.into_iter().zip(phases.times()).map(entry).collect();
    HeaderValue::try_from(entries.join(", ")).expect("digits and names are legal in a header")
}
