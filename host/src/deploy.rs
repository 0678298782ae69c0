//! Deploys: from uploaded bytes to a live revision, and back.
//!
//! Owns the order of the steps, and with it durability: files first, then the registry, then the catalog, then the answer. The steps of
//! their own are in `deploy/`: what is built (`build.rs`), what is built again (`retake.rs`), buckets (`buckets.rs`), folders (`files.rs`), and
//! which files go (`collect.rs`). Knows no HTTP. Invariant: whatever kills the process in between, the old or the new revision is live afterwards,
//! whole; what was acknowledged is there.

mod buckets;
mod build;
mod collect;
mod files;
mod retake;

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use self::build::{Frozen, Keys, Made};
use crate::artifacts::{Artifacts, Bundle, BundleLimits, FileId, Upload, Uploaded};
use crate::config;
use crate::crash;
use crate::data::Data;
use crate::dispatch::files::Files;
use crate::dispatch::templates::blocking;
use crate::dispatch::{Change, Dispatcher, no_such_function};
use crate::engine::Engine;
use crate::engine::build::{Builder, Job, Said};
use crate::fault::{Code, Fault};
use crate::id::{BucketName, Digest, FunctionName, RevisionNumber, TenantId};
use crate::idempotency::KeptAnswer;
use crate::manifest::Manifest;
use crate::quota::Quota;
use crate::registry::{FunctionRecord, NewRevision, Precondition, PublishError, Registry, RevisionRecord, Terms};
use crate::secrets::Secrets;
use crate::signing::{Message, PublicKey, Signed};
use crate::telemetry::logs::LogSink;

/// What a function's initialisation and warm-up may leave in its log, in bytes.
const BUILD_LOG_BYTES_MAX: u64 = 64 << 10;

/// What a deploy sends.
#[derive(Debug)]
pub struct Sent {
    /// The module or component.
    pub wasm: Uploaded,
    /// The folders that the manifest grants and that lie beside it.
    pub bundle: Option<Bundle>,
    /// What its author says about it.
    pub manifest: Manifest,
}

/// SHA-256 of the parts of a deploy, as they came.
#[derive(Debug, Clone, Copy)]
pub struct Digests {
    /// Of the module or component.
    pub wasm: Digest,
    /// Of the manifest's text; of no text if there is none.
    pub manifest: Digest,
    /// Of the archive of files; of no bytes if there is none.
    pub files: Digest,
}

/// What deployed functions may be granted.
#[derive(Debug)]
pub struct Outside {
    /// Buckets, which deploys make.
    pub data: Arc<Data>,
    /// Folders.
    pub files: Files,
    /// Secrets.
    pub secrets: Arc<Secrets>,
}

/// Changes what is live. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Deployer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    artifacts: Artifacts,
    registry: Arc<Registry>,
    /// Where buckets are made; none where nobody declares any.
    data: Option<Arc<Data>>,
    /// Where folders are found; none where nobody grants any.
    files: Option<Files>,
    /// Where secrets are; none where nobody reads any.
    secrets: Option<Arc<Secrets>>,
    builder: Arc<Builder>,
    engine: Engine,
    dispatcher: Dispatcher,
    config: config::Data,
    /// Told after each change that may have left files behind.
    collect: Notify,
    /// Files for the collector to look at, besides those that the registry released.
    candidates: Mutex<Vec<FileId>>,
    /// Held while the files of one build are put in place.
    keeping: Mutex<()>,
}

impl Deployer {
    /// A deployer over the parts that `dispatcher` reads.
    #[must_use]
    pub fn new(
        artifacts: Artifacts,
        registry: Arc<Registry>,
        outside: Option<Outside>,
        builder: Arc<Builder>,
        engine: Engine,
        dispatcher: Dispatcher,
        config: config::Data,
    ) -> Self {
        let (collect, candidates, keeping) = (Notify::new(), Mutex::default(), Mutex::default());
        let (data, files, secrets) = match outside {
            Some(Outside { data, files, secrets }) => (Some(data), Some(files), Some(secrets)),
            None => (None, None, None),
        };
        let inner = Inner {
            artifacts,
            registry,
            data,
            files,
            secrets,
            builder,
            engine,
            dispatcher,
            config,
            collect,
            candidates,
            keeping,
        };
        let this = Self(Arc::new(inner));
        this.0.dispatcher.retake_by(this.retake());
        this
    }

