//! Objects over the control port: HTTP as it is meant, uploads that go wrong, bytes that rot, disks that are full.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use hob::id::Digest;
use serde_json::{Value, json};

use crate::buckets::{bucket, check_whole, delete, put, usage};
use crate::cli::{at, check, hob};
use crate::harness::http::Conn;
use crate::harness::{Node, Setup, data_dir, eventually, files, is_there, serve};
use crate::shortage::{behind, on_tmpfs};

const AT: &str = "/v1/buckets/b/objects/k";

#[test]
fn objects_are_what_http_says_they_are() {
    let node = Node::start(&[]);
    for (durability, len) in [("durable", 10), ("volatile", 10), ("volatile", 100_000)] {
        bucket(&node, "b", json!({ "durability": durability }));
        let bytes: Vec<u8> = (0..len).map(|n| b'0' + (n % 10) as u8).collect();
        let get = |headers: &[(&str, &str)]| node.control.request("GET", AT, headers, b"");
        get(&[]).problem(404, "not-found");
        let made = put(&node, AT, &[("content-type", "text/plain"), ("hob-meta-author", "Ana")], &bytes);
        assert_eq!(made.status(), 201, "{}", made.text());
        let digest = Digest::of(&bytes).to_string();
        let tag = format!("\"{digest}\"");
        assert_eq!((made.header("etag"), made.json()["digest"].as_str()), (Some(tag.as_str()), Some(digest.as_str())));
        assert_eq!(made.json()["etag"], made.json()["digest"]);
        assert_eq!((&made.json()["bytes"], &made.json()["metadata"]), (&len.into(), &json!([["author", "Ana"]])));
        let got = get(&[]).ok();
        assert_eq!(got.body, bytes);
        let modified = got.header("last-modified").unwrap().to_owned();
        for reply in [&got, &node.control.request("HEAD", AT, &[], b"")] {
            for (name, value) in [
                ("content-type", "text/plain"),
                ("etag", tag.as_str()),
                ("accept-ranges", "bytes"),
                ("content-length", &len.to_string()),
                ("hob-meta-author", "Ana"),
                ("content-security-policy", "sandbox"),
                ("cross-origin-resource-policy", "same-origin"),
            ] {
                assert_eq!(reply.header(name), Some(value), "{name}");
            }
            assert!(reply.header("repr-digest").unwrap().starts_with("sha-256=:") && reply.header("hob-version").is_some());
        }
        let range = |range: &str| get(&[("range", range)]);
        for (asked, first, last) in
            [("bytes=2-4", 2, 4), ("bytes=7-", 7, len - 1), ("bytes=-3", len - 3, len - 1), ("bytes=0-999999999", 0, len - 1)]
        {
            let part = range(asked);
            assert_eq!((part.status(), part.whole), (206, true), "{asked}");
            assert_eq!(part.body, bytes[first..=last], "{asked}");
            assert_eq!(part.header("content-range"), Some(format!("bytes {first}-{last}/{len}").as_str()), "{asked}");
        }
        let none = range("bytes=200000-");
        none.problem(416, "range-not-satisfiable");
        assert_eq!(none.header("content-range"), Some(format!("bytes */{len}").as_str()));
        assert_eq!((range("bytes=1-2,4-5").status(), range("lines=1-2").status()), (200, 200));
        assert_eq!(get(&[("range", "bytes=0-0"), ("if-range", &tag)]).status(), 206);
        assert_eq!(get(&[("range", "bytes=0-0"), ("if-range", "\"other\"")]).status(), 200);
        for (name, value, status) in [
            ("if-none-match", tag.as_str(), 304),
            ("if-none-match", "*", 304),
            ("if-none-match", "\"other\"", 200),
            ("if-match", "\"other\"", 412),
            ("if-modified-since", modified.as_str(), 304),
            ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT", 412),
        ] {
            assert_eq!(get(&[(name, value)]).status(), status, "{name}: {value}");
            assert_eq!(node.control.request("HEAD", AT, &[(name, value)], b"").status(), status, "{name}: {value}");
        }
        writes_under_conditions(&node, &bytes);
        assert_eq!(put(&node, &format!("{AT}?ttl=1ms"), &[], b"x").status(), 201);
        eventually("it has ended", || get(&[]).status() == 404);
        assert_eq!(delete(&node, "/v1/buckets/b").status(), 204);
    }
}

