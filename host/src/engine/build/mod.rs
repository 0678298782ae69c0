//! Builds: a child process that checks and compiles what a tenant uploaded.
//!
//! Owns the child's life: its walls, its time, and what its end means. The node that serves never compiles or parses deep
//! structure of tenant bytes itself. Invariant: whatever the child does, this side gets a report or a fault in bounded time.

mod caps;
pub mod child;
mod componentize;
mod detect;
mod signature;

pub use caps::{CAPS, Cap};
pub use detect::check_magic;

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::config;
use crate::fault::{Code, Fault};
use crate::meter::Admission;

use super::Shape;

/// What the child says on its standard output, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It is a function; native code is in the output file.
    Built(Built),
    /// It is not.
    Refused(Refused),
    /// There was no room to write the native code.
    NoSpace,
}

/// A function that was compiled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Built {
    /// Text of its [`Shape`].
    pub shape: String,
    /// What its memories have at the start, in bytes.
    pub memory_bytes_min: u64,
}

impl Built {
    /// Kind and lane.
    ///
    /// # Errors
    /// Never for a report of this version's child.
    pub fn shape(&self) -> Result<Shape, super::UnknownKind> {
        self.shape.parse()
    }
}

/// Why bytes are no function that runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Whether a cap was passed, rather than the module being unfit.
    pub over_cap: bool,
    /// What was found and what was expected.
    pub detail: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Refused {
    fn unfit(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { over_cap: false, detail: detail.into(), hint: Some(hint.into()) }
    }

    /// As the answer to whoever uploaded.
    #[must_use]
    pub fn into_fault(self) -> Fault {
        let code = if self.over_cap { Code::ModuleOverCap } else { Code::NotDeployable };
        Fault { hint: self.hint.map(Into::into), ..Fault::new(code, self.detail) }
    }
}

/// An error of a library as part of a sentence: on one line, and not without end.
fn sentence(error: std::fmt::Arguments<'_>) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

/// The name by which a program's `main` knows that it is to be the child; see [`child::run_if_child`].
pub const CHILD_COMMAND: &str = "build-child";

/// Most bytes of a report that are read.
const REPORT_LEN_MAX: u64 = 64 << 10;

/// Starts builds, as many at once as are allowed.
#[derive(Debug)]
pub struct Builder {
    program: PathBuf,
    config: config::Build,
    admission: Admission,
}

impl Builder {
    /// `program`: a binary whose `main` calls [`child::run_if_child`] first; usually this very process, `/proc/self/exe`.
    #[must_use]
    pub fn new(program: PathBuf, config: config::Build) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let at_once = if config.concurrency == 0 { cores } else { config.concurrency };
        // A build that waits is bounded by those before it, each by its own wall: the queue's length is the real bound.
        let wait = config.wall.0.saturating_mul(u32::try_from(config.queue + 1).unwrap_or(u32::MAX));
        let admission = Admission::new(at_once, config.queue, wait);
        Self { program, config, admission }
    }

    /// Checks and compiles `wasm` into `output`, which must not exist.
    ///
    /// # Errors
    /// `not-deployable` and `module-over-cap` with what the child found, `build-over-limit` when it passed its time or memory,
    /// `overloaded` when the queue is full.
    /// # Cancellation
    /// Dropping the future kills the child. `output` may be left behind half-written.
    pub async fn build(&self, wasm: File, output: &Path) -> Result<Built, Fault> {
        let _place = self.admission.admit().await.map_err(|_| {
            let fault = Fault::new(Code::Overloaded, "too many builds are waiting").retry_after(Duration::from_secs(5));
            fault.hint("try again, or raise build.queue")
        })?;
        let walls = child::Walls { memory_bytes: self.config.memory.0, cpu_seconds: self.config.cpu.0.as_secs() };
        let mut command = Command::new(&self.program);
        command.arg(CHILD_COMMAND).args(walls.to_args()).arg(output).env_clear().current_dir("/");
        // The allocator would else reserve more at once than the walls allow; the number is KiB.
        command.env("MIMALLOC_ARENA_RESERVE", "32768");
        command.stdin(Stdio::from(wasm)).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(Fault::internal)?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let talk = async {
            let read = async |pipe: Option<&mut (dyn tokio::io::AsyncRead + Unpin + Send)>| {
                let mut text = Vec::new();
                if let Some(pipe) = pipe {
                    pipe.take(REPORT_LEN_MAX).read_to_end(&mut text).await?;
                }
                std::io::Result::Ok(text)
            };
            let (mut stdout, mut stderr) = (stdout, stderr);
            let (report, errors) =
                tokio::try_join!(read(stdout.as_mut().map(|pipe| pipe as _)), read(stderr.as_mut().map(|pipe| pipe as _)))?;
            std::io::Result::Ok((report, errors, child.wait().await?))
        };
        match tokio::time::timeout(self.config.wall.0, talk).await {
            Ok(Ok((report, errors, status))) => self.conclude(&report, &errors, status),
            Ok(Err(error)) => Err(Fault::internal(error)),
            Err(_) => Err(over_limit(format!("it took longer than {:?}", self.config.wall.0))),
        }
    }

    /// What a child's end means.
    fn conclude(&self, report: &[u8], errors: &[u8], status: ExitStatus) -> Result<Built, Fault> {
        if status.success() {
            return match serde_json::from_slice(report) {
                Ok(Report::Built(built)) => Ok(built),
                Ok(Report::Refused(refused)) => Err(refused.into_fault()),
                Ok(Report::NoSpace) => Err(Fault::new(Code::StorageFull, "there is no room for the native code")
                    .hint("remove functions that are not needed")),
                Err(error) => Err(Fault::internal(format!("the build's report cannot be read: {error}"))),
            };
        }
        let errors = String::from_utf8_lossy(errors);
        let signal = status.signal().and_then(rustix::process::Signal::from_named_raw);
        match signal {
            Some(rustix::process::Signal::XCPU | rustix::process::Signal::KILL) => {
                Err(over_limit(format!("it used more than {:?} of processor time", self.config.cpu.0)))
            }
            Some(rustix::process::Signal::ABORT) if errors.contains("memory allocation") => {
                Err(over_limit(format!("it needed more than {} bytes of memory", self.config.memory.0)))
            }
            _ => {
                // The compiler met its end in the child, as it may. Its last words are for the operator.
                tracing::warn!(%status, errors = %errors.trim_end(), "a build ended unexpectedly");
                let fault = Fault::new(Code::NotDeployable, "the compiler cannot cope with this module");
                Err(fault.hint("try another optimisation level of your compiler, and report it: the node's log has the details"))
            }
        }
    }
}

fn over_limit(detail: String) -> Fault {
    Fault::new(Code::BuildOverLimit, format!("the build was ended: {detail}"))
        .hint("make the module smaller, or raise the limits in [build] of the node")
}
