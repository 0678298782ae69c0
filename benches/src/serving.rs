//! Scenario `serving`: batches of documents go to a classifier, and come back with their dirty words blotted out.
//!
//! Question: what does a batch cost whose server is a function, with an instance of its own for each batch? Load: 10 documents of 100
//! words in a batch; every answer is checked. All servers run on one core, the clients on the other. Ceiling: a native server behind
//! ZeroMQ (the crate `zeromq` on tokio; clients of our own that speak its protocol on a blocking socket, as all clients here). Rival: Redis
//! as a queue, with a native worker: a client pushes its batch and waits at a queue of its own.
//!
//! `1 client` waits for each answer. `8 clients` do so at once, which is where processor time comes from; that of all
//! processes of the server, for a million documents. Their calls of the system, and the bytes that these copy, are counted in a pass of
//! their own, as counting slows it. Hob keeps no model between two batches: its list of words is in the snapshot.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hob_bench_work::censor::{self, Classifier};

use crate::calls::Pass;
use crate::fleet::Client as Http;
use crate::guests::Guest;
use crate::process::Counters;
use crate::redis::{Client, Fsync, Redis, Reply};
use crate::report::{Figure, Report, quantile};
use crate::rivals;
use crate::rounds::{Measure, Statistic, Turn, alternate};
use crate::servers::{self, LOAD_CORE, Role, SERVER_CORE, pin};

const SCENARIO: &str = "serving";
const DOCUMENTS: usize = 10;
const CLIENTS: usize = 8;
/// Batches that differ.
const BATCHES: usize = 100;
/// Longest time that a batch may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// One client: a batch goes out, the answer comes back.
type Exchange = Box<dyn FnMut(&[u8]) -> anyhow::Result<Vec<u8>> + Send>;

/// A server, its processes, and how to become a client of it.
struct System {
    name: &'static str,
    processes: Vec<u32>,
    connect: fn(SocketAddr, usize) -> anyhow::Result<Exchange>,
    addr: SocketAddr,
}

/// Batches and their answers.
struct Load(Vec<(Vec<u8>, Vec<u8>)>);

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let (rounds, count, many) = if quick { (2, 100, 50) } else { (7, 1_000, 2_000) };
    let guest = Guest::build("censor")?;
    let classifier = Classifier::load();
    let batches = (0..BATCHES as u64).map(|number| censor::batch(number, DOCUMENTS));
    let load = Load(batches.map(|batch| (batch.clone(), classifier.censor(&batch))).collect());

    let mut systems = Vec::new();
    let zeromq = rivals::start(report, &["zeromq"])?;
    if let Some(server) = &zeromq {
        let (processes, addr) = (vec![server.pid()], server.addr);
        systems.push(System { name: "native zeromq", processes, connect: zeromq_client, addr });
    }
    let node = servers::start(&Role::Hob(vec![guest.name]))?;
    systems.push(System { name: "hob", processes: vec![node.pid()], connect: hob_client, addr: node.addr });
    pin(SERVER_CORE)?;
    let redis = Redis::start(report, Fsync::Never)?;
    pin(LOAD_CORE)?;
    let worker = redis.as_ref().map(|redis| servers::start(&Role::Worker(redis.addr()))).transpose()?;
    if let (Some(redis), Some(worker)) = (&redis, &worker) {
        let processes = vec![redis.pid(), worker.pid()];
        systems.push(System { name: "redis queue", processes, connect: redis_client, addr: redis.addr() });
    }

    one_client(report, &load, &systems, rounds, count)?;
    let clients = format!("{CLIENTS} clients");
    let mut rates: Vec<(Vec<f64>, Vec<f64>)> = systems.iter().map(|_| Default::default()).collect();
    for _ in 0..rounds {
        for (system, (rates, costs)) in systems.iter().zip(&mut rates) {
            let (rate, cost) = many_clients(&load, system, many)?;
            rates.push(rate);
            costs.push(cost);
        }
    }
    let mut ceiling = None;
    for (system, (rates, costs)) in systems.iter().zip(&mut rates) {
        let (rate, cost) = (quantile(rates, 0.5), quantile(costs, 0.5));
        let (top, lowest) = *ceiling.get_or_insert((rate, cost));
        for (metric, value, unit, ratio) in
            [("batches", rate, "1/s", rate / top), ("processor time for 1M", cost, "s", cost / lowest)]
        {
            let (metric, ratio) = (format!("{clients} {metric}"), Some(ratio));
            report.figure(&Figure { scenario: SCENARIO, system: system.name, metric: &metric, value, unit, ratio })?;
        }
    }
    for system in &systems {
        let (len, metric) = (load.0[0].0.len(), &clients[..]);
        let pass =
            Pass { scenario: SCENARIO, system: system.name, metric, count: CLIENTS * many, len, processes: &system.processes };
        pass.run(report, || many_clients(&load, system, many).map(drop))?;
    }
    Ok(())
}

