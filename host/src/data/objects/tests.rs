//! What only one kind of objects does: files, their damage and their end; memory and its eviction.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::tests::is_there;
use super::super::{Bucket, Clock, Data, DataConfig, DataError, Durability, Usage};
use super::conformance::{MIB, Node, get, put, put_with, read};
use super::volatile::{HEAP_BYTES_MAX, Volatile};
use super::*;
use crate::crash::OBJECT_POINTS;

/// Files in place, below the folder of the data.
fn in_place(dir: &Path) -> Vec<PathBuf> {
    let folders = fs::read_dir(dir.join("objects")).unwrap().map(|folder| folder.unwrap().path());
    folders.flat_map(|folder| fs::read_dir(folder).unwrap()).map(|entry| entry.unwrap().path()).collect()
}

/// A file in place, which only root could write to.
fn writable(path: &Path) -> fs::File {
    let mut mode = fs::metadata(path).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
    fs::set_permissions(path, mode).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap()
}

/// Waits for the collector.
#[track_caller]
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..1000 {
        if is_so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("never: {what}");
}

#[track_caller]
fn check_accounts(node: &Node, name: &str) {
    let bucket = node.find(name);
    let found = node.data().durable_objects().recount(&bucket).unwrap();
    assert_eq!(found, Recount { objects: bucket.objects, damaged: 0 });
}

#[test]
fn equal_bytes_are_one_file_until_the_last_key_goes() {
    let mut node = Node::new();
    let (a, b) = (node.bucket("a", Durability::Durable, MIB, 10), node.bucket("b", Durability::Durable, MIB, 10));
    let objects = node.data().objects(Durability::Durable);
    for key in [b"1", b"2", b"1"] {
        put(&*objects, &a, key, b"same").unwrap();
    }
    put(&*objects, &b, b"1", b"same").unwrap();
    assert_eq!(in_place(node.dir.path()).len(), 2, "one for each bucket");
    assert_eq!(node.find("a").objects, Usage { bytes: 2 * 5, keys: 2 });
    check_accounts(&node, "a");
    objects.delete(&a, b"1", When::Always).wait().unwrap();
    assert_eq!(get(&*objects, &a, b"2").unwrap(), b"same");
    let opened = objects.open(&a, b"2").unwrap().unwrap();
    put(&*objects, &a, b"2", b"else").unwrap();
    // While it is open the file stays, and is counted.
    put(&*objects, &b, b"2", b"other").unwrap();
    objects.delete(&b, b"2", When::Always).wait().unwrap();
    eventually("the one that is not open is gone", || in_place(node.dir.path()).len() == 3);
    assert_eq!(node.data().durable_objects().used_bytes(), 12);
    assert_eq!(read(&opened), b"same");
    drop(opened);
    eventually("nobody has it", || in_place(node.dir.path()).len() == 2);
    assert_eq!(node.data().durable_objects().used_bytes(), 8);
    drop(objects);
    node.reopen();
    for name in ["a", "b"] {
        check_accounts(&node, name);
    }
    assert_eq!(node.data().durable_objects().used_bytes(), 8);
}

