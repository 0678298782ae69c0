//! The file of a put: it is written in pieces of a huge page, whatever the pieces that come.
//!
//! The kernel keeps a file in memory in folios as large as the writes that made them. From folios of 2 MiB, one page fault maps 2 MiB for a
//! function, and a thousand functions need no page tables of their own; from those of 64 KiB it is one for each 64 KiB. Figures:
//! docs/decisions/0015-mapping.md.
//!
//! Owns what has come and is not written. Invariant: at most [`GATHERING_MAX`] puts gather at once; the others write what comes as it
//! comes.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Puts of a node that gather at once, each of which has up to [`PIECE`] bytes of memory.
pub(in crate::data) const GATHERING_MAX: usize = 32;
/// A huge page.
const PIECE: usize = 2 << 20;

/// A file that is being written, from its beginning.
#[derive(Debug)]
pub(super) struct Pieces {
    file: File,
    /// Shorter than a piece.
    gathered: Vec<u8>,
    place: Option<OwnedSemaphorePermit>,
}

impl Pieces {
    /// `places` has [`GATHERING_MAX`].
    pub(super) fn new(file: File, places: &Arc<Semaphore>) -> Self {
        Self { file, gathered: Vec::new(), place: Arc::clone(places).try_acquire_owned().ok() }
    }

    /// Appends.
    ///
    /// # Errors
    /// What the system says, also of what came before.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if self.place.is_none() {
            return self.file.write_all(bytes);
        }
        while !bytes.is_empty() {
            let (now, later) = match self.gathered.is_empty() {
                true => bytes.split_at(bytes.len() - bytes.len() % PIECE),
                false => (&[][..], bytes),
            };
            self.file.write_all(now)?;
            let (more, rest) = later.split_at(later.len().min(PIECE - self.gathered.len()));
            self.gathered.extend_from_slice(more);
            if self.gathered.len() == PIECE {
                self.file.write_all(&self.gathered)?;
                self.gathered.clear();
            }
            bytes = rest;
        }
        Ok(())
    }

    /// The file, with all that came.
    ///
    /// # Errors
    /// As [`Pieces::write`].
    pub(super) fn end(mut self) -> io::Result<File> {
        self.file.write_all(&self.gathered)?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::io::{Read, Seek};

    use super::*;

    /// What was written to a file that came in pieces of these lengths.
    fn written(places: &Arc<Semaphore>, lens: &[usize]) -> (Vec<u8>, Vec<u8>) {
        let mut pieces = Pieces::new(tempfile::tempfile().unwrap(), places);
        let bytes: Vec<u8> = (0..251).cycle().take(lens.iter().sum()).collect();
        let mut at = 0;
        for len in lens {
            pieces.write(&bytes[at..at + len]).unwrap();
            at += len;
            assert!(pieces.gathered.len() < PIECE);
        }
        let mut file = pieces.end().unwrap();
        let mut found = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut found).unwrap();
        (bytes, found)
    }

    #[test]
    fn whatever_the_pieces_the_file_is_the_same() {
        for places in [0, 1] {
            let places = Arc::new(Semaphore::new(places));
            for lens in [
                &[0][..],
                &[1, 2, 3],
                &[PIECE],
                &[PIECE - 1, 1, 1],
                &[PIECE - 1, 2, PIECE],
                &[3 * PIECE + 7, 5],
                &[7, 3 * PIECE + 7, 0, 5],
                &[700_000; 7],
            ] {
                let (put, found) = written(&places, lens);
                assert!(put == found, "{lens:?}");
            }
        }
    }

    #[test]
    fn only_so_many_gather() {
        let places = Arc::new(Semaphore::new(1));
        let mut first = Pieces::new(tempfile::tempfile().unwrap(), &places);
        let mut second = Pieces::new(tempfile::tempfile().unwrap(), &places);
        first.write(b"abc").unwrap();
        second.write(b"abc").unwrap();
        assert_eq!((first.gathered.len(), second.gathered.len()), (3, 0));
        drop(first.end().unwrap());
        assert!(Pieces::new(tempfile::tempfile().unwrap(), &places).place.is_some());
    }
}
