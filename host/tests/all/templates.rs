//! Templates in memory: their bounds, what evicting one costs, and what happens to them when the engine is another.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hob::artifacts::{Artifacts, DataDir};
use hob::config;
use hob::deploy::{Allowed, Deployer, Sent};
use hob::dispatch::Dispatcher;
use hob::dispatch::catalog::Base;
use hob::dispatch::templates::Templates;
use hob::dispatch::templates::bounds::Bounds;
use hob::engine::Engine;
use hob::engine::build::{Builder, Helper};
use hob::grants::Grants;
use hob::id::{FunctionName, TenantId};
use hob::invocation::Start;
use hob::manifest::Manifest;
use hob::process::Reach;
use hob::registry::{Precondition, Registry};
use hob::telemetry::logs::LogSpace;
use hob::telemetry::metrics::Metrics;
use tempfile::TempDir;

use crate::harness::http::Conn;
use crate::harness::wat::{SPINS, handler, handler_with, says, waits, wasm};
use crate::harness::{Node, Setup, data_dir, eventually, patiently, serve};
use crate::process::children;

/// The rung on which a request of a function began, which must answer with `text`.
#[track_caller]
pub(crate) fn start(node: &Node, name: &str, text: &str) -> String {
    let reply = node.data.get(&format!("/{name}")).ok();
    assert_eq!(reply.text(), text);
    reply.header("hob-start").unwrap().to_owned()
}

#[test]
fn one_template_at_a_time_costs_stored_and_no_error() {
    let node = Node::start(&["engine.templates_max=1"]);
    for name in ["a", "b"] {
        node.deploy_wat(name, &says(name), "");
    }
    for (name, rung) in [("b", "resident"), ("a", "stored"), ("a", "resident"), ("b", "stored"), ("b", "resident")] {
        assert_eq!(start(&node, name, name), rung, "{name}");
    }
    assert_eq!(node.metric("hob_templates"), 1);
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 0);
}

#[test]
fn a_template_is_evicted_while_its_instances_run() {
    const RUNNING: usize = 8;
    let node = Node::start(&["engine.templates_max=1"]);
    node.deploy_wat("waits", &waits(), "");
    let mut running: Vec<Conn> = (0..RUNNING).map(|_| node.data.connect()).collect();
    for conn in &mut running {
        conn.begin_chunked("POST", "/waits");
    }
    eventually("all run", || node.occupancy("waits").0 == RUNNING as u64);
    node.deploy_wat("b", &says("b"), "");
    assert_eq!((node.inspect("waits")["resident"].as_bool(), start(&node, "b", "b").as_str()), (Some(false), "resident"));
    // Its code is still theirs, also beside newer instances of the same function.
    let mut newer = node.data.connect();
    newer.begin_chunked("POST", "/waits");
    newer.end_chunks();
    assert_eq!(newer.reply().ok().header("hob-start"), Some("stored"));
    for (n, conn) in running.iter_mut().enumerate() {
        conn.chunk(&vec![1; n + 1]).unwrap();
        conn.end_chunks();
        assert_eq!(conn.reply().good(), (n as u32 + 1).to_le_bytes());
    }
}

