//! The audit of a bucket's durable objects, of files that nobody has open for writing.
//!
//! Knows nothing about who asks. Invariant: no byte is changed.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;
use redb::ReadTransaction;

use super::super::bucket::BucketId;
use super::super::error::{DataError, storage};
use super::durable::{Recount, Scrubbed, recount_in};
use super::files::{FileId, is_whole};
use super::record;
use super::table::OBJECTS;
use crate::id::Digest;

/// Reads every object of a bucket, whose files lie below the folder `objects`, and counts again what they take.
pub(in crate::data) fn audit(
    txn: &ReadTransaction,
    objects: &Path,
    bucket: BucketId,
) -> Result<(Scrubbed, Result<Recount, DataError>), DataError> {
    let doing = "read the objects of a bucket";
    let mut scrubbed = Scrubbed::default();
    let mut known = HashMap::<Digest, bool>::new();
    let table = txn.open_table(OBJECTS).map_err(storage(doing))?;
    for entry in table.range((bucket.0, &[][..])..).map_err(storage(doing))? {
        let (place, row) = entry.map_err(storage(doing))?;
        let (of, key) = place.value();
        if of != bucket.0 {
            break;
        }
        scrubbed.objects += 1;
        let is_good = match record::decode(bucket, key, row.value()) {
            None => false,
            Some(head) => match known.get(&head.etag) {
                Some(is_good) => *is_good,
                None => {
                    let is_good = match is_whole(objects, FileId { bucket, digest: head.etag }, head.len) {
                        // What the disk does not give is lost, and no reason not to look at the rest.
                        Err(error) if error.is_disk_failure() => false,
                        read => read?,
                    };
                    scrubbed.bytes += head.len;
                    known.insert(head.etag, is_good);
                    is_good
                }
            },
        };
        // A page that leads to others may be damaged too.
        let is_found = table.get((bucket.0, key)).map_err(storage(doing))?.is_some();
        if !is_good || !is_found {
            scrubbed.corrupt.push((bucket, Bytes::copy_from_slice(key)));
        }
    }
    Ok((scrubbed, recount_in(txn, bucket)))
}
