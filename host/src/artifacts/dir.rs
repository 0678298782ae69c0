//! The data directory: who may use it, and which format it has.
//!
//! ```text
//! DIR/lock           locked exclusively by the one daemon that uses the directory; holds its process id as text
//! DIR/format         the format's number as text, 4; written before anything else
//! DIR/mac.key        32 random bytes (0600), unless the key comes from elsewhere
//! DIR/registry.redb  deployed functions (`registry`)
//! DIR/staging/       files that are not whole yet; emptied at start
//! DIR/wasm/          deployed modules (`artifacts`)
//! DIR/artifacts/     native code (`artifacts`)
//! DIR/snapshots/     initialised modules (`artifacts`)
//! DIR/bundles/       files that deploys brought (`artifacts`); made when it is missing
//! DIR/data/          buckets and what is in them (`data`); made when it is missing
//! DIR/secrets/       secrets that came by the API, sealed (`secrets`); made when it is missing
//! DIR/audit/         who changed what (`audit`); made when it is missing
//! DIR/engine         digest of the engine that the native code is for (`artifacts`)
//! ```
//!
//! `DIR/data` and `DIR/bundles` came within format 3: versions before them ignore the folders, so they need no number of their own.
//!
//! Format 1 lacks the registry's table of routes, format 2 its tables of references and tenants, format 3 those of
//! tokens: a version that does not know them would take anybody for an admin. A start goes: [`DataDir::open`] → `Registry::open(dir.registry_path(),
//! dir.format())`, which migrates → [`DataDir::mark_current`] → `Artifacts::open`. A kill between any two of them repeats the
//! migration at the next start, which changes nothing that was migrated.
//!
//! Owns the lock, the format's number and the key's file. Knows nothing about what the other files hold.
//! Invariant: a directory that is refused is left untouched, to the last file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::seal::MacKey;
use crate::storage::disk::{create_dirs, sync_dir, write_durably};

/// Format that this version writes.
pub const FORMAT: u32 = 4;
/// Oldest format that is migrated.
pub const FORMAT_MIN: u32 = 1;

const LOCK: &str = "lock";
const FORMAT_FILE: &str = "format";
const KEY_FILE: &str = "mac.key";
/// What may lie in a directory without a format: what a first start that was killed leaves, and what a file system's root has.
const LEFTOVERS: [&str; 3] = [LOCK, "format.new", "lost+found"];
/// A file that should hold a number has at most this many bytes; a longer one is not read further.
const SMALL_FILE_LEN_MAX: u64 = 64;

/// A data directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The path is something else.
    #[error("{} is not a directory: give --data-dir a directory, or a path where one can be made", .path.display())]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// It does not exist and cannot be made.
    #[error("cannot create the data directory {}: {source}; create it yourself, or choose another with --data-dir", .path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its files cannot be written.
    #[error("the data directory {} cannot be written: {source}; change its owner or mode, or choose another with --data-dir", .path.display())]
    NotWritable {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process uses it.
    #[error("the data directory {} is in use by {}: stop that process, or choose another directory with --data-dir", .path.display(), holder(.pid))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// Process id that the holder wrote, if it got that far.
        pid: Option<u32>,
    },
    /// It holds files, but was not made by Hob.
    #[error("{} holds '{found}' and no '{FORMAT_FILE}', so it is not a data directory of hob: choose an empty one with --data-dir", .path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// A newer version made it.
    #[error("the data directory {} has format {found}, and this hob knows formats up to {FORMAT}: upgrade hob; nothing was changed", .path.display())]
    Newer {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u64,
    },
    /// The format's file holds something else.
    #[error("{}/{FORMAT_FILE} holds '{found}': expected a number from {FORMAT_MIN} to {FORMAT}; restore the directory from a backup", .path.display())]
    FormatUnreadable {
        /// The directory.
        path: PathBuf,
        /// What the file holds, shortened.
        found: String,
    },
    /// A file of key material that cannot be used.
    #[error("the key file {} cannot be used: {problem}", .path.display())]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// Any other failure.
    #[error("failed to {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(|| "another process".into(), |pid| format!("process {pid}"))
}

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { doing, path: path.into(), source }
}

