//! `hob build`.

use std::path::PathBuf;

use clap::Args;

use super::output::{self, Format};
use super::project::Project;
use super::text::{bytes, span};
use super::{Ctx, Failure};

/// Arguments of `hob build`.
#[derive(Debug, Args)]
pub(super) struct Build {
    /// Folder with the function's hob.toml
    #[arg(default_value = ".")]
    dir: PathBuf,
}

impl Build {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let project = Project::load(&self.dir)?;
        let wasm = project.build()?;
        if wasm.took.is_none() {
            output::note("hob.toml has no 'build' command: nothing was run");
        }
        match ctx.format {
            Format::Json => output::json(&serde_json::json!({
                "name": project.title(),
                "wasm": wasm.path.to_string_lossy(),
                "wasm_bytes": wasm.bytes,
                "build_ms": wasm.took.map(|took| took.as_secs_f64() * 1e3),
            }))?,
            Format::Text => {
                let took = wasm.took.map(|took| format!(", built in {}", span(took))).unwrap_or_default();
                output::line(format!("{}  {}{took}", wasm.path.display(), bytes(wasm.bytes)))?;
            }
        }
        Ok(())
    }
}
