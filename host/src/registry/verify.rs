//! Verification: looks at a registry's whole file before it is used, without changing a byte of it.
//!
//! redb checks the hashes of its pages only when it is asked to or repairs; used unchecked, a damaged file makes it panic, and in
//! places twice at once, which ends the process. So each opening first runs redb's own check over an [`Overlay`], in which what
//! the check repairs stays in memory. What a kill left is repaired by the opening itself and passes.
//!
//! Owns the verdict. Knows nothing about what records mean. Invariant: the file is as it was before.

use std::fs::File;
use std::path::Path;

use redb::{Database, ReadableDatabase, ReadableTable, TableError};

use super::error::{RegistryError, io_error, storage};
use super::{FUNCTIONS, PAGE_CACHE_BYTES, REVISIONS, contained, tenants};
use crate::storage::abandon;
use crate::storage::overlay::Overlay;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The file is what redb wrote.
    Whole,
    /// Every record is whole, but redb's account of free space is not: its own repair mends that.
    Mendable,
}

/// Checks the file at `path`. Cost: reads all of it; about 1.5 ms for 1,000 functions, and three times that if it must be mended.
///
/// # Errors
/// [`RegistryError::Damaged`] if a page is not what redb wrote, or a repair would lose a record.
pub(super) fn verify(path: &Path) -> Result<Verdict, RegistryError> {
    let doing = "check the registry";
    let file = File::open(path).map_err(io_error(doing))?;
    let len = file.metadata().map_err(io_error(doing))?.len();
    if len == 0 {
        return Err(RegistryError::Damaged { what: "its file is empty".into() });
    }
    let repaired = over(&file, len, |db| match db.check_integrity().map_err(storage(doing))? {
        true => Ok(None),
        false => fingerprint(db).map(Some),
    })?;
    let Some(repaired) = repaired else { return Ok(Verdict::Whole) };
    // Something was repaired: either only which pages are free, or the last commit was given up for the one before.
    match over(&file, len, |db| fingerprint(db)) {
        Ok(found) if found == repaired => Ok(Verdict::Mendable),
        _ => Err(RegistryError::Damaged { what: "it can be repaired only with loss".into() }),
    }
}

/// Opens the file, of `len` bytes, under a fresh overlay for the time of `op`. A panic becomes [`RegistryError::Damaged`].
fn over<T>(file: &File, len: u64, op: impl FnOnce(&mut Database) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
    let doing = "check the registry";
    let file = file.try_clone().map_err(io_error(doing))?;
    let overlay = Overlay::new(file, len);
    contained(|| {
        let mut db = Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(overlay).map_err(storage(doing))?;
        let result = op(&mut db);
        abandon(db);
        result
    })
}

/// Hash of every record and its key.
fn fingerprint(db: &Database) -> Result<blake3::Hash, RegistryError> {
    let doing = "read the registry";
    let txn = db.begin_read().map_err(storage(doing))?;
    let mut hasher = blake3::Hasher::new();
    let mut add = |tenant: &str, name: &str, number: u64, value: &[u8]| {
        for part in [tenant.as_bytes(), name.as_bytes(), &number.to_le_bytes(), value] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    };
    match txn.open_table(FUNCTIONS) {
        // A first start that was killed made the file and no table yet.
        Err(TableError::TableDoesNotExist(_)) => return Ok(hasher.finalize()),
        table => {
            for entry in table.map_err(storage(doing))?.iter().map_err(storage(doing))? {
                let (key, value) = entry.map_err(storage(doing))?;
                add(key.value().0, key.value().1, 0, value.value());
            }
        }
    }
    for entry in txn.open_table(REVISIONS).map_err(storage(doing))?.iter().map_err(storage(doing))? {
        let (key, value) = entry.map_err(storage(doing))?;
        add(key.value().0, key.value().1, key.value().2, value.value());
    }
    tenants::each(db, add)?;
    Ok(hasher.finalize())
}
