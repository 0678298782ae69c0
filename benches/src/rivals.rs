//! Native servers with dependencies that nothing else here wants: `benches/rivals`, a package of its own, built when it is asked for.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;

use crate::report::Report;
use crate::servers::{self, Server};

/// Starts one on the server's core, or notes why not.
pub(crate) fn start(report: &Report, arguments: &[&str]) -> anyhow::Result<Option<Server>> {
    match build() {
        Ok(()) => {}
        Err(error) => {
            report.note(&format!("skipped: {}: {error:#}", arguments[0]));
            return Ok(None);
        }
    }
    let mut command = Command::new(folder().join("target/release/hob-bench-rivals"));
    command.args(arguments);
    servers::start_pinned(command, |line| Some((line.trim().parse().ok()?, None))).map(Some)
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rivals")
}

fn build() -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    // Standard output is for figures.
    command.args(["-c", "cargo build --release --locked --quiet --target-dir target >&2"]).current_dir(folder());
    let status = command.status()?;
    ensure!(status.success(), "benches/rivals does not build: {status}");
    Ok(())
}