/// A data directory, locked for this process for as long as this value lives.
#[derive(Debug)]
pub struct DataDir {
    /// Absolute: builds get paths below it, and run in another folder.
    path: PathBuf,
    format: u32,
    /// Closing it gives the lock back. Not inherited by children: std opens files with `O_CLOEXEC`.
    _lock: File,
}

impl DataDir {
    /// Opens a data directory; makes it (mode 0700) if it is missing, and gives an empty one the newest format.
    ///
    /// # Errors
    /// [`DataDirError`]. A directory that is locked, foreign, damaged, or of a newer format is left as it was.
    ///
    /// # Cost
    /// A few system calls; a new one 3 fsyncs.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        create(path)?;
        let path = &std::path::absolute(path).map_err(io_error("find", path))?;
        // Before the lock, because making the lock's file would change a directory that is refused.
        find_format(path)?;
        check_writable(path)?;
        let lock = lock(path)?;
        // Again, because until the lock was taken another process may have made or migrated the directory.
        let format = match find_format(path)? {
            Some(format) => format,
            None => {
                write_format(path)?;
                FORMAT
            }
        };
        // A file that was renamed just before a kill is not durable yet, and this start builds on it.
        sync_dir(path).map_err(io_error("sync", path))?;
        Ok(Self { path: path.clone(), format, _lock: lock })
    }

    /// The directory, as an absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format found: [`FORMAT`], or an older one that must be migrated before use.
    #[must_use]
    pub fn format(&self) -> u32 {
        self.format
    }

    /// Where the registry's database belongs.
    #[must_use]
    pub fn registry_path(&self) -> PathBuf {
        self.path.join("registry.redb")
    }

    /// Where buckets belong.
    #[must_use]
    pub fn data_path(&self) -> PathBuf {
        self.path.join("data")
    }

    /// Writes the newest format's number, durably, once everything is migrated. Does nothing if it is written already.
    ///
    /// # Errors
    /// [`DataDirError::Io`]; the directory keeps its old number and is migrated again at the next start.
    pub fn mark_current(&mut self) -> Result<(), DataDirError> {
        if self.format != FORMAT {
            write_format(&self.path)?;
            tracing::info!(from = self.format, to = FORMAT, "migrated the data directory");
            self.format = FORMAT;
        }
        Ok(())
    }

    /// The key of the artifacts' MAC: from `key_file` if given (`--key-file`, or a systemd credential), else from the directory
    /// itself, where it is made at first use. Then it protects against corruption and other users, not against whoever can
    /// read the directory. After a change of key every artifact is compiled anew, and secrets that came by the API must be set
    /// again.
    ///
    /// # Errors
    /// [`DataDirError::KeyFile`] for a file that is not exactly 32 bytes, can be read by every user, or written by the group.
    pub fn mac_key(&self, key_file: Option<&Path>) -> Result<MacKey, DataDirError> {
        if let Some(path) = key_file {
            return read_key(path, "make one with: head -c 32 /dev/urandom");
        }
        let path = self.path.join(KEY_FILE);
        if !path.exists() {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|e| io_error("get random bytes for", &path)(io::Error::other(e)))?;
            write_durably(&self.path, KEY_FILE, &key).map_err(io_error("write", &path))?;
        }
        read_key(&path, "delete it, and a new one is made and every artifact compiled anew; secrets must be set again")
    }
}

fn create(path: &Path) -> Result<(), DataDirError> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_dir()) {
        return Err(DataDirError::NotADirectory { path: path.into() });
    }
    create_dirs(path).map_err(|source| DataDirError::Create { path: path.into(), source })?;
    let mode = fs::metadata(path).map_err(io_error("look at", path))?.mode();
    if mode & 0o002 != 0 {
        // Not refused: volumes of containers are often mounted this way.
        tracing::warn!(path = %path.display(), "every user can write to the data directory; run: chmod o-w on it");
    }
    Ok(())
}

