//! Grants of outbound HTTP: which servers a function may send requests to.
//!
//! Owns how a server is written, in a manifest and in a request, so that both are read by the same code. Knows nothing about addresses
//! that names stand for (`egress` does). Invariant: a [`Host`] has one spelling. An address in any other than the usual one
//! (`2130706433`, `0x7f.1`, `0177.0.0.1`) is no host at all: the system's resolver would take it for one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;
use http::uri::Authority;
use serde::{Deserialize, Serialize};

/// Most grants of HTTP of one function.
pub const HTTP_GRANTS_MAX: usize = 64;
/// Longest name of a host, and of one part of it, in bytes (RFC 1035).
const NAME_LEN_MAX: usize = 253;
const LABEL_LEN_MAX: usize = 63;

/// How a server is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In the clear.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that is meant when none is written.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Http, Self::Https].into_iter().find(|scheme| scheme.as_str() == text)
    }
}

/// A server by its name or its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// In lower case, without a dot at its end.
    Name(String),
    /// An IPv4 address that was written as an IPv6 one is the IPv4 one.
    Ip(IpAddr),
}

impl Host {
    fn parse(text: &str) -> Option<Self> {
        if let Some(inner) = text.strip_prefix('[') {
            let address: Ipv6Addr = inner.strip_suffix(']')?.parse().ok()?;
            return Some(Self::Ip(IpAddr::V6(address).to_canonical()));
        }
        if let Ok(address) = text.parse::<Ipv4Addr>() {
            return Some(Self::Ip(address.into()));
        }
        is_name(text).then(|| Self::Name(text.to_ascii_lowercase()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Ip(IpAddr::V4(address)) => address.fmt(f),
            Self::Ip(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// Whether it is the name of a host, and could not be read as an address.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_LEN_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = |label: &str| {
        let digits = label.strip_prefix("0x").or_else(|| label.strip_prefix("0X"));
        label.bytes().all(|byte| byte.is_ascii_digit()) || digits.is_some_and(|d| d.bytes().all(|byte| byte.is_ascii_hexdigit()))
    };
    text.len() <= NAME_LEN_MAX && text.split('.').all(is_label) && !is_number(last)
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    /// How.
    pub scheme: Scheme,
    /// To whom.
    pub host: Host,
    /// At which port.
    pub port: u16,
}

impl Destination {
    /// Where a request with this target goes; `None` if it names no server, or names it together with a user, or in a way that the
    /// module refuses.
    #[must_use]
    pub fn of(uri: &Uri) -> Option<Self> {
        let scheme = Scheme::parse(uri.scheme_str()?)?;
        let (host, port) = split(uri.authority()?.as_str())?;
        Some(Self { scheme, host: Host::parse(host)?, port: port.unwrap_or(scheme.port()) })
    }

    /// Host and port as the header `host` and a target have them: a port that goes without saying is left out.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.port == self.scheme.port() { self.host.to_string() } else { format!("{}:{}", self.host, self.port) }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme.as_str(), self.authority())
    }
}

/// Host and port of an authority without a user.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rfind(':') {
        // The colons of an address in brackets.
        Some(at) if !authority[at..].contains(']') => (&authority[..at], Some(&authority[at + 1..])),
        _ => (authority, None),
    };
    let port = match port {
        None => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => Some(digits.parse().ok().filter(|port| *port > 0)?),
        Some(_) => return None,
    };
    Some((host, port))
}

/// Servers that a function may send requests to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HttpGrant {
    /// How.
    pub scheme: Scheme,
    /// Which.
    pub hosts: Hosts,
    /// At which port.
    pub port: u16,
}

/// Hosts of one grant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hosts {
    /// One.
    One(Host),
    /// All whose names end in a dot and this.
    Below(String),
}

impl HttpGrant {
    /// Whether it allows requests to go there.
    #[must_use]
    pub fn allows(&self, to: &Destination) -> bool {
        let host = match (&self.hosts, &to.host) {
            (Hosts::One(host), there) => host == there,
            (Hosts::Below(suffix), Host::Name(name)) => {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            (Hosts::Below(_), Host::Ip(_)) => false,
        };
        host && (self.scheme, self.port) == (to.scheme, to.port)
    }
}

/// Text that is no grant of HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no server: expected a scheme, a host or *.SUFFIX, and perhaps a port, such as 'https://api.example.com', 'http://*.example.com:8080' or 'http://10.1.2.3:81', and nothing after it"
)]
pub struct NoServer(String);

impl FromStr for HttpGrant {
    type Err = NoServer;

    fn from_str(text: &str) -> Result<Self, NoServer> {
        let parse = || {
            let (scheme, authority) = text.split_once("://")?;
            let scheme = Scheme::parse(scheme)?;
            let (host, port) = split(authority)?;
            let hosts = match host.strip_prefix("*.") {
                Some(suffix) if is_name(suffix) => Hosts::Below(suffix.to_ascii_lowercase()),
                Some(_) => return None,
                None => Hosts::One(Host::parse(host)?),
            };
            // What no request could have in its place.
            authority.trim_start_matches("*.").parse::<Authority>().ok()?;
            Some(Self { scheme, hosts, port: port.unwrap_or(scheme.port()) })
        };
        parse().ok_or_else(|| NoServer(text.chars().take(NAME_LEN_MAX).collect()))
    }
}

