//! Tokens: who gets through to which route, and what the others are told.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::cli::{check, hob};
use crate::harness::http::{Conn, Port, Reply};
use crate::harness::wat::{does, says};
use crate::harness::{Node, files};

/// Makes a token of a tenant that exists.
#[track_caller]
pub(crate) fn token(node: &Node, tenant: &str, name: &str, scopes: &[&str]) -> String {
    let body = json!({ "name": name, "scopes": scopes }).to_string();
    let reply = node.control.request("POST", "/v1/tokens", &[("hob-tenant", tenant)], body.as_bytes());
    assert_eq!(reply.status(), 201, "{}", reply.text());
    reply.json()["token"].as_str().unwrap().to_owned()
}

/// A node whose control port knows an admin's token, which the test then uses.
#[track_caller]
pub(crate) fn owned(settings: &[&str]) -> (Node, String) {
    let mut node = Node::start(settings);
    let admin = token(&node, "default", "admin", &["admin"]);
    node.control = node.control.with(&admin);
    (node, admin)
}

/// Makes a tenant.
#[track_caller]
pub(crate) fn tenant(node: &Node, name: &str, hosts: &[&str]) {
    let body = json!({ "hosts": hosts }).to_string();
    let reply = node.control.request("PUT", &format!("/v1/tenants/{name}"), &[], body.as_bytes());
    assert_eq!(reply.status(), 201, "{}", reply.text());
}

#[test]
fn the_first_token_ends_that_anybody_may_do_anything() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    for wrong in [json!({ "scopes": ["read"] }), json!({ "scopes": ["admin"], "expires": "1h" })] {
        node.control.post("/v1/tokens", wrong.to_string().as_bytes()).problem(409, "conflict");
    }
    for wrong in [
        json!({ "name": "A" }),
        json!({ "scopes": ["root"] }),
        json!({ "expires": "x" }),
        json!({ "expires": "0s" }),
        json!({ "nmae": "a" }),
        json!([]),
    ] {
        node.control.post("/v1/tokens", wrong.to_string().as_bytes()).problem(400, "bad-request");
    }
    let made = node.control.post("/v1/tokens", b"");
    assert_eq!((made.status(), made.header("cache-control")), (201, Some("no-store")));
    let made = made.json();
    assert_eq!((&made["name"], &made["tenant"], &made["scopes"]), (&json!("admin"), &json!("default"), &json!(["admin"])));
    let text = made["token"].as_str().unwrap().to_owned();
    let refused = node.control.get("/v1/functions");
    refused.problem(401, "unauthenticated");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"hob\""));
    // What needs no token still does not, and the data port neither.
    for open in ["/livez", "/readyz", "/openapi.json", "/docs/errors"] {
        node.control.get(open).ok();
    }
    node.data.get("/a").ok();
    let open = node.control.clone();
    node.control = open.with(&text);
    assert_eq!(node.control.get("/v1/tokens").ok().json()["items"].as_array().unwrap().len(), 1);
    node.control.request("DELETE", "/v1/tokens/admin", &[], b"").problem(409, "conflict");
    let second = token(&node, "default", "second", &["admin"]);
    assert_eq!(node.control.request("DELETE", "/v1/tokens/admin", &[], b"").status(), 204);
    node.control.get("/v1/functions").problem(401, "unauthenticated");
    node.restart();
    open_port(&node).get("/v1/functions").problem(401, "unauthenticated");
    node.control = node.control.with(&second);
    let list = node.control.get("/v1/tokens").ok();
    assert!(list.json()["items"][0]["used_ms"].as_u64().is_some_and(|used| used > 1_700_000_000_000), "{}", list.text());
    node.stop();
    for (name, bytes) in kept(&node) {
        for token in [&text, &second] {
            let digits = &token.as_bytes()[4..40];
            assert!(!bytes.windows(digits.len()).any(|window| window == digits), "a token is in {name}");
        }
    }
}

/// The control port without any token.
fn open_port(node: &Node) -> Port {
    Port { bearer: None, ..node.control.clone() }
}

/// All files of a node that has stopped.
fn kept(node: &Node) -> Vec<(String, Vec<u8>)> {
    let dir = node.data_dir();
    let mut found: Vec<_> =
        ["registry.redb"].iter().map(|name| ((*name).to_owned(), std::fs::read(dir.join(name)).unwrap())).collect();
    for folder in ["audit", "data"] {
        for file in files(&dir.join(folder)) {
            let bytes = std::fs::read(&file).unwrap();
            found.push((file.display().to_string(), bytes));
        }
    }
    assert!(found.len() > 2, "{found:?}");
    found
}

