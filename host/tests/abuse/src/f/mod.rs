//! F: what clients do to both ports.

mod floods;
mod forged;
mod hosts;
mod large;
mod slow;
mod smuggled;

use std::time::Duration;

use crate::case::{Attack, Books, Case, Door, Kind, Ready, Stage, case, deployed};
use crate::guests::{self, says};
use crate::tenants;
use floods::{churn, exhaust, pipelines};
use forged::{forgers, responses};
use hosts::hosts;
use large::{giants, headers};
use slow::{dripping, dripping_bodies, half_bodies, half_large_bodies, heads, slow_readers};
use smuggled::smuggle;

/// Timers so short that a short run has time for three attacks; a long run has the defaults, or what is set there.
const TIMERS: &[&str] =
    &["net.connections_max=12000", "net.header_timeout=2s", "net.body_idle_timeout=2s", "net.write_idle_timeout=2s"];
/// Of heads in a long run.
const LONG_TIMERS: &[&str] = &["net.connections_max=12000"];
const HEAD_TIMER: Duration = Duration::from_secs(10);
/// Descriptors for ten thousand connections, half of them the data port's, where the machine gives so many; else some of the ten thousand
/// make room before their time.
const FILES: u64 = 40_000;
/// What the timers may take beyond their time, on a machine with ten thousand connections.
const LATE: Duration = Duration::from_secs(2);
const TIMER: Duration = Duration::from_secs(2);
/// One that waits for its place begins later.
const QUEUE: Duration = Duration::from_secs(5);
/// A body may be slower than the least rate for five seconds.
const RATE_TIMER: Duration = Duration::from_secs(6);

/// Clients that wait, and cost nothing but their connections.
const fn idle(row: &'static str, name: &'static str, expects: &'static [&'static str], attack: Attack) -> Case {
    case(row, name, expects, functions, attack).settings(TIMERS).books(Books::Closed)
}

/// Clients that send all they can.
const fn rude(row: &'static str, name: &'static str, expects: &'static [&'static str], attack: Attack) -> Case {
    idle(row, name, expects, attack).burns()
}

