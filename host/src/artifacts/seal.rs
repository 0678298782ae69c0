//! The trailer of an artifact file: what proves that native code is the code this node compiled, for that tenant.
//!
//! ```text
//! offset          bytes
//! 0               N   payload: native code, an ELF file; at the beginning, because the engine maps this very file
//! N               8   magic, "HOBCODE\n"
//! N + 8           4   version of this trailer, little-endian: 1
//! N + 12          4   zero
//! N + 16          8   N, little-endian
//! N + 24         32   keyed BLAKE3 over: "hob artifact" and version, length of the tenant's name, the name, key digest, N, payload
//! N + 56              end of the file
//! ```
//!
//! Owns the layout and the MAC. Knows nothing about where files lie. Invariant: [`check`] accepts exactly the files that
//! [`append`] made under the same key for the same tenant and digest; any changed, missing or added byte is found.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;

use crate::id::{Digest, TenantId};

/// Bytes that follow the payload.
pub(super) const TRAILER_LEN: u64 = TRAILER_SIZE as u64;
const TRAILER_SIZE: usize = 56;
const MAGIC: &[u8; 8] = b"HOBCODE\n";
const VERSION: u32 = 1;

/// Secret key of the artifacts' MAC.
#[derive(Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// A key of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// Why a file is not an artifact of this node.
#[derive(Debug)]
pub(super) enum SealError {
    /// The file is damaged, or not what its name says.
    Corrupt(&'static str),
    /// It could not be read.
    Io(io::Error),
}

impl From<io::Error> for SealError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Appends the trailer to a file that holds only the payload. Does not sync. Returns the length of the whole file.
/// Reads the payload once, about 0.3 ms per MiB.
pub(super) fn append(file: &mut File, key: &MacKey, tenant: &TenantId, name: Digest) -> io::Result<u64> {
    let payload_len = file.metadata()?.len();
    let mac = mac(file, key, tenant, name, payload_len)?;
    let mut trailer = Vec::with_capacity(TRAILER_SIZE);
    trailer.extend_from_slice(MAGIC);
    trailer.extend_from_slice(&VERSION.to_le_bytes());
    trailer.extend_from_slice(&[0; 4]);
    trailer.extend_from_slice(&payload_len.to_le_bytes());
    trailer.extend_from_slice(mac.as_bytes());
    assert_eq!(trailer.len(), TRAILER_SIZE, "the layout above");
    file.seek(SeekFrom::Start(payload_len))?;
    file.write_all(&trailer)?;
    Ok(payload_len + TRAILER_LEN)
}

/// Checks a whole artifact file and returns the length of its payload. Leaves the file's position at 0.
pub(super) fn check(file: &mut File, key: &MacKey, tenant: &TenantId, name: Digest) -> Result<u64, SealError> {
    let len = file.metadata()?.len();
    let payload_len = len.checked_sub(TRAILER_LEN).filter(|len| *len > 0).ok_or(SealError::Corrupt("it is too short"))?;
    let mut trailer = [0; TRAILER_SIZE];
    file.read_exact_at(&mut trailer, payload_len)?;
    let (magic, rest) = trailer.split_at(MAGIC.len());
    let (version, rest) = rest.split_at(4);
    let (zero, rest) = rest.split_at(4);
    let (stated_len, stated_mac) = rest.split_at(8);
    if magic != MAGIC {
        return Err(SealError::Corrupt("its end is not that of an artifact"));
    }
    if version != VERSION.to_le_bytes() || zero != [0; 4] {
        return Err(SealError::Corrupt("its trailer has an unknown version"));
    }
    if stated_len != payload_len.to_le_bytes() {
        return Err(SealError::Corrupt("its length is not the one it had when it was written"));
    }
    let mac = mac(file, key, tenant, name, payload_len)?;
    // `blake3::Hash` compares in constant time.
    if blake3::Hash::from_slice(stated_mac).ok() != Some(mac) {
        return Err(SealError::Corrupt("its MAC does not match its content, tenant and name"));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(payload_len)
}

/// Reads instead of mapping: a file that shrinks while it is mapped ends the process with `SIGBUS`.
fn mac(file: &mut File, key: &MacKey, tenant: &TenantId, name: Digest, payload_len: u64) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    hasher.update(b"hob artifact").update(&VERSION.to_le_bytes());
    hasher.update(&(tenant.as_str().len() as u64).to_le_bytes()).update(tenant.as_str().as_bytes());
    hasher.update(name.bytes()).update(&payload_len.to_le_bytes());
    file.seek(SeekFrom::Start(0))?;
    hasher.update_reader(file.take(payload_len))?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> MacKey {
        MacKey::new([7; 32])
    }

    fn sealed(payload: &[u8]) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(payload).unwrap();
        let len = append(&mut file, &key(), &TenantId::default(), Digest::of(b"name")).unwrap();
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, len);
        bytes
    }

    fn checked(bytes: &[u8], key: &MacKey, tenant: &str, name: &[u8]) -> Result<u64, &'static str> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        check(&mut file, key, &tenant.parse().unwrap(), Digest::of(name)).map_err(|error| match error {
            SealError::Corrupt(what) => what,
            SealError::Io(error) => panic!("{error}"),
        })
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let good = sealed(b"\x7fELF and the rest");
        assert_eq!(checked(&good, &key(), "default", b"name"), Ok(good.len() as u64 - TRAILER_LEN));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(checked(&bad, &key(), "default", b"name").is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_truncation_and_any_appended_byte_is_found() {
        let good = sealed(b"payload");
        for len in 0..good.len() {
            assert!(checked(&good[..len], &key(), "default", b"name").is_err(), "{len}");
        }
        for garbage in [&b"\0"[..], b"x", &good] {
            assert!(checked(&[&good, garbage].concat(), &key(), "default", b"name").is_err());
        }
        assert!(checked(&sealed(b""), &key(), "default", b"name").is_err(), "an empty payload is no code");
        assert!(checked(&[0; 4096], &key(), "default", b"name").is_err());
    }

    #[test]
    fn another_tenant_name_or_key_is_found() {
        let good = sealed(b"payload");
        assert!(checked(&good, &key(), "default2", b"name").is_err());
        assert!(checked(&good, &key(), "default", b"other").is_err());
        assert!(checked(&good, &MacKey::new([8; 32]), "default", b"name").is_err());
        assert_eq!(checked(&good, &key(), "default", b"name"), Ok(7));
    }
}
