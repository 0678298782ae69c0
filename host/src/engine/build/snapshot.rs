//! Snapshots: a module as it is after its initialisation.
//!
//! Owns what is run before the memory is kept, what makes a guest unfit for it, and the rewriting of the module, which is
//! `wasmtime-wizer`'s. Knows nothing about files. Invariant: what comes out was initialised with no capability but its own
//! memory, and holds nothing that lives outside of it.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, resume_unwind};

use futures_util::FutureExt as _;
use wasmtime::component::{Component, Lift, WasmList};
use wasmtime::{Module, Val};
use wasmtime_wizer::{ComponentInstanceState, InstanceState, SnapshotVal, ValType, Wizer};

use super::Refused;
use super::child::check_code;
use super::detect::Found;
use super::native::PAGE;
use super::rehearsal::{Instance, Rehearsal, Stage, Start, Times};
use crate::capability::{Environment, Host};
use crate::engine::artifact::Code;
use crate::engine::{Engine, Kind, settings};
use crate::fault::{Code as FaultCode, Fault};
use crate::manifest::Randomness;

/// A module with its memory.
pub(super) struct Snapshot {
    pub(super) wasm: Vec<u8>,
    /// Bytes of memory that it restores.
    pub(super) memory_bytes: u64,
    /// What the warm-up requests were answered with.
    pub(super) statuses: Vec<u16>,
    /// What its author should know.
    pub(super) notes: Vec<String>,
}

/// Why there is none, and what to do about it.
#[derive(Debug)]
pub(super) struct Unfit {
    pub(super) reason: String,
    pub(super) hint: &'static str,
}

impl Unfit {
    pub(super) fn new(reason: impl Into<String>, hint: &'static str) -> Self {
        Self { reason: reason.into(), hint }
    }
}

/// What became of it.
pub(super) enum Taken {
    Snapshot(Box<Snapshot>),
    /// There is nothing to run that would be worth keeping.
    Nothing,
    Unfit(Unfit),
}

const HINT_INIT: &str = concat!("correct it and deploy again, or say ", off!());
const HINT_MEMORY: &str = concat!("raise 'memory' in [limits] of hob.toml, or say ", off!());
const HINT_WARMUP: &str = "correct it and deploy again, or say mode = \"off\" in [snapshot] of hob.toml";
const HINT_HANDLES: &str = "do not print, and keep no stream, connection or timer during warm-up; or build a core module, whose \
                            standard streams survive a snapshot";
const HINT_FOLDERS: &str = concat!("open files when a request comes, not in initialisation or warm-up, or say ", off!());
const HINT_VARIABLES: &str = concat!("read variables when a request comes, or say ", off!());
const HINT_SECRET: &str = concat!(
    "read variables when a request comes, let initialisation read the secret (init = true in [grants] secrets), or say ",
    off!()
);
const HINT_INPUT: &str = concat!("read the input in '_start', or say ", off!());
const HINT_RESOURCES: &str = concat!("build its parts without resources, or say ", off!());
const HINT_MAXIMUM: &str = "build it without a maximum of its memory, or with one that leaves 128 KiB free";
const HINT_DESCRIPTORS: &str = "close in initialisation and warm-up what is opened there, and leave the standard streams and the granted \
                                folders as they are";

