//! Scenario `restart`: from the start of a node's process with 100,000 functions deployed to its readiness, and its first request.
//!
//! Nothing is loaded ahead, so the first request must start on `stored`. Ceiling: the same without any function.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, ensure};

use crate::fleet::{self, Client};
use crate::guests::Guest;
use crate::report::{Figure, Report, quantile};
use crate::servers::{self, Role};

const SCENARIO: &str = "restart";

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let (modules, functions, rounds) = if quick { (50, 2_000, 3) } else { (1_000, 100_000, 10) };
    let hello = std::fs::read(Guest::build("hello")?.wasm)?;
    let modules = (0..modules).map(|seed| fleet::variant(&hello, seed)).collect::<anyhow::Result<Vec<_>>>()?;
    let dir = tempfile::tempdir()?;
    let empty = measure(report, dir.path(), 0, rounds, None)?;
    let node = servers::start(&role(dir.path()))?;
    fleet::deploy(node.control.context("a node has a control port")?, &modules, 0..functions)?;
    node.stop()?;
    measure(report, dir.path(), functions, rounds, Some(empty))?;
    Ok(())
}

fn role(dir: &Path) -> Role {
    Role::Node { data_dir: dir.to_owned(), settings: Vec::new(), guests: Vec::new() }
}

/// Prints the figures and returns the time to readiness.
fn measure(report: &Report, dir: &Path, functions: usize, rounds: usize, ceiling: Option<f64>) -> anyhow::Result<f64> {
    let (mut ready, mut first, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let began = Instant::now();
        let node = servers::start(&role(dir))?;
        let answer =
            Client::connect(node.control.context("a node has a control port")?)?.exchange("GET /readyz HTTP/1.1\r\n", b"")?;
        ready.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.starts_with("HTTP/1.1 200"), "the node is not ready: {answer}");
        if functions > 0 {
            let answer = Client::connect(node.addr)?.call(round * functions / rounds)?;
            ensure!(answer.rung == "stored", "the first request began on '{}', expected 'stored'", answer.rung);
            first.push(answer.total_us);
            starts.push(answer.start_us);
        }
        node.stop()?;
    }
    let p50 = quantile(&mut ready, 0.5);
    let system = if functions > 0 { format!("{functions} functions") } else { "no function (ceiling)".to_owned() };
    let figure =
        |metric, value, unit, ratio| report.figure(&Figure { scenario: SCENARIO, system: &system, metric, value, unit, ratio });
    figure("ready p50", p50, "ms", Some(p50 / ceiling.unwrap_or(p50)))?;
    if functions > 0 {
        figure("first request p50, stored", quantile(&mut first, 0.5), "us", None)?;
        figure("its start p50", quantile(&mut starts, 0.5), "us", None)?;
    }
    Ok(p50)
}
