//! What can go wrong with the registry.
//!
//! Owns the words for it and the translation of redb's errors. Knows nothing about HTTP. Invariant: the texts of a
//! [`crate::fault::Fault`] made here name only what the client itself could know.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};

use super::tenants::TenantError;
use crate::fault::{Code, Fault};
use crate::id::{BucketName, FunctionName, RevisionNumber};
use crate::idempotency::NotKept;

/// The registry could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file holds something that Hob did not write.
    #[error(
        "the registry is damaged: {what}; stop hob, restore registry.redb from a backup, or move it away and deploy everything again"
    )]
    Damaged {
        /// What does not fit.
        what: String,
    },
    /// The disk is full, or the share of it that this user may use.
    #[error("no room to {doing}: {source}; free some space and try again")]
    StorageFull {
        /// What was being done.
        doing: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// Any other failure. A change that was being committed may have been made or not, whole in either case: read it again.
    #[error("failed to {doing}: {source}")]
    Storage {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: Box<redb::Error>,
    },
}

impl RegistryError {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::StorageFull { .. } => Fault::new(Code::StorageFull, "there is no room to record this").hint("try again later"),
            Self::Damaged { .. } | Self::Storage { .. } => Fault::internal(self),
        }
    }

    /// Whether redb refuses everything until the file is opened again.
    pub(super) fn latches(&self) -> bool {
        match self {
            Self::StorageFull { .. } | Self::Storage { .. } => true,
            Self::Damaged { .. } => false,
        }
    }
}

/// Translates an error of redb that arose while `doing` something.
pub(super) fn storage<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> RegistryError {
    move |error| match error.into() {
        redb::Error::Io(source) => io_error(doing)(source),
        redb::Error::Corrupted(what) => RegistryError::Damaged { what },
        wrong @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. }) => RegistryError::Damaged { what: wrong.to_string() },
        source => RegistryError::Storage { doing, source: Box::new(source) },
    }
}

/// Translates an error of the file system.
pub(super) fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> RegistryError {
    move |source| match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RegistryError::StorageFull { doing, source },
        // What redb says of a file that is too short, or does not begin as its files do.
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => RegistryError::Damaged { what: source.to_string() },
        _ => RegistryError::Storage { doing, source: Box::new(redb::Error::Io(source)) },
    }
}

/// A change that was not made. Nothing has changed, except as [`RegistryError::Storage`] says.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// `If-Match` or `If-None-Match` does not hold.
    #[error("the precondition does not hold: expected {expected}, found {}; look at the function and try again", found_text(.found))]
    Precondition {
        /// What was asked for.
        expected: String,
        /// ETag of the live revision, `None` if there is no such function.
        found: Option<String>,
    },
    /// Another function has the route.
    #[error("route '{route}' belongs to function '{holder}': remove it from one of the two manifests")]
    RouteTaken {
        /// The route, as a manifest writes it.
        route: String,
        /// Who has it.
        holder: FunctionName,
    },
    /// The bucket triggers as many functions as one may.
    #[error(
        "bucket '{bucket}' triggers {max} functions already, and at most {max} are allowed: remove the trigger from one of them"
    )]
    TooManyTriggered {
        /// The bucket.
        bucket: BucketName,
        /// How many functions it may trigger.
        max: usize,
    },
    /// The tenant has as many functions as it may.
    #[error("there are {count} functions and at most {max} are allowed: remove one, or raise data.functions_max")]
    TooManyFunctions {
        /// How many there are.
        count: u64,
        /// How many there may be.
        max: usize,
    },
    /// No function has this name.
    #[error("there is no function '{name}': deploy it first")]
    NoSuchFunction {
        /// The name.
        name: FunctionName,
    },
    /// The function has no such revision, or none before the live one.
    #[error("function '{name}' has no {}: expected one of {}", wanted_text(.wanted), list(.kept))]
    NoSuchRevision {
        /// The function.
        name: FunctionName,
        /// The number asked for; `None` for the one before the live one.
        wanted: Option<RevisionNumber>,
        /// The numbers that are kept, newest first.
        kept: Vec<RevisionNumber>,
    },
    /// A signed deploy is not newer than the one before.
    #[error("the deploy is signed as version {found}, and version {before} was deployed already: sign it as a higher version")]
    OldVersion {
        /// Its version.
        found: u64,
        /// The highest that was deployed.
        before: u64,
    },
    /// It was to keep its answer, and may not.
    #[error(transparent)]
    NotKept(#[from] NotKept),
    /// It was a change of tenants, tokens or keys.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// The registry itself failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

fn found_text(found: &Option<String>) -> &str {
    found.as_deref().unwrap_or("no such function")
}

fn wanted_text(wanted: &Option<RevisionNumber>) -> String {
    wanted.map_or_else(|| "revision before the live one".into(), |number| format!("revision {number}"))
}

fn list(kept: &[RevisionNumber]) -> String {
    kept.iter().enumerate().fold(String::new(), |mut text, (index, number)| {
        // Writing to a String cannot fail.
        let _written = write!(text, "{}{number}", if index == 0 { "" } else { ", " });
        text
    })
}

impl PublishError {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let code = match self {
            Self::Precondition { .. } | Self::OldVersion { .. } => Code::PreconditionFailed,
            Self::RouteTaken { .. } | Self::TooManyTriggered { .. } => Code::Conflict,
            // As for the quota `functions`: it bounds what one tenant has, and says nothing about the node's disk.
            Self::TooManyFunctions { .. } => Code::QuotaExceeded,
            Self::NoSuchFunction { .. } | Self::NoSuchRevision { .. } => Code::NotFound,
            Self::NotKept(error) => return error.fault(),
            Self::Tenant(error) => return error.fault(),
            Self::Registry(error) => return error.fault(),
        };
        Fault::new(code, self.to_string())
    }
}
