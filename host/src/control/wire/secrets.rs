//! The JSON of secrets.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A secret that came by the API, without its value.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretInfo {
    /// Its name.
    pub name: String,
    /// Length of its value in bytes.
    pub bytes: u64,
    /// When it was set.
    pub changed_ms: u64,
}

/// The secrets of a tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretList {
    /// By name.
    pub items: Vec<SecretInfo>,
    /// How many more there are that are damaged, or were set under another key of the node; their names are not known.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub damaged: u64,
    /// Secrets that functions may read and that cannot be read, wherever they would come from; only when it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<Vec<UnreadableSecret>>,
    /// Pass it as `?unreadable=true&cursor=`: functions after it were not looked at. Absent when all were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A secret that a function may read, and cannot.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct UnreadableSecret {
    /// The function.
    pub function: String,
    /// Name of the secret.
    pub name: String,
    /// Why it cannot be read.
    pub why: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// A secret that a function may read.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SecretGrantInfo {
    /// Its name.
    pub name: String,
    /// The variable that holds it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<String>,
    /// Whether initialisation may read it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
}
