//! The host calls of `hob1` (`guest-sdk/abi.md`), made safe.
//!
//! The only file of the SDK with `unsafe`. It owns the pairing of pointers with lengths and knows nothing about what the bytes
//! mean. Off `wasm32` there is no host: `log` goes to standard error, every other call panics.
//!
//! It is long so that it is one: whoever checks that the SDK is sound reads this file from end to end, and no other. A call is a few
//! lines here, its declaration, and its stand-in off `wasm32`.
#![expect(unsafe_code, reason = "host calls take addresses, and they fill memory that Rust has not seen written")]

use std::io;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::slice;

/// First guess at the length of a request record, in bytes. A longer record costs a third host call.
const REQUEST_LEN_FIRST: usize = 8 << 10;

/// The request record of this invocation.
pub(crate) fn request_record() -> Vec<u8> {
    let mut record = Vec::with_capacity(REQUEST_LEN_FIRST);
    let len = request_read(&mut record);
    if len > record.capacity() {
        record.reserve_exact(len);
        let again = request_read(&mut record);
        assert_eq!(again, len, "the request record does not change during an invocation");
    }
    record
}

/// Offers the spare capacity of an empty `record` to the host. Returns the length of the record; fills it when that fits.
fn request_read(record: &mut Vec<u8>) -> usize {
    record.clear();
    let spare = record.spare_capacity_mut();
    // SAFETY: the host writes at most `spare.len()` bytes at `spare`, memory that `record` owns and nobody else refers to.
    let len = unsafe { hob1::request_read(spare.as_mut_ptr().cast(), spare.len()) };
    if len <= record.capacity() {
        // SAFETY: `len` is within the capacity, and the host has written `len` bytes, as it does whenever they fit.
        unsafe { record.set_len(len) };
    }
    len
}

/// Waits for more of the request body and puts it into `buf`. Returns 0 at the end, or when `buf` is empty.
///
/// # Errors
/// `ConnectionAborted` when the client broke off.
pub(crate) fn body_read(buf: &mut [u8]) -> io::Result<usize> {
    if buf.is_empty() {
        return Ok(0);
    }
    // SAFETY: the host writes at most `buf.len()` bytes at `buf`, which is borrowed exclusively.
    let count = unsafe { hob1::body_read(buf.as_mut_ptr(), buf.len()) };
    // The only negative answer is -1.
    usize::try_from(count).map_err(|_| io::Error::new(io::ErrorKind::ConnectionAborted, "the client broke off the request body"))
}

/// Answers with a response record. A second call ends the invocation.
pub(crate) fn respond(record: &[u8]) {
    // SAFETY: the host only reads, within the slice.
    unsafe { hob1::respond(record.as_ptr(), record.len()) }
}

/// Waits until there is room, then sends `bytes` as the next part of the response body.
///
/// # Errors
/// `BrokenPipe` when nobody reads any more.
pub(crate) fn body_write(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the host only reads, within the slice.
    match unsafe { hob1::body_write(bytes.as_ptr(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the response any more")),
    }
}

/// One entry of the function's log; `level` 0 (error) to 4 (trace).
pub(crate) fn log(level: u32, text: &str) {
    // SAFETY: the host only reads, within the text.
    unsafe { hob1::log(level, text.as_ptr(), text.len()) }
}

/// Bytes on the stack that small answers are put into. A longer one costs a second host call.
const ANSWER_LEN_FIRST: usize = 1 << 10;
/// What `kv_write` returns when the write waits for the disk.
const WAITS: isize = -12;

/// A number below 0 that a call for data returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) isize);

/// A record that the host answered with.
pub(crate) enum Record<'a> {
    /// It lies on the stack.
    Small(&'a [u8]),
    /// It was too long for that.
    Large(Vec<u8>),
}

impl Deref for Record<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Record::Small(bytes) => bytes,
            Record::Large(bytes) => bytes,
        }
    }
}

impl Record<'_> {
    /// What follows its first `at` bytes.
    pub(crate) fn into_tail(self, at: usize) -> Vec<u8> {
        match self {
            Record::Small(bytes) => bytes.get(at..).unwrap_or_default().to_vec(),
            Record::Large(mut bytes) => {
                bytes.drain(..at.min(bytes.len()));
                bytes
            }
        }
    }
}

/// What a number stands for.
fn number(returned: isize) -> Result<usize, Errno> {
    usize::try_from(returned).map_err(|_| Errno(returned))
}

