//! The watch over what guests write on their ground: pages that become their own are seen by nobody but the kernel.
//!
//! ```text
//! on each tick of a guest   (`super::Mappings::check`)  its thread's page faults are few enough: nothing; else its pages are counted
//! every 4 ms                (this thread)               the same for guests in one slice for long: `memory.fill` takes no tick
//! ```
//!
//! Owns the thread, which lives while something is mapped, and the beats of the threads that run guests. Knows nothing about mappings.
//! Invariant: a guest that wrote more than it may is marked within two rounds, and keeps nothing of it from then on.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use super::pages::Ground;

/// Time between two rounds. In it a core writes some 20 MiB of new pages.
const ROUND: Duration = Duration::from_millis(4);
/// Rounds without anything to watch after which the thread ends: a second.
const ROUNDS_IDLE: u32 = 250;

/// When a thread last began or ended a slice of a guest.
#[derive(Debug, Default)]
pub(super) struct Beat {
    changes: AtomicU64,
    depth: AtomicU32,
}

thread_local! {
    static BEAT: Arc<Beat> = Arc::default();
}

impl Beat {
    /// That of the calling thread.
    pub(super) fn here() -> Arc<Self> {
        BEAT.with(Arc::clone)
    }

    /// Whether it is the calling thread's.
    pub(super) fn is_here(self: &Arc<Self>) -> bool {
        BEAT.with(|here| Arc::ptr_eq(here, self))
    }
}

/// A slice of a guest on this thread, which ends when this is dropped. Two atomic stores that no other thread waits for.
#[derive(Debug)]
#[must_use]
pub struct InSlice(());

impl InSlice {
    /// A slice begins.
    pub fn begin() -> Self {
        BEAT.with(|beat| beat.step(1));
        Self(())
    }
}

impl Drop for InSlice {
    fn drop(&mut self) {
        BEAT.with(|beat| beat.step(u32::MAX));
    }
}

impl Beat {
    fn step(&self, by: u32) {
        // Only its own thread writes to a beat, so what was read is still so.
        self.depth.store(self.depth.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        self.changes.store(self.changes.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// The ground of one instance, under watch until it is dropped.
#[derive(Debug)]
pub(super) struct Watch(Arc<Watched>);

#[derive(Debug)]
struct Watched {
    ground: Arc<Ground>,
    beat: Arc<Beat>,
    /// What the beat's count was in the last round.
    seen: AtomicU64,
    /// Bytes that the guest may have of its own on its ground.
    allowance: AtomicUsize,
    is_over: AtomicBool,
}

#[derive(Debug, Default)]
struct Registry {
    watched: HashMap<usize, Arc<Watched>>,
    is_running: bool,
}

fn registry() -> MutexGuard<'static, Registry> {
    static REGISTRY: OnceLock<Mutex<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    /// Puts a ground under watch, whose guest runs on this thread.
    ///
    /// # Errors
    /// When the thread that watches cannot be started.
    pub(super) fn begin(ground: Arc<Ground>, beat: Arc<Beat>, allowance: usize) -> io::Result<Self> {
        let (seen, allowance) = (AtomicU64::new(u64::MAX), AtomicUsize::new(allowance));
        let watched = Arc::new(Watched { ground, beat, seen, allowance, is_over: AtomicBool::new(false) });
        let mut registry = registry();
        if !registry.is_running {
            std::thread::Builder::new().name("hob-mapped".into()).spawn(run)?;
            registry.is_running = true;
        }
        registry.watched.insert(Arc::as_ptr(&watched).addr(), watched.clone());
        Ok(Self(watched))
    }

    /// Says how many bytes the guest may have of its own on its ground.
    pub(super) fn allow(&self, bytes: usize) {
        self.0.allowance.store(bytes, Ordering::Relaxed);
    }

    /// Whether it had more.
    pub(super) fn is_over(&self) -> bool {
        self.0.is_over.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        registry().watched.remove(&Arc::as_ptr(&self.0).addr());
    }
}

impl Watched {
    /// Whether its thread is still in the slice that it was in a round ago.
    fn is_stuck(&self) -> bool {
        let now = self.beat.changes.load(Ordering::Relaxed);
        self.seen.swap(now, Ordering::Relaxed) == now && self.beat.depth.load(Ordering::Relaxed) > 0
    }

    fn look(&self) {
        if !self.is_over.load(Ordering::Relaxed) {
            let own = self.ground.own_bytes().unwrap_or_else(|error| {
                tracing::error!(%error, "what a guest wrote to an object that it mapped cannot be counted: it is ended");
                usize::MAX
            });
            if own <= self.allowance.load(Ordering::Relaxed) {
                return;
            }
            self.is_over.store(true, Ordering::Relaxed);
        }
        // Again in each round, until the instruction that goes on writing has ended.
        self.ground.wipe();
    }
}

fn run() {
    let mut idle = 0;
    loop {
        std::thread::sleep(ROUND);
        let mut registry = registry();
        idle = if registry.watched.is_empty() { idle + 1 } else { 0 };
        if idle > ROUNDS_IDLE {
            registry.is_running = false;
            return;
        }
        let stuck: Vec<_> = registry.watched.values().filter(|watched| watched.is_stuck()).cloned().collect();
        drop(registry);
        stuck.iter().for_each(|watched| watched.look());
    }
}
