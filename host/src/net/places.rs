//! Places for connections: how many of a port there may be at once, how many from one address, and who gives way when they run out.
//!
//! A connection costs its client next to nothing, so a port whose places are gone to whoever asked first can be closed by a few addresses
//! that say nothing. The last sixteenth of the places is therefore kept for those who come: while it is in use, each newcomer has one
//! that only waits for a request asked to end, as nginx does it (`ngx_drain_connections`). First in turn are those that never had a request,
//! in the order of their coming, but for the youngest, whose request may be on its way: as many as there are places kept. Then those
//! that had none since they were last looked at, as in the CLOCK algorithm. No more are asked than would leave those places free.
//!
//! Owns the counts and the turns. Knows nothing about how a connection ends, or what is done with one that has no place. Invariant: the
//! tables have an address exactly as long as it has a connection, so they are never larger than the port's bound; the lock is held for
//! a few looks into them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use super::phase::Phase;
use crate::config::Net;

/// Descriptors that no connection gets: of threads, listeners, the registry and the files of buckets.
const OTHERS: u64 = 64;
/// Connections that a port takes however few descriptors there are.
const FEWEST: usize = 16;
/// Connections from one address that are taken whatever the port's bound is, unless the operator says less.
const FEWEST_FROM_ONE: usize = 64;

/// One place in so many is kept for newcomers.
const KEPT: usize = 16;
/// Connections that a newcomer may look at before it gives up finding one that waits. The next one goes on behind them.
const LOOKS: usize = 32;

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

#[derive(Debug)]
struct Taken {
    by: HashMap<Who, usize>,
    next: u64,
    /// By number, first the one whose turn it is: those that had had no request when they were last looked at,
    silent: LruCache<u64, Arc<Phase>>,
    /// the others, with how many requests each had had by then,
    served: LruCache<u64, (Arc<Phase>, u32)>,
    /// and those that were asked to end. Some may have a request after all.
    asked: LruCache<u64, Arc<Phase>>,
}

impl Taken {
    fn count(&self) -> usize {
        self.silent.len() + self.served.len() + self.asked.len()
    }

    fn remove(&mut self, number: u64) {
        if self.silent.pop(&number).is_none() && self.asked.pop(&number).is_none() {
            self.served.pop(&number);
        }
    }

