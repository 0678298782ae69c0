//! Guest memory of all live instances together: what a process may not pass, or the system would end it.
//!
//! Owns the sum of what [`super::MemoryBudget`]s were charged, and its bound. Both are the process's, as its memory is. Invariant: an
//! instance gives back what it was charged when its budget is dropped, however it ended.

use std::sync::atomic::{AtomicU64, Ordering};

static CHARGED: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(u64::MAX);

/// Says how much memory guests may have together, in bytes.
pub fn set_most(bytes: u64) {
    MOST.store(bytes, Ordering::Relaxed);
}

/// Whether so much is charged that nobody else should begin: nine tenths.
#[must_use]
pub fn is_crowded() -> bool {
    CHARGED.load(Ordering::Relaxed) >= MOST.load(Ordering::Relaxed) / 10 * 9
}

/// Bytes that live instances have been charged.
#[must_use]
pub fn charged() -> u64 {
    CHARGED.load(Ordering::Relaxed)
}

/// Charges `bytes` more; `false`, and nothing charged, when the sum would pass its bound.
pub(super) fn charge(bytes: usize) -> bool {
    let before = CHARGED.fetch_add(bytes as u64, Ordering::Relaxed);
    let fits = before.saturating_add(bytes as u64) <= MOST.load(Ordering::Relaxed);
    if !fits {
        release(bytes);
    }
    fits
}

/// Charges what is there already.
pub(super) fn note(bytes: usize) {
    CHARGED.fetch_add(bytes as u64, Ordering::Relaxed);
}

pub(super) fn release(bytes: usize) {
    CHARGED.fetch_sub(bytes as u64, Ordering::Relaxed);
}
