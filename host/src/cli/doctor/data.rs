//! What `hob doctor` finds in buckets: of a running daemon through its port, of a data directory that nobody uses in its files.
//!
//! Owns these checks. Changes nothing. A directory that is in use is left to its daemon; one that is not is locked while it is read.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::client::{self, Client};
use super::super::failure::Exit;
use super::super::kv::shown;
use super::super::text::{bytes, clean};
use super::super::trust::Trust;
use super::super::{Failure, output};
use super::Check;
use crate::control::wire::{ScrubInfo, split};
use crate::data::{Audited, Data, DataError};
use crate::fault::Code;
use crate::id::BucketName;

/// Damaged keys that are named.
const NAMED_MAX: usize = 5;
const MEND: &str = "write them anew or delete them, or restore the data directory from a backup";

/// What the daemon that answers says of itself: whether it writes data, makes builds, and has its walls. Nothing if none does.
pub(super) fn of_the_daemon(base: &str, trust: &Trust) -> Vec<Check> {
    let Some(said) = client::readiness(base, trust) else { return Vec::new() };
    let mut lines = said.lines();
    let data = match lines.next().unwrap_or_default() {
        "ok" => Check::good(DATA, "is read and written"),
        said => Check::bad(DATA, clean(said.trim_start_matches("ok, but ")), "look at the disk, then start hob again"),
    };
    let others = lines.filter_map(|line| {
        let (name, found) = line.split_once(": ")?;
        let (name, found) = (format!("{} of the daemon", clean(name)), clean(found));
        Some(match name.as_str() {
            "builds of the daemon" if found != "ok" => Check::bad(name, found, "start hob again"),
            "sandbox of the daemon" if found == "off" => Check::absent(name, found, "start it without process.sandbox = \"off\""),
            "sandbox of the daemon" if found.contains("missing") => {
                Check::absent(name, found, "a newer kernel has what is missing")
            }
            _ => Check::good(name, found),
        })
    });
    std::iter::once(data).chain(others).collect()
}

const DATA: &str = "data of the daemon";
/// How long another scrub is waited for, and how often it is asked.
const TURN_WITHIN: Duration = Duration::from_secs(600);
const TURN_PAUSE: Duration = Duration::from_millis(200);

/// The buckets of the daemon that answers.
pub(super) fn online(client: &Client) -> Vec<Check> {
    let bar = output::spinner("scrubbing buckets");
    let checks = scrub(client).unwrap_or_else(|failure| {
        let why = format!("could not be read: {}", clean(&failure.sentence()));
        vec![Check::bad("buckets of the daemon", why, "hob bucket ls")]
    });
    bar.finish_and_clear();
    checks
}

fn scrub(client: &Client) -> Result<Vec<Check>, Failure> {
    let buckets = client.buckets()?;
    let durable = buckets.iter().filter(|bucket| bucket.durability == "durable");
    let damaged = client.damaged_buckets()?.into_iter().map(|name| {
        let remedy =
            format!("restore the node's data from a backup; or hob bucket rm {0}, and import an earlier export", clean(&name));
        Check::bad(format!("bucket {}", clean(&name)), "its account is damaged: it can be deleted, and nothing else", remedy)
    });
    Ok(damaged.chain(durable.filter_map(|bucket| of_bucket(client, &bucket.name))).collect())
}

/// Of one bucket, whatever becomes of the others; `None` if it was deleted since it was listed.
fn of_bucket(client: &Client, name: &str) -> Option<Check> {
    let parsed = name.parse().map_err(|error: crate::id::NameError| anyhow::Error::new(error).into());
    match parsed.and_then(|name| scrub_in_turn(client, &name)) {
        Ok(info) => Some(of_scrub(&info)),
        Err(failure) if failure.code() == Exit::NotFound as u8 => None,
        Err(failure) => Some(not_looked_at(format!("bucket {}", clean(name)), &failure)),
    }
}

/// As soon as nobody else has the node's place for it, but not for ever.
fn scrub_in_turn(client: &Client, name: &BucketName) -> Result<ScrubInfo, Failure> {
    let until = Instant::now() + TURN_WITHIN;
    loop {
        match client.scrub(name) {
            Err(failure) if failure.is(Code::Overloaded) && Instant::now() < until => std::thread::sleep(TURN_PAUSE),
            done => return done,
        }
    }
}

/// Of what a token may not do nothing is known.
fn not_looked_at(name: String, failure: &Failure) -> Check {
    if failure.code() == Exit::Auth as u8 {
        let remedy = "hob --token-file FILE doctor, with a token that has the scope";
        return Check::absent(name, format!("was not read: {}", clean(&failure.sentence())), remedy);
    }
    unread(name, &failure.sentence())
}

