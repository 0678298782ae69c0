//! The buckets of a deploy: which of them it makes, and whether its triggers and folders can work with them.
//!
//! Owns the order: all that a manifest says of buckets, and whether the revision could be made live, is checked before the first is made. Knows
//! nothing about what is in them. Invariant: a deploy that is refused leaves no bucket behind. What runs out or is taken between a check and
//! the making, by the hands of others, may still end it half-way: what was made stays then, because others may use it by now.

use super::Inner;
use crate::bucket::BucketDeclaration;
use crate::data::{BUCKETS_MAX, Data, DataError, without_files};
use crate::fault::{Code, Fault};
use crate::grants::DataGrant;
use crate::id::{BucketName, FunctionName, TenantId};
use crate::manifest::Manifest;
use crate::registry::Precondition;

impl Inner {
    /// Makes the buckets that a manifest declares and nobody has made. One that exists keeps its quotas. Triggers must find theirs, and
    /// folders must be able to be some. Returns the names of those it made.
    pub(super) fn make_buckets(
        &self,
        tenant: &TenantId,
        name: &FunctionName,
        manifest: &Manifest,
        precondition: &Precondition,
    ) -> Result<Vec<BucketName>, Fault> {
        let Some(data) = &self.data else { return Ok(Vec::new()) };
        let mut missing = Vec::new();
        for declared in &manifest.bucket {
            if data.check_bucket(tenant, declared).map_err(|error| error.fault())?.is_none() {
                missing.push(declared);
            }
        }
        data.check_triggers(tenant, &manifest.trigger, &manifest.bucket).map_err(|error| match error {
            DataError::NoSuchBucket { .. } | DataError::Invalid { .. } => {
                let fault = Fault::new(Code::BadManifest, format!("a trigger in hob.toml cannot work: {error}"));
                fault.hint("make a durable bucket, or declare one with [[bucket]]")
            }
            error => error.fault(),
        })?;
        check_mounts(data, tenant, manifest)?;
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        check_count(data, tenant, missing.len()).map_err(|error| error.fault())?;
        self.dispatcher.check_room(data, tenant, &missing)?;
        let could = self.registry.check_publish(tenant, name, manifest, precondition, self.functions_max(tenant));
        could.map_err(|error| self.refused(tenant, error))?;
        let mut made = Vec::new();
        for BucketDeclaration { name, spec, origin } in missing {
            // Somebody else may have made it a moment ago.
            let (_bucket, is_new) = self.dispatcher.put_bucket(data, tenant, name, *spec, origin.as_ref())?;
            if is_new {
                made.push(name.clone());
            }
        }
        Ok(made)
    }
}

/// Refuses what could never be: a folder of a bucket that has no files. One that is not there yet may be made later.
fn check_mounts(data: &Data, tenant: &TenantId, manifest: &Manifest) -> Result<(), Fault> {
    for DataGrant { bucket, .. } in manifest.grants.data.iter().filter(|grant| grant.mount.is_some()) {
        let why = match data.bucket(tenant, bucket).map_err(|error| error.fault())? {
            Some(found) => found.without_files(),
            None => {
                let declared = manifest.bucket.iter().find(|declared| declared.name == *bucket);
                declared.and_then(|declared| without_files(declared.spec.durability, declared.origin.as_ref()))
            }
        };
        if let Some(why) = why {
            let detail = format!("'grants.data.mount': bucket '{bucket}' cannot be a folder: {why}");
            return Err(
                Fault::new(Code::BadManifest, detail).hint("leave 'mount' out, or name a durable bucket without an origin")
            );
        }
    }
    Ok(())
}

fn check_count(data: &Data, tenant: &TenantId, missing: usize) -> Result<(), DataError> {
    let sound = data.buckets(tenant, None, usize::try_from(BUCKETS_MAX).unwrap_or(usize::MAX))?.len();
    let wanted = (sound + data.damaged_buckets(tenant)?.len() + missing) as u64;
    match wanted > BUCKETS_MAX {
        true => Err(DataError::Quota { unit: "buckets", wanted, max: BUCKETS_MAX }),
        false => Ok(()),
    }
}
