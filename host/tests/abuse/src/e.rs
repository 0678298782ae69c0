//! E: what one client or tenant might see of another.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};

use crate::b::Dice;
use crate::case::{Books, Kind, Ready, Seen, Stage, case, deployed};
use crate::guests;
use crate::tenants::{self, TENANTS};

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(case("E10", "answers of others", &["200", "closed"], echo, mix).burns().books(Books::AtLeast)),
    Kind::Beside(
        case("E2", "answers of other tenants", &["200"], tenants::twins, mix_tenants)
            .burns()
            .settings(&["net.base_domain=hob.example"]),
    ),
    Kind::Beside(case("E3", "keys of other tenants", &["204", "200", "404 *"], buckets, keys).at_control()),
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

/// Tenants that named everything alike, by turns on the same connections: each answer is of who was asked, with what was sent.
fn mix_tenants(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(8, seen, |index, seen| {
        let mut dice = Dice::new(1 + index + 8 * stage.round);
        let Ok(mut conn) = stage.connect(index) else { return seen.complain("no connection") };
        for turn in 0..stage.times(400, 100_000) {
            let tenant = [TENANTS[0], TENANTS[1], "default"][dice.below(3)];
            let nonce = format!("{index}/{turn}");
            let host = format!("{tenant}.hob.example");
            conn.request("POST", "/same", &[("host", &host)], nonce.as_bytes());
            let reply = conn.reply();
            seen.answered(reply.as_ref());
            let said = reply.as_ref().map(crate::http::Reply::text);
            seen.check(said.as_deref() == Some(&*format!("{tenant}/{nonce}")), || {
                format!("{tenant} was asked {nonce}: {said:?}")
            });
            // A connection has a bounded number of requests.
            if reply.is_none_or(|reply| reply.header("connection") == Some("close")) {
                match stage.connect(index) {
                    Ok(next) => conn = next,
                    Err(_) => return seen.complain("no connection"),
                }
            }
        }
    });
    Ok(())
}

/// Tenants and buckets whose names are beginnings of each other: `t` has `ab` and `a`, `ta` has `b` and `a`.
const BUCKETS: [(&str, &str); 4] = [("t", "ab"), ("t", "a"), ("ta", "b"), ("ta", "a")];

fn buckets(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for (tenant, bucket) in BUCKETS {
        // There already after its first bucket.
        stage.node.ask("PUT", &format!("/v1/tenants/{tenant}"), b"{}")?;
        let made = stage.node.ask_for(
            tenant,
            "PUT",
            &format!("/v1/buckets/{bucket}"),
            b"{\"durability\": \"volatile\", \"bytes_max\": 1048576}",
        )?;
        ensure!(made.status == 201, "the bucket {bucket} of {tenant}: {} {}", made.key(), made.text());
    }
    Ok(Ready::Yes)
}

/// Keys as their bytes, and as a target has them.
const KEYS: [(&[u8], &str); 10] = [
    (b"a", "a"),
    (b"bc", "bc"),
    (b"abc", "abc"),
    (b"../b/a", "..%2fb%2fa"),
    (b"a\0", "a%00"),
    (b"a\0a", "a%00a"),
    (b"\0", "%00"),
    (b"\xff", "%ff"),
    (b"\xff\xff\xff", "%ff%ff%ff"),
    (b"t", "t"),
];

type Model = BTreeMap<(usize, &'static [u8]), String>;

/// Random writes and deletes, against a model: what one bucket has, no other shows, by its key or in a list.
fn keys(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let mut dice = Dice::new(1 + stage.round);
    let mut model = Model::new();
    for number in 0..BUCKETS.len() {
        for (_, target) in KEYS {
            seen.answered(Some(&ask_key(stage, number, "DELETE", target, b"")?));
        }
    }
    for turn in 0..stage.times(150, 20_000) {
        let number = dice.below(BUCKETS.len());
        let (key, target) = KEYS[dice.below(KEYS.len())];
        if dice.below(4) == 0 {
            let gone = ask_key(stage, number, "DELETE", target, b"")?;
            seen.answered(Some(&gone));
            let was = model.remove(&(number, key)).is_some();
            seen.check((gone.status == 204) == was, || {
                format!("the delete of {target} in {:?}: {}", BUCKETS[number], gone.key())
            });
        } else {
            let value = format!("{number}/{turn}");
            let written = ask_key(stage, number, "PUT", target, value.as_bytes())?;
            seen.answered(Some(&written));
            seen.check(written.status == 204, || format!("the write of {target}: {} {}", written.key(), written.text()));
            model.insert((number, key), value);
        }
        let (key, target) = KEYS[dice.below(KEYS.len())];
        let number = dice.below(BUCKETS.len());
        let found = ask_key(stage, number, "GET", target, b"")?;
        seen.answered(Some(&found));
        let found = (found.status == 200).then(|| found.text());
        let expected = model.get(&(number, key));
        seen.check(found.as_ref() == expected, || format!("{target} in {:?}: {found:?}, expected {expected:?}", BUCKETS[number]));
    }
    for (number, (tenant, bucket)) in BUCKETS.iter().enumerate() {
        for prefix in ["", "a", "%ff", "%00", "a%00", "..%2f"] {
            let list = stage.node.ask_for(tenant, "GET", &format!("/v1/buckets/{bucket}/kv?values=true&prefix={prefix}"), b"")?;
            seen.answered(Some(&list));
            let count = list.json()?["items"].as_array().context("a list without items")?.len();
            let begins: Vec<u8> = KEYS
                .iter()
                .find(|(_, target)| *target == prefix)
                .map_or_else(|| if prefix.is_empty() { Vec::new() } else { b"../".to_vec() }, |(key, _)| key.to_vec());
            let expected = model.keys().filter(|(of, key)| *of == number && key.starts_with(&begins)).count();
            seen.check(count == expected, || {
                format!("{count} keys begin with '{prefix}' in {bucket} of {tenant}, expected {expected}")
            });
        }
    }
    Ok(())
}

fn ask_key(stage: &Stage<'_>, number: usize, method: &str, key: &str, body: &[u8]) -> anyhow::Result<crate::http::Reply> {
    let (tenant, bucket) = BUCKETS[number];
    stage.node.ask_for(tenant, method, &format!("/v1/buckets/{bucket}/kv/{key}"), body)
}
