//! `hob blob`: objects of a bucket, from and to files.
//!
//! ```text
//! hob:BUCKET/KEY   an object; BUCKET/KEY will do where no file can be meant
//! hob:BUCKET/DIR   all keys that begin with DIR/, with -r
//! ```
//!
//! Owns that spelling, and that what is downloaded is whole before it has its name. A key that would lead out of the folder is not written.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use super::bucket::removed;
use super::client::Client;
use super::client::data::{Condition, Put};
use super::failure::{Exit, next};
use super::invoke::Exactly;
use super::kv::{key_of, shown};
use super::output::{self, Format};
use super::part::Parts;
use super::text::{bytes, clean, table, time};
use super::{Ctx, Failure};
use crate::control::wire::{ObjectInfo, ObjectItem, split};
use crate::data::objects::KEY_BYTES_MAX;
use crate::id::{BucketName, Digest};

/// Arguments of `hob blob`.
#[derive(Debug, Args)]
pub(super) struct Blob {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Copy a file to an object, or an object to a file
    Cp(Cp),
    /// List objects
    Ls {
        /// BUCKET, or BUCKET/PREFIX
        at: OsString,
    },
    /// Delete an object
    Rm {
        /// BUCKET/KEY
        at: OsString,
        /// Only if the object has this digest
        #[arg(long, value_name = "DIGEST")]
        if_match: Option<String>,
    },
    /// Print the bytes of an object
    Cat {
        /// BUCKET/KEY
        at: OsString,
    },
}

#[derive(Debug, Args)]
struct Cp {
    /// FILE, -, or hob:BUCKET/KEY
    from: OsString,
    /// hob:BUCKET/KEY, FILE, or -
    to: OsString,
    /// A whole folder, or all keys under a prefix
    #[arg(short, long)]
    recursive: bool,
    /// Media type of what is put
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// A pair of metadata of what is put, as often as needed
    #[arg(long = "meta", value_name = "NAME=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// How long what is put stays, such as 10s
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    /// Put it only if there is no object under the key
    #[arg(long)]
    if_absent: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    text.split_once('=').map(|(name, value)| (name.into(), value.into())).ok_or_else(|| "expected NAME=VALUE".into())
}

/// An object, or what keys begin with.
#[derive(Debug, PartialEq, Eq)]
struct At {
    bucket: BucketName,
    key: Vec<u8>,
}

const SCHEME: &[u8] = b"hob:";

/// What stands behind `hob:`, if it does.
fn remote(text: &OsStr) -> Result<Option<At>, Failure> {
    text.as_bytes().strip_prefix(SCHEME).map(|rest| at(OsStr::from_bytes(rest))).transpose()
}

/// `[hob:]BUCKET[/KEY]`.
fn at(text: &OsStr) -> Result<At, Failure> {
    let rest = text.as_bytes();
    let rest = rest.strip_prefix(SCHEME).unwrap_or(rest);
    let (bucket, key) = match rest.iter().position(|byte| *byte == b'/') {
        Some(slash) => (&rest[..slash], &rest[slash + 1..]),
        None => (rest, &[][..]),
    };
    let bucket = String::from_utf8_lossy(bucket).parse().context("this names no bucket");
    let bucket = bucket.map_err(next::<anyhow::Error>("hob bucket ls")).map_err(|failure| failure.exit(Exit::Usage))?;
    Ok(At { bucket, key: key.into() })
}

impl Blob {
    pub(super) fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        match self.command {
            Command::Cp(cp) => cp.run(ctx),
            Command::Ls { at: text } => ls(ctx, &at(&text)?),
            Command::Rm { at: text, if_match } => {
                let at = at(&text)?;
                // As `sha256sum` prints one.
                let if_match = if_match.map(|tag| match Digest::from_hex(&tag) {
                    Ok(digest) => digest.to_string(),
                    Err(_) => tag,
                });
                ctx.client()?.delete(&at.bucket, "objects", &at.key, &Condition { if_match, if_absent: false })?;
                let (key, base64) = split(&at.key);
                let shown = shown(key.as_deref(), base64.as_deref());
                removed(ctx, &serde_json::json!({ "key": key, "key_base64": base64, "removed": true }), &shown)
            }
            Command::Cat { at: text } => {
                let at = at(&text)?;
                download(&ctx.client()?, &at, &mut Standard, false)
            }
        }
    }
}

