//! What runs at deploy so that it need not run at each start, and what must not survive it.

use serde_json::Value;

use crate::bodies::says_more_than_it_has;
use crate::files::{self, SITE, archive};
use crate::harness::examples::{Example, example, guest};
use crate::harness::wat::{SPINS, command, component, handler, handler_with, wasm};
use crate::harness::{Node, compiled, http::Reply};

/// A handler whose `hob_init` counts up once, and which counts up once more before it answers with the number.
fn counter() -> String {
    counter_and("")
}

fn counter_and(more: &str) -> String {
    handler(&format!(
        "(func $count (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hob_init\") {more} (call $count))
         (func (export \"hob_handle\") (call $count) (call $number (i32.load (i32.const 0))))"
    ))
}

/// The same with an initialisation that does `code` first, and `text` at 100.
fn initialises(code: &str, text: &str) -> String {
    let print = "(import \"wasi_snapshot_preview1\" \"fd_write\" (func $fd_write (param i32 i32 i32 i32) (result i32)))";
    let text = format!("(data (i32.const 100) \"{text}\") (func $count");
    counter_and(code).replace("(func $count", &text).replacen("(module", &format!("(module {print}"), 1)
}

/// A handler without an initialisation, which counts the requests that its memory has seen.
fn requests() -> String {
    handler(
        "(global $seen (mut i32) (i32.const 0))
         (func (export \"hob_handle\")
           (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
           (call $number (global.get $seen)))",
    )
}

#[track_caller]
pub(crate) fn number(node: &Node, path: &str) -> u32 {
    let body = node.data.get(path).good();
    u32::from_le_bytes(body.try_into().unwrap())
}

/// A deploy that worked.
#[track_caller]
pub(crate) fn done(reply: Reply) -> Reply {
    assert!(matches!(reply.status(), 200 | 201), "{} {}", reply.status(), reply.text());
    reply
}

/// The notes of a deploy.
#[track_caller]
pub(crate) fn notes(reply: &Reply) -> Vec<String> {
    let json = reply.json();
    let notes = json["notes"].as_array().cloned().unwrap_or_default();
    notes.iter().map(|note| note.as_str().unwrap().to_owned()).collect()
}

/// The one note, which says why there is no snapshot.
#[track_caller]
pub(crate) fn reason(reply: &Reply) -> String {
    let notes = notes(reply);
    assert!(notes.len() == 1 && notes[0].starts_with("no snapshot: "), "{notes:?}");
    notes[0].clone()
}

pub(crate) fn has_snapshot(node: &Node, name: &str) -> bool {
    node.inspect(name)["snapshot"] != Value::Null
}

#[track_caller]
pub(crate) fn deploy(node: &Node, name: &str, text: &str, manifest: &str) -> Reply {
    node.deploy(name, &wasm(text), manifest)
}

#[test]
fn initialisation_runs_once_and_invocations_share_nothing() {
    let node = Node::start(&[]);
    let reply = done(deploy(&node, "a", &counter(), ""));
    assert_eq!(notes(&reply), [""; 0]);
    assert!(has_snapshot(&node, "a"));
    for _ in 0..3 {
        assert_eq!(number(&node, "/a"), 2);
    }
    // Without a snapshot it runs at each start, with the same result.
    done(deploy(&node, "b", &counter(), "snapshot = \"off\""));
    assert!(!has_snapshot(&node, "b"));
    assert_eq!((number(&node, "/b"), number(&node, "/b")), (2, 2));
}

#[test]
fn whatever_a_module_calls_its_initialisation() {
    let node = Node::start(&[]);
    let count = "(func $count (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))";
    let handle = "(func (export \"hob_handle\") (call $number (i32.load (i32.const 0))))";
    for (name, start) in [
        ("start", "(start $count)"),
        ("wizer", "(export \"wizer-initialize\" (func $count))"),
        ("init", "(export \"hob_init\" (func $count))"),
        ("both", "(export \"hob_init\" (func $count)) (export \"_initialize\" (func $count))"),
    ] {
        done(deploy(&node, name, &handler(&format!("{count} {start} {handle}")), "snapshot = \"required\""));
        assert_eq!(number(&node, &format!("/{name}")), if name == "both" { 2 } else { 1 }, "{name}");
    }
    let two = format!("{count} (export \"hob_init\" (func $count)) (export \"wizer-initialize\" (func $count)) {handle}");
    let refused = deploy(&node, "two", &handler(&two), "").problem(422, "not-deployable");
    assert!(refused["detail"].as_str().unwrap().contains("only one can be"), "{refused}");
    // A command has one too.
    let text = command(
        "(data (i32.const 0) \"0\\n\")
         (func (export \"wizer-initialize\") (i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const 0)) (i32.const 1))))
         (func (export \"_start\") (call $write (i32.const 1) (i32.const 0) (i32.const 2)))",
    );
    done(deploy(&node, "command", &text, "snapshot = \"required\""));
    assert_eq!((node.data.get("/command").good(), node.data.get("/command").good()), (b"1\n".to_vec(), b"1\n".to_vec()));
}

#[test]
fn warm_up_requests_run_the_function() {
    let node = Node::start(&[]);
    let manifest = "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /\", { method = \"POST\", path = \"/x\", body = \"y\" }]";
    done(deploy(&node, "core", &requests(), manifest));
    assert_eq!((number(&node, "/core"), number(&node, "/core")), (3, 3));
    done(node.deploy("component", &std::fs::read(guest("counter2")).unwrap(), manifest));
    assert_eq!((node.data.get("/component").good(), node.data.get("/component").good()), (b"3".to_vec(), b"3".to_vec()));
    // Another request, another snapshot, of the same module.
    done(node.deploy("component", &std::fs::read(guest("counter2")).unwrap(), "[snapshot]\nwarmup = [\"GET /\"]"));
    assert_eq!(node.data.get("/component").good(), b"2");
}

#[test]
fn what_a_snapshot_keeps_and_what_is_new() {
    let node = Node::start(&[]);
    let Example { wasm, manifest } = example("frozen");
    let reply = done(node.deploy("frozen", &wasm, &manifest));
    let notes = notes(&reply);
    assert!(notes.len() == 1 && notes[0].contains("drew random numbers"), "{notes:?}");
    let answers = [node.data.get("/frozen").good(), node.data.get("/frozen").good()].map(|body| String::from_utf8(body).unwrap());
    for (one, other) in answers[0].lines().zip(answers[1].lines()) {
        assert_eq!(one == other, one.starts_with("same "), "{one}\n{other}");
    }
    for line in
        ["same inits: 1\n", "same requests: 2\n", "same environment of init: hello\n", "same time runs backwards: false\n"]
    {
        assert!(answers[0].contains(line), "{line} {}", answers[0]);
    }
    // What was read is frozen, so another environment takes another snapshot.
    done(node.deploy("frozen", &wasm, &manifest.replace("\"hello\"", "\"goodbye\"")));
    assert!(node.data.get("/frozen").text().contains("same environment of init: goodbye\n"));
    // Its author may not want to be warned, but stopped.
    let strict = format!("{manifest}randomness = \"refuse\"\n");
    let refused = node.deploy("frozen", &wasm, &strict).problem(422, "not-deployable");
    assert!(refused["detail"].as_str().unwrap().contains("drew random numbers"), "{refused}");
}

#[test]
fn a_deploy_of_the_same_after_a_recompilation_runs_nothing() {
    let node = Node::start(&[]);
    let Example { wasm, manifest } = example("frozen");
    done(node.deploy("frozen", &wasm, &manifest));
    let kept = || {
        let text = node.data.get("/frozen").ok().text();
        text.lines().filter(|line| line.starts_with("same ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = kept();
    let forced = node.control.request("GET", "/v1/functions/frozen/invoke", &[("hob-start", "compiled")], b"");
    assert_eq!(forced.header("hob-start"), Some("compiled"));
    assert_eq!(node.metric("hob_builds_total"), 2);
    done(node.deploy("frozen", &wasm, &manifest));
    assert_eq!((kept(), node.metric("hob_builds_total")), (before, 2), "what was kept of the first build is kept");
}

#[test]
fn native_code_that_is_lost_is_made_of_the_snapshot() {
    let mut node = Node::start(&[]);
    let Example { wasm, manifest } = example("frozen");
    done(node.deploy("frozen", &wasm, &manifest));
    let kept = |node: &Node| {
        let text = node.data.get("/frozen").ok().text();
        text.lines().filter(|line| line.starts_with("same ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let told = |node: &Node| {
        let logs = node.logs("frozen");
        let is_told =
            |source: &str, level: &str, text: &str| (source, level) == ("host", "warn") && text.contains("snapshot is lost");
        logs.iter().filter(|(source, level, text)| is_told(source, level, text)).count()
    };
    let before = kept(&node);
    assert!(before.contains(&"same time runs backwards: false".to_owned()), "{before:?}");
    node.stop();
    for file in node.files("artifacts") {
        std::fs::remove_file(file).unwrap();
    }
    node.restart();
    compiled(|| node.data.get("/frozen")).ok();
    // The numbers that its initialisation drew are the same, and its clock is not behind what it noted in another process.
    assert_eq!((kept(&node), told(&node)), (before, 0));
    node.stop();
    for file in node.files("artifacts").into_iter().chain(node.files("snapshots")) {
        std::fs::remove_file(file).unwrap();
    }
    node.restart();
    compiled(|| node.data.get("/frozen")).ok();
    assert_eq!(told(&node), 1);
    let shown = node.control.get("/v1/functions/frozen").ok().json()["notes"].to_string();
    assert!(shown.contains("the snapshot is lost"), "{shown}");
    // From here on it initialises itself at each start.
    let (one, other) = (kept(&node), kept(&node));
    assert!(one.contains(&"same inits: 1".to_owned()) && one.contains(&"same requests: 1".to_owned()), "{one:?}");
    assert_ne!(one, other);
}

#[test]
fn a_component_s_randomness_and_time() {
    let node = Node::start(&[]);
    let wasm = std::fs::read(guest("counter2")).unwrap();
    let reply = done(node.deploy("a", &wasm, "[snapshot]\nwarmup = [\"GET /map\"]"));
    assert!(notes(&reply)[0].contains("drew random numbers"), "{:?}", notes(&reply));
    let strict = "[snapshot]\nwarmup = [\"GET /map\"]\nrandomness = \"refuse\"";
    node.deploy("a", &wasm, strict).problem(422, "not-deployable");
    let reply = done(node.deploy("time", &wasm, "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /time\"]"));
    assert_eq!(notes(&reply), [""; 0]);
    assert_eq!(node.data.get("/time/time").text(), "backwards: false");
}

#[test]
fn each_drawing_of_random_numbers_counts_once() {
    let node = Node::start(&[]);
    for (bytes, times) in [(8, 0), (1, 1), (8, 1), (4096, 2)] {
        let draw = format!("(drop (call $random_get (i32.const 1000) (i32.const {bytes})))");
        let import = "(module (import \"wasi_snapshot_preview1\" \"random_get\" (func $random_get (param i32 i32) (result i32)))";
        let text = counter_and(&draw.repeat(times)).replacen("(module", import, 1);
        let notes = notes(&done(deploy(&node, "a", &text, "")));
        assert_eq!(notes.len(), times.min(1), "{notes:?}");
        let times = if times == 1 { "(once)".to_owned() } else { format!("({times} times)") };
        assert!(notes.iter().all(|note| note.contains(&times)), "{bytes} {notes:?}");
    }
}

#[test]
fn a_handle_that_a_component_keeps() {
    let node = Node::start(&[]);
    let wasm = std::fs::read(guest("counter2")).unwrap();
    let reply = node.deploy("a", &wasm, "[snapshot]\nwarmup = [\"GET /print\"]");
    let reason = reason(&reply);
    assert!(reason.contains("holds a handle") && reason.contains("do not print"), "{reason}");
    assert_eq!(node.inspect("a")["notes"][0], reason.as_str());
    // It works, from its beginning each time, and what it prints is in its log.
    assert_eq!((node.data.get("/a/print").good(), node.data.get("/a").good()), (b"1".to_vec(), b"1".to_vec()));
    let refused =
        node.deploy("b", &wasm, "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /print\"]").problem(422, "not-deployable");
    assert!(refused["hint"].as_str().unwrap().contains("do not print"), "{refused}");
}

/// A handler that opens files below `/site`: `$open` returns the number, and what is at 100 to 102 are the names `a`, `b` and `.`. It answers
/// with what it reads of the number that is kept at 0, after it has opened `b`.
fn opens(init: &str) -> String {
    let text = handler(&format!(
        "(data (i32.const 100) \"ab.\")
         (func $open (param $name i32) (result i32)
           (if (call $path_open (i32.const 3) (i32.const 0) (local.get $name) (i32.const 1) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 200))
             (then unreachable))
           (i32.load (i32.const 200)))
         (func $keep (i32.store (i32.const 0) (call $open (i32.const 100))))
         (func (export \"hob_init\") {init})
         (func (export \"hob_handle\")
           (drop (call $open (i32.const 101)))
           (i32.store (i32.const 208) (i32.const 300))
           (i32.store (i32.const 212) (i32.const 1))
           (if (call $fd_read (i32.load (i32.const 0)) (i32.const 208) (i32.const 1) (i32.const 216)) (then unreachable))
           (call $answer (i32.const 200) (i32.const 300) (i32.const 1)))"
    ));
    let imports = "(import \"wasi_snapshot_preview1\" \"path_open\" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"fd_read\" (func $fd_read (param i32 i32 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"fd_renumber\" (func $renumber (param i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"fd_close\" (func $close (param i32) (result i32)))";
    text.replacen("(module", &format!("(module {imports}"), 1)
}

#[test]
fn descriptors_that_a_core_module_keeps() {
    let node = Node::start(&[]);
    let site = archive(&[("site/a", "A"), ("site/b", "B")]);
    let try_all = |init: &str| {
        let wasm = wasm(&opens(init));
        let required = format!("snapshot = 'required'\n{SITE}");
        [SITE, &required].map(|manifest| files::deploy(&node, "f", &wasm, manifest, &site))
    };
    let open = |name: i32| format!("(drop (call $open (i32.const {name})))");
    let close = |fd: i32| format!("(drop (call $close (i32.const {fd})))");
    let renumber = |from: i32, to: i32| format!("(if (call $renumber (i32.const {from}) (i32.const {to})) (then unreachable))");
    for (what, init) in [
        ("a file", open(100)),
        ("a folder", open(102)),
        ("one behind a free number", [open(100), open(101), close(4)].concat()),
        ("none, but a stream is closed", close(2)),
        ("none, but the granted folder is closed", close(3)),
        ("a file in place of a stream", [open(100), renumber(4, 1)].concat()),
        ("a folder in place of the granted one", [open(102), renumber(4, 3)].concat()),
    ] {
        let [auto, required] = try_all(&init);
        assert!(reason(&auto).contains("close in initialisation and warm-up what is opened there"), "{what}: {}", auto.text());
        let refused = required.problem(422, "not-deployable");
        assert!(refused["detail"].as_str().unwrap().contains("has a file or a folder open"), "{what}: {refused}");
    }
    for (what, init) in [
        ("all are closed again", [open(100), open(101), close(5), close(4)].concat()),
        ("what is not open stays so", close(4)),
        ("a number of its own", renumber(1, 1)),
    ] {
        let [auto, required] = try_all(&init).map(done);
        assert_eq!((notes(&auto), notes(&required)), (vec![], vec![]), "{what}");
        assert!(has_snapshot(&node, "f"), "{what}");
    }
    let kept = reason(&files::deploy(&node, "kept", &wasm(&opens("(call $keep)")), SITE, &site));
    assert!(kept.contains("has a file or a folder open"), "{kept}");
    assert_eq!(node.data.get("/kept").ok().text(), "A", "the file whose number it kept");
    // A warm-up request counts as the initialisation does.
    let asked = requests_that_open();
    let manifest = |mode: &str| format!("{SITE}[snapshot]\nmode = '{mode}'\nwarmup = ['GET /']\n");
    assert!(reason(&files::deploy(&node, "asked", &asked, &manifest("auto"), &site)).contains("has a file or a folder open"));
    files::deploy(&node, "asked", &asked, &manifest("required"), &site).problem(422, "not-deployable");
}

/// A handler without an initialisation whose requests leave a file open.
fn requests_that_open() -> Vec<u8> {
    wasm(&opens("(call $keep)").replace("\"hob_init\"", "\"other\"").replacen(
        "(export \"hob_handle\")",
        "(export \"hob_handle\") (call $keep)",
        1,
    ))
}

#[test]
fn warm_up_requests_that_fail() {
    let node = Node::start(&["build.init=300ms"]);
    let wasm = std::fs::read(guest("counter2")).unwrap();
    let fails = reason(&node.deploy("a", &wasm, "[snapshot]\nwarmup = [\"GET /fail\"]"));
    assert!(fails.contains("GET /fail") && fails.contains("500"), "{fails}");
    assert!(fails.ends_with("or say mode = \"off\" in [snapshot] of hob.toml"), "{fails}");
    assert_eq!(node.data.get("/a").good(), b"1");
    // Answers only when it has been asked once: the snapshot would answer its first request otherwise.
    let changes = handler(
        "(global $seen (mut i32) (i32.const 200))
         (func (export \"hob_handle\")
           (call $answer (global.get $seen) (i32.const 0) (i32.const 0))
           (global.set $seen (i32.const 404)))",
    );
    let differs = reason(&deploy(&node, "b", &changes, "[snapshot]\nwarmup = [\"GET /\"]"));
    assert!(differs.contains("[200]") && differs.contains("[404]"), "{differs}");
    assert_eq!(node.data.get("/b").status(), 200);
    for (name, code, word) in [("traps", "unreachable", "trapped"), ("hangs", SPINS, "300ms"), ("silent", "nop", "respond")] {
        let text = handler(&format!("(func (export \"hob_handle\") {code})"));
        let reason = reason(&deploy(&node, name, &text, "[snapshot]\nwarmup = [\"GET /x\"]"));
        assert!(reason.contains("GET /x") && reason.contains(word), "{reason}");
        assert!(reason.contains("mode = \"off\" in [snapshot]"), "{reason}");
        let required = "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /x\"]";
        deploy(&node, name, &text, required).problem(422, "not-deployable");
    }
    // One that fails when its answer has begun has failed: nobody waits for the rest.
    let begun = handler("(func (export \"hob_handle\") (call $stream) unreachable)");
    let begun = reason(&deploy(&node, "begun", &begun, "[snapshot]\nwarmup = [\"GET /x\"]"));
    assert!(begun.contains("GET /x: the function trapped"), "{begun}");
    let breaks = says_more_than_it_has();
    let reason_of = reason(&deploy(&node, "breaks", &breaks, "[snapshot]\nwarmup = [\"GET /x\"]"));
    assert!(reason_of.contains("GET /x: the answer broke off: its content-length is 9, and its body has 4 bytes"), "{reason_of}");
    deploy(&node, "breaks", &breaks, "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /x\"]").problem(422, "not-deployable");
    // To whom no body is sent it says what it likes.
    done(deploy(&node, "breaks", &breaks, "[snapshot]\nmode = \"required\"\nwarmup = [\"HEAD /x\"]"));
    let text = command("(func (export \"_start\"))");
    let asked = reason(&deploy(&node, "command", &text, "[snapshot]\nwarmup = [\"GET /\"]"));
    assert!(asked.contains("a command runs to its end once"), "{asked}");
}

#[test]
fn initialisation_that_fails() {
    let node = Node::start(&["build.init=300ms"]);
    let grow = "(if (i32.eq (memory.grow (i32.const 4096)) (i32.const -1)) (then unreachable))";
    let exit = "(call $exit (i32.const 3))";
    for (name, code, word) in [
        ("loops", SPINS, "300ms"),
        ("traps", "unreachable", "trapped"),
        ("grows", grow, "memory"),
        ("answers", "(call $answer (i32.const 200) (i32.const 0) (i32.const 0))", "no request to answer"),
        ("exits", exit, "exited with code 3"),
    ] {
        let text = counter_and(code);
        let text =
            text.replacen("(module", "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))", 1);
        for mode in ["auto", "required"] {
            let refused = deploy(&node, name, &text, &format!("snapshot = \"{mode}\"")).problem(422, "not-deployable");
            assert!(refused["detail"].as_str().unwrap().contains(word), "{name} {refused}");
        }
        // Nobody tried it: its callers find out.
        done(deploy(&node, name, &text, "snapshot = \"off\"\n[limits]\ncpu = \"100ms\""));
        let expected = match name {
            "loops" => (504, "cpu-deadline"),
            "traps" => (502, "guest-trap"),
            "grows" => (502, "guest-memory"),
            "exits" => (502, "guest-exit"),
            _ => continue,
        };
        node.data.get(&format!("/{name}")).problem(expected.0, expected.1);
    }
}

#[test]
fn what_runs_at_each_start_is_tried_without_a_warm_up_request_too() {
    let node = Node::start(&[]);
    let text = |init: &str, code: &str| {
        handler(&format!(
            "{init} (func (export \"hob_restored\") {code}) (func (export \"hob_handle\") (call $number (i32.const 7)))"
        ))
    };
    let limits = "\n[limits]\ncpu = \"100ms\"";
    for init in ["(func (export \"hob_init\"))", ""] {
        for (name, code, expected) in [("traps", "unreachable", (502, "guest-trap")), ("hangs", SPINS, (504, "cpu-deadline"))] {
            let text = text(init, code);
            let refused = deploy(&node, name, &text, &format!("snapshot = \"auto\"{limits}")).problem(422, "not-deployable");
            assert!(refused["detail"].as_str().unwrap().contains("does not start"), "{name} {refused}");
            if !init.is_empty() {
                let refused =
                    deploy(&node, name, &text, &format!("snapshot = \"required\"{limits}")).problem(422, "not-deployable");
                assert!(refused["detail"].as_str().unwrap().contains("made of the snapshot failed"), "{name} {refused}");
            }
            done(deploy(&node, name, &text, &format!("snapshot = \"off\"{limits}")));
            node.data.get(&format!("/{name}")).problem(expected.0, expected.1);
        }
        done(deploy(&node, "a", &text(init, "nop"), limits));
        assert_eq!((has_snapshot(&node, "a"), number(&node, "/a")), (!init.is_empty(), 7));
    }
}

#[test]
fn a_module_that_cannot_be_snapshotted() {
    let node = Node::start(&[]);
    let text =
        counter_and("(table.set $t (i32.const 0) (ref.null func))").replace("(func $count", "(table $t 1 funcref) (func $count");
    let reason = reason(&deploy(&node, "a", &text, ""));
    assert!(reason.contains("table.set"), "{reason}");
    assert!(!has_snapshot(&node, "a"));
    // Its initialisation runs at each start.
    assert_eq!((number(&node, "/a"), number(&node, "/a")), (2, 2));
    deploy(&node, "b", &text, "snapshot = \"required\"").problem(422, "not-deployable");
    // Nothing to do is a failure only for who requires a snapshot.
    assert_eq!(notes(&done(deploy(&node, "c", &requests(), ""))), [""; 0]);
    let refused = deploy(&node, "c", &requests(), "snapshot = \"required\"").problem(422, "not-deployable");
    assert!(refused["hint"].as_str().unwrap().contains("warm-up request"), "{refused}");
    // State that nothing exports cannot be read.
    let hidden = component(
        "(core module $hides (memory 1)) (core instance (instantiate $hides))
         (core module $init (func (export \"f\"))) (core instance $init (instantiate $init))
         (func (export \"wizer-initialize\") (canon lift (core func $init \"f\")))",
    );
    let reason = self::reason(&done(node.deploy("d", &wasm(&hidden), "")));
    assert!(reason.contains("cannot be snapshotted: a module in it") && reason.contains("serves without its"), "{reason}");
}

#[test]
fn a_snapshot_s_size_on_both_sides() {
    let node = Node::start(&["build.snapshot_bytes_max=128KiB"]);
    let text = |pages: u32| {
        handler_with(
            &format!("(memory (export \"memory\") {pages})"),
            "(func (export \"hob_init\") (i32.store (i32.const 0) (i32.const 5)))
             (func (export \"hob_handle\") (call $number (i32.load (i32.const 0))))",
        )
    };
    assert_eq!(notes(&done(deploy(&node, "a", &text(2), ""))), [""; 0]);
    let reason = reason(&deploy(&node, "b", &text(3), ""));
    assert!(reason.contains("131072") && reason.contains("196608"), "{reason}");
    assert_eq!((number(&node, "/a"), number(&node, "/b")), (5, 5));
}

#[test]
fn memory_in_which_every_other_byte_is_zero() {
    // What is left beside the copies of the memory itself is far less than its size.
    let node = Node::start(&["build.memory=128MiB"]);
    let text = handler_with(
        "(memory (export \"memory\") 1024) (global $at (mut i32) (i32.const 0))",
        "(func (export \"hob_init\")
           (loop $more
             (i64.store (global.get $at) (i64.const 0x0001000100010001))
             (global.set $at (i32.add (global.get $at) (i32.const 8)))
             (br_if $more (i32.lt_u (global.get $at) (i32.const 0x4000000)))))
         (func (export \"hob_handle\") (call $number (i32.load (i32.const 0x3FFFFFC))))",
    );
    assert_eq!(notes(&done(deploy(&node, "a", &text, "[limits]\nmemory = \"64MiB\""))), [""; 0]);
    assert!(has_snapshot(&node, "a"));
    assert_eq!(number(&node, "/a"), 0x0001_0001);
}

#[test]
fn a_warm_up_request_that_passes_the_limits_of_an_invocation() {
    let node = Node::start(&["build.init=20s"]);
    // Far more turns than a processor makes in 10 ms.
    let text = handler(
        "(func (export \"hob_handle\") (local $turns i32)
           (loop $more
             (local.set $turns (i32.add (local.get $turns) (i32.const 1)))
             (br_if $more (i32.lt_u (local.get $turns) (i32.const 300000000))))
           (call $number (i32.const 1)))",
    );
    let reason = reason(&deploy(&node, "a", &text, "[snapshot]\nwarmup = [\"GET /x\"]\n[limits]\ncpu = \"10ms\""));
    assert!(reason.contains("GET /x: the function used up its processor time of 10ms"), "{reason}");
    assert!(reason.contains("raise that limit in [limits]") && !reason.contains("does not survive"), "{reason}");
}

#[test]
fn what_is_said_during_initialisation_is_in_the_log_with_its_level() {
    let node = Node::start(&[]);
    let print = |file: u32| {
        format!(
            "(i32.store (i32.const 200) (i32.const 100)) (i32.store (i32.const 204) (i32.const 5))
             (drop (call $fd_write (i32.const {file}) (i32.const 200) (i32.const 1) (i32.const 208)))"
        )
    };
    let log = |level: u32| format!("(call $log (i32.const {level}) (i32.const 100) (i32.const 5))");
    for (name, code, expected) in [
        ("error", log(0), ("log", "error")),
        ("warn", log(1), ("log", "warn")),
        ("info", log(2), ("log", "info")),
        ("debug", log(3), ("log", "debug")),
        ("trace", log(4), ("log", "trace")),
        ("stdout", print(1), ("stdout", "info")),
        ("stderr", print(2), ("stderr", "warn")),
    ] {
        done(deploy(&node, name, &initialises(&code, "hello"), ""));
        let logs = node.logs(name);
        let found = logs.iter().find(|(.., text)| text == "hello").map(|(source, level, _)| (source.as_str(), level.as_str()));
        assert_eq!(found, Some(expected), "{logs:?}");
    }
}

#[test]
fn what_a_function_said_that_is_refused_is_in_the_answer() {
    let node = Node::start(&[]);
    let log = "(call $log (i32.const 0) (i32.const 100) (i32.const 5))";
    let said = |name: &str, text: &str, manifest: &str| {
        let problem = deploy(&node, name, text, manifest).problem(422, "not-deployable");
        let detail = problem["detail"].as_str().unwrap();
        detail.split_once("; it said: ").map(|(_, said)| said.to_owned())
    };
    // Under "auto" it starts twice, and says it each time.
    let text = initialises(&format!("{log} unreachable"), "hello");
    for mode in ["auto", "required"] {
        let manifest = format!("snapshot = \"{mode}\"");
        assert_eq!(said("a", &text, &manifest).as_deref(), Some("hello"), "{mode}");
        assert_eq!(said("a", &initialises("unreachable", ""), &manifest), None, "{mode}");
        let escapes = initialises(&format!("{log} unreachable"), "\\1b[2Jx");
        assert_eq!(said("a", &escapes, &manifest).as_deref(), Some("\\u{1b}[2Jx"), "{mode}");
    }
    // What stays in the line when the instance ends, and a warm-up request.
    let print = "(i32.store (i32.const 200) (i32.const 100)) (i32.store (i32.const 204) (i32.const 4))
                 (drop (call $fd_write (i32.const 2) (i32.const 200) (i32.const 1) (i32.const 208)))";
    assert_eq!(said("b", &initialises(&format!("{print} unreachable"), "hello"), "").as_deref(), Some("hell"));
    let asked = initialises("", "hello")
        .replace("(func (export \"hob_handle\")", &format!("(func (export \"hob_handle\") {log} unreachable"));
    let manifest = "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /\"]";
    assert_eq!(said("c", &asked, manifest).as_deref(), Some("hello"));
    // The last of much.
    let much = format!(
        "(memory.fill (i32.const 1000) (i32.const 97) (i32.const 8000))
         (call $log (i32.const 0) (i32.const 1000) (i32.const 8000)) {log} unreachable"
    );
    let said = said("d", &initialises(&much, "hello"), "").unwrap();
    assert!(said.starts_with("…a") && said.ends_with("a | hello") && said.len() == (2 << 10) + "…".len(), "{said}");
}

#[test]
fn much_that_is_said_during_initialisation() {
    let node = Node::start(&[]);
    // Bytes that JSON writes as six characters each, more of them than a log takes.
    for byte in ["\\01", "\\22"] {
        let text = counter_and(
            "(memory.fill (i32.const 1000) (i32.load8_u (i32.const 100)) (i32.const 8000))
             (loop $more
               (call $log (i32.const 2) (i32.const 1000) (i32.const 8000))
               (i32.store (i32.const 200) (i32.add (i32.load (i32.const 200)) (i32.const 1)))
               (br_if $more (i32.lt_u (i32.load (i32.const 200)) (i32.const 20))))",
        )
        .replace("(func $count", &format!("(data (i32.const 100) \"{byte}\") (func $count"));
        done(deploy(&node, "a", &text, ""));
        assert_eq!(number(&node, "/a"), 2);
        assert!(node.logs("a").len() > 5);
    }
}

#[test]
fn an_initialisation_is_one_only_where_it_is_called() {
    let node = Node::start(&[]);
    let text = command("(func (export \"hob_init\")) (func (export \"_start\"))");
    done(deploy(&node, "a", &text, ""));
    assert!(!has_snapshot(&node, "a"));
    deploy(&node, "a", &text, "snapshot = \"required\"").problem(422, "not-deployable");
}

#[test]
fn a_build_that_passes_its_walls_for_its_initialisation() {
    // The initialisation has more time than the whole build.
    let node = Node::start(&["build.init=60s", "build.cpu=1s"]);
    let text = handler(&format!(
        "(func (export \"hob_init\") (if (i32.eqz (i32.load (i32.const 0))) (then {SPINS})))
         (func (export \"hob_handle\") (call $number (i32.const 1)))"
    ));
    let reason = reason(&deploy(&node, "a", &text, "[limits]\ncpu = \"100ms\""));
    assert!(reason.contains("processor time"), "{reason}");
    node.data.get("/a").problem(504, "cpu-deadline");
    deploy(&node, "b", &text, "snapshot = \"required\"").problem(422, "build-over-limit");
}

#[test]
fn a_warm_up_request_whose_answer_streams() {
    let node = Node::start(&[]);
    let text = handler(
        "(func $count (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hob_handle\")
           (call $count) (call $stream)
           (drop (call $body_write (i32.const 0) (i32.const 4))))",
    );
    done(deploy(&node, "a", &text, "[snapshot]\nmode = \"required\"\nwarmup = [\"GET /\", \"GET /\"]"));
    assert_eq!((number(&node, "/a"), number(&node, "/a")), (3, 3));
}

#[test]
fn another_deploy_s_files_are_used_if_they_are_whole_and_its_notes_are_not() {
    let node = Node::start(&[]);
    let unsuited =
        counter_and("(table.set $t (i32.const 0) (ref.null func))").replace("(func $count", "(table $t 1 funcref) (func $count");
    assert!(reason(&deploy(&node, "a", &unsuited, "")).contains("table.set"));
    let builds = node.metric("hob_builds_total");
    assert_eq!(notes(&done(deploy(&node, "b", &unsuited, "snapshot = \"off\""))), [""; 0]);
    assert_eq!(node.metric("hob_builds_total"), builds, "the code is the same");
    // A snapshot that was damaged comes back with the next deploy of the same.
    done(deploy(&node, "c", &counter(), ""));
    let [path] = <[_; 1]>::try_from(node.files("snapshots")).unwrap();
    let whole = std::fs::read(&path).unwrap();
    done(deploy(&node, "c", &counter(), ""));
    assert_eq!(node.metric("hob_builds_total"), builds + 1, "whole files are not made again");
    std::fs::write(&path, &whole[1..]).unwrap();
    done(deploy(&node, "c", &counter(), ""));
    assert_eq!((node.metric("hob_builds_total"), std::fs::read(&path).unwrap()), (builds + 2, whole));
}