/// A handler that answers with `text` and whose memory has `kib` KiB from the start.
fn large(text: &str, kib: usize) -> String {
    let (data, len) = ("\\07".repeat(kib << 10), text.len());
    let memory = format!("(memory (export \"memory\") {})", 2 + kib.div_ceil(64));
    let fields = format!(
        "(data (i32.const 0) \"{text}\") (data (i32.const 65536) \"{data}\")
         (func (export \"hob_handle\") (call $answer (i32.const 200) (i32.const 0) (i32.const {len})))"
    );
    handler_with(&memory, &fields)
}

#[test]
fn templates_are_bounded_by_their_bytes() {
    let node = Node::start(&["engine.templates_bytes_max=1MiB"]);
    for name in ["a", "b", "c"] {
        node.deploy_wat(name, &large(name, 400), "");
    }
    // Two of them fit.
    for (name, rung) in [("c", "resident"), ("b", "resident"), ("a", "stored"), ("b", "resident"), ("c", "stored")] {
        assert_eq!(start(&node, name, name), rung, "{name}");
    }
    // One that never fits is served, and takes nobody's place.
    node.deploy_wat("huge", &large("huge", 1100), "");
    assert_eq!(start(&node, "huge", "huge"), "stored");
    assert_eq!(start(&node, "huge", "huge"), "stored");
    assert_eq!((start(&node, "b", "b").as_str(), start(&node, "c", "c").as_str()), ("resident", "resident"));
    assert_eq!(node.metric("hob_templates"), 2);
}

/// A node whose engine is another one, in the folder of one before.
fn with_engine(dir: Arc<TempDir>, engine: &str) -> Node {
    let mut command = serve(&data_dir(&dir));
    command.env("HOB_TEST_ENGINE", engine);
    Node::run(command, dir).unwrap()
}

/// What the node says of the engine that all native code is for.
fn engine(node: &Node) -> String {
    std::fs::read_to_string(node.data_dir().join("engine")).unwrap_or_else(|_| "unknown".into())
}

/// Waits until all native code is of another engine than `before`, and returns which.
#[track_caller]
fn refreshed(node: &Node, before: &str) -> String {
    eventually("all native code is of this engine", || ![before, "unknown"].contains(&engine(node).as_str()));
    engine(node)
}

/// A handler that counts its initialisations, and answers how many it has had.
fn counts_at_init() -> String {
    handler(
        "(func (export \"hob_init\") (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hob_handle\") (call $number (i32.load (i32.const 0))))",
    )
}

#[test]
fn after_an_upgrade_of_the_engine_functions_are_compiled_anew_before_they_are_needed() {
    let mut node = Node::start(&[]);
    for name in ["a", "b", "c"] {
        node.deploy_wat(name, &says(name), "");
    }
    // Another name of the same module has the same native code.
    node.deploy_wat("a-too", &says("a"), "");
    // Another tenant has one with a snapshot.
    assert_eq!(node.control.request("PUT", "/v1/tenants/acme", &[], b"{}").status(), 201);
    let of_acme = |node: &Node, method: &str, path: &str, body: &[u8]| {
        node.control.request(method, path, &[("hob-tenant", "acme"), ("content-type", "application/wasm")], body)
    };
    let deployed = of_acme(&node, "PUT", "/v1/functions/d", &wasm(&counts_at_init()));
    assert_eq!(deployed.status(), 201, "{}", deployed.text());
    assert!(deployed.json()["snapshot"].is_object(), "{}", deployed.text());
    let first = refreshed(&node, "");
    assert_eq!(node.metric("hob_builds_total"), 4, "deploys alone; what has the same native code is not built again");
    node.stop();
    let before = node.files("artifacts");

    let dir = node.dir();
    let mut node = with_engine(dir.clone(), "next");
    let next = refreshed(&node, &first);
    assert_eq!(node.metric("hob_builds_total"), 4);
    eventually("the old code is gone", || node.files("artifacts").iter().all(|file| !before.contains(file)));
    assert_eq!(node.files("artifacts").len(), 4);
    let reply = of_acme(&node, "GET", "/v1/functions/d/invoke", b"");
    assert_eq!((reply.header("hob-start"), reply.body.as_slice()), (Some("stored"), &1u32.to_le_bytes()[..]));
    for (name, text, rung) in [("a", "a", "stored"), ("b", "b", "stored"), ("c", "c", "stored"), ("a-too", "a", "resident")] {
        assert_eq!(start(&node, name, text), rung, "{name}");
    }
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 0);
    node.stop();
    // What the next upgrade compiles in this order: those that were used before those that were not, the last first.
    let used = std::fs::read_to_string(node.data_dir().join("used")).unwrap();
    let mut used: Vec<_> = used.lines().collect();
    used.sort_unstable();
    assert_eq!(used, ["acme d", "default a", "default a-too", "default b", "default c"]);

    let mut node = with_engine(dir.clone(), "next");
    assert_eq!(start(&node, "a", "a"), "stored");
    assert_eq!(node.metric("hob_builds_total"), 0, "once is enough");
    node.stop();

    // Back to the first engine, whose code is gone.
    let node = with_engine(dir, "");
    assert_eq!(refreshed(&node, &next), first);
    assert_eq!((node.metric("hob_builds_total"), start(&node, "a-too", "a").as_str()), (4, "stored"));
}

#[test]
fn a_request_after_an_upgrade_shares_the_one_compilation() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    let first = refreshed(&node, "");
    node.stop();
    let node = with_engine(node.dir(), "next");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(patiently(|| node.data.get("/a")).0.ok().text(), "a"));
        }
    });
    // It is in memory under the code that it began with, which is not the record's any more.
    assert_eq!(node.control.get("/v1/functions/a").ok().json()["resident"], true);
    refreshed(&node, &first);
    assert_eq!(node.metric("hob_builds_total"), 1);
}

