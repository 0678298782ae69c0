//! One byte of a node's data that rots: what is lost, what is told, and that nothing else suffers.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::buckets::{bucket, check_whole, delete, put};
use crate::buckets_objects::{flip, position};
use crate::cli::{at, check, hob};
use crate::data::hex;
use crate::harness::examples::guest;
use crate::harness::wat::says;
use crate::harness::{Node, Setup, eventually, files};
use crate::standard::Doors;

const GRANT: &str = "[grants]\ndata = [{ bucket = \"b\", access = \"read\" }]\n";

fn value(key: &str) -> String {
    format!("the value of the entry {key}")
}

fn object(key: &str) -> Vec<u8> {
    vec![key.as_bytes()[0]; 50_000]
}

fn json_of(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

/// A node that was stopped and started again, with entries and objects `a`, `bad` and `c` in bucket `b`, of which `bad` has rotted.
fn rotten() -> Node {
    let mut node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    for name in ["data1", "doors2"] {
        assert_eq!(node.deploy(name, &std::fs::read(guest(name)).unwrap(), GRANT).status(), 201);
    }
    for key in ["a", "bad", "c"] {
        assert_eq!(put(&node, &format!("/v1/buckets/b/kv/{key}"), &[], value(key).as_bytes()).status(), 204);
        assert_eq!(put(&node, &format!("/v1/buckets/b/objects/{key}"), &[], &object(key)).status(), 201);
    }
    node.stop();
    let store = node.data_dir().join("data/data.redb");
    flip(&store, position(&store, value("bad").as_bytes()) + 4);
    let rots = |file: &PathBuf| std::fs::read(file).unwrap() == object("bad");
    flip(&files(&node.data_dir().join("data/objects")).into_iter().find(rots).unwrap(), 12_345);
    Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() })
}

#[test]
fn one_damaged_entry_is_an_error_for_its_key_alone() {
    let node = rotten();
    let damaged = json!({ "key": "bad", "damaged": true });
    let page = |query: &str| node.control.get(&format!("/v1/buckets/b/kv?{query}")).ok().json();
    for values in [false, true] {
        let list = page(&format!("values={values}"))["items"].clone();
        assert_eq!(
            (list.as_array().unwrap().len(), &list[0]["key"], &list[1], &list[2]["key"]),
            (3, &"a".into(), &damaged, &"c".into())
        );
        assert!(list[2]["version"].is_u64() && list[2]["bytes"].is_u64());
        assert_eq!(list[2]["value"], if values { value("c").into() } else { Value::Null });
    }
    let mut cursor = String::new();
    for key in ["a", "bad", "c"] {
        let page = page(&format!("limit=1{cursor}"));
        assert_eq!((page["items"].as_array().unwrap().len(), &page["items"][0]["key"]), (1, &key.into()));
        cursor = page["next"].as_str().map(|next| format!("&cursor={next}")).unwrap_or_default();
    }
    assert_eq!(cursor, "");
    let keys = json!({ "keys": [{ "key": "c" }, { "key": "bad" }, { "key": "none" }, { "key": "a" }] });
    let found = node.control.post("/v1/buckets/b/kv-get", keys.to_string().as_bytes()).ok().json()["items"].clone();
    assert_eq!((&found[0]["value"], &found[1], &found[2]), (&value("c").into(), &damaged, &Value::Null));
    assert_eq!(found[3]["value"], value("a"));
    node.control.get("/v1/buckets/b/kv/bad").problem(503, "damaged");
    check_guests(&node);
    // It can be mended.
    assert_eq!(put(&node, "/v1/buckets/b/kv/bad", &[], b"new").status(), 204);
    assert_eq!(page("values=true")["items"][1]["value"], "new");
}

