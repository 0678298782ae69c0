//! Objects: immutable bytes under a key, with an ETag, a content type and metadata.
//!
//! ```text
//! put ──> Upload: write, write, … ──> finish ──> Ack<Head>      visible only then, whole
//! open ──> Opened: read_at, or its descriptor to map            pinned until it is dropped, whatever becomes of the key
//! ```
//!
//! Owns the words and their limits, and the trait. [`Durable`] keeps objects in files, [`Volatile`] in sealed memory; `conformance.rs`
//! holds both against one suite. [`Origin`] keeps copies of what an S3-compatible store has. Knows nothing about who asks, or how an
//! object is mapped. Invariant: the bytes that an [`Opened`] gives are those whose SHA-256 is its ETag, or those of the one version of the
//! origin's object that its ETag stands for; they never change.

mod audit;
#[cfg(test)]
mod conformance;
mod durable;
#[cfg(test)]
mod failing;
mod files;
mod mounts;
mod open_files;
mod origin;
mod pieces;
mod record;
mod references;
mod table;
#[cfg(test)]
mod tests;
mod volatile;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

pub use self::durable::{Durable, Recount, Scrubbed};
pub use self::mounts::{MOUNT_ENTRIES_MAX, Mounted, SEGMENT_BYTES_MAX, SEGMENTS_MAX};
pub use self::origin::{CacheCounts, Origin, Origins};
pub use self::volatile::{HEAP_BYTES_MAX, Volatile};

pub(super) use self::audit::audit;
pub(super) use self::files::{FOLDER, Files};
pub(super) use self::origin::{Routed, not_open, prepare as prepare_copies};
pub(super) use self::table::{prepare, sweep, sweep_graves};

use super::account::Usage;
use super::bucket::Bucket;
use super::clock::check_ttl;
use super::error::{AT_ONCE, DataError, io_error};
use super::store::Ack;
use crate::id::Digest;

/// Most bytes of a key. A key is not empty; any bytes will do, and none has a meaning.
pub const KEY_BYTES_MAX: usize = 512;
/// Most bytes of a content type.
pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Most bytes of all names and values of metadata together.
pub const METADATA_BYTES_MAX: usize = 2048;
/// Most pairs of metadata.
pub const METADATA_PAIRS_MAX: usize = 64;
/// Most heads in a [`Page`].
pub const PAGE_LEN_MAX: usize = 1000;
/// What the ETag of an object of an origin begins with, as text: it is no digest of the bytes, and must not read like one.
const ORIGIN_TAG: &str = "origin:";
/// What [`ObjectLimits::object_bytes_max`] is if nobody says.
pub const OBJECT_BYTES_MAX: u64 = 16 << 30;

const _: () = assert!(CONTENT_TYPE_BYTES_MAX <= u8::MAX as usize && METADATA_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(METADATA_PAIRS_MAX <= u8::MAX as usize);

/// Bounds of the objects of a node.
#[derive(Debug, Clone, Copy)]
pub struct ObjectLimits {
    /// Most bytes of one object.
    pub object_bytes_max: u64,
    /// Most bytes of all files, those included that are being written; of a volatile implementation, most bytes of memory.
    pub bytes_max: u64,
}

/// On which condition something is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// On none.
    #[default]
    Always,
    /// If there is no object under the key.
    Absent,
    /// If there is one, whichever it is.
    Present,
    /// If there is one and this is its ETag.
    Etag(Digest),
}

impl When {
    fn check(self, found: Option<Digest>) -> Result<(), DataError> {
        match self {
            Self::Always => Ok(()),
            Self::Absent if found.is_none() => Ok(()),
            Self::Present if found.is_some() => Ok(()),
            Self::Etag(wanted) if found == Some(wanted) => Ok(()),
            Self::Absent | Self::Present | Self::Etag(_) => Err(DataError::ObjectConflict { found }),
        }
    }
}

/// What an object is put with, besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Media type; empty if it is not known. At most [`CONTENT_TYPE_BYTES_MAX`].
    pub content_type: String,
    /// Names and values of the tenant's own, at most [`METADATA_PAIRS_MAX`] and [`METADATA_BYTES_MAX`].
    pub metadata: Vec<(String, String)>,
    /// Milliseconds from the commit until the object is gone, at least 1 and at most [`TTL_MAX`](super::TTL_MAX).
    pub ttl_ms: Option<u64>,
    /// Checked when the put begins, and again, which decides, when it is committed.
    pub when: When,
    /// What the SHA-256 of the bytes must be.
    pub digest: Option<Digest>,
}

