//! One connection, from accept to close.
//!
//! Owns its timers and its end; hyper owns the protocol. Knows nothing about what the service does. Invariant: a connection either
//! waits for a head (at most `keepalive_timeout` and `header_timeout`, and as long as its place is not wanted for another), or has a request
//! in hand, or is closing; nothing else keeps it open.
//!
//! hyper's own head timer is not used: it allocates and arms a timer for each request, and what hyper says when a head is broken
//! is a bare status. One lazy timer here costs a clock read for each request, and every answer is a problem document.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::afterwards;
use super::body::IncomingBody;
use super::drain::Stop;
use super::idle::Idle;
use super::io::Io;
use super::outgoing::{BoxError, Outgoing};
use super::phase::Phase;
use super::places::Place;
use super::serve::Options;
use super::status::problem;
use super::stream::Stream;
use super::turned_away::Why;
use super::{head, refuse};
use crate::fault::{Code, Fault};
use crate::invocation::Payload;

/// What all connections of one listener share.
pub(super) struct Shared<S> {
    pub(super) options: Options,
    pub(super) http: http1::Builder,
    pub(super) service: S,
    pub(super) stop: Stop,
}

/// hyper's settings for `options`.
pub(super) fn builder(options: &Options) -> http1::Builder {
    /// Up to this many headers hyper parses without allocating; it is also its default. A lower limit is checked afterwards.
    const HEADERS_ON_STACK: usize = 100;
    /// Most bytes of one read of a body, and of what waits to be written.
    const BUF_BYTES: usize = 64 << 10;
    let mut http = http1::Builder::new();
    http.header_read_timeout(None)
        .max_header_size(options.head_bytes_max)
        .max_buf_size(BUF_BYTES.max(options.head_bytes_max))
        .half_close(false)
        // Aggregating would hold a finished response back while half of the next request is in the buffer.
        .pipeline_flush(false);
    if options.headers_max > HEADERS_ON_STACK {
        http.max_headers(options.headers_max);
    }
    http
}

/// How hyper's part ended.
enum End {
    /// All was said, or the client left, or a stream failed.
    Finished(hyper::Result<()>),
    /// No head came in time.
    HeadTimeout,
    /// The node drains, and no request is in hand.
    Stopped,
    /// Its place is wanted, and no request is in hand.
    Reclaimed,
}

/// Serves one connection, from its handshake if it has one, until it ends and gives its place back.
pub(super) async fn begin<S, F, B>(stream: TcpStream, place: Place, shared: Arc<Shared<S>>)
where
    S: Fn(Request<IncomingBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let stream = match shared.options.tls.clone() {
        None => Stream::Plain(stream),
        Some(tls) => {
            let handshake = tls.handshake(stream, shared.options.handshake_timeout);
            let shaken = tokio::select! {
                biased;
                shaken = handshake => shaken,
                // Its client has asked for nothing yet.
                () = shared.stop.stopped() => return,
                () = wanted(&place.phase) => Err(Why::Reclaimed),
            };
            match shaken {
                Ok(stream) => stream,
                Err(why) => return shared.options.turned_away.count(why),
            }
        }
    };
    run(stream, Arc::clone(&place.phase), shared).await;
    drop(place);
}

