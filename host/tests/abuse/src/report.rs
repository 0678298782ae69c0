//! What became of a case: a line for people, and a JSON object in a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::json;

use crate::observe::Shot;
use crate::victim::{Tally, quantile};

/// What a case has shown.
#[derive(Debug, Default)]
pub(crate) struct Finding {
    pub(crate) row: &'static str,
    pub(crate) name: &'static str,
    pub(crate) took: Duration,
    pub(crate) statuses: BTreeMap<String, u64>,
    pub(crate) victim: Option<Tally>,
    /// Acknowledged writes of the ledger, and those that had another answer.
    pub(crate) ledger: (usize, u64),
    pub(crate) before: Shot,
    pub(crate) after: Shot,
    /// What memory grew by from the second attack to the third.
    pub(crate) grown_bytes: i64,
    /// The longest time until everything was as before.
    pub(crate) settled: Duration,
    pub(crate) notes: Vec<String>,
    pub(crate) complaints: Vec<String>,
    /// Times that a long run does not allow.
    pub(crate) slow: Vec<String>,
    pub(crate) skipped: Option<String>,
}

impl Finding {
    pub(crate) fn verdict(&self) -> &'static str {
        match (&self.skipped, self.complaints.is_empty()) {
            (Some(_), _) => "skipped",
            (None, true) => "ok",
            (None, false) => "FAILED",
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.skipped.is_none() && !self.complaints.is_empty()
    }
}

/// Where findings go.
#[derive(Debug)]
pub(crate) struct Report {
    json: Option<File>,
}

impl Report {
    pub(crate) fn new(json: Option<&Path>) -> anyhow::Result<Self> {
        let open = |path: &Path| File::create(path).with_context(|| format!("'{}' cannot be written", path.display()));
        Ok(Self { json: json.map(open).transpose()? })
    }

    pub(crate) fn heading(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "{:<4} {:<28} {:>15} {:>17} {:>9} {:>9} {:>17} {:>6}  seen",
            "row", "attack", "victim err/sent", "p99 quiet/during", "fds", "threads", "memory MiB (grew)", "took s"
        )?;
        Ok(())
    }

    /// A line for people alone.
    pub(crate) fn text(&self, text: &str) -> anyhow::Result<()> {
        Ok(writeln!(std::io::stdout(), "{text}")?)
    }

    /// A figure that is no case: the object is the line.
    pub(crate) fn figure(&mut self, figure: &serde_json::Value) -> anyhow::Result<()> {
        self.text(&figure.to_string())?;
        if let Some(file) = &mut self.json {
            writeln!(file, "{figure}")?;
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, finding: &Finding) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", line(finding))?;
        for (what, all) in [("  !", &finding.complaints), ("  slow:", &finding.slow), ("  -", &finding.notes)] {
            for text in all {
                writeln!(out, "{what} {text}")?;
            }
        }
        out.flush()?;
        if let Some(file) = &mut self.json {
            writeln!(file, "{}", object(finding))?;
        }
        Ok(())
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory, printed in MiB")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn line(finding: &Finding) -> String {
    let Finding { row, name, before, after, .. } = finding;
    if let Some(why) = &finding.skipped {
        return format!("{row:<4} {name:<28} skipped: {why}");
    }
    let seen: Vec<_> = finding.statuses.iter().map(|(key, count)| format!("{key} x{count}")).collect();
    let (seen, took) = (seen.join(", "), finding.took.as_secs_f64());
    let Some(victim) = &finding.victim else {
        return format!("{row:<4} {name:<28} {:>78} {took:>6.1}  {seen}  {}", "nodes of its own", finding.verdict());
    };
    #[expect(clippy::cast_precision_loss, reason = "bytes of memory, printed in MiB")]
    let grown = finding.grown_bytes as f64 / f64::from(1 << 20);
    format!(
        "{row:<4} {name:<28} {:>15} {:>17} {:>9} {:>9} {:>17} {took:>6.1}  {seen}  {}",
        format!("{}/{}", victim.errors, victim.sent),
        format!("{:.1}/{:.1}ms", millis(quantile(&victim.quiet, 990)), millis(quantile(&victim.attack, 990))),
        format!("{}/{}", before.descriptors, after.descriptors),
        format!("{}/{}", before.threads, after.threads),
        format!("{:.0}/{:.0}({grown:+.1})", mib(before.memory_bytes), mib(after.memory_bytes)),
        finding.verdict(),
    )
}

fn object(finding: &Finding) -> serde_json::Value {
    let shot = |shot: &Shot| {
        json!({
            "descriptors": shot.descriptors, "threads": shot.threads, "memory_bytes": shot.memory_bytes,
            "memory_peak_bytes": shot.memory_peak_bytes, "templates": shot.templates,
        })
    };
    let victim = finding.victim.as_ref().map(|tally| {
        let times = |times: &[Duration]| json!({"p50_ms": millis(quantile(times, 500)), "p99_ms": millis(quantile(times, 990)), "count": times.len()});
        json!({
            "sent": tally.sent, "good": tally.good, "refused": tally.refused, "errors": tally.errors, "first_errors": tally.words,
            "quiet": times(&tally.quiet), "attack": times(&tally.attack),
        })
    });
    json!({
        "row": finding.row, "attack": finding.name, "verdict": finding.verdict(), "seconds": finding.took.as_secs_f64(),
        "seen": finding.statuses, "victim": victim, "before": shot(&finding.before), "after": shot(&finding.after),
        "grown_bytes": finding.grown_bytes, "settled_ms": millis(finding.settled),
        "ledger": {"acknowledged": finding.ledger.0, "refused": finding.ledger.1},
        "complaints": finding.complaints, "slow": finding.slow, "notes": finding.notes, "skipped": finding.skipped,
    })
}