    /// Whether builds can be made: see [`Builder::is_able`].
    #[must_use]
    pub fn can_build(&self) -> bool {
        self.0.builder.is_able()
    }

    /// Largest upload, in bytes.
    #[must_use]
    pub fn upload_bytes_max(&self) -> u64 {
        self.0.config.upload_bytes_max.0
    }

    /// Longest time that an upload may take.
    #[must_use]
    pub fn upload_timeout(&self) -> Duration {
        self.0.config.upload_timeout.0
    }

    /// A place to write an upload to. Writing to it and finishing it block.
    ///
    /// # Errors
    /// `storage-full`, and `internal` when the disk fails.
    pub fn create_upload(&self) -> Result<Upload, Fault> {
        self.0.artifacts.create_upload().map_err(|error| error.fault())
    }

    /// Where folders of deploys are unpacked, and how much each may bring.
    #[must_use]
    pub fn bundles(&self) -> (Artifacts, BundleLimits) {
        (self.0.artifacts.clone(), BundleLimits::new(self.0.config.bundle_bytes_max.0))
    }

    /// Builds what was sent and makes it the live revision of `name`. Returns the function, and the buckets that were made for it.
    ///
    /// # Errors
    /// A fault of the build (422, 503), of the precondition or a taken route (409, 412), or of storage (507).
    /// # Cancellation
    /// Until the build is done nothing has happened; after that it goes on to its end without whoever asked for it.
    pub async fn deploy(
        &self,
        tenant: TenantId,
        name: FunctionName,
        sent: Sent,
        terms: impl Into<Terms<FunctionRecord>>,
        allowed: Allowed,
    ) -> Result<(FunctionRecord, Vec<BucketName>), Fault> {
        if let Some(other) = sent.manifest.name.as_ref().filter(|other| **other != name) {
            let fault = Fault::new(Code::BadManifest, format!("the manifest is of '{other}', but the request deploys '{name}'"));
            return Err(fault.hint("change 'name' in hob.toml, or the address of the request"));
        }
        let templates = self.0.dispatcher.templates().clone();
        let deployed = self.build_and_publish(tenant, name, sent, terms.into(), allowed).await;
        deployed.inspect_err(|fault| {
            if fault.is_exhausted() {
                // For whoever tries again.
                templates.relieve();
            }
        })
    }

