//! Runs one case, and judges it: the rules that hold for every attack (`docs/abuse.md`, "What passes").

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::case::{ADDRESS_CAP, AddressCap, Alone, Books, Case, Ground, Kind, PER_ADDRESS, Processor, Ready, Scale, Seen, Stage};
use crate::node::{self, Node, Setup};
use crate::observe::{self, Shot};
use crate::report::Finding;
use crate::victim::{Phase, Refusals, Tally, Victim, quantile};

/// The same attack again and again; the last two tell whether memory grows.
const ROUNDS: usize = 3;
/// Memory that may come and go by itself.
const MEMORY_SPARE_BYTES: u64 = 4 << 20;
/// An attack whose victim is judged by a factor goes on for so long, in a long run.
const JUDGED_FOR: Duration = Duration::from_secs(5);
/// The longest p99 of a victim, however many processors an attack burns.
const P99_MAX: Duration = Duration::from_millis(50);

/// Runs a case to its end. A case that cannot be run to its end has failed.
pub(crate) fn run(kind: &Kind, binary: &Path, scale: Scale) -> Finding {
    let began = Instant::now();
    let mut finding = Finding { row: kind.row(), name: kind.name(), ..Finding::default() };
    let outcome = match kind {
        Kind::Beside(case) => beside(case, binary, scale, &mut finding),
        Kind::Alone(case) => alone(case, binary, scale, &mut finding),
        Kind::Missing { why, .. } => {
            finding.skipped = Some((*why).to_owned());
            Ok(())
        }
    };
    if let Err(error) = outcome {
        finding.complaints.push(format!("{error:#}"));
    }
    if scale == Scale::Long {
        finding.complaints.append(&mut finding.slow.clone());
    }
    finding.took = began.elapsed();
    finding
}

fn alone(case: &Alone, binary: &Path, scale: Scale, finding: &mut Finding) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut seen = Seen::default();
    if let Ready::Skipped(why) = (case.run)(&Ground { binary, dir: dir.path(), scale }, &mut seen)? {
        finding.skipped = Some(why);
    } else {
        take(case.expects, seen, finding);
    }
    Ok(())
}

fn beside(case: &Case, binary: &Path, scale: Scale, finding: &mut Finding) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = if scale == Scale::Long && !case.long_settings.is_empty() { case.long_settings } else { case.settings };
    let mut settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
    match (case.address_cap, Node::knows(binary, ADDRESS_CAP)?) {
        (AddressCap::On, false) => {
            finding.skipped = Some(format!("the node has no setting {ADDRESS_CAP}"));
            return Ok(());
        }
        (AddressCap::On, true) => settings.push(format!("{ADDRESS_CAP}={PER_ADDRESS}")),
        (AddressCap::Off, true) => settings.push(format!("{ADDRESS_CAP}=0")),
        (AddressCap::Off, false) => {}
    }
    let args = (case.prepare)(dir.path()).context("before the node")?;
    let setup = Setup { settings, args, files_max: case.files_max, ..Setup::default() };
    let mut node = Node::start(binary, &dir.path().join("data"), &setup)?;
    let victim = Victim::start(&node, case.clients, case.refusals)?;
    let stage = |round| Stage { node: &node, binary, door: case.door, address_cap: case.address_cap, scale, round };
    if let Ready::Skipped(why) = (case.setup)(&stage(0)).context("before the attack")? {
        finding.skipped = Some(why);
        return Ok(());
    }
    std::thread::sleep(Duration::from_millis(300));
    victim.enter(Phase::Quiet);
    std::thread::sleep(stage(0).times(Duration::from_secs(1), Duration::from_secs(10)));
    victim.enter(Phase::Before);
    finding.before = Shot::of(&node)?;
    let (tag, books) = (node.inspect("victim")?["etag"].clone(), node.metrics()?);
    let (mut seen, mut memory) = (Seen::default(), Vec::<u64>::new());
    for round in 0..ROUNDS {
        victim.enter(Phase::Attack);
        let begun = Instant::now();
        let attacked = loop {
            let attacked = (case.attack)(&stage(round), &mut seen);
            // Of an attack that is over in moments a victim has so few answers that their 99th percentile is the slowest of them.
            if attacked.is_err() || scale == Scale::Short || case.processor == Processor::Burnt || begun.elapsed() >= JUDGED_FOR {
                break attacked;
            }
        };
        victim.enter(Phase::After);
        attacked.with_context(|| format!("attack {round}"))?;
        // Memory that the allocator gives back in these five seconds is none that grew.
        let peak = Shot::of(&node)?.memory_peak_bytes;
        let most = memory.last().map_or(u64::MAX, |last| last + memory_spare(*last, peak));
        let (shot, took) = observe::settle(&node, &finding.before, case.kept, most)?;
        finding.settled = finding.settled.max(took);
        for what in shot.beyond(&finding.before, case.kept) {
            seen.complain(what);
        }
        finding.after = shot;
        memory.push(shot.memory_bytes);
    }
    let [.., second, third] = memory[..] else { anyhow::bail!("too few rounds") };
    finding.grown_bytes = i64::try_from(third)? - i64::try_from(second)?;
    seen.check(third <= second + memory_spare(second, finding.after.memory_peak_bytes), || {
        format!("memory grew by {} KiB from the second attack to the third", finding.grown_bytes >> 10)
    });
    let (tally, ledger) = victim.stop(&node)?;
    finding.ledger = (ledger.acknowledged(), ledger.refused);
    seen.check(ledger.lost == 0, || format!("N1: {} acknowledged writes are lost", ledger.lost));
    seen.check(node.inspect("victim")?["etag"] == tag, || "N2: the victim's revision is another one".into());
    balance(case, &tally, &seen.statuses.clone(), (&books, &node.metrics()?), &mut seen);
    starts(&node, &tally, &mut seen)?;
    judge_victim(case, &tally, &mut seen);
    health(&mut node, dir.path(), &mut seen)?;
    take(case.expects, seen, finding);
    finding.victim = Some(tally);
    Ok(())
}

