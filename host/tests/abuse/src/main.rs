//! `hob-abuse [--short|--long] [ROW…] [--once-more] [--json FILE]`: attacks a real node, one attack at a time, beside a victim whose every answer is
//! checked. `docs/abuse.md` says what each row means, and what passes.

mod a;
mod b;
mod c;
mod case;
mod d;
mod e;
mod f;
mod g;
mod guests;
mod h;
mod http;
mod node;
mod observe;
mod report;
mod rival;
mod run;
mod swarm;
mod tenants;
mod victim;
mod world;

/// What the tests have for the same attacks.
#[path = "../../all/harness/escape.rs"]
#[expect(clippy::unwrap_used, reason = "written for tests")]
mod escape;
#[path = "../../all/harness/exposed.rs"]
#[expect(clippy::unwrap_used, reason = "written for tests")]
mod exposed;
#[path = "../../all/harness/inside.rs"]
mod inside;
#[path = "../../all/harness/upstream.rs"]
#[expect(clippy::unwrap_used, dead_code, reason = "written for tests, which use more of it")]
mod upstream;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};
use clap::Parser;

use case::{Kind, Scale};
use report::Report;

/// Attacks a node of Hob, beside a victim whose answers are checked.
#[derive(Debug, Parser)]
struct Args {
    /// Rows (`F1`), letters (`F`) or names of attacks; all of them if there is none.
    rows: Vec<String>,
    /// A few minutes in all: statuses, errors, descriptors, threads and memory are judged, times are printed. The default.
    #[arg(long, conflicts_with = "long")]
    short: bool,
    /// Attacks at full size; times are judged too.
    #[arg(long)]
    long: bool,
    /// Runs an attack that failed once more; the second run is what counts. For machines that have other work.
    #[arg(long)]
    once_more: bool,
    /// Writes a JSON object for each attack to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The program under attack; without it `hob` is built, in the same profile as this.
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Instead of attacks on Hob alone: silent and dripping connections against Hob and another server, `wasmtime=PATH`.
    #[arg(long, value_name = "NAME=PATH")]
    rival: Option<String>,
    /// Lists the attacks.
    #[arg(long)]
    list: bool,
}

fn cases() -> Vec<Kind> {
    [a::CASES, b::CASES, c::CASES, d::CASES, e::CASES, f::CASES, g::CASES, h::CASES].concat()
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let scale = if args.long { Scale::Long } else { Scale::Short };
    let chosen: Vec<_> = cases().into_iter().filter(|kind| is_chosen(kind, &args.rows)).collect();
    ensure!(!chosen.is_empty(), "no attack is called {:?}; --list has them", args.rows);
    if args.list {
        for kind in &chosen {
            println(&format!("{:<4} {}", kind.row(), kind.name()))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let binary = match &args.binary {
        Some(path) => path.canonicalize().with_context(|| format!("'{}' is not there", path.display()))?,
        None => build()?,
    };
    let mut report = Report::new(args.json.as_deref())?;
    if let Some(rival) = &args.rival {
        rival::run(rival, &binary, scale, &mut report)?;
        return Ok(ExitCode::SUCCESS);
    }
    report.heading()?;
    let (mut verdicts, mut failed) = (Vec::new(), Vec::new());
    for kind in &chosen {
        let mut finding = run::run(kind, &binary, scale);
        report.add(&finding)?;
        if args.once_more && finding.failed() {
            finding = run::run(kind, &binary, scale);
            report.add(&finding)?;
        }
        verdicts.push(finding.verdict());
        failed.extend(finding.failed().then_some(finding));
    }
    for finding in &failed {
        // Once more at the end: of a long output that alone may be kept.
        println(&format!("{} {}: {}", finding.row, finding.name, finding.complaints.join("; ")))?;
    }
    let count = |verdict| verdicts.iter().filter(|have| **have == verdict).count();
    println(&format!("{} ok, {} failed, {} skipped", count("ok"), count("FAILED"), count("skipped")))?;
    Ok(if count("FAILED") == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_chosen(kind: &Kind, rows: &[String]) -> bool {
    let is_it = |wanted: &String| {
        let letter = wanted.len() == 1 && kind.row().starts_with(wanted.as_str());
        letter || kind.row() == wanted || kind.name() == wanted
    };
    rows.is_empty() || rows.iter().any(is_it)
}

/// Builds the program, which lies beside this one then.
fn build() -> anyhow::Result<PathBuf> {
    let me = std::env::current_exe()?;
    let folder = me.parent().context("a program without a folder")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    command.args(["build", "--package", "hob", "--bin", "hob", "--locked"]);
    if folder.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("cargo does not start; --binary names a program that is there")?;
    ensure!(status.success(), "hob cannot be built: {status}");
    Ok(folder.join("hob"))
}

fn println(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{text}")?)
}
