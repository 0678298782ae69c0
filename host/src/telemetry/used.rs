//! What functions and tenants used, in the OpenMetrics text format.
//!
//! Owns the names, and which tenants get a label of their own. Knows nothing about how it is counted. Invariant: however many tenants there are, one
//! scrape names at most [`TENANTS_MAX`] of them.

use std::cmp::Reverse;
use std::fmt::Write as _;

use crate::invocation::Phases;
use crate::quota::SPECS;

/// Tenants that one scrape names; what all others used is summed.
pub const TENANTS_MAX: usize = 200;
/// Value of the label for those that are not named.
const OTHER: &str = "other";

/// What is counted, in the order of [`Totals::sums`].
const SUMS: [(&str, &str); 7] = [
    ("invocations", "Invocations that ended"),
    ("cpu_seconds", "Processor time"),
    ("wall_seconds", "Time from the starts of instances to their ends"),
    ("in_bytes", "Bytes of request bodies"),
    ("out_bytes", "Bytes of response bodies"),
    ("requests", "Requests to servers elsewhere"),
    ("data_operations", "Operations on buckets"),
];

/// What a function or a tenant used since the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Invocations, seconds of processor time, seconds, bytes in, bytes out, requests, operations.
    pub sums: [f64; SUMS.len()],
    /// Where the time went until responses began.
    pub phases: Phases,
    /// Most memory that one invocation had, in bytes.
    pub memory_bytes_max: u64,
}

impl Totals {
    /// Adds what others used.
    pub fn add(&mut self, more: &Self) {
        self.sums.iter_mut().zip(more.sums).for_each(|(sum, more)| *sum += more);
        let (mine, theirs) = (self.phases.times(), more.phases.times());
        self.phases = Phases::of_times(std::array::from_fn(|phase| mine[phase].saturating_add(theirs[phase])));
        self.memory_bytes_max = self.memory_bytes_max.max(more.memory_bytes_max);
    }
}

/// A tenant, for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct TenantUse {
    /// Its name.
    pub name: String,
    /// What it used.
    pub totals: Totals,
    /// Invocations that run.
    pub running: u64,
    /// Guest memory that they have.
    pub memory_bytes: u64,
    /// What each quota refused, in the order of [`SPECS`].
    pub refused: [u64; SPECS.len()],
}

/// Writes totals. `of`: `function` or `tenant`; `rows`: values of that label, and what they used.
pub(super) fn totals(text: &mut String, of: &str, rows: &[(String, Totals)]) {
    for (index, (name, help)) in SUMS.iter().enumerate() {
        push(text, format_args!("# HELP hob_{of}_{name} {help}.\n# TYPE hob_{of}_{name} counter\n"));
        for (label, totals) in rows {
            push(text, format_args!("hob_{of}_{name}_total{{{of}=\"{label}\"}} {}\n", totals.sums[index]));
        }
    }
    let help = "Where the time of invocations went until their responses began";
    push(text, format_args!("# HELP hob_{of}_phase_seconds {help}.\n# TYPE hob_{of}_phase_seconds counter\n"));
    for (label, totals) in rows {
        for (phase, time) in Phases::NAMES.iter().zip(totals.phases.times()).filter(|(_, time)| !time.is_zero()) {
            let seconds = time.as_secs_f64();
            push(text, format_args!("hob_{of}_phase_seconds_total{{{of}=\"{label}\",phase=\"{phase}\"}} {seconds}\n"));
        }
    }
    let help = "Most memory that one invocation had since the node started";
    push(text, format_args!("# HELP hob_{of}_memory_bytes_max {help}.\n# TYPE hob_{of}_memory_bytes_max gauge\n"));
    for (label, totals) in rows {
        push(text, format_args!("hob_{of}_memory_bytes_max{{{of}=\"{label}\"}} {}\n", totals.memory_bytes_max));
    }
}

