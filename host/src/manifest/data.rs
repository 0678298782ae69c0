//! `[[bucket]]` of a manifest: which buckets are to be there. And the reading of tables, lists and words that the tables share.
//!
//! Owns its keys and the messages for wrong ones. Knows nothing about buckets that exist. Invariant: no bucket is declared twice.

use std::fmt::Display;

use toml::{Table, Value};

use super::{ManifestError, problem, string, unknown};
use crate::bucket::{BucketDeclaration, BucketSpec, Durability, OriginUrl};
use crate::id::BucketName;
use crate::limits::parse_bytes;

/// Most buckets that one function may be granted, and most that its manifest may declare.
pub const BUCKETS_MAX: usize = 64;

const BUCKET_KEYS: [&str; 5] = ["name", "durability", "bytes_max", "keys_max", "origin"];

/// Reads `[[bucket]]`.
pub(super) fn buckets(value: Value) -> Result<Vec<BucketDeclaration>, ManifestError> {
    let buckets = list("bucket", value, BUCKETS_MAX, declaration)?;
    distinct("bucket", "bucket", buckets.iter().map(|bucket| &bucket.name))?;
    Ok(buckets)
}

fn declaration(value: Value) -> Result<BucketDeclaration, ManifestError> {
    let mut fields = fields("bucket", "a bucket", value, &BUCKET_KEYS)?;
    let name = bucket_name("bucket.name", fields.remove("name"))?;
    let kinds = [Durability::Durable, Durability::Volatile].map(|durability| (durability.as_str(), durability));
    let durability = word("bucket.durability", fields.remove("durability"), &kinds)?.unwrap_or(Durability::Durable);
    let mut spec = BucketSpec::new(durability);
    if let Some(value) = fields.remove("bytes_max") {
        spec.bytes_max = bytes("bucket.bytes_max", value)?;
    }
    if let Some(value) = fields.remove("keys_max") {
        spec.keys_max = count("bucket.keys_max", &value)?;
    }
    let origin = fields.remove("origin").map(|value| origin(string("bucket.origin", value)?, durability)).transpose()?;
    Ok(BucketDeclaration { name, spec, origin })
}

fn origin(url: String, durability: Durability) -> Result<OriginUrl, ManifestError> {
    if durability == Durability::Volatile {
        return Err(problem("bucket.origin", "a volatile bucket has none: leave out durability"));
    }
    url.parse().map_err(|error| problem("bucket.origin", error))
}

pub(super) fn table(key: &str, value: Value) -> Result<Table, ManifestError> {
    match value {
        Value::Table(table) => Ok(table),
        other => Err(problem(key, format!("expected a table, found {}", other.type_str()))),
    }
}

pub(super) fn fields(key: &str, place: &'static str, value: Value, known: &[&str]) -> Result<Table, ManifestError> {
    let fields = table(key, value)?;
    match fields.keys().find(|field| !known.contains(&field.as_str())) {
        Some(field) => Err(unknown(field.clone(), place, known)),
        None => Ok(fields),
    }
}

pub(super) fn list<T>(
    key: &str,
    value: Value,
    max: usize,
    item: impl Fn(Value) -> Result<T, ManifestError>,
) -> Result<Vec<T>, ManifestError> {
    match value {
        Value::Array(items) if items.len() <= max => items.into_iter().map(item).collect(),
        Value::Array(items) => Err(problem(key, format!("{} entries, expected at most {max}", items.len()))),
        other => Err(problem(key, format!("expected a list of tables, found {}", other.type_str()))),
    }
}

pub(super) fn bucket_name(key: &str, value: Option<Value>) -> Result<BucketName, ManifestError> {
    let value = value.ok_or_else(|| problem(key, "expected the name of a bucket"))?;
    string(key, value)?.parse().map_err(|error| problem(key, error))
}

pub(super) fn word<T: Copy>(key: &str, value: Option<Value>, known: &[(&str, T)]) -> Result<Option<T>, ManifestError> {
    let Some(value) = value else { return Ok(None) };
    let text = string(key, value)?;
    let found = known.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
    let words = || known.iter().map(|(word, _)| format!("'{word}'")).collect::<Vec<_>>().join(" or ");
    found.map(Some).ok_or_else(|| problem(key, format!("expected {}, found '{text}'", words())))
}

fn bytes(key: &str, value: Value) -> Result<u64, ManifestError> {
    match value {
        Value::Integer(_) => count(key, &value),
        other => {
            let text = string(key, other)?;
            let bytes = parse_bytes(&text).filter(|bytes| *bytes > 0);
            bytes.ok_or_else(|| problem(key, format!("expected a size such as '64MiB', found '{text}'")))
        }
    }
}

pub(super) fn count(key: &str, value: &Value) -> Result<u64, ManifestError> {
    let number = value.as_integer().and_then(|number| u64::try_from(number).ok()).filter(|number| *number > 0);
    number.ok_or_else(|| problem(key, format!("expected a number above 0, found {value}")))
}

/// Whether each of the names, of a `kind`, is there once.
pub(super) fn distinct<'a, N: Ord + Display + 'a>(
    key: &str,
    kind: &str,
    names: impl Iterator<Item = &'a N>,
) -> Result<(), ManifestError> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(problem(key, format!("{kind} '{}' is named twice", pair[0]))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn error(text: &str) -> String {
        Manifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn buckets_are_read() {
        let manifest = Manifest::parse(
            "[[bucket]]\nname = 'photos'\norigin = 's3://photos/raw'\n[[bucket]]\nname = 'hits'\ndurability = 'volatile'\nbytes_max = '1MiB'\nkeys_max = 10\n",
        )
        .unwrap();
        let hits = BucketSpec { durability: Durability::Volatile, bytes_max: 1 << 20, keys_max: 10 };
        assert_eq!((manifest.bucket[0].spec, manifest.bucket[1].spec), (BucketSpec::new(Durability::Durable), hits));
        let origins: Vec<_> = manifest.bucket.iter().map(|bucket| bucket.origin.as_ref().map(OriginUrl::as_str)).collect();
        assert_eq!(origins, [Some("s3://photos/raw"), None]);
        let json = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), manifest);
    }

    #[test]
    fn wrong_ones_say_what_was_expected() {
        assert!(error("[[bucket]]\nname = 'a'\ndurability = 'soft'").contains("expected 'durable' or 'volatile'"));
        assert!(error("[[bucket]]\nname = 'a'\nbytes_max = '1 stone'").contains("expected a size"));
        assert!(error("[[bucket]]\nname = 'a'\norigin = 'http://10.0.0.1/'").contains("expected 's3://BUCKET'"));
        assert!(error("[[bucket]]\nname = 'a'\ndurability = 'volatile'\norigin = 's3://a'").contains("leave out durability"));
        assert!(error("[[bucket]]\nname = 'a'\nkeys_max = 0").contains("expected a number above 0"));
        assert!(error("[[bucket]]\nname = 'a'\n[[bucket]]\nname = 'a'").contains("'a' is named twice"));
    }
}
