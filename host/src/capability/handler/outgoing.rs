//! Requests of handlers to servers elsewhere: the calls `http_*` of `hob1`.
//!
//! ```text
//! http_send(record) ──> handle ──> http_head, http_read, … ──> http_close
//! ```
//!
//! `http_send` waits for the head of the response; the body of the request goes from the guest's memory piece by piece meanwhile. Owns
//! the record of a request, and the responses that an instance has open. Knows nothing about who may send what (`capability/egress.rs`)
//! or how it is sent (`egress`). Invariant: the host holds at most a few pieces of a body for a guest, and a guest that ends leaves no
//! connection open.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use wasmtime::{Caller, Linker, Result};

use super::data::{Errno, deliver};
use super::objects::vacancy;
use super::{
    BODY_IS_WHOLE, HEADER_BYTES_MAX, HEADERS_MAX, MODULE, REQUEST_HEAD, RESPONSE_HEAD, Writer, copy_piece, span, take_header,
};
use crate::capability::egress::OutboundError;
use crate::capability::reply::PIECE_LEN_MAX;
use crate::capability::{Host, Refusal};
use crate::egress::{self, EgressError, GivenUp, RequestBody, ResponseBody, Tenant};

/// Responses that one instance may have open, if the node lets it have so many requests at once.
const RESPONSES_MAX: usize = 64;
/// Longest target of a request, in bytes.
const URL_LEN_MAX: usize = 8 << 10;

/// Responses that an instance has open.
#[derive(Debug, Default)]
pub struct Responses(Vec<Option<Response>>);

#[derive(Debug)]
struct Response {
    status: StatusCode,
    headers: HeaderMap,
    body: ResponseBody,
    /// What came and was not read yet.
    rest: Bytes,
    /// What ended the body, unless it was its end.
    failed: Option<EgressError>,
    /// A server may answer before it has all of the request. The rest is not given up before the response is.
    _feed: mpsc::Sender<Bytes>,
}

impl Responses {
    fn get(&mut self, handle: u32) -> Result<&mut Response, Refusal> {
        self.0.get_mut(handle as usize).and_then(Option::as_mut).ok_or_else(|| no_handle(handle))
    }
}

fn no_handle(handle: u32) -> Refusal {
    Refusal::bad_call(format!("{handle} is the handle of no response: it is closed, or http_send gave another one"))
}

impl From<&OutboundError> for Errno {
    fn from(error: &OutboundError) -> Self {
        let error = match error {
            OutboundError::Denied(_) => return Self::Denied,
            OutboundError::Absent => return Self::Unavailable,
            OutboundError::Egress(error) => error,
        };
        match error {
            EgressError::BadTarget | EgressError::BadMethod | EgressError::BadLength => Self::Invalid,
            EgressError::Prohibited => Self::Prohibited,
            EgressError::ConnectTimeout | EgressError::ResponseTimeout | EgressError::Idle => Self::Timeout,
            EgressError::HeadTooLarge | EgressError::BodyTooLarge { .. } => Self::TooLarge,
            EgressError::UnknownName
            | EgressError::Refused
            | EgressError::Unreachable
            | EgressError::Certificate
            | EgressError::Tls
            | EgressError::Malformed
            | EgressError::Cut
            | EgressError::RequestBody
            | EgressError::Closed => Self::Unavailable,
        }
    }
}

/// Links the calls of this file.
pub(super) fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap_async(MODULE, "http_send", |caller: Caller<'_, Host>, (ptr, len): (u32, u32)| {
        Box::new(http_send(caller, ptr, len))
    })?;
    linker.func_wrap(MODULE, "http_head", http_head)?;
    linker.func_wrap_async(MODULE, "http_read", |caller: Caller<'_, Host>, (handle, buf, cap): (u32, u32, u32)| {
        Box::new(http_read(caller, handle, buf, cap))
    })?;
    linker.func_wrap(MODULE, "http_close", http_close)?;
    Ok(())
}