/// Of the object at `AT`, which holds `bytes`; it is gone afterwards.
#[track_caller]
fn writes_under_conditions(node: &Node, bytes: &[u8]) {
    let get = |headers: &[(&str, &str)]| node.control.request("GET", AT, headers, b"");
    let before = get(&[]).ok();
    let (tag, modified) = (before.header("etag").unwrap(), before.header("last-modified").unwrap());
    put(node, AT, &[("if-none-match", "*")], b"x").problem(412, "precondition-failed");
    put(node, AT, &[("if-match", "\"other\"")], b"x").problem(412, "precondition-failed");
    let epoch = ("if-unmodified-since", "Thu, 01 Jan 1970 00:00:00 GMT");
    put(node, AT, &[epoch], b"x").problem(412, "precondition-failed");
    node.control.request("DELETE", AT, &[epoch], b"").problem(412, "precondition-failed");
    put(node, AT, &[("if-unmodified-since", "yesterday")], b"x").problem(400, "bad-request");
    put(node, AT, &[("if-match", &format!("W/{tag}, \"other\""))], b"x").problem(412, "precondition-failed");
    assert_eq!(get(&[]).ok().body, bytes, "nothing of it was written");
    for (name, value) in
        [("if-unmodified-since", modified), ("if-match", "*"), ("if-match", &format!("\"{}\", {tag}", Digest::of(b"other")))]
    {
        assert_eq!(put(node, AT, &[(name, value)], bytes).status(), 200, "{name}: {value}");
    }
    assert_eq!(put(node, AT, &[("if-match", tag), epoch], b"").status(), 200, "the tag is better");
    assert_eq!(get(&[]).ok().body, b"");
    get(&[("range", "bytes=0-")]).problem(416, "range-not-satisfiable");
    node.control.request("DELETE", AT, &[("if-match", tag)], b"").problem(412, "precondition-failed");
    assert_eq!(node.control.request("DELETE", AT, &[("if-match", "*")], b"").status(), 204);
    delete(node, AT).problem(404, "not-found");
    for any in ["*", &format!("\"other\", {tag}")] {
        put(node, AT, &[("if-match", any)], b"x").problem(412, "precondition-failed");
        node.control.request("DELETE", AT, &[("if-match", any)], b"").problem(412, "precondition-failed");
    }
    // What is not there has no date, and then there is no condition.
    node.control.request("DELETE", AT, &[epoch], b"").problem(404, "not-found");
    assert_eq!(put(node, AT, &[epoch], b"x").status(), 201);
    let modified = get(&[]).ok().header("last-modified").unwrap().to_owned();
    assert_eq!(node.control.request("DELETE", AT, &[("if-unmodified-since", &modified)], b"").status(), 204);
}

#[test]
fn what_no_object_has_is_refused() {
    let node = Node::start(&["net.headers_max=100"]);
    bucket(&node, "b", json!({}));
    let abc = "sha-256=:ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=:";
    for (headers, status, code) in [
        (&[("content-digest", abc)][..], 400, "bad-request"),
        (&[("repr-digest", abc)], 400, "bad-request"),
        (&[("content-digest", "sha-256=:x:")], 400, "bad-request"),
        (&[("content-encoding", "gzip")], 415, "unsupported-media"),
        (&[("content-type", &"x".repeat(256))], 413, "body-too-large"),
        (&[("hob-meta-a", &"x".repeat(2048))], 413, "body-too-large"),
        (&[("hob-meta-", "x")], 400, "bad-request"),
        (&[("content-range", "bytes 0-4/10")], 400, "bad-request"),
        (&[("if-match", "\"a\""), ("if-none-match", "*")], 400, "bad-request"),
    ] {
        put(&node, AT, headers, b"other").problem(status, code);
    }
    let names: Vec<String> = (0..65).map(|n| format!("hob-meta-{n}")).collect();
    let pairs: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    put(&node, AT, &pairs, b"x").problem(400, "bad-request");
    assert_eq!(usage(&node, "b")["objects"], json!({ "bytes": 0, "keys": 0 }));
    assert_eq!((node.files("data/objects").len(), node.files("data/staging").len()), (0, 0));
    assert_eq!(put(&node, AT, &pairs[..64], b"x").status(), 201);
    assert_eq!(put(&node, AT, &[("content-digest", abc), ("content-type", &"x".repeat(255))], b"abc").status(), 200);
}