/// What is known of an object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// SHA-256 of the bytes; in a bucket with an origin, of the origin's own ETag and the length. [`Head::tag`] is its text.
    pub etag: Digest,
    /// SHA-256 of the bytes, if it is known: not of an object of an origin that this node has no copy of.
    pub digest: Option<Digest>,
    /// Number of bytes.
    pub len: u64,
    /// Rises within the bucket with every write to it; never given twice. In a bucket with an origin the time of the last change.
    pub version: u64,
    /// When it was put, in milliseconds since 1970.
    pub modified_ms: u64,
    /// When it is gone, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// As it was put.
    pub content_type: String,
    /// As it was put.
    pub metadata: Vec<(String, String)>,
}

impl Head {
    /// Its ETag as text: `sha256:…`, or `origin:…` if it is of the version that an origin has and not of the bytes.
    #[must_use]
    pub fn tag(&self) -> String {
        match self.digest == Some(self.etag) {
            true => self.etag.to_string(),
            false => format!("{ORIGIN_TAG}{}", self.etag.hex()),
        }
    }

    /// What an object under `key` takes of its bucket's quota.
    fn usage(&self, key: &[u8]) -> Usage {
        let beside = key.len() + self.content_type.len() + metadata_bytes(&self.metadata);
        Usage { bytes: self.len.saturating_add(beside as u64), keys: 1 }
    }

    fn is_gone(&self, now_ms: u64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms)
    }
}

/// The inverse of [`Head::tag`]; `None` for text that is the ETag of no object in this bucket.
#[must_use]
pub fn parse_tag(bucket: &Bucket, text: &str) -> Option<Digest> {
    match bucket.origin {
        Some(_) => Digest::from_hex(text.strip_prefix(ORIGIN_TAG)?).ok(),
        None => text.parse().ok(),
    }
}

/// A part of a list.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// In the order of their keys as bytes. Where what is known of one is damaged there is [`DataError::Corrupt`] in its place.
    pub objects: Vec<(Bytes, Result<Head, DataError>)>,
    /// What to list after for the rest, if there is any.
    pub next: Option<Bytes>,
}

/// Whether the bytes of an object were held against its ETag when it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verified {
    /// This process did so before, or wrote them itself.
    Before,
    /// Just now, which took so long.
    Now(Duration),
}

/// What [`Objects::open_now`] found.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is taken apart at once, never kept")]
pub enum OpenNow {
    /// The object.
    Opened(Opened),
    /// There is none.
    Absent,
    /// There is one whose bytes must be read first, which may take long: [`Objects::open`].
    Unchecked,
}

/// Where objects are, and so how long calls for them may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In memory: nothing waits.
    Memory,
    /// On this node's disk: a look at what is known of objects takes microseconds, bytes and puts take what the disk takes.
    Disk,
    /// Somewhere else: everything may take long.
    Elsewhere,
}

/// An object that is being put. Dropping it leaves nothing. Every call may block: call from a thread that may.
pub trait Upload: Send + fmt::Debug {
    /// Appends a piece; best of 16 KiB or more.
    ///
    /// # Errors
    /// [`DataError::TooLarge`], [`DataError::Quota`] if it could never fit in the bucket, [`DataError::StorageFull`], and those of
    /// storage. The upload is of no use then: drop it.
    ///
    /// # Cost
    /// A write, and about 0.5 ns a byte for the digest.
    fn write(&mut self, piece: &[u8]) -> Result<(), DataError>;

    /// Ends it: the object is visible once the answer is there, and not before.
    ///
    /// # Errors
    /// Through the [`Ack`]: [`DataError::WrongDigest`], [`DataError::ObjectConflict`], [`DataError::Quota`],
    /// [`DataError::NoSuchBucket`], [`DataError::Busy`], and those of storage. Nothing is left then.
    ///
    /// # Cancellation
    /// Dropping the [`Ack`] does not undo it.
    ///
    /// # Cost
    /// Of a durable one two fsyncs here, and its share of a third before the answer.
    fn finish(self: Box<Self>) -> Ack<Head>;
}

