//! Storage: how files and databases are kept so that they survive, whatever they hold. What several parts need of that is here.
//!
//! Owns the order of durable writes (`disk.rs`), the room that files take and who needs them (`space.rs`), and which of them this
//! process found good (`checked.rs`). Knows nothing about what the files mean.

pub(crate) mod checked;
pub(crate) mod disk;
pub mod space;
