//! Requests in hand: how many tokens of tenants may have at once, from the look at the token until the last of the answer has left.
//!
//! A request in hand keeps its connection, for as long as its client likes if it follows a log, and the port has few connections
//! (`net.control_connections_max`). So one tenant has at most a quarter of them, and all tenants but `default` together three; the last
//! quarter is for whoever runs the node, and for whoever asks whether it lives.
//!
//! Owns the counts. Knows no route, and nothing about connections that have no request. Invariant: a tenant is in the table exactly as long as
//! it has a request in hand.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::fault::{Code, Fault};
use crate::id::TenantId;

/// See the module.
#[derive(Debug)]
pub struct InHand {
    each_max: usize,
    all_max: usize,
    by: Mutex<HashMap<TenantId, usize>>,
}

impl InHand {
    /// Of a port with so many connections at most.
    #[must_use]
    pub fn new(connections_max: usize) -> Arc<Self> {
        let [each_max, all_max] = [connections_max / 4, connections_max / 4 * 3].map(|max| max.max(1));
        Arc::new(Self { each_max, all_max, by: Mutex::default() })
    }

    /// One more of a tenant.
    ///
    /// # Errors
    /// `overloaded`, if the tenant, or all together, have as many as they may.
    pub(super) fn take(self: &Arc<Self>, tenant: &TenantId) -> Result<Held, Fault> {
        let mut by = self.lock();
        let full = |whose: &str, max: usize| {
            let detail = format!("{max} requests {whose} are in hand at the control port, and there may be no more");
            Err(Fault::new(Code::Overloaded, detail)
                .retry_after(Duration::from_secs(1))
                .hint("end some: who follows a log is one"))
        };
        if by.get(tenant).is_some_and(|count| *count >= self.each_max) {
            return full("of the tenant", self.each_max);
        }
        if by.values().sum::<usize>() >= self.all_max {
            return full("of tenants", self.all_max);
        }
        *by.entry(tenant.clone()).or_default() += 1;
        Ok(Held { all: Arc::clone(self), tenant: tenant.clone() })
    }

    /// Nothing panics under the lock.
    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, usize>> {
        self.by.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request in hand, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    all: Arc<InHand>,
    tenant: TenantId,
}

impl Held {
    /// Held until the last of an answer was taken.
    pub(super) fn until_sent(self, response: Response) -> Response {
        response.map(|body| if body.is_end_stream() { body } else { Body::new(Sent { body, _held: self }) })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut by = self.all.lock();
        if let Some(count) = by.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                by.remove(&self.tenant);
            }
        }
    }
}

struct Sent {
    body: Body,
    _held: Held,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    fn tenants() -> [TenantId; 5] {
        ["a", "b", "c", "d", "e"].map(|name| name.parse().unwrap())
    }

    #[test]
    fn a_tenant_has_a_quarter_and_all_have_three() {
        let all = InHand::new(16);
        let [a, b, c, d, _] = tenants();
        let take = |of: &TenantId| all.take(of);
        let mut held: Vec<_> = (0..4).map(|_| take(&a).unwrap()).collect();
        let fault = take(&a).unwrap_err();
        assert!(fault.code == Code::Overloaded && fault.detail.contains("4 requests of the tenant"), "{fault:?}");
        held.extend([&b, &c].into_iter().flat_map(|of| (0..4).map(|_| take(of).unwrap()).collect::<Vec<_>>()));
        assert!(take(&d).unwrap_err().detail.contains("12 requests of tenants"));
        held.pop();
        let other = take(&d).unwrap();
        assert!(take(&d).is_err());
        drop(other);
        drop(held);
        assert!(all.lock().is_empty());
        assert!(InHand::new(1).take(&a).is_ok(), "a port with one connection has one for whoever comes");
    }

    #[tokio::test]
    async fn it_is_held_until_the_answer_was_taken() {
        let all = InHand::new(4);
        let [a, ..] = tenants();
        let answer = |body: &'static str| all.take(&a).map(|held| held.until_sent(Response::new(Body::from(body))));
        let response = answer("some").unwrap();
        assert_eq!(response.body().size_hint().exact(), Some(4), "its length is still known");
        assert!(answer("other").is_err());
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "some");
        // Nothing is left of one without a body.
        let _empty = answer("").unwrap();
        assert!(answer("").is_ok());
    }
}
