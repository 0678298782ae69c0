//! What is kept on disk: revisions and their files, who may use the folder, and what is done about damage.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::http::Port;
use crate::harness::wat::{says, waits, wasm};
use crate::harness::{Ended, Node, Setup, compiled, data_dir, eventually, files, patiently, serve};

fn revisions(node: &Node, name: &str) -> Vec<(u64, bool)> {
    let list = node.control.get(&format!("/v1/functions/{name}/revisions")).ok().json();
    let revision = |item: &serde_json::Value| (item["revision"].as_u64().unwrap(), item["live"].as_bool().unwrap());
    list["items"].as_array().unwrap().iter().map(revision).collect()
}

#[test]
fn ten_revisions_are_kept_and_older_files_collected() {
    let node = Node::start(&[]);
    for number in 1..=12 {
        node.deploy_wat("a", &says(&format!("number {number}")), "");
    }
    let kept: Vec<_> = (3..=12).rev().map(|number| (number, number == 12)).collect();
    assert_eq!(revisions(&node, "a"), kept);
    eventually("the files of two are gone", || (node.files("wasm").len(), node.files("artifacts").len()) == (10, 10));
    eventually("they are counted", || node.metric("hob_collected_total") >= 4);
    let used: u64 =
        [node.files("wasm"), node.files("artifacts")].concat().iter().map(|file| file.metadata().unwrap().len()).sum();
    eventually("what is counted is what is there", || node.metric("hob_data_bytes") == used);
    assert_eq!(node.data.get("/a").ok().text(), "number 12");
    node.control.post("/v1/functions/a/rollback", b"{\"to\": 2}").problem(404, "not-found");
    node.control.post("/v1/functions/a/rollback", b"{\"to\": 3}").ok();
    assert_eq!(node.data.get("/a").ok().text(), "number 3");
}

#[test]
fn rollback_and_removal() {
    let mut node = Node::start(&[]);
    for text in ["one", "two", "three"] {
        node.deploy_wat("a", &says(text), "");
    }
    let back = |node: &Node, body: &str| node.control.post("/v1/functions/a/rollback", body.as_bytes());
    back(&node, "").ok();
    assert_eq!(node.data.get("/a").ok().text(), "two");
    assert_eq!(revisions(&node, "a"), [(3, false), (2, true), (1, false)]);
    back(&node, "").ok();
    assert_eq!(node.data.get("/a").ok().text(), "one");
    back(&node, "").problem(404, "not-found");
    back(&node, "{\"to\": 99}").problem(404, "not-found");
    back(&node, "{\"too\": 1}").problem(400, "bad-request");
    back(&node, "not json").problem(400, "bad-request");
    assert_eq!(back(&node, "{\"to\": 3}").ok().json()["revision"], 3);
    node.restart();
    assert_eq!(node.data.get("/a").ok().text(), "three");
    let tag = node.inspect("a")["etag"].as_str().unwrap().to_owned();
    assert_eq!(node.control.request("DELETE", "/v1/functions/a", &[("if-match", &tag)], b"").status(), 204);
    node.data.get("/a").problem(404, "not-found");
    node.control.request("DELETE", "/v1/functions/a", &[], b"").problem(404, "not-found");
    eventually("its files are gone", || node.files("wasm").is_empty() && node.files("artifacts").is_empty());
    assert_eq!(node.metric("hob_functions"), 0);
    node.restart();
    node.data.get("/a").problem(404, "not-found");
}

#[test]
fn what_runs_keeps_its_revision() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "[limits]\nwall = \"1h\"\n");
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/a");
    conn.chunk(b"x").unwrap();
    eventually("it runs", || node.occupancy("a") == (1, 0));
    node.deploy_wat("a", &says("new"), "");
    assert_eq!(node.data.get("/a").good(), b"new");
    assert_eq!(node.control.request("DELETE", "/v1/functions/a", &[], b"").status(), 204);
    eventually("its files are gone", || node.files("wasm").is_empty());
    conn.end_chunks();
    assert_eq!(conn.reply().good(), 1i32.to_le_bytes());
}

