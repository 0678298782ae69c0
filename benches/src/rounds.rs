//! Systems that take turns, so that what drifts in the machine drifts for all of them.

use crate::calls::Pass;
use crate::report::{Figure, Report, quantile};

/// One system in a comparison.
pub(crate) struct Turn<'a> {
    name: String,
    run: Box<dyn FnMut() -> anyhow::Result<Vec<f64>> + 'a>,
    samples: Vec<f64>,
    counting: Option<Counting>,
}

/// What one round does, and which processes take part.
struct Counting {
    count: usize,
    len: usize,
    processes: Vec<u32>,
}

impl<'a> Turn<'a> {
    /// `run`: one round, whose samples are all in the same unit.
    pub(crate) fn new(name: impl Into<String>, run: impl FnMut() -> anyhow::Result<Vec<f64>> + 'a) -> Self {
        Self { name: name.into(), run: Box::new(run), samples: Vec::new(), counting: None }
    }

    /// Calls of the system are counted too, in a round more that no time is taken from. `count`: what is done in a round; `len`: the bytes
    /// that each is about; `others`: the processes that take part beside this one.
    pub(crate) fn counting(self, count: usize, len: usize, others: &[u32]) -> Self {
        let processes = [&[std::process::id()], others].concat();
        Self { counting: Some(Counting { count, len, processes }), ..self }
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measure<'a> {
    pub(crate) scenario: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) unit: &'a str,
    /// What is printed of all samples, by name; of the first comes the ratio to the ceiling.
    pub(crate) statistics: &'a [(&'a str, Statistic)],
}

/// One number for many.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Statistic {
    Mean,
    /// The value below which this part lies.
    Quantile(f64),
}

/// The median, and what is slow.
pub(crate) const TIMES: [(&str, Statistic); 2] = [("p50", Statistic::Quantile(0.5)), ("p99", Statistic::Quantile(0.99))];
/// The median of rates, of which there is one for each round.
pub(crate) const MEDIAN: [(&str, Statistic); 1] = [("median", Statistic::Quantile(0.5))];

impl Statistic {
    fn of(self, samples: &mut [f64]) -> f64 {
        match self {
            Self::Quantile(at) => quantile(samples, at),
            #[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
            Self::Mean => samples.iter().sum::<f64>() / samples.len() as f64,
        }
    }
}

/// Lets `turns` take turns and prints their figures, then counters of those that have any; the first is the ceiling. Returns the first statistic of each.
pub(crate) fn alternate(
    report: &Report,
    measure: Measure<'_>,
    rounds: usize,
    mut turns: Vec<Turn<'_>>,
) -> anyhow::Result<Vec<f64>> {
    for _ in 0..rounds {
        for turn in &mut turns {
            let samples = (turn.run)()?;
            turn.samples.extend(samples);
        }
    }
    let mut firsts = Vec::with_capacity(turns.len());
    for turn in &mut turns {
        for (number, (name, statistic)) in measure.statistics.iter().enumerate() {
            let value = statistic.of(&mut turn.samples);
            let mut ratio = None;
            if number == 0 {
                firsts.push(value);
                ratio = Some(value / firsts[0]);
            }
            let metric = format!("{} {name}", measure.metric);
            let Measure { scenario, unit, .. } = measure;
            report.figure(&Figure { scenario, system: &turn.name, metric: &metric, value, unit, ratio })?;
        }
    }
    for Turn { name, run, counting, .. } in &mut turns {
        if let Some(Counting { count, len, processes }) = counting {
            let Measure { scenario, metric, .. } = measure;
            let pass = Pass { scenario, system: name, metric, count: *count, len: *len, processes };
            pass.run(report, || run().map(drop))?;
        }
    }
    Ok(firsts)
}
