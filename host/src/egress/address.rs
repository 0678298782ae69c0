//! Which addresses functions may reach: public ones, and what the operator opened.
//!
//! Owns the filter. It is asked once for each address that a name stands for, and the connection goes to that very address. Knows
//! nothing about names and grants. Invariant: what is not known to be public is closed. An address that carries an IPv4 address inside
//! (translated, mapped, tunnelled) is as public as that one.
//!
//! Source of the ranges: the IANA registries of special-purpose addresses for IPv4 and IPv6 (RFC 6890), as of 2026.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use crate::config::Opened;

/// What lies between functions and the network.
#[derive(Debug, Clone, Default)]
pub struct Walls {
    /// What the operator opened.
    pub opened: Vec<Opened>,
    /// Ports of this node, which no function reaches at any address of this machine unless they are opened.
    pub own_ports: Vec<u16>,
    /// Whether there are no walls at all: the terminal of `hob run --net`.
    pub is_down: bool,
}

impl Walls {
    /// Whether a function may reach this address.
    ///
    /// # Cost
    /// A walk over what is opened; for a port of the node's own, the making of a socket too.
    #[must_use]
    pub fn admit(&self, addr: SocketAddr) -> bool {
        let addr = canonical(addr);
        let is_opened = || self.opened.iter().any(|opened| opened.covers(addr));
        let is_own = || self.own_ports.contains(&addr.port()) && is_here(addr.ip());
        self.is_down || is_opened() || (is_public(addr.ip()) && !is_own())
    }
}

/// The address without a detour by IPv6, and without a scope.
#[must_use]
pub(super) fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether the address is one of this machine: only then can a socket be bound to it. When that cannot be found out, it counts as one.
fn is_here(ip: IpAddr) -> bool {
    match UdpSocket::bind((ip, 0)) {
        Ok(_bound) => true,
        Err(error) => error.kind() != std::io::ErrorKind::AddrNotAvailable,
    }
}

/// Whether anybody on the Internet could be reached by it.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// What is not public of IPv4: first address, bits of the network.
const CLOSED_V4: [(u32, u32); 18] = [
    (v4(0, 0, 0, 0), 8),        // this network
    (v4(10, 0, 0, 0), 8),       // private
    (v4(100, 64, 0, 0), 10),    // carrier-grade NAT
    (v4(127, 0, 0, 0), 8),      // loopback
    (v4(168, 63, 129, 16), 32), // public by its number; Azure answers guests of its own there
    (v4(169, 254, 0, 0), 16),   // link-local, and what clouds tell their machines
    (v4(172, 16, 0, 0), 12),    // private
    (v4(192, 0, 0, 0), 24),     // protocol assignments
    (v4(192, 0, 2, 0), 24),     // documentation
    (v4(192, 31, 196, 0), 24),  // AS112
    (v4(192, 52, 193, 0), 24),  // AMT
    (v4(192, 88, 99, 0), 24),   // 6to4 relays
    (v4(192, 168, 0, 0), 16),   // private
    (v4(192, 175, 48, 0), 24),  // AS112
    (v4(198, 18, 0, 0), 15),    // benchmarks
    (v4(198, 51, 100, 0), 24),  // documentation
    (v4(203, 0, 113, 0), 24),   // documentation
    (v4(224, 0, 0, 0), 3),      // multicast, reserved, broadcast
];

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let bits = u32::from(ip);
    !CLOSED_V4.iter().any(|(first, len)| bits >> (32 - len) == first >> (32 - len))
}

const fn v6(a: u16, b: u16, c: u16) -> u128 {
    (a as u128) << 112 | (b as u128) << 96 | (c as u128) << 80
}

/// What is not public of 2000::/3, where all public addresses of IPv6 are. What of it carries an IPv4 address is not here.
const CLOSED_V6: [(u128, u32); 5] = [
    (v6(0x2001, 0, 0), 23),         // protocol assignments, Teredo apart
    (v6(0x2001, 0xdb8, 0), 32),     // documentation
    (v6(0x2620, 0x4f, 0x8000), 48), // AS112
    (v6(0x3ffe, 0, 0), 16),         // the 6bone that was
    (v6(0x3fff, 0, 0), 20),         // documentation
];

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(inside) = embedded(ip) {
        return inside.into_iter().flatten().all(is_public_v4);
    }
    let bits = u128::from(ip);
    let is_global = bits >> 125 == 0b001;
    is_global && !CLOSED_V6.iter().any(|(first, len)| bits >> (128 - len) == first >> (128 - len))
}

