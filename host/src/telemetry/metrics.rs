//! The node's metrics, for `/metrics` in the OpenMetrics text format.
//!
//! Owns every name. Handles are resolved once here, so that counting costs one atomic addition, of a time two. The node's own
//! labels have few values by construction: none is a tenant's, a function's or a client's word. Functions are named only as
//! `exposition.rs` bounds it.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::exposition::{self, FunctionStarts};
use super::used::{self, TenantUse};
use crate::fault::Code;
use crate::histogram::Histogram;
use crate::invocation::{Phases, Start};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rung {
    start: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Refused {
    port: &'static str,
    why: &'static str,
}

/// What became of an attempt to deliver an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The function answered 2xx.
    Delivered,
    /// It failed, and the event stays.
    Failed,
    /// There was no place to run it.
    Postponed,
    /// It was given up, and lies in a bucket.
    Buried,
    /// It was given up, or nobody wants it any more.
    Dropped,
}

impl Delivery {
    /// All of them; `self as usize` is the position.
    pub const ALL: [Self; 5] = [Self::Delivered, Self::Failed, Self::Postponed, Self::Buried, Self::Dropped];

    /// Its label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Postponed => "postponed",
            Self::Buried => "buried",
            Self::Dropped => "dropped",
        }
    }
}

/// Everything the node counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    starts: [Counter; Start::ALL.len()],
    faults: Vec<Counter>,
    deliveries: [Counter; Delivery::ALL.len()],
    /// Events that wait for a function.
    pub events: Gauge<u64, AtomicU64>,
    /// 1 once the disk failed and data can only be read, else 0.
    pub read_only: Gauge<u64, AtomicU64>,
    /// 1 if all walls stand around the process, else 0.
    pub sandboxed: Gauge<u64, AtomicU64>,
    /// Panics that ended an invocation, a request or a connection, and nothing else.
    pub panics: Counter,
    /// By rung and phase.
    phases: [[Histogram; Phases::NAMES.len()]; Start::ALL.len()],
    /// Invocations whose guest is alive.
    pub instances: Gauge<i64, AtomicI64>,
    /// Instances that wait for an invocation.
    pub ready: Gauge<i64, AtomicI64>,
    /// Invocations whose instance was of the pool for large guests.
    pub large: Counter,
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
    /// Counted where connections are accepted, and set by [`Metrics::turned_away`].
    refused: Family<Refused, Counter>,
    /// Connections that had to be cut when the node stopped.
    pub cut: Counter,
    /// What became of reads of buckets that are caches.
    pub origin: OriginMetrics,
}

/// Counted where objects are kept, and set here when somebody asks.
#[derive(Debug, Default)]
pub struct OriginMetrics {
    hits: Counter,
    misses: Counter,
    fetched: Counter,
    evicted: Counter,
    copies: Gauge<u64, AtomicU64>,
    memory: Gauge<u64, AtomicU64>,
}

