//! `Idempotency-Key` on the control port: a change that is asked for again is answered again and not made again, whatever came in between.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::buckets::bucket;
use crate::harness::http::{Port, Reply};
use crate::harness::wat::{does, handler, mirror, says, wasm};
use crate::harness::{Dice, Node, Setup, eventually, multipart};
use crate::identity::{owned, tenant, token};

/// Dies when a change that keeps its answer is durable, and nobody was told.
const KEPT: &str = "answer-kept";

fn once(port: &Port, key: &str, method: &str, target: &str, body: &[u8]) -> Reply {
    port.request(method, target, &[("idempotency-key", key)], body)
}

/// The second is the first one again, and says so.
#[track_caller]
fn check_again(first: &Reply, again: &Reply) {
    assert_eq!((first.status(), first.text()), (again.status(), again.text()));
    for name in ["etag", "content-type", "hob-data-addr"] {
        assert_eq!(first.header(name), again.header(name), "{name}");
    }
    assert_eq!((first.header("hob-replayed"), again.header("hob-replayed")), (None, Some("1")));
}

/// A route that takes keys: how it is asked, what must be there before, what undoes it for whoever looks, and what one change leaves.
struct Route {
    name: &'static str,
    method: &'static str,
    target: &'static str,
    body: Vec<u8>,
    before: fn(&Node),
    status: u16,
    /// Something that would be changed if it were done twice.
    effect: fn(&Node) -> String,
    /// A change by somebody else, after which doing it again would show too.
    between: fn(&Node),
}

fn revisions(node: &Node) -> String {
    let list = node.control.get("/v1/functions/f/revisions").json();
    list["items"].to_string()
}

fn entry(node: &Node) -> String {
    let reply = node.control.get("/v1/buckets/b/kv/k");
    format!("{} {:?} {}", reply.status(), reply.header("etag"), reply.text())
}

fn put(node: &Node, body: &[u8]) {
    assert_eq!(node.control.request("PUT", "/v1/buckets/b/kv/k", &[], body).status(), 204);
}

fn with_bucket(node: &Node) {
    bucket(node, "b", json!({}));
}

fn with_entry(node: &Node) {
    with_bucket(node);
    put(node, b"7");
}

fn with_function(node: &Node) {
    node.deploy_wat("f", &says("one"), "");
    node.deploy_wat("f", &says("two"), "");
}

fn routes() -> Vec<Route> {
    let batch = json!({ "ops": [{ "op": "increment", "key": "k" }, { "op": "set", "key": "l", "value": "x" }] });
    let (kv, f) = ("/v1/buckets/b/kv/k", "/v1/functions/f");
    let route = |name, method, target, body: &[u8], before: fn(&Node), status, effect, between| Route {
        name,
        method,
        target,
        body: body.to_vec(),
        before,
        status,
        effect,
        between,
    };
    let others_revision: fn(&Node) = |node| drop(node.deploy_wat("f", &says("three"), ""));
    let others_entry: fn(&Node) = |node| put(node, b"70");
    let others_bucket: fn(&Node) = |node| {
        with_bucket(node);
        put(node, b"70");
    };
    vec![
        route("deploy", "PUT", f, &wasm(&says("new")), |_| {}, 201, revisions, others_revision),
        route(
            "rollback",
            "POST",
            "/v1/functions/f/rollback",
            b"",
            with_function,
            200,
            |node| node.inspect("f")["revision"].to_string(),
            others_revision,
        ),
        route("remove", "DELETE", f, b"", with_function, 204, revisions, others_revision),
        route("set", "PUT", kv, b"value", with_bucket, 204, entry, others_entry),
        route("delete", "DELETE", kv, b"", with_entry, 204, entry, others_entry),
        route("increment", "POST", "/v1/buckets/b/kv/k?increment=5", b"", with_entry, 200, entry, others_entry),
        route("batch", "POST", "/v1/buckets/b/kv", batch.to_string().as_bytes(), with_entry, 200, entry, others_entry),
        route("bucket", "DELETE", "/v1/buckets/b", b"", with_entry, 204, entry, others_bucket),
    ]
}

