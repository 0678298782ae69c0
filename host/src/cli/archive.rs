//! The file of an export: `hob bucket export` and `hob bucket import`.
//!
//! ```text
//! hob-bucket 1 LF
//! {"bucket": …, "durability": …, "bytes_max": …, "keys_max": …} LF
//! {"kind": "entry", "key": …, "bytes": N, "digest": …, "expires_ms": …} LF   N bytes LF      for each entry
//! {"kind": "object", "key": …, "bytes": N, "digest": …, …} LF                N bytes LF      for each object
//! {"kind": "end", "entries": …, "objects": …, "digest": …} LF               SHA-256 of all bytes before this line
//! ```
//!
//! Keys are text or Base64 as in the API. Owns this form, and has more than 500 lines so that who writes it and who reads it stand
//! together. Invariant: nothing is imported of a file that is not whole to its last byte. Not kept: versions, and when something was
//! written. Each page of an export is what was there at one moment, and the next page of another one.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::client::Client;
use super::client::data::{Condition, Put};
use super::failure::{Exit, next};
use super::kv::{key_of, named, shown};
use super::output::{self, Format};
use super::part::Parts;
use super::text::bytes;
use super::{Ctx, Failure};
use crate::control::BATCH_LEN_MAX;
use crate::control::wire::{BatchKind, BatchOp, BucketInfo, BucketRequest, ObjectItem, join, split};
use crate::data::kv::{BATCH_OPS_MAX, KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::data::{Durability, TTL_MAX};
use crate::fault::Code;
use crate::id::{BucketName, Digest};

/// The first line.
const MAGIC: &str = "hob-bucket 1";
/// Longest line, in bytes: a key and metadata, escaped, are far shorter.
const LINE_LEN_MAX: u64 = 64 << 10;
/// Bytes of JSON after which a batch of an import is sent. The entry that passes it goes along: with each byte of its key and value escaped
/// it has six times their bytes, and a body may have 32 MiB.
const BATCH_BYTES: usize = 4 << 20;
/// How long what has expired may stay in a bucket's account, at most.
const SWEPT_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(BATCH_BYTES + 6 * (VALUE_LEN_MAX + KEY_LEN_MAX) + (1 << 20) < BATCH_LEN_MAX, "a batch is taken");

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Definition {
    bucket: BucketName,
    durability: String,
    bytes_max: u64,
    keys_max: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Entry,
    Object,
    End,
}

/// One line after the definition. Which fields are there follows from the kind.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    kind: Kind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    content_type: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    metadata: Vec<(String, String)>,
    #[serde(default)]
    entries: u64,
    #[serde(default)]
    objects: u64,
}

impl Record {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            key: None,
            key_base64: None,
            bytes: 0,
            digest: String::new(),
            expires_ms: None,
            content_type: String::new(),
            metadata: Vec::new(),
            entries: 0,
            objects: 0,
        }
    }
}

/// Writes, and digests what it writes.
struct Hashing<W> {
    inner: W,
    hasher: sha2::Sha256,
}

impl<W: Write> Hashing<W> {
    fn all(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.inner.write_all(bytes).context("cannot write the file")?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn line(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.push(b'\n');
        self.all(&line)
    }

    fn digest(&self) -> String {
        Digest::from_bytes(self.hasher.clone().finalize().into()).to_string()
    }
}

/// How much there was.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Count {
    entries: u64,
    objects: u64,
    bytes: u64,
}

impl Count {
    fn show(self, ctx: &Ctx, done: &str, name: &BucketName) -> Result<(), Failure> {
        match ctx.format {
            Format::Json => output::json(&serde_json::json!({
                "bucket": name, "entries": self.entries, "objects": self.objects, "bytes": self.bytes,
            }))?,
            Format::Text => output::note(format!(
                "{done} {} entries and {} objects of {name}, {}",
                self.entries,
                self.objects,
                bytes(self.bytes)
            )),
        }
        Ok(())
    }
}

