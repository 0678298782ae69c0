//! Folders that a manifest grants: what a guest finds there, that nothing else is reached, and what is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hob::crash::BUNDLE_POINTS;
use tempfile::TempDir;

use crate::harness::escape::{SENTINEL, links, paths, picture, trap};
use crate::harness::examples::guest;
use crate::harness::wat::{command, handler, wasm};
use crate::harness::{Node, Setup, data_dir, eventually, http::Reply, multipart, serve};
use crate::limits::number;
use crate::snapshot::{done, has_snapshot};

/// A manifest that grants `site` at `/site`.
pub(crate) const SITE: &str = "[grants]\nfiles = [{ host = \"site\", guest = \"/site\" }]\n";

/// A tar archive of files.
pub(crate) fn archive(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, text) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn deploy(node: &Node, name: &str, wasm: &[u8], manifest: &str, files: &[u8]) -> Reply {
    let (kind, body) = multipart(&[("manifest", manifest.as_bytes()), ("files", files), ("wasm", wasm)]);
    node.control.request("PUT", &format!("/v1/functions/{name}"), &[("content-type", &kind)], &body)
}

fn program(name: &str) -> Vec<u8> {
    fs::read(guest(name)).unwrap()
}

fn run(node: &Node, name: &str, query: &str) -> String {
    node.data.get(&format!("/{name}?{query}")).ok().text()
}

/// A node whose operator allows folders.
fn node_with(dir: Arc<TempDir>, folders: &[(&Path, &str)]) -> Node {
    let config = dir.path().join("hob-node.toml");
    let tables = folders.iter().map(|(path, more)| format!("[[folder]]\npath = {path:?}\n{more}\n"));
    fs::write(&config, tables.collect::<String>()).unwrap();
    let mut command = serve(&data_dir(&dir));
    command.arg("--config").arg(config);
    Node::run(command, dir).unwrap_or_else(|ended| panic!("the node did not start: {ended:?}"))
}

#[test]
fn unmodified_programs_read_what_was_deployed_with_them_and_cannot_change_it() {
    let mut node = Node::start(&[]);
    let files = archive(&[("site/index.html", "hello"), ("site/css/a.css", "red")]);
    for name in ["files1", "files2"] {
        let reply = done(deploy(&node, name, &program(name), SITE, &files));
        assert_eq!(reply.json()["files"]["files"], 2, "{}", reply.text());
        assert_eq!(run(&node, name, "read=/site/index.html"), "hello", "{name}");
        assert_eq!(run(&node, name, "read=/site/css/a.css"), "red");
        assert_eq!(run(&node, name, "list=/site"), "css index.html");
        for op in ["write=/site/new", "write=/site/index.html", "remove=/site/index.html", "rename=/site/css", "mkdir=/site/x"] {
            assert!(run(&node, name, op).starts_with("refused: "), "{name} {op}");
        }
        for path in ["/site/../index.html", "/etc/passwd", "/site/../../../../../../etc/passwd", "site/index.html/x", "/"] {
            assert!(run(&node, name, &format!("read={path}")).starts_with("refused: "), "{name} {path}");
        }
        let grants = &node.inspect(name)["grants"];
        assert_eq!(grants["files"], serde_json::json!([{ "host": "site", "guest": "/site", "access": "read" }]));
        assert_eq!(grants["clock"], "coarse");
    }
    node.restart();
    assert_eq!(run(&node, "files1", "read=/site/index.html"), "hello");
}

#[test]
fn a_guest_has_so_many_files_open() {
    let node = Node::start(&[]);
    let files = archive(&[("site/a", "a")]);
    for name in ["files1", "files2"] {
        done(deploy(&node, name, &program(name), SITE, &files));
        // One of the 128 is the folder.
        let text = run(&node, name, "hold=/site/a");
        assert!(text.starts_with("127 "), "{name}: {text}");
        // They were the invocation's.
        assert_eq!((run(&node, name, "hold=/site/a"), run(&node, name, "read=/site/a")), (text, "a".into()));
    }
}

