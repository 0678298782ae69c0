//! What the client asks about tokens, tenants, keys, secrets and the audit log.
//!
//! Owns these requests. Knows nothing about what is printed.

use anyhow::Context as _;
use http::Request;
use serde::Serialize;
use ureq::SendBody;

use super::super::failure::Failure;
use super::{Client, accept, percent_encode, read};
use crate::control::wire::{
    AuditList, KeyInfo, KeyList, KeyRequest, NewTokenInfo, SecretList, TenantChange, TenantInfo, TenantList, TenantRequest,
    TokenInfo, TokenList, TokenRequest, UsageReport,
};
use crate::id::{KeyName, SecretName, TenantId, TokenName};
use crate::signing::PublicKey;

impl Client {
    /// Makes a token.
    pub(in crate::cli) fn new_token(&self, wanted: &TokenRequest) -> Result<NewTokenInfo, Failure> {
        self.tell(Request::post(format!("{}/v1/tokens", self.base)), wanted)
    }

    /// The tokens of a tenant.
    pub(in crate::cli) fn tokens(&self) -> Result<Vec<TokenInfo>, Failure> {
        self.get(&format!("{}/v1/tokens", self.base), None).map(|list: TokenList| list.items)
    }

    /// Removes a token.
    pub(in crate::cli) fn remove_token(&self, name: &TokenName) -> Result<(), Failure> {
        self.forget(&format!("{}/v1/tokens/{name}", self.base))
    }

    /// Makes a tenant, or changes its hosts.
    pub(in crate::cli) fn put_tenant(&self, name: &TenantId, hosts: Vec<String>) -> Result<TenantInfo, Failure> {
        self.tell(Request::put(format!("{}/v1/tenants/{name}", self.base)), &TenantRequest { hosts })
    }

    /// Changes quotas of a tenant.
    pub(in crate::cli) fn change_tenant(&self, name: &TenantId, change: &TenantChange) -> Result<TenantInfo, Failure> {
        self.tell(Request::patch(format!("{}/v1/tenants/{name}", self.base)), change)
    }

    /// What functions used. `query`: as the API has it.
    pub(in crate::cli) fn usage(&self, query: &str) -> Result<UsageReport, Failure> {
        self.get(&format!("{}/v1/usage?{query}", self.base), None)
    }

    /// All tenants.
    pub(in crate::cli) fn tenants(&self) -> Result<Vec<TenantInfo>, Failure> {
        self.get(&format!("{}/v1/tenants", self.base), None).map(|list: TenantList| list.items)
    }

    /// Removes a tenant.
    pub(in crate::cli) fn remove_tenant(&self, name: &TenantId) -> Result<(), Failure> {
        self.forget(&format!("{}/v1/tenants/{name}", self.base))
    }

    /// Adds a key that deploys may be signed with.
    pub(in crate::cli) fn add_key(&self, name: &KeyName, key: PublicKey) -> Result<KeyInfo, Failure> {
        self.tell(Request::put(format!("{}/v1/keys/{name}", self.base)), &KeyRequest { public_key: key.to_string() })
    }

    /// The keys of a tenant.
    pub(in crate::cli) fn keys(&self) -> Result<Vec<KeyInfo>, Failure> {
        self.get(&format!("{}/v1/keys", self.base), None).map(|list: KeyList| list.items)
    }

    /// Removes a key.
    pub(in crate::cli) fn remove_key(&self, name: &KeyName) -> Result<(), Failure> {
        self.forget(&format!("{}/v1/keys/{name}", self.base))
    }

    /// Sets a secret.
    pub(in crate::cli) fn set_secret(&self, name: &SecretName, value: &[u8]) -> Result<(), Failure> {
        let request = Request::put(format!("{}/v1/secrets/{name}", self.base));
        let request = request.header("content-type", "application/octet-stream").header("content-length", value.len());
        accept(self.send(request, SendBody::from_reader(&mut &*value))?, None).map(drop)
    }

    /// The secrets of a tenant.
    pub(in crate::cli) fn secrets(&self) -> Result<SecretList, Failure> {
        self.get(&format!("{}/v1/secrets", self.base), None)
    }

    /// Secrets that functions of a tenant may read and that cannot be read: of `count` functions, from the one after a cursor.
    pub(in crate::cli) fn unreadable_secrets(&self, cursor: Option<&str>, count: usize) -> Result<SecretList, Failure> {
        let cursor = cursor.map(|cursor| format!("&cursor={}", percent_encode(cursor))).unwrap_or_default();
        self.get(&format!("{}/v1/secrets?unreadable=true&limit={count}{cursor}", self.base), None)
    }

    /// Removes a secret.
    pub(in crate::cli) fn remove_secret(&self, name: &SecretName) -> Result<(), Failure> {
        self.forget(&format!("{}/v1/secrets/{name}", self.base))
    }

    /// Lines of the audit log.
    pub(in crate::cli) fn audit(&self, after: u64) -> Result<AuditList, Failure> {
        self.get(&format!("{}/v1/audit?after={after}", self.base), None)
    }

    fn tell<T: serde::de::DeserializeOwned>(&self, request: http::request::Builder, what: &impl Serialize) -> Result<T, Failure> {
        let body = serde_json::to_vec(what).context("text is legal JSON")?;
        let request = request.header("content-type", "application/json").header("content-length", body.len());
        read(accept(self.send(request, SendBody::from_reader(&mut body.as_slice()))?, None)?)
    }

    fn forget(&self, url: &str) -> Result<(), Failure> {
        accept(self.send(Request::delete(url), SendBody::none())?, None).map(drop)
    }
}
