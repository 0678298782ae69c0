//! Calling in: what each kind of function is asked, and how its end is told.
//!
//! Owns one short async function for each kind, from a fresh store to the end of the guest. Knows nothing about deadlines and
//! who waits (`run.rs`). Invariant: the store comes back on every path that is not a cancel, so that it can be dropped after
//! the response has left.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;
use wasmtime::{Error, ModuleExport, Result, Store};
use wasmtime_wasi::p2::bindings::Command as Command02;
use wasmtime_wasi::p3::bindings::Command as Command03;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::Request as Request03;
use wasmtime_wasi_http::p3::bindings::Service;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::template::{Entry, Resolved};
use super::trap::{Exit, classify};
use crate::capability::Host;
use crate::capability::http::{self as wasi_http, RequestBody};
use crate::capability::reply::{GuestBody, Reply};
use crate::capability::stdio::CommandOutput;
use crate::fault::{Code, Fault};
use crate::invocation::{BodyError, Payload};

/// A guest that has ended: how, and the store that is to be dropped.
pub(super) struct Ended {
    /// `Ok` when it did what its kind promises.
    pub(super) result: Result<(), Fault>,
    pub(super) store: Store<Host>,
}

/// A guest on its way.
pub(super) type Guest = Pin<Box<dyn Future<Output = Ended> + Send>>;

/// What a guest needs beside its store.
pub(super) struct Input {
    /// Request of a `wasi:http` component.
    pub(super) request: Option<http::Request<RequestBody>>,
    /// Output of a command.
    pub(super) output: Option<Arc<CommandOutput>>,
    pub(super) reply: Arc<Reply>,
}

/// An instance in which nothing ran but its own start.
pub(super) enum Live {
    Module(wasmtime::Instance),
    Command02(Command02),
    Command03(Command03),
    Http02(Proxy),
    Http03(Service),
}

/// Starts a guest in a fresh store, or in an instance that waited. Nothing runs before the first poll.
pub(super) fn start(code: Arc<Resolved>, store: Store<Host>, live: Option<Live>, input: Input) -> Guest {
    let call = async move |store: &mut Store<Host>| {
        let entry = &code.entry;
        store.data_mut().mount().await;
        let live = match live {
            Some(live) => live,
            None => instantiate(entry, store).await?,
        };
        serve(entry, store, &live, input).await
    };
    Box::pin(end(store, call))
}

/// Makes an instance and runs what it runs at its start.
pub(super) async fn instantiate(entry: &Entry, store: &mut Store<Host>) -> Result<Live> {
    let live = match entry {
        Entry::Handler { pre, .. } | Entry::Command { pre, .. } => Live::Module(pre.instantiate_async(&mut *store).await?),
        Entry::Command02(pre) => Live::Command02(pre.instantiate_async(&mut *store).await?),
        Entry::Command03(pre) => Live::Command03(pre.instantiate_async(&mut *store).await?),
        Entry::Http02(pre) => Live::Http02(pre.instantiate_async(&mut *store).await?),
        Entry::Http03(pre) => Live::Http03(pre.instantiate_async(&mut *store).await?),
    };
    if let (Live::Module(instance), Entry::Handler { prelude, .. } | Entry::Command { prelude, .. }) = (&live, entry) {
        for export in prelude {
            call_export(store, *instance, export).await?;
        }
    }
    store.data().reply.mark_instantiated();
    Ok(live)
}

/// Runs the `hob_restored` of a handler that has one, which is nobody's request.
pub(super) async fn restore(entry: &Entry, store: &mut Store<Host>, instance: wasmtime::Instance) -> Result<()> {
    match entry {
        Entry::Handler { restored: Some(restored), .. } => call_export(store, instance, restored).await,
        _ => Ok(()),
    }
}

/// Asks an instance what its kind is asked.
pub(super) async fn serve(entry: &Entry, store: &mut Store<Host>, live: &Live, input: Input) -> Result<Result<(), Fault>> {
    match (live, entry) {
        (Live::Module(instance), Entry::Handler { handle, restored, .. }) => {
            handler(store, *instance, handle, restored.as_ref()).await
        }
        (Live::Http02(proxy), _) => http02(store, proxy, input).await,
        (Live::Http03(service), _) => http03(store, service, input).await,
        (Live::Module(instance), Entry::Command { start, .. }) => {
            let ended = call_export(store, *instance, start).await.map(Ok);
            command(store, ended, input)
        }
        (Live::Command02(guest), _) => {
            let ended = guest.wasi_cli_run().call_run(&mut *store).await;
            command(store, ended, input)
        }
        (Live::Command03(guest), _) => {
            let ran = store.run_concurrent(async |accessor| guest.wasi_cli_run().call_run(accessor).await).await;
            command(store, ran.and_then(|inner| inner), input)
        }
        (Live::Module(_), _) => Err(wasmtime::format_err!("a core module was started with the entry of a component")),
    }
}

