//! H: the host itself.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::process::Signal;

use crate::case::{AddressCap, Alone, Door, Ground, Kind, Ready, Seen, Stage, attacker, case, deployed};
use crate::guests::{self, SPINS, does, handler_with};
use crate::http::Conn;
use crate::node::{Node, Setup};
use crate::observe::Shot;
use crate::run::panics;
use crate::victim::{Clients, Phase, Refusals, Victim};

pub(crate) const CASES: &[Kind] = &[
    Kind::Alone(Alone { row: "H1", name: "a panic in a call of the host", expects: &["500 internal"], run: planted }),
    Kind::Beside(case("H4", "calls that wait for the disk", &["200", "504 *"], writers, hammer).burns()),
    Kind::Alone(Alone {
        row: "H5",
        name: "2 GiB, and guests that want more",
        expects: &["200", "502 *", "503 *", "504 *", "429 *", "closed"],
        run: crowded,
    }),
    Kind::Alone(Alone { row: "H7", name: "restarts under load", expects: &["200", "503 draining"], run: restarts }),
];

/// A bug that is planted in a call of the host, which only a build with debug assertions lets one do: whoever makes the call has the only
/// 500 that Hob may answer, and nobody else notices.
fn planted(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    let target = ground.binary.parent().and_then(Path::parent).context("a program without a folder")?;
    let binary = target.join("debug").join("hob");
    if !binary.is_file() {
        let why = format!(
            "needs a build with debug assertions, where a panic can be planted: 'cargo build -p hob' ({})",
            binary.display()
        );
        return Ok(Ready::Skipped(why));
    }
    let setup = Setup { variables: &[("HOB_PANIC_AT", "hob1-log")], ..Setup::default() };
    let mut node = Node::start(&binary, &ground.dir.join("data"), &setup)?;
    let logs = does("(call $log (i32.const 2) (i32.const 0) (i32.const 1))");
    node.deploy_wat("logs", &logs, "snapshot = \"off\"\n[limits]\nconcurrency = 1\n")?;
    let victim = Victim::start(&node, Clients::Renew, Refusals::Never)?;
    victim.enter(Phase::Attack);
    let calls = ground.times(200, 5000);
    for number in 0..calls {
        let mut conn = Conn::open(node.data, attacker(number))?;
        conn.request("GET", "/logs", &[], b"");
        match conn.reply() {
            Some(reply) => {
                let ran = reply.header("hob-executed") == Some("1");
                seen.check(ran, || format!("not said to have run: {}", reply.key()));
                seen.saw(&reply.key());
            }
            None => seen.saw("closed"),
        }
    }
    let (tally, ledger) = victim.stop(&node)?;
    seen.check(ledger.lost == 0, || format!("N1: {} of {} acknowledged writes are lost", ledger.lost, ledger.acknowledged()));
    let age = binary.metadata()?.modified()?.elapsed().unwrap_or_default();
    seen.note(format!("a build of {} minutes ago", age.as_secs() / 60));
    seen.check(tally.errors == 0 && tally.good > 0, || {
        format!("N4: the victim met {} errors, such as {:?}", tally.errors, tally.words)
    });
    let (panics, living) = (node.metric("hob_panics_total")?, node.metric("hob_instances")?);
    seen.check(panics == calls as u64 && living == 0, || {
        format!("{panics} panics of {calls} are counted, {living} instances are left")
    });
    let ended = node.ended()?;
    seen.check(ended.is_none(), || format!("N6: the node ended: {ended:?}"));
    let said = node.stderr().matches("panic in a host function: planted at hob1-log").count();
    seen.check(said > 0, || "the node's log says nothing of it".into());
    Ok(Ready::Yes)
}