/// A handler's scan goes on, lists of components have the key, and what reads it is told.
#[track_caller]
fn check_guests(node: &Node) {
    let ask = |line: String| node.data.post("/data1/b", line.as_bytes()).ok().text().trim_end().to_owned();
    for by in [1, 2, 1000] {
        assert_eq!(ask(format!("scan - page={by}")), "61 damaged:'bad' is damaged on disk 63");
    }
    for line in ["get {}", "entry {}", "exists {}", "many 61 {} 63"] {
        assert_eq!(ask(line.replace("{}", &hex("bad"))), "error damaged 'bad' is damaged on disk", "{line}");
    }
    assert_eq!(ask("many 63 61".into()), format!("{} {}", hex(value("c")), hex(value("a"))));
    for door in ["kv1", "kv2"] {
        let said = |op: &str, keys: &[&[u8]]| Doors::say_to(node, &format!("{door}/{op}/b"), keys);
        assert_eq!(said("keys", &[]).unwrap().unwrap(), [&b"a"[..], b"bad", b"c"]);
        for (op, keys) in [("get", &[&b"bad"[..]][..]), ("exists", &[b"bad"]), ("get-many", &[b"a", b"bad"])] {
            assert!(said(op, keys).unwrap_err().contains("'bad' is damaged on disk"), "{door} {op}");
        }
        assert_eq!(said("get", &[b"c"]).unwrap().unwrap(), [value("c").into_bytes()]);
    }
}

/// What is known of an object is a row of the same file as the entries.
#[test]
fn one_damaged_row_of_an_object_is_an_error_for_its_key_alone() {
    let mut node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    assert_eq!(node.deploy("data1", &std::fs::read(guest("data1")).unwrap(), GRANT).status(), 201);
    for key in ["a", "bad", "c"] {
        let kind = format!("type/of-{key}");
        assert_eq!(put(&node, &format!("/v1/buckets/b/objects/{key}"), &[("content-type", &kind)], &object(key)).status(), 201);
    }
    node.stop();
    let store = node.data_dir().join("data/data.redb");
    // Pages that are not in use any more have it, too.
    let (bytes, text) = (std::fs::read(&store).unwrap(), b"type/of-bad");
    let all = bytes.windows(text.len()).enumerate().filter(|(_, window)| window == text);
    all.for_each(|(at, _)| flip(&store, at as u64 + 4));
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    let list = node.control.get("/v1/buckets/b/objects").ok().json()["items"].clone();
    assert_eq!(
        (&list[0]["key"], &list[1], &list[2]["key"]),
        (&"a".into(), &json!({ "key": "bad", "damaged": true }), &"c".into())
    );
    assert!(list[2]["etag"].is_string());
    node.control.get("/v1/buckets/b/objects/bad").problem(503, "damaged");
    assert_eq!(node.data.post("/data1/b", b"list -").ok().text(), "61 damaged:'bad' is damaged on disk 63\n");
    let (list, _) = check(&at(&node, &["blob", "ls", "b"]), 0);
    assert!(list.lines().count() == 4 && list.contains("damaged"), "{list}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export").to_str().unwrap().to_owned();
    let (_, stderr) = check(&at(&node, &["bucket", "export", "b", &file]), 1);
    assert!(stderr.contains("not in the export: object bad") && stderr.contains("0 entries and 2 objects"), "{stderr}");
    // Whether a condition holds cannot be known.
    for (method, name, value) in [("PUT", "if-none-match", "*"), ("PUT", "if-match", "*"), ("DELETE", "if-match", "*")] {
        node.control.request(method, "/v1/buckets/b/objects/bad", &[(name, value)], b"new").problem(503, "damaged");
    }
    // A folder has the rest, and the code says that something is missing.
    let folder = dir.path().join("copy").to_str().unwrap().to_owned();
    let (_, stderr) = check(&at(&node, &["blob", "cp", "-r", "hob:b", &folder]), 1);
    assert!(stderr.contains("left out: bad: ") && stderr.contains("is damaged on disk"), "{stderr}");
    let copied = ["a", "bad", "c"].map(|key| std::fs::read(format!("{folder}/{key}")).ok());
    assert_eq!(copied, [Some(object("a")), None, Some(object("c"))]);
    assert_eq!(delete(&node, "/v1/buckets/b/objects/bad").status(), 204);
    let list = node.control.get("/v1/buckets/b/objects").ok().json()["items"].clone();
    assert_eq!(list.as_array().unwrap().len(), 2);
}

/// The row of a bucket's account, or of the count of its events: told by a number in it.
fn flip_row(node: &Node, number: u64) {
    let store = node.data_dir().join("data/data.redb");
    let (bytes, needle) = (std::fs::read(&store).unwrap(), number.to_le_bytes());
    let all: Vec<_> = bytes.windows(8).enumerate().filter(|(_, window)| *window == needle).map(|(at, _)| at).collect();
    assert!(!all.is_empty());
    all.into_iter().for_each(|at| flip(&store, at as u64));
}

