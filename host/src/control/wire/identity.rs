//! The JSON of tokens, tenants, keys and the audit log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::quota::Value;

/// A token to be made.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Its name; `admin` when absent, for the first token of a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it allows: `read`, `invoke`, `deploy`, `admin`. The first token of a node is an admin's when this is absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// How long it is worth something, such as `30days`; for ever when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// A token without its text.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// Its name.
    pub name: String,
    /// Whose.
    pub tenant: String,
    /// What it allows.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_ms: u64,
    /// From when on it is worth nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// When it was used last since the node started, a minute more or less.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_ms: Option<u64>,
}

/// A token that was just made.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NewTokenInfo {
    /// What is known of it.
    #[serde(flatten)]
    pub info: TokenInfo,
    /// Its text. Nobody can show it again.
    pub token: String,
}

/// The tokens of a tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TokenList {
    /// By name.
    pub items: Vec<TokenInfo>,
}

/// A tenant to be made or changed.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantRequest {
    /// Hosts whose requests are for its functions, such as `shop.example.com`; all of them.
    #[serde(default)]
    pub hosts: Vec<String>,
}

/// Changes of a tenant.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TenantChange {
    /// Quotas to be set, by name, such as `"memory": "1GiB"`; `"none"` is no bound, and null leaves one to the node's configuration.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Option<String>>)]
    pub quotas: BTreeMap<String, Option<Value>>,
}

/// A tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantInfo {
    /// Its name.
    pub name: String,
    /// Hosts whose requests are for its functions.
    pub hosts: Vec<String>,
    /// Keys that its deploys are signed with.
    pub keys: Vec<KeyInfo>,
    /// Quotas of its own, by name.
    #[serde(default)]
    pub quotas: BTreeMap<String, String>,
    /// Quotas in force: its own, and the node's where it has none.
    #[serde(default)]
    pub in_force: BTreeMap<String, String>,
    /// When it was made; 0 for `default`.
    pub created_ms: u64,
}

/// All tenants.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct TenantList {
    /// By name.
    pub items: Vec<TenantInfo>,
}

/// A key to be added.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// The public key of Ed25519: 64 hexadecimal digits.
    pub public_key: String,
}

/// A key that deploys are signed with.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyInfo {
    /// Its name.
    pub name: String,
    /// The public key of Ed25519: 64 hexadecimal digits.
    pub public_key: String,
}

/// The keys of a tenant.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KeyList {
    /// By name.
    pub items: Vec<KeyInfo>,
}

/// Lines of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditList {
    /// As they were written, oldest first: their bytes are what is hashed.
    pub lines: Vec<String>,
    /// Number of the last line there is.
    pub last: u64,
    /// Its hash.
    pub hash: String,
}
