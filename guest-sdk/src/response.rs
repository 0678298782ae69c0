//! The response of an invocation: built by the handler, sent once the handler has returned.
//!
//! Owns what a handler may answer with and the order of host calls that sends it. Invariant: `headers` holds `header_count`
//! encoded headers, each fit to be sent; the first that was not is in `fault`, and sending fails with it.

use std::fmt;
use std::io::{self, Write};

use http::StatusCode;

use crate::record::{self, HeaderFault, Headers};
use crate::{Error, abi};

/// One HTTP response.
///
/// ```
/// use hob_sdk::{Response, StatusCode};
///
/// let response = Response::new("{}").with_status(StatusCode::ACCEPTED).with_header("content-type", "application/json");
/// assert_eq!(response.into_http()?.headers()["content-type"], "application/json");
/// # Ok::<(), hob_sdk::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "a response is sent only when the handler returns it"]
pub struct Response {
    status: StatusCode,
    headers: Vec<u8>,
    header_count: u16,
    fault: Option<Error>,
    body: ResponseBody,
}

type Producer = Box<dyn FnOnce(&mut BodyWriter) -> Result<(), Error>>;

enum ResponseBody {
    Whole(Vec<u8>),
    Stream(Producer),
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Stream(_) => f.write_str("stream"),
        }
    }
}

impl Response {
    /// Status 200, no headers, and `body`: text or bytes.
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self::with_body(ResponseBody::Whole(body.into()))
    }

    /// Status 200, no headers, and a body that `produce` writes while the client already reads.
    ///
    /// `produce` runs after status and headers have left. If it fails, an entry goes to the log and the client's connection is
    /// cut, which is how HTTP says that a body is not complete; nothing is logged when it was the client who went away.
    pub fn stream(produce: impl FnOnce(&mut BodyWriter) -> Result<(), Error> + 'static) -> Self {
        Self::with_body(ResponseBody::Stream(Box::new(produce)))
    }

    fn with_body(body: ResponseBody) -> Self {
        Self { status: StatusCode::OK, headers: Vec::new(), header_count: 0, fault: None, body }
    }

    /// The same response with another status: 200 to 599, the host sends no other. With any other the handler has failed.
    pub fn with_status(mut self, status: StatusCode) -> Self {
        if !(200..600).contains(&status.as_u16()) {
            self.fail(Error::msg(format_args!("a function cannot answer with status {}: expected 200 to 599", status.as_u16())));
        }
        self.status = status;
        self
    }

    /// The same response with one more header; one of the same name stays.
    ///
    /// With a name that is none, or a value with a NUL, CR or LF, the handler has failed: text from a request cannot smuggle
    /// in a header. The host drops `hob-*` and the headers that frame the message, such as `content-length`.
    pub fn with_header(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.put_header(name.as_ref(), value.as_ref());
        self
    }

    fn put_header(&mut self, name: &[u8], value: &[u8]) {
        let Some(header_count) = self.header_count.checked_add(1) else {
            return self.fail(Error::msg("more than 65,535 headers"));
        };
        let problem = match record::put_header(&mut self.headers, name, value) {
            Ok(()) => {
                self.header_count = header_count;
                return;
            }
            Err(HeaderFault::Name) => "is not a name of a header",
            Err(HeaderFault::Value) => "has a value with a NUL, CR or LF",
            Err(HeaderFault::Len) => "is too long",
        };
        self.fail(Error::msg(format_args!("header '{}' {problem}", name.escape_ascii())));
    }

    fn fail(&mut self, fault: Error) {
        self.fault.get_or_insert(fault);
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers, in their order.
    #[must_use]
    pub fn headers(&self) -> Headers<'_> {
        Headers::new(&self.headers, self.header_count)
    }

    /// The response with all of its body, for tests of a handler: a stream is written into memory.
    ///
    /// # Errors
    /// A status or header that cannot be sent, or what the stream failed with.
    pub fn into_http(self) -> Result<http::Response<Vec<u8>>, Error> {
        let mut builder = http::Response::builder().status(self.status);
        for (name, value) in self.headers() {
            builder = builder.header(name, value);
        }
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let bytes = match self.body {
            ResponseBody::Whole(bytes) => bytes,
            ResponseBody::Stream(produce) => {
                let mut writer = BodyWriter { sink: Sink::Memory, buffer: Vec::new() };
                produce(&mut writer)?;
                writer.buffer
            }
        };
        Ok(builder.body(bytes)?)
    }

    /// The record that goes to the host, and what writes the rest of the body.
    fn into_record(self) -> Result<(Vec<u8>, Option<Producer>), Error> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let (flags, bytes, produce) = match self.body {
            ResponseBody::Whole(bytes) => (0, bytes, None),
            ResponseBody::Stream(produce) => (record::RESPONSE_MORE, Vec::new(), Some(produce)),
        };
        Ok((record::response(flags, self.status.as_u16(), self.header_count, &self.headers, &bytes), produce))
    }
}

