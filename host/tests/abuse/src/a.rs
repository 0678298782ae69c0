//! A: a guest's use of processor and stack.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::case::{Books, Kind, Ready, Seen, Stage, case, deployed, home, nothing};
use crate::guests::{self, SPINS, does, handler, handler_with};
use crate::victim::quantile;

pub(crate) const CASES: &[Kind] = &[
    Kind::Beside(
        case("A1", "64 spinners, cpu 50 ms", &["504 cpu-deadline"], |s| spinners(s, "cpu = \"50ms\"\nwall = \"1m\""), spin)
            .burns(),
    ),
    Kind::Beside(
        case("A1", "64 spinners, wall 200 ms", &["504 wall-deadline"], |s| spinners(s, "cpu = \"1h\"\nwall = \"200ms\""), spin)
            .burns(),
    ),
    Kind::Beside(case("A2", "loop in start and init", &["504 cpu-deadline"], start_setup, start_attack).burns()),
    Kind::Beside(case("A2", "loop at deploy", &["422 *"], nothing, start_at_deploy).burns().settings(&["build.init=300ms"])),
    Kind::Beside(
        case(
            "A3",
            "processors busy outside too",
            &["504 cpu-deadline"],
            |s| spinners(s, "cpu = \"20ms\"\nwall = \"1m\""),
            busy_host,
        )
        .burns(),
    ),
    Kind::Beside(case("A4", "bulk operations", &["504 cpu-deadline"], bulk_setup, bulk_attack).burns()),
    Kind::Beside(
        // Hundreds that begin and end in the same moment use up the processors for that moment, with their clients.
        case("A5", "sleepers to their deadline", &["504 wall-deadline"], sleepers, sleep)
            .burns()
            .settings(&["engine.instances_max=2000"]),
    ),
    Kind::Beside(
        case("A5", "sleepers cancelled at random", &["cancelled"], sleepers, cancel)
            .settings(&["engine.instances_max=2000"])
            .books(Books::AtLeast),
    ),
    Kind::Beside(case("A6", "recursion without end", &["502 guest-trap"], recursion_setup, recursion_attack).burns()),
    Kind::Beside(
        case(
            "A7",
            "a neighbour with 64 spinners",
            &["504 cpu-deadline"],
            |s| spinners(s, "cpu = \"100ms\"\nwall = \"1m\""),
            spin,
        )
        .burns(),
    ),
];

fn spinners(stage: &Stage<'_>, limits: &str) -> anyhow::Result<Ready> {
    deployed(stage, "spins", &does(SPINS), &format!("snapshot = \"off\"\n[limits]\nconcurrency = 1000\n{limits}\n"))
}

/// 64 clients at once; prints when their answers came.
fn spin(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let times = std::sync::Mutex::new(Vec::new());
    stage.crowd(64, seen, |index, seen| {
        for _ in 0..stage.times(1, 10) {
            let began = Instant::now();
            stage.get(index, "spins", seen);
            times.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(began.elapsed());
        }
    });
    let times = times.into_inner().unwrap_or_default();
    seen.note(format!("answered after p50 {:.1?}, p99 {:.1?}", quantile(&times, 500), quantile(&times, 990)));
    Ok(())
}

fn start_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let limits = "snapshot = \"off\"\n[limits]\ncpu = \"50ms\"\n";
    let start = handler(&format!("(func $start {SPINS}) (start $start) (func (export \"hob_handle\"))"));
    let init = handler(&format!("(func (export \"_initialize\") {SPINS}) (func (export \"hob_handle\"))"));
    deployed(stage, "start", &start, limits)?;
    deployed(stage, "init", &init, limits)
}

fn start_attack(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(stage.times(8, 64), seen, |index, seen| {
        stage.get(index, ["start", "init"][index % 2], seen);
    });
    Ok(())
}

/// A function that never ends its initialisation is not deployed, or deployed without a snapshot; the node goes on.
fn start_at_deploy(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let manifest = "snapshot = \"required\"\n";
    let start = guests::wasm(&handler(&format!("(func $start {SPINS}) (start $start) (func (export \"hob_handle\"))")))?;
    for index in 0..2 {
        stage.deploy(index, "start", &start, manifest, seen)?;
    }
    Ok(())
}

/// The epoch must tick while threads outside of the node take every processor.
fn busy_host(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        let done = spin(stage, seen);
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        done
    })
}

fn bulk_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let limits = "snapshot = \"off\"\n[limits]\ncpu = \"100ms\"\n";
    let grown = "(if (i32.ne (memory.grow (i32.const 2030)) (i32.const 1)) (then unreachable))";
    let of_memory = |operation: &str| does(&format!("{grown} (loop $more {operation} (br $more))"));
    let of_tables = |operation: &str| {
        handler(&format!("(table $t 100000 funcref) (func (export \"hob_handle\") (loop $more {operation} (br $more)))"))
    };
    let fill = "(memory.fill (i32.const 0) (i32.const 7) (i32.const 133000000))";
    let copy = "(memory.copy (i32.const 0) (i32.const 1) (i32.const 133000000))";
    deployed(stage, "copy", &of_memory(copy), limits)?;
    deployed(stage, "fill", &of_memory(fill), limits)?;
    deployed(stage, "table-fill", &of_tables("(table.fill $t (i32.const 0) (ref.null func) (i32.const 100000))"), limits)?;
    deployed(stage, "table-copy", &of_tables("(table.copy $t $t (i32.const 0) (i32.const 1) (i32.const 99999))"), limits)?;
    // Each once, of memory that nobody has touched yet, which is what it takes longest for.
    for (name, operation) in [("one-copy", copy), ("one-fill", fill)] {
        let once = handler(&format!("(func (export \"hob_handle\") {grown} {operation} (call $number (i32.const 1)))"));
        deployed(stage, name, &once, "snapshot = \"off\"\n[limits]\ncpu = \"5s\"\n")?;
    }
    Ok(Ready::Yes)
}

