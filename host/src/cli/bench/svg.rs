//! The report as a picture: one bar for each time of each rung, on a logarithmic axis.
//!
//! Owns the drawing alone. Invariant: whatever the report says, the picture is well-formed XML and runs no script.

use std::fmt::Write as _;
use std::time::Duration;

use super::figures::{Figures, QUANTILES};
use super::report::{Report, Rung};
use crate::cli::text::span;
use crate::invocation::Start;

const WIDTH: f64 = 1000.0;
/// Where the axis begins and ends.
const AXIS: (f64, f64) = (190.0, 800.0);
const ROW: f64 = 20.0;
const TOP: f64 = 90.0;

/// Colours that people who confuse red and green tell apart (Okabe and Ito, 2008).
fn colour(rung: Start) -> &'static str {
    match rung {
        Start::Ready => "#009e73",
        Start::Resident => "#0072b2",
        Start::Stored => "#b87a00",
        Start::Compiled => "#d55e00",
    }
}

/// The axis: powers of ten of a nanosecond.
struct Scale {
    from: i32,
    to: i32,
}

impl Scale {
    fn of(report: &Report) -> Self {
        let times = report.rungs.iter().flat_map(|rung| &rung.rows).flat_map(|(_, figures)| figures.quantiles);
        let exponents = times.filter(|time| !time.is_zero()).map(log);
        let (from, to) = exponents.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), at| (at.min(from), at.max(to)));
        if from > to {
            return Self { from: 3, to: 6 };
        }
        #[expect(clippy::cast_possible_truncation, reason = "a logarithm of a duration is below 30")]
        let (from, to) = (from.floor() as i32, to.ceil() as i32);
        Self { from, to: to.max(from + 1) }
    }

    /// Where a time is; nothing is where the axis begins.
    fn x(&self, time: Duration) -> f64 {
        let part = (log(time) - f64::from(self.from)) / f64::from(self.to - self.from);
        AXIS.0 + part.clamp(0.0, 1.0) * (AXIS.1 - AXIS.0)
    }
}

fn log(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e9).max(1e-3).log10()
}

/// Text between tags or quotes. Control characters, which XML has no way to write, were escaped where the report was made.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

struct Picture(String);

impl Picture {
    fn push(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing into a String cannot fail.
        let _ = writeln!(self.0, "{line}");
    }

    fn text(&mut self, x: f64, y: f64, class: &str, words: &str) {
        self.push(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", escape(words)));
    }

    fn grid(&mut self, scale: &Scale, bottom: f64) {
        for power in scale.from..=scale.to {
            let time = Duration::from_secs_f64(10f64.powi(power - 9));
            let x = scale.x(time);
            self.push(format_args!("<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" class=\"grid\"/>"));
            self.text(x, TOP - 8.0, "tick", &tick(power));
        }
    }

    /// One bar: thin to the largest, thick from p50 to p99, a mark for each quantile.
    fn bar(&mut self, scale: &Scale, y: f64, rung: &Rung, name: &str, figures: &Figures) {
        let colour = colour(rung.plan.rung);
        let xs = figures.quantiles.map(|time| scale.x(time));
        self.text(AXIS.0 - 12.0, y + 4.0, "name", name);
        for (to, width) in [(xs[4], 2), (xs[2], 7)] {
            self.push(format_args!(
                "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{to:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\" stroke-opacity=\"0.45\"/>",
                xs[0]
            ));
        }
        for ((x, (quantile, _)), time) in xs.into_iter().zip(QUANTILES).zip(figures.quantiles) {
            let (radius, fill) = if quantile == "p50" { (5.0, colour) } else { (3.0, "#ffffff") };
            self.push(format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{colour}\" stroke-width=\"1.5\">\
                 <title>{} {name} {quantile}: {}</title></circle>",
                rung.name(),
                span(time)
            ));
        }
        let [p50, _, p99, ..] = figures.quantiles;
        self.text(AXIS.1 + 34.0, y + 4.0, "value", &format!("{} / {} / {}", span(p50), span(p99), figures.count));
    }
}

