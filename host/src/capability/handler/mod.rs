//! The handler ABI, import module `hob1`: the fast path for core modules.
//!
//! Owns both records and the five host calls for requests and responses; those for data and for other servers are in files of their own. `guest-sdk/abi.md`
//! is the same in words for guest authors, and the two change together. Invariant: every pointer and length of a guest is checked against its memory before it is used, and nothing a
//! guest passes can make the host allocate more than the guest itself owns.

mod data;
mod kv;
mod mapping;
mod objects;
mod outgoing;
mod secrets;

pub use data::{DataState, Errno};
pub use mapping::{InSlice, Mappings, prepare_process, system_mappings};
pub use outgoing::Responses;

use std::pin::Pin;

use bytes::{Buf, Bytes};
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body::Body;
use tokio::sync::mpsc;
use wasmtime::{Caller, Extern, Linker, Memory, Result};

use super::reply::PIECE_LEN_MAX;
use super::{Host, Refusal, reply};
use crate::crash;
use crate::fault::Code;
use crate::invocation::{BodyError, Payload, StreamBody};
use crate::telemetry::logs::{Level, Source};

/// Import module of this version of the ABI.
pub const MODULE: &str = "hob1";
/// What the import module of any version begins with.
pub const MODULE_STEM: &str = "hob";
/// The export that answers a request.
pub const ENTRY: &str = "hob_handle";
/// The export that runs once, at deploy, before the memory is kept; without a snapshot at each start.
pub const INIT: &str = "hob_init";
/// The export that runs at each start, before [`ENTRY`].
pub const RESTORED: &str = "hob_restored";
/// The convention of other tools for what [`INIT`] is here.
pub const WIZER_INIT: &str = "wizer-initialize";

const REQUEST_HEAD: usize = 16;
const RESPONSE_HEAD: usize = 12;
/// Most headers of a response, and the sum of their lengths in bytes: hyper's and most proxies' bounds.
const HEADERS_MAX: usize = 256;
const HEADER_BYTES_MAX: usize = 64 << 10;

const BODY_IS_WHOLE: u32 = 1;
const BODY_FOLLOWS: u32 = 1;
const FAILED: u32 = 2;
/// So much of a guest's memory is copied before others have a turn: what the kernel makes pages for in a millisecond or so.
const COPY_PIECE_BYTES: u32 = 128 << 10;

/// Request and response of one handler.
#[derive(Default)]
pub struct Exchange {
    request: Option<Request>,
    body: Option<StreamBody>,
    rest: Bytes,
    responded: bool,
    /// Longest body of a response, in bytes.
    response_limit: u64,
    sender: Option<mpsc::Sender<Bytes>>,
}

/// What a handler is asked.
#[derive(Debug)]
pub struct Request {
    parts: Parts,
    /// How much of the path belongs to the function's name and is not shown to it.
    prefix_len: usize,
    inline: Bytes,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange").field("responded", &self.responded).finish_non_exhaustive()
    }
}

impl Exchange {
    /// The exchange for one request. `prefix_len`: bytes of the path that the guest does not see. `response_limit`: longest body of
    /// a response, in bytes.
    #[must_use]
    pub fn new(parts: Parts, prefix_len: usize, body: Payload, response_limit: u64) -> Self {
        let (inline, body) = match body {
            Payload::Whole(bytes) => (bytes, None),
            Payload::Stream(stream) => (Bytes::new(), Some(stream)),
        };
        Self { request: Some(Request { parts, prefix_len, inline }), body, response_limit, ..Self::default() }
    }

    /// The handler has returned: nothing follows what it has written.
    pub fn finish(&mut self) {
        self.sender = None;
    }

    /// Whether the handler has answered.
    #[must_use]
    pub fn has_responded(&self) -> bool {
        self.responded
    }
}

/// The target a function sees: the request's without the first `prefix_len` bytes of its path.
#[must_use]
pub fn target(parts: &Parts, prefix_len: usize) -> (&'static str, &str) {
    let whole = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let rest = whole.get(prefix_len..).unwrap_or("");
    // `/NAME` and `/NAME?q` reach the function as `/` and `/?q`.
    if rest.starts_with('/') { ("", rest) } else { ("/", rest) }
}