/// How long the longest single operation takes: at the client, with the start of its instance.
fn longest_operation(stage: &Stage<'_>) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    for name in ["one-copy", "one-fill"] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let began = Instant::now();
            let reply = home(stage.node, "GET", &format!("/{name}"), &[], b"")?;
            times.push(began.elapsed());
            ensure!(reply.status == 200, "{name} answers {}", reply.key());
        }
        longest = longest.max(quantile(&times, 500));
    }
    Ok(longest)
}

fn bulk_attack(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    if stage.round == 0 {
        let longest = longest_operation(stage)?;
        seen.note(format!("the longest single operation takes {longest:.1?}"));
    }
    for _ in 0..stage.times(1, 5) {
        for name in ["copy", "fill", "table-fill", "table-copy"] {
            let longest = std::sync::Mutex::new(Duration::ZERO);
            stage.crowd(4, seen, |index, seen| {
                let began = Instant::now();
                stage.get(index, name, seen);
                let mut longest = longest.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                *longest = began.elapsed().max(*longest);
            });
            if stage.round == 2 {
                seen.note(format!("{name}: the last of four answered after {:.1?}", longest.into_inner().unwrap_or_default()));
            }
        }
    }
    Ok(())
}

fn sleepers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let limits = |wall: &str| format!("[limits]\nconcurrency = 1500\nwall = \"{wall}\"\n");
    deployed(stage, "sleeps", &guests::sleeps(), &limits("300ms"))?;
    deployed(stage, "sleeps-long", &guests::sleeps(), &limits("1h"))
}

fn sleep(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(stage.times(200, 500), seen, |index, seen| {
        stage.get(index, "sleeps", seen);
    });
    Ok(())
}

/// Clients that leave at any moment, before, while and after their guest begins to sleep.
fn cancel(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let turns = stage.times(20, 200);
    stage.crowd(50, seen, |index, seen| {
        for turn in 0..turns {
            if let Ok(mut conn) = stage.connect(index) {
                conn.request("GET", &stage.target("sleeps-long"), &[], b"");
                let wait = (index * 7919 + turn * 104_729) % 40_000;
                std::thread::sleep(Duration::from_micros(wait as u64));
                seen.saw("cancelled");
            }
        }
    });
    Ok(())
}

/// Calls of the host that a guest makes at every depth, until its stack ends in one of them or between two.
const CALLS: [(&str, &str, &str); 9] = [
    ("none", "", ""),
    ("request-read", "", "(drop (call $request_read (i32.const 0) (i32.const 0)))"),
    ("log", "", "(call $log (i32.const 4) (i32.const 0) (i32.const 0))"),
    (
        "random",
        "(import \"wasi_snapshot_preview1\" \"random_get\" (func $f (param i32 i32) (result i32)))",
        "(drop (call $f (i32.const 0) (i32.const 8)))",
    ),
    (
        "clock",
        "(import \"wasi_snapshot_preview1\" \"clock_time_get\" (func $f (param i32 i64 i32) (result i32)))",
        "(drop (call $f (i32.const 0) (i64.const 0) (i32.const 0)))",
    ),
    (
        "write",
        "(import \"wasi_snapshot_preview1\" \"fd_write\" (func $f (param i32 i32 i32 i32) (result i32)))",
        "(drop (call $f (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16)))",
    ),
    (
        "environment",
        "(import \"wasi_snapshot_preview1\" \"environ_sizes_get\" (func $f (param i32 i32) (result i32)))",
        "(drop (call $f (i32.const 0) (i32.const 4)))",
    ),
    ("yield", "(import \"wasi_snapshot_preview1\" \"sched_yield\" (func $f (result i32)))", "(drop (call $f))"),
    (
        "bucket",
        "(import \"hob1\" \"bucket_open\" (func $f (param i32 i32) (result i32)))",
        "(drop (call $f (i32.const 0) (i32.const 6)))",
    ),
];

fn recursion_setup(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    for (name, import, call) in CALLS {
        let text = handler_with(
            import,
            "(memory (export \"memory\") 1)",
            &format!(
                "(func $down (param i64) (result i64) {call} (i64.add (call $down (local.get 0)) (i64.const 1)))
                 (func (export \"hob_handle\") (drop (call $down (i64.const 1))))"
            ),
        );
        deployed(stage, name, &text, "snapshot = \"off\"\n[limits]\ncpu = \"1m\"\nwall = \"5m\"\n")?;
    }
    Ok(Ready::Yes)
}

fn recursion_attack(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    stage.crowd(CALLS.len(), seen, |index, seen| {
        for _ in 0..stage.times(2, 50) {
            stage.get(index, CALLS[index].0, seen);
        }
    });
    Ok(())
}
