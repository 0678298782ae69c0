//! Objects.

use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use hob_sdk::data::{Error, ErrorKind};
use hob_sdk::objects::{self, Bucket, Etag, Head, PutOptions, When, open};

use crate::{bytes, millis, number, option, word};

pub(crate) fn run(name: &str, verb: &str, words: &[&str]) -> Result<String, Error> {
    let bucket = open(name)?;
    let key = || bytes(words[0]);
    Ok(match verb {
        "put" => shown(&bucket.put_with(key(), bytes(words[1]), &options(words))?),
        "write" => {
            let mut writer = bucket.writer(key(), &options(words))?;
            for piece in words[1..].iter().filter(|word| !word.contains('=') && **word != "absent") {
                writer.write_all(&bytes(piece)).map_err(inner)?;
            }
            shown(&writer.finish()?)
        }
        "abandon" => {
            let mut writer = bucket.writer(key(), &PutOptions::default())?;
            writer.write_all(&bytes(words[1])).and_then(|()| writer.flush()).map_err(inner)?;
            "abandoned".into()
        }
        "leak" => {
            let mut writer = bucket.writer(key(), &PutOptions::default())?;
            writer.write_all(&bytes(words[1])).and_then(|()| writer.flush()).map_err(inner)?;
            std::mem::forget(writer);
            "leaked".into()
        }
        // Writes until its deadline, whatever is full.
        "drip" => loop {
            let mut writer = bucket.writer(key(), &PutOptions::default())?;
            while writer.write_all(&[1; 4096]).and_then(|()| writer.flush()).is_ok() {}
        },
        "read" => read(&bucket, words)?,
        "head" => bucket.head(key())?.map_or_else(|| "none".into(), |head| shown(&head)),
        "list" => {
            let mut list = bucket.list(key());
            if let Some(after) = option(words, "after") {
                list = list.after(bytes(after));
            }
            let shown = |item: Result<(Vec<u8>, _), Error>| match item {
                Err(error) if error.kind() == ErrorKind::Damaged => Ok(format!("damaged:{error}")),
                item => item.map(|(key, _)| word(&key)),
            };
            let keys = list.map(shown).collect::<Result<Vec<_>, _>>()?;
            keys.join(" ")
        }
        "rm" => {
            let deleted = match option(words, "etag") {
                Some(etag) => bucket.delete_if(key(), Etag::from_hex(etag).expect("an ETag"))?,
                None => bucket.delete(key())?,
            };
            deleted.map_or_else(|| "none".into(), |head| shown(&head))
        }
        "map" => map(name, words)?,
        "remap" => remap(&bucket, words)?,
        "mapgrow" => map_and_grow(&bucket, words)?,
        "mapped" => mapped(&bucket, words)?,
        "hold" => hold(&bucket, words)?,
        "uploads" => {
            let begin = |_| bucket.writer(key(), &PutOptions::default());
            let writers = (0..number::<u32>(words, "count").expect("how many")).map(begin).collect::<Result<Vec<_>, _>>()?;
            writers.len().to_string()
        }
        other => panic!("{other}"),
    })
}

/// The SDK's error within one of std's.
fn inner(error: std::io::Error) -> Error {
    *error.into_inner().expect("it has one").downcast().expect("it is the SDK's")
}

fn options(words: &[&str]) -> PutOptions {
    let etag = |name| option(words, name).map(|etag| Etag::from_hex(etag).expect("an ETag"));
    let meta = words.iter().filter_map(|word| word.strip_prefix("meta="));
    let text = |word: &str| String::from_utf8(bytes(word)).expect("text");
    PutOptions {
        content_type: option(words, "type").map(text).unwrap_or_default(),
        metadata: meta.map(|pair| pair.split_once(':').expect("a pair")).map(|(n, v)| (text(n), text(v))).collect(),
        ttl: number(words, "ttl").map(Duration::from_millis),
        when: match etag("etag") {
            Some(etag) => When::Etag(etag),
            None if words.contains(&"absent") => When::Absent,
            None => When::Always,
        },
        digest: etag("digest"),
    }
}

fn shown(head: &Head) -> String {
    let metadata: Vec<_> = head.metadata.iter().map(|(n, v)| format!("{}:{}", word(n.as_bytes()), word(v.as_bytes()))).collect();
    let content_type = word(head.content_type.as_bytes());
    let metadata = if metadata.is_empty() { "-".into() } else { metadata.join(",") };
    let Head { etag, len, version, .. } = head;
    format!("head {etag} {len} {version} {} {} {content_type} {metadata}", millis(Some(head.modified)), millis(head.expires))
}