/// The format of an existing directory, `None` for an empty one. Changes nothing.
fn find_format(path: &Path) -> Result<Option<u32>, DataDirError> {
    let file = path.join(FORMAT_FILE);
    let bytes = match read_small(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return check_empty(path).map(|()| None),
        Err(error) => return Err(io_error("read", &file)(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let digits = text.trim_end();
    match digits.parse::<u64>() {
        Ok(found) if found > u64::from(FORMAT) => Err(DataDirError::Newer { path: path.into(), found }),
        Ok(found) if found >= u64::from(FORMAT_MIN) => Ok(u32::try_from(found).ok()),
        _ => Err(DataDirError::FormatUnreadable { path: path.into(), found: digits.escape_debug().take(40).collect() }),
    }
}

fn check_empty(path: &Path) -> Result<(), DataDirError> {
    for entry in fs::read_dir(path).map_err(io_error("list", path))? {
        let name = entry.map_err(io_error("list", path))?.file_name();
        if !LEFTOVERS.iter().any(|leftover| name == *leftover) {
            return Err(DataDirError::Foreign { path: path.into(), found: name.to_string_lossy().into_owned() });
        }
    }
    Ok(())
}

fn check_writable(path: &Path) -> Result<(), DataDirError> {
    use rustix::fs::{Access, access};
    access(path, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|errno| DataDirError::NotWritable { path: path.into(), source: errno.into() })
}

fn lock(dir: &Path) -> Result<File, DataDirError> {
    let path = dir.join(LOCK);
    let not_writable = |source| DataDirError::NotWritable { path: dir.into(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let mut file = options.open(&path).map_err(not_writable)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let text = read_small(&path).unwrap_or_default();
            let pid = String::from_utf8_lossy(&text).trim().parse().ok();
            return Err(DataDirError::Locked { path: dir.into(), pid });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
    }
    // The process id only makes a message better, so a full disk, where this fails, must not keep a node from starting.
    let _written = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

fn write_format(dir: &Path) -> Result<(), DataDirError> {
    write_durably(dir, FORMAT_FILE, format!("{FORMAT}\n").as_bytes()).map_err(io_error("write the format of", dir))
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SMALL_FILE_LEN_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_key(path: &Path, remedy: &str) -> Result<MacKey, DataDirError> {
    let problem = |problem: String| DataDirError::KeyFile { path: path.into(), problem };
    let unreadable = |error: io::Error| problem(format!("{error}; expected a readable file of 32 bytes"));
    let mut file = File::open(path).map_err(unreadable)?;
    let meta = file.metadata().map_err(unreadable)?;
    if !meta.is_file() {
        return Err(problem("it is not a regular file; expected one of 32 bytes".into()));
    }
    // The group may read it (systemd shows its credentials so), other users may not.
    if meta.mode() & 0o027 != 0 {
        let mode = meta.mode() & 0o777;
        return Err(problem(format!("its mode {mode:04o} lets others at it; run: chmod 600 {}", path.display())));
    }
    let mut bytes = Vec::new();
    let mut limited = Read::take(&mut file, SMALL_FILE_LEN_MAX);
    limited.read_to_end(&mut bytes).map_err(unreadable)?;
    let key = <[u8; 32]>::try_from(bytes.as_slice())
        .map_err(|_| problem(format!("it has {} bytes, expected exactly 32; {remedy}", meta.len())))?;
    Ok(MacKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn error(path: &Path) -> String {
        DataDir::open(path).unwrap_err().to_string()
    }

    fn files(path: &Path) -> Vec<String> {
        let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_no_directory_and_nothing_can_be_made_below_it() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(DataDir::open(&file), Err(DataDirError::NotADirectory { .. })));
        assert!(matches!(DataDir::open(&file.join("sub")), Err(DataDirError::Create { .. })));
        assert!(error(&file).contains("--data-dir"));
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_refused() {
        // procfs refuses writes to root too, where mode bits would not.
        assert!(matches!(DataDir::open(Path::new("/proc/hob-test")), Err(DataDirError::Create { .. })));
        if rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::NotWritable { .. })));
        assert!(files(dir.path()).is_empty());
    }

    #[test]
    fn a_newer_format_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        for newer in ["5", "5\n", "18446744073709551615"] {
            fs::write(dir.path().join("format"), newer).unwrap();
            let before = fs::metadata(dir.path()).unwrap().modified().unwrap();
            assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Newer { .. })));
            assert!(error(dir.path()).contains("upgrade hob"));
            assert_eq!(files(dir.path()), ["format"]);
            assert_eq!(fs::read(dir.path().join("format")).unwrap(), newer.as_bytes());
            assert_eq!(fs::metadata(dir.path()).unwrap().modified().unwrap(), before);
        }
    }

    #[test]
    fn damaged_formats_and_foreign_directories_are_refused_untouched() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "0", "-1", "two", "2 2", "\u{0}", &"9".repeat(1000)] {
            fs::write(dir.path().join("format"), bad).unwrap();
            assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::FormatUnreadable { .. })), "{bad}");
        }
        fs::write(dir.path().join("format"), [0xff, 0xfe]).unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::FormatUnreadable { .. })));
        fs::rename(dir.path().join("format"), dir.path().join("thesis.tex")).unwrap();
        assert!(error(dir.path()).contains("'thesis.tex'"));
        assert_eq!(files(dir.path()), ["thesis.tex"]);
    }

    #[test]
    fn a_locked_directory_names_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let text = error(dir.path());
        assert!(text.contains(&format!("process {}", std::process::id())), "{text}");
        assert!(text.contains(&dir.path().display().to_string()), "{text}");
        fs::write(dir.path().join("lock"), "no number").unwrap();
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::Locked { pid: None, .. })));
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_new_directory_is_private_and_has_the_newest_format() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let opened = DataDir::open(&path).unwrap();
        assert_eq!(opened.format(), FORMAT);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        drop(opened);
        assert_eq!(DataDir::open(&path).unwrap().format(), FORMAT);
        assert_eq!(files(&path), ["format", "lock"]);
    }

    #[test]
    fn a_first_start_that_was_killed_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lock"), "123").unwrap();
        fs::write(dir.path().join("format.new"), "").unwrap();
        assert_eq!(DataDir::open(dir.path()).unwrap().format(), FORMAT);
    }

    #[test]
    fn an_older_format_is_reported_until_it_is_marked_migrated() {
        let dir = tempfile::tempdir().unwrap();
        for older in 1..FORMAT {
            fs::write(dir.path().join("format"), format!("{older}\n")).unwrap();
            assert_eq!(DataDir::open(dir.path()).unwrap().format(), older);
            let mut opened = DataDir::open(dir.path()).unwrap();
            assert_eq!(opened.format(), older, "looking does not migrate");
            opened.mark_current().unwrap();
            opened.mark_current().unwrap();
            drop(opened);
            assert_eq!(DataDir::open(dir.path()).unwrap().format(), FORMAT);
        }
    }

    #[test]
    fn the_key_is_made_once_private_and_can_come_from_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let opened = DataDir::open(dir.path()).unwrap();
        let key = opened.mac_key(None).unwrap();
        assert_eq!(opened.mac_key(None).unwrap().bytes(), key.bytes());
        assert_eq!(fs::metadata(dir.path().join(KEY_FILE)).unwrap().mode() & 0o777, 0o600);
        assert!(!format!("{key:?}").contains(&format!("{}", key.bytes()[0])) || format!("{key:?}") == "MacKey(..)");

        let other = dir.path().join("other");
        let put = |bytes: &[u8], mode: u32| {
            fs::write(&other, bytes).unwrap();
            fs::set_permissions(&other, fs::Permissions::from_mode(mode)).unwrap();
            opened.mac_key(Some(&other))
        };
        assert_eq!(put(&[7; 32], 0o400).unwrap().bytes(), &[7; 32]);
        assert!(put(&[7; 32], 0o440).is_ok());
        for mode in [0o604, 0o602, 0o620, 0o666] {
            assert!(put(&[7; 32], mode).unwrap_err().to_string().contains("chmod 600"), "{mode:o}");
        }
        for len in [0, 31, 33, 1000] {
            let text = put(&vec![7; len], 0o600).unwrap_err().to_string();
            assert!(text.contains(&format!("{len} bytes, expected exactly 32")), "{text}");
        }
        assert!(opened.mac_key(Some(&dir.path().join("none"))).is_err());
        assert!(opened.mac_key(Some(dir.path())).is_err());
    }
}
