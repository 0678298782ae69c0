//! Large guests: from which of two pools their instances come.
//!
//! Owns the rule. An interpreter touches hundreds of pages of its memory in each invocation. In the pool that keeps so much of a slot
//! resident none of them faults, but all of it is copied back when the instance is dropped, after the response has left: a client
//! waits for less, and the thread works for longer. So large guests run there while their thread is mostly idle, and among the others
//! while it is busy. Knows nothing about requests. Invariant: the pool changes what an invocation costs, never what it answers, and
//! nobody waits for a place in the one for large guests.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use wasmtime::ResourcesRequired;

use super::Engine;
use super::artifact::Code;
use super::kind::Lane;
use super::settings::{LARGE_KEEP_RESIDENT, has_slots};
use super::template::{Resolved, Template};
use crate::artifacts::{ClosedArtifact, VerifiedArtifact};

/// Initial memory from which on a guest is large, in bytes: below it there is too little to save.
const BYTES_MIN: u64 = 4 << 20;
/// And up to which: beyond it most of it would not be kept resident.
const BYTES_MAX: u64 = 2 * LARGE_KEEP_RESIDENT as u64;

/// How far a thread looks back, at least. It looks only when an instance of a large template is to be made: where that is rarer, it
/// looks back further, and what it decides matters less.
const WINDOW: Duration = Duration::from_millis(100);
/// Share of a window, in hundredths, above which an idle thread becomes a busy one.
const BUSY: u32 = 60;
/// And up to which a busy one becomes idle: half of that, for in the large pool an invocation costs up to twice as much. Closer
/// together, the pool alone would make a thread busy, and it would go to and fro.
/// Source: docs/decisions/0011-large-guests.md.
const IDLE: u32 = 30;

/// A look at how much a thread has done.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    /// How long it was not waiting for anything by then. That counts what the system gave to other threads meanwhile: requests
    /// wait for that too.
    worked: Duration,
}

/// How busy a thread was lately.
#[derive(Debug, Clone, Copy)]
struct Load {
    since: Reading,
    is_idle: bool,
}

impl Load {
    fn new(now: Reading) -> Self {
        Self { since: now, is_idle: true }
    }

    /// Whether the thread was mostly idle in the last window.
    fn look(&mut self, now: Reading) -> bool {
        let passed = now.at.saturating_duration_since(self.since.at);
        if passed >= WINDOW {
            let worked = now.worked.saturating_sub(self.since.worked);
            let share = if self.is_idle { BUSY } else { IDLE };
            *self = Self { since: now, is_idle: worked * 100 <= passed * share };
        }
        self.is_idle
    }
}

thread_local! {
    static LOAD: Cell<Option<Load>> = const { Cell::new(None) };
}

/// Whether the calling thread, which drives `runtime`, was mostly idle lately.
fn is_idle(runtime: &Handle) -> bool {
    // The runtime adds up after each round of its tasks: what runs now is not counted yet, and is in the next window.
    let now = Reading { at: Instant::now(), worked: runtime.metrics().worker_total_busy_duration(0) };
    let mut load = LOAD.get().unwrap_or(Load::new(now));
    let is_idle = load.look(now);
    LOAD.set(Some(load));
    is_idle
}

/// What a large template has besides: its code in the other pool.
pub(super) struct Large {
    /// Not open: each template would hold a descriptor more for it.
    artifact: ClosedArtifact,
    asked: AtomicBool,
    /// Loaded once, when it is wanted for the first time.
    code: OnceLock<Arc<Resolved>>,
}

impl Large {
    /// Of a guest that is large, if `code` is one's.
    pub(super) fn of(code: &Code, artifact: &VerifiedArtifact) -> Option<Self> {
        let is_large = code.resources_required().is_some_and(|needed| is_large(&needed));
        is_large.then(|| Self { artifact: artifact.remember(), asked: AtomicBool::new(false), code: OnceLock::new() })
    }
}

fn is_large(needed: &ResourcesRequired) -> bool {
    let bytes = needed.max_initial_memory_size.unwrap_or(0).saturating_mul(64 << 10);
    // Where it has begun it does not turn back, so it must find in the one pool whatever it would find in the other.
    (BYTES_MIN..=BYTES_MAX).contains(&bytes) && has_slots(needed)
}