/// Nothing is left of an upload, and what was there is there.
#[track_caller]
fn check_nothing_left(node: &Node, what: &str) {
    eventually(what, || node.files("data/staging").is_empty());
    assert_eq!(node.control.get(AT).ok().text(), "old", "{what}");
    assert_eq!(usage(node, "b")["objects"], json!({ "bytes": 4, "keys": 1 }), "{what}");
    check_whole(node, "b");
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let node = Node::start(&["data.object_bytes_max=1MiB"]);
    bucket(&node, "b", json!({}));
    assert_eq!(put(&node, AT, &[], b"old").status(), 201);
    // Cut half-way, with a length and in chunks.
    let mut conn = node.control.connect();
    conn.request("PUT", AT, &[("content-length", "1000000")], &[1; 500_000]);
    eventually("it is being written", || !node.files("data/staging").is_empty());
    drop(conn);
    check_nothing_left(&node, "an upload that was cut");
    let mut conn = node.control.connect();
    conn.begin_chunked("PUT", AT);
    conn.chunk(&[1; 100_000]).unwrap();
    eventually("it is being written", || !node.files("data/staging").is_empty());
    conn.finish();
    conn.reply().problem(400, "bad-request");
    check_nothing_left(&node, "an upload in chunks that was cut");
    // A length that is more than may be is refused before a byte of it came.
    let mut conn = node.control.connect();
    conn.request("PUT", AT, &[("content-length", "1048577")], b"");
    conn.reply().problem(413, "body-too-large");
    // Without one, when it is passed.
    let mut conn = node.control.connect();
    conn.begin_chunked("PUT", AT);
    for _ in 0..17 {
        // It may have been refused already.
        let _refused = conn.chunk(&[1; 64 << 10]);
    }
    conn.reply().problem(413, "body-too-large");
    check_nothing_left(&node, "an upload that was too long");
    assert_eq!(put(&node, AT, &[], &[1; 1 << 20]).status(), 200);
}

#[test]
fn a_slow_upload_is_given_up() {
    let node = Node::start(&["net.body_idle_timeout=50ms"]);
    bucket(&node, "b", json!({}));
    assert_eq!(put(&node, AT, &[], b"old").status(), 201);
    let mut conn = node.control.connect();
    conn.request("PUT", AT, &[("content-length", "1000")], b"a bit");
    conn.reply().problem(408, "client-timeout");
    check_nothing_left(&node, "an upload that was silent");
    drop(node);
    let node = Node::start(&["data.upload_timeout=1s"]);
    bucket(&node, "b", json!({}));
    let mut conn = node.control.connect();
    conn.begin_chunked("PUT", AT);
    // It goes on coming, and is not done in time all the same.
    while conn.chunk(b"a bit").is_ok() {
        std::thread::yield_now();
        if node.files("data/staging").is_empty() && node.faults("client-timeout") > 0 {
            break;
        }
    }
    assert_eq!(usage(&node, "b")["objects"]["keys"], 0);
}

#[test]
fn so_many_uploads_at_once() {
    let node = Node::start(&["net.body_idle_timeout=5m", "net.body_rate_min=0"]);
    bucket(&node, "b", json!({}));
    let begin = |number: usize| -> Conn {
        let mut conn = node.control.connect();
        conn.begin_chunked("PUT", &format!("/v1/buckets/b/objects/{number}"));
        conn.chunk(b"begun").unwrap();
        conn
    };
    // What one tenant may have of eight.
    let mut conns: Vec<Conn> = (0..6).map(begin).collect();
    eventually("all have a place", || node.files("data/staging").len() == 6);
    let refused = put(&node, AT, &[], b"x");
    refused.problem(503, "overloaded");
    assert!(refused.header("retry-after").is_some());
    for conn in &mut conns {
        conn.end_chunks();
        assert_eq!(conn.reply().status(), 201);
    }
    assert_eq!(put(&node, AT, &[], b"x").status(), 201);
}

