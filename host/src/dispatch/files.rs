//! Files: where the folders lie that a revision was granted.
//!
//! Owns the way from a grant of a manifest to a folder on disk. Knows nothing about how a guest is shown it. Invariant: whoever has the
//! [`FileAccess`] of a revision keeps the files that its deploy brought.

use std::path::Path;
use std::sync::Arc;

use crate::artifacts::{Artifacts, FileId};
use crate::capability::files::{FileAccess, Folders, NotAllowed};
use crate::grants::{Access, FileGrant, Folder};
use crate::id::TenantId;
use crate::registry::RevisionRecord;

/// What the folders of all revisions are found in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Files {
    artifacts: Artifacts,
    folders: Arc<Folders>,
}

impl Files {
    /// Folders of deploys in `artifacts`, and those of the node in `folders`.
    #[must_use]
    pub fn new(artifacts: Artifacts, folders: Arc<Folders>) -> Self {
        Self { artifacts, folders }
    }

    /// What grants lead to. `bundle`: where the files are that the deploy brought.
    ///
    /// # Errors
    /// [`NotAllowed`] for the first folder of the node that its operator does not allow.
    pub fn find(&self, tenant: &TenantId, grants: &[FileGrant], bundle: Option<&Path>) -> Result<Vec<Folder>, NotAllowed> {
        let find = |grant: &FileGrant| match bundle {
            Some(bundle) if grant.is_bundled() => {
                Ok(Folder { root: bundle.join(&grant.host), below: "".into(), guest: grant.guest.clone(), access: Access::Read })
            }
            // Of a deploy that brought none there is none: whoever deploys is told.
            _ => self.folders.allow(tenant, grant),
        };
        grants.iter().map(find).collect()
    }

    /// What a live revision sees.
    pub(super) fn of(&self, tenant: &TenantId, revision: &RevisionRecord) -> FileAccess {
        let grants = &revision.manifest.grants.files;
        if grants.is_empty() {
            return FileAccess::default();
        }
        let file = revision.bundle.as_ref().map(|bundle| FileId::bundle(tenant, bundle.digest));
        let pin = file.clone().map(|file| self.artifacts.pin([file]));
        let bundle = file.map(|file| self.artifacts.path(&file));
        let found = self.find(tenant, grants, bundle.as_deref()).unwrap_or_else(|error| {
            // The operator took it back since the deploy.
            tracing::warn!(%error, "a function sees none of its folders");
            Vec::new()
        });
        FileAccess::new(found, pin)
    }
}