    async fn build_and_publish(
        &self,
        tenant: TenantId,
        name: FunctionName,
        sent: Sent,
        terms: Terms<FunctionRecord>,
        allowed: Allowed,
    ) -> Result<(FunctionRecord, Vec<BucketName>), Fault> {
        let (Sent { wasm: uploaded, bundle, manifest }, inner) = (sent, self.0.clone());
        inner.check(&tenant, &name, &terms.precondition).await?;
        let folders = inner.folders(&tenant, &manifest.grants, bundle.as_ref())?;
        let digest = bundle.as_ref().map(Bundle::digest);
        let secrets = inner.secrets_of_init(&tenant, &manifest.grants).await?;
        let frozen = Frozen { bundle: digest, secrets: secrets.as_ref().map(|secrets| secrets.digest) };
        let keys = Keys::of(inner.dispatcher.templates(), &tenant, &name, uploaded.digest(), frozen, &manifest);
        let files = keys.files(&tenant);
        let pin = inner.artifacts.pin(files.clone());
        let deploying = inner.dispatcher.templates().deploying();
        let job = Job::deploy(&name, &manifest).reading(folders, digest).with_secrets(&manifest.grants.secrets, secrets);
        let made = inner.find_or_make(&tenant, keys, job, async { open_upload(&uploaded) }).await?;
        let this = inner.clone();
        let publish = move || {
            let (_pin, _deploying) = (pin, deploying);
            let (wasm, wasm_bytes) = (uploaded.digest(), uploaded.bytes());
            inner.artifacts.put_wasm(&tenant, uploaded).map_err(|error| error.fault())?;
            let brought = bundle.as_ref().map(files::record);
            bundle.map_or(Ok(()), |bundle| inner.artifacts.put_bundle(&tenant, bundle)).map_err(|error| error.fault())?;
            let Made { built, key, staged } = made;
            let snapshot = inner.keep(&tenant, keys, &built, key, staged)?;
            // The first request need not wait for the disk, and whatever cannot be loaded here must not become live.
            let artifact = inner.artifacts.verify_artifact(&tenant, key).map_err(|error| error.fault())?;
            let shape = built.shape().map_err(Fault::internal)?;
            let template = inner.load(shape, &artifact)?;
            let buckets = inner.make_buckets(&tenant, &name, &manifest, &terms.precondition)?;
            let mut notes = built.notes;
            notes.extend(manifest.notes());
            let new = NewRevision {
                wasm,
                wasm_bytes,
                artifact: key,
                artifact_bytes: inner.artifacts.file_len(&FileId::artifact(&tenant, key)).unwrap_or_default(),
                kind: shape.to_string(),
                manifest,
                snapshot,
                bundle: brought,
                notes,
                signed_version: allowed.version,
            };
            let change = inner.dispatcher.begin_change(&tenant, &name);
            let (keep, functions_max) = (inner.config.revisions_max, inner.functions_max(&tenant));
            let record = inner.registry.publish(&tenant, &name, new, terms, keep, functions_max);
            let record = record.map_err(|error| inner.refused(&tenant, not_made(&change, &tenant, &name, error)))?;
            inner.dispatcher.templates().insert(&tenant, key, Arc::new(template));
            change.publish(record.clone()).map_err(Fault::internal)?;
            crash::point("catalog-swapped");
            inner.log(&record, &built.log);
            inner.settle();
            inner.engine.metrics().deploys.inc();
            Ok((record, buckets))
        };
        let left_behind = move |_: &Fault| {
            // The files may be in place; what another revision refers to stays.
            this.candidates().extend(files);
            this.collect.notify_one();
        };
        let done = blocking(move || publish().inspect_err(left_behind)).await?;
        crash::point("acknowledged");
        done
    }

    /// Checks the signature of what is to be deployed, if the tenant has keys.
    ///
    /// # Errors
    /// `bad-signature` if there is none, or it is of none of the tenant's keys or of something else; `precondition-failed` if its version is
    /// not higher than that of every deploy before, which is checked again when the revision is made live.
    pub async fn check_signature(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        digests: Digests,
        signed: Option<Signed>,
    ) -> Result<Allowed, Fault> {
        let (inner, tenant, name) = (self.0.clone(), tenant.clone(), name.clone());
        blocking(move || {
            let keys = inner.keys(&tenant)?;
            if keys.is_empty() {
                return Ok(Allowed { version: None });
            }
            let bad = |detail| Err(Fault::new(Code::BadSignature, detail).hint("hob deploy --sign-key FILE --signed-version N"));
            let Some(Signed { version, signature }) = signed else {
                return bad("deploys of this tenant must be signed, and this one is not");
            };
            let Digests { wasm, manifest, files } = digests;
            let message = Message { tenant: &tenant, function: &name, version, wasm, manifest, files };
            if !keys.iter().any(|key| key.verifies(&message, &signature)) {
                return bad("the signature is of none of the tenant's keys, or of something else than was sent");
            }
            let before = inner.registry.signed_version(&tenant, &name).map_err(|error| error.fault())?;
            if version <= before {
                return Err(PublishError::OldVersion { found: version, before }.fault());
            }
            Ok(Allowed { version: Some(version) })
        })
        .await?
    }

