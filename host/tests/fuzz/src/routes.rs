//! Routes: whichever function answers a request is the one that a plain model names.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use hob::id::TenantId;
use hob::invocation::{Invocation, Payload, Target};
use hob::route::Route;

use crate::dice::Dice;
use crate::local::{Ended, Local, runtime};
use crate::report::Report;

const FUNCTIONS: usize = 24;
const SEGMENTS: [&str; 6] = ["", "a", "b", "ab", "f1", "f2"];
const HOSTS: [&str; 4] = ["h.example", "H.EXAMPLE", "g.example:80", "other"];
const METHODS: [&str; 3] = ["GET", "PUT", "HEAD"];
/// Requests between two changes of who has which routes.
const PERIOD: u64 = 2_000;

/// Answers its own name.
fn says(name: &str) -> String {
    let len = name.len();
    format!(
        r#"(module (import "hob1" "respond" (func $respond (param i32 i32))) (memory (export "memory") 1)
          (data (i32.const 4) "\c8\00\00\00\{len:02x}") (data (i32.const 12) "{name}")
          (func (export "hob_handle") (call $respond (i32.const 0) (i32.const {})))) "#,
        len + 12,
    )
}

fn path(dice: &mut Dice) -> String {
    let mut path = String::new();
    for _ in 0..dice.below(4) {
        path.push('/');
        path.push_str(dice.pick::<&str>(&SEGMENTS));
    }
    if path.is_empty() { "/".into() } else { path }
}

fn route(dice: &mut Dice) -> Option<Route> {
    let mut path = path(dice);
    if dice.one_in(2) {
        path = format!("{}/*", path.trim_end_matches('/'));
    }
    let host = dice.one_in(3).then(|| *dice.pick(&["h.example", "g.example"]));
    let method = dice.one_in(3).then(|| *dice.pick(&METHODS));
    Route::new(&path, host, method).ok()
}

/// Who answers, as `docs/routing` has it in words: the longest route, else the first segment as a name.
fn model(functions: &[(String, Vec<Route>)], host: &str, method: &str, path: &str) -> Option<String> {
    let host = host.split(':').next().unwrap_or_default().to_ascii_lowercase();
    let matching = functions.iter().flat_map(|(name, routes)| routes.iter().map(move |route| (route, name)));
    let best = matching.filter(|(route, _)| route.matches(&host, method, path)).max_by_key(|(route, _)| route.rank());
    if let Some((_, name)) = best {
        return Some(name.clone());
    }
    let first = path.split('/').nth(1).unwrap_or_default();
    functions.iter().map(|(name, _)| name).find(|name| *name == first).cloned()
}

pub(crate) fn run(report: &mut Report, runs: u64, seed: u64) -> anyhow::Result<()> {
    let local = Local::start(&[])?;
    let runtime = runtime()?;
    let mut functions: Vec<(String, Vec<Route>)> = (0..FUNCTIONS).map(|number| (format!("f{number}"), Vec::new())).collect();
    for number in 0..runs {
        let mut dice = Dice::new(seed, number);
        if number % PERIOD == 0 {
            redeploy(&local, &mut functions, &mut dice)?;
        }
        let (host, method, path) = (*dice.pick(&HOSTS), *dice.pick(&METHODS), path(&mut dice));
        let request = http::Request::builder().method(method).uri(&path).header("host", host).body(Payload::empty())?;
        let (tenant, received) = (TenantId::default(), Instant::now());
        let asked = Invocation { tenant, target: Target::Request, request, received, start: None };
        let expected = model(&functions, host, method, &path);
        let what = || format!("input {number}: {method} {host} {path}, routes {functions:?}");
        let end = match (runtime.block_on(local.ask(asked)), &expected) {
            (Ended::Answered(200, name), Some(expected)) => {
                ensure!(name == expected.as_bytes(), "expected {expected}, found {}; {}", String::from_utf8_lossy(&name), what());
                "found"
            }
            (Ended::Failed(code, _), None) if ["not-found", "bad-request"].contains(&code.as_str()) => code.as_str(),
            (other, _) => bail!("expected {expected:?}, found {other:?}; {}", what()),
        };
        report.count(end);
    }
    local.stop();
    Ok(())
}

/// Gives a few functions other routes, none of which another has.
fn redeploy(local: &Local, functions: &mut [(String, Vec<Route>)], dice: &mut Dice) -> anyhow::Result<()> {
    for index in 0..functions.len() {
        let taken = |functions: &[(String, Vec<Route>)], route: &Route| {
            functions.iter().enumerate().any(|(other, (_, routes))| other != index && routes.contains(route))
        };
        let routes: Vec<_> = (0..dice.below(4)).filter_map(|_| route(dice)).filter(|route| !taken(functions, route)).collect();
        let tables: Vec<_> = routes
            .iter()
            .map(|route| {
                let text = route.to_string();
                let (method, rest) = text.split_once(' ').map_or((None, &text[..]), |(method, rest)| (Some(method), rest));
                let (host, path) = rest.split_at(rest.find('/').unwrap_or_default());
                let method = method.map(|method| format!(", method = '{method}'")).unwrap_or_default();
                let host = if host.is_empty() { String::new() } else { format!(", host = '{host}'") };
                format!("{{ path = '{path}'{host}{method} }}")
            })
            .collect();
        let name = functions[index].0.clone();
        let manifest = format!("route = [{}]", tables.join(", "));
        let deployed = local.deploy(&name, &wat::parse_str(says(&name))?, &manifest)?;
        deployed.with_context(|| format!("{name} with {manifest}"))?;
        functions[index].1 = routes;
    }
    Ok(())
}
