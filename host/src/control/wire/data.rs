//! The JSON of buckets, entries and objects.
//!
//! Keys and values are any bytes, and JSON has text only. So what is UTF-8 stands under its name (`key`, `value`), and what is not stands
//! in Base64 under that name with `_base64`; one of the two is there. The same holds for what is read.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::object::objects;

/// A bucket.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BucketInfo {
    /// Name.
    pub name: String,
    /// `durable` or `volatile`.
    pub durability: String,
    /// Most bytes.
    pub bytes_max: u64,
    /// Most keys.
    pub keys_max: u64,
    /// Where its objects come from, if they are somewhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// When it was made.
    pub created_ms: u64,
    /// What its entries take.
    pub entries: SizeInfo,
    /// What its objects take.
    pub objects: SizeInfo,
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SizeInfo {
    /// Bytes, as the quota counts them.
    pub bytes: u64,
    /// Keys.
    pub keys: u64,
}

/// A list of buckets. `next` is the cursor of the next page, absent on the last.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BucketList {
    /// By name.
    pub items: Vec<BucketInfo>,
    /// Names of all buckets of the tenant whose accounts are damaged on disk: they can be deleted, and nothing else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damaged: Vec<String>,
    /// Pass it as `?cursor=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a bucket is to be. What is left out stays as it is, or has its default if the bucket is new.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BucketRequest {
    /// `durable` (the default) or `volatile`; cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub durability: Option<String>,
    /// Most bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_max: Option<u64>,
    /// Most keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keys_max: Option<u64>,
    /// Where its objects come from: `s3://BUCKET` or `s3://BUCKET/PREFIX`, of what the node's operator opened; cannot be changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
}

/// An entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryInfo {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in Base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The value, if it was asked for and is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in Base64, if it was asked for and is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// Length of the value in bytes; absent if the entry is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// Version; in quotes it is the ETag. Absent if the entry is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Whether it is not what was written; then only its key is known.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub damaged: bool,
}

/// A list of entries. `next` is the cursor of the next page, absent on the last.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct EntryList {
    /// In the order of their keys as bytes.
    pub items: Vec<EntryInfo>,
    /// Pass it as `?cursor=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A committed change of an entry.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChangeInfo {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in Base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The version that it has now; absent if it was deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// Which entries are to be read.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GetManyRequest {
    /// At most 1,000.
    #[serde(deserialize_with = "objects")]
    pub keys: Vec<EntryKey>,
}

/// A key.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EntryKey {
    /// As text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Or in Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
}

/// Entries as they were at one moment, with their values.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GetManyInfo {
    /// One for each key, in order; `null` where there is no entry.
    pub items: Vec<Option<EntryInfo>>,
}

/// What an increment led to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct IncrementInfo {
    /// The number now.
    pub value: i64,
    /// The entry's version now.
    pub version: u64,
}

/// Changes that are all made or none, in order.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchRequest {
    /// At most 1,000.
    #[serde(deserialize_with = "objects")]
    pub ops: Vec<BatchOp>,
}

/// Which change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BatchKind {
    /// Writes `value`.
    Set,
    /// Removes the entry; fine if there is none.
    Delete,
    /// Adds `by`.
    Increment,
}

/// One change of a batch.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchOp {
    /// Which.
    pub op: BatchKind,
    /// The key as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Or in Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// Of a set: the value as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Or in Base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// Of a set: how long it stays, such as `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Of a set or a delete: only if there is no entry.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub if_absent: bool,
    /// Of a set or a delete: only if the entry has this version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub if_version: Option<u64>,
    /// Of an increment: what is added; 1 if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<i64>,
}

/// What a batch did.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BatchInfo {
    /// One for each change, in order.
    pub done: Vec<DoneInfo>,
}

/// What one change did.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, ToSchema)]
pub struct DoneInfo {
    /// Of a set and an increment: the entry's version now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Of an increment: the number now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<i64>,
    /// Of a delete: whether there was an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<bool>,
}