#[test]
fn the_first_opening_of_a_process_reads_it_and_later_ones_do_not() {
    let mut node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 10);
    put(&*node.data().objects(Durability::Durable), &bucket, b"k", &[7; 500_000]).unwrap();
    node.reopen();
    let objects = node.data().objects(Durability::Durable);
    assert!(matches!(objects.open_now(&bucket, b"k").unwrap(), OpenNow::Unchecked));
    // Eight at once: one reads, the others wait for it.
    let found: Vec<_> = std::thread::scope(|scope| {
        let open = || objects.open(&bucket, b"k").unwrap().unwrap().verified();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(found.iter().filter(|verified| matches!(verified, Verified::Now(_))).count(), 1, "{found:?}");
    assert!(matches!(objects.open_now(&bucket, b"k").unwrap(), OpenNow::Opened(_)));
    assert_eq!(objects.open(&bucket, b"k").unwrap().unwrap().verified(), Verified::Before);
}

#[test]
fn who_opens_what_is_open_has_its_descriptor_unless_it_was_changed() {
    let node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 10);
    let objects = node.data().objects(Durability::Durable);
    put(&*objects, &bucket, b"k", &[7; 100_000]).unwrap();
    let open = || match objects.open_now(&bucket, b"k").unwrap() {
        OpenNow::Opened(opened) => Some(opened),
        OpenNow::Absent => panic!("it is there"),
        OpenNow::Unchecked => None,
    };
    let descriptor = |opened: &Opened| opened.fd().unwrap().as_raw_fd();
    let first = open().unwrap();
    let second = open().unwrap();
    assert_eq!(descriptor(&first), descriptor(&second));
    drop(first);
    assert_eq!(descriptor(&second), descriptor(&open().unwrap()));
    writable(&in_place(node.dir.path())[0]).write_at(b"x", 50_000).unwrap();
    assert!(open().is_none(), "it is to be read before");
    assert!(matches!(objects.open(&bucket, b"k"), Err(DataError::Corrupt { .. })));
    // Put again it is another file in the same place.
    put(&*objects, &bucket, b"k", &[7; 100_000]).unwrap();
    let again = open().unwrap();
    assert_ne!(descriptor(&again), descriptor(&second));
    assert!(read(&again) == [7; 100_000]);
}

#[test]
fn damage_is_told_and_never_returned() {
    let mut node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 10);
    let objects = node.data().objects(Durability::Durable);
    let bytes = vec![7; 100_000];
    for key in [b"flipped", b"cut-off", b"lost---", b"healthy"] {
        let mut own = bytes.clone();
        own.extend(key);
        put(&*objects, &bucket, key, &own).unwrap();
    }
    let path = |key: &[u8]| {
        let head = objects.head(&bucket, key).unwrap().unwrap();
        node.dir.path().join(format!("objects/{:016x}/{}", bucket.id.0, head.etag.hex()))
    };
    writable(&path(b"flipped")).write_at(&[6], 50_000).unwrap();
    writable(&path(b"cut-off")).set_len(99_999).unwrap();
    fs::remove_file(path(b"lost---")).unwrap();
    let durable = node.data().durable_objects();
    let is_corrupt = |error: &DataError, wanted: &[u8]| matches!(error, DataError::Corrupt { key, .. } if *key == wanted);
    for key in [b"flipped", b"cut-off", b"lost---"] {
        let error = objects.open(&bucket, key).unwrap_err();
        assert!(is_corrupt(&error, key), "{error}");
    }
    let found: Vec<_> = durable.scrub(&bucket).unwrap().corrupt.into_iter().map(|(_, key)| key).collect();
    assert_eq!(found, [&b"cut-off"[..], b"flipped", b"lost---"]);
    assert_eq!(get(&*objects, &bucket, b"healthy").unwrap().len(), 100_007);
    // Writing the same anew mends it.
    for key in [b"flipped", b"cut-off", b"lost---"] {
        let mut own = bytes.clone();
        own.extend(key);
        put(&*objects, &bucket, key, &own).unwrap();
        assert!(get(&*objects, &bucket, key).unwrap() == own);
    }
    assert_eq!(durable.scrub(&bucket).unwrap().corrupt, []);
    // Bytes that rot without a write are found by the scrubber though the process has checked them before.
    let times = |file: &fs::File| file.metadata().unwrap().modified().unwrap();
    let file = writable(&path(b"flipped"));
    let before = times(&file);
    file.write_at(&[6], 50_000).unwrap();
    file.set_modified(before).unwrap();
    drop(file);
    assert_eq!(durable.scrub(&bucket).unwrap().corrupt.len(), 1);
    drop(objects);
    node.reopen();
    let objects = node.data().objects(Durability::Durable);
    assert!(is_corrupt(&objects.open(&bucket, b"flipped").unwrap_err(), b"flipped"));
    // Deleting it heals too.
    objects.delete(&bucket, b"flipped", When::Always).wait().unwrap();
    assert!(objects.open(&bucket, b"flipped").unwrap().is_none());
    check_accounts(&node, "b");
}

