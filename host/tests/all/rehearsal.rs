//! What a function that runs in its build may reach, and what it may take there.

use crate::harness::Node;
use crate::harness::examples::{example, guest};
use crate::harness::wat::{component, handler, says, wasm};
use crate::snapshot::{deploy, done, has_snapshot, notes, number, reason};

/// A manifest of the guest `reaches`, with the node's own data port as where it reaches for.
fn reaching(node: &Node, how: &str, snapshot: &str) -> String {
    format!("[env]\nREACH = \"{how}\"\nNODE = \"{}\"\n[snapshot]\n{snapshot}\n", node.data.addr)
}

#[test]
fn a_component_in_its_build_reaches_no_network() {
    let node = Node::start(&[]);
    node.deploy_wat("other", &says("reached"), "");
    let wasm = std::fs::read(guest("reaches")).unwrap();
    // It is refused, and goes on: what it makes of that is in the snapshot.
    for (how, refused) in [("http", "ErrorCode::HttpRequestDenied"), ("socket", "permission denied")] {
        done(node.deploy("init", &wasm, &reaching(&node, how, "mode = \"required\"")));
        done(node.deploy("warmup", &wasm, &reaching(&node, "none", &format!("mode = \"required\"\nwarmup = [\"GET /{how}\"]"))));
        for _ in 0..2 {
            assert_eq!(node.data.get("/init").text(), format!("init {how}: {refused}\n"));
            assert_eq!(node.data.get("/warmup").text(), format!("init none: not told how\nrequest {how}: {refused}\n"));
        }
    }
    let starts = node.inspect("other")["usage"]["starts"].clone();
    assert!(starts.as_object().unwrap().values().all(|count| count == 0), "{starts}");
}