/// What an allocator keeps in holes goes by what it once gave out.
fn memory_spare(bytes: u64, peak: u64) -> u64 {
    (bytes / 20).max(MEMORY_SPARE_BYTES).max(peak / 32)
}

/// What was seen, held against what is expected.
fn take(expects: &[&str], mut seen: Seen, finding: &mut Finding) {
    for (key, count) in &seen.statuses.clone() {
        seen.check(Case::may_see(expects, key), || format!("{count} attackers saw '{key}'; expected {expects:?}"));
    }
    if let Some(first) = expects.first().filter(|first| !first.starts_with('?')) {
        let was_seen = seen.statuses.keys().any(|key| Case::may_see(&[first], key));
        seen.check(was_seen, || format!("no attacker saw '{first}'"));
    }
    finding.statuses = seen.statuses;
    finding.complaints.append(&mut seen.complaints);
    finding.slow.append(&mut seen.slow);
    seen.notes.dedup();
    finding.notes.append(&mut seen.notes);
}

/// N3: the node's own count of faults against what was answered.
fn balance(
    case: &Case,
    tally: &Tally,
    statuses: &std::collections::BTreeMap<String, u64>,
    (before, after): (&str, &str),
    seen: &mut Seen,
) {
    let before: std::collections::BTreeMap<_, _> = node::family(before, "hob_faults_total").into_iter().collect();
    for (code, count) in node::family(after, "hob_faults_total") {
        let counted = count - before.get(&code).copied().unwrap_or(0);
        if code == "internal" {
            seen.check(counted == 0, || format!("N6: {counted} bugs of Hob were counted"));
        }
        let is_it = |key: &&String| key.split(' ').nth(1) == Some(code.as_str());
        let mut answered: u64 = statuses.iter().filter(|(key, _)| is_it(key)).map(|(_, count)| count).sum();
        if code == "overloaded" {
            answered += tally.refused;
        }
        let holds = match case.books {
            Books::Balance => counted == answered,
            Books::AtLeast => counted >= answered,
            Books::Closed => true,
        };
        seen.check(holds, || format!("N3: '{code}' was answered {answered} times and counted {counted} times"));
    }
}

/// N3: the victim's starts against its answers.
fn starts(node: &Node, tally: &Tally, seen: &mut Seen) -> anyhow::Result<()> {
    let usage = node.inspect("victim")?["usage"]["starts"].clone();
    let counted: u64 = usage.as_object().map_or(0, |starts| starts.values().filter_map(serde_json::Value::as_u64).sum());
    // A request whose answer was lost may have been counted.
    let holds = counted >= tally.good && counted <= tally.good + tally.errors;
    seen.check(holds, || format!("N3: the victim had {} answers, and {counted} starts were counted", tally.good));
    Ok(())
}

/// N4.
fn judge_victim(case: &Case, tally: &Tally, seen: &mut Seen) {
    seen.check(tally.errors == 0, || format!("N4: the victim met {} errors, such as {:?}", tally.errors, tally.words));
    if case.refusals == Refusals::Typed && tally.refused > 0 {
        seen.note(format!("{} of the victim's {} requests were refused before they began", tally.refused, tally.sent));
    }
    if !tally.slowest.1.is_empty() {
        seen.note(format!("the victim's slowest answer took {:.1?}: {}", tally.slowest.0, tally.slowest.1));
    }
    let (quiet, attack) = (quantile(&tally.quiet, 990), quantile(&tally.attack, 990));
    let bound = match case.processor {
        Processor::Spared => P99_MAX.min(quiet * 2),
        Processor::Burnt => P99_MAX,
    };
    // Where the victim's requests wait for their place or are refused, their times are the node's settings.
    if attack > bound && case.refusals == Refusals::Never {
        seen.slow.push(format!("N4: the victim's p99 was {attack:?}, at most {bound:?} is allowed"));
    }
}

/// N6.
fn health(node: &mut Node, dir: &Path, seen: &mut Seen) -> anyhow::Result<()> {
    let ended = node.ended()?;
    seen.check(ended.is_none(), || format!("N6: the node ended: {ended:?}\n{}", node.stderr()));
    panics(&node.stderr(), seen);
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        seen.check(!name.to_string_lossy().starts_with("core"), || "N6: there is a core file".into());
    }
    Ok(())
}

/// N6: nothing in what a node wrote is a panic.
pub(crate) fn panics(stderr: &str, seen: &mut Seen) {
    for line in stderr.lines() {
        let is_one = ["panicked", "internal error", "RUST_BACKTRACE"].iter().any(|word| line.contains(word));
        seen.check(!is_one, || format!("N6: {line}"));
    }
}
