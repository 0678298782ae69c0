//! Bodies: of a response that its guest may still be writing.
//!
//! Owns what bounds such a body, and what ends a guest whose body nobody reads any more. Knows nothing about how a guest is driven.
//! Invariant: a guest goes on without its client only if all that it says was read.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;

use crate::capability::reply::Reply;
use crate::fault::{Code, Fault};
use crate::invocation::{BodyError, Payload, bounded};

/// `payload` with the guest that still writes it, in `task`.
pub(super) fn attach(payload: Payload, task: AbortHandle, reply: Arc<Reply>) -> Payload {
    let guard = AbortGuest { task, reply, finished: payload.is_end_stream() };
    Payload::Stream(Box::pin(Attached { payload, guard }))
}

/// Ends a guest whose response nobody reads any more.
struct AbortGuest {
    task: AbortHandle,
    reply: Arc<Reply>,
    /// Whether the response was read to its end.
    finished: bool,
}

/// A response body with the guest that still writes it.
struct Attached {
    payload: Payload,
    guard: AbortGuest,
}

impl Body for Attached {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.payload).poll_frame(cx));
        // A guest that has said all may still work; its deadlines end it, not the client that got its answer.
        self.guard.finished |= frame.is_none() || self.payload.is_end_stream();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.payload.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.payload.size_hint()
    }
}

impl Drop for AbortGuest {
    fn drop(&mut self) {
        if !self.finished {
            self.task.abort();
            self.reply.cut(Code::ClientTimeout);
        }
    }
}

/// Bounds a response body: at once when it is whole, piece by piece when it streams; what `fail` gives then writes down the fault
/// that nobody else can. It is not asked for a body that is whole.
///
/// # Errors
/// `response-too-large` for a whole body that is.
pub(super) fn bound<F: FnOnce(Fault) -> Fault + Send + 'static>(
    response: Response<Payload>,
    limit: u64,
    fail: impl FnOnce() -> F,
) -> Result<Response<Payload>, Fault> {
    let (parts, payload) = response.into_parts();
    let payload = match payload {
        Payload::Whole(bytes) if bytes.len() as u64 > limit => {
            return Err(too_large(format!("the response body has {} bytes, the function's limit is {limit}", bytes.len())));
        }
        Payload::Stream(stream) => {
            // The status is out by then, and the guest may have ended already: this is the place that knows.
            let fail = fail();
            let passed = move || BodyError::Cut(fail(self::passed(limit)).code);
            Payload::Stream(bounded(stream, limit, passed))
        }
        whole => whole,
    };
    Ok(Response::from_parts(parts, payload))
}

/// The fault for a streamed body that passed its limit.
pub(super) fn passed(limit: u64) -> Fault {
    too_large(format!("the response body passed the function's limit of {limit} bytes"))
}

fn too_large(detail: String) -> Fault {
    Fault::executed(Code::ResponseTooLarge, detail).hint("raise 'response_body' in [limits] of hob.toml")
}
