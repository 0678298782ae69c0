//! Scenario `training`: a model learns from batches of 100 MB, one batch in each call.
//!
//! Question: how much of an iteration is spent on getting the batch, and how much longer does it take than in a native program? Load:
//! batches of 262,144 rows of 99 features and a label; two hidden layers of 10, Adam, one step for each batch. The computation is one
//! crate, compiled natively and to WebAssembly with 128-bit vectors; after each round all systems have the same weights, bit for bit.
//! Ceiling: a native program that reads each batch from a file into a buffer that it has already (`native`). Rivals: the same program,
//! which gets each batch from Redis, or from a server of the S3 protocol, over loopback, as a function does that keeps nothing. Files are in
//! the page cache. Hob: a function that maps the batch, an object of a durable bucket, and keeps its model in a volatile one.
//!
//! *fetch* of the native programs is the time until the batch is in the buffer. Of Hob it is the time to have the object, and one pass
//! that only reads it, less a second such pass, whose pages are resident. *iteration* is the whole call, seen from outside. Page
//! faults (of this process), calls of the system and bytes that these copy (of all that take part) are counted in passes of their own.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, ensure};
use hob::bucket::Durability;
use hob::data::objects::PutOptions;
use hob::id::TenantId;
use hob::registry::FunctionRecord;
use hob_bench_work::training::{self, Trainer};

use crate::calls::Pass;
use crate::disk;
use crate::guests::Guest;
use crate::handoff::{micros, numbers};
use crate::local::Local;
use crate::process::Counters;
use crate::redis::{Client, Fsync, Over, Redis};
use crate::report::{Figure, Report, quantile};
use crate::rivals;
use crate::servers::Server;

const SCENARIO: &str = "training";

/// Sizes of a run.
#[derive(Debug, Clone, Copy)]
struct Plan {
    rows: usize,
    /// Batches that all systems have, and how many times they go over them.
    batches: usize,
    rounds: usize,
    /// Batches of Hob alone, for one pass over as much as there is room for.
    all: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { rows: 10_000, batches: 2, rounds: 2, all: 3 },
            false => Self { rows: 262_144, batches: 8, rounds: 5, all: 90 },
        }
    }

    fn batch_bytes(&self) -> usize {
        self.rows * training::ROW_BYTES
    }
}

/// What one iteration took, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Taken {
    fetch: f64,
    compute: f64,
    whole: f64,
}

/// Gets the batch with this number into the buffer.
type Fetch<'a> = Box<dyn FnMut(usize, &mut Vec<u8>) -> anyhow::Result<()> + 'a>;

/// A native program and where its batches come from.
struct Native<'a> {
    name: &'static str,
    trainer: Trainer,
    fetch: Fetch<'a>,
    taken: Vec<Taken>,
    /// Processes beside this one.
    others: Vec<u32>,
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let mut plan = Plan::new(quick);
    let guest = Guest::build("data")?;
    let local = Local::start_with(&["data.volatile_bytes_max=2GiB", "data.objects_bytes_max=64GiB"])?;
    let function = local.deploy(&guest)?;
    let files = tempfile::tempdir()?;
    std::fs::create_dir(files.path().join("batches"))?;
    let redis = Redis::start(report, Fsync::Never)?;
    fit(report, &mut plan, local.data_dir())?;
    let put = Instant::now();
    for number in 0..plan.all {
        let batch = training::batch(number as u64, plan.rows);
        if number < plan.batches {
            std::fs::write(file(files.path(), number), &batch)?;
            if let Some(redis) = &redis {
                redis.connect(Over::Unix)?.ok(&[b"SET", key(number).as_bytes(), &batch])?;
            }
        }
        put_object(&local, number, &batch)?;
    }
    report.note(&format!("{} batches made and put in {:.1} s", plan.all, put.elapsed().as_secs_f64()));
    let s3 = rivals::start(report, &["s3", &files.path().to_string_lossy()])?;
    let mut natives = natives(files.path(), redis.as_ref(), s3.as_ref())?;
    let (mut hob, mut buffer, mut step) = (Vec::new(), Vec::with_capacity(plan.batch_bytes()), 0);
    for _ in 0..plan.rounds {
        let mut digest = None;
        for native in &mut natives {
            for number in 0..plan.batches {
                native.iterate(number, &mut buffer)?;
            }
            let found = native.trainer.digest();
            ensure!(*digest.get_or_insert(found) == found, "{} learnt something else", native.name);
        }
        for number in 0..plan.batches {
            let (taken, found) = iterate(&local, &function, number, step)?;
            hob.push(taken);
            step += 1;
            let last = number + 1 == plan.batches;
            ensure!(!last || Some(found) == digest, "the function learnt something else");
        }
    }
    figures(report, &natives, &hob)?;
    counters(report, &plan, &local, &function, &mut natives, &mut buffer)?;
    whole_pass(report, &plan, &local, &function, step)?;
    local.stop();
    Ok(())
}

