//! D: what a guest reaches outside of itself: files, network, logs.

mod files;
mod logs;
mod outbound;
mod secrets;
mod upstreams;

use crate::case::{Books, Case, Kind, Ready, Seen, Stage, case};
use crate::world;
use files::{folder, paths, sockets, sockets_setup, swaps};
use logs::{flood, floods, forge, forgers};
use outbound::{call_itself, forbidden, forbidden_setup, itself};
use secrets::{holders, search};
use upstreams::{evil, fetcher, forge_headers, many};

const fn outbound(
    row: &'static str,
    name: &'static str,
    attack: fn(&Stage<'_>, &mut Seen) -> anyhow::Result<()>,
    settings: &'static [&'static str],
) -> Case {
    case(row, name, &["200"], fetcher, attack).prepared(world::with_server).settings(settings)
}

const fn files(row: &'static str, name: &'static str, attack: fn(&Stage<'_>, &mut Seen) -> anyhow::Result<()>) -> Case {
    case(row, name, &["200"], folder as fn(&Stage<'_>) -> anyhow::Result<Ready>, attack).prepared(world::with_folder).burns()
}

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(
        // What is refused at its ninth hop is answered to a function, which answers 508 itself.
        case("A8", "a function that calls itself", &["508"], itself, call_itself)
            .prepared(world::with_way_round)
            // Connections to a server wait for 15 s to be used again, 16 at most; here both their ends are the node's.
            .keeps(32)
            .books(Books::AtLeast)
            .burns(),
    ),
    Kind::Beside(files("D1", "paths out of a folder", paths)),
    Kind::Beside(files("D2", "links that change", swaps)),
    // Attackers that send as fast as they are answered use up the processors, here and in the next ones.
    Kind::Beside(case("D3", "forbidden addresses", &["200"], forbidden_setup, forbidden).burns()),
    Kind::Beside(
        outbound("D4", "many outbound requests", many, &["egress.response_timeout=500ms", "egress.idle_timeout=500ms"])
            .burns()
            .keeps(16),
    ),
    Kind::Beside(
        outbound(
            "D5",
            "evil upstreams",
            evil,
            &["egress.response_timeout=300ms", "egress.idle_timeout=300ms", "egress.response_bytes_max=64KiB"],
        )
        .burns(),
    ),
    Kind::Beside(outbound("D6", "outbound headers", forge_headers, &[]).keeps(16).burns()),
    Kind::Beside(case("D7", "sockets", &["200"], sockets_setup, sockets).burns()),
    Kind::Beside(case("D8", "log flood", &["200", "504 cpu-deadline"], floods, flood).burns()),
    Kind::Beside(case("D9", "escapes and lines in logs", &["200"], forgers, forge)),
    Kind::Beside(
        case(
            "D10",
            "secrets of others",
            &["200", "402", "416", "502 *", "400 bad-request", "413 body-too-large"],
            holders,
            search,
        )
        .books(Books::AtLeast)
        // Builds are looked into while they last.
        .settings(&["build.init=10m", "build.cpu=10m", "build.wall=10m"])
        .burns(),
    ),
];
