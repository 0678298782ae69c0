//! Quotas of tenants: each lets through what it should, refuses what it should, and says so. None of these waits: rates are so low that nothing
//! comes back within a test.

use serde_json::json;

use crate::cli::{at, check};
use crate::harness::http::Reply;
use crate::harness::wat::{SPINS, does, handler_with, says, waits, wasm};
use crate::harness::{Node, eventually};
use crate::identity::{owned, tenant, token};

/// Sets quotas of the tenant `default`.
#[track_caller]
fn set(node: &Node, quotas: &serde_json::Value) {
    let body = json!({ "quotas": quotas }).to_string();
    node.control.request("PATCH", "/v1/tenants/default", &[], body.as_bytes()).ok();
}

/// Holds that a quota refused this before any guest ran.
#[track_caller]
fn refused(reply: &Reply, quota: &str, value: &str) {
    let problem = reply.problem(429, "quota-exceeded");
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains(&format!("'{quota}' of {value}:")), "{detail}");
    assert!(problem["hint"].as_str().unwrap().contains(&format!("--{}", quota.replace('_', "-"))), "{problem}");
    assert_eq!(reply.header("hob-executed"), Some("0"));
}

#[track_caller]
fn later(reply: &Reply) {
    assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
}

#[test]
fn invocations_in_a_second() {
    let mut node = Node::start(&[]);
    node.deploy_wat("says", &says("hello"), "");
    let (_, said) = check(&at(&node, &["tenant", "set", "default", "--invocations-per-second", "0.001"]), 0);
    assert!(said.contains("invocations_per_second=0.001"), "{said}");
    node.data.get("/says").good();
    for reply in [node.data.get("/says"), node.control.get("/v1/functions/says/invoke")] {
        refused(&reply, "invocations_per_second", "0.001");
        later(&reply);
    }
    assert_eq!(node.metric("hob_quota_refused_total{tenant=\"default\",quota=\"invocations_per_second\"}"), 2);
    assert_eq!(node.faults("quota-exceeded"), 2);
    // It is there after a restart, and gone once it is taken away.
    node.restart();
    node.data.get("/says").good();
    refused(&node.data.get("/says"), "invocations_per_second", "0.001");
    let (list, _) = check(&at(&node, &["tenant", "ls"]), 0);
    assert!(list.contains("invocations_per_second=0.001"), "{list}");
    check(&at(&node, &["tenant", "set", "default", "--invocations-per-second", "none"]), 0);
    for _ in 0..20 {
        node.data.get("/says").good();
    }
    set(&node, &json!({ "invocations_per_second": 0 }));
    refused(&node.data.get("/says"), "invocations_per_second", "0");
}

#[test]
fn invocations_at_once() {
    let node = Node::start(&[]);
    node.deploy_wat("waits", &waits(), "");
    set(&node, &json!({ "concurrency": 1 }));
    let mut first = node.data.connect();
    first.begin_chunked("POST", "/waits");
    eventually("it runs", || node.occupancy("waits").0 == 1);
    let reply = node.data.get("/waits");
    refused(&reply, "concurrency", "1");
    later(&reply);
    first.end_chunks();
    first.reply().ok();
    eventually("its place is free", || node.data.get("/waits").status() == 200);
    set(&node, &json!({ "concurrency": 0 }));
    refused(&node.data.get("/waits"), "concurrency", "0");
    set(&node, &json!({ "concurrency": null }));
    node.data.get("/waits").good();
}

#[test]
fn processor_time_in_a_minute() {
    let node = Node::start(&[]);
    node.deploy_wat("spins", &does(SPINS), "[limits]\ncpu = '50ms'\nwall = '1h'\n");
    node.deploy_wat("says", &says("hello"), "");
    // What runs ends at its own limit, and what it used is paid back for longer than any test.
    set(&node, &json!({ "cpu_seconds_per_minute": "0.001" }));
    node.data.get("/spins").problem(504, "cpu-deadline");
    let reply = node.data.get("/says");
    refused(&reply, "cpu_seconds_per_minute", "0.001");
    later(&reply);
    set(&node, &json!({ "cpu_seconds_per_minute": 3600 }));
    node.data.get("/says").good();
}

