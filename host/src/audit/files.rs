//! The files of the audit log: their names, in their order.
//!
//! Owns how they are named, made and read. Knows nothing about what a line says, but its number.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{AuditError, io_error};
use crate::storage::disk::sync_dir;

/// The folder of the log in a data directory.
pub const FOLDER: &str = "audit";
const ENDING: &str = ".jsonl";
const DIGITS: usize = 20;

/// The file that begins with line `first`.
pub(super) fn name(first: u64) -> String {
    format!("{first:0DIGITS$}{ENDING}")
}

/// The files and the number of the first line of each, oldest first. Others in the folder are not looked at.
pub(super) fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, AuditError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let entry = entry.map_err(io_error(folder))?;
        let file = entry.file_name();
        let number = file.to_str().and_then(|text| text.strip_suffix(ENDING)).filter(|digits| digits.len() == DIGITS);
        if let Some(first) = number.and_then(|digits| digits.parse().ok()) {
            found.push((first, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// Makes a file, durably. One that a kill left empty is taken over.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    Ok(file)
}

/// Opens a file for more lines.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// The lines after number `after`, at most `count`.
pub(super) fn lines(folder: &Path, after: u64, count: usize) -> Result<Vec<String>, AuditError> {
    let files = list(folder)?;
    // The last file that begins at or before the wanted line.
    let wanted = after.saturating_add(1);
    let from = files.iter().rposition(|(first, _)| *first <= wanted).unwrap_or(0);
    let mut found = Vec::new();
    for (first, path) in files.iter().skip(from) {
        if found.len() >= count {
            break;
        }
        let text = fs::read_to_string(path).map_err(io_error(path))?;
        let skip = usize::try_from(wanted.saturating_sub(*first)).unwrap_or(usize::MAX);
        found.extend(text.lines().skip(skip).take(count - found.len()).map(ToOwned::to_owned));
    }
    Ok(found)
}
