//! A guest that calls what its request says: any imports, in any order, with any numbers.

use std::fmt::Write as _;

use anyhow::{Context as _, ensure};
use hob::invocation::Payload;
use hob::registry::FunctionRecord;

use crate::dice::Dice;
use crate::local::{Ended, Local, on_all_threads, runtime};
use crate::report::Report;

/// Calls of one invocation, at most.
const CALLS_MAX: usize = 24;
/// Parameters of an import, at most: those of a component are 16 and a place for what it gives.
const ARGS_MAX: usize = 17;
/// Bytes of one call in the request: which, and its arguments.
const CALL_LEN: usize = 4 + 8 * ARGS_MAX;

/// The guest's first memory.
pub(crate) const MEMORY_LEN: u32 = 2 << 16;
/// Where the request is in it; below it calls read and write as they like.
pub(crate) const PLACE: u32 = 96 << 10;
/// Names of buckets, keys and paths, laid into the guest's memory so that some numbers mean something.
pub(crate) const WORDS: &str = "dvkey/../etc/passwd";

/// A grant of everything that needs no neighbour, and short limits.
const MANIFEST: &str = "[grants]\ndata = [{ bucket = 'd', access = 'read-write' }, { bucket = 'v', access = 'read-write' }]\n\
    [[bucket]]\nname = 'd'\n[[bucket]]\nname = 'v'\ndurability = 'volatile'\n[limits]\nwall = '2s'\ncpu = '200ms'\nmapped = '16MiB'\n\
    [snapshot]\nmode = 'off'";

/// An import, with the names of types that the text format has.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) module: String,
    pub(crate) name: String,
    pub(crate) params: Vec<String>,
    pub(crate) results: Vec<String>,
    /// Kind of the resource that a parameter is a handle to.
    pub(crate) handles: Vec<Option<usize>>,
    /// Handles that a call gives.
    pub(crate) gives: Vec<Given>,
}

/// A handle that a call gives, of this kind.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given {
    pub(crate) kind: usize,
    pub(crate) at: At,
}

/// Where a handle is that a call gives.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    /// It is the result.
    Result,
    /// It is the lower half of the result.
    LowHalf,
    /// It is the upper half.
    HighHalf,
    /// Behind the place that the last parameter names, if the byte there is this tag.
    Place { offset: usize, tag: Option<u8> },
}

impl Import {
    /// One without resources.
    pub(crate) fn plain(module: String, name: String, params: Vec<String>, results: Vec<String>) -> Self {
        let handles = vec![None; params.len()];
        Self { module, name, params, results, handles, gives: Vec::new() }
    }

    fn argument(&self, index: usize) -> String {
        let ty = &self.params[index];
        let given = format!("({ty}.load (i32.add (local.get $at) (i32.const {})))", 4 + 8 * index);
        match self.handles[index] {
            Some(kind) => format!("(call $handle (global.get $r{kind}) {given})"),
            None => given,
        }
    }

    /// A call with the arguments that lie at `$at`, and what becomes of its results.
    fn call(&self, number: usize) -> String {
        let args: String = (0..self.params.len()).map(|index| self.argument(index)).collect();
        // Left out where there is no handle of the kind yet.
        let kinds = self.handles.iter().enumerate().filter_map(|(index, kind)| Some((index, (*kind)?)));
        let skips: String = kinds.map(|(index, _)| format!("(br_if $next (i32.eqz {}))", self.argument(index))).collect();
        let call = format!("{skips} (call $f{number} {args})");
        let halves = self.gives.iter().any(|given| matches!(given.at, At::LowHalf | At::HighHalf));
        let result = match &self.gives[..] {
            [Given { kind, at: At::Result }] => format!("(global.set $r{kind})"),
            _ if halves => "(local.set $pair)".into(),
            _ => "(drop)".repeat(self.results.len()),
        };
        let keep = |Given { kind, at }: &Given| match at {
            At::Result => String::new(),
            At::LowHalf => format!("(global.set $r{kind} (i32.wrap_i64 (local.get $pair)))"),
            At::HighHalf => format!("(global.set $r{kind} (i32.wrap_i64 (i64.shr_u (local.get $pair) (i64.const 32))))"),
            At::Place { offset, tag } => {
                let place = self.argument(self.params.len() - 1);
                let take = format!("(global.set $r{kind} (i32.load offset={offset} {place}))");
                match tag {
                    Some(tag) => format!("(if (i32.eq (i32.load8_u {place}) (i32.const {tag})) (then {take}))"),
                    None => take,
                }
            }
        };
        format!("{call} {result} {}", self.gives.iter().map(keep).collect::<String>())
    }

    /// Whether it ends the guest at once, or only waits.
    fn is_the_end(&self) -> bool {
        let name = self.name.as_str();
        let waits = ["wait-for", "wait-until"];
        ["proc_exit", "poll_oneoff", "sched_yield", "exit", "exit-with-code", "poll"].contains(&name)
            || name.contains("block")
            || waits.contains(&name)
    }
}