#[test]
fn a_deploy_that_is_refused_at_its_end_leaves_no_files() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "route = '/x'\n");
    node.deploy("b", &wasm(&says("b")), "route = '/x'\n").problem(409, "conflict");
    eventually("its files are gone", || (node.files("wasm").len(), node.files("artifacts").len()) == (1, 1));
    node.deploy("b", &wasm(&says("a")), "route = '/x'\n").problem(409, "conflict");
    node.deploy_wat("b", &says("c"), "");
    eventually("that too", || node.files("wasm").len() == 2);
    assert_eq!(node.data.get("/x").ok().text(), "a", "a file that another function needs stays");
}

#[test]
fn a_restart_finds_every_function() {
    let mut node = Node::start(&[]);
    for number in 0..20 {
        node.deploy_wat(&format!("f{number}"), &says(&format!("{number}")), &format!("route = '/r/{number}'\n"));
    }
    node.restart();
    assert_eq!((node.metric("hob_functions"), node.metric("hob_templates")), (20, 0));
    for number in 0..20 {
        let first = node.data.get(&format!("/f{number}")).ok();
        assert_eq!((first.text(), first.header("hob-start")), (number.to_string(), Some("stored")));
        let second = node.data.get(&format!("/r/{number}")).ok();
        assert_eq!((second.text(), second.header("hob-start")), (number.to_string(), Some("resident")));
    }
    assert_eq!(node.metric("hob_builds_total"), 0);
}

/// Stops a node with one function, does `damage` to its artifact, and checks that it is compiled anew.
fn heals(damage: impl Fn(&PathBuf)) {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("good"), "");
    node.deploy_wat("b", &says("other"), "");
    node.stop();
    for file in node.files("artifacts") {
        damage(&file);
    }
    node.restart();
    let reply = compiled(|| node.data.get("/a")).ok();
    assert_eq!(reply.text(), "good");
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 1);
    let rung = reply.header("hob-start").unwrap();
    assert_eq!(node.metric(&format!("hob_starts_total{{start=\"{rung}\"}}")), 1);
    let reply = node.data.get("/a").ok();
    assert_eq!(reply.header("hob-start"), Some("resident"));
    // Many at once for another one: it is compiled once.
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert_eq!(patiently(|| node.data.get("/b")).0.ok().text(), "other"));
        }
    });
    assert_eq!((node.metric("hob_builds_total"), node.metric("hob_artifacts_corrupt_total")), (2, 2));
    node.restart();
    for (name, text) in [("a", "good"), ("b", "other")] {
        let reply = node.data.get(&format!("/{name}")).ok();
        assert_eq!((reply.text().as_str(), reply.header("hob-start")), (text, Some("stored")));
    }
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 0);
}

#[test]
fn who_asks_for_the_file_is_told_of_its_damage_though_a_template_is_there() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("good"), "");
    for file in node.files("artifacts") {
        // Another file in its place: the template has the former one mapped.
        let beside = file.with_extension("new");
        std::fs::write(&beside, "nothing of the kind").unwrap();
        std::fs::rename(beside, file).unwrap();
    }
    assert_eq!(node.data.get("/a").ok().header("hob-start"), Some("resident"));
    let stored = || node.control.request("GET", "/v1/functions/a/invoke", &[("hob-start", "stored")], b"");
    let reply = compiled(stored).ok();
    assert_eq!(
        (reply.text(), node.metric("hob_artifacts_corrupt_total"), node.metric("hob_builds_total")),
        ("good".into(), 1, 2)
    );
    assert_eq!((stored().ok().header("hob-start"), node.metric("hob_artifacts_corrupt_total")), (Some("stored"), 1));
}

