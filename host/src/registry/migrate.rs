//! Migration: brings a registry of an older format to the newest.
//!
//! Owns what differed. Knows nothing about the number in the data directory's file, which is written after this was committed.
//! Invariant: preparing twice is preparing once.

use redb::{ReadableTable, TableHandle, WriteTransaction};

use super::error::{PublishError, RegistryError, storage};
use super::record::{FunctionRow, Place, decode};
use super::{Commit, FUNCTIONS, REVISIONS, ROUTES, parse_key, with_live};

/// First format with the table of routes.
const ROUTES_SINCE: u32 = 2;

/// Makes the tables that are missing, so that readers find all of them; builds the table of routes anew for a format without.
pub(super) fn prepare(txn: &WriteTransaction, format: u32) -> Result<((), Commit), PublishError> {
    let doing = "prepare the registry";
    let names: Vec<String> = txn.list_tables().map_err(storage(doing))?.map(|table| table.name().to_owned()).collect();
    let complete = [FUNCTIONS.name(), REVISIONS.name(), ROUTES.name()].iter().all(|name| names.iter().any(|n| n == name));
    if complete && format >= ROUTES_SINCE {
        return Ok(((), Commit::No));
    }
    txn.open_table(FUNCTIONS).map_err(storage(doing))?;
    txn.open_table(REVISIONS).map_err(storage(doing))?;
    if format < ROUTES_SINCE || !names.iter().any(|name| name == ROUTES.name()) {
        txn.delete_table(ROUTES).map_err(storage(doing))?;
        build_routes(txn)?;
    }
    Ok(((), Commit::Yes))
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
