//! What a guest may import: one file for each interface, and the state behind them.
//!
//! Owns [`Host`], the data of every wasmtime `Store`, and the linking of every interface that Hob knows. All of them are linked,
//! granted or not, because unmodified programs import what they never touch; without a grant an interface's own functions
//! refuse. Knows nothing about where modules come from or what runs them.

pub mod blobstore;
pub mod blocking;
pub mod bounded;
pub mod config;
pub mod data;
pub mod descriptors;
pub mod egress;
pub mod explain;
pub mod files;
pub mod handler;
pub mod held;
pub mod http;
pub mod keyvalue;
mod listing;
mod reach;
mod readdir;
pub mod reply;
pub mod secrets;
pub mod stdio;
pub mod wasi;
mod written;

use std::fmt;
use std::sync::Arc;

use wasmtime::component::{Linker as ComponentLinker, ResourceTable};
use wasmtime::{Linker as ModuleLinker, Result};
use wasmtime_wasi::WasiCtx;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi_http::WasiHttpCtx;

use crate::fault::Code;
use crate::grants::{ClockResolution, Grants};
use crate::meter::MemoryBudget;
use crate::telemetry::logs::LogSink;

use data::DataAccess;
use egress::EgressAccess;
use explain::Explained;
use files::FileAccess;
use handler::{DataState, Exchange, Mappings, Responses};
use http::Hooks;
use reply::Reply;
use secrets::SecretAccess;
use stdio::Stdio;

/// Most handles to resources of the host that one guest may hold.
const HANDLES_MAX: usize = 1024;
/// Longest set of HTTP headers that a guest may build, in bytes of the host's memory.
const FIELDS_BYTES_MAX: usize = 32 << 10;

/// Why the host ended a guest from inside a host call. Travels as a wasmtime error; `engine/trap.rs` turns it into a fault.
#[derive(Debug, thiserror::Error)]
#[error("{detail}")]
pub struct Refusal {
    /// What kind of fault it is.
    pub code: Code,
    /// What happened and what was expected.
    pub detail: String,
}

impl Refusal {
    /// The guest broke the rules of a host call.
    pub fn bad_call(detail: impl Into<String>) -> Self {
        Self { code: Code::GuestBadCall, detail: detail.into() }
    }
}

/// What a guest finds when it asks for its arguments and variables. One for each revision; commands get more for each request.
#[derive(Clone, Default)]
pub struct Environment {
    /// Arguments; the first is the program's name.
    pub args: Vec<String>,
    /// Variables: first those of the request, then the revision's own, then those that hold secrets.
    pub env: Vec<(String, String)>,
    /// How many of them are of the request.
    pub env_of_request: usize,
    /// How many of them hold secrets.
    pub env_of_secrets: usize,
    /// What it may reach of the host.
    pub grants: Grants,
    /// What it may reach of its tenant's data.
    pub data: Arc<DataAccess>,
    /// Which folders it sees, besides those of `grants` and those that are buckets.
    pub files: Arc<FileAccess>,
    /// How exactly it sees the time.
    pub clock: ClockResolution,
    /// What the log was told about what it may not reach.
    pub explained: Arc<Explained>,
    /// What it may reach over HTTP.
    pub egress: Arc<EgressAccess>,
    /// Which secrets it may read.
    pub secrets: Arc<SecretAccess>,
}

impl fmt::Debug for Environment {
    /// Without the values of variables: some are secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        f.debug_struct("Environment").field("args", &self.args).field("env", &names).finish_non_exhaustive()
    }
}

/// The data of a wasmtime `Store`: all that belongs to one instance and dies with it. Built in one place, `engine/store.rs`.
pub struct Host {
    /// Memory of the instance.
    pub memory: MemoryBudget,
    /// Where the response goes, shared with whoever sends it.
    pub reply: Arc<Reply>,
    /// Request and response of a handler.
    pub exchange: Exchange,
    /// What a handler holds of its data.
    pub data: DataState,
    /// Responses of other servers that a handler has open.
    responses: Responses,
    /// The memory that a handler exports, once it was looked up by its name. The store has no other handler.
    handler_memory: Option<wasmtime::Memory>,
    /// Objects in a handler's memory. wasmtime drops the data of a store before it resets memories, and that is what puts these back;
    /// `Store::into_data` would let the data outlive them, and is never called.
    pub mappings: Mappings,
    /// Where the guest's words go.
    pub log: Arc<LogSink>,
    /// Arguments, variables and grants.
    pub environment: Arc<Environment>,
    /// Standard streams.
    pub stdio: Stdio,
    /// What a command exited with.
    pub exit_code: Option<i32>,
    /// How often the guest drew random bytes; and single numbers, in the build alone.
    pub drawn: u64,
    /// Whether it has read its variables. Noted only in the build.
    pub has_read_variables: bool,
    /// Whether it has looked at what folders it has.
    pub has_looked_at_folders: bool,
    open_files: bounded::OpenFiles,
    held: held::Held,
    table: ResourceTable,
    wasi: Option<WasiCtx>,
    preview1: Option<WasiP1Ctx>,
    http: WasiHttpCtx,
    has_used_http: bool,
    /// Whether the guest has asked for data or configuration as a component does, or for a secret.
    has_asked: bool,
    cursors: keyvalue::Cursors,
    blobs: blobstore::Blobs,
    /// Buckets that are folders.
    mounts: Vec<data::Mount>,
    /// The folder that a program of preview 1 lists.
    reading: Option<Box<readdir::Reading>>,
    hooks: Hooks,
}

