//! Identifiers: parsed once where text enters, compared and printed everywhere else.
//!
//! Owns the spelling of tenants, functions, buckets, revisions, invocations and digests. Knows nothing about what they name.
//! Invariant: a value of these types is always well formed, so no other module checks a name again.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

/// Longest name of a function or tenant, in bytes: the longest label DNS allows (RFC 1035, 2.3.4), because a tenant's name
/// becomes a host name.
pub const NAME_LEN_MAX: usize = 63;

/// Longest name of a secret, in bytes.
pub const SECRET_NAME_LEN_MAX: usize = 64;

/// A name that is not spelled as its kind is: most follow `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`, those of secrets
/// `[A-Za-z_][A-Za-z0-9_]{0,63}`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{name}' is not a valid name: expected {expected}")]
pub struct NameError {
    name: String,
    expected: &'static str,
}

impl NameError {
    fn new(text: &str, expected: &'static str) -> Self {
        // A hostile name may be long: the error shows its beginning only.
        Self { name: text.chars().take(80).collect(), expected }
    }
}

fn check_name(text: &str) -> Result<(), NameError> {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let good = match bytes {
        [] => false,
        [only] => alnum(*only),
        [first, middle @ .., last] => {
            bytes.len() <= NAME_LEN_MAX && alnum(*first) && alnum(*last) && middle.iter().all(|b| alnum(*b) || *b == b'-')
        }
    };
    let expected = "1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit";
    if good { Ok(()) } else { Err(NameError::new(text, expected)) }
}

