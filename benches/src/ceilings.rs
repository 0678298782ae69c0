//! Ceilings of scenario `density`: what the machine gives whoever does only a part of what a node does.
//!
//! A start on `stored` cannot be faster than the node's own check and load of the same files, called alone in this process, and bare
//! wasmtime making an instance in a place where there was one of another module; nor one on `resident` than bare wasmtime making an instance
//! where there was one of the same. A deploy of a new module cannot be faster than bare wasmtime
//! compiles it, nor than the disk takes as many bytes, made durable as often; one of a new name not than the disk. How often, `calls.rs`
//! counts on a node of its own; where it cannot, a deploy of a name has no ceiling.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use hob::artifacts::{Artifacts, DataDir};
use hob::config;
use hob::engine::{Engine, Shape};
use hob::id::{Digest, TenantId};
use hob::telemetry::metrics::Metrics;
use hob_bench_work::Dice;

use crate::calls::Pass;
use crate::process::Counters;
use crate::report::{Report, quantile};
use crate::servers::{self, Role};
use crate::{bare, disk, fleet, memory};

/// Medians in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Starts {
    resident: f64,
    stored: f64,
}

impl Starts {
    /// Of a rung, if it has one.
    pub(crate) fn of(self, rung: &str) -> Option<f64> {
        match rung {
            "resident" => Some(self.resident),
            "stored" => Some(self.stored),
            _ => None,
        }
    }
}

/// Starts of the artifacts in a data directory that no node uses now, `count` of them, any as often as any other; and of bare wasmtime
/// with `modules`. Reads all artifacts before, so that whoever comes next finds them in the page cache as well, if there is room.
pub(crate) fn starts(
    data_dir: &Path,
    modules: &[Vec<u8>],
    count: usize,
    mut figure: impl FnMut(&str, f64, &str) -> std::io::Result<()>,
) -> anyhow::Result<Starts> {
    let dir = DataDir::open(data_dir)?;
    let artifacts = Artifacts::open(&dir, dir.mac_key(None)?, u64::MAX)?;
    let small = config::Engine { instances_max: 4, large_instances_max: 0, ..config::Engine::default() };
    let engine = Engine::new(&small, Arc::new(Metrics::new()))?;
    let (tenant, shape) = (TenantId::default(), "handler".parse::<Shape>()?);
    let mut files = Vec::new();
    for path in memory::files(&data_dir.join("artifacts"))? {
        let key = path.file_stem().and_then(|stem| stem.to_str()).context("an artifact without a name")?;
        files.push((Digest::from_hex(key)?, std::fs::read(&path).map(|_| path)?));
    }
    ensure!(!files.is_empty(), "there are no artifacts");
    let mut dice = Dice(3);
    let mut any = || files[usize::try_from(dice.next() % files.len() as u64).unwrap_or_default()].clone();
    let (mut reads, mut checks, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count {
        // Another file than the one that is checked, so that no processor has it in its cache.
        let (read, checked) = (any().1, any().0);
        let began = Instant::now();
        std::fs::read(read)?;
        reads.push(micros(began));
        let began = Instant::now();
        let artifact = artifacts.verify_artifact(&tenant, checked)?;
        checks.push(micros(began));
        let began = Instant::now();
        let _template = engine.load(shape, &artifact)?;
        loads.push(micros(began));
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), &modules[0])?;
    let resident = bare::measure(file.path(), count)?.start;
    let other = bare::of_others(modules, count)?.start;
    let (check, load) = (quantile(&mut checks, 0.5), quantile(&mut loads, 0.5));
    for (metric, value) in [
        ("open and read p50", quantile(&mut reads, 0.5)),
        ("open and check p50", check),
        ("load p50", load),
        ("wasmtime instance p50", resident),
        ("wasmtime instance of another p50", other),
    ] {
        figure(metric, value, "us")?;
    }
    Ok(Starts { resident, stored: check + load + other })
}

fn micros(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}

/// What one deploy asks of the disk: bytes that are written there, and how often something is made durable.
#[derive(Debug, Clone, Copy)]
struct Cost {
    bytes: f64,
    fsyncs: f64,
}

/// What deploys cannot be faster than.
#[derive(Debug)]
pub(crate) struct Deploys<'a> {
    modules: &'a [Vec<u8>],
    module: Option<Cost>,
    name: Option<Cost>,
}

impl<'a> Deploys<'a> {
    /// Deploys each of `modules` under two names on a node of its own, and counts.
    pub(crate) fn count(report: &Report, scenario: &str, modules: &'a [Vec<u8>]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let node = servers::start(&Role::Node { data_dir: dir.path().to_owned(), settings: Vec::new(), guests: Vec::new() })?;
        let (control, pid) = (node.control.context("a node has a control port")?, node.pid().to_string());
        let (count, len) = (modules.len(), modules[0].len());
        let mut costs = [None; 2];
        for (number, (metric, cost)) in ["deploys of new modules", "deploys of new names"].into_iter().zip(&mut costs).enumerate()
        {
            let before = Counters::of(&pid)?;
            let pass = Pass { scenario, system: "hob", metric, count, len, processes: &[node.pid()] };
            let numbers = number * count..(number + 1) * count;
            let calls = pass.run(report, || fleet::deploy(control, modules, numbers).map(drop))?;
            let written = Counters::of(&pid)?.since(before).written;
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
            let each = |all: f64| all / count as f64;
            *cost = calls.map(|calls| Cost { bytes: each(written), fsyncs: each(calls.fsyncs) });
        }
        node.stop()?;
        let [module, name] = costs;
        Ok(Self { modules, module, name })
    }

    /// How many in a second there could be, of new modules, at this moment; prints what of.
    pub(crate) fn of_modules(&self, figure: impl Fn(&str, f64, &str) -> std::io::Result<()>) -> anyhow::Result<f64> {
        let compiles = bare::compiles_per_second(self.modules)?;
        figure("wasmtime compiles", compiles, "1/s")?;
        let Some(cost) = self.module else { return Ok(compiles) };
        let durable = cost.per_second()?;
        figure("durable writes of a module", durable, "1/s")?;
        Ok(compiles.min(durable))
    }

    /// The same of new names.
    pub(crate) fn of_names(&self, figure: impl Fn(&str, f64, &str) -> std::io::Result<()>) -> anyhow::Result<Option<f64>> {
        let Some(cost) = self.name else { return Ok(None) };
        let durable = cost.per_second()?;
        figure("durable writes of a name", durable, "1/s")?;
        Ok(Some(durable))
    }
}

impl Cost {
    fn per_second(self) -> anyhow::Result<f64> {
        let dir = tempfile::tempdir()?;
        // At least a block, as that is the least that a disk takes.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few hundred KiB")]
        let len = self.bytes.max(4096.0) as usize;
        disk::files_per_second(dir.path(), fleet::CLIENTS, 100 * fleet::CLIENTS, len, self.fsyncs)
    }
}