#[test]
fn a_damaged_account_is_an_error_for_its_bucket_alone() {
    let mut node = Node::start(&[]);
    bucket(&node, "bad", json!({ "bytes_max": 123_456_789 }));
    bucket(&node, "fine", json!({}));
    for name in ["bad", "fine"] {
        assert_eq!(put(&node, &format!("/v1/buckets/{name}/kv/k"), &[], b"v").status(), 204);
    }
    // The only one of a tenant.
    assert_eq!(put(&node, "/v1/tenants/acme", &[], b"{}").status(), 201);
    let acme = [("hob-tenant", "acme")];
    assert_eq!(
        put(&node, "/v1/buckets/only", &acme, &json!({ "bytes_max": 987_654_321 }).to_string().into_bytes()).status(),
        201
    );
    node.stop();
    flip_row(&node, 123_456_789);
    flip_row(&node, 987_654_321);
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    let problem = put(&node, "/v1/buckets/bad/kv/k", &[], b"w").problem(503, "damaged");
    assert!(problem["detail"].as_str().unwrap().contains("the account of bucket"), "{problem}");
    node.control.get("/v1/buckets/bad").problem(503, "damaged");
    let list = node.control.get("/v1/buckets").ok().json();
    assert_eq!((&list["items"][0]["name"], list["items"].as_array().unwrap().len()), (&"fine".into(), 1), "{list}");
    assert_eq!(list["damaged"], json!(["bad"]));
    delete(&node, "/v1/tenants/acme").problem(409, "conflict");
    // Nobody else notices, whatever is counted over all buckets.
    assert_eq!(put(&node, "/v1/buckets/fine/kv/k", &[], b"w").status(), 204);
    bucket(&node, "volatile", json!({ "durability": "volatile" }));
    let (_, stderr) = check(&at(&node, &["bucket", "ls"]), 0);
    assert!(stderr.contains("the account of bucket 'bad' is damaged"), "{stderr}");
    let (text, _) = check(&at(&node, &["doctor"]), 1);
    assert!(text.contains("bucket bad") && text.contains("its account is damaged") && text.contains("bucket fine"), "{text}");
    assert_eq!(delete(&node, "/v1/buckets/bad").status(), 204);
    bucket(&node, "bad", json!({}));
    assert_eq!(put(&node, "/v1/buckets/bad/kv/k", &[], b"w").status(), 204);
}

#[test]
fn a_damaged_count_of_events_is_an_error_for_its_bucket_alone() {
    let mut node = Node::start(&[]);
    let trigger = "[grants]\ndata = [{ bucket = 'b' }]\n[[bucket]]\nname = 'b'\n[[trigger]]\nbucket = 'b'\non = 'key-change'\n";
    node.deploy_wat("told", &says("ok"), trigger);
    bucket(&node, "fine", json!({}));
    // Told and settled; the count of all that ever were stays.
    let sets: u64 = 77;
    for number in 0..sets {
        assert_eq!(put(&node, "/v1/buckets/b/kv/k", &[], number.to_string().as_bytes()).status(), 204);
    }
    eventually("all are told", || node.metric("hob_events") == 0);
    node.stop();
    let store = node.data_dir().join("data/data.redb");
    let (bytes, needle) = (std::fs::read(&store).unwrap(), [sets.to_le_bytes(), [0; 8]].concat());
    let all: Vec<_> = bytes.windows(16).enumerate().filter(|(_, window)| *window == needle).map(|(at, _)| at).collect();
    all.iter().for_each(|at| flip(&store, *at as u64));
    assert!(!all.is_empty());
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    std::thread::scope(|scope| {
        let writes = |key: String| {
            let node = &node;
            move || (0..20).map(|_| put(node, &key, &[], b"v").status()).collect::<Vec<_>>()
        };
        let bad = scope.spawn(writes("/v1/buckets/b/kv/k".into()));
        let fine: Vec<_> = (0..4).map(|n| scope.spawn(writes(format!("/v1/buckets/fine/kv/{n}")))).collect();
        assert!(fine.into_iter().all(|thread| thread.join().unwrap() == [204; 20]), "nobody else's write is harmed");
        assert_eq!(bad.join().unwrap(), [503; 20]);
    });
    let problem = put(&node, "/v1/buckets/b/kv/k", &[], b"v").problem(503, "damaged");
    assert!(problem["detail"].as_str().unwrap().contains("the count of events"), "{problem}");
}

