//! Buckets as folders: which keys are files, what others find while it changes, and what is left of a tree afterwards.

use super::super::conformance::{MIB, Node, put, put_with};
use super::super::{Objects as _, PutOptions, When};
use super::*;
use crate::bucket::Durability;
use crate::id::Digest;

/// A node with a bucket that holds objects under these keys, each its key.
fn node(keys: &[&[u8]]) -> (Node, Bucket) {
    let node = Node::new();
    let bucket = node.bucket("b", Durability::Durable, MIB, 1000);
    for key in keys {
        set(&node, &bucket, key);
    }
    (node, bucket)
}

fn set(node: &Node, bucket: &Bucket, key: &[u8]) {
    put(node.data().durable_objects(), bucket, key, key).unwrap();
}

fn delete(node: &Node, bucket: &Bucket, key: &[u8]) {
    node.data().durable_objects().delete(bucket, key, When::Always).wait().unwrap();
}

fn mount(node: &Node, bucket: &Bucket) -> Mounted {
    node.data().durable_objects().mount(bucket).unwrap()
}

/// Paths of all files and empty folders in a tree; each file must hold its own path.
fn tree(path: &Path) -> Vec<String> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<String>) {
        let mut is_empty = true;
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            is_empty = false;
            if entry.is_dir() {
                walk(root, &entry, found);
            } else {
                let name = entry.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                assert_eq!(fs::read_to_string(&entry).unwrap(), name);
                found.push(name);
            }
        }
        if is_empty && folder != root {
            found.push(format!("{}/", folder.strip_prefix(root).unwrap().display()));
        }
    }
    let mut found = Vec::new();
    walk(path, path, &mut found);
    found.sort();
    found
}

#[test]
fn an_object_that_gets_a_name_and_loses_one_is_not_read_again() {
    let (node, bucket) = node(&[b"a"]);
    let id = FileId { bucket: bucket.id, digest: Digest::of(b"a") };
    let files = || &node.data().durable_objects().files;
    assert!(files().is_good(id));
    mount(&node, &bucket);
    assert!(files().is_good(id), "it has a name more");
    put(node.data().durable_objects(), &bucket, b"b", b"a").unwrap();
    put(node.data().durable_objects(), &bucket, b"a", b"other").unwrap();
    delete(&node, &bucket, b"b");
    put(node.data().durable_objects(), &bucket, b"c", b"a").unwrap();
    assert!(files().is_good(id), "it had two, and has one");
}

#[test]
fn keys_that_are_paths_are_files_and_the_rest_is_counted() {
    let (longest, long) = ("s".repeat(SEGMENT_BYTES_MAX), "s".repeat(SEGMENT_BYTES_MAX + 1));
    let (deepest, deep) = (vec!["d"; SEGMENTS_MAX].join("/"), vec!["e"; SEGMENTS_MAX + 1].join("/"));
    let good = ["a.txt", "b/c/d.txt", "b/e", "..c", "\u{e9}", " ", &longest, &deepest];
    let bad: [&[u8]; 13] = [
        b"..",
        b".",
        b"../x",
        b"x/../y",
        b"x/./y",
        b"/x",
        b"x/",
        b"x//y",
        b"/",
        b"x\0y",
        b"\xff",
        long.as_bytes(),
        deep.as_bytes(),
    ];
    let (node, bucket) = node(&[&good.map(str::as_bytes)[..], &bad].concat());
    let mounted = mount(&node, &bucket);
    let mut expected = good.map(str::to_owned);
    expected.sort();
    assert_eq!((tree(&mounted.path), mounted.left_out), (expected.to_vec(), bad.len() as u64));
    assert_eq!(node.data().durable_objects().mounted(&bucket).unwrap().as_ref(), Some(&mounted));
    // Changes are there when they are answered, bad keys and all.
    set(&node, &bucket, b"new/one");
    set(&node, &bucket, b"../two");
    delete(&node, &bucket, b"..");
    delete(&node, &bucket, b"b/e");
    delete(&node, &bucket, b"b/c/d.txt");
    let found = tree(&mounted.path);
    assert!(found.contains(&"new/one".to_owned()) && !found.iter().any(|name| name.starts_with("b/")), "{found:?}");
    assert_eq!(mount(&node, &bucket).left_out, bad.len() as u64);
}

