//! Crash points: named places in a deploy, a put or a delivery where a test can kill the process as `kill -9` would; and panic points, where one
//! can plant a bug.
//!
//! Owns the names. Compiled to nothing where debug assertions are off, so a released binary has no way to reach them.
//! Invariant: a process reads its point once, from `HOB_CRASH_AT`, and dies at the first arrival there.

/// Every crash point, in the order in which a first deploy with a snapshot passes them. A test hits each.
pub const POINTS: [&str; 20] = [
    "upload-created",
    "upload-written",
    "upload-synced",
    "build-done",
    "wasm-renamed",
    "wasm-dir-synced",
    "snapshot-written",
    "snapshot-synced",
    "snapshot-renamed",
    "snapshot-dir-synced",
    "artifact-written",
    "artifact-synced",
    "artifact-renamed",
    "artifact-dir-synced",
    "registry-begun",
    "registry-revision-written",
    "registry-live-written",
    "registry-committed",
    "catalog-swapped",
    "acknowledged",
];

/// Every crash point of a deploy that brings files, besides those of any deploy, in order. A test hits each.
pub const BUNDLE_POINTS: [&str; 3] = ["bundle-unpacked", "bundle-renamed", "bundle-dir-synced"];

/// Every crash point of the put of a durable object, in order. A test hits each.
pub const OBJECT_POINTS: [&str; 7] = [
    "object-created",
    "object-written",
    "object-synced",
    "object-renamed",
    "object-dir-synced",
    "object-row-written",
    "object-committed",
];

/// Every crash point of the delivery of an event, in order. A test hits each.
pub const EVENT_POINTS: [&str; 2] = ["event-told", "event-settled"];

/// The crash point of a change that keeps its answer: it is made and durable, and nobody was told. A test hits it.
pub const ANSWER_POINTS: [&str; 1] = ["answer-kept"];

/// Dies here by `SIGKILL` if `HOB_CRASH_AT` names `point`.
#[cfg(debug_assertions)]
pub fn point(point: &'static str) {
    use std::sync::OnceLock;
    static AT: OnceLock<Option<String>> = OnceLock::new();
    let is_listed =
        [&POINTS[..], &BUNDLE_POINTS, &OBJECT_POINTS, &EVENT_POINTS, &ANSWER_POINTS].iter().any(|points| points.contains(&point));
    debug_assert!(is_listed, "crash point '{point}' is not listed");
    #[expect(clippy::disallowed_methods, reason = "a test tells the real binary where to die; no release build reads it")]
    let at = AT.get_or_init(|| std::env::var("HOB_CRASH_AT").ok());
    if at.as_deref() == Some(point) {
        // Nothing after this line runs: no destructor, no flush, as when the kernel kills the process.
        let _dies = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// Nothing: crash points exist in debug builds only.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_point: &'static str) {}

/// Every panic point: where a host function, or the drop of what an invocation held, is to have a bug.
pub const PANIC_POINTS: [&str; 2] = ["hob1-log", "host-dropped"];

/// Panics here if `HOB_PANIC_AT` names `point`.
#[cfg(debug_assertions)]
pub fn panic_point(point: &'static str) {
    use std::sync::OnceLock;
    static AT: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(PANIC_POINTS.contains(&point), "panic point '{point}' is not listed");
    #[expect(clippy::disallowed_methods, reason = "a test tells the real binary where to have a bug; no release build reads it")]
    let at = AT.get_or_init(|| std::env::var("HOB_PANIC_AT").ok());
    assert!(at.as_deref() != Some(point), "planted at {point}");
}

/// Nothing: panic points exist in debug builds only.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn panic_point(_point: &'static str) {}

/// Something whose drop panics if `HOB_PANIC_AT` names its point: see [`panic_point`].
#[derive(Debug)]
pub struct PanicAtDrop(pub &'static str);

#[cfg(debug_assertions)]
impl Drop for PanicAtDrop {
    fn drop(&mut self) {
        panic_point(self.0);
    }
}
