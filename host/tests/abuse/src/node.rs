//! The node under attack: the real binary as a process of its own, in a temporary folder and under limits.

use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::http::{self, Reply};

/// Who looks after the node, and the victim.
pub(crate) const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// How a node is to be started.
#[derive(Debug, Clone, Default)]
pub(crate) struct Setup {
    /// Of the form `net.header_timeout=2s`.
    pub(crate) settings: Vec<String>,
    /// Further arguments.
    pub(crate) args: Vec<String>,
    /// Variables of its environment.
    pub(crate) variables: &'static [(&'static str, &'static str)],
    /// Limit of open files.
    pub(crate) files_max: Option<u64>,
    /// A control group of memory that it is put into: its file `cgroup.procs`.
    pub(crate) group: Option<PathBuf>,
    /// Where functions answer; a free port if there is none.
    pub(crate) addr: Option<SocketAddr>,
}

/// A node that runs; killed when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    child: Child,
    pub(crate) data: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) dir: PathBuf,
    /// The token of whoever looks after it, once it asks for one.
    pub(crate) bearer: Arc<OnceLock<String>>,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts `binary` on the data directory `dir`, and waits until it says that it is ready.
    pub(crate) fn start(binary: &Path, dir: &Path, setup: &Setup) -> anyhow::Result<Self> {
        let mut command = Command::new("sh");
        let mut before = String::new();
        if let Some(files) = setup.files_max {
            before += &format!("ulimit -n {files}; ");
        }
        if let Some(group) = &setup.group {
            before += &format!("echo $$ > '{}'; ", group.display());
        }
        let addr = setup.addr.unwrap_or_else(|| SocketAddr::from((HOME, 0))).to_string();
        command.args(["-c", &format!("{before}exec \"$0\" \"$@\"")]).arg(binary);
        command.args(["serve", "--addr", &addr, "--control", "127.0.0.1:0", "-o", "json", "--data-dir"]).arg(dir);
        for setting in &setup.settings {
            command.args(["--set", setting]);
        }
        command.args(&setup.args).envs(setup.variables.iter().copied());
        command.current_dir(dir.parent().context("a folder without a parent")?);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let stderr = Arc::new(Mutex::new(String::new()));
        let (pipe, text) = (child.stderr.take().context("no standard error")?, stderr.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                let mut text = text.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                text.push_str(&line);
                text.push('\n');
            }
        });
        let mut stdout = BufReader::new(child.stdout.take().context("no standard output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let Ok(ready) = serde_json::from_str::<Value>(&line) else {
            let status = child.wait()?;
            // It has ended with its pipe.
            let _read_to_its_end = reader.join();
            bail!("the node did not start: {status}\n{}{line}", stderr.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        };
        // Whatever it says later must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut stdout.by_ref(), &mut std::io::sink()));
        let port = |key: &str| anyhow::Ok(ready[key].as_str().context("no address")?.parse::<SocketAddr>()?);
        let (data, control) = (port("addr")?, port("control")?);
        Ok(Self { child, data, control, dir: dir.to_owned(), bearer: Arc::default(), stderr, reader: Some(reader) })
    }

    /// Whether a program has a setting of the form `net.addr`: it lists those of a table to who asks for one that is not there.
    pub(crate) fn knows(binary: &Path, setting: &str) -> anyhow::Result<bool> {
        let (table, key) = setting.split_once('.').context("a setting without a table")?;
        let output = Command::new(binary).args(["serve", "--set", &format!("{table}.none=1")]).stdin(Stdio::null()).output()?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(text.contains("none"), "the program does not say which settings it has: {text}");
        Ok(text.contains(&format!("`{key}`")))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for its end, which a signal has asked for.
    pub(crate) fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                if let Some(reader) = self.reader.take() {
                    // It has ended with its pipe.
                    let _read_to_its_end = reader.join();
                }
                return Ok(status);
            }
            ensure!(began.elapsed() < Duration::from_secs(60), "the node does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A request to the control port by whoever looks after the node.
    pub(crate) fn ask(&self, method: &str, target: &str, body: &[u8]) -> anyhow::Result<Reply> {
        self.ask_as(method, target, &[], body)
    }

    /// The same with headers.
    pub(crate) fn ask_as(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> anyhow::Result<Reply> {
        let bearer = self.bearer.get().map(String::as_str);
        let own = bearer.map(|bearer| ("authorization", bearer)).into_iter().chain([("connection", "close")]);
        http::request(self.control, HOME, method, target, &own.chain(headers.iter().copied()).collect::<Vec<_>>(), body)
    }

    /// The same for a tenant, by the node's operator.
    pub(crate) fn ask_for(&self, tenant: &str, method: &str, target: &str, body: &[u8]) -> anyhow::Result<Reply> {
        self.ask_as(method, target, &[("hob-tenant", tenant)], body)
    }

    /// Deploys bytes, with a manifest unless that is empty.
    pub(crate) fn deploy(&self, from: Ipv4Addr, name: &str, wasm: &[u8], manifest: &str) -> anyhow::Result<Reply> {
        let target = format!("/v1/functions/{name}");
        let (kind, body) = match manifest {
            "" => ("application/wasm".to_owned(), wasm.to_vec()),
            manifest => http::multipart(&[("manifest", manifest.as_bytes()), ("wasm", wasm)]),
        };
        http::request(self.control, from, "PUT", &target, &[("content-type", &kind), ("connection", "close")], &body)
    }

    /// Deploys WebAssembly text, which must be taken.
    pub(crate) fn deploy_wat(&self, name: &str, wat: &str, manifest: &str) -> anyhow::Result<Reply> {
        let reply = self.deploy(HOME, name, &crate::guests::wasm(wat)?, manifest)?;
        ensure!(matches!(reply.status, 200 | 201), "the deploy of {name}: {} {}", reply.status, reply.text());
        Ok(reply)
    }

    /// All that the control port says about a function.
    pub(crate) fn inspect(&self, name: &str) -> anyhow::Result<Value> {
        let reply = self.ask("GET", &format!("/v1/functions/{name}"), b"")?;
        ensure!(reply.status == 200, "inspect {name}: {}", reply.key());
        reply.json()
    }

    /// The text of its metrics. Patient: an attack on the control port may have left no place for this one.
    pub(crate) fn metrics(&self) -> anyhow::Result<String> {
        let began = Instant::now();
        loop {
            match self.ask("GET", "/metrics", b"") {
                Ok(reply) if reply.status == 200 => return Ok(reply.text()),
                Ok(reply) if began.elapsed() > http::PATIENCE => bail!("/metrics: {}", reply.key()),
                Err(error) if began.elapsed() > http::PATIENCE => return Err(error),
                Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// The value of one metric; 0 if it is not there.
    pub(crate) fn metric(&self, name: &str) -> anyhow::Result<u64> {
        Ok(value(&self.metrics()?, name))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already; either way it is gone afterwards.
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The value of a metric in a text of them; 0 if it is not there.
pub(crate) fn value(metrics: &str, name: &str) -> u64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// Metrics of one family by their first label.
pub(crate) fn family(metrics: &str, name: &str) -> Vec<(String, u64)> {
    let of = |line: &str| {
        let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.split_once("} ")?;
        Some((labels.split('"').nth(1)?.to_owned(), value.parse().ok()?))
    };
    metrics.lines().filter_map(of).collect()
}
