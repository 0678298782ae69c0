//! G: the control plane, and who is who.

mod retries;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::json;

use crate::case::{Alone, Books, Ground, Kind, Ready, Seen, Stage, case, nothing};
use crate::exposed::{BAD_STARTS, serve};
use crate::guests::{self, says};
use crate::http::Conn;
use crate::victim::quantile;
use retries::{counted, crowd, kills};

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(
        case("G1", "guessed tokens", &["401 unauthenticated", "429 too-many-failures"], own, guess)
            .at_control()
            .burns()
            .books(Books::AtLeast),
    ),
    Kind::Beside(
        case("G2", "every route with every token", &["401 unauthenticated", "403 forbidden"], holders, matrix)
            .at_control()
            .books(Books::AtLeast),
    ),
    Kind::Alone(Alone { row: "G3", name: "control ports for everybody", expects: &["refused"], run: exposed }),
    Kind::Beside(
        case("G4", "names that are none", &["400 bad-request", "404 not-found", "405 *"], nothing, names)
            .at_control()
            .books(Books::Closed),
    ),
    Kind::Beside(
        case(
            "G5",
            "one key, many times",
            &["200", "?201", "400 bad-request", "422 idempotency-key-reused", "?409 idempotency-key-running"],
            counted,
            crowd,
        )
        .at_control()
        .books(Books::AtLeast),
    ),
    Kind::Alone(Alone {
        row: "G5",
        name: "kills between a change and its answer",
        expects: &["200", "201", "422 idempotency-key-reused"],
        run: kills,
    }),
];

/// Names of functions and buckets that could be paths, headers, other names or nothing.
fn names(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let wasm = guests::wasm(&says("named"))?;
    let long = "a".repeat(64);
    let longer = "a".repeat(8000);
    let names = [
        "..",
        "%2e%2e",
        "..%2f..%2fetc",
        "a%2fb",
        "%2f",
        "a%00b",
        "%00",
        "A",
        "a_b",
        "-a",
        "a-",
        "a.b",
        "a b",
        "a%20b",
        "%D0%B0bc",
        "%EF%BC%A1",
        "a%0d%0ahost:x",
        "%C3%28",
        "%ff",
        "%zz",
        "%",
        ";",
        "a;b",
        "a?b=c%",
        "~",
        "%2e",
        "a%2e",
        "con.",
        "*",
        "a%25b",
        &long,
        &longer,
    ];
    for (index, name) in names.iter().enumerate() {
        for (method, target) in [
            ("PUT", format!("/v1/functions/{name}")),
            ("GET", format!("/v1/functions/{name}")),
            ("DELETE", format!("/v1/functions/{name}")),
            ("PUT", format!("/v1/buckets/{name}")),
            ("POST", format!("/v1/functions/{name}/rollback")),
        ] {
            let body: &[u8] = if target.starts_with("/v1/functions") && method == "PUT" { &wasm } else { b"" };
            // A name that is cut by a query is a name: `a` alone may be there or not.
            if name.starts_with("a?") {
                continue;
            }
            stage.ask(index, method, &target, &[], body, seen);
        }
    }
    let list = stage.node.ask("GET", "/v1/functions", b"")?.json()?;
    let count = list["items"].as_array().map_or(0, Vec::len);
    seen.check(count == 1, || format!("{count} functions are there, where only the victim is: {list}"));
    Ok(())
}

/// The node asks for a token from now on; who looks after it has one.
fn own(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let token = token(stage, "default", "admin", "admin")?;
    ensure!(stage.node.bearer.set(format!("Bearer {token}")).is_ok(), "the node has an owner already");
    Ok(Ready::Yes)
}

fn token(stage: &Stage<'_>, tenant: &str, name: &str, scope: &str) -> anyhow::Result<String> {
    let body = json!({ "name": name, "scopes": [scope] }).to_string();
    let made = stage.node.ask_for(tenant, "POST", "/v1/tokens", body.as_bytes())?;
    ensure!(made.status == 201, "a token of {tenant}: {} {}", made.key(), made.text());
    Ok(made.json()?["token"].as_str().context("no token")?.to_owned())
}

