//! Scenario `first-instruction`: in process, from `Store::new` to the first host call of the `hello` handler, which is the first
//! thing it does, and until its instance is gone; on the rung `resident`, all limits on, through the same `Invoke` and the same store
//! builder that serve requests.
//!
//! No ceiling: the bound is in the specification.

use std::time::Instant;

use hob::invocation::{Invocation, Invoke, Payload, Start, Target};

use crate::guests::Guest;
use crate::local::in_turns;
use crate::report::{Figure, Report, quantile};
use crate::servers::{LOAD_CORE, pin, setup};

const SCENARIO: &str = "first-instruction";

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let count = if quick { 2_000 } else { 50_000 };
    let handler = Guest::build("hello")?;
    let dir = tempfile::tempdir()?;
    let node = hob::daemon::Node::start(setup(dir.path()))?;
    let record = node.deploy_file("hello".parse()?, &handler.wasm, handler.manifest)?;
    let dispatcher = node.dispatcher().clone();
    pin(LOAD_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut first, mut whole) = (Vec::with_capacity(count), Vec::with_capacity(count));
    runtime.block_on(async {
        for round in 0..count + count / 10 {
            let request = http::Request::get("/").header("host", "localhost").body(Payload::empty())?;
            let target = Target::Function(record.name.clone());
            let began = Instant::now();
            let invocation =
                Invocation { tenant: record.tenant.clone(), target, request, received: began, start: Some(Start::Resident) };
            let outcome = in_turns(dispatcher.invoke(invocation)).await.result?;
            let took = began.elapsed();
            tokio::task::yield_now().await;
            if round >= count / 10 {
                first.push((outcome.phases.instantiate + outcome.phases.enter).as_secs_f64() * 1e6);
                whole.push(took.as_secs_f64() * 1e6);
            }
        }
        anyhow::Ok(())
    })?;
    node.stop();
    for (name, values) in [("first", &mut first), ("whole", &mut whole)] {
        for (at, metric) in [(0.5, format!("{name} p50")), (0.99, format!("{name} p99"))] {
            let value = quantile(values, at);
            report.figure(&Figure {
                scenario: SCENARIO,
                system: "hob handler",
                metric: &metric,
                value,
                unit: "us",
                ratio: None,
            })?;
        }
    }
    Ok(())
}
