//! What Hob says of an object at an origin: its ETag is made of the origin's own and its length.
//!
//! Owns that, and nothing else. Invariant: a list, a HEAD and a copy of one version say the same, as far as the store lists ETags.

use super::super::Head;
use super::cache::Copy;
use super::remote::Version;
use crate::id::Digest;

/// What Hob says of a version.
pub(super) fn head(version: &Version) -> Head {
    let Version { etag, len, modified_ms, content_type, metadata } = version.clone();
    Head { content_type, metadata, ..listed_head(Some(&etag), len, modified_ms) }
}

/// What Hob says of a copy.
pub(super) fn copy_head(copy: &Copy) -> Head {
    Head { digest: Some(copy.digest), ..head(&copy.version) }
}

pub(super) fn listed_head(etag: Option<&str>, len: u64, modified_ms: u64) -> Head {
    let etag = match etag {
        Some(etag) => Digest::of_parts(&[etag.as_bytes(), &len.to_le_bytes()]),
        // Some stores list none; then it is another one than that of the object when it is opened.
        None => Digest::of_parts(&[&len.to_le_bytes(), &modified_ms.to_le_bytes(), b"listed"]),
    };
    Head {
        etag,
        digest: None,
        len,
        version: modified_ms,
        modified_ms,
        expires_ms: None,
        content_type: String::new(),
        metadata: Vec::new(),
    }
}
