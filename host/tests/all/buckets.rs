//! Buckets and entries over the control port: what they promise, and what is refused how.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::http::{Conn, Reply, head};
use crate::harness::wat::{says, wasm};
use crate::harness::{Node, Setup, eventually};

/// Makes a bucket that was not there.
#[track_caller]
pub(crate) fn bucket(node: &Node, name: &str, definition: Value) {
    let body = definition.to_string();
    let reply = node.control.request("PUT", &format!("/v1/buckets/{name}"), &[], body.as_bytes());
    assert_eq!(reply.status(), 201, "{}", reply.text());
}

pub(crate) fn put(node: &Node, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    node.control.request("PUT", target, headers, body)
}

pub(crate) fn delete(node: &Node, target: &str) -> Reply {
    node.control.request("DELETE", target, &[], b"")
}

/// What the bucket says of itself.
#[track_caller]
pub(crate) fn usage(node: &Node, name: &str) -> Value {
    node.control.get(&format!("/v1/buckets/{name}")).ok().json()
}

/// Every checksum of a bucket holds, and its account is right.
#[track_caller]
pub(crate) fn check_whole(node: &Node, name: &str) {
    let found = node.control.post(&format!("/v1/buckets/{name}/scrub"), b"").ok().json();
    assert_eq!((&found["corrupt_count"], &found["usage_exact"]), (&0.into(), &true.into()), "{found}");
}

