//! Which revision is live: under races, under load, and after a kill.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use crate::b::Dice;
use crate::case::{Ground, Ready, Seen, Stage, attacker, deployed};
use crate::guests::{self, says};
use crate::http;
use crate::node::{HOME, Node, Setup};
use crate::run::panics;

pub(super) fn racers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "race", &says("0"), "")
}

/// Many deploy on top of the same revision: one wins, and the others learn of it.
pub(super) fn race(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    for turn in 0..stage.times(2, 200) {
        let tag = stage.node.inspect("race")?["etag"].as_str().context("no tag")?.to_owned();
        let winners = AtomicUsize::new(0);
        stage.crowd(6, seen, |index, seen| {
            let Ok(wasm) = guests::wasm(&says(&format!("{turn} {index} {}", stage.round))) else { return };
            let headers = [("if-match", &*tag), ("content-type", "application/wasm")];
            let reply = http::request(stage.node.control, attacker(index), "PUT", "/v1/functions/race", &headers, &wasm);
            seen.answered(reply.as_ref().ok());
            if reply.is_ok_and(|reply| reply.status == 200) {
                winners.fetch_add(1, Ordering::SeqCst);
            }
        });
        let winners = winners.into_inner();
        seen.check(winners == 1, || format!("{winners} of 6 deploys on top of one revision were taken"));
    }
    Ok(())
}

const VERSION_LEN: usize = 8000;

pub(super) fn flippers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for version in ["a", "b"] {
        deployed(stage, "flips", &says(&version.repeat(VERSION_LEN)), "")?;
    }
    Ok(Ready::Yes)
}

/// Every answer is wholly of one revision, while it changes 20 times a second.
pub(super) fn flip(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flipping = scope.spawn(|| {
            for turn in 0..stage.times(20, 2000) {
                let to = format!("{{\"to\": {}}}", 1 + turn % 2);
                let reply = stage.node.ask("POST", "/v1/functions/flips/rollback", to.as_bytes())?;
                ensure!(reply.status == 200, "a rollback: {} {}", reply.key(), reply.text());
                std::thread::sleep(Duration::from_millis(50));
            }
            over.store(true, Ordering::SeqCst);
            anyhow::Ok(())
        });
        stage.crowd(4, seen, |index, seen| {
            let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
            let mut turn = 0;
            while !over.load(Ordering::SeqCst) && !flipping.is_finished() {
                turn += 1;
                // A connection has so many requests (`net.requests_max`).
                if turn % 5000 == 0 {
                    let Ok(another) = stage.connect(index) else { return seen.complain("no connection") };
                    conn = another;
                }
                conn.request("GET", "/flips", &[], b"");
                let reply = conn.reply();
                seen.answered(reply.as_ref());
                let body = reply.map(|reply| reply.body).unwrap_or_default();
                let whole = body.len() == VERSION_LEN && body.iter().all(|byte| *byte == body[0]);
                seen.check(whole, || format!("an answer of {} bytes is of no one revision", body.len()));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        match flipping.join() {
            Ok(outcome) => outcome,
            Err(_) => anyhow::bail!("the thread that deploys panicked"),
        }
    })
}

/// A node that is killed at any moment of a deploy has, after its start, the old revision or the new one, and what was acknowledged.
pub(super) fn kills(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    let dir = ground.dir.join("data");
    let mut node = Node::start(ground.binary, &dir, &Setup::default())?;
    node.deploy_wat("f", &says("0"), "")?;
    let (mut acknowledged, mut dice, mut longest) = (0, Dice::new(7), Duration::ZERO);
    for turn in 1..=ground.times(12, 300) {
        let wasm = guests::wasm(&says(&turn.to_string()))?;
        let (control, wait) = (node.control, Duration::from_micros(dice.next() % 120_000));
        let deploy = std::thread::spawn(move || {
            let headers = [("content-type", "application/wasm"), ("connection", "close")];
            http::request(control, HOME, "PUT", "/v1/functions/f", &headers, &wasm).ok().map(|reply| reply.status)
        });
        std::thread::sleep(wait);
        node.signal(Signal::KILL)?;
        node.wait()?;
        panics(&node.stderr(), seen);
        let status = deploy.join().ok().flatten();
        match status {
            Some(status) => seen.saw(&status.to_string()),
            None => seen.saw("killed"),
        }
        if status.is_some_and(|status| matches!(status, 200 | 201)) {
            acknowledged = turn;
        }
        let began = Instant::now();
        node = Node::start(ground.binary, &dir, &Setup::default())?;
        longest = longest.max(began.elapsed());
        let reply = crate::case::home(&node, "GET", "/f", &[], b"")?;
        let live = reply.text().parse::<u32>().ok();
        let right = reply.status == 200 && live.is_some_and(|live| live >= acknowledged && live <= turn);
        seen.check(right, || format!("after kill {turn}: {} '{}', acknowledged was {acknowledged}", reply.key(), reply.text()));
        let left = std::fs::read_dir(dir.join("staging"))?.count();
        seen.check(left == 0, || format!("after kill {turn}: {left} unfinished files"));
        acknowledged = live.unwrap_or(acknowledged);
    }
    seen.note(format!("the longest start after a kill took {longest:.1?}"));
    Ok(Ready::Yes)
}
