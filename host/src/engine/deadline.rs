//! Deadlines: one thread ticks for all engines, and each slice of a guest is measured.
//!
//! Owns the tick and the measuring of slices. A guest yields at its third tick and at each one after that: most have ended before
//! the third, and what runs longer gets in line with its neighbours (`schedule`). Invariant: the tick never depends on a runtime's
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

/// The slice that runs on this thread.
#[derive(Debug, Clone, Copy)]
struct Slice {
    began: Instant,
    used_before: Duration,
    /// What the turn had before it.
    had: Duration,
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
pub(super) fn slice<R>(used: &mut Duration, had: Duration, began: Instant, run: impl FnOnce() -> R) -> Sliced<R> {
    clock::begin(began);
    let new = Slice { began, used_before: *used, had, lost: Duration::ZERO };
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
    // Who may have less than a slice is looked at earlier.
    let limit = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
    store.set_epoch_deadline(limit.clamp(1, ticks));
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
        if had < SLICE_MIN {
            return Ok(UpdateDeadline::Continue(1));
        }
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(EndOfSlice::new())))
    });
}