/// The objects of all buckets of one durability. Object-safe; implemented by [`Durable`], [`Volatile`] and [`Origin`]. Whoever has a [`Bucket`]
/// may use it, and it must be of that durability.
pub trait Objects: Send + Sync + fmt::Debug {
    /// Begins to put an object.
    ///
    /// # Errors
    /// [`DataError::Invalid`] and [`DataError::TooLarge`] for what no object has, [`DataError::ObjectConflict`] if the condition does
    /// not hold already, and those of storage.
    fn put(&self, bucket: &Bucket, key: &[u8], options: PutOptions) -> Result<Box<dyn Upload>, DataError>;

    /// What is known of an object, `None` if there is none.
    ///
    /// # Errors
    /// [`DataError::Corrupt`], [`DataError::Invalid`] and [`DataError::TooLarge`] for a key that none has, and those of storage.
    ///
    /// # Cost
    /// About a microsecond; may block on the disk.
    fn head(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Head>, DataError>;

    /// Whether it was found out, since the process started, that opening this object would be [`DataError::Corrupt`]. Reads nothing. Only
    /// durable ones rot; a copy of an origin's is fetched again.
    fn is_known_damaged(&self, _bucket: &Bucket, _head: &Head) -> bool {
        false
    }

    /// Opens an object, `None` if there is none. Its bytes stay as they are until the result is dropped, whatever becomes of the key.
    ///
    /// # Errors
    /// As [`Objects::head`]; [`DataError::Corrupt`] too if its file is lost or not what was put.
    ///
    /// # Cost
    /// A few microseconds; of a durable one, the first time in a process, also the reading of the whole object
    /// ([`Opened::verified`]). Blocks for so long, also while another thread does that; in a bucket with an origin for as long as the
    /// fetch takes.
    fn open(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Opened>, DataError>;

    /// As [`Objects::open`], unless the object has to be read first.
    ///
    /// # Errors
    /// As [`Objects::open`].
    ///
    /// # Cost
    /// A few microseconds; may block on the disk, for a row.
    fn open_now(&self, _bucket: &Bucket, _key: &[u8]) -> Result<OpenNow, DataError> {
        Ok(OpenNow::Unchecked)
    }

    /// How long calls for a bucket may take.
    fn place(&self, _bucket: &Bucket) -> Place {
        Place::Elsewhere
    }

    /// Objects whose keys begin with `prefix`, from the one after `after`, at most `limit` (and [`PAGE_LEN_MAX`]).
    ///
    /// # Errors
    /// Those of storage, and [`DataError::Corrupt`] for the first damaged row: list after its key.
    fn list(&self, bucket: &Bucket, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Result<Page, DataError>;

    /// Deletes an object. Answers what was there.
    ///
    /// # Errors
    /// Through the [`Ack`]: [`DataError::ObjectConflict`], and those of storage.
    fn delete(&self, bucket: &Bucket, key: &[u8], when: When) -> Ack<Option<Head>>;
}

/// An open object.
#[derive(Debug)]
pub struct Opened {
    head: Head,
    verified: Verified,
    content: Content,
}

#[derive(Debug)]
enum Content {
    /// Dropped in this order: the file is closed before the pin goes.
    File(Arc<File>, #[expect(dead_code, reason = "it is held, not read")] files::Held),
    Memory(Arc<volatile::Memory>),
    /// A copy of an origin's that is in memory too.
    Small(Arc<origin::Small>),
}

/// Where bytes lie.
enum Lies<'a> {
    InFile(&'a File),
    InMemory(&'a [u8]),
}

impl Opened {
    /// What is known of it.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// When its bytes were held against its ETag. There is no object of which they were not.
    #[must_use]
    pub fn verified(&self) -> Verified {
        self.verified
    }

    /// Fills `buf` with the bytes from `offset` on. Answers how many that were: fewer than asked for only at the end.
    ///
    /// # Errors
    /// What the disk says; [`DataError::Storage`] too if the file ends early.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize, DataError> {
        let left = self.head.len.saturating_sub(offset);
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let buf = &mut buf[..count];
        let file = match self.lies() {
            Lies::InFile(file) => file,
            Lies::InMemory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                buf.copy_from_slice(&bytes[from..from + count]);
                return Ok(count);
            }
        };
        file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => io_error("read an object")(io::Error::other("its file ends early")),
            _ => io_error("read an object")(error),
        })?;
        Ok(count)
    }

    /// Where its bytes lie from 0 on, to be mapped; `None` for a small one in memory, which is to be copied. What follows
    /// [`Head::len`] up to the end of its last page is zeros. Nobody writes to it: a volatile one is sealed, a durable one is a file that
    /// only this process can write, and does not. An I/O error under a mapping of a durable one is a SIGBUS.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self.lies() {
            Lies::InFile(file) => Some(file.as_fd()),
            Lies::InMemory(_) => None,
        }
    }

    fn lies(&self) -> Lies<'_> {
        match &self.content {
            Content::File(file, _) => Lies::InFile(file),
            Content::Memory(memory) => match memory.bytes() {
                volatile::Content::Sealed(file) => Lies::InFile(file),
                volatile::Content::Heap(bytes) => Lies::InMemory(bytes),
            },
            Content::Small(small) => Lies::InMemory(small.bytes()),
        }
    }
}

