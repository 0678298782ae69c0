//! Whether a snapshot was taken with the secrets as they are, and another one if not.
//!
//! Owns the question, asked before each start of a function whose initialisation may read secrets, and that concurrent starts wait for one
//! build. Knows nothing about how a build is made: `deploy` does, and gives [`Retake`] at the start of the node. Invariant: nothing starts from
//! a snapshot that has a value in it which is not the secret's any more, but that a file which others changed may go unnoticed for
//! a second (`looked.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tokio::task::AbortHandle;

use super::Dispatcher;
use super::catalog::Function;
use super::functions::Key;
use super::place::no_place;
use super::templates::{COMPILE_WAIT, blocking};
use crate::fault::{Code, Fault};
use crate::id::{Digest, FunctionName, SecretName, TenantId};
use crate::manifest::SnapshotMode;
use crate::telemetry::logs::{Level, LogSink};

/// How long a function whose initialisation failed with some secrets is not initialised with the same ones again, from its end on.
const PAUSE: Duration = Duration::from_secs(30);
/// The same where what is wrong is the node's own: room, or a file.
const PAUSE_OF_NODE: Duration = Duration::from_secs(10);
/// Functions that are initialised again at once when a secret changes; others are when they are asked.
const EAGER_MAX: usize = 16;
/// What that may leave in its log, in bytes.
const LOG_BYTES_MAX: u64 = 4 << 10;

/// Builds the live revision of a function again, and makes that live.
pub type Retake = Box<dyn Fn(TenantId, FunctionName) -> BoxFuture<'static, Result<(), Fault>> + Send + Sync>;

type Building = Shared<BoxFuture<'static, Result<(), Fault>>>;

/// The builds under way, and those that failed lately.
pub(super) struct Retakes {
    retake: OnceLock<Retake>,
    attempts: Mutex<HashMap<Key, Attempt>>,
    /// What times of looks are counted from.
    since: Instant,
}

#[derive(Clone)]
struct Attempt {
    /// Digest of the secrets that were there when it began.
    of: Digest,
    began: Instant,
    /// When it ended, and for how long that is remembered.
    ended: Option<(Instant, Duration)>,
    task: AbortHandle,
    building: Building,
}

impl Attempt {
    /// Whether another one need not begin: it goes on, or it failed a moment ago with the same secrets.
    fn will_do(&self, secrets: Digest) -> bool {
        !self.task.is_finished() || (self.of == secrets && self.is_recent())
    }

    fn is_recent(&self) -> bool {
        // Of one that was ended from outside it is not known when.
        let (at, pause) = self.ended.unwrap_or((self.began, PAUSE));
        at.elapsed() < pause
    }
}

impl Default for Retakes {
    fn default() -> Self {
        Self { retake: OnceLock::new(), attempts: Mutex::default(), since: Instant::now() }
    }
}

impl Retakes {
    fn attempts(&self) -> MutexGuard<'_, HashMap<Key, Attempt>> {
        // Whole after every statement that changes it.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Retakes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retakes").field("attempts", &self.attempts().len()).finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Says how a build is made again. Only the first call counts.
    pub fn retake_by(&self, retake: Retake) {
        // A second one would do the same.
        let _first = self.0.retakes.retake.set(retake);
    }

    /// A secret has changed: what is in memory and had it in its initialisation is initialised again. Others are when they are asked. Blocks;
    /// inside a tokio runtime.
    pub fn secret_changed(&self, tenant: &TenantId, name: &SecretName) {
        let reads = |function: &&Arc<Function>| {
            function.revision.manifest.grants.secrets.iter().any(|grant| grant.init && grant.name == *name)
        };
        let functions: Vec<_> = self.0.functions.catalog().functions(tenant).filter(reads).take(EAGER_MAX).cloned().collect();
        for function in functions {
            // What fails here fails again for whoever asks, and is said then.
            if let Ok(Some(secrets)) = self.worth_building(&function) {
                drop(self.build_again(&function, secrets));
            }
        }
    }

    /// Digest of the secrets as they are, if the snapshot of a function was taken with others, or if there is none where there might be one with
    /// these.
    fn worth_building(&self, function: &Function) -> Result<Option<Digest>, Fault> {
        let revision = &function.revision;
        match revision.snapshot {
            None if revision.manifest.snapshot.mode == SnapshotMode::Auto => {
                function.environment.secrets.digest_of_init(&sink(self, function))
            }
            _ => self.stale(function),
        }
    }

    /// The function itself, or what became of it once its initialisation has read the secrets as they are.
    ///
    /// # Errors
    /// `secret-unavailable` if one is missing, if the initialisation fails with them, or if it takes longer than a request waits;
    /// `concurrency` if as many wait for it as may run and wait.
    pub(super) async fn current(&self, function: &Arc<Function>) -> Result<Arc<Function>, Fault> {
        let until = tokio::time::Instant::now() + COMPILE_WAIT;
        let mut function = function.clone();
        // Twice, because they may change while it is built.
        for _ in 0..2 {
            let Some(secrets) = self.look(&function).await? else { return Ok(function) };
            let Attempt { of, building, .. } = self.build_again(&function, secrets);
            let ended = {
                let _aside = function.admission.aside().map_err(|error| no_place(&function, error))?;
                tokio::time::timeout_at(until, building).await
            };
            match ended {
                // What failed may have begun before they changed.
                Ok(Err(fault)) if of == secrets => return Err(fault),
                Ok(_) => {}
                Err(_) => break,
            }
            function = self.function(&function.tenant, &function.name)?;
        }
        match self.look(&function).await? {
            None => Ok(function),
            Some(_) => {
                let detail = "a secret has changed, and the function is being initialised again, which takes a while";
                Err(Fault::new(Code::SecretUnavailable, detail).retry_after(COMPILE_WAIT).hint("try again; it goes on"))
            }
        }
    }