#[test]
fn memory_of_all_that_run() {
    let node = Node::start(&[]);
    node.deploy_wat("waits", &waits(), "");
    node.deploy_wat(
        "large",
        &handler_with("(memory (export \"memory\") 3)", "(func (export \"hob_handle\") (call $number (i32.const 7)))"),
        "",
    );
    set(&node, &json!({ "memory": "128KiB" }));
    let hold = || {
        let mut conn = node.data.connect();
        conn.begin_chunked("POST", "/waits");
        conn
    };
    let mut held = vec![hold()];
    eventually("one has its memory", || node.metric("hob_tenant_memory_bytes{tenant=\"default\"}") == 65_536);
    node.data.get("/waits").good();
    eventually("the other gave it back", || node.metric("hob_tenant_memory_bytes{tenant=\"default\"}") == 65_536);
    held.push(hold());
    eventually("two have theirs", || node.metric("hob_tenant_memory_bytes{tenant=\"default\"}") == 131_072);
    let reply = node.data.get("/waits");
    refused(&reply, "memory", "128KiB");
    later(&reply);
    for mut conn in held {
        conn.end_chunks();
        conn.reply().ok();
    }
    eventually("all gave it back", || node.metric("hob_tenant_memory_bytes{tenant=\"default\"}") == 0);
    // One that alone would pass it ends by that.
    let reply = node.data.get("/large");
    let seen = (reply.status(), reply.header("hob-error"), reply.header("hob-executed"));
    assert_eq!(seen, (429, Some("quota-exceeded"), Some("1")), "{}", reply.text());
    assert!(reply.text().contains("'memory' of 128KiB"), "{}", reply.text());
    set(&node, &json!({ "memory": "192KiB" }));
    node.data.get("/large").good();
}

#[test]
fn deploys_and_functions() {
    let node = Node::start(&["quota.functions=2"]);
    node.deploy_wat("a", &says("a"), "");
    node.deploy_wat("b", &says("b"), "");
    refused(&node.deploy("c", &wasm(&says("c")), ""), "functions", "2");
    assert_eq!(node.deploy("b", &wasm(&says("b2")), "").status(), 200, "a new revision is no new function");
    set(&node, &json!({ "functions": "none" }));
    assert_eq!(node.deploy("c", &wasm(&says("c")), "").status(), 201);
    set(&node, &json!({ "deploys_per_hour": 1 }));
    assert_eq!(node.deploy("c", &wasm(&says("c2")), "").status(), 200);
    let reply = node.deploy("c", &wasm(&says("c3")), "");
    refused(&reply, "deploys_per_hour", "1");
    later(&reply);
    assert_eq!(node.data.get("/c").good(), b"c2");
}

