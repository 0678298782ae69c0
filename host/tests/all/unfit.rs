//! What is seen in initialisation and warm-up and would be wrong, or missing, in every instance made of the snapshot: there is none then, and the
//! deploy says why.

use serde_json::json;

use crate::harness::examples::guest;
use crate::harness::http::Reply;
use crate::harness::wat::{command, handler, says, wasm};
use crate::harness::{Node, eventually};
use crate::snapshot::{done, number};

/// The reason that a deploy gave for having no snapshot; a function that requires one is refused for the same.
#[track_caller]
fn refused(node: &Node, wasm: &[u8], manifest: &str) -> String {
    let auto = done(node.deploy("f", wasm, manifest)).json();
    assert_eq!(auto["snapshot"], json!(null), "{auto}");
    let note = auto["notes"][0].as_str().unwrap_or_default().to_owned();
    let required = match manifest.contains("[snapshot]") {
        true => manifest.replace("[snapshot]", "[snapshot]\nmode = 'required'"),
        false => format!("snapshot = 'required'\n{manifest}"),
    };
    let problem = node.deploy("required", wasm, &required);
    assert_eq!(problem.status(), 422, "{}", problem.text());
    note
}

#[track_caller]
fn kept(node: &Node, wasm: &[u8], manifest: &str) -> Reply {
    let reply = done(node.deploy("f", wasm, manifest));
    assert!(reply.json()["snapshot"].is_object(), "{}", reply.text());
    reply
}

#[test]
fn streams_that_a_component_of_0_3_keeps() {
    let node = Node::start(&[]);
    let wasm = std::fs::read(guest("keeps3")).unwrap();
    for path in ["/keep", "/log"] {
        let note = refused(&node, &wasm, &format!("[snapshot]\nwarmup = ['GET {path}']"));
        assert!(note.contains("of WASI 0.3, which would be dead") && note.contains("do not print"), "{note}");
        assert_eq!(node.data.get("/f/").good(), b"ok");
        // What is kept within one invocation is its own.
        assert_eq!(node.data.get(&format!("/f{path}")).good(), b"ok");
    }
    kept(&node, &wasm, "[snapshot]\nwarmup = ['GET /', 'GET /']");
    assert_eq!(node.data.get("/f/").good(), b"ok");
}

