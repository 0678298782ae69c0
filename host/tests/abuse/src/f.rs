//! F: what clients do to both ports.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::b::Dice;
use crate::case::{Books, Case, Door, Kind, Ready, Seen, Stage, case, deployed};
use crate::guests::{self, does, says};
use crate::http::{self, Reply};
use crate::node::{HOME, Node};
use crate::swarm::{self, Ended, Plan, Reads};

/// Timers so short that a short run has time for three attacks; a long run has the defaults, or what is set there.
const TIMERS: &[&str] =
    &["net.connections_max=12000", "net.header_timeout=2s", "net.body_idle_timeout=2s", "net.write_idle_timeout=2s"];
/// What the timers may take beyond their time, on a machine with ten thousand connections.
const LATE: Duration = Duration::from_secs(2);
const TIMER: Duration = Duration::from_secs(2);
/// One that waits for its place begins later.
const QUEUE: Duration = Duration::from_secs(5);
/// A body may be slower than the least rate for five seconds.
const RATE_TIMER: Duration = Duration::from_secs(6);

const fn rude(
    row: &'static str,
    name: &'static str,
    expects: &'static [&'static str],
    attack: fn(&Stage<'_>, &mut Seen) -> anyhow::Result<()>,
) -> Case {
    case(row, name, expects, functions, attack).settings(TIMERS).books(Books::Closed).burns()
}

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(rude("F1", "silent connections", &["closed"], |s, seen| heads(s, seen, b"", None))),
    Kind::Beside(
        rude("F1", "silent, control port", &["closed", "503 overloaded"], |s, seen| heads(s, seen, b"", None)).at_control(),
    ),
    Kind::Beside(rude("F1", "dripping heads", &["408 client-timeout", "closed"], |s, seen| heads(s, seen, HEAD, Some(b"x")))),
    Kind::Beside(
        rude("F1", "dripping, control port", &["408 client-timeout", "503 overloaded", "closed"], |s, seen| {
            heads(s, seen, HEAD, Some(b"x"))
        })
        .at_control(),
    ),
    Kind::Beside(rude("F2", "half bodies", &["408 client-timeout", "closed"], |s, seen| bodies(s, seen, 100, TIMER))),
    Kind::Beside(
        rude("F2", "half bodies, control port", &["408 client-timeout", "503 overloaded", "closed"], |s, seen| {
            bodies(s, seen, 100, TIMER)
        })
        .at_control(),
    ),
    Kind::Beside(rude(
        "F2",
        "half large bodies",
        &["408 client-timeout", "429 concurrency", "503 overloaded", "closed"],
        |s, seen| bodies(s, seen, 1 << 20, TIMER + QUEUE),
    )),
    Kind::Beside(Case {
        setup: dripping,
        ..rude("F2", "dripping bodies", &["408 client-timeout", "closed"], |s, seen| bodies(s, seen, 60_000, RATE_TIMER))
    }),
    Kind::Beside(rude("F3", "readers that never read", &["never read"], slow_readers)),
    Kind::Beside(rude("F3", "never read, control port", &["never read"], slow_readers).at_control()),
    Kind::Beside(rude("F4", "giant bodies", &["413 body-too-large"], giants)),
    Kind::Beside(rude("F4", "giant bodies, control port", &["413 body-too-large"], giants).at_control()),
    Kind::Beside(rude(
        "F5",
        "floods of headers",
        &["431 headers-too-large", "414 uri-too-long", "200", "400 bad-request", "404 not-found"],
        headers,
    )),
    Kind::Beside(
        rude(
            "F5",
            "headers, control port",
            &["431 headers-too-large", "414 uri-too-long", "200", "400 bad-request", "404 not-found"],
            headers,
        )
        .at_control(),
    ),
    Kind::Beside(rude("F6", "smuggled requests", &["400 bad-request", "200", "501 *", "505 *", "4*", "closed"], smuggle)),
    Kind::Beside(
        rude("F6", "smuggled, control port", &["400 bad-request", "200", "501 *", "505 *", "4*", "closed"], smuggle).at_control(),
    ),
    Kind::Beside(rude("F7", "pipelines", &["200"], pipelines)),
    Kind::Beside(rude("F7", "pipelines, control port", &["200"], pipelines).at_control()),
    Kind::Beside(rude("F7", "a connection for each request", &["200"], churn)),
    Kind::Beside(
        case("F8", "more than there are descriptors", &["?closed", "503 overloaded", "200"], functions, exhaust)
            .files_max(512)
            .settings(&["net.connections_max=100000", "net.header_timeout=2s"])
            .books(Books::Closed)
            .burns()
            .victim_keeps_its_connections(),
    ),
    Kind::Beside(
        case("F8", "more than connections_max", &["503 overloaded", "closed"], functions, exhaust)
            .settings(&["net.connections_max=256", "net.header_timeout=2s"])
            .books(Books::Closed)
            .burns()
            .victim_keeps_its_connections(),
    ),
    Kind::Beside(
        rude("F8", "", &[], exhaust)
            .settings(&["net.connections_max=256", "net.header_timeout=2s"])
            .one_address("one address takes all", &["503 overloaded", "closed"]),
    ),
    Kind::Beside(
        rude("F1", "", &[], |s, seen| heads(s, seen, b"", None))
            .one_address("silent, one address", &["503 overloaded", "closed"]),
    ),
    Kind::Beside(
        rude("F1", "", &[], |s, seen| heads(s, seen, HEAD, Some(b"x")))
            .one_address("dripping, one address", &["503 overloaded", "408 client-timeout", "closed"]),
    ),
    Kind::Beside(
        rude("F2", "", &[], |s, seen| bodies(s, seen, 100, TIMER))
            .one_address("half bodies, one address", &["503 overloaded", "408 client-timeout", "closed"]),
    ),
    Kind::Beside(
        case("F12", "responses of guests", &["200", "2*", "3*", "4*", "5*"], forgers, responses).books(Books::AtLeast).burns(),
    ),
    Kind::Missing { row: "F13", name: "hosts that are not there", why: "no tenants yet" },
];

