//! Both ports against clients that misbehave, over real sockets.

use std::convert::Infallible;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full};

use super::body::IncomingBody;
use super::testing::{Client, Server, quick};
use crate::config::{Bytes as Size, Net, Time};
use crate::invocation::BodyError;

mod draining;
mod heads;
mod places;

const GET: &str = "GET /x HTTP/1.1\r\nhost: t\r\n\r\n";
const LAST: &str = "GET /x HTTP/1.1\r\nhost: t\r\nconnection: close\r\n\r\n";

/// Answers with the method, the path and the length of the body, or how the body broke.
async fn echo(request: Request<IncomingBody>) -> Response<Full<Bytes>> {
    let (head, mut body) = request.into_parts();
    let mut len = 0;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => len += frame.data_ref().map_or(0, Bytes::len),
            Err(error) => return Response::new(Full::from(error.to_string())),
        }
    }
    Response::new(Full::from(format!("{} {} {len}", head.method, head.uri)))
}

/// Nothing but the timeouts that a test is about is short.
fn slow() -> Net {
    let long = Time(Duration::from_secs(600));
    Net {
        header_timeout: long,
        keepalive_timeout: long,
        body_idle_timeout: long,
        body_rate_grace: long,
        write_idle_timeout: long,
        drain_timeout: long,
        ..Net::default()
    }
}