#[test]
fn files_belong_to_their_revision_and_go_with_the_last_that_has_them() {
    let node = Node::start(&["data.revisions_max=2"]);
    let wasm = program("files1");
    let bundles = || fs::read_dir(node.data_dir().join("bundles/default")).map_or(0, Iterator::count);
    for text in ["one", "two", "two", "one"] {
        done(deploy(&node, "f", &wasm, SITE, &archive(&[("site/a", text)])));
        assert_eq!(run(&node, "f", "read=/site/a"), text);
    }
    done(deploy(&node, "g", &wasm, SITE, &archive(&[("site/a", "one")])));
    assert_eq!(bundles(), 2, "the same files are there once");
    node.control.post("/v1/functions/f/rollback", b"").ok();
    assert_eq!(run(&node, "f", "read=/site/a"), "two");
    for text in ["three", "four"] {
        done(deploy(&node, "f", &wasm, SITE, &archive(&[("site/a", text)])));
    }
    eventually("the files of the second revision are gone", || bundles() == 3);
    assert_eq!(run(&node, "g", "read=/site/a"), "one");
    for name in ["f", "g"] {
        assert_eq!(node.control.request("DELETE", &format!("/v1/functions/{name}"), &[], b"").status(), 204);
    }
    // What an invocation that has just ended kept from the collector goes with the next change.
    eventually("no files are left", || {
        done(node.deploy("other", &wasm, ""));
        bundles() == 0
    });
    assert!(node.files("staging").is_empty());
}

#[test]
fn a_kill_at_every_point_leaves_the_old_files_or_the_new_ones() {
    for point in BUNDLE_POINTS {
        let mut node = Node::start(&[]);
        done(deploy(&node, "f", &program("files1"), SITE, &archive(&[("site/a", "old")])));
        let dir = node.dir();
        node.stop();
        drop(node);
        let mut node = Node::start_with(Setup { dir: Some(dir.clone()), crash_at: Some(point), ..Setup::default() });
        let files = archive(&[("site/a", "new")]);
        let (kind, body) = multipart(&[("manifest", SITE.as_bytes()), ("files", &files), ("wasm", &program("files1"))]);
        let mut conn = node.control.connect();
        conn.request("PUT", "/v1/functions/f", &[("content-type", &kind)], &body);
        assert!(conn.try_head().is_none(), "{point}: it answered and did not die");
        node.wait();
        drop(node);
        let node = Node::start_with(Setup { dir: Some(dir), ..Setup::default() });
        assert_eq!(run(&node, "f", "read=/site/a"), "old", "{point}");
        eventually("nothing is half there", || fs::read_dir(node.data_dir().join("staging")).unwrap().count() == 0);
        eventually("files that no revision names are gone", || {
            fs::read_dir(node.data_dir().join("bundles/default")).unwrap().count() == 1
        });
        done(deploy(&node, "f", &program("files1"), SITE, &files));
        assert_eq!(run(&node, "f", "read=/site/a"), "new", "{point}");
    }
}

