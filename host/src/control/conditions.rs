//! Conditions, ranges and digests as HTTP has them (RFC 9110, RFC 9530).
//!
//! Owns how these headers are read and in which order they count. Knows nothing about what they are about. Invariant: a header that
//! cannot be understood never lets a write through; a range that cannot be understood is no range.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{
    CONTENT_ENCODING, CONTENT_RANGE, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
};

use crate::fault::{Code, Fault};
use crate::id::Digest;

/// On which condition something is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum When {
    /// On none.
    Always,
    /// If there is nothing under the key.
    Absent,
    /// If there is something under the key.
    Present,
    /// If what is there has one of these ETags, given without their quotes; there is one at least.
    Tags(Vec<String>),
    /// If what is there was not written after this time.
    Unmodified(SystemTime),
}

#[derive(Debug, PartialEq, Eq)]
enum Tags {
    Any,
    /// Whether it is weak, and the tag without quotes.
    List(Vec<(bool, String)>),
}

impl Tags {
    fn has(&self, tag: &str, weak_too: bool) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => list.iter().any(|(weak, other)| other == tag && (weak_too || !weak)),
        }
    }
}

fn bad(detail: String) -> Fault {
    Fault::new(Code::BadRequest, detail)
}

/// The whole of a header that may be there several times, as a list.
fn text(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Fault> {
    let values: Result<Vec<_>, _> = headers.get_all(name).iter().map(|value| value.to_str()).collect();
    let values = values.map_err(|_| bad(format!("'{name}' is no text")))?;
    Ok((!values.is_empty()).then(|| values.join(", ")))
}

fn tags(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tags>, Fault> {
    let Some(text) = text(headers, name)? else { return Ok(None) };
    if text.trim() == "*" {
        return Ok(Some(Tags::Any));
    }
    let wrong = || bad(format!("'{name}' cannot be read: expected * or tags such as \"7\", separated by commas"));
    let (mut list, mut rest) = (Vec::new(), text.trim());
    loop {
        let (weak, quoted) = rest.strip_prefix("W/").map_or((false, rest), |quoted| (true, quoted));
        let (tag, after) = quoted.strip_prefix('"').and_then(|tag| tag.split_once('"')).ok_or_else(wrong)?;
        list.push((weak, tag.to_owned()));
        rest = after.trim_start();
        if rest.is_empty() {
            return Ok(Some(Tags::List(list)));
        }
        rest = rest.strip_prefix(',').ok_or_else(wrong)?.trim_start();
    }
}

/// The condition of a write. A date counts only where no tag does: beside `If-Match` it is passed over (RFC 9110, 13.1.4), and where
/// `If-None-Match` holds there is nothing that has one.
///
/// # Errors
/// `bad-request` for what cannot be understood, a date among it, and for both headers with tags at once. `precondition-failed` if all tags
/// are weak, which match nothing.
pub(super) fn of_write(headers: &HeaderMap) -> Result<When, Fault> {
    match (tags(headers, &IF_MATCH)?, tags(headers, &IF_NONE_MATCH)?) {
        (None, None) => Ok(unmodified_since(headers)?.map_or(When::Always, When::Unmodified)),
        (None, Some(Tags::Any)) => Ok(When::Absent),
        (None, Some(Tags::List(_))) => {
            Err(bad("'if-none-match' takes only '*' on a write: if there is nothing under the key".into()))
        }
        (Some(Tags::Any), None) => Ok(When::Present),
        (Some(Tags::List(list)), None) => {
            let strong: Vec<_> = list.into_iter().filter(|(weak, _)| !weak).map(|(_, tag)| tag).collect();
            if strong.is_empty() { Err(failed()) } else { Ok(When::Tags(strong)) }
        }
        (Some(_), Some(_)) => Err(bad("'if-match' and 'if-none-match' contradict each other: send one".into())),
    }
}

/// Refuses a condition of a write that takes none in its headers.
///
/// # Errors
/// `bad-request`, with what takes one instead.
pub(super) fn none(headers: &HeaderMap, instead: &str) -> Result<(), Fault> {
    match [&IF_MATCH, &IF_NONE_MATCH, &IF_UNMODIFIED_SINCE].into_iter().find(|name| headers.contains_key(*name)) {
        Some(name) => Err(bad(format!("'{name}' is no condition of this: {instead}"))),
        None => Ok(()),
    }
}

fn unmodified_since(headers: &HeaderMap) -> Result<Option<SystemTime>, Fault> {
    let wrong = |_| bad(format!("'{IF_UNMODIFIED_SINCE}' cannot be read: expected a date such as Sun, 06 Nov 1994 08:49:37 GMT"));
    text(headers, &IF_UNMODIFIED_SINCE)?.map(|text| httpdate::parse_http_date(text.trim()).map_err(wrong)).transpose()
}

/// Whether something was not written after a time, in whole seconds, as headers have it.
pub(super) fn is_unmodified(modified_ms: u64, since: SystemTime) -> bool {
    UNIX_EPOCH + Duration::from_secs(modified_ms / 1000) <= since
}

/// A write on the condition of a date, to something that shows none.
pub(super) fn undated() -> Fault {
    bad(format!("'{IF_UNMODIFIED_SINCE}' goes by 'last-modified', which only objects have: send 'if-match' with the ETag"))
}

/// Refuses a PUT of a part (RFC 9110, 14.5), whose bytes would take the place of the whole, and of bytes that are to be read otherwise
/// than as they are sent.
///
/// # Errors
/// `bad-request` and `unsupported-media`.
pub(super) fn whole_and_plain(headers: &HeaderMap) -> Result<(), Fault> {
    if headers.contains_key(CONTENT_RANGE) {
        return Err(bad("'content-range' announces a part: a PUT takes all of it".into()));
    }
    if headers.contains_key(CONTENT_ENCODING) {
        let fault =
            Fault::new(Code::UnsupportedMedia, "the body has a content coding, and nothing is unpacked or kept of it here");
        return Err(fault.hint("send the bytes as they are to be read"));
    }
    Ok(())
}

/// A condition does not hold.
pub(super) fn failed() -> Fault {
    Fault::new(
        Code::PreconditionFailed,
        "what is under the key has another ETag than the condition wants; look at it and try again",
    )
}

/// What the condition of a read comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// It is to be sent.
    Send,
    /// The client has it: 304.
    NotModified,
}

/// The conditions of a read, in the order of RFC 9110, 13.2.2. `modified_ms`: when it was written, if that is known.
///
/// # Errors
/// `precondition-failed`, and `bad-request` for tags that cannot be read. A date that cannot be read is no condition.
pub(super) fn of_read(headers: &HeaderMap, tag: &str, modified_ms: Option<u64>) -> Result<Read, Fault> {
    let date = |name: &HeaderName| {
        let date = httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()?;
        // In whole seconds, as headers have it.
        let modified = UNIX_EPOCH + Duration::from_secs(modified_ms? / 1000);
        Some((modified, date))
    };
    match tags(headers, &IF_MATCH)? {
        Some(tags) if !tags.has(tag, false) => return Err(failed()),
        Some(_) => {}
        None => match date(&IF_UNMODIFIED_SINCE) {
            Some((modified, date)) if modified > date => {
                let modified = httpdate::fmt_http_date(modified);
                let detail = format!(
                    "what is under the key was written on {modified}, after the date of the condition; look at it and try again"
                );
                return Err(Fault::new(Code::PreconditionFailed, detail));
            }
            Some(_) | None => {}
        },
    }
    match tags(headers, &IF_NONE_MATCH)? {
        Some(tags) if tags.has(tag, true) => Ok(Read::NotModified),
        None if date(&IF_MODIFIED_SINCE).is_some_and(|(modified, date)| modified <= date) => Ok(Read::NotModified),
        Some(_) | None => Ok(Read::Send),
    }
}

/// A time as headers have it.
pub(super) fn date(unix_ms: u64) -> String {
    // The year 9999 is the last one that the format has.
    let time: SystemTime = UNIX_EPOCH + Duration::from_secs(unix_ms.min(253_402_300_799_000) / 1000);
    httpdate::fmt_http_date(time)
}

/// Which part is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it: 200.
    Whole,
    /// From the first offset up to and with the last: 206.
    Range(u64, u64),
    /// Nothing of it is within the range: 416.
    Nothing,
}

