//! `hob rollback`.

use clap::Args;

use super::output::{self, Format};
use super::text::clean;
use super::{Ctx, Failure};
use crate::id::FunctionName;

/// Arguments of `hob rollback`.
#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// Name of the function
    name: FunctionName,
    /// Number of the revision to make live [default: the newest before the live one]
    #[arg(long, value_name = "N")]
    to: Option<u64>,
}

impl Rollback {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let name = &self.name;
        let info = ctx.client()?.rollback(name, self.to).map_err(|failure| failure.next(format!("hob inspect {name}")))?;
        match ctx.format {
            Format::Json => output::json(&info)?,
            Format::Text => output::line(format!("{name}: revision {} is live, {}", info.revision, clean(&info.digest)))?,
        }
        Ok(())
    }
}