const HEAD: &[u8] = b"GET /waits HTTP/1.1\r\nhost: localhost\r\nx-drip: ";

fn functions(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "waits", &guests::waits(), "[limits]\nconcurrency = 300\nqueue = 1000\nqueue_wait = \"5s\"\n")?;
    deployed(stage, "good", &says("good"), "")?;
    deployed(stage, "streams", &guests::streams(200), "[limits]\nconcurrency = 3000\nqueue = 3000\nwall = \"1m\"\n")?;
    deployed(stage, "echo", &guests::victim(), "")
}

/// How many connections; the control port takes few.
fn many(stage: &Stage<'_>) -> usize {
    match stage.door {
        Door::Data => stage.times(3000, 10_000),
        Door::Control => stage.times(500, 2000),
    }
}

/// Runs a plan, whose connections the node must all have ended by their timer.
fn all_end(stage: &Stage<'_>, seen: &mut Seen, plan: &Plan<'_>, timer: Duration) -> anyhow::Result<Ended> {
    let ended = swarm::run(plan, seen)?;
    seen.check(ended.open == 0, || format!("{} of {} connections are still open after {:?}", ended.open, plan.count, plan.until));
    seen.check(ended.unconnected == 0, || format!("{} of {} were never connected", ended.unconnected, plan.count));
    let longest = ended.closed_after.iter().max().copied().unwrap_or_default();
    seen.check(longest <= timer + LATE, || format!("a connection was open for {longest:?}, where the timer is {timer:?}"));
    if stage.round == 2 {
        seen.note(format!("{} connections, open for at most {longest:.1?}", plan.count));
    }
    Ok(ended)
}

