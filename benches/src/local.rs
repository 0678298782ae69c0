//! A node in this process, and invocations of its functions through the same `Invoke` that serves requests.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use hob::daemon::Node;
use hob::data::Data;
use hob::invocation::{Invocation, Invoke, Payload, Start, Target};
use hob::net::afterwards;
use hob::registry::FunctionRecord;
use http_body_util::BodyExt as _;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::guests::Guest;
use crate::servers::setup_with;

/// A node and a thread that invokes.
#[derive(Debug)]
pub(crate) struct Local {
    node: Node,
    runtime: Runtime,
    dir: TempDir,
}

/// One invocation, times in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    /// The rung that it began on.
    pub(crate) rung: Start,
    /// From admission to the guest's first host call; for components, to a live instance.
    pub(crate) start: f64,
    /// From the call until the response is whole.
    pub(crate) answered: f64,
    /// From the call until the response is whole and what the thread had to do then is done: the instance is gone.
    pub(crate) whole: f64,
}

impl Local {
    pub(crate) fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// A node with settings of the form `engine.templates_max=20`.
    pub(crate) fn start_with(settings: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        let node = Node::start(setup_with(dir.path(), &settings)?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { node, runtime, dir })
    }

    pub(crate) fn data_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where it takes requests.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.node.addr()
    }

    /// What its functions keep.
    pub(crate) fn data(&self) -> &Data {
        self.node.data()
    }

    pub(crate) fn deploy(&self, guest: &Guest) -> anyhow::Result<FunctionRecord> {
        let deployed = self.node.deploy_file(guest.name.parse()?, &guest.wasm, guest.manifest.clone());
        deployed.with_context(|| format!("{} cannot be deployed", guest.name))
    }

    /// Runs `count` invocations that ask for `rung`, with a pause before each. `target`: path and query of each by its number.
    ///
    /// # Errors
    /// The [`hob::fault::Fault`] of the first invocation that has one; an answer other than 200.
    pub(crate) fn repeat(
        &self,
        function: &FunctionRecord,
        rung: Start,
        count: usize,
        pause: Duration,
        target: impl Fn(usize) -> String,
    ) -> anyhow::Result<Vec<Taken>> {
        self.runtime.block_on(async {
            let mut all = Vec::with_capacity(count);
            for number in 0..count {
                if !pause.is_zero() {
                    tokio::time::sleep(pause).await;
                }
                let began = Instant::now();
                let one = async {
                    let (rung, start) = self.one(function, Some(rung), target(number)).await?;
                    anyhow::Ok((rung, start, micros(began.elapsed())))
                };
                let (rung, start, answered) = in_turns(one).await?;
                all.push(Taken { rung, start, answered, whole: micros(began.elapsed()) });
                // What the thread does besides, such as making instances ahead.
                tokio::task::yield_now().await;
            }
            Ok(all)
        })
    }

    /// Runs `count` invocations in one turn of the thread, so that no instance is dropped before the last has answered; then `seen`,
    /// while all of them are there.
    pub(crate) fn hold<R>(
        &self,
        function: &FunctionRecord,
        count: usize,
        target: impl Fn(usize) -> String,
        seen: impl FnOnce() -> R,
    ) -> anyhow::Result<R> {
        self.runtime.block_on(tokio::task::unconstrained(async {
            for number in 0..count {
                self.one(function, Some(Start::Resident), target(number)).await?;
            }
            Ok(seen())
        }))
    }

    /// One invocation: its time in microseconds, from the call until the response is whole, and the response's body.
    pub(crate) fn call(&self, function: &FunctionRecord, target: String) -> anyhow::Result<(f64, Bytes)> {
        self.runtime.block_on(async {
            let began = Instant::now();
            let (_, _, body) = self.answer(function, None, target).await?;
            let took = micros(began.elapsed());
            // The instance is dropped here, as it is between two requests.
            tokio::task::yield_now().await;
            Ok((took, body))
        })
    }

    async fn one(&self, function: &FunctionRecord, rung: Option<Start>, target: String) -> anyhow::Result<(Start, f64)> {
        let (start, micros, _) = self.answer(function, rung, target).await?;
        Ok((start, micros))
    }

    async fn answer(
        &self,
        function: &FunctionRecord,
        rung: Option<Start>,
        target: String,
    ) -> anyhow::Result<(Start, f64, Bytes)> {
        let request = http::Request::get(target).header("host", "localhost").body(Payload::empty())?;
        let (tenant, target) = (function.tenant.clone(), Target::Function(function.name.clone()));
        let invocation = Invocation { tenant, target, request, received: Instant::now(), start: rung };
        let outcome = self.node.dispatcher().invoke(invocation).await.result?;
        let (head, body) = outcome.response.into_parts();
        let body = body.collect().await.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
        ensure!(head.status == http::StatusCode::OK, "expected 200, found {}: {}", head.status, String::from_utf8_lossy(&body));
        Ok((outcome.start, micros(outcome.phases.start()), body))
    }

    pub(crate) fn stop(self) {
        self.node.stop();
    }
}

/// Runs `work` in turns, as the data port runs a connection: an instance that ended is dropped when its turn is over.
pub(crate) async fn in_turns<F: Future>(work: F) -> F::Output {
    let mut work = std::pin::pin!(work);
    std::future::poll_fn(|cx| afterwards::turn(|| work.as_mut().poll(cx))).await
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
