//! The command line, as its users meet it: what it prints where, how it exits, and what it says when something is wrong.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::examples::{example, guest};
use crate::harness::wat::{self, SPINS, command, does, says, wasm};
use crate::harness::{Node, eventually, files};

/// The program with these arguments, all its streams held by the test or empty.
pub(crate) fn hob(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("HOB_SERVER").env_remove("HOB_TOKEN").env("NO_COLOR", "1");
    command
}

/// Runs a command of a node, and returns its output.
pub(crate) fn at(node: &Node, args: &[&str]) -> Output {
    let server = format!("http://{}", node.control.addr);
    hob(args).env("HOB_SERVER", server).output().unwrap()
}

#[track_caller]
pub(crate) fn check(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    if !matches!(code, 0 | 2 | 124) && !stderr.is_empty() {
        assert!(stderr.contains("error: ") && stderr.matches("next: ").count() == 1, "{stderr}");
    }
    (stdout, stderr)
}

/// A folder with a file of this text as Wasm.
pub(crate) fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn run_passes_streams_arguments_and_the_exit_code() {
    let (_dir, exits) = file("exits.wasm", &wasm(&command(r#"(func (export "_start") (call $proc_exit (i32.const 3)))"#)));
    check(&hob(&["run", exits.to_str().unwrap()]).output().unwrap(), 3);
    let (_dir, words) = file("words.wasm", &example("wordcount").wasm);
    let mut child = hob(&["run", words.to_str().unwrap(), "-o", "json"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"a b a").unwrap();
    let (stdout, stderr) = check(&child.wait_with_output().unwrap(), 0);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("0 lines, 3 words, 5 bytes\na 2\nb 1\n", ""));
}

#[test]
fn run_tells_traps_deadlines_and_odd_files_apart() {
    let start = |code: &str| wasm(&command(&format!(r#"(func (export "_start") {code})"#)));
    let (dir, traps) = file("traps.wasm", &start("unreachable"));
    let (_, stderr) = check(&hob(&["run", traps.to_str().unwrap()]).output().unwrap(), 6);
    // There is no daemon that could be asked for its log: what is in it is here.
    assert!(stderr.contains("wasm backtrace") && !stderr.contains("hob logs"), "{stderr}");
    let (_dir, spins) = file("spins.wasm", &start(SPINS));
    check(&hob(&["run", "--limit", "cpu=50ms", spins.to_str().unwrap()]).output().unwrap(), 124);
    check(&hob(&["run", "--limit", "cpu", spins.to_str().unwrap()]).output().unwrap(), 2);
    let (_dir, text) = file("text.wasm", b"hello");
    let (_dir, empty) = file("empty.wasm", b"");
    check(&hob(&["run", "/nonexistent.wasm"]).output().unwrap(), 3);
    for odd in [dir.path(), &text, &empty, Path::new("/dev/null")] {
        let (stdout, stderr) = check(&hob(&["run", odd.to_str().unwrap()]).output().unwrap(), 1);
        assert!(stdout.is_empty() && !stderr.contains("panicked"), "{stderr}");
    }
}

#[test]
fn run_passes_every_kind_of_exit_code() {
    let exits = |code: i64| wasm(&command(&format!(r#"(func (export "_start") (call $proc_exit (i32.const {code})))"#)));
    let component = |result: u32| wasm(&wat::component("").replace("i32.const 0", &format!("i32.const {result}")));
    let codes = [0, 1, 125, 126, 255].map(|code| (exits(code), code as i32));
    for (bytes, code) in codes.into_iter().chain([(exits(-1), 255), (exits(256), 1), (component(0), 0), (component(1), 1)]) {
        let (_dir, path) = file("exits.wasm", &bytes);
        let output = hob(&["run", path.to_str().unwrap()]).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(code), &b""[..]), "{output:?}");
    }
}

/// The signals that end a command, and with which code.
const ENDINGS: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

#[test]
fn a_signal_ends_a_command() {
    let looping = command(&format!(
        r#"(data (i32.const 0) "up\n") (func (export "_start") (call $write (i32.const 1) (i32.const 0) (i32.const 3)) {SPINS})"#
    ));
    let (_dir, path) = file("looping.wasm", &wasm(&looping));
    for (ending, code) in ENDINGS {
        let mut child = hob(&["run", path.to_str().unwrap()]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n");
        signal(&child, ending);
        assert_eq!(child.wait().unwrap().code(), Some(code));
    }
}

#[test]
fn a_signal_ends_a_build_and_nothing_is_left() {
    // Long to compile.
    let body = "(i32.mul (i32.add (local.get 0) (i32.const 3)) (local.get 0)) (local.set 0)".repeat(200);
    let functions = format!("(func (param i32) (result i32) {body} (local.get 0))").repeat(2000);
    let (_dir, path) = file("large.wasm", &wasm(&command(&format!("{functions} (func (export \"_start\") {SPINS})"))));
    for (ending, code) in ENDINGS {
        let temp = tempfile::tempdir().unwrap();
        let mut child = hob(&["run", path.to_str().unwrap()]).env("TMPDIR", temp.path()).spawn().unwrap();
        let is_staging = |path: &PathBuf| path.parent().is_some_and(|folder| folder.ends_with("staging"));
        eventually("it builds", || files(temp.path()).iter().any(is_staging));
        signal(&child, ending);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
    }
}

#[test]
fn run_serves_what_is_no_command_until_a_signal() {
    let (_dir, handler) = file("handler.wasm", &wasm(&says("here")));
    let (_dir, component) = file("component.wasm", &example("hello-http").wasm);
    for (path, expected, ending) in [
        (&handler, "here", Signal::INT),
        (&guest("spin5"), "GET /any: ", Signal::INT),
        (&component, "Hello, world!\n", Signal::INT),
        (&handler, "here", Signal::TERM),
    ] {
        let mut child = hob(&["run", "--addr", "127.0.0.1:0", path.to_str().unwrap()]).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let addr = line.trim().split("http://").nth(1).unwrap_or_else(|| panic!("{line}"));
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        stream.write_all(b"GET /any HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(expected) && answer.contains("hob-executed: 1"), "{answer}");
        signal(&child, ending);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap().to_string();
    let (_, stderr) = check(&hob(&["run", "--addr", &addr, handler.to_str().unwrap()]).output().unwrap(), 1);
    assert!(stderr.contains("next: hob run --addr 127.0.0.1:0"), "{stderr}");
}

#[test]
fn run_grants_what_it_is_told_to_and_no_more() {
    let guest = guest("reach2");
    let run = |grant: &[&str], args: &[&str]| {
        let mut command = hob(&[&["run"], grant, &[guest.to_str().unwrap()], args].concat());
        // Nothing of the program's own environment is the guest's.
        command.env("SECRET", "kept").output().unwrap()
    };
    let granted = |grant: &[&str], args: &[&str]| check(&run(grant, args), 0).0;
    // The guest's own words and exit code, whatever it makes of a refusal.
    let refused = |grant: &[&str], args: &[&str]| {
        let output = run(grant, args);
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{args:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("Error: "), "{args:?}: {output:?}");
    };
    assert_eq!(granted(&["--env", "A=b=c", "--env", "D=e"], &["env", "A"]), "b=c");
    refused(&["--env", "A=b"], &["env", "SECRET"]);

    let host = tempfile::tempdir().unwrap();
    let (inside, outside) = (host.path().join("inside"), host.path().join("outside"));
    std::fs::create_dir(&inside).unwrap();
    std::fs::write(inside.join("in"), "from the host").unwrap();
    std::fs::write(&outside, "not granted").unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    let dir = format!("{}::/data", inside.display());
    assert_eq!(granted(&["--dir", &dir], &["read", "/data/in"]), "from the host");
    granted(&["--dir", &dir], &["write", "/data/out", "from the guest"]);
    assert_eq!(std::fs::read_to_string(inside.join("out")).unwrap(), "from the guest");
    for file in ["/data/../outside", "/data/link", outside.to_str().unwrap()] {
        refused(&["--dir", &dir], &["read", file]);
        refused(&["--dir", &dir], &["write", file, "changed"]);
    }
    refused(&[], &["read", "/data/in"]);
    assert_eq!(std::fs::read_to_string(&outside).unwrap(), "not granted");
    check(&run(&["--dir", "/nonexistent::/data"], &["env", "A"]), 1);

    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = server.local_addr().unwrap().to_string();
    refused(&[], &["connect", &addr]);
    refused(&["--dir", &dir], &["connect", &addr]);
    refused(&[], &["get", &addr]);
    let serving = std::thread::spawn(move || {
        server.accept().unwrap().0.write_all(b"from the network").unwrap();
        let mut asked = server.accept().unwrap().0;
        // The head of a request that has no body.
        BufReader::new(&asked).lines().find(|line| line.as_ref().unwrap().is_empty()).unwrap().unwrap();
        asked.write_all(b"HTTP/1.1 418 Teapot\r\ncontent-length: 0\r\n\r\n").unwrap();
    });
    assert_eq!(granted(&["--net"], &["connect", &addr]), "from the network");
    assert_eq!(granted(&["--net"], &["get", &addr]), "418");
    serving.join().unwrap();
}

#[test]
fn a_deployed_command_reaches_nothing_outside() {
    let node = Node::start(&[]);
    let wasm = std::fs::read(guest("reach2")).unwrap();
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let addr = server.local_addr().unwrap().to_string();
    for args in [["connect", &addr], ["get", &addr], ["read", "/etc/passwd"], ["env", "PATH"]] {
        let name = args[0];
        assert_eq!(node.deploy(name, &wasm, &format!("args = {args:?}\n")).status(), 201);
        node.data.get(&format!("/{name}")).problem(502, "guest-exit");
        eventually("it says why in its log", || node.logs(name).iter().any(|(source, _, _)| source == "stderr"));
    }
    assert!(server.accept().is_err(), "somebody connected");
}

#[test]
fn run_lets_a_guest_read_secrets_and_shows_none() {
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, "of a file").unwrap();
    let of_file = format!("B@{}", secret.display());
    let command = guest("reach2");
    let run = |given: &[&str], name: &str| {
        hob(&[&["run"], given, &[command.to_str().unwrap(), "env", name]].concat()).output().unwrap()
    };
    assert_eq!(check(&run(&["--secret", "A=hunter2", "--secret", &of_file], "A"), 0).0, "hunter2");
    assert_eq!(check(&run(&["--secret", "A=hunter2", "--secret", &of_file], "B"), 0).0, "of a file");
    assert_eq!(run(&["--secret", "A=hunter2"], "B").status.code(), Some(1));
    for bad in ["hunter2", "1A=hunter2", "hunter2-=x", "A@/nonexistent", "A="] {
        let (stdout, stderr) = check(&run(&["--secret", bad], "A"), 2);
        assert!(stdout.is_empty() && stderr.contains("next: hob run --help") && !stderr.contains("hunter2"), "{bad}: {stderr}");
    }
    // What is served reads it by its name, and only what was given.
    let (_dir, path) = file("reader.wasm", &wasm(&crate::secrets::reader()));
    let mut child = hob(&["run", "--addr", "127.0.0.1:0", "--secret", "A=hunter2", "--secret", &of_file, path.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let addr = line.trim().split("http://").nth(1).unwrap_or_else(|| panic!("{line}"));
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(addr).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    assert!(get("/A").ends_with("hunter2") && get("/B").ends_with("of a file"), "{}", get("/A"));
    let denied = get("/OTHER");
    assert!(denied.starts_with("HTTP/1.1 402 ") && denied.contains("denied"), "{denied}");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(!said.contains("hunter2") && !said.contains("of a file"), "{said}");
}

#[test]
fn run_shows_what_a_served_function_logs() {
    let text = wat::handler(
        r#"(data (i32.const 0) "heard") (func (export "hob_handle") (call $log (i32.const 2) (i32.const 0) (i32.const 5)) unreachable)"#,
    );
    let (_dir, path) = file("speaks.wasm", &wasm(&text));
    let mut child = hob(&["run", "--addr", "127.0.0.1:0", path.to_str().unwrap()]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let addr = line.trim().split("http://").nth(1).unwrap_or_else(|| panic!("{line}"));
    let mut stream = std::net::TcpStream::connect(addr).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("hob-error: guest-trap"), "{answer}");
    signal(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut log = String::new();
    stderr.read_to_string(&mut log).unwrap();
    for word in [" heard\n", "wasm backtrace", "guest-trap: "] {
        assert!(log.contains(word), "{word}: {log}");
    }
}

#[test]
fn a_function_goes_through_its_life() {
    let node = Node::start(&[]);
    let (_dir, first) = file("greeter.wasm", &wasm(&says("one")));
    let (stdout, _) = check(&at(&node, &["deploy", first.to_str().unwrap(), "-o", "json"]), 0);
    let info: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((info["name"].as_str(), info["revision"].as_u64()), (Some("greeter"), Some(1)));
    let (_dir, second) = file("other.wasm", &wasm(&says("two")));
    check(&at(&node, &["deploy", second.to_str().unwrap(), "--name", "greeter", "--if-match", "0"]), 1);
    let etag = info["etag"].as_str().unwrap().trim_matches('"');
    check(&at(&node, &["deploy", second.to_str().unwrap(), "--name", "greeter", "--if-match", etag]), 0);
    assert_eq!(check(&at(&node, &["invoke", "greeter"]), 0).0, "two");
    let (list, _) = check(&at(&node, &["ls", "-o", "json"]), 0);
    assert_eq!(serde_json::from_str::<Value>(&list).unwrap()[0]["revision"], 2);
    check(&at(&node, &["rollback", "greeter"]), 0);
    assert_eq!(check(&at(&node, &["invoke", "greeter", "-d", "x", "-X", "PUT", "-H", "a: b"]), 0).0, "one");
    let (detail, _) = check(&at(&node, &["inspect", "greeter", "-o", "json"]), 0);
    let detail: Value = serde_json::from_str(&detail).unwrap();
    assert!(detail["usage"]["start_times"]["resident"]["p99_ms"].as_f64().unwrap() > 0.0, "{detail}");
    let (text, _) = check(&at(&node, &["inspect", "greeter"]), 0);
    let resident = text.lines().find(|line| line.starts_with("starts resident")).unwrap();
    assert!(["1: p50 ", "on average queue ", "instantiate ", "run "].iter().all(|part| resident.contains(part)), "{text}");
    assert!(!text.contains("starts compiled") && !resident.contains("load"), "{text}");
    assert_eq!((detail["tenant"].as_str(), detail["revisions"].as_array().map(Vec::len)), (Some("default"), Some(2)));
    check(&at(&node, &["rm", "greeter"]), 0);
    for gone in
        [&["rm", "greeter"][..], &["invoke", "greeter"], &["inspect", "greeter"], &["logs", "greeter"], &["rollback", "greeter"]]
    {
        check(&at(&node, gone), 3);
    }
}

#[test]
fn invoke_tells_faults_by_its_exit_code_and_logs_shows_why() {
    let node = Node::start(&[]);
    node.deploy_wat("traps", &does("unreachable"), "");
    node.deploy_wat("spins", &does(SPINS), "[limits]\ncpu = '50ms'\n");
    node.deploy_wat(
        "speaks",
        &command(
            r#"(data (i32.const 0) "\1b[2J\n") (func (export "_start") (call $write (i32.const 2) (i32.const 0) (i32.const 5)))"#,
        ),
        "",
    );
    check(&at(&node, &["invoke", "traps"]), 6);
    assert!(check(&at(&node, &["invoke", "spins"]), 124).1.contains("next: hob logs spins"));
    check(&at(&node, &["invoke", "speaks", "-i"]), 0);
    eventually("the guest's words are in its log", || {
        let (log, _) = check(&at(&node, &["logs", "speaks"]), 0);
        assert!(!log.contains('\x1b'), "{log}");
        log.ends_with(" \\u{1b}[2J\n")
    });
    let server = format!("http://{}", node.control.addr);
    let mut follow = hob(&["logs", "-f", "--tail", "1", "-o", "json", "speaks"]).env("HOB_SERVER", server).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(follow.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["text"], "\u{1b}[2J");
    signal(&follow, Signal::INT);
    assert_eq!(follow.wait().unwrap().code(), Some(130));
}

#[test]
fn without_a_daemon_the_exit_code_is_5() {
    // Held without being listened on: nobody answers there, and no other test gets it.
    let held = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    held.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let free = held.local_addr().unwrap().as_socket().unwrap();
    let (_, stderr) = check(&hob(&["ls", "--server", &format!("http://{free}")]).output().unwrap(), 5);
    assert!(stderr.contains("next: hob serve"), "{stderr}");
    check(&hob(&["ls", "--server", "ftp://127.0.0.1:1"]).output().unwrap(), 2);
}

#[test]
fn a_new_project_builds_and_deploys_outside_of_the_workspace() {
    let node = Node::start(&[]);
    // Building the examples has fetched what the templates need, in these versions.
    drop(example("hello"));
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/Cargo.lock");
    for (template, method, body, expected) in [
        ("rust-handler", "GET", "", "Hello from /a\n"),
        ("rust-command", "POST", "abc", "ABC"),
        ("rust-http", "GET", "", "Hello from /a\n"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let name = format!("my-{template}");
        check(&hob(&["new", &name, "-t", template]).current_dir(&dir).output().unwrap(), 0);
        check(&hob(&["new", &name, "-t", template]).current_dir(&dir).output().unwrap(), 1);
        let project = dir.path().join(&name);
        std::fs::copy(&lock, project.join("Cargo.lock")).unwrap();
        let server = format!("http://{}", node.control.addr);
        check(
            &hob(&["deploy"]).current_dir(&project).env("HOB_SERVER", server).env("CARGO_NET_OFFLINE", "true").output().unwrap(),
            0,
        );
        assert_eq!(check(&at(&node, &["invoke", &name, "-X", method, "--path", "/a", "-d", body]), 0).0, expected, "{template}");
    }
}

/// A folder to be the whole `PATH`: a toolchain that writes down how it was called, and has no wasm target until its rustup adds it.
struct Toolchain(TempDir);

impl Toolchain {
    /// `rustup`: what it does to add the target `$3`.
    fn new(rustup: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let tools = [
            // --print target-libdir --target TARGET
            ("rustc", "echo \"$PWD/lib/$4\""),
            ("cargo", "exit 7"),
            ("rustup", rustup),
            ("cc", ""),
        ];
        for (name, does) in tools {
            let log = if name == "rustc" { String::new() } else { format!("echo \"{name} $*\" >> '{path}/log'") };
            let text = format!("#!/bin/sh\ncd '{path}'\nif [ $1 = --version ]; then echo {name} 1; exit; fi\n{log}\n{does}\n");
            // By another process: a file that this one had open for writing may be held open by a child that another test just
            // forked, and could not be run then.
            let mut write = Command::new("/bin/sh");
            write.args(["-c", "cat > $0 && chmod 755 $0", name]).current_dir(&dir).stdin(Stdio::piped());
            let mut write = write.spawn().unwrap();
            write.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(write.wait().unwrap().success());
        }
        std::os::unix::fs::symlink("/bin/sh", dir.path().join("sh")).unwrap();
        Self(dir)
    }

    fn run(&self, args: &[&str]) -> Output {
        hob(args).env("PATH", self.0.path()).env("HOME", self.0.path()).output().unwrap()
    }

    /// How its programs were called, but to say their version.
    fn calls(&self) -> Vec<String> {
        let log = std::fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
        log.lines().map(ToOwned::to_owned).collect()
    }

    /// What `hob doctor` says about each target.
    fn doctor(&self, args: &[&str]) -> (Vec<String>, String) {
        let output = self.run(&[&["doctor", "-o", "json"], args].concat());
        let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let is_target = |check: &&Value| check["check"].as_str().unwrap().starts_with("target wasm32-");
        let states: Vec<_> = checks.iter().filter(is_target).map(|check| check["state"].as_str().unwrap().to_owned()).collect();
        let failed = checks.iter().any(|check| check["state"] == "failed");
        assert_eq!(output.status.code(), Some(i32::from(failed)), "{output:?}");
        (states, String::from_utf8(output.stderr).unwrap())
    }
}

const ADDS: &str = "/bin/mkdir -p lib/$3";
const ADDED: [&str; 2] = ["rustup target add wasm32-wasip1", "rustup target add wasm32-wasip2"];

#[test]
fn doctor_adds_missing_targets_when_it_is_told_to() {
    let tools = Toolchain::new(ADDS);
    let (states, stderr) = tools.doctor(&[]);
    assert_eq!(states, ["failed", "failed"]);
    assert!(stderr.contains("hob doctor --fix"), "{stderr}");
    assert!(tools.calls().is_empty(), "nothing changes unasked");
    let (states, stderr) = tools.doctor(&["--fix"]);
    assert_eq!((states, tools.calls()), (vec!["ok".into(), "ok".into()], ADDED.map(String::from).to_vec()), "{stderr}");
    assert!(ADDED.iter().all(|call| stderr.contains(call)), "{stderr}");
    // What is there is not added again.
    assert_eq!((tools.doctor(&["--fix"]).0, tools.calls().len()), (vec!["ok".into(), "ok".into()], 2));
}

#[test]
fn doctor_says_what_could_not_be_added() {
    for (rustup, why) in [("exit 1", "failed"), ("exit 0", "another toolchain")] {
        let tools = Toolchain::new(rustup);
        let (states, stderr) = tools.doctor(&["--fix"]);
        assert_eq!(
            (states, tools.calls()),
            (vec!["failed".into(), "failed".into()], ADDED.map(String::from).to_vec()),
            "{stderr}"
        );
        assert!(stderr.contains(why) && !stderr.contains("--fix"), "{stderr}");
    }
    let tools = Toolchain::new(ADDS);
    std::fs::remove_file(tools.0.path().join("rustup")).unwrap();
    let (states, stderr) = tools.doctor(&["--fix"]);
    assert_eq!(states, ["failed", "failed"]);
    assert!(stderr.contains("cannot run rustup") && stderr.contains("rustup.rs"), "{stderr}");
    std::fs::remove_file(tools.0.path().join("rustc")).unwrap();
    assert_eq!(tools.doctor(&["--fix"]).0.len(), 0, "without a compiler there is nothing to ask");
}

#[test]
fn demo_adds_missing_targets_before_it_builds() {
    // This cargo fails, which is where the demo ends.
    let tools = Toolchain::new(ADDS);
    let (stdout, stderr) = check(&tools.run(&["demo"]), 1);
    let calls = tools.calls();
    assert_eq!((&calls[..2], calls.len(), stdout.as_str()), (&ADDED.map(String::from)[..], 3, ""), "{stderr}");
    assert!(calls[2].starts_with("cargo build "), "{calls:?}");
    assert!(ADDED.iter().all(|call| stderr.contains(call)) && stderr.contains("exit status: 7"), "{stderr}");
    for (rustup, why) in [("exit 1", "'rustup target add wasm32-wasip1' failed"), ("exit 0", "another toolchain")] {
        let tools = Toolchain::new(rustup);
        let (_, stderr) = check(&tools.run(&["demo"]), 1);
        assert_eq!(tools.calls(), ADDED[..1], "it stops at once: {stderr}");
        assert!(stderr.contains(why) && stderr.contains("next: hob doctor\n"), "{stderr}");
    }
}

#[test]
fn doctor_says_what_it_found_as_json_too() {
    let dir = tempfile::tempdir().unwrap();
    // Ports may be taken on the machine that runs this, so only the form and some lines are held to.
    let output = hob(&["doctor", "-o", "json", "--data-dir", dir.path().to_str().unwrap()]).output().unwrap();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    let checks: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let state = |name: &str| checks.iter().find(|check| check["check"] == name).map(|check| check["state"].clone());
    assert_eq!((state("cargo"), state("data directory")), (Some("ok".into()), Some("ok".into())));
}