fn tick(power: i32) -> String {
    let (base, unit) = match power {
        ..3 => (0, "ns"),
        3..6 => (3, "us"),
        6..9 => (6, "ms"),
        _ => (9, "s"),
    };
    match power - base {
        exponent @ 0.. => format!("1{} {unit}", "0".repeat(usize::try_from(exponent).unwrap_or_default())),
        exponent => format!("1e{exponent} {unit}"),
    }
}

/// The picture of a report.
pub(super) fn draw(report: &Report) -> String {
    let shown = |rung: &Rung| rung.rows.iter().filter(|(_, figures)| !figures.is_nothing()).count().max(1);
    let rows: usize = report.rungs.iter().map(|rung| shown(rung) + 1).sum();
    #[expect(clippy::cast_precision_loss, reason = "a few dozen rows")]
    let bottom = TOP + rows as f64 * ROW;
    #[expect(clippy::cast_precision_loss, reason = "a few lines")]
    let height = bottom + 46.0 + report.about.len() as f64 * 16.0;
    let scale = Scale::of(report);
    let mut picture = Picture(String::new());
    picture.push(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">"
    ));
    picture.push(format_args!("<title>Starts of {}</title>", escape(&report.title())));
    picture.push(format_args!(
        "<style>text{{font:12px sans-serif;fill:#222}}.head{{font-size:16px;font-weight:bold}}.rung{{font-weight:bold}}\
         .name{{text-anchor:end}}.tick{{text-anchor:middle;fill:#555}}.small{{font-size:11px;fill:#555}}.grid{{stroke:#ddd}}</style>"
    ));
    picture.push(format_args!("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"));
    picture.text(20.0, 28.0, "head", &format!("Starts of {}", report.title()));
    let legend = "time on a logarithmic axis; full dot: p50; rings: p90, p99, p99.9, max; thick bar: p50 to p99";
    picture.text(20.0, 50.0, "small", legend);
    picture.text(AXIS.1 + 34.0, TOP - 8.0, "value", "p50 / p99 / count");
    picture.grid(&scale, bottom);
    let mut y = TOP;
    for rung in &report.rungs {
        y += ROW;
        picture.text(20.0, y + 4.0, "rung", rung.name());
        let mut sent = format!("{} requests, {}", rung.plan.count, rung.rate());
        if !rung.rows.is_empty() && !rung.missed.is_empty() {
            let _ = write!(sent, "; {}", rung.missed);
        }
        picture.text(AXIS.0, y + 4.0, "small", &sent);
        if rung.rows.is_empty() {
            picture.text(AXIS.0, y + 4.0, "small", &format!("not reached: {}", rung.missed));
            y += ROW;
        }
        for (name, figures) in rung.rows.iter().filter(|(_, figures)| !figures.is_nothing()) {
            picture.bar(&scale, y, rung, name, figures);
            y += ROW;
        }
    }
    y = bottom + 24.0;
    let limits = [("limits", report.limits())];
    for (name, value) in limits.iter().chain(&report.about) {
        picture.text(20.0, y, "small", &format!("{name}: {value}"));
        y += 16.0;
    }
    picture.push(format_args!("</svg>"));
    picture.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_have_units() {
        let ticks: Vec<_> = (-1..11).map(tick).collect();
        assert_eq!(ticks[..6], ["1e-1 ns", "1 ns", "10 ns", "100 ns", "1 us", "10 us"]);
        assert_eq!(ticks[6..], ["100 us", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]);
    }

    #[test]
    fn the_axis_holds_every_time() {
        let scale = Scale { from: 3, to: 5 };
        assert_eq!([1, 10, 100].map(|us| scale.x(Duration::from_micros(us))), [AXIS.0, (AXIS.0 + AXIS.1) / 2.0, AXIS.1]);
        assert_eq!((scale.x(Duration::ZERO), scale.x(Duration::MAX)), AXIS);
    }

    #[test]
    fn text_cannot_become_a_tag() {
        assert_eq!(escape("<a b=\"c\">&"), "&lt;a b=&quot;c&quot;&gt;&amp;");
    }
}