fn heads(stage: &Stage<'_>, seen: &mut Seen, first: &[u8], drip: Option<&[u8]>) -> anyhow::Result<()> {
    let from = stage.from();
    let plan = Plan {
        to: stage.addr(),
        count: many(stage),
        from: &from,
        first,
        drip: drip.map(|bytes| (Duration::from_millis(500), bytes)),
        reads: Reads::All,
        until: Duration::from_secs(20),
        done: None,
    };
    // In a long run they come again and again, for a minute.
    let (began, lasts) = (Instant::now(), stage.times(Duration::ZERO, Duration::from_secs(60)));
    loop {
        all_end(stage, seen, &plan, TIMER)?;
        if began.elapsed() >= lasts {
            return Ok(());
        }
    }
}

/// `timer`: after how long the node must have ended them. Beyond its own, they drip.
fn bodies(stage: &Stage<'_>, seen: &mut Seen, len: usize, timer: Duration) -> anyhow::Result<()> {
    let from = stage.from();
    let first = format!("POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len}\r\n\r\nhello", stage.target("waits"));
    let plan = Plan {
        to: stage.addr(),
        count: many(stage).min(2000),
        from: &from,
        first: first.as_bytes(),
        drip: (timer == RATE_TIMER).then_some((Duration::from_millis(500), &b"x"[..])),
        reads: Reads::All,
        until: Duration::from_secs(30),
        done: None,
    };
    all_end(stage, seen, &plan, timer).map(drop)
}

/// A body that comes a byte at a time is never silent: only a least rate ends it.
fn dripping(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    if !Node::knows(stage.binary, "net.body_rate_min")? {
        return Ok(Ready::Skipped("the node has no setting net.body_rate_min".into()));
    }
    functions(stage)
}

fn slow_readers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let from = stage.from();
    let first = http::head("GET", &stage.target("streams"), &[], 0);
    let count = match stage.door {
        Door::Data => stage.times(500, 900),
        Door::Control => stage.times(150, 200),
    };
    let sockets = || descriptors(stage.node).unwrap_or(usize::MAX);
    let before = sockets();
    let done = || sockets() < before + count / 10;
    let plan = Plan {
        to: stage.addr(),
        count,
        from: &from,
        first: first.as_bytes(),
        drip: None,
        reads: Reads::Nothing,
        until: TIMER + LATE + LATE,
        done: Some(&done),
    };
    let began = Instant::now();
    let ended = swarm::run(&plan, seen)?;
    seen.saw("never read");
    let left = sockets().saturating_sub(before);
    seen.check(left < count / 10, || format!("{left} of {count} connections have not ended after {:?}", plan.until));
    seen.check(ended.unconnected == 0, || format!("{} of {count} were never connected", ended.unconnected));
    if stage.round == 2 {
        seen.note(format!("{count} connections were cut after {:.1?}", began.elapsed()));
    }
    Ok(())
}

fn descriptors(node: &crate::node::Node) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{}/fd", node.pid()))?.count())
}

fn giants(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let target = stage.target("waits");
    stage.crowd(4, seen, |index, seen| {
        for len in ["1099511627776", "8388609"] {
            stage.ask(index, "POST", &target, &[("content-length", len)], b"x", seen);
        }
        let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
        let begun = conn.send(http::head("POST", &target, &[("transfer-encoding", "chunked")], 0));
        seen.check(begun.is_ok(), || "a body could not begin".into());
        let piece = [&b"10000\r\n"[..], &[0; 65_536], b"\r\n"].concat();
        let mut sent = 0_u64;
        while sent < 1 << 30 && conn.send(&piece).is_ok() {
            sent += 65_536;
        }
        seen.check(sent < 64 << 20, || format!("{sent} bytes of a body were taken, where 8 MiB are the limit"));
        // The answer may be lost with what was sent after it.
        if let Some(reply) = conn.reply() {
            seen.answered(Some(&reply));
        }
    });
    Ok(())
}

