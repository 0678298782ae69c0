//! The time that data lives by: wall clock in milliseconds since 1970, which never runs back.
//!
//! A time to live ends at a wall time, because it must survive a restart; and the wall clock jumps. So time is the system's clock
//! as long as that moves forward. While it is behind what it has shown before, time goes on from there at the pace of the
//! monotonic clock. The store keeps a mark of it on disk ([`Clock::raise`]), so that a restart does not go back either.
//!
//! Owns the reading of both clocks. Knows nothing about entries. Invariant: no reading is less than an earlier one, or than a mark.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::error::DataError;

/// Longest time to live of an entry or an object: a hundred years. So every end is a number below 2^53, which all readers of JSON take as it
/// is, and what is left of it can be written as a time again.
pub const TTL_MAX: Duration = Duration::from_hours(36_500 * 24);

/// Where versions of what a restart forgets are counted from: the beginning of 2025.
const VERSIONS_FROM_MS: u64 = 1_735_689_600_000;
/// Versions that a millisecond has room for: 122 ns for each, and a write takes longer. More would not stay below 2^53 until 2059.
const VERSIONS_PER_MS_LOG2: u32 = 13;

/// One look at the machine's clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Wall clock, in milliseconds since 1970. It may jump.
    pub wall_ms: u64,
    /// Monotonic clock, in milliseconds since any moment.
    pub monotonic_ms: u64,
}

/// See the module. Clones share their state.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    source: Box<dyn Fn() -> Reading + Send + Sync>,
    last: Mutex<Last>,
}

struct Last {
    now_ms: u64,
    monotonic_ms: u64,
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub fn system() -> Self {
        let start = Instant::now();
        Self::new(move || Reading {
            // A clock before 1970 is behind any mark.
            wall_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| millis(age.as_millis())),
            monotonic_ms: millis(start.elapsed().as_millis()),
        })
    }

    /// Clocks that `source` reads, for tests.
    pub fn new(source: impl Fn() -> Reading + Send + Sync + 'static) -> Self {
        let first = source();
        let last = Mutex::new(Last { now_ms: first.wall_ms, monotonic_ms: first.monotonic_ms });
        Self(Arc::new(Inner { source: Box::new(source), last }))
    }

    /// The time in milliseconds since 1970; see the module. Cost: two readings of the system's clocks, some 60 ns.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        // Inside the lock, so that two readings are not taken for a step back.
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        let read = (self.0.source)();
        let elapsed = read.monotonic_ms.saturating_sub(last.monotonic_ms);
        // While the wall clock is ahead it alone counts, so that the rounding of the other adds up to nothing.
        last.now_ms = read.wall_ms.max(last.now_ms.saturating_add(elapsed));
        last.monotonic_ms = last.monotonic_ms.max(read.monotonic_ms);
        last.now_ms
    }

    /// Where versions of what a restart forgets begin: where no earlier run has come to, because who compares versions may have kept one
    /// from then. They stay below 2^53, which all readers of JSON take as it is.
    #[must_use]
    pub(super) fn first_version(&self) -> u64 {
        self.now_ms().saturating_sub(VERSIONS_FROM_MS).saturating_mul(1 << VERSIONS_PER_MS_LOG2)
    }

    /// From now on no reading is less than `mark_ms`.
    pub fn raise(&self, mark_ms: u64) {
        let mut last = self.0.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.now_ms = last.now_ms.max(mark_ms);
    }
}

fn millis(count: u128) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// Whether something may live so long; `None` is for ever.
///
/// # Errors
/// [`DataError::Invalid`] for less than a millisecond, and for more than [`TTL_MAX`].
pub(super) fn check_ttl(ttl: Option<Duration>) -> Result<(), DataError> {
    let what = match ttl {
        Some(ttl) if ttl.as_millis() == 0 => "the time to live is nothing",
        Some(ttl) if ttl > TTL_MAX => "the time to live is too long",
        Some(_) | None => return Ok(()),
    };
    const { assert!(TTL_MAX.as_secs() == 36_500 * 86_400, "the text says so") };
    Err(DataError::Invalid { what: what.into(), expected: "1 ms to 36500 days, or none".into() })
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now_ms()).finish()
    }
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Clocks that a test sets.
    #[derive(Debug, Clone, Default)]
    pub(in crate::data) struct Hands(Arc<(AtomicU64, AtomicU64)>);

    impl Hands {
        /// Clocks that show `wall_ms`.
        pub(in crate::data) fn at(wall_ms: u64) -> Self {
            let hands = Self::default();
            hands.jump_to(wall_ms);
            hands
        }

        pub(in crate::data) fn clock(&self) -> Clock {
            let hands = self.clone();
            Clock::new(move || Reading {
                wall_ms: hands.0.0.load(Ordering::SeqCst),
                monotonic_ms: hands.0.1.load(Ordering::SeqCst),
            })
        }

        /// Sets the wall clock alone.
        pub(in crate::data) fn jump_to(&self, wall_ms: u64) {
            self.0.0.store(wall_ms, Ordering::SeqCst);
        }

        /// Lets time go by.
        pub(in crate::data) fn pass(&self, ms: u64) {
            self.0.0.fetch_add(ms, Ordering::SeqCst);
            self.0.1.fetch_add(ms, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Hands;
    use super::*;

    #[test]
    fn time_never_runs_back_and_never_stands_still() {
        let hands = Hands::at(1_000_000);
        let clock = hands.clock();
        assert_eq!(clock.now_ms(), 1_000_000);
        hands.pass(10);
        assert_eq!(clock.now_ms(), 1_000_010);
        hands.jump_to(5);
        assert_eq!(clock.now_ms(), 1_000_010);
        hands.pass(10);
        assert_eq!(clock.now_ms(), 1_000_020);
        hands.jump_to(2_000_000);
        assert_eq!(clock.now_ms(), 2_000_000);
        clock.raise(1_500_000);
        assert_eq!(clock.now_ms(), 2_000_000);
        clock.raise(3_000_000);
        hands.pass(1);
        assert_eq!(clock.now_ms(), 3_000_001);
    }

    #[test]
    fn versions_of_another_run_begin_later_and_below_2_to_the_53() {
        let first = |wall_ms: u64| Hands::at(wall_ms).clock().first_version();
        assert_eq!((first(0), first(VERSIONS_FROM_MS), first(VERSIONS_FROM_MS + 1)), (0, 0, 8192));
        let room = (1_u64 << 53) / 8192;
        assert!(first(VERSIONS_FROM_MS + room - 1) < 1 << 53 && first(VERSIONS_FROM_MS + room) == 1 << 53);
        assert_eq!(room / (365 * 24 * 60 * 60 * 1000), 34, "years from 2025 on");
        assert!(Clock::system().first_version() > 1 << 40);
    }

    #[test]
    fn a_time_to_live_is_a_millisecond_to_a_hundred_years() {
        for good in [None, Some(Duration::from_millis(1)), Some(TTL_MAX)] {
            check_ttl(good).unwrap();
        }
        for bad in [Duration::ZERO, Duration::from_micros(999), TTL_MAX + Duration::from_nanos(1), Duration::MAX] {
            assert!(matches!(check_ttl(Some(bad)), Err(DataError::Invalid { .. })), "{bad:?}");
        }
        // For centuries to come.
        let year_ms = 366 * 24 * 60 * 60 * 1000;
        assert!(Clock::system().now_ms() + 1000 * year_ms + u64::try_from(TTL_MAX.as_millis()).unwrap() < 1 << 53);
    }

    #[test]
    fn the_system_shows_this_century() {
        assert!(Clock::system().now_ms() > 1_600_000_000_000);
    }
}
