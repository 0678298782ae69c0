//! Verification: looks at a registry's whole file before it is used, without changing a byte of it.
//!
//! redb checks the hashes of its pages only when it is asked to or repairs; used unchecked, a damaged file makes it panic, and in
//! places twice at once, which ends the process. So each opening first runs redb's own check over an [`Overlay`], in which what
//! the check repairs stays in memory. What a kill left is repaired by the opening itself and passes.
//!
//! Owns the verdict. Knows nothing about what records mean. Invariant: the file is as it was before.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableError};

use super::error::{RegistryError, io_error, storage};
use super::{FUNCTIONS, PAGE_CACHE_BYTES, REVISIONS, contained};

const PAGE_SIZE: usize = 4096;
const PAGE: u64 = PAGE_SIZE as u64;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The file is what redb wrote.
    Whole,
    /// Every record is whole, but redb's account of free space is not: its own repair mends that.
    Mendable,
}

/// Checks the file at `path`. Cost: reads all of it; about 1.5 ms for 1,000 functions, and three times that if it must be mended.
///
/// # Errors
/// [`RegistryError::Damaged`] if a page is not what redb wrote, or a repair would lose a record.
pub(super) fn verify(path: &Path) -> Result<Verdict, RegistryError> {
    let doing = "check the registry";
    let file = File::open(path).map_err(io_error(doing))?;
    let len = file.metadata().map_err(io_error(doing))?.len();
    if len == 0 {
        return Err(RegistryError::Damaged { what: "its file is empty".into() });
    }
    let repaired = over(&file, len, |db| match db.check_integrity().map_err(storage(doing))? {
        true => Ok(None),
        false => fingerprint(db).map(Some),
    })?;
    let Some(repaired) = repaired else { return Ok(Verdict::Whole) };
    // Something was repaired: either only which pages are free, or the last commit was given up for the one before.
    match over(&file, len, |db| fingerprint(db)) {
        Ok(found) if found == repaired => Ok(Verdict::Mendable),
        _ => Err(RegistryError::Damaged { what: "it can be repaired only with loss".into() }),
    }
}

/// Opens the file, of `len` bytes, under a fresh overlay for the time of `op`. A panic becomes [`RegistryError::Damaged`].
fn over<T>(file: &File, len: u64, op: impl FnOnce(&mut Database) -> Result<T, RegistryError>) -> Result<T, RegistryError> {
    let doing = "check the registry";
    let file = file.try_clone().map_err(io_error(doing))?;
    let overlay = Overlay { file, state: Mutex::new(State { len, kept: len, pages: BTreeMap::new() }) };
    contained(|| {
        let db = Database::builder().set_cache_size(PAGE_CACHE_BYTES).create_with_backend(overlay).map_err(storage(doing))?;
        // Not dropped by a panic: closing what just panicked may panic again, and two at once end the process.
        let mut db = ManuallyDrop::new(db);
        let result = op(&mut db);
        drop(ManuallyDrop::into_inner(db));
        result
    })
}

/// Hash of every record and its key.
fn fingerprint(db: &Database) -> Result<blake3::Hash, RegistryError> {
    let doing = "read the registry";
    let txn = db.begin_read().map_err(storage(doing))?;
    let mut hasher = blake3::Hasher::new();
    let mut add = |tenant: &str, name: &str, number: u64, value: &[u8]| {
        for part in [tenant.as_bytes(), name.as_bytes(), &number.to_le_bytes(), value] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
    };
    match txn.open_table(FUNCTIONS) {
        // A first start that was killed made the file and no table yet.
        Err(TableError::TableDoesNotExist(_)) => return Ok(hasher.finalize()),
        table => {
            for entry in table.map_err(storage(doing))?.iter().map_err(storage(doing))? {
                let (key, value) = entry.map_err(storage(doing))?;
                add(key.value().0, key.value().1, 0, value.value());
            }
        }
    }
    for entry in txn.open_table(REVISIONS).map_err(storage(doing))?.iter().map_err(storage(doing))? {
        let (key, value) = entry.map_err(storage(doing))?;
        add(key.value().0, key.value().1, key.value().2, value.value());
    }
    Ok(hasher.finalize())
}

/// A file under which nothing is written: writes go to memory and hide what the file holds there.
#[derive(Debug)]
struct Overlay {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Bytes of the file that still show; what was cut off and grew again is zero.
    kept: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Overlay {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the file itself, zeros behind its visible end.
    fn base(&self, state: &State, offset: u64, out: &mut [u8]) -> io::Result<()> {
        out.fill(0);
        let visible = usize::try_from(state.kept.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        self.file.read_exact_at(&mut out[..visible], offset)
    }
}

/// Cuts `offset..offset + len` at page borders: page, offset within it, range within the buffer.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE).unwrap_or_default();
        let piece = (len - done).min(PAGE_SIZE - within);
        let range = done..done + piece;
        done += piece;
        (piece > 0).then_some((at / PAGE, within, range))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.lock();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > state.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.base(&state, offset, out)?;
        for (page, within, range) in pieces(offset, out.len()) {
            if let Some(bytes) = state.pages.get(&page) {
                let len = range.len();
                out[range].copy_from_slice(&bytes[within..within + len]);
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.lock();
        state.kept = state.kept.min(len);
        if len < state.len {
            state.pages.split_off(&len.div_ceil(PAGE));
            let tail = usize::try_from(len % PAGE).unwrap_or_default();
            if let Some(last) = state.pages.get_mut(&(len / PAGE)) {
                last[tail..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.lock();
        for (page, within, range) in pieces(offset, data.len()) {
            let mut bytes = match state.pages.remove(&page) {
                Some(bytes) => bytes,
                None => {
                    let mut bytes = vec![0; PAGE_SIZE];
                    self.base(&state, page * PAGE, &mut bytes)?;
                    bytes
                }
            };
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
            state.pages.insert(page, bytes);
        }
        state.len = state.len.max(offset + data.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn an_overlay_behaves_as_a_file_and_leaves_its_own_alone() {
        let mut base = tempfile::NamedTempFile::new().unwrap();
        let mut model = vec![7; 10_000];
        base.write_all(&model).unwrap();
        let original = model.clone();
        let state = State { len: 10_000, kept: 10_000, pages: BTreeMap::new() };
        let overlay = Overlay { file: base.reopen().unwrap(), state: Mutex::new(state) };
        for (step, (at, len)) in [(0, 1), (4095, 2), (9_999, 1), (10_000, 5_000), (100, 9_000)].into_iter().enumerate() {
            let data = vec![u8::try_from(step).unwrap() + 100; len];
            overlay.write(at as u64, &data).unwrap();
            model.resize(model.len().max(at + len), 0);
            model[at..at + len].copy_from_slice(&data);
            let cut = model.len() - 300;
            overlay.set_len(cut as u64).unwrap();
            overlay.set_len(cut as u64 + 600).unwrap();
            model.truncate(cut);
            model.resize(cut + 600, 0);
            let mut found = vec![0; model.len()];
            overlay.read(0, &mut found).unwrap();
            assert!(found == model, "step {step}");
            assert_eq!(overlay.len().unwrap(), model.len() as u64);
        }
        assert!(overlay.read(model.len() as u64, &mut [0]).is_err());
        assert!(std::fs::read(base.path()).unwrap() == original);
    }
}