/// Such a name can be that of a variable, and of a file.
fn check_secret_name(text: &str) -> Result<(), NameError> {
    let good = text.len() <= SECRET_NAME_LEN_MAX
        && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let expected = "1 to 64 of A-Z, a-z, 0-9 and '_', beginning with no digit";
    if good { Ok(()) } else { Err(NameError::new(text, expected)) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident) => {
        name_type! { $(#[$doc])* $name, check_name }
    };
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok(Self(text.into()))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

name_type! {
    /// Name of a tenant, the unit of isolation, quota and billing.
    TenantId
}
name_type! {
    /// Name under which a tenant deployed a function; unique within the tenant.
    FunctionName
}
name_type! {
    /// Name of a bucket of data; unique within the tenant.
    BucketName
}
name_type! {
    /// Name of a token; unique within the tenant. It is no secret.
    TokenName
}
name_type! {
    /// Name of a secret; unique within the tenant.
    SecretName, check_secret_name
}
name_type! {
    /// Name of a key that deploys are signed with; unique within the tenant.
    KeyName
}

impl TenantId {
    /// Name of the tenant that is always there. Its admins are the node's operators.
    pub const DEFAULT: &'static str = "default";

    /// A tenant that does not exist and cannot: the one exception to how names are spelled.
    #[must_use]
    pub fn nobody() -> Self {
        Self("-".into())
    }

    /// Whether it is the tenant whose admins are the node's operators.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.as_str() == Self::DEFAULT
    }
}

impl Default for TenantId {
    /// The tenant that everything belongs to until there are others.
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

/// Number of a revision: 1 for the first deploy of a function, rising by one with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RevisionNumber(pub u64);

impl RevisionNumber {
    /// What the first deploy of a function gets.
    pub const FIRST: Self = Self(1);

    /// The number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for RevisionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Text that is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a digest: expected 'sha256:' and 64 hexadecimal digits")]
pub struct DigestError;

/// SHA-256 of some bytes, printed as `sha256:` and 64 hexadecimal digits (the spelling of OCI registries).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of `bytes`. Cost: about 0.5 ns a byte where the processor has SHA instructions.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// Digest of what `bytes` reads, up to its end.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of_reader(mut bytes: impl std::io::Read) -> std::io::Result<Self> {
        let mut hasher = sha2::Sha256::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match bytes.read(&mut piece) {
                Ok(0) => return Ok(Self(hasher.finalize().into())),
                Ok(len) => hasher.update(piece.get(..len).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Digest of several parts. Each part's length goes in before its bytes, so that moving a byte from one part to its
    /// neighbour gives another digest.
    #[must_use]
    pub fn of_parts(parts: &[&[u8]]) -> Self {
        let mut hasher = sha2::Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(hasher.finalize().into())
    }

    /// From its 32 bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// 64 hexadecimal digits without the prefix: a file name.
    #[must_use]
    pub fn hex(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        self.0.iter().flat_map(|b| [b >> 4, b & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
    }

    /// The inverse of [`Digest::hex`].
    ///
    /// # Errors
    /// [`DigestError`] for anything but 64 hexadecimal digits in lower case.
    pub fn from_hex(text: &str) -> Result<Self, DigestError> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(DigestError);
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(DigestError),
        };
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(Self(out))
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::from_hex(text.strip_prefix("sha256:").ok_or(DigestError)?)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Identifies one invocation: 48 bits of Unix time in milliseconds, then 80 bits that no other invocation of this node has.
/// Printed as 26 digits of Crockford's base 32, so that text order is time order (the ULID layout, github.com/ulid/spec).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvocationId(u128);

const CROCKFORD: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Number of bytes of a printed [`InvocationId`].
pub const INVOCATION_ID_LEN: usize = 26;

impl InvocationId {
    /// Builds an identifier. `unique`: only the low 80 bits are used.
    #[must_use]
    pub fn new(unix_ms: u64, unique: u128) -> Self {
        Self(u128::from(unix_ms & 0xffff_ffff_ffff) << 80 | unique & (u128::MAX >> 48))
    }

    /// The printed form, without allocation.
    #[must_use]
    pub fn text(self) -> [u8; INVOCATION_ID_LEN] {
        let mut out = [0; INVOCATION_ID_LEN];
        for (place, digit) in out.iter_mut().rev().enumerate() {
            let index = (self.0 >> (5 * place)) & 31;
            *digit = CROCKFORD[usize::try_from(index).unwrap_or_default()];
        }
        out
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl Serialize for InvocationId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_both_sides_of_the_rule() {
        let long = "a".repeat(NAME_LEN_MAX);
        for good in ["a", "0", "a-b", "hello-http3", &long] {
            assert_eq!(good.parse::<FunctionName>().unwrap().as_str(), good);
            assert_eq!(good.parse::<BucketName>().unwrap().as_str(), good);
        }
        let too_long = "a".repeat(NAME_LEN_MAX + 1);
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "..", "a/b", "ä", "a b", &too_long] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
            assert!(bad.parse::<BucketName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn names_of_secrets_on_both_sides_of_the_rule() {
        let long = "A".repeat(SECRET_NAME_LEN_MAX);
        for good in ["A", "_", "API_KEY", "a1", &long] {
            assert_eq!(good.parse::<SecretName>().unwrap().as_str(), good);
        }
        let too_long = "A".repeat(SECRET_NAME_LEN_MAX + 1);
        for bad in ["", "1A", "A-B", "A.B", "..", "A/B", "\u{c4}", "A B", "A=", "A\0", &too_long] {
            assert!(bad.parse::<SecretName>().unwrap_err().to_string().contains("1 to 64 of A-Z"), "{bad}");
        }
    }

    #[test]
    fn digest_text_round_trips_and_refuses_other_text() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        for bad in ["", "sha256:", "sha256:zz", &digest.hex(), &format!("sha256:{}", digest.hex().to_uppercase())] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_are_delimited() {
        assert_ne!(Digest::of_parts(&[b"a", b"bc"]), Digest::of_parts(&[b"ab", b"c"]));
    }

    #[test]
    fn invocation_ids_sort_by_time() {
        let early = InvocationId::new(1, u128::MAX);
        let late = InvocationId::new(2, 0);
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(early.to_string().len(), INVOCATION_ID_LEN);
    }
}
