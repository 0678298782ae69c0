//! What a run came to: how many inputs, and how each kind of them ended.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

/// Counts of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    runs: u64,
    ends: BTreeMap<String, u64>,
}

impl Report {
    /// One more input, which ended so.
    pub(crate) fn count(&mut self, end: &str) {
        self.runs += 1;
        match self.ends.get_mut(end) {
            Some(count) => *count += 1,
            None => drop(self.ends.insert(end.into(), 1)),
        }
    }

    /// How many inputs ended so.
    pub(crate) fn of(&self, end: &str) -> u64 {
        self.ends.get(end).copied().unwrap_or_default()
    }

    /// Adds what another thread counted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        for (end, count) in &other.ends {
            *self.ends.entry(end.clone()).or_default() += count;
        }
    }

    pub(crate) fn tell(&self, target: &str, seed: u64, took: Duration, json: Option<&Path>) -> anyhow::Result<()> {
        let ends: Vec<_> = self.ends.iter().map(|(end, count)| format!("{end} {count}")).collect();
        let line = format!("{target:<10} {:>10} inputs in {:>7.1} s   {}", self.runs, took.as_secs_f64(), ends.join(", "));
        writeln!(std::io::stdout(), "{line}")?;
        if let Some(path) = json {
            let line =
                json!({ "target": target, "seed": seed, "inputs": self.runs, "seconds": took.as_secs_f64(), "ends": self.ends });
            writeln!(OpenOptions::new().create(true).append(true).open(path)?, "{line}")?;
        }
        Ok(())
    }
}