/// Row F1: descriptors are not what it takes.
const fn slow_heads(name: &'static str, expects: &'static [&'static str], attack: Attack) -> Case {
    idle("F1", name, expects, attack).in_long(LONG_TIMERS).files_max(FILES)
}

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(slow_heads("silent connections", &["closed", "503 overloaded"], |s, seen| heads(s, seen, b"", None))),
    Kind::Beside(
        slow_heads("silent, control port", &["closed", "503 overloaded"], |s, seen| heads(s, seen, b"", None)).at_control(),
    ),
    Kind::Beside(slow_heads("dripping heads", &["408 client-timeout", "503 overloaded", "closed"], |s, seen| {
        heads(s, seen, HEAD, Some(b"x"))
    })),
    Kind::Beside(
        slow_heads("dripping, control port", &["408 client-timeout", "503 overloaded", "closed"], |s, seen| {
            heads(s, seen, HEAD, Some(b"x"))
        })
        .at_control(),
    ),
    Kind::Beside(idle("F2", "half bodies", SLOW_BODY, half_bodies)),
    Kind::Beside(idle("F2", "half bodies, control port", SLOW_BODY_REFUSED, half_bodies).at_control()),
    Kind::Beside(idle("F2", "half large bodies", SLOW_LARGE_BODY, half_large_bodies)),
    Kind::Beside(Case { setup: dripping, ..idle("F2", "dripping bodies", SLOW_BODY, dripping_bodies) }),
    Kind::Beside(rude("F3", "readers that never read", &["never read"], slow_readers)),
    Kind::Beside(rude("F3", "never read, control port", &["never read"], slow_readers).at_control()),
    Kind::Beside(rude("F4", "giant bodies", &["413 body-too-large"], giants)),
    Kind::Beside(rude("F4", "giant bodies, control port", &["413 body-too-large"], giants).at_control()),
    Kind::Beside(rude(
        "F5",
        "floods of headers",
        &["431 headers-too-large", "414 uri-too-long", "200", "400 bad-request", "404 not-found"],
        headers,
    )),
    Kind::Beside(
        rude(
            "F5",
            "headers, control port",
            &["431 headers-too-large", "414 uri-too-long", "200", "400 bad-request", "404 not-found"],
            headers,
        )
        .at_control(),
    ),
    Kind::Beside(rude("F6", "smuggled requests", &["400 bad-request", "200", "501 *", "505 *", "4*", "closed"], smuggle)),
    Kind::Beside(
        rude("F6", "smuggled, control port", &["400 bad-request", "200", "501 *", "505 *", "4*", "closed"], smuggle).at_control(),
    ),
    Kind::Beside(rude("F7", "pipelines", &["200"], pipelines)),
    Kind::Beside(rude("F7", "pipelines, control port", &["200"], pipelines).at_control()),
    Kind::Beside(rude("F7", "a connection for each request", &["200"], churn)),
    Kind::Beside(
        rude("F8", "more than there are descriptors", &["?closed", "503 overloaded", "200"], exhaust)
            .files_max(512)
            .settings(&["net.connections_max=100000", "net.header_timeout=2s"])
            .victim_keeps_its_connections(),
    ),
    Kind::Beside(
        rude("F8", "more than connections_max", &["503 overloaded", "closed"], exhaust)
            .settings(&["net.connections_max=256", "net.header_timeout=2s"])
            .victim_keeps_its_connections(),
    ),
    // What opens many connections, once more from one address, with a bound for each address.
    Kind::Beside(
        slow_heads("", &[], |s, seen| heads(s, seen, b"", None))
            .one_address("silent, one address", &["503 overloaded", "closed"]),
    ),
    Kind::Beside(
        slow_heads("", &[], |s, seen| heads(s, seen, b"", None))
            .one_address("silent, control, one address", &["503 overloaded", "closed"])
            .at_control(),
    ),
    Kind::Beside(
        slow_heads("", &[], |s, seen| heads(s, seen, HEAD, Some(b"x")))
            .one_address("dripping, one address", &["503 overloaded", "408 client-timeout", "closed"]),
    ),
    Kind::Beside(
        slow_heads("", &[], |s, seen| heads(s, seen, HEAD, Some(b"x")))
            .one_address("dripping, control, one address", &["503 overloaded", "408 client-timeout", "closed"])
            .at_control(),
    ),
    Kind::Beside(idle("F2", "", &[], half_bodies).one_address("half bodies, one address", REFUSED)),
    Kind::Beside(idle("F2", "", &[], half_bodies).one_address("half, control, one address", REFUSED).at_control()),
    Kind::Beside(idle("F2", "", &[], half_large_bodies).one_address("half large, one address", REFUSED)),
    Kind::Beside(
        Case { setup: dripping, ..idle("F2", "", &[], dripping_bodies) }.one_address("dripping bodies, one address", REFUSED),
    ),
    Kind::Beside(rude("F3", "", &[], slow_readers).one_address("never read, one address", &["never read", "closed"])),
    Kind::Beside(
        rude("F3", "", &[], slow_readers).one_address("never read, control, one address", &["never read", "closed"]).at_control(),
    ),
    Kind::Beside(rude("F7", "", &[], pipelines).one_address("pipelines, one address", &["200"])),
    Kind::Beside(rude("F7", "", &[], pipelines).one_address("pipelines, control, one address", &["200"]).at_control()),
    Kind::Beside(rude("F7", "", &[], churn).one_address("a connection each, one address", &["200"])),
    Kind::Beside(
        rude("F8", "", &[], exhaust)
            .files_max(512)
            .settings(&["net.connections_max=100000", "net.header_timeout=2s"])
            .one_address("descriptors, one address", &["503 overloaded", "closed"]),
    ),
    Kind::Beside(
        rude("F8", "", &[], exhaust)
            .settings(&["net.connections_max=256", "net.header_timeout=2s"])
            .one_address("one address takes all", &["503 overloaded", "closed"]),
    ),
    Kind::Beside(
        case("F12", "responses of guests", &["200", "2*", "3*", "4*", "5*"], forgers, responses).books(Books::AtLeast).burns(),
    ),
    Kind::Beside(
        case("F13", "hosts that are not there", &["200", "404 not-found", "400 bad-request"], tenants::twins, hosts)
            .settings(&["net.base_domain=hob.example"])
            .books(Books::Closed)
            .burns(),
    ),
];

/// What attackers see whose bodies stop, or are slow.
const SLOW_BODY: &[&str] = &["408 client-timeout", "closed"];
/// On the control port, which takes few bodies at once.
const SLOW_BODY_REFUSED: &[&str] = &["408 client-timeout", "503 overloaded", "closed"];
/// A large one waits for its place in the function.
const SLOW_LARGE_BODY: &[&str] = &["408 client-timeout", "429 concurrency", "503 overloaded", "closed"];
/// Those of one address, most of which are refused when they connect.
const REFUSED: &[&str] = &["503 overloaded", "408 client-timeout", "429 concurrency", "closed"];

const HEAD: &[u8] = b"GET /waits HTTP/1.1\r\nhost: localhost\r\nx-drip: ";

fn functions(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    deployed(stage, "waits", &guests::waits(), "[limits]\nconcurrency = 300\nqueue = 1000\nqueue_wait = \"5s\"\n")?;
    deployed(stage, "good", &says("good"), "")?;
    deployed(stage, "streams", &guests::streams(200), "[limits]\nconcurrency = 3000\nqueue = 3000\nwall = \"1m\"\n")?;
    deployed(stage, "echo", &guests::victim(), "")
}

/// How many connections; the control port takes few.
fn many(stage: &Stage<'_>) -> usize {
    match stage.door {
        Door::Data => stage.times(3000, 10_000),
        Door::Control => stage.times(500, 2000),
    }
}