/// An object without its bytes.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ObjectInfo {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in Base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// In quotes it is the ETag: `sha256:…`, its digest; in a bucket with an origin `origin:…`, of the version there.
    pub etag: String,
    /// Digest of its bytes, `sha256:…`; in a bucket with an origin only where this node has a copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Length in bytes.
    pub bytes: u64,
    /// Rises with every write to the bucket.
    pub version: u64,
    /// When it was put.
    pub modified_ms: u64,
    /// When it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// Media type; empty if it is not known.
    pub content_type: String,
    /// Names and values of its metadata.
    pub metadata: Vec<(String, String)>,
}

/// Header of a put: a [`DescribedRequest`] in Base64.
pub const DESCRIBED: &str = "hob-described";

/// What is said of an object besides its bytes, in place of headers that could not say it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DescribedRequest {
    /// Media type; that of the header if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// Names and values of its metadata.
    #[serde(default)]
    pub metadata: Vec<(String, String)>,
}

/// One of a list of objects.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ObjectItem {
    /// What is known of it.
    Object(Box<ObjectInfo>),
    /// Only its key is known.
    Damaged(DamagedInfo),
}

impl ObjectItem {
    /// Its key, as text or in Base64.
    pub(crate) fn key(&self) -> (Option<&str>, Option<&str>) {
        let (key, base64) = match self {
            Self::Object(info) => (&info.key, &info.key_base64),
            Self::Damaged(info) => (&info.key, &info.key_base64),
        };
        (key.as_deref(), base64.as_deref())
    }
}

/// An object of which what is known is not what was written.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DamagedInfo {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in Base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// Always true.
    pub damaged: bool,
}

/// A list of objects. `next` is the cursor of the next page, absent on the last.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ObjectList {
    /// In the order of their keys as bytes.
    pub items: Vec<ObjectItem>,
    /// Pass it as `?cursor=`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// What a scrub of a bucket found.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScrubInfo {
    /// Name of the bucket.
    pub bucket: String,
    /// Entries that were read.
    pub entries: u64,
    /// Objects that were read.
    pub objects: u64,
    /// Bytes of objects that were read.
    pub bytes: u64,
    /// How many entries and objects are not what was written.
    pub corrupt_count: u64,
    /// The first 1,000 of them.
    pub corrupt: Vec<CorruptInfo>,
    /// Whether the account of the bucket is what is in it; absent if too much was written meanwhile to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage_exact: Option<bool>,
}

/// Something that is not what was written.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CorruptInfo {
    /// `entry` or `object`.
    pub kind: String,
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in Base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
}

/// Detail of a problem: the bucket is there, and has no such entry.
pub(crate) const NO_ENTRY: &str = "there is no entry under this key";
/// Detail of a problem: the bucket is there, and has no such object.
pub(crate) const NO_OBJECT: &str = "there is no object under this key";

/// Bytes as the two fields of which one is there.
#[must_use]
pub fn split(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(STANDARD.encode(bytes))),
    }
}

/// The inverse of [`split`]; `None` if neither is there.
///
/// # Errors
/// What is wrong, for a sentence that begins with the field's name.
pub fn join(text: Option<String>, base64: Option<String>) -> Result<Option<Vec<u8>>, &'static str> {
    match (text, base64) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(text)) => STANDARD.decode(text).map(Some).map_err(|_| "is no Base64"),
        (Some(_), Some(_)) => Err("is there twice: as text and in Base64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_bytes_come_back() {
        for bytes in [&b""[..], b"a", b"a\0b", "ä/..".as_bytes(), b"\xff", b"a\xc3"] {
            let (text, base64) = split(bytes);
            assert!(text.is_some() != base64.is_some(), "{bytes:?}");
            assert_eq!(join(text, base64).unwrap().unwrap(), bytes);
        }
        assert_eq!(join(None, None), Ok(None));
        assert!(join(None, Some("?".into())).is_err() && join(Some(String::new()), Some(String::new())).is_err());
    }
}
