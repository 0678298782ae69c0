//! Who wants to be told of which changes: the triggers of all live revisions, in memory.
//!
//! Owns the two maps. Knows nothing about events that wait. Invariant: both maps say the same.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::id::{BucketName, FunctionName, TenantId};
use crate::manifest::{On, Trigger};

/// A function that wants something of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Taker {
    pub(super) function: FunctionName,
    /// All of the function's, also of other buckets.
    triggers: Arc<[Trigger]>,
}

impl Taker {
    /// Whether it wants to be told of such a change of a key.
    pub(super) fn wants(&self, bucket: &BucketName, on: On, key: &[u8]) -> bool {
        find(&self.triggers, bucket, on, key).is_some()
    }
}

fn find<'t>(triggers: &'t [Trigger], bucket: &BucketName, on: On, key: &[u8]) -> Option<&'t Trigger> {
    let wants = |trigger: &&Trigger| trigger.on == on && trigger.bucket == *bucket && key.starts_with(trigger.prefix.as_bytes());
    triggers.iter().find(wants)
}

/// See the module. Tenants are the outer keys, so that nothing is copied to look something up.
#[derive(Debug, Default)]
pub(super) struct Wanted(RwLock<HashMap<TenantId, OfTenant>>);

#[derive(Debug, Default)]
struct OfTenant {
    functions: HashMap<FunctionName, Arc<[Trigger]>>,
    buckets: HashMap<BucketName, Arc<[Taker]>>,
}

impl Wanted {
    /// Who wants something of a bucket; `None` if nobody does.
    pub(super) fn of(&self, tenant: &TenantId, bucket: &BucketName) -> Option<Arc<[Taker]>> {
        let tenants = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant)?.buckets.get(bucket).cloned()
    }

    /// Whether any function has such a trigger.
    pub(super) fn has(&self, tenant: &TenantId, is_such: impl Fn(&Trigger) -> bool) -> bool {
        let tenants = self.0.read().unwrap_or_else(PoisonError::into_inner);
        tenants.get(tenant).is_some_and(|of| of.functions.values().flat_map(|triggers| triggers.iter()).any(is_such))
    }

    /// The first trigger of a function for such a change.
    pub(super) fn trigger(
        &self,
        tenant: &TenantId,
        function: &FunctionName,
        bucket: &BucketName,
        on: On,
        key: &[u8],
    ) -> Option<Trigger> {
        let tenants = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let triggers = tenants.get(tenant)?.functions.get(function)?;
        find(triggers, bucket, on, key).cloned()
    }

    /// Replaces what a function wants. Answers whether it wanted anything before.
    pub(super) fn set(&self, tenant: &TenantId, function: &FunctionName, triggers: &[Trigger]) -> bool {
        let mut tenants = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if triggers.is_empty() && !tenants.contains_key(tenant) {
            return false;
        }
        let of_tenant = tenants.entry(tenant.clone()).or_default();
        let before = of_tenant.functions.remove(function);
        for bucket in before.iter().flat_map(|before| before.iter()).map(|trigger| &trigger.bucket) {
            of_tenant.change(bucket, |takers| takers.retain(|taker| taker.function != *function));
        }
        if !triggers.is_empty() {
            let triggers: Arc<[Trigger]> = triggers.into();
            of_tenant.functions.insert(function.clone(), triggers.clone());
            for bucket in triggers.iter().map(|trigger| &trigger.bucket) {
                of_tenant.change(bucket, |takers| {
                    if !takers.iter().any(|taker| taker.function == *function) {
                        takers.push(Taker { function: function.clone(), triggers: triggers.clone() });
                    }
                });
            }
        }
        if of_tenant.functions.is_empty() {
            tenants.remove(tenant);
        }
        before.is_some()
    }
}

impl OfTenant {
    fn change(&mut self, bucket: &BucketName, change: impl FnOnce(&mut Vec<Taker>)) {
        let mut takers = self.buckets.get(bucket).map(|takers| takers.to_vec()).unwrap_or_default();
        change(&mut takers);
        match takers.is_empty() {
            true => drop(self.buckets.remove(bucket)),
            false => drop(self.buckets.insert(bucket.clone(), takers.into())),
        }
    }
}
