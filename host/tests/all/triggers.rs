//! Triggers: what changes in a bucket reaches the function that wants it, whoever dies in between.
//!
//! Changes are made through the control port; or by the node's own data part in this process, while no daemon runs in the folder.

use std::sync::Arc;

use hob::artifacts::DataDir;
use hob::bucket::Durability;
use hob::crash::EVENT_POINTS;
use hob::data::objects::{ObjectLimits, PutOptions};
use hob::data::{Bucket, Clock, Data, DataConfig};
use hob::id::TenantId;
use hob::manifest::Manifest;
use serde_json::Value;
use tempfile::TempDir;

use crate::cli::{at, check};
use crate::harness::wat::{SPINS, does, handler, says, wasm};
use crate::harness::{Node, Setup, data_dir, eventually, multipart};
use crate::identity::{owned, tenant, token};

/// Logs the request as it read it, and answers with a status.
fn logs(status: u16) -> String {
    handler(&format!(
        "(func (export \"hob_handle\")
           (call $log (i32.const 2) (i32.const 0) (call $request_read (i32.const 0) (i32.const 30000)))
           (call $answer (i32.const {status}) (i32.const 0) (i32.const 0)))"
    ))
}

/// A manifest with a trigger on the bucket `in`, which it declares.
fn manifest(trigger: &str) -> String {
    format!(
        "[grants]\ndata = [{{ bucket = 'in' }}]\n[[bucket]]\nname = 'in'\n[[bucket]]\nname = 'dead'\n[[trigger]]\nbucket = 'in'\n{trigger}\n"
    )
}

const PUTS: &str = "on = 'object-put'";

/// What `function` was told: the JSON of each request, oldest first.
fn told(node: &Node, function: &str) -> Vec<Value> {
    node.logs(function).iter().filter_map(|(source, _, text)| body(source, text)).collect()
}

fn body(source: &str, text: &str) -> Option<Value> {
    (source == "log").then_some(())?;
    serde_json::from_str(text.get(text.find('{')?..)?).ok()
}

fn config() -> DataConfig {
    let objects = ObjectLimits { object_bytes_max: 1 << 20, bytes_max: 1 << 30 };
    DataConfig {
        durable_objects: objects,
        volatile_objects: objects,
        page_cache_bytes: 1 << 20,
        kv_cache_bytes: 0,
        volatile_bytes_max: 1 << 20,
        events_max: 1000,
    }
}

/// The data in a folder in which no daemon runs. `wanting`: functions with their manifests, as the daemon knows them.
fn offline(dir: &Arc<TempDir>, wanting: &[(&str, &str)], change: impl FnOnce(&Data)) {
    let folder = DataDir::open(&data_dir(dir)).unwrap();
    let data = Data::open(&folder.data_path(), config(), Clock::system()).unwrap();
    let triggers = |manifest: &str| Manifest::parse(manifest).unwrap().trigger;
    let wanting = wanting.iter().map(|(name, manifest)| (TenantId::default(), name.parse().unwrap(), triggers(manifest)));
    data.outbox().begin(&wanting.collect::<Vec<_>>()).unwrap();
    change(&data);
}

fn bucket(data: &Data, name: &str) -> Bucket {
    data.bucket(&TenantId::default(), &name.parse().unwrap()).unwrap().unwrap()
}

/// Puts an object through the control port.
#[track_caller]
fn upload(node: &Node, to: &str, key: &str) {
    let target = format!("/v1/buckets/{to}/objects/{key}");
    let reply = node.control.request("PUT", &target, &[("content-type", "text/plain")], b"abc");
    assert!(matches!(reply.status(), 200 | 201), "{}", reply.text());
}

fn put(data: &Data, to: &str, key: &str) {
    let options = PutOptions { content_type: "text/plain".into(), ..PutOptions::default() };
    let mut upload = data.objects(Durability::Durable).put(&bucket(data, to), key.as_bytes(), options).unwrap();
    upload.write(b"abc").unwrap();
    upload.finish().wait().unwrap();
}