fn one_client(report: &Report, load: &Load, systems: &[System], rounds: usize, count: usize) -> anyhow::Result<()> {
    let mut turns = Vec::new();
    for system in systems {
        let mut exchange = system.client(0)?;
        turns.push(Turn::new(system.name, move || (0..count).map(|number| load.one(number, &mut exchange)).collect()));
    }
    let statistics = [("mean", Statistic::Mean), ("p50", Statistic::Quantile(0.5)), ("p99", Statistic::Quantile(0.99))];
    let measure = Measure { scenario: SCENARIO, metric: "1 client", unit: "us", statistics: &statistics };
    let means = alternate(report, measure, rounds, turns)?;
    for (system, mean) in systems.iter().zip(&means) {
        let (system, metric, value, ratio) = (system.name, "1 client batches", 1e6 / mean, Some(means[0] / mean));
        report.figure(&Figure { scenario: SCENARIO, system, metric, value, unit: "1/s", ratio })?;
    }
    Ok(())
}

impl System {
    fn client(&self, number: usize) -> anyhow::Result<Exchange> {
        (self.connect)(self.addr, number)
    }
}

/// All clients at once, `count` batches each: batches per second, and seconds of the server's processor for a million documents.
fn many_clients(load: &Load, system: &System, count: usize) -> anyhow::Result<(f64, f64)> {
    let clients = (0..CLIENTS).map(|number| system.client(number)).collect::<anyhow::Result<Vec<_>>>()?;
    let cpu = || {
        let all = system.processes.iter().map(|pid| Ok(Counters::of(&pid.to_string())?.cpu));
        all.sum::<anyhow::Result<f64>>()
    };
    let before = cpu()?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let run = |mut exchange: Exchange| (0..count).try_for_each(|number| load.one(number, &mut exchange).map(drop));
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || run(client))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    let took = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let (batches, documents) = ((CLIENTS * count) as f64, (CLIENTS * count * DOCUMENTS) as f64);
    Ok((batches / took, (cpu()? - before) / documents * 1e6))
}

impl Load {
    /// Microseconds of one batch.
    fn one(&self, number: usize, exchange: &mut Exchange) -> anyhow::Result<f64> {
        let (batch, expected) = &self.0[number % self.0.len()];
        let began = Instant::now();
        let answer = exchange(batch)?;
        let took = began.elapsed();
        ensure!(answer == *expected, "a batch came back as {:?}", String::from_utf8_lossy(&answer));
        Ok(took.as_secs_f64() * 1e6)
    }
}

fn hob_client(addr: SocketAddr, _: usize) -> anyhow::Result<Exchange> {
    let mut http = Http::connect(addr)?;
    Ok(Box::new(move |batch| {
        let answer = http.exchange("POST /censor HTTP/1.1\r\n", batch)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an answer without a body")?;
        Ok(body.as_bytes().to_vec())
    }))
}

