//! The calls by which a guest first reaches for files and sockets. Without a grant they refuse as their interface does, and the function's
//! log says what would allow it.
//!
//! Owns these few calls, put over those of WASI's library, which does the rest. Knows nothing about who grants what. Invariant: with a
//! grant each does what the library's own does.

use wasmtime::component::{Linker as ComponentLinker, Resource};
use wasmtime::{Caller, Linker as ModuleLinker, Result, StoreContextMut};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p1::wasi_snapshot_preview1 as preview1;
use wasmtime_wasi::p2::bindings::filesystem::preopens as preopens2;
use wasmtime_wasi::p2::bindings::sockets::ip_name_lookup as lookup2;
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode as Error2, IpAddressFamily as Family2, Network};
use wasmtime_wasi::p2::bindings::sockets::{tcp_create_socket as tcp2, udp_create_socket as udp2};
use wasmtime_wasi::p2::{TcpSocket as TcpSocket2, UdpSocket as UdpSocket2};
use wasmtime_wasi::p3::bindings::filesystem::preopens as preopens3;
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode as Error3, HostTcpSocket, HostUdpSocket, IpAddressFamily as Family3,
};
use wasmtime_wasi::sockets::{TcpSocket as TcpSocket3, UdpSocket as UdpSocket3, WasiSocketsView as _};
use wiggle::GuestMemory;

use super::Host;
use super::bounded::{NAMETOOLONG, is_path};
use super::explain::{Denied, How};
use super::wasi::memory;

/// `EACCES` of the first preview: what a call answers that reaches for what nothing grants.
pub(super) const ACCES: i32 = 2;
/// `EBADF` of the first preview: what a descriptor is that is no folder of the host's giving.
const BADF: i32 = 8;

/// Puts calls of preview 1 over the library's: each answers [`ACCES`] where `$denied` says so, [`NAMETOOLONG`] if a path is longer than one may be, and
/// is the library's own otherwise.
macro_rules! refusing {
    ($linker:ident, $denied:ident, $($name:ident($($argument:ident: $kind:ty),*) $([$($len:ident),*] $await:ident)?;)*) => {$(
        $linker.func_wrap_async(
            "wasi_snapshot_preview1",
            stringify!($name),
            |mut caller: Caller<'_, Host>, ($($argument,)*): ($($kind,)*)| Box::new(async move {
                if caller.data_mut().$denied() {
                    return Ok(ACCES);
                }
                $(if $(!is_path($len))||* {
                    return Ok(NAMETOOLONG);
                })?
                let (bytes, host) = memory(&mut caller)?;
                let memory = &mut GuestMemory::Unshared(bytes);
                let answer = preview1::$name(host.preview1(), memory, $($argument),*);
                $(let answer = answer.$await;)?
                answer
            }),
        )?;
    )*};
}

/// Puts them over those of preview 1. `linker` must allow shadowing.
///
/// # Errors
/// Only if the library names its calls differently: a bug of ours.
pub(super) fn link_preview1(linker: &mut ModuleLinker<Host>) -> Result<()> {
    linker.func_wrap("wasi_snapshot_preview1", "fd_prestat_get", prestat)?;
    refusing!(linker, is_denied_folders,
        path_create_directory(fd: i32, path: i32, len: i32) [len] await;
        path_filestat_get(fd: i32, flags: i32, path: i32, len: i32, buf: i32) [len] await;
        path_filestat_set_times(fd: i32, flags: i32, path: i32, len: i32, atim: i64, mtim: i64, fst_flags: i32) [len] await;
        path_link(old_fd: i32, flags: i32, old: i32, old_len: i32, new_fd: i32, new: i32, new_len: i32) [old_len, new_len] await;
        path_readlink(fd: i32, path: i32, len: i32, buf: i32, buf_len: i32, read: i32) [len] await;
        path_remove_directory(fd: i32, path: i32, len: i32) [len] await;
        path_rename(old_fd: i32, old: i32, old_len: i32, new_fd: i32, new: i32, new_len: i32) [old_len, new_len] await;
        path_symlink(old: i32, old_len: i32, fd: i32, new: i32, new_len: i32) [old_len, new_len] await;
        path_unlink_file(fd: i32, path: i32, len: i32) [len] await;
    );
    refusing!(linker, is_denied_descriptors,
        sock_accept(fd: i32, flags: i32, accepted: i32);
        sock_recv(fd: i32, data: i32, count: i32, flags: i32, read: i32, read_flags: i32);
        sock_send(fd: i32, data: i32, count: i32, flags: i32, sent: i32);
        sock_shutdown(fd: i32, how: i32);
    );
    Ok(())
}

/// Asked by a program's library for one descriptor after the other, before it opens its first file.
fn prestat(mut caller: Caller<'_, Host>, fd: i32, buf: i32) -> Result<i32> {
    if caller.data_mut().is_denied_folders() {
        return Ok(BADF);
    }
    let (bytes, host) = memory(&mut caller)?;
    preview1::fd_prestat_get(host.preview1(), &mut GuestMemory::Unshared(bytes), fd, buf)
}

