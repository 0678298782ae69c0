//! The five host calls of `hob1` (`guest-sdk/abi.md`), made safe.
//!
//! The only file of the SDK with `unsafe`. It owns the pairing of pointers with lengths and knows nothing about what the bytes
//! mean. Off `wasm32` there is no host: `log` goes to standard error, every other call panics.
#![expect(unsafe_code, reason = "host calls take addresses, and they fill memory that Rust has not seen written")]

use std::io;

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