#[test]
fn unknown_tokens_are_bounded_by_address() {
    let (node, admin) = owned(&[]);
    let ask = |from: [u8; 4], token: &str| -> Reply {
        let mut conn = node.control.connect_from(Ipv4Addr::from(from));
        conn.request("GET", "/v1/functions", &[("authorization", &format!("Bearer {token}"))], b"");
        conn.reply()
    };
    let last = if admin.ends_with('0') { '1' } else { '0' };
    let wrong = format!("{}{last}", &admin[..admin.len() - 1]);
    let first = ask([127, 0, 0, 2], &wrong);
    for _ in 1..10 {
        let reply = ask([127, 0, 0, 2], "hob_x");
        reply.problem(401, "unauthenticated");
        assert_eq!(reply.body, first.body, "the same answer, however near it is");
    }
    let refused = ask([127, 0, 0, 2], &wrong);
    refused.problem(429, "too-many-failures");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    ask([127, 0, 0, 3], &wrong).problem(401, "unauthenticated");
    // Somebody who shares an address with whoever guesses is not locked out.
    ask([127, 0, 0, 2], &admin).ok();
    let mut conn = node.control.connect_from(Ipv4Addr::new(127, 0, 0, 2));
    conn.request("GET", "/v1/functions", &[], b"");
    conn.reply().problem(401, "unauthenticated");
}

#[test]
fn an_unknown_tenant_and_a_bad_token_have_one_answer() {
    let (node, _) = owned(&[]);
    tenant(&node, "acme", &[]);
    let deployer = token(&node, "acme", "d", &["deploy"]);
    let ask = |token: &str, tenant: &str| {
        let headers = [("hob-tenant", tenant), ("authorization", &format!("Bearer {token}"))];
        open_port(&node).request("GET", "/v1/functions", &headers, b"")
    };
    assert_eq!(ask("hob_x", "acme").body, ask("hob_x", "nobody").body);
    ask("hob_x", "acme").problem(401, "unauthenticated");
    // And who is of one tenant learns of no other.
    for other in ["default", "nobody", "..", "A"] {
        let reply = ask(&deployer, other);
        reply.problem(403, "forbidden");
        assert_eq!(reply.body, ask(&deployer, "other").body);
    }
    ask(&deployer, "acme").ok();
    let operator = |tenant: &str| node.control.request("GET", "/v1/functions", &[("hob-tenant", tenant)], b"");
    operator("acme").ok();
    operator("nobody").problem(404, "not-found");
    operator("A").problem(400, "bad-request");
    let plain = token(&node, "default", "plain", &["deploy"]);
    ask(&plain, "acme").problem(403, "forbidden");
}

/// Begins to follow a log and to watch a bucket, by a token; none before there is one.
fn feeds(port: &Port) -> [Conn; 2] {
    ["/v1/functions/a/logs?follow=true", "/v1/buckets/b/kv?watch=true"].map(|target| {
        let mut conn = port.connect();
        let headers: Vec<_> = port.bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        conn.request("GET", target, &headers, b"");
        assert_eq!(conn.head().status, 200, "{target}");
        conn
    })
}

/// Whether the feeds have ended, each as a body that is whole.
fn end(feeds: [Conn; 2]) {
    for mut conn in feeds {
        while conn.line().expect("it ends as a body, not as a connection") != "0" {}
    }
}

#[test]
fn a_feed_ends_with_its_token() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &does("(call $log (i32.const 2) (i32.const 0) (i32.const 4))"), "");
    assert_eq!(node.control.request("PUT", "/v1/buckets/b", &[], b"").status(), 201);
    let set = |port: &Port| assert_eq!(port.request("PUT", "/v1/buckets/b/kv/k", &[], b"x").status(), 204);
    let goes_on = |[log, watch]: &mut [Conn; 2]| {
        node.data.get("/a");
        for conn in [log, watch] {
            while !conn.line().expect("it goes on").starts_with("data:") {}
        }
    };
    // Whoever came before there was a token.
    let mut open = feeds(&node.control);
    set(&node.control);
    goes_on(&mut open);
    let admin = node.control.with(&token(&node, "default", "admin", &["admin"]));
    end(open);
    node.control = admin.clone();
    let mut kept = feeds(&admin.with(&token(&node, "default", "kept", &["read"])));
    let removed = feeds(&admin.with(&token(&node, "default", "removed", &["read"])));
    assert_eq!(admin.request("DELETE", "/v1/tokens/removed", &[], b"").status(), 204);
    end(removed);
    let body = json!({ "name": "short", "scopes": ["read"], "expires": "3s" }).to_string();
    let made = admin.post("/v1/tokens", body.as_bytes());
    assert_eq!(made.status(), 201, "{}", made.text());
    end(feeds(&admin.with(made.json()["token"].as_str().unwrap())));
    // Who has another token is in nobody's way.
    set(&admin);
    goes_on(&mut kept);
}

