//! Secrets: values under names, which functions read and nobody else.
//!
//! Three places may hold one, and the first that does counts:
//!
//! ```text
//! 1  the API                          DIR/secrets/TENANT/HASH, sealed      store.rs
//! 2  a folder of the operator's       FOLDER/TENANT/NAME                   sources.rs
//! 3  credentials of systemd           secret.TENANT.NAME; secret.NAME is of the tenant `default`
//! ```
//!
//! Owns that order, and the digest by which a snapshot knows the values that it was taken with. Knows nothing about who may read what
//! (`capability/secrets.rs` does). Invariants: nothing is kept in memory but what a caller holds, so a change counts from the next reading;
//! no value and no path is in any text of an error.

mod error;
mod sources;
mod store;
mod value;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

pub use error::{OpenError, SecretError};
pub use store::{Listed, SECRETS_MAX, Stored};
pub use value::{SecretValue, VALUE_LEN_MAX};

use sources::Source;
use store::Store;

use crate::grants::secrets::SecretGrant;
use crate::id::{Digest, SecretName, TenantId};

/// What the key is for that [`Secrets::open`] takes.
pub const KEY_CONTEXT: &str = "hob 2026-11-28 secrets of tenants";

/// The secrets of a node.
#[derive(Debug)]
pub struct Secrets {
    store: Store,
    /// In the order in which they count.
    sources: Vec<Source>,
    digest_key: Zeroizing<[u8; 32]>,
    /// Of each tenant whose secrets anybody asked for since the node began.
    changes: Mutex<HashMap<TenantId, Changes>>,
}

/// How often a secret of one tenant changed by the API: what was read while it was less may not be so any more. Files that others change
/// are not counted.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<AtomicU64>);

impl Changes {
    /// So far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Places besides the API that secrets come from.
#[derive(Debug, Clone, Copy, Default)]
pub struct Places<'a> {
    /// A folder with a folder for each tenant.
    pub folder: Option<&'a Path>,
    /// Where systemd shows credentials.
    pub credentials: Option<&'a Path>,
}

/// Secrets that a function's initialisation may read, as they were at one moment.
#[derive(Debug, Clone)]
pub struct InitSecrets {
    /// In the order of the manifest.
    pub values: Vec<(SecretName, SecretValue)>,
    /// Digest of names and values under a key of this node.
    pub digest: Digest,
}

/// Why the secrets of an initialisation cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is no such secret.
    #[error("there is no secret '{0}'")]
    Missing(SecretName),
    /// It cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl Secrets {
    /// The secrets below `dir`, the data directory, and in `places`, which must be there. `key`: derived for [`KEY_CONTEXT`].
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(dir: &Path, key: &[u8; 32], places: Places<'_>) -> Result<Self, OpenError> {
        let folder = places.folder.map(Source::folder).transpose()?;
        let credentials = places.credentials.map(Source::credentials).transpose()?;
        Ok(Self {
            store: Store::open(&dir.join("secrets"), key)?,
            sources: folder.into_iter().chain(credentials).collect(),
            digest_key: Zeroizing::new(blake3::derive_key("hob 2026-11-28 secrets of snapshots", key)),
            changes: Mutex::default(),
        })
    }

    /// A secret of a tenant; `None` if no place has one of this name.
    ///
    /// # Errors
    /// [`SecretError`] of the first place that has it: another place is not asked then.
    /// # Cost
    /// Blocks for one read of at most [`VALUE_LEN_MAX`] bytes, which the system usually has in memory.
    pub fn get(&self, tenant: &TenantId, name: &SecretName) -> Result<Option<SecretValue>, SecretError> {
        if let Some(value) = self.store.get(tenant, name)? {
            return Ok(Some(value));
        }
        for source in &self.sources {
            if let Some(value) = source.get(tenant, name)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// What the initialisation of a function may read. `None` if that is nothing.
    ///
    /// # Errors
    /// [`InitError`]: without all of them there is no initialisation.
    /// # Cost
    /// That of [`Secrets::get`] for each.
    pub fn of_init(&self, tenant: &TenantId, grants: &[SecretGrant]) -> Result<Option<InitSecrets>, InitError> {
        let mut values = Vec::new();
        let mut hasher = blake3::Hasher::new_keyed(&self.digest_key);
        let mut part = |bytes: &[u8]| _ = hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        part(tenant.as_str().as_bytes());
        for SecretGrant { name, env, .. } in grants.iter().filter(|grant| grant.init) {
            let value = self.get(tenant, name)?.ok_or_else(|| InitError::Missing(name.clone()))?;
            part(name.as_str().as_bytes());
            part(env.as_deref().unwrap_or_default().as_bytes());
            part(value.bytes());
            values.push((name.clone(), value));
        }
        let digest = Digest::from_bytes(*hasher.finalize().as_bytes());
        Ok((!values.is_empty()).then_some(InitSecrets { values, digest }))
    }

    /// Keeps a secret, in place of one of its name that came by the API. Durable when this returns. Blocks.
    ///
    /// # Errors
    /// [`SecretError::Empty`] and [`SecretError::TooLong`] for such a value, [`SecretError::TooMany`], [`SecretError::Io`].
    pub fn put(&self, tenant: &TenantId, name: &SecretName, value: &SecretValue) -> Result<(), SecretError> {
        let put = self.store.put(tenant, name, value);
        self.changed(tenant);
        put
    }

    /// Removes a secret that came by the API; whether there was one. Blocks.
    ///
    /// # Errors
    /// [`SecretError::Io`].
    pub fn remove(&self, tenant: &TenantId, name: &SecretName) -> Result<bool, SecretError> {
        let removed = self.store.remove(tenant, name);
        // One that failed may have removed it.
        if !matches!(removed, Ok(false)) {
            self.changed(tenant);
        }
        removed
    }

    /// The secrets of a tenant that came by the API, by name. Blocks for a read of each.
    ///
    /// # Errors
    /// [`SecretError::Io`].
    pub fn list(&self, tenant: &TenantId) -> Result<Listed, SecretError> {
        self.store.list(tenant)
    }

    /// Removes all secrets of a tenant that came by the API. Blocks.
    ///
    /// # Errors
    /// [`SecretError::Io`]; some may be gone then.
    pub fn remove_tenant(&self, tenant: &TenantId) -> Result<(), SecretError> {
        let removed = self.store.remove_tenant(tenant);
        self.changed(tenant);
        removed
    }

    /// The count of a tenant's changes, which goes on by itself.
    ///
    /// # Cost
    /// A lock and a look into a map, where there is an entry for each tenant: for who keeps what it gets.
    pub fn changes(&self, tenant: &TenantId) -> Changes {
        let mut all = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(tenant.clone()).or_default().clone()
    }

    /// After the change and before anybody hears of it. One that failed counts too: it may have come half-way.
    fn changed(&self, tenant: &TenantId) {
        self.changes(tenant).0.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
