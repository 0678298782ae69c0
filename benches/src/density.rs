//! Scenario `density`: up to 100,000 functions over 1,000 distinct modules on one node.
//!
//! Deploys go over the control port; a tenth of the modules may be resident, so that requests start on both `resident` and `stored`.
//! Requests come one after another on one connection; times of a start are the node's own, from `server-timing`. Memory of functions is
//! that of a node that has just started; memory of templates, what one more node with few instances, which has read all of the
//! functions and loaded the first, has more once it has loaded the others. Ceilings, measured in the same run: `ceilings.rs`; of memory for
//! each function, what its records have on disk, which a node that keeps all of them in memory would need; of a template, none: the
//! bound is in the specification.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use hob_bench_work::Dice;

use crate::bare;
use crate::ceilings::{self, Deploys, Starts};
use crate::fleet::{self, Answer, Client};
use crate::guests::Guest;
use crate::memory::{self, Memory};
use crate::report::{Figure, Report, quantile};
use crate::servers::{self, Role, Server};

const SCENARIO: &str = "density";
/// Modules that are enough for a ceiling of starts.
const FEW: usize = 24;
const _: () = assert!(FEW > bare::MEMORIES as usize);

/// Sizes of a run.
struct Plan {
    modules: usize,
    /// Functions, growing.
    levels: &'static [usize],
    requests: usize,
    /// Starts of a ceiling, and deploys that are counted.
    ceiling_starts: usize,
    counted: usize,
}

impl Plan {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self { modules: 200, levels: &[200, 2_000], requests: 1_000, ceiling_starts: 200, counted: FEW },
            false => {
                Self { modules: 1_000, levels: &[1_000, 10_000, 100_000], requests: 50_000, ceiling_starts: 5_000, counted: 200 }
            }
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
    let possible = Deploys::count(report, SCENARIO, &modules[..plan.counted])?;
    let mut node = start()?;
    let (empty, registry) = (memory_of(&node)?, registry_len(dir.path())?);
    let mut deployed = 0;
    for level in plan.levels.iter().copied() {
        let system = format!("{level} functions");
        let figure = |metric: &str, value, unit: &str, ceiling: Option<f64>| {
            let ratio = ceiling.map(|ceiling| value / ceiling);
            report.figure(&Figure { scenario: SCENARIO, system: &system, metric, value, unit, ratio })
        };
        let of_ceiling = format!("{system} (ceiling)");
        let ceiling = |metric: &str, value, unit: &str| {
            report.figure(&Figure { scenario: SCENARIO, system: &of_ceiling, metric, value, unit, ratio: None })
        };
        let control = node.control.context("a node has a control port")?;
        let (kind, most) = match deployed < plan.modules {
            true => ("deploys of new modules", Some(possible.of_modules(ceiling)?)),
            false => ("deploys of new names", possible.of_names(ceiling)?),
        };
        figure(kind, fleet::deploy(control, &modules, deployed..level)?, "1/s", most)?;
        deployed = level;
        node.stop()?;
        let record = (registry_len(dir.path())? - registry) / count(level);
        ceiling("registry on disk for each", record, "B")?;
        let starts = ceilings::starts(dir.path(), &modules[..FEW], plan.ceiling_starts, ceiling)?;
        node = start()?;
        let idle = memory_of(&node)?;
        figure("memory for each function", (idle.anonymous - empty.anonymous) / count(level), "B", Some(record))?;
        match memory::cached(&memory::files(&dir.path().join("artifacts"))?) {
            Some(part) => figure("artifacts in page cache", part * 100.0, "%", None)?,
            None => report.note("whether artifacts are in the page cache is not known: the file system does not tell"),
        }
        for (mix, target) in [("uniform", uniform(level)), ("zipf", zipf(level))] {
            requests(node.addr, &plan, target, starts, |metric, value, unit, most| {
                figure(&format!("{mix} {metric}"), value, unit, most)
            })?;
        }
        figure("memory after requests", memory_of(&node)?.anonymous / f64::from(1 << 20), "MiB", None)?;
    }
    node.stop()?;
    templates(report, dir.path(), plan.modules)
}

/// What each of `modules` templates takes. With few instances, what their slots keep does not count; nor does what the first request
/// of a node takes, nor the pages of the registry that are kept in memory, up to a bound, for whichever functions were read last.
fn templates(report: &Report, data_dir: &Path, modules: usize) -> anyhow::Result<()> {
    let settings = ["engine.instances_max=4", "engine.large_instances_max=0", "engine.ready_max=0"].map(String::from).to_vec();
    let role = Role::Node { data_dir: data_dir.to_owned(), settings, guests: Vec::new() };
    let node = servers::start(&role)?;
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

#[expect(clippy::cast_precision_loss, reason = "sizes far below 2^53")]
fn registry_len(data_dir: &Path) -> anyhow::Result<f64> {
    Ok(std::fs::metadata(data_dir.join("registry.redb"))?.len() as f64)
}

fn requests(
    addr: std::net::SocketAddr,
    plan: &Plan,
    mut target: impl FnMut() -> usize,
    ceilings: Starts,
    mut figure: impl FnMut(&str, f64, &'static str, Option<f64>) -> std::io::Result<()>,
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
        figure(&format!("{rung} part"), count(starts.len()) / count(plan.requests) * 100.0, "%", None)?;
        for (at, name) in [(0.5, "p50"), (0.99, "p99")] {
            let ceiling = ceilings.of(&rung).filter(|_| at == 0.5);
            figure(&format!("{rung} start {name}"), quantile(&mut starts, at), "us", ceiling)?;
            figure(&format!("{rung} total {name}"), quantile(&mut totals, at), "us", None)?;
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
