//! Data: which buckets a guest may use. The one place that checks a grant of data, whichever interface asks.
//!
//! Owns [`DataAccess`], what one revision may reach, and the refusal of everything else. Knows nothing about how keys, values and
//! objects cross into a guest (`handler_data`, `keyvalue`, `blobstore` do). Invariant: nobody gets a bucket from here that the manifest
//! did not name, and nobody writes to one that it named for reading.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::data::kv::KeyValue;
use crate::data::objects::Objects;
use crate::data::{Bucket, Data, DataError};
use crate::grants::{Access, DataGrant};
use crate::id::TenantId;
use crate::telemetry::logs::{Level, LogSink};

/// Refusals that one revision explains in its log; the rest are only refused.
const EXPLANATIONS_MAX: usize = 64;

/// What one revision of a function may reach of its tenant's data. The default reaches nothing.
#[derive(Default)]
pub struct DataAccess {
    node: Option<Node>,
    grants: Vec<Granted>,
    explained: Mutex<HashSet<(String, Access)>>,
}

struct Node {
    data: Arc<Data>,
    tenant: TenantId,
}

struct Granted {
    grant: DataGrant,
    /// The bucket when it was last looked up, and [`Data::changes`] before that.
    found: Mutex<Option<(u64, Arc<OpenBucket>)>>,
}

/// A bucket that a guest may use.
#[derive(Debug)]
pub struct OpenBucket {
    /// Which.
    pub bucket: Bucket,
    /// Its entries.
    pub kv: Arc<dyn KeyValue>,
    /// The objects of all buckets of its durability.
    pub objects: Arc<dyn Objects>,
    access: Access,
}

/// Why a guest does not get what it asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// The manifest does not grant it.
    #[error("denied: add to hob.toml: [grants] data = [{{ bucket = \"{bucket}\", access = \"{need}\" }}]")]
    Denied {
        /// The bucket, as the guest spelled it.
        bucket: String,
        /// What it wanted to do.
        need: Access,
    },
    /// The guest runs where no data is.
    #[error("there is no data here: a function reaches its buckets when it answers a request, not while it is deployed")]
    Absent,
    /// The data's own answer.
    #[error(transparent)]
    Data(#[from] DataError),
}

impl DataAccess {
    /// What `grants` allow of the tenant's data. Buckets are looked up when they are asked for.
    #[must_use]
    pub fn new(data: Arc<Data>, tenant: TenantId, grants: &[DataGrant]) -> Self {
        let grants = grants.iter().map(|grant| Granted { grant: grant.clone(), found: Mutex::new(None) }).collect();
        Self { node: Some(Node { data, tenant }), grants, explained: Mutex::default() }
    }

    /// What is granted, in the manifest's order.
    pub fn grants(&self) -> impl Iterator<Item = &DataGrant> {
        self.grants.iter().map(|granted| &granted.grant)
    }

    /// A granted bucket. What may be done with it is asked by [`OpenBucket::allow`].
    ///
    /// # Errors
    /// [`AccessError`]; [`DataError::NoSuchBucket`] for one that is granted and does not exist.
    ///
    /// # Cost
    /// A lock that only invocations of the same revision share; after a change of any bucket a read of the store, which may block on
    /// the disk.
    pub fn open(&self, name: &str) -> Result<Arc<OpenBucket>, AccessError> {
        let Some(Node { data, tenant }) = &self.node else { return Err(AccessError::Absent) };
        let granted = self.grants.iter().find(|granted| granted.grant.bucket.as_str() == name);
        let granted = granted.ok_or_else(|| AccessError::Denied { bucket: name.into(), need: Access::Read })?;
        let changes = data.changes();
        if let Some((seen, found)) = lock(&granted.found).as_ref()
            && *seen == changes
        {
            return Ok(found.clone());
        }
        let DataGrant { bucket, access, .. } = &granted.grant;
        let bucket = data.bucket(tenant, bucket)?.ok_or_else(|| DataError::NoSuchBucket { name: name.into() })?;
        let (kv, objects) = (data.kv(&bucket)?, data.objects(bucket.spec.durability));
        let found = Arc::new(OpenBucket { bucket, kv, objects, access: *access });
        *lock(&granted.found) = Some((changes, found.clone()));
        Ok(found)
    }

    /// Tells the author of a function, once for each revision and bucket, which line of the manifest would have allowed what was
    /// refused.
    pub fn explain(&self, error: &AccessError, log: &LogSink) {
        let AccessError::Denied { bucket, need } = error else { return };
        let mut explained = lock(&self.explained);
        if explained.len() < EXPLANATIONS_MAX && explained.insert((bucket.clone(), *need)) {
            drop(explained);
            log.host(Level::Warn, format!("bucket '{bucket}': {error}"));
        }
    }
}

impl OpenBucket {
    /// Whether the guest may do this with the bucket.
    ///
    /// # Errors
    /// [`AccessError::Denied`].
    pub fn allow(&self, need: Access) -> Result<(), AccessError> {
        match self.access >= need {
            true => Ok(()),
            false => Err(AccessError::Denied { bucket: self.bucket.name.to_string(), need }),
        }
    }
}

impl fmt::Debug for DataAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.grants()).finish()
    }
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::{BucketSpec, Durability};
    use crate::data::{Clock, DataConfig};
    use crate::id::BucketName;

    fn name(name: &str) -> BucketName {
        name.parse().unwrap()
    }

    fn grant(bucket: &str, access: Access) -> DataGrant {
        DataGrant { bucket: name(bucket), access, mount: None }
    }

    #[test]
    fn only_what_is_granted_opens_and_only_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Data::open(dir.path(), DataConfig::default(), Clock::system()).unwrap());
        let tenant = TenantId::default();
        for bucket in ["mine", "other"] {
            data.put_bucket(&tenant, &name(bucket), BucketSpec::new(Durability::Volatile)).wait().unwrap();
        }
        let access =
            DataAccess::new(data.clone(), tenant.clone(), &[grant("mine", Access::Read), grant("later", Access::ReadWrite)]);
        let mine = access.open("mine").unwrap();
        mine.allow(Access::Read).unwrap();
        let refused = mine.allow(Access::ReadWrite).unwrap_err();
        assert!(refused.to_string().contains("{ bucket = \"mine\", access = \"read-write\" }"), "{refused}");
        for bucket in ["other", "mine2", "", "../mine"] {
            assert!(matches!(access.open(bucket), Err(AccessError::Denied { need: Access::Read, .. })), "{bucket}");
        }
        assert!(matches!(access.open("later"), Err(AccessError::Data(DataError::NoSuchBucket { .. }))));
        assert!(matches!(DataAccess::default().open("mine"), Err(AccessError::Absent)));
    }

    #[test]
    fn a_bucket_that_was_made_again_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let data = Arc::new(Data::open(dir.path(), DataConfig::default(), Clock::system()).unwrap());
        let tenant = TenantId::default();
        let spec = BucketSpec::new(Durability::Durable);
        let access = DataAccess::new(data.clone(), tenant.clone(), &[grant("mine", Access::ReadWrite)]);
        data.put_bucket(&tenant, &name("mine"), spec).wait().unwrap();
        let first = access.open("mine").unwrap();
        assert!(Arc::ptr_eq(&first, &access.open("mine").unwrap()));
        data.delete_bucket(&tenant, &name("mine")).wait().unwrap();
        assert!(matches!(access.open("mine"), Err(AccessError::Data(DataError::NoSuchBucket { .. }))));
        data.put_bucket(&tenant, &name("mine"), spec).wait().unwrap();
        assert_ne!(access.open("mine").unwrap().bucket.id, first.bucket.id);
    }
}
