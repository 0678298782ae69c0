//! `wasi:http`, 0.2 and 0.3: requests in, responses out, and requests out, each by the manifest's grant.
//!
//! Owns the conversion between Hob's requests and responses and WASI's. Invariant: what limits a request body also limits it here.

use std::fmt::{self, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use wasmtime::Result;
use wasmtime::component::Linker;
use wasmtime_wasi_http::p2::bindings::http::types::ErrorCode;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::egress::{Outbound, OutboundError};
use super::handler::target;
use super::held::{self, Asides, BODY_PIECE_BYTES};
use super::reply::{GuestBody, PIECE_LEN_MAX, Reply};
use super::{Environment, Host};
use crate::egress::{self, EgressError, HEAD_BYTES_MAX, Tenant};
use crate::fault::{Code, Fault};
use crate::invocation::{BodyError, Payload};
use crate::telemetry::logs::LogSink;

/// Links `wasi:http` of 0.2, and of 0.3 if `concurrent`.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link(linker: &mut Linker<Host>, concurrent: bool) -> Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    if concurrent {
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
    }
    linker.allow_shadowing(true);
    let linked = held::link(linker, concurrent);
    linker.allow_shadowing(false);
    linked
}

impl WasiHttpView for Host {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.has_used_http = true;
        self.hooks.of.get_or_insert_with(|| (self.environment.clone(), self.log.clone()));
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// What `wasi:http` asks its embedder.
#[derive(Debug, Default)]
pub struct Hooks {
    /// Whose requests they are: known once a component has asked for anything of HTTP.
    of: Option<(Arc<Environment>, Arc<LogSink>)>,
    /// The requests that the guest sends.
    pub(super) outbound: Outbound,
    /// What is kept of them, and of streams.
    pub(super) asides: Asides,
}

impl Hooks {
    fn admit(&mut self, uri: &http::Uri) -> Result<(Arc<Tenant>, egress::Caller), OutboundError> {
        let Some((environment, log)) = &self.of else { return Err(OutboundError::Absent) };
        self.outbound.admit(environment, log, uri)
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
        let admitted = self.admit(request.uri());
        let aside = self.asides.sent(&request);
        Box::new(async move {
            let (tenant, caller) = admitted.map_err(|error| wasi_error(&error))?;
            let options = options.unwrap_or_default();
            let times = tenant.egress().times();
            let times = times.at_most(options.connect_timeout, options.first_byte_timeout, options.between_bytes_timeout);
            let sent = tenant.send(request.map(egress::from_guest), &caller, times).await;
            let response = sent.map_err(|error| wasi_error(&error.into()))?;
            aside.answered(response.headers());
            let mut response = response.map(|body| body.map_err(|error| wasi_error(&error.into())).boxed_unsync());
            response.extensions_mut().insert(aside);
            // The connection is driven by the client.
            Ok((response, Box::new(std::future::ready(Ok(()))) as _))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_PIECE_BYTES
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        PIECE_LEN_MAX
    }
}

/// As the interface says it.
fn wasi_error(error: &OutboundError) -> Error {
    let error = match error {
        OutboundError::Denied(_) | OutboundError::Absent => return Error::HttpRequestDenied,
        OutboundError::Egress(error) => error,
    };
    match error {
        EgressError::BadTarget => Error::HttpRequestUriInvalid,
        EgressError::BadMethod => Error::HttpRequestMethodInvalid,
        EgressError::BadLength | EgressError::RequestBody => Error::HttpRequestBodySize(None),
        EgressError::Prohibited => Error::DestinationIpProhibited,
        EgressError::UnknownName => Error::DnsError { rcode: None, info_code: None },
        EgressError::ConnectTimeout => Error::ConnectionTimeout,
        EgressError::Refused => Error::ConnectionRefused,
        EgressError::Unreachable => Error::DestinationUnavailable,
        EgressError::Certificate => Error::TlsCertificateError,
        EgressError::Tls => Error::TlsProtocolError,
        EgressError::HeadTooLarge => Error::HttpResponseHeaderSectionSize(u32::try_from(HEAD_BYTES_MAX).ok()),
        EgressError::Malformed => Error::HttpProtocolError,
        EgressError::ResponseTimeout => Error::HttpResponseTimeout,
        EgressError::Idle => Error::ConnectionReadTimeout,
        EgressError::BodyTooLarge { limit } => Error::HttpResponseBodySize(Some(*limit)),
        EgressError::Cut => Error::HttpResponseIncomplete,
        EgressError::Closed => Error::ConnectionTerminated,
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

/// The beginning of a code as it is printed: its name is the interface's own; what a guest may have put into it, of any length, is not shown.
struct CodeName(String);

impl fmt::Write for CodeName {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = text.find(['(', '{', ' ']);
        self.0.push_str(&text[..end.unwrap_or(text.len())]);
        if end.is_some() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The fault for a component that answered with an error code of `wasi:http`.
pub fn refused(code: &dyn std::fmt::Debug) -> Fault {
    let mut text = CodeName(String::new());
    // It stops where the name does.
    let _ = write!(text, "{code:?}");
    let CodeName(text) = text;
    Fault::executed(
        Code::GuestBadResponse,
        format!("the function answered with the wasi:http error '{text}' instead of a response"),
    )
}
