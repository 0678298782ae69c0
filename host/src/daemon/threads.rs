//! The threads of a node, each with a runtime of its own, and the way onto them.
//!
//! Owns what a thread runs from its start to its end, and [`DataPlane`]. Knows nothing about how a node comes up. Invariant: a thread is
//! there, with its runtime, when whoever starts it goes on.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::runtime::{Builder as RuntimeBuilder, Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::control::Control;
use crate::dispatch::Dispatcher;
use crate::dispatch::used::{self, UseOrder};
use crate::engine::Engine;
use crate::fault::{Code, Fault};
use crate::front::Front;
use crate::identity::Identity;
use crate::invocation::{Invocation, Invoke, Invoked};
use crate::limits::{BLOCKING_IDLE, BLOCKING_THREADS_MAX};
use crate::net::drain::Stop;
use crate::net::serve::{self, Options};
use crate::trigger::Triggers;

/// How long a thread that stops waits for work that blocks; what goes on then ends with the process.
const BLOCKED_MAX: Duration = Duration::from_secs(5);

pub(super) fn current_thread() -> std::io::Result<Runtime> {
    runtime_builder().build()
}

/// Of every runtime here: a thread of its own, and a bounded number of others that may block.
fn runtime_builder() -> RuntimeBuilder {
    let mut builder = RuntimeBuilder::new_current_thread();
    builder.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).thread_keep_alive(BLOCKING_IDLE);
    builder
}

/// The runtime of a thread that may run guests.
fn guest_thread() -> std::io::Result<Runtime> {
    let mut builder = runtime_builder();
    builder.on_thread_park(Engine::thread_sleeps).on_thread_unpark(Engine::thread_woke).build()
}

/// Starts a named thread with a runtime of its own, and returns the runtime's handle.
pub(super) fn start_thread<F>(
    name: String,
    serve: impl FnOnce() -> F + Send + 'static,
) -> std::io::Result<(JoinHandle<usize>, Handle)>
where
    F: Future<Output = std::io::Result<usize>>,
{
    let (sender, handle): (SyncSender<std::io::Result<Handle>>, Receiver<_>) = sync_channel(1);
    let body = move || {
        let runtime = match guest_thread() {
            Ok(runtime) => runtime,
            Err(error) => {
                // The receiver waits for exactly this.
                let _received = sender.send(Err(error));
                return 0;
            }
        };
        let _received = sender.send(Ok(runtime.handle().clone()));
        Engine::prepare_thread();
        let served = runtime.block_on(serve());
        // What still blocks (a scrub, the first reading of an object, an origin that drips) would hold up a plain drop until it is done.
        runtime.shutdown_timeout(BLOCKED_MAX);
        match served {
            Ok(cut) => cut,
            Err(error) => {
                tracing::error!(%error, "a listener cannot be served");
                0
            }
        }
    };
    let thread = std::thread::Builder::new().name(name).spawn(body)?;
    let handle = handle.recv().map_err(std::io::Error::other)??;
    Ok((thread, handle))
}

pub(super) type DataThreads = (Vec<JoinHandle<usize>>, Arc<DataPlane>);

pub(super) fn start_data_threads(
    listeners: Vec<std::net::TcpListener>,
    options: &Options,
    (dispatcher, identity): (&Dispatcher, &Arc<Identity>),
    stop: &Stop,
    released: &Stop,
) -> std::io::Result<DataThreads> {
    let (mut threads, mut handles) = (Vec::new(), Vec::new());
    for (number, listener) in listeners.into_iter().enumerate() {
        let front = Front::new(Arc::new(dispatcher.clone()), Some(identity.clone()));
        let (options, stop, released) = (options.clone(), stop.clone(), released.clone());
        let serve = move || async move {
            let cut = serve::serve(listener, options, move |request| front.handle(request), stop).await;
            // Invocations that came by the control port run here too.
            released.stopped().await;
            cut
        };
        let (thread, handle) = start_thread(format!("hob-data-{number}"), serve)?;
        threads.push(thread);
        handles.push(handle);
    }
    Ok((threads, Arc::new(DataPlane { dispatcher: dispatcher.clone(), handles, next: AtomicUsize::new(0) })))
}