#[test]
fn a_head_says_what_is_known_and_reads_nothing() {
    let node = rotten();
    let head = |key: &str| node.control.request("HEAD", &format!("/v1/buckets/b/objects/{key}"), &[], b"");
    // Nobody has looked at its bytes.
    assert_eq!((head("bad").status(), head("a").status()), (200, 200));
    node.control.get("/v1/buckets/b/objects/bad").problem(503, "damaged");
    let reply = head("bad");
    assert_eq!((reply.status(), reply.header("hob-error"), reply.header("etag")), (503, Some("damaged"), None));
    assert_eq!(head("a").status(), 200);
    assert_eq!(put(&node, "/v1/buckets/b/objects/bad", &[], &object("bad")).status(), 200);
    assert_eq!((head("bad").status(), node.control.get("/v1/buckets/b/objects/bad").good()), (200, object("bad")));
    // A scrub finds it out, too.
    let node = rotten();
    node.control.post("/v1/buckets/b/scrub", b"").ok();
    let head = |key: &str| node.control.request("HEAD", &format!("/v1/buckets/b/objects/{key}"), &[], b"").status();
    assert_eq!((head("bad"), head("c")), (503, 200));
    assert_eq!((delete(&node, "/v1/buckets/b/objects/bad").status(), head("bad")), (204, 404));
}

#[test]
fn the_log_of_a_mount_says_why_objects_are_left_out() {
    let mut node = Node::start(&[]);
    let manifest = "[grants]\ndata = [{ bucket = 'b', mount = '/site' }]\n[[bucket]]\nname = 'b'\n";
    assert_eq!(node.deploy("files1", &std::fs::read(guest("files1")).unwrap(), manifest).status(), 201);
    for key in ["a", "bad", "..%2Fx", "..%2Fy"] {
        assert_eq!(put(&node, &format!("/v1/buckets/b/objects/{key}"), &[], &object(key)).status(), 201);
    }
    node.stop();
    let rots = |file: &PathBuf| std::fs::read(file).unwrap() == object("bad");
    flip(&files(&node.data_dir().join("data/objects")).into_iter().find(rots).unwrap(), 12_345);
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    assert_eq!(node.data.get("/files1?list=/site").ok().text(), "a");
    let no_paths =
        "2 objects are left out: their keys are no relative paths, or folders of others, or past 100000 files and folders";
    let expected = format!("bucket 'b' at /site: {no_paths}; 1 objects are left out: they are damaged, put them again");
    let is_told = || node.logs("files1").iter().any(|(_, _, text)| *text == expected);
    eventually("it is told", is_told);
}

/// The library of the file panics there, which is Hob's error and nobody's backtrace.
#[test]
fn a_damaged_structure_keeps_the_node_from_starting_in_words() {
    let mut node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    for key in 0..50 {
        assert_eq!(put(&node, &format!("/v1/buckets/b/kv/{key}"), &[], &[7; 300]).status(), 204);
    }
    node.stop();
    let (data_dir, store) = (node.data_dir(), node.data_dir().join("data/data.redb"));
    let path = data_dir.to_str().unwrap();
    let whole = std::fs::read(&store).unwrap();
    let mut panics = 0;
    // Each page begins with what kind it is.
    for at in (4096..whole.len()).step_by(4096).filter(|at| whole[*at] != 0) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        std::fs::write(&store, &bytes).unwrap();
        let doctor = hob(&["doctor", "-o", "json", "--server", "http://127.0.0.1:1", "--data-dir", path]).output().unwrap();
        let (stdout, stderr) = (String::from_utf8(doctor.stdout).unwrap(), String::from_utf8(doctor.stderr).unwrap());
        assert!(!stderr.contains("panicked at") && !stderr.contains("backtrace"), "at {at}: {stderr}");
        if !stdout.contains("reading it failed with") {
            continue;
        }
        let serve = ["serve", "--addr", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data-dir", path];
        let mut serve = hob(&serve).spawn().unwrap();
        let (mut stderr, mut lines) = (String::new(), BufReader::new(serve.stderr.take().unwrap()).lines().map(Result::unwrap));
        // It may be a table that a start does not read.
        if lines.any(|line| {
            stderr += &line;
            line.starts_with("control ")
        }) {
            serve.kill().unwrap();
            serve.wait().unwrap();
            continue;
        }
        panics += 1;
        let code = serve.wait().unwrap().code();
        assert!(code == Some(1) && !stderr.contains("panicked at"), "at {at}: {code:?} {stderr}");
        assert!(
            stderr.contains("the data is damaged") && stderr.contains("restore data/data.redb from a backup"),
            "at {at}: {stderr}"
        );
        break;
    }
    assert_eq!(panics, 1, "no page kept the node from starting");
    std::fs::write(&store, &whole).unwrap();
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    check_whole(&node, "b");
}