impl OriginMetrics {
    /// Sets all: copies that were given, objects and bytes fetched, copies that went for want of room, and bytes of those that are there, on
    /// disk and in memory.
    pub fn set(&self, hits: u64, misses: u64, fetched_bytes: u64, evicted: u64, [copies_bytes, memory_bytes]: [u64; 2]) {
        let counters = [(&self.hits, hits), (&self.misses, misses), (&self.fetched, fetched_bytes), (&self.evicted, evicted)];
        for (counter, value) in counters {
            // A scrape at the same moment may have a later one.
            counter.inner().fetch_max(value, Ordering::Relaxed);
        }
        self.copies.set(copies_bytes);
        self.memory.set(memory_bytes);
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("origin_hits", "Objects of origins given of a copy", self.hits.clone());
        registry.register("origin_misses", "Objects fetched from origins", self.misses.clone());
        registry.register_with_unit("origin_fetched", "Objects fetched from origins", Unit::Bytes, self.fetched.clone());
        registry.register("origin_evicted", "Copies of objects of origins that went for want of room", self.evicted.clone());
        registry.register_with_unit("origin_copies", "Copies of objects of origins", Unit::Bytes, self.copies.clone());
        registry.register_with_unit(
            "origin_memory",
            "Small copies of objects of origins in memory",
            Unit::Bytes,
            self.memory.clone(),
        );
    }
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
        let starts = Family::<Rung, Counter>::default();
        let faults = Family::<Label, Counter>::default();
        registry.register("starts", "Invocations by the rung of the start ladder they began on", starts.clone());
        registry.register("faults", "Faults of invocations and refusals of the control port by code", faults.clone());
        let deliveries = Family::<Label, Counter>::default();
        registry.register("deliveries", "Attempts to deliver events of buckets to functions, by outcome", deliveries.clone());
        let of = |family: &Family<Label, Counter>, kind| family.get_or_create(&Label { kind }).clone();
        let mut metrics = Self {
            starts: Start::ALL.map(|start| starts.get_or_create(&Rung { start: start.as_str() }).clone()),
            faults: Code::ALL.iter().map(|code| of(&faults, code.as_str())).collect(),
            deliveries: Delivery::ALL.map(|delivery| of(&deliveries, delivery.as_str())),
            events: Gauge::default(),
            read_only: Gauge::default(),
            sandboxed: Gauge::default(),
            panics: Counter::default(),
            phases: Default::default(),
            registry,
            instances: Gauge::default(),
            ready: Gauge::default(),
            large: Counter::default(),
            functions: Gauge::default(),
            templates: Gauge::default(),
            data_bytes: Gauge::default(),
            deploys: Counter::default(),
            builds: Counter::default(),
            artifacts_corrupt: Counter::default(),
            collected: Counter::default(),
            refused: Family::default(),
            cut: Counter::default(),
            origin: OriginMetrics::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("instances", "Instances alive", metrics.instances.clone());
        registry.register("ready_instances", "Instances that wait for an invocation", metrics.ready.clone());
        registry.register("large_invocations", "Invocations in the pool for large guests", metrics.large.clone());
        registry.register("events", "Events of buckets that wait for a function", metrics.events.clone());
        registry.register("data_read_only", "1 once the disk failed and data can only be read", metrics.read_only.clone());
        registry.register("sandboxed", "1 if all walls stand around the process", metrics.sandboxed.clone());
        registry.register("panics", "Bugs that ended one invocation or request", metrics.panics.clone());
        registry.register("functions", "Functions deployed", metrics.functions.clone());
        registry.register("templates", "Templates in memory", metrics.templates.clone());
        registry.register_with_unit("data", "Modules and artifacts on disk", Unit::Bytes, metrics.data_bytes.clone());
        registry.register("deploys", "Deploys published", metrics.deploys.clone());
        registry.register("builds", "Builds run", metrics.builds.clone());
        registry.register("artifacts_corrupt", "Artifacts found damaged and compiled again", metrics.artifacts_corrupt.clone());
        registry.register("collected", "Files removed by the collector", metrics.collected.clone());
        registry.register("connections_refused", "Connections that nobody served, by port and reason", metrics.refused.clone());
        registry.register("connections_cut", "Connections cut when the node stopped", metrics.cut.clone());
        metrics.origin.register(registry);
        metrics
    }

    /// Counts a start and where its time went. A phase of no time is one that its rung or kind does not have, and is left out.
    ///
    /// # Cost
    /// Two relaxed additions for each phase, no lock.
    pub fn started(&self, start: Start, phases: &Phases) {
        self.starts[start as usize].inc();
        for (histogram, time) in self.phases[start as usize].iter().zip(phases.times()) {
            if !time.is_zero() {
                histogram.observe(time);
            }
        }
    }

    /// Counts events.
    pub fn delivery(&self, delivery: Delivery, count: u64) {
        self.deliveries[delivery as usize].inc_by(count);
    }

