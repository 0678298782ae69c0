//! `hob bucket`, `hob kv` and `hob blob` as people type them.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::Stdio;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::buckets::{bucket, put};
use crate::cli::{at, check, hob};
use crate::harness::{Node, eventually};

#[track_caller]
fn run(node: &Node, args: &[&str]) -> String {
    check(&at(node, args), 0).0
}

#[track_caller]
fn json_of(node: &Node, args: &[&str]) -> Value {
    serde_json::from_str(&run(node, &[args, &["-o", "json"]].concat())).unwrap()
}

/// Runs a command that must fail; what it says.
#[track_caller]
fn fails(node: &Node, code: i32, args: &[&str]) -> String {
    let (stdout, stderr) = check(&at(node, args), code);
    assert_eq!(stdout, "", "{stderr}");
    stderr
}

#[test]
fn buckets() {
    let node = Node::start(&[]);
    assert_eq!(run(&node, &["bucket", "ls"]), "");
    let text = run(&node, &["bucket", "new", "photos", "--bytes", "1MiB", "--keys", "10"]);
    assert!(text.contains("durable") && text.contains("10 keys, 1.0 MiB"), "{text}");
    assert_eq!(json_of(&node, &["bucket", "new", "photos", "--keys", "20"])["keys_max"], 20);
    assert_eq!(json_of(&node, &["bucket", "new", "cache", "--volatile"])["durability"], "volatile");
    fails(&node, 1, &["bucket", "new", "photos", "--volatile"]);
    fails(&node, 2, &["bucket", "new", "x", "--bytes", "much"]);
    fails(&node, 2, &["bucket", "new", "X"]);
    let list = run(&node, &["bucket", "ls"]);
    assert!(list.lines().count() == 3 && list.contains("photos"), "{list}");
    assert_eq!(json_of(&node, &["bucket", "ls"]).as_array().unwrap().len(), 2);
    assert_eq!(json_of(&node, &["bucket", "inspect", "cache"])["name"], "cache");
    run(&node, &["bucket", "rm", "cache"]);
    let stderr = fails(&node, 3, &["bucket", "inspect", "cache"]);
    assert!(stderr.contains("next: hob bucket ls"), "{stderr}");
}

#[test]
fn entries() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    run(&node, &["kv", "set", "b", "k", "a value"]);
    assert_eq!(run(&node, &["kv", "get", "b", "k"]), "a value");
    let info = json_of(&node, &["kv", "get", "b", "k"]);
    assert_eq!((&info["key"], &info["value"], &info["bytes"]), (&"k".into(), &"a value".into(), &7.into()));
    // Compare and swap.
    let version = info["version"].to_string();
    assert!(
        json_of(&node, &["kv", "set", "b", "k", "2", "--if-version", &version])["version"].as_u64() > info["version"].as_u64()
    );
    fails(&node, 1, &["kv", "set", "b", "k", "3", "--if-version", &version]);
    fails(&node, 1, &["kv", "set", "b", "k", "3", "--if-absent"]);
    fails(&node, 1, &["kv", "del", "b", "k", "--if-version", &version]);
    assert_eq!(run(&node, &["kv", "incr", "b", "k"]), "3\n");
    assert_eq!(run(&node, &["kv", "incr", "b", "k", "-5"]), "-2\n");
    run(&node, &["kv", "set", "b", "gone", "x", "--ttl", "1h"]);
    fails(&node, 1, &["kv", "set", "b", "gone", "x", "--ttl", "1"]);
    // A value from a pipe, a key that nobody can type, and one that looks like a way.
    let mut child = hob(&["kv", "set", "b", "../x"])
        .env("HOB_SERVER", format!("http://{}", node.control.addr))
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\0\xff").unwrap();
    check(&child.wait_with_output().unwrap(), 0);
    assert_eq!(at(&node, &["kv", "get", "b", "../x"]).stdout, b"\0\xff");
    run(&node, &["kv", "set", "--base64", "b", "AP8=", "odd"]);
    assert_eq!(run(&node, &["kv", "get", "b", "AP8=", "--base64"]), "odd");
    fails(&node, 2, &["kv", "get", "b", "?", "--base64"]);
    let list = run(&node, &["kv", "ls", "b"]);
    assert!(list.contains("base64:AP8=") && list.contains("../x") && list.lines().count() == 5, "{list}");
    assert_eq!(json_of(&node, &["kv", "ls", "b", "go"])[0]["key"], "gone");
    run(&node, &["kv", "del", "b", "gone"]);
    for args in [["kv", "get", "b", "gone"], ["kv", "del", "b", "gone"]] {
        assert!(fails(&node, 3, &args).contains("next: hob kv ls b\n"));
    }
    assert!(fails(&node, 3, &["kv", "get", "none", "gone"]).contains("next: hob bucket ls\n"));
    fails(&node, 1, &["kv", "get", "b", &"k".repeat(513)]);
    fails(&node, 1, &["kv", "get", "b", ""]);
}

