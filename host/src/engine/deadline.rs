//! Deadlines: one thread ticks for all engines, and each slice of a guest is measured.
//!
//! Owns the tick and the measuring of slices. A guest yields at its third tick and at each one after that: most have ended before
//! the third, and what runs longer gets in line with its neighbours (`schedule`). It yields earlier if a wall deadline has passed on its
//! thread: who is over ends in tokio's turn. Invariant: the tick never depends on a runtime's
//! threads being free.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use wasmtime::{Store, UpdateDeadline};

use super::clock;
use crate::capability::handler::InSlice;
use crate::capability::{Host, Refusal};
use crate::fault::Code;

/// Time between two ticks. A guest can pass its CPU limit by at most this much.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// Ticks of a guest's first slice: it has two to three milliseconds. Guests that are interrupted are alive side by side, and push each
/// other out of the caches. Source: docs/decisions/0011-large-guests.md.
pub(super) const FIRST_SLICE: u64 = 3;
/// A turn that is shorter goes on until the next tick: the one that meets it was under way when it began.
const SLICE_MIN: Duration = Duration::from_micros(500);

/// Starts the thread that ticks `engines` until all of them are gone.
///
/// # Errors
/// When the thread cannot be started.
pub(super) fn start_ticker(engines: &[wasmtime::Engine]) -> std::io::Result<()> {
    let mut engines: Vec<_> = engines.iter().map(wasmtime::Engine::weak).collect();
    let tick = move || {
        while !engines.is_empty() {
            std::thread::sleep(TICK);
            engines.retain(|engine| engine.upgrade().inspect(wasmtime::Engine::increment_epoch).is_some());
        }
    };
    std::thread::Builder::new().name("hob-tick".into()).spawn(tick).map(drop)
}

/// When a slice ends at the next tick, whatever it has had.
#[derive(Debug, Clone, Copy)]
pub(super) struct Until {
    /// The guest's own wall deadline.
    pub(super) own: Option<Instant>,
    /// The first of those who wait on this thread. Asked at ticks alone, for it looks at all of them.
    pub(super) others: fn() -> Option<Instant>,
}

impl Until {
    fn has_passed(self, now: Instant) -> bool {
        self.own.is_some_and(|own| now >= own) || (self.others)().is_some_and(|first| now >= first)
    }
}

/// The slice that runs on this thread.
#[derive(Debug, Clone, Copy)]
struct Slice {
    began: Instant,
    used_before: Duration,
    /// What the turn had before it.
    had: Duration,
    until: Until,
    /// What the kernel has given to others since it began.
    lost: Duration,
}

impl Slice {
    fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began).saturating_sub(self.lost)
    }
}

/// What a slice came to.
#[derive(Debug)]
pub(super) struct Sliced<R> {
    pub(super) result: R,
    pub(super) ended: Instant,
    /// Its processor time.
    pub(super) took: Duration,
    /// If it ended because its time was over, and not because the guest waits for something: who in the guest waits to go on.
    pub(super) yielded: Vec<Waker>,
}

thread_local! {
    static SLICE: Cell<Option<Slice>> = const { Cell::new(None) };
    static YIELDED: RefCell<Vec<Waker>> = const { RefCell::new(Vec::new()) };
}

/// The slice around another, if any; put back also if a guest panics.
struct Outer(Option<Slice>);

impl Drop for Outer {
    fn drop(&mut self) {
        SLICE.set(self.0);
    }
}

/// Runs one slice of a guest that used `used` before, `had` of it in this turn, and adds what this one took. `began`: now.
pub(super) fn slice<R>(used: &mut Duration, had: Duration, began: Instant, until: Until, run: impl FnOnce() -> R) -> Sliced<R> {
    clock::begin(began);
    let new = Slice { began, used_before: *used, had, until, lost: Duration::ZERO };
    let outer = Outer(SLICE.replace(Some(new)));
    let in_slice = InSlice::begin();
    let result = run();
    drop(in_slice);
    let yielded = YIELDED.take();
    let ended = Instant::now();
    let mut slice = SLICE.get().unwrap_or(new);
    drop(outer);
    if ended.saturating_duration_since(began) >= clock::LONG {
        slice.lost += clock::lost(ended);
    }
    let took = slice.took(ended);
    *used += took;
    Sliced { result, ended, took, yielded }
}

/// Ends the slice that runs: whoever runs slices wakes what this left, and then polls the guest.
pub(super) struct EndOfSlice {
    met: bool,
}

impl EndOfSlice {
    pub(super) fn new() -> Self {
        Self { met: false }
    }
}

impl Future for EndOfSlice {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.met {
            return Poll::Ready(());
        }
        self.met = true;
        YIELDED.with_borrow_mut(|yielded| yielded.push(cx.waker().clone()));
        Poll::Pending
    }
}

