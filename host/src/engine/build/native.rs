//! Outputs of a build: native code with its holes, and the module that a snapshot became.
//!
//! Owns how both are written. Knows nothing about what is in them but where the memory image lies. Invariant: what is read back
//! is what was given; pages that hold nothing take no room on disk.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use object::{Object, ObjectSection};

/// Where wasmtime puts the initial memory of a guest (`wasmtime_environ::obj::ELF_WASM_DATA`).
const IMAGE_SECTION: &str = ".rodata.wasm";
/// Unit of what is left out, in bytes: the file system's.
pub(super) const PAGE: usize = 4096;
/// Effort of compression: the lowest is about as fast as a disk.
const COMPRESSION: i32 = 1;
/// What a compressed file begins with (RFC 8878, 3.1.1).
const FRAME_MAGIC: [u8; 4] = 0xFD2F_B528u32.to_le_bytes();

/// Writes native code to a file that is empty, and returns where in it the memory image lies.
pub(super) fn write(file: &File, native: &[u8]) -> io::Result<Range<u64>> {
    let mut run = 0..0;
    for (index, page) in native.chunks(PAGE).enumerate() {
        let at = index * PAGE;
        if page.iter().all(|byte| *byte == 0) {
            continue;
        }
        if run.end != at {
            file.write_all_at(&native[run.clone()], run.start as u64)?;
            run = at..at;
        }
        run.end = at + page.len();
    }
    file.write_all_at(&native[run.clone()], run.start as u64)?;
    file.set_len(native.len() as u64)?;
    image(native)
}

fn image(native: &[u8]) -> io::Result<Range<u64>> {
    let file = object::File::parse(native).map_err(io::Error::other)?;
    let range = file.section_by_name(IMAGE_SECTION).and_then(|section| section.file_range());
    Ok(range.map_or(0..0, |(start, len)| start..start + len))
}

/// Writes a module, compressed, to a file that is empty.
pub(super) fn compress(file: &File, wasm: &[u8]) -> io::Result<()> {
    let mut encoder = zstd::Encoder::new(file, COMPRESSION)?;
    encoder.write_all(wasm)?;
    encoder.finish()?;
    Ok(())
}

/// The inverse of [`compress`]; bytes that are not compressed are returned as they are.
pub(super) fn decompress(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if !bytes.starts_with(&FRAME_MAGIC) {
        return Ok(bytes);
    }
    // What comes out is as large as the memory that was kept, for which the process has room, or ends at its walls. Behind the frame
    // lies what the node sealed the file with.
    let mut wasm = Vec::new();
    zstd::Decoder::with_buffer(&bytes[..])?.single_frame().read_to_end(&mut wasm)?;
    Ok(wasm)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn holes_take_no_room_and_read_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let engine = wasmtime::Engine::default();
        let text = "(module (memory 64) (data (i32.const 0) \"a\") (data (i32.const 4000000) \"b\"))";
        let mut config = wasmtime::Config::new();
        config.memory_guaranteed_dense_image_size(1 << 30);
        let dense = wasmtime::Engine::new(&config).unwrap();
        for (engine, name) in [(engine, "small"), (dense, "dense")] {
            let native = wasmtime::Module::new(&engine, wat::parse_str(text).unwrap()).unwrap().serialize().unwrap();
            let path = dir.path().join(name);
            let image = write(&File::create_new(&path).unwrap(), &native).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), native);
            assert!(image.end <= native.len() as u64 && image.start < image.end, "{image:?}");
            assert!(std::fs::metadata(&path).unwrap().blocks() * 512 < 1 << 20);
        }
    }

    #[test]
    fn compression_round_trips() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        compress(&File::create_new(&path).unwrap(), &[7; 100_000]).unwrap();
        let compressed = std::fs::read(&path).unwrap();
        assert!(compressed.len() < 1000);
        assert_eq!(decompress(compressed.clone()).unwrap(), [7; 100_000]);
        assert_eq!(decompress([&compressed[..], b"a trailer"].concat()).unwrap(), [7; 100_000]);
        assert_eq!(decompress(b"\0asm".to_vec()).unwrap(), b"\0asm");
        assert!(decompress(compressed[..10].to_vec()).is_err());
    }
}
