//! Processor time of a thread, read seldom: what the kernel gave to others while a guest ran is not the guest's.
//!
//! The monotonic clock costs 20 ns, the thread's own a system call. So slices are measured by the first, and what the kernel took away is
//! found by the second, where it can have been something: the *anchor* is a moment at which both were read while the thread was awake,
//! and time lost since then is what one has more than the other. Reading it before the thread sleeps costs nobody anything.
//!
//! Owns the anchor of each thread. Knows nothing about guests. Invariant: between the anchor and now the thread has not slept, so all
//! that it lost was taken from it. A thread whose runtime does not tell when it sleeps has no anchor and loses nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What is shorter is not looked at: the kernel takes a processor away for longer.
pub(super) const LONG: Duration = Duration::from_micros(100);
/// An anchor that is older is not used for what begins now: what was lost since may have been lost by others.
const STALE: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy)]
struct Anchor {
    at: Instant,
    cpu: Duration,
}

impl Anchor {
    fn new(at: Instant) -> Self {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        // The kernel counts it up from 0, and has less than a billion nanoseconds in a second.
        let cpu = Duration::new(cpu.tv_sec.try_into().unwrap_or(0), cpu.tv_nsec.try_into().unwrap_or(0));
        Self { at, cpu }
    }
}

thread_local! {
    static ANCHOR: Cell<Option<Anchor>> = const { Cell::new(None) };
}

/// The thread is about to sleep.
pub(super) fn sleeps() {
    ANCHOR.set(Some(Anchor::new(Instant::now())));
}

/// The thread has slept.
pub(super) fn woke() {
    // Its processor time stood still meanwhile.
    ANCHOR.set(ANCHOR.get().map(|anchor| Anchor { at: Instant::now(), ..anchor }));
}

/// Something begins now that is going to be measured.
pub(super) fn begin(now: Instant) {
    if ANCHOR.get().is_some_and(|anchor| now.saturating_duration_since(anchor.at) > STALE) {
        ANCHOR.set(Some(Anchor::new(now)));
    }
}

/// What the kernel took from the thread since the anchor, which is now from here on. Nothing if that was but a moment ago.
pub(super) fn lost(now: Instant) -> Duration {
    let Some(anchor) = ANCHOR.get() else { return Duration::ZERO };
    let passed = now.saturating_duration_since(anchor.at);
    if passed < LONG {
        return Duration::ZERO;
    }
    let here = Anchor::new(now);
    ANCHOR.set(Some(here));
    passed.saturating_sub(here.cpu.saturating_sub(anchor.cpu))
}

/// Processor time of what `run` does.
pub(super) fn measure(run: impl FnOnce()) -> Duration {
    let began = Instant::now();
    begin(began);
    run();
    let ended = Instant::now();
    let passed = ended - began;
    if passed < LONG { passed } else { passed.saturating_sub(lost(ended)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keeps the processor busy until it has been for `time`.
    fn work(time: Duration) {
        let began = Anchor::new(Instant::now());
        while Anchor::new(began.at).cpu - began.cpu < time {}
    }

    #[test]
    fn a_thread_that_is_not_told_of_loses_nothing() {
        work(Duration::from_millis(2));
        assert_eq!(lost(Instant::now()), Duration::ZERO);
    }

    #[test]
    fn sleep_is_not_lost_and_what_was_taken_is() {
        sleeps();
        std::thread::sleep(Duration::from_millis(5));
        woke();
        let anchor = ANCHOR.get().unwrap();
        // No other way makes the kernel take a processor away for sure: a sleep that nobody was told of looks like that.
        std::thread::sleep(Duration::from_millis(5));
        let now = Instant::now();
        let lost = lost(now);
        assert!(lost >= Duration::from_micros(4500), "{lost:?}");
        assert!(lost <= now - anchor.at, "what it slept before does not count: {lost:?}");
        assert_eq!(super::lost(now), Duration::ZERO, "it was told once");
    }

    #[test]
    fn work_is_measured_by_what_it_used() {
        sleeps();
        woke();
        let before = Anchor::new(Instant::now()).cpu;
        let took = measure(|| {
            work(Duration::from_millis(3));
            std::thread::sleep(Duration::from_millis(20));
        });
        let used = Anchor::new(Instant::now()).cpu - before;
        // Two clocks read one after the other; beside the sleep that is nothing.
        assert!(took >= Duration::from_millis(2) && took <= used + Duration::from_millis(2), "{took:?} of {used:?}");
    }
}
