//! What every test stands on: a real daemon in a folder of its own, a client that sees every byte, and guests.
//!
//! A [`Node`] checks itself when it goes: no answer of its was a bug of Hob's, none was counted, and nothing in what it wrote to
//! standard error is a panic. No test sleeps to wait for a state; [`eventually`] asks until it is there.

pub(crate) mod doors;
pub(crate) mod escape;
pub(crate) mod examples;
pub(crate) mod exposed;
pub(crate) mod failing;
pub(crate) mod http;
pub(crate) mod inside;
pub(crate) mod smuggle;
pub(crate) mod strict;
pub(crate) mod upstream;
pub(crate) mod wat;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use http::{Port, Reply, Seen};

/// How long a condition may take to come true on a machine that is busy with other tests. Only a test that fails waits so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Asks until it is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asks a function that must be compiled first. A request waits 2 s for that and is then sent away, while the compilation goes on;
/// a busy machine may need longer, so whoever is sent away asks again. Returns the answer, and whether it was the first.
#[track_caller]
pub(crate) fn patiently(mut ask: impl FnMut() -> Reply) -> (Reply, bool) {
    let mut replies = Vec::new();
    eventually("it is compiled", || {
        let reply = ask();
        let is_sent_away = reply.header("hob-error") == Some("overloaded") && reply.text().contains("being compiled");
        replies.push(reply);
        !is_sent_away
    });
    (replies.pop().unwrap(), replies.is_empty())
}

/// As [`patiently`]; the answer must have begun on `compiled`, or been sent away before and found what was compiled meanwhile.
#[track_caller]
pub(crate) fn compiled(ask: impl FnMut() -> Reply) -> Reply {
    let (reply, is_first) = patiently(ask);
    let rung = reply.header("hob-start");
    assert!(rung == Some("compiled") || (!is_first && rung == Some("resident")), "{rung:?} {}", reply.text());
    reply
}

/// Whether a test that needs a tool can run. One that cannot says so, and fails if `HOB_TEST_REQUIRE` names the tool
/// (`python3,node,cc,unshare,fuse`), as `.ci/run` does.
pub(crate) fn is_there(tool: &str, found: bool, what: &str) -> bool {
    if found {
        return true;
    }
    let required = std::env::var_os("HOB_TEST_REQUIRE").unwrap_or_default();
    let required = required.to_string_lossy().split(',').any(|required| required == tool);
    assert!(!required, "{what} needs {tool}, and HOB_TEST_REQUIRE names it");
    // The macros that print would show it only if the test failed.
    std::io::stderr().write_all(format!("skipped: {what} needs {tool}\n").as_bytes()).unwrap();
    false
}

/// How a node is to be started.
#[derive(Debug, Default)]
pub(crate) struct Setup<'a> {
    /// Where; a new folder when `None`.
    pub(crate) dir: Option<Arc<TempDir>>,
    /// Settings of the form `net.header_timeout=300ms`.
    pub(crate) settings: &'a [&'a str],
    /// Name of the crash point at which it is to die.
    pub(crate) crash_at: Option<&'a str>,
}

/// A daemon that did not start, or ended by itself.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
}

/// A daemon: the real binary as a process of its own.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    dir: Arc<TempDir>,
    /// Where functions answer.
    pub(crate) data: Port,
    /// Where functions are deployed.
    pub(crate) control: Port,
    seen: Seen,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    ended: Option<ExitStatus>,
    /// Whether it was told to have bugs, so that its 500s are none.
    planted: bool,
}

/// The folder that a node keeps its data in, inside of its temporary folder.
pub(crate) fn data_dir(dir: &TempDir) -> PathBuf {
    dir.path().join("data")
}

/// The command that starts a daemon on free ports.
pub(crate) fn serve(data_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hob"));
    command.args(["serve", "--addr", "127.0.0.1:0", "--control", "127.0.0.1:0", "-o", "json", "--data-dir"]).arg(data_dir);
    // In a debug build every instantiation is slow enough to be worth doing ahead: which rung a request starts on would be chance.
    command.args(["--set", "engine.ready_max=0"]);
    // No test but one about a timer, which sets it, may depend on how soon a busy machine gets round to a client or a build.
    for long in [
        "net.header_timeout",
        "net.keepalive_timeout",
        "net.handshake_timeout",
        "net.body_idle_timeout",
        "net.body_rate_grace",
        "net.write_idle_timeout",
        "build.wall",
    ] {
        command.args(["--set", &format!("{long}=1h")]);
    }
    // Tests look into the daemon by `/proc`, which for a process that cannot be dumped is root's.
    if !rustix::process::geteuid().is_root() {
        command.args(["--set", "process.core_dumps=true"]);
    }
    command
}