    /// Asks one that waits to end, if those that were asked leave fewer places than `kept` of `most` beside a newcomer's; whether it did.
    fn make_room(&mut self, most: usize, kept: usize) -> bool {
        for _ in 0..LOOKS.min(self.asked.len()) {
            let Some((number, phase)) = self.asked.pop_lru() else { break };
            if phase.is_wanted() {
                self.asked.put(number, phase);
            } else {
                let requests = phase.requests();
                self.served.put(number, (phase, requests));
            }
        }
        if self.count() - self.asked.len() < most - kept {
            return false;
        }
        // Those that come to it now are looked at again by the next newcomer at the earliest.
        let served = self.served.len();
        let mut moved = false;
        for _ in 0..LOOKS.min(self.silent.len().saturating_sub(kept)) {
            let Some((number, phase)) = self.silent.pop_lru() else { break };
            let requests = phase.requests();
            if requests > 0 {
                self.served.put(number, (phase, requests));
                moved = true;
            } else if phase.is_waiting() && phase.want_place() {
                self.asked.put(number, phase);
                return true;
            } else {
                self.silent.put(number, phase);
            }
        }
        if moved {
            // The next newcomer goes on, and may find one that had no request.
            return false;
        }
        for _ in 0..LOOKS.min(served) {
            let Some((number, (phase, seen))) = self.served.pop_lru() else { break };
            let requests = phase.requests();
            if requests == seen && phase.is_waiting() && phase.want_place() {
                self.asked.put(number, phase);
                return true;
            }
            self.served.put(number, (phase, requests));
        }
        false
    }
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
        let turns = (LruCache::unbounded(), LruCache::unbounded(), LruCache::unbounded());
        let taken = Taken { by: HashMap::new(), next: 0, silent: turns.0, served: turns.1, asked: turns.2 };
        Arc::new(Self { most, most_from_one, taken: Mutex::new(taken) })
    }

    /// How many there are.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Takes one for a connection from `addr`.
    pub(super) fn take(self: &Arc<Self>, addr: IpAddr) -> Result<Place, Full> {
        let who = Who::of(addr);
        let mut taken = self.lock();
        let mine = taken.by.get(&who).copied().unwrap_or_default();
        if mine >= self.most_from_one {
            return Err(Full::Address);
        }
        let (count, kept) = (taken.count(), self.most / KEPT);
        let made_room = kept > 0 && count >= self.most - kept && taken.make_room(self.most, kept);
        if count >= self.most {
            return Err(Full::Port);
        }
        let number = taken.next;
        taken.next += 1;
        let phase = Arc::new(Phase::of(Some(addr)));
        taken.silent.put(number, Arc::clone(&phase));
        taken.by.insert(who, mine + 1);
        Ok(Place { places: self.clone(), who, number, phase, made_room })
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
    number: u64,
    /// What the connection that has it is doing.
    pub(super) phase: Arc<Phase>,
    /// Whether it is one of the last, for which another connection was asked to end.
    pub(super) made_room: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.remove(self.number);
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

    /// Places of 32, of which two are kept.
    fn two_kept() -> Arc<Places> {
        Places::new(32, Some(0))
    }

    fn take(places: &Arc<Places>) -> Result<Place, Full> {
        places.take(addr("10.0.0.1"))
    }

    fn filled(places: &Arc<Places>, count: usize) -> Vec<Place> {
        (0..count).map(|_| take(places).unwrap()).collect()
    }

    /// The numbers of those that are asked to end.
    fn wanted(held: &[Place]) -> Vec<u64> {
        held.iter().filter(|place| place.phase.is_wanted()).map(|place| place.number).collect()
    }

    /// A request, and its answer.
    fn serve(phase: &Phase) {
        phase.begin(http::Version::HTTP_11);
        phase.answered();
        phase.flushed();
    }

    #[test]
    fn the_last_places_are_made_of_those_that_wait_longest() {
        let places = two_kept();
        let mut held = filled(&places, 30);
        assert!(wanted(&held).is_empty(), "two of them are kept");
        held[0].phase.begin(http::Version::HTTP_11);
        serve(&held[2].phase);
        held.extend([take(&places).unwrap(), take(&places).unwrap()]);
        assert!(held[30].made_room && held[31].made_room);
        assert_eq!(wanted(&held), [1, 3]);
        // One that is refused makes room for the next, unless enough were asked.
        for _ in 0..3 {
            assert_eq!(take(&places).unwrap_err(), Full::Port);
            assert_eq!(wanted(&held), [1, 3, 4]);
        }
        // They are gone.
        held.retain(|place| !place.phase.is_wanted());
        held.push(take(&places).unwrap());
        assert_eq!((held[29].made_room, wanted(&held)), (false, vec![]), "two are left beside it");
        held.push(take(&places).unwrap());
        assert_eq!((held[30].made_room, wanted(&held)), (true, vec![5]), "the next in turn");
    }

    #[test]
    fn one_that_was_asked_and_had_a_request_has_its_turn_again() {
        let places = two_kept();
        let mut held = filled(&places, 31);
        assert_eq!(wanted(&held), [0]);
        serve(&held[0].phase);
        assert!(wanted(&held).is_empty(), "it stays");
        held.push(take(&places).unwrap());
        assert_eq!(wanted(&held), [1], "those that never had one come first");
        held[1..].iter().for_each(|place| serve(&place.phase));
        let asked = (0..5).any(|_| {
            assert_eq!(take(&places).unwrap_err(), Full::Port);
            held[0].phase.is_wanted()
        });
        assert!(asked);
    }

    #[test]
    fn the_youngest_are_spared_while_idle_ones_are_there() {
        let places = two_kept();
        let held = filled(&places, 30);
        held.iter().for_each(|place| serve(&place.phase));
        // One after the other comes, waits for its request, and ends; all others are idle.
        let mut last: Option<Place> = None;
        let mut asked = 0;
        for _ in 0..20 {
            let newcomer = take(&places).unwrap();
            if let Some(last) = last.replace(newcomer) {
                assert!(!last.phase.is_wanted(), "its request may be on its way");
            }
            asked = wanted(&held).len();
        }
        assert!(asked > 0);
    }

    #[test]
    fn a_burst_asks_no_more_than_it_needs() {
        let places = two_kept();
        let mut held = filled(&places, 30);
        serve(&held[7].phase);
        for _ in 0..100 {
            held.extend(take(&places));
        }
        assert_eq!((held.len(), wanted(&held).len()), (32, 3));
        assert!(!held[7].phase.is_wanted());
    }

    #[test]
    fn a_small_port_keeps_none() {
        let places = Places::new(KEPT - 1, Some(0));
        let held: Vec<_> = (0..40).map(|_| places.take(addr("10.0.0.1"))).collect();
        assert!(held.iter().flatten().all(|place| !place.phase.is_wanted()));
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
