//! How many calls of the system processes make, of all kinds: those for sockets too, which [`crate::process::Counters`] has not.
//!
//! Counted by `perf stat`, which stands beside the processes and slows them: never within a pass that is timed. Where there is no
//! `perf`, or the kernel does not let it count, the figure is skipped by name.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::report::Report;

const EVENT: &str = "raw_syscalls:sys_enter";

/// Does `work`, and counts the calls that `processes` made meanwhile; `None` where they cannot be counted, which the report says.
pub(crate) fn during(
    report: &Report,
    processes: &[u32],
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<f64>> {
    if let Err(error) = try_out() {
        report.note(&format!("skipped: calls of the system: {error:#}"));
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let counts = dir.path().join("counts");
    let mut perf = Perf::start(&counts, processes)?;
    if let Err(error) = perf.say("enable") {
        report.note(&format!("skipped: calls of the system: {error:#}"));
        return Ok(None);
    }
    work()?;
    perf.say("disable")?;
    perf.stop(&counts).map(Some)
}

/// Whether `perf` can count them here.
fn try_out() -> anyhow::Result<()> {
    let mut command = Command::new("perf");
    let tried = command.args(["stat", "-e", EVENT, "true"]).stdin(Stdio::null()).output().context("'perf' does not start")?;
    let said = String::from_utf8_lossy(&tried.stderr);
    ensure!(tried.status.success(), "'perf' cannot count them: {}", said.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(())
}

/// A `perf stat` that counts when it is told to.
struct Perf {
    child: Child,
    told: ChildStdin,
    answers: ChildStdout,
}

impl Perf {
    fn start(counts: &Path, processes: &[u32]) -> anyhow::Result<Self> {
        let processes = processes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new("perf");
        command.args(["stat", "--delay=-1", "-x,", "-e", EVENT, "-p", &processes, "--control=fd:0,1", "-o"]).arg(counts);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (told, answers) = child.stdin.take().zip(child.stdout.take()).context("perf has no pipes")?;
        Ok(Self { child, told, answers })
    }

    /// Says a word, and waits until it was understood.
    fn say(&mut self, word: &str) -> anyhow::Result<()> {
        writeln!(self.told, "{word}")?;
        let mut answer = [0; 5];
        self.answers.read_exact(&mut answer).context("perf ended before it was told to")?;
        ensure!(&answer == b"ack\n\0", "perf answers {:?}", String::from_utf8_lossy(&answer));
        Ok(())
    }

    fn stop(mut self, counts: &Path) -> anyhow::Result<f64> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("perf has no number")?;
        // That is how it is told to write what it has.
        kill_process(pid, Signal::INT)?;
        self.child.wait()?;
        let text = fs::read_to_string(counts)?;
        let line = text.lines().find(|line| line.contains(EVENT)).with_context(|| format!("perf counted nothing: '{text}'"))?;
        line.split(',').next().and_then(|count| count.parse().ok()).with_context(|| format!("perf says '{line}'"))
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
