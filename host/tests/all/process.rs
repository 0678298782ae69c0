//! The walls around the process and its builds, and what is left of each when another dies. By the real binary on this kernel, which must have
//! Landlock of Linux 6.12 and seccomp: where it has not, these tests say so by failing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Pid, Signal, kill_process};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use serde_json::Value;

use crate::harness::http::{Conn, Reply};
use crate::harness::wat::{component, does, handler, says, wasm};
use crate::harness::{Node, Setup, data_dir, eventually, serve};
use crate::tls::Pair;

/// A field of `/proc/PID/status`.
fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
}

/// All processes below one.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let text = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok()).collect::<Vec<_>>().join(" ");
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// The process that starts builds.
fn helper(node: &Node) -> u32 {
    match children(node.pid())[..] {
        [helper] => helper,
        ref others => panic!("{others:?}"),
    }
}

/// Whether a process runs: a zombie does not.
fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// A bug of the node, as a client sees one.
#[track_caller]
fn is_bug(reply: Reply) {
    assert_eq!((reply.status(), reply.header("hob-error")), (500, Some("internal")), "{}", reply.text());
    assert!(!reply.text().contains("planted"), "{}", reply.text());
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.try_into().unwrap()).unwrap(), Signal::KILL).unwrap();
}

/// A handler whose initialisation does not end.
fn spins() -> String {
    handler("(func (export \"hob_init\") (loop $again (br $again))) (func (export \"hob_handle\"))")
}

/// Begins a build that does not end, and returns its process.
fn begin_endless(node: &Node, conn: &mut Conn) -> u32 {
    conn.request("PUT", "/v1/functions/spins", &[("content-type", "application/wasm")], &wasm(&spins()));
    let helper = helper(node);
    eventually("it is being built", || !children(helper).is_empty());
    children(helper)[0]
}

const ENDLESS: &[&str] = &["build.init=1h", "build.cpu=1h"];

#[test]
fn walls_stand_around_every_thread_and_are_reported() {
    let node = Node::start(&["process.core_dumps=false"]);
    node.deploy_wat("a", &says("a"), "");
    let readyz = node.control.get("/readyz").ok().text();
    assert_eq!(readyz, "ok\nbuilds: ok\nsandbox: landlock and seccomp\n");
    assert_eq!(node.metric("hob_sandboxed"), 1);
    let tasks: Vec<_> = std::fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().flatten().collect();
    assert!(tasks.len() > 5);
    for task in tasks {
        let text = std::fs::read_to_string(task.path().join("status")).unwrap();
        assert!(text.contains("NoNewPrivs:\t1\n") && text.contains("Seccomp:\t2\n"), "{text}");
    }
    let helper = helper(&node);
    assert_eq!((status(helper, "NoNewPrivs").as_str(), status(helper, "Threads").as_str()), ("1", "1"));
    // Neither leaves a core, and no other process of the same user may look into it.
    for pid in [node.pid(), helper] {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().collect::<Vec<_>>()[4..6], ["0", "0"], "{core}");
        assert_eq!(owner(pid), 0, "what cannot be dumped belongs to root");
    }
}

/// Who owns what shows the memory of a process: root, if it cannot be dumped.
fn owner(pid: u32) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(format!("/proc/{pid}/environ")).unwrap())
}

#[test]
fn a_node_can_be_started_without_walls() {
    let node = Node::start(&["process.sandbox=off", "process.core_dumps=true"]);
    node.deploy_wat("a", &says("a"), "");
    assert_eq!(node.data.get("/a").ok().text(), "a");
    assert!(node.control.get("/readyz").ok().text().ends_with("sandbox: off\n"));
    assert_eq!(node.metric("hob_sandboxed"), 0);
    assert_eq!((status(node.pid(), "NoNewPrivs").as_str(), status(node.pid(), "Seccomp").as_str()), ("0", "0"));
}

/// Runs `probe`, a word that debug builds know, inside of the walls of a node or a build.
fn probe(node: &Node, word: &str, path: &str) -> String {
    let reply = node.control.get(&format!("/debug/probe/{word}?{path}")).ok();
    reply.text()
}