/// The part that `Range` asks for. Several ranges, units other than bytes and what cannot be read are no range, and neither is one whose
/// `If-Range` is not the strong ETag.
pub(super) fn part(headers: &HeaderMap, tag: &str, len: u64) -> Part {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Part::Whole };
    let is_current = headers.get(IF_RANGE).is_none_or(|wanted| wanted.as_bytes() == format!("\"{tag}\"").as_bytes());
    let range = range.to_str().ok().filter(|_| is_current).and_then(|text| {
        let (unit, range) = text.split_once('=')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some(range.trim())
    });
    let Some((first, last)) = range.and_then(|range| range.split_once('-')) else { return Part::Whole };
    // More digits than fit say a number that is larger than any object.
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (first, number(first), last, number(last)) {
        ("", _, _, Some(0)) => Part::Nothing,
        ("", _, _, Some(_)) if len == 0 => Part::Nothing,
        ("", _, _, Some(count)) => Part::Range(len.saturating_sub(count), len - 1),
        (_, Some(first), _, Some(last)) if first > last => Part::Whole,
        (_, Some(first), "", _) | (_, Some(first), _, Some(_)) if first >= len => Part::Nothing,
        (_, Some(first), "", _) => Part::Range(first, len - 1),
        (_, Some(first), _, Some(last)) => Part::Range(first, last.min(len - 1)),
        _ => Part::Whole,
    }
}

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");

