//! The command line, as its users meet it: what it prints where, how it exits, and what it says when something is wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::examples::example;
use crate::harness::wat::{SPINS, command, does, says, wasm};
use crate::harness::{Node, eventually};

pub(crate) fn hob(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("HOB_SERVER").env("NO_COLOR", "1");
    command
}

/// Runs a command of a node, and returns its output.
pub(crate) fn at(node: &Node, args: &[&str]) -> Output {
    let server = format!("http://{}", node.control.addr);
    hob(args).env("HOB_SERVER", server).output().unwrap()
}

#[track_caller]
pub(crate) fn check(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    if !matches!(code, 0 | 2 | 124) && !stderr.is_empty() {
        assert!(stderr.contains("error: ") && stderr.matches("next: ").count() == 1, "{stderr}");
    }
    (stdout, stderr)
}

/// A folder with a file of this text as Wasm.
pub(crate) fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn run_passes_streams_arguments_and_the_exit_code() {
    let (_dir, exits) = file("exits.wasm", &wasm(&command(r#"(func (export "_start") (call $proc_exit (i32.const 3)))"#)));
    check(&hob(&["run", exits.to_str().unwrap()]).output().unwrap(), 3);
    let (_dir, words) = file("words.wasm", &example("wordcount").wasm);
    let mut child = hob(&["run", words.to_str().unwrap(), "-o", "json"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a b a").unwrap();
    let (stdout, stderr) = check(&child.wait_with_output().unwrap(), 0);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("0 lines, 3 words, 5 bytes\na 2\nb 1\n", ""));
}

#[test]
fn run_tells_traps_deadlines_and_odd_files_apart() {
    let start = |code: &str| wasm(&command(&format!(r#"(func (export "_start") {code})"#)));
    let (dir, traps) = file("traps.wasm", &start("unreachable"));
    check(&hob(&["run", traps.to_str().unwrap()]).output().unwrap(), 6);
    let (_dir, spins) = file("spins.wasm", &start(SPINS));
    check(&hob(&["run", "--limit", "cpu=50ms", spins.to_str().unwrap()]).output().unwrap(), 124);
    check(&hob(&["run", "--limit", "cpu", spins.to_str().unwrap()]).output().unwrap(), 2);
    let (_dir, text) = file("text.wasm", b"hello");
    let (_dir, empty) = file("empty.wasm", b"");
    for odd in [Path::new("/nonexistent.wasm"), dir.path(), &text, &empty, Path::new("/dev/null")] {
        let (stdout, stderr) = check(&hob(&["run", odd.to_str().unwrap()]).output().unwrap(), 1);
        assert!(stdout.is_empty() && !stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn an_interrupt_ends_a_command_with_130() {
    let looping = command(&format!(
        r#"(data (i32.const 0) "up\n") (func (export "_start") (call $write (i32.const 1) (i32.const 0) (i32.const 3)) {SPINS})"#
    ));
    let (_dir, path) = file("looping.wasm", &wasm(&looping));
    let mut child = hob(&["run", path.to_str().unwrap()]).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn run_serves_what_is_no_command_until_it_is_interrupted() {
    let (_dir, handler) = file("handler.wasm", &wasm(&says("here")));
    let (_dir, component) = file("component.wasm", &example("hello-http").wasm);
    for (path, expected) in [(&handler, "here"), (&component, "Hello, world!\n")] {
        let mut child = hob(&["run", "--addr", "127.0.0.1:0", path.to_str().unwrap()]).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let addr = line.trim().split("http://").nth(1).unwrap_or_else(|| panic!("{line}"));
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.write_all(b"GET /any HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(expected) && answer.contains("hob-executed: 1"), "{answer}");
        signal(&child, Signal::INT);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    let (_, stderr) = check(&hob(&["run", "--addr", &addr, handler.to_str().unwrap()]).output().unwrap(), 1);
    assert!(stderr.contains("next: hob run --addr 127.0.0.1:0"), "{stderr}");
}

#[test]
fn a_function_goes_through_its_life() {
    let node = Node::start(&[]);
    let (_dir, first) = file("greeter.wasm", &wasm(&says("one")));
    let (stdout, _) = check(&at(&node, &["deploy", first.to_str().unwrap(), "-o", "json"]), 0);
    let info: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((info["name"].as_str(), info["revision"].as_u64()), (Some("greeter"), Some(1)));
    let (_dir, second) = file("other.wasm", &wasm(&says("two")));
    check(&at(&node, &["deploy", second.to_str().unwrap(), "--name", "greeter", "--if-match", "0"]), 1);
    let etag = info["etag"].as_str().unwrap().trim_matches('"');
    check(&at(&node, &["deploy", second.to_str().unwrap(), "--name", "greeter", "--if-match", etag]), 0);
    assert_eq!(check(&at(&node, &["invoke", "greeter"]), 0).0, "two");
    let (list, _) = check(&at(&node, &["ls", "-o", "json"]), 0);
    assert_eq!(serde_json::from_str::<Value>(&list).unwrap()[0]["revision"], 2);
    check(&at(&node, &["rollback", "greeter"]), 0);
    assert_eq!(check(&at(&node, &["invoke", "greeter", "-d", "x", "-X", "PUT", "-H", "a: b"]), 0).0, "one");
    let (detail, _) = check(&at(&node, &["inspect", "greeter", "-o", "json"]), 0);
    let detail: Value = serde_json::from_str(&detail).unwrap();
    assert!(detail["usage"]["start_times"]["resident"]["p99_ms"].as_f64().unwrap() > 0.0, "{detail}");
    let (text, _) = check(&at(&node, &["inspect", "greeter"]), 0);
    assert!(text.contains("resident=1 (p50 ") && !text.contains("compiled="), "{text}");
    assert_eq!((detail["tenant"].as_str(), detail["revisions"].as_array().map(Vec::len)), (Some("default"), Some(2)));
    check(&at(&node, &["rm", "greeter"]), 0);
    for gone in
        [&["rm", "greeter"][..], &["invoke", "greeter"], &["inspect", "greeter"], &["logs", "greeter"], &["rollback", "greeter"]]
    {
        check(&at(&node, gone), 3);
    }
}

#[test]
fn invoke_tells_faults_by_its_exit_code_and_logs_shows_why() {
    let node = Node::start(&[]);
    node.deploy_wat("traps", &does("unreachable"), "");
    node.deploy_wat("spins", &does(SPINS), "[limits]\ncpu = '50ms'\n");
    node.deploy_wat(
        "speaks",
        &command(
            r#"(data (i32.const 0) "\1b[2J\n") (func (export "_start") (call $write (i32.const 2) (i32.const 0) (i32.const 5)))"#,
        ),
        "",
    );
    check(&at(&node, &["invoke", "traps"]), 6);
    assert!(check(&at(&node, &["invoke", "spins"]), 124).1.contains("next: hob logs spins"));
    check(&at(&node, &["invoke", "speaks", "-i"]), 0);
    eventually("the guest's words are in its log", || {
        let (log, _) = check(&at(&node, &["logs", "speaks"]), 0);
        assert!(!log.contains('\x1b'), "{log}");
        log.ends_with(" \\u{1b}[2J\n")
    });
    let server = format!("http://{}", node.control.addr);
    let mut follow = hob(&["logs", "-f", "--tail", "1", "-o", "json", "speaks"]).env("HOB_SERVER", server).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(follow.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["text"], "\u{1b}[2J");
    signal(&follow, Signal::INT);
    assert_eq!(follow.wait().unwrap().code(), Some(130));
}

#[test]
fn without_a_daemon_the_exit_code_is_5() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_, stderr) = check(&hob(&["ls", "--server", &format!("http://{free}")]).output().unwrap(), 5);
    assert!(stderr.contains("next: hob serve"), "{stderr}");
    check(&hob(&["ls", "--server", "https://127.0.0.1:1"]).output().unwrap(), 2);
}

#[test]
fn a_new_project_builds_and_deploys_outside_of_the_workspace() {
    let node = Node::start(&[]);
    // Building the examples has fetched what the templates need, in these versions.
    drop(example("hello"));
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/Cargo.lock");
    for (template, method, body, expected) in [
        ("rust-handler", "GET", "", "Hello from /a\n"),
        ("rust-command", "POST", "abc", "ABC"),
        ("rust-http", "GET", "", "Hello from /a\n"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("my-{template}");
        check(&hob(&["new", &name, "-t", template]).current_dir(&dir).output().unwrap(), 0);
        check(&hob(&["new", &name, "-t", template]).current_dir(&dir).output().unwrap(), 1);
        let project = dir.path().join(&name);
        std::fs::copy(&lock, project.join("Cargo.lock")).unwrap();
        let server = format!("http://{}", node.control.addr);
        check(
            &hob(&["deploy"]).current_dir(&project).env("HOB_SERVER", server).env("CARGO_NET_OFFLINE", "true").output().unwrap(),
            0,
        );
        assert_eq!(check(&at(&node, &["invoke", &name, "-X", method, "--path", "/a", "-d", body]), 0).0, expected, "{template}");
    }
}

#[test]
fn doctor_says_what_it_found_as_json_too() {
    let dir = tempfile::tempdir().unwrap();
    // Ports may be taken on the machine that runs this, so only the form and some lines are held to.
    let output = hob(&["doctor", "-o", "json", "--data-dir", dir.path().to_str().unwrap()]).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let state = |name: &str| checks.iter().find(|check| check["check"] == name).map(|check| check["state"].clone());
    assert_eq!((state("cargo"), state("data directory")), (Some("ok".into()), Some("ok".into())));
}