async fn http_send(mut caller: Caller<'_, Host>, ptr: u32, len: u32) -> Result<i32> {
    let (record, host) = span(&mut caller, ptr, len)?;
    host.has_used_http = true;
    let decoded = decode(record)?;
    // What was just copied may have come from a mapping that could not be read.
    host.mappings.intact(&host.memory)?;
    let (parts, body_len) = match decoded {
        Ok(decoded) => decoded,
        Err(text) => return Ok(host.refuse_as(Errno::Invalid, text)),
    };
    let admitted = host.hooks.outbound.admit(&host.environment, &host.log, &parts.uri);
    let (tenant, outbound) = match admitted {
        Ok(admitted) => admitted,
        Err(error) => return Ok(host.refuse_outbound(&error)),
    };
    let handle = vacancy(&mut host.responses.0, RESPONSES_MAX).filter(|_| !outbound.is_busy());
    let Some(handle) = handle else {
        // All of them are its own, and it would wait for itself.
        return Ok(host.refuse_limit("the instance has as many responses open as it may: close one first".into()));
    };
    let (feed, body) = feed(body_len);
    let sent = send(
        &mut caller,
        (ptr.wrapping_add(len - body_len), body_len),
        &feed,
        (tenant, outbound),
        Request::from_parts(parts, body),
    );
    let sent = sent.await?;
    let host = caller.data_mut();
    match sent {
        Ok(response) => {
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status, parts.headers);
            let response = Response { status, headers, body, rest: Bytes::new(), failed: None, _feed: feed };
            host.responses.0[handle as usize] = Some(response);
            Ok(i32::try_from(handle).unwrap_or(i32::MAX))
        }
        Err(error) => Ok(host.refuse_outbound(&error.into())),
    }
}

/// Sends a request whose body lies in the guest's memory at `body`, from where it is taken piece by piece.
async fn send(
    caller: &mut Caller<'_, Host>,
    body: (u32, u32),
    feed: &mpsc::Sender<Bytes>,
    (tenant, outbound): (Arc<Tenant>, egress::Caller),
    request: Request<RequestBody>,
) -> Result<Result<http::Response<ResponseBody>, EgressError>> {
    let times = tenant.egress().times();
    let mut response = std::pin::pin!(tenant.send(request, &outbound, times));
    let (mut at, mut left) = body;
    loop {
        tokio::select! {
            biased;
            response = &mut response => return Ok(response),
            // Room first, copy second: a guest that waits costs no memory.
            room = feed.reserve(), if left > 0 => {
                let Ok(room) = room else {
                    left = 0;
                    continue;
                };
                let count = left.min(u32::try_from(PIECE_LEN_MAX).unwrap_or(u32::MAX));
                room.send(copy_piece(caller, at, count, Bytes::copy_from_slice)?);
                (at, left) = (at + count, left - count);
            }
        }
    }
}

fn http_head(mut caller: Caller<'_, Host>, handle: u32, buf: u32, cap: u32) -> Result<i32> {
    let (_, host) = span(&mut caller, buf, cap)?;
    let response = host.responses.get(handle)?;
    let (status, headers) = (response.status, response.headers.clone());
    let len = RESPONSE_HEAD + headers.iter().map(|(name, value)| 8 + name.as_str().len() + value.len()).sum::<usize>();
    deliver(&mut caller, buf, cap, len, |writer: &mut Writer<'_>| {
        writer.put_u32(0);
        writer.put_u16(status.as_u16().into());
        writer.put_u16(headers.len());
        writer.put_u32(0);
        for (name, value) in &headers {
            writer.put_u32(name.as_str().len());
            writer.put_u32(value.len());
            writer.put(name.as_str().as_bytes());
            writer.put(value.as_bytes());
        }
    })
}

