//! Scenario `handoff`: how long it takes until what one function made is in the hands of another.
//!
//! Question: what does a result of 1 KB, 1 MB or 100 MB cost on its way? A hand-off begins when the first has the bytes in its memory, and
//! ends when the other has added all of them; adding is part of it, because what was only mapped has not arrived. Every sum is
//! checked. Ceiling: two native processes with a socket between them (`native pair`). Hob: an object of a volatile bucket, put by one
//! function and taken by another. Rival: Redis over loopback and over a Unix socket, SET by one client, GET by another.
//!
//! Times of Hob are the guests' own; `whole` is that of both invocations from outside, with the making of the bytes. Counters of each
//! system: calls of the system, bytes that these copied, and that in sizes of what was handed over; in all processes that take part, in
//! a round of their own.
//!
//! Apart from hand-offs: `64 MiB to its first byte`, of an object that was put and checked before, in either kind of bucket.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use hob::registry::FunctionRecord;
use hob_bench_work::words;

use crate::guests::Guest;
use crate::local::Local;
use crate::redis::{Client, Fsync, Over, Redis};
use crate::report::{Figure, Report, quantile};
use crate::rounds::{Measure, TIMES, Turn, alternate};
use crate::servers::ROLE;

const SCENARIO: &str = "handoff";
const SIZES: [(&str, usize); 3] = [("1 KB", 1_000), ("1 MB", 1_000_000), ("100 MB", 100_000_000)];

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let guest = Guest::build("data")?;
    let local = Local::start_with(&["data.volatile_bytes_max=2GiB", "data.volatile_objects_bytes_max=1GiB"])?;
    let giver = local.deploy(&guest)?;
    let mut taker = guest;
    taker.name = "taker".into();
    taker.manifest.name = Some(taker.name.parse()?);
    let functions = [giver, local.deploy(&taker)?];
    let redis = Redis::start(report, Fsync::Never)?;
    let mut pair = Pair::start()?;
    for (size, len) in SIZES {
        // About a second for each system and round.
        let (rounds, count) = match (quick, len) {
            (true, ..1_000_000) => (2, 20),
            (true, _) => (2, 2),
            (false, ..1_000_000) => (5, 2_000),
            (false, ..100_000_000) => (5, 200),
            (false, _) => (5, 5),
        };
        one(report, (size, len), (rounds, count), &local, &functions, redis.as_ref(), &mut pair)?;
    }
    for bucket in ["durable", "volatile"] {
        first_byte(report, bucket, if quick { 20 } else { 2_000 }, &local, &functions[0])?;
    }
    local.stop();
    Ok(())
}

/// The times of one hand-off by functions, in microseconds.
#[derive(Debug, Clone, Copy)]
struct HandedOver {
    put: f64,
    opened: f64,
    taken: f64,
    whole: f64,
}

fn one(
    report: &Report,
    (size, len): (&str, usize),
    (rounds, count): (usize, usize),
    local: &Local,
    functions: &[FunctionRecord; 2],
    redis: Option<&Redis>,
    pair: &mut Pair,
) -> anyhow::Result<()> {
    let bytes = words::bytes(1, len);
    let sum = words::sum(&bytes);
    let mut handed = Vec::new();
    let other = pair.child.id();
    let mut turns = vec![
        Turn::new("native pair", || (0..count).map(|_| pair.hand_over(&bytes, sum)).collect()).counting(count, len, &[other]),
        Turn::new("hob", || {
            let all = (0..count).map(|_| hand_over(local, functions, len, sum)).collect::<anyhow::Result<Vec<_>>>()?;
            let times = all.iter().map(|one| one.put + one.taken).collect();
            handed.extend(all);
            Ok(times)
        })
        .counting(count, len, &[]),
    ];
    if let Some(redis) = redis {
        for (name, over) in [("redis unix", Over::Unix), ("redis tcp", Over::Tcp)] {
            let (mut from, mut to, mut taken) = (redis.connect(over)?, redis.connect(over)?, Vec::new());
            let bytes = &bytes;
            let turn =
                Turn::new(name, move || (0..count).map(|_| through_redis(&mut from, &mut to, bytes, sum, &mut taken)).collect());
            turns.push(turn.counting(count, len, &[redis.pid()]));
        }
    }
    alternate(report, Measure { scenario: SCENARIO, metric: size, unit: "us", statistics: &TIMES }, rounds, turns)?;
    // Without those of the round that counted.
    handed.truncate(rounds * count);
    let median = |of: fn(&HandedOver) -> f64| quantile(&mut handed.iter().map(of).collect::<Vec<_>>(), 0.5);
    for (part, value) in [
        ("put", median(|one| one.put)),
        ("to its first byte", median(|one| one.opened)),
        ("taken", median(|one| one.taken)),
        ("whole", median(|one| one.whole)),
    ] {
        let metric = format!("{size} {part}");
        report.figure(&Figure { scenario: SCENARIO, system: "hob", metric: &metric, value, unit: "us", ratio: None })?;
    }
    Ok(())
}