/// The answer that waits at the host, which has `len` bytes.
pub(crate) fn answer(len: usize) -> Vec<u8> {
    let mut answer = Vec::with_capacity(len);
    // SAFETY: the host writes at most the capacity, to memory that `answer` owns and nobody else refers to.
    let whole = unsafe { hob1::answer_read(answer.as_mut_ptr(), answer.capacity()) };
    // SAFETY: the host has written as many bytes as its answer has, or as many as there was room for.
    unsafe { answer.set_len(whole.min(answer.capacity())) };
    answer
}

/// The text of the last error.
pub(crate) fn error_text() -> String {
    let mut text = answer(ANSWER_LEN_FIRST);
    text.truncate(ANSWER_LEN_FIRST);
    String::from_utf8_lossy(&text).into_owned()
}

/// Makes a call that writes a record of at most `cap` bytes to `buf` and returns its length, or keeps a longer one as the answer.
/// `call` must not write anywhere else, and must have written what it returns if that is at most `cap`.
#[inline]
fn record<T>(call: impl FnOnce(*mut u8, usize) -> isize, read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    let mut buffer = [MaybeUninit::<u8>::uninit(); ANSWER_LEN_FIRST];
    let len = number(call(buffer.as_mut_ptr().cast(), buffer.len()))?;
    Ok(match buffer.get(..len) {
        // SAFETY: the host has written `len` bytes, as it does whenever they fit; any byte is a `u8`.
        Some(written) => read(Record::Small(unsafe { written.assume_init_ref() })),
        None => read(Record::Large(answer(len))),
    })
}

/// A handle of a bucket.
pub(crate) fn bucket_open(name: &str) -> Result<u32, Errno> {
    // SAFETY: the host only reads, within the text.
    let handle = number(unsafe { hob1::bucket_open(name.as_ptr(), name.len()) })?;
    // A handle is below 2^31, as every number that is not below 0.
    Ok(u32::try_from(handle).unwrap_or(u32::MAX))
}

/// The record of an entry.
#[inline]
pub(crate) fn kv_get<T>(bucket: u32, key: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host reads within the key and writes within the buffer.
    record(|buf, cap| unsafe { hob1::kv_get(bucket, key.as_ptr(), key.len(), buf, cap) }, read)
}

/// Whether there is an entry.
pub(crate) fn kv_exists(bucket: u32, key: &[u8]) -> Result<bool, Errno> {
    // SAFETY: the host only reads, within the key.
    number(unsafe { hob1::kv_exists(bucket, key.as_ptr(), key.len()) }).map(|found| found != 0)
}

/// The records of the entries of `keys`, itself a record.
pub(crate) fn kv_get_many<T>(bucket: u32, keys: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host reads within the keys and writes within the buffer.
    record(|buf, cap| unsafe { hob1::kv_get_many(bucket, keys.as_ptr(), keys.len(), buf, cap) }, read)
}

/// A page of entries: after the key `after`, unless that is empty.
pub(crate) fn kv_scan<T>(
    bucket: u32,
    prefix: &[u8],
    after: &[u8],
    limit: u32,
    read: impl FnOnce(Record<'_>) -> T,
) -> Result<T, Errno> {
    let call = |buf, cap| {
        // SAFETY: the host reads within prefix and key, and writes within the buffer.
        unsafe { hob1::kv_scan(bucket, prefix.as_ptr(), prefix.len(), after.as_ptr(), after.len(), limit, buf, cap) }
    };
    record(call, read)
}

/// Makes the changes of a record, and waits for the disk if they need it.
#[inline]
pub(crate) fn kv_write<T>(bucket: u32, ops: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    let call = |buf, cap| {
        // SAFETY: the host reads within the record and writes within the buffer.
        match unsafe { hob1::kv_write(bucket, ops.as_ptr(), ops.len(), buf, cap) } {
            // SAFETY: the host writes within the buffer.
            WAITS => unsafe { hob1::answer_wait(buf, cap) },
            returned => returned,
        }
    };
    record(call, read)
}

/// The head of an object.
pub(crate) fn object_head<T>(bucket: u32, key: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host reads within the key and writes within the buffer.
    record(|buf, cap| unsafe { hob1::object_head(bucket, key.as_ptr(), key.len(), buf, cap) }, read)
}

/// A handle of an object, and its head. Waits while its digest is checked.
pub(crate) fn object_open<T>(bucket: u32, key: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host reads within the key and writes within the buffer.
    record(|buf, cap| unsafe { hob1::object_open(bucket, key.as_ptr(), key.len(), buf, cap) }, read)
}

/// Appends bytes of an open object from `offset` on to `buf`, within its capacity; how many. 0 at the object's end, or when there is
/// no spare capacity.
pub(crate) fn object_read(object: u32, offset: u64, buf: &mut Vec<u8>) -> Result<usize, Errno> {
    let spare = buf.spare_capacity_mut();
    let room = spare.len();
    // SAFETY: the host writes at most `spare.len()` bytes at `spare`, which is borrowed exclusively.
    let count = number(unsafe { hob1::object_read(object, offset, spare.as_mut_ptr().cast(), room) })?.min(room);
    // SAFETY: the host has written `count` bytes behind what `buf` has, within its capacity.
    unsafe { buf.set_len(buf.len() + count) };
    Ok(count)
}

/// As [`object_read`], into memory that was written before.
pub(crate) fn object_read_slice(object: u32, offset: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the host writes at most `buf.len()` bytes at `buf`, which is borrowed exclusively.
    number(unsafe { hob1::object_read(object, offset, buf.as_mut_ptr(), buf.len()) }).map(|count| count.min(buf.len()))
}

/// Lets go of an open object.
pub(crate) fn object_close(object: u32) {
    // SAFETY: it passes no memory.
    unsafe { hob1::object_close(object) }
}

/// Bytes of an object that the host has mapped into this instance's memory.
pub(crate) struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the host has mapped `len` bytes there, in pages that it grew for that and gave to nobody else, and they stay until they are
        // unmapped. Nobody writes to them.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is mapped and unmapped once; nothing borrows its bytes any more.
        unsafe { hob1::object_unmap(self.at.as_ptr()) }
    }
}

