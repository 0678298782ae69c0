//! What a function sees of its request, and what a client sees of its answer.

use std::collections::BTreeMap;

use crate::harness::http::Reply;
use crate::harness::wat::{command, does, handler, handler_with, mirror, says, waits};
use crate::harness::{Node, patiently};

/// A request as a handler saw it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mirrored {
    flags: u32,
    method: String,
    target: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// Decodes a request record; `guest-sdk/abi.md` has the layout.
fn decode(mut record: &[u8]) -> Mirrored {
    fn take<'a>(record: &mut &'a [u8], len: usize) -> &'a [u8] {
        let (head, tail) = record.split_at(len);
        *record = tail;
        head
    }
    let number =
        |record: &mut &[u8], len: usize| take(record, len).iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let text = |record: &mut &[u8], len: usize| String::from_utf8(take(record, len).to_vec()).unwrap();
    let rest = &mut record;
    let (flags, method, count) = (number(rest, 4), number(rest, 2), number(rest, 2));
    let (target, body) = (number(rest, 4), number(rest, 4));
    let mut mirrored = Mirrored {
        flags: u32::try_from(flags).unwrap(),
        method: text(rest, method),
        target: text(rest, target),
        ..Mirrored::default()
    };
    for _ in 0..count {
        let (name, value) = (number(rest, 4), number(rest, 4));
        let (name, value) = (text(rest, name), text(rest, value));
        mirrored.headers.insert(name, value);
    }
    mirrored.body = take(rest, body).to_vec();
    assert!(rest.is_empty(), "{} bytes follow the record", rest.len());
    mirrored
}

#[test]
fn by_name_the_function_sees_the_rest_of_the_path() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &mirror(), "");
    for (target, own) in [
        ("/a/rest?q", "/rest?q"),
        ("/a/", "/"),
        ("/a", "/"),
        ("/a?q=1&r=%20", "/?q=1&r=%20"),
        ("/a//x", "//x"),
        ("/a/%2e%2e/b", "/%2e%2e/b"),
        ("/a/a/a", "/a/a"),
    ] {
        let seen = decode(&node.data.get(target).good());
        assert_eq!((seen.target.as_str(), seen.method.as_str()), (own, "GET"), "{target}");
        assert_eq!(seen.headers["hob-path-prefix"], "/a", "{target}");
    }
    node.data.get("/ab").problem(404, "not-found");
    for (target, own) in [("/invoke", "/"), ("/invoke/x/y?q", "/x/y?q"), ("/invoke?q", "/?q")] {
        let seen = decode(&node.control.request("PATCH", &format!("/v1/functions/a{target}"), &[("x-a", "1")], b"").good());
        assert_eq!((seen.target.as_str(), seen.method.as_str(), seen.headers["x-a"].as_str()), (own, "PATCH", "1"));
    }
}

#[test]
fn by_route_the_path_is_unchanged_and_the_longest_wins() {
    let node = Node::start(&[]);
    node.deploy_wat("shop", &mirror(), "route = '/shop/*'\n");
    let seen = decode(&node.data.get("/shop/a?q").good());
    assert_eq!((seen.target.as_str(), seen.headers.get("hob-path-prefix")), ("/shop/a?q", None));
    node.deploy_wat("cart", &says("cart"), "route = '/shop/cart/*'\n");
    node.deploy_wat("exact", &says("exact"), "route = ['/shop/cart/exact', { path = '/shop/*', method = 'DELETE' }]\n");
    node.deploy_wat("host", &says("host"), "route = { path = '/shop/*', host = 'shop.example.com' }\n");
    for (target, answer) in [
        ("/shop/cart", "cart"),
        ("/shop/cart/x", "cart"),
        ("/shop/cart/exact", "exact"),
        ("/shop/cart/exact/x", "cart"),
        ("/cart", "cart"),
    ] {
        assert_eq!(node.data.get(target).ok().text(), answer, "{target}");
    }
    assert_eq!(node.data.request("DELETE", "/shop/x", &[], b"").ok().text(), "exact");
    let mut conn = node.data.connect();
    conn.send("GET /shop/x HTTP/1.1\r\nhost: SHOP.example.com:80\r\n\r\n");
    assert_eq!(conn.reply().ok().text(), "host");
    // A name is still reached where no route is in front of it, and the root only by route.
    assert_eq!(decode(&node.data.get("/shop/shop").good()).target, "/shop/shop");
    node.data.get("/").problem(404, "not-found");
    node.deploy_wat("all", &says("all"), "route = '/*'\n");
    assert_eq!(node.data.get("/").ok().text(), "all");
    assert_eq!(node.data.get("/cart").ok().text(), "all");
}

