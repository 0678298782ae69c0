//! Scenario `broadcast`: 1,000 instances that have one object of 100 MB at the same time.
//!
//! Question: how long until each has added 1,000 words spread over it, and how much memory does that take? Every instance has the object
//! before any reads a word of it: each says so, and waits for the end of its request's body. All reader's words differ, so that together
//! they touch every page; every sum is checked. Ceiling: one native process that has the object in its memory, and no instances at all
//! (`native`). Rival: Redis, whose readers need a copy each. 1,000 copies of 100 MB do not fit in this machine, so readers of Redis come
//! one after the other on two connections; `copies` are those of the readers that did fit. `redis, words only` fetches nothing but the
//! words, 1,000 GETRANGE in one write: what somebody would do who knows beforehand which words will be read.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use hob_bench_work::words;

use crate::calls::Pass;
use crate::fleet::Client as Http;
use crate::guests::Guest;
use crate::handoff::micros;
use crate::memory::{self, Memory};
use crate::process::Counters;
use crate::redis::{Client, Fsync, Over, Redis, Reply};
use crate::report::{Figure, Report, quantile};
use crate::servers::{self, Role, Server};

const SCENARIO: &str = "broadcast";
/// Where the object lies: in sealed memory, and in a file that is in the page cache.
const BUCKETS: [&str; 2] = ["volatile", "durable"];
const MIB: f64 = 1_048_576.0;
/// Room for the object and for all instances. The bodies of the first requests are silent until the last reader is there, and until the
/// memory of all was looked at, which takes seconds.
const SETTINGS: [&str; 4] = [
    "data.volatile_bytes_max=2GiB",
    "data.volatile_objects_bytes_max=1GiB",
    "engine.instances_max=2000",
    "net.body_idle_timeout=1m",
];
/// Longest time that an instance may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sizes of a run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: usize,
    readers: usize,
    len: usize,
    words: usize,
    /// Readers of Redis that are alive together.
    copies: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { rounds: 1, readers: 50, len: 4_000_000, words: 100, copies: 5 },
            false => Self { rounds: 3, readers: 1_000, len: 100_000_000, words: 1_000, copies: 20 },
        }
    }
}

/// One round of Hob; times in seconds.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// From the first request until all have the object.
    having: f64,
    /// Until all have answered their sum.
    whole: f64,
    /// The guests' own time to have the object, in microseconds: median and 99th percentile.
    each: (f64, f64),
    /// What came on top while all were alive: proportional set size in all, that of shared memory and of files, anonymous memory, page
    /// tables.
    memory: f64,
    shared: f64,
    anonymous: f64,
    page_tables: f64,
    faults: f64,
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let plan = Plan::new(quick);
    Guest::build("data")?;
    raise_descriptors()?;
    let dir = tempfile::tempdir()?;
    let settings = SETTINGS.map(String::from).to_vec();
    let node = servers::start(&Role::Node { data_dir: dir.path().into(), settings, guests: vec!["data".into()] })?;
    let object = words::bytes(1, plan.len);
    for bucket in BUCKETS {
        let put = format!("GET /data?op=put&bucket={bucket}&key=all&seed=1&len={} HTTP/1.1\r\n", plan.len);
        let answer = Http::connect(node.addr)?.exchange(&put, b"")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "the object cannot be put: {answer}");
        fits(&plan, &node, bucket, &object)?;
    }
    let redis = Redis::start(report, Fsync::Never)?;
    if let Some(redis) = &redis {
        redis.connect(Over::Unix)?.ok(&[b"SET", b"all", &object])?;
    }
    let expected: Vec<u64> = (0..plan.readers).map(|reader| words::sum_spread(&object, plan.words, reader)).collect();
    let (mut native, mut hob, mut only) = (Vec::new(), BUCKETS.map(|_| Vec::new()), Vec::new());
    for _ in 0..plan.rounds {
        native.push(native_round(&plan, &object, &expected)?);
        for (bucket, rounds) in BUCKETS.into_iter().zip(&mut hob) {
            rounds.push(hob_round(&plan, &node, bucket, &expected)?);
        }
        if let Some(redis) = &redis {
            only.push(redis_round(redis, &expected, |client, _, reader| words_only(&plan, client, reader))?);
        }
    }
    calls(report, &plan, &node, &object, &expected, redis.as_ref())?;
    node.stop()?;
    let native = quantile(&mut native, 0.5);
    figure(report, "native", "all sums", native * 1e3, "ms", Some(1.0))?;
    for (bucket, rounds) in BUCKETS.into_iter().zip(&hob) {
        figures(report, &plan, native, (bucket, rounds))?;
    }
    if let Some(redis) = &redis {
        // 100 GB through the socket: once.
        let whole = redis_round(redis, &expected, |client, into, reader| whole(&plan, client, into, reader))?;
        for (system, seconds) in [("redis", whole), ("redis, words only", quantile(&mut only, 0.5))] {
            figure(report, system, "all sums", seconds * 1e3, "ms", Some(seconds / native))?;
            for (bucket, rounds) in BUCKETS.into_iter().zip(&hob) {
                let metric = format!("all sums, of hob {bucket}");
                figure(report, system, &metric, seconds / median(rounds, |round| round.whole), "times", None)?;
            }
        }
        figure(report, "redis", "a reader's copy", copies(&plan, redis)? / MIB, "MiB", None)?;
    }
    Ok(())
}

