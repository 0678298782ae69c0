//! Data: which buckets a guest may use. The one place that checks a grant of data, whichever interface asks.
//!
//! Owns [`DataAccess`], what one revision may reach, and the refusal of everything else. Knows nothing about how keys, values and
//! objects cross into a guest (`handler`, `keyvalue`, `blobstore` do). Invariant: nobody gets a bucket from here that the manifest
//! did not name, and nobody writes to one that it named for reading.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::Host;
use super::blocking::Jobs;
use super::descriptors::Descriptors;
use super::explain::{Denied, How};
use crate::data::kv::KeyValue;
use crate::data::objects::{MOUNT_ENTRIES_MAX, Mounted, Objects};
use crate::data::{Bucket, Data, DataError};
use crate::grants::{Access, DataGrant};
use crate::id::{BucketName, NAME_LEN_MAX, TenantId};
use crate::meter::FunctionMeter;
use crate::telemetry::logs::{Level, LogSink};

/// Objects of one bucket that are being read or fetched to be opened at once, for one revision; a quarter of [`JOBS_MAX`](super::blocking::JOBS_MAX).
pub const OPENINGS_MAX: usize = 4;

/// What one revision of a function may reach of its tenant's data. The default reaches nothing.
#[derive(Default)]
pub struct DataAccess {
    node: Option<Node>,
    /// `None` where there is no data.
    jobs: Option<Jobs>,
    /// The same.
    descriptors: Option<Descriptors>,
    grants: Vec<Granted>,
    /// Mounts of which the log was told something.
    mounts_explained: Mutex<HashSet<String>>,
    /// Counts operations.
    meter: Option<Arc<FunctionMeter>>,
    /// Whether a bucket was asked for where no data is.
    missed: AtomicBool,
}

/// A granted bucket as a folder, for reading.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Where it is.
    pub host: PathBuf,
    /// What the guest calls it.
    pub guest: String,
}

struct Node {
    data: Arc<Data>,
    tenant: TenantId,
}

struct Granted {
    grant: DataGrant,
    /// The bucket when it was last looked up, and [`Data::changes`] before that.
    found: Mutex<Option<(u64, Arc<OpenBucket>)>>,
    /// Of all that is found for this grant, also by two who look at the same time.
    opening: Arc<Semaphore>,
    /// Taken by who brings up its folder, and by who waits for that, before a thread is.
    mounting: tokio::sync::Mutex<()>,
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
    /// Turns of those who open objects that must be read or fetched first: see [`OPENINGS_MAX`].
    pub opening: Arc<Semaphore>,
    /// Places for work on it that may block.
    pub jobs: Jobs,
    /// For its objects that are files.
    pub descriptors: Descriptors,
    access: Access,
    meter: Option<Arc<FunctionMeter>>,
}

