//! Making buckets within what their tenant may store.
//!
//! Owns the sum that is held against the quota `bytes_stored`: what the buckets of a tenant may hold by their own quotas, so that no write has to ask.
//! Knows nothing about what is in them. Invariant: with a quota, buckets of one tenant are made and made larger one after the other.

use std::sync::PoisonError;

use super::Dispatcher;
use crate::bucket::{BucketDeclaration, BucketSpec, OriginUrl};
use crate::data::{Bucket, Data, DataError};
use crate::fault::Fault;
use crate::id::{BucketName, TenantId};
use crate::quota::{NONE, Quota};

/// Buckets that are read at once to be added up.
const PAGE: usize = 1000;

impl Dispatcher {
    /// [`Data::put_bucket_of`], unless the tenant may not store so much. What makes no bucket larger is not refused. Blocks.
    ///
    /// # Errors
    /// `storage-full` past the quota, and those of the data.
    pub fn put_bucket(
        &self,
        data: &Data,
        tenant: &TenantId,
        name: &BucketName,
        spec: BucketSpec,
        origin: Option<&OriginUrl>,
    ) -> Result<(Bucket, bool), Fault> {
        let put = || data.put_bucket_of(tenant, name, spec, origin).wait().map_err(|error| error.fault());
        let meter = self.tenant_meter(tenant);
        if meter.quota(Quota::BytesStored) == NONE {
            return put();
        }
        let _turn = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        let (others, before) = sums(data, tenant, name).map_err(|error| error.fault())?;
        if spec.bytes_max > before && others.saturating_add(spec.bytes_max) > meter.quota(Quota::BytesStored) {
            return Err(meter.is_full(Quota::BytesStored));
        }
        put()
    }

    /// Whether buckets that are not there yet may all be made, as [`Dispatcher::put_bucket`] asks for each. Blocks.
    ///
    /// # Errors
    /// As [`Dispatcher::put_bucket`].
    pub fn check_room(&self, data: &Data, tenant: &TenantId, missing: &[&BucketDeclaration]) -> Result<(), Fault> {
        let meter = self.tenant_meter(tenant);
        let quota = meter.quota(Quota::BytesStored);
        let Some(first) = missing.first().filter(|_| quota != NONE) else { return Ok(()) };
        // It is not there, so all others are all.
        let (all, _) = sums(data, tenant, &first.name).map_err(|error| error.fault())?;
        let wanted = missing.iter().fold(all, |sum, declared| sum.saturating_add(declared.spec.bytes_max));
        if wanted > quota { Err(meter.is_full(Quota::BytesStored)) } else { Ok(()) }
    }
}

/// What all other buckets of a tenant may hold, and what this one may.
fn sums(data: &Data, tenant: &TenantId, name: &BucketName) -> Result<(u64, u64), DataError> {
    let (mut others, mut before, mut after) = (0_u64, 0, None);
    loop {
        let page = data.buckets(tenant, after.as_ref(), PAGE)?;
        for bucket in &page {
            match bucket.name == *name {
                true => before = bucket.spec.bytes_max,
                false => others = others.saturating_add(bucket.spec.bytes_max),
            }
        }
        match page.last() {
            Some(last) if page.len() == PAGE => after = Some(last.name.clone()),
            _ => return Ok((others, before)),
        }
    }
}