#[test]
fn a_large_object_is_never_whole_in_memory() {
    const MIB: usize = 1 << 20;
    const LEN: usize = 256 * MIB;
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let piece = vec![7; MIB];
    let before = node.peak_memory();
    let mut conn = node.control.connect();
    conn.begin_chunked("PUT", AT);
    for _ in 0..LEN / MIB {
        conn.chunk(&piece).unwrap();
    }
    conn.end_chunks();
    assert_eq!(conn.reply().status(), 201);
    conn.request("GET", AT, &[], b"");
    let head = conn.head();
    let mut count = 0;
    assert!(conn.body(&head, |bytes| count += bytes.len()));
    assert_eq!(count, LEN);
    let grown = node.peak_memory() - before;
    assert!(grown < (LEN / 4) as u64, "{grown} bytes more than before");
}

/// Changes one byte of a file of a node that is stopped.
pub(crate) fn flip(path: &Path, offset: u64) {
    let mut mode = std::fs::metadata(path).unwrap().permissions();
    mode.set_mode(0o600);
    std::fs::set_permissions(path, mode).unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

pub(crate) fn position(file: &Path, needle: &[u8]) -> u64 {
    let bytes = std::fs::read(file).unwrap();
    bytes.windows(needle.len()).position(|window| window == needle).unwrap() as u64
}

#[test]
fn doctors_wait_for_one_another() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    assert_eq!(put(&node, "/v1/buckets/b/objects/large", &[], &vec![7; 24 << 20]).status(), 201);
    std::thread::scope(|scope| {
        let doctors: Vec<_> = (0..4).map(|_| scope.spawn(|| doctor(&at(&node, &["doctor", "-o", "json"])))).collect();
        for checks in doctors {
            let checks = checks.join().unwrap();
            let of_b = checks.iter().find(|check| check["check"] == "bucket b").unwrap();
            assert_eq!(of_b["state"], "ok", "{of_b}");
        }
    });
}

/// What `hob doctor` says about each bucket.
fn doctor(output: &std::process::Output) -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    all.into_iter()
        .filter(|check| check["check"].as_str().is_some_and(|name| name.starts_with("bucket ") || name == "data on disk"))
        .collect()
}

#[test]
fn a_flipped_byte_is_told_and_never_returned() {
    let mut node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    for key in ["good", "bad"] {
        let value = format!("the value of the entry {key}");
        assert_eq!(put(&node, &format!("/v1/buckets/b/kv/{key}"), &[], value.as_bytes()).status(), 204);
        assert_eq!(put(&node, &format!("/v1/buckets/b/objects/{key}"), &[], &vec![key.len() as u8; 50_000]).status(), 201);
    }
    node.stop();
    let (dir, path) = (node.dir(), node.data_dir());
    let offline = || {
        hob(&["doctor", "-o", "json", "--server", "http://127.0.0.1:1", "--data-dir", path.to_str().unwrap()]).output().unwrap()
    };
    assert!(doctor(&offline()).iter().all(|check| check["state"] == "ok"), "{:?}", doctor(&offline()));
    let before = std::fs::read(path.join("data/data.redb")).unwrap();
    let object = files(&path.join("data/objects")).into_iter().find(|file| std::fs::read(file).unwrap()[0] == 3).unwrap();
    flip(&object, 12_345);
    let store = path.join("data/data.redb");
    flip(&store, position(&store, b"the value of the entry bad") + 4);
    // Of a directory that nobody uses, without changing a byte of it.
    let found = offline();
    let checks = doctor(&found);
    assert_eq!(found.status.code(), Some(1));
    let of = |checks: &[Value], name: &str| checks.iter().find(|check| check["check"] == name).unwrap().clone();
    assert_eq!(of(&checks, "data on disk")["state"], "failed", "{checks:?}");
    let bad = of(&checks, "bucket b on disk");
    let text = bad["found"].as_str().unwrap();
    assert!(
        bad["state"] == "failed" && text.contains("entry 'bad'") && text.contains("object 'bad'") && !text.contains("good"),
        "{bad}"
    );
    assert_eq!(std::fs::read(&store).unwrap().iter().zip(&before).filter(|(now, then)| now != then).count(), 1);
    // Of a daemon, through its port.
    let node = Node::start_with(Setup { dir: Some(dir), ..Setup::default() });
    for kind in ["kv", "objects"] {
        node.control.get(&format!("/v1/buckets/b/{kind}/bad")).problem(503, "damaged");
        node.control.get(&format!("/v1/buckets/b/{kind}/good")).ok();
    }
    let scrub = || node.control.post("/v1/buckets/b/scrub", b"").ok().json();
    let found = scrub();
    assert_eq!(found["corrupt_count"], 2, "{found}");
    assert_eq!(found["corrupt"], json!([{ "kind": "entry", "key": "bad" }, { "kind": "object", "key": "bad" }]));
    let output = at(&node, &["doctor", "-o", "json", "--data-dir", path.to_str().unwrap()]);
    let bad = of(&doctor(&output), "bucket b");
    assert!(bad["state"] == "failed" && bad["found"].as_str().unwrap().contains("object 'bad'"), "{bad}");
    let skipped = at(&node, &["doctor", "-o", "json", "--no-scrub", "--data-dir", path.to_str().unwrap()]);
    assert!(doctor(&skipped).is_empty());
    let (_, stderr) = check(&at(&node, &["kv", "get", "b", "bad"]), 1);
    assert!(stderr.contains("next: hob doctor"), "{stderr}");
    // What is deleted or written anew is whole again.
    assert_eq!(delete(&node, "/v1/buckets/b/kv/bad").status(), 204);
    assert_eq!(put(&node, "/v1/buckets/b/objects/bad", &[], &vec![3; 50_000]).status(), 200);
    assert_eq!(node.control.get("/v1/buckets/b/objects/bad").good(), vec![3; 50_000]);
    check_whole(&node, "b");
}

