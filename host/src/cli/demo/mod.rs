//! `hob demo`: the examples, built, deployed over HTTP to a daemon of their own, and given real input.
//!
//! Owns the order of these steps and what is measured. Leaves nothing behind but what the builds put into `examples/target`, also
//! when it is interrupted. Fails when any answer is wrong, or when the daemon does not stop as it should.

mod calls;
mod cases;
mod png;
mod prose;

use std::env;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;

use super::client::Client;
use super::deploy::Package;
use super::failure::Exit;
use super::output::{self, Format};
use super::project::Project;
use super::text::{bytes, clean, span};
use super::trust::Trust;
use super::{Ctx, Failure, node, toolchain};
use crate::control::wire::FunctionInfo;
use calls::{Caller, Calls};
use cases::Case;

/// Arguments of `hob demo`.
#[derive(Debug, Args)]
pub(super) struct Demo {}

/// Sources of the examples in the checkout that this program was built from.
const OWN_EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// An example that is deployed, and how its calls went.
struct Shown {
    info: FunctionInfo,
    deploy: Duration,
    calls: Vec<Calls>,
}

impl Demo {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let examples = find_examples()?;
        add_targets(&examples)?;
        let cases = cases::all();
        let projects = build(&examples, &cases)?;
        let shown = node::with_own(|node| {
            let ready = span(node.took);
            output::note(format!("daemon ready in {ready}: functions http://{}, control http://{}", node.addr, node.control));
            let client = Client::new(&format!("http://{}", node.control), &Trust::default())?;
            let caller = Caller::new(&node.addr);
            let mut shown = Vec::new();
            for (case, project) in cases.iter().zip(&projects) {
                let one = show(&client, &caller, case, project);
                let one = one.map_err(|failure| failure.context(format!("example '{}'", case.example)))?;
                if ctx.format == Format::Text {
                    output::raw(one.text().as_bytes())?;
                }
                shown.push(one);
            }
            Ok(shown)
        })?;
        output::note("the daemon drained and stopped with exit code 0; nothing is left behind");
        if ctx.format == Format::Json {
            output::json(&shown.iter().map(Shown::json).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// The examples below the current folder, else those of the checkout that this program was built from.
fn find_examples() -> Result<PathBuf, Failure> {
    let here = env::current_dir().context("there is no current folder")?.join("examples");
    let found = [here, PathBuf::from(OWN_EXAMPLES)].into_iter().find(|folder| folder.join("hello/hob.toml").is_file());
    let found = found.ok_or_else(|| {
        let failure =
            Failure::new(Exit::NotFound, "there is no folder 'examples' here, and the sources of this program are gone");
        failure.hint("run it in a checkout of hob").next("cargo run --release -- demo")
    })?;
    Ok(found.canonicalize().context("the folder of the examples went away")?)
}

fn add_targets(examples: &Path) -> Result<(), Failure> {
    let missing = toolchain::missing_targets(examples).map_err(super::failure::next("hob doctor"))?;
    for target in missing {
        toolchain::add_target(target, examples).map_err(super::failure::next("hob doctor"))?;
    }
    Ok(())
}

fn build(examples: &Path, cases: &[Case]) -> Result<Vec<(Project, PathBuf)>, Failure> {
    let build = |case: &Case| {
        let project = Project::load(&examples.join(case.example))?;
        let wasm = project.build()?;
        output::note(format!("built {}: {} in {}", case.example, bytes(wasm.bytes), span(wasm.took.unwrap_or_default())));
        Ok((project, wasm.path))
    };
    cases.iter().map(build).collect()
}

/// Deploys an example and sends it its requests.
fn show(client: &Client, caller: &Caller, case: &Case, (project, wasm): &(Project, PathBuf)) -> Result<Shown, Failure> {
    let package = Package::of_project(project, wasm.clone(), None)?;
    let began = Instant::now();
    let deployed = package.deploy(client, None)?;
    let deploy = began.elapsed();
    let calls = case.requests.iter().map(|request| caller.calls(package.name(), request)).collect::<anyhow::Result<_>>()?;
    Ok(Shown { info: deployed.info, deploy, calls })
}

impl Shown {
    fn text(&self) -> String {
        let Self { info, deploy, calls } = self;
        let (name, kind) = (clean(&info.name), clean(&info.kind));
        let mut text = format!("\n{name} ({kind}, {}): deployed in {}\n", bytes(info.wasm_bytes), span(*deploy));
        text.extend(calls.iter().map(Calls::text));
        text
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.info.name,
            "kind": self.info.kind,
            "wasm_bytes": self.info.wasm_bytes,
            "deploy_ms": self.deploy.as_secs_f64() * 1e3,
            "calls": self.calls.iter().map(Calls::json).collect::<Vec<_>>(),
        })
    }
}