impl Host {
    /// A host for one instance. WASI's own state is made when the guest first asks for it: most handlers never do.
    #[must_use]
    pub fn new(memory: MemoryBudget, reply: Arc<Reply>, log: Arc<LogSink>, environment: Arc<Environment>, stdio: Stdio) -> Self {
        // What the host keeps for a guest is not in the guest's memory; see `held`.
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES_MAX);
        Self {
            memory,
            reply,
            exchange: Exchange::default(),
            data: DataState::default(),
            responses: Responses::default(),
            handler_memory: None,
            mappings: Mappings::default(),
            log,
            environment,
            stdio,
            exit_code: None,
            drawn: 0,
            has_read_variables: false,
            has_looked_at_folders: false,
            open_files: bounded::OpenFiles::default(),
            held: held::Held::default(),
            table,
            wasi: None,
            preview1: None,
            http,
            has_used_http: false,
            has_asked: false,
            cursors: keyvalue::Cursors::default(),
            blobs: blobstore::Blobs::default(),
            mounts: Vec::new(),
            reading: None,
            hooks: Hooks::default(),
        }
    }
}

impl Host {
    /// A host of which nothing is ever asked: for looking at what may be imported.
    #[must_use]
    pub fn for_nobody() -> Self {
        let log = crate::telemetry::logs::FunctionLog::new(crate::telemetry::logs::LogSpace::new(0, 0));
        let (id, revision) = (crate::id::InvocationId::new(0, 0), crate::id::RevisionNumber::FIRST);
        let log = Arc::new(LogSink::new(Arc::new(log), id, revision, 0));
        Self::new(MemoryBudget::new(0), Arc::default(), log.clone(), Arc::default(), Stdio::Log(log))
    }

    /// Whether the guest holds a handle to a resource of the host. Such a guest cannot be snapshotted: a handle that it remembers is
    /// dead in an instance made of the snapshot, or names another resource.
    #[must_use]
    pub fn holds_handles(&self) -> bool {
        !self.table.is_empty()
    }

    /// Whether the guest has asked for anything that may be another thing for another invocation: its clocks, random numbers,
    /// variables and streams, an answer over HTTP, data, configuration, a line in its log.
    #[must_use]
    pub fn has_looked_outside(&self) -> bool {
        let has_wasi = self.wasi.is_some() || self.preview1.is_some();
        has_wasi || self.has_used_http || self.has_asked || self.data.has_asked() || self.log.dropped() > 0
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("memory", &self.memory).finish_non_exhaustive()
    }
}

/// Links everything that a core module may import.
///
/// # Errors
/// Only if two interfaces define the same name: a bug of ours.
pub fn link_modules(linker: &mut ModuleLinker<Host>) -> Result<()> {
    handler::link(linker)?;
    wasi::link_preview1(linker)
}

/// Links everything that a component may import. `concurrent`: whether the engine knows the asynchronous component model,
/// without which WASI 0.3 cannot even be named.
///
/// # Errors
/// Only if two interfaces define the same name: a bug of ours.
pub fn link_components(linker: &mut ComponentLinker<Host>, concurrent: bool) -> Result<()> {
    wasi::link_components(linker, concurrent)?;
    http::link(linker, concurrent)?;
    keyvalue::link(linker)?;
    config::link(linker)?;
    blobstore::link(linker)
}

/// Interfaces that components may import, for the message about one that is not among them.
pub const INTERFACES: [&str; 10] = [
    "wasi:blobstore 0.2.0-draft",
    "wasi:cli 0.2 and 0.3",
    "wasi:clocks 0.2 and 0.3",
    "wasi:config 0.2.0-draft, 0.2.0-draft-2024-09-27 and 0.2.0-rc.1",
    "wasi:filesystem 0.2 and 0.3",
    "wasi:http 0.2 and 0.3",
    "wasi:io 0.2",
    "wasi:keyvalue 0.2.0-draft and 0.2.0-draft2",
    "wasi:random 0.2 and 0.3",
    "wasi:sockets 0.2 and 0.3",
];
