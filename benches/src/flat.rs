//! Scenario `flat`: the example `geoip` with tables of 1 MiB to 1 GiB. Does a start cost what the state is large?
//!
//! In process: an invocation is a start and one look-up of an address, another one each time: `answered` is both, up to a whole response,
//! and `whole` the teardown of the instance too. On rung `resident`, and as `stored` on that
//! one, when the node has checked the image before. Memory is what 64 instances that have answered and are still there add to the
//! process. The ceiling is the smallest table of the same run.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use hob::invocation::Start;

use crate::guests::Guest;
use crate::local::Local;
use crate::memory::{self, Memory};
use crate::report::{Figure, Report, quantile};
use crate::servers;

const SCENARIO: &str = "flat";
/// Instances that are there at once; the default of `concurrency` is 100.
const HELD: usize = 64;
/// Starts on `stored`.
const STORED: usize = 200;
/// Memory of the guest beside its table, in MiB, as in its `hob.toml`.
const BESIDE_MIB: usize = 16;

pub(crate) fn run(report: &Report, quick: bool) -> anyhow::Result<()> {
    let (sizes, count): (&[usize], _) = if quick { (&[1, 16, 64], 500) } else { (&[1, 16, 64, 256, 1024], 10_000) };
    let mut guest = Guest::build("geoip")?;
    servers::pin(servers::LOAD_CORE)?;
    let mut ceiling = None;
    for mib in sizes {
        guest.manifest.env.insert("GEOIP_MIB".into(), mib.to_string());
        guest.manifest.limits.set("memory", &format!("{}MiB", mib + BESIDE_MIB))?;
        let values = measure(&guest, count)?;
        let ceiling = ceiling.get_or_insert(values);
        for (at, (metric, unit)) in METRICS.into_iter().enumerate() {
            let system = format!("geoip {mib} MiB");
            let (value, ratio) = (values[at], Some(values[at] / ceiling[at]).filter(|_| unit == "us"));
            report.figure(&Figure { scenario: SCENARIO, system: &system, metric, value, unit, ratio })?;
        }
    }
    Ok(())
}

const METRICS: [(&str, &str); 12] = [
    ("start p50", "us"),
    ("start p99", "us"),
    ("answered p50", "us"),
    ("answered p99", "us"),
    ("whole p50", "us"),
    ("whole p99", "us"),
    ("stored start p50", "us"),
    ("stored start p99", "us"),
    ("private for each", "KiB"),
    ("page tables for each", "KiB"),
    ("artifact", "MiB"),
    ("artifact on disk", "MiB"),
];

/// The values of [`METRICS`], in a node of its own: memory slots that were used before keep pages.
fn measure(guest: &Guest, count: usize) -> anyhow::Result<[f64; METRICS.len()]> {
    // Instances are charged for all of the memory that their snapshot has, and map it: 64 of a gigabyte are far more than there is.
    let local = Local::start_with(&["engine.memory_max=128GiB"])?;
    let function = local.deploy(guest)?;
    let mut taken = local.repeat(&function, Start::Resident, count + count / 10, Duration::ZERO, look_up)?;
    taken.drain(..count / 10);
    let (mut starts, mut wholes): (Vec<_>, Vec<_>) = taken.iter().map(|taken| (taken.start, taken.whole)).unzip();
    let mut answered: Vec<_> = taken.iter().map(|taken| taken.answered).collect();
    let before = Memory::of("self")?;
    let held = local.hold(&function, HELD, look_up, || Memory::of("self"))??;
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let each = |held: f64, before: f64| (held - before) / HELD as f64 / 1024.0;
    let (artifact, on_disk) = artifact(&local)?;
    let stored = local.repeat(&function, Start::Stored, STORED + STORED / 10, Duration::ZERO, look_up)?;
    let mut stored: Vec<_> = stored.into_iter().skip(STORED / 10).map(|taken| taken.start).collect();
    local.stop();
    Ok([
        quantile(&mut starts, 0.5),
        quantile(&mut starts, 0.99),
        quantile(&mut answered, 0.5),
        quantile(&mut answered, 0.99),
        quantile(&mut wholes, 0.5),
        quantile(&mut wholes, 0.99),
        quantile(&mut stored, 0.5),
        quantile(&mut stored, 0.99),
        each(held.private, before.private),
        each(held.page_tables, before.page_tables),
        artifact,
        on_disk,
    ])
}

/// An address that no earlier invocation asked for.
fn look_up(number: usize) -> String {
    let ip = std::net::Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX).wrapping_mul(0x9E37_79B9));
    format!("/?ip={ip}")
}

/// Length of the one artifact, and what its blocks take, in MiB.
fn artifact(local: &Local) -> anyhow::Result<(f64, f64)> {
    let mut sum = (0.0, 0.0);
    for path in memory::files(&local.data_dir().join("artifacts"))? {
        let meta = std::fs::metadata(path)?;
        #[expect(clippy::cast_precision_loss, reason = "sizes far below 2^53")]
        let (len, blocks) = (meta.len() as f64, (meta.blocks() * 512) as f64);
        sum = (sum.0 + len / f64::from(1 << 20), sum.1 + blocks / f64::from(1 << 20));
    }
    Ok(sum)
}
