//! What the system gives no more: descriptors, mappings, memory, room on disk. It degrades what is served, and ends nothing.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::harness::http::Conn;
use crate::harness::wat::{handler, says, wasm};
use crate::harness::{Dice, Node, data_dir, eventually, files, is_there, serve};
use crate::templates::start;

/// A node that may have so many descriptors, and whose functions `0`, `1` and so on were deployed in this order.
pub(crate) fn short_of_descriptors(limit: usize, functions: usize, settings: &[&str]) -> Node {
    let settings = [&["engine.threads=1", "net.header_timeout=1h"], settings].concat();
    let node = behind(&format!("ulimit -n {limit};"), &["sh"], &settings);
    for name in 0..functions {
        node.deploy_wat(&name.to_string(), &says(&name.to_string()), "");
    }
    node
}

/// Opens a few connections, all of which can be used, and takes what descriptors are left from the node: connections alone cannot, because it
/// keeps some from them. They come back when the connections close.
pub(crate) fn take_all_descriptors(node: &Node) -> Vec<Conn> {
    let number = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().to_str().unwrap().parse::<u64>().unwrap();
    let lowest_free = || {
        let taken: Vec<_> = std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().map(number).collect();
        (0..).find(|free| !taken.contains(free)).unwrap()
    };
    let conns: Vec<_> = (0..17)
        .map(|_| {
            let mut conn = node.data.connect();
            conn.request("GET", "/nothing", &[], b"");
            conn.reply().problem(404, "not-found");
            conn
        })
        .collect();
    // What the deploys left closes late, so it must be none for a while.
    let mut times = 0;
    let mut limit = 0;
    eventually("none is left", || {
        let free = lowest_free();
        times = if free == limit { times + 1 } else { 0 };
        limit = free;
        bound_descriptors(node, Some(limit));
        times == 20
    });
    conns
}

/// Closes those connections, and gives the node the descriptors back that were taken from it.
pub(crate) fn give_back(node: &Node, conns: Vec<Conn>) {
    drop(conns);
    bound_descriptors(node, None);
}

/// Lets a node have as many descriptors; as many as it began with when `None`.
fn bound_descriptors(node: &Node, current: Option<u64>) {
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", node.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let maximum = line.split_whitespace().nth(4).unwrap().parse().ok();
    let pid = Pid::from_raw(node.pid().try_into().unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: current.or(maximum), maximum }).unwrap();
}

#[test]
fn out_of_descriptors_half_of_the_templates_are_given_up() {
    const LIMIT: usize = 100;
    let node = short_of_descriptors(LIMIT, 12, &["engine.templates_max=8"]);
    assert!(node.stderr().contains("templates in memory at most"), "{}", node.stderr());
    let mut conns = take_all_descriptors(&node);
    conns[0].request("GET", "/0", &[], b"");
    let reply = conns[0].reply().ok();
    assert_eq!((reply.text().as_str(), reply.header("hob-start")), ("0", Some("stored")));
    // Those that were used last stayed.
    conns[0].request("GET", "/11", &[], b"");
    assert_eq!(conns[0].reply().ok().header("hob-start"), Some("resident"));
    give_back(&node, conns);
    eventually("the control port answers again", || node.control.try_connect().is_ok());
    assert_eq!(node.metric("hob_templates"), 5);
}

#[test]
fn out_of_descriptors_templates_make_room_for_connections() {
    const LIMIT: usize = 100;
    let node = short_of_descriptors(LIMIT, 12, &["engine.templates_max=8"]);
    let conns = take_all_descriptors(&node);
    // There is none for this one, until templates have gone.
    let mut one = node.data.connect();
    one.request("GET", "/11", &[], b"");
    assert_eq!(one.reply().ok().text(), "11");
    assert!(node.stderr().contains("giving up half of the templates"), "{}", node.stderr());
    give_back(&node, conns);
}

#[test]
fn out_of_descriptors_with_nothing_to_give_up_is_503() {
    const LIMIT: usize = 100;
    let node = short_of_descriptors(LIMIT, 2, &["engine.templates_max=1"]);
    let mut conns = take_all_descriptors(&node);
    // Loading takes two descriptors for a moment, and giving up the one template leaves one.
    conns[0].request("GET", "/0", &[], b"");
    let reply = conns[0].reply();
    reply.problem(503, "overloaded");
    assert!(reply.header("retry-after").is_some());
    give_back(&node, conns);
    assert_eq!(start(&node, "0", "0"), "stored");
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 0, "nothing was wrong with its artifact");
}

