//! Scenario `kv`: how long a function takes to read and write a small entry, beside Redis.
//!
//! Question: what does an entry of 100 bytes cost a function, when it reads or writes many in one invocation? Load: 1,000,000 entries, asked
//! for alike (`uniform`) or by Zipf's law (`zipf`); every value that is read is checked, in every system. Ceiling: the same data part,
//! called by a native program (`native`). Rivals: Redis over a Unix socket and over loopback, one request at a time, client and
//! server free to use both cores. As Redis has all entries in memory, Hob may have them in its caches (`SETTINGS`); before the first
//! round nobody has read anything. Times of Hob and native are means over batches of 100, by the clock of whoever makes the calls; of Redis
//! they are those of each call.
//!
//! What an answer to a write means: `volatile` and `redis` keep it in memory (no fsync at all). `durable` has it on disk, by one fsync of a log
//! for each commit, which all writers that wait share. `redis always` has it on disk by one fsync (`appendfsync always`), which all
//! clients share whose commands came in one turn of its loop.
//!
//! Beside the times of each system: its calls of the system, the bytes that they copied, and its fsyncs, for each operation, in all processes
//! that take part; counted in a round of its own.

use std::cell::RefCell;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hob::bucket::Durability;
use hob::data::kv::{KeyValue, Op, When};
use hob::id::TenantId;
use hob::registry::FunctionRecord;
use hob_bench_work::entries::{self, Spread, VALUE_LEN};

use crate::calls::Pass;
use crate::disk;
use crate::fleet::Client as Http;
use crate::guests::Guest;
use crate::local::Local;
use crate::redis::{Client, Fsync, Over, Redis, Reply};
use crate::report::{Figure, Report, quantile};
use crate::rounds::{MEDIAN, Measure, TIMES, Turn, alternate};

const SCENARIO: &str = "kv";
/// Operations whose mean is one sample.
const BATCH: usize = 100;
const WRITERS: usize = 32;
const SET_DURABLY: &str = "set, fsync, 32 writers";
/// Redis has all entries in memory, so Hob may too: each was read once before anything is measured.
const SETTINGS: [&str; 3] = ["data.volatile_bytes_max=2GiB", "data.kv_cache_bytes=512MiB", "data.page_cache_bytes=512MiB"];
const BUCKETS: [&str; 2] = ["durable", "volatile"];

/// Sizes of a run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rounds: usize,
    entries: u32,
    /// Operations in a round of Hob and of native.
    count: usize,
    /// Of Redis, which is slower.
    redis_count: usize,
    /// Durable writes of each writer in a round.
    durable_count: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { rounds: 2, entries: 20_000, count: 10_000, redis_count: 1_000, durable_count: 50 },
            false => Self { rounds: 7, entries: 1_000_000, count: 200_000, redis_count: 20_000, durable_count: 1_000 },
        }
    }
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let plan = Plan::new(quick);
    let guest = Guest::build("data")?;
    let local = Local::start_with(&SETTINGS)?;
    let function = local.deploy(&guest)?;
    let redis = Redis::start(report, Fsync::Never)?;
    for bucket in BUCKETS {
        let kv = entries_of(&local, bucket)?;
        fill(&*kv, plan.entries)?;
        // So that all of them are in memory.
        native_gets(&*kv, &(0..plan.entries).collect::<Vec<_>>())?;
    }
    if let Some(redis) = &redis {
        fill_redis(redis, plan.entries)?;
    }
    for spread in [Spread::Zipf, Spread::Uniform] {
        gets(report, &plan, spread, &local, &function, redis.as_ref())?;
    }
    sets(report, &plan, &local, &function, redis.as_ref())?;
    drop(redis);
    durable_sets(report, &plan, &local)?;
    local.stop();
    Ok(())
}

fn entries_of(local: &Local, bucket: &str) -> anyhow::Result<std::sync::Arc<dyn KeyValue>> {
    let found = local.data().bucket(&TenantId::default(), &bucket.parse()?)?.context("the deploy made no bucket")?;
    ensure!(found.spec.durability == if bucket == "durable" { Durability::Durable } else { Durability::Volatile });
    Ok(local.data().kv(&found)?)
}