#[test]
fn the_command_line_gives_what_is_sound_and_names_the_rest() {
    let node = rotten();
    let (stdout, stderr) = check(&at(&node, &["kv", "get", "b", "a", "bad", "none", "c"]), 1);
    assert_eq!(stdout, format!("{}\n{}\n", value("a"), value("c")));
    assert!(
        stderr.contains("damaged on disk: bad; there is no entry under none") && stderr.contains("next: hob doctor"),
        "{stderr}"
    );
    let output = at(&node, &["kv", "get", "b", "bad", "a", "-o", "json"]);
    let list = json_of(&output.stdout);
    assert_eq!((output.status.code(), &list[0]["damaged"], &list[1]["value"]), (Some(1), &true.into(), &value("a").into()));
    let (list, _) = check(&at(&node, &["kv", "ls", "b"]), 0);
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((lines.len(), &lines[2]), (4, &vec!["bad", "damaged"]), "{list}");
    // An export has the rest and is whole without it.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("export").to_str().unwrap().to_owned();
    let output = at(&node, &["bucket", "export", "b", &file, "-o", "json"]);
    let (wrote, said) = (json_of(&output.stdout), json_of(&output.stderr));
    assert_eq!((output.status.code(), &wrote["entries"], &wrote["objects"]), (Some(1), &2.into(), &2.into()));
    assert_eq!(said["error"], "damaged on disk, and not in the export: entry bad, object bad");
    check(&at(&node, &["bucket", "import", &file, "copy"]), 0);
    for key in ["a", "c"] {
        assert_eq!(node.control.get(&format!("/v1/buckets/copy/kv/{key}")).good(), value(key).as_bytes());
        assert_eq!(node.control.get(&format!("/v1/buckets/copy/objects/{key}")).good(), object(key));
    }
    assert_eq!(node.control.get("/v1/buckets/copy/kv").ok().json()["items"].as_array().unwrap().len(), 2);
    // Without it everything is whole again.
    for kind in ["kv", "objects"] {
        assert_eq!(delete(&node, &format!("/v1/buckets/b/{kind}/bad")).status(), 204);
    }
    check_whole(&node, "b");
    check(&at(&node, &["bucket", "export", "b", &format!("{file}2")]), 0);
}

#[test]
fn an_export_that_lacks_what_the_account_has_says_so() {
    let mut node = Node::start(&[]);
    bucket(&node, "b", json!({}));
    for key in ["a", "bad", "c"] {
        assert_eq!(put(&node, &format!("/v1/buckets/b/kv/{key}"), &[], b"v").status(), 204);
    }
    assert_eq!(put(&node, "/v1/buckets/b/kv/short?ttl=1s", &[], b"v").status(), 204);
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    // What expires meanwhile is not missed.
    eventually("it has expired", || node.control.get("/v1/buckets/b/kv/short").status() == 404);
    check(&at(&node, &["bucket", "export", "b", &file("whole")]), 0);
    node.stop();
    // As if a page that led there had rotted: the row is gone, and nobody took it from the account.
    {
        let store = redb::Database::open(node.data_dir().join("data/data.redb")).unwrap();
        let txn = store.begin_write().unwrap();
        let rows = redb::TableDefinition::<(u64, &[u8]), &[u8]>::new("entries");
        assert!(txn.open_table(rows).unwrap().remove((1, &b"bad"[..])).unwrap().is_some());
        txn.commit().unwrap();
    }
    let node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    let (_, stderr) = check(&at(&node, &["bucket", "export", "b", &file("short")]), 1);
    assert!(stderr.contains("has 3 entries and 0 objects by its account, and fewer were found"), "{stderr}");
    assert!(stderr.contains("next: hob doctor"), "{stderr}");
    let (text, _) = check(&at(&node, &["doctor"]), 1);
    assert!(text.contains("its account says otherwise"), "{text}");
}