/// What the SHA-256 of a body must be, by `content-digest` or `repr-digest` (RFC 9530). Other algorithms are passed over.
///
/// # Errors
/// `bad-request` for a `sha-256` that is none, and for two that differ.
pub(super) fn announced_digest(headers: &HeaderMap) -> Result<Option<Digest>, Fault> {
    let mut found = None;
    for name in [&CONTENT_DIGEST, &REPR_DIGEST] {
        let Some(text) = text(headers, name)? else { continue };
        let members = text.split(',').filter_map(|member| member.trim().strip_prefix("sha-256="));
        for value in members {
            let digest =
                value.strip_prefix(':').and_then(|value| value.strip_suffix(':')).and_then(|text| STANDARD.decode(text).ok());
            let digest = digest.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()).map(Digest::from_bytes);
            let digest = digest.ok_or_else(|| bad(format!("'{name}' cannot be read: expected sha-256=:BASE64:")))?;
            if found.is_some_and(|other| other != digest) {
                return Err(bad("the digests that were announced differ".into()));
            }
            found = Some(digest);
        }
    }
    Ok(found)
}

/// A digest as `repr-digest` has it.
pub(super) fn repr_digest(digest: &Digest) -> String {
    format!("sha-256=:{}:", STANDARD.encode(digest.bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn writes_take_tags_a_star_or_a_date() {
        let of = |pairs: &[(&'static str, &str)]| of_write(&headers(pairs)).map_err(|fault| fault.code);
        assert_eq!(of(&[]), Ok(When::Always));
        assert_eq!(of(&[("if-none-match", " * ")]), Ok(When::Absent));
        assert_eq!(of(&[("if-match", "*")]), Ok(When::Present));
        assert_eq!(of(&[("if-match", "\"7\"")]), Ok(When::Tags(vec!["7".into()])));
        let several = Ok(When::Tags(vec!["7".into(), "9".into()]));
        assert_eq!(of(&[("if-match", "\"7\", W/\"8\" ,\"9\"")]), several);
        assert_eq!(of(&[("if-match", "\"7\""), ("if-match", "\"9\"")]), several, "a list may be cut anywhere");
        assert_eq!(of(&[("if-match", "W/\"7\"")]), Err(Code::PreconditionFailed));
        for wrong in ["*, \"7\"", "7", "\"7", "\"7\" \"8\"", "\"7\",", ""] {
            assert_eq!(of(&[("if-match", wrong)]), Err(Code::BadRequest), "{wrong}");
        }
        let at = UNIX_EPOCH + Duration::from_secs(1000);
        let dated = ("if-unmodified-since", &*date(1_000_000));
        assert_eq!(of(&[dated]), Ok(When::Unmodified(at)));
        assert_eq!(of(&[dated, ("if-match", "\"7\"")]), Ok(When::Tags(vec!["7".into()])), "the tag is better");
        assert_eq!(of(&[dated, ("if-none-match", "*")]), Ok(When::Absent));
        for wrong in [&[("if-unmodified-since", "yesterday")][..], &[dated, dated]] {
            assert_eq!(of(wrong), Err(Code::BadRequest), "{wrong:?}");
        }
        assert!(is_unmodified(1_000_999, at) && !is_unmodified(1_001_000, at));
        assert_eq!(of(&[("if-none-match", "\"7\"")]), Err(Code::BadRequest));
        assert_eq!(of(&[("if-match", "\"7\""), ("if-none-match", "*")]), Err(Code::BadRequest));
    }

    #[test]
    fn reads_go_by_the_order_of_the_standard() {
        let of = |pairs: &[(&'static str, &str)]| of_read(&headers(pairs), "a", Some(1_000_999)).map_err(|fault| fault.code);
        let (before, at) = (date(999_000), date(1_000_000));
        assert_eq!(of(&[]), Ok(Read::Send));
        for (name, value, expected) in [
            ("if-match", "\"b\", \"a\"", Ok(Read::Send)),
            ("if-match", "*", Ok(Read::Send)),
            ("if-match", "W/\"a\"", Err(Code::PreconditionFailed)),
            ("if-none-match", "\"b\", W/\"a\"", Ok(Read::NotModified)),
            ("if-none-match", "*", Ok(Read::NotModified)),
            ("if-none-match", "\"b\"", Ok(Read::Send)),
            ("if-modified-since", at.as_str(), Ok(Read::NotModified)),
            ("if-modified-since", before.as_str(), Ok(Read::Send)),
            ("if-modified-since", "yesterday", Ok(Read::Send)),
            ("if-unmodified-since", at.as_str(), Ok(Read::Send)),
            ("if-unmodified-since", before.as_str(), Err(Code::PreconditionFailed)),
        ] {
            assert_eq!(of(&[(name, value)]), expected, "{name}: {value}");
        }
        assert_eq!(of(&[("if-none-match", "\"b\""), ("if-modified-since", &at)]), Ok(Read::Send), "the tag is better");
        assert_eq!(of(&[("if-match", "\"a\""), ("if-unmodified-since", &before)]), Ok(Read::Send));
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        let of = |range: &str, len| part(&headers(&[("range", range)]), "a", len);
        for (range, expected) in [
            ("bytes=0-0", Part::Range(0, 0)),
            ("bytes=2-3", Part::Range(2, 3)),
            ("Bytes=2-", Part::Range(2, 9)),
            ("bytes=2-99", Part::Range(2, 9)),
            ("bytes=9-9", Part::Range(9, 9)),
            ("bytes=-3", Part::Range(7, 9)),
            ("bytes=-99", Part::Range(0, 9)),
            ("bytes=0-99999999999999999999999", Part::Range(0, 9)),
            ("bytes=10-", Part::Nothing),
            ("bytes=10-11", Part::Nothing),
            ("bytes=99999999999999999999999-", Part::Nothing),
            ("bytes=-0", Part::Nothing),
            ("bytes=3-2", Part::Whole),
            ("bytes=0-1,3-4", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=x-1", Part::Whole),
            ("bytes=1-x", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("lines=0-1", Part::Whole),
            ("bytes", Part::Whole),
        ] {
            assert_eq!(of(range, 10), expected, "{range}");
        }
        for range in ["bytes=0-", "bytes=0-0", "bytes=-1"] {
            assert_eq!(of(range, 0), Part::Nothing, "{range}");
        }
        let with = |if_range: &str| part(&headers(&[("range", "bytes=0-0"), ("if-range", if_range)]), "a", 10);
        assert_eq!(
            [with("\"a\""), with("\"b\""), with("W/\"a\""), with(&date(0))],
            [Part::Range(0, 0), Part::Whole, Part::Whole, Part::Whole]
        );
        assert_eq!(part(&headers(&[("range", "bytes=0-0"), ("range", "bytes=1-1")]), "a", 10), Part::Whole);
    }

    #[test]
    fn digests_are_read() {
        let digest = Digest::of(b"abc");
        let (text, other) = (repr_digest(&digest), repr_digest(&Digest::of(b"x")));
        let of = |pairs: &[(&'static str, &str)]| announced_digest(&headers(pairs)).map_err(|fault| fault.code);
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[("content-digest", "sha-512=:AAAA:")]), Ok(None));
        assert_eq!(of(&[("content-digest", &format!("sha-512=:AAAA:, {text}")), ("repr-digest", &text)]), Ok(Some(digest)));
        for wrong in [other.as_str(), "sha-256=abc", "sha-256=:AAAA:", "sha-256=:?:"] {
            assert_eq!(of(&[("content-digest", &text), ("repr-digest", wrong)]), Err(Code::BadRequest), "{wrong}");
        }
    }
}