/// Initialises `wasm` and takes its snapshot.
///
/// # Errors
/// When the manifest says that such a function must not be deployed at all.
pub(super) async fn take(stage: &Stage<'_>, found: &Found, wasm: &[u8]) -> Result<Taken, Refused> {
    let manifest = &stage.job.snapshot;
    if manifest.warmup.is_empty() && found.init.is_none() && !found.has_start {
        return Ok(Taken::Nothing);
    }
    if stage.shape.kind.is_command() && !manifest.warmup.is_empty() {
        return Ok(Taken::Unfit(Unfit::new(
            "a command runs to its end once, so it cannot be asked in advance",
            "leave the warm-up requests out; what is to be kept goes into an exported function 'wizer-initialize'",
        )));
    }
    if found.has_resources {
        return Ok(Taken::Unfit(Unfit::new(
            "the component makes handles to resources of its own, and one that it keeps would be dead in every instance made of the snapshot",
            HINT_RESOURCES,
        )));
    }
    if found.has_hidden_state {
        return Ok(Taken::Unfit(unsuited(&"a module in it has a memory or a global and exports nothing")));
    }
    let taken = match stage.shape.kind {
        Kind::Handler | Kind::Command => of_module(stage, found, wasm).await,
        _ => of_component(stage, found, wasm).await,
    };
    match taken {
        Ok((snapshot, drawn)) => judge(manifest.randomness, snapshot, drawn),
        Err(unfit) => Ok(Taken::Unfit(unfit)),
    }
}

/// What the numbers that were drawn mean.
fn judge(randomness: Randomness, mut snapshot: Snapshot, drawn: u64) -> Result<Taken, Refused> {
    if drawn > 0 {
        let times = if drawn == 1 { "once".into() } else { format!("{drawn} times") };
        let detail = format!(
            "initialisation and warm-up drew random numbers ({times}): what is kept of them is the same in every instance made of the snapshot"
        );
        if randomness == Randomness::Refuse {
            let hint = "draw them neither in initialisation nor in a warm-up request; in Rust, std's HashMap draws its keys when the first is made, and \
                        hob_sdk::RandomState when it is made: make neither before, but a BTreeMap or a hasher with keys of its own";
            return Err(Refused::unfit(detail, hint));
        }
        snapshot.notes.push(format!("{detail}; draw secrets only when a request comes"));
    }
    Ok(Taken::Snapshot(Box::new(snapshot)))
}

/// Whether a guest that has warmed up may be kept.
async fn check(rehearsal: &mut Rehearsal, statuses: &[u16], stage: &Stage<'_>) -> Result<u64, Unfit> {
    for (status, request) in statuses.iter().zip(&stage.job.snapshot.warmup) {
        if *status >= 500 {
            let reason = format!("the warm-up request {} {} was answered with {status}", request.method, request.path);
            return Err(Unfit::new(reason, HINT_WARMUP));
        }
    }
    let host: &mut Host = rehearsal.store.data_mut();
    if host.holds_handles() {
        let reason = "the guest holds a handle to something outside of its memory (printing opens one), which would be dead, or another \
                      thing's, in every instance made of the snapshot";
        return Err(Unfit::new(reason, HINT_HANDLES));
    }
    if host.holds_descriptors().await.map_err(|error| unsuited(&error))? {
        let reason = "the guest has a file or a folder open, or has closed a descriptor that every instance begins with: the number would be \
                      dead, or another file's, in every instance made of the snapshot";
        return Err(Unfit::new(reason, HINT_DESCRIPTORS));
    }
    if let Some(unfit) = looked(host, stage) {
        return Err(unfit);
    }
    if rehearsal.holds_streams() {
        let reason = "the guest holds a stream, a future or a task of WASI 0.3, which would be dead, or another's, in every instance made of the \
                      snapshot";
        return Err(Unfit::new(reason, HINT_HANDLES));
    }
    let host: &mut Host = rehearsal.store.data_mut();
    let (bytes, max) = (host.memory.peak() as u64, stage.job.snapshot_bytes_max);
    if bytes > max {
        let reason = format!("the guest has {bytes} bytes of memory after its initialisation, and a snapshot has at most {max}");
        return Err(Unfit::new(reason, "keep less, or raise build.snapshot_bytes_max of the node"));
    }
    Ok(bytes)
}

/// What the guest asked for and an invocation has, but initialisation has not: whether it remembers the refusal cannot be seen.
fn missed(host: &Host, stage: &Stage<'_>) -> Vec<String> {
    let Environment { secrets, data, egress, .. } = &*host.environment;
    let missed = [
        (secrets.was_missed(), "a secret that is granted without init = true"),
        (data.was_missed() && stage.job.has_data, "a bucket"),
        (egress.was_missed() && stage.job.has_http, "an answer from the network"),
    ];
    let note = |what: &str| {
        format!(
            "initialisation or warm-up asked for {what} and was refused: what the function remembers of that, every instance made of the \
             snapshot remembers; ask when a request comes"
        )
    };
    missed.into_iter().filter(|(was, _)| *was).map(|(_, what)| note(what)).collect()
}

