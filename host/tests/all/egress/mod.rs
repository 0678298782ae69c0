//! Outbound HTTP: what is granted goes out as the host says, and nothing else does, whoever is at the other end.

mod bounds;
mod calls;
mod ssrf;
mod tls;

use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};

use crate::harness::examples::guest;
use crate::harness::upstream::Upstream;
use crate::harness::{Node, eventually};

/// A node with a guest that may reach what `grants` names.
fn deploy(node: &Node, name: &str, grants: &[impl std::fmt::Debug], more: &str) {
    let wasm = std::fs::read(guest(name)).unwrap();
    let manifest = format!("{more}\n[grants]\nhttp = {grants:?}\n");
    let reply = node.deploy(name, &wasm, &manifest);
    assert!(matches!(reply.status(), 200 | 201), "{}", reply.text());
}

/// The answers of `fetch1` to a script.
#[track_caller]
fn ask(node: &Node, script: &str) -> Vec<String> {
    node.data.post("/fetch1", script.as_bytes()).ok().text().lines().map(str::to_owned).collect()
}

#[track_caller]
fn one(node: &Node, line: &str) -> String {
    ask(node, line).remove(0)
}

/// No grants.
const NOWHERE: [&str; 0] = [];
/// Longer than any test, so that only a timer that is tested ends something.
const PATIENT: &str = "[limits]\nwall = '300s'\nmemory = '64MiB'\nconcurrency = 200";

#[test]
fn what_is_granted_goes_out_as_the_host_says() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    assert_eq!(node.inspect("fetch1")["grants"]["http"][0], url.as_str());
    assert_eq!(
        one(&node, &format!("GET {url}/a?b=c accept=x host=metadata connection=close te=trailers expect=100-continue")),
        "200 5 hello"
    );
    assert_eq!(
        upstream.heads()[0],
        format!("GET /a?b=c HTTP/1.1\r\naccept: x\r\nhost: {}\r\nhob-hops: 1\r\n\r\n", upstream.addr)
    );
    let body = "b".repeat(200_000);
    assert_eq!(
        one(&node, &format!("POST {url}/ body=*200000 transfer-encoding=chunked x-forwarded-for=127.0.0.1")),
        "200 5 hello"
    );
    let head = upstream.heads()[1].clone();
    assert!(head.ends_with(&format!("\r\n\r\n{body}")) && head.contains("content-length: 200000\r\n"), "{}", &head[..200]);
    assert!(!head.contains("chunked") && !head.contains("127.0.0.1\r\nx-forwarded"), "{}", &head[..200]);
    assert_eq!(node.inspect("fetch1")["usage"]["requests"], 2);
    for wrong in ["content-length=3", "content-length=5,5", "content-length=+4"] {
        assert!(one(&node, &format!("POST {url}/ body=four {wrong}")).starts_with("error invalid"), "{wrong}");
    }
    assert_eq!(one(&node, &format!("POST {url}/ body=four content-length=4")), "200 5 hello");
    assert!(one(&node, &format!("CONNECT {url}/")).starts_with("error invalid"));
    assert_eq!(upstream.requests(), 3);
    // They share connections, but for a request that comes before the last one's was put back.
    assert_eq!(ask(&node, &format!("GET {url}/\n").repeat(50)), ["200 5 hello"; 50]);
    assert!(upstream.taken() < 50, "{} connections", upstream.taken());
}

#[test]
fn what_is_not_granted_is_refused_and_explained_once() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &NOWHERE, "");
    for _ in 0..3 {
        assert!(one(&node, &format!("GET {url}/")).starts_with("error denied"));
    }
    let line = format!("add to hob.toml: [grants] http = [\"{url}\"]");
    let told = |name: &str| node.logs(name).iter().filter(|(_, _, text)| text.contains(&line)).count();
    assert_eq!(told("fetch1"), 1);
    let query = format!("http+{}+/", upstream.addr);
    for (name, query) in [("fetch2", format!("get+{query}")), ("fetch3", query)] {
        deploy(&node, name, &NOWHERE, "");
        for _ in 0..2 {
            let answer = node.data.get(&format!("/{name}?{query}")).ok().text();
            assert!(answer.contains("HttpRequestDenied"), "{answer}");
        }
        assert_eq!(told(name), 1, "{name}");
        deploy(&node, name, &[&url], "");
        assert_eq!(node.data.get(&format!("/{name}?{query}")).ok().text(), "200 5 hello", "{name}");
    }
    assert_eq!(upstream.requests(), 2);
    let reply = node.deploy("fetch1", &std::fs::read(guest("fetch1")).unwrap(), "[grants]\nhttp = ['http://a/b']");
    assert!(reply.status() == 400 && reply.text().contains("expected a scheme"), "{}", reply.text());
}

