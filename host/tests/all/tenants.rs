//! Tenants: whose functions, buckets and hosts are whose, and that nobody learns of anybody else's.

use serde_json::json;

use crate::harness::http::{Port, Reply, head};
use crate::harness::wat::{mirror, says, wasm};
use crate::harness::{Dice, Node};
use crate::identity::{owned, tenant, token};

/// Two tenants that named everything alike, and their own doors.
fn twins() -> (Node, [(String, Port); 2]) {
    let (node, _) = owned(&["net.base_domain=hob.example"]);
    let doors = ["acme", "beta"].map(|name| {
        tenant(&node, name, &[&format!("{name}.example")]);
        (name.to_owned(), node.control.with(&token(&node, name, "all", &["admin"])))
    });
    for (name, door) in &doors {
        let reply = door.request("PUT", "/v1/functions/same", &[], &wasm(&says(name)));
        assert_eq!(reply.status(), 201, "{}", reply.text());
        assert_eq!(door.request("PUT", "/v1/buckets/same", &[], b"").status(), 201);
        for (kind, status) in [("kv", 204), ("objects", 201)] {
            let reply = door.request("PUT", &format!("/v1/buckets/same/{kind}/key"), &[], name.as_bytes());
            assert_eq!(reply.status(), status, "{}", reply.text());
        }
    }
    (node, doors)
}

#[test]
fn what_was_under_way_for_a_tenant_that_is_gone_is_not_made() {
    let node = Node::start(&[]);
    let wasm = crate::harness::wat::wasm(&says("late"));
    for (target, body) in [("/v1/buckets/late", &b"{}"[..]), ("/v1/functions/late", &wasm)] {
        tenant(&node, "gone", &[]);
        let mut conn = node.control.connect();
        let len = body.len().to_string();
        conn.send(head("PUT", target, &[("hob-tenant", "gone"), ("content-length", &len), ("expect", "100-continue")]));
        // Whoever it is has been let in by then.
        let lines = [conn.line(), conn.line()].map(Option::unwrap_or_default);
        assert!(lines[0].contains(" 100 ") && lines[1].is_empty(), "{lines:?}");
        conn.send(&body[..1]);
        assert_eq!(node.control.request("DELETE", "/v1/tenants/gone", &[], b"").status(), 204);
        conn.send(&body[1..]);
        conn.reply().problem(404, "not-found");
    }
    tenant(&node, "gone", &[]);
    for list in ["/v1/functions", "/v1/buckets"] {
        let listed = node.control.request("GET", list, &[("hob-tenant", "gone")], b"");
        assert_eq!(listed.json()["items"].as_array().unwrap().len(), 0, "{list}");
    }
}

#[test]
fn tenants_with_the_same_names_do_not_see_each_other() {
    let (mut node, doors) = twins();
    for round in 0..2 {
        for (name, door) in &doors {
            let door = Port { addr: node.control.addr, ..door.clone() };
            assert_eq!(door.get("/v1/functions/same/invoke").ok().text(), *name);
            assert_eq!(door.get("/v1/buckets/same/kv/key").ok().text(), *name);
            assert_eq!(door.get("/v1/buckets/same/objects/key").ok().text(), *name);
            for list in ["/v1/functions", "/v1/buckets", "/v1/tokens"] {
                assert_eq!(door.get(list).ok().json()["items"].as_array().unwrap().len(), 1, "{list}");
            }
            assert_eq!(door.get("/v1/functions/same").ok().json()["tenant"], name.as_str());
        }
        // The tenant 'default' has none of it, and an operator who names one has that one's alone.
        node.control.get("/v1/functions/same").problem(404, "not-found");
        node.control.get("/v1/buckets/same").problem(404, "not-found");
        let named = node.control.request("GET", "/v1/buckets/same/kv/key", &[("hob-tenant", "beta")], b"").ok();
        assert_eq!(named.text(), "beta");
        if round == 0 {
            let admin = node.control.bearer.clone();
            node.restart();
            node.control.bearer = admin;
        }
    }
}