impl Opened {
    /// As [`Opened::read_at`], if the bytes, or some, are in memory: `None` if the disk would have to be asked. For threads that run
    /// futures.
    ///
    /// # Errors
    /// As [`Opened::read_at`].
    pub fn read_cached(&self, offset: u64, buf: &mut [u8]) -> Result<Option<usize>, DataError> {
        let Content::File(file, _) = &self.content else { return self.read_at(offset, buf).map(Some) };
        let left = usize::try_from(self.head.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let count = left.min(buf.len());
        if count == 0 {
            return Ok(Some(0));
        }
        let pieces = &mut [io::IoSliceMut::new(&mut buf[..count])];
        match rustix::io::preadv2(file, pieces, offset, rustix::io::ReadWriteFlags::NOWAIT) {
            Ok(0) => Err(io_error("read an object")(io::Error::other("its file ends early"))),
            Ok(count) => Ok(Some(count)),
            // Whatever it is, the read that may wait says it better; not every file system knows the flag.
            Err(_) => Ok(None),
        }
    }
}

fn metadata_bytes(metadata: &[(String, String)]) -> usize {
    metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
}

fn check_key(key: &[u8]) -> Result<(), DataError> {
    if key.is_empty() {
        return Err(DataError::Invalid { what: "an empty key".into(), expected: format!("1 to {KEY_BYTES_MAX} bytes") });
    }
    check_len("a key", key.len(), KEY_BYTES_MAX)
}

fn check_options(options: &PutOptions) -> Result<(), DataError> {
    check_len("a content type", options.content_type.len(), CONTENT_TYPE_BYTES_MAX)?;
    check_len("metadata", metadata_bytes(&options.metadata), METADATA_BYTES_MAX)?;
    let pairs = options.metadata.len();
    if pairs > METADATA_PAIRS_MAX {
        let expected = format!("at most {METADATA_PAIRS_MAX}");
        return Err(DataError::Invalid { what: format!("{pairs} pairs of metadata"), expected });
    }
    check_ttl(options.ttl_ms.map(Duration::from_millis))
}

fn check_len(what: &'static str, found: usize, max: usize) -> Result<(), DataError> {
    match found > max {
        true => Err(DataError::TooLarge { what, found: found as u64, max: max as u64 }),
        false => Ok(()),
    }
}

/// Whether an object of `len` bytes may be, in this bucket or at all.
fn check_object_len(bucket: &Bucket, limits: &ObjectLimits, len: u64) -> Result<(), DataError> {
    if len > limits.object_bytes_max {
        return Err(DataError::TooLarge { what: "an object", found: len, max: limits.object_bytes_max });
    }
    match len > bucket.spec.bytes_max {
        true => Err(DataError::Quota { unit: AT_ONCE, wanted: len, max: bucket.spec.bytes_max }),
        false => Ok(()),
    }
}

fn check_digest(wanted: Option<Digest>, found: Digest) -> Result<(), DataError> {
    match wanted {
        Some(wanted) if wanted != found => Err(DataError::WrongDigest { wanted, found }),
        _ => Ok(()),
    }
}
