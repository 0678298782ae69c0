//! The request of an invocation and its body.
//!
//! Owns the record that the host wrote; nothing is copied out of it until it is asked for. Invariant: `head` was made from
//! `record`, of which only the inline body has been moved out.

use std::io::{self, Read};

use crate::record::{self, Headers, RequestHead};
use crate::{Error, abi};

/// One HTTP request.
///
/// It has been routed and bounded by the host: its parts have the limits of the deployment, and its client may still be
/// sending the body. For a test, any [`http::Request`] with a body of bytes becomes one by `into`:
///
/// ```
/// let request: hob_sdk::Request = http::Request::get("/?name=Ana").header("accept", "text/plain").body("")?.into();
/// assert_eq!((request.path(), request.query(), request.header("Accept")), ("/", Some("name=Ana"), Some("text/plain")));
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Debug)]
pub struct Request {
    record: Vec<u8>,
    head: RequestHead,
    body: Body,
}

impl Request {
    /// Reads a record as the host writes it.
    pub(crate) fn from_record(mut record: Vec<u8>) -> Result<Self, Error> {
        let head = RequestHead::parse(&record)?;
        // The body gets an allocation of its own, so that `Body::read_bytes` can hand it out without another copy.
        let inline = if head.body == record.len() { Vec::new() } else { record.split_off(head.body) };
        let announced = if head.whole { None } else { head.headers(&record).value("content-length") };
        let announced_len = announced.and_then(|len| str::from_utf8(len).ok()?.parse().ok()).unwrap_or_default();
        Ok(Self { record, head, body: Body { inline, position: 0, end: head.whole, announced_len } })
    }

    /// The method as the client wrote it, such as `GET`. Compares with [`http::Method`] and with text.
    #[must_use]
    pub fn method(&self) -> &str {
        self.head.method(&self.record)
    }

    /// Path and query as in the request line, not decoded.
    #[must_use]
    pub fn target(&self) -> &str {
        self.head.target(&self.record)
    }

    /// The target up to the `?`, not decoded.
    #[must_use]
    pub fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// The target after the `?`, not decoded; `None` without a `?`.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    /// The first value of a header, its name in any case; `None` when it is missing or not UTF-8.
    /// # Cost    A walk over the headers.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.header_bytes(name).and_then(|value| str::from_utf8(value).ok())
    }

    /// The first value of a header, its name in any case. A value may have any bytes but NUL, CR and LF.
    /// # Cost    A walk over the headers.
    #[must_use]
    pub fn header_bytes(&self, name: &str) -> Option<&[u8]> {
        self.headers().value(name)
    }

    /// All headers, in the order in which they came.
    #[must_use]
    pub fn headers(&self) -> Headers<'_> {
        self.head.headers(&self.record)
    }

    /// The body, to be read in place.
    pub fn body(&mut self) -> &mut Body {
        &mut self.body
    }

    /// The body alone.
    #[must_use]
    pub fn into_body(self) -> Body {
        self.body
    }
}

/// # Panics
/// When a part is longer than a record allows: 64 KiB for the method, 65,535 headers. A host would have refused it.
impl<B: Into<Vec<u8>>> From<http::Request<B>> for Request {
    fn from(request: http::Request<B>) -> Self {
        let (parts, body) = request.into_parts();
        let mut headers = Vec::new();
        for (name, value) in &parts.headers {
            let put = record::put_header(&mut headers, name.as_str().as_bytes(), value.as_bytes());
            put.expect("what `http` allows in a header is allowed in a record");
        }
        let target = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let record = record::request(parts.method.as_str(), target, parts.headers.len(), &headers, &body.into());
        Self::from_record(record).expect("a record that was just written can be read")
    }
}

/// For crates that work on the types of `http`. Fails on a method, target or header that `http` does not allow.
impl TryFrom<Request> for http::Request<Body> {
    type Error = Error;

    fn try_from(request: Request) -> Result<Self, Error> {
        let mut builder = http::Request::builder().method(request.method()).uri(request.target());
        for (name, value) in request.headers() {
            builder = builder.header(name, value);
        }
        Ok(builder.body(request.into_body())?)
    }
}

/// The body of a request: read it whole with [`read_bytes`](Self::read_bytes) or [`read_text`](Self::read_text), or piece by
/// piece as an [`io::Read`]. What has been read is gone.
///
/// A body of at most 64 KiB has come with the request; a longer one is still on its way, and reading may wait for the client.
#[derive(Debug)]
pub struct Body {
    inline: Vec<u8>,
    /// How much of `inline` has been read.
    position: usize,
    /// Nothing follows after `inline`.
    end: bool,
    /// The `content-length` of what follows after `inline`, 0 when the client did not say.
    announced_len: usize,
}