fn unread(name: String, why: &str) -> Check {
    Check::bad(name, format!("could not be read: {}", clean(why)), "look at the disk and at the daemon's log, then: hob doctor")
}

fn of_scrub(info: &ScrubInfo) -> Check {
    let named = info.corrupt.iter().map(|found| (found.kind.as_str(), shown(found.key.as_deref(), found.key_base64.as_deref())));
    let name = format!("bucket {}", clean(&info.bucket));
    let read = format!("{} entries, {} objects", info.entries, info.objects);
    verdict(name, &read, info.corrupt_count, named, info.usage_exact != Some(false))
}

fn verdict(name: String, read: &str, damaged: u64, named: impl Iterator<Item = (impl AsRef<str>, String)>, exact: bool) -> Check {
    if damaged > 0 {
        let mut keys: Vec<_> = named.take(NAMED_MAX).map(|(kind, key)| format!("{} '{key}'", kind.as_ref())).collect();
        if damaged > keys.len() as u64 {
            keys.push("and others".into());
        }
        return Check::bad(name, format!("{damaged} damaged of {read}: {}", keys.join(", ")), MEND);
    }
    match exact {
        true => Check::good(name, format!("{read}, all as they were written")),
        false => {
            // What is damaged may be the order of the rows, and then what was found is not all: nothing that deletes can be advised.
            let remedy = "stop the node and copy its data directory, restore it from a backup, and please report this; keep the bucket: an \
                          export may lack entries";
            Check::bad(name, format!("{read}, but its account says otherwise, so some may be missing from what was read"), remedy)
        }
    }
}

/// The buckets in a data directory, unless a daemon uses it. `asked`: whether a daemon was asked already.
pub(super) fn offline(dir: &Path, asked: bool) -> Vec<Check> {
    let name = "data on disk";
    let data = dir.join("data");
    if !data.join("data.redb").exists() {
        return Vec::new();
    }
    let Ok(lock) = File::open(dir.join("lock")) else {
        return vec![Check::absent(name, "the directory has no lock, so it was not read", "hob doctor --data-dir DIR")];
    };
    // Held until the end: no daemon starts on it meanwhile.
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) if asked => return Vec::new(),
        Err(TryLockError::WouldBlock) => {
            let found = "a daemon uses it, and does not answer at --server, so it was not read";
            return vec![Check::absent(name, found, "hob doctor --server http://HOST:PORT")];
        }
        Err(TryLockError::Error(error)) => {
            return vec![Check::bad(name, format!("cannot be locked: {error}"), "look at its owner and mode")];
        }
    }
    let bar = output::spinner("reading the data directory");
    let whole = match Data::verify(&data) {
        Ok(()) => Check::good(name, "every page of the file is as it was written"),
        Err(DataError::Damaged { what }) => {
            let found = format!("not every byte of data/data.redb is as it was written: {what}");
            Check::bad(name, found, "mend what is named below; if nothing is, restore data/data.redb from a backup")
        }
        Err(error) => Check::bad(name, error.to_string(), "look at the disk; what can still be read is below"),
    };
    let mut checks = vec![whole];
    match Data::audit(&data) {
        Ok(buckets) => checks.extend(buckets.iter().map(|(name, audited)| match audited {
            Ok(audited) => of_audit(audited),
            Err(error) => unread(format!("bucket {} on disk", clean(name)), &error.to_string()),
        })),
        Err(error) => checks.push(Check::bad("buckets on disk", error.to_string(), "restore data/ from a backup")),
    }
    bar.finish_and_clear();
    checks
}

fn of_audit(audited: &Audited) -> Check {
    let Audited { bucket, entries, corrupt_entries, objects, corrupt_objects, .. } = audited;
    let damaged = (corrupt_entries.len() + corrupt_objects.len()) as u64;
    let named = corrupt_entries.iter().map(|key| ("entry", key)).chain(corrupt_objects.iter().map(|key| ("object", key)));
    let named = named.map(|(kind, key)| {
        let (text, base64) = split(key);
        (kind, shown(text.as_deref(), base64.as_deref()))
    });
    let used = bytes(bucket.entries.bytes.saturating_add(bucket.objects.bytes));
    let read = format!("{entries} entries, {objects} objects, {used}");
    verdict(format!("bucket {} on disk", bucket.name), &read, damaged, named, audited.is_good())
}
