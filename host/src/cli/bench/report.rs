//! The report: what was measured, on what, and how it came out, as a table and as JSON.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::figures::{self, Figures, QUANTILES};
use super::load::{Measured, Plan};
use super::machine::{self, Daemon};
use crate::cli::text::{clean, span, table};
use crate::control::wire::{FunctionDetail, NodeInfo};
use crate::invocation::Start;

/// How one rung came out.
#[derive(Debug)]
pub(super) struct Rung {
    /// What was sent.
    pub(super) plan: Plan,
    /// Figures by what was timed; none if no answer began on the rung.
    pub(super) rows: Vec<(&'static str, Figures)>,
    /// Why some or all answers do not count, in words; empty if all do.
    pub(super) missed: String,
}

/// All that is to be shown.
#[derive(Debug)]
pub(super) struct Report {
    function: FunctionDetail,
    /// Machine and settings, as names and values.
    pub(super) about: Vec<(&'static str, String)>,
    /// The fastest first.
    pub(super) rungs: Vec<Rung>,
}

impl Rung {
    fn new(measured: &Measured) -> Self {
        let others: Vec<_> = measured.others.iter().map(|(what, count)| format!("{count} {what}")).collect();
        let mut missed = match others.is_empty() {
            true => String::new(),
            false => format!("of {} requests {}", measured.plan.count, others.join(", ")),
        };
        if measured.samples.is_empty() && measured.plan.rung == Start::Ready {
            missed.push_str(
                "; instances are kept ready only of functions that are expensive to instantiate, within engine.ready_max and \
                 engine.ready_bytes_max, and while the function's template is in memory",
            );
        }
        Self { plan: measured.plan, rows: figures::rows(measured), missed }
    }

    /// Name of the rung.
    pub(super) fn name(&self) -> &'static str {
        self.plan.rung.as_str()
    }

    /// How fast its requests were sent, in words.
    pub(super) fn rate(&self) -> String {
        match self.plan.shares() {
            false => format!("{} per second", self.plan.rate),
            true => format!("at most {} per second, one after the other", self.plan.rate),
        }
    }

    fn json(&self) -> Value {
        let of = |figures: &Figures| {
            let mut map = Map::new();
            map.insert("count".into(), figures.count.into());
            for ((name, _), time) in QUANTILES.iter().zip(figures.quantiles) {
                map.insert(format!("{}_us", name.replace('.', "_")), micros(time).into());
            }
            Value::Object(map)
        };
        let times: Map<String, Value> = self.rows.iter().map(|(name, figures)| ((*name).to_owned(), of(figures))).collect();
        json!({
            "rung": self.name(),
            "rate": self.plan.rate,
            "requests": self.plan.count,
            "reached": !self.rows.is_empty(),
            "missed": (!self.missed.is_empty()).then_some(&self.missed),
            "times": times,
        })
    }
}

fn micros(time: Duration) -> f64 {
    // To the nanosecond, without the digits that no binary fraction has.
    (time.as_secs_f64() * 1e9).round() / 1e3
}

impl Report {
    pub(super) fn new(function: FunctionDetail, daemon: &Daemon, told: Option<&NodeInfo>, measured: &[Measured]) -> Self {
        Self { function, about: machine::describe(daemon, told), rungs: measured.iter().map(Rung::new).collect() }
    }

    /// What was measured, in one line.
    pub(super) fn title(&self) -> String {
        let function = &self.function.function;
        format!("{} ({}), revision {}", clean(&function.name), clean(&function.kind), function.revision)
    }

    /// Limits of each invocation, in one line.
    pub(super) fn limits(&self) -> String {
        let limits = self.function.limits.iter().map(|(name, value)| format!("{name}={value}"));
        clean(&limits.collect::<Vec<_>>().join(" "))
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut about =
            vec![vec!["function".to_owned(), self.title()], vec!["digest".into(), clean(&self.function.function.digest)]];
        about.push(vec!["limits".into(), self.limits()]);
        about.extend(self.about.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]));
        let mut rows = vec![vec!["rung".to_owned(), "time".into(), "count".into()]];
        rows[0].extend(QUANTILES.iter().map(|(name, _)| (*name).to_owned()));
        let mut remarks = Vec::new();
        for rung in &self.rungs {
            if rung.rows.is_empty() {
                rows.push(vec![rung.name().into(), "not reached".into()]);
            }
            for (name, figures) in rung.rows.iter().filter(|(_, figures)| !figures.is_nothing()) {
                let times = figures.quantiles.iter().map(|time| span(*time));
                rows.push([rung.name().into(), (*name).into(), figures.count.to_string()].into_iter().chain(times).collect());
            }
            if !rung.missed.is_empty() {
                remarks.push(format!("{}: {}\n", rung.name(), rung.missed));
            }
        }
        let rates: Vec<_> = self.rungs.iter().map(|rung| format!("{} {}", rung.name(), rung.rate())).collect();
        let rates = rates.join(", ");
        format!(
            "{}\n{}\n{}open loop: {rates}\n\
             total: at the client, from when a request was due to the end of its answer; late: the part before it was sent\n\
             start: load, verify, instantiate and enter together; this and what follows as the daemon measured it\n",
            table(&about),
            table(&rows),
            remarks.concat(),
        )
    }

    /// For programs.
    pub(super) fn json(&self) -> Value {
        let about: Map<String, Value> =
            self.about.iter().map(|(name, value)| (name.replace(' ', "_"), value.clone().into())).collect();
        let function = &self.function.function;
        json!({
            "function": { "name": function.name, "kind": function.kind, "revision": function.revision, "digest": function.digest },
            "limits": self.function.limits,
            "about": about,
            "rungs": self.rungs.iter().map(Rung::json).collect::<Vec<_>>(),
        })
    }
}