/// Whether the guest has looked at something of which an invocation has more: what it remembers lacks that.
fn looked(host: &Host, stage: &Stage<'_>) -> Option<Unfit> {
    if host.has_looked_at_folders && stage.job.has_mounts {
        let reason = "the guest has looked at its folders, and those that are buckets are there for requests alone: no instance made of the \
                      snapshot would find them";
        return Some(Unfit::new(reason, HINT_FOLDERS));
    }
    if host.stdio.has_missed_input() {
        let reason = "the guest has read its input, which is a request's body and there for requests alone: an instance made of the snapshot may \
                      remember that there was none";
        return Some(Unfit::new(reason, HINT_INPUT));
    }
    if !host.has_read_variables {
        return None;
    }
    let hidden = stage.job.secrets.grants.iter().find(|grant| grant.env.is_some() && !grant.init);
    let (what, hint) = match hidden {
        Some(grant) => (format!("that of the secret '{}' is", grant.name), HINT_SECRET),
        None if stage.shape.kind.is_command() => ("those of a request are".into(), HINT_VARIABLES),
        None => return None,
    };
    let reason = format!(
        "the guest has read its variables, and {what} there for requests alone: no instance made of the snapshot would find it"
    );
    Some(Unfit::new(reason, hint))
}

fn init_times(stage: &Stage<'_>) -> Times {
    Times { cpu: stage.job.init, wall: stage.job.init }
}

async fn of_module(stage: &Stage<'_>, found: &Found, wasm: &[u8]) -> Result<(Snapshot, u64), Unfit> {
    let mut wizer = Wizer::new();
    if let Some(init) = found.init {
        wizer.init_func(init);
    }
    let (context, instrumented) = wizer.instrument(wasm).map_err(|error| unsuited(&error))?;
    let engine = settings::initialising(stage.shape.lane).map_err(|error| unsuited(&error))?;
    let code = Code::Module(Module::from_binary(&engine, &instrumented).map_err(|error| unsuited(&error))?);
    drop(instrumented);
    let (mut rehearsal, statuses, memory_bytes) = rehearse(stage, found, engine, &code).await?;
    let Instance::Module(instance) = rehearsal.instance else { return Err(unsuited(&"a component came of a module")) };
    let (drawn, notes) = (rehearsal.store.data().drawn, missed(rehearsal.store.data(), stage));
    let mut state = ModuleState { rehearsal: &mut rehearsal, instance, outlined: Outlined::default(), missing: None };
    let wasm = wizer.snapshot(&context, &mut state).await.map_err(|error| unsuited(&error))?;
    match state.missing {
        Some(name) => Err(unsuited(&format!("'{name}' could not be read"))),
        None => Ok((Snapshot { wasm, memory_bytes, statuses, notes }, drawn)),
    }
}

