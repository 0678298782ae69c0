//! E: what one client or tenant might see of another.

use crate::b::Dice;
use crate::case::{Books, Kind, Ready, Seen, Stage, case, deployed};
use crate::guests;

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(case("E10", "answers of others", &["200", "closed"], echo, mix).burns().books(Books::AtLeast)),
    Kind::Missing { row: "E2", name: "answers of other tenants", why: "no tenants yet" },
    Kind::Missing { row: "E3", name: "keys of other tenants", why: "no tenants yet" },
];

fn echo(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "echo", &guests::victim(), "")
}

/// Pipelined requests with a nonce each, on connections that are left at any moment: answers come in order, and to whom they belong.
fn mix(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(8, seen, |index, seen| {
        let mut dice = Dice::new(1 + index + 8 * stage.round);
        for turn in 0..stage.times(60, 20_000) {
            let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
            let count = 1 + dice.below(32);
            let nonce = |number: usize| format!("{index}/{turn}/{number}").into_bytes();
            let mut sent = Vec::new();
            for number in 0..count {
                let body = nonce(number);
                sent.extend_from_slice(crate::http::head("POST", "/echo", &[], body.len()).as_bytes());
                sent.extend_from_slice(&body);
            }
            // Some leave in the middle of what they send, some in the middle of what they get.
            let sends = if dice.below(4) == 0 { dice.below(sent.len()) } else { sent.len() };
            if conn.send(&sent[..sends]).is_err() || sends < sent.len() {
                continue;
            }
            let reads = if dice.below(4) == 0 { dice.below(count) } else { count };
            for number in 0..reads {
                let reply = conn.reply();
                seen.answered(reply.as_ref());
                let body = reply.map(|reply| reply.body);
                let right = body.as_deref() == Some(&guests::victims_answer(&nonce(number))[..]);
                seen.check(right, || format!("answer {number} of {count} is another one: {body:?}"));
            }
        }
    });
    Ok(())
}
