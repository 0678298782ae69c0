//! Host calls: any numbers for any parameter of any import, in any order, end in an answer of the call or in an end of the guest that is
//! its own. One guest imports all that a core module can have; what it calls with what is in its request.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use hob::capability::{Host, link_modules};
use hob::invocation::Payload;
use hob::registry::FunctionRecord;
use wasmtime::{ExternType, FuncType, ValType};

use crate::dice::Dice;
use crate::local::{Ended, Local, on_all_threads, runtime};
use crate::report::Report;

/// Calls of one invocation, at most.
const CALLS_MAX: usize = 24;
/// Bytes of one call in the request: which, and its arguments.
const CALL_LEN: usize = 4 + 8 * ARGS_MAX;
const ARGS_MAX: usize = 12;
/// Where the request is in the guest's memory; below it calls read and write as they like.
const PLACE: u32 = 96 << 10;
const MEMORY_LEN: u32 = 2 << 16;

const MANIFEST: &str = "[grants]\ndata = [{ bucket = 'd', access = 'read-write' }, { bucket = 'v', access = 'read-write' }]\n\
    [[bucket]]\nname = 'd'\n[[bucket]]\nname = 'v'\ndurability = 'volatile'\n[limits]\nwall = '2s'\ncpu = '200ms'\nmapped = '16MiB'\n\
    [snapshot]\nmode = 'off'";

/// Names of buckets, keys and paths, laid into the guest's memory so that some numbers mean something.
const WORDS: &str = "dvkey/../etc/passwd";

/// An import.
struct Import {
    module: String,
    name: String,
    ty: FuncType,
}

/// All functions that a core module may import, as the linker has them.
fn imports() -> anyhow::Result<Vec<Import>> {
    let mut config = wasmtime::Config::new();
    config.epoch_interruption(true);
    let engine = wasmtime::Engine::new(&config)?;
    let mut linker = wasmtime::Linker::<Host>::new(&engine);
    link_modules(&mut linker)?;
    let mut store = wasmtime::Store::new(&engine, Host::for_nobody());
    let mut imports: Vec<_> = linker
        .iter(&mut store)
        .map(|(module, name, item)| (module.to_owned(), name.to_owned(), item))
        .collect::<Vec<_>>()
        .into_iter()
        .filter_map(|(module, name, item)| match item.ty(&store) {
            ExternType::Func(ty) => Some(Import { module, name, ty }),
            _ => None,
        })
        .collect();
    imports.sort_by(|one, other| (&one.module, &one.name).cmp(&(&other.module, &other.name)));
    ensure!(imports.len() > 50, "{} imports are fewer than there are", imports.len());
    Ok(imports)
}

/// Calls what its request says.
fn wat(imports: &[Import]) -> anyhow::Result<String> {
    let (mut heads, mut cases, mut labels) = (String::new(), String::new(), String::new());
    for (number, Import { module, name, ty }) in imports.iter().enumerate() {
        let types = |types: &mut dyn Iterator<Item = ValType>| types.map(|ty| format!("{ty} ")).collect::<String>();
        let (params, results) = (types(&mut ty.params()), types(&mut ty.results()));
        writeln!(heads, "(import \"{module}\" \"{name}\" (func $f{number} (param {params}) (result {results})))")?;
        ensure!(ty.params().len() <= ARGS_MAX, "{name} has more parameters than a call has room for");
        let mut args = String::new();
        for (index, param) in ty.params().enumerate() {
            write!(args, "({param}.load (i32.add (local.get $at) (i32.const {})))", 4 + 8 * index)?;
        }
        let call = format!("(call $f{number} {args})");
        let drops = "(drop)".repeat(ty.results().len());
        writeln!(cases, ") {call} {drops} (br $next)")?;
        write!(labels, "{number} ")?;
    }
    let opens = "(block ".repeat(imports.len());
    let last = imports.len();
    let request_read = imports.iter().position(|import| import.name == "request_read").context("there is no request_read")?;
    // The body lies inline behind method, target and headers: its length is the last number of the head.
    Ok(format!(
        r#"(module {heads}
  (memory (export "memory") 2 64)
  (data (i32.const 0) "{WORDS}")
  (func (export "hob_handle") (local $at i32) (local $end i32)
    (local.set $end (i32.add (i32.const {PLACE}) (call $f{request_read} (i32.const {PLACE}) (i32.const 30000))))
    (local.set $at (i32.sub (local.get $end) (i32.load (i32.const {body_len}))))
    (block $done (loop $next_call
      (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
      (block $next {opens}
        (br_table {labels} {last} (i32.load (local.get $at)))
      {cases})
      (local.set $at (i32.add (local.get $at) (i32.const {CALL_LEN})))
      (br $next_call)))))"#,
        body_len = PLACE + 12,
    ))
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let imports = imports()?;
    let local = Local::start(&["logs.function_bytes=16KiB"])?;
    let wasm = wat::parse_str(wat(&imports)?)?;
    let function = local.deploy("prober", &wasm, MANIFEST)?.map_err(|fault| anyhow::anyhow!("{fault}"))?;
    on_all_threads(report, runs, |runs, report| {
        let runtime = runtime()?;
        for number in runs {
            let mut dice = Dice::new(seed, number);
            let end = runtime.block_on(probe(&local, &function, &imports, &mut dice));
            report.count(&end.with_context(|| format!("input {number}"))?);
        }
        Ok(())
    })?;
    local.stop();
    Ok(())
}

/// One invocation, and the calls it makes.
async fn probe(local: &Local, function: &FunctionRecord, imports: &[Import], dice: &mut Dice) -> anyhow::Result<String> {
    let mut body = Vec::new();
    let mut called = Vec::new();
    for _ in 0..=dice.below(CALLS_MAX) {
        let which = dice.below(imports.len());
        let name = imports[which].name.as_str();
        // What ends the guest at once is left to a few, and so is what only waits.
        if ["proc_exit", "poll_oneoff", "sched_yield"].contains(&name) && !dice.one_in(16) {
            continue;
        }
        called.push(name);
        body.extend(u32::try_from(which)?.to_le_bytes());
        for _ in 0..ARGS_MAX {
            body.extend(u64::from(dice.word(MEMORY_LEN)).to_le_bytes());
        }
    }
    let request = http::Request::post("/").header("host", "localhost").body(Payload::Whole(body.into()))?;
    let ended = local.invoke(function, request, None).await;
    tokio::task::yield_now().await;
    match ended {
        Ended::Answered(500, _) => Ok("its own failure".into()),
        Ended::Answered(..) => Ok("answered".into()),
        Ended::Failed(code, detail) => {
            ensure!(code.as_str() != "internal", "{code}: {detail}, after {called:?}");
            Ok(code.to_string())
        }
    }
}
