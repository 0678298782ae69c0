//! Objects of buckets: immutable bytes of any length under a key, on the node that runs the function.
//!
//! ```no_run
//! use hob_sdk::{Error, Request, Response, StatusCode, objects};
//!
//! #[hob_sdk::function]
//! fn handle(req: Request) -> Result<Response, Error> {
//!     match objects::open("photos")?.get(req.path())? {
//!         Some(bytes) => Ok(bytes.into()),
//!         None => Ok(Response::new("no such photo\n").with_status(StatusCode::NOT_FOUND)),
//!     }
//! }
//! ```
//!
//! with `data = [{ bucket = "photos", access = "read" }]` under `[grants]` of `hob.toml`. A key has 1 to 512 bytes, any bytes. An object
//! is seen only when it is whole; its [`Etag`] is the SHA-256 of its bytes, but in a bucket with an origin. What is read was checked
//! against the SHA-256 once since the node started: the first reader of a large object waits for it.
//!
//! Owns the records of these calls, but for puts (`upload.rs`). Knows nothing about what is kept where. There is no data in
//! [`init`](macro@crate::init).

use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::{Bound, RangeBounds};
use std::time::{Duration, SystemTime};

pub use crate::mapped::{Mapped, map, map_range};
pub use crate::upload::Writer;

use crate::abi;
use crate::data::{Error, optional, time};
use crate::record::{take, take_header, take_u32, take_u64, to_usize};
use crate::upload::Upload;

/// Objects that a list takes from the host at once; as many as it gives.
const PAGE_LEN: u32 = 1000;

/// The objects of one bucket. It is as good as the function's grant: opening it needs `read`, writing `read-write`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    handle: u32,
}

/// SHA-256 of an object's bytes; in a bucket with an origin, what stands for the version there. Shown as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Etag(pub [u8; 32]);

/// What is known of an object without its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// SHA-256 of the bytes; in a bucket with an origin, what stands for the version there.
    pub etag: Etag,
    /// Number of bytes.
    pub len: u64,
    /// Rises within the bucket with every write to it; never given twice.
    pub version: u64,
    /// When it was put, to the millisecond.
    pub modified: SystemTime,
    /// When it is gone; `None` if it stays.
    pub expires: Option<SystemTime>,
    /// Media type, as it was put; may be empty.
    pub content_type: String,
    /// Names and values, as they were put.
    pub metadata: Vec<(String, String)>,
}

/// On which condition an object is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// On none.
    #[default]
    Always,
    /// If there is no object under the key.
    Absent,
    /// If there is one with this ETag.
    Etag(Etag),
}

/// What an object is put with, besides its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PutOptions {
    /// Media type; at most 255 bytes, empty if it is not known.
    pub content_type: String,
    /// Names and values of your own; at most 64, and 2,048 bytes.
    pub metadata: Vec<(String, String)>,
    /// How long it stays, in whole milliseconds, at least one and at most 36,500 days; `None` for ever.
    pub ttl: Option<Duration>,
    /// Condition. It decides when the object is whole.
    pub when: When,
    /// What the SHA-256 of the bytes must be.
    pub digest: Option<Etag>,
}

/// Opens a bucket that the manifest grants.
///
/// # Errors
/// [`Denied`](crate::data::ErrorKind::Denied), [`NoBucket`](crate::data::ErrorKind::NoBucket), and
/// [`Unavailable`](crate::data::ErrorKind::Unavailable) where no data is, as at deploy.
pub fn open(name: &str) -> Result<Bucket, Error> {
    abi::bucket_open(name).map(|handle| Bucket { handle }).map_err(Error::of)
}

impl Bucket {
    pub(crate) fn handle(&self) -> u32 {
        self.handle
    }