/// One row of the matrix: who asks, and which scopes they have.
struct Who {
    name: &'static str,
    token: Option<String>,
    scopes: &'static [&'static str],
    is_operator: bool,
}

/// Made from the description, so that no route can be missed.
#[test]
fn every_route_asks_for_what_it_says() {
    let (node, admin) = owned(&[]);
    tenant(&node, "acme", &[]);
    let who = |name, token, scopes, is_operator| Who { name, token, scopes, is_operator };
    let of = |scope: &str| Some(token(&node, "default", scope, &[scope]));
    let everyone = [
        who("none", None, &[], false),
        who("bad", Some(format!("hob_{}", "0".repeat(72))), &[], false),
        who("other", Some(token(&node, "acme", "all", &["admin"])), &["read", "invoke", "deploy", "admin"], false),
        who("read", of("read"), &["read"], true),
        who("invoke", of("invoke"), &["invoke"], true),
        who("deploy", of("deploy"), &["read", "deploy"], true),
        who("admin", Some(admin), &["read", "invoke", "deploy", "admin"], true),
    ];
    let description = node.control.get("/openapi.json").ok().json();
    let (mut cells, mut address) = (0, 1_u32);
    for (path, operations) in description["paths"].as_object().unwrap() {
        let target = path.replace("{name}", "zz").replace("{key}", "x").replace("{path}", "x");
        for (method, operation) in operations.as_object().unwrap() {
            let security = operation["security"][0].as_object().unwrap_or_else(|| panic!("{method} {path} says nothing"));
            let (scheme, scope) = match security.iter().next() {
                None => ("open", ""),
                Some((scheme, scopes)) => (scheme.as_str(), scopes[0].as_str().unwrap()),
            };
            for who in &everyone {
                // Each from its own address, so that no bound is in the way.
                address += 1;
                let mut conn = node.control.connect_from(Ipv4Addr::from(0x7f00_0000 + address));
                let bearer = who.token.as_ref().map(|token| format!("Bearer {token}"));
                let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
                conn.request(&method.to_uppercase(), &target, &headers, b"");
                let reply = conn.reply_to(&method.to_uppercase());
                let cell = format!("{} {method} {path} needs {scheme} {scope}: {} {}", who.name, reply.status(), reply.text());
                let expected = match scheme {
                    "open" => None,
                    _ if who.scopes.is_empty() => Some(401),
                    _ if !who.scopes.contains(&scope) => Some(403),
                    "operator" if !who.is_operator => Some(403),
                    _ => None,
                };
                match expected {
                    Some(status) => assert_eq!(reply.status(), status, "{cell}"),
                    None => assert!(!matches!(reply.status(), 401 | 403 | 429), "{cell}"),
                }
                if reply.status() == 403 && method != "head" && !who.scopes.contains(&scope) {
                    assert!(reply.text().contains(&format!("'{scope}'")), "{cell}");
                }
                cells += 1;
            }
        }
    }
    assert!(cells > 300, "{cells}");
    // What is not described is not there, whoever asks.
    for (method, target, status) in
        [("PUT", "/v1/functions", 405), ("PATCH", "/v1/functions/a", 405), ("GET", "/v1/nothing", 404)]
    {
        assert_eq!(node.control.request(method, target, &[], b"").status(), status, "{method} {target}");
        assert_eq!(open_port(&node).request(method, target, &[], b"").status(), status, "{method} {target}");
    }
    let custom = node.control.request("PURGE", "/v1/functions/zz/invoke", &[], b"");
    custom.problem(404, "not-found");
    open_port(&node).request("PURGE", "/v1/functions/zz/invoke", &[], b"").problem(401, "unauthenticated");
}

#[test]
fn a_function_may_ask_for_a_token() {
    let (node, admin) = owned(&[]);
    tenant(&node, "acme", &["acme.example"]);
    node.deploy_wat("a", &says("in"), "auth = 'token'\nroute = '/shop/*'\n");
    assert_eq!(node.inspect("a")["auth"], "token");
    let (invoke, read) = (token(&node, "default", "i", &["invoke"]), token(&node, "default", "r", &["read"]));
    let other = token(&node, "acme", "i", &["invoke"]);
    for target in ["/a", "/a/x", "/shop/1"] {
        let refused = node.data.get(target);
        refused.problem(401, "unauthenticated");
        assert_eq!(refused.header("www-authenticate"), Some("Bearer realm=\"hob\""));
        for unknown in ["hob_x", &other] {
            let reply = node.data.with(unknown).get(target);
            assert_eq!((reply.status(), reply.json()["detail"].clone()), (401, refused.json()["detail"].clone()));
        }
        node.data.with(&read).get(target).problem(403, "forbidden");
        for good in [&invoke, &admin] {
            assert_eq!(node.data.with(good).get(target).ok().text(), "in");
        }
    }
    // The control port has asked already.
    node.control.with(&invoke).get("/v1/functions/a/invoke/").ok();
    node.control.with(&read).get("/v1/functions/a/invoke/").problem(403, "forbidden");
    node.deploy("b", b"", "auth = 'none'").problem(400, "bad-manifest");
}