#[test]
fn a_full_bucket_refuses_what_adds_and_nothing_else() {
    let mut node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, 100, 3);
    let objects = node.data().objects(Durability::Durable);
    put(&*objects, &bucket, b"a", &[1; 49]).unwrap();
    put(&*objects, &bucket, b"b", &[2; 49]).unwrap();
    let quota = |result: Result<Head, DataError>, unit_of: &str| {
        assert!(matches!(&result, Err(DataError::Quota { unit, .. }) if *unit == unit_of), "{result:?}");
    };
    quota(put(&*objects, &bucket, b"c", b""), "bytes");
    quota(put(&*objects, &bucket, b"b", &[3; 50]), "bytes");
    // What could never fit is refused before it is all there.
    let mut upload = objects.put(&bucket, b"c", PutOptions::default()).unwrap();
    assert!(matches!(upload.write(&[0; 101]), Err(DataError::Quota { wanted: 101, max: 100, .. })));
    drop(upload);
    assert_eq!(get(&*objects, &bucket, b"b").unwrap(), [2; 49]);
    put(&*objects, &bucket, b"b", b"").unwrap();
    put(&*objects, &bucket, b"c", b"").unwrap();
    quota(put(&*objects, &bucket, b"d", b""), "keys");
    objects.delete(&bucket, b"a", When::Always).wait().unwrap();
    put(&*objects, &bucket, b"d", b"").unwrap();
    assert_eq!(node.find("b").objects, Usage { bytes: 3, keys: 3 });
    check_accounts(&node, "b");
    eventually("only the empty file is left", || in_place(node.dir.path()).len() == 1);
    drop(objects);
    node.reopen();
    check_accounts(&node, "b");
}

#[test]
fn the_bound_of_the_node_holds_for_uploads_together() {
    let limits = ObjectLimits { object_bytes_max: 1000, bytes_max: 1000 };
    let node = Node::with(DataConfig { durable_objects: limits, volatile_objects: limits, ..DataConfig::default() });
    for durability in [Durability::Durable, Durability::Volatile] {
        let bucket = node.bucket(durability.as_str(), durability, MIB, 10);
        let objects = node.data().objects(durability);
        let begin = || objects.put(&bucket, b"k", PutOptions::default()).unwrap();
        let (mut one, mut two) = (begin(), begin());
        one.write(&[1; 600]).unwrap();
        assert!(matches!(two.write(&[2; 401]), Err(DataError::StorageFull { .. })));
        let mut two = begin();
        two.write(&[2; 400]).unwrap();
        drop(one);
        two.finish().wait().unwrap();
        assert_eq!(get(&*objects, &bucket, b"k").unwrap(), [2; 400]);
    }
}

#[test]
fn a_deleted_bucket_leaves_no_file() {
    let node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 1000);
    let kept = node.bucket("c", Durability::Durable, MIB, 1000);
    let objects = node.data().objects(Durability::Durable);
    for number in 0..300_u16 {
        let ttl_ms = (number % 2 == 0).then_some(5000);
        let options = PutOptions { ttl_ms, ..PutOptions::default() };
        put_with(&*objects, &bucket, &number.to_le_bytes(), &[u8::try_from(number % 50).unwrap()], options).unwrap();
    }
    put(&*objects, &kept, b"k", b"\x01").unwrap();
    assert_eq!(in_place(node.dir.path()).len(), 51);
    let opened = objects.open(&bucket, &[7, 0]).unwrap().unwrap();
    let late = objects.put(&bucket, b"late", PutOptions::default()).unwrap();
    node.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap().unwrap();
    assert!(matches!(late.finish().wait(), Err(DataError::NoSuchBucket { .. })));
    eventually("all but the open one are gone", || in_place(node.dir.path()).len() == 2);
    assert_eq!(read(&opened), [7]);
    drop(opened);
    eventually("the open one is gone too", || in_place(node.dir.path()).len() == 1);
    node.hands.pass(10_000);
    assert_eq!(get(&*objects, &kept, b"k").unwrap(), [1]);
    check_accounts(&node, "c");
}

