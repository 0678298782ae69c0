//! The child process of a build.
//!
//! Owns what happens to a tenant's bytes: caps, kind, wrapping into a component, initialisation and snapshot, validation, linking, compilation, and the trial
//! of what came out. Invariant: the walls stand before the first byte is read, and nothing is reported as built that was not
//! started. It has no network, no data and no environment: bytes to read, two files to write, one line to say.

use std::io::{Read, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{CodeBuilder, Engine, ExternType, Linker as ModuleLinker, Module, UnknownImportError};

use super::componentize::componentize;
use super::detect::{Found, Surface};
use super::job::Job;
use super::rehearsal::{Rehearsal, Stage, Start, Times};
use super::snapshot::{self, Snapshot, Taken, Unfit};
use super::{Built, CHILD_COMMAND, Kept, Outputs, Refused, Report, Said, Tried, native, sentence, signature};
use crate::capability::handler::{ENTRY, INIT, MODULE, RESTORED, WIZER_INIT};
use crate::capability::{self, Host, INTERFACES};
use crate::engine::Kind;
use crate::engine::artifact::Code;
use crate::engine::template::Entry as CodeEntry;
use crate::engine::trap;
use crate::fault::{Code as FaultCode, Fault};
use crate::limits::Limit;
use crate::manifest::SnapshotMode;
use crate::telemetry::logs::Entry;

/// Lines of the log of initialisation and warm-up that are kept.
const LOG_ENTRIES_MAX: usize = 200;

/// Resource limits that the child sets on itself.
#[derive(Debug, Clone, Copy)]
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

    fn from_args(args: &[String]) -> Option<(Self, Outputs)> {
        let [memory, cpu, native, snapshot] = args else { return None };
        let outputs = Outputs { native: native.into(), snapshot: snapshot.into() };
        Some((Self { memory_bytes: memory.parse().ok()?, cpu_seconds: cpu.parse().ok()? }, outputs))
    }

    /// Stands the walls up around this process.
    fn stand(self) -> std::io::Result<()> {
        // What the system allows this process less of stays as it is: that is a wall too, and only an administrator can move it.
        let least = |resource, wall: u64| getrlimit(resource).maximum.map_or(wall, |given| given.min(wall));
        let set = |resource, soft, hard| setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) });
        for (resource, wall) in [
            (Resource::Data, self.memory_bytes),
            (Resource::Fsize, OUTPUT_BYTES_MAX),
            (Resource::Nofile, FILES_MAX),
            (Resource::Core, 0),
        ] {
            let wall = least(resource, wall);
            set(resource, wall, wall)?;
        }
        // The kernel sends SIGXCPU at the soft limit, which tells this end apart from a kill by somebody else; it looks at the hard one
        // first.
        let hard = least(Resource::Cpu, self.cpu_seconds + 2);
        set(Resource::Cpu, self.cpu_seconds.min(hard.saturating_sub(1)), hard).map_err(Into::into)
    }
}

/// Becomes the child if the process was started as one, and never returns then. The first thing in `main`.
pub fn run_if_child() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(CHILD_COMMAND) {
        std::process::exit(run(&args.collect::<Vec<_>>()));
    }
}

