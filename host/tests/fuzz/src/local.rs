//! A node in this process, and invocations of its functions on the calling thread.

use std::ops::Range;
use std::time::Instant;

use anyhow::bail;
use hob::config::Config;
use hob::daemon::{Node, Setup};
use hob::fault::{Code, Fault};
use hob::invocation::{Invocation, Invoke, Payload, Start, Target};
use hob::manifest::Manifest;
use hob::registry::FunctionRecord;
use http_body_util::BodyExt as _;
use tempfile::TempDir;

use crate::report::Report;

/// See the module.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) node: Node,
    dir: TempDir,
}

/// How an invocation ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With this status and body.
    Answered(u16, Vec<u8>),
    /// With a fault, or a connection that would have been cut.
    Failed(Code, String),
}

impl Local {
    pub(crate) fn start(settings: &[&str]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let settings: Vec<_> = settings.iter().map(ToString::to_string).collect();
        let mut setup = Setup { config: Config::read("", &settings)?, ..Setup::default() };
        setup.config.net.addr = ([127, 0, 0, 1], 0).into();
        setup.config.net.control = setup.config.net.addr;
        setup.config.data.dir = Some(dir.path().to_owned());
        Ok(Self { node: Node::start(setup)?, dir })
    }

    /// Deploys a module as the control port would.
    ///
    /// # Errors
    /// The fault that a client would be told.
    pub(crate) fn deploy(&self, name: &str, wasm: &[u8], manifest: &str) -> anyhow::Result<Result<FunctionRecord, Fault>> {
        let path = self.dir.path().join(format!("{name}.wasm"));
        std::fs::write(&path, wasm)?;
        let deployed = self.node.deploy_file(name.parse()?, &path, Manifest::parse(manifest)?);
        std::fs::remove_file(path)?;
        Ok(deployed)
    }

    /// One invocation to its end.
    pub(crate) async fn invoke(&self, function: &FunctionRecord, request: http::Request<Payload>, start: Option<Start>) -> Ended {
        let target = Target::Function(function.name.clone());
        self.ask(Invocation { tenant: function.tenant.clone(), target, request, received: Instant::now(), start }).await
    }

    pub(crate) async fn ask(&self, invocation: Invocation) -> Ended {
        let outcome = match self.node.dispatcher().invoke(invocation).await.result {
            Ok(outcome) => outcome,
            Err(fault) => return Ended::Failed(fault.code, fault.detail.into_owned()),
        };
        let (head, body) = outcome.response.into_parts();
        match body.collect().await {
            Ok(body) => Ended::Answered(head.status.as_u16(), body.to_bytes().into()),
            Err(hob::invocation::BodyError::Cut(code)) => Ended::Failed(code, "the body was cut".into()),
            Err(error) => Ended::Failed(Code::GuestBadResponse, error.to_string()),
        }
    }

    pub(crate) fn stop(self) {
        self.node.stop();
    }
}

/// A runtime for the calling thread, on which guests run.
pub(crate) fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    hob::engine::Engine::prepare_thread();
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

pub(crate) fn get(target: &str) -> anyhow::Result<http::Request<Payload>> {
    Ok(http::Request::get(target).header("host", "localhost").body(Payload::empty())?)
}

/// Runs inputs `0..runs` on all processors: `part` is called on a thread for each, with the numbers that are its own.
///
/// # Errors
/// The first of a thread, or that one panicked.
pub(crate) fn on_all_threads(
    report: &mut Report,
    runs: u64,
    part: impl Fn(Range<u64>, &mut Report) -> anyhow::Result<()> + Sync,
) -> anyhow::Result<()> {
    // Two at least, on one processor too: threads hand slots to one another.
    let threads = std::thread::available_parallelism().map_or(2, |processors| processors.get().max(2)) as u64;
    let counted = std::thread::scope(|scope| {
        let part = &part;
        let begin = |thread| {
            let own = runs * thread / threads..runs * (thread + 1) / threads;
            scope.spawn(move || {
                let mut report = Report::default();
                part(own, &mut report).map(|()| report)
            })
        };
        let begun: Vec<_> = (0..threads).map(begin).collect();
        begun.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect::<Vec<_>>()
    });
    for counted in counted {
        report.add(&counted?);
    }
    Ok(())
}
