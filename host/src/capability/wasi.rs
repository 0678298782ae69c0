//! WASI: preview 1 for core modules, 0.2 and 0.3 for components.
//!
//! Owns when WASI's state is made (at the guest's first call, because most handlers never make one) and what is in it.
//! Without a grant there are no folders and no sockets, and a bucket that is a folder can only be read: each call answers with the interface's own refusal.
//! Of the folders that a guest asks for and of the sockets its log says what would allow them.
//! Invariant: all monotonic clocks count from one epoch, so that a clock that a snapshot remembers is never ahead of a later one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand_core::TryRng;
use rustix::time::{ClockId, clock_gettime};
use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{AsContextMut as _, Caller, Extern, Linker as ModuleLinker, Result, StoreContextMut};
use wasmtime_wasi::cli::WasiCliView as _;
use wasmtime_wasi::filesystem::Descriptor;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{
    WasiSnapshotPreview1 as _, environ_get, environ_sizes_get, fd_fdstat_get, fd_prestat_dir_name,
};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::p2::bindings::cli::environment;
use wasmtime_wasi::p2::bindings::random::{insecure, random};
use wasmtime_wasi::random::{WasiRandomCtx, WasiRandomView as _};
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wiggle::GuestMemory;

use super::data::Mount;
use super::egress::EgressAccess;
use super::stdio::Stdio;
use super::{Environment, Host, bounded, listing, reach, readdir, written};
use crate::grants::ClockResolution;
use crate::telemetry::logs::LogSink;

/// Bytes of a `fdstat`, by which preview 1 describes a descriptor.
const DESCRIBED_BYTES: i32 = 24;
/// Bytes of a folder's name that are looked at; a longer one is none.
const NAME_BYTES_MAX: i32 = 4096;

/// Links `wasi_snapshot_preview1`. What it was called before 2020, `wasi_unstable`, is not linked: nothing builds for it any more, and it is a second
/// door to the same calls, for which every bound would have to be written twice.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link_preview1(linker: &mut ModuleLinker<Host>) -> Result<()> {
    p1::add_to_linker_async(linker, Host::preview1)?;
    // wasmtime-wasi 48 turns codes from 126 up into an error without a code; programs have always exited with up to 255.
    linker.allow_shadowing(true);
    let exit = |code: u32| -> Result<()> { Err(I32Exit(code.cast_signed()).into()) };
    linker.func_wrap("wasi_snapshot_preview1", "proc_exit", exit)?;
    reach::link_preview1(linker)?;
    bounded::link_preview1(linker)?;
    written::link_preview1(linker)?;
    readdir::link_preview1(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// Links `wasi:cli`, `clocks`, `filesystem`, `io`, `random` and `sockets` of 0.2, and of 0.3 if `concurrent`.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link_components(linker: &mut ComponentLinker<Host>, concurrent: bool) -> Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    if concurrent {
        wasmtime_wasi::p3::add_to_linker(linker)?;
    }
    linker.allow_shadowing(true);
    let linked = reach::link_components(linker, concurrent)
        .and_then(|()| bounded::link_components(linker, concurrent))
        .and_then(|()| listing::link(linker, concurrent));
    linker.allow_shadowing(false);
    linked
}

impl Host {
    pub(super) fn preview1(&mut self) -> &mut WasiP1Ctx {
        self.preview1.get_or_insert_with(|| builder(&self.environment, &self.stdio, &self.mounts, &self.log).build_p1())
    }

