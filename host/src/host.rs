//! Hosts: the name under which a request came, and the names that tenants declare.
//!
//! Owns how a host is spelled: lower case, without its port and without a final dot, so that two spellings of one name are one; and what a `Host`
//! header can say at all. Knows nothing about whose it is. Invariant: nothing here allocates for a request.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

use http::header::HOST;
use http::request::Parts;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of a host, in bytes (RFC 1035, 2.3.4).
pub const HOST_LEN_MAX: usize = 253;

/// A name of a host as somebody declares it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(Arc<str>);

/// Text that is no name of a host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no name of a host: expected one such as 'shop.example.com', without scheme, port or path; names with other letters as they are in DNS, 'xn--…'"
)]
pub struct HostError(String);

impl HostName {
    /// The name as text, in lower case.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostName {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let label = |label: &str| {
            let legal = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            (1..=63).contains(&label.len()) && legal && !label.starts_with('-') && !label.ends_with('-')
        };
        let good = name.len() <= HOST_LEN_MAX && name.split('.').all(label);
        // A hostile name may be long: the error shows its beginning only.
        if good { Ok(Self(name.to_ascii_lowercase().into())) } else { Err(HostError(text.chars().take(80).collect())) }
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

impl std::borrow::Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The host that a request names, as it is compared: on the stack. Empty if it names none, or one that is too long for any. Of text that is no
/// [authority](is_authority) it is some text that nobody can declare.
#[derive(Debug, Clone, Copy)]
pub struct RequestHost {
    bytes: [u8; HOST_LEN_MAX],
    len: u8,
}

impl RequestHost {
    /// Of a request: from its target if that is absolute, as RFC 9112 (3.2.2) has it, else from its `Host`.
    #[must_use]
    pub fn of(head: &Parts) -> Self {
        let named = match head.uri.authority() {
            Some(authority) => authority.as_str().as_bytes(),
            None => head.headers.get(HOST).map_or(&b""[..], |value| value.as_bytes()),
        };
        Self::normal(named)
    }

