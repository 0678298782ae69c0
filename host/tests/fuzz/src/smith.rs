//! Modules that nobody wrote: made by `wasm-smith`, deployed and invoked as anybody's.

use anyhow::{Context as _, bail, ensure};
use arbitrary::Unstructured;
use hob::invocation::Start;

use crate::dice::Dice;
use crate::local::{Ended, Local, get, runtime};
use crate::report::Report;

const MANIFEST: &str = "[limits]\ncpu = '10ms'\nwall = '1s'\nmemory = '16MiB'";
/// What a module takes for its shape, in bytes of chance.
const SEED_LEN: usize = 2048;

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let local = Local::start(&["data.revisions_max=1"])?;
    let runtime = runtime()?;
    for number in 0..runs {
        let wasm = module(&mut Dice::new(seed, number)).with_context(|| format!("module {number}"))?;
        let name = format!("f{}", number % 8);
        let function = match local.deploy(&name, &wasm, MANIFEST)? {
            Ok(function) => function,
            Err(fault) => {
                ensure!(fault.code.as_str() != "internal", "module {number} at deploy: {fault}");
                report.count(fault.code.as_str());
                continue;
            }
        };
        for start in [None, Some(Start::Stored)] {
            let end = match runtime.block_on(local.invoke(&function, get("/")?, start)) {
                Ended::Answered(status, _) => {
                    ensure!(status != 500, "module {number} answered 500");
                    "answered".into()
                }
                Ended::Failed(code, detail) => {
                    ensure!(code.as_str() != "internal", "module {number}: {code}, {detail}");
                    code.to_string()
                }
            };
            report.count(&end);
        }
    }
    if report.of("answered") == 0 {
        bail!("no module ever answered: that is no test of what runs");
    }
    local.stop();
    Ok(())
}

/// A core module that has the entry of a command, and perhaps calls of WASI.
fn module(dice: &mut Dice) -> anyhow::Result<Vec<u8>> {
    let config = |dice: &mut Dice| wasm_smith::Config {
        max_imports: 0,
        max_memories: 1 + dice.below(2),
        max_tables: 1 + dice.below(4),
        max_instructions: 200,
        max_memory32_bytes: 4 << 20,
        allow_start_export: dice.one_in(4),
        threads_enabled: false,
        shared_everything_threads_enabled: false,
        gc_enabled: false,
        exceptions_enabled: dice.one_in(20),
        memory64_enabled: dice.one_in(20),
        custom_page_sizes_enabled: false,
        wide_arithmetic_enabled: false,
        tail_call_enabled: dice.one_in(2),
        export_everything: false,
        exports: Some(exports()),
        ..wasm_smith::Config::default()
    };
    // Not every string of chance has a module in it.
    for _ in 0..64 {
        let bytes = dice.bytes(SEED_LEN);
        if let Ok(module) = wasm_smith::Module::new(config(dice), &mut Unstructured::new(&bytes)) {
            return Ok(module.to_bytes());
        }
    }
    bail!("64 strings of chance had no module in them")
}

/// The exports of a command.
fn exports() -> Vec<u8> {
    wat::parse_str("(module (func (export \"_start\")) (memory (export \"memory\") 1))").unwrap_or_default()
}
