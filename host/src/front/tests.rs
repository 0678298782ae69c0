//! The door over real sockets, with an `Invoke` that does what the test says.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::BodyExt as _;

use super::*;
use crate::config::Net;
use crate::fault::{Code, Fault};
use crate::id::InvocationId;
use crate::id::RevisionNumber;
use crate::invocation::Start;
use crate::invocation::{INLINE_BODY_BYTES, Invoked, Outcome, Phases};
use crate::net::testing::{Raw, Server, quick};

type Does = dyn Fn(Invocation) -> BoxFuture<'static, Result<Response<Payload>, Fault>> + Send + Sync;

/// Runs a closure instead of a guest.
struct Fake(Box<Does>);

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

fn id() -> InvocationId {
    InvocationId::new(1, 2)
}

impl Invoke for Fake {
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'static, Invoked> {
        let response = (self.0)(invocation);
        let phases = Phases { run: std::time::Duration::from_micros(1500), ..Phases::default() };
        let outcome = move |response| Outcome { response, revision: RevisionNumber::FIRST, start: Start::Resident, phases };
        async move { Invoked { id: id(), result: response.await.map(outcome) } }.boxed()
    }
}

fn start<F>(net: &Net, does: impl Fn(Invocation) -> F + Send + Sync + 'static) -> Server
where
    F: Future<Output = Result<Response<Payload>, Fault>> + Send + 'static,
{
    let front = Front::new(Arc::new(Fake(Box::new(move |invocation| does(invocation).boxed()))), None);
    Server::start(net, move |request| front.handle(request))
}

async fn collect(mut body: Payload) -> Result<usize, BodyError> {
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        len += frame?.data_ref().map_or(0, Bytes::len);
    }
    Ok(len)
}

/// Says in which form the body came and how long it was.
async fn describe(invocation: Invocation) -> Result<Response<Payload>, Fault> {
    let (head, body) = invocation.request.into_parts();
    let form = if matches!(body, Payload::Whole(_)) { "whole" } else { "stream" };
    let len = match collect(body).await {
        Ok(len) => len.to_string(),
        Err(error) => error.to_string(),
    };
    Ok(Response::new(Payload::Whole(format!("{} {form} {len}", head.method).into())))
}

fn post(len: usize) -> String {
    format!("POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: {len}\r\n\r\n")
}

