//! The trailer of a sealed file: what proves that native code, or a snapshot, is what this node built, for that tenant.
//!
//! ```text
//! offset          bytes
//! 0               N   payload: native code (an ELF file; at the beginning, because the engine maps this very file), or a
//!                     compressed module. The image is a part of it: memory of a guest, mapped at each start; it may have holes
//! N               M   meta: bytes of whoever sealed the file
//! N + M           8   magic: "HOBCODE\n" for native code, "HOBSNAP\n" for a snapshot
//! N + M + 8       4   version of this trailer, little-endian: 3
//! N + M + 12      4   M, little-endian, at most 64 KiB
//! N + M + 16      8   N, little-endian, at least 1
//! N + M + 24      8   where the image begins, little-endian
//! N + M + 32      8   where it ends, at most N
//! N + M + 40     32   MAC of the image
//! N + M + 72     32   MAC of the rest
//! N + M + 104         end of the file
//! ```
//!
//! Both MACs are keyed BLAKE3. The rest is: the payload before and after the image, the meta, the tenant's name, the file's key, the 72
//! bytes before this MAC, and the length of the tenant's name. The image is: each of its blocks of 64 KiB that is not all zeros, then
//! their positions, their number, and where it begins and ends. So a hole is never read, and the MAC does not depend on whether a file
//! system keeps zeros as a hole or as bytes. What has no fixed length comes first, because BLAKE3 is a third faster where the blocks
//! of its input begin at multiples of their length; read from the end, each length is known before what it is of. Files of version 2 are
//! read too. They have the same fields, but under both MACs what labels the blocks stands in front of them.
//!
//! The images of snapshots have up to gigabytes, so they are checked apart ([`Sealed::check_image`]), and `checked.rs` remembers
//! which were.
//!
//! Owns the layout and the MACs. Knows nothing about where files lie. Invariant: [`open`] and [`Sealed::check_image`] together accept
//! exactly the files that [`seal`] made under the same key for the same tenant and digest; any changed, moved, missing or added
//! byte is found.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use zeroize::Zeroizing;

use super::Contents;
use crate::id::{Digest, TenantId};

/// Bytes that follow payload and meta.
pub(super) const TRAILER_LEN: u64 = TRAILER_SIZE as u64;
const TRAILER_SIZE: usize = 104;
const VERSION: u32 = 3;
/// The oldest that is read.
const VERSION_MIN: u32 = 2;
const MAC_SIZE: usize = 32;
/// Most bytes of the meta.
pub(super) const META_LEN_MAX: usize = 64 << 10;
/// Bytes of the image that are hashed, or passed over, together; also the size of a read.
const BLOCK_LEN: usize = 64 << 10;
static ZEROS: [u8; BLOCK_LEN] = [0; BLOCK_LEN];

/// Secret key of the artifacts' MAC.
#[derive(Clone)]
pub struct MacKey([u8; 32]);

impl MacKey {
    /// A key of 32 random bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Another key, for what `context` says and nothing else; see `blake3::derive_key`.
    #[must_use]
    pub fn derive(&self, context: &'static str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, &self.0))
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(..)")
    }
}

/// Which file it must be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Label<'a> {
    pub(super) magic: &'static [u8; 8],
    pub(super) tenant: &'a TenantId,
    pub(super) key: Digest,
}

/// Magic of native code.
pub(super) const CODE: &[u8; 8] = b"HOBCODE\n";
/// Magic of a snapshot.
pub(super) const SNAPSHOT: &[u8; 8] = b"HOBSNAP\n";

/// What a trailer says.
#[derive(Debug)]
pub(super) struct Sealed {
    version: u32,
    pub(super) payload_len: u64,
    pub(super) image: Range<u64>,
    pub(super) image_mac: blake3::Hash,
    pub(super) meta: Vec<u8>,
}

/// Why a file is not what this node sealed.
#[derive(Debug)]
pub(super) enum SealError {
    /// The file is damaged, or not what its name says.
    Corrupt(&'static str),
    /// It could not be read.
    Io(io::Error),
}

impl From<io::Error> for SealError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Corrupt("it became shorter while it was read"),
            _ => Self::Io(error),
        }
    }
}

