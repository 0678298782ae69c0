//! Tenants and their tokens and keys: who may do something on this node.
//!
//! ```text
//! tenant-records  tenant          hosts, keys for signatures, when it was made; the tenant `default` needs none
//! tokens          (tenant, name)  SHA-256 of the token, what it allows, its times
//! ```
//!
//! Owns these tables and their rules. Knows nothing about requests. Invariants after each commit: a host belongs to one tenant; every token
//! belongs to a tenant that exists; as long as there is any token there is an admin's of the tenant `default` that never expires, so that
//! nobody is locked out and the node never opens again by itself.

use std::collections::{BTreeMap, BTreeSet};

use redb::{ReadableDatabase as _, ReadableTable, ReadableTableMetadata as _, Table, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::error::{PublishError, RegistryError, storage};
use super::record::{Place, decode, encode};
use super::references::TENANTS;
use super::{Commit, Registry, now_ms, signed};
use crate::fault::{Code, Fault};
use crate::host::HostName;
use crate::id::{Digest, KeyName, TenantId, TokenName};
use crate::quota::{Quota, Quotas};
use crate::signing::PublicKey;
use crate::storage::answers;
use crate::token::{Scope, Scopes};

pub(super) const TENANT_RECORDS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tenant-records");
pub(super) const TOKENS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("tokens");

/// Most tenants of a node besides `default`.
pub const TENANTS_MAX: u64 = 10_000;
/// Most tokens of a tenant.
pub const TOKENS_MAX: usize = 1_000;
/// Most hosts of a tenant.
pub const HOSTS_MAX: usize = 100;
/// Most keys of a tenant.
pub const KEYS_MAX: usize = 16;

/// A tenant as its operator describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantRecord {
    /// Its name.
    pub name: TenantId,
    /// Hosts whose requests are for its functions.
    pub hosts: BTreeSet<HostName>,
    /// Keys one of which every deploy must be signed with; none: deploys need no signature.
    pub keys: BTreeMap<KeyName, PublicKey>,
    /// Quotas of its own; the node's configuration has all others.
    pub quotas: Quotas,
    /// When it was made; 0 for `default`.
    pub created_ms: u64,
}

/// Quotas to be changed: a value to be set, or none to leave it to the node's configuration.
pub type QuotaChanges = Vec<(Quota, Option<u64>)>;

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct TenantRow {
    hosts: BTreeSet<HostName>,
    keys: BTreeMap<KeyName, PublicKey>,
    created_ms: u64,
    /// Older rows have none.
    #[serde(default)]
    quotas: Quotas,
}

/// A token as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: TokenName,
    /// SHA-256 of its text.
    pub hash: Digest,
    /// What it allows.
    pub scopes: Scopes,
    /// When it was made.
    pub created_ms: u64,
    /// From when on it is worth nothing.
    pub expires_ms: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct TokenRow {
    hash: Digest,
    scopes: Scopes,
    created_ms: u64,
    expires_ms: Option<u64>,
}

/// A change of tenants, tokens or keys that was not made.
#[derive(Debug, thiserror::Error)]
pub enum TenantError {
    /// No tenant has this name.
    #[error("there is no tenant '{0}'")]
    NoSuchTenant(TenantId),
    /// The tenant has no such token.
    #[error("there is no token '{0}'")]
    NoSuchToken(TokenName),
    /// The tenant has no such key.
    #[error("there is no key '{0}'")]
    NoSuchKey(KeyName),
    /// The name is taken.
    #[error("there is a token '{0}' already: choose another name, or remove it first")]
    TokenExists(TokenName),
    /// The name is taken by another key.
    #[error("there is a key '{0}' already, and it is another one: choose another name, or remove it first")]
    KeyExists(KeyName),
    /// There would be more than allowed.
    #[error("there are {max} {what} already, and no more are allowed: remove one first")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: u64,
    },
    /// The host lies below the node's base domain.
    #[error(
        "the host '{host}' lies below the node's base domain, where it leads to the tenant '{holder}' alone, whether there is one or not"
    )]
    HostBelowBase {
        /// Which host.
        host: HostName,
        /// Where it leads.
        holder: TenantId,
    },
    /// Another tenant has the host.
    #[error("the host '{host}' belongs to the tenant '{holder}': take it from there first")]
    HostTaken {
        /// Which host.
        host: HostName,
        /// Who has it.
        holder: TenantId,
    },
    /// The tenant still has something.
    #[error("the tenant '{0}' has functions: remove them first")]
    NotEmpty(TenantId),
    /// `default` is always there.
    #[error("the tenant 'default' cannot be removed: its admins are the node's operators")]
    Permanent,
    /// The first token must keep the node in somebody's hands.
    #[error(
        "the first token of a node must be an admin's of the tenant 'default' that never expires: without it nobody could make another"
    )]
    FirstToken,
    /// Nobody would be left to make tokens.
    #[error("this is the last admin token of the tenant 'default' that never expires: make another one first")]
    LastAdmin,
}