/// Why a guest does not get what it asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AccessError {
    /// The manifest does not grant it.
    #[error(transparent)]
    Denied(Denied),
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
        let grants = grants
            .iter()
            .map(|grant| Granted {
                grant: grant.clone(),
                found: Mutex::new(None),
                opening: Arc::new(Semaphore::new(OPENINGS_MAX)),
                mounting: tokio::sync::Mutex::default(),
            })
            .collect();
        let (jobs, descriptors) = (Some(Jobs::of(&tenant)), Some(Descriptors::of(&tenant)));
        Self {
            node: Some(Node { data, tenant }),
            jobs,
            descriptors,
            grants,
            mounts_explained: Mutex::default(),
            meter: None,
            missed: AtomicBool::new(false),
        }
    }

    /// The same, with operations counted.
    #[must_use]
    pub fn metered(self, meter: &Arc<FunctionMeter>) -> Self {
        Self { meter: Some(meter.clone()), ..self }
    }

    /// Places for work that may block, of which the tenant has a share.
    #[must_use]
    pub fn jobs(&self) -> Jobs {
        self.jobs.clone().unwrap_or_else(|| Jobs::of(&TenantId::default()))
    }

    /// Descriptors for objects that are files, of which the tenant has a share.
    #[must_use]
    pub fn descriptors(&self) -> Descriptors {
        self.descriptors.clone().unwrap_or_else(|| Descriptors::of(&TenantId::default()))
    }

    /// What is granted, in the manifest's order.
    pub fn grants(&self) -> impl Iterator<Item = &DataGrant> {
        self.grants.iter().map(|granted| &granted.grant)
    }

    /// Whether a guest asked for a bucket where no data is.
    #[must_use]
    pub fn was_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
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
        let Some(Node { data, tenant }) = &self.node else {
            self.missed.store(true, Ordering::Relaxed);
            return Err(AccessError::Absent);
        };
        let granted = self.grants.iter().find(|granted| granted.grant.bucket.as_str() == name);
        let granted = granted.ok_or_else(|| denied(name, How::Add, Access::Read))?;
        let changes = data.changes();
        if let Some((seen, found)) = lock(&granted.found).as_ref()
            && *seen == changes
        {
            return Ok(found.clone());
        }
        let DataGrant { bucket, access, .. } = &granted.grant;
        let bucket = data.bucket(tenant, bucket)?.ok_or_else(|| DataError::NoSuchBucket { name: name.into() })?;
        let (kv, objects) = (data.kv(&bucket)?, data.objects(bucket.spec.durability));
        let (opening, jobs, descriptors) = (granted.opening.clone(), self.jobs(), self.descriptors());
        let meter = self.meter.clone();
        let found = Arc::new(OpenBucket { bucket, kv, objects, opening, jobs, descriptors, access: *access, meter });
        *lock(&granted.found) = Some((changes, found.clone()));
        Ok(found)
    }

    /// Whether a granted bucket is to be a folder.
    #[must_use]
    pub fn has_mounts(&self) -> bool {
        self.node.is_some() && self.grants().any(|grant| grant.mount.is_some())
    }

    /// The buckets that are to be folders, with every change that was committed before. What cannot be one is not among them, and the
    /// function's log says why, once for each revision.
    ///
    /// # Cost
    /// Microseconds; after a start of the node, what [`Durable::mount`](crate::data::objects::Durable::mount) says, on a thread that
    /// may block.
    pub async fn mounts(&self, log: &LogSink) -> Vec<Mount> {
        let Some(Node { data, .. }) = &self.node else { return Vec::new() };
        let mut mounts = Vec::new();
        for granted in &self.grants {
            let grant = &granted.grant;
            let Some(guest) = &grant.mount else { continue };
            match self.mount(data, granted, log).await {
                Ok(host) => mounts.push(Mount { host, guest: guest.clone() }),
                Err(text) => self.explain_mount(grant, &text, log),
            }
        }
        mounts
    }

    async fn mount(&self, data: &Arc<Data>, granted: &Granted, log: &LogSink) -> Result<PathBuf, String> {
        let grant = &granted.grant;
        let open = self.open(grant.bucket.as_str()).map_err(|error| error.text())?;
        if let Some(why) = open.bucket.without_files() {
            return Err(why.into());
        }
        let text = |error| AccessError::from(error).text();
        let mut found = data.durable_objects().mounted(&open.bucket).map_err(text)?;
        let turn = if found.is_none() { Some(granted.mounting.lock().await) } else { None };
        if turn.is_some() {
            found = data.durable_objects().mounted(&open.bucket).map_err(text)?;
        }
        let mounted = match found {
            Some(mounted) => mounted,
            None => {
                let data = data.clone();
                let mounted = self.jobs().run(move || data.durable_objects().mount(&open.bucket)).await;
                let mounted = mounted.unwrap_or_else(|error| {
                    tracing::error!(%error, "the mounting of a bucket ended with a panic");
                    Err(DataError::Closed)
                });
                mounted.map_err(text)?
            }
        };
        drop(turn);
        if mounted.left_out > 0 {
            self.explain_mount(grant, &left_out(&mounted), log);
        }
        Ok(mounted.path)
    }

    fn explain_mount(&self, grant: &DataGrant, text: &str, log: &LogSink) {
        if lock(&self.mounts_explained).insert(grant.bucket.to_string()) {
            let guest = grant.mount.as_deref().unwrap_or_default();
            log.host(Level::Warn, format!("bucket '{}' at {guest}: {text}", grant.bucket));
        }
    }
}

