//! `[egress]`: what functions may reach over the network, and how much of it at once.
//!
//! Owns its keys, their ranges and the spelling of an address that the operator opens. Knows nothing about which addresses are closed
//! otherwise (`egress/address.rs` does).

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;

use super::check::range;
use super::{Bytes, ConfigError, Time};
use crate::id::TenantId;

/// Most entries of `egress.allow`, and of the other lists.
const ENTRIES_MAX: usize = 1024;

/// See the module.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Egress {
    /// Addresses that functions may reach although they are not public: `10.1.2.0/24:5432`, `127.0.0.1:8081`, `[fd00::/8]:443`. A
    /// function still needs its own grant. Default: none.
    pub allow: Vec<Opened>,
    /// Files with certificates (PEM) of authorities that are trusted beside the system's. Read once, at start. Default: none.
    pub ca_files: Vec<PathBuf>,
    /// Tenants whose functions may use sockets of WASI, to the same addresses. Default: none.
    pub sockets: Vec<TenantId>,
    /// How long it may take to connect: the look-up of the name and TLS included. Default 5 s.
    pub connect_timeout: Time,
    /// From then, or from the last piece of the request's body that was taken, to the head of the response. Default 10 s.
    pub response_timeout: Time,
    /// Longest silence in the body of a response. Default 10 s.
    pub idle_timeout: Time,
    /// Longest body of a response. Default 16 MiB.
    pub response_bytes_max: Bytes,
    /// Most requests of one invocation at once; more wait. Default 6.
    pub invocation_requests_max: usize,
    /// Most requests of one tenant at once; more wait. Default 64.
    pub tenant_requests_max: usize,
    /// Most requests at once; more wait. Default 1,024.
    pub requests_max: usize,
}

impl Default for Egress {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ca_files: Vec::new(),
            sockets: Vec::new(),
            connect_timeout: Time(Duration::from_secs(5)),
            response_timeout: Time(Duration::from_secs(10)),
            idle_timeout: Time(Duration::from_secs(10)),
            response_bytes_max: Bytes(16 << 20),
            invocation_requests_max: 6,
            tenant_requests_max: 64,
            requests_max: 1024,
        }
    }
}

impl Egress {
    /// # Errors
    /// [`ConfigError::Range`] for the first value outside of its range.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let lists = [
            ("egress.allow", self.allow.len()),
            ("egress.ca_files", self.ca_files.len()),
            ("egress.sockets", self.sockets.len()),
        ];
        for (key, len) in lists {
            range(len <= ENTRIES_MAX, key, format!("a list of {len}"), "at most 1024 entries")?;
        }
        let times = [
            ("egress.connect_timeout", self.connect_timeout),
            ("egress.response_timeout", self.response_timeout),
            ("egress.idle_timeout", self.idle_timeout),
        ];
        for (key, time) in times {
            range(!time.0.is_zero(), key, "0".into(), "more than no time")?;
        }
        let counts = [
            ("egress.invocation_requests_max", self.invocation_requests_max),
            ("egress.tenant_requests_max", self.tenant_requests_max),
            ("egress.requests_max", self.requests_max),
        ];
        for (key, count) in counts {
            range((1..=10_000).contains(&count), key, count.to_string(), "1 to 10000")?;
        }
        Ok(())
    }
}

/// Addresses that the operator opens: a network and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Opened {
    network: IpAddr,
    prefix_len: u8,
    port: u16,
}

impl Opened {
    /// Whether it opens this one. An IPv4 address that is written as an IPv6 one is not the same here: see
    /// [`IpAddr::to_canonical`].
    #[must_use]
    pub fn covers(&self, addr: SocketAddr) -> bool {
        self.port == addr.port()
            && shortened(addr.ip(), self.prefix_len) == Some(self.network)
            && addr.is_ipv4() == self.network.is_ipv4()
    }
}

/// The first bits of an address; `None` if it has fewer.
fn shortened(ip: IpAddr, len: u8) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) if len <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Some(IpAddr::V4((u32::from(ip) & mask).into()))
        }
        IpAddr::V6(ip) if len <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            Some(IpAddr::V6((u128::from(ip) & mask).into()))
        }
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// Text that opens nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is no address to open: expected ADDRESS:PORT or NETWORK/BITS:PORT, such as \"127.0.0.1:8081\", \"10.1.2.0/24:5432\" or \"[fd00::/8]:443\""
)]
pub struct NotOpened(String);

impl FromStr for Opened {
    type Err = NotOpened;

