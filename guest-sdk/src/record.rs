//! The two records of the ABI as bytes (`guest-sdk/abi.md` draws them): the request is read, the response written.
//!
//! Knows only the layout. Reading never goes outside of the record, whatever it holds; what has passed [`RequestHead::parse`]
//! can be read without further checks of lengths.

/// Bit 0 of a request's flags: the body in the record is all of it.
pub(crate) const REQUEST_BODY_WHOLE: u32 = 1;
/// Bit 0 of a response's flags: more body follows by `body_write`.
pub(crate) const RESPONSE_MORE: u32 = 1;
/// Bit 1 of a response's flags: the function failed, the body says how.
pub(crate) const RESPONSE_FAILED: u32 = 2;

const REQUEST_FIXED_LEN: usize = 16;
const RESPONSE_FIXED_LEN: usize = 12;
const HEADER_FIXED_LEN: usize = 8;

/// Where the parts of a request record are. All offsets lie within the record that it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RequestHead {
    /// The body in the record is all of it.
    pub(crate) whole: bool,
    /// Number of headers.
    pub(crate) header_count: u16,
    /// Offset of the target; the method lies before it.
    target: usize,
    /// Offset of the first header.
    headers: usize,
    /// Offset of the inline body, which ends with the record.
    pub(crate) body: usize,
}

/// A request record that breaks the contract: a fault of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadRecord(&'static str);

impl std::fmt::Display for BadRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the host's request record is malformed: {}", self.0)
    }
}

impl std::error::Error for BadRecord {}

impl RequestHead {
    /// Checks a whole record: every length, and that method, target and header names are UTF-8.
    pub(crate) fn parse(record: &[u8]) -> Result<Self, BadRecord> {
        let mut rest = record;
        let flags = take_u32(&mut rest).ok_or(BadRecord("shorter than its fixed part"))?;
        let lens = (take_u16(&mut rest), take_u16(&mut rest), take_u32(&mut rest), take_u32(&mut rest));
        let (Some(method_len), Some(header_count), Some(target_len), Some(body_len)) = lens else {
            return Err(BadRecord("shorter than its fixed part"));
        };
        let method = take(&mut rest, usize::from(method_len)).ok_or(BadRecord("the method leaves it"))?;
        let target = take(&mut rest, to_usize(target_len)).ok_or(BadRecord("the target leaves it"))?;
        if str::from_utf8(method).is_err() || str::from_utf8(target).is_err() {
            return Err(BadRecord("method or target is not UTF-8"));
        }
        let target = REQUEST_FIXED_LEN + method.len();
        let headers = record.len() - rest.len();
        for _ in 0..header_count {
            let (name, _) = take_header(&mut rest).ok_or(BadRecord("a header leaves it"))?;
            if str::from_utf8(name).is_err() {
                return Err(BadRecord("the name of a header is not UTF-8"));
            }
        }
        if rest.len() != to_usize(body_len) {
            return Err(BadRecord("the body does not end where it ends"));
        }
        let whole = flags & REQUEST_BODY_WHOLE != 0;
        Ok(Self { whole, header_count, target, headers, body: record.len() - rest.len() })
    }

    /// The method, in the record that this head was made from.
    pub(crate) fn method(self, record: &[u8]) -> &str {
        text(&record[REQUEST_FIXED_LEN..self.target])
    }

    /// The target, in the record that this head was made from.
    pub(crate) fn target(self, record: &[u8]) -> &str {
        text(&record[self.target..self.headers])
    }

    /// The headers, in the record that this head was made from.
    pub(crate) fn headers(self, record: &[u8]) -> Headers<'_> {
        Headers { rest: &record[self.headers..], left: self.header_count }
    }
}

/// The headers of a request or of a response, in their order: lower-case name and value. A name may come more than once.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: u16,
}

impl<'a> Headers<'a> {
    /// Reads `count` headers at the start of `encoded`, which must have been checked.
    pub(crate) fn new(encoded: &'a [u8], count: u16) -> Self {
        Self { rest: encoded, left: count }
    }

    /// The first value under `name`, in any case.
    pub(crate) fn value(mut self, name: &str) -> Option<&'a [u8]> {
        self.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        take_header(&mut self.rest).map(|(name, value)| (text(name), value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left.into(), Some(self.left.into()))
    }
}

impl ExactSizeIterator for Headers<'_> {}