fn ls(ctx: &Ctx, at: &At) -> Result<(), Failure> {
    let objects = ctx.client()?.objects(&at.bucket, &at.key)?;
    if ctx.format == Format::Json {
        return Ok(output::json(&objects)?);
    }
    if objects.is_empty() {
        output::note(format!("there is no such object; next: hob blob cp FILE hob:{}/KEY", at.bucket));
        return Ok(());
    }
    let mut rows = vec![["KEY", "BYTES", "TYPE", "MODIFIED"].map(String::from).to_vec()];
    rows.extend(objects.iter().map(|object| {
        let (key, base64) = object.key();
        let key = shown(key, base64);
        match object {
            ObjectItem::Object(object) => {
                vec![key, bytes(object.bytes), clean(&object.content_type), time(object.modified_ms)]
            }
            ObjectItem::Damaged(_) => vec![key, String::new(), "damaged".into()],
        }
    }));
    Ok(output::raw(table(&rows).as_bytes())?)
}

impl Cp {
    fn run(self, ctx: &Ctx) -> Result<(), Failure> {
        let client = ctx.client()?;
        match (remote(&self.from)?, remote(&self.to)?) {
            (None, Some(to)) => {
                let (put, too_long) = match self.recursive {
                    true => self.put_folder(&client, &to)?,
                    false => (vec![self.put(&client, Path::new(&self.from), &to)?], 0),
                };
                match (ctx.format, put.as_slice()) {
                    (Format::Json, [one]) if !self.recursive => output::json(one)?,
                    (Format::Json, all) => output::json(&all)?,
                    (Format::Text, all) => all.iter().for_each(|object| {
                        let key = shown(object.key.as_deref(), object.key_base64.as_deref());
                        output::note(format!(
                            "{key} {} {}",
                            bytes(object.bytes),
                            clean(object.digest.as_ref().unwrap_or(&object.etag))
                        ));
                    }),
                }
                match too_long {
                    0 => Ok(()),
                    count => Err(Failure::new(Exit::Failure, format!("left out, because their keys would be too long: {count}"))),
                }
            }
            (Some(from), None) if self.recursive => get_folder(&client, &from, Path::new(&self.to)),
            (Some(from), None) => get(&client, &from, Path::new(&self.to)),
            (Some(_), Some(_)) | (None, None) => {
                let sentence = "one of the two must be an object, hob:BUCKET/KEY, and the other a file";
                Err(Failure::new(Exit::Usage, sentence).next("hob blob cp --help"))
            }
        }
    }

    fn put(&self, client: &Client, from: &Path, to: &At) -> Result<ObjectInfo, Failure> {
        let mut key = to.key.clone();
        if key.is_empty() || key.ends_with(b"/") {
            if from == Path::new("-") {
                let failure = Failure::new(Exit::Usage, "standard input has no name that the object could have");
                return Err(failure.next(format!("hob blob cp - hob:{}/KEY", to.bucket)));
            }
            // As `cp FILE DIR/` names it.
            key.extend_from_slice(from.file_name().unwrap_or_default().as_bytes());
        }
        let condition = Condition { if_match: None, if_absent: self.if_absent };
        let mut put = Put {
            key: &key,
            content_type: self.content_type.as_deref(),
            metadata: &self.metadata,
            ttl: self.ttl.clone(),
            ..Put::default()
        };
        let (shown, what) = (from.display(), format!("putting {}", clean(&String::from_utf8_lossy(&key))));
        if from == Path::new("-") {
            let bar = output::spinner(&what);
            let done = client.put_object(&to.bucket, &put, &condition, &mut bar.wrap_read(io::stdin()));
            bar.finish_and_clear();
            return done;
        }
        let file = File::open(from).with_context(|| format!("cannot open '{shown}'")).map_err(next("hob blob cp --help"))?;
        let meta = file.metadata().with_context(|| format!("cannot look at '{shown}'"))?;
        if meta.is_dir() {
            let failure = Failure::new(Exit::Failure, format!("'{shown}' is a folder: -r copies it with all that is in it"));
            return Err(failure.next("hob blob cp --help"));
        }
        // A pipe or device has no length.
        put.len = meta.is_file().then_some(meta.len());
        let bar = output::byte_bar(&what, meta.len());
        let done = match put.len {
            Some(len) => client.put_object(&to.bucket, &put, &condition, &mut bar.wrap_read(Exactly::new(file, len).take(len))),
            None => client.put_object(&to.bucket, &put, &condition, &mut bar.wrap_read(file)),
        };
        bar.finish_and_clear();
        done
    }

