//! Deadlines: one thread ticks for all engines, and each slice of a guest is measured.
//!
//! Owns the tick and the measuring of slices. A guest yields at its third tick and at each one after that: most have ended before
//! the third, and what runs longer lets its neighbours and the timers have their turn each millisecond. Invariant: the tick never
//! depends on a runtime's threads being free.

use std::cell::Cell;
use std::time::{Duration, Instant};

use wasmtime::{Store, UpdateDeadline};

use crate::capability::handler::InSlice;
use crate::capability::{Host, Refusal};
use crate::fault::Code;

/// Time between two ticks. A guest can pass its CPU limit by at most this much.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// Ticks of a guest's first slice: it has two to three milliseconds. Guests that are interrupted are alive side by side, and push each
/// other out of the caches. Source: docs/decisions/0011-large-guests.md.
const FIRST_SLICE: u64 = 3;

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
    /// Whether it ended because it was a slice's time, and not because the guest waits for something.
    yielded: bool,
}

/// What a slice came to.
#[derive(Debug)]
pub(super) struct Sliced<R> {
    pub(super) result: R,
    pub(super) ended: Instant,
    /// Whether the guest would have gone on computing.
    pub(super) yielded: bool,
}

thread_local! {
    static SLICE: Cell<Option<Slice>> = const { Cell::new(None) };
}

/// Runs one slice of a guest that used `used` before, and adds what this one took. `began`: now.
///
/// Measured by the monotonic clock (20 ns) and not by the thread's CPU clock (a system call): a slice is at most three ticks long,
/// so the two differ only by what the kernel gave to other threads meanwhile.
pub(super) fn slice<R>(used: &mut Duration, began: Instant, run: impl FnOnce() -> R) -> Sliced<R> {
    let outer = SLICE.replace(Some(Slice { began, used_before: *used, yielded: false }));
    let in_slice = InSlice::begin();
    let result = run();
    drop(in_slice);
    let yielded = SLICE.replace(outer).is_some_and(|slice| slice.yielded);
    let ended = Instant::now();
    *used += ended - began;
    Sliced { result, ended, yielded }
}

/// Arms a store: yield when a slice is over, end when the guest has used `cpu` on its processor.
pub(super) fn arm(store: &mut Store<Host>, cpu: Duration) {
    // Who may have less than a slice is looked at earlier.
    let limit = u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX);
    store.set_epoch_deadline(limit.clamp(1, FIRST_SLICE));
    store.epoch_deadline_callback(move |mut store| {
        let Host { mappings, memory, .. } = store.data_mut();
        mappings.check(memory)?;
        let slice = SLICE.get();
        let used = slice.map(|slice| slice.used_before + slice.began.elapsed());
        if used.is_some_and(|used| used >= cpu) {
            let detail = format!("the function used up its processor time of {cpu:?}");
            return Err(Refusal { code: Code::CpuDeadline, detail }.into());
        }
        SLICE.set(slice.map(|slice| Slice { yielded: true, ..slice }));
        // tokio's yield looks at I/O before it runs the guest again; a plain wake-up would not for up to 61 slices.
        Ok(UpdateDeadline::YieldCustom(1, Box::pin(tokio::task::yield_now())))
    });
}
