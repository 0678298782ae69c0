//! Hosts that lead nowhere, or look like those that lead somewhere.

use crate::b::Dice;
use crate::case::{Seen, Stage};
use crate::http;

/// What is declared, in every spelling that means the same, and whose it is.
const DECLARED: [(&str, &str); 9] = [
    ("acme.example", "acme"),
    ("ACME.Example", "acme"),
    ("acme.example.", "acme"),
    ("acme.example:3000", "acme"),
    ("Acme.Example.:80", "acme"),
    ("acme.hob.example", "acme"),
    ("beta.hob.example.:1", "beta"),
    ("beta.example", "beta"),
    ("default.hob.example", "default"),
];

/// What is not: of the node's own domain it is nobody's, else the tenant `default` has it.
const OTHERS: [(&str, &str); 9] = [
    ("none.hob.example", "404 not-found"),
    ("x.acme.hob.example", "404 not-found"),
    ("hob.example", "default"),
    ("localhost", "default"),
    ("x.acme.example", "default"),
    ("acme.example.evil", "default"),
    ("acme-example", "default"),
    ("xn--acme-0ra.example", "default"),
    ("127.0.0.1", "default"),
];

/// What can be the name of no host.
const IMPOSSIBLE: [&str; 8] = [
    "acme.example/x",
    "x/acme.example",
    "acme .example",
    "x@acme.example",
    "acme.example,beta.example",
    "acme.example:99999",
    "[acme.example]",
    "[::1",
];

/// Whose function answers under a host; the status and code, if none does.
fn answers(stage: &Stage<'_>, index: usize, host: &str, target: &str, seen: &mut Seen) -> String {
    let Ok(mut conn) = stage.connect(index) else { return "no connection".into() };
    conn.request("GET", target, &[("host", host), ("connection", "close")], b"");
    let reply = conn.reply();
    seen.answered(reply.as_ref());
    reply.map_or("closed".into(), |reply| if reply.status == 200 { reply.text() } else { reply.key() })
}

pub(super) fn hosts(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(4, seen, |index, seen| {
        for (host, tenant) in DECLARED.into_iter().chain(OTHERS) {
            let expected = if tenant.starts_with('4') { tenant.to_owned() } else { format!("{tenant}/") };
            for target in ["/same".to_owned(), format!("http://{host}/same")] {
                let said = answers(stage, index, host, &target, seen);
                seen.check(said == expected, || format!("{host}, {target}: '{said}', expected '{expected}'"));
            }
        }
        for host in IMPOSSIBLE {
            let said = answers(stage, index, host, "/same", seen);
            seen.check(said == "400 bad-request", || format!("'{host}', which is no host: {said}"));
        }
        // Two hosts in one request.
        let said = answers(stage, index, "beta.example", "http://acme.example/same", seen);
        seen.check(said == "400 bad-request", || format!("two hosts: {said}"));
        let mut dice = Dice::new(1 + index + 4 * stage.round);
        for _ in 0..stage.times(100, 20_000) {
            let letters = b"acmebeta.example-0:x";
            let host: String = (0..1 + dice.below(20)).map(|_| char::from(letters[dice.below(letters.len())])).collect();
            let name = host.split(':').next().unwrap_or_default().trim_end_matches('.');
            let said = answers(stage, index, &host, "/same", seen);
            let foreign = ["acme/", "beta/"].contains(&said.as_str()) && !["acme.example", "beta.example"].contains(&name);
            seen.check(!foreign, || format!("'{host}' leads to '{said}'"));
        }
    });
    let known = http::request(stage.node.data, crate::node::HOME, "GET", "/victim", &[("host", "acme.example")], b"")?;
    // The victim is of another tenant.
    seen.check(known.key() == "404 not-found", || format!("the victim under the host of another: {}", known.key()));
    seen.answered(Some(&known));
    Ok(())
}
