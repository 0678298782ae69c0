//! What processes ask of the system: calls of all kinds, those for sockets too; the bytes that calls copy; and how often they make
//! something durable.
//!
//! Counted by `perf record`, which stands beside the processes and slows them: never within a pass that is timed. All threads count,
//! those that only wait for the time too, and children that are started meanwhile. Not counted: what is copied without a call, as by a
//! fault or within a process. Where there is no `perf`, or the kernel does not let it count, the figures are skipped by name.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::report::{Figure, Report};

const ENTER: &str = "raw_syscalls:sys_enter";
const EXIT: &str = "syscalls:sys_exit_";
/// Calls that return how many bytes they copied.
const COPYING: [&str; 14] = [
    "read", "write", "pread64", "pwrite64", "readv", "writev", "preadv", "pwritev", "preadv2", "pwritev2", "sendto", "sendmsg",
    "recvfrom", "recvmsg",
];
const DURABLE: [&str; 2] = ["fsync", "fdatasync"];
/// Room for events that `perf` has not read yet, for each processor.
const BUFFER: &str = "16M";

/// What was counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Calls {
    pub(crate) all: f64,
    /// That calls copied, either way: a byte that goes through a socket is copied twice.
    pub(crate) bytes: f64,
    pub(crate) fsyncs: f64,
}

/// A pass that counts.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    pub(crate) scenario: &'a str,
    pub(crate) system: &'a str,
    /// Of the times that the counters stand beside.
    pub(crate) metric: &'a str,
    /// What is done in the pass, and the bytes that each of it is about.
    pub(crate) count: usize,
    pub(crate) len: usize,
    /// Whose calls are counted.
    pub(crate) processes: &'a [u32],
}

impl Pass<'_> {
    /// Does `work` and prints what it took for each; `None` where that cannot be counted, which the report says.
    pub(crate) fn run(&self, report: &Report, work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Option<Calls>> {
        let Self { scenario, system, metric, count, len, processes } = *self;
        let Some(calls) = during(report, system, processes, work)? else { return Ok(None) };
        #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
        let (count, len) = (count as f64, len as f64);
        for (counter, value, unit) in [
            ("calls", calls.all, ""),
            ("bytes moved", calls.bytes, "B"),
            ("copies", calls.bytes / len, ""),
            ("fsyncs", calls.fsyncs, ""),
        ] {
            let (metric, value) = (format!("{metric} {counter} for each"), value / count);
            report.figure(&Figure { scenario, system, metric: &metric, value, unit, ratio: None })?;
        }
        Ok(Some(calls))
    }
}

/// Does `work`, and counts what `processes` asked of the system meanwhile; `None` where it cannot be counted, which the report says.
pub(crate) fn during(
    report: &Report,
    system: &str,
    processes: &[u32],
    work: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Option<Calls>> {
    let dir = tempfile::tempdir()?;
    let events = dir.path().join("events");
    let perf = try_out().and_then(|()| Perf::start(&events, processes)).and_then(|mut perf| perf.say("enable").map(|()| perf));
    let mut perf = match perf {
        Ok(perf) => perf,
        Err(error) => {
            report.note(&format!("skipped: calls of the system of {system}: {error:#}"));
            return Ok(None);
        }
    };
    work()?;
    perf.say("disable")?;
    perf.stop()?;
    let mut calls = read(&events)?;
    if processes.contains(&std::process::id()) {
        // Its own: reading that `perf` counts, saying that it is enough, and waiting until that was understood.
        calls.all = (calls.all - 2.0).max(0.0);
        calls.bytes = (calls.bytes - 13.0).max(0.0);
    }
    Ok(Some(calls))
}

/// Whether `perf` can count them here.
fn try_out() -> anyhow::Result<()> {
    let mut command = Command::new("perf");
    let tried = command.args(["stat", "-e", ENTER, "true"]).stdin(Stdio::null()).output().context("'perf' does not start")?;
    let said = String::from_utf8_lossy(&tried.stderr);
    ensure!(tried.status.success(), "'perf' cannot count them: {}", said.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(())
}

/// A `perf record` that counts when it is told to.
struct Perf {
    child: Child,
    told: ChildStdin,
    answers: ChildStdout,
}

impl Perf {
    fn start(events: &Path, processes: &[u32]) -> anyhow::Result<Self> {
        let processes = processes.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        let mut command = Command::new("perf");
        command.args(["record", "--quiet", "--delay=-1", "--no-buildid", "--control=fd:0,1", "-m", BUFFER, "-e", ENTER]);
        for call in COPYING.iter().chain(&DURABLE) {
            command.args(["-e", &format!("{EXIT}{call}")]);
        }
        command.args(["-p", &processes, "-o"]).arg(events);
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

    fn stop(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("perf has no number")?;
        // That is how it is told to write what it has.
        kill_process(pid, Signal::INT)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Perf {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Adds up what `perf record` wrote.
fn read(events: &Path) -> anyhow::Result<Calls> {
    let mut command = Command::new("perf");
    command.args(["script", "--show-lost-events", "-F", "event,trace", "-i"]).arg(events);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut calls = Calls::default();
    for line in BufReader::new(child.stdout.take().context("perf has no output")?).lines() {
        calls.add(&line?)?;
    }
    let status = child.wait()?;
    ensure!(status.success(), "perf cannot read what it wrote: {status}");
    Ok(calls)
}

impl Calls {
    /// `line`: an event, such as `syscalls:sys_exit_read: 0x340`.
    fn add(&mut self, line: &str) -> anyhow::Result<()> {
        ensure!(!line.contains("PERF_RECORD_LOST"), "perf lost events: {line}");
        let line = line.trim_start();
        if line.starts_with(ENTER) {
            self.all += 1.0;
        } else if let Some((call, result)) = line.strip_prefix(EXIT).and_then(|exit| exit.split_once(": ")) {
            let result = result.trim().trim_start_matches("0x");
            let result = u64::from_str_radix(result, 16).with_context(|| format!("perf says '{line}'"))?.cast_signed();
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
            match (DURABLE.contains(&call), result) {
                (true, 0..) => self.fsyncs += 1.0,
                (false, 0..) => self.bytes += result as f64,
                // An error: nothing was done.
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn what_perf_says_is_added_up() {
        let mut calls = Calls::default();
        for line in [
            "raw_syscalls:sys_enter: NR 0 (3, 7ffe2310f148, 340, 0, 7ffe2310f107, 0)",
            " syscalls:sys_exit_read: 0x340",
            "raw_syscalls:sys_enter: NR 0 (3, 7ffe2310f148, 340, 0, 7ffe2310f107, 0)",
            "syscalls:sys_exit_recvfrom: 0xfffffffffffffff5",
            "syscalls:sys_exit_fdatasync: 0x0",
            "",
        ] {
            calls.add(line).unwrap();
        }
        assert!((calls.all - 2.0).abs() < 1e-9 && (calls.bytes - 832.0).abs() < 1e-9 && (calls.fsyncs - 1.0).abs() < 1e-9);
        assert!(calls.add("PERF_RECORD_LOST 12").is_err());
    }
}