#[test]
fn a_trigger_that_cannot_work_refuses_the_deploy() {
    let node = Node::start(&[]);
    let ok = wasm(&says("a"));
    let grant = "[grants]\ndata = [{ bucket = 'in' }]\n";
    let deploy = |manifest: &str| node.deploy("f", &ok, manifest);
    let trigger = "[[trigger]]\non = 'object-put'\nbucket = 'in'\n";
    let missing = deploy(trigger);
    missing.problem(400, "bad-manifest");
    assert!(missing.text().contains("access = \\\"read\\\""), "{}", missing.text());
    let nowhere = deploy(&format!("{grant}{trigger}"));
    nowhere.problem(400, "bad-manifest");
    assert!(nowhere.text().contains("there is no bucket 'in'"), "{}", nowhere.text());
    let volatile = "[[bucket]]\nname = 'in'\ndurability = 'volatile'\nkeys_max = 10\n";
    deploy(&format!("{grant}{volatile}{trigger}")).problem(400, "bad-manifest");
    assert_eq!(deploy(&format!("{grant}{volatile}")).status(), 201);
    let made = deploy(&format!("{grant}{trigger}"));
    made.problem(400, "bad-manifest");
    assert!(made.text().contains("'in' is volatile"), "{}", made.text());
}

#[test]
fn a_bucket_triggers_so_many_functions_and_they_show_it() {
    let node = Node::start(&[]);
    let ok = wasm(&says("a"));
    let manifest = manifest("on = 'object-put'\nprefix = 'a/'\nattempts = 3\ndead_letter = 'dead'");
    for n in 0..hob::registry::TRIGGERED_MAX {
        let reply = node.deploy(&format!("f{n}"), &ok, &manifest);
        assert_eq!(reply.status(), 201, "{}", reply.text());
    }
    assert_eq!(node.deploy("f0", &ok, &manifest).status(), 200, "it is one of them");
    let more = node.deploy("g", &ok, &manifest);
    more.problem(409, "conflict");
    assert!(more.text().contains("triggers 16 functions already"), "{}", more.text());
    assert_eq!(node.control.request("DELETE", "/v1/functions/f3", &[], b"").status(), 204);
    assert_eq!(node.deploy("g", &ok, &manifest).status(), 201);
    let triggers = &node.inspect("g")["triggers"];
    let expected =
        serde_json::json!([{ "on": "object-put", "bucket": "in", "prefix": "a/", "attempts": 3, "dead_letter": "dead" }]);
    assert_eq!(*triggers, expected);
}

#[test]
fn changes_reach_functions_while_the_node_runs() {
    let node = Node::start(&[]);
    node.deploy_wat("puts", &logs(200), &manifest("on = 'object-put'\nprefix = 'a/'"));
    node.deploy_wat("keys", &logs(204), &manifest("on = 'key-change'"));
    assert_eq!(node.control.request("PUT", "/v1/buckets/other", &[], b"{}").status(), 201);
    for (to, key) in [("in", "a/1"), ("in", "b/1"), ("other", "a/1"), ("in", "a/2%20%C3%BC"), ("in", "a/1")] {
        upload(&node, to, key);
    }
    let change = |method: &str, target: &str| {
        let body = if method == "PUT" { &b"v"[..] } else { b"" };
        node.control.request(method, &format!("/v1/buckets/in/kv/{target}"), &[], body).status()
    };
    assert_eq!((change("PUT", "k"), change("POST", "n?increment=1"), change("DELETE", "k")), (204, 200, 204));
    assert_eq!(change("DELETE", "k"), 404, "which is no change");
    let delivered = "hob_deliveries_total{kind=\"delivered\"}";
    eventually("all are told", || node.metric("hob_events") == 0 && node.metric(delivered) == 6);
    let (puts, keys) = (told(&node, "puts"), told(&node, "keys"));
    let of = |told: &[Value], key: &str| told.iter().filter(|event| event["key"] == key).cloned().collect::<Vec<_>>();
    assert_eq!((puts.len(), of(&puts, "a/1").len(), of(&puts, "a/2 \u{fc}").len()), (3, 2, 1), "{puts:?}");
    assert_eq!(of(&puts, "a/2 \u{fc}")[0]["key_encoded"], "a/2%20%C3%BC");
    let versions: Vec<_> = of(&puts, "a/1").iter().map(|event| event["version"].as_u64().unwrap()).collect();
    assert!(versions[0] < versions[1], "in order: {versions:?}");
    let first = &of(&puts, "a/1")[0];
    for (field, value) in [("trigger", "object-put"), ("change", "put"), ("bucket", "in"), ("content_type", "text/plain")] {
        assert_eq!(first[field], value, "{first}");
    }
    assert_eq!((&first["bytes"], &first["attempt"]), (&3.into(), &1.into()));
    assert_eq!(first["etag"], hob::id::Digest::of(b"abc").to_string());
    assert_eq!(of(&keys, "k").iter().map(|event| event["change"].clone()).collect::<Vec<_>>(), ["set", "deleted"]);
    assert_eq!((keys.len(), of(&keys, "n").len()), (3, 1));
    // A client can pretend nothing.
    node.data.request("POST", "/puts", &[("hob-trigger", "object-put"), ("hob-key", "forged")], b"x").ok();
    let logs = node.logs("puts");
    assert!(
        logs.iter().any(|(.., text)| text.contains("/puts") || text.contains("POST"))
            && !logs.iter().any(|(.., text)| text.contains("forged"))
    );
}