/// All of an object, or a part: by `get`, and again by a reader, which must say the same.
fn read(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let (key, from, to) = (bytes(words[0]), number(words, "from"), number(words, "to"));
    let whole = from.is_none() && to.is_none();
    let (from, to) = (from.unwrap_or(0), to.unwrap_or(u64::MAX));
    let found = if whole { bucket.get(&key)? } else { bucket.get_range(&key, from..to)? };
    let Some(found) = found else { return Ok("none".into()) };
    let mut reader = bucket.reader(&key)?.expect("it is still there");
    reader.seek(SeekFrom::Start(from)).expect("it is no time before the beginning");
    let mut again = Vec::new();
    let most = u64::try_from(found.len()).expect("it is short");
    reader.take(most).read_to_end(&mut again).map_err(inner)?;
    assert_eq!(found, again);
    Ok(word(&found))
}

/// Opens an object `count=N` times at once, then, with `after`, what the rest of the words say, and reads through the first.
fn hold(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let open = |_| bucket.reader(bytes(words[0])).map(|reader| reader.expect("it is there"));
    let mut readers = (0..number::<u32>(words, "count").expect("how many")).map(open).collect::<Result<Vec<_>, _>>()?;
    match words {
        [.., "put", value] => drop(bucket.put(bytes(words[0]), bytes(value))?),
        [.., "rm"] => drop(bucket.delete(bytes(words[0]))?),
        _ => {}
    }
    let mut read = Vec::new();
    readers[0].read_to_end(&mut read).map_err(inner)?;
    Ok(word(&read))
}

/// All of an object, or from `from=N` to `to=N`, as it is mapped; either may be missing.
fn map(name: &str, words: &[&str]) -> Result<String, Error> {
    let (key, from, to) = (bytes(words[0]), number::<u64>(words, "from"), number::<u64>(words, "to"));
    let mapped = match (from, to) {
        (None, None) => objects::map(name, key)?,
        (Some(from), None) => objects::map_range(name, key, from..)?,
        (None, Some(to)) => objects::map_range(name, key, ..to)?,
        (Some(from), Some(to)) => objects::map_range(name, key, from..to)?,
    };
    Ok(mapped.map_or_else(|| "none".into(), |mapped| word(&mapped)))
}

/// Maps an object `count=N` times, writes to each mapping and drops it: how many different places they had, and pages of this memory
/// that the first did not have.
fn remap(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let key = bytes(words[0]);
    let mut places = std::collections::BTreeSet::new();
    let mut pages = 0;
    for round in 0..number::<u32>(words, "count").expect("how often") {
        let mapped = bucket.map(&key)?.expect("it is there");
        assert_eq!(mapped.first(), mapped.last(), "the test's object is the same throughout");
        places.insert(mapped.as_ptr() as usize);
        if round == 0 {
            pages = core::arch::wasm32::memory_size(0);
        }
    }
    Ok(format!("{} {}", places.len(), core::arch::wasm32::memory_size(0) - pages))
}

/// Maps an object `count=N` times, and takes `size=N` bytes of this memory after each; lets go of every other mapping, and does it again.
/// Nothing may lie where something else does.
fn map_and_grow(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let key = bytes(words[0]);
    let (count, size) = (number::<u8>(words, "count").expect("how often"), number::<usize>(words, "size").expect("how much"));
    let expected = bucket.get(&key)?.expect("it is there");
    let (mut maps, mut taken) = (Vec::new(), Vec::new());
    for round in 0..2 {
        for n in 0..count {
            maps.push(bucket.map(&key)?.expect("it is there"));
            taken.push((n ^ round, vec![n ^ round; size]));
        }
        assert!(maps.iter().all(|mapped| **mapped == *expected), "a mapping was written to");
        assert!(taken.iter().all(|(n, bytes)| bytes.iter().all(|byte| byte == n)), "what was allocated was written to");
        let mut at = 0;
        maps.retain(|_| {
            at += 1;
            at % 2 == 0
        });
    }
    Ok(format!("good {} {}", maps.len(), taken.len()))
}

/// Maps an object again and again until it is refused: how often, and why.
fn mapped(bucket: &Bucket, words: &[&str]) -> Result<String, Error> {
    let key = bytes(words[0]);
    let mut maps = Vec::new();
    loop {
        match bucket.map(&key) {
            Ok(mapped) => maps.push(mapped.expect("it is there")),
            Err(error) => return Ok(format!("{} {}", maps.len(), crate::kind(&error))),
        }
    }
}
