//! Clients that take their time: with a head, with a body, with what they asked for.

use std::time::{Duration, Instant};

use super::{HEAD_TIMER, LATE, QUEUE, RATE_TIMER, TIMER, functions, many};
use crate::case::{AddressCap, Door, PER_ADDRESS, Ready, Seen, Stage};
use crate::http;
use crate::node::Node;
use crate::observe::descriptors;
use crate::swarm::{self, Ended, Plan, Reads};

/// Runs a plan, whose connections the node must all have ended by their timer.
fn all_end(stage: &Stage<'_>, seen: &mut Seen, plan: &Plan<'_>, timer: Duration) -> anyhow::Result<Ended> {
    let ended = swarm::run(plan, seen)?;
    seen.check(ended.open == 0, || format!("{} of {} connections are still open after {:?}", ended.open, plan.count, plan.until));
    seen.check(ended.unconnected == 0, || format!("{} of {} were never connected", ended.unconnected, plan.count));
    let longest = ended.closed_after.iter().max().copied().unwrap_or_default();
    seen.check(longest <= timer + LATE, || format!("a connection was open for {longest:?}, where the timer is {timer:?}"));
    if stage.round == 2 {
        seen.note(format!("{} connections, open for at most {longest:.1?}", plan.count));
    }
    Ok(ended)
}

pub(super) fn heads(stage: &Stage<'_>, seen: &mut Seen, first: &[u8], drip: Option<&[u8]>) -> anyhow::Result<()> {
    let from = stage.from();
    // In a long run they stay for a minute; each connection has the time that heads have if nobody sets another.
    let stay = stage.times(None, Some(Duration::from_secs(60)));
    let plan = Plan {
        to: stage.addr(),
        count: many(stage),
        from: &from,
        first,
        drip: drip.map(|bytes| (Duration::from_millis(500), bytes)),
        stay,
        reads: Reads::All,
        until: stay.unwrap_or_default() + Duration::from_secs(20),
        done: None,
    };
    all_end(stage, seen, &plan, stage.times(TIMER, HEAD_TIMER)).map(drop)
}

pub(super) fn half_bodies(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    bodies(stage, seen, 100, TIMER)
}

pub(super) fn half_large_bodies(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    bodies(stage, seen, 1 << 20, TIMER + QUEUE)
}

pub(super) fn dripping_bodies(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    bodies(stage, seen, 60_000, RATE_TIMER)
}

/// `timer`: after how long the node must have ended them. Beyond its own, they drip.
fn bodies(stage: &Stage<'_>, seen: &mut Seen, len: usize, timer: Duration) -> anyhow::Result<()> {
    let from = stage.from();
    let first = format!("POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len}\r\n\r\nhello", stage.target("waits"));
    // In a long run whoever is closed comes again.
    let stay = stage.times(None, Some(Duration::from_secs(30)));
    let plan = Plan {
        to: stage.addr(),
        count: many(stage).min(2000),
        from: &from,
        first: first.as_bytes(),
        drip: (timer == RATE_TIMER).then_some((Duration::from_millis(500), &b"x"[..])),
        stay,
        reads: Reads::All,
        until: stay.unwrap_or_default() + Duration::from_secs(30),
        done: None,
    };
    all_end(stage, seen, &plan, timer).map(drop)
}

/// A body that comes a byte at a time is never silent: only a least rate ends it.
pub(super) fn dripping(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    if !Node::knows(stage.binary, "net.body_rate_min")? {
        return Ok(Ready::Skipped("the node has no setting net.body_rate_min".into()));
    }
    functions(stage)
}

pub(super) fn slow_readers(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let from = stage.from();
    let first = http::head("GET", &stage.target("streams"), &[], 0);
    let count = match stage.door {
        Door::Data => stage.times(500, 900),
        Door::Control => stage.times(150, 200),
    };
    let sockets = || descriptors(stage.node.pid()).unwrap_or(usize::MAX);
    // Of those that are taken: from one address few are.
    let taken = match stage.address_cap {
        AddressCap::Off => count,
        AddressCap::On => count.min(PER_ADDRESS),
    };
    let (before, began) = (sockets(), Instant::now());
    let done = || began.elapsed() > TIMER / 2 && sockets() < before + taken / 10;
    let plan = Plan {
        to: stage.addr(),
        count,
        from: &from,
        first: first.as_bytes(),
        drip: None,
        stay: None,
        reads: Reads::Nothing,
        until: TIMER + LATE + LATE,
        done: Some(&done),
    };
    let ended = swarm::run(&plan, seen)?;
    seen.saw("never read");
    let left = sockets().saturating_sub(before);
    seen.check(left < taken / 10, || format!("{left} of {count} connections have not ended after {:?}", plan.until));
    seen.check(ended.unconnected == 0, || format!("{} of {count} were never connected", ended.unconnected));
    if stage.round == 2 {
        seen.note(format!("{count} connections were cut after {:.1?}", began.elapsed()));
    }
    Ok(())
}