/// A node that was stopped and started again, with 400 entries in each of the buckets `good` and `bad`; a page with keys of `bad`, and its entry
/// `bad-200` among them, is not what was written.
fn with_a_damaged_page() -> Node {
    let mut node = Node::start(&[]);
    for name in ["good", "bad"] {
        bucket(&node, name, json!({}));
        for first in (0..400).step_by(100) {
            let op = |n: u32| json!({ "op": "set", "key": format!("{name}-{n}"), "value": value(&n.to_string()) });
            let ops: Vec<_> = (first..first + 100).map(op).collect();
            node.control.post(&format!("/v1/buckets/{name}/kv"), json!({ "ops": ops }).to_string().as_bytes()).ok();
        }
    }
    node.stop();
    let store = node.data_dir().join("data/data.redb");
    let mut bytes = std::fs::read(&store).unwrap();
    // Pages of 4 KiB that begin with the number of a leaf; then where the first key ends is said in four bytes. Older versions of it lie there too.
    let is_it = |page: &[u8]| page[0] == 1 && page.windows(7).any(|window| window == b"bad-200");
    let pages: Vec<_> = bytes.chunks(4096).enumerate().filter(|(_, page)| is_it(page)).map(|(number, _)| number).collect();
    assert!(!pages.is_empty());
    for page in pages {
        bytes[page * 4096 + 7] ^= 0x40;
    }
    std::fs::write(&store, bytes).unwrap();
    Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() })
}

/// All of `good` is there, and can be changed.
#[track_caller]
fn check_good(node: &Node) {
    for n in [0, 200, 399] {
        let key = format!("/v1/buckets/good/kv/good-{n}");
        assert_eq!(node.control.get(&key).ok().text(), value(&n.to_string()));
    }
    assert_eq!(put(node, "/v1/buckets/good/kv/new", &[], b"acknowledged").status(), 204);
    assert_eq!(node.control.get("/v1/buckets/good/kv/new").good(), b"acknowledged");
}

#[test]
fn a_damaged_page_is_told_as_damage_and_takes_nothing_else_along() {
    let mut node = with_a_damaged_page();
    const BAD: &str = "/v1/buckets/bad/kv/bad-200";
    for _ in 0..3 {
        node.control.get(BAD).problem(503, "damaged");
        check_good(&node);
        put(&node, BAD, &[], b"written over it").problem(503, "damaged");
        check_good(&node);
    }
    // However it ends, it starts again.
    node.kill();
    let mut node = Node::start_with(Setup { dir: Some(node.dir()), ..Setup::default() });
    check_good(&node);
    assert_eq!(put(&node, "/v1/buckets/bad/kv/zzz", &[], b"x").status(), 204);
    put(&node, BAD, &[], b"written over it").problem(503, "damaged");
    node.restart();
    check_good(&node);
    node.control.get(BAD).problem(503, "damaged");
    // What sweeps what a deleted bucket leaves meets the page, and keeps nobody from writing.
    assert_eq!(delete(&node, "/v1/buckets/bad").status(), 204);
    for _ in 0..3 {
        check_good(&node);
    }
    assert!(node.control.get("/readyz").ok().text().contains("ok"));
    node.restart();
    check_good(&node);
}

#[test]
fn what_a_token_may_not_look_at_is_not_called_damaged() {
    let (mut node, _) = crate::identity::owned(&[]);
    bucket(&node, "b", json!({}));
    let reader = crate::identity::token(&node, "default", "reader", &["read"]);
    let (_dir, file) = crate::cli::file("token", reader.as_bytes());
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let (text, _) = check(&at(&node, &["--token-file", "/nonexistent", "doctor"]), 1);
    assert!(text.contains("✘ token: ") && text.contains("/nonexistent"), "{text}");
    let (text, _) = check(&at(&node, &["--token-file", file.to_str().unwrap(), "doctor"]), 0);
    assert!(
        text.contains("bucket b: was not read") && text.contains("scope 'deploy'") && !text.contains("look at the disk"),
        "{text}"
    );
    node.stop();
}
