//! Handlers' calls through the SDK as a door. The guest is `tests/guests/data1`, whose first lines say how it is spoken to.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hob::data::kv::{Done, Entry, Op, When};
use hob::data::objects::{self, PutOptions};
use hob::id::Digest;

use crate::data::{Door, hex};
use crate::harness::doors::{Entries, Files, Known, Said};

/// One bucket as the guest has it.
pub(crate) struct Handler<'a> {
    pub(crate) door: &'a Door,
    pub(crate) bucket: &'a str,
    pub(crate) is_of_origin: bool,
}

impl<'a> Handler<'a> {
    pub(crate) fn new(door: &'a Door, bucket: &'a str) -> Self {
        Self { door, bucket, is_of_origin: false }
    }

    /// What the guest says to one line; an error in its words.
    fn say(&self, line: impl AsRef<str>) -> Said<String> {
        let answer = self.door.one(self.bucket, line);
        match answer.strip_prefix("error ") {
            Some(text) => Err(text.into()),
            None => Ok(answer),
        }
    }

    fn number(&self, line: &str, name: &str) -> Said<u64> {
        Ok(number(self.say(line)?.strip_prefix(name).unwrap()))
    }
}

fn number<T: std::str::FromStr<Err: std::fmt::Debug>>(word: &str) -> T {
    word.trim().parse().unwrap()
}

fn time(word: &str) -> Option<u64> {
    (word != "never").then(|| number(word))
}

/// What the guest's word means.
fn bytes(word: &str) -> Vec<u8> {
    match word.strip_prefix('*') {
        Some(count) => vec![1; number(count)],
        None if word == "-" => Vec::new(),
        None => (0..word.len()).step_by(2).map(|at| u8::from_str_radix(&word[at..at + 2], 16).unwrap()).collect(),
    }
}

fn words(answer: &str) -> impl Iterator<Item = &str> {
    answer.split(' ').filter(|word| !word.is_empty())
}

fn options(ttl: Option<Duration>, when: When) -> String {
    let ttl = ttl.map(|ttl| format!(" ttl={}", ttl.as_millis())).unwrap_or_default();
    ttl + &match when {
        When::Always => String::new(),
        When::Absent => " absent".into(),
        When::Present => panic!("guests have no word for it"),
        When::Version(version) => format!(" version={version}"),
    }
}

/// A line of a batch.
fn line(op: &Op) -> String {
    match op {
        Op::Set { key, value, ttl, when } => format!("set {} {}{}", hex(key), hex(value), options(*ttl, *when)),
        Op::Delete { key, when } => format!("del {}{}", hex(key), options(None, *when)),
        Op::Increment { key, by } => format!("add {} {by}", hex(key)),
    }
}

fn done(word: &str) -> Done {
    match word.split(['=', ',']).collect::<Vec<_>>()[..] {
        ["version", version] => Done::Set { version: number(version) },
        ["found", found] => Done::Deleted { found: number(found) },
        ["number", value, "version", version] => Done::Incremented { value: number(value), version: number(version) },
        _ => panic!("{word}"),
    }
}

impl Entries for Handler<'_> {
    fn entry(&self, key: &[u8]) -> Said<Option<Entry>> {
        let answer = self.say(format!("entry {}", hex(key)))?;
        Ok(match words(&answer).collect::<Vec<_>>()[..] {
            ["none"] => None,
            [value, version, end] => {
                Some(Entry { value: Bytes::from(bytes(value)), version: number(version), expires_ms: time(end) })
            }
            _ => panic!("{answer}"),
        })
    }
    fn has(&self, key: &[u8]) -> Said<bool> {
        Ok(number(&self.say(format!("exists {}", hex(key)))?))
    }
    fn values(&self, keys: &[&[u8]]) -> Said<Vec<Option<Vec<u8>>>> {
        let answer = self.say(format!("many {}", keys.iter().map(hex).collect::<Vec<_>>().join(" ")))?;
        Ok(words(&answer).map(|word| (word != "none").then(|| bytes(word))).collect())
    }
    fn put(&self, key: &[u8], value: &[u8], ttl: Option<Duration>, when: When) -> Said<u64> {
        self.number(&format!("set {} {}{}", hex(key), hex(value), options(ttl, when)), "version")
    }
    fn remove(&self, key: &[u8]) -> Said<bool> {
        Ok(number(self.say(format!("del {}", hex(key)))?.strip_prefix("found").unwrap()))
    }
    fn add(&self, key: &[u8], by: i64) -> Said<i64> {
        Ok(number(self.say(format!("add {} {by}", hex(key)))?.strip_prefix("number").unwrap()))
    }
    fn batch(&self, ops: &[Op]) -> Said<Vec<Done>> {
        let mut script = String::from("batch\n");
        for op in ops {
            writeln!(script, "{}", line(op)).unwrap();
        }
        let answer = self.say(script + "end")?;
        Ok(words(answer.strip_prefix("done").unwrap()).map(done).collect())
    }
    fn scan(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        let after = after.map(|after| format!(" after={}", hex(after))).unwrap_or_default();
        let answer = self.say(format!("scan {} page={by}{after}", hex(prefix)))?;
        Ok(words(&answer).map(bytes).collect())
    }
}

