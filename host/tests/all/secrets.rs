//! Secrets: who reads which, from where, when a change counts, and that nobody else ever sees a value.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::cli::{at, check, hob};
use crate::harness::examples::guest;
use crate::harness::http::{Port, Reply};
use crate::harness::wat::{command, handler_with, wasm};
use crate::harness::{Node, data_dir, eventually, files, serve};
use crate::identity::{owned, tenant, token};
use crate::snapshot::{done, has_snapshot, notes};

/// A handler that answers `/NAME` with the secret of that name, and `/` with what its initialisation read as `FROZEN`. What fails is told by
/// a status of 400 and the number of the error, with its text; of a value that is longer than 8,000 bytes the length is told in four bytes.
pub(crate) fn reader() -> String {
    reader_and("")
}

/// The same with more to do in its initialisation, after it has read `$frozen` bytes at 1,000.
fn reader_and(more: &str) -> String {
    handler_with(
        "(import \"hob1\" \"secret_get\" (func $secret_get (param i32 i32 i32 i32) (result i32)))
         (import \"hob1\" \"answer_read\" (func $answer_read (param i32 i32) (result i32)))
         (memory (export \"memory\") 1)",
        &format!(
            "(data (i32.const 100) \"FROZEN\")
             (global $frozen (mut i32) (i32.const 0))
             (func $tell (param $n i32) (param $at i32)
               (if (i32.lt_s (local.get $n) (i32.const 0))
                 (then
                   (call $answer (i32.sub (i32.const 400) (local.get $n)) (i32.const 16000)
                     (call $answer_read (i32.const 16000) (i32.const 4000)))
                   (return)))
               (if (i32.gt_u (local.get $n) (i32.const 8000))
                 (then (call $number (call $answer_read (i32.const 22000) (i32.const 8000))) (return)))
               (call $answer (i32.const 200) (local.get $at) (local.get $n)))
             (func (export \"hob_init\")
               (global.set $frozen (call $secret_get (i32.const 100) (i32.const 6) (i32.const 1000) (i32.const 8000)))
               {more})
             (func (export \"hob_handle\") (local $at i32) (local $len i32)
               (drop (call $request_read (i32.const 10000) (i32.const 6000)))
               (local.set $at (i32.add (i32.const 10017) (i32.load16_u (i32.const 10004))))
               (local.set $len (i32.sub (i32.load (i32.const 10008)) (i32.const 1)))
               (if (i32.eqz (local.get $len)) (then (call $tell (global.get $frozen) (i32.const 1000)) (return)))
               (call $tell (call $secret_get (local.get $at) (local.get $len) (i32.const 22000) (i32.const 8000)) (i32.const 22000)))"
        ),
    )
}

/// A command that prints its environment, each variable with a NUL behind it.
fn environment() -> String {
    command(
        "(func (export \"_start\")
           (if (call $environ_sizes_get (i32.const 0) (i32.const 4)) (then unreachable))
           (if (call $environ_get (i32.const 16) (i32.const 4096)) (then unreachable))
           (call $write (i32.const 1) (i32.const 4096) (i32.load (i32.const 4))))",
    )
}

#[track_caller]
pub(crate) fn set(port: &Port, name: &str, value: impl AsRef<[u8]>) {
    let reply = port.request("PUT", &format!("/v1/secrets/{name}"), &[], value.as_ref());
    assert_eq!(reply.status(), 204, "{}", reply.text());
}

fn remove(port: &Port, name: &str) -> Reply {
    port.request("DELETE", &format!("/v1/secrets/{name}"), &[], b"")
}

/// Status and text of an answer.
fn said(reply: &Reply) -> (u16, String) {
    (reply.status(), reply.text())
}

/// Whether a file below a folder has these bytes in it.
fn holds(folder: &Path, bytes: &[u8]) -> Option<PathBuf> {
    // One that went meanwhile holds nothing.
    let has = |path: &PathBuf| fs::read(path).unwrap_or_default().windows(bytes.len()).any(|window| window == bytes);
    files(folder).into_iter().find(has)
}

#[test]
fn only_what_is_granted_is_read_and_a_change_counts_at_once() {
    let node = Node::start(&[]);
    set(&node.control, "API_KEY", "one");
    set(&node.control, "OTHER", "hidden");
    node.deploy_wat("a", &reader(), "[grants]\nsecrets = [\"API_KEY\", \"LATER\"]");
    assert_eq!(said(&node.data.get("/a/API_KEY")), (200, "one".into()));
    for _ in 0..2 {
        let (status, text) = said(&node.data.get("/a/OTHER"));
        assert_eq!((status, text.as_str()), (402, "denied: add to hob.toml: [grants] secrets = [\"OTHER\"]"));
    }
    let explained = node.logs("a").into_iter().filter(|(_, _, text)| text.contains("secret 'OTHER': denied: add to hob.toml"));
    assert_eq!(explained.count(), 1, "{:?}", node.logs("a"));
    let (status, text) = said(&node.data.get("/a/LATER"));
    assert!(status == 416 && text.contains("there is no secret 'LATER'"), "{status} {text}");
    set(&node.control, "LATER", "two");
    set(&node.control, "API_KEY", [0, 1, 0xff]);
    assert_eq!(node.data.get("/a/LATER").good(), b"two");
    assert_eq!(node.data.get("/a/API_KEY").good(), [0, 1, 0xff]);
    assert_eq!(remove(&node.control, "API_KEY").status(), 204);
    remove(&node.control, "API_KEY").problem(404, "not-found");
    assert_eq!(node.data.get("/a/API_KEY").status(), 416);
    let detail = node.inspect("a");
    assert_eq!(detail["grants"]["secrets"], json!([{ "name": "API_KEY" }, { "name": "LATER" }]));
    // A name that none could be, and one that is far too long.
    assert_eq!(node.data.get("/a/a-b").status(), 402);
    assert_eq!(node.data.get(&format!("/a/{}", "x".repeat(2000))).status(), 402);
}

#[test]
fn values_and_names_on_both_sides_of_their_limits() {
    let node = Node::start(&[]);
    node.deploy_wat("a", &reader(), "[grants]\nsecrets = [\"LONG\"]");
    set(&node.control, "LONG", vec![b'x'; 64 << 10]);
    assert_eq!(node.data.get("/a/LONG").good(), (64_u32 << 10).to_le_bytes(), "fetched in a second call");
    let put = |name: &str, value: &[u8]| node.control.request("PUT", &format!("/v1/secrets/{name}"), &[], value);
    let refused = put("LONG", &vec![b'y'; (64 << 10) + 1]).problem(413, "body-too-large");
    assert!(refused["detail"].as_str().unwrap().contains("at most 65536 bytes"), "{refused}");
    assert_eq!(node.data.get("/a/LONG").good(), (64_u32 << 10).to_le_bytes(), "the former one stays");
    put("LONG", b"").problem(400, "bad-request");
    let long = "A".repeat(64);
    set(&node.control, &long, "x");
    for bad in ["1A", "a-b", "A.B", "%2e%2e", "A%2FB", "%C3%A4", &format!("{long}A")] {
        put(bad, b"x").problem(400, "bad-request");
        remove(&node.control, bad).problem(400, "bad-request");
    }
    node.deploy("b", b"", "[grants]\nsecrets = [\"a-b\"]").problem(400, "bad-manifest");
    let list = node.control.get("/v1/secrets").ok().json();
    let names: Vec<_> =
        list["items"].as_array().unwrap().iter().map(|secret| (secret["name"].clone(), secret["bytes"].clone())).collect();
    assert_eq!(names, [(json!(long), json!(1)), (json!("LONG"), json!(65536))]);
}

#[test]
fn another_tenant_s_secret_is_none() {
    let (node, _) = owned(&[]);
    let doors = ["acme", "beta"].map(|name| {
        tenant(&node, name, &[]);
        node.control.with(&token(&node, name, "all", &["admin"]))
    });
    let [acme, beta] = &doors;
    let manifest = "[grants]\nsecrets = [\"KEY\"]";
    for door in &doors {
        let (kind, body) = crate::harness::multipart(&[("manifest", manifest.as_bytes()), ("wasm", &wasm(&reader()))]);
        done(door.request("PUT", "/v1/functions/a", &[("content-type", &kind)], &body));
    }
    set(acme, "KEY", "of acme");
    assert_eq!(acme.get("/v1/functions/a/invoke/KEY").good(), b"of acme");
    let theirs = beta.get("/v1/functions/a/invoke/KEY");
    assert_eq!(theirs.status(), 416, "as if there were none: {}", theirs.text());
    assert_eq!(beta.get("/v1/secrets").ok().json()["items"], json!([]));
    assert_eq!(said(&remove(beta, "KEY")).1.replace("KEY", "NONE"), said(&remove(beta, "NONE")).1);
    set(beta, "KEY", "of beta");
    assert_eq!(
        (acme.get("/v1/functions/a/invoke/KEY").good(), beta.get("/v1/functions/a/invoke/KEY").good()),
        (b"of acme".to_vec(), b"of beta".to_vec())
    );
    // Tokens that only look, or only invoke, set nothing.
    let reader = node.control.with(&token(&node, "acme", "r", &["read"]));
    assert_eq!(reader.get("/v1/secrets").ok().json()["items"][0]["name"], "KEY");
    reader.request("PUT", "/v1/secrets/KEY", &[], b"x").problem(403, "forbidden");
    remove(&reader, "KEY").problem(403, "forbidden");
    node.control.with(&token(&node, "acme", "i", &["invoke"])).get("/v1/secrets").problem(403, "forbidden");
    // What a tenant had goes with it.
    assert_eq!(acme.request("DELETE", "/v1/functions/a", &[], b"").status(), 204);
    assert_eq!(node.control.request("DELETE", "/v1/tenants/acme", &[], b"").status(), 204);
    assert!(!node.data_dir().join("secrets/acme").exists());
    tenant(&node, "acme", &[]);
    let list = node.control.request("GET", "/v1/secrets", &[("hob-tenant", "acme")], b"").ok();
    assert_eq!(list.json()["items"], json!([]));
}

/// A node with a folder of secrets and credentials.
fn with_places(folder: &Path, credentials: &Path) -> Node {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut command = serve(&data_dir(&dir));
    command.arg("--set").arg(format!("secrets.dir={}", folder.display())).env("CREDENTIALS_DIRECTORY", credentials);
    Node::run(command, dir).unwrap_or_else(|ended| panic!("the node did not start: {ended:?}"))
}

#[test]
fn every_place_and_which_counts_more() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, credentials) = (temp.path().join("folder"), temp.path().join("credentials"));
    fs::create_dir_all(folder.join("default")).unwrap();
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("secret.A"), "credential").unwrap();
    fs::write(credentials.join("secret.other.A"), "of another").unwrap();
    let node = with_places(&folder, &credentials);
    node.deploy_wat("a", &reader(), "[grants]\nsecrets = [\"A\", \"B\"]");
    assert_eq!(node.data.get("/a/A").good(), b"credential");
    // As an operator changes it: by a rename, behind the walls of a process that has long started.
    let replace = |text: &str| {
        fs::write(folder.join("new"), text).unwrap();
        fs::rename(folder.join("new"), folder.join("default/A")).unwrap();
    };
    for text in ["folder\n", "changed"] {
        replace(text);
        assert_eq!(node.data.get("/a/A").text(), text);
    }
    set(&node.control, "A", "api");
    assert_eq!(node.data.get("/a/A").good(), b"api");
    assert_eq!(remove(&node.control, "A").status(), 204);
    assert_eq!(node.data.get("/a/A").good(), b"changed");
    remove(&node.control, "A").problem(404, "not-found");
    // A file that cannot be used is not passed over for a place that counts less.
    fs::write(folder.join("default/A"), vec![b'x'; (64 << 10) + 1]).unwrap();
    let (status, text) = said(&node.data.get("/a/A"));
    assert!(
        status == 410 && text.contains("cannot be read from the operator's folder: the value is too long"),
        "{status} {text}"
    );
    assert!(!text.contains(folder.to_str().unwrap()), "{text}");
    fs::remove_file(folder.join("default/A")).unwrap();
    assert_eq!(node.data.get("/a/A").good(), b"credential");
    assert_eq!(node.data.get("/a/B").status(), 416);
}

#[test]
fn initialisation_reads_what_the_manifest_lets_it() {
    let node = Node::start(&[]);
    let manifest = |grant: &str| format!("snapshot = \"required\"\n[grants]\nsecrets = [{grant}]");
    set(&node.control, "FROZEN", "ice");
    let refused = "{ name = \"FROZEN\" }";
    let closed = done(node.deploy("closed", &wasm(&reader()), &manifest(refused)));
    let missed =
        notes(&closed).iter().any(|note| note.contains("asked for a secret that is granted without init = true and was refused"));
    assert!(missed, "{}", closed.text());
    assert_eq!((node.data.get("/closed/").status(), node.data.get("/closed/FROZEN").good()), (402, b"ice".to_vec()));
    // Why not is what whoever traps there finds.
    let traps = reader_and(
        "(if (i32.lt_s (global.get $frozen) (i32.const 0))
           (then (call $log (i32.const 0) (i32.const 2000) (call $answer_read (i32.const 2000) (i32.const 1000)))))",
    );
    node.deploy_wat("told", &traps, &manifest(refused));
    let told = node.logs("told").into_iter().any(|(source, _, text)| source == "log" && text.contains("init = true"));
    assert!(told, "{:?}", node.logs("told"));
    let granted = "{ name = \"FROZEN\", init = true }";
    node.deploy_wat("open", &reader(), &manifest(granted));
    assert!(has_snapshot(&node, "open"));
    assert_eq!((node.data.get("/open/").good(), node.data.get("/open/FROZEN").good()), (b"ice".to_vec(), b"ice".to_vec()));
    // What is to be read then must be there.
    let missing = node.deploy("none", &wasm(&reader()), &manifest("{ name = \"NONE\", init = true }"));
    let problem = missing.problem(503, "secret-unavailable");
    assert!(
        problem["detail"].as_str().unwrap().contains("there is no secret 'NONE'")
            && problem["hint"].as_str().unwrap().contains("hob secret set NONE")
    );
}

