//! Files that are written beside their name, and get it when they are whole.
//!
//! ```text
//! DIR/.hob-PID.part     until then
//! ```
//!
//! Owns what becomes of a part: a failure removes it, and so do SIGINT and SIGTERM. Knows nothing about what is written. Invariant: under a
//! file's own name is what was there or what was written whole. What `kill -9` stops leaves its part.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::interrupt;

/// The parts of a command, of which there is one at a time.
pub(super) struct Parts(Arc<Mutex<Option<PathBuf>>>);

/// A file that has not its name yet. Dropped, it goes.
pub(super) struct Part<'a> {
    parts: &'a Parts,
    path: PathBuf,
    file: File,
}

/// No code panics while it holds the lock.
fn lock(now: &Mutex<Option<PathBuf>>) -> MutexGuard<'_, Option<PathBuf>> {
    now.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Parts {
    /// From now on SIGINT and SIGTERM remove what is being written, and end the process.
    ///
    /// # Errors
    /// When they cannot be waited for.
    pub(super) fn new() -> io::Result<Self> {
        let now = Arc::new(Mutex::new(None));
        let at_signal = Arc::clone(&now);
        interrupt::on_signal(move || {
            let mut now = lock(&at_signal);
            now.take().iter().for_each(|path| remove(path));
            // Held until the process has ended, so that no other is begun meanwhile.
            std::mem::forget(now);
        })?;
        Ok(Self(now))
    }

    /// Begins a file in the folder of `to`.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn begin(&self, to: &Path) -> io::Result<Part<'_>> {
        let path = to.with_file_name(format!(".hob-{}.part", std::process::id()));
        let mut now = lock(&self.0);
        let file = File::create_new(&path)?;
        *now = Some(path.clone());
        Ok(Part { parts: self, path, file })
    }
}

impl Part<'_> {
    /// What is written.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Gives it its name, in place of a file that has it.
    ///
    /// # Errors
    /// What the system says; it is gone then.
    pub(super) fn replace(self, to: &Path) -> io::Result<()> {
        self.end(|part| fs::rename(part, to))
    }

    /// Gives it its name if nothing has it.
    ///
    /// # Errors
    /// What the system says; it is gone then.
    pub(super) fn place(self, to: &Path) -> io::Result<()> {
        self.end(|part| match renameat_with(CWD, part, CWD, to, RenameFlags::NOREPLACE) {
            // File systems that do not know the flag know links.
            Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(part, to).and_then(|()| fs::remove_file(part)),
            done => Ok(done?),
        })
    }

    fn end(self, name: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
        let mut now = lock(&self.parts.0);
        name(&self.path)?;
        *now = None;
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        lock(&self.parts.0).take().iter().for_each(|path| remove(path));
    }
}

fn remove(path: &Path) {
    // It is ours and of no use; one that cannot be removed stays.
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_when_it_is_whole_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (parts, to) = (Parts(Arc::default()), dir.path().join("to"));
        let begin = |text: &str| {
            let part = parts.begin(&to).unwrap();
            part.file().write_all(text.as_bytes()).unwrap();
            part
        };
        drop(begin("dropped"));
        assert_eq!(names(dir.path()), [""; 0]);
        begin("first").place(&to).unwrap();
        assert_eq!(begin("second").place(&to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!((names(dir.path()), fs::read(&to).unwrap()), (vec!["to".into()], b"first".to_vec()));
        begin("third").replace(&to).unwrap();
        assert!(begin("fourth").replace(&dir.path().join("none/to")).is_err());
        assert_eq!((names(dir.path()), fs::read(&to).unwrap()), (vec!["to".into()], b"third".to_vec()));
    }
}
