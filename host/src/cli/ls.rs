//! `hob ls`.

use clap::Args;

use super::output::{self, Format};
use super::text::{bytes, clean, table, time};
use super::{Ctx, Failure};

/// Arguments of `hob ls`.
#[derive(Debug, Args)]
pub(super) struct Ls {}

impl Ls {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let functions = ctx.client()?.functions()?;
        if ctx.format == Format::Json {
            return Ok(output::json(&functions)?);
        }
        if functions.is_empty() {
            output::note("nothing is deployed; next: hob deploy");
            return Ok(());
        }
        let mut rows = vec![["NAME", "REV", "KIND", "WASM", "UPDATED", "ROUTES"].map(String::from).to_vec()];
        rows.extend(functions.into_iter().map(|function| {
            let routes = [vec![format!("{}/*", function.path)], function.routes].concat().join(" ");
            vec![
                clean(&function.name),
                function.revision.to_string(),
                clean(&function.kind),
                bytes(function.wasm_bytes),
                time(function.updated_ms),
                clean(&routes),
            ]
        }));
        output::raw(table(&rows).as_bytes())?;
        Ok(())
    }
}
