//! Records of durable objects: the bytes of their rows.
//!
//! ```text
//! etag 32 | len 8 | version 8 | modified_ms 8 | expires_ms 8, 0 = never | content type: 1 + n | pairs: 1, each 2 + n, 2 + n | sum 8
//! ```
//!
//! Numbers in little-endian order. Owns this layout. Knows nothing about tables. Invariant: [`decode`] gives what was encoded for
//! the same bucket and key, or `None`.

use super::super::bucket::BucketId;
use super::super::row::{SUM_LEN, sum};
use super::Head;
use crate::id::Digest;

/// The row of an object under `key`. The head must be within the limits.
pub(super) fn encode(bucket: BucketId, key: &[u8], head: &Head) -> Vec<u8> {
    let mut row = Vec::with_capacity(128);
    row.extend(head.etag.bytes());
    for number in [head.len, head.version, head.modified_ms, head.expires_ms.unwrap_or(0)] {
        row.extend(number.to_le_bytes());
    }
    let byte = |len: usize| u8::try_from(len).expect("checked before: at most 255");
    row.push(byte(head.content_type.len()));
    row.extend(head.content_type.as_bytes());
    row.push(byte(head.metadata.len()));
    for text in head.metadata.iter().flat_map(|(name, value)| [name, value]) {
        row.extend(u16::try_from(text.len()).expect("checked before: at most 2048").to_le_bytes());
        row.extend(text.as_bytes());
    }
    let check = sum(&[&bucket.0.to_le_bytes(), key, &row]);
    row.extend(check);
    row
}

/// What a row says, `None` if it is not what was encoded.
pub(super) fn decode(bucket: BucketId, key: &[u8], row: &[u8]) -> Option<Head> {
    let (row, check) = row.split_last_chunk::<SUM_LEN>()?;
    if sum(&[&bucket.0.to_le_bytes(), key, row]) != *check {
        return None;
    }
    let (etag, mut rest) = row.split_first_chunk::<32>()?;
    let mut number = || {
        let (bytes, left) = rest.split_first_chunk::<8>()?;
        rest = left;
        Some(u64::from_le_bytes(*bytes))
    };
    let [len, version, modified_ms, expires_ms] = [number()?, number()?, number()?, number()?];
    let (count, left) = rest.split_first()?;
    let (content_type, left) = text(left, usize::from(*count))?;
    let (pairs, mut left) = left.split_first()?;
    let mut long = || {
        let (count, after) = left.split_first_chunk::<2>()?;
        let (found, after) = text(after, usize::from(u16::from_le_bytes(*count)))?;
        left = after;
        Some(found)
    };
    let metadata = (0..*pairs).map(|_| Some((long()?, long()?))).collect::<Option<Vec<_>>>()?;
    let expires_ms = (expires_ms > 0).then_some(expires_ms);
    let etag = Digest::from_bytes(*etag);
    let head = Head { etag, digest: Some(etag), len, version, modified_ms, expires_ms, content_type, metadata };
    left.is_empty().then_some(head)
}

fn text(bytes: &[u8], len: usize) -> Option<(String, &[u8])> {
    let (text, rest) = bytes.split_at_checked(len)?;
    Some((String::from_utf8(text.to_vec()).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_was_changed_moved_or_cut_is_none() {
        let head = Head {
            etag: Digest::of(b"x"),
            digest: Some(Digest::of(b"x")),
            len: u64::MAX,
            version: 7,
            modified_ms: 1,
            expires_ms: Some(2),
            content_type: "text/plain".into(),
            metadata: vec![("a".into(), String::new()), ("é".into(), "b".repeat(2000))],
        };
        let plain = Head { expires_ms: None, content_type: String::new(), metadata: Vec::new(), ..head.clone() };
        for head in [head, plain] {
            let row = encode(BucketId(1), b"key", &head);
            assert_eq!(decode(BucketId(1), b"key", &row), Some(head));
            assert_eq!(decode(BucketId(2), b"key", &row), None);
            assert_eq!(decode(BucketId(1), b"kex", &row), None);
            for len in 0..row.len() {
                assert_eq!(decode(BucketId(1), b"key", &row[..len]), None, "{len}");
            }
            for at in 0..row.len() {
                let mut bad = row.clone();
                bad[at] ^= 1;
                assert_eq!(decode(BucketId(1), b"key", &bad), None, "{at}");
            }
        }
    }
}
