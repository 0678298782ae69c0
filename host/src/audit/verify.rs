//! Verification of an audit log: whether each line has the hash of the one before.
//!
//! Owns the verdict. Needs no node: the files are enough. Invariant: nothing is changed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{AuditError, NO_LINE, files, io_error};
use crate::id::Digest;

/// What was found of a log that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Number of the first line that is kept; 1 unless older files were removed.
    pub first: u64,
    /// Number of the last line; less than `first` if there is none.
    pub last: u64,
    /// Hash of the last line, to be kept elsewhere.
    pub hash: Digest,
}

/// The first line that does not fit.
#[derive(Debug, thiserror::Error)]
#[error("the audit log is broken at line {line} of {}: {what}", .path.display())]
pub struct Broken {
    /// Which file.
    pub path: PathBuf,
    /// Which line of it, from 1.
    pub line: usize,
    /// What does not fit.
    pub what: String,
}

/// Where a chain is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chain {
    /// Number of the next line.
    pub(super) next: u64,
    /// Hash of the line before it; `None` where that line is not kept.
    before: Option<Digest>,
    /// As `before`; of zeros where nothing is known.
    pub(super) hash: Digest,
}

impl Chain {
    fn at(first: u64, before: Option<Digest>) -> Self {
        Self { next: first, before, hash: before.unwrap_or(Digest::from_bytes(NO_LINE)) }
    }

    /// Takes one more line.
    fn take(&mut self, line: &str) -> Result<(), String> {
        let value: Value = serde_json::from_str(line).map_err(|error| format!("it is no JSON, {error}"))?;
        if value["seq"].as_u64() != Some(self.next) {
            return Err(format!("its number is {}, expected {}", value["seq"], self.next));
        }
        let prev =
            value["prev"].as_str().and_then(|hex| Digest::from_hex(hex).ok()).ok_or("it has no hash of the line before")?;
        if self.before.is_some_and(|before| before != prev) {
            return Err("its hash of the line before is another one: this line or that was changed".into());
        }
        let hash = Digest::of(line.as_bytes());
        *self = Self { next: self.next + 1, before: Some(hash), hash };
        Ok(())
    }
}

/// The end of the last file's chain; its lines are checked on the way.
pub(super) fn last_of(path: &Path, first: u64, text: &[u8]) -> Result<Chain, AuditError> {
    let damaged = |what: String| AuditError::Damaged { path: path.to_owned(), what };
    let text = std::str::from_utf8(text).map_err(|error| damaged(error.to_string()))?;
    let mut chain = Chain::at(first, (first == 1).then_some(Digest::from_bytes(NO_LINE)));
    if text.is_empty() && first > 1 {
        // It was begun and nothing came. The file before has the hash.
        let folder = path.parent().unwrap_or(Path::new("."));
        let before = files::lines(folder, first - 2, 1)?;
        chain.hash = Digest::of(before.first().ok_or_else(|| damaged("the file before is missing".into()))?.as_bytes());
    }
    for (index, line) in text.lines().enumerate() {
        chain.take(line).map_err(|what| damaged(format!("line {}: {what}", index + 1)))?;
    }
    Ok(chain)
}

/// Checks every line that is kept below a data directory.
///
/// # Errors
/// The first line that does not fit, and what the file system says.
pub fn verify(dir: &Path) -> Result<Result<Verified, Broken>, AuditError> {
    let files = files::list(&dir.join(files::FOLDER))?;
    let first = files.first().map_or(1, |(first, _)| *first);
    let mut chain = Chain::at(first, (first == 1).then_some(Digest::from_bytes(NO_LINE)));
    for (begins, path) in &files {
        let broken = |line: usize, what: String| Ok(Err(Broken { path: path.clone(), line, what }));
        if *begins != chain.next {
            return broken(0, format!("the file begins with line {begins}, expected {}: one is missing", chain.next));
        }
        let text = fs::read(path).map_err(io_error(path))?;
        let mut text = text;
        if files.last().is_some_and(|(last, _)| last == begins) {
            // A daemon may be writing a line, or have been killed while it did.
            text.truncate(text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1));
        }
        let Ok(text) = String::from_utf8(text) else { return broken(0, "it is no text".into()) };
        for (index, line) in text.lines().enumerate() {
            if let Err(what) = chain.take(line) {
                return broken(index + 1, what);
            }
        }
    }
    Ok(Ok(Verified { first, last: chain.next - 1, hash: chain.hash }))
}