    /// Whether a program of preview 1 has other descriptors than every instance begins with: one is open that it opened, or one of the
    /// first, which are the standard streams and the granted folders, is closed or another. Such a program cannot be snapshotted, for the same
    /// reason as one that [holds handles](Self::holds_handles). Not seen: standard output and standard error that changed places.
    ///
    /// # Errors
    /// Only those of WASI's library, none of which a guest is known to cause.
    pub async fn holds_descriptors(&mut self) -> Result<bool> {
        let Some(preview1) = &mut self.preview1 else { return Ok(false) };
        let mut first = builder(&self.environment, &self.stdio, &self.mounts, &self.log).build_p1();
        for fd in 0.. {
            let begins = descriptor(&mut first, fd).await?;
            if descriptor(preview1, fd).await? != begins {
                return Ok(true);
            }
            if begins.is_none() {
                break;
            }
        }
        // The number of an open one may be behind any number of free ones.
        Ok(files(preview1) != files(&mut first))
    }
}

/// The memory of a core module, and its host, as the library's calls begin: with the bound on what one of them copies.
pub(super) fn memory<'a>(caller: &'a mut Caller<'_, Host>) -> Result<(&'a mut [u8], &'a mut Host)> {
    let Some(Extern::Memory(memory)) = caller.get_export("memory") else {
        wasmtime::bail!("missing required memory export");
    };
    let fuel = caller.as_context_mut().hostcall_fuel();
    let (bytes, host) = memory.data_and_store_mut(caller);
    host.preview1().set_hostcall_fuel(fuel);
    Ok((bytes, host))
}

/// What a descriptor of preview 1 is, and the name of a folder that the host gave. `None`: it is not open.
async fn descriptor(preview1: &mut WasiP1Ctx, fd: i32) -> Result<Option<(i32, Vec<u8>)>> {
    let mut bytes = vec![0; (DESCRIBED_BYTES + NAME_BYTES_MAX).cast_unsigned() as usize];
    let memory = &mut GuestMemory::Unshared(&mut bytes);
    if fd_fdstat_get(preview1, memory, fd, 0).await? != 0 {
        return Ok(None);
    }
    let named = fd_prestat_dir_name(preview1, memory, fd, DESCRIBED_BYTES, NAME_BYTES_MAX)?;
    Ok(Some((named, bytes)))
}

/// How many files and folders a program of preview 1 has open.
fn files(preview1: &mut WasiP1Ctx) -> usize {
    preview1.ctx().table.iter_mut().filter(|entry| entry.is::<Descriptor>()).count()
}

impl Host {
    /// How many files and folders the guest has open, of whatever preview.
    pub(super) fn open_files(&mut self) -> usize {
        let of_components = self.table.iter_mut().filter(|entry| entry.is::<Descriptor>()).count();
        of_components + self.preview1.as_mut().map_or(0, files)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let builder = || builder(&self.environment, &self.stdio, &self.mounts, &self.log);
        let ctx: &mut WasiCtx = self.wasi.get_or_insert_with(|| builder().build());
        WasiCtxView { ctx, table: &mut self.table }
    }
}

fn builder(environment: &Environment, stdio: &Stdio, mounts: &[Mount], log: &LogSink) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    let clock = environment.clock;
    builder.args(&environment.args).envs(&environment.env).monotonic_clock(SharedEpoch(clock)).wall_clock(Wall(clock));
    builder.secure_random(Kernel);
    stdio.attach(&mut builder);
    if environment.grants.net {
        builder.inherit_network().allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
    } else if environment.egress.has_sockets() {
        let access = environment.egress.clone();
        builder.allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
        builder.socket_addr_check(move |addr, what| Box::pin(std::future::ready(may_use_socket(&access, addr, what))));
    }
    for dir in &environment.grants.dirs {
        // The folder was opened once, when the command line was checked. If it has gone since, the guest sees no folder.
        if let Err(error) = builder.preopened_dir(&dir.host, &dir.guest, FsPerms::ReadWrite) {
            tracing::warn!(host = %dir.host.display(), %error, "a granted folder cannot be opened");
        }
    }
    // Before the buckets: in the build, where a snapshot remembers their numbers, there are none of those.
    if let Some(missing) = environment.files.show(&mut builder) {
        environment.explained.say(missing, log);
        return builder;
    }
    for mount in mounts {
        // The bucket may have been deleted a moment ago: then there is no folder.
        if let Err(error) = builder.preopened_dir(&mount.host, &mount.guest, FsPerms::ReadOnly) {
            tracing::warn!(guest = mount.guest, %error, "a mounted bucket cannot be opened");
        }
    }
    builder
}

