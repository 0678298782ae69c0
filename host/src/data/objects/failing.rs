//! Objects on a disk that fails under one kind of call: `EIO`, made by a small library that is loaded before the system's own. And the order
//! in which a put reaches the disk, which the same library writes down.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::kv::{Op, When};
use super::super::tests::is_there;
use super::super::{Bucket, BucketSpec, Clock, Data, DataConfig, DataError, Durability};
use super::When as Condition;
use super::conformance::{get, put, read};
use crate::fault::Code;

/// Fails `FAIL_OP` on files whose path has `FAIL_PATH` in it, while there is a file `armed` in the working directory.
const SHIM: &str = include_str!("../../../tests/failing.c");

const CHILD: &str = "data::objects::failing::child_on_a_failing_disk";

const TRACED: &str = "data::objects::failing::child_that_is_watched";

/// Which call fails, and on what.
const WRITES: [(&str, &str); 3] = [("write", "/staging/"), ("fsync", "/staging/"), ("fsync", "/objects/")];
const READS: [(&str, &str); 1] = [("pread", "/objects/")];

fn open_here() -> (Data, Bucket) {
    let data = Data::open(Path::new("data"), DataConfig::default(), Clock::system()).unwrap();
    let spec = BucketSpec::new(Durability::Durable);
    let bucket = data.put_bucket(&Default::default(), &"b".parse().unwrap(), spec).wait().unwrap().0;
    (data, bucket)
}

fn set() -> Vec<Op> {
    vec![Op::Set { key: "k".into(), value: "v".into(), ttl: None, when: When::Always }]
}

fn disarm() {
    fs::remove_file("armed").unwrap();
}

/// In a process of its own; elsewhere it does nothing.
#[test]
fn child_on_a_failing_disk() {
    if !Path::new("child_on_a_failing_disk").exists() {
        return;
    }
    let (data, bucket) = open_here();
    for key in [&b"old"[..], b"other"] {
        put(&*data.objects(Durability::Durable), &bucket, key, key).unwrap();
    }
    data.kv(&bucket).unwrap().write(set()).wait().unwrap();
    drop(data);
    let (data, bucket) = open_here();
    let objects = data.objects(Durability::Durable);
    let opened = objects.open(&bucket, b"old").unwrap().unwrap();
    fs::write("armed", "").unwrap();
    if fs::read_to_string("child_on_a_failing_disk").unwrap() == "write" {
        let error = put(&*objects, &bucket, b"new", b"new").unwrap_err();
        assert!(matches!(error, DataError::Storage { .. }) && error.to_string().contains("Input/output error"), "{error}");
        assert_eq!(error.fault().code, Code::StorageFull, "no bug of ours");
        disarm();
        assert!(data.read_only().unwrap().contains("Input/output error"), "{:?}", data.read_only());
        for error in [
            put(&*objects, &bucket, b"new", b"new").unwrap_err(),
            data.kv(&bucket).unwrap().write(set()).wait().unwrap_err(),
            objects.delete(&bucket, b"old", Condition::Always).wait().unwrap_err(),
        ] {
            assert!(matches!(error, DataError::ReadOnly { .. }), "{error}");
        }
    } else {
        // One that was opened before, and one that is to be held against its digest.
        for error in [opened.read_at(0, &mut [0; 3]).unwrap_err(), objects.open(&bucket, b"other").unwrap_err()] {
            assert!(matches!(error, DataError::Storage { .. }), "no other bytes, and not called damaged: {error}");
            assert_eq!(error.fault().code, Code::StorageFull);
        }
        disarm();
        assert_eq!(data.read_only(), None);
    }
    // Reading goes on.
    for key in [&b"old"[..], b"other"] {
        assert_eq!(get(&*objects, &bucket, key).unwrap(), key);
    }
    assert_eq!(data.kv(&bucket).unwrap().get(b"k").unwrap().unwrap().value, "v");
    assert!(objects.head(&bucket, b"new").unwrap().is_none());
    println!("failed as it should");
}

