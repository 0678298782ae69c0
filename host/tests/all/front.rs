//! The front door: requests that two parsers might read in two ways, responses of hostile guests, slow clients in numbers, and a flood that
//! takes what descriptors there are.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpStream};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::http::{Conn, Port};
use crate::harness::smuggle::corpus;
use crate::harness::strict::{self, End, Request};
use crate::harness::wat::{does, handler, says};
use crate::harness::{Node, eventually};
use crate::shortage::behind;

/// A handler that answers 200 for a request that is there to the end of its body, and traps otherwise.
fn whole() -> String {
    does("(if (i32.lt_s (call $ended) (i32.const 0)) (then unreachable)) (call $number (i32.const 1))").replace(
        "(func (export \"hob_handle\")",
        "(func $ended (result i32) (local $n i32)
           (loop $more
             (local.set $n (call $body_read (i32.const 16384) (i32.const 16384)))
             (br_if $more (i32.gt_s (local.get $n) (i32.const 0))))
           (local.get $n))
         (func (export \"hob_handle\")",
    )
}

/// How many instances of any function were started.
fn starts(node: &Node) -> u64 {
    ["ready", "resident", "stored", "compiled"]
        .iter()
        .map(|rung| node.metric(&format!("hob_starts_total{{start=\"{rung}\"}}")))
        .sum()
}

/// The heads in what a server sent, each with its body.
fn answers(mut bytes: &[u8]) -> Vec<(u16, String)> {
    let mut all = Vec::new();
    while let Some(len) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
        let head = String::from_utf8(bytes[..len].to_vec()).unwrap().to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {head:?}")).trim().parse().unwrap();
        let body_len: usize =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |len| len.parse().unwrap());
        // These have none, whatever they announce.
        let body_len = if matches!(status, 204 | 304) { 0 } else { body_len };
        bytes = &bytes[len + 4 + body_len..];
        if status != 100 {
            all.push((status, head));
        }
    }
    assert!(bytes.is_empty(), "{:?}", String::from_utf8_lossy(bytes));
    all
}

/// Sends a stream, and says how its requests were answered. A server that must close does so by itself. One that would go on is asked for
/// `last`, with which it closes too: a client that only stops sending is taken for one that went away. Any other is told that nothing more
/// will come.
fn exchange(port: &Port, stream: &[u8], end: End, last: &str) -> Vec<(u16, String)> {
    let mut conn = port.connect();
    // It may be refused before all of it is sent.
    let _refused = conn.try_send(stream);
    match end {
        End::Close => {}
        End::Open => drop(conn.try_send(last)),
        _ => conn.finish(),
    }
    // A server that does not close is a failure of this stream, by name.
    conn.stream().set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let mut bytes = Vec::new();
    let read = conn.stream().read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(stream);
    assert!(read.is_ok(), "{read:?} for {text:?}");
    answers(&bytes)
}

