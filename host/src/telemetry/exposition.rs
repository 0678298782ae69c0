//! Histograms in the OpenMetrics text format, and the starts of functions by name.
//!
//! Owns how a reading is written, and which functions get a label of their own. Knows nothing about what was counted. Invariant:
//! however many functions there are, one scrape names at most [`NAMED_MAX`] of them.

use std::cmp::Reverse;
use std::fmt::Write as _;

use crate::histogram::{BUCKETS, Reading, StartTimes, bound};
use crate::id::{FunctionName, TenantId};
use crate::invocation::Start;
use crate::telemetry::used::{self, Totals};

/// Functions that one scrape names; the starts of all others are summed, under one more name.
pub const NAMED_MAX: usize = 199;
/// Value of the label `function` for those that are not named. No function is called so: names are written `TENANT/NAME`.
const OTHER: &str = "other";
/// Of the bounds of a function's histogram every other one is written: 200 functions would be 1 MB otherwise.
const FUNCTION_STEP: usize = 2;

/// A function that began at least once, for `/metrics`.
#[derive(Debug, Clone, Copy)]
pub struct FunctionStarts<'a> {
    /// Whose.
    pub tenant: &'a TenantId,
    /// Its name.
    pub name: &'a FunctionName,
    /// Whether its template is in memory. One without is never named.
    pub resident: bool,
    /// Its starts.
    pub starts: &'a StartTimes,
    /// What it used.
    pub totals: Totals,
}

/// Writes what stands before the samples of a histogram of seconds.
pub(super) fn head(text: &mut String, name: &str, help: &str) {
    push(text, format_args!("# HELP {name} {help}.\n# TYPE {name} histogram\n# UNIT {name} seconds\n"));
}

/// Writes one histogram. `labels`: `name="value"` with commas between. `step`: one of how many bounds is written.
pub(super) fn histogram(text: &mut String, name: &str, labels: &str, reading: &Reading, step: usize) {
    let mut below = 0;
    for (bucket, count) in reading.buckets.into_iter().enumerate().take(BUCKETS) {
        below += count;
        match bound(bucket) {
            Some(bound) if bucket % step == 0 => {
                push(text, format_args!("{name}_bucket{{{labels},le=\"{:?}\"}} {below}\n", bound.as_secs_f64()));
            }
            Some(_) => {}
            None => push(text, format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {below}\n")),
        }
    }
    let sum = reading.sum.as_secs_f64();
    push(text, format_args!("{name}_sum{{{labels}}} {sum:?}\n{name}_count{{{labels}}} {below}\n"));
}

/// Writes the starts of functions: a counter and a histogram by rung, for the [`NAMED_MAX`] with the most starts among those whose
/// template is in memory, and for all others together.
///
/// # Cost
/// One look at each function, and some 3 KB of text for each that is named.
pub(super) fn functions<'a>(text: &mut String, functions: impl Iterator<Item = FunctionStarts<'a>>) {
    let mut others = [(0, Reading::default()); Start::ALL.len()];
    let mut other = Totals::default();
    let mut add = |function: &FunctionStarts<'_>| {
        other.add(&function.totals);
        for (start, (count, reading)) in Start::ALL.into_iter().zip(&mut others) {
            *count += function.starts.count(start);
            reading.add(&function.starts.reading(start));
        }
    };
    let mut named = Vec::new();
    for function in functions {
        if function.resident { named.push(function) } else { add(&function) }
    }
    // The name decides between equals, so that two scrapes of an idle node say the same.
    named.sort_by_cached_key(|function| (Reverse(function.starts.total()), function.tenant, function.name));
    named.drain(named.len().min(NAMED_MAX)..).for_each(|function| add(&function));

    let mut rows: Vec<(String, u64, Reading)> = Vec::new();
    let mut row = |function: &str, start: Start, count: u64, reading: Reading| {
        if count > 0 {
            rows.push((format!("function=\"{}\",start=\"{}\"", escape(function), start.as_str()), count, reading));
        }
    };
    for function in &named {
        let label = format!("{}/{}", function.tenant, function.name);
        Start::ALL.into_iter().for_each(|start| row(&label, start, function.starts.count(start), function.starts.reading(start)));
    }
    Start::ALL.into_iter().zip(others).for_each(|(start, (count, reading))| row(OTHER, start, count, reading));

    let label = |function: &FunctionStarts<'_>| escape(&format!("{}/{}", function.tenant, function.name));
    let mut used: Vec<_> = named.iter().map(|function| (label(function), function.totals)).collect();
    if other != Totals::default() {
        used.push((OTHER.into(), other));
    }
    used::totals(text, "function", &used);

    text.push_str("# HELP hob_function_starts Invocations of functions by the rung they began on.\n");
    text.push_str("# TYPE hob_function_starts counter\n");
    for (labels, count, _) in &rows {
        push(text, format_args!("hob_function_starts_total{{{labels}}} {count}\n"));
    }
    head(text, "hob_function_start_seconds", "From admission to the first instruction");
    for (labels, _, reading) in &rows {
        histogram(text, "hob_function_start_seconds", labels, reading, FUNCTION_STEP);
    }
}

