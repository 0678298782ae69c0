//! Entries of buckets: small values under keys, on the node that runs the function.
//!
//! ```no_run
//! use hob_sdk::{Error, Request, kv};
//!
//! #[hob_sdk::function]
//! fn handle(req: Request) -> Result<String, Error> {
//!     let hits = kv::open("hits")?;
//!     Ok(format!("{} times\n", hits.increment(req.path(), 1)?))
//! }
//! ```
//!
//! with `data = [{ bucket = "hits", access = "read-write" }]` under `[grants]` of `hob.toml`. A key has 1 to 512 bytes, any bytes; a
//! value at most 1 MiB; `docs/data.md` has the rest of the limits. A write to a durable bucket is on disk when it returns; the host
//! runs other functions meanwhile.
//!
//! Owns the records of these calls. Knows nothing about what is kept where. There is no data in [`init`](macro@crate::init).

use std::time::{Duration, SystemTime};

use crate::abi;
use crate::data::{Error, length, optional, required, time, ttl_ms};
use crate::record::{take, take_u32, take_u64, to_usize};

const SET: u32 = 0;
const DELETE: u32 = 1;
const INCREMENT: u32 = 2;
/// Fixed part of an entry's record: version and end.
const ENTRY_LEN: usize = 16;
/// Fixed part of an operation.
const OP_LEN: usize = 32;
/// In place of a length: there is no such entry; on a page, it is damaged.
const NONE: u32 = u32::MAX;
/// Entries that a scan takes from the host at once; as many as it gives.
const PAGE_LEN: u32 = 1000;

/// The entries of one bucket. It is as good as the function's grant: opening it needs `read`, writing `read-write`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    handle: u32,
}

/// One entry as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What was written.
    pub value: Vec<u8>,
    /// Number of the write; rises within the bucket and is never given twice.
    pub version: u64,
    /// When the entry ends, to the millisecond; `None` if it does not.
    pub expires: Option<SystemTime>,
}

/// On which condition a value is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// On none.
    #[default]
    Always,
    /// If there is no entry.
    Absent,
    /// If there is one of this version.
    Version(u64),
}

/// How a value is set. The default is for ever and on no condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SetOptions {
    /// How long the entry stays, in whole milliseconds, at least one and at most 36,500 days; `None` for ever, also if what was there had an
    /// end.
    pub ttl: Option<Duration>,
    /// Condition.
    pub when: When,
}

/// What an operation of a batch did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// Of a set.
    Set {
        /// The entry's version now.
        version: u64,
    },
    /// Of a deletion.
    Deleted {
        /// Whether there was an entry.
        found: bool,
    },
    /// Of an increment.
    Incremented {
        /// The number now.
        value: i64,
        /// The entry's version now.
        version: u64,
    },
}

/// Opens a bucket that the manifest grants.
///
/// # Errors
/// [`Denied`](crate::data::ErrorKind::Denied), [`NoBucket`](crate::data::ErrorKind::NoBucket), and
/// [`Unavailable`](crate::data::ErrorKind::Unavailable) where no data is, as at deploy.
///
/// # Cost
/// A host call, well below a microsecond. Not worth keeping: a bucket that outlives its instance in a snapshot is of no use.
pub fn open(name: &str) -> Result<Bucket, Error> {
    abi::bucket_open(name).map(|handle| Bucket { handle }).map_err(Error::of)
}

