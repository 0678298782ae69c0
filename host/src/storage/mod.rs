//! Storage: how files and databases are kept so that they survive, whatever they hold. What several parts need of that is here.
//!
//! Owns the order of durable writes (`disk.rs`), the room that files take and who needs them (`space.rs`), which of them this process
//! found good (`checked.rs`), what changes answered (`answers.rs`), huge pages (`huge.rs`), how redb is kept from harming the daemon (`overlay.rs`, [`caught`]), and how its commits become durable fast (`log.rs`).
//! Knows nothing about what the files mean. Invariant: no panic of redb leaves [`caught`].

pub(crate) mod answers;
pub(crate) mod checked;
pub(crate) mod disk;
pub(crate) mod huge;
pub(crate) mod log;
pub(crate) mod overlay;
#[cfg(test)]
pub(crate) mod power;
pub mod space;

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `op`; a panic becomes its text. redb panics where a damaged file is not what it wrote.
pub(crate) fn caught<T>(op: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(op)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
        format!("reading it failed with '{}'", text.unwrap_or("a panic"))
    })
}
