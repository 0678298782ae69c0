//! Scenario `http-hello`: how many requests for "Hello, world!" one core answers, each in a fresh instance.
//!
//! Ceiling: hyper with a constant answer, the same HTTP library without sandbox or routing. Peer: `wasmtime serve` on the same 0.2
//! component, when it is on the PATH. All systems alternate in rounds, so that what drifts in the machine drifts for all; a
//! figure is the median of the rounds.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::guests::Guest;
use crate::load;
use crate::report::{Figure, Report, quantile};
use crate::servers::{self, Role, Server};

const SCENARIO: &str = "http-hello";
const CONNECTIONS: usize = 32;

struct System {
    name: &'static str,
    server: Server,
    target: &'static str,
    rounds: Vec<load::Measured>,
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let (rounds, duration) = if quick { (2, Duration::from_millis(500)) } else { (7, Duration::from_secs(3)) };
    let (handler, component) = (Guest::build("hello")?, Guest::build("hello-http")?);
    let hob = |guest: &Guest| servers::start(&Role::Hob(vec![guest.name.clone()]));
    let system = |name, server, target| System { name, server, target, rounds: Vec::new() };
    let mut systems = vec![
        system("hyper (ceiling)", servers::start(&Role::Hyper)?, "/"),
        system("hob handler", hob(&handler)?, "/hello"),
        system("hob http-0.2", hob(&component)?, "/hello-http"),
    ];
    match wasmtime_serve(&component.wasm) {
        Ok(server) => systems.push(system("wasmtime serve", server, "/")),
        Err(error) => report.note(&format!("without 'wasmtime serve': {error:#}")),
    }
    for _ in 0..rounds {
        for system in &mut systems {
            system.rounds.push(load::run(system.server.addr, system.target, CONNECTIONS, duration)?);
        }
    }
    let mut ceiling = None;
    for system in &systems {
        let median = |of: fn(&load::Measured) -> f64| quantile(&mut system.rounds.iter().map(of).collect::<Vec<_>>(), 0.5);
        let per_second = median(|round| round.per_second);
        let top = *ceiling.get_or_insert(per_second);
        for (metric, value, unit, ratio) in [
            ("requests", per_second, "1/s", Some(per_second / top)),
            ("latency p50", median(|round| round.p50_us), "us", None),
            ("latency p99", median(|round| round.p99_us), "us", None),
        ] {
            report.figure(&Figure { scenario: SCENARIO, system: system.name, metric, value, unit, ratio })?;
        }
    }
    Ok(())
}

/// `wasmtime serve` of a component, on the server's core.
pub(crate) fn wasmtime_serve(component: &Path) -> anyhow::Result<Server> {
    // Its address is printed on standard error only, so it gets a port that was free a moment ago.
    let addr: SocketAddr = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new("sh");
    let serve = format!("exec wasmtime serve -S cli --addr {addr} '{}' 2>&1", component.display());
    command.args(["-c", &serve]);
    servers::start_pinned(command, |line| line.contains("Serving HTTP").then_some((addr, None)))
}
