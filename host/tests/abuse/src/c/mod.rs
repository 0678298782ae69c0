//! C: what a deployer sends.

mod manifests;
mod modules;
mod native;
mod revisions;
mod shared;

use std::path::PathBuf;

use crate::case::{Alone, Kind, case, nothing};
use crate::node::Node;
use crate::tenants;
use manifests::manifests;
use modules::{compiler_bombs, compressed, huge, imports, malformed, nested, no_modules, over_caps, proposals};
use native::{artifacts, damage, swap};
use revisions::{flip, flippers, kills, race, racers};
use shared::oracle;

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(
        case("C1", "huge modules", &["413 body-too-large"], nothing, huge)
            .at_control()
            .burns()
            .settings(&["data.upload_bytes_max=4MiB"]),
    ),
    Kind::Beside(case("C2", "one past each cap", &["422 module-over-cap"], nothing, over_caps).burns()),
    Kind::Beside(
        case("C3", "bombs for the compiler", &["?422 build-over-limit", "201", "200"], nothing, compiler_bombs)
            .burns()
            .settings(&["build.cpu=2s", "build.wall=4s"]),
    ),
    Kind::Beside(case("C4", "a million nested blocks", &["422 module-over-cap", "422 *"], nothing, nested).burns()),
    Kind::Beside(
        case("C5", "flipped bits and cut ends", &["422 not-deployable", "422 *", "200", "201"], nothing, malformed).burns(),
    ),
    Kind::Beside(case("C6", "text, ELF and native code", &["422 not-deployable"], nothing, no_modules)),
    Kind::Beside(case("C7", "proposals that are off", &["422 not-deployable", "422 *"], nothing, proposals)),
    Kind::Beside(case("C8", "compressed bytes", &["415 *", "422 not-deployable"], nothing, compressed).at_control()),
    Kind::Beside(case("C9", "imports that nobody has", &["422 not-deployable"], nothing, imports).burns()),
    Kind::Missing { row: "C10", name: "signed deploys", why: "optional; the tests of signed deploys have its attacks" },
    Kind::Beside(case("C11", "a race of deploys", &["200", "412 precondition-failed"], racers, race).burns()),
    // Each revision takes slots of the pool that no other had, and they stay warm, until all have been used: so there are few.
    Kind::Beside(case("C12", "rollbacks under load", &["200"], flippers, flip).burns().settings(&["engine.instances_max=64"])),
    Kind::Alone(Alone { row: "C13", name: "kill -9 in a deploy", expects: &["?200", "killed"], run: kills }),
    Kind::Beside(case("C14", "damaged native code", &["200"], artifacts, damage).at_control().burns()),
    // What is loaded anew takes other slots of the pool, which stay warm: as in C12.
    Kind::Beside(
        case("C15", "native code of another", &["200"], artifacts, swap)
            .at_control()
            .burns()
            .settings(&["engine.instances_max=64"]),
    ),
    Kind::Beside(case("C16", "who else has this module", &["200", "201"], tenants::twins, oracle).at_control().burns()),
    Kind::Beside(case("C17", "manifests", &["400 bad-manifest", "4*"], nothing, manifests).at_control()),
];

fn files(node: &Node, folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let tenant = node.dir.join(folder).join("default");
    let mut files = std::fs::read_dir(&tenant)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    files.sort();
    Ok(files)
}
