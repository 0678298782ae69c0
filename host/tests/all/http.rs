//! Rude clients on both ports: each gets the answer that fits, or a closed connection, and holds nothing afterwards.

use crate::harness::http::{Conn, Port};
use crate::harness::wat::{self, does, says, waits, wasm};
use crate::harness::{Node, eventually, multipart};

const GIB: u64 = 1 << 30;

/// Timers so short that a client's silence is over soon, and so long that a test on a busy machine is never silent by itself.
const SHORT: [&str; 3] = ["net.header_timeout=1s", "net.keepalive_timeout=1s", "net.body_idle_timeout=1s"];

fn ports(node: &Node) -> [(&Port, &str); 2] {
    [(&node.data, "/a"), (&node.control, "/livez")]
}

fn send(port: &Port, bytes: impl AsRef<[u8]>) -> Conn {
    let mut conn = port.connect();
    conn.send(bytes);
    conn
}

/// The answer to these bytes is this problem, and the connection is over.
#[track_caller]
fn check(port: &Port, bytes: impl AsRef<[u8]>, status: u16, code: &str) {
    let mut conn = send(port, bytes);
    let reply = conn.reply();
    reply.problem(status, code);
    assert_eq!(reply.header("connection"), Some("close"));
    conn.finish();
    assert!(conn.is_closed());
}

/// Clients at the same time, each of which sends its bytes and no more.
#[track_caller]
fn all_time_out(clients: &[(&Port, Vec<u8>)]) {
    std::thread::scope(|scope| {
        for (port, bytes) in clients {
            scope.spawn(move || check(port, bytes, 408, "client-timeout"));
        }
    });
}

#[test]
fn a_gibibyte_is_refused_at_its_announcement() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "");
    let announce = |target: &str| format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {GIB}\r\n\r\n");
    check(&node.data, announce("/a"), 413, "body-too-large");
    check(&node.control, announce("/v1/functions/a/invoke"), 413, "body-too-large");
    let put = format!("PUT /v1/functions/b HTTP/1.1\r\nhost: localhost\r\ncontent-length: {GIB}\r\n\r\n");
    check(&node.control, &put, 413, "body-too-large");
    check(
        &node.control,
        put.replace("host: localhost", "host: localhost\r\ncontent-type: multipart/form-data; boundary=b"),
        413,
        "body-too-large",
    );
    // A client that waits for permission never sends it.
    check(
        &node.data,
        announce("/a").replace("host: localhost", "host: localhost\r\nexpect: 100-continue"),
        413,
        "body-too-large",
    );
    assert!(node.files("staging").is_empty());
}

#[test]
fn a_gibibyte_without_announcement_is_refused_when_it_passes() {
    let node = Node::start(&["data.upload_bytes_max=1MiB"]);
    node.deploy_wat("a", &waits(), "");
    let piece = vec![b'x'; 64 << 10];
    for (port, method, target, limit) in [
        (&node.data, "POST", "/a", 8u64 << 20),
        (&node.control, "POST", "/v1/functions/a/invoke", 8 << 20),
        (&node.control, "PUT", "/v1/functions/b", 1 << 20),
    ] {
        let mut conn = port.connect();
        conn.begin_chunked(method, target);
        let mut sent = 0;
        // A module in its first bytes, so that only its length is wrong.
        conn.chunk(b"\0asm\x01\0\0\0").unwrap();
        while sent < GIB && conn.chunk(&piece).is_ok() {
            sent += piece.len() as u64;
        }
        assert!(sent >= limit && sent < GIB / 4, "{target}: {sent} bytes were taken");
        conn.reply().problem(413, "body-too-large");
    }
    let peak = node.peak_memory();
    assert!(peak < 200 << 20, "{} MiB", peak >> 20);
    eventually("nothing is left of it", || node.files("staging").is_empty() && node.metric("hob_instances") == 0);
}