/// Appends meta and trailer to a file that holds only the payload, which `contents.image` must be a part of. Does not sync. Reads
/// the payload once, about 0.3 ms per MiB, and no holes of the image.
pub(super) fn seal(file: &mut File, key: &MacKey, label: Label<'_>, contents: Contents) -> io::Result<Sealed> {
    seal_as(VERSION, file, key, label, contents)
}

fn seal_as(version: u32, file: &mut File, key: &MacKey, label: Label<'_>, contents: Contents) -> io::Result<Sealed> {
    let Contents { image, meta } = contents;
    let payload_len = file.metadata()?.len();
    assert!(image.start <= image.end && image.end <= payload_len, "the caller looked at the image's range");
    assert!(meta.len() <= META_LEN_MAX, "the caller looked at the meta's length");
    let image_mac = image_mac(version, file, key, &image)?;
    let sealed = Sealed { version, payload_len, image, image_mac, meta };
    let head = sealed.head(label.magic);
    let mac = sealed.mac(file, key, label, &head)?;
    file.seek(SeekFrom::Start(payload_len))?;
    file.write_all(&[&sealed.meta[..], &head, mac.as_bytes()].concat())?;
    file.seek(SeekFrom::Start(0))?;
    Ok(sealed)
}

/// Reads a trailer and checks everything but the image. Leaves the file's position at 0.
pub(super) fn open(file: &mut File, key: &MacKey, label: Label<'_>) -> Result<Sealed, SealError> {
    let len = file.metadata()?.len();
    let trailer_at = len.checked_sub(TRAILER_LEN).ok_or(SealError::Corrupt("it is too short"))?;
    let mut trailer = [0; TRAILER_SIZE];
    file.read_exact_at(&mut trailer, trailer_at)?;
    let (head, stated_mac) = trailer.split_at(TRAILER_SIZE - MAC_SIZE);
    let (fields, image_mac) = head.split_at(head.len() - MAC_SIZE);
    let short = |at: usize| u32::from_le_bytes(fields[at..at + 4].try_into().expect("4 bytes"));
    let long = |at: usize| u64::from_le_bytes(fields[at..at + 8].try_into().expect("8 bytes"));
    if fields[..8] != label.magic[..] {
        return Err(SealError::Corrupt("its end is not that of such a file"));
    }
    let version = short(8);
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(SealError::Corrupt("its trailer has another version"));
    }
    let (meta_len, payload_len, image) = (short(12) as usize, long(16), long(24)..long(32));
    if meta_len > META_LEN_MAX || payload_len == 0 || payload_len.checked_add(meta_len as u64) != Some(trailer_at) {
        return Err(SealError::Corrupt("its length is not the one it had when it was written"));
    }
    if image.start > image.end || image.end > payload_len {
        return Err(SealError::Corrupt("its image is not a part of it"));
    }
    let mut meta = vec![0; meta_len];
    file.read_exact_at(&mut meta, payload_len)?;
    let image_mac = blake3::Hash::from_slice(image_mac).expect("32 bytes");
    let sealed = Sealed { version, payload_len, image, image_mac, meta };
    // `blake3::Hash` compares in constant time.
    if blake3::Hash::from_slice(stated_mac).ok() != Some(sealed.mac(file, key, label, head)?) {
        return Err(SealError::Corrupt("its MAC does not match its content, tenant and name"));
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(sealed)
}

impl Sealed {
    /// Bytes of the whole file.
    pub(super) fn file_len(&self) -> u64 {
        self.payload_len + self.meta.len() as u64 + TRAILER_LEN
    }

    /// Bytes of the image.
    pub(super) fn image_len(&self) -> u64 {
        self.image.end - self.image.start
    }

    /// Checks the image. Leaves the file's position at 0. Reads all of it but holes, about 0.3 ms per MiB.
    pub(super) fn check_image(&self, file: &mut File, key: &MacKey) -> Result<(), SealError> {
        if image_mac(self.version, file, key, &self.image)? != self.image_mac {
            return Err(SealError::Corrupt("the MAC of its image does not match"));
        }
        file.seek(SeekFrom::Start(0))?;
        Ok(())
    }