    fn normal(named: &[u8]) -> Self {
        let mut host = Self { bytes: [0; HOST_LEN_MAX], len: 0 };
        let name = without_port(named);
        let name = name.strip_suffix(b".").unwrap_or(name);
        if let Some(place) = host.bytes.get_mut(..name.len())
            && name.is_ascii()
        {
            place.copy_from_slice(name);
            place.make_ascii_lowercase();
            host.len = u8::try_from(name.len()).unwrap_or_default();
        }
        host
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII was put there.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

fn without_port(named: &[u8]) -> &[u8] {
    match named.iter().rposition(|b| *b == b':') {
        Some(at) if named[at + 1..].iter().all(u8::is_ascii_digit) => &named[..at],
        _ => named,
    }
}

/// Whether it is `host [":" port]`, as `Host` has it (RFC 9110, 7.2; RFC 3986, 3.2.2). The host may be empty, and so may the port; one dot may end a
/// name, and no label of it is empty, as in no name of DNS.
#[must_use]
pub fn is_authority(text: &[u8]) -> bool {
    let behind = match text {
        [b'[', literal @ ..] => behind_address(literal),
        name => behind_name(name),
    };
    match behind {
        Some([]) => true,
        Some([b':', port @ ..]) => is_port(port),
        _ => false,
    }
}

/// What follows the address that ends with ']'. Addresses of a version to come (`IPvFuture`) are none: nobody can be reached by one.
fn behind_address(literal: &[u8]) -> Option<&[u8]> {
    let len = literal.iter().position(|byte| *byte == b']')?;
    let address = std::str::from_utf8(&literal[..len]).ok()?;
    address.parse::<Ipv6Addr>().is_ok().then(|| &literal[len + 1..])
}

/// What follows a registered name, as which an IPv4 address may be read too. Of its legal characters the comma is left out: no name that is in
/// use has one, and some readers take it for the end of the first host of a list. An empty label makes it none: readers differ in how many dots they
/// take for the final one, and so in whose host it is.
fn behind_name(name: &[u8]) -> Option<&[u8]> {
    let mut text = name;
    let behind = loop {
        text = match text {
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest,
            [byte, rest @ ..] if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+;=".contains(byte) => rest,
            rest => break rest,
        }
    };
    let name = &name[..name.len() - behind.len()];
    let mut labels = name.strip_suffix(b".").unwrap_or(name).split(|byte| *byte == b'.');
    (name.is_empty() || labels.all(|label| !label.is_empty())).then_some(behind)
}

/// Whether these are digits of a number that a port can have.
fn is_port(text: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    text.iter().try_fold(0u16, |port, byte| port.checked_mul(10)?.checked_add(digit(byte)?)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str, target: &str) -> String {
        let request = http::Request::builder().uri(target).header(HOST, host).body(()).unwrap();
        RequestHost::of(&request.into_parts().0).as_str().to_owned()
    }

    #[test]
    fn all_spellings_of_a_host_are_one() {
        for host in ["shop.example", "SHOP.Example", "shop.example.", "shop.example:80", "Shop.example.:3000", "shop.example:"] {
            assert_eq!(of(host, "/a"), "shop.example", "{host}");
        }
        assert_eq!(of("other.example", "http://Shop.example:80/a"), "shop.example", "the target comes first");
        assert_eq!(of("[::1]:3000", "/"), "[::1]");
        assert_eq!(of("127.0.0.1:3000", "/"), "127.0.0.1");
        let (longest, longer) = ("a".repeat(HOST_LEN_MAX), "a".repeat(HOST_LEN_MAX + 1));
        assert_eq!((of(&longest, "/").len(), of(&longer, "/").len()), (HOST_LEN_MAX, 0));
        let bare = http::Request::builder().uri("/").body(()).unwrap().into_parts().0;
        assert_eq!(RequestHost::of(&bare).as_str(), "");
        assert_eq!(RequestHost::normal("shöp.example".as_bytes()).as_str(), "");
        assert_eq!(RequestHost::normal(b"").as_str(), "");
    }

    #[test]
    fn declared_hosts_on_both_sides_of_the_rule() {
        let longest = [&"a".repeat(63)[..], &"b".repeat(63), &"c".repeat(63), &"d".repeat(61)].join(".");
        for good in ["a", "shop.example.com", "xn--bcher-kva.example", "A.example.", &longest] {
            let name = good.parse::<HostName>().unwrap();
            assert_eq!(name.as_str(), good.trim_end_matches('.').to_ascii_lowercase());
        }
        let too_long = format!("{longest}a");
        for bad in ["", ".", "a..b", ".a", "-a.b", "a-.b", "a:80", "http://a", "a/b", "ä.example", "a_b", "*.a", "a b", &too_long]
        {
            assert!(bad.parse::<HostName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn authorities_that_are_possible() {
        for good in [
            "",
            ":",
            ":80",
            "a",
            "shop.example:",
            "SHOP.example.:3000",
            "a.",
            "xn--bcher-kva.example",
            "my_service~1:80",
            "b%c3%BCcher",
            "!$&'()*+;=",
            "127.0.0.1:0",
            "1.2.3.999",
            "x:65535",
            "x:0000065535",
            "[::]",
            "[::1]:3000",
            "[::ffff:1.2.3.4]:",
            "[2001:DB8:0:1:2:3:4:5]",
            "[1:2:3:4:5:6:7::]",
        ] {
            assert!(is_authority(good.as_bytes()), "{good}");
        }
    }

    #[test]
    fn authorities_that_are_not_possible() {
        for bad in [
            "a b",
            "a\tb",
            "a b/c",
            "a/",
            "a?b",
            "a#b",
            "http://a",
            "a@b",
            "@b",
            "x,y",
            "x,",
            ".",
            "..",
            ".a",
            "a..",
            "a..:80",
            "a..b",
            ".:80",
            "a\\b",
            "a\"b",
            "<a>",
            "a|b",
            "{a}",
            "a^b",
            "`a`",
            "a\0",
            "a\u{7f}",
            "b\u{fc}cher",
            "%",
            "a%2",
            "a%2g",
            "%g2",
            "x:65536",
            "x:99999",
            "x:4295032832",
            "x:-1",
            "x:+1",
            "x: 1",
            "x:1 ",
            "x:1a",
            "x:80:80",
            "x::",
            "::1",
            "[::1",
            "::1]",
            "[]",
            "[",
            "]",
            "[::1]]",
            "[[::1]]",
            "[::1]x",
            "[::1]:x",
            "[::1]:65536",
            "[127.0.0.1]",
            "[a]",
            "[::1%25lo]",
            "[::1::2]",
            "[1:2:3:4:5:6:7]",
            "[1:2:3:4:5:6:7:8:9]",
            "[12345::]",
            "[::1.2.3.256]",
            "[v1.a]",
            "x[::1]",
        ] {
            assert!(!is_authority(bad.as_bytes()), "{bad:?}");
        }
        assert!(!is_authority(b"\xff") && !is_authority(b"[\xff]") && !is_authority(b"x:\xff"));
    }
}
