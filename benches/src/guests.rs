//! Guests of a benchmark: the examples, and those of `benches/guests`, which are no examples.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};
use hob::manifest::Manifest;

use crate::report::Report;

/// An example that is built.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) name: String,
    pub(crate) wasm: PathBuf,
    /// As its `hob.toml` has it.
    pub(crate) manifest: Manifest,
}

fn folder(example: &str) -> PathBuf {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = benches.join("guests").join(example);
    if own.is_dir() { own } else { benches.join("../examples").join(example) }
}

impl Guest {
    /// The example as it lies there; it need not be built.
    pub(crate) fn load(example: &str) -> anyhow::Result<Self> {
        let dir = folder(example);
        let manifest = Manifest::parse(&std::fs::read_to_string(dir.join("hob.toml"))?)?;
        let wasm = dir.join(manifest.wasm.as_deref().context("the manifest names no file")?);
        Ok(Self { name: example.into(), wasm, manifest })
    }

    /// Builds an example.
    pub(crate) fn build(example: &str) -> anyhow::Result<Self> {
        let guest = Self::load(example)?;
        let build = guest.manifest.build.clone().unwrap_or_default();
        run(example, &build)?;
        Ok(guest)
    }

    /// An example that needs the tools of another language: as it was built before, else built now. Where that fails, a note names
    /// it, and there is none.
    pub(crate) fn build_if_possible(report: &Report, example: &str) -> anyhow::Result<Option<Self>> {
        let guest = Self::load(example)?;
        if guest.wasm.is_file() {
            return Ok(Some(guest));
        }
        match Self::build(example) {
            Ok(guest) => Ok(Some(guest)),
            Err(error) => {
                report.note(&format!("skipped: {error:#}"));
                Ok(None)
            }
        }
    }
}

/// The example `wordcount` as a program of this machine.
pub(crate) fn build_native_wordcount() -> anyhow::Result<PathBuf> {
    run("wordcount", "cargo build --release --quiet --target-dir ../target")?;
    Ok(folder("target/release/wordcount"))
}

fn run(example: &str, build: &str) -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    // Standard output is for figures.
    command.args(["-c", &format!("{build} >&2")]).current_dir(folder(example)).env_remove("CARGO_TARGET_DIR");
    let status = command.status()?;
    ensure!(status.success(), "{example} does not build: '{build}' ended with {status}");
    Ok(())
}
