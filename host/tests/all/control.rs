//! The control port beside deploys: logs, metrics, the node's state, and the description of it all.

use serde_json::Value;

use crate::front::answers_with;
use crate::harness::http::{Conn, Reply};
use crate::harness::wat::{command, does, handler, says};
use crate::harness::{Node, eventually};

/// A handler that logs the request's body at the level info, and answers.
fn logs() -> String {
    handler(
        "(func (export \"hob_handle\") (local $len i32)
           (local.set $len (call $request_read (i32.const 0) (i32.const 30000)))
           (call $log (i32.const 2) (i32.sub (local.get $len) (i32.load (i32.const 12))) (i32.load (i32.const 12)))
           (call $number (i32.const 0)))",
    )
}

#[test]
fn the_tail_of_a_log() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &logs(), "");
    let mut ids = Vec::new();
    for number in 0..5 {
        let reply = node.data.post("/a", format!("entry {number}").as_bytes()).ok();
        ids.push(reply.header("hob-invocation-id").unwrap().to_owned());
    }
    let tail = |query: &str| -> Vec<Value> {
        let list = node.control.get(&format!("/v1/functions/a/logs{query}")).ok().json();
        list["items"].as_array().unwrap().clone()
    };
    let all = tail("");
    assert_eq!(all.len(), 5);
    for (number, entry) in all.iter().enumerate() {
        assert_eq!((&entry["text"], &entry["seq"]), (&format!("entry {number}").into(), &number.into()));
        assert_eq!((&entry["source"], &entry["level"], &entry["revision"]), (&"log".into(), &"info".into(), &1.into()));
        assert_eq!(entry["invocation"], ids[number].as_str());
        assert!(entry["time_ms"].as_u64().is_some_and(|time| time > 1_700_000_000_000), "{entry}");
    }
    assert_eq!(tail("?tail=2"), all[3..]);
    assert_eq!(tail("?tail=0"), [Value::Null; 0]);
    // The log belongs to the function and not to its revision.
    node.deploy_wat("a", &says("new"), "");
    assert_eq!(tail("").len(), 5);
    node.control.get("/v1/functions/a/logs?tail=x").problem(400, "bad-request");
}

/// The next entry of a feed of server-sent events.
fn next_event(conn: &mut Conn) -> Value {
    loop {
        let line = conn.line().expect("the feed goes on");
        if let Some(data) = line.strip_prefix("data:") {
            return serde_json::from_str(data).unwrap();
        }
    }
}

#[test]
fn following_a_log() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &logs(), "");
    node.data.post("/a", b"before").ok();
    let mut conn = node.control.connect();
    conn.request("GET", "/v1/functions/a/logs?follow=true", &[], b"");
    let head = conn.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    assert_eq!(next_event(&mut conn)["text"], "before");
    for text in ["first", "second"] {
        node.data.post("/a", text.as_bytes()).ok();
        assert_eq!(next_event(&mut conn)["text"], text);
    }
    // It goes on over a deploy, and ends with the function.
    node.deploy_wat("a", &logs().replace("(i32.const 2)", "(i32.const 0)"), "");
    node.data.post("/a", b"third").ok();
    let entry = next_event(&mut conn);
    assert_eq!((&entry["text"], &entry["level"], &entry["revision"]), (&"third".into(), &"error".into(), &2.into()));
    assert_eq!(node.control.request("DELETE", "/v1/functions/a", &[], b"").status(), 204);
    while conn.line().is_some_and(|line| line != "0") {}
}

