//! `hob rm`.

use clap::Args;

use super::output::{self, Format};
use super::{Ctx, Failure};
use crate::id::FunctionName;

/// Arguments of `hob rm`.
#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Name of the function
    name: FunctionName,
}

impl Rm {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        ctx.client()?.remove(&self.name)?;
        match ctx.format {
            Format::Json => output::json(&serde_json::json!({ "name": self.name, "removed": true }))?,
            Format::Text => output::note(format!("{} is removed", self.name)),
        }
        Ok(())
    }
}