    /// All bytes of an object, `None` if there is none.
    ///
    /// # Errors
    /// [`Error`]; so for every method here.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, Error> {
        self.get_range(key, ..)
    }

    /// A part of an object's bytes, `None` if there is no object. What lies past its end is left out.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    ///
    /// # Panics
    /// When the part does not fit in this instance's memory.
    pub fn get_range(&self, key: impl AsRef<[u8]>, range: impl RangeBounds<u64>) -> Result<Option<Vec<u8>>, Error> {
        let Some(reader) = self.reader(key)? else { return Ok(None) };
        let (start, end) = within(&range, reader.head.len);
        let len = usize::try_from(end - start).expect("what is read at once fits in memory");
        let mut bytes = Vec::new();
        bytes.reserve_exact(len);
        let mut at = start;
        while at < end {
            match reader.read_into(at, end - at, &mut bytes)? {
                0 => return Err(Error::malformed()),
                count => at += count as u64,
            }
        }
        Ok(Some(bytes))
    }

    /// What is known of an object, `None` if there is none.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn head(&self, key: impl AsRef<[u8]>) -> Result<Option<Head>, Error> {
        optional(abi::object_head(self.handle, key.as_ref(), |record| take_head(&mut &*record).ok_or_else(Error::malformed)))
    }

    /// Opens an object for reading piece by piece, `None` if there is none. It keeps its bytes while it is open, whatever becomes
    /// of the key. An instance may have 64 open.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn reader(&self, key: impl AsRef<[u8]>) -> Result<Option<Reader>, Error> {
        optional(abi::object_open(self.handle, key.as_ref(), |record| {
            let mut rest = &*record;
            let object = take_u32(&mut rest).ok_or_else(Error::malformed)?;
            // Closed by its drop if the head is malformed.
            let mut reader = Reader { object, head: Head::nothing(), at: 0 };
            reader.head = take_head(&mut rest).ok_or_else(Error::malformed)?;
            Ok(reader)
        }))
    }

    /// Puts an object, in place of whatever was there.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn put(&self, key: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>) -> Result<Head, Error> {
        self.put_with(key, bytes, &PutOptions::default())
    }

    /// Puts an object.
    ///
    /// # Errors
    /// As [`Bucket::get`]; [`Conflict`](crate::data::ErrorKind::Conflict) if the condition does not hold.
    pub fn put_with(&self, key: impl AsRef<[u8]>, bytes: impl AsRef<[u8]>, options: &PutOptions) -> Result<Head, Error> {
        let mut upload = Upload::begin(self, key.as_ref(), options)?;
        upload.write(bytes.as_ref())?;
        upload.finish()
    }

    /// Begins an object that is written piece by piece. An instance may have 16 under way.
    ///
    /// ```no_run
    /// use std::io::Write;
    ///
    /// use hob_sdk::objects::{self, PutOptions};
    ///
    /// # fn f(req: hob_sdk::Request) -> Result<(), hob_sdk::Error> {
    /// let options = PutOptions { content_type: "text/csv".into(), ..PutOptions::default() };
    /// let mut writer = objects::open("reports")?.writer("today.csv", &options)?;
    /// writeln!(writer, "name,count")?;
    /// let head = writer.finish()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Bucket::get`]; [`Conflict`](crate::data::ErrorKind::Conflict) if the condition does not hold already.
    pub fn writer(&self, key: impl AsRef<[u8]>, options: &PutOptions) -> Result<Writer, Error> {
        Writer::begin(self, key.as_ref(), options)
    }

    /// The objects whose keys begin with `prefix`, in the order of their keys' bytes.
    #[must_use]
    pub fn list(&self, prefix: impl AsRef<[u8]>) -> List<'_> {
        let page = Vec::new().into_iter();
        List { bucket: self, prefix: prefix.as_ref().to_vec(), page, after: Some(Vec::new()) }
    }

    /// Deletes an object; what was there.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<Option<Head>, Error> {
        self.delete_bytes(key.as_ref(), &[])
    }

    /// Deletes an object that has this ETag; what was there.
    ///
    /// # Errors
    /// As [`Bucket::get`]; [`Conflict`](crate::data::ErrorKind::Conflict) if it has another one, or there is none.
    pub fn delete_if(&self, key: impl AsRef<[u8]>, etag: Etag) -> Result<Option<Head>, Error> {
        self.delete_bytes(key.as_ref(), &etag.0)
    }

    fn delete_bytes(&self, key: &[u8], etag: &[u8]) -> Result<Option<Head>, Error> {
        optional(abi::object_delete(self.handle, key, etag, |record| take_head(&mut &*record).ok_or_else(Error::malformed)))
    }
}

/// An open object, read from its beginning or from where [`Seek`] left it. Reading fails with an error that holds an [`Error`].
#[derive(Debug)]
pub struct Reader {
    object: u32,
    head: Head,
    at: u64,
}

impl Reader {
    /// What is known of the object.
    #[must_use]
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Appends at most `most` bytes from `offset` on; how many, 0 at the end. `bytes` has spare capacity.
    fn read_into(&self, offset: u64, most: u64, bytes: &mut Vec<u8>) -> Result<usize, Error> {
        let before = bytes.len();
        let count = abi::object_read(self.object, offset, bytes).map_err(Error::of)?;
        // The vector may have room for more than was asked for.
        let count = count.min(usize::try_from(most).unwrap_or(usize::MAX));
        bytes.truncate(before + count);
        Ok(count)
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        let count = abi::object_read_slice(self.object, self.at, buf).map_err(|errno| io::Error::other(Error::of(errno)))?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Reader {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.head.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        let before = || io::Error::new(io::ErrorKind::InvalidInput, "that is before the beginning of the object");
        self.at = at.ok_or_else(before)?;
        Ok(self.at)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        abi::object_close(self.object);
    }
}

/// See [`Bucket::list`]. They come from the host in pages of at most 1,000. Where what is known of an object is damaged there is an
/// error [`Damaged`](crate::data::ErrorKind::Damaged) that names its key, and the list goes on behind it. After any other error it is at its end.
#[derive(Debug)]
pub struct List<'a> {
    bucket: &'a Bucket,
    prefix: Vec<u8>,
    /// `None` for what is damaged.
    page: std::vec::IntoIter<(Vec<u8>, Option<Head>)>,
    /// Where the next page begins; `None` when there is none.
    after: Option<Vec<u8>>,
}

