//! `hob kv`: entries of a bucket.
//!
//! Owns how keys and values are typed and printed. A key is what stands in the argument, byte for byte; one that nobody can type (NUL)
//! is written in Base64.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};

use super::bucket::removed;
use super::client::Event;
use super::client::data::Condition;
use super::failure::Exit;
use super::output::{self, Format};
use super::text::{bytes, clean, table, time};
use super::{Ctx, Failure};
use crate::control::wire::{BatchKind, BatchOp, ChangeInfo, EntryInfo, join, split};
use crate::data::kv::VALUE_LEN_MAX;
use crate::id::BucketName;

/// Damaged keys that a failure names.
const NAMED_MAX: usize = 20;

/// Arguments of `hob kv`.
#[derive(Debug, Args)]
pub(super) struct Kv {
    /// Keys and prefixes are written in Base64
    #[arg(long, global = true)]
    base64: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the value of a key, as it is; of several keys, each on lines of its own
    Get {
        /// Name of the bucket
        bucket: BucketName,
        /// The keys, all read at one moment
        #[arg(required = true, value_name = "KEY")]
        keys: Vec<OsString>,
    },
    /// Write a value under a key, or several, all or none
    Set(Set),
    /// Delete a key
    Del {
        #[command(flatten)]
        at: At,
        /// Only if the entry has this version
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// List keys
    Ls(Under),
    /// Print what is changed from now on
    Watch(Under),
    /// Add to the number under a key
    Incr {
        #[command(flatten)]
        at: At,
        /// What is added
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },
}

#[derive(Debug, Args)]
struct At {
    /// Name of the bucket
    bucket: BucketName,
    /// The key
    key: OsString,
}

#[derive(Debug, Args)]
struct Under {
    /// Name of the bucket
    bucket: BucketName,
    /// Only keys that begin with this
    #[arg(default_value = "")]
    prefix: OsString,
}

#[derive(Debug, Args)]
struct Set {
    #[command(flatten)]
    at: At,
    /// The value [default: what comes on standard input], and further keys, each with its value
    #[arg(value_name = "VALUE [KEY VALUE]")]
    values: Vec<OsString>,
    /// How long it stays, such as 10s
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Only if there is no entry
    #[arg(long, conflicts_with = "if_version")]
    if_absent: bool,
    /// Only if the entry has this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

impl Kv {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let bytes = |text: OsString| match self.base64 {
            false => Ok(text.into_vec()),
            true => STANDARD
                .decode(text.into_vec())
                .map_err(|error| Failure::new(Exit::Usage, format!("the key is no Base64: {error}")).next("hob kv --help")),
        };
        match self.command {
            Command::Get { bucket, keys } => {
                let keys = keys.into_iter().map(bytes).collect::<Result<Vec<_>, _>>()?;
                match keys.as_slice() {
                    [key] => get(ctx, &bucket, key),
                    keys => get_many(ctx, &bucket, keys),
                }
            }
            Command::Set(set) => set.run(ctx, bytes),
            Command::Del { at, if_version } => {
                let key = bytes(at.key)?;
                let condition = Condition { if_match: if_version.map(|version| version.to_string()), if_absent: false };
                ctx.client()?.delete(&at.bucket, "kv", &key, &condition)?;
                let (text, base64) = split(&key);
                let shown = shown(text.as_deref(), base64.as_deref());
                removed(ctx, &serde_json::json!({ "key": text, "key_base64": base64, "removed": true }), &shown)
            }
            Command::Ls(under) => ls(ctx, &under.bucket, &bytes(under.prefix)?),
            Command::Watch(under) => watch(ctx, &under.bucket, &bytes(under.prefix)?),
            Command::Incr { at, by } => {
                let info = ctx.client()?.increment(&at.bucket, &bytes(at.key)?, by)?;
                match ctx.format {
                    Format::Json => output::json(&info)?,
                    Format::Text => output::line(info.value)?,
                }
                Ok(())
            }
        }
    }
}

/// A key for people: text without what moves the cursor, or its Base64.
pub(super) fn shown(text: Option<&str>, base64: Option<&str>) -> String {
    match (text, base64) {
        (Some(text), _) => clean(text),
        (None, base64) => format!("base64:{}", clean(base64.unwrap_or_default())),
    }
}

fn get(ctx: &Ctx, bucket: &BucketName, key: &[u8]) -> Result<(), Failure> {
    let (value, version, expires_ms) = ctx.client()?.entry(bucket, key)?;
    if ctx.format == Format::Text {
        return Ok(output::raw(&value)?);
    }
    let ((key, key_base64), len) = (split(key), value.len() as u64);
    let (value, value_base64) = split(&value);
    let (bytes, version) = (Some(len), Some(version));
    Ok(output::json(&EntryInfo { key, key_base64, value, value_base64, bytes, version, expires_ms, damaged: false })?)
}

/// Prints what is there, and then fails if something is not, or is damaged.
fn get_many(ctx: &Ctx, bucket: &BucketName, keys: &[Vec<u8>]) -> Result<(), Failure> {
    let found = ctx.client()?.get_many(bucket, keys)?;
    if ctx.format == Format::Json {
        output::json(&found)?;
    }
    let (mut missing, mut damaged) = (Vec::new(), Vec::new());
    for (key, entry) in keys.iter().zip(found) {
        let (text, base64) = split(key);
        match entry {
            Some(entry) if entry.damaged => damaged.push(shown(text.as_deref(), base64.as_deref())),
            Some(entry) if ctx.format == Format::Text => {
                let value = join(entry.value, entry.value_base64).ok().flatten();
                let mut line = value.ok_or_else(|| Failure::new(Exit::Failure, "an entry came without its value"))?;
                line.push(b'\n');
                output::raw(&line)?;
            }
            Some(_) => {}
            None => missing.push(shown(text.as_deref(), base64.as_deref())),
        }
    }
    if !damaged.is_empty() {
        let missing =
            if missing.is_empty() { String::new() } else { format!("; there is no entry under {}", missing.join(", ")) };
        return Err(Failure::new(Exit::Failure, format!("damaged on disk: {}{missing}", named(&damaged))));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let sentence = format!("there is no entry under {}", missing.join(", "));
    Err(Failure::new(Exit::NotFound, sentence).next(format!("hob kv ls {bucket}")))
}

/// The first of many keys, and how many more there are.
pub(super) fn named(keys: &[String]) -> String {
    match keys.len().checked_sub(NAMED_MAX) {
        None | Some(0) => keys.join(", "),
        Some(more) => format!("{}, and {more} more", keys[..NAMED_MAX].join(", ")),
    }
}

impl Set {
    fn run(self, ctx: &Ctx, bytes: impl Fn(OsString) -> Result<Vec<u8>, Failure>) -> Result<(), Failure> {
        let first = bytes(self.at.key.clone())?;
        match self.values.as_slice() {
            [] => {
                let mut value = Vec::new();
                // One byte more than any value has: the daemon says that it is too long.
                let input = std::io::stdin().take(VALUE_LEN_MAX as u64 + 1);
                { input }.read_to_end(&mut value).context("cannot read standard input")?;
                self.one(ctx, &first, &value)
            }
            [value] => self.one(ctx, &first, value.as_bytes()),
            [value, rest @ ..] => {
                let mut pairs = vec![(first, value.as_bytes())];
                let (rest, odd) = rest.as_chunks::<2>();
                if !odd.is_empty() {
                    let sentence = "the last key has no value: expected KEY VALUE, as often as needed";
                    return Err(Failure::new(Exit::Usage, sentence).next("hob kv set --help"));
                }
                for [key, value] in rest {
                    pairs.push((bytes(key.clone())?, value.as_bytes()));
                }
                self.many(ctx, &pairs)
            }
        }
    }

    fn one(&self, ctx: &Ctx, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let condition = Condition { if_match: self.if_version.map(|version| version.to_string()), if_absent: self.if_absent };
        let version = ctx.client()?.set(&self.at.bucket, key, value, self.ttl.as_deref(), &condition)?;
        match ctx.format {
            Format::Json => output::json(&versioned(key, Some(version)))?,
            Format::Text => output::note(format!("version {version}")),
        }
        Ok(())
    }

    fn many(&self, ctx: &Ctx, pairs: &[(Vec<u8>, &[u8])]) -> Result<(), Failure> {
        if self.if_version.is_some() {
            let sentence = "--if-version is for one key: several have each a version of their own";
            return Err(Failure::new(Exit::Usage, sentence).next("hob kv set --help"));
        }
        let set = |(key, value): &(Vec<u8>, &[u8])| {
            let ((key, key_base64), (value, value_base64)) = (split(key), split(value));
            let (ttl, if_absent) = (self.ttl.clone(), self.if_absent);
            BatchOp { op: BatchKind::Set, key, key_base64, value, value_base64, ttl, if_absent, if_version: None, by: None }
        };
        let done = ctx.client()?.batch(&self.at.bucket, pairs.iter().map(set).collect())?.done;
        match ctx.format {
            Format::Json => {
                let each = pairs.iter().zip(&done).map(|((key, _), done)| versioned(key, done.version));
                output::json(&each.collect::<Vec<_>>())?;
            }
            Format::Text => output::note(format!("{} entries", done.len())),
        }
        Ok(())
    }
}

fn versioned(key: &[u8], version: Option<u64>) -> serde_json::Value {
    let (key, key_base64) = split(key);
    serde_json::json!({ "key": key, "key_base64": key_base64, "version": version })
}

fn ls(ctx: &Ctx, bucket: &BucketName, prefix: &[u8]) -> Result<(), Failure> {
    let mut all = Vec::new();
    ctx.client()?.entries(bucket, prefix, false, |page| {
        all.extend(page);
        Ok(())
    })?;
    if ctx.format == Format::Json {
        return Ok(output::json(&all)?);
    }
    if all.is_empty() {
        output::note(format!("there is no such key; next: hob kv set {bucket} KEY VALUE"));
        return Ok(());
    }
    let mut rows = vec![["KEY", "BYTES", "VERSION", "EXPIRES"].map(String::from).to_vec()];
    rows.extend(all.iter().map(|entry| {
        let key = shown(entry.key.as_deref(), entry.key_base64.as_deref());
        let version = entry.version.map_or_else(|| "damaged".into(), |version| version.to_string());
        vec![key, entry.bytes.map(bytes).unwrap_or_default(), version, entry.expires_ms.map(time).unwrap_or_default()]
    }));
    Ok(output::raw(table(&rows).as_bytes())?)
}

fn watch(ctx: &Ctx, bucket: &BucketName, prefix: &[u8]) -> Result<(), Failure> {
    let client = ctx.client()?;
    let mut feed = client.watch(bucket, prefix)?;
    output::note(format!("watching {bucket}"));
    while let Some(event) = feed.next()? {
        match (event, ctx.format) {
            (Event::Entry(change), Format::Json) => output::json_line(&change)?,
            (Event::Entry(change), Format::Text) => output::line(change_line(&change))?,
            (Event::Remark(remark), _) => output::note(clean(&remark)),
        }
    }
    // A stream has the same end either way.
    match client.bucket(bucket) {
        Err(failure) if failure.code() == Exit::NotFound as u8 => {
            output::note("the bucket was deleted");
            Ok(())
        }
        _ => Err(Failure::new(Exit::Unreachable, "the daemon ended the stream: it stops").next("hob serve")),
    }
}

fn change_line(change: &ChangeInfo) -> String {
    let key = shown(change.key.as_deref(), change.key_base64.as_deref());
    match change.version {
        Some(version) => format!("set {key} version {version}"),
        None => format!("del {key}"),
    }
}

/// The bytes of a key in an answer.
pub(super) fn key_of(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, Failure> {
    let key = join(text, base64).map_err(|what| Failure::new(Exit::Failure, format!("a key in the daemon's answer {what}")))?;
    key.ok_or_else(|| Failure::new(Exit::Failure, "the daemon's answer has an item without its key"))
}
