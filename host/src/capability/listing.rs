//! Listings of folders, and reading files as streams, for components.
//!
//! Owns the calls that begin them, put over those of WASI's library: that one keeps a listing of 0.2 whole and of a size that nobody knows, a
//! listing of 0.3 keeps a thread of the host until the guest has read it, and a pending call of 0.3 keeps a path of any length. Knows nothing about
//! who may see what. Invariants: a listing is read at once, by a job that ends, and all that is kept is [held](super::held).

use std::fs::File;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::{io, vec};

use bytes::Bytes;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use tokio::sync::oneshot;
use wasmtime::component::{
    Access, Destination, FutureConsumer, FutureReader, Linker, Resource, ResourceType, Source, StreamProducer, StreamReader,
    StreamResult,
};
use wasmtime::{Result, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings::filesystem::types as files2;
use wasmtime_wasi::p2::{DynInputStream, InputStream, Pollable, ReaddirIterator, StreamError};
use wasmtime_wasi::p3::bindings::filesystem::types as files3;

use super::Host;
use super::held::{Aside, FILE_STREAM_BYTES, HELD_BYTES_MAX};

/// Longest path that a component of 0.3 gives to a call, in bytes: `PATH_MAX` of Linux.
pub(super) const PATH_BYTES_MAX: usize = 4096;
/// What an entry takes beside its name.
const ENTRY_BYTES: usize = 96;

/// What is in a folder.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: FileType,
    pub(super) inode: u64,
}

/// A listing of 0.2 that the guest reads.
#[derive(Debug)]
pub(super) struct Listing {
    entries: vec::IntoIter<Entry>,
    /// What it takes, in bytes.
    pub(super) bytes: usize,
}

/// Reads a folder, and how many bytes that takes. Of one that takes more than a guest may hold the rest is left.
pub(super) fn read(folder: &File) -> io::Result<(Vec<Entry>, usize)> {
    let (mut entries, mut bytes) = (Vec::new(), 0);
    // The library's own descriptor is for finding things, not for reading.
    let reader = openat(folder, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::new(reader)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let kind = match entry.file_type() {
            // It may be gone by now.
            FileType::Unknown => statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode)),
            kind => kind,
        };
        bytes += name.to_bytes().len() + ENTRY_BYTES;
        entries.push(Entry { name: name.to_bytes().to_vec(), kind, inode: entry.ino() });
        if bytes > HELD_BYTES_MAX {
            break;
        }
    }
    Ok((entries, bytes))
}

type Of<'a> = StoreContextMut<'a, Host>;
type Listed2 = (std::result::Result<Resource<ReaddirIterator>, files2::ErrorCode>,);
type Next2 = (std::result::Result<Option<files2::DirectoryEntry>, files2::ErrorCode>,);
type Stream2 = (std::result::Result<Resource<DynInputStream>, files2::ErrorCode>,);

/// Puts them over those of the library, of 0.2, and of 0.3 if `concurrent`. `linker` must allow shadowing.
///
/// # Errors
/// Only if the library names its calls differently: a bug of ours.
pub(super) fn link(linker: &mut Linker<Host>, concurrent: bool) -> Result<()> {
    let mut instance = linker.instance("wasi:filesystem/types@0.2.12")?;
    instance.func_wrap_async("[method]descriptor.read-directory", |store, (folder,)| Box::new(list2(store, folder)))?;
    instance.func_wrap("[method]directory-entry-stream.read-directory-entry", next2)?;
    // The guest's handle is of the library's kind; what is behind it is ours.
    instance.resource("directory-entry-stream", ResourceType::host::<ReaddirIterator>(), |mut store, handle| {
        store.data_mut().table.delete(Resource::<Listing>::new_own(handle))?;
        Ok(())
    })?;
    type Read = (Resource<Descriptor>, u64);
    instance.func_wrap("[method]descriptor.read-via-stream", |mut store: Of<'_>, (file, offset): Read| -> Result<Stream2> {
        let host = store.data_mut();
        host.hold(FILE_STREAM_BYTES)?;
        match files2::HostDescriptor::read_via_stream(&mut host.filesystem(), file, offset) {
            Ok(stream) => {
                let (stream, held) = (host.table.delete(stream)?, host.aside(FILE_STREAM_BYTES));
                let stream: DynInputStream = Box::new(FileStream { stream, _held: held });
                Ok((Ok(host.table.push(stream)?),))
            }
            Err(error) => Ok((Err(error.downcast()?),)),
        }
    })?;
    if concurrent { link3(linker) } else { Ok(()) }
}