/// A handler that writes entries and objects of a durable bucket, with all that a thread must wait for.
fn writers(stage: &Stage<'_>) -> anyhow::Result<Ready> {
    let text = handler_with(
        "(import \"hob1\" \"bucket_open\" (func $open (param i32 i32) (result i32)))
         (import \"hob1\" \"object_put\" (func $put (param i32 i32 i32 i32 i32) (result i32)))
         (import \"hob1\" \"upload_write\" (func $write (param i32 i32 i32) (result i32)))
         (import \"hob1\" \"upload_finish\" (func $finish (param i32 i32 i32) (result i32)))
         (import \"hob1\" \"object_head\" (func $head (param i32 i32 i32 i32 i32) (result i32)))",
        "(memory (export \"memory\") 2)",
        "(data (i32.const 0) \"disk\") (data (i32.const 16) \"key\")
         (func (export \"hob_handle\") (local $bucket i32) (local $upload i32) (local $turn i32)
           (local.set $bucket (call $open (i32.const 0) (i32.const 4)))
           (loop $more
             (local.set $upload (call $put (local.get $bucket) (i32.const 16) (i32.const 3) (i32.const 0) (i32.const 0)))
             (if (i32.ge_s (local.get $upload) (i32.const 0)) (then
               (drop (call $write (local.get $upload) (i32.const 60000) (i32.const 60000)))
               (drop (call $finish (local.get $upload) (i32.const 50000) (i32.const 1000)))))
             (drop (call $head (local.get $bucket) (i32.const 16) (i32.const 3) (i32.const 50000) (i32.const 1000)))
             (local.set $turn (i32.add (local.get $turn) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $turn) (i32.const 3))))
           (call $number (local.get $turn)))",
    );
    let manifest = "[grants]\ndata = [{ bucket = \"disk\", access = \"read-write\" }]\n[[bucket]]\nname = \"disk\"\n";
    deployed(stage, "writes", &text, manifest)
}

/// Threads of a node that does nothing, and all that may block: more there must never be.
const THREADS_MAX: u64 = 64;

fn hammer(stage: &Stage<'_>, seen: &mut Seen) -> anyhow::Result<()> {
    let (over, mut most) = (AtomicBool::new(false), 0);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !over.load(Ordering::SeqCst) {
                most = Shot::of(stage.node).map_or(most, |shot| most.max(shot.threads));
                std::thread::sleep(Duration::from_millis(20));
            }
            most
        });
        stage.crowd(stage.times(50, 90), seen, |index, seen| {
            for _ in 0..stage.times(1, 50) {
                stage.get(index, "writes", seen);
            }
        });
        over.store(true, Ordering::SeqCst);
        most = watch.join().unwrap_or(u64::MAX);
    });
    seen.note(format!("{most} threads at most"));
    seen.check(most <= THREADS_MAX, || format!("{most} threads; at most {THREADS_MAX} are allowed"));
    Ok(())
}

/// A control group of memory, removed when dropped.
struct Group {
    folder: PathBuf,
}