/// The imports of a module in the text format; the function of the one with number N is `$fN`.
pub(crate) fn heads(imports: &[Import]) -> anyhow::Result<String> {
    let mut heads = String::new();
    for (number, Import { module, name, params, results, .. }) in imports.iter().enumerate() {
        ensure!(params.len() <= ARGS_MAX, "{name} has more parameters than a call has room for");
        let (params, results) = (params.join(" "), results.join(" "));
        writeln!(heads, "(import \"{module}\" \"{name}\" (func $f{number} (param {params}) (result {results})))")?;
    }
    Ok(heads)
}

/// Makes the calls that are in memory between the locals `$at` and `$end`; `$pair` is another local.
pub(crate) fn switch(imports: &[Import]) -> anyhow::Result<String> {
    let (mut cases, mut labels) = (String::new(), String::new());
    for (number, import) in imports.iter().enumerate() {
        writeln!(cases, ") {} (br $next)", import.call(number))?;
        write!(labels, "{number} ")?;
    }
    let (opens, last) = ("(block ".repeat(imports.len()), imports.len());
    Ok(format!(
        "(block $done (loop $next_call
          (br_if $done (i32.ge_u (local.get $at) (local.get $end)))
          (block $next {opens}
            (br_table {labels} {last} (i32.load (local.get $at)))
          {cases})
          (local.set $at (i32.add (local.get $at) (i32.const {CALL_LEN})))
          (br $next_call)))"
    ))
}

/// Numbers of handles from here on are passed as they are, others stand for the handle that there is.
pub(crate) const AS_IT_IS: u32 = 1 << 12;

/// What numbers a guest passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// Any.
    Wild,
    /// Often such as a call may go on with: where a number that is no handle ends the guest at once, it would never come to its second call.
    Likely,
}

impl Numbers {
    /// An argument of a call.
    fn draw(self, dice: &mut Dice, import: &Import, index: usize) -> u32 {
        if self == Self::Wild || dice.one_in(20) {
            return dice.word(MEMORY_LEN);
        }
        let is_handle = import.handles[index].is_some();
        let below = |dice: &mut Dice, bound| u32::try_from(dice.below(bound)).unwrap_or_default();
        // The last is most often a place for what a call gives.
        match (index + 1 == import.params.len(), dice.below(4)) {
            (true, 0..3) | (_, 0) if !is_handle => 8 * below(dice, PLACE as usize / 8),
            (_, 1) => below(dice, 40),
            _ => below(dice, 3),
        }
    }
}

/// Where a request has the calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carried {
    InBody,
    /// In hexadecimal digits.
    InPath,
}

/// Who makes the calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Guest<'a> {
    pub(crate) wasm: &'a [u8],
    pub(crate) imports: &'a [Import],
    pub(crate) numbers: Numbers,
    pub(crate) calls: Carried,
}

/// One invocation, and the calls it makes.
///
/// # Errors
/// When it ended in a way that would be Hob's own failure.
async fn probe(local: &Local, function: &FunctionRecord, guest: &Guest<'_>, dice: &mut Dice) -> anyhow::Result<String> {
    let Guest { imports, numbers, .. } = *guest;
    let mut body = Vec::new();
    let mut called = Vec::new();
    for _ in 0..=dice.below(CALLS_MAX) {
        let which = dice.below(imports.len());
        if imports[which].is_the_end() && !dice.one_in(16) {
            continue;
        }
        called.push(imports[which].name.as_str());
        body.extend(u32::try_from(which)?.to_le_bytes());
        let import = &imports[which];
        for index in 0..ARGS_MAX {
            let number = if index < import.params.len() { numbers.draw(dice, import, index) } else { 0 };
            body.extend(u64::from(number).to_le_bytes());
        }
    }
    let (path, body) = match guest.calls {
        Carried::InBody => ("/".into(), body),
        Carried::InPath => (body.iter().fold("/".to_owned(), |path, byte| format!("{path}{byte:02x}")), Vec::new()),
    };
    let request = http::Request::post(path).header("host", "localhost").body(Payload::Whole(body.into()))?;
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

pub(crate) fn number(imports: &[Import], module: &str, name: &str) -> anyhow::Result<usize> {
    let is_it = |import: &Import| import.name == name && import.module.starts_with(module);
    imports.iter().position(is_it).with_context(|| format!("there is no {name}"))
}

/// Runs inputs `0..runs` of a guest.
///
/// # Errors
/// The first input that broke something.
pub(crate) fn fuzz(report: &mut Report, guest: &Guest<'_>, runs: u64, seed: u64) -> anyhow::Result<()> {
    let local = Local::start(&["logs.function_bytes=16KiB"])?;
    let function = local.deploy("prober", guest.wasm, MANIFEST)?.map_err(|fault| anyhow::anyhow!("{fault}"))?;
    on_all_threads(report, runs, |runs, report| {
        let runtime = runtime()?;
        for number in runs {
            let mut dice = Dice::new(seed, number);
            let end = runtime.block_on(probe(&local, &function, guest, &mut dice));
            report.count(&end.with_context(|| format!("input {number}"))?);
        }
        Ok(())
    })?;
    local.stop();
    Ok(())
}
