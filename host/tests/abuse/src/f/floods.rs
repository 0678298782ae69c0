//! Many requests on one connection, and many connections.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::case::{Seen, Stage};
use crate::guests;
use crate::http;
use crate::node::HOME;
use crate::swarm::{self, Plan, Reads};

/// `net.requests_max`: a connection ends after so many, however many were sent.
const REQUESTS_MAX: usize = 10_000;

pub(super) fn pipelines(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let count = stage.times(3000, 100_000);
    let mut from = 0;
    while from < count {
        let answered = pipeline(stage, from, count, seen)?;
        from += answered;
        if from < count && answered != REQUESTS_MAX {
            seen.complain(format!("the connection ended at request {from} of {count}, after {answered}"));
            break;
        }
    }
    Ok(())
}

/// Sends all requests from one number on, and reads answers until the connection ends or nothing is missing. Answers how many came.
fn pipeline(stage: &Stage<'_>, from: usize, count: usize, seen: &mut Seen) -> anyhow::Result<usize> {
    let target = stage.target("echo");
    let mut conn = stage.connect(0)?;
    let mut sender = Vec::new();
    for number in from..count {
        let nonce = format!("number {number}");
        sender.extend_from_slice(http::head("POST", &target, &[], nonce.len()).as_bytes());
        sender.extend_from_slice(nonce.as_bytes());
    }
    let mut writer = conn.writer()?;
    let mut answered = 0;
    std::thread::scope(|scope| {
        let sending = scope.spawn(move || std::io::Write::write_all(&mut writer, &sender));
        for number in from..count {
            let Some(reply) = conn.reply() else { break };
            answered += 1;
            let right = reply.body == guests::victims_answer(format!("number {number}").as_bytes());
            let says_so = reply.header("connection") == Some("close");
            seen.answered(Some(&reply));
            seen.check(says_so == (answered == REQUESTS_MAX), || {
                format!("answer {answered} of a connection: close is {says_so}")
            });
            if !right {
                seen.complain(format!("answer {number} is out of order, or of another: {}", reply.text()));
                break;
            }
        }
        // It ends when the connection does.
        drop(conn);
        let sent = sending.join();
        let is_cut = answered == REQUESTS_MAX;
        seen.check(is_cut || matches!(sent, Ok(Ok(()))), || format!("not all of it could be sent: {sent:?}"));
    });
    Ok(answered)
}

pub(super) fn churn(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    // One address has some 28,000 ports, and each waits for a minute after its connection: three rounds are below that.
    let many = if stage.from().len() == 1 { 2_000 } else { 20_000 };
    stage.crowd(4, seen, |index, seen| {
        for turn in 0..stage.times(400, many) {
            stage.get(index + 4 * turn, "good", seen);
        }
    });
    Ok(())
}

/// Takes every connection there is, and holds them: who looks after the node is answered, and so are the connections that are there.
pub(super) fn exhaust(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let node = stage.node;
    let from = stage.from();
    let over = std::sync::atomic::AtomicBool::new(false);
    let used = crate::observe::processor_time(node.pid())?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut asked, mut longest) = (0, Duration::ZERO);
            while !over.load(std::sync::atomic::Ordering::SeqCst) {
                let began = Instant::now();
                let reply = node.ask("GET", "/readyz", b"")?;
                ensure!(reply.status == 200, "the control port answers {}", reply.key());
                longest = longest.max(began.elapsed());
                asked += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            anyhow::Ok((asked, longest))
        });
        let plan = Plan {
            to: node.data,
            count: stage.times(1500, 5000),
            from: &from,
            first: b"",
            drip: None,
            stay: None,
            reads: Reads::All,
            until: Duration::from_secs(15),
            done: None,
        };
        let ended = swarm::run(&plan, seen);
        over.store(true, std::sync::atomic::Ordering::SeqCst);
        match asking.join() {
            Ok(Ok((asked, longest))) => {
                seen.note(format!("the control port answered {asked} times, after at most {longest:.1?}"));
                if longest > Duration::from_secs(1) {
                    seen.slow.push(format!("the control port took {longest:.1?}"));
                }
            }
            Ok(Err(error)) => seen.complain(format!("the control port, while connections ran out: {error:#}")),
            Err(_) => seen.complain("the thread that asks panicked"),
        }
        ended?;
        anyhow::Ok(())
    })?;
    let share = (crate::observe::processor_time(node.pid())? - used).as_secs_f64() / began.elapsed().as_secs_f64();
    seen.check(share < 1.0, || format!("the node took {share:.1} processors while connections waited"));
    let freed = Instant::now();
    let again = crate::case::eventually(Duration::from_secs(1), || {
        let reply = http::request(node.data, HOME, "GET", "/good", &[("connection", "close")], b"");
        Ok(reply.is_ok_and(|reply| reply.status == 200))
    })?;
    seen.check(again, || "a second after the connections ended, the data port does not answer".into());
    seen.note(format!("new connections were answered {:.1?} after the end", freed.elapsed()));
    Ok(())
}
