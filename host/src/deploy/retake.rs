//! Secrets in a build: which ones it gets, and another build when they have changed.
//!
//! Owns the order of the steps of such a build; each is a deploy's own. Knows nothing about when one is due (`dispatch/current.rs`). Invariant:
//! a revision keeps its number, and what is made live was built of what that revision has.

use std::sync::Arc;

use futures_util::FutureExt as _;

use super::{Deployer, Frozen, Inner, Keys, Made, not_made};
use crate::artifacts::FileId;
use crate::dispatch::templates::{blocking, lost};
use crate::dispatch::{Retake, no_such_function};
use crate::engine::build::Job;
use crate::fault::{Code, Fault};
use crate::grants::ManifestGrants;
use crate::id::{FunctionName, TenantId};
use crate::registry::{FunctionRecord, Retaken};
use crate::secrets::{InitError, InitSecrets};

impl Deployer {
    /// What builds the live revision of a function again. It does nothing any more once the deployer is gone.
    pub(super) fn retake(&self) -> Retake {
        let inner = Arc::downgrade(&self.0);
        Box::new(move |tenant, name| {
            let inner = inner.clone();
            async move {
                let gone = || Fault::new(Code::Draining, "the node is shutting down");
                inner.upgrade().ok_or_else(gone)?.retake(tenant, name).await
            }
            .boxed()
        })
    }
}

impl Inner {
    /// What the initialisation of a function may read.
    pub(super) async fn secrets_of_init(
        self: &Arc<Self>,
        tenant: &TenantId,
        grants: &ManifestGrants,
    ) -> Result<Option<InitSecrets>, Fault> {
        if !grants.secrets.iter().any(|grant| grant.init) {
            return Ok(None);
        }
        let (inner, tenant, grants) = (self.clone(), tenant.clone(), grants.secrets.clone());
        blocking(move || {
            let Some(secrets) = &inner.secrets else {
                return Err(Fault::new(
                    Code::SecretUnavailable,
                    "there are no secrets here, and hob.toml wants some for the initialisation",
                ));
            };
            secrets.of_init(&tenant, &grants).map_err(|error| match error {
                InitError::Missing(name) => {
                    let detail =
                        format!("there is no secret '{name}', and hob.toml wants it for the initialisation (init = true)");
                    Fault::new(Code::SecretUnavailable, detail).hint(format!("set it first: hob secret set {name}"))
                }
                InitError::Secret(error) => error.fault(),
            })
        })
        .await?
    }

    async fn retake(self: &Arc<Self>, tenant: TenantId, name: FunctionName) -> Result<(), Fault> {
        let record = self.live(&tenant, &name).await?;
        let FunctionRecord { live, .. } = &record;
        let manifest = &live.manifest;
        let secrets = self.secrets_of_init(&tenant, &manifest.grants).await?;
        let bundle = live.bundle.as_ref().map(|bundle| bundle.digest);
        let frozen = Frozen { bundle, secrets: secrets.as_ref().map(|secrets| secrets.digest) };
        let keys = Keys::of(self.dispatcher.templates(), &tenant, &name, live.wasm, frozen, manifest);
        let pin = self.artifacts.pin(keys.files(&tenant));
        let deploying = self.dispatcher.templates().deploying();
        let path = bundle.map(|bundle| self.artifacts.path(&FileId::bundle(&tenant, bundle)));
        let folders = match &self.files {
            Some(files) => files.find(&tenant, &manifest.grants.files, path.as_deref()),
            None => Ok(Vec::new()),
        };
        let folders = folders.map_err(|error| Fault::new(Code::BadManifest, error.to_string()))?;
        let job = Job::deploy(&name, manifest).reading(folders, bundle).with_secrets(&manifest.grants.secrets, secrets);
        let (artifacts, of, wasm) = (self.artifacts.clone(), tenant.clone(), live.wasm);
        let wasm = async { blocking(move || artifacts.open_wasm(&of, wasm)).await?.map_err(|error| lost(&error)) };
        let made = self.find_or_make(&tenant, keys, job, wasm).await?;
        let inner = self.clone();
        blocking(move || {
            let _until_then = (pin, deploying);
            inner.publish_again(&record, keys, made)
        })
        .await?
    }

    async fn live(self: &Arc<Self>, tenant: &TenantId, name: &FunctionName) -> Result<FunctionRecord, Fault> {
        let (inner, tenant, name) = (self.clone(), tenant.clone(), name.clone());
        blocking(move || {
            let found = inner.registry.function(&tenant, &name).map_err(|error| error.fault())?;
            found.ok_or_else(|| no_such_function(&name))
        })
        .await?
    }

    /// Puts what was made in place of what `before` has, unless another revision is live by now.
    fn publish_again(&self, before: &FunctionRecord, keys: Keys, made: Made) -> Result<(), Fault> {
        let Made { built, key, staged } = made;
        let FunctionRecord { tenant, name, live, .. } = before;
        let snapshot = self.keep(tenant, keys, &built, key, staged)?;
        let artifact = self.artifacts.verify_artifact(tenant, key).map_err(|error| error.fault())?;
        let template = self.load(built.shape().map_err(Fault::internal)?, &artifact)?;
        let mut notes = built.notes;
        notes.extend(live.manifest.notes());
        let artifact_bytes = self.artifacts.file_len(&FileId::artifact(tenant, key)).unwrap_or_default();
        let taken = Retaken { artifact: key, artifact_bytes, snapshot, notes };
        let change = self.dispatcher.begin_change(tenant, name);
        let retaken = self.registry.retake(tenant, name, live.number, taken);
        if let Some(record) = retaken.map_err(|error| not_made(&change, tenant, name, error).fault())? {
            self.dispatcher.templates().insert(tenant, key, Arc::new(template));
            change.publish(record.clone()).map_err(Fault::internal)?;
            self.log(&record, &built.log);
        }
        self.settle();
        Ok(())
    }
}
