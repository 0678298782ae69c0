//! Artifacts as other people build them, for other runtimes: they run here unmodified.

use std::io::Write;
use std::process::Stdio;

use crate::cli::{file, hob};
use crate::harness::examples::guest;
use crate::harness::http::Reply;
use crate::harness::wat::{self, wasm};
use crate::harness::{Dice, Node, compiled};

/// Deploys the guest of this name as it was built, and returns its kind.
#[track_caller]
fn deploy(node: &Node, name: &str) -> String {
    let wasm = std::fs::read(guest(name)).unwrap();
    let reply = node.deploy(name, &wasm, "");
    assert_eq!(reply.status(), 201, "{}", reply.text());
    reply.json()["kind"].as_str().unwrap().to_owned()
}

#[test]
fn a_module_of_spin_is_made_a_component() {
    let mut node = Node::start(&[]);
    assert_eq!(&std::fs::read(guest("spin5")).unwrap()[..8], b"\0asm\x01\0\0\0");
    assert_eq!(deploy(&node, "spin5"), "http-0.2");
    let ask = |node: &Node| node.data.post("/spin5/a/b", b"body");
    let check = |reply: Reply| {
        assert_eq!((reply.status(), reply.header("hob-error")), (201, None), "{}", reply.text());
        assert_eq!((reply.text().as_str(), reply.header("content-type")), ("POST /a/b: body", Some("text/x-spin")));
        reply.header("hob-start").unwrap().to_owned()
    };
    assert_eq!(check(ask(&node)), "resident");
    assert!(node.logs("spin5").iter().any(|(_, _, text)| text == "4 bytes"));
    node.restart();
    assert_eq!(check(ask(&node)), "stored");
    // What is kept is what was uploaded, and it is built again as it was at first.
    let dir = node.dir();
    for artifact in node.files("artifacts") {
        std::fs::remove_file(artifact).unwrap();
    }
    node.restart();
    check(compiled(|| ask(&node)));
    drop(dir);
}

#[test]
fn modules_with_a_type_that_is_none_are_refused() {
    let node = Node::start(&[]);
    let typed = |fields: &str, section: &str| wasm(&format!("(module {fields} (@custom \"component-type:x\" \"{section}\"))"));
    for (bytes, word) in [
        (typed("", "nonsense"), "carries the type of a component"),
        (typed("(func (export \"_start\"))", ""), "carries the type of a component"),
        (typed("(func (result i32))", ""), "not valid"),
        (typed(&"(memory 1)".repeat(3), ""), "3 memories"),
    ] {
        let reply = node.deploy("typed", &bytes, "");
        assert_eq!(reply.status(), 422, "{}", reply.text());
        let problem = reply.json();
        assert!(problem["detail"].as_str().unwrap().contains(word), "{word}: {problem}");
        assert!(problem["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{problem}");
    }
    // A handler is one whatever else it carries.
    let handler = crate::harness::wat::says("handled").replacen("(module", "(module (@custom \"component-type:x\" \"y\")", 1);
    assert_eq!(node.deploy_wat("handler", &handler, "").json()["kind"], "handler");
}

#[test]
fn damaged_modules_of_spin() {
    let node = Node::start(&[]);
    let good = std::fs::read(guest("spin5")).unwrap();
    let name = b"component-type";
    let section = good.windows(name.len()).position(|window| window == name).unwrap();
    let mut dice = Dice::new(11);
    for _ in 0..24 {
        let mut bytes = good.clone();
        let at = section + dice.below((good.len() - section).min(6000));
        bytes[at] ^= 1 << dice.below(8);
        let reply = node.deploy("damaged", &bytes, "[limits]\ncpu = \"50ms\"\nwall = \"1s\"\n");
        assert!(matches!(reply.status(), 200 | 201 | 422), "byte {at}: {} {}", reply.status(), reply.text());
    }
}

#[test]
fn a_function_of_spin_for_http_03() {
    let node = Node::start(&[]);
    assert_eq!(deploy(&node, "spin7"), "http-0.3");
    assert_eq!(node.data.post("/spin7/a/b", b"body").ok().text(), "POST /a/b");
}

#[test]
fn an_exit_code_has_eight_bits() {
    let text = wat::command("(func (export \"_start\") (call $proc_exit (i32.const 255)))");
    let (_dir, path) = file("exits.wasm", &wasm(&text));
    let output = hob(&["run", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(255), "{output:?}");
}

#[test]
fn a_program_of_what_was_before_the_first_preview() {
    let text = wat::command("(func (export \"_start\"))").replace("wasi_snapshot_preview1", "wasi_unstable");
    let refused = Node::start(&[]).deploy("old", &wasm(&text), "").problem(422, "not-deployable");
    assert!(refused["hint"].as_str().unwrap().contains("wasm32-wasip1"), "{refused}");
}

/// A command that answers with its arguments and its input in capitals, and fails when that is `fail`.
#[track_caller]
fn check_command(name: &str, kind: &str) {
    let node = Node::start(&[]);
    assert_eq!(deploy(&node, name), kind);
    assert_eq!(node.data.post(&format!("/{name}"), b"body").ok().text(), "[] BODY\n");
    node.data.post(&format!("/{name}"), b"fail").problem(502, "guest-exit");
    for (input, stdout, code) in [("text", "[\"a\", \"b c\"] TEXT\n", 0), ("fail", "[\"a\", \"b c\"] FAIL\n", 1)] {
        let path = guest(name);
        let mut child = hob(&["run", path.to_str().unwrap(), "a", "b c"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn a_program_that_calls_02_is_made_a_component() {
    check_command("cli2", "command-0.2");
}

#[test]
fn a_command_of_03() {
    check_command("cli3", "command-0.3");
}