fn headers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let target = stage.target("good");
    let get = |headers: &str| format!("GET {target} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    let many = |count: usize| (0..count).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let requests: Vec<(&str, String)> = vec![
        ("200", get(&many(63))),
        ("431 headers-too-large", get(&many(64))),
        ("431 headers-too-large", get(&many(6400))),
        ("200", get(&format!("x-long: {}\r\n", "y".repeat(20 << 10)))),
        ("431 headers-too-large", get(&format!("x-long: {}\r\n", "y".repeat(40 << 10)))),
        ("431 headers-too-large", get(&format!("x-long: {}\r\n", "y".repeat(4 << 20)))),
        ("431 headers-too-large", get(&"cookie: a=b\r\n".repeat(100_000))),
        ("414 uri-too-long", format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(9 << 10))),
        ("414 uri-too-long", format!("GET /{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "a".repeat(1 << 20))),
    ];
    stage.crowd(4, seen, |index, seen| {
        for (expected, request) in &requests {
            let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
            // A flood is refused before its end; what is sent after that may take the answer with it.
            let whole = conn.send(request).is_ok();
            match conn.reply() {
                Some(reply) => {
                    seen.answered(Some(&reply));
                    let long = request.len() > 1 << 20 && reply.status >= 400;
                    seen.check(reply.key() == *expected || long, || {
                        format!("{} instead of {expected}: {request:.80}", reply.key())
                    });
                }
                None => {
                    seen.check(!whole || request.len() > 64 << 10, || format!("no answer, expected {expected}: {request:.80}"))
                }
            }
        }
        // Trailers and the extensions of chunks are bounded too.
        for flood in [
            format!("0\r\n{}\r\n", many(10_000)),
            format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(1 << 20)),
            "1;a=b\r\nx\r\n".repeat(100_000),
        ] {
            let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
            let head = http::head("POST", &stage.target("waits"), &[("transfer-encoding", "chunked")], 0);
            let _refused_midway = conn.send(head + &flood);
            conn.finish();
            if let Some(reply) = conn.reply() {
                seen.answered(Some(&reply));
            }
        }
    });
    Ok(())
}

