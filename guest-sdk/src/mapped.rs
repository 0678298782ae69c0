//! Objects in this instance's memory, without a copy.
//!
//! Owns [`Mapped`] and the calls that make it, which are reached as [`objects::map`](crate::objects::map). Knows nothing about how the host
//! does it; small objects are copied, and look the same.

use std::fmt;
use std::ops::{Bound, Deref, RangeBounds};

use crate::abi::{self, Mapping, Placed};
use crate::data::{Error, optional};
use crate::objects::{self, Bucket};

/// Bytes of an object, as a slice. A large object is mapped: nothing is copied, all functions of a node share it, and a page costs time
/// when it is first read. The object keeps its bytes until this is dropped, whatever becomes of its key.
pub struct Mapped(Bytes);

enum Bytes {
    Copied(Vec<u8>),
    Mapped(Mapping),
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Copied(bytes) => bytes,
            Bytes::Mapped(mapping) => mapping,
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Mapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapped").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// Maps all bytes of an object of a granted bucket, `None` if there is no such object.
///
/// ```no_run
/// use hob_sdk::{Error, Request, Response, objects};
///
/// #[hob_sdk::function]
/// fn handle(_req: Request) -> Result<Response, Error> {
///     let model = objects::map("models", "v1.bin")?.ok_or("there is no model")?;
///     Ok(format!("{} bytes, the first is {}\n", model.len(), model[0]).into())
/// }
/// ```
///
/// # Errors
/// Those of [`objects::open`](fn@objects::open) and [`Bucket::map`].
pub fn map(bucket: &str, key: impl AsRef<[u8]>) -> Result<Option<Mapped>, Error> {
    objects::open(bucket)?.map(key)
}

/// Maps a part of an object's bytes, which may be too large for a memory as a whole. What lies past its end is left out.
///
/// # Errors
/// As [`map`].
pub fn map_range(bucket: &str, key: impl AsRef<[u8]>, range: impl RangeBounds<u64>) -> Result<Option<Mapped>, Error> {
    objects::open(bucket)?.map_range(key, range)
}

impl Bucket {
    /// Maps all bytes of an object, `None` if there is none.
    ///
    /// # Errors
    /// [`Error`]; [`Limit`](crate::data::ErrorKind::Limit) when the invocation has mapped as much as it may, or the node as many.
    pub fn map(&self, key: impl AsRef<[u8]>) -> Result<Option<Mapped>, Error> {
        self.map_range(key, ..)
    }

    /// Maps a part of an object's bytes, `None` if there is no object. What lies past its end is left out.
    ///
    /// # Errors
    /// As [`Bucket::map`].
    pub fn map_range(&self, key: impl AsRef<[u8]>, range: impl RangeBounds<u64>) -> Result<Option<Mapped>, Error> {
        let (offset, len) = part(&range);
        optional(abi::object_map(self.handle(), key.as_ref(), offset, len).map(|placed| match placed {
            Placed::Mapped(mapping) => Ok(Mapped(Bytes::Mapped(mapping))),
            Placed::Small(len) => abi::object_copy(len).map(|bytes| Mapped(Bytes::Copied(bytes))).map_err(Error::of),
        }))
    }
}

/// Where a range begins, and its length if it has an end.
fn part(range: &impl RangeBounds<u64>) -> (u64, Option<u64>) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => Some(end.saturating_add(1)),
        Bound::Excluded(end) => Some(*end),
        Bound::Unbounded => None,
    };
    (start, end.map(|end| end.saturating_sub(start)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_every_form() {
        assert_eq!(part(&..), (0, None));
        assert_eq!(part(&(5..)), (5, None));
        assert_eq!(part(&(5..7)), (5, Some(2)));
        assert_eq!(part(&(5..=7)), (5, Some(3)));
        // Past what a memory has.
        assert_eq!(part(&((5 << 32)..=(5 << 32) + 9)), (5 << 32, Some(10)));
        assert_eq!(part(&(1 << 40..)), (1 << 40, None));
        assert_eq!(part(&(..=u64::MAX)), (0, Some(u64::MAX)));
        assert_eq!(part(&(Bound::Excluded(4), Bound::Excluded(4))), (5, Some(0)));
    }
}
