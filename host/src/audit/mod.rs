//! The audit log: who changed what on this node, as lines of JSON, each with the hash of the line before.
//!
//! ```text
//! DIR/audit/00000000000000000001.jsonl    the file that begins with line 1; the highest number is written to
//!
//! {"seq":7,"time_ms":…,"prev":"<64 hex digits>","event":"begin","method":"PUT","path":"/v1/functions/a","tenant":"default",…}
//! {"seq":8,"time_ms":…,"prev":"<SHA-256 of line 7>","event":"end","of":7,"status":201,…}
//! ```
//!
//! A change has two lines: `begin` is on the disk before the change is made, `end` before it is acknowledged. A `begin` without its `end` is a
//! change of which nobody was told how it ended: the client left, or the node was killed. `prev` of the first line is 64 zeros.
//!
//! Owns the files, their order and the chain. Knows nothing about what is changed. Invariant: a line that was acknowledged is on the disk, whole,
//! and so are all lines before it that are kept. Whoever can write the files can write a whole new chain: keep the last hash elsewhere.

mod files;
mod verify;

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use crate::id::Digest;
use crate::storage::disk::{create_dirs, is_full};

pub use self::files::FOLDER;
pub use self::verify::{Broken, Verified, verify};

/// Most bytes of a file before the next one is begun.
pub const FILE_BYTES_MAX: u64 = 16 << 20;
/// Files that are kept; the oldest goes when there would be more.
pub const FILES_MAX: usize = 64;
/// Longest line, in bytes.
pub const LINE_LEN_MAX: usize = 16 << 10;
/// What stands for the hash of the line before the first.
const NO_LINE: [u8; 32] = [0; 32];

/// Why the log cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The file system.
    #[error("the audit log {} cannot be used: {source}", .path.display())]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
    /// A file holds what Hob did not write.
    #[error("the audit log {} is damaged: {what}; keep the folder as it is, move it away, and start hob again with a new one", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        what: String,
    },
}

impl AuditError {
    /// Whether there is no room for a line.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> AuditError + use<> {
    let path = path.to_owned();
    move |source| AuditError::Io { path, source }
}

/// The log of one data directory.
#[derive(Debug)]
pub struct Audit {
    folder: PathBuf,
    file_bytes_max: u64,
    files_max: usize,
    end: Mutex<End>,
}

/// Where the next line goes.
#[derive(Debug)]
struct End {
    file: File,
    path: PathBuf,
    /// Bytes of whole lines in it.
    len: u64,
    /// Number of the next line.
    next: u64,
    /// Hash of the last line.
    hash: Digest,
}

impl Audit {
    /// Opens the log below a data directory; makes it if it is missing. What a kill left of a line that nobody was told of is cut off.
    ///
    /// # Errors
    /// [`AuditError`].
    ///
    /// # Cost
    /// Reads the last file: at most [`FILE_BYTES_MAX`].
    pub fn open(dir: &Path) -> Result<Self, AuditError> {
        Self::open_with(dir, FILE_BYTES_MAX, FILES_MAX)
    }

    fn open_with(dir: &Path, file_bytes_max: u64, files_max: usize) -> Result<Self, AuditError> {
        let folder = dir.join(FOLDER);
        create_dirs(&folder).map_err(io_error(&folder))?;
        let files = files::list(&folder)?;
        let end = match files.last() {
            None => End::begin(&folder, 1, Digest::from_bytes(NO_LINE))?,
            Some((first, path)) => End::resume(*first, path)?,
        };
        Ok(Self { folder, file_bytes_max, files_max, end: Mutex::new(end) })
    }