#[test]
fn requests_are_what_a_strict_parser_sees() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &whole(), "");
    for (port, target) in [(&node.data, "/a"), (&node.control, "/v1/functions/a/invoke")] {
        let corpus = corpus(target);
        assert!(corpus.len() > 400, "{}", corpus.len());
        let (before, mut whole, mut begun, mut wrong) = (starts(&node), 0u64, 0u64, Vec::new());
        for stream in &corpus {
            let expected = strict::parse(stream);
            let last = format!("GET {target}?end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let good = expected.requests.iter().filter(|request| matches!(request, Request::Whole(_))).count();
            let good = good + usize::from(expected.end == End::Open);
            let answers = exchange(port, stream, expected.end, &last);
            let answered = answers.iter().filter(|(status, _)| *status == 200).count();
            let lenient = expected.requests.iter().filter(|request| **request == Request::BadTrailers).count();
            if !(good..=good + lenient).contains(&answered) {
                let statuses: Vec<_> = answers.iter().map(|(status, _)| *status).collect();
                wrong.push(format!("{:?}\n  strict: {expected:?}, hob: {statuses:?}", String::from_utf8_lossy(stream)));
            }
            whole += good as u64;
            begun += expected.requests.iter().filter(|request| !matches!(request, Request::Whole(_))).count() as u64;
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), corpus.len(), wrong.join("\n"));
        // Those whose body breaks off may have begun, no others.
        let ran = starts(&node) - before;
        assert!((whole..=whole + begun).contains(&ran), "{whole} whole, {begun} begun, {ran} ran");
    }
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn what_a_body_may_carry_besides_bytes_is_bounded() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &whole(), "");
    for (port, target) in [(&node.data, "/a"), (&node.control, "/v1/functions/a/invoke")] {
        for (flood, is_good) in [
            (format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(15_000)), true),
            (format!("1;{}\r\nx\r\n0\r\n\r\n", "e".repeat(17_000)), false),
            ("1;eeeeeeeeee\r\nx\r\n".repeat(5000) + "0\r\n\r\n", false),
            (format!("0\r\n{}\r\n", "x: y\r\n".repeat(60)), true),
            (format!("0\r\n{}\r\n", "x: y\r\n".repeat(10_000)), false),
            (format!("0\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)), false),
        ] {
            let mut conn = port.connect();
            let _refused =
                conn.try_send(format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{flood}"));
            let status = conn.try_head().map(|head| head.status);
            assert_eq!(status == Some(200), is_good, "{status:?} {}", &flood[..20]);
        }
        // One word before the answer, however often it is asked for.
        let mut conn = port.connect();
        conn.send(format!(
            "POST {target} HTTP/1.1\r\nhost: localhost\r\n{}content-length: 1\r\n\r\n",
            "expect: 100-continue\r\n".repeat(50)
        ));
        assert_eq!(conn.line().unwrap(), "HTTP/1.1 100 Continue");
        assert_eq!(conn.line().unwrap(), "");
        conn.send("x");
        assert_eq!(conn.line().unwrap(), "HTTP/1.1 200 OK");
    }
}

/// A handler that answers with this status, these headers and this body.
pub(crate) fn answers_with(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let mut record = Vec::new();
    record.extend_from_slice(&0u32.to_le_bytes());
    record.extend_from_slice(&status.to_le_bytes());
    record.extend_from_slice(&u16::try_from(headers.len()).unwrap().to_le_bytes());
    record.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    for (name, value) in headers {
        record.extend_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
        record.extend_from_slice(&u32::try_from(value.len()).unwrap().to_le_bytes());
        record.extend_from_slice(name.as_bytes());
        record.extend_from_slice(value.as_bytes());
    }
    record.extend_from_slice(body.as_bytes());
    let text: String = record.iter().map(|byte| format!("\\{byte:02x}")).collect();
    handler(&format!(
        "(data (i32.const 0) \"{text}\") (func (export \"hob_handle\") (call $respond (i32.const 0) (i32.const {})))",
        record.len()
    ))
}

/// A name, a status, headers and a body.
type Hostile<'a> = (&'a str, u16, &'a [(&'a str, &'a str)], &'a str);

