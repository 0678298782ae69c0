//! What is taken as a function, and what is refused: every kind of bytes that are none, each with the right answer.

use serde_json::json;

use crate::harness::examples::guest;
use crate::harness::wat::{component, handler, handler_with, says, wasm};
use crate::harness::{Dice, Node, multipart};

/// A handler with something in every section, so that a flipped bit can hit any of them.
fn rich() -> Vec<u8> {
    wasm(&handler(
        r#"
        (type $unary (func (param i32) (result i32)))
        (table $t 8 funcref)
        (global $g (mut i32) (i32.const 7))
        (elem (i32.const 1) $double $twice)
        (data (i32.const 0) "some data of a guest")
        (func $double (param i32) (result i32) (i32.mul (local.get 0) (i32.const 2)))
        (func $twice (param i32) (result i32)
          (call_indirect (type $unary) (call_indirect (type $unary) (local.get 0) (i32.const 1)) (i32.const 1)))
        (func $sum (result i32) (local $at i32) (local $sum i32)
          (loop $more
            (local.set $sum (i32.add (local.get $sum) (i32.load8_u (local.get $at))))
            (local.set $at (i32.add (local.get $at) (i32.const 1)))
            (br_if $more (i32.lt_u (local.get $at) (i32.const 20))))
          (local.get $sum))
        (func (export "hob_handle")
          (global.set $g (call $twice (global.get $g)))
          (if (i32.eq (call $sum) (i32.const 0)) (then unreachable))
          (call $number (global.get $g)))"#,
    ))
}

/// Limits under which whatever a damaged module does is over soon.
const SOON: &str = "[limits]\ncpu = \"50ms\"\nwall = \"1s\"\nmemory = \"4MiB\"\n";

/// Damaged bytes are refused, or they are a function, and that answers: never a bug of Hob (the node looks for those itself).
#[track_caller]
fn check_damaged(node: &Node, name: &str, bytes: &[u8]) {
    let reply = node.deploy(name, bytes, SOON);
    match reply.status() {
        422 => {
            let code = reply.header("hob-error").unwrap().to_owned();
            assert!(["not-deployable", "module-over-cap", "build-over-limit"].contains(&code.as_str()), "{code}");
            reply.problem(422, &code);
        }
        200 | 201 => {
            let answer = node.data.post(&format!("/{name}"), b"input");
            assert!(matches!(answer.status(), 200..=599), "{}", answer.status());
            assert!(answer.status() != 500, "{:?} {}", answer.head, answer.text());
        }
        _ => panic!("{} {:?} {}", reply.status(), reply.head, reply.text()),
    }
}

/// Runs `check` for every number below `count`, on as many connections as builds run at once.
fn for_each(count: usize, check: impl Fn(usize) + Sync) {
    const THREADS: usize = 3;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let check = &check;
            scope.spawn(move || (thread..count).step_by(THREADS).for_each(check));
        }
    });
}

#[test]
fn truncated_modules() {
    let node = Node::start(&[]);
    let whole = rich();
    assert_eq!(node.deploy("whole", &whole, "").status(), 201);
    assert_eq!(node.data.get("/whole").good(), 28i32.to_le_bytes());
    for_each(whole.len() / 9, |step| check_damaged(&node, &format!("cut-{step}"), &whole[..step * 9]));
    let component = wasm(&component(""));
    for_each(component.len() / 9, |step| check_damaged(&node, &format!("component-{step}"), &component[..step * 9]));
}

#[test]
fn bit_flipped_modules() {
    let node = Node::start(&[]);
    let (handler, component) = (rich(), wasm(&component("")));
    for_each(320, |seed| {
        let mut dice = Dice::new(seed as u64 + 1);
        let mut bytes = if seed % 4 == 0 { component.clone() } else { handler.clone() };
        for _ in 0..=dice.below(3) {
            let at = 8 + dice.below(bytes.len() - 8);
            bytes[at] ^= 1 << dice.below(8);
        }
        check_damaged(&node, &format!("flip-{}", seed % 40), &bytes);
    });
    node.control.get("/livez").ok();
}