/// What the system is asked for, in a round of its own: by whoever has the readers, so by the node, and by this process and Redis. As
/// many readers of Redis as can be alive together stand for all.
fn calls(
    report: &Report,
    plan: &Plan,
    node: &Server,
    object: &[u8],
    expected: &[u64],
    redis: Option<&Redis>,
) -> anyhow::Result<()> {
    let count = |system: &str, count, processes: &[u32], work: &dyn Fn() -> anyhow::Result<()>| {
        let pass = Pass { scenario: SCENARIO, system, metric: "all sums", count, len: plan.len, processes };
        pass.run(report, work).map(drop)
    };
    let (own, readers) = (std::process::id(), plan.readers);
    count("native", readers, &[own], &|| native_round(plan, object, expected).map(drop))?;
    for bucket in BUCKETS {
        let system = format!("hob {bucket}");
        count(&system, readers, &[node.pid()], &|| hob_round(plan, node, bucket, expected).map(drop))?;
    }
    let Some(redis) = redis else { return Ok(()) };
    let (few, both) = (&expected[..plan.copies], [own, redis.pid()]);
    count("redis", few.len(), &both, &|| {
        redis_round(redis, few, |client, into, reader| whole(plan, client, into, reader)).map(drop)
    })?;
    count("redis, words only", readers, &both, &|| {
        redis_round(redis, expected, |client, _, reader| words_only(plan, client, reader)).map(drop)
    })
}

fn figure(report: &Report, system: &str, metric: &str, value: f64, unit: &str, ratio: Option<f64>) -> std::io::Result<()> {
    report.figure(&Figure { scenario: SCENARIO, system, metric, value, unit, ratio })
}

fn median(rounds: &[Round], of: impl Fn(&Round) -> f64) -> f64 {
    quantile(&mut rounds.iter().map(of).collect::<Vec<_>>(), 0.5)
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn figures(report: &Report, plan: &Plan, native: f64, (bucket, hob): (&str, &[Round])) -> anyhow::Result<()> {
    let (readers, len) = (plan.readers as f64, plan.len as f64);
    let system = format!("hob {bucket}");
    let whole = median(hob, |round| round.whole);
    for (metric, value, unit, ratio) in [
        ("all sums", whole * 1e3, "ms", Some(whole / native)),
        ("all have it", median(hob, |round| round.having) * 1e3, "ms", None),
        ("all have it, each", median(hob, |round| round.having) * 1e6 / readers, "us", None),
        ("has it p50", median(hob, |round| round.each.0), "us", None),
        ("has it p99", median(hob, |round| round.each.1), "us", None),
        ("memory for all", median(hob, |round| round.memory) / MIB, "MiB", None),
        ("copies of the object", median(hob, |round| round.shared) / len, "", None),
        ("anonymous for each", median(hob, |round| round.anonymous) / readers / 1024.0, "KiB", None),
        ("page tables for each", median(hob, |round| round.page_tables) / readers / 1024.0, "KiB", None),
        ("page faults for each", median(hob, |round| round.faults) / readers, "", None),
    ] {
        figure(report, &system, metric, value, unit, ratio)?;
    }
    Ok(())
}

/// A thousand readers need a thousand connections.
fn raise_descriptors() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}

