//! Other ways to get an answer, for scenario `start`: processes from their start to their end, and `wasmtime serve` on the same files.
//!
//! What is not on the PATH is skipped by a note that names it.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::guests::{self, Guest};
use crate::http_hello::wasmtime_serve;
use crate::load::{self, Measured};
use crate::report::{Figure, Report, quantile};
use crate::servers::{self, Role, Server};

/// Requests per second of the open loop.
const RATE: f64 = 100.0;
const CONNECTIONS: usize = 32;

/// Programs that say hello or count no words, each in a process of its own. `ratio` is to the native program.
pub(crate) fn processes(report: &Report, scenario: &str, quick: bool) -> anyhow::Result<()> {
    let native = guests::build_native_wordcount()?;
    let wordcount = Guest::load("wordcount")?.wasm;
    let (native, wordcount) = (native.to_string_lossy(), wordcount.to_string_lossy());
    let programs: [(&str, &[&str], usize); 4] = [
        ("native wordcount (ceiling)", &[&native], 500),
        ("wasmtime run wordcount", &["wasmtime", "run", &wordcount], 100),
        ("python3 hello", &["python3", "-c", "print('Hello, world!')"], 50),
        ("node hello", &["node", "-e", "console.log('Hello, world!')"], 30),
    ];
    let mut ceiling = None;
    for (system, command, count) in programs {
        let count = if quick { 5 } else { count };
        let times = (0..count).map(|_| time(command)).collect::<anyhow::Result<Vec<_>>>();
        match times {
            Ok(mut times) => {
                let value = quantile(&mut times, 0.5);
                let ratio = Some(value / *ceiling.get_or_insert(value));
                report.figure(&Figure { scenario, system, metric: "process p50", value, unit: "us", ratio })?;
            }
            Err(error) => report.note(&format!("skipped: {system}: {error:#}")),
        }
    }
    Ok(())
}

/// Microseconds from before fork and exec until the end was seen.
fn time(command: &[&str]) -> anyhow::Result<f64> {
    let mut process = Command::new(command[0]);
    process.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null());
    let began = Instant::now();
    let status = process.status()?;
    let took = began.elapsed();
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(took.as_secs_f64() * 1e6)
}

/// One server, and what each round measured.
struct System {
    name: String,
    server: Server,
    target: String,
    open: Vec<f64>,
    alone: Vec<f64>,
    requests: Vec<f64>,
}

impl System {
    fn new(name: String, server: Server, target: String) -> Self {
        Self { name, server, target, open: Vec::new(), alone: Vec::new(), requests: Vec::new() }
    }

    fn round(&mut self, duration: Duration) -> anyhow::Result<()> {
        let (addr, target) = (self.server.addr, self.target.as_str());
        let p50 = |measured: Measured| measured.p50_us;
        self.open.push(p50(load::run_open(addr, target, RATE, duration)?));
        self.alone.push(p50(load::run(addr, target, 1, duration)?));
        self.requests.push(load::run(addr, target, CONNECTIONS, duration)?.per_second);
        Ok(())
    }
}

/// Each component over HTTP, on one core, beside bare hyper and `wasmtime serve`, in rounds that alternate.
pub(crate) fn over_http(report: &Report, scenario: &str, guests: &[Guest], quick: bool) -> anyhow::Result<()> {
    let (rounds, duration) = if quick { (1, Duration::from_millis(500)) } else { (5, Duration::from_secs(3)) };
    for guest in guests {
        let name = &guest.name;
        let mut systems = vec![
            System::new("hyper (ceiling)".into(), servers::start(&Role::Hyper)?, "/".into()),
            System::new(format!("{name} hob"), servers::start(&Role::Hob(vec![name.clone()]))?, format!("/{name}")),
        ];
        match wasmtime_serve(&guest.wasm) {
            Ok(server) => systems.push(System::new(format!("{name} wasmtime serve"), server, "/".into())),
            Err(error) => report.note(&format!("skipped: wasmtime serve: {error:#}")),
        }
        for system in &systems {
            // A first request compiles, or finds out where the guest belongs.
            load::run(system.server.addr, &system.target, 1, duration.min(Duration::from_secs(1)))?;
        }
        for _ in 0..rounds {
            for system in &mut systems {
                system.round(duration)?;
            }
        }
        let figures: Vec<_> = systems.iter_mut().map(summary).collect();
        for (system, values) in systems.iter().zip(&figures) {
            for (at, (metric, unit)) in METRICS.into_iter().enumerate() {
                let (value, ratio) = (values[at], Some(values[at] / figures[0][at]));
                report.figure(&Figure { scenario, system: &system.name, metric, value, unit, ratio })?;
            }
        }
        if let [_, hob, peer] = &figures[..] {
            for (at, (metric, _)) in METRICS.into_iter().enumerate() {
                let system = format!("{name} hob / wasmtime serve");
                let value = hob[at] / peer[at];
                report.figure(&Figure { scenario, system: &system, metric, value, unit: "times", ratio: None })?;
            }
        }
    }
    Ok(())
}

const METRICS: [(&str, &str); 3] = [("open 100/s p50", "us"), ("1 connection p50", "us"), ("32 connections", "1/s")];

/// Medians of the rounds, in the order of [`METRICS`].
fn summary(system: &mut System) -> [f64; 3] {
    [&mut system.open, &mut system.alone, &mut system.requests].map(|values| quantile(values, 0.5))
}