impl Bucket {
    /// The value of a key, `None` if there is none.
    ///
    /// # Errors
    /// [`Error`]; so for every method here.
    #[inline]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Vec<u8>>, Error> {
        optional(abi::kv_get(self.handle, key.as_ref(), |record| match record.len() {
            0..ENTRY_LEN => Err(Error::malformed()),
            _ => Ok(record.into_tail(ENTRY_LEN)),
        }))
    }

    /// The value of a key with its version and its end, `None` if there is none.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn entry(&self, key: impl AsRef<[u8]>) -> Result<Option<Entry>, Error> {
        optional(abi::kv_get(self.handle, key.as_ref(), |record| {
            let mut rest = &*record;
            let (version, ends) = entry_head(&mut rest).ok_or_else(Error::malformed)?;
            Ok(Entry { value: record.into_tail(ENTRY_LEN), version, expires: time(ends) })
        }))
    }

    /// Whether there is an entry.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn exists(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        abi::kv_exists(self.handle, key.as_ref()).map_err(Error::of)
    }

    /// The entries of at most 1,000 keys with at most 16 MiB of values, all at one moment, in the order of the keys.
    ///
    /// # Errors
    /// As [`Bucket::get`]; if one of them is damaged, that names it.
    pub fn get_many<K: AsRef<[u8]>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Entry>>, Error> {
        let mut record = Vec::new();
        for key in keys {
            record.extend(length(key.as_ref()));
            record.extend_from_slice(key.as_ref());
        }
        required(abi::kv_get_many(self.handle, &record, |record| {
            let (mut rest, mut entries) = (&*record, Vec::new());
            while !rest.is_empty() {
                entries.push(maybe_entry(&mut rest).ok_or_else(Error::malformed)?);
            }
            Ok(entries)
        }))
    }

    /// Sets a value, for ever and whatever was there; the entry's version.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    #[inline]
    pub fn set(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, Error> {
        self.set_with(key, value, SetOptions::default())
    }

    /// Sets a value; the entry's version.
    ///
    /// # Errors
    /// As [`Bucket::get`]; [`Conflict`](crate::data::ErrorKind::Conflict) if the condition does not hold.
    #[inline]
    pub fn set_with(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, options: SetOptions) -> Result<u64, Error> {
        match self.write_one(|ops| put_set(ops, key.as_ref(), value.as_ref(), options))? {
            Done::Set { version } => Ok(version),
            Done::Deleted { .. } | Done::Incremented { .. } => Err(Error::malformed()),
        }
    }

    /// Sets a value if nobody wrote the entry since it had `version`, `None` for no entry. Answers the new version, `None` if
    /// somebody did: read it again.
    ///
    /// ```no_run
    /// # fn f() -> Result<(), hob_sdk::Error> {
    /// let bucket = hob_sdk::kv::open("seats")?;
    /// loop {
    ///     let entry = bucket.entry("12A")?;
    ///     let (taken, version) = entry.map_or((0, None), |entry| (entry.value.len(), Some(entry.version)));
    ///     if bucket.compare_and_swap("12A", version, vec![b'x'; taken + 1])?.is_some() {
    ///         break Ok(());
    ///     }
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn compare_and_swap(
        &self,
        key: impl AsRef<[u8]>,
        version: Option<u64>,
        value: impl AsRef<[u8]>,
    ) -> Result<Option<u64>, Error> {
        let when = version.map_or(When::Absent, When::Version);
        match self.set_with(key, value, SetOptions { when, ttl: None }) {
            Ok(version) => Ok(Some(version)),
            Err(error) if error.kind() == crate::data::ErrorKind::Conflict => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes an entry; whether there was one.
    ///
    /// # Errors
    /// As [`Bucket::get`].
    pub fn delete(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        match self.write_one(|ops| put_delete(ops, key.as_ref(), When::Always))? {
            Done::Deleted { found } => Ok(found),
            Done::Set { .. } | Done::Incremented { .. } => Err(Error::malformed()),
        }
    }

    /// Adds to a number, a value that is a decimal `i64` in ASCII; the sum. No entry counts as 0. The entry keeps its end.
    ///
    /// # Errors
    /// As [`Bucket::get`]; [`Invalid`](crate::data::ErrorKind::Invalid) if the value is no number, or would be none.
    pub fn increment(&self, key: impl AsRef<[u8]>, by: i64) -> Result<i64, Error> {
        match self.write_one(|ops| put_increment(ops, key.as_ref(), by))? {
            Done::Incremented { value, .. } => Ok(value),
            Done::Set { .. } | Done::Deleted { .. } => Err(Error::malformed()),
        }
    }

    /// Changes that are made together, or none of them.
    pub fn batch(&self) -> Batch<'_> {
        Batch { bucket: self, ops: Vec::new(), invalid: None }
    }

    /// The entries whose keys begin with `prefix`, in the order of their keys' bytes. They come from the host in pages of at most
    /// 1,000, each of which is of one moment.
    #[must_use]
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Scan<'_> {
        let page = Vec::new().into_iter();
        Scan { bucket: self, prefix: prefix.as_ref().to_vec(), page_len: PAGE_LEN, page, after: Some(Vec::new()) }
    }

    fn write_one(&self, put: impl FnOnce(&mut Vec<u8>) -> Result<(), Error>) -> Result<Done, Error> {
        let mut ops = Vec::new();
        put(&mut ops)?;
        required(abi::kv_write(self.handle, &ops, |record| take_done(&mut &*record).ok_or_else(Error::malformed)))
    }
}

/// See [`Bucket::batch`]. At most 1,000 changes with 16 MiB of keys and values.
///
/// ```no_run
/// # fn f() -> Result<(), hob_sdk::Error> {
/// let bucket = hob_sdk::kv::open("accounts")?;
/// bucket.batch().increment("from", -5).increment("to", 5).delete("pending").write()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "nothing is written before `write`"]
pub struct Batch<'a> {
    bucket: &'a Bucket,
    ops: Vec<u8>,
    invalid: Option<Error>,
}