#[test]
fn an_acknowledged_change_is_told_after_a_kill_and_one_without_room_is_refused() {
    let mut node = Node::start(&["data.events_max=1"]);
    let told_and_spins = handler(&format!(
        "(func (export \"hob_handle\")
           (call $log (i32.const 2) (i32.const 0) (call $request_read (i32.const 0) (i32.const 30000)))
           {SPINS})"
    ));
    node.deploy_wat("f", &told_and_spins, &format!("{}[limits]\ncpu = '1h'\nwall = '1h'\n", manifest(PUTS)));
    upload(&node, "in", "k");
    eventually("it is told", || told(&node, "f").len() == 1);
    node.control.request("PUT", "/v1/buckets/in/objects/l", &[], b"abc").problem(429, "quota-exceeded");
    node.control.get("/v1/buckets/in/objects/l").problem(404, "not-found");
    assert_eq!(node.control.request("PUT", "/v1/buckets/in/kv/l", &[], b"v").status(), 204, "it makes no event");
    node.kill();
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    eventually("it is told again", || told(&node, "f").len() == 1);
    let event = &told(&node, "f")[0];
    assert_eq!((&event["key"], &event["attempt"], node.metric("hob_events")), (&"k".into(), &1.into(), 1));
}

#[test]
fn a_kill_between_telling_and_settling_tells_it_again() {
    for (point, is_told_again) in EVENT_POINTS.into_iter().zip([true, false]) {
        let mut node = Node::start(&[]);
        let manifest = manifest(PUTS);
        node.deploy_wat("f", &logs(200), &manifest);
        node.kill();
        let dir = node.dir();
        offline(&dir, &[("f", &manifest)], |data| put(data, "in", "k"));
        // It may die before it says that it is ready.
        let status = match Node::try_start(Setup { dir: Some(dir.clone()), crash_at: Some(point), ..Setup::default() }) {
            Ok(mut dying) => dying.wait(),
            Err(ended) => ended.status,
        };
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}");
        let node = Node::start_with(Setup { dir: Some(dir.clone()), ..Setup::default() });
        eventually("nothing waits", || node.metric("hob_events") == 0);
        let told = told(&node, "f");
        assert_eq!(told.len(), usize::from(is_told_again), "{point}: {told:?}");
        if is_told_again {
            assert_eq!((&told[0]["key"], &told[0]["attempt"]), (&"k".into(), &1.into()));
        }
    }
}

#[test]
fn what_fails_is_given_up_and_says_why() {
    let mut node = Node::start(&[]);
    let manifest = manifest("on = 'object-put'\nattempts = 2\ndead_letter = 'dead'");
    node.deploy_wat("fails", &logs(500), &manifest);
    node.deploy_wat("traps", &does("unreachable"), &manifest);
    node.stop();
    let dir = node.dir();
    let wanting = [("fails", manifest.as_str()), ("traps", &manifest)];
    offline(&dir, &wanting, |data| put(data, "in", "k"));
    let mut node = Node::start_with(Setup { dir: Some(dir.clone()), ..Setup::default() });
    eventually("both are given up", || node.metric("hob_deliveries_total{kind=\"buried\"}") == 2);
    assert_eq!(node.metric("hob_deliveries_total{kind=\"failed\"}"), 4);
    assert_eq!((node.metric("hob_events"), node.faults("guest-trap")), (0, 2));
    let attempts: Vec<_> = told(&node, "fails").iter().map(|event| event["attempt"].as_u64().unwrap()).collect();
    assert_eq!(attempts, [1, 2]);
    let host: Vec<_> = node.logs("traps").into_iter().filter(|(source, ..)| source == "host").map(|(.., text)| text).collect();
    assert!(host.iter().any(|text| text.contains("attempt 1 of 2: guest-trap; again in 250ms")), "{host:?}");
    assert!(host.iter().any(|text| text.contains("given up, see 'traps/")), "{host:?}");
    node.stop();
    offline(&dir, &wanting, |data| {
        let page = data.kv(&bucket(data, "dead")).unwrap().scan(b"", None, 10).unwrap();
        let letters: Vec<Value> =
            page.entries.iter().map(|(_, entry)| serde_json::from_slice(&entry.as_ref().unwrap().value).unwrap()).collect();
        let reasons: Vec<_> = letters.iter().map(|letter| (letter["function"].as_str().unwrap(), &letter["failure"])).collect();
        let (fails, traps) =
            (serde_json::json!({ "status": 500, "code": null }), serde_json::json!({ "status": null, "code": "guest-trap" }));
        assert_eq!(reasons, [("fails", &fails), ("traps", &traps)]);
    });
}