#[test]
fn a_component_is_initialised_for_its_snapshot_alone() {
    let node = Node::start(&[]);
    let reaches = std::fs::read(guest("reaches")).unwrap();
    done(node.deploy("off", &reaches, &reaching(&node, "http", "mode = \"off\"")));
    assert_eq!(node.data.get("/off").text(), "");
    // What no start runs is nothing that a start can fail of.
    let reply = done(node.deploy("panics", &reaches, &reaching(&node, "panic", "")));
    assert!(reason(&reply).contains("initialisation failed"), "{reply:?}");
    assert!(reason(&reply).contains("serves without its 'wizer-initialize'"), "{reply:?}");
    assert_eq!(node.data.get("/panics").text(), "");
    let takes = component(
        "(core module $n (func (export \"f\") (param i32))) (core instance $n (instantiate $n))
         (func (export \"wizer-initialize\") (param \"x\" u32) (canon lift (core func $n \"f\")))",
    );
    let told = reason(&done(node.deploy("takes", &wasm(&takes), "")));
    assert!(told.contains("'wizer-initialize' must be a function without parameters and results"), "{told}");
    // Nor is an interface of that name an initialisation.
    let instance = component("(instance $none) (export \"wizer-initialize\" (instance $none))");
    assert_eq!(notes(&done(node.deploy("instance", &wasm(&instance), ""))), [""; 0]);
}

/// A handler that calls itself `depth` times before its first request, with `values` that are alive in each call.
fn deep(depth: u32, values: usize) -> String {
    let all = |each: &dyn Fn(usize) -> String| (0..values).map(each).collect::<String>();
    let load = |at: usize| {
        format!("(local.set {} (i64.load (i32.and (i32.add (local.get 0) (i32.const {})) (i32.const 4095))))", at + 1, at * 8)
    };
    let store = |at: usize| {
        format!("(i64.store (i32.and (i32.add (local.get 0) (i32.const {})) (i32.const 4095)) (local.get {}))", at * 8, at + 1)
    };
    handler(&format!(
        "(func $deep (param i32) {} {} (if (local.get 0) (then (call $deep (i32.sub (local.get 0) (i32.const 1))))) {})
         (func (export \"hob_init\") (call $deep (i32.const {depth})))
         (func (export \"hob_handle\") (call $number (i32.const 1)))",
        all(&|_| "(local i64)".into()),
        all(&load),
        all(&store),
    ))
}

#[test]
fn initialisation_has_the_stack_of_an_invocation() {
    let node = Node::start(&[]);
    for values in [40, 1] {
        // As deep as an invocation comes, to a sixth.
        let answers = |depth: &u32| {
            done(deploy(&node, "off", &deep(*depth, values), "snapshot = 'off'"));
            node.data.get("/off").status() == 200
        };
        let depths = std::iter::successors(Some(256), |depth| Some(depth + depth / 6));
        let depth = depths.take_while(answers).last().unwrap();
        done(deploy(&node, "kept", &deep(depth, values), "snapshot = 'required'"));
        assert_eq!(number(&node, "/kept"), 1);
    }
    // Recursion without end ends there too.
    let refused = deploy(&node, "endless", &deep(u32::MAX, 1), "snapshot = 'required'").problem(422, "not-deployable");
    assert!(refused["detail"].as_str().unwrap().contains("used up its stack"), "{refused}");
}

#[test]
fn a_core_module_s_initialisation_opens_no_socket() {
    let node = Node::start(&[]);
    let imports = ["sock_accept", "sock_recv", "sock_send", "sock_shutdown"].map(|name| {
        let params = match name {
            "sock_accept" => "i32 i32 i32",
            "sock_recv" => "i32 i32 i32 i32 i32 i32",
            "sock_send" => "i32 i32 i32 i32 i32",
            _ => "i32 i32",
        };
        format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param {params}) (result i32)))")
    });
    // No descriptor is a socket: those that exist are the standard streams. It would trap if one call answered anything but EACCES.
    let call = |name: &str, rest: &str| {
        let call = format!("(call ${name} (local.get $fd) {rest})");
        format!("(if (i32.ne {call} (i32.const 2)) (then unreachable))")
    };
    let reach = [
        call("sock_accept", "(i32.const 0) (i32.const 16)"),
        call("sock_recv", "(i32.const 64) (i32.const 1) (i32.const 0) (i32.const 16) (i32.const 24)"),
        call("sock_send", "(i32.const 64) (i32.const 1) (i32.const 0) (i32.const 16)"),
        call("sock_shutdown", "(i32.const 3)"),
    ];
    let text = handler(&format!(
        "(func $reach (local $fd i32)
           (loop $more
             {}
             (local.set $fd (i32.add (local.get $fd) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $fd) (i32.const 8))))
           (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hob_init\") (call $reach))
         (func (export \"hob_handle\") (call $reach) (call $number (i32.load (i32.const 0))))",
        reach.concat()
    ));
    let text = text.replacen("(module", &format!("(module {}", imports.concat()), 1);
    let reply = done(deploy(&node, "a", &text, "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /\"]"));
    assert_eq!(notes(&reply), [""; 0]);
    assert!(has_snapshot(&node, "a"));
    assert_eq!((number(&node, "/a"), number(&node, "/a")), (3, 3));
    let said = node.logs("a").into_iter().filter(|(source, _, text)| source == "host" && text.contains("[grants] http = "));
    assert_eq!(said.count(), 1, "{:?}", node.logs("a"));
}

#[test]
fn there_is_no_call_of_another_function_to_make() {
    let node = Node::start(&[]);
    let granted = "[grants]\nfunctions = [\"resize\", \"a\"]";
    let notes = notes(&done(deploy(&node, "granted", &handler("(func (export \"hob_handle\"))"), granted)));
    assert!(notes.len() == 1 && notes[0].contains("no call from one function to another"), "{notes:?}");
    let detail = node.inspect("granted");
    assert_eq!(
        (&detail["grants"]["functions"], &detail["notes"]),
        (&serde_json::json!(["resize", "a"]), &serde_json::json!(notes))
    );
    let text = handler("(func (export \"hob_init\") (call $call)) (func (export \"hob_handle\"))");
    let text = text.replacen("(module", "(module (import \"hob1\" \"call\" (func $call))", 1);
    let refused = deploy(&node, "a", &text, granted).problem(422, "not-deployable");
    assert!(refused["detail"].as_str().unwrap().contains("'call' from 'hob1'"), "{refused}");
    // And where a snapshot is required, which would be tried first.
    let required = deploy(&node, "a", &text, &format!("snapshot = \"required\"\n{granted}")).problem(422, "not-deployable");
    assert_eq!((&required["detail"], &required["hint"]), (&refused["detail"], &refused["hint"]));
    let calls = component("(import \"hob:functions/call\" (instance (export \"call\" (func))))");
    let refused = deploy(&node, "a", &calls, "").problem(422, "not-deployable");
    assert!(refused["detail"].as_str().unwrap().contains("hob:functions/call"), "{refused}");
    node.control.get("/v1/functions/a").problem(404, "not-found");
}

#[test]
fn there_is_no_request_to_read_the_body_of() {
    let node = Node::start(&[]);
    let text = handler(
        "(func (export \"hob_init\") (drop (call $body_read (i32.const 0) (i32.const 4)))) (func (export \"hob_handle\"))",
    );
    for mode in ["auto", "required"] {
        let refused = deploy(&node, "a", &text, &format!("snapshot = \"{mode}\"")).problem(422, "not-deployable");
        assert!(refused["detail"].as_str().unwrap().contains("no request whose body could be read"), "{mode}: {refused}");
    }
}

/// A handler that does not start unless its arguments, its name first, and its variables have `len` bytes, and that answers 1.
fn particular(len: u32) -> String {
    let imports = ["args", "environ"].map(|what| {
        format!("(import \"wasi_snapshot_preview1\" \"{what}_sizes_get\" (func ${what} (param i32 i32) (result i32)))")
    });
    let text = handler(&format!(
        "(func (export \"_initialize\")
           (drop (call $args (i32.const 0) (i32.const 4)))
           (drop (call $environ (i32.const 8) (i32.const 12)))
           (if (i32.ne (i32.add (i32.load (i32.const 4)) (i32.load (i32.const 12))) (i32.const {len})) (then unreachable)))
         (func (export \"hob_handle\") (call $number (i32.const 1)))"
    ));
    text.replacen("(module", &format!("(module {}", imports.concat()), 1)
}

#[test]
fn a_start_that_looks_at_its_environment_is_tried_with_each() {
    let node = Node::start(&[]);
    // `a` and `A=1`, each with a zero behind it, are six bytes.
    let good = "[env]\nA = \"1\"\n";
    assert_eq!(notes(&done(deploy(&node, "a", &particular(6), good))), [""; 0]);
    for (name, manifest) in [("a", "args = [\"b\"]\n[env]\nA = \"1\"\n"), ("a", "[env]\nA = \"10\"\n"), ("aa", good)] {
        let refused = deploy(&node, name, &particular(6), manifest).problem(422, "not-deployable");
        assert!(refused["detail"].as_str().unwrap().contains("does not start"), "{refused}");
    }
    let builds = node.metric("hob_builds_total");
    done(deploy(&node, "a", &particular(6), good));
    assert_eq!((node.metric("hob_builds_total"), number(&node, "/a")), (builds, 1), "the same was tried");
}

#[test]
fn a_start_that_looks_at_nothing_is_tried_once() {
    let node = Node::start(&[]);
    let builds = || node.metric("hob_builds_total");
    let hello = example("hello-http").wasm;
    for (wasm, what) in [(wasm(&says("a")), "a handler"), (hello, "a component")] {
        done(node.deploy("a", &wasm, ""));
        let before = builds();
        for (name, manifest) in [("b", ""), ("b", "[env]\nA = \"1\"\n"), ("b", "args = [\"b\"]\n"), ("b", "snapshot = \"off\"\n")]
        {
            done(node.deploy(name, &wasm, manifest));
        }
        assert_eq!(builds(), before, "{what}");
        // What a start may take belongs to what was tried.
        done(node.deploy("b", &wasm, "[limits]\nmemory = \"64MiB\"\n"));
        assert_eq!(builds(), before + 1, "{what}");
    }
}

#[test]
fn a_warm_up_request_has_the_headers_of_a_request() {
    let node = Node::start(&[]);
    // Answers with the record of the first request that its memory has seen.
    let wasm = wasm(&handler(
        "(global $len (mut i32) (i32.const 0))
         (func (export \"hob_handle\")
           (if (i32.eqz (global.get $len))
             (then (global.set $len (call $request_read (i32.const 0) (i32.const 16000)))))
           (call $answer (i32.const 200) (i32.const 0) (global.get $len)))",
    ));
    let first = |manifest: &str| {
        done(node.deploy("a", &wasm, manifest));
        String::from_utf8_lossy(&node.data.request("POST", "/a?later", &[], b"abc").good()).into_owned()
    };
    let real = first("snapshot = \"off\"");
    assert!(real.contains("hostlocalhost") && real.contains("content-length3") && real.contains("later"), "{real:?}");
    let warmup = |request: &str| first(&format!("[snapshot]\nmode = \"required\"\nwarmup = [{request}]"));
    let posted = warmup("{ method = \"POST\", path = \"/\", body = \"abc\" }");
    assert!(posted.contains("hostlocalhost") && posted.contains("content-length3") && !posted.contains("later"), "{posted:?}");
    let got = warmup("{ path = \"/\", headers = { host = \"shop.example\" } }");
    assert!(got.contains("hostshop.example") && !got.contains("localhost") && !got.contains("content-length"), "{got:?}");
}

#[test]
fn the_answer_of_a_warm_up_request_is_bounded_as_any() {
    let node = Node::start(&[]);
    let streams = handler(
        "(func (export \"hob_handle\") (call $stream)
           (drop (call $body_write (i32.const 0) (i32.const 3)))
           (drop (call $body_write (i32.const 0) (i32.const 2))))",
    );
    let component = example("hello-http").wasm;
    let len = {
        done(node.deploy("component", &component, ""));
        node.data.get("/component").good().len()
    };
    for (name, wasm, len) in [("whole", wasm(&says("hello")), 5), ("streams", wasm(&streams), 5), ("component", component, len)] {
        let manifest = |limit: usize| format!("[limits]\nresponse_body = \"{limit}\"\n[snapshot]\nwarmup = [\"GET /\"]\n");
        assert_eq!(notes(&done(node.deploy(name, &wasm, &manifest(len)))), [""; 0], "{name}");
        let reason = reason(&done(node.deploy(name, &wasm, &manifest(len - 1))));
        assert!(reason.contains("GET /") && reason.contains("the function's limit"), "{name}: {reason}");
        assert!(!has_snapshot(&node, name));
    }
}

#[test]
fn what_initialisation_missed_of_a_grant_is_noted_also_where_the_grant_is_new() {
    let node = Node::start(&[]);
    let imports = r#"(module
        (import "hob1" "bucket_open" (func $bucket_open (param i32 i32) (result i32)))"#;
    let text = handler(
        "(data (i32.const 100) \"b\")
         (func (export \"hob_init\") (i32.store (i32.const 0) (call $bucket_open (i32.const 100) (i32.const 1))))
         (func (export \"hob_handle\") (call $number (i32.load (i32.const 0))))",
    );
    let text = text.replacen("(module", imports, 1);
    assert_eq!(notes(&done(deploy(&node, "a", &text, ""))), [""; 0], "nothing is granted, so nothing was missed");
    let grants = "[grants]\ndata = [{ bucket = \"b\", access = \"read\" }]\n";
    for _ in 0..2 {
        let notes = notes(&done(deploy(&node, "a", &text, grants)));
        assert!(notes.iter().any(|note| note.contains("asked for a bucket and was refused")), "{notes:?}");
    }
    assert_eq!(node.metric("hob_builds_total"), 2, "and the same is built once");
    let network = "[grants]\nhttp = [\"https://example.com\"]\n";
    assert_eq!(notes(&done(deploy(&node, "a", &text, network))), [""; 0], "it did not ask for that");
}
