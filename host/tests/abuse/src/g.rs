//! G: the control plane, and who is who.

use crate::case::{Books, Kind, Seen, Stage, case, nothing};
use crate::guests::{self, says};

pub(crate) const CASES: &[Kind] = &[
    Kind::Missing { row: "G1", name: "guessed tokens", why: "no tokens yet" },
    Kind::Missing { row: "G2", name: "every route with every token", why: "no tokens yet" },
    Kind::Missing { row: "G3", name: "control ports for everybody", why: "no tokens yet" },
    Kind::Beside(
        case("G4", "names that are none", &["400 bad-request", "404 not-found", "405 *"], nothing, names)
            .at_control()
            .books(Books::Closed),
    ),
    Kind::Missing { row: "G5", name: "retries with a key", why: "no idempotency keys yet" },
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