/// Asks until there is an answer of the function, which may first have to be initialised again.
#[track_caller]
fn settled(node: &Node, path: &str) -> Vec<u8> {
    let mut body = None;
    eventually("it is initialised again", || {
        let reply = node.data.get(path);
        if reply.status() == 503 {
            assert_eq!(reply.header("hob-error"), Some("secret-unavailable"), "{}", reply.text());
            assert_eq!(reply.header("hob-executed"), Some("0"));
            return false;
        }
        body = Some(reply.good());
        true
    });
    body.unwrap()
}

#[test]
fn a_change_takes_another_snapshot_and_the_old_value_is_gone() {
    let mut node = Node::start(&[]);
    set(&node.control, "FROZEN", "value number 0");
    let before =
        node.deploy_wat("a", &reader(), "snapshot = \"required\"\n[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]");
    assert_eq!(node.data.get("/a/").good(), b"value number 0");
    assert!(holds(&node.data_dir().join("artifacts"), b"value number 0").is_some(), "as the documents say");
    // Clients that ask all the while: once a change was acknowledged, nobody who begins to ask finds an older value.
    let acknowledged = Arc::new(AtomicU64::new(0));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let (port, acknowledged) = (node.data.clone(), acknowledged.clone());
                scope.spawn(move || {
                    let mut seen = 0;
                    while seen < 3 {
                        let least = acknowledged.load(Ordering::SeqCst);
                        let reply = port.get("/a/");
                        if reply.status() == 503 {
                            assert_eq!(reply.header("hob-error"), Some("secret-unavailable"), "{}", reply.text());
                            continue;
                        }
                        seen = reply.text().strip_prefix("value number ").unwrap().parse::<u64>().unwrap();
                        assert!(seen >= least, "{seen} after {least} was acknowledged");
                    }
                })
            })
            .collect();
        for number in 1..=3 {
            set(&node.control, "FROZEN", format!("value number {number}"));
            acknowledged.store(number, Ordering::SeqCst);
            assert_eq!(settled(&node, "/a/"), format!("value number {number}").into_bytes());
        }
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    let detail = node.inspect("a");
    assert_eq!(
        (detail["revision"].clone(), detail["etag"].clone()),
        (json!(1), before.json()["etag"].clone()),
        "no deploy was made"
    );
    eventually("the files of former values are collected", || {
        node.files("snapshots").len() == 1
            && (0..3).all(|number| holds(&node.data_dir(), format!("value number {number}").as_bytes()).is_none())
    });
    // It survives a kill, and native code that is lost is made of that snapshot.
    node.kill();
    for file in node.files("artifacts") {
        fs::remove_file(file).unwrap();
    }
    node = Node::start_with(crate::harness::Setup { dir: Some(node.dir()), ..Default::default() });
    let (reply, _) = crate::harness::patiently(|| node.data.get("/a/"));
    assert_eq!(reply.good(), b"value number 3");
    // Without its secret it starts no more, and with the same one again as before.
    assert_eq!(remove(&node.control, "FROZEN").status(), 204);
    let refused = node.data.get("/a/");
    let problem = refused.problem(503, "secret-unavailable");
    assert!(!problem["detail"].as_str().unwrap().contains("FROZEN"), "a client learns no name: {problem}");
    assert_eq!(refused.header("hob-executed"), Some("0"));
    assert!(node.logs("a").iter().any(|(source, _, text)| source == "host" && text.contains("there is no secret 'FROZEN'")));
    set(&node.control, "FROZEN", "value number 3");
    assert_eq!(settled(&node, "/a/"), b"value number 3");
}