#[test]
fn entries_many_at_once() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let set = json_of(&node, &["kv", "set", "b", "x", "1", "y", "two words", "z", "", "--ttl", "1h"]);
    assert_eq!((set.as_array().unwrap().len(), &set[1]["key"]), (3, &"y".into()));
    assert_eq!(run(&node, &["kv", "get", "b", "z", "y", "x", "y"]), "\ntwo words\n1\ntwo words\n");
    let got = json_of(&node, &["kv", "get", "b", "y", "x"]);
    assert_eq!((&got[0]["value"], &got[1]["key"], got[1]["expires_ms"].is_u64()), (&"two words".into(), &"x".into(), true));
    assert_eq!(got[0]["version"], set[1]["version"]);
    // What is there is printed, and what is not is said.
    let (stdout, stderr) = check(&at(&node, &["kv", "get", "b", "x", "none", "y", "gone"]), 3);
    assert!(stdout == "1\ntwo words\n" && stderr.contains("no entry under none, gone"), "{stdout}{stderr}");
    let output = at(&node, &["kv", "get", "b", "x", "none", "-o", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &list[0]["value"], &list[1]), (Some(3), &"1".into(), &Value::Null));
    // All or none.
    fails(&node, 1, &["kv", "set", "b", "new", "1", "x", "2", "--if-absent"]);
    fails(&node, 3, &["kv", "get", "b", "new"]);
    fails(&node, 2, &["kv", "set", "b", "new", "1", "x"]);
    fails(&node, 2, &["kv", "set", "b", "new", "1", "x", "2", "--if-version", "1"]);
    fails(&node, 3, &["kv", "get", "nowhere", "x", "y"]);
    fails(&node, 1, &["kv", "get", "b", "x", ""]);
    run(&node, &["kv", "set", "b", "--base64", "/w==", "odd", "AA==", "nul"]);
    assert_eq!(run(&node, &["kv", "get", "--base64", "b", "AA==", "/w=="]), "nul\nodd\n");
    fails(&node, 2, &["kv", "get", "b", "AA==", "?", "--base64"]);
}