/// Links all host calls.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap(MODULE, "request_read", request_read)?;
    linker.func_wrap_async(MODULE, "respond", |caller: Caller<'_, Host>, (ptr, len): (u32, u32)| {
        Box::new(respond(caller, ptr, len))
    })?;
    linker.func_wrap(MODULE, "log", log)?;
    linker.func_wrap_async(MODULE, "body_read", |caller: Caller<'_, Host>, (buf, cap): (u32, u32)| {
        Box::new(body_read(caller, buf, cap))
    })?;
    linker.func_wrap_async(MODULE, "body_write", |caller: Caller<'_, Host>, (ptr, len): (u32, u32)| {
        Box::new(body_write(caller, ptr, len))
    })?;
    data::link(linker)?;
    kv::link(linker)?;
    objects::link(linker)?;
    outgoing::link(linker)?;
    secrets::link(linker)?;
    mapping::link(linker)
}

/// The guest's memory. It is looked up by its name once, and not in each call.
fn memory(caller: &mut Caller<'_, Host>) -> Result<Memory> {
    if let Some(memory) = caller.data().handler_memory {
        return Ok(memory);
    }
    match caller.get_export("memory") {
        Some(Extern::Memory(memory)) => {
            caller.data_mut().handler_memory = Some(memory);
            Ok(memory)
        }
        _ => Err(Refusal::bad_call("the module exports no memory named 'memory'").into()),
    }
}

/// The bytes `ptr..ptr + len` of the guest, and its host.
fn span<'a>(caller: &'a mut Caller<'_, Host>, ptr: u32, len: u32) -> Result<(&'a mut [u8], &'a mut Host)> {
    let memory = memory(caller)?;
    let (data, host) = memory.data_and_store_mut(caller);
    host.mappings.intact(&host.memory)?;
    let size = data.len();
    let start = ptr as usize;
    match start.checked_add(len as usize).and_then(|end| data.get_mut(start..end)) {
        Some(bytes) => Ok((bytes, host)),
        None => Err(Refusal::bad_call(format!("{len} bytes at {ptr} do not lie in the memory of {size} bytes")).into()),
    }
}

/// As [`span`], for several parts that are only read.
fn spans<'a, const N: usize>(caller: &'a mut Caller<'_, Host>, parts: [(u32, u32); N]) -> Result<([&'a [u8]; N], &'a mut Host)> {
    for (ptr, len) in parts {
        span(caller, ptr, len)?;
    }
    let memory = memory(caller)?;
    let (data, host) = memory.data_and_store_mut(caller);
    let data: &[u8] = data;
    // Checked above, and nothing ran since.
    let part = |(ptr, len): (u32, u32)| data.get(ptr as usize..ptr as usize + len as usize).unwrap_or_default();
    Ok((parts.map(part), host))
}

