//! Servers that functions ask, and what functions ask of them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::b::Dice;
use crate::case::{Ready, Seen, Stage, deployed};
use crate::guests::handler_with;
use crate::http::Reply;
use crate::observe::descriptors;
use crate::world::server;

pub(super) const IMPORTS: &str = "
  (import \"hob1\" \"http_send\" (func $send (param i32 i32) (result i32)))
  (import \"hob1\" \"http_head\" (func $head (param i32 i32 i32) (result i32)))
  (import \"hob1\" \"http_read\" (func $read (param i32 i32 i32) (result i32)))
  (import \"hob1\" \"http_close\" (func $close (param i32)))";

/// The record of a request (`guest-sdk/abi.md`).
pub(super) fn record(method: &str, url: &str, headers: &[(&[u8], &[u8])], body: &[u8]) -> Vec<u8> {
    let u32_of = |len: usize| u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    let u16_of = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_le_bytes();
    let mut record =
        [&u32_of(1)[..], &u16_of(method.len()), &u16_of(headers.len()), &u32_of(url.len()), &u32_of(body.len())].concat();
    record.extend_from_slice(method.as_bytes());
    record.extend_from_slice(url.as_bytes());
    for (name, value) in headers {
        record.extend_from_slice(&u32_of(name.len()));
        record.extend_from_slice(&u32_of(value.len()));
        record.extend_from_slice(name);
        record.extend_from_slice(value);
    }
    record.extend_from_slice(body);
    record
}

/// Bytes as WebAssembly text has them in a string.
pub(super) fn escaped(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("\\{byte:02x}")).collect()
}

/// Sends the request whose record is the body of its own. Answers the status, or the number of what was wrong; and the bytes of the body.
pub(super) fn fetches() -> String {
    handler_with(
        IMPORTS,
        "(memory (export \"memory\") 3)",
        "(func (export \"hob_handle\") (local $len i32) (local $n i32) (local $response i32) (local $got i32)
           (local.set $len (call $request_read (i32.const 0) (i32.const 16384)))
           (local.set $n (i32.load (i32.const 12)))
           (local.set $response (call $send (i32.sub (local.get $len) (local.get $n)) (local.get $n)))
           (i32.store (i32.const 20000) (local.get $response))
           (if (i32.ge_s (local.get $response) (i32.const 0)) (then
             (drop (call $head (local.get $response) (i32.const 65536) (i32.const 60000)))
             (i32.store (i32.const 20000) (i32.load16_u (i32.const 65540)))
             (loop $more
               (local.set $got (call $read (local.get $response) (i32.const 65536) (i32.const 32000)))
               (if (i32.lt_s (local.get $got) (i32.const 0)) (then (i32.store (i32.const 20000) (local.get $got))))
               (if (i32.gt_s (local.get $got) (i32.const 0)) (then
                 (i32.store (i32.const 20004) (i32.add (i32.load (i32.const 20004)) (local.get $got)))
                 (br $more))))
             (call $close (local.get $response))))
           (call $answer (i32.const 200) (i32.const 20000) (i32.const 8)))",
    )
}

/// Opens responses and keeps them until it gets no more. Answers how many there were.
fn hoards() -> String {
    handler_with(
        IMPORTS,
        "(memory (export \"memory\") 1)",
        "(func (export \"hob_handle\") (local $len i32) (local $n i32) (local $count i32)
           (local.set $len (call $request_read (i32.const 0) (i32.const 16384)))
           (local.set $n (i32.load (i32.const 12)))
           (loop $more
             (if (i32.lt_s (call $send (i32.sub (local.get $len) (local.get $n)) (local.get $n)) (i32.const 0))
               (then (call $number (local.get $count)) return))
             (local.set $count (i32.add (local.get $count) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $count) (i32.const 10000)))))",
    )
}

/// What `fetches` answered: a status or what was wrong, and the length of a body.
pub(super) fn result(reply: &Reply) -> Option<(i32, i32)> {
    let number = |at: usize| Some(i32::from_le_bytes(reply.body.get(at..at + 4)?.try_into().ok()?));
    Some((number(0)?, number(4)?))
}

fn url(path: &str) -> String {
    format!("http://{}{path}", server().addr)
}

pub(super) fn fetcher(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let manifest = format!("[limits]\nwall = \"30s\"\n[grants]\nhttp = [\"{}\"]\n", url(""));
    deployed(stage, "hoards", &hoards(), &manifest)?;
    deployed(stage, "fetches", &fetches(), &manifest)
}

/// Responses that one invocation may have open, and requests of a tenant at once: the node's defaults.
const EACH_MAX: i32 = 6;
const TENANT_MAX: usize = 64;