impl Batch<'_> {
    /// Sets a value, for ever and whatever was there.
    pub fn set(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> &mut Self {
        self.set_with(key, value, SetOptions::default())
    }

    /// Sets a value.
    pub fn set_with(&mut self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>, options: SetOptions) -> &mut Self {
        let put = put_set(&mut self.ops, key.as_ref(), value.as_ref(), options);
        self.note(put)
    }

    /// Deletes an entry; fine if there is none.
    pub fn delete(&mut self, key: impl AsRef<[u8]>) -> &mut Self {
        self.delete_when(key, When::Always)
    }

    /// Deletes an entry on a condition.
    pub fn delete_when(&mut self, key: impl AsRef<[u8]>, when: When) -> &mut Self {
        let put = put_delete(&mut self.ops, key.as_ref(), when);
        self.note(put)
    }

    /// Adds to a number, as [`Bucket::increment`].
    pub fn increment(&mut self, key: impl AsRef<[u8]>, by: i64) -> &mut Self {
        let put = put_increment(&mut self.ops, key.as_ref(), by);
        self.note(put)
    }

    /// Makes the changes in their order, a later one on what an earlier one left; what each did. The batch is empty afterwards.
    ///
    /// # Errors
    /// As [`Bucket::get`]; if any of them fails, none is made.
    pub fn write(&mut self) -> Result<Vec<Done>, Error> {
        let ops = std::mem::take(&mut self.ops);
        if let Some(error) = self.invalid.take() {
            return Err(error);
        }
        required(abi::kv_write(self.bucket.handle, &ops, |record| {
            let (mut rest, mut done) = (&*record, Vec::new());
            while !rest.is_empty() {
                done.push(take_done(&mut rest).ok_or_else(Error::malformed)?);
            }
            Ok(done)
        }))
    }

    fn note(&mut self, put: Result<(), Error>) -> &mut Self {
        if let Err(error) = put {
            self.invalid.get_or_insert(error);
        }
        self
    }
}

/// See [`Bucket::scan`]. A damaged entry is an error [`Damaged`](crate::data::ErrorKind::Damaged) that names its key, and the scan goes on
/// behind it. After any other error it is at its end.
#[derive(Debug)]
pub struct Scan<'a> {
    bucket: &'a Bucket,
    prefix: Vec<u8>,
    page_len: u32,
    /// `None` for what is damaged.
    page: std::vec::IntoIter<(Vec<u8>, Option<Entry>)>,
    /// Where the next page begins; `None` when there is none.
    after: Option<Vec<u8>>,
}

impl Scan<'_> {
    /// Begins behind a key, which need not be there. An empty one is before all keys.
    #[must_use]
    pub fn after(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.after = Some(key.into());
        self
    }

    /// Takes at most so many entries from the host at once. For a scan that is not read to its end.
    #[must_use]
    pub fn page_len(mut self, count: u32) -> Self {
        self.page_len = count.clamp(1, PAGE_LEN);
        self
    }

    fn turn(&mut self, after: &[u8]) -> Result<(), Error> {
        let page = abi::kv_scan(self.bucket.handle, &self.prefix, after, self.page_len, |record| take_page(&mut &*record));
        let (entries, next) = page.map_err(Error::of)?.ok_or_else(Error::malformed)?;
        self.page = entries.into_iter();
        self.after = next;
        Ok(())
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<(Vec<u8>, Entry), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, entry)) = self.page.next() {
                return Some(match entry {
                    Some(entry) => Ok((key, entry)),
                    None => Err(Error::damaged(&key)),
                });
            }
            let after = self.after.take()?;
            if let Err(error) = self.turn(&after) {
                return Some(Err(error));
            }
        }
    }
}

fn put_op(ops: &mut Vec<u8>, what: u32, when: When, key: &[u8], value: &[u8], number: u64, ttl_ms: u64) {
    let (when, version) = match when {
        When::Always => (0_u32, 0),
        When::Absent => (1, 0),
        When::Version(version) => (2, version),
    };
    ops.reserve(OP_LEN + key.len() + value.len());
    ops.extend(what.to_le_bytes());
    ops.extend(when.to_le_bytes());
    ops.extend(length(key));
    ops.extend(length(value));
    ops.extend((number | version).to_le_bytes());
    ops.extend(ttl_ms.to_le_bytes());
    ops.extend_from_slice(key);
    ops.extend_from_slice(value);
}

fn put_set(ops: &mut Vec<u8>, key: &[u8], value: &[u8], options: SetOptions) -> Result<(), Error> {
    put_op(ops, SET, options.when, key, value, 0, ttl_ms(options.ttl)?);
    Ok(())
}

fn put_delete(ops: &mut Vec<u8>, key: &[u8], when: When) -> Result<(), Error> {
    put_op(ops, DELETE, when, key, &[], 0, 0);
    Ok(())
}

