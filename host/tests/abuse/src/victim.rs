//! The victim: a function under a steady load whose every answer is checked, and a ledger of writes that must not be lost.
//!
//! An open loop: a time counts from when the request was due, so a node that stalls cannot hide its queue.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::guests;
use crate::http::{self, Conn};
use crate::node::{HOME, Node};

/// Clients of the victim, each with a connection and this many requests per second.
const CLIENTS: u64 = 8;
const RATE: u64 = 25;
/// After so many requests a client takes a new connection, if it does so at all.
const RENEWS_AFTER: u64 = 20;
/// Errors that are kept in words.
const WORDS_MAX: usize = 5;

/// How the victim's clients treat their connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clients {
    /// They take new ones all the time.
    Renew,
    /// They keep the ones they have: where attackers may take all that the node has.
    Keep,
}

/// What the victim may meet besides its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusals {
    Never,
    /// 503 before its function ran: where the attack may take all instances of the node.
    Typed,
}

/// What is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Before,
    Quiet,
    Attack,
    After,
}

/// What the victim met.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) good: u64,
    pub(crate) refused: u64,
    pub(crate) errors: u64,
    /// The first errors.
    pub(crate) words: Vec<String>,
    pub(crate) quiet: Vec<Duration>,
    pub(crate) attack: Vec<Duration>,
    /// The answer in an attack that took longest to come, and what it waited for. Those that were due on its connection before it was there
    /// count its time as theirs, but did not wait themselves.
    pub(crate) slowest: (Duration, String),
}

impl Tally {
    fn wrong(&mut self, what: String) {
        self.errors += 1;
        if self.words.len() < WORDS_MAX {
            self.words.push(what);
        }
    }
}

/// The clients, at work until they are told to stop.
#[derive(Debug)]
pub(crate) struct Victim {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
    ledger: Option<JoinHandle<Ledger>>,
}

#[derive(Debug)]
struct Shared {
    addr: SocketAddr,
    control: SocketAddr,
    phase: AtomicU8,
    stop: AtomicBool,
    tally: Mutex<Tally>,
    renew: Clients,
    refusals: Refusals,
    nonces: AtomicU64,
    bearer: Arc<OnceLock<String>>,
}

impl Victim {
    /// Deploys the victim and its bucket, and begins.
    pub(crate) fn start(node: &Node, clients: Clients, refusals: Refusals) -> anyhow::Result<Self> {
        node.deploy_wat("victim", &guests::victim(), "")?;
        let made = node.ask("PUT", "/v1/buckets/ledger", b"{}")?;
        ensure!(made.status == 201, "the ledger: {}", made.key());
        let shared = Arc::new(Shared {
            addr: node.data,
            control: node.control,
            phase: AtomicU8::new(Phase::Before as u8),
            stop: AtomicBool::new(false),
            tally: Mutex::default(),
            renew: clients,
            refusals,
            nonces: AtomicU64::new(1),
            bearer: node.bearer.clone(),
        });
        let work = |number| {
            let shared = shared.clone();
            std::thread::spawn(move || shared.client(number))
        };
        let clients = (0..CLIENTS).map(work).collect();
        let ledger = {
            let shared = shared.clone();
            Some(std::thread::spawn(move || Ledger::keep(&shared)))
        };
        Ok(Self { shared, clients, ledger })
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.shared.phase.store(phase as u8, Ordering::SeqCst);
    }