/// Many at once, and invocations that keep what they get: sockets are bounded, whoever asks.
pub(super) fn many(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let before = descriptors(stage.node.pid())?;
    let (over, mut most) = (AtomicBool::new(false), 0);
    let (hoard, good) = (record("GET", &url("/half"), &[], b""), record("GET", &url("/"), &[], b""));
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = descriptors(stage.node.pid()).map_or(most, |now| most.max(now));
                std::thread::sleep(Duration::from_millis(5));
            }
            most
        });
        stage.crowd(50, seen, |index, seen| {
            if index % 5 == 0 {
                let reply = stage.ask(index, "POST", "/hoards", &[], &hoard, seen);
                let kept = reply.as_ref().and_then(|reply| Some(i32::from_le_bytes(reply.body.get(..4)?.try_into().ok()?)));
                seen.check(kept.is_some_and(|kept| kept <= EACH_MAX), || format!("an invocation had {kept:?} responses open"));
                return;
            }
            for _ in 0..stage.times(10, 200) {
                let reply = stage.ask(index, "POST", "/fetches", &[], &good, seen);
                let got = reply.as_ref().and_then(result);
                seen.check(got == Some((200, 5)), || format!("a good server answered {got:?}"));
            }
        });
        over.store(true, Ordering::SeqCst);
        most = watch.join().unwrap_or(usize::MAX);
    });
    // Of the attackers, of the victim that renews its own, and at most two sockets for each place: one that is being made, one that goes.
    let bound = before + 50 + 16 + 2 * TENANT_MAX;
    seen.check(most <= bound, || format!("{most} descriptors, where {bound} may be"));
    seen.note(format!("{before} descriptors before, {most} at most"));
    Ok(())
}

/// Servers that are silent, slow, endless, or speak another language: each ends in its own number, in time.
pub(super) fn evil(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    const PATHS: [(&str, i32); 12] = [
        ("/silent", -15),
        ("/half", -15),
        ("/informs", -15),
        ("/cut", -10),
        ("/hangs-up", -10),
        ("/bad-chunk", -10),
        ("/no-http", -10),
        ("/endless", -5),
        ("/announced", -5),
        ("/headers", -5),
        ("/long-header", -5),
        ("/exact", 200),
    ];
    stage.crowd(stage.times(4, 24), seen, |index, seen| {
        for (path, expected) in PATHS.iter().cycle().skip(3 * index).take(PATHS.len()) {
            let reply = stage.ask(index, "POST", "/fetches", &[], &record("GET", &url(path), &[], b""), seen);
            let got = reply.as_ref().and_then(result).map(|(result, _)| result);
            seen.check(got == Some(*expected), || format!("{path}: {got:?}, expected {expected}"));
        }
    });
    Ok(())
}

const NAMES: [&[u8]; 20] = [
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"keep-alive",
    b"upgrade",
    b"te",
    b"trailer",
    b"expect",
    b"proxy-authorization",
    b"forwarded",
    b"x-forwarded-for",
    b"hob-hops",
    b"hob-tenant",
    b"x",
    b"x\r\ninjected: y",
    b"x y",
    b"",
    b"x:",
    b"\xff",
];
const VALUES: [&[u8]; 9] = [
    b"0",
    b"4",
    b"999",
    b"chunked",
    b"close",
    b"a\r\ninjected: b",
    b"a\r\n\r\nGET /injected HTTP/1.1\r\n\r\n",
    b"\0",
    b"127.0.0.1",
];

/// Whatever headers a guest sets, a server gets one request, framed by the host, and no word of the host's own that the guest chose.
pub(super) fn forge_headers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let before = server().heads().len();
    stage.crowd(4, seen, |index, seen| {
        let mut dice = Dice::new(1 + index + 4 * stage.round);
        for _ in 0..stage.times(60, 5000) {
            let headers: Vec<(&[u8], &[u8])> =
                (0..1 + dice.below(3)).map(|_| (NAMES[dice.below(NAMES.len())], VALUES[dice.below(VALUES.len())])).collect();
            let body: &[u8] = if dice.below(2) == 0 { b"" } else { b"four" };
            let method = ["GET", "POST", "DELETE"][dice.below(3)];
            stage.ask(index, "POST", "/fetches", &[], &record(method, &url("/"), &headers, body), seen);
        }
    });
    let heads = server().heads().split_off(before);
    seen.check(!heads.is_empty(), || "not one request was sent".into());
    for request in &heads {
        if let Some(what) = objection(request, server().addr) {
            seen.complain(format!("{what}: {request:?}"));
        }
    }
    Ok(())
}

/// What is wrong with a request as the server got it.
fn objection(request: &str, addr: SocketAddr) -> Option<&'static str> {
    let (head, body) = request.split_once("\r\n\r\n")?;
    let (line, headers) = head.split_once("\r\n").unwrap_or((head, ""));
    let of = |name: &str| -> Vec<&str> {
        headers
            .lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(have, _)| *have == name)
            .map(|(_, value)| value)
            .collect()
    };
    let forbidden = [
        "transfer-encoding",
        "connection",
        "keep-alive",
        "upgrade",
        "te",
        "trailer",
        "expect",
        "proxy-authorization",
        "injected",
    ];
    let len = body.len().to_string();
    let framed = match of("content-length")[..] {
        [] => body.is_empty(),
        [one] => one == len,
        _ => false,
    };
    if !line.ends_with(" / HTTP/1.1") {
        Some("another request")
    } else if of("host") != [addr.to_string()] {
        Some("another host")
    } else if of("hob-hops") != ["1"] {
        Some("hops of the guest's choice")
    } else if forbidden.iter().any(|name| !of(name).is_empty()) {
        Some("a header of the host's own")
    } else {
        (!framed).then_some("another length")
    }
}
