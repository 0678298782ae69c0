//! What was used, in all since the node started, and in each of the last 60 minutes.
//!
//! Owns the counters and the clock of minutes. Knows nothing about whose they are. Invariants: a total only grows, and nothing is lost from it;
//! adding takes no lock and allocates nothing but the minutes of whoever adds for the first time in an hour; the memory of all minutes together is
//! bounded ([`Room`]), and whoever finds no room has a total alone.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;

use crate::invocation::Phases;

/// Minutes that are kept, the one that runs among them.
pub const MINUTES: usize = 60;
/// Functions of which minutes are kept; each has some 7 KiB. What others use is in those of their tenants.
pub const FUNCTIONS_MAX: usize = 2_000;
/// Tenants of which minutes are kept.
pub const TENANTS_MAX: usize = 1_000;

/// What invocations used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Invocations that ended.
    pub invocations: u64,
    /// Time on the processor, starts and teardowns included.
    pub cpu: Duration,
    /// From the starts of their instances to their ends.
    pub wall: Duration,
    /// Where the time went until their responses began; [`Phases::queue`], `load` and `verify` come before the starts of instances.
    pub phases: Phases,
    /// Bytes of request bodies that came.
    pub bytes_in: u64,
    /// Bytes of response bodies that left.
    pub bytes_out: u64,
    /// Requests to servers elsewhere.
    pub requests: u64,
    /// Operations on buckets.
    pub data_operations: u64,
    /// Most memory that one of them had, in bytes.
    pub memory_bytes_max: u64,
}

/// How many of the numbers are sums; the last one is a maximum.
const SUMS: usize = 7 + Phases::NAMES.len();

impl Used {
    fn sums(&self) -> [u64; SUMS] {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let Self { invocations, cpu, wall, phases, bytes_in, bytes_out, requests, data_operations, .. } = *self;
        let [queue, load, verify, instantiate, enter, run] = phases.times().map(nanos);
        let (cpu, wall) = (nanos(cpu), nanos(wall));
        [invocations, cpu, wall, bytes_in, bytes_out, requests, data_operations, queue, load, verify, instantiate, enter, run]
    }

    fn of(sums: [u64; SUMS], memory_bytes_max: u64) -> Self {
        let [invocations, cpu, wall, bytes_in, bytes_out, requests, data_operations, phases @ ..] = sums;
        let (cpu, wall) = (Duration::from_nanos(cpu), Duration::from_nanos(wall));
        let phases = Phases::of_times(phases.map(Duration::from_nanos));
        Self { invocations, cpu, wall, phases, bytes_in, bytes_out, requests, data_operations, memory_bytes_max }
    }

    /// Adds what others used.
    pub fn add(&mut self, other: &Self) {
        let (mine, theirs) = (self.sums(), other.sums());
        let sums = std::array::from_fn(|index| mine[index].saturating_add(theirs[index]));
        *self = Self::of(sums, self.memory_bytes_max.max(other.memory_bytes_max));
    }

    /// What is left of it without a part; the maximum stays.
    #[must_use]
    pub fn without(&self, part: &Self) -> Self {
        let (all, part) = (self.sums(), part.sums());
        Self::of(std::array::from_fn(|index| all[index].saturating_sub(part[index])), self.memory_bytes_max)
    }

    /// Whether nothing was.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, Default)]
struct Counters {
    sums: [AtomicU64; SUMS],
    memory_bytes_max: AtomicU64,
}

impl Counters {
    fn add(&self, used: &Used) {
        for (counter, more) in self.sums.iter().zip(used.sums()) {
            if more > 0 {
                counter.fetch_add(more, Ordering::Relaxed);
            }
        }
        // Read first: it seldom is a new maximum.
        if used.memory_bytes_max > self.memory_bytes_max.load(Ordering::Relaxed) {
            self.memory_bytes_max.fetch_max(used.memory_bytes_max, Ordering::Relaxed);
        }
    }

