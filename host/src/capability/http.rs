//! `wasi:http`, 0.2 and 0.3: requests in, responses out, and outbound requests refused until granted.
//!
//! Owns the conversion between Hob's requests and responses and WASI's. Invariant: what limits a request body also limits it here.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use wasmtime::Result;
use wasmtime::component::Linker;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::Host;
use super::handler::target;
use super::reply::{GuestBody, PIECE_LEN_MAX, Reply};
use crate::fault::{Code, Fault};
use crate::invocation::{BodyError, Payload};

/// Links `wasi:http` of 0.2, and of 0.3 if `concurrent`.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link(linker: &mut Linker<Host>, concurrent: bool) -> Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    if concurrent {
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
    }
    Ok(())
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.has_used_http = true;
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// What `wasi:http` asks its embedder.
#[derive(Debug)]
pub struct Hooks {
    net: bool,
}

impl Hooks {
    /// `net`: whether the guest may send requests anywhere.
    #[must_use]
    pub fn new(net: bool) -> Self {
        Self { net }
    }
}

type Sent = Result<(http::Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>), Error>;

impl WasiHttpHooks for Hooks {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _processed: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        if !self.net {
            return Box::new(std::future::ready(Err(Error::HttpRequestDenied)));
        }
        Box::new(async move {
            let (response, io) = wasmtime_wasi_http::default_send_request(request, options).await?;
            Ok((response.map(http_body_util::BodyExt::boxed_unsync), Box::new(io) as _))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE_LEN_MAX
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE_LEN_MAX
    }
}

/// A request as components see it: the path without the function's prefix, and an authority even for HTTP/1.0.
///
/// # Errors
/// Never for a request that came in over HTTP; a [`Fault`] for one whose path stops being one without its prefix.
pub fn request(
    parts: http::request::Parts,
    prefix_len: usize,
    body: Payload,
    reply: Arc<Reply>,
) -> Result<http::Request<RequestBody>, Fault> {
    let mut parts = parts;
    if prefix_len > 0 {
        let (slash, rest) = target(&parts, prefix_len);
        let uri = format!("{slash}{rest}").parse();
        parts.uri = uri.map_err(|_| Fault::new(Code::BadRequest, "the path of the request is malformed"))?;
    }
    if parts.headers.get(http::header::HOST).is_some_and(|host| host.to_str().is_err()) {
        return Err(Fault::new(Code::BadRequest, "the 'host' of the request is no text"));
    }
    if parts.uri.authority().is_none() && !parts.headers.contains_key(http::header::HOST) {
        parts.headers.insert(http::header::HOST, http::HeaderValue::from_static("localhost"));
    }
    Ok(http::Request::from_parts(parts, RequestBody { body, reply }))
}

/// A request body on its way into a component.
#[derive(Debug)]
pub struct RequestBody {
    body: Payload,
    reply: Arc<Reply>,
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| {
                self.reply.put_body_fault(&error);
                match error {
                    BodyError::TooLarge { limit } => Error::HttpRequestBodySize(Some(limit)),
                    BodyError::Idle => Error::ConnectionReadTimeout,
                    BodyError::Disconnected | BodyError::Cut(_) => Error::ConnectionTerminated,
                }
            })
        }))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// What a 0.2 component answered through its outparam, as a reply.
pub fn answer(
    response: Result<http::Response<WasiBody>, ErrorCode>,
    reply: &Arc<Reply>,
) -> Result<http::Response<Payload>, Fault> {
    match response {
        Ok(response) => Ok(response.map(|body| Payload::Stream(Box::pin(GuestBody::new(body, reply.clone()))))),
        Err(code) => Err(refused(&code)),
    }
}

/// The fault for a component that answered with an error code of `wasi:http`.
pub fn refused(code: &dyn std::fmt::Debug) -> Fault {
    let mut text: String = format!("{code:?}");
    // The name of the code is the interface's own; what a guest may have put into it is not shown.
    text.truncate(text.find(['(', '{', ' ']).unwrap_or(text.len()));
    Fault::executed(
        Code::GuestBadResponse,
        format!("the function answered with the wasi:http error '{text}' instead of a response"),
    )
}
