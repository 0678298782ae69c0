//! Listings of folders for programs of preview 1: `fd_readdir`.
//!
//! Owns the call, put over that of WASI's library, which reads a folder whole and asks for each of its files whenever the guest wants the next few
//! names, and keeps as much meanwhile as the folder has. Knows nothing about who may see what. Invariants: a folder is read once for a listing
//! that goes on where it was, by a [job](super::blocking) that ends; and the one listing that is kept is [held](super::held).

use std::fs::File;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::sync::Arc;

use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use wasmtime::{Caller, Linker, Result};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{fd_filestat_get, fd_readdir};
use wiggle::GuestMemory;

use super::Host;
use super::bounded::FAULT;
use super::held::Aside;
use super::listing::{Entry, read};
use super::wasi::memory;

/// Of the errors of preview 1: no permission, a name that is no text, an error of the disk, too many files of the node, nothing there.
const ACCES: i32 = 2;
const ILSEQ: i32 = 25;
const IO: i32 = 29;
const NFILE: i32 = 41;
const NOENT: i32 = 44;

/// Of the kinds of preview 1.
const FOLDER: u8 = 3;
/// Bytes of a `filestat`, where its number and its kind are in it, and bytes of a `dirent`.
const STAT_BYTES: usize = 64;
const STAT_INODE: std::ops::Range<usize> = 8..16;
const STAT_KIND: usize = 16;
const DIRENT_BYTES: usize = 24;

/// What a guest reads at present.
#[derive(Debug)]
pub(super) struct Reading {
    /// Of the folder, as the guest sees it.
    inode: u64,
    entries: Vec<Entry>,
    /// Where they are, for the numbers of files.
    device: u64,
    _held: Aside,
}

/// Puts it over that of preview 1. `linker` must allow shadowing.
///
/// # Errors
/// Only if the library names its calls differently: a bug of ours.
pub(super) fn link_preview1(linker: &mut Linker<Host>) -> Result<()> {
    linker.func_wrap_async("wasi_snapshot_preview1", "fd_readdir", |caller, arguments| Box::new(list(caller, arguments)))?;
    Ok(())
}

/// Descriptor, buffer and its length, where to go on, and where the number of bytes goes.
type List = (i32, i32, i32, i64, i32);

async fn list(mut caller: Caller<'_, Host>, (fd, buf, len, cookie, used): List) -> Result<i32> {
    let (bytes, host) = memory(&mut caller)?;
    let mut stat = [0; STAT_BYTES];
    let failed = fd_filestat_get(host.preview1(), &mut GuestMemory::Unshared(&mut stat), fd, 0).await?;
    if failed != 0 || stat[STAT_KIND] != FOLDER {
        // It says what is wrong with the descriptor.
        return fd_readdir(host.preview1(), &mut GuestMemory::Unshared(bytes), fd, buf, len, cookie, used).await;
    }
    let inode = u64::from_le_bytes(stat[STAT_INODE].try_into()?);
    let goes_on = cookie != 0 && host.reading.as_ref().is_some_and(|reading| reading.inode == inode);
    if !goes_on {
        host.reading = None;
        let folders = folders(host.preview1());
        let (entries, bytes, device) = match host.environment.data.jobs().run(move || find(&folders, inode)).await? {
            Ok(found) => found,
            Err(error) => return Ok(errno(&error)),
        };
        host.hold(bytes)?;
        host.reading = Some(Box::new(Reading { inode, entries, device, _held: host.aside(bytes) }));
    }
    let Some(reading) = &host.reading else { return Ok(IO) };
    let size = usize::try_from(len.cast_unsigned())?;
    let Some(piece) = reading.from(cookie.cast_unsigned(), size) else { return Ok(ILSEQ) };
    if piece.len() < size {
        host.reading = None;
    }
    let (buf, used) = (usize::try_from(buf.cast_unsigned())?, usize::try_from(used.cast_unsigned())?);
    let (bytes, _) = memory(&mut caller)?;
    let Some(place) = bytes.get_mut(buf..).and_then(|rest| rest.get_mut(..piece.len())) else { return Ok(FAULT) };
    place.copy_from_slice(&piece);
    let Some(place) = bytes.get_mut(used..).and_then(|rest| rest.get_mut(..4)) else { return Ok(FAULT) };
    place.copy_from_slice(&u32::try_from(piece.len())?.to_le_bytes());
    Ok(0)
}