/// The library's stream of a file, counted until it is dropped.
struct FileStream {
    stream: DynInputStream,
    _held: Aside,
}

#[wasmtime_wasi::async_trait]
impl Pollable for FileStream {
    async fn ready(&mut self) {
        self.stream.ready().await;
    }
}

#[wasmtime_wasi::async_trait]
impl InputStream for FileStream {
    fn read(&mut self, size: usize) -> std::result::Result<Bytes, StreamError> {
        self.stream.read(size)
    }

    async fn blocking_read(&mut self, size: usize) -> std::result::Result<Bytes, StreamError> {
        self.stream.blocking_read(size).await
    }

    async fn cancel(&mut self) {
        self.stream.cancel().await;
    }
}

async fn list2(mut store: Of<'_>, folder: Resource<Descriptor>) -> Result<Listed2> {
    let host = store.data_mut();
    let Descriptor::Dir(folder) = host.table.get(&folder)? else { return Ok((Err(files2::ErrorCode::NotDirectory),)) };
    let folder = folder.dir.clone();
    match host.environment.data.jobs().run(move || read(&folder)).await? {
        Ok((entries, bytes)) => {
            host.hold(bytes)?;
            let listing = host.table.push(Listing { entries: entries.into_iter(), bytes })?;
            Ok((Ok(Resource::new_own(listing.rep())),))
        }
        Err(error) => Ok((Err(error.into()),)),
    }
}

fn next2(mut store: Of<'_>, (listing,): (Resource<ReaddirIterator>,)) -> Result<Next2> {
    let listing = store.data_mut().table.get_mut(&Resource::<Listing>::new_borrow(listing.rep()))?;
    let Some(Entry { name, kind, .. }) = listing.entries.next() else { return Ok((Ok(None),)) };
    let Ok(name) = String::from_utf8(name) else { return Ok((Err(files2::ErrorCode::IllegalByteSequence),)) };
    let type_ = match kind {
        FileType::Directory => files2::DescriptorType::Directory,
        FileType::RegularFile => files2::DescriptorType::RegularFile,
        FileType::Symlink => files2::DescriptorType::SymbolicLink,
        FileType::BlockDevice => files2::DescriptorType::BlockDevice,
        FileType::CharacterDevice => files2::DescriptorType::CharacterDevice,
        FileType::Fifo => files2::DescriptorType::Fifo,
        FileType::Socket => files2::DescriptorType::Socket,
        FileType::Unknown => files2::DescriptorType::Unknown,
    };
    Ok((Ok(Some(files2::DirectoryEntry { type_, name })),))
}

