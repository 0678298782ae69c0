//! Who may speak to the control port: programs on this machine, not web pages that a browser on it happens to show.
//!
//! Owns the check of `Host`, `Origin` and `Sec-Fetch-Site`. A page of any site can send requests to a loopback address, and by giving its own
//! name that address ("DNS rebinding") it can read the answers too; both are visible in these headers, which a page cannot forge. Needed as
//! long as the port may ask for no token, which is on loopback; elsewhere it has whatever name its operator gave it, and a page has no token.
//! Another port of this machine is another site: functions answer with pages on the data port, and those are not the operator's.

use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::access::FirstStart;
use crate::fault::{Code, Fault};

/// How near the page is that a browser sends a request for, in the browser's own words (W3C, Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Refuses a request that a web page of another site sent, or that reached this port under a name that is not this machine's. `scheme`: what this
/// port speaks, `http` or `https`.
///
/// # Errors
/// `forbidden`.
pub(super) fn check(headers: &HeaderMap, scheme: &str, first_start: FirstStart) -> Result<(), Fault> {
    if first_start == FirstStart::Closed {
        return Ok(());
    }
    // What is no text is no name.
    let host = headers.get(HOST).map(|host| host.to_str().unwrap_or_default());
    if host.is_some_and(|host| !is_local(host)) {
        let fault = Fault::new(Code::Forbidden, "the control port was reached under a name that is not this machine's");
        return Err(fault.hint("use http://127.0.0.1:3900 or http://localhost:3900"));
    }
    let is_own = |origin: &HeaderValue| {
        let authority = origin.to_str().ok().and_then(|origin| origin.strip_prefix(scheme)?.strip_prefix("://"));
        authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    // `none` is a person who typed the address. A link is refused as well: invoking a function takes no more than one.
    let is_near = |site: &HeaderValue| site == "same-origin" || site == "none";
    if headers.get_all(ORIGIN).iter().all(is_own) && headers.get_all(SEC_FETCH_SITE).iter().all(is_near) {
        return Ok(());
    }
    let fault = Fault::new(Code::Forbidden, "a web page of another site, or of another port, may not use the control port");
    Err(fault.hint("use a program such as hob or curl, or type the address"))
}

/// Whether `host` (with or without a port) names the loopback of this machine.
fn is_local(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_s_names_are_local() {
        for good in ["localhost", "LOCALHOST:3900", "127.0.0.1", "127.0.0.1:3900", "127.8.8.8:1", "[::1]", "[::1]:3900"] {
            assert!(is_local(good), "{good}");
        }
        for bad in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:3900",
            "10.0.0.1",
            "[::2]:3900",
            "[::1",
            "null",
        ] {
            assert!(!is_local(bad), "{bad}");
        }
    }

    fn checked(scheme: &str, lines: &[(HeaderName, &'static str)]) -> Result<(), Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, HeaderValue::from_static(value));
        }
        check(&headers, scheme, FirstStart::Open).map_err(|fault| fault.code)
    }

    #[test]
    fn pages_of_other_sites_are_refused() {
        let with = |scheme, host, origin| checked(scheme, &[(HOST, host), (ORIGIN, origin)]);
        assert_eq!(checked("http", &[(HOST, "127.0.0.1:3900")]), Ok(()));
        assert_eq!(checked("http", &[(HOST, "evil.example:3900")]), Err(Code::Forbidden));
        for (scheme, host, origin) in [
            ("http", "127.0.0.1:3900", "http://127.0.0.1:3900"),
            ("http", "localhost:3900", "http://LOCALHOST:3900"),
            ("http", "[::1]:3900", "http://[::1]:3900"),
            ("https", "localhost", "https://localhost"),
        ] {
            assert_eq!(with(scheme, host, origin), Ok(()), "{origin}");
        }
        for (scheme, host, origin) in [
            // The data port, and whatever else listens on this machine.
            ("http", "127.0.0.1:3900", "http://127.0.0.1:3000"),
            ("http", "127.0.0.1:3900", "http://localhost:3900"),
            ("http", "127.0.0.1:3900", "http://127.0.0.1"),
            ("http", "127.0.0.1:3900", "https://127.0.0.1:3900"),
            ("https", "localhost", "http://localhost"),
            ("http", "127.0.0.1:3900", "http://127.0.0.1:3900.evil.example"),
            ("http", "127.0.0.1:3900", "http://127.0.0.1:3900/"),
            ("http", "127.0.0.1:3900", "127.0.0.1:3900"),
            ("http", "127.0.0.1:3900", "http://evil.example"),
            ("http", "127.0.0.1:3900", "null"),
            ("http", "127.0.0.1:3900", ""),
        ] {
            assert_eq!(with(scheme, host, origin), Err(Code::Forbidden), "{origin}");
        }
        assert_eq!(checked("http", &[(ORIGIN, "http://")]), Err(Code::Forbidden), "a request without a host");
        let twice = [(HOST, "localhost"), (ORIGIN, "http://localhost"), (ORIGIN, "null")];
        assert_eq!(checked("http", &twice), Err(Code::Forbidden));
    }

    #[test]
    fn what_a_browser_says_of_the_page_counts() {
        for (site, result) in [
            ("none", Ok(())),
            ("same-origin", Ok(())),
            ("same-site", Err(Code::Forbidden)),
            ("cross-site", Err(Code::Forbidden)),
            ("", Err(Code::Forbidden)),
        ] {
            assert_eq!(checked("http", &[(HOST, "localhost:3900"), (SEC_FETCH_SITE, site)]), result, "{site}");
        }
    }

    #[test]
    fn elsewhere_than_on_loopback_a_token_is_what_counts() {
        let headers = HeaderMap::from_iter([(HOST, HeaderValue::from_static("hob.example"))]);
        assert!(check(&headers, "https", FirstStart::Closed).is_ok());
    }
}
