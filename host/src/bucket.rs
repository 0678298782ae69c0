//! Buckets as their owners describe them: how durable, how large.
//!
//! Owns the plain values and their defaults. Knows nothing about how data is kept (`data` does) or who may reach it (`grants`).

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

/// A bucket that a manifest wants to be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketDeclaration {
    /// Its name.
    pub name: BucketName,
    /// What it is made with, if it is missing.
    #[serde(flatten)]
    pub spec: BucketSpec,
}
