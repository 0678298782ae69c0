//! How figures are printed.

use std::io::Write;

use clap::ValueEnum;

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A line for people.
    Text,
    /// A JSON object for each figure.
    Json,
}

/// Prints figures as they come.
#[derive(Debug)]
pub(crate) struct Report(Format);

/// One figure of one system.
#[derive(Debug)]
pub(crate) struct Figure<'a> {
    pub(crate) scenario: &'a str,
    pub(crate) system: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) value: f64,
    pub(crate) unit: &'a str,
    /// To the scenario's ceiling, or to what the unit says; `None` where there is nothing to compare with.
    pub(crate) ratio: Option<f64>,
}

impl Report {
    pub(crate) fn new(format: Format) -> Self {
        Self(format)
    }

    pub(crate) fn figure(&self, figure: &Figure<'_>) -> std::io::Result<()> {
        let Figure { scenario, system, metric, value, unit, ratio } = figure;
        let mut out = std::io::stdout().lock();
        match self.0 {
            Format::Text => {
                let ratio = ratio.map(|ratio| format!("  {ratio:.3} of the ceiling")).unwrap_or_default();
                writeln!(out, "{scenario}  {system:<24} {metric:<18} {value:>12.2} {unit}{ratio}")
            }
            Format::Json => {
                let line = serde_json::json!({
                    "scenario": scenario, "system": system, "metric": metric, "value": value, "unit": unit, "ratio": ratio,
                });
                writeln!(out, "{line}")
            }
        }
    }

    /// A remark that is no figure.
    pub(crate) fn note(&self, text: &str) {
        // Whoever reads figures from standard output must not meet it.
        let _closed = writeln!(std::io::stderr(), "{text}");
    }
}

/// The value below which the part `quantile` of the sorted `values` lies.
pub(crate) fn quantile(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index of a short list"
    )]
    let index = ((values.len() as f64 - 1.0) * quantile).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}
