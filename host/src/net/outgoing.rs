//! Bodies of responses on their way into hyper.
//!
//! Owns what becomes of a body that breaks off. Knows nothing about why it did. Invariant: all that came before the break leaves,
//! and nothing that would read as a proper end.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use super::phase::Phase;
use crate::invocation::Payload;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// Where the bytes of a response come from.
enum Source<B> {
    Service(B),
    Own(Payload),
}

/// The body of a response on its way into hyper.
///
/// A body that breaks off is held for a moment: hyper drops what is in its buffers when a body fails, and so would swallow the
/// head and all that the guest had sent. One that is longer than announced breaks off too: hyper would send the announced part
/// as if it were all.
pub(super) struct Outgoing<B> {
    source: Source<B>,
    phase: Arc<Phase>,
    error: Option<BoxError>,
    /// What is still announced, in bytes; `None` when nothing was, or hyper counts itself.
    left: Option<u64>,
}

impl<B> Outgoing<B> {
    /// What a service answered.
    pub(super) fn of_service(response: Response<B>, phase: Arc<Phase>) -> Response<Self>
    where
        B: Body,
    {
        let left = match response.body().size_hint().exact() {
            Some(_) => None,
            None => response.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok()),
        };
        response.map(|body| Self { source: Source::Service(body), phase, error: None, left })
    }

    /// What Hob answers itself.
    pub(super) fn own(response: Response<Payload>, phase: Arc<Phase>) -> Response<Self> {
        response.map(|body| Self { source: Source::Own(body), phase, error: None, left: None })
    }
}

impl<B> Outgoing<B> {
    /// Holds a frame, or the end, against the announced length.
    fn count(&mut self, frame: Option<Result<Frame<Bytes>, BoxError>>) -> Option<Result<Frame<Bytes>, BoxError>> {
        let Some(left) = &mut self.left else { return frame };
        match &frame {
            Some(Ok(data)) => match left.checked_sub(data.data_ref().map_or(0, |data| data.len() as u64)) {
                Some(rest) => *left = rest,
                None => return Some(Err("the body is longer than its content-length".into())),
            },
            None if *left > 0 => return Some(Err("the body is shorter than its content-length".into())),
            None | Some(Err(_)) => {}
        }
        frame
    }
}

impl<B> Body for Outgoing<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if this.error.is_none() {
            let frame = match &mut this.source {
                Source::Service(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
                Source::Own(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            };
            let frame = match frame {
                Poll::Ready(frame) => this.count(frame),
                Poll::Pending => return Poll::Pending,
            };
            let Some(Err(error)) = frame else { return Poll::Ready(frame) };
            this.error = Some(error);
            this.phase.cut();
            cx.waker().wake_by_ref();
        }
        if this.phase.is_cut_flushed() { Poll::Ready(this.error.take().map(Err)) } else { Poll::Pending }
    }

    fn is_end_stream(&self) -> bool {
        self.error.is_none()
            && self.left.is_none_or(|left| left == 0)
            && match &self.source {
                Source::Service(body) => body.is_end_stream(),
                Source::Own(body) => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Service(body) => body.size_hint(),
            Source::Own(body) => body.size_hint(),
        }
    }
}

impl<B> Drop for Outgoing<B> {
    fn drop(&mut self) {
        self.phase.answered();
    }
}
