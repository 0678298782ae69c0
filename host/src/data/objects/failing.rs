//! Objects on a disk that fails under one kind of call: `EIO`, made by a small library that is loaded before the system's own.

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
