//! The audit log: every change of the node, before it is acknowledged, and that nobody changes what it says.

use serde_json::Value;

use crate::cli::{check, hob};
use crate::harness::wat::says;
use crate::harness::{Node, Setup, eventually};
use crate::identity::{owned, tenant, token};

/// All lines that the control port has, and their numbers one after the other.
fn lines(node: &Node) -> Vec<Value> {
    let list = node.control.get("/v1/audit").ok().json();
    let lines: Vec<Value> =
        list["lines"].as_array().unwrap().iter().map(|line| serde_json::from_str(line.as_str().unwrap()).unwrap()).collect();
    for (index, line) in lines.iter().enumerate() {
        assert_eq!(line["seq"], index as u64 + 1);
    }
    lines
}

#[test]
fn buckets_that_a_deploy_makes_are_named() {
    let (node, _) = owned(&[]);
    let made = || lines(&node).last().unwrap()["detail"]["buckets_made"].clone();
    let manifest = "[[bucket]]\nname = 'visits'\n[[bucket]]\nname = 'more'\n";
    node.deploy_wat("a", &says("a"), manifest);
    assert_eq!(made(), serde_json::json!(["visits", "more"]));
    node.deploy_wat("a", &says("b"), manifest);
    assert_eq!(made(), serde_json::json!([]));
    assert_eq!(node.control.request("DELETE", "/v1/buckets/more", &[], b"").status(), 204);
    node.control.request("POST", "/v1/functions/a/rollback", &[], b"").ok();
    assert_eq!(made(), serde_json::json!(["more"]));
}

#[test]
fn every_change_has_its_lines() {
    let (node, _) = owned(&[]);
    tenant(&node, "acme", &["acme.example"]);
    let deployer = node.control.with(&token(&node, "acme", "ci", &["deploy"]));
    let before = lines(&node).len();
    let wasm = crate::harness::wat::wasm(&says("a"));
    let deployed = deployer.request("PUT", "/v1/functions/a", &[], &wasm);
    assert_eq!(deployed.status(), 201);
    for (method, target, status) in [
        ("PUT", "/v1/functions/a", 422),
        ("POST", "/v1/functions/a/rollback", 404),
        ("PUT", "/v1/buckets/b", 201),
        ("PUT", "/v1/buckets/b/kv/k", 204),
        ("GET", "/v1/functions", 200),
        ("POST", "/v1/functions/a/invoke", 403),
        ("DELETE", "/v1/buckets/b", 204),
        ("DELETE", "/v1/functions/a", 204),
    ] {
        assert_eq!(deployer.request(method, target, &[], b"").status(), status, "{method} {target}");
    }
    eventually("the refusal is written", || lines(&node).iter().any(|line| line["event"] == "refused"));
    let lines = lines(&node)[before..].to_vec();
    let begun: Vec<_> = lines.iter().filter(|line| line["event"] == "begin").collect();
    let named: Vec<_> =
        begun.iter().map(|line| format!("{} {}", line["method"].as_str().unwrap(), line["path"].as_str().unwrap())).collect();
    let expected = [
        "PUT /v1/functions/a",
        "PUT /v1/functions/a",
        "POST /v1/functions/a/rollback",
        "PUT /v1/buckets/b",
        "DELETE /v1/buckets/b",
        "DELETE /v1/functions/a",
    ];
    assert_eq!(named, expected);
    for begin in &begun {
        assert_eq!(
            (&begin["tenant"], &begin["token"], &begin["address"]),
            (&"acme".into(), &"acme/ci".into(), &"127.0.0.1".into())
        );
        let end = lines.iter().find(|line| line["event"] == "end" && line["of"] == begin["seq"]).unwrap();
        assert!(end["status"].as_u64().is_some_and(|status| status >= 200), "{end}");
    }
    let end = |of: &Value| lines.iter().find(|line| line["of"] == of["seq"]).unwrap();
    assert_eq!((&end(begun[0])["detail"]["revision"], &end(begun[0])["status"]), (&1.into(), &201.into()));
    assert_eq!(end(begun[0])["detail"]["digest"], deployed.json()["digest"]);
    assert_eq!(end(begun[1])["code"], "not-deployable");
    let refused = lines.iter().find(|line| line["event"] == "refused").unwrap();
    assert_eq!((&refused["code"], &refused["path"]), (&"forbidden".into(), &"/v1/functions/a/invoke".into()));
    assert_eq!((&refused["tenant"], &refused["token"]), (&"acme".into(), &"acme/ci".into()), "whose token was not enough");
    // Only for whoever has the node.
    deployer.get("/v1/audit").problem(403, "forbidden");
    let page = node.control.get("/v1/audit?after=2&limit=1").ok().json();
    assert!(page["lines"][0].as_str().unwrap().starts_with("{") && page["lines"].as_array().unwrap().len() == 1, "{page}");
    node.control.get("/v1/audit?limit=1000").ok();
    for limit in ["0", "1001", "-1"] {
        node.control.get(&format!("/v1/audit?limit={limit}")).problem(400, "bad-request");
    }
}

