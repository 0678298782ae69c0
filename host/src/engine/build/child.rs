//! The child process of a build.
//!
//! Owns what happens to a tenant's bytes: caps, kind, wrapping into a component, initialisation and snapshot, validation, linking, compilation, and the trial
//! of what came out. Invariant: the walls stand before the first byte is read, and nothing is reported as built that was not
//! started. It has no network, no data and no environment: bytes to read, two files to write, one line to say. Two walls see to that, which stand
//! before the first byte of a module is read: it opens nothing (Landlock) and calls little (seccomp).

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, Signal, getppid, getrlimit, set_parent_process_death_signal, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{CodeBuilder, Engine, ExternType, Linker as ModuleLinker, Module, UnknownImportError};

use super::componentize::componentize;
use super::detect::{Found, HINT_PROPOSALS, Surface, malformed};
use super::job::Job;
use super::rehearsal::{Rehearsal, Stage, Start, Times};
use super::snapshot::{self, Snapshot, Taken, Unfit};
use super::{Built, CHILD_COMMAND, Kept, Refused, Report, Said, Tried, bulk, helper, native, sentence, signature};
use crate::capability::handler::{ENTRY, INIT, MODULE, RESTORED, WIZER_INIT};
use crate::capability::{self, Host, INTERFACES, wasi};
use crate::config::Sandbox;
use crate::engine::Kind;
use crate::engine::artifact::Code;
use crate::engine::template::Entry as CodeEntry;
use crate::engine::trap;
use crate::fault::{Code as FaultCode, Fault};
use crate::limits::Limit;
use crate::manifest::SnapshotMode;
use crate::process::{self, Calls, Reach};

/// Resource limits that the child sets on itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walls {
    /// Writable private memory in bytes (`RLIMIT_DATA`; `RLIMIT_AS` would break wasmtime's 4 GiB reservations).
    pub memory_bytes: u64,
    /// Processor time of all threads in seconds.
    pub cpu_seconds: u64,
}

/// Largest file a build may write, in bytes: a memory image can have 4 GiB, most of it holes.
const OUTPUT_BYTES_MAX: u64 = 6 << 30;
/// Files a build may have open.
const FILES_MAX: u64 = 64;

impl Walls {
    /// As arguments of the child.
    #[must_use]
    pub fn to_args(self) -> [String; 2] {
        [self.memory_bytes.to_string(), self.cpu_seconds.to_string()]
    }

    /// Stands the walls up around this process.
    fn stand(self) -> std::io::Result<()> {
        // What the system allows this process less of stays as it is: that is a wall too, and only an administrator can move it.
        let least = |resource, wall: u64| getrlimit(resource).maximum.map_or(wall, |given| given.min(wall));
        process::forbid_dumps()?;
        let set = |resource, soft, hard| setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) });
        for (resource, wall) in
            [(Resource::Data, self.memory_bytes), (Resource::Fsize, OUTPUT_BYTES_MAX), (Resource::Nofile, FILES_MAX)]
        {
            let wall = least(resource, wall);
            set(resource, wall, wall)?;
        }
        // The kernel sends SIGXCPU at the soft limit, which tells this end apart from a kill by somebody else; it looks at the hard one
        // first.
        let hard = least(Resource::Cpu, self.cpu_seconds + 2);
        set(Resource::Cpu, self.cpu_seconds.min(hard.saturating_sub(1)), hard).map_err(Into::into)
    }
}

/// What a child is started with.
struct Args {
    walls: Walls,
    native: PathBuf,
    snapshot: PathBuf,
    sandbox: Sandbox,
    parent: i32,
}

impl Args {
    fn parse(args: &[OsString]) -> Option<Self> {
        let [memory, cpu, native, snapshot, sandbox, parent] = args else { return None };
        let number = |text: &OsString| text.to_str()?.parse().ok();
        Some(Self {
            walls: Walls { memory_bytes: number(memory)?, cpu_seconds: number(cpu)? },
            native: native.into(),
            snapshot: snapshot.into(),
            sandbox: Sandbox::parse(sandbox.to_str()?)?,
            parent: parent.to_str()?.parse().ok()?,
        })
    }
}

