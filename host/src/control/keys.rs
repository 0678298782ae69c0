//! Keys and pages in targets: any bytes, percent-encoded.
//!
//! ```text
//! /v1/buckets/NAME/kv/KEY     KEY is the rest of the path, percent-decoded once; any byte may be written %XX, and a '/' stands for itself
//! ?prefix=BYTES&cursor=TEXT   '+' is a space in a query, as in forms; a cursor is the last key of the page before, in Base64
//! ```
//!
//! Owns that spelling. Knows nothing about what lies under a key: its length is checked where it is used. Invariant: nothing in a key has
//! a meaning, dots and slashes included, so no spelling leads from one bucket into another.

use std::str::FromStr;
use std::time::Duration;

use axum::extract::FromRequestParts;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::Uri;
use http::request::Parts;

use super::answer::Refusal;
use crate::fault::{Code, Fault};
use crate::limits::parse_time;

/// Slashes before the key: `/v1/buckets/NAME/KIND/`.
const SLASHES: usize = 5;
/// Items on one page, when the request is silent and at most.
const PAGE: usize = 1000;
const LIMIT: &str = "a number from 1 to 1000";

/// The key in the path.
#[derive(Debug)]
pub(super) struct Key(pub Vec<u8>);

impl<S: Send + Sync> FromRequestParts<S> for Key {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        let path = parts.uri.path();
        let rest = path.match_indices('/').nth(SLASHES - 1).map_or("", |(at, _)| &path[at + 1..]);
        Ok(Self(decode(rest, b'+')?))
    }
}

/// Of a route that takes nothing in its query: what is there may be a condition that was misspelled.
#[derive(Debug)]
pub(super) struct NoQuery;

impl<S: Send + Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Refusal> {
        Wanted::read(&parts.uri, &[])?;
        Ok(Self)
    }
}

/// Undoes percent-encoding; `plus` is what a '+' stands for.
pub(super) fn decode(text: &str, plus: u8) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let decoded = match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                let pair = digit().zip(digit()).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
                pair.ok_or_else(|| Fault::new(Code::BadRequest, "a '%' in the target is not followed by two hexadecimal digits"))?
            }
            b'+' => plus,
            other => other,
        };
        bytes.push(decoded);
    }
    Ok(bytes)
}

/// What a query asks for. Each name may be there once.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Only keys that begin with this.
    pub(super) prefix: Vec<u8>,
    /// Only keys after this one.
    pub(super) after: Option<Vec<u8>>,
    limit: Option<usize>,
    /// Whether entries come with their values.
    pub(super) values: bool,
    /// Whether changes are to be told from now on.
    pub(super) watch: bool,
    /// How long what is written stays.
    pub(super) ttl: Option<Duration>,
    /// What is added.
    pub(super) increment: Option<i64>,
}

impl Wanted {
    /// Reads the query of a route that takes the names in `known`.
    ///
    /// # Errors
    /// `bad-request` for another name, one that is there twice, and a value that cannot be read.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Fault> {
        let mut wanted = Self::default();
        let mut seen = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !known.contains(&name) || seen.contains(&name) {
                let name: String = name.chars().take(80).collect();
                let known = if known.is_empty() { "nothing".into() } else { known.join(", ") };
                let detail = format!("'{name}' in the query is unknown here, or there twice: expected {known}");
                return Err(Fault::new(Code::BadRequest, detail));
            }
            seen.push(name);
            wanted.set(name, decode(value, b' ')?)?;
        }
        Ok(wanted)
    }

    fn set(&mut self, name: &str, value: Vec<u8>) -> Result<(), Fault> {
        match name {
            "prefix" => self.prefix = value,
            "cursor" => self.after = Some(after(&value)?),
            "limit" => self.limit = Some(page(Some(parse(name, &value, LIMIT)?))?),
            "values" => self.values = parse(name, &value, "'true' or 'false'")?,
            "watch" => self.watch = parse(name, &value, "'true' or 'false'")?,
            "ttl" => self.ttl = Some(ttl(&String::from_utf8_lossy(&value))?),
            "increment" => self.increment = Some(parse(name, &value, "a number that an i64 holds")?),
            // The caller's list has none that is not above.
            _ => {}
        }
        Ok(())
    }

    /// Items on the page.
    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(PAGE)
    }
}

/// Items on a page of a list for which `limit` was asked.
///
/// # Errors
/// `bad-request` for none, and for more than a page has.
pub(super) fn page(limit: Option<usize>) -> Result<usize, Fault> {
    match limit.unwrap_or(PAGE) {
        limit @ 1..=PAGE => Ok(limit),
        limit => Err(Fault::new(Code::BadRequest, format!("'limit' in the query is {limit}: expected {LIMIT}"))),
    }
}

fn parse<T: FromStr>(name: &str, value: &[u8], expected: &str) -> Result<T, Fault> {
    let parsed = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| Fault::new(Code::BadRequest, format!("'{name}' in the query cannot be read: expected {expected}")))
}

/// A time to live as it is written.
pub(super) fn ttl(text: &str) -> Result<Duration, Fault> {
    let bad = || Fault::new(Code::BadRequest, "the time to live cannot be read: expected a time such as 10s, at most 36500days");
    parse_time(text).ok_or_else(bad)
}

/// The cursor of the page after this key.
pub(super) fn cursor(key: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(key)
}

fn after(cursor: &[u8]) -> Result<Vec<u8>, Fault> {
    URL_SAFE_NO_PAD.decode(cursor).map_err(|_| Fault::new(Code::BadRequest, "the cursor is none that this host gave out"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Wanted, Code> {
        let uri = format!("/x?{query}").parse().unwrap();
        Wanted::read(&uri, &["prefix", "cursor", "limit", "ttl"]).map_err(|fault| fault.code)
    }

    #[test]
    fn any_bytes_can_be_written() {
        for (text, bytes) in
            [("a%2fb/c", &b"a/b/c"[..]), ("%00%FF", b"\0\xff"), ("%25%32%35", b"%25"), ("a+b", b"a+b"), ("", b"")]
        {
            assert_eq!(decode(text, b'+').unwrap(), bytes, "{text}");
        }
        for bad in ["%", "%1", "%zz", "a%2", "%+1"] {
            assert!(decode(bad, b'+').is_err(), "{bad}");
        }
    }

    #[test]
    fn queries_are_read() {
        let wanted = read("prefix=a+%ff&limit=5&ttl=1s").unwrap();
        assert_eq!((wanted.prefix.as_slice(), wanted.limit(), wanted.ttl), (&b"a \xff"[..], 5, Some(Duration::from_secs(1))));
        assert_eq!(read(&format!("cursor={}", cursor(b"\0\xff"))).unwrap().after.unwrap(), b"\0\xff");
        assert_eq!(
            [read("limit=1").unwrap().limit(), read("limit=1000").unwrap().limit(), read("").unwrap().limit()],
            [1, 1000, 1000]
        );
        for bad in [
            "other=1",
            "limit=x",
            "limit=-1",
            "limit=0",
            "limit=1001",
            "ttl=10",
            "ttl=x",
            "cursor=!",
            "prefix=a&prefix=b",
            "prefix=%z",
        ] {
            assert_eq!(read(bad), Err(Code::BadRequest), "{bad}");
        }
    }
}
