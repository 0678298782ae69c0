//! Large guests: from which pool an instance comes.
//!
//! Owns the decision. An interpreter touches hundreds of pages of its memory in each invocation; in a pool that keeps so much of a
//! slot resident and resets it by copying, none of them faults. For a guest that touches few pages of a large memory the copying
//! would cost more than it saves. So the faults of the first invocations are counted, for guests of a size for which it can matter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use super::artifact::Code;
use super::settings::LARGE_KEEP_RESIDENT;
use super::template::{Entry, Resolved, Template};
use crate::artifacts::{ClosedArtifact, VerifiedArtifact};

/// Initial memory from which on a guest may be large, in bytes: below it, all of it is kept resident anyway.
const BYTES_MIN: u64 = 1 << 20;
/// And up to which: beyond it most of it would not be kept resident.
const BYTES_MAX: u64 = 2 * LARGE_KEEP_RESIDENT as u64;
/// Invocations whose faults are counted.
const SAMPLES: u64 = 8;
/// What a page fault costs (`docs/decisions/0011-large-guests.md`).
const FAULT_NS: u64 = 2_000;
/// What resetting a mebibyte by copying costs.
const COPY_NS_PER_MIB: u64 = 16_000;
/// A client waits for faults, but not for the reset, which comes after the response.
const FAULT_WEIGHT: u64 = 2;

/// The counting of one template's faults.
pub(super) struct Trial {
    /// Not open: each template would hold a descriptor more for it.
    artifact: ClosedArtifact,
    memory_bytes: u64,
    samples: AtomicU64,
    faults: AtomicU64,
}

impl Trial {
    /// A trial, if a guest that begins with `memory_bytes` of memory may be large.
    pub(super) fn new(artifact: &VerifiedArtifact, memory_bytes: u64) -> Option<Self> {
        if !(BYTES_MIN..=BYTES_MAX).contains(&memory_bytes) {
            return None;
        }
        Some(Self { artifact: artifact.remember(), memory_bytes, samples: AtomicU64::new(0), faults: AtomicU64::new(0) })
    }

    /// The faults of this thread until now, if more samples are wanted.
    pub(super) fn begin(&self) -> Option<u64> {
        if self.samples.load(Ordering::Relaxed) < SAMPLES { minor_faults() } else { None }
    }

    /// Adds the faults since `before`. Whether this was the last sample, and they are worth a move.
    pub(super) fn end(&self, before: u64) -> bool {
        let faults = minor_faults().unwrap_or(before).saturating_sub(before);
        let faults = self.faults.fetch_add(faults, Ordering::Relaxed) + faults;
        let samples = self.samples.fetch_add(1, Ordering::Relaxed) + 1;
        let copied_mib = self.memory_bytes.min(LARGE_KEEP_RESIDENT as u64) >> 20;
        samples == SAMPLES && faults / SAMPLES * FAULT_NS * FAULT_WEIGHT > copied_mib * COPY_NS_PER_MIB
    }
}

/// Page faults of the calling thread that needed no disk.
fn minor_faults() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").ok()?;
    // The second field is the thread's name in parentheses, which may hold anything; the tenth is ours.
    stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()
}

impl Engine {
    /// Moves a template to the pool for large guests, on a thread that may block.
    pub(super) fn enlarge(&self, template: &Arc<Template>) {
        let Some(place) = self.large_place() else { return };
        let (this, template) = (self.clone(), template.clone());
        tokio::task::spawn_blocking(move || {
            let Some(trial) = &template.trial else { return };
            let lane = this.place(place);
            let kind = template.shape.kind;
            let opened = trial.artifact.open().map_err(wasmtime::Error::from);
            let moved = opened
                .and_then(|artifact| Code::load(&lane.engine, kind, &artifact))
                .and_then(|code| Entry::new(kind, &code, lane.modules.as_ref(), &lane.components));
            match moved {
                Ok(entry) => template.move_to(Resolved { entry, place }),
                // It stays where it is, and works.
                Err(error) => tracing::warn!(%error, "a template could not be moved to the pool for large guests"),
            }
        });
    }
}