fn op(number: u32) -> Op {
    let (key, value) = (Bytes::copy_from_slice(&entries::key(number)), Bytes::copy_from_slice(&entries::value(number)));
    Op::Set { key, value, ttl: None, when: When::Always }
}

fn fill(kv: &dyn KeyValue, count: u32) -> anyhow::Result<()> {
    for from in (0..count).step_by(hob::data::kv::BATCH_OPS_MAX) {
        let to = count.min(from + u32::try_from(hob::data::kv::BATCH_OPS_MAX)?);
        kv.write((from..to).map(op).collect()).wait()?;
    }
    Ok(())
}

fn fill_redis(redis: &Redis, count: u32) -> anyhow::Result<()> {
    let mut client = redis.connect(Over::Unix)?;
    for number in 0..count {
        client.send(&[b"SET", &entries::key(number), &entries::value(number)])?;
        if number % 100 == 99 || number + 1 == count {
            for _ in 0..=number % 100 {
                ensure!(client.receive()? == Reply::Simple("OK".into()), "redis does not take an entry");
            }
        }
    }
    Ok(())
}

/// A number that is another one each time, so that no round asks as the one before it.
fn next(seed: &mut u64) -> u64 {
    *seed += 1;
    *seed
}

fn gets(
    report: &Report,
    plan: &Plan,
    spread: Spread,
    local: &Local,
    function: &FunctionRecord,
    redis: Option<&Redis>,
) -> anyhow::Result<()> {
    let picks = |seed| spread.picks(plan.entries, plan.count, seed);
    let mut turns = Vec::new();
    for bucket in BUCKETS {
        let (kv, mut seed) = (entries_of(local, bucket)?, 0);
        turns.push(Turn::new(format!("native {bucket}"), move || native_gets(&*kv, &picks(next(&mut seed)))).counting(
            plan.count,
            VALUE_LEN,
            &[],
        ));
    }
    for bucket in BUCKETS {
        let mut seed = 100;
        let turn = Turn::new(format!("hob {bucket}"), move || {
            let (count, entries, spread, seed) = (plan.count, plan.entries, spread.as_str(), next(&mut seed));
            let target =
                format!("/?op=get&bucket={bucket}&count={count}&batch={BATCH}&entries={entries}&spread={spread}&seed={seed}");
            samples(&local.call(function, target)?.1)
        });
        turns.push(turn.counting(plan.count, VALUE_LEN, &[]));
    }
    if let Some(redis) = redis {
        for (name, over) in [("redis unix", Over::Unix), ("redis tcp", Over::Tcp)] {
            let (mut client, mut seed) = (redis.connect(over)?, 200);
            let turn =
                Turn::new(name, move || redis_gets(&mut client, &spread.picks(plan.entries, plan.redis_count, next(&mut seed))));
            turns.push(turn.counting(plan.redis_count, VALUE_LEN, &[redis.pid()]));
        }
    }
    let metric = format!("get {}", spread.as_str());
    let p50s =
        alternate(report, Measure { scenario: SCENARIO, metric: &metric, unit: "us", statistics: &TIMES }, plan.rounds, turns)?;
    if let [.., tcp] = p50s[4..] {
        times_of_redis(report, &format!("{metric}, redis tcp of it"), tcp, &p50s[2..4])?;
    }
    Ok(())
}

/// How many times as long Redis takes.
fn times_of_redis(report: &Report, metric: &str, redis: f64, hob: &[f64]) -> anyhow::Result<()> {
    for (bucket, hob) in BUCKETS.into_iter().zip(hob) {
        let system = format!("hob {bucket}");
        let (scenario, value) = (SCENARIO, redis / hob);
        report.figure(&Figure { scenario, system: &system, metric, value, unit: "times", ratio: None })?;
    }
    Ok(())
}

