//! Bodies of requests as they arrive.
//!
//! Owns the time that a client may be silent in the middle of a body. Knows nothing about who reads it. Nothing is buffered
//! beyond hyper's one read. Invariant: after an error there are no more frames.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::idle::Idle;
use super::phase::Phase;
use crate::invocation::BodyError;

/// The body of a request.
///
/// Errors: [`BodyError::Idle`] when nothing came for `body_idle_timeout` while the reader waited, [`BodyError::Disconnected`] when
/// the client went away or broke the framing. Once it is dropped before its end the connection closes after the response.
#[derive(Debug)]
pub struct IncomingBody {
    body: Incoming,
    idle: Idle,
    failed: Option<BodyError>,
    /// The last frame was given. hyper's own `is_end_stream` never says so of a body in chunks.
    ended: bool,
    /// `None` when there was no body to begin with.
    phase: Option<Arc<Phase>>,
}

impl IncomingBody {
    pub(super) fn new(body: Incoming, phase: &Arc<Phase>, idle_timeout: Duration) -> Self {
        let phase = (!body.is_end_stream()).then(|| {
            phase.hold_body();
            Arc::clone(phase)
        });
        Self { body, idle: Idle::new(idle_timeout), failed: None, ended: false, phase }
    }
}

impl Body for IncomingBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(error) = &this.failed {
            return Poll::Ready(Some(Err(error.clone())));
        }
        let error = match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.progress();
                this.ended = frame.is_trailers();
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => {
                this.ended = true;
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::debug!(%error, "request body broke off");
                BodyError::Disconnected
            }
            Poll::Pending => match this.idle.poll_silence(cx) {
                Poll::Ready(()) => BodyError::Idle,
                Poll::Pending => return Poll::Pending,
            },
        };
        this.failed = Some(error.clone());
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.failed.is_none() && (self.ended || self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for IncomingBody {
    fn drop(&mut self) {
        if let Some(phase) = &self.phase {
            phase.release_body(self.is_end_stream());
        }
    }
}
