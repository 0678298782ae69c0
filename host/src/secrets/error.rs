//! What can go wrong with secrets.
//!
//! Owns the sentences and their faults. Invariant: none has a value or a path in it; those of [`OpenError`] are for the operator alone.

use std::io;
use std::path::PathBuf;

use super::{SECRETS_MAX, VALUE_LEN_MAX};
use crate::fault::{Code, Fault};
use crate::id::SecretName;
use crate::storage::disk::is_full;

/// A place of secrets that cannot be used at the start.
#[derive(Debug, thiserror::Error)]
#[error("failed to {doing} {}: {source}", .path.display())]
pub struct OpenError {
    /// What was being done.
    pub doing: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// A secret that cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No bytes.
    #[error("the value is empty: expected 1 to {VALUE_LEN_MAX} bytes")]
    Empty,
    /// Too many bytes.
    #[error("the value is too long: at most {VALUE_LEN_MAX} bytes are allowed")]
    TooLong,
    /// The tenant has as many as it may.
    #[error("the tenant has {count} secrets: at most {SECRETS_MAX} are allowed")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// What is kept is not what was put.
    #[error("the secret '{name}' is damaged on this node, or was kept under another key of the node")]
    Damaged {
        /// Which.
        name: SecretName,
    },
    /// A place besides the API has it, and it cannot be used.
    #[error("the secret '{name}' cannot be read from {place}: {why}")]
    Unusable {
        /// Which.
        name: SecretName,
        /// Where it was looked for.
        place: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The system failed.
    #[error("failed to {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl SecretError {
    /// The answer to whoever sent or asked for it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Empty => Fault::new(Code::BadRequest, self.to_string())
                .hint("send the value on standard input or by --file FILE, or remove the secret: hob secret rm NAME"),
            Self::TooLong => Fault::new(Code::BodyTooLarge, self.to_string()),
            Self::TooMany { .. } => {
                Fault::new(Code::QuotaExceeded, self.to_string()).hint("remove one that is not needed: hob secret rm NAME")
            }
            Self::Damaged { name } => {
                Fault::new(Code::Damaged, self.to_string()).hint(format!("set it again: hob secret set {name}"))
            }
            Self::Unusable { .. } => {
                Fault::new(Code::SecretUnavailable, self.to_string()).hint("the node's operator has to mend it")
            }
            Self::Io { source, .. } if is_full(source) => {
                Fault::new(Code::StorageFull, "there is no room for the secret on the node's disk").hint("free some space there")
            }
            Self::Io { source, .. } => Fault::system(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_fault() {
        let name: SecretName = "A".parse().unwrap();
        let unusable = SecretError::Unusable { name: name.clone(), place: "the operator's folder", why: "it is no file".into() };
        let io = |errno: rustix::io::Errno| SecretError::Io { doing: "keep a secret", source: errno.into() };
        for (error, code) in [
            (SecretError::Empty, Code::BadRequest),
            (SecretError::TooLong, Code::BodyTooLarge),
            (SecretError::TooMany { count: SECRETS_MAX }, Code::QuotaExceeded),
            (SecretError::Damaged { name }, Code::Damaged),
            (unusable, Code::SecretUnavailable),
            (io(rustix::io::Errno::NOSPC), Code::StorageFull),
            (io(rustix::io::Errno::MFILE), Code::Overloaded),
        ] {
            assert_eq!(error.fault().code, code, "{error}");
        }
    }
}
