//! `hob audit`: the audit log of a node, and whether it is whole.

use std::path::PathBuf;

use clap::Args;

use super::failure::Exit;
use super::output::{self, Format};
use super::text::clean;
use super::{Ctx, Failure, environment};
use crate::audit::{self, Verified};

/// Arguments of `hob audit`.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// Check the chain of hashes in the files of this machine, whether a daemon runs or not
    #[arg(long)]
    verify: bool,
    /// Where the files are, for --verify [default: as of hob serve]
    #[arg(long, value_name = "DIR", requires = "verify")]
    data_dir: Option<PathBuf>,
    /// Begin after this line
    #[arg(long, value_name = "N", default_value_t = 0)]
    after: u64,
}

impl Audit {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        if self.verify {
            return self.verify(ctx);
        }
        let client = ctx.client()?;
        let mut after = self.after;
        loop {
            let list = client.audit(after)?;
            for line in &list.lines {
                output::line(clean(line))?;
            }
            let Some(last) = list.lines.last() else { return Ok(()) };
            let seq = serde_json::from_str::<serde_json::Value>(last).ok().and_then(|line| line["seq"].as_u64());
            after = seq
                .filter(|seq| *seq > after)
                .ok_or_else(|| Failure::new(Exit::Failure, "the daemon sent a line without a number"))?;
        }
    }

    fn verify(self, ctx: &Ctx) -> Result<(), Failure> {
        let Some(dir) = self.data_dir.or_else(environment::data_dir) else {
            return Err(
                Failure::new(Exit::Failure, "there is no home directory to look in").next("hob audit --verify --data-dir DIR")
            );
        };
        let verified = audit::verify(&dir).map_err(anyhow::Error::from)?;
        let Verified { first, last, hash } =
            verified.map_err(|broken| Failure::from(anyhow::Error::from(broken)).next("hob audit --help"))?;
        match ctx.format {
            Format::Json => output::json(&serde_json::json!({ "first": first, "last": last, "hash": hash.hex() }))?,
            Format::Text => output::line(format!("lines {first} to {last} are whole; the last one's hash is {}", hash.hex()))?,
        }
        Ok(())
    }
}