pub(super) fn start_control_thread(
    listeners: Vec<std::net::TcpListener>,
    options: Options,
    control: Control,
    used: Used,
    stop: Stop,
) -> std::io::Result<(JoinHandle<usize>, Handle)> {
    let deployer = control.deployer.clone();
    let templates = control.dispatcher.templates().clone();
    let service = control.service(if options.tls.is_some() { "https" } else { "http" });
    let tls = options.tls.clone();
    let (thread, handle) = start_thread("hob-control".into(), move || async move {
        let refresher = deployer.clone();
        let ranks = used.order().ranks();
        let refresher = tokio::spawn(async move { templates.refresh(ranks, || refresher.collect_soon()).await });
        let rememberer = tokio::spawn(used.remember_forever());
        let collector = tokio::spawn(async move { deployer.collect_forever().await });
        let mut cut = 0;
        for listener in listeners {
            cut += serve::serve(listener, options.clone(), service.clone(), stop.clone()).await?;
        }
        // Without a port of its own the thread still works for the deployer.
        stop.stopped().await;
        refresher.abort();
        rememberer.abort();
        collector.abort();
        Ok(cut)
    })?;
    if let Some(tls) = tls {
        // Caught before anybody is told that the node is ready. The task ends with the thread's runtime.
        let hangup = handle.block_on(async { signal(SignalKind::hangup()) })?;
        handle.spawn(tls.keep_fresh(hangup));
    }
    Ok((thread, handle))
}

/// The order in which functions were used, and who knows what was.
#[derive(Debug, Clone)]
pub(super) struct Used(pub(super) Arc<Mutex<UseOrder>>, pub(super) Dispatcher);

impl Used {
    /// Every statement leaves the order whole.
    pub(super) fn order(&self) -> std::sync::MutexGuard<'_, UseOrder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks. An order that cannot be written costs nothing but the order.
    pub(super) fn remember(&self) {
        self.1.rest_meters();
        if let Err(error) = self.1.remember_use(&mut self.order()) {
            tracing::warn!(%error, "the order in which functions were used cannot be written");
        }
    }

    async fn remember_forever(self) {
        loop {
            tokio::time::sleep(used::PERIOD).await;
            let this = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || this.remember()).await {
                tracing::error!(%error, "writing down what was used failed");
            }
        }
    }
}

/// Delivers events on a thread of its own, because reading them may block on the disk.
pub(super) fn start_trigger_thread(
    triggers: Triggers,
    stop: Stop,
    drain_timeout: Duration,
) -> std::io::Result<JoinHandle<usize>> {
    let serve = move || async move { Ok(triggers.run(stop, drain_timeout).await) };
    start_thread("hob-trigger".into(), serve).map(|(thread, _)| thread)
}

/// Hands invocations to the data threads in turn, whatever thread they come from.
#[derive(Debug)]
pub(super) struct DataPlane {
    dispatcher: Dispatcher,
    handles: Vec<Handle>,
    next: AtomicUsize,
}

impl Invoke for DataPlane {
    fn invoke(&self, invocation: Invocation) -> BoxFuture<'static, Invoked> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.handles.len().max(1);
        let id = self.dispatcher.next_id();
        let Some(handle) = self.handles.get(turn) else {
            let fault = Fault::internal("a node has no data thread");
            return std::future::ready(Invoked { id, result: Err(fault) }).boxed();
        };
        let task = AbortOnDrop(handle.spawn(self.dispatcher.invoke_as(id, invocation)));
        async move {
            let mut task = task;
            match (&mut task.0).await {
                Ok(invoked) => invoked,
                Err(error) if error.is_cancelled() => {
                    Invoked { id, result: Err(Fault::new(Code::Draining, "the node is shutting down")) }
                }
                Err(error) => Invoked { id, result: Err(Fault::internal(error)) },
            }
        }
        .boxed()
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<Invoked>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