#[test]
fn what_expired_is_swept_with_its_file() {
    let node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 1000);
    let objects = node.data().objects(Durability::Durable);
    for (key, ttl_ms) in [(b"a", 1000), (b"b", 2000)] {
        put_with(&*objects, &bucket, key, key, PutOptions { ttl_ms: Some(ttl_ms), ..PutOptions::default() }).unwrap();
    }
    node.hands.pass(1500);
    // The writer looks at the clock each second by itself.
    eventually("one is swept", || node.find("b").objects.keys == 1 && in_place(node.dir.path()).len() == 1);
    assert_eq!(get(&*objects, &bucket, b"b").unwrap(), b"b");
    check_accounts(&node, "b");
}

#[test]
fn garbage_goes_at_start_and_what_is_not_ours_stays() {
    let mut node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 1000);
    put(&*node.data().objects(Durability::Durable), &bucket, b"k", b"x").unwrap();
    node.data = None;
    let dir = node.dir.path().to_path_buf();
    let garbage = [dir.join("staging/object-7"), dir.join("objects/0000000000000001").join(Digest::of(b"garbage").hex())];
    let foreign = [dir.join("objects/0000000000000001/README"), dir.join("objects/notes")];
    for path in garbage.iter().chain(&foreign) {
        fs::write(path, "garbage").unwrap();
    }
    node.reopen();
    eventually("garbage is gone", || garbage.iter().all(|path| !path.exists()));
    assert!(foreign.iter().all(|path| path.exists()));
    eventually("it is not counted", || node.data().durable_objects().used_bytes() == 1);
    assert_eq!(get(&*node.data().objects(Durability::Durable), &bucket, b"k").unwrap(), b"x");
}

#[test]
fn a_file_whose_count_is_lost_stays_as_long_as_an_object_has_it() {
    let mut node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 1000);
    let objects = node.data().objects(Durability::Durable);
    for key in [b"1", b"2"] {
        put(&*objects, &bucket, key, b"same").unwrap();
    }
    put(&*objects, &bucket, b"3", b"deleted").unwrap();
    let [deleted, garbage] =
        [b"deleted", b"garbage"].map(|bytes| node.dir.path().join("objects/0000000000000001").join(Digest::of(bytes).hex()));
    drop(objects);
    node.data = None;
    fs::write(&garbage, "garbage").unwrap();
    {
        let store = redb::Database::open(node.dir.path().join("data.redb")).unwrap();
        let txn = store.begin_write().unwrap();
        txn.open_table(super::table::FILES).unwrap().retain(|_, _| false).unwrap();
        txn.commit().unwrap();
    }
    node.reopen();
    eventually("what no object has is gone", || !garbage.exists());
    let objects = node.data().objects(Durability::Durable);
    assert_eq!(get(&*objects, &bucket, b"3").unwrap(), b"deleted");
    for key in [b"1", b"3"] {
        objects.delete(&bucket, key, When::Always).wait().unwrap();
    }
    // One with a count goes after all that was released before it.
    put(&*objects, &bucket, b"4", b"counted").unwrap();
    objects.delete(&bucket, b"4", When::Always).wait().unwrap();
    let counted = deleted.with_file_name(Digest::of(b"counted").hex());
    eventually("what has a count is gone", || !counted.exists());
    assert!(deleted.exists(), "nobody knows who else has it");
    assert_eq!(get(&*objects, &bucket, b"2").unwrap(), b"same");
    drop(objects);
    node.reopen();
    eventually("the next start finds that nobody has it", || !deleted.exists());
    assert_eq!(get(&*node.data().objects(Durability::Durable), &bucket, b"2").unwrap(), b"same");
}