#[test]
fn what_does_not_fit_the_manifest_is_refused_with_what_to_do() {
    let node = Node::start(&["data.bundle_bytes_max=1000"]);
    let wasm = program("files1");
    let refused = |manifest: &str, files: Option<&[u8]>, status, code, word: &str| {
        let reply = match files {
            Some(files) => deploy(&node, "f", &wasm, manifest, files),
            None => node.deploy("f", &wasm, manifest),
        };
        let problem = reply.problem(status, code);
        assert!(problem.to_string().contains(word), "{problem}");
    };
    let files = archive(&[("site/a", "x")]);
    refused(SITE, None, 400, "bad-manifest", "'site' is not among what the deploy brought");
    refused(SITE, Some(&archive(&[("other/a", "x")])), 400, "bad-manifest", "'site' is not among");
    refused(SITE, Some(&archive(&[("site", "a file")])), 400, "bad-manifest", "'site' is not among");
    refused(SITE, Some(&archive(&[("site/a", "x"), ("more/b", "y")])), 400, "bad-request", "'more/b', which is in no folder");
    refused("args = ['x']", Some(&files), 400, "bad-request", "which is in no folder");
    refused(SITE, Some(b"this is no archive, however long it may be"), 400, "bad-request", "tar archive");
    refused(SITE, Some(&files[..600]), 400, "bad-request", "archive of files");
    let absolute = SITE.replace("\"site\"", "\"/srv/site\"");
    refused(&absolute, None, 400, "bad-manifest", "[[folder]] with path = \\\"/srv/site\\\" and access = \\\"read\\\"");
    refused(&SITE.replace(" }]", ", access = 'read-write' }]"), Some(&files), 400, "bad-manifest", "can only be read");
    refused(&SITE.replace("host =", "hots ="), Some(&files), 400, "bad-manifest", "did you mean 'host'?");
    let sized = |len: usize| archive(&[("site/a", &"x".repeat(len))]);
    refused(SITE, Some(&sized(1001)), 413, "body-too-large", "1000 bytes of files");
    let twice = multipart(&[("manifest", SITE.as_bytes()), ("files", &files), ("files", &files), ("wasm", &wasm)]);
    let reply = node.control.request("PUT", "/v1/functions/f", &[("content-type", &twice.0)], &twice.1);
    assert!(reply.problem(400, "bad-request").to_string().contains("there twice"));
    node.control.get("/v1/functions/f").problem(404, "not-found");
    assert_eq!(fs::read_dir(node.data_dir().join("staging")).unwrap().count(), 0);
    done(deploy(&node, "f", &wasm, SITE, &sized(1000)));
}

#[test]
fn the_command_line_packs_the_folder_beside_the_manifest() {
    let node = Node::start(&[]);
    let project = tempfile::tempdir().unwrap();
    fs::create_dir_all(project.path().join("site/deep")).unwrap();
    fs::write(project.path().join("site/deep/a"), "from beside hob.toml").unwrap();
    fs::copy(guest("files1"), project.path().join("f.wasm")).unwrap();
    fs::write(project.path().join("hob.toml"), format!("name = 'f'\nwasm = 'f.wasm'\n{SITE}functions = ['other']\n")).unwrap();
    let hob = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_hob"));
        command.args(args).args(["--server", &format!("http://{}", node.control.addr)]);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
    };
    let path = project.path().to_str().unwrap();
    let (code, text) = hob(&["deploy", path]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(run(&node, "f", "read=/site/deep/a"), "from beside hob.toml");
    let (_, text) = hob(&["inspect", "f"]);
    assert!(text.contains("folder site as /site: read") && text.contains("coarse") && text.contains("function other"), "{text}");
    symlink("/etc/passwd", project.path().join("site/link")).unwrap();
    let (code, text) = hob(&["deploy", path]);
    assert!(code == Some(1) && text.contains("neither a file nor a folder"), "{code:?} {text}");
}

#[test]
fn a_program_lists_a_large_folder_and_what_it_takes_is_bounded() {
    const NAME_LEN: usize = 200;
    // With 96 bytes for each, and 8 MiB in all.
    const NAMES_MAX: usize = (8 << 20) / (NAME_LEN + 96);
    let host = tempfile::tempdir().unwrap();
    let name = |number: usize| format!("{number:0>NAME_LEN$}");
    for number in 0..NAMES_MAX {
        fs::File::create(host.path().join(name(number))).unwrap();
    }
    let node = node_with(Arc::new(tempfile::tempdir().unwrap()), &[(host.path(), "access = 'read'")]);
    let grants = format!("files = [{{ host = '{}', guest = '/d' }}]", host.path().display());
    let manifest = format!("[limits]\ncpu = '1h'\nwall = '1h'\nresponse_body = '64MiB'\n[grants]\n{grants}\n");
    done(node.deploy("files1", &program("files1"), &manifest));
    let listed = run(&node, "files1", "list=/d");
    let names: Vec<_> = listed.split(' ').collect();
    assert_eq!(names.len(), NAMES_MAX);
    assert!(names.iter().enumerate().all(|(number, found)| *found == name(number)));
    fs::File::create(host.path().join(name(NAMES_MAX))).unwrap();
    node.data.get("/files1?list=/d").problem(502, "guest-memory");
}

