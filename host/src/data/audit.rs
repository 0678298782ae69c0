//! The audit: all data of a folder that nobody uses, read and held against its checksums.
//!
//! Owns what is looked at and in which order. Knows nothing about how it is shown. Invariant: no byte is changed.

use std::path::Path;

use bytes::Bytes;
use redb::ReadTransaction;

use super::account::Usage;
use super::bucket::{self, Bucket, Each};
use super::error::DataError;
use super::kv::durable;
use super::{Data, FILE, file, objects};
use crate::bucket::Durability;

/// What the audit of one durable bucket found.
#[derive(Debug, Clone)]
pub struct Audited {
    /// The bucket with its account.
    pub bucket: Bucket,
    /// Entries that were read.
    pub entries: u64,
    /// Keys of entries that are not what was written.
    pub corrupt_entries: Vec<Bytes>,
    /// Objects that were read.
    pub objects: u64,
    /// Keys of objects that are damaged or lost.
    pub corrupt_objects: Vec<Bytes>,
    /// What its entries and objects take, counted again; `None` if it cannot be counted for damage.
    pub counted: Option<(Usage, Usage)>,
}

impl Audited {
    /// Whether nothing is damaged and the account is right.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.corrupt_entries.is_empty()
            && self.corrupt_objects.is_empty()
            && self.counted == Some((self.bucket.entries, self.bucket.objects))
    }
}

impl Data {
    /// Reads everything in the durable buckets of the folder `dir`, object by object and row by row, without changing a byte. Not while
    /// it is open. Of a file that [`Data::verify`] refuses it finds what can still be reached.
    ///
    /// Each bucket comes with its name, and by itself: what makes one unreadable says nothing of the others.
    ///
    /// # Errors
    /// [`DataError::Damaged`] if there is no list of buckets, and those of storage.
    ///
    /// # Cost
    /// Reads all data once.
    pub fn audit(dir: &Path) -> Result<Each<Audited>, DataError> {
        let file = dir.join(FILE);
        let all = file::look(&file, bucket::all)?;
        let is_durable = |bucket: &Bucket| bucket.spec.durability == Durability::Durable;
        let durable = all.into_iter().filter(|(_, found)| found.as_ref().map_or(true, is_durable));
        let audited = durable.map(|(name, found)| {
            // Opened anew, because a panic of redb leaves nothing to go on with.
            let audited = found.and_then(|bucket| file::look(&file, |txn| audited(txn, dir, bucket)));
            (name, audited)
        });
        Ok(audited.collect())
    }
}

fn audited(txn: &ReadTransaction, dir: &Path, bucket: Bucket) -> Result<Audited, DataError> {
    let (entries, _) = durable::scrub_page(txn, bucket.id, None, usize::MAX)?;
    let (found, recount) = objects::audit(txn, &dir.join(objects::FOLDER), bucket.id)?;
    let counted = match recount {
        Ok(recount) if recount.damaged == 0 => Some((durable::recount_in(txn, bucket.id)?, recount.objects)),
        Ok(_) | Err(DataError::Damaged { .. } | DataError::DamagedRow { .. }) => None,
        Err(error) => return Err(error),
    };
    Ok(Audited {
        bucket,
        entries: entries.entries,
        corrupt_entries: entries.corrupt,
        objects: found.objects,
        corrupt_objects: found.corrupt.into_iter().map(|(_, key)| key).collect(),
        counted,
    })
}