/// Why a header cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderFault {
    /// The name is empty or has a byte that names cannot have.
    Name,
    /// The value has a NUL, CR or LF.
    Value,
    /// Longer than the record can say.
    Len,
}

/// Appends one header to `encoded`, its name in lower case.
pub(crate) fn put_header(encoded: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<(), HeaderFault> {
    if name.is_empty() || !name.iter().copied().all(is_token) {
        return Err(HeaderFault::Name);
    }
    if value.iter().any(|byte| matches!(byte, b'\0' | b'\r' | b'\n')) {
        return Err(HeaderFault::Value);
    }
    let (Ok(name_len), Ok(value_len)) = (u32::try_from(name.len()), u32::try_from(value.len())) else {
        return Err(HeaderFault::Len);
    };
    encoded.reserve(HEADER_FIXED_LEN + name.len() + value.len());
    encoded.extend_from_slice(&name_len.to_le_bytes());
    encoded.extend_from_slice(&value_len.to_le_bytes());
    encoded.extend(name.iter().map(u8::to_ascii_lowercase));
    encoded.extend_from_slice(value);
    Ok(())
}

/// A response record. `headers` holds `header_count` encoded headers.
///
/// # Panics
/// When the body is 4 GiB or longer, which the memory of a guest cannot hold.
pub(crate) fn response(flags: u32, status: u16, header_count: u16, headers: &[u8], body: &[u8]) -> Vec<u8> {
    let body_len = u32::try_from(body.len()).expect("a body in a 32-bit memory has a 32-bit length");
    let mut record = Vec::with_capacity(RESPONSE_FIXED_LEN + headers.len() + body.len());
    record.extend_from_slice(&flags.to_le_bytes());
    record.extend_from_slice(&status.to_le_bytes());
    record.extend_from_slice(&header_count.to_le_bytes());
    record.extend_from_slice(&body_len.to_le_bytes());
    record.extend_from_slice(headers);
    record.extend_from_slice(body);
    record
}

/// A request record whose body is whole; what a host would write. For handlers that are called without one.
///
/// # Panics
/// When a part is longer than the record can say: 64 KiB for the method, 65,535 headers, 4 GiB for the rest.
pub(crate) fn request(method: &str, target: &str, header_count: usize, headers: &[u8], body: &[u8]) -> Vec<u8> {
    const FITS: &str = "no part of the request is longer than a record allows";
    let mut record = Vec::new();
    record.extend_from_slice(&REQUEST_BODY_WHOLE.to_le_bytes());
    record.extend_from_slice(&u16::try_from(method.len()).expect(FITS).to_le_bytes());
    record.extend_from_slice(&u16::try_from(header_count).expect(FITS).to_le_bytes());
    record.extend_from_slice(&u32::try_from(target.len()).expect(FITS).to_le_bytes());
    record.extend_from_slice(&u32::try_from(body.len()).expect(FITS).to_le_bytes());
    for part in [method.as_bytes(), target.as_bytes(), headers, body] {
        record.extend_from_slice(part);
    }
    record
}

pub(crate) fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(len)?;
    *rest = tail;
    Some(head)
}

pub(crate) fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u16::from_le_bytes(*head))
}

pub(crate) fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u32::from_le_bytes(*head))
}

pub(crate) fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (head, tail) = rest.split_first_chunk()?;
    *rest = tail;
    Some(u64::from_le_bytes(*head))
}

pub(crate) fn take_header<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let (name_len, value_len) = (take_u32(rest)?, take_u32(rest)?);
    Some((take(rest, to_usize(name_len))?, take(rest, to_usize(value_len))?))
}

/// A length of a record as an index. Where addresses are shorter than 32 bits it could not have been written.
pub(crate) fn to_usize(len: u32) -> usize {
    len.try_into().unwrap_or(usize::MAX)
}

/// Text that `parse` or `put_header` has checked.
fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap_or_default()
}

