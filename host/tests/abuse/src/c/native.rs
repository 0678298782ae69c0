//! Native code that is damaged, or another's.

use std::time::Instant;

use super::files;
use crate::b::Dice;
use crate::case::{Ready, Seen, Stage, deployed};
use crate::guests::says;
use crate::http;
use crate::node::HOME;

const FUNCTIONS: usize = 6;

pub(super) fn artifacts(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for number in 0..FUNCTIONS {
        deployed(stage, &format!("f{number}"), &says(&format!("I am {number}")), "")?;
    }
    Ok(Ready::Yes)
}

/// Every function answers as itself, from its file.
fn all_answer(stage: &Stage<'_>, seen: &mut Seen) {
    for number in 0..FUNCTIONS {
        let target = format!("/v1/functions/f{number}/invoke");
        let began = Instant::now();
        // What must be compiled first may be 503 after two seconds, and is asked again.
        loop {
            let headers = [("hob-start", "stored")];
            let reply = http::request(stage.node.control, HOME, "GET", &target, &headers, b"").ok();
            if reply.as_ref().is_some_and(|reply| reply.status == 503) && began.elapsed() < http::PATIENCE {
                continue;
            }
            seen.answered(reply.as_ref());
            let text = reply.map(|reply| reply.text()).unwrap_or_default();
            seen.check(text == format!("I am {number}"), || format!("function {number} answers '{text:.200}'"));
            break;
        }
    }
}

/// Files take the place of others by renaming, as whoever may write there would do it; what is mapped stays as it was.
fn put(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<()> {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes)?;
    Ok(std::fs::rename(beside, path)?)
}

pub(super) fn damage(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let mut dice = Dice::new(1 + stage.round);
    let before = stage.node.metric("hob_artifacts_corrupt_total")?;
    for turn in 0..stage.times(1, 200) {
        for (number, path) in files(stage.node, "artifacts")?.iter().enumerate() {
            let mut bytes = std::fs::read(path)?;
            let at = dice.below(bytes.len().max(1));
            match (turn + number + stage.round) % 5 {
                0 if at < bytes.len() => bytes[at] ^= 1 << dice.below(8),
                1 => bytes.truncate(at),
                2 => bytes.fill(0),
                3 => bytes.clear(),
                _ if at < bytes.len() => (0..64).for_each(|_| bytes[dice.below(at + 1)] ^= dice.next().to_le_bytes()[0]),
                _ => {}
            }
            put(path, &bytes)?;
        }
        all_answer(stage, seen);
    }
    let found = stage.node.metric("hob_artifacts_corrupt_total")? - before;
    seen.check(found > 0, || "N7: no damage was counted".into());
    Ok(())
}

pub(super) fn swap(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for _ in 0..stage.times(1, 50) {
        let paths = files(stage.node, "artifacts")?;
        let bytes = paths.iter().map(std::fs::read).collect::<Result<Vec<_>, _>>()?;
        for (path, other) in paths.iter().zip(bytes.iter().cycle().skip(1)) {
            put(path, other)?;
        }
        all_answer(stage, seen);
    }
    Ok(())
}
