//! References: which files the kept revisions need, and how many functions each tenant has, so that neither is ever counted anew.
//!
//! Owns the tables `references` and `tenants`. Knows nothing about where files lie. Invariant after each commit: a reference is
//! counted once for each kept revision that names it, and is absent when none does; a tenant's number is that of its functions.

use redb::{ReadTransaction, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::Registry;
use super::error::{RegistryError, storage};
use super::record::{Place, RevisionRecord, decode, encode};
use crate::id::{Digest, TenantId};

pub(super) const REFERENCES: TableDefinition<'_, (&str, u8, &[u8; 32]), &[u8]> = TableDefinition::new("references");
pub(super) const TENANTS: TableDefinition<'_, &str, u64> = TableDefinition::new("tenants");

/// A file that a revision needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// The upload with this SHA-256.
    Wasm(Digest),
    /// The native code under this key.
    Artifact(Digest),
    /// The snapshotted module under this key.
    Snapshot(Digest),
    /// The files that a deploy brought, with this digest.
    Bundle(Digest),
}

impl Reference {
    fn parts(&self) -> (u8, &Digest) {
        match self {
            Self::Wasm(digest) => (0, digest),
            Self::Artifact(digest) => (1, digest),
            Self::Snapshot(digest) => (2, digest),
            Self::Bundle(digest) => (3, digest),
        }
    }

    fn from_parts(kind: u8, digest: [u8; 32]) -> Option<Self> {
        let digest = Digest::from_bytes(digest);
        [Self::Wasm(digest), Self::Artifact(digest), Self::Snapshot(digest), Self::Bundle(digest)].get(usize::from(kind)).copied()
    }
}

impl RevisionRecord {
    /// The files that it needs.
    pub fn references(&self) -> impl Iterator<Item = Reference> {
        let snapshot = self.snapshot.as_ref().map(|snapshot| Reference::Snapshot(snapshot.key));
        let bundle = self.bundle.as_ref().map(|bundle| Reference::Bundle(bundle.digest));
        [Reference::Wasm(self.wasm), Reference::Artifact(self.artifact)].into_iter().chain(snapshot).chain(bundle)
    }
}

impl Registry {
    /// All that the kept revisions of all tenants refer to, each once. Files that are named here are needed.
    ///
    /// # Errors
    /// [`RegistryError`]; one damaged row fails the whole list, so that a collector never mistakes a part for the whole.
    ///
    /// # Cost
    /// About 1 us a file.
    pub fn references(&self) -> Result<Vec<(TenantId, Reference)>, RegistryError> {
        let doing = "list the references";
        self.read(|txn| {
            let table = txn.open_table(REFERENCES).map_err(storage(doing))?;
            let mut references = Vec::new();
            for entry in table.iter().map_err(storage(doing))? {
                let (key, value) = entry.map_err(storage(doing))?;
                let (tenant, kind, digest) = key.value();
                let unknown = || RegistryError::Damaged { what: format!("a reference of kind {kind} (tenant '{tenant}')") };
                let reference = Reference::from_parts(kind, *digest).ok_or_else(unknown)?;
                let _count: u64 = decode_count(tenant, reference, value.value())?;
                references.push((tenant.parse().map_err(|_| unknown())?, reference));
            }
            Ok(references)
        })
    }

    /// Those of `among` that a kept revision refers to.
    ///
    /// # Errors
    /// [`RegistryError`].
    ///
    /// # Cost
    /// About 1 us for each.
    pub fn referenced(&self, among: &[(TenantId, Reference)]) -> Result<Vec<(TenantId, Reference)>, RegistryError> {
        self.read(|txn| {
            let is_there = |(tenant, reference): &&(TenantId, Reference)| is_referenced(txn, tenant, *reference).transpose();
            among.iter().filter_map(|pair| is_there(&pair).map(|found| found.map(|()| pair.clone()))).collect()
        })
    }
}