fn run(args: &[String]) -> i32 {
    let Some((walls, outputs)) = Walls::from_args(args) else {
        let _ = writeln!(std::io::stderr(), "{CHILD_COMMAND} is started by hob itself: expected memory, seconds and two files");
        return 2;
    };
    let made = walls.stand().map_err(Failure::Io).and_then(|()| work(&mut std::io::stdin().lock(), &outputs));
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

/// Reads job and module, and writes native code and snapshot.
fn work(input: &mut impl Read, outputs: &Outputs) -> Result<Built, Failure> {
    let (job, mut wasm) = Job::read(input)?;
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
    let (found, wasm) = detect(wasm)?;
    let limit = job.limits.get(Limit::Memory);
    if found.memory_bytes_min > limit {
        let detail =
            format!("its memories begin with {} bytes, more than the function's limit of {limit}", found.memory_bytes_min);
        return Err(Refused::unfit(detail, "raise 'memory' in [limits] of hob.toml").into());
    }
    let stage = Stage::new(job, found.shape).map_err(|error| invalid(&error))?;
    let mut notes = Vec::new();
    if !job.only_compiles() {
        let unfit = match snapshot::take(&stage, &found, &wasm).await? {
            Taken::Snapshot(snapshot) => match keep(&stage, &found, *snapshot, outputs).await? {
                Ok(built) => return Ok(built),
                Err(unfit) => Some(unfit),
            },
            Taken::Nothing if job.snapshot.mode == SnapshotMode::Required => Some(Unfit::new(
                "there is nothing to run before the memory is kept",
                "declare a warm-up request in [snapshot], or an initialisation (guest-sdk: #[hob_sdk::init])",
            )),
            Taken::Nothing => None,
            Taken::Unfit(unfit) => Some(unfit),
        };
        if let Some(unfit) = unfit {
            if job.snapshot.mode == SnapshotMode::Required {
                let detail = format!("no snapshot could be taken, and the manifest requires one: {}", unfit.reason);
                return Err(Refused::unfit(detail, unfit.hint).into());
            }
            notes.push(format!("no snapshot: {}; {}", unfit.reason, unfit.hint));
        }
    }
    let native = compile(&stage, &found, &wasm)?;
    drop(wasm);
    let image = native::write(&outputs.native, &native)?;
    drop(native);
    let code = load(&stage, &outputs.native)?;
    check_code(&stage, &found, &code)?;
    let tried = match job.only_compiles() {
        true => Tried::No,
        false => bare_start(&stage, &code, &notes).await?,
    };
    Ok(Built { notes, tried, ..built(&stage, &found, image) })
}

/// Compiles a snapshot, and tries it before it is kept.
async fn keep(stage: &Stage<'_>, found: &Found, snapshot: Snapshot, outputs: &Outputs) -> Result<Result<Built, Unfit>, Failure> {
    let Snapshot { wasm, memory_bytes, statuses, notes } = snapshot;
    let native = match compile(stage, found, &wasm) {
        Ok(native) => native,
        Err(refused) => {
            return Ok(Err(Unfit::new(
                format!("what was kept does not compile: {}", refused.detail),
                "keep less memory, or say snapshot = \"off\" in hob.toml",
            )));
        }
    };
    let image = native::write(&outputs.native, &native)?;
    drop(native);
    let code = load(stage, &outputs.native)?;
    check_code(stage, found, &code)?;
    if let Err(fault) = verify(stage, &code, &statuses).await {
        std::fs::remove_file(&outputs.native)?;
        return Ok(Err(Unfit::new(
            format!("an instance made of the snapshot failed: {}", fault.detail),
            "the function keeps something that does not survive: a handle, a time, a number that must be new",
        )));
    }
    native::compress(&outputs.snapshot, &wasm)?;
    let snapshot = Some(Kept { memory_bytes });
    Ok(Ok(Built { snapshot, notes, ..built(stage, found, image) }))
}

fn built(stage: &Stage<'_>, found: &Found, image: Range<u64>) -> Built {
    let entries = stage.log.tail(LOG_ENTRIES_MAX);
    let said = |entry: &Arc<Entry>| Said { source: entry.source.as_str().into(), text: entry.text.clone() };
    Built {
        shape: found.shape.to_string(),
        memory_bytes_min: found.memory_bytes_min,
        image,
        snapshot: None,
        notes: Vec::new(),
        log: entries.iter().map(said).collect(),
        tried: Tried::With(stage.job.environment()),
        limits: stage.job.limits.clone(),
    }
}

/// Makes two instances of what is to be published and repeats on each what was asked in warm-up.
async fn verify(stage: &Stage<'_>, code: &Code, statuses: &[u16]) -> Result<(), Fault> {
    let times = Times::of(&stage.job.limits);
    let engine = runner(stage)?;
    for _ in 0..2 {
        let mut rehearsal = Rehearsal::start(stage, &engine, code, times, Start::Serving).await?;
        let again = rehearsal.ask_all(&stage.job.snapshot.warmup).await?;
        if again != statuses {
            let detail = format!("the warm-up requests were answered with {statuses:?}, and by the snapshot with {again:?}");
            return Err(Fault::executed(FaultCode::GuestBadResponse, detail));
        }
    }
    Ok(())
}

/// Starts what is to be published once. What cannot start would answer no request.
async fn bare_start(stage: &Stage<'_>, code: &Code, notes: &[String]) -> Result<Tried, Refused> {
    let started = match runner(stage) {
        Ok(engine) => Rehearsal::start(stage, &engine, code, Times::of(&stage.job.limits), Start::Serving).await,
        Err(fault) => Err(fault),
    };
    let tried = |rehearsal: Rehearsal| match rehearsal.store.data().has_looked_outside() {
        true => Tried::With(stage.job.environment()),
        false => Tried::Alone,
    };
    started.map(tried).map_err(|fault| {
        let before = notes.first().map(|note| format!("; {note}")).unwrap_or_default();
        let detail = format!("the function does not start: {}{before}", fault.detail);
        Refused::unfit(detail, "correct its start, or say snapshot = \"off\" in hob.toml to deploy it untried")
    })
}

/// What starts instances of code that was compiled here.
fn runner(stage: &Stage<'_>) -> Result<crate::engine::Engine, Fault> {
    crate::engine::Engine::for_build(stage.shape.lane, stage.engine.clone()).map_err(Fault::internal)
}

/// Maps the native code that was written.
fn load(stage: &Stage<'_>, native: &Path) -> std::io::Result<Code> {
    let code = Code::load_own(&stage.engine, stage.shape.kind, &std::fs::File::open(native)?);
    code.map_err(|error| match trap::errno(&error) {
        Some(errno) => std::io::Error::from_raw_os_error(errno),
        None => std::io::Error::other(format!("{error:#}")),
    })
}

/// What the bytes are, and the bytes to compile: a module that is to become a component is made one first.
fn detect(wasm: Vec<u8>) -> Result<(Found, Vec<u8>), Refused> {
    let surface = Surface::of(&wasm)?;
    let Some(model) = surface.unfinished() else { return Ok((surface.found()?, wasm)) };
    let component = componentize(&wasm, model)?;
    Ok((Surface::of(&component)?.found()?, component))
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
fn check_code(stage: &Stage<'_>, found: &Found, code: &Code) -> Result<(), Refused> {
    match code {
        Code::Module(module) => check_module(&stage.engine, found.shape.kind, module),
        Code::Component(component) => check_component(&stage.engine, found, component),
    }
}

/// Validation failed, or the module needs a proposal that is off.
fn invalid(error: &wasmtime::Error) -> Refused {
    let detail = format!("the module is not valid here: {}", sentence(format_args!("{error:#}")));
    Refused::unfit(
        detail,
        "build it without threads, memory64, GC, exceptions and custom page sizes, which this host does not run",
    )
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
            format!("core modules may import '{MODULE}', 'wasi_snapshot_preview1' and 'wasi_unstable'; build for wasm32-wasip1"),
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
        let outputs = |name: &str| Outputs { native: dir.path().join(name), snapshot: dir.path().join("snapshot") };
        let work = |input: &[u8], name: &str| work(&mut &input[..], &outputs(name));
        let job = Job::deploy(&"a".parse().unwrap(), &Manifest::default()).to_bytes().unwrap();
        let wasm = wat::parse_str("(module (memory (export \"memory\") 1) (func (export \"_start\")))").unwrap();
        let input = [&job[..], &wasm].concat();
        assert!(work(&input, "native").is_ok());
        let errno = |result| match result {
            Err(Failure::Io(error)) => error.raw_os_error(),
            _ => panic!("a failure of the node"),
        };
        assert_eq!(errno(work(&input, "native")), Some(rustix::io::Errno::EXIST.raw_os_error()));
        assert_eq!(errno(work(&input, "no/folder")), Some(rustix::io::Errno::NOENT.raw_os_error()));
        assert_eq!(errno(work(&job[..job.len() - 1], "other")), None, "a job that breaks off");
        assert!(matches!(work(&input[..input.len() - 1], "other"), Err(Failure::Refused(_))), "a module that does");
    }
}