#[test]
fn headers_that_do_not_cross() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &mirror(), "");
    let headers = [
        ("x-a", "1"),
        ("hob-path-prefix", "/evil"),
        ("hob-tenant", "evil"),
        ("Hob-Executed", "0"),
        ("hob-start", "no-rung"),
        ("connection", "keep-alive, x-private"),
        ("x-private", "1"),
        ("te", "trailers"),
        ("upgrade", "h2c"),
    ];
    let seen = decode(&node.data.request("GET", "/a", &headers, b"").good());
    let names: Vec<_> = seen.headers.keys().map(String::as_str).collect();
    assert_eq!(names, ["hob-path-prefix", "host", "x-a"]);
    assert_eq!(seen.headers["hob-path-prefix"], "/a");

    // A guest's own: a response with two headers of Hob's, one of the connection's, and one that may pass.
    let own = [
        ("hob-error", "internal"),
        ("hob-start", "evil"),
        ("transfer-encoding", "gzip"),
        ("content-length", "77"),
        ("x-own", "1"),
    ];
    node.deploy_wat("b", &replies(), "");
    let reply = node.data.post("/b", &record(0, 200, &own, b"body")).ok();
    assert_eq!(
        (reply.header("hob-error"), reply.header("hob-start"), reply.header("x-own")),
        (None, Some("resident"), Some("1"))
    );
    assert_eq!((reply.header("content-length"), reply.text().as_str()), (Some("4"), "body"));
    assert_eq!(reply.header("hob-executed"), Some("1"));
    assert_eq!(reply.header("hob-invocation-id").map(str::len), Some(26));
    assert_eq!(reply.header("server-timing"), None);
}

#[test]
fn phases_are_told_to_those_who_ask() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    let reply = node.data.request("GET", "/a", &[("hob-timing", "1")], b"").ok();
    let timing = reply.header("server-timing").unwrap();
    let names: Vec<_> = timing.split(", ").map(|entry| entry.split_once(";dur=").unwrap()).collect();
    assert_eq!(names.iter().map(|(name, _)| *name).collect::<Vec<_>>(), hob::invocation::Phases::NAMES);
    assert!(names.iter().all(|(_, millis)| millis.parse::<f64>().is_ok()), "{timing}");
    let reply = node.control.request("GET", "/v1/functions/a/invoke", &[("hob-timing", "1")], b"").ok();
    assert!(reply.header("server-timing").is_some());
}

#[test]
fn a_rung_is_asked_for_on_the_control_port_alone() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &mirror(), "");
    let invoke = |headers: &[(&str, &str)]| node.control.request("GET", "/v1/functions/a/invoke", headers, b"");
    for start in hob::invocation::Start::ALL {
        let reply = patiently(|| invoke(&[("hob-start", start.as_str())])).0.ok();
        // A rung that cannot be had is another one, and said.
        assert!(reply.header("hob-start").unwrap().parse::<hob::invocation::Start>().is_ok());
        assert!(!decode(&reply.body).headers.contains_key("hob-start"));
    }
    for bad in [&[("hob-start", "cold")][..], &[("hob-start", "")], &[("hob-start", "ready"), ("hob-start", "ready")]] {
        let problem = invoke(bad).problem(400, "bad-request");
        assert!(problem["detail"].as_str().unwrap().contains("hob-start"), "{problem}");
    }
    // Nobody who reaches the data port can have a function compiled again.
    let reply = node.data.request("GET", "/a", &[("hob-start", "compiled")], b"").ok();
    assert_eq!(reply.header("hob-start"), Some("resident"));
}