    /// As [`Dispatcher::stale`], and not asked again while the answer is good.
    ///
    /// # Cost
    /// One load and one look at the clock while it is; else a turn of a thread that may block.
    async fn look(&self, function: &Arc<Function>) -> Result<Option<Digest>, Fault> {
        if !function.depends_on_secrets() {
            return Ok(None);
        }
        let (looked, secrets) = (&function.looked, &function.environment.secrets);
        let since = || self.0.retakes.since.elapsed();
        if looked.is_good(since(), secrets.changes()) {
            return Ok(None);
        }
        // It is never closed. Held while another thread reads, so that a crowd that comes then waits for one reading and not for a thousand.
        let came = since();
        let _turn = looked.turn.acquire().await.map_err(Fault::internal)?;
        // Before the reading: a change that comes while it goes on makes it worth nothing.
        let (began, changes) = (since(), secrets.changes());
        if looked.is_good(began, changes) {
            return Ok(None);
        }
        if let Some(found) = looked.bad_since(came, changes) {
            return found;
        }
        let (this, of) = (self.clone(), function.clone());
        let found = blocking(move || this.stale(&of)).await?;
        match &found {
            Ok(None) => looked.found_good(began, changes),
            bad => looked.found_bad(began, changes, bad.clone()),
        }
        found
    }

    /// Digest of the secrets as they are, if the snapshot of a function was taken with others. Blocks.
    fn stale(&self, function: &Function) -> Result<Option<Digest>, Fault> {
        let Some(taken) = function.revision.snapshot.as_ref().and_then(|snapshot| snapshot.secrets) else { return Ok(None) };
        let now = function.environment.secrets.digest_of_init(&sink(self, function))?;
        Ok(now.filter(|now| *now != taken))
    }

    /// The one build that all who want it wait for. It goes on without them.
    fn build_again(&self, function: &Arc<Function>, secrets: Digest) -> Attempt {
        let key = (function.tenant.clone(), function.name.clone());
        let mut attempts = self.0.retakes.attempts();
        if let Some(attempt) = attempts.get(&key).filter(|attempt| attempt.will_do(secrets)) {
            return attempt.clone();
        }
        attempts.retain(|_, attempt| !attempt.task.is_finished() || attempt.is_recent());
        let (this, function, entry) = (self.clone(), function.clone(), key.clone());
        let task = tokio::spawn(async move {
            let made = match this.0.retakes.retake.get() {
                Some(retake) => retake(entry.0.clone(), entry.1.clone()).await,
                None => Err(Fault::new(Code::Draining, "the node is shutting down")),
            };
            let made = made.map_err(|fault| this.not_built(&function, fault));
            let mut attempts = this.0.retakes.attempts();
            // What may be over in a moment is not remembered.
            match made.as_ref().err().map(pause_after).filter(|pause| !pause.is_zero()) {
                None => drop(attempts.remove(&entry)),
                Some(pause) => {
                    if let Some(attempt) = attempts.get_mut(&entry) {
                        attempt.ended = Some((Instant::now(), pause));
                    }
                }
            }
            drop(attempts);
            made
        });
        let handle = task.abort_handle();
        let building = async move { task.await.unwrap_or_else(|error| Err(lost(error))) }.boxed().shared();
        let attempt = Attempt { of: secrets, began: Instant::now(), ended: None, task: handle, building };
        attempts.insert(key, attempt.clone());
        attempt
    }

    /// The answer to clients when an initialisation failed. What it said is for the function's log.
    fn not_built(&self, function: &Function, fault: Fault) -> Fault {
        match fault.code {
            Code::Overloaded | Code::Draining | Code::NotFound => return fault,
            Code::StorageFull | Code::Damaged | Code::Internal => {
                let text = format!("a secret has changed, and the function cannot be built with it: {}", fault.detail);
                sink(self, function).host(Level::Error, text);
                return fault.retry_after(PAUSE_OF_NODE);
            }
            _ => {}
        }
        let text = format!("a secret has changed, and the function cannot be initialised with it: {}", fault.detail);
        sink(self, function).host(Level::Error, text);
        let fault = Fault::new(Code::SecretUnavailable, "a secret has changed, and the function cannot be initialised with it");
        fault.retry_after(PAUSE).hint("its log says why: hob logs NAME; correct the secret, or deploy it again")
    }
}

/// For how long what ended so is not tried again with the same secrets.
fn pause_after(fault: &Fault) -> Duration {
    match fault.code {
        Code::SecretUnavailable => PAUSE,
        Code::StorageFull | Code::Damaged | Code::Internal => PAUSE_OF_NODE,
        _ => Duration::ZERO,
    }
}

fn lost(error: tokio::task::JoinError) -> Fault {
    match error.is_cancelled() {
        true => Fault::new(Code::Draining, "the node is shutting down"),
        false => Fault::internal(error),
    }
}

fn sink(dispatcher: &Dispatcher, function: &Function) -> LogSink {
    LogSink::new(function.log.clone(), dispatcher.next_id(), function.revision.number, LOG_BYTES_MAX)
}