/// Takes as many batches as the disk has room for, with as much again left free.
fn fit(report: &Report, plan: &mut Plan, dir: &Path) -> anyhow::Result<()> {
    let free = disk::free_bytes(dir)?;
    let fit = usize::try_from(free / 2)? / plan.batch_bytes();
    ensure!(fit > plan.batches, "the disk has room for {fit} batches, expected more than {}", plan.batches);
    if fit < plan.all {
        report.note(&format!("{fit} batches instead of {}: the disk has {free} bytes", plan.all));
        plan.all = fit;
    }
    Ok(())
}

fn key(number: usize) -> String {
    format!("batch-{number}")
}

fn file(dir: &Path, number: usize) -> PathBuf {
    dir.join("batches").join(key(number))
}

fn put_object(local: &Local, number: usize, batch: &[u8]) -> anyhow::Result<()> {
    let bucket = local.data().bucket(&TenantId::default(), &"durable".parse()?)?.context("the deploy made no bucket")?;
    let objects = local.data().objects(Durability::Durable);
    let mut upload = objects.put(&bucket, key(number).as_bytes(), PutOptions::default())?;
    batch.chunks(1 << 20).try_for_each(|piece| upload.write(piece))?;
    upload.finish().wait()?;
    Ok(())
}

fn natives<'a>(files: &'a Path, redis: Option<&Redis>, s3: Option<&Server>) -> anyhow::Result<Vec<Native<'a>>> {
    let native = |name, fetch, others| Native { name, trainer: Trainer::new(), fetch, taken: Vec::new(), others };
    let from_file = |number, buffer: &mut Vec<u8>| {
        buffer.clear();
        File::open(file(files, number))?.read_to_end(buffer)?;
        Ok(())
    };
    let mut all = vec![native("native", Box::new(from_file), Vec::new())];
    if let Some(redis) = redis {
        let mut client: Client = redis.connect(Over::Tcp)?;
        let fetch = move |number: usize, buffer: &mut Vec<u8>| {
            ensure!(client.get(key(number).as_bytes(), buffer)?, "redis lost batch {number}");
            Ok(())
        };
        all.push(native("redis", Box::new(fetch), vec![redis.pid()]));
    }
    if let Some(server) = s3 {
        let addr = server.addr;
        all.push(native("s3", Box::new(move |number, buffer| get_object(addr, number, buffer)), vec![server.pid()]));
    }
    Ok(all)
}

/// One GET of the S3 protocol, on a connection of its own as a function has that begins anew.
fn get_object(addr: SocketAddr, number: usize, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_nodelay(true)?;
    write!(stream, "GET /batches/{} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n", key(number))?;
    let mut reader = BufReader::new(stream);
    let (mut line, mut len) = (String::new(), None);
    reader.read_line(&mut line)?;
    ensure!(line.starts_with("HTTP/1.1 200"), "s3: {line}");
    while line != "\r\n" {
        line.clear();
        ensure!(reader.read_line(&mut line)? > 0, "s3: the head broke off");
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            len = Some(value.trim().parse::<usize>()?);
        }
    }
    buffer.resize(len.context("s3: an object without a length")?, 0);
    Ok(reader.read_exact(buffer)?)
}

impl Native<'_> {
    fn iterate(&mut self, number: usize, buffer: &mut Vec<u8>) -> anyhow::Result<()> {
        let began = Instant::now();
        (self.fetch)(number, buffer)?;
        let fetch = began.elapsed().as_secs_f64() * 1e3;
        self.trainer.step(buffer);
        let whole = began.elapsed().as_secs_f64() * 1e3;
        self.taken.push(Taken { fetch, compute: whole - fetch, whole });
        Ok(())
    }
}

