//! The child process of a build.
//!
//! Owns what happens to a tenant's bytes: caps, kind, wrapping into a component, validation, linking, compilation. Invariant: the
//! walls stand before the first byte is read. It has no network, no data and no environment: one file to read, one to write, one
//! line to say.
//! (Initialisation and its snapshot belong between linking and compilation; they will run the guest here.)

use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, setrlimit};
use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{Engine, ExternType, Linker as ModuleLinker, Module, UnknownImportError};

use super::componentize::componentize;
use super::detect::{Found, Surface};
use super::{Built, CHILD_COMMAND, Refused, Report, sentence, signature};
use crate::capability::handler::{ENTRY, MODULE};
use crate::capability::{self, Host, INTERFACES};
use crate::engine::template::Entry;
use crate::engine::{Kind, settings};

/// Resource limits that the child sets on itself.
#[derive(Debug, Clone, Copy)]
pub struct Walls {
    /// Writable private memory in bytes (`RLIMIT_DATA`; `RLIMIT_AS` would break wasmtime's 4 GiB reservations).
    pub memory_bytes: u64,
    /// Processor time of all threads in seconds.
    pub cpu_seconds: u64,
}

/// Largest native file a build may write, in bytes.
const OUTPUT_BYTES_MAX: u64 = 2 << 30;
/// Files a build may have open.
const FILES_MAX: u64 = 64;

impl Walls {
    /// As arguments of the child.
    #[must_use]
    pub fn to_args(self) -> [String; 2] {
        [self.memory_bytes.to_string(), self.cpu_seconds.to_string()]
    }

    fn from_args(args: &[String]) -> Option<(Self, PathBuf)> {
        let [memory, cpu, output] = args else { return None };
        Some((Self { memory_bytes: memory.parse().ok()?, cpu_seconds: cpu.parse().ok()? }, output.into()))
    }

    /// Stands the walls up around this process.
    fn stand(self) -> std::io::Result<()> {
        let set = |resource, soft: u64, hard: u64| setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) });
        set(Resource::Data, self.memory_bytes, self.memory_bytes)?;
        // The kernel sends SIGXCPU at the soft limit, which tells this end apart from a kill by somebody else.
        set(Resource::Cpu, self.cpu_seconds, self.cpu_seconds + 2)?;
        set(Resource::Fsize, OUTPUT_BYTES_MAX, OUTPUT_BYTES_MAX)?;
        set(Resource::Nofile, FILES_MAX, FILES_MAX)?;
        set(Resource::Core, 0, 0)?;
        Ok(())
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
    let Some((walls, output)) = Walls::from_args(args) else {
        let _ = writeln!(std::io::stderr(), "{CHILD_COMMAND} is started by hob itself: expected memory, seconds and a file");
        return 2;
    };
    let done = walls.stand().map_err(Into::into).and_then(|()| work(&output));
    let said = done.and_then(|report| Ok(serde_json::to_writer(std::io::stdout(), &report)?));
    match said {
        Ok(()) => 0,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            1
        }
    }
}

/// Reads the module from standard input and writes its native code.
fn work(output: &Path) -> anyhow::Result<Report> {
    let mut wasm = Vec::new();
    std::io::stdin().lock().read_to_end(&mut wasm)?;
    let (found, wasm) = match detect(wasm) {
        Ok(function) => function,
        Err(refused) => return Ok(Report::Refused(refused)),
    };
    let engine = settings::compiling(found.shape.lane)?;
    let native = match compile(&engine, &found, &wasm) {
        Ok(native) => native,
        Err(refused) => return Ok(Report::Refused(refused)),
    };
    match std::fs::File::create_new(output).and_then(|mut file| file.write_all(&native)) {
        Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => {
            return Ok(Report::NoSpace);
        }
        written => written?,
    }
    Ok(Report::Built(Built { shape: found.shape.to_string(), memory_bytes_min: found.memory_bytes_min }))
}

/// What the bytes are, and the bytes to compile: a module that is to become a component is made one first.
fn detect(wasm: Vec<u8>) -> Result<(Found, Vec<u8>), Refused> {
    let surface = Surface::of(&wasm)?;
    let Some(model) = surface.unfinished() else { return Ok((surface.found()?, wasm)) };
    let component = componentize(&wasm, model)?;
    Ok((Surface::of(&component)?.found()?, component))
}

fn compile(engine: &Engine, found: &Found, wasm: &[u8]) -> Result<Vec<u8>, Refused> {
    match found.shape.kind {
        kind @ (Kind::Handler | Kind::Command) => {
            let module = Module::from_binary(engine, wasm).map_err(|error| invalid(&error))?;
            check_module(engine, kind, &module)?;
            module.serialize().map_err(|error| invalid(&error))
        }
        _ => {
            let component = Component::from_binary(engine, wasm).map_err(|error| invalid(&error))?;
            check_component(engine, found, &component)?;
            component.serialize().map_err(|error| invalid(&error))
        }
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
    if kind == Kind::Handler && is_bad("_initialize") {
        return Err(Refused::unfit("'_initialize' must be a function without parameters and results", "see guest-sdk/abi.md"));
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
            format!("core modules may import 'wasi_snapshot_preview1' and '{MODULE}'; build for wasm32-wasip1"),
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
    signature::check(kind, &pre).and_then(|()| Entry::of_component(kind, pre).map(drop)).map_err(|error| {
        let detail = format!("the component's entry is not what its name promises: {}", sentence(format_args!("{error:#}")));
        Refused::unfit(detail, "rebuild it with a current toolchain")
    })
}