impl Group {
    /// `None` where this process may make none.
    fn new(bytes: u64) -> Option<Self> {
        let name = format!("hob-abuse-{}", std::process::id());
        for (root, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = Path::new(root).join(&name);
            if !Path::new(root).is_dir() || std::fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder };
            if std::fs::write(group.folder.join(limit), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    fn processes(&self) -> PathBuf {
        self.folder.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let began = Instant::now();
        // The last process leaves it a moment after its end.
        while std::fs::remove_dir(&self.folder).is_err() && began.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Guests that take all they may, bodies, and a deploy, on a node that has 2 GiB: the system ends nothing of it.
fn crowded(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    let Some(group) = Group::new(2 << 30) else {
        return Ok(Ready::Skipped("needs a control group of memory, which this process may not make".into()));
    };
    let setup = Setup { group: Some(group.processes()), ..Setup::default() };
    let mut node = Node::start(ground.binary, &ground.dir.join("data"), &setup)?;
    // Takes 120 MiB and holds it until its client lets go.
    let holds = does(
        "(local $at i32)
         (if (i32.ne (memory.grow (i32.const 1920)) (i32.const 1)) (then unreachable))
         (local.set $at (i32.const 65536))
         (loop $more
           (i32.store (local.get $at) (i32.const 1))
           (local.set $at (i32.add (local.get $at) (i32.const 4096)))
           (br_if $more (i32.lt_u (local.get $at) (i32.const 125000000))))
         (call $number (call $drain))",
    );
    node.deploy_wat("holds", &holds, "snapshot = \"off\"\n[limits]\nwall = \"20s\"\ncpu = \"5s\"\n")?;
    node.deploy_wat("spins", &does(SPINS), "snapshot = \"off\"\n[limits]\ncpu = \"50ms\"\n")?;
    node.deploy_wat("good", &guests::says("good"), "")?;
    let pid = node.pid();
    let stage = Stage {
        node: &node,
        binary: ground.binary,
        door: Door::Data,
        address_cap: AddressCap::Off,
        scale: ground.scale,
        round: 0,
    };
    stage.crowd(40, seen, |index, seen| {
        let Ok(mut conn) = stage.connect(index) else { return seen.saw("closed") };
        let begun = conn.send("POST /holds HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n");
        std::thread::sleep(Duration::from_secs(2));
        stage.get(index, ["spins", "good"][index % 2], seen);
        std::thread::sleep(Duration::from_secs(1));
        if begun.is_ok() && conn.send("0\r\n\r\n").is_ok() {
            seen.answered(conn.reply().as_ref());
        }
    });
    let ended = node.ended()?;
    seen.check(ended.is_none(), || format!("the node ended: {ended:?}"));
    if ended.is_none() {
        let answers = crate::case::home(&node, "GET", "/good", &[], b"")?;
        seen.check(answers.status == 200, || format!("afterwards: {}", answers.key()));
        seen.check(node.pid() == pid, || "another process".into());
        let shot = Shot::of(&node)?;
        seen.note(format!("{} MiB at most of 2048", shot.memory_peak_bytes >> 20));
    }
    panics(&node.stderr(), seen);
    drop(node);
    drop(group);
    Ok(Ready::Yes)
}

/// Two nodes, each told to stop in turn and started again, and clients that go to the other one where nobody listens: every request that
/// a node accepted is answered.
fn restarts(ground: &Ground<'_>, seen: &mut Seen) -> anyhow::Result<Ready> {
    let start = |number: usize, addr: Option<SocketAddr>| {
        let setup = Setup { addr, ..Setup::default() };
        Node::start(ground.binary, &ground.dir.join(format!("data{number}")), &setup)
    };
    let mut nodes = [start(0, None)?, start(1, None)?];
    for node in &nodes {
        node.deploy_wat("good", &guests::victim(), "")?;
    }
    let addrs = [nodes[0].data, nodes[1].data];
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8)
            .map(|index| {
                let over = &over;
                scope.spawn(move || load(addrs, index, over))
            })
            .collect();
        let outcome = (0..ground.times(8, 1000)).try_for_each(|turn| {
            let node = &mut nodes[turn % 2];
            std::thread::sleep(Duration::from_millis(100));
            node.signal(Signal::TERM)?;
            let status = node.wait()?;
            anyhow::ensure!(status.success(), "the node ended with {status}: {}", node.stderr());
            panics(&node.stderr(), seen);
            *node = start(turn % 2, Some(addrs[turn % 2]))?;
            Ok(())
        });
        over.store(true, Ordering::SeqCst);
        for client in clients {
            match client.join() {
                Ok(one) => seen.merge(one),
                Err(_) => seen.complain("a client panicked"),
            }
        }
        outcome
    });
    outcome.context("restarts")?;
    Ok(Ready::Yes)
}

/// Some 60 requests per second, each on a connection of its own, as a balancer makes them that asks the other node where it is refused.
fn load(addrs: [SocketAddr; 2], index: usize, over: &AtomicBool) -> Seen {
    let mut seen = Seen::default();
    let mut number = 0;
    while !over.load(Ordering::SeqCst) {
        number += 1;
        let nonce = format!("{index}/{number}");
        let mut answered = false;
        for turn in 0..4 {
            let addr = addrs[(number + turn) % 2];
            let Ok(mut conn) = Conn::open(addr, attacker(index)) else { continue };
            conn.request("POST", "/good", &[("connection", "close")], nonce.as_bytes());
            let Some(reply) = conn.reply() else {
                seen.complain(format!("request {nonce} was accepted and not answered"));
                break;
            };
            seen.answered(Some(&reply));
            // Its head came after the node was told to stop, and the function did not run.
            if reply.header("hob-error") == Some("draining") && reply.header("hob-executed") == Some("0") {
                continue;
            }
            answered = reply.status == 200 && reply.body == guests::victims_answer(nonce.as_bytes());
            break;
        }
        seen.check(answered, || format!("request {nonce} is lost"));
        std::thread::sleep(Duration::from_millis(16));
    }
    seen
}