#[test]
fn a_key_with_keys_below_it_is_a_folder_in_whatever_order_they_came() {
    for keys in [[&b"a"[..], b"a/b", b"a/b/c"], [b"a/b/c", b"a/b", b"a"], [b"a/b", b"a/b/c", b"a"]] {
        for is_mounted_first in [false, true] {
            let (node, bucket) = node(if is_mounted_first { &[] } else { &keys });
            let path = mount(&node, &bucket).path;
            if is_mounted_first {
                keys.iter().for_each(|key| set(&node, &bucket, key));
            }
            let mounted = mount(&node, &bucket);
            assert_eq!((tree(&path), mounted.left_out), (vec!["a/b/c".to_owned()], 2), "{keys:?}");
            delete(&node, &bucket, b"a/b/c");
            assert_eq!((mount(&node, &bucket).left_out, tree(&path)), (1, vec!["a/b".to_owned()]));
            delete(&node, &bucket, b"a/b");
            assert_eq!((mount(&node, &bucket).left_out, tree(&path)), (0, vec!["a".to_owned()]));
            delete(&node, &bucket, b"a");
            assert_eq!((mount(&node, &bucket).left_out, tree(&path)), (0, Vec::new()));
        }
    }
}

#[test]
fn a_replaced_object_is_one_or_the_other_and_who_has_it_open_keeps_it() {
    use std::io::Read as _;
    let (node, bucket) = node(&[b"k"]);
    let path = mount(&node, &bucket).path.join("k");
    let mut open = fs::File::open(&path).unwrap();
    put(node.data().durable_objects(), &bucket, b"k", b"newer").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"newer");
    // The same again, and the same bytes under another key: links to the file that is there.
    put(node.data().durable_objects(), &bucket, b"k", b"newer").unwrap();
    put(node.data().durable_objects(), &bucket, b"l", b"newer").unwrap();
    assert_eq!(fs::read(path.with_file_name("l")).unwrap(), b"newer");
    assert_eq!(mount(&node, &bucket).left_out, 0);
    let mut old = String::new();
    open.read_to_string(&mut old).unwrap();
    assert_eq!(old, "k");
}

#[test]
fn a_tree_has_its_bound() {
    let (node, bucket) = node(&[b"a", b"b/c", b"d"]);
    let links = |count| lock(&node.data().durable_objects().files.mounts.tree(bucket.id).links).entries_max = count;
    links(3);
    let mounted = mount(&node, &bucket);
    assert_eq!((tree(&mounted.path), mounted.left_out), (vec!["a".to_owned(), "b/c".to_owned()], 1));
    links(4);
    set(&node, &bucket, b"d");
    assert_eq!((tree(&mounted.path).len(), mount(&node, &bucket).left_out), (3, 0));
}

#[test]
fn what_expired_or_was_deleted_with_its_bucket_is_gone() {
    let (node, bucket) = node(&[b"stays"]);
    let path = mount(&node, &bucket).path;
    let options = PutOptions { ttl_ms: Some(1000), ..PutOptions::default() };
    put_with(node.data().durable_objects(), &bucket, b"goes", b"goes", options).unwrap();
    assert_eq!(tree(&path), ["goes", "stays"]);
    node.hands.pass(1000);
    // The next write sweeps.
    set(&node, &bucket, b"more");
    assert_eq!((mount(&node, &bucket).left_out, tree(&path)), (0, vec!["more".to_owned(), "stays".to_owned()]));
    node.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap();
    assert!(!path.exists());
    assert!(matches!(node.data().durable_objects().mount(&bucket), Err(DataError::NoSuchBucket { .. })));
    assert_eq!(node.data().durable_objects().mounted(&bucket).unwrap(), None);
}

