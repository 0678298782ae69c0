//! Both sides of what bounds outbound requests: places of the node, sockets, times to connect, bytes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

use super::{PATIENT, ask, deploy, one, relay};
use crate::harness::upstream::Upstream;
use crate::harness::{Node, eventually};

fn allow(upstreams: &[Upstream]) -> String {
    let addrs: Vec<_> = upstreams.iter().map(|upstream| upstream.addr.to_string()).collect();
    format!("egress.allow={addrs:?}")
}

fn urls(upstreams: &[Upstream]) -> Vec<String> {
    upstreams.iter().map(|upstream| format!("http://{}", upstream.addr)).collect()
}

#[test]
fn the_node_has_so_many_places_and_no_more() {
    let upstream = Upstream::start();
    // Room for each tenant and each invocation, so that only the node's own bound is met.
    let node = Node::start(&[&upstream.opened(), "egress.requests_max=5", "egress.tenant_requests_max=100"]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    let wait = format!("GET {url}/wait");
    std::thread::scope(|scope| {
        let ask = || scope.spawn(|| one(&node, &wait));
        let first: Vec<_> = (0..5).map(|_| ask()).collect();
        eventually("as many as there are places are sent", || upstream.requests() == 5);
        let more: Vec<_> = (0..3).map(|_| ask()).collect();
        eventually("the others run", || node.occupancy("fetch1").0 == 8);
        // What is sent is counted before it leaves.
        assert_eq!((upstream.requests(), upstream.taken()), (5, 5));
        upstream.release();
        for answer in first.into_iter().chain(more) {
            assert_eq!(answer.join().unwrap(), "200 5 hello");
        }
    });
    assert_eq!(upstream.requests(), 8);
}

#[test]
fn who_may_have_a_request_has_a_socket_whatever_is_kept() {
    half_is_kept(["egress.tenant_requests_max=2", "egress.requests_max=100"]);
    half_is_kept(["egress.tenant_requests_max=100", "egress.requests_max=2"]);
}

/// Of a tenant, or a node, that may have two requests at once.
fn half_is_kept([one_bound, other]: [&str; 2]) {
    let upstreams: [_; 6] = std::array::from_fn(|_| Upstream::start());
    let urls = urls(&upstreams);
    let node = Node::start(&[&allow(&upstreams), one_bound, other]);
    deploy(&node, "fetch1", &urls, PATIENT);
    let node = &node;
    let both_at_once = |servers: [usize; 2]| {
        std::thread::scope(|scope| {
            let waiting = servers.map(|server| {
                let ask = format!("GET {}/wait", urls[server]);
                (server, scope.spawn(move || one(node, &ask)))
            });
            eventually("both are sent", || servers.iter().all(|server| upstreams[*server].requests() == 1));
            for (server, answer) in waiting {
                upstreams[server].release();
                assert_eq!(answer.join().unwrap(), "200 5 hello");
            }
        });
    };
    // As many as may be requests are kept, and none of those that come while they are there.
    both_at_once([0, 1]);
    for servers in [[2, 3], [4, 5]] {
        both_at_once(servers);
        eventually("they are closed", || servers.iter().all(|server| upstreams[*server].open() == 0));
    }
    for kept in 0..2 {
        assert_eq!(one(node, &format!("GET {}/", urls[kept])), "200 5 hello");
        assert_eq!((upstreams[kept].open(), upstreams[kept].taken()), (1, 1));
    }
}

#[test]
fn sixteen_connections_to_a_server_are_kept() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    let wait = format!("GET {url}/wait");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..20).map(|_| scope.spawn(|| one(&node, &wait))).collect();
        eventually("all are sent", || upstream.requests() == 20);
        assert_eq!(upstream.open(), 20);
        upstream.release();
        for answer in waiting {
            assert_eq!(answer.join().unwrap(), "200 5 hello");
        }
    });
    eventually("the others are closed", || upstream.open() == 16);
}

/// A listener that takes no further connection: its queue is full, and nobody empties it. With the connections that fill it.
fn deaf() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&fd, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    listen(&fd, 0).unwrap();
    let addr: SocketAddr = getsockname(&fd).unwrap().try_into().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, Duration::from_millis(500)) {
        queue.push(stream);
        assert!(queue.len() < 100, "the queue has no end");
    }
    (fd.into(), addr, queue)
}

/// Whether somebody tries to connect to this port and has got no answer.
fn is_tried(port: u16) -> bool {
    const SYN_SENT: &str = "02";
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        matches!(words[..], [_, _, to, SYN_SENT, ..] if to.ends_with(&format!(":{port:04X}")))
    })
}

#[test]
fn an_address_that_never_answers_takes_the_time_to_connect() {
    let upstream = Upstream::start();
    let (listener, addr, queue) = deaf();
    let allow = format!("egress.allow=[\"{addr}\"]");
    let url = format!("http://{addr}");
    let start = |timeout: &str| {
        let node = Node::start(&[&allow, &format!("egress.connect_timeout={timeout}")]);
        deploy(&node, "fetch1", &[&url], PATIENT);
        node
    };
    let node = start("300ms");
    let answer = one(&node, &format!("GET {url}/"));
    assert!(answer.starts_with("error timeout") && answer.contains("too long to connect"), "{answer}");
    eventually("it is given up", || !is_tried(addr.port()));
    // Who has more time is there when somebody answers after all.
    let node = start("1h");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| one(&node, &format!("GET {url}/")));
        eventually("it is tried", || is_tried(addr.port()));
        drop(queue);
        relay(listener, upstream.addr);
        assert_eq!(waiting.join().unwrap(), "200 5 hello");
    });
}

#[test]
fn a_response_has_so_many_bytes_and_no_more() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened(), "egress.response_bytes_max=1000"]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    let script: String =
        ["bytes/1000", "chunks/1000", "bytes/1001", "chunks/1001"].map(|path| format!("GET {url}/{path}\n")).concat();
    let answers = ask(&node, &script);
    for (answer, beginning) in answers.iter().zip(["200 1000 ", "200 1000 ", "error too-large", "error too-large"]) {
        assert!(answer.starts_with(beginning), "{answers:?}");
    }
}

#[test]
fn the_head_of_a_response_has_so_many_bytes_and_no_more() {
    const BYTES_MAX: usize = 32 << 10;
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    let cases =
        [(BYTES_MAX, "200 0"), (BYTES_MAX + 1, "error too-large"), (40_000, "error too-large"), (70_000, "error too-large")];
    let script: String = cases.iter().map(|(bytes, _)| format!("GET {url}/head/{bytes}\n")).collect();
    let answers = ask(&node, &script);
    for ((bytes, expected), answer) in cases.iter().zip(&answers) {
        assert!(answer.starts_with(expected), "{bytes}: {answer}");
    }
}