/// A scrub waits where it opens a pipe, until somebody writes to that; so nothing here depends on time.
#[test]
fn one_scrub_or_look_at_unreadable_secrets_at_a_time() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    bucket(&node, "other", json!({}));
    let looks = || node.control.get("/v1/secrets?unreadable=true");
    looks().ok();
    for key in ["1", "2"] {
        assert_eq!(put(&node, &format!("/v1/buckets/b/objects/{key}"), &[], key.as_bytes()).status(), 201);
    }
    let mut pipes = files(&node.data_dir().join("data/objects"));
    assert_eq!(pipes.len(), 2);
    pipes.sort_by_key(|path| std::fs::read(path).unwrap());
    for pipe in &pipes {
        std::fs::remove_file(pipe).unwrap();
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    }
    // Without waiting, it can be opened for writing when somebody reads it.
    let is_read = |pipe: &Path| File::options().write(true).custom_flags(libc::O_NONBLOCK).open(pipe).is_ok();
    let port = node.control.clone();
    let scrub = std::thread::spawn(move || port.post("/v1/buckets/b/scrub", b"").ok().json());
    eventually("it has its place", || is_read(&pipes[0]));
    let refused = looks();
    let problem = refused.problem(503, "overloaded");
    assert_eq!((refused.header("retry-after"), &problem["hint"]), (Some("1"), &"try again".into()));
    node.control.post("/v1/buckets/other/scrub", b"").problem(503, "overloaded");
    // The list alone reads no files of functions.
    node.control.get("/v1/secrets").ok();
    eventually("it is let go on", || is_read(&pipes[1]));
    assert_eq!(scrub.join().unwrap()["corrupt_count"], 2);
    looks().ok();
}

#[test]
fn a_full_disk_refuses_writes_and_reading_goes_on() {
    let Some(node) = on_tmpfs(8, &[]) else { return };
    bucket(&node, "b", json!({}));
    assert_eq!(put(&node, AT, &[], b"old").status(), 201);
    assert_eq!(put(&node, "/v1/buckets/b/kv/k", &[], b"old").status(), 204);
    put(&node, AT, &[], &vec![1; 8 << 20]).problem(507, "storage-full");
    assert_eq!(node.control.get(AT).ok().text(), "old");
    let large = "/v1/buckets/b/objects/large";
    assert_eq!(put(&node, large, &[], &vec![2; 1 << 20]).status(), 201);
    // Entries until nothing more fits.
    let mut written = 0_u32;
    let refused = loop {
        let reply = put(&node, &format!("/v1/buckets/b/kv/{written}"), &[], &vec![written as u8; 100_000]);
        if reply.status() != 204 {
            break reply;
        }
        written += 1;
        assert!(written < 200, "it is not full");
    };
    refused.problem(507, "storage-full");
    for number in 0..written {
        assert_eq!(node.control.get(&format!("/v1/buckets/b/kv/{number}")).good(), vec![number as u8; 100_000]);
    }
    assert_eq!(node.control.get("/v1/buckets/b/kv/k").ok().text(), "old");
    check_whole(&node, "b");
    put(&node, "/v1/buckets/b/objects/more", &[], &vec![3; 1 << 20]).problem(507, "storage-full");
    assert_eq!(usage(&node, "b")["entries"]["keys"], written + 1);
    // It heals by itself once there is room, which deleting makes.
    assert_eq!(delete(&node, large).status(), 204);
    eventually("there is room for an object", || {
        put(&node, "/v1/buckets/b/objects/more", &[], &vec![3; 500_000]).status() == 201
    });
    for number in 0..written {
        assert_eq!(delete(&node, &format!("/v1/buckets/b/kv/{number}")).status(), 204);
    }
    eventually("there is room for entries", || put(&node, "/v1/buckets/b/kv/0", &[], &vec![9; 100_000]).status() == 204);
    assert_eq!(node.control.get("/v1/buckets/b/objects/more").good(), vec![3; 500_000]);
    assert_eq!(node.metric("hob_data_read_only"), 0, "a full disk is no failing one");
    check_whole(&node, "b");
}

