//! Files that are lost or damaged where something else is short too: room, a snapshot, the upload itself.

use std::path::PathBuf;

use crate::harness::wat::{handler_with, wasm};
use crate::harness::{Node, Setup, compiled, files};
use crate::secrets::{reader, set};
use crate::shortage::on_tmpfs;
use crate::snapshot::{deploy, done, has_snapshot, number, reason};

/// A handler whose initialisation fills 400,000 bytes with what compresses badly, and counts itself; it answers how often that was.
fn fills() -> String {
    handler_with(
        "(memory (export \"memory\") 8)",
        "(func (export \"hob_init\") (local $at i32)
           (local.set $at (i32.const 65536))
           (loop $more
             (i32.store (local.get $at) (i32.mul (i32.mul (local.get $at) (local.get $at)) (i32.const -1640531535)))
             (local.set $at (i32.add (local.get $at) (i32.const 4)))
             (br_if $more (i32.lt_u (local.get $at) (i32.const 465536))))
           (i32.store (i32.const 0) (i32.add (i32.load (i32.const 0)) (i32.const 1))))
         (func (export \"hob_handle\") (call $number (i32.load (i32.const 0))))",
    )
}

/// The same node with so much room beside what it has.
fn with_room(mut node: Node, bytes: u64, damage: impl Fn(&Node)) -> Node {
    node.stop();
    damage(&node);
    let used: u64 = ["artifacts", "snapshots", "wasm"]
        .iter()
        .flat_map(|folder| node.files(folder))
        .map(|file| std::fs::metadata(file).unwrap().len())
        .sum();
    let settings = [format!("data.bytes_max={}", used + bytes)];
    let settings: Vec<_> = settings.iter().map(String::as_str).collect();
    Node::start_with(Setup { dir: Some(node.dir()), settings: &settings, ..Setup::default() })
}

fn remove(files: &[PathBuf]) {
    files.iter().for_each(|file| std::fs::remove_file(file).unwrap());
}

fn flip(files: &[PathBuf]) {
    for file in files {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).unwrap();
    }
}

#[test]
fn a_snapshot_that_is_there_and_has_no_room_for_its_native_code_falls_back() {
    let node = Node::start(&[]);
    done(deploy(&node, "a", &fills(), ""));
    assert!(has_snapshot(&node, "a"));
    let node = with_room(node, 100_000, |node| remove(&node.files("artifacts")));
    deploy(&node, "a", &fills(), "snapshot = \"required\"").problem(507, "storage-full");
    let reason = reason(&done(deploy(&node, "a", &fills(), "")));
    assert!(reason.contains("there is no room for what the build makes"), "{reason}");
    assert_eq!(number(&node, "/a"), 1);
}

#[test]
fn damaged_native_code_makes_room_for_what_takes_its_place() {
    let node = Node::start(&[]);
    done(deploy(&node, "a", &fills(), ""));
    let node = with_room(node, 100_000, |node| flip(&node.files("artifacts")));
    assert_eq!(compiled(|| node.data.get("/a")).good(), 1u32.to_le_bytes());
    assert_eq!(node.metric("hob_artifacts_corrupt_total"), 1);
}

#[test]
fn whoever_measures_takes_no_native_code_away_that_nothing_could_replace() {
    let node = Node::start(&[]);
    done(deploy(&node, "a", &fills(), "snapshot = \"required\""));
    remove(&node.files("snapshots"));
    let forced = |rung| node.control.request("GET", "/v1/functions/a/invoke", &[("hob-start", rung)], b"");
    for rung in ["stored", "resident"] {
        assert_eq!(forced(rung).ok().header("hob-start"), Some(rung));
    }
    let before: Vec<_> = node.files("artifacts").iter().map(|file| std::fs::read(file).unwrap()).collect();
    let problem = forced("compiled").problem(503, "damaged");
    assert!(problem["hint"].as_str().unwrap().contains("its native code is whole, and kept"), "{problem}");
    let after: Vec<_> = node.files("artifacts").iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert_eq!((before, node.inspect("a")["notes"].as_array().unwrap().len()), (after, 0));
    assert_eq!(forced("stored").ok().header("hob-start"), Some("stored"));
}

#[test]
fn a_secret_that_changes_when_the_upload_is_gone_is_said_as_it_is() {
    let node = Node::start(&[]);
    set(&node.control, "FROZEN", "ice");
    done(node.deploy("a", &wasm(&reader()), "[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]"));
    remove(&node.files("wasm"));
    assert_eq!(node.data.get("/a/").good(), b"ice");
    set(&node.control, "FROZEN", "water");
    for _ in 0..3 {
        let reply = node.data.get("/a/");
        reply.problem(503, "damaged");
        assert!(reply.header("retry-after").is_some(), "{}", reply.text());
    }
    let said = node.logs("a").into_iter().filter(|(_, _, text)| text.contains("cannot be built with it")).count();
    assert_eq!((said, node.metric("hob_builds_total")), (1, 1), "it is not tried for each request");
    // The value it was taken with is as good as ever.
    set(&node.control, "FROZEN", "ice");
    assert_eq!(node.data.get("/a/").good(), b"ice");
}

#[test]
fn a_full_file_system_in_memory_ends_no_node_that_reads_what_it_has() {
    let Some(node) = on_tmpfs(48, &[]) else { return };
    // Something at either end of 4 MiB, and nothing between.
    let sparse = handler_with(
        "(memory (export \"memory\") 64)",
        "(func (export \"hob_init\") (i32.store (i32.const 0) (i32.const 9)) (i32.store (i32.const 4100000) (i32.const 9)))
         (func (export \"hob_handle\")
           (call $number (i32.add (i32.load (i32.const 2000000)) (i32.load (i32.const 4100000)))))",
    );
    done(deploy(&node, "sparse", &sparse, "snapshot = \"required\""));
    let folder = PathBuf::from(format!("/proc/{}/root{}", node.pid(), node.data_dir().display()));
    let filler = std::fs::File::create(folder.join("others")).unwrap();
    let mut written = 0;
    while std::os::unix::fs::FileExt::write_at(&filler, &[1; 4096], written).is_ok_and(|len| len == 4096) {
        written += 4096;
    }
    assert_eq!(files(&folder.join("artifacts")).len(), 1);
    for _ in 0..3 {
        assert_eq!(number(&node, "/sparse"), 9);
    }
}