#[test]
fn watching() {
    let mut node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let mut child = hob(&["kv", "watch", "b", "a"]).env("HOB_SERVER", format!("http://{}", node.control.addr)).spawn().unwrap();
    let mut words = BufReader::new(child.stderr.take().unwrap()).lines();
    assert_eq!(words.next().unwrap().unwrap(), "watching b");
    for key in ["a1", "b1", "a2"] {
        assert_eq!(put(&node, &format!("/v1/buckets/b/kv/{key}"), &[], b"x").status(), 204);
    }
    run(&node, &["kv", "del", "b", "a1"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.next().unwrap().starts_with("set a1 version "));
    assert!(lines.next().unwrap().starts_with("set a2 version "));
    assert_eq!(lines.next().unwrap(), "del a1");
    run(&node, &["bucket", "rm", "b"]);
    assert_eq!(lines.next(), None);
    assert!(words.next().unwrap().unwrap().contains("the bucket was deleted"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // A daemon that goes away has not told everything.
    bucket(&node, "b", json!({}));
    for is_asked in [true, false] {
        let mut child = hob(&["kv", "watch", "b"]).env("HOB_SERVER", format!("http://{}", node.control.addr)).spawn().unwrap();
        let mut words = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(words.next().unwrap(), "watching b");
        match is_asked {
            true => node.restart(),
            false => node.kill(),
        }
        let code = child.wait().unwrap().code();
        assert_eq!((code, words.next().unwrap().starts_with("error: ")), (Some(if is_asked { 5 } else { 1 }), true));
    }
}

#[test]
fn objects_from_and_to_files() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(n) >> 7) as u8).collect();
    std::fs::write(path("a"), &bytes).unwrap();
    run(&node, &["blob", "cp", &path("a"), "hob:b/x/a", "--content-type", "image/png", "--meta", "author=Ana", "--if-absent"]);
    fails(&node, 1, &["blob", "cp", &path("a"), "hob:b/x/a", "--if-absent"]);
    let list = json_of(&node, &["blob", "ls", "b/x/"]);
    assert_eq!(
        (&list[0]["key"], &list[0]["content_type"], &list[0]["metadata"]),
        (&"x/a".into(), &"image/png".into(), &json!([["author", "Ana"]]))
    );
    assert_eq!(at(&node, &["blob", "cat", "b/x/a"]).stdout, bytes);
    run(&node, &["blob", "cp", "hob:b/x/a", &path("copy")]);
    assert_eq!(std::fs::read(path("copy")).unwrap(), bytes);
    // As cp names it.
    assert_eq!(json_of(&node, &["blob", "cp", &path("copy"), "hob:b/x/"])["key"], "x/copy");
    std::fs::create_dir_all(path("tree/deep")).unwrap();
    std::fs::write(path("tree/1"), "one").unwrap();
    std::fs::write(path("tree/deep/2"), "two").unwrap();
    fails(&node, 1, &["blob", "cp", &path("tree"), "hob:b/t/"]);
    assert_eq!(json_of(&node, &["blob", "cp", "-r", &path("tree"), "hob:b/t/"]).as_array().unwrap().len(), 2);
    // A key that is too long is left out, and the rest comes.
    let deep = ["d".repeat(250).as_str(); 5].join("/");
    std::fs::create_dir_all(path(&format!("long/{deep}"))).unwrap();
    std::fs::write(path(&format!("long/{deep}/0")), "x").unwrap();
    std::fs::write(path("long/z"), "z").unwrap();
    let (_, stderr) = check(&at(&node, &["blob", "cp", "-r", &path("long"), "hob:b/long/"]), 1);
    assert!(
        stderr.contains("its key would have 1261 bytes") && stderr.contains("left out, because their keys would be too long: 1"),
        "{stderr}"
    );
    assert_eq!(node.control.get("/v1/buckets/b/objects/long%2Fz").good(), b"z");
    // What would lead out of the folder is left out, and said.
    assert_eq!(put(&node, "/v1/buckets/b/objects/t%2F..%2F..%2Fescaped", &[], b"x").status(), 201);
    let (_, stderr) = check(&at(&node, &["blob", "cp", "-r", "hob:b/t/", &path("out")]), 0);
    assert!(stderr.contains("left out"), "{stderr}");
    assert_eq!(std::fs::read(path("out/deep/2")).unwrap(), b"two");
    assert!(!dir.path().join("escaped").exists() && !dir.path().parent().unwrap().join("escaped").exists());
    let etag = node.control.get("/v1/buckets/b/objects/x%2Fa").ok().header("etag").unwrap().trim_matches('"').to_owned();
    fails(&node, 1, &["blob", "rm", "b/x/a", "--if-match", &digest("another")]);
    run(&node, &["blob", "rm", "b/x/a", "--if-match", etag.trim_start_matches("sha256:")]);
    fails(&node, 3, &["blob", "rm", "b/x/a"]);
    assert!(fails(&node, 3, &["blob", "cat", "b/x/a"]).contains("next: hob blob ls hob:b\n"));
    assert!(fails(&node, 3, &["blob", "cat", "none/x"]).contains("next: hob bucket ls\n"));
    let stderr = fails(&node, 2, &["blob", "cp", "hob:b/x/a", &format!("{}/", path("newdir"))]);
    assert!(stderr.contains("is no folder that is there") && stderr.contains("make it first"), "{stderr}");
    fails(&node, 3, &["blob", "cp", "hob:b/x/a", &path("none")]);
    let names = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert!(!names().any(|name| name.starts_with("none") || name.ends_with(".part")));
    check_where_objects_go(&node, dir.path());
    fails(&node, 2, &["blob", "cp", &path("a"), &path("b")]);
    fails(&node, 2, &["blob", "ls", "B"]);
    fails(&node, 1, &["blob", "cp", &path("missing"), "hob:b/x"]);
}