#[test]
fn buckets_are_made_changed_listed_and_deleted() {
    let node = Node::start(&[]);
    let put = |name: &str, body: &str| put(&node, &format!("/v1/buckets/{name}"), &[], body.as_bytes());
    let made = put("a", "");
    assert_eq!(made.status(), 201);
    let info = made.json();
    assert_eq!(
        (&info["durability"], &info["bytes_max"], &info["keys_max"]),
        (&"durable".into(), &(1_u64 << 30).into(), &1_000_000.into())
    );
    // What is left out stays.
    let changed = put("a", r#"{"keys_max": 5}"#);
    assert_eq!(
        (changed.status(), &changed.json()["keys_max"], &changed.json()["bytes_max"]),
        (200, &5.into(), &(1_u64 << 30).into())
    );
    let problem = put("a", r#"{"durability": "volatile"}"#).problem(409, "conflict");
    assert_eq!(problem["hint"], "hob bucket inspect a");
    assert_eq!(put("b", r#"{"durability": "volatile", "bytes_max": 1000, "keys_max": 10}"#).status(), 201);
    // A change of quotas need not say the durability again.
    assert_eq!(put("b", r#"{"bytes_max": 2000}"#).json()["durability"], "volatile");
    assert_eq!(put("c", "{}").status(), 201);
    for bad in ["{", "7", "[]", r#"["volatile",5,5]"#, r#"{"size": 1}"#, r#"{"durability": "eternal"}"#, r#"{"bytes_max": -1}"#] {
        put("d", bad).problem(400, "bad-request");
    }
    put("d", &format!("{{{}}}", " ".repeat(5000))).problem(413, "body-too-large");
    for bad in ["A", "a.b", "a%2Fb", "%00", "-a"] {
        put(bad, "").problem(400, "bad-request");
    }
    let page = |query: &str| node.control.get(&format!("/v1/buckets?{query}")).ok().json();
    let names = |page: &Value| {
        page["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let first = page("limit=2");
    assert_eq!((names(&first), first["next"].as_str()), (vec!["a".to_owned(), "b".to_owned()], Some("b")));
    let last = page("limit=2&cursor=b");
    assert_eq!((names(&last), last.get("next")), (vec!["c".to_owned()], None));
    for bad in ["x", "0", "1001"] {
        node.control.get(&format!("/v1/buckets?limit={bad}")).problem(400, "bad-request");
    }
    assert_eq!(delete(&node, "/v1/buckets/a").status(), 204);
    delete(&node, "/v1/buckets/a").problem(404, "not-found");
    for gone in ["/v1/buckets/a", "/v1/buckets/a/kv", "/v1/buckets/a/kv/k", "/v1/buckets/a/objects", "/v1/buckets/a/objects/k"] {
        node.control.get(gone).problem(404, "not-found");
    }
    node.control.post("/v1/buckets/a/scrub", b"").problem(404, "not-found");
}

#[test]
fn what_is_misspelled_in_a_query_may_be_a_condition_and_is_refused() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    for at in ["/v1/buckets/b/kv/k?if-match=1", "/v1/buckets/b/objects/o?prefix=x"] {
        for method in ["GET", "HEAD", "DELETE"] {
            let refused = node.control.request(method, at, &[], b"");
            assert_eq!((refused.status(), refused.header("hob-error")), (400, Some("bad-request")), "{method} {at}");
        }
    }
}

#[test]
fn entries_have_versions_conditions_and_ends() {
    let node = Node::start(&[]);
    for (name, durability) in [("d", "durable"), ("v", "volatile")] {
        bucket(&node, name, json!({ "durability": durability }));
        let at = format!("/v1/buckets/{name}/kv/k");
        node.control.get(&at).problem(404, "not-found");
        let first = put(&node, &at, &[], b"one");
        assert_eq!(first.status(), 204);
        let tag = first.header("etag").unwrap().to_owned();
        let got = node.control.get(&at).ok();
        assert_eq!(
            (got.text().as_str(), got.header("etag"), got.header("content-type")),
            ("one", Some(tag.as_str()), Some("application/octet-stream"))
        );
        assert_eq!(
            (got.header("content-security-policy"), got.header("x-content-type-options")),
            (Some("sandbox"), Some("nosniff"))
        );
        let head = node.control.request("HEAD", &at, &[], b"");
        assert_eq!((head.status(), head.header("content-length"), head.header("etag")), (200, Some("3"), Some(tag.as_str())));
        let got = node.control.request("GET", &at, &[("if-none-match", &tag)], b"");
        assert_eq!((got.status(), got.header("etag"), got.body.len()), (304, Some(tag.as_str()), 0));
        // Of two that read the same version one may write.
        let second = put(&node, &at, &[("if-match", &tag)], b"two");
        assert_eq!(second.status(), 204);
        assert_ne!(second.header("etag"), Some(tag.as_str()));
        put(&node, &at, &[("if-match", &tag)], b"three").problem(412, "precondition-failed");
        put(&node, &at, &[("if-none-match", "*")], b"three").problem(412, "precondition-failed");
        put(&node, &at, &[("content-range", "bytes 0-4/10")], b"three").problem(400, "bad-request");
        put(&node, &at, &[("if-match", "\"x\"")], b"three").problem(412, "precondition-failed");
        node.control.request("DELETE", &at, &[("if-match", &tag)], b"").problem(412, "precondition-failed");
        assert_eq!(node.control.get(&at).ok().text(), "two");
        // One of several, or whatever is there.
        let second = second.header("etag").unwrap();
        put(&node, &at, &[("if-match", &format!("{tag}, W/{second}, \"x\""))], b"3").problem(412, "precondition-failed");
        let third = put(&node, &at, &[("if-match", &format!("{tag}, {second}"))], b"3");
        assert_eq!(third.status(), 204);
        put(&node, &at, &[("if-match", &format!("{tag}, {second}"))], b"4").problem(412, "precondition-failed");
        assert_eq!(put(&node, &at, &[("if-match", "*")], b"4").status(), 204);
        // What no entry has says nothing of it, unless something better does.
        let date = ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT");
        put(&node, &at, &[date], b"5").problem(400, "bad-request");
        node.control.request("DELETE", &at, &[date], b"").problem(400, "bad-request");
        assert_eq!(put(&node, &at, &[date, ("if-match", "*")], b"4").status(), 204);
        assert_eq!(node.control.get(&at).ok().text(), "4");
        assert_eq!(node.control.request("DELETE", &at, &[("if-match", "*")], b"").status(), 204);
        for any in ["*", &format!("{tag}, {second}")] {
            put(&node, &at, &[("if-match", any)], b"5").problem(412, "precondition-failed");
            node.control.request("DELETE", &at, &[("if-match", any)], b"").problem(412, "precondition-failed");
        }
        delete(&node, &at).problem(404, "not-found");
        assert_eq!(put(&node, &at, &[("if-none-match", "*")], b"").status(), 204);
        assert_eq!(node.control.get(&at).ok().body, b"");
        // Time to live.
        assert_eq!(put(&node, &format!("{at}?ttl=1h"), &[], b"x").status(), 204);
        assert!(
            node.control.get(&at).ok().header("hob-expires-ms").is_some_and(|ms| ms.parse::<u64>().unwrap() > 1_700_000_000_000)
        );
        assert_eq!(put(&node, &format!("{at}?ttl=1ms"), &[], b"x").status(), 204);
        eventually("it has ended", || node.control.get(&at).status() == 404);
        for bad in ["ttl=10", "ttl=0s", "ttl=", "tll=1s", "ttl=1s&ttl=2s"] {
            put(&node, &format!("{at}?{bad}"), &[], b"x").problem(400, "bad-request");
        }
        // Numbers.
        let add = |by: &str| node.control.post(&format!("/v1/buckets/{name}/kv/n?increment={by}"), b"");
        assert_eq!((add("5").ok().json()["value"].as_i64(), add("-7").ok().json()["value"].as_i64()), (Some(5), Some(-2)));
        assert_eq!(node.control.get(&format!("/v1/buckets/{name}/kv/n")).ok().text(), "-2");
        for bad in ["", "x", "9223372036854775808"] {
            add(bad).problem(400, "bad-request");
        }
        add("9223372036854775807").ok();
        add("9223372036854775807").problem(400, "bad-request");
        node.control.post(&format!("/v1/buckets/{name}/kv/n"), b"").problem(400, "bad-request");
    }
    check_whole(&node, "d");
}

#[test]
fn a_value_may_have_its_limit_and_no_more() {
    const MIB: usize = 1 << 20;
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    assert_eq!(put(&node, "/v1/buckets/b/kv/k", &[], &vec![1; MIB]).status(), 204);
    put(&node, "/v1/buckets/b/kv/k", &[], &vec![2; MIB + 1]).problem(413, "body-too-large");
    assert_eq!(node.control.get("/v1/buckets/b/kv/k").good(), vec![1; MIB]);
    // A length that is not kept.
    let mut conn = node.control.connect();
    conn.request("PUT", "/v1/buckets/b/kv/k", &[("content-length", "100")], b"short");
    conn.finish();
    conn.reply().problem(400, "bad-request");
    assert_eq!(node.control.get("/v1/buckets/b/kv/k").good().len(), MIB);
}

#[test]
fn keys_are_any_bytes_and_lead_nowhere_else() {
    let node = Node::start(&[]);
    for name in ["a", "b", "a-b"] {
        bucket(&node, name, json!({}));
    }
    let longest = "k".repeat(512);
    let keys = [
        "%00",
        "..",
        "../b/kv/x",
        "..%2F..%2Fb%2Fkv%2Fx",
        "a//b",
        "%ff%FE",
        "%25",
        "b/kv/x",
        "+",
        "%2B%20",
        "%E2%80%AE",
        longest.as_str(),
    ];
    for kind in ["kv", "objects"] {
        for (number, key) in keys.into_iter().enumerate() {
            let reply = put(&node, &format!("/v1/buckets/a/{kind}/{key}"), &[], number.to_string().as_bytes());
            assert!(reply.status() < 300, "{kind} {key}: {}", reply.text());
        }
        for (number, key) in keys.into_iter().enumerate() {
            // One is spelled twice: a slash stands for itself.
            let number = if number == 2 { 2 } else { number };
            assert_eq!(node.control.get(&format!("/v1/buckets/a/{kind}/{key}")).ok().text(), number.to_string(), "{kind} {key}");
        }
        for other in ["b", "a-b"] {
            assert_eq!(
                node.control.get(&format!("/v1/buckets/{other}/{kind}")).ok().json()["items"],
                json!([]),
                "{kind} {other}"
            );
        }
        for (method, target, status, code) in [
            ("PUT", String::new(), 400, "bad-request"),
            ("GET", String::new(), 400, "bad-request"),
            ("PUT", "k".repeat(513), 413, "body-too-large"),
            ("GET", "k".repeat(513), 413, "body-too-large"),
            ("DELETE", "k".repeat(513), 413, "body-too-large"),
            ("GET", "%zz".into(), 400, "bad-request"),
            ("GET", "%".into(), 400, "bad-request"),
        ] {
            node.control.request(method, &format!("/v1/buckets/a/{kind}/{target}"), &[], b"").problem(status, code);
        }
        // JSON has what is no text in Base64.
        let list = node.control.get(&format!("/v1/buckets/a/{kind}?prefix=%ff")).ok().json();
        assert_eq!(list["items"][0]["key_base64"], "//4=", "{list}");
        assert!(list["items"][0].get("key").is_none());
        assert_eq!(node.control.get(&format!("/v1/buckets/a/{kind}?prefix=%00")).ok().json()["items"][0]["key"], "\0");
        // Page by page nothing is left out and nothing comes twice.
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let list = node.control.get(&format!("/v1/buckets/a/{kind}?limit=5{cursor}")).ok().json();
            seen.extend(list["items"].as_array().unwrap().iter().map(|item| (item["key"].clone(), item["key_base64"].clone())));
            let Some(next) = list["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        let count = seen.len();
        seen.sort_by_key(|key| format!("{key:?}"));
        seen.dedup();
        assert_eq!((seen.len(), count), (keys.len(), keys.len()), "{seen:?}");
        for bad in ["cursor=%21", "limit=x", "prefix=%z", "other=1"] {
            node.control.get(&format!("/v1/buckets/a/{kind}?{bad}")).problem(400, "bad-request");
        }
        assert_eq!(delete(&node, &format!("/v1/buckets/a/{kind}/%ff%FE")).status(), 204);
    }
    check_whole(&node, "a");
}

#[test]
fn a_batch_happens_whole_or_not_at_all() {
    let node = Node::start(&[]);
    for (name, durability) in [("d", "durable"), ("v", "volatile")] {
        bucket(&node, name, json!({ "durability": durability }));
        let batch =
            |ops: Value| node.control.post(&format!("/v1/buckets/{name}/kv"), json!({ "ops": ops }).to_string().as_bytes());
        let list = || node.control.get(&format!("/v1/buckets/{name}/kv?values=true")).ok().json()["items"].clone();
        let done = batch(json!([
            { "op": "set", "key": "a", "value": "1", "if_absent": true },
            { "op": "set", "key_base64": "/w==", "value_base64": "AAE=", "ttl": "1h" },
            { "op": "increment", "key": "n" },
            { "op": "increment", "key": "n", "by": 4 },
            { "op": "delete", "key": "none" },
        ]));
        let done = done.ok().json()["done"].clone();
        assert_eq!((&done[3]["value"], &done[4]["found"]), (&5.into(), &false.into()), "{done}");
        let before = list();
        assert_eq!(
            (before.as_array().unwrap().len(), &before[2]["value_base64"], &before[0]["value"]),
            (3, &Value::Null, &"1".into()),
            "{before}"
        );
        assert_eq!((&before[2]["key_base64"], &before[2]["value"]), (&"/w==".into(), &"\0\u{1}".into()), "{before}");
        let version = before[0]["version"].as_u64().unwrap();
        for (ops, status, code) in [
            (
                json!([{ "op": "delete", "key": "a" }, { "op": "set", "key": "n", "value": "x", "if_absent": true }]),
                412,
                "precondition-failed",
            ),
            (
                json!([{ "op": "set", "key": "n", "value": "x" }, { "op": "delete", "key": "a", "if_version": version + 1000 }]),
                412,
                "precondition-failed",
            ),
            (json!([{ "op": "set", "key": "b", "value": "x" }, { "op": "increment", "key": "b" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key": "b", "value": "+5" }, { "op": "increment", "key": "b" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key": "b", "value": "x" }, { "op": "set", "key": "", "value": "x" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key": "b" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key": "b", "key_base64": "YQ==", "value": "" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key_base64": "?", "value": "" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key": "b", "value": "", "ttl": "5" }]), 400, "bad-request"),
            (json!([{ "op": "set", "key": "b", "value": "", "if_absent": true, "if_version": 1 }]), 400, "bad-request"),
            (json!([{ "op": "increment", "key": "n", "if_version": 1 }]), 400, "bad-request"),
            (json!([{ "op": "delete", "key": "a", "value": "" }]), 400, "bad-request"),
            (json!([{ "op": "move", "key": "a" }]), 400, "bad-request"),
            // An array is no struct, whatever is in it.
            (json!([["set", "k", null, "v"]]), 400, "bad-request"),
            (json!(vec![json!({ "op": "increment", "key": "n" }); 1001]), 400, "bad-request"),
        ] {
            batch(ops).problem(status, code);
            assert_eq!(list(), before);
        }
        assert_eq!(batch(json!(vec![json!({ "op": "increment", "key": "n" }); 1000])).status(), 200);
        node.control.post(&format!("/v1/buckets/{name}/kv"), b"[]").problem(400, "bad-request");
    }
    check_whole(&node, "d");
}

#[test]
fn a_value_is_held_against_its_digest_and_has_no_coding() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let at = "/v1/buckets/b/kv/k";
    let abc = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";
    let version = put(&node, at, &[("content-digest", abc)], b"abc");
    assert_eq!(version.status(), 204);
    for header in ["content-digest", "repr-digest"] {
        let problem = put(&node, at, &[(header, abc)], b"abd").problem(400, "bad-request");
        assert!(problem["detail"].as_str().unwrap().contains("digest of the bytes is"), "{problem}");
        // Nothing of it is kept under the key of the request either.
        let once = [(header, abc), ("idempotency-key", header)];
        put(&node, at, &once, b"abd").problem(400, "bad-request");
        assert_eq!(put(&node, at, &once, b"abc").status(), 204);
        put(&node, at, &[(header, "sha-256=:x:")], b"abc").problem(400, "bad-request");
    }
    put(&node, at, &[("content-digest", abc), ("repr-digest", &abc.replace('u', "v"))], b"abc").problem(400, "bad-request");
    put(&node, at, &[("content-encoding", "gzip")], b"abc").problem(415, "unsupported-media");
    // Of an algorithm that nobody here knows nothing can be said.
    assert_eq!(put(&node, at, &[("repr-digest", abc), ("content-digest", "sha-512=:AA==:")], b"abc").status(), 204);
    assert_eq!(node.control.get(at).good(), b"abc");
}

/// serde reads a struct from an array, too, by the order of its fields.
#[test]
fn bodies_are_objects_and_no_arrays() {
    let node = Node::start(&[]);
    node.deploy("f", &wasm(&says("1")), "");
    bucket(&node, "b", json!({}));
    for (method, target, array, object) in [
        ("PUT", "/v1/buckets/c", r#"["volatile", 5, 5, null]"#, r#"{"durability": "volatile"}"#),
        ("POST", "/v1/buckets/b/kv", r#"[[]]"#, r#"{"ops": []}"#),
        (
            "POST",
            "/v1/buckets/b/kv",
            r#"{"ops": [["set", "k", null, "v"]]}"#,
            r#"{"ops": [{"op": "set", "key": "k", "value": "v"}]}"#,
        ),
        ("POST", "/v1/buckets/b/kv-get", r#"[[["k"]]]"#, r#"{"keys": []}"#),
        ("POST", "/v1/buckets/b/kv-get", r#"{"keys": [["k"]]}"#, r#"{"keys": [{"key": "k"}]}"#),
        ("POST", "/v1/functions/f/rollback", "[1]", r#"{"to": 1}"#),
        ("PUT", "/v1/tenants/acme", "[[]]", r#"{"hosts": []}"#),
        ("PATCH", "/v1/tenants/acme", "[{}]", r#"{"quotas": {}}"#),
        ("POST", "/v1/tokens", r#"["ci", null, ["read"]]"#, r#"{"name": "ci", "scopes": ["admin"]}"#),
    ] {
        let ask = |body: &str| node.control.request(method, target, &[], body.as_bytes());
        let problem = ask(array).problem(400, "bad-request");
        assert!(problem["detail"].as_str().unwrap().contains("expected a JSON object"), "{target}: {problem}");
        let reply = ask(object);
        assert!(reply.status() < 300, "{target}: {} {}", reply.status(), reply.text());
    }
}

#[test]
fn many_entries_are_read_at_one_moment() {
    let node = Node::start(&[]);
    let ask = |name: &str, keys: Value| {
        node.control.post(&format!("/v1/buckets/{name}/kv-get"), json!({ "keys": keys }).to_string().as_bytes())
    };
    for (name, durability) in [("d", "durable"), ("v", "volatile")] {
        bucket(&node, name, json!({ "durability": durability }));
        assert_eq!(put(&node, &format!("/v1/buckets/{name}/kv/a?ttl=1h"), &[], b"1").status(), 204);
        assert_eq!(put(&node, &format!("/v1/buckets/{name}/kv/%ff"), &[], b"\xff").status(), 204);
        let reply = ask(name, json!([{ "key_base64": "/w==" }, { "key": "none" }, { "key": "a" }, { "key": "a" }])).ok();
        assert_eq!(reply.header("content-type"), Some("application/json"));
        let items = reply.json()["items"].clone();
        let of = |index: usize, field: &str| items[index][field].clone();
        assert_eq!((of(0, "key_base64"), of(0, "value_base64"), of(0, "bytes")), ("/w==".into(), "/w==".into(), 1.into()));
        assert_eq!((&items[1], of(2, "key"), of(2, "value")), (&Value::Null, "a".into(), "1".into()));
        assert!(of(2, "expires_ms").is_u64() && of(2, "version").as_u64() < of(0, "version").as_u64() && items[2] == items[3]);
        assert_eq!(ask(name, json!([])).ok().json(), json!({ "items": [] }));
        // Both sides of the bounds, and what is no list of keys.
        assert_eq!(ask(name, json!(vec![json!({ "key": "none" }); 1000])).status(), 200);
        ask(name, json!(vec![json!({ "key": "none" }); 1001])).problem(400, "bad-request");
        for bad in [
            json!({ "key": "a" }),
            json!(["a"]),
            json!([["a"]]),
            json!([{}]),
            json!([{ "key": "" }]),
            json!([{ "key": "a", "key_base64": "YQ==" }]),
            json!([{ "key_base64": "?" }]),
            json!([{ "key": "a", "value": "" }]),
        ] {
            ask(name, bad).problem(400, "bad-request");
        }
        ask(name, json!([{ "key": "k".repeat(513) }])).problem(413, "body-too-large");
        // The longest that there can be: every byte of every key escaped.
        assert_eq!(ask(name, json!(vec![json!({ "key": "\u{1}".repeat(512) }); 1000])).status(), 200);
        let long = vec![b' '; (4 << 20) + 1];
        node.control.post(&format!("/v1/buckets/{name}/kv-get"), &long).problem(413, "body-too-large");
    }
    ask("none", json!([{ "key": "a" }])).problem(404, "not-found");
}

/// A node with a bucket `b` of the tenants `default` and `acme` each.
fn of_two_tenants() -> Node {
    // A sender may be silent for longer than a machine under load takes.
    let node = Node::start(&["net.body_idle_timeout=5m", "net.body_rate_min=0"]);
    crate::identity::tenant(&node, "acme", &[]);
    for tenant in ["default", "acme"] {
        let made = put(&node, "/v1/buckets/b", &[("hob-tenant", tenant)], br#"{"durability": "volatile"}"#);
        assert_eq!(made.status(), 201, "{}", made.text());
    }
    node
}

#[test]
fn an_answer_keeps_its_place_until_it_is_taken() {
    const OF_A_TENANT: usize = 3;
    const OPEN_WAIT: Duration = Duration::from_secs(10);
    let node = of_two_tenants();
    for tenant in ["default", "acme"] {
        assert_eq!(put(&node, "/v1/buckets/b/kv/large", &[("hob-tenant", tenant)], &[0; 1 << 20]).status(), 204);
    }
    // Far more than the system keeps for a connection: each zero takes six bytes.
    let body = json!({ "keys": vec![json!({ "key": "large" }); 4] }).to_string();
    let ask = |conn: &mut Conn| conn.request("POST", "/v1/buckets/b/kv-get", &[], body.as_bytes());
    let mut slow: Vec<Conn> = (0..OF_A_TENANT).map(|_| node.control.connect_narrow()).collect();
    for conn in &mut slow {
        ask(conn);
        // Its head is there, so it has its place.
        assert_eq!(conn.head().status, 200);
    }
    let (mut late, asked) = (node.control.connect(), Instant::now());
    ask(&mut late);
    // A place is left, and the tenant that waits does not get it.
    node.control.request("POST", "/v1/buckets/b/kv-get", &[("hob-tenant", "acme")], body.as_bytes()).ok();
    assert_eq!(node.control.get("/v1/buckets/b/kv/large").ok().body.len(), 1 << 20, "all else goes on");
    late.reply().problem(503, "overloaded");
    assert!(asked.elapsed() >= OPEN_WAIT, "{:?}", asked.elapsed());
    ask(&mut late);
    drop(slow.pop());
    assert_eq!(late.reply().status(), 200, "a place is free");
}

#[test]
fn slow_senders_of_one_tenant_leave_places_to_others() {
    let node = of_two_tenants();
    let batch = json!({ "ops": [{ "op": "set", "key": "k", "value": "v" }] }).to_string();
    let function = wasm(&says("x"));
    // What may be under way in all, and of one tenant.
    for (method, target, body, max, each_max) in [
        ("PUT", "/v1/buckets/b/objects/k", &b"object"[..], 8, 6),
        ("POST", "/v1/buckets/b/kv", batch.as_bytes(), 4, 3),
        ("PUT", "/v1/functions/f", &function, 16, 12),
    ] {
        let begin = |tenant: &str| {
            let mut conn = node.control.connect();
            let len = body.len().to_string();
            conn.send(head(method, target, &[("hob-tenant", tenant), ("content-length", &len), ("expect", "100-continue")]));
            conn
        };
        // Nobody reads a body before the request has its place.
        let has_place = |conn: &mut Conn| {
            let lines = [conn.line(), conn.line()];
            assert_eq!(lines, ["HTTP/1.1 100 Continue", ""].map(|line| Some(line.to_owned())), "{target}");
        };
        let end = |mut conn: Conn| {
            conn.send(body);
            let reply = conn.reply();
            assert!(reply.status() < 300, "{target}: {}", reply.text());
        };
        let mut slow: Vec<Conn> = (0..each_max).map(|_| begin("default")).collect();
        slow.iter_mut().for_each(has_place);
        let mut next = begin("default");
        let mut others: Vec<Conn> = (each_max..max).map(|_| begin("acme")).collect();
        others.iter_mut().for_each(has_place);
        // One of a tenant comes after one of its own.
        end(slow.pop().unwrap());
        has_place(&mut next);
        others.into_iter().for_each(end);
        end(next);
    }
}

#[test]
fn of_racing_compare_and_swaps_none_is_lost() {
    const WRITERS: usize = 4;
    const EACH: usize = 25;
    let node = Node::start(&[]);
    for (name, durability) in [("d", "durable"), ("v", "volatile")] {
        bucket(&node, name, json!({ "durability": durability }));
        let at = format!("/v1/buckets/{name}/kv/n");
        assert_eq!(put(&node, &at, &[], b"0").status(), 204);
        let refused = Arc::new(AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    let mut conn = node.control.connect();
                    let mut left = EACH;
                    while left > 0 {
                        conn.request("GET", &at, &[], b"");
                        let found = conn.reply().ok();
                        let number: usize = found.text().parse().unwrap();
                        conn.request(
                            "PUT",
                            &at,
                            &[("if-match", found.header("etag").unwrap())],
                            (number + 1).to_string().as_bytes(),
                        );
                        let reply = conn.reply();
                        match reply.status() {
                            204 => left -= 1,
                            _ => {
                                reply.problem(412, "precondition-failed");
                                refused.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        assert_eq!(node.control.get(&at).ok().text(), (WRITERS * EACH).to_string(), "{refused:?} were refused");
    }
}

#[test]
fn at_the_quota_writes_are_refused_and_the_rest_goes_on() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({ "bytes_max": 100, "keys_max": 3 }));
    let at = |key: &str| format!("/v1/buckets/b/kv/{key}");
    assert_eq!(put(&node, &at("a"), &[], &[1; 98]).status(), 204);
    assert_eq!(put(&node, &at("b"), &[], b"").status(), 204);
    let refused = put(&node, &at("b"), &[], b"1");
    refused.problem(429, "quota-exceeded");
    assert_eq!(refused.header("retry-after"), None, "waiting frees nothing");
    put(&node, "/v1/buckets/b/objects/o", &[], b"1").problem(429, "quota-exceeded");
    put(&node, "/v1/buckets/b/objects/o", &[], &[1; 101]).problem(429, "quota-exceeded");
    assert_eq!(usage(&node, "b")["entries"], json!({ "bytes": 100, "keys": 2 }));
    assert_eq!(node.control.get(&at("a")).good(), [1; 98]);
    // Less in place of more is no addition.
    assert_eq!(put(&node, &at("a"), &[], &[2; 10]).status(), 204);
    assert_eq!(put(&node, "/v1/buckets/b/objects/o", &[], b"1").status(), 201);
    put(&node, &at("c"), &[], b"").problem(429, "quota-exceeded");
    assert_eq!(delete(&node, &at("b")).status(), 204);
    assert_eq!(put(&node, &at("c"), &[], b"").status(), 204);
    assert_eq!(usage(&node, "b")["objects"], json!({ "bytes": 2, "keys": 1 }));
    check_whole(&node, "b");
    // A volatile one makes room.
    bucket(&node, "v", json!({ "durability": "volatile", "bytes_max": 100, "keys_max": 2 }));
    for key in ["a", "b", "c"] {
        assert_eq!(put(&node, &format!("/v1/buckets/v/kv/{key}"), &[], b"1").status(), 204);
    }
    assert_eq!(usage(&node, "v")["entries"], json!({ "bytes": 4, "keys": 2 }));
    node.control.get("/v1/buckets/v/kv/a").problem(404, "not-found");
    put(&node, "/v1/buckets/v/kv/a", &[], &[1; 100]).problem(429, "quota-exceeded");
    // And a bucket takes no memory that the node has not.
    put(&node, "/v1/buckets/w", &[], br#"{"durability":"volatile","bytes_max":1099511627776}"#).problem(507, "storage-full");
}

/// The next change of a feed; `None` at its end.
fn next_change(conn: &mut Conn) -> Option<Value> {
    loop {
        let line = conn.line()?;
        if line == "0" {
            return None;
        }
        if let Some(data) = line.strip_prefix("data:") {
            return Some(serde_json::from_str(data).unwrap());
        }
    }
}

#[test]
fn who_watches_is_told_every_change_under_the_prefix() {
    let node = Node::start(&[]);
    for (name, durability) in [("d", "durable"), ("v", "volatile")] {
        bucket(&node, name, json!({ "durability": durability }));
        let mut conn = node.control.connect();
        conn.request("GET", &format!("/v1/buckets/{name}/kv?watch=true&prefix=a"), &[], b"");
        assert_eq!(conn.head().header("content-type"), Some("text/event-stream"));
        let at = |key: &str| format!("/v1/buckets/{name}/kv/{key}");
        let version = |reply: Reply| reply.header("etag").unwrap().trim_matches('"').parse::<u64>().unwrap();
        let first = version(put(&node, &at("a1"), &[], b"x"));
        put(&node, &at("b"), &[], b"x");
        put(&node, &at("a1"), &[("if-none-match", "*")], b"x").problem(412, "precondition-failed");
        delete(&node, &at("a1"));
        delete(&node, &at("a1"));
        let ops = r#"{"ops":[{"op":"increment","key":"a2"},{"op":"set","key":"c","value":""},{"op":"set","key_base64":"Yf8=","value":""}]}"#;
        node.control.post(&format!("/v1/buckets/{name}/kv"), ops.as_bytes()).ok();
        assert_eq!(next_change(&mut conn).unwrap(), json!({ "key": "a1", "version": first, "deleted": false }));
        assert_eq!(next_change(&mut conn).unwrap(), json!({ "key": "a1", "deleted": true }));
        assert_eq!(next_change(&mut conn).unwrap()["key"], "a2");
        assert_eq!(next_change(&mut conn).unwrap()["key_base64"], "Yf8=");
        delete(&node, &format!("/v1/buckets/{name}"));
        assert_eq!(next_change(&mut conn), None);
    }
    node.control.get("/v1/buckets/none/kv?watch=true").problem(404, "not-found");
}

#[test]
fn a_restart_keeps_what_is_durable_and_loses_what_is_volatile() {
    let mut node = Node::start(&[]);
    for (name, durability) in [("d", "durable"), ("v", "volatile")] {
        bucket(&node, name, json!({ "durability": durability, "keys_max": 10 }));
        assert_eq!(put(&node, &format!("/v1/buckets/{name}/kv/k"), &[], b"value").status(), 204);
        assert_eq!(put(&node, &format!("/v1/buckets/{name}/objects/o"), &[("content-type", "a/b")], b"bytes").status(), 201);
    }
    let before = node.control.get("/v1/buckets/d/kv/k").ok();
    node.stop();
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    let after = node.control.get("/v1/buckets/d/kv/k").ok();
    assert_eq!((after.text(), after.header("etag")), (before.text(), before.header("etag")));
    let object = node.control.get("/v1/buckets/d/objects/o").ok();
    assert_eq!((object.text().as_str(), object.header("content-type")), ("bytes", Some("a/b")));
    // The bucket itself stays.
    assert_eq!(usage(&node, "v")["keys_max"], 10);
    node.control.get("/v1/buckets/v/kv/k").problem(404, "not-found");
    node.control.get("/v1/buckets/v/objects/o").problem(404, "not-found");
    check_whole(&node, "d");
}

#[test]
fn increments_and_batches_take_no_condition_in_their_headers() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let increment = |name: &'static str, value: &'static str, body: &[u8]| {
        node.control.request("POST", "/v1/buckets/b/kv/n?increment=1", &[(name, value)], body)
    };
    for (name, value) in [("if-match", "\"1\""), ("if-match", "*"), ("if-none-match", "*"), ("if-unmodified-since", "junk")] {
        let problem = increment(name, value, b"").problem(400, "bad-request");
        assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
        let headers = [(name, value), ("content-type", "application/json")];
        node.control.request("POST", "/v1/buckets/b/kv", &headers, b"{\"ops\": []}").problem(400, "bad-request");
    }
    let problem = increment("accept", "*/*", b"5").problem(400, "bad-request");
    assert!(problem["detail"].as_str().unwrap().contains("has no body"), "{problem}");
    assert_eq!(increment("accept", "*/*", b"").ok().json()["value"], 1);
}
