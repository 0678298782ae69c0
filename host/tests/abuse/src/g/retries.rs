//! G5: clients that ask again, with one key, whatever became of the answer.

use anyhow::ensure;
use rustix::process::Signal;

use crate::b::Dice;
use crate::case::{Ground, Ready, Seen, Stage, attacker, eventually};
use crate::guests::{self, says};
use crate::http::{Conn, PATIENCE, Reply};
use crate::node::{Node, Setup};
use crate::run::panics;

const COUNT: &str = "/v1/buckets/once/kv/count";
const ADD: &str = "/v1/buckets/once/kv/count?increment=1";
const REPLAYED: &str = "hob-replayed";

pub(super) fn counted(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    bucket(stage.node)?;
    Ok(Ready::Yes)
}

fn bucket(node: &Node) -> anyhow::Result<()> {
    let made = node.ask("PUT", "/v1/buckets/once", b"")?;
    ensure!(made.status == 201, "the bucket: {} {}", made.key(), made.text());
    Ok(())
}

/// What has been added up, 0 before the first change.
fn count(node: &Node) -> anyhow::Result<u64> {
    let reply = node.ask("GET", COUNT, b"")?;
    match reply.status {
        404 => Ok(0),
        _ => Ok(reply.text().parse()?),
    }
}

/// Eight at once with one key: one change, one answer for all, and nothing for who wants something else with it.
pub(super) fn crowd(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let (before, turns) = (count(stage.node)?, stage.times(20, 500));
    let answers = std::sync::Mutex::new(std::collections::BTreeSet::new());
    for turn in 0..turns {
        let key = format!("{}-{turn}", stage.round);
        stage.crowd(8, seen, |index, seen| {
            if let Some(reply) = insist(stage, index, "POST", ADD, &key, b"", seen) {
                answers.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(reply.text());
            }
        });
        let others: [(&str, &str, &[u8]); 3] =
            [("POST", "/v1/buckets/once/kv/count?increment=2", b""), ("PUT", COUNT, b"0"), ("DELETE", COUNT, b"")];
        for (method, target, body) in others {
            let reply = stage.ask(turn, method, target, &[("idempotency-key", &key)], body, seen);
            let right = reply.as_ref().is_some_and(|reply| reply.status == 422);
            seen.check(right, || {
                format!("{method} {target} with a key of another request: {:?}", reply.map(|reply| reply.key()))
            });
        }
    }
    let (after, turns) = (count(stage.node)?, turns as u64);
    seen.check(after == before + turns, || format!("{turns} changes by eight each: {before} became {after}"));
    let answers = answers.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()).len() as u64;
    seen.check(answers == turns, || format!("{turns} changes had {answers} answers"));

    let (name, key) = (format!("once{}", stage.round), format!("deploy-{}", stage.round));
    let wasm = guests::wasm(&says("once"))?;
    stage.crowd(8, seen, |index, seen| {
        insist(stage, index, "PUT", &format!("/v1/functions/{name}"), &key, &wasm, seen);
    });
    let revisions = stage.node.ask("GET", &format!("/v1/functions/{name}/revisions"), b"")?.json()?;
    let count = revisions["items"].as_array().map_or(0, Vec::len);
    seen.check(count == 1, || format!("a deploy by eight with one key made {count} revisions"));
    let long = "k".repeat(256);
    for key in ["", "a b", long.as_str(), "\u{fffd}"] {
        stage.ask(0, "POST", ADD, &[("idempotency-key", key)], b"", seen);
    }
    seen.check(self::count(stage.node)? == after, || "a malformed key changed something".into());
    Ok(())
}

/// Asks until it is not told to wait.
fn insist(stage: &Stage<'_>, index: usize, method: &str, target: &str, key: &str, body: &[u8], seen: &mut Seen) -> Option<Reply> {
    let mut last = None;
    let answered = eventually(PATIENCE, || {
        last = stage.ask(index, method, target, &[("idempotency-key", key)], body, seen);
        let waits = last.as_ref().is_some_and(|reply| reply.status == 409);
        let says_when = last.as_ref().is_some_and(|reply| reply.header("retry-after").is_some());
        seen.check(!waits || says_when, || "told to wait, and not for how long".into());
        Ok(!waits)
    });
    seen.check(answered.is_ok_and(|answered| answered), || format!("{method} {target} was told to wait for ever"));
    last
}

/// A node that is killed when the change can be seen and nobody has read the answer, or at any moment: asked again, there is one change.
pub(super) fn kills(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    let dir = ground.dir.join("data");
    let mut node = Node::start(ground.binary, &dir, &Setup::default())?;
    bucket(&node)?;
    let (mut dice, mut replayed) = (Dice::new(11), 0);
    let turns = ground.times(8, 200);
    for turn in 1..=turns {
        let wasm = guests::wasm(&says(&turn.to_string()))?;
        let is_deploy = turn % 2 == 0;
        let (method, target, body) =
            if is_deploy { ("PUT", "/v1/functions/f", wasm.as_slice()) } else { ("POST", ADD, &b""[..]) };
        let (key, expected) = (format!("change-{turn}"), turn / 2 + u64::from(!is_deploy));
        let made = |node: &Node| if is_deploy { live(node) } else { count(node) };
        let mut lost = Conn::open(node.control, attacker(0))?;
        lost.request(method, target, &[("idempotency-key", &key)], body);
        let is_seen = turn % 4 < 2 || turn % 8 > 5;
        if is_seen {
            let is_made = eventually(PATIENCE, || Ok(made(&node)? == expected))?;
            ensure!(is_made, "the change {turn} was never made");
        } else {
            std::thread::sleep(std::time::Duration::from_micros(dice.next() % 50_000));
        }
        node.signal(Signal::KILL)?;
        node.wait()?;
        panics(&node.stderr(), seen);
        node = Node::start(ground.binary, &dir, &Setup::default())?;
        let again = node.ask_as(method, target, &[("idempotency-key", &key)], body)?;
        seen.answered(Some(&again));
        let is_replay = again.header(REPLAYED).is_some();
        replayed += u64::from(is_replay);
        seen.check(is_replay || !is_seen, || {
            format!("change {turn} was there, and asked again: {} {}", again.key(), again.text())
        });
        let now = made(&node)?;
        seen.check(now == expected, || {
            format!("after kill {turn} and asking again: {now}, where {expected} would be one change each")
        });
        let other = node.ask_as("DELETE", COUNT, &[("idempotency-key", &key)], b"")?;
        seen.answered(Some(&other));
    }
    seen.note(format!("{replayed} of {turns} answers were lost with their node and given again"));
    Ok(Ready::Yes)
}

/// The live revision, 0 before the first.
fn live(node: &Node) -> anyhow::Result<u64> {
    let reply = node.ask("GET", "/v1/functions/f", b"")?;
    match reply.status {
        404 => Ok(0),
        _ => Ok(reply.json()?["revision"].as_u64().unwrap_or(0)),
    }
}