#[test]
fn more_than_was_announced_is_another_request() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "");
    // Five bytes are the body; what follows is no request, whatever the client meant.
    let mut conn =
        send(&node.data, "POST /a HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\n\r\nhelloworld and more\r\n\r\n");
    assert_eq!(conn.reply().ok().body.len(), 4);
    conn.reply().problem(400, "bad-request");
    // On a deploy: the module is cut short by its own announcement.
    let wasm = wasm(&says("good"));
    let mut conn = send(
        &node.control,
        format!("PUT /v1/functions/b HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", wasm.len() / 2),
    );
    conn.send(&wasm);
    conn.reply().problem(422, "not-deployable");
    assert!(conn.try_head().is_none_or(|head| head.status == 400));
}

#[test]
fn less_than_was_announced() {
    let node = Node::start(&SHORT);
    node.deploy_wat("a", &waits(), "");
    let cat = wat::reads();
    node.deploy_wat("command", &cat, "");
    let wasm = wasm(&says("good"));
    let head = |method: &str, target: &str, len: usize| {
        format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len}\r\n\r\n")
    };
    let (kind, form) = multipart(&[("wasm", &wasm)]);
    let multi = head("PUT", "/v1/functions/b", form.len())
        .replace("host: localhost", &format!("host: localhost\r\ncontent-type: {kind}"));
    let put = head("PUT", "/v1/functions/b", wasm.len());
    all_time_out(&[
        // Small bodies are waited for before the guest starts, large ones by the guest.
        (&node.data, (head("POST", "/a", 10) + "hello").into()),
        (&node.data, (head("POST", "/a", 100_000) + "hello").into()),
        (&node.control, (head("POST", "/v1/functions/a/invoke", 10) + "hello").into()),
        (&node.control, (head("POST", "/v1/functions/a/invoke", 100_000) + "hello").into()),
        // Whatever a command makes of a failed read, the client is told of its own part in it.
        (&node.data, (head("POST", "/command", 100_000) + "hello").into()),
        (&node.control, [put.as_bytes(), &wasm[..20]].concat()),
        (&node.control, [multi.as_bytes(), &form[..form.len() / 2]].concat()),
    ]);
    // It says that nothing follows, and waits for what that means.
    let chunk = |target: &str| {
        format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nZZ\r\n")
    };
    for target in ["/a", "/command"] {
        for request in [head("POST", target, 10) + "hello", head("POST", target, 100_000) + "hello", chunk(target)] {
            let mut conn = send(&node.data, request);
            conn.finish();
            conn.reply().problem(400, "bad-request");
        }
    }
    let mut conn = send(&node.control, chunk("/v1/functions/a/invoke"));
    conn.reply().problem(400, "bad-request");
    // The client hangs up in the middle.
    for (port, request) in [
        (&node.data, head("POST", "/a", 10)),
        (&node.data, head("POST", "/a", 100_000)),
        (&node.control, head("PUT", "/v1/functions/b", wasm.len())),
    ] {
        let mut conn = send(port, request + "\0asm\x01\0\0\0");
        conn.finish();
        if let Some(head) = conn.try_head() {
            assert!(matches!(head.status, 200 | 400 | 408), "{head:?}");
        }
    }
    node.control.get("/v1/functions/b").problem(404, "not-found");
    eventually("nothing is left of them", || node.files("staging").is_empty() && node.metric("hob_instances") == 0);
}