    /// Every regular file below a folder, but those whose key would be too long, and how many these are. Links are not followed: one could
    /// lead anywhere.
    fn put_folder(&self, client: &Client, to: &At) -> Result<(Vec<ObjectInfo>, usize), Failure> {
        let (root, folder) = (Path::new(&self.from), folder(&to.key));
        let (mut put, mut too_long) = (Vec::new(), 0);
        for path in files(root)? {
            let below = path.strip_prefix(root).unwrap_or(&path);
            let key = [&folder, below.as_os_str().as_bytes()].concat();
            if key.len() > KEY_BYTES_MAX {
                let (path, len) = (clean(&path.to_string_lossy()), key.len());
                output::note(format!(
                    "left out, because its key would have {len} bytes, and one has at most {KEY_BYTES_MAX}: {path}"
                ));
                too_long += 1;
                continue;
            }
            put.push(self.put(client, &path, &At { bucket: to.bucket.clone(), key })?);
        }
        Ok((put, too_long))
    }
}

/// What the keys below a folder begin with. Without its slash `in` would take `inside`, too.
fn folder(key: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if key.is_empty() || key.ends_with(b"/") { b"" } else { b"/" };
    [key, slash].concat()
}

fn files(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let (mut folders, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let doing = || format!("cannot list '{}'", folder.display());
        for entry in fs::read_dir(&folder).with_context(doing).map_err(next("hob blob cp --help"))? {
            let entry = entry.with_context(doing)?;
            let kind = entry.file_type().with_context(doing)?;
            match () {
                () if kind.is_dir() => folders.push(entry.path()),
                () if kind.is_file() => found.push(entry.path()),
                () => output::note(format!("left out, because it is no file: {}", clean(&entry.path().to_string_lossy()))),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Standard output.
struct Standard;

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        output::raw(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn download(client: &Client, at: &At, to: &mut dyn Write, with_bar: bool) -> Result<(), Failure> {
    let (len, mut from) = client.object(&at.bucket, &at.key)?;
    let bar = match with_bar {
        true => output::byte_bar(&format!("getting {}", clean(&String::from_utf8_lossy(&at.key))), len),
        false => ProgressBar::hidden(),
    };
    let copied = copy(&mut *from, to, len, &bar);
    bar.finish_and_clear();
    copied
}

fn copy(from: &mut dyn Read, to: &mut dyn Write, len: u64, bar: &ProgressBar) -> Result<(), Failure> {
    let (mut buffer, mut left) = (vec![0; 64 << 10], len);
    loop {
        let count = from.read(&mut buffer).context("the object broke off before its end").map_err(next("hob doctor"))?;
        if count == 0 {
            break;
        }
        match to.write_all(&buffer[..count]) {
            // What `output::raw` says when nobody reads any more.
            Err(error) if error.get_ref().is_some_and(|inner| inner.to_string() == output::Closed.to_string()) => {
                return Err(anyhow::Error::new(output::Closed).into());
            }
            other => other.context("cannot write what was read")?,
        }
        bar.inc(count as u64);
        left = left.saturating_sub(count as u64);
    }
    match left {
        0 => Ok(()),
        left => Err(Failure::new(Exit::Failure, format!("the object broke off {left} bytes before its end"))),
    }
}

fn get(client: &Client, from: &At, to: &Path) -> Result<(), Failure> {
    if to == Path::new("-") {
        return download(client, from, &mut Standard, false);
    }
    let to = match to.is_dir() {
        true => match relative(from.key.rsplit(|byte| *byte == b'/').next().unwrap_or_default()) {
            Some(name) => to.join(name),
            None => {
                return Err(Failure::new(Exit::Usage, "the key ends in no name of a file: name one").next("hob blob cp --help"));
            }
        },
        false if to.as_os_str().as_encoded_bytes().ends_with(b"/") => {
            let failure = Failure::new(Exit::Usage, format!("'{}' is no folder that is there", to.display()));
            return Err(failure.next("make it first, or name a file without '/' at its end"));
        }
        false => to.to_owned(),
    };
    fetch(client, &parts()?, from, &to)
}

fn parts() -> Result<Parts, Failure> {
    Ok(Parts::new().context("cannot wait for signals")?)
}

/// Writes beside the file and renames: a copy that breaks off leaves what was there. What is no file, such as a pipe, is written to.
fn fetch(client: &Client, parts: &Parts, from: &At, to: &Path) -> Result<(), Failure> {
    let doing = || format!("cannot write '{}'", to.display());
    // A link stays, and the file that it names is replaced.
    let to = &match fs::canonicalize(to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => to.to_owned(),
        found => found.with_context(doing).map_err(next("hob blob cp --help"))?,
    };
    if fs::metadata(to).is_ok_and(|meta| !meta.is_file() && !meta.is_dir()) {
        let mut file = File::options().write(true).open(to).with_context(doing).map_err(next("hob blob cp --help"))?;
        return download(client, from, &mut file, true);
    }
    let part = parts.begin(to).with_context(doing).map_err(next("hob blob cp --help"))?;
    download(client, from, &mut part.file(), true)?;
    Ok(part.replace(to).with_context(doing)?)
}

fn get_folder(client: &Client, from: &At, to: &Path) -> Result<(), Failure> {
    let folder = folder(&from.key);
    let objects = client.objects(&from.bucket, &folder)?;
    if objects.is_empty() && !folder.is_empty() {
        let sentence = format!("there is no object whose key begins with '{}'", clean(&String::from_utf8_lossy(&folder)));
        return Err(Failure::new(Exit::NotFound, sentence).next(format!("hob blob ls {}", from.bucket)));
    }
    let parts = parts()?;
    // What is left out keeps nobody else from being copied, and is told at the end by the code.
    let mut failed = None;
    for object in objects {
        let (key, base64) = object.key();
        let key = key_of(key.map(Into::into), base64.map(Into::into))?;
        let Some(below) = relative(&key[folder.len().min(key.len())..]) else {
            output::note(format!("left out, because it is no path below the folder: {}", clean(&String::from_utf8_lossy(&key))));
            continue;
        };
        let path = to.join(below);
        let made = path
            .parent()
            .map_or(Ok(()), |parent| fs::create_dir_all(parent).with_context(|| format!("cannot make '{}'", parent.display())));
        let at = At { bucket: from.bucket.clone(), key };
        match made.map_err(next("hob blob cp --help")).and_then(|()| fetch(client, &parts, &at, &path)) {
            Ok(()) => {}
            Err(failure) if failure.code() == Exit::Unreachable as u8 => return Err(failure),
            Err(failure) => {
                output::note(format!("left out: {}: {}", clean(&String::from_utf8_lossy(&at.key)), clean(&failure.sentence())));
                failed = Some(failure);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// A key as a path that stays below where it is put; `None` if it is none.
fn relative(key: &[u8]) -> Option<PathBuf> {
    let path = PathBuf::from(OsString::from_vec(key.to_vec()));
    let is_plain = !key.is_empty()
        && !key.contains(&0)
        && !key.ends_with(b"/")
        && path.components().all(|part| matches!(part, Component::Normal(_)))
        // `a//b` and `a/./b` are other keys than `a/b`, with which they would share a file.
        && path.components().map(|part| part.as_os_str().as_bytes()).collect::<Vec<_>>().join(&b'/') == key;
    is_plain.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_spelled_with_their_bucket() {
        let of = |text: &str| at(OsStr::new(text)).map(|at| (at.bucket.to_string(), String::from_utf8(at.key).unwrap()));
        assert_eq!(of("hob:b/a/b").unwrap(), ("b".into(), "a/b".into()));
        assert_eq!(of("b//a").unwrap(), ("b".into(), "/a".into()));
        assert_eq!(of("b").unwrap(), ("b".into(), String::new()));
        assert_eq!(of("B/a").unwrap_err().code(), Exit::Usage as u8);
        assert_eq!(remote(OsStr::new("b/a")).unwrap(), None);
    }

    #[test]
    fn no_key_leads_out_of_the_folder() {
        for good in ["a", "a/b", "...", "a b"] {
            assert!(relative(good.as_bytes()).is_some(), "{good}");
        }
        for bad in ["", "/a", "..", "../a", "a/../../b", "//etc/passwd", "a//b", "./a", "a/./b", "a/", "a\0b"] {
            assert_eq!(relative(bad.as_bytes()), None, "{bad}");
        }
    }
}
