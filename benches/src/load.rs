//! The load generator: a fixed number of keep-alive connections, each with one request at a time, from one thread.
//!
//! Closed loop, so it measures throughput and the latency under that load. Of the responses it understands what it needs to find
//! their end: `content-length` and chunked.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

/// What one run measured.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

struct Connection {
    stream: TcpStream,
    sent: Instant,
    received: Vec<u8>,
}

/// Longest silence of a server.
const PATIENCE: Duration = Duration::from_secs(5);
const RESPONSE_LEN_MAX: usize = 64 << 10;

/// Runs `GET target` on `connections` connections for `duration`.
///
/// # Errors
/// When a connection fails, or an answer is not 200.
pub(crate) fn run(addr: SocketAddr, target: &str, connections: usize, duration: Duration) -> anyhow::Result<Measured> {
    let request = format!("GET {target} HTTP/1.1\r\nhost: {addr}\r\n\r\n");
    let mut poll = Poll::new()?;
    let mut open = Vec::with_capacity(connections);
    for index in 0..connections {
        let stream = std::net::TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
        open.push(Connection { stream, sent: Instant::now(), received: Vec::with_capacity(4096) });
    }
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let began = Instant::now();
    for connection in &mut open {
        send(connection, request.as_bytes())?;
    }
    let mut events = Events::with_capacity(connections);
    let mut done = 0u64;
    let mut last = began;
    while began.elapsed() < duration {
        // Never sleeps: waking a sleeping client would be charged to the server's core (an interrupt to another virtual processor
        // costs as much as a whole answer), and more so the slower the server is.
        poll.poll(&mut events, Some(Duration::ZERO))?;
        match events.is_empty() {
            true => ensure!(last.elapsed() < PATIENCE, "no answer for {PATIENCE:?}"),
            false => last = Instant::now(),
        }
        for event in &events {
            let connection = &mut open[event.token().0];
            if receive(connection)? {
                let nanos = u64::try_from(connection.sent.elapsed().as_nanos()).unwrap_or(u64::MAX);
                latencies.saturating_record(nanos);
                done += 1;
                connection.received.clear();
                send(connection, request.as_bytes())?;
            }
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let (per_second, micros) = (done as f64 / began.elapsed().as_secs_f64(), |q| latencies.value_at_quantile(q) as f64 / 1e3);
    Ok(Measured { per_second, p50_us: micros(0.5), p99_us: micros(0.99) })
}

fn send(connection: &mut Connection, request: &[u8]) -> anyhow::Result<()> {
    connection.sent = Instant::now();
    // A request is far smaller than an empty send buffer.
    ensure!(connection.stream.write(request)? == request.len(), "the request did not fit");
    Ok(())
}

/// Reads what is there; true when a whole response is.
fn receive(connection: &mut Connection) -> anyhow::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match connection.stream.read(&mut buffer) {
            Ok(0) => bail!("the server closed the connection after {:?}", String::from_utf8_lossy(&connection.received)),
            Ok(count) => connection.received.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(connection.received.len() < RESPONSE_LEN_MAX, "the response is too long");
    is_whole(&connection.received)
}

fn is_whole(bytes: &[u8]) -> anyhow::Result<bool> {
    let Some(head_len) = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else { return Ok(false) };
    let head = std::str::from_utf8(&bytes[..head_len]).context("the head is not text")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "expected 200, found {:?}", String::from_utf8_lossy(bytes));
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(bytes.len() >= head_len + value.trim().parse::<usize>()?);
        }
    }
    Ok(bytes.ends_with(b"\r\n0\r\n\r\n"))
}