#[test]
fn asked_again_it_is_answered_again_and_done_once() {
    for route in routes() {
        let mut node = Node::start(&[]);
        (route.before)(&node);
        let ask = |node: &Node| once(&node.control, "k-1", route.method, route.target, &route.body);
        let first = ask(&node);
        assert_eq!(first.status(), route.status, "{}: {}", route.name, first.text());
        let effect = (route.effect)(&node);
        check_again(&first, &ask(&node));
        assert_eq!((route.effect)(&node), effect, "{}", route.name);
        // The answer is that of then, and what somebody else did since stays.
        (route.between)(&node);
        let effect = (route.effect)(&node);
        check_again(&first, &ask(&node));
        node.restart();
        check_again(&first, &ask(&node));
        assert_eq!((route.effect)(&node), effect, "{}", route.name);
        // With another key it is something else.
        let other = once(&node.control, "k-2", route.method, route.target, &route.body);
        assert_eq!(other.header("hob-replayed"), None, "{}: {}", route.name, other.text());
        assert_ne!((route.effect)(&node), effect, "{}", route.name);
    }
}

#[test]
fn a_kill_between_the_change_and_its_answer_leaves_one_change_and_its_answer() {
    for route in routes() {
        let mut node = Node::start_with(Setup { crash_at: Some(KEPT), ..Setup::default() });
        (route.before)(&node);
        let mut conn = node.control.connect();
        conn.request(route.method, route.target, &[("idempotency-key", "k")], &route.body);
        assert!(conn.try_head().is_none(), "{}: it answered and did not die", route.name);
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&node.wait()), Some(9), "{}", route.name);
        let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
        let effect = (route.effect)(&node);
        let again = once(&node.control, "k", route.method, route.target, &route.body);
        assert_eq!((again.status(), again.header("hob-replayed")), (route.status, Some("1")), "{}: {}", route.name, again.text());
        assert_eq!((route.effect)(&node), effect, "{}", route.name);
        if route.name == "deploy" {
            assert_eq!(node.control.get("/v1/functions/f/revisions").json()["items"].as_array().unwrap().len(), 1);
            assert_eq!(again.header("etag"), node.control.get("/v1/functions/f").header("etag"));
        }
    }
}

#[test]
fn a_kill_before_the_change_is_durable_leaves_neither() {
    let mut node = Node::start_with(Setup { crash_at: Some("registry-live-written"), ..Setup::default() });
    let body = wasm(&says("new"));
    let mut conn = node.control.connect();
    conn.request("PUT", "/v1/functions/f", &[("idempotency-key", "k")], &body);
    assert!(conn.try_head().is_none());
    node.wait();
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    let again = once(&node.control, "k", "PUT", "/v1/functions/f", &body);
    assert_eq!((again.status(), again.header("hob-replayed"), &again.json()["revision"]), (201, None, &1.into()));
}

/// Each change is asked for until it is answered; each kill takes an answer, or a change, or neither.
#[test]
fn kills_under_increments_count_each_once() {
    const ROUNDS: usize = 6;
    let mut node = Node::start(&[]);
    with_bucket(&node);
    let (mut dice, mut number, mut replayed) = (Dice::new(5), 0_u64, 0);
    for _ in 0..ROUNDS {
        let (enough, addr) = (number + 5 + dice.below(20) as u64, node.control.clone());
        let counted = std::sync::atomic::AtomicU64::new(number);
        let last = std::thread::scope(|scope| {
            let counted = &counted;
            let client = scope.spawn(move || {
                // The number of the change that was not answered.
                for number in number.. {
                    let Ok(mut conn) = addr.try_connect() else { return number };
                    let key = format!("change-{number}");
                    conn.request("POST", "/v1/buckets/b/kv/k?increment=1", &[("idempotency-key", &key)], b"");
                    let Some(head) = conn.try_head() else { return number };
                    assert_eq!(head.status, 200, "{head:?}");
                    counted.store(number + 1, std::sync::atomic::Ordering::SeqCst);
                }
                unreachable!("numbers do not end")
            });
            eventually("some are answered", || counted.load(std::sync::atomic::Ordering::SeqCst) >= enough);
            node.signal(rustix::process::Signal::KILL);
            client.join().unwrap()
        });
        node.wait();
        node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
        let reply = once(&node.control, &format!("change-{last}"), "POST", "/v1/buckets/b/kv/k?increment=1", b"").ok();
        replayed += usize::from(reply.header("hob-replayed").is_some());
        number = last + 1;
        assert_eq!(node.control.get("/v1/buckets/b/kv/k").ok().text(), number.to_string(), "{replayed} were answered again");
    }
}