#[test]
fn requests_on_one_connection() {
    let server = Server::start(&slow(), echo);
    let mut client = server.client();
    for _ in 0..3 {
        let response = client.send(GET).response();
        assert_eq!((response.status, response.text()), (200, "GET /x 0"));
    }
    client.send("POST /y HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(client.response().text(), "POST /y 3");
    assert_eq!(client.send(LAST).response().text(), "GET /x 0");
    assert!(client.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(&slow(), echo);
    let mut client = server.client();
    let all: String = (0..100).map(|i| format!("GET /{i} HTTP/1.1\r\nhost: t\r\n\r\n")).collect();
    client.send(all);
    for i in 0..100 {
        assert_eq!(client.response().text(), format!("GET /{i} 0"));
    }
}

#[test]
fn a_response_does_not_wait_for_the_rest_of_the_next_head() {
    let server = Server::start(&slow(), echo);
    let mut client = server.client();
    assert_eq!(client.send(format!("{GET}GET /later HTTP/1.1\r\nho")).response().text(), "GET /x 0");
    assert_eq!(client.send("st: t\r\n\r\n").response().text(), "GET /later 0");
}

#[test]
fn a_silent_connection_is_closed() {
    let server = Server::start(&Net { header_timeout: quick().header_timeout, ..slow() }, echo);
    assert!(server.client().is_closed());
}

#[test]
fn an_idle_connection_is_closed() {
    let server = Server::start(&Net { keepalive_timeout: quick().keepalive_timeout, ..slow() }, echo);
    let mut client = server.client();
    assert_eq!(client.send(GET).response().status, 200);
    assert!(client.is_closed());
}

#[test]
fn half_a_head_gets_408() {
    let server = Server::start(&Net { header_timeout: quick().header_timeout, ..slow() }, echo);
    for head in ["G", "GET /x HTTP/1.1\r\n", "GET /x HTTP/1.1\r\nhost: t\r\n"] {
        let mut client = server.client();
        client.send(head).response().check_problem(408, "client-timeout");
        assert!(client.is_closed());
    }
    // And on a connection that was good before.
    let mut client = server.client();
    assert_eq!(client.send(GET).response().status, 200);
    client.send("GET /").response().check_problem(408, "client-timeout");
    assert!(client.is_closed());
}

#[test]
fn a_head_has_its_own_time_on_an_idle_connection() {
    let server = Server::start(&Net { header_timeout: quick().header_timeout, ..slow() }, echo);
    let mut client = server.client();
    assert_eq!(client.send(GET).response().status, 200);
    // Silent for longer than a head may take, which is nothing while there is none.
    client.0.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
    assert!(client.0.read(&mut [0]).is_err(), "it is open");
    client.0.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    client.send("GET /").response().check_problem(408, "client-timeout");
}

#[test]
fn a_connection_has_a_number_of_requests() {
    let server = Server::start(&Net { requests_max: 3, ..slow() }, echo);
    let mut client = server.client();
    client.send(GET.repeat(4));
    for close in [None, None, Some("close")] {
        let response = client.response();
        assert_eq!((response.status, response.header("connection")), (200, close));
    }
    assert!(client.is_closed());
    let server = Server::start(&Net { requests_max: 0, ..slow() }, echo);
    let mut client = server.client();
    for _ in 0..10 {
        assert_eq!(client.send(GET).response().header("connection"), None);
    }
}

#[test]
fn the_last_answers_come_however_many_requests_are_behind() {
    let server = Server::start(&Net { requests_max: 400, ..slow() }, echo);
    let mut client = server.client();
    let target = "x".repeat(1000);
    // More answers than a client's system takes before anybody reads, and fewer than the server's does.
    client.send_some(format!("GET /{target} HTTP/1.1\r\nhost: t\r\n\r\n").repeat(800));
    for _ in 0..400 {
        assert!(client.response().text().ends_with(&format!("{target} 0")));
    }
    assert!(client.is_closed());
}

#[test]
fn a_body_that_drips_is_given_up() {
    let grace = Time(Duration::from_millis(500));
    let server = Server::start(&Net { body_rate_grace: grace, ..slow() }, echo);
    let mut client = server.client();
    client.send("POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 10000000\r\n\r\n");
    client.0.set_nonblocking(true).unwrap();
    while client.0.peek(&mut [0]).is_err() {
        client.send_some("x");
        std::thread::park_timeout(Duration::from_millis(20));
    }
    client.0.set_nonblocking(false).unwrap();
    assert_eq!(client.response().text(), BodyError::Idle.to_string());
    // As much in the same time and more, at once: nobody waits for it. And a rate of 0 asks for nothing.
    let free = Server::start(&Net { body_rate_grace: grace, body_rate_min: Size(0), ..slow() }, echo);
    for (server, piece) in [(&server, 1 << 16), (&free, 1)] {
        let mut client = server.client();
        client.send(format!("POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: {}\r\n\r\n", 40 * piece));
        for _ in 0..40 {
            client.send(vec![b'x'; piece]);
            std::thread::park_timeout(Duration::from_millis(20));
        }
        assert_eq!(client.response().text(), format!("POST /x {}", 40 * piece));
    }
}

#[test]
fn an_address_has_a_number_of_connections() {
    let server = Server::start(&Net { connections_per_address: Some(1), ..slow() }, echo);
    let mut first = server.client();
    assert_eq!(first.send(GET).response().status, 200);
    let response = server.client().response();
    response.check_problem(503, "overloaded");
    assert!(response.text().contains("of your address"), "{response:?}");
    // Another address has its own.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into()).unwrap();
    socket.connect(&server.addr.into()).unwrap();
    assert_eq!(Client(socket.into()).send(GET).response().status, 200);
    assert_eq!(first.send(GET).response().status, 200);
}

#[test]
fn a_dripping_head_gets_408() {
    let server = Server::start(&Net { header_timeout: quick().header_timeout, ..slow() }, echo);
    let mut client = server.client();
    client.send("GET /x HTTP/1.1\r\n");
    client.0.set_nonblocking(true).unwrap();
    let mut byte = [0];
    while client.0.peek(&mut byte).is_err() {
        client.send_some("a: b\r\n");
        std::thread::yield_now();
        if client.0.peek(&mut byte).is_err() {
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
    client.0.set_nonblocking(false).unwrap();
    client.response().check_problem(408, "client-timeout");
}

#[test]
fn a_client_that_ends_within_the_head_is_told() {
    let server = Server::start(&slow(), echo);
    let mut client = server.client();
    client.send("GET /x HTTP/1.1\r\nhos").end().response().check_problem(400, "bad-request");
    assert!(client.is_closed());
}

#[test]
fn half_a_body_is_an_error_of_the_body() {
    let server = Server::start(&Net { body_idle_timeout: quick().body_idle_timeout, ..slow() }, echo);
    let head = "POST /x HTTP/1.1\r\nhost: t\r\ncontent-length: 10\r\n\r\nhalf";
    assert_eq!(server.client().send(head).response().text(), BodyError::Idle.to_string());
    assert_eq!(server.client().send(head).end().response().text(), BodyError::Disconnected.to_string());
    let chunked = "POST /x HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n";
    assert_eq!(server.client().send(chunked).response().text(), BodyError::Disconnected.to_string());
}

/// Bytes without end.
struct Endless;

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 1 << 16])))))
    }
}