#[test]
fn a_node_reaches_nothing_but_what_is_named() {
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name).to_str().unwrap().to_owned();
    std::fs::create_dir(at("shown")).unwrap();
    for file in ["secret", "shown/page"] {
        std::fs::write(at(file), "text").unwrap();
    }
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let config = at("hob.toml");
    std::fs::write(&config, format!("[process]\nread = ['{}']\n", at("shown"))).unwrap();
    let mut command = serve(&data_dir(&dir));
    command.args(["--config", &config]);
    let node = Node::run(command, dir.clone()).unwrap();
    let inside = data_dir(&dir).join("probe").to_str().unwrap().to_owned();
    for (word, path, answer) in [
        ("write", &*inside, "done"),
        ("read", &*inside, "done"),
        ("read", &*at("shown/page"), "done"),
        ("write", &*at("shown/page"), "EACCES"),
        ("read", &*at("secret"), "EACCES"),
        ("write", &*at("new"), "EACCES"),
        ("read", "/etc/passwd", "EACCES"),
        ("read", "/etc/hosts", "done"),
        ("read", "/proc/1/environ", "EACCES"),
        ("listen", "127.0.0.1:0", "EACCES"),
        ("connect", &*node.data.addr.to_string(), "done"),
        ("unix", "/run/any", "ENOSYS"),
    ] {
        assert_eq!(probe(&node, word, path), answer, "{word} {path}");
    }
    assert_eq!(std::fs::read_to_string(at("shown/page")).unwrap(), "text");
}

/// What a node that has ended said at this level, each line with all its fields.
fn said(node: &Node, level: &str) -> Vec<Value> {
    let lines = node.stderr();
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{line}")));
    lines.filter(|line| line["level"] == level).map(|line| line["fields"].clone()).collect()
}

/// Its warnings about paths that somebody named, whatever else there was to warn of.
fn warned(node: &Node) -> Vec<Value> {
    let about_paths = |line: &Value| line["message"].as_str().unwrap().starts_with("a path that is named");
    said(node, "WARN").into_iter().filter(about_paths).collect()
}

/// The paths that a line of the log names.
fn paths(line: &Value, field: &str) -> Vec<String> {
    serde_json::from_str(line[field].as_str().unwrap()).unwrap()
}

#[test]
fn what_stays_in_reach_is_told_at_start() {
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name).to_str().unwrap().to_owned();
    for folder in ["shown", "work"] {
        std::fs::create_dir(at(folder)).unwrap();
    }
    let (read, write) = (format!("process.read=['{}']", at("shown")), format!("process.write=['{}']", at("work")));
    let mut node = Node::start(&[&read, &write]);
    node.stop();
    // One line has all, and what Hob names by itself and is not there is told nowhere.
    let told: Vec<_> = said(&node, "INFO").into_iter().filter(|line| !line["read"].is_null()).collect();
    let [line] = &told[..] else { panic!("{}", node.stderr()) };
    let mut written = [at("work"), node.data_dir().to_str().unwrap().to_owned()];
    written.sort();
    assert_eq!(paths(line, "write"), written);
    let read = paths(line, "read");
    for path in [&at("shown"), "/etc/hosts", "/proc"] {
        assert!(read.iter().any(|one| one == path), "{path}: {read:?}");
    }
    assert!(read.iter().all(|path| Path::new(path).exists()), "{read:?}");
    assert!(warned(&node).is_empty(), "{}", node.stderr());
    // Of a certificate, its whole folder.
    let pair = Pair::new();
    let mut node = pair.start(&[]);
    node.stop();
    let line = said(&node, "INFO").into_iter().find(|line| !line["read"].is_null()).unwrap();
    let folder = std::fs::canonicalize(pair.cert().parent().unwrap()).unwrap();
    assert!(paths(&line, "read").iter().any(|path| Path::new(path) == folder), "{line}");
    // Without a wall, nothing is said to be behind it, and no rule is missed.
    let mut node = Node::start(&["process.sandbox=off", "process.read=['/nonexistent']"]);
    node.stop();
    assert!(!node.stderr().contains("wall stands") && warned(&node).is_empty(), "{}", node.stderr());
}