    /// The trailer without its own MAC.
    fn head(&self, magic: &[u8; 8]) -> Vec<u8> {
        let mut head = Vec::with_capacity(TRAILER_SIZE);
        head.extend_from_slice(magic);
        head.extend_from_slice(&self.version.to_le_bytes());
        head.extend_from_slice(&u32::try_from(self.meta.len()).expect("at most 64 KiB").to_le_bytes());
        for field in [self.payload_len, self.image.start, self.image.end] {
            head.extend_from_slice(&field.to_le_bytes());
        }
        head.extend_from_slice(self.image_mac.as_bytes());
        assert_eq!(head.len() + MAC_SIZE, TRAILER_SIZE, "the layout above");
        head
    }

    /// MAC over everything but the image, whose own MAC is in `head`. Every length is fixed or, from the end, stands before what it is of.
    fn mac(&self, file: &File, key: &MacKey, label: Label<'_>, head: &[u8]) -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        let tenant = label.tenant.as_str();
        if self.version == 2 {
            hasher.update(b"hob sealed file").update(&(tenant.len() as u64).to_le_bytes()).update(tenant.as_bytes());
            hasher.update(label.key.bytes()).update(head).update(&self.meta);
        }
        for part in [0..self.image.start, self.image.end..self.payload_len] {
            blocks(file, part, &mut |_at, block| {
                hasher.update(block);
            })?;
        }
        if self.version == 2 {
            return Ok(hasher.finalize());
        }
        hasher.update(&self.meta).update(tenant.as_bytes()).update(label.key.bytes()).update(head);
        hasher.update(&(tenant.len() as u64).to_le_bytes()).update(b"hob sealed file");
        Ok(hasher.finalize())
    }
}

fn image_mac(version: u32, file: &File, key: &MacKey, image: &Range<u64>) -> io::Result<blake3::Hash> {
    let mut hasher = blake3::Hasher::new_keyed(&key.0);
    if version == 2 {
        hasher.update(b"hob image").update(&image.start.to_le_bytes()).update(&image.end.to_le_bytes());
    }
    let (mut at, mut positions) = (image.start, Vec::new());
    while let Some(data) = next_data(file, at)?.filter(|data| *data < image.end) {
        // The block that holds the data: blocks are counted from where the image begins, wherever holes lie.
        at += (data - at) / BLOCK_LEN as u64 * BLOCK_LEN as u64;
        let end = image.end.min(at + BLOCK_LEN as u64);
        blocks(file, at..end, &mut |at, block| {
            if block != &ZEROS[..block.len()] {
                if version == 2 {
                    hasher.update(&at.to_le_bytes());
                }
                hasher.update(block);
                positions.push(at);
            }
        })?;
        at = end;
    }
    if version == 2 {
        return Ok(hasher.finalize());
    }
    for number in positions.iter().copied().chain([positions.len() as u64, image.start, image.end]) {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(b"hob image");
    Ok(hasher.finalize())
}

thread_local! {
    /// What is read before it is hashed. One for each thread: filling a new one with zeros took a tenth of a check.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BLOCK_LEN].into());
}

/// Calls `visit` with each block of a part of a file; it must not ask for blocks itself. Reads instead of mapping: a file that shrinks
/// while it is mapped ends the process with `SIGBUS`.
fn blocks(file: &File, part: Range<u64>, visit: &mut dyn FnMut(u64, &[u8])) -> io::Result<()> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut at = part.start;
        while at < part.end {
            let len = usize::try_from(part.end - at).unwrap_or(BLOCK_LEN).min(BLOCK_LEN);
            file.read_exact_at(&mut buffer[..len], at)?;
            visit(at, &buffer[..len]);
            at += len as u64;
        }
        Ok(())
    })
}

/// The first position from `at` on that is not in a hole; `None` when nothing but a hole follows. Moves the file's position.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        // A file system without holes: everything is data.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(at)),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests;
