//! The examples as guests of a benchmark.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::ensure;

/// Builds an example, and returns its Wasm file.
pub(crate) fn build(example: &str) -> anyhow::Result<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let dir = examples.join(example);
    let manifest = hob::manifest::Manifest::parse(&std::fs::read_to_string(dir.join("hob.toml"))?)?;
    let (build, wasm) = (manifest.build.unwrap_or_default(), manifest.wasm.unwrap_or_default());
    let status = Command::new("sh").args(["-c", &build]).current_dir(&dir).env_remove("CARGO_TARGET_DIR").status()?;
    ensure!(status.success(), "{example} does not build: '{build}' ended with {status}");
    Ok(dir.join(wasm))
}