#[test]
fn a_head_that_does_not_come_to_its_end() {
    let node = Node::start(&SHORT);
    node.deploy_wat("a", &says("a"), "");
    for (port, target) in ports(&node) {
        let line = format!("GET {target} HTTP/1.1\r\n");
        let parts = ["G", "GET ", &line, &format!("{line}host: localhost\r\nx-a: b")];
        all_time_out(&parts.map(|part| (port, part.into())));
        // Nothing at all: closed without a word.
        assert!(port.connect().is_closed());
        // The client says itself that nothing more will come.
        let mut conn = send(port, format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n"));
        conn.finish();
        conn.reply().problem(400, "bad-request");
        // After a good request the timer starts anew, and an idle connection closes.
        let mut conn = port.connect();
        for _ in 0..3 {
            conn.request("GET", target, &[], b"");
            conn.reply().ok();
        }
        assert!(conn.is_closed());
    }
    // One byte now and then does not help: the whole head has one time. The server hangs up while it is being sent.
    let mut conn = node.data.connect();
    let mut sent = 0;
    while conn.try_send("x").is_ok() && sent < 60_000 {
        sent += 1;
        std::thread::sleep(std::time::Duration::from_millis(5));
        if sent % 100 == 0 && conn.stream().peek(&mut [0]).is_ok() {
            break;
        }
    }
    conn.reply().problem(408, "client-timeout");
}

#[test]
fn malformed_heads() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    for (port, target) in ports(&node) {
        let get = |rest: &str| format!("GET {target} HTTP/1.1\r\n{rest}\r\n");
        for bad in [
            get(""),
            get("host: localhost\r\nhost: y\r\n"),
            get("host: a b/c\r\n"),
            get("host: [::1\r\n"),
            get("host: a@b\r\n"),
            get("host: x,y\r\n"),
            get("host: \u{ff}\r\n"),
            get("host: x:99999\r\n"),
            get("host: localhost:65536\r\n"),
            format!("GET http://a@localhost{target} HTTP/1.0\r\n\r\n"),
            get("host: localhost\r\na b: c\r\n"),
            get("host: localhost\r\ncontent-length: x\r\n"),
            get("host: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n"),
            get("host: localhost\r\ncontent-length: -1\r\n"),
            "CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n".into(),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".into(),
            format!("GET {target} HTTP/3.0\r\nhost: localhost\r\n\r\n"),
            "GET\r\n\r\n".into(),
            format!("GET http://y{target} HTTP/1.1\r\nhost: localhost\r\n\r\n"),
        ] {
            let mut conn = send(port, &bad);
            let reply = conn.reply();
            assert_eq!((reply.status(), reply.header("hob-error")), (400, Some("bad-request")), "{bad:?}");
        }
        check(port, get(&format!("host: localhost\r\n{}", "x-a: b\r\n".repeat(64))), 431, "headers-too-large");
        check(port, get(&format!("host: localhost\r\nx-a: {}\r\n", "b".repeat(40_000))), 431, "headers-too-large");
        check(port, format!("GET {target}?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "q".repeat(8192)), 414, "uri-too-long");
        check(port, format!("GET {target}?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "q".repeat(40_000)), 414, "uri-too-long");
        // At the limits all is well.
        send(port, get("host: localhost:65535\r\n")).reply().ok();
        send(port, get("host: [::1]:\r\n")).reply().ok();
        send(port, get(&format!("host: localhost\r\n{}", "x-a: b\r\n".repeat(63)))).reply().ok();
        send(port, format!("GET {target}?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "q".repeat(8191 - target.len()))).reply().ok();
    }
}

#[test]
fn requests_are_not_smuggled() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "");
    for (port, target) in [(&node.data, "/a"), (&node.control, "/v1/functions/a/invoke")] {
        // Both framings: whichever wins, the connection does not go on with what could be taken for another request.
        let mut conn = send(
            port,
            format!(
                "POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /evil HTTP/1.1\r\nhost: localhost\r\n\r\n"
            ),
        );
        let first = conn.reply();
        assert!(matches!(first.status(), 200 | 400), "{first:?}");
        if let Some(second) = conn.try_head() {
            assert!(second.status >= 400, "{second:?}");
        }
        for coding in ["gzip", "chunked, gzip", "xchunked", "identity"] {
            let mut conn =
                send(port, format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: {coding}\r\n\r\n"));
            assert_eq!(conn.reply().status(), 400, "{coding}");
        }
        for chunks in ["x\r\n", "5\r\nhello", "-1\r\n\r\n", "ffffffffffffffffff\r\n"] {
            let mut conn =
                send(port, format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunks}"));
            conn.finish();
            if let Some(head) = conn.try_head() {
                assert!(matches!(head.status, 200 | 400 | 408), "{chunks:?}: {head:?}");
            }
        }
    }
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    node.deploy_wat("b", &says("b"), "");
    for (port, targets) in [(&node.data, ["/a", "/b"]), (&node.control, ["/v1/functions/a/invoke", "/v1/functions/b/invoke"])] {
        let requests: String = (0..20).map(|n| format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", targets[n % 2])).collect();
        let mut conn = send(port, requests);
        for n in 0..20 {
            assert_eq!(conn.reply().ok().text(), ["a", "b"][n % 2]);
        }
        // A request in the smallest pieces, and an old client.
        let mut conn = port.connect();
        for byte in format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", targets[0]).bytes() {
            conn.send([byte]);
        }
        conn.reply().ok();
        let mut conn = send(port, format!("GET {} HTTP/1.0\r\n\r\n", targets[0]));
        assert_eq!(conn.reply().ok().text(), "a");
        assert!(conn.is_closed());
        let mut conn = send(port, format!("GET {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", targets[0]));
        assert_eq!(conn.reply().ok().text(), "a");
        assert!(conn.is_closed());
    }
}

#[test]
fn a_trap_leaves_the_connection_usable() {
    let node = Node::start(&[]);
    node.deploy_wat("traps", &does("unreachable"), "");
    node.deploy_wat("good", &says("good"), "");
    let mut conn = node.data.connect();
    for _ in 0..5 {
        conn.request("POST", "/traps", &[], b"body");
        conn.reply().problem(502, "guest-trap");
        conn.request("GET", "/good", &[], b"");
        assert_eq!(conn.reply().good(), b"good");
    }
}

#[test]
fn uploads_that_trickle_have_an_end() {
    let node = Node::start(&["data.upload_timeout=2s"]);
    let begin = || {
        let mut conn = node.control.connect();
        conn.send("PUT /v1/functions/slow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n\0asm\x01\0\0\0");
        conn
    };
    // As many as there are places. One of them is never silent.
    let mut steady = begin();
    let others: Vec<_> = (1..16).map(|_| begin()).collect();
    steady.stream().set_nonblocking(true).unwrap();
    eventually("it is answered", || {
        // After the answer the other side closes, and takes no more.
        let _taken = steady.try_send(b"x");
        steady.stream().peek(&mut [0]).is_ok()
    });
    steady.stream().set_nonblocking(false).unwrap();
    for mut conn in others.into_iter().chain([steady]) {
        let reply = conn.reply();
        let problem = reply.problem(408, "client-timeout");
        assert!(problem["hint"].as_str().unwrap().contains("data.upload_timeout"), "{problem}");
        assert_eq!(reply.header("connection"), Some("close"));
    }
    node.deploy_wat("a", &says("a"), "");
    assert_eq!(node.data.get("/a").good(), b"a");
    eventually("no file is left", || node.files("staging").is_empty());
}

#[test]
fn connections_at_most() {
    let node = Node::start(&["net.connections_max=2", "net.control_connections_max=2"]);
    node.deploy_wat("a", &says("a"), "");
    for (port, target) in ports(&node) {
        // Connections of earlier requests may not be gone yet.
        let mut held = Vec::new();
        eventually("two are held", || {
            let mut conn = port.connect();
            conn.request("GET", target, &[], b"");
            if conn.reply().status() == 200 {
                held.push(conn);
            }
            held.len() == 2
        });
        let mut conn = port.connect();
        let reply = conn.reply();
        reply.problem(503, "overloaded");
        assert!(reply.header("retry-after").is_some());
        held.pop();
        eventually("there is room again", || {
            let mut conn = port.connect();
            conn.request("GET", target, &[], b"");
            conn.reply().status() == 200
        });
    }
}

#[test]
fn a_reader_that_takes_nothing_is_cut() {
    let node = Node::start(&["net.write_idle_timeout=300ms"]);
    let much = "(call $stream) (loop $more (br_if $more (i32.eqz (call $body_write (i32.const 0) (i32.const 65536)))))";
    node.deploy_wat("a", &does(much), "[limits]\ncpu = \"1h\"\nwall = \"1h\"\n");
    let mut conn = node.data.connect_narrow();
    conn.request("GET", "/a", &[], b"");
    let head = conn.head();
    eventually("it was cut", || node.metric("hob_instances") == 0 && node.occupancy("a") == (0, 0));
    assert!(!conn.body(&head, |_| ()), "what is left in the buffers does not end as a whole response");
}
