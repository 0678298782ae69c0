//! Mutated modules: each is built or refused in a typed answer, by the build's own entry in this process and by the real child.

use std::path::Path;

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

pub(crate) fn in_process(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let corpus = Corpus::of("modules", [])?;
    let job = Job::deploy(&"fuzzed".parse()?, &Manifest::parse(MANIFEST)?);
    let job = Job { init: std::time::Duration::from_millis(20), snapshot_bytes_max: 16 << 20, ..job };
    on_all_threads(report, runs, |runs, report| {
        let dir = tempfile::tempdir()?;
        for number in runs {
            let input = corpus.input(&mut Dice::new(seed, number), number, LEN_MAX);
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
        let input = corpus.input(&mut Dice::new(seed, number), number, LEN_MAX);
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