    fn from_str(text: &str) -> Result<Self, NotOpened> {
        let parse = || {
            let (place, port) = text.rsplit_once(':')?;
            let inner = place.strip_prefix('[').map(|place| place.strip_suffix(']'));
            let place = inner.unwrap_or(Some(place))?;
            let (ip, len) = place.split_once('/').map_or((place, None), |(ip, len)| (ip, Some(len)));
            let network: IpAddr = ip.parse().ok()?;
            let whole = if network.is_ipv4() { 32 } else { 128 };
            let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            let prefix_len = match len {
                Some(len) => Some(len).filter(|len| is_number(len))?.parse().ok()?,
                None => whole,
            };
            let port = Some(port).filter(|port| is_number(port))?.parse().ok().filter(|port| *port > 0)?;
            // Bits past the network's would be a mistake, and an IPv4 address in IPv6 covers nothing.
            let is_whole = shortened(network, prefix_len) == Some(network) && network.to_canonical() == network;
            (network.is_ipv6() == inner.is_some() && is_whole).then_some(Self { network, prefix_len, port })
        };
        parse().ok_or_else(|| NotOpened(text.into()))
    }
}

impl TryFrom<String> for Opened {
    type Error = NotOpened;

    fn try_from(text: String) -> Result<Self, NotOpened> {
        text.parse()
    }
}

impl fmt::Display for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { network, prefix_len, port } = self;
        match network {
            IpAddr::V4(_) => write!(f, "{network}/{prefix_len}:{port}"),
            IpAddr::V6(_) => write!(f, "[{network}/{prefix_len}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use super::*;

    fn covers(opened: &str, addr: &str) -> bool {
        opened.parse::<Opened>().unwrap().covers(addr.parse().unwrap())
    }

    #[test]
    fn an_address_or_a_network_is_opened_at_one_port() {
        assert!(covers("127.0.0.1:8081", "127.0.0.1:8081"));
        assert!(covers("10.1.2.0/24:5432", "10.1.2.255:5432") && covers("0.0.0.0/0:1", "8.8.8.8:1"));
        assert!(covers("[fd00::/8]:443", "[fdff::1]:443") && covers("[::1]:1", "[::1]:1"));
        for (opened, addr) in [
            ("127.0.0.1:8081", "127.0.0.1:8082"),
            ("127.0.0.1:8081", "127.0.0.2:8081"),
            ("10.1.2.0/24:5432", "10.1.3.0:5432"),
            ("[::/0]:80", "127.0.0.1:80"),
            ("0.0.0.0/0:80", "[::1]:80"),
            ("0.0.0.0/0:80", "[::ffff:127.0.0.1]:80"),
        ] {
            assert!(!covers(opened, addr), "{opened} {addr}");
        }
    }

    #[test]
    fn what_opens_nothing_is_refused() {
        for bad in [
            "",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:65536",
            "127.0.0.1:+1",
            "127.0.0.1/33:1",
            "127.0.0.1/8:1",
            "127.0.0.1/:1",
            "localhost:80",
            "::1:80",
            "[::1]",
            "[127.0.0.1]:80",
            "[::ffff:127.0.0.1]:80",
            "[fd00::/129]:1",
            "[fd00::1/8]:1",
            "*:80",
        ] {
            let error = bad.parse::<Opened>().unwrap_err().to_string();
            assert!(error.contains("expected ADDRESS:PORT"), "{error}");
        }
    }

    #[test]
    fn every_range_on_both_sides() {
        let set = |setting: &str| Config::read("", &[setting.into()]);
        for good in [
            "egress.allow=[\"127.0.0.1:80\", \"[fd00::/8]:443\"]",
            "egress.ca_files=[]",
            "egress.sockets=[\"default\"]",
            "egress.connect_timeout=1ms",
            "egress.response_timeout=1ms",
            "egress.idle_timeout=1ms",
            "egress.response_bytes_max=0",
            "egress.invocation_requests_max=1",
            "egress.tenant_requests_max=10000",
            "egress.requests_max=1",
        ] {
            set(good).unwrap();
        }
        for bad in [
            "egress.allow=[\"127.0.0.1\"]",
            "egress.allow=127.0.0.1:80",
            "egress.sockets=[\"No Tenant\"]",
            "egress.connect_timeout=0s",
            "egress.response_timeout=0s",
            "egress.idle_timeout=0s",
            "egress.invocation_requests_max=0",
            "egress.invocation_requests_max=10001",
            "egress.tenant_requests_max=0",
            "egress.requests_max=0",
            "egress.requests_max=10001",
        ] {
            let error = set(bad).unwrap_err().to_string();
            assert!(error.contains("expected"), "{error}");
        }
        let list = |count: usize| format!("egress.allow=[{}]", vec!["\"127.0.0.1:80\""; count].join(","));
        assert!(set(&list(ENTRIES_MAX)).is_ok() && set(&list(ENTRIES_MAX + 1)).is_err());
    }
}
