//! Deploys: from uploaded bytes to a live revision, and back.
//!
//! Owns the order of the steps, and with it durability: files first, then the registry, then the catalog, then the answer. Knows
//! no HTTP. Invariant: whatever kills the process in between, the old or the new revision is live afterwards, whole; what was
//! acknowledged is there.

use std::sync::Arc;

use tokio::sync::Notify;

use crate::artifacts::{Artifacts, Contents, FileId, Upload, Uploaded};
use crate::config;
use crate::crash;
use crate::dispatch::templates::blocking;
use crate::dispatch::{Dispatcher, no_such_function};
use crate::engine::build::{Builder, Built};
use crate::engine::{Engine, Shape};
use crate::fault::{Code, Fault};
use crate::id::{FunctionName, RevisionNumber, TenantId};
use crate::limits::Limit;
use crate::manifest::Manifest;
use crate::registry::{FunctionRecord, NewRevision, Precondition, Registry, RevisionRecord};

/// Changes what is live. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Deployer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    artifacts: Artifacts,
    registry: Arc<Registry>,
    builder: Arc<Builder>,
    engine: Engine,
    dispatcher: Dispatcher,
    config: config::Data,
    /// Told after each change that may have left files behind.
    collect: Notify,
}

impl Deployer {
    /// A deployer over the parts that `dispatcher` reads.
    #[must_use]
    pub fn new(
        artifacts: Artifacts,
        registry: Arc<Registry>,
        builder: Arc<Builder>,
        engine: Engine,
        dispatcher: Dispatcher,
        config: config::Data,
    ) -> Self {
        Self(Arc::new(Inner { artifacts, registry, builder, engine, dispatcher, config, collect: Notify::new() }))
    }

    /// Largest upload, in bytes.
    #[must_use]
    pub fn upload_bytes_max(&self) -> u64 {
        self.0.config.upload_bytes_max.0
    }

    /// A place to write an upload to. Writing to it and finishing it block.
    ///
    /// # Errors
    /// `storage-full`, and `internal` when the disk fails.
    pub fn create_upload(&self) -> Result<Upload, Fault> {
        self.0.artifacts.create_upload().map_err(|error| error.fault())
    }

    /// Builds an upload and makes it the live revision of `name`. Returns the function and whether it is a new one.
    ///
    /// # Errors
    /// A fault of the build (422, 503), of the precondition or a taken route (409, 412), or of storage (507).
    /// # Cancellation
    /// Until the build is done nothing has happened; after that it goes on to its end without whoever asked for it.
    pub async fn deploy(
        &self,
        tenant: TenantId,
        name: FunctionName,
        uploaded: Uploaded,
        manifest: Manifest,
        precondition: Precondition,
    ) -> Result<(FunctionRecord, bool), Fault> {
        if let Some(other) = manifest.name.as_ref().filter(|other| **other != name) {
            let fault = Fault::new(Code::BadManifest, format!("the manifest is of '{other}', but the request deploys '{name}'"));
            return Err(fault.hint("change 'name' in hob.toml, or the address of the request"));
        }
        let inner = self.0.clone();
        if precondition != Precondition::Any {
            let (inner, tenant, name, precondition) = (inner.clone(), tenant.clone(), name.clone(), precondition.clone());
            blocking(move || {
                let found = inner.registry.function(&tenant, &name).map_err(|error| error.fault())?;
                precondition.check(found.map(|found| found.etag())).map_err(|error| error.fault())
            })
            .await??;
        }
        let key = inner.dispatcher.templates().artifact_key(&tenant, &uploaded.digest(), &manifest);
        let pin = inner.artifacts.pin([FileId::wasm(&tenant, uploaded.digest()), FileId::artifact(&tenant, key)]);
        let deploying = inner.dispatcher.templates().deploying();
        let staged = inner.artifacts.stage_build();
        let wasm = std::fs::File::open(uploaded.path()).map_err(Fault::internal)?;
        let built = inner.builder.build(wasm, staged.native.path()).await?;
        inner.engine.metrics().builds.inc();
        crash::point("build-done");
        let shape = check(&built, &manifest)?;
        let publish = move || {
            let (_pin, _deploying) = (pin, deploying);
            let (wasm, wasm_bytes) = (uploaded.digest(), uploaded.bytes());
            inner.artifacts.put_wasm(&tenant, uploaded).map_err(|error| error.fault())?;
            let put = inner.artifacts.put_artifact(&tenant, key, staged.native, Contents::default());
            let artifact_bytes = put.map_err(|error| error.fault())?;
            // The first request need not wait for the disk, and whatever cannot be loaded here must not become live.
            let artifact = inner.artifacts.verify_artifact(&tenant, key).map_err(|error| error.fault())?;
            let template = inner.engine.load(shape, &artifact).map_err(|error| {
                // What the build process cannot see: whether the node's pool takes the whole of a component.
                tracing::warn!(%error, "a module that was built cannot be loaded");
                Fault::new(Code::ModuleOverCap, "the component has more instances, memories or tables than one function may have")
            })?;
            let new = NewRevision {
                wasm,
                wasm_bytes,
                artifact: key,
                artifact_bytes,
                kind: shape.to_string(),
                manifest,
                snapshot: None,
                notes: Vec::new(),
            };
            let change = inner.dispatcher.begin_change();
            let (keep, functions_max) = (inner.config.revisions_max, inner.config.functions_max);
            let record =
                inner.registry.publish(&tenant, &name, new, &precondition, keep, functions_max).map_err(|error| error.fault())?;
            inner.dispatcher.templates().insert(&tenant, key, Arc::new(template));
            change.publish(record.clone()).map_err(Fault::internal)?;
            crash::point("catalog-swapped");
            inner.settle();
            inner.engine.metrics().deploys.inc();
            let is_new = record.live.number == RevisionNumber::FIRST;
            Ok((record, is_new))
        };
        let done = blocking(publish).await?;
        crash::point("acknowledged");
        done
    }

