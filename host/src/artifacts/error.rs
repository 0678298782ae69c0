//! What can go wrong with files, in one type.

use std::io;
use std::path::{Path, PathBuf};

use super::FileId;
use crate::fault::{Code, Fault, is_exhausted};
use crate::storage::disk::is_full;
use crate::storage::space::Full;

/// A file that could not be stored or used.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// There is no such file.
    #[error("{id} is not on disk: native code is compiled anew, a module must be deployed again")]
    Missing {
        /// Which.
        id: FileId,
    },
    /// The file is not what was written.
    #[error("{id} is damaged, {what}: native code is compiled anew, a module must be deployed again")]
    Corrupt {
        /// Which.
        id: FileId,
        /// What does not fit.
        what: &'static str,
    },
    /// The build left something that cannot be it.
    #[error("the build left nothing that can be {id}: {what}")]
    Unfit {
        /// Which.
        id: FileId,
        /// What was expected.
        what: &'static str,
    },
    /// The disk is full, or the share of it that this node may use.
    #[error("no room: {detail}; remove functions or old revisions, or raise data.bytes_max")]
    StorageFull {
        /// Numbers, or the system's words.
        detail: String,
    },
    /// Any other failure of the file system.
    #[error("failed to {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl ArtifactError {
    /// Whether the process has no descriptors, mappings or memory left, and the file is as good as any.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_exhausted(source))
    }

    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::StorageFull { .. } => {
                Fault::new(Code::StorageFull, "there is no room to store this").hint("remove functions that are not needed")
            }
            Self::Io { source, .. } if is_exhausted(source) => Fault::exhausted(),
            Self::Missing { .. } | Self::Corrupt { .. } | Self::Unfit { .. } | Self::Io { .. } => Fault::internal(self),
        }
    }
}

pub(super) fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ArtifactError + 'a {
    move |source| match is_full(&source) {
        true => ArtifactError::StorageFull { detail: format!("failed to {doing}: {source}") },
        false => ArtifactError::Io { doing, path: path.into(), source },
    }
}

pub(super) fn full(full: Full) -> ArtifactError {
    let Full { used, wanted, bytes_max } = full;
    ArtifactError::StorageFull { detail: format!("{used} bytes are used and {wanted} more do not fit in {bytes_max}") }
}
