//! Manifests: any text is read or refused, and what was read is written and read again as the same.

use anyhow::ensure;
use hob::manifest::Manifest;

use crate::corpus::Corpus;
use crate::dice::Dice;
use crate::report::Report;

/// Beyond the longest manifest, so that its bound is met.
const LEN_MAX: usize = 70 << 10;

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let corpus = Corpus::of("manifest", [])?;
    for number in 0..runs {
        let input = corpus.input(&mut Dice::new(seed, number), number, LEN_MAX);
        let end = corpus.check(&input, |input| {
            let Ok(text) = std::str::from_utf8(input) else { return Ok("no text") };
            let Ok(manifest) = Manifest::parse(text) else { return Ok("refused") };
            let json = serde_json::to_string(&manifest)?;
            ensure!(serde_json::from_str::<Manifest>(&json)? == manifest, "what was written is read as another: {json}");
            // Both are asked of every manifest that is deployed.
            let _notes = (manifest.notes(), manifest.snapshot_inputs(None, None));
            Ok("read")
        })?;
        report.count(end);
    }
    Ok(())
}