/// Writes tenants: those that used most processor time by name, and all others together.
pub(super) fn tenants(text: &mut String, mut tenants: Vec<TenantUse>) {
    // The name decides between equals, so that two scrapes of an idle node say the same.
    tenants.sort_by(|a, b| b.totals.sums[1].total_cmp(&a.totals.sums[1]).then_with(|| Reverse(&b.name).cmp(&Reverse(&a.name))));
    // A tenant of that very name would be a second series with one label.
    let mut rest: Vec<_> = tenants.extract_if(.., |tenant| tenant.name == OTHER).collect();
    rest.extend(tenants.split_off(tenants.len().min(TENANTS_MAX)));
    if !rest.is_empty() {
        let mut other = TenantUse { name: OTHER.into(), ..TenantUse::default() };
        for tenant in &rest {
            other.totals.add(&tenant.totals);
            other.running += tenant.running;
            other.memory_bytes += tenant.memory_bytes;
            other.refused.iter_mut().zip(tenant.refused).for_each(|(sum, more)| *sum += more);
        }
        tenants.push(other);
    }
    let rows: Vec<_> = tenants.iter().map(|tenant| (tenant.name.clone(), tenant.totals)).collect();
    totals(text, "tenant", &rows);
    for (name, help, value) in [
        ("running", "Invocations that run", (|tenant| tenant.running) as fn(&TenantUse) -> u64),
        ("memory_bytes", "Guest memory of invocations that run", |tenant| tenant.memory_bytes),
    ] {
        push(text, format_args!("# HELP hob_tenant_{name} {help}.\n# TYPE hob_tenant_{name} gauge\n"));
        for tenant in &tenants {
            push(text, format_args!("hob_tenant_{name}{{tenant=\"{}\"}} {}\n", tenant.name, value(tenant)));
        }
    }
    text.push_str("# HELP hob_quota_refused What quotas of tenants refused.\n# TYPE hob_quota_refused counter\n");
    for tenant in &tenants {
        for (spec, count) in SPECS.iter().zip(tenant.refused).filter(|(_, count)| *count > 0) {
            let labels = format_args!("tenant=\"{}\",quota=\"{}\"", tenant.name, spec.name);
            push(text, format_args!("hob_quota_refused_total{{{labels}}} {count}\n"));
        }
    }
}

fn push(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = text.write_fmt(words);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_tenants_are_named_and_the_rest_is_summed() {
        let of = |number: usize| {
            let mut tenant = TenantUse { name: format!("t{number}"), running: 1, ..TenantUse::default() };
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let seconds = (TENANTS_MAX + 2 - number) as f64 / 2.0;
            tenant.totals.sums[1] = seconds;
            tenant.totals.phases.run = std::time::Duration::from_millis(1500);
            tenant.totals.memory_bytes_max = number as u64;
            tenant.refused[0] = 1;
            tenant
        };
        let mut text = String::new();
        super::tenants(&mut text, (0..TENANTS_MAX + 2).map(of).collect());
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("hob_tenant_cpu_seconds_total{")).collect();
        assert_eq!(lines.len(), TENANTS_MAX + 1);
        assert_eq!(lines[0], "hob_tenant_cpu_seconds_total{tenant=\"t0\"} 101");
        // One of half a second, and one of a whole.
        assert_eq!(lines[TENANTS_MAX], "hob_tenant_cpu_seconds_total{tenant=\"other\"} 1.5");
        for line in [
            "hob_tenant_running{tenant=\"other\"} 2",
            "hob_tenant_phase_seconds_total{tenant=\"t0\",phase=\"run\"} 1.5",
            "hob_tenant_phase_seconds_total{tenant=\"other\",phase=\"run\"} 3",
            "hob_tenant_memory_bytes_max{tenant=\"t7\"} 7",
            "hob_tenant_memory_bytes_max{tenant=\"other\"} 201",
            "hob_quota_refused_total{tenant=\"other\",quota=\"invocations_per_second\"} 2",
            "hob_quota_refused_total{tenant=\"t0\",quota=\"invocations_per_second\"} 1",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} not in\n{text}");
        }
        let mut few = String::new();
        super::tenants(&mut few, vec![of(0)]);
        assert!(!few.contains(OTHER), "{few}");
        let mut named = String::new();
        let other = TenantUse { name: OTHER.into(), ..of(0) };
        super::tenants(&mut named, (0..TENANTS_MAX + 2).map(of).chain([other]).collect());
        let series: Vec<_> = named.lines().filter(|line| line.starts_with("hob_tenant_running{tenant=\"other\"}")).collect();
        assert_eq!(series, ["hob_tenant_running{tenant=\"other\"} 3"]);
    }
}