/// A label's value as the format wants it. Names have none of these today; what escapes nothing is one rule short of a forgery.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn push(text: &mut String, words: std::fmt::Arguments<'_>) {
    // Writing into a String cannot fail.
    let _ = text.write_fmt(words);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn times(start: Start, number: usize) -> StartTimes {
        let times = StartTimes::default();
        let phases = crate::invocation::Phases { enter: Duration::from_micros(3), ..Default::default() };
        (0..number).for_each(|_| times.observe(start, &phases));
        times
    }

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_its_count() {
        let histogram = crate::histogram::Histogram::default();
        for micros in [1, 3, 100_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut text = String::new();
        super::histogram(&mut text, "h", "a=\"b\"", &histogram.reading(), 1);
        for line in [
            "h_bucket{a=\"b\",le=\"2.5e-7\"} 0",
            "h_bucket{a=\"b\",le=\"1e-6\"} 1",
            "h_bucket{a=\"b\",le=\"2e-6\"} 1",
            "h_bucket{a=\"b\",le=\"4e-6\"} 2",
            "h_bucket{a=\"b\",le=\"16.777216\"} 2",
            "h_bucket{a=\"b\",le=\"+Inf\"} 3",
            "h_sum{a=\"b\"} 100.000004",
            "h_count{a=\"b\"} 3",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} not in\n{text}");
        }
        assert_eq!(text.lines().count(), BUCKETS + 2);
    }

    #[test]
    fn the_label_has_at_most_200_values_and_one_is_the_rest() {
        let tenant = TenantId::default();
        let names: Vec<FunctionName> = (0..NAMED_MAX + 3).map(|number| format!("f{number}").parse().unwrap()).collect();
        // The first ones have the most starts; the very first is on disk only.
        let all: Vec<StartTimes> = (0..names.len()).map(|number| times(Start::Stored, names.len() - number)).collect();
        let functions = names.iter().zip(&all).enumerate();
        let functions = functions.map(|(number, (name, starts))| FunctionStarts {
            tenant: &tenant,
            name,
            resident: number > 0,
            starts,
            totals: Totals { sums: [1.0; 7], ..Totals::default() },
        });
        let mut text = String::new();
        super::functions(&mut text, functions);
        let counters: Vec<_> = text.lines().filter(|line| line.starts_with("hob_function_starts_total{")).collect();
        assert_eq!(counters.len(), NAMED_MAX + 1);
        assert_eq!(counters[0], "hob_function_starts_total{function=\"default/f1\",start=\"stored\"} 201");
        // 202 of the first, and 2 and 1 of the last two.
        assert_eq!(counters[NAMED_MAX], "hob_function_starts_total{function=\"other\",start=\"stored\"} 205");
        assert!(text.contains("hob_function_start_seconds_count{function=\"other\",start=\"stored\"} 205"));
        assert!(text.contains("hob_function_start_seconds_bucket{function=\"default/f1\",start=\"stored\",le=\"4e-6\"} 201"));
        assert!(
            text.contains("hob_function_cpu_seconds_total{function=\"other\"} 3\n"),
            "one on disk, and two that were too many"
        );
        assert!(text.len() < 512 << 10, "{}", text.len());
    }

    #[test]
    fn values_of_labels_are_escaped() {
        assert_eq!(escape("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
