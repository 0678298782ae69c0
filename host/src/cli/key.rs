//! `hob key`: keys that deploys are signed with.
//!
//! Owns the file of a secret key: 64 hexadecimal digits and a line end, readable by its owner alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::bucket::removed;
use super::failure::Exit;
use super::output::{self, Format};
use super::text::{clean, table};
use super::{Ctx, Failure, credentials};
use crate::id::KeyName;
use crate::signing::{PublicKey, SecretKey};

/// Arguments of `hob key`.
#[derive(Debug, Args)]
pub(super) struct Key {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a secret key and print its public half
    New {
        /// File for the secret key, which must not exist
        file: PathBuf,
    },
    /// Let deploys be signed with a key: from the first one on, every deploy of the tenant must be
    Add {
        /// Name of the key
        name: KeyName,
        /// Its public half, as `hob key new` printed it
        public_key: String,
    },
    /// List the keys of the tenant
    Ls,
    /// Remove a key: after the last one, deploys need no signature
    Rm {
        /// Name of the key
        name: KeyName,
    },
}

impl Key {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        match self.command {
            Command::New { file } => new(ctx, &file),
            Command::Add { name, public_key } => {
                let key = PublicKey::try_from(public_key).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
                let info = ctx.client()?.add_key(&name, key)?;
                if ctx.format == Format::Json {
                    return Ok(output::json(&info)?);
                }
                output::note(format!("key {name} is added: from now on every deploy must be signed"));
                Ok(())
            }
            Command::Rm { name } => {
                ctx.client()?.remove_key(&name)?;
                removed(ctx, &serde_json::json!({ "name": name, "removed": true }), &format!("key {name}"))
            }
            Command::Ls => {
                let keys = ctx.client()?.keys()?;
                if ctx.format == Format::Json {
                    return Ok(output::json(&keys)?);
                }
                if keys.is_empty() {
                    output::note("there is no key, so deploys need no signature; next: hob key new FILE");
                    return Ok(());
                }
                let mut rows = vec![["NAME", "PUBLIC KEY"].map(String::from).to_vec()];
                rows.extend(keys.iter().map(|key| vec![clean(&key.name), clean(&key.public_key)]));
                Ok(output::raw(table(&rows).as_bytes())?)
            }
        }
    }
}

fn new(ctx: &Ctx, file: &Path) -> Result<(), Failure> {
    if file.exists() {
        return Err(Failure::new(Exit::Failure, format!("'{}' exists already", file.display())).next("hob key new ANOTHER-FILE"));
    }
    let key = SecretKey::random().map_err(|error| Failure::new(Exit::Failure, format!("no random bytes: {error}")))?;
    credentials::write_private(file, format!("{}\n", key.reveal()).as_bytes())?;
    let public = key.public().to_string();
    match ctx.format {
        Format::Json => output::json(&serde_json::json!({ "public_key": public, "file": file }))?,
        Format::Text => {
            output::line(&public)?;
            output::note(format!("the secret key is in {}; next: hob key add NAME {public}", file.display()));
        }
    }
    Ok(())
}

/// Reads a secret key.
///
/// # Errors
/// A file that cannot be read, or holds no key.
pub(super) fn read(file: &Path) -> Result<SecretKey, Failure> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read the key in '{}'", file.display()))?;
    SecretKey::from_text(&text).map_err(|error| {
        let failure = Failure::new(Exit::Failure, format!("'{}': {error}", file.display()));
        failure.next("hob key new FILE")
    })
}
