//! The node's side of the helper: builds are started, waited for and killed by messages.
//!
//! Owns the socket to the helper and who waits for which build. Knows nothing about jobs and reports. Invariant: every build that was started
//! is told its end, if only that the helper is gone; one that nobody waits for any more is killed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::child::Walls;
use super::helper::{self, Answer, Request};
use crate::config::Sandbox;
use crate::process::Reach;

/// A helper that was started and is not used yet.
#[derive(Debug)]
pub struct Helper {
    socket: OwnedFd,
    /// `None` for one on a thread of this process.
    process: Option<Child>,
}

impl Helper {
    /// The program that this process runs. The kernel resolves this to the very file, whatever lies under its name by now.
    pub const SELF: &str = "/proc/self/exe";

    /// Starts `program`, usually [`Helper::SELF`], as a helper, whose children run the same file. To be called before this process is bound by
    /// walls: the helper has its own, and reaches what `reach` says.
    ///
    /// # Errors
    /// Those of the system.
    pub fn start(program: &Path, sandbox: Sandbox, reach: &Reach) -> io::Result<Self> {
        let (socket, other) = pair()?;
        let mut command = Command::new(program);
        command.arg(helper::HELPER_COMMAND).arg(sandbox.as_str()).args(reach.to_args()).env_clear().current_dir("/");
        // What a terminal sends to this process, which drains then, is not for the helper.
        command.process_group(0).stdin(Stdio::from(other)).stdout(Stdio::null());
        let process = command.spawn()?;
        Ok(Self { socket, process: Some(process) })
    }

    /// A helper on a thread, whose children run `program`.
    #[cfg(test)]
    pub(crate) fn on_thread(program: std::path::PathBuf) -> Self {
        let (socket, other) = pair().unwrap();
        std::thread::spawn(move || helper::serve(other, &program, Sandbox::Off).unwrap());
        Self { socket, process: None }
    }

    /// The same, and what ends it as a signal would.
    #[cfg(test)]
    pub(super) fn that_can_be_stopped(program: std::path::PathBuf) -> (Self, impl FnOnce()) {
        let helper = Self::on_thread(program);
        let socket = helper.socket.try_clone().unwrap();
        (helper, move || shutdown(&socket, Shutdown::Both).unwrap())
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Starts builds.
#[derive(Debug)]
pub(super) struct Builds(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: OwnedFd,
    next: AtomicU64,
    /// `None` once the helper is gone.
    waiting: Mutex<Option<HashMap<u64, oneshot::Sender<End>>>>,
}

/// How a build's process ended.
type End = io::Result<(ExitStatus, Duration)>;

impl Shared {
    /// No code panics while it holds the lock.
    fn waiting(&self) -> MutexGuard<'_, Option<HashMap<u64, oneshot::Sender<End>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears of ends until the helper is gone.
    fn listen(&self) {
        loop {
            let answer = match helper::receive(&self.socket) {
                Ok(Some((bytes, _))) => Answer::from_bytes(&bytes),
                Ok(None) => None,
                Err(error) => {
                    tracing::error!(%error, "the helper for builds cannot be heard");
                    None
                }
            };
            let (id, end) = match answer {
                Some(Answer::Ended(id, status, cpu)) => (id, Ok((ExitStatus::from_raw(status), cpu))),
                Some(Answer::Failed(id, errno)) => (id, Err(io::Error::from_raw_os_error(errno))),
                None => {
                    // Whoever waits is told by the end of the channel.
                    self.waiting().take();
                    return;
                }
            };
            let told = self.waiting().as_mut().and_then(|waiting| waiting.remove(&id));
            // Nobody waits for a build that was killed because it was dropped.
            let _received = told.map(|told| told.send(end));
        }
    }
}

impl Drop for Builds {
    fn drop(&mut self) {
        // The helper takes it as the end of this process, and the thread here as that of the helper. It fails only if the helper is gone.
        let _gone = shutdown(&self.0.socket, Shutdown::Both);
    }
}

impl Builds {
    /// Takes a helper into use.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn new(helper: Helper) -> io::Result<Self> {
        let Helper { socket, process } = helper;
        let shared = Arc::new(Shared { socket, next: AtomicU64::new(0), waiting: Mutex::new(Some(HashMap::new())) });
        let listener = shared.clone();
        let body = move || {
            listener.listen();
            let Some(mut process) = process else { return };
            match process.wait() {
                Ok(status) if status.success() => {}
                Ok(status) => {
                    tracing::error!(%status, "the helper for builds is gone: builds get 503 until hob is started again")
                }
                Err(error) => tracing::error!(%error, "the helper for builds cannot be waited for"),
            }
        };
        std::thread::Builder::new().name("hob-builds".into()).spawn(body)?;
        Ok(Self(shared))
    }

    /// Whether there is a helper still.
    pub(super) fn are_possible(&self) -> bool {
        self.0.waiting().is_some()
    }

    /// Starts one that writes to these files. To be called in a tokio runtime.
    ///
    /// # Errors
    /// `None` when the helper is gone, else those of the system.
    pub(super) fn start(&self, walls: Walls, native: &File, snapshot: &File) -> io::Result<Option<Build>> {
        let (stdin, their_stdin) = pipe::pipe()?;
        let (their_stdout, stdout) = pipe::pipe()?;
        let (their_stderr, stderr) = pipe::pipe()?;
        let (their_stdin, their_stdout, their_stderr) =
            (their_stdin.into_blocking_fd()?, their_stdout.into_blocking_fd()?, their_stderr.into_blocking_fd()?);
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (tell, told) = oneshot::channel();
        match self.0.waiting().as_mut() {
            Some(waiting) => _ = waiting.insert(id, tell),
            None => return Ok(None),
        }
        let descriptors = [their_stdin.as_fd(), their_stdout.as_fd(), their_stderr.as_fd(), native.as_fd(), snapshot.as_fd()];
        // Few bytes, to a process that does nothing else than read them.
        if let Err(error) = helper::send(&self.0.socket, &Request::Start(id, walls).to_bytes(), &descriptors) {
            self.0.waiting().as_mut().map(|waiting| waiting.remove(&id));
            return if error.kind() == io::ErrorKind::BrokenPipe { Ok(None) } else { Err(error) };
        }
        let ending = Ending { shared: self.0.clone(), id, told, is_over: false };
        Ok(Some(Build { stdin, stdout, stderr, ending }))
    }
}

/// A build that runs.
#[derive(Debug)]
pub(super) struct Build {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) stderr: pipe::Receiver,
    pub(super) ending: Ending,
}

/// The end of a build, which dropping this brings about.
#[derive(Debug)]
pub(super) struct Ending {
    shared: Arc<Shared>,
    id: u64,
    told: oneshot::Receiver<End>,
    is_over: bool,
}

impl Ending {
    /// Waits for it; `None` when the helper is gone, and the build with it.
    ///
    /// # Errors
    /// It could not be started.
    pub(super) async fn wait(&mut self) -> io::Result<Option<(ExitStatus, Duration)>> {
        if self.is_over {
            return Ok(None);
        }
        let end = (&mut self.told).await;
        self.is_over = true;
        end.ok().transpose()
    }

    /// Ends it. [`Ending::wait`] says when it has.
    pub(super) fn kill(&self) {
        // A helper that is gone has taken its children along.
        let _gone = helper::send(&self.shared.socket, &Request::Kill(self.id).to_bytes(), &[]);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill();
        }
    }
}
