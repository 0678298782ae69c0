//! Which headers cross a port.
//!
//! Owns the taking away of those that do not (`headers.rs` lists them). Knows nothing about their values, except which ones `connection` names.
//! One pass finds what has to go; most requests and responses have nothing that does, and then nothing is hashed or allocated.

use http::header::{self, HeaderMap, HeaderName};

use super::exchange::Timing;
use crate::headers::{never_reaches_a_function, stays_outside};

/// Response header with the phases of an invocation.
pub(super) static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const TIMING: &str = "hob-timing";

/// Removes what is not for the guest; says whether the client asked for `server-timing`.
pub(super) fn clean_request(headers: &mut HeaderMap) -> Timing {
    if !headers.keys().any(never_reaches_a_function) {
        return Timing::Unasked;
    }
    let asked = headers.get(TIMING).is_some_and(|value| value == "1");
    remove(headers, never_reaches_a_function);
    if asked { Timing::Asked } else { Timing::Unasked }
}

/// Removes what is not the guest's to say. `content-length` is left for the caller.
pub(super) fn clean_response(headers: &mut HeaderMap) {
    if headers.keys().any(stays_outside) {
        remove(headers, stays_outside);
    }
}

fn remove(headers: &mut HeaderMap, goes: impl Fn(&HeaderName) -> bool) {
    let mut names: Vec<HeaderName> = headers.keys().filter(|name| goes(name)).cloned().collect();
    // Headers that this `connection` names belong to the connection too, whatever they are called.
    let named = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named = named.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok());
    names.extend(named.filter(|name| !FRAMING.contains(name)));
    for name in names {
        headers.remove(name);
    }
}

/// What a peer must not be able to take away by naming it in `connection`.
static FRAMING: [HeaderName; 2] = [header::CONTENT_LENGTH, header::HOST];

#[cfg(test)]
mod tests {
    use super::*;

    fn cleaned(headers: &[(&'static str, &'static str)]) -> (Vec<String>, Timing) {
        let mut map: HeaderMap = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let timing = clean_request(&mut map);
        let mut left: Vec<_> = map.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        left.sort_unstable();
        (left, timing)
    }

    #[test]
    fn ordinary_headers_stay() {
        let (left, timing) = cleaned(&[("host", "x"), ("content-length", "3"), ("cookie", "a=b"), ("hobby", "chess")]);
        assert_eq!(left, ["content-length: 3", "cookie: a=b", "hobby: chess", "host: x"]);
        assert_eq!(timing, Timing::Unasked);
    }

    #[test]
    fn hobs_own_and_those_of_the_connection_go() {
        let (left, timing) = cleaned(&[
            ("Host", "x"),
            ("Hob-Tenant", "evil"),
            ("hob-timing", "1"),
            ("hob-executed", "0"),
            ("Connection", "keep-alive, X-Secret, content-length"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("trailer", "x"),
            ("proxy-connection", "close"),
            ("expect", "100-continue"),
            ("content-length", "3"),
        ]);
        assert_eq!(left, ["content-length: 3", "host: x"]);
        assert_eq!(timing, Timing::Asked);
    }

    #[test]
    fn timing_is_asked_for_with_1() {
        for (value, expected) in [("1", Timing::Asked), ("0", Timing::Unasked), ("true", Timing::Unasked)] {
            assert_eq!(cleaned(&[("hob-timing", value)]).1, expected);
        }
    }
}