async fn http_read(mut caller: Caller<'_, Host>, handle: u32, buf: u32, cap: u32) -> Result<i32> {
    let (_, host) = span(&mut caller, buf, cap)?;
    let response = host.responses.get(handle)?;
    while response.rest.is_empty() && response.failed.is_none() && cap > 0 {
        match std::future::poll_fn(|cx| Pin::new(&mut response.body).poll_frame(cx)).await {
            // Trailers are nothing to a handler.
            Some(Ok(frame)) => response.rest = frame.into_data().unwrap_or_default(),
            Some(Err(error)) => response.failed = Some(error),
            None => break,
        }
    }
    if response.rest.is_empty()
        && let Some(error) = response.failed.clone()
    {
        return Ok(host.refuse_outbound(&error.into()));
    }
    let (buffer, host) = span(&mut caller, buf, cap)?;
    let rest = &mut host.responses.get(handle)?.rest;
    let count = buffer.len().min(rest.len()).min(i32::MAX as usize);
    buffer[..count].copy_from_slice(&rest[..count]);
    rest.advance(count);
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

fn http_close(mut caller: Caller<'_, Host>, handle: u32) -> Result<()> {
    let slot = caller.data_mut().responses.0.get_mut(handle as usize);
    match slot.and_then(Option::take) {
        Some(response) => drop(response),
        None => return Err(no_handle(handle).into()),
    }
    Ok(())
}

impl Host {
    /// As [`Host::refuse`], for a request to another server.
    fn refuse_outbound(&mut self, error: &OutboundError) -> i32 {
        self.refuse_as(Errno::from(error), error.to_string())
    }
}

/// Reads the record of a request: all but its body, and the body's length. Inside, what no request has, in words.
fn decode(record: &[u8]) -> Result<Result<(Parts, u32), String>, Refusal> {
    let short = || Refusal::bad_call("the record of a request ends past its length");
    let mut input = record;
    if input.len() < REQUEST_HEAD {
        let detail = format!("the record of a request has at least {REQUEST_HEAD} bytes, this one has {}", input.len());
        return Err(Refusal::bad_call(detail));
    }
    let (flags, method_len, count) = (input.get_u32_le(), usize::from(input.get_u16_le()), usize::from(input.get_u16_le()));
    let (url_len, body_len) = (input.get_u32_le() as usize, input.get_u32_le());
    if flags != BODY_IS_WHOLE {
        let detail =
            format!("the record of a request to send has flags {BODY_IS_WHOLE}, for its body is whole; this one has {flags}");
        return Err(Refusal::bad_call(detail));
    }
    let (method, rest) = input.split_at_checked(method_len).ok_or_else(short)?;
    let (url, rest) = rest.split_at_checked(url_len).ok_or_else(short)?;
    input = rest;
    let (mut fields, mut sum) = (Vec::with_capacity(count.min(HEADERS_MAX)), 0);
    for _ in 0..count {
        let (name, value) = take_header(&mut input)?;
        sum += name.len() + value.len();
        if fields.len() < HEADERS_MAX {
            fields.push((name, value));
        }
    }
    if input.len() != body_len as usize {
        let detail = format!("the body of a request has {body_len} bytes by its record, but {} follow", input.len());
        return Err(Refusal::bad_call(detail));
    }
    if url.len() > URL_LEN_MAX {
        return Ok(Err(format!("the target has {} bytes: expected at most {URL_LEN_MAX}", url.len())));
    }
    if count > HEADERS_MAX || sum > HEADER_BYTES_MAX {
        return Ok(Err(format!("a request has at most {HEADERS_MAX} headers of {HEADER_BYTES_MAX} bytes in all")));
    }
    let parts = || {
        let mut request = Request::new(());
        *request.method_mut() = Method::from_bytes(method).map_err(|_| "the method is no word of HTTP")?;
        *request.uri_mut() = Uri::try_from(url).map_err(|_| "the target is no URL")?;
        for (name, value) in fields {
            let name = HeaderName::from_bytes(name).map_err(|_| "a header's name is not a token")?;
            let value = HeaderValue::from_bytes(value).map_err(|_| "a header's value holds control characters")?;
            request.headers_mut().append(name, value);
        }
        Ok(request.into_parts().0)
    };
    Ok(parts().map(|parts| (parts, body_len)).map_err(|text: &str| text.into()))
}

/// A body of `len` bytes that is fed piece by piece.
fn feed(len: u32) -> (mpsc::Sender<Bytes>, RequestBody) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, RequestBody::new(Fed { receiver, left: len.into() }))
}