    /// Makes an older revision live again; see [`Registry::rollback`].
    ///
    /// # Errors
    /// `not-found`, and as [`Deployer::deploy`].
    pub async fn rollback(
        &self,
        tenant: TenantId,
        name: FunctionName,
        to: Option<RevisionNumber>,
        precondition: Precondition,
    ) -> Result<FunctionRecord, Fault> {
        let inner = self.0.clone();
        blocking(move || {
            let change = inner.dispatcher.begin_change();
            let record = inner.registry.rollback(&tenant, &name, to, &precondition).map_err(|error| error.fault())?;
            change.publish(record.clone()).map_err(Fault::internal)?;
            Ok(record)
        })
        .await?
    }

    /// Removes a function. Invocations that run finish.
    ///
    /// # Errors
    /// `not-found`, and as [`Deployer::deploy`].
    pub async fn remove(&self, tenant: TenantId, name: FunctionName, precondition: Precondition) -> Result<(), Fault> {
        let inner = self.0.clone();
        blocking(move || {
            let change = inner.dispatcher.begin_change();
            if !inner.registry.remove(&tenant, &name, &precondition).map_err(|error| error.fault())? {
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
        blocking(move || {
            let mut functions = inner.registry.functions().map_err(|error| error.fault())?;
            functions.retain(|function| function.tenant == tenant && after.as_ref().is_none_or(|after| function.name > *after));
            functions.sort_by(|a, b| a.name.cmp(&b.name));
            functions.truncate(count);
            Ok(functions)
        })
        .await?
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

    /// Says that there may be files that nothing needs any more.
    pub fn collect_soon(&self) {
        self.0.settle();
    }

    /// Removes files that nothing needs any more, each time there may be some, and never ends by itself.
    ///
    /// # Cancellation
    /// A collection that began goes on to its end.
    pub async fn collect_forever(&self) {
        loop {
            let inner = self.0.clone();
            match blocking(move || inner.collect_once()).await {
                Ok(Ok(files)) => {
                    self.0.engine.metrics().collected.inc_by(files);
                    self.0.settle_metrics();
                }
                Ok(Err(fault)) | Err(fault) => {
                    tracing::error!(%fault, "files that nothing needs could not be removed; the next deploy tries again")
                }
            }
            self.0.collect.notified().await;
        }
    }
}

impl Inner {
    fn settle(&self) {
        self.settle_metrics();
        self.collect.notify_one();
    }

    fn settle_metrics(&self) {
        self.engine.metrics().data_bytes.set(self.artifacts.used_bytes());
    }

    fn collect_once(&self) -> Result<u64, Fault> {
        let referenced = || {
            let revisions = self.registry.references().map_err(|error| CollectError(error.fault()))?;
            let files = revisions
                .into_iter()
                .flat_map(|(tenant, wasm, artifact)| [FileId::wasm(&tenant, wasm), FileId::artifact(&tenant, artifact)]);
            Ok(files.collect())
        };
        self.artifacts.collect(referenced).map(|collected| collected.files).map_err(|CollectError(fault)| fault)
    }
}

/// Either part's error on the way out of a collection.
struct CollectError(Fault);

impl From<crate::artifacts::ArtifactError> for CollectError {
    fn from(error: crate::artifacts::ArtifactError) -> Self {
        Self(error.fault())
    }
}

/// What can be told now that would otherwise fail at each request.
fn check(built: &Built, manifest: &Manifest) -> Result<Shape, Fault> {
    let limit = manifest.limits.get(Limit::Memory);
    if built.memory_bytes_min > limit {
        let detail =
            format!("its memories begin with {} bytes, more than the function's limit of {limit}", built.memory_bytes_min);
        return Err(Fault::new(Code::NotDeployable, detail).hint("raise 'memory' in [limits] of hob.toml"));
    }
    built.shape().map_err(Fault::internal)
}