    /// Stops; and looks whether every acknowledged write of the ledger is there.
    pub(crate) fn stop(mut self, node: &Node) -> anyhow::Result<(Tally, Ledger)> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for client in self.clients.drain(..) {
            ensure!(client.join().is_ok(), "a client of the victim panicked");
        }
        let kept = self.ledger.take().map(JoinHandle::join);
        let Some(Ok(mut ledger)) = kept else { anyhow::bail!("the ledger panicked") };
        ledger.check(node)?;
        let tally = self.shared.tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        Ok((tally, ledger))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

impl Shared {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn client(&self, number: u64) {
        let began = Instant::now() + Duration::from_millis(number * 1000 / (CLIENTS * RATE));
        let (mut conn, mut uses, mut count) = (None::<Conn>, 0, 0);
        while !self.stops() {
            let due = began + Duration::from_millis(count * 1000 / RATE);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let phase = self.phase.load(Ordering::SeqCst);
            count += 1;
            if self.renew == Clients::Renew && uses >= RENEWS_AFTER {
                conn = None;
            }
            let sent = Instant::now();
            let outcome = self.one(&mut conn, &mut uses);
            let (took, alone) = (due.elapsed(), sent.elapsed());
            let mut tally = self.tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            tally.sent += 1;
            match outcome {
                Ok(Some(timing)) => {
                    tally.good += 1;
                    if phase == Phase::Attack as u8 && alone > tally.slowest.0 {
                        tally.slowest = (alone, format!("request {uses} of its connection; {timing}"));
                    }
                }
                Ok(None) => tally.refused += 1,
                Err(error) => {
                    tally.wrong(error.to_string());
                    conn = None;
                }
            }
            if phase == Phase::Quiet as u8 {
                tally.quiet.push(took);
            } else if phase == Phase::Attack as u8 {
                tally.attack.push(took);
            }
        }
    }

    /// One request: what the node says of its time, or nothing if it refused it.
    fn one(&self, conn: &mut Option<Conn>, uses: &mut u64) -> anyhow::Result<Option<String>> {
        if conn.is_none() {
            *conn = Some(Conn::open(self.addr, HOME)?);
            *uses = 0;
        }
        let Some(conn) = conn else { anyhow::bail!("no connection") };
        *uses += 1;
        let nonce = format!("{:032x}", self.nonces.fetch_add(1, Ordering::SeqCst));
        conn.request("POST", "/victim", &[("hob-timing", "1")], nonce.as_bytes());
        let Some(reply) = conn.reply() else { anyhow::bail!("no answer on request {uses} of a connection") };
        let unharmed = reply.status == 503 && reply.header("hob-executed") == Some("0");
        if unharmed && self.refusals == Refusals::Typed {
            return Ok(None);
        }
        ensure!(reply.status == 200, "{} {:.200}", reply.key(), reply.text());
        ensure!(reply.body == guests::victims_answer(nonce.as_bytes()), "the answer to another request: {:.100}", reply.text());
        Ok(Some(reply.header("server-timing").unwrap_or("no timing").to_owned()))
    }
}

/// Durable writes by the control port, one after the other all the time: what was acknowledged must be there in the end.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    acknowledged: Vec<u64>,
    /// Writes that had another answer, or none.
    pub(crate) refused: u64,
    pub(crate) lost: u64,
}

impl Ledger {
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    fn keep(shared: &Shared) -> Self {
        let mut ledger = Self::default();
        let mut number = 0;
        while !shared.stops() {
            let target = format!("/v1/buckets/ledger/kv/{number}");
            let value = format!("value {number}");
            let bearer = shared.bearer.get().map(|bearer| ("authorization", bearer.as_str()));
            let headers: Vec<_> = bearer.into_iter().chain([("connection", "close")]).collect();
            match http::request(shared.control, HOME, "PUT", &target, &headers, value.as_bytes()) {
                Ok(reply) if matches!(reply.status, 200 | 201 | 204) => ledger.acknowledged.push(number),
                Ok(_) | Err(_) => ledger.refused += 1,
            }
            number += 1;
            std::thread::sleep(Duration::from_millis(50));
        }
        ledger
    }

    fn check(&mut self, node: &Node) -> anyhow::Result<()> {
        for number in &self.acknowledged {
            let reply = node.ask("GET", &format!("/v1/buckets/ledger/kv/{number}"), b"")?;
            if reply.status != 200 || reply.text() != format!("value {number}") {
                self.lost += 1;
            }
        }
        Ok(())
    }
}

/// The time that so many of a thousand did not pass.
pub(crate) fn quantile(times: &[Duration], permille: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get((sorted.len() * permille / 1000).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}
