//! Scenario `walls`: what all walls cost the hello handler.
//!
//! The same program twice, each on the server's core: once as it is started by default, walls around its process (`--sandbox`), bounds of bodies and
//! connections on, and with what an operator of many tenants adds: a base domain, under which each request looks for its tenant, and every quota set
//! to what is never reached. And once without: `--sandbox=off`, no bounds of rates, one tenant, no quotas. What has no flag (limits of an invocation,
//! the schedule, metering, the checks of each request) is in both. They take turns, so that what drifts in the machine drifts for both.

use std::time::Duration;

use hob::daemon::{Node, Process};

use crate::guests::Guest;
use crate::load;
use crate::report::Report;
use crate::rounds::{MEDIAN, Measure, Turn, alternate};
use crate::servers::{self, Role};

const CONNECTIONS: usize = 32;
/// What the walls may cost, of the requests per second without them.
const COST_MAX: f64 = 0.05;

/// Settings with walls.
const WITH: [&str; 10] = [
    "process.sandbox=auto",
    "net.base_domain=bench.example",
    "quota.invocations_per_second=1000000000",
    "quota.concurrency=100000",
    "quota.cpu_seconds_per_minute=1000000",
    "quota.memory=64GiB",
    "quota.deploys_per_hour=1000000",
    "quota.functions=100000",
    "quota.bytes_stored=1024GiB",
    "quota.log_bytes_per_minute=1024GiB",
];
/// Settings without.
const WITHOUT: [&str; 3] = ["process.sandbox=off", "net.body_rate_min=0", "net.connections_per_address=0"];

/// Is a node with the handler until standard input ends.
pub(crate) fn serve(walls: bool) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings: Vec<String> = if walls { WITH.map(String::from).into() } else { WITHOUT.map(String::from).into() };
    let mut setup = servers::setup_with(&dir.path().join("data"), &settings)?;
    setup.config.engine.threads = 1;
    if walls {
        setup.process = Process::Own;
        setup.config.net.connections_per_address = None;
        // The guest is read once the walls stand.
        setup.config.process.read.push(dir.path().to_owned());
    }
    let Guest { name, wasm, manifest } = Guest::load("hello")?;
    let copy = dir.path().join("hello.wasm");
    std::fs::copy(wasm, &copy)?;
    let node = Node::start(setup)?;
    node.deploy_file(name.parse()?, &copy, manifest)?;
    servers::ready(format_args!("{} {}", node.addr(), node.control_addr()))?;
    node.stop();
    Ok(())
}

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let (rounds, duration) = if quick { (2, Duration::from_millis(500)) } else { (9, Duration::from_secs(3)) };
    Guest::build("hello")?;
    let (without, with) = (servers::start(&Role::Walls(false))?, servers::start(&Role::Walls(true))?);
    let turn = |name: &str, addr| Turn::new(name, move || Ok(vec![load::run(addr, "/hello", CONNECTIONS, duration)?.per_second]));
    let measure = Measure { scenario: "walls", metric: "requests", unit: "1/s", statistics: &MEDIAN };
    let turns = vec![turn("hob without walls", without.addr), turn("hob with walls", with.addr)];
    let medians = alternate(report, measure, rounds, turns)?;
    let cost = 1.0 - medians[1] / medians[0];
    let is_within = if cost <= COST_MAX { "within" } else { "past" };
    report.note(&format!(
        "the walls cost {:.1} % of requests per second, {is_within} the {:.0} % they may",
        cost * 1e2,
        COST_MAX * 1e2
    ));
    with.stop()?;
    without.stop()
}