#[test]
fn a_quota_that_is_used_up_for_a_while_is_no_attempt() {
    let node = Node::start(&[]);
    check(&at(&node, &["tenant", "set", "default", "--invocations-per-second", "4"]), 0);
    node.deploy_wat("told", &logs(200), &manifest("on = 'object-put'\nattempts = 1"));
    for number in 0..12 {
        upload(&node, "in", &number.to_string());
    }
    eventually("all are told", || node.metric("hob_deliveries_total{kind=\"delivered\"}") == 12);
    assert!(node.metric("hob_deliveries_total{kind=\"postponed\"}") > 0);
    assert_eq!(node.metric("hob_deliveries_total{kind=\"dropped\"}"), 0);
}

#[test]
fn what_waits_goes_to_the_new_revision_and_goes_with_the_function() {
    let node = Node::start(&[]);
    let manifest = manifest("on = 'object-put'\nattempts = 100");
    for name in ["f", "g"] {
        node.deploy_wat(name, &logs(503), &manifest);
    }
    upload(&node, "in", "k");
    eventually("both failed", || ["f", "g"].iter().all(|name| !told(&node, name).is_empty()));
    assert_eq!(node.metric("hob_events"), 2);
    assert_eq!(node.control.request("DELETE", "/v1/functions/g", &[], b"").status(), 204);
    eventually("its event is gone", || node.metric("hob_events") == 1);
    assert!(node.metric("hob_deliveries_total{kind=\"dropped\"}") == 1);
    node.deploy_wat("f", &logs(200), &manifest);
    eventually("the new one took it", || node.metric("hob_events") == 0);
    eventually("it is counted", || node.metric("hob_deliveries_total{kind=\"delivered\"}") == 1);
    // Nothing of an older function of its name.
    node.deploy_wat("g", &logs(200), &manifest);
    assert!(told(&node, "g").is_empty());
}

#[test]
fn deliveries_do_not_hold_up_requests() {
    let node = Node::start(&[]);
    let spinning = format!("{}[limits]\ncpu = '1h'\nwall = '1h'\n", manifest(PUTS));
    node.deploy_wat("spins", &does(SPINS), &spinning);
    node.deploy_wat("other", &says("here"), "");
    (0..20).for_each(|n| upload(&node, "in", &format!("k{n}")));
    eventually("as many run as may", || node.occupancy("spins").0 == 8);
    for _ in 0..20 {
        assert_eq!(node.data.get("/other").ok().text(), "here");
    }
    assert_eq!(node.occupancy("spins"), (8, 0));
    assert_eq!(node.metric("hob_events"), 20);
}

#[test]
fn functions_of_one_tenant_that_do_not_end_leave_deliveries_to_others() {
    let (node, _) = owned(&[]);
    tenant(&node, "acme", &[]);
    let acme = node.control.with(&token(&node, "acme", "all", &["admin"]));
    let spinning = format!("{}[limits]\ncpu = '1h'\nwall = '1h'\n", manifest(PUTS));
    // With 8 events of the bucket for each of them they would take all 64 places.
    let names: Vec<String> = (0..8).map(|n| format!("spins{n}")).collect();
    names.iter().for_each(|name| drop(node.deploy_wat(name, &does(SPINS), &spinning)));
    (0..8).for_each(|n| upload(&node, "in", &format!("k{n}")));
    let running = || names.iter().map(|name| node.occupancy(name).0).sum::<u64>();
    eventually("as many run as may of a tenant", || running() == 48);
    let (kind, body) = multipart(&[("manifest", manifest(PUTS).as_bytes()), ("wasm", &wasm(&says("told")))]);
    let deployed = acme.request("PUT", "/v1/functions/told", &[("content-type", &kind)], &body);
    assert_eq!(deployed.status(), 201, "{}", deployed.text());
    assert_eq!(acme.request("PUT", "/v1/buckets/in/objects/k", &[("content-type", "text/plain")], b"abc").status(), 201);
    eventually("the other tenant's event is delivered", || node.metric("hob_deliveries_total{kind=\"delivered\"}") == 1);
    assert_eq!(running(), 48);
}
