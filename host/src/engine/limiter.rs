//! The memory limiter: wasmtime asks it before any memory or table of an instance grows.
//!
//! Owns the translation from wasmtime's questions, each about one memory or table, to the sum that `meter::MemoryBudget` keeps.

use wasmtime::{Error, ResourceLimiter, Result};

use crate::meter::MemoryBudget;

/// What one element of a table counts as, in bytes: a pointer.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// Asked for initial sizes and for growth; never for host memory, which host calls bound on their own.
impl ResourceLimiter for MemoryBudget {
    /// `Ok(false)`: the guest's `memory.grow` returns -1; an initial size that does not fit fails the instantiation.
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        // The host grows a memory for what it maps there (`capability/handler/mapping`).
        if self.is_exempt() {
            return Ok(true);
        }
        // wasmtime does not undo a growth that fails for its own maximum, so such a growth is never charged.
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.grow(current, desired))
    }

    /// The system has no more, where the limits do. The guest's `memory.grow` returns -1.
    fn memory_grow_failed(&mut self, _: Error) -> Result<()> {
        self.fail();
        Ok(())
    }

    fn table_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> Result<bool> {
        let bytes = |elements: usize| elements.saturating_mul(ELEMENT_BYTES);
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.grow(bytes(current), bytes(desired)))
    }
}
