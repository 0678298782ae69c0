//! Durable writes: the few steps that make a file survive a power cut.
//!
//! Owns their order (write, fsync, rename, fsync of the directory). Knows nothing about what the files hold.
//! Invariant: under its final name a file is either absent or whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::io::Errno;

/// Makes the entries of a directory durable: without this, a rename or a new file may be gone after a power cut.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes `dir/name` durably (mode 0600), replacing what was there. A kill at any moment leaves the old file or the new one,
/// and perhaps `dir/name.new`, which the next attempt overwrites.
pub(crate) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let new = dir.join(format!("{name}.new"));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, dir.join(name))?;
    sync_dir(dir)
}

/// Creates a directory (mode 0700) and its missing parents, each durable in its own parent. Fine if it exists.
pub(crate) fn create_dirs(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_dirs(parent)?;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        // Somebody else made it in between: only a directory will do, which the next step finds out.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        other => other?,
    }
    sync_dir(parent)
}

/// Whether an operation failed because the disk, this user's share of it, or what a file may have is full (`ENOSPC`, `EDQUOT`, `EFBIG`).
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// Whether an operation failed because the disk does: what was written before may not be there (`EIO`), the file system is damaged or has
/// turned read-only (`EUCLEAN`, `EBADMSG`, `EROFS`), or the disk is gone (`ENXIO`, `ENODEV`).
#[must_use]
pub(crate) fn is_failing(error: &io::Error) -> bool {
    let failures = [Errno::IO, Errno::UCLEAN, Errno::BADMSG, Errno::ROFS, Errno::NXIO, Errno::NODEV].map(Errno::raw_os_error);
    error.raw_os_error().is_some_and(|errno| failures.contains(&errno))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_full_quota_are_told_from_other_errors() {
        assert!(is_full(&Errno::NOSPC.into()) && is_full(&Errno::DQUOT.into()) && is_full(&Errno::FBIG.into()));
        assert!(!is_full(&Errno::ACCESS.into()) && !is_full(&Errno::IO.into()));
        assert!(is_failing(&Errno::IO.into()) && !is_failing(&Errno::NOSPC.into()) && !is_failing(&Errno::MFILE.into()));
        let real = OpenOptions::new().write(true).open("/dev/full").unwrap().write_all(b"x").unwrap_err();
        assert!(is_full(&real), "{real}");
    }

    #[test]
    fn an_abandoned_attempt_does_not_hinder_the_next() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("format.new"), "half of a lon").unwrap();
        write_durably(dir.path(), "format", b"2").unwrap();
        assert_eq!(fs::read(dir.path().join("format")).unwrap(), b"2");
        assert!(!dir.path().join("format.new").exists());
    }

    #[test]
    fn directories_are_made_with_their_parents_and_not_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dirs(&deep).unwrap();
        create_dirs(&deep).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(create_dirs(&dir.path().join("file")).is_err());
        assert!(create_dirs(&dir.path().join("file/below")).is_err());
    }
}