/// Calls an export without parameters and results.
async fn call_export(store: &mut Store<Host>, instance: wasmtime::Instance, export: &ModuleExport) -> Result<()> {
    let function = instance.get_module_export(&mut *store, export).and_then(wasmtime::Extern::into_func);
    let function = function.ok_or_else(|| wasmtime::format_err!("the instance is of another module than its template"))?;
    function.typed::<(), ()>(&*store)?.call_async(&mut *store, ()).await
}

/// Runs `call` and turns its error into a fault.
async fn end(mut store: Store<Host>, call: impl AsyncFnOnce(&mut Store<Host>) -> Result<Result<(), Fault>> + Send) -> Ended {
    let result = match call(&mut store).await {
        Ok(result) => result,
        // A guest that read zeros where an object should be may end in any way.
        Err(error) => Err(fault(&intact(&store).err().unwrap_or(error), &store)),
    };
    Ended { result, store }
}

/// Whether what the guest read of its mappings was true.
fn intact(store: &Store<Host>) -> Result<()> {
    let Host { mappings, memory, .. } = store.data();
    Ok(mappings.intact(memory)?)
}

pub(super) fn fault(error: &Error, store: &Store<Host>) -> Fault {
    match classify(error, &store.data().memory) {
        Exit::Fault(fault) => {
            if fault.code == Code::GuestTrap {
                store.data().log.host(crate::telemetry::logs::Level::Error, format!("{error:#}"));
            }
            fault
        }
        Exit::Code(code) => exited(code),
    }
}

fn exited(code: i32) -> Fault {
    Fault::executed(Code::GuestExit, format!("the program exited with code {code}"))
        .hint("what it wrote to standard error is in its log: hob logs NAME")
}

async fn handler(
    store: &mut Store<Host>,
    instance: wasmtime::Instance,
    handle: &ModuleExport,
    restored: Option<&ModuleExport>,
) -> Result<Result<(), Fault>> {
    for export in restored.into_iter().chain([handle]) {
        call_export(store, instance, export).await?;
    }
    intact(store)?;
    store.data_mut().exchange.finish();
    if store.data().exchange.has_responded() {
        return Ok(Ok(()));
    }
    Ok(Err(Fault::executed(Code::GuestNoResponse, "the function returned without calling 'respond'")))
}

/// What the end of a command means.
fn command(store: &mut Store<Host>, ended: Result<Result<(), ()>>, input: Input) -> Result<Result<(), Fault>> {
    let code = match ended {
        Ok(Ok(())) => 0,
        Ok(Err(())) => 1,
        Err(error) => match classify(&error, &store.data().memory) {
            Exit::Code(code) => code,
            Exit::Fault(_) => return Err(error),
        },
    };
    store.data_mut().exit_code = Some(code);
    if code != 0 {
        return Ok(Err(exited(code)));
    }
    if let Some(output) = input.output {
        output.finish();
    }
    Ok(Ok(()))
}

async fn http02(store: &mut Store<Host>, proxy: &Proxy, input: Input) -> Result<Result<(), Fault>> {
    let Some(request) = input.request else { return Err(without_request()) };
    let mut host = store.data_mut().http();
    let request = host.new_incoming_request(Scheme::Http, request)?;
    let reply = input.reply.clone();
    let outparam = host.new_response_outparam_from_callback(move |response| reply.put(wasi_http::answer(response, &reply)))?;
    proxy.wasi_http_incoming_handler().call_handle(&mut *store, request, outparam).await?;
    if input.reply.was_put() {
        return Ok(Ok(()));
    }
    Ok(Err(Fault::executed(Code::GuestNoResponse, "the function returned without setting a response")))
}

fn without_request() -> Error {
    wasmtime::format_err!("a component was called without a request")
}

async fn http03(store: &mut Store<Host>, service: &Service, input: Input) -> Result<Result<(), Fault>> {
    let Some(request) = input.request else { return Err(without_request()) };
    // What the guest makes of the request's body is its own affair: the future only tells how that went.
    let (request, _processed) = Request03::from_http(store.data_mut().http().hooks, request);
    let reply = input.reply;
    store
        .run_concurrent(async |accessor| -> Result<Result<(), Fault>> {
            let response = match service.handle(accessor, request).await? {
                Ok(response) => response,
                Err(code) => return Ok(Err(wasi_http::refused(&code))),
            };
            let response = accessor.with(|access| response.into_http(access, async { Ok(()) }))?;
            let (dropped, drop) = oneshot::channel();
            let payload =
                |body| -> Payload { Payload::Stream(Box::pin(GuestBody::new(Held { body, _dropped: dropped }, reply.clone()))) };
            reply.put(Ok(response.map(payload)));
            // The guest writes its body only while its store runs: until the body was read or given up.
            let _given_up = drop.await;
            Ok(Ok(()))
        })
        .await?
}

/// A body that tells when it is dropped.
struct Held {
    body: WasiBody,
    _dropped: oneshot::Sender<()>,
}

impl Body for Held {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx).map_err(|_| BodyError::Cut(Code::GuestBadResponse))
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