/// Where a build writes: what comes out is in these files only.
struct Outputs {
    /// Native code. Its path is where it can be opened again.
    native: (File, PathBuf),
    /// The module that a snapshot became, compressed; only if one was taken.
    snapshot: File,
}

impl Outputs {
    fn open(native: &Path, snapshot: &Path) -> std::io::Result<Self> {
        let open = |path| File::options().read(true).write(true).open(path);
        Ok(Self { native: (open(native)?, native.to_owned()), snapshot: open(snapshot)? })
    }
}

/// Becomes the child of a build, or the helper that starts them, if the process was started as one, and never returns then. The first thing in
/// `main`.
pub fn run_if_child() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_deref().and_then(|command| command.to_str()) {
        Some(CHILD_COMMAND) => std::process::exit(run(&args.collect::<Vec<_>>())),
        Some(helper::HELPER_COMMAND) => {
            let served = helper::run(&args.collect::<Vec<_>>());
            if let Err(error) = &served {
                let _ = writeln!(std::io::stderr(), "{}: {error}", helper::HELPER_COMMAND);
            }
            std::process::exit(i32::from(served.is_err()));
        }
        _ => {}
    }
}

fn run(args: &[OsString]) -> i32 {
    let Some(args) = Args::parse(args) else {
        let _ = writeln!(std::io::stderr(), "{CHILD_COMMAND} is started by hob itself");
        return 2;
    };
    let made = prepare(&args).map_err(Failure::Io).and_then(|outputs| {
        work(&mut std::io::stdin().lock(), &outputs, |job| {
            let mut walls = process::Walls::new(args.sandbox);
            let mut reach = Reach::default();
            // A component is loaded by its path.
            reach.read(&args.native);
            job.folders.iter().for_each(|folder| reach.read(folder.root.join(&folder.below)));
            // What is missing of a wall the node tells of its own.
            let both = walls.stand_before_files(&reach).and_then(|()| walls.stand_before_calls(Calls::Build));
            both.map_err(std::io::Error::other)
        })
    });
    let report = match made {
        Ok(built) => Report::Built(built),
        Err(Failure::Refused(refused)) => Report::Refused(refused),
        Err(Failure::Io(error)) => Report::Failed { errno: error.raw_os_error(), error: error.to_string() },
    };
    match serde_json::to_writer(std::io::stdout(), &report) {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "the report cannot be written: {error}");
            1
        }
    }
}

/// What needs more than the child has later.
fn prepare(args: &Args) -> std::io::Result<Outputs> {
    args.walls.stand()?;
    // Whoever started this is one thread for its whole life.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    if getppid().is_none_or(|parent| parent.as_raw_nonzero().get() != args.parent) {
        return Err(std::io::Error::other("whoever started this build is gone"));
    }
    Outputs::open(&args.native, &args.snapshot)
}

/// Reads job and module, and writes native code and snapshot. `lock`: stands up the walls that let nothing be opened any more, once the job is
/// known and before anything of the module is.
fn work(input: &mut impl Read, outputs: &Outputs, lock: impl FnOnce(&Job) -> std::io::Result<()>) -> Result<Built, Failure> {
    let job = Job::read(input)?;
    wasi::take_epoch(job.epoch_ns);
    lock(&job)?;
    #[cfg(debug_assertions)]
    if let Some(word) = job.args.first().and_then(|name| name.strip_prefix("hob-probe-")) {
        let target = if word == "connect" { "127.0.0.1:1" } else { "/bin/true" };
        return Err(Refused::unfit(process::probe::run(word, target), "a test asked for it").into());
    }
    let mut wasm = Vec::new();
    input.read_to_end(&mut wasm)?;
    if job.restored {
        wasm = native::decompress(wasm)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // With a handler, and nobody who listens, writing past what a file may have is an error as any other.
        drop(signal(SignalKind::from_raw(Signal::XFSZ.as_raw()))?);
        make(&job, wasm, outputs).await
    })
}

