//! Scenario `start`: what a start costs by rung of the ladder, for a handler, a command, a component, CPython and JavaScript.
//!
//! In process: through the same `Invoke` that serves requests, all limits on. Ceiling: bare wasmtime making and dropping an instance
//! of the same file; `ratio` is how many times that. A start goes to the first host call of a handler, and to the live instance of
//! anything else. Over HTTP and beside other programs: `peers.rs`.

use std::time::Duration;

use anyhow::Context as _;
use hob::invocation::Start;

use crate::guests::Guest;
use crate::local::{Local, Taken};
use crate::peers;
use crate::report::{Figure, Report, quantile};
use crate::{bare, servers};

const SCENARIO: &str = "start";

/// How many invocations a guest gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weight {
    /// Its starts take microseconds.
    Light,
    /// Its starts take up to a millisecond, and its compilation seconds.
    Heavy,
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let mut guests = Vec::new();
    for light in ["hello", "wordcount", "hello-http"] {
        guests.push((Guest::build(light)?, Weight::Light));
    }
    let heavy = if quick { &[][..] } else { &["python-hello", "js-hello"] };
    if quick {
        report.note(
            "skipped: python-hello and js-hello, which take minutes to compile so often; without --quick they are measured",
        );
    }
    for heavy in heavy {
        guests.extend(Guest::build_if_possible(report, heavy)?.map(|guest| (guest, Weight::Heavy)));
    }
    servers::pin(servers::LOAD_CORE)?;
    for (guest, weight) in &guests {
        in_process(report, guest, *weight, quick)?;
    }
    peers::processes(report, SCENARIO, quick)?;
    let components: Vec<_> = guests.into_iter().map(|(guest, _)| guest).filter(|guest| !is_core(&guest.name)).collect();
    peers::over_http(report, SCENARIO, &components, quick)
}

fn is_core(name: &str) -> bool {
    matches!(name, "hello" | "wordcount")
}

fn in_process(report: &Report, guest: &Guest, weight: Weight, quick: bool) -> anyhow::Result<()> {
    let bare = match bare::measure(&guest.wasm, if quick { 100 } else { 2_000 }) {
        Ok(bare) => Some(bare),
        Err(error) => {
            report.note(&format!("{} has no ceiling: {error:#}", guest.name));
            None
        }
    };
    if let Some(bare) = bare {
        let system = format!("{} wasmtime (ceiling)", guest.name);
        for (metric, value) in [("start p50", bare.start), ("whole p50", bare.whole)] {
            report.figure(&Figure { scenario: SCENARIO, system: &system, metric, value, unit: "us", ratio: Some(1.0) })?;
        }
    }
    let local = Local::start()?;
    let function = local.deploy(guest)?;
    for rung in Start::ALL {
        let (count, pause) = plan(rung, weight, quick);
        let measured = local
            // Where a guest belongs is found out in its first invocations.
            .repeat(&function, Start::Resident, 20, Duration::from_millis(1), |_| "/".into())
            .and_then(|_| local.repeat(&function, rung, count + count / 10, pause, |_| "/".into()));
        let mut taken = measured.with_context(|| format!("{} on {}", guest.name, rung.as_str()))?;
        taken.drain(..count / 10);
        taken.retain(|taken| taken.rung == rung);
        if taken.len() < count / 2 {
            report.note(&format!("skipped: {} on {}: {} of {count} began there", guest.name, rung.as_str(), taken.len()));
            continue;
        }
        figures(report, &guest.name, rung, &taken, bare)?;
    }
    local.stop();
    Ok(())
}

/// How many invocations, and the pause before each: instances that wait are made in it.
fn plan(rung: Start, weight: Weight, quick: bool) -> (usize, Duration) {
    let (full, short, pause) = match (rung, weight) {
        (Start::Ready, _) => (1_000, 50, Duration::from_millis(5)),
        (Start::Resident, Weight::Light) => (20_000, 2_000, Duration::ZERO),
        (Start::Resident, Weight::Heavy) => (1_000, 50, Duration::ZERO),
        (Start::Stored, Weight::Light) => (2_000, 200, Duration::ZERO),
        (Start::Stored, Weight::Heavy) => (100, 5, Duration::ZERO),
        (Start::Compiled, Weight::Light) => (20, 2, Duration::ZERO),
        (Start::Compiled, Weight::Heavy) => (2, 1, Duration::ZERO),
    };
    (if quick { short } else { full }, pause)
}

fn figures(report: &Report, name: &str, rung: Start, taken: &[Taken], bare: Option<bare::Bare>) -> anyhow::Result<()> {
    let system = format!("{name} hob");
    let (starts, wholes): (Vec<_>, Vec<_>) = taken.iter().map(|taken| (taken.start, taken.whole)).unzip();
    let ceilings = bare.map(|bare| (bare.start, bare.whole)).unzip();
    for (part, mut values, ceiling) in [("start", starts, ceilings.0), ("whole", wholes, ceilings.1)] {
        for (at, quantile_name) in [(0.5, "p50"), (0.99, "p99")] {
            let value = quantile(&mut values, at);
            let metric = format!("{} {part} {quantile_name}", rung.as_str());
            let ratio = ceiling.map(|ceiling| value / ceiling).filter(|_| at == 0.5);
            report.figure(&Figure { scenario: SCENARIO, system: &system, metric: &metric, value, unit: "us", ratio })?;
        }
    }
    Ok(())
}