#[test]
fn what_others_have_answers_as_what_is_not_there() {
    let (node, doors) = twins();
    let (_, beta) = &doors[1];
    let (_, acme) = &doors[0];
    // Only acme has it.
    assert_eq!(acme.request("PUT", "/v1/functions/mine", &[], &crate::harness::wat::wasm(&says("mine"))).status(), 201);
    assert_eq!(acme.request("PUT", "/v1/buckets/mine", &[], b"").status(), 201);
    let same = |reply: &Reply, other: &Reply, name: &str| {
        assert_eq!(reply.status(), other.status(), "{}", reply.text());
        // But for identifiers and times, which are never the same.
        let text = |reply: &Reply, name: &str| {
            let mut json = reply.json();
            json.as_object_mut().unwrap().remove("invocation_id");
            json.to_string().replace(&format!("'{name}'"), "NAME").replace(&format!("/{name}"), "NAME")
        };
        assert_eq!(text(reply, name), text(other, "none"));
        let names = |reply: &Reply| reply.head.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(reply), names(other));
    };
    for (method, target) in [
        ("GET", "/v1/functions/{}"),
        ("DELETE", "/v1/functions/{}"),
        ("GET", "/v1/functions/{}/logs"),
        ("GET", "/v1/functions/{}/revisions"),
        ("POST", "/v1/functions/{}/rollback"),
        ("POST", "/v1/functions/{}/invoke"),
        ("GET", "/v1/buckets/{}"),
        ("DELETE", "/v1/buckets/{}"),
        ("POST", "/v1/buckets/{}/scrub"),
        ("GET", "/v1/buckets/{}/kv"),
        ("GET", "/v1/buckets/{}/kv?watch=true"),
        ("POST", "/v1/buckets/{}/kv"),
        ("POST", "/v1/buckets/{}/kv-get"),
        ("PUT", "/v1/buckets/{}/kv/k"),
        ("DELETE", "/v1/buckets/{}/kv/k"),
        ("GET", "/v1/buckets/{}/objects/k"),
        ("PUT", "/v1/buckets/{}/objects/k"),
        ("DELETE", "/v1/tokens/{}"),
        ("DELETE", "/v1/keys/{}"),
    ] {
        let ask = |name: &str| beta.request(method, &target.replace("{}", name), &[], b"");
        same(&ask("mine"), &ask("none"), "mine");
    }
    acme.get("/v1/functions/mine").ok();
    acme.get("/v1/buckets/mine").ok();
    // On the data port: somebody else's name, and a host of nobody.
    let at = |host: &str, target: &str| ask(&node, host, target);
    same(&at("beta.example", "/mine"), &at("beta.example", "/none"), "mine");
    same(&at("nobody.hob.example", "/none"), &at("beta.hob.example", "/none"), "none");
}

