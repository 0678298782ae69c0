//! `hob bench cold`: what a function's starts cost, rung by rung of the start ladder.
//!
//! Owns which daemon is measured and the order of the rungs. `load.rs` sends, `figures.rs` sorts, `report.rs` and `svg.rs` show,
//! `machine.rs` says where. Invariant: a rung's figures are made of answers that name this rung, and of no other.

mod figures;
mod load;
mod machine;
mod report;
mod svg;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::client::Client;
use super::deploy::Package;
use super::failure::Exit;
use super::output::{self, Format};
use super::project::Project;
use super::trust::Trust;
use super::{Ctx, Failure, interrupt, node};
use crate::fault::Code;
use crate::id::FunctionName;
use crate::invocation::Start;
use crate::manifest::FILE_NAME;
use load::{Measured, Plan};
use report::Report;

/// Arguments of `hob bench`.
#[derive(Debug, Args)]
pub(super) struct Bench {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Send requests at a steady rate, force each rung in turn, and show where the time goes
    Cold(Cold),
}

/// Arguments of `hob bench cold`.
#[derive(Debug, Args)]
struct Cold {
    /// Name of a function of the daemon at --server, or a Wasm file (with a '.' or '/') for a daemon of its own; a hob.toml
    /// beside the file counts
    #[arg(value_name = "NAME|FILE")]
    target: PathBuf,
    /// Requests per second [default: 100; stored: 50; compiled: 1]
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Requests for each rung [default: 500; stored: 250; compiled: 10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,
    /// Rungs to force: some of ready, resident, stored, compiled [default: all]
    #[arg(long, value_name = "RUNG,…", value_delimiter = ',')]
    rungs: Vec<Start>,
    /// Draw the result into this file as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Most requests per second: threads that wait for their moment cannot tell closer ones apart.
const RATE_MAX: f64 = 10_000.0;
/// Fewest: one in an hour and a half.
const RATE_MIN: f64 = 0.0002;

fn rate(text: &str) -> Result<f64, String> {
    let expected = || format!("expected a number of requests per second, from {RATE_MIN} to {RATE_MAX}");
    text.parse().ok().filter(|rate| (RATE_MIN..=RATE_MAX).contains(rate)).ok_or_else(expected)
}

/// Rate and number of requests for a rung when nobody says: all four take some 25 s together.
fn usual(rung: Start) -> (f64, u32) {
    match rung {
        Start::Ready | Start::Resident => (100.0, 500),
        Start::Stored => (50.0, 250),
        Start::Compiled => (1.0, 10),
    }
}

impl Bench {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        match self.what {
            What::Cold(cold) => cold.run(ctx),
        }
    }
}

impl Cold {
    fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        if let Some(path) = &self.svg {
            check_writable(path)?;
        }
        let text = self.target.to_str().unwrap_or_default();
        let report = match text.parse::<FunctionName>() {
            Ok(name) => {
                interrupt::on_signal(|| ())?;
                self.measure(&ctx.client()?, &name, &machine::Daemon::Other(ctx.server.clone()))?
            }
            Err(_) => self.measure_file()?,
        };
        if let Some(path) = &self.svg {
            std::fs::write(path, svg::draw(&report)).with_context(|| format!("cannot write '{}'", path.display()))?;
        }
        match ctx.format {
            Format::Json => output::json(&report.json())?,
            Format::Text => output::raw(report.text().as_bytes())?,
        }
        Ok(())
    }

    /// With a daemon of its own.
    fn measure_file(&self) -> Result<Report, Failure> {
        let package = package(&self.target)?;
        node::with_own(|node| {
            let client = Client::new(&format!("http://{}", node.control), &Trust::default())?;
            package.deploy(&client, None)?;
            self.measure(&client, package.name(), &machine::Daemon::Own { data_dir: node.data_dir.clone() })
        })
        .map_err(|failure| elsewhere(failure, package.name()))
    }