#[test]
fn the_limit_of_descriptors_bounds_the_templates() {
    const LIMIT: usize = 100;
    // A quarter of them; two for each where a template may be loaded twice.
    for (settings, templates) in [(&["engine.large_instances_max=0"][..], LIMIT / 4), (&[], LIMIT / 8)] {
        let node = short_of_descriptors(LIMIT, 30, settings);
        assert_eq!(node.metric("hob_templates"), templates as u64);
        for name in 0..30 {
            assert_eq!(start(&node, &name.to_string(), &name.to_string()), "stored", "{name}");
        }
        assert!(node.stderr().contains("the limit of open files"), "{}", node.stderr());
    }
}

/// Bounds what the node has of `resource` from now on; `None` lifts the bound.
fn bound(node: &Node, resource: Resource, bytes: Option<u64>) {
    let pid = Pid::from_raw(node.pid().try_into().unwrap());
    prlimit(pid, resource, Rlimit { current: bytes, maximum: None }).unwrap();
}

/// A node whose folder is a file system of its own with so many MiB; `None` where none can be mounted.
pub(crate) fn on_tmpfs(mib: u32, settings: &[&str]) -> Option<Node> {
    const SHELL: [&str; 3] = ["unshare", "-Urm", "sh"];
    let mount = format!("mount -t tmpfs -o size={mib}m tmpfs \"$0\" &&");
    let probe = Command::new(SHELL[0]).args(&SHELL[1..]).args(["-c", &format!("{mount} true"), "/tmp"]).output();
    let is_there = is_there("unshare", probe.is_ok_and(|output| output.status.success()), "a full file system");
    is_there.then(|| behind(&mount, &SHELL, settings))
}

/// A node that is started by a line of shell in front of its own command, with arguments from `$1` on and its folder as `$0`.
pub(crate) fn behind(line: &str, shell: &[&str], settings: &[&str]) -> Node {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let hob = serve(&data_dir(&dir));
    let mut command = Command::new(shell[0]);
    command
        .args(&shell[1..])
        .arg("-c")
        .arg(format!("{line} exec \"$@\""))
        .arg(dir.path())
        .arg(hob.get_program())
        .args(hob.get_args());
    for setting in settings {
        command.args(["--set", setting]);
    }
    Node::run(command, dir).unwrap()
}

/// Addresses that the node has reserved, in bytes.
fn addresses(node: &Node) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// A handler that answers with `text`, and whose snapshot has 256 MiB, most of them holes.
fn sparse(text: &str) -> String {
    let len = text.len();
    handler(&format!(
        "(func (export \"hob_init\")
           (if (i32.eq (memory.grow (i32.const 4095)) (i32.const -1)) (then unreachable))
           (i32.store8 (i32.const 268435455) (i32.const 1)))
         (data (i32.const 0) \"{text}\")
         (func (export \"hob_handle\") (call $answer (i32.const 200) (i32.const 0) (i32.const {len})))"
    ))
}

#[test]
fn a_template_that_cannot_be_mapped_is_503_until_it_can() {
    let node = Node::start(&["engine.threads=1", "engine.templates_max=2"]);
    node.deploy_wat("sparse", &sparse("sparse"), "snapshot = \"required\"\n[limits]\nmemory = \"257MiB\"\n");
    for name in ["a", "b"] {
        node.deploy_wat(name, &says(name), "");
    }
    // Room for whatever the node itself needs, and none for 256 MiB more.
    bound(&node, Resource::As, Some(addresses(&node) + (192 << 20)));
    for _ in 0..3 {
        let reply = node.data.get("/sparse");
        let problem = reply.problem(503, "overloaded");
        assert!(problem["detail"].as_str().unwrap().contains("mappings"), "{problem}");
        assert!(reply.header("retry-after").is_some());
    }
    // Half of the templates were given up each time; they come back.
    for name in ["a", "b"] {
        assert_eq!((start(&node, name, name).as_str(), start(&node, name, name).as_str()), ("stored", "resident"), "{name}");
    }
    bound(&node, Resource::As, None);
    assert_eq!(start(&node, "sparse", "sparse"), "stored");
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 0, "nothing was wrong with its artifact");
}

#[test]
fn an_instance_that_cannot_be_mapped_is_503_until_it_can() {
    let node = Node::start(&["engine.threads=1"]);
    for name in ["a", "b"] {
        node.deploy_wat(name, &says(name), "");
    }
    // No memory may be mapped for writing any more, not even in place of memory that is.
    bound(&node, Resource::Data, Some(4096));
    for name in ["a", "b", "a", "b"] {
        let reply = node.data.get(&format!("/{name}"));
        assert_eq!((reply.status(), reply.header("hob-error")), (503, Some("overloaded")), "{}", reply.text());
        assert!(reply.header("retry-after").is_some());
    }
    bound(&node, Resource::Data, None);
    for name in ["a", "b", "a", "b"] {
        assert_eq!(start(&node, name, name), "resident", "{name}");
    }
    eventually("no instance is left", || node.metric("hob_instances") == 0);
}

#[test]
fn with_too_few_descriptors_it_does_not_start_and_says_how_many_it_needs() {
    let start = |limit: u64| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        let hob = serve(&data_dir(&dir));
        command.args(["-c", &format!("ulimit -n {limit}; exec \"$@\""), "sh"]).arg(hob.get_program()).args(hob.get_args());
        command.args(["--set", "engine.threads=3"]);
        Node::run(command, Arc::new(dir))
    };
    let ended = start(62).unwrap_err();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let said = "open 62 files, and with 3 data threads it needs 63; raise it: ulimit -n 63";
    assert!(ended.stderr.contains(said), "{}", ended.stderr);
    let node = start(63).unwrap();
    node.data.get("/nobody").problem(404, "not-found");
}