/// Whether a guest whose tenant may use sockets may use one so: to send to what the filter admits, and to receive what comes back. It
/// listens nowhere.
fn may_use_socket(access: &EgressAccess, addr: SocketAddr, what: SocketAddrUse) -> bool {
    match what {
        SocketAddrUse::TcpConnect | SocketAddrUse::UdpSend | SocketAddrUse::UdpReceive => access.admits(addr),
        // What the system does by itself before it connects.
        SocketAddrUse::TcpBind | SocketAddrUse::UdpBind => addr.ip().is_unspecified() && addr.port() == 0,
        SocketAddrUse::TcpListen | SocketAddrUse::TcpAccept => false,
    }
}

/// The monotonic clock of every guest: Unix time when this node began, and what has passed since. A guest that was restored from
/// a snapshot finds it later than it left it, in whatever process. (Unless the system's clock was set back before the node was started anew.)
struct SharedEpoch(ClockResolution);

/// What is added to the kernel's monotonic clock, in nanoseconds.
static EPOCH: OnceLock<u64> = OnceLock::new();

/// Where the monotonic clock of guests begins: Unix time less the kernel's monotonic clock, which all processes of a boot share, in
/// nanoseconds. Looked at once in a process; a process that builds has it from its node, whatever became of the system's clock since.
pub fn epoch_ns() -> u64 {
    *EPOCH.get_or_init(|| {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_1970.as_nanos()).unwrap_or_default().saturating_sub(monotonic_ns())
    })
}

/// Takes over where the clock begins. Without effect once it was looked at.
pub fn take_epoch(epoch_ns: u64) {
    let _ = EPOCH.set(epoch_ns);
}

fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// The least step of a clock, in nanoseconds.
fn step_ns(resolution: ClockResolution) -> u64 {
    match resolution {
        ClockResolution::Coarse => 1_000_000,
        ClockResolution::Fine => 1,
    }
}

impl HostMonotonicClock for SharedEpoch {
    fn resolution(&self) -> u64 {
        step_ns(self.0)
    }

    fn now(&self) -> u64 {
        let now = epoch_ns().saturating_add(monotonic_ns());
        now - now % step_ns(self.0)
    }
}

/// The clock on the wall.
struct Wall(ClockResolution);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_nanos(step_ns(self.0))
    }

    fn now(&self) -> Duration {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // A second is a whole number of steps.
        now - Duration::from_nanos(u64::from(now.subsec_nanos()) % step_ns(self.0))
    }
}

/// Fills it with random numbers of the kernel.
pub(super) fn fill(bytes: &mut [u8]) {
    if getrandom::fill(bytes).is_err() {
        // Not on a node, which drew from there when it started; and never fewer random numbers than without.
        let Ok(()) = wasmtime_wasi::random::thread_rng().try_fill_bytes(bytes);
    }
}

/// The kernel's random numbers, drawn when they are asked for: no memory of this process knows what comes next.
struct Kernel;

impl Kernel {
    fn draw<const N: usize>(&mut self) -> std::result::Result<[u8; N], Infallible> {
        let mut bytes = [0; N];
        self.try_fill_bytes(&mut bytes).map(|()| bytes)
    }
}

impl TryRng for Kernel {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        self.draw().map(u32::from_le_bytes)
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        self.draw().map(u64::from_le_bytes)
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Infallible> {
        fill(bytes);
        Ok(())
    }
}