#[test]
fn a_request_that_finds_only_wasm_waits_for_a_while_and_the_compilation_goes_on() {
    let settings = &["build.concurrency=1", "build.init=20s"];
    let mut first = Node::start(settings);
    first.deploy_wat("a", &says("a"), "[limits]\nconcurrency = 1\nqueue = 2");
    first.deploy_wat("forced", &says("forced"), "[limits]\nwall = \"1s\"");
    first.deploy_wat("short", &says("short"), "[limits]\nwall = \"300ms\"");
    first.stop();
    for path in first.files("artifacts") {
        std::fs::remove_file(path).unwrap();
    }
    let node = Node::start_with(Setup { dir: Some(first.dir()), settings, ..Setup::default() });
    // The one place for builds is taken by an initialisation that does not end before the request has waited.
    let spins = handler(&format!("(func (export \"hob_init\") {SPINS}) (func (export \"hob_handle\"))"));
    let mut deploys = node.control.connect();
    deploys.request("PUT", "/v1/functions/spins", &[("content-type", "application/wasm")], &wasm(&spins));
    let is_building = || children(node.pid()).into_iter().any(|helper| !children(helper).is_empty());
    eventually("it is being built", is_building);
    // Who asks for a compilation waits for it, and it is not the function's time. Who asks for less shares it.
    let mut forced = node.control.connect();
    forced.request("GET", "/v1/functions/forced/invoke", &[("hob-start", "compiled")], b"");
    std::thread::scope(|scope| {
        // Nobody who waits for it is in the way of others: all have the same wait, whatever the function's concurrency.
        let asked: Vec<_> = ["/a", "/a", "/a", "/forced"]
            .map(|path| {
                let mut conn = node.data.connect();
                conn.request("GET", path, &[], b"");
                conn
            })
            .into();
        let counts = || node.control.get("/v1/functions/a").ok().json();
        eventually("all of them wait", || (counts()["waiting"].as_u64(), counts()["running"].as_u64()) == (Some(3), Some(0)));
        let refused = node.data.get("/a");
        let detail = refused.problem(429, "concurrency")["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("is being built") && refused.header("hob-executed") == Some("0"), "{detail}");
        for mut conn in asked {
            scope.spawn(move || {
                let reply = conn.reply();
                reply.problem(503, "overloaded");
                let header = |name| reply.header(name).map(str::to_owned);
                assert_eq!((header("retry-after").as_deref(), header("hob-executed").as_deref()), (Some("2"), Some("0")));
            });
        }
    });
    // Nor does what a request waits for without asking for it count, though it is more than the function's time.
    let mut short = node.data.connect();
    short.request("GET", "/short", &[], b"");
    let from = std::time::Instant::now();
    while from.elapsed() < Duration::from_millis(350) {
        node.control.get("/readyz").ok();
    }
    // A client that gives its deploy up ends the build, and the compilations that all of them asked for have their turns.
    drop(deploys);
    let forced = forced.reply().ok();
    assert_eq!((forced.header("hob-start"), forced.text().as_str()), (Some("compiled"), "forced"));
    let short = short.reply();
    if short.header("hob-error") != Some("overloaded") {
        let short = short.ok();
        assert_eq!((short.text().as_str(), short.header("hob-start")), ("short", Some("compiled")));
    }
    eventually("all are compiled", || node.metric("hob_builds_total") == 3);
    for name in ["a", "forced", "short"] {
        assert_eq!(patiently(|| node.data.get(&format!("/{name}"))).0.ok().text(), name);
    }
    assert_eq!(node.metric("hob_builds_total"), 3);
}

#[test]
fn what_cannot_be_compiled_anew_is_left_to_a_deploy() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    node.deploy_wat("b", &says("b"), "");
    node.stop();
    let digest = hob::id::Digest::of(&wasm(&says("a"))).hex();
    std::fs::remove_file(node.data_dir().join(format!("wasm/default/{digest}.wasm"))).unwrap();
    let node = with_engine(node.dir(), "next");
    eventually("it has tried both", || node.stderr().contains("functions still have native code of another engine"));
    assert_eq!(start(&node, "b", "b"), "stored");
    for _ in 0..3 {
        let reply = node.data.get("/a");
        reply.problem(503, "damaged");
        assert!(reply.header("retry-after").is_some(), "it is not tried again at once");
    }
    assert_eq!(engine(&node), "unknown", "the next start tries again");
}