#[test]
fn paths_that_are_named_and_cannot_be_are_warned_of() {
    let outside = tempfile::tempdir().unwrap();
    let at = |name: &str| outside.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("file"), "text").unwrap();
    // A file is what may be read; below it nothing can be opened.
    let read = format!("process.read=['{}', '{}']", at("file"), at("file/below"));
    let write = format!("process.write=['{}', '{}']", at("nope"), at("file"));
    let mut node = Node::start(&[&read, &write]);
    std::fs::create_dir(at("nope")).unwrap();
    assert_eq!(probe(&node, "write", &at("nope/new")), "EACCES", "as the warning says");
    assert_eq!(probe(&node, "write", &at("file")), "done");
    node.stop();
    let warned = warned(&node);
    let [below, nope, file] = &warned[..] else { panic!("{}", node.stderr()) };
    for (line, key, path, follows) in [
        (below, "process.read", "file/below", "stays out of reach"),
        (nope, "process.write", "nope", "stays out of reach"),
        (file, "process.write", "file", "not be removed or replaced"),
    ] {
        assert_eq!((line["key"].as_str(), line["path"].as_str()), (Some(key), Some(&*at(path))), "{line}");
        assert!(line["message"].as_str().unwrap().contains(follows), "{line}");
    }
    let line = said(&node, "INFO").into_iter().find(|line| !line["read"].is_null()).unwrap();
    assert!(paths(&line, "read").contains(&at("file")) && !paths(&line, "read").contains(&at("file/below")), "{line}");
    assert!(paths(&line, "write").contains(&at("file")) && !paths(&line, "write").contains(&at("nope")), "{line}");
}

#[test]
fn paths_from_the_current_folder_refuse_the_start() {
    for key in ["process.read", "process.write"] {
        let setting = format!("{key}=['/', 'shown']");
        let ended = Node::try_start(Setup { settings: &[&setting], ..Setup::default() }).unwrap_err();
        assert_ne!(ended.status.code(), Some(0));
        assert!(ended.stderr.contains(&format!("{key} is 'shown': expected absolute paths")), "{}", ended.stderr);
    }
}

#[test]
fn what_a_kernel_lacks_is_told_or_refused() {
    for (call, wall) in [(444, "Landlock"), (317, "seccomp")] {
        // As on a kernel without it.
        let without = |settings: &[&str]| {
            std::thread::scope(|scope| {
                let body = || {
                    let none = SeccompAction::Errno(38);
                    let rules: BTreeMap<_, _> = [(call, Vec::new())].into();
                    let arch = std::env::consts::ARCH.try_into().unwrap();
                    let program: BpfProgram =
                        SeccompFilter::new(rules, SeccompAction::Allow, none, arch).unwrap().try_into().unwrap();
                    seccompiler::apply_filter(&program).unwrap();
                    Node::try_start(Setup { settings, ..Setup::default() })
                };
                scope.spawn(body).join().unwrap()
            })
        };
        let node = without(&[]).unwrap();
        let readyz = node.control.get("/readyz").ok().text();
        assert!(readyz.contains("missing: ") && readyz.contains(wall), "{readyz}");
        assert_eq!(node.stderr().contains("wall stands around files"), wall != "Landlock", "{}", node.stderr());
        eventually("it is told", || node.stderr().contains("not all walls"));
        assert_eq!(node.metric("hob_sandboxed"), 0);
        node.deploy_wat("a", &says("a"), "");
        assert_eq!(node.data.get("/a").ok().text(), "a");
        let ended = without(&["process.sandbox=on"]).unwrap_err();
        assert_ne!(ended.status.code(), Some(0));
        assert!(ended.stderr.contains(wall) && ended.stderr.contains("auto"), "{}", ended.stderr);
    }
    let node = Node::start(&["process.sandbox=on"]);
    assert!(node.control.get("/readyz").ok().text().contains("landlock and seccomp"));
}