/// One reader alone, before a thousand: if each had a copy, they would take the machine down.
fn fits(plan: &Plan, node: &Server, bucket: &str, object: &[u8]) -> anyhow::Result<()> {
    let pid = node.pid().to_string();
    let mut reader = Reader::connect(node.addr)?;
    let before = Memory::of(&pid)?.anonymous;
    reader.begin(bucket, plan.words, 0)?;
    reader.has_it()?;
    let each = Memory::of(&pid)?.anonymous - before;
    reader.go()?;
    ensure!(reader.sum()? == words::sum_spread(object, plan.words, 0), "a reader has another sum");
    reader.end()?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let (all, free) = (each * plan.readers as f64 / MIB, memory::available()? / MIB);
    ensure!(all < free / 2.0, "{} readers would take {all:.0} MiB of {free:.0} that are free: each has a copy", plan.readers);
    Ok(())
}

fn native_round(plan: &Plan, object: &[u8], expected: &[u64]) -> anyhow::Result<f64> {
    let began = Instant::now();
    for (reader, expected) in expected.iter().enumerate() {
        ensure!(words::sum_spread(object, plan.words, reader) == *expected, "reader {reader} has another sum");
    }
    Ok(began.elapsed().as_secs_f64())
}

fn hob_round(plan: &Plan, node: &Server, bucket: &str, expected: &[u64]) -> anyhow::Result<Round> {
    let pid = node.pid().to_string();
    let mut readers = (0..plan.readers).map(|_| Reader::connect(node.addr)).collect::<anyhow::Result<Vec<_>>>()?;
    let (memory, faults) = (Memory::of(&pid)?, Counters::of(&pid)?.faults);
    let began = Instant::now();
    for (number, reader) in readers.iter_mut().enumerate() {
        reader.begin(bucket, plan.words, number)?;
    }
    let mut each = Vec::with_capacity(plan.readers);
    for reader in &mut readers {
        each.push(micros(reader.has_it()?));
    }
    let having = began.elapsed().as_secs_f64();
    for reader in &mut readers {
        reader.go()?;
    }
    // The last words lie in the answers; an instance stays until its last byte is read.
    for (number, (reader, expected)) in readers.iter_mut().zip(expected).enumerate() {
        ensure!(reader.sum()? == *expected, "reader {number} has another sum");
    }
    let whole = began.elapsed().as_secs_f64();
    let (faults_after, after) = (Counters::of(&pid)?.faults, Memory::of(&pid)?);
    for reader in &mut readers {
        reader.end()?;
    }
    Ok(Round {
        having,
        whole,
        each: (quantile(&mut each, 0.5), quantile(&mut each, 0.99)),
        memory: after.proportional - memory.proportional,
        shared: after.proportional_shared + after.proportional_file - memory.proportional_shared - memory.proportional_file,
        anonymous: after.anonymous - memory.anonymous,
        page_tables: after.page_tables - memory.page_tables,
        faults: faults_after - faults,
    })
}