#[test]
fn a_deploy_without_descriptors_is_503_and_leaves_nothing() {
    const LIMIT: usize = 100;
    let node = short_of_descriptors(LIMIT, 1, &[]);
    // A deploy that is refused before its body was read ends its connection.
    let connect = || {
        let mut conn = node.control.connect();
        conn.request("GET", "/readyz", &[], b"");
        conn.reply().ok();
        conn
    };
    let deploy = |mut conn: Conn, name: &str| {
        conn.request("PUT", &format!("/v1/functions/{name}"), &[("content-type", "application/wasm")], &wasm(&says("new")));
        conn.reply()
    };
    let deploys = ["0", "new"].map(|name| (connect(), name));
    let conns = take_all_descriptors(&node);
    for (conn, name) in deploys {
        let reply = deploy(conn, name);
        reply.problem(503, "overloaded");
        assert!(reply.header("retry-after").is_some());
    }
    give_back(&node, conns);
    eventually("the control port answers again", || node.control.try_connect().is_ok());
    assert_eq!(start(&node, "0", "0"), "resident");
    assert_eq!(node.files("staging").len(), 0);
    assert_eq!(deploy(connect(), "new").status(), 201);
}

const MIB: usize = 1 << 20;

/// A function whose upload and native code have some 4 MiB each, and whose snapshot has 8: nothing in it can be compressed.
fn swells() -> Vec<u8> {
    let mut wasm = wasm(&handler(
        "(func (export \"hob_init\") (local $at i32) (local $x i64)
           (drop (memory.grow (i32.const 64)))
           (local.set $x (i64.const 88172645463325252))
           (loop $more
             (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 13))))
             (local.set $x (i64.xor (local.get $x) (i64.shr_u (local.get $x) (i64.const 7))))
             (local.set $x (i64.xor (local.get $x) (i64.shl (local.get $x) (i64.const 17))))
             (i64.store (i32.add (local.get $at) (i32.const 65536)) (local.get $x))
             (local.set $at (i32.add (local.get $at) (i32.const 8)))
             (br_if $more (i32.lt_u (local.get $at) (i32.const 4194304)))))
         (func (export \"hob_handle\") (call $number (i32.const 1)))",
    ));
    let mut dice = Dice::new(1);
    let noise: Vec<u8> = (0..4 * MIB).map(|_| dice.below(256) as u8).collect();
    wasm_encoder::Section::append_to(&wasm_encoder::CustomSection { name: "noise".into(), data: noise.into() }, &mut wasm);
    wasm
}

