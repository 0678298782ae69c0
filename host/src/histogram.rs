//! Histograms of time: how durations are sorted into buckets, counted without a lock, and read back.
//!
//! Owns the bounds of the buckets, which are the same everywhere, so that whatever is counted in two places can be added up. Knows
//! nothing about what took the time. Invariant: a count never leaves its bucket, except where a bucket is halved ([`StartTimes`]).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::invocation::{Phases, Start};

/// Upper bound of the first bucket, in nanoseconds. A hello function's start is some 1 us, so less is told apart as well.
const FIRST_NS: u64 = 250;
/// Buckets with an upper bound, each twice the one before: 250 ns to 16.8 s.
pub const BOUNDS: usize = 27;
/// All buckets: the last one has no bound.
pub const BUCKETS: usize = BOUNDS + 1;

/// The bucket of a time: the first whose bound is not below it. Cost: one multiplication and one count of zeros, no branch.
fn bucket(nanos: u64) -> usize {
    let halvings = u64::BITS - (nanos.saturating_sub(1) / FIRST_NS).leading_zeros();
    (halvings as usize).min(BOUNDS)
}

/// The largest time of a bucket; `None` for the last one.
#[must_use]
pub fn bound(bucket: usize) -> Option<Duration> {
    (bucket < BOUNDS).then(|| Duration::from_nanos(FIRST_NS << bucket))
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// What a histogram held at one moment, or several added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Counts by bucket, each alone and not the sum of those below it.
    pub buckets: [u64; BUCKETS],
    /// All times together.
    pub sum: Duration,
}

impl Reading {
    /// How many times were counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Adds what another histogram held.
    pub fn add(&mut self, other: &Self) {
        self.buckets.iter_mut().zip(other.buckets).for_each(|(mine, theirs)| *mine += theirs);
        self.sum = self.sum.saturating_add(other.sum);
    }

    /// An estimate of the time that `permille` of 1,000 did not pass: the place within its bucket by the rule of three, so at most
    /// a factor of 2 off. `None` when nothing was counted. Above the last bound it is that bound.
    #[must_use]
    pub fn quantile(&self, permille: u64) -> Option<Duration> {
        let count = self.count();
        let rank = u64::try_from((u128::from(count) * u128::from(permille)).div_ceil(1000)).ok()?.max(1);
        let mut below = 0;
        for (bucket, here) in self.buckets.into_iter().enumerate() {
            if here > 0 && below + here >= rank {
                let low = bucket.checked_sub(1).and_then(bound).unwrap_or_default();
                let width = bound(bucket).unwrap_or(low) - low;
                // In the middle of its share of the bucket: a lone time is in the middle of its bucket.
                let part = (2 * u128::from(rank - below) - 1) * width.as_nanos() / (2 * u128::from(here));
                return Some(low + Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX)));
            }
            below += here;
        }
        None
    }
}

/// A histogram that many threads count in.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Counts a time. Cost: two relaxed additions.
    pub fn observe(&self, time: Duration) {
        let nanos = nanos(time);
        self.buckets[bucket(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Reads all counts; not one moment's when others count meanwhile.
    #[must_use]
    pub fn reading(&self) -> Reading {
        Reading {
            buckets: std::array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)),
        }
    }
}

/// How often one function began on each rung, and how long its starts took.
///
/// There may be 100,000 of these, most of them idle: 16 bytes until the first start, then 64 and for each rung that occurred 168.
#[derive(Debug, Default)]
pub struct StartTimes(OnceLock<Box<[OnceLock<Box<Rung>>; Start::ALL.len()]>>);

/// The starts on one rung.
#[derive(Debug, Default)]
struct Rung {
    count: AtomicU64,
    /// By phase, in the order of [`Phases::NAMES`].
    phases_ns: [AtomicU64; Phases::NAMES.len()],
    /// Of what each start took ([`Phases::start`]).
    buckets: [AtomicU32; BUCKETS],
}

/// A bucket that gets this full is halved with all others of its rung.
const FULL: u32 = 1 << 31;

impl StartTimes {
    /// Counts a start. Cost: two relaxed additions and one for each phase that it had; the first on a rung allocates.
    ///
    /// Counts of the buckets are 32 bits wide: when one gets to 2^31, all of its rung are halved, which leaves the quantiles as they
    /// are. [`Self::count`] goes on.
    pub fn observe(&self, start: Start, phases: &Phases) {
        let rung = self.0.get_or_init(Box::default)[start as usize].get_or_init(Box::default);
        rung.count.fetch_add(1, Ordering::Relaxed);
        for (sum, time) in rung.phases_ns.iter().zip(phases.times()) {
            if !time.is_zero() {
                sum.fetch_add(nanos(time), Ordering::Relaxed);
            }
        }
        // Exactly one of those that count at once sees the last value below.
        if rung.buckets[bucket(nanos(phases.start()))].fetch_add(1, Ordering::Relaxed) == FULL - 1 {
            rung.halve();
        }
    }

    /// Starts on a rung, in all.
    #[must_use]
    pub fn count(&self, start: Start) -> u64 {
        self.rung(start).map_or(0, |rung| rung.count.load(Ordering::Relaxed))
    }

