//! Secrets that functions may read and that cannot be read.
//!
//! Owns the question, which `hob doctor` asks. Knows nothing about where values lie. Invariant: an answer has names and reasons, and no value.

use std::sync::Arc;

use super::Dispatcher;
use crate::capability::secrets::SecretAccess;
use crate::fault::Fault;
use crate::id::{FunctionName, SecretName, TenantId};
use crate::secrets::Secrets;

/// Functions of one page of a walk.
const PAGE: usize = 100;

/// A secret that a function may read, and cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Which function.
    pub function: FunctionName,
    /// Which secret.
    pub secret: SecretName,
    /// Why not, without a value or a path.
    pub why: String,
}

impl Dispatcher {
    /// Secrets that functions of a tenant may read by their live revisions and that cannot be read, by function: of `count` functions that may
    /// read any, from the one after `after`; and the last of those, if there are more. Blocks.
    ///
    /// # Errors
    /// When the registry cannot be read.
    /// # Cost
    /// About 5 us for each function, and a reading of each secret of those `count`.
    pub fn unreadable_secrets(
        &self,
        secrets: &Arc<Secrets>,
        tenant: &TenantId,
        mut after: Option<FunctionName>,
        count: usize,
    ) -> Result<(Vec<Unreadable>, Option<FunctionName>), Fault> {
        let (mut found, mut looked_at, mut last) = (Vec::new(), 0, None);
        loop {
            let page = self.0.registry.list(tenant, after.as_ref(), PAGE).map_err(|error| error.fault())?;
            let Some(end) = page.last() else { return Ok((found, None)) };
            after = Some(end.name.clone());
            for record in page {
                let grants = &record.live.manifest.grants.secrets;
                if grants.is_empty() {
                    continue;
                }
                if looked_at == count {
                    return Ok((found, last));
                }
                looked_at += 1;
                let unreadable = SecretAccess::new(secrets.clone(), tenant.clone(), grants).unreadable();
                let of = |(secret, why)| Unreadable { function: record.name.clone(), secret, why };
                found.extend(unreadable.into_iter().map(of));
                last = Some(record.name);
            }
        }
    }
}