#[test]
fn small_bodies_come_whole_and_others_stream() {
    let server = start(&Net::default(), describe);
    let mut client = server.client();
    let limit = usize::try_from(INLINE_BODY_BYTES).unwrap();
    for (len, form) in [(0, "whole"), (1, "whole"), (limit, "whole"), (limit + 1, "stream"), (1 << 20, "stream")] {
        let response = client.send(post(len)).send(vec![b'x'; len]).response();
        assert_eq!(response.text(), format!("POST {form} {len}"));
    }
    client.send("POST /x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "POST stream 3");
    client.send("GET /x HTTP/1.1\r\nhost: t\r\n\r\n");
    assert_eq!(client.response().text(), "GET whole 0");
    // In pieces, each read before the next is sent.
    client.send(post(3));
    for piece in ["a", "b", "c"] {
        client.send(piece);
        std::thread::yield_now();
    }
    assert_eq!(client.response().text(), "POST whole 3");
}

#[test]
fn a_small_body_that_stops_never_reaches_the_guest() {
    let net = Net { body_idle_timeout: quick().body_idle_timeout, ..Net::default() };
    let server = start(&net, |_| async { unreachable!("the body never came") });
    let mut client = server.client();
    let response = client.send(post(10)).send("half").response();
    response.check_problem(408, "client-timeout");
    assert_eq!((response.header("connection"), response.header("hob-executed")), (Some("close"), Some("0")));
    assert!(client.is_closed());
    let mut client = server.client();
    client.send(post(10)).send("half").end().response().check_problem(400, "bad-request");
    assert!(client.is_closed());
}

#[test]
fn a_large_body_that_stops_is_an_error_for_the_guest() {
    let net = Net { body_idle_timeout: quick().body_idle_timeout, ..Net::default() };
    let server = start(&net, describe);
    let response = server.client().send(post(100_000)).send("half").response();
    assert_eq!(response.text(), format!("POST stream {}", BodyError::Idle));
    let response = server.client().send(post(100_000)).send("half").end().response();
    assert_eq!(response.text(), format!("POST stream {}", BodyError::Disconnected));
}

#[test]
fn a_client_that_waits_for_100_continue_gets_it() {
    let server = start(&Net::default(), describe);
    for len in [3, 100_000] {
        let mut client = server.client();
        client.send(post(len).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n"));
        assert_eq!(client.head().status, 100);
        assert_eq!(client.send(vec![b'x'; len]).response().status, 200);
    }
}

#[test]
fn a_refused_upload_is_not_asked_for() {
    let server = start(&Net::default(), |_| async { Err(Fault::new(Code::BodyTooLarge, "too large")) });
    let mut client = server.client();
    client.send(post(1 << 30).replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n"));
    let response = client.response();
    response.check_problem(413, "body-too-large");
    assert_eq!(response.header("connection"), Some("close"));
    assert!(client.is_closed());
}

#[test]
fn faults_become_problems_with_the_invocation() {
    let server = start(&Net::default(), |_| async { Err(Fault::executed(Code::GuestTrap, "trapped").hint("look")) });
    let mut client = server.client();
    for _ in 0..2 {
        let response = client.send("GET /x HTTP/1.1\r\nhost: t\r\n\r\n").response();
        response.check_problem(502, "guest-trap");
        assert_eq!(response.header("hob-invocation-id"), Some(&*id().to_string()));
        assert_eq!((response.header("hob-executed"), response.header("connection")), (Some("1"), None));
    }
    let head = client.send("HEAD /x HTTP/1.1\r\nhost: t\r\n\r\n").head();
    assert_eq!((head.status, head.header("hob-error")), (502, Some("guest-trap")));
    client.send("GET /x HTTP/1.1\r\nhost: t\r\n\r\n").response().check_problem(502, "guest-trap");
}

#[test]
fn a_request_that_came_by_too_many_hops_reaches_no_guest() {
    let (seen_tx, seen) = sync_channel::<Option<Hops>>(1);
    let server = start(&Net::default(), move |invocation| {
        seen_tx.send(invocation.request.extensions().get().copied()).unwrap();
        async { Ok(Response::new(Payload::empty())) }
    });
    let mut client = server.client();
    for (header, hops) in [("", None), ("hob-hops: 0\r\n", None), ("hob-hops: words\r\n", None), ("hob-hops: 8\r\n", Some(8_u16))]
    {
        client.send(format!("GET /x HTTP/1.1\r\nhost: t\r\n{header}\r\n"));
        assert_eq!(client.response().status, 200, "{header}");
        assert_eq!(seen.recv().unwrap().map(|hops| hops.value()), hops.map(http::HeaderValue::from), "{header}");
    }
    for header in ["hob-hops: 9", "hob-hops: 255", "hob-hops: 0\r\nhob-hops: 9"] {
        client.send(format!("GET /x HTTP/1.1\r\nhost: t\r\n{header}\r\n\r\n"));
        let response = client.response();
        assert_eq!((response.status, response.header("hob-executed")), (508, Some("0")), "{header}");
    }
    assert!(seen.try_recv().is_err());
}

#[test]
fn hobs_headers_are_hobs() {
    let (seen_tx, seen) = sync_channel::<HeaderMap>(1);
    let server = start(&Net::default(), move |invocation| {
        seen_tx.send(invocation.request.headers().clone()).unwrap();
        let response = Response::builder().header("hob-start", "lie").header("hob-error", "lie").header("x-own", "1");
        let response = response.header("connection", "close, x-hop").header("x-hop", "1").header("upgrade", "h2c");
        let response = response.header("content-length", "99").header("transfer-encoding", "gzip").header("server-timing", "a");
        let response = response.body(Payload::Whole("body".into()));
        async { Ok(response.unwrap()) }
    });
    let mut client = server.client();
    for timing in ["hob-timing: 1", "hob-timing: 0"] {
        client.send(format!("GET /x HTTP/1.1\r\nhost: t\r\nhob-tenant: evil\r\n{timing}\r\nte: x\r\naccept: a\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.text(), "body");
        for (name, value) in [
            ("hob-invocation-id", Some(&*id().to_string())),
            ("hob-start", Some("resident")),
            ("hob-executed", Some("1")),
            ("hob-error", None),
            ("x-own", Some("1")),
            ("x-hop", None),
            ("connection", None),
            ("upgrade", None),
            ("transfer-encoding", None),
            ("content-length", Some("4")),
        ] {
            assert_eq!(response.header(name), value, "{name} in {response:?}");
        }
        let timings: Vec<_> = response.head.lines().filter(|line| line.starts_with("server-timing")).collect();
        let hobs = "server-timing: queue;dur=0.000000, load;dur=0.000000, verify;dur=0.000000, instantiate;dur=0.000000, \
                    enter;dur=0.000000, run;dur=1.500000";
        assert_eq!(timings.contains(&hobs), timing.ends_with('1'), "{timings:?}");
        assert!(timings.contains(&"server-timing: a"), "{timings:?}");
        let mut names: Vec<_> = seen.recv().unwrap().keys().map(ToString::to_string).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "host"]);
    }
}

#[test]
fn head_has_the_length_of_get_and_no_body() {
    let server = start(&Net::default(), |invocation| async move {
        let path = invocation.request.uri().path().to_owned();
        let own = Response::builder().header("content-length", "5");
        Ok(match &*path {
            "/whole" => Response::new(Payload::Whole("12345".into())),
            "/announced" => own.body(Payload::empty()).unwrap(),
            "/both" => own.body(Payload::Whole("12345".into())).unwrap(),
            "/wrong" => own.body(Payload::Whole("123".into())).unwrap(),
            _ => own.body(Payload::Stream(Box::pin(Frames(vec!["12345"], None)))).unwrap(),
        })
    });
    let mut client = server.client();
    for path in ["whole", "announced", "both", "wrong", "stream"] {
        let head = client.send(format!("HEAD /{path} HTTP/1.1\r\nhost: t\r\n\r\n")).head();
        assert_eq!((head.status, head.header("content-length")), (200, Some("5")), "{path}");
    }
    assert_eq!(client.send("GET /stream HTTP/1.1\r\nhost: t\r\n\r\n").response().text(), "12345");
    assert_eq!(client.send("GET /wrong HTTP/1.1\r\nhost: t\r\n\r\n").response().text(), "123");
}

#[test]
fn every_final_status_passes() {
    let server = start(&Net::default(), |invocation| async move {
        let status: u16 = invocation.request.uri().path().trim_start_matches('/').parse().unwrap();
        Ok(Response::builder().status(status).body(Payload::empty()).unwrap())
    });
    let mut client = server.client();
    for status in [200, 204, 304, 404, 500, 599, 999] {
        let response = client.send(format!("GET /{status} HTTP/1.1\r\nhost: t\r\n\r\n")).response();
        assert_eq!((response.status, response.header("hob-error")), (status, None));
    }
}

/// Frames, then an error or the end.
struct Frames(Vec<&'static str>, Option<BodyError>);

impl Body for Frames {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = self.0.pop().map(|text| Ok(Frame::data(text.into())));
        Poll::Ready(frame.or_else(|| self.1.take().map(Err)))
    }
}

#[test]
fn a_body_of_another_length_than_announced_is_cut() {
    let server = start(&Net::default(), |invocation| async move {
        let len = invocation.request.uri().path().trim_start_matches('/').to_owned();
        let body = Payload::Stream(Box::pin(Frames(vec!["45", "123"], None)));
        Ok(Response::builder().header("content-length", len).body(body).unwrap())
    });
    for (len, body) in [("9", "12345"), ("4", "123")] {
        let mut client = server.client();
        let head = client.send(format!("GET /{len} HTTP/1.1\r\nhost: t\r\n\r\n")).head();
        assert_eq!((head.status, head.header("content-length")), (200, Some(len)));
        assert_eq!(client.rest(), body.as_bytes(), "{len}");
    }
    let mut client = server.client();
    for _ in 0..2 {
        assert_eq!(client.send("GET /5 HTTP/1.1\r\nhost: t\r\n\r\n").response().text(), "12345");
    }
}

#[test]
fn a_cut_response_has_no_last_chunk() {
    let server = start(&Net::default(), |_| async {
        let cut = BodyError::Cut(Code::CpuDeadline);
        Ok(Response::new(Payload::Stream(Box::pin(Frames(vec!["tail", "head"], Some(cut))))))
    });
    let mut client = server.client();
    let head = client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n").head();
    assert_eq!((head.status, head.header("hob-executed")), (200, Some("1")));
    assert_eq!(client.rest(), b"4\r\nhead\r\n4\r\ntail\r\n");
}

/// Tells when it is dropped.
struct OnDrop(std::sync::mpsc::SyncSender<()>);
impl Drop for OnDrop {
    fn drop(&mut self) {
        let _nobody_waits = self.0.try_send(());
    }
}

/// A body that never gives a byte, and is a guest that runs.
struct Running(#[expect(dead_code, reason = "held for its drop")] OnDrop);
impl Body for Running {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Pending
    }
}

/// Sends a request, waits until the guest runs, and leaves; `respond`: what the guest answers before it goes on, if anything.
fn stopped_by(send: &str, respond: fn(OnDrop) -> Result<Payload, OnDrop>) {
    let (begin, begun) = sync_channel(1);
    let (stop, stopped) = sync_channel(1);
    let server = start(&Net::default(), move |invocation| {
        let (begin, guest) = (begin.clone(), OnDrop(stop.clone()));
        async move {
            begin.send(()).unwrap();
            match respond(guest) {
                Ok(payload) => Ok(Response::new(payload)),
                Err(guest) => {
                    let _held = (guest, invocation);
                    std::future::pending().await
                }
            }
        }
    });
    let mut client = server.client();
    client.send(send);
    begun.recv().unwrap();
    drop(client);
    stopped.recv().unwrap();
}

#[test]
fn a_client_that_leaves_before_the_response_stops_the_guest() {
    stopped_by("GET / HTTP/1.1\r\nhost: t\r\n\r\n", Err);
    stopped_by(&format!("{}abc", post(3)), Err);
}

#[test]
fn a_client_that_leaves_in_the_response_stops_the_guest() {
    stopped_by("GET / HTTP/1.1\r\nhost: t\r\n\r\n", |guest| Ok(Payload::Stream(Box::pin(Running(guest)))));
}

#[test]
fn a_slow_head_does_not_wait_for_the_body_timeout() {
    let net = Net { header_timeout: quick().header_timeout, ..Net::default() };
    let server = start(&net, describe);
    server.client().send("GET / HT").response().check_problem(408, "client-timeout");
}

#[test]
fn a_response_of_the_wrong_length_for_its_status_has_no_body() {
    let server = start(&Net::default(), |_| async {
        let body = Payload::Stream(Box::pin(Frames(vec!["x"], None)));
        Ok(Response::builder().status(204).header("content-length", "1").body(body).unwrap())
    });
    let mut client = server.client();
    for _ in 0..2 {
        let response: Raw = client.send("GET / HTTP/1.1\r\nhost: t\r\n\r\n").response();
        assert_eq!((response.status, response.header("content-length")), (204, None));
    }
}
