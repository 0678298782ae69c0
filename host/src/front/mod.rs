//! The HTTP door: a request becomes an [`Invocation`], its outcome a response.
//!
//! Owns the data port's service. Knows `net`, whose host is whose, and [`Invoke`], never the engine.
//!
//! | request header | meaning |
//! |---|---|
//! | `hob-hops: N` | set by the host in requests of functions: how many functions it came through; past 8 it is refused with 508 |
//! | `hob-timing: 1` | asks for `server-timing` with the phases of [`Phases`](crate::invocation::Phases) in milliseconds |
//!
//! Other `hob-*` headers and the hop-by-hop headers of a request are dropped, as are those of a response. A body whose length is
//! announced and at most [`INLINE_BODY_BYTES`](crate::invocation::INLINE_BODY_BYTES) is read whole first, so that a slow client
//! holds no instance; what is longer, or comes in chunks, streams.

#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;

use crate::fault::{Code, Fault};
use crate::id::TenantId;
use crate::identity::Identity;
use crate::invocation::{BodyError, HOPS_MAX, Hops, Invocation, Invoke, Payload, Target};
use crate::net::exchange;

/// The data port's service. One for each thread, so that threads do not share its counts.
#[derive(Debug, Clone)]
pub struct Front {
    invoke: Arc<dyn Invoke>,
    /// Knows whose host is whose; without it all are of `tenant`.
    identity: Option<Arc<Identity>>,
    tenant: TenantId,
}

impl Front {
    /// A door to `invoke`.
    #[must_use]
    pub fn new(invoke: Arc<dyn Invoke>, identity: Option<Arc<Identity>>) -> Self {
        Self { invoke, identity, tenant: TenantId::default() }
    }

    /// Answers one request. Every path ends in a response; see the module for what is added and removed.
    ///
    /// # Cancellation
    /// Dropping the future stops the guest ([`Invoke::invoke`]).
    pub fn handle<B>(&self, request: Request<B>) -> impl Future<Output = Response<Payload>> + Send + use<B>
    where
        B: Body<Data = Bytes, Error = BodyError> + Send + Unpin + 'static,
    {
        let invoke = self.invoke.clone();
        let (head, body) = request.into_parts();
        let tenant = match &self.identity {
            Some(identity) => identity.tenant_of(&head, &self.tenant),
            None => self.tenant.clone(),
        };
        let received = Instant::now();
        async move {
            let mut head = head;
            let hops = Hops::of(&head.headers);
            if hops.is_loop() {
                return exchange::refuse(&looped(), None);
            }
            if !hops.is_none() {
                head.extensions.insert(hops);
            }
            let timing = exchange::clean_request(&mut head.headers);
            let payload = match exchange::read(body).await {
                Ok(payload) => payload,
                Err(fault) => return exchange::refuse(&fault, None),
            };
            let method = if head.method == Method::HEAD { Method::HEAD } else { Method::GET };
            let request = Request::from_parts(head, payload);
            let invocation = Invocation { tenant, target: Target::Request, request, received, start: None };
            exchange::answer(invoke.invoke(invocation).await, &method, timing)
        }
    }
}

fn looped() -> Fault {
    let detail = format!("the request came through more than {HOPS_MAX} functions, each of which sent it on");
    Fault::new(Code::LoopDetected, detail).hint("look for a function that sends requests to itself, by way of others perhaps")
}