impl List<'_> {
    /// Begins behind a key, which need not be there. An empty one is before all keys.
    #[must_use]
    pub fn after(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.after = Some(key.into());
        self
    }
}

impl Iterator for List<'_> {
    type Item = Result<(Vec<u8>, Head), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, head)) = self.page.next() {
                return Some(match head {
                    Some(head) => Ok((key, head)),
                    None => Err(Error::damaged(&key)),
                });
            }
            let after = self.after.take()?;
            let page = abi::object_list(self.bucket.handle, &self.prefix, &after, PAGE_LEN, |record| take_page(&mut &*record));
            match page.map_err(Error::of).and_then(|page| page.ok_or_else(Error::malformed)) {
                Ok((objects, next)) => (self.page, self.after) = (objects.into_iter(), next),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Head {
    fn nothing() -> Self {
        Self {
            etag: Etag([0; 32]),
            len: 0,
            version: 0,
            modified: SystemTime::UNIX_EPOCH,
            expires: None,
            content_type: String::new(),
            metadata: Vec::new(),
        }
    }
}

impl Etag {
    /// Reads 64 hexadecimal digits, `None` if that is not what `text` is.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Beginning and end of a range within `len` bytes.
fn within(range: &impl RangeBounds<u64>, len: u64) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => len,
    };
    let start = start.min(len);
    (start, end.clamp(start, len))
}

pub(crate) fn take_head(rest: &mut &[u8]) -> Option<Head> {
    let etag = take(rest, 32)?.try_into().ok().map(Etag)?;
    let (len, version) = (take_u64(rest)?, take_u64(rest)?);
    let (modified_ms, expires_ms) = (take_u64(rest)?, take_u64(rest)?);
    let (type_len, pairs) = (take_u32(rest)?, take_u32(rest)?);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    let content_type = text(take(rest, to_usize(type_len))?)?;
    let mut metadata = Vec::new();
    for _ in 0..pairs {
        let (name, value) = take_header(rest)?;
        metadata.push((text(name)?, text(value)?));
    }
    let modified = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(modified_ms))?;
    Some(Head { etag, len, version, modified, expires: time(expires_ms), content_type, metadata })
}

type Page = (Vec<(Vec<u8>, Option<Head>)>, Option<Vec<u8>>);

/// In place of the length of a head: it is damaged.
const DAMAGED: u32 = u32::MAX;

fn take_page(rest: &mut &[u8]) -> Option<Page> {
    let next_len = take_u32(rest)?;
    let next = take(rest, to_usize(next_len))?;
    let mut objects = Vec::new();
    while !rest.is_empty() {
        let (key_len, head_len) = (take_u32(rest)?, take_u32(rest)?);
        let key = take(rest, to_usize(key_len))?.to_vec();
        let head = match head_len {
            DAMAGED => None,
            len => Some(take_head(&mut take(rest, to_usize(len))?)?),
        };
        objects.push((key, head));
    }
    Some((objects, (!next.is_empty()).then(|| next.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_within_the_object() {
        assert_eq!(within(&(..), 10), (0, 10));
        assert_eq!(within(&(3..5), 10), (3, 5));
        assert_eq!(within(&(3..=5), 10), (3, 6));
        assert_eq!(within(&(8..99), 10), (8, 10));
        assert_eq!(within(&(11..), 10), (10, 10));
        #[expect(clippy::reversed_empty_ranges, reason = "a caller may")]
        let reversed = 7..3;
        assert_eq!(within(&reversed, 10), (7, 7));
        assert_eq!(within(&(0..=u64::MAX), 10), (0, 10));
    }

    #[test]
    fn etags_are_hexadecimal() {
        let etag = Etag(*b"\x00\x01\x0f\x10\x7f\x80\xf0\xff01234567890123456789abcd");
        assert_eq!(Etag::from_hex(&etag.to_string()), Some(etag));
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32), &"0".repeat(65)] {
            assert_eq!(Etag::from_hex(bad), None, "{bad}");
        }
    }

    #[test]
    fn heads_are_read_and_every_truncation_is_refused() {
        let mut record = vec![7; 32];
        for number in [9_u64, 8, 1000, 0] {
            record.extend(number.to_le_bytes());
        }
        record.extend(b"\x03\0\0\0\x01\0\0\0a/b\x01\0\0\0\x02\0\0\0nvv");
        let head = take_head(&mut &record[..]).unwrap();
        assert_eq!((head.etag, head.len, head.version, head.expires), (Etag([7; 32]), 9, 8, None));
        assert_eq!(head.modified, SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        assert_eq!((head.content_type.as_str(), &head.metadata[..]), ("a/b", &[("n".to_owned(), "vv".to_owned())][..]));
        for len in 0..record.len() {
            assert_eq!(take_head(&mut &record[..len]), None, "{len}");
        }
    }
}
