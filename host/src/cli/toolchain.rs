//! The Rust toolchain of the machine: what is there, and adding a target.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::output;

/// Targets that functions are built for.
pub(super) const TARGETS: [&str; 2] = ["wasm32-wasip1", "wasm32-wasip2"];

/// First line of what a program says about its version; `None` if it cannot be run.
pub(super) fn version(program: &str) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().next().unwrap_or_default().trim().to_owned())
}

/// Those of [`TARGETS`] whose standard library the compiler does not have. Asks the compiler, not rustup, so that toolchains of
/// other origin count too. `dir`: where it is asked, because a toolchain may be chosen by folder.
///
/// # Errors
/// When there is no compiler.
pub(super) fn missing_targets(dir: &Path) -> anyhow::Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for target in TARGETS {
        let mut command = Command::new("rustc");
        command.args(["--print", "target-libdir", "--target", target]).current_dir(dir).stdin(Stdio::null());
        let output = command.output().context("cannot run rustc")?;
        let folder = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || !Path::new(folder.trim()).is_dir() {
            missing.push(target);
        }
    }
    Ok(missing)
}

/// Adds a target with rustup, whose words go to standard error, and asks the compiler whether it has it now. Says what it does.
///
/// # Errors
/// When rustup is not there or fails, or when it is not the rustup of this compiler.
pub(super) fn add_target(target: &str, dir: &Path) -> anyhow::Result<()> {
    output::note(format!("the target {target} is missing; adding it: rustup target add {target}"));
    let mut command = Command::new("rustup");
    command.args(["target", "add", target]).current_dir(dir).stdin(Stdio::null()).stdout(std::io::stderr());
    let status = command.status().context("cannot run rustup, which adds targets: install it from https://rustup.rs")?;
    if !status.success() {
        bail!("'rustup target add {target}' failed, {status}");
    }
    if missing_targets(dir)?.contains(&target) {
        bail!("rustup added {target}, but the rustc on the PATH does not have it: it belongs to another toolchain than rustup's");
    }
    Ok(())
}