fn is_referenced(txn: &ReadTransaction, tenant: &TenantId, reference: Reference) -> Result<Option<()>, RegistryError> {
    let doing = "read a reference";
    let table = txn.open_table(REFERENCES).map_err(storage(doing))?;
    Ok((read_count(&table, tenant, reference)? > 0).then_some(()))
}

fn with_place<T>(tenant: &str, reference: Reference, op: impl FnOnce(Place<'_>) -> T) -> T {
    let (kind, digest) = reference.parts();
    op(Place { tenant, name: &digest.hex(), number: u64::from(kind) })
}

fn decode_count(tenant: &str, reference: Reference, bytes: &[u8]) -> Result<u64, RegistryError> {
    with_place(tenant, reference, |place| decode(place, bytes))
}

type Counts<'t> = Table<'t, (&'static str, u8, &'static [u8; 32]), &'static [u8]>;

fn read_count(
    table: &impl ReadableTable<(&'static str, u8, &'static [u8; 32]), &'static [u8]>,
    tenant: &TenantId,
    reference: Reference,
) -> Result<u64, RegistryError> {
    let (kind, digest) = reference.parts();
    let value = table.get((tenant.as_str(), kind, digest.bytes())).map_err(storage("read a reference"))?;
    value.map_or(Ok(0), |value| decode_count(tenant.as_str(), reference, value.value()))
}

/// The counting tables, open for writing.
pub(super) struct Counting<'t> {
    references: Counts<'t>,
    tenants: Table<'t, &'static str, u64>,
    /// What nothing refers to any more.
    pub(super) released: Vec<(TenantId, Reference)>,
}

impl<'t> Counting<'t> {
    pub(super) fn open(txn: &'t WriteTransaction) -> Result<Self, RegistryError> {
        let doing = "open a table of the registry";
        let references = txn.open_table(REFERENCES).map_err(storage(doing))?;
        let tenants = txn.open_table(TENANTS).map_err(storage(doing))?;
        Ok(Self { references, tenants, released: Vec::new() })
    }

    /// Counts what a revision needs.
    pub(super) fn add(&mut self, tenant: &TenantId, record: &RevisionRecord) -> Result<(), RegistryError> {
        record.references().try_for_each(|reference| {
            let count = read_count(&self.references, tenant, reference)?;
            self.set(tenant, reference, count + 1)
        })
    }

    /// Takes back what [`Counting::add`] counted.
    pub(super) fn remove(&mut self, tenant: &TenantId, record: &RevisionRecord) -> Result<(), RegistryError> {
        record.references().try_for_each(|reference| {
            let count = read_count(&self.references, tenant, reference)?;
            self.set(tenant, reference, count.saturating_sub(1))
        })
    }

    /// Sets how many revisions need a file.
    pub(super) fn set(&mut self, tenant: &TenantId, reference: Reference, count: u64) -> Result<(), RegistryError> {
        let doing = "count a reference";
        let (kind, digest) = reference.parts();
        let key = (tenant.as_str(), kind, digest.bytes());
        if count == 0 {
            self.references.remove(key).map_err(storage(doing))?;
            self.released.push((tenant.clone(), reference));
        } else {
            let bytes = with_place(tenant.as_str(), reference, |place| encode(place, &count));
            self.references.insert(key, bytes.as_slice()).map_err(storage(doing))?;
        }
        Ok(())
    }

    /// Number of a tenant's functions.
    pub(super) fn functions(&self, tenant: &TenantId) -> Result<u64, RegistryError> {
        let value = self.tenants.get(tenant.as_str()).map_err(storage("count functions"))?;
        Ok(value.map_or(0, |value| value.value()))
    }

    /// Sets it.
    pub(super) fn set_functions(&mut self, tenant: &TenantId, count: u64) -> Result<(), RegistryError> {
        let doing = "count functions";
        match count {
            0 => self.tenants.remove(tenant.as_str()).map_err(storage(doing))?,
            count => self.tenants.insert(tenant.as_str(), count).map_err(storage(doing))?,
        };
        Ok(())
    }
}
