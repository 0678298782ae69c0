//! Builds: a child process that checks, initialises and compiles what a tenant uploaded.
//!
//! Owns the child's life: its walls, its time, and what its end means. The node that serves never compiles or parses deep
//! structure of tenant bytes itself. Invariant: whatever the child does, this side gets a report or a fault in bounded time.

/// What a manifest says so that no snapshot is taken, in both of its spellings: for advice.
macro_rules! off {
    () => {
        "snapshot = \"off\" in hob.toml, or mode = \"off\" in its [snapshot]"
    };
}

mod builds;
mod bulk;
mod caps;
pub mod child;
mod componentize;
mod detect;
mod helper;
mod job;
mod machine;
mod native;
mod rehearsal;
mod said;
mod snapshot;
mod signature;
mod turns;

pub use builds::Helper;
pub use caps::{CAPS, Cap};
pub use detect::check_magic;
pub use job::{Job, JobSecret, JobSecrets};
pub(super) use machine::memory_bytes;
pub use said::Said;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use builds::{Build, Builds};
use turns::{Full, Turns};

use crate::artifacts::is_full;
use crate::config;
use crate::fault::{Code, Fault};
use crate::id::{Digest, TenantId};
use crate::limits::{Limit, Limits};
use crate::manifest::{Randomness, SnapshotMode};

use super::Shape;

/// What the child says on its standard output, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It is a function; native code is in the output file.
    Built(Built),
    /// It is not.
    Refused(Refused),
    /// It may be one: the system failed, or the node's own bytes cannot be read.
    Failed {
        /// Number of the system's error, if it was one.
        errno: Option<i32>,
        /// What happened, for the operator.
        error: String,
    },
}

/// A function that was compiled.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Built {
    /// Text of its [`Shape`].
    pub shape: String,
    /// What its memories have at the start, in bytes.
    pub memory_bytes_min: u64,
    /// Where in the native code its memory image lies.
    pub image: Range<u64>,
    /// The snapshot that was taken; its module is in the other output file.
    pub snapshot: Option<Kept>,
    /// What its author should know: why there is no snapshot, what is odd about it.
    pub notes: Vec<String>,
    /// What it said during initialisation and warm-up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<Said>,
    /// Whether it was started.
    pub tried: Tried,
    /// Under which ceilings.
    pub limits: Limits,
}

/// Whether a function was started in its build, and for whom that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tried {
    /// It was not.
    No,
    /// It asked for nothing outside of its memory: it starts under any name, with any arguments and variables.
    Alone,
    /// It may start otherwise with other arguments, variables or files than those of this [`Job::environment`].
    With(Digest),
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Most bytes of guest memory that there were when it was taken, tables included.
    pub memory_bytes: u64,
}

/// Where a build writes. Neither file may exist.
#[derive(Debug, Clone)]
pub struct Outputs {
    /// Native code.
    pub native: PathBuf,
    /// The module that a snapshot became, compressed; only if one was taken.
    pub snapshot: PathBuf,
}

impl Built {
    /// What is kept of it beside its native code.
    ///
    /// # Errors
    /// Never for what JSON can hold.
    pub fn to_keep(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Self { log: Vec::new(), ..self.clone() })
    }

    /// Whether doing `job` to the same module would come to the same. Its snapshot's inputs are the caller's to compare.
    #[must_use]
    pub fn serves(&self, job: &Job) -> bool {
        let snapshot = &job.snapshot;
        let randomness_is_fine = self.notes.is_empty() || snapshot.randomness == Randomness::Warn;
        let starts = match self.tried {
            Tried::No => false,
            Tried::Alone => true,
            Tried::With(environment) => environment == job.environment(),
        };
        match snapshot.mode {
            SnapshotMode::Off => self.snapshot.is_none() && self.memory_bytes_min <= job.limits.get(Limit::Memory),
            _ if self.snapshot.is_some() => self.limits == job.limits && randomness_is_fine,
            SnapshotMode::Auto => starts && self.notes.is_empty() && snapshot.warmup.is_empty() && self.limits == job.limits,
            SnapshotMode::Required => false,
        }
    }

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
    /// What it said during initialisation and warm-up, and at its start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<Said>,
}

impl Refused {
    fn unfit(detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { over_cap: false, detail: detail.into(), hint: Some(hint.into()), log: Vec::new() }
    }