/// A handler that answers with eight bytes that its initialisation has drawn.
fn draws_at_init() -> String {
    let import = "(module (import \"wasi_snapshot_preview1\" \"random_get\" (func $random_get (param i32 i32) (result i32)))";
    let text = handler(
        "(func (export \"hob_init\") (drop (call $random_get (i32.const 0) (i32.const 8))))
         (func (export \"hob_handle\") (call $answer (i32.const 200) (i32.const 0) (i32.const 8)))",
    );
    text.replacen("(module", import, 1)
}

#[test]
fn a_deploy_of_the_same_whose_native_code_is_gone_keeps_the_snapshot() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &draws_at_init(), "");
    let drawn = node.data.get("/a").good();
    let remove = |folder| node.files(folder).iter().for_each(|file| std::fs::remove_file(file).unwrap());
    remove("artifacts");
    node.deploy_wat("a", &draws_at_init(), "");
    assert_eq!((node.data.get("/a").good(), node.metric("hob_builds_total")), (drawn.clone(), 2));
    // And what it compiled is found by the next.
    node.deploy_wat("a", &draws_at_init(), "");
    assert_eq!((node.data.get("/a").good(), node.metric("hob_builds_total")), (drawn.clone(), 2));
    assert!(node.inspect("a")["notes"][0].as_str().unwrap().contains("random"), "{}", node.inspect("a")["notes"]);
    // Under other limits it would have been tried otherwise.
    remove("artifacts");
    node.deploy_wat("a", &draws_at_init(), "[limits]\ncpu = \"99ms\"");
    let other = node.data.get("/a").good();
    assert_ne!(other, drawn);
    // Without its snapshot, or with one that somebody changed, there is nothing to keep.
    remove("artifacts");
    remove("snapshots");
    node.deploy_wat("a", &draws_at_init(), "[limits]\ncpu = \"99ms\"");
    let third = node.data.get("/a").good();
    assert_ne!(third, other);
    remove("artifacts");
    for file in node.files("snapshots") {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[20] ^= 1;
        std::fs::write(&file, bytes).unwrap();
    }
    node.deploy_wat("a", &draws_at_init(), "[limits]\ncpu = \"99ms\"");
    assert_ne!(node.data.get("/a").good(), third);
}

/// What a node has behind its ports, in this process; builds run in the real binary.
struct Inside {
    dispatcher: Dispatcher,
    deployer: Deployer,
    engine: Engine,
    _dir: (DataDir, TempDir),
}

fn inside() -> Inside {
    let temp = tempfile::tempdir().unwrap();
    let dir = DataDir::open(temp.path()).unwrap();
    let registry = Arc::new(Registry::open(&dir.registry_path(), dir.format()).unwrap());
    let artifacts = Artifacts::open(&dir, dir.mac_key(None).unwrap(), u64::MAX).unwrap();
    let settings = config::Engine { instances_max: 1, ..config::Engine::default() };
    let engine = Engine::new(&settings, Arc::new(Metrics::new())).unwrap();
    let mut reach = Reach::of_system();
    reach.write(dir.path());
    let helper = Helper::start(Path::new(env!("CARGO_BIN_EXE_hob")), config::Sandbox::Auto, &reach).unwrap();
    let builder = Arc::new(Builder::new(helper, config::Build::default()).unwrap());
    let bounds = Bounds { count: 10, bytes: u64::MAX };
    let templates = Templates::new(engine.clone(), artifacts.clone(), registry.clone(), builder.clone(), bounds);
    let base = Base {
        logs: LogSpace::new(0, 0),
        grants: Grants::default(),
        data: None,
        files: None,
        egress: None,
        secrets: None,
        identity: None,
    };
    let dispatcher = Dispatcher::new(engine.clone(), templates, registry.clone(), base, 10, 0).unwrap();
    let data = config::Data::default();
    let deployer = Deployer::new(artifacts, registry, None, builder, engine.clone(), dispatcher.clone(), data);
    Inside { dispatcher, deployer, engine, _dir: (dir, temp) }
}

#[tokio::test]
async fn a_rung_can_be_asked_for() {
    let inside = inside();
    let (tenant, name): (_, FunctionName) = (TenantId::default(), "a".parse().unwrap());
    let mut upload = inside.deployer.create_upload().unwrap();
    upload.write(&wasm(&says("a"))).unwrap();
    let uploaded = upload.finish().unwrap();
    let sent = Sent { wasm: uploaded, bundle: None, manifest: Manifest::default() };
    inside.deployer.deploy(tenant.clone(), name.clone(), sent, Precondition::Any, Allowed::LOCAL).await.unwrap();
    let function = inside.dispatcher.function(&tenant, &name).unwrap();
    let builds = || inside.engine.metrics().builds.get();
    assert_eq!(builds(), 1);

    let get = async |from| inside.dispatcher.templates().get(&function, from).await.unwrap();
    let mut before = get(None).await;
    assert_eq!(before.start, Start::Resident);
    for (asked, compilations) in [(Start::Stored, 0), (Start::Compiled, 1), (Start::Stored, 0)] {
        let built = builds();
        let forced = get(Some(asked)).await;
        assert_eq!((forced.start, builds() - built), (asked, compilations));
        assert!(!Arc::ptr_eq(&forced.template, &before.template), "{asked:?}: it was loaded anew");
        assert!(!forced.verify.is_zero(), "and checked");
        // What was loaded is what the next ones get.
        for usual in [None, Some(Start::Resident)] {
            let next = get(usual).await;
            assert_eq!((next.start, next.verify.is_zero()), (Start::Resident, true));
            assert!(Arc::ptr_eq(&forced.template, &next.template));
        }
        before = forced;
    }
}