/// Waits until somebody else wants the place of this connection.
async fn wanted(phase: &Phase) {
    poll_fn(|cx| {
        phase.register(cx.waker());
        if phase.is_wanted() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Speaks HTTP until it ends.
async fn run<S, F, B>(stream: Stream, phase: Arc<Phase>, shared: Arc<Shared<S>>)
where
    S: Fn(Request<IncomingBody>) -> F + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send,
    B: Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<BoxError>,
{
    let begun = Instant::now();
    let options = shared.options.clone();
    let io = TokioIo::new(Io::new(stream, Arc::clone(&phase), options.write_idle_timeout));
    let service = {
        let (shared, phase) = (Arc::clone(&shared), Arc::clone(&phase));
        service_fn(move |request| {
            phase.begin(request.version());
            respond(request, Arc::clone(&shared), Arc::clone(&phase))
        })
    };
    let mut hyper = shared.http.serve_connection(io, service);
    let mut head_timer = HeadTimer::new(&options);

    let mut stopped = pin!(shared.stop.stopped());
    // Polled here once, which leaves this task's waker with it. After that the order is asked for by one atomic load.
    let mut stopping = poll_fn(|cx| {
        phase.register(cx.waker());
        Poll::Ready(stopped.as_mut().poll(cx).is_ready())
    })
    .await;
    let mut closing = false;
    let mut looked = None;
    let mut end = loop {
        let end = poll_fn(|cx| match afterwards::turn(|| Pin::new(&mut hyper).poll(cx)) {
            Poll::Ready(result) => Poll::Ready(End::Finished(result)),
            Poll::Pending if phase.is_trailed() && !std::mem::replace(&mut closing, true) => {
                Pin::new(&mut hyper).graceful_shutdown();
                // hyper notices only when it is polled.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending if stopping || shared.stop.is_stopped() => Poll::Ready(End::Stopped),
            Poll::Pending if phase.is_wanted() => Poll::Ready(End::Reclaimed),
            Poll::Pending => head_timer.poll(cx, &phase),
        });
        let end = end.await;
        let requests = Some(phase.requests());
        match end {
            End::Reclaimed if !phase.is_waiting() => phase.keep_place(),
            // As below: the request that it waits for may have arrived.
            End::Reclaimed if std::mem::replace(&mut looked, requests) != requests => tokio::task::yield_now().await,
            end => break end,
        }
    };
    if let End::Stopped = end {
        // A request may have arrived that the runtime has not noticed yet: one turn of its driver, one more look.
        tokio::task::yield_now().await;
        stopping = true;
        let mut first_request = pin!(sleep_until(begun + options.first_request));
        end = poll_fn(|cx| {
            if let Poll::Ready(result) = afterwards::turn(|| Pin::new(&mut hyper).poll(cx)) {
                return Poll::Ready(End::Finished(result));
            }
            if stopping && phase.is_waiting() {
                if phase.requests() > 0 || first_request.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(End::Stopped);
                }
            } else if std::mem::take(&mut stopping) {
                Pin::new(&mut hyper).graceful_shutdown();
                // hyper notices only when it is polled.
                cx.waker().wake_by_ref();
            }
            head_timer.poll(cx, &phase)
        })
        .await;
    }
    let parts = hyper.into_parts();
    close(parts.io.into_inner().into_inner(), &parts.read_buf, end, &phase, &options).await;
}

/// The time that a head may take: the first from accept on, a later one from its first byte, which has a time of its own.
struct HeadTimer {
    idle: Idle,
    header_timeout: Duration,
    keepalive_timeout: Duration,
    /// [`Phase::requests`] and [`Phase::is_head_begun`] when the wait began.
    wait: (u32, bool),
}

impl HeadTimer {
    fn new(options: &Options) -> Self {
        let (header_timeout, keepalive_timeout) = (options.header_timeout, options.keepalive_timeout);
        Self { idle: Idle::new(header_timeout.max(keepalive_timeout)), header_timeout, keepalive_timeout, wait: (0, true) }
    }

    fn poll(&mut self, cx: &mut Context<'_>, phase: &Phase) -> Poll<End> {
        if !phase.is_waiting() {
            return Poll::Pending;
        }
        let requests = phase.requests();
        let is_head = requests == 0 || phase.is_head_begun();
        if std::mem::replace(&mut self.wait, (requests, is_head)) != (requests, is_head) {
            self.idle.progress();
        }
        let timeout = if is_head { self.header_timeout } else { self.keepalive_timeout };
        self.idle.poll_silence_of(timeout, cx).map(|()| End::HeadTimeout)
    }
}

/// Calls the service for a good head, and answers for it when it cannot.
async fn respond<S, F, B>(
    request: Request<Incoming>,
    shared: Arc<Shared<S>>,
    phase: Arc<Phase>,
) -> Result<Response<Outgoing<B>>, Infallible>
where
    S: Fn(Request<IncomingBody>) -> F,
    F: Future<Output = Response<B>>,
    B: Body<Data = Bytes>,
{
    let options = &shared.options;
    let mut request = request.map(|body| IncomingBody::new(body, &phase, options));
    // hyper may have gone on to it in the same turn in which it met the trailers.
    let misplaced = phase.is_trailed().then(head::behind_trailers);
    if let Some(refusal) = misplaced.or_else(|| head::refusal(&request, options)) {
        return Ok(Outgoing::own(refusal, phase));
    }
    if !request.extensions().is_empty() {
        // hyper's offer to leave HTTP (`Upgrade`), which nothing here takes.
        request.extensions_mut().clear();
    }
    // Unwind safety: what the future shares with others (the service) is behind locks and atomics of its own, which have their
    // own answer to a panic, and the future itself is not used again.
    match AssertUnwindSafe(async { (shared.service)(request).await }).catch_unwind().await {
        Ok(mut response) => {
            if phase.is_unread() || phase.is_trailed() || phase.requests() >= options.requests_max || shared.stop.is_stopped() {
                // hyper will not read on to find the next request, but says so only when it knew before the head was written.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(Outgoing::of_service(response, phase))
        }
        Err(panic) => {
            let fault = Fault::internal(format!("panic in a service: {}", panic_text(&*panic)));
            Ok(Outgoing::own(problem(&fault, None), phase))
        }
    }
}

/// What a panic said.
#[must_use]
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// Ends a connection that hyper is done with.
async fn close((stream, owed): (Stream, bool), unparsed: &[u8], end: End, phase: &Phase, options: &Options) {
    let begun = unparsed.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
    let answer = match &end {
        End::HeadTimeout if begun && phase.is_silent() => Some(problem(&slow_head(options), None)),
        // Its head had not come whole, so nobody has seen the request.
        End::Stopped if begun => Some(problem(&draining(), None)),
        End::Reclaimed => {
            options.turned_away.count(Why::Reclaimed);
            let answer = begun.then(|| refuse::raw(problem(&reclaimed(), None)));
            return refuse::tell(stream, answer.as_deref().unwrap_or_default());
        }
        End::HeadTimeout | End::Stopped | End::Finished(Ok(())) => None,
        End::Finished(Err(error)) => {
            tracing::debug!(%error, "connection ended");
            broken_head(error, owed, unparsed, phase, options)
        }
    };
    let ending = async {
        if let Some(mut answer) = answer {
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            refuse::answer(stream, &refuse::raw(answer)).await;
        } else if phase.is_cut_unmarked() {
            // Without chunks or a length an orderly close would read as the end of the body: only a reset says that it is not.
            if let Err(error) = stream.tcp().set_zero_linger() {
                tracing::debug!(%error, "could not reset a connection");
            }
        } else if phase.is_unread() {
            refuse::linger(stream).await;
        } else if phase.is_cut() {
            // An orderly end would say that it is whole.
        } else if begun || phase.requests() >= options.requests_max {
            // Requests that nobody will answer may be behind the last one that was.
            refuse::linger(stream).await;
        } else {
            refuse::farewell(stream).await;
        }
    };
    tokio::select! {
        biased;
        () = ending => {}
        // All that the system took is said by then.
        () = wanted(phase) => options.turned_away.count(Why::Reclaimed),
    }
}

fn draining() -> Fault {
    Fault::new(Code::Draining, "the node is shutting down, and the head of the request had not ended")
        .hint("send the request again on a new connection")
        .retry_after(Duration::from_secs(1))
}

fn reclaimed() -> Fault {
    Fault::new(Code::Overloaded, "the node needs the place of this connection, and the head of the request had not ended")
        .hint("send the whole head at once")
        .retry_after(Duration::from_secs(1))
}

fn slow_head(options: &Options) -> Fault {
    let time = options.header_timeout;
    Fault::new(Code::ClientTimeout, format!("the head of the request did not end within {time:?}"))
        .hint("send the whole head at once")
}

/// The answer to a head that hyper could not read, if one is owed.
fn broken_head(error: &hyper::Error, owed: bool, unparsed: &[u8], phase: &Phase, options: &Options) -> Option<Response<Payload>> {
    if error.is_parse_too_large() && owed {
        let line_len = unparsed.iter().position(|byte| *byte == b'\n').unwrap_or(unparsed.len());
        // A target so long that not even its line fits.
        let is_target = line_len > options.uri_bytes_max;
        let fault = if is_target { head::uri_too_long(options) } else { head::too_many_headers(options) };
        return Some(problem(&fault, None));
    }
    let detail = if error.is_parse_version_h2() {
        "this port speaks HTTP/1.1, and the client began with HTTP/2".into()
    } else if error.is_parse() {
        format!("the head of the request is malformed: {error}")
    } else if error.is_incomplete_message() && phase.is_waiting() {
        "the request ended in the middle of its head".into()
    } else {
        return None;
    };
    (owed || phase.is_silent()).then(|| problem(&Fault::new(Code::BadRequest, detail), None))
}
