//! The words of HTTP, and requests to other servers.
//!
//! All of the crate [`http`](::http) is here under its own names, and [`send`], which sends one of its requests and waits for the
//! response. The manifest grants the servers: `[grants] http = ["https://api.example.com"]`.
//!
//! ```no_run
//! use hob_sdk::http;
//!
//! # fn f() -> Result<(), hob_sdk::Error> {
//! let text = http::get("https://api.example.com/v1/rates")?.into_body().read_text(64 << 10)?;
//! let request = http::Request::post("https://api.example.com/v1/notes").header("content-type", "text/plain").body(text)?;
//! let response = http::send(request)?;
//! hob_sdk::info!("{}", response.status());
//! # Ok(())
//! # }
//! ```
//!
//! Any answer of the server is one, whatever its status; redirects are not followed. The host sets `host`, `content-length` and what
//! belongs to the connection, and does not send `forwarded`, `x-forwarded-*` and `hob-*` of a function's. It looks names up, and refuses
//! addresses that are not public unless the node's operator has opened them. Times and sizes are the node's (`egress.*` in its
//! configuration), and so is how many responses a function may have open at once: a [`Body`] that was read to its end, or dropped, is
//! not open.

use std::fmt;
use std::io::{self, Read};
// The crate has a `Result` of its own.
use std::result;

pub use ::http::*;

use crate::abi::{self, Errno};
use crate::record::{self, Headers};

/// Sends a request to another server, and waits until the head of the response is there. The body is read from what is returned.
///
/// # Errors
/// [`SendError`]: no answer came. Converts to [`hob_sdk::Error`](crate::Error) by `?`.
/// # Panics
/// When a part is longer than a record allows: 64 KiB for the method, 65,535 headers.
pub fn send<B: AsRef<[u8]>>(request: Request<B>) -> result::Result<Response<Body>, SendError> {
    let (parts, body) = request.into_parts();
    let mut headers = Vec::new();
    for (name, value) in &parts.headers {
        let put = record::put_header(&mut headers, name.as_str().as_bytes(), value.as_bytes());
        put.expect("what `http` allows in a header is allowed in a record");
    }
    let (method, url) = (parts.method.as_str(), parts.uri.to_string());
    let record = record::request(method, &url, parts.headers.len(), &headers, body.as_ref());
    let body = Body { response: abi::http_send(&record).map_err(SendError::of)? };
    let head = abi::http_head(body.response, |record| response(&record)).map_err(SendError::of)?;
    let response = head.ok_or_else(SendError::malformed)?;
    Ok(response.map(|()| body))
}

/// Sends a `GET`.
///
/// # Errors
/// As [`send`]; [`SendErrorKind::Invalid`] for text that is no URL.
pub fn get(url: impl AsRef<str>) -> result::Result<Response<Body>, SendError> {
    let request = Request::get(url.as_ref()).body("");
    send(request.map_err(|error| SendError { kind: SendErrorKind::Invalid, text: error.to_string() })?)
}

/// Reads the head of a response, which the host wrote.
fn response(record: &[u8]) -> Option<Response<()>> {
    let mut rest = record;
    let _flags = record::take_u32(&mut rest)?;
    let [status, count] = [record::take_u16(&mut rest)?, record::take_u16(&mut rest)?];
    let _body_len = record::take_u32(&mut rest)?;
    let mut response = Response::builder().status(status);
    for (name, value) in Headers::new(rest, count) {
        response = response.header(name, value);
    }
    response.body(()).ok()
}

/// The body of another server's response: read it piece by piece as an [`io::Read`], or whole. What has been read is gone; dropping it
/// ends the rest.
#[derive(Debug)]
pub struct Body {
    response: u32,
}

impl Body {
    /// The rest of the body, which may have at most `len_max` bytes.
    ///
    /// # Errors
    /// [`SendErrorKind::TooLarge`] for a longer one, and whatever ends the body early.
    pub fn read_bytes(self, len_max: usize) -> result::Result<Vec<u8>, SendError> {
        let mut bytes = Vec::new();
        let mut piece = vec![0; PIECE_LEN];
        loop {
            let count = abi::http_read(self.response, &mut piece).map_err(SendError::of)?;
            if count == 0 {
                return Ok(bytes);
            }
            if bytes.len() + count > len_max {
                let text = format!("the response has more than the {len_max} bytes that were asked for");
                return Err(SendError { kind: SendErrorKind::TooLarge, text });
            }
            bytes.extend_from_slice(&piece[..count]);
        }
    }

    /// As [`Body::read_bytes`], as text.
    ///
    /// # Errors
    /// Those, and [`SendErrorKind::Invalid`] for bytes that are not UTF-8.
    pub fn read_text(self, len_max: usize) -> result::Result<String, SendError> {
        let text = String::from_utf8(self.read_bytes(len_max)?);
        text.map_err(|_| SendError { kind: SendErrorKind::Invalid, text: "the response is not UTF-8".into() })
    }
}

/// What is asked for at once when a body is read whole.
const PIECE_LEN: usize = 16 << 10;

/// Errors are [`SendError`]s within.
impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        abi::http_read(self.response, buf).map_err(|errno| io::Error::other(SendError::of(errno)))
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        abi::http_close(self.response);
    }
}

/// Why another server's answer did not come, or not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SendError {
    kind: SendErrorKind,
    text: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SendErrorKind {
    /// The manifest does not grant it; the text is the line that would.
    Denied,
    /// The node's operator does not let functions reach the address.
    Prohibited,
    /// The request is none: its URL, its method, or its `content-length`.
    Invalid,
    /// It took too long: to connect, to answer, or to go on.
    Timeout,
    /// The response is larger than its limit.
    TooLarge,
    /// The function has as many responses open as it may.
    Limit,
    /// No connection, no TLS, no such name, an answer that is none or ended early; nor is there a network at deploy.
    Unavailable,
}

impl SendError {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> SendErrorKind {
        self.kind
    }

    /// The error of the call that was just made, with the text that waits for it.
    #[cold]
    fn of(errno: Errno) -> Self {
        let kind = match errno.0 {
            -2 => SendErrorKind::Denied,
            -4 => SendErrorKind::Invalid,
            -5 => SendErrorKind::TooLarge,
            -11 => SendErrorKind::Limit,
            -14 => SendErrorKind::Prohibited,
            -15 => SendErrorKind::Timeout,
            _ => SendErrorKind::Unavailable,
        };
        Self { kind, text: abi::error_text() }
    }

    /// The host answered what it should not: a fault of the host.
    #[cold]
    fn malformed() -> Self {
        Self { kind: SendErrorKind::Unavailable, text: "the host's record is malformed".into() }
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for SendError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_response_is_read() {
        let mut record = vec![0, 0, 0, 0, 201, 0, 1, 0, 0, 0, 0, 0];
        record.extend([3, 0, 0, 0, 1, 0, 0, 0]);
        record.extend(b"x-a1");
        let read = response(&record).unwrap();
        assert_eq!((read.status().as_u16(), read.headers()["x-a"].as_bytes()), (201, &b"1"[..]));
        assert!(response(&record[..11]).is_none());
    }

    #[test]
    fn what_is_no_url_is_refused_without_a_host() {
        assert_eq!(get("http://a b/").unwrap_err().kind(), SendErrorKind::Invalid);
    }
}