impl Reading {
    /// The `dirent`s and names from the place `cookie` on, as many bytes as fit: the last one may be cut, and is asked for again then. `None`: one
    /// has a name that is no text.
    fn from(&self, cookie: u64, size: usize) -> Option<Vec<u8>> {
        let this = |name: &'static str| (self.inode, FOLDER, name.as_bytes());
        let entries =
            self.entries.iter().map(|entry| (number(self.device, entry.inode), kind(entry.kind), entry.name.as_slice()));
        let from = usize::try_from(cookie).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        for (next, (inode, kind, name)) in (1_u64..).zip([this("."), this("..")].into_iter().chain(entries)).skip(from) {
            std::str::from_utf8(name).ok()?;
            let mut dirent = [0; DIRENT_BYTES];
            dirent[..8].copy_from_slice(&next.to_le_bytes());
            dirent[8..16].copy_from_slice(&inode.to_le_bytes());
            dirent[16..20].copy_from_slice(&u32::try_from(name.len()).ok()?.to_le_bytes());
            dirent[20] = kind;
            bytes.extend_from_slice(&dirent);
            bytes.extend_from_slice(name);
            if bytes.len() >= size {
                break;
            }
        }
        bytes.truncate(size);
        Some(bytes)
    }
}

/// The folders that a program has open: the library tells nobody which of them has which number.
fn folders(preview1: &mut WasiP1Ctx) -> Vec<Arc<File>> {
    let folder = |entry: &mut (dyn std::any::Any + Send)| match entry.downcast_ref::<Descriptor>() {
        Some(Descriptor::Dir(folder)) => Some(folder.dir.clone()),
        Some(Descriptor::File(_)) | None => None,
    };
    preview1.ctx().table.iter_mut().filter_map(folder).collect()
}

/// Reads the one of them that is this one; how many bytes that takes, and where it is.
fn find(folders: &[Arc<File>], inode: u64) -> io::Result<(Vec<Entry>, usize, u64)> {
    for folder in folders {
        let stat = fstat(folder)?;
        if number(stat.st_dev, stat.st_ino) == inode {
            let (entries, bytes) = read(folder)?;
            return Ok((entries, bytes, stat.st_dev));
        }
    }
    Err(io::Error::other("a folder has another number than the library says"))
}

/// The number of a file as the library shows it to guests: a hash of where it is.
fn number(device: u64, inode: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (device, inode).hash(&mut hasher);
    hasher.finish()
}

fn kind(kind: FileType) -> u8 {
    match kind {
        FileType::BlockDevice => 1,
        FileType::CharacterDevice => 2,
        FileType::Directory => FOLDER,
        FileType::RegularFile => 4,
        FileType::Symlink => 7,
        FileType::Fifo | FileType::Socket | FileType::Unknown => 0,
    }
}

fn errno(error: &io::Error) -> i32 {
    match Errno::from_io_error(error) {
        Some(Errno::ACCESS) => ACCES,
        Some(Errno::MFILE | Errno::NFILE) => NFILE,
        Some(Errno::NOENT) => NOENT,
        _ => {
            tracing::warn!(%error, "a folder that a function was granted cannot be listed");
            IO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::held::Asides;
    use super::*;

    #[test]
    fn a_listing_goes_on_where_it_was_and_cuts_its_last_entry() {
        let entry = |name: &[u8], kind| Entry { name: name.to_vec(), kind, inode: 7 };
        let held = Asides::default().begin(0);
        let entries = vec![entry(b"ab", FileType::Symlink), entry(b"c", FileType::Fifo), entry(b"\xff", FileType::RegularFile)];
        let mut reading = Reading { inode: 5, entries, device: 1, _held: held };
        assert_eq!(reading.from(0, 1000), None, "a name that is no text");
        reading.entries.pop();
        let all = reading.from(0, 1000).unwrap();
        let lens = [DIRENT_BYTES + 1, DIRENT_BYTES + 2, DIRENT_BYTES + 2, DIRENT_BYTES + 1];
        assert_eq!(all.len(), lens.iter().sum::<usize>());
        let mut at = 0;
        for (cookie, (len, (inode, kind, name))) in
            lens.iter().zip([(5, 3, "."), (5, 3, ".."), (number(1, 7), 7, "ab"), (number(1, 7), 0, "c")]).enumerate()
        {
            let one = &all[at..at + len];
            assert_eq!(reading.from(cookie as u64, *len).unwrap(), one);
            assert_eq!(reading.from(cookie as u64, 9).unwrap(), one[..9]);
            assert_eq!(
                (&one[..8], &one[8..16]),
                ((cookie as u64 + 1).to_le_bytes().as_slice(), u64::to_le_bytes(inode).as_slice())
            );
            assert_eq!((usize::from(one[16]), one[20], &one[24..]), (name.len(), kind, name.as_bytes()));
            at += len;
        }
        for past in [4, u64::MAX] {
            assert_eq!(reading.from(past, 9).unwrap(), [0; 0]);
        }
        assert_eq!(reading.from(0, 0).unwrap(), [0; 0]);
    }
}