/// What the guest says of an object, `None` if there is none.
fn known(answer: &str) -> Option<Known> {
    let text = |word: &str| String::from_utf8(bytes(word)).unwrap();
    let pair = |pair: &str| pair.split_once(':').map(|(name, value)| (text(name), text(value))).unwrap();
    match answer.split(' ').collect::<Vec<_>>()[..] {
        ["none"] => None,
        ["head", etag, len, version, _, end, content_type, metadata] => Some(Known {
            etag: Digest::from_hex(etag).unwrap(),
            len: number(len),
            version: number(version),
            expires_ms: time(end),
            content_type: text(content_type),
            metadata: if metadata == "-" { Vec::new() } else { metadata.split(',').map(pair).collect() },
        }),
        _ => panic!("{answer}"),
    }
}

fn put_words(options: &PutOptions) -> String {
    let mut words = String::new();
    if !options.content_type.is_empty() {
        write!(words, " type={}", hex(&options.content_type)).unwrap();
    }
    for (name, value) in &options.metadata {
        write!(words, " meta={}:{}", hex(name), hex(value)).unwrap();
    }
    if let Some(ttl) = options.ttl_ms {
        write!(words, " ttl={ttl}").unwrap();
    }
    if let Some(digest) = options.digest {
        write!(words, " digest={}", digest.hex()).unwrap();
    }
    words + &condition(options.when)
}

fn condition(when: objects::When) -> String {
    match when {
        objects::When::Always => String::new(),
        objects::When::Absent => " absent".into(),
        objects::When::Present => panic!("guests have no word for it"),
        objects::When::Etag(etag) => format!(" etag={}", etag.hex()),
    }
}

impl Files for Handler<'_> {
    fn write(&self, key: &[u8], bytes: &[u8], options: &PutOptions) -> Said<Known> {
        // By one call, and by a writer piece by piece.
        let line = match bytes.split_at_checked(150_000) {
            Some((first, rest)) => format!("write {} {} {}", hex(key), hex(first), hex(rest)),
            None => format!("put {} {}", hex(key), hex(bytes)),
        };
        Ok(known(&self.say(line + &put_words(options))?).unwrap())
    }
    fn known(&self, key: &[u8]) -> Said<Option<Known>> {
        Ok(known(&self.say(format!("head {}", hex(key)))?))
    }
    fn read(&self, key: &[u8], from: u64, to: u64) -> Said<Option<Vec<u8>>> {
        let range = if (from, to) == (0, u64::MAX) { String::new() } else { format!(" from={from} to={to}") };
        let answer = self.say(format!("read {}{range}", hex(key)))?;
        Ok((answer != "none").then(|| bytes(&answer)))
    }
    fn remove(&self, key: &[u8], when: objects::When) -> Said<bool> {
        Ok(known(&self.say(format!("rm {}{}", hex(key), condition(when)))?).is_some())
    }
    fn list(&self, prefix: &[u8], after: Option<&[u8]>, _by: usize) -> Said<Vec<Vec<u8>>> {
        let after = after.map(|after| format!(" after={}", hex(after))).unwrap_or_default();
        let answer = self.say(format!("list {}{after}", hex(prefix)))?;
        Ok(words(&answer).map(bytes).collect())
    }
    fn is_of_origin(&self) -> bool {
        self.is_of_origin
    }
}

/// The same, read by mappings.
pub(crate) struct Mapped<'a>(pub(crate) Handler<'a>);

impl Files for Mapped<'_> {
    fn write(&self, key: &[u8], bytes: &[u8], options: &PutOptions) -> Said<Known> {
        self.0.write(key, bytes, options)
    }
    fn known(&self, key: &[u8]) -> Said<Option<Known>> {
        self.0.known(key)
    }
    fn read(&self, key: &[u8], from: u64, to: u64) -> Said<Option<Vec<u8>>> {
        let range = if (from, to) == (0, u64::MAX) { String::new() } else { format!(" from={from} to={to}") };
        let answer = self.0.say(format!("map {}{range}", hex(key)))?;
        Ok((answer != "none").then(|| bytes(&answer)))
    }
    fn remove(&self, key: &[u8], when: objects::When) -> Said<bool> {
        Files::remove(&self.0, key, when)
    }
    fn list(&self, prefix: &[u8], after: Option<&[u8]>, by: usize) -> Said<Vec<Vec<u8>>> {
        self.0.list(prefix, after, by)
    }
    fn is_of_origin(&self) -> bool {
        self.0.is_of_origin
    }
}
