//! WASI: preview 1 for core modules, 0.2 and 0.3 for components.
//!
//! Owns when WASI's state is made (at the guest's first call, because most handlers never make one) and what is in it.
//! Without a grant there are no folders and no sockets: each call answers with the interface's own refusal.

use wasmtime::component::Linker as ComponentLinker;
use wasmtime::{Linker as ModuleLinker, Result};
use wasmtime_wasi::p1::{self, WasiP1Ctx};
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use super::{Environment, Host};
use crate::capability::stdio::Stdio;

/// Links `wasi_snapshot_preview1`.
///
/// # Errors
/// Only if a name is defined twice: a bug of ours.
pub fn link_preview1(linker: &mut ModuleLinker<Host>) -> Result<()> {
    p1::add_to_linker_async(linker, Host::preview1)?;
    // wasmtime-wasi 48 turns codes from 126 up into an error without a code; programs have always exited with up to 255.
    linker.allow_shadowing(true);
    let exit = |code: u32| -> Result<()> { Err(I32Exit(code.cast_signed()).into()) };
    linker.func_wrap("wasi_snapshot_preview1", "proc_exit", exit)?;
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
    Ok(())
}

impl Host {
    fn preview1(&mut self) -> &mut WasiP1Ctx {
        self.preview1.get_or_insert_with(|| builder(&self.environment, &self.stdio).build_p1())
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx: &mut WasiCtx = self.wasi.get_or_insert_with(|| builder(&self.environment, &self.stdio).build());
        WasiCtxView { ctx, table: &mut self.table }
    }
}

fn builder(environment: &Environment, stdio: &Stdio) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    builder.args(&environment.args).envs(&environment.env);
    stdio.attach(&mut builder);
    if environment.grants.net {
        builder.inherit_network().allow_tcp(true).allow_udp(true).allow_ip_name_lookup(true);
    }
    for dir in &environment.grants.dirs {
        // The folder was opened once, when the command line was checked. If it has gone since, the guest sees no folder.
        if let Err(error) = builder.preopened_dir(&dir.host, &dir.guest, FsPerms::ReadWrite) {
            tracing::warn!(host = %dir.host.display(), %error, "a granted folder cannot be opened");
        }
    }
    builder
}