    /// As the answer to whoever uploaded, with the last of what the guest said: there is no revision whose log would have it.
    #[must_use]
    pub fn into_fault(self) -> Fault {
        let code = if self.over_cap { Code::ModuleOverCap } else { Code::NotDeployable };
        let detail = match said::last_words(&self.log) {
            Some(words) => format!("{}; it said: {words}", self.detail),
            None => self.detail,
        };
        Fault { hint: self.hint.map(Into::into), ..Fault::new(code, detail) }
    }
}

/// An error of a library as part of a sentence: on one line, and not without end.
fn sentence(error: std::fmt::Arguments<'_>) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ").chars().take(600).collect()
}

/// The name by which a program's `main` knows that it is to be the child; see [`child::run_if_child`].
pub const CHILD_COMMAND: &str = "build-child";

/// Most bytes of a report that are read: what a guest says in its build is 64 KiB, which JSON may write six times as long.
const REPORT_LEN_MAX: u64 = 1 << 20;

/// Starts builds, as many at once as are allowed.
#[derive(Debug)]
pub struct Builder {
    builds: Builds,
    config: config::Build,
    turns: Arc<Turns>,
}

impl Builder {
    /// Builds by `helper`, whose program's `main` calls [`child::run_if_child`] first.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(helper: Helper, config: config::Build) -> std::io::Result<Self> {
        let at_once = if config.concurrency == 0 { cores() } else { config.concurrency };
        let turns = Turns::new(at_once, config.queue);
        Ok(Self { builds: Builds::new(helper)?, config, turns })
    }

    /// Whether builds can be made: not once the helper is gone, until the node is started again.
    #[must_use]
    pub fn is_able(&self) -> bool {
        self.builds.are_possible()
    }

    /// Longest time of one build once it is its turn.
    #[must_use]
    pub fn wall(&self) -> Duration {
        self.config.wall.0
    }

    /// Makes of `wasm` what `job` says, into `outputs`, when it is the tenant's turn. `fits`: whether there is room for the outputs, asked when they are
    /// there; where there is none a snapshot that need not be is left out.
    ///
    /// # Errors
    /// `not-deployable` and `module-over-cap` with what the child found, `build-over-limit` when it passed its time or memory,
    /// `overloaded` when the queue is full, `storage-full`.
    /// # Cancellation
    /// Dropping the future kills the child. The outputs may be left behind half-written.
    pub async fn build(
        &self,
        tenant: &TenantId,
        mut wasm: File,
        job: Job,
        outputs: &Outputs,
        fits: impl Fn(&Built) -> bool,
    ) -> Result<Built, Fault> {
        // How long it waits is bounded by the builds before it, each of which has its wall.
        let _turn = self.turns.take(tenant).await.map_err(|full| {
            let detail = match full {
                Full::Queue => "too many builds are waiting".into(),
                Full::Tenant(count) => format!("{count} builds of the tenant are waiting, and there may be no more"),
            };
            let fault = Fault::new(Code::Overloaded, detail).retry_after(Duration::from_secs(5));
            fault.hint("try again, or raise build.queue")
        })?;
        let job = Job { init: self.config.init.0, snapshot_bytes_max: self.config.snapshot_bytes_max.0, ..job };
        let ran = self.run(&wasm, &job, outputs).await.and_then(|built| match (fits(&built), &built.snapshot) {
            (true, _) => Ok(built),
            (false, Some(_)) => Err(Failed::Ended(full())),
            (false, None) => Err(Failed::Told(full())),
        });
        let built = match ran {
            // What ended the process may have been the guest's initialisation, which can be left to each start, or its snapshot.
            Err(Failed::Ended(fault)) if job.snapshot.mode == SnapshotMode::Auto && !job.restored => {
                for output in [&outputs.native, &outputs.snapshot] {
                    remove(output)?;
                }
                wasm.seek(SeekFrom::Start(0)).map_err(Fault::internal)?;
                let mut plain = job;
                plain.snapshot.mode = SnapshotMode::Off;
                let mut built = match self.run(&wasm, &plain, outputs).await {
                    Ok(built) => built,
                    // It says what is wrong, with the module or with the node's room, where the first only ended.
                    Err(Failed::Told(told)) if told.code != Code::Internal => return Err(told),
                    Err(Failed::Told(bug)) => {
                        tracing::error!(%bug, "a build without a snapshot, after one that ended, failed");
                        return Err(fault);
                    }
                    Err(Failed::Ended(_)) => return Err(fault),
                };
                let advice = fault.hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                built.notes.push(format!("no snapshot: {}{advice}", fault.detail));
                built
            }
            done => done.map_err(|(Failed::Told(fault) | Failed::Ended(fault))| fault)?,
        };
        if built.snapshot.is_none() {
            remove(&outputs.snapshot)?;
        }
        Ok(built)
    }

    /// Data memory of a build: what the compiler needs, and five times what the function may have, for a snapshot exists in up to
    /// five copies on its way (`docs/decisions/0010-snapshots.md`).
    fn memory_bytes(&self, job: &Job) -> Memory {
        let wanted = self.config.memory.0.saturating_add(job.limits.get(Limit::Memory).saturating_mul(5));
        let max = self.config.memory_max.map_or_else(|| (machine::memory_bytes() / 2).max(self.config.memory.0), |max| max.0);
        // The child cannot have more than what this process was allowed, and keeps that.
        let allowed = getrlimit(Resource::Data).maximum.unwrap_or(u64::MAX);
        Memory { wanted, granted: wanted.min(max).min(allowed) }
    }

    async fn run(&self, wasm: &File, job: &Job, outputs: &Outputs) -> Result<Built, Failed> {
        let memory = self.memory_bytes(job);
        let walls = child::Walls { memory_bytes: memory.granted, cpu_seconds: self.config.cpu.0.as_secs() };
        let native = create(&outputs.native).map_err(|error| failed_by(&error, memory))?;
        let snapshot = create(&outputs.snapshot).map_err(|error| failed_by(&error, memory))?;
        let build = self.builds.start(walls, &native, &snapshot).map_err(|error| Fault::system(&error))?;
        drop((native, snapshot));
        let Build { stdin, mut stdout, mut stderr, mut ending } = build.ok_or_else(helper_is_gone)?;
        let (head, module) = (job.to_bytes().map_err(Fault::internal)?, wasm.try_clone().map_err(|error| Fault::system(&error))?);
        let talk = async {
            let write = async {
                let (mut pipe, mut module) = (stdin, tokio::fs::File::from_std(module));
                let written = async {
                    pipe.write_all(&head).await?;
                    tokio::io::copy(&mut module, &mut pipe).await?;
                    pipe.shutdown().await
                };
                match written.await {
                    // It has ended before it read all: its report or its status says why.
                    Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                    written => written,
                }
            };
            let read = async |pipe: &mut tokio::net::unix::pipe::Receiver| {
                let mut text = Vec::new();
                (&mut *pipe).take(REPORT_LEN_MAX).read_to_end(&mut text).await?;
                // A child that says more must not wait for somebody to listen.
                tokio::io::copy(pipe, &mut tokio::io::sink()).await?;
                std::io::Result::Ok(text)
            };
            let ((), report, errors) = tokio::try_join!(write, read(&mut stdout), read(&mut stderr))?;
            std::io::Result::Ok((report, errors, ending.wait().await?))
        };
        match tokio::time::timeout(self.config.wall.0, talk).await {
            Ok(Ok((report, errors, Some((status, cpu))))) => {
                tracing::debug!(%status, ?cpu, "a build ended");
                self.conclude(&report, &errors, status, memory)
            }
            Ok(Ok((.., None))) => Err(helper_is_gone().into()),
            Ok(Err(error)) => Err(Fault::system(&error).into()),
            Err(_) => {
                // Whoever builds next, with the same files it may be, is not to meet it.
                ending.kill();
                ending.wait().await.map_err(Fault::internal)?;
                Err(Failed::Ended(over_limit(format!("it took longer than {:?}", self.config.wall.0))))
            }
        }
    }

    /// What a child's end means.
    fn conclude(&self, report: &[u8], errors: &[u8], status: ExitStatus, memory: Memory) -> Result<Built, Failed> {
        if status.success() {
            return match serde_json::from_slice(report) {
                Ok(Report::Built(built)) => Ok(built),
                Ok(Report::Refused(refused)) => Err(refused.into_fault().into()),
                Ok(Report::Failed { errno, error }) => Err(failed(errno, &error, memory)),
                Err(error) => Err(Fault::internal(format!("the build's report cannot be read: {error}")).into()),
            };
        }
        let errors = String::from_utf8_lossy(errors);
        if status.code().is_some_and(|code| code != PANICKED) {
            return Err(Fault::internal(format!("the build process says: {}", errors.trim_end())).into());
        }
        let signal = status.signal().and_then(rustix::process::Signal::from_named_raw);
        Err(Failed::Ended(match signal {
            // The child ends at the first of its two limits of processor time, so at the second, where it would be killed, it is gone.
            Some(rustix::process::Signal::XCPU) => {
                over_limit(format!("it used more than {:?} of processor time", self.config.cpu.0))
            }
            Some(rustix::process::Signal::KILL) => {
                tracing::warn!("a build was killed from outside; look for the kernel's words about memory");
                let fault = Fault::new(Code::Overloaded, KILLED).retry_after(Duration::from_secs(5));
                fault.hint(
                    "try again when the node has more memory to spare, or lower build.concurrency and build.memory_max, so that all \
                     builds together fit",
                )
            }
            Some(rustix::process::Signal::ABORT) if errors.contains("memory allocation") => over_limit(memory.passed()),
            _ => {
                // The compiler met its end in the child, as it may. Its last words are for the operator.
                tracing::warn!(%status, errors = %errors.trim_end(), "a build ended unexpectedly");
                Fault::new(Code::NotDeployable, UNEXPECTED).hint(concat!(
                    "report it: the node's log has the details; until then try another optimisation level of your compiler, or ",
                    off!()
                ))
            }
        }))
    }
}