    /// Whether deploys of a tenant must be signed.
    ///
    /// # Errors
    /// `internal` when the registry cannot be read.
    pub async fn asks_for_signatures(&self, tenant: &TenantId) -> Result<bool, Fault> {
        let (inner, tenant) = (self.0.clone(), tenant.clone());
        blocking(move || inner.keys(&tenant).map(|keys| !keys.is_empty())).await?
    }

    /// The kept answer to a key that was sent with a change of a function. Blocks.
    ///
    /// # Errors
    /// `internal` when the registry cannot be read.
    pub fn answer(&self, tenant: &TenantId, id: &Digest) -> Result<Option<KeptAnswer>, Fault> {
        self.0.registry.answer(tenant, id).map_err(|error| error.fault())
    }

    /// Makes an older revision live again; see [`Registry::rollback`]. Returns the function, and the buckets that were made for it.
    ///
    /// # Errors
    /// `not-found`, and as [`Deployer::deploy`].
    pub async fn rollback(
        &self,
        tenant: TenantId,
        name: FunctionName,
        to: Option<RevisionNumber>,
        terms: Terms<FunctionRecord>,
    ) -> Result<(FunctionRecord, Vec<BucketName>), Fault> {
        let inner = self.0.clone();
        blocking(move || {
            let buckets = inner.check_rollback(&tenant, &name, to, &terms.precondition)?;
            let change = inner.dispatcher.begin_change(&tenant, &name);
            let record = inner.registry.rollback(&tenant, &name, to, terms);
            let record = record.map_err(|error| not_made(&change, &tenant, &name, error).fault())?;
            change.publish(record.clone()).map_err(Fault::internal)?;
            Ok((record, buckets))
        })
        .await?
    }

    /// Removes a function. Invocations that run finish.
    ///
    /// # Errors
    /// `not-found`, and as [`Deployer::deploy`].
    pub async fn remove(&self, tenant: TenantId, name: FunctionName, terms: Terms<bool>) -> Result<(), Fault> {
        let inner = self.0.clone();
        blocking(move || {
            let change = inner.dispatcher.begin_change(&tenant, &name);
            let removed = inner.registry.remove(&tenant, &name, terms);
            if !removed.map_err(|error| not_made(&change, &tenant, &name, error).fault())? {
                return Err(no_such_function(&name));
            }
            change.remove(&tenant, &name);
            inner.settle();
            Ok(())
        })
        .await?
    }

    /// The functions of a tenant in the order of their names, from the one after `after`, at most `count`.
    ///
    /// # Errors
    /// `internal` when the registry cannot be read.
    pub async fn list(&self, tenant: TenantId, after: Option<FunctionName>, count: usize) -> Result<Vec<FunctionRecord>, Fault> {
        let inner = self.0.clone();
        blocking(move || inner.registry.list(&tenant, after.as_ref(), count).map_err(|error| error.fault())).await?
    }

    /// One function.
    ///
    /// # Errors
    /// `not-found`, and `internal` when the registry cannot be read.
    pub async fn get(&self, tenant: TenantId, name: FunctionName) -> Result<FunctionRecord, Fault> {
        let inner = self.0.clone();
        blocking(move || {
            let found = inner.registry.function(&tenant, &name).map_err(|error| error.fault())?;
            found.ok_or_else(|| no_such_function(&name))
        })
        .await?
    }

    /// The kept revisions of a function, newest first.
    ///
    /// # Errors
    /// As [`Deployer::get`].
    pub async fn revisions(&self, tenant: TenantId, name: FunctionName) -> Result<Vec<RevisionRecord>, Fault> {
        let inner = self.0.clone();
        blocking(move || {
            let found = inner.registry.revisions(&tenant, &name).map_err(|error| error.fault())?;
            if found.is_empty() { Err(no_such_function(&name)) } else { Ok(found) }
        })
        .await?
    }
}

/// That something may be deployed, and as which version it was signed.
#[derive(Debug, Clone, Copy)]
pub struct Allowed {
    version: Option<u64>,
}

