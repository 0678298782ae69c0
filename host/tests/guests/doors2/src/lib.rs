//! A component that does with data what a request says: `POST /DOOR/OP/BUCKET` with fields in the body, each a length as four bytes
//! (little endian) and that many bytes. Answers in the same way. The doors are `kv1` and `kv2` (`wasi:keyvalue` of two drafts), `blob`
//! (`wasi:blobstore`) and `config` (`wasi:config`, where `OP` is which of its names).
//!
//! 200 is an answer, 404 says that there is nothing, 409 that a swap was too late, 422 that the interface refused, in its words.

mod blob;
mod config;
mod kv1;
mod kv2;

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam};

/// What an operation came to.
pub(crate) enum Answer {
    Fields(Vec<Vec<u8>>),
    Nothing,
    TooLate,
    Refused(String),
}

pub(crate) fn done() -> Answer {
    Answer::Fields(Vec::new())
}

pub(crate) fn field(field: impl AsRef<[u8]>) -> Answer {
    Answer::Fields(vec![field.as_ref().to_vec()])
}

/// A field that is text.
pub(crate) fn text(field: &[u8]) -> String {
    String::from_utf8(field.to_vec()).expect("the test sends text")
}

struct Doors;

wasip2::http::proxy::export!(Doors);

impl Guest for Doors {
    fn handle(request: IncomingRequest, outparam: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let fields = fields(&body(request));
        let words: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        let answer = match words.as_slice() {
            ["kv1", op, bucket] => kv1::run(op, bucket, &fields),
            ["kv2", op, bucket] => kv2::run(op, bucket, &fields),
            ["blob", op, bucket] => blob::run(op, bucket, &fields),
            ["config", name] => config::run(name, &fields),
            _ => Answer::Refused(format!("no such path: {path}")),
        };
        let (status, bytes) = match answer {
            Answer::Fields(fields) => (200, fields.iter().flat_map(|field| framed(field)).collect()),
            Answer::Nothing => (404, Vec::new()),
            Answer::TooLate => (409, Vec::new()),
            Answer::Refused(text) => (422, text.into_bytes()),
        };
        respond(outparam, status, &bytes);
    }
}

fn framed(field: &[u8]) -> Vec<u8> {
    let len = u32::try_from(field.len()).expect("it fits in this memory");
    [&len.to_le_bytes()[..], field].concat()
}

fn fields(mut body: &[u8]) -> Vec<Vec<u8>> {
    let mut fields = Vec::new();
    while let Some((len, rest)) = body.split_first_chunk::<4>() {
        let (field, rest) = rest.split_at(u32::from_le_bytes(*len) as usize);
        fields.push(field.to_vec());
        body = rest;
    }
    fields
}

fn body(request: IncomingRequest) -> Vec<u8> {
    let body = request.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    let mut bytes = Vec::new();
    while let Ok(piece) = stream.blocking_read(64 << 10) {
        bytes.extend(piece);
    }
    bytes
}

fn respond(outparam: ResponseOutparam, status: u16, bytes: &[u8]) {
    let response = OutgoingResponse::new(Fields::new());
    response.set_status_code(status).expect("the status is one");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(outparam, Ok(response));
    let stream = body.write().expect("the stream is taken once");
    for piece in bytes.chunks(4096) {
        // A client that has gone away is no fault of this function.
        let _ = stream.blocking_write_and_flush(piece);
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}
