//! Mutated modules: each is built or refused in a typed answer, by the build's own entry in this process and by the real child.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use anyhow::ensure;
use hob::engine::build::Job;
use hob::engine::build::child::{Made, make_here};
use hob::manifest::Manifest;

use crate::corpus::Corpus;
use crate::dice::Dice;
use crate::local::{Local, on_all_threads};
use crate::report::Report;

/// Longest module; the caps of longer ones have tests of their own.
const LEN_MAX: usize = 64 << 10;

/// Runs what guests declare only to a limit that a million of them can have.
const MANIFEST: &str = "[limits]\ncpu = '20ms'\nwall = '1s'\nmemory = '16MiB'\n[snapshot]\nwarmup = ['GET /']";

/// How hard `wasm-mutate` looks for a change that leaves a module valid.
const FUEL: u64 = 100;

/// Input number `number`. Half of them have their bytes changed, and few of those come past the first check; in the others functions, types,
/// tables and segments were changed as such, and one in eight of those has bytes changed besides.
fn input(corpus: &Corpus, dice: &mut Dice, number: u64) -> Vec<u8> {
    if number < corpus.saved() || dice.one_in(2) {
        return corpus.input(dice, number, LEN_MAX);
    }
    let mut wasm = corpus.pick(dice).to_vec();
    for _ in 0..=dice.below(4) {
        // It knows core modules alone, and finds no change for some.
        let Some(next) = changed(&wasm, dice) else { break };
        if next.len() <= LEN_MAX {
            wasm = next;
        }
    }
    if dice.one_in(8) {
        let other = corpus.pick(dice).to_vec();
        dice.mutate(&mut wasm, &other, LEN_MAX);
    }
    wasm
}

/// A module with one change.
fn changed(wasm: &[u8], dice: &mut Dice) -> Option<Vec<u8>> {
    let seed = dice.next();
    let bytes = move |data: &mut Vec<u8>, len_max: usize| {
        Dice::new(seed, 0).mutate(data, &[], len_max.min(LEN_MAX));
        Ok(())
    };
    // Some of what it is given is no module at all, and what it makes of that is nobody's fault.
    let change = || {
        let mut mutate = wasm_mutate::WasmMutate::default();
        mutate.seed(seed).fuel(FUEL).raw_mutate_func(Some(Arc::new(bytes)));
        let mut changed = mutate.run(wasm).ok()?;
        changed.next()?.ok()
    };
    catch_unwind(AssertUnwindSafe(change)).unwrap_or(None)
}

pub(crate) fn in_process(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let corpus = Corpus::of("modules", [])?;
    let job = Job::deploy(&"fuzzed".parse()?, &Manifest::parse(MANIFEST)?);
    let job = Job { init: std::time::Duration::from_millis(20), snapshot_bytes_max: 16 << 20, ..job };
    on_all_threads(report, runs, |runs, report| {
        let dir = tempfile::tempdir()?;
        for number in runs {
            let input = input(&corpus, &mut Dice::new(seed, number), number);
            report.count(corpus.check(&input, |input| make(&job, input, dir.path()))?);
        }
        Ok(())
    })
}

/// What the build's entry says of a module.
fn make(job: &Job, wasm: &[u8], dir: &Path) -> anyhow::Result<&'static str> {
    let (native, snapshot) = (dir.join("native"), dir.join("snapshot"));
    for path in [&native, &snapshot] {
        drop(std::fs::File::create(path)?);
    }
    Ok(match make_here(job, wasm.to_vec(), &native, &snapshot)? {
        Made::Built(built) if built.snapshot.is_some() => "built with a snapshot",
        Made::Built(_) => "built",
        Made::Refused(refused) => {
            ensure!(!refused.detail.is_empty() && refused.detail.len() < 4096, "refused with {:?}", refused.detail);
            "refused"
        }
    })
}

pub(crate) fn through_the_child(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let corpus = Corpus::of("modules", [])?;
    let local = Local::start(&["data.revisions_max=1"])?;
    for number in 0..runs {
        let input = input(&corpus, &mut Dice::new(seed, number), number);
        let end = corpus.check(&input, |input| {
            // Its first bytes are looked at while an upload comes.
            let input = [&b"\0asm"[..], input.get(4..).unwrap_or_default()].concat();
            match local.deploy(&format!("f{}", number % 8), &input, MANIFEST)? {
                Ok(_) => Ok("deployed"),
                Err(fault) => {
                    ensure!(fault.code.as_str() != "internal", "{fault}");
                    Ok(fault.code.as_str())
                }
            }
        })?;
        report.count(end);
    }
    local.stop();
    Ok(())
}
