//! What invocations use: counted for their function, their tenant and the minute, and shown to whoever may see it.

use serde_json::Value;

use crate::cli::{at, check};
use crate::harness::wat::{SPINS, does, handler, says, waits, wasm};
use crate::harness::{Node, eventually};
use crate::identity::{owned, tenant, token};

/// What `/v1/usage` says of the only tenant in it.
#[track_caller]
fn usage(node: &Node, query: &str) -> Value {
    let report = node.control.get(&format!("/v1/usage?{query}")).ok().json();
    assert_eq!(report["tenants"].as_array().unwrap().len(), 1, "{report}");
    report["tenants"][0].clone()
}

/// Of one function.
#[track_caller]
fn of<'a>(usage: &'a Value, name: &str) -> &'a Value {
    let functions = usage["functions"].as_array().unwrap();
    functions.iter().find(|function| function["name"] == name).unwrap_or_else(|| panic!("{name} in {usage}"))
}

fn sum(minutes: &Value, key: &str) -> u64 {
    minutes.as_array().unwrap().iter().map(|minute| minute[key].as_u64().unwrap()).sum()
}

/// Each phase of a function's invocations is in its minutes as in its total, and what came after the start is within the time of its instances.
#[track_caller]
fn phases_add_up(total: &Value, minutes: &Value) {
    let phases =
        |used: &Value| serde_json::from_value::<std::collections::BTreeMap<String, f64>>(used["phases_ms"].clone()).unwrap();
    let all = phases(total);
    assert!(["queue", "instantiate", "run"].iter().all(|phase| all.contains_key(*phase)), "{total}");
    for (phase, ms) in &all {
        let sum: f64 = minutes.as_array().unwrap().iter().filter_map(|minute| phases(minute).get(phase).copied()).sum();
        assert!((sum - ms).abs() < 1e-3, "{phase}: {sum} of {ms}: {minutes}");
    }
    let within: f64 = ["instantiate", "enter", "run"].iter().map(|phase| all.get(*phase).copied().unwrap_or_default()).sum();
    // But for the rounding of their sum.
    assert!(within <= total["wall_ms"].as_f64().unwrap() + 1e-6, "{total}");
}

#[test]
fn bytes_and_invocations_add_up_by_function_tenant_and_minute() {
    let node = Node::start(&[]);
    node.deploy_wat("waits", &waits(), "");
    node.deploy_wat("says", &says("hello"), "");
    assert_eq!(usage(&node, "")["functions"], serde_json::json!([]), "nobody used anything");
    node.data.post("/waits", &[7; 1000]).good();
    node.data.post("/waits", &vec![7; 100_000]).good();
    for _ in 0..3 {
        node.data.get("/says").good();
    }
    let all = usage(&node, "minutes=60");
    for (name, invocations, bytes_in, bytes_out) in [("waits", 2, 101_000, 8), ("says", 3, 0, 15)] {
        let (total, minutes) = (&of(&all, name)["total"], &of(&all, name)["minutes"]);
        for (key, expected) in [("invocations", invocations), ("bytes_in", bytes_in), ("bytes_out", bytes_out)] {
            assert_eq!((total[key].as_u64().unwrap(), sum(minutes, key)), (expected, expected), "{key} of {name}: {all}");
        }
        assert!(total["cpu_ms"].as_f64().unwrap() > 0.0 && total["wall_ms"].as_f64().unwrap() > 0.0, "{all}");
        assert_eq!((&total["memory_bytes_max"], &total["requests"]), (&65_536.into(), &0.into()));
        phases_add_up(total, minutes);
        let inspected = &node.inspect(name)["usage"];
        assert_eq!((&inspected["bytes_in"], &inspected["invocations"]), (&total["bytes_in"], &total["invocations"]));
    }
    for (key, expected) in [("invocations", 5), ("bytes_in", 101_000), ("bytes_out", 23)] {
        assert_eq!((all["total"][key].as_u64().unwrap(), sum(&all["minutes"], key)), (expected, expected), "{all}");
        assert_eq!(all["other"][key], 0, "{all}");
    }
    // One function alone; the rest is others'.
    let one = usage(&node, "function=says&minutes=0");
    assert_eq!((one["functions"].as_array().unwrap().len(), &of(&one, "says")["minutes"]), (1, &serde_json::json!([])));
    assert_eq!(one["other"]["invocations"], 2);
    // What was removed stays its tenant's.
    assert_eq!(node.control.request("DELETE", "/v1/functions/waits", &[], b"").status(), 204);
    let after = usage(&node, "");
    assert_eq!((&after["other"]["bytes_in"], &after["total"]["bytes_in"]), (&101_000.into(), &101_000.into()));
    node.control.get("/v1/usage?function=waits").problem(404, "not-found");
    node.control.get("/v1/usage?function=A_b").problem(400, "bad-request");
    for bad in ["-1", "61"] {
        node.control.get(&format!("/v1/usage?minutes={bad}")).problem(400, "bad-request");
    }
    for good in ["0", "60"] {
        node.control.get(&format!("/v1/usage?minutes={good}")).ok();
    }
}

