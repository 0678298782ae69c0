//! The route that invokes a function by its name, whatever its routes are.

use std::time::Instant;

use axum::extract::{Request, State};
use http::{HeaderMap, Method, Response, Uri};
use http_body_util::BodyExt as _;

use super::Control;
use super::access::Caller;
use super::answer::{Named, Refusal, body_fault};
use super::kv::HARMLESS;
use super::wire::Problem;
use crate::fault::{Code, Fault};
use crate::id::FunctionName;
use crate::invocation::{BodyError, Invocation, Start, Target, UnknownStart};
use crate::net::exchange;
use crate::net::status::HOB_START;

/// Invokes a function. Any method, and any path after `invoke`: the function sees method, rest of the path, query, headers and
/// body as they are.
#[utoipa::path(post, path = "/v1/functions/{name}/invoke/{path}", security(("token" = ["invoke"])),
    params(("name" = String, Path), ("path" = String, Path, description = "what the function sees as its path"),
        ("hob-timing" = Option<String>, Header, description = "`1` asks for server-timing"),
        ("hob-start" = Option<String>, Header, description = "the rung to begin on, for measuring: `ready`, `resident`, `stored` or `compiled`")),
    responses((status = 200, description = "whatever the function answers"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 408, body = Problem), (status = 413, body = Problem), (status = 429, body = Problem), (status = 502, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem)))]
#[expect(dead_code, reason = "only described: the routes take every method, which OpenAPI cannot say")]
pub(super) fn describe() {}

/// Invokes a function with the path `/`. Any method: the function sees method, query, headers and body as they are.
#[utoipa::path(post, path = "/v1/functions/{name}/invoke", security(("token" = ["invoke"])),
    params(("name" = String, Path), ("hob-timing" = Option<String>, Header, description = "`1` asks for server-timing"),
        ("hob-start" = Option<String>, Header, description = "the rung to begin on, for measuring: `ready`, `resident`, `stored` or `compiled`")),
    responses((status = 200, description = "whatever the function answers"), (status = 400, body = Problem), (status = 404, body = Problem),
        (status = 408, body = Problem), (status = 413, body = Problem), (status = 429, body = Problem), (status = 502, body = Problem), (status = 503, body = Problem), (status = 504, body = Problem)))]
#[expect(dead_code, reason = "as the one above; `invoke/` is the one above with an empty path")]
pub(super) fn describe_bare() {}

/// Number of segments before the function's own path: `/v1/functions/NAME/invoke`.
const SEGMENTS: usize = 4;

pub(super) async fn invoke(
    State(control): State<Control>,
    caller: Caller,
    Named(name): Named<FunctionName>,
    request: Request,
) -> Result<Response<axum::body::Body>, Refusal> {
    let received = Instant::now();
    let (mut head, body) = request.into_parts();
    // Before the headers that are Hob's own are removed.
    let start = wanted_start(&head.headers)?;
    let timing = exchange::clean_request(&mut head.headers);
    head.uri = own_target(&head.uri)?;
    let body = body.map_err(|error| match body_fault(&error).code {
        Code::ClientTimeout => BodyError::Idle,
        _ => BodyError::Disconnected,
    });
    let payload = exchange::read(body).await?;
    let method = if head.method == Method::HEAD { Method::HEAD } else { Method::GET };
    let request = Request::from_parts(head, payload);
    let invocation = Invocation { tenant: caller.tenant.clone(), target: Target::Function(name), request, received, start };
    let invoked = control.invoke.invoke(invocation).await;
    let mut response = exchange::answer(invoked, &method, timing).map(axum::body::Body::new);
    // In place of what the guest says of them: a page of a tenant is never one of this port.
    for (name, value) in HARMLESS {
        response.headers_mut().insert(name, value);
    }
    Ok(response)
}

/// The rung that the request asks for. On the data port nobody may: it would let any client have a function compiled again.
///
/// # Errors
/// `bad-request` when it is said twice, or is no rung.
fn wanted_start(headers: &HeaderMap) -> Result<Option<Start>, Fault> {
    let mut values = headers.get_all(&HOB_START).iter();
    let bad = |detail: String| Fault::new(Code::BadRequest, format!("the header 'hob-start': {detail}"));
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => {
            let start = String::from_utf8_lossy(value.as_bytes()).parse();
            start.map(Some).map_err(|error: UnknownStart| bad(error.to_string()))
        }
        (Some(_), Some(_)) => Err(bad("it was sent twice, expected one rung".into())),
    }
}

/// The part of the target that is the function's.
fn own_target(uri: &Uri) -> Result<Uri, Fault> {
    let path = uri.path();
    let at = path.match_indices('/').nth(SEGMENTS).map_or(path.len(), |(at, _)| at);
    let own = match uri.query() {
        Some(query) => format!("/{}?{query}", path[at..].trim_start_matches('/')),
        None => format!("/{}", path[at..].trim_start_matches('/')),
    };
    own.parse().map_err(|_| Fault::new(Code::BadRequest, "the path after 'invoke' is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_is_asked_for_by_its_name_and_once() {
        let wanted = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.extend(values.iter().map(|value| (HOB_START.clone(), http::HeaderValue::from_static(value))));
            wanted_start(&headers).map_err(|fault| fault.code)
        };
        assert_eq!(wanted(&[]), Ok(None));
        for start in Start::ALL {
            assert_eq!(wanted(&[start.as_str()]), Ok(Some(start)));
        }
        for bad in [&[""][..], &["cold"], &["Ready"], &["stored, ready"], &["ready", "ready"]] {
            assert_eq!(wanted(bad), Err(Code::BadRequest), "{bad:?}");
        }
    }

    #[test]
    fn the_function_sees_its_own_path() {
        for (uri, own) in [
            ("/v1/functions/a/invoke", "/"),
            ("/v1/functions/a/invoke?x", "/?x"),
            ("/v1/functions/a/invoke/", "/"),
            ("/v1/functions/a/invoke/b/c?x=1", "/b/c?x=1"),
        ] {
            assert_eq!(own_target(&uri.parse().unwrap()).unwrap().to_string(), own, "{uri}");
        }
    }
}