#[test]
fn folders_of_the_node_are_those_that_its_operator_allows() {
    let (dir, host) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let (read, write, theirs) = (host.path().join("read"), host.path().join("write"), host.path().join("theirs"));
    for folder in [&read.join("below"), &write, &theirs] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(read.join("below/a"), "text").unwrap();
    let more: [(&Path, &str); 3] = [(&read, ""), (&write, "access = 'read-write'"), (&theirs, "tenants = ['other']")];
    let node = node_with(dir.clone(), &more);
    let grant =
        |path: &Path, access: &str| format!("[grants]\nfiles = [{{ host = {path:?}, guest = '/d', access = '{access}' }}]\n");
    for name in ["files1", "files2"] {
        let wasm = program(name);
        done(node.deploy(name, &wasm, &grant(&read.join("below"), "read")));
        assert_eq!(run(&node, name, "read=/d/a"), "text");
        assert!(run(&node, name, "write=/d/b").starts_with("refused: "));
        done(node.deploy(name, &wasm, &grant(&write, "read-write")));
        assert_eq!(run(&node, name, &format!("write=/d/{name}")), "done");
        assert_eq!(fs::read_to_string(write.join(name)).unwrap(), "written");
        done(node.deploy(name, &wasm, &grant(&write, "read")));
        assert!(run(&node, name, "write=/d/b").starts_with("refused: "));
    }
    for (path, access) in
        [(&read, "read-write"), (&theirs, "read"), (&host.path().to_owned(), "read"), (&host.path().join("read2"), "read")]
    {
        let problem = node.deploy("f", &program("files1"), &grant(path, access)).problem(400, "bad-manifest");
        let line = format!("[[folder]] with path = \\\"{}\\\" and access = \\\"{access}\\\"", path.display());
        assert!(problem.to_string().contains(&line), "{problem}");
    }
    let missing = node.deploy("f", &program("files1"), &grant(&read.join("missing"), "read")).problem(400, "bad-manifest");
    assert!(missing.to_string().contains("cannot be opened on this node"), "{missing}");
    drop(node);
    // Taken back: nothing is there, and what was deployed answers still.
    let node = node_with(dir.clone(), &[]);
    assert!(run(&node, "files1", "read=/d/a").starts_with("refused: "));
    drop(node);
    fs::remove_dir_all(&read).unwrap();
    let mut command = serve(&data_dir(&dir));
    fs::write(dir.path().join("hob-node.toml"), format!("[[folder]]\npath = {read:?}\n")).unwrap();
    command.arg("--config").arg(dir.path().join("hob-node.toml"));
    let ended = Node::run(command, dir).unwrap_err();
    assert!(ended.stderr.contains("which the configuration allows, cannot be opened"), "{}", ended.stderr);
}

