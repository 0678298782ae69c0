//! Bytes of bodies, counted as they pass.
//!
//! Owns the counting body. Knows nothing about limits. Invariant: what did not pass is not counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::FunctionMeter;
use crate::invocation::{BodyError, Payload, StreamBody};

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the guest.
    In,
    /// From it.
    Out,
}

/// A body whose bytes are counted: at once if it is whole.
#[must_use]
pub fn counted(payload: Payload, meter: &Arc<FunctionMeter>, way: Way) -> Payload {
    match payload {
        Payload::Whole(bytes) => {
            meter.passed(way, bytes.len());
            Payload::Whole(bytes)
        }
        Payload::Stream(stream) => Payload::Stream(Box::pin(Counted { stream, meter: meter.clone(), way })),
    }
}

struct Counted {
    stream: StreamBody,
    meter: Arc<FunctionMeter>,
    way: Way,
}

impl Body for Counted {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.stream.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            self.meter.passed(self.way, frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.stream.size_hint()
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}
