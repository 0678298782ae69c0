//! What functions and tenants used, in the OpenMetrics text format.
//!
//! Owns the names, and which tenants get a label of their own. Knows nothing about how it is counted. Invariant: however many tenants there are, one
//! scrape names at most [`TENANTS_MAX`] of them.

use std::cmp::Reverse;
use std::fmt::Write as _;

use crate::quota::SPECS;

/// Tenants that one scrape names; what all others used is summed.
pub const TENANTS_MAX: usize = 200;
/// Value of the label for those that are not named.
const OTHER: &str = "other";

/// What is counted, in the order of [`Sums`].
const SUMS: [(&str, &str); 7] = [
    ("invocations", "Invocations that ended"),
    ("cpu_seconds", "Processor time"),
    ("wall_seconds", "Time from the starts of instances to their ends"),
    ("in_bytes", "Bytes of request bodies"),
    ("out_bytes", "Bytes of response bodies"),
    ("requests", "Requests to servers elsewhere"),
    ("data_operations", "Operations on buckets"),
];

/// Invocations, seconds of processor time, seconds, bytes in, bytes out, requests, operations.
pub type Sums = [f64; SUMS.len()];

/// Adds one to another.
pub fn add(to: &mut Sums, more: &Sums) {
    to.iter_mut().zip(more).for_each(|(to, more)| *to += more);
}

/// A tenant, for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct TenantUse {
    /// Its name.
    pub name: String,
    /// What it used.
    pub sums: Sums,
    /// Invocations that run.
    pub running: u64,
    /// Guest memory that they have.
    pub memory_bytes: u64,
    /// What each quota refused, in the order of [`SPECS`].
    pub refused: [u64; SPECS.len()],
}

/// Writes sums. `of`: `function` or `tenant`; `rows`: values of that label, and what they used.
pub(super) fn sums(text: &mut String, of: &str, rows: &[(String, Sums)]) {
    for (index, (name, help)) in SUMS.iter().enumerate() {
        push(text, format_args!("# HELP hob_{of}_{name} {help}.\n# TYPE hob_{of}_{name} counter\n"));
        for (label, sums) in rows {
            push(text, format_args!("hob_{of}_{name}_total{{{of}=\"{label}\"}} {}\n", sums[index]));
        }
    }
}

/// Writes tenants: those that used most processor time by name, and all others together.
pub(super) fn tenants(text: &mut String, mut tenants: Vec<TenantUse>) {
    // The name decides between equals, so that two scrapes of an idle node say the same.
    tenants.sort_by(|a, b| b.sums[1].total_cmp(&a.sums[1]).then_with(|| Reverse(&b.name).cmp(&Reverse(&a.name))));
    // A tenant of that very name would be a second series with one label.
    let mut rest: Vec<_> = tenants.extract_if(.., |tenant| tenant.name == OTHER).collect();
    rest.extend(tenants.split_off(tenants.len().min(TENANTS_MAX)));
    if !rest.is_empty() {
        let mut other = TenantUse { name: OTHER.into(), ..TenantUse::default() };
        for tenant in &rest {
            add(&mut other.sums, &tenant.sums);
            other.running += tenant.running;
            other.memory_bytes += tenant.memory_bytes;
            other.refused.iter_mut().zip(tenant.refused).for_each(|(sum, more)| *sum += more);
        }
        tenants.push(other);
    }
    let rows: Vec<_> = tenants.iter().map(|tenant| (tenant.name.clone(), tenant.sums)).collect();
    sums(text, "tenant", &rows);
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
            tenant.sums[1] = seconds;
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