async fn of_component(stage: &Stage<'_>, found: &Found, wasm: &[u8]) -> Result<(Snapshot, u64), Unfit> {
    let mut wizer = Wizer::new();
    // It would take the export out of the core module, which the component around it still names.
    wizer.keep_init_func(true);
    let (context, instrumented) = wizer.instrument_component(wasm).map_err(|error| unsuited(&error))?;
    let engine = settings::initialising(stage.shape.lane).map_err(|error| unsuited(&error))?;
    let code = Code::Component(Component::from_binary(&engine, &instrumented).map_err(|error| unsuited(&error))?);
    drop(instrumented);
    let (mut rehearsal, statuses, memory_bytes) = rehearse(stage, found, engine, &code).await?;
    let Instance::Component(instance) = rehearsal.instance else { return Err(unsuited(&"a module came of a component")) };
    let (drawn, notes) = (rehearsal.store.data().drawn, missed(rehearsal.store.data(), stage));
    // Wizer has a page added to a memory each time that it reads it: not the guest's doing.
    rehearsal.store.data_mut().memory.exempt(true);
    let mut state = ComponentState { rehearsal: &mut rehearsal, instance, outlined: Outlined::default(), failed: None };
    // Of a memory that could not be read it asserts that it could.
    let taken = AssertUnwindSafe(wizer.snapshot_component(&context, &mut state)).catch_unwind().await;
    match (state.failed, taken) {
        (Some(error), _) => {
            let reason =
                format!("a memory of the component cannot be read, for which a page has to be added to it twice: {error:#}");
            Err(Unfit::new(unsuited(&reason).reason, HINT_MAXIMUM))
        }
        (None, Ok(wasm)) => {
            let wasm = wasm.map_err(|error| unsuited(&error))?;
            Ok((Snapshot { wasm, memory_bytes, statuses, notes }, drawn))
        }
        (None, Err(panic)) => resume_unwind(panic),
    }
}

/// Initialises and warms up.
async fn rehearse(
    stage: &Stage<'_>,
    found: &Found,
    engine: wasmtime::Engine,
    code: &Code,
) -> Result<(Rehearsal, Vec<u16>, u64), Unfit> {
    // What lacks an import cannot be tried, and says so better here.
    check_code(&engine, found, code).map_err(|refused| match refused.hint {
        Some(hint) => Unfit::new(format!("{}; {hint}", refused.detail), HINT_INIT),
        None => Unfit::new(refused.detail, HINT_INIT),
    })?;
    let engine = Engine::for_build(stage.shape.lane, engine).map_err(|error| unsuited(&error))?;
    let mut rehearsal = Rehearsal::start(stage, &engine, code, init_times(stage), Start::Initialising)
        .await
        .map_err(|fault| Unfit::new(format!("initialisation failed: {}", fault.detail), hint(&fault, HINT_INIT)))?;
    let statuses = rehearsal
        .ask_all(&stage.job.snapshot.warmup)
        .await
        .map_err(|fault| Unfit { hint: hint(&fault, HINT_WARMUP), reason: fault.detail.into_owned() })?;
    let bytes = check(&mut rehearsal, &statuses, stage).await?;
    Ok((rehearsal, statuses, bytes))
}

/// What to do about a guest that failed.
fn hint(fault: &Fault, usual: &'static str) -> &'static str {
    match fault.code {
        FaultCode::GuestMemory => HINT_MEMORY,
        _ => usual,
    }
}

fn unsuited(error: &dyn std::fmt::Display) -> Unfit {
    let text: String = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ").chars().take(400).collect();
    Unfit::new(
        format!("this module cannot be snapshotted: {text}"),
        concat!("rebuild it without what is named here, or if it need not be snapshotted say ", off!()),
    )
}

/// Memories that wizer has read once.
///
/// Wizer reads each memory twice, first to find what is not zero and then to copy it. Of the first reading it notes 24 bytes for each
/// run of bytes with no zero in it, which for a table of small numbers is several times the table. So it is shown an outline first, in
/// which whole pages are zero or not: what it copies then are whole pages, which is what a memory image is made of anyway.
#[derive(Default)]
struct Outlined(HashSet<String>);

impl Outlined {
    /// Shows `contents` the memory that goes by `name`.
    fn show(&mut self, name: &str, memory: &[u8], contents: impl FnOnce(&[u8])) {
        if self.0.insert(name.into()) { contents(&outline(memory)) } else { contents(memory) }
    }
}

/// Ones where a page holds anything, zeros elsewhere.
fn outline(memory: &[u8]) -> Vec<u8> {
    let mut outline = vec![0; memory.len()];
    for (page, drawn) in memory.chunks(PAGE).zip(outline.chunks_mut(PAGE)) {
        if page.iter().any(|byte| *byte != 0) {
            drawn.fill(1);
        }
    }
    outline
}

struct ModuleState<'a> {
    rehearsal: &'a mut Rehearsal,
    instance: wasmtime::Instance,
    outlined: Outlined,
    missing: Option<String>,
}