/// A byte of a header's name. Source: RFC 9110, section 5.6.2, `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Laid out by hand from the table in abi.md, so that an error in the encoder cannot hide one in the decoder.
    const RECORD: &[u8] = b"\x01\0\0\0\x04\0\x02\0\x05\0\0\0\x03\0\0\0POST/a?b=\
        \x04\0\0\0\x01\0\0\0hosth\x01\0\0\0\x02\0\0\0x\xff\xfeabc";

    #[test]
    fn a_record_is_read_field_by_field() {
        let head = RequestHead::parse(RECORD).unwrap();
        assert_eq!((head.method(RECORD), head.target(RECORD), head.whole), ("POST", "/a?b=", true));
        let headers = head.headers(RECORD);
        assert_eq!(headers.len(), 2);
        assert_eq!(headers.clone().collect::<Vec<_>>(), [("host", &b"h"[..]), ("x", &b"\xff\xfe"[..])]);
        assert_eq!(headers.clone().value("Host"), Some(&b"h"[..]));
        assert_eq!(headers.value("hos"), None);
        assert_eq!(&RECORD[head.body..], b"abc");
    }

    #[test]
    fn the_encoder_writes_what_was_laid_out_by_hand() {
        let mut headers = Vec::new();
        put_header(&mut headers, b"Host", b"h").unwrap();
        put_header(&mut headers, b"X", b"\xff\xfe").unwrap();
        assert_eq!(request("POST", "/a?b=", 2, &headers, b"abc"), RECORD);
    }

    #[test]
    fn every_truncation_is_refused() {
        for len in 0..RECORD.len() {
            assert!(RequestHead::parse(&RECORD[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn every_surplus_is_refused() {
        let longer = [RECORD, b"d"].concat();
        assert_eq!(RequestHead::parse(&longer), Err(BadRecord("the body does not end where it ends")));
    }

    #[test]
    fn lengths_that_leave_the_record_are_refused() {
        for (offset, message) in
            [(4, "the method leaves it"), (8, "the target leaves it"), (12, "the body does not end where it ends")]
        {
            let mut record = RECORD.to_vec();
            record[offset + 1] = 0xff;
            assert_eq!(RequestHead::parse(&record), Err(BadRecord(message)));
        }
        for offset in [25, 29] {
            let mut record = RECORD.to_vec();
            record[offset..offset + 4].fill(0xff);
            assert_eq!(RequestHead::parse(&record), Err(BadRecord("a header leaves it")), "at {offset}");
        }
        let mut record = RECORD.to_vec();
        record[6] = 0xff;
        assert_eq!(RequestHead::parse(&record), Err(BadRecord("a header leaves it")));
    }

    #[test]
    fn text_that_is_not_utf8_is_refused() {
        for offset in [16, 20, 33] {
            let mut record = RECORD.to_vec();
            record[offset] = 0xff;
            assert!(RequestHead::parse(&record).is_err(), "at {offset}");
        }
    }

    /// No input makes the parser or what it returns panic: every byte of the record in every of a few values.
    #[test]
    fn damaged_records_are_read_or_refused_without_a_panic() {
        for offset in 0..RECORD.len() {
            for byte in [0, 1, 2, 0x7f, 0x80, 0xff] {
                let mut record = RECORD.to_vec();
                record[offset] = byte;
                if let Ok(head) = RequestHead::parse(&record) {
                    let seen =
                        head.headers(&record).map(|(name, value)| name.len() + value.len() + HEADER_FIXED_LEN).sum::<usize>();
                    assert_eq!(REQUEST_FIXED_LEN + head.method(&record).len() + head.target(&record).len() + seen, head.body);
                }
            }
        }
    }

    #[test]
    fn a_response_is_written_field_by_field() {
        let mut headers = Vec::new();
        put_header(&mut headers, b"A", b"b").unwrap();
        let record = response(RESPONSE_MORE, 404, 1, &headers, b"no");
        assert_eq!(record, b"\x01\0\0\0\x94\x01\x01\0\x02\0\0\0\x01\0\0\0\x01\0\0\0abno");
        assert_eq!(record.len(), record.capacity());
    }

    #[test]
    fn headers_that_could_not_be_sent_are_refused_and_leave_nothing() {
        let mut headers = Vec::new();
        for name in ["", " a", "a b", "a:", "ä", "a\r\nb"] {
            assert_eq!(put_header(&mut headers, name.as_bytes(), b""), Err(HeaderFault::Name), "{name:?}");
        }
        for value in ["a\r\nset-cookie: x", "a\nb", "\0"] {
            assert_eq!(put_header(&mut headers, b"a", value.as_bytes()), Err(HeaderFault::Value), "{value:?}");
        }
        assert_eq!(headers, b"");
    }
}
