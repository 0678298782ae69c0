//! Connections that nobody serves are counted, each for its reason.

use std::io::Read as _;
use std::net::Ipv4Addr;

use crate::harness::{Node, eventually};
use crate::shortage::{give_back, short_of_descriptors, take_all_descriptors};
use crate::tls::Pair;

fn counter(port: &str, why: &str) -> String {
    format!("hob_connections_refused_total{{port=\"{port}\",why=\"{why}\"}}")
}

const WHYS: [&str; 5] = ["port", "address", "system", "handshake", "handshake-timeout"];

/// All counters of the data port.
fn counts(node: &Node) -> [u64; 5] {
    WHYS.map(|why| node.metric(&counter("data", why)))
}

#[test]
fn too_many_of_a_port_and_of_an_address() {
    let node = Node::start(&["net.connections_max=4", "net.connections_per_address=3", "engine.threads=1"]);
    assert_eq!(counts(&node), [0; 5]);
    let served = |last: u8| {
        let mut conn = node.data.connect_from(Ipv4Addr::new(127, 0, 0, last));
        conn.request("GET", "/nobody", &[], b"");
        conn.reply().problem(404, "not-found");
        conn
    };
    let refused = |last: u8| {
        let mut conn = node.data.connect_from(Ipv4Addr::new(127, 0, 0, last));
        conn.request("GET", "/nobody", &[], b"");
        conn.reply().problem(503, "overloaded");
    };
    let mut held: Vec<_> = (0..3).map(|_| served(2)).collect();
    assert_eq!(counts(&node), [0; 5], "as many as one may have");
    refused(2);
    assert_eq!(counts(&node), [0, 1, 0, 0, 0]);
    held.push(served(3));
    assert_eq!(counts(&node), [0, 1, 0, 0, 0], "as many as the port takes");
    for _ in 0..2 {
        refused(4);
    }
    assert_eq!(counts(&node), [2, 1, 0, 0, 0]);
    assert!(WHYS.iter().all(|why| node.metric(&counter("control", why)) == 0), "of the other port");
}

#[test]
fn too_many_of_the_control_port() {
    let node = Node::start(&["net.control_connections_max=3"]);
    let held: Vec<_> = (0..3)
        .map(|_| {
            let mut conn = node.control.connect();
            conn.request("GET", "/livez", &[], b"");
            assert_eq!(conn.reply().status(), 200);
            conn
        })
        .collect();
    let mut conn = node.control.connect();
    conn.request("GET", "/livez", &[], b"");
    conn.reply().problem(503, "overloaded");
    drop((held, conn));
    eventually("there is room again", || node.control.get("/livez").status() == 200);
    eventually("and for whoever asks", || {
        let reply = node.control.get("/metrics");
        reply.status() == 200 && {
            // Those who asked too early are among them.
            let text = reply.text();
            let line = text.lines().find_map(|line| line.strip_prefix(&counter("control", "port"))).unwrap();
            line.trim().parse::<u64>().unwrap() >= 1
        }
    });
    assert_eq!(counts(&node), [0; 5]);
}

#[test]
fn no_descriptor_for_it() {
    let node = short_of_descriptors(200, 0, &[]);
    assert_eq!(counts(&node), [0; 5]);
    let conns = take_all_descriptors(&node);
    let mut waits = node.data.connect();
    eventually("it is told", || node.stderr().contains("cannot accept connections"));
    give_back(&node, conns);
    // It waited, and is served now.
    waits.request("GET", "/nobody", &[], b"");
    waits.reply().problem(404, "not-found");
    let [port, address, system, ..] = counts(&node);
    assert!(system >= 1 && port + address == 0, "{system}");
}

#[test]
fn handshakes_that_fail_or_do_not_end() {
    let pair = Pair::new();
    let node = pair.start(&["net.handshake_timeout=1s"]);
    let count = |why: &str| {
        let text = pair.get(node.control.addr, "/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(&counter("data", why))).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    assert!(pair.get(node.data.addr, "/nobody").starts_with("HTTP/1.1 404 "));
    assert_eq!(WHYS.map(count), [0; 5], "one that ends well");
    let ended = |bytes: &[u8]| {
        let mut conn = node.data.connect();
        conn.send(bytes);
        let _reset = conn.stream().read_to_end(&mut Vec::new());
    };
    ended(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
    assert_eq!(WHYS.map(count), [0, 0, 0, 1, 0]);
    ended(b"");
    assert_eq!(WHYS.map(count), [0, 0, 0, 1, 1]);
}