/// What the descriptors of a process lead to.
fn open_files(pid: &str) -> Vec<String> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let targets = all.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.map(|target| target.to_str().unwrap().to_owned()).collect()
}

#[test]
fn a_build_can_open_connect_and_start_nothing() {
    let node = Node::start(ENDLESS);
    let mut conn = node.control.connect();
    let build = begin_endless(&node, &mut conn);
    eventually("its walls stand", || status(build, "Seccomp") == "2");
    assert_eq!(status(build, "NoNewPrivs"), "1");
    assert_eq!(owner(build), 0);
    // Nothing but its pipes, its two outputs, and what wakes its threads.
    let open = open_files(&build.to_string());
    // What was open already in whoever runs the tests, and was not closed for programs that it starts.
    let inherited = open_files("self");
    let data = node.data_dir().to_str().unwrap().to_owned();
    for target in &open {
        let is_known = ["pipe:", "anon_inode:", "socket:", &data].iter().any(|known| target.starts_with(known));
        assert!(is_known || inherited.contains(target), "{target} of {open:?}");
    }
    assert!(open.iter().filter(|target| target.starts_with(&data)).count() >= 2, "{open:?}");
}

#[test]
fn what_a_build_tries_is_refused_by_its_walls() {
    let node = Node::start(&[]);
    // A call that is on no list ends a debug binary, which says its number: `socket`, and the one that makes a process.
    for (word, answer) in [("read", "EACCES"), ("write", "EACCES"), ("connect", "unexpectedly"), ("run", "unexpectedly")] {
        let reply = node.deploy(&format!("hob-probe-{word}"), &wasm(&says("a")), "snapshot = 'required'");
        let problem = reply.problem(422, "not-deployable");
        assert!(problem["detail"].as_str().unwrap().contains(answer), "{word}: {problem}");
    }
    let socket = format!("on no list of host/src/process/calls.rs: {:04}", libc::SYS_socket);
    // The second is made with all signals blocked, so that the kernel ends the process itself.
    eventually("both ends are told", || node.stderr().contains(&socket) && node.stderr().contains("SIGSYS"));
}

#[test]
fn without_its_helper_a_node_goes_on_and_builds_are_503() {
    let node = Node::start(ENDLESS);
    node.deploy_wat("a", &says("a"), "");
    let mut conn = node.control.connect();
    let build = begin_endless(&node, &mut conn);
    kill(helper(&node));
    // The one that was running hears of it, and its process goes along.
    conn.reply().problem(503, "overloaded");
    eventually("the build is gone", || !runs(build));
    node.deploy("b", &wasm(&says("b")), "").problem(503, "overloaded");
    let readyz = node.control.get("/readyz").ok().text();
    assert!(readyz.contains("builds: impossible"), "{readyz}");
    assert_eq!(node.data.get("/a").ok().text(), "a");
    assert!(node.stderr().contains("the helper for builds is gone"), "{}", node.stderr());
    eventually("nothing is left to be waited for", || children(node.pid()).is_empty());
}

#[test]
fn a_node_that_is_killed_leaves_no_process() {
    let mut node = Node::start(ENDLESS);
    let mut conn = node.control.connect();
    let (build, helper) = (begin_endless(&node, &mut conn), helper(&node));
    node.kill();
    eventually("nothing is left", || !runs(helper) && !runs(build));
}

#[test]
fn a_node_that_is_told_to_stop_leaves_no_process() {
    let mut node = Node::start(&[]);
    node.deploy_wat("a", &says("a"), "");
    let helper = helper(&node);
    node.stop();
    eventually("nothing is left", || !runs(helper));
}

#[test]
fn a_deploy_that_is_given_up_kills_its_build() {
    let node = Node::start(ENDLESS);
    let mut conn = node.control.connect();
    let build = begin_endless(&node, &mut conn);
    drop(conn);
    eventually("the build is gone", || !runs(build));
    // Its end is taken note of a moment later.
    eventually("nothing is left of it", || children(helper(&node)).is_empty());
    node.deploy_wat("a", &says("a"), "");
}