/// Sends what a handler returned. Does not return when a stream failed half-way.
pub(crate) fn send(answer: Result<Response, Error>) {
    match answer.and_then(Response::into_record) {
        Ok((record, None)) => abi::respond(&record),
        Ok((record, Some(produce))) => {
            abi::respond(&record);
            stream(produce);
        }
        Err(error) => abi::respond(&failure(&error)),
    }
}

/// The record of a handler that failed.
fn failure(error: &Error) -> Vec<u8> {
    record::response(record::RESPONSE_FAILED, 500, 0, &[], error.to_string().as_bytes())
}

fn stream(produce: Producer) {
    let mut writer = BodyWriter { sink: Sink::Client, buffer: Vec::new() };
    let result = produce(&mut writer).and_then(|()| Ok(writer.flush()?));
    if let Err(error) = result
        && writer.sink != Sink::Gone
    {
        crate::error!("the response broke off, its body failed: {error}");
        // Returning would declare the body complete; only a trap cuts the connection.
        std::process::abort();
    }
}

/// Where a streamed body goes. Writing may wait for the client.
///
/// Small writes are gathered: call [`flush`](Write::flush) when the client should see what there is. Writing fails with
/// [`io::ErrorKind::BrokenPipe`] once the client has gone away.
#[derive(Debug)]
pub struct BodyWriter {
    sink: Sink,
    buffer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    /// The host, in pieces of at least [`BodyWriter::GATHER_LEN`] bytes unless flushed.
    Client,
    /// The host has said that nobody reads.
    Gone,
    /// `buffer` is where the body goes.
    Memory,
}

impl BodyWriter {
    /// Bytes that are gathered before they are sent. A host call costs as much as copying some hundred bytes.
    const GATHER_LEN: usize = 8 << 10;

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        abi::body_write(bytes).inspect_err(|_| self.sink = Sink::Gone)
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sink != Sink::Memory {
            if self.buffer.len() + bytes.len() > Self::GATHER_LEN {
                self.flush()?;
            }
            if bytes.len() >= Self::GATHER_LEN {
                self.send(bytes)?;
                return Ok(bytes.len());
            }
            self.buffer.reserve_exact(Self::GATHER_LEN - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.sink == Sink::Memory || self.buffer.is_empty() {
            return Ok(());
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        self.send(&buffer)?;
        buffer.clear();
        self.buffer = buffer;
        Ok(())
    }
}

/// Keeps the status and headers; a status below 200 makes the handler fail.
impl<B: Into<Vec<u8>>> From<http::Response<B>> for Response {
    fn from(response: http::Response<B>) -> Self {
        let (parts, body) = response.into_parts();
        let mut response = Self::new(body).with_status(parts.status);
        for (name, value) in &parts.headers {
            response.put_header(name.as_str().as_bytes(), value.as_bytes());
        }
        response
    }
}

/// Status 200 and content type `text/plain; charset=utf-8`.
impl From<&str> for Response {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

/// Status 200 and content type `text/plain; charset=utf-8`.
impl From<String> for Response {
    fn from(text: String) -> Self {
        Self::new(text).with_header("content-type", "text/plain; charset=utf-8")
    }
}

/// Status 200 and content type `application/octet-stream`.
impl From<Vec<u8>> for Response {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes).with_header("content-type", "application/octet-stream")
    }
}

/// What a handler may return.
///
/// Implemented for [`Response`], for text (`&'static str`, `String`) and bytes (`Vec<u8>`), for [`http::Response`] with a body of
/// bytes, for a pair of [`StatusCode`] and any of these, and for a `Result` of any of these whose error becomes an [`Error`].
#[diagnostic::on_unimplemented(
    message = "a Hob handler cannot return `{Self}`",
    label = "not a response",
    note = "return `Response`, `Result<Response, Error>`, text, bytes, an `http::Response`, or `(StatusCode, …)` of these"
)]
pub trait IntoResponse {
    /// The response, or why there is none.
    ///
    /// # Errors
    /// The handler failed: the client gets a 500 without details, the log the error's text.
    fn into_response(self) -> Result<Response, Error>;
}

impl IntoResponse for Response {
    fn into_response(self) -> Result<Response, Error> {
        Ok(self)
    }
}

