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
use wasmtime::{Error, Result, Store};
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::Scheme;
use wasmtime_wasi_http::p3::Request as Request03;
use wasmtime_wasi_http::p3::bindings::ServicePre;
use wasmtime_wasi_http::{WasiBody, WasiHttpView};

use super::template::{Entry, Template};
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

/// Starts a guest. Nothing runs before the first poll.
pub(super) fn start(template: Arc<Template>, store: Store<Host>, input: Input) -> Guest {
    match template.shape.kind {
        super::Kind::Handler => Box::pin(end(store, async move |store| handler(&template, store).await)),
        super::Kind::Http02 => Box::pin(end(store, async move |store| http02(&template, store, input).await)),
        super::Kind::Http03 => Box::pin(end(store, async move |store| http03(&template, store, input).await)),
        _ => Box::pin(end(store, async move |store| command(&template, store, input).await)),
    }
}

/// Runs `call` and turns its error into a fault.
async fn end(mut store: Store<Host>, call: impl AsyncFnOnce(&mut Store<Host>) -> Result<Result<(), Fault>> + Send) -> Ended {
    let result = match call(&mut store).await {
        Ok(result) => result,
        Err(error) => Err(fault(&error, &store)),
    };
    Ended { result, store }
}

fn fault(error: &Error, store: &Store<Host>) -> Fault {
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

fn mismatch(what: &str) -> Error {
    wasmtime::format_err!("the template of another kind was called as {what}")
}

async fn handler(template: &Template, store: &mut Store<Host>) -> Result<Result<(), Fault>> {
    let Entry::Handler { pre, handle, initialize } = &template.entry else { return Err(mismatch("a handler")) };
    let instance = pre.instantiate_async(&mut *store).await?;
    store.data().reply.mark_instantiated();
    for export in initialize.iter().chain([handle]) {
        let Some(function) = instance.get_module_export(&mut *store, export).and_then(wasmtime::Extern::into_func) else {
            return Err(mismatch("a handler without its entry"));
        };
        function.typed::<(), ()>(&*store)?.call_async(&mut *store, ()).await?;
    }
    if store.data().exchange.has_responded() {
        return Ok(Ok(()));
    }
    Ok(Err(Fault::executed(Code::GuestNoResponse, "the function returned without calling 'respond'")))
}

async fn command(template: &Template, store: &mut Store<Host>, input: Input) -> Result<Result<(), Fault>> {
    let ended = match &template.entry {
        Entry::Command { pre, start } => {
            let instance = pre.instantiate_async(&mut *store).await?;
            store.data().reply.mark_instantiated();
            let Some(function) = instance.get_module_export(&mut *store, start).and_then(wasmtime::Extern::into_func) else {
                return Err(mismatch("a command without '_start'"));
            };
            function.typed::<(), ()>(&*store)?.call_async(&mut *store, ()).await.map(Ok)
        }
        Entry::Command02(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            store.data().reply.mark_instantiated();
            command.wasi_cli_run().call_run(&mut *store).await
        }
        Entry::Command03(pre) => {
            let command = pre.instantiate_async(&mut *store).await?;
            store.data().reply.mark_instantiated();
            let ran = store.run_concurrent(async |accessor| command.wasi_cli_run().call_run(accessor).await).await;
            ran.and_then(|inner| inner)
        }
        _ => return Err(mismatch("a command")),
    };
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

async fn http02(template: &Template, store: &mut Store<Host>, input: Input) -> Result<Result<(), Fault>> {
    let Entry::Http02(pre) = &template.entry else { return Err(mismatch("a 0.2 component")) };
    let pre: &ProxyPre<Host> = pre;
    let Some(request) = input.request else { return Err(mismatch("a component without a request")) };
    let proxy = pre.instantiate_async(&mut *store).await?;
    store.data().reply.mark_instantiated();
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

async fn http03(template: &Template, store: &mut Store<Host>, input: Input) -> Result<Result<(), Fault>> {
    let Entry::Http03(pre) = &template.entry else { return Err(mismatch("a 0.3 component")) };
    let pre: &ServicePre<Host> = pre;
    let Some(request) = input.request else { return Err(mismatch("a component without a request")) };
    let service = pre.instantiate_async(&mut *store).await?;
    store.data().reply.mark_instantiated();
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
