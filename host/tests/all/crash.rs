//! Kills: at every named point of a deploy, and in the middle of many; afterwards the old or the new revision is live, whole.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use hob::crash::POINTS;
use tempfile::TempDir;

use crate::harness::wat::{says, wasm};
use crate::harness::{Node, Setup, data_dir, eventually, files};

const _: () = assert!(POINTS.len() >= 15, "the issue asks for that many");

/// From this point on the new revision is the live one after a restart.
const COMMITTED: &str = "registry-committed";

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(file, target).unwrap();
    }
}

/// A function that says `b`, and has a snapshot.
fn snapshotted() -> Vec<u8> {
    wasm(&says("b").replace("(func (export \"hob_handle\")", "(func (export \"hob_init\")) (func (export \"hob_handle\")"))
}

/// Deploys it on a node in `dir` that dies at `point`, and starts it again.
fn crash(dir: Arc<TempDir>, point: &str) -> Node {
    let mut node = Node::start_with(Setup { dir: Some(dir.clone()), crash_at: Some(point), ..Setup::default() });
    let body = snapshotted();
    let mut conn = node.control.connect();
    conn.request("PUT", "/v1/functions/f", &[("content-type", "application/wasm")], &body);
    assert!(conn.try_head().is_none(), "{point}: it answered and did not die");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&node.wait()), Some(9), "{point}");
    drop(node);
    Node::start_with(Setup { dir: Some(dir), ..Setup::default() })
}

/// The function answers `expected`, nothing is left over, and the next deploy works.
#[track_caller]
fn check_whole(node: &Node, point: &str, expected: Option<&str>) {
    assert!(node.files("staging").is_empty(), "{point}: {:?}", node.files("staging"));
    match expected {
        Some(expected) => {
            assert_eq!(node.data.get("/f").ok().text(), expected, "{point}");
            let detail = node.inspect("f");
            let digest = detail["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
            assert!(node.files("wasm").iter().any(|file| file.file_stem().unwrap() == digest.as_str()), "{point}: {detail}");
        }
        None => {
            node.data.get("/f").problem(404, "not-found");
            assert_eq!(node.control.get("/v1/functions").ok().json()["items"], serde_json::json!([]), "{point}");
        }
    }
    let kept = node.control.get("/v1/functions/f/revisions").json()["items"].as_array().map_or(0, Vec::len);
    eventually("files that no revision names are gone", || {
        let snapshots = usize::from(expected == Some("b"));
        (node.files("wasm").len(), node.files("artifacts").len(), node.files("snapshots").len()) == (kept, kept, snapshots)
    });
    let reply = node.deploy("f", &wasm(&says("c")), "");
    assert!(matches!(reply.status(), 200 | 201), "{point}: {} {}", reply.status(), reply.text());
    assert_eq!(node.data.get("/f").ok().text(), "c", "{point}");
    assert_eq!(node.faults("internal"), 0, "{point}");
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 0, "{point}");
}

fn is_committed(point: &str) -> bool {
    let at = |name: &str| POINTS.iter().position(|point| *point == name).unwrap();
    at(point) >= at(COMMITTED)
}

#[test]
fn at_every_point_of_a_first_deploy() {
    for point in POINTS {
        let node = crash(Arc::new(tempfile::tempdir().unwrap()), point);
        check_whole(&node, point, is_committed(point).then_some("b"));
    }
}

#[test]
fn at_every_point_of_a_second_deploy() {
    let mut node = Node::start(&[]);
    node.deploy_wat("f", &says("a"), "");
    node.stop();
    let template = node.dir();
    drop(node);
    for point in POINTS {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        copy(&data_dir(&template), &data_dir(&dir));
        let node = crash(dir, point);
        check_whole(&node, point, Some(if is_committed(point) { "b" } else { "a" }));
    }
}

#[test]
fn every_acknowledged_deploy_survives_a_kill() {
    const FUNCTIONS: usize = 4;
    let mut node = Node::start(&[]);
    let dir = node.dir();
    for round in 0..4 {
        // The revision that was last acknowledged, by function.
        let acknowledged: Mutex<BTreeMap<usize, u64>> = Mutex::default();
        let (enough, killed) = (10 * (round + 1), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for function in 0..FUNCTIONS {
                let (node, acknowledged, killed) = (&node, &acknowledged, &killed);
                scope.spawn(move || {
                    for number in 0.. {
                        let wasm = wasm(&says(&format!("{round} {function} {number}")));
                        // The port of a node that is dead may be another test's by now.
                        if killed.load(Ordering::SeqCst) {
                            break;
                        }
                        let Ok(mut conn) = node.control.try_connect() else { break };
                        conn.request("PUT", &format!("/v1/functions/f{function}"), &[], &wasm);
                        let Some(head) = conn.try_head() else { break };
                        assert!(matches!(head.status, 200 | 201), "{head:?}");
                        let mut body = Vec::new();
                        if !conn.body(&head, |piece| body.extend_from_slice(piece)) {
                            break;
                        }
                        let info: serde_json::Value = serde_json::from_slice(&body).unwrap();
                        acknowledged.lock().unwrap().insert(function, info["revision"].as_u64().unwrap());
                    }
                });
            }
            eventually("some are acknowledged", || acknowledged.lock().unwrap().values().sum::<u64>() > enough);
            killed.store(true, Ordering::SeqCst);
            node.signal(rustix::process::Signal::KILL);
        });
        node.wait();
        node = Node::start_with(Setup { dir: Some(dir.clone()), ..Setup::default() });
        for (function, number) in acknowledged.into_inner().unwrap() {
            let detail = node.inspect(&format!("f{function}"));
            assert!(detail["revision"].as_u64().unwrap() >= number, "revision {number} was acknowledged: {detail}");
            let answer = node.data.get(&format!("/f{function}")).ok().text();
            assert!(answer.starts_with(&format!("{round} {function} ")), "{answer}");
        }
        assert!(node.files("staging").is_empty());
    }
}

#[test]
fn rollbacks_and_removals_survive_a_kill() {
    let mut node = Node::start(&[]);
    for text in ["one", "two"] {
        node.deploy_wat("a", &says(text), "");
        node.deploy_wat("b", &says(text), "");
    }
    node.control.post("/v1/functions/a/rollback", b"").ok();
    assert_eq!(node.control.request("DELETE", "/v1/functions/b", &[], b"").status(), 204);
    node.kill();
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    assert_eq!(node.data.get("/a").ok().text(), "one");
    node.data.get("/b").problem(404, "not-found");
    // Numbers are never given twice.
    assert_eq!(node.deploy_wat("a", &says("three"), "").json()["revision"], 3);
    assert_eq!(node.deploy_wat("b", &says("three"), "").json()["revision"], 1);
}