#[test]
fn a_tenant_has_only_so_many_changes_written() {
    let (node, _) = owned(&[]);
    tenant(&node, "flood", &[]);
    tenant(&node, "other", &[]);
    let [flood, other] = ["flood", "other"].map(|name| node.control.with(&token(&node, name, "ci", &["deploy"])));
    assert_eq!(flood.request("PUT", "/v1/buckets/b", &[], b"").status(), 201);
    // A change that fails is written as one that does not.
    let change = || flood.request("DELETE", "/v1/buckets/none", &[], b"");
    let mut made = 1;
    let refused = loop {
        let reply = change();
        match reply.status() {
            404 => made += 1,
            _ => break reply,
        }
        assert!(made < 10_000, "there is no bound");
    };
    refused.problem(429, "quota-exceeded");
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(made >= 600, "{made}");
    assert!(refused.text().contains("600 changes") && refused.text().contains("hint"), "{}", refused.text());
    let begun = node.control.get("/v1/audit").ok().json()["last"].as_u64().unwrap();
    assert!(begun >= 1200 && node.faults("quota-exceeded") > 0, "{begun}");
    // Neither what is no change, nor another tenant, nor who runs the node, is in its way; and time brings more.
    assert_eq!(flood.request("PUT", "/v1/buckets/b/kv/k", &[], b"x").status(), 204);
    flood.get("/v1/buckets/b").ok();
    assert_eq!(other.request("PUT", "/v1/buckets/b", &[], b"").status(), 201);
    assert_eq!(node.control.request("DELETE", "/v1/buckets/none", &[("hob-tenant", "flood")], b"").status(), 404);
    eventually("there is one more", || change().status() == 404);
}

#[test]
fn a_log_that_was_changed_is_found_out() {
    let (mut node, admin) = owned(&[]);
    for name in ["a", "b", "c"] {
        tenant(&node, name, &[]);
    }
    let data_dir = node.data_dir();
    let verify = || hob(&["audit", "--verify", "--data-dir", data_dir.to_str().unwrap()]).output().unwrap();
    let (whole, _) = check(&verify(), 0);
    let listed = node.control.get("/v1/audit").ok().json();
    assert!(
        whole.contains(&format!("lines 1 to {}", listed["last"])) && whole.contains(listed["hash"].as_str().unwrap()),
        "{whole}"
    );
    let server = format!("http://{}", node.control.addr);
    let (stdout, _) =
        check(&hob(&["audit", "--after", "2"]).env("HOB_SERVER", &server).env("HOB_TOKEN", &admin).output().unwrap(), 0);
    assert_eq!(stdout.lines().count() as u64, listed["last"].as_u64().unwrap() - 2);
    node.stop();
    let file = node.files("audit").pop().unwrap();
    let good = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, good.replacen("/v1/tenants/b", "/v1/tenants/x", 1)).unwrap();
    let (_, stderr) = check(&verify(), 1);
    assert!(stderr.contains("broken at line"), "{stderr}");
    let ended = Node::try_start(Setup { dir: Some(node.dir()), ..Setup::default() }).unwrap_err();
    assert!(ended.status.code() == Some(1) && ended.stderr.contains("the audit log"), "{ended:?}");
    // What a kill leaves of a line is no damage.
    std::fs::write(&file, format!("{good}{{\"seq\":99,")).unwrap();
    node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    node.control = node.control.with(&admin);
    tenant(&node, "d", &[]);
    check(&verify(), 0);
}

#[test]
fn a_change_that_nobody_was_told_of_is_seen_to_have_begun() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let mut node = Node::start_with(Setup { dir: Some(dir.clone()), crash_at: Some("registry-committed"), ..Setup::default() });
    let mut conn = node.control.connect();
    conn.request("PUT", "/v1/functions/a", &[], &crate::harness::wat::wasm(&says("a")));
    assert!(conn.try_head().is_none());
    node.wait();
    let node = Node::start_with(Setup { dir: Some(dir), ..Setup::default() });
    node.data.get("/a").ok();
    let lines = lines(&node);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(
        (&lines[0]["event"], &lines[0]["path"], &lines[0]["token"]),
        (&"begin".into(), &"/v1/functions/a".into(), &Value::Null)
    );
}