#[test]
fn memory_is_taken_from_where_it_was_used_longest_ago() {
    let limits = ObjectLimits { object_bytes_max: MIB, bytes_max: 10_000 };
    let node = Node::with(DataConfig { volatile_objects: limits, ..DataConfig::default() });
    let small = node.bucket("small", Durability::Volatile, 1000, 3);
    let large = node.bucket("large", Durability::Volatile, MIB, 1000);
    let objects = node.data().objects(Durability::Volatile);
    let there = |bucket: &Bucket, keys: &[u8]| -> Vec<u8> {
        let page = objects.list(bucket, b"", None, 1000).unwrap();
        page.objects.iter().map(|(key, _)| key[0]).filter(|key| keys.contains(key)).collect()
    };
    // By number of keys; what was looked at stays.
    for key in [b"a", b"b", b"c"] {
        put(&*objects, &small, key, b"x").unwrap();
    }
    objects.head(&small, b"a").unwrap();
    put(&*objects, &small, b"d", b"x").unwrap();
    assert_eq!(there(&small, b"abcd"), b"acd");
    // By bytes; what is open stays.
    let opened = objects.open(&small, b"c").unwrap().unwrap();
    put(&*objects, &small, b"e", &[0; 990]).unwrap();
    assert_eq!(there(&small, b"acde"), b"cde");
    let full = put(&*objects, &small, b"f", &[0; 999]).unwrap_err();
    assert!(matches!(full, DataError::Quota { .. }) && full.to_string().contains("delete something"), "{full}");
    drop(opened);
    put(&*objects, &small, b"f", &[0; 999]).unwrap();
    assert_eq!(there(&small, b"cef"), b"f");
    let never = put(&*objects, &small, b"f", &[0; 1000]).unwrap_err();
    assert!(
        matches!(never, DataError::Quota { wanted: 1001, .. }) && never.to_string().contains("write less at once"),
        "{never}"
    );
    // By the node's bound: the bucket that has most gives.
    for key in 0..20_u8 {
        put(&*objects, &large, &[key], &[0; 1000]).unwrap();
    }
    assert_eq!(there(&small, b"f"), b"f");
    assert_eq!(there(&large, &(0..20).collect::<Vec<_>>()), (11..20).collect::<Vec<_>>());
    let volatile = &node.data().volatile_objects;
    assert_eq!(volatile.usage(large.id), Usage { bytes: 9 * 1001, keys: 9 });
    assert_eq!(volatile.used_bytes(), 9 * 1000 + 999);
    volatile.forget(large.id);
    assert_eq!(volatile.used_bytes(), 999);
}

#[test]
fn volatile_objects_that_expired_are_not_counted_and_go_before_others() {
    let limits = ObjectLimits { object_bytes_max: MIB, bytes_max: 10_000 };
    let node = Node::with(DataConfig { volatile_objects: limits, ..DataConfig::default() });
    let bucket = node.bucket("b", Durability::Volatile, 20_000, 2);
    let objects = node.data().objects(Durability::Volatile);
    put(&*objects, &bucket, b"live", b"x").unwrap();
    let brief = || PutOptions { ttl_ms: Some(1000), ..PutOptions::default() };
    put_with(&*objects, &bucket, b"dead", b"x", brief()).unwrap();
    let usage = || node.data().volatile_objects.usage(bucket.id).keys;
    assert_eq!(usage(), 2);
    node.hands.pass(1000);
    put(&*objects, &bucket, b"new", b"x").unwrap();
    assert_eq!((get(&*objects, &bucket, b"live").unwrap(), usage()), (b"x".to_vec(), 2));
    objects.delete(&bucket, b"new", When::Always).wait().unwrap();
    // For the memory of the node too, wherever it lies.
    put_with(&*objects, &bucket, b"dead", &[0; 6000], brief()).unwrap();
    node.hands.pass(1000);
    let other = node.bucket("other", Durability::Volatile, 20_000, 2);
    put(&*objects, &other, b"k", &[0; 9000]).unwrap();
    assert_eq!((get(&*objects, &bucket, b"live").unwrap(), usage()), (b"x".to_vec(), 1));
}

