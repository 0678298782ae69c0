//! Thousands of connections from one thread: silent, dripping, or greedy for answers that they never read.

use std::collections::VecDeque;
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
    /// What each sends again and again, and how often; counted from its own begin.
    pub(crate) drip: Option<(Duration, &'a [u8])>,
    /// They come one after the other, and whoever the node ends comes again, for this long.
    pub(crate) stay: Option<Duration>,
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
/// Connections of those that stay which begin in a second: ten thousand are there when the first has had its ten seconds.
const STAY_RATE: f64 = 1000.0;
const KEPT: usize = 1024;

/// Runs a plan to its end; what was answered goes to `seen`.
pub(crate) fn run(plan: &Plan<'_>, seen: &mut Seen) -> anyhow::Result<Ended> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(4096);
    let mut clients: Vec<Client> = Vec::with_capacity(plan.count);
    let mut ended = Ended::default();
    let began = Instant::now();
    // Those that are to come, and come again; those that drip, first who is due first.
    let (mut absent, mut drips): (VecDeque<usize>, VecDeque<(Instant, usize)>) = ((0..plan.count).collect(), VecDeque::new());
    let (mut pending, mut connected) = (0, 0_usize);
    loop {
        let stays = plan.stay.is_some_and(|stay| began.elapsed() < stay);
        if plan.stay.is_some() && !stays {
            absent.clear();
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands, not negative")]
        let may = plan.stay.map_or(usize::MAX, |_| (began.elapsed().as_secs_f64() * STAY_RATE) as usize);
        while pending < BATCH
            && connected < may
            && let Some(number) = absent.pop_front()
        {
            let mut stream = connect(plan, plan.from[number % plan.from.len()])?;
            poll.registry().register(&mut stream, Token(number), Interest::READABLE | Interest::WRITABLE)?;
            let client = Client { stream: Some(stream), opened: None, received: Vec::new() };
            match clients.get_mut(number) {
                Some(known) => *known = client,
                None => clients.push(client),
            }
            (pending, connected) = (pending + 1, connected + 1);
        }
        poll.poll(&mut events, Some(Duration::from_millis(if plan.stay.is_some() { 1 } else { 20 })))?;
        for event in &events {
            let number = event.token().0;
            let client = &mut clients[number];
            if event.is_writable() && client.opened.is_none() && client.begin(plan) {
                pending -= 1;
                drips.extend(plan.drip.map(|(pause, _)| (Instant::now() + pause, number)));
            }
            let over = event.is_error() || (plan.reads == Reads::Nothing && event.is_read_closed());
            if client.stream.is_some() && (over || (plan.reads == Reads::All && event.is_readable() && client.read())) {
                pending -= usize::from(client.opened.is_none());
                client.end(&mut ended, seen);
                if stays {
                    absent.push_back(number);
                }
            }
        }
        if let Some((pause, bytes)) = plan.drip {
            while let Some((due, number)) = drips.pop_front_if(|(due, _)| *due <= Instant::now()) {
                let client = &mut clients[number];
                // One that has come again since then has drips of its own.
                if client.opened.is_some_and(|opened| opened + pause <= due) && client.drip(bytes) {
                    drips.push_back((due + pause, number));
                }
            }
        }
        let all_came = clients.len() == plan.count && (absent.is_empty() || !stays);
        let over = all_came && !stays && clients.iter().all(|client| client.stream.is_none());
        let all_connected = all_came && clients.iter().all(|client| client.opened.is_some());
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
    /// Whether it is connected now.
    fn begin(&mut self, plan: &Plan<'_>) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let begins = stream.peer_addr().is_ok();
        if begins {
            self.opened = Some(Instant::now());
            // Whether it arrived, the answer tells.
            let _sent = stream.write(plan.first);
        }
        begins
    }

    /// Whether it is there to go on.
    fn drip(&mut self, bytes: &[u8]) -> bool {
        // A connection that is over says so when it is read.
        self.stream.as_mut().map(|stream| stream.write(bytes)).is_some()
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