/// Deploys a function, and another revision of it for whose snapshot there is no room after `fill`; `folder`: the data directory.
#[track_caller]
fn check_no_room(node: &Node, folder: &Path, fill: impl FnOnce()) {
    node.deploy_wat("a", &says("old"), "");
    let all = || {
        let kept = ["wasm", "snapshots", "artifacts", "staging"].map(|name| files(&folder.join(name)));
        (kept, node.metric("hob_data_bytes"))
    };
    let before = all();
    assert_eq!(before.0.each_ref().map(Vec::len), [1, 0, 1, 0]);
    fill();
    for _ in 0..2 {
        node.deploy("a", &swells(), "snapshot = \"required\"").problem(507, "storage-full");
        assert_eq!(start(node, "a", "old"), "resident");
        eventually("nothing is left of it", || all() == before);
    }
}

/// Where nothing says that there must be a snapshot, there is none.
#[track_caller]
fn check_falls_back(node: &Node) {
    let deployed = node.deploy("auto", &swells(), "");
    assert_eq!(deployed.status(), 201, "{}", deployed.text());
    let answer = deployed.json();
    assert!(
        answer["snapshot"].is_null() && answer["notes"][0].as_str().unwrap().contains("no snapshot: there is no room"),
        "{answer}"
    );
    assert_eq!(node.data.get("/auto").good(), 1u32.to_le_bytes());
}

/// What the child wrote before the file system was full is free again when it is built without a snapshot.
#[test]
fn a_snapshot_that_takes_all_of_the_file_system_leaves_room_for_the_function() {
    let Some(node) = on_tmpfs(60, &[]) else { return };
    let wasm = wasm(&handler(
        "(func (export \"hob_init\")
           (drop (memory.grow (i32.const 1600)))
           (memory.fill (i32.const 65536) (i32.const 7) (i32.const 104857600)))
         (func (export \"hob_handle\") (call $number (i32.load8_u (i32.const 65536))))",
    ));
    for name in ["one", "two", "three"] {
        let deployed = node.deploy(name, &wasm, "[limits]\nmemory = '256MiB'");
        assert_eq!(deployed.status(), 201, "{}", deployed.text());
        let answer = deployed.json();
        assert!(answer["snapshot"].is_null() && answer["notes"][0].as_str().unwrap().contains("there is no room"), "{answer}");
        assert_eq!(node.data.get(&format!("/{name}")).good(), 7u32.to_le_bytes(), "it initialises itself at each start");
        assert_eq!(node.control.request("DELETE", &format!("/v1/functions/{name}"), &[], b"").status(), 204);
    }
}

#[test]
fn a_snapshot_past_the_room_of_the_node_is_507() {
    let node = Node::start(&["data.bytes_max=13MiB"]);
    check_no_room(&node, &node.data_dir(), || {});
    check_falls_back(&node);
    assert!(node.metric("hob_data_bytes") <= 13 << 20);
    let node = Node::start(&["data.bytes_max=18MiB"]);
    assert_eq!(node.deploy("a", &swells(), "snapshot = \"required\"").status(), 201);
}

#[test]
fn a_snapshot_past_what_a_file_may_have_is_507() {
    let node = Node::start(&[]);
    check_no_room(&node, &node.data_dir(), || {
        let pid = Pid::from_raw(node.pid().try_into().unwrap());
        let bytes = Some(6 << 20);
        prlimit(pid, Resource::Fsize, Rlimit { current: bytes, maximum: bytes }).unwrap();
    });
}

#[test]
fn a_snapshot_past_a_full_file_system_is_507() {
    let Some(node) = on_tmpfs(64, &[]) else { return };
    // The file system is the node's alone.
    let folder = PathBuf::from(format!("/proc/{}/root{}", node.pid(), node.data_dir().display()));
    check_no_room(&node, &folder, || {
        let room = rustix::fs::statvfs(&folder).unwrap();
        let free = usize::try_from(room.f_bavail * room.f_frsize).unwrap();
        // For the upload, the native code and half of the snapshot.
        std::fs::write(folder.join("others"), vec![1; free - 12 * MIB]).unwrap();
    });
    check_falls_back(&node);
    std::fs::remove_file(folder.join("others")).unwrap();
    assert_eq!(node.deploy("a", &swells(), "snapshot = \"required\"").status(), 200);
}
