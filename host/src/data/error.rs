//! What can go wrong with data.
//!
//! Owns the words for it and the translation of redb's errors. Knows nothing about HTTP. Errors are cheap to copy, because one
//! failure of the disk is the answer to every write that was to be committed with it. Invariant: the texts of a
//! [`crate::fault::Fault`] made here name only what the client itself could know.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::bucket::BucketId;
use super::events;
use crate::fault::{Code, Fault, is_exhausted};
use crate::id::{BucketName, Digest};
use crate::idempotency::NotKept;
use crate::storage::answers::AnswerError;
use crate::storage::disk::{is_failing, is_full};

/// When a client may try again after a queue was full.
const BUSY_RETRY: Duration = Duration::from_secs(1);

/// Data could not be read or written. A write that failed changed nothing, except as [`DataError::Storage`] says.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DataError {
    /// No bucket has this name, or it was deleted meanwhile.
    #[error("there is no bucket '{name}': create it first")]
    NoSuchBucket {
        /// Its name; of one that was deleted while it was in use, its number.
        name: String,
    },
    /// A bucket of this name exists with another durability.
    #[error("bucket '{name}' exists and is {found}: delete it first, or choose another name")]
    BucketExists {
        /// The name.
        name: BucketName,
        /// Durability of the one that exists.
        found: &'static str,
    },
    /// An argument that no bucket takes.
    #[error("{what}: expected {expected}")]
    Invalid {
        /// What was found.
        what: String,
        /// What was expected.
        expected: String,
    },
    /// Something is longer than its limit.
    #[error("{what} has {found} bytes: at most {max} are allowed")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// Its length in bytes.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// A condition does not hold. Nothing of the batch was done.
    #[error("the condition{} does not hold: found {}; read the entry and try again", of_text(.index), found_text(.found))]
    Conflict {
        /// Which operation of the batch, from 0; `None` of a single one.
        index: Option<usize>,
        /// Version that the entry has, `None` if there is no entry.
        found: Option<u64>,
    },
    /// The condition on an object does not hold. Nothing was done.
    #[error("the condition on the object does not hold: found {}; look at it and try again", etag_text(.found))]
    ObjectConflict {
        /// ETag of the object, `None` if there is none.
        found: Option<Digest>,
    },
    /// The bytes of an upload are not those that were announced. Nothing was done.
    #[error("the digest of the bytes is {found}, expected {wanted}: send them again")]
    WrongDigest {
        /// What was announced.
        wanted: Digest,
        /// What arrived.
        found: Digest,
    },
    /// The value is no number, or would be none afterwards.
    #[error("the increment{} cannot be done: {why}", of_text(.index))]
    NotANumber {
        /// Which operation of the batch, from 0; `None` of a single one.
        index: Option<usize>,
        /// What is wrong.
        why: &'static str,
    },
    /// The bucket is full.
    #[error("{}", quota_text(unit, *wanted, *max))]
    Quota {
        /// What is counted: bytes, keys, what waits for its functions, or [`AT_ONCE`].
        unit: &'static str,
        /// How many there would be.
        wanted: u64,
        /// How many there may be.
        max: u64,
    },
    /// All volatile buckets together would be promised more memory than the node gives them.
    #[error(
        "all volatile buckets together would have {wanted} bytes of memory and may have {max}: ask for less, or raise \
             data.volatile_bytes_max"
    )]
    VolatileFull {
        /// Bytes that they would have.
        wanted: u64,
        /// Bytes that they may have.
        max: u64,
    },
    /// It was to keep its answer, and may not. Nothing was done.
    #[error(transparent)]
    NotKept(#[from] NotKept),
    /// Too many writes wait.
    #[error("too many writes are waiting for the disk: try again")]
    Busy,
    /// The disk failed; nothing is written until the daemon was started again. Reading goes on.
    #[error("data can only be read since the disk failed ({why}): look at the disk, then start hob again")]
    ReadOnly {
        /// What failed.
        why: Arc<str>,
    },
    /// An entry is not what was written. Others are not affected; writing or deleting it anew mends it.
    #[error("'{}' in bucket {bucket} is damaged on disk: restore it from a backup, write it anew, or delete it", .key.escape_ascii())]
    Corrupt {
        /// The bucket.
        bucket: BucketId,
        /// The key.
        key: Bytes,
    },
    /// A row that is kept for a bucket or for an answer is not what was written. It is read before anything is changed, so nobody else's write
    /// is harmed.
    #[error(
        "damaged on disk: {what}; delete the bucket and import an earlier export of it, or restore data/data.redb from a backup"
    )]
    DamagedRow {
        /// What does not fit.
        what: String,
    },
    /// The file holds something that Hob did not write.
    #[error("the data is damaged: {what}; stop hob and restore data/data.redb from a backup, or move it away to begin anew")]
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
        source: Arc<io::Error>,
    },
    /// Any other failure. What was being committed may have been or not, whole in either case: read it again.
    #[error("failed to {doing}: {source}")]
    Storage {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: Arc<redb::Error>,
    },
    /// The store that the bucket is a cache of did not do its part. Nothing of what it gave is visible. A write may have been done there
    /// if its answer was late or lost.
    #[error("the bucket's origin {why}")]
    Origin {
        /// What it did instead.
        why: OriginFault,
    },
    /// The daemon stops.
    #[error("the node is shutting down")]
    Closed,
}