/// Whether the head of the response comes before what is wrong with it.
fn has_begun(path: &str) -> bool {
    ["/half", "/cut", "/endless"].contains(&path)
}

#[test]
fn components_get_the_interface_s_own_errors() {
    let upstream = Upstream::start();
    let node = Node::start(&[
        &upstream.opened(),
        "egress.response_timeout=200ms",
        "egress.idle_timeout=200ms",
        "egress.response_bytes_max=64KiB",
    ]);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let grants = [format!("http://{}", upstream.addr), format!("http://{nobody}")];
    for (name, verb) in [("fetch2", "get+"), ("fetch3", "")] {
        deploy(&node, name, &grants, PATIENT);
        let get = |to: &str| node.data.get(&format!("/{name}?{verb}http+{to}")).ok().text();
        let here = |path: &str| get(&format!("{}+{path}", upstream.addr));
        assert_eq!(here("/exact").split(' ').nth(1), Some("65536"));
        for (path, error) in [
            ("/silent", "HttpResponseTimeout"),
            ("/half", "ConnectionReadTimeout"),
            ("/cut", "HttpResponseIncomplete"),
            ("/endless", "HttpResponseBodySize(Some(65536))"),
            ("/announced", "HttpResponseBodySize(Some(65536))"),
            ("/headers", "HttpResponseHeaderSectionSize"),
            ("/no-http", "HttpProtocolError"),
        ] {
            let answer = here(path);
            // wasmtime-wasi-http 48 tells a component of 0.2 that a body failed, and not by which code.
            let is_told = answer.contains(error) || (name == "fetch2" && answer == "body None" && has_begun(path));
            assert!(is_told, "{name} {path}: {answer}");
        }
        let answer = get(&format!("{nobody}+/"));
        assert!(answer.contains("DestinationIpProhibited"), "{name}: {answer}");
        let answer = get(&format!("u@{}+/", upstream.addr));
        assert!(answer.contains("HttpRequestUriInvalid") || answer == "no request", "{name}: {answer}");
    }
    let header = |name: &str| node.data.get(&format!("/fetch2?header+{name}")).ok().text();
    for name in ["host", "connection", "transfer-encoding", "upgrade", "keep-alive", "proxy-authorization"] {
        assert!(header(name).contains("Forbidden"), "{name}");
    }
    assert_eq!(header("accept"), "Ok(())");
    let post =
        |len: usize, announced: &str| node.data.get(&format!("/fetch2?post+{}+{len}+{announced}", upstream.addr)).ok().text();
    assert_eq!(post(4, "4"), "200 5 hello");
    for (len, announced) in [(3, "4"), (5, "4"), (0, "4"), (4, "0")] {
        let answer = post(len, announced);
        assert!(!answer.starts_with("200"), "{len} of {announced}: {answer}");
    }
}

