//! What a guest says in its build: to its function's log, and to whoever deploys it where it is refused.
//!
//! Owns the lines that a report carries, and the last of them as part of a sentence. Knows nothing about why a build ended. Invariant: that
//! part is one line, bounded, and nothing in it controls a terminal.

use serde::{Deserialize, Serialize};

use crate::telemetry::logs::{FunctionLog, Level, Source};

/// Lines of initialisation and warm-up that are kept.
const LINES_MAX: usize = 200;
/// Most bytes of them in a sentence, from the end.
const LAST_WORDS_LEN_MAX: usize = 2 << 10;

/// A line that a guest wrote in the build, or that Hob wrote about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Where: the name of a [`Source`].
    pub source: String,
    /// How serious: the name of a [`Level`].
    pub level: String,
    /// What.
    pub text: String,
}

impl Said {
    /// The newest lines of a log.
    pub(super) fn in_log(log: &FunctionLog) -> Vec<Self> {
        let said = |source: Source, level: Level, text: &str| Self {
            source: source.as_str().into(),
            level: level.as_str().into(),
            text: text.into(),
        };
        log.tail(LINES_MAX).iter().map(|entry| said(entry.source, entry.level, &entry.text)).collect()
    }

    /// From where in the guest it is, and how serious; `None` if Hob wrote it.
    #[must_use]
    pub fn by_guest(&self) -> Option<(Source, Level)> {
        let source = [Source::Stdout, Source::Stderr, Source::Log].into_iter().find(|source| source.as_str() == self.source)?;
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug];
        Some((source, levels.into_iter().find(|level| level.as_str() == self.level).unwrap_or(Level::Trace)))
    }

    /// A backtrace. Beside the guest's own words, and what Hob has to explain, it helps nobody who has no log to look at.
    fn is_backtrace(&self) -> bool {
        self.source == Source::Host.as_str() && self.level == Level::Error.as_str()
    }
}

/// The end of what was said, lines apart by ` | `; `None` if nothing was. A function may be started several times in its build: what it says
/// each time is there once.
pub(super) fn last_words(log: &[Said]) -> Option<String> {
    let mut lines = Vec::new();
    for said in log.iter().rev().take(LINES_MAX).filter(|said| !said.is_backtrace()) {
        if !lines.contains(&&said.text) {
            lines.push(&said.text);
        }
    }
    let mut words = String::new();
    for line in lines.into_iter().rev() {
        if !words.is_empty() {
            words.push_str(" | ");
        }
        for c in line.chars() {
            if c.is_control() { words.extend(c.escape_default()) } else { words.push(c) }
        }
    }
    if words.len() > LAST_WORDS_LEN_MAX {
        let start = words.ceil_char_boundary(words.len() - LAST_WORDS_LEN_MAX);
        words.replace_range(..start, "…");
    }
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::id::{InvocationId, RevisionNumber};
    use crate::telemetry::logs::{LogSink, LogSpace};

    fn said(source: &str, level: &str, text: &str) -> Said {
        Said { source: source.into(), level: level.into(), text: text.into() }
    }

    #[test]
    fn a_line_keeps_its_source_and_level() {
        let log = Arc::new(FunctionLog::new(LogSpace::new(1 << 20, 1 << 20)));
        let sink = LogSink::new(log.clone(), InvocationId::new(0, 0), RevisionNumber::FIRST, 1 << 20);
        let levels = [Level::Error, Level::Warn, Level::Info, Level::Debug, Level::Trace];
        for source in [Source::Stdout, Source::Stderr, Source::Log] {
            for level in levels {
                sink.guest(source, level, b"a");
                assert_eq!(Said::in_log(&log).last().unwrap().by_guest(), Some((source, level)));
            }
        }
        sink.host(Level::Warn, "a");
        assert_eq!(Said::in_log(&log).last().unwrap().by_guest(), None);
    }

    #[test]
    fn the_last_words_are_each_line_once_and_no_backtrace() {
        assert_eq!(last_words(&[]), None);
        let trace = said("host", "error", "0: hob_init");
        assert_eq!(last_words(std::slice::from_ref(&trace)), None);
        let log = [
            said("stdout", "info", "first"),
            said("log", "error", "init failed: no"),
            trace.clone(),
            said("host", "warn", "files: add a line"),
            said("log", "error", "init failed: no"),
            trace,
        ];
        assert_eq!(last_words(&log).as_deref(), Some("first | files: add a line | init failed: no"));
    }

    #[test]
    fn the_last_words_control_no_terminal() {
        let log = [said("stderr", "warn", "\x1b]0;title\x07 ä\r\u{9b}2J"), said("stderr", "warn", "b\nc")];
        assert_eq!(last_words(&log).as_deref(), Some("\\u{1b}]0;title\\u{7} ä\\r\\u{9b}2J | b\\nc"));
    }

    #[test]
    fn the_last_words_are_bounded_on_both_sides() {
        let whole = "x".repeat(LAST_WORDS_LEN_MAX);
        assert_eq!(last_words(&[said("log", "info", &whole)]), Some(whole.clone()));
        assert_eq!(last_words(&[said("log", "info", &format!("a{whole}"))]), Some(format!("…{whole}")));
        // Where the bound falls into a character, it is left out whole.
        let rest = "x".repeat(LAST_WORDS_LEN_MAX - 1);
        assert_eq!(last_words(&[said("log", "info", &format!("ä{rest}"))]), Some(format!("…{rest}")));
        // Escapes count as they are written.
        let escaped = last_words(&[said("log", "info", &"\x01".repeat(LAST_WORDS_LEN_MAX))]).unwrap();
        assert_eq!(escaped.len(), LAST_WORDS_LEN_MAX + "…".len());
        let many: Vec<_> = (0..LINES_MAX + 1).map(|n| said("log", "info", &n.to_string())).collect();
        let words = last_words(&many).unwrap();
        assert!(words.starts_with("1 | ") && words.ends_with(" | 200"), "{words}");
    }
}