impl Node {
    /// A node in a new folder, with these settings.
    #[track_caller]
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_with(Setup { settings, ..Setup::default() })
    }

    #[track_caller]
    pub(crate) fn start_with(setup: Setup<'_>) -> Self {
        Self::try_start(setup).unwrap_or_else(|ended| panic!("the node did not start: {ended:?}"))
    }

    /// Starts a node and waits until it says that it is ready, or ends.
    pub(crate) fn try_start(setup: Setup<'_>) -> Result<Self, Ended> {
        let dir = setup.dir.unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap()));
        let mut command = serve(&data_dir(&dir));
        for setting in setup.settings {
            command.args(["--set", setting]);
        }
        if let Some(point) = setup.crash_at {
            command.env("HOB_CRASH_AT", point);
        }
        Self::run(command, dir)
    }

    /// Runs a command that must be a daemon.
    pub(crate) fn run(mut command: Command, dir: Arc<TempDir>) -> Result<Self, Ended> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let (pipe, text) = (child.stderr.take().unwrap(), stderr.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut text = text.lock().unwrap();
                text.push_str(&line);
                text.push('\n');
            }
        });
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let status = child.wait().unwrap();
            reader.join().unwrap();
            let stderr = stderr.lock().unwrap().clone() + &line;
            return Err(Ended { status, stderr });
        };
        // Whatever it says later must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stdout.by_ref(), &mut std::io::sink()));
        let seen = Seen::default();
        let port = |key: &str| Port { addr: ready[key].as_str().unwrap().parse().unwrap(), bearer: None, seen: seen.clone() };
        let (data, control) = (port("addr"), port("control"));
        Ok(Self { child, dir, data, control, seen, stderr, reader: Some(reader), ended: None, planted: false })
    }

    /// A node that has a bug at `point`: its answers of 500 and its panics are what the test wants.
    #[track_caller]
    pub(crate) fn with_bug(point: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut command = serve(&data_dir(&dir));
        command.env("HOB_PANIC_AT", point);
        let mut node = Self::run(command, dir).unwrap();
        node.planted = true;
        node
    }

    /// The temporary folder, for a node that comes after this one.
    pub(crate) fn dir(&self) -> Arc<TempDir> {
        self.dir.clone()
    }

    /// The data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        data_dir(&self.dir)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Sends a signal and does not wait.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        self.ended = Some(status);
        status
    }

    /// Kills it as `kill -9` does.
    pub(crate) fn kill(&mut self) {
        // It may have died of a crash point already.
        let _gone = self.child.kill();
        self.wait();
    }

    /// Stops it in order, unless it has ended already; it must end well.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        if self.ended.is_some() {
            return;
        }
        self.signal(Signal::TERM);
        let status = self.wait();
        assert_eq!(status.code(), Some(0), "{}", self.stderr());
    }

    /// Stops it, and starts another in the same folder.
    #[track_caller]
    pub(crate) fn restart(&mut self) {
        self.stop();
        *self = Self::start_with(Setup { dir: Some(self.dir()), ..Setup::default() });
    }

    /// Deploys bytes; with a manifest unless that is empty.
    pub(crate) fn deploy(&self, name: &str, wasm: &[u8], manifest: &str) -> Reply {
        self.deploy_if(name, wasm, manifest, &[])
    }

    /// Deploys bytes under conditions.
    pub(crate) fn deploy_if(&self, name: &str, wasm: &[u8], manifest: &str, headers: &[(&str, &str)]) -> Reply {
        let target = format!("/v1/functions/{name}");
        let (kind, body) = match manifest {
            "" => ("application/wasm".to_owned(), wasm.to_vec()),
            manifest => multipart(&[("manifest", manifest.as_bytes()), ("wasm", wasm)]),
        };
        let headers = [headers, &[("content-type", kind.as_str())]].concat();
        self.control.request("PUT", &target, &headers, &body)
    }

    /// Deploys WebAssembly text, which must be taken.
    #[track_caller]
    pub(crate) fn deploy_wat(&self, name: &str, wat: &str, manifest: &str) -> Reply {
        let wasm = wat::wasm(wat);
        let reply = self.deploy(name, &wasm, manifest);
        assert!(matches!(reply.status(), 200 | 201), "{name}: {} {}", reply.status(), reply.text());
        reply
    }

    /// Deploys an example with its own manifest.
    #[track_caller]
    pub(crate) fn deploy_example(&self, name: &str) -> Reply {
        let example = examples::example(name);
        let reply = self.deploy(name, &example.wasm, &example.manifest);
        assert_eq!(reply.status(), 201, "{}", reply.text());
        reply
    }

    /// All that the control port says about a function.
    #[track_caller]
    pub(crate) fn inspect(&self, name: &str) -> Value {
        self.control.get(&format!("/v1/functions/{name}")).ok().json()
    }

    /// How many of a function's invocations run, and how many wait.
    #[track_caller]
    pub(crate) fn occupancy(&self, name: &str) -> (u64, u64) {
        let detail = self.inspect(name);
        (detail["running"].as_u64().unwrap(), detail["waiting"].as_u64().unwrap())
    }

    /// The value of one metric, such as `hob_faults_total{kind="guest-trap"}`.
    #[track_caller]
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let text = self.control.get("/metrics").ok().text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name} in\n{text}")).parse().unwrap()
    }

    /// How often a fault of this code was counted.
    #[track_caller]
    pub(crate) fn faults(&self, code: &str) -> u64 {
        self.metric(&format!("hob_faults_total{{kind=\"{code}\"}}"))
    }

    /// How many faults were bugs of Hob's; `None` when nobody answers any more.
    fn internal_faults(&self) -> Option<u64> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            let mut conn = self.control.try_connect().ok()?;
            let bearer = self.control.bearer.as_deref().unwrap_or("none");
            conn.try_send(http::head("GET", "/metrics", &[("connection", "close"), ("authorization", bearer)])).ok()?;
            let head = conn.try_head()?;
            let mut text = Vec::new();
            conn.body(&head, |piece| text.extend_from_slice(piece));
            // A test of the bound on connections may have left no room for this one yet.
            if head.status == 200 {
                let text = String::from_utf8_lossy(&text);
                let value = text.lines().find_map(|line| line.strip_prefix("hob_faults_total{kind=\"internal\"} "))?;
                return value.parse().ok();
            }
        }
        None
    }

    /// The newest entries of a function's log: source, level, text.
    #[track_caller]
    pub(crate) fn logs(&self, name: &str) -> Vec<(String, String, String)> {
        let list = self.control.get(&format!("/v1/functions/{name}/logs?tail=1000")).ok().json();
        let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
        list["items"].as_array().unwrap().iter().map(|e| (text(e, "source"), text(e, "level"), text(e, "text"))).collect()
    }

    /// Memory of the process that is in RAM at its most so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Names of the files in one folder of the data directory, and below it.
    pub(crate) fn files(&self, folder: &str) -> Vec<PathBuf> {
        files(&self.data_dir().join(folder))
    }
}

/// All files below a folder that may be missing.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

impl Drop for Node {
    fn drop(&mut self) {
        let mut bugs = self.seen.bugs();
        if self.ended.is_none() {
            if !std::thread::panicking() && self.internal_faults().is_some_and(|count| count > 0) {
                bugs.push("a fault was counted as internal".into());
            }
            self.kill();
        }
        let stderr = self.stderr();
        if self.planted && !std::thread::panicking() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("standard error of the node:\n{stderr}");
            return;
        }
        assert!(bugs.is_empty(), "bugs of Hob: {bugs:#?}\n{stderr}");
        for word in ["panicked", "internal error", "RUST_BACKTRACE"] {
            assert!(!stderr.contains(word), "'{word}' in the node's standard error:\n{stderr}");
        }
    }
}

/// A `multipart/form-data` body: its type and its bytes.
pub(crate) fn multipart(parts: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    const BOUNDARY: &str = "------------------------a4f1c7d02e9b";
    let mut body = Vec::new();
    for (name, bytes) in parts {
        body.extend_from_slice(format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n").as_bytes());
        body.extend_from_slice(bytes);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

/// Numbers that only look random: the same for the same seed.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 11).unwrap() % bound
    }
}
