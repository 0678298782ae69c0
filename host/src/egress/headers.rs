//! Which headers a request of a function has when it leaves.
//!
//! Owns the list of those that are the host's to set, and the count of hops. A function that sets one of them is not refused: a proxy
//! hands on what it was sent. Invariant: what frames the message, names its server, or tells where it came from is the host's word.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body::Body;

use super::body::RequestBody;
use super::error::EgressError;
use crate::grants::http::Destination;
use crate::invocation::{HOB_HOPS, Hops};

/// Of the connection (RFC 9110, 7.6.1), of proxies, or what would be a claim about where the request came from.
static NOT_SENT: [HeaderName; 14] = [
    header::HOST,
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("http2-settings"),
];

/// Longest value of `content-length` that is one.
const LENGTH_DIGITS_MAX: usize = 19;

/// Takes out what is not a function's to say, and puts in the host's own.
///
/// # Errors
/// [`EgressError::BadLength`].
pub(super) fn clean(headers: &mut HeaderMap, body: &RequestBody, to: &Destination, hops: Hops) -> Result<(), EgressError> {
    let length = length(headers)?;
    match (length, body.size_hint().exact()) {
        (Some(announced), Some(exact)) if announced != exact => return Err(EgressError::BadLength),
        // hyper says it.
        (Some(_), Some(_)) => drop(headers.remove(header::CONTENT_LENGTH)),
        // hyper holds the body against it: more is not sent, less ends the connection.
        (Some(_), None) | (None, _) => {}
    }
    let of_host = |name: &str| name.starts_with("hob-") || name.starts_with("x-forwarded-");
    let goes = |name: &&HeaderName| NOT_SENT.contains(name) || of_host(name.as_str());
    let gone: Vec<HeaderName> = headers.keys().filter(goes).cloned().collect();
    for name in gone {
        headers.remove(name);
    }
    // A name or an address and a port: all legal in a header.
    let host = HeaderValue::try_from(to.authority()).map_err(|_| EgressError::BadTarget)?;
    headers.insert(header::HOST, host);
    headers.insert(HOB_HOPS.clone(), hops.next().value());
    Ok(())
}

/// What `content-length` says.
fn length(headers: &HeaderMap) -> Result<Option<u64>, EgressError> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits = value
        .to_str()
        .ok()
        .filter(|text| (1..=LENGTH_DIGITS_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit()));
    match (digits.and_then(|digits| digits.parse().ok()), values.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(EgressError::BadLength),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    fn cleaned(headers: &[(&str, &str)], body: &'static str) -> Result<Vec<String>, EgressError> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        let to = Destination::of(&"http://a.b:81/".parse().unwrap()).unwrap();
        let body = Full::new(Bytes::from_static(body.as_bytes())).map_err(|error| match error {}).boxed_unsync();
        clean(&mut map, &body, &to, Hops::default())?;
        let mut left: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort_unstable();
        Ok(left)
    }

    #[test]
    fn what_is_the_hosts_to_say_is_the_hosts() {
        let left = cleaned(
            &[
                ("Host", "metadata.internal"),
                ("connection", "upgrade, x-a"),
                ("keep-alive", "1"),
                ("proxy-connection", "1"),
                ("proxy-authorization", "1"),
                ("proxy-authenticate", "1"),
                ("te", "trailers"),
                ("trailer", "x"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("forwarded", "for=1"),
                ("via", "1"),
                ("x-forwarded-for", "127.0.0.1"),
                ("X-Forwarded-Host", "a"),
                ("http2-settings", "a"),
                ("hob-hops", "0"),
                ("hob-hops", "0"),
                ("hob-tenant", "other"),
                ("accept", "*/*"),
                ("authorization", "Bearer a"),
                ("cookie", "a=b"),
                ("hobby", "chess"),
                ("x-real-ip", "1"),
            ],
            "",
        );
        assert_eq!(
            left.unwrap(),
            [
                "accept: */*",
                "authorization: Bearer a",
                "cookie: a=b",
                "hob-hops: 1",
                "hobby: chess",
                "host: a.b:81",
                "x-real-ip: 1"
            ]
        );
    }

    #[test]
    fn the_length_is_the_body_s_or_none() {
        assert_eq!(cleaned(&[("content-length", "5")], "hello").unwrap(), ["hob-hops: 1", "host: a.b:81"]);
        for bad in ["4", "6", "+5", "5,5", "5 ", "0x5", "-1", "", "18446744073709551621"] {
            assert_eq!(cleaned(&[("content-length", bad)], "hello"), Err(EgressError::BadLength), "{bad}");
        }
        assert_eq!(cleaned(&[("content-length", "5"), ("content-length", "5")], "hello"), Err(EgressError::BadLength));
    }
}