#[test]
fn a_key_with_another_request_is_refused() {
    let node = Node::start(&[]);
    with_bucket(&node);
    let key = |headers: &[(&str, &str)], method: &str, target: &str, body: &[u8]| {
        node.control.request(method, target, &[&[("idempotency-key", "k")], headers].concat(), body)
    };
    assert_eq!(key(&[], "PUT", "/v1/buckets/b/kv/k", b"one").status(), 204);
    let before = entry(&node);
    let deploy = wasm(&says("a"));
    for (headers, method, target, body) in [
        (&[][..], "PUT", "/v1/buckets/b/kv/k", &b"two"[..]),
        (&[], "PUT", "/v1/buckets/b/kv/other", b"one"),
        (&[], "PUT", "/v1/buckets/b/kv/k?ttl=1h", b"one"),
        (&[("if-none-match", "*")], "PUT", "/v1/buckets/b/kv/k", b"one"),
        (&[], "DELETE", "/v1/buckets/b/kv/k", b""),
        (&[], "POST", "/v1/buckets/b/kv", br#"{"ops": []}"#),
        // What is kept with functions and with entries is one space of keys.
        (&[], "PUT", "/v1/functions/f", &deploy),
        (&[], "DELETE", "/v1/buckets/b", b""),
    ] {
        key(headers, method, target, body).problem(422, "idempotency-key-reused");
    }
    assert_eq!(entry(&node), before);
    node.control.get("/v1/functions/f").problem(404, "not-found");

    // Of a deploy counts what it brings: its form may have another boundary, and another module or manifest is another request.
    let (manifest, wasm) = ("[limits]\nwall = \"1s\"\n".as_bytes(), deploy.as_slice());
    let (kind, form) = multipart(&[("manifest", manifest), ("wasm", wasm)]);
    let deploy = |kind: &str, form: &[u8]| {
        node.control.request("PUT", "/v1/functions/f", &[("idempotency-key", "d"), ("content-type", kind)], form)
    };
    let first = deploy(&kind, &form);
    assert_eq!(first.status(), 201, "{}", first.text());
    let (old, new) = (kind.split_once('=').unwrap().1, "another-one");
    let text = form.escape_ascii().to_string();
    assert!(text.contains(old));
    let other = replace(&form, old.as_bytes(), new.as_bytes());
    check_again(&first, &deploy(&kind.replace(old, new), &other));
    let (kind, form) = multipart(&[("manifest", b"[limits]\nwall = \"2s\"\n"), ("wasm", wasm)]);
    deploy(&kind, &form).problem(422, "idempotency-key-reused");
    deploy("application/wasm", wasm).problem(422, "idempotency-key-reused");
    assert_eq!(node.inspect("f")["revision"], 1);
}

fn replace(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while let Some((first, others)) = rest.split_first() {
        match rest.strip_prefix(old) {
            Some(after) => {
                out.extend_from_slice(new);
                rest = after;
            }
            None => {
                out.push(*first);
                rest = others;
            }
        }
    }
    out
}

#[test]
fn a_key_whose_first_request_runs_is_told_to_wait() {
    let node = Node::start(&[]);
    with_bucket(&node);
    let target = "/v1/buckets/b/kv/k";
    let mut slow = node.control.connect();
    slow.request("PUT", target, &[("idempotency-key", "k"), ("content-length", "6")], b"val");
    // Refused for its query once nobody has the key.
    let ask = || once(&node.control, "k", "PUT", "/v1/buckets/b/kv/k?nonsense=1", b"");
    eventually("the first request has its key", || ask().status() == 409);
    let waits = ask();
    waits.problem(409, "idempotency-key-running");
    assert_eq!(waits.header("retry-after"), Some("1"));
    // Others, and other keys, do not wait.
    assert_eq!(once(&node.control, "l", "PUT", "/v1/buckets/b/kv/l", b"value").status(), 204);
    slow.send("ue2");
    let first = slow.reply();
    assert_eq!(first.status(), 204);
    check_again(&first, &once(&node.control, "k", "PUT", target, b"value2"));

    // One that is given up gives its key back, and nothing was done.
    let mut gone = node.control.connect();
    gone.request("PUT", target, &[("idempotency-key", "m"), ("content-length", "6")], b"val");
    let ask = || once(&node.control, "m", "PUT", "/v1/buckets/b/kv/k?nonsense=1", b"");
    eventually("the request has its key", || ask().status() == 409);
    drop(gone);
    eventually("the key is free", || ask().status() == 400);
    let other = once(&node.control, "m", "PUT", target, b"other");
    assert_eq!((other.status(), other.header("hob-replayed")), (204, None));
}

#[test]
fn a_build_that_runs_has_its_key() {
    let node = Node::start(&[]);
    // Initialisation for as long as it may take.
    let slow = wasm(&handler("(func (export \"hob_init\") (loop $more (br $more))) (func (export \"hob_handle\"))"));
    let mut conn = node.control.connect();
    conn.request("PUT", "/v1/functions/f", &[("idempotency-key", "k")], &slow);
    eventually("its key is in use", || {
        once(&node.control, "k", "POST", "/v1/functions/none/rollback", b"?").header("hob-error")
            == Some("idempotency-key-running")
    });
    drop(conn);
    eventually("a deploy that is given up gives it back", || {
        once(&node.control, "k", "POST", "/v1/functions/none/rollback", b"?").header("hob-error") == Some("bad-request")
    });
    node.control.get("/v1/functions/f").problem(404, "not-found");
}

#[test]
fn what_was_refused_is_tried_again() {
    let node = Node::start(&[]);
    with_bucket(&node);
    let delete = || once(&node.control, "k", "DELETE", "/v1/buckets/b/kv/k", b"");
    delete().problem(404, "not-found");
    put(&node, b"7");
    assert_eq!((delete().status(), delete().status()), (204, 204));
    once(&node.control, "r", "POST", "/v1/functions/f/rollback", b"").problem(404, "not-found");
    with_function(&node);
    assert_eq!(once(&node.control, "r", "POST", "/v1/functions/f/rollback", b"").ok().json()["revision"], 1);
    // What did nothing and was good is kept: done later, it would do something.
    let batch = json!({ "ops": [{ "op": "delete", "key": "k" }] }).to_string();
    let first = once(&node.control, "n", "POST", "/v1/buckets/b/kv", batch.as_bytes());
    assert_eq!(first.clone().ok().json()["done"], json!([{ "found": false }]));
    put(&node, b"8");
    check_again(&first, &once(&node.control, "n", "POST", "/v1/buckets/b/kv", batch.as_bytes()));
    assert!(entry(&node).ends_with(" 8"));
}

#[test]
fn an_answer_is_kept_no_longer_than_its_time() {
    let node = Node::start(&["data.answers_time=100ms"]);
    with_bucket(&node);
    assert_eq!(once(&node.control, "k", "PUT", "/v1/buckets/b/kv/k", b"1").status(), 204);
    eventually("the key is as new, for another request too", || {
        once(&node.control, "k", "PUT", "/v1/buckets/b/kv/k", b"2").status() == 204
    });
    let deploy = wasm(&says("a"));
    assert_eq!(once(&node.control, "d", "PUT", "/v1/functions/f", &deploy).status(), 201);
    eventually("the same for functions", || {
        once(&node.control, "d", "PUT", "/v1/functions/f", &deploy).json()["revision"].as_u64() >= Some(2)
    });
}

#[test]
fn a_tenant_has_so_many_kept_answers() {
    let node = Node::start(&["data.answers_max=3"]);
    with_bucket(&node);
    let put = |key: &str| once(&node.control, key, "PUT", "/v1/buckets/b/kv/k", key.as_bytes());
    let deploy = |key: &str| once(&node.control, key, "PUT", "/v1/functions/f", &wasm(&says("a")));
    let first = put("1");
    for key in ["2", "3"] {
        assert_eq!(put(key).status(), 204);
        assert!(matches!(deploy(&format!("f{key}")).status(), 200 | 201));
    }
    assert_eq!(deploy("f4").status(), 200, "functions and entries have as many each");
    let before = (entry(&node), revisions(&node));
    put("4").problem(429, "quota-exceeded");
    let problem = deploy("f5").problem(429, "quota-exceeded");
    assert!(problem["hint"].as_str().unwrap().contains("data.answers_max"), "{problem}");
    once(&node.control, "5", "DELETE", "/v1/functions/f", b"").problem(429, "quota-exceeded");
    assert_eq!((entry(&node), revisions(&node)), before);
    // Those that are kept are answered, and what needs no answer kept is done.
    check_again(&first, &put("1"));
    assert_eq!(node.control.request("PUT", "/v1/buckets/b/kv/k", &[], b"new").status(), 204);

    // What expires makes room.
    let node = Node::start(&["data.answers_max=1", "data.answers_time=100ms"]);
    with_bucket(&node);
    for key in ["1", "2", "3"] {
        eventually("there is room", || once(&node.control, key, "PUT", "/v1/buckets/b/kv/k", b"x").status() == 204);
        eventually("there is room", || {
            once(&node.control, key, "PUT", "/v1/functions/f", &wasm(&says("a"))).header("hob-error").is_none()
        });
    }
}

#[test]
fn keys_of_others_are_others() {
    let (node, _) = owned(&["data.answers_max=2"]);
    let door = |tenant: &str, name: &str| node.control.with(&token(&node, tenant, name, &["admin"]));
    tenant(&node, "acme", &[]);
    tenant(&node, "beta", &[]);
    let (acme, beta, other) = (door("acme", "ci"), door("beta", "ci"), door("acme", "other"));
    let target = "/v1/buckets/b/kv/k";
    for port in [&acme, &beta] {
        assert_eq!(port.request("PUT", "/v1/buckets/b", &[], b"").status(), 201);
    }
    assert_eq!(once(&acme, "k", "PUT", target, b"acme").status(), 204);
    // The same key of another tenant, of another token, and of a token that was made anew under the old name.
    for (port, body) in [(&beta, &b"beta"[..]), (&other, b"acme")] {
        let reply = once(port, "k", "PUT", target, body);
        assert_eq!((reply.status(), reply.header("hob-replayed")), (204, None), "{}", reply.text());
    }
    assert_eq!((acme.get(target).ok().text(), beta.get(target).ok().text()), ("acme".into(), "beta".into()));
    // That one tenant's are all taken is nothing to the other.
    once(&acme, "l", "PUT", target, b"x").problem(429, "quota-exceeded");
    assert_eq!(once(&beta, "l", "PUT", target, b"x").status(), 204);
    assert_eq!(node.control.request("DELETE", "/v1/tokens/ci", &[("hob-tenant", "beta")], b"").status(), 204);
    let anew = door("beta", "ci");
    once(&anew, "l", "PUT", target, b"x").problem(429, "quota-exceeded");
    // An operator who names a tenant is a caller of its own, and a key alone lets nobody in.
    let named = node.control.request("DELETE", target, &[("hob-tenant", "acme"), ("idempotency-key", "k")], b"");
    named.problem(429, "quota-exceeded");
    Port { bearer: None, ..acme }.request("PUT", target, &[("idempotency-key", "k")], b"acme").problem(401, "unauthenticated");
}

#[test]
fn answers_go_with_their_tenant() {
    let (node, _) = owned(&[]);
    let ask = |method: &str, target: &str, key: &str| {
        let headers = [("hob-tenant", "acme"), ("idempotency-key", key)];
        node.control.request(method, target, if key.is_empty() { &headers[..1] } else { &headers[..] }, &wasm(&says("a")))
    };
    for _ in 0..2 {
        tenant(&node, "acme", &[]);
        assert_eq!(node.control.request("PUT", "/v1/buckets/b", &[("hob-tenant", "acme")], b"").status(), 201);
        for (target, key, status) in [("/v1/functions/f", "f", 201), ("/v1/buckets/b/kv/k", "e", 204)] {
            for replayed in [None, Some("1")] {
                let reply = ask("PUT", target, key);
                assert_eq!((reply.status(), reply.header("hob-replayed")), (status, replayed), "{target}: {}", reply.text());
            }
        }
        for (method, target) in [("DELETE", "/v1/functions/f"), ("DELETE", "/v1/buckets/b")] {
            assert_eq!(ask(method, target, "").status(), 204);
        }
        assert_eq!(node.control.request("DELETE", "/v1/tenants/acme", &[], b"").status(), 204);
    }
}

#[test]
fn malformed_keys_are_refused() {
    let node = Node::start(&[]);
    with_bucket(&node);
    let target = "/v1/buckets/b/kv/k";
    let longest = "k".repeat(255);
    assert_eq!(once(&node.control, &longest, "PUT", target, b"1").status(), 204);
    let before = entry(&node);
    let too_long = "k".repeat(256);
    for bad in ["", "a b", "a\tb", "\u{e9}", &too_long] {
        once(&node.control, bad, "PUT", target, b"2").problem(400, "bad-request");
    }
    node.control.request("PUT", target, &[("idempotency-key", "a"), ("idempotency-key", "a")], b"2").problem(400, "bad-request");
    // Other control characters are in no header at all.
    for control in ["\u{1}", "\u{7f}", "\0"] {
        assert_eq!(once(&node.control, &format!("a{control}"), "PUT", target, b"2").status(), 400);
    }
    assert_eq!(entry(&node), before);
}

#[test]
fn routes_that_keep_no_answers_take_no_keys() {
    let node = Node::start(&[]);
    bucket(&node, "v", json!({ "durability": "volatile" }));
    for (method, target, body) in [
        ("PUT", "/v1/buckets/b", ""),
        ("PUT", "/v1/buckets/v/objects/o", "x"),
        ("DELETE", "/v1/buckets/v/objects/o", ""),
        ("POST", "/v1/buckets/v/scrub", ""),
        ("PUT", "/v1/secrets/s", "value"),
        ("POST", "/v1/tokens", r#"{"name":"t","scopes":["admin"]}"#),
        ("PUT", "/v1/tenants/acme", "{}"),
        // Nothing in it outlives the node, and an answer would.
        ("PUT", "/v1/buckets/v/kv/k", "x"),
    ] {
        let problem = once(&node.control, "k", method, target, body.as_bytes()).problem(400, "bad-request");
        assert!(problem["detail"].as_str().unwrap().contains("idempotency-key"), "{problem}");
    }
    assert_eq!(node.control.get("/v1/tokens").ok().json()["items"], json!([]));
    // Whoever only looks may send what is not needed.
    once(&node.control, "k", "GET", "/v1/buckets", b"").ok();
    once(&node.control, "k", "POST", "/v1/buckets/v/kv-get", br#"{"keys":[]}"#).ok();
    // A function's own headers are its own.
    node.deploy_wat("mirror", &mirror(), "");
    let seen = once(&node.control, "a b", "POST", "/v1/functions/mirror/invoke", b"");
    assert!(seen.clone().ok().text().contains("idempotency-key"), "{}", seen.text());
    // And the description says which routes take keys: those of these tests.
    let description = node.control.get("/openapi.json").ok().json();
    let mut takes = Vec::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            if parameters.into_iter().any(|parameter| parameter["name"] == "idempotency-key") {
                for status in ["409", "422"] {
                    assert!(operation["responses"][status].is_object(), "{method} {path}: {status}");
                }
                takes.push(format!("{method} {path}"));
            }
        }
    }
    assert_eq!(takes.len(), routes().len(), "{takes:?}");
}

/// What the audit log says of a change, and of its second time.
#[test]
fn the_audit_log_tells_a_change_from_its_replay() {
    let (node, _) = owned(&[]);
    let deploy = wasm(&does("(call $number (i32.const 1))"));
    for _ in 0..2 {
        assert_eq!(once(&node.control, "k", "PUT", "/v1/functions/f", &deploy).status(), 201);
    }
    let list = node.control.get("/v1/audit").ok().json();
    let lines =
        list["lines"].as_array().unwrap().iter().map(|line| serde_json::from_str::<Value>(line.as_str().unwrap()).unwrap());
    let details: Vec<_> = lines.filter(|line| line["status"] == 201).map(|line| line["detail"].clone()).collect();
    let [.., first, again] = details.as_slice() else { panic!("{list}") };
    assert_eq!((&first["revision"], again), (&1.into(), &json!({ "replayed": true })), "{list}");
}

#[test]
fn nothing_of_a_key_is_on_the_disk() {
    let mut node = Node::start(&[]);
    with_bucket(&node);
    let key = "key-that-is-nowhere-else";
    assert_eq!(once(&node.control, key, "PUT", "/v1/buckets/b/kv/k", b"1").status(), 204);
    assert_eq!(once(&node.control, key, "PUT", "/v1/buckets/b/kv/k", b"1").header("hob-replayed"), Some("1"));
    node.stop();
    let dir: Arc<_> = node.dir();
    for file in crate::harness::files(dir.path()) {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()), "{}", file.display());
    }
}