#[test]
fn evil_servers_end_in_errors_and_leave_nothing_open() {
    let upstream = Upstream::start();
    let node = Node::start(&[
        &upstream.opened(),
        "egress.response_timeout=200ms",
        "egress.idle_timeout=200ms",
        "egress.response_bytes_max=64KiB",
    ]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    let cases = [
        ("/silent", "error timeout"),
        ("/half", "error timeout"),
        ("/informs", "error timeout"),
        ("/cut", "error unavailable"),
        ("/hangs-up", "error unavailable"),
        ("/bad-chunk", "error unavailable"),
        ("/no-http", "error unavailable"),
        ("/endless", "error too-large"),
        ("/announced", "error too-large"),
        ("/headers", "error too-large"),
        ("/long-header", "error too-large"),
        ("/exact", "200 65536"),
    ];
    let script: String = cases.iter().map(|(path, _)| format!("GET {url}{path}\n")).collect();
    let answers = ask(&node, &script);
    for ((path, expected), answer) in cases.iter().zip(&answers) {
        assert!(answer.starts_with(expected), "{path}: {answer}");
    }
    // A server that answers before it has read the request is heard.
    let answer = one(&node, &format!("POST {url}/early body=*3000000"));
    assert!(answer.starts_with("413 0"), "{answer}");
    drop(node);
    eventually("nothing is open", || upstream.open() == 0);
}

#[test]
fn a_redirect_is_the_function_s_to_follow() {
    let (upstream, elsewhere) = (Upstream::start(), Upstream::start());
    let node = Node::start(&[&format!("egress.allow=[\"{}\", \"{}\"]", upstream.addr, elsewhere.addr)]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[url.clone(), format!("http://{}", elsewhere.addr)], "");
    assert_eq!(one(&node, &format!("GET {url}/to/{}", elsewhere.addr)), "302 0 ");
    assert_eq!(elsewhere.taken(), 0);
}

#[test]
fn requests_that_are_under_way_are_bounded() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    deploy(&node, "fetch2", &[format!("http://{}", upstream.addr)], PATIENT);
    // The host reserves 32 KiB for the head of each response.
    let flood = |count: usize| node.data.get(&format!("/fetch2?flood+{count}+{}", upstream.addr));
    let text = flood(240).ok().text();
    assert_eq!(text.lines().filter(|line| *line == "200 5 hello").count(), 240, "{text}");
    let detail = flood(300).problem(502, "guest-memory")["detail"].to_string();
    assert!(detail.contains("more than 8388608 bytes"), "{detail}");
}

#[test]
fn ten_thousand_requests_share_a_few_sockets() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    deploy(&node, "fetch2", &[format!("http://{}", upstream.addr)], PATIENT);
    let target = format!("/fetch2?flood+200+{}", upstream.addr);
    let before = descriptors(&node);
    let ask = || {
        let text = node.data.get(&target).ok().text();
        assert_eq!(text.lines().filter(|line| *line == "200 5 hello").count(), 200, "{text}");
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..50).map(|_| scope.spawn(ask)).collect();
        while threads.iter().any(|thread| !thread.is_finished()) {
            let now = descriptors(&node);
            // The connections of the test's own clients, and at most two sockets for each of the tenant's 64 places.
            assert!(now <= before + 50 + 2 * 64 + 32, "{now} descriptors, {before} before");
            std::thread::yield_now();
        }
    });
    assert_eq!(upstream.requests(), 10_000);
    assert!(upstream.most() <= 128, "{} connections at once", upstream.most());
}

fn descriptors(node: &Node) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count()
}

#[test]
fn places_are_waited_for_and_bounded() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened(), "egress.tenant_requests_max=8", "egress.invocation_requests_max=3"]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], PATIENT);
    let wait = format!("GET {url}/wait");
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..12).map(|_| scope.spawn(|| one(&node, &wait))).collect();
        eventually("all places are taken", || upstream.requests() == 8);
        eventually("the others run", || node.occupancy("fetch1").0 == 12);
        assert_eq!(upstream.requests(), 8);
        upstream.release();
        for answer in waiting {
            assert_eq!(answer.join().unwrap(), "200 5 hello");
        }
    });
    assert_eq!(upstream.requests(), 12);
    let mut script = String::new();
    for _ in 0..4 {
        writeln!(script, "hold {url}/half").unwrap();
    }
    let answers = ask(&node, &script);
    assert_eq!(answers[..3], ["200"; 3]);
    assert!(answers[3].starts_with("error limit"), "{answers:?}");
    eventually("what the function held is closed", || upstream.open() <= 8);
}