impl InstanceState for ModuleState<'_> {
    async fn global_get(&mut self, name: &str, _: ValType) -> SnapshotVal {
        let store = &mut self.rehearsal.store;
        match self.instance.get_global(&mut *store, name).map(|global| global.get(&mut *store)) {
            Some(Val::I32(value)) => SnapshotVal::I32(value),
            Some(Val::I64(value)) => SnapshotVal::I64(value),
            Some(Val::F32(bits)) => SnapshotVal::F32(bits),
            Some(Val::F64(bits)) => SnapshotVal::F64(bits),
            Some(Val::V128(value)) => SnapshotVal::V128(value.as_u128()),
            _ => {
                self.missing.get_or_insert_with(|| name.into());
                SnapshotVal::I32(0)
            }
        }
    }

    async fn memory_contents(&mut self, name: &str, contents: impl FnOnce(&[u8]) + Send) {
        match self.instance.get_memory(&mut self.rehearsal.store, name) {
            Some(memory) => self.outlined.show(name, memory.data(&self.rehearsal.store), contents),
            None => {
                self.missing.get_or_insert_with(|| name.into());
            }
        }
    }
}

struct ComponentState<'a> {
    rehearsal: &'a mut Rehearsal,
    instance: wasmtime::component::Instance,
    outlined: Outlined,
    failed: Option<wasmtime::Error>,
}

impl ComponentState<'_> {
    async fn try_call<R: Lift + Send + Sync + 'static>(&mut self, instance: &str, name: &str) -> wasmtime::Result<R> {
        let store = &mut self.rehearsal.store;
        let found = self.instance.get_export_index(&mut *store, None, instance);
        let found = found.and_then(|at| self.instance.get_export_index(&mut *store, Some(&at), name));
        let found = found.ok_or_else(|| wasmtime::format_err!("'{instance}' has no '{name}'"))?;
        let function = self.instance.get_typed_func::<(), (R,)>(&mut *store, found)?;
        Ok(function.call_async(&mut *store, ()).await?.0)
    }

    async fn call<R: Lift + Default + Send + Sync + 'static>(&mut self, instance: &str, name: &str) -> R {
        match self.try_call(instance, name).await {
            Ok(value) => value,
            Err(error) => {
                self.failed.get_or_insert(error);
                R::default()
            }
        }
    }
}

impl ComponentInstanceState for ComponentState<'_> {
    async fn call_func_ret_list_u8(&mut self, instance: &str, func: &str, contents: impl FnOnce(&[u8]) + Send) {
        match self.try_call::<WasmList<u8>>(instance, func).await {
            Ok(list) => self.outlined.show(func, list.as_le_slice(&self.rehearsal.store), contents),
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    async fn call_func_ret_s32(&mut self, instance: &str, func: &str) -> i32 {
        self.call(instance, func).await
    }

    async fn call_func_ret_s64(&mut self, instance: &str, func: &str) -> i64 {
        self.call(instance, func).await
    }

    async fn call_func_ret_f32(&mut self, instance: &str, func: &str) -> u32 {
        self.call::<f32>(instance, func).await.to_bits()
    }

    async fn call_func_ret_f64(&mut self, instance: &str, func: &str) -> u64 {
        self.call::<f64>(instance, func).await.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outline_is_of_whole_pages_and_shown_once() {
        let mut memory = vec![0; 3 * PAGE];
        (memory[0], memory[3 * PAGE - 1]) = (7, 8);
        let mut seen = Vec::new();
        let mut outlined = Outlined::default();
        for name in ["a", "b", "a"] {
            outlined.show(name, &memory, |bytes| seen.push(bytes.to_vec()));
        }
        let outline = [[1; PAGE], [0; PAGE], [1; PAGE]].concat();
        assert_eq!(seen, [&outline, &outline, &memory].map(Vec::clone));
    }
}
