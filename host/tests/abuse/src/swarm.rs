//! Thousands of connections from one thread: silent, dripping, or greedy for answers that they never read.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::case::Seen;
use crate::http;

/// What each connection does.
#[derive(Clone)]
pub(crate) struct Plan<'a> {
    pub(crate) to: SocketAddr,
    pub(crate) count: usize,
    /// Addresses they come from, in turn.
    pub(crate) from: &'a [Ipv4Addr],
    /// What each sends first.
    pub(crate) first: &'a [u8],
    /// What each sends again and again, and how often.
    pub(crate) drip: Option<(Duration, &'a [u8])>,
    pub(crate) reads: Reads,
    /// When those that are still open are given up.
    pub(crate) until: Duration,
    /// Ends it before that, once all are connected: a client that never reads is not told that the node has closed.
    pub(crate) done: Option<&'a (dyn Fn() -> bool + Sync)>,
}

/// What a connection does with what it gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    All,
    /// Nothing, with as little room for it as the system allows.
    Nothing,
}

/// How they ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// How long each was open that the node ended.
    pub(crate) closed_after: Vec<Duration>,
    /// Those that were still open at the end.
    pub(crate) open: usize,
    /// Those that were never connected.
    pub(crate) unconnected: usize,
}

struct Client {
    stream: Option<TcpStream>,
    /// When the node took it.
    opened: Option<Instant>,
    received: Vec<u8>,
}

/// Connections that are being made at once: fewer than the kernel's queue holds.
const BATCH: usize = 500;
const KEPT: usize = 1024;

/// Runs a plan to its end; what was answered goes to `seen`.
pub(crate) fn run(plan: &Plan<'_>, seen: &mut Seen) -> anyhow::Result<Ended> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(4096);
    let mut clients: Vec<Client> = Vec::with_capacity(plan.count);
    let mut ended = Ended::default();
    let began = Instant::now();
    let mut next_drip = began;
    loop {
        let pending =
            clients.iter().rev().take(BATCH).filter(|client| client.stream.is_some() && client.opened.is_none()).count();
        for _ in pending..BATCH.min(plan.count - clients.len() + pending) {
            let from = plan.from[clients.len() % plan.from.len()];
            let stream = connect(plan, from)?;
            let mut client = Client { stream: Some(stream), opened: None, received: Vec::new() };
            if let Some(stream) = &mut client.stream {
                poll.registry().register(stream, Token(clients.len()), Interest::READABLE | Interest::WRITABLE)?;
            }
            clients.push(client);
        }
        poll.poll(&mut events, Some(Duration::from_millis(20)))?;
        for event in &events {
            let client = &mut clients[event.token().0];
            if event.is_writable() && client.opened.is_none() {
                client.begin(plan);
            }
            let over = event.is_error() || (plan.reads == Reads::Nothing && event.is_read_closed());
            if over || (plan.reads == Reads::All && event.is_readable() && client.read()) {
                client.end(&mut ended, seen);
            }
        }
        if let Some((pause, bytes)) = plan.drip
            && next_drip <= Instant::now()
        {
            next_drip = Instant::now() + pause;
            clients.iter_mut().for_each(|client| client.drip(bytes));
        }
        let over = clients.len() == plan.count && clients.iter().all(|client| client.stream.is_none());
        let all_connected = clients.len() == plan.count && clients.iter().all(|client| client.opened.is_some());
        let done = all_connected && began.elapsed() > Duration::from_secs(1) && plan.done.is_some_and(|done| done());
        if over || done || began.elapsed() > plan.until {
            break;
        }
    }
    ended.open = clients.iter().filter(|client| client.stream.is_some() && client.opened.is_some()).count();
    ended.unconnected = clients.iter().filter(|client| client.stream.is_some() && client.opened.is_none()).count();
    Ok(ended)
}

fn connect(plan: &Plan<'_>, from: Ipv4Addr) -> anyhow::Result<TcpStream> {
    let socket = http::socket(from, (plan.reads == Reads::Nothing).then_some(1))?;
    socket.set_nonblocking(true)?;
    match socket.connect(&plan.to.into()) {
        Ok(()) => {}
        // EINPROGRESS is how a connection begins that nobody waits for.
        Err(error) if error.kind() == ErrorKind::WouldBlock || error.raw_os_error() == Some(115) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(TcpStream::from_std(socket.into()))
}

impl Client {
    fn begin(&mut self, plan: &Plan<'_>) {
        let Some(stream) = &mut self.stream else { return };
        if stream.peer_addr().is_ok() {
            self.opened = Some(Instant::now());
            // Whether it arrived, the answer tells.
            let _sent = stream.write(plan.first);
        }
    }

    fn drip(&mut self, bytes: &[u8]) {
        if let (Some(stream), Some(_)) = (&mut self.stream, self.opened) {
            // A connection that is over says so when it is read.
            let _sent = stream.write(bytes);
        }
    }

    /// Reads what is there; true when the node has ended the connection.
    fn read(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => {
                    let room = KEPT.saturating_sub(self.received.len()).min(count);
                    self.received.extend_from_slice(&buffer[..room]);
                }
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }

    fn end(&mut self, ended: &mut Ended, seen: &mut Seen) {
        if self.stream.take().is_none() {
            return;
        }
        seen.saw(&key(&self.received));
        if let Some(opened) = self.opened {
            ended.closed_after.push(opened.elapsed());
        }
    }
}

/// What a connection got in all, as cases name it.
fn key(received: &[u8]) -> String {
    let text = String::from_utf8_lossy(received);
    let Some(status) = text.split(' ').nth(1) else { return "closed".into() };
    let code = text.lines().find_map(|line| line.strip_prefix("hob-error: "));
    code.map_or_else(|| status.to_owned(), |code| format!("{status} {code}"))
}