/// Why there is no report of something built.
enum Failed {
    /// The child said so, or it could not be asked.
    Told(Fault),
    /// The child met its end first, or the end of the disk.
    Ended(Fault),
}

impl From<Fault> for Failed {
    fn from(fault: Fault) -> Self {
        Self::Told(fault)
    }
}

/// What a failure of the system in a child means, or bytes of the node that it cannot read.
fn failed(errno: Option<i32>, error: &str, memory: Memory) -> Failed {
    let Some(errno) = errno else { return Fault::internal(format!("a build failed: {error}")).into() };
    let error = std::io::Error::from_raw_os_error(errno);
    if is_full(&error) {
        return Failed::Ended(full());
    }
    // The node may have memory left: mappings count against the child's own wall.
    if error.kind() == std::io::ErrorKind::OutOfMemory {
        return Failed::Ended(over_limit(memory.passed()));
    }
    tracing::warn!(%error, "a build failed");
    Fault::system(&error).into()
}

/// No room for the outputs. Without a snapshot there may be some.
fn full() -> Fault {
    let detail = "there is no room for what the build makes: native code, and with a snapshot the initialised module";
    Fault::new(Code::StorageFull, detail).hint("remove functions that are not needed")
}

/// The same of an output that this process makes for a child.
fn failed_by(error: &std::io::Error, memory: Memory) -> Failed {
    failed(error.raw_os_error(), &error.to_string(), memory)
}