#[test]
fn a_disk_that_entries_filled_has_room_for_objects_and_functions_when_they_are_gone() {
    let Some(node) = on_tmpfs(8, &[]) else { return };
    bucket(&node, "b", json!({}));
    let entry = |number: u32| format!("/v1/buckets/b/kv/{number}");
    for number in 0..60 {
        assert_eq!(put(&node, &entry(number), &[], &vec![number as u8; 50_000]).status(), 204);
    }
    // Only these meet the full disk.
    let object = |number: u32| put(&node, &format!("/v1/buckets/b/objects/{number}"), &[], &vec![number as u8; 30_000]);
    let full = (0..200).map(object).find(|reply| reply.status() != 201).expect("it is not full");
    full.problem(507, "storage-full");
    for number in 0..60 {
        assert_eq!(delete(&node, &entry(number)).status(), 204);
    }
    eventually("there is room for an object", || object(1000).status() == 201);
    let objects = usage(&node, "b")["objects"]["keys"].as_u64().unwrap();
    assert!(objects > 1);
    // Fill it again, and let a function ask for the room.
    for number in 0..60 {
        put(&node, &entry(number), &[], &vec![number as u8; 50_000]);
    }
    let filled = (2000..2200).map(object).find(|reply| reply.status() != 201).expect("it is not full");
    filled.problem(507, "storage-full");
    for number in 0..60 {
        delete(&node, &entry(number));
    }
    let large = crate::harness::wat::wasm(&crate::harness::wat::says(&"x".repeat(60_000)));
    eventually("there is room for a function", || node.deploy("f", &large, "").status() == 201);
    check_whole(&node, "b");
}

/// A process that keeps a file system when the node is gone that mounted it.
struct Keeper(String);

impl Drop for Keeper {
    fn drop(&mut self) {
        // Whatever becomes of it, it ends by itself.
        let _gone = Command::new("kill").arg(&self.0).status();
    }
}

