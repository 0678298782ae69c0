//! `hob bucket`: make, list, look at, delete, export and import buckets.
//!
//! Owns what is printed of them. The file of an export is `archive.rs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::output::{self, Format};
use super::text::{bytes, clean, table, time};
use super::{Ctx, Failure, archive};
use crate::control::wire::{BucketInfo, BucketRequest};
use crate::id::BucketName;
use crate::limits::parse_bytes;

/// Arguments of `hob bucket`.
#[derive(Debug, Args)]
pub(super) struct Bucket {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a bucket, or change the quotas of one
    New(New),
    /// List the buckets
    Ls,
    /// Show a bucket: its definition and how much is in it
    Inspect {
        /// Name of the bucket
        name: BucketName,
    },
    /// Delete a bucket with all that is in it
    Rm {
        /// Name of the bucket
        name: BucketName,
    },
    /// Write all that is in a bucket to a file
    Export {
        /// Name of the bucket
        name: BucketName,
        /// The file, which must not exist
        file: PathBuf,
    },
    /// Read a file of an export into a bucket; what is there under the same keys is replaced
    Import {
        /// The file
        file: PathBuf,
        /// Name of the bucket [default: as in the file]; it is made if it is missing
        name: Option<BucketName>,
    },
}

#[derive(Debug, Args)]
struct New {
    /// Name of the bucket
    name: BucketName,
    /// Keep it in memory only: bounded, what was used longest ago goes first, and gone after a restart
    #[arg(long)]
    volatile: bool,
    /// Most bytes of keys, values and objects, such as 1GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes: Option<u64>,
    /// Most keys
    #[arg(long, value_name = "N")]
    keys: Option<u64>,
    /// Where its objects come from, such as s3://photos/raw: a store that the node's operator opened
    #[arg(long, value_name = "URL", conflicts_with = "volatile")]
    origin: Option<String>,
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "expected bytes such as 64MiB".into())
}

impl Bucket {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        match self.command {
            Command::New(new) => new.run(ctx),
            Command::Ls => ls(ctx),
            Command::Inspect { name } => show(ctx, &ctx.client()?.bucket(&name)?),
            Command::Rm { name } => {
                ctx.client()?.delete_bucket(&name)?;
                removed(ctx, &serde_json::json!({ "name": name, "removed": true }), &format!("bucket {name}"))
            }
            Command::Export { name, file } => archive::export(ctx, &name, &file),
            Command::Import { file, name } => archive::import(ctx, &file, name),
        }
    }
}

/// Says that something is gone.
pub(super) fn removed(ctx: &Ctx, document: &serde_json::Value, what: &str) -> Result<(), Failure> {
    match ctx.format {
        Format::Json => output::json(document)?,
        Format::Text => output::note(format!("{what} is removed")),
    }
    Ok(())
}

impl New {
    fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let durability = if self.volatile { Some("volatile".into()) } else { None };
        let wanted = BucketRequest { durability, bytes_max: self.bytes, keys_max: self.keys, origin: self.origin };
        let (info, is_new) = ctx.client()?.put_bucket(&self.name, &wanted)?;
        if ctx.format == Format::Text && !is_new {
            output::note("it was there: its quotas are");
        }
        show(ctx, &info)
    }
}

fn ls(ctx: &Ctx) -> Result<(), Failure> {
    let client = ctx.client()?;
    let buckets = client.buckets()?;
    for name in client.damaged_buckets()? {
        output::note(format!("the account of bucket '{}' is damaged; next: hob doctor", clean(&name)));
    }
    if ctx.format == Format::Json {
        return Ok(output::json(&buckets)?);
    }
    if buckets.is_empty() {
        output::note("there is no bucket; next: hob bucket new NAME");
        return Ok(());
    }
    let mut rows = vec![["NAME", "DURABILITY", "ENTRIES", "OBJECTS", "BYTES", "OF"].map(String::from).to_vec()];
    rows.extend(buckets.iter().map(|bucket| {
        vec![
            clean(&bucket.name),
            clean(&bucket.durability),
            bucket.entries.keys.to_string(),
            bucket.objects.keys.to_string(),
            bytes(bucket.entries.bytes.saturating_add(bucket.objects.bytes)),
            bytes(bucket.bytes_max),
        ]
    }));
    Ok(output::raw(table(&rows).as_bytes())?)
}

fn show(ctx: &Ctx, info: &BucketInfo) -> Result<(), Failure> {
    if ctx.format == Format::Json {
        return Ok(output::json(info)?);
    }
    let held = |size: crate::control::wire::SizeInfo| format!("{}, {}", size.keys, bytes(size.bytes));
    let rows = [
        ("bucket", clean(&info.name)),
        ("durability", clean(&info.durability)),
        ("origin", info.origin.as_deref().map_or_else(|| "none".into(), clean)),
        ("quota", format!("{} keys, {}", info.keys_max, bytes(info.bytes_max))),
        ("entries", held(info.entries)),
        ("objects", held(info.objects)),
        ("created", time(info.created_ms)),
    ];
    let rows: Vec<_> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    Ok(output::raw(table(&rows).as_bytes())?)
}
