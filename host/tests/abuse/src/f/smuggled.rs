//! Requests that are hidden in others.

use anyhow::Context as _;

use crate::case::{Seen, Stage};

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
        (format!("GET {target} HTTP/1.1\r\nhost: localhost,other\r\n\r\n{smuggled}"), 0),
        (format!("GET {target} HTTP/1.1\r\nhost: localhost:99999\r\n\r\n{smuggled}"), 0),
        (format!("GET http://other@localhost{target} HTTP/1.1\r\nhost: other@localhost\r\n\r\n{smuggled}"), 0),
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
        // With a comma it is a list with an empty element, which a reader is to pass over (RFC 9110, 5.6.1). Some do not: Hob takes the word
        // alone, as its strict reader does, and 400 with the end of the connection is read alike by all.
        all.push((post(&format!("transfer-encoding: {hidden}chunked\r\n"), &chunked), 0));
        all.push((post(&format!("transfer-encoding: chunked{hidden}\r\n"), &chunked), 0));
        all.push((post(&format!("content-length: 0{hidden}\r\n"), &smuggled), 0));
    }
    all
}

/// How many requests reach a function is what the strict reader sees: never more.
pub(super) fn smuggle(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let target = stage.target("good");
    for (bytes, requests) in corpus(&target) {
        let before = started(stage)?;
        let Ok(mut conn) = stage.connect(0) else { return seen_none(seen) };
        let _refused_midway = conn.send(&bytes);
        // Who has said that nothing more comes is owed no second answer: so that is said once the answers are there.
        let (mut answers, mut closes) = (0, false);
        while answers < requests.max(1) && !closes {
            let Some(reply) = conn.reply() else { break };
            seen.answered(Some(&reply));
            answers += 1;
            // What follows is owed no answer (RFC 9112, 9.6): so it says who has not read a body to its end when the answer is there. The
            // control port has its functions run on other threads, so there either may come first.
            closes = reply.header("hob-error").is_some() || reply.header("connection") == Some("close");
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
        let owed = if closes { answers } else { requests };
        seen.check(requests < 2 || ran == owed, || format!("{ran} requests ran, {owed} of {requests} were owed: {bytes:?}"));
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