#[test]
fn no_path_by_no_call_leads_out_of_a_folder() {
    for access in ["read", "read-write"] {
        let (dir, host) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
        let (root, outside) = trap(host.path());
        let node = node_with(dir, &[(&root, "access = 'read-write'")]);
        let manifest = format!(
            "[limits]\ncpu = '60s'\nwall = '300s'\n[grants]\nfiles = [{{ host = {root:?}, guest = '/d', access = '{access}' }}]\n"
        );
        done(node.deploy("f", &program("paths1"), &manifest));
        let mut calls = 0;
        for path in paths(&outside) {
            links(&root, &outside);
            let before = (picture(&outside), picture(&root));
            let text = node.data.post("/f?matrix", path.as_bytes()).ok().text();
            assert!(!text.contains(SENTINEL), "{path:?}:\n{text}");
            // `/etc/passwd` and the environment of the process.
            assert!(!text.contains("root:") && !text.contains("PATH="), "{path:?}:\n{text}");
            assert!(picture(&outside) == before.0, "{access} {path:?} changed something outside:\n{text}");
            if access == "read" {
                assert!(picture(&root) == before.1, "{path:?} changed what can only be read:\n{text}");
            }
            calls += text.lines().filter(|line| line.contains('\t')).count();
            fs::write(root.join("inside"), "inside!").unwrap();
        }
        assert!(calls >= 21 * paths(&outside).len(), "{calls}");
        // The calls do work: or nothing was tried.
        let text = node.data.post("/f?matrix", b"inside").ok().text();
        assert!(text.contains("inside!") && text.contains("inside\tread\t0"), "{text}");
        assert_eq!(text.contains("inside\ttruncate\t0"), access == "read-write", "{text}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    }
}

#[test]
fn a_link_that_is_swapped_in_meanwhile_leads_nowhere_either() {
    let (dir, host) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let (root, outside) = trap(host.path());
    let node = node_with(dir, &[(&root, "access = 'read-write'")]);
    let manifest = |host: &Path| {
        format!(
            "[limits]\ncpu = '60s'\nwall = '300s'\n[grants]\nfiles = [{{ host = {host:?}, guest = '/d', access = 'read-write' }}]\n"
        )
    };
    for name in ["opens", "swaps"] {
        done(node.deploy(name, &program("paths1"), &manifest(&root)));
    }
    // The granted folder itself is what is swapped.
    done(node.deploy("below", &program("files1"), &manifest(&root.join("swap"))));
    let before = picture(&outside);
    let swapped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swaps = scope.spawn(|| {
            assert_eq!(run(&node, "swaps", "swap=20000"), "done\n");
            swapped.store(true, Ordering::SeqCst);
        });
        let below = scope.spawn(|| {
            let mut texts = Vec::new();
            while !swapped.load(Ordering::SeqCst) {
                texts.push(run(&node, "below", "read=/d/file"));
            }
            texts
        });
        let mut worked = 0;
        while !swapped.load(Ordering::SeqCst) {
            let text = run(&node, "opens", "open=2000");
            assert!(!text.contains("read:"), "{text}");
            worked += text.trim().strip_prefix("worked: ").unwrap().parse::<u32>().unwrap();
        }
        swaps.join().unwrap();
        for text in below.join().unwrap() {
            assert!(text == "inside!" || text.starts_with("refused: "), "{text}");
        }
        assert!(worked > 0, "the file was there at times");
    });
    assert!(picture(&outside) == before);
}

#[test]
fn guests_that_hammer_files_make_no_more_threads_than_the_bound() {
    let (dir, host) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let (root, _) = trap(host.path());
    let node = node_with(dir, &[(&root, "access = 'read-write'")]);
    let manifest = format!(
        "[limits]\ncpu = '60s'\nwall = '300s'\n[grants]\nfiles = [{{ host = {root:?}, guest = '/d', access = 'read-write' }}]\n"
    );
    done(node.deploy("f", &program("paths1"), &manifest));
    let threads = || fs::read_dir(format!("/proc/{}/task", node.pid())).unwrap().count();
    run(&node, "f", "hammer=1");
    let cores = std::thread::available_parallelism().unwrap().get();
    // Those that may block, for each data thread; the control port's and the triggers' have done nothing that blocks here.
    let bound = threads() + hob::limits::BLOCKING_THREADS_MAX * cores;
    let ended = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !ended.load(Ordering::SeqCst) {
                most = most.max(threads());
            }
            most
        });
        let guests: Vec<_> = (0..64).map(|_| scope.spawn(|| run(&node, "f", "hammer=500"))).collect();
        guests.into_iter().for_each(|guest| assert_eq!(guest.join().unwrap(), "done\n"));
        ended.store(true, Ordering::SeqCst);
        watch.join().unwrap()
    });
    assert!(most <= bound, "{most} threads, expected at most {bound}");
}