#[test]
fn a_change_in_the_operator_s_folder_takes_another_snapshot_too() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, credentials) = (temp.path().join("folder"), temp.path().join("credentials"));
    fs::create_dir_all(folder.join("default")).unwrap();
    fs::create_dir(&credentials).unwrap();
    fs::write(folder.join("default/FROZEN"), "one").unwrap();
    let node = with_places(&folder, &credentials);
    node.deploy_wat("a", &reader(), "snapshot = \"required\"\n[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]");
    assert_eq!(node.data.get("/a/").good(), b"one");
    // Noticed within a second; meanwhile a start may find the former one.
    let noticed = |text: &str| {
        fs::write(folder.join("default/FROZEN"), text).unwrap();
        eventually("it is noticed", || settled(&node, "/a/") == text.as_bytes());
    };
    noticed("two");
    // Of the same length, in the same file: no time and no size says so.
    noticed("six");
    // What is set by the API is noticed at once, and so is that it is there no more.
    set(&node.control, "FROZEN", "three");
    assert_eq!(settled(&node, "/a/"), b"three");
    assert_eq!(remove(&node.control, "FROZEN").status(), 204);
    assert_eq!(settled(&node, "/a/"), b"six");
    fs::remove_file(folder.join("default/FROZEN")).unwrap();
    eventually("it is missed", || node.data.get("/a/").header("hob-error") == Some("secret-unavailable"));
}

