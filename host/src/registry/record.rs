//! Records: what the registry keeps of a function, and how that looks on disk.
//!
//! ```text
//! offset   bytes
//! 0           16   first half of BLAKE3 over the lengths and bytes of tenant and name, the number, and the JSON
//! 16         ...   JSON
//! ```
//!
//! redb checks its own pages only when it repairs a file; the hash in front finds a damaged or misplaced record at every reading.
//! It has no key: it protects against accidents, not against whoever can write the file.
//!
//! Owns the fields and the encoding. Knows nothing about tables. Invariant: what [`decode`] returns was written by [`encode`]
//! under the same key.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::RegistryError;
use crate::id::{Digest, FunctionName, RevisionNumber, TenantId};
use crate::manifest::Manifest;

const HASH_LEN: usize = 16;

/// One immutable version of a function. Only the artifact may change: another engine needs other native code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRecord {
    /// Its number, never used again for this function.
    pub number: RevisionNumber,
    /// SHA-256 of the upload.
    pub wasm: Digest,
    /// Length of the upload in bytes.
    pub wasm_bytes: u64,
    /// Key of the artifact.
    pub artifact: Digest,
    /// Length of the artifact's file in bytes.
    pub artifact_bytes: u64,
    /// What the bytes were found to be, in the engine's word for it.
    pub kind: String,
    /// As it was deployed.
    pub manifest: Manifest,
    /// When it was published: Unix time in milliseconds.
    pub created_ms: u64,
    /// The module as it was after its initialisation, if a snapshot was taken: what another engine compiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotRecord>,
    /// The files that the deploy brought, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleRecord>,
    /// What the deploy told its author: warnings, hints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A snapshotted module on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Key of its file.
    pub key: Digest,
    /// Length of its file in bytes: it is compressed.
    pub bytes: u64,
    /// Bytes of guest memory that it restores.
    pub memory_bytes: u64,
    /// Digest of the secrets that could be read when it was taken, if any could, under a key of the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<Digest>,
}

/// What a revision gets when its native code is compiled anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recompiled {
    /// Key of the snapshot that it was made for.
    pub of: Option<Digest>,
    /// Key of the artifact.
    pub artifact: Digest,
    /// Length of the artifact's file in bytes.
    pub artifact_bytes: u64,
    /// What else its author is told from now on.
    pub note: Option<String>,
}

/// What a live revision gets when its build is made again, with other secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retaken {
    /// Key of the artifact.
    pub artifact: Digest,
    /// Length of the artifact's file in bytes.
    pub artifact_bytes: u64,
    /// The module as it was after its initialisation.
    pub snapshot: Option<SnapshotRecord>,
    /// What the build tells the author.
    pub notes: Vec<String>,
}

/// Files of a revision on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleRecord {
    /// Digest of their names and bytes.
    pub digest: Digest,
    /// Sum of their lengths in bytes.
    pub bytes: u64,
    /// How many they are, folders not counted.
    pub files: u64,
}

impl RevisionRecord {
    /// The entity tag with its quotes: number and first 16 digits of the Wasm's digest.
    #[must_use]
    pub fn etag(&self) -> String {
        format!("\"{}-{}\"", self.number, &self.wasm.hex()[..16])
    }
}

/// What a deploy adds: a revision without what the registry itself gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRevision {
    /// SHA-256 of the upload.
    pub wasm: Digest,
    /// Length of the upload in bytes.
    pub wasm_bytes: u64,
    /// Key of the artifact.
    pub artifact: Digest,
    /// Length of the artifact's file in bytes.
    pub artifact_bytes: u64,
    /// What the bytes were found to be.
    pub kind: String,
    /// As it was deployed.
    pub manifest: Manifest,
    /// The module as it was after its initialisation.
    pub snapshot: Option<SnapshotRecord>,
    /// The files that the deploy brought.
    pub bundle: Option<BundleRecord>,
    /// What the deploy tells its author.
    pub notes: Vec<String>,
    /// Version that it was signed as; higher than that of every deploy before. `None`: it was not signed.
    pub signed_version: Option<u64>,
}

/// A deployed function and its live revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FunctionRecord {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: FunctionName,
    /// The revision that requests reach.
    pub live: RevisionRecord,
    /// When the function was first deployed: Unix time in milliseconds.
    pub created_ms: u64,
    /// When another revision last became live: Unix time in milliseconds.
    pub updated_ms: u64,
}

impl FunctionRecord {
    /// The entity tag of the live revision, with its quotes.
    #[must_use]
    pub fn etag(&self) -> String {
        self.live.etag()
    }
}

/// A function without its revisions, as it lies in its table.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FunctionRow {
    /// Number of the revision that is live.
    pub(super) live: RevisionNumber,
    /// Highest number ever given.
    pub(super) last: RevisionNumber,
    pub(super) created_ms: u64,
    pub(super) updated_ms: u64,
}

/// Under which key a record lies; `number` is 0 for a [`FunctionRow`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) tenant: &'a str,
    pub(super) name: &'a str,
    pub(super) number: u64,
}

impl Place<'_> {
    fn hash(self, json: &[u8]) -> [u8; HASH_LEN] {
        let mut hasher = blake3::Hasher::new();
        for part in [self.tenant, self.name] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.update(&self.number.to_le_bytes()).update(json);
        let mut out = [0; HASH_LEN];
        out.copy_from_slice(&hasher.finalize().as_bytes()[..HASH_LEN]);
        out
    }

    pub(super) fn damaged(self, what: &str) -> RegistryError {
        let Place { tenant, name, number } = self;
        RegistryError::Damaged { what: format!("{what} (tenant '{tenant}', function '{name}', revision {number})") }
    }
}

/// The bytes of a record.
pub(super) fn encode<T: Serialize>(place: Place<'_>, record: &T) -> Vec<u8> {
    let json = serde_json::to_vec(record).expect("records are structs of text, numbers and lists, which JSON can hold");
    [&place.hash(&json)[..], &json].concat()
}

/// The inverse of [`encode`].
///
/// # Errors
/// [`RegistryError::Damaged`] for any other bytes.
pub(super) fn decode<T: DeserializeOwned>(place: Place<'_>, bytes: &[u8]) -> Result<T, RegistryError> {
    let (hash, json) = bytes.split_at_checked(HASH_LEN).ok_or_else(|| place.damaged("a record is too short"))?;
    if hash != place.hash(json) {
        return Err(place.damaged("a record does not match its hash"));
    }
    serde_json::from_slice(json).map_err(|e| place.damaged(&format!("a record cannot be read, {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_found_and_a_record_belongs_to_its_place() {
        let place = Place { tenant: "a", name: "bc", number: 1 };
        let row = FunctionRow { live: RevisionNumber(1), last: RevisionNumber(2), created_ms: 3, updated_ms: 4 };
        let good = encode(place, &row);
        assert_eq!(decode::<FunctionRow>(place, &good).unwrap().last, RevisionNumber(2));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode::<FunctionRow>(place, &bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(decode::<FunctionRow>(place, &good[..len]).is_err(), "{len}");
        }
        for elsewhere in [Place { tenant: "ab", name: "c", number: 1 }, Place { number: 2, ..place }] {
            assert!(decode::<FunctionRow>(elsewhere, &good).is_err());
        }
        assert!(decode::<RevisionRecord>(place, &good).is_err(), "another kind of record");
    }
}