impl IntoResponse for &'static str {
    fn into_response(self) -> Result<Response, Error> {
        Ok(self.into())
    }
}

impl IntoResponse for String {
    fn into_response(self) -> Result<Response, Error> {
        Ok(self.into())
    }
}

impl IntoResponse for Vec<u8> {
    fn into_response(self) -> Result<Response, Error> {
        Ok(self.into())
    }
}

impl<B: Into<Vec<u8>>> IntoResponse for http::Response<B> {
    fn into_response(self) -> Result<Response, Error> {
        Ok(self.into())
    }
}

impl<R: IntoResponse> IntoResponse for (StatusCode, R) {
    fn into_response(self) -> Result<Response, Error> {
        self.1.into_response().map(|response| response.with_status(self.0))
    }
}

impl<R: IntoResponse, E: Into<Error>> IntoResponse for Result<R, E> {
    fn into_response(self) -> Result<Response, Error> {
        self.map_err(Into::into)?.into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(answer: impl IntoResponse) -> http::Response<Vec<u8>> {
        answer.into_response().and_then(Response::into_http).unwrap()
    }

    fn check(answer: impl IntoResponse, status: u16, content_type: Option<&str>, body: &str) {
        let response = http(answer);
        assert_eq!(response.status(), status);
        assert_eq!(response.headers().get("content-type").map(|value| value.to_str().unwrap()), content_type);
        assert_eq!(response.body(), body.as_bytes());
    }

    #[test]
    fn everything_that_a_handler_may_return_becomes_a_response() {
        const TEXT: Option<&str> = Some("text/plain; charset=utf-8");
        check(Response::new("a"), 200, None, "a");
        check("a", 200, TEXT, "a");
        check(String::from("a"), 200, TEXT, "a");
        check(b"a".to_vec(), 200, Some("application/octet-stream"), "a");
        check((StatusCode::NOT_FOUND, "a"), 404, TEXT, "a");
        check(Ok::<_, io::Error>((StatusCode::CREATED, "a")), 201, TEXT, "a");
        check(http::Response::builder().status(418).header("content-type", "x/y").body("a").unwrap(), 418, Some("x/y"), "a");
    }

    #[test]
    fn an_error_becomes_a_record_that_only_the_log_reads() {
        let error = Err::<Response, _>("no key").into_response().unwrap_err();
        assert_eq!(failure(&error), b"\x02\0\0\0\xf4\x01\0\0\x06\0\0\0no key");
    }

    #[test]
    fn a_whole_body_is_one_record() {
        let (record, produce) = Response::new("hi").with_header("A", "b").into_record().unwrap();
        assert_eq!(record, b"\0\0\0\0\xc8\0\x01\0\x02\0\0\0\x01\0\0\0\x01\0\0\0abhi");
        assert!(produce.is_none());
    }

    #[test]
    fn a_stream_announces_that_more_follows() {
        let (record, produce) = Response::stream(|_| Ok(())).into_record().unwrap();
        assert_eq!(record, b"\x01\0\0\0\xc8\0\0\0\0\0\0\0");
        assert!(produce.is_some());
    }

    #[test]
    fn a_stream_is_collected_for_tests() {
        let stream = Response::stream(|body| {
            (0..3).try_for_each(|number| writeln!(body, "{number}"))?;
            Ok(body.flush()?)
        });
        check(stream, 200, None, "0\n1\n2\n");
        let broken = Response::stream(|_| Err("lost".into()));
        assert_eq!(broken.into_http().unwrap_err().to_string(), "lost");
    }

    #[test]
    fn what_cannot_be_sent_fails_with_the_first_reason() {
        let fault = |response: Response| response.into_record().err().unwrap().to_string();
        let hostile = Response::new("").with_header("x", "a\r\nset-cookie: b").with_status(StatusCode::CONTINUE);
        assert_eq!(fault(hostile), "header 'x' has a value with a NUL, CR or LF");
        assert_eq!(fault(Response::new("").with_header("a b", "")), "header 'a b' is not a name of a header");
        let status = fault(Response::new("").with_status(StatusCode::CONTINUE));
        assert_eq!(status, "a function cannot answer with status 100: expected 200 to 599");
    }

    #[test]
    fn headers_of_one_name_are_all_kept() {
        let response = Response::new("").with_header("Set-Cookie", "a").with_header("set-cookie", "b");
        assert_eq!(response.headers().collect::<Vec<_>>(), [("set-cookie", &b"a"[..]), ("set-cookie", &b"b"[..])]);
    }
}
