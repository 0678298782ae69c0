//! Responses of guests that would be more than one, or another.

use crate::b::Dice;
use crate::case::{Ready, Seen, Stage, deployed};
use crate::guests::does;
use crate::http::Reply;

/// Answers with the request's body as its record, whatever that is.
pub(super) fn forgers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
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
pub(super) fn responses(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
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