/// A folder is a folder with and without its slash, and only files are replaced.
#[track_caller]
fn check_where_objects_go(node: &Node, dir: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let put = json_of(node, &["blob", "cp", "-r", &path("tree"), "hob:b/site"]);
    assert_eq!((&put[0]["key"], &put[1]["key"]), (&"site/1".into(), &"site/deep/2".into()));
    for key in ["site2", "site%2F%2F1"] {
        assert_eq!(crate::buckets::put(node, &format!("/v1/buckets/b/objects/{key}"), &[], b"other").status(), 201);
    }
    let (_, stderr) = check(&at(node, &["blob", "cp", "-r", "hob:b/site", &path("site")]), 0);
    assert!(stderr.contains("left out") && stderr.contains("site//1"), "{stderr}");
    assert_eq!(std::fs::read(path("site/1")).unwrap(), b"one");
    assert_eq!(std::fs::read_dir(path("site")).unwrap().count(), 2);
    fails(node, 3, &["blob", "cp", "-r", "hob:b/nowhere", &path("nowhere")]);
    fails(node, 2, &["blob", "cp", "-", "hob:b/site/"]);
    // What only has a name like a part of a copy is somebody else's, a link stays, and so does a pipe.
    std::fs::write(path("1.part"), "mine").unwrap();
    std::fs::write(path("old"), "old").unwrap();
    std::os::unix::fs::symlink("old", path("1")).unwrap();
    run(node, &["blob", "cp", "hob:b/site/1", &path("1")]);
    assert_eq!(std::fs::read(path("1.part")).unwrap(), b"mine");
    assert_eq!(std::fs::read(path("old")).unwrap(), b"one");
    assert!(dir.join("1").is_symlink());
    assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    let pipe = path("pipe");
    let reader = std::thread::spawn(move || std::fs::read(pipe).unwrap());
    run(node, &["blob", "cp", "hob:b/site/1", &path("pipe")]);
    assert!(std::fs::metadata(path("pipe")).unwrap().file_type().is_fifo(), "a pipe is written to, and stays");
    assert_eq!(reader.join().unwrap(), b"one");
}

#[test]
fn an_export_comes_back_or_is_refused_whole() {
    let node = Node::start(&[]);
    bucket(&node, "from", json!({ "keys_max": 5000 }));
    for number in 0..1500_u32 {
        let target = format!("/v1/buckets/from/kv/{number}");
        if number % 500 == 0 {
            assert_eq!(put(&node, &target, &[], &[number as u8; 1000]).status(), 204);
        }
    }
    let ops: Vec<Value> = (0..999).map(|n| json!({ "op": "set", "key": format!("batch/{n}"), "value": n.to_string() })).collect();
    let ops = [ops, vec![json!({ "op": "set", "key_base64": "/wA=", "value_base64": "/w==", "ttl": "1h" })]].concat();
    node.control.post("/v1/buckets/from/kv", json!({ "ops": ops }).to_string().as_bytes()).ok();
    assert_eq!(
        put(&node, "/v1/buckets/from/objects/%00%ff", &[("content-type", "a/b"), ("hob-meta-x", "ä\"")], &[9; 70_000]).status(),
        201
    );
    assert_eq!(put(&node, "/v1/buckets/from/objects/empty", &[], b"").status(), 201);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export").to_str().unwrap().to_owned();
    let wrote = json_of(&node, &["bucket", "export", "from", &file]);
    assert_eq!((&wrote["entries"], &wrote["objects"]), (&1003.into(), &2.into()));
    fails(&node, 1, &["bucket", "export", "from", &file]);
    let read = json_of(&node, &["bucket", "import", &file, "to"]);
    assert_eq!((&read["entries"], &read["objects"], &read["bytes"]), (&1003.into(), &2.into(), &wrote["bytes"]));
    let all = |name: &str, kind: &str| {
        let page = |cursor: &str| {
            node.control
                .get(
                    &format!("/v1/buckets/{name}/{kind}?values=true{cursor}")
                        .replace(if kind == "objects" { "values=true" } else { "none" }, ""),
                )
                .ok()
                .json()
        };
        let first = page("");
        let mut items = first["items"].as_array().unwrap().clone();
        if let Some(next) = first["next"].as_str() {
            items.extend(page(&format!("&cursor={next}"))["items"].as_array().unwrap().clone());
        }
        for item in &mut items {
            for (field, coarse) in [("version", false), ("modified_ms", false), ("expires_ms", true)] {
                let was = item.as_object_mut().unwrap().remove(field);
                if coarse {
                    item["expires"] = was.is_some().into();
                }
            }
        }
        items
    };
    for kind in ["kv", "objects"] {
        assert_eq!(all("to", kind), all("from", kind), "{kind}");
    }
    assert_eq!(json_of(&node, &["bucket", "inspect", "to"])["keys_max"], 5000);
    check_damaged(&node, dir.path(), &std::fs::read(&file).unwrap());
    let none = dir.path().join("none");
    fails(&node, 3, &["bucket", "export", "none", none.to_str().unwrap()]);
}

