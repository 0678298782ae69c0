//! What one tenant learns of another's modules from its own deploys.

use std::time::{Duration, Instant};

use crate::case::{Seen, Stage};
use crate::guests::{self, says};
use crate::victim::quantile;

/// A tenant deploys modules that another one has and modules that nobody has: each is compiled for it, so nothing tells them apart. What it
/// has itself is found again, and is no secret to it.
pub(super) fn oracle(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let (mut theirs, mut fresh) = (Vec::new(), Vec::new());
    for turn in 0..stage.times(3, 50) {
        let round = stage.round;
        let known = guests::wasm(&says(&format!("known {round} {turn}")))?;
        let unknown = guests::wasm(&says(&format!("fresh {round} {turn}")))?;
        let name = format!("f{turn}");
        timed(stage, "acme", &name, &known, seen)?;
        for (wasm, times) in [(&known, &mut theirs), (&unknown, &mut fresh)] {
            let before = compiled(stage)?;
            times.push(timed(stage, "beta", &name, wasm, seen)?);
            let after = compiled(stage)?;
            seen.check(after == before + 1, || format!("{before} pieces of native code before a deploy, {after} after"));
        }
    }
    seen.note(format!("known to another: p50 {:.1?}; to nobody: {:.1?}", quantile(&theirs, 500), quantile(&fresh, 500)));
    Ok(())
}

/// Pieces of native code, of all tenants.
fn compiled(stage: &Stage<'_>) -> anyhow::Result<usize> {
    let mut count = 0;
    for tenant in std::fs::read_dir(stage.node.dir.join("artifacts"))? {
        count += std::fs::read_dir(tenant?.path())?.count();
    }
    Ok(count)
}

fn timed(stage: &Stage<'_>, tenant: &str, name: &str, wasm: &[u8], seen: &mut Seen) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let reply = stage.node.ask_for(tenant, "PUT", &format!("/v1/functions/{name}"), wasm)?;
    seen.answered(Some(&reply));
    Ok(began.elapsed())
}