/// Microseconds of each operation in batches of [`BATCH`], from a guest's nanoseconds of each batch.
fn samples(body: &[u8]) -> anyhow::Result<Vec<f64>> {
    let times = std::str::from_utf8(body)?.split_whitespace();
    #[expect(clippy::cast_precision_loss, reason = "a hundred")]
    let times = times.map(|nanos| Ok(nanos.parse::<f64>()? / 1e3 / BATCH as f64));
    times.collect()
}

/// Runs over batches; microseconds of each operation in them.
fn timed(numbers: &[u32], mut run: impl FnMut(u32) -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let mut times = Vec::with_capacity(numbers.len() / BATCH);
    for batch in numbers.chunks(BATCH) {
        let began = Instant::now();
        batch.iter().try_for_each(|number| run(*number))?;
        #[expect(clippy::cast_precision_loss, reason = "a hundred")]
        times.push(began.elapsed().as_secs_f64() * 1e6 / batch.len() as f64);
    }
    Ok(times)
}

fn native_gets(kv: &dyn KeyValue, picks: &[u32]) -> anyhow::Result<Vec<f64>> {
    timed(picks, |pick| {
        let found = kv.get(&entries::key(pick))?.with_context(|| format!("entry {pick} is gone"))?;
        ensure!(found.value == entries::value(pick)[..], "entry {pick} is not what was written");
        Ok(())
    })
}

fn redis_gets(client: &mut Client, picks: &[u32]) -> anyhow::Result<Vec<f64>> {
    let mut value = Vec::new();
    let mut times = Vec::with_capacity(picks.len());
    for pick in picks {
        let began = Instant::now();
        let found = client.get(&entries::key(*pick), &mut value)?;
        ensure!(found && value == entries::value(*pick), "redis: entry {pick} is not what was written");
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}

fn sets(report: &Report, plan: &Plan, local: &Local, function: &FunctionRecord, redis: Option<&Redis>) -> anyhow::Result<()> {
    let numbers: Vec<u32> = (0..u32::try_from(plan.count)?.min(plan.entries)).collect();
    let redis_numbers = &numbers[..plan.redis_count];
    let (kv, written, count) = (entries_of(local, "volatile")?, &numbers, numbers.len());
    let mut turns =
        vec![
            Turn::new("native volatile", move || timed(written, |number| Ok(kv.write(vec![op(number)]).wait().map(drop)?)))
                .counting(count, VALUE_LEN, &[]),
            Turn::new("hob volatile", || {
                samples(&local.call(function, format!("/?op=set&bucket=volatile&count={count}&batch={BATCH}&from=0"))?.1)
            })
            .counting(count, VALUE_LEN, &[]),
        ];
    if let Some(redis) = redis {
        for (name, over) in [("redis unix", Over::Unix), ("redis tcp", Over::Tcp)] {
            let mut client = redis.connect(over)?;
            let turn = Turn::new(name, move || {
                let set = |number: &u32| {
                    let began = Instant::now();
                    client.ok(&[b"SET", &entries::key(*number), &entries::value(*number)])?;
                    Ok(began.elapsed().as_secs_f64() * 1e6)
                };
                redis_numbers.iter().map(set).collect()
            });
            turns.push(turn.counting(redis_numbers.len(), VALUE_LEN, &[redis.pid()]));
        }
    }
    alternate(
        report,
        Measure { scenario: SCENARIO, metric: "set, no fsync", unit: "us", statistics: &TIMES },
        plan.rounds,
        turns,
    )?;
    Ok(())
}

/// Of a system: its name, its processes beside this one, and what the writer with this number does.
type Writing<'a> = (&'static str, Vec<u32>, Box<dyn Fn(usize) -> anyhow::Result<()> + Sync + 'a>);

/// 32 writers, each of which waits until what it wrote is on disk before it writes the next.
fn durable_sets(report: &Report, plan: &Plan, local: &Local) -> anyhow::Result<()> {
    let redis = Redis::start(report, Fsync::Always)?;
    let (kv, count) = (entries_of(local, "durable")?, plan.durable_count);
    let native = |writer| numbers(writer, count).try_for_each(|number| Ok(kv.write(vec![op(number)]).wait().map(drop)?));
    let mut systems: Vec<Writing<'_>> = vec![
        ("native durable", Vec::new(), Box::new(native)),
        ("hob durable", Vec::new(), Box::new(|writer| write_durably(local, writer, count))),
    ];
    if let Some(redis) = &redis {
        let write = |writer| {
            let mut client = redis.connect(Over::Tcp)?;
            let set = |number| client.ok(&[b"SET", &entries::key(number), &entries::value(number)]);
            numbers(writer, count).try_for_each(set)
        };
        systems.push(("redis always, tcp", vec![redis.pid()], Box::new(write)));
    }
    let fsyncs = RefCell::new(Vec::new());
    let turns = systems.iter().map(|(name, _, work)| {
        let fsyncs = &fsyncs;
        Turn::new(*name, move || {
            // What the disk does by itself changes within a run by more than most systems differ.
            fsyncs.borrow_mut().push(disk::fsyncs_per_second(local.data_dir(), if plan.rounds > 2 { 200 } else { 20 })?);
            Ok(vec![rate_of(WRITERS, count, work)?])
        })
    });
    let measure = Measure { scenario: SCENARIO, metric: SET_DURABLY, unit: "1/s", statistics: &MEDIAN };
    let rates = alternate(report, measure, plan.rounds, turns.collect())?;
    of_the_disk(report, plan, local, (&systems, &rates), quantile(&mut fsyncs.into_inner(), 0.5))
}