/// What `hob doctor` says about secrets, by name of the check.
fn doctor(node: &Node) -> Vec<(String, String, String)> {
    let output = at(node, &["doctor", "-o", "json", "--no-scrub"]);
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap().to_owned();
    let secret = |check: &&Value| text(check, "check").starts_with("secret");
    checks
        .as_array()
        .unwrap()
        .iter()
        .filter(secret)
        .map(|check| (text(check, "check"), text(check, "state"), text(check, "found")))
        .collect()
}

#[test]
fn the_doctor_names_secrets_that_cannot_be_read() {
    let temp = tempfile::tempdir().unwrap();
    let (folder, credentials) = (temp.path().join("folder"), temp.path().join("credentials"));
    fs::create_dir_all(folder.join("default/DIR")).unwrap();
    fs::create_dir(&credentials).unwrap();
    fs::write(folder.join("default/THERE"), "hunter2").unwrap();
    let node = with_places(&folder, &credentials);
    let good = vec![("secrets of functions".to_owned(), "ok".to_owned(), "can be read".to_owned())];
    assert_eq!(doctor(&node), good, "no function wants any");
    node.deploy_wat("b", &reader(), "[grants]\nsecrets = [\"SET\", \"THERE\"]");
    node.deploy_wat("a", &reader(), "[grants]\nsecrets = [\"MISSING\", \"DIR\", \"THERE\"]");
    set(&node.control, "SET", "hunter2");
    let bad = |name: &str, found: &str| (name.to_owned(), "failed".to_owned(), found.to_owned());
    assert_eq!(
        doctor(&node),
        [
            bad("secret MISSING of a", "there is no secret 'MISSING': set it with hob secret set MISSING"),
            bad("secret DIR of a", "the secret 'DIR' cannot be read from the operator's folder: it is no regular file"),
        ]
    );
    let (stdout, stderr) = {
        let output = at(&node, &["doctor", "--no-scrub"]);
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    assert!(stdout.contains("hob secret set MISSING"), "{stdout}");
    assert!(!format!("{stdout}{stderr}").contains("hunter2"), "names only");
    set(&node.control, "MISSING", "x");
    set(&node.control, "DIR", "x");
    assert_eq!(doctor(&node), good);
    assert!(node.control.get("/v1/secrets").ok().json()["unreadable"].is_null(), "only for who asks");
    node.control.get("/v1/secrets?unreadable=perhaps").problem(400, "bad-request");
}

#[test]
fn the_doctor_looks_at_every_function_a_page_at_a_time() {
    let node = Node::start(&[]);
    set(&node.control, "THERE", "x");
    // One more than the doctor asks about at once; then one that may read none.
    for number in 0..100 {
        node.deploy_wat(&format!("f{number:03}"), &reader(), "[grants]\nsecrets = [\"THERE\"]");
    }
    let good = vec![("secrets of functions".to_owned(), "ok".to_owned(), "can be read".to_owned())];
    assert_eq!(doctor(&node), good);
    node.deploy_wat("f100", &reader(), "[grants]\nsecrets = [\"MISSING\"]");
    node.deploy_wat("g", &reader(), "");
    let missing = "there is no secret 'MISSING': set it with hob secret set MISSING";
    assert_eq!(doctor(&node), [("secret MISSING of f100".to_owned(), "failed".to_owned(), missing.to_owned())]);

    let page = |query: &str| node.control.get(&format!("/v1/secrets?unreadable=true{query}")).ok().json();
    let found = json!([{ "function": "f100", "name": "MISSING", "why": missing }]);
    // All 101 at once: what may read none counts for nothing and is no reason for another page.
    for query in ["", "&limit=101", "&limit=1000"] {
        let all = page(query);
        assert_eq!((&all["unreadable"], &all["next"]), (&found, &Value::Null), "{query}");
        assert_eq!(all["items"][0]["name"], "THERE");
    }
    let first = page("&limit=100");
    assert_eq!((&first["unreadable"], &first["next"], &first["items"][0]["name"]), (&json!([]), &"f099".into(), &"THERE".into()));
    let second = page("&limit=100&cursor=f099");
    assert_eq!((&second["unreadable"], &second["next"], &second["items"]), (&found, &Value::Null, &json!([])));
    assert_eq!(page("&limit=1&cursor=f0")["next"], "f000");
    let unreadable = ["cursor=-", "limit=-1", "limit=0", "limit=1001"].map(|rest| format!("unreadable=true&{rest}"));
    for query in ["cursor=f", "limit=1", "unreadable=false&limit=1"].iter().copied().chain(unreadable.iter().map(String::as_str))
    {
        node.control.get(&format!("/v1/secrets?{query}")).problem(400, "bad-request");
    }
}

#[test]
fn an_empty_value_is_answered_with_what_helps() {
    let node = Node::start(&[]);
    let (_, stderr) = check(&at(&node, &["secret", "set", "A"]), 1);
    for words in ["the value is empty", "hob secret rm NAME", "next: hob secret set A --file FILE"] {
        assert!(stderr.contains(words), "{words}: {stderr}");
    }
}

#[test]
fn a_rollback_brings_no_old_value_back() {
    let node = Node::start(&[]);
    let grants = "[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]";
    set(&node.control, "FROZEN", "one");
    node.deploy_wat("a", &reader(), &format!("snapshot = \"required\"\n{grants}"));
    node.deploy_wat("a", &reader(), &format!("snapshot = \"required\"\nargs = [\"x\"]\n{grants}"));
    set(&node.control, "FROZEN", "two");
    assert_eq!(settled(&node, "/a/"), b"two");
    let back = node.control.post("/v1/functions/a/rollback", b"").ok();
    assert_eq!(back.json()["revision"], 1);
    assert_eq!(settled(&node, "/a/"), b"two");
    // And a revision that is replaced while it is built again stays replaced.
    set(&node.control, "FROZEN", "three");
    node.deploy_wat("a", &crate::harness::wat::says("other"), "");
    assert_eq!(node.data.get("/a").good(), b"other");
    assert_eq!(node.inspect("a")["revision"], 3);
}

#[test]
fn a_kill_while_it_is_built_again() {
    let node = Node::start(&[]);
    set(&node.control, "FROZEN", "value 0");
    node.deploy_wat("a", &reader(), "snapshot = \"required\"\n[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]");
    let mut node = node;
    let points = ["build-done", "snapshot-renamed", "artifact-renamed", "artifact-dir-synced"];
    for (point, number) in points.into_iter().zip(1..) {
        node.stop();
        let crashes = crate::harness::Setup { dir: Some(node.dir()), crash_at: Some(point), ..Default::default() };
        node = Node::start_with(crashes);
        // Nothing is in memory yet, so it is whoever asks that has it built.
        set(&node.control, "FROZEN", format!("value {number}"));
        let mut conn = node.data.connect();
        conn.request("GET", "/a/", &[], b"");
        assert!(conn.try_head().is_none(), "it died at {point}");
        node.kill();
        node = Node::start_with(crate::harness::Setup { dir: Some(node.dir()), ..Default::default() });
        assert_eq!(settled(&node, "/a/"), format!("value {number}").into_bytes(), "{point}");
    }
}

#[test]
fn an_initialisation_that_fails_with_another_secret() {
    let node = Node::start(&[]);
    set(&node.control, "FROZEN", "good");
    let picky = reader_and("(if (i32.ne (global.get $frozen) (i32.const 4)) (then unreachable))");
    let grants = "[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]";
    node.deploy_wat("required", &picky, &format!("snapshot = \"required\"\n{grants}"));
    node.deploy_wat("auto", &picky, grants);
    for name in ["required", "auto"] {
        assert_eq!(node.data.get(&format!("/{name}/")).good(), b"good", "{name}");
    }
    set(&node.control, "FROZEN", "not good");
    let mut refused = None;
    eventually("it has failed", || {
        let reply = node.data.get("/required/");
        let problem = reply.problem(503, "secret-unavailable");
        let is_it = problem["detail"].as_str().unwrap().contains("cannot be initialised with it");
        refused = Some(reply);
        is_it
    });
    assert!(refused.unwrap().header("retry-after").is_some());
    assert!(
        node.logs("required").iter().any(|(_, _, text)| text.contains("no snapshot could be taken")),
        "{:?}",
        node.logs("required")
    );
    // Back to what it takes, without a wait.
    set(&node.control, "FROZEN", "fine");
    assert_eq!(settled(&node, "/required/"), b"fine");
}

#[test]
fn a_snapshot_that_could_not_be_taken_with_another_secret() {
    let node = Node::start(&[]);
    set(&node.control, "FROZEN", "not good");
    let picky = handler_with(
        "(import \"hob1\" \"secret_get\" (func $secret_get (param i32 i32 i32 i32) (result i32)))
         (memory (export \"memory\") 1)",
        "(data (i32.const 100) \"FROZEN\")
         (global $frozen (mut i32) (i32.const 0))
         (func (export \"hob_init\")
           (global.set $frozen (call $secret_get (i32.const 100) (i32.const 6) (i32.const 1000) (i32.const 8000))))
         (func (export \"hob_handle\")
           (call $answer (select (i32.const 200) (i32.const 500) (i32.eq (global.get $frozen) (i32.const 4))) (i32.const 1000) (i32.const 4)))",
    );
    let manifest = "[snapshot]\nwarmup = [\"GET /\"]\n[grants]\nsecrets = [{ name = \"FROZEN\", init = true }]";
    node.deploy_wat("a", &picky, manifest);
    assert_eq!(node.inspect("a")["snapshot"], Value::Null);
    assert_eq!(node.data.get("/a").status(), 500);
    set(&node.control, "FROZEN", "good");
    eventually("it has one", || node.inspect("a")["snapshot"].is_object());
    assert_eq!((node.data.get("/a").good(), node.inspect("a")["notes"].clone()), (b"good".to_vec(), json!([])));
}

#[test]
fn a_secret_as_a_variable() {
    let node = Node::start(&[]);
    let manifest = "[env]\nOWN = \"1\"\n[grants]\nsecrets = [{ name = \"DB_PLACE\", env = \"DATABASE_URL\" }]";
    node.deploy_wat("a", &environment(), manifest);
    let refused = node.data.get("/a");
    let problem = refused.problem(503, "secret-unavailable");
    // No letters of an invocation's id, which is in the answer, can make the name: none has an underscore.
    assert!(!refused.text().contains("DB_PLACE"), "{problem}");
    assert_eq!(refused.header("hob-executed"), Some("0"));
    assert!(
        node.logs("a").iter().any(|(_, _, text)| text.contains("secret 'DB_PLACE': there is no secret 'DB_PLACE'")),
        "{:?}",
        node.logs("a")
    );
    assert!(node.faults("secret-unavailable") >= 1);
    for value in ["postgres://a", "postgres://b"] {
        set(&node.control, "DB_PLACE", value);
        let text = node.data.get("/a").ok().text();
        let variables: Vec<_> =
            text.split('\0').filter(|variable| variable.starts_with("DATABASE") || variable.starts_with("OWN")).collect();
        assert_eq!(variables, ["OWN=1", &format!("DATABASE_URL={value}")]);
    }
    set(&node.control, "DB_PLACE", [0xff]);
    node.data.get("/a").problem(503, "secret-unavailable");
    set(&node.control, "DB_PLACE", vec![b'x'; 40 << 10]);
    node.data.get("/a").problem(503, "secret-unavailable");
    let twice = "[env]\nX = \"1\"\n[grants]\nsecrets = [{ name = \"DB_PLACE\", env = \"X\" }]";
    node.deploy("b", b"", twice).problem(400, "bad-manifest");
}

#[test]
fn configuration_answers_for_a_granted_name_and_lists_none() {
    let node = Node::start(&[]);
    let wasm = fs::read(guest("doors2")).unwrap();
    let manifest = "[env]\nOWN = \"1\"\n[grants]\nsecrets = [\"KEY\", \"NONE\", { name = \"DB\", env = \"URL\" }]";
    set(&node.control, "DB", "hidden too");
    done(node.deploy("a", &wasm, manifest));
    set(&node.control, "KEY", "hidden");
    for name in ["runtime", "draft", "spin", "rc1"] {
        let ask = |key: &[u8]| {
            let len = u32::try_from(key.len()).unwrap().to_le_bytes();
            let field = if key.is_empty() { Vec::new() } else { [&len[..], key].concat() };
            said(&node.data.post(&format!("/a/config/{name}"), &field))
        };
        let (_, all) = ask(b"");
        assert!(all.contains("OWN") && !all.contains("hidden"), "{name}: {all}");
        let (status, text) = ask(b"KEY");
        assert!(status == 200 && text.ends_with("hidden"), "{name}: {status} {text}");
        let (status, text) = ask(b"NONE");
        assert!(status == 422 && text.contains("there is no secret 'NONE'"), "{name}: {status} {text}");
        assert_eq!(ask(b"OTHER"), (404, String::new()), "{name}: what is not granted is not configured");
    }
}

#[test]
fn a_value_shows_nowhere() {
    const VALUE: &str = "correct-horse-battery-staple";
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut command = serve(&data_dir(&dir));
    command.env("HOB_LOG", "hob=trace");
    let mut node = Node::run(command, dir).unwrap();
    set(&node.control, "KEY", VALUE);
    node.deploy_wat("a", &reader(), "[grants]\nsecrets = [{ name = \"KEY\", env = \"VARIABLE\" }]");
    node.deploy_wat(
        "command",
        &environment(),
        "[grants]\nsecrets = [{ name = \"KEY\", env = \"VARIABLE\" }, { name = \"NONE\", env = \"NOTHING\" }]",
    );
    assert_eq!(node.data.get("/a/KEY").text(), VALUE);
    let mut shown = vec![node.data.get("/command").text(), node.data.get("/a/OTHER").text(), node.data.get("/a/").text()];
    for target in [
        "/v1/secrets",
        "/v1/functions",
        "/v1/functions/a",
        "/v1/functions/command",
        "/v1/functions/a/revisions",
        "/v1/functions/a/logs?tail=1000",
        "/v1/functions/command/logs?tail=1000",
        "/v1/audit?limit=1000",
        "/metrics",
        "/readyz",
    ] {
        shown.push(node.control.get(target).ok().text());
    }
    for (target, value) in
        [("/v1/secrets/a-b", VALUE.to_owned()), ("/v1/secrets/KEY", VALUE.repeat(4000)), ("/v1/secret", VALUE.to_owned())]
    {
        let refused = node.control.request("PUT", target, &[], value.as_bytes());
        assert!(refused.status() >= 400, "{}", refused.text());
        shown.push(refused.text());
    }
    let audit = node.control.get("/v1/audit?limit=1000").ok().text();
    assert!(audit.contains("/v1/secrets/KEY"), "the change itself is written down: {audit}");
    node.stop();
    shown.push(node.stderr());
    for text in shown {
        assert!(!text.contains(VALUE), "{text}");
    }
    assert_eq!(holds(&node.data_dir(), VALUE.as_bytes()), None);
    assert_eq!(holds(&node.data_dir(), b"VARIABLE=correct"), None);
}

#[test]
fn what_is_damaged_is_told_and_can_be_set_again() {
    let mut node = Node::start(&[]);
    set(&node.control, "KEY", "value");
    node.deploy_wat("a", &reader(), "[grants]\nsecrets = [\"KEY\"]");
    node.deploy_wat("b", &environment(), "[grants]\nsecrets = [{ name = \"KEY\", env = \"X\" }]");
    let [file] = &node.files("secrets")[..] else { panic!("one file") };
    let mut bytes = fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file, bytes).unwrap();
    let (status, text) = said(&node.data.get("/a/KEY"));
    assert!(status == 409 && text.contains("the secret 'KEY' is damaged on this node"), "{status} {text}");
    node.data.get("/b").problem(503, "secret-unavailable");
    assert_eq!(node.control.get("/v1/secrets").ok().json(), json!({ "items": [], "damaged": 1 }));
    node.restart();
    assert_eq!(node.data.get("/a/KEY").status(), 409);
    set(&node.control, "KEY", "again");
    assert_eq!(node.data.get("/a/KEY").good(), b"again");
    // As `kill -9` leaves it.
    set(&node.control, "KEY", "durable");
    node.kill();
    fs::write(node.files("secrets")[0].with_extension("new"), "half of").unwrap();
    let node = Node::start_with(crate::harness::Setup { dir: Some(node.dir()), ..Default::default() });
    assert_eq!(node.data.get("/a/KEY").good(), b"durable");
    assert_eq!(node.files("secrets").len(), 1);
}

#[test]
fn the_sdk_and_the_command_line() {
    let node = Node::start(&[]);
    let temp = tempfile::tempdir().unwrap();
    let at = |args: &[&str], input: &str| {
        use std::io::Write as _;
        let mut command = hob(args);
        command.env("HOB_SERVER", format!("http://{}", node.control.addr));
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that reads nothing may be gone already.
        let _read = child.stdin.take().unwrap().write_all(input.as_bytes());
        child.wait_with_output().unwrap()
    };
    let manifest = "[grants]\nsecrets = [\"KEY\", \"BYTES\", \"NONE\", \"LONG\"]";
    done(node.deploy("data1", &fs::read(guest("data1")).unwrap(), manifest));
    let read = |name: &str| node.data.get(&format!("/data1/secret/{name}")).ok().text();
    let (_, stderr) = check(&at(&["secret", "ls"], ""), 0);
    assert!(stderr.contains("hob secret set NAME"), "{stderr}");
    let (stdout, stderr) = check(&at(&["secret", "set", "KEY"], "from input\n"), 0);
    assert!(stdout.is_empty() && !stderr.contains("from input"), "{stdout}{stderr}");
    assert_eq!(read("KEY"), "from input");
    let file = temp.path().join("value");
    fs::write(&file, "from a file\n").unwrap();
    check(&at(&["secret", "set", "KEY", "--file", file.to_str().unwrap()], ""), 0);
    assert_eq!(read("KEY"), "from a file\n");
    fs::write(&file, [0xff, 0xfe]).unwrap();
    check(&at(&["secret", "set", "BYTES", "--file", file.to_str().unwrap()], ""), 0);
    fs::write(&file, vec![b'x'; 64 << 10]).unwrap();
    check(&at(&["secret", "set", "LONG", "--file", file.to_str().unwrap()], ""), 0);
    assert_eq!(read("LONG").len(), 64 << 10);
    assert!(read("BYTES").starts_with("Invalid: the secret 'BYTES' is not UTF-8"), "{}", read("BYTES"));
    assert!(read("NONE").starts_with("NoSecret: there is no secret 'NONE'"), "{}", read("NONE"));
    assert!(read("OTHER").starts_with("Denied: denied: add to hob.toml: [grants] secrets = [\"OTHER\"]"), "{}", read("OTHER"));
    // Never on the command line.
    check(&at(&["secret", "set", "KEY", "value"], ""), 2);
    check(&at(&["secret", "set", "a-b"], "x"), 2);
    let (_, stderr) = check(&at(&["secret", "set", "KEY"], &"x".repeat((64 << 10) + 1)), 1);
    assert!(stderr.contains("at most 65536 bytes"), "{stderr}");
    check(&at(&["secret", "set", "KEY"], "\n"), 1);
    let (stdout, _) = check(&at(&["-o", "json", "secret", "ls"], ""), 0);
    let list: Value = serde_json::from_str(&stdout).unwrap();
    let names: Vec<_> = list.as_array().unwrap().iter().map(|secret| secret["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["BYTES", "KEY", "LONG"]);
    let (stdout, _) = check(&at(&["inspect", "data1"], ""), 0);
    assert!(stdout.contains("secret KEY"), "{stdout}");
    check(&at(&["secret", "rm", "KEY"], ""), 0);
    check(&at(&["secret", "rm", "KEY"], ""), 3);
    assert!(read("KEY").starts_with("NoSecret"), "{}", read("KEY"));
}