    fn reading(&self) -> Used {
        let sums = std::array::from_fn(|index| self.sums[index].load(Ordering::Relaxed));
        Used::of(sums, self.memory_bytes_max.load(Ordering::Relaxed))
    }
}

#[derive(Debug, Default)]
struct Slot {
    minute: AtomicU64,
    used: Counters,
}

impl Slot {
    /// Makes it the one of `minute`, if it is that of an hour ago.
    fn enter(&self, minute: u64) -> &Counters {
        let before = self.minute.load(Ordering::Relaxed);
        if before < minute {
            let old = self.used.reading().sums();
            if self.minute.compare_exchange(before, minute, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                // Taken off and not set to zero: whoever comes between is not lost. Of a maximum that cannot be had.
                self.used.sums.iter().zip(old).for_each(|(counter, old)| _ = counter.fetch_sub(old, Ordering::Relaxed));
                self.used.memory_bytes_max.store(0, Ordering::Relaxed);
            }
        }
        &self.used
    }
}

/// How many may have minutes.
#[derive(Debug)]
pub struct Room {
    taken: AtomicUsize,
    most: usize,
}

/// Room for functions.
pub(super) static FUNCTIONS: Room = Room::new(FUNCTIONS_MAX);
/// Room for tenants.
pub(super) static TENANTS: Room = Room::new(TENANTS_MAX);

impl Room {
    const fn new(most: usize) -> Self {
        Self { taken: AtomicUsize::new(0), most }
    }

    fn take(&'static self) -> Option<Arc<Minutes>> {
        // Read first: where there is no room, nobody writes.
        if self.taken.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        // The slots give the place back, so they must have it first.
        let minutes = Minutes { slots: std::array::from_fn(|_| Slot::default()), room: self };
        (self.taken.fetch_add(1, Ordering::Relaxed) < self.most).then(|| Arc::new(minutes))
    }
}

#[derive(Debug)]
struct Minutes {
    slots: [Slot; MINUTES],
    room: &'static Room,
}

impl Drop for Minutes {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one function or one tenant used.
#[derive(Debug)]
pub struct Series {
    total: Counters,
    minutes: ArcSwapOption<Minutes>,
    room: &'static Room,
}

impl Series {
    pub(super) fn new(room: &'static Room) -> Self {
        Self { total: Counters::default(), minutes: ArcSwapOption::empty(), room }
    }

    /// Adds what was used in a minute, which is [`minute`] of now.
    ///
    /// # Cost
    /// Two relaxed additions for each number that is not zero; once in an hour of use an allocation.
    pub fn add(&self, minute: u64, used: &Used) {
        self.total.add(used);
        let minutes = self.minutes.load();
        match minutes.as_deref() {
            Some(minutes) => minutes.add(minute, used),
            None => {
                if let Some(new) = self.room.take() {
                    new.add(minute, used);
                    let before = self.minutes.compare_and_swap(&None::<Arc<Minutes>>, Some(new));
                    if let Some(others) = before.as_deref() {
                        others.add(minute, used);
                    }
                }
            }
        }
    }

    /// What was used since the node started.
    #[must_use]
    pub fn total(&self) -> Used {
        self.total.reading()
    }

    /// What was used in each minute from `first` on, the oldest first; minutes of nothing are left out.
    #[must_use]
    pub fn minutes(&self, first: u64) -> Vec<(u64, Used)> {
        let Some(minutes) = self.minutes.load_full() else { return Vec::new() };
        let read = |slot: &Slot| (slot.minute.load(Ordering::Relaxed), slot.used.reading());
        let mut found: Vec<_> =
            minutes.slots.iter().map(read).filter(|(minute, used)| *minute >= first && !used.is_nothing()).collect();
        found.sort_by_key(|(minute, _)| *minute);
        found
    }