impl Engine {
    /// What the next instance of `template` on this thread may be made of, the better first; the last is of the usual pool.
    pub(super) fn codes<'a>(&self, template: &'a Arc<Template>) -> impl Iterator<Item = &'a Arc<Resolved>> {
        self.large_code(template).into_iter().chain([&template.code])
    }

    /// The code in the pool for large guests, if it is wanted now and there. The first time it is wanted it is loaded, on a thread that
    /// may block.
    fn large_code<'a>(&self, template: &'a Arc<Template>) -> Option<&'a Arc<Resolved>> {
        let large = template.large.as_ref()?;
        let runtime = Handle::try_current().ok().filter(is_idle)?;
        let code = large.code.get();
        if code.is_none() && !large.asked.swap(true, Ordering::Relaxed) {
            let (this, template) = (self.clone(), template.clone());
            runtime.spawn_blocking(move || this.load_large(&template));
        }
        code
    }

    fn load_large(&self, template: &Template) {
        let Some(large) = &template.large else { return };
        let opened = large.artifact.open().map_err(wasmtime::Error::from);
        match opened.and_then(|artifact| self.resolve(Lane::Plain, true, template.shape.kind, &artifact)) {
            // Nobody else was asked.
            Ok((_, code)) => drop(large.code.set(Arc::new(code))),
            // It stays in the usual pool, and works.
            Err(error) => tracing::warn!(%error, "a template could not be loaded into the pool for large guests"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread's load after windows, each with its hundredths of work and what they make of it.
    fn check(windows: &[(u32, bool)]) {
        let mut now = Reading { at: Instant::now(), worked: Duration::ZERO };
        let mut load = Load::new(now);
        for (number, (share, is_idle)) in windows.iter().enumerate() {
            now = Reading { at: now.at + WINDOW, worked: now.worked + WINDOW * *share / 100 };
            assert_eq!(load.look(now), *is_idle, "window {number} of {windows:?}");
        }
    }

    #[test]
    fn sizes_on_both_sides() {
        let of = |pages, num_memories, num_tables| {
            let max_initial_memory_size = pages;
            is_large(&ResourcesRequired { num_memories, max_initial_memory_size, num_tables, max_initial_table_size: None })
        };
        for (pages, expected) in [(None, false), (Some(63), false), (Some(64), true), (Some(512), true), (Some(513), false)] {
            assert_eq!(of(pages, 1, 3), expected, "{pages:?} pages");
        }
        assert!(!of(Some(u64::MAX), 1, 0) && !of(Some(64), 2, 0) && !of(Some(64), 1, 4));
    }

    #[test]
    fn it_begins_idle_and_its_bounds_are_exact() {
        check(&[(0, true), (60, true), (61, false), (31, false), (30, true), (60, true)]);
    }

    #[test]
    fn between_the_bounds_it_stays_what_it_was() {
        check(&[(40, true), (59, true), (100, false), (59, false), (31, false), (40, false), (0, true), (40, true)]);
    }

    #[test]
    fn what_a_pool_costs_more_does_not_make_it_go_to_and_fro() {
        // As much as a thread may do among the others and be idle, and twice that in the large pool.
        check(&[(100, false), (IDLE, true), (2 * IDLE, true), (2 * IDLE, true)]);
    }

    #[test]
    fn a_part_of_a_window_decides_nothing() {
        let began = Reading { at: Instant::now(), worked: Duration::ZERO };
        let mut load = Load::new(began);
        let after = |passed: Duration, worked| Reading { at: began.at + passed, worked };
        let almost = WINDOW - Duration::from_nanos(1);
        assert!(load.look(began) && load.look(after(almost, almost)));
        assert!(!load.look(after(WINDOW, WINDOW)));
        assert!(!load.look(after(WINDOW + almost, WINDOW)), "nothing was done since");
        assert!(load.look(after(2 * WINDOW, WINDOW)));
        // A long one is one, and one that was told more than there can be is full.
        assert!(load.look(after(60 * WINDOW, 35 * WINDOW)));
        assert!(!load.look(after(61 * WINDOW, 40 * WINDOW)));
        // What goes back is none.
        assert!(load.look(after(62 * WINDOW, WINDOW)) && load.look(began));
    }
}