/// How long a large object takes that is there already.
fn first_byte(report: &Report, bucket: &str, count: usize, local: &Local, function: &FunctionRecord) -> anyhow::Result<()> {
    const LEN: usize = 64 << 20;
    local.call(function, format!("/?op=put&bucket={bucket}&key=large&seed=1&len={LEN}"))?;
    let expected = words::bytes(1, 8)[0];
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let (_, body) = local.call(function, format!("/?op=first&bucket={bucket}&key=large"))?;
        let [time, found] = numbers(&body)?;
        ensure!(found == u64::from(expected), "the first byte is not what was put");
        times.push(micros(time));
    }
    let system = format!("hob {bucket}");
    for (statistic, of) in [("p50", 0.5), ("p99", 0.99)] {
        let metric = format!("64 MiB to its first byte {statistic}");
        let value = quantile(&mut times, of);
        report.figure(&Figure { scenario: SCENARIO, system: &system, metric: &metric, value, unit: "us", ratio: None })?;
    }
    Ok(())
}

/// The numbers that a guest answered.
pub(crate) fn numbers<const N: usize>(body: &[u8]) -> anyhow::Result<[u64; N]> {
    let text = std::str::from_utf8(body)?;
    let numbers = text.split_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>().with_context(|| text.to_owned())?;
    numbers.try_into().map_err(|_| anyhow::anyhow!("expected {N} numbers, found '{text}'"))
}

/// Nanoseconds in microseconds.
#[expect(clippy::cast_precision_loss, reason = "times far below 2^53 ns")]
pub(crate) fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn hand_over(local: &Local, [giver, taker]: &[FunctionRecord; 2], len: usize, sum: u64) -> anyhow::Result<HandedOver> {
    let (making, body) = local.call(giver, format!("/?op=put&bucket=volatile&key=handoff&seed=1&len={len}"))?;
    let [put] = numbers(&body)?;
    let (taking, body) = local.call(taker, "/?op=take&bucket=volatile&key=handoff".into())?;
    let [opened, taken, found] = numbers(&body)?;
    ensure!(found == sum, "what was taken is not what was put");
    Ok(HandedOver { put: micros(put), opened: micros(opened), taken: micros(taken), whole: making + taking })
}

fn through_redis(from: &mut Client, to: &mut Client, bytes: &[u8], sum: u64, taken: &mut Vec<u8>) -> anyhow::Result<f64> {
    let began = Instant::now();
    from.ok(&[b"SET", b"handoff", bytes])?;
    ensure!(to.get(b"handoff", taken)?, "redis lost it");
    ensure!(words::sum(taken) == sum, "what was taken is not what was put");
    Ok(began.elapsed().as_secs_f64() * 1e6)
}

/// A process on the other end of a socket, which adds what it gets and answers the sum.
struct Pair {
    child: Child,
    stream: UnixStream,
}

impl Pair {
    fn start() -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("pair.sock");
        let listener = UnixListener::bind(&path)?;
        let mut command = Command::new("/proc/self/exe");
        let child = command.args([ROLE, "pair"]).arg(&path).stdin(Stdio::null()).spawn()?;
        let (stream, _) = listener.accept()?;
        Ok(Self { child, stream })
    }

    fn hand_over(&mut self, bytes: &[u8], sum: u64) -> anyhow::Result<f64> {
        let began = Instant::now();
        self.stream.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.stream.write_all(bytes)?;
        let mut found = [0; 8];
        self.stream.read_exact(&mut found)?;
        ensure!(u64::from_le_bytes(found) == sum, "what was taken is not what was put");
        Ok(began.elapsed().as_secs_f64() * 1e6)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Is the other process, until the socket ends.
pub(crate) fn run_pair(path: &Path) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(path)?;
    let (mut len, mut bytes) = ([0; 8], Vec::new());
    // An error is the end of whoever hands over.
    while stream.read_exact(&mut len).is_ok() {
        bytes.resize(usize::try_from(u64::from_le_bytes(len))?, 0);
        stream.read_exact(&mut bytes)?;
        stream.write_all(&words::sum(&bytes).to_le_bytes())?;
    }
    Ok(())
}