#[test]
fn what_has_expired_is_no_part_of_an_export_nor_missing_from_it() {
    let node = Node::start(&[]);
    let dir = tempfile::tempdir().unwrap();
    for durability in ["volatile", "durable"] {
        bucket(&node, durability, json!({ "durability": durability }));
        run(&node, &["kv", "set", durability, "stays", "x"]);
        for number in 0..100 {
            assert_eq!(put(&node, &format!("/v1/buckets/{durability}/kv/{number}?ttl=1ms"), &[], b"x").status(), 204);
        }
        let gone = |number: u32| node.control.get(&format!("/v1/buckets/{durability}/kv/{number}")).status() == 404;
        eventually("they have expired", || (0..100).all(gone));
        let wrote = json_of(&node, &["bucket", "export", durability, dir.path().join(durability).to_str().unwrap()]);
        assert_eq!(wrote["entries"], 1, "{durability}");
        eventually("the account has what is there", || {
            json_of(&node, &["bucket", "inspect", durability])["entries"]["keys"] == 1
        });
    }
}

#[test]
fn a_file_with_what_no_export_writes_is_refused_whole() {
    let node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    let good = r#"{"bucket":"b","durability":"durable","bytes_max":1000,"keys_max":10}"#;
    let entry = |key: &str| format!("{}\nx\n", json!({ "kind": "entry", "key": key, "bytes": 1, "digest": digest("x") }));
    let long = "k".repeat(513);
    for (definition, entry, said) in [
        (good, entry("k"), None),
        (&good.replace("durable", "foo"), entry("k"), Some("expected 'durable' or 'volatile'")),
        (&good.replace('}', r#","origin":"s3://x"}"#), entry("k"), Some("its second line defines no bucket")),
        (good, entry(""), Some("a key that no bucket takes: expected 1 to 512 bytes")),
        (good, entry(&long), Some("a key that no bucket takes: expected 1 to 512 bytes")),
    ] {
        let text = format!("hob-bucket 1\n{definition}\n{entry}");
        let end = json!({ "kind": "end", "digest": digest(&text), "entries": 1, "objects": 0 });
        std::fs::write(&file, format!("{text}{end}\n")).unwrap();
        let import = ["bucket", "import", file.to_str().unwrap()];
        match said {
            None => assert_eq!(json_of(&node, &import)["entries"], 1),
            Some(said) => {
                let stderr = fails(&node, 1, &import);
                assert!(stderr.contains("nothing of it was") && stderr.contains(said), "{stderr}");
            }
        }
    }
}

fn digest(text: &str) -> String {
    use sha2::Digest as _;
    let hex: String = sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[test]
fn what_stays_long_comes_back_with_its_end() {
    let node = Node::start(&[]);
    bucket(&node, "from", json!({}));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("x"), "x").unwrap();
    run(&node, &["kv", "set", "from", "k", "v", "--ttl", "36500days"]);
    run(&node, &["blob", "cp", &path("x"), "hob:from/o", "--ttl", "36500days"]);
    for ttl in ["36500days 1ms", "600years", "18446744073709551615ms"] {
        let stderr = fails(&node, 1, &["kv", "set", "from", "k", "v", "--ttl", ttl]);
        assert!(stderr.contains("36500"), "{stderr}");
        fails(&node, 1, &["blob", "cp", &path("x"), "hob:from/o", "--ttl", ttl]);
    }
    run(&node, &["bucket", "export", "from", &path("export")]);
    run(&node, &["bucket", "import", &path("export"), "to"]);
    let end = |name: &str, kind: &str| json_of(&node, &[kind, "ls", name])[0]["expires_ms"].as_u64().unwrap();
    for kind in ["kv", "blob"] {
        let (from, to) = (end("from", kind), end("to", kind));
        assert!(from < 1 << 53 && from.abs_diff(to) < 1000, "{kind}: {from} {to}");
    }
    // What an export says may be more than is taken, as of a bucket from before there was a bound.
    let text = std::fs::read_to_string(path("export")).unwrap();
    let mut text = text.replace(&end("from", "kv").to_string(), "18446744073709551615");
    text.truncate(text.find("{\"kind\":\"end\"").unwrap());
    let digest = hob::id::Digest::of(text.as_bytes());
    text += &json!({ "kind": "end", "digest": digest.to_string(), "entries": 1, "objects": 1 }).to_string();
    std::fs::write(path("older"), text + "\n").unwrap();
    run(&node, &["bucket", "import", &path("older"), "older"]);
    assert!(end("older", "kv") < 1 << 53);
}

/// A daemon that begins to answer and never goes on.
fn stalls() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
                while let Some(request) = lines.next() {
                    lines.by_ref().take_while(|line| !line.is_empty()).for_each(drop);
                    let info = json!({
                        "name": "b", "durability": "durable", "bytes_max": 1, "keys_max": 1, "created_ms": 1,
                        "entries": { "bytes": 1, "keys": 1 }, "objects": { "bytes": 1, "keys": 1 },
                    });
                    let (len, body) = match request.starts_with("GET /v1/buckets/b HTTP") {
                        true => (info.to_string().len(), info.to_string()),
                        false => (1 << 20, "{".into()),
                    };
                    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {len}\r\n\r\n{body}").as_bytes()).unwrap();
                }
            });
        }
    });
    addr
}

