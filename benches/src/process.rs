//! What a process did so far, as the system counts it.

use std::fs;

use anyhow::Context as _;

/// Counters that only rise; of one process, all its threads.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Processor time in seconds, of the process and of the system for it.
    pub(crate) cpu: f64,
    /// Faults that needed no disk, and those that did.
    pub(crate) faults: f64,
    pub(crate) disk_faults: f64,
    /// Bytes that it, and children that have ended, gave the system to be written to disks.
    pub(crate) written: f64,
}

impl Counters {
    /// `process`: a number, or `self`.
    pub(crate) fn of(process: &str) -> anyhow::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name may have spaces; it ends with the last parenthesis. What follows begins with field 3.
        let (_, fields) = stat.rsplit_once(')').context("the system says nothing of a process")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let field = |number: usize| anyhow::Ok(fields.get(number - 3).context("a field is missing")?.parse::<f64>()?);
        let io = fs::read_to_string(format!("/proc/{process}/io"))?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: "));
        #[expect(clippy::cast_precision_loss, reason = "a hundred or so")]
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        Ok(Self {
            cpu: (field(14)? + field(15)?) / ticks,
            faults: field(10)?,
            disk_faults: field(12)?,
            written: written.context("the system does not say what was written")?.parse()?,
        })
    }

    /// What was done since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu - before.cpu,
            faults: self.faults - before.faults,
            disk_faults: self.disk_faults - before.disk_faults,
            written: self.written - before.written,
        }
    }
}