/// Where a part of an object is.
pub(crate) enum Placed {
    /// In this instance's memory.
    Mapped(Mapping),
    /// At the host, to be copied: so many bytes.
    Small(usize),
}

/// Maps `len` bytes of an object from `offset` on, or all that follow.
pub(crate) fn object_map(bucket: u32, key: &[u8], offset: u64, len: Option<u64>) -> Result<Placed, Errno> {
    let mut out = [0_usize; 2];
    let (offset, len) = (i64::try_from(offset).unwrap_or(i64::MAX), len.map_or(-1, |len| i64::try_from(len).unwrap_or(i64::MAX)));
    // SAFETY: the host reads within the key and writes two numbers of 32 bits to `out`, which has room for them on any target.
    number(unsafe { hob1::object_map(bucket, key.as_ptr(), key.len(), offset, len, out.as_mut_ptr().cast()) })?;
    let [at, len] = out;
    Ok(match NonNull::new(ptr::with_exposed_provenance_mut(at)) {
        Some(at) => Placed::Mapped(Mapping { at, len }),
        None => Placed::Small(len),
    })
}

/// Copies the `len` bytes that [`object_map`] left at the host.
pub(crate) fn object_copy(len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::with_capacity(len);
    // SAFETY: the host writes `len` bytes, which is within the capacity, to memory that `bytes` owns and nobody else refers to.
    number(unsafe { hob1::object_copy(bytes.as_mut_ptr(), len) })?;
    // SAFETY: the host has written that many.
    unsafe { bytes.set_len(len) };
    Ok(bytes)
}