impl Allowed {
    /// What whoever runs the process deploys needs no signature.
    pub const LOCAL: Self = Self { version: None };
}

impl Inner {
    /// Whether a precondition holds by now; it is checked again when the change is made.
    async fn check(self: &Arc<Self>, tenant: &TenantId, name: &FunctionName, precondition: &Precondition) -> Result<(), Fault> {
        if *precondition == Precondition::Any {
            return Ok(());
        }
        let (inner, tenant, name, precondition) = (self.clone(), tenant.clone(), name.clone(), precondition.clone());
        blocking(move || {
            let found = inner.registry.function(&tenant, &name).map_err(|error| error.fault())?;
            precondition.check(found.map(|found| found.etag())).map_err(|error| error.fault())
        })
        .await?
    }

    /// The keys that deploys of a tenant are signed with.
    fn keys(&self, tenant: &TenantId) -> Result<Vec<PublicKey>, Fault> {
        let found = self.registry.tenant(tenant).map_err(|error| error.fault())?;
        Ok(found.map(|tenant| tenant.keys.into_values().collect()).unwrap_or_default())
    }

    /// Functions that a tenant may have: by its quota, or what every tenant may have.
    fn functions_max(&self, tenant: &TenantId) -> usize {
        let quota = self.dispatcher.tenant_meter(tenant).quota(Quota::Functions);
        self.config.functions_max.min(usize::try_from(quota).unwrap_or(usize::MAX))
    }

    /// Why a revision was not made live.
    fn refused(&self, tenant: &TenantId, error: PublishError) -> Fault {
        match error {
            PublishError::TooManyFunctions { max, .. } if max < self.config.functions_max => {
                self.dispatcher.tenant_meter(tenant).is_full(Quota::Functions)
            }
            error => error.fault(),
        }
    }

    /// As a deploy would: the buckets of an older revision may be gone since, or be others. What is not meant for the revision that is
    /// live makes none; the registry decides that again.
    fn check_rollback(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        to: Option<RevisionNumber>,
        precondition: &Precondition,
    ) -> Result<Vec<BucketName>, Fault> {
        let Some(found) = self.registry.function(tenant, name).map_err(|error| error.fault())? else { return Ok(Vec::new()) };
        precondition.check(Some(found.etag())).map_err(|error| error.fault())?;
        let mut kept = self.registry.revisions(tenant, name).map_err(|error| error.fault())?.into_iter();
        let live = found.live.number;
        // What is not there the registry refuses.
        let Some(target) = kept.find(|kept| to.map_or(kept.number < live, |wanted| kept.number == wanted)) else {
            return Ok(Vec::new());
        };
        self.check_folders(tenant, &target.manifest.grants)?;
        self.make_buckets(tenant, name, &target.manifest, precondition)
    }

    /// Puts what a function said in its build into its log.
    fn log(&self, record: &FunctionRecord, said: &[Said]) {
        // It may be gone again.
        let Ok(function) = self.dispatcher.function(&record.tenant, &record.name) else { return };
        let sink = LogSink::new(function.log.clone(), self.dispatcher.next_id(), record.live.number, BUILD_LOG_BYTES_MAX);
        for said in said {
            match said.by_guest() {
                Some((source, level)) => sink.guest(source, level, said.text.as_bytes()),
                // Said once for a revision, in its build or later.
                None => function.environment.explained.say(said.text.clone(), &sink),
            }
        }
    }
}

fn open_upload(uploaded: &Uploaded) -> Result<File, Fault> {
    File::open(uploaded.path()).map_err(|error| Fault::system(&error))
}

/// The fault for a change that failed. Where the registry itself did, the change may have been made: what it holds is shown.
fn not_made(change: &Change<'_>, tenant: &TenantId, name: &FunctionName, error: PublishError) -> PublishError {
    if let PublishError::Registry(_) = error {
        change.resync(tenant, name);
    }
    error
}