/// The IPv4 addresses inside of an IPv6 address: where a packet to it would go in the end, or by which relay. `None` if it carries none.
fn embedded(ip: Ipv6Addr) -> Option<[Option<Ipv4Addr>; 2]> {
    let low = |at: u32| Ipv4Addr::from(u32::try_from(u128::from(ip) >> at & u128::from(u32::MAX)).unwrap_or_default());
    let segments = ip.segments();
    match segments {
        // Compatible with IPv4, mapped, and translated without a state (RFC 2765).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] => Some([Some(low(0)), None]),
        // NAT64 of everybody (RFC 6052).
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some([Some(low(0)), None]),
        // 6to4 (RFC 3056).
        [0x2002, ..] => Some([Some(low(80)), None]),
        // Teredo (RFC 4380): server, and client with all bits turned.
        [0x2001, 0, ..] => Some([Some(low(64)), Some(Ipv4Addr::from(!u32::from(low(0))))]),
        // ISATAP (RFC 5214), below whatever network: that one must be public too.
        [_, _, _, _, 0 | 0x200, 0x5efe, ..] => {
            let network = Ipv6Addr::from(u128::from(ip) >> 64 << 64);
            Some([Some(low(0)), (!is_public_v6(network)).then_some(Ipv4Addr::UNSPECIFIED)])
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public(ip: &str) -> bool {
        is_public(ip.parse().unwrap_or_else(|_| panic!("{ip}")))
    }

    #[test]
    fn public_addresses_are_open() {
        for ip in "1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
             169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0
             198.17.255.255 198.20.0.0 223.255.255.255 168.63.129.15 2606:4700::1111 2a00:1450::1 2001:4860::8888
             64:ff9b::8.8.8.8 2002:808:808::1 2001:0:808:808::f7f7:f7f7 2001:200:: 2600::5efe:808:808"
            .split_whitespace()
        {
            assert!(public(ip), "{ip}");
        }
    }

    #[test]
    fn everything_else_is_closed() {
        for ip in "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 100.100.100.200 127.0.0.1
             127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255
             192.0.0.1 192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.0.0 192.168.255.255 192.175.48.1
             198.18.0.0 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.0 255.255.255.255 ::
             ::1 ::127.0.0.1 ::10.0.0.1 ::ffff:127.0.0.1 ::ffff:0:127.0.0.1 ::ffff:169.254.169.254 64:ff9b::127.0.0.1
             64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::8.8.8.8 64:ff9b:1::1 100::1 2001::1
             2001:0:808:808::5601:5601 2001:0:7f00:1::f7f7:f7f7 2001:0:808:808::80ff:fffe 2001:10::1 2001:20::1
             2001:1ff::1 2001:db8::1 2002:7f00:1::1 2002:a00:1::1 2002:a9fe:a9fe::1 2600::5efe:7f00:1
             fe80::5efe:808:808 2600::200:5efe:10.0.0.1 3ffe::1 3fff::1 4000::1 5f00::1 fc00::1 fd00:ec2::254 fdff::1
             fe80::1 febf::1 fec0::1 ff02::1 ffff::1"
            .split_whitespace()
        {
            assert!(!public(ip), "{ip}");
        }
    }

    #[test]
    fn the_operator_opens_one_port_at_one_address() {
        let walls = Walls { opened: vec!["127.0.0.1:8081".parse().unwrap()], ..Walls::default() };
        for (addr, open) in [
            ("127.0.0.1:8081", true),
            ("[::ffff:127.0.0.1]:8081", true),
            ("127.0.0.1:8082", false),
            ("127.0.0.2:8081", false),
            ("[::127.0.0.1]:8081", false),
            ("[64:ff9b::127.0.0.1]:8081", false),
            ("8.8.8.8:53", true),
        ] {
            assert_eq!(walls.admit(addr.parse().unwrap()), open, "{addr}");
        }
        let none = Walls { is_down: true, ..Walls::default() };
        assert!(none.admit("127.0.0.1:1".parse().unwrap()));
    }

    #[test]
    fn an_address_of_this_machine_is_known() {
        assert!(is_here("127.0.0.1".parse().unwrap()) && is_here("127.8.9.1".parse().unwrap()));
        // Of documentation: nobody's.
        assert!(!is_here("203.0.113.7".parse().unwrap()));
        let walls = Walls { own_ports: vec![3000], ..Walls::default() };
        assert!(walls.admit("8.8.8.8:3000".parse().unwrap()), "that is somebody else's");
    }
}
