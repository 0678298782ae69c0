//! Why data could not be read or written: the one error of [`kv`](crate::kv) and [`objects`](crate::objects).
//!
//! Owns the meaning of the host's numbers. Knows nothing about keys and values.

use std::fmt;

use crate::abi::{self, Errno};

/// What went wrong with data. Converts to [`hob_sdk::Error`](crate::Error) by `?`.
///
/// ```no_run
/// use hob_sdk::data::ErrorKind;
/// use hob_sdk::{Response, StatusCode, kv};
///
/// # fn f() -> Result<Response, hob_sdk::Error> {
/// match kv::open("sessions")?.set("a", "1") {
///     Err(error) if error.kind() == ErrorKind::Quota => Ok(Response::new("full\n").with_status(StatusCode::INSUFFICIENT_STORAGE)),
///     done => Ok(Response::new(format!("version {}\n", done?))),
/// }
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    text: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The manifest does not grant it; the text is the line that would.
    Denied,
    /// There is no such bucket, or not any more.
    NoBucket,
    /// An argument that no bucket takes, such as an empty key; a value that is no number; bytes that are not those of the digest.
    Invalid,
    /// Something is longer than its limit.
    TooLarge,
    /// A condition does not hold. Nothing was done.
    Conflict,
    /// The bucket is full, by its own quota. Reading and deleting go on.
    Quota,
    /// The node's disk is full. Reading and deleting go on.
    Full,
    /// Too much waits for the disk: try again.
    Busy,
    /// It is damaged: not what was written. Writing it anew mends it.
    Damaged,
    /// The data cannot be reached or written at present; nor at deploy.
    Unavailable,
    /// This instance holds as much as it may: buckets, open objects, uploads.
    Limit,
}

impl Error {
    /// What kind it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The error of the call that was just made, with the text that waits for it.
    #[cold]
    pub(crate) fn of(errno: Errno) -> Self {
        let kind = match errno.0 {
            -2 => ErrorKind::Denied,
            -3 => ErrorKind::NoBucket,
            -4 => ErrorKind::Invalid,
            -5 => ErrorKind::TooLarge,
            -6 => ErrorKind::Conflict,
            -7 => ErrorKind::Full,
            -8 => ErrorKind::Busy,
            -9 => ErrorKind::Damaged,
            -11 => ErrorKind::Limit,
            -13 => ErrorKind::Quota,
            _ => ErrorKind::Unavailable,
        };
        Self { kind, text: abi::error_text() }
    }

    /// One that the SDK found without asking the host.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Invalid, text: text.into() }
    }

    /// One of several is damaged, in the words that the host has for one.
    #[cold]
    pub(crate) fn damaged(key: &[u8]) -> Self {
        Self { kind: ErrorKind::Damaged, text: format!("'{}' is damaged on disk", key.escape_ascii()) }
    }

    /// The host answered what it should not: a fault of the host.
    #[cold]
    pub(crate) fn malformed() -> Self {
        Self { kind: ErrorKind::Unavailable, text: "the host's record is malformed".into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

/// Number of the answer that there is no such entry or object.
const NONE: Errno = Errno(-1);

/// An answer of which there may be none.
pub(crate) fn optional<T>(answer: Result<Result<T, Error>, Errno>) -> Result<Option<T>, Error> {
    match answer {
        Ok(read) => read.map(Some),
        Err(NONE) => Ok(None),
        Err(errno) => Err(Error::of(errno)),
    }
}

/// An answer that there is, or an error.
pub(crate) fn required<T>(answer: Result<Result<T, Error>, Errno>) -> Result<T, Error> {
    answer.map_err(Error::of)?
}

/// A length of something in memory, as records have it.
pub(crate) fn length(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).expect("what lies in a 32-bit memory has a 32-bit length").to_le_bytes()
}

/// A time to live as the host takes it: whole milliseconds, 0 for none.
pub(crate) fn ttl_ms(ttl: Option<std::time::Duration>) -> Result<u64, Error> {
    let Some(ttl) = ttl else { return Ok(0) };
    match u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX) {
        0 => Err(Error::invalid("the time to live is less than a millisecond: expected more, or none")),
        ms => Ok(ms),
    }
}

/// A time that the host tells in milliseconds since 1970, 0 for none.
pub(crate) fn time(ms: u64) -> Option<std::time::SystemTime> {
    std::time::SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(ms)).filter(|_| ms != 0)
}