/// A handler whose `hob_init` reads `/site/a` by the calls of preview 1, and that answers with what it read.
fn reads_at_init(writes: &str) -> Vec<u8> {
    let text = handler(&format!(
        "(data (i32.const 100) \"a\")
         (func (export \"hob_init\")
           {writes}
           (if (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 200))
             (then unreachable))
           (i32.store (i32.const 208) (i32.const 300))
           (i32.store (i32.const 212) (i32.const 3))
           (if (call $fd_read (i32.load (i32.const 200)) (i32.const 208) (i32.const 1) (i32.const 216)) (then unreachable))
           (drop (call $fd_close (i32.load (i32.const 200)))))
         (func (export \"hob_handle\") (call $answer (i32.const 200) (i32.const 300) (i32.load (i32.const 216))))"
    ));
    let imports = "(import \"wasi_snapshot_preview1\" \"path_open\" (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"fd_read\" (func $fd_read (param i32 i32 i32 i32) (result i32)))
         (import \"wasi_snapshot_preview1\" \"fd_close\" (func $fd_close (param i32) (result i32)))";
    wasm(&text.replacen("(module", &format!("(module {imports}"), 1))
}

#[test]
fn what_an_initialisation_read_is_frozen_and_other_files_are_another_snapshot() {
    let (dir, host) = (Arc::new(tempfile::tempdir().unwrap()), tempfile::tempdir().unwrap());
    let (root, _) = trap(host.path());
    fs::write(root.join("a"), "new").unwrap();
    let node = node_with(dir, &[(&root, "access = 'read-write'")]);
    let required = format!("snapshot = 'required'\n{SITE}");
    for text in ["one", "two", "one"] {
        done(deploy(
            &node,
            "f",
            &reads_at_init(""),
            &required.replace("\"site\"", "\"site/x\""),
            &archive(&[("site/x/a", text)]),
        ));
        assert!(has_snapshot(&node, "f"));
        assert_eq!(node.data.get("/f").ok().text(), text);
    }
    // A folder of the node is there too, for reading only whatever an invocation may do: creating a file is refused with 69 or 76.
    let create = "(if (i32.eqz (call $path_open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 200)))
             (then unreachable))";
    let manifest =
        format!("snapshot = 'required'\n[grants]\nfiles = [{{ host = {root:?}, guest = '/d', access = 'read-write' }}]\n");
    done(node.deploy("g", &reads_at_init(create), &manifest));
    fs::write(root.join("a"), "old").unwrap();
    assert_eq!(node.data.get("/g").ok().text(), "new", "it is not read again");
    // Without the grant there is nothing to read, and so no snapshot of it.
    node.deploy("h", &reads_at_init(""), "snapshot = 'required'").problem(422, "not-deployable");
}

#[test]
fn clocks_show_whole_milliseconds_unless_the_manifest_says_otherwise() {
    let node = Node::start(&[]);
    let is_coarse = |text: &str| text.split_whitespace().all(|number| number.parse::<u64>().unwrap() % 1_000_000 == 0);
    for (grant, coarse) in [("", true), ("[grants]\nclock = 'coarse'", true), ("[grants]\nclock = 'fine'", false)] {
        done(node.deploy("raw", &program("paths1"), grant));
        let text = run(&node, "raw", "clock");
        assert_eq!(text.lines().map(is_coarse).collect::<Vec<_>>(), [coarse; 2], "{text}");
        for line in text.lines() {
            let moments: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
            assert_eq!(moments[0] == 1_000_000, coarse, "the resolution: {line}");
            assert!(moments[1..].is_sorted(), "{line}");
        }
        for name in ["files1", "files2"] {
            done(node.deploy(name, &program(name), grant));
            assert_eq!(run(&node, name, "clock=") == "0 0", coarse, "{name} {grant}");
        }
    }
    assert_eq!(node.inspect("raw")["grants"]["clock"], "fine");
    let refused = node.deploy("raw", &program("paths1"), "[grants]\nclock = 'exact'").problem(400, "bad-manifest");
    assert!(refused.to_string().contains("expected 'coarse' or 'fine'"), "{refused}");
}

#[test]
fn without_a_grant_there_is_nothing_and_the_log_says_once_which_line_would_help() {
    let node = Node::start(&[]);
    let said = |name: &str, word: &str| node.logs(name).into_iter().filter(|(_, _, text)| text.contains(word)).count();
    for name in ["files1", "files2"] {
        done(node.deploy(name, &program(name), ""));
        for _ in 0..3 {
            assert!(run(&node, name, "read=/site/a").starts_with("refused: "));
        }
        assert_eq!(said(name, "[grants] files = [{ host = \"site\", guest = \"/site\" }]"), 1, "{name}: {:?}", node.logs(name));
    }
    // One that does not ask what it was given, but uses a descriptor as if it were a folder: every call of preview 1 on a path is refused.
    done(node.deploy("paths1", &program("paths1"), ""));
    let text = node.data.post("/paths1?matrix", b"inside").ok().text();
    let errnos: Vec<_> = text.lines().map(|line| line.rsplit('\t').next().unwrap()).collect();
    assert_eq!(errnos, ["2"; 21], "EACCES: {text}");
    assert_eq!(said("paths1", "[grants] files = "), 1, "{:?}", node.logs("paths1"));
    // A program that asks for no file is told nothing.
    done(node.deploy("quiet", &wasm(&command("(func (export \"_start\"))")), ""));
    node.data.get("/quiet").ok();
    assert_eq!(node.logs("quiet"), []);
    let reaches = fs::read(guest("reaches")).unwrap();
    let manifest = format!("snapshot = 'off'\n[env]\nNODE = \"{}\"\n", node.data.addr);
    done(node.deploy("reaches", &reaches, &manifest));
    for _ in 0..3 {
        assert!(node.data.get("/reaches/socket").ok().text().contains("permission denied"));
    }
    assert_eq!(said("reaches", "sockets, which no function of this tenant has"), 1, "{:?}", node.logs("reaches"));
}

#[test]
fn a_path_of_preview_1_has_a_length() {
    let node = Node::start(&[]);
    let files = archive(&[("site/a", "x")]);
    for (name, params, call) in [
        ("path_filestat_get", "i32 i32 i32 i32 i32", "(i32.const 0) (i32.const 0) (i32.const N) (i32.const 8000)"),
        (
            "path_open",
            "i32 i32 i32 i32 i32 i64 i64 i32 i32",
            "(i32.const 0) (i32.const 0) (i32.const N) (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 8000)",
        ),
        ("path_rename", "i32 i32 i32 i32 i32 i32", "(i32.const 0) (i32.const N) (i32.const 3) (i32.const 0) (i32.const 1)"),
        ("path_rename", "i32 i32 i32 i32 i32 i32", "(i32.const 0) (i32.const 1) (i32.const 3) (i32.const 0) (i32.const N)"),
        ("path_symlink", "i32 i32 i32 i32 i32", "(i32.const N) (i32.const 3) (i32.const 0) (i32.const 1)"),
    ] {
        let answer = |len: &str| {
            let first = if name == "path_symlink" { "(i32.const 0)" } else { "(i32.const 3)" };
            let import =
                format!("(module (import \"wasi_snapshot_preview1\" \"{name}\" (func $f (param {params}) (result i32)))");
            let text = handler(&format!(
                "(data (i32.const 0) \"{}\") (func (export \"hob_handle\") (call $number (call $f {first} {})))",
                "a/".repeat(2049),
                call.replace('N', len)
            ));
            let wasm = wasm(&text.replacen("(module", &import, 1));
            deploy(&node, "a", &wasm, &format!("snapshot = \"off\"\n{SITE}"), &files);
            number(&node.data.get("/a").good())
        };
        // Of 4,096 the system may say so, which has a byte less.
        assert_ne!(answer("4095"), 37, "{name}");
        for past in ["4097", "-1"] {
            assert_eq!(answer(past), 37, "{name} {past}");
        }
    }
}
