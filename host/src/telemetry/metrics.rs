//! The node's metrics, for `/metrics` in the OpenMetrics text format.
//!
//! Owns every name. Handles are resolved once here, so that counting costs one atomic addition. Labels have few values by
//! construction: none is a tenant's, a function's or a client's word.

use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::fault::Code;
use crate::invocation::{Phases, Start};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    kind: &'static str,
}

/// Everything the node counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    starts: [Counter; Start::ALL.len()],
    faults: Vec<Counter>,
    phases: [Histogram; 5],
    /// Invocations whose guest is alive.
    pub instances: Gauge<i64, AtomicI64>,
    /// Functions that are deployed.
    pub functions: Gauge<i64, AtomicI64>,
    /// Templates in memory.
    pub templates: Gauge<i64, AtomicI64>,
    /// Bytes of modules and artifacts on disk.
    pub data_bytes: Gauge<u64, AtomicU64>,
    /// Deploys that were published.
    pub deploys: Counter,
    /// Builds that ran to their end, for a deploy or after one was lost.
    pub builds: Counter,
    /// Artifacts that did not match their code and were compiled again.
    pub artifacts_corrupt: Counter,
    /// Files that the collector removed.
    pub collected: Counter,
    /// Connections that had to be cut when the node stopped.
    pub cut: Counter,
}

/// Bucket bounds in seconds, 1 us to 10 s by 1, 2 and 5: the field's usual ones begin at 5 ms, where all of ours would fall
/// into the first.
fn bounds() -> impl Iterator<Item = f64> {
    (-6..=0).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power))).chain([10.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A fresh set, all zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("hob");
        let starts = Family::<Label, Counter>::default();
        let faults = Family::<Label, Counter>::default();
        let phases = Family::<Label, Histogram>::new_with_constructor(|| Histogram::new(bounds()));
        registry.register("starts", "Invocations by the rung of the start ladder they began on", starts.clone());
        registry.register("faults", "Faults of invocations and refusals of the control port by code", faults.clone());
        registry.register_with_unit("phase", "Where the time to the head of a response goes", Unit::Seconds, phases.clone());
        let of = |family: &Family<Label, Counter>, kind| family.get_or_create(&Label { kind }).clone();
        let mut metrics = Self {
            starts: Start::ALL.map(|start| of(&starts, start.as_str())),
            faults: Code::ALL.iter().map(|code| of(&faults, code.as_str())).collect(),
            phases: ["queue", "load", "instantiate", "enter", "run"].map(|kind| phases.get_or_create(&Label { kind }).clone()),
            registry,
            instances: Gauge::default(),
            functions: Gauge::default(),
            templates: Gauge::default(),
            data_bytes: Gauge::default(),
            deploys: Counter::default(),
            builds: Counter::default(),
            artifacts_corrupt: Counter::default(),
            collected: Counter::default(),
            cut: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("instances", "Instances alive", metrics.instances.clone());
        registry.register("functions", "Functions deployed", metrics.functions.clone());
        registry.register("templates", "Templates in memory", metrics.templates.clone());
        registry.register_with_unit("data", "Modules and artifacts on disk", Unit::Bytes, metrics.data_bytes.clone());
        registry.register("deploys", "Deploys published", metrics.deploys.clone());
        registry.register("builds", "Builds run", metrics.builds.clone());
        registry.register("artifacts_corrupt", "Artifacts found damaged and compiled again", metrics.artifacts_corrupt.clone());
        registry.register("collected", "Files removed by the collector", metrics.collected.clone());
        registry.register("connections_cut", "Connections cut when the node stopped", metrics.cut.clone());
        metrics
    }

    /// Counts a start and where its time went.
    pub fn started(&self, start: Start, phases: &Phases) {
        self.starts[start as usize].inc();
        let times = [phases.queue, phases.load, phases.instantiate, phases.enter, phases.run];
        for (histogram, time) in self.phases.iter().zip(times) {
            histogram.observe(time.as_secs_f64());
        }
    }

    /// Counts a fault.
    pub fn faulted(&self, code: Code) {
        self.faults[code as usize].inc();
    }

    /// The text of `/metrics`.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a String cannot fail; an encoder's own error would be a bug of ours.
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// Milliseconds with three digits, as `server-timing` has them.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_there_from_the_start() {
        let metrics = Metrics::new();
        metrics.started(Start::Stored, &Phases { load: Duration::from_micros(50), ..Phases::default() });
        metrics.faulted(Code::GuestTrap);
        let text = metrics.text();
        for line in [
            "hob_starts_total{kind=\"stored\"} 1",
            "hob_faults_total{kind=\"guest-trap\"} 1",
            "hob_faults_total{kind=\"internal\"} 0",
            "hob_functions 0",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