/// Writes a bucket to a file that must not exist.
pub(super) fn export(ctx: &Ctx, name: &BucketName, path: &Path) -> Result<(), Failure> {
    let client = ctx.client()?;
    let info = client.bucket(name)?;
    if info.origin.is_some() {
        let sentence = "its objects are those of its origin, so an export would not be whole without it: copy them there";
        return Err(Failure::new(Exit::Failure, sentence));
    }
    if path == Path::new("-") {
        return Err(Failure::new(Exit::Usage, "an export is a file, which has its name when it is whole: name one")
            .next("hob bucket export --help"));
    }
    let doing = || format!("cannot make '{}'", path.display());
    let another = || next(format!("hob bucket export {name} ANOTHER-FILE"));
    let parts = Parts::new().context("cannot wait for signals")?;
    // It is looked at again when the file gets its name.
    let begun = match fs::symlink_metadata(path) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => parts.begin(path),
    };
    let part = begun.with_context(doing).map_err(another())?;
    let bar = output::spinner(&format!("exporting {name}"));
    let definition = Definition {
        bucket: name.clone(),
        durability: info.durability.clone(),
        bytes_max: info.bytes_max,
        keys_max: info.keys_max,
    };
    let done = write(&client, &definition, part.file(), &bar);
    // What is gone with its bucket looks like what was deleted one by one.
    let done = done.and_then(|done| match client.bucket(name)?.created_ms == info.created_ms {
        true => Ok(done),
        false => Err(Failure::new(Exit::Failure, "the bucket was deleted and made again while it was exported: export it again")),
    });
    let done = done.and_then(|done| Ok(part.file().sync_all().map(|()| done).context("cannot write the file")?));
    bar.finish_and_clear();
    let (count, damaged) = done?;
    part.place(path).with_context(doing).map_err(another())?;
    count.show(ctx, "wrote", name)?;
    match damaged.as_slice() {
        [] if lacks_some(&client, name, &info, count)? => {
            let sentence = format!(
                "the bucket has {} entries and {} objects by its account, and fewer were found: the export may lack some; keep the bucket",
                info.entries.keys, info.objects.keys
            );
            Err(Failure::new(Exit::Failure, sentence).next("hob doctor"))
        }
        [] => Ok(()),
        keys => Err(Failure::new(Exit::Failure, format!("damaged on disk, and not in the export: {}", named(keys)))),
    }
}

/// Whether an export of a bucket has less than the bucket's account, and nobody wrote meanwhile. What has expired is not listed, and leaves
/// the account in moments: so long it is waited for.
fn lacks_some(client: &Client, name: &BucketName, before: &BucketInfo, count: Count) -> Result<bool, Failure> {
    if count.entries >= before.entries.keys && count.objects >= before.objects.keys {
        return Ok(false);
    }
    let until = Instant::now() + SWEPT_WITHIN;
    loop {
        let now = client.bucket(name)?;
        if (now.entries, now.objects) != (before.entries, before.objects) {
            return Ok(false);
        }
        if Instant::now() >= until {
            return Ok(true);
        }
        std::thread::sleep(SWEPT_WITHIN / 20);
    }
}