/// What a build comes to, however it was started.
#[derive(Debug)]
pub enum Made {
    /// Both files are written.
    Built(Box<Built>),
    /// It is no function that runs here.
    Refused(Refused),
}

/// Does in this process, and without its walls, what the child does with a module: for those who try it on many. `native` and `snapshot`
/// are empty files.
///
/// # Errors
/// Those of the system.
pub fn make_here(job: &Job, wasm: Vec<u8>, native: &Path, snapshot: &Path) -> std::io::Result<Made> {
    let outputs = Outputs::open(native, snapshot)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(make(job, wasm, &outputs)) {
        Ok(built) => Ok(Made::Built(Box::new(built))),
        Err(Failure::Refused(refused)) => Ok(Made::Refused(refused)),
        Err(Failure::Io(error)) => Err(error),
    }
}

/// Why nothing was built.
enum Failure {
    /// It is no function that runs here.
    Refused(Refused),
    /// It may be one: the node gave what cannot be read, or the system failed.
    Io(std::io::Error),
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

async fn make(job: &Job, wasm: Vec<u8>, outputs: &Outputs) -> Result<Built, Failure> {
    let (found, wasm) = detect(wasm, job.restored)?;
    let limit = job.limits.get(Limit::Memory);
    if found.memory_bytes_min > limit {
        let detail =
            format!("its memories begin with {} bytes, more than the function's limit of {limit}", found.memory_bytes_min);
        return Err(Refused::unfit(detail, "raise 'memory' in [limits] of hob.toml").into());
    }
    let stage = Stage::new(job, found.shape).map_err(|error| invalid(&error))?;
    let made = make_on(&stage, &found, wasm, outputs).await;
    if stage.is_short.load(Ordering::Relaxed) {
        return Err(std::io::Error::from_raw_os_error(Errno::NOMEM.raw_os_error()).into());
    }
    made.map_err(|failure| match failure {
        Failure::Refused(refused) => Refused { log: Said::in_log(&stage.log), ..refused }.into(),
        failure @ Failure::Io(_) => failure,
    })
}

async fn make_on(stage: &Stage<'_>, found: &Found, wasm: Vec<u8>, outputs: &Outputs) -> Result<Built, Failure> {
    let job = stage.job;
    let mut notes = Vec::new();
    if !job.only_compiles() {
        let unfit = match snapshot::take(stage, found, &wasm).await? {
            Taken::Snapshot(snapshot) => match keep(stage, found, *snapshot, outputs).await? {
                Ok(built) => return Ok(built),
                Err(unfit) => Some(unfit),
            },
            Taken::Nothing if job.snapshot.mode == SnapshotMode::Required => {
                let hint = match stage.shape.kind.is_command() {
                    true => "export a function 'wizer-initialize', which is run before the memory is kept",
                    false => "declare a warm-up request in [snapshot], or an initialisation (guest-sdk: #[hob_sdk::init])",
                };
                Some(Unfit::new("there is nothing to run before the memory is kept", hint))
            }
            Taken::Nothing => None,
            Taken::Unfit(unfit) => Some(unfit),
        };
        if let Some(unfit) = unfit {
            if job.snapshot.mode == SnapshotMode::Required {
                // What no mode would take is told so, and not that another mode would.
                plain(stage, found, &wasm, outputs)?;
                let detail = format!("no snapshot could be taken, and the manifest requires one: {}", unfit.reason);
                return Err(Refused::unfit(detail, unfit.hint).into());
            }
            // Nobody runs it but for a snapshot.
            let uninitialised = match (stage.shape.kind.is_component(), found.init) {
                (true, Some(name)) => format!("; the function serves without its '{name}', which is run for a snapshot alone"),
                _ => String::new(),
            };
            notes.push(format!("no snapshot: {}{uninitialised}; {}", unfit.reason, unfit.hint));
        }
    }
    let (code, image) = plain(stage, found, &wasm, outputs)?;
    drop(wasm);
    let tried = match job.only_compiles() {
        true => Tried::No,
        false => bare_start(stage, &code, &notes).await?,
    };
    Ok(Built { notes, tried, ..built(stage, found, image) })
}

/// Compiles what was sent as it is, and looks whether it can be served.
fn plain(stage: &Stage<'_>, found: &Found, wasm: &[u8], outputs: &Outputs) -> Result<(Code, Range<u64>), Failure> {
    let native = compile(stage, found, wasm)?;
    let image = native::write(&outputs.native.0, &native)?;
    drop(native);
    let code = load(stage, outputs)?;
    check_code(&stage.engine, found, &code)?;
    Ok((code, image))
}

/// Compiles a snapshot, and tries it before it is kept.
async fn keep(stage: &Stage<'_>, found: &Found, snapshot: Snapshot, outputs: &Outputs) -> Result<Result<Built, Unfit>, Failure> {
    let Snapshot { wasm, memory_bytes, statuses, notes } = snapshot;
    let native = match compile(stage, found, &wasm) {
        Ok(native) => native,
        Err(refused) => {
            return Ok(Err(Unfit::new(
                format!("what was kept does not compile: {}", refused.detail),
                concat!("keep less memory, or say ", off!()),
            )));
        }
    };
    let image = native::write(&outputs.native.0, &native)?;
    drop(native);
    let code = load(stage, outputs)?;
    check_code(&stage.engine, found, &code)?;
    if let Err(fault) = verify(stage, &code, &statuses).await {
        // Other code is going to be written there, so nothing may have this mapped.
        drop(code);
        outputs.native.0.set_len(0)?;
        let hint = match fault.code {
            FaultCode::CpuDeadline | FaultCode::WallDeadline | FaultCode::GuestMemory => {
                "raise that limit in [limits] of hob.toml, or do less: a start and each warm-up request have the limits of an invocation here"
            }
            _ => {
                "look at what every start does (hob_restored), and for what the function keeps that does not survive: a handle, a time, a number that must be new"
            }
        };
        return Ok(Err(Unfit::new(format!("an instance made of the snapshot failed: {}", fault.detail), hint)));
    }
    native::compress(&outputs.snapshot, &wasm)?;
    let snapshot = Some(Kept { memory_bytes });
    Ok(Ok(Built { snapshot, notes, ..built(stage, found, image) }))
}

fn built(stage: &Stage<'_>, found: &Found, image: Range<u64>) -> Built {
    Built {
        shape: found.shape.to_string(),
        memory_bytes_min: found.memory_bytes_min,
        image,
        snapshot: None,
        notes: Vec::new(),
        log: Said::in_log(&stage.log),
        tried: Tried::With(stage.job.environment()),
        limits: stage.job.limits.clone(),
    }
}

/// Makes two instances of what is to be published and repeats on each what was asked in warm-up.
async fn verify(stage: &Stage<'_>, code: &Code, statuses: &[u16]) -> Result<(), Fault> {
    let times = Times::of(&stage.job.limits);
    let engine = runner(stage)?;
    let how = if stage.job.snapshot.warmup.is_empty() { Start::Bare } else { Start::Serving };
    for _ in 0..2 {
        let mut rehearsal = Rehearsal::start(stage, &engine, code, times, how).await?;
        let again = rehearsal.ask_all(&stage.job.snapshot.warmup).await?;
        if again != statuses {
            let detail = format!("the warm-up requests were answered with {statuses:?}, and by the snapshot with {again:?}");
            return Err(Fault::executed(FaultCode::GuestBadResponse, detail));
        }
    }
    Ok(())
}

/// Starts what is to be published once, up to where it takes a request. What cannot start would answer none.
async fn bare_start(stage: &Stage<'_>, code: &Code, notes: &[String]) -> Result<Tried, Refused> {
    let started = match runner(stage) {
        Ok(engine) => Rehearsal::start(stage, &engine, code, Times::of(&stage.job.limits), Start::Bare).await,
        Err(fault) => Err(fault),
    };
    let tried = |rehearsal: Rehearsal| match rehearsal.store.data().has_looked_outside() {
        true => Tried::With(stage.job.environment()),
        false => Tried::Alone,
    };
    started.map(tried).map_err(|fault| {
        let before = notes.first().map(|note| format!("; {note}")).unwrap_or_default();
        let detail = format!("the function does not start: {}{before}", fault.detail);
        let hint = match fault.code {
            FaultCode::GuestMemory => concat!("raise 'memory' in [limits], or deploy it untried: say ", off!()),
            _ => concat!("correct its start, or deploy it untried: say ", off!()),
        };
        Refused::unfit(detail, hint)
    })
}

/// What starts instances of code that was compiled here.
fn runner(stage: &Stage<'_>) -> Result<crate::engine::Engine, Fault> {
    crate::engine::Engine::for_build(stage.shape.lane, stage.engine.clone()).map_err(Fault::internal)
}

/// Maps the native code that was written.
fn load(stage: &Stage<'_>, outputs: &Outputs) -> std::io::Result<Code> {
    let code = Code::load_own(&stage.engine, stage.shape.kind, &File::open(&outputs.native.1)?);
    code.map_err(|error| match trap::errno(&error) {
        Some(errno) => std::io::Error::from_raw_os_error(errno),
        None => std::io::Error::other(format!("{error:#}")),
    })
}

/// What the bytes are, and the bytes to compile: a module that is to become a component is made one first.
fn detect(wasm: Vec<u8>, is_own: bool) -> Result<(Found, Vec<u8>), Refused> {
    let surface = Surface::of(&wasm, is_own)?;
    let (found, wasm) = match surface.unfinished() {
        None => (surface.found()?, wasm),
        Some(model) => {
            let component = componentize(&wasm, model)?;
            (Surface::of(&component, is_own)?.found()?, component)
        }
    };
    Ok((found, bulk::in_parts(wasm).map_err(|error| malformed(&error))?))
}

/// Native code of `wasm`. It is not loaded on the way: memory that is kept would exist once more.
fn compile(stage: &Stage<'_>, found: &Found, wasm: &[u8]) -> Result<Vec<u8>, Refused> {
    let mut builder = CodeBuilder::new(&stage.engine);
    let native = builder.wasm_binary(wasm, None).and_then(|builder| match found.shape.kind {
        Kind::Handler | Kind::Command => builder.compile_module_serialized(),
        _ => builder.compile_component_serialized(),
    });
    native.map_err(|error| invalid(&error))
}

/// Whether the code has the entry that its kind has, and imports what this host has.
pub(super) fn check_code(engine: &Engine, found: &Found, code: &Code) -> Result<(), Refused> {
    match code {
        Code::Module(module) => check_module(engine, found.shape.kind, module),
        Code::Component(component) => check_component(engine, found, component),
    }
}

/// Validation failed, or the module needs a proposal that is off.
fn invalid(error: &wasmtime::Error) -> Refused {
    let detail = format!("the module is not valid here: {}", sentence(format_args!("{error:#}")));
    Refused::unfit(detail, HINT_PROPOSALS)
}

fn check_module(engine: &Engine, kind: Kind, module: &Module) -> Result<(), Refused> {
    let entry = if kind == Kind::Handler { ENTRY } else { "_start" };
    let is_entry = |ty: ExternType| ty.func().is_some_and(|ty| ty.params().len() == 0 && ty.results().len() == 0);
    let is_bad = |name: &str| module.get_export(name).is_some_and(|ty| !is_entry(ty));
    let called: &[&str] = if kind == Kind::Handler { &["_initialize", INIT, WIZER_INIT, RESTORED] } else { &[WIZER_INIT] };
    if let Some(name) = called.iter().find(|name| is_bad(name)) {
        let detail = format!("'{name}' must be a function without parameters and results");
        return Err(Refused::unfit(detail, "see guest-sdk/abi.md"));
    }
    if !module.get_export(entry).is_some_and(is_entry) {
        return Err(Refused::unfit(
            format!("'{entry}' must be a function without parameters and results"),
            "see guest-sdk/abi.md",
        ));
    }
    let mut linker = ModuleLinker::<Host>::new(engine);
    capability::link_modules(&mut linker).map_err(|error| invalid(&error))?;
    linker.instantiate_pre(module).map(drop).map_err(|error| match error.downcast_ref::<UnknownImportError>() {
        Some(unknown) => Refused::unfit(
            format!("the module imports '{}' from '{}', which this host does not have", unknown.name(), unknown.module()),
            format!("core modules may import '{MODULE}' and 'wasi_snapshot_preview1'; build for wasm32-wasip1"),
        ),
        None => Refused::unfit(
            format!("an import has another type here: {}", sentence(format_args!("{error:#}"))),
            "build for wasm32-wasip1 with a current toolchain",
        ),
    })
}

fn check_component(engine: &Engine, found: &Found, component: &Component) -> Result<(), Refused> {
    let mut linker = ComponentLinker::<Host>::new(engine);
    let concurrent = found.shape.lane == crate::engine::Lane::Concurrent;
    capability::link_components(&mut linker, concurrent).map_err(|error| invalid(&error))?;
    let pre = linker.instantiate_pre(component).map_err(|error| {
        let detail = format!("the component imports what this host does not have: {}", sentence(format_args!("{error:#}")));
        Refused::unfit(
            detail,
            format!("this host offers {}; rebuild against those, or leave the import out", INTERFACES.join(", ")),
        )
    })?;
    let kind = found.shape.kind;
    signature::check(kind, &pre).and_then(|()| CodeEntry::of_component(kind, pre).map(drop)).map_err(|error| {
        let detail = format!("the component's entry is not what its name promises: {}", sentence(format_args!("{error:#}")));
        Refused::unfit(detail, "rebuild it with a current toolchain")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn what_is_not_the_module_s_fault_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let outputs = || {
            std::fs::write(dir.path().join("snapshot"), "").unwrap();
            std::fs::write(dir.path().join("native"), "").unwrap();
            Outputs::open(&dir.path().join("native"), &dir.path().join("snapshot")).unwrap()
        };
        let work = |input: &[u8]| work(&mut &input[..], &outputs(), |_| Ok(()));
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default()).to_bytes().unwrap();
        let wasm = wat::parse_str("(module (memory (export \"memory\") 1) (func (export \"_start\")))").unwrap();
        let input = [&job[..], &wasm].concat();
        assert!(work(&input).is_ok());
        let errno = |result| match result {
            Err(Failure::Io(error)) => error.raw_os_error(),
            _ => panic!("a failure of the node"),
        };
        assert_eq!(errno(work(&job[..job.len() - 1])), None, "a job that breaks off");
        assert!(matches!(work(&input[..input.len() - 1]), Err(Failure::Refused(_))), "a module that does");
        let locked = super::work(&mut &input[..], &outputs(), |_| Err(rustix::io::Errno::PERM.into()));
        assert_eq!(errno(locked), Some(rustix::io::Errno::PERM.raw_os_error()), "no module is read without walls");
        std::fs::remove_file(dir.path().join("native")).unwrap();
        assert!(Outputs::open(&dir.path().join("native"), &dir.path().join("snapshot")).is_err());
    }
}