#[test]
fn commands_see_their_request_as_variables() {
    let node = Node::start(&[]);
    let shows = |get: &str, sizes: &str| {
        command(&format!(
            "(func (export \"_start\")
               (if (call ${sizes} (i32.const 100000) (i32.const 100004)) (then unreachable))
               (if (call ${get} (i32.const 60000) (i32.const 0)) (then unreachable))
               (call $write (i32.const 1) (i32.const 0) (i32.load (i32.const 100004))))"
        ))
    };
    let split = |reply: Reply| -> Vec<String> { reply.ok().text().split_terminator('\0').map(ToOwned::to_owned).collect() };
    node.deploy_wat(
        "env",
        &shows("environ_get", "environ_sizes_get"),
        "route = '/cgi/*'\n[env]\nMINE = 'yes'\nREQUEST_METHOD = 'mine'\n",
    );
    let headers = [("content-type", "text/x"), ("x-a-b", "1"), ("proxy", "evil"), ("hob-secret", "evil")];
    let env = split(node.data.request("POST", "/env/a/b%20c?q=1", &headers, b"four"));
    for variable in [
        "SCRIPT_NAME=/env",
        "PATH_INFO=/a/b%20c",
        "QUERY_STRING=q=1",
        "CONTENT_LENGTH=4",
        "CONTENT_TYPE=text/x",
        "HTTP_X_A_B=1",
        "MINE=yes",
        "REQUEST_METHOD=mine",
        "GATEWAY_INTERFACE=CGI/1.1",
        "SERVER_PROTOCOL=HTTP/1.1",
        "HTTP_HOB_PATH_PREFIX=/env",
    ] {
        assert!(env.iter().any(|have| have == variable), "{variable} in {env:?}");
    }
    assert!(!env.iter().any(|have| have.contains("evil")), "{env:?}");
    let env = split(node.data.get("/cgi/x"));
    assert!(env.contains(&"SCRIPT_NAME=".into()) && env.contains(&"PATH_INFO=/cgi/x".into()), "{env:?}");
    node.deploy_wat("args", &shows("args_get", "args_sizes_get"), "args = ['one', 'two words', '']\n");
    assert_eq!(split(node.data.get("/args")), ["args", "one", "two words", ""]);
}

#[test]
fn commands_read_their_request_from_standard_input() {
    let node = Node::start(&[]);
    let cat = command(
        "(func (export \"_start\") (local $n i32)
           (loop $more
             (i32.store (i32.const 130000) (i32.const 0))
             (i32.store (i32.const 130004) (i32.const 60000))
             (if (call $fd_read (i32.const 0) (i32.const 130000) (i32.const 1) (i32.const 130008)) (then unreachable))
             (local.set $n (i32.load (i32.const 130008)))
             (if (local.get $n) (then (call $write (i32.const 1) (i32.const 0) (local.get $n)) (br $more)))))",
    );
    node.deploy_wat("cat", &cat, "[limits]\ncpu = \"1m\"\nwall = \"1m\"\n");
    let body: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    for len in [0, 1, 65_536, 65_537, 3_000_000] {
        let reply = node.data.post("/cat", &body[..len]).ok();
        assert!(reply.body == body[..len], "{len} bytes came back as {}", reply.body.len());
    }
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/cat");
    for piece in body[..200_000].chunks(7_777) {
        conn.chunk(piece).unwrap();
    }
    conn.end_chunks();
    assert!(conn.reply().good() == body[..200_000]);
}

/// A handler that takes the request's body to be the response's record.
fn replies() -> String {
    handler_with(
        "(memory (export \"memory\") 2)",
        "(func (export \"hob_handle\") (local $len i32)
           (local.set $len (call $request_read (i32.const 0) (i32.const 131072)))
           ;; The body is the end of the record, and its length is at 12.
           (call $respond (i32.sub (local.get $len) (i32.load (i32.const 12))) (i32.load (i32.const 12))))",
    )
}

/// A response record.
fn record(flags: u32, status: u16, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let len = |len: usize| u32::try_from(len).unwrap().to_le_bytes();
    let mut record = [&flags.to_le_bytes()[..], &status.to_le_bytes(), &len(headers.len())[..2], &len(body.len())].concat();
    for (name, value) in headers {
        record.extend([&len(name.len())[..], &len(value.len()), name.as_bytes(), value.as_bytes()].concat());
    }
    record.extend(body);
    record
}

#[test]
fn responses_of_a_handler() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &replies(), "");
    let reply = node.data.post("/a", &record(0, 200, &[], b"")).ok();
    assert_eq!((reply.header("content-length"), reply.header("content-type")), (Some("0"), None));
    for status in [200, 201, 299, 302, 404, 418, 500, 503, 599] {
        let reply = node.data.post("/a", &record(0, status, &[("x-a", "1"), ("x-a", "2")], b"own"));
        assert_eq!((reply.status(), reply.text().as_str(), reply.whole), (status, "own", true));
        assert_eq!((reply.header("hob-error"), reply.header("hob-executed")), (None, Some("1")));
        assert_eq!(reply.head.headers.iter().filter(|(name, _)| name == "x-a").count(), 2);
    }
    for status in [204, 304] {
        let reply = node.data.post("/a", &record(0, status, &[], b"ignored"));
        assert_eq!((reply.status(), reply.body.len()), (status, 0));
    }
    // `Err` of an SDK's handler: its words go to the log, and not to the client.
    let reply = node.data.post("/a", &record(2, 0, &[], b"a secret reason"));
    assert_eq!((reply.status(), reply.header("hob-error"), reply.header("hob-executed")), (500, None, Some("1")));
    assert!(!reply.text().contains("secret"), "{}", reply.text());
    assert!(node.logs("a").contains(&("log".into(), "error".into(), "a secret reason".into())), "{:?}", node.logs("a"));
}

