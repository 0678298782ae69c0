//! What refers to a file of an object, for whoever removes files that nobody needs.
//!
//! A row that went says so, and then the count of what refers to its file is enough. Of a file that was there at the start it only seems that nothing
//! refers to it if the table of counts is damaged, so the objects' rows are asked too.
//!
//! Owns nothing; reads the tables of `table.rs`. Invariant: a file that was there at the start is not given up while a row of an object names it, or
//! while damage hides whether one does.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use redb::ReadTransaction;

use super::super::bucket::{self, BucketId};
use super::super::error::{DataError, storage};
use super::super::store::Store;
use super::files::FileId;
use super::record;
use super::table::{FILES, OBJECTS, corrupt};
use crate::id::Digest;

/// See the module.
pub(super) struct References {
    /// Files that were there at the start, and were not looked at yet.
    found: HashSet<FileId>,
    /// What the objects of a bucket refer to, read once, while there are such files.
    of_buckets: HashMap<BucketId, HashSet<Digest>>,
}

impl References {
    /// `found`: the files that are there at the start.
    pub(super) fn new(found: HashSet<FileId>) -> Self {
        Self { found, of_buckets: HashMap::new() }
    }

    /// Whether a file must stay. One of which damage hides that is among them, until the next start.
    pub(super) fn are_there(&mut self, store: &Store, id: FileId) -> Result<bool, DataError> {
        let of_start = self.found.contains(&id);
        let there = is_counted(store, id).and_then(|counted| Ok(counted || (of_start && self.are_in_rows(store, id)?)));
        let there = match there {
            Err(error) if error.is_damage() => {
                tracing::error!(%error, bucket = %id.bucket, digest = %id.digest, "what refers to a file cannot be read: it stays");
                true
            }
            there => there?,
        };
        self.found.remove(&id);
        if self.found.is_empty() {
            self.of_buckets = HashMap::new();
        }
        Ok(there)
    }

    fn are_in_rows(&mut self, store: &Store, id: FileId) -> Result<bool, DataError> {
        let rows = match self.of_buckets.entry(id.bucket) {
            Entry::Occupied(rows) => rows.into_mut(),
            Entry::Vacant(place) => place.insert(store.read(|txn| digests(txn, id.bucket))?),
        };
        let there = rows.contains(&id.digest);
        if there {
            tracing::error!(bucket = %id.bucket, digest = %id.digest, "the count of what refers to a file is lost: it stays");
        }
        Ok(there)
    }
}

fn is_counted(store: &Store, id: FileId) -> Result<bool, DataError> {
    let doing = "look for what refers to a file";
    store.read(|txn| {
        let table = txn.open_table(FILES).map_err(storage(doing))?;
        // A damaged count is one too.
        Ok(table.get((id.bucket.0, id.digest.bytes())).map_err(storage(doing))?.is_some())
    })
}

/// What the objects of a bucket that is there refer to. A damaged row hides what it referred to: then it is an error.
fn digests(txn: &ReadTransaction, bucket: BucketId) -> Result<HashSet<Digest>, DataError> {
    let doing = "read what the objects of a bucket refer to";
    let mut digests = HashSet::new();
    match bucket::spec(txn, bucket) {
        Err(DataError::NoSuchBucket { .. }) => return Ok(digests),
        spec => spec?,
    };
    let objects = txn.open_table(OBJECTS).map_err(storage(doing))?;
    for entry in objects.range((bucket.0, &[][..])..).map_err(storage(doing))? {
        let (place, row) = entry.map_err(storage(doing))?;
        let (of, key) = place.value();
        if of != bucket.0 {
            break;
        }
        let Some(head) = record::decode(bucket, key, row.value()) else { return Err(corrupt(bucket, key)) };
        digests.insert(head.etag);
    }
    Ok(digests)
}