impl Body {
    /// All that has not been read yet. Holds it in memory at once: the host's limit on bodies bounds it.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionAborted`] when the client broke off.
    pub fn read_bytes(&mut self) -> Result<Vec<u8>, Error> {
        let mut bytes = std::mem::take(&mut self.inline);
        bytes.drain(..std::mem::take(&mut self.position));
        if !self.end {
            // Without the room asked for, it grows as it goes. A client may announce more than it sends.
            let _ = bytes.try_reserve_exact(std::mem::take(&mut self.announced_len));
            self.read_to_end(&mut bytes)?;
        }
        Ok(bytes)
    }

    /// The same as [`read_bytes`](Self::read_bytes), as text.
    ///
    /// # Errors
    /// The client broke off, or the body is not UTF-8.
    pub fn read_text(&mut self) -> Result<String, Error> {
        Ok(String::from_utf8(self.read_bytes()?)?)
    }
}

/// Reading may wait for the client. Fails with [`io::ErrorKind::ConnectionAborted`] when the client broke off.
impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.position < self.inline.len() {
            let count = (&self.inline[self.position..]).read(buf)?;
            self.position += count;
            return Ok(count);
        }
        if self.end || buf.is_empty() {
            return Ok(0);
        }
        let count = abi::body_read(buf)?;
        self.end = count == 0;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(body: &'static str) -> Request {
        http::Request::post("http://x.example/a/b?c=d?e").header("X-Name", "ä").body(body).unwrap().into()
    }

    #[test]
    fn accessors_read_the_record() {
        let request = post("");
        assert_eq!((request.method(), request.target()), ("POST", "/a/b?c=d?e"));
        assert_eq!((request.path(), request.query()), ("/a/b", Some("c=d?e")));
        assert!(request.method() == http::Method::POST);
        assert_eq!((request.header("x-name"), request.header("X-NAME"), request.header("x")), (Some("ä"), Some("ä"), None));
        assert_eq!(request.headers().collect::<Vec<_>>(), [("x-name", "ä".as_bytes())]);
    }

    #[test]
    fn a_target_without_query_has_none() {
        let request = Request::from(http::Request::get("/a").body("").unwrap());
        assert_eq!((request.path(), request.query()), ("/a", None));
    }

    #[test]
    fn a_value_that_is_not_text_is_still_there_as_bytes() {
        let request = http::Request::get("/").header("x", &[0xff][..]).body("").unwrap();
        let request = Request::from(request);
        assert_eq!((request.header("x"), request.header_bytes("x")), (None, Some(&[0xff][..])));
    }

    #[test]
    fn a_body_is_read_whole_or_in_pieces_and_then_gone() {
        let mut request = post("hello");
        let mut two = [0; 2];
        request.body().read_exact(&mut two).unwrap();
        assert_eq!(&two, b"he");
        assert_eq!(request.body().read_text().unwrap(), "llo");
        assert_eq!(request.body().read_bytes().unwrap(), b"");
        assert_eq!(request.into_body().read(&mut two).unwrap(), 0);
    }

    #[test]
    fn a_whole_body_is_handed_out_without_a_copy() {
        let mut body = post("hello").into_body();
        let address = body.inline.as_ptr();
        let bytes = body.read_bytes().unwrap();
        assert_eq!(bytes.as_ptr(), address);
    }

    #[test]
    fn a_body_that_is_not_text_is_an_error() {
        let mut request = Request::from(http::Request::post("/").body([0xff]).unwrap());
        assert!(request.body().read_text().unwrap_err().to_string().contains("utf-8"));
    }

    #[test]
    fn a_request_becomes_one_of_http() {
        let request = http::Request::<Body>::try_from(post("hello")).unwrap();
        assert_eq!((request.method(), request.uri().path()), (&http::Method::POST, "/a/b"));
        assert_eq!(request.headers()["x-name"].as_bytes(), "ä".as_bytes());
        assert_eq!(request.into_body().read_text().unwrap(), "hello");
    }

    #[test]
    fn a_malformed_record_is_an_error() {
        let error = Request::from_record(vec![0; 15]).unwrap_err();
        assert_eq!(error.to_string(), "the host's request record is malformed: shorter than its fixed part");
    }
}