/// Writes into a guest's buffer from its beginning; the caller has made sure that all fits.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        let (head, tail) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.0 = tail;
    }

    fn put_u32(&mut self, number: usize) {
        // Everything in a request record is bounded by the listener's caps, far below 4 GiB.
        self.put(&u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn put_u16(&mut self, number: usize) {
        self.put(&u16::try_from(number).unwrap_or(u16::MAX).to_le_bytes());
    }
}

fn request_read(mut caller: Caller<'_, Host>, buf: u32, cap: u32) -> Result<u32> {
    caller.data().reply.mark_entered();
    let (buffer, host) = span(&mut caller, buf, cap)?;
    let Some(request) = &host.exchange.request else {
        return Err(Refusal::bad_call("there is no request to read before the function is called").into());
    };
    let parts = &request.parts;
    let method = parts.method.as_str();
    let (slash, rest) = target(parts, request.prefix_len);
    let target_len = slash.len() + rest.len();
    let headers: usize = parts.headers.iter().map(|(name, value)| 8 + name.as_str().len() + value.len()).sum();
    let len = REQUEST_HEAD + method.len() + target_len + headers + request.inline.len();
    if len <= buffer.len() {
        let whole = host.exchange.body.is_none();
        let mut writer = Writer(buffer);
        writer.put_u32(if whole { BODY_IS_WHOLE as usize } else { 0 });
        writer.put_u16(method.len());
        writer.put_u16(parts.headers.len());
        writer.put_u32(target_len);
        writer.put_u32(request.inline.len());
        writer.put(method.as_bytes());
        writer.put(slash.as_bytes());
        writer.put(rest.as_bytes());
        for (name, value) in &parts.headers {
            writer.put_u32(name.as_str().len());
            writer.put_u32(value.len());
            writer.put(name.as_str().as_bytes());
            writer.put(value.as_bytes());
        }
        writer.put(&request.inline);
    }
    Ok(u32::try_from(len).unwrap_or(u32::MAX))
}

async fn body_read(mut caller: Caller<'_, Host>, buf: u32, cap: u32) -> Result<i32> {
    span(&mut caller, buf, cap)?;
    if caller.data().exchange.request.is_none() {
        return Err(Refusal::bad_call("there is no request whose body could be read before the function is called").into());
    }
    if caller.data().exchange.rest.is_empty() {
        match next_piece(&mut caller.data_mut().exchange).await {
            Ok(piece) => caller.data_mut().exchange.rest = piece,
            Err(BodyError::TooLarge { limit }) => {
                let detail = format!("the request body is larger than the function's limit of {limit} bytes");
                return Err(Refusal { code: Code::BodyTooLarge, detail }.into());
            }
            Err(BodyError::Idle) => {
                let detail = "the client stopped sending the request body".into();
                return Err(Refusal { code: Code::ClientTimeout, detail }.into());
            }
            Err(error @ (BodyError::Disconnected | BodyError::Cut(_))) => {
                caller.data().reply.put_body_fault(&error);
                return Ok(-1);
            }
        }
    }
    let (buffer, host) = span(&mut caller, buf, cap)?;
    // The result must fit the positive half of an i32.
    let count = buffer.len().min(host.exchange.rest.len()).min(i32::MAX as usize);
    buffer[..count].copy_from_slice(&host.exchange.rest[..count]);
    host.exchange.rest.advance(count);
    Ok(i32::try_from(count).unwrap_or(i32::MAX))
}

/// The next bytes of the request body; none at its end.
async fn next_piece(exchange: &mut Exchange) -> Result<Bytes, BodyError> {
    while let Some(body) = exchange.body.as_mut() {
        match std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) if !bytes.is_empty() => return Ok(bytes),
                // Trailers and empty pieces are nothing to a handler.
                Ok(_) | Err(_) => {}
            },
            Some(Err(error)) => {
                exchange.body = None;
                return Err(error);
            }
            None => exchange.body = None,
        }
    }
    Ok(Bytes::new())
}

async fn respond(mut caller: Caller<'_, Host>, ptr: u32, len: u32) -> Result<()> {
    let (record, host) = span(&mut caller, ptr, len)?;
    if host.exchange.request.is_none() {
        return Err(Refusal::bad_call("there is no request to answer before the function is called").into());
    }
    if std::mem::replace(&mut host.exchange.responded, true) {
        return Err(Refusal::bad_call("the function responded twice").into());
    }
    let (flags, head, body) = decode_response(record, host.exchange.response_limit)?;
    let body_len = u32::try_from(body.len())?;
    // It ends where the record does; one of no bytes may begin where addresses end.
    let body = copy(&mut caller, ptr.wrapping_add(len - body_len), body_len).await?;
    let (response, host) = (head.map(|()| body), caller.data_mut());
    let response = match flags {
        FAILED => {
            host.log.guest(Source::Log, Level::Error, response.body());
            let text = Bytes::from_static(b"the function failed; its log says why\n");
            let mut failed = Response::new(Payload::Whole(text));
            *failed.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            failed.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            failed
        }
        BODY_FOLLOWS => {
            let (sender, payload) = reply::stream(host.reply.clone());
            let (parts, first) = response.into_parts();
            if !first.is_empty() {
                // The channel was just made and has room.
                let _sent = sender.try_send(first);
            }
            host.exchange.sender = Some(sender);
            Response::from_parts(parts, payload)
        }
        _ => response.map(Payload::Whole),
    };
    host.reply.put(Ok(response));
    Ok(())
}

/// A copy of a guest's memory. Of what is long, piece by piece, with turns for others between: pages that nobody touched before are made by
/// the kernel one by one, so that a hundred megabytes may take a second.
async fn copy(caller: &mut Caller<'_, Host>, ptr: u32, len: u32) -> Result<Bytes> {
    if len <= COPY_PIECE_BYTES {
        return copy_piece(caller, ptr, len, Bytes::copy_from_slice);
    }
    let mut copied = Vec::with_capacity(len as usize);
    loop {
        let at = u32::try_from(copied.len())?;
        copy_piece(caller, ptr + at, (len - at).min(COPY_PIECE_BYTES), |bytes| copied.extend_from_slice(bytes))?;
        if copied.len() == len as usize {
            return Ok(copied.into());
        }
        tokio::task::yield_now().await;
    }
}