    /// Writes a line with these members, durably, and returns its number. Blocks. A text that is too long for a line is cut.
    ///
    /// # Errors
    /// [`AuditError`]; then nothing was written.
    pub fn append(&self, event: &str, members: Map<String, Value>) -> Result<u64, AuditError> {
        // After a panic in between the file may have half a line more than `len` says, which the next write overwrites.
        let mut end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        if end.len >= self.file_bytes_max {
            let next = End::begin(&self.folder, end.next, end.hash)?;
            *end = next;
            self.forget()?;
        }
        let seq = end.next;
        let mut line = line(seq, end.hash, event, members);
        let hash = Digest::of(&line);
        line.push(b'\n');
        let path = end.path.clone();
        end.write(&line).map_err(io_error(&path))?;
        (end.len, end.next, end.hash) = (end.len + line.len() as u64, seq + 1, hash);
        Ok(seq)
    }

    /// Removes the oldest files, if there are too many.
    fn forget(&self) -> Result<(), AuditError> {
        let files = files::list(&self.folder)?;
        for (_, path) in files.iter().take(files.len().saturating_sub(self.files_max)) {
            std::fs::remove_file(path).map_err(io_error(path))?;
        }
        Ok(())
    }

    /// The lines after number `after`, at most `count`, as they were written. Blocks.
    ///
    /// # Errors
    /// [`AuditError`].
    ///
    /// # Cost
    /// Reads one file or two.
    pub fn lines(&self, after: u64, count: usize) -> Result<Vec<String>, AuditError> {
        // Nobody writes meanwhile, so no half of a line is seen.
        let _end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        files::lines(&self.folder, after, count)
    }

    /// Number and hash of the last line; 0 and zeros if there is none.
    #[must_use]
    pub fn head(&self) -> (u64, Digest) {
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
        (end.next - 1, end.hash)
    }

    /// Where the files are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

impl End {
    /// A new file, whose first line will have this number.
    fn begin(folder: &Path, next: u64, hash: Digest) -> Result<Self, AuditError> {
        let path = folder.join(files::name(next));
        let file = files::create(&path).map_err(io_error(&path))?;
        Ok(Self { file, path, len: 0, next, hash })
    }

    /// The last file, as a process before left it.
    fn resume(first: u64, path: &Path) -> Result<Self, AuditError> {
        let text = std::fs::read(path).map_err(io_error(path))?;
        let len = text.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let file = files::open(path).map_err(io_error(path))?;
        if len < text.len() {
            tracing::warn!(path = %path.display(), bytes = text.len() - len, "the audit log ended in half a line, which is cut off");
            file.set_len(len as u64).and_then(|()| file.sync_all()).map_err(io_error(path))?;
        }
        let end = verify::last_of(path, first, &text[..len])?;
        Ok(Self { file, path: path.to_owned(), len: len as u64, next: end.next, hash: end.hash })
    }

    /// Writes after the last whole line. If that fails, what was written is cut off again, or overwritten by the next.
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.len))?;
        let written = self.file.write_all(line).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // The next line begins at the same place whether this works or not.
            let _cut = self.file.set_len(self.len);
        }
        written
    }
}

/// A line without its end.
fn line(seq: u64, prev: Digest, event: &str, members: Map<String, Value>) -> Vec<u8> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut all = Map::new();
    all.insert("seq".into(), seq.into());
    all.insert("time_ms".into(), u64::try_from(since.as_millis()).unwrap_or(u64::MAX).into());
    all.insert("prev".into(), prev.hex().into());
    all.insert("event".into(), event.into());
    all.extend(members.into_iter().filter(|(name, _)| !matches!(name.as_str(), "seq" | "time_ms" | "prev" | "event")));
    let text = Value::Object(all.clone()).to_string();
    if text.len() <= LINE_LEN_MAX {
        return text.into_bytes();
    }
    for value in all.values_mut() {
        if let Some(text) = value.as_str().filter(|text| text.len() > 200) {
            *value = format!("{}…", text.chars().take(200).collect::<String>()).into();
        } else if value.to_string().len() > 1000 {
            *value = "(too long)".into();
        }
    }
    Value::Object(all).to_string().into_bytes()
}

#[cfg(test)]
mod tests;