/// Arms a store: yield when a slice is over, end when the guest has used `cpu` on its processor. `ticks`: of its first slice.
pub(super) fn arm(store: &mut Store<Host>, cpu: Duration, ticks: u64) {
    store.set_epoch_deadline(1);
    let mut more = ticks.saturating_sub(1);
    store.epoch_deadline_callback(move |mut store| {
        let Host { mappings, memory, .. } = store.data_mut();
        mappings.check(memory)?;
        let now = Instant::now();
        let slice = SLICE.get().map(|slice| Slice { lost: slice.lost + clock::lost(now), ..slice });
        SLICE.set(slice);
        let took = slice.map(|slice| slice.took(now)).unwrap_or_default();
        let (used, had) = slice.map(|slice| (slice.used_before + took, slice.had + took)).unwrap_or_default();
        if used >= cpu {
            let detail = format!("the function used up its processor time of {cpu:?}");
            return Err(Refusal { code: Code::CpuDeadline, detail }.into());
        }
        // In its first turn it has had all that it used.
        more = if used == had { more } else { 0 };
        let goes_on = (more > 0 || had < SLICE_MIN) && !slice.is_some_and(|slice| slice.until.has_passed(now));
        more = more.saturating_sub(1);
        if goes_on {
            return Ok(UpdateDeadline::Continue(1));
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(EndOfSlice::new())))
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::time::{ClockId, clock_gettime};
    use wasmtime::{Caller, Linker, Module};

    use super::super::store::{self, Blueprint, Streams};
    use super::super::{Kind, kind::Lane, settings};
    use super::*;
    use crate::capability::Environment;
    use crate::capability::handler::Exchange;
    use crate::capability::reply::Reply;
    use crate::id::{InvocationId, RevisionNumber};
    use crate::invocation::Hops;
    use crate::limits::Limits;
    use crate::telemetry::logs::{FunctionLog, LogSink, LogSpace};

    /// A guest that makes its own ticks, each after more processor time than the least that a turn has.
    struct Guest {
        store: Store<Host>,
        ticks: Arc<AtomicU32>,
    }

    impl Guest {
        fn new(ticks: u64) -> Self {
            let engine = settings::initialising(Lane::Plain).unwrap();
            let log = FunctionLog::new(LogSpace::new(1 << 20, 1 << 20));
            let blueprint = Blueprint {
                kind: Kind::Handler,
                limits: &Limits::default(),
                environment: Arc::new(Environment::default()),
                log: Arc::new(LogSink::new(Arc::new(log), InvocationId::new(0, 0), RevisionNumber::FIRST, 0)),
                reply: Arc::new(Reply::default()),
                streams: Streams::Served { input: None },
                exchange: Exchange::default(),
                ticks,
                hops: Hops::default(),
                account: None,
            };
            let (store, _output) = store::build(&engine, blueprint);
            Self { store, ticks: Arc::default() }
        }

        /// Runs one slice after the other; how many ticks each had.
        fn slices(mut self, slices: impl IntoIterator<Item = (Duration, Until)>) -> Vec<u32> {
            let ticks = self.ticks.clone();
            let mut linker = Linker::new(self.store.engine());
            let tick = move |caller: Caller<'_, Host>| {
                let used = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
                let began = used();
                while used() - began < SLICE_MIN + SLICE_MIN / 10 {}
                ticks.fetch_add(1, Ordering::Relaxed);
                caller.engine().increment_epoch();
            };
            linker.func_wrap("", "tick", tick).unwrap();
            let spins = r#"(module (import "" "tick" (func $tick)) (func (export "spin") (loop (call $tick) (br 0))))"#;
            let module = Module::new(self.store.engine(), wat::parse_str(spins).unwrap()).unwrap();
            let mut guest = Box::pin(async {
                let instance = linker.instantiate_async(&mut self.store, &module).await.unwrap();
                instance.get_typed_func::<(), ()>(&mut self.store, "spin").unwrap().call_async(&mut self.store, ()).await
            });
            let mut cx = Context::from_waker(Waker::noop());
            let (mut used, mut before) = (Duration::ZERO, 0);
            let mut slice_of = |(had, until)| {
                let had = if had == Duration::MAX { used } else { had };
                let sliced = slice(&mut used, had, Instant::now(), until, || guest.as_mut().poll(&mut cx));
                assert!(sliced.result.is_pending() && sliced.yielded.len() == 1);
                let ticks = self.ticks.load(Ordering::Relaxed);
                ticks - std::mem::replace(&mut before, ticks)
            };
            slices.into_iter().map(&mut slice_of).collect()
        }
    }

    /// Of a turn that goes on where the last slice ended, and of a new one.
    const FIRST: Duration = Duration::MAX;
    const LATER: Duration = Duration::ZERO;

    fn nobody() -> Option<Instant> {
        None
    }

    fn somebody() -> Option<Instant> {
        Instant::now().checked_sub(Duration::from_secs(1))
    }

    const NEVER: Until = Until { own: None, others: nobody };
    const OTHERS: Until = Until { own: None, others: somebody };

    #[test]
    fn the_first_slice_has_its_ticks_and_later_ones_have_one() {
        assert_eq!(Guest::new(FIRST_SLICE).slices([(FIRST, NEVER), (LATER, NEVER), (LATER, NEVER)]), [3, 1, 1]);
        assert_eq!(Guest::new(1).slices([(FIRST, NEVER), (LATER, NEVER)]), [1, 1]);
    }

    #[test]
    fn a_slice_ends_at_the_first_tick_past_a_deadline() {
        let now = Instant::now();
        let own = |ends| Until { own: Some(ends), others: nobody };
        assert_eq!(Guest::new(FIRST_SLICE).slices([(FIRST, own(now))]), [1]);
        assert_eq!(Guest::new(FIRST_SLICE).slices([(FIRST, own(now + Duration::from_secs(3600)))]), [3]);
        // What is left of the first slice is not given later.
        assert_eq!(Guest::new(FIRST_SLICE).slices([(FIRST, OTHERS), (LATER, NEVER)]), [1, 1]);
    }
}