#[test]
fn malformed_response_records() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &replies(), "");
    let good = record(0, 200, &[("x-a", "1")], b"body");
    let with = |at: usize, bytes: &[u8]| {
        let mut record = good.clone();
        record[at..at + bytes.len()].copy_from_slice(bytes);
        record
    };
    let many: Vec<_> = (0..257).map(|_| ("a", "b")).collect();
    for (record, code) in [
        (Vec::new(), "guest-bad-call"),
        (good[..11].to_vec(), "guest-bad-call"),
        (good[..good.len() - 1].to_vec(), "guest-bad-call"),
        ([&good[..], b"x"].concat(), "guest-bad-call"),
        (with(0, &[3]), "guest-bad-call"),
        (with(0, &[0xff; 4]), "guest-bad-call"),
        (with(6, &[0xff; 2]), "guest-bad-response"),
        (with(6, &[2]), "guest-bad-call"),
        (with(8, &[0xff; 4]), "guest-bad-call"),
        (with(12, &[0xff; 4]), "guest-bad-call"),
        (with(16, &[0xff; 4]), "guest-bad-call"),
        (record(0, 0, &[], b""), "guest-bad-response"),
        (record(0, 100, &[], b""), "guest-bad-response"),
        (record(0, 101, &[], b""), "guest-bad-response"),
        (record(0, 199, &[], b""), "guest-bad-response"),
        (record(0, 600, &[], b""), "guest-bad-response"),
        (record(0, 200, &[("", "a")], b""), "guest-bad-response"),
        (record(0, 200, &[("a b", "c")], b""), "guest-bad-response"),
        (record(0, 200, &[("a:", "c")], b""), "guest-bad-response"),
        (record(0, 200, &[("a", "b\r\nhob-error: x")], b""), "guest-bad-response"),
        (record(0, 200, &[("a", "b\0")], b""), "guest-bad-response"),
        (record(0, 200, &many, b""), "guest-bad-response"),
        (record(0, 200, &[("content-length", "4"), ("content-length", "4")], b"body"), "guest-bad-response"),
        (record(0, 200, &[("content-length", "four")], b"body"), "guest-bad-response"),
        // Of a body that follows the record.
        (record(1, 200, &[("content-length", "-1")], b""), "guest-bad-response"),
    ] {
        let count = || (node.faults(code), node.inspect("a")["usage"]["faults"][code].as_u64().unwrap_or(0));
        let before = count();
        let reply = node.data.post("/a", &record);
        reply.problem(502, code);
        assert_eq!(reply.header("hob-executed"), Some("1"));
        assert_eq!(count(), (before.0 + 1, before.1 + 1), "counted once, for the node and for the function");
        let (source, level, text) = node.logs("a").pop().unwrap();
        assert!((source.as_str(), level.as_str()) == ("host", "error") && text.starts_with(code), "{source} {level} {text}");
    }
    node.data.post("/a", &good).ok();
}

#[test]
fn host_calls_that_break_the_rules() {
    let node = Node::start(&[]);
    for (name, code) in [
        ("none", "(nop)"),
        (
            "twice",
            "(call $answer (i32.const 200) (i32.const 0) (i32.const 0)) (call $answer (i32.const 200) (i32.const 0) (i32.const 0))",
        ),
        ("outside", "(call $respond (i32.const 65530) (i32.const 12))"),
        ("beyond", "(call $respond (i32.const -1) (i32.const 12))"),
        ("endless", "(call $respond (i32.const 0) (i32.const -1))"),
        ("read", "(drop (call $request_read (i32.const 65535) (i32.const 2)))"),
        ("body", "(drop (call $body_read (i32.const 65535) (i32.const 2)))"),
        ("log", "(call $log (i32.const 0) (i32.const -1) (i32.const -1))"),
        ("write", "(drop (call $body_write (i32.const 0) (i32.const 1)))"),
        (
            "after",
            "(call $answer (i32.const 200) (i32.const 0) (i32.const 0)) (drop (call $body_write (i32.const 0) (i32.const 1)))",
        ),
    ] {
        node.deploy_wat(name, &does(code), "");
        let reply = node.data.get(&format!("/{name}"));
        let expected = if name == "none" { "guest-no-response" } else { "guest-bad-call" };
        reply.problem(502, expected);
        assert_eq!(reply.header("hob-executed"), Some("1"), "{name}");
    }
    // Before the function is called there is no request.
    node.deploy_wat(
        "early",
        &handler(
            "(func $early (drop (call $request_read (i32.const 0) (i32.const 0)))) (start $early) (func (export \"hob_handle\"))",
        ),
        "snapshot = \"off\"",
    );
    let reply = node.data.get("/early");
    assert!(matches!(reply.status(), 200 | 502), "{} {}", reply.status(), reply.text());
}

