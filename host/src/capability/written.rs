//! The calls of WASI by which a core module writes bytes: to its log, to the response of a command, to a file.
//!
//! A handler may write what lies in an object that it has mapped, or what it made of that, and the disk may have failed under it. So its
//! bytes are copied first, and go on only if all that it read was true, as those of every call of `hob1` do.
//!
//! Owns this copy, put over the library's calls. Knows nothing about what is written to. Invariant: of a guest that has mapped nothing
//! nothing is copied, and the call is the library's own.

use wasmtime::{Caller, Linker, Result};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{fd_pwrite, fd_write};
use wiggle::GuestMemory;

use super::Host;
use super::bounded::{INVAL, VECTORS_MAX, is_within};
use super::wasi::memory;

/// `EFAULT` of the first preview: an address outside of the memory.
const FAULT: i32 = 21;
/// Most bytes that one call writes for a guest that has mapped something. It is told how many, as by a pipe that is full.
const PIECE_MAX: usize = 1 << 20;
/// In the copy: the address and the length of the bytes, how many were written, and then the bytes.
const HEAD: u32 = 12;
const WRITTEN: usize = 8;

/// One call. `offset`: where in the file, of those that say so.
#[derive(Clone, Copy)]
struct Write {
    fd: i32,
    vectors: i32,
    count: i32,
    offset: Option<i64>,
    written: i32,
}

/// Puts them over those of preview 1. `linker` must allow shadowing.
pub(super) fn link_preview1(linker: &mut Linker<Host>) -> Result<()> {
    let preview = "wasi_snapshot_preview1";
    linker.func_wrap_async(preview, "fd_write", |caller: Caller<'_, Host>, (fd, vectors, count, written)| {
        Box::new(write(caller, Write { fd, vectors, count, offset: None, written }))
    })?;
    linker.func_wrap_async(preview, "fd_pwrite", |caller: Caller<'_, Host>, (fd, vectors, count, offset, written)| {
        Box::new(write(caller, Write { fd, vectors, count, offset: Some(offset), written }))
    })?;
    Ok(())
}

impl Write {
    async fn run(self, host: &mut Host, memory: &mut [u8]) -> Result<i32> {
        let memory = &mut GuestMemory::Unshared(memory);
        match self.offset {
            None => fd_write(host.preview1(), memory, self.fd, self.vectors, self.count, self.written).await,
            Some(offset) => fd_pwrite(host.preview1(), memory, self.fd, self.vectors, self.count, offset, self.written).await,
        }
    }

    /// The bytes that are next: those of the first vector that has any, which is what the library writes in one call. `None` for addresses
    /// outside of the memory.
    fn piece(self, memory: &[u8]) -> Option<&[u8]> {
        let (vectors, count) = (self.vectors.cast_unsigned() as usize, self.count.cast_unsigned() as usize);
        let vectors = memory.get(vectors..vectors.checked_add(count.checked_mul(8)?)?)?;
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_le_bytes).ok();
        for vector in vectors.chunks_exact(8) {
            let (at, len) = (number(&vector[..4])? as usize, number(&vector[4..])? as usize);
            if len > 0 {
                return memory.get(at..at.checked_add(len)?).map(|bytes| &bytes[..len.min(PIECE_MAX)]);
            }
        }
        Some(&[])
    }
}

async fn write(mut caller: Caller<'_, Host>, call: Write) -> Result<i32> {
    if !is_within(call.count, VECTORS_MAX) {
        return Ok(INVAL);
    }
    let (bytes, host) = memory(&mut caller)?;
    if !host.mappings.is_any() {
        return call.run(host, bytes).await;
    }
    let written = call.written.cast_unsigned() as usize;
    let (Some(piece), Some(_)) = (call.piece(bytes), bytes.get(written..written.saturating_add(4))) else { return Ok(FAULT) };
    let len = u32::try_from(piece.len()).unwrap_or(u32::MAX);
    let mut copy = [HEAD.to_le_bytes(), len.to_le_bytes(), [0; 4]].concat();
    copy.extend_from_slice(piece);
    host.mappings.intact(&host.memory)?;
    let own = Write { vectors: 0, count: 1, written: i32::try_from(WRITTEN).unwrap_or_default(), ..call };
    let errno = own.run(host, &mut copy).await?;
    bytes[written..written + 4].copy_from_slice(&copy[WRITTEN..WRITTEN + 4]);
    Ok(errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(vectors: i32, count: i32, memory: &[u8]) -> Option<&[u8]> {
        Write { fd: 1, vectors, count, offset: None, written: 0 }.piece(memory)
    }

    #[test]
    fn the_first_vector_with_bytes_is_written_and_none_reaches_out_of_the_memory() {
        let vector = |at: u32, len: u32| [at.to_le_bytes(), len.to_le_bytes()].concat();
        let memory = [vector(9, 0), vector(24, 3), vector(0, 1), b"abcdef".to_vec()].concat();
        assert_eq!(
            (piece(0, 3, &memory), piece(0, 1, &memory), piece(16, 1, &memory)),
            (Some(&b"abc"[..]), Some(&b""[..]), Some(&memory[..1]))
        );
        assert_eq!((piece(0, 0, &memory), piece(30, 0, &memory)), (Some(&b""[..]), Some(&b""[..])));
        for (vectors, count) in [(0, 4), (24, 1), (31, 0), (-8, 1), (0, -1), (0, i32::MAX)] {
            assert_eq!(piece(vectors, count, &memory), None, "{vectors} {count}");
        }
        for (at, len) in [(0, 9), (8, 1), (9, 1), (u32::MAX, u32::MAX), (1, u32::MAX)] {
            assert_eq!(piece(0, 1, &vector(at, len)), None, "{at} {len}");
        }
        let long = [vector(8, 2 << 20), vec![7; 2 << 20]].concat();
        assert_eq!(piece(0, 1, &long).map(<[u8]>::len), Some(PIECE_MAX));
    }
}
