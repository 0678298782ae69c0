//! Calls of WASI's library whose cost a guest chooses: random bytes, lists of buffers and of what to wait for, open files.
//!
//! Owns a bound on each, put over the library's calls. Knows nothing about what is read or opened. Invariants: no call keeps its thread for longer
//! than a slice takes because of a number that a guest gave; and guests have no more descriptors of the process than their share.

use wasmtime::component::{Linker as ComponentLinker, Resource};
use wasmtime::{Caller, Linker as ModuleLinker, Result, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor as FileDescriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wasmtime_wasi::p2::bindings::filesystem::types as files2;
use wasmtime_wasi::p3::bindings::filesystem::types as files3;
use wiggle::GuestMemory;

use super::Host;
use super::descriptors::Descriptor;
use super::listing;
use super::wasi::{self, memory};

/// Most random bytes that one call of a component is given: they are made in the host's memory.
pub const RANDOM_BYTES_MAX: u64 = 8 << 20;
/// The same of a core module, into whose memory they are drawn: the library's own bound.
pub const RANDOM_CALL_BYTES_MAX: usize = 64 << 20;
/// So many random bytes are drawn before others have a turn: the kernel takes less than a millisecond for them.
const RANDOM_PIECE_BYTES: usize = 128 << 10;
/// Most buffers in one call of preview 1 that reads or writes, as `IOV_MAX` of Linux.
pub const VECTORS_MAX: i32 = 1024;
/// Most things that one call of preview 1 waits for.
pub const SUBSCRIPTIONS_MAX: i32 = 1024;
/// Most files and folders that one guest has open, those that it was given among them.
pub const OPEN_FILES_MAX: usize = 128;

/// Of the errors of preview 1: an address outside of the memory, an argument that is out of its range, too many files of the guest, and of the
/// node, and a path that is too long.
pub(super) const FAULT: i32 = 21;
pub(super) const INVAL: i32 = 28;
const MFILE: i32 = 33;
const NFILE: i32 = 41;
pub(super) const NAMETOOLONG: i32 = 37;

/// Why a guest may open no more files.
enum Full {
    Guest,
    Node,
}

/// Puts them over those of preview 1. `linker` must allow shadowing.
///
/// # Errors
/// Only if the library names its calls differently: a bug of ours.
pub(super) fn link_preview1(linker: &mut ModuleLinker<Host>) -> Result<()> {
    let preview = "wasi_snapshot_preview1";
    linker.func_wrap_async(preview, "random_get", |caller: Caller<'_, Host>, (buf, len)| Box::new(random(caller, buf, len)))?;
    linker.func_wrap_async(
        preview,
        "fd_read",
        |mut caller: Caller<'_, Host>, (fd, vectors, count, read): (i32, i32, i32, i32)| {
            Box::new(async move {
                if !is_within(count, VECTORS_MAX) {
                    return Ok(INVAL);
                }
                let (bytes, host) = memory(&mut caller)?;
                preview1::fd_read(host.preview1(), &mut GuestMemory::Unshared(bytes), fd, vectors, count, read).await
            })
        },
    )?;
    linker.func_wrap_async(
        preview,
        "fd_pread",
        |mut caller: Caller<'_, Host>, (fd, vectors, count, offset, read): (i32, i32, i32, i64, i32)| {
            Box::new(async move {
                if !is_within(count, VECTORS_MAX) {
                    return Ok(INVAL);
                }
                let (bytes, host) = memory(&mut caller)?;
                preview1::fd_pread(host.preview1(), &mut GuestMemory::Unshared(bytes), fd, vectors, count, offset, read).await
            })
        },
    )?;
    linker.func_wrap_async(
        preview,
        "poll_oneoff",
        |mut caller: Caller<'_, Host>, (wanted, events, count, out): (i32, i32, i32, i32)| {
            Box::new(async move {
                if !is_within(count, SUBSCRIPTIONS_MAX) {
                    return Ok(INVAL);
                }
                let (bytes, host) = memory(&mut caller)?;
                preview1::poll_oneoff(host.preview1(), &mut GuestMemory::Unshared(bytes), wanted, events, count, out).await
            })
        },
    )?;
    linker.func_wrap_async(preview, "path_open", |caller, arguments| Box::new(open1(caller, arguments)))?;
    Ok(())
}

/// Whether a number that a guest gave is no more than that; it has no sign.
pub(super) fn is_within(count: i32, max: i32) -> bool {
    (0..=max).contains(&count)
}

/// Whether a path of so many bytes is one: the library copies it before it looks at it.
pub(super) fn is_path(len: i32) -> bool {
    usize::try_from(len).is_ok_and(|len| len <= listing::PATH_BYTES_MAX)
}