fn put_increment(ops: &mut Vec<u8>, key: &[u8], by: i64) -> Result<(), Error> {
    put_op(ops, INCREMENT, When::Always, key, &[], by.cast_unsigned(), 0);
    Ok(())
}

fn take_done(rest: &mut &[u8]) -> Option<Done> {
    let (what, found) = (take_u32(rest)?, take_u32(rest)?);
    let (version, value) = (take_u64(rest)?, take_u64(rest)?.cast_signed());
    match what {
        SET => Some(Done::Set { version }),
        DELETE => Some(Done::Deleted { found: found != 0 }),
        INCREMENT => Some(Done::Incremented { value, version }),
        _ => None,
    }
}

fn entry_head(rest: &mut &[u8]) -> Option<(u64, u64)> {
    Some((take_u64(rest)?, take_u64(rest)?))
}

/// An entry's record of `len` bytes.
fn take_entry(rest: &mut &[u8], len: u32) -> Option<Entry> {
    let mut record = take(rest, to_usize(len))?;
    let (version, ends) = entry_head(&mut record)?;
    Some(Entry { value: record.to_vec(), version, expires: time(ends) })
}

fn maybe_entry(rest: &mut &[u8]) -> Option<Option<Entry>> {
    match take_u32(rest)? {
        NONE => Some(None),
        len => take_entry(rest, len).map(Some),
    }
}

type Page = (Vec<(Vec<u8>, Option<Entry>)>, Option<Vec<u8>>);

fn take_page(rest: &mut &[u8]) -> Option<Page> {
    let next_len = take_u32(rest)?;
    let next = take(rest, to_usize(next_len))?;
    let mut entries = Vec::new();
    while !rest.is_empty() {
        let (key_len, entry_len) = (take_u32(rest)?, take_u32(rest)?);
        let key = take(rest, to_usize(key_len))?.to_vec();
        let entry = if entry_len == NONE { None } else { Some(take_entry(rest, entry_len)?) };
        entries.push((key, entry));
    }
    Some((entries, (!next.is_empty()).then(|| next.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_laid_out_as_the_contract_says() {
        let mut ops = Vec::new();
        let options = SetOptions { ttl: Some(Duration::from_millis(9)), when: When::Version(7) };
        put_set(&mut ops, b"k", b"vv", options).unwrap();
        put_delete(&mut ops, b"d", When::Absent).unwrap();
        put_increment(&mut ops, b"n", -1).unwrap();
        let expected: [&[u8]; 4] = [
            b"\0\0\0\0\x02\0\0\0\x01\0\0\0\x02\0\0\0\x07\0\0\0\0\0\0\0\x09\0\0\0\0\0\0\0kvv",
            b"\x01\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0d",
            b"\x02\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0\0\0\0\0n",
            b"",
        ];
        assert_eq!(ops, expected.concat());
    }

    #[test]
    fn a_time_to_live_of_nothing_is_refused_here() {
        let mut ops = Vec::new();
        let nothing = SetOptions { ttl: Some(Duration::from_micros(999)), when: When::Always };
        assert_eq!(put_set(&mut ops, b"k", b"", nothing).unwrap_err().kind(), crate::data::ErrorKind::Invalid);
        assert!(ops.is_empty());
    }

    #[test]
    fn pages_are_read_and_every_truncation_is_refused_or_shorter() {
        let page = b"\x01\0\0\0b\x01\0\0\0\x11\0\0\0a\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0v";
        let (entries, next) = take_page(&mut &page[..]).unwrap();
        assert_eq!(next, Some(b"b".to_vec()));
        assert_eq!(entries, [(b"a".to_vec(), Some(Entry { value: b"v".to_vec(), version: 5, expires: None }))]);
        for len in (0..page.len()).filter(|len| *len != 5) {
            assert!(take_page(&mut &page[..len]).is_none(), "{len}");
        }
        // A damaged one has its key alone, and the next one follows.
        let page = [&b"\0\0\0\0\x03\0\0\0\xff\xff\xff\xffbad"[..], &page[5..]].concat();
        let (entries, next) = take_page(&mut &page[..]).unwrap();
        assert_eq!((entries.len(), &entries[0], &*entries[1].0, next), (2, &(b"bad".to_vec(), None), &b"a"[..], None));
    }

    #[test]
    fn results_are_read() {
        let done = b"\x02\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\xfe\xff\xff\xff\xff\xff\xff\xff";
        assert_eq!(take_done(&mut &done[..]), Some(Done::Incremented { value: -2, version: 8 }));
        assert_eq!(take_done(&mut &done[1..]), None);
        assert_eq!(maybe_entry(&mut &b"\xff\xff\xff\xff"[..]), Some(None));
    }
}
