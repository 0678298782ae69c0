//! Scenario `density`: up to 100,000 functions over 1,000 distinct modules on one node.
//!
//! Deploys go over the control port; a tenth of the modules may be resident, so that requests start on both `resident` and `stored`.
//! Requests come one after another on one connection; times of a start are the node's own, from `server-timing`. Memory of functions is
//! that of a node that has just started; memory of templates, what one more node with few instances, which has read all of the
//! functions and loaded the first, has more once it has loaded the others. Ceiling of memory and deploys: none; of a start: see scenario `start`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use hob_bench_work::Dice;

use crate::fleet::{self, Answer, Client};
use crate::guests::Guest;
use crate::memory::{self, Memory};
use crate::report::{Figure, Report, quantile};
use crate::servers::{self, Role, Server};

const SCENARIO: &str = "density";

/// Sizes of a run.
struct Plan {
    modules: usize,
    /// Functions, growing.
    levels: &'static [usize],
    requests: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { modules: 200, levels: &[200, 2_000], requests: 1_000 },
            false => Self { modules: 1_000, levels: &[1_000, 10_000, 100_000], requests: 50_000 },
        }
    }
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let plan = Plan::new(quick);
    let hello = std::fs::read(Guest::build("hello")?.wasm)?;
    let modules = (0..plan.modules).map(|seed| fleet::variant(&hello, seed as u64)).collect::<anyhow::Result<Vec<_>>>()?;
    let dir = tempfile::tempdir()?;
    let settings = vec![format!("engine.templates_max={}", plan.modules / 10)];
    let start =
        || servers::start(&Role::Node { data_dir: dir.path().to_owned(), settings: settings.clone(), guests: Vec::new() });
    let mut node = start()?;
    let empty = memory_of(&node)?;
    let mut deployed = 0;
    for level in plan.levels.iter().copied() {
        let system = format!("{level} functions");
        let figure = |metric: &str, value, unit| {
            report.figure(&Figure { scenario: SCENARIO, system: &system, metric, value, unit, ratio: None })
        };
        let control = node.control.context("a node has a control port")?;
        let kind = if deployed < plan.modules { "deploys of new modules" } else { "deploys of new names" };
        figure(kind, fleet::deploy(control, &modules, deployed..level)?, "1/s")?;
        deployed = level;
        node.stop()?;
        node = start()?;
        let idle = memory_of(&node)?;
        figure("memory for each function", (idle.anonymous - empty.anonymous) / count(level), "B")?;
        match memory::cached(&memory::files(&dir.path().join("artifacts"))?) {
            Some(part) => figure("artifacts in page cache", part * 100.0, "%")?,
            None => report.note("whether artifacts are in the page cache is not known: the file system does not tell"),
        }
        for (mix, target) in [("uniform", uniform(level)), ("zipf", zipf(level))] {
            requests(node.addr, &plan, target, |metric, value, unit| figure(&format!("{mix} {metric}"), value, unit))?;
        }
        figure("memory after requests", memory_of(&node)?.anonymous / f64::from(1 << 20), "MiB")?;
    }
    node.stop()?;
    templates(report, dir.path(), plan.modules)
}

/// What each of `modules` templates takes. With few instances, what their slots keep does not count; nor does what the first request
/// of a node takes, nor the pages of the registry that are kept in memory, up to a bound, for whichever functions were read last. The
/// allocator asks for no huge pages: with them each of its heaps grows in steps of 2 MiB, which of few templates is most.
fn templates(report: &Report, data_dir: &Path, modules: usize) -> anyhow::Result<()> {
    let settings = ["engine.instances_max=4", "engine.large_instances_max=0", "engine.ready_max=0"].map(String::from).to_vec();
    let role = Role::Node { data_dir: data_dir.to_owned(), settings, guests: Vec::new() };
    let node = servers::start_with(&role, &[("MIMALLOC_ALLOW_THP", "0")])?;
    let mut control = Client::connect(node.control.context("a node has a control port")?)?;
    for number in 0..modules {
        let answer = control.exchange(&format!("GET /v1/functions/{} HTTP/1.1\r\n", fleet::name(number)), b"")?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "function {number} is not known: {answer}");
    }
    let mut client = Client::connect(node.addr)?;
    client.call(0)?;
    let before = memory_of(&node)?;
    for number in 1..modules {
        client.call(number)?;
    }
    let after = memory_of(&node)?;
    let each = |after: f64, before: f64| (after - before) / count(modules - 1);
    let system = format!("{modules} templates");
    for (metric, value, unit) in [
        ("anonymous for each", each(after.anonymous, before.anonymous) / 1024.0, "KiB"),
        ("mappings for each", each(after.mappings, before.mappings), ""),
        ("descriptors for each", each(after.descriptors, before.descriptors), ""),
    ] {
        report.figure(&Figure { scenario: SCENARIO, system: &system, metric, value, unit, ratio: None })?;
    }
    node.stop()
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn count(number: usize) -> f64 {
    number as f64
}

fn memory_of(node: &Server) -> anyhow::Result<Memory> {
    Memory::of(&node.pid().to_string())
}

fn requests(
    addr: std::net::SocketAddr,
    plan: &Plan,
    mut target: impl FnMut() -> usize,
    mut figure: impl FnMut(&str, f64, &'static str) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut client = Client::connect(addr)?;
    let mut by_rung: BTreeMap<String, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
    for _ in 0..plan.requests {
        let Answer { rung, start_us, total_us } = client.call(target())?;
        let (starts, totals) = by_rung.entry(rung).or_default();
        starts.push(start_us);
        totals.push(total_us);
    }
    for (rung, (mut starts, mut totals)) in by_rung {
        figure(&format!("{rung} part"), count(starts.len()) / count(plan.requests) * 100.0, "%")?;
        for (at, name) in [(0.5, "p50"), (0.99, "p99")] {
            figure(&format!("{rung} start {name}"), quantile(&mut starts, at), "us")?;
            figure(&format!("{rung} total {name}"), quantile(&mut totals, at), "us")?;
        }
    }
    Ok(())
}

type Target = Box<dyn FnMut() -> usize>;

/// Each of `functions` as often as any other.
fn uniform(functions: usize) -> Target {
    let mut dice = Dice(1);
    Box::new(move || usize::try_from(dice.next() % functions as u64).unwrap_or_default())
}

/// The function number n as often as 1 / (n + 1).
fn zipf(functions: usize) -> Target {
    let mut sums = Vec::with_capacity(functions);
    let mut sum = 0.0;
    for number in 0..functions {
        sum += 1.0 / count(number + 1);
        sums.push(sum);
    }
    let mut dice = Dice(2);
    #[expect(clippy::cast_precision_loss, reason = "53 of the bits are enough")]
    Box::new(move || {
        let point = (dice.next() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        sums.partition_point(|sum| *sum < point).min(functions - 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_first_is_asked_for_most() {
        let mut counts = [0; 10];
        let mut target = zipf(10);
        (0..10_000).for_each(|_| counts[target()] += 1);
        // The tenth harmonic number is 2.93.
        assert!((3_200..3_650).contains(&counts[0]) && (250..450).contains(&counts[9]), "{counts:?}");
        let mut target = uniform(10);
        assert!((0..1000).map(|_| target()).all(|number| number < 10));
    }
}
