//! The records of the calls `object_*`: what is known of an object, and what one is put with.
//!
//! Owns their bytes. Knows nothing about who asks. Invariant: a record that ends early, goes on after its end or holds what is none is
//! refused before any of it is used.

use bytes::Buf;

use crate::capability::Refusal;
use crate::capability::handler::{Writer, take_header};
use crate::data::DataError;
use crate::data::objects::{CONTENT_TYPE_BYTES_MAX, Head, METADATA_BYTES_MAX, METADATA_PAIRS_MAX, PutOptions, When};
use crate::id::Digest;

/// Fixed parts of records.
const HEAD_LEN: usize = 72;
const OPTIONS_LEN: usize = 88;
const PAIR_LEN: usize = 8;
/// No record of options that could be taken is longer.
const OPTIONS_LEN_MAX: usize = OPTIONS_LEN + CONTENT_TYPE_BYTES_MAX + METADATA_BYTES_MAX + METADATA_PAIRS_MAX * PAIR_LEN;

const HAS_DIGEST: u32 = 1;
const ALWAYS: u32 = 0;
const ABSENT: u32 = 1;
const ETAG: u32 = 2;

fn pairs_len(metadata: &[(String, String)]) -> usize {
    metadata.iter().map(|(name, value)| PAIR_LEN + name.len() + value.len()).sum()
}

pub(super) fn head_len(head: &Head) -> usize {
    HEAD_LEN + head.content_type.len() + pairs_len(&head.metadata)
}

/// 32 bytes of ETag, `u64` length, `u64` version, `u64` when it was put, `u64` when it ends or 0, `u32` length of the content type, `u32`
/// pairs of metadata, the content type, the pairs.
pub(super) fn put_head(writer: &mut Writer<'_>, head: &Head) {
    writer.put(head.etag.bytes());
    for number in [head.len, head.version, head.modified_ms, head.expires_ms.unwrap_or_default()] {
        writer.put(&number.to_le_bytes());
    }
    writer.put_u32(head.content_type.len());
    writer.put_u32(head.metadata.len());
    writer.put(head.content_type.as_bytes());
    for (name, value) in &head.metadata {
        writer.put_u32(name.len());
        writer.put_u32(value.len());
        writer.put(name.as_bytes());
        writer.put(value.as_bytes());
    }
}

/// The options of a put: `u32` flags, `u32` on which condition, `u64` time to live in milliseconds or 0, 32 bytes of the condition's ETag,
/// 32 bytes of digest, `u32` length of the content type, `u32` pairs of metadata, the content type, the pairs. Or nothing at all.
pub(super) fn take_options(record: &[u8]) -> Result<Result<PutOptions, DataError>, Refusal> {
    let short = || Refusal::bad_call("the options of an object end before they are whole");
    if record.is_empty() {
        return Ok(Ok(PutOptions::default()));
    }
    if record.len() > OPTIONS_LEN_MAX {
        let (found, max) = (record.len() as u64, OPTIONS_LEN_MAX as u64);
        return Ok(Err(DataError::TooLarge { what: "content type and metadata, with what frames them,", found, max }));
    }
    let Some((mut head, mut rest)) = record.split_at_checked(OPTIONS_LEN) else { return Err(short()) };
    let (flags, when, ttl_ms) = (head.get_u32_le(), head.get_u32_le(), head.get_u64_le());
    let mut digest = || {
        let mut bytes = [0; 32];
        head.copy_to_slice(&mut bytes);
        Digest::from_bytes(bytes)
    };
    let (etag, digest) = (digest(), digest());
    let (type_len, pairs) = (head.get_u32_le() as usize, head.get_u32_le());
    if flags > HAS_DIGEST {
        return Err(Refusal::bad_call(format!("the flags of an object's options are 0 or 1, not {flags}")));
    }
    let when = match when {
        ALWAYS => When::Always,
        ABSENT => When::Absent,
        ETAG => When::Etag(etag),
        other => return Err(Refusal::bad_call(format!("the condition of a put is 0, 1 or 2, not {other}"))),
    };
    let (content_type, behind) = rest.split_at_checked(type_len).ok_or_else(short)?;
    rest = behind;
    let mut metadata = Vec::new();
    for _ in 0..pairs {
        let (name, value) = take_header(&mut rest).map_err(|_| short())?;
        metadata.push((name, value));
    }
    if !rest.is_empty() {
        return Err(Refusal::bad_call(format!("{} bytes follow the options of an object", rest.len())));
    }
    Ok(texts(content_type, &metadata).map(|(content_type, metadata)| PutOptions {
        content_type,
        metadata,
        ttl_ms: (ttl_ms != 0).then_some(ttl_ms),
        when,
        digest: (flags & HAS_DIGEST != 0).then_some(digest),
    }))
}

