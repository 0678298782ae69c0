//! The value of a secret in memory.
//!
//! Owns its bytes, how they are read, and that they are wiped. Invariant: no text that is made of it shows any of them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use zeroize::Zeroizing;

use super::SecretError;

/// Longest value, in bytes.
pub const VALUE_LEN_MAX: usize = 64 << 10;

/// The value of a secret: 1 to [`VALUE_LEN_MAX`] bytes, wiped when they are let go of.
#[derive(Clone)]
pub struct SecretValue(Zeroizing<Vec<u8>>);

impl SecretValue {
    /// # Errors
    /// [`SecretError::Empty`], [`SecretError::TooLong`].
    pub fn new(bytes: Vec<u8>) -> Result<Self, SecretError> {
        let bytes = Zeroizing::new(bytes);
        match bytes.len() {
            0 => Err(SecretError::Empty),
            1..=VALUE_LEN_MAX => Ok(Self(bytes)),
            _ => Err(SecretError::TooLong),
        }
    }

    /// The bytes. Whoever copies them has to wipe the copy.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for SecretValue {
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl fmt::Debug for SecretValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretValue(..)")
    }
}

/// All of a file, or its first `len_max + 1` bytes.
pub(super) fn read(file: &mut File, len_max: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).min(len_max);
    // Room for all of it at once, or growing would leave copies behind. The byte more is for the end to be seen.
    let mut bytes = Zeroizing::new(Vec::with_capacity(len + 33));
    file.take(len_max as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_on_both_sides_and_nothing_is_shown() {
        assert!(matches!(SecretValue::new(Vec::new()), Err(SecretError::Empty)));
        assert!(matches!(SecretValue::new(vec![1; VALUE_LEN_MAX + 1]), Err(SecretError::TooLong)));
        assert_eq!(SecretValue::new(vec![1; VALUE_LEN_MAX]).unwrap().bytes().len(), VALUE_LEN_MAX);
        assert_eq!(format!("{:?}", SecretValue::new(b"hunter2".to_vec()).unwrap()), "SecretValue(..)");
    }
}
