//! What the head of a request must be, on either port.
//!
//! Owns the checks that hyper's parser does not make. Knows nothing about who answers. Invariant: what passes names one host, and
//! a possible one (or speaks HTTP/1.0 and names none), asks for no tunnel, has a body of a known length or in plain chunks, and is within the limits.

use std::net::Ipv6Addr;

use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body;

use super::serve::Options;
use super::status::problem;
use crate::fault::{Code, Fault};
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
    if host.is_some_and(|host| !is_host(host)) {
        return bad("the Host header names no host; expected one such as 'shop.example', '127.0.0.1:3000' or '[::1]:3000'");
    }
    let authority = request.uri().authority()?.as_str().as_bytes();
    // An address of http has a host (RFC 9110, 4.2.1); only the header may be empty.
    if matches!(authority, [] | [b':', ..]) || !is_host(authority) {
        return bad("the target names no host; expected one such as 'http://shop.example/' without a user, or only its path");
    }
    if host.is_some_and(|host| !host.eq_ignore_ascii_case(authority)) {
        return bad("the target names another host than the Host header; expected the same");
    }
    None
}

/// Whether it is `host [":" port]`, as `Host` has it (RFC 9110, 7.2; RFC 3986, 3.2.2). The host may be empty, and so may the port.
fn is_host(text: &[u8]) -> bool {
    let behind = match text {
        [b'[', literal @ ..] => behind_address(literal),
        name => Some(behind_name(name)),
    };
    match behind {
        Some([]) => true,
        Some([b':', port @ ..]) => is_port(port),
        _ => false,
    }
}

/// What follows the address that ends with ']'. Addresses of a version to come (`IPvFuture`) are none: nobody can be reached by one.
fn behind_address(literal: &[u8]) -> Option<&[u8]> {
    let len = literal.iter().position(|byte| *byte == b']')?;
    let address = std::str::from_utf8(&literal[..len]).ok()?;
    address.parse::<Ipv6Addr>().is_ok().then(|| &literal[len + 1..])
}

/// What follows a registered name, as which an IPv4 address may be read too. Of its legal characters the comma is left out: no name that is in
/// use has one, and some readers take it for the end of the first host of a list.
fn behind_name(mut text: &[u8]) -> &[u8] {
    loop {
        text = match text {
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte) => rest,
            rest => return rest,
        }
    }
}

/// Whether these are digits of a number that a port can have.
fn is_port(text: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    text.iter().try_fold(0u16, |port, byte| port.checked_mul(10)?.checked_add(digit(byte)?)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_possible() {
        for good in [
            "",
            ":",
            ":80",
            "a",
            "shop.example:",
            "SHOP.example.:3000",
            "xn--bcher-kva.example",
            "my_service~1:80",
            "b%c3%BCcher",
            "!$&'()*+;=",
            "127.0.0.1:0",
            "1.2.3.999",
            "x:65535",
            "x:0000065535",
            "[::]",
            "[::1]:3000",
            "[::ffff:1.2.3.4]:",
            "[2001:DB8:0:1:2:3:4:5]",
            "[1:2:3:4:5:6:7::]",
        ] {
            assert!(is_host(good.as_bytes()), "{good}");
        }
    }

    #[test]
    fn hosts_that_are_not_possible() {
        for bad in [
            "a b",
            "a\tb",
            "a b/c",
            "a/",
            "a?b",
            "a#b",
            "http://a",
            "a@b",
            "@b",
            "x,y",
            "x,",
            "a\\b",
            "a\"b",
            "<a>",
            "a|b",
            "{a}",
            "a^b",
            "`a`",
            "a\0",
            "a\u{7f}",
            "b\u{fc}cher",
            "%",
            "a%2",
            "a%2g",
            "%g2",
            "x:65536",
            "x:99999",
            "x:4295032832",
            "x:-1",
            "x:+1",
            "x: 1",
            "x:1 ",
            "x:1a",
            "x:80:80",
            "x::",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[",
            "]",
            "[::1]]",
            "[[::1]]",
            "[::1]x",
            "[::1]:x",
            "[::1]:65536",
            "[127.0.0.1]",
            "[a]",
            "[::1%25lo]",
            "[::1::2]",
            "[1:2:3:4:5:6:7]",
            "[1:2:3:4:5:6:7:8:9]",
            "[12345::]",
            "[::1.2.3.256]",
            "[v1.a]",
            "x[::1]",
        ] {
            assert!(!is_host(bad.as_bytes()), "{bad:?}");
        }
        assert!(!is_host(b"\xff") && !is_host(b"[\xff]") && !is_host(b"x:\xff"));
    }
}
