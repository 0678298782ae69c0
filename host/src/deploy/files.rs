//! Files of a deploy: whether what came fits what the manifest grants, and where the folders are meanwhile.
//!
//! Owns the sentences for what does not fit. Knows nothing about how files are unpacked or shown. Invariant: no revision is published
//! whose folders are not there.

use super::Inner;
use crate::artifacts::Bundle;
use crate::capability::files::{NotAllowed, open};
use crate::fault::{Code, Fault};
use crate::grants::{FileGrant, Folder, ManifestGrants};
use crate::id::TenantId;
use crate::registry::BundleRecord;

const HINT: &str =
    "deploy with 'hob deploy', which packs the folder beside hob.toml, or send a tar archive of it in the part 'files'";

/// Whether the files that came are those of the granted folders.
pub(super) fn check_bundle(grants: &ManifestGrants, bundle: Option<&Bundle>) -> Result<(), Fault> {
    let granted: Vec<_> = grants.files.iter().filter(|grant| grant.is_bundled()).map(|grant| grant.host.as_str()).collect();
    for folder in &granted {
        if !bundle.is_some_and(|bundle| bundle.has_folder(folder)) {
            let detail = format!("'grants.files': the folder '{folder}' is not among what the deploy brought");
            return Err(Fault::new(Code::BadManifest, detail).hint(HINT));
        }
    }
    let path: Option<String> = bundle.and_then(|bundle| bundle.outside(&granted)).map(|path| path.chars().take(80).collect());
    match path {
        Some(path) => {
            let fault =
                Fault::new(Code::BadRequest, format!("the deploy brought '{path}', which is in no folder of 'grants.files'"));
            Err(fault.hint("send only what hob.toml grants, or grant its folder"))
        }
        None => Ok(()),
    }
}

/// What the registry keeps of a bundle.
pub(super) fn record(bundle: &Bundle) -> BundleRecord {
    let (files, bytes) = bundle.size();
    BundleRecord { digest: bundle.digest(), bytes, files }
}

fn not_allowed(error: &NotAllowed) -> Fault {
    Fault::new(Code::BadManifest, format!("'grants.files': {error}")).hint(error.hint())
}

impl Inner {
    /// The folders that a deploy grants. What it brought is where it is now.
    pub(super) fn folders(
        &self,
        tenant: &TenantId,
        grants: &ManifestGrants,
        bundle: Option<&Bundle>,
    ) -> Result<Vec<Folder>, Fault> {
        check_bundle(grants, bundle)?;
        let Some(files) = &self.files else { return Ok(Vec::new()) };
        let found = files.find(tenant, &grants.files, bundle.map(Bundle::path)).map_err(|error| not_allowed(&error))?;
        for (folder, FileGrant { host, .. }) in found.iter().zip(&grants.files) {
            if let Err(error) = open(folder) {
                tracing::warn!(root = %folder.root.display(), below = %folder.below.display(), %error, "a folder cannot be granted");
                let fault =
                    Fault::new(Code::BadManifest, format!("'grants.files': the folder '{host}' cannot be opened on this node"));
                return Err(fault.hint("make it below what the operator allows, without links that lead elsewhere"));
            }
        }
        Ok(found)
    }

    /// Whether the operator still allows the folders of an older revision.
    pub(super) fn check_folders(&self, tenant: &TenantId, grants: &ManifestGrants) -> Result<(), Fault> {
        let Some(files) = &self.files else { return Ok(()) };
        let of_the_node: Vec<_> = grants.files.iter().filter(|grant| !grant.is_bundled()).cloned().collect();
        files.find(tenant, &of_the_node, None).map(drop).map_err(|error| not_allowed(&error))
    }
}
