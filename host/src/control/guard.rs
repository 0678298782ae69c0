//! Who may speak to the control port: programs on this machine, not web pages that a browser on it happens to show.
//!
//! Owns the check of `Host` and `Origin`. A page of any site can send requests to a loopback address, and by giving its own name that
//! address ("DNS rebinding") it can read the answers too; both are visible in these headers, which a page cannot forge. Needed as
//! long as the port may ask for no token, which is on loopback; elsewhere it has whatever name its operator gave it, and a page has no token.

use std::net::IpAddr;

use http::header::{HOST, ORIGIN};
use http::{HeaderMap, HeaderValue};

use super::access::FirstStart;
use crate::fault::{Code, Fault};

/// Refuses a request that a web page of another site sent, or that reached this port under a name that is not this machine's.
///
/// # Errors
/// `forbidden`.
pub(super) fn check(headers: &HeaderMap, first_start: FirstStart) -> Result<(), Fault> {
    if first_start == FirstStart::Closed {
        return Ok(());
    }
    let text = |value: &HeaderValue| value.to_str().ok().map(ToOwned::to_owned);
    if let Some(host) = headers.get(HOST)
        && !text(host).is_some_and(|host| is_local(&host))
    {
        let fault = Fault::new(Code::Forbidden, "the control port was reached under a name that is not this machine's");
        return Err(fault.hint("use http://127.0.0.1:3900 or http://localhost:3900"));
    }
    match headers.get(ORIGIN) {
        Some(origin) if !text(origin).is_some_and(|origin| is_local(origin.split_once("://").map_or("", |(_, host)| host))) => {
            Err(Fault::new(Code::Forbidden, "a web page of another site may not use the control port"))
        }
        _ => Ok(()),
    }
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

    #[test]
    fn pages_of_other_sites_are_refused() {
        let check = |host: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static(host));
            if let Some(origin) = origin {
                headers.insert(ORIGIN, HeaderValue::from_static(origin));
            }
            super::check(&headers, FirstStart::Open).map_err(|fault| fault.code)
        };
        assert_eq!(check("127.0.0.1:3900", None), Ok(()));
        assert_eq!(check("localhost:3900", Some("http://localhost:8000")), Ok(()));
        assert_eq!(check("127.0.0.1:3900", Some("http://evil.example")), Err(Code::Forbidden));
        assert_eq!(check("127.0.0.1:3900", Some("null")), Err(Code::Forbidden));
        assert_eq!(check("evil.example:3900", None), Err(Code::Forbidden));
    }
}