#[test]
fn guests_do_not_frame_their_responses() {
    let node = Node::start(&[]);
    let hostile: [Hostile<'_>; 16] = [
        ("s100", 100, &[], ""),
        ("s101", 101, &[("upgrade", "x"), ("connection", "upgrade")], ""),
        ("s103", 103, &[], ""),
        ("s199", 199, &[], ""),
        ("s600", 600, &[], ""),
        ("split-value", 200, &[("x", "a\r\nset-cookie: b")], "body"),
        ("split-lf", 200, &[("x", "a\nset-cookie: b")], "body"),
        ("split-name", 200, &[("x: y\r\nz", "a")], "body"),
        ("nul", 200, &[("x", "a\0b")], "body"),
        ("long", 200, &[("content-length", "400")], "body"),
        ("short", 200, &[("content-length", "1")], "body"),
        ("two", 200, &[("content-length", "1"), ("content-length", "4")], "body"),
        ("chunked", 200, &[("transfer-encoding", "chunked")], "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
        (
            "hops",
            200,
            &[
                ("connection", "close, x-a"),
                ("keep-alive", "timeout=1"),
                ("te", "x"),
                ("trailer", "x"),
                ("upgrade", "h2c"),
                ("proxy-connection", "x"),
                ("x-a", "b"),
            ],
            "body",
        ),
        ("none", 204, &[("content-length", "4")], "body"),
        ("unchanged", 304, &[("content-length", "4")], "body"),
    ];
    for (name, status, headers, body) in hostile {
        node.deploy_wat(name, &answers_with(status, headers, body), "");
    }
    node.deploy_wat("good", &says("good"), "");
    let get = |name: &str| format!("GET /{name} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    for (name, status, headers, body) in hostile {
        let mut conn = node.data.connect();
        conn.send(get(name) + &get("good").replace("localhost", "localhost\r\nconnection: close"));
        let mut bytes = Vec::new();
        conn.stream().read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        // Two answers, the second of which is the other function's, whole.
        let answers = answers(&bytes);
        assert_eq!(answers.len(), 2, "{name}: {text}");
        assert!(answers[1].0 == 200 && text.ends_with("\r\n\r\ngood"), "{name}: {text}");
        let (found, head) = &answers[0];
        if (200..600).contains(&status) && !name.starts_with("split") && !matches!(name, "nul" | "two" | "long" | "short") {
            assert_eq!(*found, status, "{name}: {text}");
        } else if !matches!(name, "long" | "short") {
            assert_eq!(*found, 502, "{name}: {text}");
        }
        for forbidden in
            ["set-cookie", "transfer-encoding", "keep-alive", "\nte:", "trailer", "upgrade", "proxy-connection", "x-a"]
        {
            assert!(!head.contains(forbidden), "{name}: {head}");
        }
        let lens: Vec<_> = head.lines().filter(|line| line.starts_with("content-length")).collect();
        assert!(lens.len() <= 1, "{name}: {head}");
        if *found == 200 {
            assert_eq!(lens, [format!("content-length: {}", body.len())], "{name}: {head} {headers:?}");
        }
    }
}

/// As many files as the system lets this process have: some tests hold thousands of connections.
fn raise_own_descriptors(needed: u64) {
    let limit = getrlimit(Resource::Nofile);
    assert!(limit.maximum.is_none_or(|most| most >= needed), "the test needs {needed} descriptors");
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
}

/// A connection from another address of the loopback network.
fn connect_from(last: u8, to: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

#[test]
fn slow_clients_in_numbers_stop_nobody_and_are_closed() {
    const CLIENTS: usize = 500;
    raise_own_descriptors(2000);
    let node = Node::start(&["net.header_timeout=3s", "net.body_rate_grace=1s", "net.connections_per_address=0"]);
    node.deploy_wat("a", &whole(), "");
    for (port, target) in [(&node.data, "/a"), (&node.control, "/v1/functions/a/invoke")] {
        // The control port takes 256.
        let clients = if target == "/a" { CLIENTS } else { 150 };
        let mut victim = port.connect();
        let mut open: Vec<(usize, TcpStream)> = (0..clients)
            .map(|number| {
                let stream = connect_from(2, port.addr);
                stream.set_nonblocking(true).unwrap();
                (number, stream)
            })
            .collect();
        let body = format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 60000\r\n\r\n");
        let ask = |victim: &mut Conn| {
            victim.request("POST", target, &[], b"body");
            assert_eq!(victim.reply().status(), 200);
        };
        let mut round = 0;
        eventually("all are closed", || {
            ask(&mut victim);
            open.retain_mut(|(number, stream)| {
                // Silent, a head that drips, a body that drips.
                let bytes: &[u8] = match (*number % 3, round) {
                    (0, _) => b"",
                    (1, 0) => b"GET /",
                    (2, 0) => body.as_bytes(),
                    _ => b"x",
                };
                let _full = std::io::Write::write(stream, bytes);
                let mut answer = [0; 4096];
                match stream.read(&mut answer) {
                    Ok(0) => false,
                    Ok(len) => {
                        assert!(answer[..len].starts_with(b"HTTP/1.1 408 "), "{:?}", String::from_utf8_lossy(&answer[..len]));
                        // Its word is heard; the rest is for the server to end.
                        stream.shutdown(Shutdown::Write).is_ok()
                    }
                    Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
                }
            });
            round += 1;
            open.is_empty()
        });
        ask(&mut victim);
    }
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn a_flood_of_connections_leaves_descriptors_for_others() {
    const FLOOD: usize = 5000;
    raise_own_descriptors(FLOOD as u64 + 1000);
    let node = behind("ulimit -n 256;", &["sh"], &["engine.threads=2", "net.connections_per_address=0"]);
    assert!(node.stderr().contains("fewer connections than net.connections_max"), "{}", node.stderr());
    node.deploy_wat("a", &says("a"), "");
    let mut victim = node.data.connect();
    let ask = |victim: &mut Conn| {
        victim.request("GET", "/a", &[], b"");
        assert_eq!(victim.reply().good(), b"a");
    };
    ask(&mut victim);
    let flood: Vec<_> = (0..FLOOD)
        .map(|number| {
            let stream = connect_from(2 + (number % 200) as u8, node.data.addr);
            if number % 500 == 0 {
                // Those that are served already go on, and the control port takes a deploy, which needs a process and files.
                ask(&mut victim);
                node.control.get("/livez").ok();
                node.deploy_wat(&format!("f{number}"), &says(&number.to_string()), "");
            }
            stream
        })
        .collect();
    ask(&mut victim);
    node.control.get("/readyz").ok();
    drop(flood);
    eventually("others are served again", || {
        let mut conn = node.data.connect();
        let sent = conn.try_send("GET /a HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        sent.is_ok() && conn.try_head().is_some_and(|head| head.status == 200)
    });
}