/// A REQ socket: ZMTP 3.0 without security, of which it knows what a server needs to answer. Source: rfc.zeromq.org/spec/23.
fn zeromq_client(addr: SocketAddr, _: usize) -> anyhow::Result<Exchange> {
    const MORE: u8 = 1;
    const LONG: u8 = 2;
    const COMMAND: u8 = 4;
    fn frame(out: &mut Vec<u8>, flags: u8, body: &[u8]) {
        match u8::try_from(body.len()) {
            Ok(len) => out.extend([flags, len]),
            Err(_) => {
                out.push(flags | LONG);
                out.extend((body.len() as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(body);
    }
    fn read_frame(stream: &mut impl Read) -> anyhow::Result<(u8, Vec<u8>)> {
        let mut flags = [0];
        stream.read_exact(&mut flags)?;
        let mut len = [0; 8];
        let from = if flags[0] & LONG == 0 { 7 } else { 0 };
        stream.read_exact(&mut len[from..])?;
        let len = usize::try_from(u64::from_be_bytes(len))?;
        ensure!(len <= 1 << 20, "a frame of {len} bytes");
        let mut body = vec![0; len];
        stream.read_exact(&mut body)?;
        Ok((flags[0], body))
    }
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Signature, version 3.0, mechanism NULL, no server of a mechanism.
    let mut greeting = [0; 64];
    (greeting[0], greeting[9], greeting[10]) = (0xff, 0x7f, 3);
    greeting[12..16].copy_from_slice(b"NULL");
    stream.write_all(&greeting)?;
    stream.read_exact(&mut greeting)?;
    ensure!(greeting[0] == 0xff && greeting[10] >= 3, "that is no ZeroMQ 3 on the other end");
    let mut out = Vec::new();
    frame(&mut out, COMMAND, b"\x05READY\x0bSocket-Type\0\0\0\x03REQ");
    stream.write_all(&out)?;
    let (flags, ready) = read_frame(&mut stream)?;
    ensure!(
        flags & COMMAND != 0 && ready.starts_with(b"\x05READY"),
        "expected READY, found {:?}",
        String::from_utf8_lossy(&ready)
    );
    let mut reader = std::io::BufReader::new(stream.try_clone()?);
    Ok(Box::new(move |batch| {
        out.clear();
        frame(&mut out, MORE, b"");
        frame(&mut out, 0, batch);
        stream.write_all(&out)?;
        let (flags, empty) = read_frame(&mut reader)?;
        ensure!(flags & MORE != 0 && empty.is_empty(), "an answer without its envelope");
        Ok(read_frame(&mut reader)?.1)
    }))
}

fn redis_client(addr: SocketAddr, number: usize) -> anyhow::Result<Exchange> {
    let mut client = Client::connect(addr, Some(PATIENCE))?;
    let queue = format!("out-{number}");
    Ok(Box::new(move |batch| {
        let message = [queue.as_bytes(), b"\n", batch].concat();
        client.send_all([&[&b"LPUSH"[..], b"in", &message][..], &[b"BRPOP", queue.as_bytes(), b"0"]])?;
        client.receive()?;
        popped(client.receive()?)
    }))
}

/// What BRPOP answered.
fn popped(reply: Reply) -> anyhow::Result<Vec<u8>> {
    if let Reply::List(parts) = reply
        && let Ok([_, Reply::Bulk(Some(message))]) = <[Reply; 2]>::try_from(parts)
    {
        return Ok(message);
    }
    anyhow::bail!("redis: expected a message")
}

/// Is the native worker behind Redis, until standard input ends.
pub(crate) fn run_worker(redis: SocketAddr) -> anyhow::Result<()> {
    let classifier = Classifier::load();
    // Batches come when they come.
    let mut client = Client::connect(redis, None)?;
    std::thread::spawn(move || {
        if servers::ready(redis).is_ok() {
            std::process::exit(0);
        }
    });
    client.send(&[b"BRPOP", b"in", b"0"])?;
    loop {
        let message = popped(client.receive()?)?;
        let at = message.iter().position(|byte| *byte == b'\n').context("a message without a queue")?;
        let clean = classifier.censor(&message[at + 1..]);
        client.send_all([&[&b"LPUSH"[..], &message[..at], &clean][..], &[b"BRPOP", b"in", b"0"]])?;
        client.receive()?;
    }
}