#[test]
fn volatile_objects_leave_a_bucket_that_shrinks_and_come_into_none_that_is_gone() {
    let node = Node::new();
    let bucket = node.bucket("b", Durability::Volatile, MIB, 10);
    let objects = node.data().objects(Durability::Volatile);
    for key in [b"1", b"2", b"3"] {
        put(&*objects, &bucket, key, b"x").unwrap();
    }
    let bucket = node.bucket("b", Durability::Volatile, MIB, 2);
    assert_eq!(node.data().volatile_objects.usage(bucket.id).keys, 2);
    let late = objects.put(&bucket, b"late", PutOptions::default()).unwrap();
    node.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap().unwrap();
    let is_gone = |error: &DataError| matches!(error, DataError::NoSuchBucket { name } if name == "b");
    assert!(is_gone(&late.finish().wait().unwrap_err()));
    assert!(is_gone(&put(&*objects, &bucket, b"later", b"x").unwrap_err()));
    assert_eq!(node.data().volatile_objects.used_bytes(), 0);
}

#[test]
fn volatile_objects_have_so_many_descriptors() {
    let node = Node::new();
    let bucket = node.bucket("b", Durability::Volatile, 8 * MIB, 1000);
    let limits = ObjectLimits { object_bytes_max: MIB, bytes_max: 1 << 30 };
    let objects = Volatile::with(limits, Clock::system(), 3);
    let large = vec![7; HEAP_BYTES_MAX + 1];
    put(&objects, &bucket, b"small", b"x").unwrap();
    for key in [b"1", b"2", b"3", b"4"] {
        put(&objects, &bucket, key, &large).unwrap();
    }
    // The one that was used longest ago went, of those that have one.
    let there = |key: &[u8]| objects.head(&bucket, key).unwrap().is_some();
    assert_eq!((there(b"1"), there(b"2"), there(b"4"), there(b"small")), (false, true, true, true));
    let opened: Vec<_> = [b"2", b"3", b"4"].map(|key| objects.open(&bucket, key).unwrap().unwrap()).into();
    let full = put(&objects, &bucket, b"5", &large).unwrap_err();
    assert!(full.to_string().contains("3 descriptors are for volatile objects"), "{full}");
    put(&objects, &bucket, b"6", b"x").unwrap();
    drop(opened);
    put(&objects, &bucket, b"5", &large).unwrap();
}

// In a process of its own, which runs one of the following two tests in a folder that has what it looks for. Elsewhere they do
// nothing.

const CRASHING: &str = "data::objects::tests::child_that_crashes";
const FULL: &str = "data::objects::tests::child_on_a_full_disk";

fn child(dir: &Path, test: &str, shell: &[&str], line: &str) -> Command {
    fs::write(dir.join(test.rsplit("::").next().unwrap()), "").unwrap();
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).arg("-c").arg(format!("{line} exec \"$@\"")).arg(dir);
    command.arg(std::env::current_exe().unwrap()).args(["--exact", test, "--nocapture"]).current_dir(dir);
    command
}

fn open_here(limits: ObjectLimits) -> (Data, Bucket) {
    let config = DataConfig { durable_objects: limits, ..DataConfig::default() };
    let data = Data::open(Path::new("data"), config, Clock::system()).unwrap();
    let spec = super::super::BucketSpec { durability: Durability::Durable, bytes_max: 1 << 40, keys_max: 1000 };
    let bucket = data.put_bucket(&Default::default(), &"b".parse().unwrap(), spec).wait().unwrap().0;
    (data, bucket)
}

const WIDE: ObjectLimits = ObjectLimits { object_bytes_max: 1 << 40, bytes_max: 1 << 40 };