/// What an origin did instead of what was asked of it. Names neither hosts nor credentials: a client may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OriginFault {
    /// Nothing came for too long.
    #[error("gave no {what} within {limit:?}: try again, or raise the origin's time in the node's configuration")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// No connection came about.
    #[error("cannot be reached: try again, or look at its endpoint in the node's configuration")]
    Unreachable,
    /// It does not let the node in.
    #[error("refused with {status}: look at its key_file in the node's configuration, and at what that key may do")]
    Denied {
        /// What it answered: 401 or 403.
        status: u16,
    },
    /// Another answer than success.
    #[error("answered {status}: try again, or look at its own log")]
    Status {
        /// What it answered.
        status: u16,
    },
    /// The connection ended early.
    #[error("cut the connection after {found} of {len} bytes: try again")]
    Cut {
        /// Bytes that came.
        found: u64,
        /// Bytes that were announced; 0 if there was no head.
        len: u64,
    },
    /// Another length than was announced.
    #[error("announced {len} bytes and gave {found}: nothing of it is kept")]
    Length {
        /// Bytes that were announced.
        len: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The object was replaced while it was being fetched.
    #[error("changed the object while it was being fetched: try again")]
    Changed,
    /// No answer of an S3-compatible store.
    #[error("gave {what}: is it an S3-compatible store?")]
    Nonsense {
        /// What is wrong.
        what: &'static str,
    },
}

impl From<OriginFault> for DataError {
    fn from(why: OriginFault) -> Self {
        Self::Origin { why }
    }
}

fn of_text(index: &Option<usize>) -> String {
    index.map(|index| format!(" of operation {index}")).unwrap_or_default()
}

fn found_text(found: &Option<u64>) -> String {
    found.map_or_else(|| "no entry".into(), |version| format!("version {version}"))
}

/// Unit of what is larger than all of its bucket, which stays so whatever is deleted.
pub const AT_ONCE: &str = "bytes at once";

/// What is full, and what to do about it.
fn quota_text(unit: &str, wanted: u64, max: u64) -> String {
    let advice = match unit {
        AT_ONCE => {
            return format!(
                "{wanted} bytes are more than the whole bucket may have, {max}: write less at once, or raise its quota"
            );
        }
        events::UNIT => "look at what hinders the functions that it triggers, or raise data.events_max",
        _ => "delete something, or raise its quota",
    };
    format!("the bucket is full: {wanted} {unit} would be in it and at most {max} may; {advice}")
}

fn etag_text(found: &Option<Digest>) -> String {
    // Without what its text begins with: that goes by the bucket.
    found.map_or_else(|| "no object".into(), |etag| format!("one with the ETag …{}", etag.hex()))
}

