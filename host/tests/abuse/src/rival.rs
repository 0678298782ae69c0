//! Silent and dripping connections against Hob and a server of others, in one table.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::case::{Scale, Seen, attacker};
use crate::guests::{self, says};
use crate::http;
use crate::node::{HOME, Node, Setup};
use crate::report::Report;
use crate::swarm::{self, Plan, Reads};
use crate::victim::quantile;

/// A `wasi:http` 0.2 component would need its toolchain: a server of others answers whatever it answers to this, and only whether and when
/// it does is looked at.
const TARGET: &str = "/good";

#[derive(Debug)]
struct Server {
    name: String,
    addr: SocketAddr,
    _node: Option<Node>,
    child: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already; either way it is gone afterwards.
            let _gone = child.kill();
            let _reaped = child.wait();
        }
    }
}

/// Runs both attacks on both servers.
pub(crate) fn run(rival: &str, binary: &Path, scale: Scale, report: &mut Report) -> anyhow::Result<()> {
    let (name, path) = rival.split_once('=').context("--rival wants NAME=PATH, such as wasmtime=/usr/bin/wasmtime")?;
    ensure!(name == "wasmtime", "the only rival is wasmtime, as `wasmtime serve`; found '{name}'");
    let hold = if scale == Scale::Long { Duration::from_secs(60) } else { Duration::from_secs(15) };
    let count = if scale == Scale::Long { 10_000 } else { 3000 };
    let from: Vec<_> = (0..100).map(attacker).collect();
    report.text(&format!(
        "{count} connections for {hold:?}, each of which comes again when it is closed, and a client that asks 50 times per second on connections of its own"
    ))?;
    for (attack, first, drip) in
        [("silent", &b""[..], None), ("dripping", &b"GET / HTTP/1.1\r\nhost: localhost\r\nx-drip: "[..], Some(&b"x"[..]))]
    {
        for server in [hob, wasmtime] {
            let dir = tempfile::tempdir()?;
            let server = server(Path::new(if path.is_empty() { "wasmtime" } else { path }), binary, dir.path())?;
            let plan = Plan {
                to: server.addr,
                count,
                from: &from,
                first,
                drip: drip.map(|bytes| (Duration::from_secs(1), bytes)),
                stay: Some(hold),
                reads: Reads::All,
                // Those of the last second are closed when their own time is over.
                until: hold + Duration::from_secs(20),
                done: None,
            };
            attack_on(&server, attack, &plan, report)?;
        }
    }
    Ok(())
}

fn attack_on(server: &Server, attack: &str, plan: &Plan<'_>, report: &mut Report) -> anyhow::Result<()> {
    let over = AtomicBool::new(false);
    let (ended, met) = std::thread::scope(|scope| {
        let client = scope.spawn(|| ask(server.addr, &over));
        std::thread::sleep(Duration::from_secs(1));
        let ended = swarm::run(plan, &mut Seen::default());
        // Those that the attack leaves are there as long as the client asks.
        over.store(true, Ordering::SeqCst);
        (ended, client.join())
    });
    let (ended, Ok((good, errors, times))) = (ended?, met) else { bail!("the client panicked") };
    let longest = ended.closed_after.iter().max().copied().unwrap_or_default();
    report.figure(&serde_json::json!({
        "row": "F1", "attack": attack, "server": server.name, "connections": plan.count,
        "answered": good, "unanswered": errors, "p99_ms": quantile(&times, 990).as_secs_f64() * 1e3,
        "ended_by_server": ended.closed_after.len(), "longest_ms": longest.as_secs_f64() * 1e3,
        "still_open": ended.open, "never_accepted": ended.unconnected,
    }))
}

/// 50 requests per second, each on a connection of its own; whether an answer comes within a second.
fn ask(addr: SocketAddr, over: &AtomicBool) -> (u64, u64, Vec<Duration>) {
    let (mut good, mut errors, mut times) = (0, 0, Vec::new());
    while !over.load(Ordering::SeqCst) {
        let began = Instant::now();
        match one(addr, HOME) {
            Ok(()) => good += 1,
            Err(_) => errors += 1,
        }
        times.push(began.elapsed());
        std::thread::sleep(Duration::from_millis(20).saturating_sub(began.elapsed()));
    }
    (good, errors, times)
}

fn one(addr: SocketAddr, from: Ipv4Addr) -> anyhow::Result<()> {
    let mut conn = http::Conn::open(addr, from)?;
    conn.wait_at_most(Duration::from_secs(1))?;
    conn.request("GET", TARGET, &[("connection", "close")], b"");
    conn.reply().map(drop).context("no answer")
}

fn hob(_: &Path, binary: &Path, dir: &Path) -> anyhow::Result<Server> {
    let setup = Setup { settings: vec!["net.connections_max=12000".into()], ..Setup::default() };
    let node = Node::start(binary, &dir.join("data"), &setup)?;
    node.deploy_wat("good", &says("good"), "")?;
    Ok(Server { name: "hob".into(), addr: node.data, _node: Some(node), child: None })
}

/// `wasmtime serve` with a component that exports what it wants, and answers nothing: its own 500 is an answer here.
fn wasmtime(path: &Path, _: &Path, dir: &Path) -> anyhow::Result<Server> {
    let component = dir.join("empty.wasm");
    std::fs::write(&component, guests::wasm(PROXY)?)?;
    let mut command = Command::new(path);
    command.args(["serve", "--addr", "127.0.0.1:0"]).arg(&component);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no standard error")?).lines();
    let mut said = String::new();
    let found = lines.by_ref().map_while(Result::ok).find_map(|line| {
        said += &line;
        let rest = line.split_once("http://")?.1;
        rest.trim_end_matches('/').split('/').next()?.parse::<SocketAddr>().ok()
    });
    // Whatever it says later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    let server = Server {
        name: "wasmtime serve".into(),
        addr: found.unwrap_or(SocketAddr::from((HOME, 0))),
        _node: None,
        child: Some(child),
    };
    ensure!(found.is_some(), "wasmtime serve did not say where it listens: {said}");
    let answers = crate::case::eventually(Duration::from_secs(5), || Ok(one(server.addr, HOME).is_ok()))?;
    ensure!(answers, "wasmtime serve does not answer at all");
    Ok(server)
}

/// A handler of `wasi:http` 0.2 that returns without an answer.
const PROXY: &str = r#"(component
  (import "wasi:http/types@0.2.0" (instance $types
    (export "incoming-request" (type (sub resource)))
    (export "response-outparam" (type (sub resource)))))
  (alias export $types "incoming-request" (type $request))
  (alias export $types "response-outparam" (type $out))
  (core module $m (func (export "handle") (param i32 i32)))
  (core instance $i (instantiate $m))
  (func $handle (param "request" (own $request)) (param "response-out" (own $out)) (canon lift (core func $i "handle")))
  (instance $handler (export "handle" (func $handle)))
  (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#;