/// Answers what is in the file, and what is not because it is damaged.
fn write(client: &Client, definition: &Definition, file: &File, bar: &ProgressBar) -> Result<(Count, Vec<String>), Failure> {
    let name = &definition.bucket;
    let mut out = Hashing { inner: BufWriter::with_capacity(1 << 20, file), hasher: sha2::Sha256::new() };
    let (mut count, mut damaged) = (Count::default(), Vec::new());
    out.all(format!("{MAGIC}\n").as_bytes())?;
    out.line(definition)?;
    client.entries(name, &[], true, |page| {
        for entry in page {
            if entry.damaged {
                damaged.push(format!("entry {}", shown(entry.key.as_deref(), entry.key_base64.as_deref())));
                continue;
            }
            let value = join(entry.value, entry.value_base64).ok().flatten().context("an entry came without its value")?;
            let (len, digest) = (value.len() as u64, Digest::of(&value).to_string());
            let (key, key_base64, expires_ms) = (entry.key, entry.key_base64, entry.expires_ms);
            out.line(&Record { key, key_base64, bytes: len, digest, expires_ms, ..Record::new(Kind::Entry) })?;
            out.all(&value)?;
            out.all(b"\n")?;
            (count.entries, count.bytes) = (count.entries + 1, count.bytes + len);
            bar.set_message(format!("{} entries", count.entries));
        }
        Ok(())
    })?;
    for item in client.objects(name, &[])? {
        let ObjectItem::Object(object) = item else {
            let (key, base64) = item.key();
            damaged.push(format!("object {}", shown(key, base64)));
            continue;
        };
        let key = key_of(object.key.clone(), object.key_base64.clone())?;
        let (len, mut from) = match client.object(name, &key) {
            // It was deleted since it was listed.
            Err(failure) if failure.code() == Exit::NotFound as u8 => continue,
            Err(failure) if failure.is(Code::Damaged) => {
                damaged.push(format!("object {}", shown(object.key.as_deref(), object.key_base64.as_deref())));
                continue;
            }
            other => other?,
        };
        if len != object.bytes {
            let sentence = "an object was replaced while it was exported: export again when nobody writes";
            return Err(Failure::new(Exit::Failure, sentence));
        }
        out.line(&Record {
            key: object.key,
            key_base64: object.key_base64,
            bytes: len,
            digest: object.digest.clone().unwrap_or_default(),
            expires_ms: object.expires_ms,
            content_type: object.content_type,
            metadata: object.metadata,
            ..Record::new(Kind::Object)
        })?;
        let found = copy(&mut *from, len, |piece| out.all(piece))?;
        if Some(found.to_string()) != object.digest {
            return Err(Failure::new(
                Exit::Failure,
                "an object was replaced while it was exported: export again when nobody writes",
            ));
        }
        out.all(b"\n")?;
        (count.objects, count.bytes) = (count.objects + 1, count.bytes + len);
        bar.set_message(format!("{} objects", count.objects));
    }
    let digest = out.digest();
    out.line(&Record { digest, entries: count.entries, objects: count.objects, ..Record::new(Kind::End) })?;
    out.inner.flush().context("cannot write the file")?;
    Ok((count, damaged))
}