fn rewrite(file: &PathBuf, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(file).unwrap();
    change(&mut bytes);
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn an_artifact_with_a_flipped_bit_is_compiled_anew() {
    heals(|file| {
        rewrite(file, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    });
}

#[test]
fn an_artifact_cut_short_is_compiled_anew() {
    heals(|file| rewrite(file, |bytes| bytes.truncate(bytes.len() / 3)));
}

#[test]
fn an_artifact_that_is_gone_is_compiled_anew() {
    heals(|file| std::fs::remove_file(file).unwrap());
}

#[test]
fn another_key_makes_every_artifact_unknown() {
    heals(|file| {
        let root = file.ancestors().nth(3).unwrap();
        std::fs::write(root.join("mac.key"), [7; 32]).unwrap();
    });
}

#[test]
fn a_module_and_its_artifact_that_are_gone() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("good"), "");
    node.deploy_wat("b", &says("other"), "");
    node.stop();
    for file in [node.files("artifacts"), node.files("wasm")].concat() {
        std::fs::remove_file(file).unwrap();
    }
    node.restart();
    // The data is lost, and says so; a deploy heals it.
    for name in ["/a", "/b"] {
        node.data.get(name).problem(503, "damaged");
    }
    node.deploy_wat("a", &says("good"), "");
    assert_eq!(node.data.get("/a").ok().text(), "good");
    node.deploy_wat("b", &says("newer"), "");
    assert_eq!(node.data.get("/b").ok().text(), "newer");
}

/// The start fails with this word in what it says, and with an exit code that is an error's.
#[track_caller]
fn check_refused(started: Result<Node, Ended>, words: &[&str]) {
    let ended = started.expect_err("it started");
    let code = ended.status.code();
    assert!(code.is_some_and(|code| (1..=125).contains(&code) && code != 101), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "'{word}' in {}", ended.stderr);
    }
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
}

/// Everything about the files of a folder that a start could change.
fn listing(dir: &TempDir) -> Vec<(PathBuf, i64, i64, Vec<u8>)> {
    let about = |path: PathBuf| {
        let meta = path.metadata().unwrap();
        (path.clone(), meta.mtime(), meta.mtime_nsec(), std::fs::read(path).unwrap())
    };
    files(dir.path()).into_iter().map(about).collect()
}

#[test]
fn a_folder_of_a_newer_format_is_left_untouched() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("good"), "");
    node.stop();
    let dir = node.dir();
    let format = data_dir(&dir).join("format");
    let current: u32 = std::fs::read_to_string(&format).unwrap().trim().parse().unwrap();
    std::fs::write(&format, format!("{}\n", current + 1)).unwrap();
    let before = listing(&dir);
    check_refused(Node::try_start(Setup { dir: Some(dir.clone()), ..Setup::default() }), &["upgrade", "nothing was changed"]);
    assert!(listing(&dir) == before, "the folder was changed");
    std::fs::write(&format, format!("{current}\n")).unwrap();
    let node = Node::start_with(Setup { dir: Some(dir), ..Setup::default() });
    assert_eq!(node.data.get("/a").ok().text(), "good");
}

#[test]
fn a_folder_that_is_not_ours_is_left_untouched() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::create_dir(data_dir(&dir)).unwrap();
    std::fs::write(data_dir(&dir).join("letter.txt"), "dear").unwrap();
    let before = listing(&dir);
    check_refused(Node::try_start(Setup { dir: Some(dir.clone()), ..Setup::default() }), &["letter.txt"]);
    assert!(listing(&dir) == before);
}

#[test]
fn a_folder_that_another_daemon_uses() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &says("good"), "");
    let pid = node.pid().to_string();
    check_refused(Node::try_start(Setup { dir: Some(node.dir()), ..Setup::default() }), &["in use", &pid]);
    assert_eq!(node.data.get("/a").ok().text(), "good");
}

#[test]
fn a_folder_that_cannot_be() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(data_dir(&dir), "a file").unwrap();
    check_refused(Node::try_start(Setup { dir: Some(dir.clone()), ..Setup::default() }), &["not a directory"]);
    let below = serve(&data_dir(&dir).join("below"));
    check_refused(Node::run(below, dir.clone()), &["data"]);
    // A file system that nobody can write to, not even root.
    check_refused(Node::run(serve("/proc/self/hob".as_ref()), dir), &["/proc/self/hob"]);
}

#[test]
fn a_folder_named_from_where_the_daemon_is_started() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut command = serve("some/where".as_ref());
    command.current_dir(&*dir);
    let node = Node::run(command, dir.clone()).unwrap();
    node.deploy_wat("a", &says("here"), "");
    assert_eq!(node.data.get("/a").ok().text(), "here");
    assert!(dir.path().join("some/where/format").exists());
}

