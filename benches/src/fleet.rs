//! Many functions on one node, for scenarios `density` and `restart`: the example `hello` with 4 KiB of data of its own in each
//! distinct module, deployed over the control port.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hob_bench_work::Dice;
use wasmparser::{Parser, Payload};

use crate::load;

/// Bytes of data that each module has of its own.
const OWN_BYTES: u32 = 4096;
const PAGE_BYTES: u64 = 64 << 10;
/// Deploys at once.
pub(crate) const CLIENTS: usize = 8;
/// Longest time that an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Name of the function with this number.
pub(crate) fn name(number: usize) -> String {
    format!("f-{number}")
}

/// `module` with a page of memory more, at whose beginning lie 4 KiB that depend on `seed`.
///
/// # Errors
/// When it is no core module with one memory of its own and data.
pub(crate) fn variant(module: &[u8], seed: u64) -> anyhow::Result<Vec<u8>> {
    let mut dice = Dice(seed);
    let own: Vec<u8> = (0..OWN_BYTES / 8).flat_map(|_| dice.next().to_le_bytes()).collect();
    let mut out = module[..8].to_vec();
    let mut address = None;
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload?;
        let Some((id, range)) = payload.as_section() else { continue };
        let section = match &payload {
            Payload::MemorySection(memories) => {
                let memory = memories.clone().into_iter().next().context("the module has no memory")??;
                ensure!(memories.count() == 1 && memory.maximum.is_none(), "expected one memory without a maximum");
                address = Some(memory.initial * PAGE_BYTES);
                // One memory, limits without a maximum.
                [vec![1, 0], unsigned(memory.initial + 1)].concat()
            }
            Payload::DataCountSection { count, .. } => unsigned(u64::from(*count) + 1),
            Payload::DataSection(segments) => {
                let at = i64::try_from(address.context("the data comes before the memory")?)?;
                let rest = &module[range.start + unsigned(segments.count().into()).len()..range.end];
                // An active segment: i32.const, its address, end; then its length.
                let head = [vec![0, 0x41], signed(at), vec![0x0b], unsigned(OWN_BYTES.into())].concat();
                [&unsigned(u64::from(segments.count()) + 1)[..], rest, &head, &own].concat()
            }
            _ => module[range].to_vec(),
        };
        out.push(id);
        out.extend(unsigned(section.len() as u64));
        out.extend(section);
    }
    Ok(out)
}

/// LEB128.
fn unsigned(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            out.push(low);
            return out;
        }
        out.push(low | 0x80);
    }
}

/// Signed LEB128 of a number that is not negative.
fn signed(value: i64) -> Vec<u8> {
    let mut out = unsigned(value.unsigned_abs());
    // The highest bit of the last group would be a sign.
    if out.last().is_some_and(|last| last & 0x40 != 0) {
        if let Some(last) = out.last_mut() {
            *last |= 0x80;
        }
        out.push(0);
    }
    out
}

/// Deploys the functions with these numbers, function `n` being module `n % modules.len()`. Returns how many in a second.
pub(crate) fn deploy(control: SocketAddr, modules: &[Vec<u8>], numbers: Range<usize>) -> anyhow::Result<f64> {
    let (next, end) = (AtomicUsize::new(numbers.start), numbers.end);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let client = || -> anyhow::Result<()> {
            let mut client = Client::connect(control)?;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok(());
                }
                let module = &modules[number % modules.len()];
                let head = format!("PUT /v1/functions/{} HTTP/1.1\r\ncontent-type: application/wasm\r\n", name(number));
                let answer = client.exchange(&head, module)?;
                ensure!(answer.starts_with("HTTP/1.1 201"), "a deploy failed: {answer}");
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let count = numbers.len() as f64;
    Ok(count / began.elapsed().as_secs_f64())
}

/// One connection that is kept.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
}

impl Client {
    pub(crate) fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// Sends a request, `head` without its last empty line, and returns the whole answer as text.
    pub(crate) fn exchange(&mut self, head: &str, body: &[u8]) -> anyhow::Result<String> {
        let head = format!("{head}host: localhost\r\ncontent-length: {}\r\n\r\n", body.len());
        self.stream.write_all(&[head.as_bytes(), body].concat())?;
        let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
        while !load::is_whole(&received)? {
            let len = self.stream.read(&mut buffer)?;
            ensure!(len > 0, "the connection ended within an answer");
            received.extend_from_slice(&buffer[..len]);
        }
        Ok(String::from_utf8_lossy(&received).into_owned())
    }

    /// Calls the function with this number, which must answer.
    pub(crate) fn call(&mut self, number: usize) -> anyhow::Result<Answer> {
        let began = Instant::now();
        let answer = self.exchange(&format!("GET /{} HTTP/1.1\r\nhob-timing: 1\r\n", name(number)), b"")?;
        let total_us = began.elapsed().as_secs_f64() * 1e6;
        ensure!(answer.starts_with("HTTP/1.1 200"), "function {number} does not answer: {answer}");
        let rung = header(&answer, "hob-start").context("an answer without a rung")?.to_owned();
        let timing = header(&answer, "server-timing").context("an answer without server-timing")?;
        Ok(Answer { rung, start_us: start_us(timing), total_us })
    }
}

/// What came back from a function.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) rung: String,
    /// From admission to the guest's first host call, as the node says.
    pub(crate) start_us: f64,
    /// As the client sees it.
    pub(crate) total_us: f64,
}

fn header<'a>(answer: &'a str, name: &str) -> Option<&'a str> {
    let head = answer.split("\r\n\r\n").next()?;
    let values = head.split("\r\n").filter_map(|line| line.split_once(": "));
    values.filter(|(have, _)| have.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

/// The sum of the phases that make up a start, in microseconds.
fn start_us(timing: &str) -> f64 {
    let phases = timing.split(", ").filter_map(|entry| entry.split_once(";dur="));
    let of_start = phases.filter(|(phase, _)| matches!(*phase, "load" | "verify" | "instantiate" | "enter"));
    of_start.filter_map(|(_, millis)| millis.parse::<f64>().ok()).sum::<f64>() * 1e3
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn numbers_are_leb128() {
        assert_eq!(
            (unsigned(0), unsigned(127), unsigned(128), unsigned(624_485)),
            (vec![0], vec![127], vec![0x80, 1], vec![0xe5, 0x8e, 0x26])
        );
        assert_eq!((signed(63), signed(64), signed(1 << 20)), (vec![63], vec![0xc0, 0], vec![0x80, 0x80, 0xc0, 0]));
    }

    #[test]
    fn a_variant_is_valid_and_has_its_own_data() {
        // (module (memory 2) (data (i32.const 8) "hi"))
        let module = b"\0asm\x01\0\0\0\x05\x03\x01\0\x02\x0b\x08\x01\0\x41\x08\x0b\x02hi";
        let (one, other) = (variant(module, 1).unwrap(), variant(module, 2).unwrap());
        wasmparser::validate(&one).unwrap();
        assert!(one != other && one.len() == other.len() && one.len() > module.len() + 4096);
    }

    #[test]
    fn a_start_is_the_sum_of_its_phases() {
        let answer = "HTTP/1.1 200 OK\r\nserver-timing: queue;dur=5.0, load;dur=0.25, enter;dur=0.001\r\n\r\nx: y";
        assert!((start_us(header(answer, "Server-Timing").unwrap()) - 251.0).abs() < 1e-6);
        assert_eq!(header(answer, "x"), None);
    }
}