#[test]
fn an_invocation_that_ends_leaves_no_connection() {
    let upstream = Upstream::start();
    let node = Node::start(&[&upstream.opened()]);
    let url = format!("http://{}", upstream.addr);
    deploy(&node, "fetch1", &[&url], "[limits]\nwall = '300s'");
    for path in ["silent", "half"] {
        let before = upstream.requests();
        let mut conn = node.data.connect();
        conn.request("POST", "/fetch1", &[], format!("GET {url}/{path}").as_bytes());
        eventually("it is asked", || upstream.requests() == before + 1);
        assert!(upstream.open() > 0);
        // The client goes.
        drop(conn);
        eventually("its connection is closed", || upstream.open() == 0);
    }
    deploy(&node, "fetch1", &[&url], "[limits]\nwall = '100ms'");
    node.data.post("/fetch1", format!("GET {url}/silent").as_bytes()).problem(504, "wall-deadline");
    eventually("its connection is closed", || upstream.open() == 0);
}

/// Hands on all bytes that come to `listener` to what `to` is.
fn relay(listener: TcpListener, to: std::net::SocketAddr) {
    std::thread::spawn(move || {
        for from in listener.incoming() {
            let (from, to) = (from.unwrap(), TcpStream::connect(to).unwrap());
            for (mut from, mut to) in [(from.try_clone().unwrap(), to.try_clone().unwrap()), (to, from)] {
                std::thread::spawn(move || {
                    let _cut = std::io::copy(&mut from, &mut to);
                    let _gone = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
}

#[test]
fn a_function_that_fetches_itself_is_stopped() {
    // The way round goes by an address that is known before the node is.
    let way = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = way.local_addr().unwrap();
    let node = Node::start(&[&format!("egress.allow=[\"{addr}\"]")]);
    relay(way, node.data.addr);
    let next = format!("{PATIENT}\n[env]\nNEXT = 'http://{addr}/fetch1/next'");
    deploy(&node, "fetch1", &[format!("http://{addr}")], &next);
    let reply = node.data.get("/fetch1/next");
    assert_eq!(reply.status(), 508, "{}", reply.text());
    assert!(reply.text().contains("loop-detected"), "{}", reply.text());
    let starts = node.inspect("fetch1")["usage"]["starts"].clone();
    let invocations: u64 = starts.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    assert_eq!(invocations, 9, "the first, and one for each of 8 hops: {starts}");
    // A client that sets the header shortens only its own way.
    let refused = node.data.request("GET", "/fetch1/next", &[("hob-hops", "9")], b"");
    refused.problem(508, "loop-detected");
    assert_eq!(refused.header("hob-executed"), Some("0"));
    let sent = |hops: &str| node.data.request("POST", "/fetch1", &[("hob-hops", hops)], b"");
    for hops in ["8", "0", "-1", "words", "1000"] {
        sent(hops).ok();
    }
}

#[test]
fn sockets_are_the_operator_s_to_open() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let honeypot = TcpListener::bind("127.0.0.1:0").unwrap();
    honeypot.set_nonblocking(true).unwrap();
    let addr = server.local_addr().unwrap();
    let allow = format!("egress.allow=[\"{addr}\"]");
    let wasm = std::fs::read(guest("reach2")).unwrap();
    let connect = |node: &Node, addr: std::net::SocketAddr| {
        let reply = node.deploy("reach2", &wasm, &format!("args = ['connect', '{addr}']\n"));
        assert!(matches!(reply.status(), 200 | 201), "{}", reply.text());
        node.data.get("/reach2")
    };
    let node = Node::start(&[&allow]);
    connect(&node, addr).problem(502, "guest-exit");
    let node = Node::start(&[&allow, "egress.sockets=[\"default\"]"]);
    let serving = std::thread::spawn(move || {
        use std::io::Write as _;
        server.accept().unwrap().0.write_all(b"by a socket").unwrap();
    });
    assert_eq!(connect(&node, addr).ok().text(), "by a socket");
    serving.join().unwrap();
    connect(&node, honeypot.local_addr().unwrap()).problem(502, "guest-exit");
    assert!(honeypot.accept().is_err(), "somebody connected");
}