#[test]
fn entries_that_filled_the_disk_can_be_deleted_and_do_not_hinder_a_start() {
    const SHELL: [&str; 3] = ["unshare", "-Urm", "sh"];
    const MOUNT: &str = "mount -t tmpfs -o size=8m tmpfs \"$0\" && { sleep 600 </dev/null >/dev/null 2>&1 & } &&";
    let probe = Command::new(SHELL[0]).args(&SHELL[1..]).args(["-c", "mount -t tmpfs tmpfs \"$0\"", "/tmp"]).output();
    if !is_there("unshare", probe.is_ok_and(|output| output.status.success()), "a full file system") {
        return;
    }
    let mut node = behind(MOUNT, &SHELL, &[]);
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", node.pid())).unwrap();
    let is_sleep = |pid: &&str| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep");
    let keeper = Keeper(children.split_whitespace().find(is_sleep).unwrap().to_owned());
    let at = |key: u32| format!("/v1/buckets/b/kv/{key}");
    bucket(&node, "b", json!({}));
    let mut first = 0;
    for round in 0..4 {
        // What was freed may be pages of the file that the disk has no room for, until the file was compacted.
        eventually("what was deleted made room", || put(&node, &at(first), &[], &[first as u8; 20_000]).status() == 204);
        // Entries until nothing more fits.
        let mut key = first + 1;
        let refused = loop {
            let reply = put(&node, &at(key), &[], &[key as u8; 20_000]);
            if reply.status() != 204 {
                break reply;
            }
            key += 1;
            assert!(key - first < 400, "it is not full");
        };
        refused.problem(507, "storage-full");
        assert!(round > 0 || key > 150, "{key} entries of 20 kB have most of 8 MiB");
        if round % 2 == 0 {
            node.kill();
            let hob = serve(&node.data_dir());
            let mut command = Command::new("nsenter");
            command.args(["-t", &keeper.0, "-U", "-m", "--preserve-credentials"]).arg(hob.get_program()).args(hob.get_args());
            node = Node::run(command, node.dir()).unwrap_or_else(|ended| panic!("round {round}: it does not start: {ended:?}"));
        }
        for key in first..key {
            assert_eq!(node.control.get(&at(key)).good(), vec![key as u8; 20_000]);
        }
        // Half of them, then all.
        let last = if round == 1 { first + (key - first) / 2 } else { key };
        for key in first..last {
            assert_eq!(delete(&node, &at(key)).status(), 204, "round {round}: deletes go on, of {key} too");
        }
        first = if round == 1 { key } else { last };
        eventually("deleting made room", || put(&node, "/v1/buckets/b/kv/small", &[], b"x").status() == 204);
        check_whole(&node, "b");
    }
    assert_eq!(node.metric("hob_data_read_only"), 0, "a full disk is no failing one");
    assert_eq!(delete(&node, "/v1/buckets/b").status(), 204);
}

#[test]
fn a_disk_that_fails_makes_data_read_only_and_everybody_is_told() {
    let tools = Arc::new(tempfile::tempdir().unwrap());
    let (source, shim) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/failing.c"), tools.path().join("shim.so"));
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&shim).args([source, "-ldl"]).output();
    if !is_there("cc", built.is_ok(), "a disk that fails under a node") {
        return;
    }
    let built = built.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let mut command = serve(&data_dir(&tools));
    command.current_dir(tools.path()).env("LD_PRELOAD", &shim).env("FAIL_OP", "fsync").env("FAIL_PATH", "/objects/");
    let mut node = Node::run(command, Arc::clone(&tools)).unwrap();
    bucket(&node, "b", json!({}));
    let data_dir = node.data_dir();
    let doctor = |node: &Node| -> Value {
        let output = at(node, &["doctor", "-o", "json", "--no-scrub", "--data-dir", data_dir.to_str().unwrap()]);
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        all.into_iter().find(|check| check["check"] == "data of the daemon").unwrap()
    };
    let is_well = |node: &Node| {
        assert_eq!(put(node, AT, &[], b"old").status() / 100, 2);
        assert_eq!(put(node, "/v1/buckets/b/kv/k", &[], b"old").status(), 204);
        let said = node.control.get("/readyz").ok().text();
        assert_eq!((said.lines().next(), node.metric("hob_data_read_only")), (Some("ok"), 0));
        assert_eq!(doctor(node)["state"], "ok");
    };
    is_well(&node);
    std::fs::write(tools.path().join("armed"), "").unwrap();
    put(&node, AT, &[], b"new").problem(507, "storage-full");
    std::fs::remove_file(tools.path().join("armed")).unwrap();
    // From now on, though the disk would do it again.
    put(&node, AT, &[], b"new").problem(507, "storage-full");
    put(&node, "/v1/buckets/b/kv/k", &[], b"new").problem(507, "storage-full");
    delete(&node, AT).problem(507, "storage-full");
    assert_eq!(node.control.get(AT).ok().text(), "old");
    assert_eq!(node.control.get("/v1/buckets/b/kv/k").ok().text(), "old");
    let said = node.control.get("/readyz").ok().text();
    assert!(said.contains("data can only be read since the disk failed") && said.contains("Input/output error"), "{said}");
    assert_eq!(node.metric("hob_data_read_only"), 1);
    let check = doctor(&node);
    assert!(check["state"] == "failed" && check["found"].as_str().unwrap().contains("Input/output error"), "{check}");
    assert!(node.stderr().contains("data can only be read until hob is started again"));
    node.restart();
    is_well(&node);
}