#[test]
fn bytes_that_buckets_may_hold() {
    let node = Node::start(&[]);
    set(&node, &json!({ "bytes_stored": "2MiB" }));
    let put = |name: &str, bytes_max: u64| {
        let body = json!({ "bytes_max": bytes_max }).to_string();
        node.control.request("PUT", &format!("/v1/buckets/{name}"), &[], body.as_bytes())
    };
    assert_eq!(put("a", 1 << 20).status(), 201);
    assert_eq!(put("b", 1 << 20).status(), 201);
    for reply in [put("c", 1), put("b", (1 << 20) + 1)] {
        let detail = reply.problem(507, "storage-full")["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("'bytes_stored' of 2MiB"), "{detail}");
    }
    let manifest = "[[bucket]]\nname = \"declared\"\n";
    node.deploy("says", &wasm(&says("x")), manifest).problem(507, "storage-full");
    node.control.get("/v1/functions/says").problem(404, "not-found");
    assert_eq!(put("b", 1 << 19).status(), 200);
    // Of two for which there is no room together none is made.
    let two = "[[bucket]]\nname = \"d1\"\nbytes_max = \"256KiB\"\n[[bucket]]\nname = \"d2\"\nbytes_max = \"257KiB\"\n";
    node.deploy("says", &wasm(&says("x")), two).problem(507, "storage-full");
    node.control.get("/v1/buckets/d1").problem(404, "not-found");
    assert_eq!(put("c", 1 << 19).status(), 201);
    assert_eq!(node.metric("hob_quota_refused_total{tenant=\"default\",quota=\"bytes_stored\"}"), 4);
    // What is there may stay, and become smaller.
    set(&node, &json!({ "bytes_stored": 1 }));
    assert_eq!(put("a", 1 << 19).status(), 200);
    set(&node, &json!({ "bytes_stored": null }));
    assert_eq!(node.deploy("says", &wasm(&says("x")), manifest).status(), 201);
}

#[test]
fn bytes_that_are_logged_in_a_minute() {
    let node = Node::start(&[]);
    let log = "(i32.store (i32.const 0) (i32.const 0x64636261)) (call $log (i32.const 2) (i32.const 0) (i32.const 4)) (call $number (i32.const 1))";
    node.deploy_wat("logs", &does(log), "");
    set(&node, &json!({ "log_bytes_per_minute": 4 }));
    node.data.get("/logs").good();
    node.data.get("/logs").good();
    let texts: Vec<_> = node.logs("logs").into_iter().map(|(.., text)| text).collect();
    assert_eq!((texts.len(), texts[0].as_str()), (2, "abcd"), "{texts:?}");
    assert!(texts[1].contains("4 bytes") && texts[1].contains("log_bytes_per_minute of 4"), "{texts:?}");
    set(&node, &json!({ "log_bytes_per_minute": "none" }));
    node.data.get("/logs").good();
    assert_eq!(node.logs("logs").len(), 3);
}

#[test]
fn quotas_are_the_operators_and_one_tenant_s_are_not_anothers() {
    let (node, _) = owned(&["quota.invocations_per_second=0.001"]);
    for name in ["acme", "beta"] {
        tenant(&node, name, &[]);
    }
    let doors = ["acme", "beta"].map(|name| node.control.with(&token(&node, name, "all", &["admin"])));
    for door in &doors {
        assert_eq!(door.request("PUT", "/v1/functions/says", &[], &wasm(&says("x"))).status(), 201);
        door.get("/v1/functions/says/invoke").ok();
        door.get("/v1/functions/says/invoke").problem(429, "quota-exceeded");
    }
    let patch = |body: &str| node.control.request("PATCH", "/v1/tenants/acme", &[], body.as_bytes());
    let set = patch(r#"{"quotas": {"invocations_per_second": 1000000}}"#).ok().json();
    assert_eq!((&set["quotas"]["invocations_per_second"], &set["hosts"]), (&"1000000".into(), &json!([])));
    doors[0].get("/v1/functions/says/invoke").ok();
    doors[1].get("/v1/functions/says/invoke").problem(429, "quota-exceeded");
    // Making it again changes no quota; taking its own away leaves the node's.
    let hosts = json!({ "hosts": ["acme.example"] }).to_string();
    node.control.request("PUT", "/v1/tenants/acme", &[], hosts.as_bytes()).ok();
    doors[0].get("/v1/functions/says/invoke").ok();
    let back = patch(r#"{"quotas": {"invocations_per_second": null}}"#).ok().json();
    assert_eq!((&back["quotas"], &back["in_force"]["invocations_per_second"]), (&json!({}), &"0.001".into()));
    doors[0].get("/v1/functions/says/invoke").ok();
    doors[0].get("/v1/functions/says/invoke").problem(429, "quota-exceeded");
    for wrong in [
        r#"{"quotas": {"nothing": 1}}"#,
        r#"{"quotas": {"memory": "lots"}}"#,
        r#"{"quotas": {"memory": -1}}"#,
        r#"{"hosts": []}"#,
    ] {
        patch(wrong).problem(400, "bad-request");
    }
    for (wrong, told) in [
        (r#"{"quotas": {"concurrency": [1]}}"#, "expected a number, or text such as"),
        (r#"{"quotas": {"concurrency": true}}"#, "expected a number, or text such as"),
        (r#"{"quotas": {"memory": "1025TiB"}}"#, "0 to 1024TiB"),
        (r#"{"quotas": {"concurrency": 99999999999999999999}}"#, "0 to 1125899906842624"),
    ] {
        let problem = patch(wrong).problem(400, "bad-request");
        assert!(problem["detail"].as_str().unwrap().contains(told), "{problem}");
    }
    node.control.request("PATCH", "/v1/tenants/none", &[], b"{}").problem(404, "not-found");
    doors[0].request("PATCH", "/v1/tenants/acme", &[], b"{}").problem(403, "forbidden");
}
