//! WASI: previews 0 and 1 for core modules, 0.2 and 0.3 for components.
//!
//! Owns when WASI's state is made (at the guest's first call, because most handlers never make one) and what is in it.
//! Without a grant there are no folders and no sockets, and a bucket that is a folder can only be read: each call answers with the interface's own refusal.
//! Of the folders that a guest asks for and of the sockets its log says what would allow them.
//! Invariant: all monotonic clocks count from one epoch, so that a clock that a snapshot remembers is never ahead of a later one.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand_core::TryRng;
use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{Linker as ModuleLinker, Result, StoreContextMut};
use wasmtime_wasi::p0;
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::sockets::SocketAddrUse;
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::data::Mount;
use super::egress::EgressAccess;
use super::stdio::Stdio;
use super::{Environment, Host, reach, written};
use crate::grants::ClockResolution;
use crate::telemetry::logs::LogSink;

/// Links `wasi_snapshot_preview1`, and `wasi_unstable`, as it was called before: programs of 2019 and 2020 import that, and
/// `wasmtime run` takes them.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link_previews(linker: &mut ModuleLinker<Host>) -> Result<()> {
    p1::add_to_linker_async(linker, Host::preview1)?;
    p0::add_to_linker_async(linker, Host::preview1)?;
    // wasmtime-wasi 48 turns codes from 126 up into an error without a code; programs have always exited with up to 255.
    linker.allow_shadowing(true);
    let exit = |code: u32| -> Result<()> { Err(I32Exit(code.cast_signed()).into()) };
    for preview in ["wasi_snapshot_preview1", "wasi_unstable"] {
        linker.func_wrap(preview, "proc_exit", exit)?;
    }
    reach::link_previews(linker)?;
    written::link_previews(linker)?;
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
    let linked = reach::link_components(linker, concurrent);
    linker.allow_shadowing(false);
    linked
}

impl Host {
    pub(super) fn preview1(&mut self) -> &mut WasiP1Ctx {
        self.preview1.get_or_insert_with(|| {
            builder(&self.environment, &self.stdio, self.drawn.as_ref(), &self.mounts, &self.log).build_p1()
        })
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let builder = || builder(&self.environment, &self.stdio, self.drawn.as_ref(), &self.mounts, &self.log);
        let ctx: &mut WasiCtx = self.wasi.get_or_insert_with(|| builder().build());
        WasiCtxView { ctx, table: &mut self.table }
    }
}

fn builder(environment: &Environment, stdio: &Stdio, drawn: Option<&Drawn>, mounts: &[Mount], log: &LogSink) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    let clock = environment.clock;
    builder.args(&environment.args).envs(&environment.env).monotonic_clock(SharedEpoch(clock)).wall_clock(Wall(clock));
    if let Some(drawn) = drawn {
        builder.secure_random(Counted(drawn.clone())).insecure_random(Counted(drawn.clone()));
    }
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

/// The monotonic clock of every guest: Unix time when this process began, and what has passed since. A guest that was restored from
/// a snapshot finds it later than it left it, in whatever process. (Unless the system's clock was set back in between.)
struct SharedEpoch(ClockResolution);

static EPOCH: LazyLock<(Instant, u64)> = LazyLock::new(|| {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), u64::try_from(since_1970.as_nanos()).unwrap_or_default())
});

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
        let (began, unix_ns) = *EPOCH;
        let now = unix_ns.saturating_add(u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX));
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

/// How often a guest drew random numbers. Counted only in the build, where what is drawn would be the same in every instance.
#[derive(Debug, Clone, Default)]
pub struct Drawn(Arc<AtomicU64>);

impl Drawn {
    /// Draws so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// The system's random numbers, counted.
struct Counted(Drawn);

impl TryRng for Counted {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> std::result::Result<u32, Infallible> {
        self.0.add();
        wasmtime_wasi::random::thread_rng().try_next_u32()
    }

    fn try_next_u64(&mut self) -> std::result::Result<u64, Infallible> {
        self.0.add();
        wasmtime_wasi::random::thread_rng().try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> std::result::Result<(), Infallible> {
        self.0.add();
        wasmtime_wasi::random::thread_rng().try_fill_bytes(bytes)
    }
}

/// Counts the one kind of randomness that comes from no generator: the seed of `wasi:random/insecure-seed`, with which programs
/// seed their hash tables. `linker` must allow shadowing.
///
/// # Errors
/// Only if wasmtime names its interfaces differently: a bug of ours, found by the test of this function.
pub fn count_seeds(linker: &mut ComponentLinker<Host>, concurrent: bool) -> Result<()> {
    let seed = |mut store: StoreContextMut<'_, Host>, (): ()| {
        let host = store.data_mut();
        if let Some(drawn) = &host.drawn {
            drawn.add();
        }
        let mut rng = wasmtime_wasi::random::thread_rng();
        let (Ok(a), Ok(b)) = (rng.try_next_u64(), rng.try_next_u64());
        Ok(((a, b),))
    };
    linker.instance("wasi:random/insecure-seed@0.2.12")?.func_wrap("insecure-seed", seed)?;
    if concurrent {
        linker.instance("wasi:random/insecure-seed@0.3.0")?.func_wrap("get-insecure-seed", seed)?;
    }
    Ok(())
}