const LIST_TOKENS: &str = "list them with: hob token ls";
const LIST_KEYS: &str = "list them with: hob key ls";

impl TenantError {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let (code, hint) = match self {
            Self::NoSuchTenant(_) => (Code::NotFound, "list them with: hob tenant ls"),
            Self::NoSuchToken(_) => (Code::NotFound, LIST_TOKENS),
            Self::NoSuchKey(_) => (Code::NotFound, LIST_KEYS),
            Self::TokenExists(_) => (Code::Conflict, LIST_TOKENS),
            Self::KeyExists(_) => (Code::Conflict, LIST_KEYS),
            Self::TooMany { .. } => (Code::QuotaExceeded, "remove one that nobody needs"),
            Self::FirstToken | Self::LastAdmin => (Code::Conflict, "hob token new NAME --scope admin"),
            Self::HostBelowBase { .. } => (Code::Conflict, "choose a host that is not below net.base_domain"),
            Self::HostTaken { .. } => (Code::Conflict, "hob tenant ls"),
            Self::NotEmpty(_) => (Code::Conflict, "hob ls --tenant NAME"),
            Self::Permanent => (Code::Conflict, "hob tenant --help"),
        };
        Fault::new(code, self.to_string()).hint(hint)
    }
}

/// The tables, open for writing.
struct Tables<'t> {
    tenants: Table<'t, &'static str, &'static [u8]>,
    tokens: Table<'t, (&'static str, &'static str), &'static [u8]>,
}

fn tenant_place(tenant: &str) -> Place<'_> {
    Place { tenant, name: "tenant", number: u64::MAX }
}

/// Another number than any record of a function has, so that neither can be taken for the other.
fn token_place<'a>(tenant: &'a str, name: &'a str) -> Place<'a> {
    Place { tenant, name, number: u64::MAX }
}

fn read_tenant(
    table: &impl ReadableTable<&'static str, &'static [u8]>,
    tenant: &TenantId,
) -> Result<Option<TenantRow>, RegistryError> {
    let value = table.get(tenant.as_str()).map_err(storage("read a tenant"))?;
    let row = value.map(|value| decode(tenant_place(tenant.as_str()), value.value())).transpose()?;
    Ok(row.or_else(|| tenant.is_default().then(TenantRow::default)))
}

