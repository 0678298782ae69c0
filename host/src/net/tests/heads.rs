//! Heads: on both sides of their limits, malformed, and unusual but good.

use super::{GET, echo, slow};
use crate::config::{Bytes as Size, Net};
use crate::net::testing::Server;

#[test]
fn heads_on_both_sides_of_their_limits() {
    let net = Net { headers_max: 8, head_bytes_max: Size(16 << 10), uri_bytes_max: Size(100), ..slow() };
    let server = Server::start(&net, echo);
    let head = |uri: &str, headers: usize, len: usize| {
        let headers: String = (0..headers).map(|i| format!("h{i}: {}\r\n", "v".repeat(len))).collect();
        let mut client = server.client();
        client.send_some(format!("GET {uri} HTTP/1.1\r\nhost: t\r\n{headers}\r\n"));
        let response = client.response();
        assert_eq!(response.status == 200, response.header("connection") != Some("close"), "{response:?}");
        response
    };
    let uri = |len: usize| format!("/{}", "u".repeat(len - 1));
    assert_eq!(head(&uri(100), 7, 10).status, 200);
    assert_eq!(head("/", 1, 16_000).status, 200);
    head(&uri(101), 0, 0).check_problem(414, "uri-too-long");
    head(&uri(10_000), 0, 0).check_problem(414, "uri-too-long");
    head(&uri(100_000), 0, 0).check_problem(414, "uri-too-long");
    for (headers, len) in [(8, 10), (99, 10), (10_000, 10), (1, 17_000), (1, 1 << 20), (7, 5000)] {
        head("/", headers, len).check_problem(431, "headers-too-large");
    }
}

#[test]
fn more_headers_than_hyper_takes_by_itself() {
    let server = Server::start(&Net { headers_max: 200, ..slow() }, echo);
    for (headers, status) in [(199, 200), (200, 431)] {
        let headers: String = (0..headers).map(|i| format!("h{i}: v\r\n")).collect();
        assert_eq!(server.client().send(format!("GET / HTTP/1.1\r\nhost: t\r\n{headers}\r\n")).response().status, status);
    }
}

#[test]
fn malformed_heads_get_400_and_a_close() {
    let server = Server::start(&slow(), echo);
    for head in [
        "nonsense\r\n\r\n",
        "GET /x HTTP/1.1\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a b/c\r\n\r\n",
        "GET /x HTTP/1.0\r\nhost: a@b\r\n\r\n",
        "GET http://a@b/x HTTP/1.1\r\nhost: a@b\r\n\r\n",
        "GET http://a@b/x HTTP/1.0\r\n\r\n",
        "GET http://:80/x HTTP/1.1\r\nhost: :80\r\n\r\n",
        "GET http://a/x HTTP/1.1\r\nhost:\r\n\r\n",
        "GET http://a/x HTTP/1.1\r\nhost: b\r\n\r\n",
        "GET * HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET a HTTP/1.1\r\nhost: a\r\n\r\n",
        "GET ftp://a/x HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n",
        "GET /x HTTP/3.0\r\nhost: a\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET /x HTTP/1.1\r\nhost: a\r\n folded: b\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /x HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\n\n",
    ] {
        let mut client = server.client();
        let response = client.send(head).response();
        response.check_problem(400, "bad-request");
        assert_eq!(response.header("connection"), Some("close"), "{head:?}");
        assert!(client.is_closed(), "{head:?}");
    }
}

#[test]
fn unusual_heads_that_are_good() {
    let server = Server::start(&slow(), echo);
    for (head, text) in [
        ("\r\nGET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "GET /x 0"),
        ("GET /x HTTP/1.0\r\n\r\n", "GET /x 0"),
        ("GET /x HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n", "GET /x 0"),
        ("GET /x HTTP/1.1\r\nhost: [::1]:3000\r\nconnection: close\r\n\r\n", "GET /x 0"),
        ("GET http://[::1]:80/x HTTP/1.0\r\n\r\n", "GET http://[::1]:80/x 0"),
        ("GET http://a/x HTTP/1.1\r\nhost: A\r\nconnection: close\r\n\r\n", "GET http://a/x 0"),
        ("GET /x HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade, close\r\n\r\n", "GET /x 0"),
        // Both: the length is ignored and nothing after the request is believed (RFC 9112, 6.3).
        (
            "POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
            "POST /x 1",
        ),
    ] {
        let mut client = server.client();
        assert_eq!(client.send(head).response().text(), text);
        assert!(client.is_closed(), "{head:?}");
    }
}

#[test]
fn a_broken_head_after_a_good_request() {
    let server = Server::start(&slow(), echo);
    let mut client = server.client();
    client.send(format!("{GET}nonsense\r\n\r\n"));
    assert_eq!(client.response().text(), "GET /x 0");
    client.response().check_problem(400, "bad-request");
    assert!(client.is_closed());
}
