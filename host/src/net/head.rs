//! What the head of a request must be, on either port.
//!
//! Owns the checks that hyper's parser does not make. Knows nothing about who answers. Invariant: what passes names one host, and
//! a possible one (or speaks HTTP/1.0 and names none), asks for no tunnel, has a body of a known length or in plain chunks, and is within the limits.

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body;

use super::serve::Options;
use super::status::problem;
use crate::fault::{Code, Fault};
use crate::host::is_authority;
use crate::invocation::Payload;

/// The answer to a head that cannot be served; `None` for a good one.
pub(super) fn refusal<B: Body>(request: &Request<B>, options: &Options) -> Option<Response<Payload>> {
    let (headers, uri) = (request.headers(), request.uri());
    let target_len = uri.path_and_query().map_or(0, |path| path.as_str().len()) + uri.authority().map_or(0, |a| a.as_str().len());
    let fault = if target_len > options.uri_bytes_max {
        uri_too_long(options)
    } else if headers.len() > options.headers_max {
        too_many_headers(options)
    } else if let Some(fault) = misframed(request) {
        fault
    } else {
        misdirected(request)?
    };
    Some(closing(&fault))
}

/// The answer to a request behind one that had trailers.
pub(super) fn behind_trailers() -> Response<Payload> {
    let fault = Fault::new(Code::BadRequest, "the request came behind one with trailers, whose connection takes no other");
    closing(&fault.hint("send it on a connection of its own, or leave trailers out"))
}

/// The client and Hob may disagree about where this request ends or began, so nothing after it is believed.
fn closing(fault: &Fault) -> Response<Payload> {
    let mut response = problem(fault, None);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

pub(super) fn uri_too_long(options: &Options) -> Fault {
    Fault::new(Code::UriTooLong, format!("the target is longer than {} bytes", options.uri_bytes_max))
        .hint("send long values in the body, or raise net.uri_bytes_max")
}

pub(super) fn too_many_headers(options: &Options) -> Fault {
    let (bytes, count) = (options.head_bytes_max, options.headers_max);
    let detail = format!("the head of the request is larger than {bytes} bytes or has more than {count} headers");
    Fault::new(Code::HeadersTooLarge, detail)
        .hint("send fewer or shorter headers, or raise net.head_bytes_max and net.headers_max")
}

/// What is wrong with how the request's body is told from what follows. hyper takes every list of codings that ends in `chunked`; a coding that
/// nobody undoes would reach the guest as if it were the body, and who spells the word in odd ways means to be read in two ways. Nothing is
/// looked up for a request without a body or with a length.
fn misframed<B: Body>(request: &Request<B>) -> Option<Fault> {
    if request.body().size_hint().exact().is_some() {
        return None;
    }
    let mut codings = request.headers().get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => None,
        _ => Some(
            Fault::new(
                Code::BadRequest,
                "the request has a transfer coding that Hob does not know; expected chunked, once, and nothing else",
            )
            .hint("send the body with a content-length, or in chunks"),
        ),
    }
}

/// What is wrong with where the request wants to go.
fn misdirected<B>(request: &Request<B>) -> Option<Fault> {
    let bad = |detail| Some(Fault::new(Code::BadRequest, detail));
    if request.method() == Method::CONNECT {
        return bad("CONNECT asks for a tunnel, and this is not a proxy");
    }
    if request.uri().path() == "*" && request.method() != Method::OPTIONS {
        return bad("the target is '*', which only OPTIONS may ask for");
    }
    if request.uri().authority().is_some() && !matches!(request.uri().scheme_str(), Some("http" | "https")) {
        return bad("the target is no path and no http address; expected one that begins with '/'");
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return bad("the request has more than one Host header; expected one"),
        (Some(host), None) => Some(host.as_bytes()),
        (None, _) if request.version() == Version::HTTP_11 => {
            return bad("the request has no Host header; HTTP/1.1 demands one");
        }
        (None, _) => None,
    };
    if host.is_some_and(|host| !is_authority(host)) {
        return bad("the Host header names no host; expected one such as 'shop.example', '127.0.0.1:3000' or '[::1]:3000'");
    }
    let authority = request.uri().authority()?.as_str().as_bytes();
    // An address of http has a host (RFC 9110, 4.2.1); only the header may be empty.
    if matches!(authority, [] | [b':', ..]) || !is_authority(authority) {
        return bad("the target names no host; expected one such as 'http://shop.example/' without a user, or only its path");
    }
    if host.is_some_and(|host| !host.eq_ignore_ascii_case(authority)) {
        return bad("the target names another host than the Host header; expected the same");
    }
    None
}
