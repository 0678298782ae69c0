//! Explanations: which line of the manifest would have allowed what was refused. The one place that says so, whatever was asked for.
//!
//! Owns the sentence, and that a function's log has each of them once for a revision. Knows nothing about who refuses. Invariant: a
//! guest that asks for more and more does not fill the log: what is said of one revision is bounded.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use super::Host;
use crate::telemetry::logs::{Level, LogSink};

/// Refusals that one revision explains in its log; the rest are only refused.
const EXPLANATIONS_MAX: usize = 64;

/// What a guest was refused, because the manifest does not grant it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("denied: {how} hob.toml: [grants] {line}")]
pub struct Denied {
    /// What it asked for, such as `bucket 'photos'`. What of it a guest made up is short.
    pub what: String,
    /// What to do with the line.
    pub how: How,
    /// The line below `[grants]` that would allow it.
    pub line: String,
}

/// What an author has to do with a line of the manifest. A thing may be granted once only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// There is none for it.
    Add,
    /// There is one for it, which allows less.
    Change,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "add to",
            Self::Change => "change in",
        })
    }
}

/// What the log of a function was told about one of its revisions.
#[derive(Debug, Default)]
pub struct Explained {
    told: Mutex<HashSet<String>>,
    is_build: bool,
}

impl Explained {
    /// What a build is told: there folders and sockets are missing that may be granted all the same.
    #[must_use]
    pub fn of_build() -> Self {
        Self { is_build: true, ..Self::default() }
    }

    /// Writes what would have allowed it, unless that was said before.
    pub fn tell(&self, denied: &Denied, log: &LogSink) {
        self.say(format!("{}: {denied}", denied.what), log);
    }

    /// Writes a text, unless it was written before.
    pub fn say(&self, text: String, log: &LogSink) {
        // No code panics while it holds the lock.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() < EXPLANATIONS_MAX && told.insert(text.clone()) {
            drop(told);
            log.host(Level::Warn, text);
        }
    }
}

impl Host {
    /// As [`Host::explain`], of what a build lacks whatever is granted: only later.
    pub(super) fn explain_to_invocations(&self, denied: &Denied) {
        if !self.environment.explained.is_build {
            self.explain(denied);
        }
    }

    /// Tells the author of the function, once for each revision, which line of the manifest would have allowed what was refused.
    pub(super) fn explain(&self, denied: &Denied) {
        self.environment.explained.tell(denied, &self.log);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{InvocationId, RevisionNumber};
    use crate::telemetry::logs::{FunctionLog, LogSpace};

    #[test]
    fn each_refusal_is_explained_once_and_not_without_end() {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        let sink = LogSink::new(log.clone(), InvocationId::new(0, 0), RevisionNumber::FIRST, 0);
        let denied =
            |number: usize| Denied { what: format!("thing {number}"), how: How::Add, line: format!("things = [{number}]") };
        let explained = Explained::default();
        for number in [1, 2, 1, 2] {
            explained.tell(&denied(number), &sink);
        }
        let said: Vec<_> = log.tail(10).iter().map(|entry| entry.text.clone()).collect();
        assert_eq!(said, [1, 2].map(|n| format!("thing {n}: denied: add to hob.toml: [grants] things = [{n}]")));
        (0..2 * EXPLANATIONS_MAX).for_each(|number| explained.tell(&denied(number), &sink));
        assert_eq!(log.tail(1000).len(), EXPLANATIONS_MAX);
    }
}