#[test]
fn random_bytes() {
    let node = Node::start(&[]);
    for_each(48, |seed| {
        let mut dice = Dice::new(seed as u64 + 1000);
        let mut bytes: Vec<u8> = (0..dice.below(4000)).map(|_| dice.next() as u8).collect();
        let magic: &[u8] = match seed % 3 {
            0 => b"",
            1 => b"\0asm\x01\0\0\0",
            _ => b"\0asm\x0d\0\x01\0",
        };
        bytes.splice(..0, magic.iter().copied());
        let reply = node.deploy("random", &bytes, "");
        // Eight bytes are a module too, but one without exports.
        reply.problem(422, "not-deployable");
    });
}

#[test]
fn other_files_are_named_and_refused() {
    let node = Node::start(&[]);
    node.deploy_wat("good", &says("good"), "");
    let native = std::fs::read(&node.files("artifacts")[0]).unwrap();
    let elf = std::fs::read(env!("CARGO_BIN_EXE_hob")).unwrap()[..65_536].to_vec();
    let text = says("good").into_bytes();
    let cases: [(&[u8], &str); 8] = [
        (&native, "native code"),
        (&elf, "native code"),
        (&text, "WebAssembly text"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\x03", "compressed"),
        (b"\x28\xb5\x2f\xfd\0\0\0\0\0\0", "compressed"),
        (b"#!/bin/sh\necho hello\n", "no Wasm binary"),
        (b"\0asm\x02\0\0\0", "unknown version"),
        (b"", "0 bytes"),
    ];
    for (bytes, word) in cases {
        for manifest in ["", "args = []\n"] {
            let problem = node.deploy("bad", bytes, manifest).problem(422, "not-deployable");
            assert!(problem["detail"].as_str().unwrap().contains(word), "{word}: {problem}");
            assert!(problem["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
        }
    }
    node.control.get("/v1/functions/bad").problem(404, "not-found");
    assert!(node.files("staging").is_empty());
}

/// Wizer panics at such imports, and wasmtime's validation lets the first pass.
#[test]
fn imports_of_proposals_that_do_not_run_are_named() {
    let node = Node::start(&[]);
    let exact = include_bytes!("../fuzz/corpus/modules/exact-import.wasm");
    let tag = wasm("(module (import \"a\" \"b\" (tag)) (memory (export \"memory\") 1) (func (export \"hob_handle\")))");
    for (module, word) in [(&exact[..], "custom-descriptors"), (&tag, "exceptions")] {
        // The same behind a component: a core module of its own.
        let len = [(module.len() & 0x7f | 0x80) as u8, (module.len() >> 7) as u8];
        let component = [&std::fs::read(guest("counter2")).unwrap()[..], &[1], &len, module].concat();
        for (wasm, manifest) in [(module, ""), (module, "snapshot = 'required'"), (&component, "[snapshot]\nwarmup = ['GET /']")]
        {
            let problem = node.deploy("bad", wasm, manifest).problem(422, "not-deployable");
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.starts_with("a module imports a") && detail.contains(word), "{manifest}: {problem}");
            assert!(problem["hint"].as_str().unwrap().contains("build it without"), "{problem}");
        }
    }
}

#[test]
fn content_codings_and_types() {
    let node = Node::start(&[]);
    let good = wasm(&says("good"));
    let put = |headers: &[(&str, &str)]| node.control.request("PUT", "/v1/functions/a", headers, &good);
    put(&[("content-type", "application/wasm"), ("content-encoding", "gzip")]).problem(415, "unsupported-media");
    put(&[("content-type", "application/json")]).problem(415, "unsupported-media");
    put(&[("content-type", "multipart/form-data")]).problem(400, "bad-request");
    assert_eq!(put(&[("content-type", "application/octet-stream")]).status(), 201);
    assert_eq!(put(&[]).status(), 200);
}

#[test]
fn multipart_forms() {
    let node = Node::start(&[]);
    let good = wasm(&says("good"));
    let put = |parts: &[(&str, &[u8])]| {
        let (kind, body) = multipart(parts);
        node.control.request("PUT", "/v1/functions/a", &[("content-type", &kind)], &body)
    };
    put(&[("manifest", b"")]).problem(400, "bad-request");
    put(&[("wasm", &good), ("wasm", &good)]).problem(400, "bad-request");
    put(&[("wasm", &good), ("readme", b"x")]).problem(400, "bad-request");
    put(&[("manifest", b"\xff\xfe"), ("wasm", &good)]).problem(400, "bad-manifest");
    put(&[("manifest", &vec![b'#'; 1 << 20]), ("wasm", &good)]).problem(400, "bad-manifest");
    assert_eq!(put(&[("wasm", &good), ("manifest", b"args = ['x']")]).status(), 201);
    assert_eq!(node.inspect("a")["args"], json!(["x"]));
}

#[test]
fn manifests_that_cannot_be_used() {
    let node = Node::start(&[]);
    let good = wasm(&says("good"));
    for (manifest, word) in [
        ("nmae = 'a'", "did you mean 'name'"),
        ("[limits]\nmemroy = '1MiB'", "did you mean 'memory'"),
        ("[limits]\nmemory = '1MiBs'", "bytes"),
        ("[limits]\nmemory = '5GiB'", "4GiB"),
        ("[limits]\nconcurrency = 0", "concurrency"),
        ("name = 'other'", "other"),
        ("name = 'A'", "name"),
        ("route = 'shop'", "route"),
        ("route = '/a/../b'", "route"),
        ("route = [", "TOML"),
        ("env = 3", "env"),
    ] {
        let problem = node.deploy("a", &good, manifest).problem(400, "bad-manifest");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{manifest}: {problem}");
    }
}

#[test]
fn names() {
    let node = Node::start(&[]);
    let good = wasm(&says("good"));
    let long = "a".repeat(64);
    for bad in ["A", "a_b", "-a", "a-", "a.b", "%61%2f", "%20", long.as_str()] {
        node.deploy(bad, &good, "").problem(400, "bad-request");
        node.control.get(&format!("/v1/functions/{bad}")).problem(400, "bad-request");
        node.data.get(&format!("/{bad}")).problem(400, "bad-request");
    }
    for name in ["a", "0", "a-b", "a--b", &long[1..]] {
        assert_eq!(node.deploy(name, &good, "").status(), 201, "{name}");
        assert_eq!(node.data.get(&format!("/{name}")).good(), b"good");
    }
    node.data.get("/unknown").problem(404, "not-found");
    node.data.get("/").problem(404, "not-found");
    for target in ["", "/revisions", "/logs", "/invoke", "/invoke/x"] {
        node.control.get(&format!("/v1/functions/unknown{target}")).problem(404, "not-found");
    }
    node.control.request("DELETE", "/v1/functions/unknown", &[], b"").problem(404, "not-found");
    node.control.post("/v1/functions/unknown/rollback", b"").problem(404, "not-found");
}

#[test]
fn modules_that_are_no_function_are_told_what_to_do() {
    let node = Node::start(&[]);
    let memory = "(memory (export \"memory\") 1)";
    let entry = "(func (export \"hob_handle\"))";
    let (preview1, start) = ("\"wasi_snapshot_preview1\"", "(func (export \"_start\"))");
    for (text, words) in [
        ("(module)".to_owned(), &["exports nothing"][..]),
        ("(module (func (export \"run\")))".into(), &["'run'", "hob_handle"]),
        (format!("(module {entry})"), &["memory"]),
        (format!("(module {memory} (func (export \"hob_handle\") (param i32)))"), &["without parameters"]),
        (format!("(module {memory} (global (export \"hob_handle\") i32 (i32.const 1)))"), &["hob_handle"]),
        (format!("(module (import \"hob2\" \"respond\" (func (param i32 i32))) {memory} {entry})"), &["'hob2'", "'hob1'"]),
        (format!("(module (import \"hob99\" \"x\" (func)) {memory} {entry})"), &["'hob99'", "'hob1'"]),
        (format!("(module (import \"hob1\" \"reply\" (func)) {memory} {entry})"), &["'reply'", "'hob1'"]),
        (format!("(module (import \"hob1\" \"respond\" (func)) {memory} {entry})"), &["another type"]),
        (format!("(module (import \"acme\" \"db\" (func)) {memory} {entry})"), &["'db'", "'acme'"]),
        (format!("(module (import \"env\" \"memory\" (memory 1)) {memory} {entry})"), &["'memory'", "'env'"]),
        (format!("(module (import \"wbg\" \"x\" (func)) {memory} {entry})"), &["wasm-bindgen"]),
        (
            format!("(module {memory} {entry} (func (export \"_initialize\") (result i32) i32.const 0))"),
            &["'_initialize'", "without"],
        ),
        ("(module (func (export \"_start\") (param i32)))".into(), &["'_start'", "without parameters"]),
        ("(module (func (export \"_start\") (result i32) i32.const 0))".into(), &["'_start'", "without parameters"]),
        ("(module (memory (export \"_start\") 1))".into(), &["'_start'", "without parameters"]),
        (format!("(module (import {preview1} \"proc_exit\" (func (param i64))) {start})"), &["another type", "proc_exit"]),
        (format!("(module (import {preview1} \"proc_exit\" (memory 1)) {start})"), &["another type", "proc_exit"]),
        (format!("(module (import {preview1} \"fork\" (func)) {start})"), &["'fork'", "'wasi_snapshot_preview1'"]),
        (format!("(module (memory i64 1) {memory} {entry})"), &["not valid here"]),
        (format!("(module (memory 1 1 shared) {memory} {entry})"), &["not valid here"]),
        // References to functions of a type, by their own and as the collector of garbage would have them.
        (format!("(module (type $t (func)) (func (param (ref $t))) {memory} {entry})"), &["not valid here"]),
        (
            format!("(module (type $t (func)) (func (param (ref null $t)) (call_ref $t (local.get 0))) {memory} {entry})"),
            &["not valid here"],
        ),
        (format!("(module (func (param (ref func))) {memory} {entry})"), &["not valid here"]),
    ] {
        let problem = node.deploy("bad", &wasm(&text), "").problem(422, "not-deployable");
        for word in words {
            assert!(problem["detail"].as_str().unwrap().contains(word), "{text}: {problem}");
        }
        assert!(problem["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
    }
}

#[test]
fn components_that_are_no_function_are_told_what_to_do() {
    let node = Node::start(&[]);
    assert_eq!(node.deploy("good", &wasm(&component("")), "").status(), 201);
    assert_eq!(node.data.get("/good").good(), b"");
    let unknown =
        component("").replace("(component\n", "(component (import \"acme:db/query@1.0.0\" (instance (export \"q\" (func))))\n");
    let empty = |name: &str| format!("(component (instance $i) (export \"{name}\" (instance $i)))");
    for (text, words) in [
        (unknown, &["acme:db/query"][..]),
        ("(component)".into(), &["exports nothing"]),
        (empty("acme:db/query@1.0.0"), &["acme:db/query"]),
        (empty("wasi:http/incoming-handler@0.1.0"), &["0.1.0"]),
        // The right names with nothing behind them.
        (empty("wasi:cli/run@0.2.0"), &["run"]),
        (empty("wasi:cli/run@0.3.0"), &["run"]),
        (empty("wasi:http/incoming-handler@0.2.0"), &["handle"]),
        (empty("wasi:http/handler@0.3.0"), &["handle"]),
    ] {
        let problem = node.deploy("bad", &wasm(&text), "").problem(422, "not-deployable");
        for word in words {
            assert!(problem["detail"].as_str().unwrap().contains(word), "{text}: {problem}");
        }
        assert!(problem["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
    }
}

/// Text of a component that exports `interface`, whose only function `name` has the signature `ty` and is never to run.
fn typed(types: &str, interface: &str, name: &str, ty: &str) -> String {
    // Every signature here is lowered to at most two numbers in and one out.
    let params = "i32 ".repeat(ty.matches("(param").count());
    let result = if ty.contains("(result") { "(result i32)" } else { "" };
    format!(
        r#"(component
  {types}
  (core module $m (func (export "f") (param {params}) {result} unreachable))
  (core instance $i (instantiate $m))
  (func $f {ty} (canon lift (core func $i "f")))
  (instance $e (export "{name}" (func $f)))
  (export "{interface}" (instance $e)))"#
    )
}

#[test]
fn entries_of_another_type_are_refused() {
    let node = Node::start(&[]);
    const HTTP02: &str = r#"(import "wasi:http/types@0.2.0" (instance $types
        (export "incoming-request" (type (sub resource))) (export "response-outparam" (type (sub resource)))))
      (alias export $types "incoming-request" (type $request)) (alias export $types "response-outparam" (type $out))"#;
    const HTTP03: &str = r#"(import "wasi:http/types@0.3.0" (instance $types
        (export "request" (type (sub resource))) (export "response" (type (sub resource)))))
      (alias export $types "request" (type $request)) (alias export $types "response" (type $response))"#;
    let good = "(param \"request\" (own $request)) (param \"response-out\" (own $out))";
    node.deploy_wat("good", &typed(HTTP02, "wasi:http/incoming-handler@0.2.0", "handle", good), "");
    node.data.get("/good").problem(502, "guest-trap");
    for (types, interface, name, ty) in [
        ("", "wasi:cli/run@0.2.0", "run", "(result s32)"),
        ("", "wasi:cli/run@0.2.99", "run", ""),
        ("", "wasi:cli/run@0.2.0", "run", "(param \"a\" s32) (result (result))"),
        ("", "wasi:cli/run@0.3.0", "run", "(result s32)"),
        ("", "wasi:cli/run@0.3.7", "run", ""),
        ("", "wasi:http/incoming-handler@0.2.0", "handle", ""),
        ("", "wasi:http/incoming-handler@0.2.4", "handle", "(param \"a\" s32) (param \"b\" s32)"),
        (HTTP02, "wasi:http/incoming-handler@0.2.0", "handle", "(param \"request\" (own $request))"),
        // Request and response the other way round.
        (HTTP02, "wasi:http/incoming-handler@0.2.0", "handle", "(param \"a\" (own $out)) (param \"b\" (own $request))"),
        ("", "wasi:http/handler@0.3.0", "handle", "(param \"a\" s32) (result s32)"),
        (HTTP03, "wasi:http/handler@0.3.0", "handle", "(param \"a\" (own $request)) (result (own $response))"),
    ] {
        let problem = node.deploy("bad", &wasm(&typed(types, interface, name, ty)), "").problem(422, "not-deployable");
        let detail = problem["detail"].as_str().unwrap();
        let stem = interface.split('@').next().unwrap();
        assert!(detail.contains(&format!("'{name}' has another type")) && detail.contains(stem), "{interface} {ty}: {problem}");
        assert!(problem["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
    }
}

#[test]
fn imports_that_cannot_be_linked_are_told_by_their_interface() {
    let node = Node::start(&[]);
    for (interface, item) in [
        ("acme:db/query@1.0.0", "(export \"q\" (func))"),
        ("fermyon:spin/key-value@2.0.0", "(export \"open\" (func))"),
        // A known interface with a function of another type, or one that it does not have.
        ("wasi:random/random@0.2.0", "(export \"get-random-u64\" (func (result u32)))"),
        ("wasi:random/random@0.2.0", "(export \"get-luck\" (func))"),
        ("wasi:http/types@0.2.0", "(export \"cookie\" (type (sub resource)))"),
        ("wasi:keyvalue/store@0.2.0", "(export \"open\" (func))"),
        ("wasi:random/random@0.3.0", "(export \"get-random-u64\" (func (result u32)))"),
    ] {
        let text = component("").replace("(component\n", &format!("(component (import \"{interface}\" (instance {item}))\n"));
        let problem = node.deploy("bad", &wasm(&text), "").problem(422, "not-deployable");
        assert!(problem["detail"].as_str().unwrap().contains(interface), "{problem}");
        assert!(problem["hint"].as_str().unwrap().contains("wasi:http 0.2 and 0.3"), "{problem}");
    }
}

#[test]
fn initial_memory_past_the_limit_is_refused_at_deploy() {
    let node = Node::start(&[]);
    let of = |first: u32, second: u32| {
        let memories = format!("(memory (export \"memory\") {first}) (memory {second})");
        wasm(&handler_with(&memories, "(func (export \"hob_handle\") (call $number (memory.size)))"))
    };
    let limit = "[limits]\nmemory = \"1MiB\"\n";
    let problem = node.deploy("a", &of(8, 9), limit).problem(422, "not-deployable");
    assert!(problem["hint"].as_str().unwrap().contains("memory"), "{problem}");
    assert_eq!(node.deploy("a", &of(8, 8), limit).status(), 201);
    assert_eq!(node.data.get("/a").good(), 8i32.to_le_bytes());
    node.deploy("b", &of(65_536, 1), "[limits]\nmemory = \"4GiB\"\n").problem(422, "not-deployable");
    assert_eq!(node.deploy("b", &of(65_535, 1), "[limits]\nmemory = \"4GiB\"\n").status(), 201);
    assert_eq!(node.data.get("/b").good(), 65_535i32.to_le_bytes());
}