/// Puts them over those of 0.2, and of 0.3 if `concurrent`. `linker` must allow shadowing.
///
/// # Errors
/// Only if wasmtime names its interfaces differently: a bug of ours.
pub(super) fn link_components(linker: &mut ComponentLinker<Host>, concurrent: bool) -> Result<()> {
    for version in ["0.2.12", "0.3.0"].into_iter().take(if concurrent { 2 } else { 1 }) {
        let mut instance = linker.instance(&format!("wasi:random/random@{version}"))?;
        instance.func_wrap_async("get-random-bytes", |store, (len,)| Box::new(random_bytes(store, len)))?;
        let mut instance = linker.instance(&format!("wasi:random/insecure@{version}"))?;
        instance.func_wrap_async("get-insecure-random-bytes", |store, (len,)| Box::new(random_bytes(store, len)))?;
    }
    linker
        .instance("wasi:filesystem/types@0.2.12")?
        .func_wrap_async("[method]descriptor.open-at", |store, arguments| Box::new(open2(store, arguments)))?;
    if concurrent {
        type Arguments = (Resource<FileDescriptor>, files3::PathFlags, String, files3::OpenFlags, files3::DescriptorFlags);
        linker.instance("wasi:filesystem/types@0.3.0")?.func_wrap_concurrent(
            "[method]descriptor.open-at",
            |store, (folder, path_flags, path, open, flags): Arguments| {
                Box::pin(async move {
                    if path.len() > listing::PATH_BYTES_MAX {
                        return Ok((Err(files3::ErrorCode::NameTooLong),));
                    }
                    if store.with(|mut store| store.get().admit_file()).is_err() {
                        return Ok((Err(files3::ErrorCode::Quota),));
                    }
                    let files = store.with_getter::<WasiFilesystem>(Host::filesystem);
                    let opened = <WasiFilesystem as files3::HostDescriptorWithStore<Host>>::open_at(
                        &files, folder, path_flags, path, open, flags,
                    );
                    match opened.await {
                        Ok(opened) => Ok((Ok(opened),)),
                        Err(error) => Ok((Err(error.downcast()?),)),
                    }
                })
            },
        )?;
    }
    Ok(())
}

async fn random(mut caller: Caller<'_, Host>, buf: i32, len: i32) -> Result<i32> {
    let (bytes, host) = memory(&mut caller)?;
    host.drawn += 1;
    let (buf, len) = (buf.cast_unsigned() as usize, len.cast_unsigned() as usize);
    if len > RANDOM_CALL_BYTES_MAX {
        wasmtime::bail!("{len} random bytes were asked for in one call, which gives at most {RANDOM_CALL_BYTES_MAX}");
    }
    let Some(bytes) = buf.checked_add(len).and_then(|end| bytes.get_mut(buf..end)) else { return Ok(FAULT) };
    fill(bytes).await;
    Ok(0)
}

async fn random_bytes(mut store: StoreContextMut<'_, Host>, len: u64) -> Result<(Vec<u8>,)> {
    store.data_mut().drawn += 1;
    let Some(len) = usize::try_from(len).ok().filter(|len| *len as u64 <= RANDOM_BYTES_MAX) else {
        wasmtime::bail!("{len} random bytes were asked for in one call, which gives at most {RANDOM_BYTES_MAX}");
    };
    let mut bytes = vec![0; len];
    fill(&mut bytes).await;
    Ok((bytes,))
}

/// Fills it with the kernel's random numbers, with turns for others between.
async fn fill(bytes: &mut [u8]) {
    for (number, piece) in bytes.chunks_mut(RANDOM_PIECE_BYTES).enumerate() {
        if number > 0 {
            tokio::task::yield_now().await;
        }
        wasi::fill(piece);
    }
}

/// Folder, flags, path and its length, flags, two rights, flags, and where the number goes.
type Open1 = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

async fn open1(mut caller: Caller<'_, Host>, arguments: Open1) -> Result<i32> {
    if caller.data_mut().is_denied_folders() {
        return Ok(super::reach::ACCES);
    }
    let (fd, dirflags, path, len, oflags, rights, inheriting, fdflags, opened) = arguments;
    if !is_path(len) {
        return Ok(NAMETOOLONG);
    }
    match caller.data_mut().admit_file() {
        Err(Full::Guest) => return Ok(MFILE),
        Err(Full::Node) => return Ok(NFILE),
        Ok(()) => {}
    }
    let (bytes, host) = memory(&mut caller)?;
    let bytes = &mut GuestMemory::Unshared(bytes);
    preview1::path_open(host.preview1(), bytes, fd, dirflags, path, len, oflags, rights, inheriting, fdflags, opened).await
}

type Open2 = (Resource<FileDescriptor>, files2::PathFlags, String, files2::OpenFlags, files2::DescriptorFlags);
type Opened2 = (std::result::Result<Resource<FileDescriptor>, files2::ErrorCode>,);

async fn open2(mut store: StoreContextMut<'_, Host>, (folder, path_flags, path, open, flags): Open2) -> Result<Opened2> {
    let host = store.data_mut();
    if host.admit_file().is_err() {
        return Ok((Err(files2::ErrorCode::Quota),));
    }
    match files2::HostDescriptor::open_at(&mut host.filesystem(), folder, path_flags, path, open, flags).await {
        Ok(opened) => Ok((Ok(opened),)),
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

/// Descriptors of the process for the files that a guest has open. Those of files that it closed are given back when it opens another, or
/// ends.
#[derive(Debug, Default)]
pub(super) struct OpenFiles(Vec<Descriptor>);

impl Host {
    /// Takes a descriptor for one more file.
    fn admit_file(&mut self) -> std::result::Result<(), Full> {
        let open = self.open_files();
        if open >= OPEN_FILES_MAX {
            return Err(Full::Guest);
        }
        let share = self.environment.data.descriptors();
        let OpenFiles(taken) = &mut self.open_files;
        taken.truncate(open);
        while taken.len() <= open {
            taken.push(share.take().ok_or(Full::Node)?);
        }
        Ok(())
    }
}