/// Puts them over those of 0.2, and of 0.3 if `concurrent`. `linker` must allow shadowing.
///
/// # Errors
/// Only if wasmtime names its interfaces differently: a bug of ours, found by the tests of refusals.
pub(super) fn link_components(linker: &mut ComponentLinker<Host>, concurrent: bool) -> Result<()> {
    linker.instance("wasi:filesystem/preopens@0.2.12")?.func_wrap("get-directories", folders2)?;
    linker.instance("wasi:sockets/tcp-create-socket@0.2.12")?.func_wrap("create-tcp-socket", create_tcp2)?;
    linker
        .instance("wasi:sockets/udp-create-socket@0.2.12")?
        .func_wrap_async("create-udp-socket", |store, (family,)| Box::new(create_udp2(store, family)))?;
    linker.instance("wasi:sockets/ip-name-lookup@0.2.12")?.func_wrap("resolve-addresses", names2)?;
    if concurrent {
        linker.instance("wasi:filesystem/preopens@0.3.0")?.func_wrap("get-directories", folders3)?;
        let mut types = linker.instance("wasi:sockets/types@0.3.0")?;
        types.func_wrap("[static]tcp-socket.create", create_tcp3)?;
        types.func_wrap_async("[static]udp-socket.create", |store, (family,)| Box::new(create_udp3(store, family)))?;
    }
    Ok(())
}

type Listed = Result<(Vec<(Resource<Descriptor>, String)>,)>;
type Created<T, E> = Result<(std::result::Result<Resource<T>, E>,)>;

/// What the library says: an error of the interface is the guest's to handle, any other ends it.
fn answer<T, E, Raised>(
    result: std::result::Result<Resource<T>, Raised>,
    downcast: impl FnOnce(Raised) -> Result<E>,
) -> Created<T, E> {
    match result {
        Ok(made) => Ok((Ok(made),)),
        Err(error) => Ok((Err(downcast(error)?),)),
    }
}

fn folders2(mut store: StoreContextMut<'_, Host>, (): ()) -> Listed {
    let host = store.data_mut();
    host.is_denied_folders();
    Ok((preopens2::Host::get_directories(&mut host.filesystem())?,))
}

fn folders3(mut store: StoreContextMut<'_, Host>, (): ()) -> Listed {
    let host = store.data_mut();
    host.is_denied_folders();
    Ok((preopens3::Host::get_directories(&mut host.filesystem())?,))
}

fn create_tcp2(mut store: StoreContextMut<'_, Host>, (family,): (Family2,)) -> Created<TcpSocket2, Error2> {
    let host = store.data_mut();
    if host.is_denied_sockets() {
        return Ok((Err(Error2::AccessDenied),));
    }
    answer(tcp2::Host::create_tcp_socket(&mut host.sockets(), family), |error| error.downcast())
}

async fn create_udp2(mut store: StoreContextMut<'_, Host>, family: Family2) -> Created<UdpSocket2, Error2> {
    let host = store.data_mut();
    if host.is_denied_sockets() {
        return Ok((Err(Error2::AccessDenied),));
    }
    answer(udp2::Host::create_udp_socket(&mut host.sockets(), family).await, |error| error.downcast())
}

fn names2(
    mut store: StoreContextMut<'_, Host>,
    (network, name): (Resource<Network>, String),
) -> Created<lookup2::ResolveAddressStream, Error2> {
    let host = store.data_mut();
    if host.is_denied_sockets() {
        return Ok((Err(Error2::AccessDenied),));
    }
    answer(lookup2::Host::resolve_addresses(&mut host.sockets(), network, name), |error| error.downcast())
}

fn create_tcp3(mut store: StoreContextMut<'_, Host>, (family,): (Family3,)) -> Created<TcpSocket3, Error3> {
    let host = store.data_mut();
    if host.is_denied_sockets() {
        return Ok((Err(Error3::AccessDenied),));
    }
    answer(HostTcpSocket::create(&mut host.sockets(), family), |error| error.downcast())
}

async fn create_udp3(mut store: StoreContextMut<'_, Host>, family: Family3) -> Created<UdpSocket3, Error3> {
    let host = store.data_mut();
    if host.is_denied_sockets() {
        return Ok((Err(Error3::AccessDenied),));
    }
    answer(HostUdpSocket::create(&mut host.sockets(), family).await, |error| error.downcast())
}

impl Host {
    /// Whether there is no folder at all. The log says then what would give the guest one.
    pub(super) fn is_denied_folders(&mut self) -> bool {
        self.has_asked = true;
        self.has_looked_at_folders = true;
        let has_none = self.has_no_folders();
        if has_none {
            let line = r#"files = [{ host = "site", guest = "/site" }]"#.into();
            self.explain_to_invocations(&Denied { what: "folders".into(), how: How::Add, line });
        }
        has_none
    }

    /// Whether the guest may have no socket. Its log says then what it may have.
    fn is_denied_sockets(&mut self) -> bool {
        self.has_asked = true;
        let is_denied = !self.environment.grants.net && !self.environment.egress.has_sockets();
        if is_denied {
            self.explain_to_invocations(&Denied {
                what: "sockets, which no function of this tenant has; over HTTP one reaches what it is granted".into(),
                how: How::Add,
                line: r#"http = ["https://api.example.com"]"#.into(),
            });
        }
        is_denied
    }

    /// Whether no descriptor of a program of preview 1 can be a socket. It has no call to open one, so it takes one for it that it was started
    /// with; where it was given folders, the library says which descriptor is none.
    fn is_denied_descriptors(&mut self) -> bool {
        self.is_denied_sockets() && self.has_no_folders()
    }
}