type Texts = (String, Vec<(String, String)>);

fn texts(content_type: &[u8], metadata: &[(&[u8], &[u8])]) -> Result<Texts, DataError> {
    let text = |bytes: &[u8]| {
        let invalid = |_| DataError::Invalid { what: "content type or metadata is not UTF-8".into(), expected: "text".into() };
        // Copied before it is looked at: it may lie in memory that is taken away from the guest meanwhile.
        String::from_utf8(bytes.to_vec()).map_err(invalid)
    };
    let metadata = metadata.iter().map(|(name, value)| Ok((text(name)?, text(value)?))).collect::<Result<_, DataError>>()?;
    Ok((text(content_type)?, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn len(bytes: &[u8]) -> [u8; 4] {
        u32::try_from(bytes.len()).unwrap().to_le_bytes()
    }

    fn options(flags: u32, when: u32, ttl_ms: u64, content_type: &[u8], pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut record = Vec::new();
        record.extend(flags.to_le_bytes());
        record.extend(when.to_le_bytes());
        record.extend(ttl_ms.to_le_bytes());
        record.extend([1; 32]);
        record.extend([2; 32]);
        record.extend(len(content_type));
        record.extend(u32::try_from(pairs.len()).unwrap().to_le_bytes());
        record.extend(content_type);
        for (name, value) in pairs {
            record.extend(len(name));
            record.extend(len(value));
            record.extend(*name);
            record.extend(*value);
        }
        record
    }

    #[test]
    fn options_are_read_part_by_part() {
        assert_eq!(take_options(b"").unwrap().unwrap(), PutOptions::default());
        let whole = options(HAS_DIGEST, ETAG, 5, b"a/b", &[(b"n", b"v"), (b"", b"w")]);
        let expected = PutOptions {
            content_type: "a/b".into(),
            metadata: vec![("n".into(), "v".into()), (String::new(), "w".into())],
            ttl_ms: Some(5),
            when: When::Etag(Digest::from_bytes([1; 32])),
            digest: Some(Digest::from_bytes([2; 32])),
        };
        assert_eq!(take_options(&whole).unwrap().unwrap(), expected);
        for end in 1..whole.len() {
            assert!(take_options(&whole[..end]).is_err(), "{end}");
        }
        assert!(take_options(&[&whole[..], b"x"].concat()).is_err());
        assert_eq!(take_options(&options(0, ABSENT, 0, b"", &[])).unwrap().unwrap().when, When::Absent);
    }

    #[test]
    fn options_that_are_none_are_refused() {
        for bad in [options(2, 0, 0, b"", &[]), options(0, 3, 0, b"", &[])] {
            assert!(take_options(&bad).is_err());
        }
        for bad in [options(0, 0, 0, b"\xff", &[]), options(0, 0, 0, b"", &[(b"\xff", b"")])] {
            assert!(matches!(take_options(&bad).unwrap(), Err(DataError::Invalid { .. })));
        }
        let mut many = options(0, 0, 0, b"", &[]);
        many[84..88].fill(0xff);
        assert!(take_options(&many).is_err());
        // The most that any object has, and one byte more.
        let pair = (&[b'v'; METADATA_BYTES_MAX / METADATA_PAIRS_MAX][..], &b""[..]);
        let most = options(0, 0, 0, &[b't'; CONTENT_TYPE_BYTES_MAX], &[pair; METADATA_PAIRS_MAX]);
        assert_eq!((most.len(), take_options(&most).unwrap().is_ok()), (OPTIONS_LEN_MAX, true));
        let more = options(0, 0, 0, &[b't'; CONTENT_TYPE_BYTES_MAX + 1], &[pair; METADATA_PAIRS_MAX]);
        assert!(matches!(take_options(&more).unwrap(), Err(DataError::TooLarge { .. })));
    }
}
