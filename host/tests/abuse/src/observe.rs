//! What a node holds at one moment: of the system, and by its own count.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::node::{Node, value};

/// How long everything may take to be as before.
const SETTLES: Duration = Duration::from_secs(5);

/// Descriptors, threads and memory of a process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Shot {
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
    /// In memory, of all kinds.
    pub(crate) memory_bytes: u64,
    /// At its most so far.
    pub(crate) memory_peak_bytes: u64,
    /// Templates in memory: each has a descriptor, which stays by intention.
    pub(crate) templates: u64,
    pub(crate) instances: u64,
    /// Files that are not whole yet.
    pub(crate) staged: u64,
}

impl Shot {
    pub(crate) fn of(node: &Node) -> anyhow::Result<Self> {
        let pid = node.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
            anyhow::Ok(line.trim().trim_end_matches(" kB").parse::<u64>()?)
        };
        let metrics = node.metrics()?;
        Ok(Self {
            descriptors: descriptors(pid)? as u64,
            threads: number("Threads:")?,
            memory_bytes: number("VmRSS:")? << 10,
            memory_peak_bytes: number("VmHWM:")? << 10,
            templates: value(&metrics, "hob_templates"),
            instances: value(&metrics, "hob_instances").saturating_sub(value(&metrics, "hob_ready_instances")),
            staged: files(&node.dir.join("staging")) + files(&node.dir.join("data/staging")),
        })
    }

    /// What is there beyond `before`, in words; nothing is the rule, but for `kept` descriptors. Memory is judged elsewhere.
    pub(crate) fn beyond(&self, before: &Self, kept: u64) -> Vec<String> {
        let mut beyond = Vec::new();
        let mut judge = |what: &str, now: u64, then: u64, spare: u64| {
            if now > then + (then / 20).max(spare) {
                beyond.push(format!("{what}: {then} before, {now} five seconds after"));
            }
        };
        // The victim renews its connections, and whoever asks has one.
        judge(
            "descriptors",
            self.descriptors.saturating_sub(self.templates),
            before.descriptors.saturating_sub(before.templates),
            4 + kept,
        );
        judge("threads", self.threads, before.threads, 1);
        // The victim's own may run just now.
        judge("instances", self.instances, 0, 2);
        judge("unfinished files", self.staged, before.staged, 0);
        beyond
    }
}

/// Looks until everything is as before, and memory no more than `memory_bytes`, for at most five seconds: what it saw last, and how long
/// it took. An allocator gives back what it holds a little later than it is let go of.
pub(crate) fn settle(node: &Node, before: &Shot, kept: u64, memory_bytes: u64) -> anyhow::Result<(Shot, Duration)> {
    let began = Instant::now();
    loop {
        let shot = Shot::of(node)?;
        let settled = shot.beyond(before, kept).is_empty() && shot.memory_bytes <= memory_bytes;
        if settled || began.elapsed() > SETTLES {
            return Ok((shot, began.elapsed()));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Descriptors that a process has now.
pub(crate) fn descriptors(pid: u32) -> std::io::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn files(folder: &Path) -> u64 {
    std::fs::read_dir(folder).map_or(0, |entries| entries.count() as u64)
}

/// Processor time of a process so far.
pub(crate) fn processor_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("the system says nothing of a process")?;
    let field =
        |number: usize| anyhow::Ok(fields.split_whitespace().nth(number - 3).context("a field is missing")?.parse::<u64>()?);
    // The system counts in hundredths of a second, whatever its own ticks are.
    Ok(Duration::from_millis(10 * (field(14)? + field(15)?)))
}