/// Bytes, and how many requests a strict reader sees in them that reach a function.
fn corpus(target: &str) -> Vec<(String, usize)> {
    let smuggled = format!("GET {target}?smuggled HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let post = |headers: &str, body: &str| format!("POST {target} HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n{body}");
    let chunked = format!("0\r\n\r\n{smuggled}");
    let len = smuggled.len();
    let mut all = vec![
        // Both framings: one request at most, and the connection ends.
        (post("content-length: 5\r\ntransfer-encoding: chunked\r\n", &chunked), 1),
        (post(&format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", 5 + len), &chunked), 1),
        // Lengths that differ, or are none.
        (post(&format!("content-length: 0\r\ncontent-length: {len}\r\n"), &smuggled), 0),
        (post(&format!("content-length: 0, {len}\r\n"), &smuggled), 0),
        (post("content-length: -1\r\n", &smuggled), 0),
        (post("content-length: +0\r\n", &smuggled), 0),
        (post("content-length: 0x0\r\n", &smuggled), 0),
        (post("content-length: 0 0\r\n", &smuggled), 0),
        (post("content-length: 99999999999999999999\r\n", &smuggled), 0),
        // Codings that are none, or are hidden.
        (post("transfer-encoding: xchunked\r\n", &chunked), 0),
        (post("transfer-encoding: chunked, identity\r\n", &chunked), 0),
        (post("transfer-encoding: identity, chunked, gzip\r\n", &chunked), 0),
        (post("transfer-encoding : chunked\r\n", &chunked), 0),
        (post(" transfer-encoding: chunked\r\n", &chunked), 0),
        (post("x: y\r\n transfer-encoding: chunked\r\n", &chunked), 0),
        (post("transfer-encoding:\r\n chunked\r\n", &chunked), 0),
        (post("transfer\x00-encoding: chunked\r\n", &chunked), 0),
        (post("x: a\x00b\r\n", &smuggled), 0),
        (post("x: a\rb\r\n", &smuggled), 0),
        // Chunks that are none.
        (post("transfer-encoding: chunked\r\n", &format!("0x0\r\n\r\n{smuggled}")), 0),
        (post("transfer-encoding: chunked\r\n", &format!("-0\r\n\r\n{smuggled}")), 0),
        (post("transfer-encoding: chunked\r\n", &format!("ffffffffffffffff1\r\n\r\n{smuggled}")), 0),
        (post("transfer-encoding: chunked\r\n", &format!("1\r\nxx\r\n0\r\n\r\n{smuggled}")), 0),
        // Who is meant.
        (format!("GET {target} HTTP/1.1\r\n\r\n{smuggled}"), 0),
        (format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nhost: other\r\n\r\n{smuggled}"), 0),
        (format!("GET http://other{target} HTTP/1.1\r\nhost: localhost\r\n\r\n{smuggled}"), 0),
        (format!("CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\n\r\n{smuggled}"), 0),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 0),
        (format!("GET {target} HTTP/9.9\r\nhost: localhost\r\n\r\n{smuggled}"), 0),
        (format!("GET {target}\r\n\r\n{smuggled}"), 0),
        (format!("POST {target} HTTP/1.0\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n{chunked}"), 0),
        // Two requests that are two.
        (format!("{smuggled}{smuggled}"), 2),
        (post("content-length: 5\r\n", &format!("hello{smuggled}")), 2),
        (post("transfer-encoding: chunked\r\n", &format!("5\r\nhello\r\n0\r\n\r\n{smuggled}")), 2),
        // An upgrade is not made: what follows is a request.
        (format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n{smuggled}"), 2),
    ];
    // Each hides the framing behind another character that some readers pass over.
    for hidden in ["\x0b", "\x0c", "\u{a0}", "\x01", "\x7f", "_", "\"", "(", ",", ";", "=", "@", "[", "\\", "/"] {
        all.push((
            post(&format!("transfer-encoding{hidden}: chunked\r\ncontent-length: 0\r\n"), &smuggled),
            if hidden == "_" { 2 } else { 0 },
        ));
        // An empty element of a list is none (RFC 9110, 5.6.1).
        all.push((post(&format!("transfer-encoding: {hidden}chunked\r\n"), &chunked), if hidden == "," { 2 } else { 0 }));
        all.push((post(&format!("transfer-encoding: chunked{hidden}\r\n"), &chunked), 0));
        all.push((post(&format!("content-length: 0{hidden}\r\n"), &smuggled), 0));
    }
    all
}

/// How many requests reach a function is what the strict reader sees: never more.
fn smuggle(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let target = stage.target("good");
    for (bytes, requests) in corpus(&target) {
        let before = started(stage)?;
        let Ok(mut conn) = stage.connect(0) else { return seen_none(seen) };
        let _refused_midway = conn.send(&bytes);
        // Who has said that nothing more comes is owed no second answer: so that is said once the answers are there.
        let mut answers = 0;
        while answers < requests.max(1) {
            let Some(reply) = conn.reply() else { break };
            seen.answered(Some(&reply));
            answers += 1;
            if reply.header("hob-error").is_some() {
                break;
            }
        }
        conn.finish();
        while let Some(reply) = conn.reply() {
            seen.answered(Some(&reply));
        }
        let ran = usize::try_from(started(stage)? - before)?;
        // Where chunks are what is wrong, the function has begun: it reads an error.
        let begun = usize::from(requests == 0 && bytes.contains("transfer-encoding: chunked\r\n\r\n"));
        seen.check(ran <= requests + begun, || format!("{ran} requests ran, {requests} were sent: {bytes:?}"));
        seen.check(answers > 0, || format!("no answer: {bytes:?}"));
        seen.check(requests < 2 || ran == requests, || format!("{ran} requests ran, {requests} were sent: {bytes:?}"));
    }
    Ok(())
}

fn seen_none(seen: &mut Seen) -> anyhow::Result<()> {
    seen.complain("no connection");
    Ok(())
}

/// How often the function was started.
fn started(stage: &Stage<'_>) -> anyhow::Result<u64> {
    let starts = stage.node.inspect("good")?["usage"]["starts"].clone();
    Ok(starts.as_object().context("no starts")?.values().filter_map(serde_json::Value::as_u64).sum())
}

fn pipelines(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let target = stage.target("echo");
    let count = stage.times(3000, 100_000);
    let mut conn = stage.connect(0)?;
    let mut sender = Vec::new();
    for number in 0..count {
        let nonce = format!("number {number}");
        sender.extend_from_slice(http::head("POST", &target, &[], nonce.len()).as_bytes());
        sender.extend_from_slice(nonce.as_bytes());
    }
    let mut writer = conn.writer()?;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || std::io::Write::write_all(&mut writer, &sender));
        for number in 0..count {
            let Some(reply) = conn.reply() else {
                seen.complain(format!("the connection ended at request {number} of {count}"));
                break;
            };
            let right = reply.body == guests::victims_answer(format!("number {number}").as_bytes());
            seen.answered(Some(&reply));
            if !right {
                seen.complain(format!("answer {number} is out of order, or of another: {}", reply.text()));
                break;
            }
        }
        // It ends when the connection does.
        drop(conn);
        let sent = sending.join();
        seen.check(matches!(sent, Ok(Ok(()))), || format!("not all of it could be sent: {sent:?}"));
    });
    Ok(())
}

fn churn(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(4, seen, |index, seen| {
        for turn in 0..stage.times(400, 20_000) {
            stage.get(index + 4 * turn, "good", seen);
        }
    });
    Ok(())
}

/// Takes every connection there is, and holds them: who looks after the node is answered, and so are the connections that are there.
fn exhaust(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let node = stage.node;
    let from = stage.from();
    let over = std::sync::atomic::AtomicBool::new(false);
    let used = crate::observe::processor_time(node.pid())?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut longest) = (0, Duration::ZERO);
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                let began = Instant::now();
                let reply = node.ask("GET", "/readyz", b"")?;
                ensure!(reply.status == 200, "the control port answers {}", reply.key());
                longest = longest.max(began.elapsed());
                asked += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            anyhow::Ok((asked, longest))
        });
        let plan = Plan {
            to: node.data,
            count: stage.times(1500, 5000),
            from: &from,
            first: b"",
            drip: None,
            reads: Reads::All,
            until: Duration::from_secs(15),
            done: None,
        };
        let ended = swarm::run(&plan, seen);
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        match asking.join() {
            Ok(Ok((asked, longest))) => {
                seen.note(format!("the control port answered {asked} times, after at most {longest:.1?}"));
                if longest > Duration::from_secs(1) {
                    seen.slow.push(format!("the control port took {longest:.1?}"));
                }
            }
            Ok(Err(error)) => seen.complain(format!("the control port, while connections ran out: {error:#}")),
            Err(_) => seen.complain("the thread that asks panicked"),
        }
        ended?;
        anyhow::Ok(())
    })?;
    let share = (crate::observe::processor_time(node.pid())? - used).as_secs_f64() / began.elapsed().as_secs_f64();
    seen.check(share < 1.0, || format!("the node took {share:.1} processors while connections waited"));
    let freed = Instant::now();
    let again = crate::case::eventually(Duration::from_secs(1), || {
        let reply = http::request(node.data, HOME, "GET", "/good", &[("connection", "close")], b"");
        Ok(reply.is_ok_and(|reply| reply.status == 200))
    })?;
    seen.check(again, || "a second after the connections ended, the data port does not answer".into());
    seen.note(format!("new connections were answered {:.1?} after the end", freed.elapsed()));
    Ok(())
}