    /// Sets how many connections of a port were turned away so far, for each reason. The names of both are this node's own words.
    pub fn turned_away(&self, port: &'static str, counts: impl Iterator<Item = (&'static str, u64)>) {
        for (why, count) in counts {
            // Never less than it was: two may ask at once, and the later reading may be set first.
            self.refused.get_or_create(&Refused { port, why }).inner().fetch_max(count, Ordering::Relaxed);
        }
    }

    /// Counts a fault.
    pub fn faulted(&self, code: Code) {
        self.faults[code as usize].inc();
    }

    /// The text of `/metrics`. `functions`: those that began at least once.
    ///
    /// # Cost
    /// One look at each function, and at most 1 MB of text.
    #[must_use]
    pub fn text<'a>(&self, functions: impl Iterator<Item = FunctionStarts<'a>>, tenants: Vec<TenantUse>) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail; an encoder's own error would be a bug of ours.
        if let Err(error) = encode_registry(&mut text, &self.registry) {
            return format!("# {error}\n");
        }
        exposition::head(&mut text, "hob_phase_seconds", "Where the time to the head of a response goes");
        for (start, histograms) in Start::ALL.into_iter().zip(&self.phases) {
            for (phase, histogram) in Phases::NAMES.into_iter().zip(histograms) {
                let reading = histogram.reading();
                if reading.count() > 0 {
                    let labels = format!("start=\"{}\",phase=\"{phase}\"", start.as_str());
                    exposition::histogram(&mut text, "hob_phase_seconds", &labels, &reading, 1);
                }
            }
        }
        exposition::functions(&mut text, functions);
        used::tenants(&mut text, tenants);
        match encode_eof(&mut text) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// A time in milliseconds.
#[must_use]
pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::used::Totals;
    use super::*;

    #[test]
    fn everything_is_there_from_the_start() {
        let metrics = Metrics::new();
        let phases = Phases { load: Duration::from_micros(50), run: Duration::from_micros(2), ..Phases::default() };
        metrics.started(Start::Stored, &phases);
        metrics.faulted(Code::GuestTrap);
        metrics.origin.set(3, 1, 4, 0, [5, 6]);
        metrics.turned_away("data", [("address", 2)].into_iter());
        metrics.turned_away("data", [("address", 1)].into_iter());
        let starts = crate::histogram::StartTimes::default();
        starts.observe(Start::Stored, &phases);
        let (tenant, name) = (crate::id::TenantId::default(), "a".parse().unwrap());
        let function =
            FunctionStarts { tenant: &tenant, name: &name, resident: true, starts: &starts, totals: Totals::default() };
        let text = metrics.text(std::iter::once(function), vec![TenantUse { name: "default".into(), ..TenantUse::default() }]);
        for line in [
            "hob_starts_total{start=\"stored\"} 1",
            "hob_starts_total{start=\"ready\"} 0",
            "hob_faults_total{kind=\"guest-trap\"} 1",
            "hob_faults_total{kind=\"internal\"} 0",
            "hob_functions 0",
            "hob_connections_refused_total{port=\"data\",why=\"address\"} 2",
            "hob_origin_hits_total 3",
            "hob_origin_fetched_bytes_total 4",
            "hob_origin_copies_bytes 5",
            "hob_origin_memory_bytes 6",
            "hob_events 0",
            "hob_data_read_only 0",
            "hob_sandboxed 0",
            "hob_panics_total 0",
            "hob_deliveries_total{kind=\"buried\"} 0",
            "# TYPE hob_phase_seconds histogram",
            "hob_phase_seconds_bucket{start=\"stored\",phase=\"load\",le=\"3.2e-5\"} 0",
            "hob_phase_seconds_bucket{start=\"stored\",phase=\"load\",le=\"6.4e-5\"} 1",
            "hob_phase_seconds_count{start=\"stored\",phase=\"run\"} 1",
            "hob_tenant_running{tenant=\"default\"} 0",
            "hob_function_starts_total{function=\"default/a\",start=\"stored\"} 1",
        ] {
            assert!(text.contains(&format!("{line}\n")), "{line} not in\n{text}");
        }
        // What took no time was not gone through.
        assert!(!text.contains("instantiate") && !text.contains("resident\",phase"), "{text}");
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }
}