/// One writer of Hob: a request whose function writes `count` entries, one after the other.
fn write_durably(local: &Local, writer: usize, count: usize) -> anyhow::Result<()> {
    let from = numbers(writer, count).start;
    let head = format!("GET /data?op=set&bucket=durable&count={count}&batch={count}&from={from} HTTP/1.1\r\n");
    let answer = Http::connect(local.addr())?.exchange(&head, b"")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "writer {writer}: {answer}");
    Ok(())
}

/// What the disk can do by itself, what the systems ask of it, and how many writes share a flush.
fn of_the_disk(
    report: &Report,
    plan: &Plan,
    local: &Local,
    (systems, rates): (&[Writing<'_>], &[f64]),
    fsyncs: f64,
) -> anyhow::Result<()> {
    let figure = |system: &str, metric: &str, value, unit| {
        report.figure(&Figure { scenario: SCENARIO, system, metric, value, unit, ratio: None })
    };
    figure("disk", "fsyncs of 4 KiB", fsyncs, "1/s")?;
    let (each, count) = (plan.durable_count, WRITERS * plan.durable_count);
    for ((system, others, work), rate) in systems.iter().zip(rates) {
        figure(system, "writes for an fsync's time", rate / fsyncs, "")?;
        match flushes_of(local.data_dir(), || rate_of(WRITERS, each, work))? {
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
            Some(flushes) => figure(system, "writes for a flush", count as f64 / flushes, "")?,
            None => report.note("how often the disk was flushed is not known: the system does not count it"),
        }
        let processes = &[&[std::process::id()], &others[..]].concat();
        let pass = Pass { scenario: SCENARIO, system, metric: SET_DURABLY, count, len: VALUE_LEN, processes };
        pass.run(report, || rate_of(WRITERS, each, work).map(drop))?;
    }
    Ok(())
}

fn flushes_of<T>(dir: &Path, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<Option<f64>> {
    let before = disk::flushes(dir);
    work()?;
    Ok(before.zip(disk::flushes(dir)).map(|(before, after)| after - before).filter(|flushes| *flushes > 0.0))
}

/// The entries that a writer writes: none that another one does.
fn numbers(writer: usize, count: usize) -> std::ops::Range<u32> {
    let from = u32::try_from(writer * count).unwrap_or_default();
    from..from + u32::try_from(count).unwrap_or_default()
}

/// `work` by `writers` threads at once, `count` operations each; operations per second.
fn rate_of(writers: usize, count: usize, work: &(dyn Fn(usize) -> anyhow::Result<()> + Sync)) -> anyhow::Result<f64> {
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|writer| scope.spawn(move || work(writer))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?)
    })?;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let count = (writers * count) as f64;
    Ok(count / began.elapsed().as_secs_f64())
}