#[test]
fn a_guest_that_never_reads_its_body() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("done"), "");
    assert_eq!(node.data.post("/a", &[b'x'; 10]).good(), b"done");
    assert_eq!(node.data.post("/a", &vec![b'x'; 8 << 20]).good(), b"done");
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/a");
    conn.chunk(b"x").unwrap();
    // The answer does not wait for the rest.
    assert_eq!(conn.reply().good(), b"done");
    // A body that was taken whole leaves the connection usable, one that was not ends it.
    let mut conn = node.data.connect();
    for _ in 0..3 {
        conn.request("POST", "/a", &[], &[b'x'; 1000]);
        assert_eq!(conn.reply().good(), b"done");
    }
}

#[test]
fn bodies_stream_both_ways() {
    let node = Node::start(&[]);
    let echo = does(
        "(local $n i32)
         (call $stream)
         (block $end (loop $more
           (local.set $n (call $body_read (i32.const 0) (i32.const 30000)))
           (br_if $end (i32.le_s (local.get $n) (i32.const 0)))
           (if (call $body_write (i32.const 0) (local.get $n)) (then unreachable))
           (br $more)))",
    );
    node.deploy_wat("a", &echo, "[limits]\ncpu = \"1m\"\nwall = \"1m\"\n");
    // Piece by piece: each comes back before the next is sent.
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/a");
    let head = {
        conn.chunk(b"first").unwrap();
        conn.head()
    };
    assert_eq!(head.header("transfer-encoding"), Some("chunked"));
    for piece in ["first", "second", "third"] {
        if piece != "first" {
            conn.chunk(piece.as_bytes()).unwrap();
        }
        assert_eq!((conn.line(), conn.line()), (Some(format!("{:x}", piece.len())), Some(piece.into())));
    }
    conn.end_chunks();
    assert_eq!(conn.line().as_deref(), Some("0"));
    // The control port does the same.
    let mut conn = node.control.connect();
    conn.begin_chunked("POST", "/v1/functions/a/invoke");
    conn.chunk(b"first").unwrap();
    assert_eq!(conn.head().status, 200);
    assert_eq!((conn.line(), conn.line()), (Some("5".into()), Some("first".into())));
    conn.chunk(b"second").unwrap();
    assert_eq!((conn.line(), conn.line()), (Some("6".into()), Some("second".into())));
    conn.end_chunks();
    assert_eq!(conn.line().as_deref(), Some("0"));
}

#[test]
fn head_requests() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("hello"), "");
    for port in [&node.data, &node.control] {
        let target = if port.addr == node.data.addr { "/a" } else { "/v1/functions/a/invoke" };
        let mut conn = port.connect();
        for _ in 0..2 {
            conn.request("HEAD", target, &[], b"");
            let reply = conn.reply_to("HEAD");
            assert_eq!((reply.status(), reply.header("content-length")), (200, Some("5")));
        }
        // Nothing of a body is in front of the next answer.
        conn.request("GET", target, &[], b"");
        assert_eq!(conn.reply().good(), b"hello");
    }
    node.deploy_wat("traps", &does("unreachable"), "");
    let reply = node.data.request("HEAD", "/traps", &[], b"");
    assert_eq!((reply.status(), reply.header("hob-error")), (502, Some("guest-trap")));
}

#[test]
fn small_bodies_are_whole_and_large_ones_stream() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &mirror(), "");
    let seen = decode(&node.data.post("/a", b"small").good());
    assert_eq!((seen.flags & 1, seen.body.as_slice()), (1, &b"small"[..]));
    let seen = decode(&node.data.get("/a").good());
    assert_eq!((seen.flags & 1, seen.body.len()), (1, 0));
    let seen = decode(&node.data.post("/a", &vec![b'x'; 65_537]).good());
    assert_eq!((seen.flags & 1, seen.body.len()), (0, 0));
    node.deploy_wat("b", &waits(), "");
    // What is in the record is not read again.
    assert_eq!(node.data.post("/b", b"small").good(), 0i32.to_le_bytes());
    assert_eq!(node.data.post("/b", &vec![b'x'; 65_537]).good(), 65_537i32.to_le_bytes());
}