#[test]
fn a_signal_leaves_no_part_of_a_file() {
    let server = format!("http://{}", stalls());
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for (args, is_there) in
            [(&["blob", "cp", "hob:b/k"][..], true), (&["blob", "cp", "hob:b/k"], false), (&["bucket", "export", "b"], false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let to = dir.path().join("to");
            if is_there {
                std::fs::write(&to, "mine").unwrap();
            }
            let names = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let args = [args, &[to.to_str().unwrap(), "--server", &server]].concat();
            let child = hob(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            eventually("it has begun", || names().any(|name| name.ends_with(".part")));
            assert_eq!(to.exists(), is_there);
            kill_process(Pid::from_child(&child), signal).unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{args:?} {}", String::from_utf8_lossy(&output.stderr));
            let left: Vec<_> = names().collect();
            assert_eq!(left, if is_there { vec!["to"] } else { vec![] }, "{args:?}");
            assert!(!is_there || std::fs::read(&to).unwrap() == b"mine");
        }
    }
}

/// A batch that is legal by its bytes, and longer as JSON than a body may be.
#[test]
fn an_export_of_control_characters_comes_back() {
    let node = Node::start(&[]);
    bucket(&node, "from", json!({}));
    let ops = |numbers: std::ops::Range<u32>| {
        let op = |n| json!({ "op": "set", "key": format!("{}{n:04}", "\u{1}".repeat(508)), "value": "\0".repeat(4198) });
        json!({ "ops": numbers.map(op).collect::<Vec<_>>() }).to_string()
    };
    for numbers in [0..500, 500..999] {
        node.control.post("/v1/buckets/from/kv", ops(numbers).as_bytes()).ok();
    }
    let last = format!("kv/{}", "%02".repeat(512));
    assert_eq!(put(&node, &format!("/v1/buckets/from/{last}"), &[], &[0; 1 << 20]).status(), 204);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export").to_str().unwrap().to_owned();
    assert_eq!(json_of(&node, &["bucket", "export", "from", &file])["entries"], 1000);
    assert_eq!(json_of(&node, &["bucket", "import", &file, "to"])["entries"], 1000);
    let size = |name: &str| json_of(&node, &["bucket", "inspect", name])["entries"].clone();
    assert_eq!(size("to"), size("from"));
    assert!(node.control.get(&format!("/v1/buckets/to/{last}")).good() == [0; 1 << 20]);
}

#[test]
fn metadata_of_any_characters_comes_back() {
    let node = Node::start(&[]);
    bucket(&node, "from", json!({}));
    let odd = json!({
        "content_type": " é/\r\n\0",
        "metadata": [["Case", "Kept"], ["case", "other"], ["", ""], ["a b", " x "], ["é", "日本"], ["crlf", "a\r\nb: c"], ["nul", "\0\u{7f}"], ["twice", "1"], ["twice", "2"]],
    });
    let put = |name: &str, headers: &[(&str, &str)]| {
        crate::buckets::put(&node, &format!("/v1/buckets/from/objects/{name}"), headers, b"x")
    };
    let described = STANDARD.encode(odd.to_string());
    let made = put("odd", &[("hob-described", &described), ("content-type", "text/plain")]);
    assert_eq!(
        (made.status(), &made.json()["metadata"], &made.json()["content_type"]),
        (201, &odd["metadata"], &odd["content_type"])
    );
    assert_eq!(put("plain", &[("content-type", "image/png"), ("hob-meta-by", "Ana")]).status(), 201);
    let only = STANDARD.encode(json!({ "metadata": [["A", "1"]] }).to_string());
    assert_eq!(put("typed", &[("hob-described", &only), ("content-type", "image/png")]).json()["content_type"], "image/png");
    // A header has what one can carry, and says how much it cannot.
    let head = node.control.get("/v1/buckets/from/objects/odd").ok();
    assert_eq!((head.header("hob-meta-case"), head.header("hob-missing-meta")), (Some("other"), Some("5")));
    let long = STANDARD.encode(json!({ "metadata": [["a", "b".repeat(2048)]] }).to_string());
    for (headers, status, code) in [
        (&[("hob-described", described.as_str()), ("hob-meta-a", "1")][..], 400, "bad-request"),
        (&[("hob-described", "?")], 400, "bad-request"),
        (&[("hob-described", &long)], 413, "body-too-large"),
    ] {
        put("bad", headers).problem(status, code);
    }
    node.control.get("/v1/buckets/from/objects/bad").problem(404, "not-found");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export").to_str().unwrap().to_owned();
    run(&node, &["bucket", "export", "from", &file]);
    run(&node, &["bucket", "import", &file, "to"]);
    let all = |name: &str| {
        let list = node.control.get(&format!("/v1/buckets/{name}/objects")).ok().json();
        let items = list["items"].as_array().unwrap().clone();
        items.iter().map(|item| json!([item["key"], item["content_type"], item["metadata"]])).collect::<Vec<_>>()
    };
    assert_eq!((all("to"), all("to").len()), (all("from"), 3));
    assert_eq!(all("to")[0], json!(["odd", odd["content_type"], odd["metadata"]]));
    // As it was typed.
    let cat = dir.path().join("cat").to_str().unwrap().to_owned();
    std::fs::write(&cat, "x").unwrap();
    let put =
        json_of(&node, &["blob", "cp", &cat, "hob:to/cat", "--meta", "Author=Ana É", "--meta", "of=cats", "--content-type", "é"]);
    assert_eq!((&put["metadata"], &put["content_type"]), (&json!([["Author", "Ana É"], ["of", "cats"]]), &"é".into()));
}

/// Files that are not what was exported are refused before anything of them is read into a bucket.
#[track_caller]
fn check_damaged(node: &Node, dir: &Path, whole: &[u8]) {
    // One byte changed, one cut, one too many, and something else: nothing of it is read.
    let bad = dir.join("bad").to_str().unwrap().to_owned();
    let mut damaged: Vec<Vec<u8>> = [20, 300, whole.len() / 2, whole.len() - 60_000, whole.len() - 10]
        .map(|at| {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1;
            bytes
        })
        .to_vec();
    damaged.extend([
        whole[..whole.len() - 1].to_vec(),
        whole[..whole.len() / 2].to_vec(),
        [whole, b"x"].concat(),
        Vec::new(),
        b"else\n".to_vec(),
    ]);
    for bytes in damaged {
        std::fs::write(&bad, bytes).unwrap();
        let stderr = fails(node, 1, &["bucket", "import", &bad, "new"]);
        assert!(stderr.contains("nothing of it was"), "{stderr}");
        fails(node, 3, &["bucket", "inspect", "new"]);
    }
}
