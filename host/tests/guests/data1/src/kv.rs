//! Entries.

use std::time::Duration;

use hob_sdk::data::{Error, ErrorKind};
use hob_sdk::kv::{Batch, Bucket, Done, Entry, SetOptions, When, open};

use crate::{bytes, millis, number, word};

pub(crate) fn run(bucket: &str, verb: &str, words: &[&str]) -> Result<String, Error> {
    let bucket = open(bucket)?;
    let key = || bytes(words[0]);
    Ok(match verb {
        "get" => bucket.get(key())?.map_or_else(|| "none".into(), |value| word(&value)),
        "entry" => bucket.entry(key())?.map_or_else(|| "none".into(), |entry| shown(&entry)),
        "exists" => bucket.exists(key())?.to_string(),
        "many" => {
            let entries = bucket.get_many(words.iter().map(|word| bytes(word)))?;
            let values: Vec<_> = entries.iter().map(|entry| entry.as_ref().map_or("none".into(), |e| word(&e.value))).collect();
            values.join(" ")
        }
        "repeat" => {
            let count = number(words, "count").expect("how often");
            bucket.get_many(std::iter::repeat_n(key(), count))?.iter().flatten().count().to_string()
        }
        "set" => match words {
            [key, value] => format!("version {}", bucket.set(bytes(key), bytes(value))?),
            [key, value, ..] => format!("version {}", bucket.set_with(bytes(key), bytes(value), options(words))?),
            _ => panic!("{words:?}"),
        },
        "cas" => {
            let swapped = bucket.compare_and_swap(key(), number(words, "version"), bytes(words[1]))?;
            swapped.map_or_else(|| "lost".into(), |version| format!("version {version}"))
        }
        "del" => format!("found {}", bucket.delete(key())?),
        "add" => format!("number {}", bucket.increment(key(), words[1].parse().expect("a number"))?),
        "fill" => fill(&bucket, words)?,
        "scan" => scan(&bucket, words)?,
        other => panic!("{other}"),
    })
}

fn options(words: &[&str]) -> SetOptions {
    SetOptions { ttl: number(words, "ttl").map(Duration::from_millis), when: when(words) }
}

fn when(words: &[&str]) -> When {
    match number(words, "version") {
        Some(version) => When::Version(version),
        None if words.contains(&"absent") => When::Absent,
        None => When::Always,
    }
}

fn shown(entry: &Entry) -> String {
    format!("{} {} {}", word(&entry.value), entry.version, millis(entry.expires))
}

/// All keys, or the first `take=N`, taken from the host by `page=N`; with `values`, those too.
fn scan(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let mut scan = bucket.scan(bytes(words[0]));
    if let Some(after) = crate::option(words, "after") {
        scan = scan.after(bytes(after));
    }
    if let Some(count) = number(words, "page") {
        scan = scan.page_len(count);
    }
    let mut found = Vec::new();
    for item in scan.take(number(words, "take").unwrap_or(usize::MAX)) {
        let (key, entry) = match item {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                found.push(format!("damaged:{error}"));
                continue;
            }
            item => item?,
        };
        match words.contains(&"values") {
            true => found.push(format!("{}={}", word(&key), word(&entry.value))),
            false => found.push(word(&key)),
        }
    }
    Ok(found.join(" "))
}

/// A batch of `count=N` sets of the same value, under keys that begin with this one.
fn fill(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let mut batch = bucket.batch();
    for n in 0..number::<u32>(words, "count").expect("how many") {
        batch.set([bytes(words[0]), format!("{n:05}").into_bytes()].concat(), bytes(words[1]));
    }
    Ok(batch.write()?.len().to_string())
}

pub(crate) fn batch<'a>(bucket: &str, lines: impl Iterator<Item = &'a str>) -> Result<String, Error> {
    // All lines first: they belong to the batch, whether there is a bucket or not.
    let lines: Vec<Vec<&str>> = lines.map(|line| line.split_whitespace().collect()).collect();
    let bucket = open(bucket)?;
    let mut batch = bucket.batch();
    for line in &lines {
        add(&mut batch, line[0], &line[1..]);
    }
    let done: Vec<_> = batch
        .write()?
        .into_iter()
        .map(|done| match done {
            Done::Set { version } => format!("version={version}"),
            Done::Deleted { found } => format!("found={found}"),
            Done::Incremented { value, version } => format!("number={value},version={version}"),
        })
        .collect();
    Ok(format!("done {}", done.join(" ")))
}

fn add(batch: &mut Batch<'_>, verb: &str, words: &[&str]) {
    let key = bytes(words[0]);
    match verb {
        "set" => batch.set_with(key, bytes(words[1]), options(words)),
        "del" => batch.delete_when(key, when(words)),
        "add" => batch.increment(key, words[1].parse().expect("a number")),
        other => panic!("{other}"),
    };
}