#[test]
fn a_port_that_is_in_use() {
    let node = Node::start(&[]);
    for setting in [format!("net.addr={}", node.data.addr), format!("net.control={}", node.control.addr)] {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hob"));
        command.args([
            "serve",
            "-o",
            "json",
            "--set",
            "net.addr=127.0.0.1:0",
            "--set",
            "net.control=127.0.0.1:0",
            "--set",
            &setting,
        ]);
        command.arg("--data-dir").arg(data_dir(&dir));
        check_refused(Node::run(command, dir), &["in use", setting.split_once('=').unwrap().1]);
    }
    node.control.get("/readyz").ok();
}

#[test]
fn settings_that_make_no_sense() {
    for (setting, word) in [
        ("net.hedaer_timeout=1s", "hedaer_timeout"),
        ("net.control=0.0.0.0:0", "loopback"),
        ("engine.instances_max=0", "engine.instances_max"),
        ("nothing", "nothing"),
    ] {
        check_refused(Node::try_start(Setup { settings: &[setting], ..Setup::default() }), &[word]);
    }
}

/// One request is in flight when the signal comes: it finishes, nothing new is taken, and the exit is a good one.
fn drains(signal: Signal) {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &waits(), "[limits]\nwall = \"1h\"\n");
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/a");
    conn.chunk(b"x").unwrap();
    let mut idle = node.data.connect();
    idle.request("POST", "/a", &[], b"");
    idle.reply().ok();
    let mut follower = node.control.connect();
    follower.request("GET", "/v1/functions/a/logs?follow=true", &[], b"");
    assert_eq!(follower.head().status, 200);
    eventually("it runs", || node.occupancy("a") == (1, 0));
    node.signal(signal);
    let closed = |port: &Port| port.try_connect().is_err();
    eventually("both ports are closed", || closed(&node.data) && closed(&node.control));
    assert!(idle.is_closed(), "an idle connection does not hold the node up");
    conn.chunk(b"more").unwrap();
    conn.end_chunks();
    assert_eq!(conn.reply().good(), 5i32.to_le_bytes());
    assert_eq!(node.wait().code(), Some(0), "{}", node.stderr());
}

#[test]
fn the_first_sigterm_drains() {
    drains(Signal::TERM);
}

#[test]
fn the_first_sigint_drains() {
    drains(Signal::INT);
}

#[test]
fn a_second_signal_ends_the_daemon_at_once() {
    for (second, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut node = Node::start(&["net.drain_timeout=1h"]);
        node.deploy_wat("a", &waits(), "[limits]\nwall = \"1h\"\n");
        let mut conn = node.data.connect();
        conn.begin_chunked("POST", "/a");
        conn.chunk(b"x").unwrap();
        eventually("it runs", || node.occupancy("a") == (1, 0));
        node.signal(Signal::TERM);
        eventually("it drains", || node.data.try_connect().is_err());
        node.signal(second);
        assert_eq!(node.wait().code(), Some(code), "{}", node.stderr());
    }
}

#[test]
fn draining_has_an_end() {
    let mut node = Node::start(&["net.drain_timeout=200ms"]);
    node.deploy_wat("a", &waits(), "[limits]\nwall = \"1h\"\n");
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/a");
    conn.chunk(b"x").unwrap();
    eventually("it runs", || node.occupancy("a") == (1, 0));
    node.stop();
    assert!(conn.try_head().is_none());
}

#[test]
fn a_deploy_in_flight_finishes_before_the_end() {
    let mut node = Node::start(&[]);
    let wasm = wasm(&says("late"));
    let mut conn = node.control.connect();
    conn.send(format!("PUT /v1/functions/a HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n", wasm.len()));
    conn.send(&wasm[..20]);
    eventually("it is being taken", || !node.files("staging").is_empty());
    node.signal(Signal::TERM);
    eventually("no more is taken", || node.control.try_connect().is_err());
    conn.send(&wasm[20..]);
    assert_eq!(conn.reply().status(), 201);
    assert_eq!(node.wait().code(), Some(0), "{}", node.stderr());
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    assert_eq!(node.data.get("/a").ok().text(), "late");
}