/// Tokens that are nearly right, and that are not at all: one answer for all, soon none for their address, and good ones still work from there.
fn guess(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let good = stage.node.bearer.get().context("no owner")?;
    let near = format!("{}{}", &good[..good.len() - 1], if good.ends_with('0') { '1' } else { '0' });
    let far = format!("Bearer hob_{}", "0".repeat(72));
    let bodies = std::sync::Mutex::new(std::collections::BTreeSet::new());
    let times = [&near, &far].map(|_| std::sync::Mutex::new(Vec::new()));
    stage.crowd(20, seen, |index, seen| {
        for turn in 0..stage.times(15, 2000) {
            let guessed = [&near, &far][turn % 2];
            let began = Instant::now();
            let reply = stage.ask(index, "GET", "/v1/functions", &[("authorization", guessed)], b"", seen);
            let took = began.elapsed();
            match reply {
                Some(reply) if reply.status == 401 => {
                    times[turn % 2].lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(took);
                    bodies.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(reply.text());
                }
                Some(reply) if reply.status == 429 => {
                    seen.check(reply.header("retry-after").is_some(), || "a refusal without a time".into());
                }
                other => seen.complain(format!("a guess: {:?}", other.map(|reply| reply.key()))),
            }
        }
        let shares = stage.connect(index).ok().and_then(|mut conn: Conn| {
            conn.request("GET", "/v1/functions", &[("authorization", good)], b"");
            conn.reply()
        });
        let key = shares.map(|reply| reply.key());
        seen.check(key.as_deref() == Some("200"), || format!("who has a token, from an address that guesses: {key:?}"));
    });
    let bodies = bodies.into_inner().unwrap_or_default();
    // In a later round of a short run all of them may be refused.
    seen.check(bodies.len() <= 1, || format!("guesses are told apart: {bodies:?}"));
    let [near, far] = times.map(|times| quantile(&times.into_inner().unwrap_or_default(), 500));
    if near > Duration::ZERO {
        seen.note(format!("answered after {near:.1?} where all but the last digit is right, {far:.1?} where none is"));
    }
    Ok(())
}

/// Who asks, and what their token is for.
const WHO: [(&str, &str, &[&str]); 3] = [
    ("default", "read", &["read"]),
    ("default", "invoke", &["invoke"]),
    ("acme", "admin", &["read", "invoke", "deploy", "admin"]),
];

static TOKENS: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());

fn holders(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    own(stage)?;
    stage.node.ask("PUT", "/v1/tenants/acme", b"{}")?;
    let tokens = WHO.iter().enumerate().map(|(number, (tenant, scope, _))| token(stage, tenant, &format!("t{number}"), scope));
    *TOKENS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = tokens.collect::<anyhow::Result<_>>()?;
    Ok(Ready::Yes)
}

/// Each route of the node's own description, with every token that is not enough for it.
fn matrix(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let tokens = TOKENS.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    let description = stage.node.ask("GET", "/openapi.json", b"")?.json()?;
    let paths = description["paths"].as_object().context("no paths")?;
    let mut cells = Vec::new();
    for (path, operations) in paths {
        let target = path.replace("{name}", "zz").replace("{key}", "x").replace("{path}", "x");
        for (method, operation) in operations.as_object().context("no operations")? {
            // It is the GET beside it, but for its answer, whose length is that of a body which does not come.
            if method == "head" {
                continue;
            }
            let needs = operation["security"][0].as_object().and_then(|needs| needs.iter().next());
            let Some((scheme, scopes)) = needs else { continue };
            let scope = scopes[0].as_str().context("no scope")?;
            cells.push((method.to_uppercase(), target.clone(), None, 401));
            for (number, (tenant, _, has)) in WHO.iter().enumerate() {
                if !has.contains(&scope) || (scheme == "operator" && *tenant != "default") {
                    cells.push((method.to_uppercase(), target.clone(), Some(format!("Bearer {}", tokens[number])), 403));
                }
            }
        }
    }
    seen.check(cells.len() > 100, || format!("only {} cells", cells.len()));
    stage.crowd(8, seen, |index, seen| {
        for (method, target, bearer, expected) in cells.iter().skip(index).step_by(8) {
            let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
            let status = stage.ask(index, method, target, &headers, b"", seen).map(|reply| reply.status);
            let as_whom = if bearer.is_some() { "with too little" } else { "with no token" };
            seen.check(status == Some(*expected), || format!("{method} {target} {as_whom}: {status:?}, expected {expected}"));
        }
    });
    Ok(())
}

/// Starts that would open the control port to everybody, or that make no sense: each ends with a code and a sentence, and says of no port
/// that it is ready.
fn exposed(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    for (args, code, words) in BAD_STARTS {
        let (ended, said) = serve(ground.binary, args);
        seen.check(ended == Some(code), || format!("{args:?} ended with {ended:?}, expected {code}: {said:.300}"));
        seen.check(said.contains(words), || format!("{args:?}: '{words}' is not in {said:.300}"));
        crate::run::panics(&said, seen);
        seen.saw("refused");
    }
    Ok(Ready::Yes)
}
