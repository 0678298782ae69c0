//! Instances made ahead of the requests they will serve: who gets them, what they may know, and when they go.

use wasm_encoder::Encode;
use wasmparser::{Parser, Payload};

use crate::harness::examples::guest;
use crate::harness::wat::{command, handler, says, waits, wasm};
use crate::harness::{Node, eventually, http::Reply};
use crate::isolation::spy;
use crate::large::{large, until_in_large};

/// Code that takes some milliseconds.
const SLOW: &str = "(local $n i32)
    (loop $more
      (local.set $n (i32.add (local.get $n) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $n) (i32.const 5000000))))";

/// A manifest with which initialisation runs at each start.
const AT_EACH_START: &str = "snapshot = \"off\"\n";

/// A node with one data thread, so that it is known who makes what waits.
#[track_caller]
fn node(settings: &[&str]) -> Node {
    Node::start(&[&["engine.threads=1", "engine.ready_max=4"], settings].concat())
}

/// A handler that takes long to start, counts up once meanwhile and once more for each request, and answers with the count.
fn slow_counter(more: &str) -> String {
    handler(&format!(
        "(func $count (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hob_init\") {SLOW} (call $count) {more})
         (func (export \"hob_handle\") (call $count) (call $number (i32.load (i32.const 0))))"
    ))
}

/// A component with one more core module, which is instantiated last and takes long to start.
fn starts_slowly(mut component: Vec<u8>) -> Vec<u8> {
    let payloads = Parser::new(0).parse_all(&component);
    let modules = payloads.filter(|payload| matches!(payload.as_ref().unwrap(), Payload::ModuleSection { .. })).count();
    let module = wasm(&format!("(module (func $slow {SLOW}) (start $slow))"));
    // Two sections of the binary format: a core module; one core instance, of the module of this number, without arguments.
    component.push(1);
    module[..].encode(&mut component);
    component.push(2);
    [1, 0, u8::try_from(modules).unwrap(), 0][..].encode(&mut component);
    component
}

fn rung(reply: &Reply) -> String {
    reply.header("hob-start").unwrap_or_default().to_owned()
}

fn waiting(node: &Node, name: &str) -> u64 {
    node.inspect(name)["ready"].as_u64().unwrap()
}

/// Asks until `count` instances wait.
#[track_caller]
fn make_ready(node: &Node, name: &str, count: u64) {
    eventually("instances wait", || {
        node.data.get(&format!("/{name}")).good();
        waiting(node, name) >= count
    });
}

/// Makes requests, each of which must find an instance that waits.
#[track_caller]
fn all_ready(node: &Node, name: &str, times: usize) -> Vec<Vec<u8>> {
    let one = |_| {
        eventually("one waits", || waiting(node, name) > 0);
        let reply = node.data.get(&format!("/{name}"));
        assert_eq!(rung(&reply), "ready");
        reply.good()
    };
    (0..times).map(one).collect()
}

/// Makes requests, none of which may find an instance that waits.
#[track_caller]
fn none_ready(node: &Node, name: &str) {
    for _ in 0..20 {
        let reply = node.data.get(&format!("/{name}"));
        assert_eq!((reply.status(), rung(&reply).as_str()), (200, "resident"));
    }
    assert_eq!(node.metric("hob_ready_instances"), 0);
}

#[test]
fn one_serves_one_invocation() {
    let node = node(&[]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    make_ready(&node, "a", 4);
    assert_eq!(node.metric("hob_ready_instances"), 4);
    for body in all_ready(&node, "a", 20) {
        assert_eq!(body, 2u32.to_le_bytes(), "it started and was asked, each once");
    }
    assert!(node.inspect("a")["usage"]["starts"]["ready"].as_u64().unwrap() >= 20);
    let reply = node.deploy("component", &starts_slowly(std::fs::read(guest("counter2")).unwrap()), AT_EACH_START);
    assert_eq!(reply.status(), 201, "{}", reply.text());
    make_ready(&node, "component", 4);
    for body in all_ready(&node, "component", 20) {
        assert_eq!(body, b"1");
    }
}

#[test]
fn nothing_of_one_is_visible_in_the_next() {
    let node = node(&[]);
    // Worth making ahead on any machine: on a fast one the instantiation alone is not.
    let spy = |data: &str| {
        let slow = format!("(func (export \"hob_init\") {SLOW}) (func (export \"hob_handle\")");
        spy(data).replace("(func (export \"hob_handle\")", &slow)
    };
    // The image and limits of one differ from those of the other; the slots of the pool are the same.
    node.deploy_wat("a", &spy("AAAAAAAAAAAAAAAA"), AT_EACH_START);
    node.deploy_wat("b", &spy("BBBBBBBBBBBBBBBB"), &format!("{AT_EACH_START}[limits]\nmemory = \"8MiB\"\n"));
    make_ready(&node, "a", 1);
    make_ready(&node, "b", 1);
    for _ in 0..20 {
        for name in ["a", "b"] {
            assert_eq!(all_ready(&node, name, 1), [0u32.to_le_bytes()]);
        }
    }
}

#[test]
fn a_deploy_drops_them_before_it_is_acknowledged() {
    let node = node(&[]);
    let none = |what: &str| assert_eq!(node.metric("hob_ready_instances"), 0, "{what}");
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    make_ready(&node, "a", 4);
    node.deploy_wat("a", &says("other code"), AT_EACH_START);
    none("other code");
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    make_ready(&node, "a", 4);
    node.deploy_wat("a", &slow_counter(""), &format!("{AT_EACH_START}[env]\nA = \"1\"\n"));
    none("the same code in another environment");
    make_ready(&node, "a", 4);
    assert_eq!(node.control.post("/v1/functions/a/rollback", b"").status(), 200);
    none("the same code in the former environment");
    make_ready(&node, "a", 4);
    assert_eq!(node.control.request("DELETE", "/v1/functions/a", &[], b"").status(), 204);
    none("no code");
    assert_eq!(node.data.get("/a").status(), 404);
}

#[test]
fn functions_that_share_a_module_share_no_environment_and_no_log() {
    let node = node(&[]);
    let text = command(&format!(
        "(func (export \"wizer-initialize\") {SLOW})
         (func (export \"_start\")
           (if (call $environ_sizes_get (i32.const 0) (i32.const 4)) (then unreachable))
           (if (call $environ_get (i32.const 16) (i32.const 1024)) (then unreachable))
           (call $write (i32.const 2) (i32.const 1024) (i32.load (i32.const 4)))
           (call $write (i32.const 1) (i32.const 1024) (i32.load (i32.const 4))))"
    ));
    for name in ["a", "b"] {
        node.deploy_wat(name, &text, &format!("{AT_EACH_START}[env]\nWHOSE = \"{name}\"\n"));
    }
    assert_eq!(node.inspect("a")["revision"], node.inspect("b")["revision"]);
    make_ready(&node, "a", 4);
    for _ in 0..10 {
        for name in ["b", "a"] {
            // Whichever of them it was made after.
            let text = String::from_utf8(all_ready(&node, name, 1).remove(0)).unwrap();
            assert!(text.contains(&format!("WHOSE={name}\0")) && text.matches("WHOSE").count() == 1, "{text:?}");
        }
    }
    for (name, other) in [("a", "b"), ("b", "a")] {
        assert!(node.logs(name).iter().all(|(_, _, text)| !text.contains(&format!("WHOSE={other}"))), "{name}");
    }
}

#[test]
fn what_looks_outside_at_its_start_never_waits() {
    let node = node(&[]);
    for (name, import, call) in [
        (
            "clock",
            "\"clock_time_get\" (func $ask (param i32 i64 i32) (result i32))",
            "(i32.const 1) (i64.const 0) (i32.const 64)",
        ),
        ("random", "\"random_get\" (func $ask (param i32 i32) (result i32))", "(i32.const 64) (i32.const 8)"),
        ("environment", "\"environ_sizes_get\" (func $ask (param i32 i32) (result i32))", "(i32.const 64) (i32.const 68)"),
    ] {
        let text = slow_counter(&format!("(drop (call $ask {call}))"));
        let text = text.replacen("(module", &format!("(module (import \"wasi_snapshot_preview1\" {import})"), 1);
        node.deploy_wat(name, &text, AT_EACH_START);
        none_ready(&node, name);
    }
    // What it says belongs to the log of an invocation.
    node.deploy_wat("says", &slow_counter("(call $log (i32.const 2) (i32.const 32768) (i32.const 1))"), AT_EACH_START);
    none_ready(&node, "says");
    // What memory it gets depends on whose invocation it is.
    node.deploy_wat(
        "grows",
        &slow_counter("(drop (memory.grow (i32.const 100)))"),
        &format!("{AT_EACH_START}[limits]\nmemory = \"1MiB\"\n"),
    );
    none_ready(&node, "grows");
}

#[test]
fn one_that_grew_past_a_function_s_limit_is_not_for_it() {
    let node = node(&[]);
    let grows = slow_counter("(if (i32.eq (memory.grow (i32.const 31)) (i32.const -1)) (then unreachable))");
    node.deploy_wat("large", &grows, AT_EACH_START);
    node.deploy_wat("small", &grows, &format!("{AT_EACH_START}[limits]\nmemory = \"1MiB\"\n"));
    make_ready(&node, "large", 4);
    node.data.get("/small").problem(502, "guest-memory");
    assert_eq!(all_ready(&node, "large", 1), [2u32.to_le_bytes()]);
}

#[test]
fn one_that_fails_to_start_fails_where_it_is_asked() {
    let node = node(&[]);
    node.deploy_wat("a", &slow_counter("unreachable"), AT_EACH_START);
    for _ in 0..5 {
        node.data.get("/a").problem(502, "guest-trap");
    }
    assert_eq!(node.metric("hob_ready_instances"), 0);
}

#[test]
fn their_number_on_both_sides() {
    let node = Node::start(&["engine.threads=1", "engine.ready_max=3"]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    make_ready(&node, "a", 3);
    all_ready(&node, "a", 5);
    eventually("as many as may", || waiting(&node, "a") == 3);
    assert_eq!(node.metric("hob_ready_instances"), 3);
    let node = Node::start(&["engine.threads=1", "engine.ready_max=0"]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    none_ready(&node, "a");
}

#[test]
fn their_memory_on_both_sides() {
    // The memory of one is a page of 64 KiB.
    for (bytes, count) in [("131072", 2), ("131071", 1)] {
        let node = node(&[&format!("engine.ready_bytes_max={bytes}")]);
        node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
        make_ready(&node, "a", count);
        for _ in 0..5 {
            all_ready(&node, "a", 1);
            assert!(waiting(&node, "a") <= count);
        }
        eventually("as many as may", || waiting(&node, "a") == count);
    }
    let node = node(&["engine.ready_bytes_max=65535"]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    none_ready(&node, "a");
}

#[test]
fn they_give_way_to_invocations() {
    let node = node(&["engine.instances_max=4", "engine.instance_wait=60s"]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    node.deploy_wat("waits", &waits(), "[limits]\nwall = \"1h\"\n");
    make_ready(&node, "a", 2);
    assert_eq!(node.metric("hob_ready_instances"), 2, "half of the places");
    let mut conns: Vec<_> = (0..4)
        .map(|_| {
            let mut conn = node.data.connect();
            conn.begin_chunked("POST", "/waits");
            conn.chunk(b"x").unwrap();
            conn
        })
        .collect();
    eventually("all of them run", || node.metric("hob_instances") == 4);
    assert_eq!(node.metric("hob_ready_instances"), 0);
    for conn in &mut conns {
        conn.end_chunks();
        assert_eq!(conn.reply().good(), 1u32.to_le_bytes());
    }
}

#[test]
fn they_go_when_nobody_asks() {
    let mut node = node(&["engine.ready_idle=100ms"]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    // They may go while the others are made.
    make_ready(&node, "a", 1);
    eventually("they are gone", || node.metric("hob_ready_instances") == 0);
    make_ready(&node, "a", 1);
    // Those that wait do not keep a node from stopping.
    node.stop();
}

#[test]
fn they_go_with_their_template() {
    let node = node(&["engine.templates_max=1"]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    make_ready(&node, "a", 4);
    node.deploy_wat("b", &says("b"), AT_EACH_START);
    assert_eq!(node.metric("hob_ready_instances"), 0);
    assert_eq!(rung(&node.data.get("/a")), "stored");
}

#[test]
fn those_of_a_large_guest_come_from_both_pools() {
    let node = node(&["engine.large_instances_max=2"]);
    node.deploy_wat("a", &large(&format!("(func (export \"hob_init\") {SLOW})")), AT_EACH_START);
    make_ready(&node, "a", 4);
    // One of them at most, half of the places, is of the pool for large guests.
    until_in_large(&node, || assert_eq!(all_ready(&node, "a", 1), [0u32.to_le_bytes()]));
    all_ready(&node, "a", 5);
}

#[test]
fn one_that_waited_is_within_its_tenant_s_memory() {
    let node = node(&[]);
    node.deploy_wat("a", &slow_counter(""), AT_EACH_START);
    make_ready(&node, "a", 2);
    let allow = |memory: &str| {
        let body = serde_json::json!({ "quotas": { "memory": memory } }).to_string();
        node.control.request("PATCH", "/v1/tenants/default", &[], body.as_bytes()).ok();
    };
    allow("65535B");
    let refused = node.data.get("/a").problem(429, "quota-exceeded");
    assert!(refused["detail"].as_str().unwrap().contains("'memory' of 65535"), "{refused}");
    eventually("it gave back what it had", || node.metric("hob_tenant_memory_bytes{tenant=\"default\"}") == 0);
    allow("64KiB");
    node.data.get("/a").good();
}
