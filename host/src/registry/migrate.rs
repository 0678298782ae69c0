//! Migration: brings a registry of an older format to the newest.
//!
//! Owns what differed. Knows nothing about the number in the data directory's file, which is written after this was committed.
//! Invariant: preparing twice is preparing once.

use std::collections::HashMap;

use redb::{ReadableTable, TableHandle, WriteTransaction};

use super::error::{PublishError, RegistryError, storage};
use super::record::{FunctionRow, Place, RevisionRecord, decode};
use super::references::{Counting, REFERENCES, Reference, TENANTS};
use super::signed::SIGNED;
use super::tenants::{TENANT_RECORDS, TOKENS};
use super::{Commit, FUNCTIONS, REVISIONS, ROUTES, TRIGGERS, parse_key, with_live};
use crate::id::TenantId;
use crate::storage::answers;

/// First format with the table of routes.
const ROUTES_SINCE: u32 = 2;
/// First format with the tables of references and tenants.
const COUNTS_SINCE: u32 = 3;

/// Makes the tables that are missing, so that readers find all of them; builds those anew that an older format lacks.
pub(super) fn prepare(txn: &WriteTransaction, format: u32) -> Result<((), Commit), PublishError> {
    let doing = "prepare the registry";
    let names: Vec<String> = txn.list_tables().map_err(storage(doing))?.map(|table| table.name().to_owned()).collect();
    let is_there = |table: &dyn TableHandle| names.iter().any(|name| name == table.name());
    let has_routes = format >= ROUTES_SINCE && is_there(&ROUTES);
    let has_counts = format >= COUNTS_SINCE && is_there(&REFERENCES) && is_there(&TENANTS);
    let has_tenants = is_there(&TENANT_RECORDS) && is_there(&TOKENS) && is_there(&SIGNED);
    let has_answers = answers::are_there(&names);
    if has_routes
        && has_counts
        && has_tenants
        && has_answers
        && is_there(&FUNCTIONS)
        && is_there(&REVISIONS)
        && is_there(&TRIGGERS)
    {
        return Ok(((), Commit::No));
    }
    txn.open_table(FUNCTIONS).map_err(storage(doing))?;
    txn.open_table(REVISIONS).map_err(storage(doing))?;
    // No older format has revisions with triggers.
    txn.open_table(TRIGGERS).map_err(storage(doing))?;
    answers::prepare(txn).map_err(RegistryError::from)?;
    // Nor tokens, nor tenants besides `default`.
    txn.open_table(TENANT_RECORDS).map_err(storage(doing))?;
    txn.open_table(TOKENS).map_err(storage(doing))?;
    txn.open_table(SIGNED).map_err(storage(doing))?;
    if !has_routes {
        txn.delete_table(ROUTES).map_err(storage(doing))?;
        build_routes(txn)?;
    }
    if !has_counts {
        txn.delete_table(REFERENCES).map_err(storage(doing))?;
        txn.delete_table(TENANTS).map_err(storage(doing))?;
        build_counts(txn)?;
    }
    Ok(((), Commit::Yes))
}

/// Counts the functions of every tenant and the references of every revision.
fn build_counts(txn: &WriteTransaction) -> Result<(), RegistryError> {
    let doing = "count what the registry holds";
    let functions = txn.open_table(FUNCTIONS).map_err(storage(doing))?;
    let revisions = txn.open_table(REVISIONS).map_err(storage(doing))?;
    let (mut tenants, mut references) = (HashMap::<TenantId, u64>::new(), HashMap::<(TenantId, Reference), u64>::new());
    for entry in functions.iter().map_err(storage(doing))? {
        let (key, _) = entry.map_err(storage(doing))?;
        let (tenant, name) = key.value();
        *tenants.entry(parse_key(Place { tenant, name, number: 0 })?.0).or_default() += 1;
    }
    for entry in revisions.iter().map_err(storage(doing))? {
        let (key, value) = entry.map_err(storage(doing))?;
        let (tenant, name, number) = key.value();
        let place = Place { tenant, name, number };
        let (record, (tenant, _)) = (decode::<RevisionRecord>(place, value.value())?, parse_key(place)?);
        for reference in record.references() {
            *references.entry((tenant.clone(), reference)).or_default() += 1;
        }
    }
    let mut counting = Counting::open(txn)?;
    tenants.iter().try_for_each(|(tenant, count)| counting.set_functions(tenant, *count))?;
    references.iter().try_for_each(|((tenant, reference), count)| counting.set(tenant, *reference, *count))
}

/// Writes the routes of every live revision. Of two functions with one route, which format 1 allowed, the older keeps it.
fn build_routes(txn: &WriteTransaction) -> Result<(), RegistryError> {
    let doing = "build the table of routes";
    let functions = txn.open_table(FUNCTIONS).map_err(storage(doing))?;
    let revisions = txn.open_table(REVISIONS).map_err(storage(doing))?;
    let mut routes = txn.open_table(ROUTES).map_err(storage(doing))?;
    let mut records = Vec::new();
    for entry in functions.iter().map_err(storage(doing))? {
        let (key, value) = entry.map_err(storage(doing))?;
        let (tenant, name) = key.value();
        let place = Place { tenant, name, number: 0 };
        let row: FunctionRow = decode(place, value.value())?;
        records.push(with_live(&revisions, parse_key(place)?, row)?);
    }
    records.sort_by_key(|record| record.created_ms);
    for record in &records {
        for route in record.live.manifest.route.iter().map(ToString::to_string) {
            let key = (record.tenant.as_str(), route.as_str());
            if routes.get(key).map_err(storage(doing))?.is_some() {
                tracing::warn!(function = %record.name, route, "an older function has this route too; deploy one of them anew");
                continue;
            }
            routes.insert(key, record.name.as_str()).map_err(storage(doing))?;
        }
    }
    Ok(())
}