    /// Gives its room back if nothing was used within the last 60 minutes.
    pub fn rest(&self, now: u64) {
        let is_old = |minutes: &Minutes| {
            minutes.slots.iter().all(|slot| slot.minute.load(Ordering::Relaxed).saturating_add(MINUTES as u64) <= now)
        };
        if self.minutes.load().as_deref().is_some_and(is_old) {
            // What is added to them meanwhile is lost for its minute, and not for the total.
            self.minutes.store(None);
        }
    }
}

impl Minutes {
    fn add(&self, minute: u64, used: &Used) {
        let place = usize::try_from(minute % MINUTES as u64).unwrap_or_default();
        self.slots[place].enter(minute).add(used);
    }
}

static BEGAN: OnceLock<(Instant, Duration)> = OnceLock::new();

/// The number of a moment's minute: minutes since 1970 by the clock as it was set when the process first asked.
#[must_use]
pub fn minute(now: Instant) -> u64 {
    // Read once: the system's clock may be set, and minutes must not repeat.
    let unix = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (began, unix) = BEGAN.get_or_init(|| (now, unix()));
    unix.saturating_add(now.saturating_duration_since(*began)).as_secs() / 60
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(invocations: u64, memory_bytes_max: u64) -> Used {
        Used { invocations, cpu: Duration::from_nanos(7 * invocations), memory_bytes_max, ..Used::default() }
    }

    #[test]
    fn minutes_add_up_and_an_hour_later_their_place_is_taken() {
        static ROOM: Room = Room::new(1);
        let series = Series::new(&ROOM);
        for (minute, memory) in [(100, 5), (100, 9), (101, 1), (159, 2)] {
            series.add(minute, &used(1, memory));
        }
        assert_eq!(series.minutes(0), [(100, used(2, 9)), (101, used(1, 1)), (159, used(1, 2))]);
        assert_eq!(series.minutes(101).len(), 2);
        series.add(160, &used(4, 3));
        assert_eq!(series.minutes(0), [(101, used(1, 1)), (159, used(1, 2)), (160, used(4, 3))]);
        assert_eq!(series.total(), used(8, 9), "totals forget nothing");
    }

    #[test]
    fn there_is_room_for_so_many_and_who_rests_gives_it_back() {
        static ROOM: Room = Room::new(1);
        let (first, second) = (Series::new(&ROOM), Series::new(&ROOM));
        first.add(10, &used(1, 0));
        second.add(10, &used(1, 0));
        assert_eq!((first.minutes(0).len(), second.minutes(0).len()), (1, 0));
        assert_eq!(second.total().invocations, 1, "its total is kept");
        first.rest(10 + MINUTES as u64 - 1);
        assert_eq!(first.minutes(0).len(), 1, "it was used within the hour");
        first.rest(10 + MINUTES as u64);
        second.add(70, &used(1, 0));
        assert_eq!((first.minutes(0).len(), second.minutes(0).len(), first.total().invocations), (0, 1, 1));
        drop(second);
        first.add(71, &used(1, 0));
        assert_eq!(first.minutes(0).len(), 1, "who goes gives it back too");
    }

    #[test]
    fn nothing_is_lost_when_many_enter_a_minute_at_once() {
        static ROOM: Room = Room::new(1);
        let series = Series::new(&ROOM);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..20_000_u64).for_each(|round| series.add(1000 + round / 100, &used(1, 0))));
            }
        });
        assert_eq!(series.total().invocations, 80_000);
        // Threads are up to an hour apart, or one of them would be in another's next hour.
        let kept: u64 = series.minutes(0).iter().map(|(_, used)| used.invocations).sum();
        assert!(series.minutes(0).len() <= MINUTES && kept <= 80_000 && kept > 0, "{kept}");
    }

    #[test]
    fn minutes_follow_the_clock() {
        let now = Instant::now();
        let this = minute(now);
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() / 60;
        assert!(unix - this <= 1, "{unix} {this}");
        assert_eq!(minute(now + Duration::from_secs(600)), this + 10);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut sum = used(3, 1);
        sum.add(&used(4, 2));
        assert_eq!(sum, used(7, 2));
        assert_eq!(sum.without(&used(3, 1)), used(4, 2));
        assert!(Used::default().is_nothing() && !sum.is_nothing());
    }
}