/// Reads exactly `len` bytes, piece by piece; their digest.
fn copy(from: &mut dyn Read, len: u64, mut each: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<Digest> {
    let (mut hasher, mut left, mut buffer) = (sha2::Sha256::new(), len, vec![0; 64 << 10]);
    while left > 0 {
        let room = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = from.read(&mut buffer[..room]).context("it cannot be read")?;
        if count == 0 {
            anyhow::bail!("it ends {left} bytes early");
        }
        each(&buffer[..count])?;
        hasher.update(&buffer[..count]);
        left -= count as u64;
    }
    Ok(Digest::from_bytes(hasher.finalize().into()))
}

/// Reads a file, and digests what it reads.
struct Source {
    inner: BufReader<File>,
    hasher: sha2::Sha256,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

impl Source {
    fn open(file: File) -> anyhow::Result<(Self, Definition)> {
        let mut source = Self { inner: BufReader::with_capacity(1 << 20, file), hasher: sha2::Sha256::new() };
        if source.line()? != MAGIC.as_bytes() {
            anyhow::bail!("it does not begin with '{MAGIC}': it is no export of a bucket, or of another version");
        }
        let definition: Definition = serde_json::from_slice(&source.line()?).context("its second line defines no bucket")?;
        if ![Durability::Durable, Durability::Volatile].map(Durability::as_str).contains(&definition.durability.as_str()) {
            anyhow::bail!("its second line defines no bucket: expected 'durable' or 'volatile'");
        }
        Ok((source, definition))
    }

    fn line(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.inner.by_ref().take(LINE_LEN_MAX).read_until(b'\n', &mut line).context("it cannot be read")?;
        self.hasher.update(&line);
        if line.pop() != Some(b'\n') {
            anyhow::bail!("it ends in the middle of a line, or has one that is too long");
        }
        Ok(line)
    }

    /// The next record; after its line comes what it announces, to be taken by `each`.
    fn next(&mut self, mut each: impl FnMut(Record, &mut dyn Read) -> anyhow::Result<Digest>) -> anyhow::Result<Option<Count>> {
        let before = Digest::from_bytes(self.hasher.clone().finalize().into()).to_string();
        let record: Record = serde_json::from_slice(&self.line()?).context("it has a line that is no record")?;
        if record.kind == Kind::End {
            let mut rest = [0];
            let is_end = self.read(&mut rest).context("it cannot be read")? == 0;
            if record.digest != before || !is_end {
                anyhow::bail!("it was changed since it was written: its digest is another");
            }
            return Ok(Some(Count { entries: record.entries, objects: record.objects, bytes: 0 }));
        }
        let (len, digest) = (record.bytes, record.digest.clone());
        if record.kind == Kind::Entry && len > VALUE_LEN_MAX as u64 {
            anyhow::bail!("it has a value of {len} bytes: expected at most {VALUE_LEN_MAX}");
        }
        let found = {
            let mut body = (&mut *self).take(len);
            let found = each(record, &mut body)?;
            if body.limit() > 0 {
                anyhow::bail!("it ends in the middle of a value");
            }
            found
        };
        let mut end = [0];
        self.read_exact(&mut end).context("it ends after a value")?;
        if found.to_string() != digest || end != *b"\n" {
            anyhow::bail!("it was changed since it was written: the digest of a value is another");
        }
        Ok(None)
    }
}

/// Reads the whole file and changes nothing.
fn check(file: &File) -> anyhow::Result<Definition> {
    let (mut source, definition) = Source::open(file.try_clone().context("it cannot be read")?)?;
    let mut count = Count::default();
    loop {
        let end = source.next(|record, body| {
            let key = join(record.key, record.key_base64).ok().flatten();
            if key.is_none_or(|key| key.is_empty() || key.len() > KEY_LEN_MAX) {
                anyhow::bail!("it has a key that no bucket takes: expected 1 to {KEY_LEN_MAX} bytes");
            }
            match record.kind {
                Kind::Entry => count.entries += 1,
                Kind::Object | Kind::End => count.objects += 1,
            }
            copy(body, record.bytes, |_| Ok(()))
        })?;
        match end {
            None => {}
            Some(end) if (end.entries, end.objects) == (count.entries, count.objects) => return Ok(definition),
            Some(_) => anyhow::bail!("it has not as many entries and objects as it says"),
        }
    }
}

/// Reads a file into a bucket.
pub(super) fn import(ctx: &Ctx, path: &Path, name: Option<BucketName>) -> Result<(), Failure> {
    let client = ctx.client()?;
    let shown = path.display();
    let mut file =
        File::open(path).with_context(|| format!("cannot open '{shown}'")).map_err(next("hob bucket import --help"))?;
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        let sentence = format!("'{shown}' is no file: an export is read twice, once to check all of it");
        return Err(Failure::new(Exit::Usage, sentence).next("hob bucket import --help"));
    }
    let bar = output::spinner(&format!("checking {shown}"));
    let checked = check(&file).with_context(|| format!("'{shown}' cannot be imported, and nothing of it was"));
    let definition = checked.inspect_err(|_| bar.finish_and_clear()).map_err(next("hob bucket export --help"))?;
    let name = name.unwrap_or_else(|| definition.bucket.clone());
    output::go_on(&bar, &format!("importing {name}"));
    let done = client
        .bucket(&name)
        .map(drop)
        .or_else(|failure| match failure.code() == Exit::NotFound as u8 {
            true => {
                let (bytes_max, keys_max) = (Some(definition.bytes_max), Some(definition.keys_max));
                let wanted = BucketRequest { durability: Some(definition.durability), bytes_max, keys_max, origin: None };
                client.put_bucket(&name, &wanted).map(drop)
            }
            false => Err(failure),
        })
        .and_then(|()| Ok(file.rewind().context("it cannot be read")?))
        .and_then(|()| {
            let mut importing = Importing { client: &client, name: &name, ops: Vec::new(), bytes: 0, count: Count::default() };
            importing.run(file, &bar).map_err(|failure| importing.stopped(failure, path))
        });
    bar.finish_and_clear();
    done?.show(ctx, "read", &name)
}

struct Importing<'a> {
    client: &'a Client,
    name: &'a BucketName,
    /// Entries of the next batch.
    ops: Vec<BatchOp>,
    /// What they take as JSON.
    bytes: usize,
    count: Count,
}