impl DataError {
    /// What a client is told.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let code = match self {
            Self::NoSuchBucket { .. } => Code::NotFound,
            Self::BucketExists { name, .. } => {
                return Fault::new(Code::Conflict, self.to_string()).hint(format!("hob bucket inspect {name}"));
            }
            Self::Invalid { .. } | Self::NotANumber { .. } | Self::WrongDigest { .. } => Code::BadRequest,
            Self::TooLarge { .. } => Code::BodyTooLarge,
            Self::Conflict { .. } | Self::ObjectConflict { .. } => Code::PreconditionFailed,
            // No `Retry-After`: nothing leaves a full bucket by itself, and nobody knows when a time to live or a function that is
            // behind makes room. A client that waited for a moment named here would only be refused again.
            Self::Quota { .. } => Code::QuotaExceeded,
            Self::VolatileFull { .. } => Code::StorageFull,
            Self::NotKept(error) => return error.fault(),
            Self::Busy => return Fault::new(Code::Overloaded, self.to_string()).retry_after(BUSY_RETRY),
            Self::Closed => Code::Draining,
            Self::Origin { why: OriginFault::Timeout { .. } } => Code::OriginTimeout,
            Self::Origin { .. } => Code::OriginFailed,
            Self::Corrupt { key, .. } => {
                let detail = format!("'{}' is damaged on disk", key.escape_ascii());
                return Fault::new(Code::Damaged, detail).hint("write it anew, or delete it");
            }
            Self::ReadOnly { .. } => {
                return Fault::new(Code::StorageFull, "this node cannot write to its disk at present").hint("try another node");
            }
            Self::StorageFull { .. } => {
                let hint = "delete what is not needed, or free some of the disk of the node, and try again";
                return Fault::new(Code::StorageFull, "there is no room on the disk of the node to store this").hint(hint);
            }
            Self::Storage { source, .. } => return self.of_system(source),
            Self::DamagedRow { what } => {
                tracing::error!(error = %self, "a row is damaged");
                let hint = "hob doctor names the bucket: delete it and import an earlier export, or restore the node's data";
                return Fault::new(Code::Damaged, format!("damaged on disk: {what}")).hint(hint);
            }
            Self::Damaged { .. } => {
                tracing::error!(error = %self, "data on the disk cannot be read");
                let hint = "stop the node and run 'hob doctor --data-dir DIR', which reads every page; restore the node's data, or delete the bucket";
                return Fault::new(Code::Damaged, "a part of this node's data that this needs is damaged on disk").hint(hint);
            }
        };
        Fault::new(code, self.to_string())
    }

    /// What a client is told of a failure of the system: neither a disk that fails nor a process without descriptors is a bug.
    fn of_system(&self, source: &redb::Error) -> Fault {
        match source {
            redb::Error::Io(source) if is_exhausted(source) => Fault::exhausted(),
            redb::Error::Io(source) if is_failing(source) => {
                tracing::error!(error = %self, "the disk fails");
                Fault::new(Code::StorageFull, "the disk of this node failed").hint("try another node")
            }
            _ => Fault::internal(self),
        }
    }

    /// Whether it says that the disk fails, and not only that it is full.
    pub(super) fn is_disk_failure(&self) -> bool {
        let Self::Storage { source, .. } = self else { return false };
        matches!(&**source, redb::Error::Io(source) if is_failing(source))
    }

    /// Whether the disk is full, and not only what may be taken of it.
    pub(super) fn is_full_disk(&self) -> bool {
        matches!(self, Self::StorageFull { source, .. } if source.raw_os_error().is_some())
    }

    /// Whether something is not what was written.
    pub(super) fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. } | Self::DamagedRow { .. } | Self::Corrupt { .. })
    }

    /// Whether it is an answer to one write, and no failure of the store.
    pub(super) fn is_refusal(&self) -> bool {
        match self {
            Self::StorageFull { .. } | Self::Storage { .. } | Self::Damaged { .. } | Self::ReadOnly { .. } => false,
            Self::NoSuchBucket { .. }
            | Self::BucketExists { .. }
            | Self::Invalid { .. }
            | Self::TooLarge { .. }
            | Self::Conflict { .. }
            | Self::ObjectConflict { .. }
            | Self::WrongDigest { .. }
            | Self::NotANumber { .. }
            | Self::Quota { .. }
            | Self::VolatileFull { .. }
            | Self::NotKept(_)
            | Self::Busy
            | Self::Corrupt { .. }
            | Self::DamagedRow { .. }
            | Self::Origin { .. }
            | Self::Closed => true,
        }
    }
}

impl From<AnswerError> for DataError {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Storage(error) => storage("look after kept answers")(error),
            AnswerError::NotKept(error) => Self::NotKept(error),
            damaged @ AnswerError::Damaged(_) => Self::DamagedRow { what: damaged.to_string() },
        }
    }
}

/// Translates an error of redb that arose while `doing` something.
pub(super) fn storage<E: Into<redb::Error>>(doing: &'static str) -> impl FnOnce(E) -> DataError {
    move |error| match error.into() {
        redb::Error::Io(source) => io_error(doing)(source),
        redb::Error::Corrupted(what) => DataError::Damaged { what },
        wrong @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::TypeDefinitionChanged { .. }) => DataError::Damaged { what: wrong.to_string() },
        source => DataError::Storage { doing, source: Arc::new(source) },
    }
}

/// Translates an error of the file system.
pub(super) fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> DataError {
    move |source| match source.kind() {
        _ if is_full(&source) => DataError::StorageFull { doing, source: Arc::new(source) },
        // What redb says of a file that is too short, or does not begin as its files do.
        ErrorKind::InvalidData | ErrorKind::UnexpectedEof => DataError::Damaged { what: source.to_string() },
        _ => DataError::Storage { doing, source: Arc::new(redb::Error::Io(source)) },
    }
}