/// A handler that asks in its initialisation whether there is a first folder, and answers what it was told.
fn looks_at_folders() -> Vec<u8> {
    let text = handler(
        "(func (export \"hob_init\") (i32.store (i32.const 0) (call $prestat (i32.const 3) (i32.const 100))))
         (func (export \"hob_handle\") (call $number (i32.load (i32.const 0))))",
    );
    let import = "(module (import \"wasi_snapshot_preview1\" \"fd_prestat_get\" (func $prestat (param i32 i32) (result i32)))";
    wasm(&text.replacen("(module", import, 1))
}

#[test]
fn folders_that_are_there_for_requests_alone() {
    let node = Node::start(&[]);
    let mount = "[grants]\ndata = [{ bucket = 'site', mount = '/site' }]\n[[bucket]]\nname = 'site'\n";
    let plain = mount.replace(", mount = '/site'", "");
    // Without one there is nothing that it could miss; and what was taken so is not taken for the other.
    kept(&node, &looks_at_folders(), &plain);
    assert_eq!(number(&node, "/f"), 8, "EBADF");
    let note = refused(&node, &looks_at_folders(), mount);
    assert!(note.contains("looked at its folders") && note.contains("open files when a request comes"), "{note}");
    assert_eq!(number(&node, "/f"), 0);
    // The build has no folders whatever is granted, so nothing is told of that.
    let told = node.logs("f");
    assert!(told.iter().all(|(_, _, text)| !text.contains("folders: denied: add to hob.toml")), "{told:?}");
    kept(&node, &wasm(&handler("(func (export \"hob_init\")) (func (export \"hob_handle\"))")), mount);
}

const READS_VARIABLES: &str = "(drop (call $sizes (i32.const 0) (i32.const 4)))";

fn with_variables(text: &str) -> Vec<u8> {
    let import = "(module (import \"wasi_snapshot_preview1\" \"environ_sizes_get\" (func $sizes (param i32 i32) (result i32)))";
    wasm(&text.replacen("(module", import, 1))
}

#[test]
fn variables_that_are_there_for_requests_alone() {
    let node = Node::start(&[]);
    let reads = with_variables(&handler(&format!(
        "(func (export \"hob_init\") {READS_VARIABLES})
         (func (export \"hob_handle\") {READS_VARIABLES} (call $number (i32.load (i32.const 0))))"
    )));
    assert_eq!(node.control.request("PUT", "/v1/secrets/KEY", &[], b"value").status(), 204);
    kept(&node, &reads, "[env]\nA = 'b'\n");
    // A secret that is no variable is none that it could miss.
    kept(&node, &reads, "[grants]\nsecrets = ['KEY']");
    let note = refused(&node, &reads, "[grants]\nsecrets = [{ name = 'KEY', env = 'KEY' }]");
    assert!(note.contains("that of the secret 'KEY' is there for requests alone") && note.contains("init = true"), "{note}");
    assert_eq!(number(&node, "/f"), 1);
    kept(&node, &reads, "[grants]\nsecrets = [{ name = 'KEY', env = 'KEY', init = true }]");
    assert_eq!(number(&node, "/f"), 1);

    let program = |init: &str| wasm(&command(&format!("(func (export \"wizer-initialize\") {init}) (func (export \"_start\"))")));
    // By whichever of the two calls.
    for call in ["$environ_sizes_get", "$environ_get"] {
        let note = refused(&node, &program(&format!("(drop (call {call} (i32.const 0) (i32.const 1024)))")), "");
        assert!(note.contains("those of a request are there for requests alone") && !note.contains("secret"), "{note}");
    }
    kept(&node, &program(""), "");
}

#[test]
fn what_a_command_writes_before_it_is_asked_is_in_its_log_and_in_no_response() {
    let node = Node::start(&[]);
    let program = wasm(&command(
        "(data (i32.const 16) \"one\\n\") (data (i32.const 32) \"two\\n\") (data (i32.const 48) \"answer\")
         (func (export \"wizer-initialize\")
           (call $write (i32.const 1) (i32.const 16) (i32.const 4)) (call $write (i32.const 2) (i32.const 32) (i32.const 4)))
         (func (export \"_start\") (call $write (i32.const 1) (i32.const 48) (i32.const 6)))",
    ));
    kept(&node, &program, "");
    let has = |source: &str, text: &str| node.logs("f").iter().any(|(of, _, said)| of == source && said == text);
    eventually("both are in the log", || has("stdout", "one") && has("stderr", "two"));
    assert_eq!(node.data.get("/f").good(), b"answer");
}

#[test]
fn whoever_requires_a_snapshot_is_told_what_helps() {
    let node = Node::start(&[]);
    let of = |wasm: &[u8], mode: &str| node.deploy("f", wasm, &format!("snapshot = '{mode}'")).problem(422, "not-deployable");
    let program = wasm(&command("(func (export \"_start\"))"));
    assert!(of(&program, "required")["hint"].as_str().unwrap().contains("'wizer-initialize'"));
    let wants = wasm(&handler(
        "(func (export \"hob_init\") (if (i32.eq (memory.grow (i32.const 10000)) (i32.const -1)) (then unreachable)))
         (func (export \"hob_handle\") (call $number (memory.size)))",
    ));
    assert!(of(&wants, "required")["hint"].as_str().unwrap().contains("raise 'memory'"));
    // What no mode takes: that it could be deployed without a snapshot would be wrong.
    for fields in [
        "(import \"hob1\" \"nowhere\" (func)) (memory (export \"memory\") 1) (func (export \"hob_init\")) (func (export \"hob_handle\"))",
        "(memory (export \"memory\") 1) (func (export \"hob_init\") (param i32)) (func (export \"hob_handle\"))",
        "(memory (export \"memory\") 1) (global (export \"hob_init\") i32 (i32.const 1)) (func (export \"hob_handle\"))",
        "(memory (export \"memory\") i64 1) (func (export \"hob_init\")) (func (export \"hob_handle\"))",
    ] {
        let module = wasm(&format!("(module {fields})"));
        let [required, off] = ["required", "off"].map(|mode| of(&module, mode));
        assert_eq!((&required["detail"], &required["hint"]), (&off["detail"], &off["hint"]), "{fields}");
    }
}

#[test]
fn input_that_is_there_for_requests_alone() {
    let node = Node::start(&[]);
    // Reads its input into a place that it keeps, and writes how many bytes it has read in all.
    let program = |init: &str| {
        wasm(&command(&format!(
            "(func $read
               (i32.store (i32.const 0) (i32.const 100)) (i32.store (i32.const 4) (i32.const 9))
               (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
               (i32.store8 (i32.const 16) (i32.add (i32.load8_u (i32.const 16)) (i32.load8_u (i32.const 8)))))
             (func (export \"wizer-initialize\") (i32.store8 (i32.const 16) (i32.const 48)) {init})
             (func (export \"_start\") (call $read) (call $write (i32.const 1) (i32.const 16) (i32.const 1)))"
        )))
    };
    let note = refused(&node, &program("(call $read)"), "");
    assert!(note.contains("the guest has read its input") && note.contains("read the input in '_start'"), "{note}");
    assert_eq!(node.data.request("POST", "/f", &[], b"hello").good(), b"5");
    kept(&node, &program(""), "");
    assert_eq!(node.data.request("POST", "/f", &[], b"hello").good(), b"5");
}

/// A handler that takes all the memory it gets when it is initialised, and answers how many pages that is.
fn fills() -> Vec<u8> {
    wasm(&handler(
        "(func (export \"hob_init\") (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))
         (func (export \"hob_handle\") (call $number (memory.size)))",
    ))
}

#[test]
fn other_limits_are_another_snapshot() {
    let node = Node::start(&[]);
    node.deploy_wat("owner", &says("owner"), "route = '/taken'");
    let limit = |pages: u32| format!("[limits]\nmemory = {}\n", pages << 16);
    kept(&node, &fills(), &limit(16));
    assert_eq!(number(&node, "/f"), 16);
    // A deploy that is refused, for whatever reason, has built something all the same.
    node.deploy("f", &fills(), &format!("route = '/taken'\n{}", limit(128))).problem(409, "conflict");
    let again = || node.control.request("GET", "/v1/functions/f/invoke", &[("hob-start", "stored")], b"");
    assert_eq!(again().good(), 16u32.to_le_bytes());
    kept(&node, &fills(), &limit(128));
    assert_eq!(number(&node, "/f"), 128);
    node.control.request("POST", "/v1/functions/f/rollback", &[], b"").ok();
    assert_eq!((number(&node, "/f"), again().good()), (16, 16u32.to_le_bytes().to_vec()));
}

#[test]
fn more_memory_than_a_build_may_have() {
    let node = Node::start(&["build.memory=100MiB", "build.memory_max=200MiB"]);
    let limits = "[limits]\nmemory = '300MiB'\n";
    let grows = wasm(&handler(
        "(func (export \"hob_init\") (if (i32.eq (memory.grow (i32.const 4000)) (i32.const -1)) (then unreachable)))
         (func (export \"hob_handle\") (call $number (memory.size)))",
    ));
    for wasm in [&grows, &fills()] {
        let problem = node.deploy("f", wasm, &format!("snapshot = 'required'\n{limits}")).problem(422, "build-over-limit");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains("needed more than 209715200 bytes") && detail.contains("build.memory_max"), "{detail}");
    }
    let reply = done(node.deploy("f", &grows, limits)).json();
    let note = reply["notes"][0].as_str().unwrap();
    assert!(note.starts_with("no snapshot: the build was ended: it needed more than 209715200 bytes"), "{note}");
    assert_eq!(number(&node, "/f"), 4001);
}

/// A command of 0.2 whose initialisation writes to a memory with this many pages, and that maximum.
fn component_with_memory(memory: &str, more: &str) -> Vec<u8> {
    wasm(&format!(
        "(component
           (core module $m
             (memory (export \"memory\") {memory})
             (func (export \"init\") (i32.store (i32.const 0) (i32.const 7)))
             (func (export \"run\") (result i32) (i32.const 0)))
           (core instance $i (instantiate $m))
           {more}
           (func $init (canon lift (core func $i \"init\")))
           (export \"wizer-initialize\" (func $init))
           (func $run (result (result)) (canon lift (core func $i \"run\")))
           (instance $r (export \"run\" (func $run)))
           (export \"wasi:cli/run@0.2.0\" (instance $r)))"
    ))
}

#[test]
fn memories_of_components_that_cannot_grow() {
    let node = Node::start(&[]);
    // Reading one takes two pages more, which neither the limit nor the function's account sees.
    kept(&node, &component_with_memory("1", ""), "[limits]\nmemory = '64KiB'");
    kept(&node, &component_with_memory("1 3", ""), "");
    for maximum in ["1 1", "1 2"] {
        let note = refused(&node, &component_with_memory(maximum, ""), "");
        assert!(note.contains("a memory of the component cannot be read") && note.contains("leaves 128 KiB free"), "{note}");
        assert_eq!(node.data.get("/f").ok().text(), "");
    }
}

#[test]
fn components_with_resources_of_their_own() {
    let node = Node::start(&[]);
    let resource = "(type $t (resource (rep i32))) (core func $new (canon resource.new $t))";
    let note = refused(&node, &component_with_memory("1", resource), "");
    assert!(note.contains("handles to resources of its own") && note.contains("without resources"), "{note}");
    assert_eq!(node.data.get("/f").ok().text(), "");
}