impl Importing<'_> {
    /// Says how far it came: what is in the bucket by now stays there.
    fn stopped(&self, failure: Failure, path: &Path) -> Failure {
        let (Count { objects, .. }, name) = (self.count, self.name);
        let entries = self.count.entries - self.ops.len() as u64;
        let done = format!("the import stopped with {entries} entries and {objects} objects in '{name}'");
        failure
            .context(format!("{done}; import it again when the reason is mended"))
            .next(format!("hob bucket import {} {name}", path.display()))
    }

    fn run(&mut self, file: File, bar: &ProgressBar) -> Result<Count, Failure> {
        let (mut source, _) = Source::open(file)?;
        let mut failed = None;
        loop {
            let end = source.next(|record, body| {
                let taken = self.take(record, body, bar);
                taken.map_err(|failure| {
                    failed = Some(failure);
                    anyhow::anyhow!("the daemon refused it")
                })
            });
            if let Some(failure) = failed.take() {
                return Err(failure);
            }
            if end?.is_some() {
                break;
            }
        }
        self.flush()?;
        Ok(self.count)
    }

    fn take(&mut self, record: Record, body: &mut dyn Read, bar: &ProgressBar) -> Result<Digest, Failure> {
        let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        // A bucket may hold, and a clock that is behind may make, more than is taken.
        let left_ms = record.expires_ms.map(|expires_ms| u128::from(expires_ms).saturating_sub(now_ms).min(TTL_MAX.as_millis()));
        let ttl = left_ms.map(|ms| format!("{ms}ms"));
        // What has ended meanwhile is not brought back.
        if left_ms == Some(0) {
            return Ok(copy(body, record.bytes, |_| Ok(()))?);
        }
        self.count.bytes += record.bytes;
        if record.kind == Kind::Entry {
            let mut value = Vec::new();
            let digest = copy(body, record.bytes, |piece| {
                value.extend_from_slice(piece);
                Ok(())
            })?;
            self.count.entries += 1;
            let (text, value_base64) = split(&value);
            let (key, key_base64) = (record.key, record.key_base64);
            let kind = BatchKind::Set;
            let op = BatchOp {
                op: kind,
                key,
                key_base64,
                value: text,
                value_base64,
                ttl,
                if_absent: false,
                if_version: None,
                by: None,
            };
            self.bytes += serde_json::to_vec(&op).context("an entry cannot be written as JSON")?.len();
            self.ops.push(op);
            bar.set_message(format!("{} entries", self.count.entries));
            if self.ops.len() == BATCH_OPS_MAX || self.bytes >= BATCH_BYTES {
                self.flush()?;
            }
            return Ok(digest);
        }
        let digest: Digest = record.digest.parse().context("an object's digest cannot be read")?;
        let key = key_of(record.key, record.key_base64)?;
        let put = Put {
            key: &key,
            len: Some(record.bytes),
            content_type: Some(record.content_type.as_str()).filter(|kind| !kind.is_empty()),
            metadata: &record.metadata,
            ttl,
            digest: Some(format!("sha-256=:{}:", STANDARD.encode(digest.bytes()))),
        };
        self.client.put_object(self.name, &put, &Condition::default(), body)?;
        self.count.objects += 1;
        bar.set_message(format!("{} objects", self.count.objects));
        // The daemon held the bytes against it.
        Ok(digest)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        if !self.ops.is_empty() {
            // They count as written when they are.
            self.client.batch(self.name, self.ops.clone())?;
            self.ops.clear();
        }
        self.bytes = 0;
        Ok(())
    }
}