/// Makes a file for a child to write.
fn create(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Removes a file, if it is there, and gives its room back at once: a child that has just ended may hold it a moment longer, by the rules of its
/// walls.
fn remove(path: &Path) -> Result<(), Fault> {
    match File::options().write(true).truncate(true).open(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(Fault::internal(error)),
        _ => {}
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Fault::internal(error)),
        _ => Ok(()),
    }
}

/// The helper ended, which nothing but a signal from outside or a bug of ours brings about.
fn helper_is_gone() -> Fault {
    let fault = Fault::new(Code::Overloaded, "the node can make no builds: the process that starts them has ended");
    fault.retry_after(Duration::from_secs(60)).hint("the operator has to start hob again; what is deployed goes on")
}

/// With what a process of Rust exits that panicked.
const PANICKED: i32 = 101;

/// What is said of a child that died of something else than its walls.
const UNEXPECTED: &str = "the build of this module ended unexpectedly: the compiler cannot cope with it";

/// What is said of a child that somebody else ended.
const KILLED: &str =
    "somebody else killed the build, most often the system, when the machine or the node's share of it is out of memory";

/// Data memory of one build, in bytes.
#[derive(Debug, Clone, Copy)]
struct Memory {
    wanted: u64,
    granted: u64,
}

impl Memory {
    fn passed(self) -> String {
        let Self { wanted, granted } = self;
        if wanted > granted {
            format!(
                "it needed more than {granted} bytes of memory; with the function's memory limit it would have had {wanted}, but \
                 build.memory_max of this node allows no more"
            )
        } else {
            format!("it needed more than {granted} bytes of memory")
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads of one build's compiler. Their stacks and what each works on count against its memory, and as many builds run at once as
/// there are cores: with 64 threads an interpreter cannot be built (`docs/decisions/0004-build-child.md`).
fn threads(cores: usize) -> usize {
    cores.clamp(1, 4)
}

fn over_limit(detail: String) -> Fault {
    Fault::new(Code::BuildOverLimit, format!("the build was ended: {detail}"))
        .hint("make the module smaller or its initialisation shorter, or raise the limits in [build] of the node")
}

#[cfg(test)]
mod tests;