#[test]
fn child_that_crashes() {
    if !Path::new("child_that_crashes").exists() {
        return;
    }
    let (data, bucket) = open_here(WIDE);
    put(&*data.objects(Durability::Durable), &bucket, b"k", &[2; 200_000]).unwrap();
}

#[test]
fn at_every_point_of_a_put_the_object_is_the_old_one_or_the_new() {
    for point in OBJECT_POINTS {
        let node = Node::new();
        let root = node.dir.path().join("data");
        let open = || Data::open(&root, DataConfig { durable_objects: WIDE, ..DataConfig::default() }, Clock::system()).unwrap();
        let data = open();
        let spec = super::super::BucketSpec { durability: Durability::Durable, bytes_max: 1 << 40, keys_max: 1000 };
        let bucket = data.put_bucket(&Default::default(), &"b".parse().unwrap(), spec).wait().unwrap().0;
        put(&*data.objects(Durability::Durable), &bucket, b"k", &[1; 100_000]).unwrap();
        drop(data);
        let mut child = child(node.dir.path(), CRASHING, &["sh"], "");
        let output = child.env("HOB_CRASH_AT", point).output().unwrap();
        assert_eq!(output.status.signal(), Some(9), "{point}: {}", String::from_utf8_lossy(&output.stdout));
        let data = open();
        let objects = data.objects(Durability::Durable);
        let is_new = point == "object-committed";
        let (byte, len) = if is_new { (2, 200_000) } else { (1, 100_000) };
        assert!(get(&*objects, &bucket, b"k").unwrap() == vec![byte; len], "{point}");
        assert_eq!(fs::read_dir(root.join("staging")).unwrap().count(), 0, "{point}");
        eventually("one file is left", || in_place(&root).len() == 1);
        assert_eq!(data.durable_objects().used_bytes(), len as u64, "{point}");
        let bucket = data.bucket(&bucket.tenant, &bucket.name).unwrap().unwrap();
        assert_eq!(data.durable_objects().recount(&bucket).unwrap().objects, bucket.objects, "{point}");
        put(&*objects, &bucket, b"k", &[3; 10]).unwrap();
    }
}

#[test]
fn child_on_a_full_disk() {
    if !Path::new("child_on_a_full_disk").exists() {
        return;
    }
    let (data, bucket) = open_here(WIDE);
    let objects = data.objects(Durability::Durable);
    put(&*objects, &bucket, b"a", b"old").unwrap();
    for _ in 0..3 {
        let error = put(&*objects, &bucket, b"a", &vec![1; 32 << 20]).unwrap_err();
        assert!(matches!(error, DataError::StorageFull { .. }), "{error}");
        assert_eq!(get(&*objects, &bucket, b"a").unwrap(), b"old");
        assert_eq!(fs::read_dir("data/staging").unwrap().count(), 0);
        assert_eq!(data.durable_objects().used_bytes(), 3);
    }
    assert_eq!(data.read_only(), None);
    put(&*objects, &bucket, b"a", b"new").unwrap();
    println!("filled");
}

#[test]
fn a_full_disk_refuses_the_object_and_leaves_nothing() {
    let shells: [(&[&str], &str); 2] = [
        // Without the signal, passing the bound is an error as any other. In units of 512 or 1,024 bytes.
        (&["sh"], "trap '' XFSZ; ulimit -f 16384;"),
        (&["unshare", "-Urm", "sh"], "mkdir \"$0/data\" && mount -t tmpfs -o size=16m tmpfs \"$0/data\" &&"),
    ];
    for (shell, line) in shells {
        let dir = tempfile::tempdir().unwrap();
        let probe = Command::new(shell[0]).args(&shell[1..]).args(["-c", &format!("{line} true")]).arg(dir.path()).output();
        if !is_there(shell[0], probe.is_ok_and(|output| output.status.success()), "a full file system") {
            continue;
        }
        let dir = tempfile::tempdir().unwrap();
        let output = child(dir.path(), FULL, shell, line).output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && out.contains("filled"), "{out} {err}");
    }
}
