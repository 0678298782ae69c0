//! A file seen by redb that stays as it is: what redb writes goes to memory and hides what the file holds there.
//!
//! Owns the pages that were written. Knows nothing about what they hold. Invariant: the file is only ever read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use redb::StorageBackend;

const PAGE_SIZE: usize = 4096;
const PAGE: u64 = PAGE_SIZE as u64;

/// A file under which nothing is written: writes go to memory and hide what the file holds there.
#[derive(Debug)]
pub(crate) struct Overlay {
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
    /// Over `file`, of which the first `len` bytes are there.
    pub(crate) fn new(file: File, len: u64) -> Self {
        Self { file, state: Mutex::new(State { len, kept: len, pages: BTreeMap::new() }) }
    }

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
        let overlay = Overlay::new(base.reopen().unwrap(), 10_000);
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