    /// Starts on any rung, in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        Start::ALL.into_iter().map(|start| self.count(start)).sum()
    }

    /// The histogram of a rung; not one moment's when others count meanwhile.
    #[must_use]
    pub fn reading(&self, start: Start) -> Reading {
        let Some(rung) = self.rung(start) else { return Reading::default() };
        Reading {
            buckets: std::array::from_fn(|bucket| rung.buckets[bucket].load(Ordering::Relaxed).into()),
            sum: rung.phases().start(),
        }
    }

    /// What each phase took on average of the starts on a rung; `None` for one that nothing began on.
    #[must_use]
    pub fn mean(&self, start: Start) -> Option<Phases> {
        let rung = self.rung(start)?;
        let count = self.reading(start).count().max(1);
        Some(Phases::of_times(rung.phases().times().map(|sum| Duration::from_nanos(nanos(sum) / count))))
    }

    fn rung(&self, start: Start) -> Option<&Rung> {
        self.0.get()?[start as usize].get().map(Box::as_ref)
    }
}

impl Rung {
    fn halve(&self) {
        for bucket in &self.buckets {
            bucket.fetch_sub(bucket.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
        for sum in &self.phases_ns {
            sum.fetch_sub(sum.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }

    /// Sums of all phases.
    fn phases(&self) -> Phases {
        Phases::of_times(std::array::from_fn(|phase| Duration::from_nanos(self.phases_ns[phase].load(Ordering::Relaxed))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    /// Of a start that took `micros`, after twice as long in the queue.
    fn phases(micros: u64) -> Phases {
        Phases { queue: us(2 * micros), enter: us(micros), ..Phases::default() }
    }

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_pass() {
        assert_eq!((bucket(0), bucket(1), bucket(250), bucket(251)), (0, 0, 0, 1));
        for number in 0..BOUNDS {
            let bound = nanos(bound(number).unwrap());
            assert_eq!((bucket(bound), bucket(bound + 1)), (number, number + 1));
        }
        assert_eq!((bucket(u64::MAX), bound(BOUNDS)), (BOUNDS, None));
        assert!([us(1), us(2), us(1024)].iter().all(|time| (0..BOUNDS).any(|number| bound(number) == Some(*time))));
        assert!(bound(BOUNDS - 1).unwrap() > Duration::from_secs(10));
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_their_rank() {
        assert_eq!(Reading::default().quantile(500), None);
        let histogram = Histogram::default();
        (0..98).for_each(|_| histogram.observe(us(3)));
        (0..2).for_each(|_| histogram.observe(us(3000)));
        let reading = histogram.reading();
        assert_eq!((reading.count(), reading.sum), (100, us(98 * 3 + 2 * 3000)));
        let within = |permille, low, high| {
            let time = reading.quantile(permille).unwrap();
            assert!(time > low && time <= high, "{permille}: {time:?}");
        };
        within(1, us(2), us(4));
        within(500, us(2), us(4));
        within(980, us(2), us(4));
        within(981, us(2048), us(4096));
        within(1000, us(2048), us(4096));
        histogram.observe(Duration::MAX);
        assert_eq!(histogram.reading().quantile(1000), bound(BOUNDS - 1));
    }

    #[test]
    fn readings_add_up() {
        let [one, other] = [us(1), Duration::from_secs(100)].map(|time| {
            let histogram = Histogram::default();
            histogram.observe(time);
            histogram.reading()
        });
        let mut sum = one;
        sum.add(&other);
        assert_eq!((sum.count(), sum.buckets[2], sum.buckets[BOUNDS]), (2, 1, 1));
        assert_eq!(sum.sum, us(100_000_001));
    }

    #[test]
    fn starts_are_counted_by_rung_and_idle_functions_are_small() {
        let starts = StartTimes::default();
        assert_eq!((starts.total(), starts.reading(Start::Ready)), (0, Reading::default()));
        starts.observe(Start::Stored, &phases(50));
        starts.observe(Start::Stored, &phases(60));
        starts.observe(Start::Ready, &phases(1));
        assert_eq!((starts.count(Start::Stored), starts.count(Start::Resident), starts.total()), (2, 0, 3));
        let stored = starts.reading(Start::Stored);
        assert_eq!((stored.buckets[8], stored.sum), (2, us(110)));
        assert_eq!((starts.mean(Start::Stored), starts.mean(Start::Compiled)), (Some(phases(55)), None));
        assert_eq!((size_of::<StartTimes>(), size_of::<Rung>()), (16, 168));
    }

    #[test]
    fn a_full_bucket_is_halved_and_the_count_goes_on() {
        let starts = StartTimes::default();
        starts.observe(Start::Ready, &phases(1));
        let rung = starts.rung(Start::Ready).unwrap();
        rung.count.store(u64::from(FULL), Ordering::Relaxed);
        rung.buckets[2].store(FULL - 1, Ordering::Relaxed);
        rung.buckets[4].store(1000, Ordering::Relaxed);
        let before = starts.reading(Start::Ready).quantile(500);
        starts.observe(Start::Ready, &phases(1));
        let after = starts.reading(Start::Ready);
        assert_eq!((after.buckets[2], after.buckets[4]), (u64::from(FULL) / 2, 500));
        assert_eq!((after.quantile(500), starts.count(Start::Ready)), (before, u64::from(FULL) + 1));
    }
}
