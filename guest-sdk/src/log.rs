//! Entries of the function's log.
//!
//! Owns the levels and the macros. What is kept, and for how long, is the host's decision (limit `log`). Standard output and
//! standard error reach the same log line by line; an entry made here has a level and may have several lines.

use std::fmt;

use crate::abi;

/// How much an entry matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Something failed.
    Error,
    /// Something is wrong but was dealt with.
    Warn,
    /// What an operator wants to know.
    Info,
    /// What the author wants to know.
    Debug,
    /// Every step.
    Trace,
}

/// Writes one entry. [`log!`](crate::log!) and its kin are the usual way to call it.
/// # Cost    One host call; an allocation when there is something to format.
pub fn write(level: Level, text: fmt::Arguments<'_>) {
    let level = level as u32;
    match text.as_str() {
        Some(text) => abi::log(level, text),
        None => abi::log(level, &text.to_string()),
    }
}

/// Writes an entry of a given level to the function's log: `log!(Level::Info, "{count} left")`.
#[macro_export]
macro_rules! log {
    ($level:expr, $($text:tt)+) => { $crate::log::write($level, ::core::format_args!($($text)+)) };
}

/// Writes an entry of level [`Error`](Level::Error) to the function's log; arguments as for [`format!`].
#[macro_export]
macro_rules! error {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Error, $($text)+) };
}

/// Writes an entry of level [`Warn`](Level::Warn) to the function's log; arguments as for [`format!`].
#[macro_export]
macro_rules! warn {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Warn, $($text)+) };
}

/// Writes an entry of level [`Info`](Level::Info) to the function's log; arguments as for [`format!`].
#[macro_export]
macro_rules! info {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Info, $($text)+) };
}

/// Writes an entry of level [`Debug`](Level::Debug) to the function's log; arguments as for [`format!`].
#[macro_export]
macro_rules! debug {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Debug, $($text)+) };
}

/// Writes an entry of level [`Trace`](Level::Trace) to the function's log; arguments as for [`format!`].
#[macro_export]
macro_rules! trace {
    ($($text:tt)+) => { $crate::log!($crate::log::Level::Trace, $($text)+) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_the_numbers_of_the_abi() {
        let numbers = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace].map(|level| level as u32);
        assert_eq!(numbers, [0, 1, 2, 3, 4]);
    }

    #[test]
    fn the_macros_take_what_format_takes() {
        let count = 2;
        crate::error!("plain");
        crate::info!("{count} of {}, {n}", 3, n = 4,);
        crate::log!(Level::Debug, "{count:>5}");
    }
}