fn shim(dir: &Path) -> Option<PathBuf> {
    let (source, library) = (dir.join("shim.c"), dir.join("shim.so"));
    fs::write(&source, SHIM).unwrap();
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl").output();
    if !is_there("cc", built.is_ok(), "a failing disk") {
        return None;
    }
    let output = built.ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

#[test]
fn a_failing_disk_is_told_and_nothing_half_written_is_seen() {
    let tools = tempfile::tempdir().unwrap();
    let Some(shim) = shim(tools.path()) else { return };
    let all = WRITES.map(|case| ("write", case)).into_iter().chain(READS.map(|case| ("read", case)));
    for (kind, (op, path)) in all {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("child_on_a_failing_disk"), kind).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", CHILD, "--nocapture"]).current_dir(dir.path());
        let output = child.env("LD_PRELOAD", &shim).env("FAIL_OP", op).env("FAIL_PATH", path).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("failed as it should"), "{op} {path}: {out} {err}");
        // After a start all is as it was, and writing works.
        let data = Data::open(&dir.path().join("data"), DataConfig::default(), Clock::system()).unwrap();
        let objects = data.objects(Durability::Durable);
        let bucket = data.bucket(&Default::default(), &"b".parse().unwrap()).unwrap().unwrap();
        assert_eq!(read(&objects.open(&bucket, b"old").unwrap().unwrap()), b"old", "{op} {path}");
        assert!(objects.head(&bucket, b"new").unwrap().is_none());
        assert_eq!(fs::read_dir(dir.path().join("data/staging")).unwrap().count(), 0);
        assert_eq!(data.durable_objects().recount(&bucket).unwrap().objects, bucket.objects);
        assert_eq!(data.recount(&bucket).unwrap(), bucket.entries);
        put(&*objects, &bucket, b"new", b"new").unwrap();
        assert_eq!(get(&*objects, &bucket, b"new").unwrap(), b"new");
    }
}

/// In a process of its own; elsewhere it does nothing.
#[test]
fn child_that_is_watched() {
    if !Path::new("child_that_is_watched").exists() {
        return;
    }
    let (data, bucket) = open_here();
    fs::write("begun", "x").unwrap();
    put(&*data.objects(Durability::Durable), &bucket, b"k", &[7; 5_000_000]).unwrap();
    fs::write("acknowledged", "x").unwrap();
}

/// A loss of power undoes any part of what was not synced, in any order. So of each put all of the file is synced before it has its name, and
/// its name before the row that makes it visible is begun, and all of that before it is acknowledged.
#[test]
fn a_put_reaches_the_disk_in_an_order_that_a_loss_of_power_cannot_turn() {
    let tools = tempfile::tempdir().unwrap();
    let Some(shim) = shim(tools.path()) else { return };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("child_that_is_watched"), "").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", TRACED]).current_dir(dir.path());
    let output = child.env("LD_PRELOAD", &shim).env("TRACE_TO", dir.path().join("trace")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let trace = fs::read_to_string(dir.path().join("trace")).unwrap();
    let lines: Vec<_> = trace.lines().filter_map(|line| line.split_once(' ')).collect();
    let at = |op: &str, part: &str| -> Vec<usize> {
        let found = lines.iter().enumerate().filter(|(_, (did, path))| *did == op && path.contains(part));
        found.map(|(at, _)| at).collect()
    };
    let begun = at("write", "/begun")[0];
    let acknowledged = at("write", "/acknowledged")[0];
    let of_put = |op: &str, part: &str| -> Vec<usize> {
        at(op, part).into_iter().filter(|at| (begun..acknowledged).contains(at)).collect()
    };
    let writes = of_put("write", "/staging/");
    let file = of_put("sync", "/staging/");
    let named = of_put("rename", "/objects/");
    let folder = of_put("sync", "/objects/");
    let (pages, record, commit) = (of_put("write", "/data.redb"), of_put("write", "/data.log"), of_put("sync", "/data.log"));
    assert!(writes.len() >= 2 && file.len() == 1 && named.len() == 1, "{trace}");
    assert!(writes.last() < file.first() && file < named, "the whole file before its name: {trace}");
    assert!(folder.last() > named.last() && folder.last() < pages.first(), "the name before the row: {trace}");
    assert!(
        !record.is_empty() && pages.first() < record.first() && commit.last() > record.last(),
        "the row before the answer: {trace}"
    );
}
