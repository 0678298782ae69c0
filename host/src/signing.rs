//! Signatures of deploys: Ed25519 (RFC 8032), detached, over what is deployed and where.
//!
//! ```text
//! bytes   of the message that is signed
//! 13      "hob deploy 2" and a zero byte
//! 4, n    length (little endian) and bytes of the tenant's name
//! 4, n    length and bytes of the function's name
//! 8       version (little endian), which rises with each deploy
//! 32      SHA-256 of the Wasm
//! 32      SHA-256 of the text of the manifest; of no text if there is none
//! 32      SHA-256 of the archive of files; of no bytes if there is none
//! ```
//!
//! Owns the message and the check. Knows nothing about which keys a tenant has. Invariant: exactly one encoding of a signature is taken
//! (`verify_strict`), and no other message has the same bytes: every part has a fixed length or says it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::id::{Digest, FunctionName, TenantId};

const CONTEXT: &[u8] = b"hob deploy 2\0";

/// What a signature is of.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Whose function.
    pub tenant: &'a TenantId,
    /// Which function.
    pub function: &'a FunctionName,
    /// As which version.
    pub version: u64,
    /// SHA-256 of the Wasm.
    pub wasm: Digest,
    /// SHA-256 of the manifest's text.
    pub manifest: Digest,
    /// SHA-256 of the archive of files.
    pub files: Digest,
}

impl Message<'_> {
    /// The bytes that are signed.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = CONTEXT.to_vec();
        for name in [self.tenant.as_str(), self.function.as_str()] {
            // A name has at most 63 bytes.
            bytes.extend(u32::try_from(name.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend(name.as_bytes());
        }
        bytes.extend(self.version.to_le_bytes());
        bytes.extend(self.wasm.bytes());
        bytes.extend(self.manifest.bytes());
        bytes.extend(self.files.bytes());
        bytes
    }
}

/// A public key: 32 bytes, written as 64 hexadecimal digits. It may be no point of the curve, and then nothing is signed with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PublicKey([u8; 32]);

/// Text that is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is no key of Ed25519: expected 64 hexadecimal digits, as 'hob key new' prints them")]
pub struct NoKey;

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Digest::from_bytes(self.0).hex())
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

impl TryFrom<String> for PublicKey {
    type Error = NoKey;

    fn try_from(text: String) -> Result<Self, NoKey> {
        let bytes = *Digest::from_hex(&text).map_err(|_| NoKey)?.bytes();
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| NoKey)?;
        // With a key of small order one signature holds for many messages.
        if key.is_weak() { Err(NoKey) } else { Ok(Self(bytes)) }
    }
}

impl PublicKey {
    /// Whether `signature` is this key's of the message.
    #[must_use]
    pub fn verifies(&self, message: &Message<'_>, signature: &DeploySignature) -> bool {
        let signature = Signature::from_bytes(&signature.0);
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| key.verify_strict(&message.bytes(), &signature).is_ok())
    }
}

/// A signature: 64 bytes, written in Base64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeploySignature([u8; 64]);

impl DeploySignature {
    /// From Base64; `None` for anything but 64 bytes.
    #[must_use]
    pub fn from_base64(text: &str) -> Option<Self> {
        STANDARD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// The inverse of [`DeploySignature::from_base64`].
    #[must_use]
    pub fn to_base64(self) -> String {
        STANDARD.encode(self.0)
    }
}

/// A deploy that somebody signed.
#[derive(Debug, Clone, Copy)]
pub struct Signed {
    /// As which version.
    pub version: u64,
    /// The signature.
    pub signature: DeploySignature,
}

/// A secret key: 32 bytes, written as 64 hexadecimal digits. Printing it for debugging shows none of it.
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// A new key.
    ///
    /// # Errors
    /// When the system gives no random numbers.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Self(SigningKey::from_bytes(&bytes)))
    }

    /// From its text.
    ///
    /// # Errors
    /// [`NoKey`].
    pub fn from_text(text: &str) -> Result<Self, NoKey> {
        let bytes = Digest::from_hex(text.trim()).map_err(|_| NoKey)?;
        Ok(Self(SigningKey::from_bytes(bytes.bytes())))
    }

    /// The text of the secret.
    #[must_use]
    pub fn reveal(&self) -> String {
        Digest::from_bytes(self.0.to_bytes()).hex()
    }

    /// Its public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a deploy.
    #[must_use]
    pub fn sign(&self, message: &Message<'_>) -> DeploySignature {
        DeploySignature(self.0.sign(&message.bytes()).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_byte_of_signature_and_message_fails() {
        let key = SecretKey::from_text(&"7a".repeat(32)).unwrap();
        let (tenant, function) = (TenantId::default(), "shop".parse::<FunctionName>().unwrap());
        let (wasm, manifest, files) = (Digest::of(b"wasm"), Digest::of(b"manifest"), Digest::of(b"files"));
        let message = Message { tenant: &tenant, function: &function, version: 7, wasm, manifest, files };
        let (public, signature) = (key.public(), key.sign(&message));
        assert!(public.verifies(&message, &signature));
        for at in 0..64 {
            for bit in 0..8 {
                let mut bytes = signature.0;
                bytes[at] ^= 1 << bit;
                assert!(!public.verifies(&message, &DeploySignature(bytes)), "byte {at} of the signature");
            }
        }
        // The whole message, byte for byte, below the types.
        let bytes = message.bytes();
        let verifies = |bytes: &[u8]| {
            let key = VerifyingKey::from_bytes(&public.0).unwrap();
            key.verify_strict(bytes, &Signature::from_bytes(&signature.0)).is_ok()
        };
        assert!(verifies(&bytes));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(!verifies(&changed), "byte {at} of the message");
        }
        let (other, moved) = ("acme".parse().unwrap(), "shop2".parse().unwrap());
        for wrong in [
            Message { tenant: &other, ..message },
            Message { function: &moved, ..message },
            Message { version: 8, ..message },
            Message { wasm: manifest, ..message },
            Message { manifest: wasm, ..message },
            Message { files: wasm, ..message },
        ] {
            assert!(!public.verifies(&wrong, &signature), "{wrong:?}");
        }
        assert!(!SecretKey::random().unwrap().public().verifies(&message, &signature));
    }

    #[test]
    fn no_two_messages_have_the_same_bytes() {
        let of = |tenant: &str, function: &str| {
            let (tenant, function) = (tenant.parse().unwrap(), function.parse().unwrap());
            let digest = Digest::of(b"");
            Message { tenant: &tenant, function: &function, version: 1, wasm: digest, manifest: digest, files: digest }.bytes()
        };
        assert_ne!(of("a", "bc"), of("ab", "c"));
    }

    #[test]
    fn keys_are_read_again_and_other_text_is_refused() {
        let key = SecretKey::random().unwrap();
        assert_eq!(SecretKey::from_text(&format!("{}\n", key.reveal())).unwrap().public(), key.public());
        assert_eq!(PublicKey::try_from(key.public().to_string()), Ok(key.public()));
        assert!(!format!("{key:?}").contains(&key.reveal()[..8]));
        // The last two are points of small order.
        for bad in ["", "zz", &"a".repeat(63), &format!("01{}", "0".repeat(62)), &"0".repeat(64)] {
            assert_eq!(PublicKey::try_from(bad.to_owned()), Err(NoKey), "{bad}");
        }
        assert!(DeploySignature::from_base64("x").is_none() && DeploySignature::from_base64(&STANDARD.encode([0; 63])).is_none());
    }
}
