//! Streams of HTTP/1: whatever bytes a connection carries, the node starts no more requests than an independent strict parser sees in them,
//! answers no more than those and one refusal, and closes when nothing behind may be believed.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::corpus::Corpus;
use crate::dice::Dice;
use crate::local::{Local, on_all_threads};
use crate::report::Report;
use crate::smuggle;
use crate::strict::{self, End, Request};

/// Longer than the head that a node takes, so that its bound is met.
const LEN_MAX: usize = 80 << 10;
/// How a response begins.
const VERSIONS: [&str; 2] = ["HTTP/1.1 ", "HTTP/1.0 "];
/// A server that has not closed by then will not.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads its request to the end, then answers 200; traps if the body breaks off.
const GUEST: &str = r#"(module
  (import "hob1" "body_read" (func $body_read (param i32 i32) (result i32)))
  (import "hob1" "respond" (func $respond (param i32 i32)))
  (memory (export "memory") 1)
  (data (i32.const 4) "\c8\00\00\00\00\00\00\00")
  (func (export "hob_handle") (local $read i32)
    (loop $more
      (local.set $read (call $body_read (i32.const 16384) (i32.const 16384)))
      (br_if $more (i32.gt_s (local.get $read) (i32.const 0))))
    (if (i32.lt_s (local.get $read) (i32.const 0)) (then unreachable))
    (call $respond (i32.const 0) (i32.const 12))))"#;

/// A port, and what its guest is reached by.
struct Door {
    addr: SocketAddr,
    target: &'static str,
    corpus: Corpus,
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let local = Local::start(&["logs.function_bytes=16KiB"])?;
    local.deploy("a", &wat::parse_str(GUEST)?, "")?.map_err(|fault| anyhow::anyhow!("{fault}"))?;
    let door = |addr, target| anyhow::Ok(Door { addr, target, corpus: Corpus::of("http1", smuggle::corpus(target))? });
    let doors = [door(local.node.addr(), "/a")?, door(local.node.control_addr(), "/v1/functions/a/invoke")?];
    on_all_threads(report, runs, |runs, report| {
        for number in runs {
            let mut dice = Dice::new(seed, number);
            let door = dice.pick(&doors);
            let input = door.corpus.input(&mut dice, number, LEN_MAX);
            report.count(door.corpus.check(&input, |input| knock(door, input))?);
        }
        Ok(())
    })?;
    ensure!(report.of("answered") > 0, "no stream was answered: that is no test of what is");
    local.stop();
    Ok(())
}

/// Sends a stream, and compares what comes back with what the strict parser saw.
fn knock(door: &Door, stream: &[u8]) -> anyhow::Result<&'static str> {
    let expected = strict::parse(stream);
    let mut conn = TcpStream::connect(door.addr)?;
    conn.set_read_timeout(Some(PATIENCE))?;
    conn.set_write_timeout(Some(PATIENCE))?;
    // It may be refused before all of it is sent.
    let _refused = conn.write_all(stream);
    match expected.end {
        // The server closes by itself.
        End::Close => {}
        End::Open => {
            let last = format!("GET {}?end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", door.target);
            let _refused = conn.write_all(last.as_bytes());
        }
        End::Cut => drop(conn.shutdown(Shutdown::Write)),
    }
    let mut bytes = Vec::new();
    conn.read_to_end(&mut bytes).with_context(|| format!("{expected:?}, and the node did not close"))?;
    let statuses = statuses(&bytes)?;
    let seen = expected.requests.len() + usize::from(expected.end == End::Open);
    let whole = expected.requests.iter().filter(|request| matches!(request, Request::Whole(_) | Request::BadTrailers)).count();
    let whole = whole + usize::from(expected.end == End::Open);
    let good = statuses.iter().filter(|status| **status == 200).count();
    ensure!(good <= whole, "{good} requests were answered 200; a strict parser sees {whole}: {expected:?}, {statuses:?}");
    ensure!(statuses.len() <= seen + 1, "{} answers to {seen} requests: {expected:?}, {statuses:?}", statuses.len());
    ensure!(!statuses.contains(&500), "{statuses:?}");
    Ok(match (good, statuses.len()) {
        (0, 0) => "no answer",
        (0, _) => "refused",
        _ => "answered",
    })
}

/// The statuses in what a server sent.
fn statuses(mut bytes: &[u8]) -> anyhow::Result<Vec<u16>> {
    let mut all = Vec::new();
    while !bytes.is_empty() {
        let Some(len) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            bail!("no head in {:?}", String::from_utf8_lossy(bytes));
        };
        let head = std::str::from_utf8(&bytes[..len])?.to_ascii_lowercase();
        bytes = &bytes[len + 4..];
        let status = VERSIONS
            .iter()
            .find_map(|version| head.strip_prefix(&version.to_ascii_lowercase()))
            .and_then(|rest| rest.get(..3))
            .and_then(|status| status.parse().ok());
        let status: u16 = status.with_context(|| format!("no status in {head:?}"))?;
        let body_len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(Ok(0), str::parse::<usize>)?;
        // The answer to a HEAD announces a body that it has not.
        if !bytes.is_empty() && !VERSIONS.iter().any(|version| bytes.starts_with(version.as_bytes())) {
            bytes = bytes.get(body_len..).with_context(|| format!("a body of {body_len} bytes breaks off"))?;
        }
        if status != 100 {
            all.push(status);
        }
    }
    Ok(all)
}
