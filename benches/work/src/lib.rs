//! What the benchmarks compute, so that a native program and a guest run the same source.
//!
//! Knows nothing about where bytes come from, and reads no clock. Invariant: the same arguments give the same bits on every target
//! (plain `f32` operations in one order, no mathematics of the platform in what is compared).

pub mod censor;
mod dice;
pub mod entries;
pub mod training;
pub mod words;

pub use self::dice::Dice;