/// Answers with the request's body as its record, whatever that is.
fn forgers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let text = does(
        "(local $len i32) (local $n i32)
         (local.set $len (call $request_read (i32.const 0) (i32.const 30000)))
         (local.set $n (i32.load (i32.const 12)))
         (call $respond (i32.sub (local.get $len) (local.get $n)) (local.get $n))",
    );
    deployed(stage, "forges", &text, "")
}

fn record(status: u16, headers: &[(&[u8], &[u8])], body: &[u8]) -> Vec<u8> {
    let u32_of = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let count = u16::try_from(headers.len()).unwrap_or(u16::MAX);
    let mut record = [&[0; 4][..], &status.to_le_bytes(), &count.to_le_bytes(), &u32_of(body.len())].concat();
    for (name, value) in headers {
        record.extend_from_slice(&u32_of(name.len()));
        record.extend_from_slice(&u32_of(value.len()));
        record.extend_from_slice(name);
        record.extend_from_slice(value);
    }
    record.extend_from_slice(body);
    record
}

const NAMES: [&[u8]; 14] = [
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"keep-alive",
    b"upgrade",
    b"te",
    b"trailer",
    b"hob-error",
    b"hob-executed",
    b"set-cookie",
    b"location",
    b"x\r\ny",
    b"",
    b"x y",
];
const VALUES: [&[u8]; 8] =
    [b"0", b"999999", b"chunked", b"close", b"a\r\nhob-error: internal", b"a\r\n\r\nHTTP/1.1 200 OK", b"\0", b"gzip, chunked"];