#[test]
fn commands_find_their_token() {
    let node = Node::start(&[]);
    let home = tempfile::tempdir().unwrap();
    let server = format!("http://{}", node.control.addr);
    let at = |args: &[&str], token: Option<&str>| {
        let mut command = hob(args);
        command.env("HOB_SERVER", &server).env("XDG_CONFIG_HOME", home.path());
        if let Some(token) = token {
            command.env("HOB_TOKEN", token);
        }
        command.output().unwrap()
    };
    let (stdout, stderr) = check(&at(&["token", "new", "--save"], None), 0);
    let admin = stdout.trim().to_owned();
    assert!(admin.starts_with("hob_") && admin.len() == 76 && stderr.contains("tokens for http://"), "{stdout}{stderr}");
    let file = home.path().join("hob/tokens");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{server} {admin}\n"));
    check(&at(&["ls"], None), 0);
    let (read, _) = check(&at(&["token", "new", "reader", "--scope", "read", "--expires", "30days"], None), 0);
    check(&at(&["ls"], Some(read.trim())), 0);
    let (_, stderr) = check(&at(&["rm", "a"], Some(read.trim())), 4);
    assert!(stderr.contains("scope 'deploy'"), "{stderr}");
    let (_, stderr) = check(&at(&["ls"], Some("hob_x")), 4);
    assert!(stderr.contains("HOB_TOKEN holds no token"), "{stderr}");
    let unknown = format!("{}{}", "hob_", "0".repeat(64));
    let sum = hob::id::Digest::of(unknown.as_bytes()).hex()[..8].to_owned();
    let (_, stderr) = check(&at(&["ls"], Some(&format!("{unknown}{sum}"))), 4);
    assert!(stderr.contains("no token that this node knows") && stderr.contains("--token-file"), "{stderr}");
    let given = home.path().join("given");
    std::fs::write(&given, format!("{admin}\n")).unwrap();
    let path = given.to_str().unwrap();
    let (_, stderr) = check(&at(&["--token-file", path, "ls"], None), 4);
    assert!(stderr.contains("others can read") && stderr.contains("chmod 600"), "{stderr}");
    std::fs::set_permissions(&given, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    check(&at(&["--token-file", path, "ls"], Some("hob_x")), 0);
    let (_, stderr) = check(&at(&["--server", "http://192.0.2.1:3900", "--token-file", path, "ls"], None), 4);
    assert!(stderr.contains("not sent"), "{stderr}");
    let (stdout, _) = check(&at(&["token", "ls", "-o", "json"], None), 0);
    let names: Vec<_> =
        serde_json::from_str::<Value>(&stdout).unwrap().as_array().unwrap().iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["admin", "reader"]);
    assert!(!stdout.contains(&admin[4..]));
    check(&at(&["tenant", "new", "acme", "--host", "acme.example"], None), 0);
    check(&at(&["--tenant", "acme", "token", "new", "ci", "--scope", "deploy,invoke"], None), 0);
    let (stdout, _) = check(&at(&["tenant", "ls"], None), 0);
    assert!(stdout.contains("acme.example"), "{stdout}");
    check(&at(&["--tenant", "nobody", "ls"], None), 3);
    check(&at(&["token", "rm", "reader"], None), 0);
    check(&at(&["ls"], Some(read.trim())), 4);
    check(&at(&["tenant", "rm", "acme"], None), 0);
    // A node that does not run, whose tokens are all lost.
    let mut node = node;
    node.control = node.control.with(&admin);
    node.stop();
    let dir = node.data_dir();
    for expires in ["0s", "100years"] {
        check(&at(&["token", "new", "again", "--data-dir", dir.to_str().unwrap(), "--expires", expires], None), 2);
    }
    let (stdout, _) = check(&at(&["token", "new", "again", "--data-dir", dir.to_str().unwrap()], None), 0);
    let node = Node::start_with(crate::harness::Setup { dir: Some(node.dir()), ..Default::default() });
    node.control.with(stdout.trim()).get("/v1/tokens").ok();
}
