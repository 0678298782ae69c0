//! The load generator: a fixed number of keep-alive connections, each with one request at a time, from one thread.
//!
//! Closed loop ([`run`]) measures throughput and the latency under that load; open loop ([`run_open`]) the latency of requests that come
//! when they come. Of the responses it understands what it needs to find
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
/// When a connection fails, or an answer is not 2xx.
pub(crate) fn run(addr: SocketAddr, target: &str, connections: usize, duration: Duration) -> anyhow::Result<Measured> {
    let request = format!("GET {target} HTTP/1.1\r\nhost: {addr}\r\n\r\n");
    let (mut poll, mut open) = connect(addr, connections)?;
    let mut latencies = histogram()?;
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
                connection.end(&mut latencies);
                done += 1;
                send(connection, request.as_bytes())?;
            }
        }
    }
    Ok(Measured::new(done, began.elapsed(), &latencies))
}

/// Connections of the open loop; a request that finds none free is sent late, and its time tells.
const OPEN_CONNECTIONS: usize = 32;

/// Sends `GET target` at `rate` requests per second for `duration`, whatever the answers do. A time counts from when its request was due.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_open(addr: SocketAddr, target: &str, rate: f64, duration: Duration) -> anyhow::Result<Measured> {
    let request = format!("GET {target} HTTP/1.1\r\nhost: {addr}\r\n\r\n");
    let (mut poll, mut open) = connect(addr, OPEN_CONNECTIONS)?;
    let mut latencies = histogram()?;
    let mut free: Vec<usize> = (0..OPEN_CONNECTIONS).collect();
    let mut events = Events::with_capacity(OPEN_CONNECTIONS);
    let began = Instant::now();
    let (mut number, mut done, mut last) = (0u32, 0u64, began);
    while began.elapsed() < duration || free.len() < OPEN_CONNECTIONS {
        let due = began + Duration::from_secs_f64(f64::from(number) / rate);
        if due <= Instant::now()
            && due < began + duration
            && let Some(index) = free.pop()
        {
            let connection = &mut open[index];
            send(connection, request.as_bytes())?;
            connection.sent = due;
            (number, last) = (number + 1, Instant::now());
        }
        poll.poll(&mut events, Some(Duration::ZERO))?;
        ensure!(free.len() == OPEN_CONNECTIONS || last.elapsed() < PATIENCE, "no answer for {PATIENCE:?}");
        for event in &events {
            let index = event.token().0;
            if receive(&mut open[index])? {
                open[index].end(&mut latencies);
                free.push(index);
                (done, last) = (done + 1, Instant::now());
            }
        }
    }
    Ok(Measured::new(done, began.elapsed(), &latencies))
}

fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000_000, 3)?)
}

fn connect(addr: SocketAddr, connections: usize) -> anyhow::Result<(Poll, Vec<Connection>)> {
    let poll = Poll::new()?;
    let mut open = Vec::with_capacity(connections);
    for index in 0..connections {
        let stream = std::net::TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(&mut stream, Token(index), Interest::READABLE)?;
        open.push(Connection { stream, sent: Instant::now(), received: Vec::with_capacity(4096) });
    }
    Ok((poll, open))
}

impl Connection {
    /// A response is whole.
    fn end(&mut self, latencies: &mut Histogram<u64>) {
        latencies.saturating_record(u64::try_from(self.sent.elapsed().as_nanos()).unwrap_or(u64::MAX));
        self.received.clear();
    }
}

impl Measured {
    fn new(done: u64, took: Duration, latencies: &Histogram<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let (per_second, micros) = (done as f64 / took.as_secs_f64(), |q| latencies.value_at_quantile(q) as f64 / 1e3);
        Self { per_second, p50_us: micros(0.5), p99_us: micros(0.99) }
    }
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

/// Whether `bytes` are a whole response.
///
/// # Errors
/// When it is not a 2xx.
pub(crate) fn is_whole(bytes: &[u8]) -> anyhow::Result<bool> {
    let Some(head_len) = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else { return Ok(false) };
    let head = std::str::from_utf8(&bytes[..head_len]).context("the head is not text")?;
    ensure!(head.starts_with("HTTP/1.1 2"), "expected 2xx, found {:?}", String::from_utf8_lossy(bytes));
    for line in head.split("\r\n") {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        if name.eq_ignore_ascii_case("content-length") {
            return Ok(bytes.len() >= head_len + value.trim().parse::<usize>()?);
        }
    }
    Ok(bytes.ends_with(b"\r\n0\r\n\r\n"))
}
