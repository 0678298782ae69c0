//! Places for connections: how many of a port there may be at once, and how many from one address.
//!
//! Owns the counts. Knows nothing about what is done with a connection that has none. Invariant: the table has an address exactly as long as
//! it has a connection, so it is never larger than the port's bound; the lock is held for one look into it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::Net;

/// Descriptors that no connection gets: of threads, listeners, the registry and the files of buckets.
const OTHERS: u64 = 64;
/// Connections that a port takes however few descriptors there are.
const FEWEST: usize = 16;
/// Connections from one address that are taken whatever the port's bound is, unless the operator says less.
const FEWEST_FROM_ONE: usize = 64;

/// Most connections of the two ports: what is configured, and what the system leaves. Of the descriptors, half go to the data port and an
/// eighth to the control port at the most; the rest is for templates, builds, files and requests to others, so that none of
/// them stands still because the data port is flooded.
#[must_use]
pub fn most(net: &Net, descriptors: u64) -> (usize, usize) {
    let rest = usize::try_from(descriptors.saturating_sub(OTHERS)).unwrap_or(usize::MAX);
    let (data, control) = ((rest / 2).max(FEWEST), (rest / 8).max(FEWEST));
    let found = (net.connections_max.min(data), net.control_connections_max.min(control));
    if found != (net.connections_max, net.control_connections_max) {
        let (data, control) = found;
        tracing::warn!(data, control, descriptors, "the limit of open files allows fewer connections than net.connections_max");
    }
    found
}

/// Who a connection is from: an IPv4 address, or the 64 bits of an IPv6 address that one customer has all addresses below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Who {
    fn of(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self::V4(addr.octets()),
            IpAddr::V6(addr) => {
                let [a, b, c, d, e, f, g, h, ..] = addr.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// The places of one port. Its listeners share them.
#[derive(Debug)]
pub struct Places {
    most: usize,
    most_from_one: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    count: usize,
    by: HashMap<Who, usize>,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// The port has as many connections as it takes.
    Port,
    /// The address has.
    Address,
}

impl Places {
    /// `most_from_one`: 0 means no bound of its own; `None` a quarter of `most`, and no less than 64: fewer than four addresses cannot
    /// take all of a port then, and an office behind one address still finds room.
    #[must_use]
    pub fn new(most: usize, most_from_one: Option<usize>) -> Arc<Self> {
        let most_from_one = match most_from_one {
            None => (most / 4).max(FEWEST_FROM_ONE),
            Some(0) => usize::MAX,
            Some(most) => most,
        };
        Arc::new(Self { most, most_from_one, taken: Mutex::default() })
    }

    /// How many there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes one for a connection from `addr`.
    pub(super) fn take(self: &Arc<Self>, addr: IpAddr) -> Result<Place, Full> {
        let who = Who::of(addr);
        let mut taken = self.lock();
        if taken.count >= self.most {
            return Err(Full::Port);
        }
        let mine = taken.by.get(&who).copied().unwrap_or_default();
        if mine >= self.most_from_one {
            return Err(Full::Address);
        }
        taken.by.insert(who, mine + 1);
        taken.count += 1;
        Ok(Place { places: self.clone(), who })
    }

    /// Nothing panics under the lock.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    who: Who,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.count -= 1;
        if let Some(mine) = taken.by.get_mut(&self.who) {
            *mine -= 1;
            if *mine == 0 {
                taken.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_port_and_an_address_have_bounds() {
        let places = Places::new(3, Some(2));
        let first = places.take(addr("10.0.0.1")).unwrap();
        let _second = places.take(addr("::ffff:10.0.0.1")).unwrap();
        assert_eq!(places.take(addr("10.0.0.1")).unwrap_err(), Full::Address);
        let third = places.take(addr("10.0.0.2")).unwrap();
        assert_eq!(places.take(addr("10.0.0.3")).unwrap_err(), Full::Port);
        drop(first);
        let _fourth = places.take(addr("10.0.0.1")).unwrap();
        drop(third);
        assert_eq!(places.lock().by.len(), 1, "who has none is forgotten");
    }

    #[test]
    fn a_customer_has_one_address_of_ipv6() {
        let places = Places::new(10, Some(1));
        let _one = places.take(addr("2001:db8:0:1::1")).unwrap();
        assert_eq!(places.take(addr("2001:db8:0:1:ffff::2")).unwrap_err(), Full::Address);
        assert!(places.take(addr("2001:db8:0:2::1")).is_ok());
    }

    #[test]
    fn an_address_has_a_quarter_unless_told_otherwise() {
        for (most, told, expected) in [(4096, None, 1024), (100, None, 64), (100, Some(0), 100), (100, Some(7), 7)] {
            let places = Places::new(most, told);
            let held: Vec<_> = std::iter::from_fn(|| places.take(addr("10.0.0.1")).ok()).collect();
            assert_eq!(held.len(), expected, "{most} {told:?}");
        }
    }

    #[test]
    fn descriptors_are_left_for_others() {
        let net = Net::default();
        for (descriptors, expected) in
            [(u64::MAX, (4096, 256)), (20_000, (4096, 256)), (1024, (480, 120)), (256, (96, 24)), (100, (18, 16)), (0, (16, 16))]
        {
            assert_eq!(most(&net, descriptors), expected, "{descriptors}");
        }
    }
}
