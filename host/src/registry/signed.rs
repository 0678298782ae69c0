//! Versions of signed deploys: none is made live whose version is not higher than all before.
//!
//! ```text
//! signed-versions  (tenant, name)  highest version of a signed deploy; stays when the function is removed
//! ```
//!
//! Owns this table. Knows nothing about signatures; the keys are in `tenants.rs`. Invariant: a version falls only with its tenant.

use redb::{ReadTransaction, ReadableTable as _, TableDefinition, WriteTransaction};

use super::Registry;
use super::error::{PublishError, RegistryError, storage};
use crate::id::{FunctionName, TenantId};

pub(super) const SIGNED: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("signed-versions");

impl Registry {
    /// The highest version of a signed deploy of a function, 0 if there was none.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn signed_version(&self, tenant: &TenantId, name: &FunctionName) -> Result<u64, RegistryError> {
        let doing = "read a version";
        self.read(|txn| {
            let table = txn.open_table(SIGNED).map_err(storage(doing))?;
            let version = table.get((tenant.as_str(), name.as_str())).map_err(storage(doing))?;
            Ok(version.map_or(0, |version| version.value()))
        })
    }
}

/// Notes the version of a signed deploy, as part of the transaction that makes it live; it must be higher than the one before.
pub(super) fn raise_version(
    txn: &WriteTransaction,
    tenant: &TenantId,
    name: &FunctionName,
    version: u64,
) -> Result<(), PublishError> {
    let doing = "write a version";
    let mut table = txn.open_table(SIGNED).map_err(storage(doing))?;
    let key = (tenant.as_str(), name.as_str());
    let before = table.get(key).map_err(storage(doing))?.map_or(0, |before| before.value());
    if version <= before {
        return Err(PublishError::OldVersion { found: version, before });
    }
    table.insert(key, version).map_err(storage(doing))?;
    Ok(())
}

/// Forgets all versions of a tenant.
pub(super) fn forget(txn: &WriteTransaction, tenant: &TenantId) -> Result<(), RegistryError> {
    let doing = "remove a tenant";
    txn.open_table(SIGNED).map_err(storage(doing))?.retain(|key, _| key.0 != tenant.as_str()).map_err(storage(doing))
}

/// All that is in this table; see [`super::tenants::each`].
pub(super) fn each(txn: &ReadTransaction, mut add: impl FnMut(&str, &str, u64, &[u8])) -> Result<(), RegistryError> {
    let doing = "read the registry";
    if let Ok(table) = txn.open_table(SIGNED) {
        for entry in table.iter().map_err(storage(doing))? {
            let (key, value) = entry.map_err(storage(doing))?;
            add(key.value().0, key.value().1, u64::MAX - 1, &value.value().to_le_bytes());
        }
    }
    Ok(())
}
