//! Answers: faults as problem+json, and what a request must look like before anything is done.
//!
//! Owns the way from axum's own rejections to faults, so that no route answers in another form.

use std::str::FromStr;

use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path};
use axum::response::{IntoResponse, Response};
use http::request::Parts;
use http::{HeaderMap, Method, Uri, header};
use http_body_util::LengthLimitError;
use serde::de::DeserializeOwned;

use super::conditions;
use super::wire::object;
use crate::fault::{Code, Fault};
use crate::id::NameError;
use crate::invocation::BodyError;
use crate::net::status::problem;
use crate::registry::Precondition;

/// A fault as the answer of a route.
#[derive(Debug)]
pub(super) struct Refusal(Fault);

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self(fault)
    }
}

/// Marks a response as a refusal that nobody has counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused(pub Code);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = problem(&self.0, None).map(axum::body::Body::new);
        if matches!(self.0.code, Code::ClientTimeout | Code::BodyTooLarge) {
            // What is left of the request cannot be told from the next one without reading it all.
            response.headers_mut().insert(header::CONNECTION, http::HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(Refused(self.0.code));
        response
    }
}

/// A query that is not as the route takes it.
pub(super) fn query_fault(error: &QueryRejection) -> Fault {
    Fault::new(Code::BadRequest, error.body_text())
        .hint("/openapi.json says which parameters the route takes, and whether they are numbers")
}

/// What is named in the path.
#[derive(Debug)]
pub(super) struct Named<T>(pub T);

impl<S: Send + Sync, T: FromStr<Err = NameError>> FromRequestParts<S> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let bad = |detail: String| Refusal(Fault::new(Code::BadRequest, detail));
        let Path(segments) =
            Path::<Vec<(String, String)>>::from_request_parts(parts, state).await.map_err(|error| bad(error.to_string()))?;
        let name = segments.into_iter().find(|(key, _)| key == "name").map(|(_, name)| name).unwrap_or_default();
        name.parse().map(Self).map_err(|error: NameError| bad(error.to_string()))
    }
}

/// Longest definition in a body, in bytes.
const DEFINITION_LEN_MAX: usize = 32 << 10;

/// A body of JSON; an empty one is an object without members.
///
/// # Errors
/// `bad-request` for another body, `body-too-large` for a longer one.
pub(super) async fn json_body<T: DeserializeOwned>(body: axum::body::Body) -> Result<T, Fault> {
    let body = axum::body::to_bytes(body, DEFINITION_LEN_MAX).await.map_err(|error| body_fault(&error))?;
    let text = if body.is_empty() { &b"{}"[..] } else { &body };
    let bad = |what: &dyn std::fmt::Display| Fault::new(Code::BadRequest, format!("the body is not as expected: {what}"));
    object(text).map_err(|error| bad(&error))
}

/// `If-Match` and `If-None-Match`.
///
/// # Errors
/// `bad-request` for both at once, for text that is no header value, for `If-None-Match` with anything but `*`, and for a date in place of
/// them.
pub(super) fn precondition(headers: &HeaderMap) -> Result<Precondition, Fault> {
    let text = |name: &header::HeaderName| -> Result<Option<String>, Fault> {
        let values: Result<Vec<_>, _> = headers.get_all(name).iter().map(|value| value.to_str()).collect();
        match values {
            Ok(values) if values.is_empty() => Ok(None),
            Ok(values) => Ok(Some(values.join(", "))),
            Err(_) => Err(Fault::new(Code::BadRequest, format!("'{name}' is no text"))),
        }
    };
    match (text(&header::IF_MATCH)?, text(&header::IF_NONE_MATCH)?) {
        (None, None) if headers.contains_key(header::IF_UNMODIFIED_SINCE) => Err(conditions::undated()),
        (None, None) => Ok(Precondition::Any),
        (Some(tags), None) => Ok(Precondition::Match(tags)),
        (None, Some(star)) if star.trim() == "*" => Ok(Precondition::NoneMatch),
        (None, Some(_)) => {
            Err(Fault::new(Code::BadRequest, "'if-none-match' takes only '*' here: deploy if there is no such function"))
        }
        (Some(_), Some(_)) => Err(Fault::new(Code::BadRequest, "'if-match' and 'if-none-match' contradict each other: send one")),
    }
}

/// What an error while reading a request's body means.
#[must_use]
pub(super) fn body_fault(error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return Fault::new(Code::BodyTooLarge, "the request's body is larger than this route takes");
        }
        match error.downcast_ref::<BodyError>() {
            Some(BodyError::Idle) => {
                return Fault::new(Code::ClientTimeout, "the rest of the request's body did not come in time");
            }
            Some(_) => return Fault::new(Code::BadRequest, "the request's body ended before its announced length"),
            None => cause = error.source(),
        }
    }
    Fault::new(Code::BadRequest, format!("the request's body cannot be read: {error}"))
}

/// There is no such route.
pub(super) async fn no_route(uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal(
        Fault::new(Code::NotFound, format!("the control port has nothing at '{path}'"))
            .hint("GET /openapi.json lists what it has"),
    )
}

/// There is such a route, but not with this method.
pub(super) async fn no_method(method: Method, uri: Uri) -> Refusal {
    let path: String = uri.path().chars().take(200).collect();
    Refusal(
        Fault::new(Code::MethodNotAllowed, format!("'{path}' does not take {method}"))
            .hint("GET /openapi.json lists what it takes"),
    )
}
