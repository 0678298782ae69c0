//! Heads and bodies that are larger than anybody takes.

use crate::case::{Seen, Stage};
use crate::http;

pub(super) fn giants(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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

pub(super) fn headers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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