#[test]
fn operations_on_data_and_the_memory_of_who_was_ended_are_counted() {
    let node = Node::start(&[]);
    assert_eq!(node.control.request("PUT", "/v1/buckets/b", &[], b"").status(), 201);
    let fields = r#"(data (i32.const 0) "b")
        (func (export "hob_handle") (local $b i32)
          (local.set $b (call $bucket_open (i32.const 0) (i32.const 1)))
          (call $number (i32.add (call $kv_exists (local.get $b) (i32.const 0) (i32.const 1))
            (i32.add (call $kv_exists (local.get $b) (i32.const 0) (i32.const 1)) (call $kv_exists (local.get $b) (i32.const 0) (i32.const 1))))))"#;
    let imports = r#"(module
        (import "hob1" "bucket_open" (func $bucket_open (param i32 i32) (result i32)))
        (import "hob1" "kv_exists" (func $kv_exists (param i32 i32 i32) (result i32)))"#;
    let reads = wasm(&handler(fields).replacen("(module", imports, 1));
    let grants = "[grants]\ndata = [{ bucket = \"b\", access = \"read\" }]\n";
    assert_eq!(node.deploy("reads", &reads, grants).status(), 201);
    assert_eq!(node.data.get("/reads").good(), [0; 4]);
    assert_eq!(of(&usage(&node, ""), "reads")["total"]["data_operations"], 3);

    let grows = does(&format!("(drop (memory.grow (i32.const 4))) {SPINS}"));
    node.deploy_wat("grows", &grows, "[limits]\nwall = '100ms'\ncpu = '1h'\n");
    node.data.get("/grows").problem(504, "wall-deadline");
    eventually("its memory is known", || of(&usage(&node, ""), "grows")["total"]["memory_bytes_max"] == 5 << 16);
    assert!(of(&usage(&node, ""), "grows")["total"]["cpu_ms"].as_f64().unwrap() > 10.0);
    eventually("nothing runs", || usage(&node, "")["running"] == 0 && usage(&node, "")["memory_bytes"] == 0);
    // Where the time of one that never answered went.
    let all = usage(&node, "minutes=60");
    let (total, minutes) = (&of(&all, "grows")["total"], &of(&all, "grows")["minutes"]);
    phases_add_up(total, minutes);
    assert!(total["phases_ms"]["run"].as_f64().unwrap() > 50.0, "{total}");
    let metrics = node.control.get("/metrics").ok().text();
    assert!(metrics.contains("hob_function_cpu_seconds_total{function=\"default/grows\"}"), "{metrics}");
}

#[test]
fn a_tenant_sees_its_own_and_the_operator_all() {
    let (node, _) = owned(&[]);
    tenant(&node, "acme", &["acme.example"]);
    let acme = node.control.with(&token(&node, "acme", "look", &["read"]));
    let maker = node.control.with(&token(&node, "acme", "make", &["deploy", "invoke"]));
    assert_eq!(maker.request("PUT", "/v1/functions/mine", &[], &wasm(&says("mine"))).status(), 201);
    maker.get("/v1/functions/mine/invoke").ok();
    let mine = acme.get("/v1/usage").ok().json();
    assert_eq!((&mine["tenants"][0]["tenant"], mine["tenants"].as_array().unwrap().len()), (&"acme".into(), 1));
    assert_eq!(mine["tenants"][0]["functions"][0]["total"]["invocations"], 1);
    let told = |who: &str, scope: &str| {
        let problem = node.control.with(&token(&node, "acme", who, &[scope])).get("/v1/usage?all=true").problem(403, "forbidden");
        problem["detail"].as_str().unwrap().to_owned()
    };
    assert!(told("reader", "read").contains("has not the scope 'admin'"));
    assert!(told("admin", "admin").contains("only tokens of the tenant 'default'"));
    let problem = acme.get("/v1/usage?minutes=x").problem(400, "bad-request");
    assert!(problem["hint"].as_str().unwrap().contains("/openapi.json"), "{problem}");
    assert_eq!(usage(&node, "")["total"]["invocations"], 0, "the tenant 'default' did nothing");
    let all = node.control.get("/v1/usage?all=true").ok().json();
    let names: Vec<_> = all["tenants"].as_array().unwrap().iter().map(|tenant| tenant["tenant"].as_str().unwrap()).collect();
    assert_eq!(names, ["acme", "default"]);
    let named = node.control.get("/v1/usage?all=true&function=mine").ok().json();
    assert_eq!(named["tenants"].as_array().unwrap().len(), 1);
    node.control.get("/v1/usage?all=true&function=none").problem(404, "not-found");
    assert_eq!(node.metric("hob_function_invocations_total{function=\"acme/mine\"}"), 1);
    assert_eq!(node.metric("hob_tenant_out_bytes_total{tenant=\"acme\"}"), 4);
    assert_eq!(node.metric("hob_tenant_invocations_total{tenant=\"default\"}"), 0);
    // A place is given back after the answer has left.
    eventually("nobody runs", || node.metric("hob_tenant_running{tenant=\"acme\"}") == 0);
}

#[test]
fn top_prints_who_uses_what() {
    let node = Node::start(&[]);
    node.deploy_wat("says", &says("hello"), "");
    node.data.get("/says").good();
    eventually("nobody runs", || node.metric("hob_tenant_running{tenant=\"default\"}") == 0);
    // No terminal: once.
    let (text, _) = check(&at(&node, &["top"]), 0);
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("0 running with 0 B") && lines[2].starts_with("FUNCTION"), "{text}");
    assert!(lines[3].starts_with("says ") && lines.len() == 4 && !text.contains('\x1b'), "{text}");
    let (json, _) = check(&at(&node, &["top", "--once", "-o", "json", "--all"]), 0);
    let report: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["tenants"][0]["functions"][0]["name"], "says");
    check(&at(&node, &["top", "--interval", "1ms"]), 2);
}