    fn measure(&self, client: &Client, name: &FunctionName, daemon: &machine::Daemon) -> Result<Report, Failure> {
        let function = client.function(name)?;
        // A function that does not work at all is an error and no result.
        load::probe(client, name)?;
        let mut rungs = if self.rungs.is_empty() { Start::ALL.to_vec() } else { self.rungs.clone() };
        rungs.sort_by_key(|rung| *rung as usize);
        rungs.dedup();
        // The slowest first: what it leaves behind serves the faster ones.
        let measured = rungs.into_iter().rev().map(|rung| self.measure_rung(client, name, rung));
        let mut measured = measured.collect::<Result<Vec<_>, _>>()?;
        measured.reverse();
        let now = client.function(name)?;
        let (before, after) = (function.function.revision, now.function.revision);
        if (before, &function.function.digest) != (after, &now.function.digest) {
            let sentence = format!("'{name}' was deployed while it was measured: revision {after} took the place of {before}");
            return Err(Failure::new(Exit::Failure, sentence).next(format!("hob bench cold {name}")));
        }
        // One that does not say is measured all the same.
        Ok(Report::new(function, daemon, client.node().ok().as_ref(), &measured))
    }

    fn measure_rung(&self, client: &Client, name: &FunctionName, rung: Start) -> Result<Measured, Failure> {
        let (rate, count) = usual(rung);
        let plan = Plan { rung, rate: self.rate.unwrap_or(rate), count: self.count.unwrap_or(count) };
        let what = format!("{}: {} requests at {} per second", rung.as_str(), plan.count, plan.rate);
        let spinner = output::spinner(&what);
        let measured = load::run(client, name, plan)?;
        spinner.finish_and_clear();
        Ok(measured)
    }
}

/// Where a function can be measured for which a daemon of its own does not do: nobody can set its secrets there.
fn elsewhere(failure: Failure, name: &FunctionName) -> Failure {
    if !failure.is(Code::SecretUnavailable) {
        return failure;
    }
    let hint = "a daemon of its own has no secrets: deploy the function where they are, and measure it there by its name";
    failure.hint(hint).next(format!("hob bench cold {name}"))
}

/// The file to deploy: as a hob.toml beside it says, else with the usual limits.
fn package(path: &Path) -> Result<Package, Failure> {
    let shown = path.display();
    if !path.is_file() {
        let why = if path.is_dir() { "is a folder" } else { "does not exist" };
        let failure = Failure::new(Exit::NotFound, format!("'{shown}' {why}: expected a Wasm file, or the name of a function"));
        return Err(failure.next("hob build"));
    }
    let name: FunctionName = "bench".parse().context("the name is legal")?;
    let manifest = path.with_file_name(FILE_NAME);
    if !manifest.is_file() {
        return Package::of_file(path, Some(name));
    }
    let project = Project::load(&manifest)?;
    let own = project.manifest.name.clone();
    Package::of_project(&project, path.to_owned(), Some(own.unwrap_or(name)))
}

/// Refuses a picture that could not be written at the end, before anything is measured.
fn check_writable(path: &Path) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.is_dir() && !path.is_dir() {
        return Ok(());
    }
    let sentence = format!("'{}' cannot be written: expected a file in a folder that exists", path.display());
    Err(Failure::new(Exit::Usage, sentence).next("hob bench cold --help"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_above_nothing_and_below_what_can_be_kept() {
        assert_eq!((rate("0.5"), rate("10000")), (Ok(0.5), Ok(RATE_MAX)));
        for bad in ["0", "-1", "nan", "inf", "1e9", "10001", "fast", ""] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_usual_run_is_well_under_a_minute() {
        let seconds: f64 = Start::ALL.into_iter().map(usual).map(|(rate, count)| f64::from(count) / rate).sum();
        assert!(seconds < 30.0, "{seconds}");
    }
}
