//! Large guests: from which pool an instance comes.
//!
//! Owns the decision. An interpreter touches hundreds of pages of its memory in each invocation; in a pool that keeps so much of a
//! slot resident and resets it by copying, none of them faults. For a guest that touches few pages, or on a machine that copies
//! slowly, the copying costs more than it saves. So both are tried, for guests of a size for which it can matter, and the faster one
//! stays. Knows nothing about requests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::Store;

use super::Engine;
use super::artifact::Code;
use super::settings::LARGE_KEEP_RESIDENT;
use super::template::{Entry, Resolved, Template};
use crate::artifacts::{ClosedArtifact, VerifiedArtifact};
use crate::capability::Host;

/// Initial memory from which on a guest may be large, in bytes: below it there is too little to save.
const BYTES_MIN: u64 = 4 << 20;
/// And up to which: beyond it most of it would not be kept resident.
const BYTES_MAX: u64 = 2 * LARGE_KEEP_RESIDENT as u64;
/// Invocations that are timed in each pool. The fastest counts: what disturbs one says nothing about the pool.
const SAMPLES: u32 = 16;
/// How much a time counts that a client waits for, beside one that passes after its response has left.
const WAITED_FOR: u32 = 2;

/// The trial of one template.
pub(super) struct Trial {
    /// Not open: each template would hold a descriptor more for it.
    artifact: ClosedArtifact,
    over: AtomicBool,
    state: Mutex<State>,
}

/// Samples in the usual pool, then in the large one.
#[derive(Default)]
struct State {
    usual: Samples,
    large: Samples,
    /// The code in the usual pool, while the large one is tried.
    usual_code: Option<Arc<Resolved>>,
}

#[derive(Default)]
struct Samples {
    count: u32,
    best: Option<Duration>,
}

impl Samples {
    /// Adds one; whether it was the last.
    fn add(&mut self, cost: Duration) -> bool {
        self.count += 1;
        self.best = Some(self.best.map_or(cost, |best| best.min(cost)));
        self.count == SAMPLES
    }
}

/// What a sample leads to.
enum Next {
    Nothing,
    /// To the large pool.
    Move,
    /// To the usual one, where this is its code.
    Back(Arc<Resolved>),
}

impl Trial {
    /// A trial, if a guest that begins with `memory_bytes` of memory may be large.
    pub(super) fn new(artifact: &VerifiedArtifact, memory_bytes: u64) -> Option<Self> {
        if !(BYTES_MIN..=BYTES_MAX).contains(&memory_bytes) {
            return None;
        }
        Some(Self { artifact: artifact.remember(), over: AtomicBool::new(false), state: Mutex::default() })
    }

    /// Whether the next invocation is to be timed.
    pub(super) fn wants_more(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sample(&self, in_large: bool, cost: Duration) -> Next {
        let mut state = self.state();
        if !in_large {
            // Those that come while it moves change nothing any more.
            return if state.usual.add(cost) { Next::Move } else { Next::Nothing };
        }
        if !state.large.add(cost) {
            return Next::Nothing;
        }
        self.over.store(true, Ordering::Relaxed);
        // Where it does not come from any more, it is mapped no longer.
        let usual_code = state.usual_code.take().filter(|_| state.large.best >= state.usual.best);
        usual_code.map_or(Next::Nothing, Next::Back)
    }
}

/// A store that is timed while it is dropped.
pub(super) struct Leaving {
    store: Option<Store<Host>>,
    timed: Option<Timed>,
}

/// An invocation that is a sample.
pub(super) struct Timed {
    pub(super) engine: Engine,
    pub(super) template: Arc<Template>,
    /// Whether it ran in the pool for large guests.
    pub(super) in_large: bool,
    /// From the instance being live to the guest's end.
    pub(super) ran: Duration,
}

impl Leaving {
    pub(super) fn new(store: Store<Host>, timed: Option<Timed>) -> Self {
        Self { store: Some(store), timed }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        let began = self.timed.is_some().then(Instant::now);
        self.store = None;
        let (Some(began), Some(Timed { engine, template, in_large, ran })) = (began, self.timed.take()) else { return };
        let Some(trial) = &template.trial else { return };
        match trial.sample(in_large, ran * WAITED_FOR + began.elapsed()) {
            Next::Nothing => {}
            Next::Move => engine.enlarge(&template),
            Next::Back(code) => drop(template.move_to(code)),
        }
    }
}

impl Engine {
    /// Moves a template to the pool for large guests, on a thread that may block.
    fn enlarge(&self, template: &Arc<Template>) {
        let (Some(place), Ok(runtime)) = (self.large_place(), tokio::runtime::Handle::try_current()) else { return };
        let (this, template) = (self.clone(), template.clone());
        runtime.spawn_blocking(move || {
            let Some(trial) = &template.trial else { return };
            let lane = this.place(place);
            let kind = template.shape.kind;
            let opened = trial.artifact.open().map_err(wasmtime::Error::from);
            let moved = opened
                .and_then(|artifact| Code::load(&lane.engine, kind, &artifact))
                .and_then(|code| Entry::new(kind, &code, lane.modules.as_ref(), &lane.components));
            match moved {
                Ok(entry) => {
                    let mut state = trial.state();
                    state.usual_code = Some(template.move_to(Arc::new(Resolved { entry, place })));
                }
                // It stays where it is, and works.
                Err(error) => {
                    trial.over.store(true, Ordering::Relaxed);
                    tracing::warn!(%error, "a template could not be moved to the pool for large guests");
                }
            }
        });
    }
}