#[test]
fn a_binary_that_is_replaced_does_not_change_the_builds_of_a_node() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let program: PathBuf = dir.path().join("hob");
    std::fs::copy(env!("CARGO_BIN_EXE_hob"), &program).unwrap();
    let original = serve(&data_dir(&dir));
    let mut command = Command::new(&program);
    command.args(original.get_args());
    let node = Node::run(command, dir.clone()).unwrap();
    // As packages are upgraded: another file under the same name.
    let next = dir.path().join("next");
    std::fs::write(&next, "#!/bin/sh\nexit 7\n").unwrap();
    std::fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&next, &program).unwrap();
    node.deploy_wat("a", &says("a"), "");
    assert_eq!(node.data.get("/a").ok().text(), "a");
    assert_eq!(Command::new(&program).status().unwrap().code(), Some(7));
    std::fs::remove_file(&program).unwrap();
    node.deploy_wat("b", &component(""), "");
    node.deploy_wat("c", &says("c"), "");
    assert!(Path::new(&format!("/proc/{}", helper(&node))).exists());
}

#[test]
fn a_panic_in_a_host_function_costs_one_invocation() {
    let node = Node::with_bug("hob1-log");
    node.deploy_wat("a", &says("a"), "");
    node.deploy_wat("logs", &does("(call $log (i32.const 2) (i32.const 0) (i32.const 1))"), "[limits]\nconcurrency = 1\n");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..100).for_each(|_| assert_eq!(node.data.get("/a").ok().text(), "a")));
        }
        // Its one place is given back each time.
        for _ in 0..20 {
            is_bug(node.data.get("/logs"));
        }
    });
    assert_eq!((node.metric("hob_panics_total"), node.faults("internal"), node.metric("hob_instances")), (20, 20, 0));
    assert!(node.stderr().contains("panic in a host function: planted at hob1-log"), "{}", node.stderr());
}

#[test]
fn a_panic_costs_no_more_wherever_it_is() {
    // In a guest that goes on by itself after its head was sent.
    let node = Node::with_bug("hob1-log");
    let late = "(call $stream) (drop (call $body_write (i32.const 0) (i32.const 5))) (drop (call $drain))
                (call $log (i32.const 2) (i32.const 0) (i32.const 1))";
    node.deploy_wat("late", &does(late), "");
    node.deploy_wat("a", &says("a"), "");
    let mut conn = node.data.connect();
    conn.begin_chunked("POST", "/late");
    let head = conn.head();
    assert_eq!(head.status, 200);
    conn.end_chunks();
    let mut len = 0;
    assert!(!conn.body(&head, |piece| len += piece.len()), "it ends as a whole response");
    assert_eq!(len, 5);
    eventually("it is counted", || node.metric("hob_panics_total") == 1 && node.metric("hob_instances") == 0);
    assert_eq!(node.faults("internal"), 1);
    assert_eq!(node.data.get("/a").ok().text(), "a");
    // On the control port, in a route and in an invocation.
    is_bug(node.control.get("/debug/probe/panic?"));
    assert_eq!((node.metric("hob_panics_total"), node.faults("internal")), (2, 2));
    node.deploy_wat("logs", &does("(call $log (i32.const 2) (i32.const 0) (i32.const 1))"), "");
    is_bug(node.control.get("/v1/functions/logs/invoke"));
    // In the drop of what an invocation held, after its answer.
    let node = Node::with_bug("host-dropped");
    node.deploy_wat("a", &says("a"), "[limits]\nconcurrency = 1\n");
    for _ in 0..20 {
        assert_eq!(node.data.get("/a").ok().text(), "a");
    }
    eventually("each was let go", || node.metric("hob_instances") == 0);
    assert!(node.stderr().contains("panic in a drop") && node.stderr().contains("planted at host-dropped"), "{}", node.stderr());
    assert_eq!(node.faults("internal"), 0);
}