/// One reader's request, whose body goes on as long as it is wanted.
struct Reader {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Reader {
    fn connect(addr: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, received: Vec::new() })
    }

    fn begin(&mut self, bucket: &str, words: usize, reader: usize) -> anyhow::Result<()> {
        let target = format!("/data?op=spread&bucket={bucket}&key=all&count={words}&reader={reader}");
        let head = format!("POST {target} HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n");
        Ok(self.stream.write_all(head.as_bytes())?)
    }

    /// Waits until the instance has the object; how long that took it, in nanoseconds.
    fn has_it(&mut self) -> anyhow::Result<u64> {
        Ok(self.line(0)?.trim().parse()?)
    }

    /// Lets it read.
    fn go(&mut self) -> anyhow::Result<()> {
        Ok(self.stream.write_all(b"1\r\ng\r\n")?)
    }

    fn sum(&mut self) -> anyhow::Result<u64> {
        let line = self.line(1)?;
        line.split_whitespace().next().and_then(|sum| sum.parse().ok()).with_context(|| format!("expected a sum, found '{line}'"))
    }

    /// Lets it end.
    fn end(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(b"0\r\n\r\n")?;
        while !self.received.ends_with(b"0\r\n\r\n") {
            self.receive()?;
        }
        Ok(())
    }

    /// A line of the response's body, each of which is a chunk.
    fn line(&mut self, number: usize) -> anyhow::Result<String> {
        loop {
            let text = String::from_utf8_lossy(&self.received);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                ensure!(head.starts_with("HTTP/1.1 200"), "an instance does not answer: {text}");
                // Of each chunk its length, then what it holds.
                let lines: Vec<&str> = body.split_inclusive("\r\n").collect();
                if let Some(line) = lines.get(number * 2 + 1).filter(|line| line.ends_with("\r\n")) {
                    return Ok(line.trim().to_owned());
                }
            }
            self.receive()?;
        }
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut buffer = [0; 1024];
        let count = self.stream.read(&mut buffer)?;
        ensure!(count > 0, "an instance broke off after {:?}", String::from_utf8_lossy(&self.received));
        self.received.extend_from_slice(&buffer[..count]);
        Ok(())
    }
}

/// All readers of Redis, on two connections at once; seconds.
fn redis_round(
    redis: &Redis,
    expected: &[u64],
    sum: impl Fn(&mut Client, &mut Vec<u8>, usize) -> anyhow::Result<u64> + Sync,
) -> anyhow::Result<f64> {
    let next = AtomicUsize::new(0);
    let began = Instant::now();
    let read = || -> anyhow::Result<()> {
        let (mut client, mut object) = (redis.connect(Over::Tcp)?, Vec::new());
        loop {
            let reader = next.fetch_add(1, Ordering::Relaxed);
            let Some(expected) = expected.get(reader) else { return Ok(()) };
            ensure!(sum(&mut client, &mut object, reader)? == *expected, "reader {reader} of redis has another sum");
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(read), scope.spawn(read)];
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })?;
    Ok(began.elapsed().as_secs_f64())
}

fn whole(plan: &Plan, client: &mut Client, into: &mut Vec<u8>, reader: usize) -> anyhow::Result<u64> {
    ensure!(client.get(b"all", into)?, "redis lost it");
    Ok(words::sum_spread(into, plan.words, reader))
}

fn words_only(plan: &Plan, client: &mut Client, reader: usize) -> anyhow::Result<u64> {
    let places = || words::spread(plan.len / 8, plan.words, reader);
    let ranges = places().map(|at| ((at * 8).to_string(), (at * 8 + 7).to_string())).collect::<Vec<_>>();
    client.send_all(ranges.iter().map(|(from, to)| [&b"GETRANGE"[..], b"all", from.as_bytes(), to.as_bytes()]))?;
    let mut sum = 0u64;
    for _ in places() {
        let Reply::Bulk(Some(word)) = client.receive()? else { anyhow::bail!("redis lost it") };
        sum = sum.wrapping_add(u64::from_le_bytes(word[..].try_into()?));
    }
    Ok(sum)
}

/// Bytes of memory that one reader of Redis needs, of those that are alive together.
fn copies(plan: &Plan, redis: &Redis) -> anyhow::Result<f64> {
    let before = Memory::of("self")?.proportional;
    let mut objects = Vec::new();
    for _ in 0..plan.copies {
        let mut object = Vec::new();
        ensure!(redis.connect(Over::Tcp)?.get(b"all", &mut object)?, "redis lost it");
        objects.push(object);
    }
    let after = Memory::of("self")?.proportional;
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let count = objects.len() as f64;
    Ok((after - before) / count)
}