const BODY: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";

/// Whatever a guest answers, the client sees one response, framed by the host, and the next one after it.
fn responses(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(4, seen, |index, seen| {
        let mut dice = Dice::new(1 + index + 4 * stage.round);
        let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
        for turn in 0..stage.times(500, 100_000) {
            let count = dice.below(4);
            let headers: Vec<(&[u8], &[u8])> =
                (0..count).map(|_| (NAMES[dice.below(NAMES.len())], VALUES[dice.below(VALUES.len())])).collect();
            let status = [200, 201, 204, 304, 404, 599, 100, 101, 103, 199, 600, 0, 65_535, 999][dice.below(14)];
            let mut bytes = record(status, &headers, BODY);
            if dice.below(5) == 0 {
                let at = dice.below(bytes.len());
                bytes[at] = dice.next().to_le_bytes()[0];
            }
            conn.request("POST", "/forges", &[], &bytes);
            let reply = conn.reply();
            let holds = reply.as_ref().is_some_and(|reply| is_framed(reply, &bytes));
            seen.check(holds, || format!("{turn}: {reply:?} to the record {bytes:?}"));
            // A guest may well answer 500 itself; the host never.
            seen.saw(&reply.as_ref().map_or("closed".into(), |reply| reply.status.to_string()));
            if reply.is_none_or(|reply| reply.header("connection") == Some("close")) {
                match stage.connect(index) {
                    Ok(next) => conn = next,
                    Err(_) => return seen.complain("no connection"),
                }
            }
        }
    });
    Ok(())
}

fn is_framed(reply: &Reply, record: &[u8]) -> bool {
    let forbidden = ["transfer-encoding", "keep-alive", "upgrade", "te", "trailer"];
    let is_hobs = reply.header("hob-error").is_some();
    let count = |name: &str| reply.headers.iter().filter(|(have, _)| have == name).count();
    reply.whole
        && reply.headers.iter().all(|(name, _)| !forbidden.contains(&name.as_str()))
        && count("content-length") <= 1
        && reply.header("hob-error") != Some("internal")
        && (200..600).contains(&reply.status)
        && (!is_hobs || reply.status == 502)
        && (is_hobs
            || matches!(reply.status, 204 | 304 | 500)
            || record.ends_with(&reply.body)
            || record.windows(reply.body.len().max(1)).any(|part| part == reply.body))
}