/// Counts how often guests draw random numbers, and notes whether they read their variables. Only for the build, where either would be the same in
/// every instance. `linker` must allow shadowing.
///
/// # Errors
/// Only if a name is not WASI's: a bug of ours.
pub fn watch_preview1(linker: &mut ModuleLinker<Host>) -> Result<()> {
    let sizes = |mut caller: Caller<'_, Host>, count: i32, bytes: i32| {
        let (memory, host) = memory(&mut caller)?;
        host.has_read_variables = true;
        environ_sizes_get(host.preview1(), &mut GuestMemory::Unshared(memory), count, bytes)
    };
    // Most ask first how long they are; whoever has room enough needs not.
    let variables = |mut caller: Caller<'_, Host>, addresses: i32, bytes: i32| {
        let (memory, host) = memory(&mut caller)?;
        host.has_read_variables = true;
        environ_get(host.preview1(), &mut GuestMemory::Unshared(memory), addresses, bytes)
    };
    linker.func_wrap("wasi_snapshot_preview1", "environ_sizes_get", sizes)?;
    linker.func_wrap("wasi_snapshot_preview1", "environ_get", variables)?;
    Ok(())
}

/// As [`watch_preview1`]. The seed of `wasi:random/insecure-seed`, with which programs seed their hash tables, is counted too, and new
/// at each call.
///
/// # Errors
/// Only if wasmtime names its interfaces differently: a bug of ours, found by the test of this function.
pub fn watch_components(linker: &mut ComponentLinker<Host>, concurrent: bool) -> Result<()> {
    type Store<'a> = StoreContextMut<'a, Host>;
    let number = |mut store: Store<'_>, (): ()| Ok((random::Host::get_random_u64(drawing(&mut store))?,));
    let insecure_number = |mut store: Store<'_>, (): ()| Ok((insecure::Host::get_insecure_random_u64(drawing(&mut store))?,));
    let seed = |mut store: Store<'_>, (): ()| {
        let random = drawing(&mut store);
        Ok(((random::Host::get_random_u64(random)?, random::Host::get_random_u64(random)?),))
    };
    let variables = |mut store: Store<'_>, (): ()| {
        let host = store.data_mut();
        host.has_read_variables = true;
        Ok((environment::Host::get_environment(&mut host.cli())?,))
    };
    let versions = [("0.2.12", "insecure-seed"), ("0.3.0", "get-insecure-seed")];
    for (version, name) in versions.into_iter().take(if concurrent { 2 } else { 1 }) {
        let mut random = linker.instance(&format!("wasi:random/random@{version}"))?;
        random.func_wrap("get-random-u64", number)?;
        let mut insecure = linker.instance(&format!("wasi:random/insecure@{version}"))?;
        insecure.func_wrap("get-insecure-random-u64", insecure_number)?;
        linker.instance(&format!("wasi:random/insecure-seed@{version}"))?.func_wrap(name, seed)?;
        linker.instance(&format!("wasi:cli/environment@{version}"))?.func_wrap("get-environment", variables)?;
    }
    Ok(())
}

/// What a guest draws from, once.
fn drawing<'a>(store: &'a mut StoreContextMut<'_, Host>) -> &'a mut WasiRandomCtx {
    let host = store.data_mut();
    host.drawn += 1;
    host.random()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_drawn_anew_and_fill_what_was_asked_for() {
        let (Ok(first), Ok(second)) = (Kernel.try_next_u64(), Kernel.try_next_u64());
        assert_ne!(first, second);
        let mut bytes = [0; 1000];
        let Ok(()) = Kernel.try_fill_bytes(&mut bytes);
        assert!(bytes.chunks(20).all(|chunk| chunk.iter().any(|byte| *byte != 0)), "{bytes:?}");
    }

    #[test]
    fn where_the_clock_begins_is_looked_at_once() {
        let began = epoch_ns();
        take_epoch(began + 3_600_000_000_000);
        assert_eq!(epoch_ns(), began);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let now = Duration::from_nanos(SharedEpoch(ClockResolution::Fine).now());
        assert!(now.abs_diff(since_1970) < Duration::from_secs(60), "{now:?} and {since_1970:?}");
    }
}
