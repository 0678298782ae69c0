//! Figures: exact order statistics of times.
//!
//! All samples are kept, so nothing is estimated. Knows nothing about where the times come from.

use std::time::Duration;

use super::load::{Measured, Sample};
use crate::invocation::Phases;

/// Shares that are shown, in thousandths, with their names.
pub(super) const QUANTILES: [(&str, usize); 5] = [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999), ("max", 1000)];

/// What a number of times come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Figures {
    /// How many there were.
    pub(super) count: usize,
    /// In the order of [`QUANTILES`].
    pub(super) quantiles: [Duration; QUANTILES.len()],
}

impl Figures {
    /// Of `times`; `None` when there are none.
    pub(super) fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let count = times.len();
        // The smallest time that at least this share did not pass.
        let quantiles = QUANTILES.map(|(_, share)| times.get((count * share).div_ceil(1000).saturating_sub(1)).copied());
        let quantiles = quantiles.map(Option::unwrap_or_default);
        (count > 0).then_some(Self { count, quantiles })
    }

    /// Whether all were nothing.
    pub(super) fn is_nothing(&self) -> bool {
        self.quantiles.iter().all(Duration::is_zero)
    }
}

/// What is shown of one rung before the phases: two times of the client, and what the start took as the daemon measured it.
pub(super) const ROWS: [&str; 3] = ["total", "late", "start"];

/// Figures by the name of what was timed: [`ROWS`], then the phases. Empty without samples.
pub(super) fn rows(measured: &Measured) -> Vec<(&'static str, Figures)> {
    let of = |time: &dyn Fn(&Sample) -> Duration| Figures::of(measured.samples.iter().map(time).collect());
    let client = [of(&|sample| sample.total), of(&|sample| sample.late), of(&|sample| sample.phases.start())];
    let phases = (0..Phases::NAMES.len()).map(|phase| of(&move |sample: &Sample| sample.phases.times()[phase]));
    let figures = client.into_iter().chain(phases);
    ROWS.into_iter().chain(Phases::NAMES).zip(figures).filter_map(|(name, figures)| Some((name, figures?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_statistics_are_samples() {
        let ms = Duration::from_millis;
        assert_eq!(Figures::of(vec![]), None);
        assert_eq!(Figures::of(vec![ms(7)]).unwrap().quantiles, [ms(7); 5]);
        let figures = Figures::of((1..=1000).rev().map(ms).collect()).unwrap();
        assert_eq!(figures.quantiles, [500, 900, 990, 999, 1000].map(ms));
        assert_eq!(Figures::of([1, 2, 3].map(ms).to_vec()).unwrap().quantiles, [2, 3, 3, 3, 3].map(ms));
        assert!(Figures::of(vec![Duration::ZERO]).unwrap().is_nothing());
    }
}