/// A page of objects: after the key `after`, unless that is empty.
pub(crate) fn object_list<T>(
    bucket: u32,
    prefix: &[u8],
    after: &[u8],
    limit: u32,
    read: impl FnOnce(Record<'_>) -> T,
) -> Result<T, Errno> {
    let call = |buf, cap| {
        // SAFETY: the host reads within prefix and key, and writes within the buffer.
        unsafe { hob1::object_list(bucket, prefix.as_ptr(), prefix.len(), after.as_ptr(), after.len(), limit, buf, cap) }
    };
    record(call, read)
}

/// Begins to put an object; a handle of the upload.
pub(crate) fn object_put(bucket: u32, key: &[u8], options: &[u8]) -> Result<u32, Errno> {
    // SAFETY: the host only reads, within the key and the record.
    let upload = unsafe { hob1::object_put(bucket, key.as_ptr(), key.len(), options.as_ptr(), options.len()) };
    Ok(u32::try_from(number(upload)?).unwrap_or(u32::MAX))
}

/// Appends to an upload. After an error there is no such upload any more.
pub(crate) fn upload_write(upload: u32, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: the host only reads, within the slice.
    number(unsafe { hob1::upload_write(upload, bytes.as_ptr(), bytes.len()) }).map(drop)
}

/// Sends the request of a record to another server; a handle of the response, once its head is there.
pub(crate) fn http_send(record: &[u8]) -> Result<u32, Errno> {
    // SAFETY: the host only reads, within the record.
    let handle = unsafe { hob1::http_send(record.as_ptr(), record.len()) };
    Ok(u32::try_from(number(handle)?).unwrap_or(u32::MAX))
}

/// The head of a response.
pub(crate) fn http_head<T>(response: u32, read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host writes within the buffer.
    record(|buf, cap| unsafe { hob1::http_head(response, buf, cap) }, read)
}

/// Waits for more of a response's body and puts it into `buf`. Returns 0 at the end, or when `buf` is empty.
pub(crate) fn http_read(response: u32, buf: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: the host writes at most `buf.len()` bytes at `buf`, which is borrowed exclusively.
    number(unsafe { hob1::http_read(response, buf.as_mut_ptr(), buf.len()) }).map(|count| count.min(buf.len()))
}

/// Lets go of a response.
pub(crate) fn http_close(response: u32) {
    // SAFETY: it passes no memory.
    unsafe { hob1::http_close(response) }
}

/// The value of a secret.
pub(crate) fn secret_get<T>(name: &str, read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host reads within the text and writes within the buffer.
    record(|buf, cap| unsafe { hob1::secret_get(name.as_ptr(), name.len(), buf, cap) }, read)
}

/// Ends an upload, whatever the answer; the head of the object.
pub(crate) fn upload_finish<T>(upload: u32, read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    // SAFETY: the host writes within the buffer.
    record(|buf, cap| unsafe { hob1::upload_finish(upload, buf, cap) }, read)
}

/// Breaks off an upload.
pub(crate) fn upload_drop(upload: u32) {
    // SAFETY: it passes no memory.
    unsafe { hob1::upload_drop(upload) }
}

/// Deletes an object, if it has this ETag unless that is empty; the head that it had.
pub(crate) fn object_delete<T>(bucket: u32, key: &[u8], etag: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<T, Errno> {
    let call = |buf, cap| {
        // SAFETY: the host reads within key and ETag, and writes within the buffer.
        unsafe { hob1::object_delete(bucket, key.as_ptr(), key.len(), etag.as_ptr(), etag.len(), buf, cap) }
    };
    record(call, read)
}

#[cfg(target_arch = "wasm32")]
mod hob1 {
    // `usize` and `isize` are the `i32` of the contract: the target has 32-bit addresses.
    #[link(wasm_import_module = "hob1")]
    unsafe extern "C" {
        pub(super) fn request_read(buf: *mut u8, cap: usize) -> usize;
        pub(super) fn body_read(buf: *mut u8, cap: usize) -> isize;
        pub(super) fn respond(ptr: *const u8, len: usize);
        pub(super) fn body_write(ptr: *const u8, len: usize) -> isize;
        pub(super) fn log(level: u32, ptr: *const u8, len: usize);
        pub(super) fn bucket_open(name: *const u8, name_len: usize) -> isize;
        pub(super) fn answer_read(buf: *mut u8, cap: usize) -> usize;
        pub(super) fn answer_wait(buf: *mut u8, cap: usize) -> isize;
        pub(super) fn kv_get(bucket: u32, key: *const u8, key_len: usize, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn kv_exists(bucket: u32, key: *const u8, key_len: usize) -> isize;
        pub(super) fn kv_get_many(bucket: u32, keys: *const u8, keys_len: usize, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn kv_scan(
            bucket: u32,
            prefix: *const u8,
            prefix_len: usize,
            after: *const u8,
            after_len: usize,
            limit: u32,
            buf: *mut u8,
            cap: usize,
        ) -> isize;
        pub(super) fn kv_write(bucket: u32, ops: *const u8, ops_len: usize, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn object_head(bucket: u32, key: *const u8, key_len: usize, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn object_open(bucket: u32, key: *const u8, key_len: usize, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn object_read(object: u32, offset: u64, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn object_close(object: u32);
        pub(super) fn object_map(bucket: u32, key: *const u8, key_len: usize, offset: i64, len: i64, out: *mut u8) -> isize;
        pub(super) fn object_copy(buf: *mut u8, len: usize) -> isize;
        pub(super) fn object_unmap(at: *mut u8);
        pub(super) fn object_list(
            bucket: u32,
            prefix: *const u8,
            prefix_len: usize,
            after: *const u8,
            after_len: usize,
            limit: u32,
            buf: *mut u8,
            cap: usize,
        ) -> isize;
        pub(super) fn object_put(bucket: u32, key: *const u8, key_len: usize, options: *const u8, options_len: usize) -> isize;
        pub(super) fn upload_write(upload: u32, ptr: *const u8, len: usize) -> isize;
        pub(super) fn upload_finish(upload: u32, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn upload_drop(upload: u32);
        pub(super) fn http_send(record: *const u8, len: usize) -> isize;
        pub(super) fn http_head(response: u32, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn http_read(response: u32, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn http_close(response: u32);
        pub(super) fn secret_get(name: *const u8, name_len: usize, buf: *mut u8, cap: usize) -> isize;
        pub(super) fn object_delete(
            bucket: u32,
            key: *const u8,
            key_len: usize,
            etag: *const u8,
            etag_len: usize,
            buf: *mut u8,
            cap: usize,
        ) -> isize;
    }
}

#[cfg(not(target_arch = "wasm32"))]
mod hob1 {
    const NO_HOST: &str = "there is no Hob host in this process: build for wasm32-wasip1 and deploy; in a test, call the \
                           handler with a `Request` made from an `http::Request`";

    pub(super) unsafe fn request_read(_buf: *mut u8, _cap: usize) -> usize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn body_read(_buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn respond(_ptr: *const u8, _len: usize) {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn body_write(_ptr: *const u8, _len: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn bucket_open(_name: *const u8, _name_len: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn answer_read(_buf: *mut u8, _cap: usize) -> usize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn answer_wait(_buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn kv_get(_bucket: u32, _key: *const u8, _key_len: usize, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn kv_exists(_bucket: u32, _key: *const u8, _key_len: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn kv_get_many(_bucket: u32, _keys: *const u8, _keys_len: usize, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    #[expect(clippy::too_many_arguments, reason = "it is a host call")]
    pub(super) unsafe fn kv_scan(
        _bucket: u32,
        _prefix: *const u8,
        _prefix_len: usize,
        _after: *const u8,
        _after_len: usize,
        _limit: u32,
        _buf: *mut u8,
        _cap: usize,
    ) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn kv_write(_bucket: u32, _ops: *const u8, _ops_len: usize, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_head(_bucket: u32, _key: *const u8, _key_len: usize, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_open(_bucket: u32, _key: *const u8, _key_len: usize, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_read(_object: u32, _offset: u64, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_close(_object: u32) {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_map(
        _bucket: u32,
        _key: *const u8,
        _key_len: usize,
        _offset: i64,
        _len: i64,
        _out: *mut u8,
    ) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_copy(_buf: *mut u8, _len: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_unmap(_at: *mut u8) {
        panic!("{NO_HOST}")
    }
    #[expect(clippy::too_many_arguments, reason = "it is a host call")]
    pub(super) unsafe fn object_list(
        _bucket: u32,
        _prefix: *const u8,
        _prefix_len: usize,
        _after: *const u8,
        _after_len: usize,
        _limit: u32,
        _buf: *mut u8,
        _cap: usize,
    ) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_put(
        _bucket: u32,
        _key: *const u8,
        _key_len: usize,
        _options: *const u8,
        _options_len: usize,
    ) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn upload_write(_upload: u32, _ptr: *const u8, _len: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn upload_finish(_upload: u32, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn upload_drop(_upload: u32) {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn http_send(_record: *const u8, _len: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn http_head(_response: u32, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn http_read(_response: u32, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn http_close(_response: u32) {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn secret_get(_name: *const u8, _name_len: usize, _buf: *mut u8, _cap: usize) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn object_delete(
        _bucket: u32,
        _key: *const u8,
        _key_len: usize,
        _etag: *const u8,
        _etag_len: usize,
        _buf: *mut u8,
        _cap: usize,
    ) -> isize {
        panic!("{NO_HOST}")
    }
    pub(super) unsafe fn log(level: u32, ptr: *const u8, len: usize) {
        // SAFETY: the only caller passes the parts of a `str`.
        let text = unsafe { std::slice::from_raw_parts(ptr, len) };
        let level = ["error", "warn", "info", "debug", "trace"].get(level as usize).unwrap_or(&"trace");
        eprintln!("{level}: {}", String::from_utf8_lossy(text));
    }
}

#[cfg(test)]
mod tests {
    #[test]
    #[should_panic(expected = "there is no Hob host in this process")]
    fn without_a_host_a_call_says_so() {
        super::respond(&[]);
    }

    #[test]
    fn a_read_into_nothing_asks_nobody() {
        assert_eq!(super::body_read(&mut []).unwrap(), 0);
    }
}