/// One call of the function, and its weights after it.
fn iterate(local: &Local, function: &FunctionRecord, number: usize, step: usize) -> anyhow::Result<(Taken, u64)> {
    let key = key(number);
    let (_, body) = local.call(function, format!("/?op=scan&bucket=durable&key={key}"))?;
    let [opened, cold, warm, _] = numbers(&body)?;
    let (whole, body) = local.call(function, format!("/?op=train&bucket=durable&key={key}&step={step}"))?;
    let [_, compute, digest] = numbers(&body)?;
    let fetch = (micros(opened) + micros(cold) - micros(warm)) / 1e3;
    Ok((Taken { fetch, compute: micros(compute) / 1e3, whole: whole / 1e3 }, digest))
}

fn figures(report: &Report, natives: &[Native<'_>], hob: &[Taken]) -> anyhow::Result<()> {
    let mut ceiling = None;
    let systems = natives.iter().map(|native| (native.name, &native.taken[..])).chain([("hob", hob)]);
    for (system, taken) in systems {
        let median = |of: fn(&Taken) -> f64| quantile(&mut taken.iter().map(of).collect::<Vec<_>>(), 0.5);
        let (fetch, whole) = (median(|taken| taken.fetch), median(|taken| taken.whole));
        let top = *ceiling.get_or_insert(whole);
        for (metric, value, unit, ratio) in [
            ("iteration", whole, "ms", Some(whole / top)),
            ("fetch", fetch, "ms", None),
            ("compute", median(|taken| taken.compute), "ms", None),
            ("fetch share", fetch / whole * 100.0, "%", None),
        ] {
            report.figure(&Figure { scenario: SCENARIO, system, metric, value, unit, ratio })?;
        }
    }
    Ok(())
}

/// What the system counts in iterations over all batches, in passes that no time is taken from.
fn counters(
    report: &Report,
    plan: &Plan,
    local: &Local,
    function: &FunctionRecord,
    natives: &mut [Native<'_>],
    buffer: &mut Vec<u8>,
) -> anyhow::Result<()> {
    for native in natives {
        let (name, others) = (native.name, native.others.clone());
        counted(report, plan, name, &others, |number| native.iterate(number, buffer))?;
    }
    counted(report, plan, "hob", &[], |number| {
        let target = format!("/?op=train&bucket=durable&key={}&step={number}", key(number));
        local.call(function, target).map(drop)
    })
}

fn counted(
    report: &Report,
    plan: &Plan,
    system: &str,
    others: &[u32],
    mut iterate: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let before = Counters::of("self")?;
    (0..plan.batches).try_for_each(&mut iterate)?;
    let faults = Counters::of("self")?.since(before);
    for (metric, value) in [("page faults for each", faults.faults), ("page faults, disk, for each", faults.disk_faults)] {
        #[expect(clippy::cast_precision_loss, reason = "a few")]
        let value = value / plan.batches as f64;
        report.figure(&Figure { scenario: SCENARIO, system, metric, value, unit: "", ratio: None })?;
    }
    let processes = &[&[std::process::id()], others].concat();
    let (count, len) = (plan.batches, plan.batch_bytes());
    let pass = Pass { scenario: SCENARIO, system, metric: "iteration", count, len, processes };
    pass.run(report, || (0..count).try_for_each(iterate)).map(drop)
}

/// One pass over all batches.
fn whole_pass(report: &Report, plan: &Plan, local: &Local, function: &FunctionRecord, step: usize) -> anyhow::Result<()> {
    let began = Instant::now();
    for number in 0..plan.all {
        let target = format!("/?op=train&bucket=durable&key={}&step={}", key(number), step + number);
        local.call(function, target)?;
    }
    let value = began.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
    let (metric, each) = (format!("{} batches", plan.all), value * 1e3 / plan.all as f64);
    report.figure(&Figure { scenario: SCENARIO, system: "hob", metric: &metric, value, unit: "s", ratio: None })?;
    report.figure(&Figure { scenario: SCENARIO, system: "hob", metric: "each of them", value: each, unit: "ms", ratio: None })?;
    Ok(())
}