struct Fed {
    receiver: mpsc::Receiver<Bytes>,
    left: u64,
}

impl Body for Fed {
    type Data = Bytes;
    type Error = GivenUp;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, GivenUp>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let Some(piece) = ready!(self.receiver.poll_recv(cx)) else { return Poll::Ready(Some(Err(GivenUp))) };
        self.left = self.left.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(flags: u32, method: &str, url: &str, headers: &[(&str, &str)], body_len: usize, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(flags.to_le_bytes());
        record.extend(u16::try_from(method.len()).unwrap().to_le_bytes());
        record.extend(u16::try_from(headers.len()).unwrap().to_le_bytes());
        record.extend(u32::try_from(url.len()).unwrap().to_le_bytes());
        record.extend(u32::try_from(body_len).unwrap().to_le_bytes());
        record.extend([method.as_bytes(), url.as_bytes()].concat());
        for (name, value) in headers {
            record.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            record.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            record.extend([name.as_bytes(), value.as_bytes()].concat());
        }
        record.extend(body);
        record
    }

    #[test]
    fn a_request_is_decoded() {
        let record = record(1, "POST", "http://a/b?c", &[("x-a", "1"), ("x-a", "2")], 2, b"hi");
        let (parts, body_len) = decode(&record).unwrap().unwrap();
        assert_eq!((parts.method.as_str(), parts.uri.to_string(), body_len), ("POST", "http://a/b?c".into(), 2));
        assert_eq!(parts.headers.get_all("x-a").iter().count(), 2);
        for len in 0..record.len() {
            assert!(decode(&record[..len]).is_err(), "{len}");
        }
        assert!(decode(&[&record[..], b"x"].concat()).is_err());
    }

    #[test]
    fn what_no_request_has_is_refused() {
        assert!(decode(&record(0, "GET", "http://a", &[], 0, b"")).is_err());
        let name = "n".repeat(HEADER_BYTES_MAX - 1);
        let url = format!("http://a/{}", "u".repeat(URL_LEN_MAX - 9));
        let (many, more) = (vec![("a", "b"); HEADERS_MAX], vec![("a", "b"); HEADERS_MAX + 1]);
        for good in [
            record(1, "GET", &url, &[], 0, b""),
            record(1, "GET", "http://a", &[("a", &name)], 0, b""),
            record(1, "GET", "http://a", &many, 0, b""),
        ] {
            decode(&good).unwrap().unwrap();
        }
        for bad in [
            record(1, "", "http://a", &[], 0, b""),
            record(1, "GET /", "http://a", &[], 0, b""),
            record(1, "GET\r\n", "http://a", &[], 0, b""),
            record(1, "GET", "", &[], 0, b""),
            record(1, "GET", "http://a/ b", &[], 0, b""),
            record(1, "GET", "http://a/\r\nx: y", &[], 0, b""),
            record(1, "GET", "http://a", &[("x y", "z")], 0, b""),
            record(1, "GET", "http://a", &[("x", "y\r\nz: 1")], 0, b""),
            record(1, "GET", "http://a", &[("x\r\n", "y")], 0, b""),
            record(1, "GET", &format!("{url}u"), &[], 0, b""),
            record(1, "GET", "http://a", &[("ab", &name)], 0, b""),
            record(1, "GET", "http://a", &more, 0, b""),
        ] {
            assert!(decode(&bad).unwrap().is_err());
        }
    }
}
