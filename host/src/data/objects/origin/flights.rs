//! Who is asking an origin for what: one request for all who want the same object, and no copy of what a write has replaced.
//!
//! Owns the board of requests and writes under way. Knows nothing about what is fetched. Invariant: of one object at most one request
//! is on the board, and what comes of one that a write took off it is not kept.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::super::super::bucket::BucketId;
use super::super::super::error::DataError;

/// Names an object.
pub(super) type Place = (BucketId, Bytes);

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is under way.
#[derive(Debug)]
pub(super) struct Board<T> {
    requests: HashMap<Place, Arc<Flight<T>>>,
    writes: HashMap<Place, Writes>,
}

#[derive(Debug, Default)]
struct Writes {
    count: usize,
    /// Two were under way at once: nobody knows which the origin had last.
    is_contested: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Flights<T>(Mutex<Board<T>>);

/// One request and its answer, which any number of threads may wait for.
#[derive(Debug)]
pub(super) struct Flight<T> {
    answer: Mutex<Option<Result<T, DataError>>>,
    answered: Condvar,
}

impl<T: Clone> Flight<T> {
    /// Blocks until the answer is there.
    pub(super) fn wait(&self) -> Result<T, DataError> {
        let mut answer = lock(&self.answer);
        loop {
            if let Some(answer) = &*answer {
                return answer.clone();
            }
            answer = self.answered.wait(answer).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<T> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::new(Board { requests: HashMap::new(), writes: HashMap::new() }))
    }
}

impl<T> Flights<T> {
    /// The request for an object that is under way, or one that `start` begins.
    pub(super) fn join(self: &Arc<Self>, place: &Place, start: impl FnOnce(Landing<T>)) -> Arc<Flight<T>> {
        let mut board = lock(&self.0);
        if let Some(flight) = board.requests.get(place) {
            return Arc::clone(flight);
        }
        let flight = Arc::new(Flight { answer: Mutex::new(None), answered: Condvar::new() });
        board.requests.insert(place.clone(), Arc::clone(&flight));
        drop(board);
        start(Landing { flights: Arc::clone(self), place: place.clone(), flight: Arc::clone(&flight) });
        flight
    }

    /// Says that an object is being written.
    pub(super) fn begin_write(self: &Arc<Self>, place: Place) -> Write<T> {
        let mut board = lock(&self.0);
        let writes = board.writes.entry(place.clone()).or_default();
        writes.count += 1;
        writes.is_contested |= writes.count > 1;
        drop(board);
        Write { flights: Arc::clone(self), place }
    }
}

/// The end of a request. Dropped without an answer, it answers [`DataError::Closed`].
#[derive(Debug)]
pub(super) struct Landing<T> {
    flights: Arc<Flights<T>>,
    place: Place,
    flight: Arc<Flight<T>>,
}

impl<T> Landing<T> {
    /// Has the answer for those who wait, who get it when this is dropped; after `keep`, or `discard` if a write has replaced the object meanwhile.
    pub(super) fn land(&self, answer: Result<T, DataError>, keep: impl FnOnce(&T), discard: impl FnOnce(&T)) {
        let board = lock(&self.flights.0);
        let is_current = board.requests.get(&self.place).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        match &answer {
            // On the board still, so that no write comes between.
            Ok(value) if is_current => keep(value),
            Ok(value) => discard(value),
            Err(_) => {}
        }
        drop(board);
        *lock(&self.flight.answer) = Some(answer);
    }
}

impl<T> Drop for Landing<T> {
    fn drop(&mut self) {
        lock(&self.flight.answer).get_or_insert(Err(DataError::Closed));
        let mut board = lock(&self.flights.0);
        if board.requests.get(&self.place).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            board.requests.remove(&self.place);
        }
        drop(board);
        self.flight.answered.notify_all();
    }
}

/// A write under way; it ends when it is dropped.
#[derive(Debug)]
pub(super) struct Write<T> {
    flights: Arc<Flights<T>>,
    place: Place,
}

impl<T> Write<T> {
    /// Takes requests for the object off the board, and then does `keep` if no other write was under way at the same time, else
    /// `discard`.
    pub(super) fn settle(self, keep: impl FnOnce(), discard: impl FnOnce()) {
        let mut board = lock(&self.flights.0);
        board.requests.remove(&self.place);
        match board.writes.get(&self.place).is_some_and(|writes| writes.is_contested) {
            true => discard(),
            false => keep(),
        }
        // Before this is dropped, which takes the lock.
        drop(board);
    }
}

impl<T> Drop for Write<T> {
    fn drop(&mut self) {
        let mut board = lock(&self.flights.0);
        let Some(writes) = board.writes.get_mut(&self.place) else { return };
        writes.count -= 1;
        if writes.count == 0 {
            board.writes.remove(&self.place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    type Numbers = Arc<Flights<u32>>;

    fn place(key: &'static str) -> Place {
        (BucketId(1), Bytes::from_static(key.as_bytes()))
    }

    fn begin(flights: &Numbers, key: &'static str) -> (Arc<Flight<u32>>, Option<Landing<u32>>) {
        let mut landing = None;
        let flight = flights.join(&place(key), |begun| landing = Some(begun));
        (flight, landing)
    }

    #[test]
    fn one_request_for_all_who_ask_and_another_after_it() {
        let flights = Numbers::default();
        let (first, landing) = begin(&flights, "a");
        let (second, none) = begin(&flights, "a");
        let (_other, others) = begin(&flights, "b");
        assert!(none.is_none() && others.is_some() && Arc::ptr_eq(&first, &second));
        let kept = Cell::new(0);
        landing.unwrap().land(Ok(7), |value| kept.set(*value), |_| panic!("it is current"));
        assert_eq!((first.wait().unwrap(), second.wait().unwrap(), kept.get()), (7, 7, 7));
        let (third, landing) = begin(&flights, "a");
        drop(landing.unwrap());
        assert!(matches!(third.wait(), Err(DataError::Closed)));
    }

    #[test]
    fn what_was_asked_before_a_write_is_not_kept() {
        let flights = Numbers::default();
        let (old, landing) = begin(&flights, "a");
        let kept = Cell::new(false);
        flights.begin_write(place("a")).settle(|| kept.set(true), || panic!("nobody else writes"));
        // Who asks now does not get what was asked for then, whichever is answered first.
        let (new, newer) = begin(&flights, "a");
        let discarded = Cell::new(false);
        landing.unwrap().land(Ok(1), |_| panic!("it is replaced"), |_| discarded.set(true));
        newer.unwrap().land(Ok(2), |_| {}, |_| panic!("it is current"));
        assert_eq!((old.wait().unwrap(), new.wait().unwrap()), (1, 2));
        assert!(kept.get() && discarded.get());
    }

    #[test]
    fn of_two_writes_at_once_neither_is_kept() {
        let flights = Numbers::default();
        let (one, two, other) =
            (flights.begin_write(place("a")), flights.begin_write(place("a")), flights.begin_write(place("b")));
        let discarded = Cell::new(0);
        let discard = || discarded.set(discarded.get() + 1);
        one.settle(|| panic!("two write"), discard);
        two.settle(|| panic!("two wrote"), discard);
        assert_eq!(discarded.get(), 2);
        let kept = Cell::new(0);
        let keep = || kept.set(kept.get() + 1);
        other.settle(keep, || panic!("it is alone"));
        flights.begin_write(place("a")).settle(keep, || panic!("both are over"));
        assert_eq!(kept.get(), 2);
    }
}