fn read_tenants(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Vec<TenantRecord>, RegistryError> {
    let doing = "list the tenants";
    let mut found = Vec::new();
    for entry in table.iter().map_err(storage(doing))? {
        let (key, value) = entry.map_err(storage(doing))?;
        let place = tenant_place(key.value());
        let name = key.value().parse().map_err(|_| place.damaged("a name is malformed"))?;
        found.push(decode::<TenantRow>(place, value.value())?.named(name));
    }
    if !found.iter().any(|tenant| tenant.name.is_default()) {
        found.push(TenantRow::default().named(TenantId::default()));
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn read_tokens(
    table: &impl ReadableTable<(&'static str, &'static str), &'static [u8]>,
) -> Result<Vec<TokenRecord>, RegistryError> {
    let doing = "list the tokens";
    let mut found = Vec::new();
    for entry in table.iter().map_err(storage(doing))? {
        let (key, value) = entry.map_err(storage(doing))?;
        let (tenant, name) = key.value();
        let place = token_place(tenant, name);
        let TokenRow { hash, scopes, created_ms, expires_ms } = decode(place, value.value())?;
        let (Ok(tenant), Ok(name)) = (tenant.parse(), name.parse()) else {
            return Err(place.damaged("a name is malformed"));
        };
        found.push(TokenRecord { tenant, name, hash, scopes, created_ms, expires_ms });
    }
    Ok(found)
}

impl TenantRow {
    fn named(self, name: TenantId) -> TenantRecord {
        let Self { hosts, keys, created_ms, quotas } = self;
        TenantRecord { name, hosts, keys, created_ms, quotas }
    }
}

impl TokenRecord {
    /// Whether it keeps the node in its operators' hands for good.
    fn is_lasting(&self) -> bool {
        self.tenant.is_default() && self.scopes.has(Scope::Admin) && self.expires_ms.is_none()
    }
}

impl<'t> Tables<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, RegistryError> {
        let doing = "open a table of the registry";
        Ok(Self {
            tenants: txn.open_table(TENANT_RECORDS).map_err(storage(doing))?,
            tokens: txn.open_table(TOKENS).map_err(storage(doing))?,
        })
    }

    /// A tenant that must exist.
    fn tenant(&self, tenant: &TenantId) -> Result<TenantRow, PublishError> {
        let row = read_tenant(&self.tenants, tenant)?;
        row.ok_or_else(|| TenantError::NoSuchTenant(tenant.clone()).into())
    }

    fn put(&mut self, tenant: &TenantId, row: &TenantRow) -> Result<(), RegistryError> {
        let bytes = encode(tenant_place(tenant.as_str()), row);
        self.tenants.insert(tenant.as_str(), bytes.as_slice()).map_err(storage("write a tenant"))?;
        Ok(())
    }
}

/// Refuses what would be of a tenant that is not there.
pub(super) fn check_tenant(txn: &WriteTransaction, tenant: &TenantId) -> Result<(), PublishError> {
    if tenant.is_default() {
        return Ok(());
    }
    Tables::open(txn)?.tenant(tenant).map(drop)
}

/// How many functions a tenant has.
fn functions(txn: &WriteTransaction, tenant: &TenantId) -> Result<u64, RegistryError> {
    let doing = "count the functions of a tenant";
    let table = txn.open_table(TENANTS).map_err(storage(doing))?;
    let count = table.get(tenant.as_str()).map_err(storage(doing))?;
    Ok(count.map_or(0, |count| count.value()))
}

impl Registry {
    /// All tenants by name, `default` among them.
    ///
    /// # Errors
    /// [`RegistryError`].
    ///
    /// # Cost
    /// About 2 us for each.
    pub fn tenants(&self) -> Result<Vec<TenantRecord>, RegistryError> {
        self.read(|txn| read_tenants(&txn.open_table(TENANT_RECORDS).map_err(storage("open the tenants"))?))
    }

    /// One tenant, `None` if there is no such.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn tenant(&self, tenant: &TenantId) -> Result<Option<TenantRecord>, RegistryError> {
        self.read(|txn| {
            let row = read_tenant(&txn.open_table(TENANT_RECORDS).map_err(storage("open the tenants"))?, tenant)?;
            Ok(row.map(|row| row.named(tenant.clone())))
        })
    }

    /// The tokens of all tenants.
    ///
    /// # Errors
    /// [`RegistryError`]; one damaged row fails the whole list.
    ///
    /// # Cost
    /// About 2 us for each.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, RegistryError> {
        self.read(|txn| read_tokens(&txn.open_table(TOKENS).map_err(storage("open the tokens"))?))
    }

    /// Makes a tenant, or changes its hosts. Returns it, and whether it is new.
    ///
    /// # Errors
    /// [`TenantError::HostTaken`], [`TenantError::TooMany`], [`TenantError::NotEmpty`] if there are functions under the name of a tenant that
    /// was removed, and those of storage.
    ///
    /// # Cost
    /// One transaction; looks at every tenant.
    pub fn put_tenant(&self, name: &TenantId, hosts: BTreeSet<HostName>) -> Result<(TenantRecord, bool), PublishError> {
        if hosts.len() > HOSTS_MAX {
            return Err(TenantError::TooMany { what: "hosts of one tenant", max: HOSTS_MAX as u64 }.into());
        }
        self.write(|txn| {
            let mut tables = Tables::open(txn)?;
            let all = read_tenants(&tables.tenants)?;
            for other in all.iter().filter(|other| other.name != *name) {
                if let Some(host) = other.hosts.intersection(&hosts).next() {
                    return Err(TenantError::HostTaken { host: host.clone(), holder: other.name.clone() }.into());
                }
            }
            let before = all.into_iter().find(|tenant| tenant.name == *name);
            let is_new = before.is_none();
            if is_new && tables.tenants.len().map_err(storage("count the tenants"))? >= TENANTS_MAX {
                return Err(TenantError::TooMany { what: "tenants", max: TENANTS_MAX }.into());
            }
            if is_new && functions(txn, name)? > 0 {
                return Err(TenantError::NotEmpty(name.clone()).into());
            }
            let row = match before {
                Some(TenantRecord { keys, created_ms, quotas, .. }) => TenantRow { hosts, keys, created_ms, quotas },
                None => TenantRow { hosts, created_ms: now_ms(), ..TenantRow::default() },
            };
            tables.put(name, &row)?;
            Ok(((row.named(name.clone()), is_new), Commit::Yes))
        })
    }

    /// Changes quotas of a tenant; all others stay.
    ///
    /// # Errors
    /// [`TenantError::NoSuchTenant`], and those of storage.
    pub fn set_quotas(&self, name: &TenantId, changes: &QuotaChanges) -> Result<TenantRecord, PublishError> {
        self.write(|txn| {
            let mut tables = Tables::open(txn)?;
            let mut row = tables.tenant(name)?;
            for (quota, value) in changes {
                row.quotas.set(*quota, *value);
            }
            tables.put(name, &row)?;
            Ok((row.named(name.clone()), Commit::Yes))
        })
    }

    /// Removes a tenant with its tokens and keys.
    ///
    /// # Errors
    /// [`TenantError::NoSuchTenant`], [`TenantError::Permanent`], [`TenantError::NotEmpty`], and those of storage.
    pub fn remove_tenant(&self, name: &TenantId) -> Result<(), PublishError> {
        if name.is_default() {
            return Err(TenantError::Permanent.into());
        }
        self.write(|txn| {
            let doing = "remove a tenant";
            let mut tables = Tables::open(txn)?;
            tables.tenant(name)?;
            if functions(txn, name)? > 0 {
                return Err(TenantError::NotEmpty(name.clone()).into());
            }
            tables.tenants.remove(name.as_str()).map_err(storage(doing))?;
            let is_of_it = |key: (&str, &str)| key.0 == name.as_str();
            tables.tokens.retain(|key, _| !is_of_it(key)).map_err(storage(doing))?;
            signed::forget(txn, name)?;
            answers::forget(txn, name)?;
            Ok(((), Commit::Yes))
        })
    }

    /// Keeps a new token. The first of a node must be a lasting one of the operator's.
    ///
    /// # Errors
    /// [`TenantError::NoSuchTenant`], [`TenantError::TokenExists`], [`TenantError::TooMany`], [`TenantError::FirstToken`], and those of
    /// storage.
    pub fn add_token(&self, token: &TokenRecord) -> Result<(), PublishError> {
        self.write(|txn| {
            let mut tables = Tables::open(txn)?;
            tables.tenant(&token.tenant)?;
            let all = read_tokens(&tables.tokens)?;
            if all.is_empty() && !token.is_lasting() {
                return Err(TenantError::FirstToken.into());
            }
            let mut mine = all.iter().filter(|other| other.tenant == token.tenant);
            if mine.clone().count() >= TOKENS_MAX {
                return Err(TenantError::TooMany { what: "tokens of one tenant", max: TOKENS_MAX as u64 }.into());
            }
            if mine.any(|other| other.name == token.name) {
                return Err(TenantError::TokenExists(token.name.clone()).into());
            }
            let TokenRecord { hash, scopes, created_ms, expires_ms, .. } = *token;
            let (tenant, name) = (token.tenant.as_str(), token.name.as_str());
            let bytes = encode(token_place(tenant, name), &TokenRow { hash, scopes, created_ms, expires_ms });
            tables.tokens.insert((tenant, name), bytes.as_slice()).map_err(storage("write a token"))?;
            Ok(((), Commit::Yes))
        })
    }

    /// Removes a token.
    ///
    /// # Errors
    /// [`TenantError::NoSuchToken`], [`TenantError::LastAdmin`], and those of storage.
    pub fn remove_token(&self, tenant: &TenantId, name: &TokenName) -> Result<(), PublishError> {
        self.write(|txn| {
            let mut tables = Tables::open(txn)?;
            let all = read_tokens(&tables.tokens)?;
            let is_it = |token: &&TokenRecord| token.tenant == *tenant && token.name == *name;
            let token = all.iter().find(is_it).ok_or_else(|| TenantError::NoSuchToken(name.clone()))?;
            if token.is_lasting() && !all.iter().any(|other| other.is_lasting() && !is_it(&other)) {
                return Err(TenantError::LastAdmin.into());
            }
            tables.tokens.remove((tenant.as_str(), name.as_str())).map_err(storage("remove a token"))?;
            Ok(((), Commit::Yes))
        })
    }

    /// Adds a key that deploys of a tenant may be signed with.
    ///
    /// # Errors
    /// [`TenantError::NoSuchTenant`], [`TenantError::KeyExists`], [`TenantError::TooMany`], and those of storage.
    pub fn add_key(&self, tenant: &TenantId, name: &KeyName, key: PublicKey) -> Result<TenantRecord, PublishError> {
        self.write(|txn| {
            let mut tables = Tables::open(txn)?;
            let mut row = tables.tenant(tenant)?;
            match row.keys.get(name) {
                Some(other) if *other != key => return Err(TenantError::KeyExists(name.clone()).into()),
                Some(_) => {}
                None if row.keys.len() >= KEYS_MAX => {
                    return Err(TenantError::TooMany { what: "keys of one tenant", max: KEYS_MAX as u64 }.into());
                }
                None => _ = row.keys.insert(name.clone(), key),
            }
            tables.put(tenant, &row)?;
            Ok((row.named(tenant.clone()), Commit::Yes))
        })
    }

    /// Removes a key. With the last one signatures are asked for no more.
    ///
    /// # Errors
    /// [`TenantError::NoSuchTenant`], [`TenantError::NoSuchKey`], and those of storage.
    pub fn remove_key(&self, tenant: &TenantId, name: &KeyName) -> Result<(), PublishError> {
        self.write(|txn| {
            let mut tables = Tables::open(txn)?;
            let mut row = tables.tenant(tenant)?;
            row.keys.remove(name).ok_or_else(|| TenantError::NoSuchKey(name.clone()))?;
            tables.put(tenant, &row)?;
            Ok(((), Commit::Yes))
        })
    }
}

/// All that is in these tables and in that of `signed.rs`, for whoever holds a repaired file against the one before.
pub(super) fn each(db: &redb::Database, mut add: impl FnMut(&str, &str, u64, &[u8])) -> Result<(), RegistryError> {
    let doing = "read the registry";
    let txn = db.begin_read().map_err(storage(doing))?;
    // An older registry has none of them yet.
    if let Ok(table) = txn.open_table(TENANT_RECORDS) {
        for entry in table.iter().map_err(storage(doing))? {
            let (key, value) = entry.map_err(storage(doing))?;
            add(key.value(), "", u64::MAX, value.value());
        }
    }
    if let Ok(table) = txn.open_table(TOKENS) {
        for entry in table.iter().map_err(storage(doing))? {
            let (key, value) = entry.map_err(storage(doing))?;
            add(key.value().0, key.value().1, u64::MAX, value.value());
        }
    }
    signed::each(&txn, add)
}
