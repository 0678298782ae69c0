//! Stopping: what finishes, what closes, what is cut; and clients that leave by themselves.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use http::Response;
use http_body_util::Full;

use super::{GET, OnDrop, echo, slow};
use crate::config::Net;
use crate::net::drain::Drain;
use crate::net::listener::bind;
use crate::net::serve::{Options, serve};
use crate::net::testing::{Client, Server, quick};

/// A service whose requests wait until they are let go, and that tells when one begins and when one is dropped.
struct Gate {
    server: Server,
    begun: Receiver<()>,
    open: tokio::sync::watch::Sender<bool>,
    dropped: Receiver<()>,
}

fn gate(net: &Net) -> Gate {
    let (begin, begun) = sync_channel(100);
    let (drop_tx, dropped) = sync_channel(100);
    let (open, gate) = tokio::sync::watch::channel(false);
    let server = Server::start(net, move |_| {
        let (begin, mut gate, guard) = (begin.clone(), gate.clone(), OnDrop(drop_tx.clone()));
        async move {
            begin.send(()).unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            drop(guard);
            Response::new(Full::from("done"))
        }
    });
    Gate { server, begun, open, dropped }
}

#[test]
fn draining_finishes_what_is_in_hand_and_closes_what_is_idle() {
    let gate = gate(&slow());
    let mut idle = gate.server.client();
    let mut busy = gate.server.client();
    busy.send(GET);
    gate.begun.recv().unwrap();
    gate.server.stop();
    assert!(idle.is_closed());
    // The listener is closed by now: it goes before the connections do.
    while std::net::TcpStream::connect(gate.server.addr).is_ok() {}
    gate.open.send(true).unwrap();
    let response = busy.response();
    assert_eq!((response.text(), response.header("connection")), ("done", Some("close")));
    assert!(busy.is_closed());
    assert_eq!(gate.server.join(), 0);
}

#[test]
fn draining_closes_connections_between_two_requests() {
    let server = Server::start(&slow(), echo);
    let mut client = server.client();
    assert_eq!(client.send(GET).response().status, 200);
    server.stop();
    assert!(client.is_closed());
    assert_eq!(server.join(), 0);
}

/// Lets clients send this to a server that is told to stop before it accepts the first of them. `first_request`: as in [`Options`].
fn in_the_backlog(sent: &str, first_request: Duration, check: impl Fn(Client)) {
    let (addr, mut listeners) = bind(SocketAddr::from(([127, 0, 0, 1], 0)), 1).unwrap();
    let mut clients: Vec<_> = (0..20).map(|_| Client::connect(addr)).collect();
    for client in &mut clients {
        client.send(sent);
    }
    let (drain, stop) = Drain::new();
    drain.stop();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let options = Options { first_request, ..Options::new(&slow(), 100, None) };
        runtime.block_on(serve(listeners.remove(0), options, echo, stop)).unwrap()
    });
    clients.into_iter().for_each(check);
    assert_eq!(server.join().unwrap(), 0);
}

#[test]
fn draining_serves_the_backlog() {
    in_the_backlog(GET, Duration::ZERO, |mut client| assert_eq!(client.response().text(), "GET /x 0"));
}

#[test]
fn draining_serves_the_first_request_of_a_connection_that_just_began() {
    // Each sends only when the one before it has its answer: those that wait meanwhile are not closed.
    in_the_backlog("", slow().header_timeout.0, |mut client| {
        let response = client.send(GET).response();
        assert_eq!((response.text(), response.header("connection")), ("GET /x 0", Some("close")));
        assert!(client.is_closed());
    });
}

#[test]
fn draining_answers_a_head_that_has_begun() {
    in_the_backlog("GET /x HTTP/1.1\r\nho", Duration::ZERO, |mut client| {
        let response = client.response();
        response.check_problem(503, "draining");
        assert_eq!((response.header("hob-executed"), response.header("connection")), (Some("0"), Some("close")));
    });
}

#[test]
fn draining_cuts_what_does_not_finish() {
    let gate = gate(&Net { drain_timeout: quick().drain_timeout, ..slow() });
    let mut clients: Vec<_> = (0..3).map(|_| gate.server.client()).collect();
    for client in &mut clients {
        client.send(GET);
        gate.begun.recv().unwrap();
    }
    assert_eq!(gate.server.join(), 3);
    for client in &mut clients {
        assert!(client.is_closed());
        gate.dropped.recv().unwrap();
    }
}

#[test]
fn a_client_that_leaves_stops_its_request() {
    let gate = gate(&slow());
    let mut client = gate.server.client();
    client.send(GET);
    gate.begun.recv().unwrap();
    drop(client);
    gate.dropped.recv().unwrap();
}