#[test]
fn what_guests_write_is_one_line_an_entry() {
    let node = Node::start(&[]);
    let writes = command(
        "(data (i32.const 0) \"one\\ntwo\\r\\n\\nthree\\00\\ff\\1b[31m\\nlast\")
         (func (export \"_start\")
           (call $write (i32.const 2) (i32.const 0) (i32.const 2))
           (call $write (i32.const 2) (i32.const 2) (i32.const 25)))",
    );
    node.deploy_wat("a", &writes, "");
    node.data.get("/a").ok();
    eventually("the last line came at the end", || node.logs("a").len() == 4);
    let logs = node.logs("a");
    assert_eq!(logs[0], ("stderr".into(), "warn".into(), "one".into()));
    assert_eq!(logs[1].2, "two");
    assert!(logs[2].2.starts_with("three") && !logs[2].2.contains('\n'), "{logs:?}");
    assert_eq!(logs[3].2, "last");
    // Standard output of a handler goes to its log as well.
    let import = "(import \"wasi_snapshot_preview1\" \"fd_write\" (func $fd_write (param i32 i32 i32 i32) (result i32)))";
    let prints = does(
        "(i64.store (i32.const 0) (i64.const 0x0000000500000010)) (i64.store (i32.const 16) (i64.const 0x0a64726f77))
         (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
         (call $number (i32.const 0))",
    );
    let prints = prints.replacen("(module", &format!("(module {import}"), 1);
    node.deploy_wat("b", &prints, "");
    node.data.get("/b").ok();
    eventually("it is there", || node.logs("b") == [("stdout".to_owned(), "info".to_owned(), "word".to_owned())]);
}

#[test]
fn no_guest_writes_to_the_node_s_log() {
    let mut node = Node::start(&[]);
    let import = "(import \"wasi_snapshot_preview1\" \"sock_shutdown\" (func $sock_shutdown (param i32 i32) (result i32)))";
    let calls = does(
        "(local $n i32)
         (loop $more
           (drop (call $sock_shutdown (i32.const 1) (i32.const 0)))
           (local.set $n (i32.add (local.get $n) (i32.const 1)))
           (br_if $more (i32.lt_u (local.get $n) (i32.const 100))))
         (call $number (i32.const 0))",
    );
    node.deploy_wat("a", &calls.replacen("(module", &format!("(module {import}"), 1), "");
    node.data.get("/a").ok();
    node.stop();
    assert!(!node.stderr().contains("sock_shutdown"), "{}", node.stderr());
}

#[test]
fn a_log_is_a_ring() {
    let node = Node::start(&["logs.function_bytes=4KiB"]);
    node.deploy_wat("a", &logs(), "");
    let mut conn = node.data.connect();
    for number in 0..100 {
        conn.request("POST", "/a", &[], format!("{number} {}", "x".repeat(100)).as_bytes());
        conn.reply().ok();
    }
    let list = node.control.get("/v1/functions/a/logs?tail=1000").ok().json();
    let items = list["items"].as_array().unwrap();
    assert!((10..=40).contains(&items.len()), "{}", items.len());
    assert_eq!(items.last().unwrap()["seq"], 99);
}

#[test]
fn the_node_itself() {
    let node = Node::start(&[]);
    assert_eq!(node.control.get("/livez").ok().text().lines().next(), Some("ok"));
    assert_eq!(node.control.get("/readyz").ok().text().lines().next(), Some("ok"));
    node.control.get("/nothing").problem(404, "not-found");
    node.control.get("/v1").problem(404, "not-found");
    node.control.request("POST", "/livez", &[], b"").problem(405, "method-not-allowed");
    node.control.request("PATCH", "/v1/functions/a", &[], b"").problem(405, "method-not-allowed");
    // The data port has none of it.
    node.data.get("/livez").problem(404, "not-found");
    node.data.get("/v1/functions").problem(404, "not-found");
    let errors = node.control.get("/docs/errors").ok().text();
    for code in hob::fault::Code::ALL {
        assert!(errors.contains(&format!("id=\"{code}\"")), "{code}");
    }
}

#[test]
fn web_pages_are_kept_out() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    let send = |headers: &str| {
        let mut conn = node.control.connect();
        conn.send(format!("GET /v1/functions HTTP/1.1\r\n{headers}\r\n"));
        conn.reply()
    };
    let (own, port) = (node.control.addr, node.control.addr.port());
    for good in [
        format!("host: {own}"),
        format!("host: localhost:{port}"),
        format!("host: {own}\r\norigin: http://{own}\r\nsec-fetch-site: same-origin"),
        format!("host: {own}\r\nsec-fetch-site: none"),
    ] {
        send(&format!("{good}\r\n")).ok();
    }
    for bad in [
        "host: evil.example".into(),
        "host: localhost.evil.example".into(),
        "host: localhost\r\norigin: http://evil.example".into(),
        "host: localhost\r\norigin: http://localhost:8080".into(),
        "host: localhost\r\norigin: null".into(),
        format!("host: {own}\r\norigin: https://{own}"),
        format!("host: {own}\r\nsec-fetch-site: same-site"),
        format!("host: {own}\r\nsec-fetch-site: cross-site"),
    ] {
        send(&format!("{bad}\r\n")).problem(403, "forbidden");
    }
    // A page that a function answered with would lock the operator out: what it sends so needs no leave of the port.
    let body = r#"{"name":"mine","scopes":["admin"]}"#;
    let mut conn = node.control.connect();
    conn.send(format!("POST /v1/tokens HTTP/1.1\r\nhost: {own}\r\norigin: http://{}\r\n", node.data.addr));
    conn.send(format!("content-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    conn.reply().problem(403, "forbidden");
    // No token was made, so none is asked for.
    node.control.get("/v1/functions").ok();
    // Functions are for everybody, under any name.
    let mut conn = node.data.connect();
    conn.send("GET /a HTTP/1.1\r\nhost: shop.example\r\norigin: http://evil.example\r\n\r\n");
    conn.reply().ok();
}

#[test]
fn pages_of_functions_are_none_of_the_control_port() {
    let node = Node::start(&[]);
    let own = [
        ("content-security-policy", "default-src *"),
        ("x-content-type-options", "sniff"),
        ("cross-origin-resource-policy", "cross-origin"),
    ];
    node.deploy_wat("bare", &answers_with(200, &[("content-type", "text/html")], "<p>"), "");
    node.deploy_wat("page", &answers_with(200, &[&own[..], &own].concat(), "<p>"), "");
    node.deploy_wat("traps", &does("unreachable"), "");
    let harmless = ["sandbox", "nosniff", "same-origin"];
    for (name, status) in [("bare", 200), ("page", 200), ("traps", 502)] {
        let reply = node.control.get(&format!("/v1/functions/{name}/invoke/a"));
        assert_eq!(reply.status(), status);
        for ((header, _), expected) in own.iter().zip(harmless) {
            let said: Vec<_> = reply.head.headers.iter().filter(|(have, _)| have == header).collect();
            assert_eq!(said, [&((*header).to_owned(), expected.to_owned())], "{name}");
        }
    }
    // The data port is a function's own.
    assert_eq!(node.data.get("/page").ok().header("content-security-policy"), Some("default-src *"));
    assert_eq!(node.data.get("/bare").ok().header("content-security-policy"), None);
}

#[test]
fn the_metrics() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    node.deploy_wat("traps", &does("unreachable"), "");
    for _ in 0..3 {
        node.data.get("/a").ok();
    }
    node.data.get("/traps").problem(502, "guest-trap");
    let reply = node.control.get("/metrics").ok();
    assert!(reply.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = reply.text();
    assert!(text.ends_with("# EOF\n"), "{text}");
    assert_eq!(node.metric("hob_starts_total{start=\"resident\"}"), 3);
    assert_eq!((node.metric("hob_functions"), node.metric("hob_templates")), (2, 2));
    assert_eq!((node.metric("hob_deploys_total"), node.metric("hob_builds_total")), (2, 2));
    assert_eq!((node.faults("guest-trap"), node.faults("internal")), (1, 0));
    for phase in ["queue", "instantiate", "run"] {
        assert_eq!(node.metric(&format!("hob_phase_seconds_count{{start=\"resident\",phase=\"{phase}\"}}")), 3);
    }
    // What a resident start has no part of is not counted.
    let text = node.control.get("/metrics").ok().text();
    assert!(!text.contains("start=\"resident\",phase=\"load\"") && !text.contains("phase=\"verify\""), "{text}");
    assert_eq!(node.metric("hob_function_starts_total{function=\"default/a\",start=\"resident\"}"), 3);
    assert_eq!(node.metric("hob_function_start_seconds_count{function=\"default/a\",start=\"resident\"}"), 3);
    // It never answered, and used time all the same; it began on no rung that counts.
    assert!(text.contains("hob_function_cpu_seconds_total{function=\"default/traps\"}"), "{text}");
    assert!(!text.contains("hob_function_starts_total{function=\"default/traps\""), "{text}");
    let usage = &node.inspect("a")["usage"];
    let times = &usage["start_times"]["resident"];
    assert!(times["p50_ms"].as_f64().unwrap() > 0.0 && times["p99_ms"].as_f64() >= times["p50_ms"].as_f64(), "{usage}");
    assert!(["queue", "instantiate", "run"].iter().all(|phase| times["mean_ms"][phase].as_f64().unwrap() > 0.0), "{usage}");
    assert!(usage["start_times"]["stored"].is_null() && times["mean_ms"]["load"].is_null(), "{usage}");
    assert_eq!((&usage["starts"]["resident"], &usage["memory_bytes_max"]), (&3.into(), &65_536.into()));
}

#[test]
fn every_refusal_is_counted_once_by_its_code() {
    let node = Node::start(&[]);
    node.deploy_wat("traps", &does("unreachable"), "");
    let foreign = || {
        let mut conn = node.control.connect();
        conn.send("GET /livez HTTP/1.1\r\nhost: example.com\r\n\r\n");
        conn.reply()
    };
    let get = |target: &str| node.control.get(target);
    let cases: [(&str, u16, &dyn Fn() -> Reply); 9] = [
        ("not-found", 404, &|| get("/v1/functions/none")),
        ("not-found", 404, &|| get("/v1/nothing")),
        ("not-found", 404, &|| get("/v1/functions/none/invoke")),
        ("not-found", 404, &|| node.data.get("/none")),
        ("bad-request", 400, &|| get("/v1/functions/NONE")),
        ("method-not-allowed", 405, &|| node.control.post("/v1/functions", b"")),
        ("forbidden", 403, &foreign),
        ("not-deployable", 422, &|| node.deploy("a", b"no module at all", "")),
        ("guest-trap", 502, &|| get("/v1/functions/traps/invoke")),
    ];
    for (code, status, ask) in cases {
        let before = node.faults(code);
        ask().problem(status, code);
        assert_eq!(node.faults(code), before + 1, "{code}");
    }
}

/// In the order of their names.
const METHODS: [&str; 7] = ["delete", "get", "head", "options", "patch", "post", "put"];

/// Every route of the control port, and its methods in the order of their names.
const ROUTES: &[(&str, &[&str])] = &[
    ("/v1/functions", &["get"]),
    ("/v1/functions/{name}", &["delete", "get", "put"]),
    ("/v1/functions/{name}/revisions", &["get"]),
    ("/v1/functions/{name}/rollback", &["post"]),
    ("/v1/functions/{name}/logs", &["get"]),
    ("/v1/functions/{name}/invoke", &METHODS),
    ("/v1/functions/{name}/invoke/{path}", &METHODS),
    ("/v1/buckets", &["get"]),
    ("/v1/buckets/{name}", &["delete", "get", "put"]),
    ("/v1/buckets/{name}/scrub", &["post"]),
    ("/v1/buckets/{name}/kv", &["get", "post"]),
    ("/v1/buckets/{name}/kv-get", &["post"]),
    ("/v1/buckets/{name}/kv/{key}", &["delete", "get", "head", "post", "put"]),
    ("/v1/buckets/{name}/objects", &["get"]),
    ("/v1/buckets/{name}/objects/{key}", &["delete", "get", "head", "put"]),
    ("/v1/tokens", &["get", "post"]),
    ("/v1/tokens/{name}", &["delete"]),
    ("/v1/tenants", &["get"]),
    ("/v1/tenants/{name}", &["delete", "get", "patch", "put"]),
    ("/v1/keys", &["get"]),
    ("/v1/keys/{name}", &["delete", "put"]),
    ("/v1/secrets", &["get"]),
    ("/v1/secrets/{name}", &["delete", "put"]),
    ("/v1/audit", &["get"]),
    ("/v1/usage", &["get"]),
    ("/v1/node", &["get"]),
    ("/livez", &["get"]),
    ("/readyz", &["get"]),
    ("/metrics", &["get"]),
];

#[test]
fn the_description_lists_every_route() {
    let node = Node::start(&[]);
    let reply = node.control.get("/openapi.json").ok();
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let description = reply.json();
    let paths = description["paths"].as_object().unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for &(path, methods) in ROUTES {
        let operations = paths[path].as_object().unwrap();
        assert_eq!(operations.keys().map(String::as_str).collect::<Vec<_>>(), methods, "{path}");
        for (method, operation) in operations {
            assert!(operation["operationId"].as_str().is_some_and(|id| ids.insert(id)), "{method} {path}: {operation}");
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("default"), "{method} {path}");
            for (status, response) in responses {
                assert!(response["description"].as_str().is_some_and(|text| !text.is_empty()), "{method} {path} {status}");
                // As it comes, and as every refusal does.
                let is_problem =
                    response["content"]["application/problem+json"]["schema"]["$ref"] == "#/components/schemas/Problem";
                // 304 says that there is nothing to say.
                assert_eq!(is_problem, !status.starts_with('2') && status != "304", "{method} {path} {status}: {response}");
            }
        }
    }
    data_is_described_as_it_is(&node, paths);
    let upload = paths["/v1/functions/{name}"]["put"]["requestBody"]["content"].as_object().unwrap();
    assert!(upload.contains_key("application/wasm") && upload.contains_key("multipart/form-data"), "{upload:?}");
    let logs = paths["/v1/functions/{name}/logs"]["get"]["responses"]["200"]["content"].as_object().unwrap();
    assert_eq!(logs.keys().collect::<Vec<_>>(), ["application/json", "text/event-stream"]);
    assert_eq!(paths.len(), ROUTES.len(), "{:?}", paths.keys());
    // What is described is there: no route answers that it does not exist.
    node.deploy_wat("a", &says("a"), "");
    crate::identity::tenant(&node, "a", &[]);
    for kind in ["kv", "objects"] {
        assert!(crate::buckets::put(&node, &format!("/v1/buckets/a/{kind}/x"), &[], b"x").status() < 300);
    }
    for (path, _) in ROUTES {
        let target = path.replace("{name}", "a").replace("{path}", "x").replace("{key}", "x");
        assert!(node.control.get(&target).status() != 404, "{target}");
    }
    let invoke = &description["paths"]["/v1/functions/{name}/invoke/{path}"]["post"];
    assert!(invoke["parameters"].as_array().unwrap().iter().any(|parameter| parameter["name"] == "hob-start"), "{invoke}");
    for schema in [
        "FunctionInfo",
        "FunctionDetail",
        "Problem",
        "LogList",
        "RevisionList",
        "BucketInfo",
        "EntryList",
        "ObjectInfo",
        "BatchRequest",
        "GetManyInfo",
    ] {
        assert!(description["components"]["schemas"][schema].is_object(), "{schema}");
    }
}

/// The headers of answers about data, the conditions that are taken and the refusals that are possible. Makes the bucket `a`.
#[track_caller]
fn data_is_described_as_it_is(node: &Node, paths: &serde_json::Map<String, Value>) {
    const OBJECT: &str = "/v1/buckets/{name}/objects/{key}";
    const ENTRY: &str = "/v1/buckets/{name}/kv/{key}";
    crate::buckets::bucket(node, "a", serde_json::json!({}));
    let answers = [
        (OBJECT, "put", crate::buckets::put(node, "/v1/buckets/a/objects/y?ttl=1h", &[("hob-meta-by", "Ana")], b"y")),
        (OBJECT, "get", node.control.get("/v1/buckets/a/objects/y")),
        (OBJECT, "head", node.control.request("HEAD", "/v1/buckets/a/objects/y", &[], b"")),
        (ENTRY, "put", crate::buckets::put(node, "/v1/buckets/a/kv/y?ttl=1h", &[], b"y")),
        (ENTRY, "get", node.control.get("/v1/buckets/a/kv/y")),
        (ENTRY, "head", node.control.request("HEAD", "/v1/buckets/a/kv/y", &[], b"")),
    ];
    for (path, method, reply) in answers {
        let described = &paths[path][method]["responses"][reply.status().to_string()]["headers"];
        for name in ["etag", "last-modified", "repr-digest", "hob-version", "hob-expires-ms", "hob-meta-by"] {
            if reply.header(name).is_some() {
                assert!(described[name.replace("-by", "-NAME")].is_object(), "{method} {path} {name}: {described}");
            }
        }
    }
    for (path, method, header) in [
        (OBJECT, "get", "if-modified-since"),
        (OBJECT, "get", "if-unmodified-since"),
        (OBJECT, "put", "if-unmodified-since"),
        (OBJECT, "delete", "if-unmodified-since"),
        (OBJECT, "put", "repr-digest"),
        (OBJECT, "put", "hob-meta-NAME"),
        (ENTRY, "head", "if-none-match"),
    ] {
        let mut parameters = paths[path][method]["parameters"].as_array().unwrap().iter();
        assert!(
            parameters.any(|parameter| parameter["name"] == header && parameter["in"] == "header"),
            "{method} {path} {header}"
        );
    }
    for (path, method, statuses) in [
        ("/v1/buckets/{name}", "put", &["413", "429", "507"][..]),
        (ENTRY, "put", &["413", "429", "507"]),
        (OBJECT, "put", &["413", "429", "502", "504", "507"]),
        (OBJECT, "get", &["416", "502", "503", "504"]),
        (OBJECT, "head", &["502", "504"]),
        (OBJECT, "delete", &["502", "504"]),
        ("/v1/buckets/{name}/objects", "get", &["502", "504"]),
    ] {
        for status in statuses {
            assert!(paths[path][method]["responses"][status].is_object(), "{method} {path} {status}");
        }
    }
}
