//! Bodies of requests as they arrive.
//!
//! Owns the time that a client may be silent in the middle of a body, and how slow it may be. Knows nothing about who reads it.
//! Nothing is buffered beyond hyper's one read. Invariant: after an error there are no more frames.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::idle::Idle;
use super::phase::Phase;
use super::serve::Options;
use crate::invocation::BodyError;

/// The body of a request.
///
/// Errors: [`BodyError::Idle`] when nothing came for `body_idle_timeout` while the reader waited, or less than `body_rate_min`, [`BodyError::Disconnected`] when
/// the client went away or broke the framing. Once it is dropped before its end, or had trailers, the connection closes after the response.
#[derive(Debug)]
pub struct IncomingBody {
    body: Incoming,
    idle: Idle,
    pace: Pace,
    failed: Option<BodyError>,
    /// The last frame was given. hyper's own `is_end_stream` never says so of a body in chunks.
    ended: bool,
    /// `None` when there was no body to begin with.
    phase: Option<Arc<Phase>>,
    peer: Option<IpAddr>,
}

impl IncomingBody {
    pub(super) fn new(body: Incoming, phase: &Arc<Phase>, options: &Options) -> Self {
        let peer = phase.peer;
        let phase = (!body.is_end_stream()).then(|| {
            phase.hold_body();
            Arc::clone(phase)
        });
        let grace = options.body_rate_grace;
        let pace = Pace { rate_min: options.body_rate_min, left: grace, most: grace.max(options.body_idle_timeout) };
        Self { body, idle: Idle::new(options.body_idle_timeout), pace, failed: None, ended: false, phase, peer }
    }

    /// The address that the request came from; `None` if the connection was gone before anybody asked.
    #[must_use]
    pub fn peer(&self) -> Option<IpAddr> {
        self.peer
    }
}

/// How much longer a client may let its reader wait. Only waiting counts: a reader that takes its time costs the client nothing, and one that
/// never waits never looks at a clock.
#[derive(Debug)]
struct Pace {
    /// Bytes that earn a second; 0: nothing is counted.
    rate_min: u64,
    left: Duration,
    /// What can be earned: a body that began fast does not end in drops.
    most: Duration,
}

impl Pace {
    /// `len` bytes came after the reader had waited for `waited`.
    fn progress(&mut self, len: usize, waited: Duration) {
        if let Some(nanos) = (len as u64).saturating_mul(1_000_000_000).checked_div(self.rate_min) {
            let earned = Duration::from_nanos(nanos);
            self.left = self.left.saturating_add(earned).saturating_sub(waited).min(self.most);
        }
    }

    /// How long the reader may wait now.
    fn left(&self) -> Duration {
        if self.rate_min > 0 { self.left } else { Duration::MAX }
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
                this.pace.progress(frame.data_ref().map_or(0, Bytes::len), this.idle.end());
                this.ended = frame.is_trailers();
                if let (true, Some(phase)) = (this.ended, &this.phase) {
                    phase.trailed();
                }
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
            Poll::Pending => match this.idle.poll_silence_of(this.pace.left(), cx) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_earn_time_and_waiting_takes_it() {
        let second = Duration::from_secs(1);
        let mut pace = Pace { rate_min: 1024, left: 5 * second, most: 10 * second };
        pace.progress(1024, second);
        assert_eq!(pace.left(), 5 * second);
        pace.progress(512, 3 * second);
        assert_eq!(pace.left(), 2 * second + second / 2);
        pace.progress(1, 9 * second);
        assert_eq!(pace.left(), Duration::ZERO);
        pace.progress(1 << 30, Duration::ZERO);
        assert_eq!(pace.left(), 10 * second, "no more than that");
        let mut free = Pace { rate_min: 0, left: Duration::ZERO, most: Duration::ZERO };
        free.progress(1, 100 * second);
        assert_eq!(free.left(), Duration::MAX);
    }
}
