//! `hob secret`: values that functions read and nobody else.
//!
//! Owns where a value comes from: a file or standard input, never the command line, which other users of the machine see. Nothing prints
//! one.

use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::bucket::removed;
use super::output::{self, Format};
use super::text::{bytes, clean, table, time};
use super::{Ctx, Failure};
use crate::id::SecretName;
use crate::secrets::VALUE_LEN_MAX;

/// Arguments of `hob secret`.
#[derive(Debug, Args)]
pub(super) struct Secret {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set a secret to what comes on standard input, without the line end at its end
    Set {
        /// Name of the secret
        name: SecretName,
        /// File with the value, which is taken as it is
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// List the secrets of the tenant, without their values
    Ls,
    /// Remove a secret
    Rm {
        /// Name of the secret
        name: SecretName,
    },
}

impl Secret {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        match self.command {
            Command::Set { name, file } => {
                let value = match file {
                    Some(path) => {
                        let file = File::open(&path).with_context(|| format!("cannot read '{}'", path.display()))?;
                        read(file).with_context(|| format!("cannot read '{}'", path.display()))?
                    }
                    None => from_input()?,
                };
                let set = ctx.client()?.set_secret(&name, &value);
                set.map_err(|failure| match value.is_empty() {
                    true => failure.next(format!("hob secret set {name} --file FILE")),
                    false => failure,
                })?;
                match ctx.format {
                    Format::Json => output::json(&serde_json::json!({ "name": name, "bytes": value.len() }))?,
                    Format::Text => output::note(format!("secret {name} is set")),
                }
                Ok(())
            }
            Command::Ls => ls(ctx),
            Command::Rm { name } => {
                ctx.client()?.remove_secret(&name)?;
                removed(ctx, &serde_json::json!({ "name": name, "removed": true }), &format!("secret {name}"))
            }
        }
    }
}

/// One byte more than any value has: the daemon says that it is too long.
fn read(input: impl Read) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut value = Zeroizing::new(Vec::with_capacity(VALUE_LEN_MAX + 64));
    input.take(VALUE_LEN_MAX as u64 + 1).read_to_end(&mut value)?;
    Ok(value)
}

fn from_input() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let input = std::io::stdin();
    if input.is_terminal() {
        output::note("type the value, which is shown as it is typed, and end it with Enter and Ctrl-D");
    }
    let mut value = read(input).context("cannot read standard input")?;
    if value.last() == Some(&b'\n') {
        value.pop();
        if value.last() == Some(&b'\r') {
            value.pop();
        }
    }
    Ok(value)
}

fn ls(ctx: &Ctx) -> Result<(), Failure> {
    let list = ctx.client()?.secrets()?;
    if list.damaged > 0 {
        output::note(format!(
            "{} more cannot be read: they are damaged, or of another key of the node; set them again",
            list.damaged
        ));
    }
    if ctx.format == Format::Json {
        return Ok(output::json(&list.items)?);
    }
    if list.items.is_empty() {
        output::note("there is no secret; next: hob secret set NAME");
        return Ok(());
    }
    let mut rows = vec![["NAME", "BYTES", "SET"].map(String::from).to_vec()];
    rows.extend(list.items.iter().map(|secret| vec![clean(&secret.name), bytes(secret.bytes), time(secret.changed_ms)]));
    Ok(output::raw(table(&rows).as_bytes())?)
}