#[test]
fn a_start_believes_no_tree_and_damage_is_not_linked() {
    let (mut node, bucket) = node(&[b"good", b"rots", b"rotten"]);
    let path = mount(&node, &bucket).path;
    let damage = |key: &str| {
        let mut mode = fs::metadata(path.join(key)).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
        fs::set_permissions(path.join(key), mode).unwrap();
        fs::write(path.join(key), "x".repeat(key.len())).unwrap();
    };
    damage("rotten");
    fs::write(path.join("strange"), "strange").unwrap();
    node.reopen();
    assert!(node.data().durable_objects().mounted(&bucket).unwrap().is_none() && !path.exists());
    let mounted = mount(&node, &bucket);
    assert_eq!(tree(&mounted.path), ["good", "rots"]);
    assert_eq!((mounted.left_out, mounted.damaged), (1, 1));
    set(&node, &bucket, b"../no path");
    damage("rots");
    assert_eq!(node.data().durable_objects().scrub(&bucket).unwrap().corrupt.len(), 2);
    assert_eq!(tree(&mounted.path), ["good"]);
    let counts = || {
        let mounted = mount(&node, &bucket);
        (mounted.left_out, mounted.damaged)
    };
    assert_eq!(counts(), (3, 2));
    // Put again or deleted, they are mended.
    set(&node, &bucket, b"rots");
    assert_eq!(counts(), (2, 1));
    // What another door finds is no file either.
    damage("rots");
    assert!(matches!(node.data().durable_objects().open(&bucket, b"rots"), Err(DataError::Corrupt { .. })));
    assert_eq!((counts(), tree(&path)), ((3, 2), vec!["good".to_owned()]));
    set(&node, &bucket, b"rots");
    assert_eq!(counts(), (2, 1));
    delete(&node, &bucket, b"rotten");
    assert_eq!(counts(), (1, 0));
    set(&node, &bucket, b"rotten");
    assert_eq!((counts(), tree(&path).len()), ((1, 0), 3));
    for _ in 0..1000 {
        if fs::read_dir(node.dir.path().join("mounts-trash")).unwrap().next().is_none() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the tree of the process before is still there");
}

#[test]
fn a_mount_that_meets_the_end_of_its_bucket_leaves_nothing() {
    let (node, first) = node(&[b"a"]);
    let durable = node.data().durable_objects();
    let left = || fs::read_dir(node.dir.path().join("mounts")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    // Who has the tree already, and goes on when the bucket is gone.
    let late = durable.files.mounts.tree(first.id);
    node.data().delete_bucket(&first.tenant, &first.name).wait().unwrap();
    // Whether it finds no rows or no bucket.
    let _either = durable.bring_up(&late);
    assert_eq!(left(), Vec::<PathBuf>::new());
    // Wherever the other one is.
    for round in 0..30 {
        let bucket = node.bucket(&format!("b{round}"), Durability::Durable, MIB, 1000);
        (0..10).for_each(|number| set(&node, &bucket, format!("{number}/k").as_bytes()));
        let barrier = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    barrier.wait();
                    match durable.mount(&bucket) {
                        Ok(mounted) => assert_eq!(mounted.left_out, 0),
                        Err(error) => assert!(matches!(error, DataError::NoSuchBucket { .. }), "{error}"),
                    }
                });
            }
            barrier.wait();
            node.data().delete_bucket(&bucket.tenant, &bucket.name).wait().unwrap();
        });
        assert!(matches!(durable.mount(&bucket), Err(DataError::NoSuchBucket { .. })));
        assert_eq!(left(), Vec::<PathBuf>::new(), "round {round}");
    }
}

#[test]
fn a_repair_while_others_mount_is_linked() {
    for _ in 0..10 {
        let (mut node, bucket) = node(&[b"a", b"rotten", b"z"]);
        let path = mount(&node, &bucket).path.join("rotten");
        let mut mode = fs::metadata(&path).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o600);
        fs::set_permissions(&path, mode).unwrap();
        fs::write(&path, "ROTTEN").unwrap();
        node.reopen();
        // What an import does: the same bytes again, while the first mount reads all objects.
        let barrier = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                barrier.wait();
                mount(&node, &bucket);
            });
            barrier.wait();
            set(&node, &bucket, b"rotten");
        });
        let mounted = mount(&node, &bucket);
        assert_eq!((tree(&mounted.path), mounted.left_out), (["a", "rotten", "z"].map(str::to_owned).to_vec(), 0));
    }
}

#[test]
fn a_node_that_stops_while_it_mounts_begins_anew() {
    let (mut node, bucket) = node(&[]);
    (0..50).for_each(|number| set(&node, &bucket, format!("{number}/k").as_bytes()));
    for _ in 0..5 {
        node.reopen();
        // Half a tree, as a process leaves it that ends meanwhile.
        let durable = node.data().durable_objects();
        let half = durable.files.mounts.tree(bucket.id);
        half.begin().unwrap();
        durable.link(&half, Bytes::from_static(b"7/k")).unwrap();
        assert_eq!(durable.mounted(&bucket).unwrap(), None);
    }
    node.reopen();
    let mounted = mount(&node, &bucket);
    assert_eq!((tree(&mounted.path).len(), mounted.left_out), (50, 0));
}

#[test]
fn mounting_while_others_write_misses_nothing() {
    let (node, bucket) = node(&[]);
    std::thread::scope(|scope| {
        for writer in 0..3_u8 {
            let (node, bucket) = (&node, &bucket);
            scope.spawn(move || {
                for number in 0..40 {
                    set(node, bucket, format!("{writer}/{number}").as_bytes());
                    if number % 3 == 0 {
                        delete(node, bucket, format!("{writer}/{number}").as_bytes());
                    }
                }
            });
        }
        scope.spawn(|| mount(&node, &bucket));
    });
    let mounted = mount(&node, &bucket);
    assert_eq!((tree(&mounted.path).len(), mounted.left_out), (3 * 26, 0));
}
