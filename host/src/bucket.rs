//! Buckets as their owners describe them: how durable, how large, and where their objects come from.
//!
//! Owns the plain values and their defaults. Knows nothing about how data is kept (`data` does) or who may reach it (`grants`).
//! Invariant: an [`OriginUrl`] names a store and a path in it, and nothing that a host name, a port or a query could hide in.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::BucketName;

/// Quota of a durable bucket in bytes, if nobody says.
pub const DURABLE_BYTES: u64 = 1 << 30;
/// Quota of a volatile bucket in bytes, if nobody says: a quarter of what all of them may have by default.
pub const VOLATILE_BYTES: u64 = 64 << 20;
/// Quota of a durable bucket in keys, if nobody says.
pub const DURABLE_KEYS: u64 = 1_000_000;
/// Quota of a volatile bucket in keys, if nobody says. What each takes besides is promised too, and with many more not one such bucket
/// would fit in what all of them may have by default.
pub const VOLATILE_KEYS: u64 = 100_000;

/// What becomes of a bucket's content when power or the process goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// What was acknowledged is on disk and stays.
    Durable,
    /// It is in memory only, is removed from where it was used longest ago when room is needed, and is gone after a restart.
    Volatile,
}

impl Durability {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Volatile => "volatile",
        }
    }
}

/// What a bucket is made with. Quotas count entries and objects together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketSpec {
    /// Cannot be changed later.
    pub durability: Durability,
    /// Most bytes of keys, values, objects and what is kept beside them. Not of what the store needs to find them.
    pub bytes_max: u64,
    /// Most keys.
    pub keys_max: u64,
}

impl BucketSpec {
    /// A bucket of this durability with the default quotas.
    #[must_use]
    pub fn new(durability: Durability) -> Self {
        let (bytes_max, keys_max) = match durability {
            Durability::Durable => (DURABLE_BYTES, DURABLE_KEYS),
            Durability::Volatile => (VOLATILE_BYTES, VOLATILE_KEYS),
        };
        Self { durability, bytes_max, keys_max }
    }
}

/// Longest [`OriginUrl`] in bytes: with the longest key it is within the 1,024 bytes of a key of S3.
pub const ORIGIN_BYTES_MAX: usize = 500;

/// Where the objects of a bucket really are: `s3://BUCKET`, or `s3://BUCKET/PREFIX` without a slash at its end. Which host that is
/// says the configuration of the node.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OriginUrl(Arc<str>);

/// A text that is no [`OriginUrl`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no origin: expected 's3://BUCKET' or 's3://BUCKET/PREFIX', parts of a-z, A-Z, 0-9, '-', '_' and '.'")]
pub struct OriginUrlError {
    text: String,
}

impl OriginUrl {
    /// As it is written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The store's own name for the bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        self.path().split('/').next().unwrap_or_default()
    }

    /// What the keys of all its objects begin with, without the slash after it; empty for a whole bucket.
    #[must_use]
    pub fn prefix(&self) -> &str {
        self.path().split_once('/').map_or("", |(_, prefix)| prefix)
    }

    /// Whether everything in it is in `other` too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.strip_prefix(&*other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn path(&self) -> &str {
        self.0.strip_prefix("s3://").unwrap_or_default()
    }
}

impl FromStr for OriginUrl {
    type Err = OriginUrlError;
    fn from_str(text: &str) -> Result<Self, OriginUrlError> {
        let is_good = |part: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            !matches!(part, "" | "." | "..") && part.bytes().all(plain)
        };
        let path = text.strip_prefix("s3://").filter(|_| text.len() <= ORIGIN_BYTES_MAX);
        match path.is_some_and(|path| path.split('/').all(is_good)) {
            true => Ok(Self(text.into())),
            // A hostile one may be long: the error shows its beginning only.
            false => Err(OriginUrlError { text: text.chars().take(80).collect() }),
        }
    }
}

impl TryFrom<String> for OriginUrl {
    type Error = OriginUrlError;
    fn try_from(text: String) -> Result<Self, OriginUrlError> {
        text.parse()
    }
}

impl From<OriginUrl> for String {
    fn from(url: OriginUrl) -> Self {
        (*url.0).into()
    }
}

impl fmt::Display for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for OriginUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A bucket that a manifest wants to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketDeclaration {
    /// Its name.
    pub name: BucketName,
    /// What it is made with, if it is missing.
    #[serde(flatten)]
    pub spec: BucketSpec,
    /// Where its objects come from, if they are somewhere else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<OriginUrl>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_a_bucket_and_a_prefix_and_nothing_else() {
        for (text, bucket, prefix) in
            [("s3://photos", "photos", ""), ("s3://a.b-c/raw", "a.b-c", "raw"), ("s3://a/b/C_d.e", "a", "b/C_d.e")]
        {
            let url: OriginUrl = text.parse().unwrap();
            assert_eq!((url.bucket(), url.prefix(), url.as_str()), (bucket, prefix, text));
        }
        for bad in [
            "",
            "s3://",
            "s3:/a",
            "S3://a",
            "http://a",
            "file:///etc",
            "s3://a/",
            "s3:///a",
            "s3://a//b",
            "s3://a/../b",
            "s3://.",
            "s3://a/.",
            "s3://a:80",
            "s3://u@a",
            "s3://a?b",
            "s3://a#b",
            "s3://a%2fb",
            "s3://a/\u{e9}",
            "s3://a b",
            "s3://a\n",
        ] {
            assert!(bad.parse::<OriginUrl>().is_err(), "{bad:?}");
        }
        let long = |len: usize| format!("s3://{}", "a".repeat(len - 5)).parse::<OriginUrl>();
        assert!(long(ORIGIN_BYTES_MAX).is_ok() && long(ORIGIN_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn within_goes_by_whole_parts() {
        let url = |text: &str| text.parse::<OriginUrl>().unwrap();
        assert!(url("s3://a").is_within(&url("s3://a")) && url("s3://a/b/c").is_within(&url("s3://a/b")));
        for (inner, outer) in [("s3://a", "s3://a/b"), ("s3://ab", "s3://a"), ("s3://a/bc", "s3://a/b"), ("s3://b/a", "s3://a")] {
            assert!(!url(inner).is_within(&url(outer)), "{inner} {outer}");
        }
    }
}