/// A request of the data port under a host.
fn ask(node: &Node, host: &str, target: &str) -> Reply {
    let mut conn = node.data.connect();
    conn.send(format!("GET {target} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
    conn.reply()
}

#[test]
fn a_host_leads_to_its_tenant_alone() {
    let (node, doors) = twins();
    node.deploy_wat("same", &says("default"), "route = [{ path = '/shop/*' }, { path = '/there', host = 'acme.example' }]\n");
    let at = |host: &str, target: &str| {
        let reply = ask(&node, host, target);
        if reply.status() == 200 { reply.text() } else { reply.status().to_string() }
    };
    for (host, tenant) in [
        ("acme.example", "acme"),
        ("ACME.Example", "acme"),
        ("acme.example.", "acme"),
        ("acme.example:3000", "acme"),
        ("Acme.Example.:80", "acme"),
        ("acme.hob.example", "acme"),
        ("beta.hob.example.:1", "beta"),
        ("beta.example", "beta"),
        ("default.hob.example", "default"),
        ("hob.example", "default"),
        ("localhost", "default"),
        ("x.acme.example", "default"),
        ("acme.example.evil", "default"),
        ("xn--acme-0ra.example", "default"),
        ("none.hob.example", "404"),
        ("x.acme.hob.example", "404"),
        // No name of DNS, and so nobody's: neither acme's nor, as one that nobody has, of 'default'.
        ("acme.hob.example..", "400"),
        ("acme..hob.example", "400"),
        ("acme.example..:3000", "400"),
        (".hob.example", "400"),
    ] {
        assert_eq!(at(host, "/same"), tenant, "{host}");
        // A target of its own form names the host too, and both must be one.
        assert_eq!(at(host, &format!("http://{host}/same")), tenant, "{host}");
    }
    assert_eq!(at("beta.example", "http://acme.example/same"), "400");
    let twice = "GET /same HTTP/1.1\r\nhost: acme.example\r\nhost: beta.example\r\n\r\n";
    let mut conn = node.data.connect();
    conn.send(twice);
    assert_eq!(conn.reply().status(), 400);
    // Routes are looked up in the tenant of the host, whatever host they name.
    assert_eq!(
        (at("localhost", "/shop/1"), at("acme.example", "/shop/1"), at("acme.example", "/there")),
        ("default".into(), "404".into(), "404".into())
    );
    // No host that nobody declared reaches what is not of 'default'.
    let mut dice = Dice::new(7);
    for _ in 0..300 {
        let letters = b"acmebeta.example-0:x";
        let host: String = (0..1 + dice.below(20)).map(|_| char::from(letters[dice.below(letters.len())])).collect();
        let declared =
            ["acme.example", "beta.example"].iter().any(|name| host.split(':').next().unwrap().trim_end_matches('.') == *name);
        let said = at(&host, "/same");
        assert!(declared || matches!(said.as_str(), "default" | "400"), "{host}: {said}");
    }
    // Hosts can be taken away, and tenants go when they have nothing left.
    let hosts = |tenant: &str, hosts: &[&str]| {
        node.control.request("PUT", &format!("/v1/tenants/{tenant}"), &[], json!({ "hosts": hosts }).to_string().as_bytes())
    };
    hosts("beta", &["acme.example"]).problem(409, "conflict");
    hosts("beta", &["a b"]).problem(400, "bad-request");
    assert_eq!(hosts("acme", &[]).status(), 200);
    assert_eq!((at("acme.example", "/same"), at("acme.hob.example", "/same")), ("default".into(), "acme".into()));
    assert_eq!(hosts("beta", &["beta.example", "acme.example"]).status(), 200);
    assert_eq!(at("acme.example", "/same"), "beta");
    let remove = || node.control.request("DELETE", "/v1/tenants/acme", &[], b"");
    let (_, acme) = &doors[0];
    remove().problem(409, "conflict");
    assert_eq!(acme.request("DELETE", "/v1/functions/same", &[], b"").status(), 204);
    remove().problem(409, "conflict");
    assert_eq!(acme.request("DELETE", "/v1/buckets/same", &[], b"").status(), 204);
    assert_eq!(remove().status(), 204);
    acme.get("/v1/functions").problem(401, "unauthenticated");
    assert_eq!(at("acme.hob.example", "/same"), "404");
    node.control.request("DELETE", "/v1/tenants/default", &[], b"").problem(409, "conflict");
    node.control.request("DELETE", "/v1/tenants/none", &[], b"").problem(404, "not-found");
}

#[test]
fn a_deploy_says_by_which_host_the_function_is_reached() {
    let (node, admin) = owned(&[]);
    tenant(&node, "acme", &["acme.example"]);
    tenant(&node, "beta", &[]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("same.wasm");
    std::fs::write(&file, wasm(&says("same"))).unwrap();
    let port = node.data.addr.port();
    let acme = format!("answers at  http://acme.example:{port}/same/");
    let default = format!("answers at  http://{}/same/", node.data.addr);
    for (tenant, said) in [("acme", acme.as_str()), ("beta", "answers at  no address yet"), ("default", &default)] {
        let server = format!("http://{}", node.control.addr);
        let mut command = crate::cli::hob(&["--server", &server, "--tenant", tenant, "deploy", file.to_str().unwrap()]);
        let output = command.env("HOB_TOKEN", &admin).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(said), "{tenant}: {text}{}", String::from_utf8_lossy(&output.stderr));
    }
    assert_eq!(ask(&node, &format!("acme.example:{port}"), "/same/").text(), "same");
}

#[test]
fn a_guest_sees_no_token_that_was_for_hob() {
    let (node, admin) = owned(&[]);
    node.deploy_wat("open", &mirror(), "");
    node.deploy_wat("asks", &mirror(), "auth = 'token'\n");
    // What the mirror gives back is the request as the guest has it, its headers among it.
    let seen = |reply: Reply| String::from_utf8_lossy(&reply.ok().body).contains(&admin);
    assert!(seen(node.data.with(&admin).get("/open")), "an open function gets what is sent");
    assert!(!seen(node.data.with(&admin).get("/asks")));
    assert!(!seen(node.control.get("/v1/functions/open/invoke")));
}

#[test]
fn one_tenant_has_no_use_of_what_another_compiled() {
    let (node, doors) = twins();
    let wasm = crate::harness::wat::wasm(&says("shared"));
    let count = || node.files("artifacts").len();
    for (name, door) in &doors {
        let before = count();
        assert_eq!(door.request("PUT", "/v1/functions/shared", &[], &wasm).status(), 201);
        assert_eq!(count(), before + 1, "{name} has its own");
    }
    let before = count();
    assert_eq!(doors[0].1.request("PUT", "/v1/functions/again", &[], &wasm).status(), 201);
    assert_eq!(count(), before, "of one tenant it is found again");
}

#[test]
fn followers_of_tenants_leave_the_control_port_to_others() {
    let (node, _) = owned(&["net.control_connections_max=16", "net.connections_per_address=0"]);
    let names = ["a", "b", "c", "d"];
    let ports = names.map(|name| {
        tenant(&node, name, &[]);
        let wasm = crate::harness::wat::wasm(&says("f"));
        let deployed = node.control.request("PUT", "/v1/functions/f", &[("hob-tenant", name)], &wasm);
        assert_eq!(deployed.status(), 201, "{}", deployed.text());
        node.control.with(&token(&node, name, "reader", &["read"]))
    });
    let follow = |port: &Port| {
        let mut conn = port.connect();
        let bearer = port.bearer.as_deref().unwrap();
        conn.request("GET", "/v1/functions/f/logs?follow=true", &[("authorization", bearer)], b"");
        let head = conn.head();
        (head.status == 200).then_some(conn)
    };
    let [a, b, c, d] = &ports;
    let mut held: Vec<_> = [a, b, c].into_iter().flat_map(|port| (0..4).map(|_| follow(port).unwrap())).collect();
    for (port, why) in [(a, "4 requests of the tenant"), (d, "12 requests of tenants")] {
        let problem = port.get("/v1/functions").problem(503, "overloaded");
        assert!(problem["detail"].as_str().unwrap().contains(why), "{problem}");
    }
    // Whoever runs the node, and whoever asks whether it lives.
    assert_eq!(node.control.get("/v1/tenants").status(), 200);
    assert_eq!(ports[0].get("/livez").status(), 200);
    held.pop();
    crate::harness::eventually("there is a place again", || d.get("/v1/functions").status() == 200);
}
