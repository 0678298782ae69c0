//! A grant of a secret: `secrets` in `[grants]`.
//!
//! Owns the plain value. Knows nothing about what the secret is.

use serde::{Deserialize, Serialize};

use crate::id::SecretName;

/// Most secrets of one function.
pub const SECRET_GRANTS_MAX: usize = 32;

/// A secret that a function may read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretGrant {
    /// Which; it need not exist yet.
    pub name: SecretName,
    /// The variable that holds it too, in the environment of each invocation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Whether it may be read during initialisation and warm-up, and so be in the snapshot.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
}
