//! Faults as HTTP answers.
//!
//! Owns the only map from [`Code`] to a status, and the form of every answer that Hob makes itself (RFC 9457 problem+json with
//! `hob-error` and `hob-executed`). Knows nothing about connections. Invariant: the map has no `_` arm, so a new code does not
//! compile until it has a status.

use std::time::Duration;

use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::fault::{Code, Fault};
use crate::id::InvocationId;
use crate::invocation::Payload;

/// Which [`Code`] Hob answered with, on answers of its own making alone.
pub static HOB_ERROR: HeaderName = HeaderName::from_static("hob-error");
/// `1` when guest code ran, `0` when it provably did not.
pub static HOB_EXECUTED: HeaderName = HeaderName::from_static("hob-executed");
/// Identifier of the invocation, as in the function's log.
pub static HOB_INVOCATION_ID: HeaderName = HeaderName::from_static("hob-invocation-id");
/// Rung of the start ladder.
pub static HOB_START: HeaderName = HeaderName::from_static("hob-start");

/// What the `type` of a problem begins with; the code follows. A name, not an address: it means the same on either port, behind any
/// prefix and on paper, and no path of a function's can be taken for it.
const TYPE_PREFIX: &str = "urn:hob:error:";
/// Media type of the answers that Hob makes itself.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The status of a code. The only such map.
#[must_use]
pub fn status(code: Code) -> StatusCode {
    match code {
        Code::BadRequest | Code::BadManifest => StatusCode::BAD_REQUEST,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Forbidden => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Code::ClientTimeout => StatusCode::REQUEST_TIMEOUT,
        Code::Conflict | Code::IdempotencyKeyRunning => StatusCode::CONFLICT,
        Code::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        Code::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
        Code::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Code::UriTooLong => StatusCode::URI_TOO_LONG,
        Code::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Code::UnsupportedMedia => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        Code::NotDeployable | Code::ModuleOverCap | Code::BuildOverLimit | Code::BadSignature | Code::IdempotencyKeyReused => {
            StatusCode::UNPROCESSABLE_ENTITY
        }
        Code::Concurrency | Code::QuotaExceeded | Code::TooManyFailures => StatusCode::TOO_MANY_REQUESTS,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        Code::GuestTrap
        | Code::GuestExit
        | Code::GuestMemory
        | Code::GuestBadResponse
        | Code::GuestBadCall
        | Code::GuestNoResponse
        | Code::ResponseTooLarge
        | Code::OriginFailed => StatusCode::BAD_GATEWAY,
        Code::Overloaded | Code::Draining | Code::Damaged | Code::SecretUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::CpuDeadline | Code::WallDeadline | Code::OriginTimeout => StatusCode::GATEWAY_TIMEOUT,
        Code::StorageFull => StatusCode::INSUFFICIENT_STORAGE,
        Code::LoopDetected => StatusCode::LOOP_DETECTED,
    }
}

/// The answer for a fault. `id`: the invocation's, when one was given out.
#[must_use]
pub fn problem(fault: &Fault, id: Option<InvocationId>) -> Response<Payload> {
    let status = status(fault.code);
    let code = fault.code.as_str();
    let mut body = serde_json::json!({
        "type": format!("{TYPE_PREFIX}{code}"),
        "title": fault.code.title(),
        "status": status.as_u16(),
        "code": code,
        "detail": fault.detail,
    });
    if let Some(hint) = &fault.hint {
        body["hint"] = hint.as_ref().into();
    }
    if let Some(id) = id {
        body["invocation_id"] = id.to_string().into();
    }
    let mut text = body.to_string();
    text.push('\n');
    let mut response = Response::new(Payload::Whole(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    headers.insert(HOB_ERROR.clone(), HeaderValue::from_static(code));
    headers.insert(HOB_EXECUTED.clone(), HeaderValue::from_static(fault.executed.as_str()));
    if let Some(id) = id {
        headers.insert(HOB_INVOCATION_ID.clone(), invocation_id(id));
    }
    if fault.code == Code::Unauthenticated {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"hob\""));
    }
    if let Some(time) = fault.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds(time)));
    }
    response
}

/// Value of [`HOB_INVOCATION_ID`].
#[must_use]
pub fn invocation_id(id: InvocationId) -> HeaderValue {
    HeaderValue::from_bytes(&id.text()).expect("Crockford's digits are legal in a header")
}

/// Whole seconds, rounded up, at least 1: `Retry-After: 0` would ask for a busy loop.
fn seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Executed;

    fn body(response: Response<Payload>) -> serde_json::Value {
        let Payload::Whole(bytes) = response.into_body() else { panic!("a problem is whole") };
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn every_code_has_a_status_and_only_a_bug_has_500() {
        for code in Code::ALL {
            let status = status(code);
            assert!(status.is_client_error() || status.is_server_error(), "{code}");
            assert_eq!(status == StatusCode::INTERNAL_SERVER_ERROR, code == Code::Internal, "{code}");
        }
    }

    #[test]
    fn a_problem_says_everything_twice() {
        let id = InvocationId::new(1, 2);
        let fault = Fault::executed(Code::GuestTrap, "it \"trapped\"").hint("look at the log");
        let response = problem(&fault, Some(id));
        assert_eq!(response.status(), 502);
        for (name, value) in [
            ("content-type", PROBLEM_JSON),
            ("hob-error", "guest-trap"),
            ("hob-executed", "1"),
            ("hob-invocation-id", &id.to_string()),
        ] {
            assert_eq!(response.headers()[name], value);
        }
        assert!(!response.headers().contains_key("retry-after"));
        let body = body(response);
        for (key, value) in [
            ("type", "urn:hob:error:guest-trap"),
            ("title", Code::GuestTrap.title()),
            ("code", "guest-trap"),
            ("detail", "it \"trapped\""),
            ("hint", "look at the log"),
            ("invocation_id", &id.to_string()),
        ] {
            assert_eq!(body[key], value, "{key}");
        }
        assert_eq!(body["status"], 502);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let response = problem(&Fault::new(Code::NotFound, "x"), None);
        assert_eq!(response.headers()["hob-executed"], Executed::No.as_str());
        assert!(!response.headers().contains_key("hob-invocation-id"));
        let body = body(response);
        assert!(body.get("hint").is_none() && body.get("invocation_id").is_none(), "{body}");
    }

    #[test]
    fn retry_after_is_rounded_up() {
        for (time, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2"), (30_000, "30")] {
            let fault = Fault::new(Code::Overloaded, "x").retry_after(Duration::from_millis(time));
            assert_eq!(problem(&fault, None).headers()["retry-after"], expected, "{time} ms");
        }
    }
}