#[test]
fn a_client_that_takes_nothing_is_cut() {
    let (body_dropped, dropped) = sync_channel(1);
    let net = Net { write_idle_timeout: quick().write_idle_timeout, ..slow() };
    let server = Server::start(&net, move |_| {
        let guard = OnDrop(body_dropped.clone());
        async move { Response::new(Guarded(Endless, guard)) }
    });
    let mut client = server.client();
    client.send(GET);
    // What the guest would see: its body is dropped although the client is still there.
    dropped.recv().unwrap();
    let taken = read_until_cut(&mut client);
    assert!(taken > 1 << 16, "{taken}");
}

/// How many bytes come before the connection ends, by a close or a reset.
fn read_until_cut(client: &mut Client) -> usize {
    let mut scratch = vec![0; 1 << 16];
    std::iter::from_fn(|| client.0.read(&mut scratch).ok().filter(|len| *len > 0)).sum()
}

struct OnDrop(SyncSender<()>);
impl Drop for OnDrop {
    fn drop(&mut self) {
        let _nobody_waits = self.0.try_send(());
    }
}

/// A body that tells when it is dropped.
struct Guarded<B>(B, #[expect(dead_code, reason = "held for its drop")] OnDrop);
impl<B: Body + Unpin> Body for Guarded<B> {
    type Data = B::Data;
    type Error = B::Error;
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

#[test]
fn an_upload_that_nobody_reads_still_gets_its_answer() {
    let server = Server::start(&slow(), |_| async { Response::builder().status(413).body(Full::from("no")).unwrap() });
    let mut client = server.client();
    client.send("POST / HTTP/1.1\r\nhost: t\r\ncontent-length: 1073741824\r\n\r\n").send_some(vec![0; 4 << 20]);
    let response = client.response();
    assert_eq!((response.status, response.text(), response.header("connection")), (413, "no", Some("close")));
    assert!(client.is_closed());
}

#[test]
fn a_connection_too_many_gets_503() {
    let server = Server::start(&Net { connections_max: 1, ..slow() }, echo);
    let mut first = server.client();
    assert_eq!(first.send(GET).response().status, 200);
    for _ in 0..3 {
        let response = server.client().response();
        response.check_problem(503, "overloaded");
        assert_eq!((response.header("retry-after"), response.header("hob-executed")), (Some("1"), Some("0")));
    }
    assert_eq!(first.send(GET).response().status, 200);
    drop(first);
    // The place is free as soon as the server noticed.
    while server.client().send(LAST).response().status != 200 {}
}

#[test]
fn many_connections_too_many_pile_up_nothing() {
    let server = Server::start(&Net { connections_max: 1, ..slow() }, echo);
    let mut first = server.client();
    assert_eq!(first.send(GET).response().status, 200);
    let refused: Vec<_> = (0..300).map(|_| server.client()).collect();
    for mut client in refused {
        client.response().check_problem(503, "overloaded");
    }
    assert_eq!(first.send(GET).response().status, 200);
}

#[test]
fn a_panic_is_a_500_and_costs_nothing_else() {
    let server = Server::start(&slow(), |request: Request<IncomingBody>| async move {
        assert_ne!(request.uri().path(), "/panic", "planted");
        echo(request).await
    });
    let mut client = server.client();
    let response = client.send("GET /panic HTTP/1.1\r\nhost: t\r\n\r\n").response();
    response.check_problem(500, "internal");
    assert!(!response.text().contains("planted"));
    assert_eq!(client.send(GET).response().status, 200);
}

#[test]
fn a_panic_before_the_first_await_is_a_500_too() {
    let server = Server::start(&slow(), |request: Request<IncomingBody>| {
        assert_ne!(request.uri().path(), "/panic", "planted");
        echo(request)
    });
    server.client().send("GET /panic HTTP/1.1\r\nhost: t\r\n\r\n").response().check_problem(500, "internal");
    assert_eq!(server.client().send(GET).response().status, 200);
}

struct PanicBody;
impl Body for PanicBody {
    type Data = Bytes;
    type Error = Infallible;
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        panic!("planted");
    }
}

#[test]
fn a_panic_in_a_body_costs_its_connection_alone() {
    let server = Server::start(&slow(), |_| async { Response::new(PanicBody) });
    let mut neighbour = server.client();
    for _ in 0..2 {
        let mut client = server.client();
        client.send(GET);
        assert!(client.is_closed());
    }
    neighbour.send(GET);
    assert!(neighbour.is_closed());
    assert_eq!(server.join(), 0);
}

/// Frames, then the connection is cut.
struct Cut(Vec<&'static str>);
impl Body for Cut {
    type Data = Bytes;
    type Error = BodyError;
    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(Some(match self.0.pop() {
            Some(text) => Ok(Frame::data(text.into())),
            None => Err(BodyError::Cut(crate::fault::Code::GuestTrap)),
        }))
    }
}

#[test]
fn a_cut_response_keeps_its_beginning_and_has_no_end() {
    let server = Server::start(&slow(), |_| async { Response::new(Cut(vec!["there", "hello "])) });
    let mut client = server.client();
    let response = client.send(GET).head();
    assert_eq!((response.status, response.header("transfer-encoding")), (200, Some("chunked")));
    assert_eq!(client.rest(), b"6\r\nhello \r\n5\r\nthere\r\n");
}

#[test]
fn a_cut_before_the_first_byte_of_the_body_keeps_the_head() {
    let server = Server::start(&slow(), |_| async { Response::new(Cut(vec![])) });
    let mut client = server.client();
    assert_eq!(client.send(GET).head().status, 200);
    assert_eq!(client.rest(), b"");
}

#[test]
fn a_cut_response_of_http_1_0_is_reset() {
    let server = Server::start(&slow(), |_| async { Response::new(Cut(vec!["x"])) });
    let mut client = server.client();
    client.send("GET / HTTP/1.0\r\n\r\n");
    let error = client.0.read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// Runs this test again in a process that may open only a few files, so that no other test is disturbed.
#[test]
fn accepting_survives_running_out_of_descriptors() {
    use rustix::process::{Resource, getrlimit};
    const FILES: u64 = 40;
    const NAME: &str = "net::tests::accepting_survives_running_out_of_descriptors";
    if getrlimit(Resource::Nofile).current != Some(FILES) {
        let limited = format!("ulimit -n {FILES}; exec \"$0\" \"$@\"");
        let output = std::process::Command::new("sh")
            .args(["-c", &limited])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let server = Server::start(&slow(), echo);
    let mut first = server.client();
    assert_eq!(first.send(GET).response().status, 200);
    let mut files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    // One for the client's end; there is none left for the server's.
    files.pop();
    let mut client = server.client();
    client.send(LAST);
    // Those that are served already do not suffer.
    assert_eq!(first.send(GET).response().status, 200);
    drop(files);
    assert_eq!(client.response().status, 200);
}
