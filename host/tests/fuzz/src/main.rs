//! `hob-fuzz`: random inputs for the doors of Hob, on a stable toolchain, with a saved corpus.
//!
//! Each target takes inputs made from its corpus and from numbers that a seed decides, and says what must hold for each. An input that
//! breaks it is saved beside the corpus and named, with the command that runs it again. Nothing here knows how the code inside works:
//! there is no coverage to follow, so the inputs have the shape of what they are for. `docs/fuzzing.md` says what was run.

mod abi;
mod calls;
mod canary;
mod components;
mod corpus;
mod dice;
mod http1;
mod local;
mod manifest;
mod modules;
mod report;
mod routes;
mod smith;
// They need nothing but the standard library, and are the tests' own.
#[path = "../../all/harness/smuggle.rs"]
mod smuggle;
#[expect(clippy::unwrap_used, reason = "a test's file; none of them can fail")]
#[path = "../../all/harness/strict.rs"]
mod strict;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};

use crate::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is fuzzed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// The text of `hob.toml`.
    Manifest,
    /// Requests to functions with many routes, against a model.
    Routes,
    /// Streams of HTTP/1, mutated, over sockets, against a strict parser.
    Http1,
    /// Mutated modules through the build's own entry, in this process.
    Modules,
    /// Mutated modules through the real child.
    Deploys,
    /// Modules of `wasm-smith` through deploy and invoke.
    Smith,
    /// Random pointers and lengths into every import that a core module may have.
    Abi,
    /// The same of every import that a component of WASI 0.2 may have.
    Components,
    /// The same of WASI 0.3.
    Components3,
    /// Hand-overs of a slot from one instance to the next, with all memory and tables looked at.
    Canary,
}

#[derive(Debug, Parser)]
#[command(about = "Random inputs for every door of Hob")]
struct Args {
    /// What to fuzz; all if none is named.
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// Inputs of each target, instead of its short run's.
    #[arg(long)]
    runs: Option<u64>,
    /// Decides every input.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Appends a line for each target to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Target {
    /// Inputs of a run that is short enough for every change.
    fn short(self) -> u64 {
        match self {
            Self::Manifest => 300_000,
            Self::Routes => 200_000,
            Self::Http1 => 40_000,
            Self::Modules => 20_000,
            Self::Deploys => 200,
            Self::Smith => 300,
            Self::Abi => 200_000,
            Self::Components => 20_000,
            Self::Components3 => 20_000,
            Self::Canary => 1_000_000,
        }
    }

    fn run(self, report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
        match self {
            Self::Manifest => manifest::run(report, runs, seed),
            Self::Routes => routes::run(report, runs, seed),
            Self::Http1 => http1::run(report, runs, seed),
            Self::Modules => modules::in_process(report, runs, seed),
            Self::Deploys => modules::through_the_child(report, runs, seed),
            Self::Smith => smith::run(report, runs, seed),
            Self::Abi => abi::run(report, runs, seed),
            Self::Components => components::two(report, runs, seed),
            Self::Components3 => components::three(report, runs, seed),
            Self::Canary => canary::run(report, runs, seed),
        }
    }
}

fn main() -> anyhow::Result<()> {
    // A node in this process builds with this program.
    hob::engine::build::child::run_if_child();
    let args = Args::parse();
    let targets = if args.targets.is_empty() { Target::value_variants() } else { &args.targets };
    for target in targets {
        let name = format!("{target:?}").to_lowercase();
        let runs = args.runs.unwrap_or_else(|| target.short());
        let began = Instant::now();
        let mut report = Report::default();
        target.run(&mut report, runs, args.seed).with_context(|| format!("hob-fuzz {name} --seed {}", args.seed))?;
        report.tell(&name, args.seed, began.elapsed(), args.json.as_deref())?;
    }
    Ok(())
}