/// Calls of 0.3 with paths: each refuses one that is too long before it waits for anything, and is the library's own otherwise.
macro_rules! short {
    ($instance:ident, $($name:literal: $method:ident($($argument:ident: $kind:ty),*) of $($path:ident),*;)*) => {$(
        $instance.func_wrap_concurrent(
            concat!("[method]descriptor.", $name),
            |store, (descriptor, $($argument,)*): (Resource<Descriptor>, $($kind,)*)| Box::pin(async move {
                if $($path.len() > PATH_BYTES_MAX)||* {
                    return Ok((Err(files3::ErrorCode::NameTooLong),));
                }
                let files = store.with_getter::<WasiFilesystem>(Host::filesystem);
                match <WasiFilesystem as files3::HostDescriptorWithStore<Host>>::$method(&files, descriptor, $($argument),*).await {
                    Ok(answer) => Ok((Ok(answer),)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            }),
        )?;
    )*};
}

type Folder = Resource<Descriptor>;
type Ended = std::result::Result<(), files3::ErrorCode>;

fn link3(linker: &mut Linker<Host>) -> Result<()> {
    let mut instance = linker.instance("wasi:filesystem/types@0.3.0")?;
    short!(instance,
        "create-directory-at": create_directory_at(path: String) of path;
        "stat-at": stat_at(flags: files3::PathFlags, path: String) of path;
        "set-times-at": set_times_at(
            flags: files3::PathFlags, path: String, accessed: files3::NewTimestamp, modified: files3::NewTimestamp
        ) of path;
        "link-at": link_at(flags: files3::PathFlags, path: String, folder: Folder, new: String) of path, new;
        "readlink-at": readlink_at(path: String) of path;
        "remove-directory-at": remove_directory_at(path: String) of path;
        "rename-at": rename_at(path: String, folder: Folder, new: String) of path, new;
        "symlink-at": symlink_at(path: String, new: String) of path, new;
        "unlink-file-at": unlink_file_at(path: String) of path;
        "metadata-hash-at": metadata_hash_at(flags: files3::PathFlags, path: String) of path;
    );
    instance.func_wrap_async("[method]descriptor.read-directory", |store, (folder,)| Box::new(list3(store, folder)))?;
    instance.func_wrap("[method]descriptor.read-via-stream", read3)
}

/// The rest of a listing of 0.3.
struct Names {
    entries: vec::IntoIter<Entry>,
    ended: Option<oneshot::Sender<Ended>>,
    _held: Aside,
}

impl Names {
    fn end(&mut self, how: Ended) {
        if let Some(ended) = self.ended.take() {
            // The guest may have dropped the other half.
            let _ = ended.send(how);
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.end(Ok(()));
    }
}

impl<D> StreamProducer<D> for Names {
    type Item = files3::DirectoryEntry;
    type Buffer = Option<files3::DirectoryEntry>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        _: bool,
    ) -> Poll<Result<StreamResult>> {
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let Some(Entry { name, kind, .. }) = self.entries.next() else {
            self.end(Ok(()));
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        let Ok(name) = String::from_utf8(name) else {
            self.end(Err(files3::ErrorCode::IllegalByteSequence));
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        let type_ = match kind {
            FileType::Directory => files3::DescriptorType::Directory,
            FileType::RegularFile => files3::DescriptorType::RegularFile,
            FileType::Symlink => files3::DescriptorType::SymbolicLink,
            FileType::BlockDevice => files3::DescriptorType::BlockDevice,
            FileType::CharacterDevice => files3::DescriptorType::CharacterDevice,
            FileType::Fifo => files3::DescriptorType::Fifo,
            FileType::Socket => files3::DescriptorType::Socket,
            FileType::Unknown => files3::DescriptorType::Other(None),
        };
        destination.set_buffer(Some(files3::DirectoryEntry { type_, name }));
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

type Listed3 = ((StreamReader<files3::DirectoryEntry>, FutureReader<Ended>),);

async fn list3(mut store: Of<'_>, folder: Folder) -> Result<Listed3> {
    let host = store.data_mut();
    let read = match host.table.get(&folder)? {
        Descriptor::Dir(folder) => {
            let folder = folder.dir.clone();
            host.environment.data.jobs().run(move || read(&folder)).await?.map_err(files3::ErrorCode::from)
        }
        Descriptor::File(_) => Err(files3::ErrorCode::NotDirectory),
    };
    let (ended, end) = oneshot::channel();
    let stream = match read {
        Ok((entries, bytes)) => {
            host.hold(bytes)?;
            let held = host.aside(bytes);
            StreamReader::new(&mut store, Names { entries: entries.into_iter(), ended: Some(ended), _held: held })?
        }
        Err(code) => {
            let _ = ended.send(Err(code));
            StreamReader::new(&mut store, std::iter::empty())?
        }
    };
    Ok(((stream, FutureReader::new(&mut store, end)?),))
}

/// Hands on how a file's stream ended, and lets go of what it held.
struct End {
    ended: Option<oneshot::Sender<Ended>>,
    _held: Aside,
}

impl FutureConsumer<Host> for End {
    type Item = Ended;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut store: Of<'_>,
        mut source: Source<'_, Ended>,
        _: bool,
    ) -> Poll<Result<()>> {
        let mut how = None;
        source.read(&mut store, &mut how)?;
        if let (Some(ended), Some(how)) = (self.ended.take(), how) {
            let _ = ended.send(how);
        }
        Poll::Ready(Ok(()))
    }
}

type Read3 = ((StreamReader<u8>, FutureReader<Ended>),);

fn read3(mut store: Of<'_>, (file, offset): (Folder, u64)) -> Result<Read3> {
    let host = store.data_mut();
    host.hold(FILE_STREAM_BYTES)?;
    let held = host.aside(FILE_STREAM_BYTES);
    let files = Access::<Host, WasiFilesystem>::new(wasmtime::AsContextMut::as_context_mut(&mut store), Host::filesystem);
    let (stream, end) = <WasiFilesystem as files3::HostDescriptorWithStore<Host>>::read_via_stream(files, file, offset)?;
    let (ended, read) = oneshot::channel();
    end.pipe(&mut store, End { ended: Some(ended), _held: held })?;
    Ok(((stream, FutureReader::new(&mut store, read)?),))
}
