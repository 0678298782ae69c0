//! A daemon of a command's own: a child of this process on free ports, with its data in a temporary folder.
//!
//! Owns that nothing of it is left behind, also when the command is interrupted. Knows nothing about what is done with it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::failure::Exit;
use super::scratch::{self, Scratch};
use super::{Failure, interrupt};

/// How long the daemon may take to say that it is ready.
const START_MAX: Duration = Duration::from_secs(30);
/// How long it may take to drain: its own bound, and some.
const STOP_MAX: Duration = Duration::from_secs(40);

/// What an interrupt has to clean up.
#[derive(Debug, Default)]
struct Leftovers {
    folder: Option<PathBuf>,
    daemon: Option<Pid>,
    /// Whether that has begun.
    interrupted: bool,
}

/// Starts a daemon, does `work` with it, and stops it. Nothing is left behind. From then on SIGINT and SIGTERM end the process.
///
/// # Errors
/// That of `work`; that the daemon did not get ready, or did not stop as it should.
pub(super) fn with_own<T>(work: impl FnOnce(&Node) -> Result<T, Failure>) -> Result<T, Failure> {
    let leftovers = Arc::new(Mutex::new(Leftovers::default()));
    let at_signal = leftovers.clone();
    interrupt::on_signal(move || clean_up(&at_signal))?;
    let done = run(&leftovers, work);
    // What fails because the daemon was killed is not worth a word: the process is about to end with the signal's code.
    while lock(&leftovers).interrupted {
        std::thread::park();
    }
    done
}

fn run<T>(leftovers: &Mutex<Leftovers>, work: impl FnOnce(&Node) -> Result<T, Failure>) -> Result<T, Failure> {
    let scratch = Scratch::new().context("cannot make a temporary folder")?;
    lock(leftovers).folder = Some(scratch.path().to_owned());
    let node = Node::start(scratch.path())?;
    lock(leftovers).daemon = node.pid();
    let done = work(&node)?;
    let status = node.stop()?;
    lock(leftovers).daemon = None;
    match status.success() {
        true => Ok(done),
        false => Err(Failure::new(Exit::Failure, format!("the daemon did not stop as it should: {status}"))),
    }
}

fn lock(leftovers: &Mutex<Leftovers>) -> MutexGuard<'_, Leftovers> {
    // All fields are whole after every statement that changes them.
    leftovers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn clean_up(leftovers: &Mutex<Leftovers>) {
    let mut leftovers = lock(leftovers);
    leftovers.interrupted = true;
    leftovers.daemon.into_iter().for_each(interrupt::kill);
    leftovers.folder.iter().for_each(|folder| scratch::remove(folder));
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(super) struct Node {
    child: Child,
    /// Where functions answer, `HOST:PORT`.
    pub(super) addr: String,
    /// Where deploys go, `HOST:PORT`.
    pub(super) control: String,
    /// Its data directory.
    pub(super) data_dir: PathBuf,
    /// From its start to its first line.
    pub(super) took: Duration,
}

impl Node {
    /// Starts a daemon with its data under `scratch`, and waits until it is ready.
    fn start(scratch: &Path) -> anyhow::Result<Self> {
        let (log, data_dir) = (scratch.join("serve.log"), scratch.join("data"));
        let began = Instant::now();
        let mut child = Command::new("/proc/self/exe")
            .args(["serve", "-o", "json", "--addr", "127.0.0.1:0", "--control", "127.0.0.1:0", "--data-dir"])
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log).context("cannot make the daemon's log")?)
            .spawn()
            .context("cannot start the daemon")?;
        let stdout = child.stdout.take();
        let mut node = Self { child, addr: String::new(), control: String::new(), data_dir, took: Duration::ZERO };
        let words = || fs::read_to_string(&log).unwrap_or_default();
        let line = first_line(stdout).with_context(|| format!("the daemon did not get ready; it said: {}", words().trim()))?;
        let ready: serde_json::Value = serde_json::from_str(&line).context("the daemon's first line is not JSON")?;
        let text =
            |key: &str| ready[key].as_str().map(String::from).with_context(|| format!("the daemon's first line has no '{key}'"));
        (node.addr, node.control) = (text("addr")?, text("control")?);
        node.took = began.elapsed();
        Ok(node)
    }

    /// Its process id.
    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    /// Sends SIGTERM and waits until it has drained.
    fn stop(mut self) -> anyhow::Result<ExitStatus> {
        if let Some(pid) = self.pid() {
            kill_process(pid, Signal::TERM).context("cannot send SIGTERM to the daemon")?;
        }
        let began = Instant::now();
        while began.elapsed() < STOP_MAX {
            if let Some(status) = self.child.try_wait().context("cannot wait for the daemon")? {
                return Ok(status);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("the daemon did not stop within {STOP_MAX:?} of SIGTERM")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It has ended already when `stop` was called; else nobody needs it any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line of the daemon's output. A thread goes on reading, so that the pipe never fills.
fn first_line(stdout: Option<ChildStdout>) -> anyhow::Result<String> {
    let mut reader = BufReader::new(stdout.context("the daemon has no output")?);
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = reader.read_line(&mut line);
        // If nobody waits any more, nobody needs the line.
        let _ = sender.send(read.map(|_| line));
        let _ = std::io::copy(&mut reader, &mut std::io::sink());
    });
    let line = receiver.recv_timeout(START_MAX).context("it said nothing in time")?.context("its output cannot be read")?;
    if line.is_empty() {
        bail!("it ended");
    }
    Ok(line)
}