impl TryFrom<String> for HttpGrant {
    type Error = NoServer;

    fn try_from(text: String) -> Result<Self, NoServer> {
        text.parse()
    }
}

impl From<HttpGrant> for String {
    fn from(grant: HttpGrant) -> Self {
        grant.to_string()
    }
}

impl fmt::Display for HttpGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://", self.scheme.as_str())?;
        match &self.hosts {
            Hosts::One(host) => host.fmt(f)?,
            Hosts::Below(suffix) => write!(f, "*.{suffix}")?,
        }
        if self.port == self.scheme.port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(uri: &str) -> Option<Destination> {
        uri.parse().ok().and_then(|uri| Destination::of(&uri))
    }

    fn allows(grant: &str, uri: &str) -> bool {
        grant.parse::<HttpGrant>().unwrap().allows(&to(uri).unwrap_or_else(|| panic!("{uri}")))
    }

    #[test]
    fn a_grant_allows_one_server_or_those_below_a_name() {
        assert!(allows("https://api.example.com", "https://API.example.com:443/a?b"));
        assert!(allows("https://*.example.com", "https://a.b.example.com/"));
        assert!(allows("http://10.1.2.3:81", "http://10.1.2.3:81/"));
        assert!(allows("http://127.0.0.1:81", "http://[::ffff:127.0.0.1]:81/"), "one address has one spelling");
        assert!(allows("http://[fd00::1]", "http://[fd00:0::1]/"));
        for (grant, uri) in [
            ("https://api.example.com", "http://api.example.com/"),
            ("https://api.example.com", "https://api.example.com:444/"),
            ("https://api.example.com", "https://example.com/"),
            ("https://api.example.com", "https://api.example.com.evil.org/"),
            ("https://*.example.com", "https://example.com/"),
            ("https://*.example.com", "https://evilexample.com/"),
            ("http://10.1.2.3", "http://10.1.2.4/"),
        ] {
            assert!(!allows(grant, uri), "{grant} {uri}");
        }
    }

    #[test]
    fn what_is_no_server_is_refused() {
        for good in
            ["http://a", "https://*.co", "http://a:1", "http://a_b.c:65535", "http://[::1]:1", "https://xn--bcher-kva.example"]
        {
            assert_eq!(good.parse::<HttpGrant>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "a",
            "a.b",
            "//a",
            "ftp://a",
            "http:/a",
            "http://",
            "http://a/",
            "http://a/b",
            "http://a?b",
            "http://a#b",
            "http://u@a",
            "http://u:p@a",
            "http://*",
            "http://*.",
            "http://*.1",
            "http://a.*",
            "http://*a",
            "http://a:0",
            "http://a:65536",
            "http://a:",
            "http://a:x",
            "http://a:+1",
            "http://a.",
            "http://.a",
            "http://a..b",
            "http://-a",
            "http://2130706433",
            "http://0x7f000001",
            "http://0177.0.0.1",
            "http://127.1",
            "http://1.2.3.4.5",
            "http://[::1",
            "http://::1",
            "http://[::1%25eth0]",
            "http://a b",
            "http://bücher.example",
            "HTTP://a",
            " http://a",
            "http://a\n",
        ] {
            let error = bad.parse::<HttpGrant>().unwrap_err().to_string();
            assert!(error.contains("expected a scheme"), "{error}");
        }
        let long = format!("http://{}", vec!["a"; 127].join("."));
        assert!(long.parse::<HttpGrant>().is_ok() && format!("{long}.a").parse::<HttpGrant>().is_err());
    }

    #[test]
    fn requests_name_a_server_in_one_spelling_or_none() {
        assert_eq!(to("http://EXAMPLE.com:80/x").unwrap().to_string(), "http://example.com");
        assert_eq!(to("https://[2001:DB8::1]:8443/x").unwrap().authority(), "[2001:db8::1]:8443");
        for bad in [
            "/x",
            "ftp://a/",
            "http://u@a/",
            "http://u:p@a/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.1/",
            "http://127.0.0.1./",
            "http://a:0/",
            "http://a:99999/",
            "http://a./",
            "http://%31/",
            "http://a!b/",
        ] {
            assert_eq!(to(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_grant_is_kept_as_it_is_written() {
        let grant: HttpGrant = "http://*.Example.com:8080".parse().unwrap();
        let json = serde_json::to_string(&grant).unwrap();
        assert_eq!(json, "\"http://*.example.com:8080\"");
        assert_eq!(serde_json::from_str::<HttpGrant>(&json).unwrap(), grant);
        assert!(serde_json::from_str::<HttpGrant>("\"http://a/b\"").is_err());
    }
}