fn copy_piece<T>(caller: &mut Caller<'_, Host>, ptr: u32, len: u32, copy: impl FnOnce(&[u8]) -> T) -> Result<T> {
    let (bytes, host) = span(caller, ptr, len)?;
    let copied = copy(bytes);
    // What was just copied may have come from a mapping that could not be read.
    host.mappings.intact(&host.memory)?;
    Ok(copied)
}

/// Reads a response record: its flags, the response, and the body that the record ends with, of at most `limit` bytes.
fn decode_response(record: &[u8], limit: u64) -> Result<(u32, Response<()>, &[u8]), Refusal> {
    let mut input = record;
    if input.len() < RESPONSE_HEAD {
        return Err(Refusal::bad_call(format!(
            "a response record has at least {RESPONSE_HEAD} bytes, this one has {}",
            input.len()
        )));
    }
    let (flags, status, count, body_len) =
        (input.get_u32_le(), input.get_u16_le(), usize::from(input.get_u16_le()), input.get_u32_le());
    if flags > FAILED {
        return Err(Refusal::bad_call(format!("a response record has flags 0, 1 or 2, this one has {flags}")));
    }
    let status = StatusCode::from_u16(status).ok().filter(|status| (200..600).contains(&status.as_u16()));
    let status = match status {
        Some(status) => status,
        None if flags == FAILED => StatusCode::INTERNAL_SERVER_ERROR,
        None => return Err(bad_response("a response has a status from 200 to 599")),
    };
    if count > HEADERS_MAX {
        return Err(bad_response(format!("a response has at most {HEADERS_MAX} headers, this one has {count}")));
    }
    let mut response = Response::new(());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(count);
    let mut sum = 0;
    for _ in 0..count {
        let (name, value) = take_header(&mut input)?;
        sum += name.len() + value.len();
        if sum > HEADER_BYTES_MAX {
            return Err(bad_response(format!("the headers of a response have at most {HEADER_BYTES_MAX} bytes")));
        }
        let name = HeaderName::from_bytes(name).map_err(|_| bad_response("a header's name is not a token"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| bad_response("a header's value holds control characters"))?;
        headers.append(name, value);
    }
    if input.len() != body_len as usize {
        return Err(Refusal::bad_call(format!(
            "the body of a response record has {body_len} bytes by its head, but {} follow",
            input.len()
        )));
    }
    // A guest's memory may be far larger than what it may answer.
    if u64::from(body_len) > limit {
        let detail = format!("the response body has {body_len} bytes, the function's limit is {limit}");
        return Err(Refusal { code: Code::ResponseTooLarge, detail });
    }
    Ok((flags, response, input))
}

fn take_header<'a>(input: &mut &'a [u8]) -> Result<(&'a [u8], &'a [u8]), Refusal> {
    let short = || Refusal::bad_call("a header of the response record ends past the record");
    if input.len() < 8 {
        return Err(short());
    }
    let (name_len, value_len) = (input.get_u32_le() as usize, input.get_u32_le() as usize);
    let (name, rest) = input.split_at_checked(name_len).ok_or_else(short)?;
    let (value, rest) = rest.split_at_checked(value_len).ok_or_else(short)?;
    *input = rest;
    Ok((name, value))
}

fn bad_response(detail: impl Into<String>) -> Refusal {
    Refusal { code: Code::GuestBadResponse, detail: detail.into() }
}

async fn body_write(mut caller: Caller<'_, Host>, ptr: u32, len: u32) -> Result<i32> {
    span(&mut caller, ptr, len)?;
    let Some(sender) = caller.data().exchange.sender.clone() else {
        return Err(Refusal::bad_call("body_write needs a response record with flag 1 before it").into());
    };
    let mut written = 0;
    while written < len {
        let count = (len - written).min(u32::try_from(PIECE_LEN_MAX).unwrap_or(u32::MAX));
        // Room first, copy second: a waiting guest costs no memory.
        let Ok(room) = sender.reserve().await else { return Ok(-1) };
        room.send(copy_piece(&mut caller, ptr + written, count, Bytes::copy_from_slice)?);
        written += count;
    }
    Ok(0)
}