/// Why a folder has not all objects of its bucket.
fn left_out(mounted: &Mounted) -> String {
    let no_paths = mounted.left_out - mounted.damaged;
    let why = [
        (
            no_paths,
            format!("their keys are no relative paths, or folders of others, or past {MOUNT_ENTRIES_MAX} files and folders"),
        ),
        (mounted.damaged, "they are damaged, put them again".to_owned()),
    ];
    let said = why.into_iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} objects are left out: {why}"));
    said.collect::<Vec<_>>().join("; ")
}

impl AccessError {
    /// What a guest is told. What the node's operator should see is in the node's log; a guest learns what a client would.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Data(error) => error.fault().detail.into_owned(),
            Self::Denied(_) | Self::Absent => self.to_string(),
        }
    }
}

impl Host {
    /// A bucket for a component. Says in the function's log what would have allowed what is denied.
    pub(super) fn open_bucket(&mut self, name: &str) -> Result<Arc<OpenBucket>, AccessError> {
        self.has_asked = true;
        let opened = self.environment.data.open(name);
        opened.inspect_err(|error| self.explain_data(error))
    }

    /// Brings up the folders that buckets are to be. Before the guest runs.
    pub async fn mount(&mut self) {
        if self.environment.data.has_mounts() {
            let (data, log) = (self.environment.data.clone(), self.log.clone());
            self.mounts = data.mounts(&log).await;
        }
    }

    /// Whether the guest may do this with a bucket that it has. Says in the function's log what would have allowed what is denied.
    pub(super) fn allow(&self, bucket: &OpenBucket, need: Access) -> Result<(), AccessError> {
        bucket.allow(need).inspect_err(|error| self.explain_data(error))
    }

    /// Says in the function's log what would have allowed what is denied.
    pub(super) fn explain_data(&self, error: &AccessError) {
        if let AccessError::Denied(denied) = error {
            self.explain(denied);
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
            true => {
                if let Some(meter) = &self.meter {
                    meter.operated();
                }
                Ok(())
            }
            // Whoever has the bucket has a grant of it.
            false => Err(denied(self.bucket.name.as_str(), How::Change, need)),
        }
    }
}

impl fmt::Debug for DataAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.grants()).finish()
    }
}

fn denied(bucket: &str, how: How, need: Access) -> AccessError {
    // A guest may ask for what is no name, and no line can grant that.
    let (what, name) = match bucket.parse::<BucketName>() {
        Ok(_) => (format!("bucket '{bucket}'"), bucket),
        Err(_) if bucket.is_empty() => ("bucket without a name".to_owned(), "NAME"),
        Err(_) => (format!("bucket '{}', which is no bucket's name", shown(bucket)), "NAME"),
    };
    AccessError::Denied(Denied { what, how, line: format!("data = [{{ bucket = \"{name}\", access = \"{need}\" }}]") })
}

/// As much of a name that a guest made up as a name may have: it is kept, and written to the log.
fn shown(name: &str) -> String {
    name.chars().take(NAME_LEN_MAX).collect()
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
        let line = "denied: change in hob.toml: [grants] data = [{ bucket = \"mine\", access = \"read-write\" }]";
        assert_eq!(refused.to_string(), line, "it may be granted once only");
        for bucket in ["other", "mine2", "", "../mine"] {
            let refused = access.open(bucket).unwrap_err();
            assert!(matches!(&refused, AccessError::Denied(denied) if denied.line.contains("\"read\"")), "{bucket}: {refused}");
        }
        let nameless = access.open("").unwrap_err().to_string();
        assert_eq!(nameless, "denied: add to hob.toml: [grants] data = [{ bucket = \"NAME\", access = \"read\" }]");
        let long = "é".repeat(1 << 20);
        let refused = access.open(&long).unwrap_err().to_string();
        assert!(refused.len() < 4 * NAME_LEN_MAX, "{} bytes are kept of a name that is none", refused.len());
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