fn log(mut caller: Caller<'_, Host>, level: u32, ptr: u32, len: u32) -> Result<()> {
    crash::panic_point("hob1-log");
    let (text, host) = span(&mut caller, ptr, len)?;
    if !host.mappings.is_any() {
        host.log.guest(Source::Log, Level::from_abi(level), text);
        return Ok(());
    }
    let copy = text.get(..host.log.room()).unwrap_or(text).to_vec();
    let rest = text.len() - copy.len();
    // What was just copied may have come from a mapping that could not be read.
    host.mappings.intact(&host.memory)?;
    host.log.guest(Source::Log, Level::from_abi(level), &copy);
    host.log.drop_guest(rest);
    Ok(())
}

#[cfg(test)]
mod in_motion;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(flags: u32, status: u16, headers: &[(&str, &str)], body_len: usize, body: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(flags.to_le_bytes());
        record.extend(status.to_le_bytes());
        record.extend(u16::try_from(headers.len()).unwrap().to_le_bytes());
        record.extend(u32::try_from(body_len).unwrap().to_le_bytes());
        for (name, value) in headers {
            record.extend(u32::try_from(name.len()).unwrap().to_le_bytes());
            record.extend(u32::try_from(value.len()).unwrap().to_le_bytes());
            record.extend(name.as_bytes());
            record.extend(value.as_bytes());
        }
        record.extend(body);
        record
    }

    #[test]
    fn a_whole_response_is_decoded() {
        let whole = record(0, 201, &[("x-a", "1"), ("x-a", "2")], 2, b"hi");
        let (flags, response, body) = decode_response(&whole, 2).unwrap();
        assert_eq!((flags, response.status().as_u16(), response.headers().get_all("x-a").iter().count()), (0, 201, 2));
        assert_eq!(body, b"hi");
    }

    #[test]
    fn malformed_records_are_refused() {
        let many: Vec<_> = (0..=HEADERS_MAX).map(|_| ("a", "b")).collect();
        let long = "x".repeat(HEADER_BYTES_MAX);
        for (bad, code) in [
            (record(0, 199, &[], 0, b""), Code::GuestBadResponse),
            (record(0, 600, &[], 0, b""), Code::GuestBadResponse),
            (record(3, 200, &[], 0, b""), Code::GuestBadCall),
            (record(0, 200, &[], 3, b"hi"), Code::GuestBadCall),
            (record(0, 200, &[("a b", "c")], 0, b""), Code::GuestBadResponse),
            (record(0, 200, &[("a", "b\r\nc: d")], 0, b""), Code::GuestBadResponse),
            (record(0, 200, &many, 0, b""), Code::GuestBadResponse),
            (record(0, 200, &[("a", &long)], 0, b""), Code::GuestBadResponse),
            (vec![0; RESPONSE_HEAD - 1], Code::GuestBadCall),
        ] {
            assert_eq!(decode_response(&bad, 1 << 20).unwrap_err().code, code);
        }
        decode_response(&record(0, 200, &many[1..], 0, b""), 0).unwrap();
        decode_response(&record(0, 200, &[("a", &long[1..])], 0, b""), 0).unwrap();
    }

    #[test]
    fn the_body_s_limit_on_both_sides() {
        let whole = record(0, 200, &[], 5, b"hello");
        decode_response(&whole, 5).unwrap();
        assert_eq!(decode_response(&whole, 4).unwrap_err().code, Code::ResponseTooLarge);
    }

    #[test]
    fn every_truncation_of_a_record_is_refused() {
        let whole = record(0, 200, &[("content-type", "text/plain")], 5, b"hello");
        for len in 0..whole.len() {
            assert!(decode_response(&whole[..len], 1 << 20).is_err(), "{len}");
        }
    }

    #[test]
    fn the_target_loses_its_prefix() {
        let parts = |uri: &str| http::Request::builder().uri(uri).body(()).unwrap().into_parts().0;
        for (uri, prefix, expected) in
            [("/hello/a?b", 6, "/a?b"), ("/hello", 6, "/"), ("/hello?q", 6, "/?q"), ("/hello/", 6, "/"), ("/a/b", 0, "/a/b")]
        {
            let parts = parts(uri);
            let (slash, rest) = target(&parts, prefix);
            assert_eq!(format!("{slash}{rest}"), expected, "{uri}");
        }
    }
}
